//! `plyfs try`: runs a command on a copy-on-write view of this machine, shows what it changed, and keeps or discards that.

use std::ffi::OsString;
use std::io::{self, BufRead, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;

use plyfs_format::Change;
use plyfs_overlay::ChangeOptions;
use plyfs_runtime::{Capabilities, FdIndex, InnerPath, Launcher, Root, Spec};

use super::apply::{self, Outcome, Recorder};
use super::diff::Show;
use super::fail::{failure, note, say};
use super::names::Name;
use super::rootless::{self, As};
use super::store::{Held, Meta, State, Store, now};
use super::text::{Text, ago, command_line, shortened};
use super::view::{self, View};
use super::{EXIT_LAUNCH, mount, output};

const MORE: &str = "\
The command sees the files of this machine, and writes to layers of its own. When it has ended,
what it added, changed and deleted is printed. On a terminal you are asked whether to keep or apply
that; elsewhere it is kept, under a name that is told on stderr, unless --discard or --apply says
otherwise.
--apply carries the changes out on this machine if the command succeeded (exit code 0), else they
are kept. First everything that they replace is compared with what the command saw: if somebody
else changed any of it, each such path is told, nothing is changed, the try is kept, and the exit
code is 125. 'plyfs try apply' does the same later, and goes on after it was cut off.
Network traffic, signals and other effects beyond files are not undone. Sockets of the host (docker,
dbus, systemd) are masked for that reason. The exit code is that of the command, 128+n for signal n,
127 if it is not found, 126 if it cannot be executed, 125 if plyfs failed.";

/// Run a command on a view of this machine, and see what it changes.
#[derive(Debug, clap::Args)]
#[command(after_help = MORE, subcommand_negates_reqs = true, override_usage = "plyfs try [OPTIONS] [--] COMMAND...\n       plyfs try list | diff NAME | apply NAME | discard NAME")]
pub(crate) struct Args {
    /// Discard the changes when the command has ended
    #[arg(long, conflicts_with_all = ["keep", "apply"])]
    discard: bool,
    /// Carry the changes out on this machine when the command has succeeded
    #[arg(long)]
    apply: bool,
    /// Keep the changes under this name
    #[arg(long, value_name = "NAME")]
    keep: Option<String>,
    /// Let the command reach the sockets of this machine: docker, dbus, systemd
    #[arg(long)]
    host_sockets: bool,
    /// The command and its arguments; after -- a word of plyfs's own is a command, too
    #[arg(value_name = "COMMAND", required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<OsString>,
    #[command(subcommand)]
    pub(crate) verb: Option<Verb>,
}

/// What can be done with tries.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Verb {
    /// List the tries that are kept, run, or were cut off
    List,
    /// Show what a kept one changed, against this machine as it is now
    Diff {
        /// Which
        name: String,
        #[command(flatten)]
        show: Show,
    },
    /// Discard kept ones
    Discard {
        /// Which
        #[arg(value_name = "NAME", required = true)]
        names: Vec<String>,
        /// Also one whose changes are half applied: this machine stays as it is then
        #[arg(long)]
        force: bool,
    },
    /// Carry the changes of a kept one out on this machine, or go on with that
    Apply {
        /// Which
        name: String,
    },
}

/// What to do with the changes.
enum Fate {
    Discard,
    Apply,
    Keep,
    KeepAs(Name),
}

/// Does it.
pub(crate) fn main(args: Args, root: Option<PathBuf>) -> anyhow::Result<ExitCode> {
    if args.verb.is_some() && (args.discard || args.apply || args.keep.is_some() || args.host_sockets) {
        return Err(failure("try", "--discard, --apply, --keep and --host-sockets go with a command", "leave them out"));
    }
    let store = Store::at(root)?;
    // What a user's commands leave may belong to his subordinate ids.
    rootless::enter("try", As::Caller)?;
    match args.verb {
        None => run(&args, &store),
        Some(Verb::List) => list(&store),
        Some(Verb::Diff { name, show }) => show_kept(&store, &Name::new("try diff", &name)?, &show),
        Some(Verb::Discard { names, force }) => discard(&store, &names, force),
        Some(Verb::Apply { name }) => apply_kept(&store, &Name::new("try apply", &name)?),
    }
}

fn run(args: &Args, store: &Store) -> anyhow::Result<ExitCode> {
    let keep = args.keep.as_deref().map(|name| Name::new("try --keep", name)).transpose()?;
    mount::check_fuse("try")?;
    let prepared = View::of_host(&store.all_state())?.prepare()?;
    let command = args.command.iter().cloned().map(Text::from).collect();
    let mut meta = Meta::new(command, prepared.filesystems());
    let held = store.create(keep.as_ref(), &meta)?;
    let recorder = (!args.discard).then(Recorder::begin);

    let (code, view) = match execute(args, store, prepared, &held, recorder.as_ref()) {
        Ok(ended) => ended,
        Err(Failed::Before(error)) => {
            held.discard()?;
            return Err(error);
        }
        Err(Failed::After(error)) => {
            kept(&held.name);
            return Err(error);
        }
    };
    // From here on an interrupted plyfs leaves a kept try.
    meta.exit = Some(code);
    held.describe(&meta)?;
    let (changes, ended) = view.finish(&held, &ChangeOptions::default(), recorder).inspect_err(|_| kept(&held.name))?;
    // Where they cannot be printed they are kept or discarded all the same.
    let printed = output::changes(&changes, false);
    let done = decide(args, held, &meta, &changes, ended)?;
    printed?;
    Ok(if done { ExitCode::from(code) } else { ExitCode::from(EXIT_LAUNCH) })
}

/// When it failed.
enum Failed {
    /// The command did not run: nothing is worth keeping.
    Before(anyhow::Error),
    /// It ran, and nobody knows how it ended.
    After(anyhow::Error),
}

/// Runs the command to its end: its exit code, and the view that it wrote to.
fn execute(
    args: &Args,
    store: &Store,
    prepared: view::Prepared,
    held: &Held,
    recorder: Option<&Recorder>,
) -> Result<(u8, view::Running), Failed> {
    plyfs_sys::limits::umask(0);
    let sockets = if args.host_sockets { Vec::new() } else { prepared.masked_sockets() };
    let mut view = prepared.serve(held).map_err(Failed::Before)?;
    let mut spec = Spec::new(Root::Fd(FdIndex(0)), args.command.iter().cloned());
    spec.mounts.append(&mut view.mounts);
    if args.host_sockets {
        spec.mounts.extend(view::bound_sockets());
    }
    spec.masked.extend(sockets);
    // Whoever could look in there would see the layers of the view itself, and other tries.
    spec.masked.extend(store.all_state().into_iter().map(InnerPath::from));
    spec.env = std::env::vars_os().collect();
    spec.cwd = std::env::current_dir().map_or_else(|_| InnerPath::from("/"), InnerPath::from);
    spec.cwd_or_root = true;
    // A mount of the host that has gone meanwhile, with its directory, is no change of the command.
    spec.keep_root = true;
    // The command is anything that runs on this machine, sudo and su included; what they can reach at most is limited all the same.
    spec.no_new_privs = false;
    if plyfs_sys::process::effective_uid() != 0 {
        // Those that an ordinary user's namespace gives are plyfs's alone: the command is to be who it was.
        spec.capabilities = Capabilities::none();
    }

    let fds = std::mem::take(&mut view.fds);
    if let Some(recorder) = recorder {
        recorder.wait();
    }
    let mut running = match Launcher::new().spawn(&spec, fds) {
        Ok(running) => running,
        Err(error) => {
            view.give_up();
            return Err(Failed::Before(error.into()));
        }
    };
    // Not before: the command would inherit it.
    if let Err(errno) = plyfs_sys::limits::raise_nofile() {
        tracing::warn!(%errno, "the limit of open files stays");
    }
    let status = running.wait().map_err(|error| Failed::After(error.into()))?;
    drop(running);
    Ok((status.code(), view))
}

/// Does with the changes what was asked for. `false`: they were to be applied, and could not be.
fn decide(args: &Args, mut held: Held, meta: &Meta, changes: &[Change], ended: view::Ended) -> anyhow::Result<bool> {
    let fate = if args.discard {
        Fate::Discard
    } else if args.apply && meta.exit == Some(0) && (ended.more || !changes.is_empty()) {
        Fate::Apply
    } else if args.keep.is_some() {
        Fate::Keep
    } else if changes.is_empty() && !ended.more {
        note("try: nothing changed");
        Fate::Discard
    } else if args.apply {
        note("try: the command has failed, and its changes are not applied");
        Fate::Keep
    } else if io::stdin().is_terminal() && io::stderr().is_terminal() {
        ask(&held.name)?
    } else {
        Fate::Keep
    };
    match &fate {
        Fate::Discard => return held.discard().map(|()| true),
        Fate::Keep | Fate::Apply => {}
        Fate::KeepAs(name) => {
            if let Err(error) = held.rename(name) {
                note(format_args!("{error:#}"));
            }
        }
    }
    if changes.is_empty() && ended.more {
        note("try: only attributes, flags or times of directories were changed, which the diff does not tell");
    }
    ended.settle();
    held.sync()?;
    apply::is_synced(&held)?;
    if matches!(fate, Fate::Apply) {
        let (name, dir) = (held.name.clone(), held.dir.clone());
        // Of one that is half done the error says how it goes on.
        let kept_whole = |_: &anyhow::Error| {
            if !apply::is_under_way(&dir) {
                kept(&name)
            }
        };
        let outcome = apply::apply(held, meta).inspect_err(kept_whole)?;
        if outcome == Outcome::Conflicts {
            kept(&name);
        }
        return Ok(outcome == Outcome::Applied);
    }
    kept(&held.name);
    Ok(true)
}

fn kept(name: &str) {
    note(format_args!(
        "try: kept as {name}; 'plyfs try diff {name}' shows it, 'plyfs try apply {name}' carries it out, 'plyfs try discard {name}' removes it"
    ));
}

/// Asks until there is an answer; the end of the input keeps.
fn ask(name: &str) -> anyhow::Result<Fate> {
    let mut input = io::stdin().lock();
    loop {
        say("plyfs: apply, keep or discard these changes? [a|k|k NAME|d] ");
        let mut line = String::new();
        if input.read_line(&mut line)? == 0 {
            say("\n");
            return Ok(Fate::Keep);
        }
        let mut words = line.split_whitespace();
        match (words.next(), words.next(), words.next()) {
            (Some("a" | "apply"), None, None) => return Ok(Fate::Apply),
            (Some("d" | "discard"), None, None) => return Ok(Fate::Discard),
            (Some("k" | "keep"), None, None) => return Ok(Fate::Keep),
            (Some("k" | "keep"), Some(chosen), None) => match Name::new("try", chosen) {
                Ok(name) => return Ok(Fate::KeepAs(name)),
                Err(error) => note(format_args!("{error:#}")),
            },
            _ => note(format_args!(
                "try: a applies them to this machine, k keeps them as {name}, k NAME under another name, d discards them"
            )),
        }
    }
}

fn list(store: &Store) -> anyhow::Result<ExitCode> {
    let mut rows = vec![["NAME", "CREATED", "STATUS", "COMMAND"].map(str::to_owned).to_vec()];
    for entry in store.list()? {
        let status = match &entry.state {
            State::Running => "Running".to_owned(),
            State::Kept(meta) => format!("Exited ({})", meta.exit.unwrap_or_default()),
            State::Applying(_) => "Applying".to_owned(),
            State::Crashed(_) => "Cut off".to_owned(),
            State::Damaged(_) => "Damaged".to_owned(),
        };
        let (created, command) = match &entry.meta {
            Some(meta) => (ago(now().saturating_sub(meta.created)), command_line(&meta.command)),
            None => ("-".to_owned(), "-".to_owned()),
        };
        rows.push(vec![entry.name, created, status, shortened(&super::fail::one_line(&command), 40)]);
    }
    output::table(&rows)?;
    Ok(ExitCode::SUCCESS)
}

fn show_kept(store: &Store, name: &Name, show: &Show) -> anyhow::Result<ExitCode> {
    let (held, state) = store.hold(name)?;
    let meta = known(name, state)?;
    if apply::is_half_done(&held)? {
        let name = name.as_str();
        let why = "its changes are half applied, and what was here before is not known any more";
        return Err(failure(format_args!("try {name}"), why, format_args!("finish with 'plyfs try apply {name}'")));
    }
    show.print(&view::changes_of_kept(&held, &meta, &show.options())?)?;
    Ok(ExitCode::SUCCESS)
}

/// What is known of a try that has ended.
fn known(name: &Name, state: State) -> anyhow::Result<Meta> {
    let at = format!("try {}", name.as_str());
    match state {
        State::Kept(meta) | State::Crashed(meta) | State::Applying(meta) => Ok(meta),
        State::Running => Err(failure(at, "its command runs", "wait until it has ended")),
        State::Damaged(why) => Err(failure(at, why, format_args!("remove it with 'plyfs try discard {}'", name.as_str()))),
    }
}

fn apply_kept(store: &Store, name: &Name) -> anyhow::Result<ExitCode> {
    let (held, state) = store.hold(name)?;
    let meta = known(name, state)?;
    match apply::apply(held, &meta)? {
        Outcome::Applied => Ok(ExitCode::SUCCESS),
        Outcome::Conflicts => Ok(ExitCode::FAILURE),
    }
}

/// All names are checked before the first try goes.
fn discard(store: &Store, names: &[String], force: bool) -> anyhow::Result<ExitCode> {
    let names = names.iter().map(|name| Name::new("try discard", name)).collect::<anyhow::Result<Vec<_>>>()?;
    let held = names.iter().map(|name| store.hold(name)).collect::<anyhow::Result<Vec<_>>>()?;
    for (held, state) in &held {
        if let (State::Applying(meta), false) = (state, force)
            && !apply::take_back(held, meta)?
        {
            let at = format!("try {}", held.name);
            let remedy = format!("finish with 'plyfs try apply {}'; with --force this machine stays as it is", held.name);
            return Err(failure(at, "its changes are half applied", remedy));
        }
    }
    for (held, _) in held {
        held.discard()?;
    }
    Ok(ExitCode::SUCCESS)
}
