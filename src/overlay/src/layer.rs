//! `Layer` and `LayerStack`: what is merged. Immutable once the union is made.

use plyfs_format::{Dialect, escape_override, escape_xattr, shown_override, shown_xattr};

use crate::backend::Tree;

/// One layer: a tree and how marks are spelled in it.
pub struct Layer<T> {
    /// The tree.
    pub tree: T,
    /// How whiteouts and other marks are written in this layer.
    pub dialect: Dialect,
    /// The layer does not merge: it is asked only for the data of metacopy files, by absolute redirects (`datadir+` of kernel overlayfs).
    pub data_only: bool,
    /// What messages call it: the path that a user gave.
    pub label: String,
    /// Owner, mode and kind are those that `user.containers.override_stat` says. Of a lower the union reads it, of an upper the tree itself does
    /// ([`crate::DirTree::keeping`]).
    pub overrides: bool,
}

impl<T> Layer<T> {
    /// A layer whose marks are in the Trusted dialect (what kernel overlayfs writes as root).
    pub fn trusted(tree: T) -> Self {
        Self::new(tree, Dialect::Trusted)
    }

    /// A layer whose marks are in this dialect. The union does not write Aufs: an upper is of one of the others.
    pub fn new(tree: T, dialect: Dialect) -> Self {
        Self { tree, dialect, data_only: false, label: String::new(), overrides: false }
    }

    /// A layer that holds the data of metacopy files and nothing else. Marks in it mean nothing.
    pub fn data_only(tree: T) -> Self {
        Self { data_only: true, ..Self::trusted(tree) }
    }

    /// The same with a name for messages.
    #[must_use]
    pub fn named(self, label: impl Into<String>) -> Self {
        Self { label: label.into(), ..self }
    }

    /// The same, and `user.containers.override_stat` counts in it.
    #[must_use]
    pub fn with_overrides(self, overrides: bool) -> Self {
        Self { overrides, ..self }
    }

    /// The name that users see of an attribute on disk; none of what they must not see.
    pub(crate) fn shown_xattr(&self, name: &[u8]) -> Option<Vec<u8>> {
        let name = shown_xattr(self.dialect, name)?;
        if self.overrides { shown_override(&name) } else { Some(name) }
    }

    /// The name on disk of the attribute that users call `name`.
    pub(crate) fn xattr_on_disk(&self, name: &[u8]) -> Vec<u8> {
        let escaped = escape_xattr(self.dialect, name);
        if self.overrides { escape_override(&escaped) } else { escaped }
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
