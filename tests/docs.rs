//! docs/SEMANTICS.md names a test for each promise; a name that no test has any more is a promise that nobody holds.
#![allow(clippy::unwrap_used)] // The helpers are part of the test.

use std::collections::BTreeSet;
use std::path::Path;

/// Names of functions in all Rust files below a directory, `target` and hidden ones left out.
fn functions(dir: &Path, names: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            functions(&path, names);
        } else if name.ends_with(".rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            names.extend(text.lines().filter_map(|line| {
                let rest = line.trim_start().strip_prefix("fn ")?;
                Some(rest.split(['(', '<']).next()?.to_owned())
            }));
        }
    }
}

#[test]
fn every_test_that_the_semantics_name_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("docs/SEMANTICS.md")).unwrap();
    let mut known = BTreeSet::new();
    functions(root, &mut known);
    // Names of tests are the words in backquotes with at least three underscores and no other punctuation.
    let named: BTreeSet<&str> = text
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|word| word.matches('_').count() >= 3 && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'))
        .collect();
    assert!(named.len() > 30, "the names are not found any more");
    let missing: Vec<_> = named.iter().filter(|name| !known.contains(**name)).collect();
    assert!(missing.is_empty(), "docs/SEMANTICS.md names tests that do not exist: {missing:?}");
}
