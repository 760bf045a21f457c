//! How often the kernel asked for what. One relaxed addition a request; the numbers are for tests, tracing and the curious.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! ops {
    ($($(#[$doc:meta])* $op:ident = $name:literal,)*) => {
        /// A kind of request, by the protocol's name for it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Op {
            $($(#[$doc])* $op,)*
        }

        impl Op {
            /// Every kind.
            pub const ALL: &[Op] = &[$(Op::$op,)*];

            /// The protocol's name without its prefix, in lower case.
            pub fn name(self) -> &'static str {
                match self {
                    $(Op::$op => $name,)*
                }
            }
        }
    };
}

ops! {
    /// A name in a directory.
    Lookup = "lookup",
    /// The kernel drops what it knows of an inode.
    Forget = "forget",
    /// stat.
    GetAttr = "getattr",
    /// chmod, chown, truncate, utimensat.
    SetAttr = "setattr",
    /// readlink.
    ReadLink = "readlink",
    /// mknod.
    MkNod = "mknod",
    /// mkdir.
    MkDir = "mkdir",
    /// symlink.
    SymLink = "symlink",
    /// link.
    Link = "link",
    /// unlink.
    Unlink = "unlink",
    /// rmdir.
    RmDir = "rmdir",
    /// rename, with and without flags.
    Rename = "rename",
    /// open of something that exists.
    Open = "open",
    /// open that makes the file.
    Create = "create",
    /// read.
    Read = "read",
    /// write.
    Write = "write",
    /// close of one descriptor.
    Flush = "flush",
    /// The last close of an opening.
    Release = "release",
    /// fsync, fdatasync.
    FSync = "fsync",
    /// opendir.
    OpenDir = "opendir",
    /// Entries without attributes.
    ReadDir = "readdir",
    /// Entries with attributes.
    ReadDirPlus = "readdirplus",
    /// The last close of an open directory.
    ReleaseDir = "releasedir",
    /// fsync of a directory.
    FSyncDir = "fsyncdir",
    /// statfs.
    StatFs = "statfs",
    /// getxattr.
    GetXattr = "getxattr",
    /// listxattr.
    ListXattr = "listxattr",
    /// setxattr.
    SetXattr = "setxattr",
    /// removexattr.
    RemoveXattr = "removexattr",
    /// access.
    Access = "access",
    /// fallocate.
    FAllocate = "fallocate",
    /// lseek for data or a hole.
    LSeek = "lseek",
    /// copy_file_range.
    CopyFileRange = "copy_file_range",
    /// ioctl.
    IoCtl = "ioctl",
    /// poll.
    Poll = "poll",
    /// A lock asked for or about.
    Lock = "lock",
    /// bmap.
    BMap = "bmap",
}

/// Requests so far, by kind, and panics that were caught while serving them.
#[derive(Debug)]
pub struct Counters {
    requests: Box<[AtomicU64]>,
    panics: AtomicU64,
}

impl Default for Counters {
    fn default() -> Counters {
        Counters { requests: Op::ALL.iter().map(|_| AtomicU64::new(0)).collect(), panics: AtomicU64::new(0) }
    }
}

impl Counters {
    /// Requests of one kind.
    pub fn get(&self, op: Op) -> u64 {
        self.requests.get(op as usize).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// Requests of all kinds.
    pub fn total(&self) -> u64 {
        self.requests.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// The kinds that were asked for at all, with their numbers.
    pub fn seen(&self) -> impl Iterator<Item = (Op, u64)> + '_ {
        Op::ALL.iter().map(|&op| (op, self.get(op))).filter(|&(_, count)| count > 0)
    }

    /// Panics that were caught: each is a bug, and its caller got EIO.
    pub fn panics(&self) -> u64 {
        self.panics.load(Ordering::Relaxed)
    }

    pub(crate) fn count(&self, op: Op) {
        if let Some(count) = self.requests.get(op as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn count_panic(&self) {
        self.panics.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_counter_of_its_own() {
        let counters = Counters::default();
        for (times, &op) in Op::ALL.iter().enumerate() {
            assert_eq!(op as usize, times);
            for _ in 0..times {
                counters.count(op);
            }
        }
        for (times, &op) in Op::ALL.iter().enumerate() {
            assert_eq!(counters.get(op), times as u64, "{}", op.name());
        }
        assert_eq!(counters.seen().count(), Op::ALL.len() - 1);
        assert_eq!(counters.total(), (0..Op::ALL.len() as u64).sum::<u64>());
    }
}
