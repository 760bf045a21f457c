#![allow(unsafe_code)]
//! Limits and defaults of the whole process.

use rustix::fs::Mode;
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::{Errno, Result};

/// Raises the soft limit of open descriptors to the hard one, and returns both as they are now (`u64::MAX` for unlimited).
///
/// Children inherit it; a program that uses `select(2)` must lower it again.
///
/// # Errors
///
/// The kernel's.
pub fn raise_nofile() -> Result<(u64, u64)> {
    let (soft, hard) = nofile()?;
    if soft != hard {
        let hard = (hard != u64::MAX).then_some(hard);
        setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard })?;
    }
    nofile()
}

/// The soft and hard limits of open descriptors (`u64::MAX` for unlimited).
///
/// # Errors
///
/// The kernel's. It has none of its own for this, but a filter of system calls may (`seccomp(2)`), and `rustix` takes no notice of that.
pub fn nofile() -> Result<(u64, u64)> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes one `rlimit` to where the pointer leads, which is ours.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO));
    }
    Ok((limit.rlim_cur, limit.rlim_max))
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
        assert_eq!(nofile(), Ok((soft, hard)));
    }
}
