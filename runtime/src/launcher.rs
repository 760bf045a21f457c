//! The caller's side: starts a launch, sees how it goes, passes signals on, and waits.
//!
//! The caller serves the union in threads of its own, so nothing here forks: the program is started anew with a hidden verb
//! ([`LAUNCH_VERB`]), and the new process, which has one thread, makes the namespaces. It is executed through a read-only clone of the
//! mount of the program's file (or from a sealed copy in memory), so that `/proc/PID/exe` gives nobody in the container a way to write to it.

use std::io::{PipeReader, PipeWriter, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};

use plyfs_sys::Errno;
use plyfs_sys::mount::{self, MountAttrFlags, Propagation, SetAttr};
use plyfs_sys::process::{self, Until, signals};

use crate::error::{During, Error, Result};
use crate::spec::Spec;
use crate::terminal::{Relay, Terminal};
use crate::wire::{Order, Received, Receiver, Report, TerminalOrder};

/// The first argument with which the program has to call [`crate::launch_main`] before anything else.
pub const LAUNCH_VERB: &str = "__launch";

/// The signals that are passed on to the command when another process sends them to the caller.
const FORWARDED: [i32; 6] = [signals::SIGTERM, signals::SIGHUP, signals::SIGINT, signals::SIGQUIT, signals::SIGUSR1, signals::SIGUSR2];

/// The signals that the relay between terminals needs to know of.
const OF_TERMINAL: [i32; 3] = [signals::SIGWINCH, signals::SIGTSTP, signals::SIGCONT];

/// How many milliseconds a signal waits for the command to be there before it ends the launch.
const PATIENCE: u32 = 2000;

/// How to launch.
#[derive(Debug)]
pub struct Launcher {
    stdio: [Option<Stdio>; 3],
    forward_signals: bool,
    own_terminal: bool,
}

impl Default for Launcher {
    fn default() -> Launcher {
        Launcher::new()
    }
}

impl Launcher {
    /// The command has the caller's descriptors 0 to 2, or a terminal of its own if these are terminals, and signals are passed on.
    pub fn new() -> Launcher {
        Launcher { stdio: [None, None, None], forward_signals: true, own_terminal: true }
    }

    /// Gives the command another standard input.
    #[must_use]
    pub fn stdin(mut self, stdio: impl Into<Stdio>) -> Launcher {
        self.stdio[0] = Some(stdio.into());
        self
    }

    /// Gives the command another standard output.
    #[must_use]
    pub fn stdout(mut self, stdio: impl Into<Stdio>) -> Launcher {
        self.stdio[1] = Some(stdio.into());
        self
    }

    /// Gives the command another standard error.
    #[must_use]
    pub fn stderr(mut self, stdio: impl Into<Stdio>) -> Launcher {
        self.stdio[2] = Some(stdio.into());
        self
    }

    /// Sets whether signals to the caller are caught, from `spawn` until [`Running::wait`] is done, and passed on. Only one launch of a
    /// process at a time can do so. SIGINT and SIGQUIT of the terminal's keys reach a command on the caller's terminal by themselves and do
    /// not end the caller meanwhile. A signal that the caller ignores or blocks is left alone.
    #[must_use]
    pub fn forward_signals(mut self, forward: bool) -> Launcher {
        self.forward_signals = forward;
        self
    }

    /// Sets whether the command gets a terminal of its own, on which it leads a session, if descriptors 0 to 2 are all the caller's and
    /// all terminals, signals are passed on, and the caller is no job in the background. [`Running::wait`] makes the caller's terminal raw,
    /// carries bytes and the size of the window from one to the other, shows the output to its end, and puts the modes back.
    ///
    /// SIGINT and the like are then keys like others to the caller. When its terminal hangs up, the command's does; so it does some
    /// seconds after SIGTERM or SIGHUP to the caller, since interactive shells ignore the former.
    ///
    /// Where some of the three are no terminals, the command shares what the caller has: with one terminal for its input and another
    /// way for its output there is no raw mode that is right for both. A shell with job control may then complain, when it ends, that it
    /// cannot give the terminal back. It has no group of its own there: `^Z` would stop only that, which no shell outside would see, and
    /// `^C` would not reach the other commands of a pipe.
    #[must_use]
    pub fn own_terminal(mut self, own: bool) -> Launcher {
        self.own_terminal = own;
        self
    }

    /// Launches, and returns once the command has taken over. The descriptors are closed here, in any case.
    ///
    /// # Errors
    ///
    /// Why there is no command running; [`Error::exit_code`] is what a shell would make of it. Nothing is left mounted.
    pub fn spawn(self, spec: &Spec, fds: Vec<OwnedFd>) -> Result<Running> {
        spec.check(fds.len())?;
        let on_terminal = self.own_terminal && self.forward_signals && self.stdio.iter().all(Option::is_none);
        let terminal = if on_terminal { Terminal::for_caller()? } else { None };
        let caught = if self.forward_signals {
            let mut signals = FORWARDED.to_vec();
            signals.extend(terminal.iter().flat_map(|_| OF_TERMINAL));
            Some(signals::Caught::new(&signals).during(|| "catch signals, which one launch at a time can".to_owned())?)
        } else {
            None
        };
        let foreground = terminal.is_none() && process::is_foreground(std::io::stdin().as_fd());
        let (relay, of_terminal) = match terminal {
            Some(Terminal { relay, devpts, tty }) => (Some(relay), vec![devpts, tty]),
            None => (None, Vec::new()),
        };

        let (report, report_writer) = std::io::pipe().during(|| "make a pipe".to_owned())?;
        let (control_reader, control) = std::io::pipe().during(|| "make a pipe".to_owned())?;
        let (report_writer, control_reader) = (OwnedFd::from(report_writer), OwnedFd::from(control_reader));
        let order = Order {
            spec: spec.clone(),
            fds: fds.iter().map(|fd| process::number(fd.as_fd())).collect(),
            report: process::number(report_writer.as_fd()),
            control: process::number(control_reader.as_fd()),
            terminal: match of_terminal.as_slice() {
                [devpts, tty] => Some(TerminalOrder { devpts: process::number(devpts.as_fd()), tty: process::number(tty.as_fd()) }),
                _ => None,
            },
        };
        let order = order_file(&order)?;
        let program = own_program()?;

        let mut command = Command::new(format!("/proc/self/fd/{}", process::number(program.as_fd())));
        command.arg0("plyfs").arg(LAUNCH_VERB).arg(process::number(order.as_fd()).to_string());
        // Process 1 of the container may be this program: what it shows in /proc/1/environ is not the caller's.
        command.env_clear();
        let [stdin, stdout, stderr] = self.stdio;
        command.stdin(stdin.unwrap_or_else(Stdio::inherit));
        command.stdout(stdout.unwrap_or_else(Stdio::inherit));
        command.stderr(stderr.unwrap_or_else(Stdio::inherit));
        process::pass(&mut command, fds.into_iter().chain(of_terminal).chain([report_writer, control_reader, order]).collect());
        let child = command.spawn().during(|| "start the launcher process".to_owned())?;
        // Our ends of the pipes that the launcher has now, and the mounts.
        drop(command);
        drop(program);

        let mut running = Running {
            child,
            report: Receiver::new(report),
            control: Some(control),
            container: None,
            caught,
            pending: Vec::new(),
            foreground,
            own_terminal: relay.is_some(),
            relay: None,
            ended: None,
        };
        running.wait_for_start()?;
        running.relay = relay;
        Ok(running)
    }
}

/// The order in a file that has no name and is read from its start.
fn order_file(order: &Order) -> Result<OwnedFd> {
    use std::io::Seek;
    let text = serde_json::to_vec(order).map_err(|error| Error::Spec(error.to_string()))?;
    let mut file = std::fs::File::from(process::memory_file(c"plyfs-order").during(|| "make a file in memory".to_owned())?);
    file.write_all(&text).and_then(|()| file.rewind()).during(|| "write the order of the launch".to_owned())?;
    Ok(file.into())
}

/// This program's file, to be executed, in a form that gives nobody a way to write to it.
fn own_program() -> Result<OwnedFd> {
    match own_program_read_only() {
        Ok(program) => Ok(program),
        // Its path leads elsewhere by now, or nowhere.
        Err(errno) => {
            tracing::debug!(%errno, "no read-only clone of the mount of the program's own file; a sealed copy is used");
            process::own_program_sealed().during(|| "copy the program's own file into memory".to_owned())
        }
    }
}

/// Through a read-only clone of its mount. By path: the file that is executed may belong to a mount namespace that the process has left.
fn own_program_read_only() -> plyfs_sys::Result<OwnedFd> {
    let errno = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    let path = std::env::current_exe().map_err(errno)?;
    let own = std::fs::metadata("/proc/self/exe").map_err(errno)?;
    let slash = plyfs_sys::root::open_dir(Path::new("/"))?;
    let file = mount::resolve_in_root(slash.as_fd(), path.as_os_str().as_bytes())?;
    let found = mount::stat_fd(file.as_fd())?;
    if (found.dev, found.ino) != (own.dev(), own.ino()) {
        return Err(Errno::STALE);
    }
    let clone = mount::open_tree_clone(file.as_fd(), c"", false)?;
    let attr = SetAttr { set: MountAttrFlags::MOUNT_ATTR_RDONLY, propagation: Some(Propagation::Private), ..SetAttr::default() };
    mount::mount_setattr(clone.as_fd(), &attr, false)?;
    Ok(clone)
}

/// How the command ended, as a shell says it.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct ExitStatus(i32);

impl ExitStatus {
    /// Its exit code, or 128 and the number of the signal that killed it.
    pub fn code(self) -> u8 {
        u8::try_from(self.0).unwrap_or(u8::MAX)
    }

    /// Whether it ended with code 0.
    pub fn success(self) -> bool {
        self.0 == 0
    }
}

/// A command that runs. Dropped before it has ended, it is killed with all its descendants, and waited for.
#[derive(Debug)]
pub struct Running {
    child: Child,
    report: Receiver<PipeReader>,
    /// The launcher kills the container when this is closed.
    control: Option<PipeWriter>,
    /// Process 1 of the container.
    container: Option<(i32, OwnedFd)>,
    caught: Option<signals::Caught>,
    /// Signals that came before there was a container to pass them on to.
    pending: Vec<i32>,
    /// The caller was in the foreground of its terminal.
    foreground: bool,
    /// The command has a terminal of its own: what the kernel tells the caller by signals, the command does not know.
    own_terminal: bool,
    /// Until the command's terminal is done with.
    relay: Option<Relay>,
    ended: Option<ExitStatus>,
}

impl Running {
    fn wait_for_start(&mut self) -> Result<()> {
        let report = self.next_report("it set up the container")?;
        match report {
            Report::Started(pid) => {
                // The launcher does not reap it before the byte comes: the number is its own until then.
                let container = process::pidfd_open(pid).during(|| format!("watch process {pid}"))?;
                self.container = Some((pid, container));
                if let Some(control) = &mut self.control {
                    control.write_all(b"k").during(|| "answer the launcher process".to_owned())?;
                }
                std::mem::take(&mut self.pending).into_iter().try_for_each(|signal| self.signal(signal))
            }
            Report::Failed(error) => {
                self.finish();
                Err(error)
            }
            Report::Ended(_) => Err(Error::Died { doing: "it set up the container".to_owned() }),
        }
    }

    /// The number of process 1 of the container in the caller's pid namespace: the command or its init.
    pub fn pid(&self) -> Option<i32> {
        self.container.as_ref().map(|(pid, _)| *pid)
    }

    /// What the command writes to its standard output, if [`Launcher::stdout`] was a pipe. Taken once.
    pub fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// What the command writes to its standard error, if [`Launcher::stderr`] was a pipe. Taken once.
    pub fn take_stderr(&mut self) -> Option<ChildStderr> {
        self.child.stderr.take()
    }

    /// What the command reads, if [`Launcher::stdin`] was a pipe. Taken once.
    pub fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// Sends a signal to process 1 of the container. An init passes it on to the command; a command that is process 1 itself gets it
    /// only if it has a handler, SIGKILL and SIGSTOP excepted.
    ///
    /// # Errors
    ///
    /// The kernel's; none when the command has ended already.
    pub fn signal(&self, signal: i32) -> Result<()> {
        let Some((_, container)) = &self.container else { return Ok(()) };
        match process::pidfd_signal(container.as_fd(), signal) {
            Err(Errno::SRCH) => Ok(()),
            result => result.during(|| format!("send signal {signal} to the command")),
        }
    }

    /// Waits until the command has ended, and with it all its descendants. Takes the terminal back if the caller had it. A terminal of the
    /// command's own is served in here only.
    ///
    /// # Errors
    ///
    /// [`Error::Died`] when the launcher process was killed; the command is killed too then.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.ended {
            return Ok(status);
        }
        if let Some(relay) = &mut self.relay {
            relay.attach();
        }
        let report = self.next_report("the command ran");
        if report.is_err() {
            self.signal(signals::SIGKILL)?;
        }
        self.show_the_rest();
        self.finish();
        match report? {
            Report::Ended(code) => {
                let status = ExitStatus(code);
                self.ended = Some(status);
                Ok(status)
            }
            Report::Failed(error) => Err(error),
            Report::Started(_) => Err(Error::Died { doing: "the command ran".to_owned() }),
        }
    }

    /// The launcher's next word. Signals are passed on meanwhile.
    fn next_report(&mut self, doing: &str) -> Result<Report> {
        let what = || "hear from the launcher process".to_owned();
        loop {
            if !self.report.has_message() {
                let mut wanted = vec![Until::Readable(self.report.pipe().as_fd())];
                wanted.extend(self.caught.as_ref().map(|caught| Until::Readable(caught.as_fd())));
                wanted.extend(self.relay.iter().flat_map(Relay::wanted));
                let patience = self.pending.first().map(|_| PATIENCE);
                let timeout = patience.into_iter().chain(self.relay.as_ref().and_then(Relay::timeout)).min();
                let ready = process::poll(&wanted, timeout).during(what)?;
                let signals_came = self.caught.is_some() && ready.get(1) == Some(&true);
                if signals_came {
                    self.pass_signals_on()?;
                }
                if let Some(relay) = &mut self.relay {
                    relay.work();
                }
                if ready.first() != Some(&true) {
                    match self.pending.first() {
                        // Nothing at all for so long: the launch is given up.
                        Some(&signal) if !signals_came => return Err(Error::Interrupted { signal }),
                        _ => continue,
                    }
                }
            }
            match self.report.receive().during(what)? {
                Received::Message(report) => return Ok(report),
                Received::Nothing => {}
                Received::End => return Err(Error::Died { doing: doing.to_owned() }),
            }
        }
    }

    fn pass_signals_on(&mut self) -> Result<()> {
        while let Some(caught) = &self.caught
            && let Some(signals::Arrived { signal, by_process }) = caught.next().during(|| "read a caught signal".to_owned())?
        {
            if OF_TERMINAL.contains(&signal) {
                self.follow_terminal(signal)?;
            } else if !by_process && !self.own_terminal {
                // The command is in the foreground, too, and has it already.
            } else if self.container.is_none() {
                // The command may run already, with the word of it on its way.
                self.pending.push(signal);
            } else if signal == signals::SIGHUP
                && !by_process
                && let Some(relay) = &mut self.relay
            {
                relay.hang_up();
            } else {
                self.signal(signal)?;
                if let Some(relay) = &mut self.relay
                    && [signals::SIGTERM, signals::SIGHUP].contains(&signal)
                {
                    relay.hang_up_later();
                }
            }
        }
        Ok(())
    }

    /// Does what a signal about the caller's terminal asks for.
    fn follow_terminal(&mut self, signal: i32) -> Result<()> {
        match (signal, &mut self.relay) {
            (signals::SIGWINCH, Some(relay)) => relay.resize(),
            (signals::SIGCONT, Some(relay)) => relay.resume(),
            (signals::SIGTSTP, relay) => {
                // Nobody has typed it: the key is the command's. The shell outside finds its terminal as it was.
                relay.iter_mut().for_each(Relay::detach);
                let own = i32::try_from(std::process::id()).unwrap_or_default();
                process::kill(own, signals::SIGSTOP).during(|| "stop".to_owned())?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Shows what the command has left in its terminal, unless somebody asks to end.
    fn show_the_rest(&mut self) {
        let Some(mut relay) = self.relay.take() else { return };
        let caught = self.caught.as_ref();
        relay.finish(|screen| {
            let wanted: Vec<Until<'_>> = [screen].into_iter().chain(caught.map(|caught| Until::Readable(caught.as_fd()))).collect();
            if let Err(errno) = process::poll(&wanted, None) {
                tracing::debug!(%errno, "the rest of the output is not shown");
                return false;
            }
            let arrived = caught.and_then(|caught| caught.next().ok().flatten());
            arrived.is_none_or(|arrived| OF_TERMINAL.contains(&arrived.signal))
        });
    }

    /// Ends what is left and cleans up. The container is gone, or goes now.
    fn finish(&mut self) {
        self.control = None;
        if let Err(error) = self.child.wait() {
            tracing::warn!(%error, "cannot wait for the launcher process");
        }
        self.relay = None;
        self.caught = None;
        if std::mem::replace(&mut self.foreground, false) {
            // A shell in the container has put its own group there, and could not put ours back: it does not see us.
            if let Err(errno) = process::take_foreground(std::io::stdin().as_fd()) {
                tracing::debug!(%errno, "cannot take the terminal back");
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A second time does nothing: the child has been waited for.
        self.finish();
    }
}
