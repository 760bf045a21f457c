//! plyfs: parse, dispatch, exit code.
fn main() {}
