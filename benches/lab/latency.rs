//! `copyup-latency`: how long look-ups take while big files are copied up on the same mount.
//!
//! One thread asks for names that the kernel does not know yet, one after the other, so that each is a look-up: every other one is there, the rest
//! are not. Meanwhile others open a big lower file each for writing, and wait for its copy-up. The same thread, on the same mount, with nobody
//! copying, is the measure of what is idle.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::Common;
use crate::cpu::{Affinity, Mode};
use crate::input::write_noise;
use crate::measure::{progress, settle};
use crate::system::{Access, System};
use crate::table::{digits, grid, median};

/// Of `copyup-latency`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The size of each file that is copied up [default: 1024, with --quick 256]
    #[arg(long)]
    mib: Option<u64>,
    /// How many copy-ups at once; each number is measured [default: 1 and the number of plyfs's request loops here]
    #[arg(long, value_delimiter = ',')]
    copies: Vec<usize>,
    /// Microseconds between two look-ups
    #[arg(long, default_value_t = 0)]
    pause: u64,
    /// How long the idle look-ups go on, in milliseconds
    #[arg(long, default_value_t = 2_000)]
    idle: u64,
    /// Mount with volatile: nothing waits for the disk
    #[arg(long)]
    volatile: bool,
}

/// Names that are there. When they are used up, every look-up is of one that is not.
const NAMES: usize = 100_000;
const NAMES_QUICK: usize = 20_000;

/// Look-ups of one phase.
struct Phase {
    p50: Duration,
    p99: Duration,
    max: Duration,
    count: usize,
}

/// One round: idle, then busy, and how long the copy-ups took.
struct Round {
    idle: Phase,
    busy: Phase,
    copied: Duration,
}

/// Does all of it and prints the table.
pub(crate) fn run(common: &Common, args: &Args, systems: &[System], base: &Path) -> Result<()> {
    let mib = args.mib.unwrap_or(if common.quick { 256 } else { 1024 });
    let loops = std::thread::available_parallelism()?.get().clamp(4, 16);
    let copies = if args.copies.is_empty() { vec![1, loops] } else { args.copies.clone() };
    let names = if common.quick { NAMES_QUICK } else { NAMES };
    let most = copies.iter().copied().max().unwrap_or(1);
    let layers = layers(base, names, most, mib << 20)?;

    let mut rows = Vec::new();
    for &count in &copies {
        for &mode in common.cpu.modes() {
            let mut rounds: Vec<Vec<Round>> = systems.iter().map(|_| Vec::new()).collect();
            for round in 0..common.rounds() as usize {
                for turn in 0..systems.len() {
                    let index = (round + turn) % systems.len();
                    let (Some(system), Some(results)) = (systems.get(index), rounds.get_mut(index)) else { continue };
                    progress(&format!("{count} at once, {}, round {}, {}", mode.name(), round + 1, system.name));
                    results.push(once(system, &layers, names, count, mode, args).with_context(|| system.name.clone())?);
                }
            }
            for (system, rounds) in systems.iter().zip(&rounds) {
                rows.push(row(system, count, mode, rounds));
            }
        }
    }
    progress("");
    println!("Look-ups while files of {mib} MiB are copied up; microseconds, medians of {} rounds.\n", common.rounds());
    let head = [
        "copy-ups",
        "CPUs",
        "system",
        "idle p50",
        "idle p99",
        "busy p50",
        "busy p99",
        "busy max",
        "p99 busy/idle",
        "look-ups",
        "copy-up ms",
    ];
    println!("{}", grid(&head.map(str::to_owned), &rows, 3));
    Ok(())
}

fn row(system: &System, count: usize, mode: Mode, rounds: &[Round]) -> Vec<String> {
    let middle = |value: fn(&Round) -> Duration| median(&rounds.iter().map(value).collect::<Vec<_>>());
    let micros = |value: fn(&Round) -> Duration| digits(middle(value).map(|millis| millis * 1e3));
    let ratio = middle(|round| round.busy.p99).zip(middle(|round| round.idle.p99)).map(|(busy, idle)| busy / idle);
    vec![
        count.to_string(),
        mode.name().to_owned(),
        system.name.clone(),
        micros(|round| round.idle.p50),
        micros(|round| round.idle.p99),
        micros(|round| round.busy.p50),
        micros(|round| round.busy.p99),
        micros(|round| round.busy.max),
        digits(ratio),
        rounds.iter().map(|round| round.busy.count).min().unwrap_or(0).to_string(),
        digits(middle(|round| round.copied)),
    ]
}

fn layers(base: &Path, names: usize, files: usize, len: u64) -> Result<Vec<PathBuf>> {
    let layer = base.join("l");
    let dir = layer.join("names");
    fs::create_dir_all(&dir)?;
    for number in 0..names {
        File::create(dir.join(format!("f{number}")))?;
    }
    for number in 0..files {
        write_noise(&layer.join(format!("big-{number}")), len)?;
    }
    settle(base)?;
    Ok(vec![layer])
}

fn once(system: &System, layers: &[PathBuf], names: usize, copies: usize, mode: Mode, args: &Args) -> Result<Round> {
    let affinity = Affinity::enter(mode)?;
    let mounted = system.mount(layers, if args.volatile { Access::Volatile } else { Access::Writable })?;
    let point = mounted.point();
    settle(point.parent().unwrap_or(Path::new("/")))?;
    let mut asker = Asker { dir: point.join("names"), names, next: 0, pause: Duration::from_micros(args.pause) };
    let files: Vec<_> = (0..copies).map(|number| point.join(format!("big-{number}"))).collect();
    for path in &files {
        path.symlink_metadata()?;
    }
    let end = Instant::now() + Duration::from_millis(args.idle);
    let idle = asker.ask(|| Instant::now() < end)?;

    let running = AtomicUsize::new(copies);
    let barrier = Barrier::new(copies + 1);
    let start = Instant::now();
    let (busy, copied) = std::thread::scope(|scope| {
        let copiers: Vec<_> = files
            .iter()
            .map(|path| {
                let (barrier, running) = (&barrier, &running);
                scope.spawn(move || {
                    barrier.wait();
                    let opened = OpenOptions::new().write(true).open(path);
                    let time = start.elapsed();
                    running.fetch_sub(1, Ordering::Release);
                    opened.map(|_| time).with_context(|| format!("open {} for writing", path.display()))
                })
            })
            .collect();
        barrier.wait();
        let busy = asker.ask(|| running.load(Ordering::Acquire) > 0);
        let times: Result<Vec<_>> =
            copiers.into_iter().map(|copier| copier.join().map_err(|_| anyhow::anyhow!("a thread died"))?).collect();
        times.map(|times| (busy, times.into_iter().max().unwrap_or_default()))
    })?;
    drop(affinity);
    mounted.unmount()?;
    Ok(Round { idle, busy: busy?, copied })
}

struct Asker {
    dir: PathBuf,
    names: usize,
    next: usize,
    pause: Duration,
}

impl Asker {
    /// Asks as long as it may.
    fn ask(&mut self, mut more: impl FnMut() -> bool) -> Result<Phase> {
        let mut times = Vec::new();
        while more() || times.is_empty() {
            let number = self.next;
            self.next += 1;
            let there = number.is_multiple_of(2) && number / 2 < self.names;
            let path = self.dir.join(if there { format!("f{}", number / 2) } else { format!("missing-{number}") });
            let start = Instant::now();
            let found = path.symlink_metadata();
            times.push(start.elapsed());
            match found {
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound && !there => {}
                Err(error) => return Err(error).with_context(|| format!("{}", path.display())),
            }
            if !self.pause.is_zero() {
                std::thread::sleep(self.pause);
            }
        }
        times.sort_unstable();
        let at = |percent: usize| times.get((times.len() * percent / 100).min(times.len() - 1)).copied().unwrap_or_default();
        Ok(Phase { p50: at(50), p99: at(99), max: at(100), count: times.len() })
    }
}
