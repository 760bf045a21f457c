//! Default ACLs: what a new object inherits (POSIX 1003.1e draft 17, 23.1.2; the kernel's `posix_acl_create`).
//!
//! The xattr form is the kernel's: a version word 2, then entries of tag, permissions (u16 each) and id (u32), little-endian.

/// Name of the default ACL's xattr.
pub(crate) const DEFAULT: &[u8] = b"system.posix_acl_default";
/// Name of the access ACL's xattr.
pub(crate) const ACCESS: &[u8] = b"system.posix_acl_access";

const VERSION: [u8; 4] = [2, 0, 0, 0];
const USER_OBJ: u16 = 0x01;
const GROUP_OBJ: u16 = 0x04;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// What a new object gets from its directory.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Inherited {
    /// Permission bits, with the ACL or the umask applied; setuid, setgid and sticky as asked.
    pub(crate) mode: u32,
    access: Option<Vec<u8>>,
    default: Option<Vec<u8>>,
}

impl Inherited {
    /// Without a default ACL: the mode, less the umask.
    pub(crate) fn from_umask(mode: u32, umask: u32) -> Self {
        Self { mode: mode & !umask, access: None, default: None }
    }

    /// The xattrs to write.
    pub(crate) fn xattrs(&self) -> impl Iterator<Item = (&'static [u8], &[u8])> {
        let access = self.access.as_deref().map(|value| (ACCESS, value));
        let default = self.default.as_deref().map(|value| (DEFAULT, value));
        access.into_iter().chain(default)
    }
}

/// Applies a directory's default ACL to a new object of this mode. The umask has no say then.
///
/// Errors: a value that is no ACL.
pub(crate) fn inherit(default: &[u8], mode: u32, is_dir: bool) -> Result<Inherited, &'static str> {
    let (version, entries) = default.split_first_chunk::<4>().ok_or("default ACL: too short")?;
    let (entries, rest) = entries.as_chunks::<8>();
    if *version != VERSION || !rest.is_empty() {
        return Err("default ACL: unknown form");
    }
    let has_mask = entries.iter().any(|entry| tag(entry) == MASK);
    let mut access = version.to_vec();
    let mut granted = mode & !0o777;
    for entry in entries {
        let asked = match tag(entry) {
            USER_OBJ => Some(6),
            // The mask stands for the group class; without one the owning group does.
            MASK => Some(3),
            GROUP_OBJ if !has_mask => Some(3),
            OTHER => Some(0),
            _ => None,
        };
        let mut entry = *entry;
        if let Some(shift) = asked {
            let permissions = u32::from(permissions(&entry)) & (mode >> shift) & 7;
            granted |= permissions << shift;
            entry[2..4].copy_from_slice(&u16::try_from(permissions).unwrap_or_default().to_le_bytes());
        }
        access.extend_from_slice(&entry);
    }
    // Three entries are what the mode bits say already.
    let access = (entries.len() > 3).then_some(access);
    Ok(Inherited { mode: granted, access, default: is_dir.then(|| default.to_vec()) })
}

fn tag(entry: &[u8; 8]) -> u16 {
    u16::from_le_bytes([entry[0], entry[1]])
}

fn permissions(entry: &[u8; 8]) -> u16 {
    u16::from_le_bytes([entry[2], entry[3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut value = VERSION.to_vec();
        for (tag, perm, id) in entries {
            value.extend(tag.to_le_bytes());
            value.extend(perm.to_le_bytes());
            value.extend(id.to_le_bytes());
        }
        value
    }

    #[test]
    fn minimal_acl_becomes_the_mode_alone() {
        let default = acl(&[(USER_OBJ, 7, u32::MAX), (GROUP_OBJ, 5, u32::MAX), (OTHER, 0, u32::MAX)]);
        let got = inherit(&default, 0o666, false).unwrap();
        assert_eq!(got.mode, 0o640);
        assert_eq!(got.xattrs().count(), 0);
    }

    #[test]
    fn mask_stands_for_the_group_and_directories_pass_the_default_on() {
        let default = acl(&[(USER_OBJ, 7, u32::MAX), (2, 7, 1000), (GROUP_OBJ, 5, u32::MAX), (MASK, 7, u32::MAX), (OTHER, 5, u32::MAX)]);
        let got = inherit(&default, 0o2750, true).unwrap();
        assert_eq!(got.mode, 0o2750);
        let names: Vec<_> = got.xattrs().map(|(name, _)| name).collect();
        assert_eq!(names, [ACCESS, DEFAULT]);
        let access = got.access.unwrap();
        assert_eq!(access[4 + 3 * 8 + 2], 5, "the mask is cut to the group bits of the mode");
    }

    #[test]
    fn odd_values_are_refused() {
        assert!(inherit(b"", 0o644, false).is_err());
        assert!(inherit(&[3, 0, 0, 0], 0o644, false).is_err());
        assert!(inherit(&[2, 0, 0, 0, 1], 0o644, false).is_err());
    }
}
