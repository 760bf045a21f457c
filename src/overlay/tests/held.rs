//! Far more removed objects are held than descriptors can be had: the kernel holds by look-ups what processes hold by O_PATH descriptors, working directories and
//! mappings.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use plyfs_overlay::{Attr, Behaviour, Caller, DirTree, Ino, Layer, LayerStack, Name, NewNode, OpenFlags, RenameMode, SetAttr, Union};
use plyfs_sys::stat::Kind;

#[path = "../../../tests/common/skip.rs"]
mod skip;

const ME: Caller = Caller { uid: 0, gid: 0, pid: 1 };
const READ: OpenFlags = OpenFlags { read: true, write: false, truncate: false, append: false, exec: false };
const HELD: usize = 30_000;

struct Lab {
    dir: tempfile::TempDir,
}

impl Lab {
    fn new(lowers: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["upper", "work"].iter().chain(lowers) {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        Self { dir }
    }

    fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    fn union(&self, lowers: &[&str]) -> Union<DirTree> {
        let upper = Some(Layer::trusted(DirTree::upper(&self.path("upper"), &self.path("work")).unwrap()));
        let lowers = lowers.iter().map(|name| Layer::trusted(DirTree::lower(&self.path(name)).unwrap())).collect();
        let ids = std::fs::metadata(self.dir.path()).map(|meta| (meta.uid(), meta.gid()));
        Union::new(LayerStack { upper, lowers }, Behaviour { volatile: true, own_ids: ids.ok(), ..Behaviour::default() }).unwrap()
    }

    fn in_work(&self) -> usize {
        std::fs::read_dir(self.path("work/work")).unwrap().count()
    }
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn limit() -> usize {
    usize::try_from(plyfs_sys::limits::nofile().unwrap().0).unwrap()
}

fn name(kind: char, number: usize) -> Name {
    Name::new(format!("{kind}{number}")).unwrap()
}

fn write(union: &Union<DirTree>, ino: Ino, data: &[u8]) {
    let handle = union.open(&ME, ino, OpenFlags { write: true, ..READ }).unwrap();
    assert_eq!(union.write(&ME, handle, 0, data, false).unwrap(), data.len());
    union.release(handle);
}

fn read(union: &Union<DirTree>, ino: Ino) -> Vec<u8> {
    let handle = union.open(&ME, ino, READ).unwrap();
    let mut data = vec![0; 100];
    let got = union.read(handle, 0, &mut data).unwrap();
    union.release(handle);
    data.truncate(got);
    data
}

/// Everything that works on what is removed and held.
fn works(union: &Union<DirTree>, held: &Attr, number: usize) {
    let mode = 0o600 | u32::try_from(number % 64).unwrap();
    let set = SetAttr { mode: Some(mode), ..SetAttr::default() };
    assert_eq!(union.setattr(&ME, held.node, None, &set).unwrap().stat.mode, mode);
    let now = union.getattr(held.node).unwrap();
    assert_eq!((now.ino, now.stat.nlink, now.stat.mode), (held.ino, 0, mode), "{number}");
    if held.stat.kind == Kind::Dir {
        assert!(union.lookup(held.node, &name('x', 0)).unwrap().is_none());
        assert!(union.make(&ME, held.node, &name('x', 0), NewNode::File, 0o644, 0).is_err());
        return;
    }
    assert_eq!(read(union, held.node), number.to_string().into_bytes());
    write(union, held.node, b"x");
    assert_eq!(read(union, held.node)[0], b'x');
    assert_eq!(union.link(held.node, Ino::ROOT, &name('y', 0)).unwrap_err().errno(), plyfs_sys::Errno::NOENT);
}

#[test]
fn thirty_thousand_removed_files_and_directories_are_held() {
    let lab = Lab::new(&[]);
    let union = lab.union(&[]);
    let mut held = Vec::new();
    let target = union.make(&ME, Ino::ROOT, &name('t', 0), NewNode::File, 0o644, 0).unwrap();
    for number in 0..HELD {
        let (file, dir) = (name('f', number), name('d', number));
        let made = union.make(&ME, Ino::ROOT, &file, NewNode::File, 0o644, 0).unwrap();
        write(&union, made.node, number.to_string().as_bytes());
        match number % 3 {
            0 => union.unlink(Ino::ROOT, &file).unwrap(),
            // Replaced by another one.
            1 => {
                let by = name('b', number);
                union.forget(union.link(target.node, Ino::ROOT, &by).unwrap().node, 1);
                union.rename(Ino::ROOT, &by, Ino::ROOT, &file, RenameMode::Replace).unwrap();
                union.unlink(Ino::ROOT, &file).unwrap();
            }
            // One of two names went first.
            _ => {
                let other = name('o', number);
                union.forget(union.link(made.node, Ino::ROOT, &other).unwrap().node, 1);
                union.unlink(Ino::ROOT, &file).unwrap();
                assert_eq!(union.getattr(made.node).unwrap().stat.nlink, 1);
                union.unlink(Ino::ROOT, &other).unwrap();
            }
        }
        let made_dir = union.make(&ME, Ino::ROOT, &dir, NewNode::Dir, 0o755, 0).unwrap();
        union.rmdir(Ino::ROOT, &dir).unwrap();
        held.extend([(number, made), (number, made_dir)]);
    }
    let open = descriptors();
    assert!(open < limit() * 3 / 4 + 100, "{open} descriptors of {}", limit());
    assert!(lab.in_work() > HELD, "most of them are in work");
    // All are removed.
    union.unlink(Ino::ROOT, &name('t', 0)).unwrap();
    union.forget(target.node, 1);
    assert_eq!(std::fs::read_dir(lab.path("upper")).unwrap().count(), 0);
    for (number, attr) in held.iter().step_by(37) {
        works(&union, attr, *number);
    }
    for (_, attr) in held {
        union.forget(attr.node, 1);
    }
    assert_eq!((union.inodes(), lab.in_work()), (1, 0));
    assert!(descriptors() < open);
}

#[test]
fn removed_lower_objects_that_are_held_by_thousands_are_changed() {
    if std::fs::metadata("/proc/self").unwrap().uid() != 0 {
        skip::skip!("needs root");
    }
    const COUNT: usize = 5_000;
    let lab = Lab::new(&["lower"]);
    for number in 0..COUNT {
        std::fs::write(lab.path("lower").join(format!("f{number}")), number.to_string()).unwrap();
        std::fs::create_dir(lab.path("lower").join(format!("d{number}"))).unwrap();
    }
    let union = lab.union(&["lower"]);
    let mut held = Vec::new();
    for number in 0..COUNT {
        for kind in ['f', 'd'] {
            let name = name(kind, number);
            let attr = union.lookup(Ino::ROOT, &name).unwrap().unwrap();
            if number % 2 == 0 {
                // Copied up before it goes; half of the directories with whiteouts in them.
                union.setattr(&ME, attr.node, None, &SetAttr { mode: Some(0o700), ..SetAttr::default() }).unwrap();
            }
            if kind == 'f' { union.unlink(Ino::ROOT, &name) } else { union.rmdir(Ino::ROOT, &name) }.unwrap();
            assert!(union.lookup(Ino::ROOT, &name).unwrap().is_none());
            held.push((number, attr));
        }
    }
    for (number, attr) in held.iter().filter(|(number, attr)| attr.stat.kind == Kind::Dir || number % 2 == 0) {
        works(&union, attr, *number);
    }
    for (_, attr) in held {
        union.forget(attr.node, 1);
    }
    assert_eq!((union.inodes(), lab.in_work()), (1, 0));
}
