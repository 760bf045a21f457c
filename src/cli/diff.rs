//! `plyfs diff`: what the upper of a union changed against its lowers.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use plyfs_format::{Change, Dialect};
use plyfs_overlay::params::{Params, parse_paths};
use plyfs_overlay::{Behaviour, ChangeOptions, DirTree, LayerStack, Union, changes_of, check_overlap, recorded_dialect_of};

use super::fail::failure;
use super::layers::index_in;
use super::operand::{self, Known, Type};
use super::record::{self, Record};
use super::{marks, mounts, output};

/// Show what was added, changed and deleted.
///
/// Prints a line for each path: A, C or D and the path, sorted by bytes, a directory before what is in it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The mountpoint of a union
    #[arg(value_name = "MOUNTPOINT", required_unless_present = "upper", conflicts_with_all = ["upper", "lower", "workdir", "options"])]
    operand: Option<OsString>,
    /// What the operand is, where it could be several things
    #[arg(long = "type", value_name = "TYPE", requires = "operand")]
    kind: Option<Type>,
    /// Compare this upper directory, which need not be mounted
    #[arg(long, value_name = "DIR", requires = "lower")]
    upper: Option<PathBuf>,
    /// With these lower directories, the topmost first; a '::' precedes a data-only one
    #[arg(long, value_name = "DIR[:DIR...]", requires = "upper")]
    lower: Option<OsString>,
    /// And the work directory of the upper, which knows all names of hard links
    #[arg(long, value_name = "DIR", requires = "upper")]
    workdir: Option<PathBuf>,
    /// How their marks are spelled, as the options of their mount say: userxattr, whiteout=aufs
    #[arg(short, value_name = "OPTIONS", requires = "upper")]
    options: Vec<OsString>,
    #[command(flatten)]
    show: Show,
}

/// How a diff is shown.
#[derive(Debug, clap::Args)]
pub(crate) struct Show {
    /// Print the array of objects that docker's API has
    #[arg(long)]
    json: bool,
    /// Count every extended attribute, not only security.capability
    #[arg(long)]
    xattrs: bool,
}

impl Show {
    /// What counts.
    pub(crate) fn options(&self) -> ChangeOptions {
        ChangeOptions { xattrs: self.xattrs }
    }

    /// Prints it.
    pub(crate) fn print(&self, changes: &[Change]) -> anyhow::Result<()> {
        output::changes(changes, self.json)
    }
}

/// Finds the layers, compares, prints.
pub(crate) fn main(args: Args) -> anyhow::Result<ExitCode> {
    let changes = match (&args.operand, &args.upper, &args.lower) {
        (Some(operand), ..) => of_operand(operand, args.kind, &args.show.options())?,
        (None, Some(upper), Some(lower)) => {
            let lowers = parse_paths("--lower", lower)?;
            let layers: Vec<(&'static str, &Path)> =
                lowers.all().map(|lower| ("lowerdir", lower.as_path())).chain([("upperdir", upper.as_path())]).collect();
            check_overlap(&layers)?;
            let index = args.workdir.as_deref().map(index_of).transpose()?;
            let params = Params { lowers: lowers.merged, data: lowers.data, ..Params::dialect(&args.options)? };
            let at = format!("diff {}", upper.display());
            let unreadable = |errno| {
                failure("workdir", format_args!("its file 'dialect' cannot be read: {errno}"), "give the workdir of the upper's mount")
            };
            let known = args.workdir.as_deref().map_or(Ok(None), recorded_dialect_of).map_err(unreadable)?;
            of_layers(&at, (upper, index.as_deref(), known), &marks::lowers(&params), &params, &args.show.options())?
        }
        _ => return Err(failure("diff", "nothing to compare", "give a mountpoint, or --upper and --lower")),
    };
    args.show.print(&changes)?;
    Ok(ExitCode::SUCCESS)
}

fn index_of(work: &Path) -> anyhow::Result<PathBuf> {
    let remedy = "give the directory that was the workdir of the upper's mount";
    index_in(work).ok_or_else(|| failure(format_args!("workdir {}", work.display()), "there is no directory 'index' in it", remedy))
}

fn of_operand(operand: &OsStr, forced: Option<Type>, options: &ChangeOptions) -> anyhow::Result<Vec<Change>> {
    let path = mounts::canonical(Path::new(operand));
    let table = mounts::table()?;
    let mountpoint = path.as_ref().is_ok_and(|path| mounts::at(&table, path).is_some());
    let known = Known { mountpoint, ..Known::default() };
    operand::only_mounts("diff", operand, operand::resolve("diff", operand, forced, &known)?)?;
    let at = format!("diff {}", operand.display());
    let path = path.map_err(|error| failure(&at, error, "give the mountpoint of a union, or --upper and --lower"))?;
    let Some(mount) = mounts::at(&table, &path).filter(|mount| mounts::is_plyfs(mount)) else {
        let remedy = match mounts::holding(&table, &path).filter(|mount| mounts::is_plyfs(mount)) {
            Some(mount) => format!("its union is mounted at {}", mounts::mountpoint(mount).display()),
            None => "give the mountpoint of a union, or --upper and --lower".to_owned(),
        };
        return Err(failure(&at, "no union of plyfs is mounted there", remedy));
    };
    let record = Record::find(mount.dev).map_err(|error| failure(&at, error, "give --upper and --lower"))?;
    let Some(record) = record else {
        let why = "its server is dead, or left no record in /run/plyfs";
        return Err(failure(&at, why, "give --upper and --lower"));
    };
    let Some(upper) = &record.upper else { return Ok(Vec::new()) };
    let mut params =
        Params::parse([OsStr::from_bytes(record.options.as_bytes())]).map_err(|error| failure(&at, error, "give --upper and --lower"))?;
    let lower = |layer: &record::Layer| {
        let dialect = layer.dialect.as_deref().and_then(Dialect::from_name).unwrap_or(marks::usual(&params));
        marks::Lower { path: record.way_to(layer), dialect }
    };
    let lowers: Vec<marks::Lower> = record.lowers.iter().map(lower).collect();
    params.data = record.data.iter().map(|layer| record.way_to(layer)).collect();
    let index = record.index.map(|fd| record.way_through(fd));
    let known = record.dialect.as_deref().and_then(Dialect::from_name);
    of_layers(&at, (&record.way_to(upper), index.as_deref(), known), &lowers, &params, options)
}

/// `upper`: with the index of its workdir, and its dialect where that was recorded.
fn of_layers(
    at: &str,
    (upper, index, known): (&Path, Option<&Path>, Option<Dialect>),
    lowers: &[marks::Lower],
    params: &Params,
    options: &ChangeOptions,
) -> anyhow::Result<Vec<Change>> {
    if !params.user_xattr {
        marks::can_be_read(at)?;
    }
    let upper = Some(marks::upper_to_read(DirTree::upper_readonly(upper, index)?, upper, params, known)?);
    let lowers = marks::open(lowers, &params.data, params)?;
    let behaviour = Behaviour { lenient: params.lenient, ..Behaviour::default() };
    Union::new(LayerStack { upper, lowers }, behaviour).and_then(|union| union.changes(options)).map_err(|error| unreadable(at, error))
}

/// Compares, with the error of one who reads layers.
pub(crate) fn compare(at: &str, stack: LayerStack<DirTree>, options: &ChangeOptions) -> anyhow::Result<Vec<Change>> {
    changes_of(stack, options).map_err(|error| unreadable(at, error))
}

fn unreadable(at: &str, error: plyfs_overlay::Error) -> anyhow::Error {
    failure(at, error, "see that the layers can be read, as root as a rule")
}
