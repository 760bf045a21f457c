//! The process that serves a mount: layers opened, union made, served, attached, recorded, and at the end unmounted.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;

use plyfs_format::Dialect;
use plyfs_fuse::{ServeOptions, Served};
use plyfs_overlay::params::{Atime, Params, Timeouts};
use plyfs_overlay::{Behaviour, DirTree, IdMap, LayerStack, OwnerMap, Union};
use plyfs_sys::at::{self, At};
use plyfs_sys::mount::{self, FuseOptions, MountAttrFlags};
use plyfs_sys::signal::SignalWaiter;
use plyfs_sys::{Errno, limits, process, stat};

use super::fail::failure;
use super::mounts::SUBTYPE;
use super::record::{self, Record, Written};
use super::text::Text;
use super::{marks, mounts, rootless, upper};

/// A mount that was checked and can be made.
#[derive(Debug)]
pub(crate) struct Plan {
    /// With absolute paths.
    pub(crate) params: Params,
    /// Absolute, without links.
    pub(crate) mountpoint: PathBuf,
    /// The dialect of the upper that the options ask for.
    pub(crate) dialect: Option<Dialect>,
}

/// A mount that is there.
pub(crate) struct Live {
    union: Arc<Union<DirTree>>,
    served: Served,
    _record: Option<Written>,
}

/// Where the mount went.
struct Attached {
    id: u64,
    dev: (u32, u32),
}

/// Requests at once where a layer may be slow to answer.
const WAITING: usize = 64;

/// Makes this process a daemon, as far as that is not done by detaching, and mounts.
pub(crate) fn start(plan: &Plan) -> anyhow::Result<Live> {
    let here = |what: &str, errno: Errno| {
        failure(format_args!("mount {}", plan.mountpoint.display()), format_args!("cannot {what}: {errno}"), "mount /proc")
    };
    process::close_inherited_except(&[]).map_err(|errno| here("close inherited descriptors", errno))?;
    limits::raise_nofile().map_err(|errno| here("raise the limit of open files", errno))?;
    plyfs_sys::memory::keep_little();
    // The kernel has applied the umask of whoever creates a file.
    limits::umask(0);
    if let Err(error) = std::env::set_current_dir("/") {
        tracing::warn!(%error, "the current directory stays");
    }
    // Before the first thread, which would be ended by what it does not block.
    let signals = SignalWaiter::block().map_err(|errno| here("wait for signals", errno))?;

    let params = &plan.params;
    let (union, roots) = union(plan)?;
    let mut options = serve_options(params);
    if roots.remote {
        // So many may wait for an answer that never comes before others have to.
        options.threads = options.threads.max(WAITING);
    }
    if rootless::is_ordinary_user() {
        return start_by_fusermount(plan, union, &roots, options, signals);
    }
    let served = serve(&union, &fuse_options(params), options, &format!("mount {}", plan.mountpoint.display()))?;

    let mut attached = None;
    let mut record = None;
    served
        .attach_with(|mount| {
            let place = attach(mount, plan, |dev| {
                record = write_record(plan, dev, &roots, union.upper_tree().map(|(_, dialect)| dialect));
            })?;
            attached = Some(place);
            Ok(())
        })?
        .map_err(|errno: Errno| failure(format_args!("mountpoint {}", plan.mountpoint.display()), errno, "see that it is still there"))?;
    if let Some(attached) = attached {
        unmount_at_signal(signals, attached, plan.mountpoint.clone())?;
    }
    Ok(Live { union, served, _record: record })
}

/// The same for a user who may not mount. Others than he do not see into the mount.
fn start_by_fusermount(
    plan: &Plan,
    union: Arc<Union<DirTree>>,
    roots: &Roots,
    options: ServeOptions,
    signals: SignalWaiter,
) -> anyhow::Result<Live> {
    let at = || format!("mount {}", plan.mountpoint.display());
    let remedy = "see that you own the mountpoint and may write to it, or run it as root";
    union.keep_reserve();
    let device = mount::fusermount(&fusermount_options(&plan.params), &plan.mountpoint).map_err(|error| failure(at(), error, remedy))?;
    let served = plyfs_fuse::serve_mounted(union.clone(), device, options).map_err(|error| failure(at(), error, "see the kernel's log"))?;
    let seen = || {
        let root = plyfs_sys::root::open_dir(&plan.mountpoint)?;
        let dev = at::stat(At::Fd(root.as_fd()))?.dev;
        Ok(Attached { id: mount::mount_id_of(root.as_fd())?, dev: (stat::major(dev), stat::minor(dev)) })
    };
    let attached =
        seen().map_err(|errno: Errno| failure(at(), format_args!("it does not answer: {errno}"), "mount it with -d to see why"))?;
    let record = write_record(plan, attached.dev, roots, union.upper_tree().map(|(_, dialect)| dialect));
    unmount_at_signal(signals, attached, plan.mountpoint.clone())?;
    Ok(Live { union, served, _record: record })
}

/// What fusermount3 is told; it adds nosuid and nodev itself.
fn fusermount_options(params: &Params) -> String {
    let source = params.fsname.as_ref().map_or_else(|| SUBTYPE.to_owned(), |name| name.to_string_lossy().into_owned());
    // As libfuse does: a comma would begin another option.
    let source = source.replace('\\', "\\\\").replace(',', "\\,");
    let flags = [(params.is_read_only(), "ro"), (!params.exec, "noexec"), (params.atime == Atime::Never, "noatime")];
    let mut options = format!("default_permissions,nosuid,nodev,fsname={source},subtype={SUBTYPE}");
    for (_, flag) in flags.into_iter().filter(|(set, _)| *set) {
        options.push(',');
        options.push_str(flag);
    }
    options
}

impl Live {
    /// Waits until nobody uses it any more.
    pub(crate) fn run(self) -> anyhow::Result<()> {
        self.served.join()?;
        settle(&self.union);
        Ok(())
    }
}

/// After a clean end: the upper holds all names of hard links, so that it can be a lower. What fails leaves the index, by which the next mount finds them.
pub(crate) fn settle(union: &Union<DirTree>) {
    if union.is_read_only() {
        return;
    }
    union.drop_reserve();
    match union.settle_hard_links() {
        Ok(settled) => tracing::debug!(linked = settled.linked, removed = settled.removed, "hard links are settled"),
        Err(error) => tracing::warn!(%error, "hard links stay in the index: the upper is complete with its workdir only"),
    }
}

/// Serves a union, with the error of a user who may not.
pub(crate) fn serve(union: &Arc<Union<DirTree>>, options: &FuseOptions, serve: ServeOptions, at: &str) -> anyhow::Result<Served> {
    union.keep_reserve();
    plyfs_fuse::serve(union.clone(), options, serve).map_err(|error| match error {
        plyfs_fuse::Error::Mount(error) => mount_refused(at, &error),
        other => failure(at, other, "see the kernel's log"),
    })
}

fn mount_refused(at: &str, error: &mount::MountError) -> anyhow::Error {
    let remedy = match error.errno {
        Errno::PERM | Errno::ACCESS => "run it as root with CAP_SYS_ADMIN, outside of a container that forbids mounts",
        Errno::NOENT | Errno::NODEV => "load the kernel module with 'modprobe fuse', and see that /dev/fuse is there",
        Errno::NOSYS => "it needs Linux 5.12 or newer",
        Errno::NOSPC => "raise /proc/sys/fs/mount-max",
        _ => "'plyfs info' shows what this machine allows",
    };
    failure(at, error, remedy)
}

/// The descriptors of the layers' roots, in the order of [`Params::paths`]; they are open as long as the union. And that of the index of hard links.
struct Roots {
    fds: Vec<i32>,
    index: Option<i32>,
    /// Of each lower that merges.
    dialects: Vec<Dialect>,
    /// A layer's filesystem is another process's or machine's.
    remote: bool,
}

fn union(plan: &Plan) -> anyhow::Result<(Arc<Union<DirTree>>, Roots)> {
    let params = &plan.params;
    upper::wait_for_lowers(&params.lowers)?;
    let merged = marks::lowers(params);
    let lowers = marks::open(&merged, &params.data, params)?;
    let upper = match &params.writable {
        Some(place) => Some(marks::upper(upper::open(place, atime_flags(params))?, &place.upper, plan.dialect, params.override_stat)?),
        None => None,
    };
    if let Some(upper) = upper.as_ref().filter(|upper| params.kernel_compat && upper.dialect == Dialect::Aufs) {
        let why = "its filesystem takes only marks that kernel overlayfs does not read";
        return Err(failure(&upper.label, why, "leave out kernel_compat, or put it on ext4, xfs, btrfs or tmpfs"));
    }
    if let Some(upper) = upper.as_ref().filter(|_| params.volatile) {
        let marked = upper.tree.mark_volatile();
        marked.map_err(|errno| {
            failure("workdir", format_args!("the mark of a volatile mount cannot be written: {errno}"), "leave out volatile")
        })?;
    }
    let mut remote = false;
    for layer in lowers.iter().chain(&upper) {
        remote |= layer.tree.is_remote().map_err(|errno| failure(&layer.label, errno, "see that its filesystem answers"))?;
    }
    let roots = Roots {
        remote,
        fds: lowers.iter().chain(&upper).filter_map(|layer| layer.tree.root_number()).collect(),
        index: upper.as_ref().and_then(|layer| layer.tree.index_number()),
        dialects: merged.iter().map(|lower| lower.dialect).collect(),
    };
    let mut behaviour = Behaviour {
        metacopy: params.metacopy,
        lenient: params.lenient,
        redirects: params.redirects,
        static_nlink: params.static_nlink,
        no_acls: params.no_acls,
        plain_numbers: params.plain_numbers,
        kernel_compat: params.kernel_compat,
        ..behaviour(params.volatile || params.no_sync, params.live_lowers)
    };
    if params.override_stat || rootless::is_ordinary_user() {
        // No system call makes an object complete whose owner is in an attribute, or whose mode would be too narrow for this process.
        behaviour.own_ids = None;
    }
    let union = make_union_with(LayerStack { upper, lowers }, behaviour, owners(params))?;
    marks::check(&union, params)?;
    Ok((union, roots))
}

/// How a union behaves that is served by this process, whose umask is 0.
pub(crate) fn behaviour(volatile: bool, live_lowers: bool) -> Behaviour {
    Behaviour { volatile, live_lowers, own_ids: own_ids(), ..Behaviour::default() }
}

/// Effective user and group: the owner of this process's directory in `/proc`.
fn own_ids() -> Option<(u32, u32)> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").ok().map(|meta| (meta.uid(), meta.gid()))
}

/// How owners show, with the ids that the kernel has for those who have none.
fn owners(params: &Params) -> OwnerMap {
    if params.owners.is_identity() && plyfs_sys::userns::is_inside() {
        return rootless::as_mounter_shows();
    }
    let overflow = |path: &str, map: IdMap| match std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()) {
        Some(id) => map.with_overflow(id),
        None => map,
    };
    let OwnerMap { uids, gids } = params.owners.clone();
    OwnerMap { uids: overflow("/proc/sys/kernel/overflowuid", uids), gids: overflow("/proc/sys/kernel/overflowgid", gids) }
}

/// Merges layers whose owners show as they are.
pub(crate) fn make_union(stack: LayerStack<DirTree>, behaviour: Behaviour) -> anyhow::Result<Arc<Union<DirTree>>> {
    make_union_with(stack, behaviour, OwnerMap::default())
}

/// Merges layers.
pub(crate) fn make_union_with(stack: LayerStack<DirTree>, behaviour: Behaviour, owners: OwnerMap) -> anyhow::Result<Arc<Union<DirTree>>> {
    let union = Union::new(stack, behaviour).map_err(|error| failure("layers", error, "see that their roots can be read"))?;
    let union = union.with_owners(owners);
    union.clean_index().map_err(|error| failure("workdir", error, "see that its 'index' can be read and written"))?;
    Ok(Arc::new(union))
}

/// When a read changes access times. The kernel leaves those of a FUSE filesystem to its server, which reads through the upper's mount.
fn atime_flags(params: &Params) -> MountAttrFlags {
    let mut attrs = match params.atime {
        Atime::Relative => MountAttrFlags::empty(),
        Atime::Never => MountAttrFlags::MOUNT_ATTR_NOATIME,
        Atime::Strict => MountAttrFlags::MOUNT_ATTR_STRICTATIME,
    };
    attrs.set(MountAttrFlags::MOUNT_ATTR_NODIRATIME, params.no_dir_atime);
    attrs
}

/// How long the kernel believes what it is told.
fn serve_options(params: &Params) -> ServeOptions {
    let usual = if params.live_lowers { ServeOptions::live() } else { ServeOptions::default() };
    let Timeouts { entry, negative, attr } = params.timeouts;
    ServeOptions {
        entry_timeout: entry.unwrap_or(usual.entry_timeout),
        negative_timeout: negative.unwrap_or(usual.negative_timeout),
        attr_timeout: attr.unwrap_or(usual.attr_timeout),
        acls: !params.no_acls,
        ..usual
    }
}

fn flags(params: &Params) -> MountAttrFlags {
    let mut attrs = atime_flags(params);
    attrs.set(MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW, params.no_sym_follow);
    attrs
}

fn fuse_options(params: &Params) -> FuseOptions {
    use std::os::unix::ffi::OsStrExt;
    FuseOptions {
        source: params.fsname.as_ref().map_or_else(|| SUBTYPE.into(), |name| name.as_bytes().to_vec()),
        dev: params.dev,
        suid: params.suid,
        exec: params.exec,
        read_only: params.is_read_only(),
        attrs: flags(params),
        security: params.contexts.iter().map(|(name, value)| (*name, value.as_bytes().to_vec())).collect(),
        ..shared_fuse_options()
    }
}

/// What all mounts have: for all users, as the permissions of files say.
pub(crate) fn shared_fuse_options() -> FuseOptions {
    FuseOptions {
        source: SUBTYPE.into(),
        subtype: Some(SUBTYPE.to_owned()),
        allow_other: true,
        default_permissions: true,
        // Ids of the user namespace that mounts, which may have no 0.
        uid: process::effective_uid(),
        gid: process::effective_gid(),
        ..FuseOptions::default()
    }
}

/// Attaches a mount that is served already; `record` is called before anybody sees it.
fn attach(mount: BorrowedFd<'_>, plan: &Plan, record: impl FnOnce((u32, u32))) -> Result<Attached, Errno> {
    let id = mount::mount_id_of(mount)?;
    // The union answers: the loops run.
    let dev = at::stat(At::Fd(mount))?.dev;
    let dev = (stat::major(dev), stat::minor(dev));
    record(dev);
    mount::move_mount_path(mount, &plan.mountpoint)?;
    if let Some(propagation) = plan.params.propagation {
        mount::mount_setattr(mount, &mount::SetAttr { propagation: Some(propagation), ..mount::SetAttr::default() }, false)?;
    }
    Ok(Attached { id, dev })
}

/// A mount works without its record, `plyfs diff` of it does not.
fn write_record(plan: &Plan, dev: (u32, u32), roots: &Roots, dialect: Option<Dialect>) -> Option<Written> {
    let options = Text::from(plan.params.to_os_string());
    let written = Record::own(dev, &plan.mountpoint, options).and_then(|mut record| {
        let mut fds = roots.fds.iter().copied();
        let mut dialects = roots.dialects.iter().map(|dialect| dialect.name().to_owned());
        for (what, path) in plan.params.paths() {
            let path = Text::from(path.as_path());
            match (what, fds.next()) {
                ("lowerdir", Some(fd)) => record.lowers.push(record::Layer { path, fd, dialect: dialects.next() }),
                ("datadir", Some(fd)) => record.data.push(record::Layer { path, fd, dialect: None }),
                ("upperdir", Some(fd)) => record.upper = Some(record::Layer { path, fd, dialect: None }),
                _ => record.work = Some(path),
            }
        }
        record.index = roots.index;
        record.dialect = dialect.map(|dialect| dialect.name().to_owned());
        record.write()
    });
    match written {
        Ok(written) => Some(written),
        Err(error) => {
            super::fail::note(format_args!("mount {}: no record for 'plyfs diff' in /run/plyfs: {error}", plan.mountpoint.display()));
            None
        }
    }
}

/// Starts the thread that unmounts at SIGTERM, SIGINT and SIGHUP. A mount that is in use leaves the tree and is served until its last user is
/// gone.
fn unmount_at_signal(signals: SignalWaiter, attached: Attached, mountpoint: PathBuf) -> anyhow::Result<()> {
    let thread = std::thread::Builder::new().name("plyfs-signals".to_owned());
    let wait = move || {
        loop {
            match signals.wait() {
                Ok(signal) => tracing::info!(?signal, "asked to end"),
                Err(errno) => {
                    tracing::error!(%errno, "signals cannot be read any more");
                    return;
                }
            }
            if let Err(errno) = unmount(&attached) {
                tracing::error!(%errno, mountpoint = %mountpoint.display(), "cannot unmount");
            }
        }
    };
    thread.spawn(wait).map(drop).map_err(|error| failure("a thread for signals", error, "raise the limit of processes (ulimit -u)"))
}

fn unmount(attached: &Attached) -> Result<(), Errno> {
    let table = mount::mounts()?;
    let Some(mount) = table.iter().find(|mount| mount.id == attached.id && mount.dev == attached.dev) else {
        tracing::info!("somebody has unmounted it; it is served for those who still use it");
        return Ok(());
    };
    if table.iter().any(|other| other.parent == mount.id && other.mountpoint == mount.mountpoint) {
        // By path only that one could be unmounted, which is not ours.
        tracing::warn!("another mount lies over it; unmount that one first");
        return Ok(());
    }
    if rootless::is_ordinary_user() {
        let path = mounts::mountpoint(mount);
        // In use: as below.
        return mount::fuserumount(path, false).or_else(|_| mount::fuserumount(path, true)).map_err(|error| {
            tracing::error!(%error, "fusermount3");
            Errno::PERM
        });
    }
    match mount::umount(mount.mountpoint.as_slice(), false) {
        Err(Errno::BUSY) => {
            tracing::info!("in use; it leaves the tree and is served until its last user is gone");
            mount::umount(mount.mountpoint.as_slice(), true)
        }
        result => result,
    }
}
