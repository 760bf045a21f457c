//! Owners that show otherwise than they are on disk.

use plyfs_overlay::backend::{Tree, UpperTree};
use plyfs_overlay::{Caller, IdMap, IdRange, NewNode, OwnerMap, SetAttr, Union};
use plyfs_sys::Errno;
use plyfs_sys::at::XattrMode;

use crate::lab::{Layers, WRITE, errno, find, ino, name, on_both};

on_both! {
    owners_show_as_they_are_mapped_and_are_written_as_they_are
    who_is_mapped_from_nothing_makes_things_of_the_overflow_id
    owners_are_kept_through_copy_up_whatever_shows
    ids_in_attributes_are_mapped_with_owners
    a_setgid_directory_passes_on_its_group_through_a_map
}

const ACCESS: &[u8] = b"system.posix_acl_access";

fn shifted() -> OwnerMap {
    let map = IdMap::ranges(vec![IdRange { disk: 0, shown: 100_000, count: 1000 }]).unwrap();
    OwnerMap { uids: map.clone(), gids: map }
}

/// The root of the container that the map is for.
const INSIDE: Caller = Caller { uid: 100_000, gid: 100_000, pid: 0 };

fn owner<T: UpperTree>(union: &Union<T>, path: &str) -> (u32, u32) {
    let stat = find(union, path).unwrap().stat;
    (stat.uid, stat.gid)
}

fn chown<T: UpperTree>(union: &Union<T>, path: &str, uid: u32, gid: u32) -> plyfs_overlay::Result<()> {
    let set = SetAttr { uid: Some(uid), gid: Some(gid), ..SetAttr::default() };
    union.setattr(&INSIDE, ino(union, path), None, &set).map(drop)
}

/// The owner of an object without a map.
fn on_disk(layers: &impl Layers, path: &str) -> (u32, u32) {
    owner(&layers.mount(), path)
}

fn owners_show_as_they_are_mapped_and_are_written_as_they_are<L: Layers>() {
    let layers = L::new();
    {
        let plain = layers.mount();
        for (path, id) in [("a/f", 7), ("b/f", 1000)] {
            let set = SetAttr { uid: Some(id), gid: Some(id + 1), ..SetAttr::default() };
            plain.setattr(&crate::lab::ROOT, ino(&plain, path), None, &set).unwrap();
        }
    }
    {
        let union = layers.mount().with_owners(shifted());
        assert_eq!(owner(&union, "a"), (100_000, 100_000));
        assert_eq!((owner(&union, "a/f"), owner(&union, "b/f")), ((100_007, 100_008), (65534, 65534)));
        union.make(&INSIDE, ino(&union, "a"), &name("made"), NewNode::Dir, 0o755, 0).unwrap();
        let user = Caller { uid: 100_010, gid: 100_011, pid: 0 };
        let (attr, handle) = union.create(&user, ino(&union, "a"), &name("file"), 0o644, 0, true, WRITE).unwrap();
        assert_eq!((attr.stat.uid, attr.stat.gid), (100_010, 100_011));
        union.release(handle);
        chown(&union, "a/sub/g", 100_003, 100_004).unwrap();
        for (uid, gid) in [(3, 100_004), (100_003, 65534), (101_000, 100_000)] {
            assert_eq!(errno(chown(&union, "a/sub/g", uid, gid)), Errno::INVAL);
        }
        assert_eq!(errno(chown(&union, "a/sub/g", u32::MAX, 100_000)), Errno::OVERFLOW);
        assert_eq!(owner(&union, "a/sub/g"), (100_003, 100_004));
    }
    let paths = ["a/f", "b/f", "a/made", "a/file", "a/sub/g"].map(|path| on_disk(&layers, path));
    assert_eq!(paths, [(7, 8), (1000, 1001), (0, 0), (10, 11), (3, 4)]);
}

fn who_is_mapped_from_nothing_makes_things_of_the_overflow_id<L: Layers>() {
    let layers = L::new();
    {
        let union = layers.mount().with_owners(OwnerMap { uids: shifted().uids.with_overflow(77), gids: shifted().gids });
        let root = Caller { uid: 0, gid: 0, pid: 0 };
        union.make(&root, ino(&union, "a"), &name("mtab"), NewNode::Symlink(b"t".to_vec()), 0o777, 0).unwrap();
        union.make(&root, ino(&union, "a"), &name("dir"), NewNode::Dir, 0o755, 0).unwrap();
        // As podman does for the root of a container.
        chown(&union, "a/mtab", 100_000, 100_000).unwrap();
    }
    assert_eq!((on_disk(&layers, "a/mtab"), on_disk(&layers, "a/dir")), ((0, 0), (77, 65534)));
}

fn owners_are_kept_through_copy_up_whatever_shows<L: Layers>() {
    let layers = L::new();
    {
        let tree = layers.lower_to_fill();
        for (path, id) in [("a/f", 7), ("b/f", 5000), ("a/sub/g", 9)] {
            let down = |node: <L::Tree as Tree>::Node, part: &str| tree.lookup(&node, &name(part)).unwrap().unwrap().0;
            let node = path.split('/').fold(tree.root(), down);
            tree.set_owner(&node, Some(id), Some(id + 1)).unwrap();
        }
    }
    let chmod = |union: &Union<L::Tree>, path: &str| {
        let set = SetAttr { mode: Some(0o611), ..SetAttr::default() };
        union.setattr(&INSIDE, ino(union, path), None, &set).unwrap();
    };
    {
        let union = layers.mount().with_owners(shifted());
        chmod(&union, "a/f");
        chmod(&union, "b/f");
        assert_eq!((owner(&union, "a/f"), owner(&union, "b/f")), ((100_007, 100_008), (65534, 65534)));
    }
    {
        let union = layers.mount().with_owners(OwnerMap { uids: IdMap::squashed(55), gids: IdMap::squashed(66) });
        chmod(&union, "a/sub/g");
        // What is written is itself.
        let user = Caller { uid: 3000, gid: 3001, pid: 0 };
        for new in ["made", "given"] {
            union.make(&user, ino(&union, "b"), &name(new), NewNode::Dir, 0o755, 0).unwrap();
        }
        chown(&union, "b/given", 1005, 1006).unwrap();
        for path in ["a/f", "b", "b/f", "a/sub/g", "b/made", "b/given"] {
            assert_eq!(owner(&union, path), (55, 66), "{path}");
        }
    }
    let paths = ["a/f", "b/f", "a/sub/g", "b/made", "b/given"].map(|path| on_disk(&layers, path));
    assert_eq!(paths, [(7, 8), (5000, 5001), (9, 10), (3000, 3001), (1005, 1006)]);
}

fn acl(user: u32) -> Vec<u8> {
    let entry = |tag: u8, perm: u8, id: u32| [&[tag, 0, perm, 0][..], &id.to_le_bytes()].concat();
    let none = u32::MAX;
    [vec![2, 0, 0, 0], entry(1, 7, none), entry(2, 5, user), entry(4, 5, none), entry(16, 7, none), entry(32, 0, none)].concat()
}

fn ids_in_attributes_are_mapped_with_owners<L: Layers>() {
    let layers = L::new();
    {
        let union = layers.mount().with_owners(shifted());
        let f = ino(&union, "a/f");
        union.setxattr(&INSIDE, f, ACCESS, &acl(100_005), XattrMode::Any).unwrap();
        assert_eq!(union.getxattr(f, ACCESS).unwrap(), acl(100_005));
        assert_eq!(errno(union.setxattr(&INSIDE, f, ACCESS, &acl(5), XattrMode::Any)), Errno::INVAL);
    }
    let union = layers.mount();
    assert_eq!(union.getxattr(ino(&union, "a/f"), ACCESS).unwrap(), acl(5));
}

fn a_setgid_directory_passes_on_its_group_through_a_map<L: Layers>() {
    let layers = L::new();
    {
        let union = layers.mount().with_owners(shifted());
        chown(&union, "a", 100_000, 100_020).unwrap();
        let set = SetAttr { mode: Some(0o2775), ..SetAttr::default() };
        union.setattr(&INSIDE, ino(&union, "a"), None, &set).unwrap();
        let user = Caller { uid: 100_001, gid: 100_001, pid: 0 };
        let (attr, handle) = union.create(&user, ino(&union, "a"), &name("file"), 0o2755, 0, true, WRITE).unwrap();
        assert_eq!((attr.stat.uid, attr.stat.gid), (100_001, 100_020));
        union.release(handle);
        // A member of the group that shows keeps setgid without group execute; a stranger to it does not, be he in the group of that number on disk.
        for (gid, kept) in [(100_020, 0o2744), (20, 0o744)] {
            let set = SetAttr { mode: Some(0o2744), ..SetAttr::default() };
            union.setattr(&INSIDE, attr.node, None, &set).unwrap();
            let caller = Caller { uid: 100_001, gid, pid: 0 };
            union.setattr(&caller, attr.node, None, &SetAttr { size: Some(1), ..SetAttr::default() }).unwrap();
            assert_eq!(union.getattr(attr.node).unwrap().stat.mode, kept, "{gid}");
        }
    }
    assert_eq!(on_disk(&layers, "a/file"), (1, 20));
}
