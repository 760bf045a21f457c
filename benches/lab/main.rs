//! The mount-level lab: the same works on plyfs, on kernel overlayfs and on fuse-overlayfs, side by side.
//!
//! A program, not a test: it runs for minutes and its numbers mean something on an idle machine only. How to run it, and what each work is, is in
//! benches/README.md. Everything that it mounts is below a temporary directory of its own and goes on every way out (cleanup.rs).
//!
//! | file | owns |
//! | --- | --- |
//! | input.rs | the layers that are mounted, the same in each run |
//! | system.rs | the systems; one fresh mount of one of them |
//! | works.rs | what is timed |
//! | measure.rs | rounds, in which the systems take turns; what they must agree on |
//! | table.rs | medians and ratios |
//! | latency.rs | look-ups while files are copied up |
//! | digest.rs | what a mount shows, as one number |
//! | cpu.rs | one CPU for all, or all CPUs |
//! | cleanup.rs | the temporary directory, and what is mounted in it |

mod cleanup;
mod cpu;
mod digest;
mod input;
mod latency;
mod measure;
mod system;
mod table;
mod works;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, Subcommand};

use crate::cpu::Cpus;
use crate::input::{Inputs, Sizes};
use crate::system::System;

/// Times the same works on plyfs, kernel overlayfs and fuse-overlayfs.
#[derive(Debug, Parser)]
#[command(name = "lab", bin_name = "cargo bench --bench lab --", max_term_width = 100)]
struct Args {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    common: Common,
    /// Only these works, by id [default: all]; an id without its last part stands for all that begin with it
    #[arg(long, value_delimiter = ',', value_name = "ID,...")]
    work: Vec<String>,
    /// Entries of the tree, over its four layers [default: 56000, with --quick 8000]
    #[arg(long)]
    entries: Option<u32>,
    /// Write every single time to this file too: work, system, CPUs, round, milliseconds
    #[arg(long, value_name = "FILE")]
    raw: Option<PathBuf>,
    /// What cargo passes
    #[arg(long, hide = true, global = true)]
    bench: bool,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the works
    List,
    /// How long look-ups take while big files are copied up
    CopyupLatency(latency::Args),
}

/// What all verbs take.
#[derive(Debug, clap::Args)]
struct Common {
    /// Which systems: plyfs, kernel, fuse-overlayfs, or NAME=PATH for another build of plyfs
    #[arg(long, global = true, value_delimiter = ',', default_value = "plyfs,kernel,fuse-overlayfs", value_name = "NAME,...")]
    systems: Vec<String>,
    /// How often each work is done on each system [default: 5, with --quick 3]
    #[arg(long, global = true)]
    rounds: Option<u32>,
    /// Smaller inputs, fewer rounds: to see that all works
    #[arg(long, global = true)]
    quick: bool,
    /// With client and daemon on one CPU (pinned), left to the scheduler (free), or one after the other
    #[arg(long, global = true, value_enum, default_value_t = Cpus::Both)]
    cpu: Cpus,
    /// The program to measure [default: the one that cargo has just built]
    #[arg(long, global = true, value_name = "PATH")]
    plyfs: Option<PathBuf>,
    /// The rival's program [default: fuse-overlayfs from $PATH]
    #[arg(long, global = true, value_name = "PATH")]
    fuse_overlayfs: Option<PathBuf>,
    /// Where to put layers and mountpoints, on the filesystem that is to hold them [default: the directory for temporary files]
    #[arg(long, global = true, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl Common {
    fn rounds(&self) -> u32 {
        self.rounds.unwrap_or(if self.quick { 3 } else { 5 }).max(1)
    }
}

fn main() -> ExitCode {
    // A test runner that goes through all targets starts this one too, without what `cargo bench` passes.
    if !std::env::args_os().any(|arg| arg == "--bench") {
        eprintln!("lab: nothing done; it is run by `cargo bench --bench lab`");
        return ExitCode::SUCCESS;
    }
    match run(&Args::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<ExitCode> {
    if matches!(args.verb, Some(Verb::List)) {
        for work in works::WORKS {
            println!("{:<18} {} ({})", work.id, work.title, work.cache);
        }
        return Ok(ExitCode::SUCCESS);
    }
    ensure!(plyfs_sys::process::effective_uid() == 0, "only root can mount kernel overlayfs; run it as root");
    let works = works::chosen(&args.work)?;
    let lab = cleanup::start(args.common.dir.as_deref())?;
    let systems = systems(&args.common, lab.path())?;
    println!("{}", about(&systems, lab.path())?);
    match &args.verb {
        Some(Verb::CopyupLatency(options)) => {
            latency::run(&args.common, options, &systems, lab.path())?;
            Ok(ExitCode::SUCCESS)
        }
        Some(Verb::List) | None => {
            let sizes = Sizes::new(args.common.quick, args.entries);
            let mut inputs = Inputs::new(lab.path(), sizes);
            let results = measure::run(&args.common, &works, &systems, &mut inputs)?;
            println!("{}", table::markdown(&systems, &works, &results));
            if let Some(path) = &args.raw {
                table::write_raw(path, &systems, &works, &results).with_context(|| format!("write {}", path.display()))?;
            }
            for note in &results.notes {
                println!("! {note}");
            }
            Ok(if results.notes.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}

/// The systems that were asked for and are here; the others are named.
fn systems(args: &Common, base: &std::path::Path) -> Result<Vec<System>> {
    let mut found = Vec::new();
    for (number, name) in args.systems.iter().enumerate() {
        let place = base.join(format!("m{number}"));
        match System::find(name, args.plyfs.as_deref(), args.fuse_overlayfs.as_deref(), place) {
            Ok(system) => found.push(system),
            Err(error) => eprintln!("lab: {name} is left out: {error:#}"),
        }
    }
    if found.is_empty() {
        bail!("none of the systems is here");
    }
    Ok(found)
}

/// What was measured, where.
fn about(systems: &[System], base: &std::path::Path) -> Result<String> {
    let uname = rustix::system::uname();
    let cpus = std::thread::available_parallelism()?;
    let mounts = plyfs_sys::mount::mounts()?;
    let fs = mounts.iter().filter(|mount| base.starts_with(std::ffi::OsStr::new(&*String::from_utf8_lossy(&mount.mountpoint))));
    let fs = fs.max_by_key(|mount| mount.mountpoint.len()).map(|mount| String::from_utf8_lossy(&mount.fstype).into_owned());
    let mut text = format!("Linux {}, {cpus} CPUs, layers on {}", uname.release().to_string_lossy(), fs.unwrap_or_default());
    for system in systems {
        text.push_str(&format!("; {}", system.version));
    }
    Ok(text)
}
