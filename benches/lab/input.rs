//! The layers that are mounted: made once a run, from a fixed seed, so that each run and each system has the same.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use plyfs_format::{Dialect, MarkKind, Opaque, WHITEOUT_RDEV, xattr_name};
use plyfs_sys::at::{At, XattrMode, set_xattr};
use plyfs_sys::create::mknod;
use plyfs_sys::root::open_dir;
use plyfs_sys::stat::Kind;

/// Which layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Input {
    /// Something like the root of a machine, in 4 layers: merged directories, replaced files, whiteouts, opaque directories, symbolic links.
    Tree,
    /// One directory `flat`, its entries in 2 layers.
    Flat,
    /// Files of 4 KiB in 20 directories (see [`small`]), in 2 layers.
    Small,
    /// One file `big`, for reading; a second layer beside it is empty.
    Big,
    /// One file `huge`, for copying up.
    Huge,
    /// 20 directories that all of N layers have, and in them files of which each layer has its share (see [`deep`]).
    Deep(u32),
}

/// How much of everything.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    /// Entries of [`Input::Tree`], nearly.
    pub(crate) tree: u32,
    /// Entries of the directory of [`Input::Flat`].
    pub(crate) flat: u32,
    /// Files of [`Input::Small`].
    pub(crate) small: u32,
    /// Files of [`Input::Deep`].
    pub(crate) deep: u32,
    /// Bytes of [`Input::Big`], and of what is written in one piece.
    pub(crate) big: u64,
    /// Bytes of [`Input::Huge`].
    pub(crate) huge: u64,
    /// Entries of the archive.
    pub(crate) archive: u32,
    /// Names that are made, renamed, removed.
    pub(crate) names: u32,
    /// Openings of files.
    pub(crate) opens: u32,
    /// Small files that are copied up.
    pub(crate) copies: u32,
}

impl Sizes {
    /// The full ones or the quick ones.
    pub(crate) fn new(quick: bool, tree: Option<u32>) -> Sizes {
        const MIB: u64 = 1 << 20;
        let sizes = if quick {
            Sizes {
                tree: 8_000,
                flat: 10_000,
                small: 1_000,
                deep: 1_280,
                big: 64 * MIB,
                huge: 128 * MIB,
                archive: 1_500,
                names: 1_500,
                opens: 5_000,
                copies: 100,
            }
        } else {
            Sizes {
                tree: 56_000,
                flat: 10_000,
                small: 2_000,
                deep: 2_560,
                big: 256 * MIB,
                huge: 512 * MIB,
                archive: 5_000,
                names: 5_000,
                opens: 20_000,
                copies: 300,
            }
        };
        Sizes { tree: tree.unwrap_or(sizes.tree).max(1_000), ..sizes }
    }
}

/// The name of a file of [`Input::Small`].
pub(crate) fn small(number: u32) -> String {
    format!("d{:02}/f{number:05}", number % DIRS)
}

/// The name of a file of [`Input::Deep`], which is in layer `number % layers` from the top.
pub(crate) fn deep(number: u32) -> String {
    format!("d{:02}/f{number:05}", number / 7 % DIRS)
}

/// The subtrees of [`Input::Tree`], each about as large as another.
pub(crate) const PARTS: u32 = 11;
const DIRS: u32 = 20;
const SMALL: usize = 4096;
const LAYERS: usize = 4;

/// The inputs that were made so far.
pub(crate) struct Inputs {
    base: PathBuf,
    pub(crate) sizes: Sizes,
    made: BTreeMap<Input, Vec<PathBuf>>,
    archive: Option<PathBuf>,
}

impl Inputs {
    /// None yet; they will be in `base`.
    pub(crate) fn new(base: &Path, sizes: Sizes) -> Inputs {
        Inputs { base: base.to_owned(), sizes, made: BTreeMap::new(), archive: None }
    }

    /// The layers, topmost first.
    pub(crate) fn layers(&mut self, input: Input) -> Result<Vec<PathBuf>> {
        if let Some(layers) = self.made.get(&input) {
            return Ok(layers.clone());
        }
        // Short names: 128 of them must go into the options of a mount.
        let base = self.base.join(format!("i{}", self.made.len()));
        let count = match input {
            Input::Tree => LAYERS,
            Input::Flat | Input::Small | Input::Big | Input::Huge => 2,
            Input::Deep(layers) => usize::try_from(layers)?,
        };
        let layers: Vec<_> = (0..count).map(|number| base.join(number.to_string())).collect();
        for layer in &layers {
            fs::create_dir_all(layer).with_context(|| format!("{}", layer.display()))?;
        }
        let mut maker = Maker { random: Random(1), layers: &layers, noise: noise() };
        maker.make(input, &self.sizes).with_context(|| format!("make the layers of {input:?}"))?;
        self.made.insert(input, layers.clone());
        Ok(layers)
    }

    /// A tar archive of one directory `part`, with the mixture of files of [`Input::Tree`].
    pub(crate) fn archive(&mut self) -> Result<PathBuf> {
        if let Some(archive) = &self.archive {
            return Ok(archive.clone());
        }
        let dir = self.base.join("a");
        fs::create_dir_all(&dir)?;
        let layers = vec![dir.clone(); LAYERS];
        Maker { random: Random(2), layers: &layers, noise: noise() }.part(Path::new("part"), self.sizes.archive)?;
        let archive = self.base.join("a.tar");
        let status = Command::new("tar").arg("-cf").arg(&archive).arg("-C").arg(&dir).arg("part").status().context("tar")?;
        ensure!(status.success(), "tar: {status}");
        fs::remove_dir_all(&dir)?;
        self.archive = Some(archive.clone());
        Ok(archive)
    }
}

/// Bytes that no filesystem can store in less.
fn noise() -> Vec<u8> {
    let mut random = Random(3);
    (0..1 << 18).flat_map(|_| random.next().to_le_bytes()).collect()
}

/// Writes `len` bytes that are no holes.
pub(crate) fn write_noise(path: &Path, len: u64) -> Result<()> {
    let noise = noise();
    let mut file = File::create(path).with_context(|| format!("{}", path.display()))?;
    let mut left = usize::try_from(len)?;
    while left > 0 {
        let part = noise.get(..left.min(noise.len())).unwrap_or_default();
        file.write_all(part).with_context(|| format!("{}", path.display()))?;
        left -= part.len();
    }
    Ok(())
}

/// splitmix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `end`, which is not 0.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        from.get(usize::try_from(self.below(from.len() as u64)).unwrap_or(0))
    }
}

struct Maker<'a> {
    random: Random,
    /// Topmost first.
    layers: &'a [PathBuf],
    noise: Vec<u8>,
}

impl Maker<'_> {
    fn make(&mut self, input: Input, sizes: &Sizes) -> Result<()> {
        match input {
            Input::Tree => (0..PARTS).try_for_each(|part| self.part(Path::new(&format!("p{part:02}")), sizes.tree / PARTS)),
            Input::Flat => (0..sizes.flat)
                .try_for_each(|number| self.file(number as usize % 2, &Path::new("flat").join(format!("file-{number:05}")), 0)),
            Input::Small => (0..sizes.small).try_for_each(|number| self.file(number as usize % 2, Path::new(&small(number)), SMALL)),
            Input::Big => write_noise(&self.at(0, Path::new("big")), sizes.big),
            Input::Huge => write_noise(&self.at(0, Path::new("huge")), sizes.huge),
            Input::Deep(layers) => {
                for layer in self.layers {
                    for dir in 0..DIRS {
                        fs::create_dir_all(layer.join(format!("d{dir:02}")))?;
                    }
                }
                (0..sizes.deep).try_for_each(|number| self.file((number % layers) as usize, Path::new(&deep(number)), 100))
            }
        }
    }

    /// A subtree of about `entries` entries: of 12 one is a directory, of the files 5 in 100 are symbolic links, half are smaller than 2 KiB and a
    /// few as large as 64 KiB. 55 of 100 are in the undermost layer; some replace one below, some hide one.
    fn part(&mut self, root: &Path, entries: u32) -> Result<()> {
        let bottom = self.layers.len() - 1;
        let mut dirs = vec![root.to_owned()];
        self.dir(bottom, root)?;
        for number in 1..entries / 12 {
            let parent = self.random.pick(&dirs).cloned().unwrap_or_default();
            let parent = if parent.components().count() > 7 { root.to_owned() } else { parent };
            let dir = parent.join(format!("dir-{number}"));
            self.dir(bottom, &dir)?;
            dirs.push(dir);
        }
        for number in 0..entries - entries / 12 {
            let path = self.random.pick(&dirs).cloned().unwrap_or_default().join(format!("file-{number}.x"));
            let layer = if self.random.below(100) < 55 { bottom } else { usize::try_from(self.random.below(bottom as u64))? };
            if self.random.below(100) < 5 {
                self.parents(layer, &path)?;
                symlink(format!("../somewhere/file-{number}"), self.at(layer, &path))?;
                continue;
            }
            let size = self.size()?;
            self.file(layer, &path, size)?;
            if layer != bottom && self.layers.first() != self.layers.last() {
                match self.random.below(100) {
                    0..10 => self.file(bottom, &path, size / 2)?,
                    10..14 => {
                        let hidden = path.with_extension("gone");
                        self.file(bottom, &hidden, size)?;
                        self.whiteout(layer, &hidden)?;
                    }
                    14..15 => {
                        let dir = path.with_extension("opaque");
                        (0..4).try_for_each(|file| self.file(bottom, &dir.join(format!("old-{file}")), size))?;
                        self.file(layer, &dir.join("new"), size)?;
                        self.opaque(layer, &dir)?;
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn size(&mut self) -> Result<usize> {
        let size = match self.random.below(100) {
            0..8 => 0,
            8..50 => 100 + self.random.below(1_900),
            50..75 => 2_000 + self.random.below(4_000),
            75..95 => 6_000 + self.random.below(10_000),
            _ => 16_000 + self.random.below(48_000),
        };
        Ok(usize::try_from(size)?)
    }

    fn at(&self, layer: usize, path: &Path) -> PathBuf {
        self.layers.get(layer).cloned().unwrap_or_default().join(path)
    }

    fn dir(&self, layer: usize, path: &Path) -> Result<()> {
        fs::create_dir_all(self.at(layer, path)).with_context(|| format!("{}", path.display()))
    }

    fn parents(&self, layer: usize, path: &Path) -> Result<()> {
        path.parent().map_or(Ok(()), |parent| self.dir(layer, parent))
    }

    fn file(&mut self, layer: usize, path: &Path, size: usize) -> Result<()> {
        self.parents(layer, path)?;
        let start = usize::try_from(self.random.below((self.noise.len() - size) as u64))?;
        let target = self.at(layer, path);
        fs::write(&target, self.noise.get(start..start + size).unwrap_or_default()).with_context(|| format!("{}", target.display()))?;
        let mode = if self.random.below(10) == 0 { 0o755 } else { 0o644 };
        Ok(fs::set_permissions(&target, fs::Permissions::from_mode(mode))?)
    }

    fn whiteout(&self, layer: usize, path: &Path) -> Result<()> {
        self.parents(layer, path)?;
        let (dir, name) = (path.parent().unwrap_or(Path::new("")), path.file_name().unwrap_or_default());
        let dir = open_dir(&self.at(layer, dir))?;
        Ok(mknod(dir.as_fd(), name.as_encoded_bytes(), Kind::Char, 0, WHITEOUT_RDEV)?)
    }

    fn opaque(&self, layer: usize, dir: &Path) -> Result<()> {
        let name = xattr_name(Dialect::Trusted, MarkKind::Opaque).context("no name for the mark")?;
        let value = Opaque::Yes.encode().context("no value for the mark")?;
        let dir = open_dir(&self.at(layer, dir))?;
        Ok(set_xattr(At::Fd(dir.as_fd()), name, value, XattrMode::Any)?)
    }
}
