//! What a union shows by paths, read through the union itself: no mark of a layer comes into what is read here.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use plyfs_format::ChangeKind;
use plyfs_overlay::{Backing, ChangeOptions, DirTree, HandleId, Ino, Name, OpenFlags, Union};
use plyfs_sys::at::{self, At};
use plyfs_sys::handle::FileHandle;
use plyfs_sys::stat::{Kind, Stat};
use plyfs_sys::{Errno, beneath, dir, io};
use serde::{Deserialize, Serialize};

use super::look;

type Result<T> = std::result::Result<T, plyfs_overlay::Error>;

/// What happened to a path.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum Letter {
    /// It is not on this machine.
    A,
    /// It is in both, and differs; or something below it does.
    C,
    /// It is only on this machine.
    D,
}

/// A path with what happened to it. A directory that goes is followed by all that it holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Item {
    pub(super) path: Vec<u8>,
    pub(super) letter: Letter,
}

/// One object of the view.
#[derive(Clone, Debug)]
pub(super) struct Shown {
    pub(super) node: Ino,
    pub(super) stat: Stat,
    pub(super) backing: Backing,
}

/// A union, looked at.
pub(super) struct View<'a> {
    union: &'a Union<DirTree>,
    /// Directories that were found.
    dirs: HashMap<Vec<u8>, Ino>,
}

impl<'a> View<'a> {
    pub(super) fn new(union: &'a Union<DirTree>) -> Self {
        Self { union, dirs: HashMap::from([(Vec::new(), Ino::ROOT)]) }
    }

    /// What is at a path. `None`: nothing.
    pub(super) fn find(&mut self, path: &[u8]) -> Result<Option<Shown>> {
        let attr = match look::split(path) {
            None => Some(self.union.getattr(Ino::ROOT)?),
            Some((dir, name)) => match self.dir(dir)? {
                Some(dir) => self.union.lookup(dir, &Name::new(name)?)?,
                None => None,
            },
        };
        let Some(attr) = attr else { return Ok(None) };
        Ok(Some(Shown { node: attr.node, stat: attr.stat, backing: self.union.backing(attr.node)? }))
    }

    /// What is known of an object that was found.
    pub(super) fn stat(&self, node: Ino) -> Result<Shown> {
        Ok(Shown { node, stat: self.union.getattr(node)?.stat, backing: self.union.backing(node)? })
    }

    fn dir(&mut self, path: &[u8]) -> Result<Option<Ino>> {
        if let Some(ino) = self.dirs.get(path) {
            return Ok(Some(*ino));
        }
        // A loop, not recursion: the depth of the tree is not ours to choose.
        let mut at = Ino::ROOT;
        let mut end = 0;
        for name in path.split(|&byte| byte == b'/').skip(1) {
            end += 1 + name.len();
            let here = path.get(..end).unwrap_or(path);
            at = match self.dirs.get(here) {
                Some(ino) => *ino,
                None => match self.union.lookup(at, &Name::new(name)?)? {
                    Some(attr) if attr.stat.kind == Kind::Dir => {
                        self.dirs.insert(here.to_vec(), attr.node);
                        attr.node
                    }
                    _ => return Ok(None),
                },
            };
        }
        Ok(Some(at))
    }

    /// The extended attributes, in order.
    pub(super) fn xattrs(&self, node: Ino) -> Result<look::Xattrs> {
        let mut found = Vec::new();
        for name in self.union.listxattr(node)? {
            let value = self.union.getxattr(node, &name)?;
            found.push((name, value));
        }
        found.sort_unstable();
        Ok(found)
    }

    /// The target of a symbolic link.
    pub(super) fn target(&self, node: Ino) -> Result<Vec<u8>> {
        self.union.readlink(node)
    }

    /// The inode flags; none where there are none to be had.
    pub(super) fn flags(&self, node: Ino) -> Result<u32> {
        match self.union.flags(node) {
            Err(error) if matches!(error.errno(), Errno::NOTTY | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => Ok(0),
            other => other,
        }
    }

    /// Opens a regular file for as long as `call` takes.
    pub(super) fn with_file<R>(&self, node: Ino, call: impl FnOnce(BorrowedFd<'_>) -> R) -> Result<R> {
        let reader = OpenFlags { read: true, ..OpenFlags::default() };
        let handle: HandleId = self.union.open(&plyfs_overlay::Caller::default(), node, reader)?;
        let result = self.union.with_descriptor(handle, call);
        self.union.release(handle);
        result
    }

    /// The handle of what an object was copied up from.
    pub(super) fn copied_from(&self, node: Ino) -> Result<Option<FileHandle>> {
        self.union.copied_from(node)
    }

    /// The paths in the upper that are no changes as far as any diff tells, and yet were changed: inode flags, and times of directories that nobody else has changed since `began`.
    pub(super) fn quiet(
        &mut self,
        host: BorrowedFd<'_>,
        upper: BorrowedFd<'_>,
        listed: &[Item],
        began: look::Moment,
    ) -> anyhow::Result<Vec<Item>> {
        let mut found = Vec::new();
        let listed: HashSet<&[u8]> = listed.iter().map(|item| item.path.as_slice()).collect();
        each_in(upper, |path, _| {
            if !listed.contains(path)
                && let Some(shown) = self.find(path)?
                && matches!(shown.stat.kind, Kind::Dir | Kind::File)
                && let Some(here) = look::open(host, path).map_err(|errno| failed(path, errno))?
            {
                let stat = at::stat(At::Fd(here.as_fd())).map_err(|errno| failed(path, errno))?;
                let time = shown.stat.kind == Kind::Dir && stat.mtime != shown.stat.mtime && look::moment(stat.ctime) < began;
                let own = super::dress::flags_of(here.as_fd(), stat.kind).map_err(|errno| failed(path, errno))?;
                let flags = own.is_some_and(|own| self.flags(shown.node).is_ok_and(|flags| (flags ^ own) & super::plan::KEPT_FLAGS != 0));
                if stat.kind == shown.stat.kind && (time || flags) {
                    found.push(Item { path: path.to_vec(), letter: Letter::C });
                }
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// The paths that differ from this machine, in order, each directory that goes with all that it holds.
    pub(super) fn items(&mut self, host: BorrowedFd<'_>) -> anyhow::Result<Vec<Item>> {
        // Everything that shows, not only what docker's diff counts.
        let changes = self.union.changes(&ChangeOptions { xattrs: true })?;
        let mut items = Vec::new();
        if !changes.is_empty() {
            items.push(Item { path: Vec::new(), letter: Letter::C });
        }
        for change in changes {
            let letter = match change.kind {
                ChangeKind::Added => Letter::A,
                ChangeKind::Changed => Letter::C,
                ChangeKind::Deleted => Letter::D,
            };
            let goes = match letter {
                Letter::A => false,
                Letter::D => true,
                Letter::C => self.find(&change.path)?.is_none_or(|shown| shown.stat.kind != Kind::Dir),
            };
            if goes {
                below(host, &change.path, &mut items)?;
            }
            items.push(Item { path: change.path, letter });
        }
        items.sort();
        Ok(items)
    }
}

fn failed(path: &[u8], errno: Errno) -> anyhow::Error {
    anyhow::anyhow!("{}: {errno}", path.escape_ascii())
}

/// Calls for each object below a directory.
pub(super) fn each_in(root: BorrowedFd<'_>, mut call: impl FnMut(&[u8], &Stat) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let mut todo = vec![Vec::new()];
    while let Some(path) = todo.pop() {
        let dir = beneath::open_dir(root, &path).map_err(|errno| failed(&path, errno))?;
        for entry in dir::read_dir(dir.as_fd()).map_err(|errno| failed(&path, errno))? {
            let stat = at::stat(At::Name(dir.as_fd(), &entry.name)).map_err(|errno| failed(&path, errno))?;
            let path = [&path[..], b"/", &entry.name].concat();
            call(&path, &stat)?;
            if stat.kind == Kind::Dir {
                todo.push(path);
            }
        }
    }
    Ok(())
}

/// All that is below a path of this machine, if that is a directory.
fn below(root: BorrowedFd<'_>, path: &[u8], items: &mut Vec<Item>) -> anyhow::Result<()> {
    let mut todo = vec![path.to_vec()];
    while let Some(path) = todo.pop() {
        let dir: OwnedFd = match look::there(beneath::open_dir(root, &path)) {
            Ok(Some(dir)) => dir,
            Ok(None) | Err(Errno::LOOP) => continue,
            // Something is mounted there: it is found when the object itself is looked at.
            Err(Errno::XDEV) => continue,
            Err(errno) => return Err(failed(&path, errno)),
        };
        for entry in dir::read_dir(dir.as_fd()).map_err(|errno| failed(&path, errno))? {
            let path = [&path[..], b"/", &entry.name].concat();
            items.push(Item { path: path.clone(), letter: Letter::D });
            if entry.kind.is_none_or(|kind| kind == Kind::Dir) {
                todo.push(path);
            }
        }
    }
    Ok(())
}

/// Whether two files hold the same data.
pub(super) fn same_data(a: BorrowedFd<'_>, b: BorrowedFd<'_>) -> std::result::Result<bool, Errno> {
    const CHUNK: usize = 1 << 17;
    let (mut buf_a, mut buf_b) = (vec![0; CHUNK], vec![0; CHUNK]);
    let mut offset = 0;
    loop {
        let got_a = io::pread(a, &mut buf_a, offset)?;
        let got_b = io::pread(b, &mut buf_b, offset)?;
        if buf_a.get(..got_a) != buf_b.get(..got_b) {
            return Ok(false);
        }
        if got_a == 0 {
            return Ok(true);
        }
        offset += got_a as u64;
    }
}
