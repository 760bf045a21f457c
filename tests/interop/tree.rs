//! Everything that a directory tree shows, and what differs between two of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::hash::{DefaultHasher, Hasher};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use plyfs_sys::Errno;
use plyfs_sys::at::{self, At};
use plyfs_sys::dir::read_dir;
use plyfs_sys::stat::{Kind, Stat, Time};
use plyfs_sys::{OFlags, root};

/// What one object shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) stat: Stat,
    /// Of a symbolic link.
    pub(crate) target: Vec<u8>,
    /// A digest of a file's content.
    pub(crate) content: u64,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// A tree, by paths from its root, which is `/`.
pub(crate) type Tree = BTreeMap<Vec<u8>, Node>;

/// Reads a whole tree.
pub(crate) fn walk(dir: &Path) -> Tree {
    let root = root::open_dir(dir).unwrap_or_else(|errno| panic!("{}: {errno}", dir.display()));
    let mut tree = Tree::new();
    let fd = root.as_fd();
    tree.insert(b"/".to_vec(), node(At::Fd(fd), fd).unwrap_or_else(|errno| panic!("{}: {errno}", dir.display())));
    descend(fd, b"", &mut tree);
    tree
}

fn descend(dir: BorrowedFd<'_>, path: &[u8], tree: &mut Tree) {
    let shown = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
    for entry in read_dir(dir).unwrap_or_else(|errno| panic!("{}: {errno}", shown(path))) {
        let path = [path, b"/", &entry.name].concat();
        let fd = at::open_path(At::Name(dir, &entry.name)).unwrap_or_else(|errno| panic!("{}: {errno}", shown(&path)));
        let found = node(At::Name(dir, &entry.name), fd.as_fd()).unwrap_or_else(|errno| panic!("{}: {errno}", shown(&path)));
        assert!(entry.kind.is_none_or(|kind| kind == found.stat.kind), "{}: d_type {:?}, {:?}", shown(&path), entry.kind, found.stat.kind);
        let is_dir = found.stat.kind == Kind::Dir;
        tree.insert(path.clone(), found);
        if is_dir {
            descend(fd.as_fd(), &path, tree);
        }
    }
}

fn node(at: At<'_>, fd: BorrowedFd<'_>) -> Result<Node, Errno> {
    let stat = at::stat(at)?;
    let mut node = Node { stat, target: Vec::new(), content: 0, xattrs: BTreeMap::new() };
    match stat.kind {
        Kind::Symlink => node.target = at::readlink(at)?,
        Kind::File => node.content = digest(File::from(at::open(at, OFlags::RDONLY)?)),
        _ => {}
    }
    for name in at::list_xattr(At::Fd(fd))? {
        let value = at::get_xattr(At::Fd(fd), &name)?;
        node.xattrs.insert(name, value);
    }
    Ok(node)
}

fn digest(mut file: File) -> u64 {
    let mut hasher = DefaultHasher::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer).unwrap() {
            0 => return hasher.finish(),
            count => hasher.write(&buffer[..count]),
        }
    }
}

/// The paths that differ and how, for people: type, mode, owner, size, time, target, content, extended attributes, and which names are links
/// of one file. `seen` changes a node before it is compared, or leaves it out.
pub(crate) fn differences(a: &Tree, b: &Tree, seen: &dyn Fn(&[u8], &Node) -> Option<Node>) -> Vec<String> {
    let (links_a, links_b) = (links(a), links(b));
    let paths: BTreeSet<&Vec<u8>> = a.keys().chain(b.keys()).collect();
    let mut found = Vec::new();
    for path in paths {
        let shown = String::from_utf8_lossy(path);
        let look = |tree: &Tree| tree.get(path).and_then(|node| seen(path, node));
        match (look(a), look(b)) {
            (None, None) => {}
            (Some(_), None) => found.push(format!("{shown}: only in the first")),
            (None, Some(_)) => found.push(format!("{shown}: only in the second")),
            (Some(a), Some(b)) => {
                if let Some(how) = how(&a, &b) {
                    found.push(format!("{shown}: {how}"));
                }
                if links_a.get(path) != links_b.get(path) {
                    found.push(format!("{shown}: links of one file: {:?} and {:?}", links_a.get(path), links_b.get(path)));
                }
            }
        }
    }
    found
}

fn how(a: &Node, b: &Node) -> Option<String> {
    let mut how = Vec::new();
    let mut compare = |what: &str, a: &dyn std::fmt::Debug, b: &dyn std::fmt::Debug| {
        let (a, b) = (format!("{a:?}"), format!("{b:?}"));
        if a != b {
            how.push(format!("{what} {a} and {b}"));
        }
    };
    compare("type", &a.stat.kind, &b.stat.kind);
    compare("mode", &format_args!("{:o}", a.stat.mode), &format_args!("{:o}", b.stat.mode));
    compare("owner", &(a.stat.uid, a.stat.gid), &(b.stat.uid, b.stat.gid));
    compare("device", &a.stat.rdev, &b.stat.rdev);
    compare("target", &String::from_utf8_lossy(&a.target), &String::from_utf8_lossy(&b.target));
    // Both are a filesystem's own affair for a directory.
    if (a.stat.kind, b.stat.kind) != (Kind::Dir, Kind::Dir) {
        compare("size", &a.stat.size, &b.stat.size);
        compare("links", &a.stat.nlink, &b.stat.nlink);
    }
    compare("mtime", &a.stat.mtime, &b.stat.mtime);
    compare("content", &a.content, &b.content);
    let text = |xattrs: &BTreeMap<Vec<u8>, Vec<u8>>| -> Vec<(String, String)> {
        xattrs.iter().map(|(name, value)| (String::from_utf8_lossy(name).into_owned(), format!("{value:x?}"))).collect()
    };
    compare("xattrs", &text(&a.xattrs), &text(&b.xattrs));
    (!how.is_empty()).then(|| how.join(", "))
}

/// The first name of each file that has several, by its names.
fn links(tree: &Tree) -> BTreeMap<&Vec<u8>, String> {
    let mut first = BTreeMap::new();
    let several = tree.iter().filter(|(_, node)| node.stat.kind != Kind::Dir && node.stat.nlink > 1);
    several
        .map(|(path, node)| (path, String::from_utf8_lossy(first.entry((node.stat.dev, node.stat.ino)).or_insert(path)).into_owned()))
        .collect()
}

/// The lines that `docker diff` prints of a tree that was `before` and is `after`, by its rules, sorted.
pub(crate) fn changes(before: &Tree, after: &Tree) -> BTreeSet<Vec<u8>> {
    let line = |letter: &[u8], path: &[u8]| [letter, b" ", path].concat();
    let mut lines = BTreeSet::new();
    let mut changed = BTreeSet::new();
    let dir = |tree: &Tree, path: &[u8]| tree.get(path).is_some_and(|node| node.stat.kind == Kind::Dir);
    for (path, node) in after.iter().filter(|(path, _)| *path != b"/") {
        let letter = match before.get(path) {
            None => "A",
            Some(old) if differs(old, node) => "C",
            Some(_) => continue,
        };
        lines.insert(line(letter.as_bytes(), path));
        changed.insert(path.clone());
    }
    for path in before.keys().filter(|path| !after.contains_key(*path)) {
        // Of a tree that is gone only its top is told, and nothing of a directory that is none any more.
        if dir(after, parent(path)) {
            lines.insert(line(b"D", path));
            changed.insert(path.clone());
        }
    }
    for path in &changed {
        let mut above = parent(path);
        while above != b"/" && before.contains_key(above) {
            if !changed.contains(above) {
                lines.insert(line(b"C", above));
            }
            above = parent(above);
        }
    }
    lines
}

fn parent(path: &[u8]) -> &[u8] {
    match path.iter().rposition(|&byte| byte == b'/') {
        None | Some(0) => b"/",
        Some(end) => &path[..end],
    }
}

fn differs(a: &Node, b: &Node) -> bool {
    let about = |node: &Node| {
        let capability = node.xattrs.get(&b"security.capability"[..]).cloned();
        (node.stat.kind, node.stat.mode, node.stat.uid, node.stat.gid, node.stat.rdev, node.target.clone(), capability)
    };
    about(a) != about(b)
        || a.stat.kind != Kind::Dir && ((a.stat.size, a.content) != (b.stat.size, b.content) || !same(a.stat.mtime, b.stat.mtime))
}

fn same(a: Time, b: Time) -> bool {
    a.sec == b.sec && (a.nsec == b.nsec || a.nsec == 0 || b.nsec == 0)
}
