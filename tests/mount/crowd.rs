//! Sixteen threads at once, each with names of its own and all with some in common; then everything is as it must be, and the server has nothing left.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use plyfs_sys::Errno;
use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::lab::{Lab, append, errno, eventually, lab, names, noise, sh, tree};

const THREADS: usize = 16;
const TIME: Duration = Duration::from_secs(12);

/// Random numbers that differ for each seed.
struct Dice(Vec<u8>, usize);

impl Dice {
    fn new(seed: u64) -> Dice {
        Dice(noise(seed, 1 << 16), 0)
    }

    fn below(&mut self, limit: usize) -> usize {
        self.1 = (self.1 + 4) % (self.0.len() - 4);
        u32::from_le_bytes(self.0[self.1..self.1 + 4].try_into().unwrap()) as usize % limit
    }
}

/// What a thread's own object is.
#[derive(Clone, Debug, PartialEq)]
enum Own {
    Dir,
    File(Vec<u8>, u32),
    Link(PathBuf),
}

/// Everything that a thread has made of its own directory, by paths in it.
type Model = BTreeMap<PathBuf, Own>;

const DIRS: [&str; 4] = ["", "a", "a/b", "c"];

/// The layers: for each thread a directory with lower, upper and merged parts, and a shared one.
fn layers(lab: &Lab) -> Vec<Model> {
    let models = (0..THREADS).map(|thread| {
        let mut model = Model::new();
        for dir in &DIRS[1..] {
            model.insert(dir.into(), Own::Dir);
            fs::create_dir_all(lab.lower(&format!("own{thread}/{dir}"))).unwrap();
        }
        for dir in DIRS {
            for number in 0..6 {
                let path = Path::new(dir).join(format!("f{number}"));
                let content = noise((thread * 100 + number) as u64, 100 * number);
                let full = format!("own{thread}/{}", path.display());
                if number % 3 == 0 {
                    lab.write_upper(&full, &content)
                } else {
                    lab.write_lower(&full, &content)
                }
                model.insert(path, Own::File(content, 0o644));
            }
        }
        model
    });
    for number in 0..40 {
        let path = format!("shared/s{}/n{number}", number % 4);
        if number % 2 == 0 { lab.write_lower(&path, "shared\n") } else { lab.write_upper(&path, "shared\n") }
    }
    for thread in 0..THREADS {
        lab.write_lower(&format!("shared/swapped{thread}"), format!("{thread}"));
    }
    for name in ["shared/log", "shared/counter"] {
        lab.write_lower(name, "");
    }
    models.collect()
}

/// One step in a thread's own directory, done and noted.
fn own_step(root: &Path, model: &mut Model, dice: &mut Dice, step: usize) {
    let files: Vec<_> = model.iter().filter(|(_, own)| matches!(own, Own::File(..))).map(|(path, _)| path.clone()).collect();
    let dirs: Vec<_> = model.iter().filter(|(_, own)| **own == Own::Dir).map(|(path, _)| path.clone()).chain([PathBuf::new()]).collect();
    let dir = &dirs[dice.below(dirs.len())];
    let new = dir.join(format!("n{}", dice.below(30)));
    let file = if files.is_empty() { None } else { Some(files[dice.below(files.len())].clone()) };
    let here = |path: &Path| root.join(path);
    let is_dir = |model: &Model, path: &Path| model.get(path) == Some(&Own::Dir);
    match (dice.below(12), file) {
        (0 | 1, _) => {
            let content = noise(step as u64, dice.below(9000));
            if is_dir(model, &new) {
                assert_eq!(errno(fs::write(here(&new), &content)), Some(Errno::ISDIR));
            } else if matches!(model.get(&new), Some(Own::Link(_))) {
                assert_eq!(errno(OpenOptions::new().write(true).create_new(true).open(here(&new))), Some(Errno::EXIST));
            } else {
                fs::write(here(&new), &content).unwrap();
                let mode = if let Some(Own::File(_, mode)) = model.get(&new) { *mode } else { 0o644 };
                model.insert(new, Own::File(content, mode));
            }
        }
        (2, Some(file)) => {
            append(&here(&file), b"more");
            let Some(Own::File(content, _)) = model.get_mut(&file) else { panic!() };
            content.extend(b"more");
        }
        (3, Some(file)) => {
            let Some(Own::File(content, _)) = model.get_mut(&file) else { panic!() };
            let length = dice.below(content.len() + 100);
            let opened = OpenOptions::new().write(true).open(here(&file)).unwrap();
            opened.set_len(length as u64).unwrap();
            content.resize(length, 0);
            opened.write_all_at(b"at", length as u64 / 2).unwrap();
            content.resize(length.max(length / 2 + 2), 0);
            content[length / 2..length / 2 + 2].copy_from_slice(b"at");
        }
        (4, Some(file)) => {
            let mode = [0o600, 0o644, 0o755][dice.below(3)];
            fs::set_permissions(here(&file), fs::Permissions::from_mode(mode)).unwrap();
            let Some(Own::File(_, of)) = model.get_mut(&file) else { panic!() };
            *of = mode;
        }
        (5, Some(file)) => {
            fs::remove_file(here(&file)).unwrap();
            model.remove(&file);
        }
        (6, Some(file)) => {
            let result = errno(fs::rename(here(&file), here(&new)));
            if is_dir(model, &new) {
                // What the file is in cannot be replaced by it anyway.
                let above = file.starts_with(&new);
                assert_eq!(result, Some(if above { Errno::NOTEMPTY } else { Errno::ISDIR }), "{} {}", file.display(), new.display());
            } else {
                assert_eq!(result, None, "{} {}", file.display(), new.display());
                let own = model.remove(&file).unwrap();
                model.insert(new, own);
            }
        }
        (7, _) => {
            let result = errno(fs::create_dir(here(&new)));
            assert_eq!(result, model.contains_key(&new).then_some(Errno::EXIST), "{}", new.display());
            model.entry(new).or_insert(Own::Dir);
        }
        (8, _) if !dir.as_os_str().is_empty() => {
            let empty = !model.keys().any(|path| path != dir && path.starts_with(dir));
            assert_eq!(errno(fs::remove_dir(here(dir))), (!empty).then_some(Errno::NOTEMPTY), "{}", dir.display());
            if empty {
                model.remove(dir);
            }
        }
        (9, _) if !dir.as_os_str().is_empty() => {
            let other = &dirs[dice.below(dirs.len())];
            let to = other.join(format!("d{}", dice.below(10)));
            if !to.starts_with(dir) && !model.contains_key(&to) {
                fs::rename(here(dir), here(&to)).unwrap_or_else(|error| panic!("{} {}: {error}", dir.display(), to.display()));
                let moved: Vec<_> = model.keys().filter(|path| path.starts_with(dir)).cloned().collect();
                for path in moved {
                    let own = model.remove(&path).unwrap();
                    let rest = path.strip_prefix(dir).unwrap();
                    model.insert(if rest.as_os_str().is_empty() { to.clone() } else { to.join(rest) }, own);
                }
            }
        }
        (10, _) => {
            let result = errno(std::os::unix::fs::symlink("target", here(&new)));
            assert_eq!(result, model.contains_key(&new).then_some(Errno::EXIST), "{}", new.display());
            model.entry(new).or_insert(Own::Link("target".into()));
        }
        (_, Some(file)) => {
            let Some(Own::File(content, mode)) = model.get(&file) else { panic!() };
            let meta = fs::metadata(here(&file)).unwrap();
            assert_eq!((meta.len(), meta.mode() & 0o777), (content.len() as u64, *mode), "{}", file.display());
            assert!(fs::read(here(&file)).unwrap() == *content, "{}", file.display());
        }
        _ => {}
    }
}

/// What a thread has done to what is shared.
#[derive(Default)]
struct Shared {
    /// Lines that it appended to the log.
    lines: Vec<String>,
    made: BTreeSet<String>,
    removed: BTreeSet<String>,
}

/// One step among names that all threads use: whoever loses is told so by one of few errors.
fn shared_step(root: &Path, done: &mut Shared, dice: &mut Dice, thread: usize, step: usize) {
    let one_of = |result: Option<Errno>, allowed: &[Errno]| {
        assert!(result.is_none_or(|errno| allowed.contains(&errno)), "{result:?}");
        result.is_none()
    };
    let dir = |number: usize| root.join(format!("s{number}"));
    let name = |number: usize| format!("n{number}");
    let (number, from, to) = (dice.below(40), dice.below(4), dice.below(4));
    match dice.below(9) {
        0 => {
            let line = format!("{thread} {step} {}", "x".repeat(dice.below(200)));
            append(&root.join("log"), format!("{line}\n"));
            done.lines.push(line);
        }
        // Files that nobody makes or removes, only moves: none is ever lost or doubled.
        1 | 2 => drop(one_of(
            errno(
                renameat_with(CWD, dir(from).join(name(number)), CWD, dir(to).join(name(number)), RenameFlags::NOREPLACE)
                    .map_err(Into::into),
            ),
            &[Errno::NOENT, Errno::EXIST],
        )),
        3 => {
            let (a, b) = (root.join(format!("swapped{}", dice.below(THREADS))), root.join(format!("swapped{}", dice.below(THREADS))));
            renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE).unwrap();
        }
        // Names that one makes and one removes.
        4 => {
            let name = format!("once{}", step % 500);
            let made = OpenOptions::new().write(true).create_new(true).open(root.join(&name));
            if one_of(errno(made), &[Errno::EXIST]) {
                assert!(done.made.insert(format!("{name} {step}")));
            }
        }
        5 => {
            let name = format!("once{}", dice.below(500));
            if one_of(errno(fs::remove_file(root.join(&name))), &[Errno::NOENT]) {
                done.removed.insert(format!("{name} {step}"));
            }
        }
        6 => drop(one_of(errno(OpenOptions::new().append(true).open(dir(from).join(name(number)))), &[Errno::NOENT])),
        // A read-modify-write under a lock.
        7 => {
            let file = OpenOptions::new().read(true).write(true).open(root.join("counter")).unwrap();
            file.lock().unwrap();
            let count = file.metadata().unwrap().len();
            file.write_all_at(b"+", count).unwrap();
            done.lines.push("+".to_owned());
        }
        _ => {
            // All that nobody touches is in every listing, once.
            let listed = names(root);
            let fixed = listed
                .iter()
                .filter(|name| name.starts_with("swapped") || name.starts_with('s') && name.len() == 2 || *name == "log")
                .count();
            assert_eq!(fixed, THREADS + 4 + 1, "{listed:?}");
        }
    }
}

fn open_files(lab: &Lab) -> usize {
    fs::read_dir(format!("/proc/{}/fd", lab.pid())).unwrap().count()
}

#[test]
fn sixteen_threads_leave_what_they_say_they_did() {
    let mut lab = lab!();
    let models = layers(&lab);
    lab.mount();
    let before = open_files(&lab);
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    println!("seed {seed}");
    let (barrier, lab_ref) = (Barrier::new(THREADS), &lab);
    let results: Vec<(Model, Shared, usize)> = std::thread::scope(|scope| {
        let threads: Vec<_> = models
            .into_iter()
            .enumerate()
            .map(|(thread, mut model)| {
                let barrier = &barrier;
                scope.spawn(move || {
                    let mut dice = Dice::new(seed + thread as u64);
                    let mut shared = Shared::default();
                    barrier.wait();
                    let start = Instant::now();
                    let mut step = 0;
                    while start.elapsed() < TIME {
                        own_step(&lab_ref.mnt(&format!("own{thread}")), &mut model, &mut dice, thread * 1_000_000 + step);
                        shared_step(&lab_ref.mnt("shared"), &mut shared, &mut dice, thread, step);
                        step += 1;
                    }
                    (model, shared, step)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let steps: usize = results.iter().map(|(_, _, steps)| steps).sum();
    println!("{steps} steps");
    assert!(results.iter().all(|(_, _, steps)| *steps > 20), "some thread starved");
    for remounted in [false, true] {
        for (thread, (model, ..)) in results.iter().enumerate() {
            let root = lab.mnt(&format!("own{thread}"));
            let mut found = Model::new();
            crate::lab::walk(&root, &mut |path, meta| {
                let own = if meta.is_dir() {
                    Own::Dir
                } else if meta.is_symlink() {
                    Own::Link(fs::read_link(path).unwrap())
                } else {
                    Own::File(fs::read(path).unwrap(), meta.mode() & 0o777)
                };
                let path = path.strip_prefix(&root).unwrap();
                if !path.as_os_str().is_empty() {
                    found.insert(path.to_owned(), own);
                }
            });
            let differ: BTreeSet<_> = model.keys().chain(found.keys()).filter(|path| model.get(*path) != found.get(*path)).collect();
            assert!(differ.is_empty(), "seed {seed}, remounted {remounted}, thread {thread}: {differ:?}");
        }
        check_shared(&lab.mnt("shared"), &results, seed);
        if !remounted {
            let before = tree(&lab.mnt(""));
            lab.remount();
            assert_eq!(tree(&lab.mnt("")), before);
        }
    }
    // When all is gone, so is what the server held.
    sh(&lab.mnt(""), "rm -r *");
    assert_eq!(names(&lab.mnt("")), [""; 0]);
    eventually("the server's descriptors are closed", || open_files(&lab) <= before);
    lab.unmount();
}

fn check_shared(root: &Path, results: &[(Model, Shared, usize)], seed: u64) {
    // Each line once, those of a thread in its order.
    let log = fs::read_to_string(root.join("log")).unwrap();
    let mut count = 0;
    for (thread, (_, shared, _)) in results.iter().enumerate() {
        let own: Vec<_> = log.lines().filter(|line| line.starts_with(&format!("{thread} "))).collect();
        let expected: Vec<_> = shared.lines.iter().filter(|line| *line != "+").collect();
        assert!(own == expected, "seed {seed}: the log of thread {thread}");
        count += own.len();
    }
    assert_eq!(log.lines().count(), count);
    let counted: usize = results.iter().map(|(_, shared, _)| shared.lines.iter().filter(|line| *line == "+").count()).sum();
    assert_eq!(fs::read(root.join("counter")).unwrap().len(), counted, "seed {seed}: the counter");
    // What was only moved is there, once.
    let moved: Vec<_> = (0..4).flat_map(|dir| names(&root.join(format!("s{dir}")))).collect();
    assert_eq!((moved.len(), moved.iter().collect::<BTreeSet<_>>().len()), (40, 40), "seed {seed}: {moved:?}");
    for dir in 0..4 {
        for name in names(&root.join(format!("s{dir}"))) {
            assert_eq!(fs::read_to_string(root.join(format!("s{dir}")).join(name)).unwrap(), "shared\n");
        }
    }
    let swapped: BTreeSet<_> = (0..THREADS).map(|thread| fs::read_to_string(root.join(format!("swapped{thread}"))).unwrap()).collect();
    assert_eq!(swapped, (0..THREADS).map(|thread| thread.to_string()).collect());
    // Of each name as many were made as were removed, but for those that are there.
    let of = |all: &BTreeSet<String>, name: &str| all.iter().filter(|entry| entry.split(' ').next() == Some(name)).count();
    for number in 0..500 {
        let name = format!("once{number}");
        let made: usize = results.iter().map(|(_, shared, _)| of(&shared.made, &name)).sum();
        let removed: usize = results.iter().map(|(_, shared, _)| of(&shared.removed, &name)).sum();
        assert_eq!(made - removed, usize::from(root.join(&name).exists()), "seed {seed}: {name}");
    }
}
