//! The table of mounts, `/proc/PID/mountinfo`, in bytes: paths in it need not be text.

use std::fs::File;
use std::io::Read;

use crate::{Errno, Result};

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountInfo {
    /// The number of the mount, unique as long as it exists.
    pub id: u64,
    /// The number of the mount that it is mounted on; of itself for the top of the tree.
    pub parent: u64,
    /// Major and minor number of the filesystem's device.
    pub dev: (u32, u32),
    /// The directory or file of the filesystem that is the root of this mount.
    pub root: Vec<u8>,
    /// Where it is mounted, as seen from the reader's root directory.
    pub mountpoint: Vec<u8>,
    /// Options of the mount, separated by commas.
    pub options: Vec<u8>,
    /// Propagation: `shared:N`, `master:N`, `propagate_from:N`, `unbindable`.
    pub optional: Vec<Vec<u8>>,
    /// The type of the filesystem, with its subtype.
    pub fstype: Vec<u8>,
    /// What was mounted, if anything.
    pub source: Vec<u8>,
    /// Options of the filesystem, separated by commas.
    pub super_options: Vec<u8>,
}

/// The table.
pub type Mounts = Vec<MountInfo>;

impl MountInfo {
    /// Whether the mount has this option.
    pub fn has_option(&self, name: &[u8]) -> bool {
        has(&self.options, name)
    }

    /// Whether the filesystem has this option.
    pub fn has_super_option(&self, name: &[u8]) -> bool {
        has(&self.super_options, name)
    }

    /// Whether nothing can be written through it: the mount or the filesystem is read-only.
    pub fn is_read_only(&self) -> bool {
        self.has_option(b"ro") || self.has_super_option(b"ro")
    }

    fn parse(line: &[u8]) -> Option<MountInfo> {
        let mut fields = line.split(|&byte| byte == b' ');
        let id = number(fields.next()?)?;
        let parent = number(fields.next()?)?;
        let mut dev = fields.next()?.split(|&byte| byte == b':');
        let dev = (u32::try_from(number(dev.next()?)?).ok()?, u32::try_from(number(dev.next()?)?).ok()?);
        let root = unescape(fields.next()?);
        let mountpoint = unescape(fields.next()?);
        let options = unescape(fields.next()?);
        let mut optional = Vec::new();
        loop {
            match fields.next()? {
                b"-" => break,
                field => optional.push(field.to_vec()),
            }
        }
        let fstype = unescape(fields.next()?);
        // An empty source is an empty field, and some filesystems have no options of their own.
        let source = unescape(fields.next().unwrap_or_default());
        let super_options = unescape(fields.next().unwrap_or_default());
        Some(MountInfo { id, parent, dev, root, mountpoint, options, optional, fstype, source, super_options })
    }
}

fn has(list: &[u8], name: &[u8]) -> bool {
    list.split(|&byte| byte == b',').any(|option| option == name)
}

fn number(field: &[u8]) -> Option<u64> {
    core::str::from_utf8(field).ok()?.parse().ok()
}

/// Undoes the kernel's `\ooo`. Anything else after a backslash is left as it is.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        if let (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) = (byte, tail) {
            out.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
            rest = after;
        } else {
            out.push(byte);
            rest = tail;
        }
    }
    out
}

/// Reads a table of mounts.
///
/// # Errors
///
/// `EBADMSG` when a line is not in the format of proc(5).
pub fn parse_mountinfo(table: &[u8]) -> Result<Mounts> {
    table.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).map(|line| MountInfo::parse(line).ok_or(Errno::BADMSG)).collect()
}

/// The mounts that this process can reach from its root directory, in the order of the kernel's tree: a mount after its parent.
///
/// # Errors
///
/// `ENOENT` when `/proc` is not mounted.
pub fn mounts() -> Result<Mounts> {
    read("/proc/self/mountinfo")
}

/// The mounts that another process can reach.
///
/// # Errors
///
/// `ENOENT` when there is no such process.
pub fn mounts_of(pid: u32) -> Result<Mounts> {
    read(&format!("/proc/{pid}/mountinfo"))
}

fn read(path: &str) -> Result<Mounts> {
    let errno = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    let mut table = Vec::new();
    // One open for the whole table: the kernel shows one state of the namespace as long as it does not change in between.
    let mut file = File::open(path).map_err(errno)?;
    file.read_to_end(&mut table).map_err(errno)?;
    parse_mountinfo(&table)
}
