//! The data of a file.
//!
//! All transfers are positioned, so a descriptor can be shared by threads; the seek functions do move the offset, which nothing here
//! reads. Descriptors must be open for data (not `O_PATH`). `EINTR` is retried.

use std::os::fd::BorrowedFd;

use rustix::fs::{FallocateFlags, FlockOperation, SeekFrom};
use rustix::io::{IoSlice, ReadWriteFlags, retry_on_intr};

use crate::Result;

mod copy;

pub use copy::{copy_file, copy_range};

/// Reads until `buffer` is full or the file ends; returns the number of bytes.
///
/// # Errors
///
/// The kernel's, if it comes before the first byte; else the bytes so far are returned and the next call meets the error.
pub fn pread(fd: BorrowedFd<'_>, buffer: &mut [u8], offset: u64) -> Result<usize> {
    let mut done = 0;
    while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match retry_on_intr(|| rustix::io::pread(fd, &mut *rest, offset.saturating_add(done as u64))) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(done)
}

/// Writes all of `buffer` at `offset`; returns fewer bytes only if the kernel stopped (no space left, a limit) after some.
///
/// A descriptor with `O_APPEND` appends instead, whatever the offset (`pwrite(2)`, BUGS): do not open layers so, use [`append`].
///
/// # Errors
///
/// The kernel's, if it comes before the first byte.
pub fn pwrite(fd: BorrowedFd<'_>, buffer: &[u8], offset: u64) -> Result<usize> {
    all(buffer, |rest, done| rustix::io::pwrite(fd, rest, offset.saturating_add(done)))
}

/// Writes all of `buffer` at the end of the file, found and extended under the kernel's inode lock (`RWF_APPEND`); the descriptor need not
/// be `O_APPEND`. Returns fewer bytes as [`pwrite`] does.
///
/// # Errors
///
/// As [`pwrite`].
pub fn append(fd: BorrowedFd<'_>, buffer: &[u8]) -> Result<usize> {
    all(buffer, |rest, _| rustix::io::pwritev2(fd, &[IoSlice::new(rest)], 0, ReadWriteFlags::APPEND))
}

/// Calls `write` with what is left of `buffer` and the count so far, until nothing is left.
fn all(buffer: &[u8], write: impl Fn(&[u8], u64) -> Result<usize>) -> Result<usize> {
    let mut done = 0;
    while let Some(rest) = buffer.get(done..).filter(|rest| !rest.is_empty()) {
        match retry_on_intr(|| write(rest, done as u64)) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(done)
}

/// Sets the size of the file; what is added reads as zeros.
///
/// # Errors
///
/// The kernel's.
pub fn truncate(fd: BorrowedFd<'_>, len: u64) -> Result<()> {
    retry_on_intr(|| rustix::fs::ftruncate(fd, len))
}

/// Allocates, punches, zeroes or moves a range: `fallocate(2)` with its `FALLOC_FL_*` in `mode`.
///
/// # Errors
///
/// The kernel's; `EOPNOTSUPP` for a mode that the filesystem lacks.
pub fn fallocate(fd: BorrowedFd<'_>, mode: i32, offset: u64, len: u64) -> Result<()> {
    retry_on_intr(|| rustix::fs::fallocate(fd, FallocateFlags::from_bits_retain(mode.cast_unsigned()), offset, len))
}

/// Finds the first byte of data at or after `offset` (`SEEK_DATA`).
///
/// # Errors
///
/// `ENXIO` when there is none, `EINVAL` on a filesystem that does not know.
pub fn seek_data(fd: BorrowedFd<'_>, offset: u64) -> Result<u64> {
    rustix::fs::seek(fd, SeekFrom::Data(offset))
}

/// Finds the first hole at or after `offset` (`SEEK_HOLE`); the end of the file counts as one.
///
/// # Errors
///
/// `ENXIO` when `offset` is at or past the end.
pub fn seek_hole(fd: BorrowedFd<'_>, offset: u64) -> Result<u64> {
    rustix::fs::seek(fd, SeekFrom::Hole(offset))
}

/// Puts data and attributes of the file on the disk, or the entries of a directory.
///
/// # Errors
///
/// The kernel's. After `EIO` the lost pages are clean: a second call that succeeds proves nothing.
pub fn fsync(fd: BorrowedFd<'_>) -> Result<()> {
    retry_on_intr(|| rustix::fs::fsync(fd))
}

/// Puts the data of the file on the disk, and of the attributes only what reading it back takes.
///
/// # Errors
///
/// As [`fsync`].
pub fn fdatasync(fd: BorrowedFd<'_>) -> Result<()> {
    retry_on_intr(|| rustix::fs::fdatasync(fd))
}

/// Puts everything of the filesystem that holds `fd` on the disk.
///
/// # Errors
///
/// As [`fsync`]; write errors are reported since Linux 5.8.
pub fn syncfs(fd: BorrowedFd<'_>) -> Result<()> {
    retry_on_intr(|| rustix::fs::syncfs(fd))
}

/// Takes the exclusive `flock(2)` of the open file without waiting. It is held until the last descriptor of this opening is closed, so
/// also by a child that inherited it.
///
/// # Errors
///
/// `EWOULDBLOCK` when another opening holds a lock.
pub fn flock_exclusive_nonblock(fd: BorrowedFd<'_>) -> Result<()> {
    retry_on_intr(|| rustix::fs::flock(fd, FlockOperation::NonBlockingLockExclusive))
}

#[cfg(test)]
mod tests;
