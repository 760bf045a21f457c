//! From the kernel's words to the union's and back: attributes, times, device numbers, flags, errnos.
//!
//! Pure functions, and the only place that knows how fuser spells each thing. What fuser gets wrong is set right here:
//!
//! - A time before 1970 reaches the daemon as seconds and nanoseconds both counted *backward* from 1970 (fuser's `system_time_from_time`);
//!   the kernel and the union count nanoseconds forward always. [`set_time`] undoes it. On the way out fuser converts rightly.
//! - One field of fuser's `FileAttr` is both the node id of an entry and the `st_ino` of its attributes. They differ for the root alone,
//!   which is never an entry, so [`entry`] gives the one and [`attributes`] the other.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, SystemTime};

use fuser::{FileAttr, FileHandle, FileType, INodeNo, RenameFlags, TimeOrNow};
use plyfs_overlay::{Attr, Caller, HandleId, Ino, Name, NewNode, RenameMode};
use plyfs_sys::OFlags;
use plyfs_sys::at::{SetTime, XattrMode};
use plyfs_sys::flags::{Fsx, GET_FLAGS, GET_FSX, SET_FLAGS, SET_FSX};
use plyfs_sys::stat::{Kind, Stat, Time, major, makedev, minor};

/// The errno of a reply.
pub(crate) fn errno(errno: plyfs_sys::Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno.raw_os_error())
}

/// An inode by its node id.
pub(crate) fn ino(node: INodeNo) -> Ino {
    Ino(node.0)
}

/// A handle as the kernel says it.
pub(crate) fn handle(handle: FileHandle) -> HandleId {
    HandleId(handle.0)
}

/// A name, checked.
pub(crate) fn decode(name: &OsStr) -> plyfs_overlay::Result<Name> {
    Name::new(name.as_bytes())
}

/// Who sent a request. With `default_permissions` and no idmapped mounts these are the fsuid and fsgid in the mount's user namespace.
pub(crate) fn caller(request: &fuser::Request) -> Caller {
    Caller { uid: request.uid(), gid: request.gid(), pid: request.pid() }
}

pub(crate) fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Dir => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
        Kind::Char => FileType::CharDevice,
        Kind::Block => FileType::BlockDevice,
    }
}

/// What an entry (LOOKUP, CREATE, READDIRPLUS and their like) is told: the number is the node id.
pub(crate) fn entry(attr: &Attr) -> FileAttr {
    file_attr(attr.node.0, &attr.stat)
}

/// What stat(2) is told: the number is `st_ino`.
pub(crate) fn attributes(attr: &Attr) -> FileAttr {
    file_attr(attr.ino.0, &attr.stat)
}

/// An entry without attributes: node id 0 means a name that is not there (LOOKUP).
pub(crate) fn bare(node: u64, kind: Kind) -> FileAttr {
    FileAttr {
        ino: INodeNo(node),
        size: 0,
        blocks: 0,
        atime: SystemTime::UNIX_EPOCH,
        mtime: SystemTime::UNIX_EPOCH,
        ctime: SystemTime::UNIX_EPOCH,
        crtime: SystemTime::UNIX_EPOCH,
        kind: file_type(kind),
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

fn file_attr(number: u64, stat: &Stat) -> FileAttr {
    FileAttr {
        ino: INodeNo(number),
        size: stat.size,
        blocks: stat.blocks,
        atime: system_time(stat.atime),
        mtime: system_time(stat.mtime),
        ctime: system_time(stat.ctime),
        crtime: SystemTime::UNIX_EPOCH, // not in the Linux protocol
        kind: file_type(stat.kind),
        // Twelve bits by Stat's own invariant.
        perm: (stat.mode & 0o7777) as u16,
        nlink: stat.nlink,
        uid: stat.uid,
        gid: stat.gid,
        rdev: encode_dev(stat.rdev),
        blksize: stat.blksize,
        flags: 0, // not in the Linux protocol
    }
}

/// `SystemTime` holds 64 bits of seconds, as the kernel does: every time has one, and the saturation is never met.
pub(crate) fn system_time(time: Time) -> SystemTime {
    let seconds = Duration::from_secs(time.sec.unsigned_abs());
    let whole = if time.sec < 0 { SystemTime::UNIX_EPOCH.checked_sub(seconds) } else { SystemTime::UNIX_EPOCH.checked_add(seconds) };
    whole.and_then(|whole| whole.checked_add(Duration::from_nanos(time.nsec.into()))).unwrap_or(SystemTime::UNIX_EPOCH)
}

pub(crate) fn set_time(time: Option<TimeOrNow>) -> SetTime {
    match time {
        None => SetTime::Omit,
        Some(TimeOrNow::Now) => SetTime::Now,
        Some(TimeOrNow::SpecificTime(time)) => SetTime::To(match time.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(after) => Time { sec: i64::try_from(after.as_secs()).unwrap_or(i64::MAX), nsec: after.subsec_nanos() },
            // The kernel sent -s seconds and n nanoseconds, fuser made 1970 - (s + n) of it.
            Err(before) => {
                let before = before.duration();
                Time { sec: 0_i64.checked_sub_unsigned(before.as_secs()).unwrap_or(i64::MIN), nsec: before.subsec_nanos() }
            }
        }),
    }
}

/// A device number as the FUSE protocol has it, the kernel's `new_encode_dev`: 12 bits of major, 20 of minor.
pub(crate) fn encode_dev(rdev: u64) -> u32 {
    let (major, minor) = (major(rdev), minor(rdev));
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & 0xf_ff00) << 12
}

/// The inverse of [`encode_dev`].
pub(crate) fn decode_dev(rdev: u32) -> u64 {
    makedev((rdev >> 8) & 0xfff, (rdev & 0xff) | (rdev >> 12 & 0xf_ff00))
}

/// `__FMODE_EXEC` (include/linux/fs.h): the kernel opens a program or an interpreter with it, and passes it on.
const FMODE_EXEC: u32 = 0x20;

/// The flags of open(2). `O_DIRECT`, `O_SYNC`, `O_NOATIME` and the rest are the kernel's business, not the layers'. `O_APPEND` is, too: the
/// kernel gives each write the offset that it takes, with the inode locked; it matters to files that may only be appended to.
pub(crate) fn open_flags(flags: i32) -> plyfs_overlay::OpenFlags {
    let flags = OFlags::from_bits_retain(flags.cast_unsigned());
    let access = flags & OFlags::RWMODE;
    plyfs_overlay::OpenFlags {
        read: access == OFlags::RDONLY || access == OFlags::RDWR,
        write: access == OFlags::WRONLY || access == OFlags::RDWR,
        truncate: flags.contains(OFlags::TRUNC),
        append: flags.contains(OFlags::APPEND),
        exec: flags.bits() & FMODE_EXEC != 0,
    }
}

/// Whether a create must not find the name (`O_EXCL`).
pub(crate) fn exclusive(flags: i32) -> bool {
    OFlags::from_bits_retain(flags.cast_unsigned()).contains(OFlags::EXCL)
}

/// What is asked of inode flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FlagRequest {
    Get,
    Set(u32),
    GetExtended,
    SetExtended(Fsx),
}

impl FlagRequest {
    /// Whether it changes anything.
    pub(crate) fn changes(self) -> bool {
        matches!(self, Self::Set(_) | Self::SetExtended(_))
    }
}

/// An ioctl about inode flags; `None` for any other, and for one of another length.
pub(crate) fn flag_request(cmd: u32, data: &[u8]) -> Option<FlagRequest> {
    match cmd {
        GET_FLAGS => Some(FlagRequest::Get),
        SET_FLAGS => data.try_into().ok().map(|word| FlagRequest::Set(u32::from_ne_bytes(word))),
        GET_FSX => Some(FlagRequest::GetExtended),
        SET_FSX => Fsx::from_bytes(data).map(FlagRequest::SetExtended),
        _ => None,
    }
}

/// The flags of renameat2(2); `None` for those that there is nothing for, and for contradictions.
pub(crate) fn rename_mode(caller: Caller, flags: RenameFlags) -> Option<RenameMode> {
    let leaving = RenameFlags::RENAME_WHITEOUT | RenameFlags::RENAME_NOREPLACE;
    if flags.is_empty() {
        Some(RenameMode::Replace)
    } else if flags == RenameFlags::RENAME_NOREPLACE {
        Some(RenameMode::NoReplace)
    } else if flags == RenameFlags::RENAME_EXCHANGE {
        Some(RenameMode::Exchange)
    } else if flags == RenameFlags::RENAME_WHITEOUT || flags == leaving {
        Some(RenameMode::Whiteout { caller, replace: flags != leaving })
    } else {
        None
    }
}

/// The flags of setxattr(2); `None` for anything but none, `XATTR_CREATE` and `XATTR_REPLACE`.
pub(crate) fn xattr_mode(flags: i32) -> Option<XattrMode> {
    const CREATE: i32 = 1;
    const REPLACE: i32 = 2;
    match flags {
        0 => Some(XattrMode::Any),
        CREATE => Some(XattrMode::Create),
        REPLACE => Some(XattrMode::Replace),
        _ => None,
    }
}

/// What mknod(2) makes; `None` for a directory, a symbolic link and what is no type at all. No type means a regular file.
pub(crate) fn new_node(mode: u32, rdev: u32) -> Option<NewNode> {
    match Kind::from_mode(mode) {
        Some(Kind::File) => Some(NewNode::File),
        Some(Kind::Fifo) => Some(NewNode::Fifo),
        Some(Kind::Socket) => Some(NewNode::Socket),
        Some(Kind::Char) => Some(NewNode::Char(decode_dev(rdev))),
        Some(Kind::Block) => Some(NewNode::Block(decode_dev(rdev))),
        Some(Kind::Dir | Kind::Symlink) => None,
        None => (mode & !0o7777 == 0).then_some(NewNode::File),
    }
}

/// The answer to listxattr(2): each name and a NUL.
pub(crate) fn name_list(names: &[Vec<u8>]) -> Vec<u8> {
    let mut list = Vec::with_capacity(names.iter().map(|name| name.len() + 1).sum());
    for name in names {
        list.extend_from_slice(name);
        list.push(0);
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What fuser 0.18 makes of the kernel's seconds and nanoseconds in SETATTR (`system_time_from_time`, not exported).
    fn as_fuser_decodes(sec: i64, nsec: u32) -> SystemTime {
        if sec >= 0 {
            SystemTime::UNIX_EPOCH + Duration::new(sec.unsigned_abs(), nsec)
        } else {
            SystemTime::UNIX_EPOCH - Duration::new(sec.unsigned_abs(), nsec)
        }
    }

    #[test]
    fn times_on_both_sides_of_1970_arrive_to_the_nanosecond() {
        for (sec, nsec) in
            [(0, 0), (0, 1), (1, 999_999_999), (-1, 0), (-1, 1), (-1, 999_999_999), (-2, 800_000_000), (i64::MAX, 0), (-(1 << 40), 7)]
        {
            let time = Time { sec, nsec };
            assert_eq!(set_time(Some(TimeOrNow::SpecificTime(as_fuser_decodes(sec, nsec)))), SetTime::To(time), "{time:?}");
        }
        assert_eq!(set_time(None), SetTime::Omit);
        assert_eq!(set_time(Some(TimeOrNow::Now)), SetTime::Now);
    }

    #[test]
    fn times_leave_as_points_in_time() {
        let epoch = SystemTime::UNIX_EPOCH;
        for (time, expected) in [
            (Time { sec: 0, nsec: 5 }, epoch + Duration::from_nanos(5)),
            (Time { sec: -2, nsec: 800_000_000 }, epoch - Duration::from_millis(1200)),
            (Time { sec: -1, nsec: 999_999_999 }, epoch - Duration::from_nanos(1)),
            (Time { sec: 1 << 33, nsec: 0 }, epoch + Duration::from_secs(1 << 33)),
        ] {
            assert_eq!(system_time(time), expected, "{time:?}");
        }
        for sec in [i64::MIN, i64::MAX] {
            assert_ne!(system_time(Time { sec, nsec: 0 }), epoch);
        }
    }

    #[test]
    fn device_numbers_survive_the_protocol() {
        for (major, minor, encoded) in
            [(0, 0, 0), (1, 3, 0x103), (0xfff, 0xf_ffff, 0xffff_ffff), (8, 256, 0x10_0800), (259, 0x12345, 0x1231_0345)]
        {
            assert_eq!(encode_dev(makedev(major, minor)), encoded, "{major}:{minor}");
            assert_eq!(decode_dev(encoded), makedev(major, minor), "{major}:{minor}");
        }
    }

    #[test]
    fn open_flags_are_three_and_the_rest_is_ignored() {
        let of = |flags: OFlags| {
            let flags = open_flags(flags.bits().cast_signed());
            (flags.read, flags.write, flags.truncate)
        };
        assert_eq!(of(OFlags::RDONLY | OFlags::DIRECT | OFlags::NOATIME), (true, false, false));
        assert_eq!(of(OFlags::WRONLY | OFlags::APPEND | OFlags::SYNC), (false, true, false));
        assert_eq!(of(OFlags::RDWR | OFlags::TRUNC), (true, true, true));
        // 3: for ioctl alone.
        assert_eq!(of(OFlags::WRONLY | OFlags::RDWR), (false, false, false));
        assert!(exclusive((OFlags::EXCL | OFlags::RDWR).bits().cast_signed()));
        assert!(!exclusive(OFlags::RDWR.bits().cast_signed()));
    }

    #[test]
    fn flags_without_a_meaning_here_are_refused() {
        let (caller, no_replace) = (Caller { uid: 1, gid: 2, pid: 3 }, RenameFlags::RENAME_NOREPLACE);
        let rename_mode = |flags| rename_mode(caller, flags);
        assert_eq!(rename_mode(RenameFlags::empty()), Some(RenameMode::Replace));
        assert_eq!(rename_mode(no_replace), Some(RenameMode::NoReplace));
        assert_eq!(rename_mode(RenameFlags::RENAME_EXCHANGE), Some(RenameMode::Exchange));
        assert_eq!(rename_mode(RenameFlags::RENAME_WHITEOUT), Some(RenameMode::Whiteout { caller, replace: true }));
        assert_eq!(rename_mode(RenameFlags::RENAME_WHITEOUT | no_replace), Some(RenameMode::Whiteout { caller, replace: false }));
        assert_eq!(rename_mode(RenameFlags::RENAME_WHITEOUT | RenameFlags::RENAME_EXCHANGE), None);
        assert_eq!(rename_mode(no_replace | RenameFlags::RENAME_EXCHANGE), None);
        assert_eq!(rename_mode(RenameFlags::from_bits_retain(1 << 9)), None);
        assert_eq!([0, 1, 2, 3, 4].map(xattr_mode), [Some(XattrMode::Any), Some(XattrMode::Create), Some(XattrMode::Replace), None, None]);
    }

    #[test]
    fn ioctls_of_flags_are_known_and_no_others() {
        let fsx = Fsx { xflags: 8, ..Fsx::default() };
        assert_eq!(flag_request(GET_FLAGS, b""), Some(FlagRequest::Get));
        assert_eq!(flag_request(SET_FLAGS, &0x10_u32.to_ne_bytes()), Some(FlagRequest::Set(0x10)));
        assert_eq!(flag_request(GET_FSX, b""), Some(FlagRequest::GetExtended));
        assert_eq!(flag_request(SET_FSX, &fsx.to_bytes()), Some(FlagRequest::SetExtended(fsx)));
        for (cmd, data) in [(SET_FLAGS, &b"short"[..]), (SET_FSX, b""), (0x5401, b""), (0, b"")] {
            assert_eq!(flag_request(cmd, data), None);
        }
    }

    #[test]
    fn mknod_makes_what_the_type_says_and_a_file_without_one() {
        assert_eq!(new_node(0o644, 0), Some(NewNode::File));
        assert_eq!(new_node(0o100_644, 0), Some(NewNode::File));
        assert_eq!(new_node(0o010_644, 0), Some(NewNode::Fifo));
        assert_eq!(new_node(0o140_644, 0), Some(NewNode::Socket));
        assert_eq!(new_node(0o020_644, 0x103), Some(NewNode::Char(makedev(1, 3))));
        assert_eq!(new_node(0o060_644, 0x10_0800), Some(NewNode::Block(makedev(8, 256))));
        for mode in [0o040_755, 0o120_777, 0o030_644, 0o170_000] {
            assert_eq!(new_node(mode, 0), None, "{mode:o}");
        }
    }

    #[test]
    fn a_list_of_names_ends_each_with_nul() {
        assert_eq!(name_list(&[]), b"");
        assert_eq!(name_list(&[b"user.a".to_vec(), b"user.b".to_vec()]), b"user.a\0user.b\0");
    }
}
