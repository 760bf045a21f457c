//! The lock order, checked in debug builds and in `tests/races`.
//!
//! Ranks, low first: 20 rename < 30 COPY (the only one held while data moves) < 40 DIR (parent before child; a pair: ancestor
//! first, else ascending `Ino`) < 42 the count of links of an inode < 43 a directory's listing < 45 an inode's names and other leaf state < 50 inode-table shard < 60 handle-table shard.
//! Locks of rank 40 may be held several at once, in the order above, which the callers keep (`rename.rs`); every other rank is taken once at a time.

use std::ops::{Deref, DerefMut};

use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Rank of the lock that serialises renames between directories.
pub const RENAME: u8 = 20;
/// Rank of an inode's copy-up lock.
pub const COPY: u8 = 30;
/// Rank of a directory's namespace lock.
pub const DIR: u8 = 40;
/// Rank of the lock on how an inode of the index counts its links.
pub const LINKS: u8 = 42;
/// Rank of a directory's list of merged entries.
pub const LISTING: u8 = 43;
/// Rank of an inode's small leaf state (names, redirect).
pub const LEAF: u8 = 45;

#[cfg(any(debug_assertions, races))]
mod held {
    use std::cell::RefCell;

    crate::sync::thread_local! {
        static HELD: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }

    #[allow(clippy::panic)] // A debug build stops at the first inversion: that is what this module is for.
    pub(super) fn acquire(rank: u8) {
        HELD.with(|held| {
            let mut held = held.borrow_mut();
            if let Some(&top) = held.iter().max()
                && (top > rank || (top == rank && rank != super::DIR))
            {
                panic!("lock order: rank {rank} wanted while {held:?} are held");
            }
            held.push(rank);
        });
    }

    pub(super) fn release(rank: u8) {
        HELD.with(|held| {
            let mut held = held.borrow_mut();
            if let Some(at) = held.iter().rposition(|&r| r == rank) {
                held.remove(at);
            }
        });
    }
}

/// Proof that a rank is held; in release builds it is empty.
struct Held<const R: u8>;

impl<const R: u8> Held<R> {
    fn new() -> Self {
        #[cfg(any(debug_assertions, races))]
        held::acquire(R);
        Self
    }
}

impl<const R: u8> Drop for Held<R> {
    fn drop(&mut self) {
        #[cfg(any(debug_assertions, races))]
        held::release(R);
    }
}

/// A mutex with a rank.
#[derive(Default)]
pub struct Ranked<const R: u8, T>(Mutex<T>);

/// A held [`Ranked`] mutex.
pub struct RankedGuard<'a, const R: u8, T> {
    // Field order matters: the mutex is released before the rank.
    guard: MutexGuard<'a, T>,
    _held: Held<R>,
}

impl<const R: u8, T> Ranked<R, T> {
    /// A mutex of rank `R`.
    pub const fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    /// Takes the mutex; in debug builds panics if a lock of a higher rank is held.
    pub fn lock(&self) -> RankedGuard<'_, R, T> {
        let held = Held::new();
        RankedGuard { guard: self.0.lock(), _held: held }
    }

    /// The value, without locking: the caller has the only reference.
    pub fn get_mut(&mut self) -> &mut T {
        self.0.get_mut()
    }
}

impl<const R: u8, T> Deref for RankedGuard<'_, R, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<const R: u8, T> DerefMut for RankedGuard<'_, R, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

/// A reader-writer lock with a rank.
#[derive(Default)]
pub struct RankedRw<const R: u8, T>(RwLock<T>);

/// A [`RankedRw`] held shared.
pub struct RankedRead<'a, const R: u8, T> {
    guard: RwLockReadGuard<'a, T>,
    _held: Held<R>,
}

/// A [`RankedRw`] held exclusively.
pub struct RankedWrite<'a, const R: u8, T> {
    guard: RwLockWriteGuard<'a, T>,
    _held: Held<R>,
}

impl<const R: u8, T> RankedRw<R, T> {
    /// A lock of rank `R`.
    pub const fn new(value: T) -> Self {
        Self(RwLock::new(value))
    }

    /// Takes the lock shared.
    pub fn read(&self) -> RankedRead<'_, R, T> {
        let held = Held::new();
        RankedRead { guard: self.0.read(), _held: held }
    }

    /// Takes the lock exclusively.
    pub fn write(&self) -> RankedWrite<'_, R, T> {
        let held = Held::new();
        RankedWrite { guard: self.0.write(), _held: held }
    }
}

impl<const R: u8, T> Deref for RankedRead<'_, R, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<const R: u8, T> Deref for RankedWrite<'_, R, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<const R: u8, T> DerefMut for RankedWrite<'_, R, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_order_is_silent_and_released_ranks_are_free_again() {
        let rename = Ranked::<RENAME, ()>::new(());
        let dir = RankedRw::<DIR, ()>::new(());
        let leaf = Ranked::<LEAF, ()>::new(());
        for _ in 0..2 {
            let _r = rename.lock();
            let _d = dir.read();
            let _l = leaf.lock();
        }
    }

    #[test]
    #[cfg(debug_assertions)]
    fn inversion_panics() {
        let outcome = std::panic::catch_unwind(|| {
            let copy = Ranked::<COPY, ()>::new(());
            let dir = RankedRw::<DIR, ()>::new(());
            let _d = dir.write();
            let _c = copy.lock();
        });
        assert!(outcome.is_err());
    }
}
