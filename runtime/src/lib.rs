//! Launches a command in namespaces of its own on a given root.
//!
//! The root is a directory or a detached mount; this crate knows nothing of layers, images or FUSE. See [`Spec`] for what a launch is,
//! [`Launcher::spawn`] for how to start one, and [`hostview`] for what `plyfs try` does with the mounts of the host.
//!
//! # Processes
//!
//! ```text
//! caller (many threads)  --exec-->  launcher (one thread)  --fork-->  process 1 of the container  [--fork-->  command]
//! ```
//!
//! - The *launcher* stays in the caller's namespaces, holds nothing of the container, and waits. When the caller goes, it kills the
//!   container; when it is killed itself, the kernel does.
//! - *Process 1* makes the mount namespace, assembles the root, enters it, drops what the command must not have, and becomes the command
//!   or its init. All mounts are in that namespace, private, and go with its last process.
//!
//! # Rules of the set-up
//!
//! - Every source is opened before the root is entered, every target is resolved inside the new root (`RESOLVE_IN_ROOT`, no magic links).
//! - Files of the host that are bound (`/dev/null`, the terminal) are first seen to be what they claim, and bound by that descriptor.
//! - Device nodes work in `/dev` only, where they are read-only binds of the host's.
//! - Nothing but descriptors 0 to 2 reaches the command, and no terminal of the caller's that it could take over: it gets its own.

#![forbid(unsafe_code)]

pub mod error;
pub mod hostview;
mod init;
mod launch;
mod launcher;
mod rootfs;
pub mod sockets;
pub mod spec;
mod terminal;
mod wire;

pub use error::{Error, Result};
pub use launch::{is_launch, launch_main};
pub use launcher::{ExitStatus, LAUNCH_VERB, Launcher, Running};
pub use spec::{BindSource, Capabilities, DevOptions, FdIndex, HostPath, InnerPath, MountSpec, Root, Spec, TmpfsOptions};
