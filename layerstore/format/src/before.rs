//! The mark of a metacopy into which data is being copied: the metadata from before, which the copying changes.
//!
//! Of plyfs alone. The value: a version (1), the seconds (8 bytes) and nanoseconds (4) of the time of access, the same of the times of modification and of change,
//! the mode (4), owner (4) and group (4), all little-endian, and the value of `security.capability`, if there was one.

/// A point in time: seconds since 1970 and nanoseconds after them.
pub type Moment = (i64, u32);

/// What a metacopy was before data came.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Before {
    /// Time of last access.
    pub atime: Moment,
    /// Time of last modification.
    pub mtime: Moment,
    /// Time of last change: the copying came later.
    pub ctime: Moment,
    /// Permission bits, 07777.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Value of `security.capability`.
    pub capability: Option<Vec<u8>>,
}

const VERSION: u8 = 1;

impl Before {
    /// Reads the mark; `None` for a value of another form or version.
    #[must_use]
    pub fn parse(value: &[u8]) -> Option<Self> {
        let mut rest = value.strip_prefix(&[VERSION])?;
        let mut moment = || Some((i64::from_le_bytes(take(&mut rest)?), u32::from_le_bytes(take(&mut rest)?)));
        let (atime, mtime, ctime) = (moment()?, moment()?, moment()?);
        let mut number = || Some(u32::from_le_bytes(take(&mut rest)?));
        let (mode, uid, gid) = (number()?, number()?, number()?);
        Some(Self { atime, mtime, ctime, mode, uid, gid, capability: (!rest.is_empty()).then(|| rest.to_vec()) })
    }

    /// The value to write.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut value = vec![VERSION];
        for (sec, nsec) in [self.atime, self.mtime, self.ctime] {
            value.extend_from_slice(&sec.to_le_bytes());
            value.extend_from_slice(&nsec.to_le_bytes());
        }
        for number in [self.mode, self.uid, self.gid] {
            value.extend_from_slice(&number.to_le_bytes());
        }
        value.extend_from_slice(self.capability.as_deref().unwrap_or_default());
        value
    }
}

/// Takes the first `N` bytes off.
fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (first, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(*first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_and_nothing_else_is_read() {
        for capability in [None, Some(vec![1, 0, 0, 2])] {
            let (atime, mtime, ctime) = ((-1, 999_999_999), (i64::MAX, 0), (7, 8));
            let before = Before { atime, mtime, ctime, mode: 0o6755, uid: 1, gid: u32::MAX - 1, capability };
            let value = before.encode();
            assert_eq!(Before::parse(&value), Some(before));
            assert_eq!(Before::parse(&value[..48]), None);
        }
        assert_eq!(Before::parse(b""), None);
        assert_eq!(Before::parse(&[2; 49]), None);
    }
}
