//! The marks that a layer carries on disk, the dialects they are written in, and the changes that a diff reports.
//!
//! No I/O happens here: every function maps bytes to values or back. The names of marks (extended attributes, AUFS file names, the
//! device number of a whiteout) are written in this crate and nowhere else, so that what hides, escapes, reads and writes them
//! cannot disagree.
//!
//! | module | holds |
//! | --- | --- |
//! | [`before`] | the value of the mark of a metacopy into which data is being copied |
//! | [`dialect`] | which of the three ways to write marks a layer uses |
//! | [`mark`] | the marks that are extended attributes: names, hiding, escaping, the value of the opaque mark |
//! | [`redirect`] | the value of the redirect mark |
//! | [`origin`] | the value of the origin and upper marks, and the names of index entries |
//! | [`override_stat`] | owner, mode and kind as rootless tools keep them |
//! | [`protattr`] | the value of the protattr mark |
//! | [`whiteout`] | whiteouts as devices and as AUFS names |
//! | [`change`] | `A`, `C` and `D` of a path, as text and as JSON |
#![forbid(unsafe_code)]

pub mod before;
pub mod change;
pub mod dialect;
pub mod mark;
pub mod nlink;
pub mod origin;
pub mod override_stat;
pub mod protattr;
pub mod redirect;
pub mod whiteout;

pub use before::{Before, Moment};
pub use change::{Change, ChangeKind};
pub use dialect::Dialect;
pub use mark::{
    MarkKind, Opaque, XattrClass, classify_xattr, escape_xattr, legacy_names, read_names, shown_xattr, translate_xattr, users_can_set,
    xattr_name,
};
pub use nlink::Nlink;
pub use origin::{Origin, OriginError};
pub use override_stat::{OVERRIDE_PREFIX, OVERRIDE_STAT, OverrideKind, OverrideStat, escape_override, shown_override};
pub use protattr::Protattr;
pub use redirect::{Redirect, RedirectError};
pub use whiteout::{
    AUFS_OPAQUE, AufsName, AufsNameError, ESCAPED_WHITEOUT_RDEV, WHITEOUT_RDEV, aufs_whiteout_name, classify_aufs_name, is_whiteout_device,
};

/// The longest file name that Linux takes, in bytes.
pub const NAME_MAX: usize = 255;

/// The longest name of an extended attribute that Linux takes, in bytes.
pub const XATTR_NAME_MAX: usize = 255;

/// Says whether `name` can be one component of a path: 1 to 255 bytes, neither `.` nor `..`, no `/` and no NUL.
#[must_use]
pub(crate) fn is_component(name: &[u8]) -> bool {
    !name.is_empty() && name.len() <= NAME_MAX && name != b"." && name != b".." && !name.contains(&b'/') && !name.contains(&0)
}
