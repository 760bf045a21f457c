//! How a test says that it cannot run here.
//!
//! libtest knows no skipped tests: a test that returns early counts as passed, and its output is captured. So the fact is also
//! written where `.ci/run` looks: one line `name: reason` is appended to the file that `PLYFS_SKIP_LOG` names. A skip that
//! `tests/allowed-skips.txt` does not list fails `.ci/run`.
//!
//! Taken into a test crate, or into the tests of a library, by its path:
//!
//! ```ignore
//! #[path = "common/skip.rs"]
//! mod skip;
//!
//! #[test]
//! fn device_numbers_are_kept() {
//!     if !privileged() {
//!         skip::skip!("needs root");
//!     }
//! }
//! ```
#![allow(dead_code, unused_macros, unused_imports, clippy::panic)]

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;

/// Leaves the test, which counts as skipped for the reason given (a format string and its arguments).
///
/// The name logged is the path of the function that says it, `crate::module::function`; so say it in the test itself.
macro_rules! skip {
    ($($reason:tt)*) => {{
        fn here() {}
        $crate::skip::record($crate::skip::enclosing(std::any::type_name_of_val(&here)), &format!($($reason)*));
        return;
    }};
}
pub(crate) use skip;

/// Prints and logs a skip without leaving the test.
///
/// # Panics
///
/// When the log cannot be written: a skip that nobody counts must not pass.
pub(crate) fn record(test: &str, reason: &str) {
    let reason = reason.replace('\n', " ");
    eprintln!("SKIP {test}: {reason}");
    if let Some(log) = std::env::var_os("PLYFS_SKIP_LOG") {
        append(log.as_ref(), test, &reason);
    }
}

/// Adds the line. One write, so that lines of tests that run at the same time do not mix.
pub(crate) fn append(log: &Path, test: &str, reason: &str) {
    let file = OpenOptions::new().append(true).create(true).open(log);
    let written = file.and_then(|mut file| file.write_all(format!("{test}: {reason}\n").as_bytes()));
    written.unwrap_or_else(|error| panic!("{}: {error}", log.display()));
}

/// `a::b::test::{{closure}}::here` to `a::b::test`.
pub(crate) fn enclosing(here: &str) -> &str {
    let mut name = here.strip_suffix("::here").unwrap_or(here);
    while let Some(outer) = name.strip_suffix("::{{closure}}") {
        name = outer;
    }
    name
}
