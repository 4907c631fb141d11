//! A document in YAML as a tree in which an alias is the node that it stands for.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

use granit_parser::{ErrorKind, Event, Parser, ScalarStyle, ScanError, Tag, options};
use regex::{Captures, Regex};

use super::resolve;
use crate::decode::{DecodeError, WireLimits};

/// The number of a node.
pub(super) type Id = usize;

/// A document. Its nodes are numbered in the order in which they begin.
pub(super) struct Document<'text> {
    pub(super) nodes: Vec<Node<'text>>,
}

/// A value in a document.
pub(super) struct Node<'text> {
    /// The last part of its tag, as in `!!int`.
    pub(super) tag: &'static str,
    pub(super) kind: Kind,
    /// The text of a scalar.
    pub(super) text: Cow<'text, str>,
    /// Lone surrogates: where in the text U+FFFD stands for which.
    pub(super) surrogates: Vec<(usize, u16)>,
    /// The items of a sequence, or the keys and values of a mapping by turns.
    pub(super) items: Vec<Id>,
    /// Whether an alias stands for it.
    pub(super) is_shared: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Scalar,
    Sequence,
    Mapping,
}

impl Kind {
    /// The tags that `safe_load` constructs from such a node; the first is that of one without.
    fn tags(self) -> &'static [&'static str] {
        match self {
            Self::Scalar => &["str", "null", "bool", "int", "float", "binary", "timestamp"],
            Self::Sequence => &["seq", "omap", "pairs"],
            Self::Mapping => &["map", "set"],
        }
    }
}

/// What stands for a lone surrogate while the parser reads, which refuses them: before the `u` of
/// its escape instead of the backslash, and with `U` before anything that is this character.
const MARK: char = '\u{FFFFE}';

/// What stands between the name of an alias and a colon while the parser reads: by YAML 1.2 the
/// colon is a part of the name.
const GAP: &str = " \t \t";

#[expect(clippy::expect_used, reason = "the pattern is a constant, and the tests compile it")]
static FOREIGN: LazyLock<Regex> = LazyLock::new(|| {
    let pattern = r"(?xs)\\u(?<surrogate>[dD][89a-fA-F][0-9a-fA-F]{2})
        |(?<mark>\\U000[fF]{4}[eE]|\x{FFFFE})
        |\\.
        |(?<alias>\*[0-9A-Za-z_-]+):(?<behind>[\ \t\r\n,\]}]|$)";
    Regex::new(pattern).expect("a good pattern")
});

/// The text with what PyYAML writes and the parser does not read put in another way, wherever it
/// stands. [`restored`] undoes it in scalars where it has another meaning.
pub(super) fn readable(text: &str) -> Result<Cow<'_, str>, DecodeError> {
    let readable = FOREIGN.replace_all(text, |found: &Captures<'_>| {
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
        Some(position) if readable.contains(&format!("{GAP}:")) => {
            Err(malformed("blanks and tabs by turns", position))
        }
        _ => Ok(readable),
    }
}

/// The text of a scalar as it was before [`readable`], and where in it U+FFFD stands for which
/// lone surrogate.
fn restored(text: Cow<'_, str>, is_double_quoted: bool) -> (Cow<'_, str>, Vec<(usize, u16)>) {
    let mut surrogates = Vec::new();
    if !text.contains([MARK, '\t']) {
        return (text, surrogates);
    }
    let text = text.replace(&format!("{GAP}:"), ":");
    let mut pieces = text.split(MARK);
    let mut restored = pieces.next().unwrap_or_default().to_owned();
    while let Some(piece) = pieces.next() {
        let code = piece.get(1..5).and_then(|digits| u16::from_str_radix(digits, 16).ok());
        match code {
            _ if piece == "U" => {
                restored.push(MARK);
                restored.push_str(pieces.next().unwrap_or_default());
            }
            Some(code) if is_double_quoted => {
                surrogates.push((restored.len(), code));
                restored.push(char::REPLACEMENT_CHARACTER);
                restored.push_str(&piece[5..]);
            }
            _ if piece.starts_with('U') => restored.push_str(&piece[1..]),
            _ => restored.extend(["\\", piece]),
        }
    }
    (Cow::Owned(restored), surrogates)
}

/// A collection whose end has not come.
struct Open {
    id: Id,
    /// How many values it comes to so far.
    values: usize,
}

/// Puts a document together.
struct Composer<'text, 'limits> {
    limits: &'limits WireLimits,
    nodes: Vec<Node<'text>>,
    /// How many values each finished node comes to; 1 for one that has not ended.
    values: Vec<usize>,
    anchors: HashMap<usize, Id>,
    open: Vec<Open>,
}

impl<'text> Document<'text> {
    /// The root.
    pub(super) const ROOT: Id = 0;

    /// Reads a text that holds one document and nothing else.
    pub(super) fn read(text: &'text str, limits: &WireLimits) -> Result<Self, DecodeError> {
        // The members of a body are one level deeper than their values.
        let nesting = limits.depth.saturating_add(1);
        let options = options! {
            block_scalar_eof_without_line_feed: true,
            emit_anchor_events: true,
            emit_comments: false,
            flow_nesting_limit: nesting,
            block_nesting_limit: nesting,
            // PyYAML writes keys of up to 128 characters like this, with escapes of ten.
            simple_key_max_lookahead: 2_048,
        };
        let mut composer = Composer {
            limits,
            nodes: Vec::new(),
            values: Vec::new(),
            anchors: HashMap::new(),
            open: Vec::new(),
        };
        let mut names = HashSet::new();
        for event in Parser::new_from_str_with_options(text, options) {
            let (event, span) = event.map_err(|error| refusal(&error, limits))?;
            let position = span.start.byte_offset().unwrap_or_default();
            match event {
                Event::DocumentStart(..) if !composer.nodes.is_empty() => {
                    return Err(malformed("something follows the document", position));
                }
                Event::Anchor(_, name) => {
                    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
                    if !name.bytes().all(is_name) || !names.insert(name) {
                        return Err(malformed(
                            "an anchor that is there already, or has no name of \
                            letters and digits",
                            position,
                        ));
                    }
                }
                event => composer.add(event, position)?,
            }
        }
        if composer.nodes.is_empty() {
            return Err(malformed("there is no document", 0));
        }
        Ok(Self { nodes: composer.nodes })
    }
}

/// What is said of a text that the parser refuses. Its own messages may quote the text.
fn refusal(error: &ScanError, limits: &WireLimits) -> DecodeError {
    let problem = match error.kind() {
        ErrorKind::RecursionLimitExceeded => return DecodeError::TooDeep { limit: limits.depth },
        ErrorKind::UnknownAnchor => "an alias of what is not there",
        ErrorKind::UndeclaredTagHandle => "a tag that is not declared",
        ErrorKind::UnsupportedYamlMajorVersion => "another version of YAML",
        ErrorKind::UnclosedQuotedScalar => "a quoted text that does not end",
        ErrorKind::UnclosedFlowCollection { .. } => "a bracket that is not closed",
        ErrorKind::UnknownQuotedScalarEscape
        | ErrorKind::InvalidQuotedScalarHexEscape
        | ErrorKind::InvalidUnicodeEscape => "no such escape",
        _ => "what stands there is not allowed",
    };
    malformed(problem, error.marker().byte_offset().unwrap_or_default())
}

pub(super) fn malformed(problem: &'static str, position: usize) -> DecodeError {
    DecodeError::Malformed { format: "YAML", problem, position }
}

impl<'text> Composer<'text, '_> {
    fn add(&mut self, event: Event<'text>, position: usize) -> Result<(), DecodeError> {
        let (kind, anchor, tag, text, style) = match event {
            Event::Scalar(text, style, anchor, tag) => (Kind::Scalar, anchor, tag, text, style),
            Event::SequenceStart(_, anchor, tag) => {
                (Kind::Sequence, anchor, tag, Cow::Borrowed(""), ScalarStyle::Plain)
            }
            Event::MappingStart(_, anchor, tag) => {
                (Kind::Mapping, anchor, tag, Cow::Borrowed(""), ScalarStyle::Plain)
            }
            Event::Alias(anchor) => {
                let id = self.anchors[&anchor];
                self.nodes[id].is_shared = true;
                return self.place(id, self.values[id]);
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(open) = self.open.pop() else { return Ok(()) };
                self.values[open.id] = open.values;
                // It was counted as one value when it began.
                return self.count(open.values - 1);
            }
            _ => return Ok(()),
        };
        let (text, surrogates) = restored(text, style == ScalarStyle::DoubleQuoted);
        let tag = self.tag(kind, tag.as_deref(), &text, style == ScalarStyle::Plain);
        let tag = tag.map_err(|problem| malformed(problem, position))?;
        let id = self.nodes.len();
        self.nodes.push(Node { tag, kind, text, surrogates, items: Vec::new(), is_shared: false });
        self.values.push(1);
        if anchor != 0 {
            self.anchors.insert(anchor, id);
        }
        self.place(id, 1)?;
        if kind != Kind::Scalar {
            if self.open.len() > self.limits.depth {
                return Err(DecodeError::TooDeep { limit: self.limits.depth });
            }
            self.open.push(Open { id, values: 1 });
        }
        Ok(())
    }

    /// The tag of a node that comes next, if it is one that `safe_load` constructs.
    fn tag(
        &self,
        kind: Kind,
        tag: Option<&Tag>,
        text: &str,
        is_plain: bool,
    ) -> Result<&'static str, &'static str> {
        let uri = tag.map(ToString::to_string).filter(|uri| uri != "!");
        let tag = match &uri {
            // PyYAML takes a scalar with `!` as if it were plain.
            None if kind == Kind::Scalar && (is_plain || tag.is_some()) => resolve::plain(text),
            None => kind.tags()[0],
            Some(uri) => {
                let name = uri.strip_prefix("tag:yaml.org,2002:");
                let known = kind.tags().iter().find(|tag| Some(**tag) == name);
                *known.ok_or("a tag that `safe_load` does not know for such a value")?
            }
        };
        let is_key = self.open.last().map(|open| &self.nodes[open.id]).is_some_and(|parent| {
            parent.kind == Kind::Mapping && parent.items.len().is_multiple_of(2)
        });
        match tag {
            "bool" if resolve::truth(text).is_none() => Err("a truth value that is none"),
            "int" | "float" if resolve::number(text).is_none() => Err("a number that is none"),
            "merge" | "value" if !is_key => Err("`<<` or `=` where it is no key"),
            "value" => Ok("str"),
            tag => Ok(tag),
        }
    }

    /// Puts a node into the collection that is open, as so many values.
    fn place(&mut self, id: Id, values: usize) -> Result<(), DecodeError> {
        if let Some(open) = self.open.last() {
            self.nodes[open.id].items.push(id);
        }
        self.count(values)
    }

    /// Counts values in the collection that is open.
    fn count(&mut self, values: usize) -> Result<(), DecodeError> {
        let Some(open) = self.open.last_mut() else { return Ok(()) };
        open.values = open.values.saturating_add(values);
        let limit = self.limits.expanded_values;
        if open.values > limit { Err(DecodeError::TooManyValues { limit }) } else { Ok(()) }
    }
}
