//! The unix sockets of the host that a command could reach through its view.
//!
//! A socket is found by its inode. A union over FUSE gives a socket an inode of its own, on which nobody listens, so `connect` to a
//! lower socket through a union is refused; through a bind mount, read-only or not, it reaches the server. The launcher masks both:
//! a command that finds no socket gives up at once and falls back, and nobody relies on how a socket is reached.
//!
//! For the same reason, not to mask a socket is not enough to reach it through a union: who wants the host's socket has to bind it
//! ([`crate::MountSpec::BindReadOnly`]) at its place.
//!
//! Abstract sockets (names that begin with a NUL byte) belong to the network namespace, and no mount hides them.

use std::collections::BTreeSet;

use plyfs_sys::stat::Kind;

/// Sockets of services that own the machine, for those that listen in another network namespace and so are not in the kernel's table.
pub const KNOWN: [&str; 22] = [
    "/run/buildkit/buildkitd.sock",
    "/run/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/run/cups/cups.sock",
    "/run/dbus/system_bus_socket",
    "/run/docker.sock",
    "/run/docker/plugins",
    "/run/host-containerd/containerd.sock",
    "/run/libvirt/libvirt-sock",
    "/run/libvirt/virtqemud-sock",
    "/run/lvm/lvmpolld.socket",
    "/run/podman/podman.sock",
    "/run/snapd-snap.socket",
    "/run/snapd.socket",
    "/run/systemd/io.system.ManagedOOM",
    "/run/systemd/journal/dev-log",
    "/run/systemd/journal/socket",
    "/run/systemd/journal/stdout",
    "/run/systemd/notify",
    "/run/systemd/private",
    "/run/udev/control",
    "/var/snap/lxd/common/lxd/unix.socket",
];

/// The paths in the kernel's table of unix sockets (`/proc/net/unix`), whatever their kind and state: datagram sockets do not listen.
/// Paths that were bound relative to a directory are left out, since the table does not say to which.
pub fn bound_paths(table: &[u8]) -> Vec<Vec<u8>> {
    // Num: RefCount Protocol Flags Type St Inode Path
    table.split(|&byte| byte == b'\n').skip(1).filter_map(path_of).filter(|path| path.starts_with(b"/")).map(<[u8]>::to_vec).collect()
}

/// What follows the seventh field and one space; the path may itself have spaces.
fn path_of(line: &[u8]) -> Option<&[u8]> {
    let mut rest = line;
    for _ in 0..7 {
        let start = rest.iter().position(|&byte| byte != b' ')?;
        rest = rest.get(start..)?;
        let end = rest.iter().position(|&byte| byte == b' ')?;
        rest = rest.get(end..)?;
    }
    rest.get(1..)
}

/// The sockets to mask: those of `table` and of [`KNOWN`] that exist in the host's view, each once, in order. `kind_at` says what a path
/// leads to, following links. A path of the table may be another mount namespace's; if it leads to a socket here it is masked all the same.
pub fn to_mask(table: &[u8], kind_at: &dyn Fn(&[u8]) -> Option<Kind>) -> Vec<Vec<u8>> {
    let known = KNOWN.iter().map(|path| path.as_bytes().to_vec());
    let candidates: BTreeSet<Vec<u8>> = bound_paths(table).into_iter().chain(known).collect();
    candidates.into_iter().filter(|path| kind_at(path) == Some(Kind::Socket)).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const TABLE: &[u8] = b"Num       RefCount Protocol Flags    Type St Inode Path\n\
        ffff8880: 00000003 00000000 00000000 0001 03 21043\n\
        ffff8881: 00000002 00000000 00010000 0001 01 21044 /run/docker.sock\n\
        ffff8882: 00000002 00000000 00000000 0002 01    45 /run/systemd/notify\n\
        ffff8883: 00000002 00000000 00010000 0001 01 21046 @/tmp/abstract\n\
        ffff8884: 00000002 00000000 00010000 0001 01 21047 /tmp/with  space \xff\n\
        ffff8885: 00000003 00000000 00000000 0001 03 21048 /run/docker.sock\n\
        ffff8886: 00000002 00000000 00010000 0001 01 21049 relative/sock\n\
        ffff8887: 00000002 00000000 00010000 0001 01 21050 /other/namespace\n\
        garbage\n";

    #[test]
    fn paths_are_read_whole() {
        let paths = bound_paths(TABLE);
        let expected: [&[u8]; 5] =
            [b"/run/docker.sock", b"/run/systemd/notify", b"/tmp/with  space \xff", b"/run/docker.sock", b"/other/namespace"];
        assert_eq!(paths, expected);
        assert!(bound_paths(b"").is_empty());
    }

    #[test]
    fn existing_sockets_are_masked_once() {
        let kind_at = |path: &[u8]| match path {
            b"/run/docker.sock" | b"/run/systemd/notify" | b"/run/dbus/system_bus_socket" => Some(Kind::Socket),
            b"/run/podman/podman.sock" => Some(Kind::File),
            _ => None,
        };
        let expected: [&[u8]; 3] = [b"/run/dbus/system_bus_socket", b"/run/docker.sock", b"/run/systemd/notify"];
        assert_eq!(to_mask(TABLE, &kind_at), expected);
    }

    #[test]
    fn own_listener_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let table = std::fs::read("/proc/net/unix").unwrap();
        let path = std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str());
        assert!(bound_paths(&table).iter().any(|bound| bound == path));
    }
}
