//! Limits and defaults of the whole process.

use rustix::fs::Mode;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::Result;

/// Raises the soft limit of open descriptors to the hard one, and returns both as they are now (`u64::MAX` for unlimited).
///
/// Children inherit it; a program that uses `select(2)` must lower it again.
///
/// # Errors
///
/// The kernel's.
pub fn raise_nofile() -> Result<(u64, u64)> {
    let now = getrlimit(Resource::Nofile);
    if now.current != now.maximum {
        setrlimit(Resource::Nofile, Rlimit { current: now.maximum, maximum: now.maximum })?;
    }
    let now = getrlimit(Resource::Nofile);
    Ok((now.current.unwrap_or(u64::MAX), now.maximum.unwrap_or(u64::MAX)))
}

/// The soft and hard limits of open descriptors (`u64::MAX` for unlimited).
pub fn nofile() -> (u64, u64) {
    let now = getrlimit(Resource::Nofile);
    (now.current.unwrap_or(u64::MAX), now.maximum.unwrap_or(u64::MAX))
}

/// Sets the umask of the process and returns the former one. A daemon sets 0: the kernel has applied the caller's umask already.
pub fn umask(mask: u32) -> u32 {
    rustix::process::umask(Mode::from_raw_mode(mask & 0o777)).as_raw_mode()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn soft_limit_reaches_the_hard_one() {
        let (soft, hard) = raise_nofile().unwrap();
        assert_eq!(soft, hard);
        assert!(soft > 0);
    }
}
