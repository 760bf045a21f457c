//! Atomics and write-once cells.
//!
//! `tests/races` compiles this crate once more with `races` set and with `parking_lot` and `dashmap` replaced, so that a scheduler chooses which thread goes on at each
//! access to one of these. So what threads share is of these types, never of `std::sync` itself (`Arc`, which has no state of its own to race for, excepted).

#[cfg(not(races))]
pub(crate) use std::sync::OnceLock;
#[cfg(not(races))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64};
#[cfg(all(debug_assertions, not(races)))]
pub(crate) use std::thread_local;

#[cfg(races)]
pub(crate) use scheduled::OnceLock;
#[cfg(races)]
pub(crate) use shuttle::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64};
#[cfg(races)]
pub(crate) use shuttle::thread_local;

#[cfg(races)]
mod scheduled {
    use std::sync::atomic::Ordering;

    /// A write-once cell, at each access of which the scheduler may go on with another thread.
    pub(crate) struct OnceLock<T> {
        /// Accessed before the value, for the scheduler.
        turn: shuttle::sync::atomic::AtomicBool,
        value: std::sync::OnceLock<T>,
    }

    impl<T> OnceLock<T> {
        pub(crate) fn new() -> Self {
            Self { turn: shuttle::sync::atomic::AtomicBool::new(false), value: std::sync::OnceLock::new() }
        }

        pub(crate) fn get(&self) -> Option<&T> {
            self.turn.load(Ordering::SeqCst);
            self.value.get()
        }

        pub(crate) fn set(&self, value: T) -> Result<(), T> {
            self.turn.store(true, Ordering::SeqCst);
            self.value.set(value)
        }

        pub(crate) fn get_or_init(&self, make: impl FnOnce() -> T) -> &T {
            self.turn.store(true, Ordering::SeqCst);
            self.value.get_or_init(make)
        }
    }

    impl<T> From<T> for OnceLock<T> {
        fn from(value: T) -> Self {
            let cell = Self::new();
            cell.value.get_or_init(|| value);
            cell
        }
    }
}
