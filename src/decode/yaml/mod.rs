//! The YAML body of Celery's `rpc://` results, which PyYAML's `safe_dump` wrote (`register_yaml` in
//! `kombu/serialization.py`, 5.7.0).
//!
//! A value stands in the body with another indentation, folded at other places and with other
//! anchors than in a document of its own. So the body is read, and what the columns hold is written
//! anew, as `safe_dump` would have written the value alone. Nothing is constructed: a number, a
//! time or base64 stays the text that it is. An alias stays an alias, so that a value is never
//! larger than the body makes it.
//!
//! No parser that is to be had as a library reads all that PyYAML writes: those of YAML 1.2 take
//! the colon behind an alias for a part of its name, and none has room for a lone surrogate.

mod document;
mod emit;
mod parse;
mod resolve;
mod scan;

use std::borrow::Cow;

use self::document::{Content, Document, Id, Node};
use self::resolve::Tag;
use self::scan::Scalar;
use crate::decode::event::{Event, EventPolicy, python_json};
use crate::decode::result_meta::{ResultMeta, Text, Value};
use crate::decode::{Context, DecodeError, Decoded};
use crate::task_result::TaskResult;

/// Reads the result in a body of the content type `application/x-yaml`.
pub(super) fn decode(body: &[u8], context: Context<'_>) -> Result<TaskResult, DecodeError> {
    let Context { message, limits } = context;
    let document = Document::read(text(body)?, limits)?;
    let root = Yaml { document: &document, id: Document::ROOT };
    let members = root.members().ok_or(malformed("expected a mapping", 0))?;
    if members.clone().any(|(key, _)| key.node().tag == Tag::Merge) {
        return Err(malformed("a merge among the members of a result", 0));
    }
    let result = ResultMeta::collect(named(members))?.into_result(message)?;
    document.check_room(limits)?;
    Ok(result)
}

/// Reads the events in a body of the content type `application/x-yaml`: one, or a list.
pub(super) fn decode_events(
    body: &[u8],
    policy: EventPolicy,
    context: Context<'_>,
) -> Result<Decoded, DecodeError> {
    let Context { message, limits } = context;
    let document = Document::read(text(body)?, limits)?;
    let root = Yaml { document: &document, id: Document::ROOT };
    let mut events = Decoded::default();
    let ids = match &root.node().content {
        Content::Sequence(ids) => ids.as_slice(),
        Content::Mapping(_) => &[Document::ROOT],
        Content::Scalar(_) => return Err(malformed("expected a mapping or a sequence", 0)),
    };
    if ids.len() > limits.events {
        return Err(DecodeError::TooManyEvents { limit: limits.events });
    }
    for &id in ids {
        events.push(match (Yaml { document: &document, id }).members() {
            Some(members) => Event::collect(named(members))?.into_result(message, policy),
            None => Err("it is not a mapping"),
        });
    }
    document.check_room(limits)?;
    Ok(events)
}

/// The text of a body that is YAML.
fn text(body: &[u8]) -> Result<&str, DecodeError> {
    let text = std::str::from_utf8(body)
        .map_err(|error| malformed("invalid UTF-8", error.valid_up_to()))?;
    match text.char_indices().find(|(_, character)| !is_printable(*character)) {
        Some((position, _)) => Err(malformed("a control character", position)),
        None => Ok(text),
    }
}

/// Whether a character may stand in a text in YAML (`Reader.check_printable` in `yaml/reader.py`,
/// 6.0.3).
fn is_printable(character: char) -> bool {
    matches!(character, '\t' | '\n' | '\r' | ' '..='~' | '\u{85}' | '\u{A0}'..)
        && !matches!(character, '\u{FFFE}' | '\u{FFFF}')
}

fn malformed(problem: &'static str, position: usize) -> DecodeError {
    DecodeError::Malformed { format: "YAML", problem, position }
}

/// A value in a document.
#[derive(Clone, Copy)]
struct Yaml<'doc> {
    document: &'doc Document<'doc>,
    id: Id,
}

impl<'doc> Yaml<'doc> {
    fn node(self) -> &'doc Node<'doc> {
        self.document.node(self.id)
    }

    fn scalar(self) -> Option<(Tag, &'doc Scalar<'doc>)> {
        let Node { tag, content, .. } = self.node();
        match content {
            Content::Scalar(scalar) => Some((*tag, scalar)),
            _ => None,
        }
    }

    /// The scalar, where the value is a text that there is room to copy.
    fn string(self) -> Option<&'doc Scalar<'doc>> {
        let (_, scalar) = self.scalar().filter(|(tag, _)| *tag == Tag::Str)?;
        self.document.take_room(scalar.text.len())?;
        Some(scalar)
    }

    /// The pairs of a mapping.
    fn members(self) -> Option<impl Iterator<Item = (Self, Self)> + Clone> {
        let Node { tag: Tag::Map, content: Content::Mapping(pairs), .. } = self.node() else {
            return None;
        };
        let document = self.document;
        Some(
            pairs.iter().map(move |&(key, value)| {
                (Self { document, id: key }, Self { document, id: value })
            }),
        )
    }
}

/// The members whose name is a text.
fn named<'doc>(
    members: impl Iterator<Item = (Yaml<'doc>, Yaml<'doc>)>,
) -> impl Iterator<Item = Result<(Cow<'doc, str>, Yaml<'doc>), DecodeError>> {
    members.filter_map(|(key, value)| match key.scalar()? {
        (Tag::Str, scalar) if scalar.surrogates.is_empty() => {
            Some(Ok((Cow::Borrowed(&*scalar.text), value)))
        }
        _ => None,
    })
}

impl<'doc> Value<'doc> for Yaml<'doc> {
    const CONTENT_TYPE: &'static str = "application/x-yaml";
    const CONTENT_ENCODING: &'static str = "utf-8";

    fn is_null(self) -> bool {
        self.node().tag == Tag::Null
    }

    fn text(self) -> Option<Text<'doc>> {
        let scalar = self.string()?;
        let is_lossy = !scalar.surrogates.is_empty();
        Some(Text { text: Cow::Borrowed(&scalar.text), is_lossy })
    }

    fn texts(self) -> Vec<Cow<'doc, str>> {
        let Content::Sequence(items) = &self.node().content else { return Vec::new() };
        let items = items.iter().map(|&id| Self { id, ..self });
        items.filter_map(|item| Some(item.text()?.text)).collect()
    }

    fn number(self) -> Option<f64> {
        let (_, scalar) = self.scalar().filter(|(tag, _)| matches!(tag, Tag::Int | Tag::Float))?;
        resolve::number(&scalar.text)
    }

    fn is_true(self) -> bool {
        self.scalar()
            .is_some_and(|(tag, scalar)| tag == Tag::Bool && resolve::is_true(&scalar.text))
    }

    fn json(self) -> Option<String> {
        let scalar = self.string()?;
        let mut json = String::from("\"");
        let mut start = 0;
        let end = (scalar.text.len(), None);
        let surrogates = scalar.surrogates.iter().map(|&(position, code)| (position, Some(code)));
        for (position, surrogate) in surrogates.chain([end]) {
            let piece = python_json(&scalar.text[start..position]);
            json.push_str(&piece[1..piece.len() - 1]);
            json.extend(surrogate.map(|code| format!("\\u{code:04x}")));
            start = position + char::REPLACEMENT_CHARACTER.len_utf8();
        }
        json.push('"');
        Some(json)
    }

    fn column(self) -> String {
        emit::value(self.document, self.id)
    }

    fn null_column() -> String {
        "null\n...\n".to_owned()
    }

    fn meta(children: Option<Self>) -> String {
        match children {
            Some(children) => emit::member(children.document, "children", children.id),
            None => "children: []\n".to_owned(),
        }
    }
}
