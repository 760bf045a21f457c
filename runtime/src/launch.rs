//! The launcher process, and process 1 of the container until the command takes over.

use std::ffi::CString;
use std::io::{PipeReader, PipeWriter, Read};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::process::ExitCode;

use plyfs_sys::mount::{resolve_in_root, stat_fd};
use plyfs_sys::ns::{self, Namespaces};
use plyfs_sys::process::{self, Fork, caps, signals};
use plyfs_sys::stat::Kind;
use plyfs_sys::terminal::{self, Modes};

use crate::error::{During, Error, Os, Result};
use crate::init;
use crate::launcher::LAUNCH_VERB;
use crate::rootfs::{Assembly, Sources};
use crate::spec::{Capabilities, Spec};
use crate::terminal::give_back;
use crate::wire::{Order, Received, Receiver, Report, Step, send};

/// Whether this process was started by [`crate::Launcher::spawn`] and has to call [`launch_main`] now.
pub fn is_launch() -> bool {
    std::env::args_os().nth(1).is_some_and(|verb| verb == LAUNCH_VERB)
}

/// The main function of a process that [`crate::Launcher::spawn`] has started. It has to be called before anything else is done, above
/// all before threads are started or descriptors opened.
pub fn launch_main() -> ExitCode {
    match launch() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The caller is not there to be told, or was never there.
            eprintln!("plyfs {LAUNCH_VERB}: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn launch() -> Result<()> {
    // A signal that is ignored stays so through execve. Everything is blocked until the command runs: what the terminal sends is meant
    // for the command, and the rest comes through the caller.
    signals::block_all().during(|| "block signals".to_owned())?;
    let keep_ignored: Vec<i32> = [signals::SIGHUP].into_iter().filter(|&signal| signals::is_ignored(signal)).collect();
    process::set_name(c"plyfs-launch").during(|| "set the process's name".to_owned())?;

    let not_ours = || Error::Spec(format!("{LAUNCH_VERB} is for plyfs itself; use `plyfs run` or `plyfs try`"));
    let number = std::env::args_os().nth(2).and_then(|text| text.to_str()?.parse::<RawFd>().ok()).ok_or_else(not_ours)?;
    let mut text = Vec::new();
    let mut file = std::fs::File::from(process::adopt(number).map_err(|_| not_ours())?);
    file.read_to_end(&mut text).during(|| "read the order of the launch".to_owned())?;
    drop(file);
    let order: Order = serde_json::from_slice(&text).map_err(|_| not_ours())?;

    let of_terminal = order.terminal.iter().flat_map(|terminal| [terminal.devpts, terminal.tty]);
    let keep: Vec<RawFd> = order.fds.iter().copied().chain([order.report, order.control]).chain(of_terminal).collect();
    process::close_inherited_except(&keep).during(|| "close inherited descriptors".to_owned())?;
    let adopt = |number: RawFd| process::adopt(number).during(|| format!("take over descriptor {number}"));
    let mut report = PipeWriter::from(adopt(order.report)?);
    let control = PipeReader::from(adopt(order.control)?);
    let fds = order.fds.iter().map(|&number| adopt(number)).collect::<Result<Vec<_>>>()?;
    let own_terminal =
        order.terminal.as_ref().map(|terminal| Ok(OwnTerminal { devpts: adopt(terminal.devpts)?, tty: adopt(terminal.tty)? }));
    let own_terminal = own_terminal.transpose()?;
    // The caller makes it raw, but not before the command runs.
    let modes = own_terminal.as_ref().and_then(|_| Modes::of(std::io::stdin().as_fd()).ok());

    // Three processes hold ends of these pipes for a while, and each must drop those of the others: their ends are what is waited for.
    let (steps, step_writer) = std::io::pipe().during(|| "make a pipe".to_owned())?;
    let result = match fork_into_pid_namespace() {
        Ok(Fork::Child) => {
            drop((steps, report, control));
            container(&order.spec, fds, own_terminal, step_writer, &keep_ignored)
        }
        Ok(Fork::Parent(pid)) => {
            // A mount with a descriptor open would not end with the container.
            drop((fds, own_terminal, step_writer));
            supervise(pid, steps, &mut report, control, modes.as_ref())
        }
        Err(error) => Err(error),
    };
    match result {
        Ok(()) => Ok(()),
        Err(error) => send(&mut report, &Report::Failed(error)).during(|| "tell the caller".to_owned()),
    }
}

fn fork_into_pid_namespace() -> Result<Fork> {
    ns::unshare(Namespaces { pid: true, ..Namespaces::default() }).during(|| "make a pid namespace".to_owned())?;
    process::fork().during(|| "fork".to_owned())
}

/// A terminal for the command.
struct OwnTerminal {
    devpts: OwnedFd,
    tty: OwnedFd,
}

/// Waits for the end of process 1, or of the caller, whose terminal had these modes if it needs them back.
fn supervise(pid: i32, steps: PipeReader, report: &mut PipeWriter, mut control: PipeReader, modes: Option<&Modes>) -> Result<()> {
    let container = process::pidfd_open(pid).during(|| "watch the container's first process".to_owned())?;

    // Until the command has taken over.
    let mut steps = Receiver::new(steps);
    let mut ready = false;
    let failure = loop {
        if !steps.has_message() {
            let polled = process::poll_in(&[steps.pipe().as_fd(), control.as_fd()], None).during(|| "wait".to_owned())?;
            if polled.get(1) == Some(&true) {
                return kill(pid, &container);
            }
        }
        match steps.receive::<Step>().during(|| "hear from the container's first process".to_owned())? {
            Received::Message(Step::Ready) => ready = true,
            Received::Message(Step::Failed(error)) => break Some(error),
            Received::Message(Step::Born) | Received::Nothing => {}
            Received::End if ready => break None,
            Received::End => break Some(Error::Died { doing: "it set up the container".to_owned() }),
        }
    };
    if let Some(error) = failure {
        kill(pid, &container)?;
        return Err(error);
    }

    let tell = || "tell the caller".to_owned();
    send(report, &Report::Started(pid)).during(tell)?;
    // Not to be reaped before the caller has a descriptor for it.
    let mut byte = [0_u8];
    if control.read(&mut byte).during(|| "hear from the caller".to_owned())? == 0 {
        return kill(pid, &container);
    }
    loop {
        let polled = process::poll_in(&[container.as_fd(), control.as_fd()], None).during(|| "wait".to_owned())?;
        if polled.first() == Some(&true) {
            break;
        }
        if polled.get(1) == Some(&true) {
            modes.into_iter().for_each(give_back);
            return kill(pid, &container);
        }
    }
    let exit = process::wait(pid).during(|| "wait for the command".to_owned())?;
    let told = send(report, &Report::Ended(exit.shell_code())).during(tell);
    if let Some(modes) = modes {
        // The caller has put them back when it closes its end. Or it was killed, and the command ended of the hang-up before that was seen.
        while control.read(&mut byte).during(|| "hear from the caller".to_owned())? > 0 {}
        give_back(modes);
    }
    told
}

/// Kills the container, which takes all of its processes along, and reaps it.
fn kill(pid: i32, container: &OwnedFd) -> Result<()> {
    process::pidfd_signal(container.as_fd(), signals::SIGKILL).during(|| "kill the container".to_owned())?;
    process::wait(pid).during(|| "wait for the container's end".to_owned()).map(drop)
}

/// Process 1 of the container.
fn container(spec: &Spec, fds: Vec<OwnedFd>, own_terminal: Option<OwnTerminal>, mut steps: PipeWriter, keep_ignored: &[i32]) -> ! {
    let leads_session = own_terminal.is_some();
    let error = match prepare(spec, fds, own_terminal, &mut steps) {
        Ok(command) if spec.init => match fork_from_init() {
            Ok(Fork::Child) => command.run(&mut steps, keep_ignored, leads_session),
            Ok(Fork::Parent(child)) => {
                drop((steps, command));
                // Out of reach of the caller's terminal, as the command is.
                let detached = if leads_session { process::setsid().during(|| "leave the terminal".to_owned()) } else { Ok(()) };
                std::process::exit(match detached.and_then(|()| init::run(child)) {
                    Ok(exit) => exit.shell_code(),
                    Err(error) => {
                        eprintln!("plyfs: init of the container: {error}");
                        i32::from(error.exit_code())
                    }
                })
            }
            Err(error) => error,
        },
        Ok(command) => command.run(&mut steps, keep_ignored, leads_session),
        Err(error) => error,
    };
    let code = i32::from(error.exit_code());
    // When nobody listens the launcher is gone, and this process is about to be killed with it.
    std::process::exit(if send(&mut steps, &Step::Failed(error)).is_err() { 125 } else { code })
}

fn fork_from_init() -> Result<Fork> {
    // This process goes on as process 1, and what it shows of the host in /proc/1 is not for everybody.
    process::set_dumpable(false).during(|| "hide the init's memory".to_owned())?;
    process::fork().during(|| "fork".to_owned())
}

/// Makes the surroundings, up to the command.
fn prepare(spec: &Spec, fds: Vec<OwnedFd>, own_terminal: Option<OwnTerminal>, steps: &mut PipeWriter) -> Result<ToRun> {
    process::die_with_parent().during(|| "arrange to die with the launcher process".to_owned())?;
    // The launcher may have been killed before that: then nobody reads, and this fails (SIGPIPE is blocked).
    send(steps, &Step::Born).during(|| "reach the launcher process".to_owned())?;
    process::set_name(c"plyfs-init").during(|| "set the process's name".to_owned())?;
    process::umask(0);

    let mut devpts = None;
    if let Some(own) = own_terminal {
        (0..3).try_for_each(|number| process::dup2_stdio(own.tty.as_fd(), number)).during(|| "pass the terminal on".to_owned())?;
        devpts = Some(own.devpts);
    }
    // Sources belong to the mount namespace of the caller, targets to the new one.
    let sources = Sources::open(spec, fds, devpts)?;
    let namespaces = Namespaces { mount: true, uts: spec.uts, ipc: spec.ipc, ..Namespaces::default() };
    ns::unshare(namespaces).during(|| "make namespaces".to_owned())?;
    let root = Assembly::new(sources)?.build(spec)?;
    if let Some(hostname) = &spec.hostname {
        ns::sethostname(hostname.as_bytes()).during(|| format!("set the host name {hostname:?}"))?;
    }
    root.enter()?;
    enter_cwd(spec)?;

    process::umask(0o022);
    if spec.no_new_privs {
        process::no_new_privs().during(|| "bar new privileges".to_owned())?;
    }
    if let Capabilities::Only(bits) = spec.capabilities {
        caps::limit(bits).during(|| "drop capabilities".to_owned())?;
    }
    process::close_on_exec_above_stdio().during(|| "close descriptors for the command".to_owned())?;
    ToRun::new(spec)
}

/// Goes to the command's directory, seen from its root, which must lead there.
fn enter_cwd(spec: &Spec) -> Result<()> {
    let enter = |path: &[u8]| -> plyfs_sys::Result<()> {
        let slash = plyfs_sys::root::open_dir(std::path::Path::new("/"))?;
        let dir = resolve_in_root(slash.as_fd(), path)?;
        if stat_fd(dir.as_fd())?.kind != Kind::Dir {
            return Err(plyfs_sys::Errno::NOTDIR);
        }
        ns::fchdir(dir.as_fd())?;
        ns::current_dir().map(drop)
    };
    match enter(spec.cwd.as_bytes()) {
        Err(_) if spec.cwd_or_root => enter(b"/").during(|| "enter /".to_owned()),
        result => result.during(|| format!("enter the directory {} inside the root", spec.cwd)),
    }
}

/// A command in the form that execve takes, made before the point of no return.
struct ToRun {
    argv: Vec<CString>,
    env: Vec<CString>,
    path: Vec<u8>,
}

impl ToRun {
    fn new(spec: &Spec) -> Result<ToRun> {
        let c_string = |bytes: Vec<u8>| CString::new(bytes).map_err(|error| Error::Spec(format!("NUL byte: {error}")));
        let argv = spec.argv.iter().map(|text| c_string(text.clone().into_vec())).collect::<Result<_>>()?;
        let env = spec.env.iter().map(|(name, value)| {
            let mut text = name.clone().into_vec();
            text.push(b'=');
            text.extend_from_slice(value.as_bytes());
            c_string(text)
        });
        let env = env.collect::<Result<_>>()?;
        let path = spec.env.iter().rev().find(|(name, _)| name == "PATH").map(|(_, value)| value.clone().into_vec());
        Ok(ToRun { argv, env, path: path.unwrap_or_default() })
    }

    /// Becomes the command, which leads a session on the terminal that standard input is if it has one of its own. Returns only with why
    /// not.
    fn run(&self, steps: &mut PipeWriter, keep_ignored: &[i32], leads_session: bool) -> Error {
        if leads_session && let Err(errno) = terminal::lead_session_on(std::io::stdin().as_fd()) {
            return Error::setup("start a session on the terminal", errno);
        }
        let ready = send(steps, &Step::Ready).during(|| "reach the launcher process".to_owned());
        if let Err(error) = ready.and_then(|()| signals::reset(keep_ignored).during(|| "reset signals".to_owned())) {
            return error;
        }
        let error = process::exec(&self.argv, &self.env, &self.path);
        let command = String::from_utf8_lossy(&error.file).into_owned();
        match error.errno {
            plyfs_sys::Errno::NOENT | plyfs_sys::Errno::NOTDIR => {
                let path = if command.contains('/') { String::new() } else { String::from_utf8_lossy(&self.path).into_owned() };
                Error::NotFound { command, path }
            }
            errno => Error::NotExecutable { command, errno: Os::from(errno) },
        }
    }
}
