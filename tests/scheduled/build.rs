//! Sets `races`, by which src/overlay/src/sync.rs takes the scheduler's types.

fn main() {
    println!("cargo::rustc-check-cfg=cfg(races)");
    println!("cargo::rustc-cfg=races");
    println!("cargo::rerun-if-changed=build.rs");
}
