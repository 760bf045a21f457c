//! Where an upper keeps owner, mode and kind of its objects: in the objects themselves, or, where this process may not give them away or make devices, in
//! `user.containers.override_stat`.
//!
//! All that leaves the tree is what shows. What is on disk then belongs to this process and has a mode that it can work with, without setuid, setgid and sticky; a
//! device, and where need be a fifo or socket, is an empty regular file. Symlinks and real fifos and sockets cannot have the attribute: an owner that they cannot be given
//! is lost, and they show as this process's. (A file standing for a symlink would be text to everybody else, and whose it is decides nothing but who may remove
//! it from a sticky directory.)

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use plyfs_format::{ESCAPED_WHITEOUT_RDEV, OVERRIDE_STAT, OverrideKind, OverrideStat};
use plyfs_sys::at::{self, At, XattrMode};
use plyfs_sys::process::caps;
use plyfs_sys::stat::{self, Kind, Stat};
use plyfs_sys::{Errno, Result, create};

use crate::acl;

/// Where owner, mode and kind are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Keeping {
    /// In the objects.
    #[default]
    InObjects,
    /// In the attribute where the objects cannot have them: an owner that this process may not give, a device that it may not make.
    WhereRefused,
    /// In the attribute, whatever this process may.
    Always,
    /// Where the place has no attributes: an owner that this process may not give is lost, and the object stays its own.
    Lost,
}

impl Keeping {
    /// Gives a directory an owner and a mode, for the root of an upper that is being made.
    ///
    /// Errors: the host's.
    pub fn dress_dir(self, dir: BorrowedFd<'_>, uid: u32, gid: u32, mode: u32) -> Result<()> {
        let keeper = Keeper::new(self);
        keeper.set_owner(At::Fd(dir), Kind::Dir, Some(uid), Some(gid))?;
        keeper.set_mode(At::Fd(dir), Kind::Dir, mode)?;
        keeper.declare(At::Fd(dir))
    }

    /// Whether the layer with this root directory keeps owners in attributes: its root has one.
    ///
    /// Errors: the host's.
    pub fn is_declared(dir: BorrowedFd<'_>) -> Result<bool> {
        match at::get_xattr(At::Fd(dir), OVERRIDE_STAT) {
            Ok(_) => Ok(true),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
            Err(errno) => Err(errno),
        }
    }
}

/// What is done with the attribute of one tree.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Keeper {
    keeping: Keeping,
    /// This process may use its own files whatever their mode.
    any_mode: bool,
}

const SETID: u32 = 0o6000;
const GROUP_EXECUTE: u32 = 0o010;

impl Keeper {
    pub(super) fn new(keeping: Keeping) -> Self {
        // What is not known is not had.
        let any_mode = caps::effective().is_ok_and(|set| set & caps::Set::DAC_OVERRIDE.bits() != 0);
        Self { keeping, any_mode }
    }

    pub(super) fn is_on(self) -> bool {
        !matches!(self.keeping, Keeping::InObjects | Keeping::Lost)
    }

    fn may_have(self, kind: Kind) -> bool {
        self.is_on() && matches!(kind, Kind::File | Kind::Dir)
    }

    fn read(self, at: At<'_>, kind: Kind) -> Result<Option<OverrideStat>> {
        if !self.may_have(kind) {
            return Ok(None);
        }
        match at::get_xattr(at, OVERRIDE_STAT) {
            Ok(value) => match OverrideStat::parse(&value) {
                Some(shown) => Ok(Some(shown)),
                None => {
                    tracing::error!(value = %value.escape_ascii(), "{} is not uid:gid:mode", OVERRIDE_STAT.escape_ascii());
                    Err(Errno::IO)
                }
            },
            Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Says at a layer's root that objects in it may have the attribute: whoever reads the layer later must know, whatever he may do himself.
    pub(super) fn declare(self, root: At<'_>) -> Result<()> {
        if !self.is_on() || self.read(root, Kind::Dir)?.is_some() {
            return Ok(());
        }
        let own = at::stat(root)?;
        self.write(root, Self::of(Kind::Dir, &own))
    }

    fn write(self, at: At<'_>, shown: OverrideStat) -> Result<()> {
        at::set_xattr(at, OVERRIDE_STAT, &shown.encode(), XattrMode::Any)
    }

    /// What an object shows whose own metadata are these.
    pub(super) fn shown(self, at: At<'_>, own: Stat) -> Result<Stat> {
        let Some(shown) = self.read(at, own.kind)? else { return Ok(own) };
        let (kind, rdev) = match (shown.kind, own.kind) {
            (None, kind) => (kind, own.rdev),
            (Some(OverrideKind::File), Kind::File) | (Some(OverrideKind::Dir), Kind::Dir) => (own.kind, own.rdev),
            (Some(OverrideKind::Fifo), Kind::File) => (Kind::Fifo, 0),
            (Some(OverrideKind::Socket), Kind::File) => (Kind::Socket, 0),
            (Some(OverrideKind::Block(major, minor)), Kind::File) => (Kind::Block, stat::makedev(major, minor)),
            // A whiteout is a device on disk, and nothing that stands for one.
            (Some(OverrideKind::Char(0, 0)), Kind::File) => (Kind::Char, ESCAPED_WHITEOUT_RDEV),
            (Some(OverrideKind::Char(major, minor)), Kind::File) => (Kind::Char, stat::makedev(major, minor)),
            (Some(kind), _) => {
                tracing::error!(?kind, own = ?own.kind, "an overriding kind that the object cannot have");
                return Err(Errno::IO);
            }
        };
        Ok(Stat { uid: shown.uid, gid: shown.gid, mode: shown.mode, kind, rdev, ..own })
    }

    /// The attribute of what shows so now.
    fn of(own: Kind, stat: &Stat) -> OverrideStat {
        let device = || (stat::major(stat.rdev), stat::minor(stat.rdev));
        let kind = match (stat.kind, own) {
            (Kind::Dir, _) => OverrideKind::Dir,
            (Kind::Fifo, _) => OverrideKind::Fifo,
            (Kind::Socket, _) => OverrideKind::Socket,
            (Kind::Block, _) => OverrideKind::Block(device().0, device().1),
            (Kind::Char, _) => OverrideKind::Char(device().0, device().1),
            (Kind::File | Kind::Symlink, _) => OverrideKind::File,
        };
        OverrideStat { uid: stat.uid, gid: stat.gid, mode: stat.mode & 0o7777, kind: Some(kind) }
    }

    /// The mode on disk of what shows another one.
    fn working(self, mode: u32, kind: Kind) -> u32 {
        let needed = match kind {
            _ if self.any_mode => 0,
            Kind::Dir => 0o700,
            _ => 0o600,
        };
        mode & 0o777 | needed
    }

    /// chown(2), with what it takes away from files that are run.
    pub(super) fn set_owner(self, at: At<'_>, own: Kind, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
        if !self.is_on() {
            return match at::chown(at, uid, gid) {
                Err(Errno::PERM | Errno::INVAL) if self.keeping == Keeping::Lost => {
                    tracing::debug!(?uid, ?gid, "an owner is lost: this place has no attributes");
                    Ok(())
                }
                other => other,
            };
        }
        let kept = self.read(at, own)?;
        if kept.is_none() && (self.keeping == Keeping::WhereRefused || !self.may_have(own)) {
            match at::chown(at, uid, gid) {
                Err(Errno::PERM | Errno::INVAL) if !self.may_have(own) => {
                    tracing::debug!(?uid, ?gid, ?own, "an owner is lost: this kind of object cannot keep one that it cannot be given");
                    return Ok(());
                }
                Err(Errno::PERM | Errno::INVAL) => {}
                other => return other,
            }
        }
        let before = self.shown(at, at::stat(at)?)?;
        let mut mode = before.mode;
        if before.kind != Kind::Dir {
            mode &= !if mode & GROUP_EXECUTE != 0 { SETID } else { SETID & !0o2000 };
            match at::remove_xattr(at, crate::xattr::CAPABILITY) {
                Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
                Err(errno) => return Err(errno),
            }
        }
        let shown = Stat { uid: uid.unwrap_or(before.uid), gid: gid.unwrap_or(before.gid), mode, ..before };
        // Narrowed before anybody is said to own it.
        if kept.is_none() {
            at::chmod(at, self.working(mode, own))?;
        }
        self.write(at, Self::of(own, &shown))
    }

    /// chmod(2).
    pub(super) fn set_mode(self, at: At<'_>, own: Kind, mode: u32) -> Result<()> {
        let kept = self.read(at, own)?;
        // With which this process, without rights over its own files, could not work.
        let too_narrow = self.may_have(own) && self.working(mode, own) & !mode != 0;
        if kept.is_none() && !too_narrow && (self.keeping != Keeping::Always || !self.may_have(own)) {
            return at::chmod(at, mode);
        }
        let shown = match kept {
            Some(kept) => OverrideStat { mode, ..kept },
            None => Self::of(own, &Stat { mode, ..at::stat(at)? }),
        };
        at::chmod(at, self.working(mode, own))?;
        self.write(at, shown)
    }

    /// An access ACL came to an object: its mode is what the ACL says.
    pub(super) fn follow_acl(self, at: At<'_>, own: Kind, attribute: &[u8]) -> Result<()> {
        if attribute != acl::ACCESS {
            return Ok(());
        }
        let Some(kept) = self.read(at, own)? else { return Ok(()) };
        let mode = kept.mode & !0o777 | at::stat(at)?.mode & 0o777;
        self.write(at, OverrideStat { mode, ..kept })
    }

    /// mknod(2), or a file that stands for what cannot be made.
    pub(super) fn mknod(self, dir: BorrowedFd<'_>, name: &[u8], kind: Kind, mode: u32, rdev: u64) -> Result<()> {
        if self.keeping != Keeping::Always || kind == Kind::File {
            match create::mknod(dir, name, kind, mode, rdev) {
                Err(Errno::PERM) if self.is_on() => {}
                other => return other,
            }
        }
        let file: OwnedFd = create::create(dir, name, 0o600)?;
        let stood = at::stat(At::Fd(file.as_fd()))
            .and_then(|own| self.write(At::Fd(file.as_fd()), Self::of(Kind::File, &Stat { kind, rdev, mode, ..own })));
        // Nobody has seen it: it is in `work`.
        stood.inspect_err(|_| {
            if let Err(errno) = create::unlink(dir, name) {
                tracing::warn!(%errno, "litter stays in workdir");
            }
        })
    }
}
