//! Data of files: who reads what others write, and never a lower file written.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::SeekFrom as Whence;

use crate::lab::{append, lab, noise, open_rw, python, run, set_xattr, sh, shell, xattrs};

fn rest(file: &mut File) -> String {
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn what_is_appended_to_a_lower_file_reaches_its_readers_and_not_the_lower() {
    let mut lab = lab!();
    for name in ["read", "unread"] {
        lab.write_lower(name, "one\n");
    }
    lab.mount();
    let mut read = File::open(lab.mnt("read")).unwrap();
    let mut unread = File::open(lab.mnt("unread")).unwrap();
    assert_eq!(rest(&mut read), "one\n");
    for name in ["read", "unread"] {
        // By another process, by another descriptor, and in the middle.
        sh(&lab.mnt(""), &format!("echo two >> {name}"));
        append(&lab.mnt(name), "three\n");
        open_rw(&lab.mnt(name)).unwrap().write_all_at(b"ONE", 0).unwrap();
    }
    assert_eq!(rest(&mut read), "two\nthree\n");
    assert_eq!(rest(&mut unread), "ONE\ntwo\nthree\n");
    read.rewind().unwrap();
    assert_eq!(rest(&mut read), "ONE\ntwo\nthree\n");
    assert_eq!(read.metadata().unwrap().len(), 14);
    assert_eq!(fs::read_to_string(lab.lower("read")).unwrap(), "one\n");
    drop((read, unread));
    lab.remount();
    for name in ["read", "unread"] {
        assert_eq!(fs::read_to_string(lab.mnt(name)).unwrap(), "ONE\ntwo\nthree\n");
    }
    lab.unmount();
}

#[test]
fn tail_follows_a_lower_file() {
    let mut lab = lab!("tail");
    lab.write_lower("log", "one\n");
    lab.mount();
    // Ends with the shell's time at the latest; head ends it after the third line.
    let tail = "timeout 20 tail -n +1 -f log | head -n 3 & for i in 2 3; do sleep 0.2; echo $i >> log; done; wait";
    assert_eq!(sh(&lab.mnt(""), tail), "one\n2\n3\n");
    assert_eq!(fs::read_to_string(lab.lower("log")).unwrap(), "one\n");
    // tail itself ends with its next line or its time.
    append(&lab.mnt("log"), "4\n");
    lab.unmount();
}

#[test]
fn a_mapping_of_a_lower_file_shows_what_others_write() {
    let mut lab = lab!("python3");
    lab.write_lower("f", vec![b'.'; 5 * 4096]);
    lab.mount();
    let program = r#"
import mmap, subprocess, sys
reader = open("f", "rb")
seen = mmap.mmap(reader.fileno(), 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
assert seen[0:1] == b"." and seen[4096:4097] == b"."
subprocess.check_call([sys.executable, "-c", '''
import os
f = os.open("f", os.O_WRONLY)
for page in 0, 2:
    os.pwrite(f, b"w", page * 4096)
'''])
assert seen[0:1] == b"w" and seen[8192:8193] == b"w", (seen[0:1], seen[8192:8193])
subprocess.check_call([sys.executable, "-c", '''
import mmap
with open("f", "r+b") as f:
    m = mmap.mmap(f.fileno(), 0)
    for page in 1, 3:
        m[page * 4096:page * 4096 + 1] = b"m"
    m.close()
'''])
assert bytes(seen[page * 4096] for page in range(5)) == b"wmwm.", bytes(seen[page * 4096] for page in range(5))
data = reader.read()
assert bytes(data[page * 4096] for page in range(5)) == b"wmwm."
"#;
    python(&lab.mnt(""), program);
    lab.remount();
    let data = fs::read(lab.mnt("f")).unwrap();
    assert_eq!([0, 1, 2, 3, 4].map(|page| data[page * 4096]), *b"wmwm.");
    assert!(fs::read(lab.lower("f")).unwrap().iter().all(|&byte| byte == b'.'));
    lab.unmount();
}

#[test]
fn a_truncating_open_empties_the_file_for_its_readers_and_not_the_lower() {
    let mut lab = lab!();
    lab.write_lower("f", noise(1, 100_000));
    lab.mount();
    let reader = File::open(lab.mnt("f")).unwrap();
    let mut byte = [0];
    reader.read_exact_at(&mut byte, 50_000).unwrap();
    let writer = OpenOptions::new().write(true).truncate(true).open(lab.mnt("f")).unwrap();
    assert_eq!(reader.metadata().unwrap().len(), 0);
    assert_eq!(reader.read_at(&mut byte, 50_000).unwrap(), 0);
    writer.write_all_at(b"x", 50_000).unwrap();
    let mut all = vec![1; 50_001];
    reader.read_exact_at(&mut all, 0).unwrap();
    assert!(all[..50_000].iter().all(|&byte| byte == 0) && all[50_000] == b'x', "old lower content came back");
    assert_eq!(fs::read(lab.lower("f")).unwrap(), noise(1, 100_000));
    drop((reader, writer));
    lab.unmount();
}

#[test]
fn two_descriptors_that_append_never_overwrite_each_other() {
    let mut lab = lab!("python3");
    lab.write_lower("f", "start\n");
    lab.mount();
    let program = "
import os, sys
fds = [os.open('f', os.O_WRONLY | os.O_APPEND) for _ in range(2)]
for n in range(400):
    line = ('%s %d %s\\n' % (sys.argv[1], n, 'x' * (n % 300))).encode()
    assert os.write(fds[n % 2], line) == len(line)
";
    let script = "python3 -c \"$1\" a & python3 -c \"$1\" b & python3 -c \"$1\" c; wait";
    run(shell(&lab.mnt(""), script).args(["sh", program]));
    let text = fs::read_to_string(lab.mnt("f")).unwrap();
    assert_eq!(text.lines().count(), 1201);
    for who in ["a", "b", "c"] {
        let own: Vec<_> = text.lines().filter(|line| line.starts_with(&format!("{who} "))).collect();
        let expected: Vec<_> = (0..400).map(|n| format!("{who} {n} {}", "x".repeat(n % 300))).collect();
        assert_eq!(own, expected);
    }
    lab.unmount();
}

#[test]
fn an_unlinked_file_is_truncated_changed_and_counted_by_its_descriptors() {
    let mut lab = lab!();
    for name in ["low", "low read"] {
        lab.write_lower(name, "from below");
    }
    lab.mount();
    fs::write(lab.mnt("up"), "from above").unwrap();
    for name in ["low", "up"] {
        let file = open_rw(&lab.mnt(name)).unwrap();
        fs::remove_file(lab.mnt(name)).unwrap();
        assert_eq!(file.metadata().unwrap().nlink(), 0, "{name}");
        file.set_len(4).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 4);
        file.set_len(6).unwrap();
        file.write_all_at(b"!", 6).unwrap();
        let mut all = [0; 7];
        file.read_exact_at(&mut all, 0).unwrap();
        assert_eq!(&all, b"from\0\0!");
        file.set_permissions(fs::Permissions::from_mode(0o4711)).unwrap();
        rustix::fs::fchown(&file, Some(rustix::fs::Uid::from_raw(12)), Some(rustix::fs::Gid::from_raw(34))).unwrap();
        rustix::fs::fsetxattr(&file, "user.gone", b"value", rustix::fs::XattrFlags::empty()).unwrap();
        let meta = file.metadata().unwrap();
        // chown takes setuid away.
        assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid(), meta.nlink()), (0o711, 12, 34, 0), "{name}");
        file.sync_all().unwrap();
    }
    // A lower file whose only descriptor reads: it has neither a name nor an upper object when it is changed.
    let file = File::open(lab.mnt("low read")).unwrap();
    fs::remove_file(lab.mnt("low read")).unwrap();
    file.set_permissions(fs::Permissions::from_mode(0o600)).unwrap();
    let again = open_rw(Path::new(&format!("/proc/self/fd/{}", file.as_raw_fd()))).unwrap();
    again.write_all_at(b"FROM", 0).unwrap();
    assert_eq!(std::io::read_to_string(&file).unwrap(), "FROM below");
    let meta = file.metadata().unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.nlink()), (0o600, 0));
    // What has no name gets none.
    assert_eq!(crate::lab::names(&lab.mnt("")), [""; 0]);
    drop((file, again));
    lab.remount();
    assert_eq!(crate::lab::names(&lab.mnt("")), [""; 0]);
    lab.unmount();
}

#[test]
fn a_file_that_was_renamed_over_stays_what_it_was_for_its_readers() {
    let mut lab = lab!();
    lab.write_lower("low", "old");
    lab.write_lower("low2", "from low2");
    lab.mount();
    fs::write(lab.mnt("up"), "old").unwrap();
    fs::write(lab.mnt("new"), "new").unwrap();
    for (from, over) in [("new", "low"), ("low2", "up")] {
        let mut old = File::open(lab.mnt(over)).unwrap();
        let expected = fs::read_to_string(lab.mnt(from)).unwrap();
        fs::rename(lab.mnt(from), lab.mnt(over)).unwrap();
        assert_eq!(rest(&mut old), "old");
        assert_eq!(old.metadata().unwrap().nlink(), 0);
        assert_eq!(fs::read_to_string(lab.mnt(over)).unwrap(), expected);
        append(&lab.mnt(over), "er");
        old.rewind().unwrap();
        assert_eq!(rest(&mut old), "old");
    }
    lab.remount();
    assert_eq!(crate::lab::names(&lab.mnt("")), ["low", "up"]);
    assert_eq!(fs::read_to_string(lab.mnt("low")).unwrap(), "newer");
    assert_eq!(fs::read_to_string(lab.mnt("up")).unwrap(), "from low2er");
    lab.unmount();
}

#[test]
fn a_sparse_file_stays_sparse_through_copy_up() {
    const SIZE: u64 = 200 << 20;
    let mut lab = lab!();
    lab.write_lower("f", "");
    let file = OpenOptions::new().write(true).open(lab.lower("f")).unwrap();
    file.set_len(SIZE).unwrap();
    for at in [0, 77 << 20, SIZE - 4096] {
        file.write_all_at(&noise(at, 4096), at).unwrap();
    }
    file.sync_all().unwrap();
    if file.metadata().unwrap().blocks() * 512 > 1 << 20 {
        crate::skip::skip!("the filesystem of the temporary directory makes no holes");
    }
    lab.mount();
    append(&lab.mnt("f"), "x");
    let file = File::open(lab.mnt("f")).unwrap();
    let meta = file.metadata().unwrap();
    assert_eq!(meta.len(), SIZE + 1);
    assert!(meta.blocks() * 512 < 1 << 20, "{} blocks", meta.blocks());
    assert_eq!(fs::metadata(lab.upper("f")).unwrap().blocks(), meta.blocks());
    for at in [0, 77 << 20, SIZE - 4096] {
        let mut data = vec![0; 4096];
        file.read_exact_at(&mut data, at).unwrap();
        assert_eq!(data, noise(at, 4096));
    }
    let next = |at: u64, data: bool| rustix::fs::seek(&file, if data { Whence::Data(at) } else { Whence::Hole(at) }).unwrap();
    assert_eq!(next(0, false), 4096);
    assert_eq!(next(4096, true), 77 << 20);
    assert_eq!(next((77 << 20) + 4096, true), SIZE - 4096);
    drop(file);
    lab.unmount();
}

#[test]
fn positions_of_descriptors_are_their_own() {
    let mut lab = lab!();
    lab.write_lower("f", "0123456789");
    lab.mount();
    let mut reader = File::open(lab.mnt("f")).unwrap();
    let mut three = [0; 3];
    reader.read_exact(&mut three).unwrap();
    let mut writer = open_rw(&lab.mnt("f")).unwrap();
    writer.seek(SeekFrom::Start(4)).unwrap();
    writer.write_all(b"ab").unwrap();
    reader.read_exact(&mut three).unwrap();
    assert_eq!(&three, b"3ab");
    writer.read_exact(&mut three).unwrap();
    assert_eq!(&three, b"678");
    drop((reader, writer));
    lab.unmount();
}

#[test]
fn users_xattrs_are_kept_shown_and_removed() {
    let mut lab = lab!();
    lab.write_lower("f", "x");
    set_xattr(&lab.lower("f"), "user.low", b"below");
    lab.mount();
    let f = lab.mnt("f");
    let pairs = |list: &[(&str, &[u8])]| list.iter().map(|(name, value)| ((*name).to_owned(), value.to_vec())).collect::<Vec<_>>();
    assert_eq!(xattrs(&f), pairs(&[("user.low", b"below")]));
    let long = noise(3, 2000);
    set_xattr(&f, "user.new", &long);
    set_xattr(&f, "trusted.own", b"");
    // Attributes that are marks on disk are users' own here, and mean nothing.
    set_xattr(&f, "trusted.overlay.opaque", b"y");
    let expected = pairs(&[("trusted.overlay.opaque", b"y"), ("trusted.own", b""), ("user.low", b"below"), ("user.new", &long)]);
    assert_eq!(xattrs(&f), expected);
    lab.remount();
    assert_eq!(xattrs(&f), expected);
    rustix::fs::removexattr(&f, "user.low").unwrap();
    assert_eq!(rustix::fs::removexattr(&f, "user.low"), Err(rustix::io::Errno::NODATA));
    lab.remount();
    assert_eq!(xattrs(&f), expected[..2].iter().chain(&expected[3..]).cloned().collect::<Vec<_>>());
    assert_eq!(xattrs(&lab.lower("f")), pairs(&[("user.low", b"below")]));
    lab.unmount();
}
