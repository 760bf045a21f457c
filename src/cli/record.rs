//! What a mount leaves in `/run/plyfs` for `plyfs diff` and `plyfs umount`, which cannot ask the kernel for the layers of a FUSE mount.
//!
//! One file a mount, `<major>:<minor>.json` by the device number that its files show. The server keeps a descriptor of each layer's root
//! open; a reader comes to the layers through them, whatever is mounted over their paths by then. A record counts only while the process
//! that wrote it lives, and is removed by it at the end.

use std::fs;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::text::Text;

/// Where records are.
const DIR: &str = "/run/plyfs";

/// The version of the format.
const VERSION: u32 = 1;

/// One layer of a mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Layer {
    /// Its path when it was mounted, for people.
    pub(crate) path: Text,
    /// The server's descriptor of its root.
    pub(crate) fd: i32,
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
    /// `None` for a read-only union.
    pub(crate) upper: Option<Layer>,
    /// `None` for a read-only union.
    pub(crate) work: Option<Text>,
}

/// Removes the record when dropped.
#[derive(Debug)]
pub(crate) struct Written(PathBuf);

impl Drop for Written {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "the record of the mount cannot be removed");
        }
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
        Ok(Self { version: VERSION, dev, pid, started, mountpoint, options, lowers: Vec::new(), upper: None, work: None })
    }

    /// Writes it, at once or not at all.
    pub(crate) fn write(&self) -> io::Result<Written> {
        self.write_to(Path::new(DIR))
    }

    fn write_to(&self, dir: &Path) -> io::Result<Written> {
        fs::DirBuilder::new().mode(0o755).recursive(true).create(dir)?;
        sweep(dir);
        let path = path(dir, self.dev);
        let new = path.with_extension(format!("{}.new", self.pid));
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&new)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        fs::rename(&new, &path)?;
        Ok(Written(path))
    }

    /// The record of the mount with this device number, if its server lives.
    pub(crate) fn find(dev: (u32, u32)) -> io::Result<Option<Self>> {
        Self::find_in(Path::new(DIR), dev)
    }

    fn find_in(dir: &Path, dev: (u32, u32)) -> io::Result<Option<Self>> {
        let text = match fs::read(path(dir, dev)) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let record: Self = serde_json::from_slice(&text)?;
        let valid = record.version == VERSION && record.dev == dev && started(record.pid) == Some(record.started);
        Ok(valid.then_some(record))
    }

    /// Removes what a server that was killed has left.
    pub(crate) fn remove_stale(dev: (u32, u32)) -> io::Result<()> {
        if Self::find(dev)?.is_some() {
            return Ok(());
        }
        match fs::remove_file(path(Path::new(DIR), dev)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// The path that leads to a layer through the server's descriptor.
    pub(crate) fn way_to(&self, layer: &Layer) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", self.pid, layer.fd))
    }
}

/// Removes the records of servers that were killed.
fn sweep(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        // What is being written or removed at this moment, or is of another version, is not ours to judge.
        let Some(record) = fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Record>(&text).ok()) else { continue };
        if started(record.pid) != Some(record.started)
            && let Err(error) = fs::remove_file(&path)
        {
            tracing::debug!(path = %path.display(), %error, "a stale record stays");
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
        record.upper = Some(Layer { path: Text::from(&b"/u\xff"[..]), fd: 5 });
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
