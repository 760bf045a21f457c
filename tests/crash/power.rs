//! Power cuts: the filesystem of all layers loses what is not on its disk (the shutdown ioctl), while the server works or after it has answered.
//!
//! A filesystem that is shut down at once has nothing of the operation on its disk, and finds nothing. What finds empty and zeroed files is somebody
//! else's fsync, which commits the names of the operation while the data of its files is not written yet.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use plyfs_sys::OFlags;

use crate::form::{Row, in_two, long};
use crate::gate::{Fault, changes};
use crate::lab::{Lab, eventually, run};
use crate::ops::{At, OPERATIONS, Operation};
use crate::place::{Place, told};
use crate::seen::{View, between, differences, view};
use crate::skip::skip;
use crate::sweep::{Reference, some};

/// A filesystem in a file, on a device of its own.
struct Disk {
    device: String,
    dir: PathBuf,
    options: &'static str,
}

impl Disk {
    fn new(lab: &mut Lab, kind: &str, options: &'static str) -> Disk {
        let (dir, image) = (lab.mountpoint("fs"), lab.path("fs.img"));
        File::create(&image).unwrap().set_len(if kind == "xfs" { 320 << 20 } else { 96 << 20 }).unwrap();
        run(Command::new("mkfs").args(["-t", kind, "-q"]).arg(&image));
        let device = run(Command::new("losetup").args(["--find", "--show"]).arg(&image)).trim().to_owned();
        let disk = Disk { device, dir, options };
        disk.mount();
        disk
    }

    fn mount(&self) {
        run(Command::new("mount").args(["-o", self.options, &self.device]).arg(&self.dir));
    }

    /// Cuts the power. Whoever used it gets errors from now on.
    fn cut(&self, how: Cut) {
        if how == Cut::Committed {
            File::create(self.dir.join("of somebody else")).and_then(|file| file.sync_all()).unwrap();
        }
        let order = if how == Cut::Flushed { "shutdown -f" } else { "shutdown" };
        run(Command::new("xfs_io").args(["-x", "-c", order]).arg(&self.dir));
    }

    /// What is on the disk comes back.
    fn again(&self) {
        eventually("nobody uses the disk", || Command::new("umount").arg(&self.dir).output().unwrap().status.success());
        // The server's own mounts of it may go a little later, and as long as one is there the filesystem is: an exclusive opening of its device tells.
        let exclusive = i32::try_from(OFlags::EXCL.bits()).unwrap();
        eventually("the filesystem has gone", || OpenOptions::new().read(true).custom_flags(exclusive).open(&self.device).is_ok());
        self.mount();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // The lab unmounts it; a device in use goes with its last user.
        let output = Command::new("losetup").arg("-d").arg(&self.device).output().unwrap();
        if !output.status.success() {
            eprintln!("losetup -d: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
}

/// What is on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// What was synced.
    AtOnce,
    /// All that happened to names and attributes, and of data what was synced: somebody else has synced a file.
    Committed,
    /// The same, by the filesystem's own flush of its log.
    Flushed,
}

/// A union on a disk, with prepared copies that are on it.
fn prepared(operation: &Operation, kind: &str, options: &'static str, copies: usize, more: &'static str) -> (Place, Disk) {
    let mut lab = Lab::new();
    let disk = Disk::new(&mut lab, kind, options);
    let mut place = Place::in_dir(lab, &disk.dir, copies, operation.metacopy);
    place.mount().unwrap();
    for copy in 0..copies {
        (operation.prepare)(&mut At::new(place.copy(copy))).unwrap_or_else(|error| panic!("{}: prepare: {error}", operation.name));
    }
    place.unmount().unwrap();
    place.more = more;
    place.mount().unwrap();
    sync(&disk.dir);
    (place, disk)
}

fn sync(dir: &Path) {
    rustix::fs::syncfs(File::open(dir).unwrap()).unwrap();
}

/// Does the operation to a copy, cuts the power, and looks at what comes back.
fn cut(
    place: &mut Place,
    disk: &Disk,
    operation: &Operation,
    reference: &Reference,
    copy: usize,
    how: Cut,
    call: Option<usize>,
) -> Result<(), String> {
    let mut at = At::new(place.copy(copy));
    at.wanted = Some(view(&at.dir));
    if let Some(call) = call {
        place.gate().arm(call, Fault::Kill);
    }
    let done = place.within(|| (operation.act)(&mut at))?;
    disk.cut(how);
    place.kill();
    disk.again();
    place.mount()?;
    let litter = place.litter();
    if !litter.is_empty() {
        return Err(format!("left in work: {litter:?}"));
    }
    let found = place.within(|| view(&place.copy(copy)))?;
    let wrong = |views: &[View], what: &str| {
        let said = told(&done);
        let (old, new) = (differences(&found, &views[0], false), differences(&found, views.last().unwrap(), false));
        Err(format!("answered {said}, and {what}: not old ({old}), not new ({new})"))
    };
    if !between(&found, &reference.views) {
        return wrong(&reference.views, "then it is torn");
    }
    let synced = operation.name.contains("fsync") && done.is_ok();
    if synced && !between(&found, &reference.views[reference.views.len() - 1..]) {
        return wrong(&reference.views, "what was synced is not there");
    }
    sync(&disk.dir);
    Ok(())
}

/// All cuts of an operation that are chosen.
fn cuts(operation: &Operation, seed: usize, kind: &str, options: &'static str, calls: usize) -> Row {
    let reference = Reference::of(operation);
    let changing: Vec<usize> = reference.warm.iter().filter(|call| changes(call)).map(|call| call.0).collect();
    let whole = if long() { vec![Cut::AtOnce, Cut::Committed, Cut::Flushed] } else { vec![Cut::Committed] };
    let mut points: Vec<(Cut, Option<usize>)> = whole.into_iter().map(|how| (how, None)).collect();
    points.extend(some(changing, calls, seed).into_iter().map(|call| (Cut::Committed, Some(call))));
    let (mut place, disk) = prepared(operation, kind, options, points.len(), "");
    let mut row = Row::default();
    for (copy, (how, call)) in points.into_iter().enumerate() {
        row.reached += 1;
        if let Err(wrong) = cut(&mut place, &disk, operation, &reference, copy, how, call) {
            let at = call.map(|call| format!(" and killed at {:?}", reference.warm.iter().find(|(number, _)| *number == call)));
            row.violation(format!("{}, {kind} {options}, {how:?}{}: {wrong}", operation.name, at.unwrap_or_default()));
            if place.died() {
                place.kill();
                place.mount().unwrap();
            }
        }
    }
    place.unmount().unwrap_or_else(|wrong| row.violation(format!("{}, at the end: {wrong}", operation.name)));
    drop(place);
    drop(disk);
    row
}

fn missing() -> Option<String> {
    crate::gate::missing().or_else(|| crate::lab::missing(&["losetup", "xfs_io"]))
}

fn named(names: &[&str]) -> Vec<&'static Operation> {
    OPERATIONS.iter().filter(|operation| names.contains(&operation.name)).collect()
}

#[test]
fn a_power_cut_leaves_old_or_new_and_what_was_synced() {
    if let Some(reason) = missing() {
        skip!("{reason}");
    }
    let mut all = if long() {
        crate::sweep::operations()
    } else {
        named(&["write", "rename", "chmod", "atomic replace", "write and fsync", "write to a metacopy"])
    };
    // What is written into a block that the file has already is the filesystem's: it may bring the size to the disk before the bytes.
    all.retain(|operation| !["append", "write by the owner of a setuid file"].contains(&operation.name));
    let calls = if long() { 6 } else { 1 };
    let mut row = in_two(&all, |seed, operation| {
        // Without the heuristics of ext4, which write the data of some files early.
        let options = if seed % 2 == 0 { "noatime,noauto_da_alloc" } else { "noatime" };
        let row = cuts(operation, seed, "ext4", options, calls);
        if long() {
            println!("{}: {} cuts, {} violations", operation.name, row.reached, row.violations.len());
        }
        row
    });
    if long() {
        let on_xfs =
            in_two(&all, |seed, operation| if seed % 4 == 0 { cuts(operation, seed, "xfs", "noatime", 2) } else { Row::default() });
        row.notes.push(format!("{} of them on xfs", on_xfs.reached));
        row.add(on_xfs);
    }
    let (target, least) = if long() { ("200, never shorter or zeroed", 200) } else { ("short form", 10) };
    row.end("power cut of the layers' filesystem", target, least);
}

/// The same cut finds an empty file where nothing waits for the disk, so that it can find one.
#[test]
fn a_power_cut_of_a_volatile_union_is_found() {
    if let Some(reason) = missing() {
        skip!("{reason}");
    }
    let operation = named(&["append"])[0];
    let reference = Reference::of(operation);
    let (mut place, disk) = prepared(operation, "ext4", "noatime", 1, ",volatile");
    let found = cut(&mut place, &disk, operation, &reference, 0, Cut::Committed, None);
    assert!(found.as_ref().is_err_and(|wrong| wrong.contains("torn")), "{found:?}");
    drop(place);
    drop(disk);
}
