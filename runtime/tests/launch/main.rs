//! Launches of real commands. They need root; without it every case is counted as skipped.
//!
//! This program is also what it tests: started with the hidden verb it is the launcher process, and with `__caller NAME` a caller of its
//! own, for the cases that send signals to one or kill it. Everything goes on in a mount namespace of its own, whose table of mounts has
//! to be the same afterwards.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod cases;
mod support;
mod terminals;

use std::process::ExitCode;

use plyfs_sys::ns::{self, Namespaces};
use plyfs_sys::process::signals;

fn main() -> ExitCode {
    if plyfs_runtime::is_launch() {
        return plyfs_runtime::launch_main();
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [verb, name, rest @ ..] = arguments.as_slice()
        && verb == "__caller"
    {
        return cases::caller(name, rest);
    }
    let list = arguments.iter().any(|argument| argument == "--list");
    let exact = arguments.iter().any(|argument| argument == "--exact");
    let filters: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let wanted = |name: &str| {
        filters.is_empty() || filters.iter().any(|filter| if exact { name == *filter } else { name.contains(filter.as_str()) })
    };
    let cases: Vec<_> = cases::ALL.iter().chain(terminals::ALL).filter(|(name, _)| wanted(name)).collect();
    if list {
        // As the usual harness, for runners that ask; there are no ignored cases.
        if !arguments.iter().any(|argument| argument == "--ignored") {
            cases.iter().for_each(|(name, _)| println!("{name}: test"));
        }
        return ExitCode::SUCCESS;
    }
    // Whoever started the tests may have them ignore signals, as nohup(1) does.
    signals::reset(&[]).unwrap();
    plyfs_sys::signal::ignore_sigpipe().unwrap();
    let root = plyfs_sys::process::effective_uid() == 0;
    if root {
        ns::unshare(Namespaces { mount: true, ..Namespaces::default() }).unwrap();
        plyfs_sys::mount::make_private_recursive("/").unwrap();
    }
    let mut failed = Vec::new();
    for (name, case) in cases {
        if !root {
            support::skip(name, "needs root");
            continue;
        }
        let before = support::state();
        let result = std::panic::catch_unwind(case);
        let after = support::state();
        let ok = result.is_ok() && before == after;
        println!("test {name} ... {}", if ok { "ok" } else { "FAILED" });
        if !ok {
            if before != after {
                println!("left behind: {before:#?} became {after:#?}");
            }
            failed.push(name);
        }
    }
    if failed.is_empty() {
        println!("test result: ok");
        ExitCode::SUCCESS
    } else {
        println!("test result: FAILED: {failed:?}");
        ExitCode::FAILURE
    }
}
