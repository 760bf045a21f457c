#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::*;

/// Whether the test can run; says so where skips are counted if not.
fn privileged(name: &str) -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    let line = format!("{name}: needs root");
    println!("SKIP {line}");
    if let Some(log) = std::env::var_os("PLYFS_SKIP_LOG") {
        use std::io::Write;
        let mut file = fs::OpenOptions::new().append(true).create(true).open(log).unwrap();
        writeln!(file, "{line}").unwrap();
    }
    false
}

#[test]
fn mountinfo_line_is_read_field_by_field() {
    let table = b"36 35 98:0 /mnt1 /mnt2 rw,noatime shared:1 master:2 - ext3.sub /dev/root rw,errors=continue\n\
        27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard\n";
    let mounts = parse_mountinfo(table).unwrap();
    assert_eq!(mounts.len(), 2);
    let first = &mounts[0];
    assert_eq!((first.id, first.parent, first.dev), (36, 35, (98, 0)));
    assert_eq!((first.root.as_slice(), first.mountpoint.as_slice()), (&b"/mnt1"[..], &b"/mnt2"[..]));
    assert_eq!(first.optional, [b"shared:1".to_vec(), b"master:2".to_vec()]);
    assert_eq!(first.fstype, b"ext3.sub");
    assert!(first.has_option(b"noatime") && !first.has_option(b"no") && first.has_super_option(b"errors=continue"));
    assert!(!first.is_read_only());
    assert!(mounts[1].optional.is_empty());
}

#[test]
fn mountinfo_escapes_and_odd_bytes_are_undone() {
    let table = b"1 0 0:1 / /a\\040b\\011c\\012d\\134e\\04\xff ro - tmpfs none\\040x rw\n2 1 0:2 / /x rw - tmpfs  rw\n3 1 0:3 / /y rw - tmpfs none\n";
    let mounts = parse_mountinfo(table).unwrap();
    assert_eq!(mounts[0].mountpoint, b"/a b\tc\nd\\e\\04\xff");
    assert_eq!(mounts[0].source, b"none x");
    assert!(mounts[0].is_read_only());
    assert_eq!((mounts[1].source.as_slice(), mounts[1].super_options.as_slice()), (&b""[..], &b"rw"[..]));
    assert_eq!(mounts[2].super_options, b"");
}

#[test]
fn mountinfo_that_is_none_is_refused() {
    for bad in ["x", "1 2 3 / / rw - ext4 a rw", "1 2 3:4 / / rw ext4 a rw", "a 2 3:4 / / rw - ext4 a rw", "1 2 3:4 / / rw -"] {
        assert_eq!(parse_mountinfo(bad.as_bytes()), Err(Errno::BADMSG), "{bad}");
    }
}

#[test]
fn own_table_has_the_root_by_its_id() {
    let root = fs::File::open("/").unwrap();
    let id = mount_id_of(root.as_fd()).unwrap();
    assert!(mounts().unwrap().iter().any(|mount| mount.id == id && mount.mountpoint == b"/"));
}

#[test]
fn clone_made_read_only_leaves_the_original_writable() {
    if !privileged("clone_made_read_only_leaves_the_original_writable") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("f"), "x").unwrap();
    let clone = open_tree_clone_path(dir.path(), false).unwrap();
    let attr = SetAttr { set: MountAttrFlags::MOUNT_ATTR_RDONLY, propagation: Some(Propagation::Private), ..SetAttr::default() };
    mount_setattr(clone.as_fd(), &attr, true).unwrap();
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    assert_eq!(rustix::fs::openat(&clone, "f", flags, Mode::empty()).unwrap_err(), Errno::ROFS);
    fs::write(dir.path().join("f"), "y").unwrap();
    let mut text = [0; 4];
    let file = rustix::fs::openat(&clone, "f", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    assert_eq!(rustix::io::read(&file, &mut text).unwrap(), 1);
    assert_eq!(text[0], b'y');
    let back = SetAttr { clear: MountAttrFlags::MOUNT_ATTR_RDONLY, ..SetAttr::default() };
    mount_setattr(clone.as_fd(), &back, false).unwrap();
    rustix::fs::openat(&clone, "f", flags, Mode::empty()).unwrap();
    let noatime = SetAttr { set: MountAttrFlags::MOUNT_ATTR_NOATIME, ..SetAttr::default() };
    mount_setattr(clone.as_fd(), &noatime, false).unwrap();
}

#[test]
fn tmpfs_is_attached_found_and_detached() {
    if !privileged("tmpfs_is_attached_found_and_detached") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = fs::canonicalize(dir.path()).unwrap();
    let options = TmpfsOptions { source: "some thing".to_owned(), size: Some(1 << 20), mode: 0o1751, uid: Some(7), gid: Some(8) };
    let mount = tmpfs(&options, MountAttrFlags::MOUNT_ATTR_NODEV).unwrap();
    let target = rustix::fs::open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
    move_mount(mount.as_fd(), target.as_fd()).unwrap();
    let id = mount_id_of(mount.as_fd()).unwrap();
    let table = mounts().unwrap();
    let line = table.iter().find(|line| line.id == id).unwrap();
    assert_eq!(Path::new(std::str::from_utf8(&line.mountpoint).unwrap()), path);
    assert_eq!(line.source, b"some thing");
    assert!(line.has_option(b"nodev") && !line.has_option(b"nosuid") && line.has_super_option(b"size=1024k"));
    let stat = fs::metadata(&path).unwrap();
    assert_eq!((stat.mode() & 0o7777, stat.uid(), stat.gid()), (0o1751, 7, 8));
    umount_fd(mount.as_fd()).unwrap();
    assert!(!mounts().unwrap().iter().any(|line| line.id == id));
    assert_eq!(umount(&path, true), Err(Errno::INVAL));
}

#[test]
fn unknown_option_is_named_with_the_kernels_word() {
    if !privileged("unknown_option_is_named_with_the_kernels_word") {
        return;
    }
    let error = Context::open("tmpfs").unwrap().set("nonsense", "1").unwrap_err();
    assert_eq!(error.errno, Errno::INVAL);
    assert!(error.to_string().contains("nonsense=1"), "{error}");
    assert!(error.message.contains("nonsense"), "{error}");
    let error = Context::open("nosuchfs").unwrap_err();
    assert_eq!(Errno::from(error), Errno::NODEV);
}

#[test]
fn kernel_filesystems_can_be_made() {
    if !privileged("kernel_filesystems_can_be_made") {
        return;
    }
    let open = |mount: &OwnedFd, name: &str| rustix::fs::openat(mount, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    open(&procfs().unwrap(), "self").unwrap();
    open(&sysfs(true).unwrap(), "kernel").unwrap();
    open(&devpts(Some(5)).unwrap(), "ptmx").unwrap();
    mqueue().unwrap();
}

#[test]
fn fuse_mount_is_live_before_it_is_served() {
    if !privileged("fuse_mount_is_live_before_it_is_served") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = fs::canonicalize(dir.path()).unwrap();
    let options = FuseOptions {
        source: b"a source".to_vec(),
        subtype: Some("plytest".to_owned()),
        allow_other: true,
        max_read: Some(1 << 17),
        ..FuseOptions::default()
    };
    let (device, mount) = fuse_mount(&options).unwrap();
    move_mount_path(mount.as_fd(), &path).unwrap();
    let id = mount_id_of(mount.as_fd()).unwrap();
    let table = mounts().unwrap();
    let line = table.iter().find(|line| line.id == id).unwrap();
    assert_eq!((line.fstype.as_slice(), line.source.as_slice()), (&b"fuse.plytest"[..], &b"a source"[..]));
    assert!(line.has_option(b"nodev") && line.has_option(b"nosuid") && !line.has_option(b"noexec"));
    assert!(line.has_super_option(b"allow_other") && line.has_super_option(b"default_permissions"));
    // The first request is INIT (opcode 26), with nobody having looked at the mount.
    let mut request = [0_u8; 1 << 14];
    assert!(rustix::io::read(&device, &mut request).unwrap() >= 40);
    assert_eq!(u32::from_ne_bytes(request[4..8].try_into().unwrap()), 26);
    umount(&path, true).unwrap();
    assert!(!mounts().unwrap().iter().any(|line| line.id == id));
}

#[test]
fn targets_are_found_and_made_inside_the_root_only() {
    let temp = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    let (root, base) = (crate::root::open_dir(temp.path()).unwrap(), temp.path());
    std::os::unix::fs::symlink(outside.path(), base.join("abs")).unwrap();
    std::os::unix::fs::symlink("../../../../etc", base.join("up")).unwrap();
    std::os::unix::fs::symlink("/proc/self/root", base.join("magic")).unwrap();
    fs::create_dir(base.join("dir")).unwrap();
    fs::write(base.join("file"), "").unwrap();

    make_target(root.as_fd(), b"/a/../b//c/./d", true).unwrap();
    assert!(base.join("b/c/d").is_dir() && base.join("a").is_dir());
    make_target(root.as_fd(), b"dir/f", false).unwrap();
    assert_eq!(fs::metadata(base.join("dir/f")).unwrap().len(), 0);
    make_target(root.as_fd(), b"../../x/y", true).unwrap();
    assert!(base.join("x/y").is_dir());

    // Links that leave the root lead to what is in it, and here that is nothing.
    for link in ["abs", "up", "magic", "abs/x", "up/passwd"] {
        assert_eq!(make_target(root.as_fd(), link.as_bytes(), true).unwrap_err(), Errno::NOENT, "{link}");
    }
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    fs::create_dir(base.join("etc")).unwrap();
    make_target(root.as_fd(), b"up/made", false).unwrap();
    assert!(base.join("etc/made").is_file());

    assert_eq!(make_target(root.as_fd(), b"file", true).unwrap_err(), Errno::NOTDIR);
    assert_eq!(make_target(root.as_fd(), b"dir", false).unwrap_err(), Errno::ISDIR);
    assert_eq!(make_target(root.as_fd(), b"file/x", true).unwrap_err(), Errno::NOTDIR);
    let slash = crate::root::open_dir(Path::new("/")).unwrap();
    assert_eq!(resolve_in_root(slash.as_fd(), b"/proc/self/root/etc").unwrap_err(), Errno::LOOP);
}
