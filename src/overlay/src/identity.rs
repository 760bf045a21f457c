//! Which object of a layer an inode stands for: the one that its number comes from. It stays the same over copy-up, rename and remount, and with it what is told of it: the
//! time of birth, the file handle.

use plyfs_format::Origin;
use plyfs_sys::handle::FileHandle;
use plyfs_sys::stat::{Kind, Stat, Time};

use crate::backend::{Handle, UpperTree};
use crate::error::{Attempt, Error, Result};
use crate::ino::{Ino, RESERVED};
use crate::inode::Inode;
use crate::layer::Layer;
use crate::union::Union;

/// The object that an inode stands for.
pub(crate) enum Identity<'a, T: UpperTree> {
    /// An object in use, and whether it is the upper one.
    Node { layer: &'a Layer<T>, node: &'a T::Node, upper: bool },
    /// A lower object that only the origin mark of the upper one names.
    Mark(Origin),
}

/// The handle in an origin mark, as the layers take it.
pub(crate) fn handle_in(mark: &Origin) -> Handle {
    Handle { uuid: mark.uuid, handle: FileHandle { kind: i32::from(mark.fid_type), bytes: mark.fid.clone() } }
}

impl<T: UpperTree> Union<T> {
    /// The object that an inode stands for. Another object has its number where an origin mark was copied (`cp -a` of an upper): then the inode stands for its upper object.
    pub(crate) fn identity<'a>(&'a self, inode: &'a Inode<T>) -> Result<Identity<'a, T>> {
        if let Some(lower) = inode.lowers.first() {
            let layer = self.lower_layer(lower.layer)?;
            if layer.tree.id(&lower.node) == inode.origin && !self.is_twin(inode) {
                return Ok(Identity::Node { layer, node: &lower.node, upper: false });
            }
        }
        let (layer, node) = (self.upper()?, self.upper_node(inode)?);
        if layer.tree.id(node) == inode.origin || self.is_twin(inode) {
            return Ok(Identity::Node { layer, node, upper: true });
        }
        let mark = self.marks(layer, node)?.origin.ok_or(Error::Stale("an upper object lost its origin mark"))?;
        Ok(Identity::Mark(mark))
    }

    /// Whether the number that comes from the inode's origin was another object's when the inode came into use.
    pub(crate) fn is_twin(&self, inode: &Inode<T>) -> bool {
        let pure = self.table.number(inode.origin);
        inode.ino != Ino::ROOT && pure.0 < RESERVED && pure != inode.ino
    }

    /// The lower object that an origin mark names, if it still exists and is of the same kind.
    pub(crate) fn origin_stat(&self, mark: &Origin, kind: Kind) -> Result<Option<Stat>> {
        let handle = handle_in(mark);
        for layer in &self.one_of_each {
            if let Some(stat) = self.lower_layer(*layer)?.tree.by_handle(&handle).attempt("open the origin's handle")?
                && stat.kind == kind
            {
                return Ok(Some(stat));
            }
        }
        Ok(None)
    }

    /// The time of birth (`STATX_BTIME`): that of the object which the inode number comes from, so that it is as constant as the number. (Kernel overlayfs shows that of the object
    /// which serves stat: there it changes with the copy-up.) `None`: the layer's filesystem keeps none.
    ///
    /// Errors: ESTALE; the layers' errors.
    pub fn birth(&self, ino: Ino) -> Result<Option<Time>> {
        let inode = self.inode(ino)?;
        match self.identity(&inode)? {
            Identity::Node { layer, node, .. } => Ok(layer.tree.stat(node).attempt("stat for the time of birth")?.btime),
            Identity::Mark(mark) => Ok(self.origin_stat(&mark, inode.kind)?.and_then(|stat| stat.btime)),
        }
    }
}
