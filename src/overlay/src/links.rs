//! Hard links of lower files: one file through all names, and how many there are.
//!
//! The copy of a lower object with several names is in the index (`workdir/index`), where each of its names finds it. A name that the upper tree holds is one more
//! link of the copy; a further one, that only the index makes show the copy, is an *alias*. How many names the union shows is the copy's own count and what the nlink mark
//! adds to it; the index entry itself is a link that does not show.
//!
//! A name that goes is a link of the copy first, so that the step that removes it also counts: as in the kernel (`ovl_nlink_start`), at each moment
//! the count is right, and a killed mount leaves it so.

mod settle;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use plyfs_format::{MarkKind, Nlink};
use plyfs_sys::Errno;
use plyfs_sys::at::XattrMode;
use plyfs_sys::stat::Kind;

use crate::backend::{Place, UpperTree};
use crate::copy_up::Content;
use crate::error::{Attempt, Error, Result};
use crate::inode::Inode;
use crate::name::Name;
use crate::reserve::is_full;
use crate::union::{Event, Union};

pub(crate) use self::settle::Indexed;
pub use self::settle::Settled;

impl<T: UpperTree> Union<T> {
    /// Whether a name of the inode may not go before a copy in the index counts the others: a lower object with several names and without a copy.
    pub(crate) fn wants_index(&self, inode: &Inode<T>) -> Result<bool> {
        let (None, Some(lower)) = (inode.upper.get(), inode.lowers.first()) else { return Ok(false) };
        if inode.kind == Kind::Dir {
            return Ok(false);
        }
        let stat = self.lower_layer(lower.layer)?.tree.stat(&lower.node).attempt("stat a lower object")?;
        Ok(self.index_place(inode, &stat)?.is_some())
    }

    /// Copies a lower object up, because one of its names is to go and the copy is what counts the others. `false`: there is no space for it. That keeps no name from being
    /// removed: the count is right until the inode is forgotten then.
    pub(crate) fn copy_up_to_count(&self, inode: &Arc<Inode<T>>) -> Result<bool> {
        let mut again = true;
        loop {
            match self.copy_up(inode, Content::Metadata) {
                Ok(_) => return Ok(true),
                // Once: where a part of the reserve does not do, all of it will not.
                Err(Error::Layer { errno, .. }) if is_full(errno) && again && self.give_up_some() => again = false,
                Err(Error::Layer { op, errno }) if is_full(errno) => {
                    tracing::warn!(op, %errno, "a name of a hard link goes, and how many are left cannot be written down");
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Gives an alias a link of its own in the upper, as each name must have before it can move. The caller holds DIR(parent) exclusively and has resolved the name.
    pub(crate) fn link_alias(&self, inode: &Arc<Inode<T>>, parent: &Inode<T>, name: &Name) -> Result<()> {
        let Some(node) = inode.upper.get() else { return Ok(()) };
        let dir = self.upper_node(parent)?;
        let tree = &self.upper()?.tree;
        let _links = inode.links.lock();
        self.keeping_mtime(dir, || {
            self.mark_impure(dir, inode.origin != tree.id(node))?;
            if inode.indexed.load(Ordering::Relaxed)
                && let Some(lower) = self.lower_nlink(inode)?
            {
                let own = tree.stat(node).attempt("stat an indexed object")?.nlink;
                let shown = i64::from(own) + inode.nlink_delta.load(Ordering::Relaxed);
                self.write_nlink(node, Nlink::Lower(shown - i64::from(lower)))?;
            }
            tree.link(node, Place { dir, name }).attempt("link a name up")?;
            let delta = inode.nlink_delta.fetch_sub(1, Ordering::Relaxed) - 1;
            if inode.indexed.load(Ordering::Relaxed)
                && let Err(error) = self.write_nlink(node, Nlink::Upper(delta))
            {
                // It is done; what changes the count next writes the mark first.
                tracing::warn!(%error, "the nlink mark counts from the lower object");
            }
            Ok(())
        })?;
        // Who reads attributes meanwhile may have seen one half.
        self.tell(Event::Attributes(inode.ino));
        Ok(())
    }

    /// Gives an alias that is about to go a link in the upper. `false`: the name is no alias, or there is no space for a link, or there are too many; then the mark must be told what went.
    pub(crate) fn link_alias_to_remove(&self, inode: &Arc<Inode<T>>, parent: &Inode<T>, name: &Name) -> Result<bool> {
        if inode.upper.get().is_none() {
            return Ok(false);
        }
        match self.link_alias(inode, parent, name) {
            Ok(()) => Ok(true),
            Err(Error::Layer { op, errno }) if is_full(errno) || errno == Errno::MLINK => {
                tracing::debug!(op, %errno, "an alias goes without having been a link");
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Runs a step that changes the upper object's own count of links, which the nlink mark must count from then.
    pub(crate) fn changing_links<R>(&self, inode: &Inode<T>, change: impl FnOnce() -> Result<R>) -> Result<R> {
        let Some(node) = inode.upper.get().filter(|_| inode.indexed.load(Ordering::Relaxed)) else { return change() };
        let _links = inode.links.lock();
        let mark = Nlink::Upper(inode.nlink_delta.load(Ordering::Relaxed));
        let layer = self.upper()?;
        if let Some(name) = plyfs_format::xattr_name(layer.dialect, MarkKind::Nlink)
            && layer.tree.get_xattr(node, name).attempt("read the nlink mark")?.and_then(|value| Nlink::parse(&value)) != Some(mark)
        {
            self.write_nlink(node, mark)?;
        }
        change()
    }

    /// A name of a non-directory went. `counted`: it was a link of the upper object, whose own count tells; else a lower name was hidden.
    pub(crate) fn name_gone(&self, inode: &Inode<T>, counted: bool) -> Result<()> {
        let _links = inode.links.lock();
        if let Some(node) = inode.upper.get()
            && inode.nameless.load(Ordering::Relaxed)
            && self.table.copied_from(self.upper()?.tree.id(node)).is_some()
        {
            let left = self.upper()?.tree.stat(node).attempt("count the names of a copy")?.nlink;
            inode.has_other_names.store(left > 0, Ordering::Relaxed);
        }
        if !counted {
            // Written first: what cannot be written down is not counted now and otherwise later.
            if let Some(node) = inode.upper.get().filter(|_| inode.indexed.load(Ordering::Relaxed)) {
                let delta = inode.nlink_delta.load(Ordering::Relaxed) - 1;
                // The name has gone all the same, which an error does not tell the kernel.
                self.write_nlink(node, Nlink::Upper(delta)).inspect_err(|_| self.tell(Event::Attributes(inode.ino)))?;
            }
            inode.nlink_delta.fetch_sub(1, Ordering::Relaxed);
        }
        // It is done; an entry that nothing uses is removed at the next mount.
        if let Err(error) = self.drop_index_if_unused(inode) {
            tracing::warn!(%error, "an index entry without a name stays");
        }
        Ok(())
    }

    /// Removes the index entry of an object that the union shows under no name any more. The caller holds the LINKS lock.
    fn drop_index_if_unused(&self, inode: &Inode<T>) -> Result<()> {
        if !inode.indexed.load(Ordering::Relaxed) {
            return Ok(());
        }
        let layer = self.upper()?;
        let (tree, node) = (&layer.tree, self.upper_node(inode)?);
        let stat = tree.stat(node).attempt("stat an indexed object")?;
        if i64::from(stat.nlink) + inode.nlink_delta.load(Ordering::Relaxed) > 0 {
            return Ok(());
        }
        let (Some(index), Some(origin)) = (tree.index(), self.marks(layer, node)?.origin) else { return Ok(()) };
        let name = Name::new(origin.index_name())?;
        let entry = Place { dir: &index, name: &name };
        let before = inode.nlink_delta.load(Ordering::Relaxed);
        self.pin(inode, entry)?;
        // A name that it may have got in `work` does not count.
        let kept = inode.nlink_delta.load(Ordering::Relaxed) - before;
        match tree.unlink(entry) {
            Ok(()) | Err(Errno::NOENT) => {
                inode.indexed.store(false, Ordering::Relaxed);
                inode.nlink_delta.store(kept, Ordering::Relaxed);
                Ok(())
            }
            Err(errno) => Err(errno).attempt("remove an index entry"),
        }
    }

    /// Makes an indexed inode be known by its entry, unless that is the name that goes.
    pub(crate) fn known_by_index(&self, inode: &Inode<T>, node: &T::Node, losing: Place<'_, T::Node>) -> Result<bool> {
        if !inode.indexed.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let layer = self.upper()?;
        let (Some(index), Some(origin)) = (layer.tree.index(), self.marks(layer, node)?.origin) else { return Ok(false) };
        let name = Name::new(origin.index_name())?;
        if layer.tree.id(losing.dir) == layer.tree.id(&index) {
            return Ok(false);
        }
        let there = layer.tree.lookup(&index, &name).attempt("look up in the index")?;
        let known = there.is_some_and(|(there, _)| layer.tree.id(&there) == layer.tree.id(node));
        if known {
            layer.tree.known_by(node, Place { dir: &index, name: &name }, false);
        }
        Ok(known)
    }

    /// Writes how many links the union shows.
    pub(crate) fn write_nlink(&self, node: &T::Node, mark: Nlink) -> Result<()> {
        let layer = self.upper()?;
        let Some(name) = plyfs_format::xattr_name(layer.dialect, MarkKind::Nlink) else { return Ok(()) };
        match layer.tree.set_xattr(node, name, &mark.encode(), XattrMode::Any) {
            // Attributes of users are for files and directories only: the index itself is what does not show of the others.
            Err(Errno::PERM) if !matches!(layer.tree.stat(node).attempt("stat")?.kind, Kind::File | Kind::Dir) => Ok(()),
            written => written.attempt("write the nlink mark"),
        }
    }

    /// How many links the lower object of an indexed inode has; `None` where it cannot be found.
    fn lower_nlink(&self, inode: &Inode<T>) -> Result<Option<u32>> {
        if let Some(lower) = inode.lowers.first() {
            let stat = self.lower_layer(lower.layer)?.tree.stat(&lower.node).attempt("stat the lower object")?;
            return Ok(Some(stat.nlink));
        }
        let layer = self.upper()?;
        let Some(origin) = self.marks(layer, self.upper_node(inode)?)?.origin else { return Ok(None) };
        Ok(self.verify_origin(&origin, inode.kind)?.map(|(_, nlink)| nlink))
    }
}
