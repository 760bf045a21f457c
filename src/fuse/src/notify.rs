//! What the kernel is told unasked: attributes that it has and that are true no more, and inodes that it should forget. And memory that nobody uses goes back to it.
//!
//! The union tells of a change with locks held, in the middle of a request. A notification written there could wait for the very request it is
//! sent from: the kernel takes locks and waits for inodes that the caller of a handler holds. So it is only queued, and a thread of its own, on
//! which nobody waits, writes it. The queue has no bound: whoever fills it never waits either.
//!
//! A negative offset makes `fuse_reverse_inval_inode` drop attributes and ACLs and leave the pages alone.

use std::collections::BTreeSet;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use std::{io, iter};

use fuser::{INodeNo, Notifier};
use plyfs_overlay::{Event, Ino};
use plyfs_sys::memory;

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
    pub(crate) fn start(notifier: Notifier, grown: impl FnMut() + Send + 'static) -> io::Result<Notify> {
        Notify::start_with(move |ino| notifier.inval_inode(INodeNo(ino.0), -1, 0), grown, memory::give_back)
    }

    fn start_with(
        forget_attributes: impl Fn(Ino) -> io::Result<()> + Send + 'static,
        grown: impl FnMut() + Send + 'static,
        give_back: impl Fn() + Send + 'static,
    ) -> io::Result<Notify> {
        let (queue, events) = channel();
        let thread =
            thread::Builder::new().name("plyfs-notify".to_owned()).spawn(move || serve(&events, forget_attributes, grown, give_back))?;
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

/// Memory goes back once nothing more was freed for so long: it takes time that grows with the heap.
const QUIET: Duration = Duration::from_millis(300);

fn serve(events: &Receiver<Message>, forget_attributes: impl Fn(Ino) -> io::Result<()>, mut grown: impl FnMut(), give_back: impl Fn()) {
    let mut running = true;
    let mut freed = false;
    while running {
        let next = if freed { events.recv_timeout(QUIET) } else { events.recv().map_err(|_| RecvTimeoutError::Disconnected) };
        let first = match next {
            Ok(first) => first,
            Err(RecvTimeoutError::Timeout) => {
                give_back();
                freed = false;
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => return,
        };
        // One operation tells the same thing several times over. What is queued *now* may be told once; what is queued after the kernel was
        // told may be about attributes that the kernel has asked for since.
        let mut inodes = BTreeSet::new();
        let mut more = false;
        for message in iter::once(first).chain(events.try_iter()) {
            match message {
                Message::Event(Event::Attributes(ino)) => {
                    inodes.insert(ino);
                }
                Message::Event(Event::Grown) => more = true,
                Message::Event(Event::Freed) => freed = true,
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
        if more && running {
            grown();
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
        let notify = Notify::start_with(
            move |ino| {
                seen.send(ino.0).map_err(io::Error::other)?;
                gate.recv().map_err(io::Error::other)
            },
            || {},
            || {},
        )
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
        let notify = Notify::start_with(
            move |ino| {
                seen.send(ino.0).map_err(io::Error::other)?;
                Err(io::ErrorKind::NotConnected.into())
            },
            || {},
            || {},
        )
        .unwrap();
        let tell = notify.observer();
        tell(Event::Attributes(Ino(1)));
        tell(Event::Attributes(Ino(2)));
        notify.stop();
        assert_eq!(received.iter().collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn growth_is_looked_at_and_memory_given_back_after_the_last_of_what_was_freed() {
        let (seen, received) = channel();
        let also = seen.clone();
        let grown = move || seen.send("grown").unwrap();
        let notify = Notify::start_with(|_| Ok(()), grown, move || also.send("given back").unwrap()).unwrap();
        let tell = notify.observer();
        for event in [Event::Freed, Event::Freed, Event::Grown] {
            tell(event);
        }
        assert_eq!([received.recv(), received.recv()], [Ok("grown"), Ok("given back")]);
        notify.stop();
        assert_eq!(received.iter().count(), 0);
    }
}
