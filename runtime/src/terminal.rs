//! A terminal of the command's own, and the relay between it and the caller's.
//!
//! A command that shares the caller's terminal shares its process group, which has no number in the new pid namespace: shells cannot keep
//! or give back the foreground. It could also type into the caller's terminal, and set its modes for good. So, when the caller is on a
//! terminal, the command gets a pair in the container's own devpts. The command leads a session on it; the caller keeps the main side,
//! makes its own terminal raw, and carries bytes: keys in, output out. `^C` is a byte that way, which only the command's terminal makes a
//! signal of.
//!
//! # Rules
//!
//! - The caller's terminal is opened anew for the relay, so that it need not block and nobody else sees that.
//! - Nothing waits in here but [`Relay::finish`]: whoever polls for [`Relay::wanted`] calls [`Relay::work`] after.
//! - While the caller is in the background its terminal is neither changed nor read from.
//! - The modes of the caller's terminal are put back when the relay is dropped, and by the launcher process when the caller is killed.
//! - What goes wrong on the caller's terminal is a hang-up of the command's, never an error: the command's end is what counts.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use plyfs_sys::process::{self, Until};
use plyfs_sys::terminal::{self, Modes};

use crate::error::{During, Result};
use crate::rootfs;

/// How long a command that was asked to end has its terminal.
const GRACE: Duration = Duration::from_secs(3);

/// How many milliseconds apart it is looked whether the caller is in the foreground again.
const LOOK: u32 = 500;

/// How often bytes are moved at most before signals are looked at.
const ROUNDS: u32 = 32;

/// More than the kernel holds for a terminal. What comes after so much is not from the container, all of which has ended.
const HELD: usize = 1 << 20;

/// What a launch with a terminal of its own needs.
#[derive(Debug)]
pub(crate) struct Terminal {
    /// For the caller.
    pub(crate) relay: Relay,
    /// A detached mount, to be `/dev/pts` of the container.
    pub(crate) devpts: OwnedFd,
    /// To be standard input, output and error of the command.
    pub(crate) tty: OwnedFd,
}

impl Terminal {
    /// Makes one if standard input, output and error are all terminals, and not those of a job in the background. The modes and size are
    /// the same as those of standard input.
    pub(crate) fn for_caller() -> Result<Option<Terminal>> {
        let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
        let (stdin, stdout) = (stdin.as_fd(), stdout.as_fd());
        if ![stdin, stdout, stderr.as_fd()].into_iter().all(process::is_terminal) || terminal::is_background(stdin) {
            return Ok(None);
        }
        let opened = terminal::reopen_nonblocking(stdin, false).and_then(|keys| {
            let screen = terminal::reopen_nonblocking(stdout, true)?;
            Ok((keys, screen, Modes::of(stdin)?))
        });
        let (keys, screen, before) = match opened {
            Ok(opened) => opened,
            Err(errno) => {
                tracing::debug!(%errno, "the terminal cannot be opened anew; the command shares it");
                return Ok(None);
            }
        };
        let devpts = rootfs::devpts().during(|| "make terminals for the container".to_owned())?;
        let what = || "make a terminal for the command".to_owned();
        let (main, tty) = terminal::pair(devpts.as_fd()).during(what)?;
        before.apply(tty.as_fd()).during(what)?;
        let held = tty.try_clone().during(what)?;
        let relay = Relay {
            keys: File::from(keys),
            screen: File::from(screen),
            before,
            attached: false,
            pair: Some(Pair { main: File::from(main), tty: Some(held) }),
            typed: Buffer::new(),
            shown: Buffer::new(),
            hang_up_at: None,
        };
        relay.resize();
        Ok(Some(Terminal { relay, devpts, tty }))
    }
}

/// Puts back what a caller that was killed could not, if it still is as the relay left it.
pub(crate) fn give_back(before: &Modes) {
    let stdin = std::io::stdin();
    let restored = match Modes::of(stdin.as_fd()) {
        Ok(now) if now == before.raw() => before.apply(stdin.as_fd()),
        result => result.map(drop),
    };
    if let Err(errno) = restored {
        // It has hung up, as a rule: there is nobody who could be told.
        tracing::debug!(%errno, "the modes of the terminal stay");
    }
}

/// The command's terminal.
#[derive(Debug)]
struct Pair {
    main: File,
    /// While this is open the command may close its own and open it again, without a hang-up in between.
    tty: Option<OwnedFd>,
}

/// Carries bytes between the caller's terminal and the command's.
#[derive(Debug)]
pub(crate) struct Relay {
    keys: File,
    screen: File,
    before: Modes,
    /// The caller's terminal is raw, and read from.
    attached: bool,
    /// Gone after a hang-up.
    pair: Option<Pair>,
    typed: Buffer,
    shown: Buffer,
    hang_up_at: Option<Instant>,
}

impl Relay {
    /// Takes the caller's terminal, unless that is busy with others in the foreground.
    pub(crate) fn attach(&mut self) {
        if self.attached || self.pair.is_none() || terminal::is_background(self.keys.as_fd()) {
            return;
        }
        self.resize();
        if let Err(errno) = self.before.raw().apply(self.keys.as_fd()) {
            // Reading from it tells whether it has hung up.
            tracing::debug!(%errno, "the terminal does not become raw");
        }
        self.attached = true;
    }

    /// Gives the caller's terminal back.
    pub(crate) fn detach(&mut self) {
        if std::mem::replace(&mut self.attached, false)
            && let Err(errno) = self.before.apply(self.keys.as_fd())
        {
            tracing::debug!(%errno, "the modes of the terminal cannot be put back");
        }
    }

    /// Takes the terminal again after a stop, during which others had it.
    pub(crate) fn resume(&mut self) {
        self.attached = false;
        self.attach();
    }

    /// Makes the command's terminal as large as the caller's.
    pub(crate) fn resize(&self) {
        if let Some(pair) = &self.pair
            && let Err(errno) = terminal::copy_size(self.screen.as_fd(), pair.main.as_fd())
        {
            tracing::debug!(%errno, "the size of the terminal stays");
        }
    }

    /// Ends the command's terminal, as if its line were cut: those in its foreground get SIGHUP. The caller's is given back.
    pub(crate) fn hang_up(&mut self) {
        self.pair = None;
        self.hang_up_at = None;
        self.detach();
    }

    /// Hangs up in a while: the command was asked to end, which interactive shells ignore.
    pub(crate) fn hang_up_later(&mut self) {
        self.hang_up_at.get_or_insert(Instant::now() + GRACE);
    }

    /// What to poll for.
    pub(crate) fn wanted(&self) -> Vec<Until<'_>> {
        let Some(pair) = &self.pair else { return Vec::new() };
        let mut wanted =
            vec![if self.shown.is_empty() { Until::Readable(pair.main.as_fd()) } else { Until::Writable(self.screen.as_fd()) }];
        if !self.typed.is_empty() {
            wanted.push(Until::Writable(pair.main.as_fd()));
        } else if self.attached {
            wanted.push(Until::Readable(self.keys.as_fd()));
        }
        wanted
    }

    /// After how many milliseconds there is work in any case.
    pub(crate) fn timeout(&self) -> Option<u32> {
        self.pair.as_ref()?;
        let look = (!self.attached).then_some(LOOK);
        let end = self.hang_up_at.map(|end| {
            let left = end.saturating_duration_since(Instant::now());
            // Rounded up, so as not to come back too early and find nothing to do.
            u32::try_from(left.as_millis()).unwrap_or(LOOK).saturating_add(1)
        });
        look.into_iter().chain(end).min()
    }

    /// Moves what can be moved without waiting.
    pub(crate) fn work(&mut self) {
        if self.hang_up_at.is_some_and(|end| end <= Instant::now()) {
            self.hang_up();
        }
        self.attach();
        for _ in 0..ROUNDS {
            let output = self.carry_output();
            if !self.carry_keys() && !output {
                break;
            }
        }
    }

    /// Whether there was something.
    fn carry_keys(&mut self) -> bool {
        let Some(pair) = &self.pair else { return false };
        if self.typed.is_empty() {
            if !self.attached {
                return false;
            }
            match self.typed.fill(&self.keys) {
                Moved::Some => {}
                Moved::Nothing => return false,
                Moved::End => {
                    self.hang_up();
                    return false;
                }
            }
        }
        match self.typed.pour(&pair.main) {
            Moved::Some => true,
            // As when a line is longer than a terminal takes: it waits for its reader.
            Moved::Nothing => false,
            Moved::End => {
                self.hang_up();
                false
            }
        }
    }

    /// Whether there was something.
    fn carry_output(&mut self) -> bool {
        let Some(pair) = &mut self.pair else { return false };
        if self.shown.is_empty() {
            match self.shown.fill(&pair.main) {
                Moved::Some => {}
                Moved::Nothing => return false,
                Moved::End => {
                    // Somebody inside has hung up all who had it open, as login does, and opens it again.
                    match terminal::tty_of(pair.main.as_fd()) {
                        Ok(tty) => pair.tty = Some(tty),
                        Err(errno) => {
                            tracing::debug!(%errno, "the command's terminal is gone");
                            self.hang_up();
                        }
                    }
                    return false;
                }
            }
        }
        match self.shown.pour(&self.screen) {
            Moved::Some => true,
            Moved::Nothing => false,
            Moved::End => {
                self.hang_up();
                false
            }
        }
    }

    /// Shows what the command, which has ended, has left in its terminal. `wait` waits until what it is given is so, and says whether to
    /// go on.
    pub(crate) fn finish(&mut self, mut wait: impl FnMut(Until<'_>) -> bool) {
        drop(self.pair.as_mut().and_then(|pair| pair.tty.take()));
        let mut left = HELD;
        while let Some(pair) = &self.pair {
            if self.shown.is_empty() {
                // The kernel hands all that was written before over before it says that there is nothing.
                match self.shown.fill(&pair.main) {
                    Moved::Some if left > 0 => left = left.saturating_sub(self.shown.len()),
                    Moved::Some | Moved::Nothing | Moved::End => break,
                }
            }
            match self.shown.pour(&self.screen) {
                Moved::Some => {}
                Moved::Nothing => {
                    if !wait(Until::Writable(self.screen.as_fd())) {
                        break;
                    }
                }
                Moved::End => break,
            }
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.detach();
    }
}

/// What became of an attempt to move bytes.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Moved {
    /// Some went.
    Some,
    /// None go now.
    Nothing,
    /// None will go any more.
    End,
}

impl Moved {
    fn of(result: &std::io::Result<usize>, at_zero: Moved) -> Moved {
        match result {
            Ok(0) => at_zero,
            Ok(_) => Moved::Some,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Moved::Nothing,
            Err(error) => {
                tracing::debug!(%error, "a terminal is at its end");
                Moved::End
            }
        }
    }
}

/// Bytes on their way in one direction.
struct Buffer {
    bytes: Box<[u8]>,
    from: usize,
    to: usize,
}

impl Buffer {
    fn new() -> Buffer {
        Buffer { bytes: vec![0; 16 << 10].into_boxed_slice(), from: 0, to: 0 }
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn len(&self) -> usize {
        self.to - self.from
    }

    /// Reads into it, which has to be empty.
    fn fill(&mut self, mut source: &File) -> Moved {
        let result = source.read(&mut self.bytes);
        (self.from, self.to) = (0, *result.as_ref().unwrap_or(&0));
        Moved::of(&result, Moved::End)
    }

    /// Writes what it holds, or a part.
    fn pour(&mut self, mut sink: &File) -> Moved {
        let result = sink.write(self.bytes.get(self.from..self.to).unwrap_or_default());
        self.from += *result.as_ref().unwrap_or(&0);
        Moved::of(&result, Moved::Nothing)
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // What people type is nobody's business.
        write!(f, "{} bytes", self.len())
    }
}
