//! Modes, owners and ACLs: after the same commands the mount shows what a plain directory shows.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::lab::{lab, run, set_xattr, sh, sh_as};
use crate::plain::{prepared, same};

/// A program as somebody with these ids, groups and capabilities. Not from root's own directories.
fn setpriv(ids: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(ids.split(' ')).env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin");
    command
}

#[test]
fn setuid_setgid_and_capabilities_go_when_a_file_is_changed_as_on_a_plain_directory() {
    let mut lab = lab!("python3", "setpriv");
    // How to change the file `sys.argv[1]`.
    let ways = [
        ("write", "os.write(os.open(f, os.O_WRONLY), b'x')"),
        ("append", "os.write(os.open(f, os.O_WRONLY | os.O_APPEND), b'x')"),
        ("opened-to-write", "os.open(f, os.O_RDWR)"),
        ("open-truncate", "os.open(f, os.O_WRONLY | os.O_TRUNC)"),
        ("truncate", "os.truncate(f, 1)"),
        ("truncate-same", "os.truncate(f, 4)"),
        ("truncate-0", "os.truncate(f, 0)"),
        ("ftruncate", "os.ftruncate(os.open(f, os.O_RDWR), 2)"),
        ("fallocate", "os.posix_fallocate(os.open(f, os.O_RDWR), 0, 100)"),
        ("punch", "punch(os.open(f, os.O_RDWR))"),
        ("copy-range", "os.copy_file_range(os.open('source', os.O_RDONLY), os.open(f, os.O_WRONLY), 3)"),
        ("mmap", "m = mmap.mmap(os.open(f, os.O_RDWR), 4); m[0:1] = b'x'; m.close()"),
        ("read", "os.read(os.open(f, os.O_RDONLY), 9)"),
        ("utime", "os.utime(f, (1, 1))"),
    ];
    let owner_ways = [
        ("chown-owner", "os.chown(f, 4321, -1)"),
        ("chgrp", "os.chown(f, -1, 77)"),
        ("chgrp-own", "os.chown(f, -1, 1235)"),
        ("chown-same", "os.chown(f, 1235, 99)"),
        ("acl", "os.setxattr(f, 'system.posix_acl_access', acl)"),
        ("acl-less", "os.setxattr(f, 'system.posix_acl_access', acl[:12] + acl[20:28] + acl[36:])"),
        ("chmod", "os.chmod(f, 0o6711)"),
        ("chmod-2", "os.chmod(f, 0o2701)"),
        ("utime-owner", "os.utime(f, (2, 2))"),
    ];
    let modes = ["6777", "2777", "4777", "4766", "0777", "1777", "2767", "6767"];
    // The files are 1235's, of the group 99.
    let users = [
        ("root", "--reuid 0 --regid 0 --clear-groups"),
        ("root-without", "--reuid 0 --regid 0 --clear-groups --bounding-set -fsetid"),
        ("stranger", "--reuid 1234 --regid 1234 --clear-groups"),
        ("strange-member", "--reuid 1234 --regid 1234 --groups 7,99"),
        ("owner", "--reuid 1235 --regid 1235 --clear-groups"),
        ("owner-member", "--reuid 1235 --regid 1235 --groups 7,99"),
        ("owner-of-group", "--reuid 1235 --regid 99 --clear-groups"),
    ];
    let all: Vec<_> = ways.iter().chain(&owner_ways).collect();
    prepared(&mut lab, |dir| {
        fs::write(dir.join("source"), "source").unwrap();
        for (what, _) in &all {
            for mode in modes {
                for (user, _) in users {
                    let file = dir.join(format!("{what} {mode} by {user}"));
                    fs::write(&file, "text").unwrap();
                    std::os::unix::fs::chown(&file, Some(1235), Some(99)).unwrap();
                    fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(u32::from_str_radix(mode, 8).unwrap()))
                        .unwrap();
                    // The server writes what a mapping changed, which takes capabilities away; a plain file keeps them.
                    if mode == "0777" && *what != "mmap" {
                        set_xattr(&file, "security.capability", b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
                    }
                }
            }
        }
        fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    });
    let program: String = all.iter().map(|(what, how)| format!("def do_{}(f):\n    {how}\n", what.replace('-', "_"))).collect();
    for (user, ids) in users {
        let program = format!(
            "import ctypes, mmap, os, struct, sys\ndef punch(fd): ctypes.CDLL(None).fallocate(fd, 3, ctypes.c_long(0), ctypes.c_long(2))\n\
             entry = lambda tag, perm, who=0xffffffff: struct.pack('<HHI', tag, perm, who)\n\
             acl = struct.pack('<I', 2) + entry(1, 7) + entry(2, 5, 1234) + entry(4, 7) + entry(16, 7) + entry(32, 5)\n{program}\n\
             for f in sorted(os.listdir('.')):\n    if not f.endswith(' by {user}'): continue\n    \
             try: globals()['do_' + f.split()[0].replace('-', '_')](f); print(f, 'ok')\n    except OSError as e: print(f, e.errno)\n"
        );
        let answers = |dir: &Path| run(setpriv(ids).args(["python3", "-c", &program]).current_dir(dir));
        let plain = answers(&lab.plain(""));
        for dir in ["low", "up"] {
            let found = answers(&lab.mnt(dir));
            let differ: Vec<_> = plain.lines().zip(found.lines()).filter(|(plain, found)| plain != found).collect();
            assert!(differ.is_empty(), "{dir} by {user}: plain, and here: {differ:#?}");
        }
    }
    same(&mut lab);
}

#[test]
fn default_acls_are_inherited_as_on_a_plain_directory() {
    let mut lab = lab!("setfacl");
    prepared(&mut lab, |dir| {
        sh(
            dir,
            "mkdir a b c; chmod 777 . a b c
            setfacl -d -m u:1234:rwx,g:99:r-x,m::rwx,o::--- a
            setfacl -d -m u::rwx,g::r-x,o::--- b
            setfacl -m u:1234:r-x,u:1235:rwx c; setfacl -d -m u:1235:rw-,m::r-- c
            echo old > c/old; chmod 600 c/old; setfacl -m u:1235:rw c/old",
        );
    });
    for user in [0, 1234, 1235] {
        let script = format!(
            "for umask in 022 077 000 027; do umask $umask; for d in a b c; do n=$d/{user}-$umask
            touch $n-file 2>/dev/null || continue; mkdir $n-dir; mkdir -m 711 $n-mode; mkfifo $n-fifo; ln -s x $n-link; mkdir -p $n-dir/sub/sub
            : > $n-dir/sub/file; cp $n-file $n-copy; ln $n-file $n-hard; mv $n-fifo $n-dir; done; done"
        );
        for dir in [lab.plain(""), lab.mnt("low"), lab.mnt("up")] {
            sh_as(user, &dir, &script);
        }
    }
    // ACLs are asked when files are opened.
    for dir in [lab.plain(""), lab.mnt("low"), lab.mnt("up")] {
        let opened =
            |user: u32| sh_as(user, &dir, "for f in c/old a/0-022-file a/0-077-file; do (: 3<>$f) 2>/dev/null && echo $f; done; :");
        assert_eq!([1234, 1235, 1236].map(opened).map(|text| text.lines().count()), [2, 1, 0], "{}", dir.display());
    }
    same(&mut lab);
}

#[test]
fn setgid_directories_pass_on_their_group_as_on_a_plain_directory() {
    let mut lab = lab!();
    prepared(&mut lab, |dir| {
        sh(dir, "chmod 777 .; for m in 2775 2777 3777 777; do mkdir $m; chown 1:5678 $m; chmod $m $m; done");
    });
    for user in [0, 1234] {
        let script = format!(
            "for umask in 022 077; do umask $umask; for d in 2777 3777 777; do n=$d/{user}-$umask
            : > $n-file; mkdir $n-dir; mkdir $n-dir/sub; : > $n-dir/sub/file; mkfifo $n-fifo; ln -s x $n-link; mkdir -m 700 $n-700
            : > $n-exec; chmod 2755 $n-exec; chmod 2711 $n-dir; mkdir ${{n}}-moved; mv ${{n}}-moved $n-dir; done; done"
        );
        for dir in [lab.plain(""), lab.mnt("low"), lab.mnt("up")] {
            sh_as(user, &dir, &script);
        }
    }
    same(&mut lab);
}

#[test]
fn the_umasks_of_server_and_caller_are_applied_as_on_a_plain_directory() {
    let mut lab = lab!("python3");
    lab.umask = 0o077;
    prepared(&mut lab, |dir| {
        sh(dir, "mkdir -m 777 d; echo x > d/old; chmod 666 d/old; rm d/old; chmod 777 .");
    });
    let program = "
import os, socket, stat
for mask in 0o000, 0o022, 0o027, 0o077, 0o777:
    os.umask(mask)
    for mode in 0o777, 0o666, 0o600, 0o4755, 0o1777:
        name = 'd/%o-%o-' % (mask, mode)
        os.close(os.open(name + 'file', os.O_CREAT | os.O_WRONLY, mode))
        os.mkdir(name + 'dir', mode)
        os.mkfifo(name + 'fifo', mode)
        os.mknod(name + 'node', mode | stat.S_IFREG)
        os.symlink('x', name + 'link')
        socket.socket(socket.AF_UNIX).bind(name + 'socket')
";
    for dir in [lab.plain(""), lab.mnt("low"), lab.mnt("up")] {
        crate::lab::python(&dir, program);
    }
    same(&mut lab);
}

#[test]
fn who_may_not_is_refused_as_on_a_plain_directory() {
    let mut lab = lab!("setpriv", "setfacl");
    prepared(&mut lab, |dir| {
        sh(
            dir,
            "chmod 755 .; echo s > secret; chmod 600 secret; echo s > own; chown 1234 own; mkdir closed; echo x > closed/x; chmod 700 closed
            mkdir -m 1777 sticky; echo x > sticky/roots; echo x > sticky/own; chown 1234 sticky/own; mkdir -m 777 open; echo x > open/roots
            mkdir -m 755 read; echo x > read/x; mkdir -m 711 pass; echo x > pass/x
            mkdir -m 3777 sticky2; chown 1236:1234 sticky2; for u in 0 1234 1235 1236; do echo x > sticky2/$u; chown $u sticky2/$u; mkdir sticky2/dir$u; chown $u sticky2/dir$u; done
            echo x > group; chown 0:1234 group; chmod 060 group; echo x > nogroup; chown 0:1234 nogroup; chmod 606 nogroup
            echo x > acl; chmod 600 acl; setfacl -m u:1235:rw,g:1234:r acl; echo x > masked; setfacl -m u:1234:rw,m:r masked
            mkdir -m 700 acldir; echo x > acldir/x; setfacl -m u:1235:x,g:1234:rx acldir",
        );
    });
    let script = "t() { if \"$@\" >/dev/null 2>&1; then echo \"$*: yes\"; else echo \"$*: no\"; fi; }
        t cat secret; t cat own; t sh -c ': 3<>secret'; t sh -c ': 3<>own'; t cat closed/x; t ls closed; t rm sticky/roots; t mv sticky/roots sticky/new
        t rm sticky/own; t rm open/roots; t touch read/new; t rm read/x; t ls pass; t cat pass/x; t chmod 777 secret; t chmod 700 own; t chown 0 own
        t mv closed open/closed; t ln secret open/ln; t mkdir new; t mv own open/own";
    let more = "; for f in group nogroup acl masked acldir/x; do t cat $f; t sh -c \": 3<>$f\"; t test -x $f; done; t ls acldir; t touch acldir/new; t setfacl -m u:1234:rw acl
        for u in 0 1234 1235 1236; do t mv sticky2/$u sticky2/moved$u; t mv sticky2/dir$u open/dir$u; t rm sticky2/moved$u; t mv -T open sticky2/dir$u; done
        t mkdir sticky2/by-$(id -u); t chmod 1777 sticky2; t touch sticky2/1235; t chgrp 1234 own; t chgrp 1235 own";
    for who in [
        "--reuid 1234 --regid 1234 --clear-groups",
        "--reuid 1235 --regid 1235 --clear-groups",
        "--reuid 1236 --regid 1236 --groups 7,1234",
        "--reuid 1237 --regid 1237 --clear-groups",
        "--reuid 0 --regid 0 --clear-groups --bounding-set -dac_override,-dac_read_search,-fowner,-chown",
        "--reuid 0 --regid 0 --clear-groups",
    ] {
        let run_as = |dir: &Path| {
            let mut command = setpriv(who);
            command.args(["sh", "-c", &format!("umask 022; {script}{more}")]).current_dir(dir).env("LC_ALL", "C");
            run(command.stdin(std::process::Stdio::null()))
        };
        let answers = [lab.plain(""), lab.mnt("low"), lab.mnt("up")].map(|dir| run_as(&dir));
        for (answer, place) in [(&answers[1], "low"), (&answers[2], "up")] {
            let differ: Vec<_> = answers[0].lines().zip(answer.lines()).filter(|(plain, found)| plain != found).collect();
            assert!(
                differ.is_empty() && answers[0].lines().count() == answer.lines().count(),
                "{who} in {place}: plain, and here: {differ:#?}"
            );
        }
    }
    same(&mut lab);
}
