//! Whiteouts of the upper, as devices or, in the dialect Aufs, as names beside the names that they hide.
//!
//! A device takes the place of what it hides, so that one system call moves an object and leaves a whiteout. A name stands beside it: what is hidden shows until it is gone, a file as long as
//! it lies there, and a directory that shows as empty is as empty without what it merges with. So the whiteout comes first and the object goes then, which is the commit; and what is
//! made comes in first and its whiteout goes then. Other readers of the dialect take a name beside its whiteout for hidden: to them it goes with the first step, and comes with the last one.

use plyfs_format::{AUFS_OPAQUE, AufsName, AufsNameError, Dialect, aufs_whiteout_name, classify_aufs_name, is_whiteout_device};
use plyfs_sys::Errno;
use plyfs_sys::stat::Kind;

use crate::backend::{Place, Rename, UpperTree};
use crate::error::{Attempt, Error, Result};
use crate::name::Name;
use crate::union::Union;

impl<T: UpperTree> Union<T> {
    /// Whether whiteouts of the upper are names.
    pub(crate) fn hides_by_names(&self) -> bool {
        self.stack.upper.as_ref().is_some_and(|layer| layer.dialect == Dialect::Aufs)
    }

    /// Whether users may have an object of that name.
    ///
    /// Errors: EINVAL for one that would be a mark in the upper.
    pub(crate) fn may_be_named(&self, name: &Name) -> Result<()> {
        if self.hides_by_names() && classify_aufs_name(name) != AufsName::Plain {
            return Err(Error::Invalid("a name that is a mark in the AUFS dialect"));
        }
        Ok(())
    }

    /// The place of the whiteout of a name, in the same directory.
    pub(crate) fn beside(name: &Name) -> Result<Name> {
        match aufs_whiteout_name(name) {
            Ok(whiteout) => Name::new(whiteout),
            Err(AufsNameError::TooLong(_)) => Err(Error::NameTooLong),
            Err(_) => Err(Error::NotPermitted("a name of a lower layer that the AUFS dialect cannot hide")),
        }
    }

    /// Takes the whiteout beside a name away, in the dialect Aufs.
    fn take_whiteout(&self, at: Place<'_, T::Node>) -> Result<()> {
        match self.upper()?.tree.unlink(Place { dir: at.dir, name: &Self::beside(at.name)? }) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno).attempt("remove a whiteout"),
        }
    }

    /// The same once the commit is done: for this union a whiteout beside a name says nothing more.
    pub(crate) fn whiteout_is_done(&self, at: Place<'_, T::Node>) {
        if let Err(error) = self.take_whiteout(at) {
            tracing::warn!(%error, name = %at.name, "a whiteout stays beside its name: other programs take the name for hidden");
        }
    }

    /// Takes a whiteout back that was put for a step which failed.
    fn undo_whiteout(&self, made: bool, at: Place<'_, T::Node>) {
        if made {
            self.whiteout_is_done(at);
        }
    }

    /// Makes room at a name that is hidden by a device: in the dialect Aufs the name beside it hides as well.
    pub(crate) fn free_name(&self, at: Place<'_, T::Node>) -> Result<()> {
        let tree = &self.upper()?.tree;
        match tree.lookup(at.dir, at.name).attempt("look at a whiteout")? {
            Some((_, stat)) if is_whiteout_device(stat.kind == Kind::Char, stat.rdev) => {
                self.put_whiteout(at)?;
                tree.unlink(at).attempt("remove a whiteout")
            }
            _ => Ok(()),
        }
    }

    /// Makes a directory opaque by a name in it.
    pub(crate) fn mark_opaque_by_name(&self, dir: &T::Node) -> Result<()> {
        match self.upper()?.tree.create(Place { dir, name: &Name::new(AUFS_OPAQUE)? }, 0o600) {
            Ok(_) | Err(Errno::EXIST) => Ok(()),
            Err(errno) => Err(errno).attempt("write the opaque mark"),
        }
    }

    /// Moves a staged object to its name, in one step, over the whiteout there if there is one.
    pub(crate) fn move_in(
        &self,
        staging: Place<'_, T::Node>,
        node: &T::Node,
        to: Place<'_, T::Node>,
        is_dir: bool,
        over_whiteout: bool,
    ) -> Result<()> {
        let tree = &self.upper()?.tree;
        let by_names = self.hides_by_names();
        if by_names && over_whiteout {
            self.free_name(to)?;
        }
        let how = match (over_whiteout && !by_names, is_dir) {
            (false, _) => Rename::NoReplace,
            // A directory cannot replace a whiteout, which is no directory: they change places.
            (true, true) => Rename::Exchange,
            (true, false) => Rename::Replace,
        };
        tree.rename(staging, Some(node), to, None, how).attempt("commit a new object")?;
        if by_names && over_whiteout {
            self.whiteout_is_done(to);
        }
        if how == Rename::Exchange
            && let Err(errno) = tree.unlink(staging)
        {
            // Litter, not harm: the object is in place, and `work` is emptied at the next mount.
            tracing::warn!(%errno, "a whiteout stays in workdir");
        }
        Ok(())
    }

    /// Moves a directory, which shows as empty and whose DIR lock the caller holds, to `work` in the dialect Aufs; a whiteout stays. Returns its name there.
    pub(crate) fn move_behind_whiteout(&self, at: Place<'_, T::Node>, node: Option<&T::Node>) -> Result<Name> {
        let tree = &self.upper()?.tree;
        let (work, temp) = (tree.work(), self.temp_name()?);
        let made = self.put_whiteout(at)?;
        let moved = tree.rename(at, node, Place { dir: &work, name: &temp }, None, Rename::NoReplace).attempt("move aside");
        moved.map(|()| temp).inspect_err(|_| self.undo_whiteout(made, at))
    }

    /// Removes a non-directory's name in the dialect Aufs; a whiteout stays.
    pub(crate) fn unlink_behind_whiteout(&self, at: Place<'_, T::Node>) -> Result<()> {
        let made = self.put_whiteout(at)?;
        self.upper()?.tree.unlink(at).attempt("unlink").inspect_err(|_| self.undo_whiteout(made, at))
    }

    /// Moves an object to another name in the dialect Aufs. `keep`: a lower holds the old name. `over_whiteout`: the new one is hidden. A directory merges with nothing.
    pub(crate) fn move_by_names(
        &self,
        from: Place<'_, T::Node>,
        node: &T::Node,
        to: Place<'_, T::Node>,
        keep: bool,
        over_whiteout: bool,
        replaces: bool,
    ) -> Result<()> {
        let tree = &self.upper()?.tree;
        if over_whiteout {
            self.free_name(to)?;
        }
        let made = keep && self.put_whiteout(from)?;
        let how = if replaces { Rename::Replace } else { Rename::NoReplace };
        tree.rename(from, Some(node), to, None, how).attempt("rename").inspect_err(|_| self.undo_whiteout(made, from))?;
        if over_whiteout {
            self.whiteout_is_done(to);
        }
        Ok(())
    }
}
