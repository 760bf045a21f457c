//! The union as a system under test: what the kernel's path walk and `vfs_*` checks do before FUSE is asked, and nothing more.

use std::collections::{BTreeMap, HashMap};

use plyfs_overlay::backend::UpperTree;
use plyfs_overlay::{Attr, Caller, HandleId, Ino, Name as Checked, NewNode, OpenFlags, RenameMode, SetAttr, Union};
use plyfs_sys::Errno;
use plyfs_sys::at::{SetTime, XattrMode};
use plyfs_sys::stat::{Kind, Time};

use crate::case::{How, Move, Name, Op, Path, SLOTS};
use crate::reference::{Outcome, Reply};
use crate::system::System;
use crate::view::{Object, SET, View, show};

const ME: Caller = Caller { uid: 0, gid: 0, pid: 0 };
const READ: OpenFlags = OpenFlags { read: true, write: false, truncate: false, append: false, exec: false };

/// How to mount again.
pub(crate) enum Again {
    Remount,
    Restack,
}

struct Slot {
    ino: Ino,
    handle: Option<HandleId>,
    kind: Kind,
    write: bool,
}

type Mount<T> = Box<dyn FnMut(Again) -> Union<T>>;

pub(crate) struct UnionSystem<T: UpperTree> {
    name: &'static str,
    union: Option<Union<T>>,
    mount: Mount<T>,
    slots: [Option<Slot>; SLOTS],
    /// Look-ups not forgotten yet.
    lookups: HashMap<Ino, u64>,
    keep: bool,
    /// How often it was mounted again.
    mounts: u64,
}

fn no(error: plyfs_overlay::Error) -> Errno {
    error.errno()
}

fn checked(name: &[u8]) -> Result<Checked, Errno> {
    Checked::new(name).map_err(no)
}

/// What stat(2) says.
fn attributes(attr: &Attr) -> Object {
    let (stat, kind) = (&attr.stat, attr.stat.kind);
    Object {
        kind,
        mode: stat.mode,
        uid: stat.uid,
        gid: stat.gid,
        rdev: stat.rdev,
        size: if matches!(kind, Kind::File | Kind::Symlink) { stat.size } else { 0 },
        nlink: (kind != Kind::Dir).then_some(stat.nlink),
        mtime: (stat.mtime.sec < SET).then_some(stat.mtime.sec),
        data: Vec::new(),
        xattrs: BTreeMap::new(),
        names: None,
        id: attr.ino.0,
    }
}

impl<T: UpperTree> UnionSystem<T> {
    pub(crate) fn new(name: &'static str, keep: bool, mut mount: Mount<T>) -> Self {
        let union = Some(mount(Again::Remount));
        Self { name, union, mount, slots: Default::default(), lookups: HashMap::new(), keep, mounts: 0 }
    }

    pub(crate) fn union(&self) -> &Union<T> {
        self.union.as_ref().unwrap()
    }

    fn know(&mut self, attr: &Attr) {
        *self.lookups.entry(attr.node).or_default() += 1;
    }

    fn lookup(&mut self, dir: Ino, name: &Name) -> Result<Option<Attr>, Errno> {
        let attr = self.union().lookup(dir, &checked(name)?).map_err(no)?;
        if let Some(attr) = &attr {
            self.know(attr);
        }
        Ok(attr)
    }

    fn base(&self, path: &Path) -> Result<Ino, Errno> {
        match path.base {
            None => Ok(Ino::ROOT),
            Some(slot) => self.slots[slot].as_ref().map(|slot| slot.ino).ok_or(Errno::BADF),
        }
    }

    fn parent(&mut self, path: &Path) -> Result<(Ino, Checked), Errno> {
        let (last, above) = path.names.split_last().ok_or(Errno::EXIST)?;
        let mut at = self.base(path)?;
        for name in above {
            at = self.lookup(at, name)?.ok_or(Errno::NOENT)?.node;
        }
        if self.union().getattr(at).map_err(no)?.stat.kind != Kind::Dir {
            return Err(Errno::NOTDIR);
        }
        Ok((at, checked(last)?))
    }

    fn find(&mut self, path: &Path) -> Result<Attr, Errno> {
        if path.names.is_empty() {
            let ino = self.base(path)?;
            return self.union().getattr(ino).map_err(no);
        }
        let (dir, name) = self.parent(path)?;
        self.lookup(dir, &name.as_bytes().to_vec())?.ok_or(Errno::NOENT)
    }

    /// open(2) of what is there, as far as the kernel answers alone.
    fn openable(attr: &Attr, write: bool) -> Result<(), Errno> {
        match attr.stat.kind {
            Kind::File => Ok(()),
            Kind::Dir if write => Err(Errno::ISDIR),
            Kind::Dir => Ok(()),
            Kind::Symlink => Err(Errno::LOOP),
            _ => Err(Errno::NXIO),
        }
    }

    fn takes_xattr(attr: &Attr, name: &[u8]) -> Result<(), Errno> {
        if name.starts_with(b"user.") && !matches!(attr.stat.kind, Kind::File | Kind::Dir) { Err(Errno::PERM) } else { Ok(()) }
    }

    fn fill(&mut self, slot: usize, new: Slot) {
        self.empty(slot);
        self.slots[slot] = Some(new);
    }

    fn empty(&mut self, slot: usize) {
        if let Some(old) = self.slots[slot].take()
            && let Some(handle) = old.handle
        {
            self.union().release(handle);
        }
    }

    /// What slots hold stays known; the rest goes.
    fn forget(&mut self) {
        let held: Vec<Ino> = self.slots.iter().flatten().map(|slot| slot.ino).collect();
        let lookups = std::mem::take(&mut self.lookups);
        for (ino, count) in lookups {
            if held.contains(&ino) {
                if count > 1 {
                    self.union().forget(ino, count - 1);
                }
                self.lookups.insert(ino, 1);
            } else {
                self.union().forget(ino, count);
            }
        }
    }

    fn forget_all(&mut self) {
        for slot in 0..SLOTS {
            self.empty(slot);
        }
        self.forget();
    }

    /// Lets go of everything and ends the union; nothing may be left of it but its root.
    pub(crate) fn unmount(&mut self) -> Result<(), String> {
        self.forget_all();
        let union = self.union.take().unwrap();
        match union.inodes() {
            1 => Ok(()),
            left => Err(format!("{} inodes are left after everything was forgotten", left - 1)),
        }
    }

    /// Ends the union as a server does at a clean end: the upper needs no index then.
    pub(crate) fn settle(&mut self) -> Result<(), String> {
        self.forget_all();
        let union = self.union.as_ref().unwrap();
        if !union.is_read_only() {
            union.drop_reserve();
            union.settle_hard_links().map_err(|error| format!("settle: {error}"))?;
        }
        self.unmount()
    }

    /// fsync(2) of a file, by a descriptor that was opened for it.
    pub(crate) fn fsync(&mut self, path: &[Name]) -> Result<(), Errno> {
        let attr = self.find(&Path { base: None, names: path.to_vec() })?;
        let handle = self.union().open(&ME, attr.node, READ).map_err(no)?;
        let done = self.union().fsync(handle, false).map_err(no);
        self.union().release(handle);
        if !self.keep {
            self.forget();
        }
        done
    }

    fn open_and(&mut self, at: &Path, act: impl FnOnce(&Union<T>, HandleId, u64) -> Result<(), plyfs_overlay::Error>) -> Result<(), Errno> {
        let attr = self.find(at)?;
        Self::openable(&attr, true)?;
        let handle = self
            .union()
            .open(&ME, attr.node, OpenFlags { read: false, write: true, truncate: false, ..OpenFlags::default() })
            .map_err(no)?;
        let size = self.union().getattr(attr.node).map(|attr| attr.stat.size);
        let done = size.and_then(|size| act(self.union(), handle, size)).map_err(no);
        self.union().release(handle);
        done
    }

    fn make(&mut self, at: &Path, node: NewNode, mode: u32) -> Outcome {
        let (dir, name) = self.parent(at)?;
        let attr = self.union().make(&ME, dir, &name, node, mode, 0).map_err(no)?;
        self.know(&attr);
        Ok(Reply::Done)
    }

    fn run(&mut self, op: &Op) -> Outcome {
        match op {
            Op::Create { at, mode, excl, trunc, slot } => {
                let (dir, name) = self.parent(at)?;
                if let Some(there) = self.union().lookup(dir, &name).map_err(no)? {
                    self.know(&there);
                    if !excl {
                        Self::openable(&there, true)?;
                    }
                }
                let flags = OpenFlags { read: true, write: true, truncate: *trunc, ..OpenFlags::default() };
                let (attr, handle) = self.union().create(&ME, dir, &name, *mode, 0, *excl, flags).map_err(no)?;
                self.know(&attr);
                match slot {
                    Some(slot) => self.fill(*slot, Slot { ino: attr.node, handle: Some(handle), kind: Kind::File, write: true }),
                    None => self.union().release(handle),
                }
            }
            Op::Open { at, write, trunc, slot } => {
                let attr = self.find(at)?;
                Self::openable(&attr, *write || *trunc)?;
                let ino = attr.node;
                let handle = match attr.stat.kind {
                    Kind::Dir => self.union().opendir(ino),
                    _ => self.union().open(&ME, ino, OpenFlags { read: true, write: *write, truncate: *trunc, ..OpenFlags::default() }),
                };
                self.fill(*slot, Slot { ino, handle: Some(handle.map_err(no)?), kind: attr.stat.kind, write: *write });
            }
            Op::Hold { at, slot } => {
                let attr = self.find(at)?;
                self.fill(*slot, Slot { ino: attr.node, handle: None, kind: attr.stat.kind, write: false });
            }
            Op::Close { slot } => {
                self.slots[*slot].as_ref().ok_or(Errno::BADF)?;
                self.empty(*slot);
            }
            Op::Read { slot, offset, len } => {
                let slot = self.slots[*slot].as_ref().ok_or(Errno::BADF)?;
                let handle = slot.handle.ok_or(Errno::BADF)?;
                if slot.kind == Kind::Dir {
                    return Err(Errno::ISDIR);
                }
                let mut data = vec![0; *len];
                let got = self.union().read(handle, *offset, &mut data).map_err(no)?;
                data.truncate(got);
                return Ok(Reply::Data(data));
            }
            Op::Write { slot, offset, data } => {
                let slot = self.slots[*slot].as_ref().filter(|slot| slot.write).ok_or(Errno::BADF)?;
                if !data.is_empty() {
                    let written = self.union().write(&ME, slot.handle.unwrap(), *offset, data, false).map_err(no)?;
                    assert_eq!(written, data.len());
                }
            }
            Op::Ftruncate { slot, len } => {
                let slot = self.slots[*slot].as_ref().ok_or(Errno::BADF)?;
                let handle = slot.handle.ok_or(Errno::BADF)?;
                if !slot.write {
                    return Err(Errno::INVAL);
                }
                if self.union().getattr(slot.ino).map_err(no)?.stat.size != *len {
                    let set = SetAttr { size: Some(*len), ..SetAttr::default() };
                    self.union().setattr(&ME, slot.ino, Some(handle), &set).map_err(no)?;
                }
            }
            Op::WriteAt { at, offset, data } => {
                self.open_and(
                    at,
                    |union, handle, _| {
                        if data.is_empty() { Ok(()) } else { union.write(&ME, handle, *offset, data, false).map(drop) }
                    },
                )?
            }
            Op::Append { at, data } => {
                self.open_and(
                    at,
                    |union, handle, size| {
                        if data.is_empty() { Ok(()) } else { union.write(&ME, handle, size, data, false).map(drop) }
                    },
                )?
            }
            Op::Truncate { at, len } => {
                let attr = self.find(at)?;
                if attr.stat.kind != Kind::File || attr.stat.size != *len {
                    self.union().setattr(&ME, attr.node, None, &SetAttr { size: Some(*len), ..SetAttr::default() }).map_err(no)?;
                }
            }
            Op::Mkdir { at, mode } => return self.make(at, NewNode::Dir, *mode),
            Op::Mkfifo { at, mode } => return self.make(at, NewNode::Fifo, *mode),
            Op::Mkchar { at, mode, rdev } => return self.make(at, NewNode::Char(*rdev), *mode),
            Op::Symlink { at, target } => return self.make(at, NewNode::Symlink(target.clone()), 0o777),
            Op::Link { from, to } => {
                let attr = self.find(from)?;
                let (dir, name) = self.parent(to)?;
                // The kernel looks the new name up before it asks whether the object may be linked, and finds nothing in what was removed.
                if self.union().getattr(dir).map_err(no)?.stat.nlink == 0 {
                    return Err(Errno::NOENT);
                }
                if self.union().lookup(dir, &name).map_err(no)?.inspect(|attr| self.know(attr)).is_some() {
                    return Err(Errno::EXIST);
                }
                let attr = self.union().link(attr.node, dir, &name).map_err(no)?;
                self.know(&attr);
            }
            Op::Unlink { at } => {
                let (dir, name) = self.parent(at)?;
                self.union().unlink(dir, &name).map_err(no)?;
            }
            Op::Rmdir { at } => {
                let (dir, name) = self.parent(at)?;
                self.union().rmdir(dir, &name).map_err(no)?;
            }
            Op::Rename { from, to, how } => {
                let (old_dir, old) = self.parent(from)?;
                let (new_dir, new) = self.parent(to)?;
                let how = match how {
                    Move::Replace => RenameMode::Replace,
                    Move::NoReplace => RenameMode::NoReplace,
                    Move::Exchange => RenameMode::Exchange,
                    Move::Whiteout => RenameMode::Whiteout { caller: ME, replace: true },
                };
                self.union().rename(old_dir, &old, new_dir, &new, how).map_err(no)?;
            }
            Op::Chmod { at, mode } => {
                let attr = self.find(at)?;
                if attr.stat.kind == Kind::Symlink {
                    return Err(Errno::OPNOTSUPP);
                }
                self.union().setattr(&ME, attr.node, None, &SetAttr { mode: Some(*mode), ..SetAttr::default() }).map_err(no)?;
            }
            Op::Chown { at, uid, gid } => {
                let attr = self.find(at)?;
                self.union().setattr(&ME, attr.node, None, &SetAttr { uid: *uid, gid: *gid, ..SetAttr::default() }).map_err(no)?;
            }
            Op::Utimes { at, mtime } => {
                let attr = self.find(at)?;
                let mtime = SetTime::To(Time { sec: *mtime, nsec: 0 });
                self.union().setattr(&ME, attr.node, None, &SetAttr { mtime, ..SetAttr::default() }).map_err(no)?;
            }
            Op::SetXattr { at, name, value, how } => {
                let attr = self.find(at)?;
                Self::takes_xattr(&attr, name)?;
                let how = match how {
                    How::Any => XattrMode::Any,
                    How::Create => XattrMode::Create,
                    How::Replace => XattrMode::Replace,
                };
                self.union().setxattr(&ME, attr.node, name, value, how).map_err(no)?;
            }
            Op::RemoveXattr { at, name } => {
                let attr = self.find(at)?;
                Self::takes_xattr(&attr, name)?;
                self.union().removexattr(attr.node, name).map_err(no)?;
            }
            Op::Readlink { at } => {
                let attr = self.find(at)?;
                return self.union().readlink(attr.node).map(Reply::Data).map_err(no);
            }
            Op::List { at } => {
                let attr = self.find(at)?;
                if attr.stat.kind == Kind::Dir && attr.stat.nlink == 0 {
                    return Err(Errno::NOENT);
                }
                let handle = self.union().opendir(attr.node).map_err(no)?;
                let listed = self.list(handle);
                self.union().release(handle);
                return Ok(Reply::Names(listed?.into_iter().map(|(name, ..)| name).collect()));
            }
            Op::Stat { at } => {
                let attr = self.find(at)?;
                return Ok(Reply::Object(Box::new(attributes(&attr))));
            }
            Op::Forget => self.forget(),
            Op::Remount | Op::Restack => {
                // Every second time as one that is killed.
                self.mounts += 1;
                if *op == Op::Restack || self.mounts.is_multiple_of(2) { self.settle() } else { self.unmount() }.unwrap();
                let again = if *op == Op::Remount { Again::Remount } else { Again::Restack };
                self.union = Some((self.mount)(again));
            }
        }
        Ok(Reply::Done)
    }

    /// Reads a directory two entries at a time, sorted by name, without the dots.
    fn list(&self, handle: HandleId) -> Result<Vec<(Name, Ino, Kind)>, Errno> {
        let mut listed = Vec::new();
        let mut cookie = 0;
        loop {
            let before = cookie;
            let mut room = 2;
            let more = self.union().readdir(handle, cookie, &mut |entry| {
                if room == 0 {
                    return false;
                }
                room -= 1;
                assert!(entry.cookie > cookie, "cookies ascend");
                cookie = entry.cookie;
                listed.push((entry.name.to_vec(), entry.ino, entry.kind));
                true
            });
            more.map_err(no)?;
            if cookie == before {
                break;
            }
        }
        let dots = listed.iter().filter(|(name, ..)| name == b"." || name == b"..").count();
        assert_eq!(dots, 2, "one . and one ..");
        listed.retain(|(name, ..)| name != b"." && name != b"..");
        listed.sort();
        Ok(listed)
    }

    fn object(&self, attr: &Attr) -> Result<Object, String> {
        let union = self.union();
        let (stat, kind) = (&attr.stat, attr.stat.kind);
        let said = |what: &'static str| move |error: plyfs_overlay::Error| format!("{what}: {error}");
        let mut xattrs = BTreeMap::new();
        for name in union.listxattr(attr.node).map_err(said("listxattr"))? {
            let value = union.getxattr(attr.node, &name).map_err(said("getxattr"))?;
            xattrs.insert(name, value);
        }
        let data = match kind {
            Kind::Symlink => union.readlink(attr.node).map_err(said("readlink"))?,
            Kind::File => {
                let handle = union.open(&ME, attr.node, READ).map_err(said("open"))?;
                let mut data = vec![0; usize::try_from(stat.size).unwrap() + 16];
                let got = union.read(handle, 0, &mut data).map_err(said("read"))?;
                union.release(handle);
                data.truncate(got);
                data
            }
            _ => Vec::new(),
        };
        Ok(Object { data, xattrs, ..attributes(attr) })
    }

    fn walk(&mut self, pool: &[Name]) -> Result<View, String> {
        let mut view = View::default();
        let root = self.union().getattr(Ino::ROOT).map_err(|e| e.to_string())?;
        let mut todo = vec![(Vec::<Name>::new(), root)];
        while let Some((path, attr)) = todo.pop() {
            let said = |what: &str, e: &dyn std::fmt::Display| format!("{}: {what}: {e}", show(&path));
            if path.len() > 200 {
                return Err(said("a tree without end", &attr.ino.0));
            }
            if attr.stat.kind == Kind::Dir {
                let handle = self.union().opendir(attr.node).map_err(|e| said("opendir", &e))?;
                let listed = self.list(handle).map_err(|e| said("readdir", &e));
                self.union().release(handle);
                let listed = listed?;
                for name in pool {
                    let there = self.lookup(attr.node, name).map_err(|e| said("lookup", &e))?.is_some();
                    if there != listed.iter().any(|(other, ..)| other == name) {
                        return Err(said("listed or not, looked up the other way", &name.escape_ascii()));
                    }
                }
                for (name, ino, kind) in listed {
                    let child = self.lookup(attr.node, &name).map_err(|e| said("lookup of a listed name", &e))?;
                    let child = child.ok_or_else(|| said("listed and not there", &name.escape_ascii()))?;
                    if (child.ino, child.stat.kind) != (ino, kind) {
                        let words = format!("d_ino {}, st_ino {}", ino.0, child.ino.0);
                        return Err(said(&format!("{}: readdir and stat disagree", name.escape_ascii()), &words));
                    }
                    let mut again = self.union().getattr(child.node).map_err(|e| said("getattr", &e))?;
                    // The host may write the data back in between.
                    again.stat.blocks = child.stat.blocks;
                    if again != child {
                        return Err(said(&format!("{}: lookup {child:?}", name.escape_ascii()), &format!("getattr {again:?}")));
                    }
                    todo.push(([&path[..], &[name]].concat(), child));
                }
            }
            let object = self.object(&attr).map_err(|e| said("look", &e))?;
            view.tree.insert(path, object);
        }
        for slot in &self.slots {
            let object = slot.as_ref().map(|slot| -> Result<Object, String> {
                let attr = self.union().getattr(slot.ino).map_err(|e| format!("held object: {e}"))?;
                let mut object = self.object(&attr)?;
                match (slot.kind, slot.handle) {
                    (Kind::Dir, Some(handle)) => {
                        let listed = self.list(handle).map_err(|e| format!("held directory: {e}"))?;
                        object.names = Some(listed.into_iter().map(|(name, ..)| name).collect());
                    }
                    (_, Some(handle)) => {
                        let mut data = vec![0; usize::try_from(attr.stat.size).unwrap() + 16];
                        let got = self.union().read(handle, 0, &mut data).map_err(|e| format!("held file: {e}"))?;
                        data.truncate(got);
                        object.data = data;
                    }
                    (_, None) => object.data.clear(),
                }
                Ok(object)
            });
            view.slots.push(object.transpose()?);
        }
        Ok(view)
    }
}

impl<T: UpperTree> System for UnionSystem<T> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn apply(&mut self, op: &Op) -> Outcome {
        let outcome = self.run(op);
        if !self.keep {
            self.forget();
        }
        outcome
    }

    fn view(&mut self, pool: &[Name]) -> Result<View, String> {
        let view = self.walk(pool);
        if !self.keep {
            self.forget();
        }
        view
    }
}

impl<T: UpperTree> Drop for UnionSystem<T> {
    fn drop(&mut self) {
        if self.union.is_some() {
            self.forget_all();
        }
    }
}
