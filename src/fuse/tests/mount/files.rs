//! Data of files through the mount.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::time::{Duration, SystemTime};

use plyfs_fuse::Op;
use plyfs_sys::{Errno, io};

use crate::lab::{Lab, eventually, python, sh, sh_as, skip};

/// Bytes that no shift of themselves equals.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8).collect()
}

#[test]
fn what_is_written_is_read_back_and_the_lower_keeps_what_it_had() {
    let Some(lab) = Lab::new("what_is_written_is_read_back_and_the_lower_keeps_what_it_had", |lower| {
        fs::write(lower.join("f"), "lower\n").unwrap();
    }) else {
        return;
    };
    let path = lab.mnt("f");
    assert_eq!(fs::read(&path).unwrap(), b"lower\n");
    OpenOptions::new().append(true).open(&path).unwrap().write_all(b"more\n").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"lower\nmore\n");
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    file.write_all_at(b"LOW", 0).unwrap();
    file.set_len(4).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"LOWe");
    file.set_len(6).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"LOWe\0\0");
    assert_eq!(fs::read(lab.lower("f")).unwrap(), b"lower\n");
    assert_eq!(fs::read(lab.upper("f")).unwrap(), b"LOWe\0\0");

    let big = pattern((5 << 20) + 17);
    fs::write(lab.mnt("big"), &big).unwrap();
    assert_eq!(fs::read(lab.mnt("big")).unwrap(), big);
    assert_eq!(fs::read(lab.upper("big")).unwrap(), big);
    // Requests of a megabyte, not of a page.
    assert!(lab.count(Op::Write) < 64, "{} writes", lab.count(Op::Write));
    assert_eq!(lab.count(Op::Flush), 0);
    drop(file);
    lab.finish();
}

#[test]
fn opening_with_truncation_copies_no_data() {
    let Some(lab) = Lab::new("opening_with_truncation_copies_no_data", |lower| {
        fs::write(lower.join("f"), pattern(1 << 20)).unwrap();
    }) else {
        return;
    };
    assert_eq!(fs::metadata(lab.mnt("f")).unwrap().len(), 1 << 20);
    fs::write(lab.mnt("f"), "new").unwrap();
    assert_eq!(fs::read(lab.mnt("f")).unwrap(), b"new");
    assert_eq!(fs::metadata(lab.mnt("f")).unwrap().len(), 3);
    // One request: the kernel leaves the truncation to the open.
    assert_eq!(lab.count(Op::SetAttr), 0);
    assert_eq!(fs::metadata(lab.lower("f")).unwrap().len(), 1 << 20);
    lab.finish();
}

#[test]
fn a_reader_from_before_the_copy_up_sees_what_is_written_after() {
    let Some(lab) = Lab::new("a_reader_from_before_the_copy_up_sees_what_is_written_after", |lower| {
        fs::write(lower.join("log"), "one\n").unwrap();
    }) else {
        return;
    };
    let mut reader = File::open(lab.mnt("log")).unwrap();
    let mut seen = String::new();
    reader.read_to_string(&mut seen).unwrap();
    let mut writer = OpenOptions::new().append(true).open(lab.mnt("log")).unwrap();
    writer.write_all(b"two\n").unwrap();
    reader.read_to_string(&mut seen).unwrap();
    assert_eq!(seen, "one\ntwo\n");
    assert_eq!(fs::read(lab.lower("log")).unwrap(), b"one\n");
    drop((reader, writer));
    lab.finish();
}

#[test]
fn shared_mappings_write_to_the_upper_file() {
    let test = "shared_mappings_write_to_the_upper_file";
    let Some(lab) = Lab::new(test, |lower| fs::write(lower.join("f"), vec![b'.'; 20_000]).unwrap()) else { return };
    let program = r#"
import mmap
reader = open("f", "rb")
seen = mmap.mmap(reader.fileno(), 0, prot=mmap.PROT_READ)
assert seen[:3] == b"..."
with open("f", "r+b") as f:
    with mmap.mmap(f.fileno(), 0) as m:
        m[0:3] = b"abc"
        m[9000:9003] = b"xyz"
        m.flush()
        m[19999:20000] = b"!"
        assert seen[:3] == b"abc", seen[:3]
print(open("f", "rb").read().count(b"."))
"#;
    let Some(printed) = python(&lab.mnt(""), program) else { return skip(test, "needs python3") };
    assert_eq!(printed, "19993\n");
    let upper = fs::read(lab.upper("f")).unwrap();
    assert_eq!((&upper[..3], &upper[9000..9003], &upper[19_999..]), (&b"abc"[..], &b"xyz"[..], &b"!"[..]));
    assert!(fs::read(lab.lower("f")).unwrap().iter().all(|&byte| byte == b'.'));
    lab.finish();
}

#[test]
fn direct_io_needs_no_alignment_of_ours() {
    let Some(lab) = Lab::new("direct_io_needs_no_alignment_of_ours", |lower| fs::write(lower.join("f"), pattern(10_000)).unwrap()) else {
        return;
    };
    const O_DIRECT: i32 = 0o40000;
    let file = OpenOptions::new().read(true).write(true).custom_flags(O_DIRECT).open(lab.mnt("f")).unwrap();
    let mut odd = vec![0; 777];
    file.read_exact_at(&mut odd, 333).unwrap();
    assert_eq!(odd, pattern(10_000)[333..1110]);
    file.write_all_at(b"odd", 4097).unwrap();
    assert_eq!(&fs::read(lab.mnt("f")).unwrap()[4096..4101], &[pattern(10_000)[4096], b'o', b'd', b'd', pattern(10_000)[4100]]);
    drop(file);
    lab.finish();
}

#[test]
fn holes_are_found_made_and_copied() {
    let Some(lab) = Lab::new("holes_are_found_made_and_copied", |_| {}) else { return };
    const PUNCH: i32 = 0x3; // keep size, punch
    let path = lab.mnt("f");
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
    io::fallocate(file.as_fd(), 0, 0, 1 << 20).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 1 << 20);
    file.write_all_at(&pattern(1 << 20), 0).unwrap();
    io::fallocate(file.as_fd(), PUNCH, 64 << 10, 64 << 10).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 1 << 20);
    let mut hole = vec![1; 64 << 10];
    file.read_exact_at(&mut hole, 64 << 10).unwrap();
    assert!(hole.iter().all(|&byte| byte == 0));
    assert_eq!(io::seek_hole(file.as_fd(), 0), Ok(64 << 10));
    assert_eq!(io::seek_data(file.as_fd(), 64 << 10), Ok(128 << 10));
    assert_eq!(io::seek_data(file.as_fd(), 1 << 20), Err(Errno::NXIO));
    // Modes that the kernel's FUSE does not pass on.
    assert_eq!(io::fallocate(file.as_fd(), 0x8, 0, 4096), Err(Errno::OPNOTSUPP));

    let copy = OpenOptions::new().read(true).write(true).create_new(true).open(lab.mnt("copy")).unwrap();
    let mut copied = 0;
    while copied < 1 << 20 {
        match io::copy_range(file.as_fd(), copied, copy.as_fd(), copied, 1 << 20).unwrap() {
            0 => break,
            count => copied += count as u64,
        }
    }
    assert!(lab.count(Op::CopyFileRange) > 0);
    assert_eq!(fs::read(lab.mnt("copy")).unwrap(), fs::read(&path).unwrap());
    assert_eq!(fs::read(lab.upper("copy")).unwrap(), fs::read(&path).unwrap());
    drop((file, copy));
    lab.finish();
}

#[test]
fn fsync_goes_to_the_file_and_the_directory() {
    let Some(lab) = Lab::new("fsync_goes_to_the_file_and_the_directory", |_| {}) else { return };
    let mut file = File::create(lab.mnt("f")).unwrap();
    file.write_all(b"data").unwrap();
    file.sync_all().unwrap();
    file.sync_data().unwrap();
    File::open(lab.mnt("")).unwrap().sync_all().unwrap();
    assert_eq!((lab.count(Op::FSync), lab.count(Op::FSyncDir)), (2, 1));
    drop(file);
    lab.finish();
}

#[test]
fn an_unlinked_open_file_lives_on() {
    let Some(lab) = Lab::new("an_unlinked_open_file_lives_on", |lower| fs::write(lower.join("low"), "lower").unwrap()) else { return };
    fs::write(lab.mnt("up"), "upper").unwrap();
    for name in ["low", "up"] {
        let mut file = OpenOptions::new().read(true).write(true).open(lab.mnt(name)).unwrap();
        fs::remove_file(lab.mnt(name)).unwrap();
        file.seek(SeekFrom::End(0)).unwrap();
        file.write_all(b" and more").unwrap();
        file.rewind().unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert!(text.ends_with("er and more"), "{text}");
        assert_eq!(file.metadata().unwrap().nlink(), 0, "{name}");
    }
    lab.finish();
}

#[test]
fn times_before_1970_and_nanoseconds_pass_unchanged() {
    let Some(lab) = Lab::new("times_before_1970_and_nanoseconds_pass_unchanged", |_| {}) else { return };
    let epoch = SystemTime::UNIX_EPOCH;
    let file = File::create(lab.mnt("f")).unwrap();
    for time in [
        epoch - Duration::from_nanos(1),
        epoch - Duration::from_millis(1200),
        epoch - Duration::from_secs(100),
        epoch + Duration::from_nanos(1_234_567_890),
    ] {
        let times = fs::FileTimes::new().set_accessed(time).set_modified(time + Duration::from_nanos(1));
        file.set_times(times).unwrap();
        for path in [lab.mnt("f"), lab.upper("f")] {
            let meta = fs::metadata(&path).unwrap();
            assert_eq!(meta.modified().unwrap(), time + Duration::from_nanos(1), "{}", path.display());
            assert_eq!(meta.accessed().unwrap(), time, "{}", path.display());
        }
    }
    drop(file);
    lab.finish();
}

#[test]
fn a_write_by_another_user_takes_setuid_away() {
    let Some(lab) = Lab::new("a_write_by_another_user_takes_setuid_away", |lower| {
        for name in ["written", "cut", "kept"] {
            fs::write(lower.join(name), "#!/bin/sh\n").unwrap();
        }
        sh(lower, "chmod 6777 written cut kept");
    }) else {
        return;
    };
    let mode = |name: &str| fs::metadata(lab.mnt(name)).unwrap().mode() & 0o7777;
    sh_as(1234, &lab.mnt(""), "echo x >> written; : > cut");
    sh(&lab.mnt(""), "echo x >> kept");
    assert_eq!((mode("written"), mode("cut"), mode("kept")), (0o777, 0o777, 0o6777));
    // The cached mode, which exec(2) goes by without asking: the kernel is told.
    let file = OpenOptions::new().append(true).open(lab.mnt("kept")).unwrap();
    assert_eq!(mode("kept"), 0o6777);
    let asked = lab.count(Op::GetAttr);
    sh_as(1234, &lab.mnt(""), "echo x >> kept");
    eventually("the attributes are asked for again", || {
        assert!(file.metadata().unwrap().mode() & 0o7777 == 0o777);
        lab.count(Op::GetAttr) > asked
    });
    drop(file);
    lab.finish();
}
