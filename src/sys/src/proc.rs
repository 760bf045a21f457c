//! Paths through `/proc/self/fd`, for what the kernel offers by path only.
//!
//! `/proc/self/fd/N` is a magic link: the kernel jumps to the object of descriptor N without walking its path, so the object is exactly
//! that one, whatever happened to its name, and also when the descriptor is `O_PATH`. After the jump a symbolic link is not followed,
//! hence `N` may even be an `O_PATH` descriptor of a symbolic link. The call must *follow* the magic link itself (`getxattr`, not
//! `lgetxattr`; no `O_NOFOLLOW`).
//!
//! `/proc` must be mounted and belong to this process's pid namespace. Where it is not, every call that goes through here fails with
//! `ENOENT`, which callers must not take for "no such file": [`check`] tells at start.

use core::ffi::CStr;
use std::os::fd::BorrowedFd;

use rustix::fs::AtFlags;
use rustix::path::DecInt;

use crate::at::{At, check_name};
use crate::{Errno, Result};

const PREFIX: &[u8] = b"/proc/self/fd/";

/// Room for the prefix, a descriptor (10 digits), a slash, a name of 255 bytes and the final NUL.
const ROOM: usize = PREFIX.len() + 10 + 1 + 255 + 1;

/// A path below `/proc/self/fd`, built on the stack. It is good for as long as the descriptor is open.
pub(crate) struct ProcPath {
    bytes: [u8; ROOM],
    len: usize,
}

impl ProcPath {
    /// The path that leads to the object of `fd`; to be used by calls that follow links.
    pub(crate) fn of(fd: BorrowedFd<'_>) -> Result<ProcPath> {
        let mut path = ProcPath { bytes: [0; ROOM], len: 0 };
        path.push(PREFIX)?;
        path.push(DecInt::from_fd(fd).as_bytes())?;
        Ok(path)
    }

    /// The path of a name in a directory; to be used by calls that do not follow a final link. The name is checked here.
    pub(crate) fn child(dir: BorrowedFd<'_>, name: &[u8]) -> Result<ProcPath> {
        check_name(name)?;
        let mut path = ProcPath::of(dir)?;
        path.push(b"/")?;
        path.push(name)?;
        Ok(path)
    }

    fn push(&mut self, bytes: &[u8]) -> Result<()> {
        let end = self.len + bytes.len();
        // The last byte stays the NUL that the array was filled with.
        if end >= ROOM {
            return Err(Errno::NAMETOOLONG);
        }
        self.bytes.get_mut(self.len..end).ok_or(Errno::NAMETOOLONG)?.copy_from_slice(bytes);
        self.len = end;
        Ok(())
    }

    /// The path as the kernel takes it.
    pub(crate) fn as_c_str(&self) -> Result<&CStr> {
        CStr::from_bytes_until_nul(&self.bytes).map_err(|_| Errno::INVAL)
    }
}

/// Checks that `/proc` is mounted and shows this process's descriptors, by comparing the object of `fd` with what its path leads to.
///
/// # Errors
///
/// `ENOENT` when `/proc` is not mounted or belongs to another pid namespace; `ESTALE` when the path leads to something else, as in a
/// `/proc` that somebody made up.
pub fn check(fd: BorrowedFd<'_>) -> Result<()> {
    let own = crate::at::stat(At::Fd(fd))?;
    let path = ProcPath::of(fd)?;
    let seen = rustix::fs::statat(rustix::fs::CWD, path.as_c_str()?, AtFlags::empty())?;
    if (seen.st_dev, seen.st_ino) == (own.dev, own.ino) { Ok(()) } else { Err(Errno::STALE) }
}

/// The path of an open directory as the kernel knows it, from this process's root directory; only to be compared with other paths, for its names may have
/// changed by now.
///
/// # Errors
///
/// `ENOENT` when `/proc` is not mounted.
pub fn path_of(fd: BorrowedFd<'_>) -> Result<Vec<u8>> {
    let path = ProcPath::of(fd)?;
    let target = rustix::fs::readlinkat(rustix::fs::CWD, path.as_c_str()?, Vec::new())?;
    Ok(target.into_bytes())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn an_open_directory_has_a_path() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        let fd = crate::root::open_dir(dir.path()).unwrap();
        super::check(fd.as_fd()).unwrap();
        assert_eq!(super::path_of(fd.as_fd()).unwrap(), real.as_os_str().as_bytes());
    }
}
