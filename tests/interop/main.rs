//! The interop tests: plyfs on real input, against docker, kernel overlayfs and the machine that the tests run on.
//!
//! | module | is |
//! | --- | --- |
//! | `acd` | what docker said of changes in containers, said by `plyfs run` and `plyfs diff` |
//! | `apply` | `plyfs try apply` on a filesystem of its own: kills, others' edits, all kinds of changes |
//! | `debian` | a Debian system in layers: packages, a compiler, git, python, on plyfs and on kernel overlayfs |
//! | `podman` | podman and buildah with plyfs as their mount program |
//! | `host` | `plyfs try` on this machine's own `/` |
//! | `programs` | sqlite, git, rsync, cp and tar, on a mount as in a plain directory |
//! | `lab` | a directory for a test, with all that is mounted in it, and commands with a time limit |
//! | `tree` | everything that a directory tree shows, compared |
//!
//! All of them need root and `/dev/fuse`. Nothing that they make outlives them: mounts, processes and files go with the [`lab::Lab`] of a test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod acd;
#[path = "../common/apart.rs"]
mod apart;
mod apply;
mod debian;
mod host;
#[path = "../common/kernel.rs"]
mod kernel;
mod lab;
mod podman;
mod programs;
#[path = "../common/skip.rs"]
mod skip;
mod tree;
