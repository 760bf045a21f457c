//! `plyfs try` of an ordinary user, with his own id alone and with subordinate ones.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use crate::apart::apart;
use crate::garbage::Garbage;
use crate::lab::{Done, Lab, finish, need_mounts};
use crate::user::{Ids, USER, user};

const ALL: [Ids; 2] = [Ids::Single, Ids::Whole];

/// What it said besides notes on the machine's mounts.
fn said(done: &Done) -> Vec<&str> {
    let note = |line: &&str| !line.starts_with("plyfs: try: changes cannot be tried in ") && !line.contains(" have files in common; ");
    done.err.lines().filter(note).collect()
}

/// A lab with files of root, of the user, and a root-owned file in the user's home.
fn machine() -> Lab {
    let lab = Lab::layers();
    for (file, mode) in [("secret", 0o600), ("public", 0o644)] {
        fs::write(lab.path(file), file).unwrap();
        fs::set_permissions(lab.path(file), fs::Permissions::from_mode(mode)).unwrap();
    }
    // The first one makes the home.
    drop(lab.as_user(Ids::Single, ""));
    fs::write(lab.path("home/own"), "own").unwrap();
    std::os::unix::fs::chown(lab.path("home/own"), Some(USER), Some(USER)).unwrap();
    fs::write(lab.path("home/roots"), "roots").unwrap();
    lab
}

#[test]
fn an_ordinary_user_tries_a_command() {
    need_mounts!();
    for ids in ALL {
        let lab = machine();
        let before = lab.snapshot();
        let script = r#"
            "$PLYFS" try --keep one -- sh -c 'id -u; grep CapEff /proc/self/status; cat ../public; echo changed > own; mkdir new; echo x > new/f; ln new/f new/g; mkfifo new/p
                cat ../secret || echo unreadable; echo x > ../public || echo unwritable; mkdir ../no || echo closed; chmod 777 .. || echo not his; stat -c %a,%u . ../public | head -1; exit 7'
            echo "code $?"; cat own; "$PLYFS" try list | wc -l; "$PLYFS" try diff one; "$PLYFS" try discard one; "$PLYFS" try list | wc -l"#;
        let done = user(&lab, ids, script);
        let text = done.text().replace(&lab.text(""), "LAB/");
        let shown = "C LAB/home\nA LAB/home/new\nA LAB/home/new/f\nA LAB/home/new/g\nA LAB/home/new/p\nC LAB/home/own\n";
        let (begin, rest) = text.split_once("code 7\n").unwrap_or_else(|| panic!("{done:?}"));
        assert!(
            begin.starts_with(&format!("{USER}\nCapEff:\t0000000000000000\npublicunreadable\nunwritable\nclosed\nnot his\n755,{USER}\n")),
            "{done:?}"
        );
        assert!(begin.ends_with(shown), "{done:?}");
        assert!(rest.starts_with("own2\n") && rest.contains(shown) && rest.ends_with("1\n"), "{done:?}");
        assert_eq!(said(&done).iter().filter(|line| line.starts_with("plyfs: ")).count(), 1, "it says that it is kept: {done:?}");
        let state = lab.path("home/.local/share/plyfs");
        assert_eq!((fs::read_dir(state.join("try")).unwrap().count(), fs::metadata(&state).unwrap().uid()), (0, USER));
        fs::remove_dir_all(lab.path("home/.local")).unwrap();
        let (mut before, mut after) = (before, lab.snapshot());
        for seen in [&mut before, &mut after] {
            seen.remove(&lab.path("home"));
            seen.remove(&lab.path(""));
            seen.remove(&lab.path("own"));
        }
        assert_eq!(after, before, "{ids:?}");
    }
}

#[test]
fn a_file_of_root_in_a_users_directory_is_removed_and_moved_in_a_try() {
    need_mounts!();
    let lab = machine();
    let script = r#""$PLYFS" try --discard -- sh -c 'mv roots moved && cat moved && stat -c %u moved; echo x 2>/dev/null > moved || echo unwritable; chmod 666 moved 2>/dev/null || echo not his; rm -f moved && ls'"#;
    let done = user(&lab, Ids::Whole, script);
    let text = done.text();
    assert!(text.starts_with("roots65534\nunwritable\nnot his\nown\n"), "{done:?}");
    assert_eq!(fs::read_to_string(lab.path("home/roots")).unwrap(), "roots");
}

#[test]
fn a_user_who_may_not_open_the_device_is_told_so() {
    need_mounts!();
    let lab = Lab::layers();
    for (code, command) in [(125, "try --discard -- true"), (125, "run --rootfs ../a -- true")] {
        let done = finish(lab.as_user(Ids::Whole, &format!("\"$PLYFS\" {command}")).env("FUSE_MODE", "600"));
        done.refused(code, "/dev/fuse: Permission denied", &["; "]);
    }
}

#[test]
fn an_ordinary_user_applies_what_he_tried_and_no_more_than_he_may() {
    need_mounts!();
    for ids in ALL {
        let lab = machine();
        let script = r#"
            mkdir d; echo one > d/one; echo two > d/two; echo three > d/three; echo old > replaced; chmod 500 d
            "$PLYFS" try --apply -- sh -c 'chmod 700 d; echo more >> d/one; rm d/two; echo x >> d/three; mkdir -p new/a; echo n > new/a/f; ln new/a/f new/g; chmod 555 new/a new; mv replaced moved
                ln -s t new.link; mkfifo pipe; chmod 4711 own; setfattr -n user.x -v y own'
            echo "code $?"; stat -c '%n %a %u %h %s' d d/* new new/a new/a/f new/g moved own pipe new.link; cat d/one d/three; getfattr --only-values -n user.x own; echo; ls -A; "$PLYFS" try list | wc -l
            "$PLYFS" try --keep two -- sh -c 'echo y > d/one; mv roots taken; rm -f roots'; "$PLYFS" try apply two; echo "code $?"; cat d/one; ls roots"#;
        let done = user(&lab, ids, script);
        let text = done.text();
        let (_, rest) = text.split_once("code 0\n").unwrap_or_else(|| panic!("{ids:?}: {done:?}"));
        let u = USER;
        let shown = format!(
            "d 700 {u} 2 4096\nd/one 644 {u} 1 9\nd/three 644 {u} 1 8\nnew 555 {u} 3 4096\nnew/a 555 {u} 2 4096\nnew/a/f 644 {u} 2 2\nnew/g 644 {u} 2 2\n\
             moved 644 {u} 1 4\nown 4711 {u} 1 3\npipe 644 {u} 1 0\nnew.link 777 {u} 1 1\none\nmore\nthree\nx\ny\n.local\nd\nmoved\nnew\nnew.link\nown\npipe\nroots\n1\n"
        );
        let (first, last) = rest.split_at(rest.len().min(shown.len()));
        assert_eq!(first, shown, "{ids:?}: {done:?}");
        match ids {
            // What belongs to somebody else cannot even be moved in the view.
            Ids::Single => assert!(last.ends_with("code 0\ny\nroots\n"), "{ids:?}: {done:?}"),
            // It cannot be given to him again: nothing happens at all.
            Ids::Whole => {
                assert!(last.ends_with("one\nmore\nroots\n") && !last.contains("code 0"), "{ids:?}: {done:?}");
                assert!(done.err.contains("nothing was changed"), "{ids:?}: {done:?}");
            }
        }
        fs::remove_dir_all(lab.path("home")).unwrap();
    }
}

#[test]
fn a_try_waits_for_no_mount_that_does_not_answer_or_is_broken() {
    need_mounts!();
    apart(|| {
        let lab = machine();
        fs::create_dir_all(lab.path("home/dir/mount")).unwrap();
        let script = r#""$PLYFS" try --keep one -- sh -c 'ls -A dir; ls -A; cat own; echo changed > own; echo new > dir/new; ls dir'
            echo "code $?"; "$PLYFS" try diff one; "$PLYFS" try apply one; echo "code $?"; cat own dir/new; rm -r dir/new; printf own > own"#;
        std::os::unix::fs::chown(lab.path("home/dir"), Some(USER), Some(USER)).unwrap();
        for (mode, broken, ids) in [
            ("silent", false, Ids::Single),
            ("silent", false, Ids::Whole),
            ("alone", false, Ids::Whole),
            ("silent", true, Ids::Single),
            ("none", true, Ids::Whole),
        ] {
            let mut garbage = Garbage::start(&lab.path("home/dir/mount"), mode);
            if broken {
                garbage.leave();
            }
            let done = user(&lab, ids, script);
            drop(garbage);
            let at = lab.text("home");
            let changes = format!("C {at}\nC {at}/dir\nA {at}/dir/new\nC {at}/own\n");
            let text = done.text();
            let seen = text.strip_prefix("mount\n.local\ndir\nown\nroots\nownmount\nnew\n");
            let seen = seen.unwrap_or_else(|| panic!("{mode} {broken} {ids:?}: {done:?}"));
            assert!(seen.ends_with("code 0\nchanged\nnew\n") && seen.matches(&changes).count() == 2, "{mode} {broken} {ids:?}: {done:?}");
            assert!(done.err.contains(&format!("{at}/dir/mount (fuse.garbage, read-only)")), "{mode} {broken} {ids:?}: {done:?}");
        }
    });
}
