//! The mount-level lab.

fn main() {}
