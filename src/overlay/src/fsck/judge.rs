//! What a mark's own value says of it, and what mends it.

use plyfs_format::{Before, ESCAPED_WHITEOUT_RDEV, MarkKind, Nlink, Opaque, Origin, OriginError, Protattr, Redirect, users_can_set};
use plyfs_sys::stat::Kind;

/// The object that bears a mark.
pub(super) struct Object {
    pub(super) kind: Kind,
    pub(super) rdev: u64,
    /// It is the root of the upper.
    pub(super) root: bool,
    pub(super) metacopy: bool,
    /// It is in the index.
    pub(super) indexed: bool,
}

/// What is wrong with a mark.
pub(super) struct Fault {
    pub(super) why: String,
    pub(super) fix: Fix,
}

/// What mends a mark.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fix {
    /// It means nothing as it is: away with it.
    Remove,
    /// Another value.
    Write(Vec<u8>),
    /// Where it leads is not known: the directory hides what is below it, as a lenient mount shows it.
    Hide,
    /// Nothing that could be done without a person. With the remedy.
    Left(&'static str),
}

const LATER: &str = "use it with the version that wrote it";

/// Judges one mark of the upper.
pub(super) fn mark(object: &Object, name: &[u8], kind: Option<MarkKind>, value: &[u8]) -> Option<Fault> {
    let fault = |why: &str, fix| Some(Fault { why: why.to_owned(), fix });
    let (file, dir) = (object.kind == Kind::File, object.kind == Kind::Dir);
    let misplaced = || fault("it means nothing on this kind of object", Fix::Remove);
    let Some(kind) = kind else {
        // What every user can set says nothing of versions.
        let unknown = || {
            fault("not known to this version", Fix::Left("use it with the version that wrote it, or take the mark away with 'setfattr -x'"))
        };
        return if users_can_set(name) { None } else { unknown() };
    };
    let leads = users_can_set(name) && matches!(kind, MarkKind::Redirect | MarkKind::Metacopy);
    match kind {
        MarkKind::Opaque if !dir => misplaced(),
        MarkKind::Opaque if Opaque::parse(value) == Opaque::No => fault("neither y nor x: it means nothing", Fix::Remove),
        // What the kernel leaves on a file that has got its data means nothing.
        MarkKind::Redirect if !dir && !object.metacopy => None,
        _ if leads => {
            fault("not honoured where every user can set it", Fix::Left("mount it with --lenient, which shows it without the mark"))
        }
        MarkKind::Redirect => match Redirect::parse(value) {
            Ok(_) => None,
            Err(why) if dir => Some(Fault { why: why.to_string(), fix: Fix::Hide }),
            Err(why) => Some(Fault { why: why.to_string(), fix: Fix::Left("write where its data is into the mark, or remove the file") }),
        },
        MarkKind::Metacopy if !file => misplaced(),
        MarkKind::Metacopy => metacopy(value),
        MarkKind::Origin => match Origin::parse(value) {
            // The index has what it takes to write it anew.
            Err(OriginError::Malformed) if !object.indexed => fault("a malformed origin", Fix::Remove),
            _ => None,
        },
        MarkKind::Nlink if Nlink::parse(value).is_none() => {
            // Too many rather than too few: the last name must not take content along that another name shows. The next clean end counts them.
            let fix = if object.indexed { Fix::Write(Nlink::Upper(0).encode()) } else { Fix::Remove };
            fault("not a count of links", fix)
        }
        MarkKind::Impure if !dir => misplaced(),
        MarkKind::Uuid if !object.root => misplaced(),
        MarkKind::Uuid if value.len() != 16 => fault("not 16 bytes", Fix::Remove),
        MarkKind::Protattr if !file && !dir => misplaced(),
        MarkKind::Protattr if Protattr::parse(value).is_none() => fault("neither a nor i nor both: it protects nothing", Fix::Remove),
        MarkKind::Before if !object.metacopy => fault("it means nothing on a file with its data", Fix::Remove),
        MarkKind::Before => match (Before::parse(value), value.first()) {
            (Some(_), _) => None,
            (None, Some(2..)) => fault("of another version", Fix::Left(LATER)),
            (None, _) => fault("not the metadata of a file", Fix::Remove),
        },
        MarkKind::Device if object.kind != Kind::Char || object.rdev != ESCAPED_WHITEOUT_RDEV || value != b"0:0" => {
            fault("it means nothing but on a device 0:1, with the value 0:0", Fix::Remove)
        }
        MarkKind::Upper => fault("it means nothing outside of the index", Fix::Remove),
        MarkKind::Opaque
        | MarkKind::Nlink
        | MarkKind::Impure
        | MarkKind::Uuid
        | MarkKind::Protattr
        | MarkKind::Device
        | MarkKind::Whiteout => None,
    }
}

/// The value is nothing, or a digest: version, length, flags, algorithm and the digest (`struct ovl_metacopy` of the kernel).
pub(crate) fn metacopy(value: &[u8]) -> Option<Fault> {
    const LONGEST: usize = 4 + 64;
    match value {
        [] => None,
        [version, ..] if *version > 0 => Some(Fault { why: "of another version".to_owned(), fix: Fix::Left(LATER) }),
        [_, length, _, _, ..] if usize::from(*length) == value.len() && value.len() <= LONGEST => None,
        _ => Some(Fault { why: "neither empty nor a digest".to_owned(), fix: Fix::Write(Vec::new()) }),
    }
}
