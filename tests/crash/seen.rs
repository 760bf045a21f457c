//! `View`: what a tree shows, to be compared with what it showed before, elsewhere, or after an operation.

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{lgetxattr, llistxattr};
use rustix::io::Errno;

/// Times before this second are the fixture's or an operation's own; later ones are "now", whenever that was.
const LONG_AGO: i64 = 1_500_000_000;

/// One object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Object {
    mode: u32,
    owner: (u32, u32),
    rdev: u64,
    /// 0 of a directory, whose count is each filesystem's own business.
    links: u64,
    size: u64,
    /// `None`: now.
    mtime: Option<(i64, i64)>,
    /// Of a file a digest and the first bytes, of a symbolic link its target.
    content: String,
    xattrs: Vec<(String, Vec<u8>)>,
    /// The names of the same inode, from the root of the view.
    names: Vec<String>,
    /// What could not be read.
    errors: Vec<String>,
}

/// Every object of a tree by its path from the root, which is "".
pub(crate) type View = BTreeMap<String, Object>;

/// Looks at a tree. What cannot be read is part of the view.
pub(crate) fn view(root: &Path) -> View {
    let (mut found, mut names) = (View::new(), BTreeMap::<(u64, u64), Vec<String>>::new());
    let mut todo = vec![(String::new(), root.to_owned())];
    while let Some((name, path)) = todo.pop() {
        let mut object = Object {
            mode: 0,
            owner: (0, 0),
            rdev: 0,
            links: 0,
            size: 0,
            mtime: None,
            content: String::new(),
            xattrs: Vec::new(),
            names: Vec::new(),
            errors: Vec::new(),
        };
        let errors = &mut object.errors;
        if let Some(meta) = kept(errors, "lstat", fs::symlink_metadata(&path)) {
            object.mode = meta.mode();
            object.owner = (meta.uid(), meta.gid());
            object.mtime = (meta.mtime() < LONG_AGO).then(|| (meta.mtime(), meta.mtime_nsec()));
            object.xattrs = kept(errors, "xattrs", xattrs(&path)).unwrap_or_default();
            if meta.is_dir() {
                for entry in kept(errors, "readdir", entries(&path)).unwrap_or_default() {
                    let below = if name.is_empty() { entry.clone() } else { format!("{name}/{entry}") };
                    todo.push((below, path.join(entry)));
                }
            } else {
                object.links = meta.nlink();
                object.rdev = meta.rdev();
                object.size = meta.size();
                names.entry((meta.dev(), meta.ino())).or_default().push(name.clone());
            }
            if meta.is_file() {
                object.content = kept(errors, "read", fs::read(&path)).map(|data| digest(&data)).unwrap_or_default();
            } else if meta.is_symlink() {
                object.content =
                    kept(errors, "readlink", fs::read_link(&path)).map(|target| target.display().to_string()).unwrap_or_default();
            }
        }
        found.insert(name, object);
    }
    for mut group in names.into_values().filter(|group| group.len() > 1) {
        group.sort();
        for name in &group {
            found.entry(name.clone()).and_modify(|object| object.names.clone_from(&group));
        }
    }
    found
}

fn kept<T>(errors: &mut Vec<String>, what: &str, result: io::Result<T>) -> Option<T> {
    result.map_err(|error| errors.push(format!("{what}: {error}"))).ok()
}

fn entries(dir: &Path) -> io::Result<Vec<String>> {
    fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

fn digest(data: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    data.hash(&mut hasher);
    format!("{:016x} of {} bytes {}", hasher.finish(), data.len(), data[..data.len().min(12)].escape_ascii())
}

/// The extended attributes, but for those of security modules.
fn xattrs(path: &Path) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut buffer = vec![0; 4096];
    let len = match llistxattr(path, &mut buffer[..]) {
        Ok(len) => len,
        Err(Errno::OPNOTSUPP) => 0,
        Err(errno) => return Err(errno.into()),
    };
    let mut found = Vec::new();
    for name in buffer[..len].split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        if name.starts_with(b"security.") && name != b"security.capability" {
            continue;
        }
        let mut value = vec![0; 1024];
        let len = lgetxattr(path, name, &mut value[..])?;
        value.truncate(len);
        found.push((String::from_utf8_lossy(name).into_owned(), value));
    }
    found.sort();
    Ok(found)
}

/// Whether two views are the same; with `dir_times`, mtimes of directories included.
pub(crate) fn same(a: &View, b: &View, dir_times: bool) -> bool {
    a.len() == b.len()
        && a.iter().zip(b).all(|((name, a), (other, b))| {
            let dirs = !dir_times && is_dir(a) && is_dir(b);
            name == other && if dirs { Object { mtime: b.mtime, ..a.clone() } == *b } else { a == b }
        })
}

/// Whether everything is of one of the views: the names are those of one, and each thing about an object is what it is in one. Times may be any.
pub(crate) fn between(found: &View, views: &[View]) -> bool {
    let names = |view: &View| found.len() == view.len() && found.keys().eq(view.keys());
    if !views.iter().any(names) {
        return false;
    }
    found.iter().all(|(name, object)| {
        let wanted: Vec<&Object> = views.iter().filter_map(|view| view.get(name)).collect();
        let any = |same: &dyn Fn(&Object) -> bool| wanted.iter().any(|wanted| same(wanted));
        any(&|o| o.mode == object.mode)
            && any(&|o| o.owner == object.owner)
            && any(&|o| (o.rdev, o.links, &o.names) == (object.rdev, object.links, &object.names))
            && any(&|o| (o.size, &o.content) == (object.size, &object.content))
            && any(&|o| o.xattrs == object.xattrs)
            && object.errors.is_empty()
    })
}

fn is_dir(object: &Object) -> bool {
    object.mode & 0o170_000 == 0o040_000
}

/// What differs, in words; a few of them.
pub(crate) fn differences(found: &View, wanted: &View, dir_times: bool) -> String {
    let mut all = Vec::new();
    for name in found.keys().chain(wanted.keys().filter(|name| !found.contains_key(*name))) {
        match (found.get(name), wanted.get(name)) {
            (Some(found), Some(wanted)) => {
                let words = [
                    (found.mode != wanted.mode).then(|| format!("mode {:o} not {:o}", found.mode, wanted.mode)),
                    (found.owner != wanted.owner).then(|| format!("owner {:?} not {:?}", found.owner, wanted.owner)),
                    (found.rdev != wanted.rdev).then(|| format!("rdev {} not {}", found.rdev, wanted.rdev)),
                    (found.links != wanted.links).then(|| format!("links {} not {}", found.links, wanted.links)),
                    (found.size != wanted.size).then(|| format!("size {} not {}", found.size, wanted.size)),
                    (found.mtime != wanted.mtime && (dir_times || !is_dir(found)))
                        .then(|| format!("mtime {:?} not {:?}", found.mtime, wanted.mtime)),
                    (found.content != wanted.content).then(|| format!("content {} not {}", found.content, wanted.content)),
                    (found.xattrs != wanted.xattrs).then(|| format!("xattrs {:?} not {:?}", found.xattrs, wanted.xattrs)),
                    (found.names != wanted.names).then(|| format!("one inode {:?} not {:?}", found.names, wanted.names)),
                    (found.errors != wanted.errors).then(|| format!("errors {:?} not {:?}", found.errors, wanted.errors)),
                ];
                let words: Vec<_> = words.into_iter().flatten().collect();
                if !words.is_empty() {
                    all.push(format!("{name:?}: {}", words.join(", ")));
                }
            }
            (Some(_), None) => all.push(format!("{name:?} is there")),
            (None, _) => all.push(format!("{name:?} is not there")),
        }
    }
    let rest = all.len().saturating_sub(6);
    all.truncate(6);
    if rest > 0 {
        all.push(format!("and {rest} more"));
    }
    all.join("; ")
}

/// Everything that could not be read.
pub(crate) fn errors(view: &View) -> Vec<String> {
    view.iter().flat_map(|(name, object)| object.errors.iter().map(move |error| format!("{name:?}: {error}"))).collect()
}

/// The plain files of a view and the names of each one's inode.
pub(crate) fn files(view: &View) -> impl Iterator<Item = (&str, &[String])> {
    view.iter().filter(|(_, object)| object.mode & 0o170_000 == 0o100_000).map(|(name, object)| (name.as_str(), object.names.as_slice()))
}

/// The root of a copy of the fixture.
pub(crate) fn copy(of: &Path, number: usize) -> PathBuf {
    of.join(format!("c{number:04}"))
}
