//! `Union`: the merged filesystem, as the operations that FUSE or any other transport needs.
//!
//! Every public operation names inodes by [`Ino`] and returns owned values. Permission checks are the kernel's (`default_permissions`).

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use plyfs_sys::stat::Kind;

use crate::backend::{ObjectId, UpperTree};
use crate::entry::Condemned;
use crate::error::{Error, Result};
use crate::file::Handles;
use crate::ino::Ino;
use crate::inode::{Inode, NewInode, Table};
use crate::layer::{Layer, LayerStack, LowerIndex, LowerObject, tell_apart};
use crate::lock::{RENAME, Ranked};
use crate::name::Name;
use crate::owners::OwnerMap;
use crate::reserve::Reserve;
use crate::sync::{AtomicU64, OnceLock};

/// What is done with redirects of directories (kernel option `redirect_dir`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Redirects {
    /// A directory with lower parts is renamed by one (`on`).
    #[default]
    Written,
    /// Those that are there are followed; the rename is EXDEV (`follow`, and `off` as the kernel is configured by default).
    Followed,
    /// What has one is EPERM, too (`nofollow`).
    Refused,
}

/// How a union behaves, beside its layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Behaviour {
    /// No fsync, neither on copy-up nor when a user asks for one (kernel option `volatile`): after a crash of the machine the upper is not to be trusted.
    pub volatile: bool,
    /// Others may change the lower layers while they are mounted (`lower=live`).
    pub live_lowers: bool,
    /// A change of nothing but the metadata of a file copies no data (kernel option `metacopy`).
    pub metacopy: bool,
    /// What bears a mark that cannot be honoured is shown without it, read-only; else it is an error (`lenient`).
    pub lenient: bool,
    /// What is done with redirects.
    pub redirects: Redirects,
    /// Directories have one link, whatever is in them (option of fuse-overlayfs).
    pub static_nlink: bool,
    /// There are no POSIX ACLs: they are neither shown nor inherited, only copied up.
    pub no_acls: bool,
    /// Numbers are those of the layers' filesystems, also where there are several (kernel option `xino=off`): those that are taken are replaced for as long as the mount lasts.
    pub plain_numbers: bool,
    /// Nothing is written that kernel overlayfs does not show as it is: a user's character device 0:0.
    pub kernel_compat: bool,
    /// The uid and gid that new objects of the upper tree have by themselves, if the process's umask is 0: for a caller with these ids an object is
    /// complete once it is made.
    pub own_ids: Option<(u32, u32)>,
}

/// Who asks: what a created object gets as its owner.
///
/// An id of `u32::MAX` is none: the kernel leaves the ids out of most requests through an idmapped mount. Such a caller is never taken for root, and makes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Caller {
    /// fsuid, as the filesystem's own user namespace sees it; where owners are mapped, as they show.
    pub uid: u32,
    /// fsgid.
    pub gid: u32,
    /// Thread, by its number in this process's pid namespace, which waits for the answer; 0: not known. Its groups and capabilities are asked for when
    /// they matter.
    pub pid: u32,
}

/// Something that the kernel's caches do not know about yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The attributes of an inode changed by something that its own operation does not tell: a copy-up.
    Attributes(Ino),
    /// Some thousands more inodes are in use than before: see [`Union::idle`].
    Grown,
    /// Much memory was freed.
    Freed,
}

impl Caller {
    /// Owner and group of what the caller makes.
    ///
    /// Errors: EOVERFLOW without ids (as the kernel's `may_create`).
    pub(crate) fn ids(&self) -> Result<(u32, u32)> {
        if self.uid == NO_ID || self.gid == NO_ID { Err(Error::NoIds) } else { Ok((self.uid, self.gid)) }
    }
}

/// What stands for no id, in requests as in chown(2).
pub(crate) const NO_ID: u32 = u32::MAX;

type Observer = Box<dyn Fn(Event) + Send + Sync>;

/// A union of layers.
pub struct Union<T: UpperTree> {
    pub(crate) stack: LayerStack<T>,
    pub(crate) table: Arc<Table<T>>,
    pub(crate) handles: Handles<T>,
    pub(crate) root: Arc<Inode<T>>,
    /// Serialises renames that move a directory or cross directories, so that who is whose ancestor stands still.
    pub(crate) rename_lock: Ranked<RENAME, ()>,
    pub(crate) behaviour: Behaviour,
    /// The topmost lower of each filesystem: file handles are the filesystem's, so one layer of it can answer for all.
    pub(crate) one_of_each: Box<[LowerIndex]>,
    /// Objects whose marks are not honoured.
    pub(crate) condemned: Condemned,
    /// For deleting without space.
    pub(crate) reserve: Reserve<T>,
    /// How owners show; all else in here speaks of those on disk.
    pub(crate) owners: OwnerMap,
    temp: AtomicU64,
    observer: OnceLock<Observer>,
}

impl<T: UpperTree> Union<T> {
    /// Merges the layers.
    ///
    /// Errors: no layer that merges, or one below a data-only layer (`Invalid`); what the layers' roots answer.
    pub fn new(mut stack: LayerStack<T>, behaviour: Behaviour) -> Result<Self> {
        tell_apart(&mut stack.lowers)?;
        let root = root_parts(&stack)?;
        let mut seen = HashSet::new();
        let good = root.lowers.iter().zip(&stack.lowers).filter(|(_, layer)| layer.handles);
        let fresh = good.filter(|(lower, layer)| seen.insert(layer.tree.id(&lower.node).dev));
        let one_of_each = fresh.map(|(lower, _)| lower.layer).collect();
        let devices =
            stack.lowers.iter().filter(|layer| !layer.data_only).chain(&stack.upper).map(|layer| layer.tree.id(&layer.tree.root()).dev);
        let table = Table::new(devices, behaviour.plain_numbers);
        let root = table.insert_root(root);
        Ok(Self {
            stack,
            table,
            handles: Handles::default(),
            root,
            rename_lock: Ranked::default(),
            behaviour,
            one_of_each,
            condemned: Condemned::default(),
            reserve: Reserve::default(),
            owners: OwnerMap::default(),
            temp: AtomicU64::new(0),
            observer: OnceLock::new(),
        })
    }

    /// Sets who is told of [`Event`]s; the first call wins. It may be called with locks held, so it must only enqueue.
    pub fn on_event(&self, observer: impl Fn(Event) + Send + Sync + 'static) {
        if self.observer.set(Box::new(observer)).is_err() {
            tracing::warn!("a second observer of the union is ignored");
        }
    }

    pub(crate) fn tell(&self, event: Event) {
        if let Some(observer) = self.observer.get() {
            observer(event);
        }
    }

    /// Whether there is no upper layer.
    pub fn is_read_only(&self) -> bool {
        self.stack.upper.is_none()
    }

    /// Inodes in use.
    pub fn inodes(&self) -> usize {
        self.table.len()
    }

    /// At most `count` inodes that are in use for no other reason than that the kernel has looked them up, and may forget. Which of them it gives differs from call to call.
    pub fn idle(&self, count: usize) -> Vec<Ino> {
        self.table.idle(count)
    }

    /// Counts look-ups that the kernel is told of.
    pub(crate) fn count(&self, inode: &Arc<Inode<T>>, lookups: u64) {
        if self.table.count(inode, lookups) {
            self.tell(Event::Grown);
        }
    }

    /// The mount is gone: lets go of all inodes and handles.
    pub fn shutdown(&self) {
        self.handles.clear();
        self.table.clear();
    }

    /// The upper layer, or EROFS.
    pub(crate) fn upper(&self) -> Result<&Layer<T>> {
        self.stack.upper.as_ref().ok_or(Error::ReadOnly)
    }

    /// The upper node of an inode that was copied up, as the caller made sure.
    pub(crate) fn upper_node<'a>(&self, inode: &'a Inode<T>) -> Result<&'a T::Node> {
        inode.upper.get().ok_or(Error::Stale("not in the upper layer"))
    }

    /// The inode of a number that the kernel uses.
    pub(crate) fn inode(&self, ino: Ino) -> Result<Arc<Inode<T>>> {
        self.table.get(ino).ok_or(Error::Stale("unknown inode"))
    }

    /// A directory by its number.
    pub(crate) fn directory(&self, ino: Ino) -> Result<Arc<Inode<T>>> {
        let inode = self.inode(ino)?;
        inode.as_dir()?;
        Ok(inode)
    }

    /// A name that nothing in `work` has: `#` and a number, as the kernel names its own.
    pub(crate) fn temp_name(&self) -> Result<Name> {
        Name::new(format!("#{:x}", self.temp.fetch_add(1, Ordering::Relaxed)))
    }

    /// The layer and node that hold an inode's visible metadata: the upper object, else the topmost lower one. For the data of a file see [`Union::data_of`].
    pub(crate) fn top<'a>(&'a self, inode: &'a Inode<T>) -> Result<(&'a Layer<T>, &'a T::Node)> {
        if let Some(node) = inode.upper.get() {
            return Ok((self.upper()?, node));
        }
        let lower = inode.lowers.first().ok_or(Error::Stale("inode without objects"))?;
        Ok((self.lower_layer(lower.layer)?, &lower.node))
    }
}

fn root_parts<T: UpperTree>(stack: &LayerStack<T>) -> Result<NewInode<T>> {
    let mut lowers = Vec::with_capacity(stack.lowers.len());
    let mut origin: Option<ObjectId> = None;
    let merging = stack.lowers.iter().take_while(|layer| !layer.data_only).count();
    if stack.lowers.iter().skip(merging).any(|layer| !layer.data_only) {
        return Err(Error::Invalid("a layer that merges below a data-only one"));
    }
    for (index, layer) in stack.lowers.iter().take(merging).enumerate() {
        let node = layer.tree.root();
        origin.get_or_insert(layer.tree.id(&node));
        let value = layer.mark(&node, plyfs_format::MarkKind::Opaque)?;
        let opaque = layer.is_aufs_opaque(&node)?;
        let xwhiteouts = value.is_some_and(|v| plyfs_format::Opaque::parse(&v) == plyfs_format::Opaque::XWhiteouts);
        let layer = LowerIndex(u32::try_from(index).map_err(|_| Error::Invalid("too many layers"))?);
        lowers.push(LowerObject { layer, node, xwhiteouts });
        // As an archive of a layer says of its root: nothing of the layers below.
        if opaque {
            break;
        }
    }
    let upper = stack.upper.as_ref().map(|layer| {
        let node = layer.tree.root();
        let id = layer.tree.id(&node);
        (node, id)
    });
    let origin = origin.or(upper.as_ref().map(|(_, id)| *id)).ok_or(Error::Invalid("a union needs at least one layer"))?;
    Ok(NewInode { kind: Kind::Dir, origin, lowers, far: None, upper, upper_data: true, redirect: None, links: None, protattr: None })
}
