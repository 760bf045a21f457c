//! The mount beside a plain directory on the same filesystem: the same is done to both, and both answer and show the same.

use std::fs;
use std::path::{Path, PathBuf};

use crate::lab::{Lab, python, tree};

/// Prepares a plain directory, and mounts its likeness twice: as the lower directory `low` and as the upper directory `up`.
pub(crate) fn prepared(lab: &mut Lab, prepare: impl Fn(&Path)) {
    for dir in [lab.plain(""), lab.lower("low"), lab.upper("up")] {
        fs::create_dir_all(&dir).unwrap();
        prepare(&dir);
    }
    lab.mount();
    assert_eq!(tree(&lab.mnt("low")), tree(&lab.plain("")));
    assert_eq!(tree(&lab.mnt("up")), tree(&lab.plain("")));
}

/// The union's two directories.
pub(crate) fn likenesses(lab: &Lab) -> [PathBuf; 2] {
    ["low", "up"].map(|dir| lab.mnt(dir))
}

/// What the programs of [`answers`] begin with.
const PRELUDE: &str = r#"
import ctypes, errno, fcntl, hashlib, mmap, os, signal, stat, struct, subprocess, sys, time
libc = ctypes.CDLL(None, use_errno=True)
def raw(function, *arguments):
    "A function of libc: its result, or an OSError."
    result = getattr(libc, function)(*arguments)
    if result < 0: raise OSError(ctypes.get_errno(), function)
    return result
def say(what, how):
    "Prints what something answers: its result or errno."
    try: print(what, how(), flush=True)
    except OSError as error: print(what, errno.errorcode[error.errno], flush=True)
RDONLY, WRONLY, RDWR, CREAT, APPEND = os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_APPEND
"#;

/// Runs a Python program in the plain directory and in the union's two, which must print the same; what that is.
pub(crate) fn answers(lab: &Lab, program: &str) -> String {
    let program = &format!("{PRELUDE}{program}");
    let plain = python(&lab.plain(""), program);
    for dir in likenesses(lab) {
        let found = python(&dir, program);
        let differ: Vec<_> = plain.lines().zip(found.lines()).filter(|(plain, found)| plain != found).collect();
        assert!(found == plain, "{}: plain, and here: {differ:#?}", dir.display());
    }
    plain
}

/// The plain directory and the union's two show the same, also after a remount.
pub(crate) fn same(lab: &mut Lab) {
    let plain = tree(&lab.plain(""));
    for _ in 0..2 {
        for dir in likenesses(lab) {
            let found = tree(&dir);
            let differ: Vec<_> = plain.iter().zip(&found).filter(|(plain, found)| plain != found).collect();
            assert!(found == plain, "{}: plain, and here: {differ:#?}, {} and {} objects", dir.display(), plain.len(), found.len());
        }
        lab.remount();
    }
    lab.unmount();
}
