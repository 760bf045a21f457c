//! Carries the steps of a journal out. Each sees by itself whether it has been done before, so that all of them can be repeated after a kill.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use plyfs_sys::at::{self, At};
use plyfs_sys::stat::Kind;
use plyfs_sys::{Errno, OFlags, RenameFlags, beneath, create, dir, flags, io, tree};

use super::dress::{FORBID, dress, is_foreign};
use super::journal::{Known, Part, Step};
use super::look::{self, Forbids, Id, split};
use super::stage;
use crate::cli::fail::failure;
use crate::cli::text::Text;

/// One filesystem of this machine.
pub(super) struct Commit<'a> {
    pub(super) host: BorrowedFd<'a>,
    /// Where it is mounted, for messages.
    pub(super) mountpoint: &'a [u8],
    pub(super) part: &'a Part,
    /// The name of the try.
    pub(super) name: &'a str,
}

/// How a step ended that did not fail.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Done {
    /// It is as it is to be.
    Yes,
    /// Somebody else changed the object since, and it stays as it is.
    Left,
}

/// Why a step cannot be taken.
enum Stop {
    Failed(Errno),
    /// Something is there that the command did not see.
    Changed,
}

impl From<Errno> for Stop {
    fn from(errno: Errno) -> Self {
        Self::Failed(errno)
    }
}

impl Commit<'_> {
    /// Takes all steps. The paths that somebody else changed meanwhile, and that stay as they are.
    pub(super) fn run(&self) -> anyhow::Result<Vec<Vec<u8>>> {
        let mut left = Vec::new();
        for step in &self.part.steps {
            let (path, done) = match step {
                Step::Place { stage, entry, path, id, over } => (path, self.place(*stage, *entry, path.as_bytes(), id, over.as_ref())),
                Step::Remove { path, known } => (path, self.remove(path.as_bytes(), known)),
                Step::Fill { path, id, stage, entry } => (path, self.fill(path.as_bytes(), id, *stage, *entry)),
                Step::Retire { stage, entry, path, id, inside } => (path, self.retire(*stage, *entry, path.as_bytes(), id, inside)),
                Step::Dress { path, id, was, dress: want } => (
                    path,
                    self.with(path.as_bytes(), id, |fd| {
                        if is_foreign(fd, was, want)? {
                            return Ok(Done::Left);
                        }
                        dress(fd, want).map(|()| Done::Yes)
                    }),
                ),
                Step::Clear => {
                    self.sync()?;
                    stage::clear(self.host, self.mountpoint, &self.part.stages)?;
                    continue;
                }
            };
            match done {
                Ok(Done::Yes) => {}
                Ok(Done::Left) => left.push(self.whole(path.as_bytes())),
                Err(stop) => return Err(self.stopped(path.as_bytes(), &stop)),
            }
        }
        self.sync()?;
        Ok(left)
    }

    /// Everything so far is on the disk.
    fn sync(&self) -> anyhow::Result<()> {
        let synced = tree::reopen_dir(self.host).and_then(|dir| io::syncfs(dir.as_fd()));
        synced.map_err(|errno| self.stopped(b"", &Stop::Failed(errno)))
    }

    fn whole(&self, path: &[u8]) -> Vec<u8> {
        whole(self.mountpoint, path)
    }

    fn stopped(&self, path: &[u8], stop: &Stop) -> anyhow::Error {
        let again = format!("then run 'plyfs try apply {}' again, which goes on", self.name);
        let at = format!("try apply {}: {}", self.name, self.whole(path).escape_ascii());
        match stop {
            Stop::Changed => {
                failure(at, "somebody else changed it while the changes were being applied", format_args!("move that away, {again}"))
            }
            Stop::Failed(errno) => {
                let remedy = match *errno {
                    Errno::NOSPC | Errno::DQUOT => "make space there",
                    Errno::ROFS => "make its filesystem writable",
                    Errno::NOTEMPTY | Errno::EXIST => "move away what somebody else put into it",
                    Errno::BUSY => "unmount what is mounted there",
                    Errno::TXTBSY => "end the program that runs from it",
                    Errno::LOOP | Errno::NOTDIR => "put back the directory that somebody else replaced on the way to it",
                    Errno::XDEV => "unmount what was mounted on the way to it",
                    _ => "see that it can be changed",
                };
                failure(at, errno, format_args!("{remedy}, {again}"))
            }
        }
    }

    fn parent<'p>(&self, path: &'p [u8]) -> Result<(OwnedFd, &'p [u8]), Errno> {
        let (dir, name) = split(path).ok_or(Errno::INVAL)?;
        Ok((beneath::open_dir(self.host, dir)?, name))
    }

    fn place(&self, stage: usize, entry: u32, path: &[u8], id: &Id, over: Option<&Known>) -> Result<Done, Stop> {
        let (dir, name) = self.parent(path)?;
        let dir = dir.as_fd();
        let now = known(dir, name)?;
        if now.as_ref().is_some_and(|now| now.id == *id) {
            return Ok(Done::Yes);
        }
        let entry = entry.to_string().into_bytes();
        let own = match self.part.stages.get(stage) {
            Some(stage) => stage::open(self.host, stage)?,
            None => None,
        };
        let staged = match &own {
            Some(own) => known(own.as_fd(), &entry)?,
            None => None,
        };
        let (Some(own), Some(staged)) = (own, staged) else {
            // It was moved from there before, and somebody else has removed or replaced it since.
            return Ok(Done::Left);
        };
        if staged.id != *id {
            return Err(Stop::Changed);
        }
        let by_rename = |over: &Known| id.kind() != Kind::Dir && over.id.kind() != Kind::Dir;
        match (&now, over) {
            (None, None) => {}
            (Some(now), Some(over)) if now.is_still(over) && by_rename(over) => {
                unprotected(dir, name, || create::rename(own.as_fd(), &entry, dir, name, RenameFlags::empty()))?;
                return arrived(dir, name, id);
            }
            // What no rename replaces goes before: a kill in between leaves nothing there.
            (Some(now), Some(over)) if now.is_still(over) => take(dir, name, &over.id)?,
            (None, Some(over)) if !by_rename(over) => {}
            _ => return Err(Stop::Changed),
        }
        match create::rename(own.as_fd(), &entry, dir, name, RenameFlags::NOREPLACE) {
            // A filesystem that does not know the flag: nothing was there a moment ago.
            Err(Errno::INVAL) if known(dir, name)?.is_none() => create::rename(own.as_fd(), &entry, dir, name, RenameFlags::empty())?,
            Err(Errno::EXIST) => return Err(Stop::Changed),
            other => other?,
        }
        arrived(dir, name, id)
    }

    /// Moves a directory away, looks whether all in it is what it was, and moves it back if not.
    fn retire(&self, stage: usize, entry: u32, path: &[u8], id: &Id, inside: &[(Text, Known)]) -> Result<Done, Stop> {
        let (dir, name) = self.parent(path)?;
        let dir = dir.as_fd();
        let own = match self.part.stages.get(stage) {
            Some(stage) => stage::open(self.host, stage)?,
            None => None,
        };
        // Stages go after all of them were used.
        let Some(own) = own else { return Ok(Done::Yes) };
        let entry = entry.to_string().into_bytes();
        match (known(dir, name)?, known(own.as_fd(), &entry)?) {
            (_, Some(moved)) if moved.id == *id => {}
            (Some(now), None) if now.id == *id => {
                let moved = || create::rename(dir, name, own.as_fd(), &entry, RenameFlags::NOREPLACE);
                match unprotected(dir, name, moved) {
                    // It cannot be moved as a whole, as in a lower of another union, or by somebody who may not write into it.
                    Err(Errno::XDEV | Errno::ACCESS | Errno::PERM | Errno::INVAL) => return self.empty(path, id, inside),
                    other => other?,
                }
            }
            (None, None) => return Ok(Done::Yes),
            _ => return Err(Stop::Changed),
        }
        let there = beneath::open_dir(own.as_fd(), &entry)?;
        if holds(there.as_fd(), inside)? {
            return Ok(Done::Yes);
        }
        create::rename(own.as_fd(), &entry, dir, name, RenameFlags::NOREPLACE)?;
        Err(Stop::Changed)
    }

    /// Removes a directory where it is.
    fn empty(&self, path: &[u8], id: &Id, inside: &[(Text, Known)]) -> Result<Done, Stop> {
        let dirs = inside.iter().filter(|(_, known)| known.id.kind() == Kind::Dir && known.forbids.any());
        for (below, known) in dirs {
            self.with(&[path, below.as_bytes()].concat(), &known.id, |fd| unprotect(fd).map(|()| Done::Yes))?;
        }
        for (below, known) in inside {
            self.remove(&[path, below.as_bytes()].concat(), known)?;
        }
        let (dir, name) = self.parent(path)?;
        take(dir.as_fd(), name, id)?;
        Ok(Done::Yes)
    }

    fn remove(&self, path: &[u8], was: &Known) -> Result<Done, Stop> {
        let (dir, name) = match look::there(self.parent(path))? {
            Some(place) => place,
            None => return Ok(Done::Yes),
        };
        match known(dir.as_fd(), name)? {
            None => Ok(Done::Yes),
            Some(now) if now.is_still(was) => {
                take(dir.as_fd(), name, &was.id)?;
                Ok(Done::Yes)
            }
            Some(_) => Err(Stop::Changed),
        }
    }

    /// Does something to an object, if it is still that one.
    fn with(&self, path: &[u8], id: &Id, call: impl FnOnce(BorrowedFd<'_>) -> Result<Done, Errno>) -> Result<Done, Stop> {
        let Some(fd) = look::open(self.host, path)? else { return Ok(Done::Left) };
        if look::id_of(fd.as_fd(), &at::stat(At::Fd(fd.as_fd()))?)? != *id {
            return Ok(Done::Left);
        }
        Ok(call(fd.as_fd())?)
    }

    fn fill(&self, path: &[u8], id: &Id, stage: usize, entry: u32) -> Result<Done, Stop> {
        let own = match self.part.stages.get(stage) {
            Some(stage) => stage::open(self.host, stage)?,
            None => None,
        };
        // Stages go after all of them were used.
        let Some(own) = own else { return Ok(Done::Yes) };
        let Some(from) = look::there(at::open(At::Name(own.as_fd(), entry.to_string().as_bytes()), OFlags::RDONLY))? else {
            return Ok(Done::Yes);
        };
        let size = at::stat(At::Fd(from.as_fd()))?.size;
        self.with(path, id, |fd| {
            let to = protected(fd, || at::open(At::Fd(fd), OFlags::RDWR))?;
            io::truncate(to.as_fd(), 0)?;
            if io::copy_file(from.as_fd(), to.as_fd(), size)? != size {
                return Err(Errno::IO);
            }
            io::fsync(to.as_fd()).map(|()| Done::Yes)
        })
    }
}

/// The path in the tree of all filesystems.
pub(super) fn whole(mountpoint: &[u8], path: &[u8]) -> Vec<u8> {
    match (mountpoint, path) {
        (b"/", b"") => b"/".to_vec(),
        (b"/", path) => path.to_vec(),
        (mountpoint, path) => [mountpoint, path].concat(),
    }
}

/// That a rename has brought what it was to bring: in a directory of somebody else's he may have exchanged it.
fn arrived(dir: BorrowedFd<'_>, name: &[u8], id: &Id) -> Result<Done, Stop> {
    if known(dir, name)?.is_some_and(|now| now.id == *id) { Ok(Done::Yes) } else { Err(Stop::Changed) }
}

/// Whether a directory holds exactly these.
fn holds(dir: BorrowedFd<'_>, inside: &[(Text, Known)]) -> Result<bool, Errno> {
    let mut expected: HashMap<&[u8], &Known> = inside.iter().map(|(path, known)| (path.as_bytes(), known)).collect();
    let mut todo = vec![Vec::new()];
    while let Some(path) = todo.pop() {
        let opened = beneath::open_dir(dir, &path)?;
        for entry in dir::read_dir(opened.as_fd())? {
            let path = [&path[..], b"/", &entry.name].concat();
            let now = known(opened.as_fd(), &entry.name)?;
            let was = expected.remove(path.as_slice());
            let Some(now) = now.filter(|now| was.is_some_and(|was| now.is_still(was))) else { return Ok(false) };
            if now.id.kind() == Kind::Dir {
                todo.push(path);
            }
        }
    }
    // What others have removed is gone, as it is to be.
    Ok(true)
}

fn known(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Option<Known>, Errno> {
    match look::there(at::open_path(At::Name(dir, name)))? {
        Some(fd) => Ok(Some(Known::of(&look::look_at(fd.as_fd())?))),
        None => Ok(None),
    }
}

fn take(dir: BorrowedFd<'_>, name: &[u8], id: &Id) -> Result<(), Errno> {
    let removed = unprotected(dir, name, || match id.kind() {
        Kind::Dir => create::rmdir(dir, name),
        _ => create::unlink(dir, name),
    });
    look::there(removed).map(drop)
}

/// Calls; once more where only a flag of the object forbade it, which is taken from it: the view has it no more.
fn unprotected(dir: BorrowedFd<'_>, name: &[u8], call: impl Fn() -> Result<(), Errno>) -> Result<(), Errno> {
    match call() {
        Err(Errno::PERM) => {
            let fd = at::open_path(At::Name(dir, name))?;
            protected(fd.as_fd(), call)
        }
        other => other,
    }
}

fn protected<R>(fd: BorrowedFd<'_>, call: impl Fn() -> Result<R, Errno>) -> Result<R, Errno> {
    let stat = at::stat(At::Fd(fd))?;
    match call() {
        Err(Errno::PERM) if Forbids::of(&stat).any() => {
            unprotect(fd)?;
            call()
        }
        other => other,
    }
}

/// Takes the flags from an object that forbid changes of it.
pub(super) fn unprotect(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let stat = at::stat(At::Fd(fd))?;
    if !Forbids::of(&stat).any() {
        return Ok(());
    }
    let how = if stat.kind == Kind::Dir { OFlags::RDONLY | OFlags::DIRECTORY } else { OFlags::RDONLY };
    let file = at::open(At::Fd(fd), how)?;
    flags::set_flags(file.as_fd(), flags::flags(file.as_fd())? & !FORBID)
}
