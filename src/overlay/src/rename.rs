//! rename, with NOREPLACE, EXCHANGE and WHITEOUT (`whiteout.rs`).
//!
//! Marks go on the moved object before the move; the move is one renameat2. A directory that has lower parts takes a redirect along, so that it never
//! answers EXDEV; a pure upper directory that goes below a merged one becomes opaque, so that it does not merge with what a lower holds under its new name.

mod whiteout;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use plyfs_format::{MarkKind, Redirect};
use plyfs_sys::Errno;
use plyfs_sys::at::XattrMode;
use plyfs_sys::stat::Kind;

use crate::backend::{Place, Rename, UpperTree};
use crate::copy_up::Content;
use crate::error::{Attempt, Error, Result};
use crate::ino::Ino;
use crate::inode::{DirState, Inode};
use crate::lock::{DIR, RankedWrite};
use crate::name::Name;
use crate::resolve::Resolved;
use crate::union::{Caller, Redirects, Union};

use self::whiteout::Left;

/// Flags of rename(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RenameMode {
    /// Replaces what is at the target.
    #[default]
    Replace,
    /// `RENAME_NOREPLACE`.
    NoReplace,
    /// `RENAME_EXCHANGE`.
    Exchange,
    /// `RENAME_WHITEOUT`: a character device 0:0 of the caller's stays at the old name, as on any filesystem: a union that has this one as its upper takes it
    /// for a whiteout.
    Whiteout {
        /// Whose it is.
        caller: Caller,
        /// Whether what is at the target is replaced; else EEXIST (`RENAME_NOREPLACE`).
        replace: bool,
    },
}

impl RenameMode {
    fn replaces(self) -> bool {
        matches!(self, Self::Replace | Self::Whiteout { replace: true, .. })
    }

    /// Who leaves a character device 0:0 behind.
    fn leaves(self) -> Option<Caller> {
        if let Self::Whiteout { caller, .. } = self { Some(caller) } else { None }
    }
}

/// One end of a rename.
struct End<'a, T: UpperTree> {
    dir: &'a Arc<Inode<T>>,
    name: &'a Name,
}

impl<T: UpperTree> Clone for End<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T: UpperTree> Copy for End<'_, T> {}

/// What the target name holds, as far as the one system call cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    /// The upper holds nothing there.
    Free,
    /// The upper holds a whiteout there.
    Whiteout,
    /// The upper holds an object there that is to be replaced.
    Object,
}

/// The renameat2 that does it, and whether the whiteout that an exchange leaves at the old name must go.
///
/// `source_is_dir`: the moved object; `keep_whiteout`: a lower holds the old name.
fn plan(source_is_dir: bool, target: Target, keep_whiteout: bool) -> (Rename, bool) {
    match (source_is_dir, target, keep_whiteout) {
        // A directory cannot replace a whiteout; they change places, and the whiteout is right at the old name if a lower holds it.
        (true, Target::Whiteout, keep) => (Rename::Exchange, !keep),
        (_, _, true) => (Rename::Whiteout, false),
        (_, Target::Free, false) => (Rename::NoReplace, false),
        (_, _, false) => (Rename::Replace, false),
    }
}

impl<T: UpperTree> Union<T> {
    /// Moves a name.
    ///
    /// Errors: ENOENT, EEXIST (NOREPLACE), EISDIR, ENOTDIR, ENOTEMPTY by the merged view; EINVAL for a directory into itself; EXDEV where a
    /// redirect cannot be written; the layers' errors.
    pub fn rename(&self, parent: Ino, name: &Name, new_parent: Ino, new_name: &Name, mode: RenameMode) -> Result<()> {
        self.upper()?;
        if self.behaviour.kernel_compat && mode.leaves().is_some() {
            return Err(Error::Invalid("a character device 0:0, which kernel overlayfs does not show"));
        }
        self.may_be_named(new_name)?;
        if mode == RenameMode::Exchange {
            self.may_be_named(name)?;
        }
        let (old_dir, new_dir) = (self.directory(parent)?, self.directory(new_parent)?);
        let (from, to) = (End { dir: &old_dir, name }, End { dir: &new_dir, name: new_name });
        self.copy_up(&old_dir, Content::Whole)?;
        self.copy_up(&new_dir, Content::Whole)?;
        // Everything that takes long is done before a lock is held; whether it still is so is seen under the locks.
        let mut uncounted = false;
        loop {
            let source = self.peek(&from)?.ok_or(Error::NotFound)?;
            // What may not be moved is not copied up for it; which error it is, is said under the locks.
            if self.may_leave(&old_dir, &source).is_ok() {
                self.copy_up(&source, Content::Whole)?;
            }
            if mode == RenameMode::Exchange {
                let target = self.peek(&to)?.ok_or(Error::NotFound)?;
                if self.may_leave(&new_dir, &target).is_ok() {
                    self.copy_up(&target, Content::Whole)?;
                }
            } else if mode.replaces()
                && source.kind != Kind::Dir
                && let Some(target) = self.peek(&to)?
                && !Arc::ptr_eq(&source, &target)
                && self.may_leave(&new_dir, &target).is_ok()
            {
                if !uncounted && self.wants_index(&target)? {
                    uncounted = !self.copy_up_to_count(&target)?;
                }
                if mode.leaves().is_some() && target.lacks_data() {
                    // It lies at the old name for a moment, over the data of another file.
                    self.copy_up(&target, Content::Whole)?;
                }
            }
            let moves_dir = source.kind == Kind::Dir || mode == RenameMode::Exchange;
            let _topology = (moves_dir || !Arc::ptr_eq(&old_dir, &new_dir)).then(|| self.rename_lock.lock());
            let _locks = self.lock_pair(&old_dir, &new_dir)?;
            if self.rename_locked(from, to, mode, moves_dir, uncounted)? {
                return Ok(());
            }
        }
    }

    fn peek(&self, end: &End<'_, T>) -> Result<Option<Arc<Inode<T>>>> {
        let _dir = end.dir.as_dir()?.state.read();
        match self.resolve(end.dir, end.name)? {
            Resolved::Absent { .. } => Ok(None),
            Resolved::Found(found) => Ok(Some(self.intern(end.dir, end.name, found.new))),
        }
    }

    /// Takes the DIR locks of both parents, ancestor first, else in the order of their numbers. The RENAME lock is held if they differ.
    fn lock_pair<'a>(&self, a: &'a Arc<Inode<T>>, b: &'a Arc<Inode<T>>) -> Result<Vec<RankedWrite<'a, DIR, DirState>>> {
        let order = if Arc::ptr_eq(a, b) {
            vec![a]
        } else if is_ancestor(a, b) || (!is_ancestor(b, a) && a.ino < b.ino) {
            vec![a, b]
        } else {
            vec![b, a]
        };
        let mut guards = Vec::with_capacity(2);
        for dir in order {
            let guard = dir.as_dir()?.state.write();
            if guard.dead {
                return Err(Error::NotFound);
            }
            guards.push(guard);
        }
        Ok(guards)
    }

    /// The rename under its locks; `false`: something is not in the upper any more or yet, and the caller starts over.
    fn rename_locked(&self, from: End<'_, T>, to: End<'_, T>, mode: RenameMode, moves_dir: bool, uncounted: bool) -> Result<bool> {
        let source = self.resolve(from.dir, from.name)?.found()?;
        let (source_here, source_is_dir) = (source.upper_here, source.new.kind == Kind::Dir);
        if source_is_dir && !moves_dir {
            return Ok(false);
        }
        let source = self.intern(from.dir, from.name, source.new);
        if source.lacks_data() {
            // Another file than the one that was copied up before the locks were taken: under another name it would not find its data.
            return Ok(false);
        }
        let target = self.resolve(to.dir, to.name)?;
        match (mode, &target) {
            (RenameMode::Exchange, Resolved::Absent { .. }) => return Err(Error::NotFound),
            (RenameMode::Exchange, _) | (_, Resolved::Absent { .. }) => {}
            (_, Resolved::Found(_)) if mode.replaces() => {}
            (_, Resolved::Found(_)) => return Err(Error::Exists),
        }
        if source_is_dir && (Arc::ptr_eq(&source, to.dir) || is_ancestor(&source, to.dir)) {
            return Err(Error::Invalid("a directory into itself"));
        }
        self.may_leave(from.dir, &source)?;
        if !source_here {
            return self.link_alias(&source, from.dir, from.name).map(|()| false);
        }
        match target {
            Resolved::Absent { whiteout } => {
                self.may_enter(to.dir)?;
                let target = if whiteout { Target::Whiteout } else { Target::Free };
                self.move_to(from, to, &source, target, None, mode.leaves())?;
            }
            Resolved::Found(found) => {
                let here = found.upper_here;
                let target = self.intern(to.dir, to.name, found.new);
                if Arc::ptr_eq(&source, &target) {
                    // Two names of one object: POSIX says that nothing happens.
                    return Ok(true);
                }
                if target.kind == Kind::Dir && (Arc::ptr_eq(&target, from.dir) || is_ancestor(&target, from.dir)) {
                    return Err(if mode == RenameMode::Exchange {
                        Error::Invalid("an ancestor with its own descendant")
                    } else {
                        Error::NotEmpty
                    });
                }
                self.may_leave(to.dir, &target)?;
                if mode == RenameMode::Exchange {
                    if target.lacks_data() {
                        return Ok(false);
                    }
                    if !here {
                        return self.link_alias(&target, to.dir, to.name).map(|()| false);
                    }
                    self.exchange(from, to, &source, &target)?;
                } else {
                    if !here && !uncounted && source.kind != Kind::Dir && self.wants_index(&target)? {
                        return Ok(false);
                    }
                    return self.replace(from, to, &source, &target, here, mode.leaves());
                }
            }
        }
        Ok(true)
    }

    /// Replaces an existing object; `false`: its data must come first, and the caller starts over.
    fn replace(
        &self,
        from: End<'_, T>,
        to: End<'_, T>,
        source: &Arc<Inode<T>>,
        target: &Arc<Inode<T>>,
        target_here: bool,
        leaves: Option<Caller>,
    ) -> Result<bool> {
        match (source.kind == Kind::Dir, target.kind == Kind::Dir) {
            (true, false) => return Err(Error::NotDir),
            (false, true) => return Err(Error::IsDir),
            (false, false) => {
                let target_here = target_here || self.link_alias_to_remove(target, to.dir, to.name)?;
                if leaves.is_some() && target_here && target.lacks_data() {
                    return Ok(false);
                }
                match leaves {
                    _ if !target_here => {}
                    None => drop(self.pin(target, self.place(to)?)?),
                    // It moves before it is replaced.
                    Some(_) => self.pin_whatever(target)?,
                }
                let held = if target_here { Target::Object } else { Target::Free };
                self.move_to(from, to, source, held, Some(target), leaves)?;
            }
            (true, true) => {
                let mut state = target.as_dir()?.state.write();
                if !self.is_empty(target)? {
                    return Err(Error::NotEmpty);
                }
                let mut hidden = false;
                if target_here {
                    // What it refuses must have changed nothing.
                    self.mark_before_move(source, from, to)?;
                    self.pin_whatever(target)?;
                    hidden = self.clear_empty(target, to)?;
                }
                let held = if target_here { Target::Object } else { Target::Free };
                let moved = self.move_to(from, to, source, held, Some(target), leaves);
                if hidden {
                    if moved.is_err() {
                        self.mark_opaque(self.upper_node(target)?)?;
                    }
                    self.whiteout_is_done(self.place(to)?);
                }
                moved?;
                target.bury(&mut state);
            }
        }
        Ok(true)
    }

    /// Keeps what is replaced by a descriptor, however many there are: a directory can have no further name.
    fn pin_whatever(&self, target: &Inode<T>) -> Result<()> {
        self.upper()?.tree.pin(self.upper_node(target)?, None).attempt("pin").map(drop)
    }

    /// Takes the whiteouts out of an upper directory that shows as empty, so that a rename may replace it. Opaque first: at every step it shows as empty. `true`: it is so by the whiteout
    /// beside it, since in the dialect Aufs a mark in it would be in the way; that has to go in the end.
    fn clear_empty(&self, target: &Inode<T>, at: End<'_, T>) -> Result<bool> {
        let node = self.upper_node(target)?;
        if self.upper()?.tree.read_dir(node).attempt("list an empty directory")?.is_empty() {
            return Ok(false);
        }
        let by_names = self.hides_by_names();
        if by_names {
            self.put_whiteout(self.place(at)?)?;
        } else {
            self.mark_opaque(node)?;
        }
        target.cut.store(true, Ordering::Release);
        let removed = self.remove_whiteouts(node);
        if by_names && removed.is_err() {
            self.mark_opaque(node)?;
            self.whiteout_is_done(self.place(at)?);
        }
        removed.map(|()| by_names)
    }

    fn move_to(
        &self,
        from: End<'_, T>,
        to: End<'_, T>,
        source: &Arc<Inode<T>>,
        held: Target,
        replaced: Option<&Arc<Inode<T>>>,
        leaves: Option<Caller>,
    ) -> Result<()> {
        self.mark_before_move(source, from, to)?;
        let step = || match leaves {
            Some(caller) => self.move_leaving(&caller, from, to, source, held, replaced).map(Some),
            None => self.move_alone(from, to, source, held).map(|()| None),
        };
        let device = match replaced {
            Some(replaced) => self.changing_links(replaced, step)?,
            None => step()?,
        };
        // Names and listings first: they must be right even if the count of links cannot be written.
        if let Some(replaced) = replaced {
            replaced.remove_name(to.dir, to.name);
        }
        Self::moved(from, to, source);
        match device {
            // The old name stays, and so does its place in the listing.
            Some(Left::Device(device)) => self.list_insert(from.dir, from.name, &self.intern(from.dir, from.name, *device)),
            Some(Left::Torn(error)) => {
                match replaced.filter(|_| held == Target::Object) {
                    Some(replaced) => {
                        replaced.add_name(from.dir, from.name);
                        self.list_insert(from.dir, from.name, replaced);
                    }
                    None => self.list_remove(from.dir, from.name),
                }
                self.list_insert(to.dir, to.name, source);
                return Err(error);
            }
            None => self.list_remove(from.dir, from.name),
        }
        self.list_insert(to.dir, to.name, source);
        match replaced.filter(|replaced| replaced.kind != Kind::Dir) {
            // Where the upper held nothing, a lower name of it is hidden by what replaces it.
            Some(replaced) => self.name_gone(replaced, held != Target::Free),
            None => Ok(()),
        }
    }

    /// The move, and nothing stays but a whiteout over what a lower holds.
    fn move_alone(&self, from: End<'_, T>, to: End<'_, T>, source: &Arc<Inode<T>>, held: Target) -> Result<()> {
        let tree = &self.upper()?.tree;
        let keep_whiteout = self.lower_has(from.dir, from.name)?;
        if self.hides_by_names() {
            let (node, over_whiteout) = (self.upper_node(source)?, held == Target::Whiteout);
            return self.move_by_names(self.place(from)?, node, self.place(to)?, keep_whiteout, over_whiteout, held == Target::Object);
        }
        let (how, stray) = plan(source.kind == Kind::Dir, held, keep_whiteout);
        let (old, new) = (self.place(from)?, self.place(to)?);
        tree.rename(old, Some(self.upper_node(source)?), new, None, how).attempt("rename")?;
        if stray && let Err(errno) = tree.unlink(old) {
            // It hides nothing, so nothing shows; plyfs reads it as a whiteout of nothing.
            tracing::warn!(%errno, "a whiteout of nothing stays behind a rename");
        }
        Ok(())
    }

    fn exchange(&self, from: End<'_, T>, to: End<'_, T>, source: &Arc<Inode<T>>, target: &Arc<Inode<T>>) -> Result<()> {
        let tree = &self.upper()?.tree;
        self.mark_before_move(source, from, to)?;
        self.mark_before_move(target, to, from)?;
        let (a, b) = (self.upper_node(source)?, self.upper_node(target)?);
        tree.rename(self.place(from)?, Some(a), self.place(to)?, Some(b), Rename::Exchange).attempt("exchange")?;
        target.remove_name(to.dir, to.name);
        Self::moved(from, to, source);
        target.add_name(from.dir, from.name);
        // Both names stay, and so do their places in the listings.
        self.list_insert(to.dir, to.name, source);
        self.list_insert(from.dir, from.name, target);
        Ok(())
    }

    /// Names after the move of one object.
    fn moved(from: End<'_, T>, to: End<'_, T>, inode: &Arc<Inode<T>>) {
        // The new name first, so that at no moment the inode seems to have none.
        inode.add_name(to.dir, to.name);
        inode.remove_name(from.dir, from.name);
    }

    fn place<'a>(&self, end: End<'a, T>) -> Result<Place<'a, T::Node>> {
        Ok(Place { dir: self.upper_node(end.dir)?, name: end.name })
    }

    /// The marks that an object needs at its new place; at the old place they change nothing that shows.
    fn mark_before_move(&self, inode: &Arc<Inode<T>>, from: End<'_, T>, to: End<'_, T>) -> Result<()> {
        let node = self.upper_node(inode)?;
        let tree = &self.upper()?.tree;
        self.mark_impure(self.upper_node(to.dir)?, inode.origin != tree.id(node))?;
        let Some(part) = inode.dir.as_deref() else { return Ok(()) };
        if inode.merged_lowers().is_empty() {
            return if to.dir.merged_lowers().is_empty() { Ok(()) } else { self.mark_opaque(node) };
        }
        if self.behaviour.redirects != Redirects::Written {
            return Err(Error::CrossDevice("no redirects are written"));
        }
        let same_parent = Arc::ptr_eq(from.dir, to.dir);
        let current = part.redirect.lock().clone();
        let redirect = match current {
            Some(Redirect::Absolute(_)) => return Ok(()),
            Some(Redirect::Sibling(_)) if same_parent => return Ok(()),
            None if same_parent => Redirect::Sibling(from.name.to_vec()),
            _ => Redirect::Absolute(self.lower_path(inode)?),
        };
        let layer = self.upper()?;
        let name = plyfs_format::xattr_name(layer.dialect, MarkKind::Redirect)
            .filter(|name| !plyfs_format::users_can_set(name))
            .ok_or(Error::CrossDevice("this dialect has no redirects"))?;
        let value = redirect.encode();
        match layer.tree.set_xattr(node, name, &value, XattrMode::Any) {
            Ok(()) => {}
            // Longer than the filesystem's xattrs, or no xattrs at all: the kernel answers EXDEV, and mv copies.
            Err(Errno::RANGE | Errno::TOOBIG | Errno::OPNOTSUPP) => return Err(Error::CrossDevice("the redirect does not fit")),
            Err(errno) => return Err(errno).attempt("write the redirect mark"),
        }
        *part.redirect.lock() = Some(redirect);
        Ok(())
    }

    /// Where a directory's lower parts are, as a path in the merged lower layers: the names from the root, or the redirects where there are some.
    /// The RENAME lock is held, so that no directory moves.
    fn lower_path(&self, dir: &Arc<Inode<T>>) -> Result<Vec<Vec<u8>>> {
        let mut path = Vec::new();
        let mut at = dir.clone();
        while !Arc::ptr_eq(&at, &self.root) {
            let (parent, name) = at.a_name().ok_or(Error::Stale("a directory without a name"))?;
            let redirect = at.as_dir()?.redirect.lock().clone();
            match redirect {
                Some(Redirect::Absolute(mut base)) => {
                    base.reverse();
                    path.append(&mut base);
                    break;
                }
                Some(Redirect::Sibling(sibling)) => path.push(sibling),
                None => path.push(name.to_vec()),
            }
            at = parent;
        }
        path.reverse();
        Ok(path)
    }
}

/// Whether `a` is above `b`. The RENAME lock is held, or the answer is only a hint.
fn is_ancestor<T: UpperTree>(a: &Arc<Inode<T>>, b: &Arc<Inode<T>>) -> bool {
    let mut at = b.a_name();
    while let Some((parent, _)) = at {
        if Arc::ptr_eq(a, &parent) {
            return true;
        }
        at = parent.a_name();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decision_table() {
        use Target::{Free, Object, Whiteout};
        for (dir, target, keep, expected) in [
            (false, Free, false, (Rename::NoReplace, false)),
            (false, Free, true, (Rename::Whiteout, false)),
            (false, Whiteout, false, (Rename::Replace, false)),
            (false, Whiteout, true, (Rename::Whiteout, false)),
            (false, Object, false, (Rename::Replace, false)),
            (false, Object, true, (Rename::Whiteout, false)),
            (true, Free, false, (Rename::NoReplace, false)),
            (true, Free, true, (Rename::Whiteout, false)),
            (true, Whiteout, false, (Rename::Exchange, true)),
            (true, Whiteout, true, (Rename::Exchange, false)),
            (true, Object, false, (Rename::Replace, false)),
            (true, Object, true, (Rename::Whiteout, false)),
        ] {
            assert_eq!(plan(dir, target, keep), expected, "dir {dir}, {target:?}, lower holds the old name {keep}");
        }
    }
}
