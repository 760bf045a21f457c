//! Cases with a real terminal, whose keyboard and screen are the case.

use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::process::{Child, ExitCode, Stdio};
use std::time::Duration;

use plyfs_runtime::{Capabilities, Launcher};
use plyfs_sys::process::{self, signals};
use plyfs_sys::terminal::Modes;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::support::*;

all![
    shells_have_a_terminal_of_their_own,
    terminal_is_there_without_an_init,
    output_is_shown_to_its_end,
    all_bytes_typed_arrive,
    init_is_off_the_caller_s_terminal,
    terminal_is_given_back_when_there_is_no_command,
    terminal_is_given_back_by_those_who_live,
    hang_up_of_the_caller_s_terminal_is_the_command_s,
    term_ends_even_a_shell_that_ignores_it,
    stopped_caller_gives_the_terminal_back,
    hang_up_inside_is_no_end,
    descriptors_pass_unchanged_if_one_is_no_terminal,
    shared_terminal_is_the_console_and_is_taken_back,
    keys_of_a_shared_terminal_go_to_the_command_and_not_to_the_caller,
];

/// A terminal with a caller on it, which leads a session there.
struct Desk {
    main: fs::File,
    child: Child,
    before: Modes,
    /// Process 1 of the container.
    pid: i32,
    /// What was shown, and not looked at yet.
    unread: Vec<u8>,
}

impl Desk {
    fn new(kind: &str, command: &[&str]) -> Desk {
        let mut desk = Desk::without_word(kind, command);
        let line = desk.read_until("running\r\n");
        desk.pid = line.split_whitespace().rev().nth(1).unwrap().parse().unwrap();
        desk
    }

    fn without_word(kind: &str, command: &[&str]) -> Desk {
        let main = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&main).unwrap();
        unlockpt(&main).unwrap();
        let name = ptsname(&main, Vec::new()).unwrap();
        let before = Modes::of(main.as_fd()).unwrap();
        let mut arguments = vec![name.to_str().unwrap(), kind];
        arguments.extend(command);
        let mut desk = Desk { main: fs::File::from(main), child: start(&arguments), before, pid: 0, unread: Vec::new() };
        desk.resize(24, 80);
        desk
    }

    fn resize(&mut self, rows: u16, columns: u16) {
        tcsetwinsize(&self.main, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    }

    fn type_in(&mut self, keys: &str) {
        self.main.write_all(keys.as_bytes()).unwrap();
    }

    /// What the screen shows, up to the end of a word.
    #[track_caller]
    fn read_until(&mut self, word: &str) -> String {
        let mut chunk = vec![0; 64 << 10];
        let mut looked = 0;
        loop {
            if let Some(at) = self.unread[looked..].windows(word.len()).position(|window| window == word.as_bytes()) {
                let rest = self.unread.split_off(looked + at + word.len());
                let seen = std::mem::replace(&mut self.unread, rest);
                return String::from_utf8_lossy(&seen).into_owned();
            }
            looked = self.unread.len().saturating_sub(word.len());
            let ready = process::poll_in(&[self.main.as_fd()], Some(20_000)).unwrap();
            let text = || String::from_utf8_lossy(&self.unread).into_owned();
            assert_eq!(ready, [true], "{word:?} did not come in time, but {:?}", text());
            match self.main.read(&mut chunk) {
                Ok(length) if length > 0 => self.unread.extend_from_slice(&chunk[..length]),
                end => panic!("{word:?} did not come, but {:?} and {end:?}", text()),
            }
        }
    }

    fn modes(&self) -> Modes {
        Modes::of(self.main.as_fd()).unwrap()
    }

    /// Answers the question that the caller asks when the command has ended: what was shown before, and the command's code.
    #[track_caller]
    fn end(&mut self) -> (String, i32) {
        let seen = self.read_until("again?");
        assert_eq!(self.modes(), self.before, "the terminal is as it was");
        // A line with a mistake in it: the terminal edits lines, and shows them.
        self.type_in("ask\x7f\x7fnswer\r");
        let answer = self.read_until("code ");
        assert!(answer.contains("answer \"answer\""), "{answer:?}");
        let rest = self.read_until("\n");
        assert!(self.child.wait().unwrap().success());
        (seen, (answer + &rest).rsplit_once("code ").unwrap().1.trim().parse().unwrap())
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        // Of a case that has failed.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn start(arguments: &[&str]) -> Child {
    start_caller("terminal", arguments).stdin(Stdio::null()).spawn().unwrap()
}

/// The caller: `kind` is how it launches.
pub(crate) fn caller(terminal: &str, kind: &str, command: &[String]) -> ExitCode {
    process::setsid().unwrap();
    // The first terminal that the leader of a session opens becomes its own.
    let terminal = fs::OpenOptions::new().read(true).write(true).open(terminal).unwrap();
    for number in 0..3 {
        process::dup2_stdio(terminal.as_fd(), number).unwrap();
    }
    if kind == "no-stdout" {
        process::dup2_stdio(fs::File::create("/dev/null").unwrap().as_fd(), 1).unwrap();
    }
    drop(terminal);
    let mut spec = spec(&command.iter().map(String::as_str).collect::<Vec<_>>());
    spec.env
        .extend([("PS1", "in> "), ("TERM", "dumb"), ("HISTFILE", "")].map(|(name, value)| (OsString::from(name), OsString::from(value))));
    spec.init = kind != "no-init";
    if kind == "rights" {
        spec.capabilities = Capabilities::Keep;
    }
    let relayed = !["shared", "no-stdout"].contains(&kind);
    let code = match Launcher::new().own_terminal(kind != "shared").spawn(&spec, Vec::new()) {
        Ok(mut running) => {
            // Of a command on the same terminal the first word might come before.
            if relayed {
                eprintln!("{} running", running.pid().unwrap());
            }
            running.wait().map_or_else(|error| error.exit_code(), |status| status.code())
        }
        Err(error) => {
            eprintln!("{error}");
            error.exit_code()
        }
    };
    eprintln!("again?");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    eprintln!("answer {:?} code {code}", line.trim_end());
    ExitCode::SUCCESS
}

fn shells_have_a_terminal_of_their_own() {
    for shell in [["sh", "-i"].as_slice(), &["bash", "--norc", "-i"]] {
        let mut desk = Desk::new("own", shell);
        for (line, word) in [
            ("echo $((6*7))", "\r\n42\r\n"),
            ("tty", "\r\n/dev/pts/0\r\n"),
            ("stty size", "\r\n24 80\r\n"),
            ("echo con''soled > /dev/console", "\r\nconsoled\r\n"),
            ("echo tty''ed > /dev/tty", "\r\nttyed\r\n"),
        ] {
            // The screen shows what is typed where it is typed.
            desk.read_until("in> ");
            desk.type_in(&format!("{line}\r"));
            desk.read_until(word);
        }
        assert_eq!(desk.modes(), desk.before.raw(), "{shell:?}");
        // The end of input, a line that is edited, a key that is a signal.
        desk.read_until("in> ");
        // (A shell that edits lines itself sets the terminal's modes before it runs something.)
        desk.type_in("sh -c 'echo read''ing; cat'; echo wor''ks\r");
        desk.read_until("reading\r\n");
        desk.type_in("ac\x7fb\r");
        desk.read_until("\nab\r\n");
        desk.type_in("\x04");
        desk.read_until("works\r\n");
        desk.read_until("in> ");
        desk.type_in("sh -c 'echo slee''ping; exec sleep 1000'\r");
        desk.read_until("\nsleeping\r\n");
        desk.type_in("\x03");
        desk.read_until("in> ");
        desk.type_in("until [ \"$(stty size)\" = '50 132' ]; do sleep 0.01; done; echo re''sized\r");
        desk.resize(50, 132);
        desk.read_until("\nresized\r\n");
        desk.type_in("exit 3\r");
        let (seen, code) = desk.end();
        assert_eq!(code, 3, "{shell:?}: {seen:?}");
        assert!(!seen.contains("annot") && !seen.contains("job control"), "{shell:?}: {seen:?}");
    }
}

fn terminal_is_there_without_an_init() {
    let mut desk = Desk::new("no-init", &["sh", "-c", "tty; echo $$; read -r line; echo \"<$line>\"; exit 4"]);
    let seen = desk.read_until("\n1\r\n");
    assert!(seen.contains("/dev/pts/0\r\n"), "{seen:?}");
    desk.type_in("x y\r");
    let (seen, code) = desk.end();
    assert!(seen.contains("<x y>") && code == 4, "{code} {seen:?}");
}

fn output_is_shown_to_its_end() {
    let numbers: String = (1..=100_000).map(|number| format!("{number}\r\n")).collect();
    for (text, wanted) in [("exec seq 1 100000", 0), ("seq 1 100000; kill -KILL $$", 137)] {
        let mut desk = Desk::new("own", &["sh", "-c", text]);
        // The screen is slow at first, and everything is full.
        std::thread::sleep(Duration::from_millis(300));
        let (seen, code) = desk.end();
        assert!(seen == format!("{numbers}again?"), "{} bytes", seen.len());
        assert_eq!(code, wanted);
    }
}

fn all_bytes_typed_arrive() {
    let bytes: Vec<u8> = (0..300_000_u32).map(|number| (number ^ (number >> 8)).to_le_bytes()[0]).collect();
    let mut sum = std::process::Command::new("cksum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    sum.stdin.take().unwrap().write_all(&bytes).unwrap();
    let sum = String::from_utf8(sum.wait_with_output().unwrap().stdout).unwrap();
    let mut desk = Desk::new("own", &["sh", "-c", "stty raw -echo; echo set; head -c 300000 | cksum"]);
    desk.read_until("set\n");
    desk.main.write_all(&bytes).unwrap();
    let (seen, code) = desk.end();
    assert!(seen.contains(&sum) && code == 0, "{code} {seen:?}");
}

fn init_is_off_the_caller_s_terminal() {
    let mut desk = Desk::new("own", &["sh", "-c", "echo here; read x"]);
    desk.read_until("here");
    let links = |pid: i32| -> Vec<String> {
        let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        entries.map(|entry| fs::read_link(entry.unwrap().path()).unwrap().to_string_lossy().into_owned()).collect()
    };
    eventually("the init watches signals", || links(desk.pid).len() > 3);
    let fds = links(desk.pid);
    assert_eq!((fds.len(), fds.iter().filter(|link| link.ends_with("/0")).count()), (4, 3), "{fds:?}");
    // After the name: state, parent, group, session, terminal.
    let stat = fs::read_to_string(format!("/proc/{}/stat", desk.pid)).unwrap();
    assert_eq!(stat.rsplit_once(')').unwrap().1.split_whitespace().nth(4), Some("0"), "{stat}");
    let fds = links(field(desk.pid, "PPid").unwrap().parse().unwrap());
    assert!(fds.len() <= 7, "stdio, three pipes, one process: {fds:?}");
    desk.type_in("\r");
    desk.end();
}

fn terminal_is_given_back_when_there_is_no_command() {
    for (command, wanted) in [("no-such-command", 127), ("/etc/passwd", 126)] {
        let (_, code) = Desk::without_word("own", &[command]).end();
        assert_eq!(code, wanted);
    }
}

fn terminal_is_given_back_by_those_who_live() {
    let raw = |desk: &mut Desk| {
        desk.read_until("here");
        eventually("the terminal is raw", || desk.modes() == desk.before.raw());
    };
    // The launcher process does it for a caller that is killed, ...
    let mut desk = Desk::new("own", &["sh", "-c", "echo here; exec sleep 1000"]);
    raw(&mut desk);
    desk.child.kill().unwrap();
    eventually("the terminal is as it was", || desk.modes() == desk.before);
    eventually("the container has ended", || !lives(desk.pid));
    // ... unless somebody has set the modes meanwhile, ...
    let mut desk = Desk::new("own", &["sh", "-c", "echo here; exec sleep 1000"]);
    raw(&mut desk);
    let tty = plyfs_sys::terminal::tty_of(desk.main.as_fd()).unwrap();
    assert!(std::process::Command::new("stty").args(["sane", "-echo"]).stdin(tty).status().unwrap().success());
    let set = desk.modes();
    desk.child.kill().unwrap();
    eventually("the container has ended", || !lives(desk.pid));
    assert_eq!(desk.modes(), set);
    // ... and the caller when the launcher process is killed.
    let mut desk = Desk::new("own", &["sh", "-c", "echo here; exec sleep 1000"]);
    raw(&mut desk);
    process::kill(field(desk.pid, "PPid").unwrap().parse().unwrap(), signals::SIGKILL).unwrap();
    assert_eq!(desk.end().1, 125);
}

fn hang_up_of_the_caller_s_terminal_is_the_command_s() {
    for shell in [["sh", "-i"].as_slice(), &["bash", "--norc", "-i"], &["sh", "-c", "printf 'in> '; exec sleep 1000"]] {
        let mut desk = Desk::new("own", shell);
        desk.read_until("in> ");
        desk.main = fs::File::open("/dev/null").unwrap();
        let pid = desk.pid;
        eventually("the container has ended", || !lives(pid));
        // Its question has an end of input for an answer, and nobody to show it to.
        desk.child.wait().unwrap();
    }
}

fn term_ends_even_a_shell_that_ignores_it() {
    let mut desk = Desk::new("own", &["bash", "--norc", "-i"]);
    desk.read_until("in> ");
    process::kill(desk.child.id().cast_signed(), signals::SIGTERM).unwrap();
    assert_eq!(desk.end().1, 129);
    // One that does something first has the time and the terminal for it.
    let mut desk = Desk::new("own", &["sh", "-c", "trap 'sleep 0.5; echo tidy; exit 6' TERM; echo here; while :; do sleep 0.01; done"]);
    desk.read_until("here");
    process::kill(desk.child.id().cast_signed(), signals::SIGTERM).unwrap();
    let (seen, code) = desk.end();
    assert!(seen.contains("tidy") && code == 6, "{code} {seen:?}");
}

fn stopped_caller_gives_the_terminal_back() {
    let mut desk = Desk::new("own", &["sh", "-i"]);
    desk.read_until("in> ");
    let caller = desk.child.id().cast_signed();
    for stop in [signals::SIGTSTP, signals::SIGSTOP] {
        process::kill(caller, stop).unwrap();
        eventually("the caller is stopped", || field(caller, "State").is_some_and(|state| state.starts_with('T')));
        // Who cannot know of a stop, cannot do anything about it, but a shell does.
        let expected = if stop == signals::SIGTSTP { desk.before.clone() } else { desk.before.raw() };
        assert_eq!(desk.modes(), expected);
        desk.before.apply(desk.main.as_fd()).unwrap();
        desk.resize(30, 90);
        process::kill(caller, signals::SIGCONT).unwrap();
        eventually("the terminal is raw again", || desk.modes() == desk.before.raw());
        desk.type_in("stty size\r");
        desk.read_until("30 90\r\n");
    }
    desk.type_in("exit 5\r");
    assert_eq!(desk.end().1, 5);
}

fn hang_up_inside_is_no_end() {
    // As login does it: all that have the terminal open lose it, and it is opened anew.
    let script = "import fcntl, os, signal, termios\n\
        signal.signal(signal.SIGHUP, signal.SIG_IGN)\n\
        fcntl.ioctl(0, 0x5437)\n\
        fd = os.open('/dev/pts/0', os.O_RDWR)\n\
        os.write(fd, b'hung up\\n')\n\
        os.write(fd, b'<' + os.read(fd, 100).strip() + b'>\\n')\n";
    let mut desk = Desk::new("rights", &["python3", "-c", script]);
    desk.read_until("hung up");
    desk.type_in("still here\r");
    let (seen, code) = desk.end();
    assert!(seen.contains("<still here>") && code == 0, "{code} {seen:?}");
}

fn descriptors_pass_unchanged_if_one_is_no_terminal() {
    let mut desk = Desk::without_word("no-stdout", &["sh", "-c", "tty >&2; [ -t 1 ] || echo pas''sed >&2; echo unseen; exit 8"]);
    let (seen, code) = desk.end();
    assert!(seen.contains("/dev/console\r\n") && seen.contains("passed") && !seen.contains("unseen"), "{seen:?}");
    assert_eq!(code, 8);
}

fn shared_terminal_is_the_console_and_is_taken_back() {
    // A shell with job control takes the terminal and cannot give it back; the caller reads from it afterwards.
    // (Its exit code is its own affair: some end with an error when they cannot.)
    let text = "test -c /dev/console && tty && echo console > /dev/console; set -m; sh -c 'echo job'; exit 6";
    let (seen, _) = Desk::without_word("shared", &["sh", "-c", text]).end();
    assert!(seen.contains("/dev/console") && seen.contains("\nconsole") && seen.contains("job"), "{seen:?}");
}

fn keys_of_a_shared_terminal_go_to_the_command_and_not_to_the_caller() {
    let text = "trap 'echo trapped; exit 7' INT; echo ready; while :; do sleep 0.01; done";
    let mut desk = Desk::without_word("shared", &["sh", "-c", text]);
    desk.read_until("ready");
    desk.type_in("\x03");
    let (seen, code) = desk.end();
    assert_eq!((seen.matches("trapped").count(), code), (1, 7), "{seen:?}");
}
