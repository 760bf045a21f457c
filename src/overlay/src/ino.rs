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

/// Maps host identities to numbers. Objects on the first `st_dev`: the host's own number. Further devices: the device's index in bits 55 to 62. The layers'
/// devices are known from the start, in the order of the layers, so that the numbers are the same at each mount; a device that appears inside a layer (a btrfs
/// subvolume) gets the next index.
#[derive(Default)]
pub(crate) struct InoMap {
    devices: RwLock<Vec<u64>>,
}

impl InoMap {
    /// A map that gives the first of these devices the unchanged numbers. A device may be there several times.
    pub(crate) fn new(layers: impl IntoIterator<Item = u64>) -> Self {
        let mut devices = Vec::new();
        for dev in layers {
            if !devices.contains(&dev) {
                devices.push(dev);
            }
        }
        Self { devices: RwLock::new(devices) }
    }

    /// The number of an object; `None` if it does not fit (the table then gives a reserved one).
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
            0 if id.ino < RESERVED => id.ino,
            1..=MAX_DEVICE if id.ino < 1 << DEVICE_SHIFT => id.ino | (device as u64) << DEVICE_SHIFT,
            _ => return None,
        };
        // 0 means "no inode" to readdir's callers, 1 is the root's node id.
        (number > Ino::ROOT.0).then_some(Ino(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_device_keeps_the_hosts_numbers_and_more_devices_do_not_collide() {
        let map = InoMap::new([7]);
        assert_eq!(map.number(ObjectId { dev: 7, ino: 42 }), Some(Ino(42)));
        let other = map.number(ObjectId { dev: 8, ino: 42 }).unwrap();
        assert_ne!(other, Ino(42));
        assert_eq!(map.number(ObjectId { dev: 8, ino: 42 }), Some(other));
        assert_ne!(map.number(ObjectId { dev: 9, ino: 42 }).unwrap(), other);
    }

    #[test]
    fn numbers_do_not_depend_on_what_is_looked_at_first() {
        let map = InoMap::new([7, 8, 7, 9]);
        let ninth = map.number(ObjectId { dev: 9, ino: 42 });
        let again = InoMap::new([7, 8, 7, 9]);
        assert!(again.number(ObjectId { dev: 8, ino: 42 }).is_some());
        assert_eq!(again.number(ObjectId { dev: 9, ino: 42 }), ninth);
    }

    #[test]
    fn zero_one_and_overflow_have_no_pure_number() {
        let map = InoMap::new([7]);
        for ino in [0, 1, RESERVED, u64::MAX] {
            assert_eq!(map.number(ObjectId { dev: 7, ino }), None);
        }
        assert_eq!(map.number(ObjectId { dev: 8, ino: 1 << DEVICE_SHIFT }), None);
    }
}
