//! A Debian system in layers: packages, a compiler, git and python on plyfs and, step by step the same, on kernel overlayfs.
//!
//! The base is made by mmdebstrap from the mirror that this machine uses, with the packages of all later steps in its cache, so that nothing
//! else needs the network. Two layers on it are uppers that kernel overlayfs has left: one of an installation, one of deletions and renames.
//! On these three the same steps run on both; what comes out is compared, through either of them, and stacked for more steps.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use plyfs_sys::stat::{Kind, Time};

use crate::kernel;
use crate::lab::{Lab, SOON, missing, ok, run};
use crate::skip::skip;
use crate::tree::{self, Node, Tree};

/// How long steps may take.
const LONG: Duration = Duration::from_secs(240);

/// What kernel overlayfs is mounted with to do what plyfs does.
const KERNEL: &str = "redirect_dir=on,index=on";

/// Packages that the base has in its cache, besides [`THIRTY`].
const PACKAGES: &str = "bzip2 git libc6-dev python3 tcc";

/// Thirty packages that are installed and purged, on a mount and in a plain copy of the base.
const THIRTY: &str = "bc cpio dc diffstat dos2unix ed figlet gawk hello iputils-ping jq less lsof m4 make nano ncal netcat-openbsd patch procps psmisc \
    pv sl time traceroute tree unzip whois xxd zip";

/// What is done with them.
const COME_AND_GO: &str = r#"
dpkg -l | sha256sum
apt-get install -y --no-install-recommends --no-download -o Dpkg::Options::=--force-unsafe-io $THIRTY >/dev/null
for p in $THIRTY; do dpkg-query -W -f '${Package} ${Version} ${Status}\n' $p; done
dpkg --audit
dpkg --verify
hello; echo '6 * 7' | bc; echo '{"a": [1, 2]}' | jq -c .a; tree /etc/apt | tail -n 1; echo x | xxd
update-alternatives --display awk | head -n 3
apt-get install -y --reinstall --no-download -o Dpkg::Options::=--force-unsafe-io gawk procps nano >/dev/null
dpkg --remove bc dc hello >/dev/null
apt-get purge -y $THIRTY >/dev/null 2>/dev/null
apt-get autoremove -y --purge >/dev/null 2>/dev/null
dpkg --audit
dpkg -l | sha256sum
"#;

/// The layer of an installation.
const INSTALL: &str =
    "apt-get install -y --no-install-recommends --no-download -o Dpkg::Options::=--force-unsafe-io tcc libc6-dev >/dev/null";

/// The layer of all that overlayfs has marks for: a directory made anew, one renamed, one swapped, files deleted, owners and modes changed.
const MARKS: &str = "
rm -rf /usr/share/doc; mkdir /usr/share/doc
mv /etc/cron.daily /etc/cron.moved
mv /usr/include/rdma /usr/include/moved; mkdir /usr/include/rdma; echo new > /usr/include/rdma/new
chmod 2775 /srv; chmod 1777 /mnt; chmod 700 /media; chown 1:1 /opt
rm /usr/bin/yes; ln /etc/passwd /etc/passwd.link
printf '#!/bin/sh\\nexit 101\\n' > /usr/sbin/policy-rc.d; chmod 755 /usr/sbin/policy-rc.d
";

/// What is done in the union.
const STEPS: &str = r#"
apt-get install -y --no-install-recommends --no-download -o Dpkg::Options::=--force-unsafe-io git python3 bzip2 >/dev/null
apt-get remove -y bzip2 >/dev/null
mkdir /src; cd /src
cat > hello.c <<'C'
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
int main(int argc, char **argv) { char *p = malloc(100); strcpy(p, "hello"); printf("%s %s %d\n", p, argv[1], argc); free(p); return 0; }
C
tcc -o hello hello.c
./hello world
git init -q -b main .
git add .
git commit -q -m one
git mv hello.c greet.c
echo '/* end */' >> greet.c
git commit -qam two
git gc -q
git fsck --full --strict
git status --porcelain
git log --format='%H %s' --stat
python3 -c 'import json, sqlite3, ssl, ctypes, xml.dom.minidom, asyncio, hashlib; print(json.dumps(hashlib.sha256(b"x").hexdigest()))'
python3 - <<'PY'
import sqlite3
base = sqlite3.connect('/src/base')
print(base.execute('pragma journal_mode=wal').fetchall())
base.execute('create table t(a, b)')
base.executemany('insert into t values(?, ?)', [(i, str(i) * 10) for i in range(2000)])
base.commit()
print(base.execute('select count(*), sum(a) from t').fetchall())
base.close()
PY
rm -r /usr/share/common-licenses
mv /etc/apt /etc/apt.moved
mv /etc/apt.moved /etc/apt
mv /usr/share/perl5 /usr/share/perl5.moved
mv /etc/cron.moved /etc/cron.again
sed -i s,/root,/root, /etc/passwd
chmod 600 /etc/group
chown 7:8 /usr/share/doc/git
echo x >> /etc/debian_version
find /usr -name '*.h' | sort | sha256sum
dpkg --audit
dpkg -l | sha256sum
dpkg --verify | sort | sha256sum
"#;

/// What is done when that is a lower.
const MORE_STEPS: &str = r#"
mv /usr/share/perl5.moved /usr/share/perl5
apt-get purge -y git >/dev/null 2>/dev/null
apt-get install -y --no-install-recommends --no-download -o Dpkg::Options::=--force-unsafe-io bzip2 git >/dev/null
cd /src
git fsck --full --strict
git status --porcelain
tcc -c greet.c
git add greet.o
git commit -q -m three
git checkout -q HEAD~2
git checkout -q main
git log --format='%H %s'
./hello again
python3 -c 'import sqlite3; base = sqlite3.connect("base"); base.execute("delete from t where a % 2"); base.commit(); print(base.execute("select count(*), sum(a) from t").fetchall())'
rm -rf /etc/cron.again /usr/include/rdma
mkdir /etc/cron.again /usr/include/rdma
echo y > /usr/include/rdma/y
echo y >> /etc/debian_version
mv /srv /srv.moved; mkdir /srv
dpkg --audit
dpkg -l | sha256sum
"#;

#[test]
fn a_debian_system_lives_on_plyfs_as_on_kernel_overlayfs() {
    if let Some(why) = missing(&["mmdebstrap", "unshare", "mount", "umount", "chroot"]) {
        skip!("{why}");
    }
    let started = Instant::now();
    let lap = |what: &str| println!("{:6.1} s: {what}", started.elapsed().as_secs_f64());
    let lab = Lab::new();
    if let Some(why) = no_kernel_overlay(&lab) {
        skip!("{why}");
    }
    if let Err(why) = make_base(&lab) {
        skip!("{why}");
    }
    lap("the base");
    let start = Time { sec: i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap(), nsec: 0 };
    on_kernel(&lab, &Stack::new(&["base"], "installed"), INSTALL);
    on_kernel(&lab, &Stack::new(&["installed", "base"], "marked"), MARKS);
    lap("the layers");

    let lowers = ["marked", "installed", "base"];
    let (ours, theirs) = (Stack::new(&lowers, "ours"), Stack::new(&lowers, "theirs"));
    let their_output = on_kernel(&lab, &theirs, STEPS);
    lap("the steps on kernel overlayfs");
    let our_output = on_plyfs(&lab, &ours, STEPS);
    lap("the steps on plyfs");
    assert_eq!(our_output, their_output);

    // Each upper looks the same through both, and both look the same but for what tells the time.
    let before = seen_by_kernel(&lab, &Stack::new(&lowers, "untouched"));
    let ours_seen = same_through_both(&lab, &ours);
    let theirs_seen = same_through_both(&lab, &theirs);
    assert_same("the two uppers", &ours_seen, &theirs_seen, start);
    lap("the views");
    // What changed, from the layers and from the trees.
    let diff = diff(&lab, &ours);
    assert!(diff.len() > 1_000, "{} lines", diff.len());
    assert_eq!(shown(diff.symmetric_difference(&self::diff(&lab, &theirs))), "");
    assert_eq!(shown(diff.symmetric_difference(&tree::changes(&before, &ours_seen))), "");
    lap("the diffs");

    // Both uppers as lowers, under both.
    let mut results: Vec<(String, Tree, BTreeSet<Vec<u8>>)> = Vec::new();
    let mut outputs = Vec::new();
    for lower in ["ours", "theirs"] {
        let lowers = [&[lower][..], &lowers].concat();
        for (runner, steps) in [("kernel", on_kernel as fn(&Lab, &Stack, &str) -> String), ("plyfs", on_plyfs)] {
            let name = format!("{runner}-on-{lower}");
            let stack = Stack::new(&lowers, &name);
            outputs.push(steps(&lab, &stack, MORE_STEPS));
            let seen = same_through_both(&lab, &stack);
            results.push((name, seen, self::diff(&lab, &stack)));
        }
    }
    assert!(outputs.iter().all(|output| *output == outputs[0]), "{outputs:#?}");
    let (first, rest) = results.split_first().unwrap();
    for other in rest {
        let what = format!("{} and {}", first.0, other.0);
        assert_same(&what, &first.1, &other.1, start);
        assert_eq!(shown(first.2.symmetric_difference(&other.2)), "", "{what}");
    }
    lap("stacked");
    thirty_packages_come_and_go(&lab, start);
    lap("thirty packages");
    assert_eq!(crate::lab::mounts_below(&lab.path("")), [] as [PathBuf; 0]);
}

/// Packages are installed and purged in the union as in a plain directory; what is left is the same.
fn thirty_packages_come_and_go(lab: &Lab, start: Time) {
    assert_eq!(THIRTY.split_whitespace().count(), 30);
    let steps = format!("THIRTY='{THIRTY}'\n{COME_AND_GO}");
    ok(Command::new("cp").arg("-a").args([lab.path("base"), lab.path("plain")]), LONG);
    let stack = Stack::new(&["base"], "thirty");
    let plain = enter(&lab.path("plain"), &steps);
    let ours = on_plyfs(lab, &stack, &steps);
    assert_eq!(ours, plain);
    let lines: Vec<_> = ours.lines().collect();
    assert_eq!(lines.iter().filter(|line| line.ends_with(" install ok installed")).count(), 30, "{ours}");
    assert_eq!(lines.first(), lines.last(), "{ours}");
    let (mut seen, mut expected) = (seen_by_plyfs(lab, &stack), tree::walk(&lab.path("plain")));
    // The root's own times are those of the new upper directory.
    seen.remove(&b"/"[..]);
    expected.remove(&b"/"[..]);
    assert_same("thirty packages, here and plain", &seen, &expected, start);
}

/// Layers by the names of their directories, the topmost lower first.
struct Stack {
    lowers: Vec<String>,
    upper: String,
}

impl Stack {
    fn new(lowers: &[&str], upper: &str) -> Stack {
        Stack { lowers: lowers.iter().map(ToString::to_string).collect(), upper: upper.to_owned() }
    }

    fn lowers(&self, lab: &Lab) -> String {
        self.lowers.iter().map(|name| lab.path(name).to_str().unwrap().to_owned()).collect::<Vec<_>>().join(":")
    }

    fn pair(&self, lab: &Lab) -> (PathBuf, PathBuf) {
        (lab.make(&self.upper), lab.make(&format!("{}.work", self.upper)))
    }

    fn options(&self, lab: &Lab) -> String {
        let (upper, work) = self.pair(lab);
        format!("lowerdir={},upperdir={},workdir={}", self.lowers(lab), upper.display(), work.display())
    }
}

/// Runs steps; what they print.
fn on_plyfs(lab: &Lab, stack: &Stack, steps: &str) -> String {
    let (upper, work) = stack.pair(lab);
    let args = ["run", "--rootfs", &stack.lowers(lab), "--upper", upper.to_str().unwrap(), "--work", work.to_str().unwrap()];
    ok(lab.plyfs(&args).args(["--", "sh", "-c", &script(steps)]), LONG).text()
}

/// The same on kernel overlayfs.
fn on_kernel(lab: &Lab, stack: &Stack, steps: &str) -> String {
    let merged = mount_kernel(lab, stack);
    let text = enter(&merged, steps);
    unmount(&merged);
    text
}

/// Runs steps with a directory as the root, in surroundings like those of `plyfs run`; what they print.
fn enter(root: &Path, steps: &str) -> String {
    const ENTER: &str = "
        set -e
        mount -t proc proc $1/proc
        mount -t tmpfs -o mode=755 tmpfs $1/dev
        for name in null zero full random urandom tty; do : > $1/dev/$name; mount --bind /dev/$name $1/dev/$name; done
        ln -s /proc/self/fd $1/dev/fd; ln -s pts/ptmx $1/dev/ptmx; mkdir $1/dev/shm $1/dev/pts
        mount -t devpts -o newinstance,ptmxmode=666 devpts $1/dev/pts
        exec chroot $1 env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin sh -c \"$2\"
    ";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--uts", "--ipc", "--kill-child", "--propagation", "private", "sh", "-c", ENTER, "sh"]);
    ok(command.arg(root).arg(script(steps)), LONG).text()
}

fn script(steps: &str) -> String {
    let identity = "export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b \
        GIT_AUTHOR_DATE=2020-01-01T00:00:00Z GIT_COMMITTER_DATE=2020-01-01T00:00:00Z";
    format!("set -e; umask 022; export HOME=/root LC_ALL=C DEBIAN_FRONTEND=noninteractive; {identity}\n{steps}")
}

fn mount_kernel(lab: &Lab, stack: &Stack) -> PathBuf {
    let merged = lab.make("merged");
    let options = format!("{},{KERNEL}", stack.options(lab));
    kernel::overlay(&options, &merged).unwrap_or_else(|errno| panic!("{options}: {errno}"));
    merged
}

fn unmount(merged: &Path) {
    ok(Command::new("umount").arg(merged), SOON);
}

fn seen_by_kernel(lab: &Lab, stack: &Stack) -> Tree {
    let merged = mount_kernel(lab, stack);
    let tree = tree::walk(&merged);
    unmount(&merged);
    tree
}

fn seen_by_plyfs(lab: &Lab, stack: &Stack) -> Tree {
    let merged = lab.make("merged");
    let place = merged.to_str().unwrap();
    ok(&mut lab.plyfs(&["mount", "-o", &stack.options(lab), place]), SOON);
    let tree = tree::walk(&merged);
    ok(&mut lab.plyfs(&["umount", place]), SOON);
    tree
}

/// Everything that an upper on its lowers shows, which is the same for both.
fn same_through_both(lab: &Lab, stack: &Stack) -> Tree {
    let (ours, theirs) = (seen_by_plyfs(lab, stack), seen_by_kernel(lab, stack));
    let differences = tree::differences(&ours, &theirs, &|_, node| Some(node.clone()));
    assert!(differences.is_empty(), "{} as plyfs and the kernel show it:\n{}", stack.upper, differences.join("\n"));
    ours
}

/// Files whose content is not the same twice: logs, caches and databases of times and inode numbers.
const TELLS_THE_TIME: [&str; 6] = [
    "/src/.git/index",
    "/src/base",
    "/var/cache/apt/pkgcache.bin",
    "/var/cache/apt/srcpkgcache.bin",
    "/var/cache/ldconfig/aux-cache",
    "/var/log/",
];

/// Compares two trees that were made by the same steps at other times.
fn assert_same(what: &str, a: &Tree, b: &Tree, start: Time) {
    let seen = |path: &[u8], node: &Node| {
        let mut node = node.clone();
        if node.stat.mtime >= start {
            node.stat.mtime = start;
        }
        let tells = |name: &&str| path == name.as_bytes() || name.ends_with('/') && path.starts_with(name.as_bytes());
        if node.stat.kind == Kind::File && TELLS_THE_TIME.iter().any(tells) {
            node.content = 0;
            node.stat.size = 0;
        }
        Some(node)
    };
    let differences = tree::differences(a, b, &seen);
    assert!(differences.is_empty(), "{what}:\n{}", differences.join("\n"));
}

fn diff(lab: &Lab, stack: &Stack) -> BTreeSet<Vec<u8>> {
    let upper = lab.path(&stack.upper);
    let done = ok(&mut lab.plyfs(&["diff", "--upper", upper.to_str().unwrap(), "--lower", &stack.lowers(lab)]), SOON);
    let lines = done.lines();
    let paths: Vec<&[u8]> = lines.iter().map(|line| &line[2..]).collect();
    assert!(paths.is_sorted(), "{}", done.text());
    lines.into_iter().collect()
}

fn shown<'a>(lines: impl Iterator<Item = &'a Vec<u8>>) -> String {
    lines.map(|line| String::from_utf8_lossy(line).into_owned()).collect::<Vec<_>>().join("\n")
}

/// Why kernel overlayfs cannot be mounted here, if it cannot.
fn no_kernel_overlay(lab: &Lab) -> Option<String> {
    let (upper, work, lower) = (lab.make("trial/upper"), lab.make("trial/work"), lab.make("trial/lower"));
    let options = format!("lowerdir={},upperdir={},workdir={},{KERNEL}", lower.display(), upper.display(), work.display());
    let merged = lab.make("merged");
    if let Err(errno) = kernel::overlay(&options, &merged) {
        return Some(format!("needs kernel overlayfs on {}: {errno}", merged.display()));
    }
    unmount(&merged);
    None
}

/// Makes the base from the mirror of this machine.
fn make_base(lab: &Lab) -> Result<(), String> {
    const SUITE: &str = "bookworm";
    let fetch = format!("chroot \"$1\" apt-get install -y --no-install-recommends --download-only {PACKAGES} {THIRTY} >/dev/null");
    let mut command = Command::new("mmdebstrap");
    command.args(["--quiet", "--mode=root", "--variant=minbase", "--format=directory", "--dpkgopt=force-unsafe-io"]);
    command.args(["--skip=cleanup/apt/cache,cleanup/apt/lists", "--aptopt=Acquire::Languages \"none\""]);
    command.arg(format!("--customize-hook={fetch}"));
    // What a running system has, too, and a chroot in which services would start.
    command
        .arg("--customize-hook=echo plyfs > \"$1/etc/hostname\"; : > \"$1/etc/resolv.conf\"; echo 127.0.0.1 localhost > \"$1/etc/hosts\"");
    command.arg(SUITE).arg(lab.path("base")).args(mirror(SUITE));
    let done = run(command.env("TMPDIR", lab.make("tmp")), LONG);
    if done.status.success() { Ok(()) } else { Err(format!("needs a Debian mirror: mmdebstrap: {}", done.err.trim())) }
}

/// The mirror of Debian itself that apt is configured with here.
fn mirror(suite: &str) -> Option<String> {
    let mut command = Command::new("apt-get");
    command.args(["indextargets", "--format", "$(RELEASE) $(ORIGIN) $(REPO_URI)", "Identifier: Packages"]);
    let lines = run(&mut command, SOON).text();
    let uris = lines.lines().filter_map(|line| line.strip_prefix(&format!("{suite} Debian ")));
    uris.map(ToOwned::to_owned).next()
}
