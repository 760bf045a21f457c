//! What programs hold on a file while its data moves to the upper: watches and locks; and descriptors of what is gone.

use std::fs;

use crate::lab::{lab, write};
use crate::plain::{answers, prepared, same};

#[test]
fn watches_tell_the_same_events_as_in_a_plain_directory() {
    let mut lab = lab!("python3");
    prepared(&mut lab, |dir| {
        for name in ["f", "g", "linked", "gone", "d/x", "d/y", "e/z", "run"] {
            write(&dir.join(name), b"0123456789");
        }
        fs::hard_link(dir.join("linked"), dir.join("d/linked")).unwrap();
    });
    let program = r#"
NAMES = {1: "ACCESS", 2: "MODIFY", 4: "ATTRIB", 8: "CLOSE_WRITE", 16: "CLOSE", 32: "OPEN", 64: "FROM", 128: "TO", 256: "CREATE", 512: "DELETE",
    1024: "DELETE_SELF", 2048: "MOVE_SELF", 0x8000: "IGNORED", 1 << 30: "DIR"}
notify = raw("inotify_init1", os.O_NONBLOCK)
watched = {}
for name in ".", "f", "g", "linked", "gone", "d", "d/x", "e":
    watched[raw("inotify_add_watch", notify, name.encode(), 0xfff)] = name
def events():
    found, cookies = [], {}
    while True:
        try: data = os.read(notify, 1 << 16)
        except BlockingIOError: return found
        at = 0
        while at < len(data):
            wd, mask, cookie, length = struct.unpack_from("iIII", data, at)
            name = data[at + 16:at + 16 + length].rstrip(b"\0").decode()
            at += 16 + length
            if cookie: cookie = cookies.setdefault(cookie, len(cookies) + 1)
            found.append((watched.get(wd), "|".join(text for bit, text in NAMES.items() if mask & bit), name, cookie))
def step(code):
    # By another process, whose descriptors are closed when it ends.
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try: exec(code)
        except OSError as error: print(error, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
    print(code)
    for event in events(): print("   ", *event)
events()
step("os.stat('f'); os.listdir('d')")
step("os.read(os.open('f', os.O_RDONLY), 5)")
step("os.open('f', os.O_RDWR)")
step("os.write(os.open('f', os.O_WRONLY | os.O_APPEND), b'x')")
step("os.write(os.open('f', os.O_WRONLY | os.O_TRUNC), b'x')")
step("os.chmod('g', 0o600)")
step("os.chown('g', 1, 2)")
step("os.utime('g', (1, 2))")
step("os.setxattr('g', 'user.x', b'y')")
step("os.truncate('g', 3)")
step("os.link('linked', 'd/more')")
step("os.write(os.open('d/linked', os.O_WRONLY), b'x')")
step("os.rename('d/x', 'e/x')")
step("os.rename('e/x', 'd/x')")
step("os.write(os.open('d/x', os.O_WRONLY), b'x')")
step("os.rename('d', 'dd')")
step("os.write(os.open('dd/y', os.O_WRONLY), b'x')")
step("os.close(os.open('dd/new', os.O_CREAT | os.O_WRONLY)); os.mkdir('dd/newdir'); os.symlink('x', 'dd/link'); os.mkfifo('dd/fifo')")
step("os.rename('f', 'g')")
step("os.unlink('gone')")
step("os.unlink('linked')")
step("os.rmdir('dd/newdir')")
step("os.unlink('e/z'); os.rmdir('e')")
"#;
    let said = answers(&lab, program);
    assert!(said.contains("    f MODIFY  0\n") && said.contains("    . TO f g") | said.contains("    . TO g "), "{said}");
    same(&mut lab);
}

#[test]
fn locks_of_every_kind_last_through_copy_up_as_in_a_plain_directory() {
    let mut lab = lab!("python3");
    prepared(&mut lab, |dir| {
        for name in ["f", "g", "h"] {
            write(&dir.join(name), b"0123456789");
        }
    });
    let program = r#"
GETLK, SETLK, SETLKW = 36, 37, 38 # F_OFD_*
R, W, U = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK
def lock(fd, command, kind, start, length):
    data = fcntl.fcntl(fd, command, struct.pack("hhqqi4x", kind, 0, start, length, 0))
    kind, _, start, length, pid = struct.unpack("hhqqi4x", data)
    return kind, start, length, pid == os.getpid(), pid == -1
def other(code):
    return subprocess.run([sys.executable, "-I", "-c", "import fcntl, os, struct, sys\n" + code], stdout=subprocess.PIPE, text=True).stdout.strip()
ASK = """
f = os.open('%s', os.O_RDWR)
for at in range(10):
    free = True
    try: fcntl.fcntl(f, %d, struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, at, 1, 0))
    except OSError: free = False
    print(int(free), end='')
"""
def ask(name, command=fcntl.F_SETLK): return other(ASK % (name, command))
early, later = os.open("f", RDONLY), os.open("f", RDONLY)
say("open file description", lambda: lock(early, SETLK, R, 0, 3))
say("write lock of a reader", lambda: lock(early, SETLK, W, 0, 3))
say("before", lambda: (ask("f"), ask("f", SETLK)))
w = os.open("f", RDWR)
os.write(w, b"x")
say("after copy-up", lambda: (ask("f"), ask("f", SETLK)))
say("against it", lambda: lock(w, SETLK, W, 2, 4))
say("beside it", lambda: lock(w, SETLK, W, 3, 4))
say("who", lambda: (lock(later, GETLK, W, 0, 1), lock(early, GETLK, W, 4, 1), lock(w, GETLK, R, 5, 1)))
say("both", lambda: (ask("f"), ask("f", SETLK)))
copy = os.dup(w)
os.close(w)
say("a duplicate holds it", lambda: ask("f"))
end, go = os.pipe()
child = os.fork()
if child == 0:
    os.close(go)
    os.read(end, 1)
    os._exit(0)
os.close(copy)
say("a child holds it", lambda: ask("f"))
os.close(go)
os.waitpid(child, 0)
say("nobody holds it", lambda: ask("f"))
os.close(later)
say("another's close leaves it", lambda: ask("f"))
os.close(early)
say("its own does not", lambda: ask("f"))
# A process's locks go with any of its descriptors.
g, g2 = os.open("g", RDWR), os.open("g", RDONLY)
say("process", lambda: lock(g, fcntl.F_SETLK, W, 1, 3))
say("split", lambda: lock(g, fcntl.F_SETLK, U, 2, 1))
say("shared in part", lambda: lock(g, fcntl.F_SETLK, R, 3, 1))
say("process", lambda: (ask("g"), ask("g", SETLK)))
say("own process", lambda: lock(g, fcntl.F_SETLK, W, 0, 0))
say("own description", lambda: lock(g, SETLK, W, 0, 1))
os.truncate("g", 3)
os.rename("g", "gg")
say("renamed", lambda: (ask("gg"), lock(g, GETLK, W, 1, 1)))
os.close(g2)
say("closed", lambda: ask("gg"))
# Waiting, to the end of the file and behind it; who deadlocks is told.
h = os.open("h", RDWR)
say("to infinity", lambda: (lock(h, fcntl.F_SETLK, W, 5, 0), ask("h")))
waiting = subprocess.Popen([sys.executable, "-I", "-c", "import fcntl, os, struct\nf = os.open('h', os.O_RDWR)\n"
    "fcntl.fcntl(f, fcntl.F_SETLK, struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 0, 2, 0)); print('held', flush=True)\n"
    "fcntl.fcntl(f, fcntl.F_SETLKW, struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 7, 1, 0)); print('got', flush=True)"], stdout=subprocess.PIPE, text=True)
say("held", lambda: waiting.stdout.readline())
time.sleep(0.2)
say("deadlock", lambda: lock(h, fcntl.F_SETLKW, W, 0, 1))
say("still waiting", waiting.poll)
say("unlock", lambda: lock(h, fcntl.F_SETLK, U, 0, 0))
say("woken", lambda: (waiting.stdout.readline(), waiting.wait()))
# Signals end the waiting.
fcntl.flock(h, fcntl.LOCK_EX)
waiting = subprocess.Popen([sys.executable, "-I", "-c", "import fcntl, os, signal\nsignal.signal(signal.SIGALRM, signal.SIG_DFL)\nsignal.alarm(1)\n"
    "fcntl.flock(os.open('h', os.O_RDONLY), fcntl.LOCK_SH)"])
say("a signal ends it", waiting.wait)
fcntl.flock(h, fcntl.LOCK_SH)
say("flock and records are apart", lambda: (ask("h"), other("fcntl.flock(os.open('h', os.O_RDWR), fcntl.LOCK_SH | fcntl.LOCK_NB); print('shared')")))
say("leases", lambda: fcntl.fcntl(os.open("gg", RDONLY), fcntl.F_GETLEASE))
"#;
    let said = answers(&lab, program);
    assert!(said.contains("deadlock EDEADLOCK\n") && said.contains("both ('0000000111', '0000000111')\n"), "{said}");
    same(&mut lab);
}

#[test]
fn what_is_gone_and_what_has_no_name_is_used_as_in_a_plain_directory() {
    let mut lab = lab!("python3");
    prepared(&mut lab, |dir| {
        for name in ["f", "g", "h", "d/x", "e/x", "up/down/x", "target/y"] {
            write(&dir.join(name), b"0123456789");
        }
        fs::create_dir(dir.join("empty")).unwrap();
    });
    let program = r#"
def link(fd, to): return raw("linkat", -100, b"/proc/self/fd/%d" % fd, -100, to, 0x400)
def names(where="."): return sorted(os.listdir(where))
# A descriptor gives its file another name, while it has one.
f = os.open("f", RDONLY)
say("link", lambda: (link(f, b"f2"), os.fstat(f).st_nlink, os.stat("f2").st_nlink))
os.unlink("f"); os.unlink("f2")
say("gone", lambda: os.fstat(f).st_nlink)
say("link of what is gone", lambda: link(f, b"f3"))
say("read", lambda: os.pread(f, 10, 0))
say("write", lambda: os.pwrite(os.open("/proc/self/fd/%d" % f, RDWR), b"new", 0) and os.pread(f, 10, 0))
say("truncate", lambda: os.truncate("/proc/self/fd/%d" % f, 5) or os.pread(f, 10, 0))
say("times", lambda: os.utime(f, (5, 6)) or os.fstat(f).st_mtime)
say("xattr", lambda: (os.setxattr(f, "user.a", b"b"), os.getxattr(f, "user.a"), os.listxattr(f)))
say("chmod", lambda: os.chmod(f, 0o642) or oct(os.fstat(f).st_mode))
say("chown", lambda: os.chown(f, 3, 4) or (os.fstat(f).st_uid, os.fstat(f).st_gid))
# A program that is deleted and run by its descriptor, a file renamed over while it is open, and again.
h = os.open("h", RDWR)
os.rename("g", "h")
say("over", lambda: (os.fstat(h).st_nlink, os.pwrite(h, b"old", 0), os.pread(os.open("h", RDONLY), 3, 0)))
say("names", names)
# Directories that are gone.
d = os.open("d", os.O_RDONLY | os.O_DIRECTORY)
os.unlink("d/x")
here = os.getcwd()
os.chdir("d")
os.rmdir("../d")
say("cwd", os.getcwd)
say("list", lambda: os.listdir(d))
say("list .", lambda: os.listdir("."))
say("create", lambda: os.open("x", CREAT | WRONLY))
say("mkdir", lambda: os.mkdir("x"))
say("stat", lambda: (os.stat(".").st_nlink, os.stat("..").st_ino == os.stat(here).st_ino))
say("look-up", lambda: os.stat("x"))
say("move into", lambda: os.rename(here + "/h", "h"))
say("link into", lambda: os.link(here + "/h", "h"))
say("chmod", lambda: os.fchmod(d, 0o700))
os.chdir(here)
say("made again", lambda: os.mkdir("d") or (os.listdir("d"), os.listdir(d)))
# A directory that was renamed over another that is open.
empty = os.open("empty", RDONLY)
os.rename("e", "empty")
say("over a directory", lambda: (os.listdir(empty), os.fstat(empty).st_nlink, names("empty")))
say("create in it", lambda: os.open("x", CREAT | WRONLY, dir_fd=empty))
# A directory that moves while somebody is in it.
os.chdir("up/down")
os.rename("../../up", "../../target/up")
say("moved", lambda: (os.getcwd() == here + "/target/up/down", os.listdir("../.."), os.stat("../../y").st_size))
os.chdir(here)
say("into itself", lambda: os.rename("target", "target/up/target"))
say("over its own parent", lambda: os.rename("target/up/down", "target/up"))
say("names", lambda: (names(), names("target"), names("empty")))
"#;
    let said = answers(&lab, program);
    assert!(said.contains("link of what is gone ENOENT\n") && said.contains("cwd ENOENT\n"), "{said}");
    same(&mut lab);
}
