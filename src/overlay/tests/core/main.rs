//! What the union can and its present transport cannot carry: files without a name, times of birth, file handles, callers without ids. And owners that are mapped. Each test runs on layers in memory and
//! on real directories, which need root.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod birth;
mod callers;
mod export;
mod lab;
mod owners;
#[path = "../../../../tests/common/skip.rs"]
mod skip;
mod tmpfile;
