//! An ordinary user for tests that root runs.

use std::fs;
use std::process::Command;

use crate::lab::{Done, Lab, PLYFS, finish};

/// The ids that an ordinary user's namespace has.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ids {
    /// His own alone.
    Single,
    /// His own, and a range of subordinate ones.
    Whole,
}

/// An ordinary user, whom no machine has.
pub(crate) const USER: u32 = 61_234;

impl Lab {
    /// A shell script run by an ordinary user with a home `home` in the place, who may open `/dev/fuse`; `$PLYFS` is plyfs. In a mount namespace of its own, so that the machine keeps
    /// its device and its files of users.
    pub(crate) fn as_user(&self, ids: Ids, script: &str) -> Command {
        const SET_UP: &str = r#"
            mount --make-rprivate / && mkdir -p own && mount -t tmpfs own own && cd own || exit 99
            mknod fuse c 10 229 && chmod "${FUSE_MODE:-666}" fuse && echo "$USER_ID:2000000:65536" > ids
            [ "$IDS" = Whole ] || : > ids
            { cat /etc/passwd; echo "plyfs-test:x:$USER_ID:$USER_ID::$HOME:/bin/sh"; } > passwd
            touch /etc/subuid /etc/subgid
            for pair in fuse:/dev/fuse ids:/etc/subuid ids:/etc/subgid passwd:/etc/passwd; do mount --bind "${pair%%:*}" "${pair#*:}" || exit 99; done
            cd "$HOME" && umount -l ../own || exit 99
            exec setpriv --reuid "$USER_ID" --regid "$USER_ID" --clear-groups -- sh -c "$0""#;
        // Where the build directory cannot be reached by others.
        let (binary, home) = (self.path("plyfs"), self.path("home"));
        if !binary.exists() {
            fs::copy(PLYFS, &binary).unwrap();
            fs::create_dir_all(&home).unwrap();
            std::os::unix::fs::chown(&home, Some(USER), Some(USER)).unwrap();
        }
        let mut command = self.command("unshare");
        command.args(["-m", "sh", "-c", SET_UP, script]).env("PLYFS", binary).env("HOME", home).env("USER_ID", USER.to_string());
        command.env("IDS", format!("{ids:?}")).env_remove("PLYFS_ROOT").env_remove("XDG_DATA_HOME").env_remove("XDG_RUNTIME_DIR");
        command
    }
}

/// Runs a script as the user.
pub(crate) fn user(lab: &Lab, ids: Ids, script: &str) -> Done {
    finish(&mut lab.as_user(ids, script))
}
