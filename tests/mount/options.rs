//! What the options of a mount change; see docs/OPTIONS.md.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use plyfs_sys::{Errno, mount};

use crate::lab::{Lab, errno, lab, names, python, run, set_xattr, sh, xattrs};

/// Mounts with these options instead of the lab's own.
fn with(lab: &mut Lab, more: &'static str) {
    lab.more = more;
    lab.mount();
}

/// The lines of what is refused.
fn refused(lab: &Lab, more: &str) -> String {
    let mut options = lab.options();
    options.push(more);
    let output = lab.plyfs(&["mount", "-o"]).arg(options).arg(lab.mnt("")).output().unwrap();
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn redirects_are_written_followed_and_refused_as_in_the_kernel() {
    let program = r#"
import errno, os
def say(what, do):
    try: print(what, do())
    except OSError as e: print(what, errno.errorcode[e.errno])
say("redirected", lambda: sorted(os.listdir("new")))
say("below it", lambda: open("new/f").read())
say("a change below", lambda: os.mkdir("new/made"))
say("rename of a lower directory", lambda: os.rename("low", "low2"))
say("rename of what is below", lambda: os.rename("dir/sub", "dir/sub2"))
say("rename of a new directory", lambda: (os.mkdir("own"), os.rename("own", "own2"))[1])
say("rename of a file", lambda: os.rename("dir/f", "dir/g"))
say("names", lambda: sorted(set(os.listdir(".")) - {"new"}))
"#;
    for mode in ["on", "follow", "off", "nofollow"] {
        let mut answers = Vec::new();
        for kernel in [true, false] {
            let mut lab = lab!("python3");
            for file in ["old/f", "low/f", "dir/f", "dir/sub/f"] {
                lab.write_lower(file, file);
            }
            fs::create_dir(lab.upper("new")).unwrap();
            set_xattr(&lab.upper("new"), "trusted.overlay.redirect", b"/old");
            // Made by the kernel, it would be there.
            fs::create_dir(lab.upper("old")).unwrap();
            set_xattr(&lab.upper("old"), "trusted.overlay.opaque", b"y");
            let option = format!(",redirect_dir={mode}");
            if kernel {
                let mut options = lab.options();
                options.push(&option);
                crate::kernel::overlay(&options, &lab.mnt("")).unwrap();
                answers.push(python(&lab.mnt(""), program));
                mount::umount(lab.mnt("").as_path(), false).unwrap();
            } else {
                with(&mut lab, option.leak());
                answers.push(python(&lab.mnt(""), program));
                lab.unmount();
            }
        }
        assert_eq!(answers[1], answers[0], "redirect_dir={mode}: here, and in the kernel");
        assert_eq!(answers[0].contains("redirected EPERM"), mode == "nofollow");
        assert_eq!(answers[0].contains("rename of a lower directory EXDEV"), mode != "on");
    }
}

#[test]
fn without_acls_none_is_shown_obeyed_or_inherited_and_none_is_lost() {
    let mut lab = lab!("setfacl", "getfacl", "setpriv");
    lab.write_lower("dir/f", "text");
    sh(&lab.lower(""), "chmod 755 . dir; chmod 640 dir/f; setfacl -m u:1234:rw dir/f; setfacl -d -m u:1234:rwx dir");
    with(&mut lab, ",noacl");
    let dir = lab.mnt("dir");
    assert_eq!(xattrs(&dir.join("f")), []);
    let access = "system.posix_acl_access";
    let set = |path: &Path| rustix::fs::lsetxattr(path, access, b"\x02\0\0\0", rustix::fs::XattrFlags::empty());
    assert_eq!(set(&dir.join("f")), Err(Errno::OPNOTSUPP));
    assert_eq!(rustix::fs::lgetxattr(dir.join("f"), access, &mut [0; 100][..]), Err(Errno::OPNOTSUPP));
    let read = |path: PathBuf| {
        let cat = ["--reuid", "1234", "--regid", "1234", "--clear-groups", "cat"];
        Command::new("setpriv").args(cat).arg(path).output().unwrap().status.success()
    };
    assert!(!read(dir.join("f")), "the ACL is not obeyed");
    sh(&dir, "umask 027; mkdir sub; touch new; echo more >> f");
    assert_eq!(sh(&dir, "stat -c %a sub new").trim(), "750\n640", "the umask is");
    lab.unmount();
    with(&mut lab, "");
    assert!(sh(&dir, "getfacl -cn f").contains("user:1234:rw-") && read(dir.join("f")), "they were copied up");
    assert!(sh(&dir, "getfacl -cn .").contains("default:user:1234:rwx"));
    assert_eq!(xattrs(&dir.join("sub")), [], "what was made without has none");
    lab.unmount();
}

#[test]
fn directories_have_one_link_where_asked_for() {
    let mut lab = lab!();
    for dir in ["low/a", "low/b"] {
        fs::create_dir_all(lab.lower(dir)).unwrap();
    }
    fs::create_dir_all(lab.upper("own/a")).unwrap();
    for (more, expected) in [("", [4, 3]), (",static_nlink", [1, 1])] {
        with(&mut lab, more);
        assert_eq!(["low", "own"].map(|dir| fs::metadata(lab.mnt(dir)).unwrap().nlink()), expected, "{more}");
        lab.unmount();
    }
}

#[test]
fn numbers_are_the_filesystems_own_where_asked_for() {
    let mut lab = lab!();
    let other = lab.tmpfs("other", "size=1m");
    fs::write(other.join("f"), "x").unwrap();
    lab.write_lower("g", "x");
    lab.lowers.push(other.clone());
    let own = fs::metadata(other.join("f")).unwrap().ino();
    for (more, plain) in [("", false), (",xino=off", true)] {
        with(&mut lab, more);
        assert_eq!(fs::metadata(lab.mnt("f")).unwrap().ino() == own, plain, "{more}");
        lab.unmount();
    }
}

#[test]
fn what_kernel_overlayfs_would_not_show_is_not_made_where_asked_for() {
    let program = r#"
import ctypes, errno, os, stat
def say(what, do):
    try: print(what, do())
    except OSError as e: print(what, errno.errorcode[e.errno])
def whiteout():
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(-100, b"f", -100, b"g", 4): raise OSError(ctypes.get_errno(), "")
say("mknod", lambda: os.mknod("device", stat.S_IFCHR | 0o600, os.makedev(0, 0)))
say("another", lambda: os.mknod("other", stat.S_IFCHR | 0o600, os.makedev(0, 1)))
say("rename", whiteout)
say("names", lambda: sorted(os.listdir(".")))
"#;
    let mut lab = lab!("python3");
    lab.write_lower("f", "f");
    with(&mut lab, ",kernel_compat=on");
    let here = python(&lab.mnt(""), program);
    lab.unmount();
    let kernel = Lab::new();
    kernel.write_lower("f", "f");
    crate::kernel::overlay(kernel.options(), &kernel.mnt("")).unwrap();
    let there = python(&kernel.mnt(""), program);
    mount::umount(kernel.mnt("").as_path(), false).unwrap();
    assert_eq!(here, there);
    assert!(here.starts_with("mknod EPERM\nanother None\nrename EINVAL\n"), "{here}");
}

#[test]
fn an_upper_of_a_volatile_mount_is_mounted_again_in_the_same_boot_alone() {
    let mut lab = lab!();
    lab.write_lower("f", "f");
    let mark = lab.work.join("work/incompat/volatile");
    with(&mut lab, ",volatile");
    fs::write(lab.mnt("new"), "new").unwrap();
    assert_eq!(names(&mark), ["boot", "dirty"]);
    lab.unmount();
    assert_eq!(names(&mark), ["boot", "dirty"], "what was written may not be on the disk yet");
    assert_eq!(crate::kernel::overlay(lab.options(), &lab.mnt("")), Err(Errno::INVAL), "the kernel knows the mark");
    with(&mut lab, ",volatile");
    assert_eq!(fs::read_to_string(lab.mnt("new")).unwrap(), "new");
    lab.unmount();
    // Of another boot, of nobody knows which, and of the kernel.
    let boot = fs::read_to_string(mark.join("boot")).unwrap();
    fs::write(lab.work.join("work/litter"), "x").unwrap();
    for other in [Some(boot.replace(|c: char| c.is_ascii_hexdigit(), "0")), Some(String::new()), None] {
        match other {
            Some(other) => fs::write(mark.join("boot"), other).unwrap(),
            None => fs::remove_file(mark.join("boot")).unwrap(),
        }
        for more in ["", ",volatile"] {
            let text = refused(&lab, more);
            assert!(text.contains("the last mount was volatile") && text.contains("remove work/incompat/volatile"), "{text}");
        }
        assert_eq!(names(&lab.work.join("work")), ["incompat", "litter"], "nothing is emptied");
    }
    // As podman does.
    fs::remove_dir_all(&mark).unwrap();
    with(&mut lab, "");
    assert_eq!(fs::read_to_string(lab.mnt("new")).unwrap(), "new");
    lab.unmount();
    assert!(!mark.exists());
    // Without an upper there is nothing to lose.
    fs::write(lab.work.join("work/x"), "").unwrap();
    let lower = format!("lowerdir={},volatile", lab.lower("").display());
    run(lab.plyfs(&["mount", "-o", &lower]).arg(lab.mnt("")));
    run(lab.plyfs(&["umount"]).arg(lab.mnt("")));
}

#[test]
fn the_kernel_believes_what_it_was_told_as_long_as_asked_for() {
    let mut lab = lab!();
    lab.write_upper("f", "1");
    for more in [",timeout=0", ",attr_timeout=0,entry_timeout=0.5", ",timeout=100,attr_timeout=0.0"] {
        fs::write(lab.upper("f"), "1").unwrap();
        with(&mut lab, more);
        assert_eq!(fs::metadata(lab.mnt("f")).unwrap().len(), 1);
        // Behind the union's back, which is nobody's right; it shows who was asked.
        fs::write(lab.upper("f"), "four").unwrap();
        assert_eq!(fs::metadata(lab.mnt("f")).unwrap().len(), 4, "{more}");
        lab.unmount();
    }
}

#[test]
fn a_security_context_is_the_kernels_to_take_or_refuse() {
    let lab = lab!();
    if Path::new("/sys/fs/selinux/enforce").exists() {
        return;
    }
    let text = refused(&lab, r#",context="system_u:object_r:container_file_t:s0:c1,c2""#);
    assert!(text.contains("option context=") && text.contains("; ") && text.lines().count() == 1, "{text}");
}

#[test]
fn mounts_travel_and_links_are_followed_as_the_options_say() {
    let mut lab = lab!();
    lab.write_lower("f", "text");
    symlink("f", lab.lower("link")).unwrap();
    with(&mut lab, ",nosymfollow,private");
    assert_eq!(errno(fs::read(lab.mnt("link"))), Some(Errno::LOOP));
    assert_eq!(fs::read_link(lab.mnt("link")).unwrap(), Path::new("f"));
    lab.unmount();
    with(&mut lab, ",nosymfollow,symfollow");
    assert_eq!(fs::read_to_string(lab.mnt("link")).unwrap(), "text");
    lab.unmount();
    // Where mounts travel both ways.
    let place = lab.mountpoint("shared");
    run(Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(&place));
    run(Command::new("mount").arg("--make-shared").arg(&place));
    for (propagation, tag) in [("", "shared:"), (",private", ""), (",rprivate", ""), (",shared", "shared:"), (",unbindable", "unbindable")]
    {
        let at = place.join(format!("m{}", propagation.trim_start_matches(',')));
        fs::create_dir(&at).unwrap();
        let options = format!("lowerdir={}{propagation}", lab.lower("").display());
        run(lab.plyfs(&["mount", "-o", &options]).arg(&at));
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let line = table.lines().find(|line| line.contains(at.to_str().unwrap())).unwrap();
        let tags = line.split_once(" - ").unwrap().0.split(' ').skip(6).collect::<Vec<_>>().join(" ");
        assert!(if tag.is_empty() { tags.is_empty() } else { tags.starts_with(tag) }, "{propagation}: {line}");
        run(lab.plyfs(&["umount"]).arg(&at));
    }
}
