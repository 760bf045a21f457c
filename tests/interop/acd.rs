//! What docker said of real changes in containers, said by `plyfs run` and `plyfs diff`.
//!
//! `data/acd-cases.json` holds what `docker diff` (20.10, overlay2) printed after each script in a fresh container of an image of three layers,
//! and how the script ended. The layers are in `data/acd-layers.tar.xz`, the lowest first; `h` in them is a small helper program. Options of
//! docker that `plyfs run` has no word for keep a case out; where the two differ stands in a table. Both lists are exact.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use plyfs_format::{Dialect, MarkKind, Opaque, xattr_name};
use plyfs_sys::at::{self, At, SetTime, XattrMode};
use plyfs_sys::stat::{Kind, makedev};
use plyfs_sys::{create, root};
use serde::Deserialize;

use crate::lab::{Lab, SOON, missing, ok, run};
use crate::skip::skip;
use crate::tree;

/// A line of a diff.
type Line = Vec<u8>;

#[derive(Deserialize)]
struct Case {
    case: String,
    script: String,
    opts: Vec<String>,
    exit: i32,
    docker: Vec<String>,
}

/// Cases with options of docker that `plyfs run --rootfs` does not have.
const LEFT_OUT: [(&str, &str); 5] = [
    ("bind_file_over_lower", "-v"),
    ("tmpfs_mount_new", "--tmpfs"),
    ("tmpfs_over_lower", "--tmpfs"),
    ("trusted_overlay_xattr_cap", "--cap-add"),
    ("workdir_new", "-w"),
];

/// Where plyfs does not say what docker says, and why.
struct Divergence {
    why: &'static str,
    /// How the script ends.
    exit: i32,
    /// Lines that only docker has.
    docker: Vec<Line>,
    /// Lines that only plyfs has.
    plyfs: Vec<Line>,
}

fn divergences() -> BTreeMap<&'static str, Divergence> {
    let lines = |lines: &[&[u8]]| lines.iter().map(|line| line.to_vec()).collect::<Vec<_>>();
    let deep = |depth| [b"A /t".to_vec(), [b"/".to_vec(), vec![b'p'; 200]].concat().repeat(depth)].concat();
    let mut past_path_max: Vec<Line> = (1..=25).map(deep).collect();
    past_path_max.push([deep(25), b"/leaf".to_vec()].concat());
    past_path_max.push(b"C /t".to_vec());
    let bound = "docker binds a file of its own there";
    BTreeMap::from([
        ("etc_hosts_write", Divergence { why: bound, exit: 0, docker: Vec::new(), plyfs: lines(&[b"C /etc", b"A /etc/hosts"]) }),
        ("etc_resolv_write", Divergence { why: bound, exit: 0, docker: Vec::new(), plyfs: lines(&[b"C /etc", b"A /etc/resolv.conf"]) }),
        (
            "name_invalid_utf8",
            Divergence {
                why: "docker replaces what is not UTF-8",
                exit: 0,
                docker: lines(&["A /t/a\u{fffd}\u{fffd}b".as_bytes()]),
                plyfs: lines(&[b"A /t/a\xff\xfeb"]),
            },
        ),
        (
            "o_tmpfile_linkat",
            Divergence {
                why: "the FUSE library carries no O_TMPFILE yet",
                exit: 1,
                docker: lines(&[b"C /t", b"A /t/tmpfiled"]),
                plyfs: Vec::new(),
            },
        ),
        (
            "path_gt_4096",
            Divergence { why: "docker does not see paths of more than 4,096 bytes", exit: 0, docker: Vec::new(), plyfs: past_path_max },
        ),
        (
            "write_one_name_of_lower_hardlink",
            Divergence {
                why: "docker's kernel overlayfs breaks the link, so that only one of the files changes",
                exit: 0,
                docker: Vec::new(),
                plyfs: lines(&[b"C /t/hl2"]),
            },
        ),
        (
            "rename_exchange_dirs",
            Divergence {
                why: "kernel overlayfs refuses to exchange merged directories",
                exit: 0,
                docker: Vec::new(),
                plyfs: lines(&[
                    b"C /t",
                    b"C /t/d1",
                    b"D /t/d1/a",
                    b"D /t/d1/b",
                    b"A /t/d1/deepsub",
                    b"A /t/d1/deepsub/z",
                    b"D /t/d1/sub",
                    b"A /t/d1/x",
                    b"A /t/d1/y",
                    b"C /t/d2",
                    b"A /t/d2/a",
                    b"A /t/d2/b",
                    b"D /t/d2/deepsub",
                    b"A /t/d2/sub",
                    b"A /t/d2/sub/c",
                    b"D /t/d2/x",
                    b"D /t/d2/y",
                ]),
            },
        ),
    ])
}

#[test]
fn changes_in_containers_are_told_as_docker_tells_them() {
    if let Some(why) = missing(&["tar", "xz"]) {
        skip!("{why}");
    }
    let lab = Lab::new();
    let layers = unpack(&lab);
    let before: Vec<_> = layers.iter().map(|layer| tree::walk(layer)).collect();
    let lowers = layers.iter().rev().map(|layer| layer.to_str().unwrap()).collect::<Vec<_>>().join(":");
    let cases: Vec<Case> = serde_json::from_slice(&fs::read(data("acd-cases.json")).unwrap()).unwrap();
    let (with_options, cases): (Vec<Case>, Vec<Case>) = cases.into_iter().partition(|case| !case.opts.is_empty());
    let left_out: BTreeMap<&str, &str> = with_options.iter().map(|case| (case.case.as_str(), case.opts[0].as_str())).collect();
    assert_eq!(left_out, BTreeMap::from(LEFT_OUT));

    let mut divergences = divergences();
    let (mut wrong, mut equal) = (Vec::new(), 0);
    for case in &cases {
        let (exit, lines) = told(&lab, &lowers, case);
        let mut docker: BTreeSet<Line> = split(case.docker.join("\n").as_bytes());
        let mut expected_exit = case.exit;
        match divergences.remove(case.case.as_str()) {
            None => equal += 1,
            Some(divergence) => {
                println!("{}: {}", case.case, divergence.why);
                expected_exit = divergence.exit;
                for line in divergence.docker {
                    assert!(docker.remove(&line), "{}: docker does not say {}", case.case, String::from_utf8_lossy(&line));
                }
                for line in divergence.plyfs {
                    assert!(docker.insert(line), "{}: docker says so, too", case.case);
                }
            }
        }
        if (exit, &lines) != (expected_exit, &docker) {
            let only = |a: &BTreeSet<Line>, b| a.difference(b).map(|line| String::from_utf8_lossy(line).into_owned()).collect::<Vec<_>>();
            let (missing, more) = (only(&docker, &lines), only(&lines, &docker));
            wrong.push(format!("{} ({}): exit code {exit}; missing {missing:?}; too many {more:?}", case.case, case.script));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(divergences.is_empty(), "no such cases: {:?}", divergences.keys());
    println!(
        "{equal} cases as docker has them, {} that differ for a reason, {} with options left out",
        cases.len() - equal,
        LEFT_OUT.len()
    );

    // No layer has changed, and nothing stayed mounted.
    for (layer, before) in layers.iter().zip(before) {
        let now = tree::walk(layer);
        assert_eq!(tree::differences(&before, &now, &|_, node| Some(node.clone())), [] as [String; 0]);
        assert!(before.values().zip(now.values()).all(|(a, b)| (a.stat.ino, a.stat.ctime) == (b.stat.ino, b.stat.ctime)));
    }
    assert_eq!(crate::lab::mounts_below(&lab.path("")), [] as [PathBuf; 0]);
}

#[test]
fn changes_that_docker_misses_are_told() {
    if let Some(why) = missing(&["tar", "xz"]) {
        skip!("{why}");
    }
    let lab = Lab::new();
    let layers = unpack(&lab);
    let lowers = layers.iter().rev().map(|layer| layer.to_str().unwrap()).collect::<Vec<_>>().join(":");
    for (case, script, expected) in [
        ("other_content_of_equal_size_and_mtime", "printf 'CONTENT 1\\n' > /t/f1; h mtime /t/f1 1500000000 0", &["C /t", "C /t/f1"][..]),
        ("same_content_size_and_mtime", "printf 'content 1\\n' > /t/f1; h mtime /t/f1 1500000000 0", &[]),
        (
            "user_file_named_as_a_whiteout",
            "echo x > /t/.wh.f1; rm /t/f2; echo y > /t/.wh.f2",
            &["A /t/.wh.f1", "A /t/.wh.f2", "C /t", "D /t/f2"],
        ),
    ] {
        let case = Case { case: case.to_owned(), script: script.to_owned(), opts: Vec::new(), exit: 0, docker: Vec::new() };
        let (exit, lines) = told(&lab, &lowers, &case);
        let expected: BTreeSet<Line> = expected.iter().map(|line| line.as_bytes().to_vec()).collect();
        assert_eq!((exit, lines), (0, expected), "{}", case.case);
    }
}

/// Runs the script in a fresh container; its exit code, and the diff of what it left.
fn told(lab: &Lab, lowers: &str, case: &Case) -> (i32, BTreeSet<Line>) {
    let upper = lab.make("uppers").join(&case.case);
    let upper = upper.to_str().unwrap();
    let done = run(&mut lab.plyfs(&["run", "--rootfs", lowers, "--upper", upper, "--", "sh", "-c", &case.script]), SOON);
    let diff = ok(&mut lab.plyfs(&["diff", "--upper", upper, "--lower", lowers]), SOON);
    fs::remove_dir_all(lab.path("uppers")).unwrap();
    (done.status.code().unwrap(), split(&diff.out))
}

/// The lines, of which one with a newline in its name is two.
fn split(text: &[u8]) -> BTreeSet<Line> {
    text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).map(<[u8]>::to_vec).collect()
}

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/data").join(name)
}

/// Unpacks the layers, the lowest first, with whiteouts as overlayfs has them.
fn unpack(lab: &Lab) -> Vec<PathBuf> {
    let tars = lab.make("tars");
    ok(Command::new("tar").arg("-xJf").arg(data("acd-layers.tar.xz")).arg("-C").arg(&tars), SOON);
    let unpack = |number: u32| {
        let dir = lab.make(&format!("layer{number}"));
        let tar = tars.join(format!("{number}.tar"));
        ok(Command::new("tar").args(["--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf"]).arg(tar).arg("-C").arg(&dir), SOON);
        convert(&dir);
        dir
    };
    (0..3).map(unpack).collect()
}

fn convert(dir: &Path) {
    let fd = root::open_dir(dir).unwrap();
    let stat = at::stat(At::Fd(fd.as_fd())).unwrap();
    let mut converted = false;
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().as_bytes().to_vec();
        if name == b".wh..wh..opq" {
            fs::remove_file(entry.path()).unwrap();
            let opaque = xattr_name(Dialect::Trusted, MarkKind::Opaque).unwrap();
            at::set_xattr(At::Fd(fd.as_fd()), opaque, Opaque::Yes.encode().unwrap(), XattrMode::Any).unwrap();
            converted = true;
        } else if let Some(name) = name.strip_prefix(b".wh.") {
            fs::remove_file(entry.path()).unwrap();
            create::mknod(fd.as_fd(), name, Kind::Char, 0, makedev(0, 0)).unwrap();
            converted = true;
        } else if entry.file_type().unwrap().is_dir() {
            convert(&entry.path());
        }
    }
    if converted {
        at::set_times(At::Fd(fd.as_fd()), SetTime::To(stat.atime), SetTime::To(stat.mtime)).unwrap();
    }
}
