//! The command line as users and other programs call it: the built binary, its output and exit codes, and what it leaves behind.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../common/apart.rs"]
mod apart;
mod apply;
mod attempt;
mod bad_input;
mod diff;
mod fsck;
#[path = "../common/garbage.rs"]
mod garbage;
mod info;
#[path = "../common/kernel.rs"]
mod kernel;
mod lab;
mod many;
mod marks;
mod mount;
mod run;
#[path = "../common/skip.rs"]
mod skip;
mod umount;
