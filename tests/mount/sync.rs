//! What is on the disk when a call returns: the system calls of the server.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::{Child, Command, Stdio};

use crate::lab::{Lab, append, eventually, find, lab, noise, open_rw};

/// Records the system calls of a server, until it is dropped.
struct Trace {
    strace: Child,
    file: std::path::PathBuf,
    seen: usize,
}

impl Trace {
    /// Begins; the calls may be seen from some moment on.
    fn attach(lab: &Lab, name: &str) -> Trace {
        let file = lab.path(name);
        let calls = "trace=fsync,fdatasync,syncfs,linkat,renameat2,renameat,unlinkat,fchmod,utimensat";
        let mut command = Command::new(find("strace").unwrap());
        command.args(["-f", "-q", "-yy", "-e", calls, "-e", "signal=none", "-p", &lab.pid().to_string(), "-o"]).arg(&file);
        let strace = command.stdin(Stdio::null()).spawn().unwrap();
        Trace { strace, file, seen: 0 }
    }

    /// Begins; all that comes from now on is seen.
    fn start(lab: &Lab) -> Trace {
        let mut trace = Trace::attach(lab, "strace");
        // It attaches to all threads before it writes the first call down.
        eventually("strace is attached", || {
            File::open(lab.mnt("")).unwrap().sync_all().unwrap();
            !trace.since().is_empty()
        });
        eventually("it is quiet", || trace.since().is_empty());
        trace
    }

    /// The calls since the last question, in their order.
    fn since(&mut self) -> Vec<String> {
        std::thread::sleep(std::time::Duration::from_millis(20));
        let text = fs::read_to_string(&self.file).unwrap_or_default();
        // A call during which another thread's is written comes in two parts.
        let (mut begun, mut all) = (BTreeMap::new(), Vec::new());
        for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
            let thread = line.split(' ').next().unwrap();
            if let Some(first) = line.strip_suffix(" <unfinished ...>\n") {
                begun.insert(thread, first);
            } else if let Some((_, rest)) = line.split_once(" resumed>") {
                all.push(format!("{}{}", begun.remove(thread).unwrap_or(thread), rest.trim_end()));
            } else {
                all.push(line.trim_end().to_owned());
            }
        }
        let new = all[self.seen..].to_vec();
        self.seen = all.len();
        new
    }

    /// Whether something that was just done has a call in which all these words occur.
    fn has(calls: &[String], words: &[&str]) -> bool {
        calls.iter().any(|call| words.iter().all(|word| call.contains(word)))
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        if let Err(error) = self.strace.kill().and_then(|()| self.strace.wait()) {
            eprintln!("strace: {error}");
        }
    }
}

fn layers(lab: &Lab) {
    for name in ["low", "low2", "big", "dir/x", "old"] {
        lab.write_lower(name, noise(1, 100_000));
    }
    lab.write_upper("up", "up");
    fs::create_dir(lab.upper("updir")).unwrap();
}

#[test]
fn what_is_synced_reaches_the_disk_before_the_call_returns() {
    let mut lab = lab!("strace");
    layers(&lab);
    lab.mount();
    let mut trace = Trace::start(&lab);
    // Whatever the server's way to it: it has a mount of its own.
    let upper = "/upper";
    let up = open_rw(&lab.mnt("up")).unwrap();
    up.write_all_at(b"x", 0).unwrap();
    trace.since();
    // strace writes a call down when it has returned, so all that counts is there when the caller goes on.
    up.sync_all().unwrap();
    let calls = trace.since();
    assert!(Trace::has(&calls, &["fsync(", &format!("{upper}/up>"), "= 0"]), "{calls:#?}");
    up.sync_data().unwrap();
    let calls = trace.since();
    assert!(Trace::has(&calls, &["fdatasync(", &format!("{upper}/up>"), "= 0"]), "{calls:#?}");
    File::open(lab.mnt("updir")).unwrap().sync_all().unwrap();
    let calls = trace.since();
    assert!(Trace::has(&calls, &["fsync(", &format!("{upper}/updir>"), "= 0"]), "{calls:#?}");
    // Through a mapping, by a descriptor that only reads, by one that syncs each write.
    File::open(lab.mnt("up")).unwrap().sync_all().unwrap();
    let calls = trace.since();
    assert!(Trace::has(&calls, &["fsync(", &format!("{upper}/up>"), "= 0"]), "{calls:#?}");
    for flag in [rustix::fs::OFlags::SYNC, rustix::fs::OFlags::DSYNC] {
        let mut file = OpenOptions::new().append(true).custom_flags(i32::try_from(flag.bits()).unwrap()).open(lab.mnt("up")).unwrap();
        trace.since();
        file.write_all(b"y").unwrap();
        let calls = trace.since();
        assert!(Trace::has(&calls, &["sync(", &format!("{upper}/up>"), "= 0"]), "{flag:?} {calls:#?}");
    }
    // A lower file's reader that became the upper's.
    let reader = File::open(lab.mnt("low")).unwrap();
    append(&lab.mnt("low"), "+");
    trace.since();
    reader.sync_all().unwrap();
    let calls = trace.since();
    assert!(Trace::has(&calls, &["fsync(", &format!("{upper}/low>"), "= 0"]), "{calls:#?}");
    drop(trace);
    drop((up, reader));
    lab.unmount();
}

/// The place of the call that puts a file on the disk, and of the one that gives it its name.
fn order(calls: &[String], name: &str, upper: &str) -> (Option<usize>, Option<usize>) {
    let named = |call: &&String| {
        (call.contains("linkat(") || call.contains("renameat")) && call.contains(&format!("\"{name}\"")) && call.contains(upper)
    };
    let commit = calls.iter().position(|call| named(&call));
    (calls.iter().position(|call| call.contains("sync(") && call.contains("= 0")), commit)
}

#[test]
fn a_copy_is_on_the_disk_before_it_has_its_name() {
    let mut lab = lab!("strace");
    layers(&lab);
    lab.mount();
    let mut trace = Trace::start(&lab);
    // Whatever the server's way to it: it has a mount of its own.
    let upper = "/upper";
    for (name, path) in [("low", "low"), ("low2", "low2"), ("x", "dir/x")] {
        match name {
            "low" => append(&lab.mnt(path), "+"),
            "low2" => fs::set_permissions(lab.mnt(path), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap(),
            _ => drop(open_rw(&lab.mnt(path)).unwrap()),
        }
        let calls = trace.since();
        let (sync, commit) = order(&calls, name, upper);
        assert!(sync.is_some() && commit.is_some() && sync < commit, "{name}: {sync:?} {commit:?} {calls:#?}");
    }
    drop(trace);
    lab.unmount();
    // Who said that the upper need not survive waits for nothing.
    lab.more = ",volatile";
    lab.mount();
    let mut calls = Vec::new();
    {
        let mut trace = Trace::attach(&lab, "strace volatile");
        let mut number = 0;
        // Each copy-up has a call that names it; the first that is seen says that strace is attached.
        eventually("strace is attached", || {
            number += 1;
            let name = lab.mnt(&format!("new{number}"));
            fs::write(&name, "x").unwrap();
            fs::rename(&name, lab.mnt("moved")).unwrap();
            calls.extend(trace.since());
            !calls.is_empty()
        });
        append(&lab.mnt("big"), "+");
        let file = open_rw(&lab.mnt("old")).unwrap();
        file.sync_all().unwrap();
        calls.extend(trace.since());
    }
    assert!(Trace::has(&calls, &["\"big\""]) && Trace::has(&calls, &["\"old\""]), "{calls:#?}");
    assert!(!Trace::has(&calls, &["sync("]) && !Trace::has(&calls, &["syncfs("]), "{calls:#?}");
    lab.unmount();
}
