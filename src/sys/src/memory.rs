#![allow(unsafe_code)]
//! Memory of the whole process: how the allocator behaves, and what the process may use.

use std::path::{Path, PathBuf};

/// Lets the allocator keep less than is usual for what is not in use: few arenas, and large blocks of their own, which go back to the kernel when they are freed.
///
/// Only glibc's is told; the settings of others stay. To be called before there are threads.
pub fn keep_little() {
    #[cfg(target_env = "gnu")]
    {
        // Threads that free what others have allocated (FORGET) leave holes in each arena.
        const ARENAS: libc::c_int = 2;
        const BLOCK: libc::c_int = 256 << 10;
        for (what, value) in [(libc::M_ARENA_MAX, ARENAS), (libc::M_MMAP_THRESHOLD, BLOCK), (libc::M_TRIM_THRESHOLD, BLOCK)] {
            // SAFETY: it takes two numbers and touches nothing but the allocator's own settings. It cannot fail with these.
            unsafe { libc::mallopt(what, value) };
        }
    }
}

/// Gives back to the kernel what the allocator holds and nobody uses. It takes milliseconds, more with a heap of hundreds of megabytes, and others wait meanwhile.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it touches nothing but pages that the allocator knows to be free, under its own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// The memory in bytes that the control groups of this process leave to it, as they are now; `None` without a limit, or where that cannot be found out.
pub fn limit() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    groups.lines().filter_map(|line| limit_of(line, Path::new("/sys/fs/cgroup"))).min()
}

/// The limit of one line of `cgroups(7)`, "number:controllers:path", and of all groups above.
fn limit_of(line: &str, mounted: &Path) -> Option<u64> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (controllers, path) = (fields.next()?, fields.next()?);
    let (root, file) = match controllers {
        "" => (mounted.to_owned(), "memory.max"),
        _ if controllers.split(',').any(|name| name == "memory") => (mounted.join("memory"), "memory.limit_in_bytes"),
        _ => return None,
    };
    let path = PathBuf::from(path.trim_start_matches('/'));
    // Version 1 says "no limit" by a number near 2^63. A group that is not there is one outside of the namespace.
    path.ancestors()
        .filter_map(|group| std::fs::read_to_string(root.join(group).join(file)).ok()?.trim().parse().ok())
        .filter(|&limit: &u64| limit < 1 << 60)
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_limit_on_the_way_counts() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, value: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, value).unwrap();
        };
        put("a/b/memory.max", "max\n");
        put("a/memory.max", "4096\n");
        put("memory/x/y/memory.limit_in_bytes", "8192\n");
        put("memory/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(limit_of("0::/a/b", root.path()), Some(4096));
        assert_eq!(limit_of("0::/", root.path()), None);
        assert_eq!(limit_of("4:memory:/x/y", root.path()), Some(8192));
        assert_eq!(limit_of("4:memory:/z", root.path()), None);
        assert_eq!(limit_of("3:cpu,cpuacct:/x/y", root.path()), None);
        assert_eq!(limit_of("nothing", root.path()), None);
    }
}
