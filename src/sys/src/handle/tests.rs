use super::*;
use crate::at::{open_path, stat};
use crate::create::{mkdir, mknod, symlink, unlink};
use crate::root::clone_readonly;
use crate::stat::Kind;
use crate::testing::{Dir, privileged};

#[test]
fn handles_are_the_same_by_name_and_descriptor_and_differ_between_objects() {
    let dir = Dir::new();
    mkdir(dir.as_fd(), b"d", 0o755).unwrap();
    symlink(dir.as_fd(), b"l", b"d").unwrap();
    mknod(dir.as_fd(), b"p", Kind::Fifo, 0o600, 0).unwrap();
    let mut all = Vec::new();
    for name in [b"d", b"l", b"p"] {
        let by_name = At::Name(dir.as_fd(), name);
        let handle = file_handle(by_name).unwrap();
        assert_eq!(file_handle(At::Fd(open_path(by_name).unwrap().as_fd())), Ok(handle.clone()));
        assert!(!all.contains(&handle));
        all.push(handle);
    }
}

#[test]
fn a_handle_opens_through_any_descriptor_of_the_mount() {
    if !privileged("a_handle_opens_through_any_descriptor_of_the_mount") {
        return;
    }
    let dir = Dir::new();
    mknod(dir.as_fd(), b"f", Kind::File, 0o600, 0).unwrap();
    symlink(dir.as_fd(), b"l", b"f").unwrap();
    mkdir(dir.as_fd(), b"d", 0o755).unwrap();
    let clone = clone_readonly(dir.as_fd()).unwrap();
    let real = readable(dir.as_fd()).unwrap();
    for name in [b"f", b"l", b"d"] {
        let at = At::Name(dir.as_fd(), name);
        let handle = file_handle(at).unwrap();
        for mount in [dir.as_fd(), clone.as_fd(), real.as_fd()] {
            let fd = open_handle(mount, &handle).unwrap();
            assert_eq!(stat(At::Fd(fd.as_fd())), stat(at));
        }
    }
}

#[test]
fn a_handle_opened_through_a_read_only_clone_cannot_write() {
    if !privileged("a_handle_opened_through_a_read_only_clone_cannot_write") {
        return;
    }
    let dir = Dir::new();
    mknod(dir.as_fd(), b"f", Kind::File, 0o600, 0).unwrap();
    let clone = clone_readonly(dir.as_fd()).unwrap();
    let fd = open_handle(clone.as_fd(), &file_handle(At::Name(dir.as_fd(), b"f")).unwrap()).unwrap();
    assert_eq!(crate::at::open(At::Fd(fd.as_fd()), OFlags::RDWR).err(), Some(Errno::ROFS));
    assert_eq!(crate::at::chmod(At::Fd(fd.as_fd()), 0), Err(Errno::ROFS));
}

#[test]
fn a_handle_of_a_removed_object_is_stale() {
    if !privileged("a_handle_of_a_removed_object_is_stale") {
        return;
    }
    let dir = Dir::new();
    mknod(dir.as_fd(), b"f", Kind::File, 0o600, 0).unwrap();
    let handle = file_handle(At::Name(dir.as_fd(), b"f")).unwrap();
    unlink(dir.as_fd(), b"f").unwrap();
    assert_eq!(open_handle(dir.as_fd(), &handle).err(), Some(Errno::STALE));
}

#[test]
fn handles_that_no_kernel_made_are_errors() {
    let dir = Dir::new();
    for len in [0, 129, 4096] {
        let handle = FileHandle { kind: 1, bytes: vec![0xff; len] };
        assert!(open_handle(dir.as_fd(), &handle).is_err(), "{len}");
    }
    let garbage = FileHandle { kind: 1, bytes: vec![0xff; 8] };
    assert!(open_handle(dir.as_fd(), &garbage).is_err());
}

#[test]
fn filesystem_uuid_is_the_same_everywhere_on_it() {
    let dir = Dir::new();
    let uuid = fs_uuid(dir.as_fd()).unwrap();
    assert_ne!(uuid, Some([0; 16]));
    mkdir(dir.as_fd(), b"d", 0o755).unwrap();
    let sub = open_path(At::Name(dir.as_fd(), b"d")).unwrap();
    assert_eq!(fs_uuid(sub.as_fd()), Ok(uuid));
    let proc = crate::root::open_dir("/proc".as_ref()).unwrap();
    assert_eq!(fs_uuid(proc.as_fd()), Ok(None));
    assert_eq!(GET_FS_UUID, 0x8011_1500);
}
