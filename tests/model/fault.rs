//! Memory layers of which one call fails, and what must hold then: the caller hears of it, and everything that shows is as if the operation had not been
//! tried; never half of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use plyfs_overlay::backend::{Handle, ObjectId, Place, RawEntry, Rename, Seek, Trace, Tree, UpperTree};
use plyfs_overlay::{Behaviour, Layer, LayerStack, MemTree, Name as Checked, Union};
use plyfs_sys::at::{SetTime, XattrMode};
use plyfs_sys::stat::{Kind, Stat};
use plyfs_sys::statfs::StatFs;
use plyfs_sys::{Errno, Result};

use crate::case::{Case, Op};
use crate::divergences;
use crate::generate::{Random, pool};
use crate::memory::Layers;
use crate::reference::{Reference, Reply};
use crate::run::same_outcome;
use crate::system::System as _;
use crate::union::UnionSystem;
use crate::view::{ANY, Identities, View};

type Node = <MemTree as Tree>::Node;

/// The errno that is injected; nothing else answers it.
const INJECTED: Errno = Errno::HWPOISON;

/// How many calls still pass; at 0 one fails. Negative: all pass.
pub(crate) struct Fuse {
    left: AtomicI64,
    /// All that come after the one that fails fail, too.
    dead: AtomicBool,
}

impl Default for Fuse {
    fn default() -> Self {
        Self { left: AtomicI64::new(-1), dead: AtomicBool::new(false) }
    }
}

impl Fuse {
    fn burn(&self) -> Result<()> {
        if self.left.load(Ordering::Relaxed) < 0 {
            return if self.dead.load(Ordering::Relaxed) { Err(INJECTED) } else { Ok(()) };
        }
        if self.left.fetch_sub(1, Ordering::Relaxed) == 0 { Err(INJECTED) } else { Ok(()) }
    }

    fn arm(&self, calls: i64) {
        self.left.store(calls, Ordering::Relaxed);
    }

    /// As if the server were killed after so many calls.
    pub(crate) fn kill_after(&self, calls: i64) {
        self.arm(calls);
        self.dead.store(true, Ordering::Relaxed);
    }

    /// Whether a call has failed since it was armed.
    pub(crate) fn disarm(&self) -> bool {
        self.left.swap(-1, Ordering::Relaxed) < 0
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
            self.fuse.burn()?;
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

/// A failing step may leave the time of a directory touched: nothing puts it back.
fn comparable(mut view: View) -> View {
    divergences::litter_counts_as_a_link(&mut view);
    for object in view.tree.values_mut().chain(view.slots.iter_mut().flatten()).filter(|object| object.kind == Kind::Dir) {
        object.mtime = Some(ANY);
    }
    view
}

/// Runs a case in which calls fail, a different one at each step.
pub(crate) fn run(case: &Case) -> std::result::Result<(), String> {
    run_with(case, None)
}

/// Runs a case in which at each step the call of this number fails.
pub(crate) fn run_with(case: &Case, fixed: Option<i64>) -> std::result::Result<(), String> {
    let fuse = Arc::new(Fuse::default());
    let layers = Layers::new(&case.lowers, case);
    let behind = |tree: &MemTree, fuse: &Arc<Fuse>| Layer::trusted(Fault { tree: tree.clone(), fuse: fuse.clone() });
    let (upper, lowers, wired) = (layers.upper.clone(), layers.lowers.clone(), fuse.clone());
    let behaviour = Behaviour { own_ids: case.keep.then_some((0, 0)), metacopy: case.metacopy, ..Behaviour::default() };
    let mount = move |_| {
        let lowers = lowers.iter().map(|tree| behind(tree, &wired)).collect();
        Union::new(LayerStack { upper: Some(behind(&upper, &wired)), lowers }, behaviour).unwrap()
    };
    let mut union = UnionSystem::new("memory with faults", case.keep, Box::new(mount));
    let mut reference = Reference::of(&case.lowers);
    for (step, op) in case.ops.iter().enumerate() {
        // A union that is being made has nobody to answer.
        if matches!(op, Op::Remount | Op::Restack | Op::Forget) {
            continue;
        }
        // From the operation alone, so that the case can be made smaller.
        let text = op.to_string().bytes().fold(0, |sum, byte| sum * 31 % 65_521 + u64::from(byte));
        let calls = fixed.unwrap_or_else(|| i64::try_from(Random::new(text).below(40)).unwrap());
        let said = |e: String| format!("step {} ({op}), of which call {calls} fails: {e}", step + 1);
        let mut after = reference.clone();
        let mut want = after.apply(op);
        if let Ok(Reply::Object(object)) = &mut want {
            divergences::uncounted_where_a_copy_failed(object);
        }
        fuse.arm(calls);
        let got = union.apply(op);
        let failed = fuse.disarm();
        if got == Err(INJECTED) && !failed {
            return Err(said("nothing failed".to_owned()));
        }
        if got != Err(INJECTED) && !same_outcome(&want, &got) {
            return Err(said(format!("the answer should be {want:?}\n  but is {got:?}")));
        }
        let view = union.view(&pool()).map_err(said)?;
        let shows = |reference: &Reference| Identities::default().compare(&comparable(reference.view()), &view);
        // It may have failed after it was done: asking for the attributes of what was made. Nothing was opened then.
        if got == Err(INJECTED) {
            after.take_slots_of(&reference);
        }
        let undone = if got == Err(INJECTED) { shows(&reference) } else { Err(String::new()) };
        if let Err(before) = undone {
            shows(&after).map_err(|e| said(format!("answered {got:?}: neither as before: {before}\nnor as after: {e}")))?;
            reference = after;
        }
    }
    union.unmount()
}
