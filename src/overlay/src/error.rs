//! What can go wrong, and the one total match from an error to an errno.

use plyfs_sys::Errno;

/// Result of an operation on the union.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of the union. Every variant maps to exactly one errno ([`Error::errno`]).
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// A system call on a layer failed. It is passed on as it is: an unexpected errno is never taken for "not there".
    #[error("{op}: {errno}")]
    Layer {
        /// What was attempted.
        op: &'static str,
        /// What the layer answered.
        errno: Errno,
    },
    /// No such name, or a directory that was removed.
    #[error("no such file or directory")]
    NotFound,
    /// The name exists.
    #[error("file exists")]
    Exists,
    /// A directory was needed.
    #[error("not a directory")]
    NotDir,
    /// A directory was not wanted.
    #[error("is a directory")]
    IsDir,
    /// The directory is not empty.
    #[error("directory not empty")]
    NotEmpty,
    /// The operation is not allowed for anybody: forging a mark, making a whiteout.
    #[error("not permitted: {0}")]
    NotPermitted(&'static str),
    /// There is no upper layer.
    #[error("read-only union (no upperdir)")]
    ReadOnly,
    /// The file is being executed.
    #[error("text file busy")]
    TextBusy,
    /// A name over 255 bytes.
    #[error("name too long")]
    NameTooLong,
    /// A bad argument.
    #[error("invalid: {0}")]
    Invalid(&'static str),
    /// The inode is not known (any more), or its object in a layer became another one behind our back.
    #[error("stale: {0}")]
    Stale(&'static str),
    /// The caller has no ids here, or an object shall get none.
    #[error("no user or group id")]
    NoIds,
    /// The handle is unknown or not open for this.
    #[error("bad file handle")]
    BadHandle,
    /// No such extended attribute.
    #[error("no such attribute")]
    NoAttribute,
    /// A layer holds something that plyfs cannot represent; refused, never guessed at.
    #[error("layer uses {0}, which this version cannot represent")]
    Unrepresentable(&'static str),
    /// The operation does not exist here.
    #[error("not supported: {0}")]
    Unsupported(&'static str),
    /// A rename would need a mark that the place does not allow.
    #[error("cross-device: {0}")]
    CrossDevice(&'static str),
    /// A layer is damaged: a mark that cannot be read.
    #[error("damaged mark: {0}")]
    Damaged(String),
}

impl Error {
    /// The errno that the caller of the system call sees.
    ///
    /// Doubtful rows: `Unrepresentable` and `Damaged` are EIO, as kernel overlayfs answers for marks it cannot follow. `Stale` is ESTALE, on
    /// which the kernel looks the path up once more before it tells the caller.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Layer { errno, .. } => *errno,
            Self::NotFound => Errno::NOENT,
            Self::Exists => Errno::EXIST,
            Self::NotDir => Errno::NOTDIR,
            Self::IsDir => Errno::ISDIR,
            Self::NotEmpty => Errno::NOTEMPTY,
            Self::NotPermitted(_) => Errno::PERM,
            Self::ReadOnly => Errno::ROFS,
            Self::TextBusy => Errno::TXTBSY,
            Self::NameTooLong => Errno::NAMETOOLONG,
            Self::Invalid(_) => Errno::INVAL,
            Self::Stale(_) => Errno::STALE,
            Self::NoIds => Errno::OVERFLOW,
            Self::BadHandle => Errno::BADF,
            Self::NoAttribute => Errno::NODATA,
            Self::Unrepresentable(_) | Self::Damaged(_) => Errno::IO,
            Self::Unsupported(_) => Errno::OPNOTSUPP,
            Self::CrossDevice(_) => Errno::XDEV,
        }
    }
}

/// Names the attempt on a layer's errno.
pub(crate) trait Attempt<T> {
    /// Turns an errno of a layer into an [`Error::Layer`] that says what was attempted.
    fn attempt(self, op: &'static str) -> Result<T>;
}

impl<T> Attempt<T> for plyfs_sys::Result<T> {
    fn attempt(self, op: &'static str) -> Result<T> {
        self.map_err(|errno| Error::Layer { op, errno })
    }
}
