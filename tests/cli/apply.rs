//! `plyfs try --apply` and `plyfs try apply`, on filesystems of the lab's own: nothing else of this machine is written by the commands, and so by what applies them.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Stdio;

use crate::apart::apart;
use crate::lab::{Done, Lab, Mounted, PLYFS, finish, need_mounts};

/// A lab with a filesystem `h`.
fn lab() -> (Lab, Mounted) {
    let lab = Lab::new();
    let mounted = lab.tmpfs("h");
    fs::write(lab.path("h/f"), "old").unwrap();
    (lab, mounted)
}

/// Tries a script in the lab with these options.
fn attempt(lab: &Lab, options: &[&str], script: &str) -> Done {
    lab.plyfs(&[&["try"], options, &["--", "sh", "-c", script]].concat())
}

/// The lines of plyfs itself that are no notes on the machine's mounts.
fn said(done: &Done) -> Vec<&str> {
    let own = |line: &&str| line.starts_with("plyfs: ") && !line.starts_with("plyfs: try: changes cannot be tried in ");
    done.err.lines().filter(own).filter(|line| !line.contains(" have files in common; ")).collect()
}

/// How many tries there are.
fn tries(lab: &Lab) -> usize {
    lab.plyfs(&["try", "list"]).ok().text().lines().count() - 1
}

fn read(lab: &Lab, path: &str) -> String {
    fs::read_to_string(lab.path(path)).unwrap_or_else(|error| format!("{error}"))
}

#[test]
fn what_a_command_did_is_shown_and_applied_if_it_succeeded() {
    need_mounts!();
    apart(|| {
        let (lab, _mounted) = lab();
        let done = attempt(&lab, &["--apply"], "echo new > h/f; mkdir h/d; echo x > h/d/x; echo output");
        assert_eq!((done.code, said(&done)), (Some(0), vec![]), "{done:?}");
        let shown = done.text().replace(&lab.text(""), "/");
        assert!(shown.starts_with("output\n") && shown.ends_with("C /h\nA /h/d\nA /h/d/x\nC /h/f\n"), "{shown}");
        assert_eq!((read(&lab, "h/f").as_str(), read(&lab, "h/d/x").as_str(), tries(&lab)), ("new\n", "x\n", 0));

        let done = attempt(&lab, &["--apply", "--keep", "failed"], "echo newer > h/f; exit 3");
        assert_eq!(done.code, Some(3), "{done:?}");
        assert_eq!((read(&lab, "h/f").as_str(), tries(&lab)), ("new\n", 1));
        assert!(said(&done).iter().any(|line| line.contains("kept as failed")), "{done:?}");
        // Whoever wants it all the same says so.
        lab.plyfs(&["try", "apply", "failed"]).ok();
        assert_eq!((read(&lab, "h/f").as_str(), tries(&lab)), ("newer\n", 0));

        let done = attempt(&lab, &["--apply"], "echo newest > h/f; exit 4");
        assert_eq!(done.code, Some(4));
        assert!(said(&done).contains(&"plyfs: try: the command has failed, and its changes are not applied"), "{done:?}");
        let done = attempt(&lab, &["--apply"], "cat h/f > /dev/null");
        assert_eq!((done.code, said(&done)), (Some(0), vec!["plyfs: try: nothing changed"]));
        assert_eq!((read(&lab, "h/f").as_str(), tries(&lab)), ("newer\n", 1));
    });
}

#[test]
fn attributes_flags_and_times_that_no_diff_tells_are_kept_and_applied() {
    need_mounts!();
    apart(|| {
        let (lab, _mounted) = lab();
        fs::create_dir(lab.path("h/d")).unwrap();
        let get = "getfattr --only-values -n user.a h/f; stat -c %Y h/d; lsattr h/f | cut -c1-22 | tr -d -";
        for change in ["setfattr -n user.a -v 1 h/f", "touch -d @1000 h/d", "chattr +A h/f"] {
            let done = attempt(&lab, &["--keep", "one"], change);
            assert_eq!(done.code, Some(0), "{done:?}");
            assert_eq!(tries(&lab), 1, "{change}: {done:?}");
            lab.plyfs(&["try", "apply", "one"]).ok();
            // Without a terminal the same is kept unasked.
            let done = attempt(&lab, &[], &format!("{change}; setfattr -n user.b -v {} h/f", change.len()));
            assert!(said(&done).iter().any(|line| line.contains("only attributes, flags or times")), "{done:?}");
            let name = lab.plyfs(&["try", "list"]).text().lines().nth(1).unwrap().split(' ').next().unwrap().to_owned();
            lab.plyfs(&["try", "discard", &name]).ok();
        }
        assert_eq!(finish(lab.command("sh").args(["-c", get])).text(), "11000\nA\n");
    });
}

/// Starts a script that waits in its middle, lets others do something meanwhile, and ends it.
fn meanwhile(lab: &Lab, before: &str, others: &str, after: &str) -> Done {
    let script = format!("{before}; echo ready; read line; {after}");
    let mut command = lab.command(PLYFS);
    command.args(["try", "--apply", "--keep", "one", "--", "sh", "-c", &script]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    finish(lab.command("sh").args(["-ec", others])).ok();
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    let (mut text, mut err) = (Vec::new(), String::new());
    out.read_to_end(&mut text).unwrap();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    Done { code: child.wait().unwrap().code(), out: text, err }
}

#[test]
fn what_others_change_while_a_command_runs_is_a_conflict() {
    need_mounts!();
    apart(|| {
        let late = "somebody else changed it while the command ran";
        for (before, others, after, told) in [
            ("cat h/f > /dev/null", "echo theirs > h/f", "echo mine > h/f", format!("C h/f: {late}")),
            ("cat h/f > /dev/null", "chmod 600 h/f", "echo mine > h/f", format!("C h/f: {late}")),
            ("ls h/d >&2", "echo theirs > h/d/new", "rm -r h/d", format!("D h/d/new: {late}")),
            ("ls h/d >&2", "chmod 711 h/d", "chmod 700 h/d", format!("C h/d: {late}")),
            // Another directory under the same name, older than the try, with everything that is in it.
            ("echo mine > h/d/x", "mv h/d h/was; mv h/e h/d", "rm h/d/y", format!("C h/d: {late}")),
            ("echo mine > h/d/sub/x", "mv h/d h/was; mv h/e h/d", "rm -f h/d/sub/z", format!("C h/d: {late}")),
            ("cat h/d/y > /dev/null", "mv h/d h/was; mv h/e h/d", "rm -r h/d", format!("D h/d: {late}")),
            ("ls h >&2", "echo theirs > h/new", "echo mine > h/new", format!("C h/new: {late}")),
        ] {
            let (lab, _mounted) = lab();
            for dir in ["h/d/sub", "h/e/sub"] {
                fs::create_dir_all(lab.path(dir)).unwrap();
            }
            for file in ["h/d/x", "h/d/y", "h/e/x", "h/e/y", "h/d/sub/x", "h/e/sub/x"] {
                fs::write(lab.path(file), file).unwrap();
            }
            let done = meanwhile(&lab, before, others, after);
            assert_eq!(done.code, Some(125), "{others}: {done:?}");
            let told = format!("plyfs: try one: {}", told.replacen("h/", &lab.text("h/"), 1));
            assert!(said(&done).contains(&told.as_str()), "{others}: {told}: {done:?}");
            assert!(said(&done).iter().any(|line| line.contains("nothing was changed; ")), "{done:?}");
            assert_eq!(tries(&lab), 1, "{done:?}");
            assert!(!read(&lab, "h/f").contains("mine") && !read(&lab, "h/d/x").contains("mine") && !read(&lab, "h/new").contains("mine"));
        }
    });
}

#[test]
fn what_others_add_beside_while_a_command_runs_is_none() {
    need_mounts!();
    apart(|| {
        let (lab, _mounted) = lab();
        let done = meanwhile(&lab, "echo mine > h/mine", "echo theirs > h/theirs; mkdir h/dir; chmod 700 h/dir", "echo more >> h/f");
        assert_eq!(done.code, Some(0), "{done:?}");
        assert_eq!([read(&lab, "h/mine"), read(&lab, "h/theirs"), read(&lab, "h/f")], ["mine\n", "theirs\n", "oldmore\n"]);
    });
}

#[test]
fn on_a_terminal_changes_are_applied_by_an_answer() {
    need_mounts!();
    apart(|| {
        let (lab, _mounted) = lab();
        let script = format!(
            "mkfifo in; (exec 3>in; until grep -q 'keep or discard' log 2>/dev/null; do sleep 0.1; done; printf 'a\\n' >&3; sleep 1) & \
         script -qefc '{PLYFS} try -- sh -c \"echo x > h/a\"' log < in > /dev/null; code=$?; cat log; exit $code"
        );
        let done = finish(lab.command("sh").args(["-c", &script]));
        assert_eq!(done.code, Some(0), "{done:?}");
        assert!(done.text().contains("apply, keep or discard these changes?"), "{done:?}");
        assert_eq!((read(&lab, "h/a").as_str(), tries(&lab)), ("x\n", 0));
    });
}

#[test]
fn a_symbolic_link_becomes_a_directory_of_several_levels() {
    need_mounts!();
    apart(|| {
        for change in
            ["rm h/l; mv h/d h/l", "mv h/d t; mv h/l h/d; mv t h/l", "rm h/l; mkdir -p h/l/s/t; cp h/d/s/g h/l/s/t/g; cp h/d/s/g h/l/s/g"]
        {
            let (lab, _mounted) = lab();
            fs::create_dir_all(lab.path("h/d/s")).unwrap();
            fs::write(lab.path("h/d/s/g"), "g").unwrap();
            // Wherever it leads: what is there is none of it.
            std::os::unix::fs::symlink("d", lab.path("h/l")).unwrap();
            let done = attempt(&lab, &["--apply"], change);
            assert_eq!((done.code, said(&done)), (Some(0), vec![]), "{change}: {done:?}");
            assert!(fs::symlink_metadata(lab.path("h/l")).unwrap().is_dir(), "{change}");
            assert_eq!((read(&lab, "h/l/s/g").as_str(), tries(&lab)), ("g", 0), "{change}");
        }
    });
}

/// What forbids a change is part of what the command saw, also of what goes with a directory or moves with it.
#[test]
fn what_was_protected_since_is_a_conflict_and_stays() {
    need_mounts!();
    apart(|| {
        for (change, flag, path, letter) in [
            ("echo new > h/f", "+i", "h/f", 'C'),
            ("chmod 600 h/f", "+a", "h/f", 'C'),
            ("rm h/f", "+i", "h/f", 'D'),
            ("mv h/f h/to", "+a", "h/f", 'D'),
            ("rm h/f; mkdir h/f", "+i", "h/f", 'C'),
            ("rm -r h/d", "+i", "h/d/e/i", 'D'),
            ("rm -r h/d", "+a", "h/d/e", 'D'),
            ("rm -r h/d", "+i", "h/d", 'D'),
            ("mv h/d h/to", "+i", "h/d/e/i", 'D'),
            ("echo new > h/d/new", "+i", "h/d", 'C'),
            ("rm h/d/e/i", "+a", "h/d/e", 'C'),
        ] {
            let when = format!("{change}, {flag} {path}");
            let (lab, _mounted) = lab();
            fs::create_dir_all(lab.path("h/d/e")).unwrap();
            fs::write(lab.path("h/d/e/i"), "i").unwrap();
            assert_eq!(attempt(&lab, &["--keep", "one"], &format!("echo other > h/other; {change}")).code, Some(0), "{when}");
            let chattr = |flag: &str| finish(lab.command("chattr").args([flag, path])).ok();
            let list = || {
                finish(lab.command("sh").args(["-ec", "find h -printf '%P %i %m %s %l\\n' | sort; lsattr -R h; lsattr -d h/f h/d"]))
                    .ok()
                    .text()
            };
            chattr(flag);
            let before = list();
            let done = lab.plyfs(&["try", "apply", "one"]);
            assert_eq!(done.code, Some(1), "{when}: {done:?}");
            let told = format!("plyfs: try one: {letter} {}: its inode flags have changed", lab.text(path));
            assert!(said(&done).contains(&told.as_str()), "{when}: {told}: {done:?}");
            assert_eq!((list(), tries(&lab)), (before, 1), "{when}");
            // Whoever takes it off again can apply.
            chattr(&flag.replace('+', "-"));
            lab.plyfs(&["try", "apply", "one"]).ok();
            assert_eq!((read(&lab, "h/other").as_str(), tries(&lab)), ("other\n", 0), "{when}");
        }
    });
}

#[test]
fn what_was_protected_when_the_command_ran_moves_with_its_directory() {
    need_mounts!();
    apart(|| {
        for (flag, path) in [("+i", "e/i"), ("+a", "e/i"), ("+a", "e"), ("+i", "e")] {
            let (lab, _mounted) = lab();
            fs::create_dir_all(lab.path("h/d/e")).unwrap();
            fs::write(lab.path("h/d/e/i"), "i").unwrap();
            finish(lab.command("chattr").args([flag, &format!("h/d/{path}")])).ok();
            let done = attempt(&lab, &["--apply"], "mv h/d h/to");
            assert_eq!((done.code, said(&done)), (Some(0), vec![]), "{flag} {path}: {done:?}");
            let show = format!("find h -mindepth 1 -printf '%P\\n' | sort; lsattr -d h/to/{path} | cut -c1-22 | tr -d -");
            let shown = finish(lab.command("sh").args(["-ec", &show])).ok().text();
            assert_eq!(shown, format!("f\nto\nto/e\nto/e/i\n{}\n", &flag[1..]), "{flag} {path}");
        }
    });
}

#[test]
fn a_directory_that_is_append_only_is_told_by_its_whole_path() {
    need_mounts!();
    apart(|| {
        let (lab, _mounted) = lab();
        fs::create_dir(lab.path("h/d")).unwrap();
        finish(lab.command("chattr").args(["+a", "h/d"])).ok();
        assert_eq!(attempt(&lab, &["--keep", "one"], "echo new > h/d/new").code, Some(0));
        let done = lab.plyfs(&["try", "apply", "one"]);
        assert_eq!(done.code, Some(125), "{done:?}");
        let told = format!("plyfs: {}: nothing can be changed in it; ", lab.text("h/d"));
        assert!(said(&done).iter().any(|line| line.starts_with(&told)), "{told}: {done:?}");
        finish(lab.command("chattr").args(["-a", "h/d"])).ok();
        lab.plyfs(&["try", "apply", "one"]).ok();
        assert_eq!(read(&lab, "h/d/new"), "new\n");
    });
}

#[test]
fn changes_of_several_filesystems_are_applied_together_or_not_at_all() {
    need_mounts!();
    apart(|| {
        let (lab, _mounted) = lab();
        let inner = lab.tmpfs("h/inner");
        fs::write(lab.path("h/inner/i"), "inner").unwrap();
        let change = "echo new > h/f; echo new > h/inner/i; mv h/inner/i h/moved";
        assert_eq!(attempt(&lab, &["--keep", "one"], change).code, Some(0));
        fs::write(lab.path("h/inner/i"), "theirs").unwrap();
        let done = lab.plyfs(&["try", "apply", "one"]);
        assert_eq!(done.code, Some(1), "{done:?}");
        assert!(done.err.contains(&format!("plyfs: try one: D {}: ", lab.text("h/inner/i"))), "{done:?}");
        assert_eq!((read(&lab, "h/f").as_str(), read(&lab, "h/inner/i").as_str(), lab.path("h/moved").exists()), ("old", "theirs", false));
        lab.plyfs(&["try", "discard", "one"]).ok();

        assert_eq!(attempt(&lab, &["--keep", "two"], change).code, Some(0));
        drop(inner);
        let done = lab.plyfs(&["try", "apply", "two"]);
        done.refused(125, &format!("try apply two: {} is not mounted as it was; ", lab.text("h/inner")), &[]);
        assert_eq!(read(&lab, "h/f"), "old", "nothing is written into what was below the mount");
        lab.plyfs(&["try", "discard", "two"]).ok();

        let _inner = lab.tmpfs("h/inner");
        fs::write(lab.path("h/inner/i"), "inner").unwrap();
        assert_eq!(attempt(&lab, &["--apply"], change).code, Some(0));
        assert_eq!((read(&lab, "h/f").as_str(), read(&lab, "h/moved").as_str(), lab.path("h/inner/i").exists()), ("new\n", "new\n", false));
    });
}

#[test]
fn a_filesystem_that_is_mounted_twice_is_not_changed_twice() {
    need_mounts!();
    apart(|| {
        let (lab, _mounted) = lab();
        let _twin = lab.bind("h", "twin");
        assert_eq!(attempt(&lab, &["--keep", "one"], "echo one > h/f; echo two > twin/f").code, Some(0));
        let done = lab.plyfs(&["try", "apply", "one"]);
        assert!(
            done.code == Some(1) && done.err.contains("another mount of the same filesystem has other changes at the same place (f)"),
            "{done:?}"
        );
        assert_eq!(read(&lab, "h/f"), "old");
        lab.plyfs(&["try", "discard", "one"]).ok();
        let done = attempt(&lab, &["--apply"], "echo one > h/f; echo two > twin/g");
        assert_eq!(done.code, Some(0), "{done:?}");
        assert_eq!((read(&lab, "h/f").as_str(), read(&lab, "h/g").as_str()), ("one\n", "two\n"));
    });
}

#[test]
fn what_was_cut_off_or_lies_where_others_write_is_not_applied() {
    need_mounts!();
    apart(|| {
        let (lab, _mounted) = lab();
        assert_eq!(attempt(&lab, &["--keep", "one"], "echo new > h/f").code, Some(0));
        let dir = lab.path("state/try/one");
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
        lab.plyfs(&["try", "apply", "one"]).refused(125, "try apply one: ", &["is not yours alone; "]);
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();

        // As after a power cut: another boot, and not told to be on the disk.
        let saw = fs::read_to_string(dir.join("saw.json")).unwrap();
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        fs::write(dir.join("saw.json"), saw.replace(boot.trim(), "another")).unwrap();
        fs::rename(dir.join("synced.json"), dir.join("aside")).unwrap();
        lab.plyfs(&["try", "apply", "one"]).refused(125, "try one: this machine went down before its changes were on the disk", &["; "]);
        fs::rename(dir.join("aside"), dir.join("synced.json")).unwrap();
        fs::write(dir.join("saw.json"), saw.replacen("\"version\":1", "\"version\":2", 1)).unwrap();
        lab.plyfs(&["try", "apply", "one"]).refused(125, "try one: what its command saw was written by another version", &["; "]);
        fs::remove_file(dir.join("saw.json")).unwrap();
        lab.plyfs(&["try", "apply", "one"]).refused(125, "try one: what its command saw is not known", &["; "]);
        fs::write(dir.join("saw.json"), &saw).unwrap();
        let ino = fs::metadata(lab.path("h")).unwrap().ino();
        lab.plyfs(&["try", "apply", "one"]).ok();
        assert_eq!((read(&lab, "h/f").as_str(), fs::metadata(lab.path("h")).unwrap().ino()), ("new\n", ino));
    });
}
