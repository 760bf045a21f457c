//! `plyfs try`, on the very machine that the tests run on. What these commands write lies in the lab's own directory, as far as that is
//! possible: a try that failed to protect the machine would do no more than spoil the lab.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::apart::apart;
use crate::garbage::Garbage;
use crate::lab::{Done, Lab, Mounted, PLYFS, Process, finish, need_mounts, until};

/// Runs a script on a view, in the lab, with these options.
fn attempt(lab: &Lab, options: &[&str], script: &str) -> Done {
    lab.plyfs(&[&["try"], options, &["--", "sh", "-c", script]].concat())
}

/// The lines of a diff that are below the lab, without its path.
fn changes(lab: &Lab, text: &str) -> Vec<String> {
    let root = lab.text("");
    let below = |line: &str| line.get(2..).and_then(|path| path.strip_prefix(&root)).map(|rest| format!("{} {rest}", &line[..1]));
    text.lines().filter_map(below).collect()
}

/// What plyfs said besides the notes on other tests' mounts.
fn said(done: &Done) -> Vec<&str> {
    let note = |line: &&str| !line.starts_with("plyfs: try: changes cannot be tried in ") && !line.contains(" have files in common; ");
    done.err.lines().filter(note).collect()
}

/// The names in the store.
fn tries(lab: &Lab) -> Vec<String> {
    let text = lab.plyfs(&["try", "list"]).ok().text();
    let mut lines = text.lines();
    assert_eq!(lines.next().unwrap().split_whitespace().collect::<Vec<_>>(), ["NAME", "CREATED", "STATUS", "COMMAND"]);
    lines.map(|line| line.split_whitespace().next().unwrap().to_owned()).collect()
}

/// What a try says that is kept.
fn kept_as(name: &str) -> String {
    format!(
        "plyfs: try: kept as {name}; 'plyfs try diff {name}' shows it, 'plyfs try apply {name}' carries it out, 'plyfs try discard {name}' removes it"
    )
}

#[test]
fn a_discarded_try_shows_its_changes_and_leaves_none() {
    need_mounts!();
    let lab = Lab::layers();
    fs::create_dir(lab.path("state")).unwrap();
    let before = lab.snapshot();
    let done = attempt(&lab, &["--discard"], "echo x > b/low; rm -r b/d; mkdir -p new/sub; touch new/sub/f; echo output; pwd; exit 3");
    assert_eq!(done.code, Some(3), "{done:?}");
    assert!(said(&done).is_empty(), "{done:?}");
    let text = done.text();
    assert!(text.starts_with(&format!("output\n{}\n", lab.text("").trim_end_matches('/'))), "{text}");
    assert_eq!(changes(&lab, &text), ["C b", "D b/d", "C b/low", "A new", "A new/sub", "A new/sub/f"]);
    assert!(tries(&lab).is_empty());
    let mut after = lab.snapshot();
    // Only the store itself was used.
    assert_eq!(fs::read_dir(lab.path("state/try")).unwrap().count(), 0);
    after.retain(|path, _| !path.starts_with(lab.path("state")));
    let mut before = before;
    before.retain(|path, _| !path.starts_with(lab.path("state")));
    assert_eq!(after, before, "something changed");
}

#[test]
fn a_try_is_kept_listed_shown_and_discarded() {
    need_mounts!();
    let lab = Lab::layers();
    let done = attempt(&lab, &["--keep", "first"], "echo x > a/new; rm b/low; exit 5");
    assert_eq!(done.code, Some(5));
    assert_eq!(said(&done), [kept_as("first")]);
    assert_eq!(tries(&lab), ["first"]);
    let list = lab.plyfs(&["try", "list"]).text();
    assert!(list.contains(" ago   Exited (5)   sh -c 'echo x > a/new; rm b/low; exit 5'\n"), "{list}");
    assert_eq!(changes(&lab, &lab.plyfs(&["try", "diff", "first"]).ok().text()), changes(&lab, &done.text()));
    let json: serde_json::Value = serde_json::from_slice(&lab.plyfs(&["try", "diff", "--json", "first"]).ok().out).unwrap();
    assert!(json.as_array().unwrap().contains(&serde_json::json!({"Path": lab.text("a/new"), "Kind": 1})), "{json}");

    let again = attempt(&lab, &["--keep", "first"], "touch a/ran");
    again.refused_after_notes("try first: there is one by that name; ");
    assert!(!lab.path("a/ran").exists());
    lab.plyfs(&["try", "discard", "first", "none"]).refused(125, "try none: no such try; ", &[]);
    assert_eq!(tries(&lab), ["first"], "all or none");
    lab.plyfs(&["try", "discard", "first"]).ok();
    assert!(tries(&lab).is_empty());
    lab.plyfs(&["try", "diff", "first"]).refused(125, "try first: no such try; ", &[]);
}

impl Done {
    /// Refused, whatever notes came before.
    #[track_caller]
    fn refused_after_notes(&self, begin: &str) {
        assert_eq!(self.code, Some(125), "{self:?}");
        let said = said(self);
        assert!(said.len() == 1 && said[0].starts_with(&format!("plyfs: {begin}")), "{self:?}");
    }
}

#[test]
fn names_are_checked_before_anything_runs() {
    need_mounts!();
    let lab = Lab::layers();
    for name in ["", "x", "../x", ".x", "a/b", "a b", "-x"] {
        let keep = format!("--keep={name}");
        lab.plyfs(&["try", &keep, "--", "touch", "a/ran"]).refused(125, "try --keep", &["not a name; "]);
        lab.plyfs(&["try", "discard", "--", name]).refused(125, "try discard", &["not a name; "]);
    }
    assert!(!lab.path("state").exists());
}

#[test]
fn without_a_terminal_changes_are_kept_and_none_are_not() {
    need_mounts!();
    let lab = Lab::layers();
    let done = attempt(&lab, &[], "echo x > a/new");
    assert_eq!(done.code, Some(0));
    let names = tries(&lab);
    assert_eq!(names.len(), 1);
    let name = &names[0];
    assert_eq!(said(&done), [kept_as(name)]);
    lab.plyfs(&["try", "discard", name]).ok();
    let done = attempt(&lab, &[], "cat a/top > /dev/null");
    assert_eq!((done.code, said(&done), done.text()), (Some(0), vec!["plyfs: try: nothing changed"], String::new()));
    assert!(tries(&lab).is_empty());
}

#[test]
fn on_a_terminal_it_asks() {
    need_mounts!();
    let lab = Lab::layers();
    for (answers, kept) in [("what\nd\n", None), ("k good.name\n", Some("good.name")), ("k x\nk\n", Some("")), ("", Some(""))] {
        // The answers come when the question is there, as a person's would.
        let script = format!(
            "mkfifo in; (exec 3>in; until grep -q 'keep or discard' log 2>/dev/null; do sleep 0.1; done; printf '{}' >&3; sleep 1) & \
             script -qefc '{PLYFS} try -- sh -c \"echo x > a/new\"' log < in > /dev/null; code=$?; rm in; cat log; rm log; exit $code",
            answers.replace('\n', "\\n")
        );
        let done = finish(lab.command("sh").args(["-c", &script]));
        assert_eq!(done.code, Some(0), "{done:?}");
        assert!(done.text().contains("keep or discard these changes?"), "{done:?}");
        let names = tries(&lab);
        match kept {
            None => assert!(names.is_empty(), "{names:?}"),
            Some(name) => assert!(names.len() == 1 && (name.is_empty() || names[0] == name), "{answers:?}: {names:?}"),
        }
        for name in names {
            lab.plyfs(&["try", "discard", &name]).ok();
        }
    }
}

#[test]
fn a_shell_on_a_terminal_has_one_of_its_own_and_ends_with_its_code() {
    need_mounts!();
    let lab = Lab::layers();
    for shell in ["sh -i", "bash --norc -i"] {
        let script = format!(
            "mkfifo in; (exec 3>in; until grep -q ready: log 2>/dev/null; do sleep 0.1; done; printf 'echo $((6*7)); tty; exit 3\\n' >&3; sleep 1) & \
             script -qefc '{PLYFS} try --discard -- env PS1=rea\"\"dy: {shell}' log < in > /dev/null; code=$?; rm in; cat log; rm log; exit $code"
        );
        let done = finish(lab.command("sh").args(["-c", &script]));
        assert_eq!(done.code, Some(3), "{done:?}");
        assert!(done.text().contains("42\r\n/dev/pts/0\r\n"), "{done:?}");
        // Neither the terminal nor job control; other mounts of this machine may be named.
        assert!(!done.text().lines().any(|line| line.contains("annot") && !line.contains("changes cannot be tried in")), "{done:?}");
    }
}

#[test]
fn exit_codes_are_the_commands() {
    need_mounts!();
    let lab = Lab::layers();
    fs::write(lab.path("plain"), "no program").unwrap();
    for (command, code) in [
        (&["sh", "-c", "exit 42"][..], 42),
        (&["sh", "-c", "kill -TERM $$"], 128 + 15),
        (&["sh", "-c", "kill -KILL $$"], 128 + 9),
        (&["./plain"], 126),
        (&["no-such-command"], 127),
    ] {
        let done = lab.plyfs(&[&["try", "--discard", "--"], command].concat());
        assert_eq!(done.code, Some(code), "{command:?}: {done:?}");
        assert_eq!(said(&done).len(), usize::from(matches!(code, 126 | 127)), "{done:?}");
        assert!(tries(&lab).is_empty());
    }
}

#[test]
fn a_try_that_was_cut_off_is_listed_and_discarded() {
    need_mounts!();
    let lab = Lab::layers();
    let mut cut = Process::start(
        lab.command(PLYFS)
            .args(["try", "--keep", "cut", "--", "sh", "-c", "echo x > a/new; echo ready; sleep 1000"])
            .stdout(Stdio::piped()),
    );
    until("the command has written", || lab.path("state/try/cut/0/upper").join(lab.text("a/new").trim_start_matches('/')).exists());
    let list = lab.plyfs(&["try", "list"]).ok().text();
    assert!(list.contains("Running"), "{list}");
    lab.plyfs(&["try", "discard", "cut"]).refused(125, "try cut: its command runs", &["; "]);
    cut.signal(Signal::KILL);
    cut.0.wait().unwrap();
    let list = lab.plyfs(&["try", "list"]).ok().text();
    assert!(list.contains("Cut off"), "{list}");
    assert_eq!(changes(&lab, &lab.plyfs(&["try", "diff", "cut"]).ok().text()), ["C a", "A a/new"]);
    lab.plyfs(&["try", "discard", "cut"]).ok();
    assert_eq!(fs::read_dir(lab.path("state/try")).unwrap().count(), 0);
}

#[test]
fn other_filesystems_get_unions_of_their_own() {
    need_mounts!();
    let lab = Lab::layers();
    let _outer = lab.tmpfs("outer");
    fs::create_dir(lab.path("outer/in")).unwrap();
    let _inner = lab.tmpfs("outer/in");
    fs::write(lab.path("outer/gone"), "").unwrap();
    fs::write(lab.path("outer/in/old"), "old").unwrap();
    fs::set_permissions(lab.path("outer"), fs::Permissions::from_mode(0o1777)).unwrap();
    let done = attempt(
        &lab,
        &["--keep", "both"],
        "rm outer/gone; echo new > outer/in/old; stat -c %a outer; mknod outer/null c 1 3; cat outer/null",
    );
    assert!(done.text().starts_with("1777\n"), "{done:?}");
    assert!(done.err.contains("Permission denied"), "a device in a union is none of the host's: {done:?}");
    assert_eq!(changes(&lab, &done.text()), ["C outer", "D outer/gone", "C outer/in", "C outer/in/old", "A outer/null"]);
    assert!(lab.path("outer/gone").exists() && !lab.path("outer/null").exists());
    assert_eq!(fs::read_to_string(lab.path("outer/in/old")).unwrap(), "old");
    assert_eq!(changes(&lab, &lab.plyfs(&["try", "diff", "both"]).ok().text()), changes(&lab, &done.text()));

    drop(_inner);
    let done = lab.plyfs(&["try", "diff", "both"]);
    assert_eq!(changes(&lab, &done.text()), ["C outer", "D outer/gone", "A outer/null"]);
    assert_eq!(done.err, format!("plyfs: try both: {} is not mounted as it was; its changes are left out\n", lab.text("outer/in")));
}

#[test]
fn what_cannot_be_tried_is_read_only_and_named() {
    need_mounts!();
    let lab = Lab::layers();
    fs::write(lab.path("single"), "single").unwrap();
    let bind = |from: &str, to: &str| {
        assert!(Command::new("mount").arg("--bind").args([lab.path(from), lab.path(to)]).status().unwrap().success());
        Mounted(lab.path(to))
    };
    let _file = bind("b/low", "single");
    let _dir = bind("b", "m");
    let _read_only = bind("b", "w");
    assert!(Command::new("mount").args(["-o", "remount,bind,ro"]).arg(lab.path("w")).status().unwrap().success());
    let done =
        attempt(&lab, &["--discard"], "for f in single w/x m/x b/x; do (echo y > $f) 2>/dev/null && echo wrote $f; done; cat single; echo");
    assert_eq!(done.code, Some(0));
    assert!(done.text().starts_with("wrote m/x\nwrote b/x\nb\n"), "{done:?}");
    let cannot = done.err.lines().find(|line| line.starts_with("plyfs: try: changes cannot be tried in ")).unwrap();
    assert!(cannot.contains(&format!("{} (", lab.text("single"))), "{cannot}");
    assert!(!cannot.contains(&format!("{} (", lab.text("w"))), "read-only on the host is no loss: {cannot}");
    assert!(
        done.err.contains(&format!("{} and / have files in common", lab.text("m"))) || done.err.contains("have files in common"),
        "{done:?}"
    );
    assert!(!lab.path("b/x").exists());
}

#[test]
fn sockets_of_the_host_are_masked_by_every_way() {
    need_mounts!();
    let lab = Lab::layers();
    let _listener = UnixListener::bind(lab.path("b/sock")).unwrap();
    // A bind mount that is read-only would lead to it all the same.
    assert!(Command::new("mount").arg("--bind").args([lab.path("b"), lab.path("m")]).status().unwrap().success());
    let _bound = Mounted(lab.path("m"));
    assert!(Command::new("mount").args(["-o", "remount,bind,ro"]).arg(lab.path("m")).status().unwrap().success());
    let connect = "python3 -c '
import socket
for path in (\"b/sock\", \"m/sock\"):
    try:
        socket.socket(socket.AF_UNIX).connect(path)
        print(\"reached\", path)
    except OSError:
        print(\"masked\", path)'";
    let done = attempt(&lab, &["--discard"], connect);
    assert!(done.text().starts_with("masked b/sock\nmasked m/sock\n"), "{done:?}");
    let done = attempt(&lab, &["--discard", "--host-sockets"], connect);
    assert!(done.text().starts_with("reached b/sock\n"), "{done:?}");
    assert!(fs::symlink_metadata(lab.path("b/sock")).unwrap().file_type().is_socket());
}

#[test]
fn the_state_is_not_in_the_view() {
    need_mounts!();
    let lab = Lab::layers();
    attempt(&lab, &["--keep", "secret"], "echo x > a/new");
    let done =
        attempt(&lab, &["--discard"], "find state; (echo y > state/x) 2>/dev/null && echo wrote; rm -rf state/try 2>/dev/null; true");
    assert!(done.text().starts_with("state\n") && !done.text().contains("secret") && !done.text().contains("wrote"), "{done:?}");
    assert!(changes(&lab, &done.text()).is_empty(), "{done:?}");
    assert_eq!(tries(&lab), ["secret"]);
    assert_eq!(fs::metadata(lab.path("state/try")).unwrap().mode() & 0o777, 0o700);
}

#[test]
fn the_command_has_its_own_proc_dev_and_descriptors() {
    need_mounts!();
    let lab = Lab::layers();
    let script = format!(
        "exec 7<a/top; exec {PLYFS} try --discard -- sh -c '
            ls /proc/$$/fd
            echo pid $$
            (echo 1 > /proc/sys/kernel/sysrq) 2>/dev/null && echo wrote sys
            mkdir /sys/fs/cgroup/plyfs-test 2>/dev/null && echo wrote cgroup
            echo x > /dev/null && echo null
            ls /dev
            touch /dev/shm/plyfs-test
            kill -0 {} 2>/dev/null && echo sees the host'",
        std::process::id()
    );
    let done = finish(lab.command("sh").args(["-c", &script]));
    let text = done.text();
    assert!(text.starts_with("0\n1\n2\npid "), "{done:?}");
    assert!(!text.contains("wrote") && text.contains("null\n") && !text.contains("sees the host"), "{done:?}");
    let devices: BTreeSet<&str> = text.lines().collect();
    assert!(["null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm"].iter().all(|name| devices.contains(name)), "{text}");
    assert!(!devices.contains("fuse") && !devices.contains("mem") && !devices.contains("kmsg"), "{text}");
    assert!(!Path::new("/dev/shm/plyfs-test").exists());
}

#[test]
fn the_environment_and_the_directory_are_the_callers() {
    need_mounts!();
    let lab = Lab::layers();
    let mut command = lab.command(PLYFS);
    command.env("PASSED", "on").current_dir(lab.path("b/d")).args(["try", "--discard", "--", "sh", "-c", "echo $PASSED; pwd; cat f"]);
    assert_eq!(finish(&mut command).text(), format!("on\n{}\nf", lab.text("b/d")));
    // A directory that is not in the view.
    fs::create_dir_all(lab.path("state")).unwrap();
    let mut command = lab.command(PLYFS);
    command.current_dir("/dev/shm").args(["try", "--discard", "--", "sh", "-c", "pwd"]);
    assert!(["/\n", "/dev/shm\n"].contains(&finish(&mut command).text().as_str()));
}

#[test]
fn output_that_cannot_be_written_does_not_change_what_becomes_of_the_changes() {
    need_mounts!();
    let lab = Lab::layers();
    let full = || fs::File::options().write(true).open("/dev/full").unwrap();
    let run = |options: &[&str], out: Stdio, err: Stdio| {
        let mut command = lab.command(PLYFS);
        command.arg("try").args(options).args(["--", "sh", "-c", "echo x > a/new"]);
        command.stdout(out).stderr(err).status().unwrap().code()
    };
    assert_eq!(run(&["--discard"], full().into(), Stdio::null()), Some(125));
    assert!(tries(&lab).is_empty());
    assert_eq!(run(&["--keep", "kept"], full().into(), full().into()), Some(125));
    assert_eq!(tries(&lab), ["kept"]);
    assert_eq!(run(&["--discard"], Stdio::null(), full().into()), Some(0));
}

#[test]
fn standard_input_reaches_the_command() {
    need_mounts!();
    let lab = Lab::layers();
    fs::write(lab.path("input"), "typed").unwrap();
    let mut command = lab.command(PLYFS);
    command.args(["try", "--discard", "cat"]).stdin(fs::File::open(lab.path("input")).unwrap());
    assert_eq!(finish(&mut command).text(), "typed");
}

#[test]
fn filesystems_that_are_broken_or_do_not_answer_are_told_and_hold_no_try_up() {
    need_mounts!();
    let programs = Command::new("sh").args(["-c", "command -v mkfs.ext4 && command -v xfs_io && command -v python3"]).output().unwrap();
    if !programs.status.success() {
        crate::skip::skip!("needs mkfs.ext4, xfs_io and python3");
    }
    if Command::new("losetup").arg("-f").output().is_ok_and(|found| !found.status.success()) {
        crate::skip::skip!("needs a loop device");
    }
    apart(|| {
        let lab = Lab::layers();
        let image = lab.path("image");
        fs::File::create(&image).unwrap().set_len(8 << 20).unwrap();
        let run = |command: &mut Command| finish(command.current_dir(lab.path(""))).ok();
        run(Command::new("mkfs.ext4").arg("-q").arg(&image));
        for dir in ["disk", "silent"] {
            fs::create_dir(lab.path(dir)).unwrap();
        }
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg("disk"));
        let disk = Mounted(lab.path("disk"));
        run(Command::new("xfs_io").args(["-x", "-c", "shutdown", "disk"]));
        let garbage = Garbage::start(&lab.path("silent"), "silent");
        let done = attempt(&lab, &["--discard"], "ls; echo x > a/new");
        drop((garbage, disk));
        assert_eq!((done.code, changes(&lab, &done.text())), (Some(0), vec!["C a".to_owned(), "A a/new".to_owned()]), "{done:?}");
        assert!(done.text().starts_with("a\nb\ndisk\nimage\nm\nsilent\n"), "{done:?}");
        for (dir, how) in [("disk", "ext4, broken"), ("silent", "fuse.garbage, read-only")] {
            assert!(done.err.contains(&format!("{} ({how})", lab.text(dir))), "{done:?}");
        }
    });
}
