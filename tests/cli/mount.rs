//! `plyfs mount` and the process that it leaves.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use rustix::process::Signal;

use crate::lab::{Lab, Mounted, PLYFS, Process, finish, is_mountpoint, mount_at, name, need_mounts, server, until};

#[test]
fn version_and_help_are_told_under_every_name() {
    let lab = Lab::new();
    for program in ["plyfs", "fuse-overlayfs", "mount.plyfs", "mount.fuse.plyfs"] {
        symlink(PLYFS, lab.path(program)).unwrap();
        for flag in ["--version", "-V"] {
            assert_eq!(finish(lab.command(lab.path(program)).arg(flag)).ok().text(), "plyfs 0.1.0\n", "{program}");
        }
    }
    for args in [&["--help"][..], &["mount", "--help"], &["umount", "--help"], &["diff", "--help"], &["try", "--help"], &["run", "-h"]] {
        assert!(lab.plyfs(args).ok().text().contains("Usage: plyfs"), "{args:?}");
    }
}

#[test]
fn completions_and_man_pages_are_made_of_the_command_line() {
    let lab = Lab::new();
    for shell in ["bash", "zsh", "fish"] {
        let text = lab.plyfs(&["completions", shell]).ok().text();
        assert!(text.contains("host-sockets") && text.contains("umount"), "{shell}");
    }
    assert!(lab.plyfs(&["man"]).ok().text().contains(".TH plyfs 1"));
    assert!(lab.plyfs(&["man", "try"]).ok().text().contains("host\\-sockets"));
    lab.plyfs(&["man", "nonsense"]).refused(1, "man nonsense: no such verb; ", &[]);
}

#[test]
fn a_mount_is_live_on_return_and_gone_after_umount() {
    need_mounts!();
    let lab = Lab::layers();
    let mounted = lab.mount(&lab.options());
    let (fstype, source, _) = mount_at(&mounted.0).unwrap();
    assert_eq!((fstype.as_str(), source.as_str()), ("fuse.plyfs", "plyfs"));
    assert_eq!(fs::read_to_string(lab.path("m/top")).unwrap(), "a");
    fs::write(lab.path("m/new"), "n").unwrap();
    let pid = server(&mounted.0);
    let dev = fs::metadata(&mounted.0).unwrap().dev();
    lab.plyfs(&["umount", "m"]).ok();
    assert!(!Path::new(&format!("/proc/{pid}")).exists() || is_zombie(pid), "the server is gone when umount returns");
    // The number may be another mount's by now.
    let record = fs::read_to_string(format!("/run/plyfs/{}:{}.json", rustix::fs::major(dev), rustix::fs::minor(dev)));
    assert!(!record.is_ok_and(|record| record.contains(&format!("\"pid\":{pid},"))));
    assert!(!is_mountpoint(&mounted.0));
    assert_eq!(fs::read_to_string(lab.path("u/new")).unwrap(), "n");

    lab.plyfs(&["mount", "-o", &lab.options(), "m"]).ok();
    assert_eq!(fs::read_to_string(lab.path("m/new")).unwrap(), "n");
}

#[test]
fn an_upper_is_mounted_again_at_once_and_never_twice() {
    need_mounts!();
    let lab = Lab::layers();
    fs::create_dir(lab.path("m2")).unwrap();
    for round in 0..20 {
        let mounted = lab.mount(&lab.options());
        fs::write(mounted.0.join(format!("f{round}")), "x").unwrap();
        if round == 0 {
            let m = lab.text("m");
            for options in [lab.options(), format!("lowerdir=a,upperdir=u,workdir={}", lab.text("b"))] {
                let parts = [&format!("in use by the union mounted at {m}; "), &format!("'plyfs umount {m}'")[..]];
                lab.plyfs(&["mount", "-o", &options, "m2"]).refused(1, &format!("upperdir {}: ", lab.text("u")), &parts);
            }
        }
        // As umount(8) does: it does not wait for the server. Another test of this process may be starting a program, which holds our descriptors until its exec.
        crate::lab::until("nobody holds the file that was written", || {
            let unmounted = rustix::mount::unmount(&mounted.0, rustix::mount::UnmountFlags::empty());
            assert!(matches!(unmounted, Ok(()) | Err(rustix::io::Errno::BUSY)), "{unmounted:?}");
            unmounted.is_ok()
        });
    }
}

#[test]
fn access_times_change_as_the_options_say() {
    need_mounts!();
    let lab = Lab::layers();
    let old = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    fs::create_dir_all(lab.path("u/dir/sub")).unwrap();
    for (options, file_changes, dir_changes) in [
        ("noatime", false, false),
        ("nodiratime", true, false),
        ("strictatime", true, true),
        ("relatime", true, true),
        ("ro,noatime", false, false),
    ] {
        fs::write(lab.path("u/file"), "x").unwrap();
        let times = fs::FileTimes::new().set_accessed(old).set_modified(old);
        for path in ["u/file", "u/dir"] {
            fs::File::open(lab.path(path)).unwrap().set_times(times).unwrap();
        }
        let mounted = lab.mount(&format!("{},{options}", lab.options()));
        fs::read(mounted.0.join("file")).unwrap();
        fs::read_dir(mounted.0.join("dir")).unwrap().for_each(drop);
        let changed = |path: &str| fs::metadata(mounted.0.join(path)).unwrap().accessed().unwrap() != old;
        assert_eq!((changed("file"), changed("dir")), (file_changes, dir_changes), "{options}");
        lab.plyfs(&["umount", "m"]).ok();
    }
}

#[test]
fn a_union_keeps_no_mount_of_a_layer_busy() {
    need_mounts!();
    let lab = Lab::layers();
    fs::create_dir(lab.path("up")).unwrap();
    let layers = [Mounted(lab.path("b")), Mounted(lab.path("up"))];
    for layer in &layers {
        rustix::mount::mount("none", &layer.0, c"tmpfs", rustix::mount::MountFlags::empty(), None::<&std::ffi::CStr>).unwrap();
    }
    fs::write(lab.path("b/low"), "tmpfs").unwrap();
    for dir in ["up/u", "up/w"] {
        fs::create_dir(lab.path(dir)).unwrap();
    }
    let mounted = lab.mount("lowerdir=a:b,upperdir=up/u,workdir=up/w");
    for layer in &layers {
        rustix::mount::unmount(&layer.0, rustix::mount::UnmountFlags::empty()).unwrap();
    }
    assert_eq!(fs::read_to_string(mounted.0.join("low")).unwrap(), "tmpfs");
    fs::write(mounted.0.join("low"), "mine").unwrap();
    fs::rename(mounted.0.join("low"), mounted.0.join("moved")).unwrap();
    assert_eq!(lab.plyfs(&["diff", "m"]).ok().text(), "D /low\nA /moved\n");
}

/// Nobody in a test's container may be there to reap it.
fn is_zombie(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z')))
}

#[test]
fn others_mount_by_their_own_grammar() {
    need_mounts!();
    let lab = Lab::layers();
    let mounted = Mounted(lab.path("m"));
    for program in ["fuse-overlayfs", "mount.plyfs", "mount.fuse.plyfs", "plyfs"] {
        symlink(PLYFS, lab.path(program)).unwrap();
    }
    // podman: one option string with a trailing comma, relative layers that are links, a clean working directory.
    symlink("b", lab.path("l")).unwrap();
    let podman = "lowerdir=a:l,upperdir=u,workdir=w,,volatile,";
    let full = lab.options();
    let rw = format!("rw,noatime,{full},dev,suid,x-test");
    for (program, args, source) in [
        ("fuse-overlayfs", &["-o", podman, "m"][..], "plyfs"),
        ("fuse-overlayfs", &["m", "-o", "lowerdir=a,fsname=other"], "other"),
        ("plyfs", &["-o", podman, "m"], "plyfs"),
        ("plyfs", &["overlay", "m", "-o", &rw], "overlay"),
        ("mount.plyfs", &["src", "m", "-o", &rw], "src"),
        ("mount.fuse.plyfs", &["src", "m", "-n", "-v", "-o", &rw, "-t", "fuse.plyfs"], "src"),
        ("plyfs", &["mount", "src", "m", "-o", "lowerdir=a", "-o", "fsname=name"], "name"),
    ] {
        finish(lab.command(lab.path(program)).args(args)).ok();
        assert_eq!(mount_at(&mounted.0).unwrap().1, source, "{program} {args:?}");
        assert_eq!(fs::read_to_string(lab.path("m/top")).unwrap(), "a");
        lab.plyfs(&["umount", "m"]).ok();
    }
    // -f of mount(8) checks, and mounts nothing.
    finish(lab.command(lab.path("mount.plyfs")).args(["src", "m", "-f", "-o", &rw])).ok();
    assert!(!is_mountpoint(&mounted.0));
}

#[test]
fn mount_8_mounts_through_mount_fuse() {
    need_mounts!();
    let lab = Lab::layers();
    let _mounted = Mounted(lab.path("m"));
    fs::create_dir(lab.path("bin")).unwrap();
    symlink(PLYFS, lab.path("bin/plyfs")).unwrap();
    let path = format!("{}:{}", lab.text("bin"), std::env::var("PATH").unwrap());
    let helper = ["/usr/sbin/mount.fuse3", "/sbin/mount.fuse3"].iter().find(|helper| Path::new(helper).exists());
    let Some(helper) = helper else { crate::skip::skip!("needs mount.fuse3 of the package fuse3") };
    let done = finish(lab.command(helper).env("PATH", &path).args(["src", "m", "-o", &lab.options(), "-t", "plyfs"]));
    assert_eq!(done.code, Some(0), "{done:?}");
    assert_eq!(fs::read_to_string(lab.path("m/top")).unwrap(), "a");
    assert_eq!(mount_at(&lab.path("m")).unwrap().1, "src");
}

#[test]
fn flags_of_the_mount_are_those_asked_for() {
    need_mounts!();
    let lab = Lab::layers();
    let layers = lab.options();
    for (options, present, absent) in [
        ("", &["rw", "relatime"][..], &["nodev", "nosuid", "noexec", "ro"][..]),
        (",ro,nodev,nosuid,noexec,noatime,nodiratime", &["ro", "nodev", "nosuid", "noexec", "noatime", "nodiratime"], &["rw"]),
        (",ro,rw,noexec,exec", &["rw"], &["ro", "noexec"]),
    ] {
        let mounted = lab.mount(&format!("{layers}{options}"));
        let (_, _, shown) = mount_at(&mounted.0).unwrap();
        let shown: Vec<&str> = shown.split(',').collect();
        assert!(present.iter().all(|option| shown.contains(option)), "{options}: {shown:?}");
        assert!(!absent.iter().any(|option| shown.contains(option)), "{options}: {shown:?}");
        assert_eq!(fs::write(lab.path("m/x"), "").is_ok(), !options.contains("ro,nodev"), "{options}");
        lab.plyfs(&["umount", "m"]).ok();
    }
    let _mounted = lab.mount(&format!("rw,lowerdir={}", lab.text("b")));
    let error = fs::write(lab.path("m/x"), "").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem, "without an upper nothing is written");
}

#[test]
fn paths_of_any_bytes_are_layers() {
    need_mounts!();
    let lab = Lab::layers();
    let odd = lab.path(name(b"o:d,d\\ \n\xff"));
    let place = lab.path(name(b"m \n\xfe"));
    fs::create_dir_all(&odd).unwrap();
    fs::create_dir_all(&place).unwrap();
    fs::write(odd.join("odd"), "o").unwrap();
    let mut options = b"lowerdir=".to_vec();
    for &byte in odd.as_os_str().as_encoded_bytes() {
        if b":,\\".contains(&byte) {
            options.push(b'\\');
        }
        options.push(byte);
    }
    options.extend_from_slice(b":b,upperdir=u,workdir=w");
    let _mounted = Mounted(place.clone());
    finish(lab.command(PLYFS).args(["mount", "-o"]).arg(name(&options)).arg(&place)).ok();
    assert_eq!(fs::read_to_string(place.join("odd")).unwrap(), "o");
    fs::remove_file(place.join("odd")).unwrap();
    assert_eq!(finish(lab.command(PLYFS).arg("diff").arg(&place)).ok().text(), "D /odd\n");
    finish(lab.command(PLYFS).arg("umount").arg(&place)).ok();
    assert!(fs::read_dir(&place).unwrap().next().is_none());
}

#[test]
fn the_server_leaves_the_callers_surroundings() {
    need_mounts!();
    let lab = Lab::layers();
    let mounted = Mounted(lab.path("m"));
    // A descriptor that the caller forgot to close, a umask, a directory of its own.
    let script = format!("umask 077; exec 9<a/top; exec {PLYFS} mount -o '{}' m", lab.options());
    finish(lab.command("sh").args(["-c", &script])).ok();
    let pid = server(&mounted.0);
    let proc = Path::new("/proc").join(pid.to_string());
    assert_eq!(fs::read_link(proc.join("cwd")).unwrap(), Path::new("/"));
    let status = fs::read_to_string(proc.join("status")).unwrap();
    assert!(status.contains("Umask:\t0000"), "{status}");
    let stat = fs::read_to_string(proc.join("stat")).unwrap();
    let session: u32 = stat.rsplit_once(") ").unwrap().1.split(' ').nth(3).unwrap().parse().unwrap();
    assert_eq!(session, pid, "a session of its own");
    let targets: Vec<_> = fs::read_dir(proc.join("fd")).unwrap().filter_map(|fd| fs::read_link(fd.unwrap().path()).ok()).collect();
    assert!(!targets.contains(&lab.path("a/top")), "{targets:?}");
    for fd in ["0", "1", "2"] {
        assert_eq!(fs::read_link(proc.join("fd").join(fd)).unwrap(), Path::new("/dev/null"));
    }
    let limits = fs::read_to_string(proc.join("limits")).unwrap();
    let files: Vec<&str> = limits.lines().find(|line| line.starts_with("Max open files")).unwrap().split_whitespace().collect();
    assert_eq!(files[3], files[4], "{limits}");

    fs::write(lab.path("m/made"), "").unwrap();
    fs::create_dir(lab.path("m/dir")).unwrap();
    let mode = |name: &str| fs::metadata(lab.path(name)).unwrap().permissions().mode() & 0o777;
    let umask = rustix::process::umask(rustix::fs::Mode::empty());
    rustix::process::umask(umask);
    assert_eq!(
        (mode("m/made"), mode("m/dir")),
        (0o666 & !umask.bits(), 0o777 & !umask.bits()),
        "the caller's umask counts, not the server's"
    );
}

#[test]
fn in_front_it_ends_with_the_mount_and_with_a_signal() {
    need_mounts!();
    let lab = Lab::layers();
    let mounted = Mounted(lab.path("m"));
    for signal in [Some(Signal::TERM), Some(Signal::INT), Some(Signal::HUP), None] {
        let mut front = Process::start(lab.command(PLYFS).args(["mount", "-f", "-o", &lab.options(), "m"]));
        until("it is mounted", || is_mountpoint(&mounted.0));
        fs::write(lab.path("m/x"), "x").unwrap();
        match signal {
            Some(signal) => front.signal(signal),
            None => drop(lab.plyfs(&["umount", "m"]).ok()),
        }
        assert_eq!(front.code(), Some(0), "{signal:?}");
        assert!(!is_mountpoint(&mounted.0), "{signal:?}");
    }
    assert_eq!(fs::read_dir(lab.path("w/work")).unwrap().count(), 0);
}

#[test]
fn a_signal_while_it_is_in_use_serves_the_last_user_to_the_end() {
    need_mounts!();
    let lab = Lab::layers();
    let mounted = Mounted(lab.path("m"));
    let mut front = Process::start(lab.command(PLYFS).args(["mount", "-f", "-o", &lab.options(), "m"]));
    until("it is mounted", || is_mountpoint(&mounted.0));
    let mut file = fs::File::options().read(true).append(true).open(lab.path("m/low")).unwrap();
    front.signal(Signal::TERM);
    until("it is out of the tree", || !is_mountpoint(&mounted.0));
    file.write_all(b"more").unwrap();
    let mut text = String::new();
    fs::File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file))).unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "bmore");
    assert!(front.0.try_wait().unwrap().is_none(), "it goes on while somebody uses it");
    drop(file);
    assert_eq!(front.code(), Some(0));
    assert_eq!(fs::read_to_string(lab.path("u/low")).unwrap(), "bmore");
}

#[test]
fn traces_go_to_stderr_only_when_asked_for() {
    need_mounts!();
    let lab = Lab::layers();
    let _mounted = lab.mount(&lab.options());
    lab.plyfs(&["umount", "m"]).ok();
    let mut command = lab.command(PLYFS);
    command.args(["mount", "-o", &lab.options(), "m"]).env("PLYFS_LOG", "trace");
    assert_eq!(finish(&mut command).code, Some(0));
    lab.plyfs(&["umount", "m"]).ok();
    let front = lab.command(PLYFS).args(["mount", "-d", "-o", &lab.options(), "m"]).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let mut front = Process(front);
    until("-d stays in front and mounts", || is_mountpoint(&lab.path("m")));
    let mut err = front.0.stderr.take().unwrap();
    lab.plyfs(&["umount", "m"]).ok();
    assert_eq!(front.code(), Some(0));
    let mut text = String::new();
    err.read_to_string(&mut text).unwrap();
    assert!(text.contains("DEBUG"), "{text}");
}
