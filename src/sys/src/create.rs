//! Names in a directory: making, moving and removing them.
//!
//! Directories may be `O_PATH`. Every function is one system call, so that it happens as a whole or not at all. Modes go through the
//! umask of the process ([`crate::limits::umask`]). After a crash a name is on disk only if its directory was synced.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags};

use crate::at::{At, check_name};
use crate::proc::ProcPath;
use crate::stat::Kind;
use crate::{Errno, Result};

/// Makes a directory.
///
/// # Errors
///
/// The kernel's; `EEXIST` when the name is there, whatever it is.
pub fn mkdir(dir: BorrowedFd<'_>, name: &[u8], mode: u32) -> Result<()> {
    check_name(name)?;
    rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(mode))
}

/// Makes a regular file, fifo, socket or device. `rdev` matters for devices only and is encoded by [`crate::stat::makedev`].
///
/// A character device 0:0, the overlayfs whiteout, needs no privilege; every other device needs `CAP_MKNOD` in the initial user namespace.
///
/// # Errors
///
/// The kernel's; `EPERM` for [`Kind::Dir`] and `EINVAL` for [`Kind::Symlink`], which have their own functions.
pub fn mknod(dir: BorrowedFd<'_>, name: &[u8], kind: Kind, mode: u32, rdev: u64) -> Result<()> {
    check_name(name)?;
    rustix::fs::mknodat(dir, name, FileType::from_raw_mode(kind.to_mode()), Mode::from_raw_mode(mode), rdev)
}

/// Makes a symbolic link to `target`, which is not looked at: any 1 to 4095 bytes but NUL.
///
/// # Errors
///
/// The kernel's; `ENOENT` for an empty target.
pub fn symlink(dir: BorrowedFd<'_>, name: &[u8], target: &[u8]) -> Result<()> {
    check_name(name)?;
    rustix::fs::symlinkat(target, dir, name)
}

/// Makes an empty regular file and opens it for reading and writing.
///
/// # Errors
///
/// The kernel's; `EEXIST` when the name is there, also as a dangling symbolic link.
pub fn create(dir: BorrowedFd<'_>, name: &[u8], mode: u32) -> Result<OwnedFd> {
    check_name(name)?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(mode))
}

/// Makes a regular file without a name, of mode 0600, on the filesystem of `dir`. [`link`] gives it a name; closed before, it is gone.
///
/// # Errors
///
/// `EOPNOTSUPP` where the filesystem cannot (also `EISDIR` on old kernels).
pub fn tmpfile(dir: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    rustix::fs::openat(dir, c".", flags, Mode::RUSR | Mode::WUSR)
}

/// Gives the object one more name; a symbolic link itself gets it, not its target.
///
/// # Errors
///
/// The kernel's: `EPERM` for a directory, `EEXIST`, `EXDEV`, `EMLINK`, and `ENOENT` for an object whose last name is gone (a
/// [`tmpfile`] excepted).
pub fn link(from: At<'_>, dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    check_name(name)?;
    match from {
        At::Name(from_dir, from_name) => {
            check_name(from_name)?;
            rustix::fs::linkat(from_dir, from_name, dir, name, AtFlags::empty())
        }
        At::Fd(fd) => match rustix::fs::linkat(fd, c"", dir, name, AtFlags::EMPTY_PATH) {
            // So the kernel says that AT_EMPTY_PATH takes CAP_DAC_READ_SEARCH. If something really is not there, /proc says it again.
            Err(Errno::NOENT) => {
                let path = ProcPath::of(fd)?;
                rustix::fs::linkat(CWD, path.as_c_str()?, dir, name, AtFlags::SYMLINK_FOLLOW)
            }
            result => result,
        },
    }
}

/// Removes a name that is no directory.
///
/// # Errors
///
/// The kernel's; `EISDIR` for a directory.
pub fn unlink(dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    check_name(name)?;
    rustix::fs::unlinkat(dir, name, AtFlags::empty())
}

/// Removes an empty directory.
///
/// # Errors
///
/// The kernel's; `ENOTEMPTY`, `ENOTDIR`.
pub fn rmdir(dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    check_name(name)?;
    rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)
}

/// Moves a name by `renameat2(2)`: in one step, replacing what is there unless `flags` say otherwise.
///
/// `NOREPLACE` refuses with `EEXIST`; `EXCHANGE` swaps two names that exist; `WHITEOUT` leaves a character device 0:0 at the old name
/// (and goes with `NOREPLACE`, not with `EXCHANGE`).
///
/// # Errors
///
/// The kernel's; `EINVAL` when the filesystem lacks the flag, `EXDEV` between two mounts, even of one filesystem.
pub fn rename(from_dir: BorrowedFd<'_>, from: &[u8], to_dir: BorrowedFd<'_>, to: &[u8], flags: RenameFlags) -> Result<()> {
    check_name(from)?;
    check_name(to)?;
    rustix::fs::renameat_with(from_dir, from, to_dir, to, flags)
}

#[cfg(test)]
mod tests;
