//! Bytes that are text as a rule, in JSON and on the terminal: paths, arguments.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Bytes; in JSON a string where they are UTF-8, else `{"hex": "..."}`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "Form", into = "Form")]
pub(crate) struct Text(Vec<u8>);

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Form {
    Text(String),
    Bytes { hex: Hex },
}

/// Two hexadecimal digits a byte.
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
struct Hex(Vec<u8>);

impl TryFrom<String> for Hex {
    type Error = &'static str;

    fn try_from(digits: String) -> Result<Self, Self::Error> {
        let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let pair = |pair: &[u8]| match pair {
            [high, low] => Some(digit(high)? << 4 | digit(low)?),
            _ => None,
        };
        digits.as_bytes().chunks(2).map(pair).collect::<Option<Vec<u8>>>().map(Hex).ok_or("not pairs of hexadecimal digits")
    }
}

impl From<Hex> for String {
    fn from(Hex(bytes): Hex) -> Self {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl From<Form> for Text {
    fn from(form: Form) -> Self {
        match form {
            Form::Text(text) => Self(text.into_bytes()),
            Form::Bytes { hex: Hex(bytes) } => Self(bytes),
        }
    }
}

impl From<Text> for Form {
    fn from(Text(bytes): Text) -> Self {
        String::from_utf8(bytes).map_or_else(|error| Self::Bytes { hex: Hex(error.into_bytes()) }, Self::Text)
    }
}

impl Text {
    /// The bytes.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// They as a path.
    pub(crate) fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }
}

impl From<&Path> for Text {
    fn from(path: &Path) -> Self {
        Self(path.as_os_str().as_bytes().to_vec())
    }
}

impl From<&[u8]> for Text {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }
}

impl From<OsString> for Text {
    fn from(text: OsString) -> Self {
        Self(text.into_vec())
    }
}

impl From<Text> for PathBuf {
    fn from(text: Text) -> Self {
        OsString::from_vec(text.0).into()
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(OsStr::from_bytes(&self.0), f)
    }
}

/// A command as one line that a shell would take.
pub(crate) fn command_line(words: &[Text]) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"_-./:=,+@%^".contains(byte);
    let quoted = |word: &Text| {
        let text = word.to_string();
        if !text.is_empty() && word.as_bytes().iter().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
    };
    words.iter().map(quoted).collect::<Vec<_>>().join(" ")
}

/// At most `width` characters, the last one an ellipsis where some are missing.
pub(crate) fn shortened(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['\u{2026}']).collect()
}

/// How long ago, in docker's words.
pub(crate) fn ago(seconds: u64) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    // Docker rounds hours, and nothing else.
    let hours = (seconds + HOUR / 2) / HOUR;
    let age = match seconds {
        0 => "Less than a second".to_owned(),
        1 => "1 second".to_owned(),
        2..MINUTE => format!("{seconds} seconds"),
        MINUTE..120 => "About a minute".to_owned(),
        120..HOUR => format!("{} minutes", seconds / MINUTE),
        _ if hours == 1 => "About an hour".to_owned(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        _ if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        _ if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", seconds / DAY / 365),
    };
    format!("{age} ago")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_keeps_all_bytes() {
        for (bytes, json) in [(&b"/a\nb"[..], r#""/a\nb""#), (b"/\xff\x0a", r#"{"hex":"2fff0a"}"#), (b"", r#""""#)] {
            let text = Text::from(bytes);
            assert_eq!(serde_json::to_string(&text).unwrap(), json);
            assert_eq!(serde_json::from_str::<Text>(json).unwrap(), text);
        }
        for bad in [r#"{"hex":"2"}"#, r#"{"hex":"zz"}"#, "1"] {
            assert!(serde_json::from_str::<Text>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn commands_are_quoted_where_a_shell_needs_it() {
        let words = ["sh", "-c", "echo 'a' > b", ""].map(|word| Text::from(word.as_bytes()));
        assert_eq!(command_line(&words), r"sh -c 'echo '\''a'\'' > b' ''");
    }

    #[test]
    fn ages_are_dockers() {
        for (seconds, age) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (119, "About a minute"),
            (120, "2 minutes"),
            (3599, "59 minutes"),
            (3600, "About an hour"),
            (7200, "2 hours"),
            (47 * 3600, "47 hours"),
            (48 * 3600, "2 days"),
            (13 * 86400, "13 days"),
            (14 * 86400, "2 weeks"),
            (59 * 86400, "8 weeks"),
            (60 * 86400, "2 months"),
            (729 * 86400, "24 months"),
            (730 * 86400, "2 years"),
        ] {
            assert_eq!(ago(seconds), format!("{age} ago"), "{seconds}");
        }
    }

    #[test]
    fn long_text_is_cut_with_an_ellipsis() {
        assert_eq!(shortened("abcd", 4), "abcd");
        assert_eq!(shortened("abcde", 4), "abc\u{2026}");
    }
}
