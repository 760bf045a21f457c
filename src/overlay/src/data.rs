//! Where the data of a file is: in the object that shows or, where that is a metacopy, in a layer below; and how it comes into the upper in the end.
//!
//! A metacopy file has metadata and a size of its own, and a mark that says that the data is that of the file below it (kernel: `ovl_lookup`, `ovl_copy_up_meta_inode_data`).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use plyfs_format::{Before, MarkKind, Redirect, read_names, users_can_set, xattr_name};
use plyfs_sys::Errno;
use plyfs_sys::at::{SetTime, XattrMode};
use plyfs_sys::stat::{Kind, Stat, Time};

use crate::backend::{Tree, UpperTree};
use crate::copy_up::Content;
use crate::entry::Entry;
use crate::error::{Attempt, Error, Result};
use crate::inode::Inode;
use crate::layer::{Layer, LowerIndex, LowerObject};
use crate::lock::{COPY, LEAF, Ranked, RankedGuard};
use crate::name::Name;
use crate::privileges::without;
use crate::resolve::{LowerFound, Marks};
use crate::sync::{AtomicU32, OnceLock};
use crate::union::{Event, Union};
use crate::xattr::CAPABILITY;

/// The data of a metacopy that is on its way into the upper object, or that came in part before a server was killed: until it is there, users see the
/// metadata from before.
#[derive(Default)]
pub(crate) struct Arrival {
    /// Odd while there is something from before; grows at each beginning and end.
    turn: AtomicU32,
    before: Ranked<LEAF, Option<Box<Before>>>,
}

/// Makes of metadata what users see while data comes.
pub(crate) fn as_before(stat: &mut Stat, before: &Before) {
    let time = |(sec, nsec)| Time { sec, nsec };
    (stat.atime, stat.mtime, stat.mode) = (time(before.atime), time(before.mtime), before.mode);
}

fn moment(time: Time) -> (i64, u32) {
    (time.sec, time.nsec)
}

/// Whether a metacopy is as a copying of data can have left it. If not, somebody else (kernel overlayfs on the same layers) has changed it since, and what is from before
/// is no more.
fn is_as_copying_left_it(before: &Before, stat: &Stat, capability: Option<&[u8]>) -> bool {
    let mode = before.mode;
    [mode, without(mode, true), without(mode, false)].contains(&stat.mode)
        && (stat.uid, stat.gid) == (before.uid, before.gid)
        && (moment(stat.mtime) == before.mtime || moment(stat.mtime) >= before.ctime)
        && (capability.is_none() || capability == before.capability.as_deref())
}

impl Arrival {
    /// A number that grows when data begins to come and when it has come; odd in between.
    fn turn(&self) -> u32 {
        self.turn.load(Ordering::SeqCst)
    }

    /// Reads metadata as users see it, whether data comes meanwhile or not. `read` reads from the layer; `veil` makes of that what it was before data came.
    pub(crate) fn look<R>(&self, read: impl Fn() -> Result<R>, veil: impl Fn(&mut R, &Before)) -> Result<R> {
        loop {
            let turn = self.turn();
            let mut seen = read()?;
            if turn % 2 == 1
                && let Some(before) = &*self.before.lock()
            {
                veil(&mut seen, before);
            }
            if self.turn() == turn {
                return Ok(seen);
            }
        }
    }

    /// Before the first byte, and before the mark.
    fn begin(&self, before: Before) {
        let mut there = self.before.lock();
        *there = Some(Box::new(before));
        self.turn.fetch_add(1, Ordering::SeqCst);
    }

    /// A mark of an inode that is no more was found: as if data came, until it is put back. Nothing if data has come through this inode.
    fn left_by_another(&self, before: Before) {
        let mut there = self.before.lock();
        if self.turn() == 0 {
            *there = Some(Box::new(before));
            self.turn.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn end(&self) {
        let mut there = self.before.lock();
        if there.take().is_some() {
            self.turn.fetch_add(1, Ordering::SeqCst);
        }
    }
}

impl<T: Tree> Inode<T> {
    /// The upper object, if it holds the data.
    pub(crate) fn upper_with_data(&self) -> Option<&T::Node> {
        if self.upper_data.load(Ordering::Acquire) { self.upper.get() } else { None }
    }

    /// The upper object is a metacopy.
    pub(crate) fn lacks_data(&self) -> bool {
        self.upper.get().is_some() && !self.upper_data.load(Ordering::Acquire)
    }

    /// The object that shows is a metacopy.
    fn shows_metacopy(&self) -> bool {
        let lower = || self.kind == Kind::File && (self.lowers.len() > 1 || self.far.is_some());
        if self.upper.get().is_some() { self.lacks_data() } else { lower() }
    }

    /// Metadata that was read before now, without a look at this inode, is what users see.
    pub(crate) fn took_no_data(&self) -> bool {
        self.arrival.turn() == 0 && self.far.as_ref().is_none_or(|far| far.found.get().is_none())
    }
}

/// The objects below a metacopy file.
pub(crate) struct Below<T: Tree> {
    /// The topmost one, and the one that holds the data if that is another one and not far.
    pub(crate) objects: Vec<LowerObject<T>>,
    pub(crate) far: Option<Box<Far<T>>>,
    /// `st_blocks` of the data; none if it is far.
    blocks: Option<u64>,
}

impl<T: Tree> Below<T> {
    /// Makes the metadata of the metacopy count the blocks of its data.
    pub(crate) fn count_blocks(&self, stat: &mut Stat) {
        stat.blocks = self.blocks.unwrap_or_else(|| assumed_blocks(stat));
    }
}

/// Data in a data-only layer. As in the kernel it is looked for when it is wanted, not when its file is looked up.
pub(crate) struct Far<T: Tree> {
    /// From the root of the layer.
    path: Vec<Vec<u8>>,
    found: OnceLock<LowerObject<T>>,
}

/// The blocks of a file whose data nobody has looked for (as in the kernel).
fn assumed_blocks(stat: &Stat) -> u64 {
    stat.size.next_multiple_of(u64::from(stat.blksize.max(1))) / 512
}

/// A file in a layer.
type Seen<T> = (LowerObject<T>, Stat);

impl<T: UpperTree> Union<T> {
    /// The layer and node that hold a file's data, and whether that is the upper object.
    pub(crate) fn data_of<'a>(&'a self, inode: &'a Inode<T>) -> Result<(&'a Layer<T>, &'a T::Node, bool)> {
        if let Some(node) = inode.upper_with_data() {
            return Ok((self.upper()?, node, true));
        }
        if let Some(lower) = self.lower_data(inode)? {
            return Ok((self.lower_layer(lower.layer)?, &lower.node, false));
        }
        // An empty metacopy of the upper needs nothing from below.
        Ok((self.upper()?, self.upper_node(inode)?, true))
    }

    /// The lower object that holds a file's data; none if there is nothing below.
    ///
    /// Errors: ENOENT if it should be in a data-only layer and is not (as in the kernel).
    pub(crate) fn lower_data<'a>(&'a self, inode: &'a Inode<T>) -> Result<Option<&'a LowerObject<T>>> {
        match &inode.far {
            Some(far) => self.find_far(far).map(Some),
            None => Ok(inode.lowers.last()),
        }
    }

    pub(crate) fn find_far<'a>(&'a self, far: &'a Far<T>) -> Result<&'a LowerObject<T>> {
        if let Some(found) = far.found.get() {
            return Ok(found);
        }
        let Some(object) = self.in_data_layers(&far.path)? else {
            let path = far.path.iter().map(|name| name.escape_ascii().to_string()).collect::<Vec<_>>().join("/");
            tracing::warn!(path, "a redirect to data that no data-only layer has");
            return Err(Error::NotFound);
        };
        Ok(far.found.get_or_init(|| object))
    }

    /// `st_blocks` as users see them: those of the data, wherever it is (as in the kernel).
    pub(crate) fn count_blocks(&self, inode: &Inode<T>, stat: &mut Stat) -> Result<()> {
        if !inode.shows_metacopy() {
            return Ok(());
        }
        if inode.far.as_ref().is_some_and(|far| far.found.get().is_none()) {
            stat.blocks = assumed_blocks(stat);
        } else if let Some(lower) = self.lower_data(inode)? {
            stat.blocks = self.lower_layer(lower.layer)?.tree.stat(&lower.node).attempt("stat the data of a metacopy")?.blocks;
        }
        Ok(())
    }

    /// The marks of an object if it is a metacopy that needs data from below. Costs one system call for a file that is none: neither the size nor the
    /// blocks tell (an archiver may have filled the hole with zeros, erofs counts blocks that are not there).
    fn metacopy(&self, layer: &Layer<T>, node: &T::Node, stat: &Stat) -> Result<Option<Marks>> {
        if stat.kind != Kind::File || stat.size == 0 {
            return Ok(None);
        }
        for name in read_names(layer.dialect, MarkKind::Metacopy) {
            if layer.tree.get_xattr(node, name).attempt("read the metacopy mark")?.is_some() {
                // One that is not honoured is shown as it is, and never opened.
                return Ok(Some(self.marks(layer, node)?).filter(|marks| marks.metacopy && !marks.broken));
            }
        }
        Ok(None)
    }

    /// Adds to a lower file that was found under `name` in `dirs` the one that holds its data, if it is a metacopy.
    pub(crate) fn follow_data(&self, found: &mut LowerFound<T>, dirs: &[LowerObject<T>], name: &Name) -> Result<()> {
        let (Some(stat), Some(top)) = (&mut found.stat, found.objects.first()) else { return Ok(()) };
        let Some(marks) = self.metacopy(self.lower_layer(top.layer)?, &top.node, stat)? else { return Ok(()) };
        let rest = dirs.iter().filter(|dir| dir.layer > top.layer).cloned().collect();
        let mut below = self.data_below(rest, name.clone(), marks.redirect, Some(top.layer))?;
        below.count_blocks(stat);
        if below.far.is_some() {
            found.far = below.far;
        } else {
            found.objects.extend(below.objects.pop());
        }
        Ok(())
    }

    /// Looks for the data of a metacopy file of layer `above` (none: the upper): top-down under its name in `dirs`, the directories below it, or where its
    /// redirect says, until a file that is no metacopy. An absolute redirect leads at last into the data-only layers.
    ///
    /// Errors: EIO if there is no data; the layers' errors.
    pub(crate) fn data_below(
        &self,
        mut dirs: Vec<LowerObject<T>>,
        mut name: Name,
        mut redirect: Option<Redirect>,
        mut above: Option<LowerIndex>,
    ) -> Result<Below<T>> {
        let of = name.clone();
        let mut first = None;
        // Each round goes on in a lower layer than the one before.
        let path = loop {
            self.may_follow(&redirect)?;
            let path = match redirect {
                None => None,
                Some(Redirect::Sibling(sibling)) => {
                    name = Name::new(&sibling)?;
                    None
                }
                Some(Redirect::Absolute(path)) => {
                    (dirs, name) = self.lower_parents(&path, above)?;
                    Some(path)
                }
            };
            let Some((object, stat)) = self.next_file(&dirs, &name)? else { break path };
            let Some(marks) = self.metacopy(self.lower_layer(object.layer)?, &object.node, &stat)? else {
                let objects = first.into_iter().chain([object]).collect();
                return Ok(Below { objects, far: None, blocks: Some(stat.blocks) });
            };
            above = Some(object.layer);
            dirs.retain(|dir| dir.layer > object.layer);
            redirect = marks.redirect;
            first.get_or_insert(object);
        };
        // As in the kernel: not for an upper file that has nothing in a layer that merges, and only by the mark of the last file found.
        if let Some(path) = path
            && above.is_some()
            && self.stack.lowers.iter().any(|layer| layer.data_only)
        {
            let far = Far { path, found: OnceLock::new() };
            return Ok(Below { objects: first.into_iter().collect(), far: Some(Box::new(far)), blocks: None });
        }
        let layer = above.map_or_else(|| "the upper layer".to_owned(), |above| format!("lower layer {}", above.0));
        tracing::warn!(name = %of, %layer, "a file with a metacopy mark, and no data for it in the layers below");
        Err(Error::Damaged(format!("metacopy mark of '{of}' without data below it")))
    }

    /// The topmost file under a name; none if a whiteout or anything else is above it.
    fn next_file(&self, dirs: &[LowerObject<T>], name: &Name) -> Result<Option<Seen<T>>> {
        for dir in dirs {
            let layer = self.lower_layer(dir.layer)?;
            return match self.entry(layer, &dir.node, dir.xwhiteouts, name)? {
                Entry::Nothing => continue,
                Entry::Object { node, stat, .. } if stat.kind == Kind::File => {
                    Ok(Some((LowerObject { layer: dir.layer, node, xwhiteouts: false }, stat)))
                }
                Entry::Object { .. } | Entry::Whiteout => Ok(None),
            };
        }
        Ok(None)
    }

    /// The file under a path from the root of the topmost data-only layer that has it. No symbolic link is followed; marks mean nothing there.
    fn in_data_layers(&self, path: &[Vec<u8>]) -> Result<Option<LowerObject<T>>> {
        let Some((last, above)) = path.split_last() else { return Ok(None) };
        for (index, layer) in self.stack.lowers.iter().enumerate().filter(|(_, layer)| layer.data_only) {
            let mut dir = Some(layer.tree.root());
            for component in above {
                let Some(at) = &dir else { break };
                let found = layer.tree.lookup(at, &Name::new(component)?).attempt("look up in a data-only layer")?;
                dir = found.filter(|(_, stat)| stat.kind == Kind::Dir).map(|(node, _)| node);
            }
            let Some(dir) = dir else { continue };
            let Some((node, stat)) = layer.tree.lookup(&dir, &Name::new(last)?).attempt("look up in a data-only layer")? else { continue };
            if stat.kind == Kind::File {
                let layer = LowerIndex(u32::try_from(index).map_err(|_| Error::Invalid("too many layers"))?);
                return Ok(Some(LowerObject { layer, node, xwhiteouts: false }));
            }
        }
        Ok(None)
    }

    /// Puts the metacopy mark on a staged file, if it is to have one and its filesystem takes it.
    pub(crate) fn becomes_metacopy(&self, node: &T::Node, stat: &Stat) -> Result<bool> {
        let layer = self.upper()?;
        let wanted = self.behaviour.metacopy && stat.size > 0;
        let Some(name) = xattr_name(layer.dialect, MarkKind::Metacopy).filter(|name| wanted && !users_can_set(name)) else {
            return Ok(false);
        };
        match layer.tree.set_xattr(node, name, b"", XattrMode::Any) {
            Ok(()) => Ok(true),
            Err(Errno::OPNOTSUPP) => {
                tracing::debug!("no metacopy: the upper filesystem has no xattrs for this object");
                Ok(false)
            }
            Err(errno) => Err(errno).attempt("write the metacopy mark"),
        }
    }

    /// Brings the data of a metacopy into the upper object, or has it empty; returns the file, open for reading and writing, if this very call did it.
    ///
    /// The removal of the metacopy mark is the commit: until then all readers, and the next mount, have the data from below. The first byte changes times and takes
    /// capabilities away; so that these are from before, too, they are kept in a mark of their own.
    pub(crate) fn bring_data(&self, inode: &Arc<Inode<T>>, content: Content) -> Result<Option<T::File>> {
        let _copying = inode.copy.lock();
        if !inode.lacks_data() || !self.is_still_metacopy(inode)? {
            return Ok(None);
        }
        self.settle(inode)?;
        let tree = &self.upper()?.tree;
        let node = self.upper_node(inode)?;
        let stat = tree.stat(node).attempt("stat a metacopy")?;
        let capability = tree.get_xattr(node, CAPABILITY).attempt("read capabilities")?;
        let (atime, mtime, ctime) = (moment(stat.atime), moment(stat.mtime), moment(stat.ctime));
        let before = Before { atime, mtime, ctime, mode: stat.mode, uid: stat.uid, gid: stat.gid, capability };
        let file = tree.open_write(node).attempt("open a metacopy for writing")?;
        // Nothing is put back that was not touched: that could fail, too.
        let mut touched = false;
        let mut bring = || -> Result<()> {
            match content {
                // Killed after this, the file is empty: no data is looked for below an empty one.
                Content::Empty => {
                    let emptied = tree.truncate(&file, 0);
                    touched = emptied.is_ok() || tree.stat(node).map_or(true, |now| (now.size, now.mtime) != (stat.size, stat.mtime));
                    emptied.attempt("truncate a metacopy")?;
                }
                Content::Whole | Content::Metadata if stat.size == 0 => {}
                Content::Whole | Content::Metadata => {
                    inode.arrival.begin(before.clone());
                    self.write_before(node, &before)?;
                    touched = true;
                    self.fill_metacopy(inode, &file, &stat)?;
                    self.put_back(node, &before)?;
                }
            }
            self.commit_data(node, &file)
        };
        if let Err(error) = bring() {
            if !touched {
                inode.arrival.end();
                return Err(error);
            }
            // As it was: the metacopy mark is still there.
            if content == Content::Empty {
                if let Err(undo) = tree.truncate(&file, stat.size) {
                    tracing::warn!(%undo, "a file whose truncation failed is empty, with the times of that");
                    // No data is looked for below an empty file.
                    inode.upper_data.store(true, Ordering::Release);
                    return Err(error);
                }
            } else if let Err(undo) = self.write_before(node, &before).and_then(|()| self.punch(&file, stat.size).attempt("undo")) {
                // It does not show.
                tracing::warn!(%undo, "data that did not come takes space in a metacopy");
            }
            if let Err(error) = self.put_back(node, &before).and_then(|()| self.drop_marks(node, &[MarkKind::Before])) {
                tracing::warn!(%error, "a metacopy keeps the mark of data that did not come");
            } else {
                inode.arrival.end();
            }
            return Err(error);
        }
        inode.upper_data.store(true, Ordering::Release);
        inode.arrival.end();
        self.tell(Event::Attributes(inode.ino));
        Ok(Some(file))
    }

    fn commit_data(&self, node: &T::Node, file: &T::File) -> Result<()> {
        if !self.behaviour.volatile {
            self.upper()?.tree.sync(file, false).attempt("fsync the data")?;
        }
        self.drop_marks(node, &[MarkKind::Before, MarkKind::Metacopy])
    }

    /// Puts back the metadata of a metacopy into which data came in part. The caller holds the COPY lock.
    fn settle(&self, inode: &Inode<T>) -> Result<()> {
        let node = self.upper_node(inode)?;
        if let Some(before) = self.marks(self.upper()?, node)?.before {
            if self.holds(node, &before)? {
                self.put_back(node, &before)?;
            }
            self.drop_marks(node, &[MarkKind::Before])?;
        }
        inode.arrival.end();
        Ok(())
    }

    /// Whether what the mark of a metacopy says is from before is so still.
    pub(crate) fn holds(&self, node: &T::Node, before: &Before) -> Result<bool> {
        let tree = &self.upper()?.tree;
        let stat = tree.stat(node).attempt("stat a metacopy")?;
        let capability = tree.get_xattr(node, CAPABILITY).attempt("read capabilities")?;
        Ok(is_as_copying_left_it(before, &stat, capability.as_deref()))
    }

    /// Keeps the data of a metacopy from coming while its metadata is changed: the metadata is put back afterwards.
    pub(crate) fn while_data_stays<'a>(&self, inode: &'a Inode<T>) -> Result<Option<RankedGuard<'a, COPY, ()>>> {
        if !inode.lacks_data() {
            return Ok(None);
        }
        let staying = inode.copy.lock();
        if inode.lacks_data() {
            self.settle(inode)?;
        }
        Ok(Some(staying))
    }

    /// Looks at the marks of an inode that lacks data once more, after it can be found by others: they were read before that, and data may have come
    /// meanwhile through a former inode of the object. From here on all data comes through this one.
    pub(crate) fn recheck_metacopy(&self, inode: &Inode<T>) -> Result<()> {
        if inode.arrival.turn() == 0
            && self.is_still_metacopy(inode)?
            && let Some(before) = self.marks(self.upper()?, self.upper_node(inode)?)?.before
            && self.holds(self.upper_node(inode)?, &before)?
        {
            inode.arrival.left_by_another(before);
        }
        Ok(())
    }

    /// Whether the upper object of an inode that lacks data has the mark still; if not, that is put right.
    fn is_still_metacopy(&self, inode: &Inode<T>) -> Result<bool> {
        let marked = self.marks(self.upper()?, self.upper_node(inode)?)?.metacopy;
        if !marked {
            inode.upper_data.store(true, Ordering::Release);
        }
        Ok(marked)
    }

    fn fill_metacopy(&self, inode: &Inode<T>, file: &T::File, stat: &Stat) -> Result<()> {
        // Nothing of a former attempt may shine through the holes of the data.
        let dense = match self.punch(file, stat.size) {
            Ok(()) => false,
            Err(Errno::OPNOTSUPP) => true,
            Err(errno) => return Err(errno).attempt("empty a metacopy"),
        };
        let restart = || if dense { Ok(()) } else { self.punch(file, stat.size).attempt("empty a metacopy again") };
        self.copy_content(inode, file, *stat, dense, &restart).map(drop)
    }

    /// Copies every byte of data, holes as zeros.
    pub(crate) fn copy_densely(&self, from: &T::File, to: &T::File, len: u64) -> plyfs_sys::Result<u64> {
        let mut done = 0;
        while let (true, Ok(layer)) = (done < len, self.upper()) {
            match layer.tree.copy_range(from, done, to, done, len - done)? {
                0 => break,
                count => done += count as u64,
            }
        }
        Ok(done)
    }

    /// Makes a hole of all data of a file.
    fn punch(&self, file: &T::File, size: u64) -> plyfs_sys::Result<()> {
        const KEEP_SIZE_AND_PUNCH_HOLE: i32 = 3;
        match self.upper() {
            Ok(layer) if size > 0 => layer.tree.fallocate(file, KEEP_SIZE_AND_PUNCH_HOLE, 0, size),
            _ => Ok(()),
        }
    }

    fn write_before(&self, node: &T::Node, before: &Before) -> Result<()> {
        let layer = self.upper()?;
        let Some(name) = xattr_name(layer.dialect, MarkKind::Before) else { return Ok(()) };
        layer.tree.set_xattr(node, name, &before.encode(), XattrMode::Any).attempt("keep the metadata from before")
    }

    /// Puts back what the writing of data took away: file capabilities, setuid and setgid, times.
    fn put_back(&self, node: &T::Node, before: &Before) -> Result<()> {
        let tree = &self.upper()?.tree;
        if let Some(value) = &before.capability {
            tree.set_xattr(node, CAPABILITY, value, XattrMode::Any).attempt("put back capabilities")?;
        }
        if before.mode & 0o6000 != 0 {
            tree.set_mode(node, before.mode).attempt("put back the mode")?;
        }
        let time = |(sec, nsec)| SetTime::To(Time { sec, nsec });
        tree.set_times(node, time(before.atime), time(before.mtime)).attempt("put back the times")
    }

    /// Removes marks, in this order.
    fn drop_marks(&self, node: &T::Node, kinds: &[MarkKind]) -> Result<()> {
        let layer = self.upper()?;
        for name in kinds.iter().flat_map(|kind| read_names(layer.dialect, *kind)) {
            match layer.tree.remove_xattr(node, name) {
                Ok(()) | Err(Errno::NODATA) => {}
                Err(errno) => return Err(errno).attempt("remove a mark of a metacopy"),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
