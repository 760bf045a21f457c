//! Layers with marks that cannot be honoured are refused by layer, path and mark; `--lenient` shows them without, and lets nobody change them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use rustix::fs::{XattrFlags, lsetxattr};

use crate::lab::{Done, Lab, Mounted, is_mountpoint, need_mounts};

fn mark(path: impl AsRef<Path>, name: &str, value: &[u8]) {
    lsetxattr(path.as_ref(), name, value, XattrFlags::empty()).unwrap();
}

/// A lab in which lower `a` has `d/e/own` over lower `b` with `d/e/low` and `x/y`.
fn lab() -> Lab {
    let lab = Lab::layers();
    for (layer, file) in [("a", "d/e/own"), ("b", "d/e/low"), ("b", "x/y"), ("u", "d/new")] {
        let file = lab.path(layer).join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, "text").unwrap();
    }
    lab
}

/// What is wrong, where, and how it is told.
type Row = (&'static str, fn(&Lab), &'static str, &'static str);

const REDIRECT: &str = "trusted.overlay.redirect";

fn rows() -> Vec<Row> {
    vec![
        (
            "",
            |lab| mark(lab.path("a/d"), REDIRECT, b"../.."),
            "lowerdir a: /d",
            "mark trusted.overlay.redirect = ../..: a relative redirect",
        ),
        ("", |lab| mark(lab.path("a/d/e"), REDIRECT, b""), "lowerdir a: /d/e", "mark trusted.overlay.redirect = : a redirect to nothing"),
        ("", |lab| mark(lab.path("b/x"), REDIRECT, b"/a//b"), "lowerdir b: /x", "a redirect with an empty component"),
        ("", |lab| mark(lab.path("b/x"), REDIRECT, &[b'n'; 256]), "lowerdir b: /x", "a redirect with a name of 256 bytes"),
        ("", |lab| mark(lab.path("u/d"), REDIRECT, b"/./x"), "upperdir u: /d", "a redirect through '.' or '..'"),
        ("", |lab| mark(lab.path("a/d"), "trusted.overlay.sideways", b"y"), "lowerdir a: /d", "mark trusted.overlay.sideways: not known"),
        ("", |lab| mark(lab.path("a/d"), REDIRECT, b"/"), "lowerdir a: /d", "a redirect to nothing"),
        // What is in it shows /d again.
        ("", |lab| mark(lab.path("a/d/e"), REDIRECT, b"/d"), "lowerdir a: /d/e", "a loop, for /d above it shows the same directory"),
        (
            "userxattr,",
            |lab| mark(lab.path("a/d"), "user.overlay.redirect", b"/x"),
            "lowerdir a: /d",
            "not honoured where every user can set it",
        ),
        ("whiteout=aufs,", |lab| fs::write(lab.path("b/x/.wh."), "").unwrap(), "lowerdir b: /x/.wh.", "a whiteout of nothing"),
        ("whiteout=aufs,", |lab| fs::write(lab.path("a/.wh..."), "").unwrap(), "lowerdir a: /.wh...", "a whiteout of nothing, '.' or '..'"),
    ]
}

fn mount(lab: &Lab, first: &str, more: &[&str]) -> Done {
    let options = format!("{first}{}", lab.options());
    let mut args = vec!["mount", "-o", &options];
    args.extend(more);
    args.push("m");
    lab.plyfs(&args)
}

/// `lowerdir a: /d` with the path of the layer.
fn place(lab: &Lab, place: &str) -> String {
    let (what, rest) = place.split_once(' ').unwrap();
    let (layer, path) = rest.split_once(": ").unwrap();
    format!("{what} {}: {path}: ", lab.text(layer))
}

#[test]
fn marks_that_cannot_be_honoured_are_refused_by_layer_path_and_mark() {
    need_mounts!();
    for (options, damage, at, what) in rows() {
        let lab = lab();
        damage(&lab);
        let refused = mount(&lab, options, &[]);
        refused.refused(1, &place(&lab, at), &[what, "; mend the layer, or mount it with 'plyfs mount --lenient'"]);
        assert!(!is_mountpoint(&lab.path("m")));
    }
}

#[test]
fn of_many_marks_the_first_is_told_and_how_many_there_are() {
    need_mounts!();
    for (count, told) in [(1, "sideways: not known to this version; "), (3, "(and 2 more); "), (40, "(and 20 or more others; ")] {
        let lab = lab();
        for number in 0..count {
            let dir = lab.path(format!("a/many/{number}"));
            fs::create_dir_all(&dir).unwrap();
            mark(&dir, "trusted.overlay.sideways", b"1");
        }
        mount(&lab, "", &[]).refused(1, "lowerdir ", &[told]);
    }
}

#[test]
fn what_a_mount_refuses_is_no_root_of_a_command() {
    need_mounts!();
    let lab = lab();
    mark(lab.path("a/d"), "trusted.overlay.nonsense", b"y");
    let begin = format!("layer {}: /d: ", lab.text("a"));
    lab.plyfs(&["run", "--rootfs", "a:b", "--", "/bin/true"]).refused(125, &begin, &["nonsense", "; mend the layer"]);
}

#[test]
fn a_lenient_mount_shows_them_without_their_marks_and_read_only() {
    need_mounts!();
    for (options, damage, at, what) in rows() {
        let lab = lab();
        damage(&lab);
        let done = mount(&lab, options, &["--lenient"]);
        let _mounted = Mounted(lab.path("m"));
        assert_eq!((done.code, done.err.lines().count()), (Some(0), 1), "{done:?}");
        assert!(done.err.starts_with(&format!("plyfs: {}", place(&lab, at))) && done.err.contains(what), "{done:?}");
        let path = at.split_once(": /").unwrap().1;
        let bad = if path.contains(".wh.") { Path::new(path).parent().unwrap() } else { Path::new(path) };
        let shown = lab.path("m").join(bad);
        let listed: Vec<_> = fs::read_dir(&shown).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(!listed.is_empty() && !listed.iter().any(|name| name.to_string_lossy().starts_with(".wh.")), "{at}: {listed:?}");
        if bad.as_os_str().is_empty() {
            // Of the root of a layer nothing else can be told.
            continue;
        }
        for change in ["mkdir made", "touch .", "chmod 700 .", "rm -r ./*", "ln -s x made", "echo x > made", "chmod 700 *"] {
            let done = Command::new("sh").args(["-c", change]).current_dir(&shown).output().unwrap();
            let err = String::from_utf8_lossy(&done.stderr).into_owned();
            assert!(!done.status.success() && err.contains("Read-only"), "{at}: {change}: {err}");
        }
        let moved = Command::new("mv").arg("-T").arg(&shown).arg(lab.path("m/moved")).output().unwrap();
        assert!(!moved.status.success(), "{at}: {moved:?}");
        fs::write(lab.path("m/elsewhere"), "written").unwrap();
        assert_eq!(fs::read_to_string(lab.path("m/elsewhere")).unwrap(), "written");
    }
}

#[test]
fn marks_that_mean_nothing_are_no_reason_to_refuse() {
    need_mounts!();
    let lab = lab();
    // Of the kernel, which leaves them; of users, who may have any name that is not private.
    mark(lab.path("a/d/e/own"), REDIRECT, b"../..");
    mark(lab.path("a/d"), "trusted.overlay.impure", b"y");
    mark(lab.path("a/d"), "trusted.overlay.overlay.sideways", b"y");
    mark(lab.path("a/d"), "user.overlay.redirect", b"../..");
    mark(lab.path("b/x"), "trusted.overlay.opaque", b"maybe");
    fs::write(lab.path("a/.wh.top"), "").unwrap();
    fs::create_dir_all(lab.path("w/index")).unwrap();
    fs::write(lab.path("w/index/#2fe0f"), "").unwrap();
    mount(&lab, "", &[]).ok();
    let _mounted = Mounted(lab.path("m"));
    assert_eq!(fs::read_to_string(lab.path("m/.wh.top")).unwrap(), "");
    assert_eq!(fs::read_to_string(lab.path("m/d/e/own")).unwrap(), "text");
}

#[test]
fn directories_that_changed_places_are_no_loop() {
    need_mounts!();
    let lab = Lab::new();
    for dir in ["b/d/sub/in", "b/d/other", "u", "w", "m"] {
        fs::create_dir_all(lab.path(dir)).unwrap();
    }
    let options = format!("lowerdir={},upperdir={},workdir={}", lab.text("b"), lab.text("u"), lab.text("w"));
    {
        let _mounted = lab.mount(&options);
        fs::rename(lab.path("m/d/sub"), lab.path("m/x")).unwrap();
        fs::rename(lab.path("m/d"), lab.path("m/x/d")).unwrap();
        lab.plyfs(&["umount", "m"]).ok();
    }
    let _mounted = lab.mount(&options);
    assert!(lab.path("m/x/in").is_dir() && lab.path("m/x/d/other").is_dir() && !lab.path("m/x/d/sub").exists());
}

#[test]
fn an_upper_whose_filesystem_takes_no_marks_is_refused() {
    need_mounts!();
    let lab = Lab::layers();
    let place = lab.path("ram");
    fs::create_dir(&place).unwrap();
    assert!(Command::new("mount").args(["-t", "ramfs", "ramfs"]).arg(&place).status().unwrap().success());
    let _ram = Mounted(place);
    for dir in ["ram/u", "ram/w"] {
        fs::create_dir(lab.path(dir)).unwrap();
    }
    let begin = format!("upperdir {}: its filesystem takes no user.* attributes: ", lab.text("ram/u"));
    lab.plyfs(&["mount", "-o", "userxattr,lowerdir=a,upperdir=ram/u,workdir=ram/w", "m"]).refused(
        1,
        &begin,
        &["; put it on ext4, xfs, btrfs or tmpfs", "whiteout=aufs"],
    );
    assert_eq!(fs::read_dir(lab.path("ram/w/work")).unwrap().count(), 0);
    // An upper that holds something was made in the usual dialect, whatever the place takes now.
    fs::remove_file(lab.path("ram/w/dialect")).unwrap();
    fs::write(lab.path("ram/u/held"), "x").unwrap();
    let begin = format!("upperdir {}: its filesystem takes no trusted.* attributes: ", lab.text("ram/u"));
    lab.plyfs(&["mount", "-o", "lowerdir=a,upperdir=ram/u,workdir=ram/w", "m"]).refused(1, &begin, &["; put it on ext4"]);
}

#[test]
fn an_upper_where_there_are_no_attributes_keeps_its_marks_in_names_and_says_so() {
    need_mounts!();
    let lab = Lab::layers();
    let place = lab.path("ram");
    fs::create_dir(&place).unwrap();
    assert!(Command::new("mount").args(["-t", "ramfs", "ramfs"]).arg(&place).status().unwrap().success());
    let _ram = Mounted(place);
    for dir in ["ram/u", "ram/w", "b/gone"] {
        fs::create_dir(lab.path(dir)).unwrap();
    }
    let options = "lowerdir=a:b,upperdir=ram/u,workdir=ram/w";
    let names = |dir: &str| {
        let mut names: Vec<_> =
            fs::read_dir(lab.path(dir)).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let mounted = lab.mount(options);
    fs::remove_file(lab.path("m/low")).unwrap();
    fs::remove_dir(lab.path("m/gone")).unwrap();
    fs::remove_dir_all(lab.path("m/d")).unwrap();
    fs::create_dir(lab.path("m/d")).unwrap();
    fs::rename(lab.path("m/top"), lab.path("m/moved")).unwrap();
    let refused = |result: std::io::Result<()>| result.unwrap_err().raw_os_error();
    assert_eq!(refused(fs::write(lab.path("m/.wh.moved"), "")), Some(22), "a mark cannot be forged");
    assert_eq!(refused(fs::rename(lab.path("m/moved"), lab.path("m/.wh.d"))), Some(22));
    let shown = ["d", "moved"];
    assert_eq!(names("m"), shown);
    let diff = "D /gone\nD /low\nA /moved\nD /top\n";
    let told = lab.plyfs(&["diff", "m"]).ok().text();
    assert!(told.ends_with(diff), "{told}");
    lab.plyfs(&["umount", "m"]).ok();
    assert_eq!(names("ram/u"), [".wh.gone", ".wh.low", ".wh.top", "d", "moved"]);
    assert_eq!(names("ram/u/d"), [".wh..wh..opq"]);
    assert_eq!(fs::read_to_string(lab.path("ram/w/dialect")).unwrap(), "aufs\n");
    drop(mounted);

    // Another process that could write otherwise goes on as it was begun.
    let again = lab.mount(options);
    assert_eq!((names("m"), names("m/d").len()), (shown.map(str::to_owned).to_vec(), 0));
    drop(again);
    lab.plyfs(&["mount", "-o", &format!("userxattr,{options}"), "m"]).refused(
        1,
        &format!("upperdir {}: its marks are written as 'aufs'", lab.text("ram/u")),
        &["ask for 'user'", "; mount it with -o whiteout=aufs"],
    );
    // As a lower it shows the same.
    let _below = lab.mount("whiteout=aufs,lowerdir=ram/u:a:b");
    assert_eq!((names("m"), names("m/d").len()), (shown.map(str::to_owned).to_vec(), 0));
}

#[test]
fn owners_in_attributes_count_where_asked_for_and_make_no_device_or_set_uid() {
    need_mounts!();
    let lab = Lab::layers();
    const OVERRIDE: &str = "user.containers.override_stat";
    fs::copy("/bin/true", lab.path("a/sh")).unwrap();
    for (path, value) in
        [("a/sh", "7:8:4755"), ("b/d", "9:9:2750:dir"), ("b/low", "0:0:600:block-7-0"), ("b/d/f", "5:5:640:pipe"), ("a/top", "x")]
    {
        mark(lab.path(path), OVERRIDE, value.as_bytes());
    }
    let seen = |path: &str| {
        let meta = fs::symlink_metadata(lab.path("m").join(path)).unwrap();
        (meta.mode(), meta.uid(), meta.gid(), meta.rdev())
    };
    {
        let _mounted = lab.mount(&format!("userxattr,{}", lab.options()));
        assert_eq!(seen("d").1, 0);
        assert_eq!(seen("low").0 & 0o170_000, 0o100_000);
    }
    let mounted = lab.mount(&format!("userxattr,xattr_permissions=2,lowerdir={}:{}", lab.text("a"), lab.text("b")));
    assert_eq!(seen("sh"), (0o104_755, 7, 8, 0));
    assert_eq!(seen("d"), (0o042_750, 9, 9, 0));
    assert_eq!(seen("low"), (0o060_600, 0, 0, rustix::fs::makedev(7, 0)));
    assert_eq!(seen("d/f"), (0o010_640, 5, 5, 0));
    assert!(fs::symlink_metadata(lab.path("m/top")).is_err(), "no owner can be told");
    let (_, _, flags) = crate::lab::mount_at(&mounted.0).unwrap();
    assert!(flags.contains("nosuid") && flags.contains("nodev"), "{flags}");
    let touched = fs::File::options().write(true).open(lab.path("m/sh")).unwrap_err();
    assert_eq!(touched.raw_os_error(), Some(30), "read-only");
}

#[test]
fn owners_modes_and_kinds_in_attributes_are_kept_so_in_the_upper() {
    need_mounts!();
    let lab = Lab::layers();
    const OVERRIDE: &str = "user.containers.override_stat";
    for (file, value) in [("a/su", "0:0:04777"), ("a/disk", "1:2:0640:block-7-0")] {
        fs::write(lab.path(file), "x").unwrap();
        std::os::unix::fs::chown(lab.path(file), Some(65534), Some(65534)).unwrap();
        mark(lab.path(file), OVERRIDE, value.as_bytes());
    }
    let options = format!("xattr_permissions=2,{}", lab.options());
    let seen = |path: &str| {
        let meta = fs::symlink_metadata(lab.path(path)).unwrap();
        (meta.mode(), meta.uid(), meta.gid(), meta.rdev())
    };
    let shows = || {
        [
            ("m/su", (0o104_777, 5, 0, 0)),
            ("m/disk", (0o060_600, 1, 2, rustix::fs::makedev(7, 0))),
            ("m/new", (0o106_711, 8, 9, 0)),
            ("m/dir", (0o043_770, 8, 9, 0)),
            ("m/null", (0o020_666, 0, 0, rustix::fs::makedev(1, 3))),
            ("m/fifo", (0o010_640, 8, 9, 0)),
        ]
        .map(|(path, expected)| (path, seen(path), expected))
    };
    let mounted = lab.mount(&options);
    let script = "chown 5 su; chmod 4777 su; chmod 600 disk; touch new; chown 8:9 new; chmod 6711 new; mkdir dir; chown 8:9 dir; chmod 3770 dir; mknod null c 1 3; chmod 666 null
        mkfifo fifo; chown 8:9 fifo; chmod 640 fifo; setfattr -n user.containers.override_stat -v 0:0:04755 new
        [ $(getfattr -m - new | grep -c override) = 1 ]; setfacl -m u:7:rwx dir/. ; rm top";
    let done = Command::new("sh").args(["-ec", script]).current_dir(lab.path("m")).output().unwrap();
    assert!(done.status.success(), "{done:?}");
    let (_, _, flags) = crate::lab::mount_at(&mounted.0).unwrap();
    assert!(flags.contains("nosuid") && flags.contains("nodev"), "{flags}");
    for remounted in [false, true] {
        for (path, found, expected) in shows() {
            assert_eq!(found, expected, "{path}, mounted again: {remounted}");
        }
        // On disk nothing is anybody else's, a device, or runs as somebody else.
        for path in ["u/su", "u/disk", "u/new", "u/dir", "u/null", "u/fifo"] {
            let (mode, uid, gid, rdev) = seen(path);
            assert!(
                mode & 0o7000 == 0 && [0o100_000, 0o040_000].contains(&(mode & 0o170_000)) && (uid, gid, rdev) == (0, 0, 0),
                "{path} {mode:o}"
            );
        }
        if !remounted {
            lab.plyfs(&["umount", "m"]).ok();
            lab.plyfs(&["mount", "-o", &options, "m"]).ok();
        }
    }
    let names = Command::new("getfattr").args(["-n", OVERRIDE, "--only-values", "new"]).current_dir(lab.path("m")).output().unwrap();
    assert_eq!(names.stdout, b"0:0:04755", "an attribute of that name is the user's own, and says nothing");
    assert_eq!(
        lab.plyfs(&["diff", "m"]).ok().text().lines().filter(|line| line.starts_with("C ")).collect::<Vec<_>>(),
        ["C /disk", "C /su"]
    );
    lab.plyfs(&["umount", "m"]).ok();
    lab.plyfs(&["mount", "-o", &lab.options(), "m"]).refused(
        1,
        "upperdir ",
        &["its root has the attribute", "; mount it with -o xattr_permissions=2"],
    );
    drop(mounted);
}

/// Everything that shows in `m`, in words.
fn list(lab: &Lab) -> String {
    let list = "find . -mindepth 1 -printf '%P %M %U:%G %s %l\\n' | sort";
    let done = Command::new("sh").args(["-ec", list]).current_dir(lab.path("m")).output().unwrap();
    String::from_utf8(done.stdout).unwrap()
}

#[test]
fn what_is_written_with_userxattr_the_kernel_shows_with_userxattr() {
    need_mounts!();
    let lab = lab();
    std::os::unix::fs::symlink("target", lab.path("b/low-link")).unwrap();
    let options = lab.options();
    lab.plyfs(&["mount", "-o", &format!("userxattr,{options}"), "m"]).ok();
    let mounted = Mounted(lab.path("m"));
    let changes = "rm top; rm -r d; mkdir d; echo x > d/y; echo more >> low; ln -s t link; mkfifo p; ln low again; chown -h 5:5 low-link; rm x/y; mknod n c 1 3";
    assert!(Command::new("sh").args(["-ec", changes]).current_dir(lab.path("m")).status().unwrap().success());
    let moved = fs::rename(lab.path("m/x"), lab.path("m/z")).unwrap_err();
    assert_eq!(moved.raw_os_error(), Some(18), "a redirect is for those who may set trusted attributes");
    fs::rename(lab.path("m/d"), lab.path("m/e")).unwrap();
    let shown = list(&lab);
    assert_eq!(lab.plyfs(&["diff", "m"]).ok().text().lines().filter(|line| line.starts_with('D')).count(), 3);
    lab.plyfs(&["umount", "m"]).ok();
    drop(mounted);
    {
        let _mounted = lab.mount(&format!("userxattr,{options}"));
        assert_eq!(list(&lab), shown, "mounted again");
        lab.plyfs(&["umount", "m"]).ok();
    }
    if crate::kernel::overlay(format!("userxattr,{options}"), &lab.path("m")).is_err() {
        crate::skip::skip!("needs kernel overlayfs with userxattr");
    }
    let _mounted = Mounted(lab.path("m"));
    assert_eq!(list(&lab), shown, "mounted by the kernel");
}

/// The tool of which layers are read.
fn fuse_overlayfs(lab: &Lab, lowers: &str) -> Option<Mounted> {
    let options = format!("lowerdir={lowers},upperdir={},workdir={}", lab.text("u"), lab.text("w"));
    let status = Command::new("fuse-overlayfs").arg("-o").arg(options).arg(lab.path("m")).status().ok()?;
    status.success().then(|| Mounted(lab.path("m")))
}

#[test]
fn layers_of_fuse_overlayfs_show_what_it_showed() {
    need_mounts!();
    let lab = lab();
    let Some(mounted) = fuse_overlayfs(&lab, &format!("{}:{}", lab.text("a"), lab.text("b"))) else {
        crate::skip::skip!("needs fuse-overlayfs");
    };
    let changes = "rm top; rm -r d; mkdir d; echo x > d/y; mkdir -p x/z; rm x/y; mv low moved; chown 12:13 x";
    assert!(Command::new("sh").args(["-ec", changes]).current_dir(lab.path("m")).status().unwrap().success());
    let shown = list(&lab);
    drop(mounted);
    let lowers = ["u", "a", "b"].map(|name| lab.text(name)).join(":");
    for options in ["whiteout=aufs", "whiteout=aufs,xattr_permissions=2"] {
        let _mounted = lab.mount(&format!("{options},lowerdir={lowers}"));
        assert_eq!(list(&lab), shown, "{options}");
    }
}
