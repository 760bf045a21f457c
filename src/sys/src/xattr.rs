#![allow(unsafe_code)]
//! Extended attributes by name or descriptor. Part of [`crate::at`].
//!
//! There are three ways to reach the object, and [`Op::run`] takes the first that works:
//!
//! 1. `f*xattr` on a descriptor; refuses `O_PATH` with `EBADF`.
//! 2. `*xattrat` (Linux 6.13) on a directory and a name, `.` for an `O_PATH` descriptor of a directory itself. With an empty path it
//!    refuses `O_PATH` like the first. About a third of the cost of the last.
//! 3. A path in `/proc/self/fd`: `l*xattr` on `.../<dirfd>/<name>`, and the following variant on `.../<fd>`, where the magic link leads to
//!    the object of whatever kind and a symbolic link there is not followed further.
//!
//! A refusal costs 0.1-0.3 us and is not remembered. All ways end in the same code of the filesystem, so an error that may also mean
//! "not this way" is simply had again by the next.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::{AtFlags, XattrFlags};

use crate::at::{At, check_name, last_errno, with_c_str};
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
    with_name(name, |name| grow(|buffer| Op::Get(name, buffer).run(at)))
}

/// Lists the names of all extended attributes that the caller may see, in the filesystem's order.
///
/// # Errors
///
/// The kernel's; `EOPNOTSUPP` where the filesystem has no extended attributes.
pub fn list_xattr(at: At<'_>) -> Result<Vec<Vec<u8>>> {
    let names = grow(|buffer| Op::List(buffer).run(at))?;
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
    with_name(name, |name| Op::Set(name, value, flags).run(at).map(drop))
}

/// Removes one extended attribute.
///
/// # Errors
///
/// `ENODATA` when it is not there; else the kernel's.
pub fn remove_xattr(at: At<'_>, name: &[u8]) -> Result<()> {
    with_name(name, |name| Op::Remove(name).run(at).map(drop))
}

/// Calls `f` with the attribute's name as a C string; refuses what the kernel would, with its errors.
fn with_name<T>(name: &[u8], f: impl FnOnce(&CStr) -> Result<T>) -> Result<T> {
    match name.len() {
        1..=255 if name.contains(&0) => Err(Errno::INVAL),
        1..=255 => with_c_str(name, f),
        _ => Err(Errno::RANGE),
    }
}

/// Calls `read` with a small buffer, then with the largest that can be needed. No size is asked for: it might change in between.
fn grow(mut read: impl FnMut(&mut [u8]) -> Result<usize>) -> Result<Vec<u8>> {
    let mut small = [0; SMALL];
    match read(&mut small) {
        Ok(len) => return Ok(small.get(..len).ok_or(Errno::IO)?.to_vec()),
        Err(Errno::RANGE) => {}
        Err(error) => return Err(error),
    }
    let mut large = vec![0; MAX];
    match read(&mut large) {
        Ok(len) => Ok(large.get(..len).ok_or(Errno::IO)?.to_vec()),
        Err(Errno::RANGE) => Err(Errno::TOOBIG),
        Err(error) => Err(error),
    }
}

/// One call, to be made in one of three ways. The result is a number of bytes, 0 for those that return none.
enum Op<'a> {
    Get(&'a CStr, &'a mut [u8]),
    List(&'a mut [u8]),
    Set(&'a CStr, &'a [u8], XattrFlags),
    Remove(&'a CStr),
}

impl Op<'_> {
    fn run(mut self, at: At<'_>) -> Result<usize> {
        match at {
            At::Name(dir, file) => {
                check_name(file)?;
                match with_c_str(file, |file| self.by_at(dir, file, AtFlags::SYMLINK_NOFOLLOW)) {
                    // Before Linux 6.13, or a seccomp filter that does not know the call.
                    Err(Errno::NOSYS | Errno::PERM) => self.by_path(ProcPath::child(dir, file)?.as_c_str()?, false),
                    result => result,
                }
            }
            At::Fd(fd) => match self.by_fd(fd) {
                Err(Errno::BADF) => match self.by_at(fd, c".", AtFlags::empty()) {
                    // Also: no directory, or one that this process may not search.
                    Err(Errno::NOTDIR | Errno::ACCESS | Errno::NOSYS | Errno::PERM) => self.by_path(ProcPath::of(fd)?.as_c_str()?, true),
                    result => result,
                },
                result => result,
            },
        }
    }

    fn by_fd(&mut self, fd: BorrowedFd<'_>) -> Result<usize> {
        match self {
            Op::Get(name, buffer) => rustix::fs::fgetxattr(fd, *name, &mut **buffer),
            Op::List(buffer) => rustix::fs::flistxattr(fd, &mut **buffer),
            Op::Set(name, value, flags) => rustix::fs::fsetxattr(fd, *name, value, *flags).map(|()| 0),
            Op::Remove(name) => rustix::fs::fremovexattr(fd, *name).map(|()| 0),
        }
    }

    fn by_path(&mut self, path: &CStr, follow: bool) -> Result<usize> {
        match self {
            Op::Get(name, buffer) if follow => rustix::fs::getxattr(path, *name, &mut **buffer),
            Op::Get(name, buffer) => rustix::fs::lgetxattr(path, *name, &mut **buffer),
            Op::List(buffer) if follow => rustix::fs::listxattr(path, &mut **buffer),
            Op::List(buffer) => rustix::fs::llistxattr(path, &mut **buffer),
            Op::Set(name, value, flags) if follow => rustix::fs::setxattr(path, *name, value, *flags).map(|()| 0),
            Op::Set(name, value, flags) => rustix::fs::lsetxattr(path, *name, value, *flags).map(|()| 0),
            Op::Remove(name) if follow => rustix::fs::removexattr(path, *name).map(|()| 0),
            Op::Remove(name) => rustix::fs::lremovexattr(path, *name).map(|()| 0),
        }
    }

    fn by_at(&mut self, dir: BorrowedFd<'_>, path: &CStr, flags: AtFlags) -> Result<usize> {
        let (dir, path, flags) = (dir.as_raw_fd(), path.as_ptr(), flags.bits());
        let size = size_of::<Args>();
        // SAFETY, for all four: the descriptor is borrowed and the strings are NUL-terminated. Buffer and value are passed with their
        // lengths, which fit in 32 bits (else `Args::new` refuses); the kernel writes only to the buffer of `Get` and `List`, which is
        // borrowed mutably, and reads `size` bytes of `Args`, which live until the call returns.
        let code = match self {
            Op::Get(name, buffer) => {
                let args = Args::new(buffer.as_mut_ptr(), buffer.len(), 0)?;
                // SAFETY: as above.
                unsafe { libc::syscall(GETXATTRAT, dir, path, flags, name.as_ptr(), &raw const args, size) }
            }
            Op::List(buffer) => {
                // SAFETY: as above.
                unsafe { libc::syscall(LISTXATTRAT, dir, path, flags, buffer.as_mut_ptr(), buffer.len()) }
            }
            Op::Set(name, value, mode) => {
                let args = Args::new(value.as_ptr().cast_mut(), value.len(), mode.bits())?;
                // SAFETY: as above; `setxattrat` only reads the value.
                unsafe { libc::syscall(SETXATTRAT, dir, path, flags, name.as_ptr(), &raw const args, size) }
            }
            Op::Remove(name) => {
                // SAFETY: as above.
                unsafe { libc::syscall(REMOVEXATTRAT, dir, path, flags, name.as_ptr()) }
            }
        };
        usize::try_from(code).map_err(|_| last_errno())
    }
}

/// `struct xattr_args`; the kernel wants it aligned to 8.
#[repr(C, align(8))]
struct Args {
    value: u64,
    size: u32,
    flags: u32,
}

impl Args {
    fn new(value: *mut u8, len: usize, flags: u32) -> Result<Args> {
        Ok(Args { value: value.expose_provenance() as u64, size: u32::try_from(len).map_err(|_| Errno::TOOBIG)?, flags })
    }
}

// Numbers above 423 are the same on every architecture but alpha and mips; there -1 gives ENOSYS. libc 0.2.191 has no names for these.
const COMMON: bool = cfg!(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64", target_arch = "s390x"));
const SETXATTRAT: libc::c_long = if COMMON { 463 } else { -1 };
const GETXATTRAT: libc::c_long = if COMMON { 464 } else { -1 };
const LISTXATTRAT: libc::c_long = if COMMON { 465 } else { -1 };
const REMOVEXATTRAT: libc::c_long = if COMMON { 466 } else { -1 };

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::at::open_path;
    use crate::create::{mkdir, mknod, symlink};
    use crate::stat::Kind;
    use crate::testing::{Dir, privileged};

    type Way<'a> = &'a dyn Fn(&mut Op<'_>) -> Result<usize>;

    /// One operation on an object, with the result made comparable.
    fn run(way: Way<'_>, step: usize) -> Result<Vec<u8>> {
        const NAME: &CStr = c"trusted.a";
        let mut buffer = vec![0; 4096];
        let len = match step {
            0 | 3 | 7 => way(&mut Op::Get(NAME, &mut buffer)),
            1 => way(&mut Op::Set(NAME, b"value", XattrFlags::REPLACE)),
            2 => way(&mut Op::Set(NAME, b"value", XattrFlags::CREATE)),
            4 => way(&mut Op::List(&mut buffer)),
            5 => way(&mut Op::Get(NAME, &mut buffer[..3])),
            6 => way(&mut Op::Remove(NAME)),
            _ => way(&mut Op::Remove(NAME)),
        }?;
        Ok(buffer[..len].to_vec())
    }

    #[test]
    fn all_ways_to_an_object_give_the_same() {
        if !privileged("all_ways_to_an_object_give_the_same") {
            return;
        }
        let dir = Dir::new();
        let dirfd = dir.as_fd();
        mknod(dirfd, b"file", Kind::File, 0o600, 0).unwrap();
        mkdir(dirfd, b"dir", 0o700).unwrap();
        symlink(dirfd, b"link", b"nowhere").unwrap();
        mknod(dirfd, b"fifo", Kind::Fifo, 0o600, 0).unwrap();
        for name in [c"file", c"dir", c"link", c"fifo"] {
            let fd = open_path(At::Name(dirfd, name.to_bytes())).unwrap();
            let by_at = |op: &mut Op<'_>| op.by_at(dirfd, name, AtFlags::SYMLINK_NOFOLLOW);
            let by_child = |op: &mut Op<'_>| op.by_path(ProcPath::child(dirfd, name.to_bytes())?.as_c_str()?, false);
            let by_link = |op: &mut Op<'_>| op.by_path(ProcPath::of(fd.as_fd())?.as_c_str()?, true);
            let by_dot = |op: &mut Op<'_>| op.by_at(fd.as_fd(), c".", AtFlags::empty());
            let mut ways: Vec<Way<'_>> = vec![&by_child, &by_link];
            if by_at(&mut Op::Get(c"trusted.a", &mut [])) != Err(Errno::NOSYS) {
                ways.push(&by_at);
                if name == c"dir" {
                    ways.push(&by_dot);
                } else {
                    assert_eq!(by_dot(&mut Op::Get(c"trusted.a", &mut [])), Err(Errno::NOTDIR));
                }
            }
            let results: Vec<Vec<_>> = ways.iter().map(|way| (0..9).map(|step| run(way, step)).collect()).collect();
            for result in &results {
                assert_eq!(result, &results[0], "{name:?}");
            }
            assert_eq!(results[0][0], Err(Errno::NODATA));
            assert_eq!(results[0][3], Ok(b"value".to_vec()));
            assert_eq!(results[0][5], Err(Errno::RANGE));
        }
    }

    #[test]
    fn names_that_the_kernel_refuses_are_refused() {
        let dir = Dir::new();
        for (name, error) in [(b"".as_slice(), Errno::RANGE), (&[b'u'; 256], Errno::RANGE), (b"user.a\0b", Errno::INVAL)] {
            assert_eq!(get_xattr(At::Fd(dir.as_fd()), name), Err(error));
            assert_eq!(set_xattr(At::Fd(dir.as_fd()), name, b"", XattrMode::Any), Err(error));
            assert_eq!(remove_xattr(At::Fd(dir.as_fd()), name), Err(error));
        }
    }

    #[test]
    fn the_largest_value_comes_whole() {
        let dir = Dir::new();
        let value = vec![b'v'; MAX];
        // ext4 holds less than a block, tmpfs and xfs the kernel's limit.
        match set_xattr(At::Fd(dir.as_fd()), b"user.a", &value, XattrMode::Any) {
            Ok(()) => assert_eq!(get_xattr(At::Fd(dir.as_fd()), b"user.a").unwrap(), value),
            Err(error) => assert!(matches!(error, Errno::NOSPC | Errno::OPNOTSUPP), "{error}"),
        }
        assert_eq!(set_xattr(At::Fd(dir.as_fd()), b"user.a", &[0; MAX + 1], XattrMode::Any), Err(Errno::TOOBIG));
    }
}
