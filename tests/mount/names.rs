//! Names: deleted and made again, moved, linked, whited out, and still so after a remount.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use plyfs_sys::Errno;

use crate::lab::{Lab, append, errno, lab, names, run, sh, shell, tree};

#[test]
fn a_lower_directory_that_was_emptied_deleted_and_made_again_stays_empty() {
    let mut lab = lab!();
    for file in ["d/a", "d/b", "d/sub/c", "e/a", "top/e/x"] {
        lab.write_lower(file, "lower");
    }
    lab.mount();
    sh(&lab.mnt(""), "rm -r d/*; rmdir d; mkdir d; rm -r e; mkdir -p e; rm -r top/e; mkdir top/e; touch top/e/new");
    for _ in 0..3 {
        assert_eq!(names(&lab.mnt("d")), [""; 0]);
        assert_eq!(names(&lab.mnt("e")), [""; 0]);
        assert_eq!(names(&lab.mnt("top/e")), ["new"]);
        for gone in ["d/a", "d/sub", "d/sub/c", "e/a", "top/e/x"] {
            assert_eq!(errno(fs::symlink_metadata(lab.mnt(gone))), Some(Errno::NOENT), "{gone}");
        }
        lab.remount();
    }
    // Once more, when it is an upper directory with a lower one below.
    sh(&lab.mnt(""), "rmdir d; mkdir d; mkdir d/sub; rmdir d/sub; rmdir d");
    lab.remount();
    assert_eq!(names(&lab.mnt("")), ["e", "top"]);
    sh(&lab.mnt(""), "mkdir d");
    assert_eq!(names(&lab.mnt("d")), [""; 0]);
    lab.unmount();
}

#[test]
fn a_file_renamed_over_a_lower_one_and_unlinked_is_gone() {
    let mut lab = lab!();
    for name in ["f", "g", "h", "dir/f", "link"] {
        lab.write_lower(name, "lower");
    }
    fs::create_dir(lab.lower("empty")).unwrap();
    lab.mount();
    let over = |from: &str, to: &str| {
        fs::rename(lab.mnt(from), lab.mnt(to)).unwrap();
        fs::remove_file(lab.mnt(to)).unwrap();
    };
    for to in ["f", "dir/f"] {
        fs::write(lab.mnt("new"), "new").unwrap();
        over("new", to);
    }
    // A lower file over another, a symlink over one, a directory over one.
    over("g", "h");
    symlink("nowhere", lab.mnt("symlink")).unwrap();
    over("symlink", "link");
    fs::create_dir(lab.mnt("newdir")).unwrap();
    fs::rename(lab.mnt("newdir"), lab.mnt("empty")).unwrap();
    fs::remove_dir(lab.mnt("empty")).unwrap();
    for _ in 0..2 {
        assert_eq!(names(&lab.mnt("")), ["dir"]);
        assert_eq!(names(&lab.mnt("dir")), [""; 0]);
        for gone in ["f", "g", "h", "dir/f", "link", "empty", "new"] {
            assert_eq!(errno(fs::symlink_metadata(lab.mnt(gone))), Some(Errno::NOENT), "{gone}");
        }
        lab.remount();
    }
    // The names are free again.
    fs::write(lab.mnt("f"), "again").unwrap();
    fs::create_dir(lab.mnt("empty")).unwrap();
    lab.remount();
    assert_eq!(names(&lab.mnt("")), ["dir", "empty", "f"]);
    lab.unmount();
}

#[test]
fn names_of_aufs_marks_that_users_make_are_plain_names() {
    let mut lab = lab!();
    for name in ["a", "b", "c", "d", "e", "f", "dir/x", "dir2/x"] {
        lab.write_lower(name, "lower");
    }
    let before = tree(&lab.lower(""));
    lab.mount();
    let mnt = |path: &str| lab.mnt(path);
    fs::write(mnt(".wh.a"), "").unwrap();
    fs::create_dir(mnt(".wh.b")).unwrap();
    symlink("x", mnt(".wh.c")).unwrap();
    fs::write(mnt("new"), "").unwrap();
    fs::rename(mnt("new"), mnt(".wh.d")).unwrap();
    fs::hard_link(mnt(".wh.a"), mnt(".wh.e")).unwrap();
    sh(&mnt(""), "mkfifo .wh.f");
    fs::write(mnt("dir/.wh..wh..opq"), "").unwrap();
    fs::create_dir(mnt("dir2/.wh..wh..opq")).unwrap();
    fs::write(mnt("dir/.wh."), "").unwrap();
    fs::write(mnt("dir/.wh..wh.plnk"), "").unwrap();
    let after = tree(&lab.mnt(""));
    // All that was there is there.
    let shown: Vec<_> = after.iter().filter(|line| !line.contains(".wh.")).collect();
    assert_eq!(shown, before.iter().collect::<Vec<_>>());
    assert_eq!(after.len(), before.len() + 10);
    lab.remount();
    assert_eq!(tree(&lab.mnt("")), after);
    sh(&lab.mnt(""), "rm -r .wh.* dir/.wh* dir2/.wh*");
    lab.remount();
    assert_eq!(tree(&lab.mnt("")), before);
    lab.unmount();
}

#[test]
fn layer_entries_with_names_of_aufs_marks_are_harmless() {
    let mut lab = lab!();
    for name in [".wh.", ".wh.x", "x", "d/.wh.", "d/.wh..wh..opq", "d/y"] {
        lab.write_lower(name, "lower");
    }
    lab.write_upper("d/.wh.", "upper");
    lab.write_upper("d/.wh.y", "upper");
    lab.mount();
    assert_eq!(names(&lab.mnt("")), [".wh.", ".wh.x", "d", "x"]);
    assert_eq!(names(&lab.mnt("d")), [".wh.", ".wh..wh..opq", ".wh.y", "y"]);
    assert_eq!(fs::read_to_string(lab.mnt("d/.wh.")).unwrap(), "upper");
    append(&lab.mnt(".wh."), "+");
    fs::remove_file(lab.mnt("d/.wh.")).unwrap();
    fs::remove_file(lab.mnt(".wh.x")).unwrap();
    lab.remount();
    assert_eq!(names(&lab.mnt("")), [".wh.", "d", "x"]);
    assert_eq!(names(&lab.mnt("d")), [".wh..wh..opq", ".wh.y", "y"]);
    lab.unmount();
}

#[test]
fn lower_names_of_255_bytes_are_deleted_moved_and_made_again() {
    let mut lab = lab!();
    let name = |first: char| format!("{first}{}", "n".repeat(254));
    let deep = format!("{}/{}", name('d'), name('f'));
    for file in [name('a'), name('b'), deep.clone(), format!("{}/x", name('e'))] {
        lab.write_lower(&file, "lower");
    }
    lab.mount();
    fs::remove_file(lab.mnt(&name('a'))).unwrap();
    fs::rename(lab.mnt(&name('b')), lab.mnt(&name('c'))).unwrap();
    fs::remove_file(lab.mnt(&deep)).unwrap();
    fs::remove_dir(lab.mnt(&name('d'))).unwrap();
    fs::rename(lab.mnt(&name('e')), lab.mnt(&name('g'))).unwrap();
    lab.remount();
    assert_eq!(names(&lab.mnt("")), [name('c'), name('g')]);
    assert_eq!(names(&lab.mnt(&name('g'))), ["x"]);
    fs::write(lab.mnt(&name('a')), "again").unwrap();
    fs::create_dir(lab.mnt(&name('d'))).unwrap();
    lab.remount();
    assert_eq!(names(&lab.mnt("")), [name('a'), name('c'), name('d'), name('g')]);
    assert_eq!(names(&lab.mnt(&name('d'))), [""; 0]);
    let longer = format!("{}x", name('a'));
    assert_eq!(errno(fs::metadata(lab.mnt(&longer))), Some(Errno::NAMETOOLONG));
    assert_eq!(errno(File::create(lab.mnt(&longer))), Some(Errno::NAMETOOLONG));
    lab.unmount();
}

#[test]
fn hard_links_of_a_lower_file_stay_one_file() {
    let mut lab = lab!();
    lab.write_lower("a", "lower\n");
    fs::create_dir(lab.lower("d")).unwrap();
    fs::hard_link(lab.lower("a"), lab.lower("d/b")).unwrap();
    fs::hard_link(lab.lower("a"), lab.lower("c")).unwrap();
    lab.mount();
    // The first stat of all.
    let first = fs::metadata(lab.mnt("d/b")).unwrap();
    assert_eq!(first.nlink(), 3);
    let one = |lab: &Lab, names: &[&str], text: &str, links: u64| {
        for name in names {
            let meta = fs::metadata(lab.mnt(name)).unwrap();
            assert_eq!((meta.ino(), meta.nlink()), (first.ino(), links), "{name}");
            assert_eq!(fs::read_to_string(lab.mnt(name)).unwrap(), text, "{name}");
        }
    };
    one(&lab, &["a", "d/b", "c"], "lower\n", 3);
    append(&lab.mnt("d/b"), "by b\n");
    one(&lab, &["c", "a", "d/b"], "lower\nby b\n", 3);
    lab.remount();
    one(&lab, &["a", "c", "d/b"], "lower\nby b\n", 3);
    append(&lab.mnt("c"), "by c\n");
    let text = "lower\nby b\nby c\n";
    one(&lab, &["a", "c", "d/b"], text, 3);
    fs::remove_file(lab.mnt("a")).unwrap();
    one(&lab, &["c", "d/b"], text, 2);
    fs::hard_link(lab.mnt("c"), lab.mnt("d/e")).unwrap();
    one(&lab, &["c", "d/b", "d/e"], text, 3);
    lab.remount();
    one(&lab, &["d/e", "c", "d/b"], text, 3);
    fs::rename(lab.mnt("d/b"), lab.mnt("b")).unwrap();
    // Two names of one file: POSIX rename does nothing.
    fs::rename(lab.mnt("c"), lab.mnt("d/e")).unwrap();
    one(&lab, &["d/e", "c", "b"], text, 3);
    for name in ["c", "d/e"] {
        fs::remove_file(lab.mnt(name)).unwrap();
    }
    one(&lab, &["b"], text, 1);
    lab.remount();
    one(&lab, &["b"], text, 1);
    assert_eq!(names(&lab.mnt("")), ["b", "d"]);
    fs::remove_file(lab.mnt("b")).unwrap();
    lab.remount();
    assert_eq!((names(&lab.mnt("")), names(&lab.mnt("d"))), (vec!["d".to_owned()], vec![]));
    lab.unmount();
}

#[test]
fn hard_links_count_from_the_first_stat_whichever_name_is_asked() {
    let mut lab = lab!();
    lab.write_lower("x/a", "text");
    fs::hard_link(lab.lower("x/a"), lab.lower("x/b")).unwrap();
    for (round, name) in ["x/a", "x/b"].into_iter().enumerate() {
        lab.mount();
        assert_eq!(fs::metadata(lab.mnt(name)).unwrap().nlink(), 2 + round as u64);
        // What an upper made of it counts too: one more link each time.
        fs::hard_link(lab.mnt("x/a"), lab.mnt(&format!("more{round}"))).unwrap();
        assert_eq!(fs::metadata(lab.mnt("x/b")).unwrap().nlink(), 3 + round as u64);
        lab.unmount();
    }
}

/// Runs changes on a mount and on a plain copy of what it shows, which must then look the same, also after a remount.
fn as_plain(lab: &mut Lab, change: impl Fn(&Path)) {
    lab.mount();
    let plain = lab.path("plain");
    run(std::process::Command::new("cp").arg("-a").arg(lab.mnt("")).arg(&plain));
    assert_eq!(tree(&lab.mnt("")), tree(&plain));
    change(&plain);
    change(&lab.mnt(""));
    let expected = tree(&plain);
    assert_eq!(tree(&lab.mnt("")), expected);
    lab.remount();
    assert_eq!(tree(&lab.mnt("")), expected);
    lab.unmount();
}

#[test]
fn directories_of_every_kind_are_renamed_and_never_cross_devices() {
    let mut lab = lab!();
    for file in ["low/f", "low/s/g", "merged/low", "merged/s/low", "merged/gone", "opaque/low", "target/x", "target2/s/x", "deep/a/b/c/f"] {
        lab.write_lower(file, file);
    }
    fs::create_dir(lab.lower("empty")).unwrap();
    for file in ["up/f", "up/s/g", "merged/up", "merged/s/up"] {
        lab.write_upper(file, file);
    }
    lab.mount();
    sh(&lab.mnt(""), "rm merged/gone; rm -r opaque; mkdir opaque; echo new > opaque/new");
    lab.unmount();
    as_plain(&mut lab, |root| {
        let mv = |from: &str, to: &str| fs::rename(root.join(from), root.join(to)).unwrap_or_else(|error| panic!("{from} {to}: {error}"));
        for dir in ["low", "merged", "up", "opaque"] {
            mv(dir, &format!("new {dir}"));
            // Into lower, upper and merged directories, and back.
            mv(&format!("new {dir}"), &format!("target/{dir}"));
            mv(&format!("target/{dir}"), &format!("target2/s/{dir}"));
            fs::write(root.join(format!("target2/s/{dir}/added")), dir).unwrap();
        }
        mv("target2/s/low/s", "target2/s/up/s/from low");
        mv("target2/s", "s");
        mv("s/merged/s", "merged");
        // Over an empty lower directory, and something else in the old place.
        mv("deep/a/b", "empty");
        fs::create_dir(root.join("deep/a/b")).unwrap();
        mv("deep", "deeper");
        fs::write(root.join("deep"), "a file now").unwrap();
        mv("target", "target3");
        mv("target3", "target");
    });
}

#[test]
fn renamed_lower_directories_are_changed_below_and_renamed_again() {
    let mut lab = lab!();
    for dir in ["a", "b", "c"] {
        for file in ["1", "2", "s/3", "s/t/4"] {
            lab.write_lower(&format!("{dir}/{file}"), format!("{dir} {file}"));
        }
    }
    lab.mount();
    for dir in ["a", "b", "c"] {
        fs::rename(lab.mnt(dir), lab.mnt(&format!("{dir}{dir}"))).unwrap();
    }
    lab.unmount();
    as_plain(&mut lab, |root| {
        let mv = |from: &str, to: &str| fs::rename(root.join(from), root.join(to)).unwrap_or_else(|error| panic!("{from} {to}: {error}"));
        append(&root.join("aa/s/t/4"), "+");
        fs::remove_file(root.join("aa/1")).unwrap();
        mv("aa/s", "bb/s2");
        mv("bb/s2/t", "t");
        mv("aa", "a");
        mv("bb", "aa");
        mv("cc/s/t", "cc/t");
        fs::remove_dir_all(root.join("cc/s")).unwrap();
        mv("cc", "b");
        fs::create_dir(root.join("cc")).unwrap();
    });
}

#[test]
fn a_rename_exchanges_or_refuses_to_replace_names_of_all_layers() {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    let mut lab = lab!();
    for file in ["f", "d/x", "e/y"] {
        lab.write_lower(file, file);
    }
    lab.write_upper("up", "up");
    lab.write_upper("updir/z", "updir/z");
    as_plain(&mut lab, |root| {
        let rename = |from: &str, to: &str, flags| renameat_with(CWD, root.join(from), CWD, root.join(to), flags);
        rename("f", "up", RenameFlags::EXCHANGE).unwrap();
        rename("d", "updir", RenameFlags::EXCHANGE).unwrap();
        rename("e", "f", RenameFlags::EXCHANGE).unwrap();
        assert_eq!(rename("d", "up", RenameFlags::NOREPLACE), Err(rustix::io::Errno::EXIST));
        rename("d", "new", RenameFlags::NOREPLACE).unwrap();
        assert_eq!(rename("f", "f/y", RenameFlags::EXCHANGE), Err(rustix::io::Errno::INVAL));
    });
}

#[test]
fn of_many_processes_that_make_a_name_exclusively_one_wins() {
    let mut lab = lab!("python3");
    for number in 0..50 {
        lab.write_lower(&format!("d/file{number}"), "x");
        lab.write_lower(&format!("d/dir{number}/x"), "x");
    }
    lab.mount();
    // Half of the names have lower objects below their whiteouts.
    sh(&lab.mnt("d"), "rm -r *");
    let program = "
import os
make = {
    'file': lambda name: os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY)),
    'dir': os.mkdir,
    'symlink': lambda name: os.symlink('x', name),
    'link': lambda name: os.link('../source', name),
    'fifo': os.mkfifo,
}
for number in range(100):
    for what, how in make.items():
        try:
            how(what + str(number))
            print(what + str(number))
        except FileExistsError:
            pass
";
    fs::write(lab.mnt("source"), "").unwrap();
    let script = "for i in 1 2 3 4; do python3 -c \"$1\" > ../won$i & done; wait; cat ../won?";
    let won = run(shell(&lab.mnt("d"), script).args(["sh", program]));
    let mut won: Vec<_> = won.lines().collect();
    assert_eq!(won.len(), 500);
    won.sort_unstable();
    assert_eq!(names(&lab.mnt("d")), won);
    assert_eq!(fs::metadata(lab.mnt("source")).unwrap().nlink(), 101);
    lab.remount();
    assert_eq!(names(&lab.mnt("d")), won);
    lab.unmount();
}

#[test]
fn of_many_threads_that_create_a_name_exclusively_one_wins() {
    let mut lab = lab!();
    lab.write_lower("d/x", "x");
    lab.mount();
    let wins = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for number in 0..300 {
                    let path = lab.mnt(&format!("d/{number}"));
                    match OpenOptions::new().write(true).create_new(true).open(&path) {
                        Ok(_) => drop(wins.fetch_add(1, std::sync::atomic::Ordering::SeqCst)),
                        Err(error) => assert_eq!(errno::<()>(Err(error)), Some(Errno::EXIST)),
                    }
                }
            });
        }
    });
    assert_eq!(wins.into_inner(), 300);
    lab.unmount();
}

#[test]
fn names_are_any_bytes() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let mut lab = lab!();
    let odd: Vec<Vec<u8>> = (1..=255u8).filter(|byte| !b"./d".contains(byte)).map(|byte| vec![byte]).chain([vec![0xff; 255]]).collect();
    let listed = |dir: &Path| {
        let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().as_bytes().to_vec()).collect();
        names.sort();
        names
    };
    for name in &odd {
        fs::write(lab.lower("").join(OsStr::from_bytes(name)), name).unwrap();
    }
    lab.mount();
    fs::create_dir(lab.mnt("d")).unwrap();
    for name in &odd {
        let path = lab.mnt("").join(OsStr::from_bytes(name));
        fs::rename(&path, lab.mnt("d").join(OsStr::from_bytes(name))).unwrap();
        assert_eq!(errno(fs::symlink_metadata(&path)), Some(Errno::NOENT));
    }
    lab.remount();
    let mut expected = odd.clone();
    expected.sort();
    assert_eq!(listed(&lab.mnt("d")), expected);
    assert_eq!(listed(&lab.mnt("")), [b"d"]);
    for name in &odd {
        assert_eq!(&fs::read(lab.mnt("d").join(OsStr::from_bytes(name))).unwrap(), name);
    }
    lab.unmount();
}
