//! What programs do with files besides reading and writing them.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use plyfs_sys::Errno;

use crate::lab::{append, errno, eventually, find, lab, names, open_rw, python, sh};

#[test]
fn flock_is_seen_by_other_processes_before_and_after_copy_up() {
    let mut lab = lab!("flock");
    lab.write_lower("f", "x");
    lab.mount();
    let locked = || sh(&lab.mnt(""), "flock -n f echo free || echo locked");
    assert_eq!(locked(), "free\n");
    let reader = File::open(lab.mnt("f")).unwrap();
    reader.lock().unwrap();
    assert_eq!(locked(), "locked\n");
    // The lock is the inode's; that its data moves is nobody's business.
    append(&lab.mnt("f"), "y");
    assert_eq!(locked(), "locked\n");
    reader.unlock().unwrap();
    assert_eq!(locked(), "free\n");
    reader.lock_shared().unwrap();
    assert_eq!(locked(), "locked\n");
    assert_eq!(sh(&lab.mnt(""), "flock -s -n f echo shared"), "shared\n");
    drop(reader);
    // A waiting lock gets it, and holds up nobody meanwhile.
    let holder = File::open(lab.mnt("f")).unwrap();
    holder.lock().unwrap();
    let mut waiting = Command::new("flock").arg(lab.mnt("f")).args(["echo", "got it"]).stdout(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert!(waiting.try_wait().unwrap().is_none());
    fs::write(lab.mnt("other"), "x").unwrap();
    drop(holder);
    eventually("the lock is got", || waiting.try_wait().unwrap().is_some());
    lab.unmount();
}

#[test]
fn record_locks_are_seen_by_other_processes_before_and_after_copy_up() {
    let mut lab = lab!("python3");
    lab.write_lower("f", "0123456789");
    lab.mount();
    let program = r#"
import fcntl, os, subprocess, sys
other = '''
import fcntl, sys
f = open("f", "r+b")
try:
    fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 2, int(sys.argv[1]))
    print("free")
except OSError:
    print("locked")
'''
def ask(at):
    return subprocess.check_output([sys.executable, "-c", other, str(at)], text=True).strip()
early = open("f", "rb")
fcntl.lockf(early, fcntl.LOCK_SH, 2, 8)
f = open("f", "r+b")
fcntl.lockf(f, fcntl.LOCK_EX, 3, 2)
assert [ask(at) for at in (0, 1, 3, 5, 8)] == ["free", "locked", "locked", "free", "locked"]
f.write(b"x"); f.flush()
assert [ask(at) for at in (0, 4, 8)] == ["free", "locked", "locked"]
fcntl.lockf(f, fcntl.LOCK_UN)
assert ask(4) == "free"
"#;
    python(&lab.mnt(""), program);
    lab.unmount();
}

/// Starts a program, again while some other test's child still holds a descriptor from its making.
fn start(program: &Path) -> Child {
    let mut child = None;
    eventually("the program starts", || match Command::new(program).arg("60").spawn() {
        Ok(started) => {
            child = Some(started);
            true
        }
        Err(error) => {
            assert_eq!(errno::<()>(Err(error)), Some(Errno::TXTBSY));
            false
        }
    });
    child.unwrap()
}

#[test]
fn programs_run_from_all_layers_and_are_not_written_while_they_run() {
    let mut lab = lab!("sleep");
    let sleep = find("sleep").unwrap().canonicalize().unwrap();
    // A program that is many goes by its name.
    if sleep.file_name().unwrap() != "sleep" {
        crate::skip::skip!("sleep is {}", sleep.display());
    }
    for dir in ["low", "copied"] {
        fs::create_dir(lab.lower(dir)).unwrap();
        fs::copy(&sleep, lab.lower(dir).join("sleep")).unwrap();
    }
    lab.mount();
    fs::create_dir(lab.mnt("up")).unwrap();
    fs::copy(&sleep, lab.mnt("up/sleep")).unwrap();
    append(&lab.mnt("copied/sleep"), "");
    fs::set_permissions(lab.mnt("copied/sleep"), fs::Permissions::from_mode(0o755)).unwrap();
    open_rw(&lab.mnt("copied/sleep")).unwrap();
    for dir in ["low", "copied", "up"] {
        let program = lab.mnt(dir).join("sleep");
        let mut child = start(&program);
        let attempts = [
            errno(open_rw(&program)),
            errno(fs::OpenOptions::new().append(true).open(&program)),
            errno(fs::OpenOptions::new().write(true).truncate(true).open(&program)),
            errno(rustix::fs::open(&program, rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::TRUNC, 0.into()).map_err(Into::into)),
        ];
        let size = fs::metadata(&program).unwrap().len();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(attempts, [Some(Errno::TXTBSY); 4], "{dir}");
        assert_eq!(size, fs::metadata(&sleep).unwrap().len(), "{dir}");
        // Then it may be written; and not run while it is open for that.
        let writer = open_rw(&program).unwrap();
        assert_eq!(errno(Command::new(&program).arg("0").spawn()), Some(Errno::TXTBSY), "{dir}");
        drop(writer);
        let mut child = start(&program);
        child.kill().unwrap();
        child.wait().unwrap();
    }
    lab.unmount();
}

#[test]
fn a_program_that_runs_is_replaced_and_deleted() {
    let mut lab = lab!("sleep");
    let sleep = find("sleep").unwrap().canonicalize().unwrap();
    fs::copy(&sleep, lab.lower("sleep")).unwrap();
    fs::copy(&sleep, lab.lower("new")).unwrap();
    lab.mount();
    let mut child = start(&lab.mnt("sleep"));
    fs::rename(lab.mnt("new"), lab.mnt("sleep")).unwrap();
    assert!(child.try_wait().unwrap().is_none());
    let mut second = start(&lab.mnt("sleep"));
    fs::remove_file(lab.mnt("sleep")).unwrap();
    assert!(second.try_wait().unwrap().is_none());
    for child in [&mut child, &mut second] {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    lab.unmount();
}

#[test]
fn sockets_take_connections() {
    let mut lab = lab!();
    lab.mount();
    let path = lab.mnt("socket");
    let listener = UnixListener::bind(&path).unwrap();
    assert!(fs::symlink_metadata(&path).unwrap().file_type().is_socket());
    // By its name, by another of its names, and after a rename.
    fs::hard_link(&path, lab.mnt("linked")).unwrap();
    fs::create_dir(lab.mnt("d")).unwrap();
    fs::rename(&path, lab.mnt("d/moved")).unwrap();
    for name in ["linked", "d/moved"] {
        let mut client = UnixStream::connect(lab.mnt(name)).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        client.write_all(b"ping").unwrap();
        let mut text = [0; 4];
        server.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"ping");
    }
    assert_eq!(errno(UnixListener::bind(lab.mnt("linked"))), Some(Errno::ADDRINUSE));
    assert_eq!(errno(File::open(lab.mnt("linked"))), Some(Errno::NXIO));
    drop(listener);
    lab.remount();
    assert!(fs::symlink_metadata(lab.mnt("d/moved")).unwrap().file_type().is_socket());
    assert_eq!(errno(UnixStream::connect(lab.mnt("d/moved"))), Some(Errno::CONNREFUSED));
    lab.unmount();
}

#[test]
fn fifos_carry_data_and_leave_the_server_free() {
    let mut lab = lab!();
    sh(&lab.lower(""), "mkfifo low copied");
    lab.mount();
    sh(&lab.mnt(""), "mkfifo up; chmod 600 copied");
    for name in ["low", "copied", "up"] {
        let path = lab.mnt(name);
        assert!(fs::symlink_metadata(&path).unwrap().file_type().is_fifo());
        let reader = std::thread::spawn(move || fs::read_to_string(path).unwrap());
        // The reader waits for a writer; the mount does not.
        std::thread::sleep(std::time::Duration::from_millis(20));
        fs::write(lab.mnt("other"), "x").unwrap();
        fs::OpenOptions::new().write(true).open(lab.mnt(name)).unwrap().write_all(b"through the pipe").unwrap();
        assert_eq!(reader.join().unwrap(), "through the pipe");
    }
    assert_eq!(names(&lab.upper("")), ["copied", "other", "up"]);
    lab.unmount();
}

#[test]
fn devices_work() {
    let mut lab = lab!();
    sh(&lab.lower(""), "mknod -m 666 null c 1 3; mknod -m 666 zero c 1 5");
    lab.mount();
    fs::set_permissions(lab.mnt("zero"), fs::Permissions::from_mode(0o600)).unwrap();
    sh(&lab.mnt(""), "mknod full c 1 7");
    let mut zeros = [1; 16];
    File::open(lab.mnt("zero")).unwrap().read_exact(&mut zeros).unwrap();
    assert_eq!(zeros, [0; 16]);
    assert_eq!(File::open(lab.mnt("null")).unwrap().read(&mut zeros).unwrap(), 0);
    assert_eq!(errno(fs::write(lab.mnt("full"), "x")), Some(Errno::NOSPC));
    lab.unmount();
}

#[test]
fn statfs_is_that_of_the_upper() {
    let mut lab = lab!();
    let small = lab.tmpfs("small", "size=8m");
    lab.upper = small.join("upper");
    lab.work = small.join("work");
    fs::create_dir(&lab.upper).unwrap();
    fs::create_dir(&lab.work).unwrap();
    lab.mount();
    for _ in 0..2 {
        let of = |path: &Path| {
            let stat = rustix::fs::statvfs(path).unwrap();
            (stat.f_blocks * stat.f_frsize, stat.f_bfree * stat.f_frsize, stat.f_files, stat.f_ffree, stat.f_namemax)
        };
        assert_eq!(of(&lab.mnt("")), of(&small));
        assert_eq!(of(&lab.mnt("")).0, 8 << 20);
        fs::write(lab.mnt("f"), vec![1; 3 << 20]).unwrap();
    }
    lab.unmount();
}

#[test]
fn git_works_on_a_lower_repository() {
    let mut lab = lab!("git");
    let git = "export HOME=$PWD GIT_CONFIG_NOSYSTEM=1; git config --global user.email a@b; git config --global user.name n
        git config --global init.defaultBranch main; git config --global --add safe.directory '*'";
    sh(
        &lab.lower(""),
        &format!("{git}\nmkdir r; cd r; git init -q; for i in 1 2 3; do echo $i > f$i; done; git add .; git commit -qm one"),
    );
    lab.mount();
    let script = format!(
        "{git}\ncd r; test -z \"$(git status --porcelain)\"; echo more >> f1; git mv f2 g2; rm f3; git add -A; git commit -qm two; git gc -q
        git checkout -q -b other HEAD~1; test \"$(cat f2)\" = 2; git checkout -q main; git fsck --strict; git status --porcelain; cat f1 g2; ls"
    );
    assert_eq!(sh(&lab.mnt(""), &script), "1\nmore\n2\nf1\ng2\n");
    lab.remount();
    assert_eq!(sh(&lab.mnt(""), &format!("{git}\ncd r; git fsck --strict; git status --porcelain; git log --format=%s")), "two\none\n");
    lab.unmount();
}
