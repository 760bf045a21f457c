//! Micro benches of the union over layers in memory: what the union itself costs, without a kernel, a disk or a transport.
#![allow(clippy::expect_used, reason = "a benchmark that cannot be set up, or whose operation fails, has nothing to measure")]

use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};
use plyfs_overlay::backend::{Place, Tree, UpperTree};
use plyfs_overlay::{Attr, Behaviour, Caller, ChangeOptions, Ino, Layer, LayerStack, MemFs, MemTree, Name, OpenFlags, RenameMode, Union};

const ROOT_USER: Caller = Caller { uid: 0, gid: 0, pid: 1 };
const SIZES: [usize; 3] = [1, 16, 128];

fn main() {
    let mut criterion =
        Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2)).configure_from_args();
    look_ups(&mut criterion);
    reading(&mut criterion);
    namespace(&mut criterion);
    copy_up(&mut criterion);
    changes(&mut criterion);
    criterion.final_summary();
}

fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

type Node = <MemTree as Tree>::Node;

fn file(tree: &MemTree, dir: &Node, called: &str, content: &[u8]) {
    let (_, file) = tree.create(Place { dir, name: &name(called) }, 0o644).expect("create");
    tree.write(&file, content, 0).expect("write");
}

fn dir(tree: &MemTree, parent: &Node, called: &str) -> Node {
    tree.mkdir(Place { dir: parent, name: &name(called) }, 0o755).expect("mkdir")
}

/// A writable union: an empty upper over these, topmost first.
fn writable(fs: &std::sync::Arc<MemFs>, lowers: Vec<MemTree>) -> Union<MemTree> {
    let lowers = lowers.into_iter().map(Layer::trusted).collect();
    let stack = LayerStack { upper: Some(Layer::trusted(fs.tree())), lowers };
    Union::new(stack, Behaviour { own_ids: Some((0, 0)), ..Behaviour::default() }).expect("a union")
}

fn found(union: &Union<MemTree>, parent: Ino, called: &Name) -> Attr {
    union.lookup(parent, called).expect("look-up").expect("there")
}

/// A directory that is in all of N lowers, with a file in the topmost and one in the undermost of them.
fn look_ups(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("lookup");
    for lowers in SIZES {
        let fs = MemFs::new(7);
        let trees: Vec<_> = (0..lowers).map(|_| fs.tree()).collect();
        for (number, tree) in trees.iter().enumerate() {
            let d = dir(tree, &tree.root(), "d");
            if number == 0 {
                file(tree, &d, "top", b"x");
            }
            if number + 1 == lowers {
                file(tree, &d, "bottom", b"x");
            }
        }
        let union = writable(&fs, trees);
        let parent = found(&union, Ino::ROOT, &name("d")).node;
        for (what, called) in [("hit-in-topmost", "top"), ("hit-in-undermost", "bottom")] {
            let called = name(called);
            // Each round makes the inode and lets go of it: the first look-up of a name.
            group.bench_function(BenchmarkId::new(what, lowers), |bencher| {
                bencher.iter(|| {
                    let attr = found(&union, parent, black_box(&called));
                    union.forget(attr.node, 1);
                });
            });
        }
        let known = name("bottom");
        let held = found(&union, parent, &known);
        group.bench_function(BenchmarkId::new("hit-again", lowers), |bencher| {
            bencher.iter(|| {
                let attr = found(&union, parent, black_box(&known));
                union.forget(attr.node, 1);
            });
        });
        union.forget(held.node, 1);
        let missing = name("missing");
        group.bench_function(BenchmarkId::new("miss", lowers), |bencher| {
            bencher.iter(|| union.lookup(parent, black_box(&missing)).expect("look-up").is_none());
        });
    }
    group.finish();
}

fn reading(criterion: &mut Criterion) {
    const ENTRIES: u32 = 10_000;
    let fs = MemFs::new(7);
    let trees = [fs.tree(), fs.tree()];
    for (tree, half) in trees.iter().zip([0..ENTRIES / 2, ENTRIES / 2..ENTRIES]) {
        let d = dir(tree, &tree.root(), "d");
        half.for_each(|number| file(tree, &d, &format!("file-{number:05}"), b""));
    }
    let union = writable(&fs, trees.into());
    let d = found(&union, Ino::ROOT, &name("d")).node;
    let one = found(&union, d, &name("file-00007")).node;
    criterion.bench_function("getattr", |bencher| bencher.iter(|| union.getattr(black_box(one)).expect("getattr")));
    let mut group = criterion.benchmark_group("readdir");
    group.throughput(Throughput::Elements(ENTRIES.into()));
    group.bench_function("10k-in-2-lowers", |bencher| {
        bencher.iter(|| {
            let handle = union.opendir(d).expect("opendir");
            let mut count = 0_u32;
            union
                .readdir(handle, 0, &mut |entry| {
                    black_box(entry.name);
                    count += 1;
                    true
                })
                .expect("readdir");
            union.release(handle);
            assert_eq!(count, ENTRIES + 2);
        });
    });
    group.finish();
}

/// In a directory of the upper, beside 1,000 other files.
fn namespace(criterion: &mut Criterion) {
    let fs = MemFs::new(7);
    let union = writable(&fs, vec![fs.tree()]);
    for number in 0..1_000 {
        made(&union, &name(&format!("other-{number}")));
    }
    let (a, b) = (name("a"), name("b"));
    criterion.bench_function("create+unlink", |bencher| {
        bencher.iter(|| {
            let attr = made(&union, &a);
            union.unlink(Ino::ROOT, &a).expect("unlink");
            union.forget(attr.node, 1);
        });
    });
    made(&union, &a);
    criterion.bench_function("rename-there-and-back", |bencher| {
        bencher.iter(|| {
            union.rename(Ino::ROOT, &a, Ino::ROOT, &b, RenameMode::Replace).expect("rename");
            union.rename(Ino::ROOT, &b, Ino::ROOT, &a, RenameMode::Replace).expect("rename back");
        });
    });
}

fn made(union: &Union<MemTree>, called: &Name) -> Attr {
    let flags = OpenFlags { read: true, write: true, ..OpenFlags::default() };
    let (attr, handle) = union.create(&ROOT_USER, Ino::ROOT, called, 0o644, 0o022, true, flags).expect("create");
    union.release(handle);
    attr
}

/// The first opening for writing of a lower file of 4 KiB, two directories down: they are copied up with it.
fn copy_up(criterion: &mut Criterion) {
    let content = vec![7; 4096];
    let prepare = || {
        let fs = MemFs::new(7);
        let tree = fs.tree();
        let d = dir(&tree, &dir(&tree, &tree.root(), "a"), "b");
        file(&tree, &d, "file", &content);
        let union = writable(&fs, vec![tree]);
        let a = found(&union, Ino::ROOT, &name("a")).node;
        let b = found(&union, a, &name("b")).node;
        let ino = found(&union, b, &name("file")).node;
        (union, ino)
    };
    criterion.bench_function("copy-up-4k", |bencher| {
        bencher.iter_batched(
            prepare,
            |(union, ino)| {
                let handle = union.open(&ROOT_USER, ino, OpenFlags { write: true, ..OpenFlags::default() }).expect("open");
                union.release(handle);
                union
            },
            BatchSize::SmallInput,
        );
    });
}

/// One changed file over a lower of 50,000 entries: the upper selects the candidates, so the lower's size must not show.
fn changes(criterion: &mut Criterion) {
    let fs = MemFs::new(7);
    let tree = fs.tree();
    for number in 0..2_500 {
        let d = dir(&tree, &tree.root(), &format!("dir-{number:04}"));
        (0..19).for_each(|number| file(&tree, &d, &format!("file-{number:02}"), b"content"));
    }
    let union = writable(&fs, vec![tree]);
    let parent = found(&union, Ino::ROOT, &name("dir-1234")).node;
    let ino = found(&union, parent, &name("file-07")).node;
    let handle = union.open(&ROOT_USER, ino, OpenFlags { write: true, ..OpenFlags::default() }).expect("open");
    union.write(&ROOT_USER, handle, 0, b"changed", false).expect("write");
    union.release(handle);
    criterion.bench_function("changes/1-of-50k", |bencher| {
        bencher.iter(|| union.changes(&ChangeOptions::default()).expect("changes").len());
    });
    assert_eq!(union.changes(&ChangeOptions::default()).expect("changes").len(), 2, "the file and its directory");
}
