//! Builds what is to be placed, in hidden directories beside its places: nothing shows so far, and all of it is removed again if anything fails.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use plyfs_overlay::Ino;
use plyfs_sys::at::{self, At, SetTime};
use plyfs_sys::stat::{Kind, Time};
use plyfs_sys::{Errno, RenameFlags, beneath, create, dir, io, tree, userns};

use super::commit::{unprotect, whole};
use super::dress::{FORBID, dress, is_done};
use super::journal::{Dress, Known, Stage, Step, Was};
use super::look::{self, split};
use super::plan::{Become, Build, Group, Plan, Spot, Target, dress_of};
use super::view::{Shown, View};
use crate::cli::fail::failure;
use crate::cli::rootless::NOBODY;
use crate::cli::text::Text;

/// What a stage has at the end of its name while it is being removed.
const CLEARED: &str = "-";

/// Opens the directory of a stage. `None`: there is none.
pub(super) fn open(host: BorrowedFd<'_>, stage: &Stage) -> Result<Option<OwnedFd>, Errno> {
    let Some(dir) = look::there(beneath::open_dir(host, stage.dir.as_bytes()))? else { return Ok(None) };
    look::there(beneath::open_dir(dir.as_fd(), stage.name.as_bytes()))
}

/// Removes stages with all that is in them, after their entries were placed.
pub(super) fn clear(host: BorrowedFd<'_>, mountpoint: &[u8], stages: &[Stage]) -> anyhow::Result<()> {
    for stage in stages {
        let cleared = || -> Result<(), Errno> {
            let Some(dir) = look::there(beneath::open_dir(host, stage.dir.as_bytes()))? else { return Ok(()) };
            let name = format!("{}{CLEARED}", stage.name);
            // From here on it is no stage any more: steps that look for it know that they have been done.
            look::there(create::rename(dir.as_fd(), stage.name.as_bytes(), dir.as_fd(), name.as_bytes(), RenameFlags::empty()))?;
            match remove(dir.as_fd(), name.as_bytes()) {
                // What went with its flags on: the view has them no more, and nobody has set them since the command ended.
                Err(Errno::PERM) => {
                    unprotect_below(beneath::open_dir(dir.as_fd(), name.as_bytes())?.as_fd())?;
                    remove(dir.as_fd(), name.as_bytes())
                }
                other => other,
            }
        };
        cleared().map_err(|errno| stays(mountpoint, stage, CLEARED, errno))?;
    }
    Ok(())
}

/// Removes stages as if they had not been there. To be repeated where it was cut off.
pub(super) fn undo(host: BorrowedFd<'_>, mountpoint: &[u8], stages: &[Stage]) -> anyhow::Result<()> {
    for stage in stages {
        let undone = || -> Result<(), Errno> {
            let Some(dir) = look::there(beneath::open_dir(host, stage.dir.as_bytes()))? else { return Ok(()) };
            remove(dir.as_fd(), stage.name.as_bytes())?;
            if stage.back {
                at::set_times(At::Fd(dir.as_fd()), SetTime::Omit, SetTime::To(look::time(stage.mtime)))?;
            }
            Ok(())
        };
        undone().map_err(|errno| stays(mountpoint, stage, "", errno))?;
    }
    Ok(())
}

fn remove(dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    let Some(own) = look::there(at::open_path(At::Name(dir, name)))? else { return Ok(()) };
    tree::remove_contents(own.as_fd())?;
    look::there(create::rmdir(dir, name)).map(drop)
}

/// Takes the flags that forbid changes from all that is in a directory.
fn unprotect_below(own: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut todo = vec![Vec::new()];
    while let Some(path) = todo.pop() {
        let dir = beneath::open_dir(own, &path)?;
        for entry in dir::read_dir(dir.as_fd())? {
            let fd = at::open_path(At::Name(dir.as_fd(), &entry.name))?;
            unprotect(fd.as_fd())?;
            if at::stat(At::Fd(fd.as_fd()))?.kind == Kind::Dir {
                todo.push([&path[..], b"/", &entry.name].concat());
            }
        }
    }
    Ok(())
}

fn stays(mountpoint: &[u8], stage: &Stage, end: &str, errno: Errno) -> anyhow::Error {
    let place = whole(mountpoint, &[stage.dir.as_bytes(), b"/", stage.name.as_bytes(), end.as_bytes()].concat());
    failure(place.escape_ascii(), format_args!("cannot remove it: {errno}"), "see why it cannot be changed, and run this once more")
}

/// Whether only the making of a stage has changed the time of its directory, as far as times tell: then it is put back.
pub(super) fn is_own_time(host: BorrowedFd<'_>, stage: &Stage) -> Result<bool, Errno> {
    // What two clocks of the kernel that stamp files may differ by.
    const TICK: i128 = 20_000_000;
    let nanos = |time: Time| i128::from(time.sec) * 1_000_000_000 + i128::from(time.nsec);
    let Some(own) = open(host, stage)? else { return Ok(false) };
    let dir = beneath::open_dir(host, stage.dir.as_bytes())?;
    let now = at::stat(At::Fd(dir.as_fd()))?.mtime;
    Ok(at::stat(At::Fd(own.as_fd()))?.btime.is_some_and(|made| nanos(now) <= nanos(made) + TICK))
}

/// A filesystem that is being staged.
pub(super) struct Builder<'a, 'u> {
    pub(super) view: &'a View<'u>,
    pub(super) host: BorrowedFd<'a>,
    /// Where the filesystem is mounted, for messages.
    pub(super) mountpoint: &'a [u8],
    pub(super) plan: &'a Plan,
}

/// The spots where groups were made first.
type Made = HashMap<Ino, Spot>;

impl Builder<'_, '_> {
    fn failed(&self, path: &[u8], what: &str, errno: Errno) -> anyhow::Error {
        let prefix = if self.mountpoint == b"/" { &b""[..] } else { self.mountpoint };
        let remedy = match errno {
            Errno::NOSPC | Errno::DQUOT => "make space there; nothing was changed",
            Errno::ROFS => "make its filesystem writable; nothing was changed",
            _ => "see that it can be made there; nothing was changed",
        };
        failure(format_args!("{}{}", prefix.escape_ascii(), path.escape_ascii()), format_args!("cannot {what}: {errno}"), remedy)
    }

    /// Makes the stages and all that is in them; the steps to be taken then.
    pub(super) fn build(&self) -> anyhow::Result<Vec<Step>> {
        for stage in &self.plan.stages {
            let dir = stage.dir.as_bytes();
            let made = beneath::open_dir(self.host, dir).and_then(|dir| create::mkdir(dir.as_fd(), stage.name.as_bytes(), 0o700));
            made.map_err(|errno| self.failed(dir, "make a hidden directory in it", errno))?;
        }
        let mut made = Made::new();
        for target in &self.plan.targets {
            match &target.build {
                Build::Dir(_) => self.make_dir(target)?,
                Build::Name(node) => self.make_name(target, *node, &mut made)?,
            }
        }
        for (node, group) in &self.plan.groups {
            if let Become::Changed { fill: Some(spot), .. } = &group.becomes
                && !made.contains_key(node)
            {
                self.make_object(spot, group)?;
            }
        }
        let mut late = Vec::new();
        for target in self.plan.targets.iter().rev() {
            if let Build::Dir(_) = &target.build {
                self.dress_dir(target, &mut late)?;
            }
        }
        self.steps(&made, late)
    }

    /// The directory that a spot is in, and its name there.
    fn place(&self, spot: &Spot) -> Result<(OwnedFd, Vec<u8>), Errno> {
        let stage = self.plan.stages.get(spot.stage).ok_or(Errno::NOENT)?;
        let dir = open(self.host, stage)?.ok_or(Errno::NOENT)?;
        let entry = spot.entry.to_string().into_bytes();
        match split(&spot.below) {
            None => Ok((dir, entry)),
            Some((below, name)) => {
                let path = [&entry[..], below].concat();
                Ok((beneath::open_dir(dir.as_fd(), &path)?, name.to_vec()))
            }
        }
    }

    fn make_dir(&self, target: &Target) -> anyhow::Result<()> {
        let made = self.place(&target.spot).and_then(|(dir, name)| create::mkdir(dir.as_fd(), &name, 0o700));
        made.map_err(|errno| self.failed(&target.path, "make it", errno))
    }

    /// A name of a group: a link of what was made of it, or of what it becomes; else the first one makes it.
    fn make_name(&self, target: &Target, node: Ino, made: &mut Made) -> anyhow::Result<()> {
        let Some(group) = self.plan.groups.get(&node) else { return Ok(()) };
        let linked = match (made.get(&node), &group.becomes) {
            (Some(spot), _) => Some(self.place(spot).and_then(|(from, name)| self.link(At::Name(from.as_fd(), &name), target))),
            (None, Become::Linked(at) | Become::Changed { at, .. }) => {
                let from = look::open(self.host, at).and_then(|fd| fd.ok_or(Errno::NOENT));
                Some(from.and_then(|from| self.link(At::Fd(from.as_fd()), target)))
            }
            (None, Become::New) => None,
        };
        match linked {
            Some(Ok(())) => return Ok(()),
            // Not from here to there, or not one more: a file that was moved is copied then.
            Some(Err(errno @ (Errno::XDEV | Errno::MLINK | Errno::PERM))) if group.shown.stat.nlink == 1 => {
                tracing::debug!(%errno, path = %target.path.escape_ascii(), "a file that was moved is copied");
            }
            Some(Err(errno)) => return Err(self.failed(&target.path, "link it", errno)),
            None => {}
        }
        self.make_object(&target.spot, group)?;
        made.insert(node, target.spot.clone());
        Ok(())
    }

    fn link(&self, from: At<'_>, target: &Target) -> Result<(), Errno> {
        let (dir, name) = self.place(&target.spot)?;
        create::link(from, dir.as_fd(), &name)
    }

    /// Makes a group's object.
    fn make_object(&self, spot: &Spot, group: &Group) -> anyhow::Result<()> {
        let shown = &group.shown;
        let path = group.names.first().map_or(&b""[..], Vec::as_slice);
        let (dir, name) = self.place(spot).map_err(|errno| self.failed(path, "make it", errno))?;
        let (dir, name) = (dir.as_fd(), name.as_slice());
        let made = match shown.stat.kind {
            Kind::File => create::create(dir, name, 0o600).and_then(|file| self.copy(shown, file.as_fd())),
            Kind::Symlink => create::symlink(dir, name, &self.view.target(shown.node)?),
            kind => create::mknod(dir, name, kind, 0o600, shown.stat.rdev),
        };
        made.map_err(|errno| self.failed(path, "make it", errno))?;
        let want = without_forbidding(dress_of(self.view, shown)?);
        if userns::is_inside() && (want.uid == NOBODY || want.gid == NOBODY) {
            return Err(self.failed(path, "give it the owner that it has, who has no number here", Errno::INVAL));
        }
        let dressed = at::open_path(At::Name(dir, name)).and_then(|fd| dress(fd.as_fd(), &want));
        dressed.map_err(|errno| self.failed(path, "give it its owner, mode and attributes", errno))
    }

    fn copy(&self, shown: &Shown, to: BorrowedFd<'_>) -> Result<(), Errno> {
        let copied = self.view.with_file(shown.node, |from| io::copy_file(from, to, shown.stat.size));
        let copied = copied.map_err(|error| error.errno())??;
        // Else somebody else cut a file of a lower meanwhile.
        if copied == shown.stat.size { Ok(()) } else { Err(Errno::STALE) }
    }

    /// The last look of a directory, after all that is in it. What would keep its owner from moving it comes later.
    fn dress_dir(&self, target: &Target, late: &mut Vec<(Vec<u8>, Dress)>) -> anyhow::Result<()> {
        let Build::Dir(node) = target.build else { return Ok(()) };
        let fail = |errno| self.failed(&target.path, "give it its owner, mode and attributes", errno);
        let (dir, name) = self.place(&target.spot).map_err(fail)?;
        let fd = at::open_path(At::Name(dir.as_fd(), &name)).map_err(fail)?;
        let stat = self.view.stat(node)?;
        let want = dress_of(self.view, &stat)?;
        let mut now = without_forbidding(want.clone());
        now.mode |= 0o700;
        dress(fd.as_fd(), &now).map_err(fail)?;
        if now.mode != want.mode || now.flags != want.flags {
            late.push((target.path.clone(), want));
        }
        Ok(())
    }

    /// What an entry of a stage is.
    fn id_of(&self, spot: &Spot) -> Result<look::Id, Errno> {
        let (dir, name) = self.place(spot)?;
        let fd = at::open_path(At::Name(dir.as_fd(), &name))?;
        look::id_of(fd.as_fd(), &at::stat(At::Fd(fd.as_fd()))?)
    }

    fn steps(&self, made: &Made, late: Vec<(Vec<u8>, Dress)>) -> anyhow::Result<Vec<Step>> {
        let text = |path: &[u8]| Text::from(path);
        let (mut first, mut last) = (Vec::new(), Vec::new());
        let mut ids: HashMap<&[u8], look::Id> = HashMap::new();
        for target in &self.plan.targets {
            let id = self.id_of(&target.spot).map_err(|errno| self.failed(&target.path, "find it where it was staged", errno))?;
            ids.insert(&target.path, id.clone());
            if !target.spot.below.is_empty() {
                continue;
            }
            let is_dir = id.kind() == Kind::Dir;
            // What has to go first, since no rename replaces it.
            let over = target.over.as_ref().map(Known::of);
            let retired = self.plan.retired.iter().any(|retired| retired.path == target.path);
            let later = retired || is_dir && over.is_some();
            let step = Step::Place { stage: target.spot.stage, entry: target.spot.entry, path: text(&target.path), id, over };
            if later { last.push(step) } else { first.push(step) }
        }
        let mut steps = first;
        steps.extend(self.plan.retired.iter().map(|retired| Step::Retire {
            stage: retired.spot.stage,
            entry: retired.spot.entry,
            path: text(&retired.path),
            id: retired.seen.id.clone(),
            inside: retired.inside.iter().map(|(path, seen)| (text(path), Known::of(seen))).collect(),
        }));
        steps.extend(self.plan.removed.iter().map(|(path, seen)| Step::Remove { path: text(path), known: Known::of(seen) }));
        steps.append(&mut last);
        let mut dresses = Vec::new();
        for (node, group) in &self.plan.groups {
            self.change(made.contains_key(node), group, &ids, &mut steps, &mut dresses)?;
        }
        steps.push(Step::Clear);
        steps.append(&mut dresses);
        for (path, dress) in late {
            let id = ids.get(path.as_slice()).cloned().ok_or_else(|| self.failed(&path, "find it", Errno::NOENT))?;
            let was = Was { mode: dress.mode | 0o700, uid: dress.uid, gid: dress.gid, mtime: dress.mtime };
            steps.push(Step::Dress { path: text(&path), id, was, dress });
        }
        for (path, seen, shown, timed) in &self.plan.kept {
            let mut dress = dress_of(self.view, shown)?;
            dress.atime = None;
            dress.mtime = dress.mtime.filter(|_| *timed);
            let is_changed = self.plan.stages.iter().any(|stage| stage.dir.as_bytes() == path)
                || self.plan.removed.iter().any(|(gone, _)| split(gone).is_some_and(|(dir, _)| dir == path));
            let fd = look::open(self.host, path).and_then(|fd| fd.ok_or(Errno::NOENT));
            let done = fd.and_then(|fd| is_done(fd.as_fd(), &dress)).map_err(|errno| self.failed(path, "look at it", errno))?;
            if done && !is_changed {
                continue;
            }
            steps.push(Step::Dress { path: text(path), id: seen.id.clone(), was: Was::of(seen, false), dress });
        }
        Ok(steps)
    }

    /// The steps that change a group's object in place, or give it what would have kept it from being moved.
    fn change(
        &self,
        made: bool,
        group: &Group,
        ids: &HashMap<&[u8], look::Id>,
        steps: &mut Vec<Step>,
        dresses: &mut Vec<Step>,
    ) -> anyhow::Result<()> {
        let Some(path) = group.names.first() else { return Ok(()) };
        let mut dress = dress_of(self.view, &group.shown)?;
        match &group.becomes {
            Become::Linked(_) => {}
            Become::Changed { id, fill, at: from } => {
                // A name that stayed, or the first one that was linked. Where there is none all names are copies.
                let Some(at) = group.names.iter().find(|name| ids.get(name.as_slice()).is_none_or(|now| now == &**id)) else {
                    Self::forbid(made, path, dress, ids, dresses);
                    return Ok(());
                };
                if let Some(spot) = fill {
                    steps.push(Step::Fill { path: Text::from(at.as_slice()), id: (**id).clone(), stage: spot.stage, entry: spot.entry });
                }
                dress.atime = None;
                let seen = look::look(self.host, from).map_err(|errno| self.failed(from, "look at it", errno))?;
                let Some(seen) = seen.filter(|seen| seen.id == **id) else { return Err(self.failed(from, "look at it", Errno::STALE)) };
                let was = Was::of(&seen, fill.is_none());
                dresses.push(Step::Dress { path: Text::from(at.as_slice()), id: (**id).clone(), was, dress });
            }
            Become::New => Self::forbid(made, path, dress, ids, dresses),
        }
        Ok(())
    }

    /// The step that gives what was made the flags that would have kept it from being moved.
    fn forbid(made: bool, path: &[u8], mut dress: Dress, ids: &HashMap<&[u8], look::Id>, dresses: &mut Vec<Step>) {
        if made
            && dress.flags.is_some_and(|flags| flags & FORBID != 0)
            && let Some(id) = ids.get(path)
        {
            dress.atime = None;
            let was = Was { mode: dress.mode, uid: dress.uid, gid: dress.gid, mtime: dress.mtime };
            dresses.push(Step::Dress { path: Text::from(path), id: id.clone(), was, dress });
        }
    }
}

/// The same, but nothing that keeps it from being moved.
fn without_forbidding(mut dress: Dress) -> Dress {
    dress.flags = dress.flags.map(|flags| flags & !FORBID);
    dress
}
