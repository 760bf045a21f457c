use plyfs_format::Dialect;
use plyfs_sys::at::{SetTime, XattrMode};

use super::*;
use crate::backend::{MemFs, MemTree, Place};
use crate::{Attr, Behaviour, Caller, ChangeOptions, HandleId, Ino, Layer, LayerStack, NewNode, OpenFlags, RenameMode, SetAttr};

const ROOT: Caller = Caller { uid: 0, gid: 0, pid: 1 };
const READ: OpenFlags = OpenFlags { read: true, write: false, truncate: false, append: false, exec: false };
const WRITE: OpenFlags = OpenFlags { read: true, write: true, truncate: false, append: false, exec: false };
const OLD: Time = Time { sec: 5, nsec: 6 };

type Node = <MemTree as Tree>::Node;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn mark(kind: MarkKind) -> &'static [u8] {
    xattr_name(Dialect::Trusted, kind).unwrap()
}

/// Layers in memory: an upper, and lowers of which the last `data` are data-only.
struct Lab {
    upper: MemTree,
    lowers: Vec<MemTree>,
    data: usize,
}

impl Lab {
    fn new(lowers: usize, data: usize) -> Self {
        let fs = MemFs::new(7);
        Self { upper: fs.tree(), lowers: (0..lowers + data).map(|_| fs.tree()).collect(), data }
    }

    fn union(&self) -> Union<MemTree> {
        let merged = self.lowers.len() - self.data;
        let layer =
            |(index, tree): (usize, &MemTree)| if index < merged { Layer::trusted(tree.clone()) } else { Layer::data_only(tree.clone()) };
        let lowers = self.lowers.iter().enumerate().map(layer).collect();
        let behaviour = Behaviour { metacopy: true, ..Behaviour::default() };
        Union::new(LayerStack { upper: Some(Layer::trusted(self.upper.clone())), lowers }, behaviour).unwrap()
    }
}

/// A directory on a path, made if need be.
fn dir(tree: &MemTree, path: &str) -> Node {
    path.split('/').filter(|part| !part.is_empty()).fold(tree.root(), |at, part| {
        let part = name(part);
        match tree.lookup(&at, &part).unwrap() {
            Some((node, _)) => node,
            None => tree.mkdir(Place { dir: &at, name: &part }, 0o755).unwrap(),
        }
    })
}

fn find(tree: &MemTree, path: &str) -> Node {
    let (above, last) = path.rsplit_once('/').unwrap_or(("", path));
    tree.lookup(&dir(tree, above), &name(last)).unwrap().unwrap().0
}

fn file(tree: &MemTree, path: &str, data: &[u8]) -> Node {
    let (above, last) = path.rsplit_once('/').unwrap_or(("", path));
    let (node, file) = tree.create(Place { dir: &dir(tree, above), name: &name(last) }, 0o644).unwrap();
    tree.write(&file, data, 0).unwrap();
    tree.set_times(&node, SetTime::To(OLD), SetTime::To(OLD)).unwrap();
    node
}

/// A metacopy of `size` bytes, with a redirect if there is one.
fn metacopy(tree: &MemTree, path: &str, size: u64, redirect: Option<&str>) -> Node {
    let node = file(tree, path, b"");
    tree.truncate(&tree.open_write(&node).unwrap(), size).unwrap();
    tree.set_xattr(&node, mark(MarkKind::Metacopy), b"", XattrMode::Any).unwrap();
    if let Some(redirect) = redirect {
        tree.set_xattr(&node, mark(MarkKind::Redirect), redirect.as_bytes(), XattrMode::Any).unwrap();
    }
    tree.set_times(&node, SetTime::To(OLD), SetTime::To(OLD)).unwrap();
    node
}

fn lookup(union: &Union<MemTree>, path: &str) -> Result<Attr> {
    let mut at = union.getattr(Ino::ROOT)?;
    for part in path.split('/') {
        at = union.lookup(at.node, &name(part))?.ok_or(Error::NotFound)?;
    }
    Ok(at)
}

fn read_all(union: &Union<MemTree>, handle: HandleId) -> Vec<u8> {
    let mut data = vec![0; 64];
    let got = union.read(handle, 0, &mut data).unwrap();
    data.truncate(got);
    data
}

fn content(union: &Union<MemTree>, path: &str) -> Result<Vec<u8>> {
    let handle = union.open(&ROOT, lookup(union, path)?.node, READ)?;
    let data = read_all(union, handle);
    union.release(handle);
    Ok(data)
}

fn write(union: &Union<MemTree>, path: &str, data: &[u8]) {
    let handle = union.open(&ROOT, lookup(union, path).unwrap().node, WRITE).unwrap();
    union.write(&ROOT, handle, 0, data, false).unwrap();
    union.release(handle);
}

fn chmod(union: &Union<MemTree>, path: &str, mode: u32) {
    let ino = lookup(union, path).unwrap().node;
    union.setattr(&ROOT, ino, None, &SetAttr { mode: Some(mode), ..SetAttr::default() }).unwrap();
}

fn is_marked(tree: &MemTree, path: &str, kind: MarkKind) -> bool {
    tree.get_xattr(&find(tree, path), mark(kind)).unwrap().is_some()
}

fn own_bytes(tree: &MemTree, path: &str) -> Vec<u8> {
    let mut data = vec![0; 64];
    let got = tree.read(&find(tree, path), &mut data, 0).unwrap();
    data.truncate(got);
    data
}

#[test]
fn a_change_of_metadata_leaves_the_data_below_until_it_is_written() {
    let lab = Lab::new(1, 0);
    file(&lab.lowers[0], "f", b"lower");
    let union = lab.union();
    let reader = union.open(&ROOT, lookup(&union, "f").unwrap().node, READ).unwrap();
    chmod(&union, "f", 0o600);
    let attr = lookup(&union, "f").unwrap();
    assert_eq!((attr.stat.mode, attr.stat.size, attr.stat.mtime), (0o600, 5, OLD));
    assert!(is_marked(&lab.upper, "f", MarkKind::Metacopy));
    assert_eq!(own_bytes(&lab.upper, "f"), [0; 5], "no byte of data is in the upper");
    assert_eq!((read_all(&union, reader), content(&union, "f").unwrap()), (b"lower".to_vec(), b"lower".to_vec()));
    union.fsync(reader, false).unwrap();
    // Opened for writing it is whole, and nothing that shows has changed.
    let writer = union.open(&ROOT, attr.node, WRITE).unwrap();
    assert!(!is_marked(&lab.upper, "f", MarkKind::Metacopy) && !is_marked(&lab.upper, "f", MarkKind::Before));
    assert_eq!(own_bytes(&lab.upper, "f"), b"lower");
    assert_eq!(lookup(&union, "f").unwrap().stat.mtime, OLD);
    union.write(&ROOT, writer, 0, b"W", false).unwrap();
    assert_eq!((read_all(&union, reader), own_bytes(&lab.lowers[0], "f")), (b"Wower".to_vec(), b"lower".to_vec()));
}

#[test]
fn truncation_link_and_rename_find_a_metacopy_whole() {
    let lab = Lab::new(1, 0);
    for path in ["cut", "short", "linked", "moved", "here", "there"] {
        file(&lab.lowers[0], path, b"lower");
    }
    let union = lab.union();
    for path in ["cut", "short", "linked", "moved", "here", "there"] {
        chmod(&union, path, 0o600);
    }
    for (path, size) in [("cut", 0), ("short", 2)] {
        let set = SetAttr { size: Some(size), ..SetAttr::default() };
        union.setattr(&ROOT, lookup(&union, path).unwrap().node, None, &set).unwrap();
    }
    union.link(lookup(&union, "linked").unwrap().node, Ino::ROOT, &name("link")).unwrap();
    union.make(&ROOT, Ino::ROOT, &name("d"), NewNode::Dir, 0o755, 0).unwrap();
    let sub = lookup(&union, "d").unwrap().node;
    union.rename(Ino::ROOT, &name("moved"), sub, &name("m"), RenameMode::Replace).unwrap();
    union.rename(Ino::ROOT, &name("here"), Ino::ROOT, &name("there"), RenameMode::Exchange).unwrap();
    for union in [&union, &lab.union()] {
        for (path, data) in [
            ("cut", &b""[..]),
            ("short", b"lo"),
            ("linked", b"lower"),
            ("link", b"lower"),
            ("d/m", b"lower"),
            ("here", b"lower"),
            ("there", b"lower"),
        ] {
            assert_eq!(content(union, path).unwrap(), data, "{path}");
            assert!(!is_marked(&lab.upper, path, MarkKind::Metacopy), "{path}");
        }
    }
}

#[test]
fn the_data_of_a_metacopy_is_found_wherever_its_redirects_lead() {
    let lab = Lab::new(4, 2);
    let [top, second, third, bottom, far, farther] = &lab.lowers[..] else { unreachable!() };
    // By name, over two more metacopies.
    metacopy(top, "d/name", 4, None);
    metacopy(second, "d/name", 4, None);
    file(third, "d/name", b"name");
    // To a sibling, and from there by path; the name that it has is somebody else's.
    metacopy(top, "d/sibling", 4, Some("other"));
    metacopy(second, "d/other", 4, Some("/e/deep"));
    file(third, "d/other", b"oops");
    file(bottom, "e/deep", b"deep");
    // Into data-only layers, of which the first has a directory there.
    metacopy(top, "far", 4, Some("/o/1/x"));
    dir(far, "o/1/x");
    file(farther, "o/1/x", b"far!");
    metacopy(top, "lost", 4, Some("/o/1/lost"));
    file(farther, "not-shown", b"");
    // The marks in data-only layers mean nothing.
    metacopy(top, "marked", 4, Some("/o/2"));
    metacopy(farther, "o/2", 4, Some("/o/1/x"));
    let union = lab.union();
    for (path, data) in [("d/name", &b"name"[..]), ("d/sibling", b"deep"), ("far", b"far!"), ("marked", &[0; 4])] {
        assert_eq!(content(&union, path).unwrap(), data, "{path}");
    }
    assert_eq!(lookup(&union, "not-shown").unwrap_err().errno(), Errno::NOENT);
    // As in the kernel: a far object is missed when it is opened.
    assert_eq!(lookup(&union, "lost").unwrap().stat.size, 4);
    assert_eq!(content(&union, "lost").unwrap_err().errno(), Errno::NOENT);
    // All of them are written to, at once or by way of a metacopy of the upper.
    for path in ["d/name", "d/sibling", "far"] {
        chmod(&union, path, 0o600);
        assert!(is_marked(&lab.upper, path, MarkKind::Metacopy), "{path}");
    }
    let before = content(&lab.union(), "d/sibling").unwrap();
    for path in ["d/name", "d/sibling", "far"] {
        write(&union, path, b"W");
    }
    write(&union, "marked", b"W");
    for union in [&union, &lab.union()] {
        for (path, data) in [("d/name", &b"Wame"[..]), ("d/sibling", b"Weep"), ("far", b"War!"), ("marked", b"W\0\0\0")] {
            assert_eq!(content(union, path).unwrap(), data, "{path}");
        }
    }
    assert_eq!(before, b"deep");
}

#[test]
fn a_metacopy_without_data_is_an_error_and_never_zeros() {
    let lab = Lab::new(3, 0);
    let [top, second, bottom] = &lab.lowers[..] else { unreachable!() };
    metacopy(top, "nothing", 4, None);
    metacopy(top, "hidden", 4, None);
    second.whiteout(Place { dir: &second.root(), name: &name("hidden") }).unwrap();
    file(bottom, "hidden", b"data");
    metacopy(top, "dir", 4, None);
    dir(second, "dir");
    metacopy(&lab.upper, "upper", 4, Some("/gone"));
    let union = lab.union();
    for path in ["nothing", "hidden", "dir", "upper"] {
        assert_eq!(lookup(&union, path).unwrap_err().errno(), Errno::IO, "{path}");
    }
    // A directory that has such a file is listed all the same.
    let root = lab.upper.root();
    lab.upper.set_xattr(&root, mark(MarkKind::Impure), b"y", XattrMode::Any).unwrap();
    let handle = union.opendir(Ino::ROOT).unwrap();
    let mut listed = Vec::new();
    union
        .readdir(handle, 0, &mut |entry| {
            listed.push(entry.name.to_vec());
            true
        })
        .unwrap();
    union.release(handle);
    assert!(listed.contains(&b"upper".to_vec()) && listed.contains(&b"nothing".to_vec()));
    // An empty one needs none, and is written to as any other.
    metacopy(&lab.upper, "empty", 0, None);
    file(bottom, "empty", b"old bytes");
    assert_eq!(content(&union, "empty").unwrap(), b"");
    write(&union, "empty", b"new");
    assert_eq!(content(&lab.union(), "empty").unwrap(), b"new");
}

#[test]
fn a_metacopy_over_another_file_than_its_origin_is_refused() {
    let lab = Lab::new(1, 0);
    file(&lab.lowers[0], "f", b"mine!");
    file(&lab.lowers[0], "g", b"other");
    chmod(&lab.union(), "f", 0o600);
    let root = lab.upper.root();
    lab.upper
        .rename(Place { dir: &root, name: &name("f") }, None, Place { dir: &root, name: &name("g") }, None, Default::default())
        .unwrap();
    assert_eq!(lookup(&lab.union(), "g").unwrap_err().errno(), Errno::STALE);
}

#[test]
fn a_file_of_two_layers_is_copied_up_with_the_upper_ones_metadata() {
    let lab = Lab::new(2, 0);
    let meta = metacopy(&lab.lowers[0], "f", 4, None);
    lab.lowers[0].set_owner(&meta, Some(3), Some(4)).unwrap();
    lab.lowers[0].set_mode(&meta, 0o600).unwrap();
    lab.lowers[0].set_xattr(&meta, b"user.a", b"top", XattrMode::Any).unwrap();
    let data = file(&lab.lowers[1], "f", b"data");
    lab.lowers[1].set_times(&data, SetTime::Now, SetTime::Now).unwrap();
    let union = lab.union();
    let handle = union.open(&ROOT, lookup(&union, "f").unwrap().node, WRITE).unwrap();
    let stat = lab.upper.stat(&find(&lab.upper, "f")).unwrap();
    assert_eq!((stat.mode, stat.uid, stat.gid, stat.mtime), (0o600, 3, 4, OLD));
    assert_eq!(lab.upper.get_xattr(&find(&lab.upper, "f"), b"user.a").unwrap().as_deref(), Some(&b"top"[..]));
    assert_eq!(read_all(&union, handle), b"data");
}

/// What a server leaves that is killed while data comes into a metacopy.
fn killed_half_way(lab: &Lab) {
    file(&lab.lowers[0], "f", b"lower");
    let union = lab.union();
    chmod(&union, "f", 0o4755);
    let ino = lookup(&union, "f").unwrap().node;
    union.setxattr(&ROOT, ino, CAPABILITY, b"cap", XattrMode::Any).unwrap();
    let node = find(&lab.upper, "f");
    let (old, stat) = (moment(OLD), lab.upper.stat(&node).unwrap());
    let capability = Some(b"cap".to_vec());
    let before = Before { atime: old, mtime: old, ctime: moment(stat.ctime), mode: 0o4755, uid: stat.uid, gid: stat.gid, capability };
    lab.upper.set_xattr(&node, mark(MarkKind::Before), &before.encode(), XattrMode::Any).unwrap();
    lab.upper.write(&node, b"XX", 1).unwrap();
    lab.upper.remove_xattr(&node, CAPABILITY).unwrap();
    lab.upper.set_mode(&node, 0o755).unwrap();
}

#[test]
fn data_that_came_in_part_before_a_kill_does_not_show() {
    let lab = Lab::new(1, 0);
    killed_half_way(&lab);
    let union = lab.union();
    for _ in 0..2 {
        let attr = lookup(&union, "f").unwrap();
        assert_eq!((attr.stat.mode, attr.stat.mtime), (0o4755, OLD));
        assert_eq!(union.getattr(attr.node).unwrap().stat, attr.stat);
        assert_eq!(union.getxattr(attr.node, CAPABILITY).unwrap(), b"cap");
        assert!(union.listxattr(attr.node).unwrap().contains(&CAPABILITY.to_vec()));
    }
    assert_eq!(content(&union, "f").unwrap(), b"lower");
    write(&union, "f", b"W");
    for union in [&union, &lab.union()] {
        assert_eq!(content(union, "f").unwrap(), b"Wower");
        let attr = lookup(union, "f").unwrap();
        assert_eq!((attr.stat.mode, union.getxattr(attr.node, CAPABILITY).unwrap()), (0o4755, b"cap".to_vec()));
    }
}

#[test]
fn what_is_changed_after_a_kill_is_not_put_back() {
    let lab = Lab::new(1, 0);
    killed_half_way(&lab);
    let union = lab.union();
    let ino = lookup(&union, "f").unwrap().node;
    union.removexattr(ino, CAPABILITY).unwrap();
    let new = Time { sec: 77, nsec: 0 };
    union.setattr(&ROOT, ino, None, &SetAttr { mode: Some(0o700), mtime: SetTime::To(new), ..SetAttr::default() }).unwrap();
    let handle = union.open(&ROOT, ino, WRITE).unwrap();
    for union in [&union, &lab.union()] {
        let attr = lookup(union, "f").unwrap();
        assert_eq!((attr.stat.mode, attr.stat.mtime), (0o700, new));
        assert_eq!(union.getxattr(attr.node, CAPABILITY).unwrap_err().errno(), Errno::NODATA);
        assert_eq!(content(union, "f").unwrap(), b"lower");
    }
    union.release(handle);
}

/// A change by kernel overlayfs, on the layers.
type Change<'a> = &'a dyn Fn(&MemTree, &Node) -> plyfs_sys::Result<()>;

#[test]
fn what_another_changed_after_a_kill_stays_as_it_is() {
    let set_times = |tree: &MemTree, node: &Node| {
        let time = SetTime::To(Time { sec: 1, nsec: 0 });
        tree.set_times(node, time, time)
    };
    let changes: [Change<'_>; 5] = [
        &|tree, node| tree.set_mode(node, 0o711),
        &|tree, node| tree.set_owner(node, Some(7), None),
        &|tree, node| tree.set_owner(node, None, Some(7)),
        &set_times,
        &|tree, node| tree.set_xattr(node, CAPABILITY, b"new", XattrMode::Any),
    ];
    for (index, change) in changes.iter().enumerate() {
        let lab = Lab::new(1, 0);
        killed_half_way(&lab);
        let node = find(&lab.upper, "f");
        change(&lab.upper, &node).unwrap();
        let (now, capability) = (lab.upper.stat(&node).unwrap(), lab.upper.get_xattr(&node, CAPABILITY).unwrap());
        let union = lab.union();
        let shows = |union: &Union<MemTree>| {
            let attr = lookup(union, "f").unwrap();
            let stat = attr.stat;
            assert_eq!((stat.mode, stat.uid, stat.gid, stat.mtime), (now.mode, now.uid, now.gid, now.mtime), "change {index}");
            assert_eq!(union.getattr(attr.node).unwrap().stat, stat);
            assert_eq!(union.getxattr(attr.node, CAPABILITY).ok(), capability, "change {index}");
            assert_eq!(content(union, "f").unwrap(), b"lower");
        };
        shows(&union);
        let ino = lookup(&union, "f").unwrap().node;
        union.setxattr(&ROOT, ino, b"user.a", b"b", XattrMode::Any).unwrap();
        assert!(!is_marked(&lab.upper, "f", MarkKind::Before));
        shows(&union);
        union.release(union.open(&ROOT, ino, WRITE).unwrap());
        shows(&union);
        shows(&lab.union());
    }
}

#[test]
fn a_mark_that_was_read_before_the_data_came_is_read_again() {
    let lab = Lab::new(1, 0);
    file(&lab.lowers[0], "f", b"lower");
    chmod(&lab.union(), "f", 0o600);
    let union = lab.union();
    // A look-up that has seen the mark, and is overtaken by an open for writing whose inode is forgotten again.
    let found = union.resolve(&union.root, &name("f")).unwrap().found().unwrap();
    assert!(!found.new.upper_data);
    let ino = lookup(&union, "f").unwrap().node;
    write(&union, "f", b"W");
    union.forget(ino, 2);
    assert!(union.table.get(ino).is_none());
    let inode = union.intern(&union.root, &name("f"), found.new);
    assert!(!inode.lacks_data());
    assert_eq!(content(&union, "f").unwrap(), b"Wower");
    write(&union, "f", b"X");
    assert_eq!(content(&union, "f").unwrap(), b"Xower");
}

#[test]
fn the_diff_of_a_metacopy_is_that_of_its_metadata() {
    let lab = Lab::new(2, 0);
    metacopy(&lab.lowers[0], "same", 4, None);
    file(&lab.lowers[1], "same", b"data");
    file(&lab.lowers[1], "mode", b"data");
    file(&lab.lowers[1], "back", b"data");
    let union = lab.union();
    chmod(&union, "same", 0o644);
    chmod(&union, "mode", 0o600);
    chmod(&union, "back", 0o600);
    chmod(&union, "back", 0o644);
    let changes = |union: &Union<MemTree>| {
        union.changes(&ChangeOptions::default()).unwrap().into_iter().map(|change| change.path).collect::<Vec<_>>()
    };
    assert_eq!(changes(&union), [b"/mode"]);
    // The same bytes in the upper are no change either.
    let ino = lookup(&union, "same").unwrap().node;
    union.release(union.open(&ROOT, ino, WRITE).unwrap());
    assert_eq!(changes(&union), [b"/mode"]);
}
