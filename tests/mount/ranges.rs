//! Ranges of files: allocated, punched, zeroed, copied, mapped, looked for; as a plain directory has them.

use std::fs;
use std::path::Path;

use crate::lab::{Lab, lab, noise};
use crate::plain::{answers, prepared, same};

/// Files of 10 blocks, with a hole in the middle; an empty one and one of a few bytes.
fn files(dir: &Path, names: &[&str]) {
    for (number, name) in names.iter().enumerate() {
        let file = fs::File::create(dir.join(name)).unwrap();
        for at in [0, 28 << 10] {
            std::os::unix::fs::FileExt::write_all_at(&file, &noise(number as u64 + 1, 12 << 10), at).unwrap();
        }
        file.sync_all().unwrap();
    }
    fs::write(dir.join("empty"), "").unwrap();
    fs::write(dir.join("short"), "0123456789").unwrap();
}

/// Size, blocks, content and the map of data and holes. What was allocated and never written counts as data on ext4 once somebody has read
/// it, so there no map is compared.
const SHOWN: &str = r#"
def shown(f, map_too=True):
    os.fsync(f)
    at, map, size = 0, [], os.fstat(f).st_size
    while map_too and at < size:
        try: start = os.lseek(f, at, os.SEEK_DATA)
        except OSError: break
        at = os.lseek(f, start, os.SEEK_HOLE)
        map.append((start, at))
    data, left = hashlib.sha256(), 0
    while chunk := os.pread(f, 1 << 20, left): data.update(chunk); left += len(chunk)
    return size, os.fstat(f).st_blocks, map, data.hexdigest()[:8]
"#;

fn on_ext4() -> Lab {
    let mut lab = Lab::new();
    let place = lab.image("ext4", &["ext4", "-q"]);
    lab.live_on(&place);
    lab
}

#[test]
fn space_is_allocated_punched_and_zeroed_as_in_a_plain_directory() {
    drop(lab!("python3", "mkfs.ext4"));
    let mut lab = on_ext4();
    prepared(&mut lab, |dir| {
        for mode in [0, 1, 2, 3, 0x10, 0x11, 0x40, 0x41, 0x100] {
            files(dir, &[&format!("file {mode}")]);
        }
    });
    let program = r#"
for mode in 0, 1, 2, 3, 0x10, 0x11, 0x40, 0x41, 0x100:
    name = "file %d" % mode
    f = os.open(name, RDWR)
    for at, length in (0, 4096), (4096, 10), (20 << 10, 4096), (30000, 9000), (50000, 20000), (1 << 20, 8192), (5, 0), (-1, 5), (5, -1), (1 << 62, 1 << 62), (1 << 45, 1):
        # Of what is refused anyway FUSE does not ask how long files may be.
        if mode >= 0x40 and at == 1 << 45: continue
        def call(f=f): return raw("fallocate64", f, mode, ctypes.c_int64(at), ctypes.c_int64(length))
        say((mode, at, length), call)
        say("now", lambda: shown(f, False))
    at, length = 0, 10
    reader = os.open(name, RDONLY)
    say((mode, "read only"), lambda: call(reader))
    say((mode, "directory"), lambda: call(os.open(".", RDONLY)))
    say((mode, "append"), lambda: call(os.open(name, WRONLY | APPEND)))
    say("a reader's view", lambda: shown(reader, False))
for name in "empty", "short":
    f = os.open(name, RDWR)
    say("nothing", lambda: os.posix_fallocate(f, 0, 0))
    say("all", lambda: os.posix_fallocate(f, 0, 100))
    say("now", lambda: shown(f, False))
"#;
    let said = answers(&lab, &format!("{SHOWN}{program}"));
    assert!(said.contains("(16, 4096, 10) 0\n") && said.contains("(3, 20480, 4096) 0\n") && said.lines().count() > 200, "{said}");
    same(&mut lab);
}

#[test]
fn ranges_are_neither_collapsed_nor_inserted() {
    let mut lab = lab!("python3");
    lab.write_lower("f", noise(1, 40 << 10));
    lab.mount();
    // FALLOC_FL_COLLAPSE_RANGE and FALLOC_FL_INSERT_RANGE: FUSE does not carry them. Python's name for EOPNOTSUPP is ENOTSUP.
    let program = "
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
f = os.open('f', os.O_RDWR)
for mode in 8, 0x20:
    assert libc.fallocate64(f, mode, ctypes.c_int64(4096), ctypes.c_int64(8192)) == -1
    print(errno.errorcode[ctypes.get_errno()])
";
    assert_eq!(crate::lab::python(&lab.mnt(""), program), "ENOTSUP\nENOTSUP\n");
    assert_eq!(fs::read(lab.mnt("f")).unwrap(), noise(1, 40 << 10));
    lab.unmount();
}

#[test]
fn data_and_holes_are_found_as_in_a_plain_directory() {
    drop(lab!("python3", "mkfs.ext4"));
    let mut lab = on_ext4();
    prepared(&mut lab, |dir| files(dir, &["file", "written"]));
    let program = r#"
for name in "file", "written", "empty", "short":
    f = os.open(name, RDONLY)
    for again in 0, 1, 2:
        for whence in os.SEEK_DATA, os.SEEK_HOLE, os.SEEK_CUR, os.SEEK_END, 9:
            for at in 0, 1, 9, 10, 11, 4096, 12 << 10, 20 << 10, 28 << 10, (40 << 10) - 1, 40 << 10, 50 << 10, 1 << 40, -1, -(1 << 20):
                os.lseek(f, 7, os.SEEK_SET)
                say((name, whence, at), lambda: os.lseek(f, at, whence))
        if name != "file":
            # The first changes the data before, the second behind the end.
            w = os.open(name, WRONLY)
            os.pwrite(w, b"x" * 5000, [18 << 10, 100 << 10][again % 2])
            os.fsync(w)
    say("end", lambda: shown(f))
"#;
    let said = answers(&lab, &format!("{SHOWN}{program}"));
    assert!(said.contains("('file', 3, 12288) 28672\n") && said.contains("('file', 3, 40960) ENXIO\n"), "{said}");
    same(&mut lab);
}

#[test]
fn ranges_are_copied_as_in_a_plain_directory() {
    drop(lab!("python3", "mkfs.ext4"));
    let mut lab = on_ext4();
    prepared(&mut lab, |dir| files(dir, &["a", "b", "c", "d"]));
    let program = r#"
def copy(source, target, length, at, to): return lambda: os.copy_file_range(source, target, length, at, to)
a, b, c = os.open("a", RDONLY), os.open("b", RDWR), os.open("c", RDWR)
say("whole", copy(a, b, 40 << 10, 0, 0))
say("now", lambda: shown(b))
say("part, not aligned", copy(a, b, 5000, 100, 35001))
say("to a place behind the end", copy(a, b, 5000, 30000, 100000))
say("of the end", copy(a, b, 5000, (40 << 10) - 10, 0))
say("behind the end", copy(a, b, 5000, 1 << 20, 0))
say("nothing", copy(a, b, 0, 0, 0))
say("now", lambda: shown(b))
say("within one file", copy(c, c, 4096, 0, 8192))
say("over itself", copy(c, c, 8192, 0, 4096))
say("two descriptors over itself", copy(os.open("c", RDONLY), c, 8192, 0, 4096))
say("now", lambda: shown(c))
say("to a reader", copy(b, a, 10, 0, 0))
say("from a writer", copy(os.open("b", WRONLY), c, 10, 0, 0))
say("to an appender", copy(a, os.open("c", WRONLY | APPEND), 10, 0, 0))
say("to a directory", copy(a, os.open(".", RDONLY), 10, 0, 0))
say("from a directory", copy(os.open(".", RDONLY), c, 10, 0, 0))
say("far", copy(a, c, 10, 0, (1 << 63) - 5))
say("positions", lambda: (os.lseek(a, 50, 0), os.copy_file_range(a, b, 20), os.lseek(a, 0, 1), os.lseek(b, 0, 1)))
outside = os.memfd_create("outside")
os.write(outside, b"from elsewhere")
say("from another filesystem", lambda: raw("sendfile64", c, outside, ctypes.byref(ctypes.c_int64(0)), 14))
# Nobody has opened d for writing yet: the reader's descriptor sees what is copied into it.
d = os.open("d", RDONLY)
say("before", lambda: shown(d))
say("into a file that a reader holds", copy(a, os.open("d", WRONLY), 9000, 0, 3000))
say("after", lambda: shown(d))
say("sendfile", lambda: os.sendfile(c, a, 100, 7000))
say("short", copy(os.open("short", RDONLY), c, 100, 3, 0))
say("empty", copy(os.open("empty", RDONLY), c, 100, 0, 0))
say("now", lambda: (shown(c), shown(b)))
"#;
    let said = answers(&lab, &format!("{SHOWN}{program}"));
    assert!(said.contains("whole 40960\n") && said.contains("over itself EINVAL\n"), "{said}");
    same(&mut lab);
}

#[test]
fn mappings_see_what_they_see_in_a_plain_directory() {
    let mut lab = lab!("python3");
    prepared(&mut lab, |dir| {
        for name in ["shared", "private", "cut", "run", "grown"] {
            fs::write(dir.join(name), vec![b'.'; 5 * 4096]).unwrap();
        }
    });
    let program = r#"
def other(code): subprocess.check_call([sys.executable, "-c", "import os, mmap\n" + code])
def pages(m): return bytes(m[page * 4096] for page in range(len(m) // 4096))
# One that reads only, one that maps before anybody writes, one private with a page of its own.
r = os.open("private", RDONLY)
private = mmap.mmap(r, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
shared = mmap.mmap(r, 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
private[0] = ord("p")
private[8192] = ord("p")
say("before", lambda: (pages(private), pages(shared), os.pread(r, 1, 0)))
other("f = os.open('private', os.O_WRONLY); [os.pwrite(f, b'w', page * 4096) for page in (0, 1, 2)]")
say("own pages stay", lambda: (pages(private)[0:1], pages(private)[2:3], pages(shared)))
other("f = open('private', 'r+b'); m = mmap.mmap(f.fileno(), 0); m[3 * 4096] = ord('m'); m.flush()")
say("shared shows all", lambda: (pages(shared), bytes(os.pread(r, 1, page * 4096)[0] for page in range(5))))
private.close()
say("and nothing of the private", lambda: pages(shared))
# Written through a mapping, read through descriptors at once, and after msync by others.
f = os.open("shared", RDWR)
m = mmap.mmap(f, 0)
early = os.open("shared", RDONLY)
m[4096] = ord("m")
say("by descriptors", lambda: (os.pread(f, 1, 4096), os.pread(early, 1, 4096)))
os.pwrite(f, b"w", 0)
say("by the mapping", lambda: pages(m))
say("msync", lambda: m.flush())
os.close(f)
m[8192] = ord("l")
say("when the descriptor is closed", lambda: (pages(m), os.pread(early, 1, 8192)))
os.unlink("shared")
m[3 * 4096] = ord("u")
say("when the file is gone", lambda: (pages(m), os.pread(early, 1, 3 * 4096), os.fstat(early).st_nlink))
m.close()
# What is cut off is SIGBUS, what grows is there.
code = "f = os.open('cut', os.O_RDONLY); m = mmap.mmap(f, 0, prot=mmap.PROT_READ); m[16384]; os.truncate('cut', %d); print(m[0], m[8191], flush=True); m[12288]"
for size in 16384, 8192 + 5, 8192:
    done = subprocess.run([sys.executable, "-c", "import os, mmap\n" + code % size], stdout=subprocess.PIPE)
    print("cut", size, done.returncode, done.stdout)
    os.truncate("cut", 5 * 4096)
g = os.open("grown", RDWR)
m = mmap.mmap(g, 0)
os.ftruncate(g, 6 * 4096)
m.resize(6 * 4096)
m[5 * 4096] = ord("g")
m.flush()
say("grown", lambda: (pages(m), os.pread(g, 1, 5 * 4096), os.fstat(g).st_size))
# The rest of the last page is no part of the file.
os.ftruncate(g, 10)
m2 = mmap.mmap(g, 10)
say("tail", lambda: (os.ftruncate(g, 100), os.pread(g, 100, 0)))
say("no writing through a reader", lambda: mmap.mmap(r, 0, prot=mmap.PROT_WRITE))
"#;
    let said = answers(&lab, program);
    assert!(said.contains("shared shows all (b'wwwm.', b'wwwm.')\n") && said.contains("cut 8192 -7"), "{said}");
    same(&mut lab);
}

#[test]
fn descriptors_of_every_kind_write_as_in_a_plain_directory() {
    let mut lab = lab!("python3");
    prepared(&mut lab, |dir| {
        for name in ["f", "g", "h"] {
            fs::write(dir.join(name), "0123456789").unwrap();
        }
    });
    let program = r#"
def content(name="f"): return os.pread(os.open(name, RDONLY), 100, 0)
one, two, plain = os.open("f", WRONLY | APPEND), os.open("f", RDWR | APPEND), os.open("f", RDWR)
for step in (
    "os.write(one, b'a')", "os.write(two, b'b')", "os.write(one, b'c')", "os.pwrite(two, b'd', 2)", "os.pwrite(plain, b'e', 3)", "os.write(plain, b'f')",
    "os.lseek(one, 0, 0)", "os.write(one, b'g')", "os.lseek(one, 0, 1)", "os.writev(two, [b'h', b'', b'ij'])", "os.pwritev(plain, [b'kl', b'm'], 4)",
    "os.pwritev(plain, [b'n'], 0, os.RWF_APPEND)", "os.pwritev(plain, [b'o'], 5, os.RWF_DSYNC)", "os.pwritev(plain, [b'p'], 6, os.RWF_SYNC)",
    "os.ftruncate(one, 5)", "os.write(one, b'q')", "os.ftruncate(plain, 20)", "os.write(two, b'r')", "os.preadv(two, [bytearray(3)], 1)",
    "fcntl.fcntl(plain, fcntl.F_SETFL, APPEND)", "os.write(plain, b's')", "fcntl.fcntl(one, fcntl.F_SETFL, 0)", "os.pwrite(one, b't', 0)",
    "os.write(os.open('f', RDONLY), b'u')", "os.read(os.open('f', WRONLY), 1)", "os.ftruncate(os.open('f', RDONLY), 1)", "os.truncate('f', -1)",
    "os.write(os.open('f', WRONLY | os.O_SYNC), b'v')", "os.write(os.open('f', WRONLY | os.O_DSYNC), b'w')", "os.pread(plain, 10, 1000)",
    "os.pread(plain, 10, -1)", "os.pwrite(plain, b'x', -1)", "os.truncate('f', 1 << 62)", "os.write(plain, b'')", "os.pread(plain, 0, 0)",
    "os.truncate('f', 30)", "os.truncate('nothing', 1)", "os.truncate('.', 1)", "os.open('.', RDWR)", "os.open('f', RDONLY | os.O_DIRECTORY)",
    "os.open('f/x', RDONLY)", "os.close(os.open('new', CREAT | os.O_EXCL | WRONLY, 0o600))", "os.open('f', CREAT | os.O_EXCL)", "os.open('f', os.O_TRUNC | RDONLY) and 0",
):
    say(step, lambda: eval(step))
    print("   ", content())
# An interrupted run of appends by a process and its child, one description.
fd = os.open("g", WRONLY | APPEND)
if os.fork() == 0:
    os.write(fd, b"child"); os._exit(0)
os.wait()
os.write(fd, b"parent")
print(content("g"))
# A description that many share has one place.
fd = os.open("h", RDWR)
other = os.dup(fd)
say("place", lambda: (os.read(fd, 3), os.read(other, 3), os.write(fd, b"x"), os.lseek(other, 0, 1)))
print(content("h"))
"#;
    answers(&lab, program);
    same(&mut lab);
}
