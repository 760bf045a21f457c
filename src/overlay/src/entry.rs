//! One name in one layer, by the layer's dialect: whiteouts of both forms, AUFS names, overridden owners and kinds; and marks that cannot be honoured.
//!
//! A mark that cannot be honoured is an error of the look-up. A lenient union shows its object without the mark instead, and lets nobody change it or what is below it:
//! what is written there would be lost or would show elsewhere once the mark is mended.

use std::collections::HashSet;
use std::sync::Arc;

use plyfs_format::{
    AUFS_OPAQUE, AufsName, Dialect, MarkKind, OVERRIDE_STAT, OverrideKind, OverrideStat, aufs_whiteout_name, classify_aufs_name, read_names,
};
use plyfs_sys::stat::{self, Kind, Stat};

use crate::backend::{ObjectId, Tree, UpperTree};
use crate::error::{Attempt, Error, Result};
use crate::inode::{Inode, NewInode};
use crate::layer::{Layer, LowerObject};
use crate::lock::{LEAF, Ranked};
use crate::name::Name;
use crate::union::Union;

/// What a directory of one layer says about a name.
pub(crate) enum Entry<N> {
    /// Nothing.
    Nothing,
    /// That nothing below shows.
    Whiteout,
    /// An object.
    Object {
        node: N,
        stat: Stat,
        /// The same directory hides the name below: the object shows, and merges with nothing.
        last: bool,
    },
}

/// Objects of layers whose marks are not honoured; only a lenient union has some.
#[derive(Default)]
pub(crate) struct Condemned(Ranked<LEAF, HashSet<ObjectId>>);

impl Condemned {
    pub(crate) fn insert(&self, id: ObjectId) -> bool {
        self.0.lock().insert(id)
    }

    pub(crate) fn contains(&self, id: ObjectId) -> bool {
        self.0.lock().contains(&id)
    }
}

impl<T: Tree> Layer<T> {
    /// The value of a mark, under the first of its spellings that is there.
    pub(crate) fn mark(&self, node: &T::Node, kind: MarkKind) -> Result<Option<Vec<u8>>> {
        for name in read_names(self.dialect, kind) {
            if let Some(value) = self.tree.get_xattr(node, name).attempt("read a mark")? {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    /// Whether a directory is opaque by a file name in it.
    pub(crate) fn is_aufs_opaque(&self, dir: &T::Node) -> Result<bool> {
        if self.dialect != Dialect::Aufs {
            return Ok(false);
        }
        Ok(self.tree.lookup(dir, &Name::new(AUFS_OPAQUE)?).attempt("look for the opaque mark")?.is_some())
    }
}

impl<T: UpperTree> Union<T> {
    /// Looks a name up in one directory of one layer. `xwhiteouts`: empty files in it may be whiteouts.
    pub(crate) fn entry(&self, layer: &Layer<T>, dir: &T::Node, xwhiteouts: bool, name: &Name) -> Result<Entry<T::Node>> {
        let aufs = layer.dialect == Dialect::Aufs;
        if aufs && classify_aufs_name(name) != AufsName::Plain {
            return Ok(Entry::Nothing);
        }
        let found = layer.tree.lookup(dir, name).attempt("look up in a layer")?;
        // A name too long for a whiteout has none.
        let hidden = || match aufs_whiteout_name(name).ok().and_then(|name| Name::new(name).ok()) {
            Some(whiteout) if aufs => Ok(layer.tree.lookup(dir, &whiteout).attempt("look up a whiteout")?.is_some()),
            _ => Ok::<_, Error>(false),
        };
        match found {
            None => Ok(if hidden()? { Entry::Whiteout } else { Entry::Nothing }),
            Some((node, stat)) if self.is_whiteout(layer, &node, &stat, xwhiteouts)? => {
                drop(node);
                Ok(Entry::Whiteout)
            }
            Some((node, stat)) => {
                let last = stat.kind == Kind::Dir && hidden()?;
                let stat = self.overridden(layer, &node, stat)?;
                Ok(Entry::Object { node, stat, last })
            }
        }
    }

    /// Metadata of an object as it shows.
    pub(crate) fn stat_in(&self, layer: &Layer<T>, node: &T::Node) -> Result<Stat> {
        let stat = layer.tree.stat(node).attempt("stat")?;
        self.overridden(layer, node, stat)
    }

    /// Owner, mode and kind that the object's own attribute says, where that counts.
    pub(crate) fn overridden(&self, layer: &Layer<T>, node: &T::Node, mut stat: Stat) -> Result<Stat> {
        // Only these can have the attribute; of an upper the tree has read it.
        if !layer.overrides || self.is_upper(layer) || !matches!(stat.kind, Kind::File | Kind::Dir) {
            return Ok(stat);
        }
        let Some(value) = layer.tree.get_xattr(node, OVERRIDE_STAT).attempt("read the overriding attribute")? else { return Ok(stat) };
        let damaged = |why: &str| {
            self.condemn(layer, node, format!("{} = {}: {why}", OVERRIDE_STAT.escape_ascii(), value.escape_ascii())).map(|()| stat)
        };
        let Some(shown) = OverrideStat::parse(&value) else { return damaged("not uid:gid:mode") };
        let (kind, rdev) = match (shown.kind, stat.kind) {
            (None, kind) => (kind, stat.rdev),
            (Some(OverrideKind::File), Kind::File) | (Some(OverrideKind::Dir), Kind::Dir) => (stat.kind, stat.rdev),
            (Some(OverrideKind::Fifo), Kind::File) => (Kind::Fifo, 0),
            (Some(OverrideKind::Socket), Kind::File) => (Kind::Socket, 0),
            (Some(OverrideKind::Block(major, minor)), Kind::File) => (Kind::Block, stat::makedev(major, minor)),
            (Some(OverrideKind::Char(major, minor)), Kind::File) => (Kind::Char, stat::makedev(major, minor)),
            _ => return damaged("another kind than the object can have"),
        };
        (stat.uid, stat.gid, stat.mode, stat.kind, stat.rdev) = (shown.uid, shown.gid, shown.mode, kind, rdev);
        Ok(stat)
    }

    fn is_upper(&self, layer: &Layer<T>) -> bool {
        self.stack.upper.as_ref().is_some_and(|upper| std::ptr::eq(upper, layer))
    }

    /// A mark of an object cannot be honoured. The object is shown without it from now on, if the union is lenient; else that is an error.
    pub(crate) fn condemn(&self, layer: &Layer<T>, node: &T::Node, what: String) -> Result<()> {
        let text = if layer.label.is_empty() { what } else { format!("{}: {what}", layer.label) };
        if !self.behaviour.lenient {
            return Err(Error::Damaged(text));
        }
        if self.condemned.insert(layer.tree.id(node)) {
            tracing::warn!("{text}: shown without it, read-only");
        }
        Ok(())
    }

    /// Tells the log what the caller of a look-up cannot hear: which mark of which layer is behind its EIO.
    pub(crate) fn tell_damage(&self, parent: &Arc<Inode<T>>, name: &Name, error: &Error) {
        if !matches!(error, Error::Damaged(_) | Error::Unrepresentable(_)) {
            return;
        }
        let mut path = vec![name.to_string()];
        let mut at = parent.clone();
        while let Some((parent, name)) = at.a_name() {
            path.push(name.to_string());
            at = parent;
        }
        path.reverse();
        tracing::error!(path = path.join("/"), %error, "a mark cannot be honoured");
    }

    /// Whether the marks of an object are not honoured.
    pub(crate) fn is_condemned(&self, id: ObjectId) -> bool {
        self.behaviour.lenient && self.condemned.contains(id)
    }

    /// Whether what was found below `parent` must not be changed.
    pub(crate) fn is_frozen(&self, parent: &Inode<T>, new: &NewInode<T>) -> bool {
        let lower = |object: &LowerObject<T>| {
            self.lower_layer(object.layer).is_ok_and(|layer| self.condemned.contains(layer.tree.id(&object.node)))
        };
        let upper = || new.upper.as_ref().is_some_and(|(_, id)| self.condemned.contains(*id));
        self.behaviour.lenient && (parent.is_frozen() || new.lowers.iter().any(lower) || upper())
    }

    /// The data of a file is where a mark leads that is not honoured.
    pub(crate) fn has_no_data(&self, inode: &Inode<T>) -> Result<bool> {
        if !inode.is_frozen() || inode.kind != Kind::File {
            return Ok(false);
        }
        let (layer, node) = self.top(inode)?;
        Ok(self.is_condemned(layer.tree.id(node)))
    }
}
