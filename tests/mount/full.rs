//! A filesystem without space: what can be removed there.

use std::fs::{self, File};
use std::path::Path;

use plyfs_sys::Errno;

use crate::lab::{self, Lab, errno};

/// Takes all inodes and all bytes of the filesystem that `dir` is on.
fn fill(dir: &Path) {
    let filler = dir.join("filler");
    fs::create_dir(&filler).unwrap();
    let space = File::create(filler.join("space")).unwrap();
    let mut end = 0;
    let mut take_space = || {
        // What was freed is there only after it was committed: until nothing comes any more.
        for size in [1 << 24, 1 << 20, 1 << 16, 1 << 12, 1 << 12] {
            while rustix::fs::fallocate(&space, rustix::fs::FallocateFlags::empty(), end, size).is_ok() {
                end += size;
            }
            rustix::fs::syncfs(&space).unwrap();
        }
    };
    // Inodes first, where they are counted: later there is no space for their names. xfs makes them of free space, as long as there is some.
    for round in 0..3 {
        let most = if round == 0 { 10_000 } else { 100_000 };
        let taken = (0..most).find_map(|number| File::create(filler.join(format!("{round}.{number}"))).err());
        let errno = taken.and_then(|error| Errno::from_io_error(&error));
        assert!(errno == Some(Errno::NOSPC) || round == 0, "{}: {errno:?}", dir.display());
        take_space();
    }
}

/// Prepares a lower and an upper, fills the filesystem, and removes everything there is, of every kind.
///
/// `each_takes_an_inode`: also a further name of one object, so that of what only a lower holds a few can go before anything else goes.
fn removes_everything(mut lab: Lab, place: &Path, each_takes_an_inode: bool) {
    let few = 12;
    lab.live_on(place);
    for number in 0..60 {
        lab.write_lower(&format!("in-upper/lower{number}"), "lower");
        lab.write_lower(&format!("in-upper/changed{number}"), "lower");
        lab.write_lower(&format!("in-upper/dir{number}/file"), "lower");
    }
    for number in 0..3 {
        lab.write_lower(&format!("not-in-upper/a/b/c/d/e{number}/f/g/file"), "lower");
    }
    lab.mount();
    for number in 0..60 {
        fs::write(lab.mnt(&format!("in-upper/changed{number}")), "changed").unwrap();
        fs::write(lab.mnt(&format!("in-upper/new{number}")), "new").unwrap();
        fs::create_dir(lab.mnt(&format!("in-upper/new-dir{number}"))).unwrap();
    }
    for number in 0..20 {
        fs::write(lab.mnt(&format!("in-upper/dir{number}/file")), "changed").unwrap();
    }
    fill(place);
    assert_eq!(errno(File::create(lab.mnt("in-upper/one-more"))), Some(Errno::NOSPC), "{}", place.display());
    // One kind after the other: what goes first frees nothing that the next could need.
    let remove = |path: &str| fs::remove_file(lab.mnt(path)).unwrap_or_else(|error| panic!("{}, {path}: {error}", place.display()));
    let remove_dir = |path: &str| fs::remove_dir_all(lab.mnt(path)).unwrap_or_else(|error| panic!("{}, {path}: {error}", place.display()));
    let remove_lowers = |from: usize| {
        (from..60).for_each(|number| remove(&format!("in-upper/lower{number}")));
        (20..60).for_each(|number| remove_dir(&format!("in-upper/dir{number}")));
        remove_dir("not-in-upper");
    };
    (0..few).for_each(|number| remove(&format!("in-upper/lower{number}")));
    if !each_takes_an_inode {
        remove_lowers(few);
    }
    (0..60).for_each(|number| remove(&format!("in-upper/changed{number}")));
    (0..20).for_each(|number| remove_dir(&format!("in-upper/dir{number}")));
    for number in 0..60 {
        remove(&format!("in-upper/new{number}"));
        remove_dir(&format!("in-upper/new-dir{number}"));
    }
    if each_takes_an_inode {
        remove_lowers(few);
    }
    assert_eq!(lab::names(&lab.mnt("in-upper")), [""; 0]);
    assert_eq!(lab::names(&lab.mnt("")), ["in-upper"]);
    lab.remount();
    assert_eq!(lab::names(&lab.mnt("in-upper")), [""; 0]);
    assert_eq!(lab::names(&lab.mnt("")), ["in-upper"]);
    fs::remove_dir_all(place.join("filler")).unwrap();
    lab.unmount();
}

#[test]
fn everything_can_be_removed_where_no_space_is_left() {
    for (name, mkfs) in [
        // With small blocks a directory needs more of them soon.
        ("ext4", &["ext4", "-q", "-m", "0", "-N", "4096", "-b", "1024"][..]),
        ("xfs", &["xfs", "-q", "-m", "crc=1"]),
    ] {
        let mut lab = lab::lab!("mkfs.ext4", "mkfs.xfs");
        let place = lab.image(name, mkfs);
        removes_everything(lab, &place, false);
    }
    let mut lab = lab::lab!();
    let place = lab.tmpfs("tmpfs", "size=16m,nr_inodes=4096");
    removes_everything(lab, &place, true);
}
