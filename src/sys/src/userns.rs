//! A user namespace of the process's own, with the mount namespace that it may mount in.
//!
//! Who owns a user namespace has all capabilities over it, whatever its ids are there; they last over `execve` only for its root, or where they are made ambient
//! ([`crate::process::caps::make_ambient`]).

use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::process::{Command, Stdio};

use crate::ns::{self, Namespaces};
use crate::process::{self, Exit, Fork};
use crate::{Errno, Result};

/// Ids of a user namespace and what they are outside of it.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct IdRange {
    /// The first one, inside.
    pub inside: u32,
    /// The first one, outside.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

impl IdRange {
    /// One id.
    pub fn one(inside: u32, outside: u32) -> Self {
        Self { inside, outside, count: 1 }
    }
}

/// Where a new user namespace could not be had.
#[derive(Debug, thiserror::Error)]
pub enum UserNsError {
    /// It was not made; the process is where it was.
    #[error("cannot make a user namespace: {0}")]
    New(Errno),
    /// It was made, and has no ids.
    #[error("cannot map ids into the user namespace: {0}")]
    Map(Errno),
}

/// Moves this process, which has one thread, into a new user namespace and a new mount namespace, with these ids. More than the process's own ids are mapped by
/// `newuidmap` and `newgidmap`; where they fail, the process has its own ids alone (the first range of each list must be these), and `false` is returned.
///
/// # Errors
///
/// See [`UserNsError`].
pub fn enter(uids: &[IdRange], gids: &[IdRange]) -> core::result::Result<bool, UserNsError> {
    let namespaces = Namespaces { user: true, mount: true, ..Namespaces::default() };
    if uids.len() > 1 || gids.len() > 1 {
        // They have to be run outside of the namespace, and look at who runs them.
        let (go, mut gone) = pipe().map_err(UserNsError::New)?;
        let child = match process::fork().map_err(UserNsError::New)? {
            Fork::Child => std::process::exit(map_from_outside(go, gone, uids, gids)),
            Fork::Parent(pid) => pid,
        };
        drop(go);
        let entered = ns::unshare(namespaces);
        // The end of the pipe without a byte tells the child that nothing is to be done.
        let told = if entered.is_ok() { gone.write_all(b"g") } else { Ok(()) };
        drop(gone);
        let mapped = process::wait(child);
        entered.map_err(UserNsError::New)?;
        if told.is_ok() && mapped == Ok(Exit::Code(0)) {
            return Ok(true);
        }
    } else {
        ns::unshare(namespaces).map_err(UserNsError::New)?;
    }
    let single = |ranges: &[IdRange], file: &str| {
        let Some(range) = ranges.first() else { return Err(Errno::INVAL) };
        write(file, format!("{} {} 1", range.inside, range.outside))
    };
    // Without that the kernel lets nobody map a group who may not do so anyway.
    write("/proc/self/setgroups", "deny".to_owned())
        .and_then(|()| single(uids, "/proc/self/uid_map"))
        .and_then(|()| single(gids, "/proc/self/gid_map"))
        .map_err(UserNsError::Map)?;
    Ok(uids.len() == 1 && gids.len() == 1)
}

fn pipe() -> Result<(std::io::PipeReader, std::io::PipeWriter)> {
    std::io::pipe().map_err(|error| errno(&error))
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

/// One write, as the kernel wants it.
fn write(file: &str, text: String) -> Result<()> {
    fs::OpenOptions::new().write(true).open(file).and_then(|mut file| file.write_all(text.as_bytes())).map_err(|error| errno(&error))
}

/// The child that stays outside: waits for the parent's namespace and maps ids into it. Its exit code.
fn map_from_outside(mut go: std::io::PipeReader, gone: std::io::PipeWriter, uids: &[IdRange], gids: &[IdRange]) -> i32 {
    drop(gone);
    let mut byte = [0_u8];
    let parent = std::os::unix::process::parent_id();
    if go.read_exact(&mut byte).is_err() {
        return 1;
    }
    let run = |program: &str, ranges: &[IdRange]| {
        let numbers = ranges.iter().flat_map(|range| [range.inside, range.outside, range.count]);
        let args = std::iter::once(parent).chain(numbers).map(|number| OsString::from(number.to_string()));
        Command::new(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    };
    i32::from(!(run("newuidmap", uids) && run("newgidmap", gids)))
}

/// Whether this process is in another user namespace than the machine's first one, as far as its ids tell.
pub fn is_inside() -> bool {
    // The first namespace maps all ids to themselves. What cannot be read is no namespace of users.
    fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| !maps_all(&map))
}

/// The ids of users that have a number in this process's namespace, and those of groups.
///
/// # Errors
///
/// Those of reading `/proc`.
pub fn own_ranges() -> Result<(Vec<IdRange>, Vec<IdRange>)> {
    let read = |file: &str| fs::read_to_string(file).map(|map| map.lines().filter_map(range_of).collect()).map_err(|error| errno(&error));
    Ok((read("/proc/self/uid_map")?, read("/proc/self/gid_map")?))
}

fn range_of(line: &str) -> Option<IdRange> {
    let mut fields = line.split_ascii_whitespace().map(|field| field.parse().ok());
    Some(IdRange { inside: fields.next()??, outside: fields.next()??, count: fields.next()?? })
}

/// This process's user as the namespace around its own calls it; the same in the first namespace.
pub fn uid_outside() -> u32 {
    let own = process::effective_uid();
    fs::read_to_string("/proc/self/uid_map").ok().and_then(|map| outside(&map, own)).unwrap_or(own)
}

fn outside(map: &str, id: u32) -> Option<u32> {
    let holds = |range: &IdRange| id.checked_sub(range.inside).is_some_and(|offset| offset < range.count);
    map.lines().filter_map(range_of).find(holds).map(|range| range.outside + (id - range.inside))
}

fn maps_all(map: &str) -> bool {
    let mut fields = map.split_ascii_whitespace();
    (fields.next(), fields.next(), fields.next()) == (Some("0"), Some("0"), Some("4294967295"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_namespace_is_known_by_its_map() {
        assert!(maps_all("         0          0 4294967295\n"));
        assert!(!maps_all("         0       1000          1\n         1     100000      65536\n"));
        assert!(!maps_all(""));
    }

    #[test]
    fn ids_have_their_numbers_outside() {
        let map = "         0       1000          1\n         1     100000      65536\n";
        assert_eq!([0, 1, 65_536, 65_537].map(|id| outside(map, id)), [Some(1000), Some(100_000), Some(165_535), None]);
    }

    #[test]
    fn a_process_of_several_threads_stays_where_it_is() {
        // The test harness is such a process.
        let own = [IdRange::one(0, process::effective_uid())];
        assert!(matches!(enter(&own, &own), Err(UserNsError::New(Errno::INVAL))));
    }
}
