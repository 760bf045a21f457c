//! The store of podman, buildah and CRI-O (containers/storage): which layers have whiteouts by file names.
//!
//! With a mount program that store unpacks layers with the whiteouts of AUFS, `.wh.NAME`, since an ordinary user can make no others. What a layer holds does not tell: of a
//! container such a name is one that its user chose. Its place does. A layer is `ID/diff` (or `ID/diff1` and on) beside a file `ID/link`, which holds the name of a symbolic link
//! in `l`, beside all layers, that leads back to it. Whatever made such a layer, an archive of an image cannot hold a plain file of such a name. A layer that was an upper
//! of plyfs, that of a container, has names as users chose them: its workdir `ID/work` says in which dialect it is written. And the store says in `.has-mount-program` whether it had one.

use std::fs;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use plyfs_format::Dialect;
use plyfs_overlay::recorded_dialect_of;

/// Names of links have 26 bytes.
const LONGEST: u64 = 64;

/// The dialect of a layer of such a store: that in which it was written as an upper, else that in which it was unpacked. `None`: not known from its place.
pub(crate) fn dialect_of(path: &Path) -> Option<Dialect> {
    // What cannot be looked at is opened next, with its error.
    let real = path.canonicalize().ok()?;
    let (layer, name) = real.parent().zip(real.file_name())?;
    let number = name.as_bytes().strip_prefix(b"diff");
    if !number.is_some_and(|number| number.iter().all(u8::is_ascii_digit)) {
        return None;
    }
    let had_mount_program = || fs::read(layer.with_file_name(".has-mount-program")).is_ok_and(|text| text.trim_ascii() == b"true");
    if !leads_back(layer).unwrap_or(false) || !had_mount_program() {
        return None;
    }
    let work = layer.join("work");
    match recorded_dialect_of(&work) {
        Ok(Some(written)) => Some(written),
        // The kernel's, with an index.
        _ if work.join("index").is_dir() => None,
        _ => Some(Dialect::Aufs),
    }
}

fn leads_back(layer: &Path) -> Option<bool> {
    let mut link = Vec::new();
    fs::File::open(layer.join("link")).ok()?.take(LONGEST).read_to_end(&mut link).ok()?;
    let plain = !link.is_empty() && link.iter().all(u8::is_ascii_alphanumeric);
    if !plain {
        return Some(false);
    }
    let link = layer.parent()?.join("l").join(PathBuf::from(std::ffi::OsString::from_vec(link)));
    let target = fs::read_link(link).ok()?;
    Some(target == Path::new("..").join(layer.file_name()?).join("diff"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_unpacked_layer(path: &Path) -> bool {
        dialect_of(path) == Some(Dialect::Aufs)
    }

    #[test]
    fn layers_of_a_store_are_known_by_their_place() {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("overlay");
        let layer = store.join("0123abcd");
        fs::create_dir_all(layer.join("diff")).unwrap();
        fs::create_dir_all(layer.join("diff1")).unwrap();
        fs::create_dir_all(layer.join("empty")).unwrap();
        fs::create_dir(store.join("l")).unwrap();
        assert!(!is_unpacked_layer(&layer.join("diff")), "no link");
        fs::write(layer.join("link"), "ABCDEFGHIJKLMNOPQRSTUVWXYZ").unwrap();
        assert!(!is_unpacked_layer(&layer.join("diff")), "the link is missing");
        let flag = store.join(".has-mount-program");
        fs::write(&flag, "true").unwrap();
        let link = store.join("l/ABCDEFGHIJKLMNOPQRSTUVWXYZ");
        std::os::unix::fs::symlink("../0123abcd/diff", &link).unwrap();
        for (path, unpacked) in [
            (layer.join("diff"), true),
            (layer.join("diff1"), true),
            (link.clone(), true),
            (layer.join("empty"), false),
            (layer.clone(), false),
            (store.join("l"), false),
            (store.join("none/diff"), false),
            (PathBuf::from("/"), false),
        ] {
            assert_eq!(is_unpacked_layer(&path), unpacked, "{}", path.display());
        }
        for text in ["false", ""] {
            fs::write(&flag, text).unwrap();
            assert!(!is_unpacked_layer(&link), "the kernel mounts it");
        }
        fs::write(&flag, "true").unwrap();
        fs::create_dir_all(layer.join("work/work")).unwrap();
        assert!(is_unpacked_layer(&link));
        fs::create_dir(layer.join("work/index")).unwrap();
        assert!(!is_unpacked_layer(&link), "it was an upper");
        for (word, dialect) in [("trusted", Dialect::Trusted), ("user", Dialect::User), ("aufs", Dialect::Aufs)] {
            fs::write(layer.join("work/dialect"), format!("{word}\n")).unwrap();
            assert_eq!(dialect_of(&link), Some(dialect), "it was an upper of plyfs");
        }
        fs::remove_file(layer.join("work/dialect")).unwrap();
        fs::remove_dir(layer.join("work/index")).unwrap();
        fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink("../other/diff", &link).unwrap();
        assert!(!is_unpacked_layer(&layer.join("diff")), "the link leads elsewhere");
        fs::write(layer.join("link"), "../../../etc").unwrap();
        assert!(!is_unpacked_layer(&layer.join("diff")));
    }
}
