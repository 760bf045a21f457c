//! The copy-up transaction: stage in `work`, commit in one step, publish.
//!
//! Until the commit nothing shows; after it the upper object is complete. A failing step removes what was staged and reaches the caller. The COPY
//! lock of the one inode is all that is held while data moves; the DIR lock of the parent only for the commit.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use plyfs_format::{MarkKind, Nlink, Origin};
use plyfs_sys::Errno;
use plyfs_sys::at::SetTime;
use plyfs_sys::at::XattrMode;
use plyfs_sys::stat::{Kind, Stat};

use crate::backend::{Place, Rename, UpperTree};
use crate::error::{Attempt, Error, Result};
use crate::inode::Inode;
use crate::name::Name;
use crate::union::{Event, NO_ID, Union};

/// How much of a file's content a copy-up takes along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// All of it.
    Whole,
    /// Nothing yet, if the union makes metacopies; else all of it. What is not a regular file is copied whole.
    Metadata,
    /// Nothing: the caller truncates, and has it done with the copy-up.
    Empty,
}

/// An object in `work`, complete but for its place.
struct Staged<T: UpperTree> {
    node: T::Node,
    file: Option<T::File>,
    /// Its name in `work`; none for an O_TMPFILE.
    temp: Option<Name>,
    stat: Stat,
    origin: Option<Origin>,
    content: Content,
    /// It has the metacopy mark.
    metacopy: bool,
}

/// How a commit ended.
enum Committed<T: UpperTree> {
    /// Published; the file, if it is one, open for reading and writing.
    Done(Option<T::File>),
    /// The name is not this inode's any more: what was staged is as good under its new name.
    Moved(Box<Staged<T>>),
}

impl<T: UpperTree> Union<T> {
    /// Makes sure that the inode has an upper object, with as much of its content as is asked for. For a regular file that this very call copied, returns it open for
    /// reading and writing.
    ///
    /// Errors: EROFS without an upper layer; whatever a step of the copy answers; EIO if the lower file keeps changing.
    pub(crate) fn copy_up(&self, inode: &Arc<Inode<T>>, content: Content) -> Result<Option<T::File>> {
        self.upper()?;
        if inode.is_frozen() {
            return Err(Error::ReadOnly);
        }
        let mut staged = None;
        loop {
            if inode.upper.get().is_some() {
                self.discard(staged)?;
                if content != Content::Metadata && inode.lacks_data() {
                    return self.bring_data(inode, content);
                }
                return Ok(None);
            }
            let place = inode.a_name();
            if let Some((parent, name)) = &place {
                self.may_be_named(name)?;
                self.copy_up_ancestors(parent)?;
            }
            let copying = inode.copy.lock();
            if inode.upper.get().is_some() {
                continue;
            }
            let ready = match staged.take() {
                Some(ready) => ready,
                None => self.stage(inode, content)?,
            };
            let outcome = match &place {
                Some((parent, name)) => self.commit(inode, parent, name, ready)?,
                None => self.commit_nameless(inode, ready)?,
            };
            drop(copying);
            match outcome {
                Committed::Done(file) => return Ok(file),
                Committed::Moved(ready) => staged = Some(*ready),
            }
        }
    }

    /// Copies up a directory and what is above it, topmost first. No lock is held.
    fn copy_up_ancestors(&self, dir: &Arc<Inode<T>>) -> Result<()> {
        // A loop, not recursion: the depth of the tree is not ours to choose.
        let mut missing = Vec::new();
        let mut at = dir.clone();
        while at.upper.get().is_none() {
            let above = at.a_name();
            missing.push(at);
            match above {
                Some((parent, _)) => at = parent,
                None => break,
            }
        }
        while let Some(dir) = missing.pop() {
            self.copy_up(&dir, Content::Whole)?;
        }
        Ok(())
    }

    fn stage(&self, inode: &Inode<T>, content: Content) -> Result<Staged<T>> {
        let lower = inode.lowers.first().ok_or(Error::Stale("nothing to copy up"))?;
        let layer = self.lower_layer(lower.layer)?;
        let from = &layer.tree;
        let stat = self.stat_in(layer, &lower.node)?;
        let upper = &self.upper()?.tree;
        let work = upper.work();
        let (node, file, temp) = match inode.kind {
            Kind::File => match upper.tmpfile().attempt("stage a copy-up")? {
                Some((node, file)) => (node, Some(file), None),
                None => {
                    let temp = self.temp_name()?;
                    let (node, file) = upper.create(Place { dir: &work, name: &temp }, 0o600).attempt("stage a copy-up")?;
                    (node, Some(file), Some(temp))
                }
            },
            kind => {
                let temp = self.temp_name()?;
                let at = Place { dir: &work, name: &temp };
                let node = match kind {
                    Kind::Dir => upper.mkdir(at, 0o700).attempt("stage a directory")?,
                    Kind::Symlink => {
                        let target = from.readlink(&lower.node).attempt("read the lower symlink")?;
                        upper.symlink(at, &target).attempt("stage a symlink")?
                    }
                    _ => upper.mknod(at, kind, 0o600, stat.rdev).attempt("stage a special file")?,
                };
                (node, None, Some(temp))
            }
        };
        let mut staged = Staged { node, file, temp, stat, origin: None, content, metacopy: false };
        match self.fill(inode, &mut staged) {
            Ok(()) => Ok(staged),
            Err(error) => {
                self.discard(Some(staged))?;
                Err(error)
            }
        }
    }

    /// Data, owner, xattrs, origin mark, mode, times, fsync: in this order, so that no step undoes an earlier one.
    fn fill(&self, inode: &Inode<T>, staged: &mut Staged<T>) -> Result<()> {
        let lower = inode.lowers.first().ok_or(Error::Stale("nothing to copy up"))?;
        let layer = self.lower_layer(lower.layer)?;
        let from = &layer.tree;
        let upper = self.upper()?;
        if let Some(file) = &staged.file {
            match staged.content {
                Content::Empty => {}
                Content::Metadata if self.becomes_metacopy(&staged.node, &staged.stat)? => {
                    upper.tree.truncate(file, staged.stat.size).attempt("size a metacopy")?;
                    staged.metacopy = true;
                }
                Content::Whole | Content::Metadata => {
                    let restart = || upper.tree.truncate(file, 0).attempt("truncate the copy");
                    staged.stat = self.copy_content(inode, file, staged.stat, false, &restart)?;
                }
            }
        }
        let stat = &staged.stat;
        let to = &upper.tree;
        // Of an idmapped mount (`DirTree::behind_idmap`), as the kernel has it.
        if stat.uid == NO_ID || stat.gid == NO_ID {
            return Err(Error::NoIds);
        }
        self.owner_kept(to.set_owner(&staged.node, Some(stat.uid), Some(stat.gid))).attempt("chown the copy")?;
        for name in from.list_xattr(&lower.node).attempt("list lower xattrs")? {
            // The lower layer's own marks say nothing about the upper.
            let Some(name_above) = layer.shown_xattr(&name).map(|shown| upper.xattr_on_disk(&shown)) else { continue };
            let Some(value) = from.get_xattr(&lower.node, &name).attempt("read a lower xattr")? else { continue };
            match to.set_xattr(&staged.node, &name_above, &value, XattrMode::Any) {
                // As the kernel does: what the upper's filesystem does not know is left behind, but never rights.
                Err(Errno::OPNOTSUPP) if !(name.starts_with(b"security.") || name.starts_with(b"system.posix_acl_")) => {
                    tracing::debug!(name = %name.escape_ascii(), "the upper filesystem does not take this xattr");
                }
                other => other.attempt("write an xattr of the copy")?,
            }
        }
        if let Some(handle) = layer.handle(&lower.node)?
            && let (Ok(fid_type), Some(name)) =
                (u8::try_from(handle.handle.kind), plyfs_format::xattr_name(upper.dialect, MarkKind::Origin))
        {
            let origin = Origin { uuid: handle.uuid, fid_type, fid: handle.handle.bytes, path_upper: false };
            let encoded = origin.encode();
            match to.set_xattr(&staged.node, name, &encoded, XattrMode::Any) {
                Ok(()) => staged.origin = Some(origin),
                // Attributes of users are for files and directories only.
                Err(Errno::OPNOTSUPP | Errno::PERM) => {
                    tracing::debug!("no origin mark: the upper filesystem has no xattrs for this object")
                }
                Err(errno) => return Err(errno).attempt("write the origin mark"),
            }
        }
        if self.is_escaped_device(layer, &lower.node, stat)? {
            self.mark_device(&staged.node)?;
        }
        self.copy_flags(from, &lower.node, stat, &staged.node)?;
        if inode.kind != Kind::Symlink {
            to.set_mode(&staged.node, stat.mode).attempt("chmod the copy")?;
        }
        // Who truncates has its time of modification from the copy itself: it is empty since now.
        let mtime = if staged.content == Content::Empty { SetTime::Omit } else { SetTime::To(stat.mtime) };
        to.set_times(&staged.node, SetTime::To(stat.atime), mtime).attempt("set the copy's times")?;
        if let Some(file) = &staged.file
            && !self.behaviour.volatile
        {
            to.sync(file, false).attempt("fsync the copy")?;
        }
        Ok(())
    }

    /// Copies the lower data and makes sure that it is what the lower file held at one moment. `stat` is the metadata of the object that shows; returns that of the
    /// moment. `restart` makes the target as it was before.
    pub(crate) fn copy_content(
        &self,
        inode: &Inode<T>,
        file: &T::File,
        mut stat: Stat,
        dense: bool,
        restart: &dyn Fn() -> Result<()>,
    ) -> Result<Stat> {
        const ATTEMPTS: usize = 3;
        let to = &self.upper()?.tree;
        let lower = self.lower_data(inode)?.ok_or(Error::Stale("nothing to copy up"))?;
        let layer = self.lower_layer(lower.layer)?;
        let from = &layer.tree;
        let (dev, ino) = (stat.dev, stat.ino);
        for _ in 0..ATTEMPTS {
            let source = from.open(&lower.node).attempt("open the lower file")?;
            let before = from.stat_file(&source).attempt("stat the lower file")?;
            let own = (before.dev, before.ino) == (dev, ino);
            if !own && before.size != stat.size {
                return Err(Error::Damaged(format!("metacopy of {} bytes whose data has {}", stat.size, before.size)));
            }
            let copied = if dense { self.copy_densely(&source, file, before.size) } else { to.copy_data(&source, file, before.size) };
            let copied = copied.attempt("copy data up")?;
            let after = from.stat_file(&source).attempt("stat the lower file")?;
            if own {
                stat = self.overridden(layer, &lower.node, after)?;
            }
            if copied == before.size && after.size == before.size && after.mtime == before.mtime {
                return Ok(stat);
            }
            restart()?;
        }
        Err(Error::Layer { op: "copy up: the lower file changes all the time", errno: Errno::IO })
    }

    /// Moves what was staged to its name.
    fn commit(&self, inode: &Arc<Inode<T>>, parent: &Arc<Inode<T>>, name: &Name, staged: Staged<T>) -> Result<Committed<T>> {
        let _dir = parent.as_dir()?.state.write();
        let (true, Some(dir)) = (inode.is_named(parent, name), parent.upper.get()) else { return Ok(Committed::Moved(Box::new(staged))) };
        let tree = &self.upper()?.tree;
        let result = self.keeping_mtime(dir, || {
            self.mark_impure(dir, staged.origin.is_some())?;
            let at = Place { dir, name };
            if let Some(index) = self.index_place(inode, &staged.stat)? {
                return self.commit_indexed(inode, &staged, &index, Some(at));
            }
            self.place_staged(&staged, at)?;
            inode.count_links(&staged.stat, 1);
            Ok(())
        });
        if let Err(error) = result {
            self.discard(Some(staged))?;
            return Err(error);
        }
        let id = tree.id(&staged.node);
        if (staged.origin.is_none() || !tree.opens_handles()) && inode.kind != Kind::Dir {
            self.table.note_copy(id, inode.origin);
        }
        inode.publish_upper(staged.node, id, !staged.metacopy);
        parent.renumber();
        self.tell(Event::Attributes(inode.ino));
        self.tell(Event::Attributes(parent.ino));
        Ok(Committed::Done(staged.file))
    }

    /// Publishes a copy of what has no name any more; it goes with the inode.
    fn commit_nameless(&self, inode: &Arc<Inode<T>>, staged: Staged<T>) -> Result<Committed<T>> {
        if inode.a_name().is_some() {
            return Ok(Committed::Moved(Box::new(staged)));
        }
        let tree = &self.upper()?.tree;
        let index = self.index_place(inode, &staged.stat)?;
        // Names that do not count: where many removed objects are held, a copy keeps its name in `work`.
        let mut kept = 0;
        let placed = match &index {
            Some(index) => self.commit_indexed(inode, &staged, index, None),
            None => match &staged.temp {
                None => Ok(()),
                Some(temp) => {
                    let work = tree.work();
                    let at = Place { dir: &work, name: temp };
                    let removed = tree.pin(&staged.node, Some(at)).and_then(|pinned| match inode.kind {
                        _ if !pinned => {
                            tree.known_by(&staged.node, at, true);
                            kept = 1;
                            Ok(())
                        }
                        Kind::Dir => tree.rmdir(at),
                        _ => tree.unlink(at),
                    });
                    removed.attempt("keep a nameless copy")
                }
            },
        };
        if let Err(error) = placed {
            self.discard(Some(staged))?;
            return Err(error);
        }
        if index.is_none() {
            inode.count_links(&staged.stat, kept);
        }
        let id = tree.id(&staged.node);
        inode.publish_upper(staged.node, id, !staged.metacopy);
        self.tell(Event::Attributes(inode.ino));
        Ok(Committed::Done(staged.file))
    }

    fn place_staged(&self, staged: &Staged<T>, at: Place<'_, T::Node>) -> Result<()> {
        let tree = &self.upper()?.tree;
        match &staged.temp {
            None => tree.link(&staged.node, at).attempt("commit a copy-up"),
            Some(temp) => {
                let work = tree.work();
                tree.rename(Place { dir: &work, name: temp }, Some(&staged.node), at, None, Rename::NoReplace).attempt("commit a copy-up")
            }
        }
    }

    /// A hard-linked lower file goes to the index first, then gets its name: from the first step on all its names show the copy. If it cannot have its name
    /// it leaves the index again: nothing shows what was not published.
    fn commit_indexed(&self, inode: &Inode<T>, staged: &Staged<T>, index: &(T::Node, Name), at: Option<Place<'_, T::Node>>) -> Result<()> {
        let tree = &self.upper()?.tree;
        let indexed = Place { dir: &index.0, name: &index.1 };
        let _links = inode.links.lock();
        self.write_nlink(&staged.node, Nlink::Lower(inode.nlink_delta.load(Ordering::Relaxed)))?;
        self.place_staged(staged, indexed)?;
        let mut links = 1;
        if let Some(at) = at {
            match tree.link(&staged.node, at) {
                Ok(()) => links = 2,
                Err(errno) => match tree.unlink(indexed) {
                    Ok(()) | Err(Errno::NOENT) => return Err(errno).attempt("link a copy-up from the index"),
                    // All names show it already: it is done, and this one has no link of its own, as the others.
                    Err(undo) => tracing::warn!(%errno, %undo, "a copy-up stays in the index without a name"),
                },
            }
        }
        inode.indexed.store(true, Ordering::Relaxed);
        inode.count_links(&staged.stat, links);
        if let Err(error) = self.write_nlink(&staged.node, Nlink::Upper(inode.nlink_delta.load(Ordering::Relaxed))) {
            // It is done; the mark that counts from the lower object says the same.
            tracing::warn!(%error, "the nlink mark counts from the lower object");
        }
        Ok(())
    }

    /// Where the index keeps the upper object of a hard-linked lower one; none for other objects.
    pub(crate) fn index_place(&self, inode: &Inode<T>, stat: &Stat) -> Result<Option<(T::Node, Name)>> {
        match inode.lowers.first() {
            Some(lower) if inode.kind != Kind::Dir && stat.nlink > 1 => self.index_name(lower),
            _ => Ok(None),
        }
    }

    /// Runs a change of a directory that users must not see in its mtime. The caller holds the DIR lock exclusively, which stat of a directory takes shared.
    /// The change is what counts: once it is done, a time that cannot be put back does not make it fail (as in the kernel).
    pub(crate) fn keeping_mtime(&self, dir: &T::Node, change: impl FnOnce() -> Result<()>) -> Result<()> {
        let tree = &self.upper()?.tree;
        let before = tree.stat(dir).attempt("stat the upper directory")?;
        change()?;
        if let Err(errno) = tree.set_times(dir, SetTime::Omit, SetTime::To(before.mtime)) {
            tracing::warn!(%errno, "a directory's mtime tells of a copy-up in it");
        }
        Ok(())
    }

    /// Marks an upper directory as holding objects whose numbers come from lower layers; kernel overlayfs then looks for them in readdir.
    pub(crate) fn mark_impure(&self, dir: &T::Node, needed: bool) -> Result<()> {
        let layer = self.upper()?;
        let Some(name) = plyfs_format::xattr_name(layer.dialect, MarkKind::Impure) else { return Ok(()) };
        if !needed || layer.tree.get_xattr(dir, name).attempt("read the impure mark")?.is_some() {
            return Ok(());
        }
        layer.tree.set_xattr(dir, name, b"y", XattrMode::Any).attempt("write the impure mark")
    }

    /// Removes what was staged and not used.
    fn discard(&self, staged: Option<Staged<T>>) -> Result<()> {
        let Some(Staged { temp: Some(temp), stat, .. }) = staged else { return Ok(()) };
        let tree = &self.upper()?.tree;
        let work = tree.work();
        let at = Place { dir: &work, name: &temp };
        let removed = if stat.kind == Kind::Dir { tree.rmdir(at) } else { tree.unlink(at) };
        match removed {
            // It moved before the failing step: then it is where it belongs.
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno).attempt("remove a staged object"),
        }
    }
}
