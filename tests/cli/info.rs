//! `plyfs info`.

use std::fs;

use crate::lab::{Lab, PLYFS, finish, need_mounts};

/// Each line is a finding, and each remedy follows one.
fn check(text: &str) {
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines.len() <= 40, "one screen: {text}");
    for what in
        ["plyfs ", "kernel ", "user ", "/dev/fuse ", "user namespaces ", "subuid, subgid ", "cgroups ", "user network ", "state directory "]
    {
        assert!(lines.iter().any(|line| line.starts_with(what)), "{what}: {text}");
    }
    assert!(!lines[0].trim_start().starts_with("->"), "{text}");
}

#[test]
fn it_shows_one_screen_and_changes_nothing() {
    let lab = Lab::new();
    let before = lab.snapshot();
    let text = lab.plyfs(&["info"]).ok().text();
    check(&text);
    assert!(text.contains(&format!("{} (", lab.text("state"))) && text.contains("not made yet"), "{text}");
    assert_eq!(lab.snapshot(), before, "something changed");

    fs::create_dir(lab.path("state")).unwrap();
    let text = lab.plyfs(&["info"]).ok().text();
    assert!(!text.contains("not made yet"), "{text}");
    assert_eq!(fs::read_dir(lab.path("state")).unwrap().count(), 0);
}

#[test]
fn it_names_the_dialect_that_a_place_takes() {
    need_mounts!();
    let lab = Lab::new();
    fs::create_dir(lab.path("place")).unwrap();
    let said = |text: &str, dialect: &str| {
        text.lines().any(|line| line.starts_with("an upper ") && line.contains(&format!("the dialect '{dialect}'")))
    };
    let text = lab.plyfs(&["info", "place"]).ok().text();
    assert!(said(&text, "trusted"), "{text}");
    // Where the kernel shows no trusted attributes, and may make no whiteouts.
    let user = ["--user", "--map-root-user", PLYFS, "info", "place"];
    let text = finish(lab.command("unshare").args(user)).ok().text();
    assert!(said(&text, "user") || said(&text, "aufs"), "{text}");
    assert_eq!(fs::read_dir(lab.path("place")).unwrap().count(), 0, "nothing is left");
    lab.plyfs(&["info", "none"]).refused(1, "info none: ", &["give a directory"]);
}

#[test]
fn every_lack_has_its_remedy() {
    need_mounts!();
    let lab = Lab::new();
    let bare = "mount -t tmpfs none /dev && exec \"$0\" info";
    let text = finish(lab.command("unshare").args(["-m", "sh", "-c", bare, PLYFS])).ok().text();
    check(&text);
    let mut lines = text.lines();
    assert!(lines.any(|line| line.starts_with("/dev/fuse ") && line.contains("there is none")), "{text}");
    assert!(lines.next().unwrap().contains("-> modprobe fuse"), "{text}");

    let binary = lab.path("plyfs");
    fs::copy(PLYFS, &binary).unwrap();
    let ordinary = ["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"];
    let text = finish(lab.command("setpriv").args(ordinary).arg(&binary).arg("info")).ok().text();
    check(&text);
    assert!(text.lines().any(|line| line.starts_with("user ") && line.ends_with("uid 65534")), "{text}");
}
