//! Names, directories and attributes through the mount.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::Path;

use plyfs_fuse::Op;
use plyfs_sys::at::{At, XattrMode, get_xattr, list_xattr, remove_xattr, set_xattr};
use plyfs_sys::create::{mknod, rename};
use plyfs_sys::stat::{Kind, makedev};
use plyfs_sys::{Errno, RenameFlags};

use crate::lab::{Lab, eventually, open_dir, sh};

fn listing(path: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_directory_of_ten_thousand_shows_each_entry_once() {
    const FILES: usize = 10_000;
    let Some(lab) = Lab::new("a_directory_of_ten_thousand_shows_each_entry_once", |lower| {
        fs::create_dir(lower.join("d")).unwrap();
        for at in 0..FILES / 2 {
            File::create(lower.join(format!("d/lower-{at}"))).unwrap();
        }
    }) else {
        return;
    };
    fs::remove_file(lab.mnt("d/lower-7")).unwrap();
    for at in 0..FILES / 2 + 1 {
        File::create(lab.mnt(&format!("d/upper-{at}"))).unwrap();
    }
    for round in 0..3 {
        let mut seen = BTreeSet::new();
        for entry in fs::read_dir(lab.mnt("d")).unwrap() {
            let entry = entry.unwrap();
            assert!(seen.insert(entry.file_name()), "{:?} twice", entry.file_name());
            assert_eq!(std::os::unix::fs::DirEntryExt::ino(&entry), entry.metadata().unwrap().ino());
        }
        assert_eq!(seen.len(), FILES, "round {round}");
        assert!(!seen.contains(OsStr::new("lower-7")));
    }
    // All look-ups that READDIRPLUS counted are taken back when the names go: none was counted for what did not fit, or for `.` and `..`.
    assert!(lab.count(Op::ReadDirPlus) > 0);
    assert!(lab.union.inodes() > FILES);
    sh(&lab.mnt(""), "rm -r d");
    eventually("all inodes are forgotten", || lab.union.inodes() <= 2);
    lab.finish();
}

#[test]
fn names_are_bytes_up_to_255() {
    let Some(lab) = Lab::new("names_are_bytes_up_to_255", |_| {}) else { return };
    let dir = lab.mnt("");
    for name in [&[b'n'; 255][..], b"\xff\xfe", b"new\nline", b" ", b"...", b".wh.x", b"-rf *"] {
        let path = dir.join(OsStr::from_bytes(name));
        fs::write(&path, name).unwrap();
        assert_eq!(fs::read(&path).unwrap(), name);
        assert!(fs::read_dir(&dir).unwrap().any(|entry| entry.unwrap().file_name().as_bytes() == name));
        fs::remove_file(&path).unwrap();
        assert!(!path.exists());
    }
    for long in [256, 1000] {
        let error = fs::metadata(dir.join("n".repeat(long))).unwrap_err();
        assert_eq!(Errno::from_io_error(&error), Some(Errno::NAMETOOLONG), "{long}");
    }
    lab.finish();
}

#[test]
fn renames_move_replace_refuse_and_exchange() {
    let Some(lab) = Lab::new("renames_move_replace_refuse_and_exchange", |lower| {
        fs::create_dir(lower.join("d")).unwrap();
        fs::write(lower.join("d/a"), "a").unwrap();
        fs::write(lower.join("b"), "b").unwrap();
    }) else {
        return;
    };
    let dir = open_dir(&lab.mnt(""));
    let go = |from: &str, to: &str, flags| rename(dir.as_fd(), from.as_bytes(), dir.as_fd(), to.as_bytes(), flags);
    fs::rename(lab.mnt("d/a"), lab.mnt("a")).unwrap();
    assert_eq!((listing(&lab.mnt("")), listing(&lab.mnt("d"))), (vec!["a".to_owned(), "b".to_owned(), "d".to_owned()], vec![]));
    assert_eq!(go("a", "b", RenameFlags::NOREPLACE), Err(Errno::EXIST));
    go("a", "b", RenameFlags::EXCHANGE).unwrap();
    assert_eq!((fs::read(lab.mnt("a")).unwrap(), fs::read(lab.mnt("b")).unwrap()), (b"b".to_vec(), b"a".to_vec()));
    go("a", "c", RenameFlags::NOREPLACE).unwrap();
    go("c", "b", RenameFlags::empty()).unwrap();
    assert_eq!(listing(&lab.mnt("")), ["b", "d"]);
    assert_eq!(fs::read(lab.mnt("b")).unwrap(), b"b");
    assert_eq!(go("b", "e", RenameFlags::WHITEOUT | RenameFlags::EXCHANGE), Err(Errno::INVAL));
    assert_eq!(go("b", "d", RenameFlags::WHITEOUT | RenameFlags::NOREPLACE), Err(Errno::EXIST));
    go("b", "e", RenameFlags::WHITEOUT).unwrap();
    let left = fs::metadata(lab.mnt("b")).unwrap();
    assert!(left.file_type().is_char_device() && left.rdev() == 0 && left.mode() & 0o7777 == 0);
    go("e", "b", RenameFlags::empty()).unwrap();
    fs::rename(lab.mnt("d"), lab.mnt("e")).unwrap();
    assert_eq!(listing(&lab.mnt("")), ["b", "e"]);
    assert_eq!(fs::read(lab.lower("d/a")).unwrap(), b"a");
    drop(dir);
    lab.finish();
}

#[test]
fn hard_links_are_one_file_with_one_number_and_a_right_count() {
    let Some(lab) = Lab::new("hard_links_are_one_file_with_one_number_and_a_right_count", |lower| {
        fs::write(lower.join("a"), "text").unwrap();
        fs::hard_link(lower.join("a"), lower.join("b")).unwrap();
    }) else {
        return;
    };
    let stat = |name: &str| {
        let meta = fs::metadata(lab.mnt(name)).unwrap();
        (meta.ino(), meta.nlink())
    };
    let (number, links) = stat("a");
    assert_eq!(links, 2);
    assert_eq!(stat("b"), (number, 2));
    fs::hard_link(lab.mnt("a"), lab.mnt("c")).unwrap();
    eventually("all names count three links", || ["a", "b", "c"].map(stat) == [(number, 3); 3]);
    fs::write(lab.mnt("b"), "changed").unwrap();
    for name in ["a", "b", "c"] {
        assert_eq!(fs::read(lab.mnt(name)).unwrap(), b"changed", "{name}");
    }
    fs::remove_file(lab.mnt("a")).unwrap();
    assert_eq!(["b", "c"].map(stat), [(number, 2); 2]);
    fs::rename(lab.mnt("b"), lab.mnt("a")).unwrap();
    fs::remove_file(lab.mnt("c")).unwrap();
    assert_eq!(stat("a"), (number, 1));
    assert_eq!(fs::read(lab.lower("a")).unwrap(), b"text");
    lab.finish();
}

#[test]
fn xattrs_of_all_sizes_pass_and_modes_are_kept_apart() {
    let Some(lab) = Lab::new("xattrs_of_all_sizes_pass_and_modes_are_kept_apart", |lower| {
        File::create(lower.join("f")).unwrap();
    }) else {
        return;
    };
    let dir = open_dir(&lab.mnt(""));
    let at = At::Name(dir.as_fd(), b"f");
    for len in [0, 1, 511, 512, 513, 3000] {
        let value = vec![b'v'; len];
        set_xattr(at, b"user.a", &value, XattrMode::Any).unwrap();
        assert_eq!(get_xattr(at, b"user.a").unwrap(), value);
    }
    assert_eq!(set_xattr(at, b"user.a", b"", XattrMode::Create), Err(Errno::EXIST));
    assert_eq!(set_xattr(at, b"user.b", b"", XattrMode::Replace), Err(Errno::NODATA));
    set_xattr(at, b"trusted.t", b"1", XattrMode::Create).unwrap();
    let mut names = list_xattr(at).unwrap();
    names.sort();
    assert_eq!(names, [b"trusted.t".to_vec(), b"user.a".to_vec()]);
    // Marks are neither seen nor made.
    assert_eq!(get_xattr(at, b"trusted.overlay.origin"), Err(Errno::NODATA));
    remove_xattr(at, b"user.a").unwrap();
    assert_eq!(get_xattr(at, b"user.a"), Err(Errno::NODATA));
    assert_eq!(remove_xattr(at, b"user.a"), Err(Errno::NODATA));
    // Asked with room for too little.
    set_xattr(at, b"user.a", b"0123456789", XattrMode::Any).unwrap();
    assert_eq!(sh(&lab.mnt(""), "getfattr --only-values -n user.a f"), "0123456789");
    drop(dir);
    lab.finish();
}

#[test]
fn special_files_keep_their_kind_and_number() {
    let Some(lab) = Lab::new("special_files_keep_their_kind_and_number", |lower| {
        let dir = open_dir(lower);
        mknod(dir.as_fd(), b"lower", Kind::Block, 0o600, makedev(8, 300)).unwrap();
    }) else {
        return;
    };
    let dir = open_dir(&lab.mnt(""));
    for (name, kind, rdev) in [
        ("char", Kind::Char, makedev(259, 0x12345)),
        ("block", Kind::Block, makedev(7, 256)),
        ("fifo", Kind::Fifo, 0),
        ("socket", Kind::Socket, 0),
        ("file", Kind::File, 0),
    ] {
        mknod(dir.as_fd(), name.as_bytes(), kind, 0o640, rdev).unwrap();
        for path in [lab.mnt(name), lab.upper(name)] {
            let meta = fs::symlink_metadata(&path).unwrap();
            assert_eq!((meta.mode() & 0o170_000, meta.rdev()), (kind.to_mode(), rdev), "{}", path.display());
        }
    }
    let lower = fs::metadata(lab.mnt("lower")).unwrap();
    assert!(lower.file_type().is_block_device());
    assert_eq!(lower.rdev(), makedev(8, 300));
    // What looks like a whiteout on disk shows as what was made.
    mknod(dir.as_fd(), b"wh", Kind::Char, 0o600, 0).unwrap();
    let made = fs::metadata(lab.mnt("wh")).unwrap();
    assert!(made.file_type().is_char_device());
    assert_eq!(made.rdev(), 0);
    symlink("target/of it", lab.mnt("link")).unwrap();
    for _ in 0..2 {
        assert_eq!(fs::read_link(lab.mnt("link")).unwrap(), Path::new("target/of it"));
    }
    assert_eq!(lab.count(Op::ReadLink), 1);
    drop(dir);
    lab.finish();
}

#[test]
fn the_umask_is_applied_once() {
    let Some(lab) = Lab::new("the_umask_is_applied_once", |lower| sh(lower, "mkdir acl").truncate(0)) else { return };
    let mode = |name: &str| format!("{:o}", fs::symlink_metadata(lab.mnt(name)).unwrap().mode() & 0o7777);
    sh(&lab.mnt(""), "umask 027; mkdir d; : > f; mkfifo p; ln -s x l");
    assert_eq!(["d", "f", "p", "l"].map(mode), ["750", "640", "640", "777"]);
    // A default ACL overrules it.
    sh(&lab.mnt(""), "setfacl -d -m g::rwx acl; umask 077; : > acl/f; mkdir acl/d");
    assert_eq!(["acl/f", "acl/d"].map(mode), ["664", "775"]);
    lab.finish();
}

#[test]
fn permissions_and_acls_are_checked_by_the_kernel() {
    let Some(lab) = Lab::new("permissions_and_acls_are_checked_by_the_kernel", |lower| {
        fs::write(lower.join("secret"), "s").unwrap();
        sh(lower, "chmod 640 secret");
    }) else {
        return;
    };
    let reads = |uid| crate::lab::sh_as(uid, &lab.mnt(""), "cat secret 2>/dev/null || echo refused");
    assert_eq!(reads(1234), "refused\n");
    sh(&lab.mnt(""), "setfacl -m u:1234:r secret");
    assert_eq!((reads(1234), reads(1235)), ("s".to_owned(), "refused\n".to_owned()));
    sh(&lab.mnt(""), "setfacl -b secret");
    assert_eq!(reads(1234), "refused\n");
    assert_eq!(lab.count(Op::Access), 0);
    lab.finish();
}

#[test]
fn statfs_is_the_uppers() {
    let Some(lab) = Lab::new("statfs_is_the_uppers", |_| {}) else { return };
    let of = |path: &Path| plyfs_sys::statfs::statfs(open_dir(path).as_fd()).unwrap();
    let (ours, upper) = (of(&lab.mnt("")), of(&lab.upper("")));
    assert_eq!((ours.blocks, ours.frsize, ours.files, ours.namelen), (upper.blocks, upper.frsize, upper.files, upper.namelen));
    lab.finish();
}

#[test]
fn what_is_not_served_is_refused_in_the_usual_way() {
    let Some(lab) = Lab::new("what_is_not_served_is_refused_in_the_usual_way", |lower| fs::write(lower.join("f"), "x").unwrap()) else {
        return;
    };
    let file = File::open(lab.mnt("f")).unwrap();
    // A terminal's.
    assert_eq!(plyfs_sys::terminal::Modes::of(file.as_fd()).err(), Some(Errno::NOTTY));
    // Locks are the kernel's own.
    plyfs_sys::io::flock_exclusive_nonblock(file.as_fd()).unwrap();
    let other = File::open(lab.mnt("f")).unwrap();
    assert_eq!(plyfs_sys::io::flock_exclusive_nonblock(other.as_fd()), Err(Errno::AGAIN));
    assert_eq!(lab.count(Op::Lock), 0);
    drop((file, other));
    lab.finish();
}

#[test]
fn the_root_has_one_number_everywhere() {
    let Some(lab) = Lab::new("the_root_has_one_number_everywhere", |lower| fs::create_dir(lower.join("d")).unwrap()) else { return };
    let number = fs::metadata(lab.mnt("")).unwrap().ino();
    assert_ne!(number, 1);
    assert_eq!(fs::metadata(lab.mnt("d/..")).unwrap().ino(), number);
    let dots = sh(&lab.mnt(""), "ls -ai | awk '$2 == \".\" { print $1 }'; ls -ai d | awk '$2 == \"..\" { print $1 }'");
    assert_eq!(dots.lines().collect::<Vec<_>>(), [number.to_string(), number.to_string()]);
    lab.finish();
}
