//! The value of the redirect mark: where in the lower layers an object is found when not under its own name.
//!
//! The kernel writes two forms (fs/overlayfs/dir.c, `ovl_get_redirect`): one name, looked up in the same parent, or a path from the
//! root of the layers. Values come from layers that anybody made, so [`Redirect::parse`] refuses everything else; what it takes can
//! never lead out of a layer, given that the caller looks up one component at a time and follows no symbolic link.

use crate::is_component;

/// Where the layers below look for an object.
///
/// The parts are plain names: 1 to 255 bytes, neither `.` nor `..`, no `/`, no NUL. Whoever builds one by hand sees to it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Redirect {
    /// Under another name in the same parent.
    Sibling(Vec<u8>),
    /// At a path from the layers' roots, which has at least one component.
    Absolute(Vec<Vec<u8>>),
}

/// Why a value is no redirect.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RedirectError {
    /// The value is empty, or is the root.
    #[error("a redirect to nothing")]
    Empty,
    /// Two slashes follow each other, or one ends the path.
    #[error("a redirect with an empty component")]
    EmptyComponent,
    /// A component is `.` or `..`.
    #[error("a redirect through '.' or '..'")]
    Dots,
    /// A NUL byte.
    #[error("a redirect with a NUL byte")]
    Nul,
    /// A component of more than 255 bytes.
    #[error("a redirect with a name of {0} bytes, 255 are the most")]
    TooLong(usize),
    /// A path that does not begin with a slash.
    #[error("a relative redirect of more than one component")]
    RelativePath,
}

impl Redirect {
    /// Reads the mark's value.
    ///
    /// # Errors
    ///
    /// One variant a rule broken; nothing is repaired or guessed.
    pub fn parse(value: &[u8]) -> Result<Self, RedirectError> {
        if value.is_empty() || value == b"/" {
            return Err(RedirectError::Empty);
        }
        match value.strip_prefix(b"/") {
            Some(path) => {
                let components = path.split(|byte| *byte == b'/').map(|name| check(name).map(|()| name.to_vec()));
                Ok(Self::Absolute(components.collect::<Result<_, _>>()?))
            }
            None => check(value).map(|()| Self::Sibling(value.to_vec())),
        }
    }

    /// The value to write. [`Redirect::parse`] reads it back as the same when the parts are plain names, and refuses it otherwise.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Sibling(name) => name.clone(),
            Self::Absolute(components) if components.is_empty() => b"/".to_vec(),
            Self::Absolute(components) => components.iter().flat_map(|name| [&b"/"[..], name]).collect::<Vec<_>>().concat(),
        }
    }
}

/// Checks one component and says what is wrong with it.
fn check(name: &[u8]) -> Result<(), RedirectError> {
    if is_component(name) {
        return Ok(());
    }
    Err(match name {
        b"" => RedirectError::EmptyComponent,
        b"." | b".." => RedirectError::Dots,
        _ if name.contains(&b'/') => RedirectError::RelativePath,
        _ if name.contains(&0) => RedirectError::Nul,
        _ => RedirectError::TooLong(name.len()),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn component() -> impl Strategy<Value = Vec<u8>> {
        let byte = (1..=255u8).prop_filter("no slash", |byte| *byte != b'/');
        prop_oneof![9 => prop::collection::vec(byte.clone(), 1..8), 1 => prop::collection::vec(byte, 250..=255)]
            .prop_filter("no dots", |name| name != b"." && name != b"..")
    }

    fn redirect() -> impl Strategy<Value = Redirect> {
        prop_oneof![component().prop_map(Redirect::Sibling), prop::collection::vec(component(), 1..6).prop_map(Redirect::Absolute)]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(redirect in redirect()) {
            prop_assert_eq!(Redirect::parse(&redirect.encode()), Ok(redirect));
        }

        #[test]
        fn what_is_taken_is_written_back(value in "[/.a\0]{0,8}") {
            if let Ok(redirect) = Redirect::parse(value.as_bytes()) {
                prop_assert_eq!(redirect.encode(), value.into_bytes());
            }
        }

        #[test]
        fn what_is_taken_never_leads_up(value in "[/.a\0]{0,8}") {
            let names = match Redirect::parse(value.as_bytes()) {
                Ok(Redirect::Sibling(name)) => vec![name],
                Ok(Redirect::Absolute(names)) => names,
                Err(_) => return Ok(()),
            };
            prop_assert!(!names.is_empty() && names.iter().all(|name| is_component(name)));
        }
    }

    #[test]
    fn both_forms_of_the_kernel_are_read() {
        assert_eq!(Redirect::parse(b"old"), Ok(Redirect::Sibling(b"old".to_vec())));
        assert_eq!(Redirect::parse(b"/a/b\xff"), Ok(Redirect::Absolute(vec![b"a".to_vec(), b"b\xff".to_vec()])));
        assert_eq!(Redirect::parse(b"..."), Ok(Redirect::Sibling(b"...".to_vec())));
    }

    #[test]
    fn hostile_values_are_refused() {
        let long = vec![b'x'; 256];
        let table: &[(&[u8], RedirectError)] = &[
            (b"", RedirectError::Empty),
            (b"/", RedirectError::Empty),
            (b"//", RedirectError::EmptyComponent),
            (b"//a", RedirectError::EmptyComponent),
            (b"/a/", RedirectError::EmptyComponent),
            (b"/a//b", RedirectError::EmptyComponent),
            (b".", RedirectError::Dots),
            (b"..", RedirectError::Dots),
            (b"/a/../..", RedirectError::Dots),
            (b"/./a", RedirectError::Dots),
            (b"../../etc", RedirectError::RelativePath),
            (b"a/b", RedirectError::RelativePath),
            (b"a/", RedirectError::RelativePath),
            (b"a\0", RedirectError::Nul),
            (b"/a/b\0c", RedirectError::Nul),
            (&long, RedirectError::TooLong(256)),
        ];
        for (value, error) in table {
            assert_eq!(Redirect::parse(value), Err(*error), "{}", value.escape_ascii());
        }
    }

    #[test]
    fn parts_that_are_no_names_are_refused_when_read_back() {
        let absolute = |names: &[&[u8]]| Redirect::Absolute(names.iter().map(|name| name.to_vec()).collect());
        let table =
            [Redirect::Sibling(b"a/b".to_vec()), Redirect::Sibling(vec![]), absolute(&[]), absolute(&[b".."]), absolute(&[b"a", b""])];
        for bad in table {
            assert!(Redirect::parse(&bad.encode()).is_err(), "{bad:?}");
        }
    }
}
