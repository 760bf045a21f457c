//! Tells code, literals and comments of a Rust file apart, as far as the rules of the house need it.
#![allow(clippy::indexing_slicing)]

use std::ops::Range;

/// A Rust file, taken apart.
pub(crate) struct Source {
    /// The text with comments and the insides of literals blanked, byte for byte as long as the text.
    code: Vec<u8>,
    /// Where string literals stand, prefix and quotes included.
    strings: Vec<Range<usize>>,
    text: Vec<u8>,
}

impl Source {
    /// Takes a file apart. Text that is no Rust gives nonsense, but ends.
    pub(crate) fn parse(text: &str) -> Self {
        let text = text.as_bytes().to_vec();
        let (mut code, mut strings) = (text.clone(), Vec::new());
        let mut at = 0;
        while at < text.len() {
            let rest = &text[at..];
            let (len, string) = if rest.starts_with(b"//") {
                (rest.iter().position(|&byte| byte == b'\n').unwrap_or(rest.len()), false)
            } else if rest.starts_with(b"/*") {
                (block_comment(rest), false)
            } else if let Some(len) = string_literal(rest) {
                (len, true)
            } else if rest[0] == b'\'' {
                (char_literal(rest), false)
            } else {
                // An identifier is taken whole, so that the `r` of `for"` does not begin a raw string.
                at += rest.iter().position(|&byte| !is_word(byte)).unwrap_or(rest.len()).max(1);
                continue;
            };
            let end = (at + len).min(text.len());
            if string {
                strings.push(at..end);
            }
            code[at..end].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
            at = end;
        }
        Self { code, strings, text }
    }

    /// The string literals as written, without those in items under `#[cfg(test)]`; and the line of each.
    pub(crate) fn strings_outside_tests(&self) -> impl Iterator<Item = (usize, &[u8])> {
        let tests = self.test_items();
        self.strings
            .iter()
            .filter(move |string| !tests.iter().any(|test| test.contains(&string.start)))
            .map(|string| (self.line(string.start), &self.text[string.clone()]))
    }

    /// The code, with items under `#[cfg(test)]` blanked too.
    pub(crate) fn code_outside_tests(&self) -> Vec<u8> {
        let mut code = self.code.clone();
        for test in self.test_items() {
            code[test].fill(b' ');
        }
        code
    }

    /// The line, from 1, on which `offset` lies.
    pub(crate) fn line(&self, offset: usize) -> usize {
        self.text[..offset].iter().filter(|&&byte| byte == b'\n').count() + 1
    }

    /// The offsets at which `word` stands in the code, not as part of a longer identifier.
    pub(crate) fn words<'a>(&'a self, word: &'a str) -> impl Iterator<Item = usize> + 'a {
        let word = word.as_bytes();
        (0..self.code.len()).filter(move |&at| {
            self.code[at..].starts_with(word)
                && !self.code.get(at + word.len()).is_some_and(|&byte| is_word(byte))
                && !at.checked_sub(1).is_some_and(|before| is_word(self.code[before]))
        })
    }

    /// The items under `#[cfg(test)]`, from the attribute to the closing brace or semicolon.
    fn test_items(&self) -> Vec<Range<usize>> {
        let attribute = b"#[cfg(test)]";
        let mut items = Vec::new();
        let mut at = 0;
        while at < self.code.len() {
            if !self.code[at..].starts_with(attribute) {
                at += 1;
                continue;
            }
            let (start, mut depth) = (at, 0_usize);
            at += attribute.len();
            while let Some(&byte) = self.code.get(at) {
                at += 1;
                match byte {
                    b'{' => depth += 1,
                    b'}' => depth = depth.saturating_sub(1),
                    _ => {}
                }
                if depth == 0 && matches!(byte, b'}' | b';') {
                    break;
                }
            }
            items.push(start..at);
        }
        items
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

/// The length of the block comment at the start; they nest.
fn block_comment(text: &[u8]) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < text.len() {
        match text.get(at..at + 2) {
            Some(b"/*") => (depth, at) = (depth + 1, at + 2),
            Some(b"*/") => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// The length of the string literal at the start, whatever its prefix; `None` when there is none.
fn string_literal(text: &[u8]) -> Option<usize> {
    let prefix = [&b"br"[..], b"cr", b"r", b"b", b"c", b""].into_iter().find(|prefix| {
        text.strip_prefix(*prefix).is_some_and(|rest| {
            let hashes = if prefix.ends_with(b"r") { rest.iter().take_while(|&&byte| byte == b'#').count() } else { 0 };
            rest.get(hashes) == Some(&b'"')
        })
    })?;
    let rest = &text[prefix.len()..];
    if prefix.ends_with(b"r") {
        let hashes = rest.iter().take_while(|&&byte| byte == b'#').count();
        let end = [&b"\""[..], &b"#".repeat(hashes)].concat();
        let body = &rest[hashes + 1..];
        let len = body.windows(end.len()).position(|window| window == end).map_or(body.len(), |at| at + end.len());
        return Some(prefix.len() + hashes + 1 + len);
    }
    let mut at = 1;
    while at < rest.len() && rest[at] != b'"' {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    Some(prefix.len() + at + 1)
}

/// The length of the character literal at the start, or 1 for the quote of a lifetime.
fn char_literal(text: &[u8]) -> usize {
    if text.get(1) == Some(&b'\\') {
        return text.iter().skip(3).position(|&byte| byte == b'\'').map_or(1, |at| at + 4);
    }
    let width = text.iter().skip(2).take_while(|&&byte| byte & 0xc0 == 0x80).count() + 1;
    if text.get(1 + width) == Some(&b'\'') { width + 2 } else { 1 }
}
