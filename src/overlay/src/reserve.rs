//! What deleting needs where a filesystem has no space left: a whiteout to link from, and inodes and blocks to give back.
//!
//! Removing what only the upper holds takes no space. Hiding what a lower holds takes a whiteout: a further link of one that is there, as in kernel overlayfs, needs no inode (but on tmpfs, where each
//! name counts as one). What else it may need, an entry that does not fit into the directory or the copy-up of a directory, comes from empty directories and a file of zeros in
//! `work`, which are given up one by one and made again when there is space.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use plyfs_sys::Errno;
use plyfs_sys::stat::Kind;

use crate::backend::{Place, Rename, Tree, UpperTree};
use crate::copy_up::Content;
use crate::error::{Attempt, Error, Result};
use crate::inode::Inode;
use crate::lock::{LEAF, Ranked};
use crate::name::Name;
use crate::sync::{AtomicBool, AtomicU32};
use crate::union::Union;

/// How many directories are kept: the depth of a lower tree that can be removed with no inode left.
const DIRS: usize = 16;
/// The size of the file at most, and the part of a small filesystem that it takes. xfs asks for some hundred KiB to be free before it makes a name, whatever that needs in the end.
const SPACE: u64 = 1 << 20;
const PART: u64 = 128;
/// In how many steps it is given up.
const STEPS: u64 = 4;
/// How many removals go by until a reserve that could not be made again is tried once more.
const PATIENCE: u32 = 64;

/// The names of what is kept in `work` begin so.
const PREFIX: &str = "#reserve.";

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
    whiteout: Option<T::Node>,
    dirs: VecDeque<Name>,
    space: Option<(T::Node, u64)>,
    /// How many names were given.
    names: u64,
}

impl<T: Tree> Default for Reserve<T> {
    fn default() -> Self {
        let kept = Kept { whiteout: None, dirs: VecDeque::new(), space: None, names: 0 };
        Self { kept: Ranked::new(kept), wanted: AtomicBool::new(false), low: AtomicBool::new(false), patience: AtomicU32::new(0) }
    }
}

/// Whether it is space that is missing: giving some up may help.
pub(crate) fn is_full(errno: Errno) -> bool {
    matches!(errno, Errno::NOSPC | Errno::DQUOT)
}

impl<T: UpperTree> Union<T> {
    /// Keeps what deleting needs when no space is left, in `work`, from now on. What there is no space for is made later; without a reserve the union works as well, but for that.
    pub fn keep_reserve(&self) {
        if !self.is_read_only() {
            self.reserve.wanted.store(true, Ordering::Relaxed);
            self.reserve.low.store(true, Ordering::Relaxed);
            self.refill();
        }
    }

    /// Gives up what [`Union::keep_reserve`] keeps: at a clean end nothing is left in `work`.
    pub fn drop_reserve(&self) {
        if !self.reserve.wanted.swap(false, Ordering::Relaxed) {
            return;
        }
        let (whiteout, dirs, space) = {
            let mut kept = self.reserve.kept.lock();
            (kept.whiteout.take().is_some(), std::mem::take(&mut kept.dirs), kept.space.take().is_some())
        };
        drop((whiteout, dirs, space));
        if let Err(error) = self.sweep_reserve() {
            tracing::warn!(%error, "litter stays in workdir");
        }
    }

    fn sweep_reserve(&self) -> Result<()> {
        let tree = &self.upper()?.tree;
        let work = tree.work();
        for entry in tree.read_dir(&work).attempt("list workdir")? {
            if !entry.name.starts_with(PREFIX.as_bytes()) {
                continue;
            }
            let name = Name::new(&entry.name)?;
            let at = Place { dir: &work, name: &name };
            let removed = if entry.kind == Some(Kind::Dir) { tree.rmdir(at) } else { tree.unlink(at) };
            removed.attempt("give up the reserve")?;
        }
        Ok(())
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
        let tree = &self.upper().map_err(|error| error.errno())?.tree;
        let put = || {
            let whiteout = self.reserve.kept.lock().whiteout.clone();
            match whiteout.map(|whiteout| tree.link(&whiteout, at)) {
                Some(linked @ (Ok(()) | Err(Errno::EXIST))) => linked,
                Some(Err(errno)) => {
                    if !is_full(errno) {
                        // EMLINK: another one takes its place. Of all others it is not known that another one helps, and there is no hurry.
                        let patience = if errno == Errno::MLINK { 0 } else { PATIENCE };
                        self.reserve.kept.lock().whiteout = None;
                        self.reserve.patience.store(patience, Ordering::Relaxed);
                        self.reserve.low.store(true, Ordering::Relaxed);
                    }
                    tracing::debug!(%errno, "a whiteout that is no link of another one");
                    self.make_whiteout(at)
                }
                None => self.make_whiteout(at),
            }
        };
        loop {
            match put() {
                Err(errno) if is_full(errno) && self.give_up_some() => {}
                put => return put,
            }
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
        let (dir, space) = {
            let mut kept = self.reserve.kept.lock();
            let dir = kept.dirs.pop_front();
            let space = kept.space.as_mut().filter(|(_, size)| *size > 0).map(|(node, size)| {
                *size = size.saturating_sub(SPACE / STEPS);
                (node.clone(), *size)
            });
            (dir, space)
        };
        if dir.is_none() && space.is_none() {
            return false;
        }
        self.reserve.low.store(true, Ordering::Relaxed);
        if let Err(error) = self.give_up(dir, space) {
            tracing::warn!(%error, "what is kept for deleting without space cannot be given up");
        }
        true
    }

    fn give_up(&self, dir: Option<Name>, space: Option<(T::Node, u64)>) -> Result<()> {
        let tree = &self.upper()?.tree;
        let work = tree.work();
        if let Some(name) = dir {
            tree.rmdir(Place { dir: &work, name: &name }).attempt("give up a directory")?;
        }
        if let Some((node, size)) = space {
            let file = tree.open_write(&node).attempt("give up space")?;
            tree.truncate(&file, size).attempt("give up space")?;
        }
        // ext4 gives freed blocks out again only after they were committed.
        tree.sync_dir(&work).attempt("give up space")
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

    fn reserve_name(&self, what: &str) -> Result<Name> {
        let mut kept = self.reserve.kept.lock();
        kept.names += 1;
        Name::new(format!("{PREFIX}{what}.{:x}", kept.names))
    }

    fn try_refill(&self) -> Result<()> {
        let tree = &self.upper()?.tree;
        let work = tree.work();
        if self.reserve.kept.lock().whiteout.is_none() {
            let name = self.reserve_name("whiteout")?;
            self.make_whiteout(Place { dir: &work, name: &name }).attempt("keep a whiteout")?;
            let made = tree.lookup(&work, &name).attempt("keep a whiteout")?;
            self.reserve.kept.lock().whiteout = made.map(|(node, _)| node);
        }
        while self.reserve.kept.lock().dirs.len() < DIRS {
            let name = self.reserve_name("dir")?;
            tree.mkdir(Place { dir: &work, name: &name }, 0o700).attempt("keep a directory")?;
            self.reserve.kept.lock().dirs.push_back(name);
        }
        let there = self.reserve.kept.lock().space.as_ref().map(|(node, size)| (node.clone(), *size));
        let stat = tree.statfs().attempt("keep space")?;
        let space = (stat.blocks.saturating_mul(stat.frsize) / PART).min(SPACE);
        if there.as_ref().is_none_or(|(_, size)| *size < space) {
            let node = self.keep_space(there.map(|(node, _)| node), space)?;
            self.reserve.kept.lock().space = Some((node, space));
        }
        Ok(())
    }

    /// A file in `work` with blocks of its own.
    fn keep_space(&self, there: Option<T::Node>, size: u64) -> Result<T::Node> {
        let tree = &self.upper()?.tree;
        let work = tree.work();
        let (node, file) = match there {
            Some(node) => {
                let file = tree.open_write(&node).attempt("keep space")?;
                (node, file)
            }
            None => {
                let name = self.reserve_name("space")?;
                tree.create(Place { dir: &work, name: &name }, 0o600).attempt("keep space")?
            }
        };
        match tree.fallocate(&file, 0, 0, size.max(1)) {
            Err(Errno::OPNOTSUPP) => {
                let zeros = vec![0; usize::try_from(size).unwrap_or_default()];
                tree.write(&file, &zeros, 0).attempt("keep space")?;
            }
            kept => kept.attempt("keep space")?,
        }
        Ok(node)
    }
}
