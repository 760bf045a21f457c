//! The upper of a mount, which the server of the last one may still hold: umount(2) of a FUSE filesystem returns before its server has ended.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use plyfs_overlay::params::Writable;
use plyfs_overlay::{DirTree, LayerOpenError};
use plyfs_sys::mount::MountAttrFlags;

use super::fail::failure;
use super::record::Record;
use super::{busy, mounts};

/// How long to wait for a server whose mount has left its place.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long somebody may hold a directory without being known.
const MOMENT: Duration = Duration::from_secs(1);

/// How long it may take to end once it has nothing to serve.
const LAST: Duration = Duration::from_secs(30);

/// Who has an upper or work directory.
enum Holder {
    /// The union that is mounted there.
    Mount(PathBuf),
    /// A server whose mount is gone from the table.
    Ending(Box<Record>),
    /// Somebody who left no record.
    Unknown,
}

/// Opens the upper; waits for a server that is ending.
///
/// Errors: those of [`DirTree::upper_with`]; the directory and the mount that uses it.
pub(crate) fn open(place: &Writable, atime: MountAttrFlags) -> anyhow::Result<DirTree> {
    beside_others(place)?;
    let begun = Instant::now();
    loop {
        let (what, path) = match DirTree::upper_with(&place.upper, &place.work, Some(atime)) {
            Err(LayerOpenError::InUse { what, path }) => (what, path),
            other => return Ok(other?),
        };
        match holder(place)? {
            Holder::Ending(record) => {
                let waited = begun.elapsed();
                if waited >= PATIENCE && (waited >= LAST || busy::serves(record.pid)) {
                    return Err(held(&format!("{what} {}", path.display()), &record));
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            // A server that ends has closed some descriptors before others, one that begins has no record yet.
            Holder::Unknown if begun.elapsed() < MOMENT => std::thread::sleep(Duration::from_millis(5)),
            Holder::Mount(at) => {
                let why = format!("in use by the union mounted at {}", at.display());
                let remedy =
                    format!("unmount that one first with 'plyfs umount {}', or give this one a directory of its own", at.display());
                return Err(failure(format_args!("{what} {}", path.display()), why, remedy));
            }
            Holder::Unknown => return Err(LayerOpenError::InUse { what, path }.into()),
        }
    }
}

/// Waits for servers that are ending and have one of these lowers as their upper: at the end all names of hard links come into it. podman mounts the upper of a container that
/// has just ended as a lower, to see what changed.
pub(crate) fn wait_for_lowers(lowers: &[PathBuf]) -> anyhow::Result<()> {
    let begun = Instant::now();
    let wanted: Vec<(u64, u64)> = lowers.iter().filter_map(|path| identity(path)).collect();
    loop {
        let ending = |record: &Record| {
            let upper = record.upper.as_ref().and_then(|layer| identity(&record.way_to(layer)));
            upper.is_some_and(|upper| wanted.contains(&upper))
        };
        let Some(record) = Record::live().into_iter().find(ending) else { return Ok(()) };
        let table = mounts::table()?;
        // One that is mounted goes on: its upper is a lower as it is.
        if table.iter().any(|mount| mount.dev == record.dev && mounts::is_plyfs(mount)) {
            return Ok(());
        }
        // One that goes on serving is mounted elsewhere: its upper is a lower as it is.
        if begun.elapsed() >= MOMENT && busy::serves(record.pid) {
            return Ok(());
        }
        if begun.elapsed() >= PATIENCE {
            tracing::warn!(
                pid = record.pid,
                "the server of a lower that was an upper has not ended: names of hard links may show their lower file"
            );
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Which directory it is. What cannot be looked at is gone, as the descriptors of a server that ends are: it is then nobody's.
fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok()
}

/// Refuses an upper or work directory inside of one that is mounted, or above it: what is done to the one would change the other behind its back.
///
/// Told by the paths that were given at the other mounts: to open what others use would keep their mounts busy.
fn beside_others(place: &Writable) -> anyhow::Result<()> {
    let ours = [("upperdir", &place.upper), ("workdir", &place.work)];
    // What is not there is told by who opens it.
    let real = ours.map(|(what, path)| (what, path, path.canonicalize().unwrap_or_else(|_| path.clone())));
    for record in Record::live() {
        let Some(upper) = &record.upper else { continue };
        let theirs = [Some(upper.path.as_path()), record.work.as_ref().map(super::text::Text::as_path)];
        for their in theirs.into_iter().flatten() {
            let nested = |own: &Path| own != their && (own.starts_with(their) || their.starts_with(own));
            if let Some((what, path, _)) = real.iter().find(|(_, path, real)| nested(real) || nested(path)) {
                let at = record.mountpoint.as_path().display();
                let why = format!("it is inside {} or holds it, which the union mounted at {at} uses", their.display());
                return Err(failure(format_args!("{what} {}", path.display()), why, "give a directory beside it"));
            }
        }
    }
    Ok(())
}

/// The error of one who finds a server at work that is at no mountpoint any more.
fn held(at: &str, record: &Record) -> anyhow::Error {
    let pid = record.pid;
    let elsewhere = "or give this one a directory of its own";
    if let Some(other) = busy::elsewhere(record.dev).first() {
        let why = format!("in use: its server (pid {pid}) still serves the mount namespace of pid {other}");
        return failure(at, why, format_args!("unmount it there, {elsewhere}"));
    }
    if busy::serves(pid) {
        let why = format!(
            "in use: its server (pid {pid}) still serves a mount that is no longer at its place (lazily unmounted, or a layer of another mount)"
        );
        return failure(at, why, format_args!("end what uses it, as by unmounting that other mount, {elsewhere}"));
    }
    failure(at, format_args!("in use: its server (pid {pid}) has not ended yet"), format_args!("wait for that, {elsewhere}"))
}

fn holder(place: &Writable) -> anyhow::Result<Holder> {
    // Of what cannot be looked at the locks decide.
    let (upper, work) = (identity(&place.upper), identity(&place.work));
    let same = |a: Option<(u64, u64)>, b: Option<(u64, u64)>| a.is_some() && a == b;
    let uses = |record: &Record| {
        let its_work = record.work.as_ref().and_then(|work| identity(work.as_path()));
        record.upper.as_ref().is_some_and(|layer| same(identity(&record.way_to(layer)), upper)) || same(its_work, work)
    };
    let Some(record) = Record::live().into_iter().find(uses) else { return Ok(Holder::Unknown) };
    let table = mounts::table()?;
    let mount = table.iter().find(|mount| mount.dev == record.dev && mounts::is_plyfs(mount));
    Ok(match mount {
        Some(mount) => Holder::Mount(mounts::mountpoint(mount).to_owned()),
        None => Holder::Ending(Box::new(record)),
    })
}
