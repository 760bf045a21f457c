//! The grammar of options: commas, colons and backslashes.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// The options of a list: separated by commas that no backslash precedes and that are not in the quotes of a security context.
pub(super) fn split(list: &[u8]) -> Vec<&[u8]> {
    let mut options = Vec::new();
    let mut rest = list;
    while !rest.is_empty() {
        let end = option_end(rest);
        let (option, tail) = rest.split_at(end);
        if !option.is_empty() {
            options.push(option);
        }
        rest = tail.get(1..).unwrap_or_default();
    }
    options
}

fn option_end(list: &[u8]) -> usize {
    // mount(8) and podman write context="a,b"; in a path a quote is only a quote.
    let quoted = list
        .iter()
        .position(|&byte| byte == b'=')
        .is_some_and(|at| list.get(at + 1) == Some(&b'"') && list.get(..at).is_some_and(|name| name.ends_with(b"context")));
    let mut inside = false;
    let mut escaped = false;
    for (index, &byte) in list.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' if quoted => inside = !inside,
            b',' if !inside => return index,
            _ => {}
        }
    }
    list.len()
}

/// The parts of a value between separators that no backslash precedes, with their backslashes.
pub(super) fn split_at(value: &[u8], separator: u8) -> Vec<&[u8]> {
    let mut escaped = false;
    value
        .split(|&byte| {
            let literal = escaped;
            escaped = !literal && byte == b'\\';
            byte == separator && !literal
        })
        .collect()
}

/// A number without a sign, in decimal.
pub(super) fn number(value: &[u8]) -> Option<u32> {
    let digits = std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    digits.parse().ok()
}

pub(super) fn path_of(value: &[u8]) -> PathBuf {
    OsString::from_vec(unescape(value)).into()
}

/// Takes out the backslashes, as kernel overlayfs does: any byte may follow one. A last one stands for itself.
pub(super) fn unescape(value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len());
    let mut bytes = value.iter();
    while let Some(&byte) = bytes.next() {
        out.push(if byte == b'\\' { bytes.next().copied().unwrap_or(byte) } else { byte });
    }
    out
}

pub(super) fn escape(value: &OsStr, special: &[u8], out: &mut Vec<u8>) {
    for &byte in value.as_bytes() {
        if special.contains(&byte) {
            out.push(b'\\');
        }
        out.push(byte);
    }
}
