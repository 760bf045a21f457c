//! What an object of this machine is, found by names from the root of its filesystem: to be written down, and to be compared with what was written down.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use plyfs_format::Dialect;
use plyfs_overlay::backend::ObjectId;
use plyfs_sys::at::{self, At};
use plyfs_sys::handle::FileHandle;
use plyfs_sys::stat::{Kind, Stat, Time};
use plyfs_sys::{Errno, OFlags, beneath, handle, io};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::cli::marks;
use crate::cli::text::Text;

/// Names and values of extended attributes, in order.
pub(super) type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// Seconds since 1970 and nanoseconds.
pub(super) type Moment = (i64, u32);

/// That of the kernel.
pub(super) fn moment(time: Time) -> Moment {
    (time.sec, time.nsec)
}

/// The kernel's of it.
pub(super) fn time((sec, nsec): Moment) -> Time {
    Time { sec, nsec }
}

/// Which object of a filesystem it is, over reboots too: devices get new numbers, and inode numbers are used again.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Id {
    /// `st_ino`.
    ino: u64,
    /// The type bits of the mode.
    kind: u32,
    /// The file handle in hexadecimal, where the filesystem has any.
    handle: Option<String>,
    /// The time of birth, where the filesystem keeps one.
    born: Option<Moment>,
}

impl Id {
    /// Whether the object has this handle. `None`: it has none.
    pub(super) fn has(&self, handle: &FileHandle) -> Option<bool> {
        self.handle.as_ref().map(|own| *own == handle_text(handle))
    }

    /// What kind of object it is.
    pub(super) fn kind(&self) -> Kind {
        Kind::from_mode(self.kind).unwrap_or(Kind::File)
    }
}

/// Which inode flags keep an object from being changed or removed.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Forbids {
    immutable: bool,
    append_only: bool,
}

impl Forbids {
    /// Those of an object.
    pub(super) fn of(stat: &Stat) -> Self {
        Self { immutable: stat.immutable, append_only: stat.append_only }
    }

    /// Whether there is any.
    pub(super) fn any(self) -> bool {
        self.immutable || self.append_only
    }

    /// Whether there is none that was not there before.
    pub(super) fn no_more_than(self, was: Self) -> bool {
        self.immutable <= was.immutable && self.append_only <= was.append_only
    }
}

/// An object of this machine at some moment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Seen {
    pub(super) id: Id,
    /// `st_dev`, which another boot numbers otherwise: not written down.
    #[serde(skip)]
    dev: u64,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    rdev: u64,
    size: u64,
    pub(super) nlink: u32,
    pub(super) mtime: Moment,
    pub(super) ctime: Moment,
    target: Option<Text>,
    #[serde(default)]
    pub(super) forbids: Forbids,
    /// SHA-256 of names and values of its extended attributes.
    xattrs: String,
    /// SHA-256 of its data; of files that were worth the reading.
    pub(super) content: Option<String>,
}

/// The directory that a path is in, and its name there. The root has none.
pub(super) fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let slash = path.iter().rposition(|&byte| byte == b'/')?;
    Some((path.get(..slash)?, path.get(slash + 1..)?))
}

/// "Not there" as `None`.
pub(super) fn there<T>(result: Result<T, Errno>) -> Result<Option<T>, Errno> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Opens the object itself (`O_PATH`). `None`: it is not there.
///
/// Errors: the kernel's; ELOOP and EXDEV if a symbolic link or another mount is on the way.
pub(super) fn open(root: BorrowedFd<'_>, path: &[u8]) -> Result<Option<OwnedFd>, Errno> {
    match split(path) {
        None => at::open_path(At::Fd(root)).map(Some),
        Some((dir, name)) => match there(beneath::open_dir(root, dir))? {
            Some(dir) => open_here(dir.as_fd(), name),
            None => Ok(None),
        },
    }
}

/// A name in a directory, EXDEV where something is mounted on it: then the descriptor is the mount's.
fn open_here(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Option<OwnedFd>, Errno> {
    let Some(fd) = there(at::open_path(At::Name(dir, name)))? else { return Ok(None) };
    let mount = plyfs_sys::mount::mount_id_of;
    if mount(fd.as_fd())? == mount(dir)? { Ok(Some(fd)) } else { Err(Errno::XDEV) }
}

/// Looks at what a path names. `None`: it is not there, as what is below a symbolic link, wherever that leads.
///
/// Errors: the kernel's; EXDEV if another mount is on the way.
pub(super) fn look(root: BorrowedFd<'_>, path: &[u8]) -> Result<Option<Seen>, Errno> {
    match open(root, path) {
        Ok(Some(fd)) => look_at(fd.as_fd()).map(Some),
        Ok(None) | Err(Errno::LOOP) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Looks at an object.
pub(super) fn look_at(fd: BorrowedFd<'_>) -> Result<Seen, Errno> {
    let stat = at::stat(At::Fd(fd))?;
    let target = if stat.kind == Kind::Symlink { Some(Text::from(at::readlink(At::Fd(fd))?.as_slice())) } else { None };
    Ok(Seen {
        id: id_of(fd, &stat)?,
        dev: stat.dev,
        mode: stat.mode,
        uid: stat.uid,
        gid: stat.gid,
        rdev: stat.rdev,
        size: stat.size,
        nlink: stat.nlink,
        mtime: moment(stat.mtime),
        ctime: moment(stat.ctime),
        target,
        forbids: Forbids::of(&stat),
        xattrs: xattr_digest(fd)?,
        content: None,
    })
}

/// Which object it is.
pub(super) fn id_of(fd: BorrowedFd<'_>, stat: &Stat) -> Result<Id, Errno> {
    let handle = match handle::file_handle(At::Fd(fd)) {
        Ok(handle) => Some(handle_text(&handle)),
        Err(Errno::OPNOTSUPP | Errno::OVERFLOW | Errno::PERM | Errno::NOSYS) => None,
        Err(errno) => return Err(errno),
    };
    Ok(Id { ino: stat.ino, kind: stat.kind.to_mode(), handle, born: stat.btime.map(moment) })
}

fn handle_text(handle: &FileHandle) -> String {
    format!("{}:{}", handle.kind, hex(&handle.bytes))
}

/// The extended attributes that are no marks of a union, which belong to whoever made them.
pub(super) fn xattrs(fd: BorrowedFd<'_>) -> Result<Xattrs, Errno> {
    let names = match at::list_xattr(At::Fd(fd)) {
        Err(Errno::OPNOTSUPP) => Vec::new(),
        other => other?,
    };
    // It does not change while a process runs.
    static OWN: OnceLock<Dialect> = OnceLock::new();
    let own = *OWN.get_or_init(marks::own_dialect);
    let mut found = Vec::new();
    for name in names {
        if is_acl_of_xfs(&name) || plyfs_format::translate_xattr(own, own, &name).is_none() {
            continue;
        }
        match at::get_xattr(At::Fd(fd), &name) {
            Ok(value) => found.push((name, value)),
            // Gone meanwhile, or not for this user to read, now as later.
            Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::ACCESS | Errno::PERM) => {}
            Err(errno) => return Err(errno),
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Whether it is an ACL once more, under the name that XFS has for it on its disk.
pub(super) fn is_acl_of_xfs(name: &[u8]) -> bool {
    name.starts_with(b"trusted.SGI_ACL_")
}

fn xattr_digest(fd: BorrowedFd<'_>) -> Result<String, Errno> {
    let mut hasher = Sha256::new();
    for (name, value) in xattrs(fd)? {
        for part in [&name, &value] {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
    }
    Ok(hex(&hasher.finalize()))
}

/// SHA-256 of a regular file's data; the object is the one that was looked at.
pub(super) fn content(root: BorrowedFd<'_>, path: &[u8], seen: &Seen) -> Result<Option<String>, Errno> {
    let Some(fd) = open(root, path)? else { return Ok(None) };
    let stat = at::stat(At::Fd(fd.as_fd()))?;
    if stat.kind != Kind::File || id_of(fd.as_fd(), &stat)? != seen.id {
        return Ok(None);
    }
    let file = open_file(fd.as_fd())?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 17];
    let mut offset = 0;
    loop {
        let got = io::pread(file.as_fd(), &mut buffer, offset)?;
        if got == 0 {
            return Ok(Some(hex(&hasher.finalize())));
        }
        hasher.update(buffer.get(..got).unwrap_or_default());
        offset += got as u64;
    }
}

/// Opens a regular file for reading, which leaves no access time where that is permitted.
pub(super) fn open_file(fd: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    match at::open(At::Fd(fd), OFlags::RDONLY | OFlags::NOATIME) {
        Err(Errno::PERM) => at::open(At::Fd(fd), OFlags::RDONLY),
        other => other,
    }
}

impl Seen {
    /// What it is.
    pub(super) fn kind(&self) -> Kind {
        self.id.kind()
    }

    /// Its device and inode number, of an object that this process looked at.
    pub(super) fn object(&self) -> ObjectId {
        ObjectId { dev: self.dev, ino: self.id.ino }
    }

    /// The device that it is.
    pub(super) fn rdev(&self) -> u64 {
        self.rdev
    }

    /// The target of a symbolic link.
    pub(super) fn target(&self) -> &[u8] {
        self.target.as_ref().map_or(&[], Text::as_bytes)
    }

    /// Its size in bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Whether mode and owner are these.
    pub(super) fn dressed(&self, mode: u32, uid: u32, gid: u32) -> bool {
        (self.mode, self.uid, self.gid) == (mode, uid, gid)
    }

    /// The same object with the same data, as far as can be told without reading it: it gets the time of change that it has now.
    pub(super) fn touch(&mut self, now: &Seen) {
        if self.id == now.id && (self.size, self.mtime, self.mode, self.uid, self.gid) == (now.size, now.mtime, now.mode, now.uid, now.gid)
        {
            self.ctime = now.ctime;
        }
    }

    /// In what `now` is another one than this was, if in anything that counts. Entries of a directory count by themselves, links by their names. `content` reads the data.
    pub(super) fn differs(
        &self,
        now: &Seen,
        content: impl FnOnce() -> Result<Option<String>, Errno>,
    ) -> Result<Option<&'static str>, Errno> {
        if self.kind() != now.kind() {
            return Ok(Some("it is of another kind now"));
        }
        if self.id != now.id {
            return Ok(Some("it was replaced"));
        }
        // Of a directory nothing is lost with a flag that went, and it may have to go before anything can be applied.
        let as_free = if self.kind() == Kind::Dir { now.forbids.no_more_than(self.forbids) } else { now.forbids == self.forbids };
        let differs = [
            (!as_free, "its inode flags have changed"),
            (self.mode != now.mode, "its mode has changed"),
            ((self.uid, self.gid) != (now.uid, now.gid), "its owner has changed"),
            (self.xattrs != now.xattrs, "its extended attributes have changed"),
            (self.rdev != now.rdev || self.target != now.target, "it leads elsewhere"),
        ];
        if let Some((_, how)) = differs.into_iter().find(|(differs, _)| *differs) {
            return Ok(Some(how));
        }
        if self.kind() == Kind::Dir {
            return Ok(None);
        }
        if self.size != now.size {
            return Ok(Some("its size has changed"));
        }
        if self.mtime != now.mtime {
            return Ok(Some("its time of modification has changed"));
        }
        // Nobody sets this time: nothing was written since.
        if self.ctime == now.ctime || self.kind() != Kind::File {
            return Ok(None);
        }
        match (&self.content, self.size) {
            (_, 0) => Ok(None),
            (None, _) => Ok(Some("it was touched, and what was in it is not known")),
            (Some(was), _) => Ok((content()?.as_ref() != Some(was)).then_some("its content has changed")),
        }
    }
}

/// Two hexadecimal digits a byte.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
