//! Direct I/O and the page cache on one file, which fsx does not mix: random operations, each read compared with what was written.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use rustix::fs::{FallocateFlags, OFlags, fallocate};

use crate::lab::{lab, noise};

const SIZE: usize = 200_000;

#[test]
fn direct_and_cached_descriptors_read_what_each_other_wrote() {
    let mut lab = lab!();
    let mut model = noise(7, SIZE);
    lab.write_lower("file", &model);
    lab.mount();
    let open = |flags: OFlags| {
        OpenOptions::new().read(true).write(true).custom_flags(i32::try_from(flags.bits()).unwrap()).open(lab.mnt("file")).unwrap()
    };
    let files = [open(OFlags::DIRECT), open(OFlags::empty())];
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let operations = crate::fsx::operations();
    let mut random =
        noise(seed, operations * 32).chunks_exact(8).map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap())).collect::<Vec<_>>();
    let mut next = move |below: usize| (random.pop().unwrap() >> 8) as usize % below;
    for number in 0..operations {
        let (what, which) = (next(20), next(2));
        // Half of the operations are of whole sectors.
        let align = if next(2) == 0 { 512 } else { 1 };
        let dice = next(1 << 40);
        let at = dice % SIZE / align * align;
        let len = (dice >> 20) % 20_000 / align * align;
        let file = &files[which];
        match what {
            0..9 => {
                let mut data = vec![0xee; len];
                let count = file.read_at(&mut data, at as u64).unwrap();
                let expected = &model[at.min(model.len())..(at + len).min(model.len())];
                assert!(data[..count] == *expected, "seed {seed}, operation {number}: read of {len} at {at} by {which}: {count} bytes");
            }
            9..18 => {
                let data = noise(number as u64, len);
                file.write_all_at(&data, at as u64).unwrap();
                if len > 0 {
                    model.resize(model.len().max(at + len), 0);
                    model[at..at + len].copy_from_slice(&data);
                }
            }
            18 => {
                file.set_len(at as u64).unwrap();
                model.resize(at, 0);
            }
            _ if len > 0 => {
                fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, at as u64, len as u64).unwrap();
                let end = (at + len).min(model.len());
                model[at.min(end)..end].fill(0);
            }
            _ => {}
        }
        assert_eq!(file.metadata().unwrap().len(), model.len() as u64, "seed {seed}, operation {number}");
    }
    drop(files);
    assert!(fs::read(lab.mnt("file")).unwrap() == model, "seed {seed}");
    lab.unmount();
    assert!(fs::read(lab.upper("file")).unwrap() == model, "seed {seed}");
}
