//! Ids inside of attributes: POSIX ACLs (uapi/linux/posix_acl_xattr.h) and file capabilities (`struct vfs_ns_cap_data`, uapi/linux/capability.h).
//!
//! What is no value of the known form is passed on as it is: the filesystem that has it, or is to have it, says what it thinks of it.

use std::borrow::Cow;

use super::OwnerMap;
use crate::acl;
use crate::union::NO_ID;
use crate::xattr::CAPABILITY;

const USER: u16 = 0x02;
const GROUP: u16 = 0x08;

/// Sizes of `security.capability`: revision 2 has no owner of the user namespace, which is the root of the first one; revision 3 has it at the end.
const WITHOUT_ROOT: usize = 20;
const WITH_ROOT: usize = 24;
/// The version's byte of the first word.
const REVISION_2: u8 = 2;
const REVISION_3: u8 = 3;

/// An id that has none on the other side.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unmapped;

impl OwnerMap {
    /// How the value of an attribute shows. `None`: it does not, since it is for a root whom nobody can be.
    pub(crate) fn value_up<'a>(&self, name: &[u8], value: Cow<'a, [u8]>) -> Option<Cow<'a, [u8]>> {
        if self.uids.ranges.is_none() && self.gids.ranges.is_none() {
            return Some(value);
        }
        match name {
            acl::ACCESS | acl::DEFAULT => {
                let up = |map: &super::IdMap, id| Some(map.named_up(id).unwrap_or(map.overflow));
                Some(Cow::Owned(mapped_acl(&value, |id| up(&self.uids, id), |id| up(&self.gids, id))))
            }
            CAPABILITY => mapped_capability(&value, |id| self.uids.named_up(id)).ok().map(Cow::Owned),
            _ => Some(value),
        }
    }

    /// What a shown value is on disk.
    ///
    /// Errors: [`Unmapped`] for an id that is nowhere on disk.
    pub(crate) fn value_down<'a>(&self, name: &[u8], value: Cow<'a, [u8]>) -> Result<Cow<'a, [u8]>, Unmapped> {
        let on_disk = match name {
            _ if self.uids.ranges.is_none() && self.gids.ranges.is_none() => return Ok(value),
            acl::ACCESS | acl::DEFAULT => {
                let missing = std::cell::Cell::new(false);
                let down = |found: Option<u32>| {
                    missing.set(missing.get() || found.is_none());
                    found
                };
                let mapped = mapped_acl(&value, |id| down(self.uids.down(id)), |id| down(self.gids.down(id)));
                if missing.get() {
                    return Err(Unmapped);
                }
                mapped
            }
            CAPABILITY => mapped_capability(&value, |id| self.uids.down(id))?,
            _ => return Ok(value),
        };
        Ok(Cow::Owned(on_disk))
    }
}

/// An ACL with other ids; one that has none gets [`NO_ID`], as the kernel does it.
fn mapped_acl(value: &[u8], uid: impl Fn(u32) -> Option<u32>, gid: impl Fn(u32) -> Option<u32>) -> Vec<u8> {
    let mut out = value.to_vec();
    let Some((_, entries)) = out.split_first_chunk_mut::<4>() else { return out };
    for [tag_low, tag_high, _, _, id @ ..] in entries.as_chunks_mut::<8>().0 {
        let now = match u16::from_le_bytes([*tag_low, *tag_high]) {
            USER => uid(u32::from_le_bytes(*id)),
            GROUP => gid(u32::from_le_bytes(*id)),
            _ => continue,
        };
        *id = now.unwrap_or(NO_ID).to_le_bytes();
    }
    out
}

/// Capabilities for the root of another user namespace: in the shorter form for the first one's.
fn mapped_capability(value: &[u8], uid: impl Fn(u32) -> Option<u32>) -> Result<Vec<u8>, Unmapped> {
    let root = match (value.len(), value.get(3)) {
        (WITHOUT_ROOT, Some(&REVISION_2)) => 0,
        (WITH_ROOT, Some(&REVISION_3)) => value.last_chunk::<4>().map_or(NO_ID, |id| u32::from_le_bytes(*id)),
        _ => return Ok(value.to_vec()),
    };
    let root = uid(root).ok_or(Unmapped)?;
    let mut out = value.to_vec();
    out.truncate(WITHOUT_ROOT);
    if root != 0 {
        out.extend_from_slice(&root.to_le_bytes());
    }
    if let Some(revision) = out.get_mut(3) {
        *revision = if root == 0 { REVISION_2 } else { REVISION_3 };
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::owners::{IdMap, IdRange};

    fn shifted() -> OwnerMap {
        let map = IdMap::ranges(vec![IdRange { disk: 0, shown: 100_000, count: 1000 }]).unwrap();
        OwnerMap { uids: map.clone(), gids: map }
    }

    fn acl(user: u32, group: u32) -> Vec<u8> {
        let mut value = vec![2, 0, 0, 0];
        for (tag, perm, id) in
            [(1_u16, 7_u16, NO_ID), (USER, 5, user), (4, 5, NO_ID), (GROUP, 4, group), (0x10, 7, NO_ID), (0x20, 0, NO_ID)]
        {
            value.extend(tag.to_le_bytes());
            value.extend(perm.to_le_bytes());
            value.extend(id.to_le_bytes());
        }
        value
    }

    #[test]
    fn ids_in_acls_are_those_of_owners() {
        let map = shifted();
        for name in [acl::ACCESS, acl::DEFAULT] {
            assert_eq!(map.value_up(name, acl(1, 2).into()).unwrap(), acl(100_001, 100_002));
            assert_eq!(map.value_down(name, acl(100_001, 100_002).into()).unwrap(), acl(1, 2));
            assert_eq!(map.value_up(name, acl(1000, 5).into()).unwrap(), acl(65534, 100_005));
            assert_eq!(map.value_down(name, acl(1, 100_002).into()), Err(Unmapped));
            assert_eq!(map.value_up(name, b"odd"[..].into()).unwrap(), &b"odd"[..]);
        }
        assert_eq!(map.value_up(b"user.x", acl(1, 2).into()).unwrap(), acl(1, 2));
        // What all see as one owner is in ACLs what it is, as in fuse-overlayfs.
        let squashed = OwnerMap { uids: IdMap::squashed(7), gids: IdMap::default() };
        assert_eq!(squashed.value_up(acl::ACCESS, acl(1, 2).into()).unwrap(), acl(1, 2));
    }

    #[test]
    fn capabilities_are_for_the_root_that_shows() {
        let map = shifted();
        let first: Vec<u8> = [&[1, 0, 0, REVISION_2][..], &[9; 16]].concat();
        let of = |root: u32| [&[1, 0, 0, REVISION_3][..], &[9; 16], &root.to_le_bytes()].concat();
        assert_eq!(map.value_up(CAPABILITY, first.clone().into()).unwrap(), of(100_000));
        assert_eq!(map.value_down(CAPABILITY, of(100_000).into()).unwrap(), first);
        assert_eq!(map.value_up(CAPABILITY, of(7).into()).unwrap(), of(100_007));
        assert_eq!(map.value_up(CAPABILITY, of(1000).into()), None);
        assert_eq!(map.value_down(CAPABILITY, first.into()), Err(Unmapped));
    }
}
