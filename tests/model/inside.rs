//! A test once more, in a user namespace that has ids 0 to 65535: the same numbers as outside, and no rights over anything there.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

/// Runs one test of this program in a user namespace, where this variable is set.
pub(crate) fn again(test: &str, variable: &str) {
    let mut command = Command::new("unshare");
    // Its ids are written from outside: only there a process may give more than its own.
    command.args(["--user", "--mount", "sh", "-c", "echo here && read go && exec \"$0\" \"$@\""]);
    command.arg(std::env::current_exe().unwrap()).args(["--exact", test, "--nocapture"]).env(variable, "1");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "here\n", "a user namespace");
    for file in ["uid_map", "gid_map"] {
        std::fs::write(format!("/proc/{}/{file}", child.id()), "0 0 65536").unwrap();
    }
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let told = std::thread::spawn(move || std::io::read_to_string(out).unwrap());
    let complaints = std::io::read_to_string(child.stderr.take().unwrap()).unwrap();
    let (status, told) = (child.wait().unwrap(), told.join().unwrap());
    assert!(status.success() && told.contains("1 passed"), "{told}\n{complaints}");
}
