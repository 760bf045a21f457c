//! fsx: random operations on one file, each read compared with what was written.
//!
//! 20,000 in each mode, or as many as `PLYFS_FSX_OPERATIONS` says, which counts for `direct` too: fsx itself knows no O_DIRECT. Before a release, 1,000,000:
//!
//! ```text
//! PLYFS_FSX_OPERATIONS=1000000 cargo test --release --test conformance -- --test-threads=1 fsx direct
//! ```

use std::fs;
use std::process::Command;

use crate::lab::{lab, noise};

/// How many operations a mode does.
pub(crate) fn operations() -> usize {
    std::env::var("PLYFS_FSX_OPERATIONS").map_or(20_000, |number| number.parse().unwrap())
}

/// Runs fsx with a configuration, on a file that a lower has.
fn run(config: &str) -> Result<(), String> {
    let mut lab = crate::lab::Lab::new();
    lab.write_lower("dir/file", noise(5, 256 << 10));
    fs::write(lab.path("fsx.toml"), config).unwrap();
    fs::create_dir(lab.path("artifacts")).unwrap();
    lab.mount();
    // New each time; a failure prints it.
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let operations = operations();
    let output = Command::new("timeout")
        .args(["-k", "1", &(operations / 100).max(200).to_string()])
        .arg(crate::lab::find("fsx").unwrap())
        .arg("-f")
        .arg(lab.path("fsx.toml"))
        .arg("-P")
        .arg(lab.path("artifacts"))
        .args(["-N", &operations.to_string(), "-S", &seed.to_string()])
        .arg(lab.mnt("dir/file"))
        .output()
        .unwrap();
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        let last: Vec<_> = text.lines().rev().take(40).collect();
        return Err(format!(
            "{}, seed {seed}, configuration {config}: {}",
            output.status,
            last.into_iter().rev().collect::<Vec<_>>().join("\n")
        ));
    }
    let here = fs::read(lab.mnt("dir/file")).unwrap();
    lab.unmount();
    assert!(here == fs::read(lab.upper("dir/file")).unwrap(), "the upper file is what the mount showed");
    Ok(())
}

macro_rules! modes {
    ($($(#[$doc:meta])* $name:ident: $config:literal;)*) => {$(
        $(#[$doc])*
        #[test]
        fn $name() {
            drop(lab!("fsx"));
            run($config).unwrap_or_else(|error| panic!("{error}"));
        }
    )*};
}

// To allocate nothing is EINVAL, which fsx does not expect: hence the least size where it allocates.
modes! {
    reads_writes_and_mappings: "
        [weights]
        close_open = 1
        invalidate = 1
        fsync = 0.2
        fdatasync = 0.2
        ";
    without_mappings: "
        [weights]
        close_open = 1
        mapread = 0
        mapwrite = 0
        ";
    holes_and_copied_ranges: "
        [opsize]
        min = 1
        [weights]
        close_open = 1
        punch_hole = 5
        posix_fallocate = 5
        sendfile = 5
        posix_fadvise = 2
        copy_file_range = 5
        ";
    /// Most operations touch the last page.
    a_file_of_a_few_pages: "
        flen = 9000
        [opsize]
        min = 1
        max = 700
        [weights]
        close_open = 3
        truncate = 20
        punch_hole = 3
        copy_file_range = 3
        posix_fallocate = 3
        ";
    /// The lower file is not truncated before.
    a_lower_file_written_in_place: "
        blockmode = true
        flen = 262144
        [weights]
        close_open = 0
        truncate = 0
        invalidate = 1
        punch_hole = 2
        copy_file_range = 2
        ";
}
