//! Making, attaching and ending mounts.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread;

use plyfs_fuse::{Error, ServeOptions, serve};
use plyfs_overlay::{Behaviour, DirTree, Layer, LayerStack, Union};
use plyfs_sys::Errno;
use plyfs_sys::mount::{FuseOptions, mounts, move_mount, umount};

use crate::lab::{Lab, SOON, can_mount, eventually, fuse_options, open_dir, union_of, unmount};

fn is_mounted(path: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    mounts().unwrap().iter().any(|mount| mount.mountpoint == path.as_os_str().as_bytes())
}

#[test]
fn a_clean_unmount_leaves_nothing_behind() {
    let Some(lab) = Lab::new("a_clean_unmount_leaves_nothing_behind", |lower| fs::write(lower.join("f"), "x").unwrap()) else { return };
    let mnt = lab.mnt("");
    let table = mounts().unwrap();
    let ours = table.iter().find(|mount| {
        mount.source == b"plyfs-test" && mnt.as_os_str() == std::ffi::OsStr::new(std::str::from_utf8(&mount.mountpoint).unwrap())
    });
    assert_eq!(ours.unwrap().fstype, b"fuse.plyfs");
    // In use: refused, and everything goes on.
    let mut file = File::create(lab.mnt("new")).unwrap();
    let error = lab.served().unmount(false).unwrap_err();
    assert!(matches!(&error, Error::Unmount { errno: Errno::BUSY, .. }), "{error}");
    file.write_all(b"data").unwrap();
    drop(file);
    let union = lab.union.clone();
    let dir = lab.finish();
    assert!(!is_mounted(&mnt));
    assert_eq!(fs::read_dir(&mnt).unwrap().count(), 0);
    assert_eq!(fs::read(dir.path().join("upper/new")).unwrap(), b"data");
    assert_eq!(union.inodes(), 1);
    drop(union);
    // The locks on upper and workdir are gone: the next union takes them.
    drop(union_of(dir.path(), Behaviour::default()));
}

#[test]
fn a_detached_unmount_serves_its_last_user_to_the_end() {
    let Some(lab) = Lab::new("a_detached_unmount_serves_its_last_user_to_the_end", |lower| fs::write(lower.join("f"), "x").unwrap()) else {
        return;
    };
    let mut file = File::create(lab.mnt("new")).unwrap();
    lab.served().unmount(true).unwrap();
    assert!(!is_mounted(&lab.mnt("")));
    assert!(!lab.served().is_finished());
    file.write_all(b"still here").unwrap();
    assert_eq!(fs::read(lab.upper("new")).unwrap(), b"still here");
    drop(file);
    eventually("the session ends with its last user", || lab.served().is_finished());
    // Nothing is left to unmount, and saying so again is no error.
    lab.finish();
}

#[test]
fn a_mount_that_others_unmounted_is_gone_and_no_error() {
    let Some(lab) = Lab::new("a_mount_that_others_unmounted_is_gone_and_no_error", |_| {}) else { return };
    umount(lab.mnt(""), false).unwrap();
    eventually("the session ends", || lab.served().is_finished());
    lab.finish();
}

#[test]
fn a_mount_over_ours_is_not_unmounted_in_its_stead() {
    let Some(lab) = Lab::new("a_mount_over_ours_is_not_unmounted_in_its_stead", |_| {}) else { return };
    let cover = plyfs_sys::mount::tmpfs(&plyfs_sys::mount::TmpfsOptions::default(), plyfs_sys::mount::MountAttrFlags::empty()).unwrap();
    plyfs_sys::mount::move_mount_path(cover.as_fd(), lab.mnt("")).unwrap();
    drop(cover);
    let refused = lab.served().unmount(false);
    umount(lab.mnt(""), false).unwrap();
    assert!(matches!(refused, Err(Error::Covered(_))), "{refused:?}");
    lab.finish();
}

#[test]
fn a_mount_that_is_never_attached_ends_when_dropped() {
    if !can_mount("a_mount_that_is_never_attached_ends_when_dropped") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for name in ["lower", "upper", "work"] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    let union = Arc::new(union_of(dir.path(), Behaviour::default()));
    let served = serve(union, &fuse_options(), ServeOptions::default()).unwrap();
    assert!(!served.is_finished());
    let (done, ended) = mpsc::channel();
    thread::spawn(move || done.send(served.join()));
    ended.recv_timeout(SOON).unwrap().unwrap();
}

#[test]
fn the_mount_can_be_attached_elsewhere_by_its_descriptor() {
    if !can_mount("the_mount_can_be_attached_elsewhere_by_its_descriptor") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for name in ["lower", "upper", "work", "here"] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    fs::write(dir.path().join("lower/f"), "text").unwrap();
    let here = dir.path().join("here");
    let served = serve(Arc::new(union_of(dir.path(), Behaviour::default())), &fuse_options(), ServeOptions::default()).unwrap();
    // A failure leaves it detached, to be tried again.
    assert_eq!(served.attach_with(|_| Err("no")).unwrap(), Err("no"));
    let error = served.attach(&dir.path().join("missing")).unwrap_err();
    assert!(matches!(error, Error::Attach { errno: Errno::NOENT, .. }), "{error}");
    let target = open_dir(&here);
    served.attach_with(|mount| move_mount(mount, target.as_fd())).unwrap().unwrap();
    drop(target);
    assert_eq!(fs::read(here.join("f")).unwrap(), b"text");
    assert!(matches!(served.attach(&here), Err(Error::Attached)));
    assert!(served.take_mount().is_none());
    // Whoever attached it unmounts it.
    unmount(&served);
    assert!(is_mounted(&here));
    umount(&here, false).unwrap();
    served.join().unwrap();
}

#[test]
fn a_union_without_an_upper_is_read_only() {
    if !can_mount("a_union_without_an_upper_is_read_only") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for name in ["a", "b", "mnt"] {
        fs::create_dir(dir.path().join(name)).unwrap();
        fs::write(dir.path().join(name).join(name), name).unwrap();
    }
    let mnt = dir.path().join("mnt");
    let lowers = ["a", "b"].map(|name| Layer::trusted(DirTree::lower(&dir.path().join(name)).unwrap()));
    let union = Union::new(LayerStack { upper: None, lowers: Box::new(lowers) }, Behaviour::default()).unwrap();
    // Permissions are checked by somebody whatever is asked for.
    let options = FuseOptions { read_only: union.is_read_only(), default_permissions: false, ..fuse_options() };
    let served = serve(Arc::new(union), &options, ServeOptions::default()).unwrap();
    served.attach(&mnt).unwrap();
    let table = mounts().unwrap();
    let shown = table.iter().find(|mount| Path::new(std::str::from_utf8(&mount.mountpoint).unwrap()) == mnt).cloned();
    let read = (fs::read(mnt.join("a")), fs::read(mnt.join("b")));
    let written = fs::write(mnt.join("a"), "x");
    unmount(&served);
    served.join().unwrap();
    assert_eq!((read.0.unwrap(), read.1.unwrap()), (b"a".to_vec(), b"b".to_vec()));
    let shown = shown.unwrap();
    assert!(shown.is_read_only() && shown.has_super_option(b"default_permissions"), "{shown:?}");
    assert_eq!(Errno::from_io_error(&written.unwrap_err()), Some(Errno::ROFS));
}
