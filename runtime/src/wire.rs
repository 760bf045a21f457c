//! What the processes of a launch say to each other: lines of JSON over pipes.
//!
//! ```text
//! caller  -- order (memory file) -->  launcher  -- fork -->  container process
//! caller  <-- Report (pipe) --------  launcher  <-- Step (pipe) --  container process
//! caller  -- one byte, then end ---->  launcher
//! ```
//!
//! The pipe from the caller carries one byte once the caller has a descriptor for the container process; before, the launcher does not
//! reap it. Its end means that the caller is gone or, after the last report, that it is done with the terminal. The step pipe is
//! close-on-exec: it ends when the command has taken over.

use std::io::{Read, Write};
use std::os::fd::RawFd;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::spec::Spec;

/// What the launcher is to do, and the numbers of the descriptors that it inherits.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) spec: Spec,
    pub(crate) fds: Vec<RawFd>,
    pub(crate) report: RawFd,
    pub(crate) control: RawFd,
    pub(crate) terminal: Option<TerminalOrder>,
}

/// The numbers of what a terminal of the command's own takes.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct TerminalOrder {
    /// The detached mount for `/dev/pts`.
    pub(crate) devpts: RawFd,
    pub(crate) tty: RawFd,
}

/// From the container process to the launcher.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Step {
    /// It lives, and dies with the launcher.
    Born,
    /// The next thing is the command.
    Ready,
    /// It has given up.
    Failed(Error),
}

/// From the launcher to the caller.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// The command runs; the number is that of process 1 of its pid namespace, seen from outside.
    Started(i32),
    /// It was not launched.
    Failed(Error),
    /// It has ended with this code.
    Ended(i32),
}

/// Writes one message.
pub(crate) fn send(pipe: &mut impl Write, message: &impl Serialize) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    pipe.write_all(&line)
}

/// Messages as they come from a pipe.
#[derive(Debug)]
pub(crate) struct Receiver<R> {
    pipe: R,
    buffer: Vec<u8>,
}

/// What one read gave.
#[derive(Debug)]
pub(crate) enum Received<T> {
    /// A message.
    Message(T),
    /// A part of one.
    Nothing,
    /// All writers are gone.
    End,
}

impl<R: Read> Receiver<R> {
    pub(crate) fn new(pipe: R) -> Receiver<R> {
        Receiver { pipe, buffer: Vec::new() }
    }

    pub(crate) fn pipe(&self) -> &R {
        &self.pipe
    }

    /// Takes a message that has been read already, else reads once, which waits until there is something.
    pub(crate) fn receive<T: DeserializeOwned>(&mut self) -> std::io::Result<Received<T>> {
        if let Some(message) = self.take()? {
            return Ok(Received::Message(message));
        }
        let mut chunk = [0_u8; 4096];
        let length = match self.pipe.read(&mut chunk) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => return Ok(Received::Nothing),
            result => result?,
        };
        if length == 0 {
            return Ok(Received::End);
        }
        self.buffer.extend_from_slice(chunk.get(..length).unwrap_or_default());
        Ok(self.take()?.map_or(Received::Nothing, Received::Message))
    }

    fn take<T: DeserializeOwned>(&mut self) -> std::io::Result<Option<T>> {
        let Some(end) = self.buffer.iter().position(|&byte| byte == b'\n') else { return Ok(None) };
        let rest = self.buffer.split_off(end + 1);
        let line = std::mem::replace(&mut self.buffer, rest);
        Ok(Some(serde_json::from_slice(&line)?))
    }

    /// Whether a whole message waits in the buffer, which polling the pipe does not show.
    pub(crate) fn has_message(&self) -> bool {
        self.buffer.contains(&b'\n')
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use super::*;

    #[test]
    fn messages_survive_any_cut() {
        let mut bytes = Vec::new();
        send(&mut bytes, &Report::Started(7)).unwrap();
        send(&mut bytes, &Report::Ended(3)).unwrap();
        for cut in 0..bytes.len() {
            let (a, b) = bytes.split_at(cut);
            let mut receiver = Receiver::new(a.chain(b));
            let mut seen = Vec::new();
            loop {
                match receiver.receive::<Report>().unwrap() {
                    Received::Message(message) => seen.push(format!("{message:?}")),
                    Received::Nothing => assert!(!receiver.has_message()),
                    Received::End => break,
                }
            }
            assert_eq!(seen, ["Started(7)", "Ended(3)"], "cut at {cut}");
        }
    }
}
