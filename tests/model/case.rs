//! A case: lower layers and a sequence of operations, as values and as text.
//!
//! The text is what a failure prints and what `regressions.rs` keeps. One line a layer entry or operation; names and data are printable ASCII with
//! `\xHH` for the rest, and `{c*N}` for long runs of one byte.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::str::FromStr;

pub(crate) type Name = Vec<u8>;

/// How many slots an operation sequence has for open files and held objects.
pub(crate) const SLOTS: usize = 3;

/// Where an object is: names below the root, or below what a slot holds.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Path {
    pub(crate) base: Option<usize>,
    pub(crate) names: Vec<Name>,
}

/// What a layer holds under a path.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum What {
    Dir {
        opaque: bool,
    },
    File(Vec<u8>),
    Symlink(Vec<u8>),
    Fifo,
    Whiteout,
    /// An empty file that is a whiteout by its mark; its directory gets the mark that says so.
    MarkedWhiteout,
    /// A further name of a file, at a path of the same layer that sorts before.
    Hard(Vec<Name>),
}

/// One entry of a layer.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) what: What,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds; below [`crate::view::SET`], so that times that were set and times of a clock differ.
    pub(crate) mtime: i64,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// A layer: every entry's parents are in it as directories.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct LayerSpec {
    pub(crate) entries: BTreeMap<Vec<Name>, Entry>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    Any,
    Create,
    Replace,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Move {
    Replace,
    NoReplace,
    Exchange,
    /// Leaves a character device 0:0.
    Whiteout,
}

#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Op {
    /// open(O_RDWR | O_CREAT); without a slot it is closed at once.
    Create {
        at: Path,
        mode: u32,
        excl: bool,
        trunc: bool,
        slot: Option<usize>,
    },
    Open {
        at: Path,
        write: bool,
        trunc: bool,
        slot: usize,
    },
    /// open(O_PATH): of any kind.
    Hold {
        at: Path,
        slot: usize,
    },
    Close {
        slot: usize,
    },
    Read {
        slot: usize,
        offset: u64,
        len: usize,
    },
    Write {
        slot: usize,
        offset: u64,
        data: Vec<u8>,
    },
    Ftruncate {
        slot: usize,
        len: u64,
    },
    WriteAt {
        at: Path,
        offset: u64,
        data: Vec<u8>,
    },
    Append {
        at: Path,
        data: Vec<u8>,
    },
    Truncate {
        at: Path,
        len: u64,
    },
    Mkdir {
        at: Path,
        mode: u32,
    },
    Mkfifo {
        at: Path,
        mode: u32,
    },
    /// A character device; 0:0 is what a whiteout looks like.
    Mkchar {
        at: Path,
        mode: u32,
        rdev: u64,
    },
    Symlink {
        at: Path,
        target: Vec<u8>,
    },
    Link {
        from: Path,
        to: Path,
    },
    Unlink {
        at: Path,
    },
    Rmdir {
        at: Path,
    },
    Rename {
        from: Path,
        to: Path,
        how: Move,
    },
    Chmod {
        at: Path,
        mode: u32,
    },
    Chown {
        at: Path,
        uid: Option<u32>,
        gid: Option<u32>,
    },
    Utimes {
        at: Path,
        mtime: i64,
    },
    SetXattr {
        at: Path,
        name: Vec<u8>,
        value: Vec<u8>,
        how: How,
    },
    RemoveXattr {
        at: Path,
        name: Vec<u8>,
    },
    Readlink {
        at: Path,
    },
    List {
        at: Path,
    },
    Stat {
        at: Path,
    },
    /// The kernel's caches of names are dropped.
    Forget,
    /// Unmount and mount again; slots are closed before.
    Remount,
    /// Unmount, and mount with the upper as the topmost lower layer and a new upper; slots are closed before.
    Restack,
}

impl Op {
    /// The paths that it names.
    pub(crate) fn paths(&self) -> Vec<&Path> {
        match self {
            Self::Create { at, .. }
            | Self::Open { at, .. }
            | Self::Hold { at, .. }
            | Self::WriteAt { at, .. }
            | Self::Append { at, .. }
            | Self::Truncate { at, .. }
            | Self::Mkdir { at, .. }
            | Self::Mkfifo { at, .. }
            | Self::Mkchar { at, .. }
            | Self::Symlink { at, .. }
            | Self::Unlink { at }
            | Self::Rmdir { at }
            | Self::Chmod { at, .. }
            | Self::Chown { at, .. }
            | Self::Utimes { at, .. }
            | Self::SetXattr { at, .. }
            | Self::RemoveXattr { at, .. }
            | Self::Readlink { at }
            | Self::List { at }
            | Self::Stat { at } => vec![at],
            Self::Link { from, to } | Self::Rename { from, to, .. } => vec![from, to],
            _ => Vec::new(),
        }
    }
}

#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Case {
    /// Topmost first.
    pub(crate) lowers: Vec<LayerSpec>,
    /// Looked-up names stay known, as in the kernel's cache; else each is forgotten after its operation.
    pub(crate) keep: bool,
    /// Each memory layer is a filesystem of its own.
    pub(crate) devices: bool,
    /// A change of metadata copies no data up.
    pub(crate) metacopy: bool,
    pub(crate) ops: Vec<Op>,
}

impl Case {
    /// Whether some layer holds hard links, or may be made of one that has come to them.
    pub(crate) fn has_hard_links(&self) -> bool {
        let restacked = self.ops.contains(&Op::Restack) && self.ops.iter().any(|op| matches!(op, Op::Link { .. }));
        restacked || self.lowers.iter().any(|layer| layer.entries.values().any(|entry| matches!(entry.what, What::Hard(_))))
    }
}

// Text.

fn encode(bytes: &[u8]) -> String {
    let mut text = String::new();
    let mut rest = bytes;
    while let Some(&first) = rest.first() {
        let run = rest.iter().take_while(|&&byte| byte == first).count();
        let one = if first.is_ascii_alphanumeric() || b"._-:+=".contains(&first) {
            char::from(first).to_string()
        } else {
            format!("\\x{first:02x}")
        };
        if run > 8 {
            write!(text, "{{{one}*{run}}}").unwrap();
        } else {
            text.push_str(&one.repeat(run));
        }
        rest = &rest[run..];
    }
    text
}

fn decode(text: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        if first == '{' {
            let end = rest.find('}').ok_or("no }")?;
            let (one, count) = rest[1..end].rsplit_once('*').ok_or("no *")?;
            let one = decode(one)?;
            bytes.extend(one.repeat(count.parse().map_err(|_| "count")?));
            rest = &rest[end + 1..];
        } else if first == '\\' {
            let hex = rest.get(2..4).ok_or("short \\x")?;
            bytes.push(u8::from_str_radix(hex, 16).map_err(|_| "hex")?);
            rest = &rest[4..];
        } else {
            bytes.push(u8::try_from(first).map_err(|_| "not ASCII")?);
            rest = &rest[1..];
        }
    }
    Ok(bytes)
}

fn names_text(names: &[Name]) -> String {
    names.iter().fold(String::new(), |text, name| text + "/" + &encode(name))
}

fn parse_names(text: &str) -> Result<Vec<Name>, String> {
    text.split('/').filter(|part| !part.is_empty()).map(decode).collect()
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.base {
            Some(slot) => write!(f, "@{slot}{}", names_text(&self.names)),
            None if self.names.is_empty() => f.write_str("/"),
            None => f.write_str(&names_text(&self.names)),
        }
    }
}

impl FromStr for Path {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix('@') {
            Some(rest) => {
                let (slot, names) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
                Ok(Self { base: Some(slot.parse().map_err(|_| "slot")?), names: parse_names(names)? })
            }
            None => Ok(Self { base: None, names: parse_names(text)? }),
        }
    }
}

fn quoted(bytes: &[u8]) -> String {
    format!("\"{}\"", encode(bytes))
}

fn unquote(text: &str) -> Result<Vec<u8>, String> {
    decode(text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).ok_or("not quoted")?)
}

impl What {
    fn default_mode(&self) -> u32 {
        match self {
            Self::Dir { .. } => 0o755,
            Self::Symlink(_) => 0o777,
            _ => 0o644,
        }
    }
}

impl Entry {
    pub(crate) fn new(what: What) -> Self {
        Self { mode: what.default_mode(), what, uid: 0, gid: 0, mtime: 1, xattrs: BTreeMap::new() }
    }
}

impl fmt::Display for LayerSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (path, entry) in &self.entries {
            let path = names_text(path);
            match &entry.what {
                What::Dir { opaque } => write!(f, "  d {path}{}", if *opaque { " opaque" } else { "" })?,
                What::File(data) => write!(f, "  f {path} {}", quoted(data))?,
                What::Symlink(target) => write!(f, "  l {path} {}", quoted(target))?,
                What::Fifo => write!(f, "  p {path}")?,
                What::Whiteout => write!(f, "  w {path}")?,
                What::MarkedWhiteout => write!(f, "  x {path}")?,
                What::Hard(of) => write!(f, "  h {path} {}", names_text(of))?,
            }
            if entry.mode != entry.what.default_mode() {
                write!(f, " m={:o}", entry.mode)?;
            }
            for (key, value, default) in [("u", i64::from(entry.uid), 0), ("g", i64::from(entry.gid), 0), ("t", entry.mtime, 1)] {
                if value != default {
                    write!(f, " {key}={value}")?;
                }
            }
            for (name, value) in &entry.xattrs {
                write!(f, " {} {}", encode(name), quoted(value))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flag = |on: bool, word: &'static str| if on { word } else { "" };
        match self {
            Self::Create { at, mode, excl, trunc, slot } => {
                write!(f, "create {at} {mode:o}{}{}", flag(*excl, " excl"), flag(*trunc, " trunc"))?;
                slot.map_or(Ok(()), |slot| write!(f, " @{slot}"))
            }
            Self::Open { at, write, trunc, slot } => {
                write!(f, "open {at}{}{} @{slot}", flag(*write, " write"), flag(*trunc, " trunc"))
            }
            Self::Hold { at, slot } => write!(f, "hold {at} @{slot}"),
            Self::Close { slot } => write!(f, "close @{slot}"),
            Self::Read { slot, offset, len } => write!(f, "read @{slot} {offset} {len}"),
            Self::Write { slot, offset, data } => write!(f, "write @{slot} {offset} {}", quoted(data)),
            Self::Ftruncate { slot, len } => write!(f, "ftruncate @{slot} {len}"),
            Self::WriteAt { at, offset, data } => write!(f, "writeat {at} {offset} {}", quoted(data)),
            Self::Append { at, data } => write!(f, "append {at} {}", quoted(data)),
            Self::Truncate { at, len } => write!(f, "truncate {at} {len}"),
            Self::Mkdir { at, mode } => write!(f, "mkdir {at} {mode:o}"),
            Self::Mkfifo { at, mode } => write!(f, "mkfifo {at} {mode:o}"),
            Self::Mkchar { at, mode, rdev } => write!(f, "mkchar {at} {mode:o} {rdev}"),
            Self::Symlink { at, target } => write!(f, "symlink {at} {}", quoted(target)),
            Self::Link { from, to } => write!(f, "link {from} {to}"),
            Self::Unlink { at } => write!(f, "unlink {at}"),
            Self::Rmdir { at } => write!(f, "rmdir {at}"),
            Self::Rename { from, to, how } => {
                let word = match how {
                    Move::Replace => "",
                    Move::NoReplace => " noreplace",
                    Move::Exchange => " exchange",
                    Move::Whiteout => " whiteout",
                };
                write!(f, "rename {from} {to}{word}")
            }
            Self::Chmod { at, mode } => write!(f, "chmod {at} {mode:o}"),
            Self::Chown { at, uid, gid } => {
                write!(f, "chown {at} {} {}", uid.map_or(-1, i64::from), gid.map_or(-1, i64::from))
            }
            Self::Utimes { at, mtime } => write!(f, "utimes {at} {mtime}"),
            Self::SetXattr { at, name, value, how } => {
                let word = match how {
                    How::Any => "",
                    How::Create => " create",
                    How::Replace => " replace",
                };
                write!(f, "setxattr {at} {} {}{word}", encode(name), quoted(value))
            }
            Self::RemoveXattr { at, name } => write!(f, "removexattr {at} {}", encode(name)),
            Self::Readlink { at } => write!(f, "readlink {at}"),
            Self::List { at } => write!(f, "list {at}"),
            Self::Stat { at } => write!(f, "stat {at}"),
            Self::Forget => f.write_str("forget"),
            Self::Remount => f.write_str("remount"),
            Self::Restack => f.write_str("restack"),
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for layer in &self.lowers {
            write!(f, "layer\n{layer}")?;
        }
        let flags = [(self.keep, " keep"), (self.devices, " devices"), (self.metacopy, " metacopy")];
        writeln!(f, "ops{}", flags.iter().filter(|(set, _)| *set).map(|(_, word)| *word).collect::<String>())?;
        self.ops.iter().try_for_each(|op| writeln!(f, "  {op}"))
    }
}

/// The words of one line.
struct Words<'a>(std::str::SplitWhitespace<'a>);

impl Words<'_> {
    fn next<T: FromStr>(&mut self) -> Result<T, String> {
        let word = self.0.next().ok_or("a word is missing")?;
        word.parse().map_err(|_| format!("bad word {word}"))
    }

    fn octal(&mut self) -> Result<u32, String> {
        u32::from_str_radix(&self.next::<String>()?, 8).map_err(|e| e.to_string())
    }

    fn data(&mut self) -> Result<Vec<u8>, String> {
        unquote(&self.next::<String>()?)
    }

    fn slot(&mut self) -> Result<usize, String> {
        self.next::<Path>()?.base.ok_or_else(|| "no slot".to_owned())
    }

    fn id(&mut self) -> Result<Option<u32>, String> {
        Ok(u32::try_from(self.next::<i64>()?).ok())
    }
}

fn parse_entry(line: &str) -> Result<(Vec<Name>, Entry), String> {
    let mut words = Words(line.split_whitespace());
    let sort: String = words.next()?;
    let path = parse_names(&words.next::<String>()?)?;
    let what = match sort.as_str() {
        "d" => What::Dir { opaque: false },
        "f" => What::File(words.data()?),
        "l" => What::Symlink(words.data()?),
        "p" => What::Fifo,
        "w" => What::Whiteout,
        "x" => What::MarkedWhiteout,
        "h" => What::Hard(parse_names(&words.next::<String>()?)?),
        other => return Err(format!("entry {other}")),
    };
    let mut entry = Entry::new(what);
    while let Some(word) = words.0.next() {
        match word.split_once('=') {
            _ if word == "opaque" => entry.what = What::Dir { opaque: true },
            Some(("m", value)) => entry.mode = u32::from_str_radix(value, 8).map_err(|e| e.to_string())?,
            Some(("u", value)) => entry.uid = value.parse().map_err(|_| "uid")?,
            Some(("g", value)) => entry.gid = value.parse().map_err(|_| "gid")?,
            Some(("t", value)) => entry.mtime = value.parse().map_err(|_| "mtime")?,
            _ => {
                let value = words.data()?;
                entry.xattrs.insert(decode(word)?, value);
            }
        }
    }
    Ok((path, entry))
}

fn parse_op(line: &str) -> Result<Op, String> {
    let mut words = Words(line.split_whitespace());
    let verb: String = words.next()?;
    let mut op = match verb.as_str() {
        "create" => Op::Create { at: words.next()?, mode: words.octal()?, excl: false, trunc: false, slot: None },
        "open" => Op::Open { at: words.next()?, write: false, trunc: false, slot: 0 },
        "hold" => Op::Hold { at: words.next()?, slot: words.slot()? },
        "close" => Op::Close { slot: words.slot()? },
        "read" => Op::Read { slot: words.slot()?, offset: words.next()?, len: words.next()? },
        "write" => Op::Write { slot: words.slot()?, offset: words.next()?, data: words.data()? },
        "ftruncate" => Op::Ftruncate { slot: words.slot()?, len: words.next()? },
        "writeat" => Op::WriteAt { at: words.next()?, offset: words.next()?, data: words.data()? },
        "append" => Op::Append { at: words.next()?, data: words.data()? },
        "truncate" => Op::Truncate { at: words.next()?, len: words.next()? },
        "mkdir" => Op::Mkdir { at: words.next()?, mode: words.octal()? },
        "mkfifo" => Op::Mkfifo { at: words.next()?, mode: words.octal()? },
        "mkchar" => Op::Mkchar { at: words.next()?, mode: words.octal()?, rdev: words.next()? },
        "symlink" => Op::Symlink { at: words.next()?, target: words.data()? },
        "link" => Op::Link { from: words.next()?, to: words.next()? },
        "unlink" => Op::Unlink { at: words.next()? },
        "rmdir" => Op::Rmdir { at: words.next()? },
        "rename" => Op::Rename { from: words.next()?, to: words.next()?, how: Move::Replace },
        "chmod" => Op::Chmod { at: words.next()?, mode: words.octal()? },
        "chown" => Op::Chown { at: words.next()?, uid: words.id()?, gid: words.id()? },
        "utimes" => Op::Utimes { at: words.next()?, mtime: words.next()? },
        "setxattr" => Op::SetXattr { at: words.next()?, name: decode(&words.next::<String>()?)?, value: words.data()?, how: How::Any },
        "removexattr" => Op::RemoveXattr { at: words.next()?, name: decode(&words.next::<String>()?)? },
        "readlink" => Op::Readlink { at: words.next()? },
        "list" => Op::List { at: words.next()? },
        "stat" => Op::Stat { at: words.next()? },
        "forget" => Op::Forget,
        "remount" => Op::Remount,
        "restack" => Op::Restack,
        other => return Err(format!("operation {other}")),
    };
    for word in words.0 {
        match (&mut op, word) {
            (Op::Create { excl, .. }, "excl") => *excl = true,
            (Op::Create { trunc, .. } | Op::Open { trunc, .. }, "trunc") => *trunc = true,
            (Op::Open { write, .. }, "write") => *write = true,
            (Op::Create { slot, .. }, word) => *slot = word.parse::<Path>()?.base,
            (Op::Open { slot, .. }, word) => *slot = word.parse::<Path>()?.base.ok_or("slot")?,
            (Op::Rename { how, .. }, "noreplace") => *how = Move::NoReplace,
            (Op::Rename { how, .. }, "exchange") => *how = Move::Exchange,
            (Op::Rename { how, .. }, "whiteout") => *how = Move::Whiteout,
            (Op::SetXattr { how, .. }, "create") => *how = How::Create,
            (Op::SetXattr { how, .. }, "replace") => *how = How::Replace,
            (_, other) => return Err(format!("word {other}")),
        }
    }
    Ok(op)
}

impl FromStr for Case {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let mut case = Self::default();
        let mut in_ops = false;
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let said = |e: String| format!("{line}: {e}");
            if let Some(flags) = line.strip_prefix("ops") {
                in_ops = true;
                case.keep = flags.contains("keep");
                case.devices = flags.contains("devices");
                case.metacopy = flags.contains("metacopy");
            } else if line == "layer" {
                case.lowers.push(LayerSpec::default());
            } else if in_ops {
                case.ops.push(parse_op(line).map_err(said)?);
            } else {
                let (path, entry) = parse_entry(line).map_err(said)?;
                case.lowers.last_mut().ok_or("an entry before the first layer")?.entries.insert(path, entry);
            }
        }
        Ok(case)
    }
}
