//! What other filesystems are mounted in a layer that came with them, as in a user namespace, where no mount can be cloned without those below it.
//!
//! Such a tree stays on its own mount: an object on another one is *foreign*. Its server, which may never answer or be gone, is asked nothing: no attribute of it is read, and
//! nothing in it is opened. A directory shows as an empty one, everything else as an empty file that nobody can read.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::{AsFd, BorrowedFd};

use plyfs_sys::at::{self, At};
use plyfs_sys::stat::{Kind, Stat};
use plyfs_sys::{Errno, OFlags, Result, mount};

use super::{DirNode, DirTree, ObjectId, Placed};

/// The mount that a tree stays on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bound {
    mount: u64,
    /// What the kernel knows of its objects may be old.
    remote: bool,
}

/// What is under a name.
pub(super) enum Looked {
    Own(Stat),
    /// What shows of it.
    Foreign(Stat),
}

/// No filesystem has this number: what is mounted may be a part of the layer's own filesystem, and its objects are not those.
const NOWHERE: u64 = u64::MAX;

impl DirTree {
    /// The same layer without what is mounted in it.
    ///
    /// Errors: the host's; ENOSYS when the kernel does not tell mounts apart (before Linux 5.8).
    pub fn on_one_mount(self) -> Result<Self> {
        let mount = mount::mount_id_of(self.dir_fd(&self.root)?.as_fd())?;
        let remote = self.is_remote()?;
        Ok(Self { bound: Some(Bound { mount, remote }), ..self })
    }

    /// What shows of an object that is on another mount.
    pub(super) fn foreign(&self, node: &DirNode) -> Option<Stat> {
        self.bound?;
        match &*node.0.place.read() {
            Placed::Foreign(stat) => Some(**stat),
            Placed::Named { .. } | Placed::Kept { .. } | Placed::Pinned(..) | Placed::Gone => None,
        }
    }
}

impl Bound {
    /// Looks a name up in a directory of the mount.
    pub(super) fn look(self, dir: BorrowedFd<'_>, above: ObjectId, name: &[u8]) -> Result<Looked> {
        let shown = |stat: Stat| {
            let mut number = DefaultHasher::new();
            (above, name).hash(&mut number);
            // As short as those of filesystems; zero is no number.
            Looked::Foreign(Stat { dev: NOWHERE, ino: number.finish() >> 16 | 1, ..empty(stat) })
        };
        match at::stat_cached(At::Name(dir, name)) {
            Ok((stat, mount)) if mount != self.mount => Ok(shown(stat)),
            Ok((stat, _)) if !self.remote => Ok(Looked::Own(stat)),
            Ok(_) => at::stat(At::Name(dir, name)).map(Looked::Own),
            Err(errno @ (Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG | Errno::INVAL)) => Err(errno),
            // A mount of a user shows even its root to him alone, and a broken one may show it to nobody.
            Err(errno) => match at::open_path_same_mount(dir, name) {
                Err(Errno::XDEV) => {
                    let kind = if leads_to_dir(dir, name)? { Kind::Dir } else { Kind::File };
                    Ok(shown(Stat { kind, mode: 0o555, nlink: 1, rdev: 0, ..at::stat(At::Fd(dir))? }))
                }
                _ => Err(errno),
            },
        }
    }
}

/// Whether a directory is mounted there: the kernel knows.
fn leads_to_dir(dir: BorrowedFd<'_>, name: &[u8]) -> Result<bool> {
    match at::open(At::Name(dir, name), OFlags::PATH | OFlags::DIRECTORY) {
        Err(Errno::NOTDIR) => Ok(false),
        other => other.map(|_| true),
    }
}

fn empty(stat: Stat) -> Stat {
    let stat = Stat { size: 0, blocks: 0, ..stat };
    if stat.kind == Kind::Dir { stat } else { Stat { kind: Kind::File, mode: 0, rdev: 0, ..stat } }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::backend::Tree;
    use crate::name::Name;

    #[test]
    fn what_is_mounted_in_a_tree_that_stays_on_its_mount_shows_as_empty() {
        let tree = |path: &str| DirTree::lower_from_fd(plyfs_sys::root::open_dir(Path::new(path)).unwrap()).unwrap();
        let lookup = |tree: &DirTree, dir: &DirNode, name: &str| tree.lookup(dir, &Name::new(name).unwrap()).unwrap();
        let all = tree("/");
        let (proc, _) = lookup(&all, &all.root(), "proc").unwrap();
        assert!(lookup(&all, &proc, "self").is_some() && !all.read_dir(&proc).unwrap().is_empty());

        let one = tree("/").on_one_mount().unwrap();
        let (proc, stat) = lookup(&one, &one.root(), "proc").unwrap();
        assert_eq!((stat.kind, one.stat(&proc)), (Kind::Dir, Ok(stat)));
        assert_eq!(lookup(&one, &one.root(), "proc").unwrap().1, stat, "the same at each look");
        assert!(lookup(&one, &proc, "self").is_none() && one.read_dir(&proc).unwrap().is_empty());
        assert_eq!((one.list_xattr(&proc), one.get_xattr(&proc, b"user.x")), (Ok(Vec::new()), Ok(None)));
        assert!(one.handle(&proc).unwrap().is_none() && one.flags(&proc) == Err(Errno::NOTTY));

        let own = tempfile::tempdir().unwrap();
        std::fs::create_dir(own.path().join("d")).unwrap();
        std::fs::write(own.path().join("d/f"), "own").unwrap();
        let one = tree(own.path().to_str().unwrap()).on_one_mount().unwrap();
        let (dir, _) = lookup(&one, &one.root(), "d").unwrap();
        let (file, _) = lookup(&one, &dir, "f").unwrap();
        let mut text = [0; 4];
        assert_eq!(one.read(&one.open(&file).unwrap(), &mut text, 0), Ok(3));
        assert_eq!(one.read_dir(&dir).unwrap().len(), 1);
    }
}
