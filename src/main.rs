//! plyfs: parse, dispatch, exit code.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    // A launch is this program started anew by itself: it must come before anything that opens descriptors.
    if plyfs_runtime::is_launch() {
        return plyfs_runtime::launch_main();
    }
    match cli::parse(std::env::args_os().collect()) {
        Ok(invocation) => cli::dispatch(invocation),
        Err(code) => code,
    }
}
