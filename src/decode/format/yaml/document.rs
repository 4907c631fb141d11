//! The parsed document: a tree of nodes in which an alias is the node that it refers to.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use granit_parser::{ErrorKind, Event, Parser, ScalarStyle, ScanError, Tag, options};

use super::compat::{self, malformed};
use super::resolve;
use crate::decode::{DecodeError, WireLimits};

/// The index of a node in its document.
pub(super) type Id = usize;

/// A document.
#[derive(Default)]
pub(super) struct Document<'text> {
    /// The nodes in the order in which they begin.
    pub(super) nodes: Vec<Node<'text>>,
    /// The nodes with anchors, by the parser's number of the anchor.
    anchors: HashMap<usize, Id>,
    /// The collections that have not ended, each with the number of its values so far.
    open: Vec<(Id, usize)>,
}

/// A value in a document.
pub(super) struct Node<'text> {
    /// Its tag without `tag:yaml.org,2002:`.
    pub(super) tag: &'static str,
    pub(super) kind: Kind,
    /// The text of a scalar.
    pub(super) text: Cow<'text, str>,
    /// The lone surrogates that U+FFFD replaces in the text, with their positions.
    pub(super) surrogates: Vec<(usize, u16)>,
    /// The items of a sequence, or the keys of a mapping, each followed by its value.
    pub(super) items: Vec<Id>,
    /// Whether an alias refers to it.
    pub(super) is_shared: bool,
    /// The number of values in it and of itself, where each alias counts as the whole node that it
    /// refers to. It is 1 until the node ends.
    values: usize,
}

/// The kind of a node.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Scalar,
    Sequence,
    Mapping,
}

impl Kind {
    /// The tags that `safe_load` supports for the kind. The first is the default.
    fn tags(self) -> &'static [&'static str] {
        match self {
            Self::Scalar => &["str", "null", "bool", "int", "float", "binary", "timestamp"],
            Self::Sequence => &["seq", "omap", "pairs"],
            Self::Mapping => &["map", "set"],
        }
    }
}

impl<'text> Document<'text> {
    /// The root.
    pub(super) const ROOT: Id = 0;

    /// Parses a text that must hold one document.
    pub(super) fn read(text: &'text str, limits: &WireLimits) -> Result<Self, DecodeError> {
        // The members of a body are one level deeper than their values.
        let nesting = limits.depth.saturating_add(1);
        let options = options! {
            block_scalar_eof_without_line_feed: true,
            emit_anchor_events: true,
            emit_comments: false,
            flow_nesting_limit: nesting,
            block_nesting_limit: nesting,
            // PyYAML writes keys of up to 128 characters on one line, each as an escape of up to ten.
            simple_key_max_lookahead: 2_048,
        };
        let mut document = Self::default();
        let mut names = HashSet::new();
        for event in Parser::new_from_str_with_options(text, options) {
            let (event, span) = event.map_err(|error| refusal(&error, limits))?;
            let refused =
                |problem| malformed(problem, span.start.byte_offset().unwrap_or_default());
            let (kind, anchor, tag, text, style) = match event {
                Event::Scalar(text, style, anchor, tag) => (Kind::Scalar, anchor, tag, text, style),
                Event::SequenceStart(_, anchor, tag) => {
                    (Kind::Sequence, anchor, tag, Cow::Borrowed(""), ScalarStyle::Plain)
                }
                Event::MappingStart(_, anchor, tag) => {
                    (Kind::Mapping, anchor, tag, Cow::Borrowed(""), ScalarStyle::Plain)
                }
                Event::DocumentStart(..) if !document.nodes.is_empty() => {
                    return Err(refused("more than one document"));
                }
                Event::Anchor(_, name) if !is_name(&name) || !names.insert(name.clone()) => {
                    return Err(refused("a duplicate or invalid anchor"));
                }
                event => {
                    document.refer_or_end(&event, limits)?;
                    continue;
                }
            };
            let (text, surrogates) = compat::original(text, style == ScalarStyle::DoubleQuoted);
            let tag = document.tag(kind, tag.as_deref(), &text, style == ScalarStyle::Plain);
            let (tag, items, id) = (tag.map_err(refused)?, Vec::new(), document.nodes.len());
            let node = Node { tag, kind, text, surrogates, items, is_shared: false, values: 1 };
            document.nodes.push(node);
            // A node without an anchor has 0 here, to which no alias refers.
            document.anchors.insert(anchor, id);
            document.place(id, limits)?;
            if kind != Kind::Scalar {
                document.open.push((id, 1));
            }
            if document.open.len() > nesting {
                return Err(DecodeError::TooDeep { limit: limits.depth });
            }
        }
        let is_empty = document.nodes.is_empty();
        if is_empty { Err(malformed("no document", 0)) } else { Ok(document) }
    }

    /// Handles an alias or the end of a collection.
    fn refer_or_end(&mut self, event: &Event<'_>, limits: &WireLimits) -> Result<(), DecodeError> {
        match event {
            Event::Alias(anchor) => {
                let no_anchor = || malformed("an alias without an anchor", 0);
                let id = *self.anchors.get(anchor).ok_or_else(no_anchor)?;
                self.nodes[id].is_shared = true;
                self.place(id, limits)
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some((id, values)) = self.open.pop() else { return Ok(()) };
                self.nodes[id].values = values;
                // One of them was counted when the collection began.
                self.count(values - 1, limits)
            }
            _ => Ok(()),
        }
    }

    /// Adds a node to the innermost open collection.
    fn place(&mut self, id: Id, limits: &WireLimits) -> Result<(), DecodeError> {
        if let Some(&(open, _)) = self.open.last() {
            self.nodes[open].items.push(id);
        }
        self.count(self.nodes[id].values, limits)
    }

    /// Adds to the number of values of the innermost open collection.
    fn count(&mut self, values: usize, limits: &WireLimits) -> Result<(), DecodeError> {
        let Some((_, total)) = self.open.last_mut() else { return Ok(()) };
        *total = total.saturating_add(values);
        let limit = limits.expanded_values;
        let is_too_much = *total > limit || self.nodes.len() > limit;
        if is_too_much { Err(DecodeError::TooManyValues { limit }) } else { Ok(()) }
    }

    /// Resolves the tag of the next node. The error says why `safe_load` would refuse the node.
    fn tag(
        &self,
        kind: Kind,
        tag: Option<&Tag>,
        text: &str,
        is_plain: bool,
    ) -> Result<&'static str, &'static str> {
        let uri = tag.map(ToString::to_string).filter(|uri| uri != "!");
        let tag = match &uri {
            // PyYAML resolves a scalar with the tag `!` like a plain one, even in quotes.
            None if kind == Kind::Scalar && (is_plain || tag.is_some()) => resolve::plain(text),
            None => kind.tags()[0],
            Some(uri) => {
                let name = uri.strip_prefix("tag:yaml.org,2002:");
                let known = kind.tags().iter().find(|tag| Some(**tag) == name);
                *known.ok_or("a tag that `safe_load` does not support here")?
            }
        };
        let is_key = self.open.last().map(|open| &self.nodes[open.0]).is_some_and(|parent| {
            parent.kind == Kind::Mapping && parent.items.len().is_multiple_of(2)
        });
        match tag {
            "bool" if resolve::truth(text).is_none() => Err("an invalid boolean"),
            "int" | "float" if resolve::number(text).is_none() => Err("an invalid number"),
            "merge" | "value" if !is_key => Err("`<<` or `=` that is not a key"),
            "value" => Ok("str"),
            tag => Ok(tag),
        }
    }
}

/// Whether a text is the name of an anchor in PyYAML.
fn is_name(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

/// The error for a text that the parser refuses. The parser's own messages may quote the text.
fn refusal(error: &ScanError, limits: &WireLimits) -> DecodeError {
    let problem = match error.kind() {
        ErrorKind::RecursionLimitExceeded => return DecodeError::TooDeep { limit: limits.depth },
        ErrorKind::UnknownAnchor => "an alias without an anchor",
        ErrorKind::UndeclaredTagHandle => "an undeclared tag handle",
        ErrorKind::UnsupportedYamlMajorVersion => "an unsupported version of YAML",
        ErrorKind::UnclosedQuotedScalar => "an unclosed quote",
        ErrorKind::UnclosedFlowCollection { .. } => "an unclosed bracket",
        ErrorKind::UnknownQuotedScalarEscape
        | ErrorKind::InvalidQuotedScalarHexEscape
        | ErrorKind::InvalidUnicodeEscape => "an invalid escape",
        _ => "a syntax error",
    };
    malformed(problem, error.marker().byte_offset().unwrap_or_default())
}
