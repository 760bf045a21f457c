//! The cache of directory fds: bounded, so that a walk over a million directories does not need a million fds.
//!
//! One for the whole process, as its limit of open files is: two thousand layers share what one layer has. Second-chance order. A node's own slot holds the fd; the queue holds weak references, so a node that goes takes its fd along.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use plyfs_sys::limits;

use super::{DirNode, NodeInner};

/// How many fds are cached at least and at most.
const LEAST: usize = 8;
const MOST: usize = 4096;

pub(super) struct FdCache {
    capacity: AtomicUsize,
    /// Fds that are open for as long as their trees live: roots, `work`, `index`, locks.
    pinned: AtomicUsize,
    queue: Mutex<VecDeque<Weak<NodeInner>>>,
}

static SHARED: FdCache = FdCache::new();

/// Fds that a tree keeps open, counted until it goes.
pub(super) struct Pinned(usize);

impl Drop for Pinned {
    fn drop(&mut self) {
        SHARED.pinned.fetch_sub(self.0, Ordering::Relaxed);
        SHARED.fit();
    }
}

impl FdCache {
    const fn new() -> Self {
        Self { capacity: AtomicUsize::new(MOST), pinned: AtomicUsize::new(0), queue: Mutex::new(VecDeque::new()) }
    }

    /// The cache of this process.
    pub(super) fn shared() -> &'static Self {
        &SHARED
    }

    /// Counts `fds` that a tree keeps open.
    pub(super) fn pinned(fds: usize) -> Pinned {
        SHARED.pinned.fetch_add(fds, Ordering::Relaxed);
        SHARED.fit();
        Pinned(fds)
    }

    /// Whether half of what the limit allows is pinned: what is removed and held is kept in another way then.
    pub(super) fn is_full() -> bool {
        // Where the limit is not known an fd that cannot be had is an error of its own.
        limits::nofile().is_ok_and(|(soft, _)| SHARED.pinned.load(Ordering::Relaxed) as u64 >= soft / 2)
    }

    /// A quarter of what the limit leaves beside the pinned fds, at most 4,096: the rest is for open files.
    fn fit(&self) {
        // Where the limit is not known the capacity stays.
        let Ok((soft, _)) = limits::nofile() else { return };
        let free = usize::try_from(soft).unwrap_or(usize::MAX).saturating_sub(self.pinned.load(Ordering::Relaxed));
        self.capacity.store((free / 4).clamp(LEAST, MOST), Ordering::Relaxed);
    }

    /// How many fds are kept of a chain of directories that had to be opened again, counted from its end. Kept whole, a chain as long as the cache would push
    /// everything else out; and on the way up through two layers of a deep tree each would open its whole chain again for every level.
    pub(super) fn chain(&self) -> usize {
        (self.capacity.load(Ordering::Relaxed) / 16).max(1)
    }

    pub(super) fn get(&self, node: &DirNode) -> Option<Arc<OwnedFd>> {
        let fd = node.0.fd.lock().clone();
        if fd.is_some() {
            node.0.used.store(true, Ordering::Relaxed);
        }
        fd
    }

    pub(super) fn put(&self, node: &DirNode, fd: &Arc<OwnedFd>) {
        if node.0.fd.lock().replace(fd.clone()).is_some() {
            return;
        }
        // Freed outside of the queue's lock: closing an fd is a system call.
        let mut evicted = Vec::new();
        let mut queue = self.queue.lock();
        queue.push_back(Arc::downgrade(&node.0));
        let mut looks = queue.len() * 2;
        while queue.len() > self.capacity.load(Ordering::Relaxed) && looks > 0 {
            looks -= 1;
            let Some(oldest) = queue.pop_front() else { break };
            let Some(inner) = oldest.upgrade() else { continue };
            if inner.used.swap(false, Ordering::Relaxed) {
                queue.push_back(oldest);
            } else {
                let fd = inner.fd.lock().take();
                evicted.push((fd, inner));
            }
        }
        drop(queue);
        drop(evicted);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::DirTree;
    use super::*;
    use crate::backend::Tree;
    use crate::name::Name;

    #[test]
    fn many_layers_share_one_cache() {
        let dir = tempfile::tempdir().unwrap();
        let (layers, dirs) = (40, 200);
        for name in 0..dirs {
            std::fs::create_dir(dir.path().join(name.to_string())).unwrap();
        }
        let open = |path: &Path| DirTree::lower_from_fd(plyfs_sys::root::open_dir(path).unwrap()).unwrap();
        let trees: Vec<DirTree> = (0..layers).map(|_| open(dir.path())).collect();
        assert!(FdCache::shared().pinned.load(Ordering::Relaxed) >= layers);
        let mut nodes = Vec::new();
        for tree in &trees {
            for name in 0..dirs {
                let (node, _) = tree.lookup(&tree.root(), &Name::new(name.to_string()).unwrap()).unwrap().unwrap();
                tree.read_dir(&node).unwrap();
                nodes.push(node);
            }
        }
        let open = nodes.iter().filter(|node| node.0.fd.lock().is_some()).count();
        let capacity = FdCache::shared().capacity.load(Ordering::Relaxed);
        assert!(open > 0 && open <= capacity && capacity <= MOST, "{open} of {capacity}");
    }
}
