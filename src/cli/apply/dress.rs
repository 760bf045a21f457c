//! Gives an object of this machine owner, mode, attributes and times: only what differs is changed, so that it can be repeated.

use std::os::fd::{AsFd, BorrowedFd};

use plyfs_sys::at::{self, At, SetTime, XattrMode};
use plyfs_sys::stat::Kind;
use plyfs_sys::{Errno, OFlags, flags, process};

use super::journal::{Dress, Was};
use super::look;
use super::plan::KEPT_FLAGS;

/// The flags that forbid changes.
pub(super) const FORBID: u32 = flags::IMMUTABLE | flags::APPEND;

/// Dresses the object behind a descriptor, which may be `O_PATH`.
pub(super) fn dress(fd: BorrowedFd<'_>, want: &Dress) -> Result<(), Errno> {
    let object = At::Fd(fd);
    let kind = at::stat(object)?.kind;
    let own = Flags::of(fd, kind, want.flags)?;
    if own.as_ref().is_some_and(|own| own.now & FORBID != 0) && !is_dressed(fd, want)? {
        own.iter().try_for_each(|own| own.set(own.now & !FORBID))?;
    }
    let now = at::stat(object)?;
    if (now.uid, now.gid) != (want.uid, want.gid) {
        at::chown(object, Some(want.uid), Some(want.gid))?;
    }
    let has = look::xattrs(fd)?;
    for (name, _) in &has {
        if !want.xattrs.iter().any(|(wanted, _)| wanted.as_bytes() == name) {
            match at::remove_xattr(object, name) {
                Ok(()) | Err(Errno::NODATA) => {}
                // A label of the system's own: nobody removes it.
                Err(Errno::ACCESS | Errno::PERM | Errno::OPNOTSUPP) if name.starts_with(b"security.") => {}
                Err(errno) => return Err(errno),
            }
        }
    }
    for (name, value) in &want.xattrs {
        if !has.iter().any(|(has, now)| has == name.as_bytes() && now == value.as_bytes()) {
            at::set_xattr(object, name.as_bytes(), value.as_bytes(), XattrMode::Any)?;
        }
    }
    // Once more: a change of the owner takes setuid away, an ACL changes the bits of the group.
    if kind != Kind::Symlink && at::stat(object)?.mode != want.mode {
        at::chmod(object, want.mode)?;
    }
    let to = |time: Option<look::Moment>| time.map_or(SetTime::Omit, |time| SetTime::To(look::time(time)));
    if want.atime.is_some() || want.mtime.is_some_and(|mtime| at::stat(object).is_ok_and(|now| look::moment(now.mtime) != mtime)) {
        match at::set_times(object, to(want.atime), to(want.mtime)) {
            // A directory of somebody else's, in which this user may make entries: its time is that of the last one.
            Err(Errno::PERM) if kind == Kind::Dir && ![0, now.uid].contains(&process::effective_uid()) => {
                tracing::debug!("the time of a directory stays")
            }
            other => other?,
        }
    }
    own.iter().try_for_each(|own| own.set((own.now & !KEPT_FLAGS) | own.want))
}

/// Whether there is nothing to change at all.
pub(super) fn is_done(fd: BorrowedFd<'_>, want: &Dress) -> Result<bool, Errno> {
    let kind = at::stat(At::Fd(fd))?.kind;
    let flags = Flags::of(fd, kind, want.flags)?.is_none_or(|own| own.now & KEPT_FLAGS == own.want);
    Ok(flags && is_dressed(fd, want)?)
}

/// Whether there is nothing to change but flags.
fn is_dressed(fd: BorrowedFd<'_>, want: &Dress) -> Result<bool, Errno> {
    let now = at::stat(At::Fd(fd))?;
    let has = look::xattrs(fd)?;
    let same_xattrs = has.len() == want.xattrs.len()
        && has.iter().zip(&want.xattrs).all(|((name, value), (wanted, to))| name == wanted.as_bytes() && value == to.as_bytes());
    let same_time = want.mtime.is_none_or(|mtime| look::moment(now.mtime) == mtime);
    Ok((now.mode, now.uid, now.gid) == (want.mode, want.uid, want.gid) && same_xattrs && same_time && want.atime.is_none())
}

/// The inode flags of a file or directory. `None`: there are none to be had.
pub(super) fn flags_of(fd: BorrowedFd<'_>, kind: Kind) -> Result<Option<u32>, Errno> {
    Ok(Flags::of(fd, kind, Some(0))?.map(|flags| flags.now))
}

/// Whether somebody else changed it since: owner and mode are neither what they were nor what they are to be, nor anything in between.
pub(super) fn is_foreign(fd: BorrowedFd<'_>, was: &Was, want: &Dress) -> Result<bool, Errno> {
    const SET_ID: u32 = 0o6000;
    let now = at::stat(At::Fd(fd))?;
    let owner = [was.uid, want.uid].contains(&now.uid) && [was.gid, want.gid].contains(&now.gid);
    // A change of the owner takes bits away, an ACL changes those of the group.
    let mode = [was.mode, want.mode].iter().any(|mode| (mode ^ now.mode) & !(SET_ID | 0o070) == 0);
    let time = was.mtime.is_none_or(|mtime| [Some(mtime), want.mtime].contains(&Some(look::moment(now.mtime))));
    Ok(!(owner && mode && time))
}

/// The inode flags of a file or directory.
struct Flags {
    file: std::os::fd::OwnedFd,
    now: u32,
    want: u32,
}

impl Flags {
    /// `None` where there are none to be had or wanted.
    fn of(fd: BorrowedFd<'_>, kind: Kind, want: Option<u32>) -> Result<Option<Self>, Errno> {
        let (Some(want), Kind::File | Kind::Dir) = (want, kind) else { return Ok(None) };
        let how = if kind == Kind::Dir { OFlags::RDONLY | OFlags::DIRECTORY } else { OFlags::RDONLY };
        let file = match at::open(At::Fd(fd), how) {
            // Whoever may not read it cannot ask.
            Err(Errno::ACCESS | Errno::PERM) if want == 0 => return Ok(None),
            other => other?,
        };
        match flags::flags(file.as_fd()) {
            Ok(now) => Ok(Some(Self { file, now, want })),
            Err(Errno::NOTTY | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    fn set(&self, to: u32) -> Result<(), Errno> {
        // Read anew: it may have been set in between.
        if flags::flags(self.file.as_fd())? == to {
            return Ok(());
        }
        flags::set_flags(self.file.as_fd(), to)
    }
}
