//! RENAME_WHITEOUT by a user: what is left at the old name is a character device 0:0 that shows, hence stored escaped.
//!
//! No one system call moves an object and leaves an object of our own in its place, so there are two. In between the old name shows nothing (or, if
//! something was replaced, that, with its own data): only a crash there lets it be seen, and nothing is lost. If the second fails, the first is undone.

use std::sync::Arc;

use plyfs_sys::Errno;
use plyfs_sys::stat::Kind;

use super::{End, Target};
use crate::backend::{Place, Rename, UpperTree};
use crate::error::{Attempt, Error, Result};
use crate::inode::{Inode, NewInode};
use crate::union::{Caller, Union};

/// What is at the old name after the move.
pub(super) enum Left<T: UpperTree> {
    /// The device.
    Device(Box<NewInode<T>>),
    /// What the first step put there, and that is to be told: neither could the device take its place, nor the move be undone.
    Torn(Error),
}

impl<T: UpperTree> Union<T> {
    /// Moves `source` and leaves a character device 0:0; returns what its inode is made of. The caller holds the DIR locks of both ends exclusively, has put
    /// the marks on the source, and, if the upper holds what is replaced, has pinned it.
    pub(super) fn move_leaving(
        &self,
        caller: &Caller,
        from: End<'_, T>,
        to: End<'_, T>,
        source: &Arc<Inode<T>>,
        held: Target,
        replaced: Option<&Arc<Inode<T>>>,
    ) -> Result<Left<T>> {
        let tree = &self.upper()?.tree;
        // Everything that needs space comes before the move.
        let (device, temp) = self.stage_device(caller, from.dir)?;
        let work = tree.work();
        let staged = Place { dir: &work, name: &temp };
        let torn = match self.move_and_put(from, to, source, held, replaced, &device, staged) {
            Ok(None) => {
                let id = tree.id(&device);
                return Ok(Left::Device(Box::new(NewInode::made(Kind::Char, device, id))));
            }
            Ok(Some(error)) => Ok(Left::Torn(error)),
            Err(error) => Err(error),
        };
        if let Err(errno) = tree.unlink(staged) {
            tracing::warn!(%errno, "a device stays in workdir");
        }
        torn
    }

    /// Returns the error that keeps the device from its place, if the move cannot be undone.
    #[allow(clippy::too_many_arguments)] // Both ends, what is moved, what is there, and what is left.
    fn move_and_put(
        &self,
        from: End<'_, T>,
        to: End<'_, T>,
        source: &Arc<Inode<T>>,
        held: Target,
        replaced: Option<&Arc<Inode<T>>>,
        device: &T::Node,
        staged: Place<'_, T::Node>,
    ) -> Result<Option<Error>> {
        let tree = &self.upper()?.tree;
        let (old, new) = (self.place(from)?, self.place(to)?);
        let node = self.upper_node(source)?;
        // Something is at the old name at every moment: the device then takes its place without asking the directory for space.
        let exchanged = match (held, replaced) {
            (Target::Object, Some(replaced)) => {
                self.mark_before_move(replaced, to, from)?;
                Some(self.upper_node(replaced)?)
            }
            _ => None,
        };
        let swaps = held == Target::Object || (held == Target::Whiteout && source.kind == Kind::Dir);
        let how = if swaps { Rename::Exchange } else { Rename::Whiteout };
        tree.rename(old, Some(node), new, exchanged, how).attempt("rename")?;
        let over_dir = exchanged.is_some() && replaced.is_some_and(|replaced| replaced.kind == Kind::Dir);
        // Only a directory cannot be replaced by a device.
        let put = if over_dir { Rename::Exchange } else { Rename::Replace };
        if let Err(errno) = tree.rename(staged, Some(device), old, None, put) {
            let error = Error::Layer { op: "leave a device behind a rename", errno };
            return match self.move_back(old, new, node, exchanged, held) {
                Ok(()) => Err(error),
                Err(undo) => {
                    tracing::error!(%undo, %error, "a rename that should leave a device leaves none");
                    Ok(Some(error))
                }
            };
        }
        if over_dir && let Err(error) = self.remove_aside(staged, Kind::Dir) {
            tracing::warn!(%error, "litter stays in workdir");
        }
        Ok(None)
    }

    /// Undoes the first step. What the old name holds goes back to the new one: what was replaced, or a whiteout, which is right there if there was one.
    fn move_back(
        &self,
        old: Place<'_, T::Node>,
        new: Place<'_, T::Node>,
        node: &T::Node,
        exchanged: Option<&T::Node>,
        held: Target,
    ) -> Result<()> {
        let tree = &self.upper()?.tree;
        tree.rename(new, Some(node), old, exchanged, Rename::Exchange).attempt("undo a rename")?;
        if held == Target::Free {
            match tree.unlink(new) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno).attempt("undo a rename"),
            }
        }
        Ok(())
    }
}
