//! What goes to stdout.

use std::io::{self, BufWriter, ErrorKind, Write};

use plyfs_format::Change;

/// Passes over a reader that left: `plyfs diff ... | head` is no error.
pub(crate) fn quiet_pipe(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Runs `write` on a buffered stdout.
pub(crate) fn to_stdout(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> anyhow::Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    let result = write(&mut out).and_then(|()| out.flush());
    if result.is_err() {
        // What is left in the buffer would be written once more, and fail once more.
        drop(out.into_parts());
    }
    quiet_pipe(result).map_err(|error| super::fail::failure("standard output", error, "see where it goes"))
}

/// Prints a diff: raw lines, or docker's array of objects in one line.
pub(crate) fn changes(changes: &[Change], json: bool) -> anyhow::Result<()> {
    to_stdout(|mut out| {
        if json {
            serde_json::to_writer(&mut *out, changes)?;
            return out.write_all(b"\n");
        }
        changes.iter().try_for_each(|change| change.write_line(&mut out))
    })
}

/// Prints a table as docker does: columns padded by three blanks to at least ten, the last one not at all.
pub(crate) fn table(rows: &[Vec<String>]) -> anyhow::Result<()> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let widest = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0);
        (widest + 3).max(10)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    to_stdout(|out| {
        for row in rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(cell);
                line.extend(std::iter::repeat_n(' ', width - cell.chars().count()));
            }
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    })
}
