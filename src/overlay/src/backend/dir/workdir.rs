//! What is seen of a work directory before anything in it is emptied: who else uses it, and whether a later version, or the kernel with a feature that is not known here, has
//! left something in it.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use plyfs_format::{Origin, OriginError};
use plyfs_sys::at::{self, At};
use plyfs_sys::stat::Kind;
use plyfs_sys::{Errno, dir, mount, root};

use super::{LayerOpenError, ObjectId};

/// Where kernel overlayfs says, by a name, which feature a mount must know (`OVL_WORKDIR_NAME` and `incompat` of its super.c).
pub(crate) const INCOMPAT: &[u8] = b"incompat";

/// The one such feature that is no matter of versions: what was written may not be on the disk.
pub(crate) const VOLATILE: &[u8] = b"volatile";

/// Refuses a work directory that something else wrote which knows more.
pub(super) fn check_version(path: &Path, workdir: BorrowedFd<'_>) -> Result<(), LayerOpenError> {
    let failed = |errno| LayerOpenError::Work { path: path.into(), errno };
    let other = |what: String| LayerOpenError::OtherVersion { path: path.into(), what };
    let below = |dir: BorrowedFd<'_>, name: &[u8]| match at::stat(At::Name(dir, name)) {
        Ok(stat) if stat.kind == Kind::Dir => at::open_path(At::Name(dir, name)).map(Some),
        Ok(_) | Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    };
    if let Some(staging) = below(workdir, b"work").map_err(failed)?
        && let Some(features) = below(staging.as_fd(), INCOMPAT).map_err(failed)?
    {
        for entry in dir::read_dir(features.as_fd()).map_err(failed)? {
            if entry.name != VOLATILE {
                return Err(other(format!("work/incompat/{}: a feature that this version does not know", entry.name.escape_ascii())));
            }
        }
    }
    if let Some(index) = below(workdir, b"index").map_err(failed)? {
        for entry in dir::read_dir(index.as_fd()).map_err(failed)? {
            if Origin::parse_index_name(&entry.name) == Err(OriginError::Unknown) {
                let shown = entry.name.escape_ascii();
                return Err(other(format!("index/{shown}: an entry of another version, or of a machine of the other byte order")));
            }
        }
    }
    Ok(())
}

/// Refuses directories that an overlay of the kernel has as upperdir or workdir. It holds no lock that others see: as far as the table of this process's mount namespace tells.
pub(super) fn refuse_kernel_mounts(dirs: &[(&'static str, &Path, BorrowedFd<'_>)]) -> Result<(), LayerOpenError> {
    let Ok(table) = mount::mounts() else { return Ok(()) };
    for mount in table.iter().filter(|mount| mount.fstype == b"overlay") {
        for theirs in used_by(&mount.super_options) {
            // A path of another directory or namespace leads nowhere, or to something else.
            let Ok(id) = root::open_dir(Path::new(OsStr::from_bytes(theirs))).and_then(|fd| at::stat(At::Fd(fd.as_fd()))) else { continue };
            for (what, path, fd) in dirs {
                let own = at::stat(At::Fd(*fd)).map_err(|errno| LayerOpenError::Open { what, path: (*path).into(), errno })?;
                if ObjectId::of(&own) == ObjectId::of(&id) {
                    let at = OsStr::from_bytes(&mount.mountpoint).into();
                    return Err(LayerOpenError::InKernelUse { what, path: (*path).into(), at });
                }
            }
        }
    }
    Ok(())
}

/// The upperdir and workdir among the options of an overlay, which the kernel shows one after the other. Commas in the paths are shown as such.
fn used_by(options: &[u8]) -> Vec<&[u8]> {
    let after = |text: &[u8], word: &[u8]| text.windows(word.len()).position(|window| window == word).map(|at| (at, at + word.len()));
    let Some((_, start)) = after(options, b"upperdir=") else { return Vec::new() };
    let rest = options.get(start..).unwrap_or_default();
    let Some((end, start)) = after(rest, b",workdir=") else { return Vec::new() };
    let work = rest.get(start..).unwrap_or_default();
    let ends = work.iter().enumerate().filter(|(_, byte)| **byte == b',').map(|(at, _)| at).chain([work.len()]);
    let upper = rest.get(..end).unwrap_or_default();
    [upper].into_iter().chain(ends.filter_map(|end| work.get(..end))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_an_overlay_are_found_with_commas_in_them() {
        let text = b"rw,lowerdir=/l,upperdir=/a,b,workdir=/w,x,index=on";
        assert_eq!(used_by(text), [&b"/a,b"[..], b"/w", b"/w,x", b"/w,x,index=on"]);
        assert!(used_by(b"ro,lowerdir=/l").is_empty());
    }
}
