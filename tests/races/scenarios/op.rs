//! What the threads of a scenario do: one call of the union each, and what it answered as text.

use plyfs_scheduled::{Caller, Error, HandleId, Ino, Name, NewNode, OpenFlags, RenameMode, SetAttr, Union};
use plyfs_sys::at::{SetTime, XattrMode};

use crate::lab::{Held, Tree, time};

/// One call. Directories and files that are there from the start are named by their paths, and their inodes were looked up before the threads began: what a name means by
/// the time of the call does not matter, as for the kernel.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Op {
    /// Opens for reading; the handle is for the calls after it.
    Open(&'static str),
    /// Opens for writing.
    OpenWrite(&'static str),
    /// Opens for writing, truncated.
    OpenTruncate(&'static str),
    /// Reads all of the open file.
    Read,
    /// Writes at the start of the open file.
    Write(&'static str),
    /// Closes.
    Close,
    Chmod(&'static str, u32),
    Truncate(&'static str, u64),
    SetXattr(&'static str, &'static str),
    /// Sets the time of modification to now.
    Touch(&'static str),
    Stat(&'static str),
    Create(&'static str, &'static str),
    Mkdir(&'static str, &'static str),
    Link(&'static str, &'static str, &'static str),
    Unlink(&'static str, &'static str),
    Rmdir(&'static str, &'static str),
    Rename(&'static str, &'static str, &'static str, &'static str),
    Exchange(&'static str, &'static str, &'static str, &'static str),
    /// Reads a directory from its start to its end. What comes and goes meanwhile may be there or not (POSIX readdir()), but each of these names once.
    List(&'static str, &'static [&'static str]),
    /// Finds what was under this path by its file handle, and forgets it.
    Reopen(&'static str),
    /// Looks a name up, uses what was found, and forgets it.
    Visit(&'static str, &'static str),
    /// Looks a file up, reads it, and forgets it.
    ReadFound(&'static str, &'static str),
    /// Looks a file up, writes at its start, and forgets it.
    WriteFound(&'static str, &'static str, &'static str),
}

/// What a thread keeps from one call to the next.
#[derive(Default)]
pub(crate) struct Mine {
    handle: Option<HandleId>,
}

const ROOT: Caller = Caller { uid: 0, gid: 0, pid: 1 };

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn said(answer: Result<String, Error>) -> String {
    answer.unwrap_or_else(|error| format!("{:?}", error.errno()))
}

impl Op {
    /// Runs it.
    pub(crate) fn run(self, union: &Union<Tree>, held: &Held, mine: &mut Mine) -> String {
        said(self.call(union, held, mine))
    }

    fn call(self, union: &Union<Tree>, held: &Held, mine: &mut Mine) -> Result<String, Error> {
        let done = || "ok".to_owned();
        let set = |path: &str, set: SetAttr| union.setattr(&ROOT, held.ino(path), None, &set).map(|_| done());
        let mut open = |path: &str, flags: OpenFlags| {
            mine.handle = Some(union.open(&ROOT, held.ino(path), flags)?);
            Ok(done())
        };
        match self {
            Self::Open(path) => open(path, OpenFlags { read: true, ..OpenFlags::default() }),
            Self::OpenWrite(path) => open(path, OpenFlags { write: true, ..OpenFlags::default() }),
            Self::OpenTruncate(path) => open(path, OpenFlags { write: true, truncate: true, ..OpenFlags::default() }),
            Self::Read => {
                let mut data = [0; 64];
                let len = union.read(mine.handle.ok_or(Error::BadHandle)?, 0, &mut data)?;
                Ok(data[..len].escape_ascii().to_string())
            }
            Self::Write(data) => {
                let written = union.write(&ROOT, mine.handle.ok_or(Error::BadHandle)?, 0, data.as_bytes(), false)?;
                Ok(written.to_string())
            }
            Self::Close => {
                union.release(mine.handle.take().ok_or(Error::BadHandle)?);
                Ok(done())
            }
            Self::Chmod(path, mode) => set(path, SetAttr { mode: Some(mode), ..SetAttr::default() }),
            Self::Truncate(path, size) => set(path, SetAttr { size: Some(size), ..SetAttr::default() }),
            Self::Touch(path) => set(path, SetAttr { mtime: SetTime::Now, ..SetAttr::default() }),
            Self::SetXattr(path, value) => {
                union.setxattr(&ROOT, held.ino(path), b"user.x", value.as_bytes(), XattrMode::Any).map(|()| done())
            }
            Self::Stat(path) => union.getattr(held.ino(path)).map(|attr| {
                let stat = attr.stat;
                format!("{:o} size {} mtime {}", stat.mode, stat.size, time(&stat))
            }),
            Self::Create(dir, new) => {
                let flags = OpenFlags { write: true, ..OpenFlags::default() };
                let (attr, handle) = union.create(&ROOT, held.ino(dir), &name(new), 0o644, 0, true, flags)?;
                union.release(handle);
                union.forget(attr.node, 1);
                Ok(done())
            }
            Self::Mkdir(dir, new) => {
                let attr = union.make(&ROOT, held.ino(dir), &name(new), NewNode::Dir, 0o755, 0)?;
                union.forget(attr.node, 1);
                Ok(done())
            }
            Self::Link(path, dir, new) => {
                let attr = union.link(held.ino(path), held.ino(dir), &name(new))?;
                union.forget(attr.node, 1);
                Ok(done())
            }
            Self::Unlink(dir, old) => union.unlink(held.ino(dir), &name(old)).map(|()| done()),
            Self::Rmdir(dir, old) => union.rmdir(held.ino(dir), &name(old)).map(|()| done()),
            Self::Rename(dir, old, to, new) => rename(union, [held.ino(dir), held.ino(to)], [old, new], RenameMode::Replace),
            Self::Exchange(dir, old, to, new) => rename(union, [held.ino(dir), held.ino(to)], [old, new], RenameMode::Exchange),
            Self::List(dir, staying) => {
                let names = list(union, held.ino(dir))?;
                for name in &names {
                    assert_eq!(names.iter().filter(|other| *other == name).count(), 1, "{dir}: {names:?}");
                }
                Ok(staying.iter().map(|name| format!("{name} {}", names.iter().any(|other| other == name))).collect::<Vec<_>>().join(" "))
            }
            Self::Reopen(path) => {
                let attr = union.decode(held.handle(path))?;
                union.forget(attr.node, 1);
                Ok(format!("{:?}", attr.stat.kind))
            }
            Self::Visit(dir, there) => visit(union, held.ino(dir), &name(there)),
            Self::ReadFound(dir, file) => on_found(union, held.ino(dir), &name(file), false, |handle| {
                let mut data = [0; 64];
                let len = union.read(handle, 0, &mut data)?;
                Ok(data[..len].escape_ascii().to_string())
            }),
            Self::WriteFound(dir, file, data) => on_found(union, held.ino(dir), &name(file), true, |handle| {
                union.write(&ROOT, handle, 0, data.as_bytes(), false).map(|written| written.to_string())
            }),
        }
    }
}

fn rename(union: &Union<Tree>, dirs: [Ino; 2], names: [&str; 2], mode: RenameMode) -> Result<String, Error> {
    union.rename(dirs[0], &name(names[0]), dirs[1], &name(names[1]), mode).map(|()| "ok".to_owned())
}

/// The names of a directory, without the dots.
pub(crate) fn list(union: &Union<Tree>, dir: Ino) -> Result<Vec<String>, Error> {
    let handle = union.opendir(dir)?;
    let mut names = Vec::new();
    let read = union.readdir(handle, 0, &mut |entry| {
        names.push(entry.name.escape_ascii().to_string());
        true
    });
    union.release(handle);
    read?;
    names.retain(|name| name != "." && name != "..");
    Ok(names)
}

/// Looks a file up, opens it, uses it, closes and forgets it.
fn on_found(
    union: &Union<Tree>,
    dir: Ino,
    name: &Name,
    write: bool,
    work: impl FnOnce(HandleId) -> Result<String, Error>,
) -> Result<String, Error> {
    let attr = union.lookup(dir, name)?.ok_or(Error::NotFound)?;
    let said = union.open(&ROOT, attr.node, OpenFlags { read: true, write, ..OpenFlags::default() }).and_then(|handle| {
        let said = work(handle);
        union.release(handle);
        said
    });
    union.forget(attr.node, 1);
    said
}

/// What was looked up may be used until it is forgotten, whatever others forget.
fn visit(union: &Union<Tree>, dir: Ino, name: &Name) -> Result<String, Error> {
    let Some(attr) = union.lookup(dir, name)? else { return Ok("absent".to_owned()) };
    let again = union.getattr(attr.node).expect("it was looked up and is not forgotten");
    assert_eq!((again.ino, again.node), (attr.ino, attr.node), "another object has the number");
    union.forget(attr.node, 1);
    Ok(format!("{:?}", attr.stat.kind))
}
