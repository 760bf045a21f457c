//! The table of mounts, asked about paths. Nothing here looks into a mount: its server may be dead.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use plyfs_sys::mount::{self, MountInfo};

use super::fail::failure;

/// The type that the table shows for our mounts.
const FSTYPE: &[u8] = b"fuse.plyfs";

/// What our mounts are called after `fuse.`.
pub(crate) const SUBTYPE: &str = "plyfs";

/// Whether it is one of ours.
pub(crate) fn is_plyfs(mount: &MountInfo) -> bool {
    mount.fstype == FSTYPE
}

/// The table of this process.
pub(crate) fn table() -> anyhow::Result<Vec<MountInfo>> {
    mount::mounts().map_err(|errno| failure("/proc/self/mountinfo", errno, "mount /proc"))
}

/// What is mounted at exactly this absolute path without links; of several the one on top.
pub(crate) fn at<'a>(table: &'a [MountInfo], path: &Path) -> Option<&'a MountInfo> {
    table.iter().rev().find(|mount| mount.mountpoint == path.as_os_str().as_bytes())
}

/// The mount that a path without links is on.
pub(crate) fn holding<'a>(table: &'a [MountInfo], path: &Path) -> Option<&'a MountInfo> {
    path.ancestors().find_map(|dir| at(table, dir))
}

/// Where it is mounted.
pub(crate) fn mountpoint(mount: &MountInfo) -> &Path {
    Path::new(OsStr::from_bytes(&mount.mountpoint))
}

/// The absolute path without links. The last component is only a name if it cannot be looked at: the root of a mount whose server died.
pub(crate) fn canonical(path: &Path) -> std::io::Result<PathBuf> {
    let error = match path.canonicalize() {
        Ok(canonical) => return Ok(canonical),
        Err(error) => error,
    };
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(error) };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let joined = parent.canonicalize().map_err(|_| std::io::Error::from(error.kind()))?.join(name);
    // Only a mountpoint is worth that: of anything else the first error is right.
    match mount::mounts() {
        Ok(table) if at(&table, &joined).is_some() => Ok(joined),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"1 0 8:1 / / rw - ext4 /dev/sda rw\n\
        2 1 0:30 / /mnt rw - fuse.plyfs plyfs rw\n\
        3 2 0:31 / /mnt rw - tmpfs none rw\n\
        4 1 0:32 / /a\\040b rw - fuse.plyfs x rw\n";

    #[test]
    fn the_mount_on_top_counts() {
        let table = mount::parse_mountinfo(TABLE).unwrap();
        let id = |path: &str| at(&table, Path::new(path)).map(|mount| mount.id);
        assert_eq!((id("/"), id("/mnt"), id("/a b"), id("/nothing")), (Some(1), Some(3), Some(4), None));
        let holder = |path: &str| holding(&table, Path::new(path)).map(|mount| mount.id);
        assert_eq!((holder("/mnt/x/y"), holder("/a b/c"), holder("/a"), holder("/a b")), (Some(3), Some(4), Some(1), Some(4)));
        assert!(!is_plyfs(at(&table, Path::new("/mnt")).unwrap()) && is_plyfs(at(&table, Path::new("/a b")).unwrap()));
    }

    #[test]
    fn links_are_resolved_and_what_is_missing_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        std::os::unix::fs::symlink(&real, dir.path().join("link")).unwrap();
        assert_eq!(canonical(&dir.path().join("link")).unwrap(), real);
        assert_eq!(canonical(&dir.path().join("none")).unwrap_err().kind(), std::io::ErrorKind::NotFound);
    }
}
