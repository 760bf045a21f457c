//! Opening real directories as layers, with every check that a mount makes before it starts.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use plyfs_format::Dialect;
use plyfs_sys::at::{self, At};
use plyfs_sys::mount::MountAttrFlags;
use plyfs_sys::mount::{self, MountInfo};
use plyfs_sys::stat::Kind;
use plyfs_sys::{Errno, OFlags, RenameFlags, create, handle, io, proc, process, root, statfs, tree};

use super::{DirNode, DirTree, FdCache, Keeper, NodeInner, ObjectId, Placed};
use super::{volatile, workdir};
use crate::sync::AtomicBool;

/// Why a directory cannot be a layer; says what, where and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum LayerOpenError {
    /// The path cannot be opened as a directory.
    #[error("{what} {path}: {errno}; {}", remedy(*errno))]
    Open {
        /// Which option named it.
        what: &'static str,
        /// The path.
        path: PathBuf,
        /// What the host answered.
        errno: Errno,
    },
    /// Upper and work directory are not on one mount.
    #[error("upperdir {upper} and workdir {work} are on different filesystems or mounts; put both below one mount")]
    OtherMount {
        /// upperdir.
        upper: PathBuf,
        /// workdir.
        work: PathBuf,
    },
    /// One layer is inside another.
    #[error(
        "{inner_what} {inner} is inside {outer_what} {outer} (or the same directory); layers must not overlap: give directories beside each other"
    )]
    Overlap {
        /// Option of the inner one.
        inner_what: &'static str,
        /// The inner one.
        inner: PathBuf,
        /// Option of the outer one.
        outer_what: &'static str,
        /// The outer one.
        outer: PathBuf,
    },
    /// Another mount uses it.
    #[error("{what} {path} is in use by another mount; unmount that one first, or give this one a directory of its own")]
    InUse {
        /// Which option named it.
        what: &'static str,
        /// The path.
        path: PathBuf,
    },
    /// Kernel overlayfs uses it.
    #[error("{what} {path} is in use by the overlay mounted at {at}; unmount that one first, or give this one a directory of its own")]
    InKernelUse {
        /// Which option named it.
        what: &'static str,
        /// The path.
        path: PathBuf,
        /// Where the overlay is mounted.
        at: PathBuf,
    },
    /// The work directory was written by something that knows more.
    #[error("workdir {path}: {what}; mount it with what wrote it, or see with 'plyfs fsck' what there is")]
    OtherVersion {
        /// The path.
        path: PathBuf,
        /// What is not known here.
        what: String,
    },
    /// The last mount was `volatile`, and the machine was started since.
    #[error(
        "workdir {path}: the last mount was volatile, and what it wrote may not have reached the disk before the machine stopped; \
         make upperdir and workdir new, or, if upperdir has everything, remove work/incompat/volatile in it"
    )]
    Volatile {
        /// The path.
        path: PathBuf,
    },
    /// The work directory holds something that cannot be removed.
    #[error("workdir {path}: cannot prepare 'work' and 'index' in it: {errno}; give an empty directory")]
    Work {
        /// The path.
        path: PathBuf,
        /// What the host answered.
        errno: Errno,
    },
}

fn remedy(errno: Errno) -> &'static str {
    match errno {
        Errno::NOENT => "create it, or correct the path",
        Errno::NOTDIR => "a layer must be a directory",
        Errno::ACCESS | Errno::PERM => "run as a user who may read it (root)",
        Errno::LOOP => "the path has a loop of symlinks",
        Errno::ROFS => "it must be on a writable filesystem",
        Errno::MFILE => "each layer keeps a file open: raise the limit of open files (ulimit -Hn), or merge layers",
        _ => "see the error of the host",
    }
}

fn open_root(what: &'static str, path: &Path) -> Result<OwnedFd, LayerOpenError> {
    root::open_dir(path).map_err(|errno| LayerOpenError::Open { what, path: path.into(), errno })
}

/// Where a directory is: its own identity and those of all directories above it, and its path within its filesystem.
struct Situation {
    ids: Vec<ObjectId>,
    /// The device of the filesystem, and the path from its root: bind mounts do not hide what is above. `None` where the mount is not in the table.
    path: Option<((u32, u32), Vec<u8>)>,
}

impl Situation {
    fn of(dir: BorrowedFd<'_>, mounts: &HashMap<u64, MountInfo>) -> plyfs_sys::Result<Self> {
        let mut at = dir.try_clone_to_owned().map_err(|_| Errno::MFILE)?;
        let mut ids: Vec<ObjectId> = vec![ObjectId::of(&at::stat(At::Fd(at.as_fd()))?)];
        loop {
            let up = tree::open_parent(at.as_fd())?;
            let id = ObjectId::of(&at::stat(At::Fd(up.as_fd()))?);
            if ids.last() == Some(&id) {
                break;
            }
            ids.push(id);
            at = up;
        }
        let mount = mounts.get(&mount::mount_id_of(dir)?);
        let path = match (mount, proc::path_of(dir)) {
            (Some(mount), Ok(path)) => within(mount, &path).map(|path| (mount.dev, path)),
            _ => None,
        };
        Ok(Self { ids, path })
    }
}

/// The path within the filesystem of a path on one of its mounts.
fn within(mount: &MountInfo, path: &[u8]) -> Option<Vec<u8>> {
    let slashless = |path: &[u8]| path.strip_suffix(b"/").unwrap_or(path).to_vec();
    let below = path.strip_prefix(slashless(&mount.mountpoint).as_slice())?;
    if !below.is_empty() && !below.starts_with(b"/") {
        return None;
    }
    let mut whole = slashless(&mount.root);
    whole.extend_from_slice(&slashless(below));
    Some(whole)
}

/// A path and all paths above it.
fn upwards(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::successors(Some(path), |path| path.iter().rposition(|&byte| byte == b'/').and_then(|at| path.get(..at)))
}

/// Refuses layers of which one contains another (semantics: layers that overlap are refused, as kernel overlayfs does with ELOOP), whatever links and bind mounts lead there.
pub fn check_overlap(layers: &[(&'static str, &Path)]) -> Result<(), LayerOpenError> {
    // Without /proc the directories above still tell, but not those behind a bind mount.
    let table = mount::mounts().unwrap_or_default();
    let mounts: HashMap<u64, MountInfo> = table.into_iter().map(|mount| (mount.id, mount)).collect();
    let mut known = Vec::with_capacity(layers.len());
    for (what, path) in layers {
        let fd = open_root(what, path)?;
        known.push(Situation::of(fd.as_fd(), &mounts).map_err(|errno| open_error(what, path, errno))?);
    }
    let mut by_id = HashMap::new();
    let mut by_path = HashMap::new();
    for (index, place) in known.iter().enumerate() {
        place.ids.first().map(|id| *by_id.entry(*id).or_insert(index));
        place.path.as_ref().map(|(dev, path)| *by_path.entry((*dev, path.as_slice())).or_insert(index));
    }
    for (inner, place) in known.iter().enumerate() {
        let above = place.ids.iter().filter_map(|id| by_id.get(id));
        let paths = place.path.iter().flat_map(|(dev, path)| upwards(path).map(|path| (*dev, path)));
        let outer = above.chain(paths.filter_map(|place| by_path.get(&place))).copied().find(|outer| *outer != inner);
        if let Some((outer_what, outer)) = outer.and_then(|outer| layers.get(outer))
            && let Some((inner_what, inner)) = layers.get(inner)
        {
            return Err(LayerOpenError::Overlap { inner_what, inner: (*inner).into(), outer_what, outer: (*outer).into() });
        }
    }
    Ok(())
}

impl DirTree {
    /// Opens a read-only layer; through a private read-only clone of its mount where the kernel allows that, so that not even a mistake could
    /// write to it and mounts below it do not show.
    ///
    /// Errors: the path is not a directory or may not be opened.
    pub fn lower(path: &Path) -> Result<Self, LayerOpenError> {
        let what = "lowerdir";
        let fd = open_root(what, path)?;
        let fd = match root::clone_readonly(fd.as_fd()) {
            Ok(clone) => clone,
            Err(errno) => {
                tracing::debug!(path = %path.display(), %errno, "no private clone of the layer's mount; its O_PATH fd serves");
                fd
            }
        };
        Self::lower_from_fd(fd).map_err(|errno| LayerOpenError::Open { what, path: path.into(), errno })
    }

    /// Takes an open directory as a read-only layer (a detached mount, for example).
    ///
    /// Errors: what stat and the handle probe of the host answer.
    pub fn lower_from_fd(fd: OwnedFd) -> plyfs_sys::Result<Self> {
        let root = root_node(fd)?;
        let uuid = handle_uuid(&root)?;
        let (fds, pinned) = (FdCache::shared(), FdCache::pinned(1));
        Ok(Self {
            root,
            work: None,
            index: None,
            fds,
            _pinned: pinned,
            uuid,
            keeper: Keeper::default(),
            idmap: None,
            bound: None,
            locks: Vec::new(),
        })
    }

    /// Opens upper and work directory: one mount, locked against a second mount, `work/work` made and emptied.
    ///
    /// Errors: see [`LayerOpenError`].
    pub fn upper(upper: &Path, work: &Path) -> Result<Self, LayerOpenError> {
        Self::upper_with(upper, work, None)
    }

    /// As [`DirTree::upper`]; reading changes access times as these flags of a mount say (`MOUNT_ATTR__ATIME` and `MOUNT_ATTR_NODIRATIME`), whatever the
    /// mount of the directory says. Where no private clone of it can be had, it is as the mount says.
    ///
    /// Errors: see [`LayerOpenError`].
    pub fn upper_with(upper: &Path, work: &Path, atime: Option<MountAttrFlags>) -> Result<Self, LayerOpenError> {
        let upper_fd = open_root("upperdir", upper)?;
        let work_fd = open_root("workdir", work)?;
        let other_mount = || LayerOpenError::OtherMount { upper: upper.into(), work: work.into() };
        let same_mount = |a: BorrowedFd<'_>, b: BorrowedFd<'_>| -> plyfs_sys::Result<bool> {
            Ok(mount::mount_id_of(a)? == mount::mount_id_of(b)? && at::stat(At::Fd(a))?.dev == at::stat(At::Fd(b))?.dev)
        };
        if !same_mount(upper_fd.as_fd(), work_fd.as_fd()).map_err(|errno| open_error("workdir", work, errno))? {
            return Err(other_mount());
        }
        check_overlap(&[("upperdir", upper), ("workdir", work)])?;
        let (upper_fd, work_fd) = match cloned_pair((upper, upper_fd.as_fd()), (work, work_fd.as_fd()), atime) {
            Ok(pair) => pair,
            Err(errno) => {
                tracing::debug!(path = %upper.display(), %errno, "no private clone of the upper's mount; the mount itself serves");
                (upper_fd, work_fd)
            }
        };
        let locks = vec![lock("upperdir", upper, upper_fd.as_fd())?, lock("workdir", work, work_fd.as_fd())?];
        workdir::refuse_kernel_mounts(&[("upperdir", upper, upper_fd.as_fd()), ("workdir", work, work_fd.as_fd())])?;
        workdir::check_version(work, work_fd.as_fd())?;
        let staging = subdir(work, work_fd.as_fd(), b"work")?;
        volatile::check(work, upper_fd.as_fd(), staging.as_fd())?;
        tree::remove_contents(staging.as_fd()).map_err(|errno| LayerOpenError::Work { path: work.into(), errno })?;
        let index = subdir(work, work_fd.as_fd(), b"index")?;
        let root = root_node(upper_fd).map_err(|errno| open_error("upperdir", upper, errno))?;
        let staging = root_node(staging).map_err(|errno| open_error("workdir", work, errno))?;
        let index = root_node(index).map_err(|errno| open_error("workdir", work, errno))?;
        let uuid = handle_uuid(&root).map_err(|errno| open_error("upperdir", upper, errno))?;
        // Root, `work`, `index` and the locks.
        let (fds, pinned) = (FdCache::shared(), FdCache::pinned(3 + locks.len()));
        Ok(Self {
            root,
            work: Some(staging),
            index: Some(index),
            fds,
            _pinned: pinned,
            uuid,
            keeper: Keeper::default(),
            idmap: None,
            bound: None,
            locks,
        })
    }

    /// Opens upper and work directory to look at what is in them and to mend it: locked against a mount, and nothing made or emptied. `work` of the tree is the work directory
    /// itself here.
    ///
    /// Errors: see [`LayerOpenError`].
    pub fn to_check(upper: &Path, work: &Path) -> Result<Self, LayerOpenError> {
        let upper_fd = open_root("upperdir", upper)?;
        let work_fd = open_root("workdir", work)?;
        let dev = |what, path, fd: BorrowedFd<'_>| at::stat(At::Fd(fd)).map(|stat| stat.dev).map_err(|errno| open_error(what, path, errno));
        if dev("upperdir", upper, upper_fd.as_fd())? != dev("workdir", work, work_fd.as_fd())? {
            return Err(LayerOpenError::OtherMount { upper: upper.into(), work: work.into() });
        }
        check_overlap(&[("upperdir", upper), ("workdir", work)])?;
        let locks = vec![lock("upperdir", upper, upper_fd.as_fd())?, lock("workdir", work, work_fd.as_fd())?];
        workdir::refuse_kernel_mounts(&[("upperdir", upper, upper_fd.as_fd()), ("workdir", work, work_fd.as_fd())])?;
        let index = match at::stat(At::Name(work_fd.as_fd(), b"index")) {
            Ok(stat) if stat.kind == Kind::Dir => {
                let fd = at::open_path(At::Name(work_fd.as_fd(), b"index")).map_err(|errno| open_error("workdir", work, errno))?;
                Some(root_node(fd).map_err(|errno| open_error("workdir", work, errno))?)
            }
            Ok(_) | Err(Errno::NOENT) => None,
            Err(errno) => return Err(open_error("workdir", work, errno)),
        };
        let work = root_node(work_fd).map_err(|errno| open_error("workdir", work, errno))?;
        let mut tree = Self::lower_from_fd(upper_fd).map_err(|errno| open_error("upperdir", upper, errno))?;
        (tree.work, tree.index, tree.locks) = (Some(work), index, locks);
        Ok(tree)
    }

    /// The number of the root's descriptor, which stays open as long as the tree: others may open `/proc/PID/fd/N`. It is of a private clone of
    /// the mount where there is one, so that the mount itself is not kept busy.
    pub fn root_number(&self) -> Option<i32> {
        match &*self.root.0.place.read() {
            Placed::Pinned(fd, _) => Some(process::number(fd.as_fd())),
            Placed::Named { .. } | Placed::Kept { .. } | Placed::Foreign(_) | Placed::Gone => None,
        }
    }

    /// Whether somebody else answers for this layer, who may be slow, or never answer.
    ///
    /// Errors: those of statfs(2).
    pub fn is_remote(&self) -> plyfs_sys::Result<bool> {
        let root = self.dir_fd(&self.root)?;
        Ok(REMOTE.contains(&statfs::statfs(root.as_fd())?.fs_type))
    }

    /// The number of the descriptor of the index of hard links; see [`DirTree::root_number`].
    pub fn index_number(&self) -> Option<i32> {
        match &*self.index.as_ref()?.0.place.read() {
            Placed::Pinned(fd, _) => Some(process::number(fd.as_fd())),
            Placed::Named { .. } | Placed::Kept { .. } | Placed::Foreign(_) | Placed::Gone => None,
        }
    }

    /// The dialect that the workdir says the upper is written in; none before its first mount.
    ///
    /// Errors: the host's; EINVAL for a dialect that this version does not know.
    pub fn recorded_dialect(&self) -> plyfs_sys::Result<Option<Dialect>> {
        // The second lock is the workdir's.
        self.locks.get(1).map_or(Ok(None), |work| recorded_in(work.as_fd()))
    }

    /// Says in the workdir which dialect the upper is written in.
    ///
    /// Errors: the host's.
    pub fn record_dialect(&self, dialect: Dialect) -> plyfs_sys::Result<()> {
        let Some(work) = self.locks.get(1) else { return Ok(()) };
        // Under a name in `work` first: half a word would be none.
        let Some(staging) = &self.work else { return Ok(()) };
        let staging = self.dir_fd(staging)?;
        let file = create::create(staging.as_fd(), RECORD, 0o644)?;
        let text = format!("{}\n", dialect.name());
        if io::pwrite(file.as_fd(), text.as_bytes(), 0)? != text.len() {
            return Err(Errno::NOSPC);
        }
        io::fsync(file.as_fd())?;
        create::rename(staging.as_fd(), RECORD, work.as_fd(), RECORD, RenameFlags::empty())
    }

    /// Opens an upper directory for reading only: for a diff of what a mount left. Takes no lock. `index`: the directory `index` of its workdir; without it, hard
    /// links of lower files show the lower under the names that were not used.
    ///
    /// Errors: a path is not a directory or may not be opened.
    pub fn upper_readonly(path: &Path, index: Option<&Path>) -> Result<Self, LayerOpenError> {
        let fd = open_root("upperdir", path)?;
        let mut tree = Self::lower_from_fd(fd).map_err(|errno| open_error("upperdir", path, errno))?;
        if let Some(index) = index {
            let fd = open_root("index of hard links", index)?;
            tree.index = Some(root_node(fd).map_err(|errno| open_error("index of hard links", index, errno))?);
        }
        Ok(tree)
    }
}

/// Upper and work directory through one private clone of their mount, at the directory that holds both: so the mount is not kept busy, and what is mounted below
/// it does not show.
///
/// Errors: those of the clone; ESTALE if the paths lead elsewhere by now; EXDEV if the directory that holds both is of another mount.
fn cloned_pair(
    (upper, upper_fd): (&Path, BorrowedFd<'_>),
    (work, work_fd): (&Path, BorrowedFd<'_>),
    atime: Option<MountAttrFlags>,
) -> plyfs_sys::Result<(OwnedFd, OwnedFd)> {
    let canonical = |path: &Path| path.canonicalize().map_err(|_| Errno::STALE);
    let (upper, work) = (canonical(upper)?, canonical(work)?);
    let common: PathBuf = upper.components().zip(work.components()).take_while(|(a, b)| a == b).map(|(a, _)| a).collect();
    let above = root::open_dir(&common)?;
    if mount::mount_id_of(above.as_fd())? != mount::mount_id_of(upper_fd)? {
        return Err(Errno::XDEV);
    }
    let clone = mount::open_tree_clone(above.as_fd(), c"", false)?;
    let times = atime.map(|set| (set, (MountAttrFlags::MOUNT_ATTR__ATIME | MountAttrFlags::MOUNT_ATTR_NODIRATIME) - set));
    let (set, clear) = times.unwrap_or((MountAttrFlags::empty(), MountAttrFlags::empty()));
    // No device is opened that somebody puts in the place of a file.
    let set = set | MountAttrFlags::MOUNT_ATTR_NODEV;
    mount::mount_setattr(clone.as_fd(), &mount::SetAttr { set, clear, propagation: None }, false)?;
    let below = |path: &Path, original: BorrowedFd<'_>| {
        let mut dir = clone.try_clone().map_err(|_| Errno::MFILE)?;
        for name in path.strip_prefix(&common).map_err(|_| Errno::STALE)?.iter() {
            dir = at::open_path(At::Name(dir.as_fd(), name.as_bytes()))?;
        }
        let same = ObjectId::of(&at::stat(At::Fd(dir.as_fd()))?) == ObjectId::of(&at::stat(At::Fd(original))?);
        if same { Ok(dir) } else { Err(Errno::STALE) }
    };
    Ok((below(&upper, upper_fd)?, below(&work, work_fd)?))
}

/// Whether this process may open file handles: with CAP_DAC_READ_SEARCH in the first user namespace.
pub(super) fn may_open_handles() -> bool {
    static MAY: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    let capable = || process::caps::effective().is_ok_and(|set| set & process::caps::Set::DAC_READ_SEARCH.bits() != 0);
    *MAY.get_or_init(|| capable() && !plyfs_sys::userns::is_inside())
}

/// The name of the file in a workdir that says in which dialect its upper is written.
const RECORD: &[u8] = b"dialect";

/// The dialect that a workdir says its upper is written in.
///
/// Errors: the host's; EINVAL for a dialect that this version does not know.
pub fn recorded_dialect_of(work: &Path) -> plyfs_sys::Result<Option<Dialect>> {
    recorded_in(root::open_dir(work)?.as_fd())
}

fn recorded_in(work: BorrowedFd<'_>) -> plyfs_sys::Result<Option<Dialect>> {
    let file = match at::open(At::Name(work, RECORD), OFlags::RDONLY | OFlags::NONBLOCK) {
        Err(Errno::NOENT) => return Ok(None),
        other => other?,
    };
    let mut text = [0; 16];
    let length = io::pread(file.as_fd(), &mut text, 0)?;
    let word = str::from_utf8(text.get(..length).unwrap_or_default()).ok().and_then(|text| text.strip_suffix('\n'));
    word.and_then(Dialect::from_name).map(Some).ok_or(Errno::INVAL)
}

fn open_error(what: &'static str, path: &Path, errno: Errno) -> LayerOpenError {
    LayerOpenError::Open { what, path: path.into(), errno }
}

fn lock(what: &'static str, path: &Path, dir: BorrowedFd<'_>) -> Result<OwnedFd, LayerOpenError> {
    let fd = tree::reopen_dir(dir).map_err(|errno| open_error(what, path, errno))?;
    match io::flock_exclusive_nonblock(fd.as_fd()) {
        Ok(()) => Ok(fd),
        Err(Errno::WOULDBLOCK) => Err(LayerOpenError::InUse { what, path: path.into() }),
        Err(errno) => Err(open_error(what, path, errno)),
    }
}

/// A directory in workdir, made if need be: `work`, which is emptied at each mount (what a killed mount left there belongs to nothing), and `index`, which stays.
fn subdir(path: &Path, workdir: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, LayerOpenError> {
    let failed = |errno| LayerOpenError::Work { path: path.into(), errno };
    match create::mkdir(workdir, name, 0o700) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(open_error("workdir", path, errno)),
    }
    let dir = at::open_path(At::Name(workdir, name)).map_err(failed)?;
    // What somebody mounted there is not ours to empty.
    if mount::mount_id_of(dir.as_fd()).map_err(failed)? != mount::mount_id_of(workdir).map_err(failed)? {
        return Err(failed(Errno::XDEV));
    }
    match at::stat(At::Fd(dir.as_fd())).map_err(failed)?.kind {
        Kind::Dir => Ok(dir),
        _ => Err(failed(Errno::NOTDIR)),
    }
}

fn root_node(fd: OwnedFd) -> plyfs_sys::Result<DirNode> {
    let stat = at::stat(At::Fd(fd.as_fd()))?;
    if stat.kind != Kind::Dir {
        return Err(Errno::NOTDIR);
    }
    let inner = NodeInner {
        id: ObjectId::of(&stat),
        kind: stat.kind,
        place: RwLock::new(Placed::Pinned(Arc::new(fd), None)),
        fd: Mutex::new(None),
        used: AtomicBool::new(false),
    };
    Ok(DirNode(Arc::new(inner)))
}

/// `FUSE_SUPER_MAGIC` of linux/magic.h.
const FUSE: i64 = 0x6573_5546;

/// Filesystems whose answers come from another process or machine: FUSE, NFS, CIFS and SMB2, Ceph, 9P (linux/magic.h).
const REMOTE: [i64; 6] = [FUSE, 0x6969, 0xff53_4d42, 0xfe53_4d42, 0x00c3_6400, 0x0102_1997];

/// The filesystem's UUID if it gives out file handles; zeros stand for "no UUID", as in the kernel's origin marks.
///
/// Handles of FUSE are node ids, which most servers count anew at each mount: after it they would name other objects, and there is no UUID to tell by.
fn handle_uuid(root: &DirNode) -> plyfs_sys::Result<Option<[u8; 16]>> {
    let place = root.0.place.read();
    let Placed::Pinned(fd, _) = &*place else { return Ok(None) };
    if statfs::statfs(fd.as_fd())?.fs_type == FUSE {
        return Ok(None);
    }
    match handle::file_handle(At::Fd(fd.as_fd())) {
        Ok(_) => Ok(Some(handle::fs_uuid(fd.as_fd())?.unwrap_or_default())),
        Err(Errno::OPNOTSUPP | Errno::OVERFLOW) => Ok(None),
        Err(errno) => Err(errno),
    }
}
