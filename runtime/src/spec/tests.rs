#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::os::unix::ffi::OsStringExt;

use super::*;

fn spec() -> Spec {
    Spec::new(Root::Dir { path: HostPath::from("/"), read_only: true }, ["true"])
}

#[test]
fn any_bytes_survive_the_crossing() {
    let mut spec = spec();
    let odd = OsString::from_vec(b"a\xff\n\"\\ b".to_vec());
    spec.argv.push(odd.clone());
    spec.env.push((OsString::from("X"), odd.clone()));
    spec.mounts.push(MountSpec::Mask { target: InnerPath::from(b"/\xfe\xff".to_vec()) });
    let text = serde_json::to_vec(&spec).unwrap();
    assert_eq!(serde_json::from_slice::<Spec>(&text).unwrap(), spec);
}

#[test]
fn contradictions_are_refused_by_name() {
    type Change = fn(&mut Spec);
    let cases: [(&str, Change, &str); 9] = [
        ("no command", |spec| spec.argv.clear(), "empty"),
        ("empty command", |spec| spec.argv = vec![OsString::new()], "empty"),
        ("NUL", |spec| spec.argv.push(OsString::from("a\0b")), "NUL"),
        ("bad variable", |spec| spec.env.push(("A=B".into(), "c".into())), "A=B"),
        ("host name without uts", |spec| (spec.uts, spec.hostname) = (false, Some("h".into())), "uts"),
        ("long host name", |spec| spec.hostname = Some("h".repeat(65).into()), "64"),
        ("no such descriptor", |spec| spec.root = Root::Fd(FdIndex(1)), "descriptor 1 of 1"),
        (
            "descriptor twice",
            |spec| {
                spec.root = Root::Fd(FdIndex(0));
                spec.mounts.push(MountSpec::AttachFd { fd: FdIndex(0), target: InnerPath::from("/x") });
            },
            "twice",
        ),
        ("relative", |spec| spec.masked.push(InnerPath::from("x")), "\"x\""),
    ];
    for (name, change, word) in cases {
        let mut spec = spec();
        change(&mut spec);
        let error = spec.check(1).unwrap_err();
        assert!(error.to_string().contains(word), "{name}: {error}");
        assert_eq!(error.exit_code(), 125);
    }
    spec().check(0).unwrap();
}

#[test]
fn capabilities_by_name() {
    assert_eq!(Capabilities::only(["CAP_CHOWN", "kill"]).unwrap(), Capabilities::Only(1 | 1 << 5));
    assert!(Capabilities::only(["CAP_NOTHING"]).is_err());
    let Capabilities::Only(bits) = Capabilities::container() else { panic!() };
    assert_eq!(bits, 0xa804_25fb, "docker's set");
}
