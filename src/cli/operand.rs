//! What an operand means: the one table for every verb that takes a mount, a container or an image.
//!
//! The order is docker's, with mounts before it: a mountpoint or a path with a slash; a container by id, name or prefix; an image by name or
//! id prefix. `--type` forces one. What could be two things is refused with both readings.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use clap::ValueEnum;

use super::fail::failure;

/// What an operand can be.
#[derive(Copy, Clone, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Type {
    /// The mountpoint of a union.
    Mount,
    /// A container.
    Container,
    /// An image.
    Image,
}

impl Type {
    /// The word for it.
    fn name(self) -> &'static str {
        match self {
            Type::Mount => "mount",
            Type::Container => "container",
            Type::Image => "image",
        }
    }
}

/// What there is by that name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    /// It is a mountpoint, seen from the current directory.
    pub(crate) mountpoint: bool,
    /// The full ids of the containers that it could mean.
    pub(crate) containers: Vec<String>,
    /// The full ids of the images that it could mean.
    pub(crate) images: Vec<String>,
}

/// Decides. `verb` is for the error.
pub(crate) fn resolve(verb: &str, operand: &OsStr, forced: Option<Type>, known: &Known) -> anyhow::Result<Type> {
    let shown = operand.display();
    let at = format!("{verb} {shown}");
    if operand.is_empty() {
        return Err(failure(verb, "the operand is empty", "give a mountpoint"));
    }
    if let Some(forced) = forced {
        return Ok(forced);
    }
    // A slash is in no name of a container and in many of images, but a path comes first: `--type image` for those.
    if operand.as_bytes().contains(&b'/') {
        return Ok(Type::Mount);
    }
    let several = |ids: &[String], what: Type| {
        let ids: Vec<&str> = ids.iter().map(|id| id.get(..12).unwrap_or(id)).collect();
        failure(&at, format_args!("several {}s begin so: {}", what.name(), ids.join(", ")), "give more of the id")
    };
    let mut readings = Vec::new();
    if known.mountpoint {
        readings.push((Type::Mount, format!("the mountpoint ./{shown}")));
    }
    for (what, ids) in [(Type::Container, &known.containers), (Type::Image, &known.images)] {
        match ids.as_slice() {
            [] => {}
            [id] => readings.push((what, format!("the {} {}", what.name(), id.get(..12).unwrap_or(id)))),
            ids if readings.is_empty() => return Err(several(ids, what)),
            ids => readings.push((what, format!("one of {} {}s", ids.len(), what.name()))),
        }
    }
    match readings.as_slice() {
        [(what, _)] => Ok(*what),
        [] => Err(failure(
            &at,
            "no such mountpoint, and containers and images come with a later version",
            format_args!("write a mountpoint with a slash in it, as ./{shown}"),
        )),
        several => {
            let all: Vec<&str> = several.iter().map(|(_, reading)| reading.as_str()).collect();
            let types: Vec<String> = several.iter().map(|(what, _)| format!("--type {}", what.name())).collect();
            Err(failure(&at, format_args!("it means {}", all.join(" and ")), format_args!("say {}", types.join(" or "))))
        }
    }
}

/// Refuses what no version so far has.
pub(crate) fn only_mounts(verb: &str, operand: &OsStr, found: Type) -> anyhow::Result<()> {
    match found {
        Type::Mount => Ok(()),
        other => Err(failure(
            format_args!("{verb} {}", operand.display()),
            format_args!("{}s come with a later version", other.name()),
            "give a mountpoint",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operands_resolve_by_the_table() {
        let ids = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        let (none, one, two) = (ids(&[]), ids(&["0123456789abcdef"]), ids(&["01aaaaaaaaaaaaaa", "01bbbbbbbbbbbbbb"]));
        let row = |operand: &str, forced, mountpoint, containers: &[String], images: &[String]| {
            let known = Known { mountpoint, containers: containers.to_vec(), images: images.to_vec() };
            resolve("diff", OsStr::new(operand), forced, &known).map_err(|error| error.to_string())
        };
        assert_eq!(row("/m", None, false, &none, &none), Ok(Type::Mount));
        assert_eq!(row("a/b", None, false, &one, &one), Ok(Type::Mount));
        assert_eq!(row("m", None, true, &none, &none), Ok(Type::Mount));
        assert_eq!(row("m", None, false, &one, &none), Ok(Type::Container));
        assert_eq!(row("m", None, false, &none, &one), Ok(Type::Image));
        assert_eq!(row("m", Some(Type::Image), true, &one, &none), Ok(Type::Image));
        assert_eq!(
            row("m", None, true, &one, &none),
            Err("diff m: it means the mountpoint ./m and the container 0123456789ab; say --type mount or --type container".into())
        );
        assert_eq!(
            row("m", None, false, &one, &one),
            Err("diff m: it means the container 0123456789ab and the image 0123456789ab; say --type container or --type image".into())
        );
        assert_eq!(
            row("01", None, false, &two, &none),
            Err("diff 01: several containers begin so: 01aaaaaaaaaa, 01bbbbbbbbbb; give more of the id".into())
        );
        assert!(row("m", None, false, &none, &none).unwrap_err().ends_with("; write a mountpoint with a slash in it, as ./m"));
        assert_eq!(row("", None, false, &none, &none), Err("diff: the operand is empty; give a mountpoint".into()));
    }

    #[test]
    fn what_comes_later_is_refused_by_name() {
        for (what, name) in [(Type::Container, "containers"), (Type::Image, "images")] {
            let error = only_mounts("diff", OsStr::new("x"), what).unwrap_err().to_string();
            assert_eq!(error, format!("diff x: {name} come with a later version; give a mountpoint"));
        }
        only_mounts("diff", OsStr::new("x"), Type::Mount).unwrap();
    }
}
