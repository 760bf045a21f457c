//! `Ino`: inode numbers, a pure function of the origin.

use parking_lot::RwLock;

use crate::backend::ObjectId;

/// An inode number of the union. It is st_ino, d_ino and the FUSE node id, save for the root, whose node id is 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ino(pub u64);

impl Ino {
    /// The root's node id.
    pub const ROOT: Self = Self(1);
}

/// First number of the range that is given out where the pure number is taken or cannot be had.
pub(crate) const RESERVED: u64 = 1 << 63;
/// The device's index stands from this bit on (the kernel calls this xino).
const DEVICE_SHIFT: u32 = 55;
const MAX_DEVICE: usize = 0xff;
/// Numbers made of identities that do not fit: the upper half of the reserved range. Where two are made equal the table gives a number of the lower half.
const FOLDED: u64 = RESERVED | 1 << 62;

/// Spreads a device's index and a number over 64 bits (the finalizer of splitmix64).
fn fold(device: u64, ino: u64) -> u64 {
    let mut mixed = ino ^ device.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

/// Maps host identities to numbers. Objects on the first `st_dev`: the host's own number. Further devices: the device's index in bits 55 to 62. The layers'
/// devices are known from the start, in the order of the layers, so that the numbers are the same at each mount; a device that appears inside a layer (a btrfs
/// subvolume) gets the next index.
#[derive(Default)]
pub(crate) struct InoMap {
    devices: RwLock<Vec<u64>>,
    /// Every number is the host's own.
    plain: bool,
}

impl InoMap {
    /// A map that gives the first of these devices the unchanged numbers. A device may be there several times.
    /// `plain`: all devices have theirs unchanged.
    pub(crate) fn new(layers: impl IntoIterator<Item = u64>, plain: bool) -> Self {
        let mut devices = Vec::new();
        for dev in layers {
            if !devices.contains(&dev) {
                devices.push(dev);
            }
        }
        Self { devices: RwLock::new(devices), plain }
    }

    /// The number of an object; `None` for the two that mean something else (the table then gives a reserved one).
    pub(crate) fn number(&self, id: ObjectId) -> Option<Ino> {
        let known = self.devices.read().iter().position(|&dev| dev == id.dev);
        let device = known.unwrap_or_else(|| {
            let mut devices = self.devices.write();
            devices.iter().position(|&dev| dev == id.dev).unwrap_or_else(|| {
                devices.push(id.dev);
                devices.len() - 1
            })
        });
        let number = match device {
            _ if (device == 0 || self.plain) && id.ino < RESERVED => id.ino,
            1..=MAX_DEVICE if id.ino < 1 << DEVICE_SHIFT => id.ino | (device as u64) << DEVICE_SHIFT,
            // Of a union of unions: every number is this large.
            _ => return Some(Ino(FOLDED | (fold(device as u64, id.ino) >> 2))),
        };
        // 0 means "no inode" to readdir's callers, 1 is the root's node id.
        (number > Ino::ROOT.0).then_some(Ino(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_numbers_are_the_hosts_on_all_devices() {
        let map = InoMap::new([7, 8], true);
        for dev in [7, 8, 9] {
            assert_eq!(map.number(ObjectId { dev, ino: 42 }), Some(Ino(42)));
        }
        assert_eq!(map.number(ObjectId { dev: 8, ino: 1 }), None);
    }

    #[test]
    fn one_device_keeps_the_hosts_numbers_and_more_devices_do_not_collide() {
        let map = InoMap::new([7], false);
        assert_eq!(map.number(ObjectId { dev: 7, ino: 42 }), Some(Ino(42)));
        let other = map.number(ObjectId { dev: 8, ino: 42 }).unwrap();
        assert_ne!(other, Ino(42));
        assert_eq!(map.number(ObjectId { dev: 8, ino: 42 }), Some(other));
        assert_ne!(map.number(ObjectId { dev: 9, ino: 42 }).unwrap(), other);
    }

    #[test]
    fn numbers_do_not_depend_on_what_is_looked_at_first() {
        let map = InoMap::new([7, 8, 7, 9], false);
        let ninth = map.number(ObjectId { dev: 9, ino: 42 });
        let again = InoMap::new([7, 8, 7, 9], false);
        assert!(again.number(ObjectId { dev: 8, ino: 42 }).is_some());
        assert_eq!(again.number(ObjectId { dev: 9, ino: 42 }), ninth);
    }

    #[test]
    fn zero_and_one_have_no_pure_number_and_what_does_not_fit_has_a_folded_one() {
        let map = InoMap::new([7], false);
        for ino in [0, 1] {
            assert_eq!(map.number(ObjectId { dev: 7, ino }), None);
        }
        let mut seen = std::collections::HashSet::new();
        for (dev, ino) in [(7, RESERVED), (7, u64::MAX), (8, 1 << DEVICE_SHIFT), (8, RESERVED), (8, u64::MAX), (9, 1 << DEVICE_SHIFT)] {
            let number = map.number(ObjectId { dev, ino }).unwrap();
            assert!(number.0 >= FOLDED && seen.insert(number), "{dev} {ino}");
            assert_eq!(map.number(ObjectId { dev, ino }), Some(number));
        }
    }
}
