//! `Place`: layers with copies of the fixture, and the server of their union, which may die.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use plyfs_sys::mount;
use rustix::process::{Pid, Signal, kill_process};

use crate::gate::{Fault, Gate};
use crate::lab::{Lab, set_times, set_xattr, write};
use crate::ops::CAPABILITY;
use crate::seen;

/// How long a request may take before it counts as one that hangs.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Place {
    pub(crate) lab: Lab,
    /// More options, each with its comma before it.
    pub(crate) more: &'static str,
    server: Option<Gate>,
    pub(crate) metacopy: bool,
}

impl Place {
    /// Layers on a tmpfs, with `copies` copies of the fixture.
    pub(crate) fn new(copies: usize, metacopy: bool) -> Place {
        let mut lab = Lab::new();
        let dir = lab.tmpfs("fs", "mode=755");
        Place::in_dir(lab, &dir, copies, metacopy)
    }

    /// The same in a directory of another filesystem.
    pub(crate) fn in_dir(mut lab: Lab, dir: &Path, copies: usize, metacopy: bool) -> Place {
        lab.live_on(dir);
        let below = lab.lower("").with_file_name("below");
        fs::create_dir(&below).unwrap();
        lab.lowers.push(below);
        let place = Place { lab, more: "", server: None, metacopy };
        for number in 0..copies {
            fixture(&seen::copy(&place.lab.lowers[0], number), &seen::copy(&place.lab.lowers[1], number));
        }
        place
    }

    pub(crate) fn copy(&self, number: usize) -> PathBuf {
        seen::copy(&self.lab.mnt(""), number)
    }

    /// Mounts, and says why if that fails. All calls pass.
    pub(crate) fn mount(&mut self) -> Result<(), String> {
        self.mount_with(0, Fault::None)?;
        self.gate().disarm();
        Ok(())
    }

    /// Mounts, with a fault at the `number`-th call of the server.
    pub(crate) fn mount_with(&mut self, number: usize, fault: Fault) -> Result<(), String> {
        assert!(self.server.is_none());
        let mut options = self.lab.options();
        if self.metacopy {
            options.push(",metacopy=on");
        }
        options.push(self.more);
        let log = OpenOptions::new().append(true).create(true).open(self.lab.path("log")).unwrap();
        let words: Vec<OsString> =
            vec![env!("CARGO_BIN_EXE_plyfs").into(), "mount".into(), "-f".into(), "-o".into(), options, self.lab.mnt("").into()];
        let mut gate = Gate::start(&words, log, number, fault);
        let start = Instant::now();
        while !self.lab.is_mounted() {
            if let Some(status) = gate.ended() {
                return Err(format!("no mount: {status}: {}", self.log()));
            }
            assert!(start.elapsed() < PATIENCE, "no mount in time: {}", self.log());
            std::thread::sleep(Duration::from_micros(500));
        }
        self.server = Some(gate);
        Ok(())
    }

    /// The last of what the servers said.
    pub(crate) fn log(&self) -> String {
        let log = self.lab.log();
        log.lines().rev().take(3).collect::<Vec<_>>().join("; ")
    }

    pub(crate) fn gate(&mut self) -> &mut Gate {
        self.server.as_mut().unwrap()
    }

    /// Whether the server has died.
    pub(crate) fn died(&mut self) -> bool {
        self.server.as_mut().is_none_or(|server| server.ended().is_some())
    }

    /// Ends the server, which lives, and says what was wrong.
    pub(crate) fn unmount(&mut self) -> Result<(), String> {
        let start = Instant::now();
        loop {
            let output = self.lab.plyfs(&["umount"]).arg(self.lab.mnt("")).output().unwrap();
            if output.status.success() {
                break;
            }
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            if !error.contains("busy") || start.elapsed() > PATIENCE {
                return Err(error);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        self.ended()
    }

    /// Waits for the server that is to end by itself.
    pub(crate) fn ended(&mut self) -> Result<(), String> {
        let mut server = self.server.take().unwrap();
        let start = Instant::now();
        let status = loop {
            if let Some(status) = server.ended() {
                break status;
            }
            if start.elapsed() > PATIENCE {
                return Err("the server does not end".to_owned());
            }
            std::thread::sleep(Duration::from_micros(500));
        };
        if !status.success() || self.lab.log().contains("panic") {
            return Err(format!("the server: {status}: {}", self.log()));
        }
        Ok(())
    }

    /// Kills the server if it lives, and takes its mount away.
    pub(crate) fn kill(&mut self) {
        drop(self.server.take());
        if self.lab.is_mounted() {
            mount::umount(self.lab.mnt("").as_path(), true).unwrap();
        }
    }

    /// What is in `work`, but for the mark of a volatile union.
    pub(crate) fn litter(&self) -> Vec<String> {
        self.lab.staged().into_iter().filter(|name| name != "incompat" || !self.more.contains("volatile")).collect()
    }

    /// Does something on the mount that must end soon. If it does not the server is killed, which frees it, and that is an error.
    pub(crate) fn within<R: Send>(&self, work: impl FnOnce() -> R + Send) -> Result<R, String> {
        let pid = Pid::from_raw(i32::try_from(self.server.as_ref().unwrap().pid).unwrap()).unwrap();
        std::thread::scope(|scope| {
            let (sender, receiver) = mpsc::channel();
            let worker = scope.spawn(move || {
                // Nobody waits any more if it took too long.
                sender.send(work()).unwrap_or_default();
            });
            let done = receiver.recv_timeout(PATIENCE);
            if let Err(mpsc::RecvTimeoutError::Timeout) = done {
                kill_process(pid, Signal::KILL).unwrap();
            }
            // A panic of the worker goes on here.
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            done.map_err(|_| "a request hangs".to_owned())
        })
    }

    /// Looks at the layers through kernel overlayfs.
    pub(crate) fn in_kernel<R>(&self, look: impl FnOnce(&Path) -> R) -> Result<R, String> {
        assert!(self.server.is_none());
        let mut options = self.lab.options();
        options.push(",redirect_dir=on,index=on,xino=auto,metacopy=on");
        let root = self.lab.mnt("");
        crate::kernel::overlay(options, &root).map_err(|errno| format!("kernel overlayfs does not mount it: {errno}"))?;
        let seen = look(&root);
        mount::umount(root.as_path(), true).map_err(|errno| errno.to_string())?;
        Ok(seen)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprint!("{}", self.lab.log());
        }
        self.kill();
    }
}

/// Lays a copy of the fixture into two lowers.
fn fixture(top: &Path, below: &Path) {
    let all = [
        ("f", 40_000, 0o640),
        ("suid", 5_000, 0o4755),
        ("g", 9_000, 0o644),
        ("empty", 0, 0o600),
        ("d/a", 100, 0o644),
        ("d/s/b", 100, 0o644),
        ("e/c", 100, 0o600),
        ("h1", 6_000, 0o640),
        ("k1", 7_000, 0o640),
        ("gone", 300, 0o644),
    ];
    for (name, len, mode) in all {
        let path = top.join(name);
        let byte = name.bytes().last().unwrap();
        write(&path, &vec![byte; len]);
        chown(&path, Some(1000), Some(1001)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
    set_xattr(&top.join("suid"), "security.capability", CAPABILITY);
    set_xattr(&top.join("f"), "user.a", b"1");
    for (old, new) in [("h1", "d/h2"), ("h1", "e/h3"), ("k1", "d/k2"), ("k1", "e/k3")] {
        fs::hard_link(top.join(old), top.join(new)).unwrap();
    }
    symlink("to nowhere", top.join("l")).unwrap();
    write(&below.join("d/low"), b"low");
    write(&below.join("d/a"), b"hidden");
    write(&below.join("merged/low"), b"low");
    fs::create_dir(top.join("merged")).unwrap();
    fs::create_dir(top.join("none")).unwrap();
    for layer in [top, below] {
        crate::lab::walk(layer, &mut |path, meta| {
            let second = if meta.mode() & 0o170_000 == 0o040_000 { 900_000_000 } else { 1_000_000_000 };
            set_times(path, (second, 5), (second, 7));
        });
    }
}

/// The result of an operation in a word.
pub(crate) fn told(result: &io::Result<()>) -> String {
    match result {
        Ok(()) => "success".to_owned(),
        Err(error) => error.to_string(),
    }
}
