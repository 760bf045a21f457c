//! Who uses a mount. Read from `/proc` alone: a question to the mount itself would wait for its server.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use plyfs_sys::mount::MountInfo;

/// A process and what it does there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) pid: u32,
    pub(crate) name: String,
    pub(crate) how: &'static str,
}

/// Says in a few words who keeps a mount busy.
pub(crate) fn describe(table: &[MountInfo], mount: &MountInfo) -> String {
    const SHOWN: usize = 5;
    let mut parts: Vec<String> = table
        .iter()
        .filter(|other| other.parent == mount.id && other.id != mount.id)
        .map(|other| format!("{} is mounted in it", OsStr::from_bytes(&other.mountpoint).display()))
        .collect();
    parts.extend(users(mount).into_iter().map(|user| format!("{} (pid {}, {})", user.name, user.pid, user.how)));
    if parts.is_empty() {
        return "busy, though no process is seen that uses it (a loop device, swap file or NFS export may)".to_owned();
    }
    let more = parts.len().saturating_sub(SHOWN);
    parts.truncate(SHOWN);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("busy: {}{more}", parts.join(", "))
}

/// The processes that use a mount, each once.
pub(crate) fn users(mount: &MountInfo) -> Vec<User> {
    let root = Path::new(OsStr::from_bytes(&mount.mountpoint));
    // Not known: then only processes of which it is not known either are looked at by path, and less is said of who is busy; nothing is decided by it.
    let namespace = fs::read_link("/proc/self/ns/mnt").ok();
    let own = std::process::id();
    let mut users: Vec<User> =
        processes().filter(|(pid, _)| *pid != own).filter_map(|(pid, dir)| use_of(pid, &dir, mount, root, namespace.as_deref())).collect();
    users.sort_by_key(|user| user.pid);
    users
}

/// The processes in whose mount namespace, other than this one, a filesystem is mounted.
pub(crate) fn elsewhere(dev: (u32, u32)) -> Vec<u32> {
    // Not known: then this namespace is looked at like any other.
    let own = fs::read_link("/proc/self/ns/mnt").ok();
    let mut seen: Vec<PathBuf> = own.into_iter().collect();
    let mut holders = Vec::new();
    for (pid, dir) in processes() {
        let Ok(namespace) = fs::read_link(dir.join("ns/mnt")) else { continue };
        if seen.contains(&namespace) {
            continue;
        }
        seen.push(namespace);
        if plyfs_sys::mount::mounts_of(pid).is_ok_and(|table| table.iter().any(|mount| mount.dev == dev)) {
            holders.push(pid);
        }
    }
    holders
}

/// Whether a server still has a mount to serve; it has where that cannot be seen.
pub(crate) fn serves(pid: u32) -> bool {
    match fs::read_dir(format!("/proc/{pid}/fd")) {
        Ok(mut fds) => fds.any(|fd| fd.is_ok_and(|fd| fs::read_link(fd.path()).is_ok_and(|to| to == Path::new("/dev/fuse")))),
        Err(error) => error.kind() != std::io::ErrorKind::NotFound,
    }
}

fn processes() -> impl Iterator<Item = (u32, PathBuf)> {
    fs::read_dir("/proc").into_iter().flatten().filter_map(|entry| {
        let entry = entry.ok()?;
        Some((entry.file_name().to_str()?.parse().ok()?, entry.path()))
    })
}

/// A process may end at any moment: what cannot be read is not there.
fn use_of(pid: u32, dir: &Path, mount: &MountInfo, root: &Path, namespace: Option<&Path>) -> Option<User> {
    let found = |how| {
        let name = fs::read_to_string(dir.join("comm")).unwrap_or_default();
        Some(User { pid, name: name.trim_end().to_owned(), how })
    };
    // These three are known by path only, and the path is this namespace's only for processes in it.
    if fs::read_link(dir.join("ns/mnt")).ok().as_deref() == namespace {
        for (link, how) in [("cwd", "its current directory"), ("root", "its root directory"), ("exe", "its program")] {
            if fs::read_link(dir.join(link)).is_ok_and(|target| target.starts_with(root)) {
                return found(how);
            }
        }
    }
    let wanted = mount.id.to_string();
    let on_mount = |info: &str| info.lines().any(|line| line.strip_prefix("mnt_id:").is_some_and(|id| id.trim() == wanted));
    for fd in fs::read_dir(dir.join("fdinfo")).into_iter().flatten().flatten() {
        if fs::read_to_string(fd.path()).is_ok_and(|info| on_mount(&info)) {
            return found("an open file");
        }
    }
    let (major, minor) = mount.dev;
    let dev = format!("{major:02x}:{minor:02x}");
    let maps = fs::read(dir.join("maps")).unwrap_or_default();
    // address permissions offset dev inode path
    let mapped = maps.split(|&byte| byte == b'\n').any(|line| line.split(|&byte| byte == b' ').nth(3) == Some(dev.as_bytes()));
    if mapped { found("a mapped file") } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_file_is_seen() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = dir.path().join("f");
        let file = fs::File::create(&path).unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").stdin(file).spawn().unwrap();
        let table = plyfs_sys::mount::mounts().unwrap();
        let mount = super::super::mounts::holding(&table, &path.canonicalize().unwrap()).unwrap();
        let found = users(mount);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found.iter().any(|user| user.pid == child.id() && !user.name.is_empty()), "{found:?}");
        assert!(found.iter().all(|user| user.pid != std::process::id()), "this process asks, it does not use");
        assert!(describe(&table, mount).starts_with("busy: "));
    }
}
