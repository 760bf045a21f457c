#![allow(unsafe_code)]
//! The signals that end a daemon, taken as messages instead of handlers.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::retry_on_intr;

use crate::at::{check, last_errno};
use crate::{Errno, Result};

/// A signal that asks the process to end.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Signal {
    /// `SIGTERM`.
    Term,
    /// `SIGINT`.
    Int,
    /// `SIGHUP`.
    Hup,
}

impl Signal {
    /// Every signal that [`SignalWaiter`] takes.
    pub const ALL: [Signal; 3] = [Signal::Term, Signal::Int, Signal::Hup];

    /// The signal's number.
    pub fn number(self) -> i32 {
        match self {
            Signal::Term => libc::SIGTERM,
            Signal::Int => libc::SIGINT,
            Signal::Hup => libc::SIGHUP,
        }
    }
}

/// Receives SIGTERM, SIGINT and SIGHUP through a `signalfd(2)`.
///
/// The signals stay blocked when it is dropped.
#[derive(Debug)]
pub struct SignalWaiter {
    fd: OwnedFd,
}

impl SignalWaiter {
    /// Blocks the three signals for the calling thread and all threads that it starts from now on, and prepares to receive them.
    ///
    /// To be called before any other thread is started: the kernel gives a signal to any thread that does not block it, and its default
    /// action ends the process. Programs that are run later inherit the block: call [`unblock`] before `exec`.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn block() -> Result<SignalWaiter> {
        let set = set();
        mask(libc::SIG_BLOCK, &set)?;
        // SAFETY: `set` is an initialised signal set, which is only read.
        let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC) };
        if fd < 0 {
            return Err(last_errno());
        }
        // SAFETY: the kernel has just made this descriptor, and nothing else owns it.
        Ok(SignalWaiter { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// Waits for the next of the signals.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn wait(&self) -> Result<Signal> {
        // struct signalfd_siginfo is 128 bytes and begins with the number.
        let mut info = [0_u8; 128];
        retry_on_intr(|| rustix::io::read(&self.fd, &mut info))?;
        let number = info.first_chunk::<4>().map(|bytes| i32::from_ne_bytes(*bytes));
        Signal::ALL.into_iter().find(|signal| Some(signal.number()) == number).ok_or(Errno::IO)
    }
}

/// For `poll(2)`: readable when a signal is there.
impl AsFd for SignalWaiter {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Lets the calling thread receive the three signals again, by their default action: for a child before `exec`. Async-signal-safe.
///
/// # Errors
///
/// The kernel's.
pub fn unblock() -> Result<()> {
    mask(libc::SIG_UNBLOCK, &set())
}

/// Makes a write into a closed pipe an error (`EPIPE`) instead of the end of the process. Rust's own start-up does it, too.
///
/// # Errors
///
/// The kernel's.
pub fn ignore_sigpipe() -> Result<()> {
    sigpipe(libc::SIG_IGN)
}

/// Makes a write into a closed pipe end the process, as users of a command expect from `plyfs ... | head`.
///
/// # Errors
///
/// The kernel's.
pub fn default_sigpipe() -> Result<()> {
    sigpipe(libc::SIG_DFL)
}

fn sigpipe(action: libc::sighandler_t) -> Result<()> {
    // SAFETY: neither action is a function of ours.
    if unsafe { libc::signal(libc::SIGPIPE, action) } == libc::SIG_ERR { Err(last_errno()) } else { Ok(()) }
}

fn set() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the whole set, sigaddset then adds signals that exist; neither can fail for them.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in Signal::ALL {
            libc::sigaddset(set.as_mut_ptr(), signal.number());
        }
        set.assume_init()
    }
}

fn mask(how: libc::c_int, set: &libc::sigset_t) -> Result<()> {
    // SAFETY: `set` is initialised and only read; the old mask is not asked for.
    let error = unsafe { libc::pthread_sigmask(how, std::ptr::from_ref(set), std::ptr::null_mut()) };
    // This call returns the error instead of setting errno.
    if error == 0 { check(0) } else { Err(Errno::from_raw_os_error(error)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blocked_signal_arrives_as_a_message() {
        let waiter = SignalWaiter::block().unwrap();
        for signal in Signal::ALL {
            // SAFETY: the signal goes to this thread, which has blocked it.
            assert_eq!(unsafe { libc::pthread_kill(libc::pthread_self(), signal.number()) }, 0);
            assert_eq!(waiter.wait(), Ok(signal));
        }
        unblock().unwrap();
    }
}
