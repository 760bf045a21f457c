//! Extended attributes as users see them: marks are hidden and cannot be written, users' own attributes under the same prefix are escaped.

use std::borrow::Cow;

use plyfs_sys::Errno;
use plyfs_sys::at::XattrMode;

use crate::acl;
use crate::backend::UpperTree;
use crate::copy_up::Content;
use crate::error::{Attempt, Error, Result};
use crate::ino::Ino;
use crate::layer::Layer;
use crate::union::{Caller, Union};

/// The longest name of an attribute (`XATTR_NAME_MAX`).
const NAME_MAX: usize = 255;
/// File capabilities, which the kernel takes away when a file is written.
pub(crate) const CAPABILITY: &[u8] = b"security.capability";

fn is_acl(name: &[u8]) -> bool {
    name == acl::ACCESS || name == acl::DEFAULT
}

impl<T: UpperTree> Union<T> {
    /// A value that a user reads.
    fn shown_value(&self, name: &[u8], value: Vec<u8>) -> Result<Vec<u8>> {
        self.owners.value_up(name, value.into()).map(Cow::into_owned).ok_or(Error::NoAttribute)
    }

    /// A value that a user writes, as it is on disk.
    fn stored_value<'a>(&self, name: &[u8], value: &'a [u8]) -> Result<Cow<'a, [u8]>> {
        self.owners.value_down(name, value.into()).map_err(|_| Error::Invalid("an attribute that names an id which is mapped from nothing"))
    }

    /// The name on disk of an attribute that a user names.
    fn on_disk(&self, layer: &Layer<T>, name: &[u8]) -> Result<Vec<u8>> {
        let escaped = layer.xattr_on_disk(name);
        if escaped.len() > NAME_MAX {
            return Err(Error::Unsupported("an attribute name that is too long to be escaped"));
        }
        Ok(escaped)
    }

    /// Errors: EOPNOTSUPP for ACLs where there are none.
    fn may_be_had(&self, name: &[u8]) -> Result<()> {
        if self.behaviour.no_acls && is_acl(name) { Err(Error::Unsupported("POSIX ACLs, with noacl")) } else { Ok(()) }
    }

    /// Value of an attribute.
    ///
    /// Errors: ENODATA; the layers' errors.
    pub fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        self.may_be_had(name)?;
        let inode = self.inode(ino)?;
        let (layer, node) = self.top(&inode)?;
        let name = self.on_disk(layer, name)?;
        if layer.shown_xattr(&name).is_none() {
            return Err(Error::NoAttribute);
        }
        let value = inode.arrival.look(
            || layer.tree.get_xattr(node, &name).attempt("getxattr"),
            |value, before| {
                if name == CAPABILITY {
                    value.clone_from(&before.capability);
                }
            },
        )?;
        self.shown_value(&name, value.ok_or(Error::NoAttribute)?)
    }

    /// Names of the attributes that a user may see.
    ///
    /// Errors: the layers' errors.
    pub fn listxattr(&self, ino: Ino) -> Result<Vec<Vec<u8>>> {
        let inode = self.inode(ino)?;
        let (layer, node) = self.top(&inode)?;
        let names = inode.arrival.look(
            || layer.tree.list_xattr(node).attempt("listxattr"),
            |names, before| {
                if before.capability.is_some() && !names.iter().any(|name| name == CAPABILITY) {
                    names.push(CAPABILITY.to_vec());
                }
            },
        )?;
        let hidden = |name: &[u8]| self.behaviour.no_acls && is_acl(name);
        Ok(names.iter().filter(|name| !hidden(name)).filter_map(|name| layer.shown_xattr(name)).collect())
    }

    /// Writes an attribute; copies the object up first.
    ///
    /// An access ACL set by somebody who is not in the file's group takes setgid away (the kernel's `posix_acl_update_mode`; here it has to be done by hand, as
    /// `ovl_set_acl` does, because the write is the daemon's).
    ///
    /// Errors: EROFS; EEXIST and ENODATA by `mode`; the upper's errors.
    pub fn setxattr(&self, caller: &Caller, ino: Ino, name: &[u8], value: &[u8], mode: XattrMode) -> Result<()> {
        self.may_be_had(name)?;
        let inode = self.inode(ino)?;
        let on_disk = self.on_disk(self.upper()?, name)?;
        let value = &*self.stored_value(name, value)?;
        self.may_change(&inode)?;
        self.copy_up(&inode, Content::Metadata)?;
        let _still = self.while_data_stays(&inode)?;
        let (tree, node) = (&self.upper()?.tree, self.upper_node(&inode)?);
        tree.set_xattr(node, &on_disk, value, mode).attempt("setxattr")?;
        if name == acl::ACCESS {
            let group = tree.stat(node).attempt("stat")?.gid;
            self.drop_setgid(caller, &inode, group)?;
        }
        Ok(())
    }

    /// Removes an attribute; copies the object up first, if it has the attribute.
    ///
    /// Errors: EROFS; ENODATA; the upper's errors.
    pub fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<()> {
        let inode = self.inode(ino)?;
        self.upper()?;
        self.may_change(&inode)?;
        self.getxattr(ino, name)?;
        let name = self.on_disk(self.upper()?, name)?;
        self.copy_up(&inode, Content::Metadata)?;
        let _still = self.while_data_stays(&inode)?;
        match self.upper()?.tree.remove_xattr(self.upper_node(&inode)?, &name) {
            Err(Errno::NODATA) => Err(Error::NoAttribute),
            other => other.attempt("removexattr"),
        }
    }
}
