//! Cases that failed once, made small.

use crate::case::Case;
use crate::{directories, fault, memory};

fn case(text: &str) -> Case {
    text.parse().unwrap()
}

#[test]
fn cases_are_written_as_they_are_read() {
    for seed in 0..200 {
        let made = crate::generate::case(seed, crate::generate::Options { ops: 20, remounts: true });
        assert!(case(&made.to_string()) == made, "seed {seed}\n{made}");
    }
}

fn passes_in_memory(text: &str) {
    memory::run(&case(text)).unwrap();
}

#[test]
fn numbers_of_several_devices_survive_a_remount() {
    passes_in_memory(
        "layer
          d /c
        layer
          d /a
        ops devices
          restack
          rename /a/d /c/b
          remount",
    );
}

#[test]
fn chown_takes_setuid_from_a_fifo() {
    passes_in_memory(
        "ops
          mkfifo /d 4755
          chown /d 7 -1",
    );
}

#[test]
fn a_hard_link_that_goes_up_for_a_rename_marks_its_directory_impure() {
    passes_in_memory(
        "layer
          d /b
          f /b/b \"1\"
          d /c
          h /c/a /b/b
        ops
          rename /c/a /c/a exchange
          rename /b/b /c",
    );
}

fn passes_on_directories(text: &str) {
    if !crate::is_root() {
        return crate::skip::record("model::regressions::passes_on_directories", "needs root");
    }
    directories::run(&case(text), directories::With { plain: true, kernel: false, handover: false, extra: Default::default() }).unwrap();
}

#[test]
fn a_link_over_a_whiteout_of_a_file_that_lost_a_name() {
    passes_on_directories(
        "layer
          f /c \"1\"
        ops keep
          create /a 644
          link /a /b
          unlink /a
          unlink /c
          link /b /c
          chmod /c 600",
    );
}

/// One line of an operation in which call number `calls` fails, for every number: what was found depends on how many calls an operation takes.
fn passes_with_faults(text: &str) {
    for calls in 0..60 {
        fault::run_with(&case(text), Some(calls)).unwrap();
    }
}

#[test]
fn a_copy_up_that_fails_half_way_shows_nothing() {
    passes_with_faults(
        "layer
          d /c
          f /c/d \"1\"
        ops keep
          append /c/d \"596\"",
    );
}

#[test]
fn a_copy_up_of_a_hard_link_that_fails_half_way_shows_nothing() {
    passes_with_faults(
        "layer
          f /c \"1\"
          h /d /c
        ops keep
          append /c \"1\"
          unlink /c
          rename /d /b",
    );
}

#[test]
fn a_truncating_open_that_fails_leaves_the_file_as_it_was() {
    passes_with_faults(
        "layer
          f /c \"1\"
        ops
          open /c trunc @1",
    );
}

#[test]
fn a_creation_that_fails_leaves_no_handle_and_a_right_listing() {
    passes_with_faults(
        "layer
          d /b
        ops
          open /b @0
          create /b/c 6072
          create /b/d 2755 trunc
          mkdir /b/a 1655",
    );
}

#[test]
fn a_removed_directory_that_is_held_does_not_show_the_lower_again() {
    passes_in_memory(
        "layer
          d /b
          l /b/c \"a\"
        ops
          rename /b/c /c
          open /b @2
          rmdir /b
          create @2/c 644",
    );
    passes_in_memory(
        "layer
          d /b
          l /b/c \"a\"
        ops
          rename /b/c /c
          mkdir /d 755
          hold /b @2
          rename /d /b
          create @2/c 644",
    );
}
