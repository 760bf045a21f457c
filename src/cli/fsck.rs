//! `plyfs fsck`: looks for what is wrong with an upper and its workdir, and mends it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use plyfs_format::Dialect;
use plyfs_overlay::params::{Lowers, Params, parse_paths};
use plyfs_overlay::{Behaviour, DirTree, LayerStack, Outcome, Problem, Union, check_overlap};
use plyfs_sys::Errno;
use serde::Serialize;

use super::fail::{failure, one_line};
use super::text::Text;
use super::{marks, output};

const CODES: &str = "\
Exit codes, as of fsck(8): 0 nothing is wrong; 1 everything was mended; 4 something is left;
5 both; 8 it could not be looked at; 16 wrong usage. A union that is mounted is refused. Nothing
that has content is deleted: what cannot stay where it is moves to 'lost+found' in the work
directory. Marks that only lower directories could explain are told and never mended.";

/// The exit code of an error.
pub(crate) const EXIT_FAILED: u8 = 8;
/// The exit code of a command line that cannot be.
pub(crate) const EXIT_USAGE: u8 = 16;

/// Check an upper directory and its work directory, and mend them
///
/// Prints a line for each problem: where it is, what is wrong, and what became of it.
#[derive(Debug, clap::Args)]
#[command(after_help = CODES)]
pub(crate) struct Args {
    /// The upper directory, which must not be mounted
    #[arg(long, value_name = "DIR")]
    upper: PathBuf,
    /// Its work directory
    #[arg(long, value_name = "DIR", alias = "workdir")]
    work: PathBuf,
    /// Its lower directories, the topmost first, to see where marks lead; a '::' precedes a data-only one
    #[arg(long, value_name = "DIR[:DIR...]")]
    lower: Option<OsString>,
    /// How marks are spelled, as the options of the mount say: userxattr, whiteout=aufs
    #[arg(short, value_name = "OPTIONS")]
    options: Vec<OsString>,
    /// Mend what can be mended
    #[arg(long)]
    repair: bool,
    /// Print an array of objects
    #[arg(long)]
    json: bool,
}

/// A problem as JSON has it.
#[derive(Serialize)]
struct Row {
    place: String,
    path: Text,
    problem: String,
    state: &'static str,
    action: String,
}

impl From<&Problem> for Row {
    fn from(problem: &Problem) -> Self {
        let (state, action) = match &problem.outcome {
            Outcome::Mendable(how) => ("found", how),
            Outcome::Mended(how) => ("repaired", how),
            Outcome::Left(remedy) => ("left", remedy),
        };
        let path = Text::from(problem.path.as_slice());
        Self { place: problem.place.clone(), path, problem: problem.what.clone(), state, action: action.clone() }
    }
}

/// Opens, looks, prints.
pub(crate) fn main(args: &Args) -> anyhow::Result<ExitCode> {
    let at = format!("fsck {}", args.upper.display());
    let mut params = Params::dialect(&args.options)?;
    marks::settle(&mut params)?;
    if let Some(lower) = &args.lower {
        let Lowers { merged, data } = parse_paths("--lower", lower)?;
        (params.lowers, params.data) = (merged, data);
    }
    let lowers = params.lowers.iter().chain(&params.data);
    let layers: Vec<(&'static str, &Path)> = lowers
        .map(|lower| ("lowerdir", lower.as_path()))
        .chain([("upperdir", args.upper.as_path()), ("workdir", args.work.as_path())])
        .collect();
    check_overlap(&layers)?;
    if is_workdir(&args.upper) && !is_workdir(&args.work) {
        let why = "it holds what a work directory does, and nothing else";
        return Err(failure(format_args!("--upper {}", args.upper.display()), why, "see whether --upper and --work are exchanged"));
    }
    let tree = DirTree::to_check(&args.upper, &args.work)?;
    let recorded = tree.recorded_dialect().map_err(|errno| {
        let why = match errno {
            Errno::INVAL => "its file 'dialect' is of a form that this version does not know".to_owned(),
            errno => format!("its file 'dialect' cannot be read: {errno}"),
        };
        failure(format_args!("workdir {}", args.work.display()), why, "check it with the version that made it")
    })?;
    if recorded.map_or(!params.user_xattr, |dialect| dialect == Dialect::Trusted) {
        marks::can_be_read(&at)?;
    }
    // Its root tells whether owners are kept in attributes, whoever looks.
    params.override_stat = tree.keeps_owners_aside().map_err(|errno| failure(&at, errno, "see that root can read there"))?;
    let upper = marks::upper_to_read(tree, &args.upper, &params, recorded)?;
    let lowers = marks::open(&marks::lowers(&params), &params.data, &params)?;
    let failed = |error| failure(&at, error, "see that root can read and write there");
    let union = Union::new(LayerStack { upper: Some(upper), lowers }, Behaviour::default()).map_err(failed)?;
    let mut found = Vec::new();
    let checked = union.fsck(args.repair, &mut |problem| found.push(problem));
    print(&found, args.json)?;
    checked.map_err(failed)?;
    let code = found.iter().fold(0, |code, problem| {
        code | match problem.outcome {
            Outcome::Mended(_) => 1,
            Outcome::Mendable(_) | Outcome::Left(_) => 4,
        }
    });
    Ok(ExitCode::from(code))
}

/// Whether a directory looks as the workdir of a union that was mounted. One that cannot be read is told when it is opened.
fn is_workdir(dir: &Path) -> bool {
    const OWN: [&str; 4] = ["work", "index", "dialect", "lost+found"];
    let Ok(entries) = std::fs::read_dir(dir) else { return false };
    let names: Vec<_> = entries.filter_map(|entry| entry.map(|entry| entry.file_name()).ok()).collect();
    let has = |name: &str| names.iter().any(|found| found == name);
    has("work") && (has("index") || has("dialect")) && names.iter().all(|name| OWN.iter().any(|own| name == own))
}

fn print(found: &[Problem], json: bool) -> anyhow::Result<()> {
    output::to_stdout(|out| {
        let rows: Vec<Row> = found.iter().map(Row::from).collect();
        if json {
            serde_json::to_writer(&mut *out, &rows)?;
            return out.write_all(b"\n");
        }
        for (row, problem) in rows.iter().zip(found) {
            let then = match &problem.outcome {
                Outcome::Mendable(how) => format!("with --repair: {how}"),
                Outcome::Mended(how) => format!("repaired: {how}"),
                Outcome::Left(remedy) => format!("left: {remedy}"),
            };
            let path = String::from_utf8_lossy(&problem.path);
            writeln!(out, "{}", one_line(&format!("{}: {path}: {}; {then}", row.place, row.problem)))?;
        }
        Ok(())
    })
}
