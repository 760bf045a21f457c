//! The nlink mark: how many links the union shows for an object of the index of hard links.
//!
//! The value is a letter and a signed number (`fs/overlayfs/inode.c`, `ovl_set_nlink_common`): `U+1` says one link more than the upper
//! object's own count, `L-1` one less than the lower object's. The union writes `L` before a step that changes the upper's count and `U` after it, so that a
//! crash in between changes nothing.

/// A parsed nlink mark.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum Nlink {
    /// To be added to the link count of the upper object.
    Upper(i64),
    /// To be added to the link count of the lower object.
    Lower(i64),
}

impl Nlink {
    /// Reads the mark; `None` for a value that is no such mark, which the kernel takes for "not told".
    #[must_use]
    pub fn parse(value: &[u8]) -> Option<Self> {
        let text = str::from_utf8(value).ok()?;
        let (base, number) = text.split_at_checked(1)?;
        let delta = number.parse().ok()?;
        match base {
            "U" => Some(Self::Upper(delta)),
            "L" => Some(Self::Lower(delta)),
            _ => None,
        }
    }

    /// The value to write.
    #[must_use]
    pub fn encode(self) -> Vec<u8> {
        match self {
            Self::Upper(delta) => format!("U{delta:+}"),
            Self::Lower(delta) => format!("L{delta:+}"),
        }
        .into_bytes()
    }

    /// The links that the union shows, given what both objects count themselves.
    #[must_use]
    pub fn shown(self, upper: u32, lower: u32) -> i64 {
        match self {
            Self::Upper(delta) => i64::from(upper).saturating_add(delta),
            Self::Lower(delta) => i64::from(lower).saturating_add(delta),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_values() {
        for (value, mark) in [(&b"U+0"[..], Nlink::Upper(0)), (b"U-1", Nlink::Upper(-1)), (b"L+2", Nlink::Lower(2))] {
            assert_eq!(Nlink::parse(value), Some(mark));
            assert_eq!(mark.encode(), value);
        }
        for bad in [&b""[..], b"U", b"X+1", b"U1x", b"\xff+1"] {
            assert_eq!(Nlink::parse(bad), None, "{bad:?}");
        }
        assert_eq!(Nlink::Upper(-1).shown(3, 9), 2);
        assert_eq!(Nlink::Lower(-1).shown(3, 9), 8);
    }
}
