//! Every `unsafe` block and raw system call of plyfs.
//!
//! The rest of the workspace forbids `unsafe` and names no system call. What is here is a thin, typed layer: one function is one
//! system call where that is possible, errors are the kernel's own [`Errno`], and nothing is logged, cached or retried beyond `EINTR`.
//!
//! Rules that hold for every module:
//!
//! - An object is named by a directory descriptor and *one* component ([`at::At::Name`]) or is a descriptor itself ([`at::At::Fd`]).
//!   There are no paths, and a symbolic link in the last place is never followed.
//! - Descriptors may be `O_PATH` unless a function says that it reads or writes data.
//! - Names are bytes, validated by [`at::check_name`].
//! - Every descriptor made here has `O_CLOEXEC`.
//! - `/proc` must be mounted and must show this process (see [`proc`]).

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

pub mod at;
pub mod beneath;
pub mod create;
pub mod daemon;
pub mod dir;
pub mod flags;
pub mod handle;
pub mod io;
pub mod limits;
pub mod memory;
pub mod mount;
pub mod ns;
pub mod proc;
pub mod process;
pub mod root;
pub mod signal;
pub mod stat;
pub mod statfs;
pub mod terminal;
pub mod tree;
pub mod userns;
mod xattr;

pub use rustix::fs::{OFlags, RenameFlags};
pub use rustix::io::Errno;

/// The result of a system call.
pub type Result<T> = core::result::Result<T, Errno>;

#[cfg(test)]
mod testing;
