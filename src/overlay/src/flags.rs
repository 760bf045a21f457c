//! Inode flags: immutable and append-only, which the union keeps and enforces, and the rest, which the upper's filesystem keeps.
//!
//! As in kernel overlayfs (`ovl_set_protattr`) the first two are a mark on the upper object: bearing the flags themselves it could not be marked, nor could an
//! immutable directory take copies of what is below it. On a lower object they are its own. What they forbid is what `fs/namei.c` and `fs/attr.c` forbid, with EPERM, before
//! the object is copied up; a file that was open for writing before goes on being written, as on most filesystems.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use plyfs_format::{MarkKind, Protattr};
use plyfs_sys::Errno;
use plyfs_sys::at::{SetTime, XattrMode};
use plyfs_sys::flags::{APPEND, Fsx, IMMUTABLE, NOATIME, SYNC, X_APPEND, X_IMMUTABLE};
use plyfs_sys::stat::{Kind, Stat};

use crate::attr::SetAttr;
use crate::backend::UpperTree;
use crate::copy_up::Content;
use crate::error::{Attempt, Error, Result};
use crate::ino::Ino;
use crate::inode::Inode;
use crate::layer::Layer;
use crate::name::Name;
use crate::resolve::Resolved;
use crate::union::{Event, Union};

/// What is known of an inode's protection.
pub(crate) struct Protection(AtomicU8);

const KNOWN: u8 = 1;
const IS_IMMUTABLE: u8 = 2;
const IS_APPEND_ONLY: u8 = 4;

fn pack(protattr: Protattr) -> u8 {
    KNOWN | if protattr.immutable { IS_IMMUTABLE } else { 0 } | if protattr.append_only { IS_APPEND_ONLY } else { 0 }
}

impl Protection {
    pub(crate) fn new(known: Option<Protattr>) -> Self {
        Self(AtomicU8::new(known.map_or(0, pack)))
    }

    fn get(&self) -> Option<Protattr> {
        let bits = self.0.load(Ordering::Acquire);
        let of = |bit: u8| bits & bit != 0;
        of(KNOWN).then(|| Protattr { immutable: of(IS_IMMUTABLE), append_only: of(IS_APPEND_ONLY) })
    }

    fn set(&self, protattr: Protattr) {
        self.0.store(pack(protattr), Ordering::Release);
    }

    /// Notes what was read, unless somebody set it in the meantime.
    fn learn(&self, protattr: Protattr) {
        // Another value is as new as this one, or newer.
        let (Ok(_) | Err(_)) = self.0.compare_exchange(0, pack(protattr), Ordering::AcqRel, Ordering::Acquire);
    }
}

/// What protects an object by flags of its own.
pub(crate) fn own(stat: &Stat) -> Protattr {
    Protattr { immutable: stat.immutable, append_only: stat.append_only }
}

/// Both together.
pub(crate) fn both(a: Protattr, b: Protattr) -> Protattr {
    Protattr { immutable: a.immutable || b.immutable, append_only: a.append_only || b.append_only }
}

/// Whether a filesystem has no such thing as flags, or not for this object.
fn has_none(errno: Errno) -> bool {
    matches!(errno, Errno::NOTTY | Errno::OPNOTSUPP | Errno::NOSYS)
}

impl<T: UpperTree> Union<T> {
    /// What protects an inode.
    fn protection(&self, inode: &Inode<T>) -> Result<Protattr> {
        if let Some(known) = inode.protection.get() {
            return Ok(known);
        }
        let (layer, node) = self.top(inode)?;
        let stat = layer.tree.stat(node).attempt("stat")?;
        let mut found = own(&stat);
        let in_upper = inode.upper.get().is_some();
        if in_upper && let Some(mark) = self.protattr_mark(layer, node)? {
            found = both(found, mark);
        }
        // Others may change a live lower.
        if in_upper || !self.behaviour.live_lowers {
            inode.protection.learn(found);
        }
        Ok(found)
    }

    fn protattr_mark(&self, layer: &Layer<T>, node: &T::Node) -> Result<Option<Protattr>> {
        let Some(name) = plyfs_format::xattr_name(layer.dialect, MarkKind::Protattr) else { return Ok(None) };
        Ok(layer.tree.get_xattr(node, name).attempt("read the protattr mark")?.and_then(|value| Protattr::parse(&value)))
    }

    /// Whether mode, owner, times, xattrs and further names of an inode may change.
    ///
    /// Errors: EPERM.
    pub(crate) fn may_change(&self, inode: &Inode<T>) -> Result<()> {
        match self.protection(inode)? {
            Protattr { immutable: false, append_only: false } => Ok(()),
            _ => Err(Error::NotPermitted("the object is immutable or append-only")),
        }
    }

    /// Whether an inode may be opened for writing.
    ///
    /// Errors: EPERM.
    pub(crate) fn may_write(&self, inode: &Inode<T>, append: bool, truncate: bool) -> Result<()> {
        match self.protection(inode)? {
            Protattr { immutable: true, .. } => Err(Error::NotPermitted("the file is immutable")),
            Protattr { append_only: true, .. } if truncate || !append => Err(Error::NotPermitted("the file is append-only")),
            _ => Ok(()),
        }
    }

    /// Whether an open file may be allocated or punched (`vfs_fallocate`).
    ///
    /// Errors: EPERM.
    pub(crate) fn may_allocate(&self, inode: &Inode<T>, mode: i32) -> Result<()> {
        const KEEP_SIZE: i32 = 1;
        match self.protection(inode)? {
            Protattr { immutable: true, .. } => Err(Error::NotPermitted("the file is immutable")),
            Protattr { append_only: true, .. } if mode & !KEEP_SIZE != 0 => Err(Error::NotPermitted("the file is append-only")),
            _ => Ok(()),
        }
    }

    /// Whether these attributes of an inode may change.
    ///
    /// Errors: EPERM.
    pub(crate) fn may_set(&self, inode: &Inode<T>, set: &SetAttr) -> Result<()> {
        let times = [set.atime, set.mtime];
        let Protattr { immutable, append_only } = self.protection(inode)?;
        let touches = times.contains(&SetTime::Now);
        let sets = set.mode.is_some()
            || set.uid.is_some()
            || set.gid.is_some()
            || set.size.is_some()
            || times.iter().any(|time| matches!(time, SetTime::To(_)));
        if (immutable && (sets || touches)) || (append_only && sets) {
            return Err(Error::NotPermitted("the object is immutable or append-only"));
        }
        Ok(())
    }

    /// Whether a name may be made in a directory.
    ///
    /// Errors: EPERM.
    pub(crate) fn may_enter(&self, dir: &Inode<T>) -> Result<()> {
        if self.protection(dir)?.immutable { Err(Error::NotPermitted("the directory is immutable")) } else { Ok(()) }
    }

    /// The same before any lock is held, with the answer for a name that is there.
    ///
    /// Errors: EPERM, or EEXIST.
    pub(crate) fn may_enter_as(&self, dir: &Inode<T>, name: &Name) -> Result<()> {
        let Err(refusal) = self.may_enter(dir) else { return Ok(()) };
        let _dir = dir.as_dir()?.state.read();
        Err(if let Resolved::Found(_) = self.resolve(dir, name)? { Error::Exists } else { refusal })
    }

    /// Whether a directory may lose the name of an object.
    ///
    /// Errors: EPERM.
    pub(crate) fn may_leave(&self, dir: &Inode<T>, inode: &Inode<T>) -> Result<()> {
        self.may_change(dir)?;
        self.may_change(inode)
    }

    /// The inode flags (`FS_IOC_GETFLAGS`) of a regular file or a directory.
    ///
    /// Errors: ENOTTY for other kinds; what a filesystem without flags answers.
    pub fn flags(&self, ino: Ino) -> Result<u32> {
        let inode = self.flagged(ino)?;
        let (layer, node) = self.top(&inode)?;
        let flags = layer.tree.flags(node).attempt("read inode flags")?;
        let Protattr { immutable, append_only } = self.protection(&inode)?;
        Ok(flags | if immutable { IMMUTABLE } else { 0 } | if append_only { APPEND } else { 0 })
    }

    /// Sets all inode flags (`FS_IOC_SETFLAGS`); copies the object up first. The kernel has checked who may.
    ///
    /// Errors: as [`Union::flags`]; EROFS; EOPNOTSUPP for what the upper's filesystem does not have; EPERM for the two that the union keeps, where it has no xattrs.
    pub fn set_flags(&self, ino: Ino, flags: u32) -> Result<()> {
        let protattr = Protattr { immutable: flags & IMMUTABLE != 0, append_only: flags & APPEND != 0 };
        self.set_both(ino, protattr, |tree, node| tree.set_flags(node, flags & !(IMMUTABLE | APPEND)))
    }

    /// The flags in their other form (`FS_IOC_FSGETXATTR`).
    ///
    /// Errors: as [`Union::flags`].
    pub fn fsx(&self, ino: Ino) -> Result<Fsx> {
        let inode = self.flagged(ino)?;
        let (layer, node) = self.top(&inode)?;
        let mut fsx = layer.tree.fsx(node).attempt("read inode flags")?;
        let Protattr { immutable, append_only } = self.protection(&inode)?;
        fsx.xflags |= if immutable { X_IMMUTABLE } else { 0 } | if append_only { X_APPEND } else { 0 };
        Ok(fsx)
    }

    /// Sets what [`Union::fsx`] reads (`FS_IOC_FSSETXATTR`).
    ///
    /// Errors: as [`Union::set_flags`].
    pub fn set_fsx(&self, ino: Ino, fsx: &Fsx) -> Result<()> {
        let protattr = Protattr { immutable: fsx.xflags & X_IMMUTABLE != 0, append_only: fsx.xflags & X_APPEND != 0 };
        let rest = Fsx { xflags: fsx.xflags & !(X_IMMUTABLE | X_APPEND), ..*fsx };
        self.set_both(ino, protattr, |tree, node| tree.set_fsx(node, &rest))
    }

    fn flagged(&self, ino: Ino) -> Result<Arc<Inode<T>>> {
        let inode = self.inode(ino)?;
        match inode.kind {
            Kind::File | Kind::Dir => Ok(inode),
            _ => Err(Error::Layer { op: "flags of a special file", errno: Errno::NOTTY }),
        }
    }

    /// The rest first: what the filesystem refuses must not have changed anything.
    fn set_both(&self, ino: Ino, protattr: Protattr, rest: impl FnOnce(&T, &T::Node) -> plyfs_sys::Result<()>) -> Result<()> {
        let inode = self.flagged(ino)?;
        self.copy_up(&inode, Content::Whole)?;
        let layer = self.upper()?;
        let node = self.upper_node(&inode)?;
        rest(&layer.tree, node).attempt("set inode flags")?;
        self.mark_protattr(layer, node, protattr)?;
        inode.protection.set(protattr);
        self.tell(Event::Attributes(inode.ino));
        Ok(())
    }

    fn mark_protattr(&self, layer: &Layer<T>, node: &T::Node, protattr: Protattr) -> Result<()> {
        const NOWHERE: Error = Error::NotPermitted("an immutable or append-only object where there are no marks");
        match (plyfs_format::xattr_name(layer.dialect, MarkKind::Protattr), protattr.encode()) {
            (None, None) => Ok(()),
            (None, Some(_)) => Err(NOWHERE),
            (Some(name), Some(value)) => match layer.tree.set_xattr(node, name, value, XattrMode::Any) {
                Err(Errno::OPNOTSUPP) => Err(NOWHERE),
                other => other.attempt("write the protattr mark"),
            },
            (Some(name), None) => match layer.tree.remove_xattr(node, name) {
                Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
                other => other.attempt("remove the protattr mark"),
            },
        }
    }

    /// Takes the flags along that a copy-up keeps: the two of the union as a mark, and those that change how the file is written (as the kernel, `ovl_copy_fileattr`).
    pub(crate) fn copy_flags(&self, from: &T, lower: &T::Node, stat: &Stat, to: &T::Node) -> Result<()> {
        const COPIED: u32 = SYNC | NOATIME;
        if !matches!(stat.kind, Kind::File | Kind::Dir) {
            return Ok(());
        }
        let upper = self.upper()?;
        if own(stat) != Protattr::default() {
            self.mark_protattr(upper, to, own(stat))?;
        }
        let flags = match from.flags(lower) {
            Ok(flags) => flags & COPIED,
            Err(errno) if has_none(errno) => 0,
            Err(errno) => return Err(errno).attempt("read lower inode flags"),
        };
        if flags == 0 {
            return Ok(());
        }
        match upper.tree.flags(to).and_then(|own| upper.tree.set_flags(to, own | flags)) {
            Err(errno) if has_none(errno) => {
                tracing::debug!(%errno, "the upper filesystem does not take these inode flags");
                Ok(())
            }
            other => other.attempt("copy inode flags"),
        }
    }
}
