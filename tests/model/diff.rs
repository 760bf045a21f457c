//! The diff by its rules, from two whole trees: what `Union::changes` must find out from the upper alone.

use std::collections::BTreeMap;

use plyfs_format::ChangeKind;
use plyfs_sys::stat::Kind;

use crate::case::Name;
use crate::reference::{Node, Reference};

/// The changes from one tree to another, by path.
pub(crate) fn diff(before: &Reference, now: &Reference, xattrs: bool) -> BTreeMap<Vec<u8>, ChangeKind> {
    let mut found = BTreeMap::new();
    compare(&[], Some((before, before.root())), Some((now, now.root())), xattrs, &mut found);
    found
}

fn path_bytes(path: &[Name]) -> Vec<u8> {
    path.iter().flat_map(|name| [b"/", &name[..]].concat()).collect()
}

type Seen<'a> = Option<(&'a Reference, &'a Node)>;

fn compare(path: &[Name], before: Seen<'_>, now: Seen<'_>, xattrs: bool, found: &mut BTreeMap<Vec<u8>, ChangeKind>) {
    let kind = match (before, now) {
        (None, None) => return,
        (None, Some(_)) => Some(ChangeKind::Added),
        (Some(_), None) => Some(ChangeKind::Deleted),
        (Some((_, before)), Some((_, now))) => differs(before, now, xattrs).then_some(ChangeKind::Changed),
    };
    // The root itself is never listed.
    if let Some(kind) = kind.filter(|_| !path.is_empty()) {
        found.insert(path_bytes(path), kind);
        for len in 1..path.len() {
            found.entry(path_bytes(&path[..len])).or_insert(ChangeKind::Changed);
        }
    }
    if now.is_none() {
        return;
    }
    let names = |seen: Seen<'_>| seen.map(|(_, node)| node.entries.keys().cloned().collect::<Vec<_>>()).unwrap_or_default();
    let child = |seen: Seen<'_>, name: &Name| -> Option<_> {
        let (tree, node) = seen?;
        Some(tree.node(*node.entries.get(name)?).clone())
    };
    // A directory that is a file now is changed, and what was in it goes without saying.
    let before = before.filter(|_| now.is_some_and(|(_, node)| node.kind == Kind::Dir));
    let mut all = [names(before), names(now)].concat();
    all.sort();
    all.dedup();
    for name in all {
        let (old, new) = (child(before, &name), child(now, &name));
        let below = [path, &[name]].concat();
        compare(&below, before.map(|(tree, _)| tree).zip(old.as_ref()), now.map(|(tree, _)| tree).zip(new.as_ref()), xattrs, found);
    }
}

fn differs(before: &Node, now: &Node, xattrs: bool) -> bool {
    let owner = |node: &Node| (node.kind, node.mode, node.uid, node.gid, node.rdev);
    if owner(before) != owner(now) || (xattrs && before.xattrs != now.xattrs) {
        return true;
    }
    before.kind != Kind::Dir && (before.mtime != now.mtime || before.data != now.data)
}
