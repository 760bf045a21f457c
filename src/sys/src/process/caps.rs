//! Capabilities of this thread and of what it will run.

use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::{Errno, Result};

pub use rustix::thread::CapabilitySet as Set;

/// Capabilities by name, in the order of their numbers.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// The number of a capability by its name, with or without `CAP_`, in any case.
pub fn number_of(name: &str) -> Option<u8> {
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
    NAMES.iter().position(|known| *known == short).and_then(|number| u8::try_from(number).ok())
}

/// The name of a capability, without `CAP_`.
pub fn name_of(number: u8) -> Option<&'static str> {
    NAMES.get(usize::from(number)).copied()
}

/// Takes every capability that is not in `keep` (bits by number) from this thread for good: from the bounding set, so that no program
/// brings it back, and from its own sets. Nothing stays inheritable or ambient.
///
/// # Errors
///
/// `EPERM` without `CAP_SETPCAP`.
pub fn limit(keep: u64) -> Result<()> {
    for number in 0..64 {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if keep & capability.bits() != 0 {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // The kernel has no more than these.
            Err(Errno::INVAL) => break,
            Err(errno) => return Err(errno),
        }
    }
    match rustix::thread::clear_ambient_capability_set() {
        Ok(()) | Err(Errno::INVAL) => {}
        Err(errno) => return Err(errno),
    }
    let own = rustix::thread::capabilities(None)?;
    let keep = CapabilitySet::from_bits_retain(keep);
    rustix::thread::set_capabilities(
        None,
        CapabilitySets {
            effective: own.effective.intersection(keep),
            permitted: own.permitted.intersection(keep),
            inheritable: CapabilitySet::empty(),
        },
    )
}

/// Lets this thread's capabilities last over `execve` of a program without any, whoever the user is: all that it is permitted are inheritable and ambient from here on.
///
/// # Errors
///
/// `EPERM` where the thread is barred from raising ambient capabilities.
pub fn make_ambient() -> Result<()> {
    let own = rustix::thread::capabilities(None)?;
    rustix::thread::set_capabilities(None, CapabilitySets { inheritable: own.permitted, ..own })?;
    for number in 0..64 {
        let capability = CapabilitySet::from_bits_retain(own.permitted.bits() & 1 << number);
        if !capability.is_empty() {
            rustix::thread::configure_capability_in_ambient_set(capability, true)?;
        }
    }
    Ok(())
}

/// The capabilities in effect, bits by number.
///
/// # Errors
///
/// None that is known.
pub fn effective() -> Result<u64> {
    Ok(rustix::thread::capabilities(None)?.effective.bits())
}
