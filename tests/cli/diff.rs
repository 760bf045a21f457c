//! `plyfs diff`.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use crate::lab::{Lab, PLYFS, finish, name, need_mounts, server, until};

/// Changes of every kind, in a mount.
fn change(lab: &Lab) {
    fs::write(lab.path("m/top"), "changed").unwrap();
    fs::remove_file(lab.path("m/low")).unwrap();
    fs::create_dir_all(lab.path("m/new/sub")).unwrap();
    fs::write(lab.path("m/new/sub/f"), "").unwrap();
    symlink("f", lab.path("m/d/link")).unwrap();
    fs::write(lab.path("m").join(name(b"r\xff w")), "").unwrap();
}

const LINES: &[u8] = b"C /d\nA /d/link\nD /low\nA /new\nA /new/sub\nA /new/sub/f\nA /r\xff w\nC /top\n";

#[test]
fn lines_are_raw_and_sorted_mounted_or_not() {
    need_mounts!();
    let lab = Lab::layers();
    let _mounted = lab.mount(&lab.options());
    assert!(lab.plyfs(&["diff", "./m"]).ok().out.is_empty());
    change(&lab);
    symlink("m", lab.path("link")).unwrap();
    for operand in ["./m", "m", &lab.text("m"), "link"] {
        assert_eq!(lab.plyfs(&["diff", operand]).ok().out, LINES, "{operand}");
    }
    assert_eq!(lab.plyfs(&["diff", "--type", "mount", "m"]).ok().out, LINES);
    lab.plyfs(&["umount", "m"]).ok();
    assert_eq!(lab.plyfs(&["diff", "--upper", "u", "--lower", "a:b"]).ok().out, LINES);
}

#[test]
fn json_is_dockers() {
    need_mounts!();
    let lab = Lab::layers();
    let _mounted = lab.mount(&lab.options());
    assert_eq!(lab.plyfs(&["diff", "--json", "m"]).ok().text(), "[]\n");
    change(&lab);
    let json: serde_json::Value = serde_json::from_slice(&lab.plyfs(&["diff", "--json", "m"]).ok().out).unwrap();
    assert_eq!(json[0], serde_json::json!({"Path": "/d", "Kind": 0}));
    assert_eq!(json[1], serde_json::json!({"Path": "/d/link", "Kind": 1}));
    assert_eq!(json[2], serde_json::json!({"Path": "/low", "Kind": 2}));
    assert_eq!(json[6], serde_json::json!({"Path": "/r\u{fffd} w", "Kind": 1, "PathBytes": "2f72ff2077"}));
    assert_eq!(json.as_array().unwrap().len(), 8);
}

#[test]
fn other_attributes_count_only_if_asked_for() {
    need_mounts!();
    let lab = Lab::layers();
    let _mounted = lab.mount(&lab.options());
    rustix::fs::setxattr(lab.path("m/low"), "user.test", b"1", rustix::fs::XattrFlags::empty()).unwrap();
    assert_eq!(lab.plyfs(&["diff", "m"]).ok().text(), "");
    assert_eq!(lab.plyfs(&["diff", "--xattrs", "m"]).ok().text(), "C /low\n");
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    need_mounts!();
    let lab = Lab::layers();
    let _mounted = lab.mount(&lab.options());
    for number in 0..5000 {
        fs::write(lab.path(format!("m/a-file-with-quite-a-long-name-{number}")), "").unwrap();
    }
    let mut child = lab.command(PLYFS).args(["diff", "m"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(0), ""));
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let done = finish_into(lab.command(PLYFS).args(["diff", "m"]), full);
    assert_eq!(done.0, Some(1));
    assert!(done.1.starts_with("plyfs: standard output: No space left"), "{}", done.1);
}

fn finish_into(command: &mut Command, out: fs::File) -> (Option<i32>, String) {
    let output = command.stdout(out).stderr(Stdio::piped()).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_mount_over_its_own_lower_is_compared_with_what_is_under_it() {
    need_mounts!();
    let lab = Lab::layers();
    let _mounted = crate::lab::Mounted(lab.path("b"));
    let options = format!("lowerdir={},upperdir={},workdir={}", lab.text("b"), lab.text("u"), lab.text("w"));
    lab.plyfs(&["mount", "-o", &options, "b"]).ok();
    fs::write(lab.path("b/low"), "changed").unwrap();
    fs::write(lab.path("b/new"), "").unwrap();
    assert_eq!(lab.plyfs(&["diff", "./b"]).ok().text(), "C /low\nA /new\n");
    // Layers that were renamed meanwhile are still those of the mount.
    fs::rename(lab.path("u"), lab.path("elsewhere")).unwrap();
    assert_eq!(lab.plyfs(&["diff", "./b"]).ok().text(), "C /low\nA /new\n");
    lab.plyfs(&["umount", "b"]).ok();
    assert_eq!(fs::read_to_string(lab.path("b/low")).unwrap(), "b");
}

#[test]
fn a_read_only_union_has_no_changes() {
    need_mounts!();
    let lab = Lab::layers();
    let _mounted = lab.mount(&format!("lowerdir={}", lab.text("a")));
    assert_eq!(lab.plyfs(&["diff", "m"]).ok().text(), "");
    assert_eq!(finish(lab.command(PLYFS).args(["diff", "--json"]).arg(lab.path("m"))).ok().text(), "[]\n");
}

/// A server that is killed settles nothing.
fn kill_server(lab: &Lab) {
    let pid = i32::try_from(server(&lab.path("m"))).unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL).unwrap();
    until("the server ends", || fs::read_dir(lab.path("m")).is_err());
    rustix::mount::unmount(lab.path("m"), rustix::mount::UnmountFlags::DETACH).unwrap();
}

#[test]
fn all_names_of_a_changed_hard_link_are_told() {
    need_mounts!();
    let lab = Lab::layers();
    for name in ["b/d/low2", "b/low3"] {
        fs::hard_link(lab.path("b/low"), lab.path(name)).unwrap();
    }
    // One that is not below any of the upper's directories, and a renamed one.
    fs::create_dir_all(lab.path("b/e/f")).unwrap();
    fs::hard_link(lab.path("b/low"), lab.path("b/e/f/low4")).unwrap();
    fs::create_dir(lab.path("b/from")).unwrap();
    fs::hard_link(lab.path("b/low"), lab.path("b/from/low5")).unwrap();
    let args = ["diff", "--upper", "u", "--lower", "a:b"];
    let with = [&args[..], &["--workdir", "w"]].concat();
    let same = |lab: &Lab, args: &[&str], lines: &str| assert_eq!(lab.plyfs(args).ok().text(), lines, "{args:?}");

    let mounted = lab.mount(&lab.options());
    fs::write(lab.path("m/low"), "changed").unwrap();
    fs::rename(lab.path("m/from"), lab.path("m/to")).unwrap();
    let lines = "C /d\nC /d/low2\nC /e\nC /e/f\nC /e/f/low4\nD /from\nC /low\nC /low3\nA /to\nA /to/low5\n";
    same(&lab, &["diff", "m"], lines);
    kill_server(&lab);
    drop(mounted);
    // The name that is in the upper tells of the others.
    same(&lab, &args, lines);
    same(&lab, &with, lines);

    let mounted = lab.mount(&lab.options());
    fs::remove_file(lab.path("m/low")).unwrap();
    let lines = "C /d\nC /d/low2\nC /e\nC /e/f\nC /e/f/low4\nD /from\nD /low\nC /low3\nA /to\nA /to/low5\n";
    same(&lab, &["diff", "m"], lines);
    kill_server(&lab);
    drop(mounted);
    // No name is there any more: only the work directory knows.
    same(&lab, &args, "D /from\nD /low\nA /to\nA /to/low5\n");
    same(&lab, &with, lines);

    // A clean end leaves all names in the upper.
    drop(lab.mount(&lab.options()));
    until("the server has ended", || lab.path("u/e/f/low4").exists());
    until("it lets go of the upper", || fs::File::open(lab.path("u")).unwrap().try_lock().is_ok());
    same(&lab, &args, lines);
    lab.plyfs(&["diff", "--upper", "u", "--lower", "a:b", "--workdir", "a"]).refused(1, "workdir a: ", &["index", "give the directory"]);
}

/// `u` over `a` and `b` as they are after changes whose marks are needed to see them.
fn change_by_marks(lab: &Lab, options: &str) {
    let _mounted = lab.mount(options);
    fs::write(lab.path("m/d/g"), "").unwrap();
    fs::remove_dir_all(lab.path("m/d")).unwrap();
    fs::create_dir(lab.path("m/d")).unwrap();
}

#[test]
fn layers_whose_marks_cannot_be_read_are_not_compared() {
    need_mounts!();
    let lab = Lab::layers();
    change_by_marks(&lab, &lab.options());
    let args = ["diff", "--upper", "u", "--lower", "a:b"];
    assert_eq!(lab.plyfs(&args).ok().text(), "C /d\nD /d/f\n");
    let program = lab.path("plyfs");
    fs::copy(PLYFS, &program).unwrap();
    let begin = "diff u: the kernel shows trusted.* attributes, ";
    finish(lab.command(&program).args(args).uid(65534).gid(65534)).refused(1, begin, &["; run it as root"]);
    // Root of a user namespace is none.
    if Command::new("unshare").args(["-U", "-r", "true"]).status().is_ok_and(|status| status.success()) {
        finish(lab.command("unshare").args(["-U", "-r"]).arg(&program).args(args)).refused(1, begin, &["; run it as root"]);
    }
}

#[test]
fn layers_that_are_not_mounted_are_compared_in_their_dialect() {
    need_mounts!();
    for dialect in ["userxattr", "whiteout=aufs", "userxattr,whiteout=aufs"] {
        let lab = Lab::layers();
        fs::create_dir_all(lab.path("b/e")).unwrap();
        fs::write(lab.path("b/e/hidden"), "").unwrap();
        if dialect.contains("aufs") {
            fs::create_dir(lab.path("a/e")).unwrap();
            fs::write(lab.path("a/e/.wh..wh..opq"), "").unwrap();
        }
        let options = format!("{dialect},{}", lab.options());
        let mounted = lab.mount(&options);
        fs::remove_dir_all(lab.path("m/d")).unwrap();
        fs::create_dir(lab.path("m/d")).unwrap();
        fs::remove_dir_all(lab.path("m/e")).unwrap();
        fs::create_dir(lab.path("m/e")).unwrap();
        fs::write(lab.path("m/e/new"), "").unwrap();
        let lines = lab.plyfs(&["diff", "m"]).ok().text();
        assert!(lines.contains("D /d/f\n") && lines.contains("A /e/new\n"), "{lines}");
        drop(mounted);
        let args = ["diff", "--upper", "u", "--lower", "a:b", "-o"];
        assert_eq!(lab.plyfs(&[&args[..], &[dialect]].concat()).ok().text(), lines, "{dialect}");
        let each: Vec<&str> = dialect.split(',').flat_map(|option| ["-o", option]).collect();
        assert_eq!(lab.plyfs(&[&args[..5], &each].concat()).ok().text(), lines, "{dialect}");
    }
}

#[test]
fn options_that_are_no_dialect_are_refused_by_name() {
    let lab = Lab::layers();
    for (option, parts) in [
        ("lowerdir=a", "say --upper, --lower and --workdir"),
        ("upperdir=u", "say --upper, --lower and --workdir"),
        ("userxattr,ro", "leave it out"),
        ("xattr_permissions=2", "leave it out"),
        ("lenient", "leave it out"),
        ("@file", "leave it out"),
        ("nonsense", "unknown; "),
        ("whiteout=docker", "the value must be auto, overlay or aufs; "),
        ("userxattr=1", "it takes no value; "),
    ] {
        let done = lab.plyfs(&["diff", "--upper", "u", "--lower", "a:b", "-o", option]);
        let name = option.rsplit(',').next().unwrap().split('=').next().unwrap();
        done.refused(1, &format!("option {name}"), &[parts]);
    }
    lab.plyfs(&["diff", "-o", "userxattr", "m"]).refused(1, "diff: ", &["cannot be used with", "-o"]);
    lab.plyfs(&["diff", "--workdir", "w", "m"]).refused(1, "diff: ", &["cannot be used with", "--workdir"]);
}
