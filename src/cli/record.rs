//! What a mount leaves in `/run/plyfs`, that of an ordinary user in a directory of his own, for `plyfs diff` and `plyfs umount`, which cannot ask the kernel for the layers of a FUSE mount.
//!
//! One file a mount, `<major>:<minor>.json` by the device number that its files show. The server keeps a descriptor of each layer's root
//! open; a reader comes to the layers through them, whatever is mounted over their paths by then. A record counts only while the process
//! that wrote it lives, and is removed by it at the end.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use plyfs_sys::{process, userns};

use super::rootless;
use super::text::Text;

/// Where root's records are.
const OF_ROOT: &str = "/run/plyfs";

/// Where the records of this user are: in a user namespace they are his who made it.
pub(crate) fn dir() -> PathBuf {
    if process::effective_uid() == 0 && !userns::is_inside() { PathBuf::from(OF_ROOT) } else { rootless::runtime_dir() }
}

/// The directory, if it is there and nobody else can have put anything into it: in `/tmp` anybody could have made it.
fn trusted_dir() -> io::Result<Option<PathBuf>> {
    use std::os::unix::fs::MetadataExt;
    let dir = dir();
    let meta = match fs::symlink_metadata(&dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    if meta.is_dir() && meta.uid() == process::effective_uid() && meta.mode() & 0o022 == 0 {
        return Ok(Some(dir));
    }
    Err(io::Error::other(format!("{} is not a directory that only you can write to", dir.display())))
}

/// The version of the format.
const VERSION: u32 = 1;

/// One layer of a mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Layer {
    /// Its path when it was mounted, for people.
    pub(crate) path: Text,
    /// The server's descriptor of its root.
    pub(crate) fd: i32,
    /// The word for its dialect, of a lower that merges.
    #[serde(default)]
    pub(crate) dialect: Option<String>,
}

/// A mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    version: u32,
    /// Major and minor number of the device.
    pub(crate) dev: (u32, u32),
    /// The server.
    pub(crate) pid: u32,
    /// When it was started, in the kernel's ticks: a number may be given to another process later.
    started: u64,
    /// Where it was mounted, for people.
    pub(crate) mountpoint: Text,
    /// Its options, for people.
    pub(crate) options: Text,
    /// Topmost first.
    pub(crate) lowers: Vec<Layer>,
    /// The data-only layers, topmost first.
    #[serde(default)]
    pub(crate) data: Vec<Layer>,
    /// `None` for a read-only union.
    pub(crate) upper: Option<Layer>,
    /// `None` for a read-only union.
    pub(crate) work: Option<Text>,
    /// The server's descriptor of the index of hard links in the workdir.
    #[serde(default)]
    pub(crate) index: Option<i32>,
    /// How the upper's marks are written.
    #[serde(default)]
    pub(crate) dialect: Option<String>,
}

/// Removes the record when dropped.
#[derive(Debug)]
pub(crate) struct Written {
    dir: PathBuf,
    record: Record,
}

impl Drop for Written {
    fn drop(&mut self) {
        // The number may have gone to another mount already, whose record that is then.
        let own = |found: &Record| found.pid == self.record.pid && found.started == self.record.started;
        if let Err(error) = remove_if(&self.dir, &path(&self.dir, self.record.dev), own) {
            tracing::warn!(%error, dev = ?self.record.dev, "the record of the mount cannot be removed");
        }
    }
}

/// Removes a record that is so, while nobody writes another one in its place.
fn remove_if(dir: &Path, path: &Path, so: impl FnOnce(&Record) -> bool) -> io::Result<()> {
    let lock = File::open(dir)?;
    lock.lock()?;
    let text = match fs::read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        text => text?,
    };
    // Another version's record is not ours to judge.
    match serde_json::from_slice::<Record>(&text) {
        Ok(record) if record.version == VERSION && so(&record) => fs::remove_file(path),
        _ => Ok(()),
    }
}

/// When a process was started; `None` when there is none.
pub(crate) fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name, which may hold anything, and ends with the last parenthesis. The start is the 22nd.
    let (_, fields) = stat.rsplit_once(')')?;
    // A zombie serves nobody.
    let mut fields = fields.split_whitespace();
    let state = fields.next()?;
    if state == "Z" || state == "X" { None } else { fields.nth(18)?.parse().ok() }
}

impl Record {
    /// The record of this process.
    pub(crate) fn own(dev: (u32, u32), mountpoint: &Path, options: Text) -> io::Result<Self> {
        let pid = std::process::id();
        let started = started(pid).ok_or_else(|| io::Error::from(ErrorKind::NotFound))?;
        let mountpoint = Text::from(mountpoint);
        let (lowers, data) = (Vec::new(), Vec::new());
        Ok(Self {
            version: VERSION,
            dev,
            pid,
            started,
            mountpoint,
            options,
            lowers,
            data,
            upper: None,
            work: None,
            index: None,
            dialect: None,
        })
    }

    /// Writes it, at once or not at all.
    pub(crate) fn write(&self) -> io::Result<Written> {
        let dir = dir();
        let mode = if dir == Path::new(OF_ROOT) { 0o755 } else { 0o700 };
        fs::DirBuilder::new().mode(mode).recursive(true).create(&dir)?;
        match trusted_dir()? {
            Some(dir) => self.write_to(&dir),
            None => Err(io::Error::from(ErrorKind::NotFound)),
        }
    }

    fn write_to(&self, dir: &Path) -> io::Result<Written> {
        fs::DirBuilder::new().mode(0o755).recursive(true).create(dir)?;
        sweep(dir);
        let path = path(dir, self.dev);
        let new = path.with_extension(format!("{}.new", self.pid));
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&new)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        let lock = File::open(dir)?;
        lock.lock()?;
        fs::rename(&new, &path)?;
        Ok(Written { dir: dir.to_owned(), record: self.clone() })
    }

    /// The record of the mount with this device number, if its server lives.
    pub(crate) fn find(dev: (u32, u32)) -> io::Result<Option<Self>> {
        trusted_dir()?.map_or(Ok(None), |dir| Self::find_in(&dir, dev))
    }

    fn find_in(dir: &Path, dev: (u32, u32)) -> io::Result<Option<Self>> {
        let text = match fs::read(path(dir, dev)) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let record: Self = serde_json::from_slice(&text)?;
        let valid = record.version == VERSION && record.dev == dev && record.is_live();
        Ok(valid.then_some(record))
    }

    /// Whether its server lives.
    fn is_live(&self) -> bool {
        started(self.pid) == Some(self.started)
    }

    /// Removes what a server that was killed has left.
    pub(crate) fn remove_stale(dev: (u32, u32)) -> io::Result<()> {
        let Some(dir) = trusted_dir()? else { return Ok(()) };
        remove_if(&dir, &path(&dir, dev), |record| !record.is_live())
    }

    /// The records of all servers that live.
    pub(crate) fn live() -> Vec<Self> {
        // A record goes with its server, which may be now, and one of another version is not ours to read: a mount of which nothing is known keeps its locks all
        // the same, and whoever asks says then that another mount has them.
        let read = |entry: fs::DirEntry| serde_json::from_slice::<Self>(&fs::read(entry.path()).ok()?).ok();
        let dir = trusted_dir().ok().flatten();
        let all = dir.and_then(|dir| fs::read_dir(dir).ok()).into_iter().flatten().flatten().filter_map(read);
        all.filter(|record| record.version == VERSION && record.is_live()).collect()
    }

    /// The path that leads to a layer through the server's descriptor.
    pub(crate) fn way_to(&self, layer: &Layer) -> PathBuf {
        self.way_through(layer.fd)
    }

    /// The path that leads through one of the server's descriptors.
    pub(crate) fn way_through(&self, fd: i32) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{fd}", self.pid))
    }
}

/// Removes the records of servers that were killed.
fn sweep(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if let Err(error) = remove_if(dir, &entry.path(), |record| !record.is_live()) {
            tracing::debug!(path = %entry.path().display(), %error, "a stale record stays");
        }
    }
}

fn path(dir: &Path, (major, minor): (u32, u32)) -> PathBuf {
    dir.join(format!("{major}:{minor}.json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_found_while_its_process_lives_and_goes_with_the_guard() {
        let dir = tempfile::tempdir().unwrap();
        let mut record = Record::own((0, 77), Path::new("/m"), Text::from(&b"lowerdir=/a"[..])).unwrap();
        record.upper = Some(Layer { path: Text::from(&b"/u\xff"[..]), fd: 5, dialect: None });
        let written = record.write_to(dir.path()).unwrap();
        assert_eq!(Record::find_in(dir.path(), (0, 77)).unwrap(), Some(record.clone()));
        assert_eq!(Record::find_in(dir.path(), (0, 78)).unwrap(), None);
        assert_eq!(record.way_to(record.upper.as_ref().unwrap()), PathBuf::from(format!("/proc/{}/fd/5", record.pid)));

        let stale = Record { started: record.started + 1, ..record.clone() };
        drop(stale.write_to(dir.path()).unwrap());
        std::mem::forget(stale.write_to(dir.path()).unwrap());
        assert_eq!(Record::find_in(dir.path(), (0, 77)).unwrap(), None);
        drop(Record { dev: (0, 79), ..record }.write_to(dir.path()).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "what a killed server left goes with the next mount");
        std::mem::forget(written);
    }

    #[test]
    fn processes_have_a_start_until_they_end() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        assert!(started(std::process::id()).is_some());
        child.wait().unwrap();
        assert_eq!(started(child.id()), None);
    }
}
