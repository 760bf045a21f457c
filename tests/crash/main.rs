//! Faults on real mounts: servers that are killed or whose system calls fail, power cuts, no space, no descriptors, no memory, many processes.
//!
//! As part of the tests each row of the table is done in a short form, the same in every run. The long form reaches the figures; CONTRIBUTING.md says how to run it.
//!
//! | module | is |
//! | --- | --- |
//! | `ops` | the operations, each done to a copy of one fixture |
//! | `sweep` | each operation with a kill, or an error, at each of its server's calls |
//! | `power` | power cuts |
//! | `random` | kills at moments that fall where they fall |
//! | `limits` | no space, no descriptors, no memory, many processes |
//! | `place` | layers with many copies of the fixture, and a server that may die |
//! | `gate` | the call at which a server is killed, or which fails |
//! | `seen` | what a tree shows |
//! | `form` | short or long, and the rows of the table |
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod form;
mod gate;
#[path = "../common/kernel.rs"]
mod kernel;
#[allow(unused_macros, unused_imports)]
#[path = "../mount/lab.rs"]
mod lab;
mod limits;
mod ops;
mod place;
mod power;
mod random;
mod seen;
#[path = "../common/skip.rs"]
mod skip;
mod sweep;
