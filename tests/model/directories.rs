//! The union over real directories, without a mount; a plain directory beside it; and kernel overlayfs on equal layers.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use plyfs_format::Dialect;
use plyfs_overlay::{Behaviour, DirTree, Keeping, Layer, LayerStack, Union};
use rustix::mount::UnmountFlags;
use tempfile::TempDir;

use crate::build::{dialect_of, on_disk, on_disk_as};
use crate::case::{Case, Entry, LayerSpec, Name, Op, What};
use crate::divergences;
use crate::memory::{Extra, sparse};
use crate::plain::Plain;
use crate::reference::{Mtime, Reference, Reply};
use crate::run::{Watched, at_step, check_changes, run_refusing};
use crate::union::{Again, UnionSystem};
use plyfs_sys::stat::Kind;

/// Layers in a temporary directory; a restack puts a new upper on top.
pub(crate) struct Layers {
    base: TempDir,
    /// The union makes objects where they belong, if it can.
    in_place: bool,
    metacopy: bool,
    uppers: usize,
    pub(crate) lowers: Vec<PathBuf>,
    digests: Vec<String>,
    dialects: Vec<Dialect>,
    written: Dialect,
    keeping: Keeping,
}

impl Layers {
    pub(crate) fn new(specs: &[LayerSpec], case: &Case) -> Self {
        Self::with(specs, case, Extra::default())
    }

    pub(crate) fn with(specs: &[LayerSpec], case: &Case, extra: Extra) -> Self {
        // What the union makes in place has the mode that it asks for.
        rustix::process::umask(rustix::fs::Mode::empty());
        let base = tempfile::Builder::new().prefix("plyfs-model-").tempdir().unwrap();
        let mut lowers = Vec::new();
        let sparse = sparse(specs);
        let padding = (0..extra.padding).map(|index| if index % 7 == 0 { sparse.clone() } else { LayerSpec::default() });
        let dialects: Vec<_> = (0..specs.len())
            .map(|index| if extra.dialects { dialect_of(specs, index) } else { extra.lowers.unwrap_or(Dialect::Trusted) })
            .collect();
        let spellings = dialects.iter().copied().chain(std::iter::repeat(Dialect::Trusted));
        for (index, (spec, dialect)) in specs.iter().cloned().chain(padding).zip(spellings).enumerate() {
            let dir = base.path().join(format!("lower{index}"));
            std::fs::create_dir(&dir).unwrap();
            std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).unwrap();
            on_disk_as(&dir, &spec, dialect);
            lowers.push(dir);
        }
        let digests = lowers.iter().take(specs.len()).map(|dir| digest(dir)).collect();
        let mut this = Self {
            base,
            in_place: case.keep,
            metacopy: case.metacopy,
            uppers: 0,
            lowers,
            digests,
            dialects,
            written: extra.written(),
            keeping: extra.keeping,
        };
        this.new_upper();
        this
    }

    fn new_upper(&mut self) {
        self.uppers += 1;
        for dir in [self.upper(), self.work()] {
            std::fs::create_dir(&dir).unwrap();
            std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        crate::build::set_mtime(&self.upper(), 1);
    }

    pub(crate) fn upper(&self) -> PathBuf {
        self.base.path().join(format!("upper{}", self.uppers))
    }

    pub(crate) fn work(&self) -> PathBuf {
        self.base.path().join(format!("work{}", self.uppers))
    }

    fn restack(&mut self) {
        // What the clock says from now on differs from what it said before.
        std::thread::sleep(Duration::from_millis(10));
        let below = self.upper();
        self.new_upper();
        copy_root(&below, &self.upper());
        self.digests.insert(0, digest(&below));
        self.dialects.insert(0, self.written);
        self.lowers.insert(0, below);
    }

    pub(crate) fn union(&self) -> Union<DirTree> {
        let upper = DirTree::upper(&self.upper(), &self.work()).unwrap().keeping(self.keeping).unwrap();
        let aside = self.keeping != Keeping::InObjects;
        let dialects = self.dialects.iter().copied().chain(std::iter::repeat(Dialect::Trusted));
        let lowers = self
            .lowers
            .iter()
            .zip(dialects)
            .map(|(dir, dialect)| Layer::new(DirTree::lower(dir).unwrap(), dialect).with_overrides(aside))
            .collect();
        let own_ids = (self.in_place && self.keeping != Keeping::Always).then_some((0, 0));
        let behaviour = Behaviour { volatile: true, own_ids, metacopy: self.metacopy, ..Behaviour::default() };
        let union =
            Union::new(LayerStack { upper: Some(Layer::new(upper, self.written).with_overrides(aside)), lowers }, behaviour).unwrap();
        union.clean_index().unwrap();
        if self.in_place && self.metacopy {
            union.keep_reserve();
        }
        union
    }

    /// After a clean end.
    fn check_settled(&self) -> Result<(), String> {
        let entries = std::fs::read_dir(self.work().join("index")).unwrap().map(|entry| entry.unwrap());
        let left: Vec<_> = entries.filter(|entry| entry.metadata().unwrap().nlink() == 1).map(|entry| entry.file_name()).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("the index holds {left:?}, which have no names")) }
    }

    /// Nothing is wrong with what the upper and its workdir hold, but for what a killed mount leaves.
    fn check_fsck(&self) -> Result<(), String> {
        let upper = Layer::trusted(DirTree::to_check(&self.upper(), &self.work()).map_err(|e| e.to_string())?);
        let dialects = self.dialects.iter().copied().chain(std::iter::repeat(Dialect::Trusted));
        let lowers = self.lowers.iter().zip(dialects).map(|(dir, dialect)| Layer::new(DirTree::lower(dir).unwrap(), dialect)).collect();
        let union = Union::new(LayerStack { upper: Some(upper), lowers }, Behaviour::default()).unwrap();
        let mut found = Vec::new();
        let mut tell = |problem: plyfs_overlay::Problem| {
            let expected = problem.what.starts_with("left over from") || problem.what.ends_with("names are all gone");
            if !expected && matches!(problem.place.as_str(), "upperdir" | "workdir") {
                found.push(problem);
            }
        };
        union.fsck(false, &mut tell).map_err(|e| e.to_string())?;
        if found.is_empty() { Ok(()) } else { Err(format!("fsck finds {found:?}")) }
    }

    /// `work` is empty, but for the mark of a volatile mount, and no lower layer was written.
    pub(crate) fn check(&self) -> Result<(), String> {
        let left = std::fs::read_dir(self.work().join("work")).unwrap().map(|entry| entry.unwrap().file_name());
        let left: Vec<_> = left.filter(|name| name != "incompat").collect();
        if !left.is_empty() {
            return Err(format!("work holds {left:?}"));
        }
        for (lower, before) in self.lowers.iter().zip(&self.digests) {
            if digest(lower) != *before {
                return Err(format!("{} was written", lower.display()));
            }
        }
        Ok(())
    }
}

fn xattrs(path: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut list = vec![0; 4096];
    let got = rustix::fs::llistxattr(path, &mut list[..]).unwrap();
    let names = list[..got].split(|&byte| byte == 0).filter(|name| !name.is_empty());
    let mut all: Vec<_> = names
        .map(|name| {
            let mut value = vec![0; 65536];
            let got = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
            value.truncate(got);
            (name.to_vec(), value)
        })
        .collect();
    all.sort();
    all
}

/// A new upper's root shows what the old one showed.
fn copy_root(from: &Path, to: &Path) {
    for (name, value) in xattrs(from) {
        if !Dialect::Trusted.is_private(&name) {
            rustix::fs::lsetxattr(to, &name[..], &value, rustix::fs::XattrFlags::empty()).unwrap();
        }
    }
    let stat = std::fs::metadata(from).unwrap();
    std::os::unix::fs::chown(to, Some(stat.uid()), Some(stat.gid())).unwrap();
    std::fs::set_permissions(to, stat.permissions()).unwrap();
    let time = |sec, nsec| rustix::fs::Timespec { tv_sec: sec, tv_nsec: nsec };
    let times = rustix::fs::Timestamps {
        last_access: time(stat.atime(), stat.atime_nsec()),
        last_modification: time(stat.mtime(), stat.mtime_nsec()),
    };
    rustix::fs::utimensat(rustix::fs::CWD, to, &times, rustix::fs::AtFlags::empty()).unwrap();
}

/// Everything below a directory, marks and times included, in words.
fn digest(dir: &Path) -> String {
    let mut text = String::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(path) = todo.pop() {
        let stat = std::fs::symlink_metadata(&path).unwrap();
        let data = match stat.file_type() {
            kind if kind.is_file() => format!("{:?}", std::fs::read(&path).unwrap()),
            kind if kind.is_symlink() => format!("{:?}", std::fs::read_link(&path).unwrap()),
            _ => String::new(),
        };
        let (mode, ino, links, rdev) = (stat.mode(), stat.ino(), stat.nlink(), stat.rdev());
        let (owner, mtime, ctime) = ((stat.uid(), stat.gid()), (stat.mtime(), stat.mtime_nsec()), (stat.ctime(), stat.ctime_nsec()));
        text += &format!("{path:?} {mode:o} {ino} {links} {rdev} {owner:?} {mtime:?} {ctime:?} {data} {:?}\n", xattrs(&path));
        if stat.is_dir() {
            todo.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    text
}

pub(crate) fn system(layers: &Arc<Mutex<Layers>>, keep: bool) -> UnionSystem<DirTree> {
    let layers = layers.clone();
    let mount = move |again| {
        let mut layers = layers.lock().unwrap();
        if matches!(again, Again::Restack) {
            layers.restack();
        }
        layers.union()
    };
    UnionSystem::new("directories", keep, Box::new(mount))
}

fn on_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

/// A kernel mount that goes when it is dropped.
struct KernelMount(PathBuf);

impl KernelMount {
    /// `index`: hard links of lower files stay one file.
    fn new(layers: &Layers, index: bool) -> Self {
        let target = layers.base.path().join("kernel");
        std::fs::create_dir_all(&target).unwrap();
        let lowers: Vec<_> = layers.lowers.iter().map(|dir| dir.to_str().unwrap()).collect();
        let (index, metacopy) = (on_off(index), on_off(layers.metacopy));
        let (upper, work) = (layers.upper(), layers.work());
        let data = format!(
            "lowerdir={},upperdir={},workdir={},redirect_dir=on,metacopy={metacopy},index={index}",
            lowers.join(":"),
            upper.display(),
            work.display()
        );
        crate::kernel::overlay(data, &target).unwrap();
        Self(target)
    }
}

impl Drop for KernelMount {
    fn drop(&mut self) {
        if let Err(errno) = rustix::mount::unmount(&self.0, UnmountFlags::empty()) {
            eprintln!("umount {}: {errno}", self.0.display());
            rustix::mount::unmount(&self.0, UnmountFlags::DETACH).unwrap();
        }
    }
}

/// The merged view as a layer, to make a plain directory of.
fn merged(reference: &Reference) -> LayerSpec {
    let mut layer = LayerSpec::default();
    let mut first: std::collections::HashMap<u64, Vec<Name>> = std::collections::HashMap::new();
    for (path, object) in reference.view().tree {
        if path.is_empty() {
            continue;
        }
        let what = match object.kind {
            Kind::Dir => What::Dir { opaque: false },
            _ if first.contains_key(&object.id) => What::Hard(first[&object.id].clone()),
            Kind::File => What::File(object.data.clone()),
            Kind::Symlink => What::Symlink(object.data.clone()),
            _ => What::Fifo,
        };
        if object.kind != Kind::Dir {
            first.entry(object.id).or_insert_with(|| path.clone());
        }
        let Mtime::Set(mtime) = object.mtime.map_or(Mtime::Tick(0), Mtime::Set) else { continue };
        layer.entries.insert(path, Entry { what, mode: object.mode, uid: object.uid, gid: object.gid, mtime, xattrs: object.xattrs });
    }
    layer
}

/// What a run of a case includes.
#[derive(Clone, Copy)]
pub(crate) struct With {
    /// A plain directory beside.
    pub(crate) plain: bool,
    /// Kernel overlayfs beside, and what each leaves mounted by the other.
    pub(crate) kernel: bool,
    /// The kernel mounts at the end what the union left.
    pub(crate) handover: bool,
    /// More than its own layers.
    pub(crate) extra: Extra,
}

/// Runs a case.
pub(crate) fn run(case: &Case, with: With) -> Result<(), String> {
    let mut reference = Reference::of(&case.lowers);
    let mut before = reference.clone();
    let layers = Arc::new(Mutex::new(Layers::with(&case.lowers, case, with.extra)));
    let mut union = system(&layers, case.keep);

    let plain_dir = tempfile::Builder::new().prefix("plyfs-model-").tempdir().unwrap();
    let mut plain = with.plain.then(|| {
        std::fs::set_permissions(plain_dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        on_disk(plain_dir.path(), &merged(&reference));
        Plain::new("plain directory", plain_dir.path(), None)
    });

    // The kernel needs a lower layer.
    let with_kernel = with.kernel && !case.lowers.is_empty();
    let kernel_layers = with_kernel.then(|| Arc::new(Mutex::new(Layers::new(&case.lowers, case))));
    let index = case.has_hard_links();
    let mut kernel = kernel_layers.as_ref().map(|layers| {
        let layers = layers.clone();
        let target = layers.lock().unwrap().base.path().join("kernel");
        let mut mount = Some(KernelMount::new(&layers.lock().unwrap(), index));
        let again = move |again| {
            drop(mount.take());
            let mut layers = layers.lock().unwrap();
            if matches!(again, Again::Restack) {
                layers.restack();
            }
            mount = Some(KernelMount::new(&layers, index));
        };
        Plain::new("kernel overlayfs", &target, Some(Box::new(again)))
    });

    let mut kernel_is_with_us = true;
    {
        let mut watched = vec![Watched::new(&mut union, &case.lowers)];
        watched.extend(plain.as_mut().map(|plain| Watched::new(plain, &case.lowers)));
        watched.extend(kernel.as_mut().map(|kernel| Watched::new(kernel, &case.lowers)));
        for system in &mut watched {
            system.check(&reference).map_err(|e| format!("at first: {e}"))?;
        }
        for (step, op) in case.ops.iter().enumerate() {
            let want = reference.apply(op);
            if *op == Op::Restack {
                before = reference.clone();
            }
            let mut parted = Vec::new();
            for (index, system) in watched.iter_mut().enumerate() {
                if !system.step(op, &want, &reference).map_err(|e| at_step(step, op, &e))? {
                    parted.push(index);
                    kernel_is_with_us = false;
                }
            }
            parted.into_iter().for_each(|index| drop(watched.remove(index)));
            layers.lock().unwrap().check().map_err(|e| at_step(step, op, &e))?;
        }
    }
    check_changes(&union, &before, &reference)?;
    reference.apply(&Op::Remount).unwrap();
    union.unmount()?;
    drop(union);
    layers.lock().unwrap().check()?;
    drop(kernel);

    // The kernel shows what the union left, as one that is killed and as one that ends, and the union what the kernel left.
    let handover = |what: &str| {
        if !with.handover || case.lowers.is_empty() || divergences::shows_escaped_devices(case) {
            return Ok(());
        }
        let left = layers.lock().unwrap();
        let mount = KernelMount::new(&left, index);
        let mut shown = Plain::new("kernel overlayfs on what the union left", &mount.0, None);
        let checked = Watched::new(&mut shown, &case.lowers).check(&reference);
        drop(shown);
        drop(mount);
        checked.map_err(|e| format!("{what}: {e}"))
    };
    layers.lock().unwrap().check_fsck().map_err(|e| format!("killed: {e}"))?;
    handover("killed")?;
    system(&layers, case.keep).settle()?;
    layers.lock().unwrap().check_settled()?;
    layers.lock().unwrap().check_fsck().map_err(|e| format!("settled: {e}"))?;
    handover("settled")?;
    for (name, layers) in
        [("what it left itself", Some(&layers)), ("what the kernel left", kernel_layers.as_ref().filter(|_| kernel_is_with_us))]
    {
        let Some(layers) = layers else { continue };
        layers.lock().unwrap().check_fsck().map_err(|e| format!("{name}: {e}"))?;
        let mut again = system(layers, case.keep);
        Watched::new(&mut again, &case.lowers).step(&Op::Forget, &Ok(Reply::Done), &reference).map_err(|e| format!("on {name}: {e}"))?;
        check_changes(&again, &before, &reference).map_err(|e| format!("on {name}: {e}"))?;
        again.unmount()?;
        drop(again);
        layers.lock().unwrap().check().map_err(|e| format!("on {name}: {e}"))?;
    }
    Ok(())
}

/// Why the kernel cannot take part; `None`: it can.
pub(crate) fn no_kernel() -> Option<String> {
    let layers = Layers::new(&[LayerSpec::default()], &Case::default());
    let target = layers.base.path().join("kernel");
    std::fs::create_dir_all(&target).unwrap();
    let data = format!("lowerdir={},upperdir={},workdir={}", layers.lowers[0].display(), layers.upper().display(), layers.work().display());
    match crate::kernel::overlay(data, &target) {
        Ok(()) => rustix::mount::unmount(&target, UnmountFlags::empty()).err().map(|errno| errno.to_string()),
        Err(errno) => Some(format!("kernel overlayfs cannot be mounted here: {errno}")),
    }
}

/// Runs `work` in a thread with a mount namespace of its own, so that no mount outlives it, whatever happens.
pub(crate) fn with_own_mounts(work: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(move || {
        plyfs_sys::ns::unshare(plyfs_sys::ns::Namespaces { mount: true, ..Default::default() }).unwrap();
        plyfs_sys::mount::make_private_recursive("/").unwrap();
        work();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs a case on uppers of a dialect that cannot hold all, or that keep owners in attributes.
pub(crate) fn run_upper(case: &Case, extra: Extra) -> Result<(), String> {
    let Some(mut case) = divergences::without_what_a_dialect_loses(case, extra.written()) else { return Ok(()) };
    if extra.lowers == Some(Dialect::User) {
        divergences::without_what_is_the_privileged_alone(&mut case);
    }
    let layers = Arc::new(Mutex::new(Layers::with(&case.lowers, &case, extra)));
    let mut union = system(&layers, case.keep);
    run_refusing(&case, extra.written(), &mut union, &|| layers.lock().unwrap().check())?;
    union.unmount()?;
    drop(union);
    layers.lock().unwrap().check()
}
