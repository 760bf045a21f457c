//! Memory that the kernel makes this process hold: an inode of the union stays in use as long as the kernel knows it, and the kernel, which forgets when it needs memory
//! itself, knows nothing of ours.
//!
//! Where there are more than the memory of this process is good for, the kernel is asked to forget some (`FUSE_NOTIFY_PRUNE`, Linux 6.18). It keeps those that somebody uses,
//! mounts on them included; older notifications would not (`FUSE_NOTIFY_INVAL_ENTRY` takes mounts away), so an older kernel is asked nothing.

use std::fs::File;
use std::io::{self, Write as _};
use std::sync::Weak;

use plyfs_overlay::backend::UpperTree;
use plyfs_overlay::{Ino, Union};
use plyfs_sys::{Errno, memory};

/// Inodes in use, each of some 400 bytes, before the kernel is asked to forget some, where memory has no limit.
const MOST: u64 = 1 << 19;
const LEAST: u64 = 1024;
/// So many bytes of a limit for each inode: a quarter of it is for inodes.
const SHARE: u64 = 2048;
/// Inodes of one notification.
const BATCH: usize = 1024;
const PRUNE: i32 = 9;

/// How many inodes may be in use with this much memory.
fn budget(limit: Option<u64>) -> u64 {
    limit.map_or(MOST, |bytes| (bytes / SHARE).clamp(LEAST, MOST))
}

/// A `fuse_out_header` of a notification and a `fuse_notify_prune_out` with its node ids.
fn message(inodes: &[Ino]) -> io::Result<Vec<u8>> {
    const HEADERS: usize = 16 + 16;
    let too_long = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let length = u32::try_from(HEADERS + size_of_val(inodes)).map_err(too_long)?;
    let count = u32::try_from(inodes.len()).map_err(too_long)?;
    let mut message = Vec::with_capacity(length as usize);
    message.extend(length.to_ne_bytes());
    message.extend(PRUNE.to_ne_bytes());
    message.extend(0_u64.to_ne_bytes());
    message.extend(count.to_ne_bytes());
    message.extend([0; 4 + 8]);
    message.extend(inodes.iter().flat_map(|ino| ino.0.to_ne_bytes()));
    Ok(message)
}

/// Who asks the kernel of one mount to forget.
pub(crate) struct Thrift<T: UpperTree> {
    // Weak: the union's observer keeps the thread alive that has this.
    union: Weak<Union<T>>,
    device: File,
    /// The kernel knows the request.
    able: bool,
}

impl<T: UpperTree> Thrift<T> {
    pub(crate) fn new(union: Weak<Union<T>>, device: File) -> Self {
        Self { union, device, able: true }
    }

    /// Has inodes forgotten if there are too many.
    pub(crate) fn look(&mut self) {
        let Some(union) = self.union.upgrade().filter(|_| self.able) else { return };
        let most = budget(memory::limit());
        let used = union.inodes() as u64;
        if used <= most {
            return;
        }
        let idle = union.idle(usize::try_from(used - most / 4 * 3).unwrap_or(usize::MAX));
        tracing::debug!(used, most, asked = idle.len(), "the kernel is asked to forget inodes");
        for batch in idle.chunks(BATCH) {
            match message(batch).and_then(|message| (&self.device).write_all(&message)) {
                Ok(()) => {}
                Err(error) => {
                    self.able = error.raw_os_error() != Some(Errno::INVAL.raw_os_error());
                    tracing::debug!(%error, "the kernel was not asked to forget");
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarter_of_a_limit_is_for_inodes() {
        assert_eq!(budget(None), MOST);
        assert_eq!(budget(Some(u64::MAX)), MOST);
        assert_eq!(budget(Some(24 << 20)), 12_288);
        assert_eq!(budget(Some(4096)), LEAST);
    }

    #[test]
    fn a_message_is_as_long_as_it_says() {
        let message = message(&[Ino(2), Ino(3)]).unwrap();
        assert_eq!(message.len(), 48);
        assert_eq!(message.get(..8).unwrap(), [48_u32.to_ne_bytes(), 9_u32.to_ne_bytes()].concat());
        assert_eq!(message.get(16..20).unwrap(), 2_u32.to_ne_bytes());
        assert_eq!(message.get(40..).unwrap(), 3_u64.to_ne_bytes());
    }
}
