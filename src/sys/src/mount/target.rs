//! Places to mount at, found and made inside a given root.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::io::retry_on_intr;

use crate::at::{At, stat};
use crate::stat::{Kind, Stat};
use crate::{Errno, Result};

/// Opens what a path leads to (`O_PATH`) as a process would whose root directory is `root`: absolute symbolic links and `..` end there,
/// mounts are crossed. A link in the last place is followed. Magic links of `/proc` are not.
///
/// # Errors
///
/// `ENOENT`, `ENOTDIR`, `ELOOP` (also for a magic link).
pub fn resolve_in_root(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd> {
    open_in_root(root, path, OFlags::PATH)
}

fn open_in_root(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd> {
    // An empty path would be refused; here it is the root itself.
    let path = if path.is_empty() { b"." } else { path };
    // EAGAIN: a rename or mount went on somewhere while ".." was walked, and the kernel could not tell whether it led outside.
    let mut tries = 0;
    loop {
        let opened = retry_on_intr(|| {
            rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
        });
        match opened {
            Err(Errno::AGAIN) if tries < 128 => tries += 1,
            result => return result,
        }
    }
}

/// As [`resolve_in_root`], and opens the file for reading.
///
/// # Errors
///
/// As [`resolve_in_root`], and those of opening: a device or fifo may block.
pub fn open_read_in_root(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd> {
    open_in_root(root, path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)
}

/// Opens a place to mount at (`O_PATH`) and makes what is missing of it: directories of mode 755, and in the last place a directory or,
/// for `directory` false, an empty file.
///
/// # Errors
///
/// `ENOTDIR`, `EISDIR` when something of the other kind is there; `ENOENT` when a dangling link is in the way; those of making.
pub fn make_target(root: BorrowedFd<'_>, path: &[u8], directory: bool) -> Result<OwnedFd> {
    let found = match resolve_in_root(root, path) {
        Err(Errno::NOENT) => make(root, path, directory)?,
        result => result?,
    };
    match (kind_of(found.as_fd())?, directory) {
        (Kind::Dir, false) => Err(Errno::ISDIR),
        (kind, true) if kind != Kind::Dir => Err(Errno::NOTDIR),
        _ => Ok(found),
    }
}

/// What kind of object `fd` is open on, as the kernel knows it: a filesystem over a network or in user space is not asked, which may be
/// slow to answer, or dead.
///
/// # Errors
///
/// Those of `statx`.
pub fn kind_of(fd: BorrowedFd<'_>) -> Result<Kind> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let stat = rustix::fs::statx(fd, c"", flags, StatxFlags::TYPE)?;
    Kind::from_mode(u32::from(stat.stx_mode)).ok_or(Errno::IO)
}

/// What [`resolve_in_root`] found.
///
/// # Errors
///
/// Those of `statx`.
pub fn stat_fd(fd: BorrowedFd<'_>) -> Result<Stat> {
    stat(At::Fd(fd))
}

fn make(root: BorrowedFd<'_>, path: &[u8], directory: bool) -> Result<OwnedFd> {
    let mut parent = resolve_in_root(root, b".")?;
    let mut walked = Vec::new();
    let mut names = path.split(|&byte| byte == b'/').filter(|name| !name.is_empty() && *name != b".").peekable();
    while let Some(name) = names.next() {
        walked.push(b'/');
        walked.extend_from_slice(name);
        // Each prefix is resolved from the root again, so that ".." and links mean what they mean there.
        parent = match resolve_in_root(root, &walked) {
            Err(Errno::NOENT) => {
                let made = if names.peek().is_some() || directory {
                    crate::create::mkdir(parent.as_fd(), name, 0o755)
                } else {
                    crate::create::create(parent.as_fd(), name, 0o644).map(drop)
                };
                match made {
                    Ok(()) => {}
                    // Somebody else's, or a dangling link, which the next line tells.
                    Err(Errno::EXIST) => {}
                    Err(errno) => return Err(errno),
                }
                resolve_in_root(root, &walked)?
            }
            result => result?,
        };
    }
    Ok(parent)
}
