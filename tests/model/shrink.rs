//! Makes a failing case small: as long as something can be left out and it still fails, it is left out.

use crate::case::{Case, Entry, Op, What};

/// The smallest case that was found, and how it fails.
pub(crate) fn shrink(case: Case, failure: String, fails: &mut dyn FnMut(&Case) -> Option<String>) -> (Case, String) {
    let mut best = (case, failure);
    // Bounded: a case that takes a mount is slow.
    let mut tries = 3000;
    loop {
        let smaller = candidates(&best.0).into_iter().find_map(|candidate| {
            tries -= 1;
            if tries < 0 {
                return None;
            }
            fails(&candidate).map(|failure| (candidate, failure))
        });
        match smaller {
            Some(smaller) => best = smaller,
            None => return best,
        }
    }
}

fn candidates(case: &Case) -> Vec<Case> {
    let mut all = Vec::new();
    let mut chunk = case.ops.len();
    while chunk > 0 {
        for start in (0..case.ops.len()).rev().step_by(chunk) {
            let mut smaller = case.clone();
            let end = (start + chunk).min(case.ops.len());
            smaller.ops.drain(start..end);
            all.push(smaller);
        }
        chunk /= 2;
    }
    for layer in 0..case.lowers.len() {
        let mut smaller = case.clone();
        smaller.lowers.remove(layer);
        all.push(smaller);
        for path in case.lowers[layer].entries.keys() {
            let mut smaller = case.clone();
            smaller.lowers[layer]
                .entries
                .retain(|other, entry| !other.starts_with(path) && !matches!(&entry.what, What::Hard(of) if of.starts_with(path)));
            all.push(smaller);
        }
        for (path, entry) in &case.lowers[layer].entries {
            let plain = match &entry.what {
                What::Dir { .. } => What::Dir { opaque: false },
                What::File(data) if !data.is_empty() => What::File(b"1".to_vec()),
                What::MarkedWhiteout => What::Whiteout,
                other => other.clone(),
            };
            for simple in [
                Entry::new(plain.clone()),
                Entry { what: plain, ..entry.clone() },
                Entry { what: entry.what.clone(), ..Entry::new(entry.what.clone()) },
            ] {
                if simple != *entry && !matches!(entry.what, What::Hard(_)) {
                    let mut smaller = case.clone();
                    smaller.lowers[layer].entries.insert(path.clone(), simple);
                    all.push(smaller);
                }
            }
        }
    }
    for (keep, devices, metacopy) in
        [(false, case.devices, case.metacopy), (case.keep, false, case.metacopy), (case.keep, case.devices, false)]
    {
        if (keep, devices, metacopy) != (case.keep, case.devices, case.metacopy) {
            all.push(Case { keep, devices, metacopy, ..case.clone() });
        }
    }
    for (index, op) in case.ops.iter().enumerate() {
        let simple = match op.clone() {
            Op::Create { at, mode, excl, trunc, slot } if (excl, trunc) != (false, false) || mode != 0o644 => {
                vec![
                    Op::Create { at: at.clone(), mode: 0o644, excl: false, trunc: false, slot },
                    Op::Create { at, mode: 0o644, excl, trunc, slot },
                ]
            }
            Op::Mkdir { at, mode } if mode != 0o755 => vec![Op::Mkdir { at, mode: 0o755 }],
            Op::Write { slot, offset, data } if data.len() > 1 => vec![Op::Write { slot, offset, data: b"1".to_vec() }],
            Op::WriteAt { at, data, .. } | Op::Append { at, data } if data.len() > 1 => vec![Op::Append { at, data: b"1".to_vec() }],
            _ => Vec::new(),
        };
        for op in simple {
            let mut smaller = case.clone();
            smaller.ops[index] = op;
            all.push(smaller);
        }
    }
    all
}
