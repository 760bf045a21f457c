//! The POSIX oracle: a small tree in memory that is meant to be obviously right. `plain.rs` runs the same cases on a real directory to hold it to that.
//!
//! It knows neither layers nor copy-up: [`Reference::of`] merges the layers once, name by name, and from then on it is one plain filesystem. The order of
//! errors is that of Linux's path walk and `vfs_*` functions.

use std::collections::{BTreeMap, HashSet};

use plyfs_sys::Errno;
use plyfs_sys::stat::Kind;

use crate::case::{How, LayerSpec, Move, Name, Op, Path, SLOTS, What};
use crate::view::{ANY, Object, View};

/// What an operation answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Reply {
    Done,
    Data(Vec<u8>),
    Names(Vec<Name>),
    Object(Box<Object>),
}

pub(crate) type Outcome = Result<Reply, Errno>;

pub(crate) type Id = usize;

const ROOT: Id = 0;

/// A time of modification.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mtime {
    Set(i64),
    /// From the clock; no two are equal.
    Tick(u64),
}

#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) rdev: u64,
    pub(crate) mtime: Mtime,
    pub(crate) data: Vec<u8>,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(crate) entries: BTreeMap<Name, Id>,
    nlink: u32,
    /// Of a directory; stays when it is removed.
    parent: Id,
    removed: bool,
    /// Names that it has in its layer and that other layers hide: they count.
    hidden: u32,
    /// It has several names in a layer.
    linked_below: bool,
    /// Its count is not compared: nobody says whether hidden names count still, or an index of a former upper counts.
    uncounted: bool,
}

impl Node {
    fn new(kind: Kind, mode: u32, parent: Id) -> Self {
        Self {
            kind,
            mode,
            uid: 0,
            gid: 0,
            rdev: 0,
            mtime: Mtime::Set(1),
            data: Vec::new(),
            xattrs: BTreeMap::new(),
            entries: BTreeMap::new(),
            nlink: 0,
            parent,
            removed: false,
            hidden: 0,
            linked_below: false,
            uncounted: false,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Path,
    Read,
    Write,
}

#[derive(Clone)]
pub(crate) struct Reference {
    nodes: Vec<Node>,
    slots: [Option<(Id, Mode)>; SLOTS],
    /// Identities are told apart over a restack, where they may change.
    epoch: u64,
    clock: u64,
    hard: bool,
}

/// One directory of a layer.
type DirIn<'a> = (usize, &'a LayerSpec, Vec<Name>);

impl Reference {
    /// The merged view of layers, topmost first, above which an empty upper is.
    pub(crate) fn of(lowers: &[LayerSpec]) -> Self {
        let mut this = Self { nodes: vec![Node::new(Kind::Dir, 0o755, ROOT)], slots: Default::default(), epoch: 0, clock: 0, hard: false };
        let mut hard: BTreeMap<(usize, Vec<Name>), Id> = BTreeMap::new();
        let roots: Vec<DirIn<'_>> = lowers.iter().enumerate().map(|(index, layer)| (index, layer, Vec::new())).collect();
        this.merge(ROOT, &roots, &mut hard);
        this.hard = this.nodes.iter().any(|node| node.kind != Kind::Dir && node.nlink + node.hidden > 1);
        this
    }

    fn merge(&mut self, into: Id, dirs: &[DirIn<'_>], hard: &mut BTreeMap<(usize, Vec<Name>), Id>) {
        let mut names: Vec<Name> = Vec::new();
        for (_, layer, dir) in dirs {
            names.extend(
                layer
                    .entries
                    .keys()
                    .filter(|path| path.len() == dir.len() + 1 && path.starts_with(dir))
                    .map(|path| path[dir.len()].clone()),
            );
        }
        names.sort();
        names.dedup();
        for name in names {
            let mut merged: Vec<DirIn<'_>> = Vec::new();
            let mut found: Option<Id> = None;
            for (index, layer, dir) in dirs {
                let path = [&dir[..], std::slice::from_ref(&name)].concat();
                let Some(entry) = layer.entries.get(&path) else { continue };
                let kind = match &entry.what {
                    What::Whiteout | What::MarkedWhiteout => break,
                    What::Dir { .. } => Kind::Dir,
                    What::File(_) | What::Hard(_) => Kind::File,
                    What::Symlink(_) => Kind::Symlink,
                    What::Fifo => Kind::Fifo,
                };
                if kind != Kind::Dir && found.is_some() {
                    break;
                }
                // A hard link is its first name.
                let (first, entry) = match &entry.what {
                    What::Hard(of) => (of.clone(), &layer.entries[of]),
                    _ => (path.clone(), entry),
                };
                let id = match (found, hard.get(&(*index, first.clone()))) {
                    (Some(id), _) => id,
                    (None, Some(&id)) => id,
                    (None, None) => {
                        let mut node = Node::new(kind, entry.mode, into);
                        (node.uid, node.gid, node.mtime) = (entry.uid, entry.gid, Mtime::Set(entry.mtime));
                        node.xattrs.clone_from(&entry.xattrs);
                        if let What::File(data) | What::Symlink(data) = &entry.what {
                            node.data.clone_from(data);
                        }
                        let further = layer.entries.values().filter(|other| matches!(&other.what, What::Hard(of) if *of == first)).count();
                        node.hidden = if kind == Kind::Dir { 0 } else { 1 + u32::try_from(further).unwrap() };
                        node.linked_below = further > 0;
                        self.nodes.push(node);
                        hard.insert((*index, first), self.nodes.len() - 1);
                        self.nodes.len() - 1
                    }
                };
                if found.is_none() {
                    self.nodes[into].entries.insert(name.clone(), id);
                    self.nodes[id].nlink += 1;
                    self.nodes[id].hidden = self.nodes[id].hidden.saturating_sub(1);
                }
                found = Some(id);
                if kind != Kind::Dir {
                    break;
                }
                merged.push((*index, layer, path));
                if entry.what == (What::Dir { opaque: true }) {
                    break;
                }
            }
            if !merged.is_empty() {
                self.merge(found.unwrap(), &merged, hard);
            }
        }
    }

    pub(crate) fn node(&self, id: Id) -> &Node {
        &self.nodes[id]
    }

    pub(crate) fn root(&self) -> &Node {
        &self.nodes[ROOT]
    }

    /// Paths of everything, for generators.
    pub(crate) fn paths(&self) -> Vec<(Vec<Name>, Kind)> {
        self.view().tree.into_iter().map(|(path, object)| (path, object.kind)).collect()
    }

    /// Opened and closed is what is so there.
    pub(crate) fn take_slots_of(&mut self, other: &Self) {
        self.slots = other.slots;
    }

    /// Whether a slot holds something that has no name any more.
    pub(crate) fn is_removed(&self, slot: usize) -> bool {
        self.slots[slot].is_some_and(|(id, _)| id != ROOT && self.nodes[id].nlink == 0)
    }

    /// Kind of what a slot holds, for generators.
    pub(crate) fn held(&self, slot: usize) -> Option<Kind> {
        self.slots[slot].map(|(id, _)| self.nodes[id].kind)
    }

    /// The numbers of objects that have names which no directory shows.
    pub(crate) fn with_hidden_names(&self) -> HashSet<u64> {
        (0..self.nodes.len()).filter(|&id| self.nodes[id].hidden > 0).map(|id| self.number(id)).collect()
    }

    /// Whether a number that a view tells is that of an object.
    pub(crate) fn is(&self, number: u64, id: Id) -> bool {
        self.number(id) == number
    }

    /// The object that a view tells a number of.
    pub(crate) fn id_of(&self, number: u64) -> Id {
        (0..self.nodes.len()).find(|&id| self.number(id) == number).unwrap()
    }

    /// A file has the data that it has in another tree of the same history.
    pub(crate) fn take_data(&mut self, other: &Self, id: Id) {
        self.nodes[id].data.clone_from(&other.nodes[id].data);
    }

    /// Applies an operation to a tree whose files lack data that they have in `other`: who truncates a file there to the size that it has there, does nothing.
    pub(crate) fn apply_beside(&mut self, op: &Op, other: &Self) -> Outcome {
        let (id, len) = match op {
            Op::Ftruncate { slot, len } => (other.slot(*slot).map(|(id, _)| id), *len),
            Op::Truncate { at, len } => (other.find(at), *len),
            _ => return self.apply(op),
        };
        let done = other.clone().apply(op)?;
        let id = id?;
        if other.nodes[id].data.len() as u64 != len {
            self.resize(id, len);
        }
        Ok(done)
    }

    /// A clean end: names that layers hide may not count from here on.
    pub(crate) fn settle(&mut self) {
        self.nodes.iter_mut().for_each(|node| node.uncounted |= node.hidden > 0);
    }

    fn number(&self, id: Id) -> u64 {
        id as u64 | self.epoch << 32
    }

    /// Whether some object has several names: its links are lower hard links after a restack.
    pub(crate) fn has_hard_links(&self) -> bool {
        self.nodes.iter().any(|node| node.kind != Kind::Dir && node.nlink + node.hidden > 1)
    }

    /// Whether some object had several names at first.
    pub(crate) fn had_hard_links(&self) -> bool {
        self.hard
    }

    fn slot(&self, slot: usize) -> Result<(Id, Mode), Errno> {
        self.slots[slot].ok_or(Errno::BADF)
    }

    fn base(&self, path: &Path) -> Result<Id, Errno> {
        path.base.map_or(Ok(ROOT), |slot| self.slot(slot).map(|(id, _)| id))
    }

    /// The directory that holds the last name, and the name.
    fn parent<'a>(&self, path: &'a Path) -> Result<(Id, &'a Name), Errno> {
        let (last, above) = path.names.split_last().ok_or(Errno::EXIST)?;
        let mut at = self.base(path)?;
        for name in above {
            at = self.child(at, name)?;
        }
        if self.nodes[at].kind != Kind::Dir {
            return Err(Errno::NOTDIR);
        }
        Ok((at, last))
    }

    fn child(&self, dir: Id, name: &Name) -> Result<Id, Errno> {
        if self.nodes[dir].kind != Kind::Dir {
            return Err(Errno::NOTDIR);
        }
        self.nodes[dir].entries.get(name).copied().ok_or(Errno::NOENT)
    }

    fn find(&self, path: &Path) -> Result<Id, Errno> {
        if path.names.is_empty() {
            return self.base(path);
        }
        let (dir, name) = self.parent(path)?;
        self.child(dir, name)
    }

    /// Whether `a` is `b` or above it.
    fn is_above(&self, a: Id, b: Id) -> bool {
        let mut at = b;
        while at != a {
            if at == ROOT {
                return false;
            }
            at = self.nodes[at].parent;
        }
        true
    }

    /// A free name in a live directory.
    fn free<'a>(&self, path: &'a Path) -> Result<(Id, &'a Name), Errno> {
        let (dir, name) = self.parent(path)?;
        if self.nodes[dir].removed {
            return Err(Errno::NOENT);
        }
        match self.nodes[dir].entries.contains_key(name) {
            true => Err(Errno::EXIST),
            false => Ok((dir, name)),
        }
    }

    fn touch(&mut self, id: Id) {
        self.clock += 1;
        self.nodes[id].mtime = Mtime::Tick(self.clock);
    }

    fn enter(&mut self, dir: Id, name: &Name, id: Id) {
        self.nodes[dir].entries.insert(name.clone(), id);
        self.touch(dir);
        self.nodes[id].nlink += 1;
        if self.nodes[id].kind == Kind::Dir {
            self.nodes[id].parent = dir;
        }
    }

    fn leave(&mut self, dir: Id, name: &Name) -> Id {
        let id = self.nodes[dir].entries.remove(name).unwrap();
        self.touch(dir);
        self.nodes[id].nlink -= 1;
        id
    }

    fn make(&mut self, path: &Path, kind: Kind, mode: u32, data: &[u8]) -> Result<Id, Errno> {
        let (dir, name) = self.free(path)?;
        let mut node = Node::new(kind, mode, dir);
        node.data = data.to_vec();
        if self.nodes[dir].mode & 0o2000 != 0 {
            node.gid = self.nodes[dir].gid;
            if kind == Kind::Dir {
                node.mode |= 0o2000;
            }
        }
        self.nodes.push(node);
        let id = self.nodes.len() - 1;
        self.touch(id);
        self.enter(dir, name, id);
        Ok(id)
    }

    /// What open(2) with O_NOFOLLOW says of an object; fifos are not opened, with ENXIO as the word for it.
    fn openable(&self, id: Id, write: bool) -> Result<(), Errno> {
        match self.nodes[id].kind {
            Kind::File => Ok(()),
            Kind::Dir if write => Err(Errno::ISDIR),
            Kind::Dir => Ok(()),
            Kind::Symlink => Err(Errno::LOOP),
            _ => Err(Errno::NXIO),
        }
    }

    fn resize(&mut self, id: Id, len: u64) {
        self.nodes[id].data.resize(usize::try_from(len).unwrap(), 0);
        self.touch(id);
    }

    fn write(&mut self, id: Id, offset: u64, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        let node = &mut self.nodes[id];
        let start = usize::try_from(offset).unwrap();
        if node.data.len() < start + data.len() {
            node.data.resize(start + data.len(), 0);
        }
        node.data[start..start + data.len()].copy_from_slice(data);
        self.touch(id);
    }

    /// `user.` attributes are for files and directories.
    fn takes_xattr(&self, id: Id, name: &[u8]) -> Result<(), Errno> {
        let kind = self.nodes[id].kind;
        if name.starts_with(b"user.") && !matches!(kind, Kind::File | Kind::Dir) { Err(Errno::PERM) } else { Ok(()) }
    }

    pub(crate) fn apply(&mut self, op: &Op) -> Outcome {
        match op {
            Op::Create { at, mode, excl, trunc, slot } => {
                let (dir, name) = self.parent(at)?;
                let id = match self.nodes[dir].entries.get(name) {
                    Some(_) if *excl => return Err(Errno::EXIST),
                    Some(&id) => {
                        self.openable(id, true)?;
                        if *trunc {
                            self.resize(id, 0);
                        }
                        id
                    }
                    None => self.make(at, Kind::File, *mode, b"")?,
                };
                if let Some(slot) = slot {
                    self.slots[*slot] = Some((id, Mode::Write));
                }
            }
            Op::Open { at, write, trunc, slot } => {
                let id = self.find(at)?;
                self.openable(id, *write || *trunc)?;
                if *trunc {
                    self.resize(id, 0);
                }
                self.slots[*slot] = Some((id, if *write { Mode::Write } else { Mode::Read }));
            }
            Op::Hold { at, slot } => self.slots[*slot] = Some((self.find(at)?, Mode::Path)),
            Op::Close { slot } => drop(self.slots[*slot].take().ok_or(Errno::BADF)?),
            Op::Read { slot, offset, len } => {
                let (id, mode) = self.slot(*slot)?;
                if mode == Mode::Path {
                    return Err(Errno::BADF);
                }
                if self.nodes[id].kind == Kind::Dir {
                    return Err(Errno::ISDIR);
                }
                let data = &self.nodes[id].data;
                let start = data.len().min(usize::try_from(*offset).unwrap());
                return Ok(Reply::Data(data[start..data.len().min(start + len)].to_vec()));
            }
            Op::Write { slot, offset, data } => match self.slot(*slot)? {
                (id, Mode::Write) => self.write(id, *offset, data),
                _ => return Err(Errno::BADF),
            },
            Op::Ftruncate { slot, len } => match self.slot(*slot)? {
                (_, Mode::Path) => return Err(Errno::BADF),
                (_, Mode::Read) => return Err(Errno::INVAL),
                (id, Mode::Write) if self.nodes[id].data.len() as u64 != *len => self.resize(id, *len),
                (_, Mode::Write) => {}
            },
            Op::WriteAt { at, offset, data } => {
                let id = self.find(at)?;
                self.openable(id, true)?;
                self.write(id, *offset, data);
            }
            Op::Append { at, data } => {
                let id = self.find(at)?;
                self.openable(id, true)?;
                let end = self.nodes[id].data.len() as u64;
                self.write(id, end, data);
            }
            Op::Truncate { at, len } => {
                let id = self.find(at)?;
                match self.nodes[id].kind {
                    Kind::File => {}
                    Kind::Dir => return Err(Errno::ISDIR),
                    _ => return Err(Errno::INVAL),
                }
                if self.nodes[id].data.len() as u64 != *len {
                    self.resize(id, *len);
                }
            }
            Op::Mkdir { at, mode } => drop(self.make(at, Kind::Dir, *mode, b"")?),
            Op::Mkfifo { at, mode } => drop(self.make(at, Kind::Fifo, *mode, b"")?),
            Op::Mkchar { at, mode, rdev } => {
                let id = self.make(at, Kind::Char, *mode, b"")?;
                self.nodes[id].rdev = *rdev;
            }
            Op::Symlink { at, target } => drop(self.make(at, Kind::Symlink, 0o777, target)?),
            Op::Link { from, to } => {
                let id = self.find(from)?;
                let (dir, name) = self.free(to)?;
                if self.nodes[id].kind == Kind::Dir {
                    return Err(Errno::PERM);
                }
                if self.nodes[id].nlink == 0 {
                    return Err(Errno::NOENT);
                }
                self.enter(dir, name, id);
            }
            Op::Unlink { at } => {
                let (dir, name) = self.parent(at)?;
                if self.nodes[self.child(dir, name)?].kind == Kind::Dir {
                    return Err(Errno::ISDIR);
                }
                self.leave(dir, name);
            }
            Op::Rmdir { at } => {
                let (dir, name) = self.parent(at)?;
                let id = self.child(dir, name)?;
                if self.nodes[id].kind != Kind::Dir {
                    return Err(Errno::NOTDIR);
                }
                if !self.nodes[id].entries.is_empty() {
                    return Err(Errno::NOTEMPTY);
                }
                self.leave(dir, name);
                self.nodes[id].removed = true;
            }
            Op::Rename { from, to, how } => self.rename(from, to, *how)?,
            Op::Chmod { at, mode } => {
                let id = self.find(at)?;
                if self.nodes[id].kind == Kind::Symlink {
                    return Err(Errno::OPNOTSUPP);
                }
                self.nodes[id].mode = *mode;
            }
            Op::Chown { at, uid, gid } => {
                let id = self.find(at)?;
                let node = &mut self.nodes[id];
                node.uid = uid.unwrap_or(node.uid);
                node.gid = gid.unwrap_or(node.gid);
                if !matches!(node.kind, Kind::Dir | Kind::Symlink) {
                    node.mode &= if node.mode & 0o010 != 0 { !0o6000 } else { !0o4000 };
                }
            }
            Op::Utimes { at, mtime } => {
                let id = self.find(at)?;
                self.nodes[id].mtime = Mtime::Set(*mtime);
            }
            Op::SetXattr { at, name, value, how } => {
                let id = self.find(at)?;
                self.takes_xattr(id, name)?;
                match (how, self.nodes[id].xattrs.contains_key(name)) {
                    (How::Create, true) => return Err(Errno::EXIST),
                    (How::Replace, false) => return Err(Errno::NODATA),
                    _ => drop(self.nodes[id].xattrs.insert(name.clone(), value.clone())),
                }
            }
            Op::RemoveXattr { at, name } => {
                let id = self.find(at)?;
                self.takes_xattr(id, name)?;
                self.nodes[id].xattrs.remove(name).ok_or(Errno::NODATA)?;
            }
            Op::Readlink { at } => {
                let id = self.find(at)?;
                if self.nodes[id].kind != Kind::Symlink {
                    return Err(Errno::INVAL);
                }
                return Ok(Reply::Data(self.nodes[id].data.clone()));
            }
            Op::List { at } => {
                let id = self.find(at)?;
                if self.nodes[id].kind != Kind::Dir {
                    return Err(Errno::NOTDIR);
                }
                if self.nodes[id].removed {
                    return Err(Errno::NOENT);
                }
                return Ok(Reply::Names(self.nodes[id].entries.keys().cloned().collect()));
            }
            Op::Stat { at } => {
                let id = self.find(at)?;
                return Ok(Reply::Object(Box::new(self.object(id))));
            }
            Op::Forget => {}
            Op::Remount => {
                self.slots = Default::default();
                self.settle();
            }
            Op::Restack => {
                self.slots = Default::default();
                self.epoch += 1;
                for node in self.nodes.iter_mut().filter(|node| node.kind != Kind::Dir) {
                    node.uncounted |= node.linked_below;
                    node.linked_below |= node.nlink > 1;
                }
            }
        }
        Ok(Reply::Done)
    }

    fn rename(&mut self, from: &Path, to: &Path, how: Move) -> Result<(), Errno> {
        let (old_dir, old_name) = self.parent(from)?;
        let (new_dir, new_name) = self.parent(to)?;
        let old = self.child(old_dir, old_name)?;
        if self.nodes[new_dir].removed {
            return Err(Errno::NOENT);
        }
        let new = self.nodes[new_dir].entries.get(new_name).copied();
        let is_dir = |id: Id| self.nodes[id].kind == Kind::Dir;
        match (how, new) {
            (Move::NoReplace, Some(_)) => return Err(Errno::EXIST),
            (Move::Exchange, None) => return Err(Errno::NOENT),
            _ => {}
        }
        if is_dir(old) && self.is_above(old, new_dir) {
            return Err(Errno::INVAL);
        }
        if let Some(new) = new {
            if is_dir(new) && self.is_above(new, old_dir) {
                return Err(if how == Move::Exchange { Errno::INVAL } else { Errno::NOTEMPTY });
            }
            if old == new {
                return Ok(());
            }
            if how != Move::Exchange {
                match (is_dir(old), is_dir(new)) {
                    (true, false) => return Err(Errno::NOTDIR),
                    (false, true) => return Err(Errno::ISDIR),
                    (true, true) if !self.nodes[new].entries.is_empty() => return Err(Errno::NOTEMPTY),
                    _ => {}
                }
            }
        }
        self.leave(old_dir, old_name);
        if let Some(new) = new {
            self.leave(new_dir, new_name);
            if how == Move::Exchange {
                self.enter(old_dir, old_name, new);
            } else {
                self.nodes[new].removed = true;
            }
        }
        self.enter(new_dir, new_name, old);
        if how == Move::Whiteout {
            self.make(from, Kind::Char, 0, b"")?;
        }
        Ok(())
    }

    fn object(&self, id: Id) -> Object {
        let node = &self.nodes[id];
        let nlink = (node.kind != Kind::Dir && !node.uncounted).then_some(node.nlink + node.hidden);
        Object {
            kind: node.kind,
            mode: node.mode,
            uid: node.uid,
            gid: node.gid,
            rdev: node.rdev,
            size: node.data.len() as u64,
            nlink,
            mtime: if let Mtime::Set(time) = node.mtime { Some(time) } else { None },
            data: node.data.clone(),
            xattrs: node.xattrs.clone(),
            names: None,
            id: self.number(id),
        }
    }

    pub(crate) fn view(&self) -> View {
        let mut view = View::default();
        let mut todo = vec![(Vec::new(), ROOT)];
        while let Some((path, id)) = todo.pop() {
            for (name, child) in &self.nodes[id].entries {
                todo.push(([&path[..], std::slice::from_ref(name)].concat(), *child));
            }
            view.tree.insert(path, self.object(id));
        }
        for slot in &self.slots {
            let object = slot.map(|(id, mode)| {
                let mut object = self.object(id);
                let node = &self.nodes[id];
                if mode == Mode::Path {
                    object.data.clear();
                }
                if node.removed && node.kind == Kind::Dir {
                    // Emptying it may have touched it.
                    object.mtime = Some(ANY);
                }
                if node.kind == Kind::Dir && mode != Mode::Path {
                    object.names = Some(node.entries.keys().cloned().collect());
                }
                object
            });
            view.slots.push(object);
        }
        view
    }
}
