//! The union: layers merged into one filesystem, with copy-up on write and whiteouts on delete.
//!
//! Generic over [`backend::Tree`] (a layer that is read) and [`backend::UpperTree`] (the layer that is written), so that it is tested without a mount. Knows neither FUSE
//! nor images nor command lines.
//!
//! # Lock order
//!
//! See [`lock`]. In short: RENAME, then COPY of one inode, then DIR of directories (parent before child), then leaves; no table shard across a system call.

#![forbid(unsafe_code)]

mod acl;
mod attr;
pub mod backend;
mod backing;
mod changes;
mod copy_up;
mod data;
mod dir;
mod entry;
mod error;
mod export;
mod file;
mod flags;
mod fsck;
mod identity;
mod ino;
mod inode;
mod layer;
mod links;
pub mod lock;
mod name;
mod names;
mod owners;
pub mod params;
mod privileges;
mod readdir;
mod rename;
mod reserve;
mod resolve;
mod scan;
mod sync;
mod tmpfile;
mod union;
mod whiteout;
mod xattr;

pub use attr::{Attr, SetAttr};
pub use backend::{DirTree, Keeping, LayerOpenError, MemFs, MemTree, Seek, check_overlap, recorded_dialect_of};
pub use backing::Backing;
pub use changes::{ChangeOptions, changes_of};
pub use dir::NewNode;
pub use error::{Error, Result};
pub use file::{HandleId, OpenFlags};
pub use fsck::{Outcome, Problem};
pub use ino::Ino;
pub use layer::{Layer, LayerStack};
pub use links::Settled;
pub use name::{NAME_MAX, Name};
pub use owners::{IdMap, IdRange, OwnerMap};
pub use readdir::DirEntry;
pub use rename::RenameMode;
pub use scan::{Finding, Probe};
pub use union::{Behaviour, Caller, Event, Redirects, Union};
