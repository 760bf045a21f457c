//! Each operation, with its server killed at, or with an error of, each of the calls that it makes for it.

use std::io;
use std::path::Path;

use crate::form::{Row, in_two, long};
use crate::gate::{Call, ERRNOS, Fault, changes, hit, of_layers};
use crate::ops::{At, OPERATIONS, Operation, READS, WRONG};
use crate::place::{Place, told};
use crate::seen::{View, between, differences, errors, files, same, view};
use crate::skip::skip;

/// How an operation goes where nothing fails.
pub(crate) struct Reference {
    /// What shows before, after each of its steps, and at its end.
    pub(crate) views: Vec<View>,
    /// The same as kernel overlayfs shows it.
    kernel: Vec<View>,
    /// The calls of the server for it: with a kernel that knows all names, and with one that knows none.
    pub(crate) warm: Vec<Call>,
    cold: Vec<Call>,
}

/// Copies that the reference takes besides one a step.
const SPARE: usize = 5;
const MOST_STEPS: usize = 8;

/// Does the operation to a copy; also what shows before. `traced` is called between.
fn act(place: &Place, operation: &Operation, copy: usize, left: usize, cold: bool) -> (At, io::Result<()>) {
    let mut at = At { left, ..At::new(place.copy(copy)) };
    at.wanted = Some(view(&at.dir));
    if cold {
        place.lab.forget_entries();
    }
    let done = (operation.act)(&mut at);
    (at, done)
}

impl Reference {
    pub(crate) fn of(operation: &Operation) -> Reference {
        let name = operation.name;
        let mut place = prepared(operation, MOST_STEPS + SPARE);
        // Copy 0 stays; 1 tells the steps and the end; 2 and 3 are traced.
        let (at, done) = act(&place, operation, 1, usize::MAX, false);
        done.unwrap_or_else(|error| panic!("{name}: {error}"));
        let steps = at.steps;
        assert!(steps <= MOST_STEPS, "{name}");
        let [warm, cold] = [(2, false), (3, true)].map(|(copy, cold): (usize, bool)| {
            let mut at = At::new(place.copy(copy));
            at.wanted = Some(view(&at.dir));
            if cold {
                place.lab.forget_entries();
            }
            place.gate().arm(0, Fault::None);
            (operation.act)(&mut at).unwrap_or_else(|error| panic!("{name}, traced: {error}"));
            settle(&place);
            let calls = place.gate().calls();
            place.gate().disarm();
            calls
        });
        let mut copies = vec![0];
        for left in 0..steps {
            let copy = 4 + left;
            let (_, stopped) = act(&place, operation, copy, left, false);
            assert!(stopped.is_err_and(|error| error.to_string() == "stopped"), "{name}");
            copies.push(copy);
        }
        copies.push(1);
        let live: Vec<View> = copies.iter().map(|&copy| view(&place.copy(copy))).collect();
        place.unmount().unwrap();
        place.mount().unwrap();
        let views: Vec<View> = copies.iter().map(|&copy| view(&place.copy(copy))).collect();
        for (live, again) in live.iter().zip(&views) {
            assert!(same(again, live, true), "{name}, mounted again: {}", differences(again, live, true));
            assert!(errors(live).is_empty(), "{name}: {:?}", errors(live));
        }
        place.unmount().unwrap();
        let kernel = place.in_kernel(|root| copies.iter().map(|&copy| view(&crate::seen::copy(root, copy))).collect()).unwrap();
        Reference { views, kernel, warm, cold }
    }
}

/// Gives the server the time to answer what nobody waits for; whether it is dead.
fn settle(place: &Place) -> bool {
    // Requests of their own, which no cache answers.
    (0..3).any(|_| {
        let answer = rustix::fs::statvfs(place.lab.mnt("").as_path());
        matches!(answer, Err(rustix::io::Errno::NOTCONN | rustix::io::Errno::CONNABORTED))
    })
}

/// Whether it is old, new, or a step in between.
fn is_right(operation: &Operation, found: &View, views: &[View]) -> bool {
    views.iter().any(|view| same(found, view, false)) || (operation.piecemeal && between(found, views))
}

/// How a view differs from the first and the last.
fn neither(found: &View, views: &[View]) -> String {
    let old = differences(found, &views[0], false);
    let new = differences(found, views.last().unwrap(), false);
    format!("neither old ({old}) nor new ({new})")
}

/// The next operations, after a fault: each file takes what is appended, all of its names show it, and names come and go.
fn unharmed(dir: &Path, before: &View) -> Result<(), String> {
    use std::io::Write;
    let failed = |what: &str, error: io::Error| format!("the next operation: {what}: {error}");
    for (name, names) in files(before) {
        let path = dir.join(name);
        if names.first().is_some_and(|first| first != name) {
            continue;
        }
        let old = std::fs::read(&path).map_err(|error| failed(name, error))?;
        match std::fs::OpenOptions::new().append(true).open(&path) {
            Ok(mut file) => file.write_all(b"+").map_err(|error| failed(name, error))?,
            // Of the operations that protect it.
            Err(error) if error.raw_os_error() == Some(1) => continue,
            Err(error) => return Err(failed(name, error)),
        }
        let wanted = [old, b"+".to_vec()].concat();
        for name in names.iter().map(String::as_str).chain([name]) {
            let found = std::fs::read(dir.join(name)).map_err(|error| failed(name, error))?;
            if found != wanted {
                return Err(format!("the next operation: {name:?} has {} bytes after an append to {}", found.len(), wanted.len() - 1));
            }
        }
    }
    let steps: [(&str, &dyn Fn() -> io::Result<()>); 5] = [
        ("mkdir", &|| std::fs::create_dir(dir.join("next"))),
        ("create", &|| std::fs::write(dir.join("next/file"), "next")),
        ("rename", &|| std::fs::rename(dir.join("next/file"), dir.join("next file"))),
        ("unlink", &|| std::fs::remove_file(dir.join("next file"))),
        ("rmdir", &|| std::fs::remove_dir(dir.join("next"))),
    ];
    steps.iter().try_for_each(|(what, step)| step().map_err(|error| failed(what, error)))
}

/// Kills of one set of layers, which each mount looks through.
const BATCH: usize = 8;

/// Kills the server at each of the calls that are chosen of those that change something.
fn killed(operation: &Operation, seed: usize, choose: impl Fn(Vec<Call>) -> Vec<Call>) -> Row {
    let reference = Reference::of(operation);
    let points = choose(reference.warm.iter().filter(|call| changes(call)).cloned().collect());
    let mut row = Row::default();
    for (batch, points) in points.chunks(BATCH).enumerate() {
        let mut place = prepared(operation, points.len());
        for (copy, point) in points.iter().enumerate() {
            let kernel_first = operation.kernel && (batch * BATCH + copy + seed).is_multiple_of(2);
            match kill_at(&mut place, operation, &reference, copy, point, kernel_first) {
                Ok(reached) => row.reached += usize::from(reached),
                Err(wrong) => {
                    row.reached += 1;
                    row.violation(format!("{}, killed at {point:?}: {wrong}", operation.name));
                }
            }
            if place.died() {
                place.kill();
                place.mount().unwrap();
            }
        }
        place.unmount().unwrap_or_else(|wrong| row.violation(format!("{}, at the end: {wrong}", operation.name)));
    }
    row
}

/// A mount with so many prepared copies, of which nothing is known yet.
fn prepared(operation: &Operation, copies: usize) -> Place {
    let mut place = Place::new(copies, operation.metacopy);
    place.mount().unwrap();
    for copy in 0..copies {
        (operation.prepare)(&mut At::new(place.copy(copy))).unwrap_or_else(|error| panic!("{}: prepare: {error}", operation.name));
    }
    place.unmount().unwrap();
    place.mount().unwrap();
    place
}

/// Whether it was killed there.
fn kill_at(
    place: &mut Place,
    operation: &Operation,
    reference: &Reference,
    copy: usize,
    point: &Call,
    kernel_first: bool,
) -> Result<bool, String> {
    let mut at = At::new(place.copy(copy));
    let before = view(&at.dir);
    if !same(&before, &reference.views[0], true) {
        return Err(format!("what was done before has changed it: {}", differences(&before, &reference.views[0], true)));
    }
    at.wanted = Some(before);
    place.gate().arm(point.0, Fault::Kill);
    let done = place.within(|| (operation.act)(&mut at))?;
    if !settle(place) {
        place.gate().disarm();
        return Ok(false);
    }
    place.kill();
    let said = || format!("answered {}", told(&done));
    let new = reference.views.last().ok_or("no views")?;
    if kernel_first {
        let found = place.in_kernel(|root| view(&crate::seen::copy(root, copy)))?;
        if !is_right(operation, &found, &reference.kernel) {
            return Err(format!("kernel overlayfs shows {}; {}", neither(&found, &reference.kernel), said()));
        }
    }
    place.mount()?;
    let litter = place.litter();
    if !litter.is_empty() {
        return Err(format!("left in work: {litter:?}; {}", said()));
    }
    let found = place.within(|| view(&place.copy(copy)))?;
    if !is_right(operation, &found, &reference.views) {
        return Err(format!("{}; {}", neither(&found, &reference.views), said()));
    }
    if done.is_ok() && !same(&found, new, false) {
        return Err(format!("success was told, and it is old; {}", said()));
    }
    place.within(|| unharmed(&place.copy(copy), &found))?.map(|()| true)
}

/// A call that fails.
#[derive(Debug)]
struct Point {
    call: Call,
    errno: &'static str,
    /// The kernel has forgotten all names.
    cold: bool,
}

/// Lets each of the calls that are chosen fail, and mounts anew in the end.
fn failing(operation: &Operation, seed: usize, choose: impl Fn(Vec<Point>) -> Vec<Point>) -> Row {
    /// Copies of one mount.
    const BATCH: usize = 120;
    let reference = Reference::of(operation);
    let mut all = Vec::new();
    for call in reference.warm.iter().filter(|call| of_layers(call)) {
        // What reads fails with one error and another, what changes with all.
        let turn = 1 + (call.0 + seed) % (ERRNOS.len() - 1);
        let errnos: Vec<_> = if changes(call) { ERRNOS.into() } else { vec![ERRNOS[0], ERRNOS[turn]] };
        all.extend(errnos.into_iter().map(|errno| Point { call: call.clone(), errno, cold: false }));
    }
    for call in reference.cold.iter().filter(|call| of_layers(call)) {
        all.push(Point { call: call.clone(), errno: ERRNOS[(call.0 + seed) % ERRNOS.len()], cold: true });
    }
    let points = choose(all);
    let mut row = Row::default();
    for points in points.chunks(BATCH) {
        fail_at(operation, &reference, points, &mut row);
    }
    row
}

fn fail_at(operation: &Operation, reference: &Reference, points: &[Point], row: &mut Row) {
    let mut place = prepared(operation, points.len());
    let mut live = Vec::new();
    for (copy, point) in points.iter().enumerate() {
        let wrong = |row: &mut Row, wrong: String| {
            row.violation(format!("{}, {point:?}: {wrong}", operation.name));
        };
        let mut at = String::new();
        match error_at(&mut place, operation, reference, copy, point, &mut at) {
            Ok(Some(view)) => {
                row.reached += usize::from(!at.is_empty());
                live.push((copy, view));
            }
            Ok(None) => row.reached += 1,
            Err(what) => {
                row.reached += 1;
                wrong(row, format!("{what}, at {at}"));
            }
        }
        if place.died() {
            wrong(row, format!("the server has died: {}", place.log()));
            place.kill();
            place.mount().unwrap();
        }
    }
    let mut wrong = |wrong: String| row.violation(format!("{}, with errors: {wrong}", operation.name));
    place.unmount().unwrap_or_else(&mut wrong);
    if let Err(what) = place.mount() {
        return wrong(what);
    }
    let litter = place.litter();
    if !litter.is_empty() {
        wrong(format!("left in work: {litter:?}"));
    }
    for (copy, live) in &live {
        let found = view(&place.copy(*copy));
        if !same(&found, live, true) {
            wrong(format!("{:?}: mounted again it is not what it was: {}", points[*copy], differences(&found, live, true)));
        }
        unharmed(&place.copy(*copy), &found).unwrap_or_else(|what| wrong(format!("{:?}: {what}", points[*copy])));
    }
    let after: Vec<View> = live.iter().map(|(copy, _)| view(&place.copy(*copy))).collect();
    place.unmount().unwrap_or_else(&mut wrong);
    if operation.kernel {
        let seen = place.in_kernel(|root| live.iter().map(|(copy, _)| view(&crate::seen::copy(root, *copy))).collect::<Vec<_>>());
        match seen {
            Ok(seen) => {
                for ((found, wanted), (copy, _)) in seen.iter().zip(&after).zip(&live) {
                    if !same(found, wanted, true) {
                        wrong(format!("{:?}: kernel overlayfs shows it as {}", points[*copy], differences(found, wanted, true)));
                    }
                }
            }
            Err(what) => wrong(what),
        }
    }
}

/// What shows after it, or nothing if the server is dead.
fn error_at(
    place: &mut Place,
    operation: &Operation,
    reference: &Reference,
    copy: usize,
    point: &Point,
    hit_at: &mut String,
) -> Result<Option<View>, String> {
    let mut at = At::new(place.copy(copy));
    if point.cold {
        place.lab.forget_entries();
    } else {
        let before = place.within(|| view(&at.dir))?;
        if !same(&before, &reference.views[0], true) {
            return Err(format!("what was done before has changed it: {}", differences(&before, &reference.views[0], true)));
        }
    }
    at.wanted = Some(reference.views[0].clone());
    let litter = place.litter().len();
    place.gate().arm(point.call.0, Fault::Error(point.errno));
    let done = place.within(|| (operation.act)(&mut at))?;
    if settle(place) {
        return Ok(None);
    }
    *hit_at = hit(&place.gate().calls()).unwrap_or_default().to_owned();
    place.gate().disarm();
    let found = place.within(|| view(&place.copy(copy)))?;
    // What the server knows, not the kernel's cache.
    place.lab.forget_entries();
    let again = place.within(|| view(&place.copy(copy)))?;
    if !same(&found, &again, true) {
        return Err(format!(
            "answered {}; the server shows it otherwise than the kernel's cache: {}",
            told(&done),
            differences(&again, &found, true)
        ));
    }
    let new = reference.views.last().ok_or("no views")?;
    let litter = place.litter().len() - litter;
    match &done {
        // The removal of what came there is no part of an operation that was done, and of one that failed a removal may be what failed.
        Err(_) if litter > 0 && !hit_at.starts_with("unlinkat") => {
            return Err(format!("answered {}; left in work: {:?}", told(&done), place.litter()));
        }
        Ok(()) if !same(&found, new, false) => return Err(format!("success was told, and {}", neither(&found, &reference.views))),
        Err(error) if !is_right(operation, &found, &reference.views) => {
            return Err(format!("answered {error}, {}", neither(&found, &reference.views)));
        }
        Err(error) if error.to_string().contains(WRONG) || error.raw_os_error() == Some(2) => return Err(format!("answered {error}")),
        _ => {}
    }
    Ok(Some(found))
}

/// Some of many, evenly.
pub(crate) fn some<T>(all: Vec<T>, most: usize, seed: usize) -> Vec<T> {
    let len = all.len();
    let keep: Vec<usize> = (0..most.min(len)).map(|number| (number * len / most.min(len) + seed) % len).collect();
    all.into_iter().enumerate().filter(|(number, _)| keep.contains(number)).map(|(_, item)| item).collect()
}

/// Those of which the environment names a part (`PLYFS_CRASH_OPERATIONS=rename`), or that are in its slice (`3/10`), for a part of the long form.
pub(crate) fn operations() -> Vec<&'static Operation> {
    let part = std::env::var("PLYFS_CRASH_OPERATIONS").unwrap_or_default();
    let all = OPERATIONS.iter().chain(READS);
    if let Some((slice, of)) = part.split_once('/') {
        let (slice, of): (usize, usize) = (slice.parse().unwrap(), of.parse().unwrap());
        return all.skip(slice).step_by(of).collect();
    }
    all.filter(|operation| operation.name.contains(&part)).collect()
}

#[test]
fn a_server_that_is_killed_at_a_call_leaves_old_or_new() {
    if let Some(reason) = crate::gate::missing() {
        skip!("{reason}");
    }
    let most = if long() { usize::MAX } else { 2 };
    let row = in_two(&operations(), |seed, operation| {
        if !long() && seed % 2 == 1 {
            return Row::default();
        }
        let start = std::time::Instant::now();
        let row = killed(operation, seed, |calls| some(calls, most, seed));
        if long() {
            println!("{}: {} kills, {} violations, {:?}", operation.name, row.reached, row.violations.len(), start.elapsed());
        }
        row
    });
    let (target, least) = if long() { ("1,000 points, 0", 1000) } else { ("short form: every other operation", 100) };
    row.end("SIGKILL on entry of a changing system call, then a new mount", target, least);
}

#[test]
fn a_call_that_fails_is_told_and_leaves_what_a_new_mount_shows() {
    if let Some(reason) = crate::gate::missing() {
        skip!("{reason}");
    }
    let most = if long() { usize::MAX } else { 5 };
    let row = in_two(&operations(), |seed, operation| {
        if !long() && seed % 2 == 0 {
            return Row::default();
        }
        let start = std::time::Instant::now();
        let row = failing(operation, seed, |points| some(points, most, seed * 3));
        if long() {
            println!("{}: {} errors, {} violations, {:?}", operation.name, row.reached, row.violations.len(), start.elapsed());
        }
        row
    });
    let (target, least) = if long() { ("10,000 points, 0", 10_000) } else { ("short form: every other operation", 220) };
    row.end("EIO, ENOSPC, ENOMEM, EMFILE, EDQUOT, EACCES or EINTR of a system call", target, least);
}

/// Only some calls, of some operations.
fn only(names: &[&str], choose: impl Fn(Vec<Point>) -> Vec<Point>) -> Row {
    let mut row = Row::default();
    for operation in OPERATIONS.iter().filter(|operation| names.contains(&operation.name)) {
        row.add(failing(operation, 0, &choose));
    }
    row
}

#[test]
fn what_is_made_and_cannot_be_looked_at_is_removed_again() {
    if let Some(reason) = crate::gate::missing() {
        skip!("{reason}");
    }
    let makes = |point: &Point| ["mkdirat", "mknodat", "symlinkat"].iter().any(|name| point.call.1.starts_with(name));
    let row = only(&["mkdir", "symlink", "create in a deep lower directory"], |points| {
        let made: Vec<usize> = points.iter().filter(|point| makes(point)).map(|point| point.call.0).collect();
        points.into_iter().filter(|point| !point.cold && made.contains(&(point.call.0.wrapping_sub(1)))).collect()
    });
    row.end("looks at what was just made that fail", "nothing is left", 5);
}

#[test]
fn a_name_of_a_hard_link_stays_where_the_copy_that_counts_the_others_fails() {
    if let Some(reason) = crate::gate::missing() {
        skip!("{reason}");
    }
    let row = only(&["unlink of a hard link", "rename over a hard link"], |points| {
        let copies =
            |point: &Point| ["copy_file_range", "fsetxattr", "fchownat", "linkat"].iter().any(|name| point.call.1.starts_with(name));
        points.into_iter().filter(|point| !point.cold && point.errno == "EIO" && copies(point)).collect()
    });
    row.end("copies that fail as a name of a hard link goes", "told, and nothing has changed", 8);
}
