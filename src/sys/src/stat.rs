//! What the kernel says about an object: its kind, owner, size and times.
//!
//! Plain data; nothing here calls the kernel. The field names are POSIX's without `st_`.

/// The type of a file, `S_IFMT` of its mode.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A unix socket.
    Socket,
    /// A character device.
    Char,
    /// A block device.
    Block,
}

impl Kind {
    /// Every kind, for tables and tests.
    pub const ALL: [Kind; 7] = [Kind::File, Kind::Dir, Kind::Symlink, Kind::Fifo, Kind::Socket, Kind::Char, Kind::Block];

    /// Takes the kind out of a mode; the permission bits do not matter. `None` if the type bits are none of POSIX's.
    pub fn from_mode(mode: u32) -> Option<Kind> {
        match mode & libc::S_IFMT {
            libc::S_IFREG => Some(Kind::File),
            libc::S_IFDIR => Some(Kind::Dir),
            libc::S_IFLNK => Some(Kind::Symlink),
            libc::S_IFIFO => Some(Kind::Fifo),
            libc::S_IFSOCK => Some(Kind::Socket),
            libc::S_IFCHR => Some(Kind::Char),
            libc::S_IFBLK => Some(Kind::Block),
            _ => None,
        }
    }

    /// Gives the `S_IFMT` bits of a mode.
    pub fn to_mode(self) -> u32 {
        match self {
            Kind::File => libc::S_IFREG,
            Kind::Dir => libc::S_IFDIR,
            Kind::Symlink => libc::S_IFLNK,
            Kind::Fifo => libc::S_IFIFO,
            Kind::Socket => libc::S_IFSOCK,
            Kind::Char => libc::S_IFCHR,
            Kind::Block => libc::S_IFBLK,
        }
    }

    /// Reads the `d_type` of a directory entry. `None` for `DT_UNKNOWN`, which a filesystem may always give, and `DT_WHT`.
    pub fn from_d_type(d_type: u8) -> Option<Kind> {
        match d_type {
            libc::DT_REG => Some(Kind::File),
            libc::DT_DIR => Some(Kind::Dir),
            libc::DT_LNK => Some(Kind::Symlink),
            libc::DT_FIFO => Some(Kind::Fifo),
            libc::DT_SOCK => Some(Kind::Socket),
            libc::DT_CHR => Some(Kind::Char),
            libc::DT_BLK => Some(Kind::Block),
            _ => None,
        }
    }
}

/// A point in time: seconds since 1970 (negative before) and nanoseconds, `0..1_000_000_000`, always counted forward.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time {
    /// Seconds since 1970-01-01T00:00:00Z.
    pub sec: i64,
    /// Nanoseconds after `sec`.
    pub nsec: u32,
}

/// The attributes of one object, from one `statx(2)`.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// The device that holds the object, encoded as `makedev(3)` does.
    pub dev: u64,
    /// The inode number on `dev`.
    pub ino: u64,
    /// The type.
    pub kind: Kind,
    /// Permission, set-id and sticky bits: `0o7777` at most. The type is in `kind`.
    pub mode: u32,
    /// The number of names.
    pub nlink: u32,
    /// The owner.
    pub uid: u32,
    /// The owning group.
    pub gid: u32,
    /// The device that the object *is*, encoded as `makedev(3)` does; 0 unless `kind` is `Char` or `Block`.
    pub rdev: u64,
    /// The size in bytes; of a symbolic link the length of its target.
    pub size: u64,
    /// The space taken, in units of 512 bytes.
    pub blocks: u64,
    /// The preferred size of an I/O, in bytes.
    pub blksize: u32,
    /// The time of the last access.
    pub atime: Time,
    /// The time of the last change of the data.
    pub mtime: Time,
    /// The time of the last change of the attributes.
    pub ctime: Time,
    /// The time of creation, where the filesystem keeps it.
    pub btime: Option<Time>,
    /// Nothing of it may be changed ([`crate::flags::IMMUTABLE`]).
    pub immutable: bool,
    /// Only added to ([`crate::flags::APPEND`]).
    pub append_only: bool,
}

/// Encodes a device number as `makedev(3)` does, for [`Stat::rdev`] and [`crate::create::mknod`].
pub fn makedev(major: u32, minor: u32) -> u64 {
    rustix::fs::makedev(major, minor)
}

/// The major half of a device number.
pub fn major(dev: u64) -> u32 {
    rustix::fs::major(dev)
}

/// The minor half of a device number.
pub fn minor(dev: u64) -> u32 {
    rustix::fs::minor(dev)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_and_modes_are_inverse() {
        for kind in Kind::ALL {
            assert_eq!(Kind::from_mode(kind.to_mode() | 0o7777), Some(kind));
            // d_type is by definition the type bits of the mode, shifted.
            assert_eq!(Kind::from_d_type((kind.to_mode() >> 12) as u8), Some(kind));
        }
        assert_eq!(Kind::from_mode(0o644), None);
        assert_eq!(Kind::from_d_type(0), None);
        assert_eq!(Kind::from_d_type(libc::DT_UNKNOWN), None);
    }

    #[test]
    fn device_numbers_use_all_twelve_and_twenty_bits() {
        let dev = makedev(0xabc, 0x89abc);
        assert_eq!((major(dev), minor(dev)), (0xabc, 0x89abc));
        assert_eq!(makedev(0, 0), 0);
    }
}
