use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use super::*;
use crate::Errno;
use crate::create::{create, tmpfile};
use crate::testing::Dir;

const MIB: u64 = 1 << 20;

/// A file with data at the given offsets, one block each, and this length.
fn sparse(dir: &Dir, name: &str, data: &[u64], len: u64) -> OwnedFd {
    let fd = create(dir.as_fd(), name.as_bytes(), 0o600).unwrap();
    for &offset in data {
        pwrite(fd.as_fd(), &[b'd'; 4096], offset).unwrap();
    }
    truncate(fd.as_fd(), len).unwrap();
    fd
}

fn contents(fd: &OwnedFd) -> Vec<u8> {
    let mut bytes = vec![0; rustix::fs::fstat(fd).unwrap().st_size as usize];
    assert_eq!(pread(fd.as_fd(), &mut bytes, 0).unwrap(), bytes.len());
    bytes
}

fn extents(fd: &OwnedFd) -> Vec<(u64, u64)> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Ok(start) = seek_data(fd.as_fd(), at) {
        at = seek_hole(fd.as_fd(), start).unwrap();
        found.push((start, at));
    }
    found
}

/// Whether all data of `copy` lies where `original` has data: filesystems may allocate more of the original than was written.
fn keeps_holes(original: &OwnedFd, copy: &OwnedFd) -> bool {
    let original = extents(original);
    extents(copy).into_iter().all(|(start, end)| original.iter().any(|&(from, to)| from <= start && end <= to))
}

#[test]
fn pread_stops_at_the_end_and_pwrite_extends() {
    let dir = Dir::new();
    let fd = create(dir.as_fd(), b"f", 0o600).unwrap();
    let mut buffer = [0xff; 8];
    assert_eq!(pread(fd.as_fd(), &mut buffer, 0), Ok(0));
    assert_eq!(pwrite(fd.as_fd(), b"abc", 2), Ok(3));
    assert_eq!(pwrite(fd.as_fd(), b"", 100), Ok(0));
    assert_eq!(pread(fd.as_fd(), &mut buffer, 0), Ok(5));
    assert_eq!(&buffer[..5], b"\0\0abc");
    assert_eq!(pread(fd.as_fd(), &mut buffer, 5), Ok(0));
    assert_eq!(pread(fd.as_fd(), &mut buffer, u64::MAX), Err(Errno::INVAL));
    assert_eq!(pwrite(fd.as_fd(), b"x", u64::MAX), Err(Errno::INVAL));
    assert_eq!(pread(dir.as_fd(), &mut buffer, 0), Err(Errno::BADF), "O_PATH");
}

#[test]
fn append_goes_to_the_end_of_any_descriptor() {
    let dir = Dir::new();
    let fd = create(dir.as_fd(), b"f", 0o600).unwrap();
    let second = File::options().write(true).open(dir.join("f")).unwrap();
    for (fd, bytes) in [(fd.as_fd(), b"one"), (second.as_fd(), b"two"), (fd.as_fd(), b"tri")] {
        assert_eq!(append(fd, bytes), Ok(3));
    }
    assert_eq!(fs::read(dir.join("f")).unwrap(), b"onetwotri");
}

#[test]
fn a_full_disk_gives_a_short_write_then_the_error() {
    let fd = OpenOptions::new().write(true).open("/dev/full").unwrap();
    assert_eq!(pwrite(fd.as_fd(), b"x", 0), Err(Errno::NOSPC));
}

#[test]
fn truncate_fallocate_and_sync_work() {
    let dir = Dir::new();
    let fd = create(dir.as_fd(), b"f", 0o600).unwrap();
    truncate(fd.as_fd(), 10).unwrap();
    assert_eq!(contents(&fd), [0; 10]);
    fallocate(fd.as_fd(), libc::FALLOC_FL_KEEP_SIZE, 0, MIB).unwrap();
    assert_eq!(fs::metadata(dir.join("f")).unwrap().size(), 10);
    fallocate(fd.as_fd(), 0, 0, MIB).unwrap();
    assert_eq!(fs::metadata(dir.join("f")).unwrap().size(), MIB);
    assert!(fallocate(fd.as_fd(), -1, 0, MIB).is_err());
    fsync(fd.as_fd()).unwrap();
    fdatasync(fd.as_fd()).unwrap();
    syncfs(fd.as_fd()).unwrap();
}

#[test]
fn copy_range_moves_between_offsets_and_stops_at_the_end() {
    let dir = Dir::new();
    let src = create(dir.as_fd(), b"src", 0o600).unwrap();
    let dst = create(dir.as_fd(), b"dst", 0o600).unwrap();
    pwrite(src.as_fd(), b"0123456789", 0).unwrap();
    assert_eq!(copy_range(src.as_fd(), 2, dst.as_fd(), 1, 4), Ok(4));
    assert_eq!(contents(&dst), b"\x002345");
    assert_eq!(copy_range(src.as_fd(), 8, dst.as_fd(), 0, 100), Ok(2));
    assert_eq!(contents(&dst), b"89345");
    assert_eq!(copy_range(src.as_fd(), 10, dst.as_fd(), 0, 100), Ok(0));
    assert_eq!(copy_range(src.as_fd(), u64::MAX, dst.as_fd(), 0, 1), Err(Errno::OVERFLOW));
}

#[test]
fn copy_range_between_filesystems_and_from_proc_is_by_hand() {
    let dir = Dir::new();
    let dst = create(dir.as_fd(), b"dst", 0o600).unwrap();
    let memory = rustix::fs::memfd_create(c"m", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let bytes: Vec<u8> = (0..=255).cycle().take(700_001).collect();
    pwrite(memory.as_fd(), &bytes, 0).unwrap();
    assert_eq!(copy_range(memory.as_fd(), 0, dst.as_fd(), 0, usize::MAX >> 2), Ok(bytes.len()));
    assert_eq!(contents(&dst), bytes);
    let proc = File::open("/proc/version").unwrap();
    assert!(copy_range(proc.as_fd(), 0, dst.as_fd(), 0, 4096).unwrap() > 10);
}

#[test]
fn copy_range_refuses_an_overlap() {
    let dir = Dir::new();
    let fd = create(dir.as_fd(), b"f", 0o600).unwrap();
    pwrite(fd.as_fd(), b"0123456789", 0).unwrap();
    assert_eq!(copy_range(fd.as_fd(), 0, fd.as_fd(), 3, 5), Err(Errno::INVAL));
    assert_eq!(contents(&fd), b"0123456789");
    assert_eq!(copy_range(fd.as_fd(), 0, fd.as_fd(), 5, 5), Ok(5));
    assert_eq!(contents(&fd), b"0123401234");
}

#[test]
fn copy_file_keeps_data_and_holes() {
    let table: [(&[u64], u64); 7] = [
        (&[], 0),
        (&[0], 4096),
        (&[0], 100),
        (&[], 8 * MIB),
        (&[0, 4 * MIB], 8 * MIB),
        (&[MIB, 2 * MIB], 2 * MIB + 4096),
        (&[MIB], MIB + 1),
    ];
    let dir = Dir::new();
    for (number, (data, len)) in table.into_iter().enumerate() {
        let src = sparse(&dir, &number.to_string(), data, len);
        let dst = tmpfile(dir.as_fd()).unwrap();
        assert_eq!(copy_file(src.as_fd(), dst.as_fd(), len), Ok(len), "{data:?} {len}");
        assert_eq!(contents(&src), contents(&dst));
        assert!(keeps_holes(&src, &dst), "{:?} {:?}", extents(&src), extents(&dst));
    }
}

#[test]
fn copy_file_across_filesystems_keeps_holes() {
    let dir = Dir::new();
    let src = sparse(&dir, "src", &[MIB, 4 * MIB], 8 * MIB);
    let dst = rustix::fs::memfd_create(c"m", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    assert_eq!(copy_file(src.as_fd(), dst.as_fd(), 8 * MIB), Ok(8 * MIB));
    assert_eq!(contents(&src), contents(&dst));
    assert!(keeps_holes(&src, &dst), "{:?} {:?}", extents(&src), extents(&dst));
}

#[test]
fn copy_file_takes_a_prefix_or_what_there_is() {
    let dir = Dir::new();
    let src = sparse(&dir, "src", &[0, MIB], 2 * MIB);
    // Ends: within data, within a hole, at the end, past it.
    for (len, expected) in [(100, 100), (4097, 4097), (MIB, MIB), (MIB + 1, MIB + 1), (2 * MIB, 2 * MIB), (u64::MAX, 2 * MIB)] {
        let dst = tmpfile(dir.as_fd()).unwrap();
        assert_eq!(copy_file(src.as_fd(), dst.as_fd(), len), Ok(expected), "{len}");
        assert_eq!(contents(&dst), contents(&src)[..expected as usize]);
    }
    let empty = sparse(&dir, "empty", &[], 0);
    let dst = tmpfile(dir.as_fd()).unwrap();
    assert_eq!(copy_file(empty.as_fd(), dst.as_fd(), 5), Ok(0));
}

#[test]
fn flock_is_exclusive_between_openings() {
    let dir = Dir::new();
    let first = create(dir.as_fd(), b"lock", 0o600).unwrap();
    let second = File::open(dir.join("lock")).unwrap();
    flock_exclusive_nonblock(first.as_fd()).unwrap();
    flock_exclusive_nonblock(first.as_fd()).unwrap();
    assert_eq!(flock_exclusive_nonblock(second.as_fd()), Err(Errno::WOULDBLOCK));
    drop(first);
    flock_exclusive_nonblock(second.as_fd()).unwrap();
}
