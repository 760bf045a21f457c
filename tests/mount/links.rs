//! Hard links of lower files: one file through all names, counted right, whatever happens to the names, the mount and the layers.

use std::fs::{self, File, Metadata};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use plyfs_sys::Errno;

use crate::lab::{Lab, append, errno, lab, names, noise, sh, tree};

/// Lower names of one file, and a file beside.
fn linked(lab: &Lab, names: &[&str]) {
    let (first, further) = names.split_first().unwrap();
    lab.write_lower(first, "lower\n");
    lab.write_lower("other", "other\n");
    for name in further {
        fs::create_dir_all(lab.lower(name).parent().unwrap()).unwrap();
        fs::hard_link(lab.lower(first), lab.lower(name)).unwrap();
    }
}

fn stat(lab: &Lab, name: &str) -> Metadata {
    fs::symlink_metadata(lab.mnt(name)).unwrap()
}

#[track_caller]
fn are_one(lab: &Lab, names: &[&str], text: &str, links: u64) {
    let first = stat(lab, names[0]).ino();
    for name in names {
        let meta = stat(lab, name);
        assert_eq!((meta.ino(), meta.nlink()), (first, links), "{name}");
        assert_eq!(fs::read_to_string(lab.mnt(name)).unwrap(), text, "{name}");
    }
}

fn index(lab: &Lab) -> Vec<String> {
    names(&lab.work.join("index"))
}

/// Mounts anew after the server was killed.
fn killed(lab: &mut Lab) {
    lab.kill();
    lab.mount();
}

#[test]
fn names_that_go_are_counted_after_a_remount_and_after_a_kill() {
    let mut lab = lab!();
    linked(&lab, &["a", "b", "d/c", "d/e"]);
    lab.mount();
    fs::remove_file(lab.mnt("a")).unwrap();
    are_one(&lab, &["b", "d/c", "d/e"], "lower\n", 3);
    lab.remount();
    are_one(&lab, &["d/e", "b", "d/c"], "lower\n", 3);
    fs::rename(lab.mnt("other"), lab.mnt("b")).unwrap();
    are_one(&lab, &["d/e", "d/c"], "lower\n", 2);
    killed(&mut lab);
    are_one(&lab, &["d/c", "d/e"], "lower\n", 2);
    fs::rename(lab.mnt("d/c"), lab.mnt("c")).unwrap();
    fs::remove_file(lab.mnt("d/e")).unwrap();
    killed(&mut lab);
    are_one(&lab, &["c"], "lower\n", 1);
    assert_eq!(index(&lab).len(), 1);
    fs::remove_file(lab.mnt("c")).unwrap();
    assert_eq!(index(&lab), Vec::<String>::new());
    assert_eq!((names(&lab.mnt("")), names(&lab.mnt("d"))), (vec!["b".to_owned(), "d".to_owned()], vec![]));
    lab.unmount();
}

#[test]
fn an_index_entry_goes_with_its_last_name_whenever_that_is() {
    for kill in [false, true] {
        let mut lab = lab!();
        linked(&lab, &["a", "b", "c"]);
        let again = |lab: &mut Lab| if kill { killed(lab) } else { lab.remount() };
        lab.mount();
        append(&lab.mnt("b"), "more\n");
        again(&mut lab);
        for name in ["c", "b"] {
            fs::remove_file(lab.mnt(name)).unwrap();
            again(&mut lab);
        }
        are_one(&lab, &["a"], "lower\nmore\n", 1);
        // Held, so that the entry goes before the file.
        let held = File::open(lab.mnt("a")).unwrap();
        fs::remove_file(lab.mnt("a")).unwrap();
        assert_eq!(held.metadata().unwrap().nlink(), 0);
        assert_eq!(index(&lab), Vec::<String>::new(), "killed: {kill}");
        drop(held);
        lab.unmount();
    }
}

#[test]
fn an_index_entry_that_a_killed_server_left_without_names_goes_at_the_next_mount() {
    let mut lab = lab!();
    linked(&lab, &["a", "b"]);
    lab.mount();
    for name in ["a", "b"] {
        append(&lab.mnt(name), "more\n");
    }
    lab.unmount();
    // As a server leaves it that is killed between the last name and the entry.
    for name in ["a", "b"] {
        fs::remove_file(lab.upper(name)).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, lab.upper(name), rustix::fs::FileType::CharacterDevice, rustix::fs::Mode::empty(), 0).unwrap();
    }
    assert_eq!(index(&lab).len(), 1);
    lab.mount();
    assert_eq!((index(&lab), names(&lab.mnt(""))), (Vec::new(), vec!["other".to_owned()]));
    lab.unmount();
}

#[test]
fn a_name_goes_where_there_is_no_space_for_a_copy_that_counts_the_others() {
    let mut lab = lab!();
    let small = lab.tmpfs("small", "size=1m,mode=755");
    (lab.upper, lab.work) = (small.join("u"), small.join("w"));
    for dir in [&lab.upper, &lab.work] {
        fs::create_dir(dir).unwrap();
    }
    lab.write_lower("a", noise(7, 4 << 20));
    fs::hard_link(lab.lower("a"), lab.lower("b")).unwrap();
    fs::hard_link(lab.lower("a"), lab.lower("c")).unwrap();
    lab.write_lower("d", "d");
    lab.mount();
    let held = File::open(lab.mnt("c")).unwrap();
    fs::remove_file(lab.mnt("a")).unwrap();
    fs::rename(lab.mnt("d"), lab.mnt("b")).unwrap();
    assert_eq!((stat(&lab, "c").nlink(), held.metadata().unwrap().nlink()), (1, 1));
    drop(held);
    assert_eq!((names(&lab.mnt("")), index(&lab)), (vec!["b".to_owned(), "c".to_owned()], vec![]));
    lab.unmount();
}

/// Makes the lab's upper its topmost lower, below a new one.
fn restack(lab: &mut Lab, name: &str) {
    lab.lowers.insert(0, lab.upper.clone());
    (lab.upper, lab.work) = (lab.path(&format!("{name}.u")), lab.path(&format!("{name}.w")));
    for dir in [&lab.upper, &lab.work] {
        fs::create_dir(dir).unwrap();
    }
}

#[test]
fn an_unmounted_upper_is_a_lower_as_it_is() {
    let mut lab = lab!();
    // What is a lower at the end is written at first.
    lab.watch = false;
    linked(&lab, &["a", "d/b", "d/e/c", "deep/er/f"]);
    lab.write_lower("gone/x", "x\n");
    fs::hard_link(lab.lower("gone/x"), lab.lower("d/y")).unwrap();
    lab.mount();
    append(&lab.mnt("d/b"), "more\n");
    fs::remove_file(lab.mnt("gone/x")).unwrap();
    fs::rename(lab.mnt("deep"), lab.mnt("moved")).unwrap();
    let times = |lab: &Lab| ["d", "d/e", "moved", "moved/er", "gone"].map(|dir| (stat(lab, dir).mtime(), stat(lab, dir).mtime_nsec()));
    let (before, text, all) = (times(&lab), "lower\nmore\n", ["a", "d/b", "d/e/c", "moved/er/f"]);
    are_one(&lab, &all, text, 4);
    lab.unmount();
    restack(&mut lab, "second");
    let left = tree(&lab.lowers[0]);
    lab.mount();
    assert_eq!(times(&lab), before);
    for name in all {
        assert_eq!(
            (fs::read_to_string(lab.mnt(name)).unwrap(), stat(&lab, name).ino()),
            (text.to_owned(), stat(&lab, "a").ino()),
            "{name}"
        );
    }
    append(&lab.mnt("moved/er/f"), "again\n");
    for name in all {
        assert_eq!(fs::read_to_string(lab.mnt(name)).unwrap(), "lower\nmore\nagain\n", "{name}");
    }
    assert_eq!(fs::read_to_string(lab.mnt("d/y")).unwrap(), "x\n");
    assert!(!lab.mnt("gone/x").exists());
    lab.unmount();
    assert_eq!(tree(&lab.lowers[0]), left);
    // And without plyfs.
    restack(&mut lab, "third");
    let target = lab.mountpoint("kernel");
    let options = lab.options().into_string().unwrap();
    if crate::kernel::overlay(format!("{options},redirect_dir=on,index=on"), &target).is_ok() {
        for name in all {
            assert_eq!(fs::read_to_string(target.join(name)).unwrap(), "lower\nmore\nagain\n", "{name}");
        }
    }
}

#[test]
fn a_killed_servers_upper_is_settled_by_the_next_clean_end() {
    let mut lab = lab!();
    linked(&lab, &["a", "d/b"]);
    lab.mount();
    append(&lab.mnt("a"), "more\n");
    lab.kill();
    assert!(!lab.upper("d").exists());
    lab.mount();
    lab.unmount();
    assert_eq!(fs::metadata(lab.upper("d/b")).unwrap().ino(), fs::metadata(lab.upper("a")).unwrap().ino());
}

#[test]
fn names_of_one_file_in_several_layers_are_one_file() {
    let mut lab = lab!();
    let second = lab.path("second");
    fs::create_dir(&second).unwrap();
    linked(&lab, &["a", "b"]);
    for name in ["c", "b"] {
        fs::hard_link(lab.lower("a"), second.join(name)).unwrap();
    }
    lab.lowers.push(second);
    lab.mount();
    // The fourth name is below the second.
    are_one(&lab, &["c", "a", "b"], "lower\n", 4);
    append(&lab.mnt("c"), "more\n");
    are_one(&lab, &["a", "b", "c"], "lower\nmore\n", 4);
    killed(&mut lab);
    are_one(&lab, &["b", "c", "a"], "lower\nmore\n", 4);
    fs::remove_file(lab.mnt("b")).unwrap();
    killed(&mut lab);
    are_one(&lab, &["c", "a"], "lower\nmore\n", 3);
    // At a clean end what shows is counted.
    lab.remount();
    are_one(&lab, &["a", "c"], "lower\nmore\n", 2);
    lab.unmount();
}

#[test]
fn hard_links_of_layers_on_several_filesystems_are_told_apart() {
    let mut lab = lab!();
    let others: Vec<_> = ["one", "two"].map(|name| lab.tmpfs(name, "size=1m,mode=755")).into();
    for (dir, text) in others.iter().zip(["one\n", "two\n"]) {
        let dir = dir.join("l");
        fs::create_dir(&dir).unwrap();
        let name = text.trim();
        fs::write(dir.join(format!("{name}.a")), text).unwrap();
        fs::hard_link(dir.join(format!("{name}.a")), dir.join(format!("{name}.b"))).unwrap();
        lab.lowers.push(dir);
    }
    linked(&lab, &["a", "b"]);
    lab.mount();
    let all = [["a", "b"], ["one.a", "one.b"], ["two.a", "two.b"]];
    let texts = ["lower\n", "one\n", "two\n"];
    for (pair, text) in all.iter().zip(texts) {
        append(&lab.mnt(pair[1]), text);
    }
    for _ in 0..2 {
        for (pair, text) in all.iter().zip(texts) {
            are_one(&lab, pair, &text.repeat(2), 2);
        }
        killed(&mut lab);
    }
    for pair in all {
        fs::remove_file(lab.mnt(pair[0])).unwrap();
        are_one(&lab, &[pair[1]], &fs::read_to_string(lab.mnt(pair[1])).unwrap(), 1);
    }
    lab.unmount();
}

fn link_fd(file: &File, to: &Path) -> std::io::Result<()> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(rustix::fs::linkat(rustix::fs::CWD, path, rustix::fs::CWD, to, rustix::fs::AtFlags::SYMLINK_FOLLOW)?)
}

#[test]
fn an_open_file_is_linked_by_its_descriptor_as_long_as_it_has_a_name() {
    let mut lab = lab!();
    linked(&lab, &["a", "b"]);
    lab.mount();
    for name in ["a", "other"] {
        let file = File::open(lab.mnt(name)).unwrap();
        let more = lab.mnt(&format!("{name}.more"));
        link_fd(&file, &more).unwrap();
        assert_eq!((fs::metadata(&more).unwrap().ino(), errno(link_fd(&file, &more))), (stat(&lab, name).ino(), Some(Errno::EXIST)));
    }
    let all: Vec<_> = ["a", "b", "a.more"].map(|name| File::open(lab.mnt(name)).unwrap()).into();
    for name in ["a.more", "b", "a"] {
        assert!(all[0].metadata().unwrap().nlink() > 0);
        fs::remove_file(lab.mnt(name)).unwrap();
    }
    fs::write(lab.mnt("new"), "").unwrap();
    let new = File::open(lab.mnt("new")).unwrap();
    fs::remove_file(lab.mnt("new")).unwrap();
    for file in all.iter().chain([&new]) {
        assert_eq!(file.metadata().unwrap().nlink(), 0);
        assert_eq!(errno(link_fd(file, &lab.mnt("again"))), Some(Errno::NOENT));
    }
    drop((all, new));
    lab.unmount();
}

#[test]
fn names_of_hard_links_come_and_go_from_many_processes() {
    let mut lab = lab!();
    linked(&lab, &["a", "d1/b", "d2/b", "d3/b", "d4/b"]);
    lab.mount();
    // Each in a directory of its own; all of them change the one count.
    let script = r#"
        for dir in d1 d2 d3 d4; do (
            for round in $(seq 60); do
                ln "$dir/b" "$dir/l$round" && mv "$dir/l$round" "$dir/m" && rm "$dir/m" && echo x >>"$dir/b" || exit 1
            done
            rm "$dir/b"; ln a "$dir/b"
        ) & done; wait
    "#;
    sh(&lab.mnt(""), script);
    let all = ["a", "d1/b", "d2/b", "d3/b", "d4/b"];
    let text = format!("lower\n{}", "x\n".repeat(240));
    are_one(&lab, &all, &text, 5);
    killed(&mut lab);
    are_one(&lab, &all, &text, 5);
    for name in all {
        fs::remove_file(lab.mnt(name)).unwrap();
    }
    assert_eq!(index(&lab), Vec::<String>::new());
    lab.unmount();
}
