//! `plyfs try` on this machine's own `/`: what a command does there does not happen here.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use plyfs_sys::at::{self, At};
use plyfs_sys::dir::read_dir;
use plyfs_sys::stat::{Kind, Stat};
use plyfs_sys::{mount, root};

use crate::lab::{Done, Lab, SOON, missing, ok, run};
use crate::skip::skip;
use crate::tree;

/// A variable in the environment of every process of a lab.
const MARK: &str = "PLYFS_INTEROP_LAB";

/// Tries a shell script.
fn attempt(lab: &Lab, options: &[&str], script: &str) -> Command {
    let mut command = lab.plyfs(&["try"]);
    command.args(options).args(["--", "sh", "-c", script]).env(MARK, lab.path("")).current_dir("/");
    command
}

/// Tries a script and discards what it did.
fn discarded(lab: &Lab, script: &str) -> Done {
    run(&mut attempt(lab, &["--discard"], script), SOON)
}

/// What is unique in the name of a lab.
fn token(lab: &Lab) -> String {
    lab.path("").components().next_back().unwrap().as_os_str().to_str().unwrap().to_owned()
}

/// The processes of a lab.
fn processes(lab: &Lab) -> Vec<u32> {
    let mark = [MARK.as_bytes(), b"=", lab.path("").as_os_str().as_bytes()].concat();
    let numbers = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    let has_mark = |number: &u32| {
        fs::read(format!("/proc/{number}/environ")).is_ok_and(|environ| environ.split(|&byte| byte == 0).any(|variable| variable == mark))
    };
    numbers.filter(has_mark).collect()
}

/// That nothing of the tries is left: no process, no mount, no state.
fn assert_clean(lab: &Lab) {
    assert_eq!(processes(lab), [] as [u32; 0]);
    assert_eq!(listed(lab), [] as [String; 0]);
    let tries = lab.path("state/try");
    let left: Vec<PathBuf> = fs::read_dir(&tries).map(|dir| dir.map(|entry| entry.unwrap().path()).collect()).unwrap_or_default();
    assert_eq!(left, [] as [PathBuf; 0]);
}

/// The rows of `try list` without its head.
fn listed(lab: &Lab) -> Vec<String> {
    ok(&mut lab.plyfs(&["try", "list"]), SOON).text().lines().skip(1).map(ToOwned::to_owned).collect()
}

/// What a try says, without what it says of the mounts of tests that run at the same time.
fn said(done: &Done) -> Vec<&str> {
    let of_the_machine = ["changes cannot be tried in", "have files in common"];
    done.err.lines().filter(|line| !of_the_machine.iter().any(|note| line.contains(note))).collect()
}

/// Mounts but those of tests, which come and go.
fn mounts() -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let temporary = std::env::temp_dir();
    let counts = |line: &&str| !Path::new(line.split(' ').nth(4).unwrap()).starts_with(&temporary);
    table.lines().filter(counts).map(ToOwned::to_owned).collect()
}

/// Everything on the filesystem of `/` but what others change, in order.
type Walk = Vec<(Vec<u8>, Stat)>;

fn walk(without: &BTreeSet<PathBuf>) -> Walk {
    let fd = root::open_dir(Path::new("/")).unwrap();
    let mut stat = at::stat(At::Fd(fd.as_fd())).unwrap();
    stat.atime = Default::default();
    let mut found = vec![(b"/".to_vec(), stat)];
    let without = without.iter().map(|path| path.as_os_str().as_bytes().to_vec()).collect();
    descend(fd.as_fd(), b"", stat.dev, &without, &mut found);
    found.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    found
}

fn descend(dir: BorrowedFd<'_>, path: &[u8], dev: u64, without: &BTreeSet<Vec<u8>>, found: &mut Walk) {
    // What goes away meanwhile is missing in the result, which is noticed.
    for entry in read_dir(dir).unwrap_or_default() {
        let path = [path, b"/", &entry.name].concat();
        let Ok(mut stat) = at::stat(At::Name(dir, &entry.name)) else { continue };
        if without.contains(&path) || stat.dev != dev {
            continue;
        }
        // Whoever reads changes it.
        stat.atime = Default::default();
        let is_dir = stat.kind == Kind::Dir;
        if is_dir && let Ok(fd) = at::open_path(At::Name(dir, &entry.name)) {
            descend(fd.as_fd(), &path, dev, without, found);
        }
        found.push((path, stat));
    }
}

fn differing(a: &Walk, b: &Walk) -> BTreeSet<PathBuf> {
    let path = |(path, _): &(Vec<u8>, Stat)| PathBuf::from(std::ffi::OsString::from_vec(path.clone()));
    let (one, other): (BTreeSet<_>, BTreeSet<_>) = (
        a.iter()
            .filter(|entry| b.binary_search_by(|other| other.0.cmp(&entry.0)).is_ok_and(|found| b[found].1 != entry.1))
            .map(path)
            .collect(),
        a.iter().filter(|entry| b.binary_search_by(|other| other.0.cmp(&entry.0)).is_err()).map(path).collect(),
    );
    let new = b.iter().filter(|entry| a.binary_search_by(|other| other.0.cmp(&entry.0)).is_err()).map(path);
    one.into_iter().chain(other).chain(new).collect()
}

/// What is changed by others as a matter of course, and by the tests and their build.
fn changed_by_others() -> BTreeSet<PathBuf> {
    let program = Path::new(env!("CARGO_BIN_EXE_plyfs"));
    let fixed = ["/proc", "/sys", "/dev", "/run", "/tmp", "/var/log", "/var/tmp", "/var/lib/plyfs", env!("CARGO_MANIFEST_DIR")];
    let build = program.parent().and_then(Path::parent).unwrap().to_owned();
    fixed.into_iter().map(PathBuf::from).chain([std::env::temp_dir(), build]).collect()
}

#[test]
fn a_discarded_try_leaves_this_machine_as_it_was() {
    if let Some(why) = missing(&["sh"]) {
        skip!("{why}");
    }
    let lab = Lab::new();
    let token = token(&lab);
    let t = token.as_str();
    // One with one name: of a file with several all names change, wherever they are.
    let single = |name: &&str| std::os::unix::fs::MetadataExt::nlink(&fs::metadata(Path::new("/usr/bin").join(name)).unwrap()) == 1;
    let program = ["env", "id", "sort", "cut", "head"].into_iter().find(single).unwrap();
    let script = format!(
        "
        set -e
        echo x >> /etc/passwd
        rm /etc/debian_version
        mkdir -p /etc/{t}/sub; echo y > /etc/{t}/sub/file
        mv /etc/skel /etc/skel.{t}
        chmod 700 /usr/bin/{program}
        chown 1:1 /usr/local; ln -s x /usr/local/{t}
        echo z > /usr/lib/{t}
        rm -rf /usr/share/doc
        mv /var/lib/dpkg/status /var/lib/dpkg/{t}
        dd if=/dev/zero of=/var/{t} bs=1M count=8 2>/dev/null
        touch -d @1 /usr /var
        echo w > /tmp/file.{t}
        mkdir /root/{t}
        chmod 711 /
        exit 42
        "
    );
    let mut expected: BTreeSet<Vec<u8>> = format!(
        "C /etc\nC /etc/passwd\nD /etc/debian_version\nA /etc/{t}\nA /etc/{t}/sub\nA /etc/{t}/sub/file\nD /etc/skel\nA /etc/skel.{t}\nC /usr\n\
        C /usr/bin\nC /usr/bin/{program}\nC /usr/local\nA /usr/local/{t}\nC /usr/lib\nA /usr/lib/{t}\nC /usr/share\nD /usr/share/doc\nC /var\n\
        C /var/lib\nC /var/lib/dpkg\nD /var/lib/dpkg/status\nA /var/lib/dpkg/{t}\nA /var/{t}\nC /tmp\nA /tmp/file.{t}\nC /root\nA /root/{t}"
    )
    .lines()
    .map(|line| line.as_bytes().to_vec())
    .collect();
    let skeleton = tree::walk(Path::new("/etc/skel"));
    expected.extend(skeleton.keys().filter(|path| *path != b"/").map(|path| [format!("A /etc/skel.{t}").as_bytes(), path].concat()));

    // What others change, however long they take for it: their directories are left out, but never those that the script works on.
    let ours: Vec<&Path> = [
        "/etc",
        "/usr/bin",
        "/usr/local",
        "/usr/lib",
        "/usr/share",
        "/usr/share/doc",
        "/usr",
        "/var",
        "/var/lib",
        "/var/lib/dpkg",
        "/root",
        "/",
    ]
    .map(Path::new)
    .to_vec();
    let mut without = changed_by_others();
    let leave_out = |without: &mut BTreeSet<PathBuf>, changed: &BTreeSet<PathBuf>| {
        for path in changed {
            let dir = path.parent().unwrap_or(path);
            assert!(!path.starts_with("/etc"), "{} changes without us", path.display());
            without.insert(if ours.contains(&dir) { path.clone() } else { dir.to_owned() });
        }
    };
    let first = walk(&without);
    let etc = tree::walk(Path::new("/etc"));
    let mounted = mounts();
    let mut before = walk(&without);
    leave_out(&mut without, &differing(&first, &before));
    for round in 1.. {
        let done = discarded(&lab, &script);
        assert_eq!(done.status.code(), Some(42), "{}", done.err);
        let lines: BTreeSet<Vec<u8>> = done.lines().into_iter().collect();
        assert_eq!(shown(lines.symmetric_difference(&expected)), "", "{}", done.err);
        assert_clean(&lab);
        let after = walk(&without);
        let (was, is) = (walked(&before, &without), walked(&after, &without));
        let changed = differing(&was, &is);
        println!("{} objects on this machine, without {without:?}", is.len());
        assert!(is.len() > 1_000);
        if changed.is_empty() {
            break;
        }
        // A change of ours would be there again.
        assert!(round < 4, "changed: {changed:?}");
        println!("once more, since these have changed: {changed:?}");
        leave_out(&mut without, &changed);
        before = after;
    }
    let differences = tree::differences(&etc, &tree::walk(Path::new("/etc")), &|_, node| Some(node.clone()));
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    assert!(!Path::new("/tmp").join(format!("file.{t}")).exists());
    assert_eq!(mounts(), mounted);
}

/// What is left of a walk without these and what is below them; `/` stands for itself alone.
fn walked(walk: &Walk, without: &BTreeSet<PathBuf>) -> Walk {
    let counts = |path: &[u8]| {
        let path = Path::new(std::ffi::OsStr::from_bytes(path));
        !path.ancestors().any(|above| without.contains(above) && (above == path || above.parent().is_some()))
    };
    walk.iter().filter(|(path, _)| counts(path)).cloned().collect()
}

fn shown<'a>(lines: impl Iterator<Item = &'a Vec<u8>>) -> String {
    lines.map(|line| String::from_utf8_lossy(line).into_owned()).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_try_ends_with_the_code_of_its_command() {
    if let Some(why) = missing(&["sh"]) {
        skip!("{why}");
    }
    let lab = Lab::new();
    let plain = lab.path("plain");
    fs::write(&plain, "x").unwrap();
    for (command, code) in [
        (&["true"][..], 0),
        (&["sh", "-c", "exit 3"], 3),
        (&["sh", "-c", "kill -TERM $$"], 143),
        (&["sh", "-c", "kill -KILL $$"], 137),
        (&["no-such-command-here"], 127),
        (&[plain.to_str().unwrap()], 126),
    ] {
        let done = run(lab.plyfs(&["try", "--discard", "--"]).args(command), SOON);
        assert_eq!((done.status.code(), done.text().as_str()), (Some(code), ""), "{command:?}: {}", done.err);
        assert_eq!(said(&done).len(), usize::from(code == 126 || code == 127), "{command:?}: {}", done.err);
    }
    assert_clean(&lab);
}

#[test]
fn a_try_reaches_neither_the_kernel_nor_devices_nor_the_state_of_plyfs() {
    if let Some(why) = missing(&["sh", "mknod"]) {
        skip!("{why}");
    }
    let lab = Lab::new();
    let state = lab.make("state");
    fs::write(state.join("secret"), "").unwrap();
    let dev = fs::metadata("/").unwrap().dev();
    let script = format!(
        "
        for file in /proc/sys/kernel/hostname /proc/sys/vm/drop_caches /proc/sysrq-trigger; do
            [ ! -w $file ] || echo $file can be written
        done
        echo x 2>/dev/null > /proc/sys/kernel/hostname && echo a host name was written
        mkdir 2>/dev/null /sys/fs/cgroup/plyfs-test && echo a cgroup was made
        [ $$ -lt 10 ] || echo process number $$
        mknod node b {} {} 2>/dev/null && head -c 1 node >/dev/null 2>&1 && echo the disk can be read
        for node in /dev/*; do [ ! -b $node ] || echo $node is there; done
        for node in null zero full random urandom tty ptmx; do [ -c /dev/$node ] || echo /dev/$node is missing; done
        echo x > /dev/null; head -c 4 /dev/urandom | wc -c | grep -qx 4 || echo no random numbers
        ls -A {}
        rm -f node
        ",
        plyfs_sys::stat::major(dev),
        plyfs_sys::stat::minor(dev),
        state.display()
    );
    let hostname = fs::read("/proc/sys/kernel/hostname").unwrap();
    let done = discarded(&lab, &format!("cd /; {script}"));
    assert_eq!((done.text().as_str(), done.status.code()), ("", Some(0)), "{}", done.err);
    assert_eq!(fs::read("/proc/sys/kernel/hostname").unwrap(), hostname);
    assert_clean(&lab);
}

#[test]
fn a_try_inherits_descriptors_0_to_2_only() {
    if let Some(why) = missing(&["sh", "ls"]) {
        skip!("{why}");
    }
    let lab = Lab::new();
    let mut command = Command::new("sh");
    command.args([
        "-c",
        "exec 7</etc/passwd 9>/dev/null; exec \"$0\" try --discard -- sh -c 'ls /proc/$$/fd; :'",
        env!("CARGO_BIN_EXE_plyfs"),
    ]);
    let done = ok(command.env("PLYFS_ROOT", lab.path("state")), SOON);
    assert_eq!(done.text(), "0\n1\n2\n");
}

#[test]
fn filesystems_below_the_root_have_unions_of_their_own() {
    if let Some(why) = missing(&["mkfs.ext4", "losetup", "mount", "umount"]) {
        skip!("{why}");
    }
    let lab = Lab::new();
    let (memory, disk, file) = (lab.make("memory"), lab.make("disk"), lab.path("image"));
    File::create(&file).unwrap().set_len(32 << 20).unwrap();
    ok(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&file), SOON);
    ok(Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(&memory), SOON);
    let looped = run(Command::new("mount").args(["-o", "loop"]).args([&file, &disk]), SOON);
    if !looped.status.success() {
        skip!("needs a loop device: {}", looped.err.trim());
    }
    // One more on that; one that is read-only anyway; one single file; one that others serve.
    let (inner, sealed, single, served) = (disk.join("inner"), lab.make("sealed"), lab.path("single"), lab.make("served"));
    fs::create_dir(&inner).unwrap();
    ok(Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(&inner), SOON);
    ok(Command::new("mount").args(["-t", "tmpfs", "-o", "ro", "tmpfs"]).arg(&sealed), SOON);
    fs::write(&single, "single").unwrap();
    ok(Command::new("mount").args(["--bind", "/etc/passwd"]).arg(&single), SOON);
    let (lower, upper, work) = (lab.make("lower"), lab.make("upper"), lab.make("work"));
    let options = format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
    ok(&mut lab.plyfs(&["mount", "-o", &options, served.to_str().unwrap()]), SOON);
    for dir in [&memory, &disk, &inner] {
        fs::write(dir.join("changed"), "old").unwrap();
        fs::write(dir.join("deleted"), "old").unwrap();
        fs::create_dir(dir.join("dir")).unwrap();
        symlink("x", dir.join("dir/link")).unwrap();
    }
    let look = || [&memory, &disk, &inner].map(|dir| tree::walk(dir));
    let before = look();

    let place = lab.path("");
    let place = place.to_str().unwrap().trim_end_matches('/');
    let script = format!(
        "
        cd {place}
        for dir in memory disk disk/inner; do
            echo new >> $dir/changed; rm $dir/deleted; mv $dir/dir $dir/moved; echo a > $dir/added; chmod 700 $dir
        done
        for place in sealed/x served/x single; do
            (echo x > $place) 2>/dev/null && echo $place was written
        done
        df memory disk disk/inner >/dev/null || echo no df
        exit 5
        "
    );
    let done = run(&mut attempt(&lab, &["--keep", "several"], &script), SOON);
    assert_eq!(done.status.code(), Some(5), "{}", done.err);
    // The mount points of this test are in /tmp or whatever has it, which is changed above them.
    let mut expected: BTreeSet<String> = BTreeSet::new();
    for dir in ["memory", "disk", "disk/inner"] {
        for line in ["A added", "C changed", "D deleted", "D dir", "A moved", "A moved/link"] {
            let (letter, name) = line.split_once(' ').unwrap();
            expected.insert(format!("{letter} {place}/{dir}/{name}"));
        }
        expected.extend(
            Path::new(&format!("{place}/{dir}")).ancestors().filter(|dir| *dir != Path::new("/")).map(|dir| format!("C {}", dir.display())),
        );
    }
    let told: BTreeSet<String> = done.text().lines().map(ToOwned::to_owned).collect();
    assert_eq!(told, expected);
    let named = done.err.lines().find(|line| line.contains("changes cannot be tried in")).unwrap_or_default();
    assert!(
        named.contains(&format!("{place}/single (")) && named.contains(&format!("{place}/served (fuse.plyfs, read-only)")),
        "{}",
        done.err
    );
    assert!(!named.contains("sealed") && !named.contains("memory") && !named.contains("disk"), "{}", done.err);

    assert_eq!(ok(&mut lab.plyfs(&["try", "diff", "several"]), SOON).text(), done.text());
    ok(&mut lab.plyfs(&["try", "discard", "several"]), SOON);
    for (before, after) in before.iter().zip(look()) {
        let differences = tree::differences(before, &after, &|_, node| Some(node.clone()));
        assert!(differences.is_empty(), "{}", differences.join("\n"));
        assert!(before.values().zip(after.values()).all(|(a, b)| (a.stat.ino, a.stat.ctime) == (b.stat.ino, b.stat.ctime)));
    }
    assert_clean(&lab);
    ok(&mut lab.plyfs(&["umount", served.to_str().unwrap()]), SOON);
}

#[test]
fn a_kept_try_is_listed_shown_and_discarded() {
    if let Some(why) = missing(&["sh"]) {
        skip!("{why}");
    }
    let lab = Lab::new();
    let token = token(&lab);
    let script = format!("echo x > /etc/{token}; rm /etc/debian_version; exit 3");
    let done = run(&mut attempt(&lab, &["--keep", "first"], &script), SOON);
    let expected = format!("C /etc\nD /etc/debian_version\nA /etc/{token}\n");
    assert_eq!((done.status.code(), done.text()), (Some(3), expected.clone()), "{}", done.err);
    assert!(!Path::new("/etc").join(&token).exists() && Path::new("/etc/debian_version").exists());
    // Not on a terminal and not told what to do: kept under a name that is made up.
    let other = run(&mut attempt(&lab, &[], &script), SOON);
    assert_eq!((other.status.code(), other.text()), (Some(3), expected.clone()), "{}", other.err);

    let rows = listed(&lab);
    assert_eq!(rows.len(), 2, "{rows:?}");
    let first = rows.iter().find(|row| row.starts_with("first ")).unwrap();
    assert!(first.contains("Exited (3)") && first.contains("sh -c"), "{first}");
    let made_up = rows.iter().find(|row| !row.starts_with("first ")).unwrap().split(' ').next().unwrap().to_owned();
    assert!(other.err.contains(&made_up), "{} {made_up}", other.err);
    assert_eq!(ok(&mut lab.plyfs(&["try", "diff", "first"]), SOON).text(), expected);
    // A name is taken once, and nothing runs then.
    let again = run(&mut attempt(&lab, &["--keep", "first"], "echo ran"), SOON);
    assert_eq!((again.status.code(), again.text().as_str()), (Some(125), ""));
    assert!(said(&again).len() == 1 && said(&again)[0].contains("first"), "{}", again.err);
    let missing = run(&mut lab.plyfs(&["try", "discard", "first", "nobody"]), SOON);
    assert!(!missing.status.success() && missing.err.contains("nobody"), "{}", missing.err);
    assert_eq!(listed(&lab).len(), 2);
    ok(&mut lab.plyfs(&["try", "discard", "first", &made_up]), SOON);
    assert!(!run(&mut lab.plyfs(&["try", "diff", "first"]), SOON).status.success());
    assert_clean(&lab);
}

#[test]
fn a_try_that_is_killed_leaves_this_machine_as_it_was_and_can_be_discarded() {
    if let Some(why) = missing(&["sh", "sleep"]) {
        skip!("{why}");
    }
    let lab = Lab::new();
    let token = token(&lab);
    let etc = tree::walk(Path::new("/etc"));
    let mounted = mounts();
    let script = format!("echo x >> /etc/passwd; echo y > /etc/{token}; rm /etc/debian_version; sleep 1000 & echo ready; wait");
    let mut child = attempt(&lab, &["--keep", "killed"], &script).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    assert!(listed(&lab)[0].contains("Running"), "{:?}", listed(&lab));
    let busy = run(&mut lab.plyfs(&["try", "discard", "killed"]), SOON);
    assert!(!busy.status.success() && busy.err.contains("killed"), "{}", busy.err);
    assert!(processes(&lab).len() >= 3);
    child.kill().unwrap();
    child.wait().unwrap();

    let end = Instant::now() + SOON;
    while !processes(&lab).is_empty() {
        assert!(Instant::now() < end, "{:?} live on", processes(&lab));
        std::thread::sleep(Duration::from_millis(20));
    }
    let differences = tree::differences(&etc, &tree::walk(Path::new("/etc")), &|_, node| Some(node.clone()));
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    assert_eq!(mounts(), mounted);
    let rows = listed(&lab);
    assert!(rows.len() == 1 && rows[0].starts_with("killed ") && rows[0].contains("Cut off"), "{rows:?}");
    let diff = ok(&mut lab.plyfs(&["try", "diff", "killed"]), SOON);
    assert_eq!(diff.text(), format!("C /etc\nD /etc/debian_version\nC /etc/passwd\nA /etc/{token}\n"));
    ok(&mut lab.plyfs(&["try", "discard", "killed"]), SOON);
    assert_clean(&lab);
}

#[test]
fn sockets_of_the_host_are_reached_from_a_try_only_if_asked_for() {
    if let Some(why) = missing(&["perl"]) {
        skip!("{why}");
    }
    let lab = Lab::new();
    // Its mode does not keep root out, nor others.
    let listener = UnixListener::bind(lab.path("stream")).unwrap();
    fs::set_permissions(lab.path("stream"), fs::Permissions::from_mode(0o666)).unwrap();
    let datagrams = UnixDatagram::bind(lab.path("datagram")).unwrap();
    let answering = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"hello\n").unwrap();
        listener.set_nonblocking(true).unwrap();
        assert!(listener.accept().is_err(), "a second one connected");
    });
    let script = format!(
        r#"cd {}; perl -MSocket -e '
            socket($s, PF_UNIX, SOCK_STREAM, 0); if (connect($s, sockaddr_un("stream"))) {{ print scalar <$s> }} else {{ print "no stream\n" }}
            socket($d, PF_UNIX, SOCK_DGRAM, 0); print connect($d, sockaddr_un("datagram")) ? "datagrams\n" : "no datagrams\n"'"#,
        lab.path("").display()
    );
    let apart = discarded(&lab, &script);
    assert_eq!(apart.text(), "no stream\nno datagrams\n", "{}", apart.err);
    let open = run(&mut attempt(&lab, &["--discard", "--host-sockets"], &script), SOON);
    assert_eq!(open.text(), "hello\ndatagrams\n", "{}", open.err);
    answering.join().unwrap();
    drop(datagrams);
    assert_clean(&lab);
}

#[test]
fn a_try_shows_this_machine_as_it_is() {
    if let Some(why) = missing(&["find", "sort"]) {
        skip!("{why}");
    }
    let lab = Lab::new();
    // Links and size of a directory are its filesystem's own affair; what was read a moment ago has another atime.
    let script =
        "find /etc /usr -xdev -type d -printf '%y %m %U %G %T@ %i %p\\n' -o -printf '%y %m %U %G %s %n %T@ %i %p %l\\n' | LC_ALL=C sort
        find /etc /usr/bin -xdev -type f -exec cksum {} + | LC_ALL=C sort";
    let there = ok(Command::new("sh").args(["-c", script]), SOON);
    let shown = discarded(&lab, script);
    let (there, shown): (BTreeSet<Vec<u8>>, BTreeSet<Vec<u8>>) = (there.lines().into_iter().collect(), shown.lines().into_iter().collect());
    assert!(there.len() > 1_000);
    let differences: Vec<_> = there.symmetric_difference(&shown).map(|line| String::from_utf8_lossy(line).into_owned()).collect();
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    println!("{} lines", there.len());
}

#[test]
fn a_package_that_is_installed_in_a_try_is_not_installed_here() {
    if let Some(why) = missing(&["dpkg", "dpkg-deb"]) {
        skip!("{why}");
    }
    let lab = Lab::new();
    let package = lab.make("package");
    fs::create_dir_all(package.join("DEBIAN")).unwrap();
    fs::create_dir_all(package.join("usr/share/plyfs-interop")).unwrap();
    fs::write(package.join("usr/share/plyfs-interop/file"), "x").unwrap();
    let control = "Package: plyfs-interop\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@localhost>\nDescription: a test\n";
    fs::write(package.join("DEBIAN/control"), control).unwrap();
    let place = lab.path("");
    let place = place.display();
    let script =
        format!("set -e; cd {place}; dpkg-deb -b package p.deb; dpkg -i p.deb; dpkg -s plyfs-interop; dpkg --verify plyfs-interop");
    let mut command = attempt(&lab, &["--keep", "package"], &format!("({script}) >&2"));
    let done = run(command.env("DEBIAN_FRONTEND", "noninteractive"), SOON);
    assert_eq!(done.status.code(), Some(0), "{}", done.err);
    assert!(done.err.contains("Status: install ok installed"), "{}", done.err);
    let lines: BTreeSet<Vec<u8>> = done.lines().into_iter().collect();
    for line in [
        "C /var/lib/dpkg/status",
        "A /var/lib/dpkg/info/plyfs-interop.list",
        "A /usr/share/plyfs-interop",
        "A /usr/share/plyfs-interop/file",
        &format!("A {place}p.deb"),
    ] {
        assert!(lines.contains(line.as_bytes()), "{line}: {}", done.text());
    }
    assert!(!run(Command::new("dpkg").args(["-s", "plyfs-interop"]), SOON).status.success());
    assert!(!Path::new("/usr/share/plyfs-interop").exists() && !lab.path("p.deb").exists());
    ok(&mut lab.plyfs(&["try", "discard", "package"]), SOON);
    assert_clean(&lab);
}

#[test]
fn what_a_try_prints_comes_while_it_runs() {
    if let Some(why) = missing(&["sh"]) {
        skip!("{why}");
    }
    let lab = Lab::new();
    let script = "echo one; read line; echo \"$line\"";
    let mut child = attempt(&lab, &["--discard"], script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "one\n");
    child.stdin.take().unwrap().write_all(b"two\n").unwrap();
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "two\n");
    assert!(child.wait().unwrap().success());
    assert_clean(&lab);
}

/// The test of the tests: a change is noticed.
#[test]
fn a_walk_over_a_filesystem_notices_every_change() {
    let lab = Lab::new();
    let dir = root::open_dir(&lab.make("walk")).unwrap();
    let stat = at::stat(At::Fd(dir.as_fd())).unwrap();
    let look = || {
        let mut found = Walk::new();
        descend(dir.as_fd(), b"", stat.dev, &BTreeSet::new(), &mut found);
        found.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        found
    };
    let path = lab.path("walk");
    fs::write(path.join("a"), "1").unwrap();
    fs::create_dir(path.join("d")).unwrap();
    let before = look();
    assert!(differing(&before, &look()).is_empty());
    // The clock that stamps files ticks every few milliseconds.
    std::thread::sleep(Duration::from_millis(20));
    fs::write(path.join("a"), "2").unwrap();
    fs::set_permissions(path.join("d"), fs::Permissions::from_mode(0o711)).unwrap();
    fs::write(path.join("b"), "").unwrap();
    assert_eq!(differing(&before, &look()), ["/a", "/b", "/d"].map(PathBuf::from).into());
    assert_eq!(differing(&look(), &before), ["/a", "/b", "/d"].map(PathBuf::from).into());
    assert!(mount::mounts().unwrap().len() > 1);
}
