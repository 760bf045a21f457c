//! Kills at moments that fall where they fall: in the middle of data, of a tree that goes, of names that move.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::form::{Row, long};
use crate::lab::{Lab, noise, sh, shell, tree};
use crate::skip::skip;

/// What is killed in.
struct Scene {
    name: &'static str,
    script: &'static str,
    /// Whether what is found is right, of the copy that the script worked on.
    right: fn(&Path) -> Result<(), String>,
}

const SCENES: &[Scene] = &[
    Scene { name: "copy-up", script: "echo -n x >> large", right: copied },
    Scene { name: "rm -r", script: "rm -r tree", right: removed },
    Scene { name: "mv of a directory", script: "mv tree moved; mv moved/d1 tree; mv moved/d2/f3 tree/new", right: moved },
    Scene {
        name: "atomic replace",
        script: "i=0; while [ $i -lt 40 ]; do i=$((i + 1)); printf '%05000d' $i > tmp; sync tmp; mv tmp file; done",
        right: replaced,
    },
];

fn large() -> usize {
    if long() { 1 << 30 } else { 64 << 20 }
}

/// Old or new: its bytes, all of them.
fn copied(dir: &Path) -> Result<(), String> {
    use std::os::unix::fs::FileExt;
    let file = File::open(dir.join("large")).map_err(|error| error.to_string())?;
    let len = file.metadata().unwrap().len();
    if len != large() as u64 && len != large() as u64 + 1 {
        return Err(format!("{len} bytes"));
    }
    let (wanted, mut found) = (noise(7, 1 << 20), vec![0; 1 << 20]);
    for block in 0..large() >> 20 {
        file.read_exact_at(&mut found, (block as u64) << 20).map_err(|error| error.to_string())?;
        if found != wanted {
            return Err(format!("other bytes in MiB {block}"));
        }
    }
    Ok(())
}

/// What is there is whole.
fn removed(dir: &Path) -> Result<(), String> {
    let Ok(entries) = fs::read_dir(dir.join("tree")) else { return Ok(()) };
    for below in entries {
        for file in fs::read_dir(below.unwrap().path()).map_err(|error| error.to_string())? {
            let file = file.unwrap().path();
            let text = fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
            if !file.ends_with(&text) {
                return Err(format!("{} is {text:?}", file.display()));
            }
        }
    }
    Ok(())
}

/// Every file is there once, wherever it is.
fn moved(dir: &Path) -> Result<(), String> {
    // And `file`.
    let count = tree(dir).iter().filter(|line| line.contains("\" 100644 ")).count();
    if count == 20 * 10 + 1 { Ok(()) } else { Err(format!("{count} files")) }
}

/// One of the contents, as a whole.
fn replaced(dir: &Path) -> Result<(), String> {
    let text = fs::read_to_string(dir.join("file")).map_err(|error| error.to_string())?;
    if text == "old" || (text.len() == 5000 && text.trim_start_matches('0').parse::<u32>().is_ok_and(|number| number <= 40)) {
        Ok(())
    } else {
        Err(format!("{} bytes: {:?}", text.len(), &text[..text.len().min(20)]))
    }
}

fn layers() -> Lab {
    let mut lab = Lab::new();
    let dir = lab.tmpfs("disk", "mode=755");
    lab.live_on(&dir);
    for below in 0..20 {
        for number in 0..10 {
            lab.write_lower(&format!("tree/d{below}/f{number}"), format!("f{number}"));
        }
    }
    lab.write_lower("file", "old");
    lab
}

/// Kills at some part of the time that the script takes.
fn kill(scene: &Scene, after: Duration) -> Result<bool, String> {
    let mut lab = layers();
    if scene.name == "copy-up" {
        let block = noise(7, 1 << 20);
        use std::io::Write;
        let mut file = File::create(lab.lower("large")).unwrap();
        (0..large() >> 20).for_each(|_| file.write_all(&block).unwrap());
    }
    lab.mount();
    let mut child = shell(&lab.mnt(""), scene.script).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(after);
    let hit = child.try_wait().unwrap().is_none();
    lab.kill();
    let done = child.wait().unwrap().success();
    lab.mount();
    let litter = lab.staged();
    if !litter.is_empty() {
        return Err(format!("left in work: {litter:?}"));
    }
    (scene.right)(&lab.mnt(""))?;
    // The next operations.
    let mut next = Command::new("sh");
    next.args([
        "-ec",
        &format!("{}; test ! -e next; echo next > next; rm next", if scene.name == "atomic replace" { scene.script } else { "true" }),
    ]);
    if !next.current_dir(lab.mnt("")).status().unwrap().success() {
        return Err("the next operation failed".to_owned());
    }
    if scene.name == "copy-up" {
        sh(&lab.mnt(""), "echo -n x >> tree/d0/f0; test \"$(cat tree/d0/f0)\" = f0x");
    }
    if scene.name == "rm -r" {
        sh(&lab.mnt(""), "rm -rf tree; mkdir tree; rmdir tree");
    }
    let shown = tree(&lab.mnt(""));
    lab.remount();
    if tree(&lab.mnt("")) != shown {
        return Err("mounted again it is not what it was".to_owned());
    }
    lab.unmount();
    Ok(hit && !done)
}

#[test]
fn killed_at_any_moment_the_tree_is_whole_and_the_next_operation_unharmed() {
    if let Some(reason) = crate::lab::missing(&[]) {
        skip!("{reason}");
    }
    let each = if long() { 140 } else { 1 };
    let mut row = Row::default();
    let mut tries = 0;
    for scene in SCENES {
        // How long it takes, from a run that nobody disturbs.
        let mut lab = layers();
        if scene.name == "copy-up" {
            sh(&lab.lower(""), &format!("head -c {} /dev/zero > large", large()));
        }
        lab.mount();
        let start = Instant::now();
        sh(&lab.mnt(""), scene.script);
        let whole = start.elapsed();
        lab.unmount();
        drop(lab);
        for number in 0..each {
            tries += 1;
            let after = whole.mul_f64((f64::from(number) + 0.5) / f64::from(each));
            match kill(scene, after) {
                Ok(hit) => row.reached += usize::from(hit),
                Err(wrong) => {
                    row.reached += 1;
                    row.violation(format!("{}, killed after {after:?} of {whole:?}: {wrong}", scene.name));
                }
            }
        }
    }
    row.notes.push(format!("{tries} tries"));
    let (target, least) = if long() { ("500, 0", 500 * 9 / 10) } else { ("short form", 0) };
    row.end("SIGKILL during a copy-up of 1 GiB, rm -r, mv of a directory, atomic replace", target, least);
}
