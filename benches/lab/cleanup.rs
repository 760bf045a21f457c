//! The lab's temporary directory, and what is mounted in it: taken away on every way out, by Drop or by a signal.
//!
//! Whoever mounts registers the place first and starts the daemon under the same lock, so that a signal finds everything. A directory with
//! anything still mounted below it is never removed.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use plyfs_sys::mount::{mounts, umount};
use plyfs_sys::process::kill;
use signal_hook::consts::{SIGHUP, SIGINT, SIGKILL, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;

static REGISTRY: Mutex<Registry> = Mutex::new(Registry { base: None, mounts: Vec::new(), daemons: Vec::new(), over: false });

/// What must go at the end.
pub(crate) struct Registry {
    base: Option<PathBuf>,
    mounts: Vec<PathBuf>,
    daemons: Vec<u32>,
    over: bool,
}

fn registry() -> MutexGuard<'static, Registry> {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The temporary directory; with it goes everything that is mounted there.
pub(crate) struct Lab {
    base: PathBuf,
}

impl Lab {
    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.base
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        registry().clear();
    }
}

/// Makes the directory and begins to watch for signals.
pub(crate) fn start(dir: Option<&Path>) -> Result<Lab> {
    let dir = dir.map_or_else(std::env::temp_dir, Path::to_owned);
    let dir = dir.canonicalize().with_context(|| format!("{}", dir.display()))?;
    // They separate the options of a mount, and nothing here escapes them.
    ensure!(!dir.as_os_str().as_bytes().iter().any(|byte| b",:\\\n".contains(byte)), "{}: choose a plainer path, by --dir", dir.display());
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGQUIT, SIGTERM]).context("catch signals")?;
    let base = tempfile::Builder::new().prefix("lab.").tempdir_in(&dir).with_context(|| format!("{}", dir.display()))?.keep();
    registry().base = Some(base.clone());
    let lab = Lab { base };
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        if let Some(signal) = signals.forever().next() {
            // The lock is kept: nobody mounts any more.
            let mut registry = registry();
            registry.clear();
            std::process::exit(128 + signal);
        }
    })?;
    Ok(lab)
}

/// Starts to mount at `place`: does it under the lock of the registry. The number that comes back, if any, is the daemon's process.
pub(crate) fn mounting<T>(place: &Path, mount: impl FnOnce() -> Result<(T, Option<u32>)>) -> Result<T> {
    let mut registry = registry();
    if registry.over {
        bail!("interrupted");
    }
    registry.mounts.push(place.to_owned());
    let (mounted, daemon) = mount()?;
    registry.daemons.extend(daemon);
    Ok(mounted)
}

/// Nothing is mounted at `place` any more, and its daemon has ended.
pub(crate) fn unmounted(place: &Path, daemon: Option<u32>) {
    let mut registry = registry();
    registry.mounts.retain(|mount| mount != place);
    registry.daemons.retain(|&process| Some(process) != daemon);
}

/// Unmounts what is at `place`, waiting a little for what still uses it. True if something was mounted there.
pub(crate) fn unmount(place: &Path) -> Result<bool> {
    let deadline = Instant::now() + Duration::from_secs(3);
    loop {
        match umount(place, false) {
            Ok(()) => return Ok(true),
            Err(plyfs_sys::Errno::INVAL | plyfs_sys::Errno::NOENT) => return Ok(false),
            Err(plyfs_sys::Errno::BUSY) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(2)),
            Err(_) => return umount(place, true).map(|()| true).with_context(|| format!("unmount {}", place.display())),
        }
    }
}

impl Registry {
    fn clear(&mut self) {
        self.over = true;
        for place in std::mem::take(&mut self.mounts) {
            while umount(&place, true).is_ok() {}
        }
        for daemon in std::mem::take(&mut self.daemons) {
            // The session of a mount that is gone ends by itself; one that hangs must not outlive the lab. ESRCH: it has ended.
            if let Ok(process) = i32::try_from(daemon)
                && let Err(errno) = kill(process, SIGKILL)
                && errno != plyfs_sys::Errno::SRCH
            {
                eprintln!("lab: process {process} is left: {errno}");
            }
        }
        let Some(base) = self.base.take() else { return };
        let free =
            mounts().is_ok_and(|all| !all.iter().any(|mount| Path::new(std::ffi::OsStr::from_bytes(&mount.mountpoint)).starts_with(&base)));
        let removed = if free { std::fs::remove_dir_all(&base) } else { Err(std::io::Error::other("something is mounted in it")) };
        if let Err(error) = removed {
            eprintln!("lab: {} is left: {error}", base.display());
        }
    }
}
