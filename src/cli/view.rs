//! The view of this machine that `plyfs try` gives a command: a union for each filesystem, and what has to be kept out of it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use plyfs_format::{Change, ChangeKind};
use plyfs_fuse::{ServeOptions, Served};
use plyfs_overlay::{ChangeOptions, DirTree, Union};
use plyfs_runtime::hostview::{self, Action, Planned, Reason};
use plyfs_runtime::{BindSource, FdIndex, HostPath, InnerPath, MountSpec, sockets};
use plyfs_sys::mount::{self, FuseOptions, MountInfo};
use plyfs_sys::root;
use plyfs_sys::stat::Kind;

use super::apply::Recorder;
use super::fail::{failure, note};
use super::layers::{self, HostLower, Pair};
use super::store::{Filesystem, Held, Meta};
use super::{daemon, diff, mounts};

/// What is to become of the host's mounts.
pub(crate) struct View {
    table: Vec<MountInfo>,
    root: MountInfo,
    /// Without the root and what the state directory hides.
    planned: Vec<Planned>,
}

/// A filesystem of the host that is a lower now.
struct Part {
    filesystem: Filesystem,
    lower: HostLower,
    suid: bool,
    exec: bool,
}

/// Unions that are served, and what the launcher makes of them.
pub(crate) struct Running {
    parts: Vec<Part>,
    served: Vec<Served>,
    unions: Vec<Arc<Union<DirTree>>>,
    /// The detached mounts; the first is the root.
    pub(crate) fds: Vec<OwnedFd>,
    /// What is mounted in the root, in this order.
    pub(crate) mounts: Vec<MountSpec>,
}

impl View {
    /// Looks at the host. What is below `state` is not shown, and therefore not planned for.
    pub(crate) fn of_host(state: &[PathBuf]) -> anyhow::Result<Self> {
        let table = mounts::table()?;
        let failed = |errno| failure("/", errno, "mount /proc, and run it outside of a chroot");
        let root = root::open_dir(Path::new("/")).and_then(|root| mount::mount_id_of(root.as_fd())).map_err(failed)?;
        let planned = hostview::plan(&table, root, &kind_of_mounted)
            .into_iter()
            .filter(|entry| !matches!(entry.action, Action::Skip(_)))
            .filter(|entry| !state.iter().any(|state| mounts::mountpoint(&entry.mount).starts_with(state)))
            .collect();
        // In a chroot the mount that / is on has no line of its own.
        let why = "it is not the root of a mount, as in a chroot";
        let root = table.iter().find(|mount| mount.id == root && mount.mountpoint == b"/").cloned();
        let root = root.ok_or_else(|| failure("/", why, "run it outside of the chroot"))?;
        Ok(Self { table, root, planned })
    }

    /// The filesystems that can get a union of their own, the root first.
    fn unions(&self) -> impl Iterator<Item = &MountInfo> {
        let below = self.planned.iter().filter(|entry| entry.action == Action::Union).map(|entry| &entry.mount);
        std::iter::once(&self.root).chain(below)
    }

    /// Makes private clones of them; what cannot be cloned is shown read-only.
    fn clone_lowers(&mut self) -> anyhow::Result<Vec<Part>> {
        let mut parts = Vec::new();
        let mut refused = Vec::new();
        for (number, mount) in (0_u32..).zip(self.unions()) {
            let lower =
                layers::host_lower(mounts::mountpoint(mount)).map_err(|errno| (Reason::Type, format!("cannot clone its mount: {errno}")));
            let lower = lower.and_then(|lower| match lower.check() {
                Ok(()) => Ok(lower),
                Err(error) => Err((Reason::Broken, format!("cannot be looked at: {error:#}"))),
            });
            match lower {
                Ok(lower) => parts.push(Part {
                    filesystem: Filesystem::of(number, mount),
                    lower,
                    suid: !mount.has_option(b"nosuid"),
                    exec: !mount.has_option(b"noexec"),
                }),
                Err((_, why)) if number == 0 => {
                    return Err(failure("/", why, "run it as root with CAP_SYS_ADMIN"));
                }
                Err((reason, why)) => {
                    tracing::debug!(mountpoint = %mounts::mountpoint(mount).display(), "{why}");
                    refused.push((mount.id, reason));
                }
            }
        }
        for entry in &mut self.planned {
            if let Some((_, reason)) = refused.iter().find(|(id, _)| *id == entry.mount.id) {
                entry.action = Action::ReadOnly(*reason);
            }
        }
        Ok(parts)
    }

    /// Says what is less in the view than on the host.
    fn tell(&self) {
        let lesser: Vec<String> = self
            .planned
            .iter()
            .filter(|entry| entry.is_lesser())
            .map(|entry| {
                let word = match entry.action {
                    Action::Empty(_) => "empty",
                    Action::ReadOnly(Reason::Broken) => "broken",
                    _ => "read-only",
                };
                let fstype = String::from_utf8_lossy(&entry.mount.fstype).into_owned();
                format!("{} ({fstype}, {word})", mounts::mountpoint(&entry.mount).display())
            })
            .collect();
        if !lesser.is_empty() {
            note(format_args!("try: changes cannot be tried in {}", lesser.join(", ")));
        }
        for entry in &self.planned {
            if let Some(twin) = &entry.twin {
                let (one, other) = (mounts::mountpoint(&entry.mount).display(), OsStr::from_bytes(twin).display());
                note(format_args!("try: {one} and {other} have files in common; in the view a change in one is not seen in the other"));
            }
        }
    }

    /// Makes the clones and describes them; nothing of the state is made yet.
    pub(crate) fn prepare(mut self) -> anyhow::Result<Prepared> {
        let parts = self.clone_lowers()?;
        self.tell();
        Ok(Prepared { view: self, parts })
    }
}

/// A view whose lowers are there.
pub(crate) struct Prepared {
    view: View,
    parts: Vec<Part>,
}

impl Prepared {
    /// What the try is to remember.
    pub(crate) fn filesystems(&self) -> Vec<Filesystem> {
        self.parts.iter().map(|part| part.filesystem.clone()).collect()
    }

    /// What hides the host's sockets.
    pub(crate) fn masked_sockets(&self) -> Vec<InnerPath> {
        let mut paths = host_sockets();
        let bound: Vec<&MountInfo> =
            self.view.planned.iter().filter(|entry| matches!(entry.action, Action::ReadOnly(_))).map(|entry| &entry.mount).collect();
        let others: Vec<Vec<u8>> = paths.iter().flat_map(|path| other_ways(path, &self.view.table, &bound)).collect();
        paths.extend(others);
        paths.sort();
        paths.dedup();
        paths.into_iter().map(InnerPath::from).collect()
    }

    /// Serves a union for each.
    pub(crate) fn serve(self, held: &Held) -> anyhow::Result<Running> {
        let mut running = Running { parts: Vec::new(), served: Vec::new(), unions: Vec::new(), fds: Vec::new(), mounts: Vec::new() };
        let mut indices = BTreeMap::new();
        for part in self.parts {
            let (union, served) = part.serve(held)?;
            let mount = served.take_mount().ok_or_else(|| failure("try", "a mount was lost", "try once more"))?;
            indices.insert(part.filesystem.mountpoint.as_bytes().to_vec(), FdIndex(running.fds.len()));
            running.fds.push(mount);
            running.served.push(served);
            running.unions.push(union);
            running.parts.push(part);
        }
        for entry in &self.view.planned {
            match (entry.action, indices.get(&entry.mount.mountpoint)) {
                (Action::Union, Some(fd)) => {
                    let target = InnerPath::from(entry.mount.mountpoint.clone());
                    running.mounts.push(MountSpec::AttachFd { fd: *fd, target });
                }
                (Action::Union, None) => {}
                _ => running.mounts.extend(entry.to_mount_spec()),
            }
        }
        Ok(running)
    }
}

impl Part {
    fn serve(&self, held: &Held) -> anyhow::Result<(Arc<Union<DirTree>>, Served)> {
        let pair = Pair::within(&held.layer(self.filesystem.number));
        pair.make(self.lower.as_fd())?;
        let upper = DirTree::upper(&pair.upper, &pair.work)?;
        // What is kept is not worth a wait for the disk at each copy-up.
        let behaviour = daemon::behaviour(true, true);
        let union = daemon::make_union(layers::stack(upper, &pair, &self.lower)?, behaviour)?;
        // A device node in a union is the host's device: none of them works in the view.
        let options = FuseOptions { dev: false, suid: self.suid, exec: self.exec, ..daemon::shared_fuse_options() };
        // There may be many beside the root, and each has threads of its own.
        let few = ServeOptions { threads: 2, long_threads: 8, ..ServeOptions::live() };
        let serve = if self.filesystem.number == 0 { ServeOptions::live() } else { few };
        let served = daemon::serve(&union, &options, serve, "try")?;
        Ok((union, served))
    }
}

impl Running {
    /// Waits until nobody uses the unions any more, and compares. Also returns what is to be settled if they are kept. `recorder` writes down what the command saw.
    pub(crate) fn finish(self, held: &Held, options: &ChangeOptions, recorder: Option<Recorder>) -> anyhow::Result<(Vec<Change>, Ended)> {
        let mut more = false;
        drop((self.fds, self.mounts));
        for served in self.served {
            served.join()?;
        }
        if let Some(mut recorder) = recorder {
            let added = self.parts.iter().try_for_each(|part| recorder.add(held, &part.filesystem, &part.lower));
            match added.and_then(|()| recorder.write(held)) {
                Ok(any) => more = any,
                Err(error) => note(format_args!(
                    "try {}: it cannot be applied, since what its command saw could not be written down: {error:#}",
                    held.name
                )),
            }
        }
        let mut all = Merged::default();
        for part in self.parts {
            all.add(part.filesystem.mountpoint.as_bytes(), part_changes(held, &part.filesystem, &part.lower, options)?);
        }
        Ok((all.into_changes(), Ended { unions: self.unions, more }))
    }

    /// Gives it up: nothing runs in it.
    pub(crate) fn give_up(self) {
        drop((self.fds, self.mounts));
        for served in self.served {
            if let Err(error) = served.join() {
                tracing::warn!(%error, "a union that was given up");
            }
        }
    }
}

/// Unions that nobody uses any more.
pub(crate) struct Ended {
    unions: Vec<Arc<Union<DirTree>>>,
    /// Something was changed, be it in the diff or not.
    pub(crate) more: bool,
}

impl Ended {
    /// They are kept: their uppers hold all names of hard links from here on.
    pub(crate) fn settle(self) {
        self.unions.iter().for_each(|union| daemon::settle(union));
    }
}

fn part_changes(held: &Held, filesystem: &Filesystem, lower: &HostLower, options: &ChangeOptions) -> anyhow::Result<Vec<Change>> {
    let pair = Pair::within(&held.layer(filesystem.number));
    let upper = DirTree::upper_readonly(&pair.upper, pair.index().as_deref())?;
    diff::compare(&format!("try {}", held.name), layers::stack(upper, &pair, lower)?, options)
}

/// The changes of a try that is kept, against the host as it is now.
pub(crate) fn changes_of_kept(held: &Held, meta: &Meta, options: &ChangeOptions) -> anyhow::Result<Vec<Change>> {
    let table = mounts::table()?;
    let mut all = Merged::default();
    for filesystem in &meta.filesystems {
        let place = filesystem.mountpoint.as_path();
        if !mounts::at(&table, place).is_some_and(|mount| filesystem.is(mount)) {
            // Where nothing was changed nothing is missed.
            let upper = Pair::within(&held.layer(filesystem.number)).upper;
            if std::fs::read_dir(&upper).is_ok_and(|mut entries| entries.next().is_none()) {
                continue;
            }
            note(format_args!("try {}: {} is not mounted as it was; its changes are left out", held.name, place.display()));
            continue;
        }
        let failed = |errno| failure(format_args!("try {}", held.name), format_args!("{}: {errno}", place.display()), "run it as root");
        let lower = layers::host_lower(place).map_err(failed)?;
        all.add(filesystem.mountpoint.as_bytes(), part_changes(held, filesystem, &lower, options)?);
    }
    Ok(all.into_changes())
}

/// The changes of several filesystems as those of one tree.
#[derive(Default)]
struct Merged(BTreeMap<Vec<u8>, ChangeKind>);

impl Merged {
    /// Adds those of the filesystem at `mountpoint`. Above them the mountpoint and its parents are changed directories.
    fn add(&mut self, mountpoint: &[u8], changes: Vec<Change>) {
        let prefix = if mountpoint == b"/" { &b""[..] } else { mountpoint };
        if !changes.is_empty() {
            let ends = (1..=prefix.len()).filter(|&end| prefix.get(end).is_none_or(|&byte| byte == b'/'));
            for parent in ends.filter_map(|end| prefix.get(..end)) {
                self.0.entry(parent.to_vec()).or_insert(ChangeKind::Changed);
            }
        }
        for change in changes {
            self.0.insert([prefix, &change.path].concat(), change.kind);
        }
    }

    fn into_changes(self) -> Vec<Change> {
        self.0.into_iter().map(|(path, kind)| Change { kind, path }).collect()
    }
}

/// What a filesystem is mounted on. Of one that cannot be looked at that is found out by its clone.
fn kind_of_mounted(path: &[u8]) -> Option<Kind> {
    match Path::new(OsStr::from_bytes(path)).symlink_metadata() {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Some(Kind::Dir),
        _ => kind_at(path),
    }
}

/// What a path is, without following a last link.
fn kind_at(path: &[u8]) -> Option<Kind> {
    let kind = Path::new(OsStr::from_bytes(path)).symlink_metadata().ok()?.file_type();
    Some(match kind {
        kind if kind.is_dir() => Kind::Dir,
        kind if kind.is_file() => Kind::File,
        kind if kind.is_symlink() => Kind::Symlink,
        kind if kind.is_fifo() => Kind::Fifo,
        kind if kind.is_socket() => Kind::Socket,
        kind if kind.is_char_device() => Kind::Char,
        _ => Kind::Block,
    })
}

/// What a path leads to.
fn kind_behind(path: &[u8]) -> Option<Kind> {
    let real = Path::new(OsStr::from_bytes(path)).canonicalize().ok()?;
    kind_at(real.as_os_str().as_bytes())
}

/// The sockets of the host, by the path that leads to them without links.
fn host_sockets() -> Vec<Vec<u8>> {
    let table = std::fs::read("/proc/net/unix").unwrap_or_default();
    let real = |path: Vec<u8>| Path::new(OsStr::from_bytes(&path)).canonicalize().ok().map(|real| real.as_os_str().as_bytes().to_vec());
    let mut paths: Vec<Vec<u8>> = sockets::to_mask(&table, &kind_behind).into_iter().filter_map(real).collect();
    paths.sort();
    paths.dedup();
    paths
}

/// The paths that lead to the file at `path` through these mounts of the same filesystem. A union is no way to a socket, a bind mount is.
fn other_ways(path: &[u8], table: &[MountInfo], bound: &[&MountInfo]) -> Vec<Vec<u8>> {
    let path = Path::new(OsStr::from_bytes(path));
    let Some(mount) = mounts::holding(table, path) else { return Vec::new() };
    let Ok(below) = path.strip_prefix(mounts::mountpoint(mount)) else { return Vec::new() };
    let inside = joined(Path::new(OsStr::from_bytes(&mount.root)), below);
    let way = |other: &&MountInfo| {
        let below = inside.strip_prefix(OsStr::from_bytes(&other.root)).ok()?;
        (other.dev == mount.dev).then(|| joined(mounts::mountpoint(other), below).into_os_string().into_vec())
    };
    bound.iter().filter_map(way).collect()
}

/// Without the slash at the end that an empty part would leave.
fn joined(dir: &Path, below: &Path) -> PathBuf {
    if below.as_os_str().is_empty() { dir.to_owned() } else { dir.join(below) }
}

/// What lets the command reach the host's sockets. A union alone shows them, but nobody listens on what it shows.
pub(crate) fn bound_sockets() -> Vec<MountSpec> {
    let bind = |path: Vec<u8>| MountSpec::BindReadOnly {
        source: BindSource::Path(HostPath::from(path.clone())),
        target: InnerPath::from(path),
        recursive: false,
        optional: true,
    };
    host_sockets().into_iter().map(bind).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(kind: ChangeKind, path: &str) -> Change {
        Change { kind, path: path.as_bytes().to_vec() }
    }

    #[test]
    fn a_socket_is_found_through_every_bind_of_its_filesystem() {
        let table = mount::parse_mountinfo(
            b"1 0 8:1 / / rw - ext4 d rw\n\
              2 1 8:1 /srv /ro rw - ext4 d rw\n\
              3 1 8:2 /srv /other rw - ext4 e rw\n\
              4 1 8:1 /srv/x/s /one rw - ext4 d rw\n\
              5 1 8:1 /home /h rw - ext4 d rw\n",
        )
        .unwrap();
        let bound: Vec<&MountInfo> = table.iter().skip(1).collect();
        let ways = |path: &str| {
            let ways = other_ways(path.as_bytes(), &table, &bound);
            ways.into_iter().map(|way| String::from_utf8(way).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(ways("/srv/x/s"), ["/ro/x/s", "/one"]);
        assert_eq!(ways("/h/s"), ["/h/s"]);
        assert_eq!(ways("/other/x"), ["/other/x"]);
        assert!(ways("/run/s").is_empty());
    }

    #[test]
    fn changes_of_several_filesystems_are_those_of_one_tree() {
        use ChangeKind::{Added, Changed, Deleted};
        let mut all = Merged::default();
        all.add(b"/", vec![change(Changed, "/etc"), change(Deleted, "/etc/motd")]);
        all.add(b"/home", vec![change(Added, "/new")]);
        all.add(b"/srv/a/b", vec![change(Deleted, "/x")]);
        all.add(b"/run", Vec::new());
        let shown: Vec<String> =
            all.into_changes().iter().map(|change| format!("{} {}", change.kind.letter(), String::from_utf8_lossy(&change.path))).collect();
        assert_eq!(shown, ["C /etc", "D /etc/motd", "C /home", "A /home/new", "C /srv", "C /srv/a", "C /srv/a/b", "D /srv/a/b/x"]);
    }
}
