//! Lists of lower layers.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::ParamError;
use super::text::{path_of, split_at};

/// The lower layers of a list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Lowers {
    /// Those that merge, topmost first.
    pub merged: Vec<PathBuf>,
    /// Those that hold only data, topmost first.
    pub data: Vec<PathBuf>,
}

impl Lowers {
    /// All of them, topmost first.
    pub fn all(&self) -> impl Iterator<Item = &PathBuf> {
        self.merged.iter().chain(&self.data)
    }
}

/// Reads a list of directories, topmost first, as `lowerdir` has it: a colon between them, two before each data-only layer, a backslash before a colon that is
/// part of a name.
///
/// Errors: [`ParamError`] with `option` as the name, for an empty list, an empty part, a directory named twice and one that merges below a data-only layer.
pub fn parse_paths(option: &'static str, list: &OsStr) -> Result<Lowers, ParamError> {
    path_list(option, list.as_bytes())
}

pub(super) fn path_list(option: &'static str, value: &[u8]) -> Result<Lowers, ParamError> {
    let parts = split_at(value, b':');
    let contradiction = |why| Err(ParamError::Contradiction { option, why });
    let mut lowers = Lowers::default();
    let mut data = false;
    for (index, part) in parts.iter().enumerate() {
        if part.is_empty() {
            if parts.len() == 1 {
                return contradiction("it is empty; name at least one directory");
            }
            if index == 0 || index + 1 == parts.len() {
                return contradiction("a colon stands at an end; colons stand between directories, and one in a name is written \\:");
            }
            if data {
                return contradiction("three colons follow each other; one stands between directories, two before a data-only one");
            }
            data = true;
            continue;
        }
        let path = path_of(part);
        if lowers.all().any(|other| *other == path) {
            return Err(ParamError::SamePath { option, path });
        }
        if std::mem::take(&mut data) {
            lowers.data.push(path);
        } else if lowers.data.is_empty() {
            lowers.merged.push(path);
        } else {
            return contradiction(
                "a directory that is shown stands after a data-only one; write '::' before each data-only one, and those last",
            );
        }
    }
    Ok(lowers)
}
