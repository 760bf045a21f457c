//! `plyfs umount`.

use std::fs;
use std::path::Path;
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};

use crate::lab::{Lab, Mounted, Process, is_mountpoint, need_mounts, server, until};

#[test]
fn a_mount_in_use_stays_and_its_users_are_named() {
    need_mounts!();
    let lab = Lab::layers();
    let mounted = lab.mount(&lab.options());
    let mut reader = Process::start(Command::new("sleep").arg("1000").stdin(fs::File::open(lab.path("m/top")).unwrap()));
    let holder = format!("sleep (pid {}, an open file)", reader.0.id());
    lab.plyfs(&["umount", "m"]).refused(1, "umount m: busy: ", &[&holder, "; end that, or take it out of the tree with -l"]);
    assert!(is_mountpoint(&mounted.0));
    reader.0.kill().unwrap();
    reader.0.wait().unwrap();

    let mut inside = Process::start(Command::new("sleep").arg("1000").current_dir(lab.path("m/d")));
    let holder = format!("sleep (pid {}, its current directory)", inside.0.id());
    lab.plyfs(&["umount", "m"]).refused(1, "umount m: busy: ", &[&holder]);
    inside.0.kill().unwrap();
    inside.0.wait().unwrap();

    let below = lab.tmpfs("m/d");
    lab.plyfs(&["umount", "m"]).refused(1, "umount m: busy: ", &[&lab.text("m/d"), "is mounted in it"]);
    drop(below);
    lab.plyfs(&["umount", "m"]).ok();
}

#[test]
fn a_lazy_umount_leaves_the_users_their_files() {
    need_mounts!();
    let lab = Lab::layers();
    let mounted = lab.mount(&lab.options());
    let pid = server(&mounted.0);
    let file = fs::File::open(lab.path("m/top")).unwrap();
    lab.plyfs(&["umount", "-l", "m"]).ok();
    assert!(!is_mountpoint(&mounted.0));
    assert_eq!(std::io::read_to_string(&file).unwrap(), "a");
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    drop(file);
    until("the server ends", || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z'))
    });
}

#[test]
fn several_are_unmounted_and_one_that_fails_does_not_keep_the_others() {
    need_mounts!();
    let lab = Lab::layers();
    let mounted = lab.mount(&lab.options());
    let done = lab.plyfs(&["umount", "none", "m"]);
    done.refused(1, "umount none: ", &[]);
    assert!(!is_mountpoint(&mounted.0));
}

#[test]
fn a_mount_whose_server_was_killed_can_be_unmounted_and_is_not_mounted_over() {
    need_mounts!();
    let lab = Lab::layers();
    let mounted = lab.mount(&lab.options());
    let pid = Pid::from_raw(i32::try_from(server(&mounted.0)).unwrap()).unwrap();
    fs::write(lab.path("m/x"), "x").unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    until("the mount is dead", || fs::metadata(lab.path("m")).is_err());
    lab.plyfs(&["mount", "-o", &lab.options(), "m"]).refused(1, "mountpoint m: in use", &["; unmount it with 'plyfs umount "]);
    lab.plyfs(&["diff", "./m"]).refused(1, "diff ./m: its server is dead", &["; give --upper and --lower"]);
    lab.plyfs(&["umount", "m"]).ok();
    assert!(!is_mountpoint(&mounted.0));
    assert_eq!(lab.plyfs(&["diff", "--upper", "u", "--lower", "a:b"]).ok().text(), "A /x\n");
    let _again = lab.mount(&lab.options());
    assert_eq!(fs::read_to_string(lab.path("m/x")).unwrap(), "x");
}

#[test]
fn a_copy_of_the_mount_elsewhere_is_told_and_not_waited_for() {
    need_mounts!();
    let lab = Lab::layers();
    let _mounted = lab.mount(&lab.options());
    let mut other = Process::start(Command::new("unshare").args(["-m", "--propagation", "private", "sleep", "1000"]));
    until("the other namespace is there", || {
        let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
        namespace(&other.0.id().to_string()) != namespace("self")
    });
    let done = lab.plyfs(&["umount", "m"]);
    assert_eq!(done.code, Some(0));
    assert!(done.err.starts_with("plyfs: umount m: unmounted here; its server (pid "), "{done:?}");
    other.0.kill().unwrap();
    other.0.wait().unwrap();
}

/// Unmounts `m`, which something holds that shows in no table of mounts, and tries to mount its upper again; `release` lets it go.
#[track_caller]
fn held_out_of_sight(lab: &Lab, release: impl FnOnce()) {
    let pid = server(&lab.path("m"));
    let done = lab.plyfs(&["umount", "m"]);
    assert_eq!((done.code, done.err.lines().count()), (Some(0), 1), "{done:?}");
    let begin = format!("plyfs: umount m: unmounted here; its server (pid {pid}) goes on for ");
    assert!(done.err.starts_with(&begin), "{done:?}");
    assert!(!is_mountpoint(&lab.path("m")));
    let why = format!("in use: its server (pid {pid}) still serves a mount that is no longer at its place ");
    lab.plyfs(&["mount", "-o", &lab.options(), "m"]).refused(1, "upperdir ", &[&why, "; end what uses it"]);
    release();
    let _again = lab.mount(&lab.options());
}

#[test]
fn a_mount_with_a_layer_of_another_union_is_unmounted_and_its_server_told() {
    need_mounts!();
    let lab = Lab::layers();
    let _mounted = lab.mount(&lab.options());
    for dir in ["m/lower", "u2", "w2", "m2"] {
        fs::create_dir(lab.path(dir)).unwrap();
    }
    lab.plyfs(&["mount", "-o", "lowerdir=m/lower,upperdir=u2,workdir=w2", "m2"]).ok();
    let _other = Mounted(lab.path("m2"));
    held_out_of_sight(&lab, || drop(lab.plyfs(&["umount", "m2"]).ok()));
}

#[test]
fn a_mount_with_a_layer_of_kernel_overlayfs_is_unmounted_and_its_server_told() {
    need_mounts!();
    let lab = Lab::layers();
    let _mounted = lab.mount(&lab.options());
    fs::create_dir(lab.path("o")).unwrap();
    let options = format!("lowerdir={}:{}", lab.text("m/d"), lab.text("a"));
    if crate::kernel::overlay(options, &lab.path("o")).is_err() {
        crate::skip::skip!("needs kernel overlayfs");
    }
    let other = Mounted(lab.path("o"));
    held_out_of_sight(&lab, || drop(other));
}
