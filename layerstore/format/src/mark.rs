//! The marks that are extended attributes: their names, what users see of them, and the value of the opaque mark.
//!
//! Invariants, all held by property tests:
//!
//! - Whatever name a user passes, [`escape_xattr`] gives a name on disk that no code takes for a mark.
//! - What [`classify_xattr`] shows for that name on disk is the name that the user passed.
//! - Every name that is read as a mark ([`read_names`]) is private in the same dialect. So a mark cannot be forged through the union.
//!
//! The escape is the kernel's (fs/overlayfs/xattrs.c, Linux 6.8 and later): one more `overlay.` after the prefix, any depth.

use crate::dialect::Dialect;

/// What stands after the prefix in the name of an escaped attribute (`OVL_XATTR_ESCAPE_PREFIX`).
const ESCAPE: &[u8] = b"overlay.";

/// A mark that is kept in an extended attribute.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum MarkKind {
    /// A directory hides the lower ones (`y`), or may hold xattr whiteouts (`x`); see [`Opaque`].
    Opaque,
    /// The lower object is found under another name; see [`crate::redirect::Redirect`].
    Redirect,
    /// The lower object that this one was copied up from; see [`crate::origin::Origin`].
    Origin,
    /// The object carries no data of its own: the data is the lower object's.
    Metacopy,
    /// A directory of the upper alone that holds copied-up objects, hence foreign inode numbers.
    Impure,
    /// The union's link count, relative to the layer's.
    Nlink,
    /// On a file of size zero: a whiteout, honoured where the parent is marked opaque `x`.
    Whiteout,
    /// On an index entry: the upper object that it stands for; see [`crate::origin::Origin`].
    Upper,
    /// On the root of an upper: the uuid of the union.
    Uuid,
    /// Inode flags (immutable, append only) that the union keeps, not the layer.
    Protattr,
    /// On a character device with number [`crate::ESCAPED_WHITEOUT_RDEV`]: a user made a device 0:0, which on disk would be a whiteout. Of plyfs
    /// alone; kernel overlayfs hides the mark and shows the device with the number on disk.
    Device,
    /// On a metacopy into which data is being copied: the metadata from before; see [`crate::before::Before`]. Of plyfs alone.
    Before,
}

/// One row a mark: kind, suffix, and the full name under each prefix.
macro_rules! marks {
    ($($kind:ident $suffix:literal)*) => {
        impl MarkKind {
            /// All marks.
            pub const ALL: &'static [Self] = &[$(Self::$kind),*];

            /// What stands after the prefix in the attribute's name; the kernel's `ovl_xattr_table`.
            #[must_use]
            pub const fn suffix(self) -> &'static str {
                match self {
                    $(Self::$kind => $suffix),*
                }
            }

            /// The kind whose suffix is `suffix`.
            fn from_suffix(suffix: &[u8]) -> Option<Self> {
                Self::ALL.iter().copied().find(|kind| kind.suffix().as_bytes() == suffix)
            }

            /// The full names under the prefixes: trusted, user, fuse-overlayfs.
            const fn names(self) -> [&'static [u8]; 3] {
                match self {
                    $(Self::$kind => [
                        concat!("trusted.overlay.", $suffix).as_bytes(),
                        concat!("user.overlay.", $suffix).as_bytes(),
                        concat!("user.fuseoverlayfs.", $suffix).as_bytes(),
                    ]),*
                }
            }
        }
    };
}

marks! {
    Opaque "opaque"
    Redirect "redirect"
    Origin "origin"
    Metacopy "metacopy"
    Impure "impure"
    Nlink "nlink"
    Whiteout "whiteout"
    Upper "upper"
    Uuid "uuid"
    Protattr "protattr"
    Device "plyfs.device"
    Before "plyfs.before"
}

/// The name under which a mark is *written* in a layer of `dialect`; `None` when the dialect keeps no mark in attributes.
#[must_use]
pub fn xattr_name(dialect: Dialect, kind: MarkKind) -> Option<&'static [u8]> {
    let [trusted, user, _] = kind.names();
    match dialect {
        Dialect::Trusted => Some(trusted),
        Dialect::User => Some(user),
        Dialect::Aufs => None,
    }
}

/// Lists the names under which a mark is *read* in a layer of `dialect`, the dialect's own first; the first that is there counts.
///
/// Only names that users cannot reach through a union of that dialect are listed: a spelling that is not hidden would be a forgery.
#[must_use = "an iterator does nothing until it is asked"]
pub fn read_names(dialect: Dialect, kind: MarkKind) -> impl Iterator<Item = &'static [u8]> {
    let [trusted, user, fuse] = kind.names();
    let names = match dialect {
        Dialect::Trusted => [Some(trusted), None, None],
        Dialect::User => [Some(user), Some(fuse), None],
        Dialect::Aufs => [Some(trusted), Some(user), Some(fuse)],
    };
    names.into_iter().flatten()
}

/// All spellings of a mark that are found on disks, whoever wrote them. For telling the dialect of a layer, not for reading its marks.
#[must_use]
pub fn legacy_names(kind: MarkKind) -> [&'static [u8]; 3] {
    kind.names()
}

/// What an attribute on disk is to the user of the union.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum XattrClass {
    /// A mark, or reserved for marks: not listed, not read, not written. `None` is a suffix that no mark has.
    Private(Option<MarkKind>),
    /// A user's own attribute under another name: the one that the user sees.
    Escaped(Vec<u8>),
    /// The user's attribute, under its own name.
    Plain,
}

/// Says what the attribute `name`, as found on disk in a layer of `dialect`, is to users.
#[must_use]
pub fn classify_xattr(dialect: Dialect, name: &[u8]) -> XattrClass {
    let Some((prefix, suffix)) = split(dialect, name) else {
        return XattrClass::Plain;
    };
    match suffix.strip_prefix(ESCAPE) {
        Some(rest) => XattrClass::Escaped([prefix, rest].concat()),
        None => XattrClass::Private(MarkKind::from_suffix(suffix)),
    }
}

/// Whether the owner of a file can set the attribute `name` without privileges. A mark under such a name must not lead to what he may not read: kernel overlayfs
/// refuses redirects and metacopy files there.
#[must_use]
pub fn users_can_set(name: &[u8]) -> bool {
    name.starts_with(b"user.")
}

/// The name on disk of the attribute that a user calls `name`, in a layer of `dialect`.
///
/// It is up to 8 bytes longer. Above [`crate::XATTR_NAME_MAX`] the kernel's overlayfs answers `EOPNOTSUPP`; the caller does the same.
#[must_use]
pub fn escape_xattr(dialect: Dialect, name: &[u8]) -> Vec<u8> {
    match split(dialect, name) {
        Some((prefix, suffix)) => [prefix, ESCAPE, suffix].concat(),
        None => name.to_vec(),
    }
}

/// The name that a user sees of the attribute `name` on disk; `None` for a private one, which is not listed.
#[must_use]
pub fn shown_xattr(dialect: Dialect, name: &[u8]) -> Option<Vec<u8>> {
    match classify_xattr(dialect, name) {
        XattrClass::Private(_) => None,
        XattrClass::Escaped(shown) => Some(shown),
        XattrClass::Plain => Some(name.to_vec()),
    }
}

/// The name that an attribute gets when it is copied up from a layer of dialect `from` into one of dialect `to`; `None` for a private
/// one, which says something of the lower layer only and stays behind.
///
/// A name that is plain in one dialect can be a mark in another: copied as it is, it would be forged.
#[must_use]
pub fn translate_xattr(from: Dialect, to: Dialect, name: &[u8]) -> Option<Vec<u8>> {
    shown_xattr(from, name).map(|shown| escape_xattr(to, &shown))
}

/// Splits a name under a guarded prefix into that prefix and the rest.
fn split(dialect: Dialect, name: &[u8]) -> Option<(&'static [u8], &[u8])> {
    dialect.guarded_prefixes().iter().find_map(|prefix| name.strip_prefix(*prefix).map(|suffix| (*prefix, suffix)))
}

/// What the opaque mark of a directory says.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum Opaque {
    /// The directory merges with the lower ones.
    No,
    /// The directory hides the lower ones.
    Yes,
    /// The directory merges, and files in it may be xattr whiteouts ([`MarkKind::Whiteout`]).
    XWhiteouts,
}

impl Opaque {
    /// Reads the mark's value. As in the kernel only a single `y` or `x` counts; anything else is no mark.
    #[must_use]
    pub fn parse(value: &[u8]) -> Self {
        match value {
            b"y" => Self::Yes,
            b"x" => Self::XWhiteouts,
            _ => Self::No,
        }
    }

    /// The value to write; `None` for no mark.
    #[must_use]
    pub fn encode(self) -> Option<&'static [u8]> {
        match self {
            Self::No => None,
            Self::Yes => Some(b"y"),
            Self::XWhiteouts => Some(b"x"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn dialects() -> impl Strategy<Value = Dialect> {
        prop::sample::select(&Dialect::ALL[..])
    }

    /// Names near the border: made of the pieces that the rules look at, and of arbitrary bytes.
    fn names() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            4 => prop::sample::select(vec![
                "trusted.", "user.", "security.", "overlay.", "fuseoverlayfs.", "overlay", "opaque", "redirect", "whiteout", "capability", ".",
            ]).prop_map(|piece| piece.as_bytes().to_vec()),
            1 => prop::collection::vec(1..=255u8, 0..6),
        ];
        prop::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn a_user_sees_the_name_he_passed(dialect in dialects(), name in names()) {
            let disk = escape_xattr(dialect, &name);
            match classify_xattr(dialect, &disk) {
                XattrClass::Escaped(shown) => prop_assert_eq!(shown, name),
                XattrClass::Plain => prop_assert_eq!(disk, name),
                XattrClass::Private(kind) => prop_assert!(false, "{:?} became private: {:?}", name, kind),
            }
        }

        #[test]
        fn names_outside_the_prefixes_are_plain_and_unchanged(dialect in dialects(), name in names()) {
            prop_assume!(!dialect.guarded_prefixes().iter().any(|prefix| name.starts_with(prefix)));
            prop_assert_eq!(classify_xattr(dialect, &name), XattrClass::Plain);
            prop_assert_eq!(escape_xattr(dialect, &name), name);
        }

        #[test]
        fn a_name_on_disk_is_private_or_has_one_user_name(dialect in dialects(), disk in names()) {
            let Some(shown) = shown_xattr(dialect, &disk) else { return Ok(()) };
            prop_assert_eq!(escape_xattr(dialect, &shown), disk);
        }

        #[test]
        fn copying_up_keeps_the_name_that_users_see(from in dialects(), to in dialects(), disk in names()) {
            match translate_xattr(from, to, &disk) {
                Some(copied) => prop_assert_eq!(shown_xattr(to, &copied), shown_xattr(from, &disk)),
                None => prop_assert!(from.is_private(&disk)),
            }
        }

        #[test]
        fn no_user_name_is_read_as_a_mark(dialect in dialects(), name in names()) {
            let disk = escape_xattr(dialect, &name);
            for kind in MarkKind::ALL {
                prop_assert!(read_names(dialect, *kind).all(|mark| mark != disk));
            }
        }
    }

    #[test]
    fn every_name_read_or_written_is_private() {
        for dialect in Dialect::ALL {
            for &kind in MarkKind::ALL {
                for name in read_names(dialect, kind).chain(xattr_name(dialect, kind)) {
                    assert_eq!(classify_xattr(dialect, name), XattrClass::Private(Some(kind)), "{dialect:?} {}", name.escape_ascii());
                    assert!(matches!(classify_xattr(dialect, &escape_xattr(dialect, name)), XattrClass::Escaped(shown) if shown == name));
                }
                assert_eq!(read_names(dialect, kind).next(), xattr_name(dialect, kind).or(Some(kind.names()[0])));
            }
        }
    }

    #[test]
    fn the_names_are_the_prefixes_and_the_suffixes() {
        for &kind in MarkKind::ALL {
            for dialect in [Dialect::Trusted, Dialect::User] {
                let name = [dialect.xattr_prefix().unwrap(), kind.suffix().as_bytes()].concat();
                assert_eq!(xattr_name(dialect, kind), Some(&name[..]));
            }
            assert_eq!(xattr_name(Dialect::Aufs, kind), None);
            let prefixes = [crate::dialect::TRUSTED_PREFIX, crate::dialect::USER_PREFIX, crate::dialect::FUSE_PREFIX];
            for (name, prefix) in legacy_names(kind).iter().zip(prefixes) {
                assert_eq!(name.strip_prefix(prefix), Some(kind.suffix().as_bytes()));
            }
        }
    }

    #[test]
    fn a_mark_of_a_union_below_is_shown_without_the_escape() {
        let table: &[(Dialect, &str, Option<&str>)] = &[
            (Dialect::Trusted, "trusted.overlay.overlay.opaque", Some("trusted.overlay.opaque")),
            (Dialect::Trusted, "trusted.overlay.overlay.overlay.opaque", Some("trusted.overlay.overlay.opaque")),
            (Dialect::Trusted, "trusted.overlay.overlay.", Some("trusted.overlay.")),
            (Dialect::Trusted, "trusted.overlay.opaque", None),
            (Dialect::Trusted, "trusted.overlay.overlay", None),
            (Dialect::Trusted, "trusted.overlay.", None),
            (Dialect::Trusted, "user.overlay.opaque", Some("user.overlay.opaque")),
            (Dialect::Trusted, "trusted.overlayx", Some("trusted.overlayx")),
            (Dialect::User, "user.overlay.overlay.redirect", Some("user.overlay.redirect")),
            (Dialect::User, "user.overlay.redirect", None),
            (Dialect::User, "user.fuseoverlayfs.opaque", None),
            (Dialect::User, "trusted.overlay.opaque", Some("trusted.overlay.opaque")),
            (Dialect::Aufs, "trusted.overlay.opaque", None),
            (Dialect::Aufs, "user.mime_type", Some("user.mime_type")),
        ];
        for (dialect, disk, shown) in table {
            assert_eq!(shown_xattr(*dialect, disk.as_bytes()).as_deref(), shown.map(str::as_bytes), "{dialect:?} {disk}");
        }
    }

    #[test]
    fn only_a_single_letter_is_an_opaque_mark() {
        for (value, opaque) in [(&b"y"[..], Opaque::Yes), (b"x", Opaque::XWhiteouts)] {
            assert_eq!(Opaque::parse(value), opaque);
            assert_eq!(opaque.encode(), Some(value));
        }
        for value in [&b""[..], b"n", b"Y", b"yy", b"y\0", b"xy", b" y"] {
            assert_eq!(Opaque::parse(value), Opaque::No, "{value:?}");
        }
        assert_eq!(Opaque::No.encode(), None);
    }
}
