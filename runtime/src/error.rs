//! What can go wrong between `spawn` and the command's own first instruction.

use std::fmt;

use serde::{Deserialize, Serialize};

use plyfs_sys::Errno;
use plyfs_sys::mount::MountError;

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// An error number that can cross to another process.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Os(pub i32);

impl fmt::Display for Os {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", std::io::Error::from_raw_os_error(self.0))
    }
}

impl From<Errno> for Os {
    fn from(errno: Errno) -> Os {
        Os(errno.raw_os_error())
    }
}

/// Why a command was not launched, or not waited for to its end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Error {
    /// The specification contradicts itself.
    #[error("cannot launch: {0}")]
    Spec(String),
    /// A step of making the command's surroundings failed.
    #[error("cannot {what}: {errno}{}{remedy}", if remedy.is_empty() { "" } else { "; " })]
    Setup {
        /// The step, as a verb and its object.
        what: String,
        /// The kernel's word.
        errno: Os,
        /// What to do about it, if something is known.
        remedy: String,
    },
    /// A file of the host is not what its name says.
    #[error("{file} is not {expected}; refusing to use it")]
    Impostor {
        /// The file.
        file: String,
        /// What it ought to be.
        expected: String,
    },
    /// There is no such command.
    #[error("{command}: command not found in the root of the launch{}", path_hint(path))]
    NotFound {
        /// The command as given, or the file that was found but lacks its interpreter.
        command: String,
        /// The path it was looked for in; empty if the command has a slash.
        path: String,
    },
    /// The command exists, but cannot be run.
    #[error("{command}: cannot be executed: {errno}")]
    NotExecutable {
        /// The file.
        command: String,
        /// The kernel's word.
        errno: Os,
    },
    /// A signal came while the surroundings were being made.
    #[error("stopped by signal {signal} before the command ran")]
    Interrupted {
        /// Its number.
        signal: i32,
    },
    /// The launching process ended without saying how the command ended.
    #[error("the launcher process died while {doing}")]
    Died {
        /// What it was at.
        doing: String,
    },
}

fn path_hint(path: &str) -> String {
    if path.is_empty() { String::new() } else { format!(" (PATH={path})") }
}

impl Error {
    /// The exit code that shells and `docker run` give for it: 127 for a command that is not there, 126 for one that cannot be
    /// executed, 125 for all that is not the command's fault.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::NotFound { .. } => 127,
            Error::NotExecutable { .. } => 126,
            Error::Interrupted { signal } => u8::try_from(128 + signal).unwrap_or(125),
            Error::Spec(_) | Error::Setup { .. } | Error::Impostor { .. } | Error::Died { .. } => 125,
        }
    }

    /// A failed step.
    pub(crate) fn setup(what: impl Into<String>, errno: Errno) -> Error {
        Error::Setup { what: what.into(), errno: errno.into(), remedy: remedy(errno).to_owned() }
    }
}

/// What helps against errors that a missing right or an old kernel gives to any step.
fn remedy(errno: Errno) -> &'static str {
    match errno {
        Errno::PERM | Errno::ACCESS => "run it as root with CAP_SYS_ADMIN, outside of a container that forbids mounts",
        Errno::NOSYS => "it needs Linux 5.12 or newer",
        Errno::NOSPC | Errno::USERS => "a limit of /proc/sys/user or /proc/sys/fs/mount-max is reached; raise it",
        Errno::MFILE | Errno::NFILE => "raise the limit of open files",
        _ => "",
    }
}

/// Says which step a failing system call was.
pub(crate) trait During<T> {
    /// `what` is a verb and its object, after "cannot".
    fn during(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> During<T> for plyfs_sys::Result<T> {
    fn during(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|errno| Error::setup(what(), errno))
    }
}

impl<T> During<T> for std::result::Result<T, MountError> {
    fn during(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| {
            let detail = if error.message.is_empty() { error.step.clone() } else { format!("{}: {}", error.step, error.message) };
            Error::setup(format!("{} ({detail})", what()), error.errno)
        })
    }
}

impl<T> During<T> for std::io::Result<T> {
    fn during(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| {
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
            Error::setup(what(), errno)
        })
    }
}
