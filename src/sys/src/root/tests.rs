use std::fs;

use super::*;
use crate::OFlags;
use crate::at::{At, open, stat};
use crate::create::{create, link, mkdir, rename, symlink};
use crate::dir::read_dir;
use crate::statfs::statfs;
use crate::testing::{Dir, privileged};

#[test]
fn open_dir_follows_links_and_takes_directories_only() {
    let dir = Dir::new();
    mkdir(dir.as_fd(), b"d", 0o755).unwrap();
    symlink(dir.as_fd(), b"l", b"d").unwrap();
    fs::write(dir.join("f"), b"").unwrap();
    let through = open_dir(&dir.join("l")).unwrap();
    assert_eq!(stat(At::Fd(through.as_fd())), stat(At::Name(dir.as_fd(), b"d")));
    assert_eq!(open_dir(&dir.join("f")).err(), Some(Errno::NOTDIR));
    assert_eq!(open_dir(&dir.join("gone")).err(), Some(Errno::NOENT));
}

#[test]
fn a_clone_is_the_same_directory_read_only() {
    if !privileged("a_clone_is_the_same_directory_read_only") {
        return;
    }
    let dir = Dir::new();
    mkdir(dir.as_fd(), b"d", 0o755).unwrap();
    fs::write(dir.join("f"), b"data").unwrap();
    let clone = clone_readonly(dir.as_fd()).unwrap();
    let clone = clone.as_fd();
    assert_eq!(stat(At::Fd(clone)), stat(At::Fd(dir.as_fd())));
    assert_eq!(read_dir(clone), read_dir(dir.as_fd()));
    assert_eq!(create(clone, b"new", 0o600).err(), Some(Errno::ROFS));
    assert_eq!(mkdir(clone, b"new", 0o700), Err(Errno::ROFS));
    assert_eq!(open(At::Name(clone, b"f"), OFlags::RDWR).err(), Some(Errno::ROFS));
    assert_eq!(link(At::Name(clone, b"f"), dir.as_fd(), b"g"), Err(Errno::XDEV));
    assert_eq!(rename(clone, b"f", dir.as_fd(), b"g", crate::RenameFlags::empty()), Err(Errno::XDEV));
    // What changes in the original is seen at once.
    fs::write(dir.join("later"), b"").unwrap();
    assert!(stat(At::Name(clone, b"later")).is_ok());
}

#[test]
fn reading_through_a_clone_leaves_the_access_time() {
    if !privileged("reading_through_a_clone_leaves_the_access_time") {
        return;
    }
    let dir = Dir::new();
    fs::write(dir.join("f"), b"data").unwrap();
    let at = At::Name(dir.as_fd(), b"f");
    let long_ago = crate::at::SetTime::To(crate::stat::Time { sec: 1, nsec: 0 });
    crate::at::set_times(at, long_ago, crate::at::SetTime::Omit).unwrap();
    let clone = clone_readonly(dir.as_fd()).unwrap();
    let file = open(At::Name(clone.as_fd(), b"f"), OFlags::RDONLY).unwrap();
    assert_eq!(crate::io::pread(file.as_fd(), &mut [0; 4], 0), Ok(4));
    assert_eq!(stat(at).unwrap().atime.sec, 1);
    let flags = statfs(clone.as_fd()).unwrap().flags;
    assert_ne!(flags & libc::ST_NOATIME, 0);
    assert_ne!(flags & libc::ST_RDONLY, 0);
}
