//! `Slow`: a filesystem whose reads wait until they are let go, so that a copy-up from it takes as long as a test wants.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, LockOwner, OpenFlags, ReplyAttr, ReplyData,
    ReplyDirectory, ReplyEntry, Request, Session, SessionACL,
};
use plyfs_sys::mount::{fuse_mount, move_mount_path, umount};

use crate::lab::fuse_options;

/// The size of each file.
pub(crate) const SIZE: usize = 64 << 10;
const TTL: Duration = Duration::from_secs(3600);

#[derive(Default)]
struct State {
    open: bool,
    waiting: Vec<(u64, ReplyData, usize)>,
}

struct Files {
    count: u64,
    state: Arc<Mutex<State>>,
}

/// A mount of files `f0`, `f1`, ... full of `s`; unmounted when dropped.
pub(crate) struct Slow {
    state: Arc<Mutex<State>>,
    path: std::path::PathBuf,
    thread: Option<JoinHandle<()>>,
}

impl Slow {
    pub(crate) fn mount(path: &Path, count: u64) -> Slow {
        let state = Arc::new(Mutex::new(State::default()));
        let (device, mount) = fuse_mount(&fuse_options()).unwrap();
        let mut config = Config::default();
        config.n_threads = Some(2);
        let session = Session::from_fd(Files { count, state: state.clone() }, device, SessionACL::All, config).unwrap();
        let thread = thread::spawn(move || session.run().unwrap());
        move_mount_path(std::os::fd::AsFd::as_fd(&mount), path).unwrap();
        Slow { state, path: path.to_owned(), thread: Some(thread) }
    }

    /// How many files are being read and wait.
    pub(crate) fn waiting(&self) -> usize {
        self.state.lock().unwrap().waiting.iter().map(|(ino, ..)| *ino).collect::<BTreeSet<_>>().len()
    }

    /// Answers all reads, now and later.
    pub(crate) fn release(&self) {
        let mut state = self.state.lock().unwrap();
        state.open = true;
        for (_, reply, size) in state.waiting.drain(..) {
            reply.data(&vec![b's'; size]);
        }
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        self.release();
        if let Err(error) = umount(&self.path, true) {
            eprintln!("{}: {error}", self.path.display());
        }
        // Lazily unmounted: it ends when the layer made of it is dropped, which may be after this.
        drop(self.thread.take());
    }
}

impl Files {
    fn attr(&self, ino: u64) -> Option<FileAttr> {
        let (kind, size) = match ino {
            1 => (FileType::Directory, 0),
            ino if ino < self.count + 2 => (FileType::RegularFile, SIZE as u64),
            _ => return None,
        };
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        Some(FileAttr {
            ino: INodeNo(ino),
            size,
            blocks: size / 512,
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind,
            perm: 0o755,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }
}

impl Filesystem for Files {
    fn lookup(&self, _request: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let number = name.to_str().and_then(|name| name.strip_prefix('f')).and_then(|number| number.parse::<u64>().ok());
        match number.and_then(|number| self.attr(number + 2)) {
            Some(attr) => reply.entry(&TTL, &attr, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.attr(ino.0) {
            Some(attr) => reply.attr(&TTL, &attr),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn read(
        &self,
        _request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let size = (size as usize).min(SIZE.saturating_sub(offset as usize));
        let mut state = self.state.lock().unwrap();
        if state.open {
            reply.data(&vec![b's'; size]);
        } else {
            state.waiting.push((ino.0, reply, size));
        }
    }

    fn readdir(&self, _request: &Request, _ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        for at in offset..self.count {
            if reply.add(INodeNo(at + 2), at + 1, FileType::RegularFile, format!("f{at}")) {
                break;
            }
        }
        reply.ok();
    }
}
