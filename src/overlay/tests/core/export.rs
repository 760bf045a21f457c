use plyfs_overlay::backend::UpperTree;
use plyfs_overlay::{Attr, Ino, NewNode, SetAttr, Union};
use plyfs_sys::Errno;

use crate::lab::{Directories, Layers, Memory, ROOT, errno, ino, name, on_both, read, rename, write};

on_both! {
    a_file_handle_finds_the_same_object_over_copy_up_rename_and_remount
    a_file_handle_of_what_is_gone_is_stale
    a_file_handle_follows_directories_that_were_moved
    a_forged_file_handle_leads_nowhere_else
    a_read_only_union_has_file_handles
}

fn handle<T: UpperTree>(union: &Union<T>, path: &str) -> (Vec<u8>, Ino) {
    let ino = ino(union, path);
    (union.encode(ino).unwrap(), ino)
}

/// What a handle names; it is forgotten at once, but the number is good for a moment.
fn open<T: UpperTree>(union: &Union<T>, handle: &[u8]) -> Result<Attr, Errno> {
    union.decode(handle).map_err(|error| error.errno())
}

fn a_file_handle_finds_the_same_object_over_copy_up_rename_and_remount<L: Layers>() {
    const PATHS: [&str; 7] = ["a", "a/sub", "a/f", "a/sub/g", "b/f", "h1", "b/h2"];
    let layers = L::new();
    let union = layers.mount();
    let handles = PATHS.map(|path| handle(&union, path));
    let root = union.encode(Ino::ROOT).unwrap();
    let check = |union: &Union<L::Tree>, when: &str| {
        for (path, (handle, ino)) in PATHS.iter().zip(&handles) {
            let found = open(union, handle).unwrap_or_else(|errno| panic!("{when}: {path}: {errno}"));
            assert_eq!(found.node, *ino, "{when}: {path}");
        }
        assert_eq!(open(union, &root).unwrap().node, Ino::ROOT);
    };
    check(&union, "known");
    drop(union);
    let union = layers.mount();
    check(&union, "mounted again");
    write(&union, ino(&union, "a/f"), "new");
    write(&union, ino(&union, "b/h2"), "new");
    union.setattr(&ROOT, ino(&union, "a/sub"), None, &SetAttr { mode: Some(0o700), ..SetAttr::default() }).unwrap();
    check(&union, "copied up");
    for ((path, (handle, _)), ino) in PATHS.iter().zip(&handles).zip(PATHS.map(|path| ino(&union, path))) {
        if !path.contains('h') {
            assert_eq!(&union.encode(ino).unwrap(), handle, "{path}: another handle after the copy-up");
        }
    }
    drop(union);
    let union = layers.mount();
    check(&union, "copied up and mounted again");
    assert_eq!(read(&union, open(&union, &handles[2].0).unwrap().node), "new");
    assert_eq!(read(&union, open(&union, &handles[5].0).unwrap().node), "new");
    rename(&union, "a/f", "b/moved");
    rename(&union, "a/sub/g", "a/sub/g2");
    check(&union, "renamed");
    drop(union);
    let union = layers.mount();
    check(&union, "renamed and mounted again");
    assert_eq!(open(&union, &handles[2].0).unwrap().node, ino(&union, "b/moved"));
    // What was made in the upper, over the same.
    let made = union.make(&ROOT, ino(&union, "a"), &name("made"), NewNode::Dir, 0o755, 0).unwrap().node;
    union.make(&ROOT, made, &name("f"), NewNode::File, 0o644, 0).unwrap();
    let (dir, file) = (handle(&union, "a/made"), handle(&union, "a/made/f"));
    drop(union);
    let union = layers.mount();
    assert_eq!((open(&union, &dir.0).unwrap().node, open(&union, &file.0).unwrap().node), (dir.1, file.1));
    rename(&union, "a/made/f", "b/made-f");
    rename(&union, "a/made", "b/made");
    drop(union);
    let union = layers.mount();
    assert_eq!((open(&union, &dir.0).unwrap().node, open(&union, &file.0).unwrap().node), (dir.1, file.1));
    // Counted once each: with the look-ups taken back nothing but the root is in use.
    union.forget(dir.1, 1);
    union.forget(file.1, 1);
    assert_eq!(union.inodes(), 1);
}

fn a_file_handle_follows_directories_that_were_moved<L: Layers>() {
    let layers = L::new();
    let union = layers.mount();
    let (deep, sub, a) = (handle(&union, "a/sub/g"), handle(&union, "a/sub"), handle(&union, "a"));
    let shared = handle(&union, "h1");
    rename(&union, "a", "b/c");
    let moved = |union: &Union<L::Tree>, dir: &str, when: &str| {
        assert_eq!(open(union, &deep.0).map(|attr| attr.node), Ok(deep.1), "{when}");
        assert_eq!(open(union, &sub.0).map(|attr| attr.node), Ok(sub.1), "{when}");
        assert_eq!(open(union, &a.0).map(|attr| attr.node), Ok(a.1), "{when}");
        assert_eq!(ino(union, dir), sub.1);
    };
    moved(&union, "b/c/sub", "moved");
    drop(union);
    let union = layers.mount();
    moved(&union, "b/c/sub", "moved and mounted again");
    // A part of what was moved moves on, and another directory takes the old place.
    rename(&union, "b/c/sub", "sub");
    let other = union.make(&ROOT, Ino::ROOT, &name("a"), NewNode::Dir, 0o755, 0).unwrap().node;
    union.make(&ROOT, other, &name("sub"), NewNode::Dir, 0o755, 0).unwrap();
    drop(union);
    let union = layers.mount();
    moved(&union, "sub", "moved twice");
    // Of a file with several names one goes; the handle was made of that one.
    union.unlink(Ino::ROOT, &name("h1")).unwrap();
    drop(union);
    let union = layers.mount();
    assert_eq!(open(&union, &shared.0).map(|attr| attr.node), Ok(ino(&union, "b/h2")));
}

fn a_file_handle_of_what_is_gone_is_stale<L: Layers>() {
    let layers = L::new();
    let union = layers.mount();
    write(&union, ino(&union, "b/f"), "new");
    let made = union.make(&ROOT, ino(&union, "b"), &name("made"), NewNode::File, 0o644, 0).unwrap().node;
    let handles = ["a/f", "a/sub/g", "a/sub", "b/f", "b/made"].map(|path| handle(&union, path).0);
    // All look-ups are taken back, but for one of the file that was made.
    union.unlink(ino(&union, "a"), &name("f")).unwrap();
    union.unlink(ino(&union, "a/sub"), &name("g")).unwrap();
    union.rmdir(ino(&union, "a"), &name("sub")).unwrap();
    union.unlink(ino(&union, "b"), &name("f")).unwrap();
    union.unlink(ino(&union, "b"), &name("made")).unwrap();
    assert_eq!(open(&union, &handles[4]).map(|attr| (attr.node, attr.stat.nlink)), Ok((made, 0)), "in use without a name");
    drop(union);
    let union = layers.mount();
    for handle in &handles {
        assert_eq!(open(&union, handle), Err(Errno::STALE));
    }
    // The names come back as other objects.
    let a = ino(&union, "a");
    union.make(&ROOT, a, &name("sub"), NewNode::Dir, 0o755, 0).unwrap();
    union.make(&ROOT, a, &name("f"), NewNode::File, 0o644, 0).unwrap();
    for handle in &handles {
        assert_eq!(open(&union, handle), Err(Errno::STALE));
    }
}

fn a_forged_file_handle_leads_nowhere_else<L: Layers>() {
    let (layers, others) = (L::new(), L::new());
    let union = layers.mount();
    // Objects of the same filesystem outside of the layers; of `work` and `index`, and what a whiteout hides, inside of them.
    let foreign = {
        let other = others.mount();
        write(&other, ino(&other, "b/f"), "x");
        ["a", "a/sub", "a/f", "b/f", "h1"].map(|path| handle(&other, path).0)
    };
    if std::any::TypeId::of::<L::Tree>() == std::any::TypeId::of::<plyfs_overlay::DirTree>() {
        for handle in &foreign {
            assert_eq!(open(&union, handle), Err(Errno::STALE));
        }
    }
    let upper_root = {
        let mut handle = union.encode(ino(&union, "a")).unwrap();
        // "In the upper", though it is in the lower.
        handle[2 + 3] |= 4;
        handle
    };
    assert_eq!(open(&union, &upper_root), Err(Errno::STALE));
    // Every bit and every length of good handles: what is found is shown by the union.
    let known: Vec<Ino> =
        ["a", "a/sub", "a/f", "a/sub/g", "b", "b/f", "h1"].iter().map(|path| ino(&union, path)).chain([Ino::ROOT]).collect();
    for path in ["a/sub", "a/sub/g", "h1"] {
        let good = handle(&union, path).0;
        for len in 0..good.len() {
            let found = open(&union, &good[..len]);
            assert!(
                found.as_ref().map_or_else(|errno| *errno == Errno::STALE, |attr| known.contains(&attr.node)),
                "{path}[..{len}]: {found:?}"
            );
        }
        for bit in 0..good.len() * 8 {
            let mut forged = good.clone();
            forged[bit / 8] ^= 1 << (bit % 8);
            let found = open(&union, &forged);
            assert!(
                found.as_ref().map_or_else(|errno| *errno == Errno::STALE, |attr| known.contains(&attr.node)),
                "{path} bit {bit}: {found:?}"
            );
        }
    }
    assert_eq!(open(&union, &[]), Err(Errno::STALE));
}

fn a_read_only_union_has_file_handles<L: Layers>() {
    let layers = L::new();
    let union = layers.stack(false);
    let handles = ["a", "a/sub/g", "b/h2"].map(|path| handle(&union, path));
    drop(union);
    let union = layers.stack(false);
    for (handle, ino) in handles {
        assert_eq!(open(&union, &handle).unwrap().node, ino);
    }
}

#[test]
fn handles_of_another_filesystem_are_stale() {
    if plyfs_sys::process::effective_uid() != 0 {
        crate::skip::skip!("needs root");
    }
    let (memory, directories) = (Memory::new(), Directories::new());
    let (memory, directories) = (memory.mount(), directories.mount());
    let (a, b) = (handle(&memory, "a/f").0, handle(&directories, "a/f").0);
    assert_eq!((errno(directories.decode(&a)), errno(memory.decode(&b))), (Errno::STALE, Errno::STALE));
}
