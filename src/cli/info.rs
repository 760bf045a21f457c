//! `plyfs info`: in one screen, what this machine allows, and the remedy for each lack.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use plyfs_format::{Dialect, WHITEOUT_RDEV};
use plyfs_overlay::DirTree;
use plyfs_sys::at::{self, At, XattrMode};
use plyfs_sys::mount::{self, MountInfo};
use plyfs_sys::stat::Kind;
use plyfs_sys::{Errno, create, io, process, root, tree};

use super::store::Store;
use super::{daemon, fail, marks, mounts, output, rootless};

/// Show what this machine allows, and the remedy for each lack.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Also how the marks of an upper in this directory are written
    dir: Option<PathBuf>,
}

/// One line: what it is about, what was found, and what to do if that is a lack.
struct Row {
    name: &'static str,
    found: String,
    remedy: Option<String>,
}

impl Row {
    fn good(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, found: found.into(), remedy: None }
    }

    fn lack(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, found: found.into(), remedy: Some(remedy.into()) }
    }
}

/// Looks and prints. A lack is no error.
pub(crate) fn main(args: &Args, root: Option<PathBuf>) -> anyhow::Result<ExitCode> {
    let store = Store::at(root)?;
    let table = mount::mounts().unwrap_or_default();
    let mut rows = vec![
        Row::good("plyfs", env!("CARGO_PKG_VERSION")),
        Row::good("kernel", format!("{} {}", line("/proc/sys/kernel/ostype"), line("/proc/sys/kernel/osrelease"))),
        user(),
    ];
    rows.extend(fuse());
    rows.extend([user_namespaces(), sub_ids(), cgroups(&table)]);
    rows.extend(network());
    rows.push(overlay());
    rows.extend(state(&store, &table));
    if let Some(dir) = &args.dir {
        rows.push(place(dir)?);
    }
    print(&rows)?;
    Ok(ExitCode::SUCCESS)
}

fn print(rows: &[Row]) -> anyhow::Result<()> {
    output::to_stdout(|out| {
        for row in rows {
            writeln!(out, "{:<16} {}", row.name, fail::one_line(&row.found))?;
            if let Some(remedy) = &row.remedy {
                writeln!(out, "{:<16} -> {}", "", fail::one_line(remedy))?;
            }
        }
        Ok(())
    })
}

/// The first line of a file, or nothing.
fn line(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().lines().next().unwrap_or_default().trim().to_owned()
}

fn number(path: &str) -> Option<u64> {
    line(path).parse().ok()
}

fn user() -> Row {
    match process::effective_uid() {
        0 => Row::good("user", "root"),
        uid => Row::good("user", format!("uid {uid}")),
    }
}

/// What the kernel offers in its first message to a server: the version of the protocol, and flags.
struct Offer {
    version: (u32, u32),
    flags: u64,
}

/// Bits of the flags, from the kernel's `fuse.h`.
const PASSTHROUGH: u64 = 1 << 37;
const OVER_IO_URING: u64 = 1 << 41;

fn fuse() -> Vec<Row> {
    let device = mount::open_dev_fuse();
    let row = match &device {
        Ok(_) => Row::good("/dev/fuse", "can be opened"),
        Err(Errno::NOENT) => Row::lack("/dev/fuse", "there is none", "modprobe fuse; into a container pass it with --device /dev/fuse"),
        Err(Errno::NODEV) => {
            Row::lack("/dev/fuse", "is not the FUSE device, or the kernel has no FUSE", "modprobe fuse, then mknod /dev/fuse c 10 229")
        }
        Err(errno) => {
            Row::lack("/dev/fuse", format!("cannot be opened: {errno}"), "run as root, or in a container with --device /dev/fuse")
        }
    };
    let mut rows = vec![row];
    if device.is_err() {
        return rows;
    }
    let offer = match offer() {
        Ok(offer) => offer,
        Err(_) if rootless::is_ordinary_user() => {
            rows.push(match in_path(mount::FUSERMOUNT) {
                Some(_) => Row::good("FUSE mounts", "by fusermount3, and in a user namespace"),
                None => Row::lack("FUSE mounts", "in a user namespace only: no fusermount3", "apt-get install fuse3"),
            });
            return rows;
        }
        Err(why) => {
            let remedy = "run as root with CAP_SYS_ADMIN, outside of a container that forbids mounts";
            rows.push(Row::lack("FUSE mounts", format!("cannot be made: {why}"), remedy));
            return rows;
        }
    };
    let (major, minor) = offer.version;
    rows.push(Row::good("FUSE mounts", format!("can be made; protocol {major}.{minor}")));
    rows.push(if offer.flags & PASSTHROUGH != 0 {
        Row::good("passthrough", "offered by the kernel")
    } else {
        Row::lack(
            "passthrough",
            "not offered by the kernel",
            "reads and writes are slower; use Linux 6.9 or newer with CONFIG_FUSE_PASSTHROUGH",
        )
    });
    rows.push(if offer.flags & OVER_IO_URING != 0 {
        Row::good("io_uring", "FUSE over io_uring is enabled")
    } else {
        match line("/sys/module/fuse/parameters/enable_uring").as_str() {
            "" => Row::good("io_uring", "no FUSE over io_uring in this kernel; plyfs does not need it"),
            _ => Row::good("io_uring", "FUSE over io_uring is off; plyfs does not need it"),
        }
    });
    rows
}

/// Makes a FUSE filesystem that nobody sees, reads the kernel's first message, and drops it.
fn offer() -> Result<Offer, String> {
    let (device, _mount) = mount::fuse_mount(&daemon::shared_fuse_options()).map_err(|error| error.to_string())?;
    let mut message = vec![0; 16 * 1024];
    let length = File::from(device).read(&mut message).map_err(|error| error.to_string())?;
    message.truncate(length);
    // A header of 40 bytes; major, minor, max_readahead, flags, flags2.
    let word = |index: usize| {
        let at = 40 + 4 * index;
        let bytes: [u8; 4] = message.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_ne_bytes(bytes))
    };
    let offer = || {
        let flags = u64::from(word(3)?) | u64::from(word(4).unwrap_or(0)) << 32;
        Some(Offer { version: (word(0)?, word(1)?), flags })
    };
    offer().ok_or_else(|| "the kernel's first message is too short".to_owned())
}

fn user_namespaces() -> Row {
    let name = "user namespaces";
    if number("/proc/sys/user/max_user_namespaces").unwrap_or(0) == 0 {
        return Row::lack(name, "none are allowed", "sysctl user.max_user_namespaces=10000 (for try, run and mount of ordinary users)");
    }
    for (file, off, remedy) in [
        (
            "/proc/sys/kernel/unprivileged_userns_clone",
            0,
            "sysctl kernel.unprivileged_userns_clone=1 (for try, run and mount of ordinary users)",
        ),
        (
            "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
            1,
            "sysctl kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile for plyfs (for try, run and mount of ordinary users)",
        ),
    ] {
        if number(file) == Some(off) {
            return Row::lack(name, "for root only", remedy);
        }
    }
    Row::good(name, "for all users")
}

/// The ranges of other ids that a user may map. Root needs none.
fn sub_ids() -> Row {
    let name = "subuid, subgid";
    let uid = process::effective_uid();
    let login = rootless::login(uid);
    let count = |file: &str| rootless::ranges(file, uid).iter().map(|&(_, count)| u64::from(count)).sum::<u64>();
    let (uids, gids) = (count(rootless::SUBUID), count(rootless::SUBGID));
    let helpers = in_path("newuidmap").is_some() && in_path("newgidmap").is_some();
    let who = login.unwrap_or_else(|| uid.to_string());
    let found = format!("{uids} and {gids} ids for {who}; newuidmap {}", if helpers { "is there" } else { "is missing" });
    if uid == 0 || uids > 0 && gids > 0 && helpers {
        return Row::good(name, found);
    }
    Row::lack(name, found, format!("apt-get install uidmap; usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {who}"))
}

fn cgroups(table: &[MountInfo]) -> Row {
    let has = |fstype: &[u8]| table.iter().any(|mount| mount.fstype == fstype);
    let unified = table.iter().any(|mount| mount.fstype == b"cgroup2" && mount.mountpoint == b"/sys/fs/cgroup");
    match (unified, has(b"cgroup2"), has(b"cgroup")) {
        (true, ..) => Row::good("cgroups", "v2"),
        (false, true, true) => Row::good("cgroups", "hybrid: v1, and v2 beside it"),
        (false, false, true) => Row::good("cgroups", "v1"),
        (false, true, false) => Row::good("cgroups", "v2, not at /sys/fs/cgroup"),
        (false, false, false) => {
            Row::lack("cgroups", "none mounted", "mount -t cgroup2 none /sys/fs/cgroup (for later versions: limits of containers)")
        }
    }
}

fn network() -> Vec<Row> {
    let report = |name, programs: &[&str], remedy: &str| {
        let found: Vec<String> = programs.iter().filter_map(|program| in_path(program)).map(|path| path.display().to_string()).collect();
        if found.is_empty() {
            Row::lack(name, format!("none of {}", programs.join(", ")), remedy)
        } else {
            Row::good(name, found.join(", "))
        }
    };
    vec![
        report("user network", &["pasta", "slirp4netns"], "apt-get install passt (for later versions: network of containers without root)"),
        report("packet filter", &["nft", "iptables"], "apt-get install nftables (for later versions: published ports)"),
    ]
}

/// A program, where `PATH` or the places of administration have it.
fn in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    dirs.map(|dir| dir.join(program)).find(|file| file.is_file())
}

fn overlay() -> Row {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if known.lines().any(|line| line.split_whitespace().last() == Some("overlay")) {
        Row::good("overlayfs", "in the kernel: it can mount what plyfs leaves")
    } else {
        Row::lack("overlayfs", "not in the kernel, or not loaded", "modprobe overlay, if the kernel is to mount what plyfs leaves")
    }
}

fn state(store: &Store, table: &[MountInfo]) -> Vec<Row> {
    let path = store.path();
    // What is not there yet will be on the filesystem of the nearest directory that is.
    let nearest = path.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("/"));
    let made = nearest == path;
    let real = nearest.canonicalize().unwrap_or_else(|_| nearest.to_owned());
    let fstype = mounts::holding(table, &real).map_or_else(|| "unknown".into(), |mount| String::from_utf8_lossy(&mount.fstype));
    let yet = if made { "" } else { ", not made yet" };
    let row = Row::good("state directory", format!("{} ({fstype}{yet})", path.display()));
    let probed = root::open_dir(&real).and_then(|dir| if made { probe(&real, &dir) } else { nameless(&dir) });
    let remedy = "run as root, or take another one with --root DIR or PLYFS_ROOT";
    let can = match probed {
        Ok(results) => {
            let shown: Vec<String> = results.iter().map(|(name, result)| format!("{name} {}", word(*result))).collect();
            // Nothing fails for lack of the last two, it only takes longer.
            let needed = |name: &str| !matches!(name, "O_TMPFILE" | "reflink");
            if results.iter().any(|(name, result)| result.is_err() && needed(name)) {
                Row::lack("", shown.join(", "), format!("{remedy}; ext4, xfs, btrfs and tmpfs will do"))
            } else {
                Row::good("", shown.join(", "))
            }
        }
        Err(errno) => Row::lack("", format!("cannot be written: {errno}"), remedy),
    };
    vec![row, can]
}

/// How the marks of an upper are written that is made in a directory: tried out in one that is removed at once.
fn place(dir: &Path) -> anyhow::Result<Row> {
    let at = || format!("info {}", dir.display());
    let unusable = |error: std::io::Error| fail::failure(at(), error, "give a directory that you can write in");
    let trial = dir.join(format!(".info-{}", std::process::id()));
    fs::create_dir(&trial).map_err(unusable)?;
    let tried = (|| {
        let [upper, work] = ["upper", "work"].map(|name| trial.join(name));
        [&upper, &work].into_iter().try_for_each(fs::create_dir).map_err(unusable)?;
        marks::choose(&DirTree::upper(&upper, &work)?, marks::own_dialect(), &at())
    })();
    fs::remove_dir_all(&trial).map_err(unusable)?;
    let dialect = tried?;
    let meaning = match dialect {
        Dialect::Trusted => "as kernel overlayfs has them",
        Dialect::User => "as kernel overlayfs with userxattr has them; directories with lower parts are not renamed",
        Dialect::Aufs => {
            "whiteouts are file names; directories with lower parts are not renamed, copied-up files get new numbers at a remount"
        }
    };
    Ok(Row::good("an upper", format!("{}: marks in the dialect '{}': {meaning}", dir.display(), dialect.name())))
}

fn word(result: Result<(), Errno>) -> String {
    match result {
        Ok(()) => "yes".to_owned(),
        Err(errno) => format!("no ({})", std::io::Error::from(errno).kind()),
    }
}

/// What a filesystem was asked for, and the answer.
type Answers = Vec<(&'static str, Result<(), Errno>)>;

/// Tries out what the filesystem can hold, in a directory that is removed at once.
fn probe(path: &Path, parent: &OwnedFd) -> Result<Answers, Errno> {
    let name = format!(".info-{}", std::process::id());
    create::mkdir(parent.as_fd(), name.as_bytes(), 0o700)?;
    let answers = at::open_path(At::Name(parent.as_fd(), name.as_bytes())).and_then(|dir| {
        let mut answers = nameless(&dir)?;
        // A character device 0:0 is the kernel's whiteout.
        answers.push(("whiteouts", create::mknod(dir.as_fd(), b"w", Kind::Char, 0o600, WHITEOUT_RDEV)));
        answers.push(("reflink", reflink(&path.join(&name), &dir)));
        tree::remove_contents(dir.as_fd())?;
        Ok(answers)
    });
    create::rmdir(parent.as_fd(), name.as_bytes())?;
    answers
}

/// What can be tried out on a file that has no name, so that nobody sees it.
fn nameless(dir: &OwnedFd) -> Result<Answers, Errno> {
    let file = match create::tmpfile(dir.as_fd()) {
        Ok(file) => file,
        Err(errno @ (Errno::OPNOTSUPP | Errno::ISDIR)) => return Ok(vec![("O_TMPFILE", Err(errno))]),
        Err(errno) => return Err(errno),
    };
    let set = |name: &[u8]| at::set_xattr(At::Fd(file.as_fd()), name, b"1", XattrMode::Any);
    Ok(vec![("trusted xattrs", set(b"trusted.plyfs")), ("user xattrs", set(b"user.plyfs")), ("O_TMPFILE", Ok(()))])
}

/// Whether files can share blocks, as cp(1) finds out.
fn reflink(path: &Path, dir: &OwnedFd) -> Result<(), Errno> {
    let source = create::create(dir.as_fd(), b"a", 0o600)?;
    io::append(source.as_fd(), &[1; 4096])?;
    let mut cp = Command::new("cp");
    cp.arg("--reflink=always").arg(path.join("a")).arg(path.join("b")).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if cp.status().is_ok_and(|status| status.success()) { Ok(()) } else { Err(Errno::OPNOTSUPP) }
}
