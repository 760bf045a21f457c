//! The diff: what the upper changed against the lowers, as A, C and D.
//!
//! The upper selects the candidates, so that the cost is in the changes. Where a directory is opaque or redirected, both views of it are compared
//! name by name: the merged one, and the one that the lowers alone would show under the same path.
//!
//! One thing the upper does not select: further names of a hard-linked lower file whose copy is in the index, of which the upper tree holds other names or none.
//! Only if there may be such names, all directories are read until they are found.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};

use plyfs_format::{AufsName, Change, ChangeKind, Dialect, classify_aufs_name};
use plyfs_sys::Errno;
use plyfs_sys::stat::{Kind, Stat, Time};

use crate::backend::{ObjectId, Tree, UpperTree};
use crate::data::Far;
use crate::error::{Attempt, Result};
use crate::layer::{Layer, LayerStack, LowerObject};
use crate::links::Indexed;
use crate::name::Name;
use crate::readdir::{MergedName, Source};
use crate::resolve::Resolved;
use crate::union::{Behaviour, Union};
use crate::xattr::CAPABILITY;

/// What counts as a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ChangeOptions {
    /// Every xattr that users see, not only `security.capability` (the one that counts in docker's diff).
    pub xattrs: bool,
}

/// The changes of an upper that is not mounted.
///
/// Errors: those of the layers.
pub fn changes_of<T: UpperTree>(stack: LayerStack<T>, options: &ChangeOptions) -> Result<Vec<Change>> {
    Union::new(stack, Behaviour::default())?.changes(options)
}

/// A directory in both views. `None`: the view has no such directory.
struct Pair<T: Tree> {
    path: Vec<u8>,
    upper: Option<T::Node>,
    /// What merges below the upper now.
    merged: Vec<LowerObject<T>>,
    /// What the lowers alone show under this path.
    before: Vec<LowerObject<T>>,
    /// Nothing but the upper's own entries can differ.
    plain: bool,
}

/// A name that may differ.
struct Candidate {
    name: Name,
    /// The upper has it, or the directory is not where it was: else only a name of a hard link may differ.
    of_upper: bool,
}

/// What one view holds under a name.
struct Seen<'a, T: Tree> {
    layer: &'a Layer<T>,
    node: T::Node,
    stat: Stat,
    from_upper: bool,
    /// It is no metacopy: the data is in it, not in the last of `lowers`.
    has_data: bool,
    upper: Option<T::Node>,
    lowers: Vec<LowerObject<T>>,
    far: Option<Box<Far<T>>>,
    redirected: bool,
    /// The upper object shows, and the upper directory does not hold it here: a hard link that only the index knows of.
    alias: bool,
}

struct Walk<T: UpperTree> {
    found: BTreeMap<Vec<u8>, ChangeKind>,
    aliases: Aliases<T>,
}

/// The names of hard-linked lower files that show an upper object and are not in the upper tree.
struct Aliases<T: UpperTree> {
    /// The upper objects, by the lower one.
    objects: HashMap<ObjectId, Indexed<T>>,
    /// Some lower objects are not known: every name may be one.
    all: bool,
    /// How many names are to be found. Never reached where layers hide some.
    left: i64,
}

impl<T: UpperTree> Aliases<T> {
    fn is_wanted(&self, entry: &MergedName) -> bool {
        self.left > 0 && (entry.kind == Kind::Dir || self.all || self.objects.contains_key(&entry.id))
    }
}

impl<T: UpperTree> Walk<T> {
    /// Notes a change, and that every directory above it is changed (`/` is never listed).
    fn note(&mut self, path: &[u8], kind: ChangeKind) {
        self.found.insert(path.to_vec(), kind);
        let mut above = path;
        while let Some(slash) = above.iter().rposition(|&byte| byte == b'/').filter(|&at| at > 0) {
            let (parent, _) = above.split_at(slash);
            match self.found.entry(parent.to_vec()) {
                Entry::Occupied(_) => return,
                Entry::Vacant(free) => free.insert(ChangeKind::Changed),
            };
            above = parent;
        }
    }
}

impl<T: UpperTree> Union<T> {
    /// What the upper layer changed: sorted by the bytes of the path, parents before their children.
    ///
    /// Errors: those of the layers. Without an upper layer nothing changed.
    pub fn changes(&self, options: &ChangeOptions) -> Result<Vec<Change>> {
        let mut walk = Walk { found: BTreeMap::new(), aliases: self.aliases()? };
        let lowers = self.root.lowers.to_vec();
        let upper = self.root.upper.get().cloned();
        // A loop, not recursion: the depth of the tree is not ours to choose.
        let mut todo = vec![Pair { path: Vec::new(), upper, merged: lowers.clone(), before: lowers, plain: true }];
        while let Some(pair) = todo.pop() {
            match self.compare_dir(&pair, options, &mut walk, &mut todo) {
                // Somebody removed it from a live lower. Nothing of the upper is in it, only a name of a hard link might have been.
                // Or it cannot be read, so that nobody who looks through this union knows a name in it.
                Err(error) if pair.upper.is_none() && pair.plain && matches!(error.errno(), Errno::STALE | Errno::ACCESS) => {
                    tracing::debug!(path = %pair.path.escape_ascii(), %error, "a directory is not looked through for names of hard links");
                }
                other => other?,
            }
        }
        Ok(walk.found.into_iter().map(|(path, kind)| Change { kind, path }).collect())
    }

    fn compare_dir(&self, pair: &Pair<T>, options: &ChangeOptions, walk: &mut Walk<T>, todo: &mut Vec<Pair<T>>) -> Result<()> {
        for Candidate { name, of_upper } in self.candidates(pair, &walk.aliases)? {
            let mut path = pair.path.clone();
            path.push(b'/');
            path.extend_from_slice(&name);
            let now = self.seen_now(pair, &name, &walk.aliases)?;
            walk.aliases.left -= i64::from(now.as_ref().is_some_and(|now| now.alias));
            if !of_upper {
                // Only a name of a hard link differs here. Whatever else others do to a live lower meanwhile is no change of the upper's.
                match now {
                    Some(now) if now.stat.kind == Kind::Dir => {
                        todo.push(Pair { path, upper: now.upper, merged: now.lowers.clone(), before: now.lowers, plain: true });
                        continue;
                    }
                    Some(Seen { alias: true, .. }) => {}
                    _ => continue,
                }
            }
            let before = self.seen_before(pair, &name)?;
            match (now, before) {
                (None, None) => {}
                (None, Some(_)) => walk.note(&path, ChangeKind::Deleted),
                (Some(now), None) => {
                    walk.note(&path, ChangeKind::Added);
                    if now.stat.kind == Kind::Dir {
                        todo.push(Pair { path, upper: now.upper, merged: now.lowers, before: Vec::new(), plain: false });
                    }
                }
                (Some(now), Some(before)) => {
                    if self.differs(&now, &before, options)? {
                        walk.note(&path, ChangeKind::Changed);
                    }
                    if now.stat.kind != Kind::Dir {
                        continue;
                    }
                    // A file that became a directory: everything in it is new.
                    let old = if before.stat.kind == Kind::Dir { before.lowers } else { Vec::new() };
                    let plain = pair.plain && !now.redirected && self.same_lowers(&now.lowers, &old)?;
                    if now.upper.is_none() && plain && walk.aliases.left <= 0 {
                        continue;
                    }
                    todo.push(Pair { path, upper: now.upper, merged: now.lowers, before: old, plain });
                }
            }
        }
        Ok(())
    }

    /// The names that may differ: the upper's own, and all of both views where the directory is not where it was.
    fn candidates(&self, pair: &Pair<T>, aliases: &Aliases<T>) -> Result<Vec<Candidate>> {
        let mut names: Vec<Name> = Vec::new();
        let all = |names: Vec<Name>, of_upper| names.into_iter().map(move |name| Candidate { name, of_upper });
        if pair.plain {
            if let (Some(layer), Some(node)) = (&self.stack.upper, &pair.upper) {
                let entries = layer.tree.read_dir(node).attempt("read the upper directory")?;
                let of_entry = |name: &[u8]| match classify_aufs_name(name) {
                    AufsName::Whiteout(target) if layer.dialect == Dialect::Aufs => Name::new(target).ok(),
                    AufsName::Plain => Name::new(name).ok(),
                    _ => Name::new(name).ok().filter(|_| layer.dialect != Dialect::Aufs),
                };
                names.extend(entries.iter().filter_map(|entry| of_entry(&entry.name)));
                if layer.dialect == Dialect::Aufs {
                    // A name and its whiteout.
                    names.sort_unstable();
                    names.dedup();
                }
            }
            let mut others: Vec<Name> = Vec::new();
            if aliases.left > 0 {
                let merged = self.merged_names(pair.upper.as_ref(), &pair.merged)?;
                others.extend(merged.filter(|entry| entry.source == Source::Lower && aliases.is_wanted(entry)).map(|e| e.name));
            }
            return Ok(all(names, true).chain(all(others, false)).collect());
        }
        names.extend(self.merged_names(pair.upper.as_ref(), &pair.merged)?.map(|entry| entry.name));
        names.extend(self.merged_names(None, &pair.before)?.map(|entry| entry.name));
        names.sort_unstable();
        names.dedup();
        Ok(all(names, true).collect())
    }

    /// The objects whose names may not all be in the upper tree: from the index, or without it from the marks of the names that are there.
    fn aliases(&self) -> Result<Aliases<T>> {
        let mut aliases = Aliases { objects: HashMap::new(), all: false, left: 0 };
        let Some(layer) = &self.stack.upper else { return Ok(aliases) };
        let objects = if layer.tree.index().is_some() { self.index_entries()? } else { self.marked_objects(layer)? };
        for object in objects.into_iter().filter(|object| object.outside() > 0) {
            aliases.left += object.outside();
            match object.lower {
                Some((id, _)) => drop(aliases.objects.insert(id, object)),
                None => aliases.all = true,
            }
        }
        Ok(aliases)
    }

    /// The objects of the upper tree that bear the mark of the index.
    fn marked_objects(&self, layer: &Layer<T>) -> Result<Vec<Indexed<T>>> {
        let mut found = Vec::new();
        let mut known = HashSet::new();
        let mut todo = vec![layer.tree.root()];
        while let Some(dir) = todo.pop() {
            for entry in layer.tree.read_dir(&dir).attempt("read the upper directory")? {
                let Ok(name) = Name::new(&entry.name) else { continue };
                let Some((node, stat)) = layer.tree.lookup(&dir, &name).attempt("look up in the upper layer")? else { continue };
                if stat.kind == Kind::Dir {
                    todo.push(node);
                } else if stat.nlink > 1 && known.insert(ObjectId::of(&stat)) {
                    let marks = self.marks(layer, &node)?;
                    if let (Some(_), Some(origin)) = (marks.nlink, marks.origin) {
                        found.push(self.indexed_object(Name::new(origin.index_name())?, &origin, node, stat)?);
                    }
                }
            }
        }
        Ok(found)
    }

    fn seen_now(&self, pair: &Pair<T>, name: &Name, aliases: &Aliases<T>) -> Result<Option<Seen<'_, T>>> {
        let Resolved::Found(found) = self.resolve_parts(pair.upper.as_ref(), &pair.merged, name)? else { return Ok(None) };
        let mut found = *found;
        // An upper that is looked at without its index.
        if found.new.upper.is_none()
            && found.new.kind != Kind::Dir
            && let Some(object) = aliases.objects.get(&found.new.origin)
        {
            found.new.upper = Some((object.node.clone(), ObjectId::of(&object.stat)));
            found.new.upper_data = object.has_data;
            found.stat = object.stat;
        }
        let alias = found.new.kind != Kind::Dir && found.new.upper.is_some() && !found.upper_here;
        let redirected = found.new.redirect.is_some();
        let upper = found.new.upper.map(|(node, _)| node);
        let seen = match (&upper, found.new.lowers.first()) {
            (Some(node), _) => Seen {
                layer: self.upper()?,
                node: node.clone(),
                stat: found.stat,
                from_upper: true,
                has_data: found.new.upper_data,
                upper: None,
                lowers: Vec::new(),
                far: None,
                redirected,
                alias,
            },
            (None, Some(lower)) => Seen {
                layer: self.lower_layer(lower.layer)?,
                node: lower.node.clone(),
                stat: found.stat,
                from_upper: false,
                has_data: found.new.lowers.len() < 2 && found.new.far.is_none(),
                upper: None,
                lowers: Vec::new(),
                far: None,
                redirected,
                alias,
            },
            (None, None) => return Ok(None),
        };
        Ok(Some(Seen { upper, lowers: found.new.lowers, far: found.new.far, ..seen }))
    }

    fn seen_before(&self, pair: &Pair<T>, name: &Name) -> Result<Option<Seen<'_, T>>> {
        let mut found = self.lookup_lowers(&pair.before, name, false)?;
        self.follow_data(&mut found, &pair.before, name)?;
        let (Some(stat), Some(top)) = (found.stat, found.objects.first()) else { return Ok(None) };
        let seen = Seen {
            layer: self.lower_layer(top.layer)?,
            node: top.node.clone(),
            stat,
            from_upper: false,
            has_data: found.objects.len() < 2 && found.far.is_none(),
            upper: None,
            lowers: Vec::new(),
            far: None,
            redirected: false,
            alias: false,
        };
        Ok(Some(Seen { lowers: found.objects, far: found.far, ..seen }))
    }

    fn same_lowers(&self, a: &[LowerObject<T>], b: &[LowerObject<T>]) -> Result<bool> {
        if a.len() != b.len() {
            return Ok(false);
        }
        for (a, b) in a.iter().zip(b) {
            let same = a.layer == b.layer && self.lower_layer(a.layer)?.tree.id(&a.node) == self.lower_layer(b.layer)?.tree.id(&b.node);
            if !same {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// docker's rule, and beyond it the content where all else is equal: never less than a content change, never a copy-up that changed nothing.
    fn differs(&self, now: &Seen<'_, T>, before: &Seen<'_, T>, options: &ChangeOptions) -> Result<bool> {
        let (a, b) = (&now.stat, &before.stat);
        if !now.from_upper && now.layer.tree.id(&now.node) == before.layer.tree.id(&before.node) {
            return Ok(false);
        }
        if a.kind != b.kind || a.mode != b.mode || a.uid != b.uid || a.gid != b.gid {
            return Ok(true);
        }
        if matches!(a.kind, Kind::Char | Kind::Block) && a.rdev != b.rdev {
            return Ok(true);
        }
        if a.kind != Kind::Dir && ((a.kind != Kind::Symlink && a.size != b.size) || !same_time(a.mtime, b.mtime)) {
            return Ok(true);
        }
        if self.xattrs_differ(now, before, options)? {
            return Ok(true);
        }
        match a.kind {
            Kind::Symlink => {
                let target = now.layer.tree.readlink(&now.node).attempt("read a symlink")?;
                Ok(target != before.layer.tree.readlink(&before.node).attempt("read a symlink")?)
            }
            Kind::File => self.content_differs(now, before),
            _ => Ok(false),
        }
    }

    fn xattrs_differ(&self, now: &Seen<'_, T>, before: &Seen<'_, T>, options: &ChangeOptions) -> Result<bool> {
        if !options.xattrs {
            let value = |seen: &Seen<'_, T>| seen.layer.tree.get_xattr(&seen.node, CAPABILITY).attempt("read capabilities");
            return Ok(value(now)? != value(before)?);
        }
        Ok(self.shown_xattrs(now)? != self.shown_xattrs(before)?)
    }

    fn shown_xattrs(&self, seen: &Seen<'_, T>) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
        let mut shown = BTreeMap::new();
        for name in seen.layer.tree.list_xattr(&seen.node).attempt("list xattrs")? {
            let Some(value) = seen.layer.tree.get_xattr(&seen.node, &name).attempt("read an xattr")? else { continue };
            if let Some(name) = seen.layer.shown_xattr(&name) {
                shown.insert(name, value);
            }
        }
        Ok(shown)
    }

    /// Where the data of a file is.
    fn seen_data<'a>(&'a self, seen: &'a Seen<'_, T>) -> Result<(&'a T, &'a T::Node)> {
        let lower = match &seen.far {
            _ if seen.has_data => None,
            Some(far) => Some(self.find_far(far)?),
            None => seen.lowers.last(),
        };
        match lower {
            Some(lower) => Ok((&self.lower_layer(lower.layer)?.tree, &lower.node)),
            None => Ok((&seen.layer.tree, &seen.node)),
        }
    }

    fn content_differs(&self, now: &Seen<'_, T>, before: &Seen<'_, T>) -> Result<bool> {
        const CHUNK: usize = 128 * 1024;
        let ((a, node_a), (b, node_b)) = (self.seen_data(now)?, self.seen_data(before)?);
        if a.id(node_a) == b.id(node_b) {
            // A metacopy whose data is the file's from before.
            return Ok(false);
        }
        let file_a = a.open(node_a).attempt("open to compare")?;
        let file_b = b.open(node_b).attempt("open to compare")?;
        let (mut buf_a, mut buf_b) = (vec![0; CHUNK], vec![0; CHUNK]);
        let mut offset = 0;
        loop {
            let got_a = a.read(&file_a, &mut buf_a, offset).attempt("read to compare")?;
            let got_b = b.read(&file_b, &mut buf_b, offset).attempt("read to compare")?;
            if buf_a.get(..got_a) != buf_b.get(..got_b) {
                return Ok(true);
            }
            if got_a == 0 {
                return Ok(false);
            }
            offset += got_a as u64;
        }
    }
}

/// Equal, or equal within the second when one has no nanoseconds: an archive may have cut them.
fn same_time(a: Time, b: Time) -> bool {
    a.sec == b.sec && (a.nsec == b.nsec || a.nsec == 0 || b.nsec == 0)
}
