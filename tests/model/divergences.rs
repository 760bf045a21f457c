//! Where filesystems are allowed to differ, each by name and with its reason. Every other difference is a bug.

use plyfs_format::Dialect;
use plyfs_sys::Errno;

use crate::case::{Case, LayerSpec, Move, Op, Path, What};
use crate::reference::{Outcome, Reference};
use crate::view::{Object, View};

/// Kernel overlayfs lists a whiteout that hides nothing: a directory that does not merge is read as it is. A look-up says that nothing is there.
pub(crate) fn lists_stray_whiteouts(system: &str) -> bool {
    system.starts_with("kernel")
}

/// As a lower, too: of a whiteout by mark nobody else can know that it is not there before looking it up.
pub(crate) fn lists_marked_whiteouts(lowers: &[LayerSpec]) -> bool {
    lowers.iter().any(|layer| layer.entries.values().any(|entry| entry.what == What::MarkedWhiteout))
}

/// Kernel overlayfs over a lower without file handles changes an object's number when it is copied up, even while it is held or has another name.
pub(crate) fn numbers_over_no_handles(system: &str) -> bool {
    system == "kernel overlayfs on plyfs" || system == "kernel overlayfs, eight deep"
}

/// Kernel overlayfs asks an upper on FUSE about the name that it first knew of a file, and answers ESTALE for the others when that one is gone.
pub(crate) fn loses_names_of_links(op: &Op) -> bool {
    matches!(op, Op::Link { .. })
}

/// Kernel overlayfs keeps one whiteout in `work` to link from, until the next mount.
pub(crate) fn keeps_a_whiteout_in_work(system: &str) -> bool {
    system.starts_with("kernel")
}

/// Kernel overlayfs answers fstat of an unlinked lower file that was never copied up with the lower's own link count, which is not 0.
pub(crate) fn keeps_links_of_removed_lowers(system: &str, want: &mut View) {
    if system.starts_with("kernel") {
        no_zero_links(want);
    }
}

/// Kernel overlayfs writes no redirect longer than 256 bytes (`OVL_REDIRECT_MAX`) and answers EXDEV, with metacopy also to link; plyfs writes what fits into an xattr. From there on the
/// kernel's tree is another one, and it takes no further part in the case.
pub(crate) fn redirect_too_long(system: &str, op: &Op, got: &Outcome) -> bool {
    system.starts_with("kernel") && matches!(op, Op::Rename { .. } | Op::Link { .. }) && *got == Err(Errno::XDEV)
}

/// Kernel overlayfs counts a whiteout by mark that hides nothing as an entry when it asks whether a directory is empty. Rare: such a whiteout is in the layer
/// for the sake of another layer.
pub(crate) fn stray_marked_whiteouts(system: &str, lowers: &[LayerSpec], op: &Op, got: &Outcome) -> bool {
    lists_marked_whiteouts(lowers)
        && system.starts_with("kernel")
        && matches!(op, Op::Rmdir { .. } | Op::Rename { .. })
        && *got == Err(Errno::NOTEMPTY)
}

/// Kernel overlayfs refuses to make a character device 0:0 (EPERM), as it would be a whiteout, and a rename that leaves one (EINVAL); plyfs stores it
/// escaped.
pub(crate) fn makes_no_whiteout_device(system: &str, op: &Op, got: &Outcome) -> bool {
    let refusal = match op {
        Op::Mkchar { rdev: 0, .. } => Errno::PERM,
        Op::Rename { how: Move::Whiteout, .. } => Errno::INVAL,
        _ => return false,
    };
    system.starts_with("kernel") && *got == Err(refusal)
}

/// Kernel overlayfs with metacopy=on gives a file a new time of modification when its data comes up, be it only opened for writing; plyfs puts the old one back.
pub(crate) fn opens_with_a_new_mtime(system: &str) -> bool {
    system.starts_with("kernel")
}

/// ext4 puts the whiteout of a RENAME_WHITEOUT in its place before it finds that the rename cannot be (ENOTEMPTY), and takes it out again: the directory has a new time of modification.
pub(crate) fn counts_a_failed_whiteout(how: Move) -> bool {
    how == Move::Whiteout
}

/// What plyfs stores escaped, kernel overlayfs shows as it is stored.
pub(crate) fn shows_escaped_devices(case: &Case) -> bool {
    case.ops.iter().any(|op| matches!(op, Op::Mkchar { rdev: 0, .. } | Op::Rename { how: Move::Whiteout, .. }))
}

/// Kernel overlayfs copies up an object that was removed while somebody holds it, when it is changed, to its old name: it answers EEXIST, or for a symlink
/// the removed name is back at the next mount. plyfs gives it a copy without a name. The kernel takes no further part in the case.
pub(crate) fn copies_up_what_was_removed(system: &str, op: &Op, reference: &Reference) -> bool {
    let (Op::Chmod { at, .. }
    | Op::Chown { at, .. }
    | Op::Utimes { at, .. }
    | Op::SetXattr { at, .. }
    | Op::RemoveXattr { at, .. }
    | Op::Truncate { at, .. }) = op
    else {
        return false;
    };
    system.starts_with("kernel") && at.names.is_empty() && at.base.is_some_and(|slot| reference.is_removed(slot))
}

/// A removed file that cannot be removed from `work` afterwards is litter there until the next mount, and counts as a link.
pub(crate) fn litter_counts_as_a_link(want: &mut View) {
    want.tree.values_mut().chain(want.slots.iter_mut().flatten()).for_each(uncounted_where_a_copy_failed);
}

/// A name of a lower hard link goes even where the copy that counts the others cannot be made; their number is right until the inode is forgotten.
pub(crate) fn uncounted_where_a_copy_failed(object: &mut Object) {
    object.nlink = None;
}

/// An upper of kernel overlayfs needs its index: where a hard link is in it, what it becomes as a lower shows the lower's content under the names that were not used, and
/// one link too many. plyfs settles them when it is unmounted.
pub(crate) fn stacks_no_index(system: &str, op: &Op, reference: &Reference) -> bool {
    system.starts_with("kernel") && *op == Op::Restack && (reference.has_hard_links() || reference.had_hard_links())
}

fn no_zero_links(want: &mut View) {
    for object in want.slots.iter_mut().flatten().filter(|object| object.nlink == Some(0)) {
        object.nlink = None;
    }
}

/// A rename that leaves a device takes two steps: cut off in between, the object is at its new name and the old one shows nothing, or what was replaced.
pub(crate) fn moves_in_two_steps(op: Option<&Op>) -> bool {
    matches!(op, Some(Op::Rename { how: Move::Whiteout, .. }))
}

/// The operations that a dialect cannot hold: in `User` and `Aufs` a directory with lower parts is not renamed and no device 0:0 is made; in `Aufs` a name that begins as a whiteout is no name, and one that is
/// too long for a whiteout is not removed or moved where a lower holds it.
pub(crate) fn dialect_refuses(dialect: Dialect, op: &Op, got: &Outcome) -> bool {
    let aufs = dialect == Dialect::Aufs;
    let named = |path: &Path| path.base.is_some() || path.names.iter().any(|name| name.starts_with(b".wh."));
    match (op, got) {
        (Op::Rename { .. }, Err(Errno::XDEV)) => true,
        (Op::Mkchar { rdev: 0, .. } | Op::Rename { how: Move::Whiteout, .. }, Err(Errno::PERM)) => true,
        (Op::Unlink { at } | Op::Rmdir { at } | Op::Rename { from: at, .. }, Err(Errno::NAMETOOLONG)) => {
            aufs && at.names.last().is_some_and(|name| name.len() > 251)
        }
        (op, Err(Errno::INVAL | Errno::PERM)) => aufs && op.paths().into_iter().any(named),
        _ => false,
    }
}

/// In `Aufs` nothing tells what a copy was copied from once it is mounted again: names of a lower file do not stay one file. `None`: nothing is left of the case.
pub(crate) fn without_what_a_dialect_loses(case: &Case, dialect: Dialect) -> Option<Case> {
    let mut case = Case { metacopy: false, ..case.clone() };
    if dialect == Dialect::Aufs {
        if case.lowers.iter().any(|layer| layer.entries.values().any(|entry| matches!(entry.what, What::Hard(_)))) {
            return None;
        }
        if case.ops.iter().any(|op| matches!(op, Op::Link { .. })) {
            case.ops.retain(|op| *op != Op::Restack);
        }
    }
    Some(case)
}

/// In a user namespace nobody has attributes of the class `trusted`, and whoever writes a file takes setuid and setgid from it: CAP_FSETID of the first namespace would keep them.
pub(crate) fn without_what_is_the_privileged_alone(case: &mut Case) {
    let is_theirs = |name: &[u8]| name.starts_with(b"trusted.");
    case.ops.retain(|op| !matches!(op, Op::SetXattr { name, .. } | Op::RemoveXattr { name, .. } if is_theirs(name)));
    for op in &mut case.ops {
        if let Op::Create { mode, .. }
        | Op::Mkdir { mode, .. }
        | Op::Mkfifo { mode, .. }
        | Op::Mkchar { mode, .. }
        | Op::Chmod { mode, .. } = op
        {
            *mode &= 0o1777;
        }
    }
    for entry in case.lowers.iter_mut().flat_map(|layer| layer.entries.values_mut()) {
        entry.xattrs.retain(|name, _| !is_theirs(name));
        entry.mode &= 0o1777;
    }
}

/// In `Aufs` nothing says of a copy what it was copied from, once it is mounted again; in `User` nothing says it of a symlink or special file in a real directory, and in a user namespace, where handles cannot be opened, of
/// what was renamed.
pub(crate) fn dialect_forgets_numbers(dialect: Dialect, system: &str) -> bool {
    dialect == Dialect::Aufs || dialect == Dialect::User && system == "directories"
}
