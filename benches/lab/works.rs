//! What is timed. A work gets a fresh mount, prepares itself untimed (warms caches, makes files, spells names), and gives back the rest as a job.
//!
//! A job returns a count (entries, bytes) on which the systems must agree.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::input::{Input, Random, Sizes, deep, small, write_noise};
use crate::system::Access::{self, ReadOnly, Volatile, Writable};

/// Where a work is done.
pub(crate) struct Site {
    /// The mount.
    pub(crate) point: PathBuf,
    /// How much.
    pub(crate) sizes: Sizes,
    /// An archive outside the mount.
    pub(crate) archive: PathBuf,
}

/// The timed part of a work.
pub(crate) type Job = Box<dyn FnOnce() -> Result<u64>>;

/// A work.
pub(crate) struct Work {
    /// For `--work`.
    pub(crate) id: &'static str,
    /// For people.
    pub(crate) title: &'static str,
    /// What is in the mount's own caches when the time starts.
    pub(crate) cache: &'static str,
    /// What is mounted.
    pub(crate) input: Input,
    /// How.
    pub(crate) access: Access,
    /// The ratio to kernel overlayfs that plyfs aims at (docs of the fast path), if there is one for this work.
    pub(crate) aim: Option<f64>,
    /// What must look the same on all systems afterwards: this path of the mount, "" for all of it.
    pub(crate) result: Option<&'static str>,
    /// Everything that is not timed.
    pub(crate) prepare: fn(&Site) -> Result<Job>,
}

const FRESH: &str = "fresh mount";
const WARM: &str = "warm";
const MADE: &str = "made on this mount";

const fn work(id: &'static str, title: &'static str, cache: &'static str, input: Input, prepare: fn(&Site) -> Result<Job>) -> Work {
    Work { id, title, cache, input, access: Writable, aim: None, result: None, prepare }
}

impl Work {
    const fn aim(mut self, aim: f64) -> Work {
        self.aim = Some(aim);
        self
    }

    const fn on(mut self, access: Access) -> Work {
        self.access = access;
        self
    }

    const fn changes(mut self, result: &'static str) -> Work {
        self.result = Some(result);
        self
    }
}

/// All works, in the order of the table. Those that remove files come last: ext4 looks for a free inode past every one that was freed in the last
/// minutes, one by one, so that making files after them takes ten times as long, whoever makes them.
pub(crate) const WORKS: &[Work] = &[
    work("find-fresh", "find + stat of the tree", FRESH, Input::Tree, |site| Ok(find(site))).aim(1.0),
    work("find-warm", "find + stat of the tree", WARM, Input::Tree, |site| warmed(site, find)).aim(0.7),
    work("readdir-warm", "names of the whole tree, no stat", WARM, Input::Tree, |site| warmed(site, names)).aim(0.3),
    work("readdir-10k", "names of one directory of 10,000, 20 times", WARM, Input::Flat, |site| warmed(site, flat)).aim(0.2),
    work("tar-fresh", "tar of the tree into a pipe", FRESH, Input::Tree, |site| Ok(tar(site))),
    work("tar-warm", "tar of the tree into a pipe", WARM, Input::Tree, |site| warmed(site, tar)).aim(2.1),
    work("untar", "tar -x of 5,000 entries", FRESH, Input::Tree, untar).aim(3.9).changes("new"),
    work("cp-a", "cp -a of 5,000 entries within the mount", WARM, Input::Tree, cp).aim(3.2).changes("copy"),
    work("create", "create empty files", MADE, Input::Small, create).aim(2.6).changes("new"),
    work("mkdir", "make directories", MADE, Input::Small, mkdir).aim(2.0).changes("new"),
    work("rename", "rename new files", MADE, Input::Small, rename).aim(2.2).changes("new"),
    work("open", "open + close of lower files", WARM, Input::Small, open_close).aim(4.5),
    work("open-ro", "open + close, read-only mount", WARM, Input::Small, open_close).on(ReadOnly).aim(0.95),
    work("read-small", "open + read + close of 4 KiB files", WARM, Input::Small, read_small).aim(2.8),
    work("read-small-ro", "the same, read-only mount", WARM, Input::Small, read_small).on(ReadOnly).aim(0.85),
    work("read-big-fresh", "read a lower file by 1 MiB", FRESH, Input::Big, |site| Ok(read_big(site))).aim(1.1),
    work("read-big-warm", "read a lower file by 1 MiB", WARM, Input::Big, |site| warmed(site, read_big)).aim(1.1),
    work("read-big-ro", "the same, read-only mount", FRESH, Input::Big, |site| Ok(read_big(site))).on(ReadOnly).aim(1.1),
    work("write-big", "write a new file by 1 MiB", MADE, Input::Small, write_big).aim(1.1).changes("new"),
    work("write-4k", "write a new file by 4 KiB", MADE, Input::Small, write_4k).aim(1.15).changes("new"),
    work("write-4k-random", "write 4 KiB here and there in a new file", MADE, Input::Small, write_4k_random).aim(1.15).changes("new"),
    work("missing-first", "stat of names that are not there", FRESH, Input::Small, |site| Ok(missing(site))).aim(2.7),
    work("missing-again", "the same names again", WARM, Input::Small, |site| warmed(site, missing)).aim(1.1),
    work("lookup-16", "stat of every name in 16 layers", FRESH, Input::Deep(16), |site| Ok(look_up(site))).aim(0.5),
    work("lookup-64", "stat of every name in 64 layers", FRESH, Input::Deep(64), |site| Ok(look_up(site))).aim(0.15),
    work("lookup-128", "stat of every name in 128 layers", FRESH, Input::Deep(128), |site| Ok(look_up(site))).aim(0.1),
    work("find-128", "find + stat of 128 layers", FRESH, Input::Deep(128), |site| Ok(find(site))).aim(0.17),
    work("missing-128", "stat of names that none of 128 layers has", FRESH, Input::Deep(128), |site| Ok(missing(site))),
    work("copyup-big", "open a big lower file for writing", FRESH, Input::Huge, copy_big).changes(""),
    work("copyup-big-v", "the same, all with volatile", FRESH, Input::Huge, copy_big).on(Volatile).aim(2.0).changes(""),
    work("copyup-small", "open 4 KiB lower files for writing", WARM, Input::Small, copy_small).changes(""),
    work("copyup-small-v", "the same, all with volatile", WARM, Input::Small, copy_small).on(Volatile).aim(2.5).changes(""),
    work("unlink-lower", "unlink lower files", WARM, Input::Small, unlink_lower).changes(""),
    work("rm-lower", "rm -rf of 5,000 lower entries", FRESH, Input::Tree, rm_lower).aim(2.2).changes(""),
    work("unlink", "unlink new files", MADE, Input::Small, unlink).aim(2.6).changes("new"),
    work("rm-new", "rm -rf of 5,000 new entries", MADE, Input::Tree, rm_new).aim(2.2).changes("new"),
    work("rmdir", "remove new directories", MADE, Input::Small, rmdir).aim(2.0).changes("new"),
];

/// Those that were asked for.
pub(crate) fn chosen(ids: &[String]) -> Result<Vec<&'static Work>> {
    let is = |work: &Work, id: &str| work.id == id || work.id.strip_prefix(id).is_some_and(|rest| rest.starts_with('-'));
    for id in ids {
        ensure!(WORKS.iter().any(|work| is(work, id)), "no work {id}; the verb list names them");
    }
    Ok(WORKS.iter().filter(|work| ids.is_empty() || ids.iter().any(|id| is(work, id))).collect())
}

/// A job that the same job, done before, has warmed the caches for.
fn warmed(site: &Site, job: fn(&Site) -> Job) -> Result<Job> {
    let first = job(site)()?;
    let again = job(site);
    Ok(Box::new(move || {
        let count = again()?;
        ensure!(count == first, "counted {first} at first and {count} then");
        Ok(count)
    }))
}

/// Runs a program and counts, of what it prints, the bytes or the lines.
fn tool(mut command: Command, lines: bool) -> Result<u64> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().with_context(|| name.clone())?;
    let mut count = 0;
    if let Some(mut pipe) = child.stdout.take() {
        let mut buffer = vec![0; 1 << 16];
        loop {
            let read = pipe.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            let part = buffer.get(..read).unwrap_or_default();
            count += if lines { part.iter().filter(|&&byte| byte == b'\n').count() } else { read } as u64;
        }
    }
    let status = child.wait()?;
    ensure!(status.success(), "{name}: {status}");
    Ok(count)
}

fn find(site: &Site) -> Job {
    let mut command = Command::new("find");
    command.arg(&site.point).args(["-printf", "%s %m %T@\\n"]);
    Box::new(|| tool(command, true))
}

fn tar(site: &Site) -> Job {
    let mut command = Command::new("tar");
    command.args(["-cf", "-", "-C"]).arg(&site.point).arg(".");
    Box::new(|| tool(command, false))
}

fn names(site: &Site) -> Job {
    fn below(dir: &Path) -> Result<u64> {
        let mut count = 0;
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            count += 1;
            if entry.file_type()?.is_dir() {
                count += below(&entry.path())?;
            }
        }
        Ok(count)
    }
    let point = site.point.clone();
    Box::new(move || below(&point))
}

fn flat(site: &Site) -> Job {
    let dir = site.point.join("flat");
    Box::new(move || (0..20).try_fold(0, |count, _| Ok(count + fs::read_dir(&dir)?.count() as u64)))
}

fn untar(site: &Site) -> Result<Job> {
    let new = site.point.join("new");
    fs::create_dir(&new)?;
    let mut command = Command::new("tar");
    command.arg("-xf").arg(&site.archive).arg("-C").arg(&new);
    Ok(Box::new(|| tool(command, false)))
}

fn cp(site: &Site) -> Result<Job> {
    let part = site.point.join("p00");
    let mut look = Command::new("tar");
    look.args(["-cf", "-", "-C"]).arg(&part).arg(".");
    tool(look, false)?;
    let mut command = Command::new("cp");
    command.arg("-a").arg(part).arg(site.point.join("copy"));
    Ok(Box::new(|| tool(command, false)))
}

fn rm(path: &Path) -> Job {
    let mut command = Command::new("rm");
    command.arg("-rf").arg(path);
    Box::new(|| tool(command, false))
}

fn rm_lower(site: &Site) -> Result<Job> {
    Ok(rm(&site.point.join("p01")))
}

fn rm_new(site: &Site) -> Result<Job> {
    untar(site)?()?;
    Ok(rm(&site.point.join("new/part")))
}

fn new_names(site: &Site, letter: char) -> Vec<PathBuf> {
    let dir = site.point.join("new");
    (0..site.sizes.names).map(|number| dir.join(format!("{letter}{number:05}"))).collect()
}

fn create(site: &Site) -> Result<Job> {
    fs::create_dir(site.point.join("new"))?;
    let paths = new_names(site, 'f');
    Ok(Box::new(move || {
        for path in &paths {
            OpenOptions::new().write(true).create_new(true).open(path)?;
        }
        Ok(paths.len() as u64)
    }))
}

fn rename(site: &Site) -> Result<Job> {
    create(site)?()?;
    let (from, to) = (new_names(site, 'f'), new_names(site, 'g'));
    Ok(Box::new(move || {
        for (from, to) in from.iter().zip(&to) {
            fs::rename(from, to)?;
        }
        Ok(to.len() as u64)
    }))
}

fn unlink(site: &Site) -> Result<Job> {
    create(site)?()?;
    Ok(remove(new_names(site, 'f')))
}

fn unlink_lower(site: &Site) -> Result<Job> {
    let paths = small_files(site, site.sizes.small);
    for path in &paths {
        path.symlink_metadata()?;
    }
    Ok(remove(paths))
}

fn remove(paths: Vec<PathBuf>) -> Job {
    Box::new(move || {
        for path in &paths {
            fs::remove_file(path)?;
        }
        Ok(paths.len() as u64)
    })
}

fn mkdir(site: &Site) -> Result<Job> {
    fs::create_dir(site.point.join("new"))?;
    let paths = new_names(site, 'd');
    Ok(Box::new(move || {
        for path in &paths {
            fs::create_dir(path)?;
        }
        Ok(paths.len() as u64)
    }))
}

fn rmdir(site: &Site) -> Result<Job> {
    mkdir(site)?()?;
    let paths = new_names(site, 'd');
    Ok(Box::new(move || {
        for path in &paths {
            fs::remove_dir(path)?;
        }
        Ok(paths.len() as u64)
    }))
}

/// `count` paths of [`Input::Small`]; the same ones again after the last.
fn small_files(site: &Site, count: u32) -> Vec<PathBuf> {
    (0..count).map(|number| site.point.join(small(number % site.sizes.small.max(1)))).collect()
}

fn open_close(site: &Site) -> Result<Job> {
    let paths = small_files(site, site.sizes.opens);
    for path in paths.iter().take(site.sizes.small as usize) {
        File::open(path)?;
    }
    Ok(Box::new(move || {
        for path in &paths {
            File::open(path)?;
        }
        Ok(paths.len() as u64)
    }))
}

fn read_small(site: &Site) -> Result<Job> {
    fn read(path: &Path) -> Result<u64> {
        let mut buffer = [0; 8192];
        let mut file = File::open(path)?;
        let mut count = 0;
        loop {
            let read = file.read(&mut buffer)?;
            if read == 0 {
                return Ok(count);
            }
            count += read as u64;
        }
    }
    let paths = small_files(site, site.sizes.opens);
    for path in paths.iter().take(site.sizes.small as usize) {
        read(path)?;
    }
    Ok(Box::new(move || paths.iter().try_fold(0, |count, path| Ok(count + read(path)?))))
}

fn read_big(site: &Site) -> Job {
    let path = site.point.join("big");
    Box::new(move || {
        let mut buffer = vec![0; 1 << 20];
        let mut file = File::open(&path)?;
        let mut count = 0;
        loop {
            let read = file.read(&mut buffer)?;
            if read == 0 {
                return Ok(count);
            }
            count += read as u64;
        }
    })
}

/// Writes the file `new` in pieces, from its start to its end.
fn write_pieces(site: &Site, piece: usize, len: u64) -> Job {
    let path = site.point.join("new");
    Box::new(move || {
        let buffer = vec![7; piece];
        let mut file = OpenOptions::new().write(true).create_new(true).open(&path)?;
        for _ in 0..len / piece as u64 {
            file.write_all(&buffer)?;
        }
        Ok(len)
    })
}

fn write_big(site: &Site) -> Result<Job> {
    Ok(write_pieces(site, 1 << 20, site.sizes.big))
}

fn write_4k(site: &Site) -> Result<Job> {
    Ok(write_pieces(site, 4096, site.sizes.big / 4))
}

fn write_4k_random(site: &Site) -> Result<Job> {
    let path = site.point.join("new");
    let len = site.sizes.big / 4;
    write_noise(&path, len)?;
    let file = OpenOptions::new().write(true).open(path)?;
    let mut random = Random(4);
    Ok(Box::new(move || {
        let buffer = [7; 4096];
        for _ in 0..len / 4096 {
            file.write_all_at(&buffer, random.below(len / 4096) * 4096)?;
        }
        Ok(len)
    }))
}

fn missing(site: &Site) -> Job {
    let count = site.sizes.opens / 2;
    let paths: Vec<_> = (0..count).map(|number| site.point.join(format!("{}.missing", deep(number)))).collect();
    Box::new(move || {
        for path in &paths {
            match path.symlink_metadata() {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error).with_context(|| format!("{}", path.display())),
                Ok(_) => bail!("{} is there", path.display()),
            }
        }
        Ok(paths.len() as u64)
    })
}

fn look_up(site: &Site) -> Job {
    let paths: Vec<_> = (0..site.sizes.deep).map(|number| site.point.join(deep(number))).collect();
    Box::new(move || paths.iter().try_fold(0, |size, path| Ok(size + path.symlink_metadata()?.len())))
}

fn open_for_writing(path: &Path) -> Result<()> {
    OpenOptions::new().write(true).open(path).with_context(|| format!("open {} for writing", path.display()))?;
    Ok(())
}

fn copy_big(site: &Site) -> Result<Job> {
    let path = site.point.join("huge");
    Ok(Box::new(move || open_for_writing(&path).map(|()| 1)))
}

fn copy_small(site: &Site) -> Result<Job> {
    let paths = small_files(site, site.sizes.copies);
    for path in &paths {
        path.symlink_metadata()?;
    }
    Ok(Box::new(move || paths.iter().try_fold(0, |count, path| open_for_writing(path).map(|()| count + 1))))
}
