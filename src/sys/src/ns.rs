#![allow(unsafe_code)]
//! Namespaces of the calling process, and the root that it sees.

use std::os::fd::BorrowedFd;

use rustix::mount::UnmountFlags;
use rustix::thread::UnshareFlags;

use crate::{Errno, Result};

/// A set of namespaces.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespaces {
    /// Mounts.
    pub mount: bool,
    /// Process numbers; unshared for children only.
    pub pid: bool,
    /// Host and domain name.
    pub uts: bool,
    /// System V ipc and POSIX message queues.
    pub ipc: bool,
    /// Network.
    pub net: bool,
    /// Users and capabilities.
    pub user: bool,
    /// The root of control groups.
    pub cgroup: bool,
}

impl Namespaces {
    fn flags(self) -> UnshareFlags {
        let all = [
            (self.mount, UnshareFlags::NEWNS),
            (self.pid, UnshareFlags::NEWPID),
            (self.uts, UnshareFlags::NEWUTS),
            (self.ipc, UnshareFlags::NEWIPC),
            (self.net, UnshareFlags::NEWNET),
            (self.user, UnshareFlags::NEWUSER),
            (self.cgroup, UnshareFlags::NEWCGROUP),
        ];
        all.into_iter().filter(|(wanted, _)| *wanted).fold(UnshareFlags::empty(), |flags, (_, flag)| flags | flag)
    }
}

/// Gives the calling *thread* new namespaces. A new mount namespace starts as a copy, with the root and current directory moved into it;
/// a new pid namespace holds the thread's next children, the first of which is its process 1.
///
/// # Errors
///
/// `EPERM` without `CAP_SYS_ADMIN`, `ENOSPC` at a limit of `/proc/sys/user`, `EINVAL` for a kind that the kernel lacks or, for users, in
/// a process of several threads.
pub fn unshare(namespaces: Namespaces) -> Result<()> {
    // SAFETY: the hazard is CLONE_FILES, a table of descriptors that other threads do not see, and no field sets it.
    unsafe { rustix::thread::unshare_unsafe(namespaces.flags()) }
}

/// Moves the calling thread into the namespace that `fd` is open on (a file of `/proc/PID/ns`, of whichever kind).
///
/// # Errors
///
/// `EPERM` without `CAP_SYS_ADMIN` over it, `EINVAL` when it is no namespace, or one of mounts or users and there are several threads.
pub fn setns(fd: BorrowedFd<'_>) -> Result<()> {
    rustix::thread::move_into_link_name_space(fd, None)
}

/// Makes the current directory, which has to be the root of a mount, the root of the mount namespace, and takes the old root with all
/// that is mounted below out of it. Afterwards the root and the current directory are the new root.
///
/// # Errors
///
/// `EINVAL` when the current directory is no root of a mount, when a mount involved is shared, or when the old root is the initial
/// ramfs, on which nothing can be pivoted; `EBUSY` when it is the root already.
pub fn pivot_root_here() -> Result<()> {
    // The old root is stacked on the new one at the same place, "." still names it, and so it can be detached without any directory
    // in the new root to put it into.
    rustix::process::pivot_root(c".", c".")?;
    rustix::mount::unmount(c".", UnmountFlags::DETACH)?;
    rustix::process::chdir(c"/")
}

/// Sets the host name of the uts namespace.
///
/// # Errors
///
/// `EINVAL` for more than 64 bytes, `EPERM` without `CAP_SYS_ADMIN`.
pub fn sethostname(name: &[u8]) -> Result<()> {
    rustix::system::sethostname(name)
}

/// Whether the calling process has one thread, as [`unshare`] of users and [`crate::process::fork`] want it.
pub fn is_single_threaded() -> bool {
    // SAFETY: CLONE_THREAD alone unshares nothing: the kernel checks that there is one thread, and does no more.
    let code = unsafe { libc::unshare(libc::CLONE_THREAD) };
    code == 0
}

/// Enters a directory.
///
/// # Errors
///
/// `ENOTDIR`, `EACCES`.
pub fn fchdir(dir: BorrowedFd<'_>) -> Result<()> {
    rustix::process::fchdir(dir)
}

/// The current directory as seen from the root.
///
/// # Errors
///
/// `ENOENT` when it was removed or when the root does not lead to it.
pub fn current_dir() -> Result<Vec<u8>> {
    let path = rustix::process::getcwd(Vec::new())?.into_bytes();
    // The kernel says "(unreachable)/..." for a directory outside the root.
    if path.first() == Some(&b'/') { Ok(path) } else { Err(Errno::NOENT) }
}
