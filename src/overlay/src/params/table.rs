//! The table of all options: of kernel overlayfs, of fuse-overlayfs, of libfuse and of mount(8), each with what it does. docs/OPTIONS.md tells users the same; a
//! test compares the two.

use plyfs_sys::mount::Propagation;

use super::{Atime, Builder, ParamError, Params};

/// What an option does.
pub(super) enum Rule {
    /// Has a value.
    Value(fn(&mut Builder, &[u8]) -> Result<(), ParamError>),
    /// Has no value.
    Flag(fn(&mut Params)),
    /// Has no value; what was said before matters.
    Said(fn(&mut Builder)),
    /// 0 or 1.
    Switch(fn(&mut Builder, bool)),
    /// `on` or `off`.
    OnOff(fn(&mut Params, bool)),
    /// These values ask for what plyfs does anyway, all others are refused for this reason.
    Only(&'static [&'static str], &'static str),
    /// Asks for what plyfs does anyway, or is meant for mount(8) itself.
    Nothing,
    /// How fast, not what: any value will do.
    Hint,
    /// Refused for this reason.
    Refused(&'static str),
}

/// Whose option it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    /// Of plyfs alone.
    Plyfs,
    /// Of kernel overlayfs, and perhaps of fuse-overlayfs, too.
    Overlayfs,
    /// Of fuse-overlayfs alone.
    FuseOverlayfs,
    /// Of libfuse.
    Libfuse,
    /// Of mount(8), for every filesystem.
    Mount,
}

use Rule::{Flag, Hint, Nothing, OnOff, Only, Refused, Said, Switch, Value};
#[cfg(test)]
impl Whose {
    /// As docs/OPTIONS.md says it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Plyfs => "plyfs",
            Self::Overlayfs => "overlayfs",
            Self::FuseOverlayfs => "fuse-overlayfs",
            Self::Libfuse => "libfuse",
            Self::Mount => "mount",
        }
    }
}

use Whose::{FuseOverlayfs, Libfuse, Mount, Overlayfs, Plyfs};

const LATER: &str = "not supported by this version; leave it out";
const CACHE: &str = "caching cannot be set so: what plyfs caches it also invalidates; leave it out, or say timeout=";
const SIZES: &str = "sizes and queue lengths are chosen at mount and cannot be set; leave it out";
const OWNER: &str = "owners of the whole mount are set by squash_to_uid= and squash_to_gid=; say those";
const ITSELF: &str = "it is set by plyfs itself; leave it out";

/// Option by option.
pub(super) static TABLE: &[(&str, Whose, Rule)] = &[
    ("lowerdir", Overlayfs, Value(Builder::lowerdir)),
    ("lowerdir+", Overlayfs, Value(Builder::lowerdir_add)),
    ("datadir+", Overlayfs, Value(Builder::datadir_add)),
    ("upperdir", Overlayfs, Value(|b, value| b.path("upperdir", value, |b| &mut b.upper))),
    ("workdir", Overlayfs, Value(|b, value| b.path("workdir", value, |b| &mut b.work))),
    ("metacopy", Overlayfs, OnOff(|p, on| p.metacopy = on)),
    ("volatile", Overlayfs, Flag(|p| p.volatile = true)),
    ("userxattr", Overlayfs, Flag(|p| p.user_xattr = true)),
    ("redirect_dir", Overlayfs, Value(Builder::redirect_dir)),
    (
        "index",
        Overlayfs,
        Only(&["on"], "a name of a lower hard link that is written to never parts from the others; say index=on or leave it out"),
    ),
    ("nfs_export", Overlayfs, Only(&["off"], "a FUSE mount of plyfs cannot be exported over NFS; say nfs_export=off or leave it out")),
    ("xino", Overlayfs, Value(Builder::xino)),
    ("verity", Overlayfs, Only(&["off"], "fs-verity digests are not checked by this version; say verity=off or leave it out")),
    (
        "uuid",
        Overlayfs,
        Only(
            &["null", "auto"],
            "a FUSE mount has no UUID, and file handles in marks name the filesystem that they are of; say uuid=null or leave it out",
        ),
    ),
    ("override_creds", Overlayfs, Nothing),
    ("nooverride_creds", Overlayfs, Refused("layers are always accessed with the rights of who mounts; leave it out")),
    // Of plyfs.
    ("lower", Plyfs, Value(Builder::lower)),
    ("whiteout", Plyfs, Value(Builder::whiteout)),
    ("kernel_compat", Plyfs, OnOff(|p, on| p.kernel_compat = on)),
    ("lenient", Plyfs, Flag(|p| p.lenient = true)),
    // fuse-overlayfs.
    ("xattr_permissions", FuseOverlayfs, Value(Builder::xattr_permissions)),
    ("uidmapping", FuseOverlayfs, Value(|b, value| b.mapping("uidmapping", value, |p| &mut p.owners.uids))),
    ("gidmapping", FuseOverlayfs, Value(|b, value| b.mapping("gidmapping", value, |p| &mut p.owners.gids))),
    ("squash_to_uid", FuseOverlayfs, Value(|b, value| b.squash("squash_to_uid", value, |p| &mut p.owners.uids))),
    ("squash_to_gid", FuseOverlayfs, Value(|b, value| b.squash("squash_to_gid", value, |p| &mut p.owners.gids))),
    ("squash_to_root", FuseOverlayfs, Said(|b| b.squash_to_root = true)),
    ("fsync", FuseOverlayfs, Switch(|b, on| b.fsync = Some(on))),
    ("sync", FuseOverlayfs, Switch(|b, on| b.fsync = Some(on))),
    ("threaded", FuseOverlayfs, Only(&["1"], "requests are always served by several threads; say threaded=1 or leave it out")),
    ("noxattrs", FuseOverlayfs, Only(&["0"], "extended attributes cannot be switched off; say noxattrs=0 or leave it out")),
    ("fast_ino", FuseOverlayfs, Hint),
    ("fast_ino_check", FuseOverlayfs, Hint),
    ("writeback", FuseOverlayfs, Hint),
    ("timeout", FuseOverlayfs, Value(|b, value| b.timeout("timeout", value, |t| [&mut t.entry, &mut t.negative, &mut t.attr].into()))),
    ("plugins", FuseOverlayfs, Refused(LATER)),
    ("static_nlink", FuseOverlayfs, Flag(|p| p.static_nlink = true)),
    ("noacl", FuseOverlayfs, Flag(|p| p.no_acls = true)),
    ("ino32_t", FuseOverlayfs, Refused(LATER)),
    // libfuse.
    ("fsname", Libfuse, Value(Builder::fsname)),
    ("debug", Libfuse, Flag(|p| p.debug = true)),
    ("subtype", Libfuse, Only(&["plyfs"], "the mount table shows fuse.plyfs; say subtype=plyfs or leave it out")),
    ("allow_other", Libfuse, Nothing),
    ("default_permissions", Libfuse, Nothing),
    ("nonempty", Libfuse, Nothing),
    ("use_ino", Libfuse, Nothing),
    ("readdir_ino", Libfuse, Nothing),
    ("big_writes", Libfuse, Nothing),
    ("kernel_cache", Libfuse, Nothing),
    ("splice_read", Libfuse, Nothing),
    ("splice_write", Libfuse, Nothing),
    ("splice_move", Libfuse, Nothing),
    ("no_splice_read", Libfuse, Nothing),
    ("no_splice_write", Libfuse, Nothing),
    ("no_splice_move", Libfuse, Nothing),
    ("allow_root", Libfuse, Refused("a mount made by root serves all users, as their permissions allow; leave it out")),
    ("auto_unmount", Libfuse, Refused("a mount whose server died is removed by 'plyfs umount'; leave it out")),
    ("auto_cache", Libfuse, Refused(CACHE)),
    ("direct_io", Libfuse, Refused(CACHE)),
    ("entry_timeout", Libfuse, Value(|b, value| b.timeout("entry_timeout", value, |t| [&mut t.entry].into()))),
    ("negative_timeout", Libfuse, Value(|b, value| b.timeout("negative_timeout", value, |t| [&mut t.negative].into()))),
    ("attr_timeout", Libfuse, Value(|b, value| b.timeout("attr_timeout", value, |t| [&mut t.attr].into()))),
    ("ac_attr_timeout", Libfuse, Refused(CACHE)),
    ("max_read", Libfuse, Refused(SIZES)),
    ("max_write", Libfuse, Refused(SIZES)),
    ("max_readahead", Libfuse, Refused(SIZES)),
    ("max_background", Libfuse, Refused(SIZES)),
    ("congestion_threshold", Libfuse, Refused(SIZES)),
    ("uid", Libfuse, Refused(OWNER)),
    ("gid", Libfuse, Refused(OWNER)),
    ("umask", Libfuse, Refused(LATER)),
    ("blkdev", Libfuse, Refused(LATER)),
    ("modules", Libfuse, Refused(LATER)),
    ("hard_remove", Libfuse, Refused(LATER)),
    ("intr", Libfuse, Refused(LATER)),
    ("noforget", Libfuse, Refused(LATER)),
    ("remember", Libfuse, Refused(LATER)),
    ("fd", Libfuse, Refused(ITSELF)),
    ("rootmode", Libfuse, Refused(ITSELF)),
    ("user_id", Libfuse, Refused(ITSELF)),
    ("group_id", Libfuse, Refused(ITSELF)),
    // mount(8), for every filesystem; of each pair the last one counts.
    ("ro", Mount, Flag(|p| p.read_only = true)),
    ("rw", Mount, Flag(|p| p.read_only = false)),
    ("dev", Mount, Said(|b| (b.params.dev, b.dev) = (true, true))),
    ("nodev", Mount, Said(|b| (b.params.dev, b.dev) = (false, false))),
    ("suid", Mount, Said(|b| (b.params.suid, b.suid) = (true, true))),
    ("nosuid", Mount, Said(|b| (b.params.suid, b.suid) = (false, false))),
    ("exec", Mount, Flag(|p| p.exec = true)),
    ("noexec", Mount, Flag(|p| p.exec = false)),
    ("noatime", Mount, Flag(|p| p.atime = Atime::Never)),
    ("strictatime", Mount, Flag(|p| p.atime = Atime::Strict)),
    ("atime", Mount, Flag(|p| p.atime = Atime::Relative)),
    ("relatime", Mount, Flag(|p| p.atime = Atime::Relative)),
    ("norelatime", Mount, Flag(|p| p.atime = Atime::Relative)),
    ("nostrictatime", Mount, Flag(|p| p.atime = Atime::Relative)),
    ("nodiratime", Mount, Flag(|p| p.no_dir_atime = true)),
    ("diratime", Mount, Flag(|p| p.no_dir_atime = false)),
    ("nosymfollow", Mount, Flag(|p| p.no_sym_follow = true)),
    ("symfollow", Mount, Flag(|p| p.no_sym_follow = false)),
    ("private", Mount, Flag(|p| p.propagation = Some(Propagation::Private))),
    ("rprivate", Mount, Flag(|p| p.propagation = Some(Propagation::Private))),
    ("slave", Mount, Flag(|p| p.propagation = Some(Propagation::Slave))),
    ("rslave", Mount, Flag(|p| p.propagation = Some(Propagation::Slave))),
    ("shared", Mount, Flag(|p| p.propagation = Some(Propagation::Shared))),
    ("rshared", Mount, Flag(|p| p.propagation = Some(Propagation::Shared))),
    ("unbindable", Mount, Flag(|p| p.propagation = Some(Propagation::Unbindable))),
    ("runbindable", Mount, Flag(|p| p.propagation = Some(Propagation::Unbindable))),
    ("defaults", Mount, Said(Builder::defaults)),
    ("user", Mount, Said(|b| b.of_a_user(false))),
    ("users", Mount, Said(|b| b.of_a_user(false))),
    ("owner", Mount, Said(|b| b.of_a_user(true))),
    ("group", Mount, Said(|b| b.of_a_user(true))),
    ("async", Mount, Nothing),
    ("nolazytime", Mount, Nothing),
    ("noiversion", Mount, Nothing),
    ("nomand", Mount, Nothing),
    ("silent", Mount, Nothing),
    ("loud", Mount, Nothing),
    ("auto", Mount, Nothing),
    ("noauto", Mount, Nothing),
    ("nouser", Mount, Nothing),
    ("_netdev", Mount, Nothing),
    ("nofail", Mount, Nothing),
    ("comment", Mount, Hint),
    ("lazytime", Mount, Refused(LATER)),
    ("iversion", Mount, Refused(LATER)),
    ("mand", Mount, Refused(LATER)),
    ("dirsync", Mount, Refused(LATER)),
    ("remount", Mount, Refused("a mount cannot be changed while it is there; unmount it and mount it again")),
    // Security modules.
    ("context", Mount, Value(|b, value| b.context("context", value))),
    ("fscontext", Mount, Value(|b, value| b.context("fscontext", value))),
    ("defcontext", Mount, Value(|b, value| b.context("defcontext", value))),
    ("rootcontext", Mount, Value(|b, value| b.context("rootcontext", value))),
];

/// What an option does; `None` for an unknown one.
pub(super) fn rule(name: &[u8]) -> Option<&'static Rule> {
    // Of programs in user space, for themselves: any value will do.
    if name.starts_with(b"x-") || name.starts_with(b"X-") {
        return Some(&Hint);
    }
    TABLE.iter().find(|(known, ..)| known.as_bytes() == name).map(|(.., rule)| rule)
}
