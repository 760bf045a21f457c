//! What deleting needs where a filesystem has no space left: inodes and blocks to give back, and a whiteout to link from.
//!
//! Removing what only the upper holds takes no space. Hiding what a lower holds takes a whiteout, which is an inode, and perhaps an entry that does not fit into its directory or the copy-up of
//! directories above it. That comes from files without a name, one of them with blocks of its own, which are given up one by one, and made again when there is space: nothing of them is left
//! by a server that is killed. The first whiteout that is made so stays in `work`, and others are links of it, as in kernel overlayfs: these need no inode (but on tmpfs, where each
//! name counts as one).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use plyfs_sys::{Errno, limits};

use crate::backend::{Place, Rename, Tree, UpperTree};
use crate::copy_up::Content;
use crate::error::{Attempt, Error, Result};
use crate::inode::Inode;
use crate::lock::{LEAF, Ranked};
use crate::name::Name;
use crate::sync::{AtomicBool, AtomicU32};
use crate::union::Union;

/// How many inodes are kept at most: the depth of a lower tree that can be removed with no inode left. Each keeps a descriptor, of which a part may be taken.
const INODES: usize = 16;
const DESCRIPTORS: u64 = 32;
/// The size of the file at most, and the part of a small filesystem that it takes. xfs asks for some hundred KiB to be free before it makes a name, whatever that needs in the end.
const SPACE: u64 = 1 << 20;
const PART: u64 = 128;
/// In how many steps it is given up.
const STEPS: u64 = 4;
/// How many removals go by until a reserve that could not be made again is tried once more.
const PATIENCE: u32 = 64;

pub(crate) struct Reserve<T: Tree> {
    kept: Ranked<LEAF, Kept<T>>,
    /// It is kept at all.
    wanted: AtomicBool,
    /// Something of it is used up.
    low: AtomicBool,
    /// Removals until it is tried again to make what is missing.
    patience: AtomicU32,
}

struct Kept<T: Tree> {
    inodes: Vec<T::Node>,
    /// A file, and the bytes that it holds.
    space: Option<(Arc<T::File>, u64)>,
    /// What whiteouts are links of while there is no space, and its name in `work`.
    whiteout: Option<(T::Node, Name)>,
}

impl<T: Tree> Default for Reserve<T> {
    fn default() -> Self {
        let kept = Kept { inodes: Vec::new(), space: None, whiteout: None };
        Self { kept: Ranked::new(kept), wanted: AtomicBool::new(false), low: AtomicBool::new(false), patience: AtomicU32::new(0) }
    }
}

/// Whether it is space that is missing: giving some up may help.
pub(crate) fn is_full(errno: Errno) -> bool {
    matches!(errno, Errno::NOSPC | Errno::DQUOT)
}

impl<T: UpperTree> Union<T> {
    /// Keeps what deleting needs when no space is left, from now on. What there is no space for is made later; without a reserve the union works as well, but for that.
    pub fn keep_reserve(&self) {
        if !self.is_read_only() {
            self.reserve.wanted.store(true, Ordering::Relaxed);
            self.reserve.low.store(true, Ordering::Relaxed);
            self.refill();
        }
    }

    /// Gives up what [`Union::keep_reserve`] keeps.
    pub fn drop_reserve(&self) {
        self.reserve.wanted.store(false, Ordering::Relaxed);
        let kept = std::mem::replace(&mut *self.reserve.kept.lock(), Kept { inodes: Vec::new(), space: None, whiteout: None });
        if let Some((_, name)) = &kept.whiteout {
            self.drop_shared_whiteout(name);
        }
    }

    /// Nothing is linked to it any more.
    fn drop_shared_whiteout(&self, name: &Name) {
        let removed = self.upper().and_then(|layer| {
            let work = layer.tree.work();
            layer.tree.unlink(Place { dir: &work, name }).attempt("remove a whiteout")
        });
        if let Err(error) = removed {
            tracing::warn!(%error, "a whiteout stays in workdir");
        }
    }

    /// Hides a name that is free in the upper, or in the dialect Aufs any, by what is kept if there is no space. `false`: in that dialect it was hidden already.
    ///
    /// Errors: ENAMETOOLONG, EPERM for a name that has no whiteout in the dialect; the upper's.
    pub(crate) fn put_whiteout(&self, at: Place<'_, T::Node>) -> Result<bool> {
        let beside = if self.hides_by_names() { Some(Self::beside(at.name)?) } else { None };
        match self.put_whiteout_at(Place { dir: at.dir, name: beside.as_ref().unwrap_or(at.name) }) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) if beside.is_some() => Ok(false),
            Err(errno) => Err(errno).attempt("put a whiteout"),
        }
    }

    /// The whiteout itself: a device, or the file whose name hides another one.
    fn make_whiteout(&self, at: Place<'_, T::Node>) -> plyfs_sys::Result<()> {
        let layer = self.upper().map_err(|error| error.errno())?;
        if self.hides_by_names() { layer.tree.create(at, 0o600).map(drop) } else { layer.tree.whiteout(at) }
    }

    fn put_whiteout_at(&self, at: Place<'_, T::Node>) -> plyfs_sys::Result<()> {
        loop {
            match self.link_whiteout(at).unwrap_or_else(|| self.make_whiteout(at)) {
                Err(errno) if is_full(errno) && self.give_up_some() => self.share_whiteout(),
                put => return put,
            }
        }
    }

    /// Puts a whiteout that is a link of the shared one, if there is one and it can be linked.
    fn link_whiteout(&self, at: Place<'_, T::Node>) -> Option<plyfs_sys::Result<()>> {
        let (whiteout, name) = self.reserve.kept.lock().whiteout.clone()?;
        let linked = self.upper().map_err(|error| error.errno()).and_then(|layer| layer.tree.link(&whiteout, at));
        match linked {
            Ok(()) | Err(Errno::EXIST) => Some(linked),
            Err(errno) => {
                // EMLINK: it has as many links as it can. If another one is needed, another one is made.
                tracing::debug!(%errno, "no link of the shared whiteout");
                if !is_full(errno) {
                    self.reserve.kept.lock().whiteout = None;
                    self.drop_shared_whiteout(&name);
                }
                None
            }
        }
    }

    /// Makes a whiteout in `work` for others to be links of, unless there is one. Who cannot have it goes on without.
    fn share_whiteout(&self) {
        if self.reserve.kept.lock().whiteout.is_some() {
            return;
        }
        let shared = || -> Result<Option<(T::Node, Name)>> {
            let tree = &self.upper()?.tree;
            let (work, name) = (tree.work(), self.temp_name()?);
            self.make_whiteout(Place { dir: &work, name: &name }).attempt("share a whiteout")?;
            match tree.lookup(&work, &name).attempt("share a whiteout") {
                Ok(made) => Ok(made.map(|(node, _)| (node, name))),
                Err(error) => {
                    self.drop_shared_whiteout(&name);
                    Err(error)
                }
            }
        };
        match shared() {
            Ok(whiteout) => {
                // Of two threads one is too many.
                let other = std::mem::replace(&mut self.reserve.kept.lock().whiteout, whiteout);
                if let Some((_, name)) = other {
                    self.drop_shared_whiteout(&name);
                }
            }
            Err(error) => tracing::debug!(%error, "no shared whiteout"),
        }
    }

    /// Puts a whiteout in place of an upper non-directory, in one step.
    pub(crate) fn replace_by_whiteout(&self, place: Place<'_, T::Node>) -> Result<()> {
        if self.hides_by_names() {
            return self.unlink_behind_whiteout(place);
        }
        self.by_whiteout(|staged| self.upper()?.tree.rename(staged, None, place, None, Rename::Replace).attempt("leave a whiteout"))
            .map(drop)
    }

    /// Puts a whiteout in place of an upper directory, in one step; the directory is in `work` then, under the name that is returned. `moved`: its node, which learns of it.
    pub(crate) fn swap_for_whiteout(&self, place: Place<'_, T::Node>, moved: Option<&T::Node>) -> Result<Name> {
        if self.hides_by_names() {
            return self.move_behind_whiteout(place, moved);
        }
        self.by_whiteout(|staged| self.upper()?.tree.rename(place, moved, staged, None, Rename::Exchange).attempt("leave a whiteout"))
    }

    /// Makes a whiteout in `work` for a step that moves it to where it belongs; returns its name there.
    fn by_whiteout(&self, commit: impl FnOnce(Place<'_, T::Node>) -> Result<()>) -> Result<Name> {
        let tree = &self.upper()?.tree;
        let (work, temp) = (tree.work(), self.temp_name()?);
        let staged = Place { dir: &work, name: &temp };
        self.put_whiteout(staged)?;
        if let Err(error) = commit(staged) {
            tree.unlink(staged).attempt("remove a staged whiteout")?;
            return Err(error);
        }
        Ok(temp)
    }

    /// Copies a directory up in which a name is to be removed.
    pub(crate) fn copy_up_to_remove(&self, dir: &Arc<Inode<T>>) -> Result<()> {
        loop {
            match self.copy_up(dir, Content::Whole) {
                Err(Error::Layer { errno, .. }) if is_full(errno) && self.give_up_some() => {}
                copied => return copied.map(drop),
            }
        }
    }

    /// Gives a part of the reserve back to the filesystem; `false`: there is none left.
    pub(crate) fn give_up_some(&self) -> bool {
        let (inode, space) = {
            let mut kept = self.reserve.kept.lock();
            let inode = kept.inodes.pop();
            let space = kept.space.as_mut().filter(|(_, size)| *size > 0).map(|(file, size)| {
                *size = size.saturating_sub(SPACE / STEPS);
                (file.clone(), *size)
            });
            (inode, space)
        };
        if inode.is_none() && space.is_none() {
            return false;
        }
        self.reserve.low.store(true, Ordering::Relaxed);
        // Its descriptor was the last that there was of it.
        drop(inode);
        let given = self.upper().and_then(|layer| {
            if let Some((file, size)) = space {
                layer.tree.truncate(&file, size).attempt("give up space")?;
            }
            // ext4 gives freed blocks out again only after they were committed.
            layer.tree.sync_dir(&layer.tree.work()).attempt("give up space")
        });
        if let Err(error) = given {
            tracing::warn!(%error, "what is kept for deleting without space cannot be given up");
        }
        true
    }

    /// After a removal: makes again what of the reserve is missing, if there is space. What fails is tried later.
    pub(crate) fn refill_after_removal(&self) {
        let reserve = &self.reserve;
        if !reserve.low.load(Ordering::Relaxed) || !reserve.wanted.load(Ordering::Relaxed) {
            return;
        }
        let tired = reserve.patience.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_err();
        if tired {
            self.refill();
        }
    }

    fn refill(&self) {
        // Who else comes meanwhile finds nothing to do.
        if !self.reserve.low.swap(false, Ordering::Relaxed) {
            return;
        }
        if let Err(error) = self.try_refill() {
            tracing::debug!(%error, "no reserve for deleting without space");
            self.reserve.patience.store(PATIENCE, Ordering::Relaxed);
            self.reserve.low.store(true, Ordering::Relaxed);
        }
    }

    fn try_refill(&self) -> Result<()> {
        let tree = &self.upper()?.tree;
        let (soft, _) = limits::nofile().attempt("keep an inode")?;
        let inodes = usize::try_from(soft / DESCRIPTORS).unwrap_or(INODES).min(INODES);
        while self.reserve.kept.lock().inodes.len() < inodes {
            let Some((node, _)) = tree.tmpfile().attempt("keep an inode")? else { return Ok(()) };
            self.reserve.kept.lock().inodes.push(node);
        }
        let stat = tree.statfs().attempt("keep space")?;
        let size = (stat.blocks.saturating_mul(stat.frsize) / PART).min(SPACE);
        let there = self.reserve.kept.lock().space.clone();
        if there.as_ref().is_none_or(|(_, there)| *there < size) {
            let file = match there {
                Some((file, _)) => file,
                None => match tree.tmpfile().attempt("keep space")? {
                    Some((_, file)) => Arc::new(file),
                    None => return Ok(()),
                },
            };
            self.allocate(&file, size)?;
            self.reserve.kept.lock().space = Some((file, size));
        }
        // There is space: whiteouts are inodes of their own again.
        let shared = self.reserve.kept.lock().whiteout.take();
        if let Some((_, name)) = shared {
            self.drop_shared_whiteout(&name);
        }
        Ok(())
    }

    /// Gives a file blocks of its own.
    fn allocate(&self, file: &T::File, size: u64) -> Result<()> {
        let tree = &self.upper()?.tree;
        match tree.fallocate(file, 0, 0, size.max(1)) {
            Err(Errno::OPNOTSUPP) => {
                let zeros = vec![0; usize::try_from(size).unwrap_or_default()];
                tree.write(file, &zeros, 0).attempt("keep space").map(drop)
            }
            kept => kept.attempt("keep space"),
        }
    }
}
