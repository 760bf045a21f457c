use plyfs_overlay::backend::{Tree, UpperTree};
use plyfs_overlay::{NewNode, SetAttr};
use plyfs_sys::Errno;
use plyfs_sys::at::XattrMode;

use crate::lab::{Layers, ROOT, USER, errno, find, ino, name, on_both, read, read_all};

on_both! {
    a_file_without_a_name_gets_one_once
    a_file_without_a_name_inherits_as_one_that_has_a_name
    a_file_without_a_name_is_refused_where_none_can_be
}

fn a_file_without_a_name_gets_one_once<L: Layers>() {
    let layers = L::new();
    let union = layers.mount();
    let a = ino(&union, "a");
    let (attr, handle) = union.tmpfile(&USER, a, 0o666, 0o022, true).unwrap();
    assert_eq!((attr.stat.nlink, attr.stat.mode, attr.stat.uid, attr.stat.gid, attr.stat.size), (0, 0o644, 1000, 1001, 0));
    union.write(&ROOT, handle, 0, b"new", false).unwrap();
    assert_eq!(read_all(&union, handle), "new");
    union.setattr(&ROOT, attr.node, Some(handle), &SetAttr { mode: Some(0o600), ..SetAttr::default() }).unwrap();

    // Over a whiteout, then once more at a free name.
    union.unlink(a, &name("f")).unwrap();
    let linked = union.link(attr.node, a, &name("f")).unwrap();
    assert_eq!((linked.ino, linked.stat.nlink, linked.stat.mode), (attr.ino, 1, 0o600));
    assert_eq!(union.link(attr.node, a, &name("f")).map_err(|e| e.errno()), Err(Errno::EXIST));
    assert_eq!(union.link(attr.node, ino(&union, "b"), &name("l")).unwrap().stat.nlink, 2);
    assert_eq!(ino(&union, "a/f"), attr.node);
    union.release(handle);
    drop(union);

    let union = layers.mount();
    assert_eq!((read(&union, ino(&union, "a/f")), read(&union, ino(&union, "b/l"))), ("new".into(), "new".into()));
    let b = ino(&union, "b");

    // What has lost its name stays without one, and so does what was made not to get one (O_EXCL).
    let (attr, handle) = union.tmpfile(&ROOT, b, 0o644, 0, true).unwrap();
    union.link(attr.node, b, &name("short")).unwrap();
    union.unlink(b, &name("short")).unwrap();
    assert_eq!(errno(union.link(attr.node, b, &name("again"))), Errno::NOENT);
    assert_eq!(union.getattr(attr.node).unwrap().stat.nlink, 0);
    let (never, held) = union.tmpfile(&ROOT, b, 0o644, 0, false).unwrap();
    assert_eq!(errno(union.link(never.node, b, &name("never"))), Errno::NOENT);
    union.release(handle);
    union.release(held);
    let before = union.inodes();
    union.forget(attr.node, 2);
    union.forget(never.node, 1);
    assert_eq!(before - union.inodes(), 2);
    drop(union);
    let upper = layers.upper();
    assert!(upper.read_dir(&upper.work()).unwrap().is_empty());
}

/// A default ACL: rwx for the owner, r-x for user 7, rw- for the group, rwx as the mask, nothing for others.
const DEFAULT_ACL: &[(u16, u16, u32)] = &[(1, 7, u32::MAX), (2, 5, 7), (4, 6, u32::MAX), (16, 7, u32::MAX), (32, 0, u32::MAX)];

fn a_file_without_a_name_inherits_as_one_that_has_a_name<L: Layers>() {
    let layers = L::new();
    let union = layers.mount();
    let b = ino(&union, "b");
    let mut acl = vec![2, 0, 0, 0];
    for (tag, permissions, id) in DEFAULT_ACL {
        acl.extend(tag.to_le_bytes());
        acl.extend(permissions.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    union.setattr(&ROOT, b, None, &SetAttr { mode: Some(0o2775), gid: Some(50), ..SetAttr::default() }).unwrap();
    union.setxattr(&ROOT, b, b"system.posix_acl_default", &acl, XattrMode::Any).unwrap();
    let (nameless, handle) = union.tmpfile(&USER, b, 0o666, 0o077, true).unwrap();
    let named = union.make(&USER, b, &name("named"), NewNode::File, 0o666, 0o077).unwrap();
    let look = |attr: &plyfs_overlay::Attr| (attr.stat.mode, attr.stat.uid, attr.stat.gid);
    assert_eq!(look(&nameless), look(&named));
    assert_eq!(look(&nameless), (0o660, 1000, 50));
    let access = |ino| union.getxattr(ino, b"system.posix_acl_access").unwrap();
    assert_eq!(access(nameless.node), access(named.node));
    union.release(handle);
}

fn a_file_without_a_name_is_refused_where_none_can_be<L: Layers>() {
    let layers = L::new();
    let union = layers.mount();
    assert_eq!(errno(union.tmpfile(&ROOT, ino(&union, "a/f"), 0o644, 0, true)), Errno::NOTDIR);
    let gone = union.make(&ROOT, ino(&union, "b"), &name("gone"), NewNode::Dir, 0o755, 0).unwrap().node;
    union.rmdir(ino(&union, "b"), &name("gone")).unwrap();
    assert_eq!(errno(union.tmpfile(&ROOT, gone, 0o644, 0, true)), Errno::NOENT);
    drop(union);
    let union = layers.stack(false);
    assert_eq!(errno(union.tmpfile(&ROOT, ino(&union, "a"), 0o644, 0, true)), Errno::ROFS);
    assert!(find(&union, "b/gone").is_none());
}
