//! How the layers of a mount spell their marks, and what is seen of that before it is made.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use plyfs_format::Dialect;
use plyfs_overlay::backend::Tree as _;
use plyfs_overlay::params::{Params, Whiteouts};
use plyfs_overlay::{DirTree, Layer, LayerOpenError, Probe, Union};
use plyfs_sys::at::{self, At};
use plyfs_sys::{Errno, mount, process, root};

use super::fail::{failure, note};
use super::{layers, storage};

/// As many marks as are told one by one.
const TOLD: usize = 20;

/// Whether this process is shown the attributes of the privileged. An error is neither.
fn sees_trusted() -> Result<bool, Errno> {
    // Who may read them may also take one away from a file of his own.
    match process::memory_file(c"plyfs").and_then(|file| at::remove_xattr(At::Fd(file.as_fd()), b"trusted.plyfs")) {
        Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(true),
        Err(Errno::PERM | Errno::ACCESS) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// The dialect of layers where nobody says otherwise: that of kernel overlayfs, in a user namespace that of the kernel's `userxattr`.
pub(crate) fn own_dialect() -> Dialect {
    // What cannot be seen decides nothing: the first mark that is written tells.
    if sees_trusted().unwrap_or(true) { Dialect::Trusted } else { Dialect::User }
}

/// Decides what the options leave open: where this process is not shown the marks of the privileged, those of users count. Returns the dialect that the options ask for.
pub(crate) fn settle(params: &mut Params) -> anyhow::Result<Option<Dialect>> {
    if params.user_xattr {
        return Ok(Some(Dialect::User));
    }
    let asked = (params.whiteouts == Whiteouts::Aufs).then_some(Dialect::Aufs);
    if own_dialect() == Dialect::Trusted {
        return Ok(asked);
    }
    if params.metacopy {
        let why = "in a user namespace marks are in attributes of users, where everybody could set that of a metacopy";
        return Err(failure("metacopy=on", why, "leave it out, or mount as root outside of the namespace"));
    }
    params.user_xattr = true;
    Ok(asked)
}

/// Sees that this process is shown the attributes in which layers keep their marks: the kernel hides them from others as if they were not there.
pub(crate) fn can_be_read(at: &str) -> anyhow::Result<()> {
    let remedy = "run it as root, outside of a container or user namespace";
    match sees_trusted() {
        Ok(true) => Ok(()),
        Ok(false) => {
            let why = "the kernel shows trusted.* attributes, the marks of layers, only to root with CAP_SYS_ADMIN";
            Err(failure(at, why, remedy))
        }
        Err(errno) => Err(failure(at, format_args!("cannot see whether trusted.* attributes can be read: {errno}"), remedy)),
    }
}

/// The dialect of layers that the options do not speak of.
pub(crate) fn usual(params: &Params) -> Dialect {
    if params.user_xattr { Dialect::User } else { Dialect::Trusted }
}

/// A lower that merges, and how its marks are spelled.
#[derive(Debug)]
pub(crate) struct Lower {
    pub(crate) path: PathBuf,
    pub(crate) dialect: Dialect,
}

/// The lowers of a mount with these options that merge.
pub(crate) fn lowers(params: &Params) -> Vec<Lower> {
    let known = |path: &PathBuf| {
        let dialect = match params.whiteouts {
            Whiteouts::Auto => match storage::dialect_of(path) {
                Some(dialect) => {
                    tracing::info!(path = %path.display(), ?dialect, "a layer in the store of podman");
                    dialect
                }
                None => usual(params),
            },
            Whiteouts::Overlay => usual(params),
            Whiteouts::Aufs => Dialect::Aufs,
        };
        Lower { path: path.clone(), dialect }
    };
    params.lowers.iter().map(known).collect()
}

/// Whether a directory is on an idmapped mount.
fn is_idmapped(path: &Path) -> bool {
    let id = root::open_dir(path).and_then(|dir| mount::mount_id_of(dir.as_fd()));
    // Without the table, or of a layer that cannot be opened, which is told next, nothing is known.
    let table = mount::mounts().unwrap_or_default();
    id.is_ok_and(|id| table.iter().any(|mount| mount.id == id && mount.has_option(b"idmapped")))
}

fn open_lower(lower: &Lower, params: &Params) -> Result<Layer<DirTree>, LayerOpenError> {
    let path = &lower.path;
    let mapped = !params.owners.is_identity() && is_idmapped(path);
    let tree = DirTree::lower(path)?;
    let tree = if mapped { tree.behind_idmap(params.owners.clone()) } else { tree };
    Ok(Layer::new(tree, lower.dialect).named(format!("lowerdir {}", path.display())).with_overrides(params.override_stat))
}

/// The lowers of a mount with these options, the topmost first: those that merge, and those that hold only data.
pub(crate) fn open(merged: &[Lower], data: &[PathBuf], params: &Params) -> Result<Box<[Layer<DirTree>]>, LayerOpenError> {
    let merged = merged.iter().map(|lower| open_lower(lower, params));
    merged.chain(data.iter().map(|path| DirTree::lower(path).map(Layer::data_only))).collect()
}

/// The upper of a mount with these options, to be read only. `known`: its dialect, where it was recorded.
pub(crate) fn upper_to_read(tree: DirTree, path: &Path, params: &Params, known: Option<Dialect>) -> anyhow::Result<Layer<DirTree>> {
    let at = format!("upperdir {}", path.display());
    let asked = if params.whiteouts == Whiteouts::Aufs && !params.user_xattr { Dialect::Aufs } else { usual(params) };
    Ok(layers::keeping_upper(tree, known.unwrap_or(asked), &at, params.override_stat)?.named(at))
}

/// The upper of a mount, in the dialect that was chosen at its first mount: the one that is asked for, or the first that the place takes. A place that once took
/// no attributes may take some now, and a process may see less than the one before: what is there would not be read then.
///
/// `always`: owners are kept in attributes, all of them.
pub(crate) fn upper(tree: DirTree, path: &Path, asked: Option<Dialect>, always: bool) -> anyhow::Result<Layer<DirTree>> {
    let at = format!("upperdir {}", path.display());
    let unusable = |errno| {
        failure(&at, format_args!("cannot see or say in its workdir how marks are written: {errno}"), "see that you can write there")
    };
    let recorded = match tree.recorded_dialect() {
        Err(Errno::INVAL) => {
            let why = "its workdir says 'dialect' in a form that this version of plyfs does not know";
            return Err(failure(&at, why, "mount it with the version that made it"));
        }
        other => other.map_err(unusable)?,
    };
    let own = own_dialect();
    let dialect = match (recorded, asked) {
        (Some(recorded), Some(asked)) if recorded != asked => {
            let why =
                format!("its marks are written as '{}', as its workdir says, and the options ask for '{}'", recorded.name(), asked.name());
            return Err(failure(&at, why, remedy_for(recorded)));
        }
        (Some(Dialect::Trusted), _) if own != Dialect::Trusted => {
            let why = "its marks are in attributes that the kernel shows only to root outside of user namespaces";
            return Err(failure(&at, why, "mount it as root outside of the namespace, or give another upperdir"));
        }
        (Some(Dialect::User), None) if own == Dialect::Trusted => {
            let why = "its marks are in attributes of users, as its workdir says";
            return Err(failure(&at, why, remedy_for(Dialect::User)));
        }
        (Some(recorded), _) => recorded,
        (None, Some(asked)) => asked,
        (None, None) => choose(&tree, own, &at)?,
    };
    tracing::info!(?dialect, ?recorded, "how marks are written");
    if recorded.is_none() {
        match tree.record_dialect(dialect) {
            // Without a record it is root's, as kernel overlayfs leaves it.
            Err(errno) if dialect == Dialect::Trusted => tracing::warn!(%errno, "the workdir does not say how marks are written"),
            result => result.map_err(unusable)?,
        }
    }
    Ok(layers::keeping_upper(tree, dialect, &at, always)?.named(at))
}

fn remedy_for(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::Trusted => "mount it without userxattr and whiteout=aufs",
        Dialect::User => "mount it with -o userxattr",
        Dialect::Aufs => "mount it with -o whiteout=aufs",
    }
}

/// The first dialect that the place takes. What an upper holds already is never guessed at: it is of the usual dialect.
pub(crate) fn choose(tree: &DirTree, own: Dialect, at: &str) -> anyhow::Result<Dialect> {
    let unusable = |error: &dyn std::fmt::Display| failure(at, error, "see that you can write there");
    if !tree.read_dir(&tree.root()).map_err(|errno| unusable(&errno))?.is_empty() {
        return Ok(own);
    }
    let probe = Probe::of(tree).map_err(|error| unusable(&error))?;
    tracing::info!(?probe, "what the place of the upper takes");
    for dialect in [own, Dialect::User] {
        match probe.allows(dialect) {
            Ok(()) => return Ok(dialect),
            Err((_, Errno::OPNOTSUPP | Errno::PERM)) => {}
            // It may be otherwise in a moment: nothing is chosen by that.
            Err((what, errno)) => return Err(failure(at, format_args!("cannot try out {what}: {errno}"), "see that you can write there")),
        }
    }
    Ok(Dialect::Aufs)
}

/// Sees that marks can be written where the upper is, and that those of the layers can be honoured; of a lenient mount they are told instead.
pub(crate) fn check(union: &Union<DirTree>, params: &Params) -> anyhow::Result<()> {
    let place = params.writable.as_ref().map(|writable| writable.upper.display().to_string()).unwrap_or_default();
    let at = format!("upperdir {place}");
    let unusable = |error| failure(&at, error, "see that you can write there");
    if let Some((tree, dialect)) = union.upper_tree() {
        let probe = Probe::of(tree).map_err(unusable)?;
        if let Err((what, errno)) = probe.allows(dialect) {
            let elsewhere = "put it on ext4, xfs, btrfs or tmpfs";
            let remedy = if probe.allows(Dialect::User).is_ok() {
                format!("{elsewhere}, or keep marks in attributes of users with -o userxattr")
            } else {
                format!("{elsewhere}, or keep marks in names of files with -o whiteout=aufs")
            };
            return Err(failure(at, format_args!("its filesystem takes no {what}: {errno}"), remedy));
        }
    }
    let begun = std::time::Instant::now();
    // The first is told, and how many others there are, up to a number that costs no time.
    let found = union.scan(if params.lenient { usize::MAX } else { TOLD + 1 }).map_err(unusable)?;
    tracing::info!(marks = found.len(), seconds = begun.elapsed().as_secs_f64(), "looked for marks that cannot be honoured");
    let Some(first) = found.first() else { return Ok(()) };
    let more = found.len() - 1;
    if params.lenient {
        found.iter().take(TOLD).for_each(|finding| note(format_args!("{finding}: shown without it, read-only")));
        if found.len() > TOLD {
            note(format_args!("{} more marks cannot be honoured: what bears them is shown without, read-only", found.len() - TOLD));
        }
        return Ok(());
    }
    let remedy = "mend the layer, or mount it with 'plyfs mount --lenient', which shows it without the mark, read-only";
    Err(match more {
        0 => failure(first.place(), &first.what, remedy),
        1..TOLD => failure(first.place(), format_args!("{} (and {more} more)", first.what), remedy),
        TOLD.. => {
            failure(first.place(), format_args!("{} (and {TOLD} or more others; 'plyfs fsck' tells those of an upper)", first.what), remedy)
        }
    })
}
