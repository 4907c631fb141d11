//! Text in YAML that PyYAML's `safe_load` reads as a value: on one line, in the flow style.
//!
//! All of it is ASCII, as what `safe_dump` writes is: the character set of a database may have no
//! more.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;

use super::document::{Document, Id, Kind, Node};
use super::resolve;

/// The most bytes of a scalar that is written as a key without `?`. An escape makes up to four
/// characters of a byte, and PyYAML reads such a key within 1,024 characters.
const SIMPLE_KEY: usize = 200;

/// The text of a value.
pub(super) fn value(document: &Document<'_>, id: Id) -> String {
    let (text, repeated) = write(document, id, None);
    if repeated.is_empty() { text } else { write(document, id, Some(&repeated)).0 }
}

/// What is still to be written.
enum Step {
    Node(Id),
    Text(&'static str),
}

/// Writes a value, with anchors for the nodes of which it is known that they come again in it.
/// Gives the nodes that did come again, too.
fn write(document: &Document<'_>, id: Id, repeated: Option<&HashSet<Id>>) -> (String, HashSet<Id>) {
    let (mut text, mut names, mut found) = (String::new(), HashMap::new(), HashSet::new());
    let mut steps = vec![Step::Node(id)];
    while let Some(step) = steps.pop() {
        let id = match step {
            Step::Node(id) => id,
            Step::Text(piece) => {
                text.push_str(piece);
                continue;
            }
        };
        let node = &document.nodes[id];
        if repeated.map_or(node.is_shared, |repeated| repeated.contains(&id)) {
            let next = names.len() + 1;
            if let Some(name) = names.get(&id) {
                let _ = write!(text, "*{name}");
                found.insert(id);
                continue;
            }
            names.insert(id, next);
            if repeated.is_some() {
                let _ = write!(text, "&{next} ");
            }
        }
        if node.kind == Kind::Scalar {
            scalar(&mut text, node);
            continue;
        }
        let is_mapping = node.kind == Kind::Mapping;
        if !matches!(node.tag, "map" | "seq") {
            let _ = write!(text, "!!{} ", node.tag);
        }
        text.push(if is_mapping { '{' } else { '[' });
        steps.push(Step::Text(if is_mapping { "}" } else { "]" }));
        for (place, &item) in node.items.iter().enumerate().rev() {
            steps.push(Step::Node(item));
            let is_key = is_mapping && place % 2 == 0;
            let key = &document.nodes[item];
            if is_key && (key.kind != Kind::Scalar || key.text.len() > SIMPLE_KEY) {
                steps.push(Step::Text("? "));
            }
            if place > 0 {
                steps.push(Step::Text(if is_mapping && !is_key { ": " } else { ", " }));
            }
        }
    }
    (text, found)
}

fn scalar(text: &mut String, node: &Node<'_>) {
    let resolved = resolve::plain(&node.text);
    match node.tag {
        "null" => text.push_str("null"),
        "str" if resolved == "str" && is_word(&node.text) => text.push_str(&node.text),
        "str" => quoted(text, node),
        tag if tag == resolved && !node.text.contains('\t') => text.push_str(&node.text),
        tag => {
            let _ = write!(text, "!!{tag} ");
            quoted(text, node);
        }
    }
}

/// Whether a text may stand without quotes: words of letters and digits, and little else.
fn is_word(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && !text.ends_with(' ')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b" _./-".contains(&byte))
}

fn quoted(text: &mut String, node: &Node<'_>) {
    text.push('"');
    text.push_str(&node.spelled(|piece| {
        let mut escaped = String::with_capacity(piece.len());
        for character in piece.chars() {
            let _ = match (character, u32::from(character)) {
                ('"' | '\\', _) => write!(escaped, "\\{character}"),
                ('\n', _) => escaped.write_str("\\n"),
                (' '..='~', _) => escaped.write_char(character),
                (_, code @ 0..=0xFF) => write!(escaped, "\\x{code:02X}"),
                (_, code @ 0..=0xFFFF) => write!(escaped, "\\u{code:04X}"),
                (_, code) => write!(escaped, "\\U{code:08X}"),
            };
        }
        escaped
    }));
    text.push('"');
}

impl Node<'_> {
    /// The text of a scalar, with its lone surrogates as escapes and the rest as it is spelled.
    pub(super) fn spelled(&self, spell: impl Fn(&str) -> String) -> String {
        let mut spelled = String::new();
        let mut start = 0;
        for &(position, code) in &self.surrogates {
            spelled.push_str(&spell(&self.text[start..position]));
            let _ = write!(spelled, "\\u{code:04x}");
            start = position + char::REPLACEMENT_CHARACTER.len_utf8();
        }
        spelled + &spell(&self.text[start..])
    }
}
