//! Races of the union's threads, under a scheduler that chooses which one goes on at each lock, table and atomic: see [`lab`].
//!
//! A failure prints its schedule; `PLYFS_RACES_REPLAY=SCHEDULE` with the name of the test runs that one again. `PLYFS_RACES_TIMES` multiplies the number of schedules.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod lab;
mod op;

use crate::lab::{NAMELESS, Scenario};
use crate::op::Op::*;

#[test]
fn copy_up_against_copy_up() {
    Scenario::of(&[&[OpenWrite("a/f"), Write("ONE"), Close], &[OpenWrite("a/f"), Write("TWO"), Close]]).check();
    Scenario::of(&[&[Chmod("a/f", 0o600)], &[Truncate("a/f", 1)], &[SetXattr("a/f", "x")]]).check();
    // Two files in one directory that is not in the upper yet, and the directory itself.
    Scenario::of(&[&[Chmod("a/sub/g", 0o600)], &[Chmod("a/f", 0o600)], &[Chmod("a", 0o700)]]).check();
    Scenario::of(&[&[OpenTruncate("a/f"), Write("x"), Close], &[OpenWrite("a/f"), Write("TWO"), Close]]).check();
}

#[test]
fn copy_up_against_readers() {
    Scenario::of(&[&[Open("a/f"), Read, Read, Close], &[OpenWrite("a/f"), Write("ONE"), Close]]).check();
    Scenario::of(&[&[Stat("a/f"), Stat("a"), Stat("")], &[Chmod("a/f", 0o600)]]).check();
}

#[test]
fn copy_up_against_unlink() {
    Scenario::of(&[&[OpenWrite("a/f"), Write("ONE"), Stat("a/f"), Close], &[Unlink("a", "f"), Stat("a/f")]]).check();
    Scenario::of(&[&[Chmod("a/f", 0o600)], &[Unlink("a", "f"), Create("a", "f")]]).check();
    Scenario::of(&[&[Create("empty", "new")], &[Rmdir("", "empty")]]).check();
    Scenario::of(&[&[Chmod("empty", 0o700), Stat("empty")], &[Rmdir("", "empty"), Mkdir("", "empty")]]).check();
}

#[test]
fn copy_up_against_rename() {
    Scenario::of(&[&[OpenWrite("a/f"), Write("ONE"), Close], &[Rename("a", "f", "b", "f2")]]).check();
    Scenario::of(&[&[OpenWrite("a/f"), Write("ONE"), Close], &[Rename("b", "f", "a", "f")]]).check();
    Scenario::of(&[&[Chmod("a/sub/g", 0o600)], &[Rename("", "a", "b", "a")]]).check();
    Scenario::of(&[&[Chmod("a/sub/g", 0o600)], &[Rename("a", "sub", "b", "sub")], &[Rename("", "a", "", "c")]]).check();
}

#[test]
fn metadata_copy_up_against_data_copy_up() {
    let check = |threads| Scenario::with_metacopy(threads).check();
    check(&[&[Chmod("a/f", 0o600)], &[OpenWrite("a/f"), Write("ONE"), Close]]);
    check(&[&[Chmod("a/f", 0o600), Stat("a/f")], &[SetXattr("a/f", "x")], &[OpenTruncate("a/f"), Close]]);
    // What changes the metadata while the data comes stays.
    check(&[&[Chmod("a/f", 0o600), OpenWrite("a/f"), Write("ONE"), Close], &[Touch("a/f"), Stat("a/f")]]);
    check(&[&[Chmod("a/f", 0o600), Truncate("a/f", 1)], &[OpenWrite("a/f"), Write("TWO"), Close]]);
    // Readers have the data from below or that of the upper, and the time of modification is put back.
    check(&[&[Chmod("a/f", 0o600), OpenWrite("a/f"), Close], &[Open("a/f"), Read, Read, Close], &[Stat("a/f")]]);
    check(&[&[Chmod("a/f", 0o600), Rename("a", "f", "b", "f2")], &[Open("a/f"), Read, Close, Unlink("b", "f2")]]);
    check(&[&[Chmod("a/f", 0o600)], &[Link("a/f", "b", "l")], &[Unlink("a", "f")]]);
}

#[test]
fn metacopies_against_names() {
    // What is found under the name in the end may be another metacopy than the one that was made whole first.
    let check = |threads| Scenario { copied: true, ..Scenario::with_metacopy(threads) }.check();
    check(&[&[Rename("a", "f", "b", "g")], &[Exchange("a", "f", "b", "f")]]);
    check(&[&[Rename("a", "f", "", "g")], &[Rename("b", "f", "a", "f")]]);
    check(&[&[Link("a/f", "b", "l"), Stat("a/f")], &[Unlink("a", "f")]]);
}

#[test]
fn look_up_against_the_data_of_a_metacopy() {
    // The mark is read, the data comes through an inode that is forgotten, and only then the one that was looked up can be found.
    let check = |threads| Scenario { threads, held: &["a"], metacopy: true, copied: true }.check();
    check(&[&[ReadFound("a", "f"), ReadFound("a", "f")], &[WriteFound("a", "f", "ONE")]]);
    check(&[&[WriteFound("a", "f", "T")], &[WriteFound("a", "f", "ONE")], &[ReadFound("a", "f")]]);
}

#[test]
fn rename_crossed_with_rename() {
    Scenario::of(&[&[Rename("", "a", "b", "a")], &[Rename("", "b", "a", "b")]]).check();
    // Each into the other, by four directories: together they would leave the tree.
    Scenario::of(&[&[Rename("a", "sub", "b/d", "sub")], &[Rename("b", "d", "a/sub", "d")]]).check();
    Scenario::of(&[&[Rename("a", "f", "b", "f")], &[Rename("b", "f", "a", "f")]]).check();
    Scenario::of(&[&[Exchange("a", "f", "b", "f")], &[Rename("b", "f", "a", "g")], &[Unlink("a", "f")]]).check();
    Scenario::of(&[&[Rename("", "a", "", "c")], &[Rename("", "b", "", "c")], &[Rename("", "empty", "", "c")]]).check();
    Scenario::of(&[&[Exchange("", "a", "", "b")], &[Rename("a", "sub", "b", "sub")]]).check();
}

#[test]
fn links_against_links() {
    Scenario::of(&[&[Link("a/f", "b", "l"), Stat("a/f")], &[Unlink("a", "f")]]).check();
    Scenario::of(&[&[Link("a/f", "b", "l")], &[Rename("b", "f", "b", "l")]]).check();
}

#[test]
fn look_up_against_removing() {
    Scenario::of(&[&[Visit("a", "f")], &[Unlink("a", "f"), Chmod("a/f", 0o600)]]).check();
    Scenario::of(&[&[Visit("a", "f")], &[Rename("a", "f", "b", "f2"), Unlink("b", "f2"), Link("a/f", "b", "l")]]).check();
    Scenario::of(&[&[Visit("", "empty")], &[Rmdir("", "empty"), Create("empty", "new")]]).check();
}

#[test]
fn file_handles_against_changes() {
    let check = |threads, held| Scenario { threads, held, metacopy: false, copied: false }.check();
    check(&[&[Reopen("a/sub/g")], &[Rename("", "a", "b", "a")]], &["b"]);
    check(&[&[Reopen("a/f"), Reopen("a")], &[Rename("a", "f", "b", "f2"), Rename("b", "f2", "b", "f3")]], &["a", "b"]);
    check(&[&[Reopen("a/f")], &[Unlink("a", "f"), Create("a", "f")], &[Reopen("a/f")]], &["a"]);
    check(&[&[Reopen("h1")], &[Unlink("", "h1")]], &[]);
}

#[test]
fn a_file_without_a_name_against_links() {
    let check = |threads| Scenario { threads, held: &["a", "b", NAMELESS], metacopy: false, copied: false }.check();
    check(&[&[Link(NAMELESS, "a", "l")], &[Link(NAMELESS, "b", "l")], &[Link(NAMELESS, "b", "l")]]);
}

#[test]
fn look_up_against_forget() {
    let unknown = |threads| Scenario { threads, held: &[], metacopy: false, copied: false };
    unknown(&[&[Visit("", "a"), Visit("", "a")], &[Visit("", "a"), Visit("", "a")]]).check();
    unknown(&[&[Visit("", "h1")], &[Visit("", "h1")], &[List("", &["h1"])]]).check();
    Scenario {
        threads: &[&[Visit("a", "f"), Visit("a", "f")], &[Rename("a", "f", "b", "f2")], &[Visit("b", "f2")]],
        held: &["a", "b"],
        metacopy: false,
        copied: false,
    }
    .check();
    Scenario { threads: &[&[Visit("", "h1"), Visit("a", "h2")], &[Unlink("", "h1")]], held: &["a"], metacopy: false, copied: false }
        .check();
}

#[test]
fn readdir_against_changes() {
    Scenario::of(&[&[List("a", &["h2", "sub"]), List("a", &["h2", "sub"])], &[Create("a", "new"), Unlink("a", "f")]]).check();
    Scenario::of(&[&[List("a", &["sub"])], &[Rename("a", "f", "a", "f2")], &[List("a", &["h2"])]]).check();
    Scenario::of(&[&[List("", &["a", "b", "h1"])], &[Mkdir("", "new")], &[Rmdir("", "empty")]]).check();
    Scenario::of(&[&[List("a", &["h2", "sub"]), List("b", &["f", "h3"])], &[Rename("a", "f", "b", "new")]]).check();
}

#[test]
fn making_against_removing() {
    Scenario::of(&[&[Create("a", "new")], &[Mkdir("a", "new")], &[Link("b/f", "a", "new")]]).check();
    Scenario::of(&[&[Unlink("a", "f"), Create("a", "f")], &[Create("a", "f"), Unlink("a", "f")]]).check();
    Scenario::of(&[&[Mkdir("empty", "d")], &[Rename("", "a", "", "empty")]]).check();
}

#[test]
fn hard_links_of_a_lower_file_against_each_other() {
    Scenario::of(&[&[Stat("h1"), Stat("h1")], &[Chmod("a/h2", 0o600)]]).check();
    Scenario::of(&[&[Chmod("h1", 0o600), Stat("h1")], &[Unlink("a", "h2")], &[Unlink("b", "h3")]]).check();
    Scenario::of(&[&[Chmod("h1", 0o600)], &[Rename("a", "h2", "b", "h4")], &[Chmod("b/h3", 0o600)]]).check();
    Scenario::of(&[&[Rename("", "h1", "a", "f")], &[Rename("a", "h2", "b", "h3")]]).check();
    Scenario::of(&[&[Link("h1", "a", "l")], &[Link("a/h2", "b", "l")], &[Unlink("", "h1")]]).check();
}
