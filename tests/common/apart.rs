//! Tests that no other test's mounts come into, and whose own mounts no other test sees.

use plyfs_sys::mount;
use plyfs_sys::ns::{self, Namespaces};

/// Runs a test in a mount namespace of its own, which goes with its thread: there are no mounts of other tests in it, and whoever else looks at the machine's mounts meanwhile, a try above all, keeps none of
/// this one's.
pub(crate) fn apart(test: impl FnOnce() + Send) {
    let body = || {
        ns::unshare(Namespaces { mount: true, ..Namespaces::default() }).unwrap();
        mount::make_private_recursive("/").unwrap();
        let temporary = std::env::temp_dir().canonicalize().unwrap();
        // Of this thread: that of the process is another one.
        let table = mount::parse_mountinfo(&std::fs::read("/proc/thread-self/mountinfo").unwrap()).unwrap();
        for other in
            table.iter().rev().filter(|mount| mount.mountpoint.starts_with(&[temporary.as_os_str().as_encoded_bytes(), b"/"].concat()))
        {
            if let Err(errno) = mount::umount(other.mountpoint.as_slice(), true) {
                println!("{}: {errno}", other.mountpoint.escape_ascii());
            }
        }
        test();
    };
    if let Err(panic) = std::thread::scope(|scope| scope.spawn(body).join()) {
        std::panic::resume_unwind(panic);
    }
}
