//! `serve`: a mount, the threads that answer it, and its end.
//!
//! The mount is made detached, INIT is answered, the request loops run, and only then somebody attaches it: nobody ever sees a mount that does
//! not answer. It ends when its last user has gone (unmounted, or a detached mount dropped) or the connection is aborted: the kernel then fails
//! every read of the device with ENODEV and the loops return. After them, in this order: the pool finishes what it has begun, the notifications
//! stop, the union lets go of everything.
//!
//! The daemon must not look below its own mount: every such look is a request to itself. Nothing here does; [`Served::attach`] resolves the path
//! before and [`Served::unmount`] opens its last component as a location, of which the kernel asks the filesystem nothing.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use fuser::{Config, Session, SessionACL};
use parking_lot::Mutex;
use plyfs_overlay::Union;
use plyfs_overlay::backend::UpperTree;
use plyfs_sys::Errno;
use plyfs_sys::mount::{FuseOptions, MountError, fuse_mount, mount_id_of, mounts, move_mount_path, umount};
use plyfs_sys::root::open_dir;

use crate::counters::Counters;
use crate::notify::Notify;
use crate::pool::Pool;
use crate::request::Adapter;
use crate::thrift::Thrift;

/// A mount that could not be made, attached or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused to make the filesystem.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The kernel and fuser did not come to terms, or the request loops ended with an error.
    #[error("FUSE session: {0}")]
    Session(#[source] io::Error),
    /// The host gave no thread.
    #[error("cannot start a thread for {0}: {1}")]
    Thread(&'static str, #[source] io::Error),
    /// The mount could not be attached.
    #[error("cannot mount on {}: {errno}", path.display())]
    Attach {
        /// Where.
        path: PathBuf,
        /// Why.
        errno: Errno,
    },
    /// The mount could not be taken away.
    #[error("cannot unmount {}: {errno}", path.display())]
    Unmount {
        /// From where.
        path: PathBuf,
        /// Why; `EBUSY` while somebody uses it.
        errno: Errno,
    },
    /// Something else is mounted over the mount, which must go first.
    #[error("cannot unmount {}: something else is mounted over it", .0.display())]
    Covered(PathBuf),
    /// The mount was attached before or given away.
    #[error("the mount is attached already")]
    Attached,
    /// A request loop panicked: a bug.
    #[error("the FUSE session panicked")]
    Panicked,
}

/// The result of an operation on a mount.
pub type Result<T> = std::result::Result<T, Error>;

/// How a union is served. What the layers hold is not changed by any of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServeOptions {
    /// Request loops. More of them do not make one request faster; they are for requests that wait for a disk.
    pub threads: usize,
    /// The most long requests (copy-ups, fsync) at once, each on a thread of its own. Further ones wait for these.
    pub long_threads: usize,
    /// How long the kernel may believe that a name means the object that it was told.
    pub entry_timeout: Duration,
    /// How long it may believe an object's attributes.
    pub attr_timeout: Duration,
    /// How long it may believe that a name is not there.
    pub negative_timeout: Duration,
    /// The kernel obeys POSIX ACLs; else it knows mode bits alone.
    pub acls: bool,
    /// Pages of a file stay cached from one opening to the next.
    pub keep_cache: bool,
    /// The entries of a directory are cached.
    pub cache_dir: bool,
    /// Targets of symbolic links are cached.
    pub cache_symlinks: bool,
    /// Whenever attributes arrive that show another size or mtime, the pages are dropped.
    pub auto_inval_data: bool,
}

/// Everything goes through the mount: what it tells the kernel stays true until the kernel itself changes it.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

impl Default for ServeOptions {
    fn default() -> ServeOptions {
        // At least 4: a loop may wait for a disk, and look-ups and FORGET must find another one.
        let threads = thread::available_parallelism().map_or(4, |count| count.get().clamp(4, 16));
        ServeOptions {
            threads,
            long_threads: 64,
            entry_timeout: DAY,
            attr_timeout: DAY,
            negative_timeout: DAY,
            acls: true,
            keep_cache: true,
            cache_dir: true,
            cache_symlinks: true,
            auto_inval_data: false,
        }
    }
}

impl ServeOptions {
    /// For lower layers that others change while they are mounted (`lower=live`): a second of belief, and no content is believed beyond that.
    pub fn live() -> ServeOptions {
        const SECOND: Duration = Duration::from_secs(1);
        ServeOptions {
            entry_timeout: SECOND,
            attr_timeout: SECOND,
            negative_timeout: SECOND,
            keep_cache: false,
            cache_dir: false,
            cache_symlinks: false,
            auto_inval_data: true,
            ..ServeOptions::default()
        }
    }
}

/// Where the mount is.
enum Place {
    /// Nowhere; the descriptor keeps it alive.
    Detached(OwnedFd),
    /// On this path of the mount namespace that [`Served::attach`] was called in, under this number of the mount table.
    Attached { path: PathBuf, id: u64 },
    /// Whoever took it knows.
    Taken,
}

/// A union being served. Dropping it ends a mount that was not attached; an attached one is served on until it is unmounted.
pub struct Served {
    place: Mutex<Place>,
    counters: Arc<Counters>,
    thread: JoinHandle<Result<()>>,
}

/// Makes a mount of the union and serves it from threads of its own. It is not attached anywhere yet.
///
/// The union tells the kernel what changes ([`Union::on_event`]), so it is served once. `default_permissions` is set whatever `mount` says: the
/// union checks no permissions, the kernel does.
///
/// # Errors
///
/// [`Error::Mount`] when the kernel makes no mount (`ENOENT` at "open /dev/fuse" where there is none), [`Error::Session`] when it speaks
/// no protocol that fuser knows, [`Error::Thread`].
pub fn serve<T: UpperTree>(union: Arc<Union<T>>, mount: &FuseOptions, options: ServeOptions) -> Result<Served> {
    let (device, mount) = fuse_mount(&FuseOptions { default_permissions: true, ..mount.clone() })?;
    serve_device(union, device, Place::Detached(mount), options)
}

/// Serves a mount that somebody else has made and attached, with `default_permissions`, from its descriptor.
///
/// # Errors
///
/// As [`serve`], but [`Error::Mount`].
pub fn serve_mounted<T: UpperTree>(union: Arc<Union<T>>, device: OwnedFd, options: ServeOptions) -> Result<Served> {
    serve_device(union, device, Place::Taken, options)
}

fn serve_device<T: UpperTree>(union: Arc<Union<T>>, device: OwnedFd, place: Place, options: ServeOptions) -> Result<Served> {
    let pool = Pool::new(options.long_threads).map_err(|error| Error::Thread("long requests", error))?;
    let started = start(union, device, place, options, &pool);
    if started.is_err() {
        pool.finish();
    }
    started
}

fn start<T: UpperTree>(union: Arc<Union<T>>, device: OwnedFd, place: Place, options: ServeOptions, pool: &Pool) -> Result<Served> {
    let counters = Arc::new(Counters::default());
    let adapter = Adapter::new(union.clone(), options, counters.clone(), pool.clone());
    let mut config = Config::default();
    config.acl = SessionACL::All; // whom the mount serves is the kernel's to check (allow_other)
    config.n_threads = Some(options.threads.max(1));
    // One descriptor for all loops: a request read through a cloned one dies with the clone.
    config.clone_fd = false;
    let told = device.try_clone().map_err(Error::Session)?;
    let session = Session::from_fd(adapter, device, SessionACL::All, config).map_err(Error::Session)?;
    let mut thrift = Thrift::new(Arc::downgrade(&union), told.into());
    let grown = move || thrift.look();
    let notify = Notify::start(session.notifier(), grown).map_err(|error| Error::Thread("notifications", error))?;
    union.on_event(notify.observer());
    let pool = pool.clone();
    let run = move || {
        let ended = session.run().map_err(Error::Session);
        pool.finish();
        notify.stop();
        union.shutdown();
        tracing::debug!("the mount has ended");
        ended
    };
    let thread = thread::Builder::new().name("plyfs-session".to_owned()).spawn(run).map_err(|error| Error::Thread("the session", error))?;
    Ok(Served { place: Mutex::new(place), counters, thread })
}

impl Served {
    /// Attaches the mount to a directory, in which symbolic links are followed.
    ///
    /// # Errors
    ///
    /// [`Error::Attach`]: no such directory, another mount namespace (`EINVAL`), no permission. [`Error::Attached`] the second time.
    pub fn attach(&self, mountpoint: &Path) -> Result<()> {
        let failed = |errno| Error::Attach { path: mountpoint.to_owned(), errno };
        let mut place = self.place.lock();
        let Place::Detached(mount) = &*place else { return Err(Error::Attached) };
        let path = std::fs::canonicalize(mountpoint).map_err(|error| failed(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
        let id = mount_id_of(mount.as_fd()).map_err(failed)?;
        move_mount_path(mount.as_fd(), &path).map_err(failed)?;
        // The descriptor goes, or the mount would be busy for ever.
        *place = Place::Attached { path, id };
        Ok(())
    }

    /// Calls `attach` with the detached mount, to attach it elsewhere, in another mount namespace for example. If that succeeds, the mount is the
    /// caller's to unmount; if not, it is detached as before.
    ///
    /// # Errors
    ///
    /// Those of `attach`, inside; [`Error::Attached`] when it was attached before.
    pub fn attach_with<E>(&self, attach: impl FnOnce(BorrowedFd<'_>) -> std::result::Result<(), E>) -> Result<std::result::Result<(), E>> {
        let mut place = self.place.lock();
        let Place::Detached(mount) = &*place else { return Err(Error::Attached) };
        let attached = attach(mount.as_fd());
        if attached.is_ok() {
            *place = Place::Taken;
        }
        Ok(attached)
    }

    /// Gives the detached mount away: it lives as long as the descriptor, or the place that it is attached to. `None` if it was attached before.
    pub fn take_mount(&self) -> Option<OwnedFd> {
        let mut place = self.place.lock();
        match std::mem::replace(&mut *place, Place::Taken) {
            Place::Detached(mount) => Some(mount),
            other => {
                *place = other;
                None
            }
        }
    }

    /// Where it is attached, if [`Served::attach`] did it and nobody has unmounted it through this.
    pub fn mountpoint(&self) -> Option<PathBuf> {
        match &*self.place.lock() {
            Place::Attached { path, .. } => Some(path.clone()),
            Place::Detached(_) | Place::Taken => None,
        }
    }

    /// Requests so far.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Takes the mount away; the session ends when its last user has gone, at once unless `detach` was needed. [`Served::join`] waits for it.
    ///
    /// With `detach` it leaves the tree even while it is in use. A mount that was not attached is dropped. One that somebody else has unmounted
    /// by now, or that was given away, is left to them.
    ///
    /// # Errors
    ///
    /// [`Error::Unmount`], with `EBUSY` for a mount in use without `detach`; [`Error::Covered`].
    pub fn unmount(&self, detach: bool) -> Result<()> {
        let mut place = self.place.lock();
        if let Place::Attached { path, id } = &*place {
            let failed = |errno| Error::Unmount { path: path.clone(), errno };
            // Another mount may be over ours, or in its place: only ours is ours to unmount.
            let found = open_dir(path).and_then(|dir| mount_id_of(dir.as_fd()));
            if found != Ok(*id) {
                if mounts().map_err(failed)?.iter().any(|mount| mount.id == *id) {
                    return Err(Error::Covered(path.clone()));
                }
            } else {
                umount(path, detach).map_err(failed)?;
            }
        }
        *place = Place::Taken;
        Ok(())
    }

    /// Whether the session has ended.
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits until the mount is gone: unmounted by anybody and used by nobody, or its connection aborted. All requests are answered then, and the
    /// union holds nothing any more. A mount that was never attached ends now.
    ///
    /// # Errors
    ///
    /// [`Error::Session`] when the loops ended with an error, [`Error::Panicked`].
    pub fn join(self) -> Result<()> {
        drop(self.place);
        self.thread.join().unwrap_or(Err(Error::Panicked))
    }
}

impl std::fmt::Debug for Served {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Served").field("mountpoint", &self.mountpoint()).field("finished", &self.is_finished()).finish_non_exhaustive()
    }
}
