//! Who another process is, beyond the two ids that come with a request.

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::{Errno, Result};

/// Groups and capabilities of a thread, as `/proc` tells them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// fsuid, in this process's user namespace.
    pub uid: u32,
    /// fsgid.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Capabilities in effect, bits by number; none if they are of another user namespace than this process's.
    pub capabilities: u64,
}

impl Credentials {
    /// Whether `group` is the thread's own or one of its supplementary groups.
    pub fn is_in_group(&self, group: u32) -> bool {
        self.gid == group || self.groups.contains(&group)
    }

    /// Whether the thread has a capability, by its number.
    pub fn has(&self, capability: u32) -> bool {
        1_u64.checked_shl(capability).is_some_and(|bit| self.capabilities & bit != 0)
    }
}

/// Asks for the credentials of a thread by its number in this process's pid namespace.
///
/// By number alone a thread is only known while it is known to live: one that waits for an answer does.
///
/// # Errors
///
/// `ESRCH` when there is no such thread; `EIO` for what `/proc` says in no known form; else the kernel's.
pub fn credentials(thread: u32) -> Result<Credentials> {
    let said = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    let status = match fs::read_to_string(format!("/proc/{thread}/status")) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(Errno::SRCH),
        other => other.map_err(said)?,
    };
    // Capabilities are for objects of the user namespace that they are held in. Who may not look there is told of none.
    let namespace = |who: &str| fs::metadata(format!("/proc/{who}/ns/user")).map(|ns| (ns.dev(), ns.ino()));
    let ours = namespace("self").map_err(said)?;
    let same = namespace(&thread.to_string()).is_ok_and(|theirs| theirs == ours);
    parse(&status, same).ok_or(Errno::IO)
}

fn parse(status: &str, same_namespace: bool) -> Option<Credentials> {
    let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    // Real, effective, saved, of the filesystem. What is no number makes the whole unknown, which the caller is told as EIO.
    let last = |name: &str| line(name)?.split_ascii_whitespace().nth(3)?.parse().ok();
    let groups = line("Groups")?.split_ascii_whitespace().map(|group| group.parse().ok()).collect::<Option<_>>()?;
    let capabilities = u64::from_str_radix(line("CapEff")?.trim(), 16).ok()?;
    Some(Credentials { uid: last("Uid")?, gid: last("Gid")?, groups, capabilities: if same_namespace { capabilities } else { 0 } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_thread_is_who_it_is() {
        let own = credentials(rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs()).unwrap();
        assert_eq!((own.uid, own.gid), (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()));
        assert_eq!(own.capabilities, crate::process::caps::effective().unwrap());
        let mut groups: Vec<_> = rustix::process::getgroups().unwrap().into_iter().map(rustix::process::Gid::as_raw).collect();
        groups.sort_unstable();
        let mut found = own.groups.clone();
        found.sort_unstable();
        assert_eq!(found, groups);
        assert!(own.is_in_group(own.gid));
    }

    #[test]
    fn lines_are_read_by_their_names() {
        let status = "Name:\tGroups: 1\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t9 10 \nCapEff:\t0000000000000010\n";
        let found = parse(status, true).unwrap();
        assert_eq!(found, Credentials { uid: 4, gid: 8, groups: vec![9, 10], capabilities: 16 });
        assert!(found.is_in_group(8) && found.is_in_group(10) && !found.is_in_group(4) && found.has(4) && !found.has(3) && !found.has(64));
        assert_eq!(parse(status, false).unwrap().capabilities, 0);
        assert_eq!(parse("Uid:\t1\t2\t3\t4\n", true), None);
    }

    #[test]
    fn a_thread_that_is_not_there_is_said_so() {
        assert_eq!(credentials(u32::MAX), Err(Errno::SRCH));
    }
}
