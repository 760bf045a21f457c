//! A power cut: the calls on a memory upper are journalled, and a prefix of them is what the disk holds, as on a filesystem that journals its metadata (ext4 in ordered mode, xfs).
//!
//! What a call does to names and attributes is on the disk in order; what was written into a file is not, until that file was synced: each file may have
//! lost it, or the end of it, whatever the others did. A sync brings to the disk what was written into the file, and the calls up to the last one that touched it; no others.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex};

use plyfs_overlay::backend::{Handle, ObjectId, Place, RawEntry, Rename, Seek, Trace, Tree, UpperTree};
use plyfs_overlay::{Behaviour, Layer, LayerStack, MemFs, MemTree, Name as Checked, Union};
use plyfs_sys::Result;
use plyfs_sys::at::{SetTime, XattrMode};
use plyfs_sys::stat::{Kind, Stat};
use plyfs_sys::statfs::StatFs;

use crate::build::in_memory;
use crate::case::{Case, LayerSpec, Op};
use crate::divergences;
use crate::generate::{Random, pool};
use crate::memory::{Layers, staged};
use crate::reference::{Id, Reference};
use crate::run::same_outcome;
use crate::system::System as _;
use crate::union::UnionSystem;
use crate::view::{ANY, Identities, View};

type Node = <MemTree as Tree>::Node;
/// An object by its number in the tree that was written.
type Number = u64;
type At = (Number, Checked);

/// What a call did.
enum What {
    File,
    Dir,
    Special(Kind, u64),
    Symlink(Vec<u8>),
    Nameless,
    Whiteout,
}

enum Call {
    Make { what: What, at: Option<At>, mode: u32 },
    Link { at: At },
    Unlink { at: At },
    Rmdir { at: At },
    Rename { from: At, to: At, how: Rename },
    Owner { uid: Option<u32>, gid: Option<u32> },
    Mode { mode: u32 },
    Times { atime: SetTime, mtime: SetTime },
    SetXattr { name: Vec<u8>, value: Vec<u8> },
    RemoveXattr { name: Vec<u8> },
    Write { data: Vec<u8>, offset: u64 },
    Truncate { len: u64 },
    Fallocate { mode: i32, offset: u64, len: u64 },
    Sync,
}

struct Entry {
    call: Call,
    /// The object that it is about.
    node: Number,
    /// Other objects that it touches.
    others: Vec<Number>,
}

#[derive(Default)]
struct Journal(Mutex<Vec<Entry>>);

impl Journal {
    fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

/// A memory layer whose calls are journalled.
struct Recorded {
    tree: MemTree,
    journal: Arc<Journal>,
}

impl Recorded {
    fn number(&self, node: &Node) -> Number {
        self.tree.id(node).ino
    }

    fn at(&self, at: Place<'_, Node>) -> At {
        (self.number(at.dir), at.name.clone())
    }

    fn there(&self, at: Place<'_, Node>) -> Option<Number> {
        self.tree.lookup(at.dir, at.name).unwrap().map(|(node, _)| self.number(&node))
    }

    fn note(&self, call: Call, node: Number, others: impl IntoIterator<Item = Number>) {
        self.journal.0.lock().unwrap().push(Entry { call, node, others: others.into_iter().collect() });
    }

    fn made(&self, what: What, at: Place<'_, Node>, mode: u32) {
        let made = self.there(at).unwrap();
        self.note(Call::Make { what, at: Some(self.at(at)), mode }, made, [self.number(at.dir)]);
    }

    fn wrote(&self, file: &Node, offset: u64, len: usize) {
        let mut data = vec![0; len];
        let got = self.tree.read(file, &mut data, offset).unwrap();
        assert_eq!(got, len);
        if len > 0 {
            self.note(Call::Write { data, offset }, self.number(file), []);
        }
    }
}

macro_rules! passed_on {
    ($($name:ident($($arg:ident: $type:ty),*) -> $out:ty;)*) => {
        $(fn $name(&self, $($arg: $type),*) -> Result<$out> {
            self.tree.$name($($arg),*)
        })*
    };
}

impl Tree for Recorded {
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

impl UpperTree for Recorded {
    fn work(&self) -> Node {
        self.tree.work()
    }

    fn index(&self) -> Option<Node> {
        self.tree.index()
    }

    fn known_by(&self, node: &Node, at: Place<'_, Node>, own: bool) {
        self.tree.known_by(node, at, own);
    }

    fn create(&self, at: Place<'_, Node>, mode: u32) -> Result<(Node, Self::File)> {
        self.tree.create(at, mode).inspect(|_| self.made(What::File, at, mode))
    }

    fn tmpfile(&self) -> Result<Option<(Node, Self::File)>> {
        let made = self.tree.tmpfile()?;
        if let Some((node, _)) = &made {
            self.note(Call::Make { what: What::Nameless, at: None, mode: 0o600 }, self.number(node), []);
        }
        Ok(made)
    }

    fn mkdir(&self, at: Place<'_, Node>, mode: u32) -> Result<Node> {
        self.tree.mkdir(at, mode).inspect(|_| self.made(What::Dir, at, mode))
    }

    fn mknod(&self, at: Place<'_, Node>, kind: Kind, mode: u32, rdev: u64) -> Result<Node> {
        self.tree.mknod(at, kind, mode, rdev).inspect(|_| self.made(What::Special(kind, rdev), at, mode))
    }

    fn symlink(&self, at: Place<'_, Node>, target: &[u8]) -> Result<Node> {
        self.tree.symlink(at, target).inspect(|_| self.made(What::Symlink(target.to_vec()), at, 0o777))
    }

    fn link(&self, node: &Node, at: Place<'_, Node>) -> Result<()> {
        self.tree.link(node, at)?;
        self.note(Call::Link { at: self.at(at) }, self.number(node), [self.number(at.dir)]);
        Ok(())
    }

    fn unlink(&self, at: Place<'_, Node>) -> Result<()> {
        let gone = self.there(at);
        self.tree.unlink(at)?;
        self.note(Call::Unlink { at: self.at(at) }, gone.unwrap(), [self.number(at.dir)]);
        Ok(())
    }

    fn rmdir(&self, at: Place<'_, Node>) -> Result<()> {
        let gone = self.there(at);
        self.tree.rmdir(at)?;
        self.note(Call::Rmdir { at: self.at(at) }, gone.unwrap(), [self.number(at.dir)]);
        Ok(())
    }

    fn rename(&self, from: Place<'_, Node>, moved: Option<&Node>, to: Place<'_, Node>, other: Option<&Node>, how: Rename) -> Result<()> {
        let (old, new) = (self.there(from), self.there(to));
        self.tree.rename(from, moved, to, other, how)?;
        let others = [self.number(from.dir), self.number(to.dir)].into_iter().chain(new);
        self.note(Call::Rename { from: self.at(from), to: self.at(to), how }, old.unwrap(), others);
        if how == Rename::Whiteout {
            // It may be linked or looked up later on: it has a number of its own.
            self.made(What::Whiteout, from, 0);
        }
        Ok(())
    }

    fn whiteout(&self, at: Place<'_, Node>) -> Result<()> {
        self.tree.whiteout(at)?;
        self.made(What::Special(Kind::Char, 0), at, 0);
        Ok(())
    }

    fn pin(&self, node: &Node, losing: Option<Place<'_, Node>>) -> Result<bool> {
        self.tree.pin(node, losing)
    }

    fn set_owner(&self, node: &Node, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
        self.tree.set_owner(node, uid, gid)?;
        self.note(Call::Owner { uid, gid }, self.number(node), []);
        Ok(())
    }

    fn set_mode(&self, node: &Node, mode: u32) -> Result<()> {
        self.tree.set_mode(node, mode)?;
        self.note(Call::Mode { mode }, self.number(node), []);
        Ok(())
    }

    fn set_times(&self, node: &Node, atime: SetTime, mtime: SetTime) -> Result<()> {
        self.tree.set_times(node, atime, mtime)?;
        self.note(Call::Times { atime, mtime }, self.number(node), []);
        Ok(())
    }

    fn set_xattr(&self, node: &Node, name: &[u8], value: &[u8], mode: XattrMode) -> Result<()> {
        self.tree.set_xattr(node, name, value, mode)?;
        self.note(Call::SetXattr { name: name.to_vec(), value: value.to_vec() }, self.number(node), []);
        Ok(())
    }

    fn remove_xattr(&self, node: &Node, name: &[u8]) -> Result<()> {
        self.tree.remove_xattr(node, name)?;
        self.note(Call::RemoveXattr { name: name.to_vec() }, self.number(node), []);
        Ok(())
    }

    fn open_write(&self, node: &Node) -> Result<Self::File> {
        self.tree.open_write(node)
    }

    fn write(&self, file: &Self::File, data: &[u8], offset: u64) -> Result<usize> {
        let written = self.tree.write(file, data, offset)?;
        self.wrote(file, offset, written);
        Ok(written)
    }

    fn truncate(&self, file: &Self::File, len: u64) -> Result<()> {
        self.tree.truncate(file, len)?;
        self.note(Call::Truncate { len }, self.number(file), []);
        Ok(())
    }

    fn fallocate(&self, file: &Self::File, mode: i32, offset: u64, len: u64) -> Result<()> {
        self.tree.fallocate(file, mode, offset, len)?;
        self.note(Call::Fallocate { mode, offset, len }, self.number(file), []);
        Ok(())
    }

    fn sync(&self, file: &Self::File, _data_only: bool) -> Result<()> {
        self.note(Call::Sync, self.number(file), []);
        Ok(())
    }

    fn sync_dir(&self, dir: &Node) -> Result<()> {
        self.note(Call::Sync, self.number(dir), []);
        Ok(())
    }

    fn copy_range(&self, from: &Self::File, from_offset: u64, to: &Self::File, to_offset: u64, len: u64) -> Result<usize> {
        let copied = self.tree.copy_range(from, from_offset, to, to_offset, len)?;
        self.wrote(to, to_offset, copied);
        Ok(copied)
    }

    fn copy_data(&self, from: &Self::File, to: &Self::File, len: u64) -> Result<u64> {
        let copied = self.tree.copy_data(from, to, len)?;
        self.wrote(to, 0, usize::try_from(copied).unwrap());
        Ok(copied)
    }
}

/// What became of what was written into a file and not synced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Kept,
    Lost,
    /// Of each write the first half is there.
    Short,
}

const FATES: [Fate; 3] = [Fate::Lost, Fate::Kept, Fate::Short];

/// The writes of a prefix of the calls that were not synced: their places, by file.
fn unsynced(entries: &[Entry]) -> BTreeMap<Number, Vec<usize>> {
    let mut open: BTreeMap<Number, Vec<usize>> = BTreeMap::new();
    for (index, entry) in entries.iter().enumerate() {
        match entry.call {
            Call::Write { .. } => open.entry(entry.node).or_default().push(index),
            Call::Sync => drop(open.remove(&entry.node)),
            _ => {}
        }
    }
    open
}

/// What the disk holds of the first calls: a new upper beside the old one. `empty`: what the upper was before them.
fn replay(fs: &Arc<MemFs>, old: &MemTree, entries: &[Entry], fates: &HashMap<usize, Fate>) -> MemTree {
    let new = in_memory(fs, &LayerSpec::default());
    let mut nodes: HashMap<Number, Node> = HashMap::new();
    nodes.insert(old.id(&old.root()).ino, new.root());
    nodes.insert(old.id(&old.work()).ino, new.work());
    nodes.insert(old.id(&old.index().unwrap()).ino, new.index().unwrap());
    for (index, entry) in entries.iter().enumerate() {
        let place = |at: &At| (nodes[&at.0].clone(), at.1.clone());
        let node = nodes.get(&entry.node).cloned();
        let there = || node.clone().unwrap();
        match &entry.call {
            Call::Make { what: What::Nameless, .. } => drop(nodes.insert(entry.node, new.tmpfile().unwrap().unwrap().0)),
            Call::Make { what, at, mode } => {
                let (dir, name) = place(at.as_ref().unwrap());
                let at = Place { dir: &dir, name: &name };
                let node = match what {
                    What::File | What::Nameless => new.create(at, *mode).unwrap().0,
                    What::Dir => new.mkdir(at, *mode).unwrap(),
                    What::Special(kind, rdev) => new.mknod(at, *kind, *mode, *rdev).unwrap(),
                    What::Symlink(target) => new.symlink(at, target).unwrap(),
                    // The rename has made it.
                    What::Whiteout => new.lookup(&dir, &name).unwrap().unwrap().0,
                };
                nodes.insert(entry.node, node);
            }
            Call::Link { at } => {
                let (dir, name) = place(at);
                new.link(&there(), Place { dir: &dir, name: &name }).unwrap();
            }
            Call::Unlink { at } => {
                let (dir, name) = place(at);
                new.unlink(Place { dir: &dir, name: &name }).unwrap();
            }
            Call::Rmdir { at } => {
                let (dir, name) = place(at);
                new.rmdir(Place { dir: &dir, name: &name }).unwrap();
            }
            Call::Rename { from, to, how } => {
                let ((old_dir, old_name), (new_dir, new_name)) = (place(from), place(to));
                let (from, to) = (Place { dir: &old_dir, name: &old_name }, Place { dir: &new_dir, name: &new_name });
                new.rename(from, None, to, None, *how).unwrap();
            }
            Call::Owner { uid, gid } => new.set_owner(&there(), *uid, *gid).unwrap(),
            Call::Mode { mode } => new.set_mode(&there(), *mode).unwrap(),
            Call::Times { atime, mtime } => new.set_times(&there(), *atime, *mtime).unwrap(),
            Call::SetXattr { name, value } => new.set_xattr(&there(), name, value, XattrMode::Any).unwrap(),
            Call::RemoveXattr { name } => new.remove_xattr(&there(), name).unwrap(),
            Call::Write { data, offset } => {
                let kept = match fates.get(&index) {
                    None | Some(Fate::Kept) => data.len(),
                    Some(Fate::Short) => data.len() / 2,
                    Some(Fate::Lost) => 0,
                };
                if kept > 0 {
                    new.write(&there(), &data[..kept], *offset).unwrap();
                }
                // Times are attributes.
                new.set_times(&there(), SetTime::Omit, SetTime::Now).unwrap();
            }
            Call::Truncate { len } => new.truncate(&there(), *len).unwrap(),
            Call::Fallocate { mode, offset, len } => new.fallocate(&there(), *mode, *offset, *len).unwrap(),
            Call::Sync => {}
        }
    }
    new
}

/// Empties a directory as a mount does `work`.
pub(crate) fn empty(tree: &MemTree, dir: &Node) {
    for entry in tree.read_dir(dir).unwrap() {
        let name = Checked::new(&entry.name).unwrap();
        let at = Place { dir, name: &name };
        let (node, stat) = tree.lookup(dir, &name).unwrap().unwrap();
        if stat.kind == Kind::Dir {
            empty(tree, &node);
            tree.rmdir(at).unwrap();
        } else {
            tree.unlink(at).unwrap();
        }
    }
}

/// What shows after so many calls: all that was done, and the same without what was written and not synced since.
struct Moment {
    calls: usize,
    done: String,
    /// What was done, if it was an operation of the case.
    op: Option<Op>,
    full: Reference,
    lost: Reference,
}

impl Moment {
    /// Whether a view is that of the moment, each file with or without its unsynced data. `short`: files may have a part of it. `synced`: a file that has its data.
    fn check(&self, got: &View, short: bool, synced: Option<Id>) -> std::result::Result<(), String> {
        let (mut want, lost) = (self.full.view(), self.lost.view());
        for (path, object) in &mut want.tree {
            if object.kind == Kind::Dir {
                // A cut between the commit of a copy-up and the putting back of the time.
                object.mtime = Some(ANY);
            }
            let (Some(got), without) = (got.tree.get(path), &lost.tree[path]) else { continue };
            if object.data == without.data || synced.is_some_and(|id| self.full.is(object.id, id)) {
                continue;
            }
            object.mtime = Some(ANY);
            if got.data == without.data || short {
                object.data.clone_from(&got.data);
                object.size = got.size;
            }
        }
        want.slots.clear();
        Identities { blind: true, ..Identities::default() }.compare(&want, got)
    }
}

/// The one of the data operations, without its data.
fn without_data(op: &Op) -> Op {
    match op.clone() {
        Op::Write { slot, offset, .. } => Op::Write { slot, offset, data: Vec::new() },
        Op::WriteAt { at, offset, .. } => Op::WriteAt { at, offset, data: Vec::new() },
        Op::Append { at, .. } => Op::Append { at, data: Vec::new() },
        op => op,
    }
}

/// A file of the user's that was synced.
struct Promise {
    moment: usize,
    node: Number,
    id: Id,
}

/// Runs a case and cuts the power after each of its calls.
pub(crate) fn run(case: &Case) -> std::result::Result<(), String> {
    let layers = Layers::new(&case.lowers, case);
    let behaviour = Behaviour { own_ids: case.keep.then_some((0, 0)), metacopy: case.metacopy, ..Behaviour::default() };
    let journal = Arc::new(Journal::default());
    let (upper, lowers, wired) = (layers.upper.clone(), layers.lowers.clone(), journal.clone());
    let behind = |tree: &MemTree, journal: &Arc<Journal>| Layer::trusted(Recorded { tree: tree.clone(), journal: journal.clone() });
    let keep = case.keep;
    let mount = move |_| {
        let lowers = lowers.iter().map(|tree| behind(tree, &Arc::default())).collect();
        let union = Union::new(LayerStack { upper: Some(behind(&upper, &wired)), lowers }, behaviour).unwrap();
        if keep {
            union.keep_reserve();
        }
        union
    };
    let mut union = UnionSystem::new("memory that is cut off", case.keep, Box::new(mount));
    let full = Reference::of(&case.lowers);
    let mut moments = vec![Moment { calls: journal.len(), done: "nothing".to_owned(), op: None, lost: full.clone(), full }];
    let mut promises = Vec::new();
    for (step, op) in case.ops.iter().enumerate() {
        if matches!(op, Op::Remount | Op::Restack) {
            continue;
        }
        let last = moments.last().unwrap();
        let (mut full, mut lost) = (last.full.clone(), last.lost.clone());
        drop(full.apply(op));
        drop(lost.apply_beside(&without_data(op), &last.full));
        drop(union.apply(op));
        moments.push(Moment { calls: journal.len(), done: format!("step {} ({op})", step + 1), op: Some(op.clone()), full, lost });
        // From the operation alone, so that the case can be made smaller.
        let choice = Random::new(op.to_string().bytes().fold(7, |sum, byte| sum * 31 % 65_521 + u64::from(byte))).below(12);
        let last = moments.last().unwrap();
        let files: Vec<_> = last.full.view().tree.into_iter().filter(|(_, object)| object.kind == Kind::File).collect();
        let Some((path, object)) = files.get(choice) else { continue };
        union.fsync(path).map_err(|errno| format!("after step {} ({op}): fsync {path:?}: {errno}", step + 1))?;
        let (full, mut lost) = (last.full.clone(), last.lost.clone());
        let id = full.id_of(object.id);
        lost.take_data(&full, id);
        let done = format!("fsync after step {}", step + 1);
        if let Some(Entry { call: Call::Sync, node, .. }) = journal.0.lock().unwrap().last() {
            promises.push(Promise { moment: moments.len(), node: *node, id });
        }
        moments.push(Moment { calls: journal.len(), done, op: None, full, lost });
    }
    union.settle()?;
    let last = moments.last().unwrap();
    let (mut full, mut lost) = (last.full.clone(), last.lost.clone());
    full.settle();
    lost.settle();
    moments.push(Moment { calls: journal.len(), done: "a clean end".to_owned(), op: None, full, lost });
    let entries = journal.0.lock().unwrap();
    let fs = &layers.filesystems[0];
    let show = |calls: usize, fates: &HashMap<usize, Fate>| -> (UnionSystem<MemTree>, MemTree) {
        let upper = replay(fs, &layers.upper, &entries[..calls], fates);
        empty(&upper, &upper.work());
        let (left, lowers) = (upper.clone(), layers.lowers.clone());
        let mount = move |_| {
            let lowers = lowers.iter().map(|tree| Layer::trusted(tree.clone())).collect();
            let union = Union::new(LayerStack { upper: Some(Layer::trusted(upper.clone())), lowers }, behaviour).unwrap();
            union.clean_index().unwrap();
            union
        };
        (UnionSystem::new("memory after a power cut", case.keep, Box::new(mount)), left)
    };
    for calls in moments[0].calls..=entries.len() {
        if calls > 0 && matches!(entries[calls - 1].call, Call::Sync) {
            continue;
        }
        let before = moments.iter().rposition(|moment| moment.calls <= calls).unwrap();
        let possible = if moments[before].calls == calls { before..before + 1 } else { before..before + 2 };
        let open = unsynced(&entries[..calls]);
        for chosen in fates_of(&open) {
            let fates = open.iter().flat_map(|(node, writes)| writes.iter().map(|write| (*write, chosen[node]))).collect();
            let short = chosen.values().any(|fate| *fate == Fate::Short);
            let said = |e: String| format!("the power is cut at call {calls} of {}, {chosen:?}: {e}", entries.len());
            let (mut union, upper) = show(calls, &fates);
            let got = union.view(&pool()).map_err(said)?;
            if divergences::moves_in_two_steps(moments[possible.end - 1].op.as_ref()) && possible.len() > 1 {
                continue;
            }
            let now = judge(&moments, possible.clone(), &got, short, None).map_err(said)?;
            // What comes next goes as if nothing had happened.
            if let (true, Some(op)) = (open.is_empty(), &moments[possible.end - 1].op) {
                let mut reference = now.full.clone();
                drop(reference.apply(&Op::Remount));
                let want = reference.apply(op);
                let got = union.apply(op);
                let said = |e: String| said(format!("then {op}: {e}"));
                if !same_outcome(&want, &got) {
                    return Err(said(format!("the answer should be {want:?}\n  but is {got:?}")));
                }
                let view = union.view(&pool()).map_err(said)?;
                Moment { lost: reference.clone(), full: reference, calls, done: String::new(), op: None }
                    .check(&view, false, None)
                    .map_err(said)?;
                let litter = staged(&upper);
                if !litter.is_empty() {
                    return Err(said(format!("work holds {litter:?}")));
                }
            }
        }
    }
    for promise in promises {
        let moment = &moments[promise.moment];
        let synced = moment.calls - 1;
        let touched = |entry: &Entry| entry.node == promise.node || entry.others.contains(&promise.node);
        let from = entries[..synced].iter().rposition(touched).map_or(0, |last| last + 1);
        for calls in from..=synced {
            let before = moments.iter().rposition(|moment| moment.calls <= calls).unwrap();
            let possible = if moments[before].calls == calls { before..before + 1 } else { before..before + 2 };
            let mut open = unsynced(&entries[..calls]);
            open.remove(&promise.node);
            let fates = open.values().flatten().map(|write| (*write, Fate::Lost)).collect();
            let said = |e: String| format!("after {}, with call {calls} as the last on the disk: {e}", moment.done);
            let got = show(calls, &fates).0.view(&pool()).map_err(said)?;
            if !divergences::moves_in_two_steps(moments[possible.end - 1].op.as_ref()) {
                judge(&moments, possible, &got, false, Some(promise.id)).map_err(said)?;
            }
        }
    }
    Ok(())
}

/// What may have become of the files that were written: all combinations of a few, of many only those in which all fare alike.
fn fates_of(open: &BTreeMap<Number, Vec<usize>>) -> Vec<BTreeMap<Number, Fate>> {
    const FEW: usize = 2;
    if open.is_empty() {
        return vec![BTreeMap::new()];
    }
    if open.len() > FEW {
        return FATES.into_iter().map(|fate| open.keys().map(|node| (*node, fate)).collect()).collect();
    }
    open.keys().fold(vec![BTreeMap::new()], |chosen, node| {
        let with = |before: &BTreeMap<Number, Fate>, fate| before.clone().into_iter().chain([(*node, fate)]).collect();
        chosen.iter().flat_map(|before| FATES.map(|fate| with(before, fate))).collect()
    })
}

/// One of the moments is what shows.
fn judge<'a>(
    moments: &'a [Moment],
    possible: std::ops::Range<usize>,
    got: &View,
    short: bool,
    synced: Option<Id>,
) -> std::result::Result<&'a Moment, String> {
    let mut reasons = String::new();
    let mut tried = HashSet::new();
    for moment in &moments[possible] {
        match moment.check(got, short, synced) {
            Ok(()) => return Ok(moment),
            Err(reason) if tried.insert(reason.clone()) => reasons += &format!("\nnot as after {}: {reason}", moment.done),
            Err(_) => {}
        }
    }
    Err(reasons)
}
