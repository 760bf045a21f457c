//! What the cases share.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use plyfs_runtime::{Error, HostPath, Launcher, Root, Running, Spec};

/// Makes the list of a file's cases.
macro_rules! all {
    ($($name:ident),* $(,)?) => {
        /// Every case by its name.
        pub(crate) const ALL: &[(&str, fn())] = &[$((stringify!($name), $name)),*];
    };
}
pub(crate) use all;

/// Says that a case was not run, also where that is counted.
pub(crate) fn skip(name: &str, reason: &str) {
    println!("SKIP {name}: {reason}");
    if let Some(log) = std::env::var_os("PLYFS_SKIP_LOG") {
        let mut file = std::fs::OpenOptions::new().append(true).create(true).open(log).unwrap();
        writeln!(file, "{name}: {reason}").unwrap();
    }
}

/// What a launch must leave as it was: the table of mounts, open descriptors, children.
pub(crate) fn state() -> (Vec<String>, Vec<String>, String) {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap().lines().map(str::to_owned).collect();
    let fds = std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| {
        let entry = entry.unwrap();
        // The descriptor of this listing is gone by now.
        let link = std::fs::read_link(entry.path()).ok()?;
        (!link.starts_with("/proc")).then(|| format!("{}", entry.file_name().display()))
    });
    // The two ends of the pipe for caught signals stay, once made.
    let fds = fds.filter(|fd| !is_pipe(fd)).collect();
    (mounts, fds, children())
}

fn is_pipe(fd: &str) -> bool {
    std::fs::read_link(format!("/proc/self/fd/{fd}")).is_ok_and(|link| link.to_string_lossy().starts_with("pipe:"))
}

/// The numbers of the children of all threads, dead ones too.
pub(crate) fn children() -> String {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    tasks.filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("children")).ok()).collect()
}

/// A command on the host's own files, read-only.
pub(crate) fn spec(argv: &[&str]) -> Spec {
    let mut spec = Spec::new(Root::Dir { path: HostPath::from("/"), read_only: true }, argv.iter().map(OsString::from));
    spec.env.push((OsString::from("LC_ALL"), OsString::from("C")));
    spec
}

/// A script for the shell on the host's own files, read-only.
pub(crate) fn script(text: &str) -> Spec {
    spec(&["/bin/sh", "-c", text])
}

/// What a command did.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: u8,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Launches, with nothing to read, and waits.
pub(crate) fn try_run(spec: &Spec) -> Result<Outcome, Error> {
    run_with(spec, Vec::new())
}

/// Launches with descriptors.
pub(crate) fn run_with(spec: &Spec, fds: Vec<std::os::fd::OwnedFd>) -> Result<Outcome, Error> {
    let launcher = Launcher::new().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = launcher.spawn(spec, fds)?;
    finish(&mut running)
}

/// Collects the output and the end.
pub(crate) fn finish(running: &mut Running) -> Result<Outcome, Error> {
    let mut error_pipe = running.take_stderr().unwrap();
    let errors = std::thread::spawn(move || {
        let mut text = Vec::new();
        error_pipe.read_to_end(&mut text).unwrap();
        text
    });
    let mut stdout = Vec::new();
    running.take_stdout().unwrap().read_to_end(&mut stdout).unwrap();
    let code = running.wait()?.code();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok(Outcome { code, stdout: text(stdout), stderr: text(errors.join().unwrap()) })
}

pub(crate) fn run(spec: &Spec) -> Outcome {
    try_run(spec).unwrap()
}

/// The output of a script that must succeed.
#[track_caller]
pub(crate) fn output(spec: &Spec) -> String {
    let outcome = run(spec);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    outcome.stdout
}

/// Waits until something is so, at most some seconds.
#[track_caller]
pub(crate) fn eventually(what: &str, mut test: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !test() {
        assert!(Instant::now() < end, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a process lives, zombies excepted.
pub(crate) fn lives(pid: i32) -> bool {
    field(pid, "State").is_some_and(|state| !state.starts_with('Z'))
}

/// A field of /proc/PID/status.
pub(crate) fn field(pid: i32, name: &str) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    field_of(&status, name)
}

/// A field in the format of /proc/PID/status.
pub(crate) fn field_of(status: &str, name: &str) -> Option<String> {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(|value| value.trim().to_owned())
}

/// A new caller: this program again, which runs one of [`crate::cases::caller`].
pub(crate) fn start_caller(name: &str, rest: &[&str]) -> std::process::Command {
    let mut command = std::process::Command::new("/proc/self/exe");
    command.arg("__caller").arg(name).args(rest);
    command
}

/// A directory with nothing in it but mount points for the host's programs.
pub(crate) struct Scratch {
    pub(crate) dir: tempfile::TempDir,
}

impl Scratch {
    pub(crate) fn new() -> Scratch {
        Scratch { dir: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A script on this directory, writable, with the host's programs bound into it.
    pub(crate) fn script(&self, text: &str) -> Spec {
        use plyfs_runtime::{BindSource, InnerPath, MountSpec};
        let mut spec = script(text);
        spec.root = Root::Dir { path: HostPath::from(self.path()), read_only: false };
        for dir in ["/usr", "/bin", "/lib", "/lib64", "/etc/alternatives"] {
            if Path::new(dir).exists() {
                spec.mounts.push(MountSpec::BindReadOnly {
                    source: BindSource::Path(HostPath::from(dir)),
                    target: InnerPath::from(dir),
                    recursive: false,
                    optional: false,
                });
            }
        }
        spec
    }
}
