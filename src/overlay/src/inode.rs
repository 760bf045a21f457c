//! `Inode` and the table of those in use.
//!
//! An inode is in the table as long as somebody holds it: a look-up count of the kernel, an open handle, or a child that names it as its parent.
//! So a directory that has live children keeps its identity, its lower objects and its upper node.
//!
//! A shard of the table is never held across a system call, and nothing is dropped under it: an inode's drop enters the table again.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use plyfs_format::{Protattr, Redirect};
use plyfs_sys::stat::{Kind, Stat};

use crate::backend::{ObjectId, Tree};
use crate::data::{Arrival, Far};
use crate::flags::Protection;
use crate::ino::{Ino, InoMap, RESERVED};
use crate::layer::LowerObject;
use crate::lock::{COPY, DIR, LEAF, LINKS, LISTING, Ranked, RankedRw};
use crate::name::Name;
use crate::readdir::Listing;
use crate::resolve::Links;
use crate::sync::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, OnceLock};

/// State of a directory that its DIR lock guards.
#[derive(Default)]
pub(crate) struct DirState {
    /// Removed: nothing may be made in it any more.
    pub(crate) dead: bool,
}

/// What only directories have.
pub(crate) struct DirPart {
    /// The DIR lock: shared to resolve a name in this directory, exclusive to change one.
    pub(crate) state: RankedRw<DIR, DirState>,
    /// The redirect mark of the upper directory, as it is on disk.
    pub(crate) redirect: Ranked<LEAF, Option<Redirect>>,
    /// The merged entries, while somebody reads the directory.
    pub(crate) listing: Ranked<LISTING, Option<Listing>>,
    /// The number that was last given out for `..`; 0 before that.
    pub(crate) dot_dot: AtomicU64,
    /// Entries changed or moved to the upper: a list made anew may number them in another way than the last one did.
    pub(crate) renumbered: AtomicBool,
    /// Cached entries of a former list must be read again.
    pub(crate) reread: AtomicBool,
}

/// An object of the union.
pub(crate) struct Inode<T: Tree> {
    pub(crate) ino: Ino,
    pub(crate) kind: Kind,
    /// The identity that `ino` comes from. Immutable.
    pub(crate) origin: ObjectId,
    /// For a directory all merged lower directories, topmost first; else the one lower object, or none. For a file the first has the metadata and the last the
    /// data: two where the first is a metacopy. Immutable.
    pub(crate) lowers: Box<[LowerObject<T>]>,
    /// The data of the last lower object, if that is a metacopy that leads into a data-only layer. Immutable.
    pub(crate) far: Option<Box<Far<T>>>,
    /// The upper object; written once, by copy-up or at creation.
    pub(crate) upper: OnceLock<T::Node>,
    /// Identity of the upper object; set together with it.
    pub(crate) upper_id: OnceLock<ObjectId>,
    /// The upper object holds the data, too; else it is a metacopy, and the data is the lower's. Never false again once it is true.
    pub(crate) upper_data: AtomicBool,
    /// Data on its way into a metacopy of the upper.
    pub(crate) arrival: Arrival,
    /// `lowers` merge no more: the directory was removed, or emptied and made opaque, to be replaced by a rename.
    pub(crate) cut: AtomicBool,
    /// Where it is: one entry per known name. Changed only under the DIR lock of that parent.
    pub(crate) names: Ranked<LEAF, Vec<(Arc<Inode<T>>, Name)>>,
    /// The COPY lock: held by the one copy-up of this inode.
    pub(crate) copy: Ranked<COPY, ()>,
    /// What is to be added to the link count of the object that serves `stat`: names that were removed by a whiteout over a lower hard link.
    pub(crate) nlink_delta: AtomicI64,
    /// The LINKS lock: held while the upper object's own count of links and what is added to it change, for what is in the index.
    pub(crate) links: Ranked<LINKS, ()>,
    /// Handles that were opened to execute it.
    pub(crate) executed: AtomicU32,
    /// Its copy is in the index of hard links.
    pub(crate) indexed: AtomicBool,
    /// Neither it nor what is below it may be changed: a mark on the way is not honoured.
    frozen: AtomicBool,
    /// A name was removed and none is left: the link count is 0.
    pub(crate) nameless: AtomicBool,
    /// Its upper object has names that this inode does not know.
    pub(crate) has_other_names: AtomicBool,
    /// It was made without a name, and may get one.
    pub(crate) linkable: AtomicBool,
    /// Immutable, append-only.
    pub(crate) protection: Protection,
    pub(crate) dir: Option<Box<DirPart>>,
    table: Weak<Table<T>>,
}

impl<T: Tree> Inode<T> {
    /// The lower objects that count.
    pub(crate) fn merged_lowers(&self) -> &[LowerObject<T>] {
        if self.cut.load(Ordering::Acquire) { &[] } else { &self.lowers }
    }

    /// Whether nobody may change it, for a mark that is not honoured.
    pub(crate) fn is_frozen(&self) -> bool {
        self.frozen.load(Ordering::Relaxed)
    }

    /// Nobody may change it any more. Set before anybody else finds it.
    pub(crate) fn freeze(&self) {
        self.frozen.store(true, Ordering::Relaxed);
    }

    /// A directory was removed, by rmdir or by a rename over it: nothing is in it any more, also not what the whiteouts hid that went with it. The caller
    /// holds its DIR lock exclusively.
    pub(crate) fn bury(&self, state: &mut DirState) {
        state.dead = true;
        self.cut.store(true, Ordering::Release);
    }

    /// Publishes the upper object; `data`: it is no metacopy. The caller holds the COPY lock and has seen that there is none.
    pub(crate) fn publish_upper(&self, node: T::Node, id: ObjectId, data: bool) {
        // The node last: who sees it must find its identity, and whether it holds the data.
        self.upper_id.get_or_init(|| id);
        self.upper_data.store(data, Ordering::Release);
        self.upper.get_or_init(|| node);
    }

    /// The directory part, or ENOTDIR.
    pub(crate) fn as_dir(&self) -> crate::Result<&DirPart> {
        self.dir.as_deref().ok_or(crate::Error::NotDir)
    }

    /// Some current (parent, name); none for the root and for what has lost its last name.
    pub(crate) fn a_name(&self) -> Option<(Arc<Inode<T>>, Name)> {
        self.names.lock().first().cloned()
    }

    /// Whether `(parent, name)` still names this inode. Meaningful while the parent's DIR lock is held.
    pub(crate) fn is_named(&self, parent: &Arc<Inode<T>>, name: &Name) -> bool {
        self.names.lock().iter().any(|(p, n)| Arc::ptr_eq(p, parent) && n == name)
    }

    /// Records a name. The caller holds the parent's DIR lock (shared is enough: the name is on disk).
    pub(crate) fn add_name(&self, parent: &Arc<Inode<T>>, name: &Name) {
        let mut names = self.names.lock();
        if !names.iter().any(|(p, n)| Arc::ptr_eq(p, parent) && n == name) {
            // Nearly all have one name, and room for four is half as large as an inode.
            names.reserve_exact(1);
            names.push((parent.clone(), name.clone()));
        }
        self.nameless.store(false, Ordering::Relaxed);
    }

    /// Forgets a name. The caller holds the parent's DIR lock exclusively.
    pub(crate) fn remove_name(&self, parent: &Arc<Inode<T>>, name: &Name) {
        // Dropped after the guard: the parent's last reference may be in it.
        let gone;
        {
            let mut names = self.names.lock();
            let at = names.iter().position(|(p, n)| Arc::ptr_eq(p, parent) && n == name);
            gone = at.map(|at| names.swap_remove(at));
            if names.is_empty() {
                self.nameless.store(true, Ordering::Relaxed);
            }
        }
        drop(gone);
    }

    /// Notes that the entries of this directory may come in another order than before.
    pub(crate) fn renumber(&self) {
        if let Some(part) = self.dir.as_deref() {
            part.renumbered.store(true, Ordering::Relaxed);
        }
    }

    /// The object that serves stat becomes one with `real` links, in place of the lower object: what the union shows stays the same.
    pub(crate) fn count_links(&self, lower: &Stat, real: i64) {
        if self.kind != Kind::Dir {
            self.nlink_delta.fetch_add(i64::from(lower.nlink) - real, Ordering::Relaxed);
        }
    }

    fn take_parents(&mut self) -> Vec<Arc<Inode<T>>> {
        self.names.get_mut().drain(..).map(|(parent, _)| parent).collect()
    }
}

impl<T: Tree> Drop for Inode<T> {
    /// Leaves the table, and lets go of the parents in a loop: recursion would need a stack as deep as the tree.
    fn drop(&mut self) {
        if let Some(table) = self.table.upgrade() {
            table.remove_dead(self.ino);
            // The host may give the identity of a removed object to another one.
            if *self.nameless.get_mut()
                && !*self.has_other_names.get_mut()
                && let Some(upper) = self.upper_id.get()
            {
                table.unmarked.remove(upper);
            }
        }
        let mut parents = self.take_parents();
        while let Some(parent) = parents.pop() {
            if let Some(mut inode) = Arc::into_inner(parent) {
                parents.append(&mut inode.take_parents());
            }
        }
    }
}

struct Slot<T: Tree> {
    inode: Weak<Inode<T>>,
    /// Kept while the kernel's look-up count is not zero.
    held: Option<Arc<Inode<T>>>,
    lookups: u64,
}

/// What was resolved has no upper object, or the live inode's. A different one (copied origin marks, two redirects to one directory) is another object. What the index
/// has of a live inode without an upper object is being copied up: in the index already, and not published yet.
fn same_upper<T: Tree>(live: &Inode<T>, wanted: &NewInode<T>) -> bool {
    match &wanted.upper {
        None => true,
        Some((_, id)) => match live.upper_id.get() {
            Some(live) => live == id,
            None => wanted.links.is_some_and(|links| links.alias),
        },
    }
}

/// Everything that makes a new inode, as resolved under the parent's DIR lock.
pub(crate) struct NewInode<T: Tree> {
    pub(crate) kind: Kind,
    pub(crate) origin: ObjectId,
    pub(crate) lowers: Vec<LowerObject<T>>,
    /// Where the data is, if it is in a data-only layer.
    pub(crate) far: Option<Box<Far<T>>>,
    /// The upper object and its identity.
    pub(crate) upper: Option<(T::Node, ObjectId)>,
    /// The upper object is no metacopy.
    pub(crate) upper_data: bool,
    pub(crate) redirect: Option<Redirect>,
    /// It is in the index of hard links.
    pub(crate) links: Option<Links>,
    /// Immutable, append-only; `None`: to be found out.
    pub(crate) protattr: Option<Protattr>,
}

impl<T: Tree> NewInode<T> {
    /// An object that was made in the upper.
    pub(crate) fn made(kind: Kind, node: T::Node, id: ObjectId) -> Self {
        Self {
            kind,
            origin: id,
            lowers: Vec::new(),
            far: None,
            upper: Some((node, id)),
            upper_data: true,
            redirect: None,
            links: None,
            protattr: None,
        }
    }
}

/// The inodes in use, by number.
pub(crate) struct Table<T: Tree> {
    slots: DashMap<Ino, Slot<T>>,
    numbers: InoMap,
    next_reserved: AtomicU64,
    /// Reserved numbers in use, by (origin, upper object): the same object gets the same number while it lives.
    reserved: DashMap<(ObjectId, Option<ObjectId>), Ino>,
    /// Where upper objects were copied up from, if no mark on them says so (the lower's filesystem has no file handles): for as long as they have names.
    unmarked: DashMap<ObjectId, ObjectId>,
    /// How often the kernel came to hold an inode, and how often it forgot one.
    held: AtomicU64,
    forgotten: AtomicU64,
    /// How many slots [`Table::idle`] passes over.
    idle: AtomicU64,
}

/// So many inodes are worth a look at the memory.
const MANY: u64 = 4096;

impl<T: Tree> Table<T> {
    /// A table in which objects of the first device, or with `plain` of all, have the host's own numbers; the layers' devices, in their order.
    pub(crate) fn new(devices: impl IntoIterator<Item = u64>, plain: bool) -> Arc<Self> {
        Arc::new(Self {
            slots: DashMap::new(),
            numbers: InoMap::new(devices, plain),
            next_reserved: AtomicU64::new(RESERVED),
            reserved: DashMap::new(),
            unmarked: DashMap::new(),
            held: AtomicU64::new(0),
            forgotten: AtomicU64::new(0),
            idle: AtomicU64::new(0),
        })
    }

    /// The number that an object of this origin has when nothing is in the way; what readdir shows.
    pub(crate) fn number(&self, origin: ObjectId) -> Ino {
        self.numbers.number(origin).unwrap_or(Ino(RESERVED | origin.ino))
    }

    /// An upper object without an origin mark was copied up from this.
    pub(crate) fn note_copy(&self, upper: ObjectId, origin: ObjectId) {
        self.unmarked.insert(upper, origin);
    }

    /// What an upper object without an origin mark was copied up from.
    pub(crate) fn copied_from(&self, upper: ObjectId) -> Option<ObjectId> {
        if self.unmarked.is_empty() { None } else { self.unmarked.get(&upper).map(|origin| *origin) }
    }

    /// A live inode by its number.
    pub(crate) fn get(&self, ino: Ino) -> Option<Arc<Inode<T>>> {
        self.slots.get(&ino)?.inode.upgrade()
    }

    /// The root: node id 1, never forgotten.
    pub(crate) fn insert_root(self: &Arc<Self>, new: NewInode<T>) -> Arc<Inode<T>> {
        let root = self.build(Ino::ROOT, new);
        self.slots.insert(Ino::ROOT, Slot { inode: Arc::downgrade(&root), held: Some(root.clone()), lookups: 1 });
        root
    }

    /// The inode of a resolved object: the live one, or a new one. Called with the parent's DIR lock held, so that what was resolved is still true.
    pub(crate) fn intern(self: &Arc<Self>, new: NewInode<T>) -> Arc<Inode<T>> {
        let upper = new.upper.as_ref().map(|(_, id)| *id);
        let mut new = Some(new);
        if let Some(pure) = new.as_ref().and_then(|n| self.numbers.number(n.origin))
            && let Some(inode) = self.try_number(pure, &mut new)
        {
            return inode;
        }
        let origin = new.as_ref().map_or(ObjectId { dev: 0, ino: 0 }, |n| n.origin);
        loop {
            let key = (origin, upper);
            let ino = *self.reserved.entry(key).or_insert_with(|| Ino(self.next_reserved.fetch_add(1, Ordering::Relaxed)));
            tracing::debug!(?origin, ino = ino.0, "inode number from the reserved range");
            if let Some(inode) = self.try_number(ino, &mut new) {
                return inode;
            }
            // Taken by something else (the numbers wrapped, or the object was replaced): the next number will do.
            self.reserved.remove(&key);
        }
    }

    /// The live inode of this number if it is the same object, or a new one if the number is free; `None` if another object has it.
    fn try_number(self: &Arc<Self>, ino: Ino, new: &mut Option<NewInode<T>>) -> Option<Arc<Inode<T>>> {
        match self.slots.entry(ino) {
            Entry::Occupied(mut slot) => {
                if let Some(live) = slot.get().inode.upgrade() {
                    let wanted = new.as_ref()?;
                    let same = live.origin == wanted.origin && live.kind == wanted.kind && same_upper(&live, wanted);
                    // `live` leaves with the caller or is dropped after the shard is free.
                    drop(slot);
                    return same.then_some(live);
                }
                let inode = self.build(ino, new.take()?);
                slot.insert(Slot { inode: Arc::downgrade(&inode), held: None, lookups: 0 });
                Some(inode)
            }
            Entry::Vacant(free) => {
                let inode = self.build(ino, new.take()?);
                free.insert(Slot { inode: Arc::downgrade(&inode), held: None, lookups: 0 });
                Some(inode)
            }
        }
    }

    fn build(self: &Arc<Self>, ino: Ino, new: NewInode<T>) -> Arc<Inode<T>> {
        let (upper, upper_id) = match new.upper {
            Some((node, id)) => (OnceLock::from(node), OnceLock::from(id)),
            None => (OnceLock::new(), OnceLock::new()),
        };
        let dir = (new.kind == Kind::Dir).then(|| {
            Box::new(DirPart {
                state: RankedRw::default(),
                redirect: Ranked::new(new.redirect),
                listing: Ranked::default(),
                dot_dot: AtomicU64::new(0),
                renumbered: AtomicBool::new(false),
                reread: AtomicBool::new(false),
            })
        });
        Arc::new(Inode {
            ino,
            kind: new.kind,
            origin: new.origin,
            lowers: new.lowers.into_boxed_slice(),
            far: new.far,
            upper,
            upper_id,
            upper_data: AtomicBool::new(new.upper_data),
            arrival: Arrival::default(),
            cut: AtomicBool::new(false),
            names: Ranked::default(),
            copy: Ranked::default(),
            nlink_delta: AtomicI64::new(0),
            links: Ranked::default(),
            executed: AtomicU32::new(0),
            indexed: AtomicBool::new(false),
            frozen: AtomicBool::new(false),
            nameless: AtomicBool::new(false),
            has_other_names: AtomicBool::new(false),
            linkable: AtomicBool::new(false),
            protection: Protection::new(new.protattr),
            dir,
            table: Arc::downgrade(self),
        })
    }

    /// Counts look-ups that the kernel was told of.
    ///
    /// Whether [`MANY`] were held for the first time since this was last true.
    pub(crate) fn count(&self, inode: &Arc<Inode<T>>, lookups: u64) -> bool {
        let mut first = false;
        if let Some(mut slot) = self.slots.get_mut(&inode.ino) {
            slot.lookups = slot.lookups.saturating_add(lookups);
            first = slot.held.is_none();
            slot.held.get_or_insert_with(|| inode.clone());
        }
        first && self.held.fetch_add(1, Ordering::Relaxed) % MANY == MANY - 1
    }

    /// FORGET: takes look-ups back; at zero the kernel knows the inode no more.
    ///
    /// Whether [`MANY`] were forgotten since this was last true.
    pub(crate) fn forget(&self, ino: Ino, lookups: u64) -> bool {
        if ino == Ino::ROOT {
            return false;
        }
        // Dropped outside of the shard: the last reference enters the table again.
        let mut released = None;
        if let Some(mut slot) = self.slots.get_mut(&ino) {
            slot.lookups = slot.lookups.saturating_sub(lookups);
            if slot.lookups == 0 {
                released = slot.held.take();
            }
        }
        let gone = released.is_some();
        drop(released);
        gone && self.forgotten.fetch_add(1, Ordering::Relaxed) % MANY == MANY - 1
    }

    /// At most `count` inodes that nobody but the kernel holds, from where the last call stopped.
    pub(crate) fn idle(&self, count: usize) -> Vec<Ino> {
        let start = usize::try_from(self.idle.load(Ordering::Relaxed)).unwrap_or(0);
        let free = |slot: &Slot<T>| slot.held.as_ref().is_some_and(|inode| Arc::strong_count(inode) == 1);
        let mut found = Vec::new();
        // Once around.
        for (passed, most) in [(start, usize::MAX), (0, start)] {
            for (at, slot) in self.slots.iter().enumerate().skip(passed).take(most) {
                if found.len() == count {
                    self.idle.store(at as u64, Ordering::Relaxed);
                    return found;
                }
                if free(&slot) && *slot.key() != Ino::ROOT {
                    found.push(*slot.key());
                }
            }
        }
        self.idle.store(0, Ordering::Relaxed);
        found
    }

    /// Removes the slot of an inode that is being dropped, unless a new inode has the number by now.
    fn remove_dead(&self, ino: Ino) {
        let dead = self.slots.remove_if(&ino, |_, slot| slot.inode.strong_count() == 0);
        drop(dead);
        if ino.0 >= RESERVED {
            self.reserved.retain(|_, number| *number != ino);
        }
    }

    /// Inodes in use.
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Lets go of everything that the kernel held: the mount is gone.
    pub(crate) fn clear(&self) {
        let held: Vec<_> = self.slots.iter_mut().filter_map(|mut slot| slot.held.take()).collect();
        drop(held);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use crate::{Behaviour, Caller, Ino, Layer, LayerStack, MemFs, Name, NewNode, OpenFlags, Union};

    #[test]
    fn what_may_be_forgotten_comes_in_turn_and_is_nothing_that_is_open_or_above_something() {
        let root = Caller { uid: 0, gid: 0, pid: 1 };
        let stack = LayerStack { upper: Some(Layer::trusted(MemFs::new(7).tree())), lowers: Box::default() };
        let union = Union::new(stack, Behaviour::default()).unwrap();
        let make = |parent, name: String, kind| union.make(&root, parent, &Name::new(name).unwrap(), kind, 0o700, 0).unwrap().node;
        let dir = make(Ino::ROOT, "dir".to_owned(), NewNode::Dir);
        let files: Vec<Ino> = (0..10).map(|number| make(dir, number.to_string(), NewNode::File)).collect();
        let open = union.open(&root, files[0], OpenFlags::default()).unwrap();
        let mut seen = BTreeSet::new();
        for _ in 0..3 {
            let idle = union.idle(4);
            assert_eq!(idle.len(), 4);
            seen.extend(idle);
        }
        assert_eq!(seen, files[1..].iter().copied().collect());
        union.release(open);
        assert_eq!(union.idle(100).len(), 10);
    }
}
