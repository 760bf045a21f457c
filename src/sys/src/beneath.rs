//! Directories far below another one, by many names at once, on its own mount: no symbolic link, no `..` and no other mount on the way.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::at::{self, At};
use crate::{Errno, Result};

/// What the kernel takes at once is `PATH_MAX`, 4,096 bytes with the NUL.
const AT_ONCE: usize = 4_000;

const RESOLVE: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS).union(ResolveFlags::NO_XDEV);

/// Opens (`O_PATH`) the directory that `path` names below `root`: names separated by `/`, one at the beginning or none, of any length in all. The empty path is `root`.
///
/// Whoever exchanges a directory on the way for a symbolic link, or mounts something over it, is found out: nothing outside of `root`, and nothing of another mount, is
/// opened.
///
/// # Errors
///
/// `ENOENT`, `ENOTDIR` (also for a symbolic link in the last place), `ELOOP` for a symbolic link before it, `EXDEV` for another mount, `EINVAL` for a name that is none.
pub fn open_dir(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd> {
    let names = path.strip_prefix(b"/").unwrap_or(path);
    let mut dir = at::open_path(At::Fd(root))?;
    if names.is_empty() {
        return Ok(dir);
    }
    let mut piece: Vec<u8> = Vec::new();
    for name in names.split(|&byte| byte == b'/') {
        at::check_name(name).map_err(|errno| if errno == Errno::NOENT { Errno::INVAL } else { errno })?;
        if piece.len() + 1 + name.len() > AT_ONCE {
            dir = open_piece(dir.as_fd(), &piece)?;
            piece.clear();
        }
        if !piece.is_empty() {
            piece.push(b'/');
        }
        piece.extend_from_slice(name);
    }
    open_piece(dir.as_fd(), &piece)
}

fn open_piece(dir: BorrowedFd<'_>, piece: &[u8]) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat2(dir, piece, flags, Mode::empty(), RESOLVE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::create;
    use crate::testing::Dir;

    #[test]
    fn directories_are_opened_by_their_names_and_by_no_other_way() {
        let dir = Dir::new();
        std::fs::create_dir_all(dir.join("a/b/c")).unwrap();
        std::fs::write(dir.join("a/file"), "").unwrap();
        std::os::unix::fs::symlink("a", dir.join("link")).unwrap();
        std::os::unix::fs::symlink("/", dir.join("a/out")).unwrap();
        let ino = |path: &[u8]| open_dir(dir.as_fd(), path).map(|fd| at::stat(At::Fd(fd.as_fd())).unwrap().ino);
        let there = |path: &str| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(dir.join(path)).unwrap());
        assert_eq!([ino(b""), ino(b"/a"), ino(b"a/b"), ino(b"/a/b/c")].map(|ino| ino.unwrap()), ["", "a", "a/b", "a/b/c"].map(there));
        for (path, errno) in [
            (&b"none"[..], Errno::NOENT),
            (b"a/file", Errno::NOTDIR),
            (b"a/file/x", Errno::NOTDIR),
            (b"link/b", Errno::LOOP),
            (b"a/out/etc", Errno::LOOP),
            (b"a/../a", Errno::INVAL),
            (b"a//b", Errno::INVAL),
            (b"a/.", Errno::INVAL),
        ] {
            assert_eq!(ino(path), Err(errno), "{}", path.escape_ascii());
        }
        assert!(matches!(ino(b"link"), Err(Errno::LOOP | Errno::NOTDIR)));
    }

    #[test]
    fn paths_may_be_longer_than_the_kernel_takes() {
        let dir = Dir::new();
        let name = [b'n'; 250];
        let mut path = Vec::new();
        let mut fd = at::open_path(At::Fd(dir.as_fd())).unwrap();
        for _ in 0..40 {
            create::mkdir(fd.as_fd(), &name, 0o755).unwrap();
            fd = at::open_path(At::Name(fd.as_fd(), &name)).unwrap();
            path.push(b'/');
            path.extend_from_slice(&name);
        }
        let found = open_dir(dir.as_fd(), &path).unwrap();
        assert_eq!(at::stat(At::Fd(found.as_fd())).unwrap().ino, at::stat(At::Fd(fd.as_fd())).unwrap().ino);
        drop((found, fd));
        crate::tree::remove_contents(dir.as_fd()).unwrap();
    }
}
