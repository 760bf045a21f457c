#![allow(unsafe_code)]
//! File handles: an inode's identity on its filesystem, which outlives names, descriptors and mounts.
//!
//! A handle is opaque bytes plus a type that says how the filesystem encoded them. It means something only together with the
//! filesystem, hence [`fs_uuid`].

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::ioctl::{Getter, ioctl};

use crate::at::{At, check, last_errno, with_c_str};
use crate::{Errno, Result};

/// `MAX_HANDLE_SZ`.
const ROOM: usize = 128;

/// An inode's identity on its filesystem.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileHandle {
    /// How the bytes are encoded, by the filesystem's own numbering.
    pub kind: i32,
    /// At most 128 bytes.
    pub bytes: Vec<u8>,
}

/// `struct file_handle` with its bytes in place.
#[repr(C)]
struct RawHandle {
    len: u32,
    kind: i32,
    bytes: [u8; ROOM],
}

/// Asks for the handle of an object, of any kind, without opening it.
///
/// # Errors
///
/// `EOPNOTSUPP` where the filesystem has no handles; `EOVERFLOW` for a handle longer than the kernel's 128 bytes; else the kernel's.
pub fn file_handle(at: At<'_>) -> Result<FileHandle> {
    let (dir, name, flags) = at.args()?;
    // name_to_handle_at follows no link unless told to, and knows no flag to say so.
    let flags = (flags & rustix::fs::AtFlags::EMPTY_PATH).bits();
    let mut raw = RawHandle { len: ROOM as u32, kind: 0, bytes: [0; ROOM] };
    let mut mount_id: libc::c_int = 0;
    with_c_str(name, |name| {
        // SAFETY: `raw` has the layout of struct file_handle with `len` bytes behind it; the kernel writes at most those and one int to
        // `mount_id`. The name is NUL-terminated and the descriptor is borrowed for the call.
        let code =
            unsafe { libc::syscall(libc::SYS_name_to_handle_at, dir.as_raw_fd(), name.as_ptr(), &raw mut raw, &raw mut mount_id, flags) };
        check(code)
    })?;
    let bytes = raw.bytes.get(..raw.len as usize).ok_or(Errno::OVERFLOW)?.to_vec();
    Ok(FileHandle { kind: raw.kind, bytes })
}

/// Opens the object of a handle as a location (`O_PATH`). Needs `CAP_DAC_READ_SEARCH`.
///
/// `mount` is any directory or file of the mount through which the object shall be reached. The kernel takes no `O_PATH` descriptor
/// there; an `O_PATH` *directory* is opened anew for the call, which costs one more system call: pass a readable one where many handles
/// are opened.
///
/// # Errors
///
/// `ESTALE` when the object is gone or the handle is of another filesystem; `EPERM`; else the kernel's.
pub fn open_handle(mount: BorrowedFd<'_>, handle: &FileHandle) -> Result<OwnedFd> {
    let mut raw = RawHandle { len: u32::try_from(handle.bytes.len()).map_err(|_| Errno::INVAL)?, kind: handle.kind, bytes: [0; ROOM] };
    raw.bytes.get_mut(..handle.bytes.len()).ok_or(Errno::INVAL)?.copy_from_slice(&handle.bytes);
    match open_raw(mount, &mut raw) {
        Err(Errno::BADF) => open_raw(readable(mount)?.as_fd(), &mut raw),
        result => result,
    }
}

fn open_raw(mount: BorrowedFd<'_>, raw: &mut RawHandle) -> Result<OwnedFd> {
    let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    // SAFETY: `raw` has the layout of struct file_handle with at least `len` bytes behind it, which the kernel only reads. The
    // descriptor is borrowed for the call.
    let fd = unsafe { libc::syscall(libc::SYS_open_by_handle_at, mount.as_raw_fd(), &raw mut *raw, flags) };
    let fd = i32::try_from(fd).map_err(|_| Errno::BADF)?;
    if fd < 0 {
        return Err(last_errno());
    }
    // SAFETY: the kernel has just made this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The same directory for the calls that refuse `O_PATH`.
fn readable(dir: BorrowedFd<'_>) -> Result<OwnedFd> {
    rustix::fs::openat(dir, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// `struct fsuuid2`.
#[repr(C)]
struct FsUuid {
    len: u8,
    uuid: [u8; 16],
}

/// `FS_IOC_GETFSUUID`: `_IOR(0x15, 0, struct fsuuid2)`.
const GET_FS_UUID: rustix::ioctl::Opcode = rustix::ioctl::opcode::read::<FsUuid>(0x15, 0);

/// Asks for the UUID of the filesystem that holds the directory `dir`, which may be `O_PATH`. `None` where the filesystem has none,
/// has the nil one (as images made without do, which tells nothing apart), or the kernel (before 6.10) does not tell. btrfs has its fsid.
///
/// # Errors
///
/// The kernel's, but those that say "unsupported".
pub fn fs_uuid(dir: BorrowedFd<'_>) -> Result<Option<[u8; 16]>> {
    let dir = readable(dir)?;
    // SAFETY: the opcode is a getter that writes one `struct fsuuid2`, as `FsUuid` is laid out.
    let answer = unsafe { ioctl(&dir, Getter::<GET_FS_UUID, FsUuid>::new()) };
    match answer {
        Ok(answer) => Ok((answer.len == 16 && answer.uuid != [0; 16]).then_some(answer.uuid)),
        Err(Errno::NOTTY | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => btrfs_fsid(dir.as_fd()),
        Err(error) => Err(error),
    }
}

/// `struct btrfs_ioctl_fs_info_args`, of which only the third field matters here.
#[repr(C)]
struct BtrfsInfo {
    max_id: u64,
    num_devices: u64,
    fsid: [u8; 16],
    rest: [u8; 992],
}

/// `BTRFS_IOC_FS_INFO`: `_IOR(0x94, 31, struct btrfs_ioctl_fs_info_args)`.
const BTRFS_FS_INFO: rustix::ioctl::Opcode = rustix::ioctl::opcode::read::<BtrfsInfo>(0x94, 31);

/// The fsid of a btrfs, which does not answer `FS_IOC_GETFSUUID`; it is the UUID that the kernel has for the filesystem.
fn btrfs_fsid(dir: BorrowedFd<'_>) -> Result<Option<[u8; 16]>> {
    const BTRFS_SUPER_MAGIC: i64 = 0x9123_683e;
    if crate::statfs::statfs(dir)?.fs_type != BTRFS_SUPER_MAGIC {
        return Ok(None);
    }
    // SAFETY: the opcode is a getter that writes one `struct btrfs_ioctl_fs_info_args` of 1024 bytes, as `BtrfsInfo` is laid out; it was just
    // seen that the filesystem is a btrfs, so that the number means this call.
    let info = unsafe { ioctl(dir, Getter::<BTRFS_FS_INFO, BtrfsInfo>::new()) };
    match info {
        Ok(info) => Ok(Some(info.fsid)),
        Err(Errno::NOTTY | Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
