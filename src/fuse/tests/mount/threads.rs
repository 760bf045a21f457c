//! Many requests at once, and that long ones hold up nobody.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::thread;

use plyfs_fuse::{ServeOptions, serve};
use plyfs_overlay::{Behaviour, DirTree, Layer, LayerStack, Union};
use plyfs_sys::at::{At, XattrMode, set_xattr};

use crate::lab::{Lab, SOON, can_mount, eventually, fuse_options, open_dir, sh, unmount};
use crate::slow::{SIZE, Slow};

#[test]
fn sixteen_threads_change_one_tree_at_once() {
    const THREADS: usize = 16;
    const ROUNDS: usize = 40;
    let Some(lab) = Lab::new("sixteen_threads_change_one_tree_at_once", |lower| {
        fs::create_dir(lower.join("shared")).unwrap();
        for at in 0..THREADS * ROUNDS {
            fs::write(lower.join(format!("shared/l{at}")), "lower").unwrap();
        }
        fs::write(lower.join("log"), "").unwrap();
    }) else {
        return;
    };
    let barrier = Barrier::new(THREADS);
    thread::scope(|scope| {
        for worker in 0..THREADS {
            let (lab, barrier) = (&lab, &barrier);
            scope.spawn(move || {
                barrier.wait();
                let mut log = OpenOptions::new().append(true).open(lab.mnt("log")).unwrap();
                for round in 0..ROUNDS {
                    let own = format!("shared/w{worker}-{round}");
                    fs::write(lab.mnt(&own), &own).unwrap();
                    assert_eq!(fs::read(lab.mnt(&own)).unwrap(), own.as_bytes());
                    let low = format!("shared/l{}", worker * ROUNDS + round);
                    match round % 4 {
                        0 => fs::remove_file(lab.mnt(&low)).unwrap(),
                        1 => fs::rename(lab.mnt(&low), lab.mnt(&format!("{low}.moved"))).unwrap(),
                        2 => fs::hard_link(lab.mnt(&low), lab.mnt(&format!("{low}.linked"))).unwrap(),
                        _ => fs::write(lab.mnt(&low), "upper").unwrap(),
                    }
                    if round % 8 == 0 {
                        fs::read_dir(lab.mnt("shared")).unwrap().for_each(|entry| drop(entry.unwrap()));
                    }
                    log.write_all(b"0123456789abcde\n").unwrap();
                    fs::remove_file(lab.mnt(&own)).unwrap();
                }
            });
        }
    });
    // Of each four: one removed, one moved, one linked (two names), one written.
    assert_eq!(fs::read_dir(lab.mnt("shared")).unwrap().count(), THREADS * ROUNDS);
    let log = fs::read_to_string(lab.mnt("log")).unwrap();
    assert_eq!(log.lines().count(), THREADS * ROUNDS);
    assert!(log.lines().all(|line| line == "0123456789abcde"));
    assert_eq!(fs::read_dir(lab.lower("shared")).unwrap().count(), THREADS * ROUNDS);
    // Nothing is left of what is gone: each look-up was counted and taken back.
    sh(&lab.mnt(""), "rm -r shared log");
    eventually("all inodes are forgotten", || lab.union.inodes() <= 2);
    lab.finish();
}

#[test]
fn one_file_is_copied_up_once_by_all_who_want_it() {
    const THREADS: usize = 16;
    let Some(lab) = Lab::new("one_file_is_copied_up_once_by_all_who_want_it", |lower| {
        fs::create_dir_all(lower.join("a/b/c")).unwrap();
        fs::write(lower.join("a/b/c/f"), vec![b'l'; 1 << 20]).unwrap();
    }) else {
        return;
    };
    let barrier = Barrier::new(THREADS);
    thread::scope(|scope| {
        for worker in 0..THREADS {
            let (lab, barrier) = (&lab, &barrier);
            scope.spawn(move || {
                barrier.wait();
                let file = OpenOptions::new().write(true).open(lab.mnt("a/b/c/f")).unwrap();
                file.write_all_at(&[worker as u8], worker as u64).unwrap();
            });
        }
    });
    let data = fs::read(lab.mnt("a/b/c/f")).unwrap();
    assert_eq!(data[..THREADS], (0..THREADS as u8).collect::<Vec<_>>());
    assert!(data.len() == 1 << 20 && data[THREADS..].iter().all(|&byte| byte == b'l'));
    assert_eq!(fs::read(lab.upper("a/b/c/f")).unwrap(), data);
    assert_eq!(fs::read_dir(lab.root().join("work/work")).unwrap().count(), 0, "nothing is left in work");
    lab.finish();
}

/// Two request loops, sixteen copy-ups that do not end: everything else goes on. Timeouts fail the test; no time is measured.
#[test]
fn look_ups_go_on_while_many_copy_ups_wait() {
    const FILES: u64 = 16;
    if !can_mount("look_ups_go_on_while_many_copy_ups_wait") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for name in ["slow", "quick", "upper", "work", "mnt"] {
        fs::create_dir(at(name)).unwrap();
    }
    for file in 0..200 {
        fs::write(at("quick").join(format!("q{file}")), "quick").unwrap();
    }
    let slow = Slow::mount(&at("slow"), FILES);
    let upper = DirTree::upper(&at("upper"), &at("work")).unwrap();
    let lowers = ["quick", "slow"].map(|name| Layer::trusted(DirTree::lower(&at(name)).unwrap()));
    let stack = LayerStack { upper: Some(Layer::trusted(upper)), lowers: Box::new(lowers) };
    let union = Arc::new(Union::new(stack, Behaviour { volatile: true, ..Behaviour::default() }).unwrap());
    let served = serve(union, &fuse_options(), ServeOptions { threads: 2, ..ServeOptions::default() }).unwrap();
    served.attach(&at("mnt")).unwrap();

    let mnt = at("mnt");
    let copies: Vec<_> = (0..FILES)
        .map(|file| {
            let path = mnt.join(format!("f{file}"));
            // Each operation that copies up with data.
            thread::spawn(move || match file % 4 {
                0 => OpenOptions::new().append(true).open(path).unwrap().write_all(b"!").unwrap(),
                1 => std::os::unix::fs::chown(path, Some(7), None).unwrap(),
                2 => {
                    let dir = open_dir(path.parent().unwrap());
                    set_xattr(At::Name(dir.as_fd(), path.file_name().unwrap().as_encoded_bytes()), b"user.x", b"1", XattrMode::Any)
                        .unwrap();
                }
                _ => drop(OpenOptions::new().write(true).open(path).unwrap()),
            })
        })
        .collect();
    eventually("all copy-ups run at once", || slow.waiting() == FILES as usize);

    let (done, others) = mpsc::channel();
    let path = mnt.clone();
    let other = thread::spawn(move || {
        for file in 0..200 {
            assert_eq!(fs::read(path.join(format!("q{file}"))).unwrap(), b"quick");
            assert!(!path.join(format!("absent{file}")).exists());
        }
        assert_eq!(fs::metadata(path.join("f3")).unwrap().len(), SIZE as u64);
        for file in 0..50 {
            let own = path.join(format!("new{file}"));
            fs::write(&own, "new").unwrap();
            fs::rename(&own, path.join("renamed")).unwrap();
            OpenOptions::new().append(true).open(path.join(format!("q{file}"))).unwrap().write_all(b"er").unwrap();
            File::open(path.join("renamed")).unwrap().sync_all().unwrap();
        }
        assert_eq!(fs::read_dir(&path).unwrap().count(), 200 + FILES as usize + 1);
        done.send(()).unwrap();
    });
    let went_on = others.recv_timeout(SOON);
    let still = slow.waiting();
    slow.release();
    for copy in copies {
        copy.join().unwrap();
    }
    other.join().unwrap();
    let appended = fs::read(mnt.join("f0")).unwrap();
    let owner = fs::metadata(mnt.join("f1")).unwrap().uid();
    let panics = served.counters().panics();
    unmount(&served);
    served.join().unwrap();
    went_on.expect("other requests go on");
    assert_eq!((still, owner, panics), (FILES as usize, 7, 0));
    assert_eq!((appended.len(), appended.last()), (SIZE + 1, Some(&b'!')));
    assert!(appended[..SIZE].iter().all(|&byte| byte == b's'));
}

/// A rename takes its source's data up, and only the name of that is in the request.
#[test]
fn a_rename_that_copies_up_leaves_the_loops_free() {
    if !can_mount("a_rename_that_copies_up_leaves_the_loops_free") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for name in ["slow", "upper", "work", "mnt"] {
        fs::create_dir(at(name)).unwrap();
    }
    let slow = Slow::mount(&at("slow"), 4);
    let upper = DirTree::upper(&at("upper"), &at("work")).unwrap();
    let lower = Layer::trusted(DirTree::lower(&at("slow")).unwrap());
    let stack = LayerStack { upper: Some(Layer::trusted(upper)), lowers: Box::new([lower]) };
    let union = Arc::new(Union::new(stack, Behaviour { volatile: true, ..Behaviour::default() }).unwrap());
    let served = serve(union, &fuse_options(), ServeOptions { threads: 1, ..ServeOptions::default() }).unwrap();
    served.attach(&at("mnt")).unwrap();
    let mnt = at("mnt");
    fs::create_dir(mnt.join("d")).unwrap();
    let (from, to) = (mnt.join("f1"), mnt.join("g1"));
    let rename = thread::spawn(move || fs::rename(from, to));
    eventually("the rename copies up", || slow.waiting() == 1);
    let (done, other) = mpsc::channel();
    // Not in the directory that the kernel has locked.
    let path = mnt.join("d/new");
    let write = thread::spawn(move || done.send(fs::write(path, "new").is_ok()));
    let went_on = other.recv_timeout(SOON);
    slow.release();
    rename.join().unwrap().unwrap();
    write.join().unwrap().unwrap();
    let moved = fs::read(mnt.join("g1")).map(|data| data.len());
    unmount(&served);
    served.join().unwrap();
    assert_eq!(went_on, Ok(true));
    assert_eq!(moved.unwrap(), SIZE);
}

#[test]
fn readers_never_see_a_mixture_while_a_file_is_copied_up() {
    let Some(lab) = Lab::new("readers_never_see_a_mixture_while_a_file_is_copied_up", |lower| {
        for at in 0..20 {
            fs::write(lower.join(format!("f{at}")), vec![b'l'; 256 << 10]).unwrap();
        }
    }) else {
        return;
    };
    for at in 0..20 {
        let path = lab.mnt(&format!("f{at}"));
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let file = File::open(&path).unwrap();
                while !stop.load(Ordering::Relaxed) {
                    let mut data = vec![0; 256 << 10];
                    file.read_exact_at(&mut data, 0).unwrap();
                    // The first write is the last byte: if it shows, so must it from then on; nothing else ever does.
                    assert!(data[..(256 << 10) - 1].iter().all(|&byte| byte == b'l'));
                }
            });
            let writer = OpenOptions::new().write(true).open(&path).unwrap();
            writer.write_all_at(b"u", (256 << 10) - 1).unwrap();
            stop.store(true, Ordering::Relaxed);
            reader.join().unwrap();
        });
        assert_eq!(fs::read(&path).unwrap().last(), Some(&b'u'));
    }
    lab.finish();
}
