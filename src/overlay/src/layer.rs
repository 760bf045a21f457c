//! `Layer` and `LayerStack`: what is merged. Immutable once the union is made.

use plyfs_format::{Dialect, MarkKind, XattrClass, classify_xattr, escape_override, escape_xattr, read_names, shown_override, shown_xattr};
use plyfs_sys::Errno;

use crate::backend::{Handle, ObjectId, Tree};
use crate::error::{Attempt, Result};

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
    /// The handles of its objects name them in all layers of the union: no other lower filesystem has the same UUID.
    pub(crate) handles: bool,
}

impl<T> Layer<T> {
    /// A layer whose marks are in the Trusted dialect (what kernel overlayfs writes as root).
    pub fn trusted(tree: T) -> Self {
        Self::new(tree, Dialect::Trusted)
    }

    /// A layer whose marks are in this dialect. The union does not write Aufs: an upper is of one of the others.
    pub fn new(tree: T, dialect: Dialect) -> Self {
        Self { tree, dialect, data_only: false, label: String::new(), overrides: false, handles: true }
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

impl<T: Tree> Layer<T> {
    /// A persistent handle of an object; `None` where there is none that means this object alone.
    pub(crate) fn handle(&self, node: &T::Node) -> Result<Option<Handle>> {
        if self.handles { self.tree.handle(node).attempt("file handle") } else { Ok(None) }
    }

    /// The private attributes of an object, each with the mark that it is.
    ///
    /// An object may bear more than the kernel lists (64 KiB of names; users can make such ones on xfs, btrfs and tmpfs). Then each mark is asked for: those that no
    /// version knows are not seen there.
    pub(crate) fn private_xattrs(&self, node: &T::Node) -> Result<Vec<(Vec<u8>, Option<MarkKind>)>> {
        match self.tree.list_xattr(node) {
            Err(Errno::TOOBIG) => {}
            names => {
                let class = |name: Vec<u8>| match classify_xattr(self.dialect, &name) {
                    XattrClass::Private(kind) => Some((name, kind)),
                    XattrClass::Escaped(_) | XattrClass::Plain => None,
                };
                return Ok(names.attempt("list marks")?.into_iter().filter_map(class).collect());
            }
        }
        let mut found = Vec::new();
        for kind in MarkKind::ALL {
            for name in read_names(self.dialect, *kind) {
                if self.tree.get_xattr(node, name).attempt("look for a mark")?.is_some() {
                    found.push((name.to_vec(), Some(*kind)));
                }
            }
        }
        Ok(found)
    }
}

/// Finds lower filesystems that have one UUID, copies of one image for example: a handle that the one gave out names another object in the other. No handle of theirs is
/// written down or followed, as in the kernel (`ovl_lower_uuid_ok`).
pub(crate) fn tell_apart<T: Tree>(lowers: &mut [Layer<T>]) -> Result<()> {
    // The first root of each device, with its handle.
    let mut roots: Vec<(usize, ObjectId, Handle)> = Vec::new();
    let mut shared = Vec::new();
    for (index, layer) in lowers.iter().enumerate().filter(|(_, layer)| !layer.data_only) {
        let root = layer.tree.root();
        let id = layer.tree.id(&root);
        if roots.iter().any(|(_, known, _)| known.dev == id.dev) {
            continue;
        }
        let Some(handle) = layer.tree.handle(&root).attempt("file handle of a layer's root")? else { continue };
        if let Some((first, known, theirs)) = roots.iter().find(|(_, _, known)| known.uuid == handle.uuid) {
            // Subvolumes of one btrfs have devices of their own; their handles are good in each of them.
            let first =
                lowers.get(*first).map(|first| first.tree.by_handle(&handle).attempt("open the handle of a layer's root")).transpose()?;
            let here = layer.tree.by_handle(theirs).attempt("open the handle of a layer's root")?;
            let one =
                first.flatten().is_some_and(|stat| ObjectId::of(&stat) == id) && here.is_some_and(|stat| ObjectId::of(&stat) == *known);
            if !one && !shared.contains(&handle.uuid) {
                shared.push(handle.uuid);
            }
        }
        roots.push((index, id, handle));
    }
    let devices: Vec<u64> = roots.iter().filter(|(_, _, handle)| shared.contains(&handle.uuid)).map(|(_, id, _)| id.dev).collect();
    for layer in lowers {
        if devices.contains(&layer.tree.id(&layer.tree.root()).dev) {
            tracing::warn!(
                layer = layer.label,
                "its filesystem has the UUID of another one: hard links and inode numbers last until the mount ends"
            );
            layer.handles = false;
        }
    }
    Ok(())
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
