//! Files without a name (O_TMPFILE of open(2)), and that they may get one once.
//!
//! Such a file is made in the upper, complete with owner, mode and inherited ACL, and lives as long as a handle or a look-up. It has no origin in a lower and nothing in a
//! directory tells of it, so there is nothing to undo.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use plyfs_sys::stat::Kind;

use crate::attr::Attr;
use crate::backend::{Tree, UpperTree};
use crate::copy_up::Content;
use crate::dir::NewNode;
use crate::error::{Attempt, Error, Result};
use crate::file::HandleId;
use crate::ino::Ino;
use crate::inode::{Inode, NewInode};
use crate::union::{Caller, Union};

impl<T: UpperTree> Union<T> {
    /// Makes a regular file without a name, open for reading and writing, as if it were made in `parent`: that directory's default ACL and setgid bit count. Counts one
    /// look-up. `linkable`: [`Union::link`] may give it a name, once (without O_EXCL).
    ///
    /// Errors: EROFS; ENOENT if the directory was removed; ENOTDIR; EOVERFLOW for a caller without ids; EOPNOTSUPP if the upper's filesystem has no such files; the upper's errors.
    pub fn tmpfile(&self, caller: &Caller, parent: Ino, mode: u32, umask: u32, linkable: bool) -> Result<(Attr, HandleId)> {
        let parent = self.directory(parent)?;
        self.upper()?;
        self.may_enter(&parent)?;
        self.copy_up(&parent, Content::Whole)?;
        let dir = parent.as_dir()?.state.read();
        if dir.dead {
            return Err(Error::NotFound);
        }
        let plan = self.blueprint(caller, &parent, NewNode::File, mode, umask, false)?;
        drop(dir);
        let tree = &self.upper()?.tree;
        let made = tree.tmpfile().attempt("make a file without a name")?;
        let (node, file) = made.ok_or(Error::Unsupported("files without a name on the upper's filesystem"))?;
        self.dress(&node, &plan)?;
        let id = tree.id(&node);
        let inode = self.table.intern(NewInode::made(Kind::File, node, id));
        inode.nameless.store(true, Ordering::Relaxed);
        inode.linkable.store(linkable, Ordering::Relaxed);
        let attr = self.entered(&inode)?;
        Ok((attr, self.handles.insert_file(inode, file, true)))
    }
}

impl<T: Tree> Inode<T> {
    /// Whether link(2) may give the object a further name: it has one, or never had one and was made to get one. What has lost its last name stays without.
    pub(crate) fn may_be_linked(self: &Arc<Self>) -> bool {
        // In this order: a link that goes on adds the name before it takes the permission away, so that one of them is seen.
        self.linkable.load(Ordering::Acquire) || self.a_name().is_some()
    }
}
