//! What is wrong with an upper and its workdir that nobody has mounted, and how it is mended.
//!
//! Nothing with content is deleted: what cannot stay where it is moves to `lost+found` in the workdir, under a name that tells where it was. A mark is taken away or written anew only for
//! what its own value says; what only the lowers could tell (a metacopy without data, a loop of redirects) is told and left, for the lowers may be the wrong ones. Each step can be
//! repeated, so a repair that was killed is finished by the next.

mod judge;

use std::collections::HashSet;

use plyfs_format::{AUFS_OPAQUE, Dialect, MarkKind, Nlink, Origin, OriginError, aufs_whiteout_name, is_whiteout_device, xattr_name};
use plyfs_sys::Errno;
use plyfs_sys::at::XattrMode;
use plyfs_sys::stat::{Kind, Stat};

use self::judge::{Fault, Fix, Object};
use crate::backend::{BOOT, INCOMPAT, ObjectId, Place, RawEntry, Rename, UpperTree, VOLATILE, boot_id};
use crate::error::{Attempt, Error, Result};
use crate::layer::Layer;
use crate::name::Name;
use crate::union::Union;

/// Where in the workdir things are moved to.
const FOUND: &str = "lost+found";

/// What became of a problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// A repair would do this.
    Mendable(String),
    /// This was done.
    Mended(String),
    /// It stays: what a person can do.
    Left(String),
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// `upperdir`, `workdir`, or a lower by its label.
    pub place: String,
    /// The object, from that directory.
    pub path: Vec<u8>,
    /// What is wrong with it.
    pub what: String,
    /// What became of it.
    pub outcome: Outcome,
}

type Tell<'a> = &'a mut dyn FnMut(Problem);

/// One check.
struct Check<'a, T: UpperTree> {
    union: &'a Union<T>,
    layer: &'a Layer<T>,
    repair: bool,
    tell: Tell<'a>,
    /// Objects of the index.
    indexed: HashSet<ObjectId>,
    /// Objects that were told of.
    told: HashSet<(String, Vec<u8>)>,
}

impl<T: UpperTree> Union<T> {
    /// Looks for what is wrong with the upper and its workdir, and mends what can be if `repair` is set. The upper tree is one that was opened to be checked
    /// ([`crate::DirTree::to_check`]): its `work` is the work directory itself. With lowers the marks that lead there are followed, too.
    ///
    /// Errors: EROFS without an upper; what the layers answer. What was mended until then is told.
    pub fn fsck(&self, repair: bool, tell: &mut dyn FnMut(Problem)) -> Result<()> {
        let layer = self.upper()?;
        let mut check = Check { union: self, layer, repair, tell, indexed: HashSet::new(), told: HashSet::new() };
        check.index()?;
        check.upper()?;
        check.work()?;
        if !self.stack.lowers.is_empty() {
            check.lowers()?;
        }
        Ok(())
    }
}

impl<T: UpperTree> Check<'_, T> {
    /// Tells of a problem; mends it, if that is wanted and possible.
    fn found(
        &mut self,
        place: &str,
        path: &[u8],
        what: String,
        fix: std::result::Result<(String, impl FnOnce(&Self) -> Result<()>), String>,
    ) -> Result<()> {
        let outcome = match fix {
            Err(remedy) => Outcome::Left(remedy),
            Ok((how, _)) if !self.repair => Outcome::Mendable(how),
            Ok((how, mend)) => match mend(self) {
                Ok(()) => Outcome::Mended(how),
                Err(Error::Layer { op, errno: errno @ (Errno::PERM | Errno::ACCESS) }) => {
                    Outcome::Left(format!("{op}: {errno}; it may be immutable (chattr -i), or not yours"))
                }
                Err(error) => return Err(error),
            },
        };
        let path = if path.is_empty() { b"/" } else { path };
        self.told.insert((place.to_owned(), path.to_vec()));
        (self.tell)(Problem { place: place.to_owned(), path: path.to_vec(), what, outcome });
        Ok(())
    }

    fn left(&mut self, place: &str, path: &[u8], what: String, remedy: &str) -> Result<()> {
        self.found(place, path, what, Err::<(String, fn(&Self) -> Result<()>), _>(remedy.to_owned()))
    }

    /// What cannot stay moves to `lost+found`.
    fn moved(&mut self, path: &[u8], what: String, dir: &T::Node, entry: &[u8], from: &'static str) -> Result<()> {
        let name = Name::new(entry)?;
        let how = format!("moved to {FOUND}");
        self.found("workdir", path, what, Ok((how, |check: &Self| check.move_away(dir, &name, from))))
    }

    /// Moves an object of the workdir to `lost+found`, synced there before it is gone from where it was.
    fn move_away(&self, dir: &T::Node, name: &Name, from: &str) -> Result<()> {
        const ATTEMPTS: u32 = 10_000;
        let tree = &self.layer.tree;
        let root = tree.work();
        let found = Name::new(FOUND)?;
        let found = match tree.lookup(&root, &found).attempt("look for lost+found")? {
            Some((node, stat)) if stat.kind == Kind::Dir => node,
            Some(_) => return Err(Error::Layer { op: "lost+found is no directory", errno: Errno::NOTDIR }),
            None => tree.mkdir(Place { dir: &root, name: &found }, 0o700).attempt("make lost+found")?,
        };
        let Some((node, _)) = tree.lookup(dir, name).attempt("look up what is to be moved")? else { return Ok(()) };
        // Room for what is added: names have 255 bytes at most.
        let kept = name.as_bytes().get(..200).unwrap_or(name.as_bytes());
        for attempt in 0..ATTEMPTS {
            let mut wanted = [from.as_bytes(), b"-", kept].concat();
            if attempt > 0 {
                wanted.extend_from_slice(format!(".{attempt}").as_bytes());
            }
            let wanted = Name::new(wanted)?;
            match tree.rename(Place { dir, name }, Some(&node), Place { dir: &found, name: &wanted }, None, Rename::NoReplace) {
                Ok(()) => {
                    tree.sync_dir(&found).attempt("sync lost+found")?;
                    return tree.sync_dir(dir).attempt("sync where it was");
                }
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno).attempt("move to lost+found"),
            }
        }
        Err(Error::Layer { op: "find a name in lost+found", errno: Errno::EXIST })
    }

    /// Removes an object with all that is in it.
    fn remove(&self, dir: &T::Node, name: &Name) -> Result<()> {
        let tree = &self.layer.tree;
        // A loop, not recursion: the depth is not ours to choose.
        let mut todo = vec![(dir.clone(), name.clone(), false)];
        while let Some((dir, name, emptied)) = todo.pop() {
            let at = Place { dir: &dir, name: &name };
            if emptied {
                tree.rmdir(at).attempt("remove a directory")?;
                continue;
            }
            let Some((node, stat)) = tree.lookup(&dir, &name).attempt("look up what is left over")? else { continue };
            if stat.kind == Kind::Dir {
                todo.push((dir.clone(), name.clone(), true));
                for entry in tree.read_dir(&node).attempt("read a directory")? {
                    todo.push((node.clone(), Name::new(&entry.name)?, false));
                }
            } else {
                tree.unlink(at).attempt("remove what is left over")?;
            }
        }
        Ok(())
    }

    /// The index of hard links.
    fn index(&mut self) -> Result<()> {
        let tree = &self.layer.tree;
        let root = tree.work();
        let Some((_, stat)) = tree.lookup(&root, &Name::new("index")?).attempt("look for the index")? else { return Ok(()) };
        let Some(index) = tree.index().filter(|_| stat.kind == Kind::Dir) else {
            return self.moved(b"/index", "no directory".to_owned(), &root, b"index", "work");
        };
        for entry in tree.read_dir(&index).attempt("read the index")? {
            self.index_entry(&index, &entry)?;
        }
        Ok(())
    }

    fn index_entry(&mut self, index: &T::Node, entry: &RawEntry) -> Result<()> {
        let (layer, path) = (self.layer, [b"/index/", entry.name.as_slice()].concat());
        let name = Name::new(&entry.name)?;
        if entry.name.first() == Some(&b'#') {
            let fix = (REMOVED.to_owned(), |check: &Self| check.remove(index, &name));
            return self.found("workdir", &path, "left over from a copy-up".to_owned(), Ok(fix));
        }
        let origin = match Origin::parse_index_name(&entry.name) {
            Ok(origin) => origin,
            Err(OriginError::Unknown) => {
                let what = "an entry of another version, or of a machine of the other byte order".to_owned();
                return self.left("workdir", &path, what, "use it with what wrote it");
            }
            Err(OriginError::Malformed) => {
                return self.moved(&path, "no name of an entry of the index".to_owned(), index, &entry.name, "index");
            }
        };
        let Some((node, stat)) = layer.tree.lookup(index, &name).attempt("look up in the index")? else { return Ok(()) };
        // Of the kernel, for file handles.
        if is_whiteout_device(stat.kind == Kind::Char, stat.rdev) {
            return Ok(());
        }
        if stat.kind == Kind::Dir {
            if layer.mark(&node, MarkKind::Upper)?.is_none() {
                return self.moved(&path, "a directory that stands for no other one".to_owned(), index, &entry.name, "index");
            }
            return Ok(());
        }
        self.indexed.insert(ObjectId::of(&stat));
        self.object("workdir", &path, &node, &stat, true)?;
        let mark = layer.mark(&node, MarkKind::Origin)?;
        let own = origin.encode();
        let can_bear = layer.dialect == Dialect::Trusted || stat.kind == Kind::File;
        match mark.as_deref().map(Origin::parse) {
            Some(Ok(said)) if said.encode() != own => {
                let what = "the copy of another file than its name says".to_owned();
                return self.moved(&path, what, index, &entry.name, "index");
            }
            None | Some(Err(_)) if can_bear => {
                let fix = ("the mark origin is written from its name".to_owned(), |check: &Self| check.set(&node, MarkKind::Origin, &own));
                self.found("workdir", &path, "an entry without the mark origin".to_owned(), Ok(fix))?;
            }
            _ => {}
        }
        let hidden = layer.mark(&node, MarkKind::Nlink)?.and_then(|value| Nlink::parse(&value));
        if stat.nlink == 1 && matches!(hidden, Some(Nlink::Upper(delta)) if delta < 0) {
            let fix = (REMOVED.to_owned(), |check: &Self| check.remove(index, &name));
            self.found("workdir", &path, "an entry whose names are all gone".to_owned(), Ok(fix))?;
        }
        Ok(())
    }

    /// All objects of the upper.
    fn upper(&mut self) -> Result<()> {
        let tree = &self.layer.tree;
        let root = tree.root();
        let stat = tree.stat(&root).attempt("look at the root")?;
        self.object("upperdir", b"", &root, &stat, false)?;
        let mut path = Vec::new();
        let mut todo = vec![(root, 0, None::<Name>)];
        while let Some((dir, above, name)) = todo.pop() {
            path.truncate(above);
            if let Some(name) = name {
                path.push(b'/');
                path.extend_from_slice(&name);
            }
            for entry in tree.read_dir(&dir).attempt("read a directory")? {
                let Ok(name) = Name::new(&entry.name) else { continue };
                let Some((node, stat)) = tree.lookup(&dir, &name).attempt("look at an entry")? else { continue };
                let below = [path.as_slice(), b"/", &name].concat();
                self.beside_whiteout(&dir, &name, &node, &stat, &below)?;
                if !self.indexed.contains(&ObjectId::of(&stat)) {
                    self.object("upperdir", &below, &node, &stat, false)?;
                }
                if stat.kind == Kind::Dir {
                    todo.push((node, path.len(), Some(name)));
                }
            }
        }
        Ok(())
    }

    /// The marks of one object.
    fn object(&mut self, place: &str, path: &[u8], node: &T::Node, stat: &Stat, indexed: bool) -> Result<()> {
        let layer = self.layer;
        let marks = layer.private_xattrs(node)?;
        if marks.is_empty() {
            return Ok(());
        }
        let metacopy = stat.kind == Kind::File && marks.iter().any(|(_, kind)| *kind == Some(MarkKind::Metacopy));
        let object = Object { kind: stat.kind, rdev: stat.rdev, root: path.is_empty(), metacopy, indexed };
        for (name, kind) in marks {
            let Some(value) = layer.tree.get_xattr(node, &name).attempt("read a mark")? else { continue };
            let Some(Fault { why, fix }) = judge::mark(&object, &name, kind, &value) else { continue };
            let what = format!("mark {} = {}: {why}", name.escape_ascii(), value.escape_ascii());
            match fix {
                Fix::Left(remedy) => self.left(place, path, what, remedy)?,
                Fix::Remove => {
                    let fix = ("the mark is taken away".to_owned(), |check: &Self| check.unset(node, &name));
                    self.found(place, path, what, Ok(fix))?;
                }
                Fix::Write(to) => {
                    let how = format!("it is {} now", if to.is_empty() { "empty".into() } else { to.escape_ascii().to_string() });
                    let fix = (how, |check: &Self| check.layer.tree.set_xattr(node, &name, &to, XattrMode::Any).attempt("write a mark"));
                    self.found(place, path, what, Ok(fix))?;
                }
                Fix::Hide => {
                    let fix = ("it shows what it holds itself".to_owned(), |check: &Self| {
                        check.hide_below(node)?;
                        check.unset(node, &name)
                    });
                    self.found(place, path, what, Ok(fix))?;
                }
            }
        }
        Ok(())
    }

    fn set(&self, node: &T::Node, kind: MarkKind, value: &[u8]) -> Result<()> {
        let Some(name) = xattr_name(self.layer.dialect, kind) else { return Ok(()) };
        self.layer.tree.set_xattr(node, name, value, XattrMode::Any).attempt("write a mark")
    }

    /// Makes a directory show what it holds itself, and nothing of the lowers.
    fn hide_below(&self, dir: &T::Node) -> Result<()> {
        if self.layer.dialect != Dialect::Aufs {
            return self.set(dir, MarkKind::Opaque, b"y");
        }
        match self.layer.tree.create(Place { dir, name: &Name::new(AUFS_OPAQUE)? }, 0o644) {
            Ok(_) | Err(Errno::EXIST) => Ok(()),
            Err(errno) => Err(errno).attempt("make a directory opaque"),
        }
    }

    /// What a killed operation leaves where whiteouts are names: one beside what it would hide, which shows. Other programs take it for hidden.
    fn beside_whiteout(&mut self, dir: &T::Node, name: &Name, node: &T::Node, stat: &Stat, path: &[u8]) -> Result<()> {
        if self.layer.dialect != Dialect::Aufs {
            return Ok(());
        }
        let Some(whiteout) = aufs_whiteout_name(name).ok().and_then(|name| Name::new(name).ok()) else { return Ok(()) };
        if self.layer.tree.lookup(dir, &whiteout).attempt("look for a whiteout")?.is_none() {
            return Ok(());
        }
        let fix = ("the whiteout is removed".to_owned(), |check: &Self| {
            if stat.kind == Kind::Dir {
                check.hide_below(node)?;
            }
            check.layer.tree.unlink(Place { dir, name: &whiteout }).attempt("remove a whiteout")
        });
        self.found("upperdir", path, "a whiteout is beside it: left by an operation that was killed".to_owned(), Ok(fix))
    }

    fn unset(&self, node: &T::Node, name: &[u8]) -> Result<()> {
        match self.layer.tree.remove_xattr(node, name) {
            Err(Errno::NODATA) => Ok(()),
            removed => removed.attempt("take a mark away"),
        }
    }

    /// What is left in `work`.
    fn work(&mut self) -> Result<()> {
        let tree = &self.layer.tree;
        let root = tree.work();
        let Some((work, stat)) = tree.lookup(&root, &Name::new("work")?).attempt("look for work")? else { return Ok(()) };
        if stat.kind != Kind::Dir {
            return self.moved(b"/work", "no directory".to_owned(), &root, b"work", "work");
        }
        for entry in tree.read_dir(&work).attempt("read work")? {
            let (name, path) = (Name::new(&entry.name)?, [b"/work/", entry.name.as_slice()].concat());
            let Some((node, stat)) = tree.lookup(&work, &name).attempt("look at a leftover")? else { continue };
            if entry.name == INCOMPAT && stat.kind == Kind::Dir {
                self.features(&node)?;
            } else if entry.name.first() == Some(&b'#') {
                let fix = (REMOVED.to_owned(), |check: &Self| check.remove(&work, &name));
                self.found("workdir", &path, "left over from a mount".to_owned(), Ok(fix))?;
            } else {
                self.moved(&path, "nothing that a mount leaves".to_owned(), &work, &entry.name, "work")?;
            }
        }
        Ok(())
    }

    fn features(&mut self, dir: &T::Node) -> Result<()> {
        for entry in self.layer.tree.read_dir(dir).attempt("read incompat")? {
            let path = [b"/work/incompat/", entry.name.as_slice()].concat();
            let (what, remedy) = if entry.name == VOLATILE {
                // In the same boot of the machine everything that was written is there.
                if self.is_of_this_boot(dir)? {
                    continue;
                }
                let what = "the last mount was volatile, in an earlier boot of the machine or by the kernel: data may be missing";
                (what, "look at the upper; if all is there, remove this directory")
            } else {
                ("a feature that this version does not know", "use it with what wrote it")
            };
            self.left("workdir", &path, what.to_owned(), remedy)?;
        }
        Ok(())
    }

    /// Whether the mark of a volatile mount is of plyfs and of this boot.
    fn is_of_this_boot(&self, dir: &T::Node) -> Result<bool> {
        let tree = &self.layer.tree;
        let Some((mark, stat)) = tree.lookup(dir, &Name::new(VOLATILE)?).attempt("look for volatile")? else { return Ok(false) };
        if stat.kind != Kind::Dir {
            return Ok(false);
        }
        let Some((boot, stat)) = tree.lookup(&mark, &Name::new(BOOT)?).attempt("look for boot")? else { return Ok(false) };
        if stat.kind != Kind::File {
            return Ok(false);
        }
        let file = tree.open(&boot).attempt("open boot")?;
        let mut text = [0; 64];
        let length = tree.read(&file, &mut text, 0).attempt("read boot")?;
        let own = boot_id();
        Ok(!own.is_empty() && text.get(..length) == Some(own.as_slice()))
    }

    /// What only the lowers tell.
    fn lowers(&mut self) -> Result<()> {
        const REMEDY: &str = "see that these are its lowers, in their order; then mend the layer, or mount it with --lenient";
        for finding in self.union.scan(usize::MAX)? {
            let place = match finding.layer.as_str() {
                label if label == self.layer.label => "upperdir".to_owned(),
                label if label.ends_with("(workdir)") => "workdir".to_owned(),
                label => label.to_owned(),
            };
            if !self.told.contains(&(place.clone(), finding.path.clone())) {
                self.left(&place, &finding.path, finding.what, REMEDY)?;
            }
        }
        Ok(())
    }
}

const REMOVED: &str = "removed";
