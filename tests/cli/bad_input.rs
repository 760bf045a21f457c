//! What cannot be done is refused by one line that says what, where and the remedy, with the right exit code, and nothing changes.

use std::fs;
use std::os::unix::fs::symlink;

use crate::lab::{Lab, Mounted, PLYFS, finish, is_mountpoint, need_mounts};

/// Mounts with these options on `place` and sees that it is refused and that nothing has changed.
#[track_caller]
fn mount_refused(lab: &Lab, options: &str, place: &str, begin: &str, parts: &[&str]) {
    let before = lab.snapshot();
    lab.plyfs(&["mount", "-o", options, place]).refused(1, begin, parts);
    assert_eq!(lab.snapshot(), before, "something changed");
    assert!(!is_mountpoint(&lab.path(place)));
}

/// The same of `run` and `try`, whose exit code is 125.
#[track_caller]
fn launch_refused(lab: &Lab, args: &[&str], begin: &str, parts: &[&str]) {
    let before = lab.snapshot();
    lab.plyfs(args).refused(125, begin, parts);
    assert_eq!(lab.snapshot(), before, "something changed");
}

#[test]
fn missing_layers_are_refused() {
    need_mounts!();
    let lab = Lab::layers();
    let none = lab.text("none");
    for (options, what) in [
        ("lowerdir=a:none,upperdir=u,workdir=w", "lowerdir"),
        ("lowerdir=none:a,upperdir=u,workdir=w", "lowerdir"),
        ("lowerdir=a,upperdir=none,workdir=w", "upperdir"),
        ("lowerdir=a,upperdir=u,workdir=none", "workdir"),
    ] {
        mount_refused(&lab, options, "m", &format!("{what} {none}: "), &["No such file", "; create it"]);
    }
    launch_refused(&lab, &["run", "--rootfs", "a:none", "--", "true"], &format!("rootfs {none}: "), &["No such file", "; create it"]);
}

#[test]
fn file_typed_layers_are_refused() {
    need_mounts!();
    let lab = Lab::layers();
    let file = lab.text("file");
    fs::write(&file, "").unwrap();
    for (options, what) in [
        ("lowerdir=a:file,upperdir=u,workdir=w", "lowerdir"),
        ("lowerdir=a,upperdir=file,workdir=w", "upperdir"),
        ("lowerdir=a,upperdir=u,workdir=file", "workdir"),
    ] {
        mount_refused(&lab, options, "m", &format!("{what} {file}: "), &["Not a directory", "; "]);
    }
    launch_refused(&lab, &["run", "--rootfs", "file", "--", "true"], &format!("rootfs {file}: "), &["Not a directory", "; "]);
    launch_refused(&lab, &["run", "--rootfs", "a", "--upper", "file", "--", "true"], "", &[&file, "Not a directory", "; "]);
}

#[test]
fn an_upper_on_another_filesystem_than_workdir_is_refused() {
    need_mounts!();
    let lab = Lab::layers();
    let _other = lab.tmpfs("other");
    fs::create_dir(lab.path("other/w")).unwrap();
    let options = format!("lowerdir={},upperdir={},workdir={}", lab.text("a"), lab.text("u"), lab.text("other/w"));
    let begin = format!("upperdir {} and workdir {}", lab.text("u"), lab.text("other/w"));
    mount_refused(&lab, &options, "m", &begin, &["different filesystems", "; put both below one mount"]);
    let args = ["run", "--rootfs", "a", "--upper", "u", "--work", "other/w", "--", "true"];
    launch_refused(&lab, &args, &begin, &["different filesystems", "; put both below one mount"]);
    assert_eq!(fs::read_dir(lab.path("other/w")).unwrap().count(), 0);
}

#[test]
fn an_upper_in_use_is_refused() {
    need_mounts!();
    let lab = Lab::layers();
    let _mounted = lab.mount(&lab.options());
    fs::create_dir_all(lab.path("m2")).unwrap();
    fs::create_dir_all(lab.path("w2")).unwrap();
    let other = format!("lowerdir={},upperdir={},workdir={}", lab.text("a"), lab.text("u"), lab.text("w2"));
    for options in [&lab.options(), &other] {
        mount_refused(&lab, options, "m2", "upperdir ", &[&lab.text("u"), "in use", "; unmount"]);
    }
    let other = format!("lowerdir={},upperdir={},workdir={}", lab.text("a"), lab.text("w2"), lab.text("w"));
    mount_refused(&lab, &other, "m2", "workdir ", &[&lab.text("w"), "in use", "; unmount"]);
    launch_refused(&lab, &["run", "--rootfs", "a", "--upper", "u", "--", "true"], "upperdir ", &[&lab.text("u"), "in use", "; unmount"]);
    assert!(fs::read(lab.path("m/top")).unwrap() == b"a", "the mount that is there goes on");
}

#[test]
fn an_upper_inside_or_above_one_in_use_is_refused() {
    need_mounts!();
    let lab = Lab::layers();
    for dir in ["up/u/in", "up/w/in", "w2", "m2", "side/u", "side/w"] {
        fs::create_dir_all(lab.path(dir)).unwrap();
    }
    let options = |lower: &str, upper: &str, work: &str| {
        format!("lowerdir={},upperdir={},workdir={}", lab.text(lower), lab.text(upper), lab.text(work))
    };
    let _mounted = lab.mount(&options("a", "up/u", "up/w"));
    symlink(lab.path("up/u"), lab.path("link")).unwrap();
    for (upper, work, what) in [
        ("up/u/in", "w2", "up/u/in"),
        ("up/w/in", "w2", "up/w/in"),
        ("up", "w2", "up"),
        ("w2", "up/u/in", "up/u/in"),
        ("link/in", "w2", "link/in"),
    ] {
        let refused = lab.plyfs(&["mount", "-o", &options("b", upper, work), "m2"]);
        assert!(refused.err.contains(&format!("dir {}: ", lab.text(what))), "{refused:?}");
        refused.refused(1, "", &["which the union mounted at ", &lab.text("m"), "; give a directory beside it"]);
    }
    lab.plyfs(&["mount", "-o", &options("b", "side/u", "side/w"), "m2"]).ok();
    let _other = Mounted(lab.path("m2"));
}

#[test]
fn a_source_that_the_kernel_does_not_take_is_refused_by_its_length() {
    need_mounts!();
    let lab = Lab::layers();
    let name = "n".repeat(5000);
    let parts = ["it has 5000 bytes, and the kernel takes 255; give a shorter name"];
    mount_refused(&lab, &format!("lowerdir=a,fsname={name}"), "m", "option fsname: ", &parts);
    lab.plyfs(&["mount", "-o", "lowerdir=a", &name, "m"]).refused(1, "option fsname: ", &parts);
    let _mounted = lab.mount(&format!("lowerdir=a,fsname={}", &name[..255]));
}

#[test]
fn a_mountpoint_that_will_not_do_is_refused() {
    need_mounts!();
    let lab = Lab::layers();
    fs::write(lab.path("file"), "").unwrap();
    fs::create_dir(lab.path("u/in")).unwrap();
    let options = lab.options();
    mount_refused(&lab, &options, "none", "mountpoint none: ", &["No such file", "; create it"]);
    mount_refused(&lab, &options, "file", "mountpoint file: ", &["not a directory", "; "]);
    mount_refused(&lab, &options, "u/in", &format!("mountpoint {}: ", lab.text("u/in")), &["inside upperdir", "; mount it outside"]);

    let _mounted = lab.mount(&format!("lowerdir={}", lab.text("b")));
    let before = lab.snapshot();
    symlink(lab.path("m"), lab.path("link")).unwrap();
    for place in ["m", "link"] {
        let done = lab.plyfs(&["mount", "-o", &options, place]);
        done.refused(1, &format!("mountpoint {place}: in use"), &["; unmount it with 'plyfs umount ", &lab.text("m")]);
    }
    fs::remove_file(lab.path("link")).unwrap();
    assert_eq!(lab.snapshot().get(&lab.path("w")), before.get(&lab.path("w")));
    assert!(fs::read(lab.path("m/top")).unwrap() == b"b", "the mount that is there goes on");
}

#[test]
fn options_that_are_unknown_contradictory_or_not_supported_are_refused() {
    let lab = Lab::layers();
    for (options, begin) in [
        ("lowerdir=a,nonsense", "option nonsense: unknown; "),
        ("lowerdir=a,squash_to_uid=one", "option squash_to_uid=one: "),
        ("lowerdir=a,plugins=one", "option plugins=one: "),
        ("lowerdir=a,metacopy=maybe", "option metacopy=maybe: "),
        ("lowerdir=a,xattr_permissions=2,dev", "option xattr_permissions: not with dev or suid: "),
        ("lowerdir=a,whiteout=docker", "option whiteout=docker: the value must be auto, overlay or aufs; "),
        ("lowerdir=a,userxattr,metacopy=on", "option metacopy: not with userxattr, "),
        ("lowerdir=a:::b", "option lowerdir: three colons follow each other; "),
        ("lowerdir=a,upperdir=u", "option upperdir: given without workdir; "),
        ("lowerdir=a,workdir=w", "option workdir: given without upperdir; "),
        ("lowerdir=a:a", "option lowerdir: a is named twice; "),
        ("lowerdir=a,upperdir=u,workdir=u", "option workdir: u is named twice; "),
        ("upperdir=u,workdir=w", "option lowerdir: not given; "),
        ("lowerdir=a,lowerdir=b", "option lowerdir: given more than once; "),
    ] {
        mount_refused(&lab, options, "m", begin, &[]);
    }
    lab.plyfs(&["mount", "m"]).refused(1, "option lowerdir: not given; ", &[]);
}

#[test]
fn layers_that_overlap_are_refused() {
    need_mounts!();
    let lab = Lab::layers();
    symlink("a", lab.path("same")).unwrap();
    for (options, inner) in [
        ("lowerdir=a:same", "same"),
        ("lowerdir=b/d:b", "b/d"),
        ("lowerdir=b,upperdir=b/d,workdir=w", "b/d"),
        ("lowerdir=a,upperdir=u,workdir=a", "a"),
    ] {
        let begin = if options.ends_with("workdir=a") { "option workdir: " } else { "" };
        mount_refused(&lab, options, "m", begin, &[inner, "; layers"]);
    }
    launch_refused(&lab, &["run", "--rootfs", "b:b/d", "--", "true"], "", &["b/d", "; layers must not overlap"]);
    launch_refused(&lab, &["run", "--rootfs", "b", "--upper", "b/new", "--", "true"], "upper ", &["b/new", "; layers must not overlap"]);
    launch_refused(&lab, &["--root", "b/state", "run", "--rootfs", "b", "--", "true"], "rootfs ", &["state directory", "; take another"]);
}

#[test]
fn layers_that_overlap_behind_bind_mounts_are_refused() {
    need_mounts!();
    let lab = Lab::layers();
    let bound = lab.bind("b/d", "bound");
    let whole = lab.bind("b", "whole");
    let text = |name: &str| lab.text(name);
    for (options, inner, outer) in [
        ("lowerdir=b:bound", "lowerdir bound", "lowerdir b "),
        ("lowerdir=bound:b", "lowerdir bound", "lowerdir b "),
        ("lowerdir=whole:bound", "lowerdir bound", "lowerdir whole "),
        ("lowerdir=whole:b", "lowerdir b", "lowerdir whole "),
        ("lowerdir=a,upperdir=bound,workdir=b", "", ""),
        ("lowerdir=b,upperdir=bound,workdir=w", "", ""),
    ] {
        let full = |part: &str| part.split_once(' ').map_or_else(String::new, |(what, name)| format!("{what} {}", text(name.trim_end())));
        mount_refused(&lab, options, "m", &full(inner), &[&full(outer), "; "]);
    }
    // Beside each other they may stand, whatever their names.
    fs::create_dir_all(lab.path("b/dd")).unwrap();
    let beside = lab.bind("b/dd", "beside");
    drop(lab.mount("lowerdir=bound:beside"));
    drop((bound, whole, beside));
}

#[test]
fn options_in_a_file_that_will_not_do_are_refused() {
    need_mounts!();
    let lab = Lab::layers();
    let file = lab.text("options");
    mount_refused(&lab, &format!("@{file}"), "m", &format!("option @{file}: No such file"), &["; correct the path"]);
    mount_refused(&lab, "@/dev/zero", "m", "option @/dev/zero: it has more than 8 MiB", &["; correct the path"]);
    for (text, begin, remedy) in [
        ("# nothing\n", "option lowerdir: not given", "; name at least one"),
        ("lowerdir=a\nnonsense\n", "option nonsense: unknown", "; see "),
        ("lowerdir=a\n@other\n", "option @other: unknown", "; see "),
        ("lowerdir=a\nupperdir=u\n", "option upperdir: given without workdir", "; add "),
    ] {
        fs::write(&file, text).unwrap();
        mount_refused(&lab, &format!("@{file}"), "m", begin, &[remedy]);
    }
}

#[test]
fn a_machine_without_dev_fuse_is_told_so() {
    need_mounts!();
    let lab = Lab::layers();
    let before = lab.snapshot();
    let bare = |set_up: &str, args: &[&str]| {
        let script = format!("mount -t tmpfs none /dev && {{ {set_up}; }} && exec \"$0\" \"$@\"");
        finish(lab.command("unshare").args(["-m", "sh", "-c", &script, PLYFS]).args(args))
    };
    let options = lab.options();
    for (code, args) in [
        (1, &["mount", "-o", options.as_str(), "m"][..]),
        (125, &["try", "--discard", "--", "true"]),
        (125, &["run", "--rootfs", "a", "--", "true"]),
    ] {
        bare("true", args).refused(code, "/dev/fuse: there is none; ", &["modprobe fuse"]);
        bare(": > /dev/fuse", args).refused(code, "/dev/fuse: it is not the FUSE device", &["; "]);
    }
    assert_eq!(lab.snapshot(), before, "something changed");
}

#[test]
fn a_user_without_the_right_is_told_so() {
    need_mounts!();
    let lab = Lab::layers();
    // Where the build directory cannot be reached by others.
    let binary = lab.path("plyfs");
    fs::copy(PLYFS, &binary).unwrap();
    let before = lab.snapshot();
    let options = lab.options();
    for (code, args) in [
        (1, &["mount", "-o", options.as_str(), "m"][..]),
        (125, &["try", "--discard", "--", "true"]),
        (125, &["run", "--rootfs", "a", "--", "true"]),
    ] {
        let verb = args[0];
        let limited = ["--bounding-set", "-sys_admin", "--inh-caps", "-all", "--"];
        let done = finish(lab.command("setpriv").args(limited).arg(&binary).args(args));
        done.refused(code, verb, &["no permission to mount; ", "CAP_SYS_ADMIN"]);
    }
    assert_eq!(lab.snapshot(), before, "something changed");
}

#[test]
fn what_comes_later_is_refused_by_name() {
    let lab = Lab::layers();
    lab.plyfs(&["try", "apply", "name"]).refused(125, "try name: no such try; ", &["plyfs try list"]);
    lab.plyfs(&["diff", "name"]).refused(1, "diff name: ", &["containers and images come with a later version; "]);
    lab.plyfs(&["diff", "--type", "container", "name"]).refused(1, "diff name: containers come with a later version; ", &[]);
    lab.plyfs(&["diff", "--type", "image", "a/b"]).refused(1, "diff a/b: images come with a later version; ", &[]);
}

#[test]
fn usage_errors_are_one_line_too() {
    let lab = Lab::new();
    for (code, args, begin) in [
        (1, &[][..], "no verb is given; see 'plyfs --help'"),
        (1, &["nonsense"], "unrecognized subcommand 'nonsense'; see 'plyfs --help'"),
        (1, &["mount"], "mount: "),
        (1, &["mount", "--nonsense"], "mount: unexpected argument '--nonsense' found; "),
        (1, &["mount", "a", "b", "c"], "mount: "),
        (1, &["umount"], "umount: "),
        (1, &["diff"], "diff: "),
        (1, &["diff", "--upper", "u"], "diff: "),
        (1, &["diff", "m", "--upper", "u", "--lower", "l"], "diff: "),
        (1, &["info", "a", "b"], "info: "),
        (16, &["fsck"], "fsck: "),
        (125, &["try"], "try: "),
        (125, &["try", "--discard", "--keep", "nn", "true"], "try: "),
        (125, &["try", "--discard", "list"], "try: "),
        (125, &["run"], "run: "),
        (125, &["run", "--rootfs"], "run: "),
    ] {
        lab.plyfs(args).refused(code, begin, &[]);
    }
}

#[test]
fn names_with_control_characters_do_not_break_the_line() {
    need_mounts!();
    let lab = Lab::layers();
    let done = lab.plyfs(&["mount", "-o", "lowerdir=no\nsuch\x1b[2J", "m"]);
    done.refused(1, "lowerdir ", &["no\\nsuch\\u{1b}[2J: "]);
}

#[test]
fn diff_and_umount_of_something_else_are_refused() {
    need_mounts!();
    let lab = Lab::layers();
    let _other = lab.tmpfs("other");
    fs::create_dir(lab.path("other/in")).unwrap();
    lab.plyfs(&["umount", "other"]).refused(1, "umount other: it is no union of plyfs but tmpfs (plyfs-test); use umount(8)", &[]);
    lab.plyfs(&["umount", "m"]).refused(1, "umount m: nothing is mounted there; ", &[]);
    lab.plyfs(&["umount", "none"]).refused(1, "umount none: No such file", &[]);
    assert!(is_mountpoint(&lab.path("other")));
    lab.plyfs(&["diff", "./other"]).refused(1, "diff ./other: no union of plyfs is mounted there; ", &["--upper and --lower"]);
    lab.plyfs(&["diff", "./none"]).refused(1, "diff ./none: No such file", &[]);
    lab.plyfs(&["diff", "--upper", "none", "--lower", "a"]).refused(1, "upperdir ", &["none: No such file"]);
    lab.plyfs(&["diff", "--upper", "u", "--lower", "a:none"]).refused(1, "lowerdir ", &["none: No such file"]);
    lab.plyfs(&["diff", "--upper", "b/d", "--lower", "b"]).refused(1, "", &["b/d", "layers must not overlap"]);

    let mounted = lab.mount(&lab.options());
    lab.plyfs(&["diff", "m/d"]).refused(1, "diff m/d: ", &["; its union is mounted at ", &lab.text("m")]);
    lab.plyfs(&["umount", "m/d"]).refused(1, "umount m/d: ", &["; its union is mounted at ", &lab.text("m")]);
    let Mounted(path) = &mounted;
    assert!(is_mountpoint(path));
}
