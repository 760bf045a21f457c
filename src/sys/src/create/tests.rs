use std::fs;
use std::os::fd::AsFd;

use super::*;
use crate::at::{open_path, readlink, stat};
use crate::io::pwrite;
use crate::stat::makedev;
use crate::testing::{Dir, ODD, privileged};

#[test]
fn bad_names_are_refused_everywhere() {
    let dir = Dir::new();
    let fd = dir.as_fd();
    mknod(fd, b"f", Kind::File, 0o644, 0).unwrap();
    for name in [b"".as_slice(), b".", b"..", b"a/b", b"a\0b", &[b'n'; 256]] {
        assert!(mkdir(fd, name, 0o755).is_err());
        assert!(mknod(fd, name, Kind::File, 0o644, 0).is_err());
        assert!(symlink(fd, name, b"x").is_err());
        assert!(create(fd, name, 0o644).is_err());
        assert!(link(At::Name(fd, b"f"), fd, name).is_err());
        assert!(link(At::Name(fd, name), fd, b"g").is_err());
        assert!(unlink(fd, name).is_err());
        assert!(rmdir(fd, name).is_err());
        assert!(rename(fd, b"f", fd, name, RenameFlags::empty()).is_err());
        assert!(rename(fd, name, fd, b"g", RenameFlags::empty()).is_err());
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn odd_names_are_made_moved_and_removed() {
    let dir = Dir::new();
    let fd = dir.as_fd();
    for name in ODD {
        mkdir(fd, name, 0o700).unwrap();
        assert_eq!(mkdir(fd, name, 0o700), Err(Errno::EXIST));
        rmdir(fd, name).unwrap();
        create(fd, name, 0o600).unwrap();
        assert_eq!(create(fd, name, 0o600).err(), Some(Errno::EXIST));
        rename(fd, name, fd, b"plain", RenameFlags::NOREPLACE).unwrap();
        rename(fd, b"plain", fd, name, RenameFlags::empty()).unwrap();
        link(At::Name(fd, name), fd, b"second").unwrap();
        unlink(fd, b"second").unwrap();
        unlink(fd, name).unwrap();
    }
}

#[test]
fn mknod_makes_each_kind_with_its_device() {
    if !privileged("mknod_makes_each_kind_with_its_device") {
        return;
    }
    let dir = Dir::new();
    // The most that xfs takes: 9 and 18 bits.
    let big = makedev(0x1ff, 0x3ffff);
    let table = [
        (Kind::File, 0, Ok(0)),
        (Kind::Fifo, 0, Ok(0)),
        (Kind::Socket, 0, Ok(0)),
        (Kind::Char, makedev(1, 3), Ok(makedev(1, 3))),
        (Kind::Char, 0, Ok(0)),
        (Kind::Block, big, Ok(big)),
        (Kind::Dir, 0, Err(Errno::PERM)),
        (Kind::Symlink, 0, Err(Errno::INVAL)),
    ];
    for (kind, rdev, expected) in table {
        let made = mknod(dir.as_fd(), b"n", kind, 0o600, rdev);
        let found = made.and_then(|()| stat(At::Name(dir.as_fd(), b"n")));
        assert_eq!(found.map(|found| found.rdev), expected, "{kind:?} {rdev:x}");
        if let Ok(found) = found {
            assert_eq!((found.kind, found.mode), (kind, 0o600));
            unlink(dir.as_fd(), b"n").unwrap();
        }
    }
}

#[test]
fn create_does_not_go_through_a_dangling_symlink() {
    let dir = Dir::new();
    symlink(dir.as_fd(), b"link", b"target").unwrap();
    assert_eq!(create(dir.as_fd(), b"link", 0o644).err(), Some(Errno::EXIST));
    assert!(!dir.join("target").exists());
    assert_eq!(symlink(dir.as_fd(), b"empty", b""), Err(Errno::NOENT));
}

#[test]
fn a_tmpfile_gets_its_name_by_link() {
    let dir = Dir::new();
    let file = tmpfile(dir.as_fd()).unwrap();
    pwrite(file.as_fd(), b"data", 0).unwrap();
    let found = stat(At::Fd(file.as_fd())).unwrap();
    assert_eq!((found.mode, found.nlink), (0o600, 0));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    link(At::Fd(file.as_fd()), dir.as_fd(), b"f").unwrap();
    assert_eq!(link(At::Fd(file.as_fd()), dir.as_fd(), b"f"), Err(Errno::EXIST));
    assert_eq!(fs::read(dir.join("f")).unwrap(), b"data");
}

#[test]
fn link_names_a_symlink_itself() {
    let dir = Dir::new();
    fs::write(dir.join("target"), b"").unwrap();
    symlink(dir.as_fd(), b"link", b"target").unwrap();
    link(At::Name(dir.as_fd(), b"link"), dir.as_fd(), b"by-name").unwrap();
    let fd = open_path(At::Name(dir.as_fd(), b"link")).unwrap();
    link(At::Fd(fd.as_fd()), dir.as_fd(), b"by-fd").unwrap();
    for name in [b"by-name".as_slice(), b"by-fd"] {
        assert_eq!(readlink(At::Name(dir.as_fd(), name)).unwrap(), b"target");
    }
    assert_eq!(stat(At::Fd(fd.as_fd())).unwrap().nlink, 3);
}

#[test]
fn link_of_a_directory_or_of_a_removed_file_fails() {
    let dir = Dir::new();
    assert_eq!(link(At::Fd(dir.as_fd()), dir.as_fd(), b"d"), Err(Errno::PERM));
    let gone = create(dir.as_fd(), b"f", 0o600).unwrap();
    unlink(dir.as_fd(), b"f").unwrap();
    assert_eq!(link(At::Fd(gone.as_fd()), dir.as_fd(), b"g"), Err(Errno::NOENT));
}

#[test]
fn unlink_and_rmdir_keep_to_their_kinds() {
    let dir = Dir::new();
    mkdir(dir.as_fd(), b"d", 0o755).unwrap();
    create(dir.as_fd(), b"f", 0o644).unwrap();
    assert_eq!(unlink(dir.as_fd(), b"d"), Err(Errno::ISDIR));
    assert_eq!(rmdir(dir.as_fd(), b"f"), Err(Errno::NOTDIR));
    fs::write(dir.join("d/x"), b"").unwrap();
    assert_eq!(rmdir(dir.as_fd(), b"d"), Err(Errno::NOTEMPTY));
}

#[test]
fn rename_obeys_its_flags() {
    let dir = Dir::new();
    let fd = dir.as_fd();
    fs::write(dir.join("a"), b"a").unwrap();
    fs::write(dir.join("b"), b"b").unwrap();
    assert_eq!(rename(fd, b"a", fd, b"b", RenameFlags::NOREPLACE), Err(Errno::EXIST));
    rename(fd, b"a", fd, b"b", RenameFlags::EXCHANGE).unwrap();
    assert_eq!(fs::read(dir.join("a")).unwrap(), b"b");
    rename(fd, b"a", fd, b"b", RenameFlags::WHITEOUT).unwrap();
    assert_eq!(fs::read(dir.join("b")).unwrap(), b"b");
    let left = stat(At::Name(fd, b"a")).unwrap();
    assert_eq!((left.kind, left.rdev), (Kind::Char, 0));
}

#[test]
fn link_of_a_descriptor_needs_no_capability() {
    if !privileged("link_of_a_descriptor_needs_no_capability") {
        return;
    }
    let dir = Dir::new();
    fs::write(dir.join("f"), b"").unwrap();
    symlink(dir.as_fd(), b"l", b"f").unwrap();
    let file = open_path(At::Name(dir.as_fd(), b"f")).unwrap();
    let symlink = open_path(At::Name(dir.as_fd(), b"l")).unwrap();
    // Capabilities are each thread's own, and every test has a thread.
    let mut sets = rustix::thread::capabilities(None).unwrap();
    sets.effective = rustix::thread::CapabilitySet::empty();
    rustix::thread::set_capabilities(None, sets).unwrap();
    assert_eq!(rustix::fs::linkat(&file, c"", &dir, c"direct", AtFlags::EMPTY_PATH), Err(Errno::NOENT), "or the detour is not tested");
    link(At::Fd(file.as_fd()), dir.as_fd(), b"g").unwrap();
    link(At::Fd(symlink.as_fd()), dir.as_fd(), b"m").unwrap();
    assert_eq!(readlink(At::Name(dir.as_fd(), b"m")).unwrap(), b"f");
    assert_eq!(stat(At::Fd(file.as_fd())).unwrap().nlink, 2);
}
