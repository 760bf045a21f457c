//! How a request is served: counted, in its span, on the request loop or in the [`Pool`] if it may take long. A panic in the union is caught,
//! counted and logged; its caller gets EIO.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use fuser::{Errno, FopenFlags, INodeNo, ReplyAttr, ReplyEntry, Request};
use plyfs_overlay::backend::UpperTree;
use plyfs_overlay::{Attr, NewNode, Union};
use tracing::Span;

use crate::convert::{self, decode, ino};
use crate::counters::{Counters, Op};
use crate::pool::Pool;
use crate::reply::{Answer, GENERATION};
use crate::session::ServeOptions;

/// What a request needs on whatever thread it is served.
struct Core<T: UpperTree> {
    union: Arc<Union<T>>,
    counters: Arc<Counters>,
}

/// The filesystem that fuser calls.
pub(crate) struct Adapter<T: UpperTree> {
    core: Arc<Core<T>>,
    pool: Pool,
    pub(crate) options: ServeOptions,
}

impl<T: UpperTree> Core<T> {
    /// Calls the union for one request.
    fn call<R>(&self, span: &Span, work: impl FnOnce(&Union<T>) -> plyfs_overlay::Result<R>) -> Answer<R> {
        let _entered = span.enter();
        match catch_unwind(AssertUnwindSafe(|| work(&self.union))) {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                tracing::debug!(%error, "answered with an error");
                Err(convert::errno(error.errno()))
            }
            Err(panic) => {
                self.counters.count_panic();
                let message = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
                tracing::error!(message = message.unwrap_or("(no text)"), "a request panicked; answered with EIO");
                Err(Errno::EIO)
            }
        }
    }
}

impl<T: UpperTree> Adapter<T> {
    pub(crate) fn new(union: Arc<Union<T>>, options: ServeOptions, counters: Arc<Counters>, pool: Pool) -> Adapter<T> {
        Adapter { core: Arc::new(Core { union, counters }), pool, options }
    }

    /// Counts a request and makes its span.
    pub(crate) fn begin(&self, op: Op, request: &Request, ino: INodeNo, name: Option<&OsStr>) -> Span {
        self.core.counters.count(op);
        let span = tracing::debug_span!("request", op = op.name(), ino = ino.0, name = tracing::field::Empty, pid = request.pid());
        if let Some(name) = name.filter(|_| !span.is_disabled()) {
            span.record("name", tracing::field::display(name.as_bytes().escape_ascii()));
        }
        span
    }

    /// Serves a request on this thread.
    pub(crate) fn inline<R>(&self, span: &Span, work: impl FnOnce(&Union<T>) -> plyfs_overlay::Result<R>) -> Answer<R> {
        self.core.call(span, work)
    }

    /// Serves a request on this thread that cannot fail, save by a panic.
    pub(crate) fn told(&self, span: &Span, work: impl FnOnce(&Union<T>)) -> Answer<()> {
        self.core.call(span, |union| {
            work(union);
            Ok(())
        })
    }

    /// Serves a request here, or in the pool if it may take long.
    pub(crate) fn serve<R>(
        &self,
        span: Span,
        long: bool,
        work: impl FnOnce(&Union<T>) -> plyfs_overlay::Result<R> + Send + 'static,
        answer: impl FnOnce(Answer<R>) + Send + 'static,
    ) {
        if long {
            let core = self.core.clone();
            self.pool.submit(move || answer(core.call(&span, work)));
        } else {
            answer(self.inline(&span, work));
        }
    }

    /// Whether a change of one of these may copy something up. If not even that can be found out, the pool finds out.
    pub(crate) fn may_copy_up(&self, span: &Span, inodes: &[INodeNo]) -> bool {
        self.inline(span, |union| Ok(inodes.iter().any(|&inode| union.may_copy_up(ino(inode))))).unwrap_or(true)
    }

    /// Whether what a name means may have to be copied up. A look and nothing more: the answer may be old when it is used.
    pub(crate) fn name_may_copy_up(&self, span: &Span, parent: INodeNo, name: &OsStr) -> bool {
        let look = |union: &Union<T>| {
            let Some(attr) = union.lookup(ino(parent), &decode(name)?)? else { return Ok(false) };
            let long = union.may_copy_up(attr.node);
            union.forget(attr.node, 1);
            Ok(long)
        };
        // An error is for the operation itself to meet and to tell.
        self.inline(span, look).unwrap_or(false)
    }

    pub(crate) fn answer_entry(&self) -> impl FnOnce(ReplyEntry, Answer<Attr>) + Send + 'static {
        let ServeOptions { attr_timeout, entry_timeout, .. } = self.options;
        move |reply, answer| match answer {
            Ok(attr) => reply.entry_with_ttls(&attr_timeout, &entry_timeout, &convert::entry(&attr), GENERATION),
            Err(errno) => reply.error(errno),
        }
    }

    pub(crate) fn answer_attr(&self) -> impl FnOnce(ReplyAttr, Answer<Attr>) + Send + 'static {
        let ServeOptions { attr_timeout, .. } = self.options;
        move |reply, answer| match answer {
            Ok(attr) => reply.attr(&attr_timeout, &convert::attributes(&attr)),
            Err(errno) => reply.error(errno),
        }
    }

    /// For replies with one timeout for both.
    pub(crate) fn shorter_timeout(&self) -> Duration {
        self.options.entry_timeout.min(self.options.attr_timeout)
    }

    /// NOFLUSH: a close has nothing to write that was not written, so the kernel need not ask. KEEP_CACHE: see the module's table.
    pub(crate) fn open_flags(&self) -> FopenFlags {
        let mut flags = FopenFlags::FOPEN_NOFLUSH;
        flags.set(FopenFlags::FOPEN_KEEP_CACHE, self.options.keep_cache);
        flags
    }

    /// What mknod, mkdir and symlink share.
    #[allow(clippy::too_many_arguments)] // fuser's own list
    pub(crate) fn make(
        &self,
        op: Op,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        node: Option<NewNode>,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let span = self.begin(op, request, parent, Some(name));
        let (caller, name) = (convert::caller(request), decode(name));
        let long = self.may_copy_up(&span, &[parent]);
        let answer = self.answer_entry();
        self.serve(
            span,
            long,
            move |union| {
                let node = node.ok_or(plyfs_overlay::Error::Invalid("the type of a new node"))?;
                union.make(&caller, ino(parent), &name?, node, mode & 0o7777, umask)
            },
            |result| answer(reply, result),
        );
    }

    /// A request that is not served: counted, so that it shows.
    pub(crate) fn refuse(&self, op: Op, request: &Request, inode: INodeNo) {
        let span = self.begin(op, request, inode, None);
        let _entered = span.enter();
        tracing::trace!("refused");
    }
}

#[cfg(test)]
mod tests {
    use plyfs_overlay::{Behaviour, Error, Ino, Layer, LayerStack, MemFs, MemTree};

    use super::*;

    fn core() -> Core<MemTree> {
        let fs = MemFs::new(7);
        let stack = LayerStack { upper: None, lowers: Box::new([Layer::trusted(fs.tree())]) };
        Core { union: Arc::new(Union::new(stack, Behaviour::default()).unwrap()), counters: Arc::new(Counters::default()) }
    }

    #[test]
    fn a_panic_is_eio_and_counted() {
        let core = core();
        let answer: Answer<()> = core.call(&Span::none(), |_| panic!("on purpose"));
        assert_eq!(answer.map_err(Errno::code), Err(Errno::EIO.code()));
        assert_eq!(core.counters.panics(), 1);
        assert!(core.call(&Span::none(), |union| union.getattr(Ino::ROOT)).is_ok());
        assert_eq!(core.counters.panics(), 1);
    }

    #[test]
    fn an_error_of_the_union_is_its_errno() {
        let answer: Answer<()> = core().call(&Span::none(), |_| Err(Error::NotEmpty));
        assert_eq!(answer.map_err(Errno::code), Err(Errno::ENOTEMPTY.code()));
    }
}
