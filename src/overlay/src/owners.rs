//! Owners as users of a union see them: `uidmapping`, `gidmapping` and the `squash_to_*` options of fuse-overlayfs.
//!
//! The map stands between the union's callers and everything else: layers, and all that the union decides, know the ids on disk only. So a copy-up
//! keeps an owner that has no shown id, or shares one with others, as it is. Up (to users) go attributes and POSIX ACLs; down go callers, chown and ACLs.
//!
//! An id on disk that no range holds shows as the overflow id. A shown one that no range holds cannot be written by chown or in an ACL; who has it makes things of the
//! overflow id. A squashed owner shows as one id, whatever is on disk; what is written is kept as far as the layer's filesystem lets.

mod values;

use std::fmt;

use plyfs_sys::Errno;

use crate::backend::UpperTree;
use crate::error::{Error, Result};
use crate::union::{Caller, Union};

/// What stands for an id that has none, unless the kernel says otherwise (`/proc/sys/kernel/overflowuid`).
const OVERFLOW: u32 = 65534;

/// Ids that are one after the other on disk and where they show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRange {
    /// The first one on disk.
    pub disk: u32,
    /// The first one that shows.
    pub shown: u32,
    /// How many.
    pub count: u32,
}

/// How uids, or gids, show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdMap {
    squash: Option<u32>,
    /// `None`: ids show as they are.
    ranges: Option<Box<[IdRange]>>,
    overflow: u32,
}

impl Default for IdMap {
    fn default() -> Self {
        Self { squash: None, ranges: None, overflow: OVERFLOW }
    }
}

impl IdMap {
    /// All ids show as this one.
    pub fn squashed(id: u32) -> Self {
        Self { squash: Some(id), ..Self::default() }
    }

    /// Ids show as these ranges say.
    ///
    /// Errors: what is wrong with the ranges: there is none, one is empty or passes the last id, or two have ids in common.
    pub fn ranges(ranges: Vec<IdRange>) -> std::result::Result<Self, &'static str> {
        if ranges.is_empty() {
            return Err("no range");
        }
        // The last number stands for no id.
        let ends = |first: u32, count: u32| first.checked_add(count).is_some();
        if ranges.iter().any(|range| range.count == 0 || !ends(range.disk, range.count) || !ends(range.shown, range.count)) {
            return Err("a range that is empty or passes the last id, 4294967294");
        }
        let meet = |a: (u32, u32), b: (u32, u32)| {
            u64::from(a.0) < u64::from(b.0) + u64::from(b.1) && u64::from(b.0) < u64::from(a.0) + u64::from(a.1)
        };
        for (index, a) in ranges.iter().enumerate() {
            let others = ranges.iter().skip(index + 1);
            if others.clone().any(|b| meet((a.disk, a.count), (b.disk, b.count)) || meet((a.shown, a.count), (b.shown, b.count))) {
                return Err("two ranges that have ids in common");
            }
        }
        Ok(Self { ranges: Some(ranges.into()), ..Self::default() })
    }

    /// The same with another id for those that have none.
    #[must_use]
    pub fn with_overflow(self, overflow: u32) -> Self {
        Self { overflow, ..self }
    }

    /// Whether all show as one.
    pub fn is_squashed(&self) -> bool {
        self.squash.is_some()
    }

    /// Whether ids show as they are.
    pub fn is_identity(&self) -> bool {
        self.squash.is_none() && self.ranges.is_none()
    }

    /// How an id on disk shows.
    pub fn up(&self, id: u32) -> u32 {
        if let Some(squash) = self.squash {
            return squash;
        }
        self.named_up(id).unwrap_or(self.overflow)
    }

    /// How an id shows that is named in an attribute: squashing is of owners alone.
    fn named_up(&self, id: u32) -> Option<u32> {
        let Some(ranges) = &self.ranges else { return Some(id) };
        ranges.iter().find_map(|range| moved(id, range.disk, range.shown, range.count))
    }

    /// What a shown id is on disk; `None` if nothing shows so.
    pub fn down(&self, id: u32) -> Option<u32> {
        let Some(ranges) = &self.ranges else { return Some(id) };
        ranges.iter().find_map(|range| moved(id, range.shown, range.disk, range.count))
    }
}

fn moved(id: u32, from: u32, to: u32, count: u32) -> Option<u32> {
    let offset = id.checked_sub(from).filter(|offset| *offset < count)?;
    to.checked_add(offset)
}

/// As the options write it: `DISK:SHOWN:COUNT` of each range.
impl fmt::Display for IdMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges = self.ranges.as_deref().unwrap_or_default();
        for (index, IdRange { disk, shown, count }) in ranges.iter().enumerate() {
            write!(f, "{}{disk}:{shown}:{count}", if index == 0 { "" } else { ":" })?;
        }
        match self.squash {
            Some(squash) => write!(f, "{squash}"),
            None => Ok(()),
        }
    }
}

/// How owners and groups show.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OwnerMap {
    /// Owners.
    pub uids: IdMap,
    /// Groups.
    pub gids: IdMap,
}

impl OwnerMap {
    /// Whether owners and groups show as they are.
    pub fn is_identity(&self) -> bool {
        self.uids.is_identity() && self.gids.is_identity()
    }

    /// Whether somebody shows as what he is not on disk, so that what is written need not show.
    fn is_squashed(&self) -> bool {
        self.uids.is_squashed() || self.gids.is_squashed()
    }
}

impl<T: UpperTree> Union<T> {
    /// The same with owners that show otherwise than they are on disk; before it is served.
    #[must_use]
    pub fn with_owners(mut self, owners: OwnerMap) -> Self {
        self.owners = owners;
        self
    }

    /// Owner and group, on disk, of what a caller makes. One who is nowhere on disk makes things of the overflow id, as in fuse-overlayfs: podman, as root of the host, makes
    /// files for a container whose map does not hold that root, and gives them to the container's root then.
    ///
    /// Errors: EOVERFLOW without ids.
    pub(crate) fn maker(&self, caller: &Caller) -> Result<(u32, u32)> {
        let (uid, gid) = caller.ids()?;
        let OwnerMap { uids, gids } = &self.owners;
        Ok((uids.down(uid).unwrap_or(uids.overflow), gids.down(gid).unwrap_or(gids.overflow)))
    }

    /// A new owner and group as chown(2) names them, on disk.
    ///
    /// Errors: EINVAL for one that is nowhere on disk (as the kernel's `notify_change`).
    pub(crate) fn named_owner(&self, uid: Option<u32>, gid: Option<u32>) -> Result<(Option<u32>, Option<u32>)> {
        let down = |map: &IdMap, id: Option<u32>| match id {
            Some(id) => map.down(id).map(Some).ok_or(Error::Invalid("an owner that is mapped from nothing")),
            None => Ok(None),
        };
        Ok((down(&self.owners.uids, uid)?, down(&self.owners.gids, gid)?))
    }

    /// What a change of owner came to. Where owners are squashed nobody sees who it is: that this process can give things to some only is no error then, as in fuse-overlayfs.
    /// EINVAL: the id is none of its user namespace. EPERM is that to all but root, to whom it says that the object is protected.
    pub(crate) fn owner_kept(&self, result: plyfs_sys::Result<()>) -> plyfs_sys::Result<()> {
        let is_root = self.behaviour.own_ids.is_none_or(|(uid, _)| uid == 0);
        match result {
            Err(errno @ (Errno::PERM | Errno::INVAL)) if self.owners.is_squashed() && !(is_root && errno == Errno::PERM) => {
                tracing::debug!(%errno, "an owner that does not show is not kept");
                Ok(())
            }
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(disk: u32, shown: u32, count: u32) -> IdRange {
        IdRange { disk, shown, count }
    }

    #[test]
    fn ids_show_as_ranges_say_and_others_as_the_overflow_id() {
        let map = IdMap::ranges(vec![range(0, 100_000, 1000), range(1000, 5, 1)]).unwrap();
        for (disk, shown) in [(0, 100_000), (999, 100_999), (1000, 5)] {
            assert_eq!((map.up(disk), map.down(shown)), (shown, Some(disk)));
        }
        assert_eq!((map.up(1001), map.down(0), map.down(101_000), map.down(OVERFLOW)), (OVERFLOW, None, None, None));
        assert_eq!(map.clone().with_overflow(7).up(u32::MAX), 7);
        assert_eq!(map.to_string(), "0:100000:1000:1000:5:1");
        let all = IdMap::ranges(vec![range(0, 0, u32::MAX)]).unwrap();
        assert_eq!((all.up(u32::MAX - 1), all.up(u32::MAX)), (u32::MAX - 1, OVERFLOW));
    }

    #[test]
    fn ranges_that_are_none_are_refused() {
        for (ranges, why) in [
            (vec![], "no range"),
            (vec![range(0, 0, 0)], "a range that is empty or passes the last id, 4294967294"),
            (vec![range(1, 0, u32::MAX)], "a range that is empty or passes the last id, 4294967294"),
            (vec![range(0, 0, 10), range(9, 100, 1)], "two ranges that have ids in common"),
            (vec![range(0, 0, 10), range(10, 5, 1)], "two ranges that have ids in common"),
        ] {
            assert_eq!(IdMap::ranges(ranges), Err(why));
        }
    }

    #[test]
    fn a_squashed_owner_is_one_id_for_all_and_what_is_written_is_itself() {
        let map = IdMap::squashed(7);
        assert_eq!((map.up(0), map.up(u32::MAX), map.down(0)), (7, 7, Some(0)));
        assert_eq!(map.to_string(), "7");
    }
}
