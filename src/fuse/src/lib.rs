//! Serves a union over FUSE. The only crate that names `fuser`, so that the rest does not care which transport there is.
//!
//! [`serve`] makes a detached mount of a [`Union`](plyfs_overlay::Union) and answers its requests from threads of its own; [`Served`] attaches it,
//! ends it and waits for its end.
//!
//! | file | owns |
//! | --- | --- |
//! | session.rs | mount, threads, end |
//! | adapter.rs | one method a request; what is negotiated; what the kernel may cache and who tells it otherwise |
//! | request.rs | where a request is served; panics |
//! | reply.rs | the forms of answers |
//! | convert.rs | the kernel's words and the union's |
//! | pool.rs | threads for what takes long |
//! | notify.rs | what the kernel is told unasked |
//! | counters.rs | requests by kind |
//!
//! # Threads
//!
//! A few loops read requests and answer them. What may take long goes to the pool with its reply, so that look-ups and FORGET find a loop however
//! many copy-ups run. Nothing waits for a notification. No thread looks at a path below the mount.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

mod adapter;
mod convert;
mod counters;
mod notify;
mod pool;
mod reply;
mod request;
mod session;
mod thrift;

pub use counters::{Counters, Op};
pub use session::{Error, Result, ServeOptions, Served, serve, serve_mounted};
