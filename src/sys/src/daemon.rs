#![allow(unsafe_code)]
//! A command that returns when its work is live and leaves a daemon behind.
//!
//! The process forks before any thread exists, and the parent stays to hear from the child: ready, failed with a text, or dead. So no
//! state has to be passed to a second program, and the exit code of the command tells the truth.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::retry_on_intr;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitOptions};

use crate::at::last_errno;
use crate::{Errno, Result};

/// The side on which [`detach`] returns.
#[derive(Debug)]
pub enum Fork {
    /// The command that the user runs: it waits for the report and exits.
    Parent(Reader),
    /// The daemon: it reports once and goes on.
    Child(Notifier),
}

/// The parent's end.
#[derive(Debug)]
pub struct Reader {
    pipe: OwnedFd,
    child: Pid,
}

/// The child's end. Dropped without a report it tells the parent that the child died.
#[derive(Debug)]
pub struct Notifier {
    pipe: OwnedFd,
    null: OwnedFd,
}

/// What became of the child.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// It is ready and goes on running.
    Ready,
    /// It gave up with this text.
    Failed(String),
    /// It ended without a report: its exit code, or the negative number of the signal that killed it.
    Died(i32),
}

const READY: u8 = b'+';
const FAILED: u8 = b'-';

/// Forks. The child leads a session of its own, has `/` as its directory and `/dev/null` as stdin and stdout; stderr becomes `/dev/null`
/// with [`Notifier::ready`], so that what it says until then reaches the user.
///
/// Must be called while the process has one thread: in the child of a process with more, locks (the allocator's among them) may be held by
/// threads that do not exist there. Before it, relative paths must be resolved, and output flushed that is buffered: both would write it.
///
/// # Errors
///
/// `EBUSY` when there is more than one thread; `ENOENT` when `/proc` is not mounted; else the kernel's.
pub fn detach() -> Result<Fork> {
    if threads()? != 1 {
        return Err(Errno::BUSY);
    }
    // Opened before the fork, where an error can still be told.
    let null = rustix::fs::openat(CWD, c"/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    // SAFETY: this is the only thread, as checked above, so the child is a full copy in which all locks are in the state that this
    // thread left them in. Only this thread could start another one meanwhile.
    match unsafe { libc::fork() } {
        ..0 => Err(last_errno()),
        0 => {
            drop(reader);
            let notifier = Notifier { pipe: writer, null };
            if let Err(error) = notifier.leave() {
                // Only the parent may come back with an error: two callers would both clean up.
                let code = if notifier.send(FAILED, &format!("cannot detach: {error}")).is_ok() { 1 } else { 2 };
                // SAFETY: _exit only ends this process.
                unsafe { libc::_exit(code) };
            }
            Ok(Fork::Child(notifier))
        }
        child => {
            drop(writer);
            Ok(Fork::Parent(Reader { pipe: reader, child: Pid::from_raw(child).ok_or(Errno::CHILD)? }))
        }
    }
}

/// The number of this process's threads.
fn threads() -> Result<usize> {
    let tasks = std::fs::read_dir("/proc/self/task").map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
    Ok(tasks.count())
}

impl Reader {
    /// The daemon's process id.
    pub fn pid(&self) -> i32 {
        self.child.as_raw_nonzero().get()
    }

    /// Waits for the report; when the child dropped its [`Notifier`] without one, for its end.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn wait(self) -> Result<Report> {
        let mut message = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            match retry_on_intr(|| rustix::io::read(&self.pipe, &mut buffer))? {
                0 => break,
                count => message.extend_from_slice(buffer.get(..count).unwrap_or_default()),
            }
        }
        match message.split_first() {
            Some((&READY, _)) => Ok(Report::Ready),
            Some((_, text)) => Ok(Report::Failed(String::from_utf8_lossy(text).into_owned())),
            None => self.died(),
        }
    }

    fn died(&self) -> Result<Report> {
        let status = retry_on_intr(|| rustix::process::waitpid(Some(self.child), WaitOptions::empty()))?;
        let (_, status) = status.ok_or(Errno::CHILD)?;
        let code = status.exit_status().or(status.terminating_signal().map(|signal| -signal));
        Ok(Report::Died(code.ok_or(Errno::CHILD)?))
    }
}

impl Notifier {
    /// Leaves the session, directory and standard streams of the caller.
    fn leave(&self) -> Result<()> {
        rustix::process::setsid()?;
        rustix::process::chdir(c"/")?;
        rustix::stdio::dup2_stdin(&self.null)?;
        rustix::stdio::dup2_stdout(&self.null)
    }

    /// Tells the parent that all is well, and lets go of stderr.
    ///
    /// # Errors
    ///
    /// `EPIPE` when the parent is gone.
    pub fn ready(self) -> Result<()> {
        rustix::stdio::dup2_stderr(&self.null)?;
        self.send(READY, "")
    }

    /// Tells the parent why there will be no daemon; the child should exit then.
    ///
    /// # Errors
    ///
    /// `EPIPE` when the parent is gone.
    pub fn failed(self, text: &str) -> Result<()> {
        self.send(FAILED, text)
    }

    fn send(&self, tag: u8, text: &str) -> Result<()> {
        let message = [&[tag], text.as_bytes()].concat();
        let mut rest = message.as_slice();
        while !rest.is_empty() {
            let count = retry_on_intr(|| rustix::io::write(self.pipe.as_fd(), rest))?;
            rest = rest.get(count..).unwrap_or_default();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_to_fork_with_several_threads() {
        // The test harness is such a process.
        assert_eq!(detach().err(), Some(Errno::BUSY));
    }
}
