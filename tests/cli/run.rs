//! `plyfs run`. Its roots are made of the machine's own `/usr`, which is only read.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt;

use rustix::process::Signal;

use crate::lab::{Lab, PLYFS, Process, finish, need_mounts, until};

/// A lab with the layer `base` that has a shell and some tools, and `app` above it.
fn with_base() -> Lab {
    let lab = Lab::layers();
    fs::create_dir_all(lab.path("base/bin")).unwrap();
    fs::create_dir_all(lab.path("base/etc")).unwrap();
    for tool in ["sh", "cat", "ls", "id", "hostname", "env", "sleep", "rm", "touch", "mkdir"] {
        copy_tool(&lab, tool);
    }
    fs::write(lab.path("base/etc/who"), "base").unwrap();
    fs::create_dir_all(lab.path("app/etc")).unwrap();
    fs::write(lab.path("app/etc/who"), "app").unwrap();
    lab
}

/// A program and the libraries that it needs.
fn copy_tool(lab: &Lab, tool: &str) {
    let program = ["/usr/bin", "/bin"].iter().map(|dir| format!("{dir}/{tool}")).find(|path| fs::metadata(path).is_ok()).unwrap();
    fs::copy(&program, lab.path(format!("base/bin/{tool}"))).unwrap();
    let libraries = finish(lab.command("ldd").arg(&program));
    for library in libraries.text().split_whitespace().filter(|word| word.starts_with('/')) {
        let target = lab.path("base").join(library.trim_start_matches('/'));
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        if !target.exists() {
            fs::copy(library, target).unwrap();
        }
    }
}

#[test]
fn a_command_runs_on_the_union_and_the_layers_stay_as_they_are() {
    need_mounts!();
    let lab = with_base();
    let before = fs::read_to_string(lab.path("base/etc/who")).unwrap();
    let done = lab.plyfs(&["run", "--rootfs", "app:base", "--", "sh", "-c", "cat /etc/who; echo changed > /etc/who; ls /; exit 7"]);
    assert_eq!((done.code, done.err.as_str()), (Some(7), ""));
    assert!(done.text().starts_with("app"), "{done:?}");
    assert_eq!(fs::read_to_string(lab.path("app/etc/who")).unwrap(), "app");
    assert_eq!(fs::read_to_string(lab.path("base/etc/who")).unwrap(), before);
    assert_eq!(fs::read_dir(lab.path("state/run")).unwrap().count(), 0, "the scratch layer is gone");
}

#[test]
fn exit_codes_are_the_commands_or_say_why_it_did_not_run() {
    need_mounts!();
    let lab = with_base();
    fs::write(lab.path("app/etc/plain"), "no program").unwrap();
    for (command, code) in [
        (&["sh", "-c", "exit 0"][..], 0),
        (&["sh", "-c", "exit 42"], 42),
        (&["sh", "-c", "kill -TERM $$"], 128 + 15),
        (&["sh", "-c", "kill -KILL $$"], 128 + 9),
        (&["/etc/plain"], 126),
        (&["/etc"], 126),
        (&["nonsense"], 127),
        (&["/bin/nonsense"], 127),
    ] {
        let done = lab.plyfs(&[&["run", "--rootfs", "app:base", "--"], command].concat());
        assert_eq!(done.code, Some(code), "{command:?}: {done:?}");
        assert_eq!(done.err.lines().count(), usize::from(matches!(code, 126 | 127)), "{done:?}");
    }
    // Without a command it is a shell.
    assert_eq!(lab.plyfs(&["run", "--rootfs", "app:base"]).ok().text(), "");
}

#[test]
fn changes_are_kept_in_the_upper_and_shown() {
    need_mounts!();
    let lab = with_base();
    let script = "echo new > /etc/new; rm /etc/who; mkdir -p /srv/x";
    let done = lab.plyfs(&["run", "--rootfs", "app:base", "--upper", "kept", "--diff", "--", "sh", "-c", script]).ok();
    let shown = done.text();
    for line in ["C /etc", "A /etc/new", "D /etc/who", "A /srv", "A /srv/x"] {
        assert!(shown.lines().any(|shown| shown == line), "{line}: {shown}");
    }
    assert_eq!(fs::read_to_string(lab.path("kept/etc/new")).unwrap(), "new\n");
    assert!(lab.path("kept.work").is_dir());
    let again = lab.plyfs(&["run", "--rootfs", "app:base", "--upper", "kept", "--", "sh", "-c", "cat /etc/new; ls /etc"]).ok();
    assert_eq!(again.text(), "new\nnew\n");
    // Stacked as a lower it shows the same.
    let stacked = lab.plyfs(&["run", "--rootfs", "kept:app:base", "--", "ls", "/etc"]).ok();
    assert_eq!(stacked.text(), "new\n");
    let done = lab.plyfs(&["run", "--rootfs", "kept:app:base", "--diff", "--", "sh", "-c", "echo output; touch /etc/late; exit 3"]);
    assert_eq!(done.code, Some(3));
    let text = done.text();
    assert!(text.starts_with("output\n") && text.contains("A /etc/late\n"), "the diff comes after the output: {text}");
}

#[test]
fn surroundings_are_those_asked_for() {
    need_mounts!();
    let lab = with_base();
    let mut command = lab.command(PLYFS);
    command.env("PASSED", "on").env("NOT_PASSED", "x").args(["run", "--rootfs", "app:base", "--hostname", "box", "-w", "/etc"]);
    command.args(["-e", "A=1", "-e", "PASSED", "-e", "GONE_FOR_SURE", "--", "sh", "-c", "hostname; pwd; env; id -u; ls /proc/1/fd"]);
    let text = finish(&mut command).ok().text();
    assert!(text.starts_with("box\n/etc\n"), "{text}");
    let has = |line: &str| text.lines().any(|shown| shown == line);
    assert!(has("A=1") && has("PASSED=on") && !text.contains("NOT_PASSED") && !text.contains("GONE_FOR_SURE"), "{text}");
    assert!(!text.contains("PLYFS_ROOT"), "{text}");
}

#[test]
fn only_descriptors_0_to_2_reach_the_command() {
    need_mounts!();
    let lab = with_base();
    let script = format!("exec 7<a/top; exec {PLYFS} run --rootfs app:base -- sh -c 'ls /proc/$$/fd'");
    let done = finish(lab.command("sh").args(["-c", &script])).ok();
    assert_eq!(done.text(), "0\n1\n2\n");
}

#[test]
fn a_relative_and_linked_rootfs_is_found() {
    need_mounts!();
    let lab = with_base();
    symlink("base", lab.path("link")).unwrap();
    assert_eq!(lab.plyfs(&["run", "--rootfs", "./app:link", "--", "cat", "/etc/who"]).ok().text(), "app");
}

#[test]
fn a_signal_to_plyfs_reaches_the_command() {
    need_mounts!();
    let lab = with_base();
    let script = "trap 'echo caught > /etc/caught; exit 9' TERM; touch /etc/ready; while :; do sleep 0.1; done";
    let mut run = Process::start(lab.command(PLYFS).args(["run", "--rootfs", "base", "--upper", "kept", "--", "sh", "-c", script]));
    until("the command runs", || lab.path("kept/etc/ready").exists());
    run.signal(Signal::TERM);
    assert_eq!(run.code(), Some(9));
    assert!(lab.path("kept/etc/caught").exists());
}

#[test]
fn a_killed_run_leaves_nothing_but_a_scratch_that_the_next_one_removes() {
    need_mounts!();
    let lab = with_base();
    let mut run = Process::start(lab.command(PLYFS).args(["run", "--rootfs", "base", "--", "sleep", "1000"]));
    let scratch = || fs::read_dir(lab.path("state/run")).map(|dir| dir.count()).unwrap_or(0);
    until("it runs", || scratch() == 1);
    run.signal(Signal::KILL);
    assert_eq!(run.0.wait().unwrap().signal(), Some(9));
    assert_eq!(scratch(), 1);
    // What the killed one started ends soon, and has the lock until then.
    until("the next ones have removed it", || {
        lab.plyfs(&["run", "--rootfs", "base", "--", "sh", "-c", "exit 0"]).ok();
        scratch() == 0
    });
}
