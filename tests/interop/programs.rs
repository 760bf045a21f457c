//! Programs that people use, on a mount as in a plain directory: sqlite, git, rsync, cp and tar.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::lab::{Lab, SOON, missing, ok};
use crate::skip::skip;
use crate::tree::{self, Node};

/// How long a program may take that has a lot to do.
const LONG: Duration = Duration::from_secs(240);

/// A mount and, beside it, a plain directory.
struct Pair {
    lab: Lab,
}

impl Pair {
    fn new() -> Pair {
        let lab = Lab::new();
        for name in ["lower", "upper", "work", "mnt", "plain"] {
            lab.make(name);
        }
        Pair { lab }
    }

    /// Does the same to the lower and to the plain directory, before there is a mount.
    fn prepare(&self, prepare: impl Fn(&Path)) {
        for name in ["lower", "plain"] {
            prepare(&self.lab.path(name));
        }
    }

    fn mount(&self) {
        let [lower, upper, work] = ["lower", "upper", "work"].map(|name| self.lab.path(name).to_str().unwrap().to_owned());
        let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
        ok(self.lab.plyfs(&["mount", "-o", &options]).arg(self.lab.path("mnt")), SOON);
    }

    fn unmount(&self) {
        ok(self.lab.plyfs(&["umount"]).arg(self.lab.path("mnt")), SOON);
    }

    fn plain(&self) -> PathBuf {
        self.lab.path("plain")
    }

    fn mnt(&self) -> PathBuf {
        self.lab.path("mnt")
    }

    /// Runs a script in both, which must print the same; what that is.
    fn both(&self, script: &str) -> String {
        let [plain, here] = [self.plain(), self.mnt()].map(|dir| sh(&dir, script));
        assert_eq!(here, plain, "{script}");
        plain
    }

    /// Both show the same, but for times; also when it is mounted again.
    fn same(&self) {
        let seen = |_: &[u8], node: &Node| {
            let mut node = node.clone();
            node.stat.mtime = plyfs_sys::stat::Time { sec: 0, nsec: 0 };
            Some(node)
        };
        let plain = tree::walk(&self.plain());
        for _ in 0..2 {
            let differences = tree::differences(&tree::walk(&self.mnt()), &plain, &seen);
            assert!(differences.is_empty(), "here and plain:\n{}", differences.join("\n"));
            self.unmount();
            self.mount();
        }
        self.unmount();
    }
}

fn sh(dir: &Path, script: &str) -> String {
    ok(Command::new("sh").args(["-ec", script]).current_dir(dir).env("LC_ALL", "C").env("HOME", "/nonexistent"), LONG).text()
}

/// A tree with all that makes copying difficult.
const VARIED: &str = r#"
umask 022
mkdir -p t/dir/sub t/empty t/many
cp -a /etc/. t/etc
for i in $(seq 300); do echo "$i" > t/many/f$i; done
echo one > t/file; ln t/file t/dir/linked; ln t/file t/dir/sub/linked
ln -s ../file t/dir/symlink; ln -s nowhere t/dangling; ln t/dangling t/dangling2
mkfifo -m 640 t/fifo; mknod -m 600 t/block b 7 70000; mknod t/char c 5 300
truncate -s 50M t/sparse; echo end >> t/sparse
echo set > t/setuid; chown 1234:5678 t/setuid; chmod 6711 t/setuid
setfattr -n user.key -v value t/file; setfattr -n user.dir -v "$(seq 100)" t/dir; setfattr -n trusted.t -v x t/dir/sub
setfacl -m u:77:rwx t/many/f1; setfacl -d -m g:78:r-x t/empty
chmod 1777 t/empty; chmod 500 t/dir/sub; chown 11:12 t/dir; chown -h 13:14 t/dangling
touch -d '1969-12-31 23:59:58.123456789 UTC' t/many/f2; touch -h -d '2100-01-01 00:00:00.5 UTC' t/dir/symlink; touch -d '2001-02-03' t/dir/sub t/empty
printf 'x' > "$(printf 't/odd \377\n\t"name')"; mkdir t/.wh.dir; echo x > t/.wh.file
"#;

/// Two trees that are copies of each other, times and links included.
fn copies(a: &Path, b: &Path) {
    let differences = tree::differences(&tree::walk(a), &tree::walk(b), &|_, node| Some(node.clone()));
    assert!(differences.is_empty(), "{} and {}:\n{}", a.display(), b.display(), differences.join("\n"));
}

#[test]
fn rsync_that_has_copied_a_tree_finds_nothing_to_do() {
    if let Some(why) = missing(&["rsync", "setfattr", "setfacl"]) {
        skip!("{why}");
    }
    let pair = Pair::new();
    pair.prepare(|dir| drop(sh(dir, VARIED)));
    pair.mount();
    let source = pair.lab.make("source");
    sh(&source, VARIED);
    sh(
        &source,
        "cd t; echo changed >> file; rm many/f3 fifo; mv dir moved; echo new > new; chmod 600 char; mkdir etc/new; touch -d 2005-01-01 many/f4",
    );
    // Into the union over what the lower has, out of it, and within it; each time once more.
    for (from, to) in [
        (source.join("t"), pair.mnt().join("t")),
        (pair.mnt().join("t"), pair.lab.path("out")),
        (pair.mnt().join("t"), pair.mnt().join("in")),
    ] {
        let rsync = |dry: &[&str]| {
            let mut command = Command::new("rsync");
            command
                .args(["-aHAXS", "--numeric-ids", "--delete", "--itemize-changes", "--modify-window=-1"])
                .args(dry)
                .arg(format!("{}/", from.display()))
                .arg(&to);
            ok(&mut command, LONG).text()
        };
        assert!(rsync(&[]).lines().count() > 5);
        assert_eq!(rsync(&[]), "", "{} {}", from.display(), to.display());
        assert_eq!(rsync(&["--checksum", "--dry-run"]), "");
        copies(&from, &to);
    }
    pair.unmount();
    pair.mount();
    copies(&source.join("t"), &pair.mnt().join("t"));
    pair.unmount();
}

#[test]
fn cp_and_tar_bring_back_what_they_took() {
    if let Some(why) = missing(&["tar", "setfattr", "setfacl"]) {
        skip!("{why}");
    }
    let pair = Pair::new();
    pair.prepare(|dir| drop(sh(dir, VARIED)));
    pair.mount();
    const TAR: &str = "tar --xattrs --xattrs-include='*' --acls --numeric-owner --sparse --format=posix";
    pair.both(&format!("cp -a t copied; {TAR} -cf t.tar t; mkdir out; {TAR} -C out -xpf t.tar; {TAR} -df t.tar; rm t.tar"));
    for dir in [pair.plain(), pair.mnt()] {
        for copy in ["copied", "out/t"] {
            copies(&dir.join("t"), &dir.join(copy));
        }
        let blocks = |name: &str| std::os::unix::fs::MetadataExt::blocks(&fs::metadata(dir.join(name)).unwrap());
        assert!(blocks("out/t/sparse") < 1000, "{}", dir.display());
    }
    // Over what is there, copied up in part, and back over the lower.
    pair.both("echo more >> t/file; rm -r t/many; cp -a copied/. t; mv out/t/dir/sub out/t/sub; cp -a out/t/sub t/dir; rm -r out/t/sub");
    pair.same();
}

#[test]
fn git_clones_and_repacks_a_repository_in_the_union() {
    if let Some(why) = missing(&["git"]) {
        skip!("{why}");
    }
    let pair = Pair::new();
    const IDENTITY: &str = "export HOME=$PWD GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_COUNT=2 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0='*' \
        GIT_CONFIG_KEY_1=init.defaultBranch GIT_CONFIG_VALUE_1=main GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b \
        GIT_AUTHOR_DATE=2020-01-01T00:00:00Z GIT_COMMITTER_DATE=2020-01-01T00:00:00Z";
    // 400 files in 40 directories, 60 commits that change, add, move and remove some.
    let make = r#"
git init -q origin; cd origin
for i in $(seq 400); do mkdir -p d$((i % 40)); seq $i > d$((i % 40))/f$i; done
git add .; git commit -qm start
for c in $(seq 60); do
    echo $c >> d$((c % 40))/f$((c + 40)); seq $c $((c * 50)) > new$c; git mv d$((c % 7))/f$((c % 7 + 280 + 40 * (c % 2))) moved$c 2>/dev/null || :
    git rm -q new$((c - 10)) 2>/dev/null || :; git add .; git commit -qm "commit $c"
    case $c in *0) git tag v$c; git branch b$c;; esac
done
"#;
    pair.prepare(|dir| drop(sh(dir, &format!("{IDENTITY}\n{make}"))));
    pair.mount();
    let work = r#"
git clone -q --no-local origin clone 2>&1
git clone -q --shared origin shared 2>&1
git clone -q --bare origin bare 2>&1
cd clone
git fsck --full --strict --no-progress 2>&1
git rev-parse HEAD HEAD^{tree} origin/b30
for t in v10 v40 v20 v60; do git checkout -q $t; git status --porcelain; done
git checkout -q -b topic v20; for i in 1 2 3; do echo topic >> topic$i; git add .; git commit -qm topic$i; done
git rebase -q main 2>&1; git log --format='%H %s' | head -5
git stash list; echo dirty >> topic1; git stash -q; git status --porcelain; git stash pop -q; git checkout -q topic1
git worktree add -q ../tree b30 2>&1; git -C ../tree status --porcelain; ls ../tree | wc -l
git repack -adq; git gc -q --prune=now; git fsck --full --strict --no-progress 2>&1
git push -q ../bare topic 2>&1; cd ../bare; git fsck --full --no-progress 2>&1; git rev-parse topic; git gc -q
cd ../origin; git gc -q --prune=now; git fsck --full --strict --no-progress 2>&1; git status --porcelain
cd ../shared; git fsck --full --no-progress 2>&1; git status --porcelain; git ls-files -s | git hash-object --stdin
cd ../tree; rm -rf d1 moved*; git status --porcelain | wc -l; git checkout -q .; git status --porcelain; git clean -dxfq
"#;
    let said = pair.both(&format!("{IDENTITY}\n{work}"));
    assert!(said.lines().count() > 10 && !said.contains("error"), "{said}");
    let again = "for r in clone shared bare origin tree; do git -C $r fsck --full --no-progress 2>&1; git -C $r rev-parse HEAD; done; git -C clone status --porcelain";
    let before = pair.both(&format!("{IDENTITY}\n{again}"));
    pair.unmount();
    pair.mount();
    assert_eq!(pair.both(&format!("{IDENTITY}\n{again}")), before);
    pair.unmount();
}

/// Appends numbered rows in transactions, and says which are committed, until somebody ends it.
const WRITER: &str = r#"
import random, sqlite3, sys
who = int(sys.argv[1])
base = sqlite3.connect("base", timeout=60, isolation_level=None)
base.execute("pragma journal_mode=wal")
base.execute("pragma synchronous=normal")
base.execute("pragma mmap_size=%d" % (64 << 20))
base.execute("pragma wal_autocheckpoint=50")
number = base.execute("select coalesce(max(number), 0) from t where who = ?", (who,)).fetchone()[0]
print("ready", flush=True)
while True:
    base.execute("begin immediate")
    for _ in range(random.randrange(1, 30)):
        number += 1
        base.execute("insert into t values(?, ?, ?)", (who, number, "%d " % number * random.randrange(200)))
    if random.random() < 0.2: base.execute("delete from t where who = ? and number < ? - 400", (who, number))
    base.execute("update sums set last = ? where who = ?", (number, who))
    base.execute("commit")
    print(number, flush=True)
"#;

const CHECK: &str = r#"
import sqlite3
base = sqlite3.connect("base", timeout=60)
base.execute("pragma mmap_size=%d" % (64 << 20))
print(base.execute("pragma integrity_check").fetchall(), base.execute("pragma journal_mode").fetchone())
for who in 1, 2:
    last, = base.execute("select last from sums where who = ?", (who,)).fetchone()
    least, most, count = base.execute("select min(number), max(number), count(*) from t where who = ?", (who,)).fetchone()
    assert most == last and count == most - least + 1, (last, least, most, count)
    assert all(text == "%d " % number * (len(text) // len("%d " % number)) for number, text in base.execute("select number, text from t where who = ?", (who,)))
    print(last)
"#;

/// Two writers of one base in a directory, killed after a while; then all that they were told is there. With `end`, that is done while they write.
fn killed_writers(dir: &Path, after: Duration, end: Option<&dyn Fn()>) {
    let writers: Vec<_> = ["1", "2"]
        .map(|who| {
            let out = fs::File::create(dir.parent().unwrap().join(format!("told {who}"))).unwrap();
            let mut command = Command::new("timeout");
            command
                .args(["-k", "1", "60", "python3", "-c", WRITER, who])
                .current_dir(dir)
                .stdin(Stdio::null())
                .stdout(out)
                .stderr(Stdio::null());
            command.spawn().unwrap()
        })
        .into();
    let told = |who: &str| fs::read_to_string(dir.parent().unwrap().join(format!("told {who}"))).unwrap();
    let start = std::time::Instant::now();
    while ["1", "2"].iter().any(|who| told(who).lines().count() < 2) {
        assert!(start.elapsed() < SOON, "the writers do not begin");
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(after);
    if let Some(end) = end {
        end();
    }
    for mut writer in writers {
        // The writer is the child of `timeout`.
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", writer.id())).unwrap_or_default();
        for child in children.split_whitespace() {
            let pid = rustix::process::Pid::from_raw(child.parse().unwrap()).unwrap();
            match rustix::process::kill_process(pid, rustix::process::Signal::KILL) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(errno) => panic!("{errno}"),
            }
        }
        writer.wait().unwrap();
    }
    if end.is_some() {
        return;
    }
    check_writers(dir);
}

fn check_writers(dir: &Path) {
    let found = ok(Command::new("python3").args(["-c", CHECK]).current_dir(dir), SOON).text();
    let lines: Vec<_> = found.lines().collect();
    assert_eq!(lines[0], "[('ok',)] ('wal',)");
    for (who, line) in ["1", "2"].iter().zip(&lines[1..]) {
        let told = fs::read_to_string(dir.parent().unwrap().join(format!("told {who}"))).unwrap();
        // The last line may not be whole.
        let last: u64 = told.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')?.parse().ok()).next_back().unwrap_or(0);
        assert!(line.parse::<u64>().unwrap() >= last, "writer {who} was told {last}, and there is {line}");
    }
}

#[test]
fn sqlite_keeps_what_it_committed_whoever_is_killed() {
    if let Some(why) = missing(&["python3", "timeout"]) {
        skip!("{why}");
    }
    let pair = Pair::new();
    let make = r#"python3 -c "
import sqlite3
base = sqlite3.connect('base')
base.execute('create table t(who, number, text)'); base.execute('create index i on t(who, number)')
base.execute('create table sums(who, last)'); base.executemany('insert into sums values(?, 0)', [(1,), (2,)])
base.commit()
""#;
    pair.prepare(|dir| drop(sh(dir, make)));
    pair.mount();
    for round in 0..6 {
        for dir in [pair.plain(), pair.mnt()] {
            killed_writers(&dir, Duration::from_millis(40 * round), None);
        }
    }
    // The server dies: what it has told is in the upper.
    for round in 0..3 {
        let kill = || {
            let mnt = pair.mnt();
            let pid = server_of(&mnt);
            rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL).unwrap();
        };
        killed_writers(&pair.mnt(), Duration::from_millis(60 * round), Some(&kill));
        plyfs_sys::mount::umount(pair.mnt().as_path(), true).unwrap();
        pair.mount();
        check_writers(&pair.mnt());
    }
    pair.unmount();
}

/// The process that serves a mount: the one whose arguments end with its path.
fn server_of(mountpoint: &Path) -> i32 {
    let wanted = [b"\0", mountpoint.as_os_str().as_encoded_bytes(), b"\0"].concat();
    let processes =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str().and_then(|name| name.parse::<i32>().ok()));
    let mut serving = processes.filter(|pid| {
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        arguments.ends_with(&wanted) && arguments.split(|&byte| byte == 0).any(|argument| argument == b"mount")
    });
    serving.next().expect("a server")
}
