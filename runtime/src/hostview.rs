//! What `plyfs try` does with each filesystem that the host has mounted below `/`.
//!
//! [`plan`] is a pure function over the table of mounts. Its result lists every mount once, a mount after the one that it is mounted on,
//! so that carrying it out in order gives the host's tree.
//!
//! The rules:
//!
//! - A filesystem that holds files of this machine gets a union of its own.
//! - What is read-only on the host is read-only in the view.
//! - A `proc` anywhere is a new one: the links of a host's `/proc` lead out of any view, read-only or not.
//! - Everything else (network and user-space filesystems, kernel interfaces, single files) is read-only, and said to be.
//! - What nobody can reach on the host (under a later mount, or on a deleted directory) is skipped, and so is all in `/proc`, `/sys` and
//!   `/dev`, which the view has its own of.

use std::collections::{BTreeMap, BTreeSet};

use plyfs_sys::mount::MountInfo;
use plyfs_sys::stat::Kind;

use crate::spec::{BindSource, HostPath, InnerPath, MountSpec, TmpfsOptions};

/// Filesystems that hold files of this machine and can be a lower layer.
const LOCAL: [&str; 29] = [
    "bcachefs", "btrfs", "ecryptfs", "erofs", "exfat", "ext2", "ext3", "ext4", "f2fs", "hfs", "hfsplus", "iso9660", "jffs2", "jfs",
    "msdos", "nilfs2", "ntfs", "ntfs3", "overlay", "ramfs", "reiserfs", "rootfs", "squashfs", "tmpfs", "ubifs", "udf", "vfat", "xfs",
    "zfs",
];

/// Directories that the view has its own of.
const OWN: [&[u8]; 3] = [b"/proc", b"/sys", b"/dev"];

/// What to do with a mount.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// A union of its own, whose lower is a clone of this one mount.
    Union,
    /// A new `/proc`.
    FreshProc,
    /// A read-only bind of this one mount.
    ReadOnly(Reason),
    /// An empty directory in its place.
    Empty(Reason),
    /// Nothing: it is not in the view.
    Skip(Skip),
}

/// Why a mount is not what it is on the host.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It is read-only on the host too: nothing is lost, nothing has to be said.
    ReadOnlyOnHost,
    /// Its type is none that a union can have as a lower: others change it, or it is no storage.
    Type,
    /// It cannot be looked at.
    Broken,
    /// A single file is mounted, and a union is of directories.
    File,
    /// Looking into it makes the host mount something.
    Automount,
}

/// Why a mount is not in the view.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Skip {
    /// Another mount lies over it or over a directory above it.
    Shadowed,
    /// It is in `/proc`, `/sys` or `/dev`.
    Own,
    /// Its mount point was deleted, or is outside the root directory.
    Unreachable,
    /// A handle of a namespace. The file under it stays, empty.
    Namespace,
}

/// One mount of the host and what becomes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// The mount.
    pub mount: MountInfo,
    /// What to do.
    pub action: Action,
    /// For a union: the mount point of another union (`/` included) that shows some of the same files. On the host they are one, in the
    /// view a change through one of them is not seen through the other.
    pub twin: Option<Vec<u8>>,
}

impl Planned {
    /// The entry of a [`crate::Spec`], for all but unions and what is skipped.
    pub fn to_mount_spec(&self) -> Option<MountSpec> {
        let target = InnerPath::from(self.mount.mountpoint.clone());
        match self.action {
            Action::Union | Action::Skip(_) => None,
            Action::FreshProc => Some(MountSpec::Proc { target }),
            Action::ReadOnly(_) => {
                let source = BindSource::Path(HostPath::from(self.mount.mountpoint.clone()));
                // Mounts come and go between the plan and its execution.
                Some(MountSpec::BindReadOnly { source, target, recursive: false, optional: true })
            }
            Action::Empty(_) => Some(MountSpec::Tmpfs { target, options: TmpfsOptions::default() }),
        }
    }

    /// Whether the user has to be told: something can be written on the host, or seen there, and not in the view.
    pub fn is_lesser(&self) -> bool {
        match self.action {
            Action::ReadOnly(reason) => reason != Reason::ReadOnlyOnHost,
            Action::Empty(_) => true,
            Action::Union | Action::FreshProc | Action::Skip(_) => false,
        }
    }
}

/// Plans for all mounts of `table` but the root itself, which is the one of number `root` (that of an open `/`, by
/// [`plyfs_sys::mount::mount_id_of`]: several may be mounted there). `kind_at` tells what a mount point is. It is asked for mounts of
/// local filesystems only, since others may not answer.
pub fn plan(table: &[MountInfo], root: u64, kind_at: &dyn Fn(&[u8]) -> Option<Kind>) -> Vec<Planned> {
    let tree = Tree::new(table);
    let mut planned = Vec::new();
    let mut walked = BTreeSet::from([root]);
    let mut shown = BTreeSet::from([root]);
    // A stack, not recursion: mounts can be stacked thousands deep.
    let mut stack = vec![root];
    while let Some(id) = stack.pop() {
        let children = match tree.over(id).filter(|_| id != root) {
            // It lies over the whole of the mount: that is not seen itself, nor what else is mounted on it.
            Some(over) => vec![over],
            None => {
                shown.insert(id);
                if let Some(mount) = tree.by_id.get(&id).filter(|_| id != root) {
                    planned.push(Planned { action: action(mount, kind_at), mount: (*mount).clone(), twin: None });
                }
                tree.visible_children(id)
            }
        };
        // The first in the table is to be the first out.
        stack.extend(children.iter().rev().map(|child| child.id).filter(|child| walked.insert(*child)));
    }
    let below_root = tree.all_below(root);
    for mount in table.iter().filter(|mount| !shown.contains(&mount.id)) {
        let skip = if below_root.contains(&mount.id) { Skip::Shadowed } else { Skip::Unreachable };
        planned.push(Planned { action: Action::Skip(skip), mount: mount.clone(), twin: None });
    }
    let mut unions: BTreeMap<(u32, u32), Vec<MountInfo>> = BTreeMap::new();
    let own = table.iter().filter(|mount| mount.id == root);
    for mount in own.chain(planned.iter().filter(|entry| entry.action == Action::Union).map(|entry| &entry.mount)) {
        unions.entry(mount.dev).or_default().push(mount.clone());
    }
    for entry in planned.iter_mut().filter(|entry| entry.action == Action::Union) {
        let same_device = unions.get(&entry.mount.dev).map(Vec::as_slice).unwrap_or_default();
        entry.twin = same_device.iter().find(|other| share_files(&entry.mount, other)).map(|other| other.mountpoint.clone());
    }
    planned
}

fn action(mount: &MountInfo, kind_at: &dyn Fn(&[u8]) -> Option<Kind>) -> Action {
    let point = mount.mountpoint.as_slice();
    if OWN.iter().any(|dir| is_at_or_below(point, dir)) {
        return Action::Skip(Skip::Own);
    }
    if point.ends_with(b"//deleted") {
        return Action::Skip(Skip::Unreachable);
    }
    let fstype = mount.fstype.as_slice();
    let local = LOCAL.iter().any(|name| name.as_bytes() == fstype);
    match fstype {
        b"proc" => return Action::FreshProc,
        b"nsfs" => return Action::Skip(Skip::Namespace),
        b"autofs" => return Action::Empty(Reason::Automount),
        _ => {}
    }
    if mount.is_read_only() {
        return Action::ReadOnly(Reason::ReadOnlyOnHost);
    }
    if !local {
        return Action::ReadOnly(Reason::Type);
    }
    match kind_at(point) {
        Some(Kind::Dir) => Action::Union,
        Some(_) => Action::ReadOnly(Reason::File),
        // It was there a moment ago.
        None => Action::Skip(Skip::Unreachable),
    }
}

/// Whether two mounts show some of the same files: the same filesystem, and the root of one is in that of the other.
fn share_files(a: &MountInfo, b: &MountInfo) -> bool {
    a.id != b.id && a.dev == b.dev && (is_at_or_below(&a.root, &b.root) || is_at_or_below(&b.root, &a.root))
}

/// Whether `path` is `dir` or in it.
fn is_at_or_below(path: &[u8], dir: &[u8]) -> bool {
    if dir == b"/" {
        return true;
    }
    path.strip_prefix(dir).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

/// The directories above a path, from the next one to the first below `/`.
fn directories_above(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let ends = path.iter().enumerate().rev().filter(|&(at, &byte)| at > 0 && byte == b'/').map(|(at, _)| at);
    ends.filter_map(|end| path.get(..end))
}

/// The mounts by what they are mounted on.
struct Tree<'a> {
    by_id: BTreeMap<u64, &'a MountInfo>,
    /// In the order of the table.
    children: BTreeMap<u64, Vec<&'a MountInfo>>,
}

impl<'a> Tree<'a> {
    fn new(table: &'a [MountInfo]) -> Tree<'a> {
        let mut tree = Tree { by_id: BTreeMap::new(), children: BTreeMap::new() };
        for mount in table {
            tree.by_id.insert(mount.id, mount);
            if mount.parent != mount.id {
                tree.children.entry(mount.parent).or_default().push(mount);
            }
        }
        tree
    }

    fn children(&self, id: u64) -> &[&'a MountInfo] {
        self.children.get(&id).map(Vec::as_slice).unwrap_or_default()
    }

    /// The mount that lies over the whole of `id`.
    fn over(&self, id: u64) -> Option<&'a MountInfo> {
        let mount = self.by_id.get(&id)?;
        self.children(id).iter().rev().find(|child| child.mountpoint == mount.mountpoint).copied()
    }

    /// The mounts on directories of `id` that a path leads to, in order.
    fn visible_children(&self, id: u64) -> Vec<&'a MountInfo> {
        let Some(mount) = self.by_id.get(&id) else { return Vec::new() };
        // What lies over the root directory itself is not reached from it: a path starts below.
        let below = || self.children(id).iter().filter(|child| child.mountpoint != mount.mountpoint);
        // The last one at each mount point.
        let top: BTreeMap<&[u8], u64> = below().map(|child| (child.mountpoint.as_slice(), child.id)).collect();
        let is_top = |child: &MountInfo| top.get(child.mountpoint.as_slice()) == Some(&child.id);
        let is_covered = |child: &MountInfo| directories_above(&child.mountpoint).any(|dir| top.contains_key(dir));
        below().filter(|child| is_top(child) && !is_covered(child)).copied().collect()
    }

    /// All that is mounted, over any number of steps, on `id`.
    fn all_below(&self, id: u64) -> BTreeSet<u64> {
        let mut found = BTreeSet::new();
        let mut stack = vec![id];
        while let Some(id) = stack.pop() {
            stack.extend(self.children(id).iter().map(|child| child.id).filter(|child| found.insert(*child)));
        }
        found
    }
}

#[cfg(test)]
mod tests;
