//! Two thousand layers: they mount under the usual limits, and what is on them and done to them is as in one plain tree.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::lab::{Lab, Mounted, PLYFS, finish, need_mounts, until};

const LAYERS: usize = 2000;

/// Everything below a directory in words: names, kinds, modes, owners, targets, data.
fn tree(dir: &Path) -> String {
    let mut lines = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(path) = todo.pop() {
        let meta = path.symlink_metadata().unwrap();
        let below = path.strip_prefix(dir).unwrap().display().to_string();
        let what = match meta.file_type() {
            kind if kind.is_file() => format!("{:?} {}", fs::read_to_string(&path).unwrap(), meta.nlink()),
            kind if kind.is_symlink() => format!("{:?}", fs::read_link(&path).unwrap()),
            _ => {
                todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
                String::new()
            }
        };
        lines.push(format!("{below} {:o} {}:{} {what}", meta.mode(), meta.uid(), meta.gid()));
    }
    lines.sort();
    lines.join("\n")
}

/// Layers of which each has a name of its own, a share in one of seven directories, and one in a directory of all; and the plain tree that they make.
fn layers(lab: &Lab) -> String {
    let plain = lab.path("plain");
    fs::create_dir(&plain).unwrap();
    let mut options = String::from("# topmost first\n");
    for layer in 0..LAYERS {
        let dir = lab.path(format!("l/{layer}"));
        // The path has what must be escaped.
        let dir = if layer == 1000 { dir.join("a:b,c\\d") } else { dir };
        let share = format!("d{}/s", layer % 7);
        fs::create_dir_all(dir.join(&share)).unwrap();
        fs::create_dir_all(plain.join(&share)).unwrap();
        fs::create_dir_all(dir.join("all")).unwrap();
        fs::create_dir_all(plain.join("all")).unwrap();
        for name in [format!("f{layer}"), format!("{share}/x{layer}"), format!("all/y{}", layer / 2)] {
            fs::write(dir.join(&name), format!("{layer}")).unwrap();
            // Of two layers the upper one shows.
            if !plain.join(&name).exists() {
                fs::write(plain.join(&name), format!("{layer}")).unwrap();
            }
        }
        let escaped = dir.to_str().unwrap().replace('\\', "\\\\").replace(',', "\\,");
        writeln!(options, "lowerdir+={escaped}").unwrap();
    }
    fs::write(lab.path("options"), options).unwrap();
    format!("@{},upperdir={},workdir={}", lab.text("options"), lab.text("u"), lab.text("w"))
}

/// Changes of every kind to what the layers share.
const CHANGES: &str = "set -e
    echo more >> f1999; echo new > new; rm f5 all/y7; mv f6 d1/f6; ln d2/s/x2 link
    mv d3 moved; echo in > moved/s/in; rm moved/s/x3
    mv d4/s d5/t; mkdir d4/s; echo again > d4/s/x4
    rm -r d6; mkdir d6; chmod 700 all; mkdir all/z; mv all/z d6/z; rm -r d0; ln -s x d0";

#[test]
fn two_thousand_layers_are_as_one_plain_tree() {
    need_mounts!();
    let lab = Lab::new();
    for dir in ["u", "w", "m"] {
        fs::create_dir(lab.path(dir)).unwrap();
    }
    let options = layers(&lab);
    let mount = || {
        let mut command = lab.command("sh");
        finish(command.args(["-c", "ulimit -Sn 1024; exec \"$@\"", "sh", PLYFS, "mount", "-o", &options, "m"])).ok();
        Mounted(lab.path("m"))
    };
    let mounted = mount();
    assert_eq!(tree(&lab.path("m")), tree(&lab.path("plain")));
    for place in ["m", "plain"] {
        let mut command = lab.command("sh");
        finish(command.args(["-c", CHANGES]).current_dir(lab.path(place))).ok();
    }
    assert_eq!(tree(&lab.path("m")), tree(&lab.path("plain")));
    let diff = lab.plyfs(&["diff", "m"]).ok().text();
    for line in ["C /f1999\n", "A /new\n", "D /f5\n", "D /all/y7\n", "A /moved\n", "D /d3\n", "A /d5/t\n", "A /d6/z\n"] {
        assert!(diff.contains(line), "{line:?} is missing: {diff}");
    }
    let server = crate::lab::server(&lab.path("m"));
    drop(mounted);
    until("the server ends", || !Path::new(&format!("/proc/{server}")).exists());
    let _mounted = mount();
    assert_eq!(tree(&lab.path("m")), tree(&lab.path("plain")));
}

#[test]
fn layers_share_the_limit_of_open_files() {
    need_mounts!();
    let lab = Lab::new();
    for dir in ["u", "w", "m"] {
        fs::create_dir(lab.path(dir)).unwrap();
    }
    let options = layers(&lab);
    let with_limit = |limit: u32| {
        let script = format!("ulimit -n {limit}; exec \"$@\"");
        finish(lab.command("sh").args(["-c", &script, "sh", PLYFS, "mount", "-o", &options, "m"]))
    };
    // A root each, and what a walk needs.
    with_limit(2300).ok();
    let mounted = Mounted(lab.path("m"));
    assert_eq!(tree(&lab.path("m")), tree(&lab.path("plain")));
    drop(mounted);
    with_limit(1500).refused(1, "lowerdir ", &["; each layer keeps a file open: raise the limit of open files"]);
}
