//! The systems that are compared, and one fresh mount of one of them.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use plyfs_sys::mount::{Context as Fs, MountAttrFlags, move_mount_path};

use crate::cleanup;

/// A way to mount layers.
pub(crate) struct System {
    /// As it was asked for; stands in tables.
    pub(crate) name: String,
    /// What it says about itself.
    pub(crate) version: String,
    kind: Kind,
    /// Uppers, workdirs and the mountpoint are in this directory.
    place: PathBuf,
    mounts: AtomicU32,
}

enum Kind {
    Kernel,
    /// A daemon that is run with these words before its options.
    Daemon(PathBuf, &'static [&'static str]),
}

/// What is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// With an upper layer.
    Writable,
    /// With an upper layer that is not safe from a crash of the machine: the option `volatile`.
    Volatile,
    /// Lower layers only.
    ReadOnly,
}

impl System {
    /// Finds the program.
    pub(crate) fn find(name: &str, plyfs: Option<&Path>, fuse_overlayfs: Option<&Path>, place: PathBuf) -> Result<System> {
        const PLYFS: &[&str] = &["mount", "-f"];
        let named = |path: &Path, given: &str| -> Result<String> {
            let output = Command::new(path).arg("--version").output().with_context(|| format!("{}", path.display()))?;
            let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
            // fuse-overlayfs may name the programs that it runs first.
            let line = said.lines().find(|line| line.starts_with(given)).or(said.lines().next()).unwrap_or_default();
            let line = line.trim().replace(" version:", "").replace(':', "");
            ensure!(output.status.success(), "{} --version: {line}", path.display());
            Ok(if given == "plyfs" || given == "fuse-overlayfs" { line } else { format!("{given} is {line}") })
        };
        let (kind, version) = match name.split_once('=') {
            Some((_, path)) => (Kind::Daemon(path.into(), PLYFS), named(Path::new(path), name.split('=').next().unwrap_or_default())?),
            None => match name {
                "kernel" => (Kind::Kernel, "kernel overlayfs with its defaults".to_owned()),
                "plyfs" => {
                    let built = option_env!("CARGO_BIN_EXE_plyfs").map(PathBuf::from);
                    let path = plyfs.map(Path::to_owned).or(built).context("which program? say it by --plyfs")?;
                    let version = named(&path, name)?;
                    (Kind::Daemon(path, PLYFS), version)
                }
                "fuse-overlayfs" => {
                    let path = fuse_overlayfs.unwrap_or(Path::new("fuse-overlayfs"));
                    (Kind::Daemon(path.to_owned(), &["-f"]), named(path, name)?)
                }
                _ => bail!("no such system; there are plyfs, kernel, fuse-overlayfs and NAME=PATH"),
            },
        };
        let name = name.split('=').next().unwrap_or_default().to_owned();
        Ok(System { name, version, kind, place, mounts: AtomicU32::new(0) })
    }

    /// Whether it is kernel overlayfs, which the others are compared with.
    pub(crate) fn is_kernel(&self) -> bool {
        matches!(self.kind, Kind::Kernel)
    }

    /// Mounts these layers, topmost first, with an upper that is new and empty, whatever was mounted before. A daemon runs on the CPUs of the calling thread.
    pub(crate) fn mount(&self, lowers: &[PathBuf], access: Access) -> Result<Mounted> {
        let number = self.mounts.fetch_add(1, Ordering::Relaxed);
        let part = |name: &str| self.place.join(name);
        let (upper, work, point) = (part(&format!("u{number}")), part(&format!("w{number}")), part("m"));
        for dir in [&upper, &work, &point] {
            fs::create_dir_all(dir).with_context(|| format!("{}", dir.display()))?;
        }
        let mounted = match &self.kind {
            Kind::Kernel => cleanup::mounting(&point, || {
                kernel(lowers, access, &upper, &work, &point)?;
                Ok((Mounted { point: point.clone(), upper: upper.clone(), daemon: None, over: false }, None))
            }),
            Kind::Daemon(program, words) => {
                let mut options = lowers.iter().fold("lowerdir=".to_owned(), |all, layer| all + &layer.to_string_lossy() + ":");
                options.truncate(options.len() - 1);
                if access != Access::ReadOnly {
                    options += &format!(",upperdir={},workdir={}", upper.display(), work.display());
                }
                if access == Access::Volatile {
                    options += ",volatile";
                }
                let mut command = Command::new(program);
                command.args(*words).arg("-o").arg(options).arg(&point);
                self.daemon(command, &point, &upper)
            }
        };
        mounted.with_context(|| format!("mount {}", self.name))
    }

    fn daemon(&self, mut command: Command, point: &Path, upper: &Path) -> Result<Mounted> {
        let log = self.place.join("log");
        let before = point.metadata()?.dev();
        // A process group of its own: a Ctrl-C is for the lab, which then unmounts.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(&log)?).process_group(0);
        let mut mounted = cleanup::mounting(point, || {
            let child = command.spawn().with_context(|| format!("start {}", command.get_program().display()))?;
            let process = child.id();
            Ok((Mounted { point: point.to_owned(), upper: upper.to_owned(), daemon: Some(child), over: false }, Some(process)))
        })?;
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if point.metadata()?.dev() != before {
                return Ok(mounted);
            }
            if let Some(daemon) = &mut mounted.daemon
                && let Some(status) = daemon.try_wait()?
            {
                bail!("the daemon ended, {status}: {}", fs::read_to_string(&log).unwrap_or_default().trim());
            }
            ensure!(Instant::now() < deadline, "nothing is mounted after 30 s: {}", fs::read_to_string(&log).unwrap_or_default().trim());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn kernel(lowers: &[PathBuf], access: Access, upper: &Path, work: &Path, point: &Path) -> Result<()> {
    let context = Fs::open("overlay")?;
    context.set("source", "lab")?;
    // One by one: what fsconfig(2) takes at once is limited, and so is a page of options.
    for layer in lowers {
        context.set("lowerdir+", layer.as_path())?;
    }
    if access != Access::ReadOnly {
        context.set("upperdir", upper)?;
        context.set("workdir", work)?;
    }
    if access == Access::Volatile {
        context.flag("volatile")?;
    }
    let mount = context.mount(MountAttrFlags::empty())?;
    move_mount_path(mount.as_fd(), point).with_context(|| format!("attach to {}", point.display()))
}

/// A mount, until it is dropped.
pub(crate) struct Mounted {
    point: PathBuf,
    upper: PathBuf,
    daemon: Option<Child>,
    over: bool,
}

impl Mounted {
    /// Where it is.
    pub(crate) fn point(&self) -> &Path {
        &self.point
    }

    /// Takes it away and waits for the daemon's end. The upper stays until the end of the run, without the contents of its big files: on ext4
    /// whoever makes files after thousands were removed pays for that.
    pub(crate) fn unmount(mut self) -> Result<()> {
        self.end()?;
        empty_big_files(&self.upper)
    }

    fn end(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.over, true) {
            return Ok(());
        }
        let process = self.daemon.as_ref().map(Child::id);
        cleanup::unmount(&self.point)?;
        if let Some(mut daemon) = self.daemon.take() {
            let deadline = Instant::now() + Duration::from_secs(20);
            while daemon.try_wait()?.is_none() {
                if Instant::now() > deadline {
                    eprintln!("lab: the daemon of {} does not end by itself", self.point.display());
                    daemon.kill()?;
                    daemon.wait()?;
                    break;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        cleanup::unmounted(&self.point, process);
        Ok(())
    }
}

fn empty_big_files(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        if meta.is_dir() {
            empty_big_files(&entry.path())?;
        } else if meta.is_file() && meta.len() > 1 << 20 {
            fs::File::create(entry.path())?;
        }
    }
    Ok(())
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("lab: {error:#}");
        }
    }
}
