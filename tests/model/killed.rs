//! A server that is killed: from one of its calls on all fail, and what it leaves in its layers is mounted anew. Every call of an operation has its turn.

use std::sync::Arc;

use plyfs_overlay::backend::{Place, Tree as _, UpperTree as _};
use plyfs_overlay::{
    Behaviour, Caller, HandleId, Ino, Layer, LayerStack, MemFs, MemTree, Name, OpenFlags, RenameMode, Result, SetAttr, Union,
};
use plyfs_sys::stat::Kind;

use crate::fault::{Fault, Fuse};

const ROOT: Caller = Caller { uid: 0, gid: 0, pid: 0 };
const STRANGER: Caller = Caller { uid: 1000, gid: 1000, pid: 0 };
const READ: OpenFlags = OpenFlags { read: true, write: false, truncate: false, append: false, exec: false };
const WRITE: OpenFlags = OpenFlags { write: true, ..READ };

/// Layers that outlive their servers.
struct Layers {
    upper: MemTree,
    lower: MemTree,
    metacopy: bool,
}

impl Layers {
    /// With these files in the lower, mode 06777.
    fn new(metacopy: bool, files: &[&str]) -> Self {
        let fs = MemFs::new(7);
        let layers = Self { upper: fs.tree(), lower: fs.tree(), metacopy };
        for file in files {
            let (_, opened) = layers.lower.create(Place { dir: &layers.lower.root(), name: &name(file) }, 0o6777).unwrap();
            layers.lower.write(&opened, file.as_bytes(), 0).unwrap();
        }
        layers
    }

    fn behaviour(&self) -> Behaviour {
        Behaviour { metacopy: self.metacopy, ..Behaviour::default() }
    }

    fn union(&self) -> Union<MemTree> {
        let lowers = [Layer::trusted(self.lower.clone())].into();
        Union::new(LayerStack { upper: Some(Layer::trusted(self.upper.clone())), lowers }, self.behaviour()).unwrap()
    }

    fn behind(&self, fuse: &Arc<Fuse>) -> Union<Fault> {
        let behind = |tree: &MemTree| Layer::trusted(Fault { tree: tree.clone(), fuse: fuse.clone() });
        let lowers = [behind(&self.lower)].into();
        Union::new(LayerStack { upper: Some(behind(&self.upper)), lowers }, self.behaviour()).unwrap()
    }
}

/// Does `act` on what `prepare` made, killed at each of its calls; then `check` looks at what is left.
fn killed_anywhere<P>(
    layers: impl Fn() -> Layers,
    prepare: impl Fn(&Union<Fault>) -> P,
    act: impl Fn(&Union<Fault>, P) -> Result<()>,
    check: impl Fn(&Union<MemTree>, &str),
) {
    for calls in 0.. {
        let (layers, fuse) = (layers(), Arc::new(Fuse::default()));
        let union = layers.behind(&fuse);
        let prepared = prepare(&union);
        fuse.kill_after(calls);
        let done = act(&union, prepared);
        let killed = !fuse.disarm().is_empty();
        drop(union);
        check(&layers.union(), &format!("killed at call {calls}, answered {done:?}"));
        if !killed {
            done.unwrap();
            assert!(calls > 0);
            return;
        }
    }
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn ino(union: &Union<impl plyfs_overlay::backend::UpperTree>, text: &str) -> Ino {
    union.lookup(Ino::ROOT, &name(text)).unwrap().unwrap().node
}

fn content(union: &Union<MemTree>, text: &str) -> String {
    let handle = union.open(&ROOT, ino(union, text), READ).unwrap();
    let mut data = vec![0; 64];
    let got = union.read(handle, 0, &mut data).unwrap();
    union.release(handle);
    data[..got].escape_ascii().to_string()
}

fn chmod(union: &Union<Fault>, text: &str, mode: u32) {
    union.setattr(&ROOT, ino(union, text), None, &SetAttr { mode: Some(mode), ..SetAttr::default() }).unwrap();
}

#[test]
fn setuid_is_never_on_the_bytes_of_a_stranger() {
    type Act = fn(&Union<Fault>, Ino, [HandleId; 2]) -> Result<()>;
    type Unopened = fn(&Union<Fault>, Ino) -> Result<()>;
    let open: &[(&str, Act)] = &[
        ("write", |union, _, [to, _]| union.write(&STRANGER, to, 0, b"X", true).map(drop)),
        ("ftruncate", |union, ino, [to, _]| {
            union.setattr(&STRANGER, ino, Some(to), &SetAttr { size: Some(2), ..SetAttr::default() }).map(drop)
        }),
        ("fallocate", |union, _, [to, _]| union.fallocate(&STRANGER, to, 0, 0, 10)),
        ("copy_file_range", |union, _, [to, from]| union.copy_file_range(&STRANGER, from, 0, to, 0, 4).map(drop)),
    ];
    let unopened: &[(&str, Unopened)] = &[
        ("truncate", |union, ino| union.setattr(&STRANGER, ino, None, &SetAttr { size: Some(2), ..SetAttr::default() }).map(drop)),
        ("truncate to nothing", |union, ino| {
            union.setattr(&STRANGER, ino, None, &SetAttr { size: Some(0), ..SetAttr::default() }).map(drop)
        }),
        ("O_TRUNC", |union, ino| union.open(&STRANGER, ino, OpenFlags { truncate: true, ..WRITE }).map(drop)),
    ];
    let kept = |what: &str, union: &Union<MemTree>, when: &str| {
        let attr = union.lookup(Ino::ROOT, &name("file")).unwrap().unwrap();
        if content(union, "file") != "file" {
            assert_eq!(attr.stat.mode, 0o777, "{what}: {when}");
        }
        assert!([0o6777, 0o777].contains(&attr.stat.mode), "{what}: {:o}, {when}", attr.stat.mode);
    };
    for metacopy in [false, true] {
        let layers = || Layers::new(metacopy, &["file", "from"]);
        for (what, act) in open {
            let prepare = |union: &Union<Fault>| {
                let file = ino(union, "file");
                (file, [(file, WRITE), (ino(union, "from"), READ)].map(|(ino, flags)| union.open(&ROOT, ino, flags).unwrap()))
            };
            killed_anywhere(layers, prepare, |union, (ino, handles)| act(union, ino, handles), |union, when| kept(what, union, when));
        }
        for (what, act) in unopened {
            // In the lower, a metacopy or a whole copy in the upper, and open.
            for state in 0..3 {
                let prepare = |union: &Union<Fault>| {
                    let file = ino(union, "file");
                    match state {
                        0 => {}
                        1 => chmod(union, "file", 0o6777),
                        _ => union.release(union.open(&ROOT, file, WRITE).unwrap()),
                    }
                    file
                };
                killed_anywhere(layers, prepare, act, |union, when| kept(what, union, when));
            }
        }
    }
}

#[test]
fn what_a_rename_replaces_has_its_own_bytes_wherever_it_lies() {
    for (metacopy, copied_up) in [(false, true), (true, false), (true, true)] {
        killed_anywhere(
            || Layers::new(metacopy, &["file", "other"]),
            |union| {
                if copied_up {
                    chmod(union, "other", 0o600);
                }
            },
            |union, ()| {
                union.rename(Ino::ROOT, &name("file"), Ino::ROOT, &name("other"), RenameMode::Whiteout { caller: ROOT, replace: true })
            },
            |union, when| {
                let old = union.lookup(Ino::ROOT, &name("file")).unwrap_or_else(|error| panic!("{error}: {when}"));
                let moved = content(union, "other") == "file";
                match old.map(|attr| attr.stat.kind) {
                    Some(Kind::Char) => assert!(moved, "{when}"),
                    Some(_) => assert_eq!(content(union, "file"), if moved { "other" } else { "file" }, "{when}"),
                    None => assert!(moved, "{when}"),
                }
            },
        );
    }
}
