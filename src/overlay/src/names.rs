//! `Names`: many names, each with a value, in a few large allocations.
//!
//! In the order in which they were inserted. A directory of a million names is read as a whole, and a list that has an allocation or two for each of them takes three times
//! the memory.

use std::hash::{BuildHasher, RandomState};

use crate::name::Name;

struct Entry<V> {
    /// Where the name begins in `bytes`, and in the low 8 bits its length; no length: removed.
    place: u64,
    value: V,
}

/// Names in the order of their insertion, none twice.
pub(crate) struct Names<V> {
    bytes: Vec<u8>,
    entries: Vec<Entry<V>>,
    /// A hash table with linear probing: 0, or a position in `entries` and 1. What was removed stays in it.
    index: Vec<u32>,
    hasher: RandomState,
    removed: usize,
}

impl<V> Default for Names<V> {
    fn default() -> Self {
        Self { bytes: Vec::new(), entries: Vec::new(), index: Vec::new(), hasher: RandomState::new(), removed: 0 }
    }
}

fn slice(bytes: &[u8], place: u64) -> &[u8] {
    let start = (place >> 8) as usize;
    bytes.get(start..start + (place & 0xff) as usize).unwrap_or_default()
}

impl<V> Names<V> {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.entries.len() - self.removed
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where a name is in the index, or where it would be; `None` where there is no room.
    fn slot(&self, name: &[u8]) -> Option<(usize, Option<usize>)> {
        let mask = self.index.len().checked_sub(1)?;
        let mut at = self.hasher.hash_one(name) as usize & mask;
        loop {
            let Some(position) = (*self.index.get(at)? as usize).checked_sub(1) else { return Some((at, None)) };
            if self.entries.get(position).is_some_and(|entry| slice(&self.bytes, entry.place) == name) {
                return Some((at, Some(position)));
            }
            at = (at + 1) & mask;
        }
    }

    fn position(&self, name: &[u8]) -> Option<usize> {
        // No name is empty; what was removed would be found by one.
        self.slot(name).filter(|_| !name.is_empty())?.1
    }

    /// Makes the index anew for the entries that there are, with room for one more.
    fn reindex(&mut self) {
        let size = (self.entries.len() + 1).next_power_of_two().max(8) * 2;
        self.index = Vec::new();
        self.index.resize(size, 0);
        for position in 0..self.entries.len() {
            self.note(position);
        }
    }

    fn note(&mut self, position: usize) {
        let Some(entry) = self.entries.get(position).filter(|entry| entry.place != 0) else { return };
        if let Some((at, None)) = self.slot(slice(&self.bytes, entry.place))
            && let Some(slot) = self.index.get_mut(at)
        {
            // 2^32 names do not fit into the memory of any machine that there is; the last of them would not be found.
            *slot = u32::try_from(position + 1).unwrap_or(u32::MAX);
        }
    }

    pub(crate) fn contains(&self, name: &Name) -> bool {
        self.position(name).is_some()
    }

    pub(crate) fn get_mut(&mut self, name: &[u8]) -> Option<&mut V> {
        let position = self.position(name)?;
        self.entries.get_mut(position).map(|entry| &mut entry.value)
    }

    /// Appends a name that is not there; `false` if it is.
    pub(crate) fn insert(&mut self, name: &[u8], value: V) -> bool {
        if self.position(name).is_some() {
            return false;
        }
        // At most three quarters are in use.
        if (self.entries.len() + 1) * 4 > self.index.len() * 3 {
            self.reindex();
        }
        // A name has 255 bytes at most.
        let place = (self.bytes.len() as u64) << 8 | (name.len() as u64 & 0xff);
        self.bytes.extend_from_slice(name);
        self.entries.push(Entry { place, value });
        self.note(self.entries.len() - 1);
        true
    }

    pub(crate) fn remove(&mut self, name: &[u8]) {
        let Some(position) = self.position(name) else { return };
        if let Some(entry) = self.entries.get_mut(position) {
            entry.place = 0;
            self.removed += 1;
        }
        if self.removed > 64 && self.removed > self.entries.len() / 2 {
            self.retain(|_, _| true);
        }
    }

    /// Keeps what `keep` says, and no room of what was removed.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&[u8], &mut V) -> bool) {
        let mut bytes = Vec::with_capacity(self.bytes.len());
        self.entries.retain_mut(|entry| {
            let name = slice(&self.bytes, entry.place);
            let kept = !name.is_empty() && keep(name, &mut entry.value);
            if kept {
                entry.place = (bytes.len() as u64) << 8 | (entry.place & 0xff);
                bytes.extend_from_slice(name);
            }
            kept
        });
        bytes.shrink_to_fit();
        self.bytes = bytes;
        self.entries.shrink_to(self.entries.len() * 2);
        self.removed = 0;
        self.reindex();
    }

    /// What has other values, and without those that have none any more.
    ///
    /// Errors: the first of `change`.
    pub(crate) fn filter_map<W, E>(self, mut change: impl FnMut(&[u8], V) -> Result<Option<W>, E>) -> Result<Names<W>, E> {
        let Self { bytes, entries, index, hasher, .. } = self;
        let count = entries.len();
        let changed = entries.into_iter().filter(|entry| entry.place != 0).filter_map(|Entry { place, value }| {
            change(slice(&bytes, place), value).map(|value| value.map(|value| Entry { place, value })).transpose()
        });
        let entries = changed.collect::<Result<Vec<_>, E>>()?;
        let mut names = Names { bytes, entries, index, hasher, removed: 0 };
        if names.entries.len() != count {
            names.reindex();
        }
        Ok(names)
    }

    /// All values, in their order.
    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.entries.iter_mut().filter(|entry| entry.place != 0).map(|entry| &mut entry.value)
    }

    /// From the first on whose value is not `before` something; all for which it is so come first.
    pub(crate) fn from(&self, before: impl Fn(&V) -> bool) -> impl Iterator<Item = (&[u8], &V)> {
        let start = self.entries.partition_point(|entry| before(&entry.value));
        let there = self.entries.get(start..).unwrap_or_default().iter().filter(|entry| entry.place != 0);
        there.map(|entry| (slice(&self.bytes, entry.place), &entry.value))
    }

    /// All, in their order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&[u8], &V)> {
        self.from(|_| false)
    }

    /// Gives all away, in their order.
    pub(crate) fn into_entries(self) -> impl Iterator<Item = (Name, V)> {
        let Self { bytes, entries, .. } = self;
        // What was removed has no name.
        entries.into_iter().filter_map(move |entry| Some((Name::new(slice(&bytes, entry.place)).ok()?, entry.value)))
    }
}

impl<V> std::fmt::Debug for Names<V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter().map(|(name, _)| name.escape_ascii().to_string())).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn name(number: usize) -> Vec<u8> {
        // One of 255 bytes among them.
        if number == 77 { vec![b'x'; 255] } else { format!("name {number}").into_bytes() }
    }

    fn numbers(names: &Names<usize>) -> Vec<usize> {
        for (bytes, number) in names.iter() {
            assert_eq!(bytes, name(*number));
        }
        names.iter().map(|(_, number)| *number).collect()
    }

    #[test]
    fn what_is_inserted_is_found_once_in_its_order_and_what_is_removed_is_not() {
        let mut names = Names::default();
        assert!(names.is_empty() && names.get_mut(b"x").is_none());
        for number in 0..1000 {
            assert!(names.insert(&name(number), number));
            assert!(!names.insert(&name(number), 5));
        }
        assert_eq!(numbers(&names), (0..1000).collect::<Vec<_>>());
        for number in (0..1000).filter(|number| number % 10 != 7) {
            names.remove(&name(number));
            names.remove(&name(number));
        }
        let kept: Vec<_> = (0..1000).filter(|number| number % 10 == 7).collect();
        assert_eq!(numbers(&names), kept);
        assert_eq!(names.len(), 100);
        assert!(names.bytes.len() < 4000, "{} bytes for 100 names", names.bytes.len());
        for number in 0..1000 {
            assert_eq!(names.get_mut(&name(number)).copied(), (number % 10 == 7).then_some(number));
        }
        names.remove(&name(77));
        assert!(names.insert(&name(77), 77));
        assert_eq!(numbers(&names).last(), Some(&77));
        assert_eq!(names.from(|number| *number < 500 && *number != 77).next().map(|(_, number)| *number), Some(507));
        let doubled = names.filter_map(|_, number| Ok::<_, Infallible>((number > 900).then_some(number * 2)));
        let Ok(mut doubled) = doubled;
        assert_eq!(doubled.get_mut(&name(917)).copied(), Some(1834));
        assert!(doubled.get_mut(&name(77)).is_none());
        assert_eq!(doubled.into_entries().map(|(_, number)| number).next(), Some(1814));
    }
}
