//! A layer that is a real directory.
//!
//! An object is known by (directory, name) and its (st_dev, st_ino); only directories keep an O_PATH fd, in a cache of bounded size
//! (`fds.rs`). Each access names one component below a directory fd and never follows a symlink, so nothing outside of the layer is reached, even
//! if somebody changes the layer behind our back; then the identity check answers ESTALE.
//!
//! `node.place` is held shared across each call that uses the name, and exclusively by a rename of that object, so that no call of ours finds
//! another object under a name that has just moved. It is taken child before parent, and nothing else is taken under it but parents' places and
//! the fd cache.

mod fds;
mod foreign;
mod keeping;
mod open;
mod volatile;
mod workdir;

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use plyfs_sys::at::{self, At, SetTime, XattrMode};
use plyfs_sys::flags::{self, Fsx};
use plyfs_sys::stat::{Kind, Stat};
use plyfs_sys::statfs::StatFs;
use plyfs_sys::{Errno, OFlags, RenameFlags, Result, create, handle, io, statfs, tree};

use self::fds::{FdCache, Pinned};
use self::foreign::{Bound, Looked};
use self::keeping::Keeper;
pub use self::keeping::Keeping;
pub use self::open::{LayerOpenError, check_overlap, recorded_dialect_of};
pub(crate) use self::volatile::{BOOT, boot_id};
pub(crate) use self::workdir::{INCOMPAT, VOLATILE};
use super::{Handle, ObjectId, Place, RawEntry, Rename, Seek, Trace, Tree, UpperTree};
use crate::name::Name;
use crate::owners::OwnerMap;
use crate::sync::AtomicBool;
use crate::union::NO_ID;
use crate::xattr::CAPABILITY;

/// A real directory as a layer; made by [`DirTree::lower`], [`DirTree::lower_from_fd`] and [`DirTree::upper`].
pub struct DirTree {
    root: DirNode,
    work: Option<DirNode>,
    index: Option<DirNode>,
    fds: &'static FdCache,
    _pinned: Pinned,
    /// UUID of the filesystem, zeros if it has none; `None` if it cannot give out file handles.
    uuid: Option<[u8; 16]>,
    /// Of an upper: where owners, modes and kinds are.
    keeper: Keeper,
    /// What the mount that the layer is on makes of owners, which is undone: see [`DirTree::behind_idmap`].
    idmap: Option<OwnerMap>,
    /// Of a layer that other filesystems are mounted in, which do not belong to it: see [`DirTree::on_one_mount`].
    bound: Option<Bound>,
    /// Held for the lifetime: the flocks on upperdir and workdir.
    locks: Vec<OwnedFd>,
}

/// An object of a real directory. Cloning is cheap.
#[derive(Clone)]
pub struct DirNode(Arc<NodeInner>);

struct NodeInner {
    id: ObjectId,
    kind: Kind,
    place: RwLock<Placed>,
    fd: Mutex<Option<Arc<OwnedFd>>>,
    /// Clock bit of the fd cache.
    used: AtomicBool,
}

/// How the object is reached.
enum Placed {
    /// By name, in a directory.
    Named { dir: DirNode, name: Name },
    /// By a name in `work` that nobody else uses, and that goes with the node.
    Kept { work: DirNode, name: Name },
    /// By the fd alone, which is kept: a layer's root, an object without a name. Counted if it was pinned because its name went.
    // The count is only ever dropped.
    Pinned(Arc<OwnedFd>, #[allow(dead_code)] Option<Pinned>),
    /// Not at all: it is on another mount than the layer, and shows so.
    Foreign(Box<Stat>),
    /// Not any more: the node is being dropped, and nobody has it.
    Gone,
}

/// An open file of a real directory.
pub struct DirFile(OwnedFd);

impl DirFile {
    /// Its descriptor.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl fmt::Debug for DirNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dir:{}({:?})", self.0.id.ino, self.0.kind)
    }
}

impl Drop for NodeInner {
    /// Lets go of the chain of parents in a loop: recursion would need a stack as deep as the tree.
    fn drop(&mut self) {
        let mut next = self.take_parent();
        while let Some(mut inner) = next.and_then(|node| Arc::into_inner(node.0)) {
            next = inner.take_parent();
        }
    }
}

impl NodeInner {
    fn take_parent(&mut self) -> Option<DirNode> {
        // Taken, not cloned: a clone would leave the field to be dropped, and its parents one inside the other.
        match std::mem::replace(self.place.get_mut(), Placed::Gone) {
            Placed::Named { dir, .. } => Some(dir),
            Placed::Kept { work, name } => {
                self.remove_kept(&work, &name);
                Some(work)
            }
            Placed::Pinned(..) | Placed::Foreign(_) | Placed::Gone => None,
        }
    }
}

impl NodeInner {
    /// Nobody has the object any more. What cannot be removed is litter in `work`, which is emptied at the next mount.
    fn remove_kept(&self, work: &DirNode, name: &Name) {
        let Placed::Pinned(work, _) = &*work.0.place.read() else { return };
        let removed = if self.kind == Kind::Dir { create::rmdir(work.as_fd(), name) } else { create::unlink(work.as_fd(), name) };
        if let Err(errno) = removed {
            tracing::warn!(%errno, %name, "litter stays in workdir");
        }
    }
}

impl DirNode {
    fn new(stat: &Stat, place: Placed) -> Self {
        Self(Arc::new(NodeInner {
            id: ObjectId::of(stat),
            kind: stat.kind,
            place: RwLock::new(place),
            fd: Mutex::new(None),
            used: AtomicBool::new(false),
        }))
    }

    fn named(stat: &Stat, at: Place<'_, DirNode>) -> Self {
        Self::new(stat, Placed::Named { dir: at.dir.clone(), name: at.name.clone() })
    }
}

impl DirTree {
    /// An fd of a directory that is good for `*at` calls (O_PATH); from the cache, or opened by name downwards from the nearest ancestor that has one.
    ///
    /// Errors: ESTALE if a directory on the way is not where this tree put it; never ENOENT, which callers would take for "the name is not there".
    fn dir_fd(&self, node: &DirNode) -> Result<Arc<OwnedFd>> {
        // A rename of a directory on the way may fall between its parent's fd and its own open; then the walk starts over.
        const ATTEMPTS: usize = 64;
        for _ in 0..ATTEMPTS {
            if let Some(fd) = self.try_dir_fd(node)? {
                return Ok(fd);
            }
        }
        Err(Errno::STALE)
    }

    fn try_dir_fd(&self, node: &DirNode) -> Result<Option<Arc<OwnedFd>>> {
        let mut missing = Vec::new();
        let mut at = node.clone();
        let mut fd = loop {
            if let Some(fd) = self.fds.get(&at) {
                break fd;
            }
            let parent = match &*at.0.place.read() {
                Placed::Pinned(fd, _) => break fd.clone(),
                Placed::Named { dir, .. } | Placed::Kept { work: dir, .. } => dir.clone(),
                Placed::Foreign(_) => return Err(Errno::ACCESS),
                Placed::Gone => return Err(Errno::STALE),
            };
            missing.push((at, parent.clone()));
            at = parent;
        };
        while let Some((node, parent)) = missing.pop() {
            // Held over the open, so that no rename of ours moves the name away from under it.
            fd = match &*node.0.place.read() {
                Placed::Pinned(fd, _) => fd.clone(),
                Placed::Foreign(_) => return Err(Errno::ACCESS),
                Placed::Gone => return Err(Errno::STALE),
                Placed::Named { dir, .. } | Placed::Kept { work: dir, .. } if !Arc::ptr_eq(&dir.0, &parent.0) => return Ok(None),
                Placed::Named { name, .. } | Placed::Kept { name, .. } => match self.open_checked(&node, fd.as_fd(), name) {
                    Ok(opened) => Arc::new(opened),
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => return Err(Errno::STALE),
                    Err(errno) => return Err(errno),
                },
            };
            if missing.len() < self.fds.chain() {
                self.fds.put(&node, &fd);
            }
        }
        Ok(Some(fd))
    }

    /// Runs `call` on the object, by its fd if it is pinned or a directory with an open fd, else by name.
    fn at<R>(&self, node: &DirNode, call: impl FnOnce(At<'_>) -> Result<R>) -> Result<R> {
        if node.0.kind == Kind::Dir {
            let fd = self.dir_fd(node)?;
            return call(At::Fd(fd.as_fd()));
        }
        let place = node.0.place.read();
        match &*place {
            Placed::Pinned(fd, _) => call(At::Fd(fd.as_fd())),
            Placed::Foreign(_) => Err(Errno::ACCESS),
            Placed::Gone => Err(Errno::STALE),
            Placed::Named { dir, name } | Placed::Kept { work: dir, name } => {
                let fd = self.dir_fd(dir)?;
                call(At::Name(fd.as_fd(), name))
            }
        }
    }

    fn in_dir<R>(&self, at: Place<'_, DirNode>, call: impl FnOnce(BorrowedFd<'_>, &[u8]) -> Result<R>) -> Result<R> {
        let fd = self.dir_fd(at.dir)?;
        call(fd.as_fd(), at.name)
    }

    fn open_file(&self, node: &DirNode, flags: OFlags) -> Result<DirFile> {
        if node.0.kind != Kind::File {
            return Err(Errno::INVAL);
        }
        // O_NONBLOCK: if the name is a fifo by now, the open returns and the check below refuses it.
        let flags = flags | OFlags::NONBLOCK;
        let fd = self.at(node, |at| match at {
            // Not in one go: what is mounted at a name must not hear of it.
            At::Name(dir, name) if self.bound.is_some() => at::open(At::Fd(at::open_path_same_mount(dir, name)?.as_fd()), flags),
            at => at::open(at, flags),
        })?;
        check(node, &at::stat(At::Fd(fd.as_fd()))?)?;
        Ok(DirFile(fd))
    }

    fn open_checked(&self, node: &DirNode, dir: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd> {
        let fd = if self.bound.is_some() { at::open_path_same_mount(dir, name)? } else { at::open_path(At::Name(dir, name))? };
        check(node, &at::stat(At::Fd(fd.as_fd()))?)?;
        Ok(fd)
    }

    /// Opens what a handle names, wherever it is on the layer's filesystem: nobody may be given this descriptor.
    fn open_handle(&self, handle: &Handle) -> Result<Option<OwnedFd>> {
        if self.uuid != Some(handle.uuid) {
            return Ok(None);
        }
        let root = self.dir_fd(&self.root)?;
        match handle::open_handle(root.as_fd(), &handle.handle) {
            Ok(fd) => Ok(Some(fd)),
            // ESTALE: gone. EINVAL: not a handle of this filesystem. EPERM: without CAP_DAC_READ_SEARCH handles cannot be opened.
            Err(Errno::STALE | Errno::INVAL | Errno::PERM | Errno::OPNOTSUPP) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// An object open for its flags: a regular file or a directory, only read.
    fn opened(&self, node: &DirNode) -> Result<OwnedFd> {
        match node.0.kind {
            _ if self.foreign(node).is_some() => Err(Errno::NOTTY),
            Kind::File => Ok(self.open_file(node, OFlags::RDONLY)?.0),
            Kind::Dir => self.at(node, |at| at::open(at, OFlags::RDONLY | OFlags::DIRECTORY)),
            _ => Err(Errno::NOTTY),
        }
    }

    /// The same upper, which keeps owners, modes and kinds so; says so at its root. Where the place has no attributes, [`Keeping::WhereRefused`] becomes
    /// [`Keeping::Lost`].
    ///
    /// Errors: the root cannot have the attribute.
    pub fn keeping(self, keeping: Keeping) -> Result<Self> {
        let mut keeper = Keeper::new(keeping);
        if self.work.is_some() {
            match self.at(&self.root, |root| keeper.declare(root)) {
                Err(Errno::OPNOTSUPP) if keeping == Keeping::WhereRefused => keeper = Keeper::new(Keeping::Lost),
                declared => declared?,
            }
        }
        Ok(Self { keeper, ..self })
    }

    /// Whether it was opened to be written.
    pub fn is_writable(&self) -> bool {
        self.work.is_some()
    }

    /// Whether its root says that owners in it are kept in attributes.
    ///
    /// Errors: the host's.
    pub fn keeps_owners_aside(&self) -> Result<bool> {
        let root = self.dir_fd(&self.root)?;
        Keeping::is_declared(root.as_fd())
    }

    /// Says in the work directory that the upper is not to be trusted after a crash of the machine (`volatile`): another boot's mount refuses it then.
    ///
    /// Errors: the host's.
    pub fn mark_volatile(&self) -> Result<()> {
        let Some(work) = &self.work else { return Err(Errno::ROFS) };
        volatile::mark(self.dir_fd(work)?.as_fd())
    }

    /// The same layer, for who maps owners: it is on an idmapped mount, which shows them by this map already. What a layer says is what is on disk, so the map is undone.
    ///
    /// podman gives its mount program both, layers on idmapped mounts and the map.
    #[must_use]
    pub fn behind_idmap(self, owners: OwnerMap) -> Self {
        Self { idmap: Some(owners), ..self }
    }

    /// With the owner that is on disk; none ([`NO_ID`]) if the mount shows none.
    fn on_disk(&self, mut stat: Stat) -> Stat {
        if let Some(idmap) = &self.idmap {
            stat.uid = idmap.uids.down(stat.uid).unwrap_or(NO_ID);
            stat.gid = idmap.gids.down(stat.gid).unwrap_or(NO_ID);
        }
        stat
    }

    /// The node of what was just made at `at`, which `remove` takes away again if it cannot be looked at: who is told that it failed finds nothing.
    fn made(&self, at: Place<'_, DirNode>, remove: impl FnOnce(BorrowedFd<'_>, &[u8]) -> Result<()>) -> Result<DirNode> {
        self.or_gone(at, self.in_dir(at, |dir, name| at::stat(At::Name(dir, name))), remove).map(|stat| DirNode::named(&stat, at))
    }

    fn or_gone<R>(&self, at: Place<'_, DirNode>, looked: Result<R>, remove: impl FnOnce(BorrowedFd<'_>, &[u8]) -> Result<()>) -> Result<R> {
        looked.inspect_err(|errno| {
            if let Err(again) = self.in_dir(at, remove) {
                tracing::warn!(%errno, %again, name = %at.name, "what was made and cannot be looked at stays");
            }
        })
    }
}

fn check(node: &DirNode, stat: &Stat) -> Result<()> {
    if ObjectId::of(stat) == node.0.id && stat.kind == node.0.kind { Ok(()) } else { Err(Errno::STALE) }
}

/// The name of a directory in the one above it; by its number there, or, where a directory is the root of a subvolume and has two, by a look at each.
fn name_of(above: BorrowedFd<'_>, id: ObjectId) -> Result<Option<Name>> {
    let entries = plyfs_sys::dir::read_dir(above)?;
    let (likely, others): (Vec<_>, Vec<_>) = entries.into_iter().partition(|entry| entry.ino == id.ino);
    for entry in likely.into_iter().chain(others) {
        let Some(name) = Name::new(&entry.name).ok().filter(|_| entry.kind.is_none_or(|kind| kind == Kind::Dir)) else { continue };
        match at::stat(At::Name(above, &name)) {
            Ok(stat) if ObjectId::of(&stat) == id => return Ok(Some(name)),
            Ok(_) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(None)
}

/// Without xattrs there is no attribute: not an error of the layer.
fn absent<T>(result: Result<T>, none: T) -> Result<T> {
    match result {
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(none),
        other => other,
    }
}

impl Tree for DirTree {
    type Node = DirNode;
    type File = DirFile;

    fn root(&self) -> DirNode {
        self.root.clone()
    }

    fn id(&self, node: &DirNode) -> ObjectId {
        node.0.id
    }

    fn lookup(&self, dir: &DirNode, name: &Name) -> Result<Option<(DirNode, Stat)>> {
        if self.foreign(dir).is_some() {
            return Ok(None);
        }
        let at = Place { dir, name };
        let look = |dir: BorrowedFd<'_>, name: &[u8]| match self.bound {
            Some(bound) => bound.look(dir, at.dir.0.id, name),
            None => at::stat(At::Name(dir, name)).map(Looked::Own),
        };
        let found = self.in_dir(at, |dir, name| match look(dir, name)? {
            // By no number (as some servers of FUSE filesystems say of all objects) nothing can be told from anything else.
            Looked::Own(own) if own.ino == 0 => Err(Errno::IO),
            Looked::Own(own) => Ok((DirNode::named(&own, at), self.on_disk(self.keeper.shown(At::Name(dir, name), own)?))),
            Looked::Foreign(stat) => Ok((DirNode::new(&stat, Placed::Foreign(Box::new(stat))), stat)),
        });
        match found {
            Ok(found) => Ok(Some(found)),
            Err(Errno::NOENT | Errno::NAMETOOLONG) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    fn stat(&self, node: &DirNode) -> Result<Stat> {
        if let Some(stat) = self.foreign(node) {
            return Ok(stat);
        }
        let found = self.at(node, |at| {
            let own = at::stat(at)?;
            check(node, &own)?;
            self.keeper.shown(at, own)
        });
        match found {
            // The name is gone behind our back: the object is, too, as far as this layer can tell.
            Err(Errno::NOENT | Errno::NOTDIR) => Err(Errno::STALE),
            other => other.map(|stat| self.on_disk(stat)),
        }
    }

    fn readlink(&self, node: &DirNode) -> Result<Vec<u8>> {
        self.at(node, at::readlink)
    }

    fn read_dir(&self, dir: &DirNode) -> Result<Vec<RawEntry>> {
        if self.foreign(dir).is_some() {
            return Ok(Vec::new());
        }
        let fd = self.dir_fd(dir)?;
        let entries = plyfs_sys::dir::read_dir(fd.as_fd())?;
        // A file may stand for something else.
        let told = |kind: &Kind| !self.keeper.is_on() || *kind != Kind::File;
        Ok(entries.into_iter().map(|e| RawEntry { name: e.name, ino: e.ino, kind: e.kind.filter(told) }).collect())
    }

    fn get_xattr(&self, node: &DirNode, name: &[u8]) -> Result<Option<Vec<u8>>> {
        if self.foreign(node).is_some() {
            return Ok(None);
        }
        let value = absent(self.at(node, |at| at::get_xattr(at, name)).map(Some), None)?;
        match (&self.idmap, value) {
            (Some(idmap), Some(value)) => match idmap.value_down(name, value.into()) {
                Ok(value) => Ok(Some(value.into_owned())),
                // For the root of nobody who shows: nobody has these capabilities.
                Err(_) if name == CAPABILITY => Ok(None),
                Err(_) => Err(Errno::OVERFLOW),
            },
            (_, value) => Ok(value),
        }
    }

    fn list_xattr(&self, node: &DirNode) -> Result<Vec<Vec<u8>>> {
        if self.foreign(node).is_some() { Ok(Vec::new()) } else { absent(self.at(node, at::list_xattr), Vec::new()) }
    }

    fn open(&self, node: &DirNode) -> Result<DirFile> {
        self.open_file(node, OFlags::RDONLY)
    }

    fn read(&self, file: &DirFile, buf: &mut [u8], offset: u64) -> Result<usize> {
        io::pread(file.0.as_fd(), buf, offset)
    }

    fn seek(&self, file: &DirFile, offset: u64, what: Seek) -> Result<u64> {
        match what {
            Seek::Data => io::seek_data(file.0.as_fd(), offset),
            Seek::Hole => io::seek_hole(file.0.as_fd(), offset),
        }
    }

    fn stat_file(&self, file: &DirFile) -> Result<Stat> {
        let at = At::Fd(file.0.as_fd());
        Ok(self.on_disk(self.keeper.shown(at, at::stat(at)?)?))
    }

    fn statfs(&self) -> Result<StatFs> {
        let fd = self.dir_fd(&self.root)?;
        statfs::statfs(fd.as_fd())
    }

    fn flags(&self, node: &DirNode) -> Result<u32> {
        flags::flags(self.opened(node)?.as_fd())
    }

    fn fsx(&self, node: &DirNode) -> Result<Fsx> {
        flags::fsx(self.opened(node)?.as_fd())
    }

    fn handle(&self, node: &DirNode) -> Result<Option<Handle>> {
        let Some(uuid) = self.uuid.filter(|_| self.foreign(node).is_none()) else { return Ok(None) };
        match self.at(node, handle::file_handle) {
            Ok(handle) => Ok(Some(Handle { uuid, handle })),
            Err(Errno::OPNOTSUPP | Errno::OVERFLOW) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    fn trace(&self, handle: &Handle) -> Result<Option<Trace>> {
        let Some(mut at) = self.open_handle(handle)? else { return Ok(None) };
        let mut stat = at::stat(At::Fd(at.as_fd()))?;
        let mut way = Trace::new();
        while stat.kind == Kind::Dir && ObjectId::of(&stat) != self.root.0.id {
            let above = match tree::open_parent(at.as_fd()) {
                // ENOENT: the layer's own mount does not hold it.
                Err(Errno::NOENT) => return Ok(None),
                other => other?,
            };
            let id = ObjectId::of(&stat);
            let stat_above = at::stat(At::Fd(above.as_fd()))?;
            // The filesystem's root, and the layer's was not on the way.
            if ObjectId::of(&stat_above) == id {
                return Ok(None);
            }
            let Some(name) = name_of(above.as_fd(), id)? else { return Ok(None) };
            way.push((name, id));
            (at, stat) = (above, stat_above);
        }
        way.reverse();
        Ok((stat.kind == Kind::Dir).then_some(way))
    }

    fn opens_handles(&self) -> bool {
        open::may_open_handles()
    }

    fn by_handle(&self, handle: &Handle) -> Result<Option<Stat>> {
        self.open_handle(handle)?.map(|fd| at::stat(At::Fd(fd.as_fd()))).transpose()
    }
}

impl UpperTree for DirTree {
    fn work(&self) -> DirNode {
        self.work.clone().unwrap_or_else(|| self.root.clone())
    }

    fn index(&self) -> Option<DirNode> {
        self.index.clone()
    }

    fn create(&self, at: Place<'_, DirNode>, mode: u32) -> Result<(DirNode, DirFile)> {
        let fd = self.in_dir(at, |dir, name| create::create(dir, name, mode))?;
        let stat = self.or_gone(at, at::stat(At::Fd(fd.as_fd())), create::unlink)?;
        Ok((DirNode::named(&stat, at), DirFile(fd)))
    }

    fn tmpfile(&self) -> Result<Option<(DirNode, DirFile)>> {
        let work = self.dir_fd(&self.work())?;
        let file = match create::tmpfile(work.as_fd()) {
            Ok(fd) => fd,
            Err(Errno::OPNOTSUPP | Errno::ISDIR) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        let stat = at::stat(At::Fd(file.as_fd()))?;
        let pinned = Arc::new(file.try_clone().map_err(|_| Errno::MFILE)?);
        Ok(Some((DirNode::new(&stat, Placed::Pinned(pinned, None)), DirFile(file))))
    }

    fn mkdir(&self, at: Place<'_, DirNode>, mode: u32) -> Result<DirNode> {
        self.in_dir(at, |dir, name| create::mkdir(dir, name, mode))?;
        self.made(at, create::rmdir)
    }

    fn mknod(&self, at: Place<'_, DirNode>, kind: Kind, mode: u32, rdev: u64) -> Result<DirNode> {
        self.in_dir(at, |dir, name| self.keeper.mknod(dir, name, kind, mode, rdev))?;
        self.made(at, create::unlink)
    }

    fn symlink(&self, at: Place<'_, DirNode>, target: &[u8]) -> Result<DirNode> {
        self.in_dir(at, |dir, name| create::symlink(dir, name, target))?;
        self.made(at, create::unlink)
    }

    fn link(&self, node: &DirNode, at: Place<'_, DirNode>) -> Result<()> {
        let dir = self.dir_fd(at.dir)?;
        self.at(node, |from| create::link(from, dir.as_fd(), at.name))?;
        let mut place = node.0.place.write();
        if let Placed::Pinned(..) = &*place {
            *place = Placed::Named { dir: at.dir.clone(), name: at.name.clone() };
        }
        Ok(())
    }

    fn unlink(&self, at: Place<'_, DirNode>) -> Result<()> {
        self.in_dir(at, create::unlink)
    }

    fn rmdir(&self, at: Place<'_, DirNode>) -> Result<()> {
        self.in_dir(at, create::rmdir)
    }

    fn rename(
        &self,
        from: Place<'_, DirNode>,
        moved: Option<&DirNode>,
        to: Place<'_, DirNode>,
        other: Option<&DirNode>,
        how: Rename,
    ) -> Result<()> {
        let flags = match how {
            Rename::Replace => RenameFlags::empty(),
            Rename::NoReplace => RenameFlags::NOREPLACE,
            Rename::Exchange => RenameFlags::EXCHANGE,
            Rename::Whiteout => RenameFlags::WHITEOUT,
        };
        let from_fd = self.dir_fd(from.dir)?;
        let to_fd = self.dir_fd(to.dir)?;
        let mut moved_place = moved.map(|node| node.0.place.write());
        let mut other_place = other.map(|node| node.0.place.write());
        create::rename(from_fd.as_fd(), from.name, to_fd.as_fd(), to.name, flags)?;
        for (place, now) in [(&mut moved_place, to), (&mut other_place, from)] {
            if let Some(place) = place
                && let Placed::Named { dir, name } = &mut **place
            {
                *dir = now.dir.clone();
                *name = now.name.clone();
            }
        }
        Ok(())
    }

    fn stands_in(&self) -> bool {
        self.keeper.is_on()
    }

    fn whiteout(&self, at: Place<'_, DirNode>) -> Result<()> {
        self.in_dir(at, |dir, name| create::mknod(dir, name, Kind::Char, 0, plyfs_format::WHITEOUT_RDEV))
    }

    fn pin(&self, node: &DirNode, losing: Option<Place<'_, DirNode>>) -> Result<bool> {
        let dir = match &*node.0.place.read() {
            Placed::Pinned(..) | Placed::Kept { .. } | Placed::Foreign(_) | Placed::Gone => return Ok(true),
            Placed::Named { dir, name } if losing.is_some_and(|losing| losing.dir.0.id != dir.0.id || losing.name != name) => {
                return Ok(true);
            }
            Placed::Named { dir, .. } => dir.clone(),
        };
        if losing.is_some() && FdCache::is_full() {
            return Ok(false);
        }
        let dir = self.dir_fd(&dir)?;
        let mut place = node.0.place.write();
        let fd = match &*place {
            Placed::Pinned(..) | Placed::Kept { .. } | Placed::Foreign(_) | Placed::Gone => return Ok(true),
            Placed::Named { name, .. } => Arc::new(self.open_checked(node, dir.as_fd(), name)?),
        };
        *place = Placed::Pinned(fd, Some(FdCache::pinned(1)));
        Ok(true)
    }

    fn known_by(&self, node: &DirNode, at: Place<'_, DirNode>, own: bool) {
        let (dir, name) = (at.dir.clone(), at.name.clone());
        let now = if own { Placed::Kept { work: dir, name } } else { Placed::Named { dir, name } };
        // What it was known by is dropped after the lock: its parents may go with it.
        let before = std::mem::replace(&mut *node.0.place.write(), now);
        drop(before);
    }

    fn set_owner(&self, node: &DirNode, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
        self.at(node, |at| self.keeper.set_owner(at, node.0.kind, uid, gid))
    }

    fn set_mode(&self, node: &DirNode, mode: u32) -> Result<()> {
        self.at(node, |at| self.keeper.set_mode(at, node.0.kind, mode))
    }

    fn set_times(&self, node: &DirNode, atime: SetTime, mtime: SetTime) -> Result<()> {
        self.at(node, |at| at::set_times(at, atime, mtime))
    }

    fn set_xattr(&self, node: &DirNode, name: &[u8], value: &[u8], mode: XattrMode) -> Result<()> {
        self.at(node, |at| {
            at::set_xattr(at, name, value, mode)?;
            self.keeper.follow_acl(at, node.0.kind, name)
        })
    }

    fn remove_xattr(&self, node: &DirNode, name: &[u8]) -> Result<()> {
        self.at(node, |at| at::remove_xattr(at, name))
    }

    fn set_flags(&self, node: &DirNode, all: u32) -> Result<()> {
        flags::set_flags(self.opened(node)?.as_fd(), all)
    }

    fn set_fsx(&self, node: &DirNode, fsx: &Fsx) -> Result<()> {
        flags::set_fsx(self.opened(node)?.as_fd(), fsx)
    }

    fn open_write(&self, node: &DirNode) -> Result<DirFile> {
        self.open_file(node, OFlags::RDWR)
    }

    fn write(&self, file: &DirFile, data: &[u8], offset: u64) -> Result<usize> {
        io::pwrite(file.0.as_fd(), data, offset)
    }

    fn truncate(&self, file: &DirFile, len: u64) -> Result<()> {
        io::truncate(file.0.as_fd(), len)
    }

    fn fallocate(&self, file: &DirFile, mode: i32, offset: u64, len: u64) -> Result<()> {
        io::fallocate(file.0.as_fd(), mode, offset, len)
    }

    fn sync(&self, file: &DirFile, data_only: bool) -> Result<()> {
        if data_only { io::fdatasync(file.0.as_fd()) } else { io::fsync(file.0.as_fd()) }
    }

    fn sync_dir(&self, dir: &DirNode) -> Result<()> {
        let fd = self.dir_fd(dir)?;
        tree::fsync_dir(fd.as_fd())
    }

    fn copy_range(&self, from: &DirFile, from_offset: u64, to: &DirFile, to_offset: u64, len: u64) -> Result<usize> {
        io::copy_range(from.0.as_fd(), from_offset, to.0.as_fd(), to_offset, usize::try_from(len).unwrap_or(usize::MAX))
    }

    fn copy_data(&self, from: &DirFile, to: &DirFile, len: u64) -> Result<u64> {
        io::copy_file(from.0.as_fd(), to.0.as_fd(), len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_of_parents_goes_without_a_stack_as_deep() {
        const DEPTH: usize = 300_000;
        let dir = tempfile::tempdir().unwrap();
        let fd = plyfs_sys::root::open_dir(dir.path()).unwrap();
        let stat = at::stat(At::Fd(fd.as_fd())).unwrap();
        let name = Name::new("d").unwrap();
        let mut node = DirNode::new(&stat, Placed::Pinned(Arc::new(fd), None));
        for _ in 0..DEPTH {
            node = DirNode::named(&stat, Place { dir: &node, name: &name });
        }
        // What a request loop has.
        std::thread::Builder::new().stack_size(256 << 10).spawn(move || drop(node)).unwrap().join().unwrap();
    }
}
