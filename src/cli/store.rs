//! What `plyfs try` keeps, below the state directory: `try/<name>/meta.json`, `try/<name>/lock` and for each filesystem `try/<name>/<n>/upper`
//! and `work`.
//!
//! A try appears under its name at once, complete and locked (it is made under another name and renamed), and its lock is held as long as it
//! runs. So whoever finds a try without a lock knows that nobody works on it: it was kept, or the process died. A name that begins with a dot
//! is being made or being removed; without its lock it is litter, and goes with the next try that is made or removed.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use plyfs_sys::mount::MountInfo;
use plyfs_sys::{Errno, RenameFlags, create, root, tree};
use serde::{Deserialize, Serialize};

use super::fail::failure;
use super::names::Name;
use super::rootless;
use super::text::Text;

/// Where the state is if nobody says otherwise.
const DEFAULT: &str = "/var/lib/plyfs";

/// The version of the format.
const VERSION: u32 = 1;

/// The state directory.
#[derive(Clone, Debug)]
pub(crate) struct Store(PathBuf);

/// A filesystem that a try has a union of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Filesystem {
    /// Its place in the try: the directory of its upper.
    pub(crate) number: u32,
    /// Where it is mounted.
    pub(crate) mountpoint: Text,
    /// Its type.
    pub(crate) fstype: Text,
    /// What is mounted.
    pub(crate) source: Text,
    /// The directory of it that is mounted.
    pub(crate) root: Text,
    /// Major and minor number of its device, which another boot may number otherwise.
    pub(crate) dev: (u32, u32),
}

impl Filesystem {
    /// That of a mount.
    pub(crate) fn of(number: u32, mount: &MountInfo) -> Self {
        let text = |bytes: &Vec<u8>| Text::from(bytes.as_slice());
        Self {
            number,
            mountpoint: text(&mount.mountpoint),
            fstype: text(&mount.fstype),
            source: text(&mount.source),
            root: text(&mount.root),
            dev: mount.dev,
        }
    }

    /// Whether a mount shows the same files at the same place.
    pub(crate) fn is(&self, mount: &MountInfo) -> bool {
        Self { dev: self.dev, ..Self::of(self.number, mount) } == *self
    }
}

/// What is known of a try.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Meta {
    version: u32,
    /// The command and its arguments.
    pub(crate) command: Vec<Text>,
    /// Seconds since 1970.
    pub(crate) created: u64,
    /// How the command ended: its exit code, or 128 and the signal's number. `None` while it runs, and if plyfs itself was ended.
    pub(crate) exit: Option<u8>,
    /// `/` first.
    pub(crate) filesystems: Vec<Filesystem>,
}

impl Meta {
    /// That of a try that begins now.
    pub(crate) fn new(command: Vec<Text>, filesystems: Vec<Filesystem>) -> Self {
        Self { version: VERSION, command, created: now(), exit: None, filesystems }
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// A try that this process works on.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) name: String,
    pub(crate) dir: PathBuf,
    _lock: File,
}

/// What a try is at.
#[derive(Debug)]
pub(crate) enum State {
    /// Its command runs, or its changes are being decided on.
    Running,
    /// It has ended and is kept.
    Kept(Meta),
    /// Its changes are being carried out on this machine, or were when plyfs was ended.
    Applying(Meta),
    /// plyfs was ended before the command was.
    Crashed(Meta),
    /// Its description cannot be read.
    Damaged(String),
}

/// A try as it is listed.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) state: State,
    /// Of a running one, too.
    pub(crate) meta: Option<Meta>,
}

impl Store {
    /// That of `--root`, `PLYFS_ROOT` or the usual place. Nothing is made yet.
    pub(crate) fn at(given: Option<PathBuf>) -> anyhow::Result<Self> {
        let root = given.or_else(|| std::env::var_os("PLYFS_ROOT").filter(|root| !root.is_empty()).map(PathBuf::from));
        let root = root.unwrap_or_else(|| match rootless::is_ordinary_user() {
            true => rootless::data_dir().unwrap_or_else(|| PathBuf::from(DEFAULT)),
            false => PathBuf::from(DEFAULT),
        });
        std::path::absolute(&root).map(|root| Self(without_links(&root))).map_err(|error| failed(&root, error))
    }

    /// Every directory that holds state of plyfs: this one, and those that others may use.
    pub(crate) fn all_state(&self) -> Vec<PathBuf> {
        let mut all = vec![self.0.clone(), PathBuf::from(DEFAULT), super::record::dir()];
        all.sort();
        all.dedup();
        all
    }

    /// The directory.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// A directory in it, made if need be, that only root enters: an upper may hold other users' secrets and set-user-id programs.
    fn private(&self, name: &str) -> anyhow::Result<PathBuf> {
        DirBuilder::new().mode(0o755).recursive(true).create(&self.0).map_err(|error| failed(&self.0, error))?;
        let dir = self.0.join(name);
        match DirBuilder::new().mode(0o700).create(&dir) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(failed(&dir, error)),
            _ => Ok(dir),
        }
    }

    fn tries(&self) -> PathBuf {
        self.0.join("try")
    }

    /// Makes a scratch directory for one `run`, removed with the guard or, if plyfs is killed, by the next `run`.
    pub(crate) fn scratch(&self) -> anyhow::Result<Scratch> {
        let parent = self.private("run")?;
        sweep(&parent);
        let (dir, lock) = make_hidden(&parent)?;
        Ok(Scratch { dir, _lock: lock })
    }

    /// Makes a try under this name, or one that is made up.
    pub(crate) fn create(&self, name: Option<&Name>, meta: &Meta) -> anyhow::Result<Held> {
        let tries = self.private("try")?;
        sweep(&tries);
        let (hidden, lock) = make_hidden(&tries)?;
        let result = write_meta(&hidden, meta).map_err(|error| failed(&hidden, error)).and_then(|()| publish(&tries, &hidden, name));
        match result {
            Ok(name) => Ok(Held { dir: tries.join(&name), name, _lock: lock }),
            Err(error) => {
                remove(&hidden)?;
                Err(error)
            }
        }
    }

    /// All there are, by name.
    pub(crate) fn list(&self) -> anyhow::Result<Vec<Entry>> {
        let tries = self.tries();
        let dir = match fs::read_dir(&tries) {
            Ok(dir) => dir,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(&tries, error)),
        };
        let mut entries = Vec::new();
        for entry in dir {
            let name = entry.map_err(|error| failed(&tries, error))?.file_name();
            if let Some(name) = name.to_str().filter(|name| !name.starts_with('.')) {
                entries.push(read(&tries.join(name), name.to_owned()));
            }
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    /// One of them, held against others, with what is known of it.
    pub(crate) fn hold(&self, name: &Name) -> anyhow::Result<(Held, State)> {
        let at = format!("try {}", name.as_str());
        let dir = self.tries().join(name.as_str());
        if !dir.is_dir() {
            return Err(failure(&at, "no such try", "'plyfs try list' shows those there are"));
        }
        let lock = open_lock(&dir).map_err(|error| failed(&dir, error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(failure(&at, "its command runs, or it is being looked at", "wait until that ends"));
            }
            Err(TryLockError::Error(error)) => return Err(failed(&dir, error)),
        }
        let state = described(&dir, read_meta(&dir));
        Ok((Held { name: name.as_str().to_owned(), dir, _lock: lock }, state))
    }
}

impl Held {
    /// The directory of a filesystem's upper and work directory.
    pub(crate) fn layer(&self, number: u32) -> PathBuf {
        self.dir.join(number.to_string())
    }

    /// Says how it is now.
    pub(crate) fn describe(&self, meta: &Meta) -> anyhow::Result<()> {
        write_meta(&self.dir, meta).map_err(|error| failed(&self.dir, error))
    }

    /// Sees that it is on disk, which nothing waited for until now.
    pub(crate) fn sync(&self) -> anyhow::Result<()> {
        let synced =
            root::open_dir(&self.dir).and_then(|dir| tree::reopen_dir(dir.as_fd())).and_then(|dir| plyfs_sys::io::syncfs(dir.as_fd()));
        synced.map_err(|errno| failed(&self.dir, errno))
    }

    /// Gives it its name, or another one if that is taken by now.
    pub(crate) fn rename(&mut self, name: &Name) -> anyhow::Result<()> {
        let tries = self.dir.parent().unwrap_or(Path::new("/")).to_owned();
        self.name = publish(&tries, &self.dir, Some(name))?;
        self.dir = tries.join(&self.name);
        Ok(())
    }

    /// Removes it with all that it holds. It is no longer there under its name from the first moment on.
    pub(crate) fn discard(self) -> anyhow::Result<()> {
        let tries = self.dir.parent().unwrap_or(Path::new("/"));
        let gone = hidden(tries);
        fs::rename(&self.dir, &gone).map_err(|error| failed(&self.dir, error))?;
        remove(&gone)
    }
}

/// A directory for one `run`.
#[derive(Debug)]
pub(crate) struct Scratch {
    pub(crate) dir: PathBuf,
    _lock: File,
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.dir) {
            super::fail::note(format_args!("{error:#}"));
        }
    }
}

fn failed(path: &Path, error: impl std::fmt::Display) -> anyhow::Error {
    failure(format_args!("state directory {}", path.display()), error, "see that you can write there, or take another one with --root DIR")
}

/// The path without links in it, as far as it exists.
fn without_links(path: &Path) -> PathBuf {
    let real = path.ancestors().find_map(|dir| Some((dir, dir.canonicalize().ok()?)));
    match real {
        Some((dir, real)) => {
            path.strip_prefix(dir).ok().filter(|rest| !rest.as_os_str().is_empty()).map_or(real.clone(), |rest| real.join(rest))
        }
        None => path.to_owned(),
    }
}

/// A hidden name that nobody else takes: processes by their number, and times within one.
fn hidden(parent: &Path) -> PathBuf {
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos());
    parent.join(format!(".{}-{nanos}", std::process::id()))
}

fn open_lock(dir: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(dir.join("lock"))
}

/// A hidden directory with its lock held.
fn make_hidden(parent: &Path) -> anyhow::Result<(PathBuf, File)> {
    let dir = hidden(parent);
    let made = || {
        DirBuilder::new().mode(0o700).create(&dir)?;
        let lock = open_lock(&dir)?;
        lock.lock()?;
        Ok(lock)
    };
    made().map(|lock| (dir.clone(), lock)).map_err(|error: io::Error| failed(&dir, error))
}

/// Gives a directory its name if nobody has it.
fn publish(parent: &Path, dir: &Path, name: Option<&Name>) -> anyhow::Result<String> {
    const ATTEMPTS: u32 = 100;
    let fd = root::open_dir(parent).map_err(|errno| failed(parent, errno))?;
    let from = dir.file_name().unwrap_or_default().as_bytes();
    for attempt in 0..ATTEMPTS {
        let chosen = name.cloned().unwrap_or_else(|| Name::made_up(attempt));
        match create::rename(fd.as_fd(), from, fd.as_fd(), chosen.as_str().as_bytes(), RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(chosen.as_str().to_owned()),
            Err(Errno::EXIST) if name.is_none() => {}
            Err(Errno::EXIST) => {
                let name = chosen.as_str();
                return Err(failure(
                    format_args!("try {name}"),
                    "there is one by that name",
                    format_args!("take another name, or remove it with 'plyfs try discard {name}'"),
                ));
            }
            Err(errno) => return Err(failed(parent, errno)),
        }
    }
    Err(failed(parent, "no free name was found"))
}

fn write_meta(dir: &Path, meta: &Meta) -> io::Result<()> {
    let new = dir.join("meta.json.new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(&serde_json::to_vec_pretty(meta)?)?;
    file.sync_all()?;
    fs::rename(&new, dir.join("meta.json"))
}

fn read_meta(dir: &Path) -> Result<Meta, String> {
    let path = dir.join("meta.json");
    let text = fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    // The version first: another one's fields may be other ones.
    let version = serde_json::from_slice::<serde_json::Value>(&text).ok().and_then(|value| value.get("version")?.as_u64());
    if version.is_some_and(|version| version != u64::from(VERSION)) {
        return Err("made by another version of plyfs".to_owned());
    }
    serde_json::from_slice(&text).map_err(|error| format!("{}: {error}", path.display()))
}

/// The state of a try that nobody works on.
fn described(dir: &Path, meta: Result<Meta, String>) -> State {
    match meta {
        Ok(meta) if super::apply::is_under_way(dir) => State::Applying(meta),
        Ok(meta) if meta.exit.is_some() => State::Kept(meta),
        Ok(meta) => State::Crashed(meta),
        Err(why) => State::Damaged(why),
    }
}

fn read(dir: &Path, name: String) -> Entry {
    // A shared lock, which two who look at the same time both get.
    let free = match File::open(dir.join("lock")) {
        Ok(lock) => !matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)),
        Err(_) => true,
    };
    let meta = read_meta(dir);
    let known = meta.as_ref().ok().cloned();
    let state = if free { described(dir, meta) } else { State::Running };
    Entry { name, state, meta: known }
}

/// Removes a directory and all in it, by descriptors: no link in it leads out.
fn remove(dir: &Path) -> anyhow::Result<()> {
    let removed = root::open_dir(dir).and_then(|fd| tree::remove_contents(fd.as_fd()));
    match removed.map_err(io::Error::from).and_then(|()| fs::remove_dir(dir)) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed(dir, error)),
        _ => Ok(()),
    }
}

/// Removes hidden directories that nobody works on. One that cannot be removed is left for the next time.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let dir = entry.path();
        if !entry.file_name().as_bytes().starts_with(b".") || is_locked(&dir) {
            continue;
        }
        if let Err(error) = remove(&dir) {
            tracing::warn!(%error, "litter stays");
        }
    }
}

fn is_locked(dir: &Path) -> bool {
    match File::open(dir.join("lock")) {
        Ok(lock) => lock.try_lock().is_err(),
        // Made a moment ago by a process that lives: its lock is about to come.
        Err(_) => maker(dir.file_name()).is_some_and(|pid| super::record::started(pid).is_some()),
    }
}

fn maker(hidden: Option<&OsStr>) -> Option<u32> {
    hidden?.to_str()?.strip_prefix('.')?.split_once('-')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::at(Some(dir.path().join("state"))).unwrap();
        (dir, store)
    }

    fn meta() -> Meta {
        Meta::new(vec![Text::from(&b"true"[..])], Vec::new())
    }

    fn name(text: &str) -> Name {
        Name::new("try", text).unwrap()
    }

    fn states(store: &Store) -> Vec<(String, &'static str)> {
        let word = |state: &State| match state {
            State::Running => "running",
            State::Kept(_) => "kept",
            State::Applying(_) => "applying",
            State::Crashed(_) => "crashed",
            State::Damaged(_) => "damaged",
        };
        store.list().unwrap().iter().map(|entry| (entry.name.clone(), word(&entry.state))).collect()
    }

    #[test]
    fn a_try_runs_is_kept_or_crashed_and_goes() {
        let (_dir, store) = store();
        assert!(states(&store).is_empty());
        let held = store.create(Some(&name("one")), &meta()).unwrap();
        assert_eq!(states(&store), [("one".to_owned(), "running")]);
        assert!(store.hold(&name("one")).unwrap_err().to_string().contains("its command runs"));
        drop(held);
        assert_eq!(states(&store), [("one".to_owned(), "crashed")]);
        let (held, state) = store.hold(&name("one")).unwrap();
        assert!(matches!(state, State::Crashed(_)));
        held.describe(&Meta { exit: Some(3), ..meta() }).unwrap();
        drop(held);
        assert_eq!(states(&store), [("one".to_owned(), "kept")]);
        let (held, _) = store.hold(&name("one")).unwrap();
        DirBuilder::new().recursive(true).create(held.layer(0).join("upper/a/b")).unwrap();
        held.discard().unwrap();
        assert!(states(&store).is_empty());
        assert!(store.hold(&name("one")).unwrap_err().to_string().ends_with("'plyfs try list' shows those there are"));
        assert_eq!(fs::read_dir(store.tries()).unwrap().count(), 0);
    }

    #[test]
    fn names_are_taken_once_and_made_up_ones_differ() {
        let (_dir, store) = store();
        let _one = store.create(Some(&name("one")), &meta()).unwrap();
        let error = store.create(Some(&name("one")), &meta()).unwrap_err().to_string();
        assert_eq!(error, "try one: there is one by that name; take another name, or remove it with 'plyfs try discard one'");
        let mut first = store.create(None, &meta()).unwrap();
        let second = store.create(None, &meta()).unwrap();
        assert_ne!(first.name, second.name);
        assert!(first.rename(&name("one")).is_err());
        first.rename(&name("other")).unwrap();
        assert!(first.dir.join("meta.json").exists());
        assert_eq!(states(&store).len(), 3);
        assert_eq!(fs::read_dir(store.tries()).unwrap().count(), 3, "a name that was refused left litter");
    }

    #[test]
    fn litter_goes_and_what_is_worked_on_stays() {
        let (_dir, store) = store();
        let kept = store.create(Some(&name("kept")), &meta()).unwrap();
        let litter = store.tries().join(".1999999999-5");
        fs::create_dir_all(litter.join("0/upper/x")).unwrap();
        let (working, lock) = make_hidden(&store.tries()).unwrap();
        sweep(&store.tries());
        assert!(!litter.exists() && working.exists() && kept.dir.exists());
        drop(lock);
        sweep(&store.tries());
        assert!(!working.exists());
    }

    #[test]
    fn a_damaged_or_newer_description_is_listed_and_can_go() {
        let (_dir, store) = store();
        drop(store.create(Some(&name("bad")), &meta()).unwrap());
        for text in ["{", r#"{"version":2}"#, r#"{"version":1}"#] {
            fs::write(store.tries().join("bad/meta.json"), text).unwrap();
            assert_eq!(states(&store), [("bad".to_owned(), "damaged")], "{text}");
        }
        store.hold(&name("bad")).unwrap().0.discard().unwrap();
        assert!(states(&store).is_empty());
    }

    #[test]
    fn a_filesystem_is_known_again_by_what_is_mounted_not_by_its_number() {
        let table = plyfs_sys::mount::parse_mountinfo(
            b"1 0 8:1 / /h rw - ext4 /dev/sda rw\n2 0 8:9 / /h rw - ext4 /dev/sda rw\n3 0 8:1 /x /h rw - ext4 /dev/sda rw\n",
        )
        .unwrap();
        let filesystem = Filesystem::of(1, &table[0]);
        assert!(filesystem.is(&table[0]) && filesystem.is(&table[1]) && !filesystem.is(&table[2]));
        let json = serde_json::to_string(&Meta::new(Vec::new(), vec![filesystem.clone()])).unwrap();
        assert_eq!(serde_json::from_str::<Meta>(&json).unwrap().filesystems, [filesystem]);
    }

    #[test]
    fn a_linked_state_directory_is_known_by_its_real_path() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap().join("real");
        fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, dir.path().join("link")).unwrap();
        for (given, path) in [("link", real.clone()), ("link/a/b", real.join("a/b")), ("real", real.clone())] {
            let store = Store::at(Some(dir.path().join(given))).unwrap();
            assert_eq!(store.path(), path);
            assert!(store.all_state().contains(&path) && store.all_state().len() == 3);
        }
    }

    #[test]
    fn scratch_goes_with_its_guard() {
        let (_dir, store) = store();
        let scratch = store.scratch().unwrap();
        fs::create_dir(scratch.dir.join("upper")).unwrap();
        let dir = scratch.dir.clone();
        drop(scratch);
        assert!(!dir.exists());
    }
}
