//! The rounds: every work on every system, the systems taking turns, each time on a fresh mount with an empty upper.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::Common;
use crate::cpu::{Affinity, Mode};
use crate::digest::{Shown, shown};
use crate::input::{Input, Inputs};
use crate::system::{Access, System};
use crate::works::{Site, Work};

/// What belongs to one number: work, system, CPUs.
pub(crate) type Cell = (usize, usize, Mode);

/// The times of all rounds, and what was wrong.
#[derive(Default)]
pub(crate) struct Results {
    /// In the order of the rounds.
    pub(crate) times: BTreeMap<Cell, Vec<Duration>>,
    /// Failures, and results on which the systems do not agree.
    pub(crate) notes: Vec<String>,
}

/// What a system did in one work, for the others to agree with.
#[derive(PartialEq, Eq, Clone, Copy, Debug)]
struct Outcome {
    count: u64,
    shown: Option<Shown>,
}

/// Does all of it.
pub(crate) fn run(args: &Common, works: &[&Work], systems: &[System], inputs: &mut Inputs) -> Result<Results> {
    let mut results = Results::default();
    let mut checked = Vec::new();
    for (number, work) in works.iter().enumerate() {
        let layers = inputs.layers(work.input)?;
        if !checked.contains(&work.input) {
            checked.push(work.input);
            same_to_all(work.input, systems, &layers, &mut results.notes)?;
        }
        let archive = inputs.archive()?;
        let mut outcomes: BTreeMap<usize, Outcome> = BTreeMap::new();
        let mut failed = Vec::new();
        for round in 0..args.rounds() as usize {
            for &mode in args.cpu.modes() {
                let first = round == 0 && args.cpu.modes().first() == Some(&mode);
                // Round 1: A B C, round 2: B C A, so that nobody is always after somebody.
                for turn in 0..systems.len() {
                    let index = (round + turn) % systems.len();
                    let Some(system) = systems.get(index) else { continue };
                    if failed.contains(&index) {
                        continue;
                    }
                    let site = |point: &Path| Site { point: point.to_owned(), sizes: inputs.sizes, archive: archive.clone() };
                    match once(work, system, &layers, mode, first, site) {
                        Ok((time, outcome)) => {
                            results.times.entry((number, index, mode)).or_default().push(time);
                            let before = *outcomes.entry(index).or_insert(outcome);
                            if before.count != outcome.count {
                                let (before, now) = (before.count, outcome.count);
                                results.notes.push(format!("{}, {}: counted {before}, and {now} in another round", work.id, system.name));
                            }
                        }
                        Err(error) => {
                            results.notes.push(format!("{}, {}: {error:#}", work.id, system.name));
                            failed.push(index);
                        }
                    }
                }
            }
            progress(&format!("{:>3}/{} {}, round {}", number + 1, works.len(), work.id, round + 1));
        }
        agree(work.id, systems, &outcomes, &mut results.notes);
    }
    progress("");
    Ok(results)
}

/// Says on a terminal, in one line that the next one replaces, how far it is.
pub(crate) fn progress(what: &str) {
    if std::io::stderr().is_terminal() {
        eprint!("\r{what:<60}\r");
    }
}

/// One work on one system.
fn once(
    work: &Work,
    system: &System,
    layers: &[PathBuf],
    mode: Mode,
    look: bool,
    site: impl Fn(&Path) -> Site,
) -> Result<(Duration, Outcome)> {
    let affinity = Affinity::enter(mode)?;
    let mounted = system.mount(layers, work.access)?;
    let site = site(mounted.point());
    let job = (work.prepare)(&site).context("prepare")?;
    // What others have written, and the preparation, must not be written back on this one's time.
    settle(mounted.point().parent().unwrap_or(Path::new("/")))?;
    let start = Instant::now();
    let count = job()?;
    let time = start.elapsed();
    drop(affinity);
    let shown = match work.result {
        Some(part) if look => Some(shown(&mounted.point().join(part), false).context("walk over the result")?),
        _ => None,
    };
    mounted.unmount()?;
    Ok((time, Outcome { count, shown }))
}

/// Writes everything back on the filesystem of the layers.
pub(crate) fn settle(dir: &Path) -> Result<()> {
    Ok(rustix::fs::syncfs(File::open(dir)?)?)
}

/// What is mounted must look the same on all systems, contents included. This also brings the layers into the host's caches: what is fresh
/// later is the mount, never the disk.
pub(crate) fn same_to_all(input: Input, systems: &[System], layers: &[PathBuf], notes: &mut Vec<String>) -> Result<()> {
    let mut outcomes = BTreeMap::new();
    for (index, system) in systems.iter().enumerate() {
        let seen = system.mount(layers, Access::Writable).and_then(|mounted| {
            let seen = shown(mounted.point(), true)?;
            mounted.unmount()?;
            Ok(seen)
        });
        match seen {
            Ok(seen) => {
                outcomes.insert(index, Outcome { count: seen.entries, shown: Some(seen) });
            }
            Err(error) => notes.push(format!("layers of {input:?}, {}: {error:#}", system.name)),
        }
    }
    if let Some(outcome) = outcomes.values().next() {
        progress("");
        eprintln!("layers of {input:?}: {} entries", outcome.count);
    }
    agree(&format!("layers of {input:?}"), systems, &outcomes, notes);
    Ok(())
}

/// Compares with kernel overlayfs, or with the first system if it is not there.
fn agree(what: &str, systems: &[System], outcomes: &BTreeMap<usize, Outcome>, notes: &mut Vec<String>) {
    let kernel = outcomes.iter().find(|(index, _)| systems.get(**index).is_some_and(System::is_kernel));
    let Some((right, expected)) = kernel.or_else(|| outcomes.iter().next()) else { return };
    let name = |index: &usize| systems.get(*index).map_or("", |system| &system.name);
    for (index, outcome) in outcomes {
        if outcome != expected {
            notes.push(format!("{what}: {} has {outcome:?}, {} has {expected:?}", name(index), name(right)));
        }
    }
}
