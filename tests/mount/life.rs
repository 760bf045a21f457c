//! Mounts begun and ended, twice, by signals, on layers that fail or are changed behind them.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;

use plyfs_sys::Errno;
use rustix::process::Signal;

use crate::lab::{Lab, append, errno, eventually, lab, names, open_rw, sh, tree};

#[test]
fn a_second_mount_of_the_same_upper_or_workdir_is_refused() {
    let mut lab = lab!();
    lab.write_lower("f", "lower");
    for name in ["upper2", "work2"] {
        fs::create_dir(lab.path(name)).unwrap();
    }
    lab.mountpoint("mnt2");
    lab.mount();
    let refused = |upper: &Path, work: &Path| {
        let options = format!("lowerdir={},upperdir={},workdir={}", lab.lower("").display(), upper.display(), work.display());
        let output = lab.plyfs(&["mount", "-o", &options]).arg(lab.path("mnt2")).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains("use"), "{text}");
        assert_eq!(names(&lab.path("mnt2")), [""; 0]);
    };
    refused(&lab.upper, &lab.path("work2"));
    refused(&lab.path("upper2"), &lab.work);
    refused(&lab.upper, &lab.work);
    // The first is as it was.
    append(&lab.mnt("f"), " and more");
    assert_eq!(fs::read_to_string(lab.mnt("f")).unwrap(), "lower and more");
    lab.unmount();
    // And when it is gone, the next may have them.
    lab.mount();
    lab.unmount();
}

#[test]
fn a_mount_in_the_background_is_live_when_the_command_returns_and_ends_with_its_unmount() {
    let lab = lab!();
    if !lab.is_plyfs() {
        crate::skip::skip!("the options of plyfs");
    }
    lab.write_lower("d/f", "lower");
    let program = env!("CARGO_BIN_EXE_plyfs");
    // The umask, the directory and the descriptors of who mounts are not those of the server.
    let script = format!(
        "umask 077; {program} mount -o lowerdir=$PWD/lower,upperdir=upper,workdir=work mnt 7>held; umask 022
        cat mnt/d/f; : > mnt/d/new; mkdir mnt/dir; chmod 604 mnt/d/f; stat -c %a mnt/d mnt/d/new mnt/dir mnt/d/f
        rm -r mnt/d; {program} umount mnt; ls mnt; ls work/work; ls upper; test -c upper/d"
    );
    let mut command = crate::lab::shell(&lab.path(""), &script);
    assert_eq!(crate::lab::run(command.env("PLYFS_ROOT", lab.path("state"))), "lower755\n644\n755\n604\nd\ndir\n");
    assert!(!lab.is_mounted());
    // Its server is gone.
    let servers = fs::read_dir("/proc").unwrap().filter_map(|entry| fs::read(entry.unwrap().path().join("cmdline")).ok());
    let options = format!("lowerdir={}", lab.lower("").display());
    assert!(!servers.map(|line| String::from_utf8_lossy(&line).into_owned()).any(|line| line.contains(&options)));
}

#[test]
fn sigterm_unmounts_and_leaves_nothing() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut lab = lab!();
        lab.write_lower("f", "lower");
        lab.mount();
        append(&lab.mnt("f"), "+");
        fs::remove_file(lab.mnt("f")).unwrap();
        fs::write(lab.mnt("new"), "new").unwrap();
        lab.signal(signal);
        lab.ended();
        assert_eq!(names(&lab.path("mnt")), [""; 0]);
        assert_eq!(names(&lab.upper("")), ["f", "new"]);
        lab.mount();
        assert_eq!(names(&lab.mnt("")), ["new"]);
        lab.unmount();
    }
}

#[test]
fn sigterm_leaves_a_mount_in_use_to_its_last_user() {
    let mut lab = lab!();
    lab.write_lower("f", "lower");
    lab.mount();
    let mut file = File::create(lab.mnt("new")).unwrap();
    let reader = File::open(lab.mnt("f")).unwrap();
    lab.signal(Signal::TERM);
    eventually("it leaves the tree", || !lab.is_mounted());
    file.write_all(b"still written").unwrap();
    drop(file);
    assert_eq!(std::io::read_to_string(&reader).unwrap(), "lower");
    drop(reader);
    lab.ended();
    assert_eq!(fs::read_to_string(lab.upper("new")).unwrap(), "still written");
}

#[test]
fn a_killed_server_loses_nothing_that_was_told_and_the_next_mount_works() {
    let mut lab = lab!();
    for number in 0..50 {
        lab.write_lower(&format!("d/f{number}"), "lower");
    }
    lab.mount();
    for number in 0..50 {
        let file = lab.mnt(&format!("d/f{number}"));
        match number % 5 {
            0 => fs::remove_file(file).unwrap(),
            1 => append(&file, "+"),
            2 => fs::rename(&file, lab.mnt(&format!("moved{number}"))).unwrap(),
            3 => fs::write(&file, "new").unwrap(),
            _ => fs::hard_link(&file, lab.mnt(&format!("link{number}"))).unwrap(),
        }
    }
    sh(&lab.mnt(""), "mkdir -p a/b; mv d dd; rm dd/f3; mkdir d");
    let expected = tree(&lab.mnt(""));
    let held = open_rw(&lab.mnt("dd/f4")).unwrap();
    lab.kill();
    drop(held);
    lab.mount();
    assert_eq!(tree(&lab.mnt("")), expected);
    lab.unmount();
}

/// An upper directory that the mount has just used, swapped for a symlink to a directory outside.
fn swapped(lab: &mut Lab, few_files: bool) {
    for file in ["f", "g", "sub/h", "sub/i"] {
        lab.write_lower(&format!("d/{file}"), "lower");
        lab.write_upper(&format!("up/{file}"), "upper");
    }
    for number in 0..64 {
        lab.write_lower(&format!("many/{number}/x"), "x");
    }
    let outside = lab.path("outside");
    for file in ["f", "g", "sub/h", "sub/i"] {
        let path = outside.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "outside").unwrap();
    }
    if few_files {
        lab.max_files = Some(64);
    }
    lab.mount();
    let before = tree(&outside);
    let open: Vec<_> = ["d", "up", "d/sub", "up/sub"].map(|dir| File::open(lab.mnt(dir)).unwrap()).into();
    for dir in ["d", "up"] {
        append(&lab.mnt(dir).join("g"), "+");
        append(&lab.mnt(dir).join("sub/i"), "+");
        tree(&lab.mnt(dir));
    }
    for dir in ["d", "up"] {
        fs::rename(lab.upper(dir), lab.upper(&format!("{dir}.away"))).unwrap();
        symlink(&outside, lab.upper(dir)).unwrap();
    }
    if few_files {
        // The server forgets its descriptors of the directories.
        for number in 0..64 {
            fs::write(lab.mnt(&format!("many/{number}/new")), "x").unwrap();
        }
    }
    let script = "for d in d up; do cd $d; echo x >> f || :; echo x >> g || :; echo x > new || :; rm g || :; mkdir dir || :; chmod 0 f || :; mv f moved || :
        ln f ln || :; cd sub || continue; echo x >> h || :; echo x >> new || :; rm i || :; mv h hh || :; chown 1 h || :; touch h || :; cd ../..; done";
    // Whatever is answered, it is answered, and nothing outside is touched.
    let output = crate::lab::shell(&lab.mnt(""), script).output().unwrap();
    assert_ne!(output.status.code(), Some(124), "in time");
    for dir in &open {
        let made = rustix::fs::openat(dir, "made", rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY, 0o600.into());
        drop(made);
    }
    assert_eq!(tree(&outside), before);
    drop(open);
    // The mount goes on elsewhere.
    fs::write(lab.mnt("elsewhere"), "x").unwrap();
    lab.unmount();
    assert_eq!(tree(&lab.path("outside")), before);
}

#[test]
fn an_upper_directory_swapped_for_a_symlink_leads_nowhere() {
    let mut lab = lab!();
    swapped(&mut lab, false);
}

#[test]
fn an_upper_directory_swapped_for_a_symlink_leads_nowhere_when_it_has_to_be_opened_again() {
    let mut lab = lab!();
    swapped(&mut lab, true);
}

#[test]
fn a_layer_that_cannot_be_read_is_an_error_and_never_what_lies_below_it() {
    let mut lab = lab!();
    // A layer of the second mount is inside of the first, whose server dies.
    let mut inner = Lab::new();
    for name in ["read", "unread", "dir/x", "dir/y"] {
        inner.write_lower(&format!("top/{name}"), "top");
        lab.write_lower(name, "old, from below");
    }
    inner.mount();
    // What the kernel knows of the inner mount it needs nobody for.
    inner.remount();
    lab.lowers.insert(0, inner.mnt("top"));
    lab.mount();
    inner.forget_entries();
    assert_eq!(fs::read_to_string(lab.mnt("read")).unwrap(), "top");
    assert_eq!(fs::read_to_string(lab.mnt("dir/x")).unwrap(), "top");
    inner.kill_server();
    for name in ["unread", "dir/y", "dir/z", "nothing"] {
        let found = errno(fs::read(lab.mnt(name)));
        assert!(found.is_some_and(|errno| errno != Errno::NOENT), "{name}: {found:?}");
    }
    for dir in ["", "dir"] {
        let listed = fs::read_dir(lab.mnt(dir)).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        assert!(listed.is_err(), "{dir}: {listed:?}");
    }
    assert!(open_rw(&lab.mnt("read")).is_err());
    assert!(fs::write(lab.mnt("unread"), "x").is_err());
    // An error is not remembered: there is nothing to compare with but another error.
    assert!(fs::read(lab.mnt("unread")).is_err());
    lab.abandon();
}

#[test]
fn an_upper_that_cannot_be_read_is_an_error_and_never_the_lower() {
    let mut lab = lab!();
    let mut inner = Lab::new();
    for name in ["changed", "unread", "removed", "dir/x", "dir/y"] {
        lab.write_lower(name, "old, from below");
    }
    inner.mount();
    for name in ["upper", "work"] {
        fs::create_dir(inner.mnt(name)).unwrap();
    }
    lab.upper = inner.mnt("upper");
    lab.work = inner.mnt("work");
    lab.mount();
    for name in ["changed", "unread", "dir/x", "dir/y"] {
        fs::write(lab.mnt(name), "new").unwrap();
    }
    fs::remove_file(lab.mnt("removed")).unwrap();
    lab.remount();
    assert_eq!(fs::read_to_string(lab.mnt("changed")).unwrap(), "new");
    assert_eq!(fs::read_to_string(lab.mnt("dir/x")).unwrap(), "new");
    assert_eq!(errno(fs::read(lab.mnt("removed"))), Some(Errno::NOENT));
    lab.unmount();
    // What the kernel knows of the inner mount it needs nobody for.
    inner.remount();
    lab.mount();
    // The scan at the mount read the directories of the upper, and a whiteout that the kernel remembers is one, server or not.
    inner.forget_entries();
    assert_eq!(fs::read_to_string(lab.mnt("dir/x")).unwrap(), "new");
    inner.kill_server();
    for name in ["changed", "unread", "removed", "dir/y"] {
        let found = errno(fs::read(lab.mnt(name)));
        assert!(found.is_some_and(|errno| errno != Errno::NOENT), "{name}: {found:?}");
    }
    for dir in ["", "dir"] {
        let listed = fs::read_dir(lab.mnt(dir)).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        assert!(listed.is_err(), "{dir}: {listed:?}");
    }
    lab.abandon();
}
