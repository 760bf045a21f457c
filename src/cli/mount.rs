//! `plyfs mount`: mounts a union, and returns when it is live.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use plyfs_overlay::check_overlap;
use plyfs_overlay::params::Params;
use plyfs_sys::daemon::{Fork, Report, detach};
use plyfs_sys::process::caps;
use plyfs_sys::{Errno, mount, root, statfs};

use super::daemon::{self, Plan};
use super::fail::failure;
use super::{marks, mounts, rootless, trace};

const OPTIONS: &str = "\
Options, separated by commas or given by several -o:
  lowerdir=A:B      directories to show, A over B; lowerdir+=A adds one below the others
  datadir+=D        directory that is not shown, with the data of files of which A or B hold the
                    metadata only; in the short form lowerdir=A:B::D
  upperdir=U        directory that takes the changes; without it the union is read-only
  workdir=W         empty directory on the filesystem of U; goes with upperdir
  metacopy=on       changed owners, modes, times and attributes copy no data to U
  lower=live        others change the lower directories while they are mounted
  userxattr         marks are in user.* attributes, as of kernel overlayfs and fuse-overlayfs
  whiteout=aufs     whiteouts of the lower directories, and of a new upper without userxattr, are
                    files, by the names of AUFS; without it those of layers in the store of
                    podman are, overlay: of none
  uidmapping=D:S:N  N owners from D on show as those from S on, gidmapping=D:S:N groups
  squash_to_uid=N   all owners show as N, squash_to_gid=N groups, squash_to_root both as 0
  xattr_permissions=2  owners, modes and kinds of files are those of user.containers.override_stat,
                    where those of U are kept, too; implies nosuid and nodev
  lenient           as --lenient
  volatile          do not wait for the disk; after a crash of the machine U is not to be trusted,
                    and is refused
  fsname=NAME       what the mount table shows as the source [default: plyfs]
  ro nodev nosuid noexec noatime nodiratime strictatime, and their opposites
  @FILE             the options in a file, one a line or with commas; # begins a comment
A backslash precedes a colon, comma or backslash that is part of a path. Other options of kernel
overlayfs, fuse-overlayfs and mount(8) are obeyed, or refused by name; docs/OPTIONS.md lists all.
PLYFS_LOG=debug shows on stderr what happens, until the mount is live or, with -f, until it ends.";

/// The longest source of a mount, in bytes.
const LONGEST_NAME: usize = 255;

/// Mount a union of directories.
#[derive(Debug, clap::Args)]
#[command(after_help = OPTIONS)]
pub(crate) struct Args {
    /// Stay in front until it is unmounted
    #[arg(short, long)]
    foreground: bool,
    /// Show what happens on stderr, and stay in front
    #[arg(short, long)]
    debug: bool,
    /// Show what bears a mark that cannot be honoured, without the mark and read-only, instead of refusing
    #[arg(long)]
    lenient: bool,
    /// Options, as of mount(8) for overlay and of fuse-overlayfs
    #[arg(short, value_name = "OPTIONS")]
    pub(crate) options: Vec<OsString>,
    /// Check everything and mount nothing: -f of mount(8)
    #[arg(long, hide = true)]
    fake: bool,
    /// Of mount(8): no mtab
    #[arg(short = 'n', hide = true)]
    no_mtab: bool,
    /// Of mount(8): say more
    #[arg(short = 'v', hide = true)]
    verbose: bool,
    /// Of mount(8): pass over unknown options, which plyfs does not
    #[arg(short = 's', hide = true)]
    sloppy: bool,
    /// Of mount(8): the type
    #[arg(short = 't', value_name = "TYPE", hide = true)]
    fstype: Option<OsString>,
    /// Where to mount it, after a source that only the mount table shows
    #[arg(value_name = "[SOURCE] MOUNTPOINT", num_args = 1..=2, required = true)]
    pub(crate) places: Vec<PathBuf>,
}

/// Checks, forks, mounts.
pub(crate) fn main(args: Args) -> anyhow::Result<ExitCode> {
    let mut params = Params::parse_with(&args.options, options_in)?;
    params.lenient |= args.lenient;
    let (source, place) = match args.places.as_slice() {
        [place] => (None, place),
        [source, place] => (Some(source), place),
        _ => return Err(failure("mount", "one mountpoint is needed", "see 'plyfs mount --help'")),
    };
    if params.fsname.is_none() {
        params.fsname = source.map(|source| source.clone().into_os_string());
    }
    // The kernel's fsconfig(2) takes no longer strings.
    if let Some(name) = params.fsname.as_ref().filter(|name| name.len() > LONGEST_NAME) {
        let why = format!("it has {} bytes, and the kernel takes {LONGEST_NAME}", name.len());
        return Err(failure("option fsname", why, "give a shorter name"));
    }
    let stay = args.foreground || args.debug || params.debug;
    trace::start(args.debug || params.debug);
    let asks = |list: &OsString| list.as_bytes().split(|&byte| byte == b',').any(|option| option == b"allow_other");
    if rootless::is_ordinary_user() && args.options.iter().any(asks) {
        let why = "what others would make in an ordinary user's mount could not be theirs";
        return Err(failure("option allow_other", why, "leave it out, or run it as root"));
    }
    let plan = check(params, place)?;
    if args.fake {
        return Ok(ExitCode::SUCCESS);
    }
    if stay {
        daemon::start(&plan)?.run()?;
        return Ok(ExitCode::SUCCESS);
    }
    let at = || format!("mount {}", plan.mountpoint.display());
    match detach().map_err(|errno| failure(at(), format_args!("cannot start a server: {errno}"), "mount it in front, with -f"))? {
        Fork::Child(notifier) => match daemon::start(&plan) {
            Ok(live) => {
                // Whoever waited may be gone; the mount is there.
                if let Err(errno) = notifier.ready() {
                    tracing::warn!(%errno, "nobody waited for the mount");
                }
                live.run()?;
                Ok(ExitCode::SUCCESS)
            }
            Err(error) => match notifier.failed(&format!("{error:#}")) {
                Ok(()) => Ok(ExitCode::FAILURE),
                Err(_) => Err(error),
            },
        },
        Fork::Parent(reader) => match reader.wait() {
            Ok(Report::Ready) => answers(&plan.mountpoint),
            Ok(Report::Failed(text)) => Err(anyhow::Error::msg(text)),
            Ok(Report::Died(code)) if code < 0 => Err(died(&at(), format_args!("signal {}", -code))),
            Ok(Report::Died(code)) => Err(died(&at(), format_args!("exit code {code}"))),
            Err(errno) => Err(died(&at(), errno)),
        },
    }
}

/// The text of a file of options.
fn options_in(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    // Two thousand paths of the longest kind.
    const MOST: u64 = 8 << 20;
    let mut text = Vec::new();
    std::fs::File::open(path)?.take(MOST + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MOST { Err(std::io::Error::other("it has more than 8 MiB")) } else { Ok(text) }
}

fn died(at: &str, how: impl std::fmt::Display) -> anyhow::Error {
    failure(at, format_args!("the server died before the mount was live ({how})"), "mount it with -d to see why")
}

/// The mount is live when it answers.
fn answers(mountpoint: &Path) -> anyhow::Result<ExitCode> {
    match root::open_dir(mountpoint).and_then(|dir| statfs::statfs(dir.as_fd())) {
        Ok(_) => Ok(ExitCode::SUCCESS),
        Err(errno) => Err(failure(
            format_args!("mount {}", mountpoint.display()),
            format_args!("it does not answer: {errno}"),
            "mount it with -d to see why",
        )),
    }
}

/// Everything that can be known to fail before something is changed.
fn check(mut params: Params, place: &Path) -> anyhow::Result<Plan> {
    for (what, path) in params.paths_mut() {
        *path = std::path::absolute(&*path)
            .map_err(|error| failure(format_args!("{what} {}", path.display()), error, "give an absolute path"))?;
    }
    let dialect = marks::settle(&mut params)?;
    let mountpoint = check_mountpoint(place)?;
    let layers: Vec<(&'static str, &Path)> = params.paths().map(|(what, path)| (what, path.as_path())).collect();
    check_overlap(&layers)?;
    check_outside(&layers, &mountpoint)?;
    if rootless::is_ordinary_user() {
        check_fusermount(&params, &mountpoint)?;
    } else {
        check_fuse(&format!("mount {}", mountpoint.display()))?;
    }
    Ok(Plan { params, mountpoint, dialect })
}

/// Who may not mount has fusermount3(1) do it, which takes few options.
fn check_fusermount(params: &Params, mountpoint: &Path) -> anyhow::Result<()> {
    let at = format!("mount {}", mountpoint.display());
    let path = std::env::var_os("PATH").unwrap_or_default();
    if !std::env::split_paths(&path).any(|dir| dir.join(mount::FUSERMOUNT).is_file()) {
        let remedy = "install it ('apt-get install fuse3'), run it as root, or in a user namespace ('unshare -Urm')";
        return Err(failure(at, "no permission to mount, and there is no fusermount3", remedy));
    }
    if params.propagation.is_some() || !params.contexts.is_empty() {
        let why = "an ordinary user's mount takes neither a propagation nor a security context";
        return Err(failure(at, why, "leave them out, or run it as root"));
    }
    Ok(())
}

fn check_mountpoint(place: &Path) -> anyhow::Result<PathBuf> {
    let at = || format!("mountpoint {}", place.display());
    let path = mounts::canonical(place).map_err(|error| {
        let remedy =
            if error.kind() == std::io::ErrorKind::NotFound { "create it, or correct the path" } else { "see that it can be reached" };
        failure(at(), error, remedy)
    })?;
    if mounts::at(&mounts::table()?, &path).is_some_and(mounts::is_plyfs) {
        let remedy = format!("unmount it with 'plyfs umount {}', or choose another directory", path.display());
        return Err(failure(at(), "in use: a union of plyfs is mounted there", remedy));
    }
    if !path.is_dir() {
        return Err(failure(at(), "not a directory", "mount on a directory"));
    }
    Ok(path)
}

/// A mount inside of its own upper or work directory would show itself, and ask itself what it shows.
fn check_outside(layers: &[(&'static str, &Path)], mountpoint: &Path) -> anyhow::Result<()> {
    for (what, path) in layers.iter().filter(|(what, _)| matches!(*what, "upperdir" | "workdir")) {
        let path =
            path.canonicalize().map_err(|error| failure(format_args!("{what} {}", path.display()), error, "see that it can be reached"))?;
        if mountpoint != path && mountpoint.starts_with(&path) {
            let why = format!("it is inside {what} {}", path.display());
            return Err(failure(format_args!("mountpoint {}", mountpoint.display()), why, "mount it outside"));
        }
    }
    Ok(())
}

/// Sees that this process may mount FUSE filesystems, as far as that can be seen.
pub(crate) fn check_fuse(at: &str) -> anyhow::Result<()> {
    match mount::open_dev_fuse() {
        Ok(_) => {}
        Err(Errno::NOENT) => {
            let remedy = "load the module with 'modprobe fuse'; into a container pass it with '--device /dev/fuse'";
            return Err(failure("/dev/fuse", "there is none", remedy));
        }
        Err(Errno::NODEV) => {
            let remedy = "remove it and make it with 'mknod /dev/fuse c 10 229', after 'modprobe fuse'";
            return Err(failure("/dev/fuse", "it is not the FUSE device, or the kernel has no FUSE", remedy));
        }
        Err(errno) => {
            return Err(failure(
                "/dev/fuse",
                errno,
                "run it as root, or let users open it (udev rule, 'chmod 666 /dev/fuse'); of a container the device must be allowed, as by '--device /dev/fuse'",
            ));
        }
    }
    let may_mount = caps::effective().is_ok_and(|set| set & caps::Set::SYS_ADMIN.bits() != 0);
    if may_mount {
        return Ok(());
    }
    Err(failure(at, "no permission to mount", "run it as root with CAP_SYS_ADMIN, outside of a container that forbids mounts"))
}
