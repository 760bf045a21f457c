//! `A`, `C` and `D`: what a union changed at a path, as the lines and the JSON of `docker diff`.

use std::cmp::Ordering;
use std::fmt::Write as _;
use std::io;

use serde::ser::SerializeStruct as _;
use serde::{Serialize, Serializer};

/// What happened to a path.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ChangeKind {
    /// It is not in the lowers.
    Added,
    /// It is in both, and differs.
    Changed,
    /// It is only in the lowers.
    Deleted,
}

impl ChangeKind {
    /// The letter of the line: `A`, `C` or `D`.
    #[must_use]
    pub const fn letter(self) -> char {
        match self {
            Self::Added => 'A',
            Self::Changed => 'C',
            Self::Deleted => 'D',
        }
    }

    /// The number in docker's JSON: 0 changed, 1 added, 2 deleted.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Changed => 0,
            Self::Added => 1,
            Self::Deleted => 2,
        }
    }
}

impl Serialize for ChangeKind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u8(self.number())
    }
}

/// One changed path.
///
/// Changes are ordered by the bytes of the path; a parent so comes before its children.
///
/// The JSON is docker's `{"Path":"/etc/motd","Kind":0}`. JSON strings hold no arbitrary bytes: a path that is not UTF-8 gets U+FFFD for
/// what cannot be shown, and a third member `"PathBytes"` with the exact bytes in lower-case hexadecimal. Its presence says that
/// `"Path"` is not the path.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Change {
    /// What happened.
    pub kind: ChangeKind,
    /// The path from the union's root, with a leading slash and none at the end.
    pub path: Vec<u8>,
}

impl Change {
    /// Writes the line `A /path` and a newline. The bytes of the path are written as they are.
    ///
    /// # Errors
    ///
    /// Those of `out`.
    pub fn write_line(&self, out: &mut impl io::Write) -> io::Result<()> {
        write!(out, "{} ", self.kind.letter())?;
        out.write_all(&self.path)?;
        out.write_all(b"\n")
    }
}

impl Ord for Change {
    fn cmp(&self, other: &Self) -> Ordering {
        self.path.cmp(&other.path).then(self.kind.cmp(&other.kind))
    }
}

impl PartialOrd for Change {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Serialize for Change {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = str::from_utf8(&self.path);
        let mut object = serializer.serialize_struct("Change", if text.is_ok() { 2 } else { 3 })?;
        match text {
            Ok(path) => object.serialize_field("Path", path)?,
            Err(_) => object.serialize_field("Path", &String::from_utf8_lossy(&self.path))?,
        }
        object.serialize_field("Kind", &self.kind)?;
        if text.is_err() {
            object.serialize_field("PathBytes", &hex(&self.path))?;
        }
        object.end()
    }
}

/// Two lower-case hexadecimal digits a byte.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len().saturating_mul(2)), |mut text, byte| {
        // Writing to a String does not fail.
        if write!(text, "{byte:02x}").is_err() {
            debug_assert!(false, "a String refused two digits");
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn change(kind: ChangeKind, path: &[u8]) -> Change {
        Change { kind, path: path.to_vec() }
    }

    fn line(change: &Change) -> Vec<u8> {
        let mut out = Vec::new();
        change.write_line(&mut out).unwrap();
        out
    }

    #[test]
    fn lines_are_dockers_and_raw() {
        assert_eq!(line(&change(ChangeKind::Added, b"/a")), b"A /a\n");
        assert_eq!(line(&change(ChangeKind::Changed, b"/etc/m\xff")), b"C /etc/m\xff\n");
        assert_eq!(line(&change(ChangeKind::Deleted, b"/a b")), b"D /a b\n");
    }

    #[test]
    fn json_is_dockers_with_the_bytes_where_text_fails() {
        let json = |change: Change| serde_json::to_string(&change).unwrap();
        assert_eq!(json(change(ChangeKind::Changed, b"/etc")), r#"{"Path":"/etc","Kind":0}"#);
        assert_eq!(json(change(ChangeKind::Added, "/\u{e9}\"\n".as_bytes())), "{\"Path\":\"/\u{e9}\\\"\\n\",\"Kind\":1}");
        assert_eq!(json(change(ChangeKind::Deleted, b"/\xff\x0a")), "{\"Path\":\"/\u{fffd}\\n\",\"Kind\":2,\"PathBytes\":\"2fff0a\"}");
    }

    #[test]
    fn order_is_of_bytes_and_parents_come_first() {
        let mut changes: Vec<_> =
            [&b"/b"[..], b"/a/b", b"/a-b", b"/\xff", b"/a", b"/B"].iter().map(|path| change(ChangeKind::Added, path)).collect();
        changes.sort();
        let paths: Vec<_> = changes.iter().map(|change| &change.path[..]).collect();
        assert_eq!(paths, [&b"/B"[..], b"/a", b"/a-b", b"/a/b", b"/b", b"/\xff"]);
    }

    proptest! {
        #[test]
        fn path_bytes_are_there_exactly_when_the_text_is_not_the_path(tail in prop::collection::vec(any::<u8>(), 0..12)) {
            let change = change(ChangeKind::Added, &[b"/", &tail[..]].concat());
            let json: serde_json::Value = serde_json::from_str(&serde_json::to_string(&change).unwrap()).unwrap();
            match json.get("PathBytes") {
                None => prop_assert_eq!(json["Path"].as_str().unwrap().as_bytes(), &change.path[..]),
                Some(bytes) => {
                    prop_assert!(str::from_utf8(&change.path).is_err());
                    prop_assert_eq!(bytes.as_str().unwrap(), hex(&change.path));
                }
            }
        }

        #[test]
        fn a_line_holds_the_path_unchanged(tail in prop::collection::vec(any::<u8>(), 0..12)) {
            let change = change(ChangeKind::Changed, &[b"/", &tail[..]].concat());
            let line = line(&change);
            prop_assert_eq!(&line[2..line.len() - 1], &change.path[..]);
        }
    }
}
