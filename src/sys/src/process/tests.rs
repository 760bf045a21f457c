#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::os::fd::AsFd;
use std::process::Stdio;

use super::*;

#[test]
fn boot_is_one_and_has_no_line_break() {
    let boot = super::boot_id().unwrap();
    assert!(boot.len() == 36 && boot == super::boot_id().unwrap() && !boot.contains(char::is_whitespace), "{boot:?}");
}

#[test]
fn fork_is_refused_beside_other_threads() {
    let (stop, wait) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || wait.recv());
    assert_eq!(fork(), Err(Errno::DEADLK));
    drop(stop);
    assert!(thread.join().unwrap().is_err());
}

#[test]
fn passed_descriptor_arrives_under_its_number() {
    let file = std::fs::File::open("/proc/version").unwrap();
    let fd = OwnedFd::from(file);
    let number = number(fd.as_fd());
    let mut command = Command::new("/bin/sh");
    command.args(["-c", &format!("readlink /proc/self/fd/{number}")]);
    pass(&mut command, vec![fd]);
    let output = command.output().unwrap();
    assert_eq!(output.stdout, b"/proc/version\n");
}

#[test]
fn adopt_takes_only_what_nobody_owns() {
    let own = std::fs::File::open("/proc/version").unwrap();
    assert_eq!(adopt(number(own.as_fd())).unwrap_err(), Errno::BADF);
    assert_eq!(adopt(1).unwrap_err(), Errno::BADF);
    assert_eq!(adopt(-1).unwrap_err(), Errno::BADF);
    // A descriptor as execve would have left it.
    let inherited = own.try_clone().unwrap();
    rustix::io::fcntl_setfd(&inherited, FdFlags::empty()).unwrap();
    let number = number(std::mem::ManuallyDrop::new(OwnedFd::from(inherited)).as_fd());
    let adopted = adopt(number).unwrap();
    assert_eq!(adopt(number).unwrap_err(), Errno::BADF);
    drop(adopted);
}

#[test]
fn pidfd_is_readable_once_the_process_has_ended() {
    let mut child = Command::new("/bin/sh").args(["-c", "read x; exit 7"]).stdin(Stdio::piped()).spawn().unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    let pidfd = pidfd_open(pid).unwrap();
    assert_eq!(poll_in(&[pidfd.as_fd()], Some(0)).unwrap(), [false]);
    pidfd_signal(pidfd.as_fd(), signals::SIGKILL).unwrap();
    assert_eq!(poll_in(&[pidfd.as_fd()], Some(10_000)).unwrap(), [true]);
    assert_eq!(wait(pid).unwrap(), Exit::Signal(9));
    assert_eq!(Exit::Signal(9).shell_code(), 137);
    assert_eq!(pidfd_signal(pidfd.as_fd(), signals::SIGKILL), Err(Errno::SRCH));
    assert!(child.wait().is_err());
}

#[test]
fn wrong_numbers_signal_nobody() {
    for pid in [0, -1, -5] {
        assert_eq!(kill(pid, signals::SIGTERM), Err(Errno::SRCH));
    }
    assert_eq!(kill(1, 0), Err(Errno::INVAL));
    assert_eq!(kill(1, 65), Err(Errno::INVAL));
}

#[test]
fn caught_signal_of_a_process_is_read_and_there_is_one_catcher() {
    let caught = signals::Caught::new(&[signals::SIGUSR1]).unwrap();
    assert!(signals::Caught::new(&[signals::SIGUSR1]).is_err());
    assert_eq!(caught.next().unwrap(), None);
    kill(i32::try_from(std::process::id()).unwrap(), signals::SIGUSR1).unwrap();
    assert_eq!(poll_in(&[caught.as_fd()], Some(10_000)).unwrap(), [true]);
    assert_eq!(caught.next().unwrap(), Some(signals::Arrived { signal: signals::SIGUSR1, by_process: true }));
    drop(caught);
    signals::Caught::new(&[signals::SIGUSR1]).unwrap();
}

#[test]
fn capabilities_go_by_name() {
    assert_eq!(caps::number_of("CAP_CHOWN"), Some(0));
    assert_eq!(caps::number_of("sys_admin"), Some(21));
    assert_eq!(caps::number_of("CHECKPOINT_RESTORE"), Some(40));
    assert_eq!(caps::number_of("CAP_NONE"), None);
    for number in 0..41 {
        assert_eq!(caps::number_of(caps::name_of(number).unwrap()), Some(number));
    }
    assert_eq!(caps::Set::SYS_ADMIN.bits(), 1 << 21);
}
