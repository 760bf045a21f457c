//! `Layer` and `LayerStack`: what is merged. Immutable once the union is made.

use plyfs_format::Dialect;

use crate::backend::Tree;

/// One layer: a tree and how marks are spelled in it.
pub struct Layer<T> {
    /// The tree.
    pub tree: T,
    /// How whiteouts and other marks are written in this layer.
    pub dialect: Dialect,
    /// The layer does not merge: it is asked only for the data of metacopy files, by absolute redirects (`datadir+` of kernel overlayfs).
    pub data_only: bool,
}

impl<T> Layer<T> {
    /// A layer whose marks are in the Trusted dialect (what kernel overlayfs writes as root).
    pub fn trusted(tree: T) -> Self {
        Self { tree, dialect: Dialect::Trusted, data_only: false }
    }

    /// A layer that holds the data of metacopy files and nothing else. Marks in it mean nothing.
    pub fn data_only(tree: T) -> Self {
        Self { data_only: true, ..Self::trusted(tree) }
    }
}

/// The layers of a union: zero or one upper, any number of lowers, topmost first.
pub struct LayerStack<T> {
    /// The writable layer; none makes a read-only union.
    pub upper: Option<Layer<T>>,
    /// The read-only layers, topmost first, and below all others those that are data-only.
    pub lowers: Box<[Layer<T>]>,
}

/// Which lower layer: position in [`LayerStack::lowers`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LowerIndex(pub(crate) u32);

/// What one lower layer holds of an object.
pub(crate) struct LowerObject<T: Tree> {
    /// The layer.
    pub(crate) layer: LowerIndex,
    /// The object in it.
    pub(crate) node: T::Node,
    /// The directory is marked `opaque=x`: files in it may be whiteouts in xattr form.
    pub(crate) xwhiteouts: bool,
}

impl<T: Tree> Clone for LowerObject<T> {
    fn clone(&self) -> Self {
        Self { layer: self.layer, node: self.node.clone(), xwhiteouts: self.xwhiteouts }
    }
}
