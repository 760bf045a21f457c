//! Open files and directories: handles.
//!
//! A handle that was opened on a lower file switches once to the upper file when the inode has been copied up, so that a read-only descriptor sees what later
//! writers write, and never a mixture. The daemon's own descriptor is never O_APPEND, O_TRUNC or O_CREAT: the kernel tells the offset of each write.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use dashmap::DashMap;
use parking_lot::RwLock;
use plyfs_sys::stat::Kind;

use crate::backend::{Seek, Tree, UpperTree};
use crate::copy_up::Content;
use crate::error::{Attempt, Error, Result};
use crate::ino::Ino;
use crate::inode::Inode;
use crate::sync::{AtomicBool, AtomicU64};
use crate::union::{Caller, Union};

/// A handle that the kernel gives back with each request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HandleId(pub u64);

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OpenFlags {
    /// For reading.
    pub read: bool,
    /// For writing.
    pub write: bool,
    /// O_TRUNC; also without `write`, as Linux has it.
    pub truncate: bool,
    /// O_APPEND: only what is append-only cares.
    pub append: bool,
    /// To be executed (the kernel's `__FMODE_EXEC`).
    pub exec: bool,
}

pub(crate) enum Handle<T: Tree> {
    File {
        inode: Arc<Inode<T>>,
        file: RwLock<Arc<T::File>>,
        on_upper: AtomicBool,
        writable: bool,
        exec: bool,
    },
    /// `end`: the cookie before which the reading that is under way ends; 0 before the first one.
    Dir {
        inode: Arc<Inode<T>>,
        end: AtomicU64,
    },
}

/// The open handles.
pub(crate) struct Handles<T: Tree> {
    open: DashMap<HandleId, Arc<Handle<T>>>,
    next: AtomicU64,
}

impl<T: Tree> Default for Handles<T> {
    fn default() -> Self {
        Self { open: DashMap::new(), next: AtomicU64::new(1) }
    }
}

/// The file that a handle means now; whether it is on the upper layer.
type Current<T> = (Arc<Inode<T>>, Arc<<T as Tree>::File>, bool);
/// An inode and its file, on the upper layer.
type Writable<T> = (Arc<Inode<T>>, Arc<<T as Tree>::File>);

impl<T: UpperTree> Handles<T> {
    fn insert(&self, handle: Handle<T>) -> HandleId {
        let id = HandleId(self.next.fetch_add(1, Ordering::Relaxed));
        self.open.insert(id, Arc::new(handle));
        id
    }

    pub(crate) fn insert_file(&self, inode: Arc<Inode<T>>, file: T::File, on_upper: bool) -> HandleId {
        self.insert(Handle::File {
            inode,
            file: RwLock::new(Arc::new(file)),
            on_upper: AtomicBool::new(on_upper),
            writable: on_upper,
            exec: false,
        })
    }

    fn insert_reader(&self, inode: Arc<Inode<T>>, file: T::File, on_upper: bool, exec: bool) -> HandleId {
        if exec {
            inode.executed.fetch_add(1, Ordering::Relaxed);
        }
        self.insert(Handle::File { inode, file: RwLock::new(Arc::new(file)), on_upper: AtomicBool::new(on_upper), writable: false, exec })
    }

    pub(crate) fn insert_dir(&self, inode: Arc<Inode<T>>) -> HandleId {
        self.insert(Handle::Dir { inode, end: AtomicU64::new(0) })
    }

    /// Cloned out of its shard: no shard is held across a system call.
    pub(crate) fn get(&self, id: HandleId) -> Result<Arc<Handle<T>>> {
        self.open.get(&id).map(|handle| handle.clone()).ok_or(Error::BadHandle)
    }

    pub(crate) fn dir(&self, id: HandleId) -> Result<Arc<Inode<T>>> {
        match &*self.get(id)? {
            Handle::Dir { inode, .. } => Ok(inode.clone()),
            Handle::File { .. } => Err(Error::BadHandle),
        }
    }

    /// Whether the handle's file was opened on the upper for writing.
    pub(crate) fn writable(&self, id: HandleId) -> Result<bool> {
        Ok(matches!(&*self.get(id)?, Handle::File { writable: true, .. }))
    }

    /// The file to use now, and its inode.
    fn current(&self, union: &Union<T>, id: HandleId) -> Result<Current<T>> {
        let handle = self.get(id)?;
        let Handle::File { inode, file, on_upper, .. } = &*handle else { return Err(Error::BadHandle) };
        // Not for the metacopy of a file: its data comes later.
        if !on_upper.load(Ordering::Acquire)
            && let Some(node) = inode.upper_with_data()
        {
            // By the published object, never by the name that was opened. Two readers may both open it; the second one wins, and both are right.
            let opened = union.upper()?.tree.open(node).attempt("reopen on the upper layer")?;
            let lower = std::mem::replace(&mut *file.write(), Arc::new(opened));
            on_upper.store(true, Ordering::Release);
            drop(lower);
        }
        let on_upper = on_upper.load(Ordering::Acquire);
        let file = file.read().clone();
        Ok((inode.clone(), file, on_upper))
    }

    pub(crate) fn with_file<R>(&self, union: &Union<T>, id: HandleId, call: impl FnOnce(&T::File) -> R) -> Result<R> {
        let (_inode, file, _) = self.current(union, id)?;
        Ok(call(&file))
    }

    fn remove(&self, id: HandleId) -> Option<Arc<Handle<T>>> {
        let (_, handle) = self.open.remove(&id)?;
        if let Handle::File { inode, exec: true, .. } = &*handle {
            inode.executed.fetch_sub(1, Ordering::Relaxed);
        }
        Some(handle)
    }

    pub(crate) fn clear(&self) {
        let open: Vec<_> = self.open.iter().map(|entry| *entry.key()).collect();
        for id in open {
            drop(self.remove(id));
        }
    }
}

impl<T: UpperTree> Union<T> {
    /// Opens a regular file. Writing copies it up first; truncation copies it up without its data.
    ///
    /// Errors: EISDIR; EINVAL for what is no regular file (the kernel opens fifos and devices itself); EROFS; ETXTBSY for a truncation of what is being executed; the layers' errors.
    pub fn open(&self, caller: &Caller, ino: Ino, flags: OpenFlags) -> Result<HandleId> {
        let inode = self.inode(ino)?;
        match inode.kind {
            Kind::File => {}
            Kind::Dir => return Err(Error::IsDir),
            _ => return Err(Error::Invalid("open of a special file")),
        }
        if flags.truncate && !flags.write && inode.executed.load(Ordering::Relaxed) > 0 {
            // For O_RDONLY|O_TRUNC the kernel asks for the truncation before it looks whether the file is being executed.
            return Err(Error::TextBusy);
        }
        if flags.write || flags.truncate {
            self.may_write(&inode, flags.append, flags.truncate)?;
            return self.open_write(caller, inode, flags.truncate);
        }
        if self.has_no_data(&inode)? {
            return Err(Error::Damaged("the data of a file whose mark is not honoured".to_owned()));
        }
        let (layer, node, on_upper) = self.data_of(&inode)?;
        let file = layer.tree.open(node).attempt("open")?;
        Ok(self.handles.insert_reader(inode, file, on_upper, flags.exec))
    }

    fn open_write(&self, caller: &Caller, inode: Arc<Inode<T>>, truncate: bool) -> Result<HandleId> {
        let content = if truncate { Content::Empty } else { Content::Whole };
        if truncate {
            self.drop_before_emptying(caller, &inode)?;
        }
        // The file comes open from its own copy-up: after an empty copy was committed, nothing may fail for want of a descriptor.
        let file = match self.copy_up(&inode, content)? {
            Some(file) => file,
            None => {
                let tree = &self.upper()?.tree;
                let file = tree.open_write(self.upper_node(&inode)?).attempt("open for writing")?;
                if truncate {
                    tree.truncate(&file, 0).attempt("truncate")?;
                }
                file
            }
        };
        Ok(self.handles.insert_file(inode, file, true))
    }

    /// Reads until the buffer is full or the file ends; returns the bytes read.
    ///
    /// Errors: EBADF; the layers' errors.
    pub fn read(&self, handle: HandleId, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let (inode, file, on_upper) = self.handles.current(self, handle)?;
        self.tree_of(&inode, on_upper)?.read(&file, buf, offset).attempt("read")
    }

    /// The tree that a handle's file is of.
    fn tree_of<'a>(&'a self, inode: &Inode<T>, on_upper: bool) -> Result<&'a T> {
        if on_upper {
            return Ok(&self.upper()?.tree);
        }
        let lower = self.lower_data(inode)?.ok_or(Error::Stale("a handle on no layer"))?;
        Ok(&self.lower_layer(lower.layer)?.tree)
    }

    fn for_writing(&self, handle: HandleId) -> Result<Writable<T>> {
        if !self.handles.writable(handle)? {
            return Err(Error::BadHandle);
        }
        let (inode, file, _) = self.handles.current(self, handle)?;
        Ok((inode, file))
    }

    /// Writes at an offset; returns the bytes written. `kill_setid`: the kernel asks for setuid and setgid to go.
    ///
    /// Errors: EBADF for a handle that is not open for writing; the upper's errors, if nothing was written.
    pub fn write(&self, caller: &Caller, handle: HandleId, offset: u64, data: &[u8], kill_setid: bool) -> Result<usize> {
        let (inode, file) = self.for_writing(handle)?;
        if kill_setid {
            self.drop_privileges(caller, &inode, true)?;
        }
        self.upper()?.tree.write(&file, data, offset).attempt("write")
    }

    /// fsync(2) or fdatasync(2). A file that was never copied up has nothing to write; of a metacopy that is the metadata. A volatile upper waits for nothing.
    ///
    /// Errors: EBADF; the upper's errors.
    pub fn fsync(&self, handle: HandleId, data_only: bool) -> Result<()> {
        let (inode, file, on_upper) = self.handles.current(self, handle)?;
        if self.behaviour.volatile {
            return Ok(());
        }
        if on_upper {
            return self.upper()?.tree.sync(&file, data_only).attempt("fsync");
        }
        let Some(node) = inode.upper.get() else { return Ok(()) };
        let tree = &self.upper()?.tree;
        let file = tree.open(node).attempt("open a metacopy")?;
        tree.sync(&file, data_only).attempt("fsync a metacopy")
    }

    /// fsync(2) of a directory, as [`Union::fsync`].
    ///
    /// Errors: EBADF; the upper's errors.
    pub fn fsyncdir(&self, handle: HandleId) -> Result<()> {
        let dir = self.handles.dir(handle)?;
        match dir.upper.get() {
            Some(_) if self.behaviour.volatile => Ok(()),
            Some(node) => self.upper()?.tree.sync_dir(node).attempt("fsync a directory"),
            None => Ok(()),
        }
    }

    /// fallocate(2) with the kernel's mode bits.
    ///
    /// Errors: EBADF; EOPNOTSUPP for a mode that the upper's filesystem does not have; the upper's errors.
    pub fn fallocate(&self, caller: &Caller, handle: HandleId, mode: i32, offset: u64, len: u64) -> Result<()> {
        let (inode, file) = self.for_writing(handle)?;
        self.may_allocate(&inode, mode)?;
        self.drop_privileges(caller, &inode, false)?;
        self.upper()?.tree.fallocate(&file, mode, offset, len).attempt("fallocate")
    }

    /// lseek(2) with SEEK_DATA or SEEK_HOLE.
    ///
    /// Errors: EBADF; ENXIO past the end; the layers' errors.
    pub fn lseek(&self, handle: HandleId, offset: u64, what: Seek) -> Result<u64> {
        let (inode, file, on_upper) = self.handles.current(self, handle)?;
        self.tree_of(&inode, on_upper)?.seek(&file, offset, what).attempt("lseek")
    }

    /// copy_file_range(2) between two open files of the union; returns the bytes copied.
    ///
    /// Errors: EBADF; the layers' errors.
    pub fn copy_file_range(
        &self,
        caller: &Caller,
        from: HandleId,
        from_offset: u64,
        to: HandleId,
        to_offset: u64,
        len: u64,
    ) -> Result<usize> {
        let (inode, target) = self.for_writing(to)?;
        self.may_write(&inode, true, false)?;
        let (_, source, _) = self.handles.current(self, from)?;
        self.drop_privileges(caller, &inode, false)?;
        self.upper()?.tree.copy_range(&source, from_offset, &target, to_offset, len).attempt("copy_file_range")
    }

    /// Closes a handle of a file or a directory. Unknown handles are not an error: the kernel asks once and cannot do anything about it.
    pub fn release(&self, handle: HandleId) {
        let Some(gone) = self.handles.remove(handle) else {
            tracing::warn!(handle = handle.0, "release of an unknown handle");
            return;
        };
        if let Handle::Dir { inode, .. } = &*gone
            && let Err(error) = self.closedir(inode)
        {
            tracing::warn!(%error, "closing a directory");
        }
    }
}
