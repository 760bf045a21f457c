//! Medians and ratios.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use crate::cpu::Mode;
use crate::measure::Results;
use crate::system::System;
use crate::works::Work;

/// The middle of these, in milliseconds.
pub(crate) fn median(times: &[Duration]) -> Option<f64> {
    let mut sorted: Vec<_> = times.iter().map(|time| time.as_secs_f64() * 1e3).collect();
    sorted.sort_unstable_by(f64::total_cmp);
    let (low, high) = (sorted.get(sorted.len().checked_sub(1)? / 2)?, sorted.get(sorted.len() / 2)?);
    Some(f64::midpoint(*low, *high))
}

/// Three digits that count.
pub(crate) fn digits(value: Option<f64>) -> String {
    match value {
        None => "-".to_owned(),
        Some(value) if value >= 99.95 => format!("{value:.0}"),
        Some(value) if value >= 9.995 => format!("{value:.1}"),
        Some(value) => format!("{value:.2}"),
    }
}

/// One table, with a row for each work and each kind of CPUs: milliseconds of each system, k = its time / kernel overlayfs's of each other one, and
/// the first of the others against fuse-overlayfs.
pub(crate) fn markdown(systems: &[System], works: &[&Work], results: &Results) -> String {
    let kernel = systems.iter().position(System::is_kernel);
    let rival = systems.iter().position(|system| system.name == "fuse-overlayfs");
    let others: Vec<_> = (0..systems.len()).filter(|index| Some(*index) != kernel).collect();
    let ours: Vec<_> = others.iter().copied().filter(|index| Some(*index) != rival).collect();
    let name = |index: usize| systems.get(index).map_or("", |system| &system.name);

    let mut head = vec!["work".to_owned(), "caches".to_owned(), "CPUs".to_owned()];
    head.extend((0..systems.len()).map(|index| format!("{} ms", name(index))));
    head.extend(others.iter().map(|&index| format!("{} k", name(index))));
    head.push("aim k".to_owned());
    head.extend(ours.iter().filter(|_| rival.is_some()).map(|&index| format!("{} / fuse-overlayfs", name(index))));

    let mut rows = Vec::new();
    for (number, work) in works.iter().enumerate() {
        for mode in [Mode::Free, Mode::Pinned] {
            let time = |index: usize| results.times.get(&(number, index, mode)).and_then(|times| median(times));
            let ratio = |a: Option<f64>, b: Option<f64>| Some(a? / b?);
            if (0..systems.len()).all(|index| time(index).is_none()) {
                continue;
            }
            let mut row = vec![format!("{}: {}", work.id, work.title), work.cache.to_owned(), mode.name().to_owned()];
            row.extend((0..systems.len()).map(|index| digits(time(index))));
            row.extend(others.iter().map(|&index| digits(ratio(time(index), kernel.and_then(time)))));
            row.push(work.aim.map_or_else(String::new, |aim| aim.to_string()));
            row.extend(ours.iter().filter(|_| rival.is_some()).map(|&index| digits(ratio(time(index), rival.and_then(time)))));
            rows.push(row);
        }
    }
    grid(&head, &rows, 3)
}

/// A table in Markdown that can be read as it is. The first `left` columns are text.
pub(crate) fn grid(head: &[String], rows: &[Vec<String>], left: usize) -> String {
    let width = |column: usize| {
        let cells = std::iter::once(head).chain(rows.iter().map(Vec::as_slice)).filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..head.len()).map(width).collect();
    let mut text = String::new();
    let mut line = |row: &[String]| {
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let width = *width;
            let cell = if column < left { format!("| {cell:<width$} ") } else { format!("| {cell:>width$} ") };
            text.push_str(&cell);
        }
        text.push_str("|\n");
    };
    line(head);
    let rule: Vec<_> = widths
        .iter()
        .enumerate()
        .map(|(column, width)| if column < left { "-".repeat(*width) } else { "-".repeat(width - 1) + ":" })
        .collect();
    line(&rule);
    rows.iter().for_each(|row| line(row));
    text
}

/// Every single time, one a line, with tabs between.
pub(crate) fn write_raw(path: &Path, systems: &[System], works: &[&Work], results: &Results) -> Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    for ((work, system, mode), times) in &results.times {
        let (work, system) = (works.get(*work).map_or("", |work| work.id), systems.get(*system).map_or("", |system| &system.name));
        for (round, time) in times.iter().enumerate() {
            let mut line = String::new();
            write!(line, "{work}\t{system}\t{}\t{}\t{:.3}", mode.name(), round + 1, time.as_secs_f64() * 1e3)?;
            writeln!(file, "{line}")?;
        }
    }
    Ok(file.flush()?)
}
