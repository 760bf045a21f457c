//! The operations: what each is done to, and what it does.

use std::fs::{self, DirBuilder, File, OpenOptions, hard_link, remove_dir, remove_file, rename};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use plyfs_sys::flags::{APPEND, IMMUTABLE, set_flags};
use plyfs_sys::io::fallocate;
use rustix::fs::{CWD, FileType, Mode, OFlags, RenameFlags, XattrFlags, copy_file_range, lremovexattr, lsetxattr, mknodat, renameat_with};

use crate::seen::{View, differences, errors, same, view};

/// cap_net_raw, effective.
pub(crate) const CAPABILITY: &[u8] = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// `FALLOC_FL_*`.
const KEEP_SIZE: i32 = 1;
const PUNCH_HOLE: i32 = 2;

/// Where an operation is done: a copy of the fixture.
pub(crate) struct At {
    pub(crate) dir: PathBuf,
    /// How many more steps are passed; the next one stops.
    pub(crate) left: usize,
    /// Those that were passed.
    pub(crate) steps: usize,
    /// What shows there, for what looks.
    pub(crate) wanted: Option<View>,
}

impl At {
    pub(crate) fn new(dir: PathBuf) -> At {
        At { dir, left: usize::MAX, steps: 0, wanted: None }
    }

    fn to(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// What shows now is neither old nor new, and right all the same: the operation is of several calls.
    fn step(&mut self) -> io::Result<()> {
        if self.left == 0 {
            return Err(io::Error::other("stopped"));
        }
        self.left -= 1;
        self.steps += 1;
        Ok(())
    }
}

type Act = fn(&mut At) -> io::Result<()>;

/// One kind of operation.
pub(crate) struct Operation {
    pub(crate) name: &'static str,
    /// What is done to a copy of the fixture before, and survives a remount.
    pub(crate) prepare: Act,
    pub(crate) act: Act,
    /// The union has `metacopy=on`.
    pub(crate) metacopy: bool,
    /// Kernel overlayfs shows the same whenever it is killed.
    pub(crate) kernel: bool,
    /// What it changes it may change one by one: what a write takes away goes before it (docs/SEMANTICS.md, Of FUSE).
    pub(crate) piecemeal: bool,
}

const fn op(name: &'static str, prepare: Act, act: Act) -> Operation {
    Operation { name, prepare, act, metacopy: false, kernel: true, piecemeal: false }
}

/// With `metacopy=on`.
const fn meta(name: &'static str, prepare: Act, act: Act) -> Operation {
    Operation { name, prepare, act, metacopy: true, kernel: true, piecemeal: false }
}

/// Whose data comes later: kernel overlayfs takes no notice of `plyfs.before` (docs/ON-DISK.md, Metacopy).
const fn arrival(name: &'static str, prepare: Act, act: Act) -> Operation {
    Operation { name, prepare, act, metacopy: true, kernel: false, piecemeal: false }
}

/// Leaves a device 0:0, which the kernel shows as another one.
const fn device(name: &'static str, prepare: Act, act: Act) -> Operation {
    Operation { name, prepare, act, metacopy: false, kernel: false, piecemeal: false }
}

const fn piecemeal(name: &'static str, prepare: Act, act: Act) -> Operation {
    Operation { piecemeal: true, ..op(name, prepare, act) }
}

fn nothing(_: &mut At) -> io::Result<()> {
    Ok(())
}

fn mode(path: PathBuf, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

fn write_at(path: PathBuf, offset: u64, data: &[u8]) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all_at(data, offset)
}

fn create(path: PathBuf, mode: u32, data: &[u8]) -> io::Result<()> {
    OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?.write_all(data)
}

fn truncate(path: PathBuf, len: u64) -> io::Result<()> {
    Ok(rustix::fs::ftruncate(OpenOptions::new().write(true).open(path)?, len)?)
}

fn empty(path: PathBuf) -> io::Result<()> {
    OpenOptions::new().write(true).truncate(true).open(path).map(drop)
}

fn allocate(path: PathBuf, mode: i32, offset: u64, len: u64) -> io::Result<()> {
    Ok(fallocate(OpenOptions::new().write(true).open(path)?.as_fd(), mode, offset, len)?)
}

fn xattr(path: PathBuf, name: &str, value: &[u8]) -> io::Result<()> {
    Ok(lsetxattr(path, name, value, XattrFlags::empty())?)
}

fn node(path: PathBuf, kind: FileType, mode: u32, device: u64) -> io::Result<()> {
    Ok(mknodat(CWD, path, kind, Mode::from_raw_mode(mode), device)?)
}

fn move_with(from: PathBuf, to: PathBuf, flags: RenameFlags) -> io::Result<()> {
    Ok(renameat_with(CWD, from, CWD, to, flags)?)
}

/// chattr(1): other flags stay, some of which a filesystem does not let go.
fn flags(path: PathBuf, protection: u32) -> io::Result<()> {
    let file = File::open(path)?;
    let now = plyfs_sys::flags::flags(file.as_fd())?;
    Ok(set_flags(file.as_fd(), (now & !(IMMUTABLE | APPEND)) | protection)?)
}

fn directory(path: PathBuf) -> io::Result<()> {
    DirBuilder::new().mode(0o755).create(path)
}

fn times(path: &Path) -> io::Result<()> {
    let time = |tv_sec, tv_nsec| rustix::fs::Timespec { tv_sec, tv_nsec };
    let times = rustix::fs::Timestamps { last_access: time(3, 4), last_modification: time(5, 6) };
    Ok(rustix::fs::utimensat(CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?)
}

/// As the owner of the fixture's files, who is nobody else in particular.
fn as_owner(at: &At, script: &str) -> io::Result<()> {
    let output = Command::new("sh").args(["-c", script]).uid(1000).gid(1001).current_dir(&at.dir).output()?;
    if output.status.success() { Ok(()) } else { Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned())) }
}

fn two(first: io::Result<()>, second: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    first.and_then(|()| second())
}

fn empty_e(at: &mut At) -> io::Result<()> {
    ["e/c", "e/h3", "e/k3"].iter().try_for_each(|name| remove_file(at.to(name)))
}

fn acl() -> Vec<u8> {
    let mut value = 2_u32.to_le_bytes().to_vec();
    for (tag, bits, id) in [(1_u16, 6_u16, u32::MAX), (2, 7, 77), (4, 4, u32::MAX), (0x10, 7, u32::MAX), (0x20, 4, u32::MAX)] {
        value.extend(tag.to_le_bytes().into_iter().chain(bits.to_le_bytes()).chain(id.to_le_bytes()));
    }
    value
}

/// All of them.
pub(crate) const OPERATIONS: &[Operation] = &[
    // Data.
    op("write", nothing, |at| write_at(at.to("f"), 100, b"new bytes")),
    op("write through a whole copy", |at| mode(at.to("f"), 0o600), |at| write_at(at.to("f"), 100, b"new bytes")),
    op("append", nothing, |at| OpenOptions::new().append(true).open(at.to("f"))?.write_all(b"more")),
    op("truncate", nothing, |at| truncate(at.to("f"), 500)),
    op("truncate to nothing", nothing, |at| truncate(at.to("f"), 0)),
    op("truncate to more", nothing, |at| truncate(at.to("f"), 90_000)),
    op("O_TRUNC", nothing, |at| empty(at.to("f"))),
    op("O_TRUNC and write", nothing, |at| {
        let file = OpenOptions::new().write(true).truncate(true).open(at.to("f"))?;
        at.step()?;
        (&file).write_all(b"new")
    }),
    op("write and fsync", nothing, |at| {
        let file = OpenOptions::new().write(true).open(at.to("f"))?;
        file.write_all_at(b"new", 0)?;
        at.step()?;
        file.sync_all()
    }),
    piecemeal("write by the owner of a setuid file", nothing, |at| as_owner(at, "printf more >> suid")),
    op("fallocate", nothing, |at| allocate(at.to("f"), 0, 30_000, 50_000)),
    op("fallocate beyond the end", nothing, |at| allocate(at.to("f"), KEEP_SIZE, 40_000, 50_000)),
    op("punch a hole", nothing, |at| allocate(at.to("f"), KEEP_SIZE | PUNCH_HOLE, 4096, 8192)),
    op("copy_file_range", nothing, |at| {
        let (from, to) = (File::open(at.to("g"))?, OpenOptions::new().write(true).open(at.to("f"))?);
        copy_file_range(from, Some(&mut 0), to, Some(&mut 100), 9000).map(drop).map_err(io::Error::from)
    }),
    op("write by a mapping", nothing, |at| {
        // A failure is the program's exit code.
        let program = "import mmap\nf = open('f', 'r+b')\nm = mmap.mmap(f.fileno(), 0)\nm[100:103] = b'map'\nm.flush()";
        let output = Command::new("python3").args(["-c", program]).current_dir(&at.dir).output()?;
        if output.status.success() { Ok(()) } else { Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned())) }
    }),
    op("fsync", |at| write_at(at.to("f"), 0, b"x"), |at| File::open(at.to("f"))?.sync_all()),
    op("fsync of a directory", |at| create(at.to("d/new"), 0o600, b""), |at| File::open(at.to("d"))?.sync_all()),
    // Metadata.
    op("chmod", nothing, |at| mode(at.to("f"), 0o2750)),
    op("chmod of an upper file", |at| write_at(at.to("f"), 0, b"x"), |at| mode(at.to("f"), 0o600)),
    op("chmod of a directory", nothing, |at| mode(at.to("d"), 0o700)),
    op("chown", nothing, |at| chown(at.to("f"), Some(5), Some(6))),
    op("chown of a setuid file", nothing, |at| {
        // Capabilities go in a request of their own, before (docs/SEMANTICS.md, Of FUSE).
        lremovexattr(at.to("suid"), "security.capability")?;
        at.step()?;
        chown(at.to("suid"), Some(5), Some(6))
    }),
    op("utimes", nothing, |at| times(&at.to("f"))),
    op("utimes of a symlink", nothing, |at| times(&at.to("l"))),
    op("setxattr", nothing, |at| xattr(at.to("f"), "user.b", b"2")),
    op("setxattr of a directory", nothing, |at| xattr(at.to("d"), "trusted.b", b"2")),
    op("removexattr", nothing, |at| Ok(lremovexattr(at.to("f"), "user.a")?)),
    op("set an ACL", nothing, |at| xattr(at.to("f"), "system.posix_acl_access", &acl())),
    op("set a default ACL", nothing, |at| xattr(at.to("d"), "system.posix_acl_default", &acl())),
    op("chattr +i", nothing, |at| flags(at.to("f"), IMMUTABLE)),
    op("chattr +a of a hard link", nothing, |at| flags(at.to("h1"), APPEND)),
    op("chattr -i", |at| flags(at.to("f"), IMMUTABLE), |at| flags(at.to("f"), 0)),
    op("chmod of a hard link", nothing, |at| mode(at.to("h1"), 0o600)),
    op("write to a hard link", nothing, |at| write_at(at.to("h1"), 0, b"new")),
    op("write by another name", |at| write_at(at.to("h1"), 0, b"new"), |at| write_at(at.to("d/h2"), 3, b"newer")),
    // Links.
    op("link", nothing, |at| hard_link(at.to("f"), at.to("d/new"))),
    op("link of an upper file", |at| create(at.to("u"), 0o600, b"u"), |at| hard_link(at.to("u"), at.to("new"))),
    op("link of a hard link", nothing, |at| hard_link(at.to("h1"), at.to("d/new"))),
    op("link of a hard link by a name that was not used", |at| mode(at.to("e/h3"), 0o600), |at| hard_link(at.to("h1"), at.to("new"))),
    op("link of a symlink", nothing, |at| hard_link(at.to("l"), at.to("new"))),
    op("link over a whiteout", |at| remove_file(at.to("gone")), |at| hard_link(at.to("f"), at.to("gone"))),
    op("link of a hard link over a whiteout", |at| remove_file(at.to("gone")), |at| hard_link(at.to("h1"), at.to("gone"))),
    op("link of a hard link over its own whiteout", |at| remove_file(at.to("h1")), |at| hard_link(at.to("e/h3"), at.to("h1"))),
    op("unlink", nothing, |at| remove_file(at.to("f"))),
    op("unlink of an upper file", |at| create(at.to("u"), 0o600, b"u"), |at| remove_file(at.to("u"))),
    op("unlink of an upper file over a lower", |at| write_at(at.to("f"), 0, b"x"), |at| remove_file(at.to("f"))),
    op("unlink of a hard link", nothing, |at| remove_file(at.to("h1"))),
    op("unlink of a hard link that was not used", |at| write_at(at.to("d/h2"), 0, b"new"), |at| remove_file(at.to("h1"))),
    op("unlink of a hard link that was used", |at| write_at(at.to("d/h2"), 0, b"new"), |at| remove_file(at.to("d/h2"))),
    op(
        "unlink of the last hard link",
        |at| {
            write_at(at.to("d/h2"), 0, b"new")?;
            ["h1", "d/h2"].iter().try_for_each(|name| remove_file(at.to(name)))
        },
        |at| remove_file(at.to("e/h3")),
    ),
    op(
        "unlink of an open file",
        |at| write_at(at.to("f"), 0, b"x"),
        |at| {
            let file = OpenOptions::new().write(true).open(at.to("f"))?;
            remove_file(at.to("f"))?;
            at.step()?;
            (&file).write_all(b"nobody sees it")
        },
    ),
    // Renames of files.
    op("rename", nothing, |at| rename(at.to("f"), at.to("new"))),
    op("rename to another directory", nothing, |at| rename(at.to("f"), at.to("d/new"))),
    op("rename of an upper file", |at| create(at.to("u"), 0o600, b"u"), |at| rename(at.to("u"), at.to("d/new"))),
    op("rename of an upper file over a lower name", |at| write_at(at.to("f"), 0, b"x"), |at| rename(at.to("f"), at.to("e/new"))),
    op("rename over a lower file", nothing, |at| rename(at.to("f"), at.to("g"))),
    op("rename over an upper file", |at| write_at(at.to("g"), 0, b"x"), |at| rename(at.to("f"), at.to("g"))),
    op("rename over a whiteout", |at| remove_file(at.to("gone")), |at| rename(at.to("f"), at.to("gone"))),
    op("atomic replace", nothing, |at| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o640).open(at.to("tmp"))?;
        at.step()?;
        file.write_all(&[b'N'; 30_000])?;
        at.step()?;
        file.sync_all()?;
        rename(at.to("tmp"), at.to("f"))
    }),
    op("rename of a hard link", nothing, |at| rename(at.to("h1"), at.to("d/new"))),
    op("rename of a hard link that was not used", |at| mode(at.to("e/h3"), 0o600), |at| rename(at.to("h1"), at.to("d/new"))),
    op("rename over a hard link", nothing, |at| rename(at.to("g"), at.to("h1"))),
    op("rename over a hard link that was not used", |at| write_at(at.to("d/h2"), 0, b"new"), |at| rename(at.to("g"), at.to("h1"))),
    op("rename of a hard link over another file's", nothing, |at| rename(at.to("k1"), at.to("h1"))),
    op("rename of a hard link over its own file's", nothing, |at| rename(at.to("h1"), at.to("d/h2"))),
    op("rename of a hard link over a whiteout", |at| remove_file(at.to("gone")), |at| rename(at.to("d/h2"), at.to("gone"))),
    op("rename that does not replace", nothing, |at| move_with(at.to("f"), at.to("d/new"), RenameFlags::NOREPLACE)),
    op("exchange of files", nothing, |at| move_with(at.to("f"), at.to("g"), RenameFlags::EXCHANGE)),
    op("exchange of hard links", nothing, |at| move_with(at.to("h1"), at.to("d/k2"), RenameFlags::EXCHANGE)),
    device("rename that leaves a device", nothing, |at| move_with(at.to("f"), at.to("new"), RenameFlags::WHITEOUT)),
    device("rename that replaces and leaves a device", nothing, |at| move_with(at.to("f"), at.to("g"), RenameFlags::WHITEOUT)),
    op("rename of a symlink", nothing, |at| rename(at.to("l"), at.to("d/new"))),
    // Renames of directories.
    op("rename of a directory", nothing, |at| rename(at.to("d"), at.to("new"))),
    op("rename of a directory into another", nothing, |at| rename(at.to("d"), at.to("e/new"))),
    op("rename of a merged directory", |at| create(at.to("d/new"), 0o600, b"n"), |at| rename(at.to("d"), at.to("e/new"))),
    op(
        "rename of an upper directory",
        |at| two(directory(at.to("u")), || create(at.to("u/x"), 0o600, b"x")),
        |at| rename(at.to("u"), at.to("new")),
    ),
    op("rename of a moved directory", |at| rename(at.to("d"), at.to("moved")), |at| rename(at.to("moved"), at.to("e/new"))),
    op("rename of a directory back", |at| rename(at.to("d"), at.to("moved")), |at| rename(at.to("moved"), at.to("d"))),
    op("rename of a directory over a whiteout", |at| remove_file(at.to("gone")), |at| rename(at.to("d"), at.to("gone"))),
    op("rename of a directory over an empty one", |at| directory(at.to("u")), |at| rename(at.to("d"), at.to("u"))),
    op("rename of a directory over an empty lower one", nothing, |at| rename(at.to("d"), at.to("none"))),
    op("rename of a directory over an emptied one", empty_e, |at| rename(at.to("d"), at.to("e"))),
    op(
        "rename of an upper directory over an emptied one",
        |at| two(empty_e(at), || directory(at.to("u"))),
        |at| rename(at.to("u"), at.to("e")),
    ),
    op("exchange of directories", nothing, |at| move_with(at.to("d"), at.to("e"), RenameFlags::EXCHANGE)),
    op("exchange of a directory and a file", nothing, |at| move_with(at.to("d"), at.to("f"), RenameFlags::EXCHANGE)),
    device("rename of a directory that leaves a device", nothing, |at| move_with(at.to("d"), at.to("new"), RenameFlags::WHITEOUT)),
    // New objects.
    op("create", nothing, |at| create(at.to("new"), 0o640, b"")),
    op("create and write", nothing, |at| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o640).open(at.to("d/new"))?;
        at.step()?;
        file.write_all(b"new")
    }),
    op("create in a deep lower directory", nothing, |at| create(at.to("d/s/new"), 0o640, b"")),
    op("create over a whiteout", |at| remove_file(at.to("gone")), |at| create(at.to("gone"), 0o640, b"")),
    op("create by another user", |at| mode(at.to("none"), 0o777), |at| as_owner(at, ": > none/new")),
    op(
        "create in a setgid directory",
        |at| two(chown(at.to("none"), None, Some(77)), || mode(at.to("none"), 0o2777)),
        |at| create(at.to("none/new"), 0o640, b""),
    ),
    op(
        "create under a default ACL",
        |at| xattr(at.to("none"), "system.posix_acl_default", &acl()),
        |at| create(at.to("none/new"), 0o640, b""),
    ),
    op("mkdir", nothing, |at| directory(at.to("d/new"))),
    op("mkdir over a whiteout", |at| remove_file(at.to("gone")), |at| directory(at.to("gone"))),
    op("mkdir where one was", |at| two(empty_e(at), || remove_dir(at.to("e"))), |at| directory(at.to("e"))),
    op("mkdir by another user", |at| mode(at.to("none"), 0o777), |at| as_owner(at, "mkdir none/new")),
    op("rmdir", nothing, |at| remove_dir(at.to("none"))),
    op("rmdir of an upper directory", |at| directory(at.to("u")), |at| remove_dir(at.to("u"))),
    op("rmdir of an emptied directory", empty_e, |at| remove_dir(at.to("e"))),
    op("rmdir of an emptied merged directory", |at| remove_file(at.to("merged/low")), |at| remove_dir(at.to("merged"))),
    op("mknod of a device", nothing, |at| node(at.to("d/new"), FileType::CharacterDevice, 0o600, 0x501)),
    device("mknod of a device 0:0", nothing, |at| node(at.to("d/new"), FileType::CharacterDevice, 0o600, 0)),
    op("mknod of a pipe", nothing, |at| node(at.to("d/new"), FileType::Fifo, 0o600, 0)),
    op("mknod over a whiteout", |at| remove_file(at.to("gone")), |at| node(at.to("gone"), FileType::Fifo, 0o600, 0)),
    op("symlink", nothing, |at| symlink("target", at.to("d/new"))),
    op("symlink over a whiteout", |at| remove_file(at.to("gone")), |at| symlink("target", at.to("gone"))),
    op("O_TMPFILE", nothing, |at| match rustix::fs::open(at.to("d"), OFlags::TMPFILE | OFlags::RDWR, Mode::RUSR) {
        Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
        other => other.map(drop).map_err(io::Error::from),
    }),
    op("rm -r", nothing, |at| {
        for name in ["d/a", "d/h2", "d/k2", "d/low", "d/s/b"] {
            remove_file(at.to(name))?;
            at.step()?;
        }
        remove_dir(at.to("d/s"))?;
        at.step()?;
        remove_dir(at.to("d"))
    }),
    // Metacopy.
    meta("chmod, metacopy", nothing, |at| mode(at.to("f"), 0o4711)),
    meta("chown, metacopy", nothing, |at| chown(at.to("f"), Some(5), Some(6))),
    meta("chmod of a hard link, metacopy", nothing, |at| mode(at.to("h1"), 0o600)),
    meta("unlink of a metacopy", |at| mode(at.to("f"), 0o600), |at| remove_file(at.to("f"))),
    arrival("write to a metacopy", |at| mode(at.to("f"), 0o4711), |at| write_at(at.to("f"), 100, b"new")),
    arrival(
        "write to a metacopy with capabilities",
        |at| mode(at.to("suid"), 0o4711),
        |at| {
            lremovexattr(at.to("suid"), "security.capability")?;
            at.step()?;
            write_at(at.to("suid"), 100, b"new")
        },
    ),
    arrival("truncate of a metacopy", |at| two(mode(at.to("f"), 0o711), || times(&at.to("f"))), |at| truncate(at.to("f"), 500)),
    arrival("truncate of a metacopy to nothing", |at| two(mode(at.to("f"), 0o711), || times(&at.to("f"))), |at| truncate(at.to("f"), 0)),
    arrival("truncate of a metacopy to more", |at| mode(at.to("f"), 0o711), |at| truncate(at.to("f"), 90_000)),
    arrival("O_TRUNC of a metacopy", |at| mode(at.to("f"), 0o711), |at| empty(at.to("f"))),
    arrival("link of a metacopy", |at| mode(at.to("f"), 0o711), |at| hard_link(at.to("f"), at.to("d/new"))),
    arrival("rename of a metacopy", |at| mode(at.to("f"), 0o711), |at| rename(at.to("f"), at.to("d/new"))),
    arrival("rename over a metacopy", |at| mode(at.to("g"), 0o711), |at| rename(at.to("f"), at.to("g"))),
    arrival("rename of a metacopy's hard link", |at| mode(at.to("e/h3"), 0o711), |at| rename(at.to("h1"), at.to("d/new"))),
    arrival(
        "rename of a metacopy's hard link over another's",
        |at| two(mode(at.to("k1"), 0o600), || mode(at.to("h1"), 0o600)),
        |at| rename(at.to("d/k2"), at.to("e/h3")),
    ),
    arrival(
        "exchange of metacopies",
        |at| two(mode(at.to("f"), 0o600), || mode(at.to("g"), 0o601)),
        |at| move_with(at.to("f"), at.to("g"), RenameFlags::EXCHANGE),
    ),
];

/// What only reads: an error is told, and what is not told to have failed is as it was.
pub(crate) const READS: &[Operation] = &[op(
    "look at everything",
    |at| write_at(at.to("f"), 0, b"x"),
    |at| {
        let view = view(&at.dir);
        let errors = errors(&view);
        if !errors.is_empty() {
            return Err(io::Error::other(errors.join(", ")));
        }
        match &at.wanted {
            Some(wanted) if !same(&view, wanted, true) => Err(io::Error::other(format!("{WRONG}: {}", differences(&view, wanted, true)))),
            _ => Ok(()),
        }
    },
)];

/// What the error of an operation begins with that was not told of a failure and found something else than there is.
pub(crate) const WRONG: &str = "an answer that is wrong";
