//! `Gate`: a server of which one system call is its last one, or fails. See `gate.c`.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::OnceLock;

use rustix::io::Errno;

use crate::lab::run;

/// What happens at a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// SIGKILL on entry: the call is not made.
    Kill,
    /// The call is not made and fails so.
    Error(&'static str),
    /// Nothing; the calls are noted down.
    None,
}

/// The errors of which each call has its turn.
pub(crate) const ERRNOS: [&str; 7] = ["EIO", "ENOSPC", "ENOMEM", "EMFILE", "EDQUOT", "EACCES", "EINTR"];

/// What changes layers, or makes a change last; and the answer to a request, before which it is all done.
const CHANGING: &[&str] = &[
    "rename",
    "mkdir",
    "rmdir",
    "link",
    "unlink",
    "symlink",
    "chmod",
    "fchmod",
    "chown",
    "fchown",
    "lchown",
    "mknod",
    "setxattr",
    "lsetxattr",
    "fsetxattr",
    "removexattr",
    "lremovexattr",
    "fremovexattr",
    "openat+",
    "openat2+",
    "mkdirat",
    "mknodat",
    "fchownat",
    "unlinkat",
    "renameat",
    "linkat",
    "symlinkat",
    "fchmodat",
    "utimensat",
    "fallocate",
    "pwritev",
    "syncfs",
    "renameat2",
    "copy_file_range",
    "pwritev2",
    "fchmodat2",
    "setxattrat",
    "removexattrat",
    "file_setattr",
    "pwrite64",
    "sendfile",
    "fsync",
    "fdatasync",
    "truncate",
    "ftruncate",
    "ioctl",
    "writev",
];

/// A call by its number since the gate was armed, with its name and what it is about.
pub(crate) type Call = (usize, String);

fn name(call: &Call) -> &str {
    call.1.trim_start_matches("* ").split('(').next().unwrap()
}

/// Whether a kill there can leave something else than a kill at the call after it.
pub(crate) fn changes(call: &Call) -> bool {
    CHANGING.contains(&name(call))
}

/// Whether it works on layers: answers that do not arrive are not the union's.
pub(crate) fn of_layers(call: &Call) -> bool {
    name(call) != "writev"
}

/// The server and its gate.
pub(crate) struct Gate {
    process: Child,
    /// Of the server.
    pub(crate) pid: u32,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Gate {
    /// Starts the program; its output goes to `log`. The gate is armed from the start.
    pub(crate) fn start(program: &[OsString], log: File, number: usize, fault: Fault) -> Gate {
        let mut command = Command::new(binary());
        command.args(program).current_dir("/").env("GATE", armed(number, fault));
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let orders = process.stdin.take();
        let mut answers = BufReader::new(process.stdout.take().unwrap());
        let mut line = String::new();
        answers.read_line(&mut line).unwrap();
        let pid = line.trim().parse().unwrap_or_else(|error| panic!("the gate says {line:?}: {error}"));
        Gate { process, pid, orders, answers }
    }

    fn order(&mut self, order: &str) -> String {
        let mut line = String::new();
        let asked = self.orders.as_mut().unwrap().write_all(format!("{order}\n").as_bytes());
        let answered = asked.and_then(|()| self.answers.read_line(&mut line));
        // It ends with the server.
        answered.map(|_| line.trim_end_matches('\n').to_owned()).unwrap_or_default()
    }

    /// From now on the `number`-th call has the fault.
    pub(crate) fn arm(&mut self, number: usize, fault: Fault) {
        self.order(&format!("arm {}", armed(number, fault)));
    }

    /// The calls since it was armed. None of a server that has been killed.
    pub(crate) fn calls(&mut self) -> Vec<Call> {
        let line = self.order("calls");
        line.split('\t').filter(|call| !call.is_empty()).map(str::to_owned).enumerate().collect()
    }

    /// All calls pass, and none is noted down.
    pub(crate) fn disarm(&mut self) {
        self.order("pass");
    }

    /// How the server has ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.process.try_wait().unwrap()
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        // Without its orders the gate kills the server and ends.
        drop(self.orders.take());
        self.process.wait().unwrap();
    }
}

/// As the gate has it: the number of the call and the errno.
fn armed(number: usize, fault: Fault) -> String {
    match fault {
        Fault::Kill => format!("{number} 0"),
        Fault::Error(errno) => format!("{number} {}", raw(errno)),
        Fault::None => "-1 0".to_owned(),
    }
}

fn raw(name: &str) -> i32 {
    let errnos = [Errno::IO, Errno::NOSPC, Errno::NOMEM, Errno::MFILE, Errno::DQUOT, Errno::ACCESS, Errno::INTR];
    ERRNOS.iter().zip(errnos).find(|(errno, _)| **errno == name).unwrap().1.raw_os_error()
}

/// The gate, compiled once.
fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/crash/gate.c");
        // Each process its own: others may be running theirs.
        let binary = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("gate-{}", std::process::id()));
        run(Command::new("gcc").args(["-O1", "-o"]).arg(&binary).arg(source));
        binary
    })
}

/// The call that had the fault.
pub(crate) fn hit(calls: &[Call]) -> Option<&str> {
    calls.iter().find_map(|(_, name)| name.strip_prefix("* "))
}

/// Why no gate can be had here, if so.
pub(crate) fn missing() -> Option<String> {
    if cfg!(target_arch = "x86_64") {
        crate::lab::missing(&["gcc", "python3"])
    } else {
        Some("needs the numbers of this machine's system calls".to_owned())
    }
}
