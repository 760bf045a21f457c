//! The rules of the house that no compiler checks: who may depend on whom, where `unsafe` stands, where the names of marks stand.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

#[path = "common/skip.rs"]
mod skip;
#[path = "common/source.rs"]
mod source;

use source::Source;

/// Every crate of the workspace and those of ours that it may name, in any kind of dependency: normal, dev or build.
///
/// A new crate gets its row here first; a crate that only helps tests gets one too, and it may import what its users may.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("plyfs-format", &[]),
    ("plyfs-sys", &[]),
    ("plyfs-overlay", &["plyfs-format", "plyfs-sys"]),
    ("plyfs-fuse", &["plyfs-format", "plyfs-overlay", "plyfs-sys"]),
    ("plyfs-layerstore", &["plyfs-format", "plyfs-sys"]),
    ("plyfs-races", &["plyfs-scheduled", "plyfs-sys"]),
    ("plyfs-runtime", &["plyfs-format", "plyfs-sys"]),
    ("plyfs", &["plyfs-format", "plyfs-fuse", "plyfs-layerstore", "plyfs-overlay", "plyfs-runtime", "plyfs-sys"]),
];

/// Dependencies that only one crate may name.
const NAMED_BY_ONE: &[(&str, &str)] = &[("fuser", "plyfs-fuse")];

/// What a string outside plyfs-format must not hold. The last part of an attribute's name is tested with `overlay.` before it.
const MARK_LITERALS: &[&str] = &[".wh.", "trusted.overlay.", "user.overlay.", "user.fuseoverlayfs."];
const MARK_SUFFIXES: &[&str] =
    &["opaque", "redirect", "origin", "metacopy", "impure", "nlink", "whiteout", "upper", "uuid", "protattr", "overlay."];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The packages of the workspace as `cargo metadata` tells them.
fn packages() -> Vec<Value> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo starts");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

/// All Rust files of the workspace: what lies beside or below the root of any target.
fn rust_files() -> BTreeSet<PathBuf> {
    let mut files = BTreeSet::new();
    for package in packages() {
        for target in package["targets"].as_array().unwrap() {
            let path = PathBuf::from(text(&target["src_path"]));
            if target["kind"][0] == "custom-build" {
                files.insert(path);
            } else {
                walk(path.parent().unwrap(), &mut files);
            }
        }
    }
    assert!(files.contains(&root().join("layerstore/format/src/lib.rs")), "the walk missed files: {files:?}");
    files
}

fn walk(dir: &Path, files: &mut BTreeSet<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display())) {
        let entry = entry.unwrap();
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        let name = entry.file_name();
        if kind.is_dir() && name != "target" && !name.as_encoded_bytes().starts_with(b".") {
            walk(&path, files);
        } else if kind.is_file() && path.extension().is_some_and(|extension| extension == "rs") {
            files.insert(path);
        }
    }
}

fn read(path: &Path) -> Source {
    Source::parse(&fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
}

fn relative(path: &Path) -> &Path {
    path.strip_prefix(root()).unwrap_or(path)
}

#[test]
fn crates_import_only_what_the_house_allows() {
    let table: BTreeMap<_, _> = MAY_IMPORT.iter().copied().collect();
    let packages = packages();
    let ours: BTreeSet<_> = packages.iter().map(|package| text(&package["name"])).collect();
    let mut wrong = Vec::new();
    for package in &packages {
        let name = text(&package["name"]);
        let Some(allowed) = table.get(name) else {
            wrong.push(format!("{name} has no row in MAY_IMPORT"));
            continue;
        };
        for dependency in package["dependencies"].as_array().unwrap() {
            // `name` is the package's name, whatever the crate is renamed to; `kind` is null, dev or build.
            let (other, kind) = (text(&dependency["name"]), dependency["kind"].as_str().unwrap_or("normal"));
            if (ours.contains(other) || !dependency["path"].is_null()) && !allowed.contains(&other) {
                wrong.push(format!("{name} must not import {other} (a {kind} dependency)"));
            }
            if NAMED_BY_ONE.iter().any(|(only, by)| *only == other && *by != name) {
                wrong.push(format!("{name} must not name {other} (a {kind} dependency)"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn unsafe_stands_only_in_sys() {
    let wrong: Vec<_> = rust_files()
        .iter()
        .filter(|path| !relative(path).starts_with("src/sys"))
        .flat_map(|path| {
            let source = read(path);
            source.words("unsafe").map(|at| format!("{}:{}: unsafe", relative(path).display(), source.line(at))).collect::<Vec<_>>()
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn names_of_marks_stand_only_in_format() {
    let mut wrong = Vec::new();
    for path in rust_files() {
        let short = relative(&path);
        if short.starts_with("layerstore/format")
            || short.components().any(|part| part.as_os_str() == "tests")
            || short.ends_with("tests.rs")
        {
            continue;
        }
        let source = read(&path);
        for (line, string) in source.strings_outside_tests() {
            if let Some(mark) = mark_in(&String::from_utf8_lossy(string)) {
                wrong.push(format!("{}:{line}: a string with `{mark}`", short.display()));
            }
        }
        let dense: Vec<u8> = source.code_outside_tests().into_iter().filter(|byte| !byte.is_ascii_whitespace()).collect();
        if dense.windows(12).any(|window| window == b"makedev(0,0)") {
            wrong.push(format!("{}: makedev(0, 0)", short.display()));
        }
    }
    assert!(wrong.is_empty(), "these belong into plyfs-format:\n{}", wrong.join("\n"));
}

/// The name of a mark, or the beginning of one, that a string holds.
fn mark_in(string: &str) -> Option<String> {
    let whole = MARK_LITERALS.iter().map(ToString::to_string);
    whole.chain(MARK_SUFFIXES.iter().map(|suffix| format!("overlay.{suffix}"))).find(|mark| string.contains(mark.as_str()))
}

#[test]
fn strings_comments_and_code_are_told_apart() {
    let source = Source::parse(
        r##"
        // unsafe in a comment, "trusted.overlay.x"
        /* unsafe /* nested */ "unsafe" */
        fn f<'a>(x: &'a str) -> char { let _ = br#"un"safe"#; let _ = '"'; let _ = '\''; let _ = "a\"unsafe"; 'b' }
        fn unsafe_code() { let r = 1; let _ = b".wh."; }
        #[cfg(test)]
        mod tests { fn g() { let _ = "user.overlay."; } }
        fn h() { unsafe { } } const AFTER: &str = "after";
        "##,
    );
    let strings: Vec<_> =
        source.strings_outside_tests().map(|(line, string)| (line, String::from_utf8_lossy(string).into_owned())).collect();
    assert_eq!(
        strings,
        [(4, "br#\"un\"safe\"#".into()), (4, "\"a\\\"unsafe\"".into()), (5, "b\".wh.\"".into()), (8, "\"after\"".into())]
            as [(usize, String); 4]
    );
    assert_eq!(source.words("unsafe").map(|at| source.line(at)).collect::<Vec<_>>(), [8]);
}

#[test]
fn names_of_marks_are_found() {
    for (string, found) in [
        ("trusted.overlay.opaque", true),
        ("user.overlay.", true),
        (".wh.", true),
        ("overlay.metacopy", true),
        ("user.fuseoverlayfs.x", true),
        ("overlay.overlay.x", true),
        ("mount -t overlay. Then", false),
        ("user.mime_type", false),
        (".whx", false),
    ] {
        assert_eq!(mark_in(string).is_some(), found, "{string}");
    }
}

#[test]
fn a_skip_is_logged_under_the_name_of_its_test() {
    fn here() {}
    let name = skip::enclosing(std::any::type_name_of_val(&here));
    assert_eq!(name, "imports::a_skip_is_logged_under_the_name_of_its_test");
    let log = tempfile::tempdir().unwrap().path().join("log");
    assert!(std::panic::catch_unwind(|| skip::append(&log, name, "no directory")).is_err(), "a skip that cannot be logged passed");
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    skip::append(&log, name, "one");
    skip::append(&log, "other", "two: three");
    assert_eq!(fs::read_to_string(&log).unwrap(), format!("{name}: one\nother: two: three\n"));
}
