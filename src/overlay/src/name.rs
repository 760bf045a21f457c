//! `Name`: one component of a path, as bytes.
//!
//! Invariant: 1 to 255 bytes, no `/`, no NUL, neither `.` nor `..`. Nothing else is assumed; names are never text.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use crate::error::{Error, Result};

/// The longest name that Linux filesystems take, in bytes (`NAME_MAX`).
pub const NAME_MAX: usize = 255;

/// A file name: 1..=255 bytes, no `/` or NUL, not `.` or `..`. Cloning shares the bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<[u8]>);

impl Name {
    /// Checks and takes a name.
    ///
    /// Errors: ENAMETOOLONG over 255 bytes; ENOENT for the empty name (POSIX path resolution); EINVAL for `.`, `..`, `/` or NUL in it.
    pub fn new(bytes: impl AsRef<[u8]>) -> Result<Self> {
        let bytes = bytes.as_ref();
        if bytes.is_empty() {
            return Err(Error::NotFound);
        }
        if bytes.len() > NAME_MAX {
            return Err(Error::NameTooLong);
        }
        if bytes == b"." || bytes == b".." || bytes.contains(&b'/') || bytes.contains(&0) {
            return Err(Error::Invalid("a name with '/' or NUL in it, or '.' or '..'"));
        }
        Ok(Self(bytes.into()))
    }

    /// The name's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Deref for Name {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits() {
        assert!(Name::new(vec![b'x'; 255]).is_ok());
        assert!(matches!(Name::new(vec![b'x'; 256]), Err(Error::NameTooLong)));
        assert!(matches!(Name::new(b""), Err(Error::NotFound)));
        for bad in [&b"."[..], b"..", b"a/b", b"a\0b"] {
            assert!(matches!(Name::new(bad), Err(Error::Invalid(_))), "{bad:?}");
        }
        for good in [&b"..."[..], b".wh.x", b"\xff\xfe", b"a\nb", b" "] {
            assert!(Name::new(good).is_ok(), "{good:?}");
        }
    }
}
