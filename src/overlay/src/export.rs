//! File handles: an inode as bytes that outlive look-ups and mounts (name_to_handle_at(2), NFS).
//!
//! A handle holds the identity of the object ([`crate::identity`]), and, but for a directory, that of the directory in which it was. Both are origins as in the marks, that is
//! host file handles; both stay true over copy-up, rename and remount.
//!
//! What a handle names is found by names, from the union's root, as any look-up finds it: the host's handles are only compared, and asked where a directory is. So a forged handle
//! leads to nothing that the union does not show, or to nothing. Most are found by a few look-ups. What was moved since the handle was made is searched for:
//! a directory, and what is in the upper, in the directories of the upper; a lower file with several names everywhere. While it is searched no directory moves.
//!
//! | offset | size | field | value |
//! | --- | --- | --- | --- |
//! | 0 | 1 | version | 1 |
//! | 1 | 1 | kind | `d_type` |
//! | 2 | n | object | `struct ovl_fb`, see ON-DISK.md; none for the root |
//! | 2 + n | m | directory | the same, or nothing |

use std::sync::Arc;

use plyfs_format::Origin;
use plyfs_sys::stat::{Kind, Stat};

use crate::attr::Attr;
use crate::backend::{ObjectId, UpperTree};
use crate::error::{Attempt, Error, Result};
use crate::identity::{Identity, handle_in};
use crate::ino::Ino;
use crate::inode::Inode;
use crate::name::Name;
use crate::resolve::Resolved;
use crate::union::Union;

const VERSION: u8 = 1;
/// Where `struct ovl_fb` has its length.
const LENGTH_AT: usize = 2;

/// What a handle says.
struct Parsed {
    kind: Kind,
    object: Option<Origin>,
    directory: Option<Origin>,
}

/// The object of a layer that is searched for.
#[derive(Clone, Copy)]
struct Target {
    id: ObjectId,
    kind: Kind,
    /// In the upper layer.
    upper: bool,
    /// Names in its layer.
    nlink: u32,
}

impl Target {
    fn is<T: UpperTree>(&self, inode: &Inode<T>) -> bool {
        inode.origin == self.id && inode.kind == self.kind && (!self.upper || inode.upper_id.get() == Some(&self.id))
    }
}

/// One `struct ovl_fb` and what follows it.
fn take_origin(bytes: &[u8]) -> Option<(Origin, &[u8])> {
    let (one, rest) = bytes.split_at_checked(usize::from(*bytes.get(LENGTH_AT)?))?;
    Some((Origin::parse(one).ok()?, rest))
}

fn parse(bytes: &[u8]) -> Option<Parsed> {
    let (&[VERSION, kind], mut rest) = bytes.split_first_chunk::<2>()? else { return None };
    let mut parsed = Parsed { kind: Kind::from_d_type(kind)?, object: None, directory: None };
    for part in [&mut parsed.object, &mut parsed.directory] {
        if !rest.is_empty() {
            let (origin, after) = take_origin(rest)?;
            (*part, rest) = (Some(origin), after);
        }
    }
    rest.is_empty().then_some(parsed)
}

impl<T: UpperTree> Union<T> {
    /// The handle of an inode. It stays the same over copy-up and remount; over a rename it changes and the old one stays good.
    ///
    /// Errors: ESTALE; EOPNOTSUPP if the layer's filesystem has no handles, or if the object's origin mark is a copy of another's; the layers' errors.
    pub fn encode(&self, ino: Ino) -> Result<Vec<u8>> {
        let inode = self.inode(ino)?;
        let mut bytes = vec![VERSION, (inode.kind.to_mode() >> 12) as u8];
        if Arc::ptr_eq(&inode, &self.root) {
            return Ok(bytes);
        }
        bytes.append(&mut self.origin_of(&inode)?.encode());
        if inode.kind != Kind::Dir
            && let Some((parent, _)) = inode.a_name().filter(|(parent, _)| !Arc::ptr_eq(parent, &self.root))
        {
            bytes.append(&mut self.origin_of(&parent)?.encode());
        }
        Ok(bytes)
    }

    fn origin_of(&self, inode: &Inode<T>) -> Result<Origin> {
        const NONE: Error = Error::Unsupported("file handles of this layer's filesystem");
        if self.is_twin(inode) {
            return Err(Error::Unsupported("a file handle of what has a copy of another object's origin mark"));
        }
        match self.identity(inode)? {
            Identity::Mark(mark) => Ok(mark),
            Identity::Node { layer, node, upper } => {
                let handle = layer.handle(node)?.ok_or(NONE)?;
                let fid_type = u8::try_from(handle.handle.kind).map_err(|_| NONE)?;
                Ok(Origin { uuid: handle.uuid, fid_type, fid: handle.handle.bytes, path_upper: upper })
            }
        }
    }

    /// Looks up what a handle names; counts one look-up. The rights of the directories above are not asked for: who may call this may read everything.
    ///
    /// Errors: ESTALE for what is not there any more, for a handle of another union, and for what is no handle; the layers' errors.
    pub fn decode(&self, bytes: &[u8]) -> Result<Attr> {
        let parsed = parse(bytes).ok_or(Error::Stale("not a file handle"))?;
        let inode = self.find(&parsed)?.ok_or(Error::Stale("nothing has this file handle"))?;
        self.entered(&inode)
    }

    fn find(&self, parsed: &Parsed) -> Result<Option<Arc<Inode<T>>>> {
        let Some(object) = &parsed.object else { return Ok((parsed.kind == Kind::Dir).then(|| self.root.clone())) };
        let Some(target) = self.target(object, parsed.kind)? else { return Ok(None) };
        if let Some(live) = self.live(&target) {
            return Ok(Some(live));
        }
        // What has no name any more and nobody holds is gone.
        if target.nlink == 0 {
            return Ok(None);
        }
        // No directory moves from here on, so what is there is found.
        let _topology = self.rename_lock.lock();
        if target.kind == Kind::Dir {
            return self.find_dir(object, &target);
        }
        let hint = match &parsed.directory {
            None => Some(self.root.clone()),
            Some(directory) => match self.target(directory, Kind::Dir)? {
                Some(target) => self.find_dir(directory, &target)?,
                None => None,
            },
        };
        if let Some(dir) = hint
            && let Some(found) = self.find_in(&dir, &target)?
        {
            return Ok(Some(found));
        }
        self.search(|dir| if dir.upper.get().is_some() { self.find_in_upper(dir, &target) } else { Ok(None) }, false)?.map_or_else(
            || if target.upper || target.nlink < 2 { Ok(None) } else { self.search(|dir| self.find_in(dir, &target), true) },
            |found| Ok(Some(found)),
        )
    }

    /// The object of an origin, if it exists.
    fn target(&self, origin: &Origin, kind: Kind) -> Result<Option<Target>> {
        let stat: Option<Stat> = match (origin.path_upper, &self.stack.upper) {
            (false, _) => self.origin_stat(origin, kind)?,
            (true, None) => None,
            (true, Some(layer)) => layer.tree.by_handle(&handle_in(origin)).attempt("open a file handle")?,
        };
        Ok(stat.filter(|stat| stat.kind == kind).map(|stat| Target {
            id: ObjectId::of(&stat),
            kind,
            upper: origin.path_upper,
            nlink: stat.nlink,
        }))
    }

    fn live(&self, target: &Target) -> Option<Arc<Inode<T>>> {
        if target.is(&self.root) {
            return Some(self.root.clone());
        }
        self.table.get(self.table.number(target.id)).filter(|inode| target.is(inode))
    }

    /// Finds a directory: where its layer has it, or under the nearest directory above it that was moved. The RENAME lock is held.
    fn find_dir(&self, origin: &Origin, target: &Target) -> Result<Option<Arc<Inode<T>>>> {
        if let Some(live) = self.live(target) {
            return Ok(Some(live));
        }
        let layers = if target.upper { &[][..] } else { &self.stack.lowers[..] };
        let upper = self.stack.upper.as_ref().filter(|_| target.upper);
        let mut trace = None;
        for layer in layers.iter().chain(upper) {
            trace = layer.tree.trace(&handle_in(origin)).attempt("find a directory in its layer")?;
            if trace.is_some() {
                break;
            }
        }
        let Some(trace) = trace else { return Ok(None) };
        if let Some(found) = self.descend(&self.root, &trace)?.filter(|found| target.is(found)) {
            return Ok(Some(found));
        }
        if target.upper {
            return Ok(None);
        }
        // How much of the trace is above the lowest of its directories that the upper has somewhere.
        let mut lowest: Option<(usize, Arc<Inode<T>>)> = None;
        self.search(
            |dir| {
                let depth = trace.iter().position(|(_, id)| *id == dir.origin);
                if let Some(depth) = depth.filter(|&depth| lowest.as_ref().is_none_or(|(other, _)| depth > *other)) {
                    lowest = Some((depth, dir.clone()));
                }
                Ok(None)
            },
            false,
        )?;
        let Some((depth, dir)) = lowest else { return Ok(None) };
        Ok(self.descend(&dir, trace.get(depth + 1..).unwrap_or_default())?.filter(|found| target.is(found)))
    }

    /// Goes down by names. `None` where one is not there.
    fn descend(&self, from: &Arc<Inode<T>>, trace: &[(Name, ObjectId)]) -> Result<Option<Arc<Inode<T>>>> {
        let mut at = from.clone();
        for (name, _) in trace {
            let next = match at.dir.as_deref() {
                None => None,
                Some(part) => {
                    let _dir = part.state.read();
                    self.named(&at, name)?
                }
            };
            let Some(next) = next else { return Ok(None) };
            at = next;
        }
        Ok(Some(at))
    }

    /// The inode under a name. The caller holds the directory's DIR lock.
    fn named(&self, dir: &Arc<Inode<T>>, name: &Name) -> Result<Option<Arc<Inode<T>>>> {
        match self.resolve(dir, name)? {
            Resolved::Absent { .. } => Ok(None),
            Resolved::Found(found) => Ok(Some(self.intern(dir, name, found.new))),
        }
    }

    /// An entry of a directory that is the target, by its number.
    fn find_in(&self, dir: &Arc<Inode<T>>, target: &Target) -> Result<Option<Arc<Inode<T>>>> {
        let number = self.table.number(target.id);
        let _dir = dir.as_dir()?.state.read();
        for (name, ino) in self.numbers(dir)? {
            if ino == number
                && let Some(inode) = self.named(dir, &name)?
                && target.is(&inode)
            {
                return Ok(Some(inode));
            }
        }
        Ok(None)
    }

    /// The same among the entries of the upper directory alone.
    fn find_in_upper(&self, dir: &Arc<Inode<T>>, target: &Target) -> Result<Option<Arc<Inode<T>>>> {
        let (layer, node) = (self.upper()?, self.upper_node(dir)?);
        let _dir = dir.as_dir()?.state.read();
        // Only a directory with the mark holds copies of lower objects.
        if !target.upper && !self.marks(layer, node)?.impure {
            return Ok(None);
        }
        for entry in layer.tree.read_dir(node).attempt("read an upper directory")? {
            let other = entry.kind.is_some_and(|kind| kind != target.kind) || (target.upper && entry.ino != target.id.ino);
            let (false, Ok(name)) = (other, Name::new(&entry.name)) else { continue };
            if let Some(inode) = self.named(dir, &name)?.filter(|inode| target.is(inode)) {
                return Ok(Some(inode));
            }
        }
        Ok(None)
    }

    /// Shows directories to `look`, from the root on, until it finds something: those that the upper has, or `all`.
    fn search(&self, mut look: impl FnMut(&Arc<Inode<T>>) -> Result<Option<Arc<Inode<T>>>>, all: bool) -> Result<Option<Arc<Inode<T>>>> {
        // A loop, not recursion: the depth of the tree is not ours to choose.
        let mut todo = vec![self.root.clone()];
        while let Some(dir) = todo.pop() {
            if let Some(found) = look(&dir)? {
                return Ok(Some(found));
            }
            let _dir = dir.as_dir()?.state.read();
            for name in self.subdirectories(&dir, all)? {
                let inode = self.named(&dir, &name)?;
                todo.extend(inode.filter(|inode| inode.kind == Kind::Dir));
            }
        }
        Ok(None)
    }

    /// Names of directories in a directory. The caller holds its DIR lock.
    fn subdirectories(&self, dir: &Inode<T>, all: bool) -> Result<Vec<Name>> {
        if all {
            let names = self.merged_names(dir.upper.get(), dir.merged_lowers())?;
            return Ok(names.filter(|entry| entry.kind == Kind::Dir).map(|entry| entry.name).collect());
        }
        let (Some(layer), Some(node)) = (&self.stack.upper, dir.upper.get()) else { return Ok(Vec::new()) };
        let entries = layer.tree.read_dir(node).attempt("read an upper directory")?;
        Ok(entries
            .iter()
            .filter(|entry| entry.kind.is_none_or(|kind| kind == Kind::Dir))
            .filter_map(|entry| Name::new(&entry.name).ok())
            .collect())
    }
}
