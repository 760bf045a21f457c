//! A filesystem in memory: the fast half of the model tests, and layers for benchmarks.
//!
//! It follows POSIX where the union can tell the difference: link counts, times of directories, errnos of the namespace calls. Several trees
//! of one `MemFs` share its `st_dev`, as layers on one host filesystem do.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use plyfs_sys::at::SetTime;
use plyfs_sys::at::XattrMode;
use plyfs_sys::handle::FileHandle;
use plyfs_sys::stat::{Kind, Stat, Time};
use plyfs_sys::statfs::StatFs;
use plyfs_sys::{Errno, Result};

use super::{Handle, ObjectId, Place, RawEntry, Rename, Seek, Trace, Tree, UpperTree};
use crate::name::Name;
use crate::sync::AtomicU64;

const BLOCK: u64 = 512;
const BLKSIZE: u32 = 4096;

/// A filesystem in memory; its trees are made by [`MemFs::tree`] and [`MemFs::upper`].
pub struct MemFs {
    dev: u64,
    next_ino: AtomicU64,
    /// Seconds since the epoch, one more at each change: times differ and are the same in each run.
    clock: AtomicU64,
    inodes: Mutex<HashMap<u64, Weak<Inode>>>,
    /// Held by every call that changes more than one object.
    namespace: Mutex<()>,
}

impl MemFs {
    /// An empty filesystem with this `st_dev`.
    pub fn new(dev: u64) -> Arc<Self> {
        Arc::new(Self {
            dev,
            next_ino: AtomicU64::new(2),
            clock: AtomicU64::new(1_000_000_000),
            inodes: Mutex::default(),
            namespace: Mutex::default(),
        })
    }

    /// A new empty directory as a layer.
    pub fn tree(self: &Arc<Self>) -> MemTree {
        MemTree {
            fs: self.clone(),
            root: self.inode(Kind::Dir, 0o755, 0),
            work: self.inode(Kind::Dir, 0o700, 0),
            index: self.inode(Kind::Dir, 0o700, 0),
        }
    }

    fn now(&self) -> Time {
        Time { sec: i64::try_from(self.clock.fetch_add(1, Ordering::Relaxed)).unwrap_or(i64::MAX), nsec: 0 }
    }

    fn inode(self: &Arc<Self>, kind: Kind, mode: u32, rdev: u64) -> MemNode {
        let now = self.now();
        let id = ObjectId { dev: self.dev, ino: self.next_ino.fetch_add(1, Ordering::Relaxed) };
        let nlink = if kind == Kind::Dir { 2 } else { 0 };
        let state = State {
            mode,
            uid: 0,
            gid: 0,
            nlink,
            linkable: false,
            atime: now,
            mtime: now,
            ctime: now,
            data: Vec::new(),
            entries: BTreeMap::new(),
            xattrs: BTreeMap::new(),
        };
        let inode = Arc::new(Inode { id, kind, rdev, btime: now, state: Mutex::new(state) });
        let mut inodes = self.inodes.lock();
        if inodes.len().is_power_of_two() {
            inodes.retain(|_, weak| weak.strong_count() > 0);
        }
        inodes.insert(id.ino, Arc::downgrade(&inode));
        MemNode(inode)
    }
}

struct Inode {
    id: ObjectId,
    kind: Kind,
    rdev: u64,
    btime: Time,
    state: Mutex<State>,
}

struct State {
    mode: u32,
    uid: u32,
    gid: u32,
    nlink: u32,
    /// Made without a name, and not linked yet (the kernel's I_LINKABLE).
    linkable: bool,
    atime: Time,
    mtime: Time,
    ctime: Time,
    /// Content of a file, target of a symlink.
    data: Vec<u8>,
    entries: BTreeMap<Name, MemNode>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// An object in memory.
#[derive(Clone)]
pub struct MemNode(Arc<Inode>);

impl fmt::Debug for MemNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mem:{}({:?})", self.0.id.ino, self.0.kind)
    }
}

/// One layer in memory, with a staging directory beside it.
#[derive(Clone)]
pub struct MemTree {
    fs: Arc<MemFs>,
    root: MemNode,
    work: MemNode,
    index: MemNode,
}

impl MemTree {
    fn dir_entry(&self, at: Place<'_, MemNode>) -> Result<MemNode> {
        at.dir.dir()?;
        at.dir.0.state.lock().entries.get(at.name).cloned().ok_or(Errno::NOENT)
    }

    fn insert(&self, at: Place<'_, MemNode>, node: &MemNode) -> Result<()> {
        at.dir.dir()?;
        {
            let mut dir = at.dir.0.state.lock();
            if dir.entries.contains_key(at.name) {
                return Err(Errno::EXIST);
            }
            if dir.nlink == 0 {
                return Err(Errno::NOENT);
            }
            dir.entries.insert(at.name.clone(), node.clone());
            if node.0.kind == Kind::Dir {
                dir.nlink += 1;
            }
            dir.touch(self.fs.now());
        }
        if node.0.kind != Kind::Dir {
            let mut state = node.0.state.lock();
            state.nlink += 1;
            state.ctime = self.fs.now();
        }
        Ok(())
    }

    fn take(&self, at: Place<'_, MemNode>) -> Result<MemNode> {
        let node = {
            let mut dir = at.dir.0.state.lock();
            let node = dir.entries.remove(at.name).ok_or(Errno::NOENT)?;
            if node.0.kind == Kind::Dir {
                dir.nlink -= 1;
            }
            dir.touch(self.fs.now());
            node
        };
        if node.0.kind != Kind::Dir {
            let mut state = node.0.state.lock();
            state.nlink -= 1;
            state.ctime = self.fs.now();
        }
        Ok(node)
    }

    fn make(&self, at: Place<'_, MemNode>, kind: Kind, mode: u32, rdev: u64) -> Result<MemNode> {
        let _names = self.fs.namespace.lock();
        let node = self.fs.inode(kind, mode, rdev);
        self.insert(at, &node)?;
        Ok(node)
    }

    /// The target of a rename must be free of what it would replace; removes it.
    fn replace_target(&self, moved: &MemNode, to: Place<'_, MemNode>) -> Result<()> {
        let there = to.dir.0.state.lock().entries.get(to.name).cloned();
        let Some(there) = there else { return Ok(()) };
        match (moved.0.kind == Kind::Dir, there.0.kind == Kind::Dir) {
            (true, false) => return Err(Errno::NOTDIR),
            (false, true) => return Err(Errno::ISDIR),
            (true, true) if !there.0.state.lock().entries.is_empty() => return Err(Errno::NOTEMPTY),
            _ => {}
        }
        let gone = self.take(to)?;
        if gone.0.kind == Kind::Dir {
            gone.0.state.lock().nlink = 0;
        }
        Ok(())
    }
}

impl State {
    fn touch(&mut self, now: Time) {
        self.mtime = now;
        self.ctime = now;
    }
}

impl MemNode {
    fn dir(&self) -> Result<()> {
        if self.0.kind == Kind::Dir { Ok(()) } else { Err(Errno::NOTDIR) }
    }

    fn stat(&self) -> Stat {
        let state = self.0.state.lock();
        let size = match self.0.kind {
            Kind::Dir => 4096,
            _ => state.data.len() as u64,
        };
        Stat {
            dev: self.0.id.dev,
            ino: self.0.id.ino,
            kind: self.0.kind,
            mode: state.mode,
            nlink: state.nlink,
            uid: state.uid,
            gid: state.gid,
            rdev: self.0.rdev,
            size,
            blocks: size.div_ceil(BLOCK),
            blksize: BLKSIZE,
            atime: state.atime,
            mtime: state.mtime,
            ctime: state.ctime,
            btime: Some(self.0.btime),
            immutable: false,
            append_only: false,
        }
    }
}

fn index(offset: u64) -> Result<usize> {
    usize::try_from(offset).map_err(|_| Errno::FBIG)
}

impl Tree for MemTree {
    type Node = MemNode;
    type File = MemNode;

    fn root(&self) -> MemNode {
        self.root.clone()
    }

    fn id(&self, node: &MemNode) -> ObjectId {
        node.0.id
    }

    fn lookup(&self, dir: &MemNode, name: &Name) -> Result<Option<(MemNode, Stat)>> {
        dir.dir()?;
        let found = dir.0.state.lock().entries.get(name).cloned();
        Ok(found.map(|node| {
            let stat = node.stat();
            (node, stat)
        }))
    }

    fn stat(&self, node: &MemNode) -> Result<Stat> {
        Ok(node.stat())
    }

    fn readlink(&self, node: &MemNode) -> Result<Vec<u8>> {
        if node.0.kind != Kind::Symlink {
            return Err(Errno::INVAL);
        }
        Ok(node.0.state.lock().data.clone())
    }

    fn read_dir(&self, dir: &MemNode) -> Result<Vec<RawEntry>> {
        dir.dir()?;
        let state = dir.0.state.lock();
        Ok(state.entries.iter().map(|(name, node)| RawEntry { name: name.to_vec(), ino: node.0.id.ino, kind: Some(node.0.kind) }).collect())
    }

    fn get_xattr(&self, node: &MemNode, name: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(node.0.state.lock().xattrs.get(name).cloned())
    }

    fn list_xattr(&self, node: &MemNode) -> Result<Vec<Vec<u8>>> {
        Ok(node.0.state.lock().xattrs.keys().cloned().collect())
    }

    fn open(&self, node: &MemNode) -> Result<MemNode> {
        Ok(node.clone())
    }

    fn read(&self, file: &MemNode, buf: &mut [u8], offset: u64) -> Result<usize> {
        let state = file.0.state.lock();
        let from = state.data.get(index(offset)?..).unwrap_or_default();
        let len = from.len().min(buf.len());
        if let (Some(to), Some(from)) = (buf.get_mut(..len), from.get(..len)) {
            to.copy_from_slice(from);
        }
        Ok(len)
    }

    fn seek(&self, file: &MemNode, offset: u64, what: Seek) -> Result<u64> {
        let len = file.0.state.lock().data.len() as u64;
        if offset >= len {
            return Err(Errno::NXIO);
        }
        Ok(if what == Seek::Data { offset } else { len })
    }

    fn stat_file(&self, file: &MemNode) -> Result<Stat> {
        Ok(file.stat())
    }

    fn statfs(&self) -> Result<StatFs> {
        Ok(StatFs { bsize: 4096, frsize: 4096, blocks: 0, bfree: 0, bavail: 0, files: 0, ffree: 0, namelen: 255, fs_type: 0, flags: 0 })
    }

    fn handle(&self, node: &MemNode) -> Result<Option<Handle>> {
        let mut uuid = [0; 16];
        uuid[8..].copy_from_slice(&node.0.id.dev.to_le_bytes());
        let handle = FileHandle { kind: 1, bytes: node.0.id.ino.to_le_bytes().to_vec() };
        Ok(Some(Handle { uuid, handle }))
    }

    fn trace(&self, handle: &Handle) -> Result<Option<Trace>> {
        let Some(stat) = self.by_handle(handle)?.filter(|stat| stat.kind == Kind::Dir) else { return Ok(None) };
        let mut todo = vec![(self.root.clone(), Trace::new())];
        while let Some((dir, way)) = todo.pop() {
            if dir.0.id.ino == stat.ino {
                return Ok(Some(way));
            }
            let state = dir.0.state.lock();
            for (name, node) in state.entries.iter().filter(|(_, node)| node.0.kind == Kind::Dir) {
                todo.push((node.clone(), [&way[..], &[(name.clone(), node.0.id)]].concat()));
            }
        }
        Ok(None)
    }

    fn by_handle(&self, handle: &Handle) -> Result<Option<Stat>> {
        let Ok(bytes) = <[u8; 8]>::try_from(handle.handle.bytes.as_slice()) else { return Ok(None) };
        if handle.uuid[8..] != self.fs.dev.to_le_bytes() {
            return Ok(None);
        }
        let inode = self.fs.inodes.lock().get(&u64::from_le_bytes(bytes)).and_then(Weak::upgrade);
        Ok(inode.map(|inode| MemNode(inode).stat()))
    }
}

impl UpperTree for MemTree {
    fn work(&self) -> MemNode {
        self.work.clone()
    }

    fn index(&self) -> Option<MemNode> {
        Some(self.index.clone())
    }

    fn create(&self, at: Place<'_, MemNode>, mode: u32) -> Result<(MemNode, MemNode)> {
        let node = self.make(at, Kind::File, mode, 0)?;
        Ok((node.clone(), node))
    }

    fn tmpfile(&self) -> Result<Option<(MemNode, MemNode)>> {
        let node = self.fs.inode(Kind::File, 0o600, 0);
        node.0.state.lock().linkable = true;
        Ok(Some((node.clone(), node)))
    }

    fn mkdir(&self, at: Place<'_, MemNode>, mode: u32) -> Result<MemNode> {
        self.make(at, Kind::Dir, mode, 0)
    }

    fn mknod(&self, at: Place<'_, MemNode>, kind: Kind, mode: u32, rdev: u64) -> Result<MemNode> {
        self.make(at, kind, mode, rdev)
    }

    fn symlink(&self, at: Place<'_, MemNode>, target: &[u8]) -> Result<MemNode> {
        let node = self.make(at, Kind::Symlink, 0o777, 0)?;
        node.0.state.lock().data = target.to_vec();
        Ok(node)
    }

    fn link(&self, node: &MemNode, at: Place<'_, MemNode>) -> Result<()> {
        let _names = self.fs.namespace.lock();
        if node.0.kind == Kind::Dir {
            return Err(Errno::PERM);
        }
        {
            let state = node.0.state.lock();
            if state.nlink == 0 && !state.linkable {
                return Err(Errno::NOENT);
            }
        }
        self.insert(at, node)?;
        node.0.state.lock().linkable = false;
        Ok(())
    }

    fn unlink(&self, at: Place<'_, MemNode>) -> Result<()> {
        let _names = self.fs.namespace.lock();
        if self.dir_entry(at)?.0.kind == Kind::Dir {
            return Err(Errno::ISDIR);
        }
        self.take(at).map(drop)
    }

    fn rmdir(&self, at: Place<'_, MemNode>) -> Result<()> {
        let _names = self.fs.namespace.lock();
        let node = self.dir_entry(at)?;
        node.dir()?;
        if !node.0.state.lock().entries.is_empty() {
            return Err(Errno::NOTEMPTY);
        }
        self.take(at)?;
        node.0.state.lock().nlink = 0;
        Ok(())
    }

    fn rename(
        &self,
        from: Place<'_, MemNode>,
        _moved: Option<&MemNode>,
        to: Place<'_, MemNode>,
        _other: Option<&MemNode>,
        how: Rename,
    ) -> Result<()> {
        let _names = self.fs.namespace.lock();
        let moved = self.dir_entry(from)?;
        let there = to.dir.0.state.lock().entries.get(to.name).cloned();
        match how {
            Rename::NoReplace if there.is_some() => return Err(Errno::EXIST),
            Rename::Exchange => {
                there.ok_or(Errno::NOENT)?;
                let a = self.take(from)?;
                let b = self.take(to)?;
                self.insert(to, &a)?;
                return self.insert(from, &b);
            }
            _ => {}
        }
        if there.is_some_and(|there| Arc::ptr_eq(&there.0, &moved.0)) {
            return Ok(());
        }
        self.replace_target(&moved, to)?;
        let moved = self.take(from)?;
        self.insert(to, &moved)?;
        if how == Rename::Whiteout {
            self.insert(from, &self.fs.inode(Kind::Char, 0, 0))?;
        }
        Ok(())
    }

    fn whiteout(&self, at: Place<'_, MemNode>) -> Result<()> {
        self.make(at, Kind::Char, 0, 0).map(drop)
    }

    fn pin(&self, _node: &MemNode, _losing: Option<Place<'_, MemNode>>) -> Result<bool> {
        // A node is the object itself.
        Ok(true)
    }

    fn known_by(&self, _node: &MemNode, _at: Place<'_, MemNode>, _own: bool) {}

    fn set_owner(&self, node: &MemNode, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
        let now = self.fs.now();
        let mut state = node.0.state.lock();
        state.uid = uid.unwrap_or(state.uid);
        state.gid = gid.unwrap_or(state.gid);
        if !matches!(node.0.kind, Kind::Dir | Kind::Symlink) {
            // chown(2) takes setuid away, and setgid from what a group may execute.
            state.mode &= if state.mode & 0o010 != 0 { !0o6000 } else { !0o4000 };
        }
        state.ctime = now;
        Ok(())
    }

    fn set_mode(&self, node: &MemNode, mode: u32) -> Result<()> {
        let now = self.fs.now();
        let mut state = node.0.state.lock();
        state.mode = mode & 0o7777;
        state.ctime = now;
        Ok(())
    }

    fn set_times(&self, node: &MemNode, atime: SetTime, mtime: SetTime) -> Result<()> {
        let now = self.fs.now();
        let pick = |time: SetTime, old: Time| match time {
            SetTime::Omit => old,
            SetTime::Now => now,
            SetTime::To(time) => time,
        };
        let mut state = node.0.state.lock();
        state.atime = pick(atime, state.atime);
        state.mtime = pick(mtime, state.mtime);
        state.ctime = now;
        Ok(())
    }

    fn set_xattr(&self, node: &MemNode, name: &[u8], value: &[u8], mode: XattrMode) -> Result<()> {
        let now = self.fs.now();
        let mut state = node.0.state.lock();
        match (mode, state.xattrs.contains_key(name)) {
            (XattrMode::Create, true) => return Err(Errno::EXIST),
            (XattrMode::Replace, false) => return Err(Errno::NODATA),
            _ => {}
        }
        state.xattrs.insert(name.to_vec(), value.to_vec());
        state.ctime = now;
        Ok(())
    }

    fn remove_xattr(&self, node: &MemNode, name: &[u8]) -> Result<()> {
        let now = self.fs.now();
        let mut state = node.0.state.lock();
        state.xattrs.remove(name).ok_or(Errno::NODATA)?;
        state.ctime = now;
        Ok(())
    }

    fn open_write(&self, node: &MemNode) -> Result<MemNode> {
        Ok(node.clone())
    }

    fn write(&self, file: &MemNode, data: &[u8], offset: u64) -> Result<usize> {
        let start = index(offset)?;
        let end = start.checked_add(data.len()).ok_or(Errno::FBIG)?;
        let now = self.fs.now();
        let mut state = file.0.state.lock();
        if state.data.len() < end {
            state.data.resize(end, 0);
        }
        if let Some(to) = state.data.get_mut(start..end) {
            to.copy_from_slice(data);
        }
        state.touch(now);
        Ok(data.len())
    }

    fn truncate(&self, file: &MemNode, len: u64) -> Result<()> {
        let len = index(len)?;
        let now = self.fs.now();
        let mut state = file.0.state.lock();
        state.data.resize(len, 0);
        state.touch(now);
        Ok(())
    }

    fn fallocate(&self, file: &MemNode, mode: i32, offset: u64, len: u64) -> Result<()> {
        const KEEP_SIZE: i32 = 1;
        const PUNCH_HOLE: i32 = 2;
        const ZERO_RANGE: i32 = 16;
        if mode & !(KEEP_SIZE | PUNCH_HOLE | ZERO_RANGE) != 0 {
            return Err(Errno::OPNOTSUPP);
        }
        let (start, end) = (index(offset)?, index(offset.checked_add(len).ok_or(Errno::FBIG)?)?);
        let now = self.fs.now();
        let mut state = file.0.state.lock();
        if mode & KEEP_SIZE == 0 && state.data.len() < end {
            state.data.resize(end, 0);
        }
        if mode & (PUNCH_HOLE | ZERO_RANGE) != 0 {
            let end = end.min(state.data.len());
            if let Some(hole) = state.data.get_mut(start.min(end)..end) {
                hole.fill(0);
            }
        }
        state.touch(now);
        Ok(())
    }

    fn sync(&self, _file: &MemNode, _data_only: bool) -> Result<()> {
        Ok(())
    }

    fn sync_dir(&self, _dir: &MemNode) -> Result<()> {
        Ok(())
    }

    fn copy_range(&self, from: &MemNode, from_offset: u64, to: &MemNode, to_offset: u64, len: u64) -> Result<usize> {
        let mut data = vec![0; index(len)?.min(from.0.state.lock().data.len())];
        let got = self.read(from, &mut data, from_offset)?;
        data.truncate(got);
        if data.is_empty() { Ok(0) } else { self.write(to, &data, to_offset) }
    }

    fn copy_data(&self, from: &MemNode, to: &MemNode, len: u64) -> Result<u64> {
        self.copy_range(from, 0, to, 0, len).map(|n| n as u64)
    }
}
