use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use super::*;
use crate::Errno;
use crate::at::{At, open, open_path, stat};
use crate::create::{mkdir, mknod, rmdir, symlink};
use crate::testing::{Dir, ODD};

#[test]
fn entries_have_name_number_and_kind() {
    let dir = Dir::new();
    mknod(dir.as_fd(), b"file", Kind::File, 0o644, 0).unwrap();
    mkdir(dir.as_fd(), b"dir", 0o755).unwrap();
    symlink(dir.as_fd(), b"link", b"x").unwrap();
    mknod(dir.as_fd(), b"fifo", Kind::Fifo, 0o644, 0).unwrap();
    mknod(dir.as_fd(), b"whiteout", Kind::Char, 0, 0).unwrap();
    let entries = read_dir(dir.as_fd()).unwrap();
    assert_eq!(entries.len(), 5, "neither . nor ..");
    for entry in entries {
        let found = stat(At::Name(dir.as_fd(), &entry.name)).unwrap();
        assert_eq!(entry.ino, found.ino);
        assert_eq!(entry.kind.unwrap_or(found.kind), found.kind);
    }
}

#[test]
fn odd_names_come_as_they_are() {
    let dir = Dir::new();
    for name in ODD {
        fs::write(dir.path().join(OsStr::from_bytes(name)), b"").unwrap();
    }
    let mut found: Vec<_> = read_dir(dir.as_fd()).unwrap().into_iter().map(|entry| entry.name).collect();
    found.sort();
    let mut names = ODD.map(<[u8]>::to_vec);
    names.sort();
    assert_eq!(found, names);
}

#[test]
fn large_directories_come_whole_and_anew_each_time() {
    let dir = Dir::new();
    for number in 0..3000 {
        // 3000 names of 60 bytes take several reads of 64 KiB.
        mknod(dir.as_fd(), format!("{number:060}").as_bytes(), Kind::File, 0o644, 0).unwrap();
    }
    let readable = open(At::Fd(dir.as_fd()), OFlags::RDONLY | OFlags::DIRECTORY).unwrap();
    for _ in 0..2 {
        let names: BTreeMap<_, _> = read_dir(readable.as_fd()).unwrap().into_iter().map(|entry| (entry.name, entry.ino)).collect();
        assert_eq!(names.len(), 3000);
    }
}

#[test]
fn a_file_and_a_removed_directory_are_errors() {
    let dir = Dir::new();
    mknod(dir.as_fd(), b"file", Kind::File, 0o644, 0).unwrap();
    mkdir(dir.as_fd(), b"dir", 0o755).unwrap();
    let file = open_path(At::Name(dir.as_fd(), b"file")).unwrap();
    assert_eq!(read_dir(file.as_fd()), Err(Errno::NOTDIR));
    let gone = open_path(At::Name(dir.as_fd(), b"dir")).unwrap();
    rmdir(dir.as_fd(), b"dir").unwrap();
    let after = read_dir(gone.as_fd());
    assert!(after == Err(Errno::NOENT) || after == Ok(Vec::new()), "{after:?}");
}

#[test]
fn names_that_come_round_again_and_again_end_the_reading() {
    let entry = |number: usize| DirEntry { name: number.to_string().into_bytes(), ino: 1, kind: None };
    for (first, length) in [(0, 1), (0, 7), (100, 1), (3, 1000)] {
        let (mut circle, mut entries) = (Circle::default(), Vec::new());
        let mut names = (0..).map(|at: usize| if at < first { entry(at) } else { entry(first + (at - first) % length) });
        let end = names.find(|next| {
            let closed = circle.closes(&entries, &next.name);
            entries.push(next.clone());
            closed || entries.len() > 200_000
        });
        assert!(end.is_some() && entries.len() < 64 * (first + length) + 64, "{first} {length}: {}", entries.len());
    }
    let (mut circle, mut entries) = (Circle::default(), Vec::new());
    for number in 0..10_000 {
        // Each name twice is no circle.
        for _ in 0..2 {
            assert!(!circle.closes(&entries, &entry(number).name));
            entries.push(entry(number));
        }
    }
}
