//! Signals: dispositions and masks, signals read as messages, and signals caught by a process of many threads.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, OnceLock};

use rustix::io::retry_on_intr;
use rustix::pipe::PipeFlags;

use crate::at::{check, last_errno};
use crate::{Errno, Result};

pub use libc::{
    SIGABRT, SIGCHLD, SIGCONT, SIGHUP, SIGINT, SIGKILL, SIGQUIT, SIGSEGV, SIGSTOP, SIGTERM, SIGTSTP, SIGUSR1, SIGUSR2, SIGWINCH,
};

/// The highest number of a signal.
const LAST: i32 = 64;

/// A set of signals.
fn set_of(signals: Option<&[i32]>) -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: sigfillset and sigemptyset write the whole set that they are given, and it is read only after; sigaddset changes a set
    // that is initialised and refuses numbers that are no signals.
    unsafe {
        match signals {
            None => {
                libc::sigfillset(set.as_mut_ptr());
            }
            Some(signals) => {
                libc::sigemptyset(set.as_mut_ptr());
                for &signal in signals {
                    libc::sigaddset(set.as_mut_ptr(), signal);
                }
            }
        }
        set.assume_init()
    }
}

/// Sets this thread's mask and returns the one before.
fn set_mask(how: i32, set: &libc::sigset_t) -> Result<libc::sigset_t> {
    let mut old = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: both point to sets that live as long as the call; all bytes zero is a set as well.
    let code = unsafe { libc::pthread_sigmask(how, set, old.as_mut_ptr()) };
    if code != 0 {
        return Err(Errno::from_raw_os_error(code));
    }
    // SAFETY: written by the call, and valid from the start.
    Ok(unsafe { old.assume_init() })
}

/// Signals that this thread does not take for as long as this lives.
pub struct Blocked {
    before: libc::sigset_t,
}

impl Blocked {
    /// Blocks these.
    ///
    /// # Errors
    ///
    /// None that is known.
    pub fn only(signals: &[i32]) -> Result<Blocked> {
        Ok(Blocked { before: set_mask(libc::SIG_BLOCK, &set_of(Some(signals)))? })
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        // The only error is that of a wrong first argument.
        let restored = set_mask(libc::SIG_SETMASK, &self.before);
        debug_assert!(restored.is_ok());
    }
}

/// Blocks all signals for this thread.
///
/// # Errors
///
/// None that is known.
pub fn block_all() -> Result<()> {
    set_mask(libc::SIG_BLOCK, &set_of(None)).map(drop)
}

/// Whether a signal is ignored.
pub fn is_ignored(signal: i32) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: with a null new action nothing is changed, and the old one is written to a struct of the right type, for which all bytes
    // zero is valid too.
    let action = unsafe {
        if libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) != 0 {
            return false;
        }
        action.assume_init()
    };
    action.sa_sigaction == libc::SIG_IGN
}

/// Gives every signal but those of `keep` its default disposition, and empties this thread's mask: what a new command expects.
///
/// # Errors
///
/// None that is known.
pub fn reset(keep: &[i32]) -> Result<()> {
    // The kernel's own struct sigaction, all of it zero: SIG_DFL, no flags, no restorer, an empty mask. It is at most this long anywhere.
    let default = [0_u64; 4];
    for signal in (1..=LAST).filter(|signal| !keep.contains(signal)) {
        // Not through libc, which keeps two signals to itself, while a caller may have left them ignored.
        // SAFETY: the kernel reads the struct and writes nothing; the last argument is the length of its signal sets. SIGKILL and SIGSTOP
        // are refused with EINVAL, and are as they should be.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), std::ptr::null_mut::<u64>(), size_of::<u64>()) };
    }
    set_mask(libc::SIG_SETMASK, &set_of(Some(&[]))).map(drop)
}

/// A signal that arrived.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Arrived {
    /// Its number.
    pub signal: i32,
    /// A process sent it with `kill` or the like; otherwise the kernel did, as for a key on the terminal.
    pub by_process: bool,
}

/// Blocked signals, read as messages.
#[derive(Debug)]
pub struct SignalFd {
    fd: OwnedFd,
}

impl SignalFd {
    /// All signals. They must be blocked ([`block_all`]) in every thread to arrive here.
    ///
    /// # Errors
    ///
    /// `EMFILE`, `ENFILE`.
    pub fn all() -> Result<SignalFd> {
        let set = set_of(None);
        // SAFETY: the set is valid for the length of the call.
        let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC) };
        if fd < 0 {
            return Err(last_errno());
        }
        // SAFETY: a descriptor that the kernel has just made and nobody else knows.
        Ok(SignalFd { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// Waits for the next signal.
    ///
    /// # Errors
    ///
    /// `EIO` when the kernel gives less than one.
    pub fn next(&self) -> Result<Arrived> {
        let mut buffer = [0_u8; size_of::<libc::signalfd_siginfo>()];
        let length = retry_on_intr(|| rustix::io::read(&self.fd, &mut buffer))?;
        if length != buffer.len() {
            return Err(Errno::IO);
        }
        // SAFETY: the buffer is as long as the struct, which is made of integers only; it need not be aligned for read_unaligned.
        let info = unsafe { buffer.as_ptr().cast::<libc::signalfd_siginfo>().read_unaligned() };
        Ok(Arrived { signal: info.ssi_signo.cast_signed(), by_process: info.ssi_code <= 0 })
    }
}

impl AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The pipe that the handler of [`Caught`] writes to. It is never closed: a handler on another thread may have read the number long before
/// it writes.
static PIPE: OnceLock<(OwnedFd, OwnedFd)> = OnceLock::new();
/// The writing end of the pipe as long as there is a [`Caught`], else -1.
static CAUGHT: AtomicI32 = AtomicI32::new(-1);
/// Held by the one [`Caught`] that there may be.
static CATCHING: Mutex<bool> = Mutex::new(false);

/// Marks a byte in the pipe as a signal that no process sent. The numbers of signals are below.
const BY_KERNEL: u8 = 0x80;

/// Signals caught in a process of many threads, whatever their masks are, and read as messages.
///
/// What the kernel sends for a key or a hang-up of the terminal goes to the whole foreground group, so a command in it has it already; the
/// reports tell that apart. A signal that was ignored stays ignored.
pub struct Caught {
    read: BorrowedFd<'static>,
    before: Vec<(i32, libc::sigaction)>,
}

impl Caught {
    /// Catches these signals until it is dropped.
    ///
    /// # Errors
    ///
    /// `EBUSY` when there is one already, `EINVAL` for a signal that cannot be caught, `EMFILE`.
    pub fn new(signals: &[i32]) -> Result<Caught> {
        if std::mem::replace(&mut *catching(), true) {
            return Err(Errno::BUSY);
        }
        let (read, write) = match pipe() {
            Ok(ends) => ends,
            Err(errno) => {
                *catching() = false;
                return Err(errno);
            }
        };
        let mut caught = Caught { read, before: Vec::new() };
        // What came too late for the one before.
        while caught.next()?.is_some() {}
        CAUGHT.store(write.as_raw_fd(), Ordering::SeqCst);
        for &signal in signals {
            if is_ignored(signal) {
                continue;
            }
            let mut before = MaybeUninit::<libc::sigaction>::zeroed();
            let mut action = MaybeUninit::<libc::sigaction>::zeroed();
            // SAFETY: all bytes zero is a valid sigaction, the fields that count are set, and the handler is async-signal-safe.
            let code = unsafe {
                let new = action.assume_init_mut();
                new.sa_sigaction = handler as *const () as libc::sighandler_t;
                new.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
                new.sa_mask = set_of(None);
                libc::sigaction(signal, action.as_ptr(), before.as_mut_ptr())
            };
            check(libc::c_long::from(code))?;
            // SAFETY: written by the call.
            caught.before.push((signal, unsafe { before.assume_init() }));
        }
        Ok(caught)
    }

    /// A signal that has arrived, if any.
    ///
    /// # Errors
    ///
    /// None that is known.
    pub fn next(&self) -> Result<Option<Arrived>> {
        let mut byte = [0_u8];
        match retry_on_intr(|| rustix::io::read(self.read, &mut byte)) {
            Ok(1) => Ok(byte.first().map(|&byte| Arrived { signal: i32::from(byte & !BY_KERNEL), by_process: byte & BY_KERNEL == 0 })),
            Ok(_) | Err(Errno::AGAIN) => Ok(None),
            Err(errno) => Err(errno),
        }
    }
}

impl AsFd for Caught {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.read
    }
}

impl std::fmt::Debug for Caught {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.before.iter().map(|(signal, _)| signal)).finish()
    }
}

impl Drop for Caught {
    fn drop(&mut self) {
        for (signal, before) in &self.before {
            // SAFETY: the action is the one that the kernel gave for this signal.
            unsafe { libc::sigaction(*signal, std::ptr::from_ref(before), std::ptr::null_mut()) };
        }
        CAUGHT.store(-1, Ordering::SeqCst);
        *catching() = false;
    }
}

fn catching() -> std::sync::MutexGuard<'static, bool> {
    CATCHING.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Both ends of the pipe, which is made at the first call. Only for the holder of [`CATCHING`].
fn pipe() -> Result<(BorrowedFd<'static>, BorrowedFd<'static>)> {
    if PIPE.get().is_none() {
        // A full pipe must not block the handler: what does not fit is lost, after thousands of signals that nobody read.
        let ends = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        drop(PIPE.set(ends));
    }
    PIPE.get().map(|(read, write)| (read.as_fd(), write.as_fd())).ok_or(Errno::BUSY)
}

extern "C" fn handler(signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes a valid siginfo for the length of the handler; si_code is set for every signal.
    let by_process = unsafe { (*info).si_code } <= 0;
    let fd = CAUGHT.load(Ordering::SeqCst);
    if fd < 0 {
        return;
    }
    let byte = [u8::try_from(signal).unwrap_or(0) | if by_process { 0 } else { BY_KERNEL }];
    // SAFETY: write(2) is async-signal-safe, the buffer is valid, and errno, which the interrupted code may be about to read, is put
    // back. The pipe does not block.
    unsafe {
        let errno = libc::__errno_location();
        let saved = *errno;
        libc::write(fd, byte.as_ptr().cast(), 1);
        *errno = saved;
    }
}
