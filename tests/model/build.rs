//! Layers from their description: in memory and in real directories.

use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::Arc;

use plyfs_format::{AUFS_OPAQUE, Dialect, MarkKind, aufs_whiteout_name, read_names, translate_xattr};
use plyfs_overlay::backend::{Place, Tree, UpperTree};
use plyfs_overlay::{MemFs, MemTree, Name as Checked};
use plyfs_sys::at::{SetTime, XattrMode};
use plyfs_sys::stat::{Kind, Time};

use crate::case::{Entry, LayerSpec, Name, What};

fn at_time(sec: i64) -> SetTime {
    SetTime::To(Time { sec, nsec: 0 })
}

/// Whether a directory of the layer holds whiteouts by mark.
fn has_marked(layer: &LayerSpec, dir: &[Name]) -> bool {
    layer.entries.iter().any(|(path, entry)| entry.what == What::MarkedWhiteout && path.len() == dir.len() + 1 && path.starts_with(dir))
}

type MemNode = <MemTree as Tree>::Node;

fn mem_find(tree: &MemTree, path: &[Name]) -> MemNode {
    path.iter().fold(tree.root(), |dir, name| tree.lookup(&dir, &Checked::new(name).unwrap()).unwrap().unwrap().0)
}

/// The mark's name in a layer of a dialect: for AUFS one of those that it reads besides.
fn mark_in(dialect: Dialect, kind: MarkKind) -> &'static [u8] {
    read_names(dialect, kind).last().unwrap()
}

/// Whether a layer can be spelled in a dialect: AUFS has no names that begin as its whiteouts.
fn can_be(layer: &LayerSpec, dialect: Dialect) -> bool {
    dialect != Dialect::Aufs || !layer.entries.keys().any(|path| path.iter().any(|name| name.starts_with(b".wh.")))
}

/// The dialect of one of several layers, chosen by all of them, so that a case has the same ones each time.
pub(crate) fn dialect_of(layers: &[LayerSpec], index: usize) -> Dialect {
    let choice = layers.iter().map(|layer| layer.entries.len()).sum::<usize>() + index;
    let dialect = Dialect::ALL[choice % Dialect::ALL.len()];
    if can_be(&layers[index], dialect) { dialect } else { Dialect::User }
}

/// The same layer, in the names of files and attributes that a dialect has for it.
pub(crate) fn spelled(layer: &LayerSpec, dialect: Dialect) -> LayerSpec {
    let mut out = LayerSpec::default();
    for (path, entry) in &layer.entries {
        let (mut path, mut entry) = (path.clone(), entry.clone());
        let xattrs = std::mem::take(&mut entry.xattrs).into_iter();
        entry.xattrs = xattrs.filter_map(|(name, value)| Some((translate_xattr(Dialect::Trusted, dialect, &name)?, value))).collect();
        if dialect == Dialect::Aufs {
            let empty = Entry { what: What::File(Vec::new()), mode: 0o600, uid: 0, gid: 0, mtime: 1, xattrs: Default::default() };
            match entry.what {
                What::Whiteout => {
                    let name = path.last_mut().unwrap();
                    // A name too long for such a file has a device.
                    if let Ok(whiteout) = aufs_whiteout_name(name) {
                        *name = whiteout;
                        entry = empty;
                    }
                }
                What::Dir { opaque: true } => {
                    entry.what = What::Dir { opaque: false };
                    let mut mark = path.clone();
                    mark.push(AUFS_OPAQUE.to_vec());
                    out.entries.insert(mark, empty);
                }
                _ => {}
            }
        }
        out.entries.insert(path, entry);
    }
    out
}

/// A layer in memory.
pub(crate) fn in_memory(fs: &Arc<MemFs>, layer: &LayerSpec) -> MemTree {
    in_memory_as(fs, layer, Dialect::Trusted)
}

/// A layer in memory, in a dialect.
pub(crate) fn in_memory_as(fs: &Arc<MemFs>, layer: &LayerSpec, dialect: Dialect) -> MemTree {
    let tree = fs.tree();
    let mark = |kind| mark_in(dialect, kind);
    let layer = &spelled(layer, dialect);
    for (path, entry) in &layer.entries {
        let (last, above) = path.split_last().unwrap();
        let (dir, name) = (mem_find(&tree, above), Checked::new(last).unwrap());
        let at = Place { dir: &dir, name: &name };
        let node = match &entry.what {
            What::Dir { opaque } => {
                let node = tree.mkdir(at, 0o700).unwrap();
                if *opaque {
                    tree.set_xattr(&node, mark(MarkKind::Opaque), b"y", XattrMode::Any).unwrap();
                } else if has_marked(layer, path) {
                    tree.set_xattr(&node, mark(MarkKind::Opaque), b"x", XattrMode::Any).unwrap();
                }
                node
            }
            What::File(data) => {
                let (node, file) = tree.create(at, 0o600).unwrap();
                tree.write(&file, data, 0).unwrap();
                node
            }
            What::Symlink(target) => tree.symlink(at, target).unwrap(),
            What::Fifo => tree.mknod(at, Kind::Fifo, 0o600, 0).unwrap(),
            What::Whiteout => {
                tree.whiteout(at).unwrap();
                continue;
            }
            What::MarkedWhiteout => {
                let (node, _) = tree.create(at, 0o600).unwrap();
                tree.set_xattr(&node, mark(MarkKind::Whiteout), b"y", XattrMode::Any).unwrap();
                continue;
            }
            What::Hard(of) => {
                tree.link(&mem_find(&tree, of), at).unwrap();
                continue;
            }
        };
        tree.set_owner(&node, Some(entry.uid), Some(entry.gid)).unwrap();
        if !matches!(entry.what, What::Symlink(_)) {
            tree.set_mode(&node, entry.mode).unwrap();
        }
        for (name, value) in &entry.xattrs {
            tree.set_xattr(&node, name, value, XattrMode::Any).unwrap();
        }
    }
    for (path, entry) in layer.entries.iter().rev() {
        tree.set_times(&mem_find(&tree, path), at_time(entry.mtime), at_time(entry.mtime)).unwrap();
    }
    tree.set_times(&tree.root(), at_time(1), at_time(1)).unwrap();
    tree
}

/// Everything in a memory layer, marks and times included, in words.
pub(crate) fn digest_mem(tree: &MemTree) -> String {
    let mut text = String::new();
    let mut todo = vec![(String::new(), tree.root())];
    while let Some((path, node)) = todo.pop() {
        let stat = tree.stat(&node).unwrap();
        let data = match stat.kind {
            Kind::File => {
                let mut data = vec![0; usize::try_from(stat.size).unwrap()];
                tree.read(&node, &mut data, 0).unwrap();
                data
            }
            Kind::Symlink => tree.readlink(&node).unwrap(),
            _ => Vec::new(),
        };
        let xattrs: Vec<_> =
            tree.list_xattr(&node).unwrap().into_iter().map(|name| (tree.get_xattr(&node, &name).unwrap(), name)).collect();
        text += &format!("{path} {stat:?} {data:?} {xattrs:?}\n");
        if stat.kind == Kind::Dir {
            for entry in tree.read_dir(&node).unwrap() {
                let child = tree.lookup(&node, &Checked::new(&entry.name).unwrap()).unwrap().unwrap().0;
                todo.push((format!("{path}/{}", entry.name.escape_ascii()), child));
            }
        }
    }
    text
}

/// A path below a directory, from names.
pub(crate) fn below(dir: &std::path::Path, names: &[Name]) -> PathBuf {
    use std::os::unix::ffi::OsStrExt as _;
    names.iter().fold(dir.to_owned(), |path, name| path.join(std::ffi::OsStr::from_bytes(name)))
}

/// A layer in a real directory, which must be empty. Needs root.
pub(crate) fn on_disk(root: &std::path::Path, layer: &LayerSpec) {
    on_disk_as(root, layer, Dialect::Trusted);
}

/// A layer in a real directory, in a dialect.
pub(crate) fn on_disk_as(root: &std::path::Path, layer: &LayerSpec, dialect: Dialect) {
    let mark = |kind| mark_in(dialect, kind);
    let layer = &spelled(layer, dialect);
    use std::os::unix::ffi::OsStrExt as _;
    for (path, entry) in &layer.entries {
        let at = below(root, path);
        match &entry.what {
            What::Dir { opaque } => {
                std::fs::create_dir(&at).unwrap();
                if *opaque {
                    set_xattr(&at, mark(MarkKind::Opaque), b"y");
                } else if has_marked(layer, path) {
                    set_xattr(&at, mark(MarkKind::Opaque), b"x");
                }
            }
            What::File(data) => std::fs::write(&at, data).unwrap(),
            What::Symlink(target) => symlink(std::ffi::OsStr::from_bytes(target), &at).unwrap(),
            What::Fifo => mknod(&at, rustix::fs::FileType::Fifo),
            What::Whiteout => {
                mknod(&at, rustix::fs::FileType::CharacterDevice);
                continue;
            }
            What::MarkedWhiteout => {
                std::fs::write(&at, b"").unwrap();
                set_xattr(&at, mark(MarkKind::Whiteout), b"y");
                continue;
            }
            What::Hard(of) => {
                std::fs::hard_link(below(root, of), &at).unwrap();
                continue;
            }
        }
        std::os::unix::fs::lchown(&at, Some(entry.uid), Some(entry.gid)).unwrap();
        for (name, value) in &entry.xattrs {
            set_xattr(&at, name, value);
        }
        if !matches!(entry.what, What::Symlink(_)) {
            use std::os::unix::fs::PermissionsExt as _;
            std::fs::set_permissions(&at, std::fs::Permissions::from_mode(entry.mode)).unwrap();
        }
    }
    for (path, entry) in layer.entries.iter().rev() {
        set_mtime(&below(root, path), entry.mtime);
    }
    set_mtime(root, 1);
}

fn mknod(at: &std::path::Path, kind: rustix::fs::FileType) {
    rustix::fs::mknodat(rustix::fs::CWD, at, kind, rustix::fs::Mode::from(0o600), 0).unwrap();
}

fn set_xattr(at: &std::path::Path, name: &[u8], value: &[u8]) {
    rustix::fs::lsetxattr(at, name, value, rustix::fs::XattrFlags::empty()).unwrap();
}

pub(crate) fn set_mtime(at: &std::path::Path, sec: i64) {
    let time = rustix::fs::Timespec { tv_sec: sec, tv_nsec: 0 };
    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(rustix::fs::CWD, at, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
}
