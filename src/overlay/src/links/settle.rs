//! The index as a whole: what it holds, what a killed mount left in it, and how the upper tree is made to hold all that it knows.

use std::collections::HashSet;
use std::sync::Arc;

use plyfs_format::{Nlink, Origin};
use plyfs_sys::stat::{Kind, Stat};

use crate::backend::{ObjectId, Place, UpperTree};
use crate::copy_up::Content;
use crate::error::{Attempt, Result};
use crate::inode::Inode;
use crate::name::Name;
use crate::readdir::Source;
use crate::resolve::Resolved;
use crate::union::Union;

/// An object that the index holds.
pub(crate) struct Indexed<T: UpperTree> {
    name: Name,
    pub(crate) node: T::Node,
    pub(crate) stat: Stat,
    /// It is no metacopy.
    pub(crate) has_data: bool,
    /// The lower object and its count of links, if it can be found.
    pub(crate) lower: Option<(ObjectId, u32)>,
    /// The links that the union shows; what cannot be told is what the upper has.
    shown: i64,
}

impl<T: UpperTree> Indexed<T> {
    /// Names that are no links of the upper object: aliases, and names that the layers hide.
    pub(crate) fn outside(&self) -> i64 {
        (self.shown - (i64::from(self.stat.nlink) - 1)).max(0)
    }
}

/// What [`Union::settle_hard_links`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Settled {
    /// Names that became links in the upper.
    pub linked: u64,
    /// Entries that left the index.
    pub removed: u64,
}

impl<T: UpperTree> Union<T> {
    /// The objects that the index holds; entries that are no copies of hard-linked objects are left out.
    pub(crate) fn index_entries(&self) -> Result<Vec<Indexed<T>>> {
        let mut found = Vec::new();
        let Some((layer, index)) = self.stack.upper.as_ref().and_then(|layer| Some((layer, layer.tree.index()?))) else { return Ok(found) };
        for entry in layer.tree.read_dir(&index).attempt("read the index")? {
            let (Ok(name), Ok(origin)) = (Name::new(&entry.name), Origin::parse_index_name(&entry.name)) else { continue };
            let Some((node, stat)) = layer.tree.lookup(&index, &name).attempt("look up in the index")? else { continue };
            // Directories and whiteouts are the kernel's, for file handles.
            if stat.kind == Kind::Dir || plyfs_format::is_whiteout_device(stat.kind == Kind::Char, stat.rdev) {
                continue;
            }
            found.push(self.indexed_object(name, &origin, node, stat)?);
        }
        Ok(found)
    }

    /// An upper object, and what its marks say of its links.
    pub(crate) fn indexed_object(&self, name: Name, origin: &Origin, node: T::Node, stat: Stat) -> Result<Indexed<T>> {
        let lower = self.verify_origin(origin, stat.kind)?;
        let marks = self.marks(self.upper()?, &node)?;
        let has_data = !(marks.metacopy && stat.kind == Kind::File);
        let shown = match (marks.nlink, &lower) {
            (Some(mark @ Nlink::Upper(_)), _) => mark.shown(stat.nlink, 0),
            (Some(mark @ Nlink::Lower(_)), Some((_, nlink))) => mark.shown(stat.nlink, *nlink),
            (Some(Nlink::Lower(_)) | None, _) => i64::from(stat.nlink),
        };
        Ok(Indexed { name, node, stat, has_data, lower, shown })
    }

    /// Removes what a killed mount left in the index: entries whose last name went, and what kernel overlayfs was about to put there. To be called before the
    /// union is used; does nothing without an upper.
    ///
    /// Errors: those of the upper.
    pub fn clean_index(&self) -> Result<()> {
        let Some((layer, index)) = self.stack.upper.as_ref().and_then(|layer| Some((layer, layer.tree.index()?))) else { return Ok(()) };
        for entry in self.index_entries()?.into_iter().filter(|entry| entry.stat.nlink == 1 && entry.shown <= 0) {
            tracing::debug!(name = %entry.name, "an index entry without names");
            layer.tree.unlink(Place { dir: &index, name: &entry.name }).attempt("remove an index entry")?;
        }
        for entry in layer.tree.read_dir(&index).attempt("read the index")? {
            let Ok(name) = Name::new(&entry.name) else { continue };
            if name.as_bytes().first() == Some(&b'#') && entry.kind.is_some_and(|kind| kind != Kind::Dir) {
                layer.tree.unlink(Place { dir: &index, name: &name }).attempt("remove a temporary entry of the index")?;
            }
        }
        Ok(())
    }

    /// Makes the upper complete without its index, so that it can be a lower of another union: every name of a hard-linked lower file whose copy is in the index becomes a link
    /// in the upper tree, and its directories are copied up. Entries that no name shows leave the index. No name, content, number or time is changed; what
    /// links count is what shows: names that the layers hide are not counted any more. Killed at any moment, the index does for the rest. To be called when nothing else uses the union,
    /// and it is not used afterwards.
    ///
    /// Costs nothing where the index is empty or the upper holds all names of what is in it, else a walk through the merged tree.
    ///
    /// Errors: EROFS without an upper; the layers' errors. What was not settled is in the index as before.
    pub fn settle_hard_links(&self) -> Result<Settled> {
        let mut settled = Settled::default();
        let layer = self.upper()?;
        let (entries, Some(index)) = (self.index_entries()?, layer.tree.index()) else { return Ok(settled) };
        if entries.iter().any(|entry| entry.outside() > 0) {
            settled.linked = self.link_aliases(&entries)?;
        }
        for entry in entries {
            settled.removed += u64::from(self.settle_entry(&index, &entry)?);
        }
        Ok(settled)
    }

    /// Links all aliases of these objects into the tree.
    fn link_aliases(&self, entries: &[Indexed<T>]) -> Result<u64> {
        let wanted: HashSet<ObjectId> = entries.iter().filter_map(|entry| entry.lower.map(|(id, _)| id)).collect();
        // What has an origin that cannot be opened, as without CAP_DAC_READ_SEARCH, is found by looking at everything.
        let all = entries.iter().any(|entry| entry.lower.is_none());
        let mut linked = 0;
        // A loop, not recursion: the depth of the tree is not ours to choose.
        let mut todo = vec![self.root.clone()];
        while let Some(dir) = todo.pop() {
            let names = {
                let _dir = dir.as_dir()?.state.read();
                self.merged_names(dir.upper.get(), dir.merged_lowers())?
            };
            for entry in names {
                if entry.kind == Kind::Dir {
                    todo.extend(self.child(&dir, &entry.name)?);
                } else if entry.source == Source::Lower && (all || wanted.contains(&entry.id)) {
                    linked += u64::from(self.settle_name(&dir, &entry.name)?);
                }
            }
        }
        Ok(linked)
    }

    fn child(&self, dir: &Arc<Inode<T>>, name: &Name) -> Result<Option<Arc<Inode<T>>>> {
        let _dir = dir.as_dir()?.state.read();
        match self.resolve(dir, name)? {
            Resolved::Found(found) if found.new.kind == Kind::Dir => Ok(Some(self.intern(dir, name, found.new))),
            _ => Ok(None),
        }
    }

    /// Links one name, if it is an alias.
    fn settle_name(&self, dir: &Arc<Inode<T>>, name: &Name) -> Result<bool> {
        let is_alias =
            |resolved: &Resolved<T>| matches!(resolved, Resolved::Found(found) if found.new.links.is_some_and(|links| links.alias));
        {
            let _dir = dir.as_dir()?.state.read();
            if !is_alias(&self.resolve(dir, name)?) {
                return Ok(false);
            }
        }
        self.copy_up(dir, Content::Whole)?;
        let _dir = dir.as_dir()?.state.write();
        match self.resolve(dir, name)? {
            Resolved::Found(found) if found.new.links.is_some_and(|links| links.alias) => {
                let inode = self.intern(dir, name, found.new);
                self.link_alias(&inode, dir, name).map(|()| true)
            }
            _ => Ok(false),
        }
    }

    /// All names of an entry that show are links of it by now. One that has none goes; where layers hide further names of the lower object, the mark counts them no more.
    fn settle_entry(&self, index: &T::Node, entry: &Indexed<T>) -> Result<bool> {
        let tree = &self.upper()?.tree;
        let stat = tree.stat(&entry.node).attempt("stat an indexed object")?;
        if stat.nlink == 1 {
            // Where others change the lowers, a name of it may show again.
            if !self.behaviour.live_lowers {
                tree.unlink(Place { dir: index, name: &entry.name }).attempt("remove an index entry")?;
            }
            return Ok(!self.behaviour.live_lowers);
        }
        if entry.shown > i64::from(stat.nlink) - 1 {
            self.write_nlink(&entry.node, Nlink::Upper(-1))?;
        }
        Ok(false)
    }
}
