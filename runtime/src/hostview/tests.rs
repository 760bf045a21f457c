#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use plyfs_sys::mount::parse_mountinfo;

use super::*;

const DIR: fn(&[u8]) -> Option<Kind> = |_| Some(Kind::Dir);

/// Plans a table, and shows the result as text: number, what to do.
fn shown(table: &str, root: u64, kind_at: &dyn Fn(&[u8]) -> Option<Kind>) -> Vec<String> {
    let table = parse_mountinfo(table.as_bytes()).unwrap();
    plan(&table, root, kind_at).iter().map(|entry| format!("{} {:?}", entry.mount.id, entry.action)).collect()
}

fn check(table: &str, expected: &[&str]) {
    assert_eq!(shown(table, 1, &DIR), expected, "{table}");
}

#[test]
fn usual_machine() {
    check(
        "1 0 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n\
         2 1 0:5 / /proc rw - proc proc rw\n\
         3 1 0:6 / /sys rw - sysfs sysfs rw\n\
         4 3 0:7 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n\
         5 1 0:8 / /dev rw - devtmpfs udev rw\n\
         6 5 0:9 / /dev/shm rw - tmpfs tmpfs rw\n\
         7 1 0:10 / /run rw - tmpfs tmpfs rw\n\
         8 7 0:11 / /run/user/1000 rw - tmpfs tmpfs rw\n\
         9 1 8:2 / /home rw - xfs /dev/sda2 rw\n\
         10 1 7:0 / /snap/core/1 ro - squashfs /dev/loop0 ro\n\
         11 2 0:12 / /proc/sys/fs/binfmt_misc rw - autofs systemd-1 rw\n\
         12 1 0:13 / /mnt/net rw - nfs4 server:/x rw\n\
         13 8 0:14 / /run/user/1000/gvfs rw - fuse.gvfsd-fuse gvfsd-fuse rw\n\
         14 1 8:3 / /boot/efi rw - vfat /dev/sda3 rw\n\
         15 7 0:4 net:[4026532] /run/netns/a rw - nsfs nsfs rw\n",
        &[
            "2 Skip(Own)",
            "11 Skip(Own)",
            "3 Skip(Own)",
            "4 Skip(Own)",
            "5 Skip(Own)",
            "6 Skip(Own)",
            "7 Union",
            "8 Union",
            "13 ReadOnly(Type)",
            "15 Skip(Namespace)",
            "9 Union",
            "10 ReadOnly(ReadOnlyOnHost)",
            "12 ReadOnly(Type)",
            "14 Union",
        ],
    );
}

#[test]
fn parents_come_first_whatever_the_order_of_the_table() {
    check(
        "4 3 8:4 / /a/b/c rw - ext4 x rw\n3 2 8:3 / /a/b rw - ext4 x rw\n2 1 8:2 / /a rw - ext4 x rw\n1 0 8:1 / / rw - ext4 x rw\n",
        &["2 Union", "3 Union", "4 Union"],
    );
}

#[test]
fn escaped_mount_points_are_bytes() {
    let table = parse_mountinfo(b"1 0 8:1 / / rw - ext4 x rw\n2 1 8:2 / /a\\040b\\012\xff rw - nfs x rw\n").unwrap();
    let planned = plan(&table, 1, &DIR);
    assert_eq!(planned[0].mount.mountpoint, b"/a b\n\xff");
    let path = HostPath::from(b"/a b\n\xff".to_vec());
    assert_eq!(
        planned[0].to_mount_spec().unwrap(),
        MountSpec::BindReadOnly {
            source: BindSource::Path(path),
            target: InnerPath::from(b"/a b\n\xff".to_vec()),
            recursive: false,
            optional: true
        }
    );
}

#[test]
fn stacked_mounts_leave_the_last() {
    check(
        "1 0 8:1 / / rw - ext4 x rw\n2 1 8:2 / /a rw - ext4 x rw\n3 2 8:3 / /a rw - xfs x rw\n4 3 8:4 / /a rw - tmpfs x rw\n\
         5 2 8:5 / /a/under rw - ext4 x rw\n6 4 8:6 / /a/in rw - ext4 x rw\n",
        // 2 and 3 are walked through, but 4 is what /a is.
        &["4 Union", "6 Union", "2 Skip(Shadowed)", "3 Skip(Shadowed)", "5 Skip(Shadowed)"],
    );
}

#[test]
fn a_mount_over_a_directory_above_hides() {
    check(
        "1 0 8:1 / / rw - ext4 x rw\n2 1 8:2 / /srv/data/x rw - ext4 x rw\n3 1 8:3 / /srv rw - ext4 x rw\n4 1 8:4 / /srv2 rw - ext4 x rw\n\
         5 2 8:5 / /srv/data/x/y rw - ext4 x rw\n",
        &["3 Union", "4 Union", "2 Skip(Shadowed)", "5 Skip(Shadowed)"],
    );
}

#[test]
fn two_on_one_place_of_one_parent_leave_the_later() {
    check("1 0 8:1 / / rw - ext4 x rw\n2 1 8:2 / /a rw - ext4 x rw\n3 1 8:3 / /a rw - ext4 x rw\n", &["3 Union", "2 Skip(Shadowed)"]);
}

#[test]
fn what_lies_over_the_root_directory_is_not_reached() {
    let table = "1 0 8:1 / / rw - ext4 x rw\n2 1 8:2 / / rw - tmpfs x rw\n3 2 8:3 / /home rw - xfs x rw\n4 1 8:4 / /srv rw - xfs x rw\n";
    check(table, &["4 Union", "2 Skip(Shadowed)", "3 Skip(Shadowed)"]);
    // After a move of the root the upper one is the root, and the lower one is behind it.
    assert_eq!(shown(table, 2, &DIR), ["3 Union", "1 Skip(Unreachable)", "4 Skip(Unreachable)"]);
}

#[test]
fn deleted_and_orphaned_mount_points_are_skipped() {
    check(
        "1 0 8:1 / / rw - ext4 x rw\n2 1 8:2 / /gone//deleted rw - ext4 x rw\n3 77 8:3 / /lost rw - ext4 x rw\n\
         4 5 8:4 / /x rw - ext4 x rw\n5 4 8:5 / /y rw - ext4 x rw\n6 6 8:6 / /z rw - ext4 x rw\n",
        &["2 Skip(Unreachable)", "3 Skip(Unreachable)", "4 Skip(Unreachable)", "5 Skip(Unreachable)", "6 Skip(Unreachable)"],
    );
}

#[test]
fn a_proc_elsewhere_is_a_new_one_and_kernel_filesystems_are_read_only() {
    check(
        "1 0 8:1 / / rw - ext4 x rw\n2 1 0:2 / /srv/chroot/proc rw - proc proc rw\n3 1 0:3 / /srv/chroot/dev rw - devtmpfs d rw\n\
         4 1 0:4 / /srv/chroot/sys rw - sysfs s rw\n5 1 0:5 / /auto rw - autofs m rw\n6 5 0:6 / /auto/x rw - nfs h:/x rw\n\
         7 1 0:7 / /efi rw - autofs m rw\n8 7 8:7 / /efi rw - vfat x rw\n9 1 0:9 / /process rw - tmpfs x rw\n",
        &[
            "2 FreshProc",
            "3 ReadOnly(Type)",
            "4 ReadOnly(Type)",
            "5 Empty(Automount)",
            "6 ReadOnly(Type)",
            "8 Union",
            "9 Union",
            "7 Skip(Shadowed)",
        ],
    );
}

#[test]
fn files_are_read_only_and_only_local_filesystems_are_asked() {
    let kind_at = |path: &[u8]| match path {
        b"/etc/resolv.conf" => Some(Kind::File),
        b"/vanished" => None,
        b"/dir" => Some(Kind::Dir),
        other => panic!("{} was looked at", String::from_utf8_lossy(other)),
    };
    let table = "1 0 8:1 / / rw - overlay x rw\n2 1 8:2 /docker/resolv.conf /etc/resolv.conf rw - ext4 x rw\n3 1 0:3 / /net rw - nfs x rw\n\
                 4 1 8:4 / /vanished rw - ext4 x rw\n5 1 8:5 / /dir rw - ext4 x rw\n6 1 0:6 / /f rw - fuse.x x rw\n7 1 8:7 / /ro ro - ext4 x rw\n\
                 8 1 8:7 / /ro2 rw - ext4 x ro\n";
    assert_eq!(
        shown(table, 1, &kind_at),
        [
            "2 ReadOnly(File)",
            "3 ReadOnly(Type)",
            "4 Skip(Unreachable)",
            "5 Union",
            "6 ReadOnly(Type)",
            "7 ReadOnly(ReadOnlyOnHost)",
            "8 ReadOnly(ReadOnlyOnHost)",
        ]
    );
}

#[test]
fn only_what_is_lesser_than_on_the_host_is_named() {
    let table = "1 0 8:1 / / rw - ext4 x rw\n2 1 8:2 / /a ro - ext4 x rw\n3 1 0:3 / /b rw - nfs x rw\n4 1 0:4 / /c rw - autofs x rw\n\
                 5 1 0:5 / /d rw - tmpfs x rw\n6 1 0:6 / /p rw - proc x rw\n";
    let planned = plan(&parse_mountinfo(table.as_bytes()).unwrap(), 1, &DIR);
    let lesser: Vec<u64> = planned.iter().filter(|entry| entry.is_lesser()).map(|entry| entry.mount.id).collect();
    assert_eq!(lesser, [3, 4]);
    assert!(planned.iter().all(|entry| entry.to_mount_spec().is_some() == (entry.action != Action::Union)));
}

#[test]
fn unions_that_show_the_same_files_are_told() {
    let table = "1 0 8:1 /@ / rw - btrfs x rw\n2 1 8:1 /@home /home rw - btrfs x rw\n3 1 8:1 /@/srv/www /www rw - btrfs x rw\n\
                 4 1 8:4 / /data rw - ext4 x rw\n5 1 8:4 /in /in rw - ext4 x rw\n6 1 8:1 /@homework /hw rw - btrfs x rw\n";
    let planned = plan(&parse_mountinfo(table.as_bytes()).unwrap(), 1, &DIR);
    let twins: Vec<_> = planned.iter().map(|entry| (entry.mount.id, entry.twin.as_deref())).collect();
    let expected: [(u64, Option<&[u8]>); 5] = [(2, None), (3, Some(b"/")), (4, Some(b"/in")), (5, Some(b"/data")), (6, None)];
    assert_eq!(twins, expected);
}

#[test]
fn ten_thousand_mounts_are_planned_at_once() {
    let mut table = "1 0 8:1 / / rw - ext4 x rw\n".to_owned();
    for id in 2..5000 {
        table.push_str(&format!("{id} 1 0:{id} / /m/{id}/deep/er rw - tmpfs x rw\n"));
        table.push_str(&format!("{} {} 0:{id} / /stack rw - tmpfs x rw\n", id + 10_000, if id == 2 { 1 } else { id + 9_999 }));
    }
    let planned = plan(&parse_mountinfo(table.as_bytes()).unwrap(), 1, &DIR);
    assert_eq!(planned.iter().filter(|entry| entry.action == Action::Union).count(), 4999);
}

#[test]
fn own_machine_has_a_plan() {
    let root = plyfs_sys::root::open_dir(std::path::Path::new("/")).unwrap();
    let id = plyfs_sys::mount::mount_id_of(std::os::fd::AsFd::as_fd(&root)).unwrap();
    let table = plyfs_sys::mount::mounts().unwrap();
    let planned = plan(&table, id, &DIR);
    assert_eq!(planned.len() + 1, table.len());
}
