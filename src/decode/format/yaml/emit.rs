//! Writes a value as the text of a column: in the flow style, on one line, and without quotes where
//! none are needed.
//!
//! The text is ASCII, like that of `safe_dump`, so that a database of any character set can store
//! it.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;

use super::document::{Document, Id, Kind, Node};
use super::resolve;

/// The most bytes of a scalar that becomes a key without `?`. PyYAML limits such keys to 1,024
/// characters, and a byte becomes an escape of at most four.
const SIMPLE_KEY: usize = 200;

/// Writes a value.
pub(super) fn value(document: &Document<'_>, id: Id) -> String {
    let (text, repeated) = write(document, id, None);
    if repeated.is_empty() { text } else { write(document, id, Some(&repeated)).0 }
}

/// What remains to be written.
enum Step {
    Node(Id),
    Text(&'static str),
}

/// Writes a value, and returns the nodes that occur in it more than once. They get their anchors
/// only if they are known beforehand, as `repeated`.
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

/// Whether a text consists of harmless characters, and can be written without quotes.
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
    /// The text of a scalar with escapes for lone surrogates. The rest is what `spell` makes of it.
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
