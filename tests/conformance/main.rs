//! The suites that others wrote for filesystems, on a mount: pjdfstest for POSIX's answers, fsx for data.
//!
//! `pjdfstest` and `fsx` are programs of the Cargo registry, looked for in the directory `PLYFS_TOOLS` and then in `PATH`; without them, root or
//! `/dev/fuse` a test is skipped. `.ci/run` installs them: `cargo install --locked pjdfstest@0.2.2 fsx@0.3.2`, which needs libacl1-dev.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod direct;
mod fsx;
#[path = "../common/kernel.rs"]
mod kernel;
#[path = "../mount/lab.rs"]
mod lab;
mod pjdfstest;
#[path = "../common/skip.rs"]
mod skip;
