//! What the kernel may remember, that it does, and that it is told when it is true no more.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use plyfs_fuse::{Op, ServeOptions};
use plyfs_overlay::Behaviour;

use crate::lab::{Lab, eventually};

/// Requests that a warm tree does not cause.
const ASKING: [Op; 4] = [Op::Lookup, Op::GetAttr, Op::ReadDir, Op::ReadDirPlus];

/// Stats everything, as find does; the number of directories and of all objects.
fn walk(path: &Path) -> (u64, u64) {
    let (mut dirs, mut all) = (1, 1);
    fs::symlink_metadata(path).unwrap();
    for entry in fs::read_dir(path).unwrap() {
        let entry = entry.unwrap();
        let meta = entry.metadata().unwrap();
        if meta.is_dir() {
            let below = walk(&entry.path());
            dirs += below.0;
            all += below.1;
        } else {
            all += 1;
        }
    }
    (dirs, all)
}

fn tree(root: &Path, dirs: usize, files: usize) {
    for d in 0..dirs {
        let dir = root.join(format!("d{d}"));
        fs::create_dir_all(dir.join("sub")).unwrap();
        for f in 0..files {
            File::create(dir.join(format!("f{f}"))).unwrap();
        }
    }
}

#[test]
fn a_warm_walk_asks_for_nothing() {
    let Some(lab) = Lab::new("a_warm_walk_asks_for_nothing", |lower| tree(lower, 20, 40)) else { return };
    tree(&lab.mnt("d3"), 2, 5);
    let count = |op: Op| lab.count(op);
    let cold = walk(&lab.mnt(""));
    let before = ASKING.map(count);
    assert_eq!(walk(&lab.mnt("")), cold);
    let second = ASKING.map(count);
    // Reading a directory changes its atime, which the first stat after it asks for: that once.
    assert_eq!([before[0], before[2], before[3]], [second[0], second[2], second[3]]);
    assert!(second[1] - before[1] <= cold.0, "{} GETATTR for {} directories", second[1] - before[1], cold.0);
    eventually("all directories are closed", || count(Op::OpenDir) == count(Op::ReleaseDir));
    let opens = (count(Op::OpenDir), lab.counters().total());
    assert_eq!(walk(&lab.mnt("")), cold);
    assert_eq!(ASKING.map(count), second, "{:?}", lab.counters().seen().collect::<Vec<_>>());
    assert_eq!(count(Op::OpenDir) - opens.0, cold.0);
    eventually("one OPENDIR and one RELEASEDIR a directory and nothing else", || lab.counters().total() - opens.1 == 2 * cold.0);
    lab.finish();
}

#[test]
fn a_warm_file_is_read_without_asking() {
    let Some(lab) = Lab::new("a_warm_file_is_read_without_asking", |lower| fs::write(lower.join("f"), vec![7; 300_000]).unwrap()) else {
        return;
    };
    assert_eq!(fs::read(lab.mnt("f")).unwrap(), vec![7; 300_000]);
    let reads = lab.count(Op::Read);
    assert!(reads > 0);
    for _ in 0..3 {
        assert_eq!(fs::read(lab.mnt("f")).unwrap(), vec![7; 300_000]);
    }
    // Nor after a copy-up: the pages are as good.
    drop(OpenOptions::new().append(true).open(lab.mnt("f")).unwrap());
    assert_eq!(fs::read(lab.mnt("f")).unwrap(), vec![7; 300_000]);
    assert_eq!(lab.count(Op::Read), reads);
    lab.finish();
}

#[test]
fn an_absent_name_is_asked_for_once_until_it_is_made() {
    let Some(lab) = Lab::new("an_absent_name_is_asked_for_once_until_it_is_made", |_| {}) else { return };
    for _ in 0..5 {
        assert!(!lab.mnt("x").exists());
        assert!(!lab.mnt("y").exists());
    }
    assert_eq!(lab.count(Op::Lookup), 2);
    fs::write(lab.mnt("x"), "here").unwrap();
    fs::create_dir(lab.mnt("y")).unwrap();
    assert_eq!(fs::read(lab.mnt("x")).unwrap(), b"here");
    fs::rename(lab.mnt("x"), lab.mnt("y/x")).unwrap();
    assert!(!lab.mnt("x").exists());
    assert!(lab.mnt("y/x").exists());
    fs::remove_file(lab.mnt("y/x")).unwrap();
    assert!(!lab.mnt("y/x").exists());
    fs::write(lab.mnt("y/x"), "again").unwrap();
    assert_eq!(fs::read(lab.mnt("y/x")).unwrap(), b"again");
    lab.finish();
}

#[test]
fn a_listing_follows_every_change() {
    let Some(lab) = Lab::new("a_listing_follows_every_change", |lower| tree(lower, 1, 3)) else { return };
    let list = || {
        let mut names: Vec<_> =
            fs::read_dir(lab.mnt("d0")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names.join(" ")
    };
    assert_eq!(list(), "f0 f1 f2 sub");
    assert_eq!(list(), "f0 f1 f2 sub");
    File::create(lab.mnt("d0/new")).unwrap();
    assert_eq!(list(), "f0 f1 f2 new sub");
    fs::remove_file(lab.mnt("d0/f1")).unwrap();
    assert_eq!(list(), "f0 f2 new sub");
    fs::rename(lab.mnt("d0/f0"), lab.mnt("d0/zero")).unwrap();
    assert_eq!(list(), "f2 new sub zero");
    fs::rename(lab.mnt("d0/f2"), lab.mnt("gone")).unwrap();
    fs::remove_dir(lab.mnt("d0/sub")).unwrap();
    assert_eq!(list(), "new zero");
    fs::hard_link(lab.mnt("gone"), lab.mnt("d0/f2")).unwrap();
    assert_eq!(list(), "f2 new zero");
    // Made anew, it does not show what lay below the old one.
    fs::remove_dir_all(lab.mnt("d0")).unwrap();
    fs::create_dir(lab.mnt("d0")).unwrap();
    assert_eq!(list(), "");
    lab.finish();
}

#[test]
fn attributes_after_a_copy_up_are_the_uppers() {
    let Some(lab) = Lab::new("attributes_after_a_copy_up_are_the_uppers", |lower| {
        fs::create_dir(lower.join("d")).unwrap();
        fs::write(lower.join("d/f"), "text").unwrap();
    }) else {
        return;
    };
    let told = |path: &Path| {
        let meta = fs::metadata(path).unwrap();
        (meta.ctime(), meta.ctime_nsec(), meta.mtime_nsec(), meta.mode(), meta.size())
    };
    let (file, dir) = (lab.mnt("d/f"), lab.mnt("d"));
    let before = (told(&file), told(&dir), fs::metadata(&file).unwrap().ino(), fs::metadata(&dir).unwrap().ino());
    drop(OpenOptions::new().append(true).open(&file).unwrap());
    eventually("the file's attributes are the upper's", || told(&file) == told(&lab.upper("d/f")));
    eventually("the parent's, too", || told(&dir) == told(&lab.upper("d")));
    assert_eq!((before.2, before.3), (fs::metadata(&file).unwrap().ino(), fs::metadata(&dir).unwrap().ino()));
    assert_eq!(before.1.2, told(&dir).2, "a copy-up below changes no mtime");
    lab.finish();
}

#[test]
fn attributes_follow_their_changes_at_once() {
    let Some(lab) = Lab::new("attributes_follow_their_changes_at_once", |lower| tree(lower, 1, 1)) else { return };
    let path = lab.mnt("d0/f0");
    let stat = || fs::metadata(&path).unwrap();
    assert_eq!(stat().size(), 0);
    fs::write(&path, "12345").unwrap();
    assert_eq!(stat().size(), 5);
    let before = stat();
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    assert_eq!(stat().mode() & 0o7777, 0o600);
    assert_ne!((stat().ctime(), stat().ctime_nsec()), (before.ctime(), before.ctime_nsec()));
    std::os::unix::fs::chown(&path, Some(12), Some(34)).unwrap();
    assert_eq!((stat().uid(), stat().gid()), (12, 34));
    let dir = || fs::metadata(lab.mnt("d0")).unwrap();
    let before = dir();
    File::create(lab.mnt("d0/new")).unwrap();
    assert!((dir().mtime(), dir().mtime_nsec()) > (before.mtime(), before.mtime_nsec()));
    lab.finish();
}

#[test]
fn live_lowers_are_looked_at_again() {
    let behaviour = Behaviour { volatile: true, live_lowers: true, ..Behaviour::default() };
    let Some(lab) = Lab::with("live_lowers_are_looked_at_again", ServeOptions::live(), behaviour, |lower| {
        fs::create_dir(lower.join("d")).unwrap();
        fs::write(lower.join("d/f"), "old").unwrap();
    }) else {
        return;
    };
    assert_eq!(fs::read(lab.mnt("d/f")).unwrap(), b"old");
    assert!(!lab.mnt("d/new").exists());
    assert_eq!(fs::read_dir(lab.mnt("d")).unwrap().count(), 1);
    fs::write(lab.lower("d/f"), "other").unwrap();
    fs::write(lab.lower("d/new"), "new").unwrap();
    eventually("a changed file", || fs::read(lab.mnt("d/f")).unwrap() == b"other" && fs::metadata(lab.mnt("d/f")).unwrap().len() == 5);
    eventually("a new name", || lab.mnt("d/new").exists());
    eventually("a new entry", || fs::read_dir(lab.mnt("d")).unwrap().count() == 2);
    fs::remove_file(lab.lower("d/new")).unwrap();
    eventually("a removed name", || !lab.mnt("d/new").exists());
    lab.finish();
}
