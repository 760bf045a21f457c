//! `plyfs run`: runs a command with a union of given directories as its root.

use std::ffi::{OsStr, OsString};
use std::fs::TryLockError;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use plyfs_format::{Change, Dialect};
use plyfs_fuse::ServeOptions;
use plyfs_overlay::params::{Lowers, Params, Writable, parse_paths};
use plyfs_overlay::{ChangeOptions, DirTree, LayerOpenError, LayerStack, check_overlap};
use plyfs_runtime::{FdIndex, InnerPath, Launcher, Root, Spec};
use plyfs_sys::mount::FuseOptions;
use plyfs_sys::root;

use super::fail::failure;
use super::layers::{Pair, make_dir};
use super::rootless::{self, As};
use super::store::{Scratch, Store};
use super::{daemon, diff, layers, marks, mount, output};

const MORE: &str = "\
The directories are not changed: what the command writes goes to a layer of its own, which is
discarded at the end or is the directory of --upper. The environment holds PATH, and TERM if it is
set. The exit code is that of the command, 128+n for signal n, 127 if it is not found, 126 if it
cannot be executed, 125 if plyfs failed.";

/// Run a command with a union of directories as its root.
#[derive(Debug, clap::Args)]
#[command(after_help = MORE)]
pub(crate) struct Args {
    /// The directories, the topmost first; a '::' precedes a data-only one
    #[arg(long, value_name = "DIR[:DIR...]")]
    rootfs: OsString,
    /// Keep the changes in this directory, made if need be
    #[arg(long, value_name = "DIR")]
    upper: Option<PathBuf>,
    /// The work directory, on the filesystem of the upper [default: DIR.work]
    #[arg(long, value_name = "DIR", requires = "upper")]
    work: Option<PathBuf>,
    /// Show what changed when the command has ended
    #[arg(long)]
    diff: bool,
    /// The host name that the command sees
    #[arg(long, value_name = "NAME")]
    hostname: Option<OsString>,
    /// The directory to run it in
    #[arg(short, long, value_name = "DIR", default_value = "/")]
    workdir: OsString,
    /// Set a variable of its environment, or pass one on
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<OsString>,
    /// The command and its arguments [default: /bin/sh]
    #[arg(value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

/// Where the changes go.
struct Place {
    pair: Pair,
    /// What was not there before, to be taken back if nothing comes of it.
    made: Vec<PathBuf>,
    /// Goes at the end.
    scratch: Option<Scratch>,
}

/// Does it.
pub(crate) fn main(args: Args, root: Option<PathBuf>) -> anyhow::Result<ExitCode> {
    let store = Store::at(root)?;
    rootless::enter("run", As::Root)?;
    let Lowers { merged, data } = parse_paths("--rootfs", &args.rootfs)?;
    let lowers = Lowers { merged: absolute("rootfs", merged)?, data: absolute("rootfs", data)? };
    let env = environment(&args.env)?;
    mount::check_fuse("run")?;
    let opened = lowers
        .all()
        .map(|lower| {
            root::open_dir(lower)
                .map_err(|errno| failure(format_args!("rootfs {}", lower.display()), errno, "create it, or correct the path"))
        })
        .collect::<anyhow::Result<Vec<OwnedFd>>>()?;
    let place = place(&args, &lowers, opened.first(), &store)?;

    plyfs_sys::limits::umask(0);
    // A layer that is thrown away is not worth a wait for the disk.
    let behaviour = daemon::behaviour(place.scratch.is_some(), false);
    let upper = DirTree::upper(&place.pair.upper, &place.pair.work).inspect_err(|_| place.unmake())?;
    let union = daemon::make_union_with(stack(&lowers, upper, &place.pair)?, behaviour, rootless::as_mounter_shows())?;
    let writable = Some(Writable { upper: place.pair.upper.clone(), work: place.pair.work.clone() });
    let user_xattr = marks::own_dialect() == Dialect::User;
    marks::check(&union, &Params { writable, user_xattr, ..Params::over(Vec::new()) }).inspect_err(|_| place.unmake())?;
    let options = FuseOptions { dev: false, ..daemon::shared_fuse_options() };
    let served = daemon::serve(&union, &options, ServeOptions::default(), "run")?;
    let mount = served.take_mount().ok_or_else(|| failure("run", "the mount was lost", "run it once more"))?;

    let command = if args.command.is_empty() { vec![OsString::from("/bin/sh")] } else { args.command };
    let mut spec = Spec::new(Root::Fd(FdIndex(0)), command);
    spec.hostname = args.hostname;
    spec.cwd = InnerPath::from(&args.workdir);
    set_environment(&mut spec.env, env);
    let mut running = Launcher::new().spawn(&spec, vec![mount])?;
    // Not before: the command would inherit it.
    if let Err(errno) = plyfs_sys::limits::raise_nofile() {
        tracing::warn!(%errno, "the limit of open files stays");
    }
    let status = running.wait()?;
    drop(running);
    served.join()?;
    if place.scratch.is_none() {
        daemon::settle(&union);
    }
    drop(union);
    if args.diff {
        output::changes(&changes(&lowers, &place.pair)?, false)?;
    }
    Ok(ExitCode::from(status.code()))
}

fn changes(lowers: &Lowers, pair: &Pair) -> anyhow::Result<Vec<Change>> {
    let upper = DirTree::upper_readonly(&pair.upper, pair.index().as_deref())?;
    diff::compare("run --diff", stack(lowers, upper, pair)?, &ChangeOptions::default())
}

fn stack(lowers: &Lowers, upper: DirTree, pair: &Pair) -> anyhow::Result<LayerStack<DirTree>> {
    let lowers = layers::open(&lowers.merged, &lowers.data)?;
    Ok(LayerStack { upper: Some(layers::own_upper(upper, pair)?.named("the upper")), lowers })
}

fn absolute(what: &str, paths: Vec<PathBuf>) -> anyhow::Result<Vec<PathBuf>> {
    let one = |path: PathBuf| {
        std::path::absolute(&path).map_err(|error| failure(format_args!("{what} {}", path.display()), error, "give an absolute path"))
    };
    paths.into_iter().map(one).collect()
}

/// Makes the writable layer, after all that can be known to fail.
fn place(args: &Args, lowers: &Lowers, like: Option<&OwnedFd>, store: &Store) -> anyhow::Result<Place> {
    let like = like.ok_or_else(|| failure("--rootfs", "no directory is given", "give one or more, with colons between them"))?;
    let mut layers: Vec<(&'static str, &Path)> = lowers.all().map(|lower| ("rootfs", lower.as_path())).collect();
    check_overlap(&layers)?;
    let Some(upper) = &args.upper else {
        if let Some(lower) = lowers.all().filter_map(|lower| lower.canonicalize().ok()).find(|lower| store.path().starts_with(lower)) {
            let why = format!("the state directory {} is in it", store.path().display());
            let remedy = "take another state directory with --root DIR; for a view of this machine use 'plyfs try'";
            return Err(failure(format_args!("rootfs {}", lower.display()), why, remedy));
        }
        let scratch = store.scratch()?;
        let pair = Pair::within(&scratch.dir);
        pair.make(like.as_fd())?;
        return Ok(Place { pair, made: Vec::new(), scratch: Some(scratch) });
    };
    let mut pair = absolute("upper", vec![upper.clone()])?;
    pair.extend(args.work.iter().cloned());
    let mut pair = absolute("work", pair)?.into_iter();
    let upper = pair.next().unwrap_or_default();
    let work = pair.next().unwrap_or_else(|| beside(&upper));
    let pair = Pair { upper, work };
    // What is there is checked first; only then is made what is missing.
    for (what, path) in [("upper", &pair.upper), ("work", &pair.work)] {
        let nearest = path.ancestors().find(|dir| dir.exists()).unwrap_or(path);
        layers.push((what, nearest));
        if nearest == path.as_path() {
            check_overlap(&layers)?;
        } else if let Some(inside) = lowers.all().filter_map(|lower| lower.canonicalize().ok()).find(|lower| is_in(nearest, lower)) {
            let why = format!("it would be inside rootfs {}", inside.display());
            return Err(failure(format_args!("{what} {}", path.display()), why, "layers must not overlap: give a directory outside"));
        }
        layers.pop();
    }
    check_unused(&pair.upper)?;
    let made = [&pair.upper, &pair.work].into_iter().filter(|dir| !dir.exists()).cloned().collect();
    let place = Place { pair, made, scratch: None };
    let result = if place.pair.upper.exists() { make_dir(&place.pair.work) } else { place.pair.make(like.as_fd()) };
    result.inspect_err(|_| place.unmake())?;
    Ok(place)
}

/// Sees that no mount uses an upper, as opening it would, but before a work directory is made beside it.
fn check_unused(upper: &Path) -> anyhow::Result<()> {
    match std::fs::File::open(upper).map(|dir| dir.try_lock()) {
        Ok(Err(TryLockError::WouldBlock)) => Err(LayerOpenError::InUse { what: "upperdir", path: upper.to_owned() }.into()),
        // Whatever else is wrong is told when it is opened for good.
        _ => Ok(()),
    }
}

impl Place {
    fn unmake(&self) {
        for dir in &self.made {
            if let Err(error) = std::fs::remove_dir(dir) {
                tracing::debug!(%error, dir = %dir.display(), "a directory made for nothing stays");
            }
        }
    }
}

fn is_in(path: &Path, dir: &Path) -> bool {
    path.canonicalize().is_ok_and(|path| path.starts_with(dir))
}

/// `DIR.work`.
fn beside(upper: &Path) -> PathBuf {
    let mut name = upper.as_os_str().to_owned();
    name.push(".work");
    name.into()
}

/// `NAME=VALUE`, or `NAME` with the value that it has here.
fn environment(given: &[OsString]) -> anyhow::Result<Vec<(OsString, OsString)>> {
    let mut variables = Vec::new();
    for entry in given {
        let bytes = entry.as_bytes();
        let (name, value) = match bytes.iter().position(|&byte| byte == b'=') {
            Some(at) => {
                let (name, value) = bytes.split_at(at);
                (OsStr::from_bytes(name).to_owned(), Some(OsString::from_vec(value.get(1..).unwrap_or_default().to_vec())))
            }
            None => (entry.clone(), std::env::var_os(entry)),
        };
        if name.is_empty() {
            return Err(failure(format_args!("--env {}", entry.display()), "no name before the =", "give NAME=VALUE"));
        }
        // As docker: one that is not set here is not set there.
        variables.extend(value.map(|value| (name, value)));
    }
    Ok(variables)
}

fn set_environment(env: &mut Vec<(OsString, OsString)>, given: Vec<(OsString, OsString)>) {
    let term = std::env::var_os("TERM").map(|term| (OsString::from("TERM"), term));
    for (name, value) in term.into_iter().chain(given) {
        env.retain(|(known, _)| *known != name);
        env.push((name, value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_value_of_a_variable_counts() {
        let given = ["A=1", "B=", "A=2=3", "PLYFS_SURELY_NOT_SET"].map(OsString::from);
        let mut env = vec![(OsString::from("A"), OsString::from("0"))];
        set_environment(&mut env, environment(&given).unwrap());
        let get = |name: &str| env.iter().filter(|(known, _)| known == name).map(|(_, value)| value.to_str().unwrap()).collect::<Vec<_>>();
        assert_eq!((get("A"), get("B"), get("PLYFS_SURELY_NOT_SET")), (vec!["2=3"], vec![""], vec![]));
        assert!(environment(&["=x".into()]).is_err());
        assert_eq!(beside(Path::new("/a/u")), Path::new("/a/u.work"));
    }
}
