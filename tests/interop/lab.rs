//! A directory for one test, with all that is mounted in it; commands with a time limit.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Seek};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use plyfs_sys::mount;
use tempfile::TempDir;

/// How long a command may take that has little to do.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// Why a test that mounts cannot run here, if it cannot.
pub(crate) fn missing(programs: &[&str]) -> Option<String> {
    if plyfs_sys::process::effective_uid() != 0 {
        return Some("needs root".to_owned());
    }
    if let Err(errno) = mount::open_dev_fuse() {
        return Some(format!("needs /dev/fuse: {errno}"));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = |program: &str| std::env::split_paths(&path).any(|dir| dir.join(program).exists());
    programs.iter().find(|program| !there(program)).map(|program| format!("needs {program}"))
}

/// A directory that goes at the end of the test, however it ends, after everything that is mounted below it.
pub(crate) struct Lab {
    dir: TempDir,
}

impl Lab {
    pub(crate) fn new() -> Lab {
        let dir = tempfile::Builder::new().prefix("plyfs-interop-").tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        // The mount table shows it without links.
        assert_eq!(dir.path().canonicalize().unwrap(), dir.path(), "give the tests a TMPDIR without links in it");
        Lab { dir }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes a directory.
    pub(crate) fn make(&self, name: &str) -> PathBuf {
        let dir = self.path(name);
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    /// The program under test, with its state in this directory.
    pub(crate) fn plyfs(&self, args: &[&str]) -> Command {
        let mut command = plyfs(args);
        command.env("PLYFS_ROOT", self.path("state"));
        command
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for mountpoint in mounts_below(self.dir.path()).iter().rev() {
            if let Err(errno) = mount::umount(mountpoint.as_path(), true) {
                eprintln!("{}: {errno}", mountpoint.display());
            }
        }
    }
}

/// The program under test.
pub(crate) fn plyfs(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_plyfs"));
    command.args(args).env_remove("PLYFS_ROOT").env_remove("PLYFS_LOG");
    command
}

/// Mount points at or below a directory, in the order in which they were mounted.
pub(crate) fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let table = mount::mounts().unwrap();
    let places = table.iter().map(|mount| PathBuf::from(OsStr::from_bytes(&mount.mountpoint)));
    places.filter(|place| place.starts_with(dir)).collect()
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) status: ExitStatus,
    pub(crate) out: Vec<u8>,
    pub(crate) err: String,
}

impl Done {
    /// Its lines of output.
    pub(crate) fn lines(&self) -> Vec<Vec<u8>> {
        self.out.split_inclusive(|&byte| byte == b'\n').map(|line| line.strip_suffix(b"\n").unwrap_or(line).to_vec()).collect()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }
}

/// Runs a command to its end.
///
/// # Panics
///
/// When it takes longer than `limit`; it is killed then.
pub(crate) fn run(command: &mut Command, limit: Duration) -> Done {
    // Files, not pipes: whatever the command leaves running may hold them.
    let (mut out, mut err) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    command.stdin(Stdio::null()).stdout(out.try_clone().unwrap()).stderr(err.try_clone().unwrap());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let end = Instant::now() + limit;
    let mut pause = Duration::from_micros(500);
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break Some(status);
        }
        if Instant::now() > end {
            child.kill().unwrap();
            child.wait().unwrap();
            break None;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    };
    let read = |file: &mut fs::File| {
        let mut bytes = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    };
    let (out, err) = (read(&mut out), String::from_utf8_lossy(&read(&mut err)).into_owned());
    let Some(status) = status else {
        panic!("{command:?} has not ended after {limit:?}; output: {}\n{err}", String::from_utf8_lossy(&out));
    };
    Done { status, out, err }
}

/// Runs a command that must succeed; its output.
pub(crate) fn ok(command: &mut Command, limit: Duration) -> Done {
    let done = run(command, limit);
    assert!(done.status.success(), "{command:?}: {}: {}\n{}", done.status, done.text(), done.err);
    done
}
