//! What is looked at before a mount: marks that cannot be honoured, and what the upper's place can hold.
//!
//! Each layer is walked by itself: all directories, and the files of directories that bear a mark themselves (the kernel marks a directory that holds copied-up
//! objects). What the walk does not see is an error of its look-up. Marks that lead elsewhere are followed as a look-up would, in the view that the layer and those below
//! it make.

use std::fmt;

use plyfs_format::{
    AufsName, Dialect, MarkKind, Origin, OriginError, Protattr, Redirect, classify_aufs_name, is_whiteout_device, read_names, users_can_set,
};
use plyfs_sys::Errno;
use plyfs_sys::at::XattrMode;
use plyfs_sys::stat::Kind;

use crate::backend::{Handle, ObjectId, Place, UpperTree};
use crate::error::{Attempt, Error, Result};
use crate::layer::{Layer, LowerIndex, LowerObject};
use crate::name::Name;
use crate::resolve::Resolved;
use crate::union::Union;

/// A mark that cannot be honoured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The layer, by its label.
    pub layer: String,
    /// The object that bears it, from the layer's root.
    pub path: Vec<u8>,
    /// The mark and what is wrong with it.
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place(), self.what)
    }
}

impl Finding {
    /// The layer and the path in it, in words.
    pub fn place(&self) -> String {
        format!("{}: {}", self.layer, String::from_utf8_lossy(&self.path))
    }
}

/// What can be written where the upper is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// Attributes that only the privileged see.
    pub trusted: plyfs_sys::Result<()>,
    /// Attributes of users.
    pub user: plyfs_sys::Result<()>,
    /// Whiteouts: character devices 0:0.
    pub whiteouts: plyfs_sys::Result<()>,
}

impl Probe {
    /// Tries out what an upper's place can hold, in `work`.
    ///
    /// Errors: `work` cannot be written.
    pub fn of<T: UpperTree>(tree: &T) -> Result<Self> {
        let work = tree.work();
        let (file, whiteout) = (Name::new("#probe.file")?, Name::new("#probe.whiteout")?);
        let place = Place { dir: &work, name: &file };
        let (node, _) = tree.create(place, 0o600).attempt("try out workdir")?;
        let attribute = |dialect| {
            let names = read_names(dialect, MarkKind::Impure).next();
            names.map_or(Err(Errno::OPNOTSUPP), |name| tree.set_xattr(&node, name, b"y", XattrMode::Any))
        };
        let (trusted, user) = (attribute(Dialect::Trusted), attribute(Dialect::User));
        tree.unlink(place).attempt("clean up workdir")?;
        let place = Place { dir: &work, name: &whiteout };
        let whiteouts = tree.whiteout(place);
        if whiteouts.is_ok() {
            tree.unlink(place).attempt("clean up workdir")?;
        }
        Ok(Self { trusted, user, whiteouts })
    }

    /// Whether marks of this dialect can be written.
    ///
    /// Errors: what cannot, in words, and the host's answer.
    pub fn allows(&self, dialect: Dialect) -> std::result::Result<(), (&'static str, Errno)> {
        let (what, attributes) = match dialect {
            Dialect::Trusted => ("trusted.* attributes", self.trusted),
            Dialect::User => ("user.* attributes", self.user),
            Dialect::Aufs => return Ok(()),
        };
        attributes.map_err(|errno| (what, errno))?;
        self.whiteouts.map_err(|errno| ("whiteouts (character devices 0:0)", errno))
    }
}

/// A directory on the way to an object: its path, and what shows there.
struct View<T: UpperTree> {
    path: Vec<u8>,
    upper: Option<T::Node>,
    lowers: Vec<LowerObject<T>>,
}

/// One layer's walk.
struct Walk<'a, T: UpperTree> {
    layer: &'a Layer<T>,
    /// Its place among the lowers; `None` for the upper.
    index: Option<LowerIndex>,
    found: &'a mut Vec<Finding>,
    most: usize,
}

/// A directory that is still to be walked.
struct Left<N> {
    dir: N,
    /// The length of the path of the directory above it.
    above: usize,
    /// `None` for the root of a layer.
    name: Option<Name>,
}

impl<T: UpperTree> Union<T> {
    /// Looks for marks that cannot be honoured, in the upper and in all lowers but live ones; at most `most` are told. A lenient union shows what bears one without it
    /// from now on.
    ///
    /// Errors: those of the index. A directory that cannot be read is passed over: whoever looks into it gets the error.
    pub fn scan(&self, most: usize) -> Result<Vec<Finding>> {
        let mut found = Vec::new();
        if let Some(layer) = &self.stack.upper {
            self.scan_layer(Walk { layer, index: None, found: &mut found, most });
            self.scan_index(layer, most, &mut found)?;
        }
        if !self.behaviour.live_lowers {
            for lower in &self.root.lowers {
                self.scan_layer(Walk { layer: self.lower_layer(lower.layer)?, index: Some(lower.layer), found: &mut found, most });
            }
        }
        Ok(found)
    }

    fn scan_layer(&self, mut walk: Walk<'_, T>) {
        // Depth first: the path of each directory that is left begins with that of the one above it, whose length is kept, not a path for each.
        let mut path = Vec::new();
        let mut todo = vec![Left { dir: walk.layer.tree.root(), above: 0, name: None }];
        while let Some(Left { dir, above, name }) = todo.pop() {
            if walk.found.len() >= walk.most {
                return;
            }
            path.truncate(above);
            if let Some(name) = name {
                path.push(b'/');
                path.extend_from_slice(&name);
            }
            if let Err(error) = self.scan_dir(&mut walk, &dir, &path, &mut todo) {
                tracing::warn!(layer = walk.layer.label, path = %path.escape_ascii(), %error, "a directory is not looked at");
            }
        }
    }

    fn scan_dir(&self, walk: &mut Walk<'_, T>, dir: &T::Node, path: &[u8], todo: &mut Vec<Left<T::Node>>) -> Result<()> {
        let layer = walk.layer;
        let below = |name: &[u8]| [path, b"/", name].concat();
        let marks = layer.private_xattrs(dir)?;
        if path.is_empty() {
            self.judge_root(walk, dir, &marks)?;
        } else {
            self.judge(walk, dir, path, Kind::Dir, &marks)?;
        }
        for entry in layer.tree.read_dir(dir).attempt("read a directory")? {
            if layer.dialect == Dialect::Aufs {
                match classify_aufs_name(&entry.name) {
                    AufsName::Plain => {}
                    AufsName::Invalid => {
                        self.report(walk, dir, &below(&entry.name), "a whiteout of nothing, '.' or '..'".to_owned());
                        continue;
                    }
                    AufsName::Whiteout(_) | AufsName::Opaque | AufsName::Meta => continue,
                }
            }
            // Most entries are files that need no look.
            let suspect = match entry.kind {
                None | Some(Kind::Dir) => true,
                Some(Kind::File) => !marks.is_empty(),
                Some(_) => false,
            };
            let (true, Ok(name)) = (suspect, Name::new(&entry.name)) else { continue };
            let Some((node, stat)) = layer.tree.lookup(dir, &name).attempt("look at an entry")? else { continue };
            match stat.kind {
                Kind::Dir => todo.push(Left { dir: node, above: path.len(), name: Some(name) }),
                Kind::File if !marks.is_empty() => {
                    let marks = layer.private_xattrs(&node)?;
                    self.judge(walk, &node, &below(&name), Kind::File, &marks)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn report(&self, walk: &mut Walk<'_, T>, node: &T::Node, path: &[u8], what: String) {
        if self.behaviour.lenient {
            self.condemned.insert(walk.layer.tree.id(node));
        }
        if walk.found.len() < walk.most {
            walk.found.push(Finding { layer: walk.layer.label.clone(), path: path.to_vec(), what });
        }
    }

    /// Judges the marks of a layer's root: of most that are there nothing depends.
    fn judge_root(&self, walk: &mut Walk<'_, T>, root: &T::Node, marks: &[(Vec<u8>, Option<MarkKind>)]) -> Result<()> {
        for (name, mark) in marks {
            let shown = name.escape_ascii();
            match mark {
                None if users_can_set(name) => {}
                None => self.report(walk, root, b"/", format!("mark {shown}: not known to this version")),
                Some(MarkKind::Uuid) => {
                    let value = walk.layer.tree.get_xattr(root, name).attempt("read a mark")?;
                    if let Some(value) = value.filter(|value| value.len() != 16) {
                        self.report(walk, root, b"/", format!("mark {shown} = {}: not 16 bytes", value.escape_ascii()));
                    }
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// Judges the marks of one object.
    fn judge(&self, walk: &mut Walk<'_, T>, node: &T::Node, path: &[u8], kind: Kind, marks: &[(Vec<u8>, Option<MarkKind>)]) -> Result<()> {
        let metacopy = kind == Kind::File && marks.iter().any(|(_, mark)| *mark == Some(MarkKind::Metacopy));
        let mut redirect = None;
        for (name, mark) in marks {
            let shown = name.escape_ascii();
            match mark {
                None if users_can_set(name) => {}
                None => self.report(walk, node, path, format!("mark {shown}: not known to this version")),
                // What is left on a file that has its data means nothing.
                Some(MarkKind::Redirect) if kind == Kind::Dir || metacopy => {
                    if users_can_set(name) {
                        self.report(walk, node, path, format!("mark {shown}: not honoured where every user can set it"));
                        continue;
                    }
                    let Some(value) = walk.layer.tree.get_xattr(node, name).attempt("read a mark")? else { continue };
                    match Redirect::parse(&value) {
                        Err(why) => self.report(walk, node, path, format!("mark {shown} = {}: {why}", value.escape_ascii())),
                        Ok(_) => redirect = Some((name, value)),
                    }
                }
                Some(MarkKind::Protattr) => {
                    let value = walk.layer.tree.get_xattr(node, name).attempt("read a mark")?;
                    if let Some(value) = value.filter(|value| Protattr::parse(value).is_none()) {
                        self.report(walk, node, path, format!("mark {shown} = {}: neither a nor i nor both", value.escape_ascii()));
                    }
                }
                Some(MarkKind::Metacopy) if metacopy && users_can_set(name) => {
                    self.report(walk, node, path, format!("mark {shown}: not honoured where every user can set it"));
                }
                Some(_) => {}
            }
        }
        if self.is_condemned(walk.layer.tree.id(node)) {
            return Ok(());
        }
        if metacopy {
            if let Err(error @ (Error::Damaged(_) | Error::Unrepresentable(_) | Error::Stale(_) | Error::Layer { errno: Errno::IO, .. })) =
                self.follow(walk.index, path)
            {
                self.report(walk, node, path, format!("mark metacopy: {error}"));
            }
        } else if let Some((name, value)) = redirect
            && let Ok(Some((above, object))) = self.follow(walk.index, path)
            && let Some(again) = self.shows_again(walk.index, &above, &object)?
        {
            let again = if again.is_empty() { b"/".to_vec() } else { again };
            let shown = (name.escape_ascii(), value.escape_ascii(), again.escape_ascii());
            self.report(
                walk,
                node,
                path,
                format!("mark {} = {}: a loop, for {} above it shows the same directory", shown.0, shown.1, shown.2),
            );
        }
        Ok(())
    }

    /// The directories on the way to an object, in the view that one layer and those below it make, and what shows there. `None`: nothing.
    #[allow(clippy::type_complexity)] // The way, and its end.
    fn follow(&self, top: Option<LowerIndex>, path: &[u8]) -> Result<Option<(Vec<View<T>>, View<T>)>> {
        let lowers = self.root.lowers.iter().filter(|root| top.is_none_or(|top| root.layer >= top)).cloned().collect();
        let upper = if top.is_none() { self.root.upper.get().cloned() } else { None };
        let mut at = View { path: Vec::new(), upper, lowers };
        let mut above = Vec::new();
        for name in path.split(|&byte| byte == b'/').skip(1) {
            let name = Name::new(name)?;
            let Resolved::Found(found) = self.resolve_parts(at.upper.as_ref(), &at.lowers, &name)? else { return Ok(None) };
            let next = View {
                path: [at.path.as_slice(), b"/", name.as_bytes()].concat(),
                upper: found.new.upper.map(|(node, _)| node),
                lowers: found.new.lowers,
            };
            above.push(std::mem::replace(&mut at, next));
        }
        Ok(Some((above, at)))
    }

    /// The path of the directory above an object that shows one of the lower directories that merge in it, if there is one.
    fn shows_again(&self, own: Option<LowerIndex>, above: &[View<T>], object: &View<T>) -> Result<Option<Vec<u8>>> {
        let id = |lower: &LowerObject<T>| -> Result<(LowerIndex, ObjectId)> {
            Ok((lower.layer, self.lower_layer(lower.layer)?.tree.id(&lower.node)))
        };
        for lower in object.lowers.iter().filter(|lower| Some(lower.layer) != own) {
            let wanted = id(lower)?;
            for view in above {
                if view.lowers.iter().map(&id).collect::<Result<Vec<_>>>()?.contains(&wanted) {
                    return Ok(Some(view.path.clone()));
                }
            }
        }
        Ok(None)
    }

    /// Looks for entries of the index that stand for objects of another kind. What the kernel keeps there besides, and what is gone, means nothing.
    fn scan_index(&self, layer: &Layer<T>, most: usize, found: &mut Vec<Finding>) -> Result<()> {
        let Some(index) = layer.tree.index() else { return Ok(()) };
        for entry in layer.tree.read_dir(&index).attempt("read the index")? {
            let origin = match Origin::parse_index_name(&entry.name) {
                Ok(origin) => origin,
                // Temporary entries, which go; those of another version are refused before.
                Err(OriginError::Malformed) if entry.name.first() == Some(&b'#') => continue,
                Err(OriginError::Unknown) => continue,
                Err(OriginError::Malformed) => {
                    let path = [b"/index/", entry.name.as_slice()].concat();
                    let what = "no name of an entry of the index".to_owned();
                    found.push(Finding { layer: format!("{} (workdir)", layer.label), path, what });
                    continue;
                }
            };
            let Some((_, stat)) = layer.tree.lookup(&index, &Name::new(&entry.name)?).attempt("look at the index")? else { continue };
            if stat.kind == Kind::Dir || is_whiteout_device(stat.kind == Kind::Char, stat.rdev) {
                continue;
            }
            let handle =
                Handle { uuid: origin.uuid, handle: plyfs_sys::handle::FileHandle { kind: i32::from(origin.fid_type), bytes: origin.fid } };
            for lower in &self.one_of_each {
                let Some(lower) = self.lower_layer(*lower)?.tree.by_handle(&handle).attempt("open an index entry's handle")? else {
                    continue;
                };
                if lower.kind != stat.kind {
                    if self.behaviour.lenient {
                        self.condemned.insert(ObjectId::of(&lower));
                    }
                    let path = [b"/index/", entry.name.as_slice()].concat();
                    let what = "an index entry of another kind than the lower file that it stands for".to_owned();
                    found.push(Finding { layer: format!("{} (workdir)", layer.label), path, what });
                }
            }
            if found.len() >= most {
                break;
            }
        }
        Ok(())
    }

    /// The upper and its dialect; `None` for a union without one.
    pub fn upper_tree(&self) -> Option<(&T, Dialect)> {
        self.stack.upper.as_ref().map(|layer| (&layer.tree, layer.dialect))
    }
}
