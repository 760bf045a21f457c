//! The union over memory layers against the reference tree: the fast half.

use std::sync::{Arc, Mutex};

use plyfs_format::Dialect;
use plyfs_overlay::backend::{RawEntry, Tree};
use plyfs_overlay::{Behaviour, Keeping, Layer, LayerStack, MemFs, MemTree, Name as Checked, Union};
use plyfs_sys::at::{SetTime, XattrMode};

use crate::build::{dialect_of, digest_mem, in_memory, in_memory_as};
use crate::case::{Case, Entry, LayerSpec, Op, What};
use crate::divergences;
use crate::reference::Reference;
use crate::run::{Watched, at_step, check_changes, run_refusing};
use crate::union::{Again, UnionSystem};

/// The layers of a memory union; a restack puts a new upper on top.
pub(crate) struct Layers {
    pub(crate) filesystems: Vec<Arc<MemFs>>,
    pub(crate) upper: MemTree,
    pub(crate) lowers: Vec<MemTree>,
    digests: Vec<String>,
    dialects: Vec<Dialect>,
    /// The union makes objects where they belong, if it can.
    in_place: bool,
    metacopy: bool,
    /// How the uppers' marks are spelled.
    written: Dialect,
}

impl Layers {
    pub(crate) fn new(specs: &[LayerSpec], case: &Case) -> Self {
        Self::with(specs, case, Extra::default())
    }

    pub(crate) fn with(specs: &[LayerSpec], case: &Case, extra: Extra) -> Self {
        let devices = case.devices;
        let filesystems: Vec<_> = (0..if devices { 4 } else { 1 }).map(|dev| MemFs::new(100 + dev)).collect();
        let fs = |index: usize| &filesystems[index % filesystems.len()];
        let dialects: Vec<_> =
            (0..specs.len()).map(|index| if extra.dialects { dialect_of(specs, index) } else { Dialect::Trusted }).collect();
        let layers = specs.iter().zip(&dialects).enumerate();
        let mut lowers: Vec<_> = layers.map(|(index, (spec, dialect))| in_memory_as(fs(index + 1), spec, *dialect)).collect();
        let digests = lowers.iter().map(digest_mem).collect();
        let sparse = sparse(specs);
        lowers.extend((0..extra.padding).map(|index| in_memory(fs(index), if index % 7 == 0 { &sparse } else { &EMPTY })));
        let upper = in_memory(fs(0), &LayerSpec::default());
        Self { upper, lowers, digests, dialects, filesystems, in_place: case.keep, metacopy: case.metacopy, written: extra.written() }
    }

    fn restack(&mut self) {
        let upper = in_memory(&self.filesystems[0], &LayerSpec::default());
        copy_root(&self.upper, &upper);
        let below = std::mem::replace(&mut self.upper, upper);
        self.digests.insert(0, digest_mem(&below));
        self.dialects.insert(0, self.written);
        self.lowers.insert(0, below);
    }

    pub(crate) fn union(&self, writable: bool) -> Union<MemTree> {
        let upper = writable.then(|| Layer::new(self.upper.clone(), self.written));
        let dialects = self.dialects.iter().copied().chain(std::iter::repeat(Dialect::Trusted));
        let lowers = self.lowers.iter().zip(dialects).map(|(tree, dialect)| Layer::new(tree.clone(), dialect)).collect();
        let behaviour = Behaviour { own_ids: self.in_place.then_some((0, 0)), metacopy: self.metacopy, ..Behaviour::default() };
        let union = Union::new(LayerStack { upper, lowers }, behaviour).unwrap();
        union.clean_index().unwrap();
        if self.in_place && self.metacopy {
            union.keep_reserve();
        }
        union
    }

    /// After a clean end.
    fn check_settled(&self) -> Result<(), String> {
        use plyfs_overlay::backend::UpperTree as _;
        let index = self.upper.index().unwrap();
        let mut left = self.upper.read_dir(&index).unwrap();
        left.retain(|entry| self.upper.lookup(&index, &Checked::new(&entry.name).unwrap()).unwrap().unwrap().1.nlink == 1);
        if left.is_empty() { Ok(()) } else { Err(format!("the index holds {left:?}, which have no names")) }
    }

    /// `work` is empty, and no lower layer was written.
    pub(crate) fn check(&self) -> Result<(), String> {
        let left = staged(&self.upper);
        if !left.is_empty() {
            return Err(format!("work holds {left:?}"));
        }
        for (index, (lower, before)) in self.lowers.iter().zip(&self.digests).enumerate() {
            if digest_mem(lower) != *before {
                return Err(format!("lower layer {index} was written"));
            }
        }
        Ok(())
    }
}

/// What is in `work`.
pub(crate) fn staged(tree: &MemTree) -> Vec<RawEntry> {
    use plyfs_overlay::backend::UpperTree as _;
    tree.read_dir(&tree.work()).unwrap()
}

/// A new upper's root shows what the old one showed.
fn copy_root(from: &MemTree, to: &MemTree) {
    use plyfs_overlay::backend::UpperTree as _;
    let (old, new) = (from.root(), to.root());
    let stat = from.stat(&old).unwrap();
    for name in from.list_xattr(&old).unwrap() {
        if !Dialect::Trusted.is_private(&name) {
            let value = from.get_xattr(&old, &name).unwrap().unwrap();
            to.set_xattr(&new, &name, &value, XattrMode::Any).unwrap();
        }
    }
    to.set_owner(&new, Some(stat.uid), Some(stat.gid)).unwrap();
    to.set_mode(&new, stat.mode).unwrap();
    to.set_times(&new, SetTime::To(stat.atime), SetTime::To(stat.mtime)).unwrap();
}

pub(crate) fn system(layers: &Arc<Mutex<Layers>>, keep: bool) -> UnionSystem<MemTree> {
    let layers = layers.clone();
    let mount = move |again| {
        let mut layers = layers.lock().unwrap();
        if matches!(again, Again::Restack) {
            layers.restack();
        }
        layers.union(true)
    };
    UnionSystem::new("memory", keep, Box::new(mount))
}

/// What a case is run with besides its own layers.
#[derive(Clone, Copy, Default)]
pub(crate) struct Extra {
    /// As many layers below its own, of which some hold the directories that show, and all others nothing.
    pub(crate) padding: usize,
    /// Each layer is spelled in one of the dialects.
    pub(crate) dialects: bool,
    /// The dialect of the uppers, if it is another one than that of root.
    pub(crate) upper: Option<Dialect>,
    /// Where uppers in directories keep owners.
    pub(crate) keeping: Keeping,
    /// The dialect of all lowers, if it is another one than that of root.
    pub(crate) lowers: Option<Dialect>,
}

impl Extra {
    pub(crate) fn written(self) -> Dialect {
        self.upper.unwrap_or(Dialect::Trusted)
    }
}

static EMPTY: LayerSpec = LayerSpec { entries: std::collections::BTreeMap::new() };

/// A layer of the directories that others show: below them it changes nothing.
pub(crate) fn sparse(specs: &[LayerSpec]) -> LayerSpec {
    let mut layer = LayerSpec::default();
    for (path, object) in Reference::of(specs).view().tree {
        if object.kind == plyfs_sys::stat::Kind::Dir && !path.is_empty() {
            let what = What::Dir { opaque: false };
            layer.entries.insert(path, Entry { what, mode: 0o700, uid: 77, gid: 77, mtime: 77, xattrs: Default::default() });
        }
    }
    layer
}

/// Runs a case.
pub(crate) fn run(case: &Case) -> Result<(), String> {
    run_with(case, Extra::default())
}

/// Runs a case with more than its own layers.
pub(crate) fn run_with(case: &Case, extra: Extra) -> Result<(), String> {
    let mut reference = Reference::of(&case.lowers);
    let mut before = reference.clone();
    let layers = Arc::new(Mutex::new(Layers::with(&case.lowers, case, extra)));
    let mut union = system(&layers, case.keep);
    let mut watched = Watched::new(&mut union, &case.lowers);
    watched.check(&reference).map_err(|e| format!("at first: {e}"))?;
    for (step, op) in case.ops.iter().enumerate() {
        let want = reference.apply(op);
        if *op == Op::Restack {
            before = reference.clone();
        }
        watched.step(op, &want, &reference).map_err(|e| at_step(step, op, &e))?;
        layers.lock().unwrap().check().map_err(|e| at_step(step, op, &e))?;
    }
    drop(watched);
    check_changes(&union, &before, &reference)?;
    // The same once more by a union that knows nothing yet, and one that cannot write.
    reference.apply(&Op::Remount).unwrap();
    let mut watched = Watched::new(&mut union, &case.lowers);
    watched.step(&Op::Remount, &Ok(crate::reference::Reply::Done), &reference).map_err(|e| format!("mounted again: {e}"))?;
    drop(watched);
    check_changes(&union, &before, &reference)?;
    union.settle()?;
    drop(union);
    layers.lock().unwrap().check_settled()?;
    let mut settled = system(&layers, case.keep);
    Watched::new(&mut settled, &case.lowers).check(&reference).map_err(|e| format!("settled: {e}"))?;
    check_changes(&settled, &before, &reference).map_err(|e| format!("settled: {e}"))?;
    settled.unmount()?;
    drop(settled);
    let finished = layers.lock().unwrap();
    finished.check()?;
    if case.lowers.is_empty() {
        return Ok(());
    }
    let below = Layers {
        filesystems: Vec::new(),
        upper: finished.upper.clone(),
        lowers: finished.lowers.clone(),
        digests: Vec::new(),
        dialects: finished.dialects.clone(),
        in_place: false,
        metacopy: case.metacopy,
        written: Dialect::Trusted,
    };
    let mut read_only = UnionSystem::new("read-only memory", case.keep, Box::new(move |_| below.union(false)));
    let mut watched = Watched::new(&mut read_only, &case.lowers);
    watched.check(&before)?;
    before.apply(&Op::Remount).unwrap();
    for op in case.ops.iter().filter(|op| **op != Op::Restack) {
        drop(watched.system.apply(op));
    }
    drop(watched.system.apply(&Op::Remount));
    watched.check(&before).map_err(|e| format!("after operations: {e}"))?;
    drop(watched);
    read_only.unmount()
}

/// Runs a case on uppers of a dialect that cannot hold all: what it refuses changes nothing, for the reference neither.
pub(crate) fn run_upper(case: &Case, dialect: Dialect) -> Result<(), String> {
    let Some(case) = &divergences::without_what_a_dialect_loses(case, dialect) else { return Ok(()) };
    let extra = Extra { upper: Some(dialect), ..Extra::default() };
    let layers = Arc::new(Mutex::new(Layers::with(&case.lowers, case, extra)));
    let mut union = system(&layers, case.keep);
    run_refusing(case, dialect, &mut union, &|| layers.lock().unwrap().check())?;
    union.settle()?;
    drop(union);
    layers.lock().unwrap().check()
}
