//! The layers of every scenario, the schedules, and what must hold after each of them.
//!
//! | path | in the lower layer |
//! | --- | --- |
//! | `a`, `a/sub`, `b`, `b/d`, `empty` | directories |
//! | `a/f`, `a/sub/g`, `b/f` | files with their own paths in them |
//! | `h1`, `a/h2`, `b/h3` | names of one file |

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use plyfs_scheduled::backend::{Place, Tree as _, UpperTree};
use plyfs_scheduled::{
    Behaviour, Caller, ChangeOptions, HandleId, Ino, Layer, LayerStack, MemFs, MemTree, Name, OpenFlags, SetAttr, Union,
};
use plyfs_sys::stat::{Kind, Stat};
use shuttle::scheduler::{PctScheduler, RandomScheduler, ReplayScheduler, Scheduler};
use shuttle::{Config, MaxSteps, Runner};

use crate::op::{Mine, Op, list};

pub(crate) type Tree = MemTree;

/// Seconds at which the threads of each scenario begin, at the latest: the filesystem in memory counts its changes from 1,000,000,000 on.
const START: i64 = 1_000_000_100;

/// Whether a time of modification is from before the threads began.
pub(crate) fn time(stat: &Stat) -> &'static str {
    if stat.mtime.sec < START { "old" } else { "new" }
}

/// Layers on one filesystem.
struct Layers {
    upper: MemTree,
    lower: MemTree,
}

impl Layers {
    fn new() -> Self {
        let fs = MemFs::new(7);
        let (upper, lower) = (fs.tree(), fs.tree());
        let root = lower.root();
        let dir = |at, name: &str| lower.mkdir(Place { dir: at, name: &Name::new(name).unwrap() }, 0o755).unwrap();
        let file = |at, name: &str, data: &str| {
            let (node, file) = lower.create(Place { dir: at, name: &Name::new(name).unwrap() }, 0o640).unwrap();
            lower.write(&file, data.as_bytes(), 0).unwrap();
            node
        };
        let (a, b) = (dir(&root, "a"), dir(&root, "b"));
        let sub = dir(&a, "sub");
        dir(&b, "d");
        dir(&root, "empty");
        file(&a, "f", "a/f");
        file(&sub, "g", "a/sub/g");
        file(&b, "f", "b/f");
        let linked = file(&root, "h1", "h");
        for (at, name) in [(&a, "h2"), (&b, "h3")] {
            lower.link(&linked, Place { dir: at, name: &Name::new(name).unwrap() }).unwrap();
        }
        // Each change is a second.
        while lower.stat(&linked).unwrap().ctime.sec < START {
            lower.set_mode(&linked, 0o640).unwrap();
        }
        Self { upper, lower }
    }

    /// Makes metacopies of `a/f` and `b/f`.
    fn copy_metadata(&self) {
        let union = self.union(true);
        for dir in ["a", "b"] {
            let find = |at, name: &str| union.lookup(at, &Name::new(name).unwrap()).unwrap().unwrap().node;
            let file = find(find(Ino::ROOT, dir), "f");
            union.setattr(&Caller::default(), file, None, &SetAttr { mode: Some(0o604), ..SetAttr::default() }).unwrap();
        }
    }

    fn union(&self, metacopy: bool) -> Union<MemTree> {
        let stack = LayerStack { upper: Some(Layer::trusted(self.upper.clone())), lowers: [Layer::trusted(self.lower.clone())].into() };
        Union::new(stack, Behaviour { metacopy, ..Behaviour::default() }).unwrap()
    }
}

/// All that is in a layer, times included.
fn digest(tree: &MemTree, at: &<MemTree as plyfs_scheduled::backend::Tree>::Node, into: &mut String) {
    for entry in tree.read_dir(at).unwrap() {
        let (node, stat) = tree.lookup(at, &Name::new(&entry.name).unwrap()).unwrap().unwrap();
        write!(into, "{} {stat:?}", entry.name.escape_ascii()).unwrap();
        for xattr in tree.list_xattr(&node).unwrap() {
            write!(into, " {}={:?}", xattr.escape_ascii(), tree.get_xattr(&node, &xattr).unwrap()).unwrap();
        }
        if stat.kind == Kind::File {
            let mut data = [0; 64];
            let len = tree.read(&tree.open(&node).unwrap(), &mut data, 0).unwrap();
            write!(into, " {}", data[..len].escape_ascii()).unwrap();
        }
        into.push('\n');
        if stat.kind == Kind::Dir {
            digest(tree, &node, into);
        }
    }
}

/// Inodes that were looked up before the threads began.
pub(crate) struct Held {
    by_path: BTreeMap<&'static str, Ino>,
    /// A file without a name, if the scenario wants one.
    nameless: Option<HandleId>,
    /// File handles of all paths, if the scenario uses some.
    handles: BTreeMap<&'static str, Vec<u8>>,
}

/// Stands for the path of a file without a name.
pub(crate) const NAMELESS: &str = "#";

const PATHS: [&str; 11] = ["a", "a/sub", "b", "b/d", "empty", "a/f", "a/sub/g", "b/f", "h1", "a/h2", "b/h3"];

impl Held {
    fn new(union: &Union<MemTree>, scenario: Scenario) -> Self {
        let mut held = Self::look_up(union, scenario.held);
        if scenario.threads.iter().copied().flatten().any(|op| matches!(op, Op::Reopen(_))) {
            let all = Self::look_up(union, &PATHS);
            held.handles = all.by_path.iter().map(|(path, ino)| (*path, union.encode(*ino).unwrap())).collect();
            all.forget(union);
        }
        held
    }

    fn look_up(union: &Union<MemTree>, paths: &[&'static str]) -> Self {
        let mut by_path = BTreeMap::from([("", Ino::ROOT)]);
        let mut nameless = None;
        for path in paths {
            if *path == NAMELESS {
                let (attr, handle) = union.tmpfile(&Caller::default(), by_path["a"], 0o644, 0, true).unwrap();
                by_path.insert(path, attr.node);
                nameless = Some(handle);
                continue;
            }
            let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
            let attr = union.lookup(by_path[dir], &Name::new(name).unwrap()).unwrap().unwrap();
            by_path.insert(path, attr.node);
        }
        Self { by_path, nameless, handles: BTreeMap::new() }
    }

    /// The file handle of what was under this path when the threads began.
    pub(crate) fn handle(&self, path: &str) -> &[u8] {
        &self.handles[path]
    }

    /// The inode that was under this path when the threads began; the root is "".
    pub(crate) fn ino(&self, path: &str) -> Ino {
        self.by_path[path]
    }

    fn forget(self, union: &Union<MemTree>) {
        for ino in self.by_path.into_values() {
            union.forget(ino, 1);
        }
        if let Some(handle) = self.nameless {
            union.release(handle);
        }
    }
}

/// Everything that shows. Numbers are told as the first path that has them; `numbers` gets them as they are.
fn view(union: &Union<MemTree>, dir: Ino, path: &str, numbers: &mut BTreeMap<Ino, String>, into: &mut String) {
    let mut names = list(union, dir).unwrap();
    names.sort();
    for name in names {
        let path = format!("{path}/{name}");
        let attr = union.lookup(dir, &Name::new(&name).unwrap()).unwrap().unwrap_or_else(|| panic!("{path} is listed and not there"));
        let stat = &attr.stat;
        let same = numbers.entry(attr.ino).or_insert_with(|| path.clone()).clone();
        write!(into, "{path} {:?} {:o} size {} mtime {}", stat.kind, stat.mode, stat.size, time(stat)).unwrap();
        // A directory's tells whether it merges, which a copy-up for a call that fails may change.
        if stat.kind != Kind::Dir {
            write!(into, " nlink {}", stat.nlink).unwrap();
        }
        if same != path {
            write!(into, " = {same}").unwrap();
        }
        for xattr in union.listxattr(attr.node).unwrap() {
            write!(into, " {}={}", xattr.escape_ascii(), union.getxattr(attr.node, &xattr).unwrap().escape_ascii()).unwrap();
        }
        if stat.kind == Kind::File {
            let handle = union.open(&Caller::default(), attr.node, OpenFlags { read: true, ..OpenFlags::default() }).unwrap();
            let mut data = [0; 64];
            let len = union.read(handle, 0, &mut data).unwrap();
            union.release(handle);
            write!(into, " {:?}", data[..len].escape_ascii().to_string()).unwrap();
        }
        into.push('\n');
        if stat.kind == Kind::Dir {
            view(union, attr.node, &path, numbers, into);
        }
        union.forget(attr.node, 1);
    }
}

fn whole_view(union: &Union<MemTree>) -> (String, Vec<Ino>) {
    let (mut text, mut numbers) = (String::new(), BTreeMap::new());
    let root = union.getattr(Ino::ROOT).unwrap();
    writeln!(text, "/ mtime {}", time(&root.stat)).unwrap();
    view(union, Ino::ROOT, "", &mut numbers, &mut text);
    for change in union.changes(&ChangeOptions::default()).unwrap() {
        writeln!(text, "{:?} {}", change.kind, change.path.escape_ascii()).unwrap();
    }
    (text, numbers.into_keys().collect())
}

/// A scenario: what each thread does, and which inodes the kernel knows when they begin.
#[derive(Clone, Copy)]
pub(crate) struct Scenario {
    pub(crate) threads: &'static [&'static [Op]],
    pub(crate) held: &'static [&'static str],
    /// With `metacopy=on`.
    pub(crate) metacopy: bool,
    /// `a/f` and `b/f` are metacopies of the upper when the threads begin.
    pub(crate) copied: bool,
}

/// Each thread's answers and the end state, as one text.
type Outcome = String;

impl Scenario {
    pub(crate) const fn of(threads: &'static [&'static [Op]]) -> Self {
        Self { threads, held: &PATHS, metacopy: false, copied: false }
    }

    pub(crate) const fn with_metacopy(threads: &'static [&'static [Op]]) -> Self {
        Self { threads, held: &PATHS, metacopy: true, copied: false }
    }

    /// Runs the calls one after the other, in this order of the threads.
    fn in_order(self, order: &[usize]) -> Outcome {
        let stage = Stage::new(self);
        let mut mine: Vec<Mine> = self.threads.iter().map(|_| Mine::default()).collect();
        let mut said: Vec<Vec<String>> = vec![Vec::new(); self.threads.len()];
        for &thread in order {
            let op = self.threads[thread][said[thread].len()];
            said[thread].push(op.run(&stage.union, &stage.held, &mut mine[thread]));
        }
        stage.end(self, &said)
    }

    /// Runs the threads as the scheduler has it.
    fn at_once(self) -> Outcome {
        let stage = Stage::new(self);
        let running: Vec<_> = self
            .threads
            .iter()
            .map(|ops| {
                let (union, held) = (stage.union.clone(), stage.held.clone());
                shuttle::thread::spawn(move || {
                    let mut mine = Mine::default();
                    ops.iter().map(|op| op.run(&union, &held, &mut mine)).collect::<Vec<_>>()
                })
            })
            .collect();
        let said: Vec<_> = running.into_iter().map(|thread| thread.join().unwrap()).collect();
        stage.end(self, &said)
    }

    /// Every order of the calls, each thread's own kept.
    fn orders(self) -> Vec<Vec<usize>> {
        let mut orders = vec![Vec::new()];
        for _ in 0..self.threads.iter().map(|ops| ops.len()).sum() {
            let longer = |order: Vec<usize>| {
                let left = |thread: usize| order.iter().filter(|&&t| t == thread).count() < self.threads[thread].len();
                let next: Vec<_> = (0..self.threads.len()).filter(|&thread| left(thread)).collect();
                next.into_iter().map(move |thread| [&order[..], &[thread]].concat())
            };
            orders = orders.into_iter().flat_map(longer).collect();
        }
        orders
    }

    /// Runs it under many schedules. Whatever the threads were told, and whatever is there in the end, is that of some order of their calls.
    pub(crate) fn check(self) {
        let allowed = Arc::new(Mutex::new(BTreeSet::new()));
        for order in self.orders() {
            let allowed = allowed.clone();
            run(RandomScheduler::new_from_seed(0, 1), move || {
                let outcome = self.in_order(&order);
                allowed.lock().unwrap_or_else(PoisonError::into_inner).insert(outcome);
            });
        }
        let allowed = std::mem::take(&mut *allowed.lock().unwrap());
        let threads = self.threads;
        let scheduled = move || {
            let outcome = self.at_once();
            if !allowed.contains(&outcome) {
                let (differing, nearest) = allowed.iter().map(|order| (differing(order, &outcome), order)).min().unwrap();
                panic!("{threads:?}: no order of the calls gives\n{outcome}\nThe nearest, with {differing} other lines, is\n{nearest}");
            }
        };
        let scheduled = Arc::new(scheduled);
        let run_all = |scheduler: Box<dyn Scheduler + Send>| {
            let scheduled = scheduled.clone();
            run(scheduler, move || scheduled());
        };
        if let Ok(schedule) = std::env::var("PLYFS_RACES_REPLAY") {
            return run_all(Box::new(ReplayScheduler::new_from_encoded(&schedule)));
        }
        let times = std::env::var("PLYFS_RACES_TIMES").ok().and_then(|text| text.parse().ok()).unwrap_or(1).max(1);
        run_all(Box::new(RandomScheduler::new_from_seed(1, SCHEDULES * times)));
        run_all(Box::new(PctScheduler::new_from_seed(2, 3, SCHEDULES * times)));
        run_all(Box::new(RandomScheduler::new(SCHEDULES * times)));
    }
}

fn differing(a: &str, b: &str) -> usize {
    let (a, b): (BTreeSet<_>, BTreeSet<_>) = (a.lines().collect(), b.lines().collect());
    a.symmetric_difference(&b).count()
}

/// Schedules of each kind.
const SCHEDULES: usize = 150;

fn run<S: Scheduler + 'static>(scheduler: S, work: impl Fn() + Send + Sync + 'static) {
    let mut config = Config::new();
    config.stack_size = 256 << 10;
    // Many times what any schedule takes: threads that wait for each other without end are found, too.
    config.max_steps = MaxSteps::FailAfter(200_000);
    config.silence_warnings = true;
    Runner::new(scheduler, config).run(work);
}

/// A union, and the layers that it must leave in order.
struct Stage {
    layers: Layers,
    lower: String,
    union: Arc<Union<MemTree>>,
    held: Arc<Held>,
}

impl Stage {
    fn new(scenario: Scenario) -> Self {
        let layers = Layers::new();
        if scenario.copied {
            layers.copy_metadata();
        }
        let mut lower = String::new();
        digest(&layers.lower, &layers.lower.root(), &mut lower);
        let union = layers.union(scenario.metacopy);
        let held = Held::new(&union, scenario);
        Self { layers, lower, union: Arc::new(union), held: Arc::new(held) }
    }

    fn end(self, scenario: Scenario, said: &[Vec<String>]) -> Outcome {
        let Self { layers, lower, union, held } = self;
        let live = whole_view(&union);
        let held = Arc::into_inner(held).unwrap();
        held.forget(&union);
        assert_eq!(union.inodes(), 1, "inodes stay that nobody knows");
        let again = layers.union(scenario.metacopy);
        let remounted = whole_view(&again);
        assert_eq!(live.0, remounted.0, "mounted again it shows something else (left: before)");
        assert_eq!(live.1, remounted.1, "mounted again it has other numbers (left: before)");
        let mut after = String::new();
        digest(&layers.lower, &layers.lower.root(), &mut after);
        assert_eq!(lower, after, "the lower layer was written");
        let work = layers.upper.read_dir(&layers.upper.work()).unwrap();
        assert!(work.is_empty(), "work holds {work:?}");
        let mut outcome = String::new();
        for (ops, said) in scenario.threads.iter().zip(said) {
            for (op, said) in ops.iter().zip(said) {
                writeln!(outcome, "{op:?}: {said}").unwrap();
            }
        }
        outcome + &live.0
    }
}
