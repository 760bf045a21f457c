//! What the mount's transport cannot carry: each is answered as the kernel answers for a filesystem without it, not half done. (The union itself has it:
//! `src/overlay/tests/core`.)

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::Path;

use plyfs_sys::at::{self, At};
use plyfs_sys::handle::{FileHandle, file_handle, open_handle};
use plyfs_sys::{Errno, create};

use crate::lab::{Lab, lab, names, python};

/// A mount with a file, a directory and a symlink in its lower, and a file that was copied up.
fn mounted(lab: &mut Lab) {
    lab.write_lower("d/f", "x");
    lab.write_lower("up", "x");
    std::os::unix::fs::symlink("d", lab.lower("l")).unwrap();
    lab.mount();
    fs::write(lab.mnt("up"), "y").unwrap();
}

#[test]
fn a_file_without_a_name_is_not_supported_on_a_mount() {
    let mut lab = lab!();
    mounted(&mut lab);
    for dir in ["", "d"] {
        assert_eq!(create::tmpfile(File::open(lab.mnt(dir)).unwrap().as_fd()).err(), Some(Errno::OPNOTSUPP), "{dir:?}");
    }
    // Nothing was made, or copied up, on the way.
    assert_eq!(names(&lab.upper("")), ["up"]);
    lab.unmount();
}

#[test]
fn a_mount_tells_no_times_of_birth() {
    let mut lab = lab!();
    mounted(&mut lab);
    let root = File::open(lab.mnt("")).unwrap();
    for name in ["d", "up", "l"] {
        assert_eq!(at::stat(At::Name(root.as_fd(), name.as_bytes())).unwrap().btime, None, "{name}");
        let created = fs::symlink_metadata(lab.mnt(name)).unwrap().created();
        assert_eq!(created.unwrap_err().kind(), std::io::ErrorKind::Unsupported, "{name}");
    }
    drop(root);
    lab.unmount();
}

fn handle_of(dir: &Path, name: &str) -> FileHandle {
    file_handle(At::Name(File::open(dir).unwrap().as_fd(), name.as_bytes())).unwrap()
}

#[test]
fn a_file_handle_does_not_outlive_a_mount() {
    let mut lab = lab!();
    mounted(&mut lab);
    let handles = ["d", "up", "l"].map(|name| handle_of(&lab.mnt(""), name));
    let open = |lab: &Lab, handle: &FileHandle| {
        open_handle(File::open(lab.mnt("")).unwrap().as_fd(), handle).map(|fd| at::stat(At::Fd(fd.as_fd())).unwrap().ino)
    };
    // The kernel makes them of its own, and finds what it remembers.
    let held = File::open(lab.mnt("up")).unwrap();
    let ino = at::stat(At::Fd(held.as_fd())).unwrap().ino;
    assert_eq!(open(&lab, &handles[1]), Ok(ino));
    drop(held);
    lab.remount();
    for handle in &handles {
        assert_eq!(open(&lab, handle), Err(Errno::STALE));
    }
    lab.unmount();
}

#[test]
fn an_idmapped_mount_is_refused() {
    let mut lab = lab!("python3");
    mounted(&mut lab);
    lab.tmpfs("tmpfs", "size=1m");
    // What is asked for is right: the same call maps the ids of a filesystem that can.
    let program = r#"
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
OPEN_TREE, MOUNT_SETATTR, CLONE, CLOEXEC, EMPTY_PATH, IDMAP, NEWUSER = 428, 442, 1, 0o2000000, 0x1000, 0x100000, 0x10000000
ready, done = os.pipe(), os.pipe()
child = os.fork()
if child == 0:
    if libc.unshare(NEWUSER):
        os._exit(1)
    os.write(ready[1], b"x")
    os.close(done[1])
    os.read(done[0], 1)
    os._exit(0)
os.read(ready[0], 1)
for kind in "uid", "gid":
    with open(f"/proc/{child}/{kind}_map", "w") as f:
        f.write("0 100000 1000")
users = os.open(f"/proc/{child}/ns/user", os.O_RDONLY)
class Attr(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns")]
for path in "tmpfs", "mnt":
    tree = libc.syscall(OPEN_TREE, -100, path.encode(), CLONE | CLOEXEC)
    attr = Attr(IDMAP, 0, 0, users)
    failed = libc.syscall(MOUNT_SETATTR, tree, b"", EMPTY_PATH, ctypes.byref(attr), ctypes.sizeof(attr))
    print(os.strerror(ctypes.get_errno()) if failed else "mapped")
os.close(done[1])
os.waitpid(child, 0)
"#;
    assert_eq!(python(&lab.path(""), program), "mapped\nInvalid argument\n");
    lab.unmount();
}
