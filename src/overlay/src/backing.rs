//! Where what the union shows comes from, for those who carry its changes back into the lowers.

use std::os::fd::BorrowedFd;

use plyfs_sys::handle::FileHandle;

use crate::backend::{DirTree, ObjectId, UpperTree};
use crate::error::Result;
use crate::file::HandleId;
use crate::identity::handle_in;
use crate::ino::Ino;
use crate::union::Union;

/// The object of a layer behind an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backing {
    /// The object that the inode stands for: of a copied-up object the lower one that it was copied from, if that is still there.
    pub id: ObjectId,
    /// Whether the upper holds it, its data included: else it is the lower object as it is.
    pub in_upper: bool,
    /// The topmost lower object that is in it: the directory that merges, or the file below.
    pub below: Option<ObjectId>,
}

impl<T: UpperTree> Union<T> {
    /// Where an inode comes from.
    ///
    /// Errors: ESTALE.
    pub fn backing(&self, ino: Ino) -> Result<Backing> {
        let inode = self.inode(ino)?;
        let own = inode.upper_id.get().copied();
        // Where an origin mark was copied the inode stands for its upper object.
        let id = own.filter(|_| self.is_twin(&inode)).unwrap_or(inode.origin);
        let below = match inode.merged_lowers().first() {
            Some(lower) => Some(self.lower_layer(lower.layer)?.tree.id(&lower.node)),
            None => None,
        };
        Ok(Backing { id, in_upper: own.is_some(), below })
    }

    /// The file handle of the lower object that an inode was copied up from, whether that is still there or not. `None`: it was not, or its filesystem has no handles.
    ///
    /// Errors: ESTALE; those of the upper.
    pub fn copied_from(&self, ino: Ino) -> Result<Option<FileHandle>> {
        let inode = self.inode(ino)?;
        match (&self.stack.upper, inode.upper.get()) {
            (Some(layer), Some(node)) => Ok(self.marks(layer, node)?.origin.map(|mark| handle_in(&mark).handle)),
            _ => Ok(None),
        }
    }
}

impl Union<DirTree> {
    /// Lends the file of a layer that a handle of a regular file reads from now, to be read and never written.
    ///
    /// Errors: EBADF; the layers' errors.
    pub fn with_descriptor<R>(&self, handle: HandleId, call: impl FnOnce(BorrowedFd<'_>) -> R) -> Result<R> {
        self.handles.with_file(self, handle, |file| call(file.descriptor()))
    }
}
