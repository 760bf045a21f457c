//! One object of a layer, and what can be asked of it and changed on it without opening its data.
//!
//! Every function takes an [`At`]: a name in a directory or a descriptor. None follows a symbolic link in the last place, none opens a
//! fifo or a device except [`open`] when told to, none moves outside the directory: a name is a single component.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, Gid, Mode, OFlags, ResolveFlags, Statx, StatxAttributes, StatxFlags, StatxTimestamp, Timespec, Timestamps, UTIME_NOW,
    UTIME_OMIT, Uid,
};

use crate::proc::ProcPath;
use crate::stat::{Kind, Stat, Time, makedev};
use crate::{Errno, Result};

pub use crate::xattr::{XattrMode, get_xattr, list_xattr, remove_xattr, set_xattr};

/// How to reach an object.
#[derive(Copy, Clone, Debug)]
pub enum At<'a> {
    /// An object named in a directory. The directory may be `O_PATH`; the name is one component, and the object is the name's own even
    /// if it is a symbolic link.
    Name(BorrowedFd<'a>, &'a [u8]),
    /// The object of the descriptor itself, which may be `O_PATH`, also of a symbolic link.
    Fd(BorrowedFd<'a>),
}

/// A time to set.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// Leaves the time as it is.
    Omit,
    /// Sets the kernel's current time.
    Now,
    /// Sets this time.
    To(Time),
}

/// `RESOLVE_BENEATH` and `NO_SYMLINKS` for a single component say what `O_NOFOLLOW` and [`check_name`] already ensure; they stay as the
/// kernel's own word for it. `NO_SYMLINKS` does not refuse an `O_PATH | O_NOFOLLOW` of a final link: nothing is resolved through it.
const RESOLVE: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// Checks that `name` is one component that names an entry: 1 to 255 bytes, no `/`, no NUL, neither `.` nor `..`.
///
/// # Errors
///
/// `ENOENT` for the empty name (as the kernel), `ENAMETOOLONG`, else `EINVAL`.
pub fn check_name(name: &[u8]) -> Result<()> {
    if name.is_empty() {
        return Err(Errno::NOENT);
    }
    if name.len() > 255 {
        return Err(Errno::NAMETOOLONG);
    }
    if name == b"." || name == b".." || name.iter().any(|&byte| byte == b'/' || byte == 0) {
        return Err(Errno::INVAL);
    }
    Ok(())
}

impl<'a> At<'a> {
    /// The three arguments of an `*at` call that knows `AT_EMPTY_PATH` and `AT_SYMLINK_NOFOLLOW`.
    pub(crate) fn args(self) -> Result<(BorrowedFd<'a>, &'a [u8], AtFlags)> {
        match self {
            At::Name(dir, name) => {
                check_name(name)?;
                Ok((dir, name, AtFlags::SYMLINK_NOFOLLOW))
            }
            At::Fd(fd) => Ok((fd, b"", AtFlags::EMPTY_PATH)),
        }
    }
}

/// Reads the attributes by one `statx(2)`, without triggering an automount.
///
/// # Errors
///
/// The kernel's; `ENOENT` and `ENOTDIR` mean that the name is not there. `EIO` for a type that POSIX does not know.
pub fn stat(at: At<'_>) -> Result<Stat> {
    let (dir, name, flags) = at.args()?;
    let mask = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    let raw = rustix::fs::statx(dir, name, flags | AtFlags::NO_AUTOMOUNT, mask)?;
    from_statx(&raw)
}

/// As [`stat`], from what the kernel knows already: no server of a filesystem is asked. Also the number of the mount that the object is on, as [`crate::mount::mount_id_of`] gives it.
///
/// # Errors
///
/// As of [`stat`]; `ENOSYS` when the kernel does not tell (before Linux 5.8).
pub fn stat_cached(at: At<'_>) -> Result<(Stat, u64)> {
    let (dir, name, flags) = at.args()?;
    let mask = StatxFlags::BASIC_STATS | StatxFlags::BTIME | StatxFlags::MNT_ID;
    let raw = rustix::fs::statx(dir, name, flags | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC, mask)?;
    if raw.stx_mask & StatxFlags::MNT_ID.bits() == 0 {
        return Err(Errno::NOSYS);
    }
    Ok((from_statx(&raw)?, raw.stx_mnt_id))
}

fn from_statx(raw: &Statx) -> Result<Stat> {
    let mode = u32::from(raw.stx_mode);
    let has_btime = raw.stx_mask & StatxFlags::BTIME.bits() != 0;
    Ok(Stat {
        dev: makedev(raw.stx_dev_major, raw.stx_dev_minor),
        ino: raw.stx_ino,
        kind: Kind::from_mode(mode).ok_or(Errno::IO)?,
        mode: mode & 0o7777,
        nlink: raw.stx_nlink,
        uid: raw.stx_uid,
        gid: raw.stx_gid,
        rdev: makedev(raw.stx_rdev_major, raw.stx_rdev_minor),
        size: raw.stx_size,
        blocks: raw.stx_blocks,
        blksize: raw.stx_blksize,
        atime: time(raw.stx_atime),
        mtime: time(raw.stx_mtime),
        ctime: time(raw.stx_ctime),
        btime: has_btime.then(|| time(raw.stx_btime)),
        immutable: raw.stx_attributes.contains(StatxAttributes::IMMUTABLE),
        append_only: raw.stx_attributes.contains(StatxAttributes::APPEND),
    })
}

fn time(raw: StatxTimestamp) -> Time {
    Time { sec: raw.tv_sec, nsec: raw.tv_nsec }
}

/// Opens the object as a mere location (`O_PATH`): of any kind, also a symbolic link, with no effect on it and no permission but search.
///
/// For `At::Fd` it makes a second descriptor of the same object.
///
/// # Errors
///
/// The kernel's.
pub fn open_path(at: At<'_>) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match at {
        At::Name(dir, name) => open_name(dir, name, flags),
        At::Fd(fd) => rustix::io::fcntl_dupfd_cloexec(fd, 0).and_then(|copy| {
            let is_path = rustix::fs::fcntl_getfl(&copy)?.contains(OFlags::PATH);
            if is_path { Ok(copy) } else { open_self(fd, OFlags::PATH | OFlags::CLOEXEC) }
        }),
    }
}

/// As [`open_path`] of a name, but of an object on the mount of the directory alone: what is mounted there is not even looked at.
///
/// # Errors
///
/// `EXDEV` if something is mounted there; else the kernel's.
pub fn open_path_same_mount(dir: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd> {
    check_name(name)?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat2(dir, name, flags, Mode::empty(), RESOLVE | ResolveFlags::NO_XDEV)
}

/// Opens the object. `O_CLOEXEC`, `O_NOFOLLOW` and `O_NOCTTY` are always added; `O_CREAT` and `O_TMPFILE` belong to [`crate::create`].
///
/// `At::Fd` opens the same object anew, by `.` for a directory asked for with `O_DIRECTORY`, else through `/proc/self/fd`.
///
/// A fifo or device has its usual effects, blocking among them: look at the kind first, and to be safe against a change of the name
/// open `At::Fd` of the descriptor that was looked at.
///
/// # Errors
///
/// The kernel's; `ELOOP` for a symbolic link, `EINVAL` for flags that create.
pub fn open(at: At<'_>, flags: OFlags) -> Result<OwnedFd> {
    // O_TMPFILE contains O_DIRECTORY.
    let creating = OFlags::CREATE | (OFlags::TMPFILE - OFlags::DIRECTORY);
    if flags.intersects(creating) {
        return Err(Errno::INVAL);
    }
    let flags = flags | OFlags::CLOEXEC;
    // openat2 refuses with O_PATH every flag that has no meaning there.
    let flags = if flags.contains(OFlags::PATH) { flags } else { flags | OFlags::NOCTTY };
    match at {
        At::Name(dir, name) => open_name(dir, name, flags | OFlags::NOFOLLOW),
        At::Fd(fd) => open_self(fd, flags),
    }
}

fn open_name(dir: BorrowedFd<'_>, name: &[u8], flags: OFlags) -> Result<OwnedFd> {
    check_name(name)?;
    match rustix::fs::openat2(dir, name, flags, Mode::empty(), RESOLVE) {
        // Before Linux 5.6; a single component with O_NOFOLLOW says the same.
        Err(Errno::NOSYS) => rustix::fs::openat(dir, name, flags, Mode::empty()),
        result => result,
    }
}

fn open_self(fd: BorrowedFd<'_>, flags: OFlags) -> Result<OwnedFd> {
    if flags.contains(OFlags::DIRECTORY) {
        return rustix::fs::openat(fd, c".", flags, Mode::empty());
    }
    // O_NOFOLLOW would refuse the magic link; a symbolic link at its end gives ELOOP all the same.
    let path = ProcPath::of(fd)?;
    rustix::fs::openat(rustix::fs::CWD, path.as_c_str()?, flags - OFlags::NOFOLLOW, Mode::empty())
}

/// Reads the target of a symbolic link, of any length.
///
/// # Errors
///
/// `EINVAL` if the object is no symbolic link.
pub fn readlink(at: At<'_>) -> Result<Vec<u8>> {
    let target = match at {
        At::Name(dir, name) => {
            check_name(name)?;
            rustix::fs::readlinkat(dir, name, Vec::new())
        }
        // With an empty path the kernel says ENOENT where it says EINVAL by name.
        At::Fd(fd) => rustix::fs::readlinkat(fd, c"", Vec::new()).map_err(|e| if e == Errno::NOENT { Errno::INVAL } else { e }),
    }?;
    Ok(target.into_bytes())
}

/// Changes owner and group; `None` leaves one as it is.
///
/// The kernel clears the set-id bits of a regular file and its `security.capability` when it does so: set the mode and the xattrs
/// afterwards.
///
/// # Errors
///
/// The kernel's; `EINVAL` for the id `u32::MAX`, which would mean "leave".
pub fn chown(at: At<'_>, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
    if uid == Some(u32::MAX) || gid == Some(u32::MAX) {
        return Err(Errno::INVAL);
    }
    let (dir, name, flags) = at.args()?;
    rustix::fs::chownat(dir, name, uid.map(Uid::from_raw), gid.map(Gid::from_raw), flags)
}

/// Changes the permission, set-id and sticky bits; other bits of `mode` are ignored.
///
/// `fchmodat2(2)` (Linux 6.6), before that through `/proc/self/fd`.
///
/// # Errors
///
/// The kernel's; `EOPNOTSUPP` for a symbolic link, whose mode Linux does not keep.
pub fn chmod(at: At<'_>, mode: u32) -> Result<()> {
    let (dir, name, flags) = at.args()?;
    let mode = mode & 0o7777;
    match fchmodat2(dir, name, mode, flags) {
        Err(Errno::NOSYS) => chmod_by_proc(at, mode),
        result => result,
    }
}

#[allow(unsafe_code)]
fn fchmodat2(dir: BorrowedFd<'_>, name: &[u8], mode: u32, flags: AtFlags) -> Result<()> {
    with_c_str(name, |name| {
        // SAFETY: the descriptor is borrowed for the call and the name is NUL-terminated; the call reads no other memory.
        let code = unsafe { libc::syscall(libc::SYS_fchmodat2, dir.as_raw_fd(), name.as_ptr(), mode, flags.bits()) };
        check(code)
    })
}

fn chmod_by_proc(at: At<'_>, mode: u32) -> Result<()> {
    let fd = open_path(at)?;
    // Old kernels change a link's mode on some filesystems and then report EOPNOTSUPP: do not let it come so far.
    if stat(At::Fd(fd.as_fd()))?.kind == Kind::Symlink {
        return Err(Errno::OPNOTSUPP);
    }
    let path = ProcPath::of(fd.as_fd())?;
    rustix::fs::chmod(path.as_c_str()?, Mode::from_raw_mode(mode))
}

/// Sets the times of access and of change of data, also of a symbolic link; times before 1970 are valid.
///
/// A filesystem clamps and rounds to what it can hold (ext4 with small inodes: seconds, 1901 to 2038), without an error.
///
/// # Errors
///
/// The kernel's; `EINVAL` for nanoseconds of a second or more.
pub fn set_times(at: At<'_>, atime: SetTime, mtime: SetTime) -> Result<()> {
    let (dir, name, flags) = at.args()?;
    let times = Timestamps { last_access: timespec(atime)?, last_modification: timespec(mtime)? };
    rustix::fs::utimensat(dir, name, &times, flags)
}

fn timespec(time: SetTime) -> Result<Timespec> {
    match time {
        SetTime::Omit => Ok(Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT }),
        SetTime::Now => Ok(Timespec { tv_sec: 0, tv_nsec: UTIME_NOW }),
        // UTIME_OMIT and UTIME_NOW are such values: a bad time must not turn into one of them.
        SetTime::To(time) if time.nsec >= 1_000_000_000 => Err(Errno::INVAL),
        SetTime::To(time) => Ok(Timespec { tv_sec: time.sec, tv_nsec: time.nsec.into() }),
    }
}

/// Calls `f` with `name` as a C string, from the stack. `name` is empty or checked.
pub(crate) fn with_c_str<T>(name: &[u8], f: impl FnOnce(&CStr) -> Result<T>) -> Result<T> {
    let mut bytes = [0_u8; 256];
    bytes.get_mut(..name.len()).ok_or(Errno::NAMETOOLONG)?.copy_from_slice(name);
    f(CStr::from_bytes_until_nul(&bytes).map_err(|_| Errno::NAMETOOLONG)?)
}

/// Turns the result of a raw call of libc into a `Result`. Must be called before anything else can touch `errno`.
pub(crate) fn check(code: libc::c_long) -> Result<()> {
    if code < 0 { Err(last_errno()) } else { Ok(()) }
}

/// The error of the last raw call of libc on this thread.
pub(crate) fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests;
