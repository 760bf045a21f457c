//! `plyfs completions` and `plyfs man`: made of the same definition as the parser.

use std::process::ExitCode;

use clap::Command;
use clap_complete::Shell;

use super::fail::failure;
use super::output;

/// Print the completions for a shell.
#[derive(Debug, clap::Args)]
#[command(hide = true)]
pub(crate) struct Completions {
    /// Which
    shell: Shell,
}

/// Print a man page.
#[derive(Debug, clap::Args)]
#[command(hide = true)]
pub(crate) struct Man {
    /// Of which verb, if not of plyfs itself
    verb: Option<String>,
}

/// Prints what the shell is to be told.
pub(crate) fn completions(args: &Completions, command: &mut Command) -> anyhow::Result<ExitCode> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, command, "plyfs", &mut text);
    output::to_stdout(|out| out.write_all(&text))?;
    Ok(ExitCode::SUCCESS)
}

/// Prints the page in the language of man(1).
pub(crate) fn man(args: &Man, mut command: Command) -> anyhow::Result<ExitCode> {
    command.build();
    let page = match &args.verb {
        None => command,
        Some(verb) => {
            let found = command.find_subcommand(verb).filter(|found| !found.is_hide_set());
            let found = found.ok_or_else(|| failure(format_args!("man {verb}"), "no such verb", "see 'plyfs --help'"))?;
            found.clone()
        }
    };
    let mut text = Vec::new();
    clap_mangen::Man::new(page).render(&mut text)?;
    output::to_stdout(|out| out.write_all(&text))?;
    Ok(ExitCode::SUCCESS)
}
