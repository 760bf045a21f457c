//! A place for one test: directories, a state directory of its own, and mounts that go with it whatever happens.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The binary under test.
pub(crate) const PLYFS: &str = env!("CARGO_BIN_EXE_plyfs");

/// How long anything here may take.
const SOON: Duration = Duration::from_secs(60);

/// Why a test that needs root and FUSE cannot run, if it cannot.
pub(crate) fn lack() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root");
    }
    if fs::File::options().read(true).write(true).open("/dev/fuse").is_err() {
        return Some("needs /dev/fuse");
    }
    let may_mount = Command::new("unshare").args(["-m", "true"]).status().is_ok_and(|status| status.success());
    if may_mount { None } else { Some("needs the right to mount") }
}

/// Leaves a test that needs root and FUSE where there is none.
macro_rules! need_mounts {
    () => {
        if let Some(lack) = $crate::lab::lack() {
            $crate::skip::skip!("{lack}");
        }
    };
}
pub(crate) use need_mounts;

/// What a command did.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) code: Option<i32>,
    pub(crate) out: Vec<u8>,
    pub(crate) err: String,
}

impl From<Output> for Done {
    fn from(output: Output) -> Self {
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        Self { code: output.status.code(), out: output.stdout, err }
    }
}

impl Done {
    /// Its output as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }

    /// It went well and had nothing to complain of.
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        assert_eq!((self.code, self.err.as_str()), (Some(0), ""), "{self:?}");
        self
    }

    /// It refused with one line that begins so and has all of these parts, and with this code.
    #[track_caller]
    pub(crate) fn refused(&self, code: i32, begin: &str, parts: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert_eq!(self.err.lines().count(), 1, "one line: {self:?}");
        let begin = format!("plyfs: {begin}");
        assert!(self.err.starts_with(&begin), "begins with {begin:?}: {self:?}");
        for part in parts {
            assert!(self.err.contains(part), "{part:?} is missing: {self:?}");
        }
        assert!(self.err.contains("; "), "no remedy: {self:?}");
        assert!(self.out.is_empty(), "{self:?}");
    }
}

/// What is compared of a file: mode, owner, links, mtime, data.
pub(crate) type Seen = (u32, u32, u64, (i64, i64), Vec<u8>);

/// The place.
pub(crate) struct Lab {
    dir: tempfile::TempDir,
}

impl Lab {
    /// An empty one, that other users can look into.
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("plyfs-cli-").tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Self { dir }
    }

    /// One with lower directories `a` over `b`, `u`, `w` and `m`.
    pub(crate) fn layers() -> Self {
        let lab = Self::new();
        for dir in ["a", "b/d", "u", "w", "m"] {
            fs::create_dir_all(lab.path(dir)).unwrap();
        }
        for (file, text) in [("a/top", "a"), ("b/top", "b"), ("b/low", "b"), ("b/d/f", "f")] {
            fs::write(lab.path(file), text).unwrap();
        }
        lab
    }

    /// The path of something in it.
    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    /// That path as text.
    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// The usual options: `a` over `b`, and `u`.
    pub(crate) fn options(&self) -> String {
        format!("lowerdir={}:{},upperdir={},workdir={}", self.text("a"), self.text("b"), self.text("u"), self.text("w"))
    }

    /// A command in the place, with the state directory `state` in it.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.path("")).env("PLYFS_ROOT", self.path("state")).env_remove("PLYFS_LOG").stdin(Stdio::null());
        command
    }

    /// plyfs with arguments.
    pub(crate) fn plyfs(&self, args: &[&str]) -> Done {
        let mut command = self.command(PLYFS);
        command.args(args);
        finish(&mut command)
    }

    /// Mounts with `options` on `m`, where it is gone at the end of the guard.
    #[track_caller]
    pub(crate) fn mount(&self, options: &str) -> Mounted {
        self.plyfs(&["mount", "-o", options, "m"]).ok();
        Mounted(self.path("m"))
    }

    /// Mounts a tmpfs in the place.
    pub(crate) fn tmpfs(&self, name: &str) -> Mounted {
        fs::create_dir_all(self.path(name)).unwrap();
        let mounted = Mounted(self.path(name));
        assert!(Command::new("mount").args(["-t", "tmpfs", "plyfs-test"]).arg(&mounted.0).status().unwrap().success());
        mounted
    }

    /// Shows a directory of the place at another one, by a bind mount.
    pub(crate) fn bind(&self, from: &str, to: &str) -> Mounted {
        fs::create_dir_all(self.path(to)).unwrap();
        assert!(Command::new("mount").arg("--bind").arg(self.path(from)).arg(self.path(to)).status().unwrap().success());
        Mounted(self.path(to))
    }

    /// Everything in the place that is not in a mount, to be compared.
    pub(crate) fn snapshot(&self) -> BTreeMap<PathBuf, Seen> {
        let mut seen = BTreeMap::new();
        let own = self.path("").metadata().unwrap().dev();
        let mut todo = vec![self.path("")];
        while let Some(path) = todo.pop() {
            let meta = path.symlink_metadata().unwrap();
            if meta.dev() != own {
                continue;
            }
            let data = if meta.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
            if meta.is_dir() {
                todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            }
            seen.insert(path, (meta.mode(), meta.uid(), meta.nlink(), (meta.mtime(), meta.mtime_nsec()), data));
        }
        seen
    }
}

/// Something that is mounted, until the guard goes.
pub(crate) struct Mounted(pub(crate) PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        if is_mountpoint(&self.0) {
            // The tests that fail leave somebody in there at times.
            let status = Command::new("umount").args(["-l", "--"]).arg(&self.0).status();
            assert!(std::thread::panicking() || status.is_ok_and(|status| status.success()), "{} stays mounted", self.0.display());
        }
    }
}

/// A line of the mount table: type, source, options.
pub(crate) fn mount_at(path: &Path) -> Option<(String, String, String)> {
    let mut escaped = Vec::new();
    for &byte in path.as_os_str().as_encoded_bytes() {
        if b" \t\n\\#".contains(&byte) { escaped.extend(format!("\\{byte:03o}").bytes()) } else { escaped.push(byte) }
    }
    let table = fs::read("/proc/thread-self/mountinfo").unwrap();
    let line = table.split(|&byte| byte == b'\n').rev().find(|line| line.split(|&byte| byte == b' ').nth(4) == Some(&escaped))?;
    let line = String::from_utf8_lossy(line);
    let (own, filesystem) = line.split_once(" - ").unwrap();
    let mut filesystem = filesystem.split(' ');
    let mut next = || filesystem.next().unwrap().to_owned();
    Some((next(), next(), own.split(' ').nth(5).unwrap().to_owned()))
}

/// Whether something is mounted there.
pub(crate) fn is_mountpoint(path: &Path) -> bool {
    mount_at(path).is_some()
}

/// A process that is killed with its guard.
pub(crate) struct Process(pub(crate) Child);

impl Process {
    /// Starts it.
    pub(crate) fn start(command: &mut Command) -> Self {
        Self(command.spawn().unwrap())
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Its exit code, which must come soon.
    #[track_caller]
    pub(crate) fn code(&mut self) -> Option<i32> {
        until("the process ends", || self.0.try_wait().unwrap().is_some());
        self.0.wait().unwrap().code()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }
}

/// Runs a command to its end, which must come soon.
#[track_caller]
pub(crate) fn finish(command: &mut Command) -> Done {
    let mut child = Process(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let (mut out, mut err) = (child.0.stdout.take().unwrap(), child.0.stderr.take().unwrap());
    // Read beside the wait: a full pipe would hold the command.
    let out = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        out.read_to_end(&mut bytes).unwrap();
        bytes
    });
    let err = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        err.read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    });
    let code = child.code();
    Done { code, out: out.join().unwrap(), err: err.join().unwrap() }
}

/// Waits for something that happens soon.
#[track_caller]
pub(crate) fn until(what: &str, mut happened: impl FnMut() -> bool) {
    let start = Instant::now();
    while !happened() {
        assert!(start.elapsed() < SOON, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The process that serves the mount at `path`, as its record says.
pub(crate) fn server(path: &Path) -> u32 {
    let dev = fs::metadata(path).unwrap().dev();
    let name = format!("/run/plyfs/{}:{}.json", rustix::fs::major(dev), rustix::fs::minor(dev));
    let record: serde_json::Value = serde_json::from_slice(&fs::read(name).unwrap()).unwrap();
    u32::try_from(record["pid"].as_u64().unwrap()).unwrap()
}

/// A file name of any bytes.
pub(crate) fn name(bytes: &[u8]) -> OsString {
    OsString::from_vec(bytes.to_vec())
}
