//! Cases from a seed.

use plyfs_format::ESCAPED_WHITEOUT_RDEV;
use plyfs_sys::stat::Kind;

use crate::case::{Case, Entry, How, LayerSpec, Move, Name, Op, Path, SLOTS, What};
use crate::reference::Reference;

/// SplitMix64: small, and the same everywhere.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).unwrap()
    }

    /// True once in `n` times.
    pub(crate) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }
}

/// What a run of cases can do.
#[derive(Clone, Copy)]
pub(crate) struct Options {
    pub(crate) ops: usize,
    /// Remount and restack are among the operations.
    pub(crate) remounts: bool,
}

/// Every name that generated cases use.
pub(crate) fn pool() -> Vec<Name> {
    let mut names: Vec<Name> = ["a", "b", "c", "d", ".wh.a", "\n"].iter().map(|name| name.as_bytes().to_vec()).collect();
    names.push(b"\xff".to_vec());
    names.push(vec![b'x'; 255]);
    names
}

fn name(random: &mut Random) -> Name {
    let pool = pool();
    if random.one_in(14) { random.pick(&pool[4..]) } else { random.pick(&pool[..4]) }
}

fn data(random: &mut Random) -> Vec<u8> {
    match random.below(8) {
        0 => Vec::new(),
        1 => vec![b'0' + u8::try_from(random.below(10)).unwrap(); 1 + random.below(9000)],
        _ => format!("{}", random.below(1000)).into_bytes(),
    }
}

fn mode(random: &mut Random) -> u32 {
    match random.below(4) {
        0 => 0o644,
        1 => random.pick(&[0o4755, 0o2755, 0o2775, 0o1777, 0o6711]),
        _ => u32::try_from(random.below(0o10000)).unwrap(),
    }
}

fn xattr(random: &mut Random) -> Vec<u8> {
    // The overlay's own names are users' attributes here: plyfs and the kernel escape them.
    random
        .pick(&[&b"user.a"[..], b"user.a", b"user.b", b"user.overlay.opaque", b"trusted.overlay.opaque", b"trusted.overlay.redirect"])
        .to_vec()
}

fn layer(random: &mut Random, is_lowest: bool, hard: bool) -> LayerSpec {
    let mut layer = LayerSpec::default();
    let mut dirs: Vec<Vec<Name>> = vec![Vec::new()];
    for _ in 0..random.below(9) {
        let mut path = random.pick(&dirs);
        path.push(name(random));
        if layer.entries.contains_key(&path) {
            continue;
        }
        let may_be_dir = path.len() < 3;
        let what = match random.below(20) {
            0..=7 if may_be_dir => What::Dir { opaque: !is_lowest && random.one_in(5) },
            8 | 9 => What::Symlink(random.pick(&[&b"a"[..], b"../b", b"/nowhere"]).to_vec()),
            10 => What::Fifo,
            11..=13 if !is_lowest || random.one_in(8) => What::Whiteout,
            14 if !is_lowest => What::MarkedWhiteout,
            _ => What::File(data(random)),
        };
        let mut entry = Entry::new(what);
        match &entry.what {
            What::Dir { .. } => dirs.push(path.clone()),
            // The kernel takes one mark or the other: a directory with marked whiteouts is not opaque.
            What::MarkedWhiteout => {
                let dir = &path[..path.len() - 1];
                if dir.is_empty() || layer.entries[dir].what == (What::Dir { opaque: true }) {
                    entry.what = What::Whiteout;
                }
            }
            _ => {}
        }
        if matches!(entry.what, What::Dir { .. } | What::File(_) | What::Fifo) && random.one_in(3) {
            entry.mode = mode(random);
        }
        if random.one_in(4) {
            (entry.uid, entry.gid) = (random.pick(&[0, 1, 1000]), random.pick(&[0, 2, 1000]));
        }
        if random.one_in(2) {
            entry.mtime = 2 + i64::try_from(random.below(3)).unwrap();
        }
        if matches!(entry.what, What::Dir { .. } | What::File(_)) && random.one_in(5) {
            entry.xattrs.insert(random.pick(&[&b"user.a"[..], b"user.b"]).to_vec(), b"v".to_vec());
        }
        layer.entries.insert(path, entry);
    }
    if hard {
        for _ in 0..3 {
            let files: Vec<_> =
                layer.entries.iter().filter(|(_, e)| matches!(e.what, What::File(_))).map(|(path, _)| path.clone()).collect();
            if files.is_empty() {
                break;
            }
            let of = random.pick(&files);
            let mut path = random.pick(&dirs);
            path.push(name(random));
            if path > of && !layer.entries.contains_key(&path) {
                let entry = Entry { what: What::Hard(of.clone()), ..layer.entries[&of].clone() };
                layer.entries.insert(path, entry);
            }
        }
    }
    // A directory that became opaque after a marked whiteout was put in it cannot be: opaque is chosen first. The rest of the rules hold by construction.
    layer
}

/// Chooses paths with a look at what there is.
struct Chooser<'a> {
    random: &'a mut Random,
    there: Vec<(Vec<Name>, Kind)>,
    held: [Option<Kind>; SLOTS],
}

impl Chooser<'_> {
    fn any(&mut self) -> Path {
        let mut names = Vec::new();
        for _ in 0..1 + self.random.below(3) {
            names.push(name(self.random));
        }
        Path { base: None, names }
    }

    fn existing(&mut self, want: impl Fn(Kind) -> bool) -> Path {
        let fitting: Vec<_> =
            self.there.iter().filter(|(path, kind)| !path.is_empty() && want(*kind)).map(|(path, _)| path.clone()).collect();
        if fitting.is_empty() { self.any() } else { Path { base: None, names: self.random.pick(&fitting) } }
    }

    /// Mostly something of the right kind, now and then of the wrong one or nothing.
    fn source(&mut self, want: impl Fn(Kind) -> bool) -> Path {
        let mut path = match self.random.below(10) {
            0 => self.any(),
            1 | 2 => self.existing(|_| true),
            _ => self.existing(want),
        };
        self.rebase(&mut path);
        path
    }

    /// Mostly a free name in a directory that there is.
    fn target(&mut self) -> Path {
        let mut path = match self.random.below(10) {
            0 => self.any(),
            1 | 2 => self.existing(|_| true),
            _ => {
                let mut dir =
                    if self.random.one_in(3) { Path { base: None, names: Vec::new() } } else { self.existing(|kind| kind == Kind::Dir) };
                dir.names.truncate(4);
                dir.names.push(name(self.random));
                dir
            }
        };
        self.rebase(&mut path);
        path
    }

    /// Now and then from a held directory.
    fn rebase(&mut self, path: &mut Path) {
        if self.random.one_in(12) {
            let slot = self.random.below(SLOTS);
            path.base = Some(slot);
            path.names = vec![name(self.random)];
        }
    }

    /// An object, perhaps one that a slot holds.
    fn object(&mut self, want: impl Fn(Kind) -> bool) -> Path {
        let slot = self.random.below(SLOTS);
        if self.held[slot].is_some() && self.random.one_in(5) {
            return Path { base: Some(slot), names: Vec::new() };
        }
        if self.random.one_in(40) {
            return Path { base: None, names: Vec::new() };
        }
        self.source(want)
    }

    fn op(&mut self, options: Options) -> Op {
        let is_file = |kind| kind == Kind::File;
        let is_dir = |kind| kind == Kind::Dir;
        let not_dir = |kind| kind != Kind::Dir;
        let slot = self.random.below(SLOTS);
        match self.random.below(100) {
            0..=7 => {
                let at = self.target();
                let mode = mode(self.random);
                let slot = self.random.one_in(3).then_some(slot);
                Op::Create { at, mode, excl: self.random.one_in(4), trunc: self.random.one_in(4), slot }
            }
            8..=13 => {
                let want_dir = self.random.one_in(4);
                let at = self.source(|kind| (kind == Kind::Dir) == want_dir);
                Op::Open { at, write: self.random.one_in(3), trunc: self.random.one_in(8), slot }
            }
            14..=15 => Op::Hold { at: self.source(|_| true), slot },
            16..=17 => Op::Close { slot },
            18..=19 => Op::Read { slot, offset: self.random.next() % 10, len: self.random.below(10) },
            20..=23 => Op::Write { slot, offset: self.random.next() % 10, data: data(self.random) },
            24..=25 => Op::Ftruncate { slot, len: self.random.next() % 12 },
            26..=29 => Op::WriteAt { at: self.source(is_file), offset: self.random.next() % 10, data: data(self.random) },
            30..=33 => Op::Append { at: self.source(is_file), data: data(self.random) },
            34..=35 => Op::Truncate { at: self.object(is_file), len: self.random.next() % 4 },
            36..=42 => Op::Mkdir { at: self.target(), mode: mode(self.random) & 0o1777 },
            43 if self.random.one_in(2) => {
                Op::Mkchar { at: self.target(), mode: mode(self.random), rdev: self.random.pick(&[0, 0, 0x103, ESCAPED_WHITEOUT_RDEV]) }
            }
            43 => Op::Mkfifo { at: self.target(), mode: mode(self.random) },
            44..=45 => Op::Symlink { at: self.target(), target: self.random.pick(&[&b"a"[..], b"b/c", b"/x"]).to_vec() },
            46..=49 => Op::Link { from: self.object(not_dir), to: self.target() },
            50..=58 => Op::Unlink { at: self.source(not_dir) },
            59..=65 => Op::Rmdir { at: self.source(is_dir) },
            66..=79 => {
                let moves_dir = self.random.one_in(2);
                let from = self.source(|kind| (kind == Kind::Dir) == moves_dir);
                let how = match self.random.below(40) {
                    0 => Move::Whiteout,
                    1..=8 => Move::NoReplace,
                    9..=16 => Move::Exchange,
                    _ => Move::Replace,
                };
                let onto = how == Move::Exchange || self.random.one_in(3);
                let to = if onto { self.source(|kind| (kind == Kind::Dir) == moves_dir) } else { self.target() };
                Op::Rename { from, to, how }
            }
            80..=82 => Op::Chmod { at: self.object(|_| true), mode: mode(self.random) },
            83..=84 => {
                let at = self.object(|_| true);
                let uid = self.random.pick(&[None, Some(0), Some(7)]);
                let gid = if uid.is_none() { Some(8) } else { self.random.pick(&[None, Some(9)]) };
                Op::Chown { at, uid, gid }
            }
            85 => Op::Utimes { at: self.object(|_| true), mtime: 1 + i64::try_from(self.random.below(5)).unwrap() },
            86..=88 => {
                let at = self.object(|_| true);
                let how = self.random.pick(&[How::Any, How::Any, How::Create, How::Replace]);
                Op::SetXattr { at, name: xattr(self.random), value: format!("{}", self.random.below(1000)).into_bytes(), how }
            }
            89 => Op::RemoveXattr { at: self.object(|_| true), name: xattr(self.random) },
            90 => Op::Readlink { at: self.source(|kind| kind == Kind::Symlink) },
            91..=92 => Op::List { at: self.source(is_dir) },
            93 => Op::Stat { at: self.object(|_| true) },
            94..=95 => Op::Forget,
            96..=97 if options.remounts => Op::Remount,
            98..=99 if options.remounts => Op::Restack,
            _ => Op::Unlink { at: self.existing(not_dir) },
        }
    }
}

/// The case of a seed.
pub(crate) fn case(seed: u64, options: Options) -> Case {
    let mut random = Random::new(seed);
    let count = random.pick(&[0, 1, 1, 2, 2, 3]);
    let hard = random.one_in(6);
    let lowers: Vec<LayerSpec> = (0..count).map(|index| layer(&mut random, index + 1 == count, hard)).collect();
    let metacopy = Random::new(!seed).one_in(2);
    let mut case = Case { lowers, keep: random.one_in(2), devices: random.one_in(4), metacopy, ops: Vec::new() };
    let mut reference = Reference::of(&case.lowers);
    for _ in 0..1 + random.below(options.ops) {
        let there = reference.paths();
        let held = std::array::from_fn(|slot| reference.held(slot));
        let op = Chooser { random: &mut random, there, held }.op(options);
        // Truncation writes data too large to look at.
        reference.apply(&op).ok();
        case.ops.push(op);
    }
    case
}
