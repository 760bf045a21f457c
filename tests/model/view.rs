//! What a user sees of a filesystem, in a form in which filesystems can be compared.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use plyfs_sys::stat::Kind;

use crate::case::Name;

/// Times from here on were taken from a clock, times before were set by somebody.
pub(crate) const SET: i64 = 1_000_000;

/// A time that is not compared.
pub(crate) const ANY: i64 = i64::MIN;

/// Attributes and content of one object.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Object {
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) rdev: u64,
    /// Of a file its size, of a symlink the length of the target; 0 for the rest.
    pub(crate) size: u64,
    /// The number of names; `None`: not compared (directories, and where the rules leave it open).
    pub(crate) nlink: Option<u32>,
    /// The time of modification, if somebody set it; `None`: from a clock.
    pub(crate) mtime: Option<i64>,
    /// Content of a file, target of a symlink.
    pub(crate) data: Vec<u8>,
    /// `user.` and `trusted.` attributes.
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The names of a held directory.
    pub(crate) names: Option<Vec<Name>>,
    /// Who it is: `st_ino`, or the reference's own number.
    pub(crate) id: u64,
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} {:o} {}:{} size {} nlink {:?} mtime {:?}",
            self.kind, self.mode, self.uid, self.gid, self.size, self.nlink, self.mtime
        )?;
        write!(f, " data \"{}\" xattrs {{", self.data.escape_ascii())?;
        for (name, value) in &self.xattrs {
            write!(f, " {}={}", name.escape_ascii(), value.escape_ascii())?;
        }
        f.write_str(" }")?;
        if let Some(names) = &self.names {
            write!(f, " names {:?}", names.iter().map(|name| name.escape_ascii().to_string()).collect::<Vec<_>>())?;
        }
        Ok(())
    }
}

/// The whole visible tree, and what the slots hold.
#[derive(Clone, Default)]
pub(crate) struct View {
    pub(crate) tree: BTreeMap<Vec<Name>, Object>,
    pub(crate) slots: Vec<Option<Object>>,
}

pub(crate) fn show(path: &[Name]) -> String {
    if path.is_empty() { "/".to_owned() } else { path.iter().fold(String::new(), |text, name| format!("{text}/{}", name.escape_ascii())) }
}

fn same(want: &Object, got: &Object) -> bool {
    let mut adapted = got.clone();
    adapted.id = want.id;
    if want.nlink.is_none() {
        adapted.nlink = None;
    }
    if want.mtime == Some(ANY) {
        adapted.mtime = want.mtime;
    }
    adapted == *want
}

/// Remembers which number a filesystem gave to which object of the reference: it must not change while the object lives.
#[derive(Default)]
pub(crate) struct Identities {
    pub(crate) shown: HashMap<u64, u64>,
    /// Numbers are not looked at.
    pub(crate) blind: bool,
}

impl Identities {
    /// Compares a view with the reference's.
    ///
    /// Errors: the first difference, in words.
    pub(crate) fn compare(&mut self, want: &View, got: &View) -> Result<(), String> {
        for (path, object) in &want.tree {
            match got.tree.get(path) {
                None => return Err(format!("{} is missing, should be {object:?}", show(path))),
                Some(other) if !same(object, other) => {
                    return Err(format!("{}\n  should be {object:?}\n  but is    {other:?}", show(path)));
                }
                Some(_) => {}
            }
        }
        if let Some((path, object)) = got.tree.iter().find(|(path, _)| !want.tree.contains_key(*path)) {
            return Err(format!("{} should not be there: {object:?}", show(path)));
        }
        for (slot, (want, got)) in want.slots.iter().zip(&got.slots).enumerate() {
            match (want, got) {
                (None, None) => {}
                (Some(want), Some(got)) if same(want, got) => {}
                (want, got) => return Err(format!("slot @{slot}\n  should be {want:?}\n  but is    {got:?}")),
            }
        }
        if self.blind { Ok(()) } else { self.same_objects(want, got) }
    }

    fn same_objects(&mut self, want: &View, got: &View) -> Result<(), String> {
        let mut now: HashMap<u64, u64> = HashMap::new();
        let mut owners: HashMap<u64, (u64, String)> = HashMap::new();
        let in_tree = want.tree.iter().map(|(path, object)| (show(path), object, got.tree.get(path)));
        let in_slots =
            want.slots.iter().zip(&got.slots).enumerate().map(|(slot, (want, got))| (format!("@{slot}"), want.as_ref(), got.as_ref()));
        let in_slots = in_slots.filter_map(|(slot, want, got)| want.map(|want| (slot, want, got)));
        for (place, want, got) in in_tree.chain(in_slots) {
            let Some(got) = got else { continue };
            if let Some(&before) = now.get(&want.id).or_else(|| self.shown.get(&want.id))
                && before != got.id
            {
                return Err(format!("{place}: st_ino is {}, was {before} before or under another name", got.id));
            }
            if let Some((other, elsewhere)) = owners.get(&got.id)
                && *other != want.id
            {
                return Err(format!("{place} and {elsewhere} have one st_ino {} and are two objects", got.id));
            }
            now.insert(want.id, got.id);
            owners.insert(got.id, (want.id, place));
        }
        self.shown = now;
        Ok(())
    }
}
