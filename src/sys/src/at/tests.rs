use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::*;
use crate::create::{mkdir, mknod, symlink, unlink};
use crate::testing::{Dir, ODD, privileged};

/// One object of every kind that needs no device, under the kind's own name.
fn zoo(dir: &Dir) -> [(Kind, &'static [u8]); 5] {
    mknod(dir.as_fd(), b"file", Kind::File, 0o644, 0).unwrap();
    mkdir(dir.as_fd(), b"dir", 0o755).unwrap();
    // Dangling on purpose: whatever follows it fails.
    symlink(dir.as_fd(), b"link", b"nowhere").unwrap();
    mknod(dir.as_fd(), b"fifo", Kind::Fifo, 0o644, 0).unwrap();
    mknod(dir.as_fd(), b"sock", Kind::Socket, 0o644, 0).unwrap();
    [(Kind::File, b"file"), (Kind::Dir, b"dir"), (Kind::Symlink, b"link"), (Kind::Fifo, b"fifo"), (Kind::Socket, b"sock")]
}

/// Runs `f` for every object of the zoo, by name and by `O_PATH` descriptor.
fn each(dir: &Dir, mut f: impl FnMut(Kind, At<'_>)) {
    for (kind, name) in zoo(dir) {
        let by_name = At::Name(dir.as_fd(), name);
        f(kind, by_name);
        let fd = open_path(by_name).unwrap();
        f(kind, At::Fd(fd.as_fd()));
    }
}

#[test]
fn names_are_single_components() {
    let dir = Dir::new();
    let table: [(&[u8], Errno); 8] = [
        (b"", Errno::NOENT),
        (b".", Errno::INVAL),
        (b"..", Errno::INVAL),
        (b"/", Errno::INVAL),
        (b"a/b", Errno::INVAL),
        (b"../a", Errno::INVAL),
        (b"a\0b", Errno::INVAL),
        (&[b'n'; 256], Errno::NAMETOOLONG),
    ];
    for (name, error) in table {
        let at = At::Name(dir.as_fd(), name);
        assert_eq!(stat(at).err(), Some(error), "{name:?}");
        assert_eq!(open_path(at).err(), Some(error));
        assert_eq!(open(at, OFlags::RDONLY).err(), Some(error));
        assert_eq!(readlink(at).err(), Some(error));
        assert_eq!(chown(at, None, None).err(), Some(error));
        assert_eq!(chmod(at, 0).err(), Some(error));
        assert_eq!(set_times(at, SetTime::Now, SetTime::Now).err(), Some(error));
        assert_eq!(get_xattr(at, b"user.a").err(), Some(error));
        assert_eq!(list_xattr(at).err(), Some(error));
        assert_eq!(set_xattr(at, b"user.a", b"", XattrMode::Any).err(), Some(error));
        assert_eq!(remove_xattr(at, b"user.a").err(), Some(error));
        assert_eq!(crate::handle::file_handle(at).err(), Some(error));
    }
}

#[test]
fn odd_names_work_everywhere() {
    let dir = Dir::new();
    for name in ODD {
        let at = At::Name(dir.as_fd(), name);
        assert_eq!(stat(at).err(), Some(Errno::NOENT));
        fs::write(dir.path().join(OsStr::from_bytes(name)), b"x").unwrap();
        assert_eq!(stat(at).unwrap().size, 1);
        chmod(at, 0o600).unwrap();
        chown(at, None, None).unwrap();
        set_times(at, SetTime::Now, SetTime::Omit).unwrap();
        set_xattr(at, b"user.a", b"v", XattrMode::Any).unwrap();
        assert_eq!(get_xattr(at, b"user.a").unwrap(), b"v");
        open(at, OFlags::RDONLY).unwrap();
        open_path(at).unwrap();
        crate::handle::file_handle(at).unwrap();
        unlink(dir.as_fd(), name).unwrap();
    }
}

#[test]
fn stat_agrees_with_std() {
    let dir = Dir::new();
    zoo(&dir);
    for name in ["file", "dir", "link", "fifo", "sock"] {
        let std = fs::symlink_metadata(dir.join(name)).unwrap();
        let own = stat(At::Name(dir.as_fd(), name.as_bytes())).unwrap();
        assert_eq!((own.dev, own.ino, u64::from(own.nlink)), (std.dev(), std.ino(), std.nlink()));
        assert_eq!(own.kind.to_mode() | own.mode, std.mode());
        assert_eq!((own.uid, own.gid, own.rdev), (std.uid(), std.gid(), std.rdev()));
        assert_eq!((own.size, own.blocks, u64::from(own.blksize)), (std.size(), std.blocks(), std.blksize()));
        assert_eq!((own.mtime.sec, i64::from(own.mtime.nsec)), (std.mtime(), std.mtime_nsec()));
        assert_eq!((own.ctime.sec, i64::from(own.ctime.nsec)), (std.ctime(), std.ctime_nsec()));
        let born = own.btime.map(|time| std::time::UNIX_EPOCH + std::time::Duration::new(time.sec as u64, time.nsec));
        assert_eq!(born, std.created().ok());
    }
}

#[test]
fn stat_of_a_descriptor_is_stat_of_its_object() {
    let dir = Dir::new();
    let mut last = None;
    each(&dir, |kind, at| {
        let found = stat(at).unwrap();
        assert_eq!(found.kind, kind);
        if matches!(at, At::Fd(_)) {
            assert_eq!(Some(found), last);
        }
        last = Some(found);
    });
}

#[test]
fn whiteout_has_device_zero() {
    let dir = Dir::new();
    mknod(dir.as_fd(), b"w", Kind::Char, 0, 0).unwrap();
    let found = stat(At::Name(dir.as_fd(), b"w")).unwrap();
    assert_eq!((found.kind, found.rdev, found.mode), (Kind::Char, 0, 0));
}

#[test]
fn open_path_takes_the_symlink_itself() {
    let dir = Dir::new();
    symlink(dir.as_fd(), b"link", b"/etc").unwrap();
    let fd = open_path(At::Name(dir.as_fd(), b"link")).unwrap();
    assert_eq!(stat(At::Fd(fd.as_fd())).unwrap().kind, Kind::Symlink);
    let again = open_path(At::Fd(fd.as_fd())).unwrap();
    assert_eq!(stat(At::Fd(again.as_fd())).unwrap().kind, Kind::Symlink);
    assert_eq!(readlink(At::Fd(again.as_fd())).unwrap(), b"/etc");
}

#[test]
fn open_path_of_an_open_file_is_a_location() {
    let dir = Dir::new();
    fs::write(dir.join("f"), b"x").unwrap();
    let file = fs::File::open(dir.join("f")).unwrap();
    let fd = open_path(At::Fd(file.as_fd())).unwrap();
    assert_eq!(crate::io::pread(fd.as_fd(), &mut [0; 1], 0), Err(Errno::BADF));
}

#[test]
fn open_refuses_symlinks_and_creation() {
    let dir = Dir::new();
    fs::write(dir.join("target"), b"x").unwrap();
    symlink(dir.as_fd(), b"link", b"target").unwrap();
    let by_name = At::Name(dir.as_fd(), b"link");
    assert_eq!(open(by_name, OFlags::RDONLY).err(), Some(Errno::LOOP));
    let fd = open_path(by_name).unwrap();
    assert_eq!(open(At::Fd(fd.as_fd()), OFlags::RDONLY).err(), Some(Errno::LOOP));
    assert_eq!(open(by_name, OFlags::CREATE | OFlags::RDWR).err(), Some(Errno::INVAL));
    assert_eq!(open(At::Fd(dir.as_fd()), OFlags::TMPFILE | OFlags::RDWR).err(), Some(Errno::INVAL));
}

#[test]
fn open_gives_data_by_name_and_by_location() {
    let dir = Dir::new();
    fs::write(dir.join("f"), b"data").unwrap();
    let by_name = At::Name(dir.as_fd(), b"f");
    let location = open_path(by_name).unwrap();
    fs::remove_file(dir.join("f")).unwrap();
    fs::write(dir.join("f"), b"other").unwrap();
    let mut buffer = [0; 8];
    let count = crate::io::pread(open(by_name, OFlags::RDONLY).unwrap().as_fd(), &mut buffer, 0).unwrap();
    assert_eq!(&buffer[..count], b"other");
    let old = open(At::Fd(location.as_fd()), OFlags::RDWR).unwrap();
    let count = crate::io::pread(old.as_fd(), &mut buffer, 0).unwrap();
    assert_eq!(&buffer[..count], b"data", "the object, not its name");
    assert!(rustix::io::fcntl_getfd(&old).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
}

#[test]
fn open_reopens_a_directory_without_its_path() {
    let dir = Dir::new();
    let readable = open(At::Fd(dir.as_fd()), OFlags::RDONLY | OFlags::DIRECTORY).unwrap();
    crate::io::fsync(readable.as_fd()).unwrap();
    let by_proc = open(At::Fd(dir.as_fd()), OFlags::RDONLY).unwrap();
    crate::io::fsync(by_proc.as_fd()).unwrap();
    fs::write(dir.join("f"), b"").unwrap();
    assert_eq!(open(At::Name(dir.as_fd(), b"f"), OFlags::RDONLY | OFlags::DIRECTORY).err(), Some(Errno::NOTDIR));
}

#[test]
fn open_of_a_path_descriptor_is_allowed() {
    let dir = Dir::new();
    mkdir(dir.as_fd(), b"d", 0o755).unwrap();
    open(At::Name(dir.as_fd(), b"d"), OFlags::PATH | OFlags::DIRECTORY).unwrap();
}

#[test]
fn readlink_returns_every_target_whole() {
    let dir = Dir::new();
    // ext4 takes 4095 bytes, xfs 1023; more than the buffer tried first is what matters.
    let long = vec![b'x'; 1023];
    let targets: [&[u8]; 4] = [b"a", b"/etc/passwd", b"\xff\xfe/\n", &long];
    for (number, target) in targets.into_iter().enumerate() {
        let name = [b'l', b'0' + number as u8];
        symlink(dir.as_fd(), &name, target).unwrap();
        assert_eq!(readlink(At::Name(dir.as_fd(), &name)).unwrap(), target);
        let fd = open_path(At::Name(dir.as_fd(), &name)).unwrap();
        assert_eq!(readlink(At::Fd(fd.as_fd())).unwrap(), target);
    }
}

#[test]
fn readlink_of_anything_else_is_einval() {
    let dir = Dir::new();
    each(&dir, |kind, at| {
        if kind != Kind::Symlink {
            assert_eq!(readlink(at), Err(Errno::INVAL), "{kind:?}");
        }
    });
}

#[test]
fn chmod_sets_all_twelve_bits_of_every_kind_but_symlinks() {
    let dir = Dir::new();
    each(&dir, |kind, at| {
        for mode in [0, 0o7777, 0o4711] {
            if kind == Kind::Symlink {
                assert_eq!(chmod(at, mode), Err(Errno::OPNOTSUPP));
                assert_eq!(chmod_by_proc(at, mode), Err(Errno::OPNOTSUPP));
            } else {
                chmod(at, mode).unwrap();
                assert_eq!(stat(at).unwrap().mode, mode, "{kind:?}");
                chmod_by_proc(at, mode ^ 0o777).unwrap();
                assert_eq!(stat(at).unwrap().mode, mode ^ 0o777, "{kind:?} through /proc");
            }
        }
    });
}

#[test]
fn chmod_does_not_reach_a_symlinks_target() {
    let dir = Dir::new();
    fs::write(dir.join("target"), b"").unwrap();
    fs::set_permissions(dir.join("target"), fs::Permissions::from_mode(0o640)).unwrap();
    symlink(dir.as_fd(), b"link", b"target").unwrap();
    let link = open_path(At::Name(dir.as_fd(), b"link")).unwrap();
    assert!(chmod(At::Name(dir.as_fd(), b"link"), 0).is_err());
    assert!(chmod(At::Fd(link.as_fd()), 0).is_err());
    assert_eq!(stat(At::Name(dir.as_fd(), b"target")).unwrap().mode, 0o640);
}

#[test]
fn chown_changes_every_kind_and_leaves_none() {
    if !privileged("chown_changes_every_kind_and_leaves_none") {
        return;
    }
    let dir = Dir::new();
    each(&dir, |kind, at| {
        chown(at, Some(1234), Some(5678)).unwrap();
        chown(at, None, Some(91011)).unwrap();
        chown(at, None, None).unwrap();
        let found = stat(at).unwrap();
        assert_eq!((found.uid, found.gid), (1234, 91011), "{kind:?}");
        assert_eq!(chown(at, Some(u32::MAX), None), Err(Errno::INVAL));
        assert_eq!(chown(at, None, Some(u32::MAX)), Err(Errno::INVAL));
    });
}

#[test]
fn times_reach_every_kind_and_before_1970() {
    let dir = Dir::new();
    let old = Time { sec: -86_400, nsec: 999_999_999 };
    let new = Time { sec: 4_000_000_000, nsec: 1 };
    each(&dir, |kind, at| {
        set_times(at, SetTime::To(old), SetTime::To(new)).unwrap();
        let found = stat(at).unwrap();
        assert_eq!((found.atime, found.mtime), (old, new), "{kind:?}");
        set_times(at, SetTime::Omit, SetTime::Now).unwrap();
        let found = stat(at).unwrap();
        assert_eq!(found.atime, old);
        assert!(found.mtime < new && found.mtime > old);
        for nsec in [1_000_000_000, UTIME_NOW as u32, UTIME_OMIT as u32] {
            let bad = SetTime::To(Time { sec: 0, nsec });
            assert_eq!(set_times(at, bad, SetTime::Omit), Err(Errno::INVAL));
            assert_eq!(set_times(at, SetTime::Omit, bad), Err(Errno::INVAL));
        }
    });
}

#[test]
fn user_xattrs_of_files_and_directories_round_trip() {
    let dir = Dir::new();
    each(&dir, |kind, at| {
        if !matches!(kind, Kind::File | Kind::Dir) {
            assert_eq!(set_xattr(at, b"user.a", b"", XattrMode::Any), Err(Errno::PERM), "{kind:?}");
            return;
        }
        round_trip(at, b"user.a");
    });
}

#[test]
fn trusted_xattrs_of_every_kind_round_trip() {
    if !privileged("trusted_xattrs_of_every_kind_round_trip") {
        return;
    }
    let dir = Dir::new();
    each(&dir, |kind, at| {
        round_trip(at, b"trusted.overlay.a");
        if matches!(kind, Kind::File | Kind::Dir) {
            round_trip(At::Fd(open(at, OFlags::RDONLY).unwrap().as_fd()), b"trusted.overlay.a");
        }
    });
}

fn round_trip(at: At<'_>, name: &[u8]) {
    assert_eq!(get_xattr(at, name), Err(Errno::NODATA));
    assert_eq!(remove_xattr(at, name), Err(Errno::NODATA));
    assert_eq!(set_xattr(at, name, b"", XattrMode::Replace), Err(Errno::NODATA));
    set_xattr(at, name, b"", XattrMode::Create).unwrap();
    assert_eq!(get_xattr(at, name).unwrap(), b"");
    assert_eq!(set_xattr(at, name, b"", XattrMode::Create), Err(Errno::EXIST));
    let binary: Vec<u8> = (0..=255).cycle().take(2000).collect();
    set_xattr(at, name, &binary, XattrMode::Replace).unwrap();
    assert_eq!(get_xattr(at, name).unwrap(), binary);
    assert!(list_xattr(at).unwrap().contains(&name.to_vec()));
    remove_xattr(at, name).unwrap();
    assert!(!list_xattr(at).unwrap().contains(&name.to_vec()));
}

#[test]
fn long_lists_of_xattrs_come_whole() {
    let dir = Dir::new();
    fs::write(dir.join("f"), b"").unwrap();
    let at = At::Name(dir.as_fd(), b"f");
    let names: Vec<Vec<u8>> = (0..20).map(|number| format!("user.{number:0>100}").into_bytes()).collect();
    for name in &names {
        set_xattr(at, name, b"", XattrMode::Any).unwrap();
    }
    let mut found = list_xattr(at).unwrap();
    found.sort();
    assert_eq!(found, names);
}

#[test]
fn xattrs_of_a_symlink_are_not_its_targets() {
    let dir = Dir::new();
    fs::write(dir.join("target"), b"").unwrap();
    symlink(dir.as_fd(), b"link", b"target").unwrap();
    set_xattr(At::Name(dir.as_fd(), b"target"), b"user.a", b"v", XattrMode::Any).unwrap();
    let by_name = At::Name(dir.as_fd(), b"link");
    let fd = open_path(by_name).unwrap();
    for at in [by_name, At::Fd(fd.as_fd())] {
        assert!(get_xattr(at, b"user.a").is_err());
        assert!(!list_xattr(at).unwrap().contains(&b"user.a".to_vec()));
    }
}

#[test]
fn proc_shows_our_descriptors() {
    let dir = Dir::new();
    crate::proc::check(dir.as_fd()).unwrap();
    symlink(dir.as_fd(), b"link", b"nowhere").unwrap();
    crate::proc::check(open_path(At::Name(dir.as_fd(), b"link")).unwrap().as_fd()).unwrap();
}
