//! Terminals: their modes and size, and pairs of pseudo terminals.
//!
//! A pair has a *main* side, which plays the keyboard and the screen, and a *tty*, which is a terminal to those who have it open.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::retry_on_intr;
use rustix::pty::OpenptFlags;
use rustix::termios::{OptionalActions, Termios};

use crate::Result;
use crate::process::signals::Blocked;

/// How a terminal treats what is typed and what is shown. Equal if all flags are; special characters do not count.
#[derive(Clone, Debug)]
pub struct Modes(Termios);

impl PartialEq for Modes {
    fn eq(&self, other: &Modes) -> bool {
        let flags = |Modes(modes): &Modes| (modes.input_modes, modes.output_modes, modes.control_modes, modes.local_modes);
        flags(self) == flags(other)
    }
}

impl Modes {
    /// Those that a terminal has.
    ///
    /// # Errors
    ///
    /// `ENOTTY` when it is none, `EIO` when it has hung up.
    pub fn of(tty: BorrowedFd<'_>) -> Result<Modes> {
        retry_on_intr(|| rustix::termios::tcgetattr(tty)).map(Modes)
    }

    /// These, but that every byte passes as it is, in both directions, and no key is a signal or an echo (`cfmakeraw(3)`).
    #[must_use]
    pub fn raw(&self) -> Modes {
        let mut modes = self.clone();
        modes.0.make_raw();
        modes
    }

    /// Gives them to a terminal, at once and also from the background. What was typed and not read yet stays.
    ///
    /// # Errors
    ///
    /// `ENOTTY` when it is none, `EIO` when it has hung up.
    pub fn apply(&self, tty: BorrowedFd<'_>) -> Result<()> {
        // From the background this would stop the whole group, unless the signal is blocked.
        let _blocked = Blocked::only(&[libc::SIGTTOU])?;
        retry_on_intr(|| rustix::termios::tcsetattr(tty, OptionalActions::Now, &self.0))
    }
}

/// Makes one terminal as wide and high as another. Processes in its foreground get SIGWINCH if that is a change.
///
/// # Errors
///
/// `ENOTTY`, `EIO`.
pub fn copy_size(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    rustix::termios::tcsetwinsize(to, rustix::termios::tcgetwinsize(from)?)
}

/// Makes a pair in an instance of devpts, which may be a detached mount: (main side, tty). The main side does not block.
///
/// # Errors
///
/// `ENOSPC` at the limit of `/proc/sys/kernel/pty/max`, `ENOENT` when `devpts` is none.
pub fn pair(devpts: BorrowedFd<'_>) -> Result<(OwnedFd, OwnedFd)> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let main = rustix::fs::openat(devpts, c"ptmx", flags, Mode::empty())?;
    rustix::pty::unlockpt(&main)?;
    let tty = tty_of(main.as_fd())?;
    Ok((main, tty))
}

/// Opens the tty of a main side, by which no path is walked. It becomes nobody's controlling terminal.
///
/// # Errors
///
/// `EIO`, `EMFILE`, `ENFILE`.
pub fn tty_of(main: BorrowedFd<'_>) -> Result<OwnedFd> {
    rustix::pty::ioctl_tiocgptpeer(main, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
}

/// Opens a terminal anew, for reading or for writing, such that it does not block: that is a property of the opening, which others share
/// with `tty`.
///
/// # Errors
///
/// `EACCES`, `EIO` when it has hung up, `EBUSY` when it is exclusive.
pub fn reopen_nonblocking(tty: BorrowedFd<'_>, write: bool) -> Result<OwnedFd> {
    let path = crate::proc::ProcPath::of(tty)?;
    let access = if write { OFlags::WRONLY } else { OFlags::RDONLY };
    rustix::fs::open(path.as_c_str()?, access | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
}

/// Starts a session of its own, with this terminal as its controlling one and the caller in its foreground.
///
/// # Errors
///
/// `EPERM` for the leader of a process group, and for the terminal of another session.
pub fn lead_session_on(tty: BorrowedFd<'_>) -> Result<()> {
    rustix::process::setsid()?;
    rustix::process::ioctl_tiocsctty(tty)
}

/// Whether this process's group is in the background of its terminal, which is the one that `fd` is open on. False when that is none, or
/// another.
pub fn is_background(fd: BorrowedFd<'_>) -> bool {
    rustix::termios::tcgetpgrp(fd).is_ok_and(|group| group != rustix::process::getpgrp())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use rustix::termios::{Winsize, tcgetwinsize, tcsetwinsize};

    use super::*;

    /// A pair in the host's devpts.
    fn host_pair() -> (OwnedFd, OwnedFd) {
        let devpts = crate::root::open_dir(std::path::Path::new("/dev/pts")).unwrap();
        let path = crate::proc::ProcPath::of(devpts.as_fd()).unwrap();
        let devpts = rustix::fs::open(path.as_c_str().unwrap(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        pair(devpts.as_fd()).unwrap()
    }

    #[test]
    fn raw_terminal_passes_every_byte_and_goes_back() {
        if !crate::testing::privileged("raw_terminal_passes_every_byte_and_goes_back") {
            return;
        }
        let (main, tty) = host_pair();
        let before = Modes::of(tty.as_fd()).unwrap();
        assert_ne!(before, before.raw());
        before.raw().apply(tty.as_fd()).unwrap();
        assert_eq!(Modes::of(tty.as_fd()).unwrap(), before.raw());

        let mut again = std::fs::File::from(reopen_nonblocking(tty.as_fd(), false).unwrap());
        assert_eq!(again.read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        let (mut main, mut tty) = (std::fs::File::from(main), std::fs::File::from(tty));
        main.write_all(b"\x03\x04\r\n").unwrap();
        let mut seen = [0; 4];
        tty.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"\x03\x04\r\n");
        tty.write_all(b"\n").unwrap();
        assert_eq!(main.read(&mut seen).unwrap(), 1, "no carriage return is added, and nothing was echoed");

        before.apply(tty.as_fd()).unwrap();
        assert_eq!(Modes::of(tty.as_fd()).unwrap(), before);
        assert!(!is_background(tty.as_fd()), "it is not ours");
    }

    #[test]
    fn size_is_that_of_the_other() {
        if !crate::testing::privileged("size_is_that_of_the_other") {
            return;
        }
        let ((first, _tty), (second, other)) = (host_pair(), host_pair());
        tcsetwinsize(&first, Winsize { ws_row: 7, ws_col: 9, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
        copy_size(first.as_fd(), second.as_fd()).unwrap();
        let size = tcgetwinsize(&other).unwrap();
        assert_eq!((size.ws_row, size.ws_col), (7, 9));
    }
}
