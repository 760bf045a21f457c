//! What a user of a mount may rely on, on real directories through the program itself; first of all what other implementations got wrong.
//!
//! | module | is |
//! | --- | --- |
//! | `data` | readers and writers of one file, mappings, unlinked and replaced files, holes |
//! | `copy_up` | what a copy-up keeps, and what is left when it fails or is killed |
//! | `metacopy` | metadata that changes without its data, data-only layers |
//! | `ranges` | parts of files: allocated, zeroed, copied, mapped, looked for |
//! | `names` | deleted and made again, renamed, linked, whited out |
//! | `links` | hard links of lower files: counted, linked, removed, stacked, over kills and several layers |
//! | `listing` | directories read while they change, numbers of inodes |
//! | `rights` | setuid, ACLs, setgid directories, umask, xattrs: as a plain directory has them |
//! | `flags` | immutable, append-only and other inode flags |
//! | `options` | redirects, ACLs, numbers, what is volatile, timeouts: as the options of the mount say |
//! | `uses` | locks, programs, sockets, pipes |
//! | `watch` | watches and locks while data moves; what has no name any more |
//! | `sync` | what is on the disk when a call returns |
//! | `hostile` | layers that were made to do harm, or answer nonsense |
//! | `places` | layers on filesystems of several kinds: times, shared blocks, numbers, deep trees |
//! | `full` | what is removed where no space is left |
//! | `crowd` | sixteen threads at once |
//! | `life` | mounted twice, ended, layers that fail or are swapped |
//! | `transport` | what the mount cannot carry |
//! | `plain` | the mount beside a plain directory: what is done to one is done to the other |
//! | `lab` | the mount of a test, and programs with a time limit |
//!
//! All of them need root and `/dev/fuse`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod copy_up;
mod crowd;
mod data;
mod flags;
mod full;
#[path = "../common/garbage.rs"]
mod garbage;
mod hostile;
#[path = "../common/kernel.rs"]
mod kernel;
mod lab;
mod life;
mod links;
mod listing;
mod metacopy;
mod names;
mod options;
mod places;
mod plain;
mod ranges;
mod rights;
#[path = "../common/skip.rs"]
mod skip;
mod sync;
mod transport;
mod uses;
mod watch;
