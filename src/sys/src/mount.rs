//! The mount API: detached mounts made by descriptor, attached by descriptor, and the table of what is mounted.
//!
//! Nothing here walks a path twice. A mount is made detached (`open_tree`, `fsmount`), its flags are set while nobody can reach it, and
//! only then it is attached. A detached mount that is never attached goes with its last descriptor.
//!
//! Things the kernel does that callers must know:
//!
//! - A source of [`open_tree_clone`] and a target of [`move_mount`] must belong to the caller's mount namespace (`EINVAL` otherwise):
//!   a descriptor opened before `unshare(CLONE_NEWNS)` is no target afterwards, it has to be opened again.
//! - A clone of a shared mount is in its peer group: set [`Propagation::Private`] before attaching it.
//! - Read-only is a flag of the *mount*: devices, fifos and sockets reached through it can be written to all the same.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};
use rustix::path::Arg;
use rustix::path::DecInt;

use crate::at::last_errno;
use crate::{Errno, Result};

mod fusermount;
mod info;
mod target;

pub use fusermount::{FUSERMOUNT, FusermountError, fusermount, fuserumount};
pub use info::{MountInfo, Mounts, mounts, mounts_of, parse_mountinfo};
pub use rustix::mount::MountAttrFlags;
pub use target::{kind_of, make_target, open_read_in_root, resolve_in_root, stat_fd};

/// A filesystem that could not be made or mounted: the step that failed and what the kernel had to say.
#[derive(Debug, thiserror::Error)]
#[error("{fstype}: {step}: {errno}{}{message}", if message.is_empty() { "" } else { ": " })]
pub struct MountError {
    /// The type of the filesystem.
    pub fstype: &'static str,
    /// The system call, with the option that it refused.
    pub step: String,
    /// The error number.
    pub errno: Errno,
    /// The kernel's own message from the filesystem context, if it left one.
    pub message: String,
}

impl From<MountError> for Errno {
    fn from(error: MountError) -> Errno {
        error.errno
    }
}

/// How mounts and unmounts travel to and from the copies of a mount.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// Not at all.
    Private,
    /// From the original to the copy only.
    Slave,
    /// Both ways.
    Shared,
    /// Not at all, and it cannot be cloned.
    Unbindable,
}

impl Propagation {
    fn bits(self) -> u64 {
        match self {
            Propagation::Private => libc::MS_PRIVATE,
            Propagation::Slave => libc::MS_SLAVE,
            Propagation::Shared => libc::MS_SHARED,
            Propagation::Unbindable => libc::MS_UNBINDABLE,
        }
    }
}

/// What [`mount_setattr`] changes. Flags in neither set are left as they are.
#[derive(Copy, Clone, Debug)]
pub struct SetAttr {
    /// Flags to set.
    pub set: MountAttrFlags,
    /// Flags to clear.
    pub clear: MountAttrFlags,
    /// The propagation to set, if any.
    pub propagation: Option<Propagation>,
}

impl Default for SetAttr {
    fn default() -> SetAttr {
        SetAttr { set: MountAttrFlags::empty(), clear: MountAttrFlags::empty(), propagation: None }
    }
}

/// Clones the mount at `path` in `dir` into a detached mount. An empty path means `dir` itself, which may be a file.
/// The clone's root is what the path leads to; symbolic links are followed. `recursive` takes the mounts below along.
///
/// # Errors
///
/// `EINVAL` when the source is in another mount namespace or unbindable, `EPERM` without `CAP_SYS_ADMIN`.
pub fn open_tree_clone(dir: BorrowedFd<'_>, path: impl Arg, recursive: bool) -> Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    rustix::mount::open_tree(dir, path, flags)
}

/// As [`open_tree_clone`], for a path from the current directory or the root.
///
/// # Errors
///
/// As [`open_tree_clone`], and what the walk of the path gives.
pub fn open_tree_clone_path(path: impl Arg, recursive: bool) -> Result<OwnedFd> {
    open_tree_clone(CWD, path, recursive)
}

/// Changes the flags of the mount that `mount` is the root of, with `recursive` of all below as well (all or none of them).
///
/// # Errors
///
/// `EINVAL` when `mount` is not the root of a mount, `EPERM` for a flag that a user namespace may not clear, `EBUSY` when a read-only
/// mount is asked for and a file is open for writing.
#[allow(unsafe_code)]
pub fn mount_setattr(mount: BorrowedFd<'_>, attr: &SetAttr, recursive: bool) -> Result<()> {
    let mut raw = libc::mount_attr {
        attr_set: u64::from(attr.set.bits()),
        attr_clr: u64::from(attr.clear.bits()),
        propagation: attr.propagation.map_or(0, Propagation::bits),
        userns_fd: 0,
    };
    // The access-time flags are one field of the kernel's, which has to be cleared as a whole before one of them is set.
    if attr.set.intersects(MountAttrFlags::MOUNT_ATTR__ATIME) {
        raw.attr_clr |= u64::from(MountAttrFlags::MOUNT_ATTR__ATIME.bits());
    }
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the descriptor is open for the length of the call, the path is a NUL-terminated constant, and the struct is valid for
    // the size that is passed with it; the kernel only reads both.
    let result = unsafe {
        libc::syscall(libc::SYS_mount_setattr, mount.as_raw_fd(), c"".as_ptr(), flags, &raw const raw, size_of::<libc::mount_attr>())
    };
    if result == 0 { Ok(()) } else { Err(last_errno()) }
}

/// Makes the mount that `path` is on, and all below it, private: what is mounted there afterwards stays in this mount namespace.
///
/// # Errors
///
/// `EINVAL` when `path` is no mount point.
pub fn make_private_recursive(path: impl Arg) -> Result<()> {
    use rustix::mount::MountPropagationFlags as F;
    rustix::mount::mount_change(path, F::PRIVATE | F::REC)
}

/// Attaches a detached mount to the directory or file that `target` is open on (`O_PATH` will do), or to what is mounted there.
///
/// # Errors
///
/// `EINVAL` when `target` is of another mount namespace, `ENOTDIR` when one is a directory and the other is not, `ELOOP` when a mount
/// is moved below itself.
pub fn move_mount(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<()> {
    rustix::mount::move_mount(mount, c"", target, c"", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH)
}

/// As [`move_mount`], to a path, in which symbolic links are followed.
///
/// # Errors
///
/// As [`move_mount`], and what the walk of the path gives.
pub fn move_mount_path(mount: BorrowedFd<'_>, target: impl Arg) -> Result<()> {
    rustix::mount::move_mount(mount, c"", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_SYMLINKS)
}

/// Unmounts what is mounted at `path`. A symbolic link in the last place is not followed. `detach` takes it out of the tree at once,
/// with everything below, and frees it when its last user goes.
///
/// # Errors
///
/// `EBUSY` when it is in use and `detach` is not given, `EINVAL` when `path` is no mount point.
pub fn umount(path: impl Arg, detach: bool) -> Result<()> {
    let mut flags = UnmountFlags::NOFOLLOW;
    if detach {
        flags |= UnmountFlags::DETACH;
    }
    rustix::mount::unmount(path, flags)
}

/// Detaches the mount that `root` is the root of, wherever it is mounted, with everything below it. The descriptor stays good.
///
/// # Errors
///
/// `EINVAL` when `root` is not the root of a mount of this mount namespace.
pub fn umount_fd(root: BorrowedFd<'_>) -> Result<()> {
    // The magic link leads to the very mount of the descriptor, so it is followed: no UMOUNT_NOFOLLOW.
    let path = crate::proc::ProcPath::of(root)?;
    rustix::mount::unmount(path.as_c_str()?, UnmountFlags::DETACH)
}

/// The number by which `/proc/self/mountinfo` calls the mount that `fd` is on.
///
/// # Errors
///
/// `ENOSYS` when the kernel does not tell (before Linux 5.8).
pub fn mount_id_of(fd: BorrowedFd<'_>) -> Result<u64> {
    let stat = rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, StatxFlags::MNT_ID)?;
    if stat.stx_mask & StatxFlags::MNT_ID.bits() == 0 {
        return Err(Errno::NOSYS);
    }
    Ok(stat.stx_mnt_id)
}

/// A filesystem on its way to being mounted: `fsopen`, options, [`Context::mount`].
#[derive(Debug)]
pub struct Context {
    fd: OwnedFd,
    fstype: &'static str,
}

impl Context {
    /// Opens a context for a filesystem type.
    ///
    /// # Errors
    ///
    /// `ENODEV` when the kernel has no such filesystem, `EPERM` without the right to mount.
    pub fn open(fstype: &'static str) -> core::result::Result<Context, MountError> {
        match rustix::mount::fsopen(fstype, FsOpenFlags::FSOPEN_CLOEXEC) {
            Ok(fd) => Ok(Context { fd, fstype }),
            Err(errno) => Err(MountError { fstype, step: "fsopen".to_owned(), errno, message: String::new() }),
        }
    }

    /// Sets an option without a value, such as `ro`.
    ///
    /// # Errors
    ///
    /// `EINVAL` when the filesystem has no such option.
    pub fn flag(&self, key: &str) -> core::result::Result<(), MountError> {
        rustix::mount::fsconfig_set_flag(&self.fd, key).map_err(|errno| self.error(format!("option {key}"), errno))
    }

    /// Sets an option with a value; `source` is one too.
    ///
    /// # Errors
    ///
    /// `EINVAL` when the filesystem has no such option or refuses the value.
    pub fn set(&self, key: &str, value: impl Arg + core::fmt::Debug) -> core::result::Result<(), MountError> {
        let shown = format!("option {key}={}", value.to_string_lossy());
        rustix::mount::fsconfig_set_string(&self.fd, key, value).map_err(|errno| self.error(shown, errno))
    }

    /// Makes the filesystem and a detached mount of it.
    ///
    /// # Errors
    ///
    /// What the filesystem says to its options, and `EPERM` without the right to mount.
    pub fn mount(self, attrs: MountAttrFlags) -> core::result::Result<OwnedFd, MountError> {
        rustix::mount::fsconfig_create(&self.fd).map_err(|errno| self.error("fsconfig create".to_owned(), errno))?;
        rustix::mount::fsmount(&self.fd, FsMountFlags::FSMOUNT_CLOEXEC, attrs).map_err(|errno| self.error("fsmount".to_owned(), errno))
    }

    /// The error with the messages that the kernel left in the context, which are read once.
    fn error(&self, step: String, errno: Errno) -> MountError {
        let mut message = String::new();
        let mut line = [0_u8; 512];
        // A read gives one message and ENODATA at the end; the bound is for a context that would never end.
        for _ in 0..16 {
            let Ok(length) = rustix::io::read(&self.fd, &mut line) else { break };
            let text = String::from_utf8_lossy(line.get(..length).unwrap_or_default()).trim().to_owned();
            if !message.is_empty() {
                message.push_str("; ");
            }
            // "e " error, "w " warning, "i " information.
            message.push_str(text.get(2..).unwrap_or(&text));
        }
        MountError { fstype: self.fstype, step, errno, message }
    }
}

/// Flags for filesystems that hold no programs and no devices of anybody's.
const SEALED: MountAttrFlags =
    MountAttrFlags::MOUNT_ATTR_NOSUID.union(MountAttrFlags::MOUNT_ATTR_NODEV).union(MountAttrFlags::MOUNT_ATTR_NOEXEC);

/// Options of a tmpfs.
#[derive(Clone, Debug)]
pub struct TmpfsOptions {
    /// What the mount table shows as its source.
    pub source: String,
    /// The most bytes it may hold; the kernel's half of the memory if not given.
    pub size: Option<u64>,
    /// The mode of its root directory.
    pub mode: u32,
    /// The owner of its root directory.
    pub uid: Option<u32>,
    /// The group of its root directory.
    pub gid: Option<u32>,
}

impl Default for TmpfsOptions {
    fn default() -> TmpfsOptions {
        TmpfsOptions { source: "tmpfs".to_owned(), size: None, mode: 0o755, uid: None, gid: None }
    }
}

/// Makes a tmpfs.
///
/// # Errors
///
/// As [`Context::mount`].
pub fn tmpfs(options: &TmpfsOptions, attrs: MountAttrFlags) -> core::result::Result<OwnedFd, MountError> {
    let context = Context::open("tmpfs")?;
    context.set("source", options.source.as_str())?;
    context.set("mode", format!("{:o}", options.mode))?;
    if let Some(size) = options.size {
        context.set("size", size.to_string())?;
    }
    if let Some(uid) = options.uid {
        context.set("uid", uid.to_string())?;
    }
    if let Some(gid) = options.gid {
        context.set("gid", gid.to_string())?;
    }
    context.mount(attrs)
}

/// Makes a `/proc` of the pid namespace that the caller is *in* (not of one that it has unshared for its children).
///
/// # Errors
///
/// As [`Context::mount`]; `EPERM` in a user namespace whose own `/proc` is covered in part.
pub fn procfs() -> core::result::Result<OwnedFd, MountError> {
    let context = Context::open("proc")?;
    context.set("source", "proc")?;
    context.mount(SEALED)
}

/// Makes a `/sys` of the caller's network namespace.
///
/// # Errors
///
/// As [`Context::mount`].
pub fn sysfs(read_only: bool) -> core::result::Result<OwnedFd, MountError> {
    let context = Context::open("sysfs")?;
    context.set("source", "sysfs")?;
    context.mount(if read_only { SEALED | MountAttrFlags::MOUNT_ATTR_RDONLY } else { SEALED })
}

/// Makes a new instance of devpts, whose `ptmx` everybody may open. Terminals belong to the group `gid` if one is given.
///
/// # Errors
///
/// As [`Context::mount`]; `EINVAL` for a group that has no number in this user namespace.
pub fn devpts(gid: Option<u32>) -> core::result::Result<OwnedFd, MountError> {
    let context = Context::open("devpts")?;
    context.set("source", "devpts")?;
    context.set("ptmxmode", "0666")?;
    context.set("mode", "0620")?;
    if let Some(gid) = gid {
        context.set("gid", gid.to_string())?;
    }
    context.mount(MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC)
}

/// Makes the message queues of the caller's ipc namespace visible.
///
/// # Errors
///
/// As [`Context::mount`]; `ENODEV` when the kernel has none.
pub fn mqueue() -> core::result::Result<OwnedFd, MountError> {
    let context = Context::open("mqueue")?;
    context.set("source", "mqueue")?;
    context.mount(SEALED)
}

/// Options of a FUSE mount.
#[derive(Clone, Debug)]
pub struct FuseOptions {
    /// What the mount table shows as its source.
    pub source: Vec<u8>,
    /// The part after `fuse.` of the type that the mount table shows.
    pub subtype: Option<String>,
    /// Other users than `uid` may use it.
    pub allow_other: bool,
    /// The kernel checks permissions by mode and owner.
    pub default_permissions: bool,
    /// Device nodes in it work.
    pub dev: bool,
    /// Set-user-id bits and file capabilities in it count.
    pub suid: bool,
    /// Programs in it can be run.
    pub exec: bool,
    /// Read-only, for the filesystem and for the mount.
    pub read_only: bool,
    /// The longest read that the kernel may ask for.
    pub max_read: Option<u32>,
    /// Type and mode bits of its root.
    pub rootmode: u32,
    /// The user that mounts.
    pub uid: u32,
    /// The group that mounts.
    pub gid: u32,
    /// Further flags of the mount, such as noatime.
    pub attrs: MountAttrFlags,
    /// Options of the kernel's security module, such as `context`.
    pub security: Vec<(&'static str, Vec<u8>)>,
}

impl Default for FuseOptions {
    fn default() -> FuseOptions {
        FuseOptions {
            source: b"fuse".to_vec(),
            subtype: None,
            allow_other: false,
            default_permissions: true,
            dev: false,
            suid: false,
            exec: true,
            read_only: false,
            max_read: None,
            rootmode: libc::S_IFDIR,
            uid: 0,
            gid: 0,
            attrs: MountAttrFlags::empty(),
            security: Vec::new(),
        }
    }
}

/// Opens `/dev/fuse`, after checking that it is the character device 10:229. The descriptor blocks on reading.
///
/// # Errors
///
/// `ENOENT` when there is none, `ENODEV` when it is something else, `EACCES` without the right to use it.
pub fn open_dev_fuse() -> Result<OwnedFd> {
    let fd = rustix::fs::open(c"/dev/fuse", OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let stat = rustix::fs::fstat(&fd)?;
    let is_fuse = stat.st_mode & libc::S_IFMT == libc::S_IFCHR && stat.st_rdev == rustix::fs::makedev(10, 229);
    if !is_fuse {
        return Err(Errno::NODEV);
    }
    // Opened again through the descriptor, so that what was checked is what is opened.
    let path = crate::proc::ProcPath::of(fd.as_fd())?;
    rustix::fs::open(path.as_c_str()?, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
}

/// Makes a FUSE filesystem and a detached mount of it: (`/dev/fuse` descriptor, mount). The kernel sends INIT to the first descriptor
/// at once; whoever serves it answers, before or after the mount is attached. Nothing below the mount can be looked at until then.
///
/// # Errors
///
/// As [`open_dev_fuse`] and [`Context::mount`].
pub fn fuse_mount(options: &FuseOptions) -> core::result::Result<(OwnedFd, OwnedFd), MountError> {
    let device =
        open_dev_fuse().map_err(|errno| MountError { fstype: "fuse", step: "open /dev/fuse".to_owned(), errno, message: String::new() })?;
    let context = Context::open("fuse")?;
    context.set("source", options.source.as_slice())?;
    if let Some(subtype) = &options.subtype {
        context.set("subtype", subtype.as_str())?;
    }
    // As text: kernels before 6.13 take the descriptor as a number only.
    context.set("fd", DecInt::from_fd(&device))?;
    context.set("rootmode", format!("{:o}", options.rootmode))?;
    context.set("user_id", options.uid.to_string())?;
    context.set("group_id", options.gid.to_string())?;
    if options.default_permissions {
        context.flag("default_permissions")?;
    }
    if options.allow_other {
        context.flag("allow_other")?;
    }
    if let Some(max_read) = options.max_read {
        context.set("max_read", max_read.to_string())?;
    }
    for (name, value) in &options.security {
        context.set(name, value.as_slice())?;
    }
    let mut attrs = options.attrs;
    if options.read_only {
        context.flag("ro")?;
        attrs |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    attrs.set(MountAttrFlags::MOUNT_ATTR_NODEV, !options.dev);
    attrs.set(MountAttrFlags::MOUNT_ATTR_NOSUID, !options.suid);
    attrs.set(MountAttrFlags::MOUNT_ATTR_NOEXEC, !options.exec);
    let mount = context.mount(attrs)?;
    Ok((device, mount))
}

#[cfg(test)]
mod tests;
