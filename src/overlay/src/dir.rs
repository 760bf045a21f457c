//! create, mkdir, mknod, symlink, link, unlink, rmdir.
//!
//! Each has one commit point. What is made is staged in `work` with its owner, mode and marks, and moved; what is removed leaves its whiteout in
//! the same step. Never unlink-then-create at a user's name.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use plyfs_format::{ESCAPED_WHITEOUT_RDEV, MarkKind, WHITEOUT_RDEV, is_whiteout_device};
use plyfs_sys::Errno;
use plyfs_sys::at::XattrMode;
use plyfs_sys::stat::Kind;

use crate::acl::{self, Inherited};
use crate::attr::Attr;
use crate::backend::{Place, Rename, Tree, UpperTree};
use crate::copy_up::Content;
use crate::error::{Attempt, Error, Result};
use crate::file::{HandleId, OpenFlags};
use crate::ino::Ino;
use crate::inode::{Inode, NewInode};
use crate::name::Name;
use crate::resolve::{Found, Resolved};
use crate::union::{Caller, Union};

/// What to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NewNode {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symlink with this target.
    Symlink(Vec<u8>),
    /// A fifo.
    Fifo,
    /// A socket.
    Socket,
    /// A character device with this device number.
    Char(u64),
    /// A block device with this device number.
    Block(u64),
}

impl NewNode {
    fn kind(&self) -> Kind {
        match self {
            Self::File => Kind::File,
            Self::Dir => Kind::Dir,
            Self::Symlink(_) => Kind::Symlink,
            Self::Fifo => Kind::Fifo,
            Self::Socket => Kind::Socket,
            Self::Char(_) => Kind::Char,
            Self::Block(_) => Kind::Block,
        }
    }
}

/// Everything about a new object but its place.
pub(crate) struct Blueprint {
    node: NewNode,
    mode: u32,
    uid: u32,
    gid: u32,
    acl: Inherited,
    /// The upper holds a whiteout under the name.
    over_whiteout: bool,
    /// One system call at the final place makes the object complete, so that nothing needs to be staged.
    in_place: bool,
    /// A user's character device 0:0, which needs a mark to be told from what it is on disk.
    escaped: bool,
}

/// A new inode, and its file if it is one.
type Made<T> = (Arc<Inode<T>>, Option<<T as Tree>::File>);

impl<T: UpperTree> Union<T> {
    /// Makes an object (mknod, mkdir, symlink) and counts one look-up of it.
    ///
    /// Errors: EEXIST; ENOENT if the directory was removed; the layers' errors.
    pub fn make(&self, caller: &Caller, parent: Ino, name: &Name, node: NewNode, mode: u32, umask: u32) -> Result<Attr> {
        let parent = self.directory(parent)?;
        let (inode, _file) = self.make_in(caller, &parent, name, node, mode, umask)?;
        self.entered(&inode).inspect_err(|_| self.take_back(&parent, name, &inode))
    }

    /// Creates a regular file, or opens the one that is there unless `exclusive` (O_EXCL); counts one look-up.
    ///
    /// Errors: as [`Union::make`] and [`Union::open`].
    #[allow(clippy::too_many_arguments)] // They are those of open(2) with O_CREAT, and who calls it where.
    pub fn create(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &Name,
        mode: u32,
        umask: u32,
        exclusive: bool,
        flags: OpenFlags,
    ) -> Result<(Attr, HandleId)> {
        let parent = self.directory(parent)?;
        let (inode, file) = match self.make_in(caller, &parent, name, NewNode::File, mode, umask) {
            Err(Error::Exists) if !exclusive => {
                let attr = self.lookup(parent.ino, name)?.ok_or(Error::NotFound)?;
                let opened = self.open(caller, attr.node, flags).and_then(|handle| match self.getattr(attr.node) {
                    Ok(attr) => Ok((attr, handle)),
                    Err(error) => {
                        self.release(handle);
                        Err(error)
                    }
                });
                // Who hears of an error holds nothing.
                return opened.inspect_err(|_| self.forget(attr.node, 1));
            }
            other => other?,
        };
        let file = match file {
            Some(file) => file,
            None => {
                let opened = self.upper_node(&inode).and_then(|node| self.upper()?.tree.open_write(node).attempt("open the new file"));
                opened.inspect_err(|_| self.take_back(&parent, name, &inode))?
            }
        };
        let attr = self.entered(&inode).inspect_err(|_| self.take_back(&parent, name, &inode))?;
        Ok((attr, self.handles.insert_file(inode, file, true)))
    }

    /// Removes a name that was just made and whose maker hears of an error: the kernel goes on taking it for absent.
    fn take_back(&self, parent: &Arc<Inode<T>>, name: &Name, inode: &Arc<Inode<T>>) {
        // Who has renamed or replaced it meanwhile has found it: it stays.
        if !inode.is_named(parent, name) {
            return;
        }
        let removed = if inode.kind == Kind::Dir { self.rmdir_in(parent, name) } else { self.unlink_in(parent, name) };
        if let Err(error) = removed {
            tracing::warn!(%name, %error, "what was made stays, though its maker was told of an error");
        }
    }

    /// The attributes of what a call has just entered, with one look-up counted.
    pub(crate) fn entered(&self, inode: &Arc<Inode<T>>) -> Result<Attr> {
        let attr = self.attr_of(inode)?;
        self.count(inode, 1);
        Ok(attr)
    }

    fn make_in(&self, caller: &Caller, parent: &Arc<Inode<T>>, name: &Name, node: NewNode, mode: u32, umask: u32) -> Result<Made<T>> {
        self.may_be_named(name)?;
        self.may_enter_as(parent, name)?;
        self.copy_up(parent, Content::Whole)?;
        let part = parent.as_dir()?;
        let dir = part.state.write();
        if dir.dead {
            return Err(Error::NotFound);
        }
        let Resolved::Absent { whiteout } = self.resolve(parent, name)? else { return Err(Error::Exists) };
        let blueprint = self.blueprint(caller, parent, node, mode, umask, whiteout)?;
        let kind = blueprint.node.kind();
        // Nothing that may fail stands between the commit and its notes in names and listing.
        let (node, file) = self.make_at(parent, name, &blueprint)?;
        let id = self.upper()?.tree.id(&node);
        let new = NewInode::made(kind, node, id);
        let inode = self.intern(parent, name, new);
        self.list_insert(parent, name, &inode);
        Ok((inode, file))
    }

    /// Owner and mode as POSIX gives them: setgid directories pass on the group (and themselves, to directories); a default ACL replaces the umask.
    pub(crate) fn blueprint(
        &self,
        caller: &Caller,
        parent: &Inode<T>,
        node: NewNode,
        mode: u32,
        umask: u32,
        over_whiteout: bool,
    ) -> Result<Blueprint> {
        const SETGID: u32 = 0o2000;
        let escaped = matches!(node, NewNode::Char(rdev) if is_whiteout_device(true, rdev));
        if escaped && self.behaviour.kernel_compat {
            return Err(Error::NotPermitted("a character device 0:0, which kernel overlayfs does not show"));
        }
        let (caller_uid, caller_gid) = self.maker(caller)?;
        let tree = &self.upper()?.tree;
        let dir = self.upper_node(parent)?;
        let above = tree.stat(dir).attempt("stat the parent")?;
        let default = match node {
            NewNode::Symlink(_) => None,
            _ => tree.get_xattr(dir, acl::DEFAULT).attempt("read the default ACL")?,
        };
        // The upper's filesystem would pass it on, whether there are ACLs here or not.
        let inherits = default.is_some();
        let acl = match default.filter(|_| !self.behaviour.no_acls) {
            _ if matches!(node, NewNode::Symlink(_)) => Inherited::default(),
            Some(default) => acl::inherit(&default, mode, node.kind() == Kind::Dir).map_err(|e| Error::Damaged(e.to_owned()))?,
            None => Inherited::from_umask(mode, umask),
        };
        let mut mode = acl.mode & 0o7777;
        let mut gid = caller_gid;
        if above.mode & SETGID != 0 {
            gid = above.gid;
            if node.kind() == Kind::Dir {
                mode |= SETGID;
            }
        }
        let own = self.behaviour.own_ids == Some((caller_uid, caller_gid));
        let one_step = matches!(node, NewNode::File | NewNode::Dir | NewNode::Symlink(_)) || !tree.stands_in();
        let in_place = own && one_step && !over_whiteout && above.mode & SETGID == 0 && !inherits;
        // On disk it would be a whiteout.
        let node = if escaped { NewNode::Char(ESCAPED_WHITEOUT_RDEV) } else { node };
        Ok(Blueprint { node, mode, uid: caller_uid, gid, acl, over_whiteout, in_place: in_place && !escaped, escaped })
    }

    /// One system call: an object with this mode, owned by whom this process makes things as.
    fn make_bare(&self, at: Place<'_, T::Node>, plan: &Blueprint, mode: u32, dir_mode: u32) -> Result<(T::Node, Option<T::File>)> {
        let tree = &self.upper()?.tree;
        match &plan.node {
            NewNode::File => tree.create(at, mode).map(|(node, file)| (node, Some(file))),
            NewNode::Dir => tree.mkdir(at, dir_mode).map(|node| (node, None)),
            NewNode::Symlink(target) => tree.symlink(at, target).map(|node| (node, None)),
            NewNode::Fifo | NewNode::Socket => tree.mknod(at, plan.node.kind(), mode, 0).map(|node| (node, None)),
            NewNode::Char(rdev) | NewNode::Block(rdev) => tree.mknod(at, plan.node.kind(), mode, *rdev).map(|node| (node, None)),
        }
        .attempt("make a new object")
    }

    /// Makes the object where it belongs, or stages it and moves it there; the caller holds DIR(parent) exclusively and has seen that the name is free.
    fn make_at(&self, parent: &Inode<T>, name: &Name, plan: &Blueprint) -> Result<(T::Node, Option<T::File>)> {
        let tree = &self.upper()?.tree;
        if plan.in_place {
            let at = Place { dir: self.upper_node(parent)?, name };
            return self.make_bare(at, plan, plan.mode, plan.mode);
        }
        let work = tree.work();
        let temp = self.temp_name()?;
        let staging = Place { dir: &work, name: &temp };
        let (node, file) = self.make_bare(staging, plan, 0o600, 0o700)?;
        let made = self.dress(&node, plan).and_then(|()| {
            let to = Place { dir: self.upper_node(parent)?, name };
            self.move_in(staging, &node, to, plan.node.kind() == Kind::Dir, plan.over_whiteout)
        });
        if let Err(error) = made {
            self.remove_aside(staging, plan.node.kind())?;
            return Err(error);
        }
        Ok((node, file))
    }

    pub(crate) fn dress(&self, node: &T::Node, plan: &Blueprint) -> Result<()> {
        let layer = self.upper()?;
        let tree = &layer.tree;
        self.owner_kept(tree.set_owner(node, Some(plan.uid), Some(plan.gid))).attempt("chown a new object")?;
        for (name, value) in plan.acl.xattrs() {
            tree.set_xattr(node, name, value, XattrMode::Any).attempt("write an inherited ACL")?;
        }
        if !matches!(plan.node, NewNode::Symlink(_)) {
            tree.set_mode(node, plan.mode).attempt("chmod a new object")?;
        }
        if plan.over_whiteout && matches!(plan.node, NewNode::Dir) {
            self.mark_opaque(node)?;
        }
        if plan.escaped { self.mark_device(node) } else { Ok(()) }
    }

    /// Stages a character device 0:0, mode 0, that shows as what it is when it is moved into `parent`; returns it and its name in `work`.
    pub(crate) fn stage_device(&self, caller: &Caller, parent: &Inode<T>) -> Result<(T::Node, Name)> {
        let blueprint = self.blueprint(caller, parent, NewNode::Char(WHITEOUT_RDEV), 0, 0, false)?;
        let tree = &self.upper()?.tree;
        let work = tree.work();
        let temp = self.temp_name()?;
        let staging = Place { dir: &work, name: &temp };
        let (node, _) = self.make_bare(staging, &blueprint, 0o600, 0o700)?;
        if let Err(error) = self.dress(&node, &blueprint) {
            tree.unlink(staging).attempt("remove a staged object")?;
            return Err(error);
        }
        Ok((node, temp))
    }

    /// Marks an escaped character device 0:0.
    pub(crate) fn mark_device(&self, node: &T::Node) -> Result<()> {
        let layer = self.upper()?;
        let name = plyfs_format::xattr_name(layer.dialect, MarkKind::Device)
            .ok_or(Error::NotPermitted("a character device 0:0, which this dialect cannot tell from a whiteout"))?;
        layer.tree.set_xattr(node, name, b"0:0", XattrMode::Any).attempt("mark a device")
    }

    pub(crate) fn mark_opaque(&self, node: &T::Node) -> Result<()> {
        let layer = self.upper()?;
        if self.hides_by_names() {
            // A directory that moves keeps its time.
            return self.keeping_mtime(node, || self.mark_opaque_by_name(node));
        }
        let name =
            plyfs_format::xattr_name(layer.dialect, MarkKind::Opaque).ok_or(Error::CrossDevice("this dialect has no opaque mark"))?;
        layer.tree.set_xattr(node, name, b"y", XattrMode::Any).attempt("write the opaque mark")
    }

    /// A further name for an object (link(2)); counts one look-up.
    ///
    /// Errors: EPERM for a directory; EEXIST; ENOENT if the object has lost its last name (as kernel overlayfs answers).
    pub fn link(&self, ino: Ino, parent: Ino, name: &Name) -> Result<Attr> {
        let inode = self.inode(ino)?;
        let parent = self.directory(parent)?;
        if inode.kind == Kind::Dir {
            return Err(Error::NotPermitted("hard link to a directory"));
        }
        self.upper()?;
        if !inode.may_be_linked() {
            return Err(Error::NotFound);
        }
        self.may_be_named(name)?;
        self.may_enter_as(&parent, name)?;
        self.may_change(&inode)?;
        self.copy_up(&inode, Content::Whole)?;
        self.copy_up(&parent, Content::Whole)?;
        let part = parent.as_dir()?;
        let dir = part.state.write();
        if dir.dead || !inode.may_be_linked() {
            return Err(Error::NotFound);
        }
        let Resolved::Absent { whiteout } = self.resolve(&parent, name)? else { return Err(Error::Exists) };
        let tree = &self.upper()?.tree;
        let to = Place { dir: self.upper_node(&parent)?, name };
        let node = self.upper_node(&inode)?;
        self.mark_impure(to.dir, inode.origin != tree.id(node))?;
        if self.hides_by_names() {
            if whiteout {
                self.free_name(to)?;
            }
            self.changing_links(&inode, || tree.link(node, to).attempt("link"))?;
            if whiteout {
                self.whiteout_is_done(to);
            }
        } else if whiteout {
            let work = tree.work();
            let temp = self.temp_name()?;
            let staging = Place { dir: &work, name: &temp };
            self.changing_links(&inode, || {
                tree.link(node, staging).attempt("stage a link")?;
                // An object that was pinned, because another name of it went, is known by the staged name from here on: it moves along, or is pinned again.
                if let Err(errno) = tree.rename(staging, Some(node), to, None, Rename::Replace) {
                    if let Err(error) = self.pin(&inode, staging).and_then(|_| tree.unlink(staging).attempt("remove a staged link")) {
                        tracing::warn!(%error, "a staged link stays in workdir");
                        // A name that does not count, and goes with the inode.
                        tree.known_by(node, staging, true);
                        inode.nlink_delta.fetch_sub(1, Ordering::Relaxed);
                    }
                    return Err(errno).attempt("commit a link");
                }
                Ok(())
            })?;
        } else {
            self.changing_links(&inode, || tree.link(node, to).attempt("link"))?;
        }
        inode.add_name(&parent, name);
        // Once, as the kernel has it (I_LINKABLE): when it loses this name it stays without.
        inode.linkable.store(false, Ordering::Release);
        self.list_insert(&parent, name, &inode);
        drop(dir);
        self.entered(&inode).inspect_err(|_| self.take_back(&parent, name, &inode))
    }

    /// Removes a non-directory's name.
    ///
    /// Errors: ENOENT; EISDIR; the layers' errors.
    pub fn unlink(&self, parent: Ino, name: &Name) -> Result<()> {
        self.unlink_in(&self.directory(parent)?, name)?;
        self.refill_after_removal();
        Ok(())
    }

    fn unlink_in(&self, parent: &Arc<Inode<T>>, name: &Name) -> Result<()> {
        self.upper()?;
        self.copy_up_to_remove(parent)?;
        let part = parent.as_dir()?;
        let mut uncounted = false;
        loop {
            let dir = part.state.write();
            let found = self.resolve(parent, name)?.found()?;
            let here = found.upper_here;
            let inode = self.intern(parent, name, found.new);
            self.may_leave(parent, &inode)?;
            if inode.kind == Kind::Dir {
                return Err(Error::IsDir);
            }
            if !here && !uncounted && self.wants_index(&inode)? {
                // It takes long, and is done without the lock; then everything may be otherwise.
                drop(dir);
                uncounted = !self.copy_up_to_count(&inode)?;
                continue;
            }
            let here = here || self.link_alias_to_remove(&inode, parent, name)?;
            let place = Place { dir: self.upper_node(parent)?, name };
            if here {
                // Pinned before the name goes, so that no request in between finds neither.
                self.pin(&inode, place)?;
                let lower_has = self.lower_has(parent, name)?;
                self.changing_links(&inode, || self.remove_upper(place, inode.kind, lower_has))?;
            } else {
                self.put_whiteout(place)?;
            }
            // Names and listing first: they must be right even if the count of links cannot be written.
            inode.remove_name(parent, name);
            self.list_remove(parent, name);
            return self.name_gone(&inode, here);
        }
    }

    /// Keeps the upper object of an inode reachable, as its name `losing` is about to go: by a descriptor, or where there are too many of them, what is no directory by a name in
    /// `work` that goes with it. `false`: a directory must be moved there.
    pub(crate) fn pin(&self, inode: &Inode<T>, losing: Place<'_, T::Node>) -> Result<bool> {
        let Some(node) = inode.upper.get() else { return Ok(true) };
        let tree = &self.upper()?.tree;
        if tree.pin(node, Some(losing)).attempt("pin")? {
            return Ok(true);
        }
        if inode.kind == Kind::Dir {
            return Ok(false);
        }
        if self.known_by_index(inode, node, losing)? {
            return Ok(true);
        }
        let work = tree.work();
        let temp = self.temp_name()?;
        let aside = Place { dir: &work, name: &temp };
        tree.link(node, aside).attempt("keep what is removed")?;
        tree.known_by(node, aside, true);
        inode.nlink_delta.fetch_sub(1, Ordering::Relaxed);
        Ok(true)
    }

    /// Moves a directory that is removed to `work`, where it stays for those who hold it; a whiteout stays if a lower holds the name.
    fn remove_and_keep(&self, place: Place<'_, T::Node>, inode: &Inode<T>, lower_has: bool) -> Result<()> {
        let (tree, node) = (&self.upper()?.tree, self.upper_node(inode)?);
        let (work, temp) = (tree.work(), self.set_aside(place, Some(node), lower_has)?);
        tree.known_by(node, Place { dir: &work, name: &temp }, true);
        // The commit is done; should this fail, the rest is litter in `work`, emptied at the next mount.
        if let Err(error) = self.remove_whiteouts(node) {
            tracing::warn!(%error, "litter stays in workdir");
        }
        Ok(())
    }

    /// Moves a directory to `work` in one step; a whiteout stays if a lower holds the name.
    fn set_aside(&self, place: Place<'_, T::Node>, moved: Option<&T::Node>, lower_has: bool) -> Result<Name> {
        if lower_has {
            return self.swap_for_whiteout(place, moved);
        }
        let tree = &self.upper()?.tree;
        let (work, temp) = (tree.work(), self.temp_name()?);
        tree.rename(place, moved, Place { dir: &work, name: &temp }, None, Rename::NoReplace).attempt("move aside")?;
        Ok(temp)
    }

    /// Takes an upper object away from its name, in one step; a whiteout stays if a lower holds the name.
    fn remove_upper(&self, place: Place<'_, T::Node>, kind: Kind, lower_has: bool) -> Result<()> {
        let tree = &self.upper()?.tree;
        if kind != Kind::Dir {
            return if lower_has { self.replace_by_whiteout(place) } else { tree.unlink(place).attempt("unlink") };
        }
        if !lower_has {
            match tree.rmdir(place) {
                // Whiteouts are in it: it is emptied in `work`, where nobody looks.
                Err(Errno::NOTEMPTY | Errno::EXIST) => {}
                other => return other.attempt("rmdir"),
            }
        }
        let (work, temp) = (tree.work(), self.set_aside(place, None, lower_has)?);
        // The commit is done; should this fail, the rest is litter in `work`, emptied at the next mount.
        if let Err(error) = self.remove_aside(Place { dir: &work, name: &temp }, kind) {
            tracing::warn!(%error, "litter stays in workdir");
        }
        Ok(())
    }

    /// Removes an object in `work`; a directory there holds nothing but whiteouts.
    pub(crate) fn remove_aside(&self, aside: Place<'_, T::Node>, kind: Kind) -> Result<()> {
        let tree = &self.upper()?.tree;
        if kind != Kind::Dir {
            return tree.unlink(aside).attempt("remove aside");
        }
        if let Some((dir, _)) = tree.lookup(aside.dir, aside.name).attempt("look up aside")? {
            self.remove_whiteouts(&dir)?;
        }
        tree.rmdir(aside).attempt("remove aside")
    }

    /// Removes the whiteouts in an upper directory that shows as empty.
    pub(crate) fn remove_whiteouts(&self, dir: &T::Node) -> Result<()> {
        let tree = &self.upper()?.tree;
        for entry in tree.read_dir(dir).attempt("list whiteouts")? {
            let name = Name::new(&entry.name)?;
            tree.unlink(Place { dir, name: &name }).attempt("remove a whiteout")?;
        }
        Ok(())
    }

    /// Removes an empty directory.
    ///
    /// Errors: ENOENT; ENOTDIR; ENOTEMPTY by the merged view; the layers' errors.
    pub fn rmdir(&self, parent: Ino, name: &Name) -> Result<()> {
        self.rmdir_in(&self.directory(parent)?, name)?;
        self.refill_after_removal();
        Ok(())
    }

    fn rmdir_in(&self, parent: &Arc<Inode<T>>, name: &Name) -> Result<()> {
        self.upper()?;
        self.copy_up_to_remove(parent)?;
        let part = parent.as_dir()?;
        let _dir = part.state.write();
        let Found { new, upper_here, .. } = self.resolve(parent, name)?.found()?;
        let inode = self.intern(parent, name, new);
        self.may_leave(parent, &inode)?;
        if inode.kind != Kind::Dir {
            return Err(Error::NotDir);
        }
        if inode.is_frozen() {
            // What seems empty may hide what the mark leads to.
            return Err(Error::ReadOnly);
        }
        let mut state = inode.as_dir()?.state.write();
        if !self.is_empty(&inode)? {
            return Err(Error::NotEmpty);
        }
        let place = Place { dir: self.upper_node(parent)?, name };
        if upper_here {
            let lower_has = self.lower_has(parent, name)?;
            if self.pin(&inode, place)? {
                self.remove_upper(place, Kind::Dir, lower_has)?;
            } else {
                self.remove_and_keep(place, &inode, lower_has)?;
            }
        } else {
            self.put_whiteout(place)?;
        }
        inode.bury(&mut state);
        drop(state);
        inode.remove_name(parent, name);
        self.list_remove(parent, name);
        Ok(())
    }
}
