//! Cookies and caches of directories, over memory layers.

use plyfs_format::{Dialect, OVERRIDE_STAT};
use plyfs_sys::Errno;
use plyfs_sys::at::XattrMode;

use crate::backend::{Tree, UpperTree};
use crate::{Behaviour, Caller, Ino, Layer, LayerStack, MemFs, MemTree, Name, NewNode, OpenFlags, Union};

const ROOT: Caller = Caller { uid: 0, gid: 0, pid: 1 };

fn union() -> Union<MemTree> {
    let fs = MemFs::new(7);
    let stack = LayerStack { upper: Some(Layer::trusted(fs.tree())), lowers: vec![Layer::trusted(fs.tree())].into() };
    Union::new(stack, Behaviour::default()).unwrap()
}

fn make(union: &Union<MemTree>, name: &str) {
    union.make(&ROOT, Ino::ROOT, &Name::new(name).unwrap(), NewNode::File, 0o644, 0).unwrap();
}

/// Names and cookies in the order in which they come.
fn entries(union: &Union<MemTree>, after: u64) -> Vec<(String, u64)> {
    let handle = union.opendir(Ino::ROOT).unwrap();
    let mut entries = Vec::new();
    union
        .readdir(handle, after, &mut |entry| {
            entries.push((String::from_utf8(entry.name.to_vec()).unwrap(), entry.cookie));
            true
        })
        .unwrap();
    union.release(handle);
    entries
}

#[test]
fn a_reading_ends_with_what_was_there_when_it_began() {
    let union = union();
    make(&union, "first");
    let handle = union.opendir(Ino::ROOT).unwrap();
    let (mut count, mut cookie) = (0, 0);
    loop {
        let before = cookie;
        union
            .readdir(handle, cookie, &mut |entry| {
                if cookie != before {
                    return false;
                }
                cookie = entry.cookie;
                true
            })
            .unwrap();
        if cookie == before {
            break;
        }
        count += 1;
        make(&union, &format!("n{count}"));
        assert!(count < 100, "the reading does not end");
    }
    assert_eq!(count, 3, "., .. and the one file");
    union.release(handle);
    assert_eq!(entries(&union, 0).len(), 3 + count);
}

#[test]
fn cookies_stay_while_somebody_reads_and_caches_are_dropped_when_they_do_not() {
    let union = union();
    for name in ["a", "b", "c"] {
        make(&union, name);
    }
    let handle = union.opendir(Ino::ROOT).unwrap();
    assert!(!union.may_keep_entries(Ino::ROOT), "entries were made since the last list");
    let before = entries(&union, 0);
    union.unlink(Ino::ROOT, &Name::new("a").unwrap()).unwrap();
    make(&union, "d");
    let after = entries(&union, 0);
    for (name, cookie) in &before {
        assert!(name == "a" || after.contains(&(name.clone(), *cookie)), "{name} has another cookie");
    }
    let second = union.opendir(Ino::ROOT).unwrap();
    assert!(union.may_keep_entries(Ino::ROOT), "the list goes on");
    union.release(second);
    union.release(handle);
    let third = union.opendir(Ino::ROOT).unwrap();
    assert!(!union.may_keep_entries(Ino::ROOT), "the list was changed and is made anew");
    union.release(third);
    let fourth = union.opendir(Ino::ROOT).unwrap();
    assert!(union.may_keep_entries(Ino::ROOT), "nothing changed since");
    union.release(fourth);
}

#[test]
fn a_copy_up_may_renumber_a_directory() {
    let fs = MemFs::new(7);
    let lower = fs.tree();
    {
        // The lower is filled as the upper of a union of its own.
        let stack = LayerStack { upper: Some(Layer::trusted(lower.clone())), lowers: Box::default() };
        let filler = Union::new(stack, Behaviour::default()).unwrap();
        make(&filler, "x");
    }
    let stack = LayerStack { upper: Some(Layer::trusted(fs.tree())), lowers: vec![Layer::trusted(lower)].into() };
    let union = Union::new(stack, Behaviour::default()).unwrap();
    let read = union.opendir(Ino::ROOT).unwrap();
    assert!(union.may_keep_entries(Ino::ROOT));
    union.release(read);
    let attr = union.lookup(Ino::ROOT, &Name::new("x").unwrap()).unwrap().unwrap();
    let file = union.open(&ROOT, attr.node, OpenFlags { write: true, ..OpenFlags::default() }).unwrap();
    union.release(file);
    let again = union.opendir(Ino::ROOT).unwrap();
    assert!(!union.may_keep_entries(Ino::ROOT));
    union.release(again);
}

#[test]
fn a_name_whose_overriding_attribute_is_damaged_is_listed() {
    let lower = MemFs::new(7).tree();
    {
        let stack = LayerStack { upper: Some(Layer::trusted(lower.clone())), lowers: Box::default() };
        let filler = Union::new(stack, Behaviour::default()).unwrap();
        make(&filler, "bad");
        make(&filler, "good");
    }
    let bad = Name::new("bad").unwrap();
    let (node, _) = lower.lookup(&lower.root(), &bad).unwrap().unwrap();
    lower.set_xattr(&node, OVERRIDE_STAT, b"nothing that is known", XattrMode::Any).unwrap();
    let stack = LayerStack { upper: None, lowers: vec![Layer::new(lower, Dialect::User).with_overrides(true)].into() };
    let union = Union::new(stack, Behaviour::default()).unwrap();
    assert_eq!(union.lookup(Ino::ROOT, &bad).unwrap_err().errno(), Errno::IO);
    let mut names: Vec<_> = entries(&union, 0).into_iter().map(|(name, _)| name).collect();
    names.sort();
    assert_eq!(names, [".", "..", "bad", "good"]);
}
