//! Unions of real directories, served over FUSE and used through the mount.
//!
//! Needs root and /dev/fuse. Where they are missing each test prints `SKIP name: reason` and appends `name: reason` to the file that
//! `PLYFS_SKIP_LOG` names. Every mount is below a temporary directory and is unmounted by a guard, also when the test fails.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod caches;
mod files;
mod lab;
mod names;
mod session;
mod slow;
mod threads;
