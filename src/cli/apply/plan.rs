//! What is to be done so that one filesystem of this machine is as the view: worked out, with nothing changed so far.
//!
//! A *group* is one object of the view with all names of it that are to be made. It becomes the object that it was copied from, changed in place, where that has further names or the same
//! data; else a new one. Directories that are on both sides stay what they are.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use plyfs_overlay::Ino;
use plyfs_overlay::backend::ObjectId;
use plyfs_sys::at::{self, At};
use plyfs_sys::stat::Kind;
use plyfs_sys::{Errno, flags, root};

use super::commit::whole;
use super::journal::{Dress, Stage};
use super::look::{self, Seen, moment, split};
use super::saw::{self, Conflict};
use super::view::{Item, Letter, Shown, View, each_in, same_data};
use crate::cli::text::Text;

/// The inode flags that are carried over: the others are the filesystem's own. The last one is `FS_NODUMP_FL`.
pub(super) const KEPT_FLAGS: u32 = flags::SYNC | flags::IMMUTABLE | flags::APPEND | flags::NOATIME | 0x40;

/// Where something is built: an entry of a stage, and the names below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Spot {
    pub(super) stage: usize,
    pub(super) entry: u32,
    /// Empty, or with a slash before each name.
    pub(super) below: Vec<u8>,
}

/// What is built at a spot.
#[derive(Clone, Debug)]
pub(super) enum Build {
    /// A directory.
    Dir(Ino),
    /// A name of a group.
    Name(Ino),
}

/// Something to be built.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) path: Vec<u8>,
    pub(super) spot: Spot,
    pub(super) build: Build,
    /// What it replaces, of an entry of a stage.
    pub(super) over: Option<Seen>,
}

/// What a group becomes.
#[derive(Clone, Debug)]
pub(super) enum Become {
    /// A new object.
    New,
    /// The object at this path of this machine, where it stays as it is.
    Linked(Vec<u8>),
    /// The object at this path of this machine, changed in place; `fill`: its data, too, from what is built there.
    Changed { at: Vec<u8>, id: Box<look::Id>, fill: Option<Spot> },
}

/// An object that is no directory.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) shown: Shown,
    /// All paths that show it and are to be made or changed.
    pub(super) names: Vec<Vec<u8>>,
    pub(super) becomes: Become,
}

/// A directory that goes as a whole.
#[derive(Debug)]
pub(super) struct Retired {
    pub(super) path: Vec<u8>,
    pub(super) seen: Seen,
    /// Where it is moved to.
    pub(super) spot: Spot,
    /// By the path below it, a directory after what is in it.
    pub(super) inside: Vec<(Vec<u8>, Seen)>,
}

/// All of it.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) stages: Vec<Stage>,
    /// A directory before what is in it.
    pub(super) targets: Vec<Target>,
    pub(super) groups: BTreeMap<Ino, Group>,
    /// What goes and is no directory.
    pub(super) removed: Vec<(Vec<u8>, Seen)>,
    /// Directories that go.
    pub(super) retired: Vec<Retired>,
    /// The places that change, by the directory they are in, and objects that are changed in place: by another mount of the same filesystem they may be changed, too.
    pub(super) touched: BTreeSet<(ObjectId, Vec<u8>)>,
    /// Objects of this machine that get a name in a stage, and with it another time of change.
    pub(super) linked: HashSet<look::Id>,
    /// Directories that stay, one after what is in it, and whether they get their time from the view.
    pub(super) kept: Vec<(Vec<u8>, Seen, Shown, bool)>,
}

/// What the plan is made from.
pub(super) struct Sources<'a, 'u> {
    pub(super) view: &'a mut View<'u>,
    pub(super) host: BorrowedFd<'a>,
    /// Where it is mounted, for messages.
    pub(super) mountpoint: &'a [u8],
    pub(super) saw: &'a saw::Part,
    /// The upper, for the names of hard links that are no changes.
    pub(super) upper: &'a Path,
    /// What nobody can guess, of which the names of stages are made.
    pub(super) token: &'a str,
}

impl Plan {
    /// Works it out. Also returns what is in the way, beside the conflicts of the record.
    pub(super) fn make(from: &mut Sources<'_, '_>, items: &[Item]) -> anyhow::Result<(Self, Vec<Conflict>)> {
        let mut maker = Maker {
            plan: Self::default(),
            spots: HashMap::new(),
            stages: HashMap::new(),
            entries: 0,
            names: HashMap::new(),
            going: HashMap::new(),
            free: HashMap::new(),
            conflicts: Vec::new(),
        };
        for item in items {
            maker.item(from, item)?;
        }
        maker.plan.retired.iter_mut().for_each(|retired| retired.inside.reverse());
        maker.plan.kept.reverse();
        maker.groups(from, items)?;
        Ok((maker.plan, maker.conflicts))
    }
}

struct Maker {
    plan: Plan,
    /// Where directories are built.
    spots: HashMap<Vec<u8>, Spot>,
    /// By the directory that they are in.
    stages: HashMap<Vec<u8>, usize>,
    entries: u32,
    /// The names of objects of this machine that the diff tells of.
    names: HashMap<ObjectId, Vec<Vec<u8>>>,
    /// Directories that go: the place in the plan of the topmost one.
    going: HashMap<Vec<u8>, usize>,
    /// Directories that entries can be made in and removed from.
    free: HashMap<Vec<u8>, ObjectId>,
    conflicts: Vec<Conflict>,
}

/// What shows that changed while it was looked at.
fn moved(path: &[u8]) -> anyhow::Error {
    anyhow::anyhow!("{} changed while it was looked at; run it once more", path.escape_ascii())
}

fn failed(path: &[u8], errno: Errno) -> anyhow::Error {
    anyhow::anyhow!("{}: {errno}", path.escape_ascii())
}

impl Maker {
    fn item(&mut self, from: &mut Sources<'_, '_>, item: &Item) -> anyhow::Result<()> {
        let path = &item.path;
        let here = look::look(from.host, path).map_err(|errno| failed(path, errno))?;
        if let Some(seen) = here.as_ref().filter(|seen| seen.kind() != Kind::Dir) {
            self.names.entry(seen.object()).or_default().push(path.clone());
        }
        if item.letter == Letter::D {
            return self.goes(from, path, here.ok_or_else(|| moved(path))?);
        }
        let shown = from.view.find(path)?.ok_or_else(|| moved(path))?;
        match (&here, shown.stat.kind) {
            (Some(seen), Kind::Dir) if seen.kind() == Kind::Dir => {
                // Where somebody else changed the entries meanwhile, the time is his.
                let timed = from.saw.is_timed(path, seen);
                self.plan.kept.push((path.clone(), seen.clone(), shown, timed));
                return Ok(());
            }
            (_, Kind::Dir) => {
                let spot = self.spot(from, path)?;
                self.spots.insert(path.clone(), spot.clone());
                self.plan.targets.push(Target { path: path.clone(), spot, build: Build::Dir(shown.node), over: here });
            }
            _ => {
                if let Some(seen) = here.filter(|seen| seen.kind() == Kind::Dir) {
                    self.goes(from, path, seen)?;
                }
                let node = shown.node;
                let group = || Group { shown, names: Vec::new(), becomes: Become::New };
                self.plan.groups.entry(node).or_insert_with(group).names.push(path.clone());
            }
        }
        Ok(())
    }

    /// An object goes: alone, or with the directory that it is in.
    fn goes(&mut self, from: &Sources<'_, '_>, path: &[u8], seen: Seen) -> anyhow::Result<()> {
        let (dir, name) = split(path).ok_or_else(|| moved(path))?;
        if let Some(top) = self.going.get(dir).copied() {
            if seen.kind() == Kind::Dir {
                self.going.insert(path.to_vec(), top);
            }
            if let Some(retired) = self.plan.retired.get_mut(top) {
                let below = path.get(retired.path.len()..).unwrap_or_default().to_vec();
                retired.inside.push((below, seen));
            }
        } else if seen.kind() == Kind::Dir {
            let spot = self.entry_in(from, dir)?;
            self.touch(from, dir, name)?;
            self.going.insert(path.to_vec(), self.plan.retired.len());
            self.plan.retired.push(Retired { path: path.to_vec(), seen, spot, inside: Vec::new() });
        } else {
            self.touch(from, dir, name)?;
            self.plan.removed.push((path.to_vec(), seen));
        }
        Ok(())
    }

    /// Notes that an entry of a directory of this machine changes.
    fn touch(&mut self, from: &Sources<'_, '_>, dir: &[u8], name: &[u8]) -> anyhow::Result<()> {
        let id = match self.free.get(dir) {
            Some(id) => *id,
            None => {
                let fd = look::open(from.host, dir).map_err(|errno| failed(dir, errno))?.ok_or_else(|| moved(dir))?;
                let stat = at::stat(At::Fd(fd.as_fd())).map_err(|errno| failed(dir, errno))?;
                if stat.immutable || stat.append_only {
                    return Err(anyhow::anyhow!(
                        "{}: nothing can be changed in it; run 'chattr -i -a' on it, and apply once more",
                        whole(from.mountpoint, dir).escape_ascii()
                    ));
                }
                let id = ObjectId::of(&stat);
                self.free.insert(dir.to_vec(), id);
                id
            }
        };
        self.plan.touched.insert((id, name.to_vec()));
        Ok(())
    }

    /// Where a path is built: in a directory that is built, or in the stage of the directory that it is in.
    fn spot(&mut self, from: &Sources<'_, '_>, path: &[u8]) -> anyhow::Result<Spot> {
        let (dir, name) = split(path).ok_or_else(|| moved(path))?;
        if let Some(spot) = self.spots.get(dir) {
            return Ok(Spot { below: [&spot.below[..], b"/", name].concat(), ..spot.clone() });
        }
        self.touch(from, dir, name)?;
        self.entry_in(from, dir)
    }

    /// An entry of its own in the stage that a path is built in.
    fn spot_beside(&mut self, from: &Sources<'_, '_>, path: &[u8]) -> anyhow::Result<Spot> {
        let (dir, _) = split(path).ok_or_else(|| moved(path))?;
        match self.spots.get(dir).map(|spot| spot.stage) {
            Some(stage) => Ok(self.entry_of(stage)),
            None => self.entry_in(from, dir),
        }
    }

    fn entry_of(&mut self, stage: usize) -> Spot {
        self.entries += 1;
        Spot { stage, entry: self.entries, below: Vec::new() }
    }

    fn entry_in(&mut self, from: &Sources<'_, '_>, dir: &[u8]) -> anyhow::Result<Spot> {
        let stage = match self.stages.get(dir) {
            Some(stage) => *stage,
            None => {
                let seen = look::look(from.host, dir).map_err(|errno| failed(dir, errno))?.ok_or_else(|| moved(dir))?;
                let stage = self.plan.stages.len();
                let name = format!(".plyfs-{}-{stage}", from.token);
                self.plan.stages.push(Stage { dir: Text::from(dir), name, mtime: seen.mtime, back: false });
                self.stages.insert(dir.to_vec(), stage);
                stage
            }
        };
        Ok(self.entry_of(stage))
    }

    /// What becomes of each group, and where its names are built.
    fn groups(&mut self, from: &mut Sources<'_, '_>, items: &[Item]) -> anyhow::Result<()> {
        let wanted = |group: &Group| group.shown.stat.nlink as usize > group.names.len();
        let unchanged = if self.plan.groups.values().any(wanted) { self.unchanged(from, items)? } else { HashMap::new() };
        let mut groups = std::mem::take(&mut self.plan.groups);
        for (node, group) in &mut groups {
            group.becomes = match unchanged.get(node) {
                Some(path) => self.linked(from, path, &group.shown)?,
                None => self.becomes(from, group)?,
            };
            // It is copied from a stage, since it has to be repeated after a kill.
            if let (Become::Changed { fill: Some(spot), .. }, Some(path)) = (&mut group.becomes, group.names.first()) {
                *spot = self.spot_beside(from, path)?;
            }
            if let Become::Changed { .. } = &group.becomes {
                self.plan.touched.insert((group.shown.backing.id, Vec::new()));
            }
            for path in &group.names {
                let here = look::look(from.host, path).map_err(|errno| failed(path, errno))?;
                let kept = match &group.becomes {
                    Become::New => false,
                    Become::Linked(at) => {
                        here.as_ref().map(|seen| &seen.id)
                            == look::look(from.host, at).map_err(|errno| failed(at, errno))?.as_ref().map(|seen| &seen.id)
                    }
                    Become::Changed { id, .. } => here.as_ref().is_some_and(|seen| seen.id == **id),
                };
                // A directory went before, and was moved away.
                let here = here.filter(|seen| seen.kind() != Kind::Dir);
                if !kept {
                    if let Become::Changed { id, .. } = &group.becomes {
                        self.plan.linked.insert((**id).clone());
                    }
                    let spot = self.spot(from, path)?;
                    self.plan.targets.push(Target { path: path.clone(), spot, build: Build::Name(*node), over: here });
                }
            }
        }
        self.plan.groups = groups;
        Ok(())
    }

    /// The object at an unchanged name of a group, which is to be as the view shows it.
    fn linked(&mut self, from: &Sources<'_, '_>, path: &[u8], shown: &Shown) -> anyhow::Result<Become> {
        let there = look::look(from.host, path).map_err(|errno| failed(path, errno))?;
        let same = there.is_some_and(|seen| {
            seen.kind() == shown.stat.kind
                && seen.size() == shown.stat.size
                && (seen.mtime == moment(shown.stat.mtime) || seen.kind() != Kind::File)
        });
        if !same {
            let why = "it is not what the view has under this name, and gets further names".to_owned();
            self.conflicts.push(Conflict { letter: Letter::C, path: path.to_vec(), why });
        }
        Ok(Become::Linked(path.to_vec()))
    }

    fn becomes(&self, from: &Sources<'_, '_>, group: &Group) -> anyhow::Result<Become> {
        let shown = &group.shown;
        let Some(names) = self.names.get(&shown.backing.id) else { return Ok(Become::New) };
        // By one of its own names, if it has any: what is at others may be about to go.
        let Some(at) = group.names.iter().find(|name| names.contains(name)).or(names.first()) else { return Ok(Become::New) };
        let fd = look::open(from.host, at).map_err(|errno| failed(at, errno))?.ok_or_else(|| moved(at))?;
        let seen = look::look_at(fd.as_fd()).map_err(|errno| failed(at, errno))?;
        if seen.object() != shown.backing.id || seen.kind() != shown.stat.kind {
            return Ok(Become::New);
        }
        let same = match seen.kind() {
            Kind::File if seen.size() != shown.stat.size => false,
            Kind::File if !shown.backing.in_upper || shown.stat.size == 0 => true,
            Kind::File => {
                let file = look::open_file(fd.as_fd()).map_err(|errno| failed(at, errno))?;
                from.view.with_file(shown.node, |data| same_data(data, file.as_fd()))?.map_err(|errno| failed(at, errno))?
            }
            Kind::Symlink => seen.target() == from.view.target(shown.node)?,
            Kind::Char | Kind::Block => seen.rdev() == shown.stat.rdev,
            _ => true,
        };
        let has_others = seen.nlink as usize > names.len();
        let fill = (!same && seen.kind() == Kind::File && has_others).then(|| Spot { stage: 0, entry: 0, below: Vec::new() });
        if same || fill.is_some() { Ok(Become::Changed { at: at.clone(), id: Box::new(seen.id), fill }) } else { Ok(Become::New) }
    }

    /// The names of groups that are no changes: all names of such an object are in the upper.
    fn unchanged(&self, from: &mut Sources<'_, '_>, items: &[Item]) -> anyhow::Result<HashMap<Ino, Vec<u8>>> {
        let listed: BTreeSet<&[u8]> = items.iter().map(|item| item.path.as_slice()).collect();
        let mut found = HashMap::new();
        let upper = root::open_dir(from.upper).map_err(|errno| failed(b"upper", errno))?;
        each_in(upper.as_fd(), |path, stat| {
            if stat.kind != Kind::Dir
                && stat.nlink > 1
                && !listed.contains(path)
                && let Some(shown) = from.view.find(path)?
                && self.plan.groups.contains_key(&shown.node)
            {
                found.insert(shown.node, path.to_vec());
            }
            Ok(())
        })?;
        Ok(found)
    }
}

/// Owner, mode, attributes and times of an object of the view.
pub(super) fn dress_of(view: &View<'_>, shown: &Shown) -> anyhow::Result<Dress> {
    let stat = &shown.stat;
    let flags = matches!(stat.kind, Kind::File | Kind::Dir).then(|| view.flags(shown.node)).transpose()?;
    let text = |bytes: Vec<u8>| Text::from(bytes.as_slice());
    Ok(Dress {
        mode: stat.mode,
        uid: stat.uid,
        gid: stat.gid,
        xattrs: view
            .xattrs(shown.node)?
            .into_iter()
            .filter(|(name, _)| !look::is_acl_of_xfs(name))
            .map(|(name, value)| (text(name), text(value)))
            .collect(),
        flags: flags.map(|flags| flags & KEPT_FLAGS),
        atime: Some(moment(stat.atime)),
        mtime: Some(moment(stat.mtime)),
    })
}
