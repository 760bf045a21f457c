use plyfs_overlay::{Caller, NewNode, OpenFlags, SetAttr};
use plyfs_sys::Errno;
use plyfs_sys::at::XattrMode;

use crate::lab::{Layers, ROOT, WRITE, errno, find, ino, name, on_both};

on_both! {
    who_has_no_ids_makes_nothing
    who_has_no_ids_is_not_root
}

const NOBODY: [Caller; 3] =
    [Caller { uid: u32::MAX, gid: u32::MAX, pid: 1 }, Caller { uid: u32::MAX, gid: 0, pid: 1 }, Caller { uid: 0, gid: u32::MAX, pid: 1 }];

fn who_has_no_ids_makes_nothing<L: Layers>() {
    let layers = L::new();
    let union = layers.mount();
    let b = ino(&union, "b");
    let nodes =
        [NewNode::File, NewNode::Dir, NewNode::Symlink(b"t".to_vec()), NewNode::Fifo, NewNode::Socket, NewNode::Char(0), NewNode::Block(7)];
    for caller in NOBODY {
        for node in nodes.clone() {
            assert_eq!(errno(union.make(&caller, b, &name("new"), node, 0o755, 0)), Errno::OVERFLOW);
        }
        assert_eq!(errno(union.create(&caller, b, &name("new"), 0o644, 0, true, WRITE)), Errno::OVERFLOW);
        assert_eq!(errno(union.tmpfile(&caller, b, 0o644, 0, true)), Errno::OVERFLOW);
        // What is there is told first, as the kernel does.
        assert_eq!(errno(union.make(&caller, b, &name("f"), NewNode::Dir, 0o755, 0)), Errno::EXIST);
        // Opening needs no ids.
        let (_, handle) = union.create(&caller, b, &name("f"), 0o644, 0, false, OpenFlags { read: true, ..OpenFlags::default() }).unwrap();
        union.release(handle);
    }
    assert!(find(&union, "b/new").is_none());
    for set in [SetAttr { uid: Some(u32::MAX), ..SetAttr::default() }, SetAttr { gid: Some(u32::MAX), ..SetAttr::default() }] {
        assert_eq!(errno(union.setattr(&ROOT, b, None, &set)), Errno::OVERFLOW);
    }
}

fn who_has_no_ids_is_not_root<L: Layers>() {
    let layers = L::new();
    let union = layers.mount();
    let f = ino(&union, "b/f");
    let mode = || union.getattr(f).unwrap().stat.mode;
    let set = |mode| union.setattr(&ROOT, f, None, &SetAttr { mode: Some(mode), gid: Some(50), ..SetAttr::default() }).unwrap();
    let caller = Caller { uid: u32::MAX, gid: u32::MAX, pid: 1 };
    set(0o6755);
    union.setattr(&caller, f, None, &SetAttr { size: Some(1), ..SetAttr::default() }).unwrap();
    assert_eq!(mode(), 0o755, "truncate");
    set(0o6755);
    let handle = union.open(&caller, f, OpenFlags { write: true, truncate: true, ..OpenFlags::default() }).unwrap();
    assert_eq!(mode(), 0o755, "open with truncation");
    set(0o6755);
    union.fallocate(&caller, handle, 0, 0, 10).unwrap();
    assert_eq!(mode(), 0o755, "fallocate");
    union.release(handle);
    set(0o2755);
    // user::rwx, group::r-x, other::r-x
    let acl = [2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 4, 0, 5, 0, 255, 255, 255, 255, 32, 0, 5, 0, 255, 255, 255, 255];
    union.setxattr(&caller, f, b"system.posix_acl_access", &acl, XattrMode::Any).unwrap();
    assert_eq!(mode() & 0o2000, 0, "an access ACL");
}
