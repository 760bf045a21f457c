//! podman and buildah with plyfs as their mount program: images are built, run, compared and committed as on kernel overlayfs.
//!
//! Nothing comes over the network: the base image is busybox. Every store is in the directory of its test, and so is what podman keeps of containers.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::lab::{Lab, SOON, missing, ok};
use crate::skip::skip;

/// Building an image of six steps takes a container each.
const LONG: Duration = Duration::from_secs(300);

/// The programs that are called; runc, not crun, since it runs in all cgroups.
const PROGRAMS: [&str; 6] = ["podman", "buildah", "runc", "conmon", "busybox", "tar"];

const DOCKERFILE: &str = r#"FROM localhost/base
RUN mkdir -p /data/sub /data/keep && echo one > /data/sub/one && echo two > /data/two && ln /data/two /data/hard && chmod 4755 /data/two && chown 7:8 /data/keep
RUN rm /data/sub/one && rmdir /data/sub && mkdir /data/sub && echo new > /data/sub/new && rm -rf /etc/deleted && mkdir /etc/deleted
COPY file /data/copied
RUN mv /data /moved && rm -f /bin/vi && ln -s target /link && chown 1000:1000 /moved/copied && mv /moved/two /moved/three
RUN mkfifo /fifo && mknod /device c 1 3 && mkdir -m 1777 /sticky && echo x > /sticky/x && rm -rf /etc/gone && echo gone > /etc/gone
RUN rm /sticky/x && echo more >> /etc/passwd && chmod 600 /etc/passwd && cd /moved && mv sub sub2 && mkdir sub && echo again > sub/new
CMD ["/bin/cat", "/moved/sub/new"]
"#;

/// Everything below `/` but what podman puts there: kinds, modes, owners, contents and targets.
const SHOW: &str = r#"
find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /bin \) -prune -o -print | sort | while read f; do
    case $f in /etc/hosts|/etc/hostname|/etc/resolv.conf|/etc/mtab) continue;; esac
    stat -c '%n %A %u:%g %t,%T' "$f"
    if [ -L "$f" ]; then readlink "$f"; elif [ -f "$f" ]; then md5sum < "$f"; fi
done
ls /bin | md5sum
"#;

/// A store of images and containers.
struct Store<'a> {
    lab: &'a Lab,
    dir: PathBuf,
    mount_program: bool,
}

impl<'a> Store<'a> {
    /// On kernel overlayfs, or on the program under test.
    fn new(lab: &'a Lab, name: &str, mount_program: bool) -> Store<'a> {
        let dir = lab.make(name);
        let shown = dir.to_str().unwrap();
        // Under the name that podman's users know.
        let program = dir.join("fuse-overlayfs");
        symlink(env!("CARGO_BIN_EXE_plyfs"), &program).unwrap();
        let option = if mount_program { format!("mount_program = \"{}\"", program.display()) } else { String::new() };
        let storage = format!(
            "[storage]\ndriver = \"overlay\"\ngraphroot = \"{shown}/root\"\nrunroot = \"{shown}/run\"\n[storage.options.overlay]\n{option}\n"
        );
        fs::write(dir.join("storage.conf"), storage).unwrap();
        // No more open files and processes than whoever runs the tests may have.
        let limits = "\"nofile=1024:1024\", \"nproc=1024:1024\"";
        let containers = format!(
            "[containers]\ndefault_ulimits = [{limits}]\nnetns = \"host\"\nutsns = \"host\"\ncgroupns = \"host\"\nlog_driver = \"k8s-file\"\n\
             [engine]\ncgroup_manager = \"cgroupfs\"\nruntime = \"runc\"\nevents_logger = \"file\"\nlock_type = \"file\"\ntmp_dir = \"{shown}/tmp\"\n"
        );
        fs::write(dir.join("containers.conf"), containers).unwrap();
        Store { lab, dir, mount_program }
    }

    fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(args)
            .current_dir(&self.dir)
            .env("CONTAINERS_STORAGE_CONF", self.dir.join("storage.conf"))
            .env("CONTAINERS_CONF", self.dir.join("containers.conf"))
            .env("PLYFS_ROOT", self.lab.path("state"))
            .env("HOME", &self.dir)
            .env("TMPDIR", &self.dir)
            .env("LC_ALL", "C");
        command
    }

    fn podman(&self, args: &[&str]) -> String {
        ok(&mut self.command("podman", args), LONG).text()
    }

    /// Runs a shell in a new container, which goes.
    fn sh(&self, options: &[&str], image: &str, script: &str) -> String {
        self.podman(&[&["run", "--rm"], options, &[image, "sh", "-ec", script]].concat())
    }

    /// The lines of a diff in the order of their paths.
    fn diff(&self, container: &str) -> Vec<String> {
        let mut lines: Vec<String> = self.podman(&["diff", container]).lines().map(str::to_owned).collect();
        lines.sort_by(|a, b| a[1..].cmp(&b[1..]));
        lines
    }

    /// An image of busybox, and one that is built on it.
    fn build(&self) {
        let base = self.dir.join("base");
        for dir in ["bin", "etc/deleted", "etc/gone", "tmp", "dev", "proc", "sys", "run"] {
            fs::create_dir_all(base.join(dir)).unwrap();
        }
        for (file, content) in [("etc/passwd", "root:x:0:0:root:/:/bin/sh\n"), ("etc/deleted/x", "x"), ("etc/gone/x", "x")] {
            fs::write(base.join(file), content).unwrap();
        }
        let busybox = ok(Command::new("sh").args(["-c", "command -v busybox"]), SOON).text();
        fs::copy(busybox.trim_end(), base.join("bin/busybox")).unwrap();
        let names = ok(Command::new("busybox").arg("--list"), SOON).text();
        names.lines().filter(|name| *name != "busybox").for_each(|name| symlink("busybox", base.join("bin").join(name)).unwrap());
        let archive = self.dir.join("base.tar");
        ok(
            Command::new("tar").arg("-C").arg(&base).args(["--owner=0", "--group=0", "--mtime=2020-01-01", "-cf"]).arg(&archive).arg("."),
            SOON,
        );
        self.podman(&["import", archive.to_str().unwrap(), "localhost/base"]);
        let context = self.dir.join("context");
        fs::create_dir(&context).unwrap();
        fs::write(context.join("Dockerfile"), DOCKERFILE).unwrap();
        fs::write(context.join("file"), "content\n").unwrap();
        let args = ["bud", "--layers", "--isolation", "chroot", "-t", "localhost/built", context.to_str().unwrap()];
        ok(&mut self.command("buildah", &args), LONG);
    }
}

impl Drop for Store<'_> {
    fn drop(&mut self) {
        // What it leaves mounted goes with the lab.
        for args in [&["rm", "--all", "--force", "--time", "0"][..], &["rmi", "--all", "--force"]] {
            match self.command("podman", args).output() {
                Ok(done) if done.status.success() => {}
                other => eprintln!("podman {args:?}: {other:?}"),
            }
        }
    }
}

/// What users see of a store, one part after the other.
fn seen(store: &Store) -> Vec<(&'static str, String)> {
    store.build();
    let mut seen = vec![
        ("what the image does", store.podman(&["run", "--rm", "localhost/built"])),
        ("what the image shows", store.sh(&[], "localhost/built", SHOW)),
    ];
    let change = "echo x > /added; rm /moved/copied; mv /moved/sub /moved/moved; echo changed >> /etc/passwd; mkdir -p /a/b; ln -s x /a/b/l; exec 3>/kept; echo kept >&3";
    store.podman(&["run", "--name", "changed", "localhost/built", "sh", "-ec", change]);
    seen.push(("what a container changed", store.diff("changed").join("\n")));
    store.podman(&["commit", "--quiet", "changed", "localhost/committed"]);
    seen.push(("what the committed image shows", store.sh(&[], "localhost/committed", SHOW)));
    // Of these podman's own diff of kernel overlayfs says otherwise than its comparison of two mounts: "D /fifo", and nothing of /sticky.
    let change = "chown 5:6 /sticky; rm -r /etc/deleted /moved/sub; mkdir -m 700 /etc/deleted; mkdir /moved/sub; rm /fifo; mkdir /fifo; touch /fifo/x";
    store.podman(&["run", "--name", "replaced", "localhost/built", "sh", "-ec", change]);
    store.podman(&["commit", "--quiet", "replaced", "localhost/replaced"]);
    seen.push(("what an image with replaced directories shows", store.sh(&[], "localhost/replaced", SHOW)));
    // A root of its own, whose ids are others outside.
    let mapped = ["--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536"];
    let own = format!(
        "{SHOW}\ntouch /mine; chown 5:6 /mine; echo y >> /moved/three; stat -c '%n %A %u:%g' /mine /moved/three; cat /proc/self/uid_map"
    );
    seen.push(("what a user namespace shows", store.sh(&mapped, "localhost/built", &own)));
    // On kernel overlayfs podman commits the ids of the host, 100000 for 0; what is right shows without a user namespace.
    let mapped = if store.mount_program { &mapped[..] } else { &[] };
    let change = "echo 1 > /new; chown 9:9 /new; chmod 640 /moved/copied; rm /moved/three";
    let run = [&["run", "--name", "mapped"][..], mapped, &["localhost/built", "sh", "-ec", change]].concat();
    store.podman(&run);
    seen.push(("what a user namespace changed", store.diff("mapped").join("\n")));
    store.podman(&["commit", "--quiet", "mapped", "localhost/mapped"]);
    seen.push(("what the image of a user namespace shows", store.sh(&[], "localhost/mapped", SHOW)));
    let volume = store.lab.path("volume");
    fs::create_dir_all(volume.join("d")).unwrap();
    // On a plain directory it is a name as any other.
    fs::write(volume.join(".wh.d"), "plain").unwrap();
    let overlay = format!("{}:/v:O", volume.display());
    seen.push((
        "a volume under a layer of its own",
        store.sh(&["-v", &overlay], "localhost/built", "rmdir /v/d; touch /v/new; ls -A /v; cat /v/.wh.d"),
    ));
    assert_eq!(names(&volume), [".wh.d", "d"]);
    seen
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn podman_and_buildah_do_on_plyfs_what_they_do_on_kernel_overlayfs() {
    if let Some(why) = missing(&PROGRAMS) {
        skip!("{why}");
    }
    let lab = Lab::new();
    let kernel = seen(&Store::new(&lab, "kernel", false));
    let here = seen(&Store::new(&lab, "plyfs", true));
    for ((what, kernel), (_, here)) in kernel.iter().zip(&here) {
        assert_eq!(here, kernel, "{what}");
    }
    assert!(kernel.iter().all(|(_, text)| !text.is_empty()));
}

#[test]
fn all_names_of_a_file_that_a_container_changed_are_committed() {
    if let Some(why) = missing(&PROGRAMS) {
        skip!("{why}");
    }
    let lab = Lab::new();
    let store = Store::new(&lab, "plyfs", true);
    store.build();
    assert!(
        store.podman(&["info", "--format", "{{.Store.GraphOptions}}"]).contains(&format!("Version:plyfs {}", env!("CARGO_PKG_VERSION")))
    );
    store.podman(&["run", "--name", "links", "localhost/built", "sh", "-ec", "echo more >> /moved/hard"]);
    assert_eq!(store.diff("links").join(" "), "C /etc C /moved C /moved/hard C /moved/three");
    store.podman(&["commit", "--quiet", "links", "localhost/links"]);
    assert_eq!(store.sh(&[], "localhost/links", "cat /moved/three /moved/hard"), "two\nmore\ntwo\nmore\n");
    // What a container's user calls as if it were a whiteout is one in no store: the image cannot have it, the container can.
    store.podman(&[
        "run",
        "--name",
        "names",
        "localhost/built",
        "sh",
        "-ec",
        "echo x > /moved/.wh.copied; ls -A /moved; ls -A /moved | wc -l",
    ]);
    assert!(store.podman(&["start", "--attach", "names"]).contains("\ncopied\n"));
}
