//! The protattr mark: that the union keeps an upper object immutable or append-only.
//!
//! The value is the letters `a` and `i`, in this order when both are written (`fs/overlayfs/util.c`, `ovl_set_protattr`). The object itself bears neither flag, so that it
//! can have marks and, if it is a directory, take the copies of what is below it.

/// A parsed protattr mark.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Protattr {
    /// Nothing of the object changes.
    pub immutable: bool,
    /// The object is only added to.
    pub append_only: bool,
}

impl Protattr {
    /// Reads the mark; `None` for a value with another letter or none, which the kernel ignores with a warning.
    #[must_use]
    pub fn parse(value: &[u8]) -> Option<Self> {
        let known = !value.is_empty() && value.iter().all(|letter| b"ai".contains(letter));
        known.then(|| Self { immutable: value.contains(&b'i'), append_only: value.contains(&b'a') })
    }

    /// The value to write; `None` where there is to be no mark.
    #[must_use]
    pub fn encode(self) -> Option<&'static [u8]> {
        match (self.append_only, self.immutable) {
            (false, false) => None,
            (true, false) => Some(b"a"),
            (false, true) => Some(b"i"),
            (true, true) => Some(b"ai"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_the_kernels() {
        for (immutable, append_only, value) in [(true, false, &b"i"[..]), (false, true, b"a"), (true, true, b"ai")] {
            let mark = Protattr { immutable, append_only };
            assert_eq!(mark.encode(), Some(value));
            assert_eq!(Protattr::parse(value), Some(mark));
        }
        assert_eq!(Protattr::parse(b"ia"), Some(Protattr { immutable: true, append_only: true }));
        assert_eq!(Protattr::default().encode(), None);
        for bad in [&b""[..], b"x", b"ix", b"i "] {
            assert_eq!(Protattr::parse(bad), None);
        }
    }
}
