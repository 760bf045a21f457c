//! Assembles the root, in the new mount namespace and before it is entered.
//!
//! The root is mounted over the old `/`, which hides nothing from this process: absolute paths still start at the old root, as do the
//! sources below, until [`Assembled::enter`].

use std::fmt::Display;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use plyfs_sys::at::{self, At};
use plyfs_sys::mount::{self, MountAttrFlags as Attr, Propagation, SetAttr, kind_of, make_target, resolve_in_root, stat_fd};
use plyfs_sys::root::open_dir;
use plyfs_sys::stat::{Kind, makedev};
use plyfs_sys::{Errno, create, ns, process};

use crate::error::{During, Error, Os, Result};
use crate::spec::{BindSource, DevOptions, FdIndex, InnerPath, MountSpec, PROC_MASKED, PROC_READ_ONLY, Root, Spec, TmpfsOptions};

/// The type number that statfs gives for sysfs.
const SYSFS_MAGIC: i64 = 0x6265_6572;

/// The devices of a container: name, major and minor number.
const DEVICES: [(&str, u32, u32); 6] = [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// Symbolic links in `/dev`.
const LINKS: [(&str, &str); 6] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", "/proc/kcore"),
    ("ptmx", "pts/ptmx"),
];

/// The group that terminals belong to, by a number that all distributions agree on.
const TTY_GROUP: u32 = 5;

/// Detached mounts of what belongs to the caller's mount namespace, taken while still in it.
pub(crate) struct Sources {
    root: OwnedFd,
    /// By the place of the mount in the specification.
    mounts: Vec<Option<OwnedFd>>,
    console: Option<OwnedFd>,
    devpts: Option<OwnedFd>,
}

impl Sources {
    /// Opens them. With an instance of devpts, standard input is a terminal of that.
    pub(crate) fn open(spec: &Spec, fds: Vec<OwnedFd>, devpts: Option<OwnedFd>) -> Result<Sources> {
        let mut fds: Vec<Option<OwnedFd>> = fds.into_iter().map(Some).collect();
        let mut take = |FdIndex(index): FdIndex| {
            fds.get_mut(index).and_then(Option::take).ok_or_else(|| Error::Spec(format!("descriptor {index} is missing")))
        };
        let root = match &spec.root {
            Root::Fd(fd) => {
                let root = take(*fd)?;
                restrict(root.as_fd(), Attr::MOUNT_ATTR_NODEV).during(|| "bar device nodes in the root".to_owned())?;
                root
            }
            Root::Dir { path, read_only } => {
                let what = || format!("bind {path} as the root");
                if !std::fs::metadata(path.as_path()).during(what)?.is_dir() {
                    return Err(Error::setup(what(), Errno::NOTDIR));
                }
                let root = mount::open_tree_clone_path(path.as_path(), true).during(what)?;
                let read_only = if *read_only { Attr::MOUNT_ATTR_RDONLY } else { Attr::empty() };
                restrict(root.as_fd(), Attr::MOUNT_ATTR_NODEV | read_only).during(what)?;
                root
            }
        };
        let mut mounts = Vec::with_capacity(spec.mounts.len());
        for entry in &spec.mounts {
            mounts.push(match entry {
                MountSpec::AttachFd { fd, target } => {
                    let mount = take(*fd)?;
                    restrict(mount.as_fd(), Attr::MOUNT_ATTR_NODEV).during(|| format!("bar device nodes in {target}"))?;
                    Some(mount)
                }
                MountSpec::BindReadOnly { source, target, recursive, optional } => {
                    let what = || match source {
                        BindSource::Path(path) => format!("bind {path} read-only"),
                        BindSource::Fd(_) => format!("bind read-only at {target}"),
                    };
                    let mount = match source {
                        BindSource::Fd(fd) => mount::open_tree_clone(take(*fd)?.as_fd(), c"", *recursive),
                        BindSource::Path(path) => match mount::open_tree_clone_path(path.as_path(), *recursive) {
                            // In a user namespace what is mounted below cannot be left behind.
                            Err(Errno::INVAL) if !*recursive => mount::open_tree_clone_path(path.as_path(), true),
                            other => other,
                        },
                    };
                    match mount {
                        Err(errno) if *optional && is_gone(errno) => None,
                        result => {
                            let mount = result.during(what)?;
                            restrict(mount.as_fd(), Attr::MOUNT_ATTR_RDONLY | Attr::MOUNT_ATTR_NODEV).during(what)?;
                            Some(mount)
                        }
                    }
                }
                _ => None,
            });
        }
        // Of a detached mount nothing can be cloned before it is attached.
        let console = if devpts.is_none() { console() } else { None };
        Ok(Sources { root, mounts, console, devpts })
    }
}

/// A detached instance of devpts for a container.
pub(crate) fn devpts() -> std::result::Result<OwnedFd, mount::MountError> {
    match mount::devpts(Some(TTY_GROUP)) {
        // The group has no number in this user namespace.
        Err(error) if error.errno == Errno::INVAL => mount::devpts(None),
        result => result,
    }
}

/// Whether something is not there, or was left behind by its server.
fn is_gone(errno: Errno) -> bool {
    matches!(errno, Errno::NOENT | Errno::NOTDIR | Errno::ACCESS | Errno::NOTCONN | Errno::STALE | Errno::IO | Errno::HOSTDOWN)
}

/// Sets flags of a detached mount and all below it, and makes them private.
fn restrict(mount: BorrowedFd<'_>, set: Attr) -> plyfs_sys::Result<()> {
    mount::mount_setattr(mount, &SetAttr { set, propagation: Some(Propagation::Private), ..SetAttr::default() }, true)
}

/// The terminal that standard input is, if it is one that can be shown as the console.
fn console() -> Option<OwnedFd> {
    let stdin = std::io::stdin();
    let stdin = stdin.as_fd();
    if !process::is_terminal(stdin) || stat_fd(stdin).ok()?.kind != Kind::Char {
        return None;
    }
    // By the very descriptor, so there is nothing to check. A terminal of another mount namespace (a container in a container) cannot be
    // cloned, and the command then has no /dev/console, only its standard input.
    let clone = mount::open_tree_clone(stdin, c"", false).ok()?;
    restrict(clone.as_fd(), Attr::MOUNT_ATTR_RDONLY | Attr::MOUNT_ATTR_NOSUID | Attr::MOUNT_ATTR_NOEXEC).ok()?;
    Some(clone)
}

/// A root that is being put together.
pub(crate) struct Assembly {
    root: OwnedFd,
    mounts: Vec<Option<OwnedFd>>,
    console: Option<OwnedFd>,
    devpts: Option<OwnedFd>,
}

/// A root that is complete.
pub(crate) struct Assembled {
    root: OwnedFd,
}

impl Assembled {
    /// Makes it `/`, and takes everything that was mounted before out of the namespace.
    pub(crate) fn enter(self) -> Result<()> {
        ns::fchdir(self.root.as_fd()).during(|| "enter the new root".to_owned())?;
        ns::pivot_root_here().map_err(|errno| Error::Setup {
            what: "pivot to the new root".to_owned(),
            errno: Os::from(errno),
            remedy: match errno {
                Errno::INVAL => "the current root must be a mount of its own: neither a chroot nor the initial ramfs",
                _ => "",
            }
            .to_owned(),
        })
    }
}

impl Assembly {
    /// Starts in the new mount namespace: nothing that is mounted here is seen elsewhere from now on.
    pub(crate) fn new(sources: Sources) -> Result<Assembly> {
        mount::make_private_recursive(c"/").map_err(|errno| Error::Setup {
            what: "make the mounts of the new namespace private".to_owned(),
            errno: Os::from(errno),
            remedy: if errno == Errno::INVAL { "the current root is not the root of a mount: leave the chroot" } else { "" }.to_owned(),
        })?;
        let Sources { root, mounts, console, devpts } = sources;
        let slash = open_dir(Path::new("/")).during(|| "open /".to_owned())?;
        mount::move_mount(root.as_fd(), slash.as_fd()).during(|| "attach the new root".to_owned())?;
        Ok(Assembly { root, mounts, console, devpts })
    }

    /// Mounts all that the specification wants.
    pub(crate) fn build(mut self, spec: &Spec) -> Result<Assembled> {
        for (index, entry) in spec.mounts.iter().enumerate() {
            let source = self.mounts.get_mut(index).and_then(Option::take);
            // Why a place cannot be looked up is told where something is mounted there.
            if spec.keep_root && matches!(self.find(entry.target()), Ok(None)) {
                continue;
            }
            match (entry, source) {
                (MountSpec::BindReadOnly { target, optional: true, .. }, Some(mount)) => match self.attach(mount.as_fd(), target) {
                    // In a user namespace the place shows what is mounted there on the host, which may have lost its server.
                    Err(Error::Setup { errno, .. }) if is_gone(Errno::from_raw_os_error(errno.0)) => {}
                    result => result?,
                },
                (MountSpec::AttachFd { target, .. } | MountSpec::BindReadOnly { target, .. }, Some(mount)) => {
                    self.attach(mount.as_fd(), target)?;
                }
                (MountSpec::BindReadOnly { optional: true, .. }, None) => {}
                (MountSpec::AttachFd { target, .. } | MountSpec::BindReadOnly { target, .. }, None) => {
                    return Err(Error::Spec(format!("the mount for {target} is missing")));
                }
                (MountSpec::Proc { target }, _) => self.proc(target)?,
                (MountSpec::SysfsReadOnly { target }, _) => self.sysfs(target)?,
                (MountSpec::Dev(options), _) => self.dev(options, spec.ipc)?,
                (MountSpec::Tmpfs { target, options }, _) => {
                    let mount = tmpfs(options).during(|| format!("make a tmpfs for {target}"))?;
                    self.attach(mount.as_fd(), target)?;
                }
                (MountSpec::Mask { target }, _) => self.mask(target)?,
            }
        }
        for target in &spec.masked {
            self.mask(target)?;
        }
        for target in &spec.read_only {
            if let Some(found) = self.find(target)? {
                make_read_only(found.as_fd(), true).during(|| format!("make {target} read-only"))?;
            }
        }
        Ok(Assembled { root: self.root })
    }

    /// What a path leads to inside the root.
    fn find(&self, target: &InnerPath) -> Result<Option<OwnedFd>> {
        match resolve_in_root(self.root.as_fd(), target.as_bytes()) {
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            result => result.map(Some).during(|| format!("look up {target} inside the root")),
        }
    }

    /// Mounts at a place inside the root, which is made if need be, as a directory or file as the mount's root is one.
    fn attach(&self, mount: BorrowedFd<'_>, target: &InnerPath) -> Result<()> {
        let directory = kind_of(mount).during(|| format!("look at what is to be mounted at {target}"))? == Kind::Dir;
        let place = make_target(self.root.as_fd(), target.as_bytes(), directory).map_err(|errno| Error::Setup {
            what: format!("find or make the mount point {target} inside the root"),
            errno: Os::from(errno),
            remedy: match errno {
                Errno::ROFS => "the root is read-only; add the mount point to a layer",
                Errno::NOTDIR | Errno::ISDIR => "a file is mounted on a file and a directory on a directory only",
                Errno::LOOP => "links of /proc are not followed",
                _ => "",
            }
            .to_owned(),
        })?;
        mount::move_mount(mount, place.as_fd()).during(|| format!("mount at {target}"))
    }

    fn mask(&self, target: &InnerPath) -> Result<()> {
        match self.find(target)? {
            None => Ok(()),
            Some(found) => mask(found.as_fd(), target),
        }
    }

    fn proc(&self, target: &InnerPath) -> Result<()> {
        let proc = mount::procfs().during(|| "make a /proc for the new pid namespace".to_owned())?;
        self.attach(proc.as_fd(), target)?;
        // Everything below is found from the new /proc's own root: no other filesystem can come in between.
        let find = |name: &str| match resolve_in_root(proc.as_fd(), name.as_bytes()) {
            Err(Errno::NOENT) => Ok(None),
            result => result.map(Some).during(|| format!("look up {target}/{name}")),
        };
        for name in PROC_READ_ONLY {
            if let Some(found) = find(name)? {
                make_read_only(found.as_fd(), false).during(|| format!("make {target}/{name} read-only"))?;
            }
        }
        for name in PROC_MASKED {
            if let Some(found) = find(name)? {
                mask(found.as_fd(), &format_args!("{target}/{name}"))?;
            }
        }
        Ok(())
    }

    fn sysfs(&self, target: &InnerPath) -> Result<()> {
        let host = open_dir(Path::new("/sys")).ok().filter(|dir| is_sysfs(dir.as_fd()));
        let sys = match host {
            Some(host) => {
                let what = || "clone the host's /sys read-only".to_owned();
                let clone = mount::open_tree_clone(host.as_fd(), c"", true).during(what)?;
                let sealed = Attr::MOUNT_ATTR_RDONLY | Attr::MOUNT_ATTR_NOSUID | Attr::MOUNT_ATTR_NODEV | Attr::MOUNT_ATTR_NOEXEC;
                restrict(clone.as_fd(), sealed).during(what)?;
                clone
            }
            None => mount::sysfs(true).during(|| "make a read-only /sys".to_owned())?,
        };
        self.attach(sys.as_fd(), target)
    }

    /// A `/dev` of its own. The directory is a tmpfs in which device nodes do not work, so that a command that may make some gains
    /// nothing; those that are to work are bound one by one.
    fn dev(&mut self, options: &DevOptions, ipc: bool) -> Result<()> {
        let target = &options.target;
        let what = |name: &str| format!("make {target}/{name}");
        let limits = mount::TmpfsOptions { size: Some(64 << 20), ..mount::TmpfsOptions::default() };
        let dev =
            mount::tmpfs(&limits, Attr::MOUNT_ATTR_NOSUID | Attr::MOUNT_ATTR_NODEV).during(|| format!("make a tmpfs for {target}"))?;
        self.attach(dev.as_fd(), target)?;
        let dev = dev.as_fd();

        for (name, major, minor) in DEVICES {
            let device = device(name, major, minor)?;
            let place = file(dev, name).during(|| what(name))?;
            mount::move_mount(device.as_fd(), place.as_fd()).during(|| what(name))?;
        }
        for (name, link) in LINKS {
            create::symlink(dev, name.as_bytes(), link.as_bytes()).during(|| what(name))?;
        }

        let (pts, is_ours) = match self.devpts.take() {
            Some(pts) => (pts, true),
            None => (devpts().during(|| what("pts"))?, false),
        };
        let place = directory(dev, "pts").during(|| what("pts"))?;
        mount::move_mount(pts.as_fd(), place.as_fd()).during(|| what("pts"))?;
        if is_ours {
            self.console = console();
        }

        let limits = mount::TmpfsOptions { source: "shm".to_owned(), size: options.shm_size, mode: 0o1777, ..Default::default() };
        let sealed = Attr::MOUNT_ATTR_NOSUID | Attr::MOUNT_ATTR_NODEV | Attr::MOUNT_ATTR_NOEXEC;
        let shm = mount::tmpfs(&limits, sealed).during(|| what("shm"))?;
        let place = directory(dev, "shm").during(|| what("shm"))?;
        mount::move_mount(shm.as_fd(), place.as_fd()).during(|| what("shm"))?;

        // Without an ipc namespace of its own it would show the host's queues.
        if ipc {
            match mount::mqueue() {
                // A kernel without them.
                Err(error) if error.errno == Errno::NODEV => {}
                result => {
                    let mqueue = result.during(|| what("mqueue"))?;
                    let place = directory(dev, "mqueue").during(|| what("mqueue"))?;
                    mount::move_mount(mqueue.as_fd(), place.as_fd()).during(|| what("mqueue"))?;
                }
            }
        }
        if let Some(console) = &self.console {
            let place = file(dev, "console").during(|| what("console"))?;
            mount::move_mount(console.as_fd(), place.as_fd()).during(|| what("console"))?;
        }
        Ok(())
    }
}

fn tmpfs(options: &TmpfsOptions) -> std::result::Result<OwnedFd, mount::MountError> {
    let mut attrs = Attr::MOUNT_ATTR_NOSUID | Attr::MOUNT_ATTR_NODEV;
    attrs.set(Attr::MOUNT_ATTR_NOEXEC, !options.exec);
    attrs.set(Attr::MOUNT_ATTR_RDONLY, options.read_only);
    mount::tmpfs(&mount::TmpfsOptions { size: options.size, mode: options.mode, ..Default::default() }, attrs)
}

/// Makes an empty file to mount on.
fn file(dir: BorrowedFd<'_>, name: &str) -> plyfs_sys::Result<OwnedFd> {
    create::create(dir, name.as_bytes(), 0o644)?;
    at::open_path(At::Name(dir, name.as_bytes()))
}

/// Makes a directory to mount on.
fn directory(dir: BorrowedFd<'_>, name: &str) -> plyfs_sys::Result<OwnedFd> {
    create::mkdir(dir, name.as_bytes(), 0o755)?;
    at::open_path(At::Name(dir, name.as_bytes()))
}

/// A detached mount of one of the host's devices, which must be what its name says. Read-only: that is nothing to those who read from and
/// write to the device, and keeps its mode and owner, which are the host's.
fn device(name: &str, major: u32, minor: u32) -> Result<OwnedFd> {
    let path = format!("/dev/{name}");
    let dev = open_dir(Path::new("/dev")).during(|| "open /dev of the host".to_owned())?;
    let node = at::open_path(At::Name(dev.as_fd(), name.as_bytes())).during(|| format!("open {path} of the host"))?;
    let stat = stat_fd(node.as_fd()).during(|| format!("look at {path} of the host"))?;
    if stat.kind != Kind::Char || stat.rdev != makedev(major, minor) {
        return Err(Error::Impostor { file: format!("{path} of the host"), expected: format!("the character device {major}:{minor}") });
    }
    let what = || format!("clone the mount of {path}");
    let clone = mount::open_tree_clone(node.as_fd(), c"", false).during(what)?;
    restrict(clone.as_fd(), Attr::MOUNT_ATTR_RDONLY | Attr::MOUNT_ATTR_NOSUID | Attr::MOUNT_ATTR_NOEXEC).during(what)?;
    Ok(clone)
}

fn is_sysfs(dir: BorrowedFd<'_>) -> bool {
    plyfs_sys::statfs::statfs(dir).is_ok_and(|stat| stat.fs_type == SYSFS_MAGIC)
}

/// Puts a read-only bind of itself over a file or directory.
fn make_read_only(found: BorrowedFd<'_>, recursive: bool) -> plyfs_sys::Result<()> {
    let clone = mount::open_tree_clone(found, c"", recursive)?;
    restrict(clone.as_fd(), Attr::MOUNT_ATTR_RDONLY)?;
    mount::move_mount(clone.as_fd(), found)
}

/// Hides a file or directory.
fn mask(found: BorrowedFd<'_>, target: &dyn Display) -> Result<()> {
    let what = || format!("mask {target}");
    let cover = if kind_of(found).during(what)? == Kind::Dir {
        let limits = mount::TmpfsOptions { size: Some(4096), ..Default::default() };
        let sealed = Attr::MOUNT_ATTR_RDONLY | Attr::MOUNT_ATTR_NOSUID | Attr::MOUNT_ATTR_NODEV | Attr::MOUNT_ATTR_NOEXEC;
        mount::tmpfs(&limits, sealed).during(what)?
    } else {
        device("null", 1, 3)?
    };
    mount::move_mount(cover.as_fd(), found).during(what)
}
