//! Runs one case on several filesystems at once and holds them against each other after every step.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use plyfs_format::{ChangeKind, Dialect};
use plyfs_overlay::ChangeOptions;
use plyfs_overlay::backend::UpperTree;

use crate::case::{Case, LayerSpec, Op};
use crate::diff::diff;
use crate::divergences;
use crate::generate::pool;
use crate::reference::{Outcome, Reference, Reply};
use crate::system::System;
use crate::union::UnionSystem;
use crate::view::Identities;

/// A system and what is known of its numbers.
pub(crate) struct Watched<'a> {
    pub(crate) system: &'a mut dyn System,
    identities: Identities,
    lowers: &'a [LayerSpec],
}

impl<'a> Watched<'a> {
    pub(crate) fn new(system: &'a mut dyn System, lowers: &'a [LayerSpec]) -> Self {
        let identities = Identities { blind: divergences::numbers_over_no_handles(system.name()), ..Identities::default() };
        Self { system, identities, lowers }
    }

    /// Numbers may be others from here on.
    pub(crate) fn forget_numbers(&mut self) {
        self.identities = Identities { blind: self.identities.blind, ..Identities::default() };
    }

    /// Compares everything that shows with the reference.
    pub(crate) fn check(&mut self, reference: &Reference) -> Result<(), String> {
        let view = self.system.view(&pool()).map_err(|e| format!("{}: {e}", self.system.name()))?;
        let mut want = reference.view();
        if self.system.name().starts_with("plain") {
            // It has no layers to hide a name in.
            let hidden = reference.with_hidden_names();
            let objects = want.tree.values_mut().chain(want.slots.iter_mut().flatten());
            objects.filter(|object| hidden.contains(&object.id)).for_each(|object| object.nlink = None);
        }
        divergences::keeps_links_of_removed_lowers(self.system.name(), &mut want);
        self.identities.compare(&want, &view).map_err(|e| format!("{}: {e}", self.system.name()))
    }

    /// Runs an operation and compares the answer, then everything. `false`: a divergence that has a name parts this system from the others for good.
    pub(crate) fn step(&mut self, op: &Op, want: &Outcome, reference: &Reference) -> Result<bool, String> {
        let name = self.system.name();
        if divergences::copies_up_what_was_removed(name, op, reference) || divergences::stacks_no_index(name, op, reference) {
            return Ok(false);
        }
        let got = self.system.apply(op);
        let mut want = want.clone();
        if let Ok(Reply::Object(object)) = &mut want
            && name.starts_with("plain")
            && reference.with_hidden_names().contains(&object.id)
        {
            object.nlink = None;
        }
        if !same_outcome(&want, &got) {
            let parts = divergences::redirect_too_long(name, op, &got)
                || divergences::stray_marked_whiteouts(name, self.lowers, op, &got)
                || divergences::makes_no_whiteout_device(name, op, &got);
            if parts {
                return Ok(false);
            }
            return Err(format!("{}: the answer should be {want:?}\n  but is {got:?}", self.system.name()));
        }
        self.check(reference).map(|()| true)
    }
}

/// Runs a case on a union whose upper's dialect refuses some operations. `check`: what must hold of the layers after each step.
pub(crate) fn run_refusing<T: UpperTree>(
    case: &Case,
    dialect: Dialect,
    union: &mut UnionSystem<T>,
    check: &dyn Fn() -> Result<(), String>,
) -> Result<(), String> {
    let mut reference = Reference::of(&case.lowers);
    let mut before = reference.clone();
    let mut watched = Watched::new(union, &case.lowers);
    watched.check(&reference).map_err(|e| format!("at first: {e}"))?;
    for (step, op) in case.ops.iter().chain([&Op::Remount]).enumerate() {
        let mut after = reference.clone();
        let want = after.apply(op);
        let got = watched.system.apply(op);
        if same_outcome(&want, &got) {
            reference = after;
        } else if !divergences::dialect_refuses(dialect, op, &got) {
            return Err(at_step(step, op, &format!("the answer should be {want:?}\n  but is {got:?}")));
        }
        if *op == Op::Restack {
            before = reference.clone();
        }
        if divergences::dialect_forgets_numbers(dialect, watched.system.name()) && matches!(op, Op::Remount | Op::Restack) {
            watched.forget_numbers();
        }
        watched.check(&reference).map_err(|e| at_step(step, op, &e))?;
        check().map_err(|e| at_step(step, op, &e))?;
    }
    drop(watched);
    check_changes(union, &before, &reference)
}

pub(crate) fn same_outcome(want: &Outcome, got: &Outcome) -> bool {
    match (want, got) {
        (Ok(Reply::Object(want)), Ok(Reply::Object(got))) => {
            let mut got = got.clone();
            got.id = want.id;
            got.mtime = want.mtime;
            if want.nlink.is_none() {
                got.nlink = None;
            }
            // Attributes only.
            got.data.clone_from(&want.data);
            got.xattrs.clone_from(&want.xattrs);
            got == *want
        }
        (want, got) => want == got,
    }
}

/// `Union::changes` against the diff of both trees.
pub(crate) fn check_changes<T: UpperTree>(system: &UnionSystem<T>, before: &Reference, now: &Reference) -> Result<(), String> {
    [false, true].into_iter().try_for_each(|xattrs| check_changes_with(system, before, now, xattrs))
}

fn check_changes_with<T: UpperTree>(system: &UnionSystem<T>, before: &Reference, now: &Reference, xattrs: bool) -> Result<(), String> {
    let got = system.union().changes(&ChangeOptions { xattrs }).map_err(|e| format!("changes: {e}"))?;
    if !got.is_sorted() {
        return Err("changes are not sorted".to_owned());
    }
    let want = diff(before, now, xattrs);
    let got: BTreeMap<_, _> = got.into_iter().map(|change| (change.path, change.kind)).collect();
    if got == want {
        return Ok(());
    }
    let text = |changes: &BTreeMap<Vec<u8>, ChangeKind>| {
        changes.iter().map(|(path, kind)| format!("{} {}", kind.letter(), path.escape_ascii())).collect::<Vec<_>>().join(", ")
    };
    Err(format!("{}: changes should be {}\n  but are {}", system.name(), text(&want), text(&got)))
}

/// A failure in words, panics included.
pub(crate) fn caught(case: &Case, run: &dyn Fn(&Case) -> Result<(), String>) -> Option<String> {
    match catch_unwind(AssertUnwindSafe(|| run(case))) {
        Ok(Ok(())) => None,
        Ok(Err(failure)) => Some(failure),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Some(format!("panic: {}", text.unwrap_or_default()))
        }
    }
}

/// Says at which step of a case a failure came.
pub(crate) fn at_step(step: usize, op: &Op, failure: &str) -> String {
    format!("after step {} ({op}): {failure}", step + 1)
}
