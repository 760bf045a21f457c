//! The cases, each named after the fact that it shows.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{ExitCode, Stdio};

use plyfs_runtime::{
    BindSource, Capabilities, DevOptions, Error, FdIndex, HostPath, InnerPath, Launcher, MountSpec, Root, Spec, TmpfsOptions,
};
use plyfs_sys::mount::{self, MountAttrFlags};
use plyfs_sys::ns::{self, Namespaces};
use plyfs_sys::process::{self, signals};

use crate::support::*;

all![
    command_s_exit_code_is_the_launch_s,
    signal_that_kills_the_command_is_128_and_its_number,
    command_that_is_not_there_is_127,
    command_that_cannot_be_executed_is_126,
    launch_that_cannot_be_set_up_is_125_and_named,
    only_stdio_reaches_the_command,
    nothing_of_the_caller_is_in_the_init,
    arguments_and_environment_arrive_as_given,
    command_is_process_1_or_2,
    orphans_are_reaped_and_go_with_the_command,
    signal_state_is_the_default,
    rights_are_a_container_s,
    rights_can_be_kept,
    proc_is_fresh_and_in_part_read_only_or_masked,
    proc_elsewhere_is_treated_alike,
    sys_is_read_only,
    dev_holds_what_a_command_needs_and_no_more,
    device_nodes_work_in_dev_only,
    host_devices_keep_their_mode,
    false_devices_are_refused,
    host_name_and_ipc_are_private,
    host_name_is_the_host_s_without_uts,
    masked_paths_are_empty,
    read_only_paths_are_read_only_with_all_below,
    binds_are_read_only,
    dead_and_vanished_sources_do_not_hold_up_a_launch,
    tmpfs_has_its_limits,
    attached_mounts_are_used_and_end_with_the_command,
    targets_are_made_and_stay_in_the_root,
    no_target_is_made_in_a_root_that_is_kept,
    current_directory_is_looked_up_inside,
    own_program_cannot_be_written_to,
    deleted_program_launches_from_a_sealed_copy,
    missing_rights_are_named,
    propagation_ends_at_the_container,
    signals_to_the_caller_are_passed_on,
    nohup_is_kept,
    death_of_the_caller_is_death_of_the_container,
    death_of_the_launcher_is_death_of_the_container,
    dropped_launch_is_killed,
    many_at_once,
];

fn command_s_exit_code_is_the_launch_s() {
    for init in [true, false] {
        for code in [0, 3, 125, 126, 127, 255] {
            let mut spec = script(&format!("exit {code}"));
            spec.init = init;
            assert_eq!(run(&spec).code, code);
        }
    }
    assert_eq!(run(&spec(&["true"])).code, 0);
    assert_eq!(run(&spec(&["false"])).code, 1);
}

fn signal_that_kills_the_command_is_128_and_its_number() {
    for (name, code) in [("KILL", 137), ("TERM", 143), ("SEGV", 139), ("INT", 130)] {
        assert_eq!(run(&script(&format!("kill -{name} $$; sleep 10"))).code, code, "{name}");
    }
    // A process 1 is immune to itself, but not to the outside.
    let mut spec = script("echo x; sleep 100");
    spec.init = false;
    let launcher = Launcher::new().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = launcher.spawn(&spec, Vec::new()).unwrap();
    running.signal(signals::SIGKILL).unwrap();
    assert_eq!(finish(&mut running).unwrap().code, 137);
    running.signal(signals::SIGKILL).unwrap();
    assert_eq!(running.wait().unwrap().code(), 137, "told again");
}

fn command_that_is_not_there_is_127() {
    let dir = tempfile::tempdir().unwrap();
    let lost = dir.path().join("lost");
    fs::write(&lost, "#!/nonexistent/interpreter\n").unwrap();
    fs::set_permissions(&lost, fs::Permissions::from_mode(0o755)).unwrap();
    for init in [true, false] {
        for command in ["no-such-command", "/no/such/command", "/etc/passwd/x", lost.to_str().unwrap(), ".."] {
            let mut spec = spec(&[command]);
            spec.init = init;
            let error = try_run(&spec).unwrap_err();
            if command == ".." {
                assert_eq!(error.exit_code(), 126, "{error}");
                continue;
            }
            assert_eq!(error.exit_code(), 127, "{command}: {error}");
            assert!(error.to_string().contains(command), "{error}");
        }
    }
    // Without a PATH nothing is found by name, and everything by path.
    let mut spec = spec(&["sh", "-c", "exit 4"]);
    spec.env.clear();
    assert_eq!(try_run(&spec).unwrap_err().exit_code(), 127);
    spec.argv[0] = OsString::from("/bin/sh");
    assert_eq!(run(&spec).code, 4);
}

fn command_that_cannot_be_executed_is_126() {
    let dir = tempfile::tempdir().unwrap();
    let garbage = dir.path().join("garbage");
    fs::write(&garbage, "neither a program nor a script").unwrap();
    fs::set_permissions(&garbage, fs::Permissions::from_mode(0o755)).unwrap();
    for command in ["/etc/passwd", "/etc", garbage.to_str().unwrap()] {
        let error = try_run(&spec(&[command])).unwrap_err();
        assert_eq!(error.exit_code(), 126, "{command}: {error}");
        assert!(matches!(&error, Error::NotExecutable { command: named, .. } if named == command), "{error}");
    }
    // On the path, the file that may not be executed is passed over, and named if there is no other.
    let plain = dir.path().join("plain");
    fs::write(&plain, "").unwrap();
    let mut spec = spec(&["plain"]);
    spec.env[0].1 = dir.path().as_os_str().to_owned();
    let error = try_run(&spec).unwrap_err();
    assert_eq!((error.exit_code(), error.to_string().contains(plain.to_str().unwrap())), (126, true), "{error}");
}

fn launch_that_cannot_be_set_up_is_125_and_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let with_root = |path: &Path| {
        let mut spec = script(":");
        spec.root = Root::Dir { path: HostPath::from(path), read_only: false };
        spec
    };
    let with_mount = |mount: MountSpec| {
        let mut spec = script(":");
        spec.mounts.push(mount);
        spec
    };
    let bind = |source: &str, target: &str| MountSpec::BindReadOnly {
        source: BindSource::Path(HostPath::from(source)),
        target: InnerPath::from(target),
        recursive: false,
        optional: false,
    };
    let mut nowhere = script(":");
    nowhere.cwd = InnerPath::from("/no/such/directory");
    let cases = [
        (with_root(Path::new("/no/such/root")), "/no/such/root"),
        (with_root(file.path()), "Not a directory"),
        (with_mount(bind("/no/such/source", "/mnt")), "/no/such/source"),
        (with_mount(bind("/etc/passwd", "/mnt")), "a file is mounted on a file"),
        (with_mount(bind("/etc", "/etc/passwd")), "a directory on a directory"),
        (with_mount(MountSpec::Tmpfs { target: InnerPath::from("/no-such-place"), options: TmpfsOptions::default() }), "read-only"),
        (nowhere, "/no/such/directory"),
    ];
    for (spec, word) in cases {
        for init in [true, false] {
            let spec = Spec { init, ..spec.clone() };
            let error = try_run(&spec).unwrap_err();
            assert_eq!(error.exit_code(), 125, "{error}");
            assert!(error.to_string().contains(word), "{error}: {word}");
            assert!(!error.to_string().contains('\n'), "{error}");
        }
    }
    let error = run_with(&script(":"), vec![OwnedFd::from(fs::File::open("/").unwrap())]).map(drop);
    assert!(error.is_ok(), "a descriptor that nothing names is closed");
    // No detached mount.
    let mut spec = script(":");
    spec.root = Root::Fd(FdIndex(0));
    let error = run_with(&spec, vec![OwnedFd::from(fs::File::open("/etc").unwrap())]).unwrap_err();
    assert_eq!(error.exit_code(), 125, "{error}");
}

fn only_stdio_reaches_the_command() {
    // A caller that was itself given descriptors by a careless parent, and holds some of its own.
    for init in ["init", "no-init"] {
        let own = std::env::current_exe().unwrap();
        let output = std::process::Command::new("/bin/sh")
            .args(["-c", "exec 7</etc/passwd 9>/dev/null; exec \"$@\"", "sh"])
            .arg(own)
            .args(["__caller", "list-fds", init])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        // 3 is the listing's own.
        assert_eq!(text.split_whitespace().collect::<Vec<_>>(), ["0", "1", "2", "3"], "{output:?}");
    }
}

fn nothing_of_the_caller_is_in_the_init() {
    // Seen from outside, where nothing hides it.
    let launcher = Launcher::new().stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut running = launcher.spawn(&script("read x"), Vec::new()).unwrap();
    let pid = running.pid().unwrap();
    assert_eq!(fs::read(format!("/proc/{pid}/environ")).unwrap(), b"");
    let fds: Vec<_> = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().map(|entry| fs::read_link(entry.unwrap().path()).unwrap()).collect();
    assert_eq!(fds.len(), 4, "stdio and the descriptor for signals: {fds:?}");
    assert!(fds.iter().any(|link| link.to_string_lossy().contains("signalfd")), "{fds:?}");
    let launcher_pid: i32 = field(pid, "PPid").unwrap().parse().unwrap();
    let fds: Vec<_> =
        fs::read_dir(format!("/proc/{launcher_pid}/fd")).unwrap().map(|entry| fs::read_link(entry.unwrap().path()).unwrap()).collect();
    assert!(fds.len() <= 7, "stdio, three pipes, one process: {fds:?}");
    assert_eq!(
        fs::read_link(format!("/proc/{launcher_pid}/ns/mnt")).unwrap(),
        fs::read_link("/proc/self/ns/mnt").unwrap(),
        "the launcher holds no copy of the mounts"
    );
    drop(running.take_stdin());
    assert_eq!(running.wait().unwrap().code(), 1);
}

fn arguments_and_environment_arrive_as_given() {
    let mut spec = script("cat /proc/self/cmdline; echo; cat /proc/self/environ");
    let odd = OsString::from_vec(b"\xff\"\\\n".to_vec());
    spec.argv.push(odd.clone());
    spec.env = vec![(OsString::from("PATH"), OsString::from("/usr/bin:/bin")), (OsString::from("ODD"), odd)];
    spec.argv = vec!["/bin/cat".into(), "/proc/self/cmdline".into(), "/proc/self/environ".into(), OsString::from_vec(b"/\xff\n".to_vec())];
    let launcher = Launcher::new().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut running = launcher.spawn(&spec, Vec::new()).unwrap();
    let mut bytes = Vec::new();
    running.take_stdout().unwrap().read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"/bin/cat\0/proc/self/cmdline\0/proc/self/environ\0/\xff\n\0PATH=/usr/bin:/bin\0ODD=\xff\"\\\n\0");
    assert_eq!(running.wait().unwrap().code(), 1, "one file is not there");
}

fn command_is_process_1_or_2() {
    let mut spec = script("echo $$ $PPID; cat /proc/1/comm; set -- /proc/[0-9]*; echo $#");
    assert_eq!(output(&spec), "2 1\nplyfs-init\n2\n");
    spec.init = false;
    assert_eq!(output(&spec), "1 0\nsh\n1\n");
}

fn orphans_are_reaped_and_go_with_the_command() {
    let text = "for i in 1 2 3 4 5; do (sh -c 'exit 0' &) ; done; (sleep 1000 &); \
        for n in $(seq 200); do z=$(cat /proc/[0-9]*/stat 2>/dev/null | grep -c ') Z '); \
        l=$(cat /proc/[0-9]*/comm | grep -c sleep); [ $z = 0 ] && [ $l = 1 ] && exit 0; sleep 0.02; done; exit 1";
    assert_eq!(run(&script(text)).code, 0);
}

fn signal_state_is_the_default() {
    // The caller ignores SIGPIPE, as every Rust program does, and has caught others.
    for init in [true, false] {
        let mut spec = spec(&["cat", "/proc/self/status"]);
        spec.init = init;
        let status = output(&spec);
        for name in ["SigBlk", "SigIgn", "SigCgt", "SigPnd", "ShdPnd"] {
            assert_eq!(field_of(&status, name).unwrap(), "0000000000000000", "{name}");
        }
        assert_eq!(field_of(&status, "Umask").unwrap(), "0022");
    }
}

fn rights_are_a_container_s() {
    for init in [true, false] {
        let mut spec = spec(&["cat", "/proc/self/status", "/proc/1/status"]);
        spec.init = init;
        let text = output(&spec);
        let Capabilities::Only(container) = Capabilities::container() else { panic!() };
        let own = u64::from_str_radix(&field(std::process::id().cast_signed(), "CapEff").unwrap(), 16).unwrap();
        for status in text.split_inclusive("Name:").skip(1) {
            for name in ["CapBnd", "CapEff", "CapPrm"] {
                assert_eq!(u64::from_str_radix(&field_of(status, name).unwrap(), 16).unwrap(), container & own, "{name}");
            }
            for name in ["CapInh", "CapAmb"] {
                assert_eq!(field_of(status, name).unwrap(), "0000000000000000", "{name}");
            }
            assert_eq!(field_of(status, "NoNewPrivs").unwrap(), "1");
        }
    }
    let outcome = run(&script("mount -t tmpfs none /mnt || mount -o remount,rw / || umount /proc/sys"));
    assert_ne!(outcome.code, 0, "{outcome:?}");
}

fn rights_can_be_kept() {
    let mut spec = spec(&["cat", "/proc/self/status"]);
    spec.capabilities = Capabilities::Keep;
    spec.no_new_privs = false;
    let status = output(&spec);
    let own = fs::read_to_string("/proc/self/status").unwrap();
    for name in ["CapBnd", "CapEff", "NoNewPrivs"] {
        assert_eq!(field_of(&status, name), field_of(&own, name), "{name}");
    }
    spec.capabilities = Capabilities::none();
    assert_eq!(field_of(&output(&spec), "CapBnd").unwrap(), "0000000000000000");
}

fn proc_is_fresh_and_in_part_read_only_or_masked() {
    let mut spec = script(
        "set -e; for f in sys/kernel/hostname sysrq-trigger irq/default_smp_affinity sys/vm/drop_caches; do \
           [ -e /proc/$f ] || continue; [ ! -w /proc/$f ] || echo writable $f; done; \
         for f in kcore keys timer_list sched_debug interrupts; do [ ! -s /proc/$f ] || wc -c /proc/$f; done; \
         for d in acpi scsi asound; do [ -z \"$(ls /proc/$d 2>/dev/null)\" ] || echo shows $d; done; \
         [ -r /proc/meminfo ]; set -- /proc/[0-9]*; echo $#",
    );
    assert_eq!(output(&spec), "2\n");
    // Also for one who may write anything.
    spec.capabilities = Capabilities::Keep;
    assert_eq!(output(&spec), "2\n");
    let outcome = run(&Spec { capabilities: Capabilities::Keep, ..script("echo x > /proc/sys/kernel/hostname") });
    assert!(outcome.code != 0 && outcome.stderr.contains("Read-only file system"), "{outcome:?}");
}

fn proc_elsewhere_is_treated_alike() {
    let scratch = Scratch::new();
    let mut spec = scratch.script("[ ! -w /in/proc/sys/kernel/hostname ] && [ ! -s /in/proc/kcore ] && set -- /in/proc/[0-9]* && echo $#");
    spec.mounts.push(MountSpec::Proc { target: InnerPath::from("/in/proc") });
    assert_eq!(output(&spec), "2\n");
}

fn sys_is_read_only() {
    let scratch = Scratch::new();
    let mut spec = scratch.script(
        "[ -d /sys/kernel ] || exit 1; [ -z \"$(ls /sys/firmware)\" ] || exit 2; \
         awk '$5 ~ \"^/sys\" { split($6, o, \",\"); if (o[1] != \"ro\") print }' /proc/self/mountinfo; \
         mkdir /sys/fs/cgroup/x 2>/dev/null && exit 3; awk '$5 == \"/sys\"' /proc/self/mountinfo | wc -l",
    );
    spec.capabilities = Capabilities::Keep;
    assert_eq!(output(&spec), "1\n");
}

fn dev_holds_what_a_command_needs_and_no_more() {
    let names = "core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero";
    assert_eq!(output(&script("ls -x -w 0 /dev")).split_whitespace().collect::<Vec<_>>(), names.split(' ').collect::<Vec<_>>());
    let text = "set -e; echo x > /dev/null; [ -z \"$(cat /dev/null)\" ]; head -c 3 /dev/zero | wc -c; head -c 3 /dev/urandom | wc -c; \
        (echo x > /dev/full) 2>/dev/null && exit 9; echo y > /dev/shm/f; cat /dev/shm/f; echo z | cat /dev/stdin; echo w >/dev/stdout; \
        stat -c %a /dev/shm /dev/pts/ptmx; ls /dev/pts; (: < /dev/tty) 2>/dev/null && exit 8; exit 0";
    assert_eq!(output(&script(text)), "3\n3\ny\nz\nw\n1777\n666\nptmx\n");
    let mut spec = script("ls -d /dev/mqueue; df -k /dev/shm | tail -1 | awk '{print $2}'");
    spec.ipc = false;
    spec.mounts = vec![MountSpec::Proc { target: InnerPath::from("/proc") }];
    spec.mounts.push(MountSpec::Dev(DevOptions { shm_size: Some(1 << 20), ..DevOptions::default() }));
    let outcome = run(&spec);
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.contains("mqueue")), ("1024\n", true), "{outcome:?}");
}

fn device_nodes_work_in_dev_only() {
    let scratch = Scratch::new();
    let text = "for d in /x /dev /dev/shm /t; do mknod $d/node c 1 5 || exit 2; head -c 1 $d/node 2>/dev/null && exit 3; done; exit 0";
    fs::create_dir(scratch.path().join("x")).unwrap();
    let mut spec = scratch.script(text);
    spec.mounts.push(MountSpec::Tmpfs { target: InnerPath::from("/t"), options: TmpfsOptions::default() });
    for capabilities in [Capabilities::container(), Capabilities::Keep] {
        spec.capabilities = capabilities;
        assert_eq!(run(&spec).code, 0);
        fs::remove_file(scratch.path().join("x/node")).unwrap();
    }
}

fn host_devices_keep_their_mode() {
    let before = fs::metadata("/dev/null").unwrap();
    let outcome = run(&script("chmod 600 /dev/null; chown 1:1 /dev/zero; rm -f /dev/null"));
    assert!(outcome.stderr.contains("Read-only file system"), "{outcome:?}");
    let after = fs::metadata("/dev/null").unwrap();
    assert_eq!((before.mode(), before.uid(), before.ctime()), (after.mode(), after.uid(), after.ctime()));
}

fn false_devices_are_refused() {
    // In a mount namespace of its own, since it is the host's /dev that is false.
    let output = start_caller("false-null", &[]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

fn host_name_and_ipc_are_private() {
    let before = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let mut spec =
        script("cat /proc/sys/kernel/hostname; readlink /proc/self/ns/ipc /proc/self/ns/uts /proc/self/ns/mnt /proc/self/ns/pid");
    spec.hostname = Some(OsString::from("inside"));
    let text = output(&spec);
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("inside"));
    for name in ["ipc", "uts", "mnt", "pid"] {
        let own = fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        assert_ne!(lines.next(), own.to_str(), "{name}");
    }
    assert_eq!(fs::read_to_string("/proc/sys/kernel/hostname").unwrap(), before);
}

fn host_name_is_the_host_s_without_uts() {
    let mut spec = script("readlink /proc/self/ns/ipc /proc/self/ns/uts /proc/self/ns/net");
    (spec.uts, spec.ipc) = (false, false);
    let text = output(&spec);
    for (name, line) in ["ipc", "uts", "net"].into_iter().zip(text.lines()) {
        assert_eq!(fs::read_link(format!("/proc/self/ns/{name}")).unwrap().to_str(), Some(line));
    }
}

fn masked_paths_are_empty() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("d")).unwrap();
    fs::write(dir.path().join("d/secret"), "x").unwrap();
    fs::write(dir.path().join("f"), "secret").unwrap();
    symlink("f", dir.path().join("link")).unwrap();
    let _listener = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
    let mut spec = script("ls -A d; cat f; cat other; echo x > f; stat -c %F socket; touch d/x; mkdir missing");
    spec.cwd = InnerPath::from(dir.path());
    fs::write(dir.path().join("other"), "seen\n").unwrap();
    let inner = |name: &str| InnerPath::from(&dir.path().join(name));
    spec.mounts.push(MountSpec::Mask { target: inner("d") });
    spec.masked.extend([inner("link"), inner("socket"), inner("missing"), inner("f/below")]);
    let outcome = run(&spec);
    assert_eq!(outcome.stdout, "seen\ncharacter special file\n");
    assert_eq!(outcome.stderr.matches("Read-only file system").count(), 2, "{outcome:?}");
    assert_eq!(fs::read_to_string(dir.path().join("f")).unwrap(), "secret");
}

fn read_only_paths_are_read_only_with_all_below() {
    let scratch = Scratch::new();
    fs::create_dir_all(scratch.path().join("a/b")).unwrap();
    let mut spec = scratch.script("touch /a/x; touch /a/b/x; touch /a/b/t/x; touch /y");
    spec.mounts.push(MountSpec::Tmpfs { target: InnerPath::from("/a/b/t"), options: TmpfsOptions::default() });
    spec.read_only = vec![InnerPath::from("/a"), InnerPath::from("/missing")];
    let outcome = run(&spec);
    assert_eq!(outcome.stderr.matches("Read-only file system").count(), 3, "{outcome:?}");
    assert!(scratch.path().join("y").exists());
}

fn binds_are_read_only() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("f"), "text").unwrap();
    let scratch = Scratch::new();
    let mut spec = scratch.script("cat /in/dir/f /in/file /in/fd; touch /in/dir/x; echo x >> /in/file; echo x >> /in/fd");
    let bind = |source: BindSource, target: &str| MountSpec::BindReadOnly {
        source,
        target: InnerPath::from(target),
        recursive: true,
        optional: false,
    };
    spec.mounts.push(bind(BindSource::Path(HostPath::from(dir.path())), "/in/dir"));
    spec.mounts.push(bind(BindSource::Path(HostPath::from(&dir.path().join("f"))), "/in/file"));
    spec.mounts.push(bind(BindSource::Fd(FdIndex(0)), "/in/fd"));
    let fd = OwnedFd::from(fs::File::open(dir.path().join("f")).unwrap());
    let outcome = run_with(&spec, vec![fd]).unwrap();
    assert_eq!(outcome.stdout, "texttexttext");
    assert_eq!(outcome.stderr.matches("Read-only file system").count(), 3, "{outcome:?}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

fn dead_and_vanished_sources_do_not_hold_up_a_launch() {
    let dir = tempfile::tempdir().unwrap();
    let (device, dead) = mount::fuse_mount(&mount::FuseOptions::default()).unwrap();
    mount::move_mount_path(dead.as_fd(), dir.path()).unwrap();
    drop((device, dead));
    let scratch = Scratch::new();
    fs::create_dir(scratch.path().join("gone")).unwrap();
    let mut spec = scratch.script("ls /dead; touch /gone/x && echo gone is as it was");
    for (source, target) in [(dir.path(), "/dead"), (Path::new("/no/such/thing"), "/gone")] {
        let source = BindSource::Path(HostPath::from(source));
        spec.mounts.push(MountSpec::BindReadOnly { source, target: InnerPath::from(target), recursive: false, optional: true });
    }
    let outcome = run(&spec);
    assert_eq!((outcome.code, outcome.stdout.as_str()), (0, "gone is as it was\n"), "{outcome:?}");
    assert!(outcome.stderr.contains("not connected"), "{outcome:?}");
    mount::umount(dir.path(), true).unwrap();
}

fn tmpfs_has_its_limits() {
    let scratch = Scratch::new();
    let text = "stat -c %a /t /r; cp /bin/true /t/x 2>/dev/null; /t/x; echo $?; touch /r/x; df -k /t | tail -1 | awk '{print $2}'";
    let mut spec = scratch.script(text);
    let tmpfs = |target: &str, options: TmpfsOptions| MountSpec::Tmpfs { target: InnerPath::from(target), options };
    spec.mounts.push(tmpfs("/t", TmpfsOptions { size: Some(2 << 20), mode: 0o1777, exec: false, read_only: false }));
    spec.mounts.push(tmpfs("/r", TmpfsOptions { read_only: true, ..TmpfsOptions::default() }));
    let outcome = run(&spec);
    assert_eq!(outcome.stdout, "1777\n755\n126\n2048\n", "{outcome:?}");
    assert!(outcome.stderr.contains("Read-only file system"), "{outcome:?}");
}

fn attached_mounts_are_used_and_end_with_the_command() {
    let tmpfs = || mount::tmpfs(&mount::TmpfsOptions::default(), MountAttrFlags::empty()).unwrap();
    let file = |mount: &OwnedFd, name: &str| drop(plyfs_sys::create::create(mount.as_fd(), name.as_bytes(), 0o644).unwrap());
    let (root, below) = (tmpfs(), tmpfs());
    file(&root, "in-root");
    file(&below, "in-below");
    let scratch = Scratch::new();
    let mut spec = scratch.script("echo /in* /deep/er/in*; echo x > /new; grep -c tmpfs /proc/self/mountinfo");
    spec.root = Root::Fd(FdIndex(1));
    spec.mounts.push(MountSpec::AttachFd { fd: FdIndex(0), target: InnerPath::from("/deep/er") });
    let watched = root.try_clone().unwrap();
    let outcome = run_with(&spec, vec![below, root]).unwrap();
    assert!(outcome.stdout.starts_with("/in-root /deep/er/in-below\n"), "{outcome:?}");
    // What was written through the mount is there, and the mount itself is mounted nowhere.
    assert_eq!(mount::open_read_in_root(watched.as_fd(), b"/new").map(drop), Ok(()));
}

fn targets_are_made_and_stay_in_the_root() {
    let outside = tempfile::tempdir().unwrap();
    let scratch = Scratch::new();
    let escape = format!("{}{}", "../".repeat(20), outside.path().display());
    symlink(&escape, scratch.path().join("relative")).unwrap();
    symlink(outside.path(), scratch.path().join("absolute")).unwrap();
    fs::create_dir_all(scratch.path().join(outside.path().strip_prefix("/").unwrap())).unwrap();
    let mut spec = scratch.script("ls -d /relative/a /absolute/b; ls /");
    for target in ["/relative/a", "/absolute/b", "/../../../c/d"] {
        spec.mounts.push(MountSpec::Tmpfs { target: InnerPath::from(target), options: TmpfsOptions::default() });
    }
    let outcome = run(&spec);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    assert!(scratch.path().join("c/d").is_dir() && scratch.path().join("proc").is_dir());
    assert_eq!(fs::read_dir(scratch.path().join("c/d")).unwrap().count(), 0);

    // A magic link would lead to where the kernel has its object, which no resolving inside a root confines.
    let mut spec = scratch.script("true");
    spec.mounts.push(MountSpec::Tmpfs { target: InnerPath::from("/proc/1/root/tmp"), options: TmpfsOptions::default() });
    let error = try_run(&spec).unwrap_err();
    assert!(error.to_string().contains("links of /proc"), "{error}");
}

fn no_target_is_made_in_a_root_that_is_kept() {
    let scratch = Scratch::new();
    let mut spec = scratch.script("ls -d /*; grep -c ' /t ' /proc/self/mounts");
    let tmpfs = |target| MountSpec::Tmpfs { target: InnerPath::from(target), options: TmpfsOptions::default() };
    spec.mounts.push(tmpfs("/t"));
    // The first one makes what it needs.
    let before = output(&spec);
    assert!(before.ends_with("\n1\n"), "{before}");
    spec.keep_root = true;
    spec.mounts.extend(["/gone", "/t/gone/below", "/gone/too"].map(tmpfs));
    assert_eq!(output(&spec), before);
    assert!(!scratch.path().join("gone").exists());
    spec.keep_root = false;
    output(&spec);
    assert!(scratch.path().join("gone").is_dir());
}

fn current_directory_is_looked_up_inside() {
    let dir = tempfile::tempdir().unwrap();
    symlink("/etc", dir.path().join("link")).unwrap();
    let cwd = |path: &Path, or_root: bool| {
        let mut spec = spec(&["/bin/pwd", "-P"]);
        (spec.cwd, spec.cwd_or_root) = (InnerPath::from(path), or_root);
        spec
    };
    assert_eq!(output(&cwd(Path::new("/usr/../etc/"), false)), "/etc\n");
    assert_eq!(output(&cwd(&dir.path().join("link"), false)), "/etc\n");
    assert_eq!(output(&cwd(Path::new("/no/such"), true)), "/\n");
    assert_eq!(output(&cwd(Path::new("/etc/passwd"), true)), "/\n");
    // CVE-2024-21626.
    for fd in 0..12 {
        let error = try_run(&cwd(Path::new(&format!("/proc/self/fd/{fd}")), false)).unwrap_err();
        assert_eq!(error.exit_code(), 125);
    }
    assert_eq!(try_run(&cwd(Path::new("/proc/1/cwd"), false)).unwrap_err().exit_code(), 125);
}

fn own_program_cannot_be_written_to() {
    // CVE-2019-5736. As one who may do all that root may; the init is this program.
    let mut spec = script(": > /proc/1/exe");
    spec.capabilities = Capabilities::Keep;
    let outcome = run(&spec);
    assert!(outcome.code != 0 && outcome.stderr.contains("Read-only file system"), "{outcome:?}");
    spec.capabilities = Capabilities::container();
    let outcome = run(&spec);
    assert!(outcome.code != 0 && outcome.stderr.contains("Permission denied"), "{outcome:?}");
    // The command is a script whose interpreter is this program: it must not come to life as a launcher, nor be writable.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("script");
    fs::write(&path, "#!/proc/self/exe\n").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let link = path.to_str().unwrap();
    let length = fs::metadata("/proc/self/exe").unwrap().len();
    drop(try_run(&crate::support::spec(&[link])));
    assert_eq!(fs::metadata("/proc/self/exe").unwrap().len(), length);
}

fn deleted_program_launches_from_a_sealed_copy() {
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("copy");
    fs::copy("/proc/self/exe", &copy).unwrap();
    let mut command = std::process::Command::new(&copy);
    let output = command.args(["__caller", "unlinked", "cat /proc/1/comm; : > /proc/1/exe"]).stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.stdout, b"plyfs-init\n", "{output:?}");
    assert!(!output.status.success() && !copy.exists());
}

fn missing_rights_are_named() {
    use std::os::unix::process::CommandExt;
    let output = start_caller("script", &["init", "true"]).uid(65534).gid(65534).stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(125), "{text}");
    assert!(text.contains("pid namespace") && text.contains("run it as root") && text.lines().count() == 1, "{text}");
}

fn propagation_ends_at_the_container() {
    // A shared directory of the host, in which the container mounts, and as its root.
    let output = start_caller("shared", &[]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

fn signals_to_the_caller_are_passed_on() {
    for (name, number) in [("TERM", signals::SIGTERM), ("HUP", signals::SIGHUP), ("INT", signals::SIGINT), ("USR1", signals::SIGUSR1)] {
        for init in ["init", "no-init"] {
            let text = format!("trap 'exit 5' {name}; echo ready; while :; do sleep 0.01; done");
            let mut child = start_caller("script", &[init, &text]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
            let mut line = String::new();
            BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
            assert_eq!(line, "ready\n");
            process::kill(child.id().cast_signed(), number).unwrap();
            assert_eq!(child.wait().unwrap().code(), Some(5), "{name} {init}");
        }
    }
    // Without a handler the command dies of it, and the caller tells.
    let mut child = start_caller("script", &["init", "echo ready; sleep 100"]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    process::kill(child.id().cast_signed(), signals::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(143));
}

fn nohup_is_kept() {
    let text = "trap '' HUP; exec \"$@\"";
    let output = std::process::Command::new("/bin/sh")
        .args(["-c", text, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["__caller", "script", "init", "grep SigIgn /proc/self/status"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "SigIgn:\t0000000000000001\n", "{output:?}");
}

/// Starts a caller whose command sleeps, and returns it with the numbers of process 1 and of the launcher process.
fn sleeping_caller(init: &str, text: &str) -> (std::process::Child, i32, i32) {
    let mut command = start_caller("sleep", &[init, text]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let pid: i32 = line.trim().parse().unwrap();
    let launcher = field(pid, "PPid").unwrap().parse().unwrap();
    (child, pid, launcher)
}

fn death_of_the_caller_is_death_of_the_container() {
    for init in ["init", "no-init"] {
        let (mut child, pid, launcher) = sleeping_caller(init, "setsid sleep 1000 & sleep 1000");
        assert!(lives(pid) && lives(launcher));
        child.kill().unwrap();
        child.wait().unwrap();
        eventually("the container has ended", || !lives(pid) && !lives(launcher));
    }
}

fn death_of_the_launcher_is_death_of_the_container() {
    for init in ["init", "no-init"] {
        let (mut child, pid, launcher) = sleeping_caller(init, "sleep 1000");
        process::kill(launcher, signals::SIGKILL).unwrap();
        eventually("the container has ended", || !lives(pid));
        assert_eq!(child.wait().unwrap().code(), Some(125));
    }
}

fn dropped_launch_is_killed() {
    let launcher = Launcher::new().stdin(Stdio::null());
    let running = launcher.spawn(&script("sleep 1000"), Vec::new()).unwrap();
    let pid = running.pid().unwrap();
    drop(running);
    assert!(!lives(pid));
    assert_eq!(children(), "");
}

fn many_at_once() {
    let begin = std::time::Instant::now();
    let mut running: Vec<_> = (0..20)
        .map(|number| {
            let launcher = Launcher::new().forward_signals(false).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            launcher.spawn(&script(&format!("echo {number}; exit {number}")), Vec::new()).unwrap()
        })
        .collect();
    for (number, running) in running.iter_mut().enumerate() {
        let outcome = finish(running).unwrap();
        assert_eq!((usize::from(outcome.code), outcome.stdout), (number, format!("{number}\n")));
    }
    println!("20 launches: {:?}", begin.elapsed());
    // Signals can be caught by one only.
    let first = Launcher::new().stdin(Stdio::null()).spawn(&script("sleep 1000"), Vec::new()).unwrap();
    let error = Launcher::new().stdin(Stdio::null()).spawn(&script(":"), Vec::new()).unwrap_err();
    assert!(error.to_string().contains("one launch at a time"), "{error}");
    drop(first);
}

/// A caller of its own: what the cases above start with [`crate::support::start_caller`].
pub(crate) fn caller(name: &str, rest: &[String]) -> ExitCode {
    let with_init = |spec: Spec, init: &str| Spec { init: init == "init", ..spec };
    let code = |result: Result<plyfs_runtime::ExitStatus, Error>| match result {
        Ok(status) => ExitCode::from(status.code()),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(error.exit_code())
        }
    };
    let run = |spec: &Spec| code(Launcher::new().spawn(spec, Vec::new()).and_then(|mut running| running.wait()));
    match (name, rest) {
        ("list-fds", [init]) => {
            let _held = fs::File::open("/etc").unwrap();
            run(&with_init(spec(&["ls", "/proc/self/fd"]), init))
        }
        ("script", [init, text]) => run(&with_init(script(text), init)),
        ("unlinked", [text]) => {
            fs::remove_file(std::env::current_exe().unwrap()).unwrap();
            run(&Spec { capabilities: Capabilities::Keep, ..script(text) })
        }
        ("sleep", [init, text]) => {
            let mut running = Launcher::new().spawn(&with_init(script(text), init), Vec::new()).unwrap();
            println!("{}", running.pid().unwrap());
            code(running.wait())
        }
        ("terminal", [terminal, kind, command @ ..]) => crate::terminals::caller(terminal, kind, command),
        ("false-null", []) => {
            ns::unshare(Namespaces { mount: true, ..Namespaces::default() }).unwrap();
            mount::make_private_recursive("/").unwrap();
            for (source, target) in [("/dev/zero", "/dev/null"), ("/etc/passwd", "/dev/null"), ("/dev/null", "/dev/tty")] {
                let clone = mount::open_tree_clone_path(source, false).unwrap();
                mount::move_mount_path(clone.as_fd(), target).unwrap();
                let error = try_run(&script(":")).unwrap_err();
                assert!(matches!(&error, Error::Impostor { file, .. } if file.contains(target)), "{error}");
                mount::umount(target, true).unwrap();
            }
            ExitCode::from(run_code(&script("exit 0")))
        }
        ("shared", []) => {
            ns::unshare(Namespaces { mount: true, ..Namespaces::default() }).unwrap();
            mount::make_private_recursive("/").unwrap();
            let scratch = Scratch::new();
            let tmpfs = mount::tmpfs(&mount::TmpfsOptions::default(), MountAttrFlags::empty()).unwrap();
            mount::move_mount_path(tmpfs.as_fd(), scratch.path()).unwrap();
            let shared = mount::SetAttr { propagation: Some(mount::Propagation::Shared), ..Default::default() };
            mount::mount_setattr(tmpfs.as_fd(), &shared, false).unwrap();
            let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
            assert!(before.contains("shared:"));
            let mut spec =
                scratch.script("grep -E 'shared:|master:' /proc/self/mountinfo; mkdir /m; mount -t tmpfs x /m && mount | grep -c ' /m '");
            spec.capabilities = Capabilities::Keep;
            let outcome = crate::support::run(&spec);
            assert_eq!((outcome.code, outcome.stdout.as_str()), (0, "1\n"), "{outcome:?}");
            assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
            mount::umount(scratch.path(), true).unwrap();
            ExitCode::SUCCESS
        }
        _ => panic!("no caller {name} {rest:?}"),
    }
}

fn run_code(spec: &Spec) -> u8 {
    crate::support::run(spec).code
}
