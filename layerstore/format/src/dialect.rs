//! The ways in which marks are written in a layer.
//!
//! The content of a layer does not tell its dialect: a plain file named like an AUFS whiteout is a file in one dialect and a whiteout
//! in another. So the dialect is known from outside, one a layer, and everything that reads or writes a mark takes it as argument.

/// How the marks of one layer are written.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// Extended attributes that only a privileged process can see, whiteouts as devices. What kernel overlayfs writes.
    Trusted,
    /// Extended attributes in the class of ordinary users, whiteouts as devices. What kernel overlayfs writes with `userxattr`.
    User,
    /// File names with a prefix. For places that take neither devices nor extended attributes, and for layers unpacked so.
    Aufs,
}

impl Dialect {
    /// All dialects.
    pub const ALL: [Self; 3] = [Self::Trusted, Self::User, Self::Aufs];

    /// What the workdir of an upper calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Trusted => "trusted",
            Self::User => "user",
            Self::Aufs => "aufs",
        }
    }

    /// The dialect of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dialect| dialect.name() == name)
    }

    /// The prefix of the extended attributes in which this dialect writes its marks; `None` when it writes none.
    #[must_use]
    pub fn xattr_prefix(self) -> Option<&'static [u8]> {
        match self {
            Self::Trusted => Some(TRUSTED_PREFIX),
            Self::User => Some(USER_PREFIX),
            Self::Aufs => None,
        }
    }

    /// The prefixes whose attributes mean something in a layer of this dialect, and which users must therefore not reach.
    ///
    /// They cover every name that [`crate::mark::read_names`] gives. A name under one of them is private, or it is an escaped name.
    #[must_use]
    pub fn guarded_prefixes(self) -> &'static [&'static [u8]] {
        match self {
            Self::Trusted => &[TRUSTED_PREFIX],
            Self::User => &[USER_PREFIX, FUSE_PREFIX],
            Self::Aufs => &[TRUSTED_PREFIX, USER_PREFIX, FUSE_PREFIX],
        }
    }

    /// Says whether the attribute `name` on disk is a mark or reserved for marks. Short for [`crate::mark::classify_xattr`].
    #[must_use]
    pub fn is_private(self, name: &[u8]) -> bool {
        matches!(crate::mark::classify_xattr(self, name), crate::mark::XattrClass::Private(_))
    }
}

/// `OVL_XATTR_TRUSTED_PREFIX` of the kernel.
pub(crate) const TRUSTED_PREFIX: &[u8] = b"trusted.overlay.";

/// `OVL_XATTR_USER_PREFIX` of the kernel.
pub(crate) const USER_PREFIX: &[u8] = b"user.overlay.";

/// What fuse-overlayfs writes when it may not write the first.
pub(crate) const FUSE_PREFIX: &[u8] = b"user.fuseoverlayfs.";
