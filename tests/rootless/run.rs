//! `plyfs run --rootfs` of an ordinary user, and real programs in his hands.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::process::Command;

use crate::lab::{Lab, finish, need_mounts};
use crate::user::{Ids, USER, user};

/// Makes a root directory with these programs of the machine, and the libraries that they need.
fn with_programs(lab: &Lab, root: &str, programs: &[&str]) {
    fs::create_dir_all(lab.path(format!("{root}/etc"))).unwrap();
    for name in programs {
        let dirs = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"];
        let program = dirs.iter().map(|dir| format!("{dir}/{name}")).find(|path| fs::metadata(path).is_ok()).unwrap();
        let libraries = finish(lab.command("ldd").arg(&program)).text();
        let libraries = libraries.split_whitespace().filter(|word| word.starts_with('/') && !word.ends_with(':'));
        for (from, to) in libraries.map(|path| (path, path)).chain([(program.as_str(), format!("/bin/{name}").as_str())]) {
            let target = lab.path(root).join(to.trim_start_matches('/'));
            fs::create_dir_all(target.parent().unwrap()).unwrap();
            if !target.exists() {
                fs::copy(from, target).unwrap();
            }
        }
    }
}

#[test]
fn an_ordinary_user_is_root_of_a_command_on_layers_of_his_own_and_of_others() {
    need_mounts!();
    for (ids, own) in [(Ids::Single, true), (Ids::Single, false), (Ids::Whole, true), (Ids::Whole, false)] {
        let lab = Lab::layers();
        with_programs(&lab, "base", &["sh", "cat", "id", "stat", "chmod", "mkdir", "rm", "touch", "mv", "chown"]);
        fs::write(lab.path("base/etc/who"), "base\n").unwrap();
        if own {
            assert!(Command::new("chown").args(["-R", &format!("{USER}:{USER}")]).arg(lab.path("base")).status().unwrap().success());
        }
        // Who owns what has no number in the namespace shows as root, or where nobody has one, as nobody.
        let other = if own || ids == Ids::Single { 0 } else { 65534 };
        let script = r#"id -u; stat -c %u /etc/who; cat /etc/who; echo changed > /etc/who; mkdir /etc/new; chmod 4711 /etc/who; mv /etc/who /etc/new/who; rm -r /bin/touch
            stat -c "%a %u" /etc/new/who; chown 7:8 /etc/new 2>/dev/null && stat -c "%u %g" /etc/new; exit 3"#;
        let run = format!(
            r#""$PLYFS" run --rootfs ../base --upper kept --diff -- sh -c '{script}' | grep -v -e ' /dev' -e ' /proc' -e ' /sys'; echo again; "$PLYFS" run --rootfs ../base --upper kept -- stat -c "%a %u" /etc/new/who"#
        );
        let done = user(&lab, ids, &run);
        let chowned = if ids == Ids::Whole { "7 8\n" } else { "" };
        let expected = format!(
            "0\n{other}\nbase\n4711 {other}\n{chowned}C /bin\nD /bin/touch\nC /etc\nA /etc/new\nA /etc/new/who\nD /etc/who\nagain\n4711 {other}\n"
        );
        assert_eq!((done.text(), done.err.as_str()), (expected, ""), "{ids:?} {own}");
        let on_disk = fs::metadata(lab.path("home/kept/etc/new/who")).unwrap();
        assert_eq!(fs::read_to_string(lab.path("base/etc/who")).unwrap(), "base\n");
        assert!(on_disk.uid() >= USER, "an ordinary user's machine stays his: {}", on_disk.uid());
    }
}

#[test]
fn an_ordinary_users_dpkg_installs_a_package_in_a_root_of_its_own() {
    need_mounts!();
    let lab = Lab::layers();
    let programs = [
        "sh",
        "cat",
        "rm",
        "tar",
        "diff",
        "dpkg",
        "dpkg-deb",
        "dpkg-split",
        "dpkg-query",
        "ldconfig",
        "start-stop-daemon",
        "stat",
        "ln",
        "chown",
    ];
    with_programs(&lab, "base", &programs);
    for dir in [
        "base/var/lib/dpkg/info",
        "base/var/lib/dpkg/updates",
        "base/var/lib/dpkg/triggers",
        "base/tmp",
        "pack/DEBIAN",
        "pack/usr/bin",
        "pack/etc/pack",
    ] {
        fs::create_dir_all(lab.path(dir)).unwrap();
    }
    for file in ["base/var/lib/dpkg/status", "base/var/lib/dpkg/available"] {
        fs::write(lab.path(file), "").unwrap();
    }
    let control = "Package: pack\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\nDescription: a pack\n";
    fs::write(lab.path("pack/DEBIAN/control"), control).unwrap();
    fs::write(lab.path("pack/DEBIAN/conffiles"), "/etc/pack/conf\n").unwrap();
    fs::write(lab.path("pack/DEBIAN/postinst"), "#!/bin/sh\nset -e\nln /usr/bin/pack /usr/bin/alias\nchown 5:6 /etc/pack\n").unwrap();
    fs::write(lab.path("pack/etc/pack/conf"), "conf\n").unwrap();
    fs::write(lab.path("pack/usr/bin/pack"), "#!/bin/sh\necho packed\n").unwrap();
    std::os::unix::fs::symlink("pack", lab.path("pack/usr/bin/link")).unwrap();
    for (file, mode) in [("pack/DEBIAN/postinst", 0o755), ("pack/usr/bin/pack", 0o4755)] {
        fs::set_permissions(lab.path(file), fs::Permissions::from_mode(mode)).unwrap();
    }
    chown(lab.path("pack/etc/pack/conf"), Some(3), Some(8)).unwrap();
    fs::set_permissions(lab.path("pack/etc/pack/conf"), fs::Permissions::from_mode(0o640)).unwrap();
    let built = finish(lab.command("dpkg-deb").args(["-b", "pack", "base/tmp/pack.deb"]));
    assert_eq!(built.code, Some(0), "{built:?}");
    assert!(Command::new("chown").args(["-R", &format!("{USER}:{USER}")]).arg(lab.path("base")).status().unwrap().success());
    let script = r#"set -e; export PATH=/bin:/usr/bin
        dpkg --force-unsafe-io -i /tmp/pack.deb >/dev/null; dpkg-query -W -f "\${Package} \${Version} \${Status}\n" pack
        stat -c "%n %a %u %g %h" /usr/bin/pack /etc/pack /etc/pack/conf; pack; alias_=$(/usr/bin/alias); echo $alias_; cat /usr/bin/link | cat | rm -f /none; dpkg --verify pack
        dpkg --purge pack >/dev/null; ls_=$(echo /usr/bin/* /etc/pack*); echo $ls_; dpkg --audit"#;
    let done = user(&lab, Ids::Whole, &format!(r#""$PLYFS" run --rootfs ../base -- sh -c '{script}'"#));
    let expected = "pack 1 install ok installed\n/usr/bin/pack 4755 0 0 2\n/etc/pack 755 5 6 2\n/etc/pack/conf 640 3 8 1\npacked\npacked\n/usr/bin/alias /etc/pack*\n";
    assert_eq!((done.code, done.text().as_str()), (Some(0), expected), "{done:?}");
}

#[test]
fn git_and_sqlite_work_in_an_ordinary_users_try() {
    need_mounts!();
    let lab = Lab::layers();
    let script = r#"git init -q repo && cd repo && git config user.email a@example.org && git config user.name a
        for i in 1 2 3; do echo $i > f$i; git add . && git commit -qm $i; done
        "$PLYFS" try --keep work -- sh -ec 'git mv f1 moved; git rm -q f2; git commit -qm changed; git repack -qad; git fsck --strict; git log --format=%s; git status --short
            python3 -c "
import sqlite3
db = sqlite3.connect(\"db\")
db.execute(\"pragma journal_mode=wal\"); db.execute(\"create table t (n)\")
for n in range(200):
    db.execute(\"insert into t values (?)\", (n,)); db.commit()
print(db.execute(\"select sum(n) from t\").fetchone()[0], db.execute(\"pragma integrity_check\").fetchone()[0])"'
        git fsck --strict && git log --format=%s && git status --short; ls"#;
    for ids in [Ids::Single, Ids::Whole] {
        fs::create_dir_all(lab.path("home")).unwrap();
        let done = user(&lab, ids, &format!("rm -rf repo .local; {script}"));
        let text = done.text();
        assert!(text.starts_with("changed\n3\n2\n1\n19900 ok\n"), "{done:?}");
        assert!(text.ends_with("3\n2\n1\nf1\nf2\nf3\n"), "{done:?}");
        assert!(text.contains("D /") && text.contains("/repo/f2\n") && text.contains("/repo/moved\n"), "{done:?}");
    }
}
