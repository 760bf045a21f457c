//! Which CPUs the client and the daemon run on.
//!
//! Affinity is inherited: what the lab's thread has when it starts a daemon or a tool, these have too.

use anyhow::Result;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Cpus {
    /// All CPUs, as the scheduler likes.
    Free,
    /// One CPU for all.
    Pinned,
    /// One after the other.
    Both,
}

/// One of the two ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mode {
    /// All CPUs, as the scheduler likes.
    Free,
    /// One CPU for all.
    Pinned,
}

impl Mode {
    /// As it stands in tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Mode::Free => "free",
            Mode::Pinned => "pinned",
        }
    }
}

impl Cpus {
    /// The ways that this stands for.
    pub(crate) fn modes(self) -> &'static [Mode] {
        match self {
            Cpus::Free => &[Mode::Free],
            Cpus::Pinned => &[Mode::Pinned],
            Cpus::Both => &[Mode::Free, Mode::Pinned],
        }
    }
}

/// Puts this thread on its CPUs for as long as it lives.
pub(crate) struct Affinity {
    before: CpuSet,
}

impl Affinity {
    /// Pinned is the last CPU of those there are: the first has most of the machine's own work.
    pub(crate) fn enter(mode: Mode) -> Result<Affinity> {
        let before = sched_getaffinity(None)?;
        if mode == Mode::Pinned {
            let last = (0..CpuSet::MAX_CPU).rev().find(|&cpu| before.is_set(cpu)).unwrap_or(0);
            let mut one = CpuSet::new();
            one.set(last);
            sched_setaffinity(None, &one)?;
        }
        Ok(Affinity { before })
    }
}

impl Drop for Affinity {
    fn drop(&mut self) {
        if let Err(errno) = sched_setaffinity(None, &self.before) {
            eprintln!("lab: the CPUs cannot be set back: {errno}");
        }
    }
}
