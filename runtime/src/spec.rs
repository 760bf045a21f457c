//! What to launch: the root, what is mounted in it, the command, and what it may do.
//!
//! A [`Spec`] is plain data. It crosses from the process that serves the union to the one that becomes the command, hence serde; mounts
//! cross as descriptors, which a spec names by their [`FdIndex`] in the list given to [`crate::Launcher::spawn`].

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use plyfs_sys::process::caps;

use crate::error::{Error, Result};

/// The place of a descriptor in the list that goes with a [`Spec`].
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdIndex(pub usize);

macro_rules! path_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(Vec<u8>);

        impl $name {
            /// Its bytes.
            pub fn as_bytes(&self) -> &[u8] {
                &self.0
            }

            /// It as a path.
            pub fn as_path(&self) -> &Path {
                Path::new(OsStr::from_bytes(&self.0))
            }
        }

        impl<T: AsRef<OsStr> + ?Sized> From<&T> for $name {
            fn from(path: &T) -> $name {
                $name(path.as_ref().as_bytes().to_vec())
            }
        }

        impl From<PathBuf> for $name {
            fn from(path: PathBuf) -> $name {
                $name::from(&path)
            }
        }

        impl From<Vec<u8>> for $name {
            fn from(bytes: Vec<u8>) -> $name {
                $name(bytes)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self.as_path(), f)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.as_path().display(), f)
            }
        }
    };
}

path_type! {
    /// A path inside the command's root, from `/`. Links and `..` in it never lead outside.
    InnerPath
}
path_type! {
    /// A path of the caller's view.
    HostPath
}

/// What becomes `/`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Root {
    /// A detached mount, such as a union.
    Fd(FdIndex),
    /// A directory as it is, with the mounts below it: what the command writes is written there, unless `read_only`.
    Dir {
        /// The directory.
        path: HostPath,
        /// Nothing can be written.
        read_only: bool,
    },
}

/// Something mounted in the root. The entries of a list are mounted in their order. Places that are missing are made, unless [`Spec::keep_root`] is set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountSpec {
    /// A detached mount, attached as it is, but that device nodes in it do not work.
    AttachFd {
        /// The mount.
        fd: FdIndex,
        /// Where.
        target: InnerPath,
    },
    /// `/proc` of the new pid namespace, with [`PROC_READ_ONLY`] and [`PROC_MASKED`] applied.
    Proc {
        /// Where.
        target: InnerPath,
    },
    /// The host's `/sys` with all that is mounted below it, read-only; a new read-only one if the host has none.
    SysfsReadOnly {
        /// Where.
        target: InnerPath,
    },
    /// A private `/dev`.
    Dev(DevOptions),
    /// An empty tmpfs.
    Tmpfs {
        /// Where.
        target: InnerPath,
        /// Its limits.
        options: TmpfsOptions,
    },
    /// A file or directory of the host, read-only, where devices do not work.
    BindReadOnly {
        /// What.
        source: BindSource,
        /// Where.
        target: InnerPath,
        /// With the mounts below it.
        recursive: bool,
        /// Fine if the source is gone, or cannot be reached.
        optional: bool,
    },
    /// Nothing to see: an empty read-only tmpfs over a directory, `/dev/null` over anything else. Fine if there is nothing.
    Mask {
        /// Over what.
        target: InnerPath,
    },
}

/// What to bind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BindSource {
    /// A descriptor of a file or directory, `O_PATH` will do.
    Fd(FdIndex),
    /// A path, in which links are followed.
    Path(HostPath),
}

/// Options of the private `/dev`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DevOptions {
    /// Where, as a rule `/dev`.
    pub target: InnerPath,
    /// The most bytes of `shm`; the kernel's default if not given.
    pub shm_size: Option<u64>,
}

impl Default for DevOptions {
    fn default() -> DevOptions {
        DevOptions { target: InnerPath::from("/dev"), shm_size: None }
    }
}

/// Options of a tmpfs. Set-user-id bits and devices do not work in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TmpfsOptions {
    /// The most bytes; the kernel's default if not given.
    pub size: Option<u64>,
    /// The mode of its root.
    pub mode: u32,
    /// Programs can be run from it.
    pub exec: bool,
    /// Nothing can be written, ever.
    pub read_only: bool,
}

impl Default for TmpfsOptions {
    fn default() -> TmpfsOptions {
        TmpfsOptions { size: None, mode: 0o755, exec: true, read_only: false }
    }
}

/// What the command, and all that it runs, may be allowed to do at most.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Capabilities {
    /// All that the caller may. With `CAP_SYS_ADMIN` or `CAP_DAC_READ_SEARCH` a command can reach the host's files past any view.
    Keep,
    /// These (bits by number) and no others.
    Only(u64),
}

impl Capabilities {
    /// What docker leaves to a container. No mounting, no raw devices, no kernel modules, no network set-up, no opening by handle.
    pub fn container() -> Capabilities {
        use caps::Set;
        let set = Set::AUDIT_WRITE
            | Set::CHOWN
            | Set::DAC_OVERRIDE
            | Set::FOWNER
            | Set::FSETID
            | Set::KILL
            | Set::MKNOD
            | Set::NET_BIND_SERVICE
            | Set::NET_RAW
            | Set::SETFCAP
            | Set::SETGID
            | Set::SETPCAP
            | Set::SETUID
            | Set::SYS_CHROOT;
        Capabilities::Only(set.bits())
    }

    /// Nothing.
    pub fn none() -> Capabilities {
        Capabilities::Only(0)
    }

    /// These by name, with or without `CAP_`.
    ///
    /// # Errors
    ///
    /// [`Error::Spec`] for a name that is none.
    pub fn only<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Capabilities> {
        let mut bits = 0;
        for name in names {
            let number = caps::number_of(name).ok_or_else(|| Error::Spec(format!("there is no capability {name:?}")))?;
            bits |= 1 << number;
        }
        Ok(Capabilities::Only(bits))
    }
}

/// What is read-only of every `/proc`.
pub const PROC_READ_ONLY: [&str; 5] = ["bus", "fs", "irq", "sys", "sysrq-trigger"];

/// What is masked of every `/proc`.
pub const PROC_MASKED: [&str; 10] =
    ["acpi", "asound", "interrupts", "kcore", "keys", "latency_stats", "sched_debug", "scsi", "timer_list", "timer_stats"];

/// What containers mask of `/sys`.
pub const SYS_MASKED: [&str; 2] = ["/sys/firmware", "/sys/devices/virtual/powercap"];

/// A command and its surroundings.
///
/// It runs in new mount and pid namespaces, with descriptors 0 to 2 as the caller's (or a terminal of its own, see
/// [`crate::Launcher::own_terminal`]) and no others, umask 022, default signal dispositions (an ignored SIGHUP stays ignored, for `nohup`) and
/// no signal blocked. User and group are the caller's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// What becomes `/`.
    pub root: Root,
    /// What is mounted in it, in this order.
    pub mounts: Vec<MountSpec>,
    /// The command and its arguments. Without a slash it is looked for in `PATH` of `env`, inside the root.
    pub argv: Vec<OsString>,
    /// Its whole environment.
    pub env: Vec<(OsString, OsString)>,
    /// Its current directory.
    pub cwd: InnerPath,
    /// Take `/` if `cwd` is no directory there.
    pub cwd_or_root: bool,
    /// Make no place to mount at in the root: an entry whose place is missing is left out.
    pub keep_root: bool,
    /// Its host name; needs `uts`.
    pub hostname: Option<OsString>,
    /// A uts namespace of its own.
    pub uts: bool,
    /// An ipc namespace of its own, without which there is no `/dev/mqueue`.
    pub ipc: bool,
    /// Process 1 is a tiny init, which reaps orphans and passes signals on to the command, and ends with it. Otherwise the command
    /// itself is process 1, for which signals without a handler do not count.
    pub init: bool,
    /// Set-user-id programs give no rights.
    pub no_new_privs: bool,
    /// Masked as by [`MountSpec::Mask`], after all mounts.
    pub masked: Vec<InnerPath>,
    /// Made read-only with all below, after all mounts. Fine if missing.
    pub read_only: Vec<InnerPath>,
    /// What it may do at most.
    pub capabilities: Capabilities,
}

impl Spec {
    /// A command on a root with the usual `/proc`, `/sys` and `/dev`, in all four namespaces, with a container's capabilities.
    pub fn new(root: Root, argv: impl IntoIterator<Item = impl Into<OsString>>) -> Spec {
        Spec {
            root,
            mounts: vec![
                MountSpec::Proc { target: InnerPath::from("/proc") },
                MountSpec::SysfsReadOnly { target: InnerPath::from("/sys") },
                MountSpec::Dev(DevOptions::default()),
            ],
            argv: argv.into_iter().map(Into::into).collect(),
            env: vec![(OsString::from("PATH"), OsString::from("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"))],
            cwd: InnerPath::from("/"),
            cwd_or_root: false,
            keep_root: false,
            hostname: None,
            uts: true,
            ipc: true,
            init: true,
            no_new_privs: true,
            masked: SYS_MASKED.iter().map(InnerPath::from).collect(),
            read_only: Vec::new(),
            capabilities: Capabilities::container(),
        }
    }

    /// Sees that it makes sense with this many descriptors.
    pub(crate) fn check(&self, fds: usize) -> Result<()> {
        let refuse = |why: String| Err(Error::Spec(why));
        if self.argv.first().is_none_or(|command| command.is_empty()) {
            return refuse("the command is empty".to_owned());
        }
        for text in self.argv.iter().chain(self.env.iter().flat_map(|(name, value)| [name, value])) {
            if text.as_bytes().contains(&0) {
                return refuse(format!("{text:?} contains a NUL byte"));
            }
        }
        for (name, _) in &self.env {
            if name.is_empty() || name.as_bytes().contains(&b'=') {
                return refuse(format!("{name:?} is no name of an environment variable"));
            }
        }
        if let Some(hostname) = &self.hostname {
            if !self.uts {
                return refuse("a host name needs a uts namespace of its own".to_owned());
            }
            if hostname.is_empty() || hostname.len() > 64 {
                return refuse(format!("the host name {hostname:?} is not of 1 to 64 bytes"));
            }
        }
        let mut used = vec![false; fds];
        for FdIndex(index) in self.descriptors() {
            match used.get_mut(index) {
                None => return refuse(format!("descriptor {index} of {fds} is named")),
                Some(true) => return refuse(format!("descriptor {index} is named twice")),
                Some(used) => *used = true,
            }
        }
        let targets = self.mounts.iter().map(MountSpec::target).chain(&self.masked).chain(&self.read_only);
        for target in targets.chain([&self.cwd]) {
            if target.as_bytes().first() != Some(&b'/') || target.as_bytes().contains(&0) {
                return refuse(format!("{target:?} is no absolute path"));
            }
        }
        Ok(())
    }

    fn descriptors(&self) -> impl Iterator<Item = FdIndex> {
        let root = match self.root {
            Root::Fd(fd) => Some(fd),
            Root::Dir { .. } => None,
        };
        let mounts = self.mounts.iter().filter_map(|mount| match mount {
            MountSpec::AttachFd { fd, .. } | MountSpec::BindReadOnly { source: BindSource::Fd(fd), .. } => Some(*fd),
            _ => None,
        });
        root.into_iter().chain(mounts)
    }
}

impl MountSpec {
    /// Where it is mounted.
    pub fn target(&self) -> &InnerPath {
        match self {
            MountSpec::AttachFd { target, .. }
            | MountSpec::Proc { target }
            | MountSpec::SysfsReadOnly { target }
            | MountSpec::Dev(DevOptions { target, .. })
            | MountSpec::Tmpfs { target, .. }
            | MountSpec::BindReadOnly { target, .. }
            | MountSpec::Mask { target } => target,
        }
    }
}

#[cfg(test)]
mod tests;
