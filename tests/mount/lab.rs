//! `Lab`: a temporary directory with a lower, an upper, a workdir and their union, served by the program itself.
//!
//! A lab watches what every test must hold: no lower changes, a clean unmount leaves nothing in `work`, the server ends with success and has not
//! panicked.
//!
//! `PLYFS_TEST_WITH` runs the same tests on something else, to see what they are worth: `overlay` is kernel overlayfs, anything else a program with
//! the grammar of fuse-overlayfs.
#![allow(dead_code)]

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use plyfs_sys::{Errno, mount, process};
use tempfile::TempDir;

/// How long anything may take that should take no time.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// What a [`Lab`] is for a test: made, or the test is skipped. Names the programs that the test calls.
macro_rules! lab {
    ($($program:literal),*) => {{
        if let Some(reason) = $crate::lab::missing(&[$($program),*]) {
            $crate::skip::skip!("{reason}");
        }
        $crate::lab::Lab::new()
    }};
}
pub(crate) use lab;

/// Why a test that mounts cannot run here, if it cannot.
pub(crate) fn missing(programs: &[&str]) -> Option<String> {
    if process::effective_uid() != 0 {
        return Some("needs root".to_owned());
    }
    if let Err(errno) = mount::open_dev_fuse() {
        return Some(format!("needs /dev/fuse: {errno}"));
    }
    programs.iter().find(|program| find(program).is_none()).map(|program| format!("needs {program}"))
}

/// A program by its name, in `PLYFS_TOOLS` (a directory) and then in `PATH`.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let tools = std::env::var_os("PLYFS_TOOLS").map(PathBuf::from);
    tools.into_iter().chain(std::env::split_paths(&path)).map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// What serves the mount.
enum Server {
    Process(Child),
    Kernel,
}

pub(crate) struct Lab {
    pub(crate) lowers: Vec<PathBuf>,
    /// Data-only layers, below the lowers.
    pub(crate) data: Vec<PathBuf>,
    /// More options, each with its comma before it.
    pub(crate) more: &'static str,
    pub(crate) upper: PathBuf,
    pub(crate) work: PathBuf,
    /// Of the server.
    pub(crate) umask: u32,
    /// Of the server: hard limit of open files.
    pub(crate) max_files: Option<u32>,
    /// Compares the lowers at the end with what they were. Goes by paths, so not deeper than PATH_MAX.
    pub(crate) watch: bool,
    /// Beside the layers, for what is done without a union.
    plain: PathBuf,
    mnt: PathBuf,
    server: Option<Server>,
    /// What the lowers held at the first mount.
    before: Option<Vec<String>>,
    /// Other mounts in the lab, unmounted at its end, last first.
    others: Vec<PathBuf>,
    /// Dropped last.
    dir: TempDir,
}

impl Lab {
    pub(crate) fn new() -> Lab {
        let dir = tempfile::Builder::new().prefix("plyfs-").tempdir().unwrap();
        // Other users' processes take part in some tests.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        // The mount table shows it without links.
        let root = dir.path().canonicalize().unwrap();
        let [lower, upper, work, mnt] = ["lower", "upper", "work", "mnt"].map(|name| {
            let path = root.join(name);
            fs::create_dir(&path).unwrap();
            path
        });
        let lowers = vec![lower];
        let plain = root.join("plain");
        Lab {
            lowers,
            data: Vec::new(),
            more: "",
            upper,
            work,
            umask: 0o022,
            max_files: None,
            watch: true,
            plain,
            mnt,
            server: None,
            before: None,
            others: Vec::new(),
            dir,
        }
    }

    /// Takes the layers, and the plain directory, from a directory on another filesystem.
    pub(crate) fn live_on(&mut self, dir: &Path) {
        let [lower, upper, work, plain] = ["lower", "upper", "work", "plain"].map(|name| dir.join(name));
        for dir in [&lower, &upper, &work] {
            fs::create_dir(dir).unwrap();
        }
        (self.lowers, self.upper, self.work, self.plain) = (vec![lower], upper, work, plain);
    }

    /// A path in the lab itself.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        below(self.dir.path(), path)
    }

    /// A path in the mount.
    pub(crate) fn mnt(&self, path: &str) -> PathBuf {
        below(&self.mnt, path)
    }

    /// A path in the topmost lower.
    pub(crate) fn lower(&self, path: &str) -> PathBuf {
        below(&self.lowers[0], path)
    }

    pub(crate) fn upper(&self, path: &str) -> PathBuf {
        below(&self.upper, path)
    }

    /// A path in a plain directory beside the layers, which is not there at first.
    pub(crate) fn plain(&self, path: &str) -> PathBuf {
        below(&self.plain, path)
    }

    /// Writes a file of the topmost lower, with its directories.
    pub(crate) fn write_lower(&self, path: &str, content: impl AsRef<[u8]>) {
        write(&self.lower(path), content.as_ref());
    }

    /// Writes a file of the upper, with its directories, while nothing is mounted.
    pub(crate) fn write_upper(&self, path: &str, content: impl AsRef<[u8]>) {
        assert!(self.server.is_none());
        write(&self.upper(path), content.as_ref());
    }

    /// What is in `work`.
    pub(crate) fn staged(&self) -> Vec<String> {
        names(&self.work.join("work"))
    }

    /// A tmpfs in the lab.
    pub(crate) fn tmpfs(&mut self, name: &str, options: &str) -> PathBuf {
        let path = self.mountpoint(name);
        run(Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&path));
        path
    }

    /// A new filesystem in a file, 512 MiB at most: the type and options of `mkfs`.
    pub(crate) fn image(&mut self, name: &str, mkfs: &[&str]) -> PathBuf {
        let (path, image) = (self.mountpoint(name), self.path(&format!("{name}.img")));
        File::create(&image).unwrap().set_len(512 << 20).unwrap();
        run(Command::new("mkfs").arg("-t").args(mkfs).arg(&image));
        run(Command::new("mount").args(["-o", "loop,noatime"]).arg(&image).arg(&path));
        path
    }

    /// Another directory to mount something on.
    pub(crate) fn mountpoint(&mut self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir(&path).unwrap();
        self.others.push(path.clone());
        path
    }

    pub(crate) fn options(&self) -> OsString {
        let mut options = OsString::from("lowerdir=");
        options.push(self.lowers.iter().map(|path| path.as_os_str()).collect::<Vec<_>>().join(OsStr::new(":")));
        for data in &self.data {
            options.push("::");
            options.push(data);
        }
        options.push(",upperdir=");
        options.push(&self.upper);
        options.push(",workdir=");
        options.push(&self.work);
        options.push(self.more);
        options
    }

    /// Mounts; back when it is live.
    pub(crate) fn mount(&mut self) {
        assert!(self.server.is_none(), "mounted already");
        if self.before.is_none() {
            self.before = Some(self.lower_marks());
        }
        let with = std::env::var_os("PLYFS_TEST_WITH").unwrap_or_default();
        if with == "overlay" {
            let mut options = self.options();
            options.push(",redirect_dir=on,index=on,xino=auto");
            crate::kernel::overlay(options, &self.mnt).unwrap();
            self.server = Some(Server::Kernel);
            return;
        }
        let limit = self.max_files.map(|limit| format!("ulimit -n {limit}; ")).unwrap_or_default();
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("{limit}umask {:03o}; exec \"$@\"", self.umask)).arg("sh");
        if with.is_empty() {
            command.args([env!("CARGO_BIN_EXE_plyfs"), "mount"])
        } else {
            command.arg(with)
        };
        command.arg("-f").arg("-o").arg(self.options()).arg(&self.mnt).current_dir("/").env("PLYFS_ROOT", self.path("state"));
        let log = OpenOptions::new().append(true).create(true).open(self.path("log")).unwrap();
        let mut child = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let start = Instant::now();
        while !self.is_mounted() {
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none() && start.elapsed() < SOON, "no mount ({ended:?}): {}", self.log());
            std::thread::sleep(Duration::from_millis(1));
        }
        self.server = Some(Server::Process(child));
    }

    pub(crate) fn is_mounted(&self) -> bool {
        mount::mounts().unwrap().iter().any(|mount| mount.mountpoint == self.mnt.as_os_str().as_bytes())
    }

    /// What the server printed.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Whether it is plyfs that is tested.
    pub(crate) fn is_plyfs(&self) -> bool {
        std::env::var_os("PLYFS_TEST_WITH").is_none_or(|with| with.is_empty())
    }

    /// The program under test, with its state in the lab.
    pub(crate) fn plyfs(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_plyfs"));
        command.args(args).env("PLYFS_ROOT", self.path("state")).stdin(Stdio::null());
        command
    }

    /// The server's process.
    pub(crate) fn pid(&self) -> u32 {
        match &self.server {
            Some(Server::Process(child)) => child.id(),
            _ => panic!("no server"),
        }
    }

    /// Unmounts, waits for the server, and checks what it left.
    pub(crate) fn unmount(&mut self) {
        // Another test of this process may be starting a program, which holds our descriptors until its exec.
        eventually("nobody uses the mount", || {
            let output = if self.is_plyfs() {
                self.plyfs(&["umount"]).arg(&self.mnt).output().unwrap()
            } else {
                Command::new("umount").arg(&self.mnt).output().unwrap()
            };
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success() || error.contains("busy"), "{error}");
            output.status.success()
        });
        self.ended();
    }

    /// Waits for the server that is to end by itself, and checks what it left.
    pub(crate) fn ended(&mut self) {
        match self.server.take() {
            Some(Server::Process(mut child)) => {
                eventually("the server ends", || child.try_wait().unwrap().is_some());
                let status = child.wait().unwrap();
                assert!(status.success(), "the server: {status}: {}", self.log());
            }
            Some(Server::Kernel) => {}
            None => panic!("not mounted"),
        }
        assert!(!self.is_mounted());
        assert!(!self.log().contains("panic"), "{}", self.log());
        if self.is_plyfs() {
            // The mark of a volatile mount stays.
            let stays: &[&str] = if self.more.contains("volatile") { &["incompat"] } else { &[] };
            assert_eq!(names(&self.work.join("work")), stays, "left in work");
        }
        self.check_lowers();
    }

    pub(crate) fn remount(&mut self) {
        self.unmount();
        self.mount();
    }

    /// Kills the server by SIGKILL and takes the dead mount away.
    pub(crate) fn kill(&mut self) {
        self.kill_server();
        mount::umount(&*self.mnt, true).unwrap();
    }

    /// Kills the server by SIGKILL; its mount stays, dead.
    pub(crate) fn kill_server(&mut self) {
        let Some(Server::Process(mut child)) = self.server.take() else { panic!("no server") };
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Makes the kernel forget the names of the mount that nobody uses: a remount drops them (`reconfigure_super`), of this filesystem alone.
    pub(crate) fn forget_entries(&self) {
        rustix::mount::mount_remount(&self.mnt, rustix::mount::MountFlags::empty(), "").unwrap();
    }

    /// Takes the mount away, whatever state its layers are in.
    pub(crate) fn abandon(mut self) {
        mount::umount(&*self.mnt, true).unwrap();
        let Some(Server::Process(mut child)) = self.server.take() else { panic!("no server") };
        eventually("the server ends", || child.try_wait().unwrap().is_some());
        assert!(!self.log().contains("panic"), "{}", self.log());
    }

    /// Sends a signal to the server.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.pid()).unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Lowers are never written.
    pub(crate) fn check_lowers(&self) {
        assert_eq!(self.before.as_ref().unwrap(), &self.lower_marks(), "a lower was changed");
    }

    /// ctime tells any change of an object's content or attributes.
    fn lower_marks(&self) -> Vec<String> {
        let mut marks = Vec::new();
        for lower in self.lowers.iter().filter(|_| self.watch) {
            walk(lower, &mut |path, meta| {
                let (path, ino, links) = (path.display(), meta.ino(), meta.nlink());
                marks.push(format!("{path} {ino} {links} {} {}.{:09}", meta.size(), meta.ctime(), meta.ctime_nsec()));
            });
        }
        marks
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprint!("{}", self.log());
        }
        for path in std::iter::once(&self.mnt).chain(self.others.iter().rev()) {
            // EINVAL: nothing is mounted there.
            match mount::umount(&**path, true) {
                Ok(()) | Err(Errno::INVAL) => {}
                Err(errno) => eprintln!("umount {}: {errno}", path.display()),
            }
        }
        if let Some(Server::Process(mut child)) = self.server.take() {
            let start = Instant::now();
            while child.try_wait().is_ok_and(|ended| ended.is_none()) && start.elapsed() < Duration::from_secs(5) {
                std::thread::sleep(Duration::from_millis(2));
            }
            if let Err(error) = child.kill().and_then(|()| child.wait()) {
                eprintln!("kill: {error}");
            }
        }
    }
}

fn below(base: &Path, path: &str) -> PathBuf {
    if path.is_empty() { base.to_owned() } else { base.join(path) }
}

pub(crate) fn write(path: &Path, content: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

/// Waits until something is so.
pub(crate) fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let start = Instant::now();
    while !check() {
        assert!(start.elapsed() < SOON, "{what}: not in time");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Runs a shell script in a directory; its standard output.
pub(crate) fn sh(dir: &Path, script: &str) -> String {
    run(&mut shell(dir, script))
}

/// As [`sh`], as an ordinary user.
pub(crate) fn sh_as(uid: u32, dir: &Path, script: &str) -> String {
    run(shell(dir, script).uid(uid).gid(uid))
}

/// A shell that runs a script, not for ever, with the umask that most have.
pub(crate) fn shell(dir: &Path, script: &str) -> Command {
    let mut command = Command::new("timeout");
    command.args(["-k", "1", "120", "sh", "-ec"]).arg(format!("umask 022\n{script}")).current_dir(dir).stdin(Stdio::null());
    command.env("LC_ALL", "C");
    command
}

/// Runs a Python program in a directory.
pub(crate) fn python(dir: &Path, program: &str) -> String {
    run(Command::new("timeout").args(["-k", "1", "120", "python3", "-c", program]).current_dir(dir))
}

/// Runs a command that succeeds; its standard output.
pub(crate) fn run(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    assert!(status.success(), "{command:?}: {status}: {}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

/// The errno that something failed with.
pub(crate) fn errno<T>(result: std::io::Result<T>) -> Option<Errno> {
    match result {
        Ok(_) => None,
        Err(error) => Some(Errno::from_io_error(&error).unwrap_or_else(|| panic!("no errno: {error}"))),
    }
}

/// The names in a directory, sorted.
pub(crate) fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Everything in a tree, the root first, in the order of names.
pub(crate) fn walk(root: &Path, see: &mut impl FnMut(&Path, &fs::Metadata)) {
    let meta = fs::symlink_metadata(root).unwrap();
    see(root, &meta);
    if meta.is_dir() {
        let mut entries: Vec<_> = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
        entries.sort();
        for entry in entries {
            walk(&entry, see);
        }
    }
}

/// What users see of a tree, but for times and inode numbers: a line for each object.
pub(crate) fn tree(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    walk(root, &mut |path, meta| {
        let name = path.strip_prefix(root).unwrap();
        let content = if meta.is_symlink() {
            fs::read_link(path).unwrap().into_os_string().into_encoded_bytes()
        } else if meta.is_file() {
            fs::read(path).unwrap()
        } else {
            Vec::new()
        };
        // Directories' counts and sizes are each filesystem's own business.
        let links = if meta.is_dir() { 0 } else { meta.nlink() };
        let shown = content[..content.len().min(40)].escape_ascii();
        let (mode, uid, gid, rdev, len) = (meta.mode(), meta.uid(), meta.gid(), meta.rdev(), content.len());
        lines.push(format!("{name:?} {mode:o} {uid}:{gid} links {links} rdev {rdev} {len} bytes {shown} {:?}", xattrs(path)));
    });
    lines
}

/// The extended attributes of an object, but for those of security modules, sorted.
pub(crate) fn xattrs(path: &Path) -> Vec<(String, Vec<u8>)> {
    let mut buffer = vec![0; 1 << 16];
    let len = match rustix::fs::llistxattr(path, &mut buffer[..]) {
        Ok(len) => len,
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        Err(errno) => panic!("{}: {errno}", path.display()),
    };
    let names = buffer[..len].split(|&byte| byte == 0).filter(|name| !name.is_empty());
    let mut found = Vec::new();
    for name in names.filter(|name| !name.starts_with(b"security.") || *name == b"security.capability") {
        let mut value = vec![0; 1 << 16];
        let len = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
        value.truncate(len);
        found.push((String::from_utf8_lossy(name).into_owned(), value));
    }
    found.sort();
    found
}

pub(crate) fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, rustix::fs::XattrFlags::empty()).unwrap();
}

/// Sets access and modification time, in nanoseconds after the given second.
pub(crate) fn set_times(path: &Path, atime: (i64, i64), mtime: (i64, i64)) {
    let time = |(tv_sec, tv_nsec)| rustix::fs::Timespec { tv_sec, tv_nsec };
    let times = rustix::fs::Timestamps { last_access: time(atime), last_modification: time(mtime) };
    rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// Bytes that look random and differ for each seed.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Appends to a file by a descriptor of its own.
pub(crate) fn append(path: &Path, data: impl AsRef<[u8]>) {
    OpenOptions::new().append(true).open(path).unwrap().write_all(data.as_ref()).unwrap();
}

pub(crate) fn open_rw(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}
