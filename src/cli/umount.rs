//! `plyfs umount`: takes a mount of plyfs away and waits until its server is gone.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use plyfs_sys::mount::{FusermountError, MountInfo};
use plyfs_sys::{Errno, mount, process};

use super::fail::{failure, note};
use super::record::Record;
use super::{busy, fail, mounts, rootless};

/// How often to look whether the server is held by somebody else's mount namespace, in milliseconds.
const LOOK: u32 = 1000;

/// How long a server may go on for somebody who shows in no table of mounts.
const PATIENCE: Duration = Duration::from_secs(10);

/// Unmount unions.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Take it out of the tree at once, and end it when its last user is gone
    #[arg(short, long)]
    lazy: bool,
    /// Where they are mounted
    #[arg(value_name = "MOUNTPOINT", required = true)]
    places: Vec<PathBuf>,
}

/// Does it. One that fails does not keep the others.
pub(crate) fn main(args: Args) -> anyhow::Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    for place in &args.places {
        if let Err(error) = umount(place, args.lazy) {
            code = fail::print(&error, 1);
        }
    }
    Ok(code)
}

fn umount(place: &Path, lazy: bool) -> anyhow::Result<()> {
    let at = || format!("umount {}", place.display());
    let path = mounts::canonical(place).map_err(|error| failure(at(), error, "give the mountpoint of a union"))?;
    let table = mounts::table()?;
    let Some(mount) = mounts::at(&table, &path) else {
        let remedy = match mounts::holding(&table, &path).filter(|mount| mounts::is_plyfs(mount)) {
            Some(mount) => format!("its union is mounted at {}", mounts::mountpoint(mount).display()),
            None => "'findmnt -t fuse.plyfs' lists those of plyfs".to_owned(),
        };
        return Err(failure(at(), "nothing is mounted there", remedy));
    };
    if !mounts::is_plyfs(mount) {
        let (fstype, source) = (String::from_utf8_lossy(&mount.fstype), String::from_utf8_lossy(&mount.source));
        return Err(failure(at(), format_args!("it is no union of plyfs but {fstype} ({source})"), "use umount(8)"));
    }
    let server = server(mount);
    let unmounted = if rootless::is_ordinary_user() { by_fusermount(&path, lazy, &at())? } else { mount::umount(path.as_path(), lazy) };
    match unmounted {
        Ok(()) => {}
        Err(Errno::BUSY) => {
            return Err(failure(at(), busy::describe(&table, mount), "end that, or take it out of the tree with -l"));
        }
        Err(errno @ (Errno::PERM | Errno::ACCESS)) => return Err(failure(at(), errno, "run it as root")),
        Err(errno) => return Err(failure(at(), errno, "see what is mounted there")),
    }
    match server {
        Some((pid, server)) if !lazy => wait(place, pid, &server, mount.dev)?,
        _ => {}
    }
    if let Err(error) = Record::remove_stale(mount.dev) {
        tracing::debug!(%error, "a stale record stays");
    }
    Ok(())
}

/// What a user has mounted by fusermount3, he unmounts by it; why not, if not.
fn by_fusermount(path: &Path, lazy: bool, at: &str) -> anyhow::Result<Result<(), Errno>> {
    match mount::fuserumount(path, lazy) {
        Ok(()) => Ok(Ok(())),
        Err(FusermountError::Refused(why)) if why.contains("busy") => Ok(Err(Errno::BUSY)),
        Err(error) => Err(failure(at, error, "a mount is unmounted by who made it, or by root")),
    }
}

/// The process that serves it, if it lives and is known.
fn server(mount: &MountInfo) -> Option<(u32, OwnedFd)> {
    let pid = Record::find(mount.dev).ok()??.pid;
    let server = process::pidfd_open(i32::try_from(pid).ok()?).ok()?;
    // Opened, then asked once more: the number cannot have gone to another process in between.
    (Record::find(mount.dev).ok()??.pid == pid).then_some((pid, server))
}

fn wait(place: &Path, pid: u32, server: &OwnedFd, dev: (u32, u32)) -> anyhow::Result<()> {
    let at = || format!("umount {}", place.display());
    let begun = Instant::now();
    loop {
        let ended = process::poll_in(&[server.as_fd()], Some(LOOK)).map_err(|errno| failure(at(), errno, "see whether it is unmounted"))?;
        if ended.first() == Some(&true) {
            return Ok(());
        }
        let here = mounts::table()?.iter().any(|mount| mount.dev == dev);
        let elsewhere = busy::elsewhere(dev);
        // A layer of another mount is a copy of this one that is in no table. Without a user the server is about to end, which may take its time.
        let hidden = || begun.elapsed() >= PATIENCE && busy::serves(pid);
        let who = match elsewhere.first() {
            _ if here => Some("another mountpoint".to_owned()),
            Some(other) => Some(format!("the mount namespace of pid {other}")),
            None => hidden().then(|| "whoever still uses it, as another mount does that has a layer in it".to_owned()),
        };
        if let Some(who) = who {
            note(format_args!("{}: unmounted here; its server (pid {pid}) goes on for {who}", at()));
            return Ok(());
        }
    }
}
