//! Applying a try: its changes are carried out on this machine, if what they replace is still what its command saw.
//!
//! In three phases. *Check*: every path that the command changed is compared with what was written down when it ended; any difference is told, and nothing happens. *Stage*: all that is new is built in
//! hidden directories beside its places; if that fails they are removed, and nothing has happened. *Commit*: steps that are on the disk before the first of them is taken are carried out; after a kill
//! they are carried out by the next apply.

mod commit;
mod dress;
mod journal;
mod look;
mod plan;
mod saw;
mod stage;
mod view;

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use plyfs_overlay::{Behaviour, DirTree, Union};
use plyfs_sys::mount::{self, MountInfo};
use plyfs_sys::{io, limits, root, tree};

use self::commit::{Commit, whole};
use self::journal::{Journal, Phase};
use self::plan::{Plan, Sources};
use self::saw::{Conflict, Saw};
use self::stage::Builder;
use self::view::{Item, Letter, View};
use super::fail::{failure, note};
use super::layers::{self, Pair};
use super::store::{Filesystem, Held, Meta};
use super::{daemon, mounts};

pub(crate) use self::journal::is_there as is_under_way;
pub(crate) use self::saw::{Recorder, is_synced};

/// How an apply ended that did not fail.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The changes are this machine's, and the try is gone.
    Applied,
    /// Some paths are not as the command saw them; nothing was changed.
    Conflicts,
}

/// A filesystem of this machine.
struct Host {
    filesystem: Filesystem,
    root: OwnedFd,
}

impl Host {
    fn open(held: &Held, filesystem: &Filesystem, table: &[MountInfo]) -> anyhow::Result<Self> {
        let place = filesystem.mountpoint.as_path();
        let at = || format!("try apply {}", held.name);
        let Some(mount) = mounts::at(table, place).filter(|mount| filesystem.is(mount)) else {
            return Err(failure(
                at(),
                format_args!("{} is not mounted as it was", place.display()),
                "mount it there as it was, and try again",
            ));
        };
        let opened = root::open_dir(place).and_then(|root| mount::mount_id_of(root.as_fd()).map(|id| (root, id)));
        let (root, id) = opened.map_err(|errno| failure(at(), format_args!("{}: {errno}", place.display()), "see that it can be read"))?;
        if mount.is_read_only() {
            return Err(failure(at(), format_args!("{} is mounted read-only", place.display()), "make it writable, and try again"));
        }
        if id != mount.id {
            return Err(failure(at(), format_args!("{} was mounted over meanwhile", place.display()), "unmount that"));
        }
        Ok(Self { filesystem: filesystem.clone(), root })
    }

    fn mountpoint(&self) -> &[u8] {
        self.filesystem.mountpoint.as_bytes()
    }

    fn sync(&self) -> anyhow::Result<()> {
        let synced = tree::reopen_dir(self.root.as_fd()).and_then(|dir| io::syncfs(dir.as_fd()));
        synced.map_err(|errno| failure(self.filesystem.mountpoint.as_path().display(), errno, "see the kernel's log"))
    }
}

/// Applies a try, or goes on with what was begun.
pub(crate) fn apply(held: Held, meta: &Meta) -> anyhow::Result<Outcome> {
    // Modes are given as they are in the view.
    limits::umask(0);
    own_store(&held)?;
    let table = mounts::table()?;
    let host = |number: u32| {
        let filesystem = meta.filesystems.iter().find(|filesystem| filesystem.number == number);
        let missing = || failure(format_args!("try {}", held.name), "its description does not fit what its command saw", "discard it");
        filesystem.ok_or_else(missing).and_then(|filesystem| Host::open(&held, filesystem, &table))
    };
    match Journal::read(&held.dir)? {
        Some(journal) if journal.phase == Phase::Commit => {
            let hosts = journal.parts.iter().map(|part| host(part.number)).collect::<anyhow::Result<Vec<_>>>()?;
            return commit(held, &hosts, &journal);
        }
        Some(journal) => undo_stages(&held, journal, &host)?,
        None => {}
    }
    let saw = Saw::read(&held)?;
    let hosts = saw.numbers().map(host).collect::<anyhow::Result<Vec<_>>>()?;
    let mut unions = Vec::new();
    for host in &hosts {
        unions.push(union_of(&held, host)?);
    }
    let mut conflicts = Vec::new();
    let mut plans = Vec::new();
    let token = token();
    for (host, union) in hosts.iter().zip(&unions) {
        let Some(part) = saw.part(host.filesystem.number) else { continue };
        let mut view = View::new(union);
        let mut items = view.items(host.root.as_fd())?;
        let listed: HashSet<Vec<u8>> = items.iter().map(|item| item.path.clone()).collect();
        for item in part.quiet().filter(|item| !listed.contains(&item.path)) {
            // Of what is gone, on either side, the record tells.
            if view.find(&item.path)?.is_some() && look::open(host.root.as_fd(), &item.path).is_ok_and(|found| found.is_some()) {
                items.push(item);
            }
        }
        items.sort();
        let found = part.conflicts(host.root.as_fd(), &items, &HashSet::new());
        if found.is_empty() {
            let upper = Pair::within(&held.layer(host.filesystem.number)).upper;
            let token = format!("{token}-{}", host.filesystem.number);
            let mut from = Sources {
                view: &mut view,
                host: host.root.as_fd(),
                mountpoint: host.mountpoint(),
                saw: part,
                upper: &upper,
                token: &token,
            };
            let (plan, found) = Plan::make(&mut from, &items)?;
            conflicts.extend(told(host, found));
            plans.push((plan, view, items));
        } else {
            conflicts.extend(told(host, found));
        }
    }
    if conflicts.is_empty() {
        conflicts = twice(&hosts, &plans);
    }
    if !conflicts.is_empty() {
        return Ok(refused(&held, &conflicts));
    }

    // Staged from here on: whatever fails, that is undone.
    let part = |host: &Host, plan: &Plan, steps| journal::Part {
        number: host.filesystem.number,
        stages: plan.stages.clone(),
        linked: plan.linked.clone(),
        steps,
    };
    let stages = hosts.iter().zip(&plans).map(|(host, (plan, ..))| part(host, plan, Vec::new())).collect();
    let staging = Journal::new(Phase::Stage, stages);
    staging.write(&held.dir)?;
    let staged = || -> anyhow::Result<Result<Journal, Vec<Conflict>>> {
        let mut parts = Vec::new();
        let mut conflicts = Vec::new();
        for (host, (plan, view, items)) in hosts.iter().zip(&plans) {
            let builder = Builder { view, host: host.root.as_fd(), mountpoint: host.mountpoint(), plan };
            parts.push(part(host, plan, builder.build()?));
            host.sync()?;
            // Once more: it took a while.
            let found =
                saw.part(host.filesystem.number).map(|part| part.conflicts(host.root.as_fd(), items, &plan.linked)).unwrap_or_default();
            conflicts.extend(told(host, found));
        }
        Ok(if conflicts.is_empty() { Ok(Journal::new(Phase::Commit, parts)) } else { Err(conflicts) })
    };
    let journal = match staged() {
        Ok(Ok(journal)) => journal,
        Ok(Err(conflicts)) => {
            undo_stages(&held, staging, &host)?;
            return Ok(refused(&held, &conflicts));
        }
        Err(error) => {
            undo_stages(&held, staging, &host)?;
            return Err(error);
        }
    };
    // The upper is the try's no more.
    drop(plans);
    drop(unions);
    journal.write(&held.dir)?;
    commit(held, &hosts, &journal)
}

/// What several unions would change, since one filesystem is mounted more than once.
fn twice(hosts: &[Host], plans: &[(Plan, View<'_>, Vec<Item>)]) -> Vec<Conflict> {
    let mut known = HashSet::new();
    let mut found = Vec::new();
    for (host, (plan, ..)) in hosts.iter().zip(plans) {
        let again: Vec<_> = plan.touched.iter().filter(|place| known.contains(place)).collect();
        if let Some((_, name)) = again.first() {
            let why = format!("another mount of the same filesystem has other changes at the same place ({})", name.escape_ascii());
            found.push(Conflict { letter: Letter::C, path: host.mountpoint().to_vec(), why });
        }
        known.extend(&plan.touched);
    }
    found
}

/// Whether some of the changes of a try have been carried out, and others have not.
pub(crate) fn is_half_done(held: &Held) -> anyhow::Result<bool> {
    Ok(Journal::read(&held.dir)?.is_some_and(|journal| journal.phase == Phase::Commit))
}

/// Takes back what a try has staged on this machine. `true`: it can be discarded; `false`: its changes are half applied.
pub(crate) fn take_back(held: &Held, meta: &Meta) -> anyhow::Result<bool> {
    let table = mounts::table()?;
    match Journal::read(&held.dir)? {
        None => Ok(true),
        Some(journal) if journal.phase == Phase::Commit => Ok(false),
        Some(journal) => {
            undo_stages(held, journal, &|number| {
                let filesystem = meta.filesystems.iter().find(|filesystem| filesystem.number == number);
                let missing = || failure(format_args!("try {}", held.name), "its description is damaged", "discard it with --force");
                filesystem.ok_or_else(missing).and_then(|filesystem| Host::open(held, filesystem, &table))
            })?;
            Ok(true)
        }
    }
}

fn undo_stages(held: &Held, mut journal: Journal, host: &dyn Fn(u32) -> anyhow::Result<Host>) -> anyhow::Result<()> {
    let hosts = journal.parts.iter().map(|part| host(part.number)).collect::<anyhow::Result<Vec<_>>>()?;
    if journal.phase == Phase::Stage {
        // Once and for all: when a stage is gone nobody can tell.
        for (host, part) in hosts.iter().zip(&mut journal.parts) {
            for stage in &mut part.stages {
                stage.back = stage::is_own_time(host.root.as_fd(), stage).unwrap_or(false);
            }
        }
        journal.phase = Phase::Undo;
        journal.write(&held.dir)?;
    }
    for (host, part) in hosts.iter().zip(&journal.parts) {
        stage::undo(host.root.as_fd(), host.mountpoint(), &part.stages)?;
        Saw::touched(held, part.number, host.root.as_fd(), &part.linked)?;
    }
    Journal::remove(&held.dir)
}

fn commit(held: Held, hosts: &[Host], journal: &Journal) -> anyhow::Result<Outcome> {
    let mut left = Vec::new();
    for (host, part) in hosts.iter().zip(&journal.parts) {
        let commit = Commit { host: host.root.as_fd(), mountpoint: host.mountpoint(), part, name: &held.name };
        left.extend(commit.run()?);
    }
    for path in left {
        note(format_args!("try apply {}: {} was changed by somebody else meanwhile, and stays as it is", held.name, path.escape_ascii()));
    }
    held.discard()?;
    Ok(Outcome::Applied)
}

/// The union of a filesystem and what the try changed of it. All names of hard links are in its upper.
fn union_of(held: &Held, host: &Host) -> anyhow::Result<Union<DirTree>> {
    let pair = Pair::within(&held.layer(host.filesystem.number));
    let lower = layers::host_lower(host.filesystem.mountpoint.as_path())
        .map_err(|errno| failure(host.filesystem.mountpoint.as_path().display(), errno, "run it as root"))?;
    let make = |upper: DirTree| -> anyhow::Result<Union<DirTree>> {
        let behaviour = Behaviour { live_lowers: true, ..daemon::behaviour(true, true) };
        Union::new(layers::stack(upper, &pair, &lower)?, behaviour).map_err(|error| failure("layers", error, "see that they can be read"))
    };
    // One to settle, which is not used afterwards.
    daemon::settle(&make(DirTree::upper(&pair.upper, &pair.work)?)?);
    make(DirTree::upper_readonly(&pair.upper, pair.index().as_deref())?)
}

fn told(host: &Host, found: Vec<Conflict>) -> impl Iterator<Item = Conflict> {
    found.into_iter().map(|conflict| Conflict { path: whole(host.mountpoint(), &conflict.path), ..conflict })
}

fn refused(held: &Held, conflicts: &[Conflict]) -> Outcome {
    for Conflict { letter, path, why } in conflicts {
        note(format_args!("try {}: {letter:?} {}: {why}", held.name, String::from_utf8_lossy(path)));
    }
    let (count, name) = (conflicts.len(), &held.name);
    let paths = if count == 1 { "1 path is".to_owned() } else { format!("{count} paths are") };
    note(format_args!(
        "try apply {name}: {paths} not as the command saw them, and nothing was changed; put them back as they were, or run the command once more"
    ));
    Outcome::Conflicts
}

/// Whoever else could have written the try would choose what root makes.
fn own_store(held: &Held) -> anyhow::Result<()> {
    let uid = plyfs_sys::process::effective_uid();
    for dir in [Some(held.dir.as_path()), held.dir.parent()].into_iter().flatten() {
        let meta = dir.metadata().map_err(|error| failure(dir.display(), error, "see that it can be read"))?;
        if meta.uid() != uid || meta.mode() & 0o077 != 0 {
            let why = format!("{} is not yours alone", dir.display());
            return Err(failure(
                format_args!("try apply {}", held.name),
                why,
                "apply it as the user who tried, with a state directory of mode 700",
            ));
        }
    }
    Ok(())
}

/// What nobody can guess, or has used before.
fn token() -> String {
    let uuid = std::fs::read_to_string(Path::new("/proc/sys/kernel/random/uuid")).unwrap_or_default();
    let digits: String = uuid.chars().filter(char::is_ascii_hexdigit).take(20).collect();
    let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |now| now.as_nanos());
    format!("{digits}{:x}", nanos ^ u128::from(std::process::id()))
}
