//! Memory layers of which one call fails, and what must hold then: the caller hears of it, and everything that shows is as if the operation had not been
//! tried; never half of it.

use std::sync::{Arc, Mutex};

use plyfs_overlay::backend::{Handle, ObjectId, Place, RawEntry, Rename, Seek, Trace, Tree, UpperTree};
use plyfs_overlay::{Behaviour, Layer, LayerStack, MemTree, Name as Checked, Union};
use plyfs_sys::at::{SetTime, XattrMode};
use plyfs_sys::stat::{Kind, Stat};
use plyfs_sys::statfs::StatFs;
use plyfs_sys::{Errno, Result};

use crate::case::{Case, Op};
use crate::crash::empty;
use crate::divergences;
use crate::generate::{Random, pool};
use crate::memory::{Layers, staged};
use crate::reference::{Reference, Reply};
use crate::run::same_outcome;
use crate::system::System as _;
use crate::union::UnionSystem;
use crate::view::{ANY, Identities, View, show};

type Node = <MemTree as Tree>::Node;

/// The errnos that are injected: those that any call of a kernel may answer, and one that nothing else answers.
pub(crate) const ERRNOS: [Errno; 8] =
    [Errno::HWPOISON, Errno::IO, Errno::NOSPC, Errno::NOMEM, Errno::MFILE, Errno::DQUOT, Errno::ACCESS, Errno::INTR];

/// Which calls fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// The call of this number.
    pub(crate) call: usize,
    pub(crate) errno: Errno,
    pub(crate) then: Then,
}

/// What comes after the call that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// All calls pass.
    Pass,
    /// The call so many after it fails, too.
    Again(usize),
    /// No call passes any more.
    Dead,
}

/// Counts the calls and lets some fail.
#[derive(Default)]
pub(crate) struct Fuse(Mutex<State>);

#[derive(Default)]
struct State {
    plan: Option<Plan>,
    calls: usize,
    /// The calls that failed, by name.
    failed: Vec<&'static str>,
}

impl Fuse {
    fn burn(&self, name: &'static str) -> Result<()> {
        let mut state = self.0.lock().unwrap();
        let Some(plan) = state.plan else { return Ok(()) };
        let call = state.calls;
        state.calls += 1;
        let fails = match plan.then {
            Then::Pass => call == plan.call,
            Then::Again(after) => call == plan.call || call == plan.call + after,
            Then::Dead => call >= plan.call,
        };
        if fails {
            state.failed.push(name);
            return Err(plan.errno);
        }
        Ok(())
    }

    pub(crate) fn arm(&self, plan: Plan) {
        *self.0.lock().unwrap() = State { plan: Some(plan), ..State::default() };
    }

    /// As if the server were killed after so many calls.
    pub(crate) fn kill_after(&self, calls: usize) {
        self.arm(Plan { call: calls, errno: Errno::HWPOISON, then: Then::Dead });
    }

    /// The calls that failed since it was armed. All pass from now on.
    pub(crate) fn disarm(&self) -> Vec<&'static str> {
        std::mem::take(&mut *self.0.lock().unwrap()).failed
    }
}

/// A memory layer behind a fuse.
pub(crate) struct Fault {
    pub(crate) tree: MemTree,
    pub(crate) fuse: Arc<Fuse>,
}

macro_rules! passed_on {
    ($($name:ident($($arg:ident: $type:ty),*) -> $out:ty;)*) => {
        $(fn $name(&self, $($arg: $type),*) -> Result<$out> {
            self.fuse.burn(stringify!($name))?;
            self.tree.$name($($arg),*)
        })*
    };
}

impl Tree for Fault {
    type Node = Node;
    type File = <MemTree as Tree>::File;

    fn root(&self) -> Node {
        self.tree.root()
    }

    fn id(&self, node: &Node) -> ObjectId {
        self.tree.id(node)
    }

    passed_on! {
        lookup(dir: &Node, name: &Checked) -> Option<(Node, Stat)>;
        stat(node: &Node) -> Stat;
        readlink(node: &Node) -> Vec<u8>;
        read_dir(dir: &Node) -> Vec<RawEntry>;
        get_xattr(node: &Node, name: &[u8]) -> Option<Vec<u8>>;
        list_xattr(node: &Node) -> Vec<Vec<u8>>;
        open(node: &Node) -> Self::File;
        read(file: &Self::File, buf: &mut [u8], offset: u64) -> usize;
        seek(file: &Self::File, offset: u64, what: Seek) -> u64;
        stat_file(file: &Self::File) -> Stat;
        statfs() -> StatFs;
        handle(node: &Node) -> Option<Handle>;
        by_handle(handle: &Handle) -> Option<Stat>;
        trace(handle: &Handle) -> Option<Trace>;
    }
}

impl UpperTree for Fault {
    fn work(&self) -> Node {
        self.tree.work()
    }

    fn index(&self) -> Option<Node> {
        self.tree.index()
    }

    fn known_by(&self, node: &Node, at: Place<'_, Node>, own: bool) {
        self.tree.known_by(node, at, own);
    }

    passed_on! {
        create(at: Place<'_, Node>, mode: u32) -> (Node, Self::File);
        tmpfile() -> Option<(Node, Self::File)>;
        mkdir(at: Place<'_, Node>, mode: u32) -> Node;
        mknod(at: Place<'_, Node>, kind: Kind, mode: u32, rdev: u64) -> Node;
        symlink(at: Place<'_, Node>, target: &[u8]) -> Node;
        link(node: &Node, at: Place<'_, Node>) -> ();
        unlink(at: Place<'_, Node>) -> ();
        rmdir(at: Place<'_, Node>) -> ();
        rename(from: Place<'_, Node>, moved: Option<&Node>, to: Place<'_, Node>, other: Option<&Node>, how: Rename) -> ();
        whiteout(at: Place<'_, Node>) -> ();
        pin(node: &Node, losing: Option<Place<'_, Node>>) -> bool;
        set_owner(node: &Node, uid: Option<u32>, gid: Option<u32>) -> ();
        set_mode(node: &Node, mode: u32) -> ();
        set_times(node: &Node, atime: SetTime, mtime: SetTime) -> ();
        set_xattr(node: &Node, name: &[u8], value: &[u8], mode: XattrMode) -> ();
        remove_xattr(node: &Node, name: &[u8]) -> ();
        open_write(node: &Node) -> Self::File;
        write(file: &Self::File, data: &[u8], offset: u64) -> usize;
        truncate(file: &Self::File, len: u64) -> ();
        fallocate(file: &Self::File, mode: i32, offset: u64, len: u64) -> ();
        sync(file: &Self::File, data_only: bool) -> ();
        sync_dir(dir: &Node) -> ();
        copy_range(from: &Self::File, from_offset: u64, to: &Self::File, to_offset: u64, len: u64) -> usize;
        copy_data(from: &Self::File, to: &Self::File, len: u64) -> u64;
    }
}

/// A failing step may leave the time of a directory touched: nothing puts it back. `again`: that of an object, too, for the step that puts it back fails.
fn comparable(mut view: View, again: bool) -> View {
    divergences::litter_counts_as_a_link(&mut view);
    for object in view.tree.values_mut().chain(view.slots.iter_mut().flatten()).filter(|object| again || object.kind == Kind::Dir) {
        object.mtime = Some(ANY);
    }
    view
}

/// The union of a case on layers that fail.
struct Subject {
    layers: Layers,
    fuse: Arc<Fuse>,
    behaviour: Behaviour,
    reserve: bool,
}

impl Subject {
    fn new(case: &Case) -> Self {
        let behaviour = Behaviour { own_ids: case.keep.then_some((0, 0)), metacopy: case.metacopy, ..Behaviour::default() };
        Self { layers: Layers::new(&case.lowers, case), fuse: Arc::default(), behaviour, reserve: case.keep && case.metacopy }
    }

    fn system(&self, keep: bool) -> UnionSystem<Fault> {
        let (upper, lowers) = (self.layers.upper.clone(), self.layers.lowers.clone());
        let (fuse, behaviour, reserve) = (self.fuse.clone(), self.behaviour, self.reserve);
        let mount = move |_| mount(&upper, &lowers, &fuse, behaviour, reserve).unwrap();
        UnionSystem::new("memory with faults", keep, Box::new(mount))
    }

    /// Mounted again without faults; as after a kill.
    fn again(&self, keep: bool) -> UnionSystem<Fault> {
        empty(&self.layers.upper, &self.layers.upper.work());
        self.system(keep)
    }
}

fn mount(
    upper: &MemTree,
    lowers: &[MemTree],
    fuse: &Arc<Fuse>,
    behaviour: Behaviour,
    reserve: bool,
) -> plyfs_overlay::Result<Union<Fault>> {
    let behind = |tree: &MemTree| Layer::trusted(Fault { tree: tree.clone(), fuse: fuse.clone() });
    let union = Union::new(LayerStack { upper: Some(behind(upper)), lowers: lowers.iter().map(behind).collect() }, behaviour)?;
    union.clean_index()?;
    if reserve {
        union.keep_reserve();
    }
    Ok(union)
}

/// Something that depends on an operation alone, so that a case can be made smaller.
fn choice(op: &Op, seed: u64) -> Random {
    Random::new(op.to_string().bytes().fold(seed, |sum, byte| sum * 31 % 65_521 + u64::from(byte)))
}

/// Runs a case in which calls fail, a different one at each step.
pub(crate) fn run(case: &Case) -> std::result::Result<(), String> {
    run_with(case, None)
}

/// Runs a case in which at each step the call of this number fails.
pub(crate) fn run_with(case: &Case, fixed: Option<usize>) -> std::result::Result<(), String> {
    let subject = Subject::new(case);
    let mut union = subject.system(case.keep);
    let mut reference = Reference::of(&case.lowers);
    for (step, op) in case.ops.iter().enumerate() {
        // A union that is being made has nobody to answer.
        if matches!(op, Op::Remount | Op::Restack | Op::Forget) {
            continue;
        }
        let mut random = choice(op, 0);
        let call = fixed.unwrap_or_else(|| random.below(40));
        let plan = Plan { call, errno: if fixed.is_some() { Errno::HWPOISON } else { random.pick(&ERRNOS) }, then: Then::Pass };
        let said = |e: String| format!("step {} ({op}), {plan:?}: {e}", step + 1);
        reference = strike(&subject, &mut union, reference, op, plan).map_err(said)?.now.unwrap();
    }
    union.unmount()
}

/// What came of an operation of which a call failed.
struct Struck {
    failed: Vec<&'static str>,
    /// `None`: neither as before nor as after, for the undo failed.
    now: Option<Reference>,
}

/// Does an operation of which calls fail; says whether it came to nothing or was done.
fn strike(
    subject: &Subject,
    union: &mut UnionSystem<Fault>,
    before: Reference,
    op: &Op,
    plan: Plan,
) -> std::result::Result<Struck, String> {
    let mut after = before.clone();
    let mut want = after.apply(op);
    if let Ok(Reply::Object(object)) = &mut want {
        divergences::uncounted_where_a_copy_failed(object);
    }
    subject.fuse.arm(plan);
    let got = union.apply(op);
    let failed = subject.fuse.disarm();
    let told = got == Err(plan.errno);
    if told && failed.is_empty() {
        return Err("nothing failed".to_owned());
    }
    if !told && !same_outcome(&want, &got) {
        return Err(format!("the answer should be {want:?}\n  but is {got:?}"));
    }
    let view = union.view(&pool())?;
    let shows = |reference: &Reference| Identities::default().compare(&comparable(reference.view(), plan.then != Then::Pass), &view);
    // It may have failed after it was done: asking for the attributes of what was made. Nothing was opened then.
    if told {
        after.take_slots_of(&before);
    }
    let undone = if told { shows(&before) } else { Err(String::new()) };
    match undone {
        Ok(()) => Ok(Struck { failed, now: Some(before) }),
        Err(unlike) => match shows(&after) {
            Ok(()) => Ok(Struck { failed, now: Some(after) }),
            Err(_) if failed.len() > 1 && divergences::moves_in_two_steps(Some(op)) => Ok(Struck { failed, now: None }),
            Err(e) => Err(format!("{failed:?} failed, answered {got:?}: neither as before: {unlike}\nnor as after: {e}")),
        },
    }
}

/// Has each call of the last operation of a case fail in each way; looks at what shows then, and once more after a remount and after a clean end. `plans`: those of the
/// call of a number.
pub(crate) fn sweep(case: &Case, plans: &dyn Fn(usize) -> Vec<Plan>) -> std::result::Result<u64, String> {
    let Some((last, ops)) = case.ops.split_last() else { return Ok(0) };
    let mut points = 0;
    for call in 0.. {
        let mut reached = false;
        for plan in plans(call) {
            let said = |e: String| format!("{last}, {plan:?}: {e}");
            let (subject, mut reference) = (Subject::new(case), Reference::of(&case.lowers));
            let mut union = subject.system(case.keep);
            for op in ops {
                drop(reference.apply(op));
                drop(union.apply(op));
            }
            let struck = strike(&subject, &mut union, reference, last, plan).map_err(said)?;
            let failed = struck.failed;
            let said = |e: String| said(format!("{failed:?} failed: {e}"));
            left_in_order(&subject, union, struck.now, &failed, plan.then != Then::Pass).map_err(said)?;
            reached |= !failed.is_empty();
            points += u64::from(!failed.is_empty());
        }
        if !reached {
            break;
        }
    }
    Ok(points)
}

/// What shows after a failure shows after a remount, and after a clean end.
fn left_in_order(
    subject: &Subject,
    mut union: UnionSystem<Fault>,
    reference: Option<Reference>,
    failed: &[&str],
    twice: bool,
) -> std::result::Result<(), String> {
    // What is to be removed and cannot be, stays until the next mount.
    let removes = ["unlink", "rmdir", "lookup", "read_dir", "pin"];
    let litter = staged(&subject.layers.upper);
    if !litter.is_empty() && !failed.iter().any(|name| removes.contains(name)) {
        return Err(format!("work holds {litter:?}"));
    }
    let mut live = union.view(&pool())?;
    union.unmount()?;
    drop(union);
    live.slots = vec![None; live.slots.len()];
    let as_it_was = |view: &View| match &reference {
        None => Ok(()),
        Some(reference) => {
            let mut reference = reference.clone();
            drop(reference.apply(&Op::Remount));
            Identities::default().compare(&comparable(reference.view(), twice), view)
        }
    };
    let mut again = subject.again(true);
    let view = again.view(&pool()).map_err(|e| format!("mounted again: {e}"))?;
    as_it_was(&view).map_err(|e| format!("mounted again: {e}"))?;
    // Counts of links and times, too, and numbers.
    Identities::default().compare(&live, &view).map_err(|e| format!("mounted again, not as it was: {e}"))?;
    if let Some((path, object)) = view.tree.iter().find(|(path, object)| live.tree[*path].id != object.id) {
        return Err(format!("mounted again: {} has the number {}, was {}", show(path), object.id, live.tree[path].id));
    }
    again.settle()?;
    drop(again);
    let mut settled = subject.again(true);
    let view = settled.view(&pool()).map_err(|e| format!("settled: {e}"))?;
    as_it_was(&view).map_err(|e| format!("settled: {e}"))?;
    settled.unmount()
}
