#![allow(unsafe_code)]
//! Inode flags (chattr(1)) and the extended attributes of XFS that belong to them, by their four ioctls.
//!
//! The descriptor is of a regular file or a directory and not `O_PATH`. A filesystem without flags answers `ENOTTY` or `EOPNOTSUPP`, by its kernel.

use std::os::fd::BorrowedFd;

use rustix::ioctl::{Getter, Opcode, Setter, ioctl, opcode};

use crate::Result;

/// `FS_IOC_GETFLAGS`, `_IOR('f', 1, long)`; what moves is 32 bits all the same.
pub const GET_FLAGS: Opcode = opcode::read::<libc::c_long>(b'f', 1);
/// `FS_IOC_SETFLAGS`, `_IOW('f', 2, long)`.
pub const SET_FLAGS: Opcode = opcode::write::<libc::c_long>(b'f', 2);
/// `FS_IOC_FSGETXATTR`, `_IOR('X', 31, struct fsxattr)`.
pub const GET_FSX: Opcode = opcode::read::<Fsx>(b'X', 31);
/// `FS_IOC_FSSETXATTR`, `_IOW('X', 32, struct fsxattr)`.
pub const SET_FSX: Opcode = opcode::write::<Fsx>(b'X', 32);

/// `FS_SYNC_FL`: writes go to the disk at once.
pub const SYNC: u32 = 0x08;
/// `FS_IMMUTABLE_FL`: nothing changes.
pub const IMMUTABLE: u32 = 0x10;
/// `FS_APPEND_FL`: data is added at the end only, names are added only.
pub const APPEND: u32 = 0x20;
/// `FS_NOATIME_FL`: reading leaves no time.
pub const NOATIME: u32 = 0x80;
/// `FS_XFLAG_IMMUTABLE`: [`IMMUTABLE`] in [`Fsx`].
pub const X_IMMUTABLE: u32 = 0x08;
/// `FS_XFLAG_APPEND`: [`APPEND`] in [`Fsx`].
pub const X_APPEND: u32 = 0x10;

/// `struct fsxattr` of linux/fs.h.
#[repr(C)]
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Fsx {
    /// `FS_XFLAG_*`.
    pub xflags: u32,
    /// Extent size hint, in bytes.
    pub extsize: u32,
    /// Extents of the file.
    pub nextents: u32,
    /// Project of the quota.
    pub projid: u32,
    /// Extent size hint of copy-on-write, in bytes.
    pub cowextsize: u32,
    /// Nothing yet.
    pub pad: [u8; 8],
}

impl Fsx {
    /// The bytes of the structure, as the ioctls have them.
    pub fn to_bytes(&self) -> [u8; 28] {
        let mut bytes = [0; 28];
        let words = [self.xflags, self.extsize, self.nextents, self.projid, self.cowextsize];
        for (to, word) in bytes.chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        if let Some(to) = bytes.last_chunk_mut() {
            *to = self.pad;
        }
        bytes
    }

    /// The structure of these bytes; `None` if they are not 28.
    pub fn from_bytes(bytes: &[u8]) -> Option<Fsx> {
        let bytes: &[u8; 28] = bytes.try_into().ok()?;
        let mut words = bytes.chunks_exact(4).filter_map(|word| word.try_into().ok()).map(u32::from_ne_bytes);
        let mut next = || words.next();
        let (xflags, extsize, nextents, projid, cowextsize) = (next()?, next()?, next()?, next()?, next()?);
        Some(Fsx { xflags, extsize, nextents, projid, cowextsize, pad: *bytes.last_chunk()? })
    }
}

/// Reads the inode flags (`FS_*_FL`).
///
/// # Errors
///
/// The kernel's.
pub fn flags(fd: BorrowedFd<'_>) -> Result<u32> {
    // SAFETY: whatever the size in its number says, the kernel writes one unsigned int (fs/file_attr.c, ioctl_getflags).
    unsafe { ioctl(fd, Getter::<GET_FLAGS, u32>::new()) }
}

/// Sets the inode flags, all of them.
///
/// # Errors
///
/// The kernel's; `EPERM` without `CAP_LINUX_IMMUTABLE` for [`IMMUTABLE`] and [`APPEND`], `EOPNOTSUPP` for a flag that the filesystem does not have.
pub fn set_flags(fd: BorrowedFd<'_>, flags: u32) -> Result<()> {
    // SAFETY: the kernel reads one unsigned int (fs/file_attr.c, ioctl_setflags).
    unsafe { ioctl(fd, Setter::<SET_FLAGS, u32>::new(flags)) }
}

/// Reads the flags in their other form, with what belongs to them.
///
/// # Errors
///
/// The kernel's.
pub fn fsx(fd: BorrowedFd<'_>) -> Result<Fsx> {
    // SAFETY: the kernel writes one `struct fsxattr`, as `Fsx` is laid out.
    unsafe { ioctl(fd, Getter::<GET_FSX, Fsx>::new()) }
}

/// Sets what [`fsx`] reads.
///
/// # Errors
///
/// The kernel's, as of [`set_flags`].
pub fn set_fsx(fd: BorrowedFd<'_>, fsx: &Fsx) -> Result<()> {
    // SAFETY: the kernel reads one `struct fsxattr`, as `Fsx` is laid out.
    unsafe { ioctl(fd, Setter::<SET_FSX, Fsx>::new(*fsx)) }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::Errno;
    use crate::testing::Dir;

    #[test]
    fn numbers_are_the_kernels() {
        if size_of::<libc::c_long>() == 8 {
            assert_eq!([GET_FLAGS, SET_FLAGS, GET_FSX, SET_FSX], [0x8008_6601, 0x4008_6602, 0x801c_581f, 0x401c_5820]);
        }
    }

    #[test]
    fn bytes_and_structure_are_one() {
        let fsx = Fsx { xflags: 1, extsize: 0x0203_0405, nextents: 6, projid: 7, cowextsize: 8, pad: [1, 2, 3, 4, 5, 6, 7, 8] };
        assert_eq!(Fsx::from_bytes(&fsx.to_bytes()), Some(fsx));
        assert_eq!(fsx.to_bytes()[20..], fsx.pad);
        assert_eq!(Fsx::from_bytes(&[0; 27]), None);
    }

    #[test]
    fn both_forms_show_what_either_sets() {
        let dir = Dir::new();
        let file = std::fs::File::create(dir.join("f")).unwrap();
        let before = match flags(file.as_fd()) {
            Err(Errno::NOTTY | Errno::OPNOTSUPP) => return eprintln!("SKIPPED both_forms_show_what_either_sets: no flags here"),
            other => other.unwrap(),
        };
        set_flags(file.as_fd(), before | NOATIME).unwrap();
        assert_eq!(flags(file.as_fd()).unwrap(), before | NOATIME);
        let mut extended = fsx(file.as_fd()).unwrap();
        // FS_XFLAG_NOATIME.
        assert_ne!(extended.xflags & 0x40, 0);
        extended.xflags &= !0x40;
        set_fsx(file.as_fd(), &extended).unwrap();
        assert_eq!(flags(file.as_fd()).unwrap() & NOATIME, 0);
    }
}
