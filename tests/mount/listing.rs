//! Directories read while they change, and the numbers that entries and objects have.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, FileType, RenameFlags};

use crate::lab::{Lab, append, errno, lab, names, set_xattr, sh, walk};
use plyfs_sys::Errno;

#[test]
fn a_directory_of_100000_entries_is_read_while_it_is_emptied() {
    let mut lab = lab!();
    fs::create_dir(lab.lower("d")).unwrap();
    fs::create_dir(lab.upper("d")).unwrap();
    for number in 0..100_000 {
        // Most are in the upper: to delete a lower one takes a whiteout, which costs more.
        let layer = if number % 20 == 0 { lab.lower("d") } else { lab.upper("d") };
        File::create(layer.join(format!("entry {number}"))).unwrap();
    }
    lab.mount();
    let mut seen = 0;
    let mut next_gone = BTreeSet::new();
    for entry in fs::read_dir(lab.mnt("d")).unwrap() {
        let entry = entry.unwrap();
        seen += 1;
        // Every tenth goes before the listing comes to it, if it has not yet; that one may still be listed.
        let name = entry.file_name().into_string().unwrap();
        let number: usize = name.trim_start_matches("entry ").parse().unwrap();
        if !next_gone.remove(&number) {
            fs::remove_file(entry.path()).unwrap();
            if number.is_multiple_of(10) && fs::remove_file(lab.mnt(&format!("d/entry {}", number + 1))).is_ok() {
                next_gone.insert(number + 1);
            }
        }
    }
    assert!(seen + 10_000 >= 100_000, "{seen} seen");
    assert_eq!(fs::read_dir(lab.mnt("d")).unwrap().count(), 0, "of {seen}");
    fs::remove_dir(lab.mnt("d")).unwrap();
    lab.remount();
    assert_eq!(crate::lab::names(&lab.mnt("")), [""; 0]);
    lab.unmount();
}

#[test]
fn rm_rf_empties_merged_directories() {
    let mut lab = lab!();
    for number in 0..4000 {
        let file = format!("d/s{}/t{}/f{number}", number % 4, number % 10);
        if number % 3 == 0 { lab.write_upper(&file, "x") } else { lab.write_lower(&file, "x") }
    }
    lab.mount();
    sh(&lab.mnt(""), "rm -rf d; test ! -e d; mkdir d");
    lab.remount();
    assert_eq!(crate::lab::names(&lab.mnt("d")), [""; 0]);
    lab.unmount();
}

#[test]
fn entries_that_stay_are_listed_once_while_others_come_and_go() {
    let mut lab = lab!();
    for number in 0..1000 {
        let file = format!("d/stays {number}");
        if number % 2 == 0 {
            lab.write_upper(&file, "")
        } else {
            lab.write_lower(&file, "")
        }
        lab.write_lower(&format!("d/goes {number}"), "");
    }
    lab.mount();
    let end = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..1000 {
                fs::remove_file(lab.mnt(&format!("d/goes {number}"))).unwrap();
                fs::write(lab.mnt(&format!("d/comes {number}")), "").unwrap();
                if number % 3 == 0 {
                    fs::rename(lab.mnt(&format!("d/comes {number}")), lab.mnt(&format!("d/came {number}"))).unwrap();
                }
            }
            end.store(true, std::sync::atomic::Ordering::SeqCst);
        });
        loop {
            let last = end.load(std::sync::atomic::Ordering::SeqCst);
            let mut seen = BTreeMap::new();
            for entry in fs::read_dir(lab.mnt("d")).unwrap() {
                *seen.entry(entry.unwrap().file_name().into_string().unwrap()).or_insert(0) += 1;
            }
            for number in 0..1000 {
                assert_eq!(seen.get(&format!("stays {number}")), Some(&1), "stays {number}");
            }
            if last {
                assert_eq!(seen.len(), 2000);
                break;
            }
        }
    });
    lab.unmount();
}

#[test]
fn names_that_are_exchanged_or_replaced_are_listed_once() {
    let mut lab = lab!();
    for number in 0..2000 {
        let file = format!("d/{number}");
        if number % 2 == 0 { lab.write_upper(&file, "") } else { lab.write_lower(&file, "") }
    }
    lab.mount();
    for round in 0..3 {
        let mut dir = Dir::read_from(File::open(lab.mnt("d")).unwrap()).unwrap();
        let mut seen: Vec<_> = (0..3).map(|_| dir.read().unwrap().unwrap().file_name().to_str().unwrap().to_owned()).collect();
        // Those that were read, those that were not, and one of each.
        for number in 0..1000 {
            let names = [lab.mnt(&format!("d/{number}")), lab.mnt(&format!("d/{}", number + 1000))];
            let rename =
                |from: &Path, to: &Path, flags| rustix::fs::renameat_with(rustix::fs::CWD, from, rustix::fs::CWD, to, flags).unwrap();
            match round {
                0 => rename(&names[0], &names[1], RenameFlags::EXCHANGE),
                1 => {
                    fs::write(lab.mnt("new"), "").unwrap();
                    fs::rename(lab.mnt("new"), &names[number % 2]).unwrap();
                }
                // The old name is that of a device.
                _ => rename(&names[number % 2], &lab.mnt("moved"), RenameFlags::WHITEOUT),
            }
        }
        seen.extend(std::iter::from_fn(|| dir.read()).map(|entry| entry.unwrap().file_name().to_str().unwrap().to_owned()));
        seen.retain(|name| !name.starts_with('.'));
        seen.sort();
        let mut expected: Vec<_> = (0..2000).map(|number| number.to_string()).collect();
        expected.sort();
        assert!(seen == expected, "round {round}: {} of 2000", seen.len());
    }
    lab.unmount();
}

#[test]
fn seekdir_goes_back_to_where_telldir_was() {
    let mut lab = lab!();
    for number in 0..1000 {
        let file = format!("d/{number}");
        if number % 2 == 0 { lab.write_upper(&file, "") } else { lab.write_lower(&file, "") }
    }
    lab.mount();
    let mut dir = Dir::read_from(File::open(lab.mnt("d")).unwrap()).unwrap();
    let rest = |dir: &mut Dir| -> Vec<(String, i64)> {
        std::iter::from_fn(|| dir.read())
            .map(|entry| entry.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.offset())).unwrap())
            .collect()
    };
    let all = rest(&mut dir);
    assert_eq!(all.len(), 1002);
    assert_eq!(all.iter().map(|(_, cookie)| cookie).collect::<BTreeSet<_>>().len(), 1002);
    for at in (0..1002).step_by(37).rev().chain([1001, 0]) {
        dir.seek(all[at].1).unwrap();
        assert_eq!(rest(&mut dir), all[at + 1..], "after entry {at}");
    }
    // Removed and new entries do not shift the others.
    let place = all[500].1;
    for (name, _) in all[100..200].iter().filter(|(name, _)| !name.starts_with('.')) {
        fs::remove_file(lab.mnt("d").join(name)).unwrap();
    }
    for number in 0..50 {
        fs::write(lab.mnt(&format!("d/new {number}")), "").unwrap();
    }
    dir.seek(place).unwrap();
    let after: Vec<_> = rest(&mut dir).into_iter().filter(|(name, _)| !name.starts_with("new")).collect();
    assert_eq!(after, all[501..]);
    dir.rewind();
    let again: BTreeSet<_> = rest(&mut dir).into_iter().map(|(name, _)| name).collect();
    assert_eq!(again.len(), 952);
    drop(dir);
    lab.unmount();
}

/// Layers with all that makes entries and numbers difficult.
fn varied(lab: &mut Lab) {
    for number in 0..40 {
        lab.write_lower(&format!("low/f{number}"), "low");
        lab.write_lower(&format!("both/f{number}"), "low");
        lab.write_lower(&format!("moved/s/f{number}"), "low");
    }
    fs::hard_link(lab.lower("low/f0"), lab.lower("low/link")).unwrap();
    fs::hard_link(lab.lower("low/f0"), lab.lower("both/link")).unwrap();
    symlink("target", lab.lower("low/symlink")).unwrap();
    sh(&lab.lower("both"), "mkfifo fifo; mknod char c 1 3; mkdir empty");
    for number in 20..60 {
        lab.write_upper(&format!("both/f{number}"), "up");
    }
    lab.mount();
    sh(
        &lab.mnt(""),
        "rm both/f1 both/f21; for i in 2 3 4; do echo more >> low/f$i; done; echo more >> both/link; mv moved/s moved/t; mv moved away
        mv low/f5 both/f5; mv both/f30 low/new; ln low/f6 low/f6link; rm -r both/empty; mkdir both/empty; touch both/empty/x",
    );
    lab.unmount();
}

fn number(path: &Path) -> u64 {
    fs::symlink_metadata(path).unwrap().ino()
}

/// Compares all entries with what look-ups say of them, and returns the numbers.
fn entries_and_look_ups(root: &Path) -> BTreeMap<PathBuf, u64> {
    let mut dirs = Vec::new();
    walk(root, &mut |path, meta| {
        if meta.is_dir() {
            dirs.push(path.to_owned());
        }
    });
    let device = fs::metadata(root).unwrap().dev();
    let mut all = BTreeMap::new();
    for dir in dirs {
        let mut seen = BTreeSet::new();
        for entry in Dir::read_from(File::open(&dir).unwrap()).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().to_str().unwrap().to_owned();
            assert!(seen.insert(name.clone()), "{}: {name} twice", dir.display());
            if name == ".." && dir == root {
                // Says of what it is mounted on, or not.
                continue;
            }
            let path = dir.join(&name);
            let meta = fs::symlink_metadata(&path).unwrap();
            assert_eq!(entry.ino(), meta.ino(), "{}", path.display());
            assert_eq!(entry.file_type(), FileType::from_raw_mode(meta.mode()), "{}", path.display());
            assert_eq!(meta.dev(), device, "{}", path.display());
            if !name.starts_with('.') {
                all.insert(path.strip_prefix(root).unwrap().to_owned(), meta.ino());
            }
        }
        assert!(seen.contains(".") && seen.contains(".."));
    }
    all
}

/// Objects have different numbers, names of one object the same.
fn unique(numbers: &BTreeMap<PathBuf, u64>, links: &[&[&str]]) {
    let mut of = BTreeMap::<u64, Vec<String>>::new();
    for (path, number) in numbers {
        of.entry(*number).or_default().push(path.to_str().unwrap().to_owned());
    }
    let shared: BTreeSet<_> = of.into_values().filter(|paths| paths.len() > 1).collect();
    let expected: BTreeSet<Vec<String>> = links.iter().map(|paths| paths.iter().map(|path| (*path).to_owned()).collect()).collect();
    assert_eq!(shared, expected);
}

const LINKS: &[&[&str]] = &[&["both/link", "low/f0", "low/link"], &["low/f6", "low/f6link"]];

#[test]
fn entries_are_what_look_ups_find_under_the_same_numbers() {
    let mut lab = lab!();
    varied(&mut lab);
    lab.mount();
    let numbers = entries_and_look_ups(&lab.mnt(""));
    unique(&numbers, LINKS);
    assert_eq!(numbers.len(), 149);
    // Nothing is found that is not listed.
    for name in ["both/f1", "both/f21", "low/f5", "both/f30", "moved", "away/s"] {
        assert!(fs::symlink_metadata(lab.mnt(name)).is_err(), "{name}");
    }
    assert_eq!(entries_and_look_ups(&lab.mnt("")), numbers);
    lab.unmount();
}

#[test]
fn numbers_stay_over_copy_up_rename_and_remount() {
    let mut lab = lab!();
    varied(&mut lab);
    lab.mount();
    let before = entries_and_look_ups(&lab.mnt(""));
    let held = File::open(lab.mnt("low/f10")).unwrap();
    append(&lab.mnt("low/f10"), "+");
    assert_eq!(held.metadata().unwrap().ino(), before[Path::new("low/f10")]);
    drop(held);
    lab.remount();
    // Look-ups alone, in another order than before.
    for (path, ino) in before.iter().rev() {
        assert_eq!(number(&lab.mnt("").join(path)), *ino, "{}", path.display());
    }
    // Everything is copied up.
    for path in before.keys() {
        let path = lab.mnt("").join(path);
        let meta = fs::symlink_metadata(&path).unwrap();
        if meta.is_file() {
            append(&path, "more");
        } else {
            let moved = path.with_file_name("moving");
            fs::rename(&path, &moved).unwrap();
            assert_eq!(number(&moved), meta.ino(), "{}", path.display());
            fs::rename(&moved, &path).unwrap();
        }
    }
    assert_eq!(entries_and_look_ups(&lab.mnt("")), before);
    lab.remount();
    assert_eq!(entries_and_look_ups(&lab.mnt("")), before);
    // Renamed, between directories of all kinds.
    let pairs = [("low/f11", "both/eleven"), ("both/f50", "low/fifty"), ("away", "both/away"), ("low/symlink", "symlink")];
    for (from, to) in pairs {
        fs::rename(lab.mnt(from), lab.mnt(to)).unwrap();
    }
    for _ in 0..2 {
        for (from, to) in pairs {
            assert_eq!(number(&lab.mnt(to)), before[Path::new(from)], "{to}");
        }
        assert_eq!(number(&lab.mnt("both/away/t/f7")), before[Path::new("away/t/f7")]);
        entries_and_look_ups(&lab.mnt(""));
        lab.remount();
    }
    lab.unmount();
}

#[test]
fn the_mount_has_one_device_over_layers_on_several() {
    let mut lab = lab!();
    let other = lab.tmpfs("other", "size=4m");
    lab.lowers.push(other.clone());
    for number in 0..20 {
        lab.write_lower(&format!("d/low{number}"), "x");
        fs::create_dir_all(other.join("d/deep")).unwrap();
        fs::write(other.join(format!("d/other{number}")), "x").unwrap();
        fs::write(other.join(format!("d/deep/{number}")), "x").unwrap();
        lab.write_upper(&format!("d/up{number}"), "x");
    }
    lab.mount();
    let before = entries_and_look_ups(&lab.mnt(""));
    unique(&before, &[]);
    for path in before.keys().filter(|path| lab.mnt("").join(path).is_file()) {
        append(&lab.mnt("").join(path), "+");
    }
    assert_eq!(entries_and_look_ups(&lab.mnt("")), before);
    lab.remount();
    assert_eq!(entries_and_look_ups(&lab.mnt("")), before);
    lab.unmount();
}

/// Reads a directory with and without look-ups: all names are there, and the look-ups of the damaged ones fail.
fn all_are_listed(dir: &Path, all: &[&str], damaged: &[&str]) {
    for _ in 0..3 {
        assert_eq!(names(dir), all, "{}", dir.display());
        for entry in Dir::read_from(File::open(dir).unwrap()).unwrap() {
            let entry = entry.unwrap();
            let is_dir = matches!(entry.file_name().to_bytes(), b"." | b".." | b"sub");
            assert_eq!(entry.file_type() == FileType::Directory, is_dir, "{entry:?}");
            assert_ne!(entry.ino(), 0, "{entry:?}");
        }
        for name in all {
            let expected = damaged.contains(name).then_some(Errno::IO);
            assert_eq!(errno(fs::symlink_metadata(dir.join(name))), expected, "{name}");
        }
        // The entries that the kernel knows of are read again.
        fs::write(dir.join("new"), "").unwrap();
        fs::remove_file(dir.join("new")).unwrap();
    }
}

#[test]
fn names_whose_look_up_fails_are_listed() {
    let mut lab = lab!();
    for name in ["d/x", "d/y", "d/sub/z", "up/low"] {
        lab.write_lower(name, "data");
    }
    lab.write_upper("up/alone", "data");
    lab.watch = false;
    lab.mount();
    // From here on numbers in it are those of look-ups.
    append(&lab.mnt("up/low"), "+");
    // After the scan at the mount, which refuses some of these.
    set_xattr(&lab.lower("d/x"), "trusted.overlay.metacopy", b"");
    set_xattr(&lab.lower("d/sub"), "trusted.overlay.redirect", b"../up");
    set_xattr(&lab.upper("up/alone"), "trusted.overlay.metacopy", b"");
    all_are_listed(&lab.mnt("d"), &["sub", "x", "y"], &["sub", "x"]);
    all_are_listed(&lab.mnt("up"), &["alone", "low"], &["alone"]);
    // What is mended is found.
    rustix::fs::lremovexattr(lab.lower("d/x"), "trusted.overlay.metacopy").unwrap();
    assert_eq!(fs::read_to_string(lab.mnt("d/x")).unwrap(), "data");
    all_are_listed(&lab.mnt("d"), &["sub", "x", "y"], &["sub"]);
    lab.unmount();
}
