//! The tiny init: process 1 of a container whose command is process 2.
//!
//! It reaps orphans, passes signals that processes send to it on to the command, and ends when the command does, with its code; the
//! kernel then kills what is left in the pid namespace. Signals of the terminal are not passed on: the command is in the same process
//! group and gets its own, or it has a terminal of its own, and this process none.

use plyfs_sys::process::{self, Exit, signals};

use crate::error::{During, Result};

/// Runs until the command ends. All signals must be blocked.
pub(crate) fn run(command: i32) -> Result<Exit> {
    let arrived = signals::SignalFd::all().during(|| "watch signals".to_owned())?;
    loop {
        // First, since the command may have ended before there was a descriptor; and always all of them, since signals of the same
        // kind that come together are one.
        while let Some((child, exit)) = reap()? {
            if child == command {
                return Ok(exit);
            }
        }
        let signal = arrived.next().during(|| "read a signal".to_owned())?;
        if signal.signal != signals::SIGCHLD && signal.by_process {
            match process::kill(command, signal.signal) {
                // It has ended, which the next round sees.
                Ok(()) | Err(plyfs_sys::Errno::SRCH) => {}
                Err(errno) => return Err(errno).during(|| format!("pass signal {} on", signal.signal)),
            }
        }
    }
}

fn reap() -> Result<Option<(i32, Exit)>> {
    match process::reap() {
        // Not before the command is reaped, which ends all this.
        Err(plyfs_sys::Errno::CHILD) => Ok(None),
        result => result.during(|| "reap".to_owned()),
    }
}
