//! How full a filesystem is, and which one it is.

use std::os::fd::BorrowedFd;

use crate::Result;

/// The answer of `fstatfs(2)`.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct StatFs {
    /// The preferred size of an I/O, in bytes.
    pub bsize: u64,
    /// The unit of the block counts, in bytes; never 0.
    pub frsize: u64,
    /// All blocks.
    pub blocks: u64,
    /// Free blocks.
    pub bfree: u64,
    /// Free blocks for the unprivileged.
    pub bavail: u64,
    /// All inodes; 0 where they are not counted.
    pub files: u64,
    /// Free inodes.
    pub ffree: u64,
    /// The longest name, in bytes.
    pub namelen: u64,
    /// The magic number of the filesystem's type.
    pub fs_type: i64,
    /// The mount's `ST_*` flags.
    pub flags: u64,
}

/// Asks the filesystem that holds `fd`, which may be `O_PATH`.
///
/// # Errors
///
/// The kernel's.
pub fn statfs(fd: BorrowedFd<'_>) -> Result<StatFs> {
    let raw = rustix::fs::fstatfs(fd)?;
    let bsize = raw.f_bsize.cast_unsigned();
    // Filesystems that know no fragments may leave f_frsize 0.
    let frsize = if raw.f_frsize > 0 { raw.f_frsize.cast_unsigned() } else { bsize };
    Ok(StatFs {
        bsize,
        frsize,
        blocks: raw.f_blocks,
        bfree: raw.f_bfree,
        bavail: raw.f_bavail,
        files: raw.f_files,
        ffree: raw.f_ffree,
        namelen: raw.f_namelen.cast_unsigned(),
        fs_type: raw.f_type,
        flags: raw.f_flags.cast_unsigned(),
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::testing::Dir;

    #[test]
    fn knows_the_filesystem_of_an_o_path_descriptor() {
        let dir = Dir::new();
        let answer = statfs(dir.as_fd()).unwrap();
        assert_eq!(answer.namelen, 255);
        assert!(answer.frsize > 0 && answer.blocks >= answer.bfree && answer.bfree >= answer.bavail);
        assert_ne!(answer.fs_type, 0);
    }
}
