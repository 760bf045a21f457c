//! What the kernel is told unasked: attributes that it has and that are true no more.
//!
//! The union tells of a change with locks held, in the middle of a request. A notification written there could wait for the very request it is
//! sent from: the kernel takes locks and waits for inodes that the caller of a handler holds. So it is only queued, and a thread of its own, on
//! which nobody waits, writes it. The queue has no bound: whoever fills it never waits either.
//!
//! A negative offset makes `fuse_reverse_inval_inode` drop attributes and ACLs and leave the pages alone.

use std::collections::BTreeSet;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::{io, iter};

use fuser::{INodeNo, Notifier};
use plyfs_overlay::{Event, Ino};

enum Message {
    Event(Event),
    Stop,
}

/// The thread and the way to it.
pub(crate) struct Notify {
    queue: Sender<Message>,
    thread: JoinHandle<()>,
}

impl Notify {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// The host's, if it gives no thread.
    pub(crate) fn start(notifier: Notifier) -> io::Result<Notify> {
        Notify::start_with(move |ino| notifier.inval_inode(INodeNo(ino.0), -1, 0))
    }

    fn start_with(forget_attributes: impl Fn(Ino) -> io::Result<()> + Send + 'static) -> io::Result<Notify> {
        let (queue, events) = channel();
        let thread = thread::Builder::new().name("plyfs-notify".to_owned()).spawn(move || serve(&events, forget_attributes))?;
        Ok(Notify { queue, thread })
    }

    /// What the union calls: queues and returns.
    pub(crate) fn observer(&self) -> impl Fn(Event) + Send + Sync + 'static {
        let queue = self.queue.clone();
        move |event| {
            if queue.send(Message::Event(event)).is_err() {
                tracing::trace!(?event, "no mount to tell any more");
            }
        }
    }

    /// Ends the thread, after what is queued.
    pub(crate) fn stop(self) {
        if self.queue.send(Message::Stop).is_err() {
            tracing::debug!("the thread for notifications had ended");
        }
        if self.thread.join().is_err() {
            tracing::error!("the thread for notifications panicked");
        }
    }
}

fn serve(events: &Receiver<Message>, forget_attributes: impl Fn(Ino) -> io::Result<()>) {
    let mut running = true;
    while running && let Ok(first) = events.recv() {
        // One operation tells the same thing several times over. What is queued *now* may be told once; what is queued after the kernel was
        // told may be about attributes that the kernel has asked for since.
        let mut inodes = BTreeSet::new();
        for message in iter::once(first).chain(events.try_iter()) {
            match message {
                Message::Event(Event::Attributes(ino)) => {
                    inodes.insert(ino);
                }
                Message::Stop => running = false,
            }
        }
        for ino in inodes {
            match forget_attributes(ino) {
                Ok(()) => tracing::trace!(ino = ino.0, "the kernel's attributes are dropped"),
                // The mount is gone, or going: nobody has attributes any more.
                Err(error) => tracing::debug!(ino = ino.0, %error, "a notification was refused"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_told_once_and_what_comes_later_again() {
        let (seen, received) = channel();
        let (release, gate) = channel::<()>();
        let notify = Notify::start_with(move |ino| {
            seen.send(ino.0).map_err(io::Error::other)?;
            gate.recv().map_err(io::Error::other)
        })
        .unwrap();
        let tell = notify.observer();
        tell(Event::Attributes(Ino(8)));
        assert_eq!(received.recv(), Ok(8));
        // The kernel is being told of 8; that it changed once more meanwhile must not get lost.
        for ino in [8, 9, 8, 8, 7] {
            tell(Event::Attributes(Ino(ino)));
        }
        for _ in 0..4 {
            release.send(()).unwrap();
        }
        notify.stop();
        assert_eq!(received.iter().collect::<Vec<_>>(), [7, 8, 9]);
        tell(Event::Attributes(Ino(10)));
    }

    #[test]
    fn a_refused_notification_ends_nothing() {
        let (seen, received) = channel();
        let notify = Notify::start_with(move |ino| {
            seen.send(ino.0).map_err(io::Error::other)?;
            Err(io::ErrorKind::NotConnected.into())
        })
        .unwrap();
        let tell = notify.observer();
        tell(Event::Attributes(Ino(1)));
        tell(Event::Attributes(Ino(2)));
        notify.stop();
        assert_eq!(received.iter().collect::<Vec<_>>(), [1, 2]);
    }
}
