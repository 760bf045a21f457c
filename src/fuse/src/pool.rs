//! `Pool`: threads for what may take long, so that the request loops never do.
//!
//! A copy-up, an fsync or a fallocate is moved here with its owned reply. A thread is started when none is idle, up to a bound, and goes when it
//! was idle for a while; one stays. [`Pool::submit`] never waits for a job: past the bound jobs queue, first come first served. No job waits for
//! one that is still in the queue (a job holds no lock when it begins, and what it waits for is held by a job that runs), so the bound delays
//! and cannot lock up.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// How long a thread waits for work before it goes.
const IDLE: Duration = Duration::from_secs(10);

type Job = Box<dyn FnOnce() + Send>;

/// The handle of the pool. Cloning shares it.
#[derive(Clone)]
pub(crate) struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// There is a job, or the pool closes.
    work: Condvar,
    /// A thread has gone.
    gone: Condvar,
    limit: usize,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    /// Threads that wait for `work`.
    idle: usize,
    closed: bool,
}

impl Pool {
    /// Starts the one thread that always stays, so that no later failure to start one can leave a job undone.
    ///
    /// # Errors
    ///
    /// The host's, if it gives no thread.
    pub(crate) fn new(limit: usize) -> io::Result<Pool> {
        let shared = Shared { state: Mutex::default(), work: Condvar::new(), gone: Condvar::new(), limit: limit.max(1) };
        let pool = Pool { shared: Arc::new(shared) };
        pool.shared.state.lock().threads = 1;
        pool.start().inspect_err(|_| pool.shared.state.lock().threads = 0)?;
        Ok(pool)
    }

    /// Hands over a job. Returns at once.
    pub(crate) fn submit(&self, job: impl FnOnce() + Send + 'static) {
        let mut state = self.shared.state.lock();
        if state.closed {
            // The mount is gone and with it whoever asked; dropping the job drops its reply, which is an error to nobody.
            tracing::debug!("a job came after the end of the mount");
            return;
        }
        state.jobs.push_back(Box::new(job));
        // `idle` counts those that were woken and have not come back yet, too: hence the comparison with the whole queue.
        let start = state.jobs.len() > state.idle && state.threads < self.shared.limit;
        if start {
            state.threads += 1;
        }
        drop(state);
        self.shared.work.notify_one();
        if start && let Err(error) = self.start() {
            self.shared.state.lock().threads -= 1;
            tracing::warn!(%error, "no further thread for long requests; they wait for one another");
        }
    }

    /// Lets no job in any more and waits until those that are in are done and all threads have gone.
    pub(crate) fn finish(&self) {
        let mut state = self.shared.state.lock();
        state.closed = true;
        self.shared.work.notify_all();
        while state.threads > 0 {
            self.shared.gone.wait(&mut state);
        }
    }

    fn start(&self) -> io::Result<()> {
        let shared = self.shared.clone();
        thread::Builder::new().name("plyfs-long".to_owned()).spawn(move || shared.serve()).map(drop)
    }
}

impl Shared {
    fn serve(&self) {
        let mut state = self.state.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                // Jobs catch their own panics and answer; this is for what panics while answering.
                if catch_unwind(AssertUnwindSafe(job)).is_err() {
                    tracing::error!("a long request panicked while it was answered");
                }
                state = self.state.lock();
                continue;
            }
            if state.closed {
                break;
            }
            state.idle += 1;
            let timed_out = self.work.wait_for(&mut state, IDLE).timed_out();
            state.idle -= 1;
            if timed_out && state.jobs.is_empty() && state.threads > 1 {
                break;
            }
        }
        state.threads -= 1;
        drop(state);
        self.gone.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn as_many_jobs_as_the_limit_run_at_once() {
        const LIMIT: usize = 16;
        let pool = Pool::new(LIMIT).unwrap();
        let barrier = Arc::new(Barrier::new(LIMIT + 1));
        for _ in 0..LIMIT {
            let barrier = barrier.clone();
            pool.submit(move || {
                barrier.wait();
            });
        }
        // Returns only if all of them run together.
        barrier.wait();
        pool.finish();
    }

    #[test]
    fn jobs_past_the_limit_wait_and_are_done() {
        let pool = Pool::new(2).unwrap();
        let done = Arc::new(AtomicUsize::new(0));
        let most = Arc::new(AtomicUsize::new(0));
        let running = Arc::new(AtomicUsize::new(0));
        for _ in 0..50 {
            let (done, most, running) = (done.clone(), most.clone(), running.clone());
            pool.submit(move || {
                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                thread::sleep(Duration::from_millis(1));
                running.fetch_sub(1, Ordering::SeqCst);
                done.fetch_add(1, Ordering::SeqCst);
            });
        }
        pool.finish();
        assert_eq!(done.load(Ordering::SeqCst), 50);
        assert!(most.load(Ordering::SeqCst) <= 2);
    }

    #[test]
    fn submit_never_waits_for_a_job() {
        let pool = Pool::new(1).unwrap();
        let (release, blocked) = mpsc::channel::<()>();
        pool.submit(move || blocked.recv().unwrap_or_default());
        for _ in 0..100 {
            pool.submit(|| {});
        }
        release.send(()).unwrap();
        pool.finish();
    }

    #[test]
    fn a_panic_ends_no_thread_and_a_late_job_is_dropped() {
        let pool = Pool::new(1).unwrap();
        pool.submit(|| panic!("on purpose"));
        let (sent, received) = mpsc::channel();
        pool.submit(move || sent.send(7).unwrap());
        assert_eq!(received.recv(), Ok(7));
        pool.finish();
        pool.submit(|| panic!("never run"));
    }
}
