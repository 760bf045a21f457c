//! Whiteouts: a name that hides the lower ones, as a device and as an AUFS file name.
//!
//! The third form, a file of size zero with a mark, is [`crate::mark::MarkKind::Whiteout`].
//!
//! AUFS names are marks only in layers of that dialect ([`crate::dialect::Dialect::Aufs`]). Elsewhere the same bytes are a name like
//! any other, and [`classify_aufs_name`] must not be asked.

use crate::is_component;

/// The device number of a whiteout: major 0, minor 0 (`WHITEOUT_DEV` of the kernel).
pub const WHITEOUT_RDEV: u64 = 0;

/// The device number that a user's character device 0:0 has on disk, together with [`crate::MarkKind::Device`]: 0:1. Major 0 belongs to no
/// driver, so the node is as unusable as the one it stands for.
pub const ESCAPED_WHITEOUT_RDEV: u64 = 1;

/// In the AUFS dialect, the entry that makes its directory opaque.
pub const AUFS_OPAQUE: &[u8] = b".wh..wh..opq";

/// In the AUFS dialect, what stands before the hidden name.
const AUFS_PREFIX: &[u8] = b".wh.";

/// In the AUFS dialect, what stands before the names of AUFS's own files.
const AUFS_META_PREFIX: &[u8] = b".wh..wh.";

/// Says whether an object is a whiteout of kernel overlayfs: a character device with number 0:0.
///
/// Mode, owner and times do not count.
#[must_use]
pub fn is_whiteout_device(is_char: bool, rdev: u64) -> bool {
    is_char && rdev == WHITEOUT_RDEV
}

/// What a directory entry of an AUFS layer is.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum AufsName<'a> {
    /// An object of its own name.
    Plain,
    /// Hides the name that it holds, which is a plain component and never `.` or `..`.
    Whiteout(&'a [u8]),
    /// Makes the directory opaque.
    Opaque,
    /// A file of AUFS itself: neither shown nor a whiteout.
    Meta,
    /// A whiteout of nothing, of `.` or of `..`, or a name no file can have. No sane tool makes one.
    Invalid,
}

/// Says what the entry `name` of a directory in an AUFS layer is.
#[must_use]
pub fn classify_aufs_name(name: &[u8]) -> AufsName<'_> {
    if !is_component(name) {
        return AufsName::Invalid;
    }
    if name == AUFS_OPAQUE {
        return AufsName::Opaque;
    }
    if name.starts_with(AUFS_META_PREFIX) {
        return AufsName::Meta;
    }
    match name.strip_prefix(AUFS_PREFIX) {
        None => AufsName::Plain,
        Some(target) if is_component(target) => AufsName::Whiteout(target),
        Some(_) => AufsName::Invalid,
    }
}

/// Why a name has no AUFS whiteout.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AufsNameError {
    /// The name of the whiteout would exceed 255 bytes.
    #[error("a name of {0} bytes has no whiteout in the AUFS dialect, 251 are the most")]
    TooLong(usize),
    /// The name begins like a whiteout itself.
    #[error("a name that begins with the whiteout prefix cannot be kept in the AUFS dialect")]
    Reserved,
    /// Empty, `.`, `..`, or with a slash or NUL.
    #[error("not a file name")]
    NotAName,
}

/// The name of the entry that hides `target` in an AUFS layer.
///
/// # Errors
///
/// The names that AUFS cannot hide. What [`classify_aufs_name`] makes of a name given here is always a whiteout of `target`.
pub fn aufs_whiteout_name(target: &[u8]) -> Result<Vec<u8>, AufsNameError> {
    if target.starts_with(AUFS_PREFIX) {
        return Err(AufsNameError::Reserved);
    }
    let name = [AUFS_PREFIX, target].concat();
    if name.len() > crate::NAME_MAX {
        return Err(AufsNameError::TooLong(target.len()));
    }
    if !is_component(target) {
        return Err(AufsNameError::NotAName);
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_whiteout_is_a_character_device_zero() {
        assert!(is_whiteout_device(true, WHITEOUT_RDEV));
        assert!(!is_whiteout_device(false, WHITEOUT_RDEV));
        assert!(!is_whiteout_device(true, 0x103));
    }

    #[test]
    fn aufs_names_are_told_apart() {
        let table: &[(&[u8], AufsName<'_>)] = &[
            (b"a", AufsName::Plain),
            (b".wh", AufsName::Plain),
            (b".whx", AufsName::Plain),
            (b"x.wh.a", AufsName::Plain),
            (b"...", AufsName::Plain),
            (b".wh.a", AufsName::Whiteout(b"a")),
            (b".wh..a", AufsName::Whiteout(b".a")),
            (b".wh....", AufsName::Whiteout(b"...")),
            (b".wh.\xff", AufsName::Whiteout(b"\xff")),
            (b".wh..wh", AufsName::Whiteout(b".wh")),
            (b".wh..wh..opq", AufsName::Opaque),
            (b".wh..wh.", AufsName::Meta),
            (b".wh..wh.a", AufsName::Meta),
            (b".wh..wh.plnk", AufsName::Meta),
            (b".wh..wh..opqx", AufsName::Meta),
            (b".wh.", AufsName::Invalid),
            (b".wh..", AufsName::Invalid),
            (b".wh...", AufsName::Invalid),
            (b".", AufsName::Invalid),
            (b"", AufsName::Invalid),
            (b".wh.a/b", AufsName::Invalid),
        ];
        for (name, class) in table {
            assert_eq!(classify_aufs_name(name), *class, "{}", name.escape_ascii());
        }
    }

    #[test]
    fn names_that_aufs_cannot_hide_are_refused() {
        assert_eq!(aufs_whiteout_name(&[b'x'; 251]).map(|name| name.len()), Ok(255));
        let table: &[(&[u8], AufsNameError)] = &[
            (&[b'x'; 252], AufsNameError::TooLong(252)),
            (b".wh.a", AufsNameError::Reserved),
            (b".wh.", AufsNameError::Reserved),
            (b"", AufsNameError::NotAName),
            (b".", AufsNameError::NotAName),
            (b"..", AufsNameError::NotAName),
            (b"a/b", AufsNameError::NotAName),
            (b"a\0", AufsNameError::NotAName),
        ];
        for (name, error) in table {
            assert_eq!(aufs_whiteout_name(name), Err(*error), "{}", name.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn a_whiteout_hides_the_name_it_was_made_for(target in "[.wha]{0,8}") {
            if let Ok(name) = aufs_whiteout_name(target.as_bytes()) {
                prop_assert_eq!(classify_aufs_name(&name), AufsName::Whiteout(target.as_bytes()));
            }
        }

        #[test]
        fn no_whiteout_hides_dots_or_paths(name in "[.wha/\0]{0,9}") {
            if let AufsName::Whiteout(target) = classify_aufs_name(name.as_bytes()) {
                prop_assert!(is_component(target));
            }
        }
    }
}
