//! What a command learns from the daemon that it leaves behind. Each case forks this process, which has one thread.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;
use std::process::exit;

use plyfs_sys::daemon::{Fork, Notifier, Report, detach};
use plyfs_sys::limits::umask;
use rustix::process::{Pid, Signal, kill_process};

fn main() {
    case("ready_while_the_child_goes_on", Report::Ready, |notifier| {
        notifier.ready().unwrap();
        std::thread::sleep(std::time::Duration::from_secs(60));
    });
    case("a_failure_comes_with_its_text", Report::Failed("lower 1: no such directory".into()), |notifier| {
        notifier.failed("lower 1: no such directory").unwrap();
    });
    let long = "x".repeat(300_000);
    case("a_text_longer_than_the_pipe", Report::Failed(long.clone()), |notifier| notifier.failed(&long).unwrap());
    case("an_empty_text_is_a_failure", Report::Failed(String::new()), |notifier| notifier.failed("").unwrap());
    case("an_exit_without_a_word", Report::Died(7), |_| exit(7));
    case("a_dropped_notifier", Report::Died(0), drop);
    case("a_death_by_signal", Report::Died(-9), |_| {
        kill_process(rustix::process::getpid(), Signal::KILL).unwrap();
    });
    case("the_child_is_cut_loose", Report::Ready, |notifier| {
        let own = rustix::process::getpid();
        assert_eq!(rustix::process::getsid(None), Ok(own));
        assert_eq!(std::env::current_dir().unwrap(), Path::new("/"));
        let null = Path::new("/dev/null");
        assert_eq!(std::fs::read_link("/proc/self/fd/0").unwrap(), null);
        assert_eq!(std::fs::read_link("/proc/self/fd/1").unwrap(), null);
        notifier.ready().unwrap();
        std::thread::sleep(std::time::Duration::from_secs(60));
    });
    case("the_child_may_start_threads", Report::Ready, |notifier| {
        std::thread::spawn(move || notifier.ready().unwrap()).join().unwrap();
    });
    umask_is_of_the_process();
    println!("daemon: all cases hold");
}

fn case(name: &str, expected: Report, child: impl FnOnce(Notifier)) {
    match detach().unwrap() {
        Fork::Child(notifier) => {
            child(notifier);
            exit(0);
        }
        Fork::Parent(reader) => {
            let pid = Pid::from_raw(reader.pid()).unwrap();
            assert_eq!(reader.wait().unwrap(), expected, "{name}");
            // A child that ended by itself is a zombie or reaped by now.
            let gone = kill_process(pid, Signal::KILL);
            assert!(gone.is_ok() || gone == Err(plyfs_sys::Errno::SRCH), "{name}");
            println!("daemon: {name} ... ok");
        }
    }
}

/// Here because no other thread may make files meanwhile.
fn umask_is_of_the_process() {
    let old = umask(0o027);
    assert_eq!(umask(0), 0o027);
    umask(old);
}
