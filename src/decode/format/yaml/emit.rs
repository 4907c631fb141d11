//! A value in YAML as PyYAML's `safe_dump` writes it (`yaml/representer.py`, `yaml/serializer.py`
//! and `yaml/emitter.py`, 6.0.3): in block style, in ASCII, at most 80 columns where that is
//! possible.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::slice;

use super::document::{Content, Document, Id, Node};
use super::resolve::{self, Tag};
use super::scan::{Scalar, Style};

/// The column behind which a line is broken.
const WIDTH: usize = 80;

/// How much deeper the members of a collection stand.
const INDENT: usize = 2;

/// The text of a document that holds one value.
pub(super) fn value(document: &Document<'_>, id: Id) -> String {
    let mut emitter = Emitter::new(document, id);
    emitter.node(id, Place::Root);
    emitter.finish()
}

/// The text of a document that holds a mapping of one name, which needs no quotes, to a value.
pub(super) fn member(document: &Document<'_>, name: &str, id: Id) -> String {
    let mut emitter = Emitter::new(document, id);
    emitter.indent = Some(0);
    emitter.write_indicator(name, false);
    emitter.write_indicator(":", false);
    emitter.node(id, Place::Value);
    emitter.finish()
}

/// Where a node stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Root,
    Item,
    /// Behind `?`.
    Key,
    SimpleKey,
    Value,
}

/// A collection that is being written.
enum Frame<'doc> {
    Sequence(slice::Iter<'doc, Id>),
    Mapping {
        pairs: slice::Iter<'doc, (Id, Id)>,
        /// The value of the key that was written last, and where it stands.
        value: Option<(Id, Place)>,
    },
}

/// What is known of a node to which there may be aliases.
#[derive(Default)]
struct Sighting {
    /// The number of its anchor, where it needs one.
    anchor: Option<usize>,
    is_written: bool,
}

/// What is written for an anchor.
enum Mark {
    Nothing,
    Anchor(String),
    Alias(String),
}

struct Emitter<'doc, 'body> {
    document: &'doc Document<'body>,
    sightings: HashMap<Id, Sighting>,
    text: String,
    column: usize,
    /// Whether the last character is a space or a line break.
    is_whitespace: bool,
    /// Whether the line holds nothing but spaces and indicators.
    is_indention: bool,
    /// Whether the document needs a mark at its end.
    is_open_ended: bool,
    indent: Option<usize>,
    /// The collections that are open, each with the indent around it.
    frames: Vec<(Frame<'doc>, Option<usize>)>,
}

impl<'doc, 'body> Emitter<'doc, 'body> {
    fn new(document: &'doc Document<'body>, root: Id) -> Self {
        Self {
            document,
            sightings: sightings(document, root),
            text: String::new(),
            column: 0,
            is_whitespace: true,
            is_indention: true,
            is_open_ended: false,
            indent: None,
            frames: Vec::new(),
        }
    }

    /// Writes the collections that are open, and the end of the document.
    fn finish(mut self) -> String {
        while let Some((frame, outer)) = self.frames.pop() {
            match frame {
                Frame::Sequence(items) => self.item(items, outer),
                Frame::Mapping { pairs, value } => self.pair(pairs, value, outer),
            }
        }
        self.write_indent();
        if self.is_open_ended {
            self.write_indicator("...", true);
            self.write_indent();
        }
        self.text
    }

    fn item(&mut self, mut items: slice::Iter<'doc, Id>, outer: Option<usize>) {
        let Some(id) = items.next() else {
            self.indent = outer;
            return;
        };
        self.frames.push((Frame::Sequence(items), outer));
        self.write_indent();
        self.write_block_indicator("-");
        self.node(*id, Place::Item);
    }

    fn pair(
        &mut self,
        mut pairs: slice::Iter<'doc, (Id, Id)>,
        value: Option<(Id, Place)>,
        outer: Option<usize>,
    ) {
        if let Some((id, key)) = value {
            self.frames.push((Frame::Mapping { pairs, value: None }, outer));
            if key == Place::SimpleKey {
                self.write_indicator(":", false);
            } else {
                self.write_indent();
                self.write_block_indicator(":");
            }
            self.node(id, Place::Value);
        } else if let Some(&(key, value)) = pairs.next() {
            self.write_indent();
            let place = if self.is_simple_key(key) { Place::SimpleKey } else { Place::Key };
            self.frames.push((Frame::Mapping { pairs, value: Some((value, place)) }, outer));
            if place == Place::Key {
                self.write_block_indicator("?");
            }
            self.node(key, place);
        } else {
            self.indent = outer;
        }
    }

    fn mark(&self, id: Id) -> Mark {
        match self.sightings.get(&id) {
            Some(&Sighting { anchor: Some(anchor), is_written }) => {
                let name = format!("id{anchor:03}");
                if is_written { Mark::Alias(name) } else { Mark::Anchor(name) }
            }
            _ => Mark::Nothing,
        }
    }

    /// Whether a key is written without `?`.
    fn is_simple_key(&self, id: Id) -> bool {
        let Node { tag, content, .. } = self.document.node(id);
        let length = match self.mark(id) {
            Mark::Alias(_) => return true,
            Mark::Anchor(name) => name.len(),
            Mark::Nothing => 0,
        } + tag.short().len();
        // The lengths are those of what is to be written before escapes.
        match content {
            Content::Scalar(scalar) => {
                let text = written(*tag, scalar);
                let is_short = text.len() < 4 * 128 && length + text.chars().count() < 128;
                is_short && !text.is_empty() && !text.contains(is_break)
            }
            Content::Sequence(items) => items.is_empty(),
            Content::Mapping(pairs) => pairs.is_empty(),
        }
    }

    fn node(&mut self, id: Id, place: Place) {
        match self.mark(id) {
            Mark::Alias(name) => return self.write_indicator(&format!("*{name}"), true),
            Mark::Anchor(name) => {
                self.sightings.entry(id).or_default().is_written = true;
                self.write_indicator(&format!("&{name}"), true);
            }
            Mark::Nothing => {}
        }
        let document = self.document;
        let Node { tag, content, .. } = document.node(id);
        if !matches!(content, Content::Scalar(_)) && !matches!(tag, Tag::Seq | Tag::Map) {
            self.write_indicator(tag.short(), true);
        }
        let outer = self.indent;
        match content {
            Content::Scalar(scalar) => {
                self.increase_indent(INDENT);
                self.scalar(*tag, scalar, place);
                self.indent = outer;
            }
            Content::Sequence(items) if items.is_empty() => self.write_empty("[", "]"),
            Content::Mapping(pairs) if pairs.is_empty() => self.write_empty("{", "}"),
            Content::Sequence(items) => {
                let is_in_mapping = matches!(place, Place::Key | Place::SimpleKey | Place::Value);
                if !is_in_mapping || self.is_indention {
                    self.increase_indent(0);
                }
                self.frames.push((Frame::Sequence(items.iter()), outer));
            }
            Content::Mapping(pairs) => {
                self.increase_indent(0);
                self.frames.push((Frame::Mapping { pairs: pairs.iter(), value: None }, outer));
            }
        }
    }

    /// Goes one level deeper; the first has an indent of its own.
    fn increase_indent(&mut self, first: usize) {
        self.indent = Some(self.indent.map_or(first, |indent| indent + INDENT));
    }

    fn scalar(&mut self, tag: Tag, scalar: &Scalar<'_>, place: Place) {
        let text = written(tag, scalar);
        let allowed = Allowed::of(text);
        let is_split = place != Place::SimpleKey;
        // A text that was in quotes stays in quotes: another version of PyYAML may take it for
        // something else without.
        let is_quoted = tag == Tag::Str && scalar.style == Style::SingleQuoted;
        let is_plain = allowed.plain && !is_quoted && Tag::of_plain(text) == tag;
        if !is_plain && tag != Tag::Str {
            self.write_indicator(tag.short(), true);
        }
        match tag {
            _ if is_plain => self.write_plain(text, place),
            Tag::Binary if is_split && allowed.block => self.write_literal(text),
            Tag::Binary => self.write_double_quoted(scalar, is_split),
            _ if allowed.single_quoted => self.write_single_quoted(text, is_split),
            _ => self.write_double_quoted(scalar, is_split),
        }
    }

    // What is written.

    /// Writes some text within a line, as far as there is room.
    fn write(&mut self, data: &str) {
        self.column += data.len();
        if self.document.take_room(data.len()).is_some() {
            self.text.push_str(data);
        }
    }

    fn write_indicator(&mut self, indicator: &str, needs_whitespace: bool) {
        if needs_whitespace && !self.is_whitespace {
            self.write(" ");
        }
        self.write(indicator);
        self.is_whitespace = false;
        self.is_indention = false;
        self.is_open_ended = false;
    }

    /// Writes `-`, `?` or `:`, behind which a collection may begin in the same line.
    fn write_block_indicator(&mut self, indicator: &str) {
        let is_indention = self.is_indention;
        self.write_indicator(indicator, true);
        self.is_indention = is_indention;
    }

    fn write_empty(&mut self, start: &str, end: &str) {
        self.write_indicator(start, true);
        self.write_indicator(end, false);
    }

    fn write_break(&mut self) {
        self.write("\n");
        self.is_whitespace = true;
        self.is_indention = true;
        self.column = 0;
    }

    /// Goes to the indent, on a new line unless the line has got no further.
    fn write_indent(&mut self) {
        let indent = self.indent.unwrap_or_default();
        if !self.is_indention
            || self.column > indent
            || (self.column == indent && !self.is_whitespace)
        {
            self.write_break();
        }
        if self.column < indent {
            self.is_whitespace = true;
            let spaces = indent - self.column;
            self.column = indent;
            if self.document.take_room(spaces).is_some() {
                self.text.extend(std::iter::repeat_n(' ', spaces));
            }
        }
    }

    /// Breaks the line within a text.
    fn write_fold(&mut self) {
        self.write_indent();
        self.is_whitespace = false;
        self.is_indention = false;
    }

    fn write_plain(&mut self, text: &str, place: Place) {
        if place == Place::Root {
            self.is_open_ended = true;
        }
        if text.is_empty() {
            return;
        }
        if !self.is_whitespace {
            self.write(" ");
        }
        self.is_whitespace = false;
        self.is_indention = false;
        for run in runs(text) {
            if run == " " && self.column > WIDTH && place != Place::SimpleKey {
                self.write_fold();
            } else {
                self.write(run);
            }
        }
    }

    fn write_single_quoted(&mut self, text: &str, is_split: bool) {
        self.write_indicator("'", true);
        let mut rest = text.len();
        for run in runs(text) {
            let is_first = rest == text.len();
            rest -= run.len();
            match run.as_bytes() {
                b" " if self.column > WIDTH && is_split && !is_first && rest > 0 => {
                    self.write_indent();
                }
                [b'\n', ..] => {
                    self.write_break();
                    for _ in run.bytes() {
                        self.write_break();
                    }
                    self.write_indent();
                }
                [b'\'', ..] => {
                    for _ in run.bytes() {
                        self.write("''");
                    }
                }
                _ => self.write(run),
            }
        }
        self.write_indicator("'", false);
    }

    fn write_double_quoted(&mut self, scalar: &Scalar<'_>, is_split: bool) {
        let text = &*scalar.text;
        let mut surrogates = scalar.surrogates.iter().peekable();
        self.write_indicator("\"", true);
        // What has not been written begins here.
        let mut start = 0;
        for (position, character) in text.char_indices() {
            let next = position + character.len_utf8();
            if !matches!(character, ' '..='~') || matches!(character, '"' | '\\') {
                self.write(&text[start..position]);
                let surrogate = surrogates.next_if(|(at, _)| *at == position);
                let code = surrogate.map_or(u32::from(character), |(_, code)| u32::from(*code));
                self.write(&escape(code));
                start = next;
            }
            // PyYAML counts one column less right behind an escape.
            let width = WIDTH + usize::from(start > position);
            if is_split
                && position > 0
                && next < text.len()
                && (character == ' ' || start >= position)
                && self.column + position.saturating_sub(start) > width
            {
                if start < position {
                    self.write(&text[start..position]);
                    start = position;
                }
                self.write("\\");
                self.write_fold();
                if text[start..].starts_with(' ') {
                    self.write("\\");
                }
            }
        }
        self.write(&text[start..]);
        self.write_indicator("\"", false);
    }

    fn write_literal(&mut self, text: &str) {
        let indent = if text.starts_with([' ', '\n']) { "2" } else { "" };
        let chomping = match text.strip_suffix('\n') {
            None => "-",
            Some(lines) if lines.is_empty() || lines.ends_with('\n') => "+",
            Some(_) => "",
        };
        self.write_indicator(&format!("|{indent}{chomping}"), true);
        self.is_open_ended = chomping == "+";
        self.write_break();
        for line in text.split_inclusive('\n') {
            let line = line.strip_suffix('\n').unwrap_or(line);
            if !line.is_empty() {
                self.write_indent();
                self.write(line);
            }
            self.write_break();
        }
    }
}

/// Finds the nodes below a root that need an anchor, and numbers them in the order in which they
/// are met again.
fn sightings(document: &Document<'_>, root: Id) -> HashMap<Id, Sighting> {
    let mut sightings = HashMap::<Id, Sighting>::new();
    let mut last = 0;
    let mut stack = vec![root];
    while let Some(id) = stack.pop() {
        let node = document.node(id);
        if node.is_shared {
            match sightings.entry(id) {
                Entry::Vacant(entry) => {
                    entry.insert(Sighting::default());
                }
                Entry::Occupied(mut entry) => {
                    let anchor = &mut entry.get_mut().anchor;
                    if anchor.is_none() {
                        last += 1;
                        *anchor = Some(last);
                    }
                    continue;
                }
            }
        }
        match &node.content {
            Content::Scalar(_) => {}
            Content::Sequence(items) => stack.extend(items.iter().rev()),
            Content::Mapping(pairs) => {
                stack.extend(pairs.iter().rev().flat_map(|&(key, value)| [value, key]));
            }
        }
    }
    sightings
}

/// The characters that PyYAML writes for a scalar.
fn written<'doc>(tag: Tag, scalar: &'doc Scalar<'_>) -> &'doc str {
    match tag {
        Tag::Null => "null",
        Tag::Bool if resolve::truth(&scalar.text) == Some(true) => "true",
        Tag::Bool => "false",
        _ => &scalar.text,
    }
}

/// The parts of a text that are all spaces, all line breaks, all quotes or none of these.
fn runs(text: &str) -> impl Iterator<Item = &str> {
    let kind = |byte| b" \n'".iter().position(|&other| other == byte);
    let mut rest = text;
    std::iter::from_fn(move || {
        let first = kind(rest.bytes().next()?);
        let length = rest.bytes().take_while(|&byte| kind(byte) == first).count();
        let (run, after) = rest.split_at(length);
        rest = after;
        Some(run)
    })
}

/// A character in double quotes.
fn escape(code: u32) -> String {
    match code {
        0x00 => "\\0".to_owned(),
        0x07 => "\\a".to_owned(),
        0x08 => "\\b".to_owned(),
        0x09 => "\\t".to_owned(),
        0x0A => "\\n".to_owned(),
        0x0B => "\\v".to_owned(),
        0x0C => "\\f".to_owned(),
        0x0D => "\\r".to_owned(),
        0x1B => "\\e".to_owned(),
        0x22 => "\\\"".to_owned(),
        0x5C => "\\\\".to_owned(),
        0x85 => "\\N".to_owned(),
        0xA0 => "\\_".to_owned(),
        0x2028 => "\\L".to_owned(),
        0x2029 => "\\P".to_owned(),
        _ if code <= 0xFF => format!("\\x{code:02X}"),
        _ if code <= 0xFFFF => format!("\\u{code:04X}"),
        _ => format!("\\U{code:08X}"),
    }
}

fn is_break(character: char) -> bool {
    matches!(character, '\n' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

/// The styles in which a text may be written; double quotes always may.
struct Allowed {
    plain: bool,
    single_quoted: bool,
    block: bool,
}

impl Allowed {
    fn of(text: &str) -> Self {
        if text.is_empty() {
            return Self { plain: true, single_quoted: true, block: false };
        }
        let is_special = !text.bytes().all(|byte| matches!(byte, b'\n' | b' '..=b'~'));
        // Spaces before a line break.
        if is_special || text.contains(" \n") {
            return Self { plain: false, single_quoted: false, block: false };
        }
        Self {
            plain: !has_indicator(text) && !text.contains('\n') && text.trim_matches(' ') == text,
            single_quoted: !text.contains("\n "),
            block: !text.ends_with(' '),
        }
    }
}

/// Whether a text in ASCII has a character that means something else in a plain scalar.
fn has_indicator(text: &str) -> bool {
    let is_alone = |byte| text.as_bytes() == [byte] || text.as_bytes().starts_with(&[byte, b' ']);
    text.starts_with("---")
        || text.starts_with("...")
        || text.starts_with(|first| "#,[]{}&*!|>'\"%@`".contains(first))
        || is_alone(b'?')
        || is_alone(b'-')
        || text.contains(": ")
        || text.ends_with(':')
        || text.contains(" #")
}
