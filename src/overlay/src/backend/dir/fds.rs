//! The cache of directory fds: bounded, so that a walk over a million directories does not need a million fds.
//!
//! Second-chance order. A node's own slot holds the fd; the queue holds weak references, so a node that goes takes its fd along.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::{DirNode, NodeInner};

pub(super) struct FdCache {
    capacity: usize,
    queue: Mutex<VecDeque<Weak<NodeInner>>>,
}

impl FdCache {
    /// A cache of at most `capacity` fds.
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity: capacity.max(1), queue: Mutex::default() }
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
        while queue.len() > self.capacity && looks > 0 {
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
