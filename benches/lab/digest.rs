//! What a mount shows, as one number: two systems that show the same tree have the same digest.

use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result};

/// What was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shown {
    /// All below the root.
    pub(crate) entries: u64,
    /// Of names, kinds, modes, owners, devices, sizes, targets and contents; of times if they count.
    pub(crate) digest: u64,
}

/// Walks `root`. With `times`, the mtimes of what is no directory count; those of directories are left to the systems.
pub(crate) fn shown(root: &Path, times: bool) -> Result<Shown> {
    let mut walk = Walk { entries: 0, hasher: DefaultHasher::new(), times, buffer: vec![0; 1 << 17] };
    let meta = root.symlink_metadata().with_context(|| format!("{}", root.display()))?;
    if meta.is_dir() {
        walk.dir(root)?;
    } else {
        walk.entry(root, &meta)?;
    }
    Ok(Shown { entries: walk.entries, digest: walk.hasher.finish() })
}

struct Walk {
    entries: u64,
    hasher: DefaultHasher,
    times: bool,
    buffer: Vec<u8>,
}

impl Walk {
    fn dir(&mut self, dir: &Path) -> Result<()> {
        let at = || format!("{}", dir.display());
        let names = std::fs::read_dir(dir).and_then(|all| all.map(|entry| entry.map(|entry| entry.file_name())).collect());
        let mut names: Vec<OsString> = names.with_context(at)?;
        names.sort_unstable();
        for name in names {
            name.hash(&mut self.hasher);
            let path = dir.join(&name);
            let meta = path.symlink_metadata().with_context(at)?;
            self.entry(&path, &meta)?;
            if meta.is_dir() {
                self.dir(&path)?;
            }
            // The end of a directory counts, or moving its last entry out of it would not show.
            self.hasher.write_u8(0);
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path, meta: &Metadata) -> Result<()> {
        let at = || format!("{}", path.display());
        self.entries += 1;
        (meta.mode(), meta.uid(), meta.gid(), meta.rdev()).hash(&mut self.hasher);
        if !meta.is_dir() {
            meta.size().hash(&mut self.hasher);
            if self.times {
                (meta.mtime(), meta.mtime_nsec()).hash(&mut self.hasher);
            }
        }
        if meta.is_symlink() {
            path.read_link().with_context(at)?.hash(&mut self.hasher);
        } else if meta.is_file() {
            let mut file = File::open(path).with_context(at)?;
            loop {
                let read = file.read(&mut self.buffer).with_context(at)?;
                if read == 0 {
                    break;
                }
                self.hasher.write(self.buffer.get(..read).unwrap_or_default());
            }
        }
        Ok(())
    }
}
