//! Many threads in one small tree. What each answer is nobody can say; what must hold: no panic (a debug build checks the order of locks), no deadlock, a
//! consistent tree at the end, nothing left in `work`, no lower written, and nothing known that was forgotten.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use plyfs_overlay::backend::UpperTree;
use plyfs_overlay::{Attr, Caller, HandleId, Ino, Name as Checked, NewNode, OpenFlags, RenameMode, SetAttr, Union};
use plyfs_sys::Errno;
use plyfs_sys::at::XattrMode;
use plyfs_sys::stat::Kind;

use crate::generate::Random;
use crate::system::System as _;
use crate::union::UnionSystem;

const ME: Caller = Caller { uid: 0, gid: 0, pid: 0 };
const THREADS: u64 = 6;

/// One thread's hands on the union: counts every look-up that it was given, and gives them all back.
struct Worker<'a, T: UpperTree> {
    union: &'a Union<T>,
    random: Random,
    known: Vec<Ino>,
    open: Vec<HandleId>,
    answers: usize,
    /// Which arm of `act` it is in.
    doing: usize,
}

/// What concurrent calls may answer. Anything else is a bug: EIO, EINVAL of a layer, and above all ESTALE of an inode whose look-up is held.
fn expected(errno: Errno) -> bool {
    [Errno::NOENT, Errno::EXIST, Errno::NOTDIR, Errno::ISDIR, Errno::NOTEMPTY, Errno::INVAL, Errno::PERM, Errno::NODATA].contains(&errno)
}

impl<T: UpperTree> Worker<'_, T> {
    fn name(&mut self) -> Checked {
        Checked::new(self.random.pick(&["a", "b", "c"])).unwrap()
    }

    fn learned(&mut self, attr: &Attr) -> Ino {
        self.known.push(attr.node);
        attr.node
    }

    /// A directory somewhere, by walking some names down.
    fn dir(&mut self) -> Result<Ino, plyfs_overlay::Error> {
        let mut at = Ino::ROOT;
        for _ in 0..self.random.below(3) {
            let name = self.name();
            match self.union.lookup(at, &name)? {
                Some(attr) => {
                    let ino = self.learned(&attr);
                    if attr.stat.kind != Kind::Dir {
                        break;
                    }
                    at = ino;
                }
                None => break,
            }
        }
        Ok(at)
    }

    fn child(&mut self) -> Result<Ino, plyfs_overlay::Error> {
        let (dir, name) = (self.dir()?, self.name());
        let attr = self.union.lookup(dir, &name)?;
        Ok(attr.map_or(dir, |attr| self.learned(&attr)))
    }

    fn act(&mut self) -> Result<(), plyfs_overlay::Error> {
        let union = self.union;
        self.doing = if self.random.one_in(60) { 20 } else { self.random.below(20) };
        match self.doing {
            0 | 1 => {
                let (dir, name) = (self.dir()?, self.name());
                let flags = OpenFlags { read: true, write: true, truncate: self.random.one_in(2), ..OpenFlags::default() };
                let (attr, handle) = union.create(&ME, dir, &name, 0o644, 0, self.random.one_in(2), flags)?;
                self.learned(&attr);
                self.open.push(handle);
            }
            2 | 3 => {
                let (dir, name) = (self.dir()?, self.name());
                let node = self.random.pick(&[NewNode::Dir, NewNode::Dir, NewNode::Symlink(b"x".to_vec()), NewNode::Fifo]);
                let attr = union.make(&ME, dir, &name, node, 0o755, 0)?;
                self.learned(&attr);
            }
            4 | 5 => {
                let (dir, name) = (self.dir()?, self.name());
                union.unlink(dir, &name)?;
            }
            6 | 7 => {
                let (dir, name) = (self.dir()?, self.name());
                union.rmdir(dir, &name)?;
            }
            8..=10 => {
                let (from, name, to, new) = (self.dir()?, self.name(), self.dir()?, self.name());
                let mode = self.random.pick(&[RenameMode::Replace, RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange]);
                union.rename(from, &name, to, &new, mode)?;
            }
            11 => {
                let (ino, dir, name) = (self.child()?, self.dir()?, self.name());
                let attr = union.link(ino, dir, &name)?;
                self.learned(&attr);
            }
            12 => {
                let ino = self.child()?;
                let mode = Some(self.random.pick(&[0o644, 0o755]));
                union.setattr(&ME, ino, None, &SetAttr { mode, ..SetAttr::default() })?;
            }
            13 => {
                let ino = self.child()?;
                union.setxattr(&ME, ino, b"user.a", b"v", XattrMode::Any)?;
            }
            14 => {
                let ino = self.child()?;
                let write = self.random.one_in(2);
                self.open.push(union.open(
                    &ME,
                    ino,
                    OpenFlags { read: true, write, truncate: write && self.random.one_in(3), ..OpenFlags::default() },
                )?);
            }
            15 => {
                let ino = self.dir()?;
                let handle = union.opendir(ino)?;
                let listed = union.readdir(handle, 0, &mut |_| true);
                union.release(handle);
                listed?;
            }
            16 => {
                if let Some(handle) = self.open.last() {
                    match union.write(&ME, *handle, self.random.next() % 100, b"data", false) {
                        // Opened for reading.
                        Err(error) if error.errno() == Errno::BADF => {}
                        other => drop(other?),
                    }
                }
            }
            17 => {
                if let Some(handle) = self.open.first() {
                    union.read(*handle, 0, &mut [0; 64])?;
                }
            }
            18 => self.rest(),
            // Directories move down in renames, where nobody walks: without this the tree grows for ever.
            20 => {
                let name = self.name();
                self.remove_tree(Ino::ROOT, &name, 0)?;
            }
            _ => {
                let ino = self.child()?;
                union.getattr(ino)?;
            }
        }
        Ok(())
    }

    /// rm -r, while others go on.
    fn remove_tree(&mut self, dir: Ino, name: &Checked, depth: usize) -> Result<(), plyfs_overlay::Error> {
        let Some(attr) = self.union.lookup(dir, name)? else { return Ok(()) };
        let ino = attr.node;
        let removed = self.remove_known(dir, name, &attr, depth);
        self.union.forget(ino, 1);
        removed
    }

    fn remove_known(&mut self, dir: Ino, name: &Checked, attr: &Attr, depth: usize) -> Result<(), plyfs_overlay::Error> {
        if attr.stat.kind != Kind::Dir {
            return self.union.unlink(dir, name);
        }
        assert!(depth < 1000, "a tree without end");
        let handle = self.union.opendir(attr.node)?;
        let mut names = Vec::new();
        let listed = self.union.readdir(handle, 0, &mut |entry| {
            names.extend(Checked::new(entry.name).ok());
            true
        });
        self.union.release(handle);
        listed?;
        for child in names {
            match self.remove_tree(attr.node, &child, depth + 1) {
                Err(error) if expected(error.errno()) => {}
                other => other?,
            }
        }
        self.union.rmdir(dir, name)
    }

    /// Gives everything back.
    fn rest(&mut self) {
        for handle in self.open.drain(..) {
            self.union.release(handle);
        }
        for ino in self.known.drain(..) {
            self.union.forget(ino, 1);
        }
    }

    fn work(&mut self, until: Instant) {
        while Instant::now() < until {
            if let Err(error) = self.act() {
                assert!(expected(error.errno()), "arm {}: an answer that nothing explains: {error} ({:?})", self.doing, error.errno());
            }
            self.answers += 1;
        }
        self.rest();
    }
}

/// Runs the threads for `time`, then holds what is left against itself. `check`: the layers are in order. Returns the number of calls.
pub(crate) fn run<T: UpperTree>(mut system: UnionSystem<T>, time: Duration, check: impl Fn() -> Result<(), String>) -> usize {
    static SEED: AtomicU64 = AtomicU64::new(0);
    let answers = AtomicUsize::new(0);
    let (done, finished) = mpsc::channel::<()>();
    // A deadlock ends the process, with a word: nothing else can end the threads.
    let watchdog = std::thread::spawn(move || {
        if finished.recv_timeout(time + Duration::from_secs(60)) == Err(mpsc::RecvTimeoutError::Timeout) {
            eprintln!("stress: threads hang, a deadlock");
            std::process::abort();
        }
    });
    let until = Instant::now() + time;
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            let (union, answers) = (system.union(), &answers);
            scope.spawn(move || {
                let random = Random::new(SEED.fetch_add(1, Ordering::Relaxed));
                let mut worker = Worker { union, random, known: Vec::new(), open: Vec::new(), answers: 0, doing: 0 };
                worker.work(until);
                answers.fetch_add(worker.answers, Ordering::Relaxed);
            });
        }
    });
    drop(done);
    watchdog.join().unwrap();
    let live = system.view(&crate::generate::pool()).unwrap();
    check().unwrap();
    system.apply(&crate::case::Op::Remount).unwrap();
    let mut again = system.view(&crate::generate::pool()).unwrap();
    // The slots are empty in both.
    again.slots.clone_from(&live.slots);
    crate::view::Identities::default().compare(&live, &again).unwrap();
    system.unmount().unwrap();
    answers.into_inner()
}

/// Layers with something of everything below the names that the threads use.
pub(crate) const LAYERS: &str = "
    layer
      d /a
      w /a/b
      d /b opaque
      f /b/c \"1\"
    layer
      d /a
      f /a/a \"1\"
      f /a/b \"2\"
      d /a/c
      f /a/c/a \"3\"
      d /b
      f /b/a \"4\"
      f /c \"5\"
    ops";

/// Shared with the mount function.
pub(crate) fn shared<L>(layers: L) -> Arc<Mutex<L>> {
    Arc::new(Mutex::new(layers))
}
