//! When setuid and setgid go: at changes by somebody who may not keep them.
//!
//! The rules are those of `fs/attr.c` (`setattr_should_drop_suidgid`). The union has to apply them itself: its own calls are made with the daemon's rights, and
//! of the kernel's word on the caller only that of write arrives (see `plyfs-fuse`). What decides, the caller's groups and CAP_FSETID, does not come with
//! a request; it is read from `/proc`, at the rare moment when a file has such bits: the caller waits for the answer meanwhile, so its number is its own.

use std::sync::Arc;

use plyfs_sys::at::XattrMode;
use plyfs_sys::process::credentials::{Credentials, credentials};
use plyfs_sys::stat::{Kind, Stat};

use crate::backend::{Tree, UpperTree};
use crate::copy_up::Content;
use crate::error::{Attempt, Result};
use crate::inode::Inode;
use crate::union::{Caller, Event, Union};

const SETUID: u32 = 0o4000;
const SETGID: u32 = 0o2000;
const GROUP_EXECUTE: u32 = 0o010;
const CAP_FSETID: u32 = 4;
const CAPABILITY: &[u8] = b"security.capability";

/// What of a caller decides.
struct Standing {
    /// CAP_FSETID.
    keeps: bool,
    /// In the group of the file.
    member: bool,
}

impl Caller {
    fn credentials(&self) -> Option<Credentials> {
        if self.pid == 0 {
            // Of another pid namespace, or nobody.
            return None;
        }
        match credentials(self.pid) {
            // Another one has the number: the caller is gone, and nobody hears of the answer.
            Ok(found) if (found.uid, found.gid) != (self.uid, self.gid) => None,
            Ok(found) => Some(found),
            Err(errno) => {
                tracing::debug!(%errno, pid = self.pid, "the caller's groups are not known");
                None
            }
        }
    }

    /// Without its credentials a caller is what its ids say. `group`: as it shows.
    fn standing(&self, group: u32) -> Standing {
        match self.credentials() {
            Some(found) => Standing { keeps: found.has(CAP_FSETID), member: found.is_in_group(group) },
            None => Standing { keeps: self.uid == 0, member: self.gid == group },
        }
    }
}

/// The mode after a change of data by somebody without CAP_FSETID.
pub(crate) fn without(mode: u32, member: bool) -> u32 {
    let setgid = if mode & GROUP_EXECUTE != 0 || !member { SETGID } else { 0 };
    mode & !(SETUID | setgid)
}

/// The mode that stays when a caller changes the data of a file. `stat`: with the group that shows, as the caller's groups do.
fn kept(caller: &Caller, stat: &Stat, known: bool) -> u32 {
    if stat.mode & (SETUID | SETGID) == 0 {
        return stat.mode;
    }
    let standing = caller.standing(stat.gid);
    if standing.keeps && !known { stat.mode } else { without(stat.mode, standing.member) }
}

/// Whether an object is where kernel overlayfs stages copies: `work/#`, and a number in hexadecimal (`ovl_tempname`).
fn is_copy_of_overlayfs<T: Tree>(inode: &Inode<T>) -> bool {
    let Some((dir, name)) = inode.a_name() else { return false };
    let number = name.strip_prefix(b"#").unwrap_or_default();
    let staged = !number.is_empty() && number.iter().all(u8::is_ascii_hexdigit);
    staged && dir.a_name().is_some_and(|(_, dir)| &*dir == b"work")
}

impl<T: UpperTree> Union<T> {
    /// Takes setuid and setgid away before a change of data, as the kernel does (`file_remove_privs`): at no moment are they on a stranger's bytes. The inode is in
    /// the upper. `known`: the kernel says that the caller has no CAP_FSETID.
    pub(crate) fn drop_privileges(&self, caller: &Caller, inode: &Inode<T>, known: bool) -> Result<()> {
        let mut stat = self.upper()?.tree.stat(self.upper_node(inode)?).attempt("stat")?;
        stat.gid = self.owners.gids.up(stat.gid);
        self.change_mode(inode, stat.mode, kept(caller, &stat, known))
    }

    /// As [`Self::drop_privileges`], before a file is copied up empty or its data is left below: both are one step, so what has such bits and loses them comes up first.
    pub(crate) fn drop_before_emptying(&self, caller: &Caller, inode: &Arc<Inode<T>>) -> Result<()> {
        let stat = self.attr_of(inode)?.stat;
        if kept(caller, &stat, false) == stat.mode {
            return Ok(());
        }
        self.copy_up(inode, Content::Metadata)?;
        let _still = self.while_data_stays(inode)?;
        self.drop_privileges(caller, inode, false)
    }

    /// chown(2): the host takes setuid, setgid and capabilities from what is no directory, but for setgid without group execute, which is not lost to
    /// strangers by the daemon's call.
    ///
    /// Kernel overlayfs that has this union as its upper gives a copy in `work` its mode and capabilities first and its owner then, and asks that they stay; what it asks does
    /// not arrive (fuser 0.18 drops the flag that tells it from chown(2)), so its copies are known by their place.
    pub(crate) fn change_owner(&self, caller: &Caller, inode: &Inode<T>, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
        let (tree, node) = (&self.upper()?.tree, self.upper_node(inode)?);
        let change = || self.owner_kept(tree.set_owner(node, uid, gid)).attempt("chown");
        if matches!(inode.kind, Kind::Dir | Kind::Symlink) {
            return change();
        }
        let before = tree.stat(node).attempt("stat")?;
        if caller.uid != 0 || !is_copy_of_overlayfs(inode) {
            change()?;
            return self.drop_setgid(caller, inode, before.gid);
        }
        let capability = tree.get_xattr(node, CAPABILITY).attempt("read capabilities")?;
        change()?;
        if before.mode & (SETUID | SETGID) != 0 {
            tree.set_mode(node, before.mode).attempt("put setuid and setgid back")?;
        }
        match capability {
            Some(value) => tree.set_xattr(node, CAPABILITY, &value, XattrMode::Any).attempt("put capabilities back"),
            None => Ok(()),
        }
    }

    /// Takes setgid away at a change of owner or group by a stranger to the group that the file had, or of an access ACL by one to the group that it has, where the host does not:
    /// it asked for the daemon's rights.
    pub(crate) fn drop_setgid(&self, caller: &Caller, inode: &Inode<T>, group: u32) -> Result<()> {
        let stat = self.upper()?.tree.stat(self.upper_node(inode)?).attempt("stat")?;
        if stat.mode & SETGID == 0 {
            return Ok(());
        }
        let Standing { keeps, member } = caller.standing(self.owners.gids.up(group));
        if keeps || member { Ok(()) } else { self.change_mode(inode, stat.mode, stat.mode & !SETGID) }
    }

    fn change_mode(&self, inode: &Inode<T>, mode: u32, kept: u32) -> Result<()> {
        if kept == mode {
            return Ok(());
        }
        self.upper()?.tree.set_mode(self.upper_node(inode)?, kept).attempt("drop setuid and setgid")?;
        self.tell(Event::Attributes(inode.ino));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_without_privileges_are_the_kernels() {
        for (mode, member, kept) in [
            (0o6777, true, 0o777),
            (0o6777, false, 0o777),
            (0o2767, true, 0o2767),
            (0o2767, false, 0o767),
            (0o6767, true, 0o2767),
            (0o1755, false, 0o1755),
        ] {
            assert_eq!(without(mode, member), kept, "{mode:o} {member}");
        }
    }

    #[test]
    fn a_caller_without_a_number_is_what_its_ids_say() {
        let root = Caller { uid: 0, gid: 0, pid: 0 }.standing(7);
        assert!(root.keeps && !root.member);
        let other = Caller { uid: 7, gid: 7, pid: 0 }.standing(7);
        assert!(!other.keeps && other.member);
    }
}
