//! The command line: what can be said on it, and everything that plyfs prints. One file a verb.
//!
//! An error is one line on stderr, `plyfs: <what> <where>: <why>; <remedy>`, and exit code 1; 125 of `run` and `try`, whose other exit codes are
//! those of the command.

mod apply;
mod busy;
mod daemon;
mod diff;
mod fail;
mod fsck;
mod info;
mod layers;
mod marks;
mod mount;
mod mounts;
mod names;
mod operand;
mod output;
mod pages;
mod record;
mod rootless;
mod run;
mod storage;
mod store;
mod text;
mod trace;
mod r#try;
mod umount;
mod upper;
mod view;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};

/// A copy-on-write union filesystem in userspace, with a command to try things on it.
#[derive(Debug, Parser)]
#[command(name = "plyfs", version, disable_help_subcommand = true, max_term_width = 100)]
struct Cli {
    /// Where plyfs keeps its state [default: $PLYFS_ROOT, else /var/lib/plyfs, of ordinary users $XDG_DATA_HOME/plyfs]
    #[arg(long, value_name = "DIR", global = true)]
    root: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Mount(mount::Args),
    Umount(umount::Args),
    Diff(diff::Args),
    Try(r#try::Args),
    Run(run::Args),
    Fsck(fsck::Args),
    Info(info::Args),
    Completions(pages::Completions),
    Man(pages::Man),
}

/// What was asked for.
#[derive(Debug)]
pub(crate) struct Invocation(Cli);

/// The exit code of `run` and `try` when the error is not the command's.
const EXIT_LAUNCH: u8 = 125;

/// Reads the command line. Help and version are printed here, and so is what is wrong with it; the exit code comes back then.
pub(crate) fn parse(args: Vec<OsString>) -> Result<Invocation, ExitCode> {
    let args = spelled_out(args);
    match Cli::try_parse_from(&args) {
        Ok(cli) => Ok(Invocation(cli)),
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            match output::quiet_pipe(error.print()) {
                Ok(()) => Err(ExitCode::SUCCESS),
                Err(error) => Err(fail::print(&error.into(), 1)),
            }
        }
        Err(error) => {
            let verb = args.get(1).and_then(|verb| verb.to_str());
            let code = match verb {
                Some("run" | "try") => EXIT_LAUNCH,
                Some("fsck") => fsck::EXIT_USAGE,
                _ => 1,
            };
            Err(fail::print(&usage(&error, verb), code))
        }
    }
}

/// Does it; the exit code.
pub(crate) fn dispatch(Invocation(cli): Invocation) -> ExitCode {
    let root = cli.root;
    // Of mount an option decides.
    if !matches!(cli.verb, Verb::Mount(_)) {
        trace::start(false);
    }
    let (result, code) = match cli.verb {
        Verb::Mount(args) => (mount::main(args), 1),
        Verb::Umount(args) => (umount::main(args), 1),
        Verb::Diff(args) => (diff::main(args), 1),
        Verb::Info(args) => (info::main(&args, root), 1),
        Verb::Try(args) => (r#try::main(args, root), EXIT_LAUNCH),
        Verb::Run(args) => (run::main(args, root), EXIT_LAUNCH),
        Verb::Fsck(args) => (fsck::main(&args), fsck::EXIT_FAILED),
        Verb::Completions(args) => (pages::completions(&args, &mut Cli::command()), 1),
        Verb::Man(args) => (pages::man(&args, Cli::command()), 1),
    };
    match result {
        Ok(code) => code,
        Err(error) => fail::print(&error, code),
    }
}

/// Spells out the ways in which others call plyfs to mount: under the name of a mount helper, and as `plyfs [SOURCE] MOUNTPOINT -o ...` without
/// a verb, as mount.fuse(8) and podman do.
fn spelled_out(mut args: Vec<OsString>) -> Vec<OsString> {
    let Some(program) = args.first() else { return vec![OsString::from("plyfs")] };
    let name = Path::new(program).file_name().unwrap_or_default().to_owned();
    let helper = ["fuse-overlayfs", "mount.plyfs", "mount.fuse.plyfs", "mount.fuse3.plyfs"].iter().any(|helper| name == *helper);
    let first = args.get(1).map(OsString::as_os_str).unwrap_or_default();
    let insert = if helper {
        first != "--version" && first != "-V"
    } else {
        let has_options = args.iter().skip(1).any(|arg| arg.as_bytes().starts_with(b"-o"));
        has_options && (first.as_bytes().starts_with(b"-o") || !first.as_bytes().starts_with(b"-") && !is_verb(first))
    };
    if helper && name.as_bytes().starts_with(b"mount.") {
        // Of mount(8): do everything but mount.
        for arg in args.iter_mut().skip(1).filter(|arg| **arg == "-f") {
            *arg = OsString::from("--fake");
        }
    }
    if insert {
        args.insert(1, OsString::from("mount"));
    }
    args
}

fn is_verb(word: &OsStr) -> bool {
    word.to_str().is_some_and(|word| Cli::command().find_subcommand(word).is_some())
}

/// What clap has to say, as one line of ours.
fn usage(error: &clap::Error, verb: Option<&str>) -> anyhow::Error {
    let text = error.render().to_string();
    let said: Vec<&str> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .filter(|line| !line.is_empty() && !line.starts_with("tip:"))
        .collect();
    let said = said.join(" ");
    let said = said.strip_prefix("error: ").unwrap_or(&said);
    let verb = verb.filter(|verb| is_verb(OsStr::new(verb)));
    // With no verb at all clap's error is the help itself.
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return match verb {
            Some(verb) => anyhow::anyhow!("{verb}: something is missing; see 'plyfs {verb} --help'"),
            None => anyhow::anyhow!("no verb is given; see 'plyfs --help'"),
        };
    }
    match verb {
        Some(verb) => anyhow::anyhow!("{verb}: {said}; see 'plyfs {verb} --help'"),
        None => anyhow::anyhow!("{said}; see 'plyfs --help'"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(args: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(spelled_out(args.iter().map(OsString::from).collect()))
    }

    fn mount(args: &[&str]) -> mount::Args {
        match parsed(args).unwrap().verb {
            Verb::Mount(args) => args,
            other => panic!("{other:?}"),
        }
    }

    fn attempt(args: &[&str]) -> r#try::Args {
        match parsed(args).unwrap().verb {
            Verb::Try(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn mount_helpers_and_mount_8_reach_mount() {
        for args in [
            &["fuse-overlayfs", "-o", "lowerdir=/a", "/m"][..],
            &["/usr/bin/plyfs", "-o", "lowerdir=/a", "/m"],
            &["plyfs", "/m", "-o", "lowerdir=/a"],
            &["plyfs", "mount", "-olowerdir=/a", "/m"],
        ] {
            let args = mount(args);
            assert_eq!((args.options, args.places), (vec!["lowerdir=/a".into()], vec!["/m".into()]));
        }
        for args in [
            &["plyfs", "overlay", "/m", "-o", "rw,lowerdir=/a"][..],
            &["/sbin/mount.plyfs", "overlay", "/m", "-o", "rw,lowerdir=/a"],
            &["/sbin/mount.fuse.plyfs", "overlay", "/m", "-n", "-v", "-s", "-o", "rw,lowerdir=/a", "-t", "fuse.plyfs"],
            &["plyfs", "mount", "-o", "rw,lowerdir=/a", "overlay", "/m"],
        ] {
            assert_eq!(mount(args).places, ["overlay", "/m"].map(PathBuf::from));
        }
        for args in [["fuse-overlayfs", "--version"], ["plyfs", "-V"]] {
            assert_eq!(parsed(&args).unwrap_err().kind(), ErrorKind::DisplayVersion);
        }
    }

    #[test]
    fn a_tried_command_keeps_its_own_options_and_words() {
        for (args, command) in [
            (&["plyfs", "try", "--", "list"][..], &["list"][..]),
            (&["plyfs", "try", "sh", "-c", "x", "--discard", "list"], &["sh", "-c", "x", "--discard", "list"]),
            (&["plyfs", "try", "sh", "list"], &["sh", "list"]),
            (&["plyfs", "try", "--keep", "n", "ls", "-o", "x"], &["ls", "-o", "x"]),
            (&["plyfs", "try", "--discard", "--", "ls", "--", "-l"], &["ls", "--", "-l"]),
        ] {
            let parsed = attempt(args);
            assert_eq!(parsed.command, command, "{args:?}");
            assert!(parsed.verb.is_none(), "{args:?}");
        }
        assert!(attempt(&["plyfs", "try", "list"]).verb.is_some());
        assert!(attempt(&["plyfs", "--root", "/x", "try", "diff", "n"]).verb.is_some());
        assert!(attempt(&["plyfs", "try", "--root", "/x", "list"]).verb.is_some());
        assert!(parsed(&["plyfs", "try"]).is_err());
        assert!(parsed(&["plyfs", "try", "--keep", "n", "--discard", "ls"]).is_err());
    }

    #[test]
    fn usage_errors_are_one_line_with_a_remedy() {
        for args in [
            &["plyfs"][..],
            &["plyfs", "nonsense"],
            &["plyfs", "--nonsense"],
            &["plyfs", "mount"],
            &["plyfs", "umount"],
            &["plyfs", "try"],
            &["plyfs", "run"],
            &["plyfs", "run", "--rootfs"],
            &["plyfs", "try", "--keep", "n", "--discard", "ls"],
            &["plyfs", "diff", "--nonsense"],
        ] {
            let error = parsed(args).unwrap_err();
            let text = usage(&error, args.get(1).copied()).to_string();
            assert!(!text.contains('\n') && text.contains("; see 'plyfs ") && !text.contains("Usage"), "{args:?}: {text}");
        }
    }
}
