//! How far an apply has come: `apply.json` in the directory of the try, written before what it tells of is done.
//!
//! While objects are *staged*, in hidden directories beside their places, nothing shows; whoever finds a journal of this phase removes these directories and begins anew. From
//! the moment on that the journal says *commit*, its steps are carried out to the end, in their order and as often as it takes: each of them sees by itself whether it has been done.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use plyfs_sys::stat::Kind;
use serde::{Deserialize, Serialize};

use super::look::{Forbids, Id, Moment, Seen};
use crate::cli::fail::failure;
use crate::cli::text::Text;

/// The version of the format.
const VERSION: u32 = 1;
/// In the directory of the try.
const FILE: &str = "apply.json";

/// How far it has come.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Phase {
    /// Nothing shows so far.
    Stage,
    /// What was staged is being removed.
    Undo,
    /// The steps are being carried out.
    Commit,
}

/// The whole of it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Journal {
    version: u32,
    pub(super) phase: Phase,
    pub(super) parts: Vec<Part>,
}

/// One filesystem.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Part {
    /// That of the filesystem in the try.
    pub(super) number: u32,
    /// Directories that hold what is staged.
    pub(super) stages: Vec<Stage>,
    /// What gets another time of change by the stages.
    pub(super) linked: HashSet<Id>,
    pub(super) steps: Vec<Step>,
}

/// A hidden directory in one that gets new entries.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Stage {
    /// The directory that it is in.
    pub(super) dir: Text,
    /// Its name there, which nobody can guess.
    pub(super) name: String,
    /// The time of modification of the directory from before.
    pub(super) mtime: Moment,
    /// It is put back where all is undone.
    pub(super) back: bool,
}

/// Owner, mode, attributes and times of an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Dress {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// In order of names.
    pub(super) xattrs: Vec<(Text, Text)>,
    /// Of regular files and directories: the inode flags that are kept.
    pub(super) flags: Option<u32>,
    /// `None`: it stays.
    pub(super) atime: Option<Moment>,
    /// `None`: it stays.
    pub(super) mtime: Option<Moment>,
}

/// An object that is about to go, so that nobody's work of a moment ago goes with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Known {
    pub(super) id: Id,
    /// Size and time of modification; of a directory its entries tell.
    pub(super) data: Option<(u64, Moment)>,
    /// What has to be taken from it.
    #[serde(default)]
    pub(super) forbids: Forbids,
}

impl Known {
    /// What was seen.
    pub(super) fn of(seen: &Seen) -> Self {
        let data = (seen.kind() != Kind::Dir).then(|| (seen.size(), seen.mtime));
        Self { id: seen.id.clone(), data, forbids: seen.forbids }
    }

    /// Whether this is what it was, but for flags that were taken from it.
    pub(super) fn is_still(&self, was: &Self) -> bool {
        self.id == was.id && self.data == was.data && self.forbids.no_more_than(was.forbids)
    }
}

/// What an object was before it is changed in place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Was {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// `None`: it does not tell anything.
    pub(super) mtime: Option<Moment>,
}

impl Was {
    /// What was seen.
    pub(super) fn of(seen: &Seen, timed: bool) -> Self {
        Self { mode: seen.mode, uid: seen.uid, gid: seen.gid, mtime: timed.then_some(seen.mtime) }
    }
}

/// What is to be done, in this order.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Step {
    /// Moves an entry of a stage to its place.
    Place {
        stage: usize,
        entry: u32,
        path: Text,
        /// What is staged.
        id: Id,
        /// What it replaces. A directory is empty then.
        over: Option<Known>,
    },
    /// Moves a directory that goes into a stage, with all that is in it.
    Retire {
        stage: usize,
        entry: u32,
        path: Text,
        id: Id,
        /// By the path below it, a directory after what is in it.
        inside: Vec<(Text, Known)>,
    },
    /// Removes an object; a directory is empty then.
    Remove { path: Text, known: Known },
    /// Copies the data of a staged file into one that has other names, too.
    Fill { path: Text, id: Id, stage: usize, entry: u32 },
    /// Removes the stages.
    Clear,
    /// Gives an object its owner, mode, attributes and times.
    Dress { path: Text, id: Id, was: Was, dress: Dress },
}

impl Journal {
    /// One that begins.
    pub(super) fn new(phase: Phase, parts: Vec<Part>) -> Self {
        Self { version: VERSION, phase, parts }
    }

    /// That of a try, if it is being applied.
    pub(super) fn read(dir: &Path) -> anyhow::Result<Option<Self>> {
        let path = dir.join(FILE);
        let failed = |why: &dyn std::fmt::Display| {
            failure(path.display(), why, "see that it can be read, and apply with the version of plyfs that began")
        };
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(&error)),
        };
        let version = serde_json::from_slice::<serde_json::Value>(&text).ok().and_then(|value| value.get("version")?.as_u64());
        if version.is_some_and(|version| version != u64::from(VERSION)) {
            return Err(failed(&"it was written by another version of plyfs"));
        }
        serde_json::from_slice(&text).map(Some).map_err(|error| failed(&error))
    }

    /// Writes it, so that it is on the disk.
    pub(super) fn write(&self, dir: &Path) -> anyhow::Result<()> {
        write(dir, FILE, self)
    }

    /// Removes it: nothing is under way any more.
    pub(super) fn remove(dir: &Path) -> anyhow::Result<()> {
        fs::remove_file(dir.join(FILE)).and_then(|()| sync_dir(dir)).map_err(|error| failed(dir, &error))
    }
}

/// Whether a try is being applied, or was when plyfs was ended.
pub(crate) fn is_there(dir: &Path) -> bool {
    dir.join(FILE).exists()
}

/// Writes a file of a try as a whole or not at all.
pub(super) fn write(dir: &Path, name: &str, value: &impl Serialize) -> anyhow::Result<()> {
    let written = || -> io::Result<()> {
        let new = dir.join(format!("{name}.new"));
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        let mut out = BufWriter::new(file);
        serde_json::to_writer(&mut out, value)?;
        out.flush()?;
        out.get_ref().sync_all()?;
        fs::rename(&new, dir.join(name))?;
        sync_dir(dir)
    };
    written().map_err(|error| failed(dir, &error))
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn failed(dir: &Path, error: &io::Error) -> anyhow::Error {
    failure(format_args!("directory {}", dir.display()), error, "see that there is space, and that it can be written")
}
