//! pjdfstest: what each system call answers and changes.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::lab::{Lab, lab, sh};

/// Cases that fail, one a line; text after a '#' says why.
const EXPECTED_FAILURES: &str = include_str!("expected-failures.txt");

/// How many cases pass, fail and are skipped on ext4 when nothing may be remounted.
const ON_EXT4: (usize, usize, usize) = (385, 0, 13);

/// The same here: all but [`SKIPPED`], and when what remounts has run too, all 397 others have passed.
const HERE: (usize, usize, usize) = (384, 0, 14);

/// Cases that do not run: of ext4 the C library knows LINK_MAX, and of FUSE not. `a_file_has_as_many_links_as_the_upper_allows` is this case.
const SKIPPED: &[&str] = &["link::link_count_max"];

/// What ext4 has and FUSE carries, so without `stat_st_birthtime`. File flags and NFSv4 ACLs are of other systems.
const CONFIG: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
utimensat = {}
utime_now = {}

[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"#;

/// What the cases said, by their names.
#[derive(Default)]
struct Said {
    passed: BTreeSet<String>,
    failed: BTreeSet<String>,
    skipped: BTreeSet<String>,
    text: String,
}

/// Runs the suite in a directory: all cases, but where remounting is asked for those whose names have `pattern`.
fn run(lab: &Lab, dir: &Path, remount: bool, pattern: Option<&str>) -> Said {
    let [config, bin, other] = ["config.toml", "bin", "other"].map(|name| lab.path(name));
    fs::write(&config, format!("{CONFIG}\n[settings]\nnaptime = 0.01\nallow_remount = {remount}\n")).unwrap();
    let mut command = Command::new("timeout");
    command.args(["-k", "1", "300"]).arg(crate::lab::find("pjdfstest").unwrap()).arg("-c").arg(config).args(pattern);
    command.arg("-p").arg(dir).arg("-s").arg(&other).env("PATH", format!("{}:{}", bin.display(), std::env::var("PATH").unwrap()));
    let output = command.env("NO_COLOR", "1").env("RUST_BACKTRACE", "0").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let mut said = Said::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(name), Some(result), None) = (words.next(), words.next(), words.next()) else { continue };
        match result {
            _ if !name.contains("::") => continue,
            "ok" => said.passed.insert(name.to_owned()),
            "FAILED" => said.failed.insert(name.to_owned()),
            "skipped" => said.skipped.insert(name.to_owned()),
            _ => continue,
        };
    }
    let counts = format!("{} failed, {} skipped, {} passed,", said.failed.len(), said.skipped.len(), said.passed.len());
    assert!(text.contains(&counts), "{counts} {text}");
    said.text = text;
    said
}

/// What the suite calls: another filesystem, and a mount(8) that does not call this mount's type for help, `plyfs` in PATH.
fn surroundings(lab: &mut Lab) {
    lab.tmpfs("other", "size=16m");
    let bin = lab.path("bin");
    fs::create_dir(&bin).unwrap();
    let mount = crate::lab::find("mount").unwrap();
    fs::write(bin.join("mount"), format!("#!/bin/sh\nexec {} -i \"$@\"\n", mount.display())).unwrap();
    fs::set_permissions(bin.join("mount"), fs::Permissions::from_mode(0o755)).unwrap();
}

fn suite(lab: &mut Lab) {
    surroundings(lab);
    lab.mount();
    // Some case leaves a file open, so that nothing can be remounted after it: what remounts runs by itself.
    let all = run(lab, &lab.mnt(""), false, None);
    let remounted = run(lab, &lab.mnt(""), true, Some("erofs"));
    let expected: BTreeSet<_> =
        EXPECTED_FAILURES.lines().map(|line| line.split('#').next().unwrap().trim().to_owned()).filter(|line| !line.is_empty()).collect();
    let failed: BTreeSet<_> = all.failed.union(&remounted.failed).cloned().collect();
    let details: String = (all.text.clone() + &remounted.text)
        .split("FAILED\n")
        .skip(1)
        .map(|text| text.lines().take(2).collect::<Vec<_>>().join("\n") + "\n")
        .collect();
    let new: Vec<_> = failed.difference(&expected).collect();
    assert!(new.is_empty(), "fail, and are not in expected-failures.txt: {new:#?}\n{details}");
    let passes: Vec<_> = expected.difference(&failed).collect();
    assert!(passes.is_empty(), "do not fail, and are in expected-failures.txt: {passes:#?}");
    assert_eq!((all.passed.len(), all.failed.len(), all.skipped.len()), HERE, "passed, failed, skipped");
    assert_eq!(all.passed.union(&remounted.passed).count(), 397);
    let skipped: BTreeSet<_> = all.skipped.difference(&remounted.passed).map(String::as_str).collect();
    assert_eq!(skipped, SKIPPED.iter().copied().collect(), "skipped");
    assert!(crate::lab::names(&lab.mnt("")).is_empty(), "the suite leaves nothing");
}

#[test]
fn pjdfstest_passes_on_ext4_what_passes_here_and_one_case_more() {
    let mut lab = lab!("pjdfstest", "mount", "mkfs.ext4");
    surroundings(&mut lab);
    let ext4 = lab.image("ext4", &["ext4", "-q"]);
    fs::set_permissions(&ext4, fs::Permissions::from_mode(0o755)).unwrap();
    let all = run(&lab, &ext4, false, None);
    assert_eq!((all.passed.len(), all.failed.len(), all.skipped.len()), ON_EXT4, "passed, failed, skipped: {:?}", all.failed);
}

#[test]
fn pjdfstest_passes_in_an_upper_directory() {
    let mut lab = lab!("pjdfstest", "mount");
    suite(&mut lab);
    lab.unmount();
}

#[test]
fn pjdfstest_passes_where_the_root_is_merged() {
    let mut lab = lab!("pjdfstest", "mount");
    // Two lowers and an upper, in which all names are whited out.
    let second = lab.path("second");
    fs::create_dir(&second).unwrap();
    lab.lowers.push(second.clone());
    for number in 0..20 {
        lab.write_lower(&format!("d{number}/x"), "x");
        fs::create_dir_all(second.join(format!("d{}", number + 10))).unwrap();
    }
    lab.mount();
    sh(&lab.mnt(""), "rm -r d*");
    lab.unmount();
    suite(&mut lab);
    lab.unmount();
}
