//! Directories as trees: upwards to the parent, and emptying one.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

use crate::at::{At, open_path};
use crate::stat::Kind;
use crate::{Errno, Result, create, dir};

/// Opens `..` of a directory (`O_PATH`); the root's parent is the root itself.
///
/// Errors: those of openat(2).
pub fn open_parent(dir: BorrowedFd<'_>) -> Result<OwnedFd> {
    rustix::fs::openat(dir, "..", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Opens a directory again with an open file description of its own, for flock(2), fsync(2) or getdents64(2).
///
/// Errors: those of openat(2); EACCES without read permission.
pub fn reopen_dir(dir: BorrowedFd<'_>) -> Result<OwnedFd> {
    rustix::fs::openat(dir, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// fsync(2) of a directory, which may be an `O_PATH` descriptor.
///
/// Errors: those of openat(2) and fsync(2).
pub fn fsync_dir(dir: BorrowedFd<'_>) -> Result<()> {
    crate::io::fsync(reopen_dir(dir)?.as_fd())
}

/// Removes everything in a directory, not the directory. Never follows a symbolic link.
///
/// Errors: the first of unlinkat(2), openat2(2) or getdents64(2) that is not "not there"; what was removed until then stays removed.
pub fn remove_contents(dir: BorrowedFd<'_>) -> Result<()> {
    // A loop, not recursion: the depth of what is found is not ours to choose. (directory, its name in the one before)
    let mut open: Vec<(OwnedFd, Vec<u8>)> = vec![(dir.try_clone_to_owned().map_err(|_| Errno::MFILE)?, Vec::new())];
    while let Some((current, name)) = open.pop() {
        let mut below = None;
        for entry in dir::read_dir(current.as_fd())? {
            let is_dir = entry.kind == Some(Kind::Dir);
            let removed = if is_dir { create::rmdir(current.as_fd(), &entry.name) } else { create::unlink(current.as_fd(), &entry.name) };
            match removed {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::NOTEMPTY | Errno::EXIST | Errno::ISDIR) => {
                    below = Some((open_path(At::Name(current.as_fd(), &entry.name))?, entry.name));
                    break;
                }
                Err(errno) => return Err(errno),
            }
        }
        match below {
            Some(below) => {
                open.push((current, name));
                open.push(below);
            }
            None => {
                if let Some((parent, _)) = open.last() {
                    create::rmdir(parent.as_fd(), &name)?;
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empties_nested_directories_and_does_not_follow_links() {
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("kept"), b"x").unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b/c")).unwrap();
        std::fs::write(dir.path().join("a/b/f"), b"x").unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join("a/link")).unwrap();
        let fd = crate::root::open_dir(dir.path()).unwrap();
        remove_contents(fd.as_fd()).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(outside.path().join("kept").exists());
    }
}
