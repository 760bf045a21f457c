//! The model test: one generator of layers and operations, and filesystems that must agree on every answer and everything that shows.
//!
//! | module | is |
//! | --- | --- |
//! | `case`, `generate`, `shrink` | cases as values and text, from a seed, made small |
//! | `reference` | the POSIX oracle, a tree in memory |
//! | `union` | the union under test, over memory (`memory`) and real directories (`directories`) |
//! | `inside` | the tests once more in a user namespace |
//! | `nested` | unions on unions, through real mounts |
//! | `plain` | a real directory or kernel mount through system calls |
//! | `diff` | the diff by its rules |
//! | `divergences` | where they may differ |
//! | `run` | one case on several of them |
//! | `catalogue` | operations of every kind |
//! | `crash` | what a power cut leaves |
//! | `fault` | the union when a layer's call fails |
//! | `killed` | what a server leaves that is killed at any of its calls |
//! | `stress` | many threads at once |
//! | `regressions` | what failed once |
//!
//! `PLYFS_MODEL_CASES` multiplies the number of cases, `PLYFS_MODEL_SEED` runs the one case of a seed that a failure printed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod build;
mod case;
mod catalogue;
mod crash;
mod diff;
mod directories;
mod divergences;
mod fault;
mod generate;
mod inside;
mod killed;
mod memory;
mod nested;
mod plain;
mod reference;
mod regressions;
mod run;
mod shrink;
mod stress;
mod system;
mod union;
mod view;

#[path = "../common/kernel.rs"]
mod kernel;
#[path = "../common/skip.rs"]
mod skip;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use plyfs_format::Dialect;
use plyfs_overlay::Keeping;
use plyfs_sys::Errno;

use crate::case::Case;
use crate::generate::{Options, case};
use crate::run::caught;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().and_then(|text| text.parse().ok())
}

/// Runs the cases of `count` seeds, always the same ones: what fails in CI was there before the change or came with it. With PLYFS_MODEL_NEW=1 they are new each time. Stops when it
/// has found some failures, and panics with all of them.
fn cases(name: &str, count: u64, options: Options, run: &dyn Fn(&Case) -> Result<(), String>) {
    const ENOUGH: usize = 4;
    let count = count * number("PLYFS_MODEL_CASES").unwrap_or(1).max(1);
    let new = number("PLYFS_MODEL_NEW").is_some_and(|yes| yes != 0);
    let first = if new { SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs() << 24) } else { 0 };
    let seeds = match number("PLYFS_MODEL_SEED") {
        Some(seed) => seed..seed + 1,
        None => first..first + count,
    };
    eprintln!("{name}: seeds {seeds:?}");
    let mut failures = Vec::new();
    for seed in seeds {
        let case = case(seed, options);
        let Some(failure) = caught(&case, run) else { continue };
        eprintln!("{name}: seed {seed} fails: {failure}\nshrinking ...");
        let (small, failure) = shrink::shrink(case, failure, &mut |case| caught(case, run));
        failures.push(format!("PLYFS_MODEL_SEED={seed}\n{small}{failure}\n"));
        if failures.len() == ENOUGH {
            break;
        }
    }
    assert!(failures.is_empty(), "{name}: {} failures\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn memory_layers_agree_with_the_reference() {
    cases("memory", 30_000, Options { ops: 24, remounts: true }, &memory::run);
}

#[test]
fn layers_of_every_dialect_agree_with_the_reference() {
    let extra = memory::Extra { dialects: true, ..Default::default() };
    cases("dialects", 6_000, Options { ops: 16, remounts: true }, &|case| memory::run_with(case, extra));
}

#[test]
fn uppers_of_every_dialect_agree_with_the_reference() {
    for (name, dialect) in [("upper of the dialect User", Dialect::User), ("upper of the dialect Aufs", Dialect::Aufs)] {
        cases(name, 2_500, Options { ops: 20, remounts: true }, &|case| memory::run_upper(case, dialect));
    }
}

#[test]
fn two_thousand_layers_agree_with_the_reference() {
    let extra = memory::Extra { padding: 2000, ..Default::default() };
    cases("two thousand", 15, Options { ops: 12, remounts: true }, &|case| memory::run_with(case, extra));
}

#[test]
fn a_failing_call_undoes_the_operation() {
    cases("faults", 15_000, Options { ops: 24, remounts: false }, &fault::run);
}

/// Goes through the catalogue of operations.
fn catalogue(name: &str, run: &dyn Fn(&Case) -> Result<(), String>) {
    let failures: Vec<_> = catalogue::cases().filter_map(|case| Some(format!("{case}{}\n", caught(&case, run)?))).collect();
    assert!(failures.is_empty(), "{name}: {} failures\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn the_catalogue_agrees_with_the_reference() {
    catalogue("memory", &memory::run);
}

#[test]
fn each_failing_call_leaves_what_shows_after_a_remount() {
    let points = std::cell::Cell::new(0);
    let plan = |call, errno| fault::Plan { call, errno, then: fault::Then::Pass };
    // Full disks are looked at everywhere, each other errno at every eighth call; with PLYFS_MODEL_CASES all at all.
    let all = number("PLYFS_MODEL_CASES").is_some();
    let plans = |call: usize| -> Vec<_> {
        let errnos = fault::ERRNOS.iter().enumerate();
        errnos.filter(|(index, errno)| all || **errno == Errno::NOSPC || call % 8 == *index).map(|(_, errno)| plan(call, *errno)).collect()
    };
    let sweep = |case: &Case| {
        points.set(points.get() + fault::sweep(case, &plans)?);
        Ok(())
    };
    catalogue("each fault", &sweep);
    cases("each fault", 20, Options { ops: 5, remounts: false }, &sweep);
    eprintln!("{} points", points.get());
}

#[test]
fn what_fails_while_a_failure_is_undone_leaves_what_shows_after_a_remount() {
    let points = std::cell::Cell::new(0);
    let plan = |call, after| fault::Plan { call, errno: Errno::IO, then: fault::Then::Again(after) };
    let all = number("PLYFS_MODEL_CASES").is_some();
    let plans = |call: usize| (1..=3).filter(|after| all || call % 3 + 1 == *after).map(|after| plan(call, after)).collect();
    catalogue("two faults", &|case| {
        points.set(points.get() + fault::sweep(case, &plans)?);
        Ok(())
    });
    eprintln!("{} points", points.get());
}

#[test]
fn after_a_power_cut_everything_is_old_or_new() {
    catalogue("power cuts", &crash::run);
    cases("power cuts", 500, Options { ops: 12, remounts: false }, &crash::run);
}

/// Layers with whiteouts, owners and `trusted.` attributes take root.
fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn directories_agree_with_a_plain_directory() {
    if !is_root() {
        skip::skip!("needs root");
    }
    let kernel = directories::no_kernel().is_none();
    directories::with_own_mounts(move || {
        let with = directories::With { plain: true, kernel: false, handover: kernel, extra: Default::default() };
        cases("directories", 900, Options { ops: 20, remounts: true }, &|case| directories::run(case, with));
    });
}

#[test]
fn two_thousand_directories_agree_with_a_plain_directory() {
    if !is_root() {
        skip::skip!("needs root");
    }
    directories::with_own_mounts(move || {
        let extra = memory::Extra { padding: 2000, dialects: true, ..Default::default() };
        let with = directories::With { plain: true, kernel: false, handover: false, extra };
        cases("two thousand directories", 3, Options { ops: 8, remounts: true }, &|case| directories::run(case, with));
    });
}

#[test]
fn directories_of_every_dialect_agree_with_a_plain_directory() {
    if !is_root() {
        skip::skip!("needs root");
    }
    directories::with_own_mounts(move || {
        let extra = memory::Extra { dialects: true, ..Default::default() };
        let with = directories::With { plain: true, kernel: false, handover: false, extra };
        cases("dialects in directories", 150, Options { ops: 12, remounts: true }, &|case| directories::run(case, with));
    });
}

/// Runs the cases of each kind of upper in directories.
fn uppers(kinds: &[(&str, memory::Extra)], count: u64) {
    for (name, extra) in kinds {
        cases(name, count, Options { ops: 16, remounts: true }, &|case| directories::run_upper(case, *extra));
    }
}

#[test]
fn uppers_of_every_dialect_in_directories_agree_with_the_reference() {
    if !is_root() {
        skip::skip!("needs root");
    }
    directories::with_own_mounts(|| {
        let upper = |dialect, keeping| memory::Extra { upper: Some(dialect), keeping, ..Default::default() };
        uppers(
            &[
                ("User", upper(Dialect::User, Keeping::InObjects)),
                ("Aufs", upper(Dialect::Aufs, Keeping::InObjects)),
                ("Trusted, owners in attributes", upper(Dialect::Trusted, Keeping::Always)),
                ("User, owners in attributes", upper(Dialect::User, Keeping::Always)),
            ],
            60,
        );
    });
}

#[test]
fn uppers_in_a_user_namespace_agree_with_the_reference() {
    const INSIDE: &str = "PLYFS_MODEL_INSIDE";
    if std::env::var_os(INSIDE).is_none() {
        if !is_root() {
            skip::skip!("needs root");
        }
        return inside::again("uppers_in_a_user_namespace_agree_with_the_reference", INSIDE);
    }
    let upper = |dialect, keeping| memory::Extra { upper: Some(dialect), keeping, lowers: Some(Dialect::User), ..Default::default() };
    uppers(
        &[
            ("User", upper(Dialect::User, Keeping::WhereRefused)),
            ("Aufs", upper(Dialect::Aufs, Keeping::WhereRefused)),
            ("User, owners in attributes", upper(Dialect::User, Keeping::Always)),
        ],
        60,
    );
}

#[test]
fn kernel_overlayfs_agrees() {
    if !is_root() {
        skip::skip!("needs root");
    }
    if let Some(reason) = directories::no_kernel() {
        skip::skip!("{reason}");
    }
    directories::with_own_mounts(|| {
        let with = directories::With { plain: false, kernel: true, handover: true, extra: Default::default() };
        cases("kernel", 400, Options { ops: 20, remounts: true }, &|case| directories::run(case, with));
    });
}

#[test]
fn unions_on_unions_agree_with_the_reference() {
    if !is_root() {
        skip::skip!("needs root");
    }
    if let Err(errno) = plyfs_sys::mount::open_dev_fuse() {
        skip::skip!("needs /dev/fuse: {errno}");
    }
    if let Some(reason) = directories::no_kernel() {
        skip::skip!("{reason}");
    }
    directories::with_own_mounts(|| {
        for shape in nested::SHAPES {
            for text in nested::KEPT {
                let case = text.parse().unwrap();
                assert_eq!(caught(&case, &|case| nested::run(shape, case)), None, "{}: {case}", shape.name);
            }
            cases(shape.name, 18, Options { ops: 20, remounts: true }, &|case| nested::run(shape, case));
        }
    });
}

fn stress_time(seconds: u64) -> Duration {
    Duration::from_secs(seconds * number("PLYFS_MODEL_CASES").unwrap_or(1).max(1))
}

#[test]
fn threads_leave_memory_layers_in_order() {
    let case: Case = stress::LAYERS.parse().unwrap();
    let layers = stress::shared(memory::Layers::new(&case.lowers, &case));
    let calls = stress::run(memory::system(&layers, true), stress_time(5), || layers.lock().unwrap().check());
    eprintln!("{calls} calls");
}

#[test]
fn threads_leave_directories_in_order() {
    if !is_root() {
        skip::skip!("needs root");
    }
    let case: Case = stress::LAYERS.parse().unwrap();
    let layers = stress::shared(directories::Layers::new(&case.lowers, &case));
    let calls = stress::run(directories::system(&layers, true), stress_time(8), || layers.lock().unwrap().check());
    eprintln!("{calls} calls");
}
