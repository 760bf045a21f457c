//! Unions on unions: the operations of a case on a stack of real mounts, plyfs and kernel overlayfs upon each other, as lowers and as uppers.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::mount::UnmountFlags;

use crate::case::{Case, Op};
use crate::directories::Layers;
use crate::divergences;
use crate::plain::Plain;
use crate::reference::Reference;
use crate::run::{Watched, at_step};

/// Who makes a mount.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum By {
    Plyfs,
    Kernel,
}

/// A stack: what the layers of the case go through before they are the lower of the topmost union, and what its upper is in.
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    /// The first has the case's layers, each further one the one before as its lower.
    pub(crate) lower: &'static [By],
    /// The first writes to a plain directory, each further one into the one before.
    pub(crate) upper: &'static [By],
    pub(crate) top: By,
}

use By::{Kernel, Plyfs};

/// Every way in which one can be the layer of another, and all of them at once. Kernel overlayfs cannot be the upper of anything: it makes no whiteouts for
/// others.
pub(crate) const SHAPES: &[Shape] = &[
    Shape { name: "plyfs on plyfs", lower: &[Plyfs], upper: &[], top: Plyfs },
    Shape { name: "plyfs in plyfs", lower: &[], upper: &[Plyfs], top: Plyfs },
    Shape { name: "plyfs on kernel overlayfs", lower: &[Kernel], upper: &[], top: Plyfs },
    Shape { name: "kernel overlayfs on plyfs", lower: &[Plyfs], upper: &[], top: Kernel },
    Shape { name: "kernel overlayfs in plyfs", lower: &[], upper: &[Plyfs], top: Kernel },
    Shape { name: "plyfs, eight deep", lower: &[Plyfs, Kernel, Plyfs, Kernel], upper: &[Plyfs, Plyfs, Plyfs], top: Plyfs },
    Shape { name: "kernel overlayfs, eight deep", lower: &[Kernel, Plyfs, Plyfs, Plyfs], upper: &[Plyfs, Plyfs, Plyfs], top: Kernel },
];

/// One mount; taken away when it is dropped.
struct Mounted {
    at: PathBuf,
    server: Option<Child>,
}

const SOON: Duration = Duration::from_secs(60);

fn wait_for(what: &str, mut check: impl FnMut() -> bool) {
    let start = Instant::now();
    while !check() {
        assert!(start.elapsed() < SOON, "{what}: not in time");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn made(path: PathBuf) -> PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    if !path.exists() {
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        crate::build::set_mtime(&path, 1);
    }
    path
}

impl Mounted {
    fn new(by: By, lowers: &[PathBuf], upper: &Path, work: &Path, at: PathBuf, base: &Path) -> Self {
        let lowers: Vec<_> = lowers.iter().map(|dir| dir.to_str().unwrap()).collect();
        let options = format!("lowerdir={},upperdir={},workdir={}", lowers.join(":"), upper.display(), work.display());
        made(at.clone());
        if by == Kernel {
            let mounted = crate::kernel::overlay(format!("{options},redirect_dir=on,metacopy=off,index=off"), &at);
            assert_eq!(mounted, Ok(()), "overlay on {}: {options}", at.display());
            return Self { at, server: None };
        }
        let log = std::fs::File::options().append(true).create(true).open(base.join("log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_plyfs"));
        command.args(["mount", "-f", "-o", &format!("{options},volatile")]).arg(&at).env("PLYFS_ROOT", base.join("state"));
        command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let server = command.spawn().unwrap();
        let mut this = Self { at, server: Some(server) };
        let before = device(this.at.parent().unwrap());
        wait_for("a mount", || {
            let ended = this.server.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "plyfs ended, {ended:?}: {}", std::fs::read_to_string(base.join("log")).unwrap());
            device(&this.at) != before
        });
        this
    }
}

fn device(path: &Path) -> u64 {
    rustix::fs::stat(path).unwrap().st_dev
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(errno) = rustix::mount::unmount(&self.at, UnmountFlags::empty()) {
            eprintln!("umount {}: {errno}", self.at.display());
            rustix::mount::unmount(&self.at, UnmountFlags::DETACH).unwrap();
        }
        let Some(server) = &mut self.server else { return };
        // What lies below is free once the server has gone.
        wait_for("a server's end", || server.try_wait().unwrap().is_some());
        let status = server.wait().unwrap();
        assert!(status.success() || std::thread::panicking(), "a server: {status}");
    }
}

/// Cases that went wrong on some stack.
pub(crate) const KEPT: &[&str] = &[
    // The mode was set before the owner.
    "layer
       f /a \"1\" m=7276 t=4
       f /b \"1\" m=6755 u=7 g=8
     ops
       truncate /a 2
       chown /b 0 -1
       utimes /b 3",
    // Without an origin mark the copy was another object.
    "layer
       d /b
       f /c \"1\"
       l /l \"a\"
     ops
       open /c @0
       append /c \"2\"
       link /c /b/c
       rename /l /b/l
       forget
       rename /b/c /c whiteout",
];

/// The mounts of a stack, the topmost last.
#[derive(Default)]
struct Stack(Vec<Mounted>);

impl Drop for Stack {
    fn drop(&mut self) {
        while let Some(top) = self.0.pop() {
            drop(top);
        }
    }
}

impl Stack {
    fn new(shape: &Shape, layers: &Layers, base: &Path) -> Self {
        let mut stack = Self::default();
        let dir = |name: String| made(base.join(name));
        let mut lowers = layers.lowers.clone();
        if lowers.is_empty() {
            lowers.push(dir("nothing".to_owned()));
        }
        for (level, &by) in shape.lower.iter().enumerate() {
            let (upper, work) = (dir(format!("lower-upper{level}")), dir(format!("lower-work{level}")));
            let at = base.join(format!("lower-mount{level}"));
            stack.0.push(Mounted::new(by, &lowers, &upper, &work, at.clone(), base));
            lowers = vec![at];
        }
        let (mut upper, mut work) = (layers.upper(), layers.work());
        for (level, &by) in shape.upper.iter().enumerate() {
            let at = base.join(format!("upper-mount{level}"));
            stack.0.push(Mounted::new(by, &[dir(format!("nothing{level}"))], &upper, &work, at.clone(), base));
            (upper, work) = (made(at.join("u")), made(at.join("w")));
        }
        stack.0.push(Mounted::new(shape.top, &lowers, &upper, &work, base.join("top"), base));
        stack
    }
}

/// The case as far as a stack of this shape can keep what it promises: over a lower without file handles, which every union is, the index keeps no hard links
/// together; and there is nothing to put a new upper in.
fn fitting(shape: &Shape, case: &Case) -> Option<Case> {
    if case.has_hard_links() && (shape.top == Kernel || !shape.lower.is_empty()) {
        return None;
    }
    if shape.top == Kernel && !shape.upper.is_empty() && case.ops.iter().any(divergences::loses_names_of_links) {
        return None;
    }
    if shape.lower.contains(&Kernel) && divergences::lists_marked_whiteouts(&case.lowers) {
        return None;
    }
    let mut case = case.clone();
    for op in case.ops.iter_mut().filter(|op| **op == Op::Restack) {
        *op = Op::Remount;
    }
    Some(case)
}

/// Runs a case on a stack.
pub(crate) fn run(shape: &'static Shape, case: &Case) -> Result<(), String> {
    let Some(case) = fitting(shape, case) else { return Ok(()) };
    let base = tempfile::Builder::new().prefix("plyfs-nested-").tempdir().unwrap();
    let layers = Arc::new(Layers::new(&case.lowers, &case));
    let mut reference = Reference::of(&case.lowers);
    let stack = Arc::new(Mutex::new(Some(Stack::new(shape, &layers, base.path()))));
    let again = {
        let (stack, layers, path) = (stack.clone(), layers.clone(), base.path().to_owned());
        move |_| {
            let mut stack = stack.lock().unwrap();
            drop(stack.take());
            *stack = Some(Stack::new(shape, &layers, &path));
        }
    };
    let mut top = Plain::new(shape.name, &base.path().join("top"), Some(Box::new(again)));
    {
        let mut watched = Watched::new(&mut top, &case.lowers);
        watched.check(&reference).map_err(|e| format!("at first: {e}"))?;
        for (step, op) in case.ops.iter().enumerate() {
            let want = reference.apply(op);
            if *op == Op::Remount {
                watched.forget_numbers();
            }
            if !watched.step(op, &want, &reference).map_err(|e| at_step(step, op, &e))? {
                break;
            }
        }
    }
    drop(top);
    drop(stack.lock().unwrap().take());
    if divergences::keeps_a_whiteout_in_work(shape.name) { Ok(()) } else { layers.check() }
}
