//! One name through the stack.
//!
//! The rules are the kernel's (`ovl_lookup`, `ovl_lookup_layer`): top-down; a whiteout or a non-directory stops the search; directories merge until an
//! opaque one; a redirect changes the name, or the path from the layers' roots, for the layers below.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use plyfs_format::{
    Before, Dialect, ESCAPED_WHITEOUT_RDEV, MarkKind, Nlink, Opaque, Origin, Protattr, Redirect, is_whiteout_device, read_names,
    users_can_set,
};
use plyfs_sys::stat::{Kind, Stat};

use crate::backend::{ObjectId, Tree, UpperTree};
use crate::data::{Far, as_before};
use crate::entry::Entry;
use crate::error::{Attempt, Error, Result};
use crate::flags;
use crate::inode::{Inode, NewInode};
use crate::layer::{Layer, LowerIndex, LowerObject};
use crate::name::Name;
use crate::union::{Redirects, Union};

/// The marks of one object that a look-up needs.
#[derive(Default)]
pub(crate) struct Marks {
    pub(crate) opaque: bool,
    /// A mark is not honoured: nothing below shows.
    pub(crate) broken: bool,
    pub(crate) xwhiteouts: bool,
    pub(crate) redirect: Option<Redirect>,
    pub(crate) origin: Option<Origin>,
    pub(crate) nlink: Option<Nlink>,
    pub(crate) impure: bool,
    pub(crate) metacopy: bool,
    /// Data was or is being copied into this metacopy.
    pub(crate) before: Option<Before>,
    /// A user's character device 0:0.
    pub(crate) device: bool,
    /// What the union keeps of inode flags.
    pub(crate) protattr: Protattr,
}

/// How an object of the index shows its links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Links {
    /// To be added to the upper object's own count.
    pub(crate) delta: i64,
    /// The index has the object for a lower name; the upper directory does not hold it there.
    pub(crate) alias: bool,
}

/// The copy of a hard-linked lower object in the index.
struct Indexed<T: Tree> {
    node: T::Node,
    stat: Stat,
    links: Links,
    /// It is no metacopy.
    has_data: bool,
}

/// What a name means.
pub(crate) enum Resolved<T: Tree> {
    /// Nothing; `whiteout` says that the upper directory holds a whiteout under the name.
    Absent { whiteout: bool },
    /// An object.
    Found(Box<Found<T>>),
}

/// An object as it was found under one name.
pub(crate) struct Found<T: Tree> {
    pub(crate) new: NewInode<T>,
    /// Metadata of the object that shows: the upper's, else the topmost lower's.
    pub(crate) stat: Stat,
    /// The upper directory holds the object under this very name.
    pub(crate) upper_here: bool,
}

impl<T: Tree> Resolved<T> {
    pub(crate) fn found(self) -> Result<Found<T>> {
        match self {
            Self::Found(found) => Ok(*found),
            Self::Absent { .. } => Err(Error::NotFound),
        }
    }
}

/// What the lowers below some directories hold under a name.
pub(crate) struct LowerFound<T: Tree> {
    /// The object, or all directories that merge. Empty: nothing.
    pub(crate) objects: Vec<LowerObject<T>>,
    /// The data of a file, if it is in a data-only layer.
    pub(crate) far: Option<Box<Far<T>>>,
    /// Metadata of the topmost one.
    pub(crate) stat: Option<Stat>,
}

impl<T: UpperTree> Union<T> {
    pub(crate) fn lower_layer(&self, index: LowerIndex) -> Result<&Layer<T>> {
        self.stack.lowers.get(index.0 as usize).ok_or(Error::Stale("layer index"))
    }

    /// Reads the marks of an object with one system call when it has none.
    pub(crate) fn marks(&self, layer: &Layer<T>, node: &T::Node) -> Result<Marks> {
        let mut marks = Marks::default();
        let names = layer.private_xattrs(node)?;
        for (name, kind) in &names {
            let Some(kind) = *kind else { continue };
            // Of several spellings the dialect's own counts.
            if read_names(layer.dialect, kind)
                .take_while(|better| better != name)
                .any(|better| names.iter().any(|(name, _)| name == better))
            {
                continue;
            }
            // Who sets these must be somebody who may see where they lead.
            let leads = matches!(kind, MarkKind::Redirect | MarkKind::Metacopy);
            if leads && self.is_condemned(layer.tree.id(node)) {
                marks.broken = true;
                continue;
            }
            if leads && users_can_set(name) {
                self.condemn(layer, node, format!("mark {} is not honoured where every user can set it", name.escape_ascii()))?;
                marks.broken = true;
                continue;
            }
            let value = || layer.tree.get_xattr(node, name).attempt("read mark");
            match kind {
                MarkKind::Opaque => match value()?.map(|v| Opaque::parse(&v)) {
                    Some(Opaque::Yes) => marks.opaque = true,
                    Some(Opaque::XWhiteouts) => marks.xwhiteouts = true,
                    Some(Opaque::No) | None => {}
                },
                MarkKind::Redirect => {
                    if let Some(v) = value()? {
                        match Redirect::parse(&v) {
                            Ok(redirect) => marks.redirect = Some(redirect),
                            Err(e) => {
                                self.condemn(layer, node, format!("mark {} = {}: {e}", name.escape_ascii(), v.escape_ascii()))?;
                                marks.broken = true;
                            }
                        }
                    }
                }
                MarkKind::Origin => {
                    // A damaged origin only costs the constant inode number; the kernel ignores it, too.
                    marks.origin = value()?.and_then(|v| Origin::parse(&v).inspect_err(|e| tracing::debug!(%e, "origin mark")).ok());
                }
                MarkKind::Nlink => marks.nlink = value()?.and_then(|v| Nlink::parse(&v)),
                MarkKind::Metacopy => marks.metacopy = true,
                MarkKind::Before => marks.before = value()?.and_then(|v| Before::parse(&v)),
                MarkKind::Device => marks.device = true,
                MarkKind::Impure => marks.impure = true,
                MarkKind::Protattr => match value()?.and_then(|v| Protattr::parse(&v)) {
                    Some(protattr) => marks.protattr = protattr,
                    None => tracing::warn!("a protattr mark that cannot be read is no mark"),
                },
                _ => {}
            }
        }
        Ok(marks)
    }

    /// Whether an entry of a layer is a whiteout: char 0:0, or in a directory marked so, an empty file with the whiteout mark.
    pub(crate) fn is_whiteout(&self, layer: &Layer<T>, node: &T::Node, stat: &Stat, xwhiteouts: bool) -> Result<bool> {
        if is_whiteout_device(stat.kind == Kind::Char, stat.rdev) {
            return Ok(true);
        }
        if !xwhiteouts || stat.kind != Kind::File || stat.size != 0 {
            return Ok(false);
        }
        Ok(layer.mark(node, MarkKind::Whiteout)?.is_some())
    }

    /// Whether an object is a user's character device 0:0, stored under another number. Costs a look at the marks only for that number.
    pub(crate) fn is_escaped_device(&self, layer: &Layer<T>, node: &T::Node, stat: &Stat) -> Result<bool> {
        Ok(stat.kind == Kind::Char && stat.rdev == ESCAPED_WHITEOUT_RDEV && self.marks(layer, node)?.device)
    }

    /// Looks a name up below merged lower directories, top-down. `want_dir`: a directory was found above, so only directories merge.
    ///
    /// A metacopy file is found as it is, without its data: see [`Union::follow_data`].
    ///
    /// Errors: those of the layers (never taken for "not there").
    pub(crate) fn lookup_lowers(&self, dirs: &[LowerObject<T>], name: &Name, want_dir: bool) -> Result<LowerFound<T>> {
        let mut found = LowerFound { objects: Vec::new(), far: None, stat: None };
        let mut name = name.clone();
        // What an absolute redirect finds below, in place of the remaining directories.
        let mut rest: Vec<LowerObject<T>> = Vec::new();
        for dir in dirs {
            let layer = self.lower_layer(dir.layer)?;
            let (node, stat, last) = match self.entry(layer, &dir.node, dir.xwhiteouts, &name)? {
                Entry::Nothing => continue,
                Entry::Whiteout => break,
                Entry::Object { node, stat, last } => (node, stat, last),
            };
            if stat.kind != Kind::Dir {
                if found.objects.is_empty() && !want_dir {
                    found.objects.push(LowerObject { layer: dir.layer, node, xwhiteouts: false });
                    found.stat = Some(stat);
                }
                break;
            }
            let marks = self.marks(layer, &node)?;
            let layer_index = dir.layer;
            let last = last || layer.is_aufs_opaque(&node)?;
            found.objects.push(LowerObject { layer: layer_index, node, xwhiteouts: marks.xwhiteouts });
            found.stat.get_or_insert(stat);
            if last || marks.opaque || marks.broken {
                break;
            }
            self.may_follow(&marks.redirect)?;
            match marks.redirect {
                None => {}
                Some(Redirect::Sibling(sibling)) => name = Name::new(&sibling)?,
                Some(Redirect::Absolute(path)) => {
                    let (below, last) = self.lower_parents(&path, Some(layer_index))?;
                    let more = self.lookup_lowers(&below, &last, true)?;
                    rest = more.objects;
                    break;
                }
            }
        }
        found.objects.append(&mut rest);
        Ok(found)
    }

    /// Errors: EPERM for a redirect, where none is to be followed (as in the kernel).
    pub(crate) fn may_follow(&self, redirect: &Option<Redirect>) -> Result<()> {
        if redirect.is_some() && self.behaviour.redirects == Redirects::Refused {
            return Err(Error::NotPermitted("a redirect, with redirect_dir=nofollow"));
        }
        Ok(())
    }

    /// The merged directories that hold the last name of an absolute redirect, in the layers below `above`, and that name.
    pub(crate) fn lower_parents(&self, path: &[Vec<u8>], above: Option<LowerIndex>) -> Result<(Vec<LowerObject<T>>, Name)> {
        let Some((last, parents)) = path.split_last() else { return Err(Error::Damaged("empty redirect".into())) };
        let mut dirs: Vec<LowerObject<T>> =
            self.root.lowers.iter().filter(|root| above.is_none_or(|above| root.layer > above)).cloned().collect();
        for component in parents {
            dirs = self.lookup_lowers(&dirs, &Name::new(component)?, true)?.objects;
        }
        Ok((dirs, Name::new(last)?))
    }

    /// The lower directories that an upper directory merges with.
    pub(crate) fn lowers_of_upper_dir(&self, parent_lowers: &[LowerObject<T>], name: &Name, marks: &Marks) -> Result<Vec<LowerObject<T>>> {
        if marks.opaque || marks.broken {
            return Ok(Vec::new());
        }
        self.may_follow(&marks.redirect)?;
        let found = match &marks.redirect {
            None => self.lookup_lowers(parent_lowers, name, true)?,
            Some(Redirect::Sibling(sibling)) => self.lookup_lowers(parent_lowers, &Name::new(sibling)?, true)?,
            Some(Redirect::Absolute(path)) => {
                let (dirs, last) = self.lower_parents(path, None)?;
                self.lookup_lowers(&dirs, &last, true)?
            }
        };
        Ok(found.objects)
    }

    /// Resolves a name in a directory given by its parts. The caller holds the directory's DIR lock, shared or exclusive, if it is live.
    ///
    /// Errors: those of the layers.
    pub(crate) fn resolve_parts(&self, upper: Option<&T::Node>, lowers: &[LowerObject<T>], name: &Name) -> Result<Resolved<T>> {
        if let (Some(layer), Some(dir)) = (&self.stack.upper, upper) {
            match self.entry(layer, dir, false, name)? {
                Entry::Nothing => {}
                Entry::Whiteout => return Ok(Resolved::Absent { whiteout: true }),
                Entry::Object { node, stat, last } => {
                    return self.upper_found(layer, lowers, name, (node, stat, last)).map(|found| Resolved::Found(Box::new(found)));
                }
            }
        }
        let mut lower = self.lookup_lowers(lowers, name, false)?;
        let (Some(stat), Some(top)) = (&lower.stat, lower.objects.first()) else { return Ok(Resolved::Absent { whiteout: false }) };
        let (kind, origin) = (stat.kind, self.lower_layer(top.layer)?.tree.id(&top.node));
        let indexed = self.indexed(top, stat)?;
        if indexed.as_ref().is_none_or(|indexed| !indexed.has_data) {
            self.follow_data(&mut lower, lowers, name)?;
        }
        let LowerFound { objects: lowers, far, stat: Some(stat) } = lower else { return Ok(Resolved::Absent { whiteout: false }) };
        if let Some(Indexed { node, stat: mut upper, links, has_data }) = indexed {
            if !has_data {
                upper.blocks = stat.blocks;
            }
            // Its mark is looked at when it matters.
            let object = Some((node, ObjectId::of(&upper)));
            let new = NewInode {
                kind,
                origin,
                lowers,
                far,
                upper: object,
                upper_data: has_data,
                redirect: None,
                links: Some(links),
                protattr: None,
            };
            return Ok(Resolved::Found(Box::new(Found { new, stat: upper, upper_here: false })));
        }
        // Others may change a live lower.
        let protattr = (!self.behaviour.live_lowers).then(|| flags::own(&stat));
        let new = NewInode { kind, origin, lowers, far, upper: None, upper_data: false, redirect: None, links: None, protattr };
        Ok(Resolved::Found(Box::new(Found { new, stat, upper_here: false })))
    }

    /// Where the index keeps the copy of a hard-linked lower object: its name is the object's file handle, as the kernel has it. None where there is
    /// no index or the lower filesystem has no handles.
    pub(crate) fn index_name(&self, lower: &LowerObject<T>) -> Result<Option<(T::Node, Name)>> {
        // Without marks nobody could tell later how many names are in the tree.
        let upper = self.stack.upper.as_ref().filter(|layer| layer.dialect != Dialect::Aufs);
        let Some(index) = upper.and_then(|layer| layer.tree.index()) else { return Ok(None) };
        let Some(handle) = self.lower_layer(lower.layer)?.handle(&lower.node)? else { return Ok(None) };
        let Ok(fid_type) = u8::try_from(handle.handle.kind) else { return Ok(None) };
        let origin = Origin { uuid: handle.uuid, fid_type, fid: handle.handle.bytes, path_upper: false };
        // A handle too long for a name: this filesystem's hard links cannot be indexed.
        Ok(Name::new(origin.index_name()).ok().map(|name| (index, name)))
    }

    /// The copy of a hard-linked lower object, if one of its names was copied up.
    fn indexed(&self, lower: &LowerObject<T>, stat: &Stat) -> Result<Option<Indexed<T>>> {
        if stat.kind == Kind::Dir || stat.nlink < 2 {
            return Ok(None);
        }
        let (Some(layer), Some((index, name))) = (&self.stack.upper, self.index_name(lower)?) else { return Ok(None) };
        let Some((node, upper)) = layer.tree.lookup(&index, &name).attempt("look up in the index")? else { return Ok(None) };
        if upper.kind != stat.kind {
            // A lenient union shows the lower object, which nobody may change.
            self.condemn(self.lower_layer(lower.layer)?, &lower.node, format!("index entry {name} is of another kind than its origin"))?;
            return Ok(None);
        }
        // Without its mark: the index itself is a link that does not show.
        let marks = self.marks(layer, &node)?;
        let mark = marks.nlink.unwrap_or(Nlink::Upper(-1));
        let delta = mark.shown(upper.nlink, stat.nlink) - i64::from(upper.nlink);
        let links = Links { delta, alias: true };
        Ok(Some(Indexed { node, stat: upper, links, has_data: !(marks.metacopy && stat.kind == Kind::File) }))
    }

    /// `last`: what lies below the name does not show.
    fn upper_found(
        &self,
        layer: &Layer<T>,
        lowers: &[LowerObject<T>],
        name: &Name,
        (node, mut stat, last): (T::Node, Stat, bool),
    ) -> Result<Found<T>> {
        let dir_lowers = lowers;
        let mut marks = self.marks(layer, &node)?;
        marks.opaque |= last || stat.kind == Kind::Dir && layer.is_aufs_opaque(&node)?;
        let id = layer.tree.id(&node);
        let metacopy = marks.metacopy && stat.kind == Kind::File;
        let (lowers, far) = match stat.kind {
            Kind::Dir => (self.lowers_of_upper_dir(lowers, name, &marks)?, None),
            Kind::File if metacopy && stat.size > 0 => {
                let below = self.data_below(lowers.to_vec(), name.clone(), marks.redirect.clone(), None)?;
                below.count_blocks(&mut stat);
                if let Some(before) = &marks.before
                    && self.holds(&node, before)?
                {
                    as_before(&mut stat, before);
                }
                (below.objects, below.far)
            }
            _ => (Vec::new(), None),
        };
        let mut marked = marks.origin.as_ref().map(|mark| self.verify_origin(mark, stat.kind)).transpose()?.flatten();
        // Of several names of one object only one is where the lower has it, and all must have one number.
        let alone = stat.kind != Kind::Dir && stat.nlink == 1;
        if let (Some(mark), None, true) = (&marks.origin, marked, alone && !layer.tree.opens_handles()) {
            marked = self.origin_by_name(mark, dir_lowers, name)?;
            if let Some((origin, _)) = marked {
                self.table.note_copy(id, origin);
            }
        }
        let links = marks.nlink.map(|mark| {
            let lower_nlink = marked.as_ref().map_or(stat.nlink, |(_, nlink)| *nlink);
            Links { delta: mark.shown(stat.nlink, lower_nlink) - i64::from(stat.nlink), alias: false }
        });
        let marked = marked.map(|(origin, _)| origin);
        if let (Kind::File, Some(origin), Some(below)) = (stat.kind, marked, lowers.first())
            && self.lower_layer(below.layer)?.tree.id(&below.node) != origin
        {
            // As in the kernel with an index: better none than the data of another file.
            tracing::warn!(%name, "a metacopy mark in the upper layer, over another file than it was copied from");
            return Err(Error::Stale("a metacopy over another file"));
        }
        // Only of a directory: without its mark a file has its own number, which readdir shows, too.
        let top = match lowers.first().filter(|_| stat.kind == Kind::Dir) {
            Some(top) => Some(self.lower_layer(top.layer)?.tree.id(&top.node)),
            None => None,
        };
        let origin = marked.or(top).or_else(|| self.table.copied_from(id)).unwrap_or(id);
        let new = NewInode {
            kind: stat.kind,
            origin,
            lowers,
            far,
            upper: Some((node, id)),
            upper_data: !metacopy,
            redirect: marks.redirect,
            links,
            protattr: Some(flags::both(flags::own(&stat), marks.protattr)),
        };
        Ok(Found { new, stat, upper_here: true })
    }

    /// The lower object that an origin mark names, and its link count, if it still exists and is of the same kind.
    pub(crate) fn verify_origin(&self, mark: &Origin, kind: Kind) -> Result<Option<(ObjectId, u32)>> {
        Ok(self.origin_stat(mark, kind)?.map(|stat| (ObjectId::of(&stat), stat.nlink)))
    }

    /// What an origin mark names where handles cannot be opened: the lower object of the same name, if its handle is that of the mark.
    fn origin_by_name(&self, mark: &Origin, lowers: &[LowerObject<T>], name: &Name) -> Result<Option<(ObjectId, u32)>> {
        let found = self.lookup_lowers(lowers, name, false)?;
        let (Some(lower), Some(stat)) = (found.objects.first(), found.stat) else { return Ok(None) };
        let handle = self.lower_layer(lower.layer)?.handle(&lower.node)?;
        let same = handle.is_some_and(|handle| {
            handle.uuid == mark.uuid && handle.handle.kind == i32::from(mark.fid_type) && handle.handle.bytes == mark.fid
        });
        Ok(same.then(|| (ObjectId::of(&stat), stat.nlink)))
    }

    /// Resolves a name in a live directory. The caller holds its DIR lock.
    pub(crate) fn resolve(&self, parent: &Inode<T>, name: &Name) -> Result<Resolved<T>> {
        parent.as_dir()?;
        self.resolve_parts(parent.upper.get(), parent.merged_lowers(), name)
    }

    /// Whether something below the upper layer would show under the name if the upper held nothing there.
    pub(crate) fn lower_has(&self, parent: &Inode<T>, name: &Name) -> Result<bool> {
        Ok(!self.lookup_lowers(parent.merged_lowers(), name, false)?.objects.is_empty())
    }

    /// The inode of what was found, with the name recorded. The caller holds the parent's DIR lock.
    pub(crate) fn intern(&self, parent: &Arc<Inode<T>>, name: &Name, new: NewInode<T>) -> Arc<Inode<T>> {
        let links = new.links;
        let frozen = self.is_frozen(parent, &new);
        let inode = self.table.intern(new);
        if frozen {
            inode.freeze();
        }
        inode.add_name(parent, name);
        // Where the inode is without its upper object yet, a copy-up is about to publish it, and counts the links itself.
        if let Some(links) = links
            && inode.upper_id.get().is_some()
            && !inode.indexed.swap(true, Ordering::Relaxed)
        {
            inode.nlink_delta.store(links.delta, Ordering::Relaxed);
        }
        if inode.lacks_data()
            && let Err(error) = self.recheck_metacopy(&inode)
        {
            tracing::warn!(%error, %name, "the metacopy mark cannot be read again");
        }
        inode
    }
}
