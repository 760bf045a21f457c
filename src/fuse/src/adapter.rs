//! `Adapter`: one method a request, each the same shape: decode, span, call the union, reply.
//!
//! No method knows how anything is done; what is decided here is where it is done (on the request loop, or in the pool if it may take long; see
//! `request`) and what the kernel may believe of the answer.
//!
//! # Why nothing that is cached gets stale
//!
//! With timeouts of a day nothing may change that the kernel does not itself see change, or is not told of. The names are those of `fs/fuse`:
//!
//! | what changes | who forgets it |
//! | --- | --- |
//! | a name made: create, mkdir, mknod, symlink, link | the reply replaces the (negative) dentry; `fuse_dir_changed(dir)` drops the directory's attributes and, by the directory's iversion, its cached entries |
//! | a name removed: unlink, rmdir | `fuse_entry_unlinked` drops the dentry and counts nlink down, for the object's other names too; `fuse_dir_changed(dir)` |
//! | rename | `fuse_rename_common`: `fuse_dir_changed` of both, ctime of the moved, `fuse_entry_unlinked` of the replaced; an exchange: ctime of both |
//! | `..` by a rename to another directory | the next opendir of what was moved, which does not keep its cached entries |
//! | nlink and ctime by link | the reply carries the object's attributes |
//! | attributes by setattr | the reply carries them; a smaller size drops pages; ACLs are dropped (`forget_all_cached_acls`) |
//! | size and times by write, fallocate, copy_file_range, `O_TRUNC` | the kernel updates the size and invalidates the times (`FUSE_STATX_MODSIZE`) and the pages that it did not write itself |
//! | mode by write of somebody who may not keep setuid | the union's [`Event::Attributes`](plyfs_overlay::Event): the kernel invalidates times only |
//! | mode by an ACL, ctime by setxattr | `fuse_set_acl` drops ACLs and attributes, `fuse_setxattr` the ctime |
//! | atime by read, readlink, readdir that reached the union | `fuse_invalidate_atime`: the next stat asks, once |
//! | ctime, blocks and, of a hard link, nlink by a copy-up; ctime of the parents it copied up | the union's `Event::Attributes`; data, names, numbers, mode, owner and the other times are the same after it as before |
//! | a page of a file | nobody writes but through the kernel, which writes to the same pages: there is one node id for all names and before and after a copy-up |
//! | the target of a symbolic link | never, for one node id |
//!
//! An answer that was on its way while `Event::Attributes` was told is thrown away by the kernel (`attr_version`). An error is never cached, and
//! "not there" only as the union says it. With `lower=live` none of this holds for the lower layers; see [`ServeOptions::live`].

use std::cell::RefCell;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, INodeNo, InitFlags, IoctlFlags, KernelConfig,
    LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use plyfs_overlay::backend::UpperTree;
use plyfs_overlay::{Name, NewNode, Seek, SetAttr, Union};
use plyfs_sys::stat::Kind;

use crate::convert::{self, FlagRequest, decode, handle, ino};
use crate::counters::Op;
use crate::reply::{GENERATION, answer_empty, answer_xattr, count};
use crate::request::Adapter;
use crate::session::ServeOptions;

/// The longest request for data. 1 MiB is what the kernel takes at most unless an administrator raised `fs.fuse.max_pages_limit`.
const MAX_WRITE: u32 = 1 << 20;

/// Requests that nobody waits for (readahead, RELEASE) which the kernel has under way at once.
const MAX_BACKGROUND: u16 = 64;

/// The node id of an entry of READDIRPLUS that the kernel shall list and link to nothing. It means 0 for that, but fuser has one number for the node id and for
/// `d_ino`, and C libraries leave entries out whose `d_ino` is 0. The root is no entry of any directory (`invalid_nodeid`): the kernel gives the name to its caller, and
/// links nothing, and forgets the root once, which changes nothing.
const UNLINKED: u64 = INodeNo::ROOT.0;

thread_local! {
    /// For the data of READ, one a request loop; grows to what the kernel asks for, 1 MiB at most.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}
impl<T: UpperTree> Filesystem for Adapter<T> {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let offered = config.capabilities();
        let mut wanted = InitFlags::FUSE_ASYNC_READ
            | InitFlags::FUSE_BIG_WRITES
            | InitFlags::FUSE_MAX_PAGES
            // Look-ups and readdirs in one directory at once: the union's locks are its own.
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_ASYNC_DIO
            // Attributes with the entries when a directory is first read, and again only where they are asked for.
            | InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_READDIRPLUS_AUTO
            // Else open(O_TRUNC) comes as an open, which copies all data up, and a truncation.
            | InitFlags::FUSE_ATOMIC_O_TRUNC
            // The union applies the umask, because a default ACL overrules it.
            | InitFlags::FUSE_DONT_MASK
            // Else each write(2) asks for security.capability first.
            | InitFlags::FUSE_HANDLE_KILLPRIV_V2;
        wanted.set(InitFlags::FUSE_POSIX_ACL, self.options.acls);
        wanted.set(InitFlags::FUSE_CACHE_SYMLINKS, self.options.cache_symlinks);
        // On a mount that all changes go through, a changed mtime is our own doing and the pages are right.
        wanted.set(InitFlags::FUSE_AUTO_INVAL_DATA, self.options.auto_inval_data);
        // Not asked for, on purpose: WRITEBACK_CACHE (the kernel would own size and mtime), POSIX_LOCKS and FLOCK_LOCKS (the kernel's own are
        // right), EXPORT_SUPPORT (a node id that was forgotten cannot be found again), SETXATTR_EXT and ALLOW_IDMAP (fuser 0.18 cannot),
        // CREATE_SUPP_GROUP and SECURITY_CTX (fuser does not parse what they append), PASSTHROUGH (not yet).
        if let Err(refused) = config.add_capabilities(wanted & offered) {
            tracing::warn!(?refused, "the kernel takes back what it offered");
        }
        if let Err(nearest) = config.set_max_write(MAX_WRITE) {
            tracing::warn!(nearest, "the length of a write is refused");
        }
        if let Err(nearest) = config.set_max_background(MAX_BACKGROUND) {
            tracing::warn!(nearest, "the number of background requests is refused");
        }
        tracing::debug!(abi = %config.kernel_abi(), ?offered, missing = ?(wanted & !offered), "the kernel's offer");
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let span = self.begin(Op::Lookup, request, parent, Some(name));
        match self.inline(&span, |union| union.lookup(ino(parent), &decode(name)?)) {
            Ok(Some(attr)) => (self.answer_entry())(reply, Ok(attr)),
            // Node id 0 is "not there" that may be believed for a while; an ENOENT may not.
            Ok(None) => {
                let ServeOptions { negative_timeout, .. } = self.options;
                reply.entry_with_ttls(&Duration::ZERO, &negative_timeout, &convert::bare(0, Kind::File), GENERATION);
            }
            Err(errno) => reply.error(errno),
        }
    }

    // A batch comes as its single parts: fuser 0.18 does not export the type that `batch_forget` takes.
    fn forget(&self, request: &Request, inode: INodeNo, lookups: u64) {
        let span = self.begin(Op::Forget, request, inode, None);
        // Nobody waits for an answer; a panic is counted and logged inside.
        if self.told(&span, |union| union.forget(ino(inode), lookups)).is_err() {
            tracing::warn!(ino = inode.0, "an inode was not forgotten");
        }
    }

    fn getattr(&self, request: &Request, inode: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        let span = self.begin(Op::GetAttr, request, inode, None);
        (self.answer_attr())(reply, self.inline(&span, |union| union.getattr(ino(inode))));
    }

    fn setattr(
        &self,
        request: &Request,
        inode: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let span = self.begin(Op::SetAttr, request, inode, None);
        let (caller, fh) = (convert::caller(request), fh.map(handle));
        let set = SetAttr { mode, uid, gid, size, atime: convert::set_time(atime), mtime: convert::set_time(mtime) };
        let long = self.may_copy_up(&span, &[inode]);
        let answer = self.answer_attr();
        self.serve(span, long, move |union| union.setattr(&caller, ino(inode), fh, &set), |result| answer(reply, result));
    }

    fn readlink(&self, request: &Request, inode: INodeNo, reply: ReplyData) {
        let span = self.begin(Op::ReadLink, request, inode, None);
        match self.inline(&span, |union| union.readlink(ino(inode))) {
            Ok(target) => reply.data(&target),
            Err(errno) => reply.error(errno),
        }
    }

    fn mknod(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, rdev: u32, reply: ReplyEntry) {
        self.make(Op::MkNod, request, parent, name, convert::new_node(mode, rdev), mode, umask, reply);
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        self.make(Op::MkDir, request, parent, name, Some(NewNode::Dir), mode, umask, reply);
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let node = NewNode::Symlink(target.as_os_str().as_bytes().to_vec());
        self.make(Op::SymLink, request, parent, name, Some(node), 0o777, 0, reply);
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let span = self.begin(Op::Unlink, request, parent, Some(name));
        let name = decode(name);
        let long = self.may_copy_up(&span, &[parent]);
        self.serve(span, long, move |union| union.unlink(ino(parent), &name?), |result| answer_empty(reply, result));
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let span = self.begin(Op::RmDir, request, parent, Some(name));
        let name = decode(name);
        let long = self.may_copy_up(&span, &[parent]);
        self.serve(span, long, move |union| union.rmdir(ino(parent), &name?), |result| answer_empty(reply, result));
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let span = self.begin(Op::Rename, request, parent, Some(name));
        let mode = convert::rename_mode(convert::caller(request), flags);
        // What is moved is copied up with its data, and only its name is known here.
        let long = self.may_copy_up(&span, &[parent, new_parent])
            || self.name_may_copy_up(&span, parent, name)
            || (flags.contains(RenameFlags::RENAME_EXCHANGE) && self.name_may_copy_up(&span, new_parent, new_name));
        let (name, new_name) = (decode(name), decode(new_name));
        self.serve(
            span,
            long,
            move |union| {
                let mode = mode.ok_or(plyfs_overlay::Error::Invalid("flags of a rename"))?;
                union.rename(ino(parent), &name?, ino(new_parent), &new_name?, mode)
            },
            |result| answer_empty(reply, result),
        );
    }

    fn link(&self, request: &Request, inode: INodeNo, new_parent: INodeNo, new_name: &OsStr, reply: ReplyEntry) {
        let span = self.begin(Op::Link, request, inode, Some(new_name));
        let new_name = decode(new_name);
        let long = self.may_copy_up(&span, &[inode, new_parent]);
        let answer = self.answer_entry();
        self.serve(span, long, move |union| union.link(ino(inode), ino(new_parent), &new_name?), |result| answer(reply, result));
    }

    fn open(&self, request: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let span = self.begin(Op::Open, request, inode, None);
        let (caller, flags, reply_flags) = (convert::caller(request), convert::open_flags(flags.0), self.open_flags());
        let long = (flags.write || flags.truncate) && self.may_copy_up(&span, &[inode]);
        self.serve(
            span,
            long,
            move |union| union.open(&caller, ino(inode), flags),
            move |result| match result {
                Ok(handle) => reply.opened(FileHandle(handle.0), reply_flags),
                Err(errno) => reply.error(errno),
            },
        );
    }

    fn create(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, flags: i32, reply: ReplyCreate) {
        let span = self.begin(Op::Create, request, parent, Some(name));
        let (caller, name, reply_flags, timeout) = (convert::caller(request), decode(name), self.open_flags(), self.shorter_timeout());
        let (exclusive, flags) = (convert::exclusive(flags), convert::open_flags(flags));
        let long = self.may_copy_up(&span, &[parent]);
        self.serve(
            span,
            long,
            move |union| union.create(&caller, ino(parent), &name?, mode & 0o7777, umask, exclusive, flags),
            move |result| match result {
                Ok((attr, handle)) => reply.created(&timeout, &convert::entry(&attr), GENERATION, FileHandle(handle.0), reply_flags),
                Err(errno) => reply.error(errno),
            },
        );
    }

    fn read(
        &self,
        request: &Request,
        inode: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let span = self.begin(Op::Read, request, inode, None);
        BUFFER.with_borrow_mut(|buffer| {
            let size = size as usize;
            if buffer.len() < size {
                buffer.resize(size, 0);
            }
            let result = self.inline(&span, |union| union.read(handle(fh), offset, buffer.get_mut(..size).unwrap_or_default()));
            match result {
                Ok(length) => reply.data(buffer.get(..length).unwrap_or_default()),
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn write(
        &self,
        request: &Request,
        inode: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let span = self.begin(Op::Write, request, inode, None);
        let caller = convert::caller(request);
        let kill = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        match self.inline(&span, |union| union.write(&caller, handle(fh), offset, data, kill)) {
            Ok(written) => reply.written(count(written)),
            Err(errno) => reply.error(errno),
        }
    }

    fn flush(&self, request: &Request, inode: INodeNo, _fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        // Only kernels before 5.16, which do not know NOFLUSH, get here; told this once, they ask no more.
        self.refuse(Op::Flush, request, inode);
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        request: &Request,
        inode: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let span = self.begin(Op::Release, request, inode, None);
        answer_empty(reply, self.told(&span, |union| union.release(handle(fh))));
    }

    fn fsync(&self, request: &Request, inode: INodeNo, fh: FileHandle, data_only: bool, reply: ReplyEmpty) {
        let span = self.begin(Op::FSync, request, inode, None);
        self.serve(span, true, move |union| union.fsync(handle(fh), data_only), |result| answer_empty(reply, result));
    }

    fn opendir(&self, request: &Request, inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let span = self.begin(Op::OpenDir, request, inode, None);
        let opened = self.inline(&span, |union| Ok((union.opendir(ino(inode))?, union.may_keep_entries(ino(inode)))));
        match opened {
            Ok((handle, keep)) => {
                // CACHE_DIR fills the cache, KEEP_CACHE leaves it to the next opening.
                let mut flags = FopenFlags::empty();
                flags.set(FopenFlags::FOPEN_CACHE_DIR, self.options.cache_dir);
                flags.set(FopenFlags::FOPEN_KEEP_CACHE, self.options.cache_dir && keep);
                reply.opened(FileHandle(handle.0), flags);
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn readdir(&self, request: &Request, inode: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let span = self.begin(Op::ReadDir, request, inode, None);
        let result = self.inline(&span, |union| {
            union.readdir(handle(fh), offset, &mut |entry| {
                let full = reply.add(INodeNo(entry.ino.0), entry.cookie, convert::file_type(entry.kind), OsStr::from_bytes(entry.name));
                !full
            })
        });
        match result {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdirplus(&self, request: &Request, inode: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let span = self.begin(Op::ReadDirPlus, request, inode, None);
        let timeout = self.shorter_timeout();
        let result = self.inline(&span, |union| {
            union.readdir(handle(fh), offset, &mut |entry| {
                let name = OsStr::from_bytes(entry.name);
                let mut add = |attr: &fuser::FileAttr| !reply.add(attr.ino, entry.cookie, name, &timeout, attr, GENERATION);
                if entry.name == b"." || entry.name == b".." {
                    // The kernel takes d_ino and the type of these and counts nothing.
                    return add(&convert::bare(entry.ino.0, entry.kind));
                }
                match Name::new(entry.name).and_then(|name| union.lookup_entry(handle(fh), &name)) {
                    Ok(Some(attr)) => {
                        let added = add(&convert::entry(&attr));
                        if !added {
                            // The kernel does not hear of it, so it will not forget it.
                            union.forget(attr.node, 1);
                        }
                        added
                    }
                    // Removed since the directory was read; fuser has no number for an entry without attributes, and without one it is of no use.
                    Ok(None) => true,
                    // The listing does not fail for one object that cannot be looked at: its name shows, and whoever asks for more gets the error.
                    Err(error) => {
                        tracing::debug!(%error, name = %entry.name.escape_ascii(), "an entry without attributes");
                        add(&convert::bare(UNLINKED, entry.kind))
                    }
                }
            })
        });
        match result {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn releasedir(&self, request: &Request, inode: INodeNo, fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        let span = self.begin(Op::ReleaseDir, request, inode, None);
        answer_empty(reply, self.told(&span, |union| union.release(handle(fh))));
    }

    fn fsyncdir(&self, request: &Request, inode: INodeNo, fh: FileHandle, _data_only: bool, reply: ReplyEmpty) {
        let span = self.begin(Op::FSyncDir, request, inode, None);
        self.serve(span, true, move |union| union.fsyncdir(handle(fh)), |result| answer_empty(reply, result));
    }

    fn statfs(&self, request: &Request, inode: INodeNo, reply: ReplyStatfs) {
        let span = self.begin(Op::StatFs, request, inode, None);
        match self.inline(&span, Union::statfs) {
            Ok(s) => {
                let word = |value| u32::try_from(value).unwrap_or(u32::MAX);
                reply.statfs(s.blocks, s.bfree, s.bavail, s.files, s.ffree, word(s.bsize), word(s.namelen), word(s.frsize));
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn setxattr(&self, request: &Request, inode: INodeNo, name: &OsStr, value: &[u8], flags: i32, _position: u32, reply: ReplyEmpty) {
        let span = self.begin(Op::SetXattr, request, inode, Some(name));
        let (caller, name, value, mode) = (convert::caller(request), name.as_bytes().to_vec(), value.to_vec(), convert::xattr_mode(flags));
        let long = self.may_copy_up(&span, &[inode]);
        self.serve(
            span,
            long,
            move |union| {
                let mode = mode.ok_or(plyfs_overlay::Error::Invalid("flags of setxattr"))?;
                union.setxattr(&caller, ino(inode), &name, &value, mode)
            },
            |result| answer_empty(reply, result),
        );
    }

    fn getxattr(&self, request: &Request, inode: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let span = self.begin(Op::GetXattr, request, inode, Some(name));
        answer_xattr(reply, size, self.inline(&span, |union| union.getxattr(ino(inode), name.as_bytes())));
    }

    fn listxattr(&self, request: &Request, inode: INodeNo, size: u32, reply: ReplyXattr) {
        let span = self.begin(Op::ListXattr, request, inode, None);
        answer_xattr(reply, size, self.inline(&span, |union| Ok(convert::name_list(&union.listxattr(ino(inode))?))));
    }

    fn removexattr(&self, request: &Request, inode: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let span = self.begin(Op::RemoveXattr, request, inode, Some(name));
        let name = name.as_bytes().to_vec();
        let long = self.may_copy_up(&span, &[inode]);
        self.serve(span, long, move |union| union.removexattr(ino(inode), &name), |result| answer_empty(reply, result));
    }

    fn access(&self, request: &Request, inode: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        // default_permissions answers in the kernel.
        self.refuse(Op::Access, request, inode);
        reply.error(Errno::ENOSYS);
    }

    fn getlk(
        &self,
        request: &Request,
        inode: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        _start: u64,
        _end: u64,
        _typ: i32,
        _pid: u32,
        reply: ReplyLock,
    ) {
        // Locks are the kernel's own; see `init`.
        self.refuse(Op::Lock, request, inode);
        reply.error(Errno::ENOSYS);
    }

    fn setlk(
        &self,
        request: &Request,
        inode: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        _start: u64,
        _end: u64,
        _typ: i32,
        _pid: u32,
        _sleep: bool,
        reply: ReplyEmpty,
    ) {
        self.refuse(Op::Lock, request, inode);
        reply.error(Errno::ENOSYS);
    }

    fn bmap(&self, request: &Request, inode: INodeNo, _blocksize: u32, _idx: u64, reply: ReplyBmap) {
        self.refuse(Op::BMap, request, inode);
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        request: &Request,
        inode: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        cmd: u32,
        in_data: &[u8],
        out_size: u32,
        reply: ReplyIoctl,
    ) {
        let Some(flags) = convert::flag_request(cmd, in_data) else {
            self.refuse(Op::IoCtl, request, inode);
            return reply.error(Errno::ENOTTY);
        };
        // Only the kernel asks so, for chattr(1) and its like; it has checked who may (`fuse_fileattr_get`, `fuse_fileattr_set`).
        let span = self.begin(Op::IoCtl, request, inode, None);
        let long = flags.changes() && self.may_copy_up(&span, &[inode]);
        self.serve(
            span,
            long,
            move |union| match flags {
                FlagRequest::Get => union.flags(ino(inode)).map(|flags| flags.to_ne_bytes().to_vec()),
                FlagRequest::Set(flags) => union.set_flags(ino(inode), flags).map(|()| Vec::new()),
                FlagRequest::GetExtended => union.fsx(ino(inode)).map(|fsx| fsx.to_bytes().to_vec()),
                FlagRequest::SetExtended(fsx) => union.set_fsx(ino(inode), &fsx).map(|()| Vec::new()),
            },
            // The kernel takes no other length than the one it asked for.
            move |result| match result {
                Ok(data) if data.len() == out_size as usize => reply.ioctl(0, &data),
                Ok(_) => reply.error(Errno::EINVAL),
                Err(errno) => reply.error(errno),
            },
        );
    }

    fn poll(
        &self,
        request: &Request,
        inode: INodeNo,
        _fh: FileHandle,
        _notifier: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        // Told this once, the kernel answers for regular files itself: always ready.
        self.refuse(Op::Poll, request, inode);
        reply.error(Errno::ENOSYS);
    }

    fn fallocate(&self, request: &Request, inode: INodeNo, fh: FileHandle, offset: u64, length: u64, mode: i32, reply: ReplyEmpty) {
        let span = self.begin(Op::FAllocate, request, inode, None);
        let caller = convert::caller(request);
        self.serve(
            span,
            true,
            move |union| union.fallocate(&caller, handle(fh), mode, offset, length),
            |result| answer_empty(reply, result),
        );
    }

    fn lseek(&self, request: &Request, inode: INodeNo, fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        const SEEK_DATA: i32 = 3;
        const SEEK_HOLE: i32 = 4;
        let span = self.begin(Op::LSeek, request, inode, None);
        let result = self.inline(&span, |union| {
            let what = match whence {
                SEEK_DATA => Seek::Data,
                SEEK_HOLE => Seek::Hole,
                _ => return Err(plyfs_overlay::Error::Invalid("lseek for neither data nor a hole")),
            };
            // Before the file is ENXIO, as behind its end.
            let offset = u64::try_from(offset).unwrap_or(u64::MAX);
            union.lseek(handle(fh), offset, what)
        });
        match result.and_then(|offset| i64::try_from(offset).map_err(|_| Errno::EOVERFLOW)) {
            Ok(offset) => reply.offset(offset),
            Err(errno) => reply.error(errno),
        }
    }

    fn copy_file_range(
        &self,
        request: &Request,
        ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        _ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let span = self.begin(Op::CopyFileRange, request, ino_in, None);
        let caller = convert::caller(request);
        // The reply counts in 32 bits.
        let len = len.min(u64::from(u32::MAX));
        self.serve(
            span,
            true,
            move |union| union.copy_file_range(&caller, handle(fh_in), offset_in, handle(fh_out), offset_out, len),
            |result| match result {
                Ok(copied) => reply.written(count(copied)),
                Err(errno) => reply.error(errno),
            },
        );
    }
}
