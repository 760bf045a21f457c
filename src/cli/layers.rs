//! Upper layers that plyfs makes itself, and lowers that are filesystems of the host.

use std::fs::DirBuilder;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use plyfs_format::Dialect;
use plyfs_overlay::{Behaviour, DirTree, Keeping, Layer, LayerOpenError, LayerStack, Union, recorded_dialect_of};
use plyfs_sys::at::{self, At, SetTime, XattrMode};
use plyfs_sys::mount::{self, MountAttrFlags, Propagation, SetAttr};
use plyfs_sys::{Errno, root, userns};

use super::fail::failure;
use super::{marks, rootless};

/// The two directories of a writable layer.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    pub(crate) upper: PathBuf,
    pub(crate) work: PathBuf,
}

impl Pair {
    /// Where the workdir keeps the index of hard links, if it is there.
    pub(crate) fn index(&self) -> Option<PathBuf> {
        index_in(&self.work)
    }

    /// `upper` and `work` in a directory.
    pub(crate) fn within(dir: &Path) -> Self {
        Self { upper: dir.join("upper"), work: dir.join("work") }
    }

    /// Makes them. The root of a union looks as that of its upper, so this one is made to look as that of the lower.
    pub(crate) fn make(&self, like: BorrowedFd<'_>) -> anyhow::Result<()> {
        make_dir(&self.work)?;
        make_dir(&self.upper)?;
        look_alike(&self.upper, like)
            .map_err(|errno| failed(&self.upper, format_args!("cannot give it the owner and mode of the directory below: {errno}")))
    }
}

/// The index of hard links in a workdir, if there is one.
pub(crate) fn index_in(work: &Path) -> Option<PathBuf> {
    let index = work.join("index");
    index.is_dir().then_some(index)
}

/// Makes a directory and those above it, for root alone.
pub(crate) fn make_dir(dir: &Path) -> anyhow::Result<()> {
    DirBuilder::new().mode(0o700).recursive(true).create(dir).map_err(|error| failed(dir, error))
}

fn failed(dir: &Path, why: impl std::fmt::Display) -> anyhow::Error {
    failure(format_args!("directory {}", dir.display()), why, "see that you can write there, or give another place")
}

/// Gives a directory the owner, mode, times and extended attributes of another one.
fn look_alike(dir: &Path, like: BorrowedFd<'_>) -> Result<(), Errno> {
    let fd = root::open_dir(dir)?;
    let at = At::Fd(fd.as_fd());
    let stat = at::stat(At::Fd(like))?;
    let (dialect, keeping) = (marks::own_dialect(), own_keeping());
    for name in attributes(like)? {
        let Some(own) = plyfs_format::translate_xattr(dialect, dialect, &name) else { continue };
        let own = if keeping == Keeping::InObjects { own } else { plyfs_format::escape_override(&own) };
        match at::get_xattr(At::Fd(like), &name).and_then(|value| at::set_xattr(at, &own, &value, XattrMode::Any)) {
            Ok(()) | Err(Errno::NODATA) => {}
            Err(errno @ (Errno::OPNOTSUPP | Errno::PERM)) => {
                tracing::warn!(name = %String::from_utf8_lossy(&name), %errno, "an attribute of the root directory is not in the view");
            }
            Err(errno) => return Err(errno),
        }
    }
    // Last: with another owner this process may not set attributes, and an ACL has changed the mode.
    keeping.dress_dir(fd.as_fd(), stat.uid, stat.gid, stat.mode)?;
    at::set_times(at, SetTime::To(stat.atime), SetTime::To(stat.mtime))
}

fn attributes(dir: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>, Errno> {
    match at::list_xattr(At::Fd(dir)) {
        Err(Errno::OPNOTSUPP) => Ok(Vec::new()),
        other => other,
    }
}

/// A filesystem of the host as a lower.
pub(crate) struct HostLower {
    fd: OwnedFd,
    /// What is mounted below came along.
    crowded: bool,
}

impl AsFd for HostLower {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl HostLower {
    /// The tree of this one filesystem.
    fn tree(&self) -> Result<DirTree, Errno> {
        let copy = self.fd.try_clone().map_err(|_| Errno::MFILE)?;
        let tree = DirTree::lower_from_fd(copy)?;
        if self.crowded { tree.on_one_mount() } else { Ok(tree) }
    }

    fn layer(&self) -> anyhow::Result<Layer<DirTree>> {
        let tree = self.tree().map_err(|errno| failure("a lower layer", errno, "see that root can read it"))?;
        Ok(Layer::new(tree, marks::own_dialect()))
    }

    /// Whether it can be a lower at all: its root is looked at, as for a union.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        for name in attributes(self.as_fd())? {
            match at::get_xattr(At::Fd(self.as_fd()), &name) {
                Ok(_) | Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Union::new(LayerStack { upper: None, lowers: [self.layer()?].into() }, Behaviour::default())?;
        Ok(())
    }
}

/// The one mount of the host at a path, without those below it, as a clone that nobody else sees: read-only, no access times are changed by
/// it, and what is mounted on the host later does not come into it.
pub(crate) fn host_lower(mountpoint: &Path) -> Result<HostLower, Errno> {
    // In a user namespace what is mounted below cannot be left behind: it came along when the namespace was made, and may hide something.
    let (clone, recursive) = match mount::open_tree_clone_path(mountpoint, false) {
        Err(Errno::INVAL) => (mount::open_tree_clone_path(mountpoint, true)?, true),
        other => (other?, false),
    };
    let attr = |set| SetAttr { set, propagation: Some(Propagation::Private), ..SetAttr::default() };
    let quiet = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOATIME;
    match mount::mount_setattr(clone.as_fd(), &attr(quiet), recursive) {
        // A mount that a user namespace inherited keeps its access times.
        Err(Errno::PERM) => mount::mount_setattr(clone.as_fd(), &attr(MountAttrFlags::MOUNT_ATTR_RDONLY), recursive)?,
        other => other?,
    }
    Ok(HostLower { fd: clone, crowded: recursive })
}

/// Opens the lowers of a stack, the topmost first: those that merge, and those that hold only data.
pub(crate) fn open(merged: &[PathBuf], data: &[PathBuf]) -> Result<Box<[Layer<DirTree>]>, LayerOpenError> {
    let dialect = marks::own_dialect();
    let named = |path: &PathBuf, tree| Layer::new(tree, dialect).named(format!("layer {}", path.display()));
    let merged = merged.iter().map(|path| DirTree::lower(path).map(|tree| named(path, tree)));
    merged.chain(data.iter().map(|path| DirTree::lower(path).map(Layer::data_only))).collect()
}

/// An upper that plyfs has made itself: in a user namespace owners that cannot be given are kept beside the objects.
pub(crate) fn own_upper(tree: DirTree, pair: &Pair) -> anyhow::Result<Layer<DirTree>> {
    if tree.is_writable() {
        return marks::upper(tree, &pair.upper, None, false);
    }
    let recorded = recorded_dialect_of(&pair.work).map_err(|errno| failed(&pair.work, errno))?;
    keeping_upper(tree, recorded.unwrap_or_else(marks::own_dialect), "the upper", false)
}

/// An upper in this dialect, with owners where they are kept.
///
/// `always`: all of them are kept in attributes (`xattr_permissions=2`).
pub(crate) fn keeping_upper(tree: DirTree, dialect: Dialect, at: &str, always: bool) -> anyhow::Result<Layer<DirTree>> {
    let failed = |errno| failure(at, format_args!("cannot see or say where it keeps owners: {errno}"), "see that you can write there");
    let keeping = match own_keeping() {
        _ if always => Keeping::Always,
        Keeping::InObjects if tree.keeps_owners_aside().map_err(failed)? => {
            if tree.is_writable() {
                let why =
                    "its root has the attribute user.containers.override_stat: owners in it are kept in attributes, as in a user namespace";
                return Err(failure(at, why, "mount it with -o xattr_permissions=2, or as the user whose it is, in a user namespace"));
            }
            Keeping::WhereRefused
        }
        keeping => keeping,
    };
    Ok(Layer::new(tree.keeping(keeping).map_err(failed)?, dialect).with_overrides(keeping != Keeping::InObjects))
}

/// Where owners are kept if nobody says otherwise: in the objects, but in a user namespace, which cannot give away what it has no id for.
pub(crate) fn own_keeping() -> Keeping {
    if userns::is_inside() || rootless::is_ordinary_user() { Keeping::WhereRefused } else { Keeping::InObjects }
}

/// A stack on a filesystem of the host.
pub(crate) fn stack(upper: DirTree, pair: &Pair, lower: &HostLower) -> anyhow::Result<LayerStack<DirTree>> {
    let lowers = [lower.layer()?].into();
    Ok(LayerStack { upper: Some(own_upper(upper, pair)?), lowers })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upper_looks_as_the_lower() {
        use std::os::unix::fs::{MetadataExt, PermissionsExt};
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let like = dir.path().join("like");
        std::fs::create_dir(&like).unwrap();
        std::fs::set_permissions(&like, std::fs::Permissions::from_mode(0o1773)).unwrap();
        let fd = root::open_dir(&like).unwrap();
        at::set_xattr(At::Fd(fd.as_fd()), b"user.x", b"1", XattrMode::Any).unwrap();
        at::set_times(At::Fd(fd.as_fd()), SetTime::Omit, SetTime::To(plyfs_sys::stat::Time { sec: 5, nsec: 6 })).unwrap();
        let pair = Pair::within(&dir.path().join("a/b"));
        pair.make(fd.as_fd()).unwrap();
        let meta = pair.upper.metadata().unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.mtime(), meta.mtime_nsec()), (0o1773, 5, 6));
        let upper = root::open_dir(&pair.upper).unwrap();
        assert_eq!(at::get_xattr(At::Fd(upper.as_fd()), b"user.x").unwrap(), b"1");
        assert_eq!(pair.work.metadata().unwrap().mode() & 0o777, 0o700);
    }
}
