//! The entries of a directory.

use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;

use rustix::fs::{FileType, Mode, OFlags, RawDir};

use crate::stat::Kind;
use crate::{Errno, Result};

/// One name of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// The name.
    pub name: Vec<u8>,
    /// The inode number that the directory records. Below a mount point it is that of the covered directory, not of the mounted one.
    pub ino: u64,
    /// The type, where the filesystem records it in the directory.
    pub kind: Option<Kind>,
}

/// The size of one `getdents64(2)`.
const BUFFER: usize = 65_536;

/// Reads a whole directory, without `.` and `..`, in the filesystem's order.
///
/// `dir` may be `O_PATH`: the directory is opened anew, so that the offset of `dir` neither matters nor changes.
/// POSIX leaves open whether an entry made or removed meanwhile is seen; all others are seen exactly once.
///
/// # Errors
///
/// The kernel's; `ENOTDIR`, and `ENOENT` when the directory has been removed. `EIO` for one that has no end.
pub fn read_dir(dir: BorrowedFd<'_>) -> Result<Vec<DirEntry>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(dir, c".", flags, Mode::empty())?;
    let mut buffer: Vec<MaybeUninit<u8>> = Vec::new();
    buffer.resize(BUFFER, MaybeUninit::uninit());
    let mut entries: Vec<DirEntry> = Vec::new();
    let mut raw = RawDir::new(&dir, &mut buffer);
    let mut circle = Circle::default();
    while let Some(entry) = raw.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            if circle.closes(&entries, name) {
                return Err(Errno::IO);
            }
            entries.push(DirEntry { name: name.to_vec(), ino: entry.ino(), kind: kind(entry.file_type()) });
        }
    }
    Ok(entries)
}

/// Finds out that a directory gives the same names over and over, as a broken or hostile server may (Brent's algorithm: the name to wait for moves to the last of 1, 2, 4, 8 ...
/// entries).
#[derive(Default)]
struct Circle {
    awaited: usize,
    met: u32,
}

impl Circle {
    /// So often one name may come: names that change while a directory is read can come again.
    const MOST: u32 = 16;

    fn closes(&mut self, entries: &[DirEntry], name: &[u8]) -> bool {
        if entries.len().is_power_of_two() {
            (self.awaited, self.met) = (entries.len() - 1, 0);
        } else if entries.get(self.awaited).is_some_and(|awaited| awaited.name == name) {
            self.met += 1;
        }
        self.met > Self::MOST
    }
}

fn kind(file_type: FileType) -> Option<Kind> {
    match file_type {
        FileType::RegularFile => Some(Kind::File),
        FileType::Directory => Some(Kind::Dir),
        FileType::Symlink => Some(Kind::Symlink),
        FileType::Fifo => Some(Kind::Fifo),
        FileType::Socket => Some(Kind::Socket),
        FileType::CharacterDevice => Some(Kind::Char),
        FileType::BlockDevice => Some(Kind::Block),
        FileType::Unknown => None,
    }
}

#[cfg(test)]
mod tests;
