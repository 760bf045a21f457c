//! `plyfs mount` in user namespaces.

use std::fs;

use crate::lab::{Lab, PLYFS, finish, need_mounts};
use crate::user::{Ids, user};

#[test]
fn an_upper_that_another_namespace_wrote_is_not_read_without_its_marks() {
    need_mounts!();
    let lab = Lab::layers();
    lab.plyfs(&["mount", "-o", &lab.options(), "m"]).ok();
    lab.plyfs(&["umount", "m"]).ok();
    let inside = |options: &str| {
        let mut command = lab.command("unshare");
        finish(command.args(["-Urm", "sh", "-ec", r#""$0" mount -o "$1" m; "$0" umount m"#, PLYFS, options]))
    };
    inside(&lab.options()).refused(
        1,
        &format!("upperdir {}: its marks are in attributes that the kernel shows only to root", lab.text("u")),
        &["; mount it as root"],
    );
    for dir in ["u2", "w2"] {
        fs::create_dir(lab.path(dir)).unwrap();
    }
    let options = format!("lowerdir={},upperdir={},workdir={}", lab.text("a"), lab.text("u2"), lab.text("w2"));
    assert_eq!(inside(&options).code, Some(0));
    let asked = |first: &str| lab.plyfs(&["mount", "-o", &format!("{first}{options}"), "m"]);
    asked("").refused(1, "upperdir ", &["its marks are in attributes of users", "; mount it with -o userxattr"]);
    asked("userxattr,").refused(
        1,
        "upperdir ",
        &["user.containers.override_stat", "; mount it with -o xattr_permissions=2, or as the user whose it is"],
    );
}

#[test]
fn a_mount_in_a_user_namespace_is_used_compared_and_unmounted() {
    need_mounts!();
    let lab = Lab::layers();
    // The first one makes the home.
    drop(lab.as_user(Ids::Single, ""));
    for (ids, enter, owner) in [(Ids::Single, "-Urm", 0), (Ids::Whole, "-Um --map-auto --map-root-user", 3)] {
        let script = format!(
            r#"mkdir -p l/d u w m && echo low > l/f && echo x > l/d/x && echo top > l/top && echo x > l/low && chmod 4750 l/f && unshare {enter} sh -ec '
            "$PLYFS" mount -o lowerdir=l,upperdir=u,workdir=w m
            echo new >> m/f; rm -r m/d; mkdir m/d; chown {owner}:{owner} m/f; mkfifo m/p; ln -s f m/s; rm m/low; chmod 2755 m/d
            stat -c "%a %u %F" m/f m/d m/p m/s; cat m/f m/top; "$PLYFS" diff m; "$PLYFS" umount m; ls m | wc -l; cat w/dialect
            "$PLYFS" mount -o lowerdir=l,upperdir=u,workdir=w m; stat -c "%a %u %F" m/f m/d; ls m; "$PLYFS" umount m' && rm -rf l u w m"#
        );
        let done = user(&lab, ids, &script);
        let seen = format!(
            "750 {owner} regular file\n2755 0 directory\n644 0 fifo\n777 0 symbolic link\nlow\nnew\ntop\nC /d\nD /d/x\nC /f\nD /low\nA /p\nA /s\n0\nuser\n\
             750 {owner} regular file\n2755 0 directory\nd\nf\np\ns\ntop\n"
        );
        assert_eq!((done.code, done.err.as_str(), done.text()), (Some(0), "", seen), "{ids:?}");
    }
}

#[test]
fn an_ordinary_user_mounts_by_fusermount3() {
    need_mounts!();
    let lab = Lab::layers();
    let script = r#"mkdir -p l/d l/e u w m && echo low > l/f && echo x > l/d/x && chmod 555 l/d && chmod 400 l/f
        "$PLYFS" mount -o lowerdir=l,upperdir=u,workdir=w,fsname=a,b m || "$PLYFS" mount -o 'lowerdir=l,upperdir=u,workdir=w,fsname=a\,b' m
        chmod 600 m/f; echo new >> m/f; chmod 640 m/d/x; rmdir m/e; mv m/f m/g; mkfifo m/p; mkdir m/n; chmod 0 m/n; ln -s g m/s; mkdir -p m/again && rmdir m/again
        cat m/g; stat -c '%a %u %F' m/d m/d/x m/g m/n m/p; "$PLYFS" diff m
        (cd m && "$PLYFS" umount ../m); "$PLYFS" umount m; cat w/dialect; ls m | wc -l
        "$PLYFS" mount -o lowerdir=l,upperdir=u,workdir=w m; stat -c '%a %u %F' m/d m/d/x m/g m/n; ls m; "$PLYFS" umount m
        "$PLYFS" mount -o allow_other,lowerdir=l m; "$PLYFS" mount -o lowerdir=l ../b; chmod -R u+rwx l u && rm -rf l u w m"#;
    // The first one makes the home.
    drop(lab.as_user(Ids::Single, ""));
    let done = user(&lab, Ids::Single, script);
    let kinds = "555 61234 directory\n640 61234 regular file\n600 61234 regular file\n0 61234 directory\n";
    let seen =
        format!("low\nnew\n{kinds}644 61234 fifo\nC /d\nC /d/x\nD /e\nD /f\nA /g\nA /n\nA /p\nA /s\nuser\n0\n{kinds}d\ng\nn\np\ns\n");
    assert_eq!(done.text(), seen, "{done:?}");
    let said: Vec<&str> = done.err.lines().collect();
    let parts = ["option b: ", "umount ../m: busy", "option allow_other: ", "mount "];
    assert_eq!(said.len(), parts.len(), "{done:?}");
    assert!(
        said.iter().zip(parts).all(|(line, part)| line.starts_with("plyfs: ") && line.contains(part) && line.contains("; ")),
        "{done:?}"
    );
}
