//! Mount options: text to [`Params`] and back.
//!
//! The grammar is that of mount(8) for kernel overlayfs and of fuse-overlayfs: options are separated by commas, empty ones are passed over, of
//! contradictory generic ones (`ro,rw`) the last counts. In values a backslash takes the meaning from the byte after it, so `\,` `\:` and `\\`
//! stand in paths. Paths are bytes, not text. `@FILE` stands for the options in a file, where line breaks separate them, too, and lines that begin with `#`
//! are passed over: two thousand layers are more than a command line takes.
//!
//! Every option of those two and of libfuse is in one table ([`rule`]): it is obeyed, or accepted because it asks for what plyfs does anyway, or
//! refused by its name. Nothing is ignored silently. Nothing is opened here; what a path leads to is checked where layers are opened.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// When a read changes the access time of a file (the mount's flag; the union's own times are those of its layers).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Atime {
    /// Now and then (`relatime`, the kernel's default).
    #[default]
    Relative,
    /// Never (`noatime`).
    Never,
    /// At each read (`strictatime`).
    Strict,
}

/// The writable layer and the directory beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Writable {
    /// `upperdir`.
    pub upper: PathBuf,
    /// `workdir`.
    pub work: PathBuf,
}

/// The options of a mount, checked against each other. Paths are as they were given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Params {
    /// `lowerdir`, topmost first; never empty.
    pub lowers: Vec<PathBuf>,
    /// `datadir+`, and in `lowerdir` what follows a `::`: layers that hold nothing but the data of metacopy files, topmost first.
    pub data: Vec<PathBuf>,
    /// `upperdir` and `workdir`; without them the union is read-only.
    pub writable: Option<Writable>,
    /// `lower=live`: others change the lowers while they are mounted.
    pub live_lowers: bool,
    /// `metacopy=on`: a change of a file's metadata copies no data up.
    pub metacopy: bool,
    /// `userxattr`: marks are in attributes of users, those of kernel overlayfs and of fuse-overlayfs.
    pub user_xattr: bool,
    /// `whiteout=aufs`: whiteouts of the lowers are file names, beside those of the other forms.
    pub aufs_lowers: bool,
    /// `xattr_permissions=2`: owner, mode and kind in the lowers are those of `user.containers.override_stat`. Only without an upper.
    pub override_stat: bool,
    /// `lenient`: what bears a mark that cannot be honoured is shown without it, read-only.
    pub lenient: bool,
    /// `volatile` or `fsync=0`: nothing waits for the disk.
    pub volatile: bool,
    /// `ro`.
    pub read_only: bool,
    /// Not `nodev`.
    pub dev: bool,
    /// Not `nosuid`.
    pub suid: bool,
    /// Not `noexec`.
    pub exec: bool,
    /// `noatime`, `relatime` or `strictatime`.
    pub atime: Atime,
    /// `nodiratime`.
    pub no_dir_atime: bool,
    /// `fsname`: what the mount table shows as the source.
    pub fsname: Option<OsString>,
    /// `debug`: say what happens, and stay in front.
    pub debug: bool,
}

/// Why options are refused. The text names the option and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParamError {
    /// No such option.
    #[error("option {0}: unknown; see 'plyfs mount --help' for those there are")]
    Unknown(String),
    /// Known, but not something that plyfs does.
    #[error("option {option}: {why}")]
    Refused {
        /// As it was given.
        option: String,
        /// Why, and the remedy.
        why: &'static str,
    },
    /// Known, with a value that it cannot have.
    #[error("option {option}: the value must be {expected}; correct it or leave the option out")]
    Value {
        /// As it was given.
        option: String,
        /// What may stand there.
        expected: String,
    },
    /// Needs a value.
    #[error("option {0}: it needs a value; give it as {0}=...")]
    Missing(String),
    /// Takes no value.
    #[error("option {0}: it takes no value; leave out the = and what follows")]
    Unexpected(String),
    /// Given twice, or in two forms.
    #[error("option {0}: given more than once; give it once")]
    Repeated(&'static str),
    /// Two options exclude each other, or one lacks the other.
    #[error("option {option}: {why}")]
    Contradiction {
        /// The one that cannot stay.
        option: &'static str,
        /// Why, and the remedy.
        why: &'static str,
    },
    /// A file of options that cannot be read.
    #[error("option @{}: {error}; correct the path, which must be that of a readable file", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What reading it came to.
        error: String,
    },
    /// One directory in two places.
    #[error("option {option}: {} is named twice; layers, upperdir and workdir must be different directories", path.display())]
    SamePath {
        /// The second place.
        option: &'static str,
        /// The directory.
        path: PathBuf,
    },
}

/// What an option does.
enum Rule {
    /// `lowerdir`, `lowerdir+`, `upperdir`, `workdir`, `fsname`, `lower`: has a value.
    Value(fn(&mut Builder, &[u8]) -> Result<(), ParamError>),
    /// Has no value.
    Flag(fn(&mut Params)),
    /// 0 or 1.
    Switch(fn(&mut Params, bool)),
    /// These values ask for what plyfs does anyway, all others are refused for this reason.
    Only(&'static [&'static str], &'static str),
    /// Asks for what plyfs does anyway, or is meant for mount(8) itself.
    Nothing,
    /// How fast, not what: any value will do.
    Hint,
    /// Refused for this reason.
    Refused(&'static str),
}

const LATER: &str = "not supported by this version; leave it out";
const IDS: &str = "mapping of owners is not supported by this version; leave it out, or give the layers the owners that they are to show";
const CACHE: &str = "caching cannot be set: what plyfs caches it also invalidates; leave it out";
const SIZES: &str = "sizes and queue lengths are chosen at mount and cannot be set; leave it out";

/// The table: option by option what it does; `None` for an unknown one.
fn rule(name: &[u8]) -> Option<Rule> {
    use Rule::{Flag, Hint, Nothing, Only, Refused, Switch, Value};
    Some(match name {
        b"lowerdir" => Value(Builder::lowerdir),
        b"lowerdir+" => Value(Builder::lowerdir_add),
        b"datadir+" => Value(Builder::datadir_add),
        b"upperdir" => Value(|b, value| b.path("upperdir", value, |b| &mut b.upper)),
        b"workdir" => Value(|b, value| b.path("workdir", value, |b| &mut b.work)),
        b"fsname" => Value(Builder::fsname),
        b"lower" => Value(Builder::lower),
        b"metacopy" => Value(Builder::metacopy),
        b"volatile" => Flag(|p| p.volatile = true),
        b"lenient" => Flag(|p| p.lenient = true),
        b"userxattr" => Flag(|p| p.user_xattr = true),
        b"whiteout" => Value(Builder::whiteout),
        b"xattr_permissions" => Value(Builder::xattr_permissions),
        b"debug" => Flag(|p| p.debug = true),

        // mount(8), for every filesystem; of each pair the last one counts.
        b"ro" => Flag(|p| p.read_only = true),
        b"rw" => Flag(|p| p.read_only = false),
        b"dev" => Flag(|p| p.dev = true),
        b"nodev" => Flag(|p| p.dev = false),
        b"suid" => Flag(|p| p.suid = true),
        b"nosuid" => Flag(|p| p.suid = false),
        b"exec" => Flag(|p| p.exec = true),
        b"noexec" => Flag(|p| p.exec = false),
        b"noatime" => Flag(|p| p.atime = Atime::Never),
        b"strictatime" => Flag(|p| p.atime = Atime::Strict),
        b"atime" | b"relatime" | b"norelatime" | b"nostrictatime" => Flag(|p| p.atime = Atime::Relative),
        b"nodiratime" => Flag(|p| p.no_dir_atime = true),
        b"diratime" => Flag(|p| p.no_dir_atime = false),
        b"defaults" => Flag(Params::defaults),
        b"user" | b"users" => Flag(|p| (p.exec, p.suid, p.dev) = (false, false, false)),
        b"owner" | b"group" => Flag(|p| (p.suid, p.dev) = (false, false)),
        b"async" | b"nolazytime" | b"noiversion" | b"nomand" | b"silent" | b"loud" => Nothing,
        b"auto" | b"noauto" | b"nouser" | b"_netdev" | b"nofail" => Nothing,
        b"comment" => Hint,
        _ if name.starts_with(b"x-") || name.starts_with(b"X-") => Hint,
        b"lazytime" | b"iversion" | b"mand" | b"dirsync" => Refused(LATER),
        b"remount" => Refused("a mount cannot be changed while it is there; unmount it and mount it again"),

        // Kernel overlayfs.
        b"redirect_dir" => Only(&["on"], "directories are always renamed by redirect; say redirect_dir=on or leave it out"),
        b"index" => Only(&["on"], "hard links are always kept together; say index=on or leave it out"),
        b"nfs_export" => Only(&["off"], "a FUSE mount of plyfs cannot be exported over NFS; say nfs_export=off or leave it out"),
        b"xino" => Only(&["on", "auto"], "inode numbers are always unique; say xino=on, xino=auto or leave it out"),
        b"verity" => Only(&["off"], "fs-verity digests are not checked by this version; say verity=off or leave it out"),
        b"override_creds" => Nothing,
        b"nooverride_creds" => Refused("layers are always accessed with the rights of who mounts; leave it out"),
        b"uuid" => Refused(LATER),

        // fuse-overlayfs.
        b"fsync" | b"sync" => Switch(|p, on| p.volatile = !on),
        b"threaded" => Only(&["1"], "requests are always served by several threads; say threaded=1 or leave it out"),
        b"noxattrs" => Only(&["0"], "extended attributes cannot be switched off; say noxattrs=0 or leave it out"),
        b"fast_ino" | b"fast_ino_check" | b"writeback" => Hint,
        b"uidmapping" | b"gidmapping" | b"squash_to_uid" | b"squash_to_gid" | b"squash_to_root" => Refused(IDS),
        b"timeout" => Refused(CACHE),
        b"plugins" | b"static_nlink" | b"noacl" | b"ino32_t" => Refused(LATER),

        // libfuse.
        b"allow_other" | b"default_permissions" | b"nonempty" | b"use_ino" | b"readdir_ino" | b"big_writes" | b"kernel_cache" => Nothing,
        b"splice_read" | b"splice_write" | b"splice_move" | b"no_splice_read" | b"no_splice_write" | b"no_splice_move" => Nothing,
        b"subtype" => Only(&["plyfs"], "the mount table shows fuse.plyfs; say subtype=plyfs or leave it out"),
        b"allow_root" => Refused("a mount made by root serves all users, as their permissions allow; leave it out"),
        b"auto_unmount" => Refused("a mount whose server died is removed by 'plyfs umount'; leave it out"),
        b"auto_cache" | b"direct_io" | b"entry_timeout" | b"negative_timeout" | b"attr_timeout" | b"ac_attr_timeout" => Refused(CACHE),
        b"max_read" | b"max_write" | b"max_readahead" | b"max_background" | b"congestion_threshold" => Refused(SIZES),
        b"uid" | b"gid" | b"umask" => Refused(IDS),
        b"blkdev" | b"modules" | b"hard_remove" | b"intr" | b"noforget" | b"remember" => Refused(LATER),
        b"fd" | b"rootmode" | b"user_id" | b"group_id" => Refused("it is set by plyfs itself; leave it out"),

        // Security modules.
        b"context" | b"fscontext" | b"defcontext" | b"rootcontext" => {
            Refused("a security context for the whole mount is not supported by this version; leave it out and label the layers")
        }
        _ => return None,
    })
}

/// Options as they come in.
struct Builder {
    params: Params,
    /// `lowerdir` was given.
    listed: bool,
    upper: Option<PathBuf>,
    work: Option<PathBuf>,
}

impl Params {
    /// Reads options, several strings one after the other as if a comma were between them.
    ///
    /// Errors: [`ParamError`], for the first option that is wrong, then for what contradicts or lacks another.
    pub fn parse<S: AsRef<OsStr>>(options: impl IntoIterator<Item = S>) -> Result<Self, ParamError> {
        Self::parse_with(options, |_| Err(std::io::Error::other("files of options are read on the command line only")))
    }

    /// As [`Params::parse`], with a way to read the files that `@FILE` names.
    ///
    /// Errors: also those of reading.
    pub fn parse_with<S: AsRef<OsStr>>(
        options: impl IntoIterator<Item = S>,
        mut read: impl FnMut(&Path) -> std::io::Result<Vec<u8>>,
    ) -> Result<Self, ParamError> {
        let mut builder = Builder { params: Self::over(Vec::new()), listed: false, upper: None, work: None };
        for list in options {
            for option in split(list.as_ref().as_bytes()) {
                let Some(file) = option.strip_prefix(b"@") else {
                    builder.take(option)?;
                    continue;
                };
                let path = path_of(file);
                let text = read(&path).map_err(|error| ParamError::File { path: path.clone(), error: error.to_string() })?;
                let lines = split_at(&text, b'\n').into_iter().filter(|line| !line.starts_with(b"#"));
                lines.flat_map(split).try_for_each(|option| builder.take(option))?;
            }
        }
        builder.finish()
    }

    /// Reads options that say how layers are to be read, `userxattr` and `whiteout`, for layers that are named elsewhere: there are none in the result.
    ///
    /// Errors: [`ParamError`]; every other option is refused by its name.
    pub fn dialect<S: AsRef<OsStr>>(options: impl IntoIterator<Item = S>) -> Result<Self, ParamError> {
        let mut builder = Builder { params: Self::over(Vec::new()), listed: false, upper: None, work: None };
        for list in options {
            for option in split(list.as_ref().as_bytes()) {
                let name = option.split(|&byte| byte == b'=').next().unwrap_or_default();
                let why = match name {
                    b"userxattr" | b"whiteout" => {
                        builder.take(option)?;
                        continue;
                    }
                    b"lowerdir" | b"lowerdir+" | b"datadir+" | b"upperdir" | b"workdir" => {
                        "layers are not named so here; say --upper, --lower and --workdir"
                    }
                    _ if rule(name).is_some() || name.starts_with(b"@") => {
                        "only userxattr and whiteout say how layers are compared; leave it out"
                    }
                    _ => return Err(ParamError::Unknown(String::from_utf8_lossy(option).into_owned())),
                };
                return Err(ParamError::Refused { option: String::from_utf8_lossy(option).into_owned(), why });
            }
        }
        Ok(builder.params)
    }

    /// A read-only union of these lowers, topmost first, with every other option at its default.
    pub fn over(lowers: Vec<PathBuf>) -> Self {
        Self {
            lowers,
            data: Vec::new(),
            writable: None,
            live_lowers: false,
            metacopy: false,
            user_xattr: false,
            aufs_lowers: false,
            override_stat: false,
            lenient: false,
            volatile: false,
            read_only: false,
            dev: true,
            suid: true,
            exec: true,
            atime: Atime::Relative,
            no_dir_atime: false,
            fsname: None,
            debug: false,
        }
    }

    /// `defaults` of mount(8): rw, suid, dev, exec.
    fn defaults(&mut self) {
        (self.read_only, self.suid, self.dev, self.exec) = (false, true, true, true);
    }

    /// Every path of the options with the option that it is of: lowers topmost first, data-only layers, then upperdir and workdir.
    pub fn paths(&self) -> impl Iterator<Item = (&'static str, &PathBuf)> {
        let writable = self.writable.iter().flat_map(|w| [("upperdir", &w.upper), ("workdir", &w.work)]);
        let data = self.data.iter().map(|data| ("datadir", data));
        self.lowers.iter().map(|lower| ("lowerdir", lower)).chain(data).chain(writable)
    }

    /// As [`Params::paths`], to be changed.
    pub fn paths_mut(&mut self) -> impl Iterator<Item = (&'static str, &mut PathBuf)> {
        let writable = self.writable.iter_mut().flat_map(|w| [("upperdir", &mut w.upper), ("workdir", &mut w.work)]);
        let data = self.data.iter_mut().map(|data| ("datadir", data));
        self.lowers.iter_mut().map(|lower| ("lowerdir", lower)).chain(data).chain(writable)
    }

    /// Whether nothing can be written: asked for, or for lack of an upper.
    pub fn is_read_only(&self) -> bool {
        self.read_only || self.writable.is_none()
    }

    /// The options as text in bytes, which [`Params::parse`] reads as the same options.
    pub fn to_os_string(&self) -> OsString {
        let mut out = Vec::new();
        for (index, lower) in self.lowers.iter().enumerate() {
            out.extend_from_slice(if index == 0 { b"lowerdir=" } else { b":" });
            escape(lower.as_os_str(), b",:\\", &mut out);
        }
        for data in &self.data {
            out.extend_from_slice(b"::");
            escape(data.as_os_str(), b",:\\", &mut out);
        }
        let mut option = |name: &str, value: Option<&OsStr>| {
            if !out.is_empty() {
                out.push(b',');
            }
            out.extend_from_slice(name.as_bytes());
            if let Some(value) = value {
                out.push(b'=');
                escape(value, b",\\", &mut out);
            }
        };
        if let Some(Writable { upper, work }) = &self.writable {
            option("upperdir", Some(upper.as_os_str()));
            option("workdir", Some(work.as_os_str()));
        }
        let flags = [
            (self.live_lowers, "lower=live"),
            (self.metacopy, "metacopy=on"),
            (self.user_xattr, "userxattr"),
            (self.aufs_lowers, "whiteout=aufs"),
            (self.override_stat, "xattr_permissions=2"),
            (self.lenient, "lenient"),
            (self.volatile, "volatile"),
            (self.read_only, "ro"),
            (!self.dev, "nodev"),
            (!self.suid, "nosuid"),
            (!self.exec, "noexec"),
            (self.atime == Atime::Never, "noatime"),
            (self.atime == Atime::Strict, "strictatime"),
            (self.no_dir_atime, "nodiratime"),
            (self.debug, "debug"),
        ];
        for (_, name) in flags.into_iter().filter(|(set, _)| *set) {
            option(name, None);
        }
        if let Some(name) = &self.fsname {
            option("fsname", Some(name));
        }
        OsString::from_vec(out)
    }
}

/// As [`Params::to_os_string`]; what is not UTF-8 in a path shows as U+FFFD, so only text comes back unchanged.
impl fmt::Display for Params {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_os_string().to_string_lossy())
    }
}

impl FromStr for Params {
    type Err = ParamError;

    fn from_str(options: &str) -> Result<Self, ParamError> {
        Self::parse([options])
    }
}

impl Builder {
    fn take(&mut self, option: &[u8]) -> Result<(), ParamError> {
        let shown = || String::from_utf8_lossy(option).into_owned();
        let (name, value) = match option.iter().position(|&byte| byte == b'=') {
            Some(at) => (option.get(..at).unwrap_or_default(), option.get(at + 1..)),
            None => (option, None),
        };
        let lone = || String::from_utf8_lossy(name).into_owned();
        match (rule(name), value) {
            (None, _) => Err(ParamError::Unknown(shown())),
            // mount(8) passes `sync` for every filesystem, fuse-overlayfs has `sync=0`.
            (Some(Rule::Switch(_)), None) if name == b"sync" => {
                Err(ParamError::Refused { option: shown(), why: "writing through at each step is not supported; leave it out" })
            }
            (Some(Rule::Value(_) | Rule::Switch(_) | Rule::Only(..)), None) => Err(ParamError::Missing(lone())),
            (Some(Rule::Value(apply)), Some(value)) => apply(self, value),
            (Some(Rule::Switch(apply)), Some(value)) => {
                let on = match value {
                    b"0" => false,
                    b"1" => true,
                    _ => return Err(ParamError::Value { option: shown(), expected: "0 or 1".to_owned() }),
                };
                apply(&mut self.params, on);
                Ok(())
            }
            (Some(Rule::Only(values, why)), Some(value)) => {
                if values.iter().any(|same| same.as_bytes() == value) {
                    Ok(())
                } else {
                    Err(ParamError::Refused { option: shown(), why })
                }
            }
            (Some(Rule::Flag(_) | Rule::Nothing), Some(_)) => Err(ParamError::Unexpected(shown())),
            (Some(Rule::Flag(apply)), None) => {
                apply(&mut self.params);
                Ok(())
            }
            (Some(Rule::Nothing | Rule::Hint), _) => Ok(()),
            (Some(Rule::Refused(why)), _) => Err(ParamError::Refused { option: shown(), why }),
        }
    }

    fn lowerdir(&mut self, value: &[u8]) -> Result<(), ParamError> {
        if self.listed || !self.params.lowers.is_empty() {
            return Err(ParamError::Repeated("lowerdir"));
        }
        self.listed = true;
        Lowers { merged: self.params.lowers, data: self.params.data } = path_list("lowerdir", value)?;
        Ok(())
    }

    fn lowerdir_add(&mut self, value: &[u8]) -> Result<(), ParamError> {
        if !self.params.data.is_empty() && !self.listed {
            let why = "it stands after datadir+; data-only layers come below all others";
            return Err(ParamError::Contradiction { option: "lowerdir+", why });
        }
        self.add_layer("lowerdir+", value, |params| &mut params.lowers)
    }

    fn datadir_add(&mut self, value: &[u8]) -> Result<(), ParamError> {
        self.add_layer("datadir+", value, |params| &mut params.data)
    }

    fn add_layer(&mut self, option: &'static str, value: &[u8], list: fn(&mut Params) -> &mut Vec<PathBuf>) -> Result<(), ParamError> {
        if self.listed {
            let why = "it cannot be combined with lowerdir; give all layers in one form";
            return Err(ParamError::Contradiction { option, why });
        }
        if value.is_empty() {
            return Err(ParamError::Missing(option.to_owned()));
        }
        let path = path_of(value);
        if self.params.lowers.contains(&path) || self.params.data.contains(&path) {
            return Err(ParamError::SamePath { option, path });
        }
        list(&mut self.params).push(path);
        Ok(())
    }

    fn path(&mut self, name: &'static str, value: &[u8], place: fn(&mut Self) -> &mut Option<PathBuf>) -> Result<(), ParamError> {
        if value.is_empty() {
            return Err(ParamError::Missing(name.to_owned()));
        }
        match place(self) {
            Some(_) => Err(ParamError::Repeated(name)),
            empty => {
                *empty = Some(path_of(value));
                Ok(())
            }
        }
    }

    fn fsname(&mut self, value: &[u8]) -> Result<(), ParamError> {
        if value.is_empty() {
            return Err(ParamError::Missing("fsname".to_owned()));
        }
        self.params.fsname = Some(OsString::from_vec(unescape(value)));
        Ok(())
    }

    fn metacopy(&mut self, value: &[u8]) -> Result<(), ParamError> {
        self.params.metacopy = match value {
            b"on" => true,
            b"off" => false,
            _ => {
                let option = format!("metacopy={}", String::from_utf8_lossy(value));
                return Err(ParamError::Value { option, expected: "on or off".to_owned() });
            }
        };
        Ok(())
    }

    fn lower(&mut self, value: &[u8]) -> Result<(), ParamError> {
        if value != b"live" {
            let option = format!("lower={}", String::from_utf8_lossy(value));
            return Err(ParamError::Value { option, expected: "live".to_owned() });
        }
        self.params.live_lowers = true;
        Ok(())
    }

    /// `auto` is what plyfs knows of a layer, never what its content looks like: a user may have made files of such names. So far it knows of none.
    fn whiteout(&mut self, value: &[u8]) -> Result<(), ParamError> {
        self.params.aufs_lowers = match value {
            b"aufs" => true,
            b"auto" | b"overlay" => false,
            _ => {
                let option = format!("whiteout={}", String::from_utf8_lossy(value));
                return Err(ParamError::Value { option, expected: "auto, overlay or aufs".to_owned() });
            }
        };
        Ok(())
    }

    fn xattr_permissions(&mut self, value: &[u8]) -> Result<(), ParamError> {
        self.params.override_stat = match value {
            b"0" => false,
            b"2" => true,
            b"1" => {
                let why = "only user.containers.override_stat is read, not the attribute of fuse-overlayfs as root; say 0 or 2";
                return Err(ParamError::Refused { option: "xattr_permissions=1".to_owned(), why });
            }
            _ => {
                let option = format!("xattr_permissions={}", String::from_utf8_lossy(value));
                return Err(ParamError::Value { option, expected: "0 or 2".to_owned() });
            }
        };
        Ok(())
    }

    fn finish(self) -> Result<Params, ParamError> {
        let mut params = self.params;
        let contradiction = |option, why| Err(ParamError::Contradiction { option, why });
        if params.metacopy && params.user_xattr {
            return contradiction("metacopy", "not with userxattr, where every user can set the mark; leave one of them out");
        }
        if params.override_stat && !params.user_xattr && !params.aufs_lowers {
            return contradiction(
                "xattr_permissions",
                "only layers of other tools keep owners so; say userxattr or whiteout=aufs, too, or leave it out",
            );
        }
        if params.lowers.is_empty() {
            return contradiction("lowerdir", "not given; name at least one directory to show, as lowerdir=DIR");
        }
        params.writable = match (self.upper, self.work) {
            (None, None) => None,
            (Some(upper), Some(work)) => Some(Writable { upper, work }),
            (Some(_), None) => {
                return contradiction("upperdir", "given without workdir; add workdir=DIR, an empty directory on the same filesystem");
            }
            (None, Some(_)) => {
                return contradiction("workdir", "given without upperdir; add upperdir=DIR, or leave workdir out for a read-only mount");
            }
        };
        if params.override_stat && params.writable.is_some() {
            let why = "not with upperdir, where a copy would have the owner and mode that every owner of a lower file can forge; \
                       leave out upperdir and workdir, which mounts read-only, or leave it out";
            return contradiction("xattr_permissions", why);
        }
        if params.metacopy && params.live_lowers {
            return contradiction("metacopy", "with lower=live the data of a file would change below its size; leave one of them out");
        }
        if let Some(Writable { upper, work }) = &params.writable {
            if upper == work {
                return Err(ParamError::SamePath { option: "workdir", path: work.clone() });
            }
            for (option, path) in [("upperdir", upper), ("workdir", work)] {
                if params.lowers.contains(path) || params.data.contains(path) {
                    return Err(ParamError::SamePath { option, path: path.clone() });
                }
            }
        }
        Ok(params)
    }
}

/// The lower layers of a list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Lowers {
    /// Those that merge, topmost first.
    pub merged: Vec<PathBuf>,
    /// Those that hold only data, topmost first.
    pub data: Vec<PathBuf>,
}

impl Lowers {
    /// All of them, topmost first.
    pub fn all(&self) -> impl Iterator<Item = &PathBuf> {
        self.merged.iter().chain(&self.data)
    }
}

/// Reads a list of directories, topmost first, as `lowerdir` has it: a colon between them, two before each data-only layer, a backslash before a colon that is
/// part of a name.
///
/// Errors: [`ParamError`] with `option` as the name, for an empty list, an empty part, a directory named twice and one that merges below a data-only layer.
pub fn parse_paths(option: &'static str, list: &OsStr) -> Result<Lowers, ParamError> {
    path_list(option, list.as_bytes())
}

fn path_list(option: &'static str, value: &[u8]) -> Result<Lowers, ParamError> {
    let parts = split_at(value, b':');
    let contradiction = |why| Err(ParamError::Contradiction { option, why });
    let mut lowers = Lowers::default();
    let mut data = false;
    for (index, part) in parts.iter().enumerate() {
        if part.is_empty() {
            if parts.len() == 1 {
                return contradiction("it is empty; name at least one directory");
            }
            if index == 0 || index + 1 == parts.len() {
                return contradiction("a colon stands at an end; colons stand between directories, and one in a name is written \\:");
            }
            if data {
                return contradiction("three colons follow each other; one stands between directories, two before a data-only one");
            }
            data = true;
            continue;
        }
        let path = path_of(part);
        if lowers.all().any(|other| *other == path) {
            return Err(ParamError::SamePath { option, path });
        }
        if std::mem::take(&mut data) {
            lowers.data.push(path);
        } else if lowers.data.is_empty() {
            lowers.merged.push(path);
        } else {
            return contradiction(
                "a directory that is shown stands after a data-only one; write '::' before each data-only one, and those last",
            );
        }
    }
    Ok(lowers)
}

/// The options of a list: separated by commas that no backslash precedes and that are not in the quotes of a security context.
fn split(list: &[u8]) -> Vec<&[u8]> {
    let mut options = Vec::new();
    let mut rest = list;
    while !rest.is_empty() {
        let end = option_end(rest);
        let (option, tail) = rest.split_at(end);
        if !option.is_empty() {
            options.push(option);
        }
        rest = tail.get(1..).unwrap_or_default();
    }
    options
}

fn option_end(list: &[u8]) -> usize {
    // mount(8) and podman write context="a,b"; in a path a quote is only a quote.
    let quoted = list
        .iter()
        .position(|&byte| byte == b'=')
        .is_some_and(|at| list.get(at + 1) == Some(&b'"') && list.get(..at).is_some_and(|name| name.ends_with(b"context")));
    let mut inside = false;
    let mut escaped = false;
    for (index, &byte) in list.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' if quoted => inside = !inside,
            b',' if !inside => return index,
            _ => {}
        }
    }
    list.len()
}

/// The parts of a value between separators that no backslash precedes, with their backslashes.
fn split_at(value: &[u8], separator: u8) -> Vec<&[u8]> {
    let mut escaped = false;
    value
        .split(|&byte| {
            let literal = escaped;
            escaped = !literal && byte == b'\\';
            byte == separator && !literal
        })
        .collect()
}

fn path_of(value: &[u8]) -> PathBuf {
    OsString::from_vec(unescape(value)).into()
}

/// Takes out the backslashes, as kernel overlayfs does: any byte may follow one. A last one stands for itself.
fn unescape(value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len());
    let mut bytes = value.iter();
    while let Some(&byte) = bytes.next() {
        out.push(if byte == b'\\' { bytes.next().copied().unwrap_or(byte) } else { byte });
    }
    out
}

fn escape(value: &OsStr, special: &[u8], out: &mut Vec<u8>) {
    for &byte in value.as_bytes() {
        if special.contains(&byte) {
            out.push(b'\\');
        }
        out.push(byte);
    }
}

#[cfg(test)]
mod tests;
