#![allow(unsafe_code)]
//! The root directories of layers.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};

use crate::at::check;
use crate::mount::open_tree_clone;
use crate::{Errno, Result};

/// Opens a directory by path as a location (`O_PATH`). The only function of the crate that takes a path from a user, and follows links.
///
/// # Errors
///
/// The kernel's; `ENOTDIR` for something else.
pub fn open_dir(path: &Path) -> Result<OwnedFd> {
    rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// `struct mount_attr`.
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

const RDONLY: u64 = 0x1;
const NODEV: u64 = 0x4;
const NOATIME: u64 = 0x10;
/// The whole field of atime modes, which must be cleared to set one.
const ATIME: u64 = 0x70;

/// Clones the mount of `dir` at `dir`, read-only and without atime updates, as nothing but this descriptor shows it.
///
/// Through it not even root of this process changes the layer or opens a device that somebody puts in the place of a file, mounts below `dir` are not seen (the covered directory is), and what is
/// mounted or unmounted later in the namespace does not matter. The descriptor is `O_PATH` and usable as a directory; the mount goes
/// away with the last descriptor that was opened through it. Moves and links between two clones, or a clone and the original, are `EXDEV`.
///
/// # Errors
///
/// `EPERM` without `CAP_SYS_ADMIN` over the mount namespace; `EINVAL` when `dir` lies on a mount of another namespace or below one that a
/// user namespace locked; `ENOSYS` before Linux 5.12.
pub fn clone_readonly(dir: BorrowedFd<'_>) -> Result<OwnedFd> {
    let clone = open_tree_clone(dir, c"", false)?;
    let both = MountAttr { set: RDONLY | NODEV | NOATIME, clear: ATIME, propagation: 0, userns_fd: 0 };
    match set_mount_attr(clone.as_fd(), &both) {
        // A mount that a user namespace inherited keeps its atime mode.
        Err(Errno::PERM) => set_mount_attr(clone.as_fd(), &MountAttr { set: RDONLY | NODEV, clear: 0, propagation: 0, userns_fd: 0 })?,
        result => result?,
    }
    Ok(clone)
}

fn set_mount_attr(mount: BorrowedFd<'_>, attr: &MountAttr) -> Result<()> {
    // SAFETY: the path is NUL-terminated, `attr` is a struct mount_attr of the size given, which the kernel only reads, and the
    // descriptor is borrowed for the call.
    let code = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            std::ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    };
    check(code)
}

#[cfg(test)]
mod tests;
