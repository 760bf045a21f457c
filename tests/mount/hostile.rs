//! Layers that somebody made to do harm, or that answer nonsense: what they do not show is not reached, and the server lives.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use plyfs_sys::{Errno, OFlags, mount};

use crate::garbage::Garbage;
use crate::lab::{Lab, append, errno, eventually, lab, names, python, run, set_xattr, sh, sh_as, shell, tree, write};

/// What an ordinary program does with all that it finds.
const USE: &str = "ls -lAR . > /dev/null; cat f g d/in; readlink l; echo + >> f; echo new > d/new; mv d moved; rm -f g; rm -rf e; ls -A . moved > /dev/null; chmod 600 f; echo new > e";

#[test]
fn a_lower_that_answers_nonsense_shows_errors_and_never_the_content_of_another_file() {
    let modes = [
        "none",
        "number-0",
        "number-max",
        "links-0",
        "links-max",
        "nanoseconds",
        "blocks",
        "size-max",
        "size-negative",
        "owner",
        "circle",
        "slash",
        "twice",
        "endless",
        "kinds",
        "no-kind",
        "changing",
        "target",
        "longer",
        "shorter",
        "attribute",
        "attributes",
    ];
    drop(lab!("python3"));
    for mode in modes {
        let mut lab = Lab::new();
        lab.watch = false;
        let place = lab.lower("");
        let plain = lab.path("good");
        write(&plain.join("good/file"), b"good");
        lab.lowers.insert(0, plain);
        let garbage = Garbage::start(&place, mode);
        lab.mount();
        for (file, text) in [("f", "f\n"), ("g", "g\n"), ("d/in", "in\n")] {
            match fs::read_to_string(lab.mnt(file)) {
                // Nobody can tell what such a file holds.
                Ok(_) if matches!(mode, "longer" | "shorter" | "size-max") => {}
                Ok(found) => assert_eq!(found, text, "{mode}: {file}"),
                Err(_) => assert!(mode != "none", "{mode}: {file}"),
            }
        }
        let listed = fs::read_dir(lab.mnt("")).and_then(|entries| entries.collect::<Result<Vec<_>, _>>());
        if let Ok(listed) = listed {
            assert!(listed.len() < 100, "{mode}: {listed:?}");
        }
        let used = shell(&lab.mnt(""), &format!("set +e; {USE}; :")).output().unwrap();
        assert!(used.status.success(), "{mode}: {used:?}");
        assert_eq!(fs::read(lab.mnt("good/file")).unwrap(), b"good", "{mode}");
        fs::write(lab.mnt("good/new"), "new").unwrap();
        lab.unmount();
        drop(garbage);
    }
}

#[test]
fn who_waits_for_a_layer_that_never_answers_holds_nobody_up_elsewhere() {
    let mut lab = lab!("python3");
    lab.watch = false;
    let place = lab.lower("");
    let good = lab.path("good");
    write(&good.join("other/file"), b"good");
    lab.lowers.insert(0, good);
    let garbage = Garbage::start(&place, "hang");
    lab.mount();
    assert_eq!(names(&lab.mnt("d")), ["in"]);
    // More than there are request loops as a rule: each asks for a name of its own.
    let ask =
        |number| Command::new("stat").arg(lab.mnt(&format!("d/hang{number}"))).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mut waiting: Vec<_> = (0..20).map(ask).collect();
    std::thread::sleep(Duration::from_millis(300));
    sh(&lab.mnt("other"), "cat file; echo more >> file; mkdir new; mv file new; rm -r new");
    assert!(waiting.iter_mut().all(|child| child.try_wait().unwrap().is_none()));
    drop(garbage);
    for mut child in waiting {
        eventually("who waited hears that the layer is gone", || child.try_wait().unwrap().is_some());
        assert!(!child.wait().unwrap().success());
    }
    lab.unmount();
}

/// A file under a longer list of attributes than listxattr(2) gives.
fn bury(path: &Path) {
    for number in 0..300 {
        set_xattr(path, &format!("user.{number:0240}"), b"");
    }
    let mut buffer = vec![0; 1 << 16];
    assert_eq!(rustix::fs::llistxattr(path, &mut buffer[..]), Err(rustix::io::Errno::TOOBIG));
}

#[test]
fn an_object_with_more_attributes_than_can_be_listed_is_found_used_and_removed() {
    drop(lab!("mkfs.xfs", "mkfs.btrfs"));
    for kind in [["xfs", "-q"], ["btrfs", "-q"]] {
        let mut lab = Lab::new();
        let place = lab.image("place", &kind);
        lab.live_on(&place);
        for name in ["file", "gone", "dir/x", "hidden/x"] {
            lab.write_lower(name, name);
        }
        lab.write_upper("opaque/up", "up");
        lab.write_lower("opaque/low", "low");
        set_xattr(&lab.upper("opaque"), "trusted.overlay.opaque", b"y");
        bury(&lab.upper("opaque"));
        for name in ["file", "gone", "dir"] {
            bury(&lab.lower(name));
        }
        lab.mount();
        fs::write(lab.mnt("own"), "own").unwrap();
        fs::create_dir(lab.mnt("owndir")).unwrap();
        bury(&lab.mnt("own"));
        bury(&lab.mnt("owndir"));
        lab.remount();
        assert_eq!(names(&lab.mnt("")), ["dir", "file", "gone", "hidden", "opaque", "own", "owndir"], "{kind:?}");
        assert_eq!(names(&lab.mnt("opaque")), ["up"], "{kind:?}: its mark counts");
        for name in ["file", "dir/x", "own"] {
            fs::read(lab.mnt(name)).unwrap();
        }
        sh(
            &lab.mnt(""),
            "echo more >> own; touch owndir/new; chmod 700 owndir; mv own owndir; mv owndir moved; rm gone; rm -r moved opaque",
        );
        // What cannot be listed cannot be copied either.
        assert_eq!(errno(fs::set_permissions(lab.mnt("file"), fs::Permissions::from_mode(0o600))), Some(Errno::TOOBIG));
        lab.remount();
        assert_eq!(names(&lab.mnt("")), ["dir", "file", "hidden"]);
        lab.unmount();
    }
}

#[test]
fn lower_filesystems_that_are_copies_of_one_image_are_told_apart() {
    let mut lab = lab!("mkfs.ext4");
    let (one, two) = (lab.mountpoint("one"), lab.mountpoint("two"));
    let loop_mount = |image: &Path, at: &Path| run(Command::new("mount").args(["-o", "loop"]).arg(image).arg(at));
    let (first, second) = (lab.path("one.img"), lab.path("two.img"));
    File::create(&first).unwrap().set_len(32 << 20).unwrap();
    run(Command::new("mkfs").args(["-t", "ext4", "-q"]).arg(&first));
    loop_mount(&first, &one);
    write(&one.join("l/a"), b"one\n");
    fs::hard_link(one.join("l/a"), one.join("l/b")).unwrap();
    mount::umount(&*one, false).unwrap();
    fs::copy(&first, &second).unwrap();
    loop_mount(&first, &one);
    loop_mount(&second, &two);
    // The same numbers and the same handles, other names and other content.
    for (from, to) in [("l/a", "l/c"), ("l/b", "l/d")] {
        fs::rename(two.join(from), two.join(to)).unwrap();
    }
    fs::write(two.join("l/c"), "two\n").unwrap();
    lab.lowers = vec![one.join("l"), two.join("l")];
    lab.mount();
    append(&lab.mnt("a"), "more\n");
    assert_eq!(fs::metadata(lab.mnt("a")).unwrap().nlink(), 2);
    for (name, text) in [("a", "one\nmore\n"), ("b", "one\nmore\n"), ("c", "two\n"), ("d", "two\n")] {
        assert_eq!(fs::read_to_string(lab.mnt(name)).unwrap(), text, "{name}");
    }
    lab.remount();
    for (name, text) in [("a", "one\nmore\n"), ("c", "two\n"), ("d", "two\n")] {
        assert_eq!(fs::read_to_string(lab.mnt(name)).unwrap(), text, "{name} after a remount");
    }
    let numbers: std::collections::BTreeSet<_> = ["a", "c"].map(|name| fs::metadata(lab.mnt(name)).unwrap().ino()).into();
    assert_eq!(numbers.len(), 2);
    append(&lab.mnt("d"), "more\n");
    assert_eq!(fs::read_to_string(lab.mnt("a")).unwrap(), "one\nmore\n");
    lab.unmount();
}

/// Everything of an object that a change of it would change.
fn trace(path: &Path) -> String {
    let meta = fs::metadata(path).unwrap();
    format!(
        "{:o} {}:{} {} {}.{} {}.{}",
        meta.mode(),
        meta.uid(),
        meta.gid(),
        meta.nlink(),
        meta.ctime(),
        meta.ctime_nsec(),
        meta.mtime(),
        meta.mtime_nsec()
    )
}

#[test]
fn links_in_layers_that_lead_to_the_host_are_only_text_to_the_server() {
    let mut lab = lab!("python3");
    let outside = lab.path("outside");
    write(&outside.join("file"), b"outside");
    fs::create_dir(outside.join("dir")).unwrap();
    let to = |name: &str| outside.join(name).into_os_string().into_string().unwrap();
    let targets = [
        "/proc/self/root".to_owned(),
        "/proc/self/cwd".to_owned(),
        "/proc/self/fd/0".to_owned(),
        "/proc/self/fd/3".to_owned(),
        "/proc/self/exe".to_owned(),
        "/proc/1/root".to_owned(),
        to("file"),
        to("dir"),
        "../../outside/file".to_owned(),
        "loop".to_owned(),
    ];
    for dir in [lab.lower("low"), lab.upper("up")] {
        fs::create_dir_all(&dir).unwrap();
        for (number, target) in targets.iter().enumerate() {
            for copy in 0..3 {
                symlink(target, dir.join(format!("{number}-{copy}"))).unwrap();
            }
        }
        symlink("loop", dir.join("loop")).unwrap();
    }
    let watched = ["/", "/usr", &to("file"), &to("dir"), &to("")].map(|path| (path.to_owned(), trace(Path::new(path))));
    let watched_server = env!("CARGO_BIN_EXE_plyfs");
    let server = trace(Path::new(watched_server));
    lab.mount();
    for dir in ["low", "up"] {
        // As root, everything that follows no link; then all names go.
        python(
            &lab.mnt(dir),
            "import os
for name in sorted(os.listdir('.')):
    before = os.readlink(name)
    os.chown(name, 1234, 5678, follow_symlinks=False)
    os.utime(name, (1, 2), follow_symlinks=False)
    os.setxattr(name, 'trusted.mine', b'x', follow_symlinks=False)
    os.removexattr(name, 'trusted.mine', follow_symlinks=False)
    os.link(name, name + '-link', follow_symlinks=False)
    os.rename(name, name + '-moved')
    s = os.lstat(name + '-link')
    assert (s.st_uid, s.st_gid, s.st_mtime, os.readlink(name + '-moved')) == (1234, 5678, 2, before), name
    if name.endswith('-2'): os.unlink(name + '-link'); os.unlink(name + '-moved')",
        );
    }
    lab.remount();
    for dir in ["low", "up"] {
        sh(&lab.mnt(dir), "rm -r ./*; ls -A");
        assert_eq!(names(&lab.mnt(dir)), [""; 0]);
    }
    lab.unmount();
    for (path, before) in watched {
        assert_eq!(trace(Path::new(&path)), before, "{path}");
    }
    assert_eq!(trace(Path::new(watched_server)), server);
    assert_eq!(fs::read(outside.join("file")).unwrap(), b"outside");
}

#[test]
fn special_files_in_layers_are_never_opened() {
    let mut lab = lab!("mknod", "mkfifo", "python3");
    for dir in [lab.lower("low"), lab.upper("up")] {
        fs::create_dir_all(&dir).unwrap();
        // A terminal and a disk that are not there: who opens them hears of it.
        sh(
            &dir,
            "mkfifo fifo; mknod tty c 4 63; mknod disk b 7 255; mknod null c 1 3; python3 -c \"import socket; socket.socket(socket.AF_UNIX).bind('socket')\"; echo x > file",
        );
    }
    lab.mount();
    for dir in ["low", "up"] {
        sh(
            &lab.mnt(dir),
            "for f in fifo tty disk null socket; do chmod 640 $f; chown 12:34 $f; touch -h $f; ln $f $f-link; mv $f $f-moved; done; ls -l >/dev/null; cp -a . ../copy-$(basename $PWD)",
        );
        assert_eq!(names(&lab.mnt(dir)).len(), 11);
    }
    // A file that became a fifo or a device behind the server's back, while its name is known.
    for (what, make) in [("fifo", "mkfifo file"), ("device", "mknod file c 1 8")] {
        let held = File::open(lab.mnt("up/file")).unwrap();
        fs::metadata(lab.mnt("up/file")).unwrap();
        sh(&lab.upper("up"), &format!("rm file; {make}"));
        for way in ["cat file", "echo x >> file", "truncate -s 0 file", "chmod 600 file"] {
            let done = shell(&lab.mnt("up"), &format!("timeout 10 sh -c '{way}' 2>&1 || :")).output().unwrap();
            assert!(done.status.success(), "{what}: {way}: {done:?}");
        }
        drop(held);
        sh(&lab.upper("up"), "rm -f file; echo x > file");
        lab.forget_entries();
    }
    lab.unmount();
}

#[test]
fn a_lower_file_that_changes_while_it_is_copied_up_is_copied_whole_or_not_at_all() {
    const SIZE: usize = 24 << 20;
    let mut lab = lab!();
    lab.watch = false;
    let fill = |path: &Path, byte: u8| write(path, &vec![byte; SIZE]);
    for round in 0..6_u8 {
        fill(&lab.lower(&format!("d/{round}")), b'a' + round);
    }
    lab.mount();
    for round in 0..6_u8 {
        let (name, lower) = (format!("d/{round}"), lab.lower(&format!("d/{round}")));
        let other = lab.path("other");
        fill(&other, b'A' + round);
        fs::metadata(lab.mnt(&name)).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(3));
                match round {
                    // Of another size, another object, another kind.
                    0 => File::options().write(true).open(&lower).unwrap().set_len(5).unwrap(),
                    1 => File::options().write(true).open(&lower).unwrap().set_len(2 * SIZE as u64).unwrap(),
                    2 => fs::rename(&other, &lower).unwrap(),
                    3 => {
                        fs::remove_file(&lower).unwrap();
                        fs::create_dir(&lower).unwrap();
                    }
                    4 => {
                        fs::remove_file(&lower).unwrap();
                        symlink(lab.path("other"), &lower).unwrap();
                    }
                    _ => sh(lower.parent().unwrap(), &format!("rm {round}; mkfifo {round}")).clear(),
                }
            });
            // Of a fifo nobody must wait for the other end.
            let open = File::options().write(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(lab.mnt(&name));
            drop(open.and_then(|file| file.write_at(b"!", 0)));
        });
        let copied = fs::symlink_metadata(lab.upper(&name)).is_ok_and(|meta| meta.is_file());
        if copied {
            let found = fs::read(lab.upper(&name)).unwrap();
            let rest = &found[1.min(found.len())..];
            let uniform = |part: &[u8]| part.windows(2).all(|pair| pair[0] == pair[1]);
            let (data, tail) = rest.split_at(rest.len().min(SIZE - 1));
            assert!(uniform(data) && tail.iter().all(|byte| *byte == 0), "{round}: a mixture of {} bytes", found.len());
        }
    }
    lab.abandon();
}

#[test]
fn a_workdir_that_somebody_prepared_leads_nowhere_else() {
    let lab = lab!();
    let outside = lab.path("outside");
    for prepare in [
        "ln -s ../outside work/work",
        "ln -s ../outside work/index",
        "mkdir work/work; ln -s ../../outside work/work/link; mkdir work/work/d; ln -s ../../../outside work/work/d/link",
        "mkdir -p work/work/$(printf '%s/' d d d d d d d d)x; echo x > work/work/d/d/f",
        "echo x > work/work",
        "mkfifo work/work",
        "echo x > work/index",
        "mkdir work/work; mknod work/work/c c 0 0; mkfifo work/work/p",
    ] {
        write(&outside.join("d/precious"), b"precious");
        sh(&lab.path(""), &format!("rm -rf work; mkdir work; {prepare}"));
        let before = tree(&outside);
        let options = lab.options();
        let done = lab.plyfs(&["mount", "-o"]).arg(&options).arg(lab.mnt("")).output().unwrap();
        if done.status.success() {
            assert!(lab.is_mounted());
            let left = names(&lab.work.join("work"));
            assert!(left.is_empty(), "{prepare}: {left:?}");
            fs::write(lab.mnt("new"), "new").unwrap();
            sh(&lab.path(""), &format!("{} umount mnt; rm upper/new", env!("CARGO_BIN_EXE_plyfs")));
        } else {
            let text = String::from_utf8(done.stderr).unwrap();
            assert!(text.starts_with("plyfs: workdir ") && text.contains("; ") && text.lines().count() == 1, "{prepare}: {text}");
        }
        assert_eq!(tree(&outside), before, "{prepare}");
    }
}

#[test]
fn a_lower_root_may_be_a_link_and_a_link_to_itself_is_refused() {
    let mut lab = lab!();
    lab.write_lower("f", "lower");
    symlink("lower", lab.path("link")).unwrap();
    symlink("self", lab.path("self")).unwrap();
    lab.lowers = vec![lab.path("link")];
    lab.watch = false;
    lab.mount();
    fs::remove_file(lab.path("link")).unwrap();
    symlink("/", lab.path("link")).unwrap();
    assert_eq!(names(&lab.mnt("")), ["f"], "the layer is what was there at the mount");
    append(&lab.mnt("f"), "+");
    lab.unmount();
    assert_eq!(fs::read(lab.lower("../lower/f")).ok(), None, "the link leads elsewhere");
    assert_eq!(fs::read(lab.path("lower/f")).unwrap(), b"lower");
    let options = format!("lowerdir={}", lab.path("self").display());
    let refused = lab.plyfs(&["mount", "-o", &options]).arg(lab.mnt("")).output().unwrap();
    let text = String::from_utf8(refused.stderr).unwrap();
    assert!(refused.status.code() == Some(1) && text.contains("loop of symlinks"), "{text}");
}

/// What a user may try to make a mark of the layer that the changes go to, as himself or as root of a container.
const FORGE: &str = r#"
import os, socket, ctypes
MARKS = ["opaque", "redirect", "metacopy", "origin", "whiteout", "nlink", "impure", "upper", "uuid", "protattr", "plyfs.device", "plyfs.before", "bogus"]
VALUES = [b"y", b"x", b"/secret", b"", b"U+9", b"ia", b"0:0", bytes.fromhex("00fb1d00019396a6f33ac840d396094d410814720006800000a773e029")]
def attempt(what):
    try: what(); return True
    except OSError: return False
for prefix in ["trusted.overlay.", "user.overlay.", "user.fuseoverlayfs.", "trusted.overlay.overlay.", "user.overlay.overlay.", "user.containers.override_"]:
    for number, mark in enumerate(MARKS + ["stat"]):
        for name in ["d", "file", "empty", "own", "owndir"]:
            attempt(lambda: os.setxattr(name, prefix + mark, VALUES[number % len(VALUES)]))
            attempt(lambda: os.setxattr(os.open(name, os.O_RDONLY), prefix + mark, VALUES[(number + 1) % len(VALUES)]))
for name in ["file", "d", "d/in"]:
    for make in (lambda n: open(n, "x").close(), os.mkdir, os.mkfifo, lambda n: os.symlink("x", n), lambda n: os.rename("own", n), lambda n: os.link("own", n),
                 lambda n: os.mknod(n, 0o20600, 0), lambda n: socket.socket(socket.AF_UNIX).bind(n)):
        forged = os.path.join(os.path.dirname(name), ".wh." + os.path.basename(name))
        if attempt(lambda: make(forged)) and not os.path.exists("own"): open("own", "x").close()
        attempt(lambda: (os.rmdir if os.path.isdir(forged) else os.rename)(forged, *([] if os.path.isdir(forged) else [forged + "-old"])))
for name in [".wh..wh..opq", "d/.wh..wh..opq", "d/.wh..wh.plnk", ".wh.", ".wh..", ".wh..."]:
    attempt(lambda: open(name, "x").close())
attempt(lambda: os.mknod("device", 0o20600, 0))
attempt(lambda: os.link("device", "device-link"))
attempt(lambda: os.rename("device", "d/device"))
attempt(lambda: os.mknod("device-1", 0o20600, 1))
attempt(lambda: os.setxattr("device-1", "trusted.overlay.plyfs.device", b"0:0"))
RENAME_WHITEOUT, AT_FDCWD = 4, -100
ctypes.CDLL(None).renameat2(AT_FDCWD, b"left", AT_FDCWD, b"right", RENAME_WHITEOUT)
os.copy_file_range(os.open("file", os.O_RDONLY), os.open(".wh.copied", os.O_CREAT | os.O_WRONLY), 4)
"#;

#[test]
fn marks_that_users_forge_in_any_way_hide_and_lead_to_nothing() {
    for dialect in ["", ",userxattr"] {
        for user in [0, 1234] {
            let mut lab = lab!("python3", "setpriv");
            lab.more = dialect;
            for name in ["file", "empty", "d/in", "d/more", "secret/file"] {
                lab.write_lower(name, if name == "empty" { "" } else { "text" });
            }
            fs::set_permissions(lab.lower("secret"), fs::Permissions::from_mode(0o700)).unwrap();
            for dir in [lab.lower(""), lab.upper("")] {
                sh(&dir, &format!("chown -R {user}:{user} ."));
            }
            sh(&lab.lower(""), "chown -R 0:0 secret");
            lab.mount();
            sh_as(user, &lab.mnt(""), "echo own > own; mkdir owndir; echo x > owndir/x; echo x > left");
            run(Command::new("timeout").args(["120", "python3", "-c", FORGE]).uid(user).gid(user).current_dir(lab.mnt("")));
            let listing = "find . ! -type c -printf '%P %y %m %U %s\n'; find . -type c -printf '%P %y\n'";
            let shown = sh(&lab.mnt(""), &format!("{{ {listing}; }} | sort"));
            assert!(shown.contains("\nright f") || shown.contains("\nleft f"), "{dialect} {user}: {shown}");
            for name in ["file f", "empty f", "d d", "d/in f", "d/more f", "secret/file f", "owndir/x f", "own f"] {
                assert!(shown.lines().any(|line| line.starts_with(name)), "{dialect} {user}: {name} is hidden: {shown}");
            }
            let attributes = tree(&lab.mnt(""));
            lab.remount();
            assert_eq!(sh(&lab.mnt(""), &format!("{{ {listing}; }} | sort")), shown, "{dialect} {user}");
            assert_eq!(tree(&lab.mnt("")), attributes, "{dialect} {user}");
            assert_eq!(fs::read_to_string(lab.mnt("file")).unwrap(), "text");
            if user != 0 {
                let read = shell(
                    &lab.mnt(""),
                    "setpriv --reuid 1234 --regid 1234 --clear-groups sh -c 'cat secret/file d/secret/file owndir/file own'",
                )
                .output()
                .unwrap();
                assert!(!String::from_utf8_lossy(&read.stdout).contains("text"), "{read:?}");
            }
            lab.unmount();
            // The kernel's own overlayfs takes what is there for the same.
            let options =
                format!("{}{}", lab.options().into_string().unwrap(), if dialect.is_empty() { ",redirect_dir=on,index=on" } else { "" });
            crate::kernel::overlay(&options, &lab.mnt("")).unwrap();
            let kernel = sh(&lab.mnt(""), &format!("{{ {listing}; }} | sort"));
            mount::umount(&*lab.mnt(""), false).unwrap();
            assert_eq!(kernel, shown, "{dialect} {user}: kernel overlayfs");
        }
    }
}

#[test]
fn a_private_directory_is_private_while_and_after_it_is_copied_up() {
    let mut lab = lab!("python3");
    for number in 0..60 {
        lab.write_lower(&format!("open/{number}/private/secret"), "secret");
        let path = lab.lower(&format!("open/{number}/private"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    }
    sh(&lab.lower(""), "chmod 755 . open open/*; chmod 644 open/*/private/secret");
    lab.mount();
    let stop = lab.path("stop");
    let program = format!(
        "import os
read = 0
while not os.path.exists('{}'):
    for number in range(60):
        for way in (lambda n: open(n).read(), lambda n: os.listdir(os.path.dirname(n)), os.stat):
            try: way('open/%d/private/secret' % number); read += 1
            except PermissionError: pass
print(read)",
        stop.display()
    );
    let root = lab.mnt("");
    std::thread::scope(|scope| {
        let spy = scope.spawn(|| sh_as(1234, &root, &format!("python3 -c \"{program}\"")));
        for number in 0..60 {
            append(&lab.mnt(&format!("open/{number}/private/secret")), "more");
            fs::write(lab.mnt(&format!("open/{number}/private/new")), "new").unwrap();
        }
        fs::write(&stop, "").unwrap();
        assert_eq!(spy.join().unwrap(), "0\n", "somebody read what is private");
    });
    for number in 0..60 {
        assert_eq!(fs::metadata(lab.mnt(&format!("open/{number}/private"))).unwrap().mode() & 0o7777, 0o700);
        assert_eq!(fs::metadata(lab.upper(&format!("open/{number}/private"))).unwrap().mode() & 0o7777, 0o700);
    }
    lab.unmount();
}
