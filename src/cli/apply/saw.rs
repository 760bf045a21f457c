//! What the command of a try saw: of every path that it changed the object of this machine, as it was when the command ended. In `saw.json` in the directory of the try.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use plyfs_overlay::{Behaviour, DirTree, Union};
use plyfs_sys::stat::Kind;
use plyfs_sys::{Errno, beneath, root};
use serde::{Deserialize, Serialize};

use super::look::{self, Id, Moment, Seen};
use super::view::{Item, Letter, View};
use crate::cli::fail::{failure, one_line};
use crate::cli::layers::{self, HostLower, Pair};
use crate::cli::store::{Filesystem, Held};
use crate::cli::text::Text;

/// The version of the format.
const VERSION: u32 = 1;
/// In the directory of the try.
const FILE: &str = "saw.json";
/// The same: all of the try is on the disk.
const SYNCED: &str = "synced.json";

/// How many bytes of files that were changed are read, so that one that was only touched is told from one that was written; and of a single one.
const CHANGED: u64 = 1 << 30;
const ONE: u64 = 1 << 28;
/// The same of files that were deleted.
const DELETED: u64 = 1 << 26;

/// What a command saw.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Saw {
    version: u32,
    /// Of the kernel, when the command ran.
    boot: String,
    began: Moment,
    parts: Vec<Part>,
}

/// What it saw of one filesystem.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Part {
    /// That of the filesystem in the try.
    number: u32,
    /// When the command began.
    began: Moment,
    /// By path.
    objects: Vec<Object>,
}

/// One path.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Object {
    path: Text,
    letter: Letter,
    /// What was there.
    was: Option<Seen>,
    /// Nothing of it is in a diff: inode flags, or the time of a directory.
    quiet: bool,
    /// Somebody else changed it while the command ran: which of both it saw is not known.
    late: bool,
}

/// Writes down what a command saw.
#[derive(Debug)]
pub(crate) struct Recorder(Saw);

impl Recorder {
    /// What others change from now on is a conflict, if the command changes it too.
    pub(crate) fn begin() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let began = (i64::try_from(now.as_secs()).unwrap_or(i64::MAX), now.subsec_nanos());
        Self(Saw { version: VERSION, boot: boot(), began, parts: Vec::new() })
    }

    /// Returns when what others change is stamped with a time after the beginning: files are stamped by a clock that ticks every few milliseconds.
    pub(crate) fn wait(&self) {
        const TICK: Duration = Duration::from_millis(11);
        let (sec, nsec) = self.0.began;
        let began = UNIX_EPOCH + Duration::new(u64::try_from(sec).unwrap_or(0), nsec);
        if let Some(left) = TICK.checked_sub(SystemTime::now().duration_since(began).unwrap_or_default()) {
            std::thread::sleep(left);
        }
    }

    /// Adds a filesystem, whose union nobody uses any more.
    pub(crate) fn add(&mut self, held: &Held, filesystem: &Filesystem, lower: &HostLower) -> anyhow::Result<()> {
        let pair = Pair::within(&held.layer(filesystem.number));
        let upper = DirTree::upper_readonly(&pair.upper, pair.index().as_deref())?;
        let union = Union::new(layers::stack(upper, &pair, lower)?, Behaviour::default())?;
        let lower = lower.as_fd();
        let mut view = View::new(&union);
        let mut budget = Budget { changed: CHANGED, deleted: DELETED };
        let items = view.items(lower)?;
        let dir = root::open_dir(&pair.upper).map_err(|errno| anyhow::anyhow!("{}: {errno}", pair.upper.display()))?;
        let quiet = view.quiet(lower, dir.as_fd(), &items, self.0.began)?;
        let mut objects = Vec::new();
        for (item, quiet) in items.into_iter().map(|item| (item, false)).chain(quiet.into_iter().map(|item| (item, true))) {
            let object = self.object(&mut view, lower, item, quiet, &mut budget)?;
            objects.push(object);
        }
        objects.sort_by(|a, b| a.path.cmp(&b.path));
        if !objects.is_empty() {
            self.0.parts.push(Part { number: filesystem.number, began: self.0.began, objects });
        }
        Ok(())
    }

    fn object(&self, view: &mut View<'_>, host: BorrowedFd<'_>, item: Item, quiet: bool, budget: &mut Budget) -> anyhow::Result<Object> {
        let failed = |errno: Errno| anyhow::anyhow!("{}: {errno}", item.path.escape_ascii());
        let mut was = look::look(host, &item.path).map_err(failed)?;
        let mut late = false;
        if let Some(seen) = &mut was {
            late = match (seen.kind(), item.letter) {
                (Kind::Dir, Letter::C) => self.is_another_dir(view, host, &item.path, seen)?,
                // Entries that come and go count by themselves.
                (Kind::Dir, _) => seen.ctime >= self.0.began && seen.ctime > seen.mtime,
                _ => seen.ctime >= self.0.began,
            };
            if seen.kind() == Kind::File && budget.takes(item.letter, seen.size()) {
                seen.content = look::content(host, &item.path, seen).map_err(failed)?;
                let now = look::look(host, &item.path).map_err(failed)?;
                late |= now.is_none_or(|now| now.ctime != seen.ctime || now.id != seen.id);
            }
        }
        Ok(Object { path: Text::from(item.path.as_slice()), letter: item.letter, was, quiet, late })
    }

    /// Whether a directory is not the one that the command saw, or somebody else changed of it what the command changed, too: not only what is in it.
    fn is_another_dir(&self, view: &mut View<'_>, host: BorrowedFd<'_>, path: &[u8], seen: &Seen) -> anyhow::Result<bool> {
        let Some(shown) = view.find(path)? else { return Ok(true) };
        // It merges with this one, so it was copied up from this one. (One that replaced it does not merge with it.)
        let merges = shown.stat.kind == Kind::Dir && shown.backing.below == Some(seen.object());
        let same = view.copied_from(shown.node)?.and_then(|from| seen.id.has(&from));
        if merges && same == Some(false) {
            return Ok(true);
        }
        if seen.ctime < self.0.began {
            return Ok(false);
        }
        // Without handles a directory that was moved here has another time than its entries gave it.
        if merges && same.is_none() && !path.is_empty() && seen.ctime > seen.mtime {
            return Ok(true);
        }
        let stat = &shown.stat;
        if !seen.dressed(stat.mode, stat.uid, stat.gid) {
            return Ok(true);
        }
        let own = look::there(beneath::open_dir(host, path)).and_then(|dir| dir.map(|dir| look::xattrs(dir.as_fd())).transpose());
        Ok(own.map_err(|errno| anyhow::anyhow!("{}: {errno}", path.escape_ascii()))? != Some(view.xattrs(shown.node)?))
    }

    /// Writes it into the directory of the try. Whether the command has changed anything.
    pub(crate) fn write(self, held: &Held) -> anyhow::Result<bool> {
        super::journal::write(&held.dir, FILE, &self.0)?;
        Ok(!self.0.parts.is_empty())
    }
}

/// How much is still to be read.
struct Budget {
    changed: u64,
    deleted: u64,
}

impl Budget {
    fn takes(&mut self, letter: Letter, size: u64) -> bool {
        let left = if letter == Letter::D { &mut self.deleted } else { &mut self.changed };
        let takes = size > 0 && size <= ONE && size <= *left;
        if takes {
            *left -= size;
        }
        takes
    }
}

/// A path that is not as the command saw it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Conflict {
    pub(super) letter: Letter,
    pub(super) path: Vec<u8>,
    pub(super) why: String,
}

impl Saw {
    /// That of a try.
    pub(super) fn read(held: &Held) -> anyhow::Result<Self> {
        let at = format!("try {}", held.name);
        let remedy = "look at its changes with 'plyfs try diff', and run its command once more with 'plyfs try --apply'";
        let text = match fs::read(held.dir.join(FILE)) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(failure(at, "what its command saw is not known, since it was cut off or made by another version", remedy));
            }
            Err(error) => return Err(failure(at, error, "see that its directory can be read")),
        };
        let version = serde_json::from_slice::<serde_json::Value>(&text).ok().and_then(|value| value.get("version")?.as_u64());
        if version.is_some_and(|version| version != u64::from(VERSION)) {
            return Err(failure(at, "what its command saw was written by another version of plyfs", "apply it with that version"));
        }
        let saw: Self = serde_json::from_slice(&text)
            .map_err(|error| failure(&at, format_args!("{FILE}: {}", one_line(&error.to_string())), remedy))?;
        // Nothing waits for the disk while a command runs.
        if (saw.boot.is_empty() || saw.boot != boot()) && !held.dir.join(SYNCED).exists() {
            return Err(failure(at, "this machine went down before its changes were on the disk, and they may not be whole", remedy));
        }
        Ok(saw)
    }

    /// Stages gave these objects another time of change, after they had been compared: that one is written down.
    pub(super) fn touched(held: &Held, number: u32, host: BorrowedFd<'_>, linked: &HashSet<Id>) -> anyhow::Result<()> {
        if linked.is_empty() {
            return Ok(());
        }
        let mut saw = Self::read(held)?;
        for object in saw.parts.iter_mut().filter(|part| part.number == number).flat_map(|part| &mut part.objects) {
            let path = object.path.as_bytes();
            // What is gone or cannot be looked at is found out by the next check.
            if let Some(was) = object.was.as_mut().filter(|was| linked.contains(&was.id))
                && let Ok(Some(now)) = look::look(host, path)
            {
                was.touch(&now);
            }
        }
        super::journal::write(&held.dir, FILE, &saw)
    }

    /// The numbers of the filesystems with changes.
    pub(super) fn numbers(&self) -> impl Iterator<Item = u32> {
        self.parts.iter().map(|part| part.number)
    }

    /// What was seen of one filesystem.
    pub(super) fn part(&self, number: u32) -> Option<&Part> {
        self.parts.iter().find(|part| part.number == number)
    }
}

impl Part {
    /// The paths that differ though no diff tells.
    pub(super) fn quiet(&self) -> impl Iterator<Item = Item> {
        let quiet = self.objects.iter().filter(|object| object.quiet);
        quiet.map(|object| Item { path: object.path.as_bytes().to_vec(), letter: object.letter })
    }

    /// Whether nobody else has changed the entries of a directory, so that its time is the command's.
    pub(super) fn is_timed(&self, path: &[u8], now: &Seen) -> bool {
        self.was(path).is_some_and(|was| was.mtime == now.mtime && was.ctime < self.began)
    }

    /// What was at a path.
    fn was(&self, path: &[u8]) -> Option<&Seen> {
        let at = self.objects.binary_search_by(|object| object.path.as_bytes().cmp(path)).ok()?;
        self.objects.get(at)?.was.as_ref()
    }

    /// Where this machine is not as the command saw it. `items` are the paths that differ now; what is `linked` has another time of change since it was compared.
    pub(super) fn conflicts(&self, host: BorrowedFd<'_>, items: &[Item], linked: &HashSet<Id>) -> Vec<Conflict> {
        let mut found = BTreeMap::new();
        let now: BTreeMap<&[u8], Letter> = items.iter().map(|item| (item.path.as_slice(), item.letter)).collect();
        for object in &self.objects {
            let path = object.path.as_bytes();
            let why = match object.conflict(host, linked) {
                Ok(None) if now.get(path) != Some(&object.letter) => Some("it changed so that the view does, too".to_owned()),
                Ok(why) => why.map(str::to_owned),
                Err(Errno::XDEV) => Some("something is mounted there now".to_owned()),
                Err(errno) => Some(format!("it cannot be looked at: {errno}")),
            };
            if let Some(why) = why {
                found.insert(path.to_vec(), (object.letter, why));
            }
        }
        for item in items {
            if self.objects.binary_search_by(|object| object.path.as_bytes().cmp(&item.path)).is_err() {
                let why = "it was not there when the command ended".to_owned();
                found.entry(item.path.clone()).or_insert((item.letter, why));
            }
        }
        found.into_iter().map(|(path, (letter, why))| Conflict { letter, path, why }).collect()
    }
}

impl Object {
    fn conflict(&self, host: BorrowedFd<'_>, linked: &HashSet<Id>) -> Result<Option<&'static str>, Errno> {
        if self.late {
            return Ok(Some("somebody else changed it while the command ran"));
        }
        let path = self.path.as_bytes();
        match (&self.was, look::look(host, path)?) {
            (None, None) if self.letter == Letter::A => Ok(None),
            (None, None) => Ok(Some("it was gone when the command ended")),
            (_, Some(_)) if self.letter == Letter::A => Ok(Some("it is there now")),
            (None, Some(_)) => Ok(Some("it was gone when the command ended")),
            (Some(_), None) => Ok(Some("it is gone")),
            (Some(was), Some(now)) if linked.contains(&was.id) => {
                let mut was = was.clone();
                was.touch(&now);
                was.differs(&now, || look::content(host, path, &now))
            }
            (Some(was), Some(now)) => was.differs(&now, || look::content(host, path, &now)),
        }
    }
}

/// Says that all of a try is on the disk.
pub(crate) fn is_synced(held: &Held) -> anyhow::Result<()> {
    super::journal::write(&held.dir, SYNCED, &VERSION)
}

/// Which boot of the machine this is. Nothing where it cannot be read, which is no boot that anything was written in.
fn boot() -> String {
    plyfs_sys::process::boot_id().unwrap_or_else(|errno| {
        tracing::warn!(%errno, "which boot of the machine this is cannot be read");
        String::new()
    })
}
