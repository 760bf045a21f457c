//! Copies of data: shared where the filesystem can, inside the kernel where it can, by hand elsewhere. Holes stay holes.

use std::os::fd::BorrowedFd;

use rustix::io::retry_on_intr;

use super::{pread, pwrite, seek_data, seek_hole, truncate};
use crate::at::{At, stat};
use crate::{Errno, Result};

/// What one `copy_file_range(2)` is asked for: below the kernel's limit of 2 GiB, and a multiple of every block size.
const STEP: u64 = 1 << 30;

/// The buffer of a copy by hand.
const BUFFER: usize = 1 << 18;

/// Copies up to `len` bytes from `src` at `off_in` to `dst` at `off_out`; returns fewer only at the end of `src`, or when an error came
/// after some bytes.
///
/// `copy_file_range(2)`, and by hand where the kernel refuses the pair of files. `dst` must not be `O_APPEND`.
///
/// # Errors
///
/// The kernel's, if it comes before the first byte; `EINVAL` when both ranges overlap in one file.
pub fn copy_range(src: BorrowedFd<'_>, off_in: u64, dst: BorrowedFd<'_>, off_out: u64, len: usize) -> Result<usize> {
    let len = len as u64;
    // Beyond this the offsets overflow; the kernel says the same.
    if off_in.max(off_out).checked_add(len).is_none_or(|end| end > i64::MAX as u64) {
        return Err(Errno::OVERFLOW);
    }
    let mut done = 0;
    while done < len {
        match in_kernel(src, off_in + done, dst, off_out + done, len - done) {
            // Not always the end of the file: files of /proc and of some FUSE filesystems have size 0 and data.
            Ok(0) if done == 0 => return by_hand(src, off_in, dst, off_out, len).map(|count| count as usize),
            Ok(0) => break,
            Ok(count) => done += count as u64,
            Err(Errno::INVAL) if overlap(src, off_in, dst, off_out, len)? => return Err(Errno::INVAL),
            // Two filesystems, a file or filesystem without support, an old kernel.
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                return match by_hand(src, off_in + done, dst, off_out + done, len - done) {
                    Ok(count) => Ok((done + count) as usize),
                    Err(error) if done == 0 => Err(error),
                    Err(_) => Ok(done as usize),
                };
            }
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(done as usize)
}

fn in_kernel(src: BorrowedFd<'_>, off_in: u64, dst: BorrowedFd<'_>, off_out: u64, len: u64) -> Result<usize> {
    retry_on_intr(|| {
        let (mut off_in, mut off_out) = (off_in, off_out);
        rustix::fs::copy_file_range(src, Some(&mut off_in), dst, Some(&mut off_out), len.min(STEP) as usize)
    })
}

/// Whether both ranges lie in one file and share bytes: a copy by hand would read what it wrote.
fn overlap(src: BorrowedFd<'_>, off_in: u64, dst: BorrowedFd<'_>, off_out: u64, len: u64) -> Result<bool> {
    if off_in.abs_diff(off_out) >= len {
        return Ok(false);
    }
    let (src, dst) = (stat(At::Fd(src))?, stat(At::Fd(dst))?);
    Ok((src.dev, src.ino) == (dst.dev, dst.ino))
}

fn by_hand(src: BorrowedFd<'_>, off_in: u64, dst: BorrowedFd<'_>, off_out: u64, len: u64) -> Result<u64> {
    let mut buffer = vec![0; len.min(BUFFER as u64) as usize];
    let mut done = 0;
    while done < len {
        let want = (len - done).min(BUFFER as u64) as usize;
        let step = (|| {
            let read = pread(src, buffer.get_mut(..want).unwrap_or_default(), off_in + done)?;
            pwrite(dst, buffer.get(..read).unwrap_or_default(), off_out + done)
        })();
        match step {
            Ok(0) => break,
            Ok(count) => done += count as u64,
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(done)
}

/// Copies the first `len` bytes of `src` into `dst`, which must be empty, and returns the length of the result: less than `len` only
/// if `src` is shorter.
///
/// First by `FICLONE`, which shares the blocks (btrfs, xfs, bcachefs); else extent by extent, so that holes of `src` are holes of `dst`
/// and take no time. Nothing is synced. What others write to `src` meanwhile may or may not be copied.
///
/// # Errors
///
/// The kernel's; `EIO` if a write stopped short without a reason. `dst` then holds a part and must be thrown away.
pub fn copy_file(src: BorrowedFd<'_>, dst: BorrowedFd<'_>, len: u64) -> Result<u64> {
    if len == 0 {
        return Ok(0);
    }
    // It says in many ways that it cannot (EOPNOTSUPP, ENOTTY, EXDEV, EINVAL, ETXTBSY): whatever else is wrong, the copy says again.
    if rustix::fs::ioctl_ficlone(dst, src).is_ok() {
        // A clone takes the whole file.
        let size = stat(At::Fd(dst))?.size;
        if size > len {
            truncate(dst, len)?;
        }
        return Ok(size.min(len));
    }
    let mut end = 0;
    while let Some((start, stop)) = next_data(src, end, len)? {
        end = copy_extent(src, dst, start, stop)?;
        if end < stop {
            break;
        }
    }
    if end == len {
        return Ok(len);
    }
    // The last hole has no data to say how long it is.
    let len = len.min(stat(At::Fd(src))?.size.max(end));
    truncate(dst, len)?;
    Ok(len)
}

/// The first extent of data at or after `from` and below `len`.
fn next_data(src: BorrowedFd<'_>, from: u64, len: u64) -> Result<Option<(u64, u64)>> {
    if from >= len {
        return Ok(None);
    }
    let start = match seek_data(src, from) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        // No knowledge of holes: all is data, up to the end that the file has now.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => {
            let end = stat(At::Fd(src))?.size.min(len);
            return Ok((from < end).then_some((from, end)));
        }
        Err(error) => return Err(error),
    };
    if start >= len {
        return Ok(None);
    }
    match seek_hole(src, start) {
        Ok(stop) => Ok(Some((start, stop.min(len)))),
        // Truncated since: nothing is left.
        Err(Errno::NXIO) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Copies all bytes from `start` to `stop`; returns where it got to, before `stop` only if `src` has been truncated there.
fn copy_extent(src: BorrowedFd<'_>, dst: BorrowedFd<'_>, start: u64, stop: u64) -> Result<u64> {
    let mut at = start;
    while at < stop {
        let step = usize::try_from(stop - at).unwrap_or(usize::MAX);
        match copy_range(src, at, dst, at, step)? {
            0 if stat(At::Fd(src))?.size <= at => break,
            0 => return Err(Errno::IO),
            count => at += count as u64,
        }
    }
    Ok(at)
}
