//! Kernel overlayfs as what a union is compared with. Taken into a test crate by its path.
#![allow(dead_code, clippy::unwrap_used)]

use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

/// How long another process may hold on to a mount of the same upper.
const PATIENCE: Duration = Duration::from_secs(20);

/// Mounts kernel overlayfs, with mount(8)'s options. EBUSY is waited for: whoever makes a mount namespace meanwhile has a copy of every mount, until its view of the machine is made or it has
/// ended, and as long as that is there the upper of an unmounted overlay is in use.
pub(crate) fn overlay(options: impl AsRef<OsStr>, at: &Path) -> Result<(), Errno> {
    let data = CString::new(options.as_ref().as_bytes()).unwrap();
    let end = Instant::now() + PATIENCE;
    loop {
        match mount("overlay", at, "overlay", MountFlags::empty(), Some(&*data)) {
            Err(Errno::BUSY) if Instant::now() < end => std::thread::sleep(Duration::from_millis(10)),
            other => return other,
        }
    }
}
