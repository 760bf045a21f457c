//! Metadata without its data: `metacopy=on`, what comes of it, and layers that hold only data.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use plyfs_sys::Errno;

use crate::lab::{Lab, append, errno, lab, noise, open_rw, python, run, set_times, set_xattr, shell, tree, xattrs};

const MARK: &str = "trusted.overlay.metacopy";
const OLD: (i64, i64) = (1_000_000_000, 123_456_789);
/// cap_net_raw, effective.
const CAPABILITY: &[u8] = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// A file's name, how it is written, and what that makes of its content.
type Way = (&'static str, fn(&Path), fn(&mut Vec<u8>));

fn is_marked(path: &Path) -> bool {
    xattrs(path).iter().any(|(name, _)| name == MARK)
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn mtime(path: &Path) -> (i64, i64) {
    let meta = fs::metadata(path).unwrap();
    (meta.mtime(), meta.mtime_nsec())
}

#[test]
fn a_change_of_metadata_copies_no_data_of_a_large_file() {
    const SIZE: usize = 100 << 20;
    let mut lab = lab!();
    lab.more = ",metacopy=on";
    let content = noise(1, SIZE);
    lab.write_lower("big", &content);
    set_xattr(&lab.lower("big"), "user.there", b"1");
    // What is written later may need a block for the extents.
    File::open(lab.lower("big")).unwrap().sync_all().unwrap();
    lab.mount();
    let big = lab.mnt("big");
    let blocks = fs::metadata(&big).unwrap().blocks();
    mode(&big, 0o640);
    chown(&big, Some(7), Some(8)).unwrap();
    set_times(&big, OLD, OLD);
    set_xattr(&big, "user.new", b"2");
    rustix::fs::lremovexattr(&big, "user.there").unwrap();
    File::open(&big).unwrap().sync_all().unwrap();
    for _ in 0..2 {
        let upper = fs::metadata(lab.upper("big")).unwrap();
        assert!(is_marked(&lab.upper("big")) && upper.blocks() <= 16, "{} blocks of {SIZE} bytes were copied", upper.blocks());
        let meta = fs::metadata(&big).unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid(), mtime(&big)), (0o640, 7, 8, OLD));
        assert_eq!((meta.len(), meta.blocks()), (SIZE as u64, blocks), "the data is that of the lower, and so is its space");
        assert_eq!(xattrs(&big), [("user.new".to_owned(), b"2".to_vec())]);
        assert!(fs::read(&big).unwrap() == content);
        lab.remount();
    }
    lab.unmount();
}

#[test]
fn the_data_of_a_metacopy_comes_with_the_first_write_of_any_kind() {
    const SIZE: usize = 3 << 20;
    let mut lab = lab!("python3");
    lab.more = ",metacopy=on";
    let content = noise(2, SIZE);
    let ways: [Way; 9] = [
        ("append", |path| append(path, "end"), |data| data.extend_from_slice(b"end")),
        (
            "middle",
            |path| open_rw(path).unwrap().write_all_at(b"mid", 1_000_001).unwrap(),
            |data| data[1_000_001..1_000_004].copy_from_slice(b"mid"),
        ),
        ("shorter", |path| open_rw(path).unwrap().set_len(5000).unwrap(), |data| data.truncate(5000)),
        ("longer", |path| open_rw(path).unwrap().set_len(SIZE as u64 + 5).unwrap(), |data| data.resize(SIZE + 5, 0)),
        ("emptied", |path| drop(File::create(path).unwrap()), Vec::clear),
        ("opened", |path| drop(open_rw(path).unwrap()), |_| {}),
        (
            "direct",
            |path| {
                let file = OpenOptions::new().write(true).custom_flags(rustix::fs::OFlags::DIRECT.bits().cast_signed()).open(path).unwrap();
                file.write_all_at(&[b'd'; 4096], 8192).unwrap();
            },
            |data| data[8192..12288].fill(b'd'),
        ),
        (
            "mapped",
            |path| {
                let program =
                    "import mmap\nf = open('mapped', 'r+b')\nm = mmap.mmap(f.fileno(), 0)\nm[70000:70003] = b'map'\nm.flush()\nm.close()";
                python(path.parent().unwrap(), program);
            },
            |data| data[70_000..70_003].copy_from_slice(b"map"),
        ),
        (
            "punched",
            |path| {
                let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(open_rw(path).unwrap(), flags, 4096, 8192).unwrap();
            },
            |data| data[4096..12288].fill(0),
        ),
    ];
    for (name, ..) in &ways {
        lab.write_lower(name, &content);
        set_times(&lab.lower(name), OLD, OLD);
    }
    lab.mount();
    for (name, write, wanted) in &ways {
        let path = lab.mnt(name);
        let early = File::open(&path).unwrap();
        mode(&path, 0o600);
        let late = File::open(&path).unwrap();
        let mut head = [0; 16];
        late.read_exact_at(&mut head, 0).unwrap();
        assert!(is_marked(&lab.upper(name)) && head == content[..16], "{name}");
        write(&path);
        assert!(!is_marked(&lab.upper(name)), "{name}");
        let mut now = content.clone();
        wanted(&mut now);
        for reader in [early, late] {
            let mut seen = vec![0; now.len()];
            reader.read_exact_at(&mut seen, 0).unwrap();
            assert!(seen == now && reader.metadata().unwrap().len() == now.len() as u64, "{name}: a reader from before");
        }
        assert!(fs::read(&path).unwrap() == now, "{name}");
        assert_eq!(*name == "opened", mtime(&path) == OLD, "{name}");
    }
    lab.remount();
    for (name, _, wanted) in &ways {
        let mut now = content.clone();
        wanted(&mut now);
        assert!(fs::read(lab.mnt(name)).unwrap() == now, "{name} after a remount");
        assert_eq!(fs::metadata(lab.mnt(name)).unwrap().mode() & 0o7777, 0o600);
    }
    lab.unmount();
}

#[test]
fn killed_while_the_data_of_a_metacopy_comes_a_file_is_old_or_new() {
    const SIZE: usize = 96 << 20;
    let mut lab = lab!();
    lab.more = ",metacopy=on";
    let big = noise(3, SIZE);
    lab.write_lower("big", &big);
    set_xattr(&lab.lower("big"), "security.capability", CAPABILITY);
    set_times(&lab.lower("big"), OLD, OLD);
    let mut half_way = 0;
    for (round, delay) in [0, 4, 12, 30, 60, 120].into_iter().enumerate() {
        lab.mount();
        mode(&lab.mnt("big"), 0o4711);
        let mut writer = shell(&lab.mnt(""), "echo x >> big").stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(delay));
        lab.kill();
        writer.wait().unwrap();
        let upper = lab.upper("big");
        half_way += usize::from(upper.exists() && is_marked(&upper) && fs::metadata(&upper).unwrap().blocks() > 100);
        lab.mount();
        let path = lab.mnt("big");
        let found = fs::read(&path).unwrap();
        assert!(found.starts_with(&big), "round {round}: neither old nor new, {} bytes", found.len());
        assert!([&b""[..], b"x\n"].contains(&&found[SIZE..]), "round {round}");
        if found.len() == SIZE {
            assert_eq!((mtime(&path), fs::metadata(&path).unwrap().mode() & 0o7777), (OLD, 0o4711), "round {round}");
            assert_eq!(xattrs(&path), [("security.capability".to_owned(), CAPABILITY.to_vec())], "round {round}");
        }
        // And it goes on from there.
        append(&path, "y");
        let now = [&found[..], b"y"].concat();
        assert!(fs::read(&path).unwrap() == now, "round {round}");
        lab.remount();
        assert!(fs::read(&path).unwrap() == now, "round {round}");
        lab.unmount();
        fs::remove_file(upper).unwrap();
    }
    assert!(half_way > 0, "never killed while data came");
}

#[test]
fn data_that_finds_no_space_leaves_a_metacopy_as_it_was() {
    let mut lab = lab!();
    lab.more = ",metacopy=on";
    let small = lab.tmpfs("small", "size=8m");
    (lab.upper, lab.work) = (small.join("upper"), small.join("work"));
    fs::create_dir(&lab.upper).unwrap();
    fs::create_dir(&lab.work).unwrap();
    let content = noise(4, 16 << 20);
    lab.write_lower("big", &content);
    set_times(&lab.lower("big"), OLD, OLD);
    lab.mount();
    let big = lab.mnt("big");
    mode(&big, 0o600);
    let free = || rustix::fs::statvfs(&small).unwrap().f_bfree;
    let before = free();
    for _ in 0..3 {
        assert_eq!(errno(open_rw(&big)), Some(Errno::NOSPC));
        assert_eq!((free(), mtime(&big)), (before, OLD));
        assert!(fs::read(&big).unwrap() == content && is_marked(&lab.upper("big")));
    }
    // What needs no data works on.
    mode(&big, 0o640);
    File::create(&big).unwrap();
    assert_eq!(fs::metadata(&big).unwrap().len(), 0);
    lab.remount();
    assert_eq!((fs::read(&big).unwrap(), fs::metadata(&big).unwrap().mode() & 0o7777), (Vec::new(), 0o640));
    lab.unmount();
}

/// A layer as composefs makes it: metadata with redirects into a layer of objects.
fn composed(lab: &mut Lab) {
    let objects = lab.path("objects");
    for (name, object, content) in [("bin/tool", "ab/1234", "tool"), ("etc/conf", "cd/5678", "conf"), ("etc/copy", "cd/5678", "conf")] {
        let object_path = objects.join(object);
        fs::create_dir_all(object_path.parent().unwrap()).unwrap();
        fs::write(&object_path, content).unwrap();
        lab.write_lower(name, "");
        let path = lab.lower(name);
        open_rw(&path).unwrap().set_len(4).unwrap();
        mode(&path, 0o751);
        set_xattr(&path, MARK, b"");
        set_xattr(&path, "trusted.overlay.redirect", format!("/{object}").as_bytes());
        set_times(&path, OLD, OLD);
    }
    lab.write_lower("plain", "plain");
    lab.data.push(objects);
}

/// What kernel overlayfs shows of the lab's layers; `change` runs on it before.
fn kernel(lab: &Lab, target: &Path, change: impl FnOnce(&Path)) -> Vec<String> {
    let mut options = lab.options();
    options.push(",redirect_dir=on,index=on,metacopy=on,xino=auto");
    crate::kernel::overlay(options, target).unwrap();
    change(target);
    let shown = tree(target);
    run(Command::new("umount").arg(target));
    shown
}

#[test]
fn data_only_layers_give_their_data_and_show_nothing() {
    let mut lab = lab!();
    composed(&mut lab);
    let target = lab.mountpoint("kernel");
    let shown = kernel(&lab, &target, |_| {});
    lab.more = ",metacopy=on";
    lab.mount();
    assert_eq!(tree(&lab.mnt("")), shown);
    assert!(shown.iter().any(|line| line.contains("tool")) && !shown.iter().any(|line| line.contains("ab/")));
    // Written, changed, moved and linked through the mount; the objects stay as they are, those of other names, too.
    append(&lab.mnt("etc/conf"), "!");
    mode(&lab.mnt("bin/tool"), 0o700);
    fs::rename(lab.mnt("bin/tool"), lab.mnt("etc/moved")).unwrap();
    mode(&lab.mnt("etc/copy"), 0o600);
    assert!(is_marked(&lab.upper("etc/copy")));
    for _ in 0..2 {
        for (name, content, bits) in [("etc/conf", "conf!", 0o751), ("etc/moved", "tool", 0o700), ("etc/copy", "conf", 0o600)] {
            let meta = fs::metadata(lab.mnt(name)).unwrap();
            assert_eq!((fs::read_to_string(lab.mnt(name)).unwrap().as_str(), meta.mode() & 0o7777), (content, bits), "{name}");
        }
        lab.remount();
    }
    let shown = tree(&lab.mnt(""));
    lab.unmount();
    assert_eq!(kernel(&lab, &target, |_| {}), shown, "kernel overlayfs on what plyfs left");
    assert_eq!(fs::read_to_string(lab.data[0].join("cd/5678")).unwrap(), "conf");
}

#[test]
fn an_object_that_no_data_only_layer_has_is_missed_when_it_is_opened() {
    let mut lab = lab!();
    composed(&mut lab);
    fs::remove_file(lab.data[0].join("ab/1234")).unwrap();
    lab.more = ",metacopy=on";
    lab.mount();
    assert_eq!(fs::metadata(lab.mnt("bin/tool")).unwrap().len(), 4);
    assert_eq!(errno(File::open(lab.mnt("bin/tool"))), Some(Errno::NOENT));
    assert_eq!(fs::read_to_string(lab.mnt("etc/conf")).unwrap(), "conf");
    fs::remove_file(lab.mnt("bin/tool")).unwrap();
    lab.unmount();
}

#[test]
fn metacopies_that_kernel_overlayfs_left_are_read_and_completed() {
    let mut lab = lab!();
    composed(&mut lab);
    for name in ["moved", "linked", "both/a"] {
        lab.write_lower(name, name);
    }
    fs::hard_link(lab.lower("both/a"), lab.lower("both/b")).unwrap();
    let target = lab.mountpoint("kernel");
    let shown = kernel(&lab, &target, |root| {
        fs::create_dir(root.join("new")).unwrap();
        for name in ["moved", "linked", "both/a", "bin/tool", "etc/conf"] {
            mode(&root.join(name), 0o604);
        }
        fs::rename(root.join("moved"), root.join("new/m")).unwrap();
        fs::hard_link(root.join("linked"), root.join("new/l")).unwrap();
        fs::rename(root.join("etc/conf"), root.join("etc/conf2")).unwrap();
        fs::rename(root.join("both"), root.join("new/both")).unwrap();
    });
    assert!(is_marked(&lab.upper("new/m")) && is_marked(&lab.upper("etc/conf2")));
    lab.more = ",metacopy=on";
    lab.mount();
    assert_eq!(tree(&lab.mnt("")), shown);
    for name in ["new/m", "new/l", "new/both/b", "bin/tool", "etc/conf2"] {
        append(&lab.mnt(name), "+");
        assert!(fs::read_to_string(lab.mnt(name)).unwrap().ends_with('+'), "{name}");
    }
    assert_eq!(fs::read_to_string(lab.mnt("linked")).unwrap(), "linked+");
    assert_eq!(fs::read_to_string(lab.mnt("new/both/a")).unwrap(), "both/a+");
    let shown = tree(&lab.mnt(""));
    lab.remount();
    assert_eq!(tree(&lab.mnt("")), shown);
    lab.unmount();
    assert_eq!(kernel(&lab, &target, |_| {}), shown);
}
