//! `plyfs try apply`: what a command did in a try is done here, all of it or nothing, whoever is killed and whoever else changes something.
//!
//! "Here" is a small ext4 filesystem of the test's own, which a try gives a union of its own, and which holds the state of plyfs, too: so one image brings back all that a try and an apply know of.
//! With `PLYFS_APPLY_ALL=1` every point and every edit is tried, which takes minutes; otherwise some, always the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use plyfs_sys::stat::Kind;

use crate::apart::apart;
use crate::lab::{Done, Lab, SOON, missing, ok, run};
use crate::skip::skip;
use crate::tree::{self, Tree};

/// What is there before.
const BEFORE: &str = r#"
    mkdir -p keep/sub gone/deep/er mv/in turned_src touched
    echo one > keep/changed; echo two > keep/chmod; echo three > keep/removed; echo same > keep/sub/x
    echo f > gone/f; echo g > gone/deep/g; ln -s f gone/deep/er/l; mkfifo gone/deep/fifo
    echo big > mv/in/file; head -c 300000 /dev/urandom > mv/big
    echo h > keep/h1; ln keep/h1 keep/h2; ln keep/h1 outside_h
    echo p > keep/p1; ln keep/p1 keep/p2
    echo filedir > to_dir; mkdir to_file; echo inner > to_file/inner; mkdir to_file/s
    echo ex1 > ex1; echo ex2 > ex2
    ln -s old sym; mkfifo pipe
    echo cap > capability; echo acl > acl; echo attribute > attribute; echo flag > flag
    echo more names > filled
    echo link > single; echo quiet > touched/file
    setfattr -n user.a -v 1 keep/chmod
    chmod 700 keep/sub
    touch -d @1000000000 keep/changed keep/sub gone mv/in/file
"#;

/// What the command does.
const CHANGE: &str = r#"
    set -e
    echo more >> keep/changed
    chown 12:34 keep/chmod; setfattr -n user.b -v 2 keep/chmod; setfattr -x user.a keep/chmod; chmod 4750 keep/chmod
    rm keep/removed; rm -r gone
    mv mv moved; echo more > moved/in/new
    echo hh >> keep/h2
    rm keep/p1; echo new > keep/p1
    rm to_dir; mkdir to_dir; echo in > to_dir/in
    rm -r to_file; echo now a file > to_file
    mv ex1 t; mv ex2 ex1; mv t ex2
    ln -sfn new sym; chmod 600 pipe
    python3 -c 'import os; os.setxattr("capability", "security.capability", bytes.fromhex("0100000200200000000000000000000000000000"))'
    setfacl -m u:7:rw acl; setfattr -n user.only -v x attribute; chattr +d flag; touch -d @1400000000 touched
    echo fill >> filled
    ln single linked
    mkdir -p new/a/b; echo n > new/a/b/f; ln new/a/b/f new/l2; mkfifo new/fifo; mknod new/null c 1 3; ln -s x new/s; chown -h 5:6 new/s
    truncate -s 1M new/sparse; echo end >> new/sparse
    setfacl -m u:7:rw new/l2; setfacl -d -m u:8:rwx new/a; chmod 2775 new/a; chmod 500 new/a/b
    touch -h -d @1234567890.123456789 new/a/b/f new/a new/s
    python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("new/sock")'
    mkdir keep/sub/nn; chmod 711 keep/sub; touch -d @1500000000 keep/sub
    printf x > "$(printf 'od\nd\377')"
"#;

/// The programs that the tests call.
const PROGRAMS: &[&str] = &["strace", "losetup", "mkfs.ext4", "setfacl", "setfattr", "chattr", "python3"];

/// A filesystem that can be brought back.
struct Place {
    lab: Lab,
    device: String,
    /// All of it.
    image: Vec<u8>,
}

impl Drop for Place {
    fn drop(&mut self) {
        // Lazily, whatever a failed test has left in it.
        Command::new("umount").arg("-l").arg(self.root()).status().unwrap();
        Command::new("losetup").args(["-d", &self.device]).status().unwrap();
    }
}

impl Place {
    /// What `before` makes, and a try by name `one` of `change`; then `after` was done here.
    fn new(before: &str, change: &str, after: &str) -> Place {
        let lab = Lab::new();
        let image = lab.path("image");
        File::create(&image).unwrap().set_len(16 << 20).unwrap();
        ok(Command::new("mkfs.ext4").args(["-q", "-b", "1024", "-I", "256"]).arg(&image), SOON);
        let device = ok(Command::new("losetup").args(["--find", "--show"]).arg(&image), SOON).text().trim().to_owned();
        lab.make("h");
        let mut place = Place { lab, device, image: Vec::new() };
        place.mount();
        place.here(before);
        let done = run(&mut place.plyfs(&["try", "--keep", "one", "--", "sh", "-c", change]), SOON);
        assert_eq!(done.status.code(), Some(0), "{}", done.err);
        place.here(after);
        place.umount();
        File::open(&place.device).unwrap().read_to_end(&mut place.image).unwrap();
        place.mount();
        place
    }

    fn root(&self) -> PathBuf {
        self.lab.path("h")
    }

    fn mount(&self) {
        ok(Command::new("mount").arg(&self.device).arg(self.root()), SOON);
    }

    fn umount(&self) {
        // A child that another test starts has our descriptors for a moment, until it becomes what it is to be.
        let end = Instant::now() + SOON;
        while !run(Command::new("umount").arg(self.root()), SOON).status.success() {
            assert!(Instant::now() < end, "{} stays busy", self.root().display());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// All is as it was.
    fn bring_back(&self) {
        self.umount();
        let mut device = File::options().write(true).open(&self.device).unwrap();
        device.rewind().unwrap();
        device.write_all(&self.image).unwrap();
        drop(device);
        self.mount();
    }

    /// Does something here.
    fn here(&self, script: &str) {
        ok(Command::new("sh").args(["-ec", script]).current_dir(self.root()), SOON);
    }

    fn plyfs(&self, args: &[&str]) -> Command {
        let mut command = self.lab.plyfs(args);
        command.env("PLYFS_ROOT", self.root().join("state")).current_dir(self.root());
        command
    }

    fn apply(&self) -> Done {
        run(&mut self.plyfs(&["try", "apply", "one"]), SOON)
    }

    /// Applies under strace, which kills on entry of a system call, by its name and its number among those of this name.
    fn traced(&self, log: &Path, kill: Option<(&str, usize)>) -> Done {
        self.injected(log, kill.map(|(name, count)| (name, count, "signal=SIGKILL")))
    }

    /// Applies under strace, which does something to a system call.
    fn injected(&self, log: &Path, what: Option<(&str, usize, &str)>) -> Done {
        let mut command = Command::new("strace");
        if let Some((name, count, what)) = what {
            command.args(["-e", &format!("trace={name}"), "-e", &format!("inject={name}:{what}:when={count}")]);
        }
        command.arg("-o").arg(log).args([env!("CARGO_BIN_EXE_plyfs"), "try", "apply", "one"]);
        command.env("PLYFS_ROOT", self.root().join("state")).env_remove("PLYFS_LOG").current_dir(self.root());
        run(&mut command, SOON)
    }

    /// What is here, without the state.
    fn tree(&self) -> Tree {
        let mut tree = tree::walk(&self.root());
        tree.retain(|path, _| !path.starts_with(b"/state") && !path.starts_with(b"/lost+found"));
        tree
    }

    /// The status of the try.
    fn status(&self) -> Option<String> {
        let list = ok(&mut self.plyfs(&["try", "list"]), SOON).text();
        let row = list.lines().nth(1)?;
        let at = list.find("STATUS").unwrap();
        Some(row[at..].split("   ").next().unwrap().to_owned())
    }

    /// The paths of the try with their letters, without the way to the filesystem.
    fn changes(&self) -> Vec<(String, String)> {
        let prefix = self.root().to_str().unwrap().to_owned();
        let text = ok(&mut self.plyfs(&["try", "diff", "--xattrs", "one"]), SOON).out;
        let text = String::from_utf8_lossy(&text).into_owned();
        let lines = text.lines().filter_map(|line| Some((line.get(..1)?.to_owned(), line.get(2..)?.strip_prefix(&prefix)?.to_owned())));
        lines.filter(|(_, path)| !path.is_empty()).collect()
    }
}

/// Differences in anything that shows.
fn differences(a: &Tree, b: &Tree) -> Vec<String> {
    tree::differences(a, b, &|_, node| Some(node.clone()))
}

#[track_caller]
fn assert_same(a: &Tree, b: &Tree, when: &str) {
    let differences = differences(a, b);
    assert!(differences.is_empty(), "{when}:\n{}", differences.join("\n"));
}

fn all() -> bool {
    std::env::var_os("PLYFS_APPLY_ALL").is_some_and(|all| all == "1")
}

/// What the same script does in a plain directory, but for the times that are now.
#[test]
fn an_applied_try_is_what_its_command_would_have_done_here() {
    if let Some(why) = missing(PROGRAMS) {
        skip!("{why}");
    }
    apart(|| {
        let place = Place::new(BEFORE, CHANGE, "");
        let view = place.tree();
        let inode =
            |path: &str| fs::symlink_metadata(place.root().join(path)).map(|meta| std::os::unix::fs::MetadataExt::ino(&meta)).unwrap();
        let kept = ["keep/chmod", "single", "mv/big", "pipe", "keep/p2", "attribute"].map(inode);
        let done = place.apply();
        assert_eq!((done.status.code(), done.err.as_str(), done.text().as_str()), (Some(0), "", ""));
        assert_eq!(place.status(), None);
        let applied = place.tree();
        assert_eq!(
            kept,
            ["keep/chmod", "linked", "moved/big", "pipe", "keep/p2", "attribute"].map(inode),
            "what is not rewritten stays the same file"
        );
        place.bring_back();
        place.here(CHANGE);
        let direct = place.tree();
        // Times that both gave by their own clocks.
        let fixed = |tree: &Tree| {
            let seen = |path: &[u8], node: &tree::Node| {
                let mut node = node.clone();
                let said =
                    [&b"/keep/sub"[..], b"/new/a", b"/new/a/b/f", b"/new/l2", b"/new/s", b"/touched", b"/moved/in/file", b"/moved/big"];
                if !said.contains(&path) {
                    node.stat.mtime = Default::default();
                }
                node
            };
            tree.iter().map(|(path, node)| (path.clone(), seen(path, node))).collect::<Tree>()
        };
        assert_same(&fixed(&applied), &fixed(&direct), "applied, and done here");
        assert!(!differences(&fixed(&view), &fixed(&applied)).is_empty());
        let flags = |name: &str| ok(Command::new("lsattr").arg(place.root().join(name)), SOON).text().contains('d');
        place.bring_back();
        assert!(!flags("flag"));
        assert_eq!(place.apply().status.code(), Some(0));
        assert!(flags("flag"));
    });
}

/// System calls that change something.
const MUTATING: &[&str] = &[
    "mkdirat",
    "mknodat",
    "symlinkat",
    "linkat",
    "unlinkat",
    "unlink",
    "rmdir",
    "mkdir",
    "rename",
    "renameat",
    "renameat2",
    "fchownat",
    "fchmod",
    "fchmodat",
    "utimensat",
    "fsetxattr",
    "lsetxattr",
    "setxattr",
    "fremovexattr",
    "lremovexattr",
    "removexattr",
    "ftruncate",
    "copy_file_range",
    "pwrite64",
    "write",
    "fsync",
    "syncfs",
    "fallocate",
];

/// The points between two changes of a run, each as a system call and its number among those of its name: the first one after a change that can be hit.
fn points(trace: &str) -> Vec<(String, usize)> {
    // What the allocator asks for differs from run to run.
    let vague = |name: &str| {
        ["brk", "mmap", "munmap", "mprotect", "madvise", "futex", "getrandom", "exit_group", "rt_sigprocmask"].contains(&name)
            || name.starts_with("syscall_")
    };
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut points = Vec::new();
    let mut changed = true;
    for line in trace.lines() {
        let Some((name, rest)) = line.split_once('(') else { continue };
        if !name.chars().all(|char| char.is_ascii_alphanumeric() || char == '_') {
            continue;
        }
        let count = counts.entry(name).or_default();
        *count += 1;
        if changed && !vague(name) {
            points.push((name.to_owned(), *count));
            changed = false;
        }
        // setxattrat, removexattrat and fchmodat2, which this strace does not know.
        let unnamed = ["syscall_0x1cf", "syscall_0x1d2", "syscall_0x1c4"].contains(&name);
        let sets = name == "ioctl" && (rest.contains("FICLONE") || rest.contains("SETFLAGS"));
        changed |= MUTATING.contains(&name) || unnamed || sets || name == "openat" && rest.contains("O_CREAT");
    }
    points
}

#[test]
fn an_apply_that_is_killed_anywhere_is_finished_by_the_next() {
    if let Some(why) = missing(PROGRAMS) {
        skip!("{why}");
    }
    apart(|| {
        // A name that nobody has seen: that file is changed in place.
        let place = Place::new(BEFORE, CHANGE, "T=$(mktemp); touch -r . $T; ln filled filled_too; touch -r $T .; rm $T");
        let before = place.tree();
        let log = place.lab.path("trace");
        let done = place.traced(&log, None);
        assert!(done.status.success(), "{}", done.err);
        let after = place.tree();
        let points = points(&String::from_utf8_lossy(&fs::read(&log).unwrap()));
        assert!(points.len() > 100, "{} points", points.len());
        let step = if all() { 1 } else { points.len().div_ceil(16) };
        let (mut killed, mut tried) = (0, 0);
        let mut seen = BTreeSet::new();
        for (name, count) in points.iter().step_by(step) {
            place.bring_back();
            let done = place.traced(&log, Some((name, *count)));
            let when = format!("killed on entry of {name} number {count}");
            tried += 1;
            killed += usize::from(!done.status.success());
            // Each path is old or new, or on its way from one kind to another.
            for (path, node) in &place.tree() {
                if node.stat.kind == Kind::File && !path.starts_with(b"/filled") && !path.windows(7).any(|part| part == b".plyfs-") {
                    let is = |tree: &Tree| tree.get(path).is_some_and(|other| other.content == node.content);
                    assert!(is(&before) || is(&after), "{when}: {} is neither old nor new", String::from_utf8_lossy(path));
                }
            }
            let status = place.status();
            if let Some(status) = &status {
                let again = place.apply();
                assert!(again.status.success(), "{when}, {status}: {}", again.err);
            }
            seen.insert(status);
            assert_same(&after, &place.tree(), &when);
            assert_eq!(place.status(), None, "{when}");
        }
        println!("{killed} of {tried} runs were killed, {} points in all; states: {seen:?}", points.len());
        assert!(killed * 10 >= tried * 9, "{killed} of {tried} points were reached");
        assert!(seen.contains(&Some("Applying".to_owned())), "{seen:?}");
    });
}

/// The changes of a run, each as a system call and its number among those of its name.
fn changes(trace: &str) -> Vec<(String, usize)> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut changes = Vec::new();
    for line in trace.lines() {
        let Some((name, rest)) = line.split_once('(') else { continue };
        let count = counts.entry(name).or_default();
        *count += 1;
        if MUTATING.contains(&name) || name == "openat" && rest.contains("O_CREAT") {
            changes.push((name.to_owned(), *count));
        }
    }
    changes
}

#[test]
fn an_apply_that_fails_anywhere_has_changed_nothing_or_can_go_on() {
    if let Some(why) = missing(PROGRAMS) {
        skip!("{why}");
    }
    apart(|| {
        let place = Place::new(BEFORE, CHANGE, "T=$(mktemp); touch -r . $T; ln filled filled_too; touch -r $T .; rm $T");
        let before = place.tree();
        let log = place.lab.path("trace");
        assert!(place.traced(&log, None).status.success());
        let after = place.tree();
        let changes = changes(&String::from_utf8_lossy(&fs::read(&log).unwrap()));
        let errors = ["EIO", "ENOSPC", "EPERM", "EROFS", "EDQUOT", "EACCES", "ENOMEM"];
        let step = if all() { 1 } else { changes.len().div_ceil(16) };
        let (mut failed, mut tried, mut states) = (0, 0, BTreeMap::new());
        for (number, (name, count)) in changes.iter().enumerate().step_by(step) {
            place.bring_back();
            let error = errors[number % errors.len()];
            let done = place.injected(&log, Some((name, *count, &format!("error={error}"))));
            let when = format!("{error} of {name} number {count}: {}", done.err);
            tried += 1;
            let status = place.status();
            *states.entry(status.clone()).or_insert(0) += 1;
            match status.as_deref() {
                None => {}
                Some("Exited (0)") => {
                    assert!(!done.status.success(), "{when}");
                    assert_same(&before, &place.tree(), &when);
                }
                Some("Applying") => assert!(!done.status.success(), "{when}"),
                Some(other) => panic!("{other}: {when}"),
            }
            if status.is_some() {
                failed += 1;
                assert!(done.err.contains("; "), "no remedy: {when}");
                let again = place.apply();
                assert!(again.status.success(), "{when}: {}", again.err);
            }
            assert_same(&after, &place.tree(), &when);
            assert_eq!(place.status(), None, "{when}");
        }
        println!("{failed} of {tried} runs failed, {} changes in all; states: {states:?}", changes.len());
        assert!(failed * 4 > tried, "{failed} of {tried} runs failed");
    });
}

/// One that is killed over and over again comes to its end.
#[test]
fn an_apply_that_is_killed_again_and_again_is_finished() {
    if let Some(why) = missing(PROGRAMS) {
        skip!("{why}");
    }
    apart(|| {
        let place = Place::new(BEFORE, CHANGE, "");
        assert!(place.apply().status.success());
        let after = place.tree();
        place.bring_back();
        let mut rounds = 0;
        for name in ["mkdirat", "linkat", "renameat2", "utimensat", "unlinkat"] {
            for count in [1, 2, 5, 11] {
                if place.status().is_some() {
                    rounds += usize::from(!place.traced(&place.lab.path("trace"), Some((name, count))).status.success());
                }
            }
        }
        assert!(rounds > 5, "{rounds}");
        if place.status().is_some() {
            assert!(place.apply().status.success());
        }
        assert_same(&after, &place.tree(), "killed again and again");
    });
}

/// Edits of what is at a path, by its kind.
fn edits(kind: Option<Kind>) -> Vec<(&'static str, String)> {
    let edit = |name, script: &str| (name, script.to_owned());
    match kind {
        None => vec![edit("made", r#"mkdir -p "$(dirname "$P")"; echo foreign > "$P""#), edit("made as a directory", r#"mkdir -p "$P""#)],
        Some(Kind::Dir) => vec![
            edit("chmod", r#"chmod 1705 "$P""#),
            edit("chown", r#"chown 99:98 "$P""#),
            edit("exchanged for another one", r#"mv "$P" ./aside; cp -a ./aside "$P""#),
            edit("exchanged for a link", r#"mv "$P" ./aside; ln -s "$PWD/aside" "$P""#),
            edit("removed", r#"rm -r "$P""#),
            edit("marked", r#"setfattr -n user.foreign -v 1 "$P""#),
            edit("mounted over", r#"mount -t tmpfs plyfs-test "$P""#),
        ],
        Some(kind) => {
            let mut edits = vec![
                edit("chown", r#"chown -h 99:98 "$P""#),
                edit("replaced", r#"cp -a "$P" "$P.aside"; mv "$P.aside" "$P""#),
                edit("removed", r#"rm "$P""#),
                edit("made a directory", r#"rm "$P"; mkdir "$P""#),
            ];
            if kind == Kind::File {
                edits.extend([
                    edit("written", r#"echo foreign >> "$P""#),
                    edit("chmod", r#"chmod 1705 "$P""#),
                    edit("written with size and time kept", r#"cp -a "$P" /tmp/.; T=$(mktemp); cp -a "$P" "$T"; printf Z | dd of="$P" conv=notrunc status=none; touch -r "$T" "$P"; rm "$T" "/tmp/$(basename "$P")""#),
                    edit("touched", r#"touch "$P""#),
                    edit("marked", r#"setfattr -n user.foreign -v 1 "$P""#),
                    edit("mounted over", r#"T=./mounted; echo > $T; mount --bind $T "$P""#),
                ]);
            }
            edits
        }
    }
}

#[test]
fn what_others_changed_since_is_told_by_its_path_and_nothing_is_applied() {
    if let Some(why) = missing(PROGRAMS) {
        skip!("{why}");
    }
    apart(|| {
        let place = Place::new(BEFORE, CHANGE, "");
        let before = place.tree();
        let mut changes = place.changes();
        // What is in a directory that goes counts, too.
        for inside in [
            "/gone/f",
            "/gone/deep",
            "/gone/deep/g",
            "/gone/deep/er",
            "/gone/deep/er/l",
            "/gone/deep/fifo",
            "/mv/in/file",
            "/mv/big",
            "/to_file/inner",
            "/to_file/s",
        ] {
            changes.push(("D".to_owned(), inside.to_owned()));
        }
        let mut tried = 0;
        for (number, (letter, path)) in changes.iter().enumerate() {
            if path == "/od" || path == "/to_dir/in" {
                // The rest of the first name is on a line of its own; the second one is below what is a file.
                continue;
            }
            let kind = before.get(path.as_bytes()).map(|node| node.stat.kind);
            assert_eq!(kind.is_none(), letter == "A", "{letter} {path}");
            let edits = edits(kind);
            for (turn, (name, script)) in edits.iter().enumerate() {
                if !all() && turn != number % edits.len() {
                    continue;
                }
                place.bring_back();
                let script = script.replace("$P", &format!(".{path}"));
                let when = format!("{letter} {path} {name}");
                place.here(&script);
                let edited = place.tree();
                let done = place.apply();
                assert_eq!(done.status.code(), Some(1), "{when}: {}", done.err);
                let told = format!("plyfs: try one: {letter} {}{path}: ", place.root().display());
                // Of what is below one that is gone or exchanged each is told; of a mount only itself.
                assert!(done.err.lines().any(|line| line.starts_with(&told)), "{when}: {told}\n{}", done.err);
                assert!(done.err.lines().last().unwrap().contains("nothing was changed; "), "{when}: {}", done.err);
                assert!(!done.err.contains("panick"));
                assert_same(&edited, &place.tree(), &when);
                assert_eq!(place.status().as_deref(), Some("Exited (0)"), "{when}");
                if name.starts_with("mounted") {
                    place.here(&format!("umount .{path}"));
                }
                tried += 1;
            }
        }
        println!("{tried} edits of {} paths", changes.len());
        // What was there before the last edit is applied all the same.
        place.bring_back();
        assert!(place.apply().status.success());
    });
}

#[test]
fn what_others_do_beside_the_changes_stays() {
    if let Some(why) = missing(PROGRAMS) {
        skip!("{why}");
    }
    apart(|| {
        let place = Place::new(
            BEFORE,
            CHANGE,
            "echo other > keep/other; echo > beside; chmod 600 keep/sub/x; ln keep/changed keep/changed_too; chmod 600 keep/changed; chmod 644 keep/changed",
        );
        let mtime = |path: &str| fs::metadata(place.root().join(path)).unwrap().modified().unwrap();
        let keep = mtime("keep");
        let done = place.apply();
        assert!(done.status.success(), "{}", done.err);
        let read = |path: &str| fs::read_to_string(place.root().join(path)).unwrap();
        assert_eq!((read("keep/other").as_str(), read("keep/changed").as_str(), read("beside").as_str()), ("other\n", "one\nmore\n", "\n"));
        // It got another name since: it is the same file under both.
        assert_eq!(read("keep/changed_too"), "one\nmore\n");
        assert!(mtime("keep") >= keep, "the time of a directory that others have changed went back");
    });
}

/// Moved files get a name in a hidden directory before anything shows: that alone makes nothing a conflict.
#[test]
fn files_that_are_moved_stay_what_they_are_and_are_no_conflicts_after_a_kill() {
    if let Some(why) = missing(PROGRAMS) {
        skip!("{why}");
    }
    apart(|| {
        // More than is read to know its content.
        let place = Place::new("mkdir -p mv/in; truncate -s 70M mv/in/sparse; echo x > mv/f", "mv mv moved", "");
        let inode = |path: &str| std::os::unix::fs::MetadataExt::ino(&fs::metadata(place.root().join(path)).unwrap());
        let before = ["mv/in/sparse", "mv/f"].map(inode);
        for kill in ["linkat", "renameat2", "syncfs"] {
            place.bring_back();
            assert!(!place.traced(&place.lab.path("trace"), Some((kill, 2))).status.success(), "{kill}");
            assert_eq!(place.status().as_deref(), Some("Applying"), "{kill}");
            let done = place.apply();
            assert!(done.status.success(), "{kill}: {}", done.err);
            assert_eq!(before, ["moved/in/sparse", "moved/f"].map(inode), "{kill}");
            assert!(!place.root().join("mv").exists(), "{kill}");
        }
        // What was taken back leaves no trace, either.
        place.bring_back();
        let done = place.injected(&place.lab.path("trace"), Some(("linkat", 2, "error=EIO")));
        assert!(done.err.contains("nothing was changed"), "{}", done.err);
        assert_eq!((place.status().as_deref(), before), (Some("Exited (0)"), ["mv/in/sparse", "mv/f"].map(inode)));
        let done = place.apply();
        assert!(done.status.success(), "{}", done.err);
    });
}

/// An apply that cannot be begun changes nothing; one that cannot go on says where, and goes on.
#[test]
fn an_apply_that_finds_no_space_changes_nothing_and_can_be_tried_again() {
    if let Some(why) = missing(PROGRAMS) {
        skip!("{why}");
    }
    apart(|| {
        let place =
            Place::new("echo a > a; mkdir d; touch -d @1000000000 d", "head -c 3000000 /dev/urandom > d/new; rm a; chmod 700 d", "");
        place.here("head -c 20000000 /dev/zero > filler 2>/dev/null || true; truncate -s -500K filler; sync");
        let before = place.tree();
        let done = place.apply();
        assert_ne!(done.status.code(), Some(0));
        assert!(
            done.err.contains("/h/d/new: cannot make it: No space left on device") && done.err.contains("nothing was changed"),
            "{}",
            done.err
        );
        assert_same(&before, &place.tree(), "no space");
        assert_eq!(place.status().as_deref(), Some("Exited (0)"));
        place.here("rm filler; sync");
        let done = place.apply();
        assert!(done.status.success(), "{}", done.err);
        let made = fs::metadata(place.root().join("d/new")).unwrap();
        assert!(made.len() == 3_000_000 && !place.root().join("a").exists());
    });
}

#[test]
fn a_half_applied_try_is_neither_shown_nor_discarded_and_one_that_only_staged_is() {
    if let Some(why) = missing(PROGRAMS) {
        skip!("{why}");
    }
    apart(|| {
        let place = Place::new("mkdir d", "echo x > d/a; echo y > d/b", "");
        let before = place.tree();
        let killed = |name: &str, count: usize| {
            assert!(!place.traced(&place.lab.path("trace"), Some((name, count))).status.success(), "not killed");
            assert_eq!(place.status().as_deref(), Some("Applying"));
        };
        let discard = |force: &[&str]| run(&mut place.plyfs(&[&["try", "discard"], force, &["one"]].concat()), SOON);
        killed("copy_file_range", 1);
        let staged = place.tree();
        assert!(staged.keys().any(|path| path.windows(8).any(|part| part == b"/.plyfs-")), "nothing was staged");
        assert_eq!(place.changes().len(), 3);
        let done = discard(&[]);
        assert!(done.status.success(), "{}", done.err);
        assert_same(&before, &place.tree(), "discarded");
        assert_eq!(place.status(), None);

        place.bring_back();
        killed("renameat2", 2);
        let done = discard(&[]);
        assert!(done.err.contains("its changes are half applied; finish with 'plyfs try apply one'"), "{}", done.err);
        let done = run(&mut place.plyfs(&["try", "diff", "one"]), SOON);
        assert!(done.status.code() == Some(125) && done.err.contains("half applied"), "{}", done.err);
        assert!(place.apply().status.success());
        assert_eq!(place.status(), None);

        place.bring_back();
        killed("renameat2", 2);
        // What others do to what is done already stays; what is yet to be placed is not put over it.
        place.here("echo mine > d/b");
        let done = place.apply();
        assert_ne!(done.status.code(), Some(0));
        assert!(
            done.err.contains("/d/b: somebody else changed it while the changes were being applied; move that away, then run"),
            "{}",
            done.err
        );
        assert_eq!(fs::read_to_string(place.root().join("d/b")).unwrap(), "mine\n");
        place.here("rm d/b; echo mine > d/new; mv d/new d/a");
        let done = place.apply();
        assert!(
            done.status.success() && done.err.contains("/d/a was changed by somebody else meanwhile, and stays as it is"),
            "{}",
            done.err
        );
        assert_eq!(fs::read_to_string(place.root().join("d/a")).unwrap(), "mine\n");
        assert_eq!(fs::read_to_string(place.root().join("d/b")).unwrap(), "y\n");

        place.bring_back();
        killed("renameat2", 2);
        assert!(discard(&["--force"]).status.success());
        assert_eq!(place.status(), None);
    });
}
