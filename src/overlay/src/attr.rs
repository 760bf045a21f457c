//! lookup, getattr, setattr, statfs, readlink.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use plyfs_format::WHITEOUT_RDEV;
use plyfs_sys::Errno;
use plyfs_sys::at::SetTime;
use plyfs_sys::stat::{Kind, Stat};
use plyfs_sys::statfs::StatFs;

use crate::backend::UpperTree;
use crate::copy_up::Content;
use crate::data::as_before;
use crate::error::{Attempt, Error, Result};
use crate::file::HandleId;
use crate::ino::Ino;
use crate::inode::Inode;
use crate::name::Name;
use crate::resolve::Resolved;
use crate::union::{Caller, Event, NO_ID, Union};

/// Attributes of an object of the union.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attr {
    /// `st_ino`.
    pub ino: Ino,
    /// The FUSE node id: the same number, but 1 for the root.
    pub node: Ino,
    /// Everything else; `dev` and `ino` in it are the host's, `btime` is none: [`Union::birth`] tells it.
    pub stat: Stat,
}

/// What setattr changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SetAttr {
    /// Permission bits, 07777.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size in bytes, of regular files.
    pub size: Option<u64>,
    /// Time of last access.
    pub atime: SetTime,
    /// Time of last modification.
    pub mtime: SetTime,
}

impl Default for SetAttr {
    fn default() -> Self {
        Self { mode: None, uid: None, gid: None, size: None, atime: SetTime::Omit, mtime: SetTime::Omit }
    }
}

impl<T: UpperTree> Union<T> {
    /// Looks a name up; an answer with attributes counts one look-up, which FORGET takes back. `None`: no such name.
    ///
    /// Errors: ENOTDIR; ESTALE; the layers' errors.
    pub fn lookup(&self, parent: Ino, name: &Name) -> Result<Option<Attr>> {
        let parent = self.directory(parent)?;
        self.lookup_in(&parent, name)
    }

    pub(crate) fn lookup_in(&self, parent: &Arc<Inode<T>>, name: &Name) -> Result<Option<Attr>> {
        let (inode, stat) = {
            let _dir = parent.as_dir()?.state.read();
            match self.resolve(parent, name).inspect_err(|error| self.tell_damage(parent, name, error))? {
                Resolved::Absent { .. } => return Ok(None),
                Resolved::Found(found) => {
                    let shows = found.upper_here || found.new.upper.is_none();
                    (self.intern(parent, name, found.new), shows.then_some(found.stat))
                }
            }
        };
        // What was read while resolving is good for what no other lock guards, and while nothing was copied up in between, nor any data came.
        let attr = match stat {
            Some(stat)
                if !matches!(inode.kind, Kind::Dir | Kind::Char)
                    && inode.took_no_data()
                    && inode.upper_id.get().is_none_or(|id| *id == crate::backend::ObjectId::of(&stat)) =>
            {
                self.attr_with(&inode, stat)
            }
            _ => self.attr_of(&inode)?,
        };
        self.count(&inode, 1);
        Ok(Some(attr))
    }

    /// Takes back look-ups (FORGET).
    pub fn forget(&self, ino: Ino, lookups: u64) {
        if self.table.forget(ino, lookups) {
            self.tell(Event::Freed);
        }
    }

    /// Attributes.
    ///
    /// Errors: ESTALE; the layers' errors.
    pub fn getattr(&self, ino: Ino) -> Result<Attr> {
        self.attr_of(&*self.inode(ino)?)
    }

    pub(crate) fn attr_of(&self, inode: &Inode<T>) -> Result<Attr> {
        // A directory's mtime is put back after a copy-up below it, under the DIR lock: shared, nobody sees it in between.
        let _dir = inode.dir.as_deref().map(|part| part.state.read());
        let (layer, node) = self.top(inode)?;
        let mut stat = inode.arrival.look(|| self.stat_in(layer, node), as_before)?;
        self.count_blocks(inode, &mut stat)?;
        if self.is_escaped_device(layer, node, &stat)? {
            stat.rdev = WHITEOUT_RDEV;
        }
        Ok(self.attr_with(inode, stat))
    }

    fn attr_with(&self, inode: &Inode<T>, mut stat: Stat) -> Attr {
        if inode.kind == Kind::Dir {
            let merged = inode.merged_lowers().len() + usize::from(inode.upper.get().is_some()) > 1;
            if inode.nameless.load(Ordering::Relaxed) {
                stat.nlink = 0;
            } else if merged || self.behaviour.static_nlink {
                // As the kernel: counting subdirectories of a merged directory is not worth it, and 1 tells find not to rely on it.
                stat.nlink = 1;
            }
        } else {
            let nlink = i64::from(stat.nlink).saturating_add(inode.nlink_delta.load(Ordering::Relaxed)).max(0);
            stat.nlink = u32::try_from(nlink).unwrap_or(u32::MAX);
        }
        stat.btime = None;
        (stat.uid, stat.gid) = (self.owners.uids.up(stat.uid), self.owners.gids.up(stat.gid));
        Attr { ino: self.shown_ino(inode), node: inode.ino, stat }
    }

    /// Changes attributes. `handle`: the file handle of an ftruncate.
    ///
    /// setuid and setgid go as POSIX says: at chown of what is no directory, and when somebody without CAP_FSETID truncates.
    ///
    /// Errors: EROFS; EISDIR or EINVAL for the size of what is no regular file; EOVERFLOW for an owner that is none, EINVAL for one that is nowhere on disk; the layers' errors.
    pub fn setattr(&self, caller: &Caller, ino: Ino, handle: Option<HandleId>, set: &SetAttr) -> Result<Attr> {
        let inode = self.inode(ino)?;
        match (set.size, inode.kind) {
            (None, _) | (Some(_), Kind::File) => {}
            (Some(_), Kind::Dir) => return Err(Error::IsDir),
            (Some(_), _) => return Err(Error::Invalid("size of a special file")),
        }
        if set.uid == Some(NO_ID) || set.gid == Some(NO_ID) {
            return Err(Error::NoIds);
        }
        let (uid, gid) = self.named_owner(set.uid, set.gid)?;
        self.upper()?;
        self.may_set(&inode, set)?;
        let content = match set.size {
            None => Content::Metadata,
            Some(0) => Content::Empty,
            Some(_) => Content::Whole,
        };
        if content == Content::Empty {
            self.drop_before_emptying(caller, &inode)?;
        }
        let file = self.copy_up(&inode, content)?;
        {
            let _still = self.while_data_stays(&inode)?;
            let _dir = inode.dir.as_deref().map(|part| part.state.write());
            let tree = &self.upper()?.tree;
            let node = self.upper_node(&inode)?;
            if let Some(size) = set.size {
                self.drop_privileges(caller, &inode, false)?;
                let truncated = match (file, handle) {
                    // Copied up empty.
                    (Some(_), _) if size == 0 => Ok(()),
                    (Some(file), _) => tree.truncate(&file, size),
                    (None, Some(handle)) if self.handles.writable(handle)? => {
                        self.handles.with_file(self, handle, |file| tree.truncate(file, size))?
                    }
                    (None, _) => tree.open_write(node).and_then(|file| tree.truncate(&file, size)),
                };
                truncated.attempt("truncate")?;
            }
            if uid.is_some() || gid.is_some() {
                self.change_owner(caller, &inode, uid, gid)?;
            }
            if let Some(mode) = set.mode
                && inode.kind != Kind::Symlink
            {
                tree.set_mode(node, mode & 0o7777).attempt("chmod")?;
            }
            if set.atime != SetTime::Omit || set.mtime != SetTime::Omit {
                tree.set_times(node, set.atime, set.mtime).attempt("utimensat")?;
            }
        }
        self.attr_of(&inode)
    }

    /// Target of a symlink.
    ///
    /// Errors: EINVAL for another kind; the layers' errors.
    pub fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        let inode = self.inode(ino)?;
        if inode.kind != Kind::Symlink {
            return Err(Error::Invalid("not a symlink"));
        }
        let (layer, node) = self.top(&inode)?;
        layer.tree.readlink(node).attempt("readlink")
    }

    /// statfs(2) of the upper layer, or of the topmost lower one.
    ///
    /// Errors: the layer's.
    pub fn statfs(&self) -> Result<StatFs> {
        let layer = self.stack.upper.as_ref().or(self.stack.lowers.first()).ok_or(Error::Layer { op: "statfs", errno: Errno::IO })?;
        layer.tree.statfs().attempt("statfs")
    }

    /// Whether a change of this inode may take long: it, its data or a directory above it is not in the upper yet.
    pub fn may_copy_up(&self, ino: Ino) -> bool {
        !self.is_read_only() && self.table.get(ino).is_some_and(|inode| inode.upper_with_data().is_none())
    }
}
