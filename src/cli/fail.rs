//! Errors as the user sees them.

use std::fmt::Display;
use std::io::Write;
use std::process::ExitCode;

/// An error: what failed and where, why, and what to do about it.
pub(crate) fn failure(at: impl Display, why: impl Display, remedy: impl Display) -> anyhow::Error {
    anyhow::anyhow!("{at}: {why}; {remedy}")
}

/// Prints it as the one line that it is, and gives back the exit code: that of the launcher where the error is the launcher's, else `code`.
pub(crate) fn print(error: &anyhow::Error, code: u8) -> ExitCode {
    note(format_args!("{error:#}"));
    ExitCode::from(error.downcast_ref::<plyfs_runtime::Error>().map_or(code, plyfs_runtime::Error::exit_code))
}

/// Prints a notice, which is no error.
pub(crate) fn note(text: impl Display) {
    say(&format!("plyfs: {}\n", one_line(&text.to_string())));
}

/// Writes to stderr, at once. Where nobody listens any more the work goes on.
pub(crate) fn say(text: &str) {
    let mut err = std::io::stderr().lock();
    if let Err(error) = err.write_all(text.as_bytes()).and_then(|()| err.flush()) {
        tracing::debug!(%error, text, "nobody listens");
    }
}

/// Shows control characters as escapes: names may hold line breaks, and terminals obey what is not escaped.
pub(crate) fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for char in text.chars() {
        if char.is_control() { line.extend(char.escape_default()) } else { line.push(char) }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_break_the_line() {
        let error = failure("mountpoint /a\nb\u{1b}[2J", "no such", "make it");
        assert_eq!(one_line(&format!("{error:#}")), "mountpoint /a\\nb\\u{1b}[2J: no such; make it");
    }
}
