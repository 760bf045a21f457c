//! A directory for tests, held as plyfs holds layers: by an `O_PATH` descriptor.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use crate::root::open_dir;

pub(crate) struct Dir {
    fd: OwnedFd,
    temp: tempfile::TempDir,
}

impl Dir {
    pub(crate) fn new() -> Dir {
        let temp = tempfile::tempdir().unwrap();
        Dir { fd: open_dir(temp.path()).unwrap(), temp }
    }

    pub(crate) fn path(&self) -> &Path {
        self.temp.path()
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Whether the test runs with root's capabilities; says on stderr that it is skipped if not.
pub(crate) fn privileged(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED {test}: needs root");
    }
    root
}

/// The longest name, and none in any encoding.
pub(crate) const ODD: [&[u8]; 6] = [&[b'n'; 255], b"\xff\xfe", b"new\nline", b" ", b"...", b"-rf *"];
