//! `Lab`: a temporary directory with a lower, an upper, a workdir and the union of them mounted.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use plyfs_fuse::{Counters, Op, ServeOptions, Served, serve};
use plyfs_overlay::{Behaviour, DirTree, Layer, LayerStack, Union};
use plyfs_sys::mount::FuseOptions;
use tempfile::TempDir;

/// How long anything may take that should take no time.
pub(crate) const SOON: Duration = Duration::from_secs(20);

pub(crate) struct Lab {
    pub(crate) union: Arc<Union<DirTree>>,
    served: Option<Served>,
    /// Dropped after the mount has gone.
    dir: TempDir,
}

/// Unmounts what nobody uses. A program that a test beside this one is just starting has our descriptors until it is executed, and the mount with them: so
/// "busy" is no answer yet.
pub(crate) fn unmount(served: &Served) {
    let start = Instant::now();
    loop {
        match served.unmount(false) {
            Err(plyfs_fuse::Error::Unmount { errno: plyfs_sys::Errno::BUSY, .. }) if start.elapsed() < SOON => {
                thread::sleep(Duration::from_millis(20));
            }
            other => return other.unwrap(),
        }
    }
}

/// Whether this machine can run a test with a mount; reported if not.
pub(crate) fn can_mount(test: &str) -> bool {
    let reason = if !fs::metadata("/proc/self").is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0) {
        "needs root"
    } else if OpenOptions::new().read(true).write(true).open("/dev/fuse").is_err() {
        "needs /dev/fuse"
    } else {
        return true;
    };
    skip(test, reason);
    false
}

pub(crate) fn skip(test: &str, reason: &str) {
    println!("SKIP {test}: {reason}");
    if let Some(log) = std::env::var_os("PLYFS_SKIP_LOG") {
        let mut log = OpenOptions::new().append(true).create(true).open(log).unwrap();
        writeln!(log, "{test}: {reason}").unwrap();
    }
}

/// What a mount for everybody is made with.
pub(crate) fn fuse_options() -> FuseOptions {
    FuseOptions {
        source: b"plyfs-test".to_vec(),
        subtype: Some("plyfs".to_owned()),
        allow_other: true,
        dev: true,
        suid: true,
        ..FuseOptions::default()
    }
}

pub(crate) fn union_of(dir: &Path, behaviour: Behaviour) -> Union<DirTree> {
    let upper = DirTree::upper(&dir.join("upper"), &dir.join("work")).unwrap();
    let lower = DirTree::lower(&dir.join("lower")).unwrap();
    let stack = LayerStack { upper: Some(Layer::trusted(upper)), lowers: Box::new([Layer::trusted(lower)]) };
    Union::new(stack, behaviour).unwrap()
}

impl Lab {
    /// A mounted union; `prepare` fills the lower directory before.
    pub(crate) fn new(test: &str, prepare: impl FnOnce(&Path)) -> Option<Lab> {
        Lab::with(test, ServeOptions::default(), Behaviour { volatile: true, ..Behaviour::default() }, prepare)
    }

    pub(crate) fn with(test: &str, options: ServeOptions, behaviour: Behaviour, prepare: impl FnOnce(&Path)) -> Option<Lab> {
        if !can_mount(test) {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        // Other users' processes take part in some tests.
        fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        for name in ["lower", "upper", "work", "mnt"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        prepare(&dir.path().join("lower"));
        let union = Arc::new(union_of(dir.path(), behaviour));
        let served = serve(union.clone(), &fuse_options(), options).unwrap();
        let lab = Lab { union, served: Some(served), dir };
        lab.served().attach(&lab.dir.path().join("mnt")).unwrap();
        Some(lab)
    }

    pub(crate) fn served(&self) -> &Served {
        self.served.as_ref().unwrap()
    }

    pub(crate) fn root(&self) -> &Path {
        self.dir.path()
    }

    /// A path in the mount.
    pub(crate) fn mnt(&self, path: &str) -> PathBuf {
        self.at("mnt", path)
    }

    pub(crate) fn upper(&self, path: &str) -> PathBuf {
        self.at("upper", path)
    }

    pub(crate) fn lower(&self, path: &str) -> PathBuf {
        self.at("lower", path)
    }

    fn at(&self, layer: &str, path: &str) -> PathBuf {
        let base = self.dir.path().join(layer);
        if path.is_empty() { base } else { base.join(path) }
    }

    pub(crate) fn counters(&self) -> &Arc<Counters> {
        self.served().counters()
    }

    pub(crate) fn count(&self, op: Op) -> u64 {
        self.counters().get(op)
    }

    /// Ends the mount, waits for the session, and checks that nothing panicked. The directories stay for a while.
    pub(crate) fn finish(mut self) -> TempDir {
        assert_eq!(self.counters().panics(), 0);
        unmount(self.served());
        let served = self.served.take().unwrap();
        let (done, ended) = mpsc::channel();
        thread::spawn(move || done.send(served.join()));
        ended.recv_timeout(SOON).expect("the session ends when its mount is gone").unwrap();
        let spare = tempfile::tempdir().unwrap();
        std::mem::replace(&mut self.dir, spare)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some(served) = self.served.take() {
            if let Err(error) = served.unmount(true) {
                eprintln!("{error}");
            }
            let (done, ended) = mpsc::channel();
            thread::spawn(move || done.send(served.join()));
            if ended.recv_timeout(SOON).is_err() {
                eprintln!("the session has not ended in time");
            }
        }
    }
}

/// Waits until something is so.
pub(crate) fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let start = Instant::now();
    while !check() {
        assert!(start.elapsed() < SOON, "{what}: not in time");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Runs a shell script in a directory; its standard output.
pub(crate) fn sh(dir: &Path, script: &str) -> String {
    output(Command::new("sh").arg("-ec").arg(script).current_dir(dir))
}

/// As [`sh`], as an ordinary user.
pub(crate) fn sh_as(uid: u32, dir: &Path, script: &str) -> String {
    use std::os::unix::process::CommandExt;
    output(Command::new("sh").arg("-ec").arg(script).uid(uid).gid(uid).current_dir(dir))
}

/// Runs a Python program in a directory. `None` where there is no Python.
pub(crate) fn python(dir: &Path, program: &str) -> Option<String> {
    Command::new("python3").arg("-c").arg("").output().ok().filter(|output| output.status.success())?;
    Some(output(Command::new("python3").arg("-c").arg(program).current_dir(dir)))
}

fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn open_dir(path: &Path) -> OwnedFd {
    plyfs_sys::root::open_dir(path).unwrap()
}
