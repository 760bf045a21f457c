//! Names that users give, and those that plyfs makes up.

use std::hash::{BuildHasher, RandomState};

use super::fail::failure;

/// The longest name: room is left in a file name for what the store adds.
const LONGEST: usize = 128;

/// A name as docker takes it for containers: `[a-zA-Z0-9][a-zA-Z0-9_.-]+`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Name(String);

impl Name {
    /// Checks it. `at` is for the error.
    pub(crate) fn new(at: &str, name: &str) -> anyhow::Result<Self> {
        if Self::is_valid(name) {
            return Ok(Self(name.to_owned()));
        }
        Err(failure(
            format_args!("{at} {name}"),
            "not a name",
            format_args!("take 2 to {LONGEST} of a-z A-Z 0-9 _ . - and begin with a letter or digit"),
        ))
    }

    fn is_valid(name: &str) -> bool {
        let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        first && (2..=LONGEST).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
    }

    /// It as text.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Two words by chance, and from the second `attempt` on a number.
    pub(crate) fn made_up(attempt: u32) -> Self {
        const FIRST: [&str; 32] = [
            "amber", "brave", "brisk", "calm", "clear", "crisp", "dapper", "eager", "early", "fair", "gentle", "glad", "happy", "keen",
            "kind", "light", "lively", "lucid", "merry", "mild", "neat", "nimble", "plain", "proud", "quick", "quiet", "ready", "sharp",
            "sunny", "swift", "warm", "wise",
        ];
        const SECOND: [&str; 32] = [
            "ash", "bay", "birch", "brook", "cedar", "cliff", "cloud", "dune", "elm", "fern", "field", "fir", "glen", "heath", "hill",
            "lake", "larch", "leaf", "maple", "marsh", "meadow", "oak", "pine", "pond", "reed", "ridge", "river", "sage", "stone", "thorn",
            "vale", "willow",
        ];
        // Every RandomState has its own keys.
        let chance = RandomState::new().hash_one(attempt);
        let pick =
            |words: &[&'static str; 32], shift: u32| words.iter().copied().cycle().nth(((chance >> shift) & 31) as usize).unwrap_or("try");
        let words = format!("{}_{}", pick(&FIRST, 0), pick(&SECOND, 5));
        Self(if attempt == 0 { words } else { format!("{words}{}", (chance >> 10) % 1000) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dockers() {
        for good in ["ab", "A1", "0-x", "a.b_c-d", &"x".repeat(128)] {
            assert_eq!(Name::new("try", good).unwrap().as_str(), good);
        }
        for bad in ["", "a", ".a", "-a", "_a", "..", "a/b", "a b", "a\nb", "\u{e9}a", "a\u{e9}", &"x".repeat(129)] {
            assert!(Name::new("try", bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn made_up_names_are_names() {
        for attempt in 0..200 {
            let name = Name::made_up(attempt);
            assert!(Name::is_valid(name.as_str()), "{name:?}");
        }
    }
}
