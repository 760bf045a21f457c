//! Layers on filesystems of several kinds: times, holes, shared blocks, numbers, long paths and deep trees; and the mount's own options.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use plyfs_sys::Errno;

use crate::lab::{Lab, append, errno, find, lab, names, noise, open_rw, python, run, set_times, sh, sh_as, write};
use crate::plain::{answers, prepared, same};

/// Filesystems to test on: the type and options of `mkfs`; tmpfs needs none.
const KINDS: [&[&str]; 4] = [&["ext4", "-q"], &["xfs", "-q"], &["btrfs", "-q"], &["tmpfs"]];

/// A lab on a new filesystem.
fn on(kind: &[&str]) -> Lab {
    let mut lab = Lab::new();
    let place = if kind == ["tmpfs"] { lab.tmpfs("place", "size=256m,noatime") } else { lab.image("place", kind) };
    lab.live_on(&place);
    // As the filesystem itself is mounted.
    lab.more = ",noatime";
    lab
}

/// Seconds at which somebody's time has ended: 1901, 1970, 2038, 2106, 2262, 2446, 2486.
const MOMENTS: [i64; 19] = [
    i32::MIN as i64 - 1,
    i32::MIN as i64,
    i32::MIN as i64 + 1,
    -1_000_000_000,
    -2,
    -1,
    0,
    1,
    i32::MAX as i64,
    i32::MAX as i64 + 1,
    u32::MAX as i64,
    u32::MAX as i64 + 1,
    9_223_372_036,
    9_223_372_037,
    15_032_385_535,
    15_032_385_536,
    16_299_260_424,
    16_299_260_425,
    1 << 40,
];

#[test]
fn times_of_all_centuries_are_those_of_the_layers_filesystem() {
    drop(lab!("python3", "mkfs.ext4", "mkfs.xfs", "mkfs.btrfs"));
    for kind in KINDS {
        let mut lab = on(kind);
        prepared(&mut lab, |dir| {
            for (number, second) in MOMENTS.iter().enumerate() {
                for what in ["kept", "written", "set"] {
                    let path = dir.join(format!("{what} {number}"));
                    fs::write(&path, "x").unwrap();
                    set_times(&path, (*second, 987_654_321), (*second, 1));
                }
                let path = dir.join(format!("dir {number}"));
                write(&path.join("x"), b"x");
                set_times(&path, (*second, 999_999_999), (*second, 123_456_789));
            }
        });
        let moments: Vec<_> = MOMENTS.iter().map(ToString::to_string).collect();
        let program = format!(
            r#"
MOMENTS = [{}]
def times(name):
    s = os.stat(name)
    return s.st_atime_ns, s.st_mtime_ns
for number, moment in enumerate(MOMENTS):
    say(("shown", moment), lambda: [times("%s %d" % (what, number)) for what in ("kept", "written", "set", "dir")])
    # Copied up by what leaves the times as they are, by a write and with times of its own.
    os.chmod("kept %d" % number, 0o600)
    say("kept", lambda: times("kept %d" % number))
    os.open("written %d" % number, RDWR)
    say("opened", lambda: times("written %d" % number))
    os.chmod("dir %d/x" % number, 0o600)
    say("directory", lambda: times("dir %d" % number))
    for ns in 0, 1, 999999999:
        os.utime("set %d" % number, ns=(moment * 10**9 + ns, -moment * 10**9 + ns))
        say("set", lambda: times("set %d" % number))
    f = os.open("set %d" % number, RDONLY)
    os.utime(f, ns=(5, moment * 10**9 + 5))
    say("by a descriptor", lambda: times(f))
"#,
            moments.join(", ")
        );
        let said = answers(&lab, &program);
        assert_eq!(said.lines().count(), MOMENTS.len() * 8, "{said}");
        let shown = "print([(os.stat(n).st_atime_ns, os.stat(n).st_mtime_ns) for n in sorted(os.listdir('.')) if not n.startswith('dir')])";
        let before = answers(&lab, shown);
        lab.remount();
        assert_eq!(answers(&lab, shown), before, "{kind:?}");
        same(&mut lab);
    }
}

#[test]
fn copies_share_the_blocks_of_the_lower_where_the_filesystem_can() {
    const SIZE: u64 = 64 << 20;
    drop(lab!("mkfs.xfs", "mkfs.btrfs", "filefrag"));
    for kind in [["xfs", "-q"], ["btrfs", "-q"]] {
        let mut lab = on(&kind);
        let data = noise(1, SIZE as usize / 2);
        lab.write_lower("f", &data);
        lab.write_lower("small", "x");
        let file = open_rw(&lab.lower("f")).unwrap();
        file.set_len(SIZE + 4096).unwrap();
        file.write_all_at(&data[..4096], SIZE).unwrap();
        file.sync_all().unwrap();
        lab.mount();
        let upper = rustix::fs::open(&lab.upper, rustix::fs::OFlags::RDONLY, 0.into()).unwrap();
        let free = || {
            rustix::fs::syncfs(&upper).unwrap();
            let stat = rustix::fs::fstatvfs(&upper).unwrap();
            stat.f_bfree * stat.f_frsize
        };
        append(&lab.mnt("small"), "x");
        let before = free();
        append(&lab.mnt("f"), "x");
        let taken = before.saturating_sub(free());
        assert!(taken < 4 << 20, "{kind:?}: {taken} bytes");
        let shared = run(Command::new(find("filefrag").unwrap()).arg("-v").arg(lab.upper("f")));
        assert!(shared.contains("shared"), "{kind:?}: {shared}");
        // What is written then is the upper's alone, and holes are holes.
        let copy = open_rw(&lab.mnt("f")).unwrap();
        copy.write_all_at(b"new", 10).unwrap();
        copy.sync_all().unwrap();
        assert!(copy.metadata().unwrap().blocks() * 512 < SIZE * 3 / 4);
        let mut found = vec![0; data.len()];
        copy.read_exact_at(&mut found, 0).unwrap();
        assert!(found[..10] == data[..10] && &found[10..13] == b"new" && found[13..] == data[13..]);
        let mut tail = vec![0; 4097];
        copy.read_exact_at(&mut tail, SIZE).unwrap();
        assert!(tail[..4096] == data[..4096] && tail[4096] == b'x');
        assert!(fs::read(lab.lower("f")).unwrap().starts_with(&data));
        drop((copy, upper));
        lab.unmount();
    }
}

#[test]
fn a_mount_without_devices_programs_or_setuid_has_none_and_one_with_them_has() {
    let mut lab = lab!("python3", "id", "sleep");
    let id = find("id").unwrap().canonicalize().unwrap();
    for dir in [lab.lower("low"), lab.upper("up")] {
        fs::create_dir_all(&dir).unwrap();
        fs::copy(&id, dir.join("id")).unwrap();
        fs::set_permissions(dir.join("id"), fs::Permissions::from_mode(0o4755)).unwrap();
        sh(&dir, "mknod -m 666 null c 1 3; mkfifo -m 666 fifo");
    }
    for (extra, dev, suid, exec) in
        [("", true, true, true), (",nodev", false, true, true), (",nosuid", true, false, true), (",noexec", true, true, false)]
    {
        lab.more = extra;
        lab.mount();
        for dir in ["low", "up"] {
            let opened = errno(File::open(lab.mnt(dir).join("null")));
            assert_eq!(opened, (!dev).then_some(Errno::ACCESS), "{extra} {dir}");
            // A fifo is no device.
            sh(&lab.mnt(dir), "echo through > fifo & cat fifo; wait");
            if exec {
                let user = sh_as(1234, &lab.mnt(dir), "./id -u");
                assert_eq!(user, if suid { "0\n" } else { "1234\n" }, "{extra} {dir}");
            } else {
                assert_eq!(errno(Command::new(lab.mnt(dir).join("id")).spawn()), Some(Errno::ACCESS), "{extra} {dir}");
            }
        }
        lab.unmount();
    }
}

#[test]
fn numbers_are_of_one_object_over_copy_up_links_renames_and_remounts_on_filesystems_that_count_alike() {
    let mut lab = lab!();
    // Each tmpfs begins to count at the same number.
    let upper = lab.tmpfs("upper place", "size=16m");
    lab.live_on(&upper);
    for place in ["a", "b", "c"] {
        let place = lab.tmpfs(place, "size=16m");
        for name in ["f", "g", "d", "e"] {
            let name = format!("{} {name}", place.file_name().unwrap().to_str().unwrap());
            write(&place.join(&name).join("x"), name.as_bytes());
            write(&place.join(format!("{name} file")), name.as_bytes());
            write(&place.join("shared").join(&name), name.as_bytes());
        }
        lab.lowers.push(place);
    }
    for name in ["f", "g", "shared/up"] {
        lab.write_upper(name, "upper");
    }
    lab.mount();
    let all = |lab: &Lab| {
        let mut found = BTreeMap::new();
        let device = fs::metadata(lab.mnt("")).unwrap().dev();
        crate::lab::walk(&lab.mnt(""), &mut |path, meta| {
            assert_eq!(meta.dev(), device, "{}", path.display());
            let mut entries = BTreeMap::new();
            if meta.is_dir() {
                for entry in fs::read_dir(path).unwrap() {
                    let entry = entry.unwrap();
                    entries.insert(entry.path(), std::os::unix::fs::DirEntryExt::ino(&entry));
                }
            }
            for (path, number) in entries {
                assert_eq!(number, fs::symlink_metadata(&path).unwrap().ino(), "{}", path.display());
            }
            found.insert(path.strip_prefix(lab.mnt("")).unwrap().to_str().unwrap().to_owned(), meta.ino());
        });
        found
    };
    let before = all(&lab);
    assert_eq!(before.values().collect::<BTreeSet<_>>().len(), before.len(), "{before:#?}");
    let mut expected = before.clone();
    for place in ["a", "b", "c"] {
        append(&lab.mnt(&format!("{place} f/x")), "+");
        fs::hard_link(lab.mnt(&format!("{place} g file")), lab.mnt(&format!("shared/{place} link"))).unwrap();
        fs::rename(lab.mnt(&format!("{place} d")), lab.mnt(&format!("shared/{place} moved"))).unwrap();
        fs::rename(lab.mnt(&format!("{place} e file")), lab.mnt(&format!("{place} file"))).unwrap();
        for (from, to) in [(" d/x", " moved/x"), (" d", " moved")] {
            let number = expected.remove(&format!("{place}{from}")).unwrap();
            expected.insert(format!("shared/{place}{to}"), number);
        }
        let number = expected.remove(&format!("{place} e file")).unwrap();
        expected.insert(format!("{place} file"), number);
        expected.insert(format!("shared/{place} link"), before[&format!("{place} g file")]);
    }
    assert_eq!(all(&lab), expected);
    lab.remount();
    assert_eq!(all(&lab), expected);
    // A new object has a number of its own, also where a lower one was.
    for place in ["a", "b", "c"] {
        fs::remove_file(lab.mnt(&format!("{place} f/x"))).unwrap();
        fs::write(lab.mnt(&format!("{place} f/x")), "new").unwrap();
        fs::create_dir(lab.mnt(&format!("{place} d"))).unwrap();
    }
    let after = all(&lab);
    let links = 3;
    assert_eq!(after.values().collect::<BTreeSet<_>>().len(), after.len() - links);
    lab.remount();
    assert_eq!(all(&lab), after);
    lab.unmount();
}

#[test]
fn long_names_paths_and_targets_are_taken_and_refused_as_in_a_plain_directory() {
    let mut lab = lab!("python3");
    prepared(&mut lab, |dir| {
        let long = "n".repeat(255);
        write(&dir.join(&long), b"x");
        write(&dir.join("d").join(&long).join(&long), b"x");
        for length in [1, 59, 60, 255, 1000, 4094] {
            std::os::unix::fs::symlink("t".repeat(length), dir.join(format!("link {length}"))).unwrap();
        }
    });
    // 15 directories of 255 bytes and one of what is left make a path of 4,095 bytes.
    let program = r#"
def path(length):
    parts = ["p" * 255] * 15
    return "/".join(parts + ["f" * (length - len("/".join(parts)) - 1)])
for length in 254, 255, 256, 257, 4095, 4096:
    name = "x" * length
    for what, how in (("open", lambda: os.close(os.open(name, CREAT | WRONLY))), ("stat", lambda: os.stat(name).st_size), ("mkdir", lambda: os.mkdir(name + "d")),
        ("rename", lambda: os.rename("n" * 255, name)), ("back", lambda: os.rename(name, "n" * 255)), ("link", lambda: os.link("n" * 255, name)),
        ("symlink", lambda: os.symlink("x", name)), ("unlink", lambda: os.unlink(name)), ("mkfifo", lambda: os.mkfifo(name)), ("unlink", lambda: os.unlink(name))):
        say((what, length), how)
os.makedirs(path(4000).rpartition("/")[0])
for length in 4093, 4094, 4095, 4096, 4097:
    for what, how in (("open", lambda: os.close(os.open(path(length), CREAT | WRONLY))), ("stat", lambda: os.stat(path(length)).st_size),
        ("chmod", lambda: os.chmod(path(length), 0o600)), ("rename", lambda: os.rename(path(length), "short")), ("back", lambda: os.rename("short", path(length)))):
        say((what, length), how)
subprocess.check_call(["rm", "-r", "p" * 255])
for length in 0, 1, 4094, 4095, 4096:
    say(("symlink", length), lambda: os.symlink("t" * length, "new %d" % length))
for name in sorted(os.listdir(".")):
    if os.path.islink(name):
        say(name, lambda: len(os.readlink(name)))
        say("copied up", lambda: os.chown(name, 1, 2, follow_symlinks=False))
        say(name, lambda: (len(os.readlink(name)), os.lstat(name).st_size))
"#;
    let said = answers(&lab, program);
    assert!(said.contains("('open', 256) ENAMETOOLONG\n") && said.contains("('open', 4095) ENAMETOOLONG\n"), "{said}");
    same(&mut lab);
}

#[test]
fn a_file_has_as_many_links_as_the_upper_allows() {
    const LINK_MAX: u64 = 65_000;
    let mut lab = lab!("mkfs.ext4");
    let place = lab.image("place", &["ext4", "-q"]);
    lab.live_on(&place);
    lab.write_upper("f", "x");
    fs::create_dir(lab.upper("links")).unwrap();
    for number in 0..LINK_MAX - 3 {
        fs::hard_link(lab.upper("f"), lab.upper(&format!("links/{number}"))).unwrap();
    }
    lab.mount();
    assert_eq!(fs::metadata(lab.mnt("f")).unwrap().nlink(), LINK_MAX - 2);
    fs::hard_link(lab.mnt("f"), lab.mnt("links/a")).unwrap();
    fs::hard_link(lab.mnt("links/7"), lab.mnt("b")).unwrap();
    assert_eq!(errno(fs::hard_link(lab.mnt("f"), lab.mnt("c"))), Some(Errno::MLINK));
    fs::remove_file(lab.mnt("links/8")).unwrap();
    fs::hard_link(lab.mnt("f"), lab.mnt("c")).unwrap();
    assert_eq!(fs::metadata(lab.mnt("c")).unwrap().nlink(), LINK_MAX);
    lab.unmount();
}

/// Goes down a tree of directories `d`, by descriptors; makes it if asked to.
const DESCEND: &str = "
import os
DEPTH = 10_000
def descend(make=False, then=lambda fd, level: None):
    fd = os.open('.', os.O_RDONLY)
    for level in range(DEPTH):
        if make: os.mkdir('d', dir_fd=fd)
        fd, above = os.open('d', os.O_RDONLY, dir_fd=fd), fd
        os.close(above)
        then(fd, level)
    return fd
def remove(name):
    fd = descend()
    os.unlink(name, dir_fd=fd)
    for level in range(DEPTH):
        fd, below = os.open('..', os.O_RDONLY, dir_fd=fd), fd
        os.close(below)
        os.rmdir('d', dir_fd=fd)
";

#[test]
fn trees_of_10000_levels_are_made_listed_copied_up_renamed_and_removed() {
    let mut lab = lab!("python3");
    lab.watch = false;
    let at = |dir: &Path, then: &str| python(dir, &format!("{DESCEND}{then}"));
    at(&lab.lower(""), "os.write(os.open('f', os.O_CREAT | os.O_WRONLY, dir_fd=descend(True)), b'lower')");
    lab.mount();
    at(
        &lab.mnt(""),
        "def listed(fd, level): assert os.listdir(fd) == (['d'] if level < DEPTH - 1 else ['f']), level\ndescend(then=listed)",
    );
    at(&lab.mnt(""), "os.write(os.open('f', os.O_APPEND | os.O_WRONLY, dir_fd=descend()), b'+')");
    lab.remount();
    let read = "fd = descend(); print(os.read(os.open('f', os.O_RDONLY, dir_fd=fd), 9).decode(), *sorted(os.listdir(fd)))";
    assert_eq!(at(&lab.mnt(""), read), "lower+ f\n");
    assert_eq!(at(&lab.lower(""), read), "lower f\n");
    sh(&lab.mnt(""), "mkdir moved; mv d moved; mv moved/d/d d; rmdir moved/d moved");
    // A level of it is gone.
    at(&lab.mnt(""), "DEPTH -= 1\nremove('f')");
    assert_eq!(names(&lab.mnt("")), [""; 0]);
    lab.remount();
    assert_eq!(names(&lab.mnt("")), [""; 0]);
    assert!(!lab.log().contains("ERROR"), "{}", lab.log());
    lab.unmount();
    at(&lab.lower(""), "remove('f')");
}
