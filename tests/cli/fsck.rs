//! `plyfs fsck`: what is wrong is told by its path, mended where it can be, and nothing with content is lost.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{XattrFlags, lgetxattr, lsetxattr};
use serde_json::Value;

use crate::lab::{Done, Lab, Mounted, need_mounts};

const ENTRY: &str = "00fb1d00019396a6f33ac840d396094d410814720006800000a773e029";

fn mark(path: impl AsRef<Path>, name: &str, value: &[u8]) {
    lsetxattr(path.as_ref(), format!("trusted.overlay.{name}"), value, XattrFlags::empty()).unwrap();
}

fn marked(path: impl AsRef<Path>, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 4096];
    let len = lgetxattr(path.as_ref(), format!("trusted.overlay.{name}"), &mut value[..]).ok()?;
    value.truncate(len);
    Some(value)
}

fn fsck(lab: &Lab, more: &[&str]) -> Done {
    let (upper, work) = (lab.text("u"), lab.text("w"));
    let mut args = vec!["fsck", "--upper", &upper, "--work", &work];
    args.extend(more);
    lab.plyfs(&args)
}

/// Unmounts, and waits for the end of the server: who makes a mount namespace meanwhile has a copy of the mount for a while.
fn unmount(lab: &Lab) {
    let server = crate::lab::server(&lab.path("m"));
    let done = lab.plyfs(&["umount", "m"]);
    assert_eq!(done.code, Some(0), "{done:?}");
    crate::lab::until("the server ends", || {
        // One whose parent does not ask is a zombie.
        let stat = fs::read_to_string(format!("/proc/{server}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_none_or(|(_, state)| state.starts_with('Z'))
    });
}

/// A lab whose upper was used: a copied-up file, a moved directory, a hard link that is in the index, a whiteout, an opaque directory, a new file.
fn used() -> Lab {
    let lab = Lab::layers();
    fs::hard_link(lab.path("b/low"), lab.path("b/d/alias")).unwrap();
    fs::create_dir_all(lab.path("b/gone/in")).unwrap();
    {
        let _mounted = lab.mount(&lab.options());
        sh(
            &lab,
            "echo more >> top; mv d moved; echo more >> low; rm -r gone; mkdir gone; echo new > gone/new; mkdir fresh; echo x > fresh/x; rm moved/f",
        );
        unmount(&lab);
    }
    lab
}

fn sh(lab: &Lab, script: &str) {
    let done = Command::new("sh").args(["-ec", script]).current_dir(lab.path("m")).output().unwrap();
    assert!(done.status.success(), "{script}: {done:?}");
}

/// All that a mount shows, in words.
fn shown(lab: &Lab) -> String {
    let _mounted = lab.mount(&lab.options());
    let list = "find . -mindepth 1 -printf '%P %M %s\\n' | sort; find . -type f | sort | xargs cat";
    let done = Command::new("sh").args(["-ec", list]).current_dir(lab.path("m")).output().unwrap();
    unmount(lab);
    String::from_utf8(done.stdout).unwrap()
}

#[test]
fn an_upper_that_was_used_is_clean_mounted_or_killed_it_is_not() {
    need_mounts!();
    let lab = used();
    let before = lab.snapshot();
    for more in [&[][..], &["--repair"], &["--lower", "a:b"], &["--repair", "--json", "--lower", "a:b"]] {
        let done = fsck(&lab, more).ok();
        assert_eq!(done.text(), if more.contains(&"--json") { "[]\n" } else { "" });
    }
    assert_eq!(lab.snapshot(), before, "nothing was changed");
    let mounted = lab.mount(&lab.options());
    fsck(&lab, &[]).refused(8, &format!("upperdir {} is in use", lab.text("u")), &["; unmount"]);
    let server = crate::lab::server(&lab.path("m"));
    let held = fs::File::create(lab.path("m/held")).unwrap();
    fs::remove_file(lab.path("m/held")).unwrap();
    let pid = rustix::process::Pid::from_raw(i32::try_from(server).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    drop((held, mounted));
    // Of the kernel, and of another that staged here.
    fs::create_dir_all(lab.path("w/work/#5/deep")).unwrap();
    fs::write(lab.path("w/work/#5/deep/f"), "staged").unwrap();
    crate::lab::until("the lock of the killed server goes", || fsck(&lab, &[]).code == Some(4));
    let done = fsck(&lab, &["--repair"]);
    assert!(done.code == Some(1) && done.text().contains("workdir: /work/#5: left over from a mount; repaired: removed\n"), "{done:?}");
    assert_eq!(fs::read_dir(lab.path("w/work")).unwrap().count(), 0);
    fsck(&lab, &[]).ok();
}

/// What is damaged and how, where that is told and what is said of it; whether it is mended.
type Row = (fn(&Lab), &'static str, &'static str, bool);

fn rows() -> Vec<Row> {
    vec![
        (
            |lab| mark(lab.path("u/moved"), "redirect", b"../.."),
            "upperdir: /moved: mark trusted.overlay.redirect = ../..: ",
            "shows what it holds itself",
            true,
        ),
        (
            |lab| mark(lab.path("u/fresh"), "opaque", b"maybe"),
            "upperdir: /fresh: mark trusted.overlay.opaque = maybe: ",
            "taken away",
            true,
        ),
        (|lab| mark(lab.path("u/fresh/x"), "opaque", b"y"), "upperdir: /fresh/x: mark trusted.overlay.opaque = y: ", "taken away", true),
        (
            |lab| mark(lab.path("u/top"), "origin", b"\0\xfbnonsense"),
            "upperdir: /top: mark trusted.overlay.origin = \\x00\\xfbnonsense: ",
            "taken away",
            true,
        ),
        (|lab| mark(lab.path("u/top"), "nlink", b"many"), "upperdir: /top: mark trusted.overlay.nlink = many: ", "taken away", true),
        (|lab| mark(lab.path("u/top"), "protattr", b"ax"), "upperdir: /top: mark trusted.overlay.protattr = ax: ", "taken away", true),
        (|lab| mark(lab.path("u"), "uuid", b"short"), "upperdir: /: mark trusted.overlay.uuid = short: not 16 bytes", "taken away", true),
        (
            |lab| mark(lab.path("u/top"), "uuid", b"0123456789abcdef"),
            "upperdir: /top: mark trusted.overlay.uuid = 0123456789abcdef: ",
            "taken away",
            true,
        ),
        (|lab| mark(lab.path("u/fresh/x"), "impure", b"y"), "upperdir: /fresh/x: mark trusted.overlay.impure = y: ", "taken away", true),
        (
            |lab| mark(lab.path("u/fresh/x"), "plyfs.before", b"\x01"),
            "upperdir: /fresh/x: mark trusted.overlay.plyfs.before = \\x01: ",
            "taken away",
            true,
        ),
        (
            |lab| mark(lab.path("u/fresh/x"), "plyfs.device", b"0:0"),
            "upperdir: /fresh/x: mark trusted.overlay.plyfs.device = 0:0: ",
            "taken away",
            true,
        ),
        (|lab| mark(lab.path("u/fresh"), "upper", b"x"), "upperdir: /fresh: mark trusted.overlay.upper = x: ", "taken away", true),
        (
            |lab| mark(lab.path("u/fresh"), "sideways", b"1"),
            "upperdir: /fresh: mark trusted.overlay.sideways = 1: not known to this version",
            "setfattr -x",
            false,
        ),
        (
            |lab| mark(lab.path("u"), "sideways", b"1"),
            "upperdir: /: mark trusted.overlay.sideways = 1: not known to this version",
            "setfattr -x",
            false,
        ),
        (
            |lab| mark(lab.path("u/fresh/x"), "metacopy", b"\x07\x04\0\0"),
            "upperdir: /fresh/x: mark trusted.overlay.metacopy = \\x07\\x04\\x00\\x00: of another version",
            "version",
            false,
        ),
        (
            |lab| {
                fs::create_dir_all(lab.path("w/work/mine/sub")).unwrap();
                fs::write(lab.path("w/work/mine/sub/f"), "precious").unwrap()
            },
            "workdir: /work/mine: nothing that a mount leaves",
            "moved to lost+found",
            true,
        ),
        (|lab| fs::write(lab.path("w/work/#1f"), "staged").unwrap(), "workdir: /work/#1f: left over from a mount", "removed", true),
        (
            |lab| fs::create_dir_all(lab.path("w/work/incompat/later")).unwrap(),
            "workdir: /work/incompat/later: a feature that this version does not know",
            "what wrote it",
            false,
        ),
        (
            |lab| fs::write(lab.path("w/index/mine"), "precious").unwrap(),
            "workdir: /index/mine: no name of an entry of the index",
            "moved to lost+found",
            true,
        ),
        (|lab| fs::write(lab.path("w/index/#1f"), "staged").unwrap(), "workdir: /index/#1f: left over from a copy-up", "removed", true),
        (
            |lab| fs::write(lab.path(format!("w/index/01{}", &ENTRY[2..])), "later").unwrap(),
            "workdir: /index/01fb1d",
            "what wrote it",
            false,
        ),
        (
            |lab| {
                fs::create_dir(lab.path(format!("w/index/{ENTRY}"))).unwrap();
                fs::write(lab.path(format!("w/index/{ENTRY}/f")), "precious").unwrap()
            },
            "workdir: /index/00fb1d",
            "moved to lost+found",
            true,
        ),
        (
            |lab| fs::write(lab.path(format!("w/index/{ENTRY}")), "precious").unwrap(),
            "workdir: /index/00fb1d",
            "origin is written from its name",
            true,
        ),
        (
            |lab| {
                let file = lab.path(format!("w/index/{ENTRY}"));
                fs::write(&file, "gone").unwrap();
                mark(&file, "nlink", b"U-1");
                mark(&file, "origin", &hex(ENTRY))
            },
            "workdir: /index/00fb1d",
            "removed",
            true,
        ),
        (|lab| mark(entry(lab), "nlink", b"2"), "workdir: /index/", "it is U+0 now", true),
        (|lab| mark(entry(lab), "origin", &hex(ENTRY)), "workdir: /index/", "moved to lost+found", true),
    ]
}

/// What is damaged, and how a mount tells it.
type Refused = (fn(&Lab), &'static str);

fn hex(digits: &str) -> Vec<u8> {
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

/// The entry of the index that the used upper has.
fn entry(lab: &Lab) -> PathBuf {
    fs::read_dir(lab.path("w/index")).unwrap().next().unwrap().unwrap().path()
}

/// The regular files below a directory, by their content, and how often each is there.
fn contents(dir: &Path, found: &mut Vec<Vec<u8>>) {
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => contents(&entry.path(), found),
            kind if kind.is_file() => found.push(fs::read(entry.path()).unwrap()),
            _ => {}
        }
    }
}

#[test]
fn damage_is_told_by_its_path_and_mended_without_loss() {
    need_mounts!();
    for (damage, begin, end, mends) in rows() {
        let lab = used();
        let upper_before = {
            let mut found = Vec::new();
            contents(&lab.path("u"), &mut found);
            found.sort();
            found
        };
        damage(&lab);
        let told = fsck(&lab, &[]);
        assert_eq!((told.code, told.err.as_str()), (Some(4), ""), "{begin}: {told:?}");
        assert_eq!(told.text().lines().count(), 1, "{begin}: {told:?}");
        assert!(told.text().starts_with(begin) && told.text().contains(end), "{begin}: {told:?}");
        let json: Value = serde_json::from_slice(&fsck(&lab, &["--json"]).out).unwrap();
        assert_eq!(json[0]["state"], if mends { "found" } else { "left" }, "{begin}");
        assert!(
            begin.contains(json[0]["path"].as_str().unwrap())
                || begin.ends_with("00fb1d")
                || begin.ends_with("01fb1d")
                || begin.ends_with("index/"),
            "{json}"
        );
        let mended = fsck(&lab, &["--repair"]);
        assert_eq!(mended.code, Some(if mends { 1 } else { 4 }), "{begin}: {mended:?}");
        assert!(mended.text().contains(if mends { "; repaired: " } else { "; left: " }), "{begin}: {mended:?}");
        let mut upper_after = Vec::new();
        contents(&lab.path("u"), &mut upper_after);
        upper_after.sort();
        assert_eq!(upper_after, upper_before, "{begin}: content of the upper");
        let mut all = Vec::new();
        contents(lab.path("").as_path(), &mut all);
        if end.contains("lost+found") && !begin.ends_with("index/") {
            assert!(all.contains(&b"precious".to_vec()), "{begin}");
        }
        if mends {
            assert_eq!(fsck(&lab, &["--repair"]).ok().text(), "", "{begin}: once more");
            let view = shown(&lab);
            assert!(view.contains("low ") && view.contains("gone/new") && view.contains("more"), "{begin}: {view}");
        }
    }
}

#[test]
fn an_unmounted_upper_shows_the_same_after_a_repair_of_what_meant_nothing() {
    need_mounts!();
    let lab = used();
    let before = shown(&lab);
    for (name, value) in [("opaque", &b"no"[..]), ("origin", b"x"), ("nlink", b""), ("uuid", b"1"), ("upper", b"y")] {
        mark(lab.path("u/fresh"), name, value);
    }
    fs::write(lab.path("w/index/#5"), "").unwrap();
    let done = fsck(&lab, &["--repair", "--lower", "a:b"]);
    assert_eq!((done.code, done.text().lines().count()), (Some(1), 6), "{done:?}");
    assert_eq!(shown(&lab), before);
    assert_eq!(marked(lab.path("u/moved"), "redirect").as_deref(), Some(&b"d"[..]), "what is right stays");
}

#[test]
fn what_only_the_lowers_tell_is_told_and_left() {
    need_mounts!();
    let lab = used();
    mark(lab.path("u/fresh/x"), "metacopy", b"");
    mark(lab.path("u/fresh"), "impure", b"y");
    fs::create_dir_all(lab.path("u/fresh/loop")).unwrap();
    fs::create_dir_all(lab.path("b/fresh")).unwrap();
    mark(lab.path("u/fresh/loop"), "redirect", b"/fresh");
    fsck(&lab, &[]).ok();
    for _ in 0..2 {
        let done = fsck(&lab, &["--repair", "--lower", "a:b"]);
        assert_eq!((done.code, done.text().lines().count()), (Some(4), 2), "{done:?}");
        let text = done.text();
        assert!(text.contains("upperdir: /fresh/x: mark metacopy: ") && text.contains("upperdir: /fresh/loop: "), "{text}");
        assert!(text.contains("a loop, for ") && text.contains("see that these are its lowers"), "{text}");
    }
    // In another order of layers, or without one, marks are as they were.
    assert_eq!(marked(lab.path("u/fresh/loop"), "redirect").as_deref(), Some(&b"/fresh"[..]));
    assert_eq!(fsck(&lab, &["--repair", "--lower", "a"]).code, Some(4));
    assert_eq!(marked(lab.path("u/moved"), "redirect").as_deref(), Some(&b"d"[..]));
}

#[test]
fn a_repair_moves_what_it_finds_beside_what_is_there_and_tells_what_it_cannot() {
    need_mounts!();
    let lab = used();
    for round in 0..3 {
        fs::write(lab.path("w/work/mine"), format!("{round}")).unwrap();
        fs::write(lab.path("w/work").join("n".repeat(255)), format!("long {round}")).unwrap();
        assert_eq!(fsck(&lab, &["--repair"]).code, Some(1));
    }
    let mut found: Vec<_> =
        fs::read_dir(lab.path("w/lost+found")).unwrap().map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap()).collect();
    found.sort();
    assert_eq!(found, ["0", "1", "2", "long 0", "long 1", "long 2"]);
    // Neither a mount nor kernel overlayfs takes notice.
    assert!(shown(&lab).contains("gone/new"));
    assert_eq!(fs::read_dir(lab.path("w/lost+found")).unwrap().count(), 6);
    // What chattr protects cannot be mended; a line tells.
    mark(lab.path("u/top"), "protattr", b"x");
    let chattr = |flag: &str| Command::new("chattr").arg(flag).arg(lab.path("u/top")).status().unwrap().success();
    if chattr("+i") {
        let done = fsck(&lab, &["--repair"]);
        chattr("-i");
        assert!(done.code == Some(4) && done.text().contains("; left: ") && done.text().contains("chattr -i"), "{done:?}");
    }
    assert_eq!(fsck(&lab, &["--repair"]).code, Some(1));
}

#[test]
fn names_of_any_bytes_are_told_on_one_line_and_whole_in_json() {
    need_mounts!();
    let lab = Lab::layers();
    let odd = lab.path("u").join(crate::lab::name(b"a\nb\xff\x1b[2J"));
    fs::create_dir(&odd).unwrap();
    mark(&odd, "opaque", b"\n\x1b");
    let done = fsck(&lab, &[]);
    assert!(done.code == Some(4) && done.text().lines().count() == 1 && !done.out.contains(&0x1b), "{done:?}");
    let json: Value = serde_json::from_slice(&fsck(&lab, &["--json"]).out).unwrap();
    assert_eq!(json[0]["path"]["hex"], "2f610a62ff1b5b324a");
}

#[test]
fn fsck_of_what_is_no_upper_is_refused() {
    need_mounts!();
    let lab = Lab::layers();
    let none = lab.text("none");
    lab.plyfs(&["fsck", "--upper", &none, "--work", &lab.text("w")]).refused(
        8,
        &format!("upperdir {none}: No such file"),
        &["; create it"],
    );
    lab.plyfs(&["fsck", "--upper", &lab.text("u"), "--work", &none]).refused(8, &format!("workdir {none}: No such file"), &[]);
    lab.plyfs(&["fsck", "--upper", "u", "--work", "u/x"]).refused(8, "workdir ", &[]);
    lab.plyfs(&["fsck", "--upper", "b", "--work", "b/d"]).refused(8, "workdir b/d is inside upperdir b", &["; layers"]);
    for args in [&["fsck"][..], &["fsck", "--upper", "u"], &["fsck", "--upper", "u", "--work", "w", "--nonsense"]] {
        lab.plyfs(args).refused(16, "fsck: ", &[]);
    }
    lab.plyfs(&["fsck", "--upper", "u", "--work", "w", "-o", "nonsense"]).refused(8, "option nonsense: unknown; ", &[]);
    let lab = used();
    fs::create_dir(lab.path("u/work")).unwrap();
    fs::write(lab.path("u/work/#draft"), "text").unwrap();
    lab.plyfs(&["fsck", "--upper", "w", "--work", "u", "--repair"]).refused(8, "--upper w: ", &["exchanged"]);
    assert_eq!(fs::read_to_string(lab.path("u/work/#draft")).unwrap(), "text");
}

#[test]
fn an_upper_that_keeps_owners_in_attributes_is_checked_as_any() {
    need_mounts!();
    let lab = Lab::layers();
    {
        let _mounted = lab.mount(&format!("xattr_permissions=2,{}", lab.options()));
        sh(&lab, "echo more >> top; chown 7:8 top");
        unmount(&lab);
    }
    fsck(&lab, &[]).ok();
    mark(lab.path("u/top"), "protattr", b"zz");
    assert_eq!(fsck(&lab, &[]).code, Some(4));
}

#[test]
fn a_workdir_of_another_version_is_refused_before_anything_is_emptied() {
    need_mounts!();
    for (prepare, what) in [
        ("mkdir -p w/work/incompat/later", "work/incompat/later: a feature that this version does not know"),
        ("mkdir -p w/work/incompat; echo x > w/work/incompat/'bad name'", "work/incompat/bad name: a feature"),
        ("mkdir -p w/index; echo x > w/index/01fb1d00019396a6f33ac840d396094d410814720006800000a773e029", "index/01fb1d"),
        ("mkdir -p w/index; echo x > w/index/00fb1d08019396a6f33ac840d396094d410814720006800000a773e029", "index/00fb1d08"),
    ] {
        let lab = Lab::layers();
        let script = format!("{prepare}; mkdir -p w/work; echo precious > w/work/#1; echo x > w/work/other");
        assert!(Command::new("sh").args(["-ec", &script]).current_dir(lab.path("")).status().unwrap().success());
        let before = lab.snapshot();
        for more in [&[][..], &["--lenient"]] {
            let mut args = vec!["mount", "-o"];
            let options = lab.options();
            args.push(&options);
            args.extend(more);
            args.push("m");
            lab.plyfs(&args).refused(
                1,
                &format!("workdir {}: {what}", lab.text("w")),
                &["; mount it with what wrote it, or see with 'plyfs fsck'"],
            );
        }
        lab.plyfs(&["run", "--rootfs", "a", "--upper", "u", "--work", "w", "--", "true"]).refused(125, "workdir ", &[what]);
        assert_eq!(lab.snapshot(), before, "{prepare}");
    }
}

#[test]
fn marks_and_index_entries_that_break_their_form_are_refused_at_a_mount_as_fsck_tells_them() {
    need_mounts!();
    let rows: [Refused; 4] = [
        (|lab| mark(lab.path("u"), "sideways", b"1"), "/: mark trusted.overlay.sideways: not known to this version"),
        (|lab| mark(lab.path("u"), "uuid", b"short"), "/: mark trusted.overlay.uuid = short: not 16 bytes"),
        (|lab| mark(lab.path("u/fresh"), "protattr", b"z"), "/fresh: mark trusted.overlay.protattr = z: neither a nor i nor both"),
        (|lab| fs::write(lab.path("w/index/mine"), "x").unwrap(), "/index/mine: no name of an entry of the index"),
    ];
    for (damage, what) in rows {
        let lab = used();
        damage(&lab);
        let options = lab.options();
        lab.plyfs(&["mount", "-o", &options, "m"]).refused(1, &format!("upperdir {}", lab.text("u")), &[what, "; mend the layer"]);
        let lenient = lab.plyfs(&["mount", "--lenient", "-o", &options, "m"]);
        let _mounted = Mounted(lab.path("m"));
        assert!(lenient.code == Some(0) && lenient.err.contains(what), "{lenient:?}");
    }
}

#[test]
fn what_kernel_overlayfs_has_mounted_is_neither_mounted_nor_checked() {
    need_mounts!();
    let lab = used();
    fs::create_dir_all(lab.path("u,2")).unwrap();
    fs::create_dir_all(lab.path("m2")).unwrap();
    let options = format!("lowerdir={},upperdir={},workdir={}", lab.text("b"), lab.text("u"), lab.text("w"));
    if crate::kernel::overlay(format!("{options},redirect_dir=on,index=on"), &lab.path("m2")).is_err() {
        crate::skip::skip!("needs kernel overlayfs");
    }
    let mounted = Mounted(lab.path("m2"));
    let used = format!("upperdir {} is in use by the overlay mounted at {}", lab.text("u"), lab.text("m2"));
    lab.plyfs(&["mount", "-o", &lab.options(), "m"]).refused(1, &used, &["; unmount that one first"]);
    fsck(&lab, &["--repair"]).refused(8, &used, &["; unmount that one first"]);
    drop(mounted);
    fsck(&lab, &[]).ok();
}

/// What a repair changes names with and waits for. Attributes it changes by calls that strace does not know; those lie between.
const CHANGING: [&str; 6] = ["renameat2", "unlinkat", "mkdirat", "fsync", "fsetxattr", "fremovexattr"];

#[test]
fn a_repair_that_is_killed_at_any_step_is_finished_by_the_next() {
    need_mounts!();
    if Command::new("strace").arg("-V").output().is_err() {
        crate::skip::skip!("needs strace");
    }
    let damaged = || {
        let lab = used();
        mark(lab.path("u/moved"), "redirect", b"../..");
        mark(lab.path("u/fresh"), "opaque", b"maybe");
        mark(entry(&lab), "nlink", b"x");
        fs::create_dir_all(lab.path("w/work/#1/deep")).unwrap();
        for (name, text) in
            [("work/#1/deep/f", "staged"), ("work/mine", "precious 1"), ("index/mine", "precious 2"), ("index/#2", "staged")]
        {
            fs::write(lab.path("w").join(name), text).unwrap();
        }
        lab
    };
    let lab = damaged();
    assert_eq!(fsck(&lab, &["--repair"]).code, Some(1));
    let whole = shown(&lab);
    let mut killed = 0;
    // strace counts each call by itself.
    for call in CHANGING {
        for step in 1.. {
            let lab = damaged();
            let mut command = lab.command("strace");
            command.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("inject={call}:signal=SIGKILL:when={step}"), crate::lab::PLYFS]);
            let done = crate::lab::finish(command.args(["fsck", "--repair", "--upper", "u", "--work", "w"]));
            if done.code == Some(1) {
                assert!(done.text().contains("; repaired: "), "{call} {step}: {done:?}");
                break;
            }
            // Of a program that was killed strace ends as it did.
            assert_eq!(done.code, None, "{call} {step}: {done:?}");
            killed += 1;
            let mended = fsck(&lab, &["--repair"]);
            assert!(matches!(mended.code, Some(0 | 1)), "{call} {step}: {mended:?}");
            fsck(&lab, &[]).ok();
            assert_eq!(shown(&lab), whole, "{call} {step}");
            let mut all = Vec::new();
            contents(&lab.path("w/lost+found"), &mut all);
            all.sort();
            assert_eq!(all, [b"precious 1", b"precious 2"], "{call} {step}");
        }
    }
    assert!(killed >= 12, "{killed}");
}

#[test]
fn uppers_of_every_dialect_are_checked_in_their_own() {
    need_mounts!();
    for (first, shows) in [("userxattr,", "taken away"), ("whiteout=aufs,", "the whiteout is removed")] {
        let lab = Lab::layers();
        let options = format!("{first}{}", lab.options());
        {
            let _mounted = lab.mount(&options);
            sh(&lab, "echo more >> top; rm low; rm -r d; mkdir d; echo x > d/new; mkdir fresh; echo x > fresh/x");
            unmount(&lab);
        }
        let view = |lab: &Lab| {
            let _mounted = lab.mount(&options);
            let done = Command::new("find").current_dir(lab.path("m")).output().unwrap();
            unmount(lab);
            let mut lines: Vec<_> = String::from_utf8(done.stdout).unwrap().lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        let before = view(&lab);
        fsck(&lab, &[]).ok();
        fsck(&lab, &["--lower", "a:b"]).ok();
        if first.starts_with("user") {
            lsetxattr(lab.path("u/fresh"), "user.overlay.opaque", b"maybe", XattrFlags::empty()).unwrap();
        } else {
            fs::write(lab.path("u/.wh.top"), "").unwrap();
            fs::create_dir_all(lab.path("b/fresh/lower")).unwrap();
            fs::write(lab.path("u/.wh.fresh"), "").unwrap();
        }
        let done = fsck(&lab, &["--repair"]);
        assert!(done.code == Some(1) && done.text().lines().all(|line| line.contains(shows)), "{first} {done:?}");
        fsck(&lab, &[]).ok();
        assert_eq!(view(&lab), before, "{first}");
    }
    let lab = used();
    fs::write(lab.path("w/dialect"), "later\n").unwrap();
    fsck(&lab, &["--repair"]).refused(
        8,
        "workdir ",
        &["'dialect' is of a form that this version does not know; check it with the version"],
    );
}

#[test]
fn what_a_volatile_mount_left_is_told_after_the_boot_it_was_in() {
    need_mounts!();
    let lab = Lab::layers();
    {
        let _mounted = lab.mount(&format!("{},volatile", lab.options()));
        sh(&lab, "echo x > new");
        unmount(&lab);
    }
    fsck(&lab, &[]).ok();
    fs::write(lab.path("w/work/incompat/volatile/boot"), "another").unwrap();
    let done = fsck(&lab, &["--repair"]);
    assert!(done.code == Some(4) && done.text().starts_with("workdir: /work/incompat/volatile: the last mount was volatile"), "{done:?}");
    assert!(lab.path("w/work/incompat/volatile/boot").exists(), "only a person knows");
}
