//! Copy-ups: what they keep, and what is left when they fail or are killed.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use plyfs_sys::Errno;

use crate::lab::{Lab, append, errno, eventually, lab, names, noise, open_rw, set_times, set_xattr, sh, shell, xattrs};

/// Everything that a copy-up keeps, as text.
fn kept(path: &Path) -> String {
    let meta = fs::symlink_metadata(path).unwrap();
    let (mode, uid, gid, xattrs) = (meta.mode(), meta.uid(), meta.gid(), xattrs(path));
    format!("{mode:o} {uid}:{gid} {}.{:09} {xattrs:?}", meta.mtime(), meta.mtime_nsec())
}

fn atime(path: &Path) -> (i64, i64) {
    let meta = fs::symlink_metadata(path).unwrap();
    (meta.atime(), meta.atime_nsec())
}

const DIRS: [u32; 6] = [0o700, 0o1777, 0o2775, 0o755, 0o500, 0o7777];
const FILES: [u32; 7] = [0o600, 0o4755, 0o2755, 0o6711, 0o1644, 0o400, 0o666];

/// Directories and files of many modes, owners and times.
fn objects(lab: &Lab) -> Vec<String> {
    let mut all = Vec::new();
    for mode in DIRS {
        let dir = format!("dir {mode:o}");
        for (number, mode) in FILES.iter().enumerate() {
            let file = format!("{dir}/file {mode:o}");
            lab.write_lower(&file, format!("content of {file}"));
            let path = lab.lower(&file);
            chown(&path, Some(1000 + number as u32), Some(2000)).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).unwrap();
            set_xattr(&path, "user.k", file.as_bytes());
            set_xattr(&path, "trusted.k", b"\0\x01");
            if *mode == 0o2755 {
                // cap_net_raw, effective: a chown after it would take it away again.
                set_xattr(&path, "security.capability", b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
            }
            set_times(&path, (1_000_000_000, 123_456_789), (-5, 987_654_321));
            all.push(file);
        }
        let path = lab.lower(&dir);
        chown(&path, Some(3000), Some(4000)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        set_xattr(&path, "user.d", dir.as_bytes());
        if mode == 0o755 {
            sh(&path, "setfacl -m u:77:rwx -d -m u:78:r-x,g:79:rwx .");
        }
        set_times(&path, (1_100_000_000, 1), (1_200_000_000, 2));
        all.push(dir);
    }
    all
}

fn copies_keep_everything(umask: u32, script: &str) {
    let mut lab = Lab::new();
    lab.umask = umask;
    let all = objects(&lab);
    let expected: Vec<_> = all.iter().map(|path| kept(&lab.lower(path))).collect();
    lab.mount();
    let found: Vec<_> = all.iter().map(|path| kept(&lab.mnt(path))).collect();
    assert_eq!(found, expected);
    sh(&lab.mnt(""), &format!("umask {umask:o}; for f in dir*/file*; do {script}; done"));
    for again in [false, true] {
        for (path, expected) in all.iter().zip(&expected) {
            assert_eq!(&kept(&lab.mnt(path)), expected, "{path}, remounted: {again}");
            let up = kept(&lab.upper(path));
            let without_xattrs = |text: &str| text.split(" [").next().unwrap().to_owned();
            assert_eq!(without_xattrs(&up), without_xattrs(expected), "{path} in the upper");
        }
        if !again {
            lab.remount();
        }
    }
    for path in &all {
        if path.contains('/') {
            assert_eq!(atime(&lab.upper(path)), (1_000_000_000, 123_456_789), "{path}");
        }
    }
    lab.unmount();
}

#[test]
fn files_opened_for_writing_keep_what_they_were_and_so_do_their_directories() {
    if let Some(reason) = crate::lab::missing(&["setfacl"]) {
        crate::skip::skip!("{reason}");
    }
    copies_keep_everything(0o022, ": 3<>\"$f\"");
    copies_keep_everything(0o077, ": 3<>\"$f\"");
}

#[test]
fn files_changed_and_changed_back_keep_what_they_were_and_so_do_their_directories() {
    if let Some(reason) = crate::lab::missing(&["setfacl", "setfattr"]) {
        crate::skip::skip!("{reason}");
    }
    copies_keep_everything(0o077, "setfattr -n user.tmp -v 1 \"$f\"; setfattr -x user.tmp \"$f\"");
}

#[test]
fn a_directory_that_gets_an_entry_keeps_its_mode_owner_and_xattrs() {
    let mut lab = lab!("setfacl");
    lab.umask = 0o077;
    let all = objects(&lab);
    let dirs: Vec<_> = all.iter().filter(|path| !path.contains('/')).collect();
    let without_mtime = |path: &Path| {
        let text = kept(path);
        let words: Vec<_> = text.splitn(4, ' ').collect();
        format!("{} {} {}", words[0], words[1], words[3])
    };
    let expected: Vec<_> = dirs.iter().map(|dir| without_mtime(&lab.lower(dir))).collect();
    lab.mount();
    sh(&lab.mnt(""), "umask 077; for d in dir*; do mkdir \"$d/new\"; done");
    for _ in 0..2 {
        for (dir, expected) in dirs.iter().zip(&expected) {
            assert_eq!(&without_mtime(&lab.mnt(dir)), expected, "{dir}");
            assert!(lab.mnt(dir).join("new").is_dir());
        }
        lab.remount();
    }
    lab.unmount();
}

#[test]
fn special_files_and_symlinks_keep_what_they_were() {
    let mut lab = lab!();
    sh(&lab.lower(""), "mkfifo -m 640 fifo; mknod char c 5 300; chmod 4660 char; mknod -m 600 block b 7 70000; ln -s 'to nowhere' link");
    let all = ["fifo", "char", "block", "link"];
    for name in all {
        std::os::unix::fs::lchown(lab.lower(name), Some(11), Some(12)).unwrap();
        set_xattr(&lab.lower(name), "trusted.k", name.as_bytes());
        set_times(&lab.lower(name), (1_000_000_000, 0), (1_300_000_000, 7));
    }
    lab.umask = 0o077;
    let shown = |path: &Path| format!("{} {} {:?}", kept(path), fs::symlink_metadata(path).unwrap().rdev(), fs::read_link(path).ok());
    let expected = all.map(|name| shown(&lab.lower(name)));
    lab.mount();
    for name in all {
        fs::rename(lab.mnt(name), lab.mnt("moved")).unwrap();
        fs::rename(lab.mnt("moved"), lab.mnt(name)).unwrap();
    }
    assert_eq!(all.map(|name| shown(&lab.mnt(name))), expected);
    lab.remount();
    assert_eq!(all.map(|name| shown(&lab.mnt(name))), expected);
    lab.unmount();
}

#[test]
fn stale_files_in_work_are_neither_used_nor_left() {
    let mut lab = lab!();
    lab.write_lower("dir/file", "the file's own");
    lab.write_lower("dir/other", "the other's own");
    sh(&lab.lower("dir"), "ln -s target link; mkfifo fifo");
    fs::create_dir(lab.path("outside")).unwrap();
    fs::write(lab.path("outside/precious"), "precious").unwrap();
    let work = lab.work.join("work");
    fs::create_dir(&work).unwrap();
    for number in 0..40 {
        let path = work.join(format!("#{number:x}"));
        match number % 5 {
            0 => fs::write(path, "stale and much longer than what is copied").unwrap(),
            1 => fs::create_dir_all(path.join("deep/deeper/deepest")).unwrap(),
            2 => symlink(lab.path("outside"), path).unwrap(),
            3 => symlink(lab.path("outside/precious"), path).unwrap(),
            _ => {
                fs::create_dir(&path).unwrap();
                fs::write(path.join("x"), "stale").unwrap();
                fs::set_permissions(path, fs::Permissions::from_mode(0o000)).unwrap();
            }
        }
    }
    lab.mount();
    assert_eq!(lab.staged(), [""; 0]);
    append(&lab.mnt("dir/file"), "+");
    open_rw(&lab.mnt("dir/other")).unwrap();
    fs::rename(lab.mnt("dir/link"), lab.mnt("dir/link2")).unwrap();
    fs::rename(lab.mnt("dir/fifo"), lab.mnt("dir/fifo2")).unwrap();
    fs::remove_file(lab.mnt("dir/link2")).unwrap();
    fs::create_dir(lab.mnt("dir/link")).unwrap();
    lab.remount();
    assert_eq!(fs::read_to_string(lab.mnt("dir/file")).unwrap(), "the file's own+");
    assert_eq!(fs::read_to_string(lab.mnt("dir/other")).unwrap(), "the other's own");
    assert_eq!(names(&lab.mnt("dir")), ["fifo2", "file", "link", "other"]);
    assert_eq!(names(&lab.mnt("dir/link")), [""; 0]);
    assert_eq!(fs::read_to_string(lab.path("outside/precious")).unwrap(), "precious");
    assert_eq!(names(&lab.path("outside")), ["precious"]);
    lab.unmount();
}

#[test]
fn killed_during_a_copy_up_a_file_is_old_or_new_and_the_next_has_its_own_bytes() {
    const SIZE: usize = 96 << 20;
    let mut lab = lab!();
    let big = noise(9, SIZE);
    lab.write_lower("big", &big);
    for round in 0..6 {
        lab.write_lower(&format!("small{round}"), noise(100 + round, 5000));
    }
    let mut copied_in_part = 0;
    for (round, delay) in [0, 4, 12, 30, 60, 120].into_iter().enumerate() {
        lab.mount();
        let mut writer = shell(&lab.mnt(""), "echo x >> big").stderr(std::process::Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(delay));
        copied_in_part += usize::from(writer.try_wait().unwrap().is_none());
        lab.kill();
        writer.wait().unwrap();
        lab.mount();
        assert_eq!(lab.staged(), [""; 0]);
        let found = fs::read(lab.mnt("big")).unwrap();
        assert!(found.starts_with(&big), "round {round}: neither old nor new, {} bytes", found.len());
        assert!(found[SIZE..].iter().all(|&byte| matches!(byte, b'x' | b'\n')), "round {round}");
        let small = format!("small{round}");
        open_rw(&lab.mnt(&small)).unwrap();
        assert_eq!(fs::read(lab.upper(&small)).unwrap(), noise(100 + round as u64, 5000));
        assert_eq!(fs::read(lab.mnt(&small)).unwrap(), noise(100 + round as u64, 5000));
        lab.unmount();
        // The next round has it to copy again.
        fs::remove_file(lab.upper("big")).or_else(|error| if lab.upper("big").exists() { Err(error) } else { Ok(()) }).unwrap();
    }
    assert!(copied_in_part > 0, "no copy-up was ever killed");
}

/// A lab with an upper of a few MiB, and lower files that it can and cannot hold.
fn small_upper(lab: &mut Lab, options: &str) {
    let small = lab.tmpfs("small", options);
    lab.upper = small.join("upper");
    lab.work = small.join("work");
    fs::create_dir(&lab.upper).unwrap();
    fs::create_dir(&lab.work).unwrap();
    lab.write_lower("big", noise(1, 16 << 20));
    lab.write_lower("small", noise(2, 20_000));
}

#[test]
fn a_copy_up_that_finds_no_space_says_so_and_leaves_nothing() {
    let mut lab = lab!();
    small_upper(&mut lab, "size=8m");
    lab.mount();
    let free = |lab: &Lab| {
        let stat = rustix::fs::statvfs(&lab.upper).unwrap();
        (stat.f_bfree, stat.f_ffree)
    };
    let fds = |lab: &Lab| fs::read_dir(format!("/proc/{}/fd", lab.pid())).unwrap().count();
    let big = lab.mnt("big");
    let attempt = |how: usize| match how {
        0 => errno(OpenOptions::new().append(true).open(&big)),
        1 => errno(open_rw(&big)),
        2 => errno(fs::set_permissions(&big, fs::Permissions::from_mode(0o600))),
        3 => errno(chown(&big, Some(1), None)),
        4 => errno(fs::rename(&big, lab.mnt("moved"))),
        5 => errno(fs::hard_link(&big, lab.mnt("linked"))),
        6 => errno(rustix::fs::setxattr(&big, "user.x", b"y", rustix::fs::XattrFlags::empty()).map_err(Into::into)),
        _ => errno(rustix::fs::openat(rustix::fs::CWD, &big, rustix::fs::OFlags::RDWR, 0.into()).map_err(Into::into)),
    };
    assert_eq!(attempt(0), Some(Errno::NOSPC));
    let (before, open) = (free(&lab), fds(&lab));
    for how in 0..7 {
        assert_eq!(attempt(how), Some(Errno::NOSPC), "attempt {how}");
        assert_eq!(lab.staged(), [""; 0], "attempt {how}");
        eventually("what was copied is given back", || free(&lab) == before);
    }
    eventually("descriptors are closed", || fds(&lab) <= open);
    assert_eq!(names(&lab.mnt("")), ["big", "small"]);
    assert_eq!(fs::read(&big).unwrap(), noise(1, 16 << 20));
    assert_eq!(fs::metadata(&big).unwrap().mode() & 0o777, fs::metadata(lab.lower("big")).unwrap().mode() & 0o777);
    // What fits is copied up, what needs no data takes none.
    append(&lab.mnt("small"), "+");
    File::create(&big).unwrap().write_all(b"short").unwrap();
    lab.remount();
    assert_eq!(fs::read(&big).unwrap(), b"short");
    assert_eq!(fs::metadata(lab.mnt("small")).unwrap().len(), 20_001);
    lab.unmount();
}

#[test]
fn a_write_that_finds_no_space_says_so() {
    let mut lab = lab!();
    small_upper(&mut lab, "size=1m");
    lab.mount();
    let mut file = OpenOptions::new().append(true).open(lab.mnt("small")).unwrap();
    let mut written = 20_000;
    let failed = loop {
        match file.write(&noise(3, 64 << 10)) {
            Ok(count) => written += count,
            Err(error) => break error,
        }
        assert!(written < 2 << 20);
    };
    assert_eq!(errno::<()>(Err(failed)), Some(Errno::NOSPC));
    drop(file);
    assert_eq!(fs::metadata(lab.mnt("small")).unwrap().len(), written as u64);
    // Deleting makes room again.
    fs::remove_file(lab.mnt("small")).unwrap();
    eventually("the space comes back", || fs::write(lab.mnt("again"), noise(4, 512 << 10)).is_ok());
    lab.unmount();
}

#[test]
fn many_copy_ups_at_once_do_not_stop_look_ups() {
    const FILES: usize = 24;
    const SIZE: usize = 6 << 20;
    let mut lab = lab!();
    for number in 0..FILES {
        lab.write_lower(&format!("dir{}/big{number}", number % 3), noise(number as u64, SIZE));
    }
    for number in 0..500 {
        lab.write_lower(&format!("names/{number}"), "x");
    }
    lab.mount();
    let done = AtomicUsize::new(0);
    let mut seen_meanwhile = 0;
    std::thread::scope(|scope| {
        for number in 0..FILES {
            let (lab, done) = (&lab, &done);
            scope.spawn(move || {
                append(&lab.mnt(&format!("dir{}/big{number}", number % 3)), "+");
                done.fetch_add(1, Ordering::SeqCst);
            });
        }
        for number in 0..500 {
            // Found, not there, and made.
            assert_eq!(fs::read(lab.mnt(&format!("names/{number}"))).unwrap(), b"x");
            assert_eq!(errno(fs::metadata(lab.mnt(&format!("names/no{number}")))), Some(Errno::NOENT));
            if number % 10 == 0 {
                fs::write(lab.mnt(&format!("new{number}")), "new").unwrap();
            }
            seen_meanwhile += usize::from(done.load(Ordering::SeqCst) < FILES);
        }
    });
    assert!(seen_meanwhile > 20, "only {seen_meanwhile} look-ups while files were copied");
    for number in 0..FILES {
        let mut expected = noise(number as u64, SIZE);
        expected.push(b'+');
        assert!(fs::read(lab.mnt(&format!("dir{}/big{number}", number % 3))).unwrap() == expected, "big{number}");
    }
    lab.unmount();
}
