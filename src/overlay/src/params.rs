//! Mount options: text to [`Params`] and back.
//!
//! The grammar is that of mount(8) for kernel overlayfs and of fuse-overlayfs: options are separated by commas, empty ones are passed over, of
//! contradictory generic ones (`ro,rw`) the last counts. In values a backslash takes the meaning from the byte after it, so `\,` `\:` and `\\`
//! stand in paths. Paths are bytes, not text. `@FILE` stands for the options in a file, where line breaks separate them, too, and lines that begin with `#`
//! are passed over: two thousand layers are more than a command line takes.
//!
//! Every option of those two and of libfuse is in one table (`table.rs`): it is obeyed, or accepted because it asks for what plyfs does anyway, or
//! refused by its name. Nothing is ignored silently. Nothing is opened here; what a path leads to is checked where layers are opened.

mod lowers;
mod table;
mod text;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use plyfs_sys::mount::Propagation;

use self::lowers::path_list;
pub use self::lowers::{Lowers, parse_paths};
use self::table::{Rule, rule};
use self::text::{escape, number, path_of, split, split_at, unescape};
use crate::owners::{IdMap, IdRange, OwnerMap};
use crate::union::Redirects;

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

/// Which lowers have whiteouts by file names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Whiteouts {
    /// Those that are known to: layers in the store of podman and buildah, which unpack them so where they have a mount program.
    #[default]
    Auto,
    /// None.
    Overlay,
    /// All.
    Aufs,
}

/// How long the kernel may believe what it was told; `None`: as long as plyfs finds right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timeouts {
    /// That a name means an object.
    pub entry: Option<Duration>,
    /// That a name is not there.
    pub negative: Option<Duration>,
    /// An object's attributes.
    pub attr: Option<Duration>,
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
    /// `redirect_dir`: what is done with redirects of directories.
    pub redirects: Redirects,
    /// `xino=off`: inode numbers are those of the layers' filesystems.
    pub plain_numbers: bool,
    /// `kernel_compat=on`: nothing is written that kernel overlayfs does not show as it is.
    pub kernel_compat: bool,
    /// `userxattr`: marks are in attributes of users, those of kernel overlayfs and of fuse-overlayfs.
    pub user_xattr: bool,
    /// `whiteout`: which lowers have whiteouts that are file names, beside those of the other forms.
    pub whiteouts: Whiteouts,
    /// `uidmapping`, `gidmapping` and `squash_to_*`: how owners show.
    pub owners: OwnerMap,
    /// `xattr_permissions=2`: owner, mode and kind are those of `user.containers.override_stat`, in the lowers and in the upper. Without `dev` and `suid`.
    pub override_stat: bool,
    /// `noacl`: there are no POSIX ACLs.
    pub no_acls: bool,
    /// `static_nlink`: directories have one link.
    pub static_nlink: bool,
    /// `timeout` and the like.
    pub timeouts: Timeouts,
    /// `lenient`: what bears a mark that cannot be honoured is shown without it, read-only.
    pub lenient: bool,
    /// `volatile`: nothing waits for the disk.
    pub volatile: bool,
    /// `fsync=0`: nothing waits for the disk.
    pub no_sync: bool,
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
    /// `nosymfollow`: the kernel follows no symbolic link of it.
    pub no_sym_follow: bool,
    /// `private`, `slave`, `shared` or `unbindable`: how mounts in it travel; else as the place says where it is mounted.
    pub propagation: Option<Propagation>,
    /// `context`, `fscontext`, `defcontext` and `rootcontext`: for the kernel's security module.
    pub contexts: Vec<(&'static str, OsString)>,
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

/// What fuse-overlayfs takes for ever.
const LONGEST_TIMEOUT: f64 = 1e9;

/// Which timeouts an option sets.
type TimeoutPlaces = fn(&mut Timeouts) -> Vec<&mut Option<Duration>>;

/// Options as they come in.
struct Builder {
    params: Params,
    /// `lowerdir` was given.
    listed: bool,
    upper: Option<PathBuf>,
    work: Option<PathBuf>,
    squash_to_root: bool,
    /// `redirect_dir` was given.
    redirects: bool,
    /// The last `fsync` or `sync`.
    fsync: Option<bool>,
    /// `dev` and `suid` were said, and not taken back.
    dev: bool,
    suid: bool,
}

impl Default for Builder {
    fn default() -> Self {
        let params = Params::over(Vec::new());
        Self {
            params,
            listed: false,
            upper: None,
            work: None,
            squash_to_root: false,
            redirects: false,
            fsync: None,
            dev: false,
            suid: false,
        }
    }
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
        let mut builder = Builder::default();
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
        let mut builder = Builder::default();
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
                        "only userxattr and whiteout say how marks are spelled; leave it out"
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
            redirects: Redirects::Written,
            plain_numbers: false,
            kernel_compat: false,
            user_xattr: false,
            whiteouts: Whiteouts::Auto,
            owners: OwnerMap::default(),
            override_stat: false,
            no_acls: false,
            static_nlink: false,
            timeouts: Timeouts::default(),
            lenient: false,
            volatile: false,
            no_sync: false,
            read_only: false,
            dev: true,
            suid: true,
            exec: true,
            atime: Atime::Relative,
            no_dir_atime: false,
            no_sym_follow: false,
            propagation: None,
            contexts: Vec::new(),
            fsname: None,
            debug: false,
        }
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
                escape(value, b",\\\"", &mut out);
            }
        };
        if let Some(Writable { upper, work }) = &self.writable {
            option("upperdir", Some(upper.as_os_str()));
            option("workdir", Some(work.as_os_str()));
        }
        let flags = [
            (self.live_lowers, "lower=live"),
            (self.metacopy, "metacopy=on"),
            (self.redirects == Redirects::Followed, "redirect_dir=follow"),
            (self.redirects == Redirects::Refused, "redirect_dir=nofollow"),
            (self.plain_numbers, "xino=off"),
            (self.kernel_compat, "kernel_compat=on"),
            (self.no_acls, "noacl"),
            (self.static_nlink, "static_nlink"),
            (self.user_xattr, "userxattr"),
            (self.whiteouts == Whiteouts::Aufs, "whiteout=aufs"),
            (self.whiteouts == Whiteouts::Overlay, "whiteout=overlay"),
            (self.override_stat, "xattr_permissions=2"),
            (self.lenient, "lenient"),
            (self.volatile, "volatile"),
            (self.no_sync, "fsync=0"),
            (self.read_only, "ro"),
            (!self.dev, "nodev"),
            (!self.suid, "nosuid"),
            (!self.exec, "noexec"),
            (self.atime == Atime::Never, "noatime"),
            (self.atime == Atime::Strict, "strictatime"),
            (self.no_dir_atime, "nodiratime"),
            (self.no_sym_follow, "nosymfollow"),
            (self.propagation == Some(Propagation::Private), "private"),
            (self.propagation == Some(Propagation::Slave), "slave"),
            (self.propagation == Some(Propagation::Shared), "shared"),
            (self.propagation == Some(Propagation::Unbindable), "unbindable"),
            (self.debug, "debug"),
        ];
        for (_, name) in flags.into_iter().filter(|(set, _)| *set) {
            option(name, None);
        }
        let owners = &self.owners;
        for (map, mapping, squash) in [(&owners.uids, "uidmapping", "squash_to_uid"), (&owners.gids, "gidmapping", "squash_to_gid")] {
            if !map.is_identity() {
                option(if map.is_squashed() { squash } else { mapping }, Some(OsStr::new(&map.to_string())));
            }
        }
        let Timeouts { entry, negative, attr } = self.timeouts;
        for (name, timeout) in [("entry_timeout", entry), ("negative_timeout", negative), ("attr_timeout", attr)] {
            if let Some(timeout) = timeout {
                option(name, Some(OsStr::new(&format!("{}.{:03}", timeout.as_secs(), timeout.subsec_millis()))));
            }
        }
        for (name, value) in &self.contexts {
            option(name, Some(value));
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
            (Some(Rule::Value(_) | Rule::Switch(_) | Rule::OnOff(_) | Rule::Only(..)), None) => Err(ParamError::Missing(lone())),
            (Some(Rule::Value(apply)), Some(value)) => apply(self, value),
            (Some(Rule::Switch(apply)), Some(value)) => {
                let on = match value {
                    b"0" => false,
                    b"1" => true,
                    _ => return Err(ParamError::Value { option: shown(), expected: "0 or 1".to_owned() }),
                };
                apply(self, on);
                Ok(())
            }
            (Some(Rule::OnOff(apply)), Some(value)) => {
                let on = match value {
                    b"off" => false,
                    b"on" => true,
                    _ => return Err(ParamError::Value { option: shown(), expected: "on or off".to_owned() }),
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
            (Some(Rule::Flag(_) | Rule::Said(_) | Rule::Nothing), Some(_)) => Err(ParamError::Unexpected(shown())),
            (Some(Rule::Flag(apply)), None) => {
                apply(&mut self.params);
                Ok(())
            }
            (Some(Rule::Said(apply)), None) => {
                apply(self);
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

    /// `defaults` of mount(8): rw, suid, dev, exec.
    fn defaults(&mut self) {
        let params = &mut self.params;
        (params.read_only, params.suid, params.dev, params.exec) = (false, true, true, true);
        (self.suid, self.dev) = (false, false);
    }

    /// What `user` and the like of mount(8) imply.
    fn of_a_user(&mut self, exec: bool) {
        let params = &mut self.params;
        (params.exec, params.suid, params.dev) = (params.exec && exec, false, false);
        (self.suid, self.dev) = (false, false);
    }

    fn redirect_dir(&mut self, value: &[u8]) -> Result<(), ParamError> {
        self.params.redirects = match value {
            b"on" => Redirects::Written,
            // As the kernel with `redirect_always_follow`, which is its default.
            b"follow" | b"off" => Redirects::Followed,
            b"nofollow" => Redirects::Refused,
            _ => {
                let option = format!("redirect_dir={}", String::from_utf8_lossy(value));
                return Err(ParamError::Value { option, expected: "on, follow, nofollow or off".to_owned() });
            }
        };
        self.redirects = true;
        Ok(())
    }

    fn xino(&mut self, value: &[u8]) -> Result<(), ParamError> {
        self.params.plain_numbers = match value {
            b"off" => true,
            b"on" | b"auto" => false,
            _ => {
                let option = format!("xino={}", String::from_utf8_lossy(value));
                return Err(ParamError::Value { option, expected: "on, auto or off".to_owned() });
            }
        };
        Ok(())
    }

    /// Seconds, with a fraction down to milliseconds.
    fn timeout(&mut self, name: &'static str, value: &[u8], places: TimeoutPlaces) -> Result<(), ParamError> {
        let seconds = std::str::from_utf8(value).ok().and_then(|text| text.parse::<f64>().ok());
        let seconds = seconds.filter(|seconds| (0.0..=LONGEST_TIMEOUT).contains(seconds)).ok_or_else(|| ParamError::Value {
            option: format!("{name}={}", String::from_utf8_lossy(value)),
            expected: format!("seconds, 0 to {LONGEST_TIMEOUT:e}"),
        })?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // It is in the range.
        let timeout = Duration::from_millis((seconds * 1000.0).round() as u64);
        places(&mut self.params.timeouts).into_iter().for_each(|place| *place = Some(timeout));
        Ok(())
    }

    /// One triple after the other, `DISK:SHOWN:COUNT`; podman puts a colon before them.
    fn mapping(&mut self, name: &'static str, value: &[u8], place: fn(&mut Params) -> &mut IdMap) -> Result<(), ParamError> {
        let wrong = |expected: String| ParamError::Value { option: format!("{name}={}", String::from_utf8_lossy(value)), expected };
        let form = || wrong("DISK:SHOWN:COUNT, once or several times with colons between".to_owned());
        let parts = value.split(|&byte| byte == b':').filter(|part| !part.is_empty());
        let numbers = parts.map(|part| number(part).ok_or_else(form)).collect::<Result<Vec<u32>, _>>()?;
        let (triples, rest) = numbers.as_chunks::<3>();
        if !rest.is_empty() {
            return Err(form());
        }
        let ranges = triples.iter().map(|&[disk, shown, count]| IdRange { disk, shown, count }).collect();
        let map = IdMap::ranges(ranges).map_err(|why| wrong(format!("DISK:SHOWN:COUNT, once or several times, and is {why}")))?;
        self.owner(name, map, place)
    }

    fn squash(&mut self, name: &'static str, value: &[u8], place: fn(&mut Params) -> &mut IdMap) -> Result<(), ParamError> {
        let option = || format!("{name}={}", String::from_utf8_lossy(value));
        // The last number stands for no id.
        let id = number(value).filter(|id| *id != u32::MAX);
        let id = id.ok_or_else(|| ParamError::Value { option: option(), expected: "an id, 0 to 4294967294".to_owned() })?;
        self.owner(name, IdMap::squashed(id), place)
    }

    fn owner(&mut self, name: &'static str, map: IdMap, place: fn(&mut Params) -> &mut IdMap) -> Result<(), ParamError> {
        let known = place(&mut self.params);
        if known.is_identity() {
            *known = map;
            return Ok(());
        }
        if known.is_squashed() == map.is_squashed() {
            return Err(ParamError::Repeated(name));
        }
        let why = "owners are either mapped or squashed to one id; leave one of the two out";
        Err(ParamError::Contradiction { option: name, why })
    }

    fn context(&mut self, name: &'static str, value: &[u8]) -> Result<(), ParamError> {
        let value = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value);
        if value.is_empty() {
            return Err(ParamError::Missing(name.to_owned()));
        }
        if self.params.contexts.iter().any(|(known, _)| *known == name) {
            return Err(ParamError::Repeated(name));
        }
        self.params.contexts.push((name, OsString::from_vec(unescape(value))));
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

    fn whiteout(&mut self, value: &[u8]) -> Result<(), ParamError> {
        self.params.whiteouts = match value {
            b"auto" => Whiteouts::Auto,
            b"overlay" => Whiteouts::Overlay,
            b"aufs" => Whiteouts::Aufs,
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
        // As the kernel.
        if params.metacopy && self.redirects && params.redirects != Redirects::Written {
            return contradiction(
                "metacopy",
                "only with redirect_dir=on: a metacopy that is renamed has a redirect; leave one of the two out",
            );
        }
        if params.user_xattr && self.redirects && params.redirects == Redirects::Written {
            let why = "with userxattr no redirects are written, which every user could set; leave one of the two out";
            return contradiction("redirect_dir", why);
        }
        let longest = [params.timeouts.entry, params.timeouts.negative, params.timeouts.attr].into_iter().flatten().max();
        if params.live_lowers && longest.is_some_and(|longest| longest > Duration::from_secs(1)) {
            return contradiction(
                "timeout",
                "with lower=live nothing is believed for more than a second; say 1 or less, or leave one of the two out",
            );
        }
        if params.metacopy && params.user_xattr {
            return contradiction("metacopy", "not with userxattr, where every user can set the mark; leave one of them out");
        }
        if params.override_stat && (self.dev || self.suid) {
            let why = "not with dev or suid: every owner of a lower file can forge the owner, mode and kind that it says; say nodev,nosuid, or leave it out";
            return contradiction("xattr_permissions", why);
        }
        if params.override_stat {
            (params.dev, params.suid) = (false, false);
        }
        params.no_sync = self.fsync == Some(false);
        if params.volatile && self.fsync == Some(true) {
            return contradiction("volatile", "fsync=1 asks for the opposite; leave one of the two out");
        }
        if self.squash_to_root {
            if !params.owners.is_identity() {
                let why = "not with other options that say how owners show; leave it out, or them";
                return contradiction("squash_to_root", why);
            }
            params.owners = OwnerMap { uids: IdMap::squashed(0), gids: IdMap::squashed(0) };
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

#[cfg(test)]
mod tests;
