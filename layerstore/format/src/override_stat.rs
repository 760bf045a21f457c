//! The attribute in which rootless tools keep the owner, mode and kind that a file is to show (`containers/storage`, `fuse-overlayfs`).
//!
//! `uid:gid:mode` with the mode in octal, and after a further colon the kind: `dir`, `file`, `symlink`, `pipe`, `socket`, `block-M-N`, `char-M-N` (`blockM:N` is
//! written, too). Any owner of a file can set it, so it counts only where the mount says so.

/// The attribute.
pub const OVERRIDE_STAT: &[u8] = b"user.containers.override_stat";

/// What the names of this attribute and its like begin with; where one counts, users see none.
pub const OVERRIDE_PREFIX: &[u8] = b"user.containers.override_";

/// What a file is to show.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct OverrideStat {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits, 07777.
    pub mode: u32,
    /// The kind; `None`: that of the file.
    pub kind: Option<OverrideKind>,
}

/// The kind that a file is to show.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum OverrideKind {
    /// A directory.
    Dir,
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
    /// A fifo.
    Fifo,
    /// A socket.
    Socket,
    /// A block device with its major and minor number.
    Block(u32, u32),
    /// A character device with its major and minor number.
    Char(u32, u32),
}

impl OverrideStat {
    /// The attribute's value, as containers/storage writes it.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let Self { uid, gid, mode, kind } = self;
        let kind = match kind {
            None => String::new(),
            Some(OverrideKind::Dir) => ":dir".to_owned(),
            Some(OverrideKind::File) => ":file".to_owned(),
            Some(OverrideKind::Symlink) => ":symlink".to_owned(),
            Some(OverrideKind::Fifo) => ":pipe".to_owned(),
            Some(OverrideKind::Socket) => ":socket".to_owned(),
            Some(OverrideKind::Block(major, minor)) => format!(":block-{major}-{minor}"),
            Some(OverrideKind::Char(major, minor)) => format!(":char-{major}-{minor}"),
        };
        format!("{uid}:{gid}:0{mode:o}{kind}").into_bytes()
    }

    /// Reads the attribute's value; `None` for one that breaks the form.
    #[must_use]
    pub fn parse(value: &[u8]) -> Option<Self> {
        let mut fields = str::from_utf8(value).ok()?.splitn(4, ':');
        let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let mode = u32::from_str_radix(fields.next()?, 8).ok().filter(|mode| *mode <= 0o7777)?;
        let kind = match fields.next() {
            None => None,
            Some(kind) => Some(parse_kind(kind)?),
        };
        Some(Self { uid, gid, mode, kind })
    }
}

/// What stands before the names of this attribute and its like.
const FAMILY: &[u8] = b"user.containers.";

/// What stands after that in an escaped name.
const ESCAPE: &[u8] = b"overlay.";

/// The name on disk of the attribute that a user calls `name`, where [`OVERRIDE_STAT`] counts: one of its like gets one more `overlay.`, as marks do.
#[must_use]
pub fn escape_override(name: &[u8]) -> Vec<u8> {
    match name.strip_prefix(FAMILY) {
        Some(rest) if name.starts_with(OVERRIDE_PREFIX) || rest.starts_with(ESCAPE) => [FAMILY, ESCAPE, rest].concat(),
        _ => name.to_vec(),
    }
}

/// The name that a user sees of the attribute `name` on disk, where [`OVERRIDE_STAT`] counts; `None` for one that users do not see.
#[must_use]
pub fn shown_override(name: &[u8]) -> Option<Vec<u8>> {
    if name.starts_with(OVERRIDE_PREFIX) {
        return None;
    }
    let escaped = name.strip_prefix(FAMILY).and_then(|rest| rest.strip_prefix(ESCAPE));
    Some(escaped.map_or_else(|| name.to_vec(), |rest| [FAMILY, rest].concat()))
}

fn parse_kind(text: &str) -> Option<OverrideKind> {
    let device = |numbers: &str| {
        let numbers = numbers.strip_prefix('-').unwrap_or(numbers);
        let (major, minor) = numbers.split_once(['-', ':'])?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    };
    Some(match text {
        "dir" => OverrideKind::Dir,
        "file" => OverrideKind::File,
        "symlink" => OverrideKind::Symlink,
        "pipe" => OverrideKind::Fifo,
        "socket" => OverrideKind::Socket,
        _ => match (text.strip_prefix("block"), text.strip_prefix("char")) {
            (Some(numbers), _) => device(numbers).map(|(major, minor)| OverrideKind::Block(major, minor))?,
            (_, Some(numbers)) => device(numbers).map(|(major, minor)| OverrideKind::Char(major, minor))?,
            _ => return None,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_other_tools_are_read() {
        let shown = |kind| Some(OverrideStat { uid: 0, gid: 6, mode: 0o4755, kind });
        for (value, kind) in [
            ("0:6:4755", None),
            ("0:6:04755", None),
            ("0:6:4755:dir", Some(OverrideKind::Dir)),
            ("0:6:4755:file", Some(OverrideKind::File)),
            ("0:6:4755:symlink", Some(OverrideKind::Symlink)),
            ("0:6:4755:pipe", Some(OverrideKind::Fifo)),
            ("0:6:4755:socket", Some(OverrideKind::Socket)),
            ("0:6:4755:block-8-0", Some(OverrideKind::Block(8, 0))),
            ("0:6:4755:char-1-3", Some(OverrideKind::Char(1, 3))),
            ("0:6:4755:char1:3", Some(OverrideKind::Char(1, 3))),
        ] {
            assert_eq!(OverrideStat::parse(value.as_bytes()), shown(kind), "{value}");
        }
        for bad in ["", "0", "0:0", "0:0:9", "0:0:100644", "-1:0:644", "0:0:644:", "0:0:644:door", "0:0:644:block-8", "\u{e9}:0:644"] {
            assert_eq!(OverrideStat::parse(bad.as_bytes()), None, "{bad}");
        }
        assert!(OVERRIDE_STAT.starts_with(OVERRIDE_PREFIX));
    }

    #[test]
    fn what_is_written_is_read() {
        for kind in ["", ":dir", ":file", ":symlink", ":pipe", ":socket", ":block-8-0", ":char-1-3"] {
            let value = format!("1000:6:04755{kind}");
            assert_eq!(OverrideStat::parse(value.as_bytes()).unwrap().encode(), value.as_bytes());
        }
    }

    #[test]
    fn names_of_users_are_escaped_and_shown_as_they_were() {
        for name in [
            "user.containers.override_stat",
            "user.containers.overlay.override_stat",
            "user.containers.overlay.x",
            "user.containers.x",
            "user.x",
        ] {
            let disk = escape_override(name.as_bytes());
            assert!(!disk.starts_with(OVERRIDE_PREFIX), "{name}");
            assert_eq!(shown_override(&disk).as_deref(), Some(name.as_bytes()));
        }
        assert_eq!(escape_override(b"user.containers.x"), b"user.containers.x");
        assert_eq!(shown_override(OVERRIDE_STAT), None);
    }
}
