#![allow(unsafe_code)]
//! Processes: making, waiting for, signalling and replacing them, and the descriptors that pass from one to the next.
//!
//! An *inherited* descriptor is one that came through `execve`, which is to say one without `FD_CLOEXEC`: everything that this process
//! opens itself has the flag. [`close_inherited_except`] and [`adopt`] go by that, so they never touch a descriptor that somebody owns.

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::event::{PollFd, PollFlags};
use rustix::io::{FdFlags, retry_on_intr};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, WaitStatus};

use crate::at::{check, last_errno};
use crate::{Errno, Result};

pub mod caps;
pub mod credentials;
pub mod signals;

/// How a process ended.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl Exit {
    /// The code that a shell shows: that of the process, or 128 and the signal's number.
    pub fn shell_code(self) -> i32 {
        match self {
            Exit::Code(code) => code,
            Exit::Signal(signal) => 128 + signal,
        }
    }
}

/// Which of the two processes this is.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Fork {
    /// The one that called, with the number of the child in the caller's pid namespace.
    Parent(i32),
    /// The new one.
    Child,
}

/// Makes a copy of the process.
///
/// Only for a process of one thread: of several only the caller would be copied, and locks that others held would stay locked for ever.
///
/// # Errors
///
/// `EDEADLK` in a process of several threads; `EAGAIN`, `ENOMEM` (also when process 1 of the pid namespace is gone).
pub fn fork() -> Result<Fork> {
    if !crate::ns::is_single_threaded() {
        return Err(Errno::DEADLK);
    }
    // SAFETY: there is one thread, so the child is a whole copy of the process and may do whatever the parent may.
    match unsafe { libc::fork() } {
        -1 => Err(last_errno()),
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(pid)),
    }
}

fn pid(number: i32) -> Result<Pid> {
    if number <= 0 { Err(Errno::SRCH) } else { Pid::from_raw(number).ok_or(Errno::SRCH) }
}

fn signal(number: i32) -> Result<Signal> {
    // SAFETY: only numbers of the kernel's signals come here, and those are what `Signal` may hold; the kernel refuses what it does not
    // know. Signals that libc keeps for its own use are sent by nobody else.
    if (1..=64).contains(&number) { Ok(unsafe { Signal::from_raw_unchecked(number) }) } else { Err(Errno::INVAL) }
}

fn exit_of(status: WaitStatus) -> Option<Exit> {
    status.exit_status().map(Exit::Code).or_else(|| status.terminating_signal().map(Exit::Signal))
}

/// Waits until the child ends, and reaps it.
///
/// # Errors
///
/// `ECHILD` when it is no child, or reaped already.
pub fn wait(child: i32) -> Result<Exit> {
    loop {
        if let Some((_, status)) = retry_on_intr(|| rustix::process::waitpid(Some(pid(child)?), WaitOptions::empty()))?
            && let Some(exit) = exit_of(status)
        {
            return Ok(exit);
        }
    }
}

/// Reaps one child that has ended, of all there are: its number and how it ended. `None` when no child has ended by now.
///
/// # Errors
///
/// `ECHILD` when there are no children.
pub fn reap() -> Result<Option<(i32, Exit)>> {
    loop {
        let Some((child, status)) = retry_on_intr(|| rustix::process::wait(WaitOptions::NOHANG))? else { return Ok(None) };
        if let Some(exit) = exit_of(status) {
            return Ok(Some((child.as_raw_pid(), exit)));
        }
    }
}

/// A descriptor for a process, which stays that process's when the number is given to another, and is readable once it has ended.
///
/// # Errors
///
/// `ESRCH` when there is none.
pub fn pidfd_open(process: i32) -> Result<OwnedFd> {
    // Always close-on-exec, the kernel says so.
    rustix::process::pidfd_open(pid(process)?, PidfdFlags::empty())
}

/// Sends a signal to the process of a descriptor.
///
/// # Errors
///
/// `ESRCH` when it has ended and is reaped, `EPERM`, `EINVAL`.
pub fn pidfd_signal(process: BorrowedFd<'_>, number: i32) -> Result<()> {
    rustix::process::pidfd_send_signal(process, signal(number)?)
}

/// Sends a signal to a process by its number.
///
/// # Errors
///
/// `ESRCH`, `EPERM`, `EINVAL`.
pub fn kill(process: i32, number: i32) -> Result<()> {
    rustix::process::kill_process(pid(process)?, signal(number)?)
}

/// Has this process killed when its parent's *thread* that made it ends. Lost at an `execve` that changes user or gains capabilities.
/// The parent may have ended before; see that it has not, afterwards.
///
/// # Errors
///
/// None that is known.
pub fn die_with_parent() -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
}

/// Sets whether this process may be traced and its `/proc` files opened by equals. Off, they are root's.
///
/// # Errors
///
/// None that is known.
pub fn set_dumpable(dumpable: bool) -> Result<()> {
    use rustix::process::DumpableBehavior as D;
    rustix::process::set_dumpable_behavior(if dumpable { D::Dumpable } else { D::NotDumpable })
}

/// Sets the name that `ps` shows for this thread; 15 bytes count.
///
/// # Errors
///
/// None that is known.
pub fn set_name(name: &CStr) -> Result<()> {
    rustix::thread::set_name(name)
}

/// Bars this process and all that it will run from gaining rights by `execve`.
///
/// # Errors
///
/// None that is known.
pub fn no_new_privs() -> Result<()> {
    rustix::thread::set_no_new_privs(true)
}

/// Starts a session of its own, without a terminal.
///
/// # Errors
///
/// `EPERM` for the leader of a process group.
pub fn setsid() -> Result<()> {
    rustix::process::setsid().map(drop)
}

/// Sets the mask of mode bits that new files do not get.
pub fn umask(mask: u32) {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(mask));
}

/// The effective user.
pub fn effective_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// The effective group.
pub fn effective_gid() -> u32 {
    rustix::process::getegid().as_raw()
}

/// Makes `fd` standard input, output or error (0 to 2).
///
/// # Errors
///
/// `EINVAL` for another number.
pub fn dup2_stdio(fd: BorrowedFd<'_>, number: u8) -> Result<()> {
    match number {
        0 => rustix::stdio::dup2_stdin(fd),
        1 => rustix::stdio::dup2_stdout(fd),
        2 => rustix::stdio::dup2_stderr(fd),
        _ => Err(Errno::INVAL),
    }
}

/// Which of standard input, output and error (0 to 2) are closed.
pub fn closed_stdio() -> Vec<u8> {
    // SAFETY: fcntl(F_GETFD) takes any number and changes nothing.
    (0_u8..3).filter(|&number| unsafe { libc::fcntl(i32::from(number), libc::F_GETFD) } < 0).collect()
}

/// The flags of a descriptor number, or `None` when it is closed.
fn fd_flags(fd: RawFd) -> Option<FdFlags> {
    // SAFETY: fcntl(F_GETFD) takes any number and changes nothing.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    if flags < 0 { None } else { Some(FdFlags::from_bits_retain(flags.cast_unsigned())) }
}

/// Takes over a descriptor that was inherited under this number. It becomes close-on-exec, so that it can be taken only once.
///
/// # Errors
///
/// `EBADF` when the number is closed or not inherited, or is 0 to 2.
pub fn adopt(number: RawFd) -> Result<OwnedFd> {
    let inherited = number > 2 && fd_flags(number).is_some_and(|flags| !flags.contains(FdFlags::CLOEXEC));
    if !inherited {
        return Err(Errno::BADF);
    }
    // SAFETY: the number is open, and without FD_CLOEXEC, which every descriptor has that this process opened or adopted before:
    // nobody owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
    Ok(fd)
}

/// Closes every inherited descriptor above 2 whose number is not in `keep`.
///
/// # Errors
///
/// What reading `/proc/self/fd` gives.
pub fn close_inherited_except(keep: &[RawFd]) -> Result<()> {
    let errno = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd").map_err(errno)? {
        let name = entry.map_err(errno)?.file_name();
        numbers.extend(name.to_str().and_then(|name| name.parse::<RawFd>().ok()));
    }
    for number in numbers.into_iter().filter(|number| !keep.contains(number)) {
        match adopt(number) {
            Ok(fd) => drop(fd),
            // Ours, or one of 0 to 2, or that of the listing itself.
            Err(Errno::BADF) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Sees to it that nothing above descriptor 2 passes an `execve`.
///
/// # Errors
///
/// `ENOSYS` before Linux 5.11.
pub fn close_on_exec_above_stdio() -> Result<()> {
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;
    // SAFETY: three numbers; with CLOEXEC nothing is closed now.
    check(unsafe { libc::syscall(libc::SYS_close_range, 3 as libc::c_uint, libc::c_uint::MAX, CLOSE_RANGE_CLOEXEC) })
}

/// A file in memory without a name, at whose start is the offset.
///
/// # Errors
///
/// `EMFILE`, `ENFILE`, `ENOMEM`.
pub fn memory_file(name: &CStr) -> Result<OwnedFd> {
    rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC)
}

/// Which boot of the machine this is (`/proc/sys/kernel/random/boot_id`, without its line break); the same in all of its containers.
///
/// # Errors
///
/// `ENOENT` without `/proc`.
pub fn boot_id() -> Result<String> {
    let text =
        std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    Ok(text.trim().to_owned())
}

/// The program that this process runs, as a file in memory that nobody can change any more.
///
/// # Errors
///
/// `ENOENT` without `/proc`, `ENOMEM`, `EMFILE`.
pub fn own_program_sealed() -> Result<OwnedFd> {
    use rustix::fs::{MemfdFlags, SealFlags};
    let errno = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    // Where files in memory are not executable by default (vm.memfd_noexec), EXEC says that this one is. Linux before 6.3 has no EXEC.
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let copy = match rustix::fs::memfd_create(c"plyfs", flags | MemfdFlags::EXEC) {
        Err(Errno::INVAL) => rustix::fs::memfd_create(c"plyfs", flags)?,
        result => result?,
    };
    let mut program = std::fs::File::open("/proc/self/exe").map_err(errno)?;
    let mut copy = std::fs::File::from(copy);
    std::io::copy(&mut program, &mut copy).map_err(errno)?;
    rustix::fs::fcntl_add_seals(&copy, SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE)?;
    Ok(copy.into())
}

/// Lets a command to be started inherit these descriptors, under the numbers that they have here. They are closed here with the command.
pub fn pass(command: &mut Command, fds: Vec<OwnedFd>) {
    let clear = move || {
        for fd in &fds {
            rustix::io::fcntl_setfd(fd, FdFlags::empty())?;
        }
        Ok(())
    };
    // SAFETY: the closure runs in the child after fork, where only async-signal-safe calls are allowed: it makes fcntl calls and
    // allocates nothing; the numbers are open, since the command owns the descriptors.
    unsafe { command.pre_exec(clear) };
}

/// Why a command could not be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecError {
    /// The file that was tried last or, when nothing was found, the command as it was given.
    pub file: Vec<u8>,
    /// The error of `execve`; `ENOENT` when nothing was found on the path.
    pub errno: Errno,
}

/// Replaces this process by a command. Without a slash in its name it is looked for in the directories of `path`, separated by colons
/// (an empty one is the current directory), as a shell does: what may not be executed is passed over, and remembered if nothing else is
/// found. A file that the kernel does not know how to run is not handed to a shell. Returns only if that fails.
pub fn exec(argv: &[CString], env: &[CString], path: &[u8]) -> ExecError {
    let Some(name) = argv.first() else { return ExecError { file: Vec::new(), errno: Errno::INVAL } };
    if name.as_bytes().is_empty() || name.as_bytes().contains(&b'/') {
        return ExecError { file: name.as_bytes().to_vec(), errno: execve(name, argv, env) };
    }
    let mut last = ExecError { file: name.as_bytes().to_vec(), errno: Errno::NOENT };
    for dir in path.split(|&byte| byte == b':') {
        let mut file = if dir.is_empty() { b".".to_vec() } else { dir.to_vec() };
        file.push(b'/');
        file.extend_from_slice(name.as_bytes());
        let Ok(candidate) = CString::new(file) else { continue };
        match execve(&candidate, argv, env) {
            Errno::NOENT | Errno::NOTDIR => {
                // The file is there, its interpreter is not: go on as a shell does, but say so in the end.
                if last.errno == Errno::NOENT && rustix::fs::access(&candidate, rustix::fs::Access::EXISTS).is_ok() {
                    last.file = candidate.into_bytes();
                }
            }
            errno @ (Errno::ACCESS | Errno::PERM | Errno::NAMETOOLONG | Errno::LOOP) => {
                if last.errno == Errno::NOENT {
                    last = ExecError { file: candidate.into_bytes(), errno };
                }
            }
            errno => return ExecError { file: candidate.into_bytes(), errno },
        }
    }
    last
}

fn execve(file: &CStr, argv: &[CString], env: &[CString]) -> Errno {
    let pointers = |list: &[CString]| list.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect::<Vec<_>>();
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: all strings are NUL-terminated and outlive the call, and both lists end with a null pointer.
    unsafe { libc::execve(file.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    last_errno()
}

/// What [`poll`] waits for.
#[derive(Copy, Clone, Debug)]
pub enum Until<'a> {
    /// There is something to read, or the end.
    Readable(BorrowedFd<'a>),
    /// There is room to write, or nobody who reads any more.
    Writable(BorrowedFd<'a>),
}

/// Waits until one of the descriptors is readable or at its end, at most `timeout` milliseconds if given: which of them are.
///
/// # Errors
///
/// `EINVAL` for more than the limit of open files.
pub fn poll_in(fds: &[BorrowedFd<'_>], timeout: Option<u32>) -> Result<Vec<bool>> {
    poll(&fds.iter().map(|fd| Until::Readable(*fd)).collect::<Vec<_>>(), timeout)
}

/// Waits until one of these is so, at most `timeout` milliseconds if given: which of them are.
///
/// # Errors
///
/// `EINVAL` for more than the limit of open files.
pub fn poll(wanted: &[Until<'_>], timeout: Option<u32>) -> Result<Vec<bool>> {
    let entries = wanted.iter().map(|until| match *until {
        Until::Readable(fd) => PollFd::from_borrowed_fd(fd, PollFlags::IN),
        Until::Writable(fd) => PollFd::from_borrowed_fd(fd, PollFlags::OUT),
    });
    let mut polled: Vec<PollFd<'_>> = entries.collect();
    let timeout = timeout.map(|ms| rustix::event::Timespec { tv_sec: i64::from(ms / 1000), tv_nsec: i64::from(ms % 1000) * 1_000_000 });
    retry_on_intr(|| rustix::event::poll(&mut polled, timeout.as_ref()))?;
    Ok(polled.iter().map(|fd| !fd.revents().is_empty()).collect())
}

/// Whether this process's group is in the foreground of the terminal that `fd` is open on. False when it is none.
pub fn is_foreground(fd: BorrowedFd<'_>) -> bool {
    rustix::termios::tcgetpgrp(fd).is_ok_and(|group| group == rustix::process::getpgrp())
}

/// Puts this process's group in the foreground of its terminal, also from the background.
///
/// # Errors
///
/// `ENOTTY` when `fd` is not this process's terminal.
pub fn take_foreground(fd: BorrowedFd<'_>) -> Result<()> {
    // From the background this would stop the whole group with SIGTTOU, unless the signal is blocked.
    let _blocked = signals::Blocked::only(&[libc::SIGTTOU])?;
    rustix::termios::tcsetpgrp(fd, rustix::process::getpgrp())
}

/// Whether `fd` is a terminal.
pub fn is_terminal(fd: BorrowedFd<'_>) -> bool {
    rustix::termios::isatty(fd)
}

/// The number of a descriptor, to be told to another process.
pub fn number(fd: BorrowedFd<'_>) -> RawFd {
    fd.as_raw_fd()
}

#[cfg(test)]
mod tests;
