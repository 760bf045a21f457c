//! A real directory as a system under test, through system calls: a plain one (the POSIX oracle proper) or a kernel mount.
//!
//! Symlinks are followed nowhere. Fifos are not opened; ENXIO is the word for it, as in the other systems.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::fs::Permissions;
use std::io::Error;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path as FsPath, PathBuf};

use plyfs_sys::Errno;
use plyfs_sys::stat::Kind;
use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, SeekFrom, XattrFlags};

use crate::case::{How, Move, Name, Op, Path, SLOTS};
use crate::divergences;
use crate::reference::{Outcome, Reply};
use crate::system::System;
use crate::union::Again;
use crate::view::{Object, SET, View, show};

struct Slot {
    fd: OwnedFd,
    path_only: bool,
    write: bool,
    kind: Kind,
}

/// Takes the filesystem away and brings it back.
type Hook = Box<dyn FnMut(Again)>;

pub(crate) struct Plain {
    name: &'static str,
    root: PathBuf,
    slots: [Option<Slot>; SLOTS],
    again: Option<Hook>,
}

/// An object by name in a directory, or by a descriptor.
enum At {
    Name(OwnedFd, Name),
    Held(OwnedFd),
}

impl At {
    /// A path for calls that know no descriptors.
    fn path(&self) -> PathBuf {
        match self {
            Self::Name(dir, name) => PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(OsStr::from_bytes(name)),
            Self::Held(fd) => PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd())),
        }
    }

    fn args(&self) -> (&OwnedFd, &[u8], AtFlags) {
        match self {
            Self::Name(dir, name) => (dir, name, AtFlags::SYMLINK_NOFOLLOW),
            Self::Held(fd) => (fd, b"", AtFlags::EMPTY_PATH),
        }
    }

    fn kind(&self) -> Result<Kind, Errno> {
        let (fd, name, flags) = self.args();
        let stat = rustix::fs::statat(fd, name, flags)?;
        Ok(Kind::from_mode(stat.st_mode).unwrap())
    }

    fn open(&self, flags: OFlags) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NONBLOCK;
        match self {
            Self::Name(dir, name) => rustix::fs::openat(dir, &name[..], flags | OFlags::NOFOLLOW, Mode::empty()),
            Self::Held(_) if self.kind()? == Kind::Symlink => Err(Errno::LOOP),
            Self::Held(_) => rustix::fs::open(self.path(), flags, Mode::empty()),
        }
    }
}

fn errno(error: &Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

fn walk_flags() -> OFlags {
    OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

/// Gives an object, be it only held by O_PATH, the time of modification back that `before` tells.
fn keep_mtime(fd: &OwnedFd, before: &rustix::fs::Stat) -> Result<(), Errno> {
    let mtime = rustix::fs::Timespec { tv_sec: before.st_mtime, tv_nsec: rustix::fs::Nsecs::try_from(before.st_mtime_nsec).unwrap() };
    let omit = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
    let times = rustix::fs::Timestamps { last_access: omit, last_modification: mtime };
    rustix::fs::utimensat(rustix::fs::CWD, format!("/proc/self/fd/{}", fd.as_raw_fd()), &times, AtFlags::empty())
}

impl Plain {
    pub(crate) fn new(name: &'static str, root: &FsPath, again: Option<Hook>) -> Self {
        rustix::process::umask(Mode::empty());
        Self { name, root: root.to_owned(), slots: Default::default(), again }
    }

    fn base(&self, path: &Path) -> Result<OwnedFd, Errno> {
        match path.base {
            None => rustix::fs::open(&self.root, walk_flags(), Mode::empty()),
            Some(slot) => Ok(self.slots[slot].as_ref().ok_or(Errno::BADF)?.fd.try_clone().unwrap()),
        }
    }

    fn parent(&self, path: &Path) -> Result<(OwnedFd, Name), Errno> {
        let (last, above) = path.names.split_last().ok_or(Errno::EXIST)?;
        let mut at = self.base(path)?;
        for name in above {
            at = rustix::fs::openat(&at, &name[..], walk_flags(), Mode::empty())?;
        }
        if Kind::from_mode(rustix::fs::fstat(&at)?.st_mode) != Some(Kind::Dir) {
            return Err(Errno::NOTDIR);
        }
        Ok((at, last.clone()))
    }

    fn find(&self, path: &Path) -> Result<At, Errno> {
        if path.names.is_empty() {
            return self.base(path).map(At::Held);
        }
        let (dir, name) = self.parent(path)?;
        let at = At::Name(dir, name);
        at.kind()?;
        Ok(at)
    }

    fn fill(&mut self, slot: usize, fd: OwnedFd, path_only: bool, write: bool) {
        let kind = Kind::from_mode(rustix::fs::fstat(&fd).unwrap().st_mode).unwrap();
        self.slots[slot] = Some(Slot { fd, path_only, write, kind });
    }

    fn open_for_write(&self, at: &Path) -> Result<OwnedFd, Errno> {
        let at = self.find(at)?;
        if matches!(at.kind()?, Kind::Fifo | Kind::Socket | Kind::Char | Kind::Block) {
            return Err(Errno::NXIO);
        }
        self.open_quietly(&at, OFlags::WRONLY)
    }

    /// open(2), which without O_TRUNC changes no time of modification: a filesystem that may do so has it put back.
    fn open_quietly(&self, at: &At, flags: OFlags) -> Result<OwnedFd, Errno> {
        if flags.contains(OFlags::TRUNC) || !divergences::opens_with_a_new_mtime(self.name) {
            return at.open(flags);
        }
        let (fd, name, follow) = at.args();
        let before = rustix::fs::statat(fd, name, follow)?;
        let opened = at.open(flags)?;
        let after = rustix::fs::fstat(&opened)?;
        if (before.st_mtime, before.st_mtime_nsec) != (after.st_mtime, after.st_mtime_nsec) {
            keep_mtime(&opened, &before)?;
        }
        Ok(opened)
    }

    /// The names in an open directory, sorted, without the dots.
    fn names(&self, fd: &OwnedFd) -> Result<Vec<Name>, Errno> {
        rustix::fs::seek(fd, SeekFrom::Start(0))?;
        let mut names = Vec::new();
        let mut buffer = Vec::with_capacity(8192);
        let mut dir = rustix::fs::RawDir::new(fd, buffer.spare_capacity_mut());
        while let Some(entry) = dir.next() {
            names.push(CString::from(entry?.file_name()).into_bytes());
        }
        names.retain(|name| name != b"." && name != b"..");
        if divergences::lists_stray_whiteouts(self.name) {
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            names.retain(|name| !matches!(rustix::fs::statat(fd, &name[..], flags), Err(Errno::NOENT)));
        }
        names.sort();
        Ok(names)
    }

    fn run(&mut self, op: &Op) -> Outcome {
        match op {
            Op::Create { at, mode, excl, trunc, slot } => {
                let (dir, name) = self.parent(at)?;
                let mut flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let there = At::Name(dir.try_clone().unwrap(), name.clone());
                match there.kind() {
                    Ok(Kind::Fifo | Kind::Char) if !excl => return Err(Errno::NXIO),
                    // Without O_CREAT: in directories like /tmp that would be up to the sysctls fs.protected_*.
                    Ok(Kind::File | Kind::Symlink) if !excl => {}
                    _ => flags |= OFlags::CREATE,
                }
                flags.set(OFlags::EXCL, *excl);
                flags.set(OFlags::TRUNC, *trunc);
                let fd = if flags.contains(OFlags::CREATE) {
                    rustix::fs::openat(&dir, &name[..], flags, Mode::from_raw_mode(*mode))?
                } else {
                    self.open_quietly(&there, flags)?
                };
                if let Some(slot) = slot {
                    self.fill(*slot, fd, false, true);
                }
            }
            Op::Open { at, write, trunc, slot } => {
                let at = self.find(at)?;
                if matches!(at.kind()?, Kind::Fifo | Kind::Char) {
                    return Err(Errno::NXIO);
                }
                let mut flags = if *write { OFlags::RDWR } else { OFlags::RDONLY };
                flags.set(OFlags::TRUNC, *trunc);
                let fd = self.open_quietly(&at, flags)?;
                self.fill(*slot, fd, false, *write);
            }
            Op::Hold { at, slot } => {
                let fd = match self.find(at)? {
                    At::Name(dir, name) => {
                        rustix::fs::openat(&dir, &name[..], OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?
                    }
                    At::Held(fd) => fd,
                };
                self.fill(*slot, fd, true, false);
            }
            Op::Close { slot } => drop(self.slots[*slot].take().ok_or(Errno::BADF)?),
            Op::Read { slot, offset, len } => {
                let slot = self.slots[*slot].as_ref().ok_or(Errno::BADF)?;
                let mut data = vec![0; *len];
                if slot.path_only {
                    return Err(Errno::BADF);
                }
                let got = rustix::io::pread(&slot.fd, &mut data[..], *offset)?;
                data.truncate(got);
                return Ok(Reply::Data(data));
            }
            Op::Write { slot, offset, data } => {
                let slot = self.slots[*slot].as_ref().ok_or(Errno::BADF)?;
                assert_eq!(rustix::io::pwrite(&slot.fd, data, *offset)?, data.len());
            }
            Op::Ftruncate { slot, len } => {
                let slot = self.slots[*slot].as_ref().ok_or(Errno::BADF)?;
                let same = rustix::fs::fstat(&slot.fd)?.st_size == i64::try_from(*len).unwrap();
                if !(slot.write && same) {
                    rustix::fs::ftruncate(&slot.fd, *len)?;
                }
            }
            Op::WriteAt { at, offset, data } => {
                let fd = self.open_for_write(at)?;
                assert_eq!(rustix::io::pwrite(&fd, data, *offset)?, data.len());
            }
            Op::Append { at, data } => {
                let fd = self.open_for_write(at)?;
                let end = rustix::fs::fstat(&fd)?.st_size;
                assert_eq!(rustix::io::pwrite(&fd, data, u64::try_from(end).unwrap())?, data.len());
            }
            Op::Truncate { at, len } => {
                let at = self.find(at)?;
                match at.kind()? {
                    Kind::Dir => return Err(Errno::ISDIR),
                    Kind::File => {}
                    _ => return Err(Errno::INVAL),
                }
                let (fd, name, flags) = at.args();
                if rustix::fs::statat(fd, name, flags)?.st_size != i64::try_from(*len).unwrap() {
                    rustix::fs::ftruncate(at.open(OFlags::WRONLY)?, *len)?;
                }
            }
            Op::Mkdir { at, mode } => {
                let (dir, name) = self.parent(at)?;
                rustix::fs::mkdirat(&dir, &name[..], Mode::from_raw_mode(*mode))?;
            }
            Op::Mkfifo { at, mode } => {
                let (dir, name) = self.parent(at)?;
                rustix::fs::mknodat(&dir, &name[..], rustix::fs::FileType::Fifo, Mode::from_raw_mode(*mode), 0)?;
            }
            Op::Mkchar { at, mode, rdev } => {
                let (dir, name) = self.parent(at)?;
                rustix::fs::mknodat(&dir, &name[..], rustix::fs::FileType::CharacterDevice, Mode::from_raw_mode(*mode), *rdev)?;
            }
            Op::Symlink { at, target } => {
                let (dir, name) = self.parent(at)?;
                rustix::fs::symlinkat(&target[..], &dir, &name[..])?;
            }
            Op::Link { from, to } => {
                let from = self.find(from)?;
                let (dir, name) = self.parent(to)?;
                match &from {
                    At::Name(old, old_name) => rustix::fs::linkat(old, &old_name[..], &dir, &name[..], AtFlags::empty())?,
                    At::Held(fd) => rustix::fs::linkat(fd, "", &dir, &name[..], AtFlags::EMPTY_PATH)?,
                }
            }
            Op::Unlink { at } => {
                let (dir, name) = self.parent(at)?;
                rustix::fs::unlinkat(&dir, &name[..], AtFlags::empty())?;
            }
            Op::Rmdir { at } => {
                let (dir, name) = self.parent(at)?;
                rustix::fs::unlinkat(&dir, &name[..], AtFlags::REMOVEDIR)?;
            }
            Op::Rename { from, to, how } => {
                let (old_dir, old) = self.parent(from)?;
                let (new_dir, new) = self.parent(to)?;
                let flags = match how {
                    Move::Replace => RenameFlags::empty(),
                    Move::NoReplace => RenameFlags::NOREPLACE,
                    Move::Exchange => RenameFlags::EXCHANGE,
                    Move::Whiteout => RenameFlags::WHITEOUT,
                };
                let before = rustix::fs::fstat(&old_dir)?;
                if let Err(error) = rustix::fs::renameat_with(&old_dir, &old[..], &new_dir, &new[..], flags) {
                    if divergences::counts_a_failed_whiteout(*how) {
                        keep_mtime(&old_dir, &before)?;
                    }
                    return Err(error);
                }
            }
            Op::Chmod { at, mode } => {
                let at = self.find(at)?;
                if at.kind()? == Kind::Symlink {
                    return Err(Errno::OPNOTSUPP);
                }
                std::fs::set_permissions(at.path(), Permissions::from_mode(*mode)).map_err(|e| errno(&e))?;
            }
            Op::Chown { at, uid, gid } => {
                let at = self.find(at)?;
                let (fd, name, flags) = at.args();
                rustix::fs::chownat(fd, name, uid.map(rustix::fs::Uid::from_raw), gid.map(rustix::fs::Gid::from_raw), flags)?;
            }
            Op::Utimes { at, mtime } => {
                let at = self.find(at)?;
                let (fd, name, flags) = at.args();
                let time = rustix::fs::Timespec { tv_sec: *mtime, tv_nsec: 0 };
                let omit = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
                let times = rustix::fs::Timestamps { last_access: omit, last_modification: time };
                rustix::fs::utimensat(fd, name, &times, flags)?;
            }
            Op::SetXattr { at, name, value, how } => {
                let at = self.find(at)?;
                let flags = match how {
                    How::Any => XattrFlags::empty(),
                    How::Create => XattrFlags::CREATE,
                    How::Replace => XattrFlags::REPLACE,
                };
                match &at {
                    At::Name(..) => rustix::fs::lsetxattr(at.path(), &name[..], value, flags)?,
                    At::Held(_) => rustix::fs::setxattr(at.path(), &name[..], value, flags)?,
                }
            }
            Op::RemoveXattr { at, name } => {
                let at = self.find(at)?;
                match &at {
                    At::Name(..) => rustix::fs::lremovexattr(at.path(), &name[..])?,
                    At::Held(_) => rustix::fs::removexattr(at.path(), &name[..])?,
                }
            }
            Op::Readlink { at } => {
                let at = self.find(at)?;
                if at.kind()? != Kind::Symlink {
                    return Err(Errno::INVAL);
                }
                let (fd, name, _) = at.args();
                return Ok(Reply::Data(rustix::fs::readlinkat(fd, name, Vec::new())?.into_bytes()));
            }
            Op::List { at } => {
                let fd = match self.find(at)? {
                    at if at.kind()? != Kind::Dir => return Err(Errno::NOTDIR),
                    at => at.open(OFlags::RDONLY | OFlags::DIRECTORY)?,
                };
                return self.names(&fd).map(Reply::Names);
            }
            Op::Stat { at } => {
                let at = self.find(at)?;
                return Ok(Reply::Object(Box::new(object(&at, None)?)));
            }
            Op::Forget => {}
            Op::Remount | Op::Restack => {
                self.slots = Default::default();
                if let Some(again) = &mut self.again {
                    again(if *op == Op::Remount { Again::Remount } else { Again::Restack });
                }
            }
        }
        Ok(Reply::Done)
    }
}

/// What shows of an object. `held`: read its data through this descriptor, which is in a slot.
fn object(at: &At, held: Option<&OwnedFd>) -> Result<Object, Errno> {
    let (fd, name, flags) = at.args();
    let stat = rustix::fs::statat(fd, name, flags)?;
    let kind = Kind::from_mode(stat.st_mode).unwrap();
    let size = u64::try_from(stat.st_size).unwrap();
    let data = match (kind, held) {
        (Kind::File, held) => {
            let opened = if held.is_none() { Some(at.open(OFlags::RDONLY)?) } else { None };
            let fd = held.unwrap_or_else(|| opened.as_ref().unwrap());
            let mut data = vec![0; usize::try_from(size).unwrap() + 16];
            let got = rustix::io::pread(fd, &mut data[..], 0)?;
            data.truncate(got);
            data
        }
        (Kind::Symlink, _) => rustix::fs::readlinkat(fd, name, Vec::new())?.into_bytes(),
        _ => Vec::new(),
    };
    let mut xattrs = BTreeMap::new();
    let path = at.path();
    let follow = matches!(at, At::Held(_));
    let mut list = vec![0; 4096];
    let got = if follow { rustix::fs::listxattr(&path, &mut list[..])? } else { rustix::fs::llistxattr(&path, &mut list[..])? };
    for name in list[..got].split(|&byte| byte == 0).filter(|name| name.starts_with(b"user.") || name.starts_with(b"trusted.")) {
        let mut value = vec![0; 65536];
        let got =
            if follow { rustix::fs::getxattr(&path, name, &mut value[..])? } else { rustix::fs::lgetxattr(&path, name, &mut value[..])? };
        value.truncate(got);
        xattrs.insert(name.to_vec(), value);
    }
    Ok(Object {
        kind,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: if kind == Kind::Char { stat.st_rdev } else { 0 },
        size: if matches!(kind, Kind::File | Kind::Symlink) { size } else { 0 },
        nlink: (kind != Kind::Dir).then_some(u32::try_from(stat.st_nlink).unwrap()),
        mtime: (stat.st_mtime < SET).then_some(stat.st_mtime),
        data,
        xattrs,
        names: None,
        id: stat.st_ino,
    })
}

impl System for Plain {
    fn name(&self) -> &'static str {
        self.name
    }

    fn apply(&mut self, op: &Op) -> Outcome {
        self.run(op)
    }

    fn view(&mut self, pool: &[Name]) -> Result<View, String> {
        let mut view = View::default();
        let mut todo = vec![(Vec::<Name>::new(), At::Held(self.base(&Path { base: None, names: Vec::new() }).unwrap()))];
        while let Some((path, at)) = todo.pop() {
            let said = |what: &str, e: &dyn std::fmt::Display| format!("{}: {what}: {e}", show(&path));
            let object = object(&at, None).map_err(|e| said("look", &e))?;
            if object.kind == Kind::Dir {
                let dir = at.open(OFlags::RDONLY | OFlags::DIRECTORY).map_err(|e| said("open", &e))?;
                let listed = self.names(&dir).map_err(|e| said("list", &e))?;
                for name in pool.iter().chain(&listed) {
                    let child = At::Name(dir.try_clone().unwrap(), name.clone());
                    match (child.kind(), listed.contains(name)) {
                        (Ok(_), true) => {}
                        (Err(Errno::NOENT), false) => {}
                        (found, listed) => return Err(said(&format!("{}: listed {listed}", name.escape_ascii()), &format!("{found:?}"))),
                    }
                }
                for name in listed {
                    let child = At::Name(dir.try_clone().unwrap(), name.clone());
                    if child.kind().is_ok() {
                        todo.push(([&path[..], &[name]].concat(), child));
                    }
                }
            }
            view.tree.insert(path, object);
        }
        for slot in &self.slots {
            let Some(slot) = slot else {
                view.slots.push(None);
                continue;
            };
            let at = At::Held(slot.fd.try_clone().unwrap());
            let held = (!slot.path_only).then_some(&slot.fd);
            let mut seen = if slot.path_only || slot.kind == Kind::Dir { object(&at, None) } else { object(&at, held) }
                .map_err(|e| format!("held object: {e}"))?;
            if slot.path_only {
                seen.data.clear();
            }
            if slot.kind == Kind::Dir && !slot.path_only {
                seen.names = match self.names(&slot.fd) {
                    // Removed.
                    Err(Errno::NOENT) => Some(Vec::new()),
                    other => Some(other.map_err(|e| format!("held directory: {e}"))?),
                };
            }
            view.slots.push(Some(seen));
        }
        Ok(view)
    }
}

// Descriptors of slots go before the hook, which may unmount.
impl Drop for Plain {
    fn drop(&mut self) {
        self.slots = Default::default();
    }
}
