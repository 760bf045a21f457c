//! pjdfstest: what each system call answers and changes.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crate::lab::{Lab, lab, sh};

/// Cases that fail, one a line; text after a '#' says why.
const EXPECTED_FAILURES: &str = include_str!("expected-failures.txt");

/// Cases that do not run: no filesystem says what its LINK_MAX is.
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

fn suite(lab: &mut Lab) {
    let other = lab.tmpfs("other", "size=16m");
    // The suite calls mount(8), which would call this mount's type for help: `plyfs` in PATH.
    let bin = lab.path("bin");
    fs::create_dir(&bin).unwrap();
    let mount = crate::lab::find("mount").unwrap();
    fs::write(bin.join("mount"), format!("#!/bin/sh\nexec {} -i \"$@\"\n", mount.display())).unwrap();
    fs::set_permissions(bin.join("mount"), fs::Permissions::from_mode(0o755)).unwrap();
    let path = std::env::var("PATH").unwrap();
    lab.mount();
    // Some case leaves a file open, so that nothing can be remounted after it: what remounts runs by itself.
    let (mut passed, mut failed, mut skipped) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let mut text = String::new();
    for (remount, pattern) in [(false, None), (true, Some("erofs"))] {
        let config = lab.path("config.toml");
        fs::write(&config, format!("{CONFIG}\n[settings]\nnaptime = 0.01\nallow_remount = {remount}\n")).unwrap();
        let mut command = Command::new("timeout");
        command.args(["-k", "1", "300"]).arg(crate::lab::find("pjdfstest").unwrap()).arg("-c").arg(config).args(pattern);
        command.arg("-p").arg(lab.mnt("")).arg("-s").arg(&other).env("PATH", format!("{}:{path}", bin.display()));
        let output = command.env("NO_COLOR", "1").env("RUST_BACKTRACE", "0").output().unwrap();
        text += &(String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr));
    }
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(name), Some(result), None) = (words.next(), words.next(), words.next()) else { continue };
        match result {
            _ if !name.contains("::") => continue,
            "ok" => passed.insert(name),
            "FAILED" => failed.insert(name),
            "skipped" => skipped.insert(name),
            _ => continue,
        };
    }
    let skipped: BTreeSet<_> = skipped.difference(&passed).filter(|name| !failed.contains(*name)).copied().collect();
    let expected: BTreeSet<_> =
        EXPECTED_FAILURES.lines().map(|line| line.split('#').next().unwrap().trim()).filter(|line| !line.is_empty()).collect();
    let new: Vec<_> = failed.difference(&expected).collect();
    let details: String = text.split("FAILED\n").skip(1).map(|text| text.lines().take(2).collect::<Vec<_>>().join("\n") + "\n").collect();
    assert!(new.is_empty(), "fail, and are not in expected-failures.txt: {new:#?}\n{details}");
    let passes: Vec<_> = expected.difference(&failed).collect();
    assert!(passes.is_empty(), "do not fail, and are in expected-failures.txt: {passes:#?}");
    assert_eq!(skipped, SKIPPED.iter().copied().collect(), "skipped");
    assert!(passed.len() + failed.len() > 390, "only {} ran: {text}", passed.len() + failed.len());
    assert!(crate::lab::names(&lab.mnt("")).is_empty(), "the suite leaves nothing");
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
