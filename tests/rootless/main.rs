//! plyfs in the hands of ordinary users, and in user namespaces. A program of its own, after the other tests: each user namespace holds a copy of all that the machine has mounted, as long as it is
//! there, and so keeps other tests' filesystems in use.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../common/apart.rs"]
mod apart;
mod attempt;
#[path = "../common/garbage.rs"]
mod garbage;
#[path = "../cli/lab.rs"]
#[allow(dead_code)]
mod lab;
mod mount;
mod run;
#[path = "../common/skip.rs"]
mod skip;
mod user;
