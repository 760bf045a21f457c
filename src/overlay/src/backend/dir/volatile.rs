//! `volatile`: the mark in a workdir that says that the upper may be less than what was written to it.
//!
//! It is the kernel's, the directory `work/incompat/volatile` with a file `dirty`; kernel overlayfs refuses a workdir that has it. Nothing is lost as long as the machine runs, so plyfs
//! writes beside it, as `boot`, which boot of the machine it was: in the same one the upper is mounted again, after everything was written to the disk.
//! podman removes the mark before it mounts.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use plyfs_sys::at::{self, At};
use plyfs_sys::{Errno, OFlags, Result, create, io, process, tree};

use super::LayerOpenError;

const INCOMPAT: &[u8] = b"incompat";
const VOLATILE: &[u8] = b"volatile";
const DIRTY: &[u8] = b"dirty";
pub(crate) const BOOT: &[u8] = b"boot";

/// Which boot of the machine this is. Nothing where it cannot be read: a mark without it counts as one of another boot, as the kernel's own.
pub(crate) fn boot_id() -> Vec<u8> {
    let unknown = |errno| {
        tracing::warn!(%errno, "which boot of the machine this is cannot be read");
        String::new()
    };
    process::boot_id().unwrap_or_else(unknown).into_bytes()
}

/// Looks for the mark before anything is emptied.
///
/// Errors: the upper was mounted `volatile` in another boot; the host's.
pub(super) fn check(path: &Path, upper: BorrowedFd<'_>, staging: BorrowedFd<'_>) -> std::result::Result<(), LayerOpenError> {
    let failed = |errno| LayerOpenError::Work { path: path.into(), errno };
    match marked_boot(staging).map_err(failed)? {
        None => Ok(()),
        Some(boot) if !boot.is_empty() && boot == boot_id() => {
            tracing::info!("the last mount was volatile: what it left is written to the disk");
            tree::reopen_dir(upper).and_then(|upper| io::syncfs(upper.as_fd())).map_err(failed)
        }
        Some(_) => Err(LayerOpenError::Volatile { path: path.into() }),
    }
}

/// The boot that the mark names, or nothing for one of the kernel; `None` without a mark.
fn marked_boot(staging: BorrowedFd<'_>) -> Result<Option<Vec<u8>>> {
    let below = |dir: BorrowedFd<'_>, name: &[u8]| match at::open_path(At::Name(dir, name)) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(errno) => Err(errno),
    };
    let Some(incompat) = below(staging, INCOMPAT)? else { return Ok(None) };
    let Some(volatile) = below(incompat.as_fd(), VOLATILE)? else { return Ok(None) };
    let mut boot = [0; 64];
    match at::open(At::Name(volatile.as_fd(), BOOT), OFlags::RDONLY | OFlags::NONBLOCK) {
        Ok(file) => {
            let length = io::pread(file.as_fd(), &mut boot, 0)?;
            Ok(Some(boot.get(..length).unwrap_or_default().to_vec()))
        }
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(Some(Vec::new())),
        Err(errno) => Err(errno),
    }
}

/// Writes the mark, which is on the disk when this returns: before anything is that it is about.
pub(super) fn mark(staging: BorrowedFd<'_>) -> Result<()> {
    create::mkdir(staging, INCOMPAT, 0o700)?;
    let incompat = at::open_path(At::Name(staging, INCOMPAT))?;
    create::mkdir(incompat.as_fd(), VOLATILE, 0o700)?;
    let volatile = at::open_path(At::Name(incompat.as_fd(), VOLATILE))?;
    let boot = create::create(volatile.as_fd(), BOOT, 0o600)?;
    io::pwrite(boot.as_fd(), &boot_id(), 0)?;
    io::fsync(boot.as_fd())?;
    io::fsync(create::create(volatile.as_fd(), DIRTY, 0o600)?.as_fd())?;
    [volatile.as_fd(), incompat.as_fd(), staging].into_iter().try_for_each(tree::fsync_dir)
}
