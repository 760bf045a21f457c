//! Reading directories: the merged entries, once per directory that somebody has open.
//!
//! The list is built at the first read and kept up to date by every change that goes through the union, so that all handles, the kernel's cache of the
//! directory included, see one sequence: a name keeps its cookie as long as it exists, a new name gets a higher one. Emptying a directory while reading it neither
//! skips nor repeats an entry.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use plyfs_format::{AufsName, Dialect, classify_aufs_name};
use plyfs_sys::stat::Kind;

use crate::attr::Attr;
use crate::backend::{ObjectId, UpperTree};
use crate::entry::Entry;
use crate::error::{Attempt, Error, Result};
use crate::file::{Handle, HandleId};
use crate::ino::Ino;
use crate::inode::Inode;
use crate::layer::LowerObject;
use crate::name::Name;
use crate::names::Names;
use crate::resolve::Resolved;
use crate::union::{Event, Union};

const DOT: u64 = 1;
const DOT_DOT: u64 = 2;
const FIRST: u64 = 3;
/// Entries of a list whose memory is worth to be given back at once.
const LARGE: usize = 4096;

/// One entry, as `readdir` gives it to its caller.
#[derive(Debug, Clone, Copy)]
pub struct DirEntry<'a> {
    /// The name.
    pub name: &'a [u8],
    /// `d_ino`: the `st_ino` of the object.
    pub ino: Ino,
    /// The kind.
    pub kind: Kind,
    /// Where the next read goes on.
    pub cookie: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Listed {
    cookie: u64,
    ino: Ino,
    kind: Kind,
}

/// The merged entries of one directory, in the order of their cookies.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    next: u64,
    names: Names<Listed>,
    /// Open handles on the directory; at zero the list goes.
    readers: usize,
    built: bool,
}

impl Listing {
    /// A name that is there keeps its cookie, whatever it means by now: who has read it already must not read it again.
    fn insert(&mut self, name: &[u8], ino: Ino, kind: Kind) {
        if let Some(listed) = self.names.get_mut(name) {
            (listed.ino, listed.kind) = (ino, kind);
            return;
        }
        self.next = self.next.max(FIRST);
        self.names.insert(name, Listed { cookie: self.next, ino, kind });
        self.next += 1;
    }

    fn len(&self) -> usize {
        self.names.len()
    }

    fn remove(&mut self, name: &Name) {
        self.names.remove(name);
    }

    /// Takes over a fresh list, whose cookies mean nothing yet; names that were there keep theirs.
    fn refresh(&mut self, mut fresh: Names<Listed>) {
        self.built = true;
        if self.names.is_empty() {
            self.next = self.next.max(FIRST);
            for (cookie, listed) in (self.next..).zip(fresh.values_mut()) {
                listed.cookie = cookie;
            }
            self.next += fresh.len() as u64;
            self.names = fresh;
            return;
        }
        self.names.retain(|name, listed| match fresh.get_mut(name) {
            Some(now) => {
                (listed.ino, listed.kind) = (now.ino, now.kind);
                true
            }
            None => false,
        });
        for (name, listed) in fresh.iter() {
            self.insert(name, listed.ino, listed.kind);
        }
    }

    /// At most `count` entries after one cookie and before another, with their names one after the other and where each ends.
    fn batch(&self, after: u64, end: u64, count: usize) -> (Vec<u8>, Vec<(usize, Listed)>) {
        let mut names = Vec::new();
        let entries = self.names.from(|listed| listed.cookie <= after).take_while(|(_, listed)| listed.cookie < end).take(count);
        let entries = entries.map(|(name, listed)| {
            names.extend_from_slice(name);
            (names.len(), *listed)
        });
        let entries = entries.collect();
        (names, entries)
    }
}

/// What `..` is: the directory above, of the root and of a directory without a name itself.
fn parent_of<T: UpperTree>(dir: &Arc<Inode<T>>) -> Arc<Inode<T>> {
    dir.a_name().map_or_else(|| dir.clone(), |(parent, _)| parent)
}

impl<T: UpperTree> Union<T> {
    /// Opens a directory for reading.
    ///
    /// Errors: ENOTDIR; ESTALE.
    pub fn opendir(&self, ino: Ino) -> Result<HandleId> {
        let dir = self.directory(ino)?;
        let part = dir.as_dir()?;
        {
            let mut listing = part.listing.lock();
            // A new list numbers its entries anew. Who has cached entries of an old one that was changed meanwhile would find himself at another place.
            if listing.is_none() && part.renumbered.swap(false, Ordering::Relaxed) {
                part.reread.store(true, Ordering::Relaxed);
            }
            listing.get_or_insert_default().readers += 1;
        }
        Ok(self.handles.insert_dir(dir))
    }

    /// Whether the entries that were read of a directory before are still right, their cookies and `..` included. A rename to another parent changes no entry that the
    /// kernel knows of, but the number of `..`.
    pub fn may_keep_entries(&self, ino: Ino) -> bool {
        let Some(dir) = self.table.get(ino) else { return false };
        let Some(part) = dir.dir.as_deref() else { return false };
        if part.reread.swap(false, Ordering::Relaxed) {
            return false;
        }
        let given = part.dot_dot.load(Ordering::Relaxed);
        given == 0 || given == self.shown_ino(&parent_of(&dir)).0
    }

    /// A directory handle goes.
    pub(crate) fn closedir(&self, dir: &Inode<T>) -> Result<()> {
        let unused;
        {
            let mut listing = dir.as_dir()?.listing.lock();
            let readers = listing.as_mut().map_or(0, |listing| {
                listing.readers = listing.readers.saturating_sub(1);
                listing.readers
            });
            unused = if readers == 0 { listing.take() } else { None };
        }
        if unused.is_some_and(|listing| listing.len() > LARGE) {
            self.tell(Event::Freed);
        }
        Ok(())
    }

    /// Gives the entries after `cookie` (0: from the start), `.` and `..` included, until `emit` answers false: that entry did not fit.
    ///
    /// Errors: EBADF; the layers' errors while the directory is read for the first time.
    pub fn readdir(&self, handle: HandleId, cookie: u64, emit: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<()> {
        const BATCH: usize = 256;
        let handle = self.handles.get(handle)?;
        let Handle::Dir { inode: dir, end } = &*handle else { return Err(Error::BadHandle) };
        self.build_listing(dir, cookie == 0 && self.behaviour.live_lowers)?;
        // A reading ends with what was there when it began: names that come while it goes on would keep it from ending at all.
        if cookie == 0 || end.load(Ordering::Relaxed) == 0 {
            end.store(dir.as_dir()?.listing.lock().as_ref().map_or(0, |listing| listing.next), Ordering::Relaxed);
        }
        let end = end.load(Ordering::Relaxed);
        let above = self.shown_ino(&parent_of(dir));
        let dots = [(DOT, &b"."[..], self.shown_ino(dir)), (DOT_DOT, b"..", above)];
        if cookie < DOT_DOT {
            dir.as_dir()?.dot_dot.store(above.0, Ordering::Relaxed);
        }
        for (own, name, ino) in dots {
            let entry = DirEntry { name, ino, kind: Kind::Dir, cookie: own };
            if cookie < own && !emit(entry) {
                return Ok(());
            }
        }
        // In batches, so that `emit` may look names up: no lock is held while it runs.
        let mut after = cookie.max(DOT_DOT);
        loop {
            let (names, batch) = {
                let listing = dir.as_dir()?.listing.lock();
                let Some(listing) = listing.as_ref() else { return Err(Error::BadHandle) };
                listing.batch(after, end, BATCH)
            };
            if batch.is_empty() {
                return Ok(());
            }
            let mut start = 0;
            for (stop, Listed { cookie, ino, kind }) in batch {
                let name = names.get(start..stop).unwrap_or_default();
                if !emit(DirEntry { name, ino, kind, cookie }) {
                    return Ok(());
                }
                (start, after) = (stop, cookie);
            }
        }
    }

    /// Looks up a name of an open directory, for READDIRPLUS; counts one look-up.
    ///
    /// Errors: EBADF; the layers' errors.
    pub fn lookup_entry(&self, handle: HandleId, name: &Name) -> Result<Option<Attr>> {
        let dir = self.handles.dir(handle)?;
        self.lookup_in(&dir, name)
    }

    fn build_listing(&self, dir: &Arc<Inode<T>>, again: bool) -> Result<()> {
        let part = dir.as_dir()?;
        if !again && part.listing.lock().as_ref().is_none_or(|listing| listing.built) {
            return Ok(());
        }
        // Shared: no name changes between the reading and the taking over.
        let _state = part.state.read();
        let fresh = self.merged_entries(dir)?;
        if let Some(listing) = part.listing.lock().as_mut()
            && (again || !listing.built)
        {
            listing.refresh(fresh);
        }
        Ok(())
    }

    /// A name came into a directory. The caller holds its DIR lock exclusively.
    pub(crate) fn list_insert(&self, dir: &Inode<T>, name: &Name, inode: &Inode<T>) {
        let ino = self.shown_ino(inode);
        dir.renumber();
        if let Some(part) = dir.dir.as_deref()
            && let Some(listing) = part.listing.lock().as_mut().filter(|listing| listing.built)
        {
            listing.insert(name, ino, inode.kind);
        }
    }

    /// A name went from a directory. The caller holds its DIR lock exclusively.
    pub(crate) fn list_remove(&self, dir: &Inode<T>, name: &Name) {
        dir.renumber();
        if let Some(part) = dir.dir.as_deref()
            && let Some(listing) = part.listing.lock().as_mut().filter(|listing| listing.built)
        {
            listing.remove(name);
        }
    }

    /// The `st_ino` that an inode shows.
    pub(crate) fn shown_ino(&self, inode: &Inode<T>) -> Ino {
        if inode.ino == Ino::ROOT { self.table.number(inode.origin) } else { inode.ino }
    }

    /// Whether nothing shows in a directory. The caller holds its DIR lock.
    pub(crate) fn is_empty(&self, dir: &Inode<T>) -> Result<bool> {
        Ok(self.merged(dir.upper.get(), dir.merged_lowers())?.is_empty())
    }

    /// Without cookies.
    fn merged_entries(&self, dir: &Inode<T>) -> Result<Names<Listed>> {
        let upper_is_pure = match (&self.stack.upper, dir.upper.get()) {
            (Some(layer), Some(node)) => !self.marks(layer, node)?.impure,
            _ => true,
        };
        self.merged(dir.upper.get(), dir.merged_lowers())?.filter_map(|name, Merged { kind, id, source }| {
            // The topmost lower object, or a non-directory in an upper directory without foreign origins, has its own number.
            let own = match source {
                Source::Lower => true,
                Source::Upper => upper_is_pure && kind != Kind::Dir,
            };
            let (ino, kind) = if own {
                (self.table.number(self.table.copied_from(id).unwrap_or(id)), kind)
            } else {
                match self.resolve(dir, &Name::new(name)?) {
                    Ok(Resolved::Found(found)) => (self.table.number(found.new.origin), found.new.kind),
                    // Something behind our back took it away.
                    Ok(Resolved::Absent { .. }) => return Ok(None),
                    // It is there; who looks it up hears of the damage (or that its redirect is not followed), and the others in the directory can be listed.
                    Err(Error::Damaged(_) | Error::Unrepresentable(_) | Error::Stale(_) | Error::NotPermitted(_)) => {
                        (self.table.number(id), kind)
                    }
                    Err(error) => return Err(error),
                }
            };
            Ok(Some(Listed { cookie: 0, ino, kind }))
        })
    }

    /// The names that show in a directory, and the numbers of what they mean. The caller holds its DIR lock.
    pub(crate) fn numbers(&self, dir: &Inode<T>) -> Result<impl Iterator<Item = (Name, Ino)>> {
        Ok(self.merged_entries(dir)?.into_entries().map(|(name, listed)| (name, listed.ino)))
    }

    /// The names that show in a directory given by its parts, each with what the topmost layer that has it says.
    ///
    /// Errors: those of the layers. A name that no union can hold (over 255 bytes) is left out.
    pub(crate) fn merged_names(
        &self,
        upper: Option<&T::Node>,
        lowers: &[LowerObject<T>],
    ) -> Result<impl Iterator<Item = MergedName> + use<T>> {
        let names = self.merged(upper, lowers)?.into_entries();
        Ok(names.map(|(name, Merged { kind, id, source })| MergedName { name, kind, id, source }))
    }

    fn merged(&self, upper: Option<&T::Node>, lowers: &[LowerObject<T>]) -> Result<Names<Merged>> {
        // What is below these does not show.
        let mut whiteouts = Names::default();
        let mut names = Names::default();
        let upper = match (&self.stack.upper, upper) {
            (Some(layer), Some(node)) => Some((layer, node, false, Source::Upper)),
            _ => None,
        };
        let lowers: Vec<_> =
            lowers.iter().map(|dir| Ok((self.lower_layer(dir.layer)?, &dir.node, dir.xwhiteouts, Source::Lower))).collect::<Result<_>>()?;
        for (layer, dir, xwhiteouts, source) in upper.into_iter().chain(lowers) {
            let dev = layer.tree.id(dir).dev;
            let mut hidden = Vec::new();
            for entry in layer.tree.read_dir(dir).attempt("read a directory")? {
                let Ok(name) = Name::new(&entry.name) else { continue };
                if layer.dialect == Dialect::Aufs {
                    match classify_aufs_name(&name) {
                        AufsName::Plain => {}
                        AufsName::Whiteout(target) => {
                            hidden.push(Name::new(target)?);
                            continue;
                        }
                        AufsName::Opaque | AufsName::Meta | AufsName::Invalid => continue,
                    }
                }
                if names.contains(&name) || whiteouts.contains(&name) {
                    continue;
                }
                // A character device may be a whiteout, an empty file in a marked directory, too: only then a look at it is needed.
                let suspect = match entry.kind {
                    None | Some(Kind::Char) => true,
                    Some(Kind::File) => xwhiteouts || layer.overrides,
                    Some(_) => false,
                };
                let mut kind = entry.kind;
                if suspect {
                    match self.entry(layer, dir, xwhiteouts, &name) {
                        Ok(Entry::Nothing) => continue,
                        Ok(Entry::Whiteout) => {
                            whiteouts.insert(&name, ());
                            continue;
                        }
                        Ok(Entry::Object { stat, .. }) => kind = Some(stat.kind),
                        // No whiteout, but an object with a mark that cannot be read.
                        Err(Error::Damaged(_)) => {
                            kind = layer.tree.lookup(dir, &name).attempt("look at an entry")?.map(|(_, stat)| stat.kind);
                        }
                        Err(error) => return Err(error),
                    }
                }
                let Some(kind) = kind else { continue };
                names.insert(&name, Merged { kind, id: ObjectId { dev, ino: entry.ino }, source });
            }
            // Only what is below: a name shows beside its own whiteout.
            for name in hidden {
                whiteouts.insert(&name, ());
            }
        }
        Ok(names)
    }
}

/// Which layer an entry comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    Upper,
    Lower,
}

/// What shows by a name.
struct Merged {
    kind: Kind,
    id: ObjectId,
    source: Source,
}

/// A name that shows in a directory.
pub(crate) struct MergedName {
    pub(crate) name: Name,
    pub(crate) kind: Kind,
    pub(crate) id: ObjectId,
    pub(crate) source: Source,
}

#[cfg(test)]
mod tests;
