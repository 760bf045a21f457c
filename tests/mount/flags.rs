//! Inode flags: chattr(1) and lsattr(1), and what immutable and append-only forbid, as on a plain directory.

use std::fs;
use std::path::{Path, PathBuf};

use crate::lab::{Lab, lab, names, python, run, sh, shell};

/// What [`tried`] works on, in a directory of its own for each kind of protection. No flag is set yet.
fn prepare(dir: &Path) {
    fs::create_dir_all(dir).unwrap();
    sh(
        dir,
        "mkdir -m 777 other; for kind in plain i a; do mkdir -p $kind/dir/sub $kind/empty; echo text > $kind/file; echo text > $kind/dir/file; echo other > $kind/other
        chmod -R go+w $kind; setfattr -n user.a -v 1 $kind/file; done",
    );
}

/// Sets or takes away the flags that the directories are named after.
fn chattr(dir: &Path, sign: &str) {
    sh(dir, &format!("for kind in i a; do chattr {sign}$kind $kind/file $kind/dir $kind/empty; done"));
}

/// Tries everything that changes something on each protected object; one line an attempt. Not unlink of a directory and rmdir of a file: there the kernel, which does not know
/// the flags, says what is wrong with the kind before it asks.
fn tried(dir: &Path) -> String {
    python(
        dir,
        "
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
def renameat2(a, b, flags):
    if libc.renameat2(-100, a.encode(), -100, b.encode(), flags) != 0: raise OSError(ctypes.get_errno(), '')
def write(how): os.write(os.open('file', how), b'x')
def fallocate(fd, mode):
    if libc.fallocate(fd, mode, ctypes.c_long(0), ctypes.c_long(2)) != 0: raise OSError(ctypes.get_errno(), '')
ways = '''
write(os.O_WRONLY)
write(os.O_RDWR)
write(os.O_WRONLY | os.O_APPEND)
write(os.O_WRONLY | os.O_APPEND | os.O_TRUNC)
os.open('file', os.O_RDONLY | os.O_TRUNC)
os.open('file', os.O_CREAT | os.O_WRONLY)
os.open('file', os.O_CREAT | os.O_EXCL | os.O_WRONLY)
os.truncate('file', 1)
os.ftruncate(os.open('file', os.O_WRONLY | os.O_APPEND), 1)
fallocate(os.open('file', os.O_WRONLY | os.O_APPEND), 0)
fallocate(os.open('file', os.O_WRONLY | os.O_APPEND), 1)
fallocate(os.open('file', os.O_WRONLY | os.O_APPEND), 3)
os.chmod('file', 0o600)
os.chown('file', 1, 1)
os.utime('file', (5, 5))
os.utime('file')
os.setxattr('file', 'user.a', b'2')
os.setxattr('file', 'trusted.b', b'2')
os.removexattr('file', 'user.a')
os.link('file', 'link')
os.link('other', 'dir/link')
os.link('other', 'dir/file')
os.rename('file', 'moved')
os.rename('other', 'file')
renameat2('other', 'file', 1)
renameat2('other', 'file', 2)
renameat2('file', 'other', 2)
renameat2('other', 'dir/new', 0)
renameat2('other', 'dir/new2', 4)
renameat2('dir/file', 'out', 0)
renameat2('dir/file', 'dir/file2', 0)
renameat2('dir', 'dir/sub/x', 0)
renameat2('empty', 'moved-dir', 0)
renameat2('dir/sub', 'empty', 0)
os.unlink('file')
os.unlink('dir/file')
os.unlink('dir/none')
os.rmdir('empty')
os.rmdir('dir/sub')
os.rmdir('dir')
os.mkdir('dir/new-dir')
os.mkdir('dir/file')
os.mknod('dir/fifo', 0o10644)
os.symlink('x', 'dir/symlink')
open('dir/new-file', 'w').close()
open('dir/file', 'a').write('inside')
os.mkdir('dir/sub/deep')
os.chmod('dir/sub', 0o711)
os.chmod('dir', 0o711)
os.setxattr('dir', 'user.d', b'1')
os.utime('dir')
'''.split('\\n')
top = os.getcwd()
for kind in 'plain', 'i', 'a':
    os.chdir(top + '/' + kind)
    for way in filter(None, ways):
        try: exec(way); said = 'ok'
        except OSError as e: said = errno.errorcode[e.errno]
        print(kind, way, said)
",
    )
}

#[test]
fn immutable_and_append_only_objects_are_as_on_a_plain_directory() {
    let mut lab = lab!("python3", "chattr", "setfattr");
    let plain = lab.path("plain");
    for dir in [plain.clone(), lab.lower("set-below"), lab.lower("low"), lab.upper("up")] {
        prepare(&dir);
    }
    chattr(&plain, "+");
    chattr(&lab.lower("set-below"), "+");
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        lab.mount();
        for dir in ["low", "up"] {
            chattr(&lab.mnt(dir), "+");
        }
        lab.remount();
        let want = tried(&plain);
        assert!(want.contains("EPERM") && want.contains("ok"), "{want}");
        for dir in ["set-below", "low", "up"] {
            let got = tried(&lab.mnt(dir));
            let differ: Vec<_> = want.lines().zip(got.lines()).filter(|(want, got)| want != got).collect();
            assert!(differ.is_empty(), "{dir}: plain, and here: {differ:#?}");
        }
        // They show, and can be taken away again.
        let flags =
            |dir: &Path| run(&mut shell(dir, "lsattr -d */* */dir/* | sed 's/[^ia ]//' | awk '{ print $2, ($1 ~ /i/), ($1 ~ /a/) }'"));
        let want = flags(&plain);
        for _ in 0..2 {
            for dir in ["set-below", "low", "up"] {
                assert_eq!(flags(&lab.mnt(dir)), want, "{dir}");
            }
            lab.remount();
        }
        for dir in ["set-below", "low", "up"] {
            chattr(&lab.mnt(dir), "-");
            sh(&lab.mnt(dir), "rm -r i a");
            assert_eq!(names(&lab.mnt(dir)), ["other", "plain"]);
        }
        lab.unmount();
    }));
    for dir in [plain, lab.lower("set-below")] {
        chattr(&dir, "-");
    }
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn inode_flags_are_kept_by_the_upper_and_through_copy_up() {
    let mut lab = lab!("chattr", "lsattr");
    for dir in [lab.lower("d"), lab.upper("u")] {
        fs::create_dir_all(dir.join("sub")).unwrap();
        fs::write(dir.join("file"), "text").unwrap();
    }
    sh(&lab.lower("d"), "chattr +SA file; chattr +A sub; ln -s file link");
    lab.mount();
    let flags = |dir: &Path, name: &str| sh(dir, &format!("lsattr -d {name} | cut -d' ' -f1"));
    let has = |dir: PathBuf, name: &str, letters: &str| letters.chars().all(|letter| flags(&dir, name).contains(letter));
    for _ in 0..2 {
        assert!(has(lab.mnt("d"), "file", "SA") && has(lab.mnt("d"), "sub", "A"));
        fs::write(lab.mnt("d/file"), "changed").unwrap();
        fs::write(lab.mnt("d/sub/new"), "new").unwrap();
        assert!(has(lab.upper("d"), "file", "SA") && has(lab.upper("d"), "sub", "A"));
        lab.remount();
    }
    sh(&lab.mnt("u"), "chattr +d file; chattr -R +A sub");
    sh(&lab.mnt("d"), "chattr =d file");
    assert!(has(lab.mnt("u"), "file", "d") && has(lab.upper("u"), "file", "d") && has(lab.upper("u"), "sub", "A"));
    assert!(has(lab.mnt("d"), "file", "d") && !has(lab.mnt("d"), "file", "S"));
    // Immutable is a mark: the object itself can still be marked and copied into.
    sh(&lab.mnt("d"), "chattr +i file sub");
    assert!(has(lab.mnt("d"), "file", "di") && !has(lab.upper("d"), "file", "i") && !has(lab.upper("d"), "sub", "i"));
    sh(&lab.mnt("d"), "chattr -i file sub; if chattr +d link 2>/dev/null; then exit 1; fi");
    lab.unmount();
}

#[test]
fn only_who_may_changes_inode_flags() {
    let mut lab: Lab = lab!("chattr");
    fs::create_dir(lab.upper("d")).unwrap();
    sh(&lab.upper("d"), "echo x > own; chown 1234 own; echo x > roots; chmod 666 roots");
    lab.mount();
    let may = |what: &str, name: &str| {
        let script = format!("if chattr {what} {name} 2>/dev/null; then echo yes; else echo no; fi");
        crate::lab::sh_as(1234, &lab.mnt("d"), &script)
    };
    assert_eq!([may("+d", "own"), may("+i", "own"), may("+a", "own"), may("+d", "roots")], ["yes\n", "no\n", "no\n", "no\n"]);
    lab.unmount();
}
