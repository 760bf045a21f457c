//! Layers in memory and in real directories, with the same content below:
//!
//! | path | is |
//! | --- | --- |
//! | `a`, `a/sub`, `b` | directories |
//! | `a/f`, `a/sub/g`, `b/f` | files with their own paths in them |
//! | `h1`, `b/h2` | names of one file |

use std::sync::Arc;

use plyfs_overlay::backend::{Place, UpperTree};
use plyfs_overlay::{Attr, Behaviour, Caller, DirTree, HandleId, Ino, Layer, LayerStack, MemFs, MemTree, Name, OpenFlags, Result, Union};
use plyfs_sys::Errno;
use tempfile::TempDir;

pub(crate) const ROOT: Caller = Caller { uid: 0, gid: 0, pid: 1 };
pub(crate) const USER: Caller = Caller { uid: 1000, gid: 1001, pid: 2 };
pub(crate) const WRITE: OpenFlags = OpenFlags { read: true, write: true, truncate: false, append: false, exec: false };

/// What a test runs on. A union must be dropped before the layers are mounted again.
pub(crate) trait Layers {
    type Tree: UpperTree;
    /// Layers with the content of the table.
    fn new() -> Self;
    /// The upper layer; locked until it is dropped.
    fn upper(&self) -> Self::Tree;
    fn lower(&self) -> Self::Tree;
    /// The lower layer, to be changed while nothing is mounted.
    fn lower_to_fill(&self) -> Self::Tree;

    fn stack(&self, writable: bool) -> Union<Self::Tree> {
        let upper = writable.then(|| Layer::trusted(self.upper()));
        Union::new(LayerStack { upper, lowers: [Layer::trusted(self.lower())].into() }, Behaviour::default()).unwrap()
    }

    fn mount(&self) -> Union<Self::Tree> {
        self.stack(true)
    }
}

pub(crate) struct Memory {
    upper: MemTree,
    lower: MemTree,
}

impl Layers for Memory {
    type Tree = MemTree;

    fn new() -> Self {
        let fs: Arc<MemFs> = MemFs::new(7);
        let layers = Self { lower: fs.tree(), upper: fs.tree() };
        fill(&layers.lower);
        layers
    }

    fn upper(&self) -> MemTree {
        self.upper.clone()
    }

    fn lower(&self) -> MemTree {
        self.lower.clone()
    }

    fn lower_to_fill(&self) -> MemTree {
        self.lower.clone()
    }
}

pub(crate) struct Directories {
    dir: TempDir,
}

impl Layers for Directories {
    type Tree = DirTree;

    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        for name in ["lower", "upper", "work", "scratch"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let layers = Self { dir };
        fill(&layers.lower_to_fill());
        layers
    }

    fn upper(&self) -> DirTree {
        DirTree::upper(&self.dir.path().join("upper"), &self.dir.path().join("work")).unwrap()
    }

    fn lower(&self) -> DirTree {
        DirTree::lower(&self.dir.path().join("lower")).unwrap()
    }

    fn lower_to_fill(&self) -> DirTree {
        DirTree::upper(&self.dir.path().join("lower"), &self.dir.path().join("scratch")).unwrap()
    }
}

fn fill<T: UpperTree>(tree: &T) {
    let root = tree.root();
    let dir = |at: &T::Node, name: &str| tree.mkdir(Place { dir: at, name: &self::name(name) }, 0o755).unwrap();
    let file = |at: &T::Node, name: &str, data: &str| {
        let (node, file) = tree.create(Place { dir: at, name: &self::name(name) }, 0o640).unwrap();
        tree.write(&file, data.as_bytes(), 0).unwrap();
        node
    };
    let (a, b) = (dir(&root, "a"), dir(&root, "b"));
    let sub = dir(&a, "sub");
    file(&a, "f", "a/f");
    file(&sub, "g", "a/sub/g");
    file(&b, "f", "b/f");
    let linked = file(&root, "h1", "h");
    tree.link(&linked, Place { dir: &b, name: &name("h2") }).unwrap();
}

/// The test on both kinds of layers, as two tests.
macro_rules! on_both {
    ($($test:ident)*) => {
        mod memory {
            $(#[test]
            fn $test() {
                super::$test::<crate::lab::Memory>();
            })*
        }
        mod directories {
            $(#[test]
            fn $test() {
                if plyfs_sys::process::effective_uid() != 0 {
                    crate::skip::skip!("needs root");
                }
                super::$test::<crate::lab::Directories>();
            })*
        }
    };
}
pub(crate) use on_both;

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// Looks a path up; counts one look-up of what it means.
pub(crate) fn find<T: UpperTree>(union: &Union<T>, path: &str) -> Option<Attr> {
    let mut at: Option<Attr> = None;
    for part in path.split('/') {
        let dir = at.as_ref().map_or(Ino::ROOT, |attr| attr.node);
        let next = union.lookup(dir, &name(part)).unwrap();
        if let Some(dir) = at {
            union.forget(dir.node, 1);
        }
        at = Some(next?);
    }
    at
}

/// The inode of a path that is there.
pub(crate) fn ino<T: UpperTree>(union: &Union<T>, path: &str) -> Ino {
    find(union, path).unwrap_or_else(|| panic!("{path} is not there")).node
}

pub(crate) fn rename<T: UpperTree>(union: &Union<T>, from: &str, to: &str) {
    let split = |path: &str| match path.rsplit_once('/') {
        Some((dir, last)) => (ino(union, dir), name(last)),
        None => (Ino::ROOT, name(path)),
    };
    let ((dir, old), (to, new)) = (split(from), split(to));
    union.rename(dir, &old, to, &new, plyfs_overlay::RenameMode::Replace).unwrap();
}

pub(crate) fn write<T: UpperTree>(union: &Union<T>, ino: Ino, data: &str) {
    let handle = union.open(&ROOT, ino, WRITE).unwrap();
    union.write(&ROOT, handle, 0, data.as_bytes(), false).unwrap();
    union.release(handle);
}

pub(crate) fn read_all<T: UpperTree>(union: &Union<T>, handle: HandleId) -> String {
    let mut data = [0; 64];
    let len = union.read(handle, 0, &mut data).unwrap();
    data[..len].escape_ascii().to_string()
}

pub(crate) fn read<T: UpperTree>(union: &Union<T>, ino: Ino) -> String {
    let handle = union.open(&ROOT, ino, OpenFlags { read: true, ..OpenFlags::default() }).unwrap();
    let data = read_all(union, handle);
    union.release(handle);
    data
}

/// The errno of an answer that must be an error.
pub(crate) fn errno<R>(answer: Result<R>) -> Errno {
    answer.err().expect("an error").errno()
}
