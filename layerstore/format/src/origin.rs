//! The value of the origin and upper marks: which object of a layer another one stands for; and the names of index entries.
//!
//! The bytes are the kernel's `struct ovl_fb` (fs/overlayfs/overlayfs.h):
//!
//! | offset | size | field | value |
//! | --- | --- | --- | --- |
//! | 0 | 1 | version | 0 |
//! | 1 | 1 | magic | 0xfb |
//! | 2 | 1 | len | of header and handle, 21 + n |
//! | 3 | 1 | flags | bit 0: handle in big-endian order; bit 1: order does not matter; bit 2: the handle is of an upper object |
//! | 4 | 1 | type | `handle_type` of name_to_handle_at(2), no parent encoded |
//! | 5 | 16 | uuid | of the layer's filesystem, as FS_IOC_GETFSUUID gives it (btrfs: BTRFS_IOC_FS_INFO); zeros without one, or with `uuid=off` |
//! | 21 | n | fid | `f_handle`, as it is |
//!
//! A value says nothing about whether the object exists, or is in a layer of this union: whoever opens the handle checks both.

use crate::change::hex;

/// `OVL_FH_VERSION`.
const VERSION: u8 = 0;

/// `OVL_FH_MAGIC`.
const MAGIC: u8 = 0xfb;

/// `OVL_FH_FLAG_BIG_ENDIAN`.
const BIG_ENDIAN: u8 = 1 << 0;

/// `OVL_FH_FLAG_ANY_ENDIAN`.
const ANY_ENDIAN: u8 = 1 << 1;

/// `OVL_FH_FLAG_PATH_UPPER`.
const PATH_UPPER: u8 = 1 << 2;

/// `OVL_FH_FLAG_ALL`.
const FLAGS: u8 = BIG_ENDIAN | ANY_ENDIAN | PATH_UPPER;

/// `OVL_FH_FLAG_CPU_ENDIAN`: the order in which this machine writes handles.
const CPU_ENDIAN: u8 = if cfg!(target_endian = "big") { BIG_ENDIAN } else { 0 };

/// `sizeof(struct ovl_fb)`.
const HEADER: usize = 21;

/// The longest handle that fits: the length byte counts the header too.
pub const FID_MAX: usize = u8::MAX as usize - HEADER;

/// The identity of an object in a layer: filesystem and file handle.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    /// The filesystem's uuid.
    pub uuid: [u8; 16],
    /// The handle's type, as name_to_handle_at(2) gives it. It fits a byte in every filesystem that the kernel exports.
    pub fid_type: u8,
    /// The handle, at most [`FID_MAX`] bytes.
    pub fid: Vec<u8>,
    /// The object is in the upper (upper marks of index entries), not in a lower.
    pub path_upper: bool,
}

/// Why a value is no origin.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OriginError {
    /// Well formed, but it does not tell the origin here: empty (copied up, origin not known), a later version, unknown flags, or a
    /// handle of a machine of the other byte order. To be taken for "no origin known", as the kernel does.
    #[error("an origin that cannot be told on this machine")]
    Unknown,
    /// No `struct ovl_fb`: wrong magic, or a length that does not fit.
    #[error("a malformed origin")]
    Malformed,
}

impl Origin {
    /// Reads a mark's value. The checks are those of the kernel's `ovl_check_fb_len`, in its order, and that the length covers the
    /// header. Bytes after the length are ignored, as there.
    ///
    /// # Errors
    ///
    /// [`OriginError::Malformed`] where the kernel says `EINVAL`, [`OriginError::Unknown`] where it says `ENODATA`.
    pub fn parse(value: &[u8]) -> Result<Self, OriginError> {
        if value.is_empty() {
            return Err(OriginError::Unknown);
        }
        let Some((&[version, magic, len, flags, fid_type], rest)) = value.split_first_chunk() else {
            return Err(OriginError::Malformed);
        };
        let Some((uuid, rest)) = rest.split_first_chunk::<16>() else {
            return Err(OriginError::Malformed);
        };
        let Some(fid) = usize::from(len).checked_sub(HEADER).and_then(|len| rest.get(..len)) else {
            return Err(OriginError::Malformed);
        };
        if magic != MAGIC {
            return Err(OriginError::Malformed);
        }
        if version > VERSION || flags & !FLAGS != 0 {
            return Err(OriginError::Unknown);
        }
        if flags & ANY_ENDIAN == 0 && flags & BIG_ENDIAN != CPU_ENDIAN {
            return Err(OriginError::Unknown);
        }
        Ok(Self { uuid: *uuid, fid_type, fid: fid.to_vec(), path_upper: flags & PATH_UPPER != 0 })
    }

    /// The value to write, byte for byte what the kernel writes for the same object.
    ///
    /// A handle of more than [`FID_MAX`] bytes, which no kernel gives (128 are its limit), is written as the empty value: copied up,
    /// origin not known.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let Some(len) = self.fid.len().checked_add(HEADER).and_then(|len| u8::try_from(len).ok()) else {
            return Vec::new();
        };
        let flags = CPU_ENDIAN | if self.path_upper { PATH_UPPER } else { 0 };
        [&[VERSION, MAGIC, len, flags, self.fid_type][..], &self.uuid, &self.fid].concat()
    }

    /// The name of the index entry of this object: its encoded form in lower-case hexadecimal.
    ///
    /// A handle of more than 106 bytes gives a name of more than 255, which no directory takes.
    #[must_use]
    pub fn index_name(&self) -> Vec<u8> {
        hex(&self.encode()).into_bytes()
    }

    /// Reads the name of an index entry. Upper-case digits, which the kernel reads too, are refused: no name has two spellings.
    ///
    /// # Errors
    ///
    /// [`OriginError::Malformed`] for what is no such name, temporary entries (`#...`) included; else those of [`Origin::parse`].
    pub fn parse_index_name(name: &[u8]) -> Result<Self, OriginError> {
        let (pairs, rest) = name.as_chunks::<2>();
        if pairs.is_empty() || !rest.is_empty() {
            return Err(OriginError::Malformed);
        }
        let bytes: Option<Vec<u8>> = pairs.iter().map(|&[high, low]| Some(digit(high)? << 4 | digit(low)?)).collect();
        Self::parse(&bytes.ok_or(OriginError::Malformed)?)
    }
}

/// The value of a lower-case hexadecimal digit.
fn digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => byte.checked_sub(b'0'),
        b'a'..=b'f' => byte.checked_sub(b'a').and_then(|value| value.checked_add(10)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        hex.as_bytes().chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
    }

    fn origin() -> impl Strategy<Value = Origin> {
        (any::<[u8; 16]>(), any::<u8>(), prop::collection::vec(any::<u8>(), 0..=FID_MAX), any::<bool>())
            .prop_map(|(uuid, fid_type, fid, path_upper)| Origin { uuid, fid_type, fid, path_upper })
    }

    /// What Linux 6.18 left after a copy-up on a union with `index=on`: the uuid from FS_IOC_GETFSUUID, type and handle of the *lower*
    /// file from name_to_handle_at(2), and the origin attribute of the upper file. btrfs has its uuid from BTRFS_IOC_FS_INFO instead.
    #[cfg(target_endian = "little")]
    #[test]
    fn the_kernels_own_bytes_are_read_and_written() {
        let table = [
            (
                "ext4",
                "9396a6f33ac840d396094d4108147200",
                1,
                "06800000a773e029",
                "00fb1d00019396a6f33ac840d396094d410814720006800000a773e029",
            ),
            (
                "ext4, uuid=off",
                "00000000000000000000000000000000",
                1,
                "06000100b07904f4",
                "00fb1d00010000000000000000000000000000000006000100b07904f4",
            ),
            (
                "xfs",
                "ee7b7395705e43beafc3516e25731c3f",
                0x81,
                "81000400000000008ca469ac",
                "00fb210081ee7b7395705e43beafc3516e25731c3f81000400000000008ca469ac",
            ),
            (
                "btrfs",
                "3bc1d95e78e8461aa4aaa8c738d608d7",
                0x4d,
                "0601000000000000050000000000000007000000",
                "00fb29004d3bc1d95e78e8461aa4aaa8c738d608d70601000000000000050000000000000007000000",
            ),
            (
                "tmpfs",
                "b5c3695c814048cb972d17a450730954",
                1,
                "0da0c4660700000000000000",
                "00fb210001b5c3695c814048cb972d17a4507309540da0c4660700000000000000",
            ),
        ];
        for (filesystem, uuid, fid_type, fid, value) in table {
            let origin = Origin { uuid: bytes(uuid).try_into().unwrap(), fid_type, fid: bytes(fid), path_upper: false };
            assert_eq!(origin.encode(), bytes(value), "{filesystem}");
            assert_eq!(Origin::parse(&bytes(value)), Ok(origin.clone()), "{filesystem}");
            // The same files had two names: the kernel called the index entries so.
            assert_eq!(origin.index_name(), value.as_bytes(), "{filesystem}");
            assert_eq!(Origin::parse_index_name(value.as_bytes()), Ok(origin), "{filesystem}");
        }
    }

    /// The upper mark of the index directory, which holds the handle of the upper's root (ext4, as above).
    #[cfg(target_endian = "little")]
    #[test]
    fn the_kernels_upper_mark_is_read_and_written() {
        let value = bytes("00fb1d04019396a6f33ac840d396094d4108147200038000005a5391e0");
        let origin = Origin::parse(&value).unwrap();
        assert!(origin.path_upper);
        assert_eq!(origin.fid, bytes("038000005a5391e0"));
        assert_eq!(origin.encode(), value);
    }

    #[test]
    fn hostile_values_are_told_from_unknown_ones() {
        let origin = Origin { uuid: [7; 16], fid_type: 1, fid: vec![1, 2, 3, 4], path_upper: false };
        let good = origin.encode();
        let with = |at: usize, byte: u8| {
            let mut value = good.clone();
            value[at] = byte;
            value
        };
        let table = [
            ("empty: origin not known", vec![], OriginError::Unknown),
            ("later version", with(0, 1), OriginError::Unknown),
            ("unknown flag", with(3, CPU_ENDIAN | 8), OriginError::Unknown),
            ("other byte order", with(3, CPU_ENDIAN ^ BIG_ENDIAN), OriginError::Unknown),
            ("wrong magic", with(1, 0xfa), OriginError::Malformed),
            ("length beyond the value", with(2, 26), OriginError::Malformed),
            ("length below the header", with(2, 20), OriginError::Malformed),
            ("length of nothing", with(2, 0), OriginError::Malformed),
            ("cut in the handle", good[..24].to_vec(), OriginError::Malformed),
            ("cut in the header", good[..20].to_vec(), OriginError::Malformed),
            ("one byte", vec![0], OriginError::Malformed),
        ];
        for (what, value, error) in table {
            assert_eq!(Origin::parse(&value), Err(error), "{what}");
        }
        assert_eq!(Origin::parse(&with(3, CPU_ENDIAN ^ BIG_ENDIAN | ANY_ENDIAN)), Ok(origin.clone()), "any byte order");
        assert_eq!(Origin::parse(&[&good[..], b"tail"].concat()), Ok(origin), "bytes after the length");
    }

    #[test]
    fn a_handle_that_does_not_fit_is_an_origin_not_known() {
        let with = |len| Origin { uuid: [0; 16], fid_type: 1, fid: vec![0; len], path_upper: false };
        assert_eq!(with(FID_MAX).encode().len(), 255);
        assert_eq!(with(FID_MAX + 1).encode(), b"");
        assert_eq!(Origin::parse(&with(FID_MAX + 1).encode()), Err(OriginError::Unknown));
        assert_eq!(with(106).index_name().len(), 254);
    }

    #[test]
    fn names_that_are_no_index_entry_are_refused() {
        for name in [&b""[..], b"#1f", b"0", b"zz", b"00FB1d", b"work", b"00fb"] {
            assert_eq!(Origin::parse_index_name(name), Err(OriginError::Malformed), "{}", name.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(origin in origin()) {
            prop_assert_eq!(Origin::parse(&origin.encode()), Ok(origin));
        }

        #[test]
        fn index_names_are_read_back(mut origin in origin()) {
            origin.fid.truncate(106);
            prop_assert_eq!(Origin::parse_index_name(&origin.index_name()), Ok(origin));
        }

        #[test]
        fn any_bytes_are_read_or_refused(value in prop::collection::vec(any::<u8>(), 0..40), fixed in any::<bool>()) {
            let value = if fixed { [&[0, MAGIC][..], &value].concat() } else { value };
            if let Ok(origin) = Origin::parse(&value) {
                prop_assert!(origin.encode().len() <= value.len());
            }
        }
    }
}
