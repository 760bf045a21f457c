//! Ordinary users: `try` and `run` give themselves a user namespace, in which they may mount.
//!
//! What is not theirs on this machine stays out of their reach there: the kernel judges by the ids outside. Their own id and, where `/etc/subuid` and `/etc/subgid`
//! give them some, their subordinate ids are mapped; all others show as the overflow id (nobody).

use std::fs;
use std::path::PathBuf;

use plyfs_overlay::{IdMap, OwnerMap};
use plyfs_sys::ns::{self, Namespaces};
use plyfs_sys::process::{self, caps};
use plyfs_sys::userns::{self, IdRange, UserNsError};

use super::fail::failure;

/// Who a command is in its namespace.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum As {
    /// Who called plyfs: subordinate ids keep their numbers, too.
    Caller,
    /// Root, with the subordinate ids from 1 on.
    Root,
}

/// Whether this process is an ordinary user's, without a right to mount.
pub(crate) fn is_ordinary_user() -> bool {
    process::effective_uid() != 0 && !may_mount()
}

fn may_mount() -> bool {
    caps::effective().is_ok_and(|set| set & caps::Set::SYS_ADMIN.bits() != 0)
}

/// Sees that this process may make mounts: an ordinary user gets a user namespace. Nothing may be open that belongs to the mount namespace, and there must be one thread.
pub(crate) fn enter(verb: &str, who: As) -> anyhow::Result<()> {
    if !is_ordinary_user() {
        // Root of a user namespace may have no mount namespace that is his.
        if userns::is_inside() && may_mount() {
            let own = Namespaces { mount: true, ..Namespaces::default() };
            ns::unshare(own).map_err(|errno| failure(verb, format_args!("cannot make a mount namespace: {errno}"), "see 'plyfs info'"))?;
        }
        return Ok(());
    }
    let (uid, gid) = (process::effective_uid(), process::effective_gid());
    let maps = |own: u32, file: &str| {
        let subordinate = ranges(file, uid);
        match who {
            As::Caller => map_to_themselves(own, &subordinate),
            As::Root => map_from_root(own, &subordinate),
        }
    };
    let whole = userns::enter(&maps(uid, SUBUID), &maps(gid, SUBGID)).map_err(|error| refused(verb, &error))?;
    if !whole {
        tracing::info!("newuidmap and newgidmap did not map subordinate ids; only the user's own is mapped");
    }
    // The launcher is this program once more.
    caps::make_ambient().map_err(|errno| failure(verb, format_args!("cannot pass on capabilities: {errno}"), "see 'plyfs info'"))
}

/// How owners show in a user namespace to who mounts there, as a rule its root: those without a number there as his own, so that he can use what is theirs as far as this machine lets him. On
/// disk they stay what they are.
pub(crate) fn as_mounter_shows() -> OwnerMap {
    if !userns::is_inside() {
        return OwnerMap::default();
    }
    let map = |ranges: &[userns::IdRange], own: u32| {
        let same = ranges.iter().map(|range| plyfs_overlay::IdRange { disk: range.inside, shown: range.inside, count: range.count });
        // A map that cannot be is no map of the kernel's.
        IdMap::ranges(same.collect()).unwrap_or_default().with_overflow(own)
    };
    match userns::own_ranges() {
        Ok((uids, gids)) => OwnerMap { uids: map(&uids, process::effective_uid()), gids: map(&gids, process::effective_gid()) },
        Err(errno) => {
            tracing::warn!(%errno, "owners without a number in the namespace show as nobody");
            OwnerMap::default()
        }
    }
}

fn refused(verb: &str, error: &UserNsError) -> anyhow::Error {
    let remedy = format!("see what 'plyfs info' says of user namespaces, or run 'sudo plyfs {verb} ...'");
    failure(verb, error, remedy)
}

/// Subordinate user ids.
pub(crate) const SUBUID: &str = "/etc/subuid";

/// Subordinate group ids.
pub(crate) const SUBGID: &str = "/etc/subgid";

/// The login name of a user, as far as the file of users knows it.
pub(crate) fn login(uid: u32) -> Option<String> {
    field_of(uid, 0)
}

/// A field of the user's line in the file of users.
fn field_of(uid: u32, field: usize) -> Option<String> {
    let uid = uid.to_string();
    // A machine without the file knows no names.
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let line = users.lines().find(|line| line.split(':').nth(2) == Some(uid.as_str()))?;
    line.split(':').nth(field).map(str::to_owned)
}

/// The ids, as (first, count), that a file of subordinate ids gives a user.
pub(crate) fn ranges(file: &str, uid: u32) -> Vec<(u32, u32)> {
    // Where there is no such file nobody has any.
    let text = fs::read_to_string(file).unwrap_or_default();
    ranges_in(&text, &uid.to_string(), login(uid).as_deref())
}

fn ranges_in(text: &str, uid: &str, login: Option<&str>) -> Vec<(u32, u32)> {
    let range = |line: &str| {
        let mut fields = line.split(':');
        let who = fields.next()?;
        let (first, count) = (fields.next()?.trim().parse().ok()?, fields.next()?.trim().parse().ok()?);
        (who == uid || Some(who) == login).then_some((first, count))
    };
    text.lines().filter_map(range).filter(|(_, count)| *count > 0).collect()
}

/// What the kernel shows where an id has no number in a namespace.
pub(crate) const NOBODY: u32 = 65_534;

/// The last of the subordinate ids stands for all that are not mapped: an id that is none could not even be removed.
fn map_to_themselves(own: u32, subordinate: &[(u32, u32)]) -> Vec<IdRange> {
    let mut maps = vec![IdRange::one(own, own)];
    maps.extend(subordinate.iter().map(|&(first, count)| IdRange { inside: first, outside: first, count }));
    let holds = |range: &IdRange| (range.inside..range.inside.saturating_add(range.count)).contains(&NOBODY);
    if !maps.iter().any(holds)
        && let Some(last) = maps.get_mut(1..).and_then(<[IdRange]>::last_mut)
        && last.count > 1
    {
        last.count -= 1;
        let outside = last.outside.saturating_add(last.count);
        maps.push(IdRange::one(NOBODY, outside));
    }
    maps
}

fn map_from_root(own: u32, subordinate: &[(u32, u32)]) -> Vec<IdRange> {
    let mut maps = vec![IdRange::one(0, own)];
    let mut inside = 1_u32;
    for &(outside, count) in subordinate {
        maps.push(IdRange { inside, outside, count });
        inside = inside.saturating_add(count);
    }
    maps
}

/// Where an ordinary user's state is: `$XDG_DATA_HOME/plyfs`, as a rule `~/.local/share/plyfs`.
pub(crate) fn data_dir() -> Option<PathBuf> {
    let given = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || given("HOME").or_else(|| field_of(process::effective_uid(), 5).map(PathBuf::from));
    given("XDG_DATA_HOME").or_else(|| Some(home()?.join(".local/share"))).map(|dir| dir.join("plyfs"))
}

/// Where an ordinary user's records of mounts are: `$XDG_RUNTIME_DIR/plyfs`, or in `/tmp` under his number outside of all namespaces of his.
pub(crate) fn runtime_dir() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute()) {
        Some(dir) => dir.join("plyfs"),
        None => PathBuf::from(format!("/tmp/plyfs-{}", userns::uid_outside())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subordinate_ids_are_those_of_the_user_by_number_or_name() {
        let text = "root:1:2\nann:100000:65536\n1000:300000:10\nbob:5:5\nann:nonsense\nann:7:0\n";
        assert_eq!(ranges_in(text, "1000", Some("ann")), [(100_000, 65_536), (300_000, 10)]);
        assert_eq!(ranges_in(text, "1001", None), []);
    }

    #[test]
    fn ids_are_mapped_to_themselves_or_from_root_on() {
        let subordinate = [(100_000, 65_536), (300_000, 10)];
        let range = |inside, outside, count| IdRange { inside, outside, count };
        assert_eq!(
            map_to_themselves(1000, &subordinate),
            [range(1000, 1000, 1), range(100_000, 100_000, 65_536), range(300_000, 300_000, 9), range(65_534, 300_009, 1)]
        );
        assert_eq!(map_to_themselves(NOBODY, &[(5, 2)]), [range(NOBODY, NOBODY, 1), range(5, 5, 2)]);
        assert_eq!(map_to_themselves(7, &[]), [range(7, 7, 1)]);
        assert_eq!(map_from_root(1000, &subordinate), [range(0, 1000, 1), range(1, 100_000, 65_536), range(65_537, 300_000, 10)]);
    }
}
