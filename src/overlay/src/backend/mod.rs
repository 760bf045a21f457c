//! One layer, in the shape of system calls: `Tree` reads, `UpperTree` also writes.
//!
//! A tree knows nothing of merging, whiteouts or marks; it names objects by (directory, name) or by a `Node` that it handed out. Errnos are the
//! host's, except that "not there" has a form of its own (`Ok(None)`), so that no other errno can be mistaken for it.

mod dir;
mod mem;

use std::fmt::Debug;

use plyfs_sys::at::SetTime;
use plyfs_sys::at::XattrMode;
use plyfs_sys::flags::Fsx;
use plyfs_sys::handle::FileHandle;
use plyfs_sys::stat::{Kind, Stat};
use plyfs_sys::statfs::StatFs;
use plyfs_sys::{Errno, Result};

pub(crate) use self::dir::{BOOT, INCOMPAT, VOLATILE, boot_id};
pub use self::dir::{DirTree, Keeping, LayerOpenError, check_overlap, recorded_dialect_of};
pub use self::mem::{MemFs, MemTree};
use crate::name::Name;

/// Which object of the host this is: `st_dev` and `st_ino`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId {
    /// `st_dev`.
    pub dev: u64,
    /// `st_ino`.
    pub ino: u64,
}

impl ObjectId {
    /// The identity in a `Stat`.
    pub fn of(stat: &Stat) -> Self {
        Self { dev: stat.dev, ino: stat.ino }
    }
}

/// An entry of a directory of one layer, as getdents64 gives it.
#[derive(Debug, Clone)]
pub struct RawEntry {
    /// The name. Not a `Name`: a damaged layer must not be able to make us fail here.
    pub name: Vec<u8>,
    /// `d_ino`.
    pub ino: u64,
    /// `d_type`, if the filesystem says.
    pub kind: Option<Kind>,
}

/// A handle of a file and the filesystem it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handle {
    /// UUID of the filesystem; zeros if it has none.
    pub uuid: [u8; 16],
    /// The handle itself.
    pub handle: FileHandle,
}

/// A way down from a layer's root.
pub type Trace = Vec<(Name, ObjectId)>;

/// Where to look for in a file: `SEEK_DATA` or `SEEK_HOLE` of lseek(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seek {
    /// The next byte of data.
    Data,
    /// The next hole.
    Hole,
}

/// Flags of renameat2(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Rename {
    /// Replaces what is at the target.
    #[default]
    Replace,
    /// `RENAME_NOREPLACE`: EEXIST if something is there.
    NoReplace,
    /// `RENAME_EXCHANGE`.
    Exchange,
    /// `RENAME_WHITEOUT`: a whiteout stays at the source; replaces what is at the target.
    Whiteout,
}

/// A place in a directory.
#[derive(Debug)]
pub struct Place<'a, N> {
    /// The directory.
    pub dir: &'a N,
    /// The name in it.
    pub name: &'a Name,
}

impl<N> Clone for Place<'_, N> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<N> Copy for Place<'_, N> {}

/// The read side of a layer.
pub trait Tree: Send + Sync + 'static {
    /// An object of this layer; stays usable while the object exists under the name that the tree knows, or is pinned.
    type Node: Clone + Debug + Send + Sync + 'static;
    /// An open regular file.
    type File: Send + Sync + 'static;

    /// The layer's root directory.
    fn root(&self) -> Self::Node;
    /// The object's identity; no system call.
    fn id(&self, node: &Self::Node) -> ObjectId;
    /// One name in one directory; `None` if it is not there (ENOENT, or ENAMETOOLONG: this filesystem cannot hold it).
    fn lookup(&self, dir: &Self::Node, name: &Name) -> Result<Option<(Self::Node, Stat)>>;
    /// Metadata; ESTALE if the name means another object by now.
    fn stat(&self, node: &Self::Node) -> Result<Stat>;
    /// Target of a symlink.
    fn readlink(&self, node: &Self::Node) -> Result<Vec<u8>>;
    /// All entries but `.` and `..`.
    fn read_dir(&self, dir: &Self::Node) -> Result<Vec<RawEntry>>;
    /// Value of an extended attribute; `None` if it is not there or the filesystem has none (ENODATA, EOPNOTSUPP).
    fn get_xattr(&self, node: &Self::Node, name: &[u8]) -> Result<Option<Vec<u8>>>;
    /// Names of the extended attributes; empty if the filesystem has none.
    fn list_xattr(&self, node: &Self::Node) -> Result<Vec<Vec<u8>>>;
    /// Opens a regular file for reading. Never called for another kind.
    fn open(&self, node: &Self::Node) -> Result<Self::File>;
    /// Reads until the buffer is full or the file ends.
    fn read(&self, file: &Self::File, buf: &mut [u8], offset: u64) -> Result<usize>;
    /// lseek(2) with SEEK_DATA or SEEK_HOLE; ENXIO past the end.
    fn seek(&self, file: &Self::File, offset: u64, what: Seek) -> Result<u64>;
    /// Metadata of an open file.
    fn stat_file(&self, file: &Self::File) -> Result<Stat>;
    /// statfs(2) of the layer.
    fn statfs(&self) -> Result<StatFs>;
    /// The inode flags (`FS_*_FL`) of a regular file or a directory. By default none are had: ENOTTY.
    fn flags(&self, _node: &Self::Node) -> Result<u32> {
        Err(Errno::NOTTY)
    }
    /// The flags in their other form (`struct fsxattr`).
    fn fsx(&self, _node: &Self::Node) -> Result<Fsx> {
        Err(Errno::NOTTY)
    }
    /// A persistent handle of an object; `None` where the filesystem has none.
    fn handle(&self, node: &Self::Node) -> Result<Option<Handle>>;
    /// Where a directory is: the names from the layer's root down to it, each with what it names. `None` for a handle that opens nothing, another kind, or a directory outside of
    /// the layer.
    fn trace(&self, handle: &Handle) -> Result<Option<Trace>>;
    /// Whether this process may open handles at all: not in a user namespace.
    fn opens_handles(&self) -> bool {
        true
    }
    /// The object behind a handle; `None` if it is of another filesystem, is gone, or handles may not be opened here.
    fn by_handle(&self, handle: &Handle) -> Result<Option<Stat>>;
}

/// The write side. Everything that lands under a user's name is made in `work` and moved, in one step.
pub trait UpperTree: Tree {
    /// The staging directory (`workdir/work`), on the same mount as the root.
    fn work(&self) -> Self::Node;
    /// The directory of copies of hard-linked lower objects (`workdir/index`), if this place can have one.
    fn index(&self) -> Option<Self::Node>;
    /// Creates a regular file exclusively, open for reading and writing.
    fn create(&self, at: Place<'_, Self::Node>, mode: u32) -> Result<(Self::Node, Self::File)>;
    /// Creates a regular file without a name (O_TMPFILE, mode 0600); `None` where the filesystem cannot.
    fn tmpfile(&self) -> Result<Option<(Self::Node, Self::File)>>;
    /// mkdirat(2).
    fn mkdir(&self, at: Place<'_, Self::Node>, mode: u32) -> Result<Self::Node>;
    /// mknodat(2): fifos, sockets, devices.
    fn mknod(&self, at: Place<'_, Self::Node>, kind: Kind, mode: u32, rdev: u64) -> Result<Self::Node>;
    /// symlinkat(2).
    fn symlink(&self, at: Place<'_, Self::Node>, target: &[u8]) -> Result<Self::Node>;
    /// A further name for an object (linkat(2)). An object without a name is known by this one from then on.
    fn link(&self, node: &Self::Node, at: Place<'_, Self::Node>) -> Result<()>;
    /// unlinkat(2) of a non-directory.
    fn unlink(&self, at: Place<'_, Self::Node>) -> Result<()>;
    /// unlinkat(2) of an empty directory.
    fn rmdir(&self, at: Place<'_, Self::Node>) -> Result<()>;
    /// renameat2(2). `moved` is the node at `from`; `other` the node at `to` for an exchange: both learn their new place.
    fn rename(
        &self,
        from: Place<'_, Self::Node>,
        moved: Option<&Self::Node>,
        to: Place<'_, Self::Node>,
        other: Option<&Self::Node>,
        how: Rename,
    ) -> Result<()>;
    /// Whether a file may stand for a device, fifo or socket: such an object takes more than one step to make.
    fn stands_in(&self) -> bool {
        false
    }
    /// Puts a whiteout at a free name (EEXIST otherwise).
    fn whiteout(&self, at: Place<'_, Self::Node>) -> Result<()>;
    /// Keeps the object reachable without its name `losing`, which is about to go; does nothing for what is known by another name. `false`: as many are kept as can be, and
    /// the caller must give it a name in `work` ([`UpperTree::known_by`]). Without `losing` it is kept in any case.
    fn pin(&self, node: &Self::Node, losing: Option<Place<'_, Self::Node>>) -> Result<bool>;
    /// The object is known by another of its names from now on. `own`: one in `work` that nobody else uses; it goes with the node.
    fn known_by(&self, node: &Self::Node, at: Place<'_, Self::Node>, own: bool);
    /// chown(2), not following.
    fn set_owner(&self, node: &Self::Node, uid: Option<u32>, gid: Option<u32>) -> Result<()>;
    /// chmod(2); `mode` is 07777 bits. Never called for a symlink.
    fn set_mode(&self, node: &Self::Node, mode: u32) -> Result<()>;
    /// utimensat(2), not following.
    fn set_times(&self, node: &Self::Node, atime: SetTime, mtime: SetTime) -> Result<()>;
    /// setxattr(2), any mode of existing.
    fn set_xattr(&self, node: &Self::Node, name: &[u8], value: &[u8], mode: XattrMode) -> Result<()>;
    /// removexattr(2); ENODATA if it is not there.
    fn remove_xattr(&self, node: &Self::Node, name: &[u8]) -> Result<()>;
    /// Sets all inode flags.
    fn set_flags(&self, _node: &Self::Node, _flags: u32) -> Result<()> {
        Err(Errno::NOTTY)
    }
    /// Sets the flags in their other form.
    fn set_fsx(&self, _node: &Self::Node, _fsx: &Fsx) -> Result<()> {
        Err(Errno::NOTTY)
    }
    /// Opens a regular file for reading and writing.
    fn open_write(&self, node: &Self::Node) -> Result<Self::File>;
    /// Writes all of it, or less at the first error after some bytes.
    fn write(&self, file: &Self::File, data: &[u8], offset: u64) -> Result<usize>;
    /// ftruncate(2).
    fn truncate(&self, file: &Self::File, len: u64) -> Result<()>;
    /// fallocate(2) with the kernel's mode bits.
    fn fallocate(&self, file: &Self::File, mode: i32, offset: u64, len: u64) -> Result<()>;
    /// fsync(2), or fdatasync(2).
    fn sync(&self, file: &Self::File, data_only: bool) -> Result<()>;
    /// fsync(2) of a directory.
    fn sync_dir(&self, dir: &Self::Node) -> Result<()>;
    /// copy_file_range(2) between files of this kind of tree.
    fn copy_range(&self, from: &Self::File, from_offset: u64, to: &Self::File, to_offset: u64, len: u64) -> Result<usize>;
    /// Fills the empty file `to` with the first `len` bytes of `from`: by reflink where it can, holes kept. Returns the bytes that it came to.
    fn copy_data(&self, from: &Self::File, to: &Self::File, len: u64) -> Result<u64>;
}
