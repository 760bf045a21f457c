use plyfs_overlay::backend::{Tree, UpperTree};
use plyfs_overlay::{Name, NewNode, SetAttr, Union};
use plyfs_sys::stat::Time;

use crate::lab::{Layers, ROOT, ino, name, on_both, rename, write};

on_both! {
    a_time_of_birth_is_as_constant_as_the_number
    what_is_made_is_born_then
}

fn birth<T: UpperTree>(union: &Union<T>, path: &str) -> Time {
    union.birth(ino(union, path)).unwrap().expect("this filesystem keeps times of birth")
}

/// The time of birth of an object of the lower layer.
fn below<T: Tree>(tree: &T, path: &str) -> Time {
    let mut at = tree.root();
    for part in path.split('/') {
        at = tree.lookup(&at, &Name::new(part).unwrap()).unwrap().unwrap().0;
    }
    tree.stat(&at).unwrap().btime.unwrap()
}

fn a_time_of_birth_is_as_constant_as_the_number<L: Layers>() {
    let layers = L::new();
    let lower = layers.lower();
    let paths = ["a/f", "a/sub", "a", "h1", "b/h2"];
    let born = paths.map(|path| below(&lower, path));
    let union = layers.mount();
    assert_eq!(paths.map(|path| birth(&union, path)), born);
    write(&union, ino(&union, "a/f"), "new");
    write(&union, ino(&union, "b/h2"), "new");
    for path in ["a/sub", "a"] {
        union.setattr(&ROOT, ino(&union, path), None, &SetAttr { mode: Some(0o700), ..SetAttr::default() }).unwrap();
    }
    assert_eq!(paths.map(|path| birth(&union, path)), born, "copied up");
    drop(union);
    let union = layers.mount();
    assert_eq!(paths.map(|path| birth(&union, path)), born, "mounted again");
    rename(&union, "a/f", "b/moved");
    rename(&union, "a/sub", "b/sub");
    let moved = ["b/moved", "b/sub"];
    assert_eq!(moved.map(|path| birth(&union, path)), [born[0], born[1]], "renamed");
    drop(union);
    let union = layers.mount();
    assert_eq!(moved.map(|path| birth(&union, path)), [born[0], born[1]], "renamed and mounted again");
    assert_eq!(union.getattr(ino(&union, "b/sub")).unwrap().stat.btime, None, "the serving object's, which changes");
}

fn what_is_made_is_born_then<L: Layers>() {
    let layers = L::new();
    let union = layers.mount();
    let before = birth(&union, "a/f");
    union.make(&ROOT, ino(&union, "a"), &name("new"), NewNode::File, 0o644, 0).unwrap();
    let born = birth(&union, "a/new");
    assert!(born > before, "{born:?} {before:?}");
    let root = birth(&union, "a");
    assert!(root < born);
    rename(&union, "a/new", "b/new");
    drop(union);
    assert_eq!(birth(&layers.mount(), "b/new"), born);
}
