//! Where filesystems are allowed to differ, each by name and with its reason. Every other difference is a bug.

use std::collections::BTreeMap;

use plyfs_format::ChangeKind;

type Changes = BTreeMap<Vec<u8>, ChangeKind>;

/// `Union::changes` and the names of a lower hard link: a write through one name changes what all of them show, but the upper, which selects the candidates,
/// holds only the names that were used. The others, and directories for their sake, may be missing as `C`; nothing else may be.
pub(crate) fn unused_names_of_lower_hard_links(want: &Changes, got: &Changes) -> bool {
    got.iter().all(|(path, kind)| want.get(path) == Some(kind))
        && want.iter().all(|(path, kind)| got.contains_key(path) || *kind == ChangeKind::Changed)
}
