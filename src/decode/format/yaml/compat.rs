//! The differences between YAML as PyYAML 6.0.3 writes it and YAML 1.2 as the parser reads it.
//!
//! - The parser refuses the escape of a lone surrogate, such as `"\ud800"`, and joins a pair of them
//!   to one character. A `str` of Python can hold surrogates, and PyYAML keeps them as they are.
//! - The parser takes the colon in `*id001: 1` for a part of the name.
//!
//! Both are rewritten before the parser reads the text. This happens everywhere, because only the
//! parser knows where a quoted text begins, and is undone in the scalars.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::{Captures, Regex};

use crate::decode::DecodeError;

/// Replaces the backslash in the escape of a surrogate. Where this character was in the text before,
/// itself or as an escape, it is preceded by another one and `U`.
const MARK: char = '\u{FFFFE}';

/// Is inserted between the name of an alias and the colon.
const GAP: &str = " \t \t";

#[expect(clippy::expect_used, reason = "the pattern is a constant, and the tests compile it")]
static FOREIGN: LazyLock<Regex> = LazyLock::new(|| {
    let pattern = r"(?xs)\\u(?<surrogate>[dD][89a-fA-F][0-9a-fA-F]{2})
        |(?<mark>\\U000[fF]{4}[eE]|\x{FFFFE})
        |\\.
        |(?<alias>\*[0-9A-Za-z_-]+):(?<behind>[\ \t\r\n,\]}]|$)";
    Regex::new(pattern).expect("a valid pattern")
});

/// Rewrites a text for the parser.
pub(super) fn rewritten(text: &str) -> Result<Cow<'_, str>, DecodeError> {
    let rewritten = FOREIGN.replace_all(text, |found: &Captures<'_>| {
        if let Some(digits) = found.name("surrogate") {
            format!("{MARK}u{}", digits.as_str())
        } else if found.name("mark").is_some() {
            format!("{MARK}U{}", &found[0])
        } else if let Some(alias) = found.name("alias") {
            format!("{}{GAP}:{}", alias.as_str(), &found["behind"])
        } else {
            found[0].to_owned()
        }
    });
    match text.find(GAP) {
        Some(position) if rewritten.contains(&format!("{GAP}:")) => {
            Err(malformed("an unsupported sequence of spaces and tabs", position))
        }
        _ => Ok(rewritten),
    }
}

/// Gives the original text of a scalar. Each lone surrogate in it is replaced by U+FFFD, and
/// returned with its position.
pub(super) fn original(
    text: Cow<'_, str>,
    is_double_quoted: bool,
) -> (Cow<'_, str>, Vec<(usize, u16)>) {
    let mut surrogates = Vec::new();
    if !text.contains([MARK, '\t']) {
        return (text, surrogates);
    }
    let text = text.replace(&format!("{GAP}:"), ":");
    let mut pieces = text.split(MARK);
    let mut original = pieces.next().unwrap_or_default().to_owned();
    while let Some(piece) = pieces.next() {
        let code = piece.get(1..5).and_then(|digits| u16::from_str_radix(digits, 16).ok());
        match code {
            _ if piece == "U" => {
                original.push(MARK);
                original.push_str(pieces.next().unwrap_or_default());
            }
            Some(code) if is_double_quoted => {
                surrogates.push((original.len(), code));
                original.push(char::REPLACEMENT_CHARACTER);
                original.push_str(&piece[5..]);
            }
            _ if piece.starts_with('U') => original.push_str(&piece[1..]),
            _ => original.extend(["\\", piece]),
        }
    }
    (Cow::Owned(original), surrogates)
}

pub(super) fn malformed(problem: &'static str, position: usize) -> DecodeError {
    DecodeError::Malformed { format: "YAML", problem, position }
}
