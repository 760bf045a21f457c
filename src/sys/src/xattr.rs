//! Extended attributes by name or descriptor. Part of [`crate::at`].
//!
//! The calls that take a descriptor refuse `O_PATH`, hence the way through `/proc/self/fd`: `l*xattr` on `.../<dirfd>/<name>`, and the
//! following variant on `.../<fd>`, where the magic link leads to the object and a symbolic link there is not followed further.

use rustix::buffer::spare_capacity;
use rustix::fs::XattrFlags;

use crate::at::At;
use crate::proc::ProcPath;
use crate::{Errno, Result};

/// The kernel's limit for one value (`XATTR_SIZE_MAX`) and for a list of names (`XATTR_LIST_MAX`).
const MAX: usize = 65_536;

/// Tried first: holds every mark of plyfs, ACLs and capabilities.
const SMALL: usize = 512;

/// What [`set_xattr`] does when the attribute is there, or is not.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum XattrMode {
    /// Creates or replaces.
    Any,
    /// Creates; `EEXIST` when it is there.
    Create,
    /// Replaces; `ENODATA` when it is not there.
    Replace,
}

/// Reads the value of one extended attribute.
///
/// # Errors
///
/// `ENODATA` when the object has none of that name, `EOPNOTSUPP` when the filesystem has none of that class, `E2BIG` when the value
/// exceeds the kernel's 64 KiB (only over a network).
pub fn get_xattr(at: At<'_>, name: &[u8]) -> Result<Vec<u8>> {
    grow(|buffer| match at {
        At::Name(dir, file) => rustix::fs::lgetxattr(ProcPath::child(dir, file)?.as_c_str()?, name, spare_capacity(buffer)),
        At::Fd(fd) => rustix::fs::getxattr(ProcPath::of(fd)?.as_c_str()?, name, spare_capacity(buffer)),
    })
}

/// Lists the names of all extended attributes that the caller may see, in the filesystem's order.
///
/// # Errors
///
/// The kernel's; `EOPNOTSUPP` where the filesystem has no extended attributes.
pub fn list_xattr(at: At<'_>) -> Result<Vec<Vec<u8>>> {
    let names = grow(|buffer| match at {
        At::Name(dir, file) => rustix::fs::llistxattr(ProcPath::child(dir, file)?.as_c_str()?, spare_capacity(buffer)),
        At::Fd(fd) => rustix::fs::listxattr(ProcPath::of(fd)?.as_c_str()?, spare_capacity(buffer)),
    })?;
    Ok(names.split(|&byte| byte == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect())
}

/// Sets one extended attribute.
///
/// # Errors
///
/// The kernel's, and those of `mode`. `user.*` is only for regular files and directories (`EPERM` on the rest).
pub fn set_xattr(at: At<'_>, name: &[u8], value: &[u8], mode: XattrMode) -> Result<()> {
    let flags = match mode {
        XattrMode::Any => XattrFlags::empty(),
        XattrMode::Create => XattrFlags::CREATE,
        XattrMode::Replace => XattrFlags::REPLACE,
    };
    match at {
        At::Name(dir, file) => rustix::fs::lsetxattr(ProcPath::child(dir, file)?.as_c_str()?, name, value, flags),
        At::Fd(fd) => rustix::fs::setxattr(ProcPath::of(fd)?.as_c_str()?, name, value, flags),
    }
}

/// Removes one extended attribute.
///
/// # Errors
///
/// `ENODATA` when it is not there; else the kernel's.
pub fn remove_xattr(at: At<'_>, name: &[u8]) -> Result<()> {
    match at {
        At::Name(dir, file) => rustix::fs::lremovexattr(ProcPath::child(dir, file)?.as_c_str()?, name),
        At::Fd(fd) => rustix::fs::removexattr(ProcPath::of(fd)?.as_c_str()?, name),
    }
}

/// Calls `read` with a small buffer, then with the largest that can be needed. No size is asked for: it might change in between.
fn grow(mut read: impl FnMut(&mut Vec<u8>) -> Result<usize>) -> Result<Vec<u8>> {
    let mut buffer = Vec::with_capacity(SMALL);
    match read(&mut buffer) {
        Ok(_) => return Ok(buffer),
        Err(Errno::RANGE) => {}
        Err(error) => return Err(error),
    }
    let mut buffer = Vec::with_capacity(MAX);
    match read(&mut buffer) {
        Ok(_) => {
            buffer.shrink_to_fit();
            Ok(buffer)
        }
        Err(Errno::RANGE) => Err(Errno::TOOBIG),
        Err(error) => Err(error),
    }
}
