//! A FUSE filesystem that answers wrongly, or not at all: `tests/mount/data/garbage.py`.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use plyfs_sys::mount;

/// Its server.
pub(crate) struct Garbage {
    server: Child,
    place: PathBuf,
}

impl Garbage {
    /// Mounts it; the modes are those of the program.
    pub(crate) fn start(place: &Path, mode: &str) -> Garbage {
        let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mount/data/garbage.py");
        let mut server = Command::new("python3").arg(program).arg(place).arg(mode).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "mounted\n", "{mode}");
        Garbage { server, place: place.to_owned() }
    }
}

impl Garbage {
    /// Ends the server: what is mounted answers ENOTCONN from here on.
    pub(crate) fn leave(&mut self) {
        if let Err(error) = self.server.kill().and_then(|()| self.server.wait().map(drop)) {
            eprintln!("kill: {error}");
        }
    }
}

impl Drop for Garbage {
    fn drop(&mut self) {
        self.leave();
        if let Err(errno) = mount::umount(&*self.place, true) {
            eprintln!("umount {}: {errno}", self.place.display());
        }
    }
}
