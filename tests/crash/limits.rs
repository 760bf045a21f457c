//! What runs out: space, descriptors, memory; and many processes at once.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use plyfs_sys::Errno;
use rustix::fs::statvfs;

use crate::form::{Row, long};
use crate::lab::{Lab, append, errno, eventually, run, sh, shell};
use crate::skip::skip;

/// Two numbers of a process: what it has in memory, in KiB, and the most that it had.
fn memory(pid: u32) -> (u64, u64) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let kib = |key: &str| {
        let line = status.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    (kib("VmRSS:"), kib("VmHWM:"))
}

fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

#[test]
fn copy_ups_that_find_no_space_leak_nothing() {
    if let Some(reason) = crate::lab::missing(&[]) {
        skip!("{reason}");
    }
    let tries = if long() { 1000 } else { 60 };
    let mut row = Row::default();
    // On tmpfs what is removed is free at once; on ext4 data is written late.
    for ext4 in [false, true] {
        let mut lab = Lab::new();
        let disk = if ext4 { lab.image("disk", &["ext4", "-q", "-m", "0"]) } else { lab.tmpfs("disk", "size=24m,nr_inodes=200") };
        if ext4 {
            // All but 24 MiB.
            let free = statvfs(&disk).unwrap();
            let len = free.f_bavail * free.f_frsize - (24 << 20);
            rustix::fs::fallocate(File::create(disk.join("fill")).unwrap(), rustix::fs::FallocateFlags::empty(), 0, len).unwrap();
        }
        (lab.upper, lab.work) = (disk.join("upper"), disk.join("work"));
        fs::create_dir(&lab.upper).unwrap();
        fs::create_dir(&lab.work).unwrap();
        lab.write_lower("large", vec![1; 48 << 20]);
        lab.write_lower("d/hard", vec![1; 30 << 20]);
        fs::hard_link(lab.lower("d/hard"), lab.lower("d/link")).unwrap();
        lab.mount();
        let mut free = None;
        let mut open = None;
        for number in 0..tries / 2 {
            let file = lab.mnt(["large", "d/hard", "d/link"][number % 3]);
            let told = errno(fs::OpenOptions::new().append(true).open(&file));
            row.reached += 1;
            if told != Some(Errno::NOSPC) {
                row.violation(format!("{}: {told:?}", file.display()));
            }
            // The first ones make directories in the upper.
            if number >= 3 {
                rustix::fs::syncfs(File::open(&disk).unwrap()).unwrap();
                let now = statvfs(&disk).unwrap();
                let now = (now.f_bfree, now.f_ffree, lab.staged());
                if *free.get_or_insert_with(|| now.clone()) != now {
                    row.violation(format!("after {number} failures {now:?} are free, not {free:?}"));
                    free = Some(now);
                }
                // Fewer are what the reserve for deletions has given up.
                let now = descriptors(lab.pid());
                if *open.get_or_insert(now) < now {
                    row.violation(format!("after {number} failures {now} descriptors are open, not {open:?}"));
                    open = Some(now);
                }
            }
        }
        lab.unmount();
    }
    let target = if long() { "1,000, 0 bytes leaked" } else { "short form" };
    row.end("copy-ups that fail for lack of space", target, tries);
}

#[test]
fn a_server_with_64_descriptors_answers_clean_errors_and_recovers() {
    if let Some(reason) = crate::lab::missing(&[]) {
        skip!("{reason}");
    }
    let mut lab = Lab::new();
    lab.max_files = Some(64);
    for number in 0..120 {
        lab.write_lower(&format!("d{number}/sub/f"), format!("{number}"));
    }
    lab.mount();
    let mut row = Row::default();
    let check = |row: &mut Row, what: String, found: Option<Errno>| {
        row.reached += 1;
        if !matches!(found, None | Some(Errno::MFILE | Errno::NFILE)) {
            row.violation(format!("{what}: {found:?}"));
        }
    };
    for round in 0..if long() { 50 } else { 4 } {
        // Each holds one of the server's, until it has no more.
        let mut held = Vec::new();
        for number in 0..120 {
            let file = File::options().read(true).write(number % 2 == 0).open(lab.mnt(&format!("d{number}/sub/f")));
            match file {
                Ok(file) => held.push(file),
                Err(_) => check(&mut row, format!("open {number}"), errno(file)),
            }
            let (to, from) = (lab.mnt(&format!("d{number}/sub/new{round}")), lab.mnt(&format!("d{number}/sub/f")));
            check(&mut row, format!("stat {number}"), errno(fs::metadata(&from)));
            check(&mut row, format!("create {number}"), errno(File::create(&to)));
            check(&mut row, format!("list {number}"), errno(fs::read_dir(lab.mnt(&format!("d{number}/sub")))));
        }
        if held.len() == 120 {
            row.violation("all 120 files were opened: the limit is not in force".to_owned());
        }
        drop(held);
        // With them closed everything works again, and is what it was.
        for number in 0..120 {
            let (dir, wanted) = (format!("d{number}/sub"), format!("{number}{}", "+".repeat(round)));
            eventually("the server has closed them", || File::open(lab.mnt(&format!("{dir}/f"))).is_ok());
            if fs::read_to_string(lab.mnt(&format!("{dir}/f"))).unwrap() != wanted {
                row.violation(format!("{dir}/f is not {wanted}"));
            }
            append(&lab.mnt(&format!("{dir}/f")), "+");
            drop(File::create(lab.mnt(&format!("{dir}/new{round}"))).unwrap());
        }
    }
    let before = crate::lab::tree(&lab.mnt(""));
    lab.remount();
    if crate::lab::tree(&lab.mnt("")) != before {
        row.violation("mounted again it is not what it was".to_owned());
    }
    lab.unmount();
    row.end("calls to a server with 64 descriptors", "alive, clean errno", 1000);
}

/// Makes files of a few names a directory, fast.
fn many(dir: &Path, count: usize, each: usize) {
    for first in (0..count).step_by(each) {
        let below = dir.join(format!("d{}", first / each));
        fs::create_dir_all(&below).unwrap();
        for number in first..(first + each).min(count) {
            File::create(below.join(format!("file{number}"))).unwrap();
        }
    }
}

#[test]
fn a_walk_of_many_files_takes_little_memory() {
    if let Some(reason) = crate::lab::missing(&[]) {
        skip!("{reason}");
    }
    let count = if long() { 1_000_000 } else { 30_000 };
    let mut lab = Lab::new();
    let dir = lab.tmpfs("disk", "mode=755");
    lab.live_on(&dir);
    lab.watch = false;
    many(&lab.lower(""), count, 1000);
    lab.mount();
    let start = Instant::now();
    let seen = run(Command::new("find").arg(lab.mnt("")).args(["-type", "f", "-size", "0", "-printf", "."])).len();
    let (during, took) = (memory(lab.pid()).1 >> 10, start.elapsed());
    lab.forget_entries();
    fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
    let mut after = 0;
    // The last of them are forgotten a little later.
    let settled = Instant::now();
    while settled.elapsed().as_secs() < 5 {
        after = memory(lab.pid()).0 >> 10;
        if after < 64 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    let mut row = Row { reached: seen, ..Row::default() };
    row.notes.push(format!("{during} MiB at most, {after} MiB after, {took:.1?}"));
    if during >= 300 {
        row.violation(format!("{during} MiB during the walk"));
    }
    if after >= 64 {
        row.violation(format!("{after} MiB after all were forgotten"));
    }
    lab.unmount();
    row.end("files of a walk", "under 300 MiB during, under 64 MiB after", count);
}

/// A memory cgroup, of version 1 or 2; `None` where none can be made.
struct Group(std::path::PathBuf);

impl Group {
    fn new(bytes: u64) -> Option<Group> {
        let name = format!("plyfs-crash-{}", std::process::id());
        for (root, limit) in [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")] {
            let group = Group(Path::new(root).join(&name));
            if fs::create_dir(&group.0).is_ok() && fs::write(group.0.join(limit), bytes.to_string()).is_ok() {
                return Some(group);
            }
        }
        None
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        eventually("the group is empty", || fs::remove_dir(&self.0).is_ok() || !self.0.exists());
    }
}

#[test]
fn a_server_with_24_mib_of_memory_lives() {
    if let Some(reason) = crate::lab::missing(&[]) {
        skip!("{reason}");
    }
    let Some(group) = Group::new(24 << 20) else { skip!("needs a memory cgroup") };
    let mut lab = Lab::new();
    lab.watch = false;
    // What a tmpfs holds would count as the server's memory.
    let disk = lab.image("disk", &["ext4", "-q"]);
    lab.live_on(&disk);
    let dir = lab.lower("many");
    fs::create_dir(&dir).unwrap();
    let count = if long() { 60_000 } else { 4_000 };
    for number in 0..count {
        File::create(dir.join(format!("a file with a name of some length {number}"))).unwrap();
    }
    lab.write_lower("large", vec![1; if long() { 100 << 20 } else { 40 << 20 }]);
    lab.mount();
    fs::write(group.0.join("cgroup.procs"), lab.pid().to_string()).unwrap();
    let mut row = Row::default();
    for script in
        ["ls -f many | wc -l", "ls -l many | wc -l", "echo x >> large", "ls -l many | wc -l", "rm -r many", "mkdir new; echo x > new/f"]
    {
        let output = shell(&lab.mnt(""), script).output().unwrap();
        row.reached += 1;
        if output.status.success() && output.stderr.is_empty() {
            row.notes.push(format!("{script}: {} MiB", memory(lab.pid()).0 >> 10));
        } else {
            row.violation(format!("{script}: {}", String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or_default()));
            break;
        }
    }
    if row.violations.is_empty() {
        lab.unmount()
    } else {
        lab.kill()
    }
    drop(lab);
    drop(group);
    row.end(&format!("steps of a server in a cgroup of 24 MiB, on {count} entries"), "alive", 6);
}

/// What each of many processes does, again and again, in its own directory and in one of all.
const WORK: &str = r#"
p=$1; n=$2; mkdir own$p; cd own$p; i=0
while [ $i -lt $n ]; do
    mkdir a a/b; echo $p $i > a/b/f; ln a/b/f a/link; ln -s f a/b/s; mv a/b c; echo more >> a/link; test "$(cat c/f)" = "$(cat a/link)"
    cp ../lower/f$((i % 40)) c/copy; chmod 600 ../lower/f$((p % 40)); echo $p >> ../shared/log; : > ../shared/$p.$i; mv ../shared/$p.$i ../shared/x$p
    exec 3<> c/held; echo held >&3; rm c/held; test "$(stat -L -c %h /proc/self/fd/3)" = 0; exec 3>&-
    rm -r a c; i=$((i + 1))
done
cd ..; rmdir own$p
"#;

#[test]
fn many_processes_get_no_errors_and_leave_nothing_open() {
    if let Some(reason) = crate::lab::missing(&[]) {
        skip!("{reason}");
    }
    let (processes, rounds) = if long() { (64, 150) } else { (16, 3) };
    let mut lab = Lab::new();
    let dir = lab.tmpfs("disk", "mode=755");
    lab.live_on(&dir);
    for number in 0..40 {
        lab.write_lower(&format!("lower/f{number}"), vec![1; number * 1000]);
    }
    lab.write_lower("shared/log", "");
    lab.mount();
    sh(&lab.mnt(""), &format!("set -- 99 1\n{WORK}"));
    lab.forget_entries();
    let before = (descriptors(lab.pid()), memory(lab.pid()).0);
    let mut row = Row::default();
    let start = Instant::now();
    let children: Vec<_> = (0..processes)
        .map(|number| {
            let mut command = Command::new("sh");
            command.args(["-ec", WORK, "sh", &number.to_string(), &rounds.to_string()]).current_dir(lab.mnt("")).env("LC_ALL", "C");
            command.stderr(std::process::Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        row.reached += rounds;
        if !output.status.success() || !output.stderr.is_empty() {
            row.violation(String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or("a test failed").to_owned());
        }
    }
    let took = start.elapsed();
    let lines = fs::read_to_string(lab.mnt("shared/log")).unwrap().lines().count();
    if lines != processes * rounds + 1 {
        row.violation(format!("{lines} lines were appended by all, not {}", processes * rounds + 1));
    }
    lab.forget_entries();
    eventually("nothing more is open than before", || descriptors(lab.pid()) <= before.0 + 2 * processes.min(8));
    let after = (descriptors(lab.pid()), memory(lab.pid()).0);
    row.notes.push(format!(
        "{processes} processes, {took:.0?}, descriptors {} and {}, {} and {} MiB",
        before.0,
        after.0,
        before.1 >> 10,
        after.1 >> 10
    ));
    if after.1 > before.1 + (16 << 10) {
        row.violation(format!("{} MiB, before {} MiB", after.1 >> 10, before.1 >> 10));
    }
    let shown = crate::lab::tree(&lab.mnt(""));
    lab.remount();
    if crate::lab::tree(&lab.mnt("")) != shown {
        row.violation("mounted again it is not what it was".to_owned());
    }
    lab.unmount();
    row.end("rounds of many processes", "0 errors, descriptors equal, 16 MiB more at most", processes * rounds);
}
