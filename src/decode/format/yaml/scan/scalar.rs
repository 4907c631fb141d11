//! The scalars of a text in YAML 1.1, and what their characters are.

use std::borrow::Cow;
use std::ops::Range;

use super::Scanner;
use crate::decode::DecodeError;
use crate::decode::format::yaml::malformed;

/// The characters of a scalar.
#[derive(Debug, PartialEq)]
pub(in crate::decode::format::yaml) struct Scalar<'body> {
    /// The characters, with U+FFFD for every lone surrogate.
    pub(in crate::decode::format::yaml) text: Cow<'body, str>,
    /// Where the lone surrogates stand, in bytes, and which they are.
    pub(in crate::decode::format::yaml) surrogates: Vec<(usize, u16)>,
    /// How it was written.
    pub(in crate::decode::format::yaml) style: Style,
}

impl Scalar<'_> {
    /// A scalar that is left out.
    pub(in crate::decode::format::yaml) const EMPTY: Self =
        Self { text: Cow::Borrowed(""), surrogates: Vec::new(), style: Style::Plain };
}

/// How a scalar is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::decode::format::yaml) enum Style {
    Plain,
    SingleQuoted,
    DoubleQuoted,
    Block,
}

impl<'body> Scanner<'body> {
    pub(super) fn is_plain_start(&self, byte: u8) -> bool {
        match byte {
            b'-' => !self.is_blank_or_end(1),
            b'?' | b':' => self.flow_level == 0 && !self.is_blank_or_end(1),
            b'\t' | b',' | b'[' | b']' | b'{' | b'}' | b'#' | b'&' | b'*' | b'!' | b'|' | b'>'
            | b'\'' | b'"' | b'%' | b'@' | b'`' => false,
            _ => true,
        }
    }

    pub(super) fn scan_plain(&mut self) -> Scalar<'body> {
        let mut chars = Chars::new(self.text);
        // What stands between two words, once it is known that another follows.
        let mut between = None;
        while self.byte(0) != Some(b'#') {
            let start = self.position;
            while !self.is_plain_end() {
                self.position += 1;
            }
            if self.position == start {
                break;
            }
            self.allows_key = false;
            match between.take() {
                Some(Between::Spaces(spaces)) => chars.keep(spaces),
                Some(Between::Lines(breaks)) => chars.owned().push_str(&breaks),
                None => {}
            }
            chars.keep(start..self.position);
            between = self.scan_between();
            if between.is_none() || (self.flow_level == 0 && self.column() < self.margin) {
                break;
            }
        }
        chars.into_scalar(Style::Plain)
    }

    /// Whether a word of a plain scalar ends here.
    fn is_plain_end(&self) -> bool {
        let in_flow = self.flow_level > 0;
        match self.byte(0) {
            Some(b':') => {
                self.is_blank_or_end(1)
                    || (in_flow && matches!(self.byte(1), Some(b',' | b'[' | b']' | b'{' | b'}')))
            }
            Some(b',' | b'?' | b'[' | b']' | b'{' | b'}') => in_flow,
            _ => self.is_blank_or_end(0),
        }
    }

    /// What may stand between two words of a plain scalar; nothing where it has ended.
    fn scan_between(&mut self) -> Option<Between> {
        let start = self.position;
        self.skip_spaces();
        let spaces = start..self.position;
        let Some(first) = self.skip_break() else {
            return Some(Between::Spaces(spaces)).filter(|_| start < self.position);
        };
        self.allows_key = true;
        let mut breaks = String::new();
        loop {
            if self.is_any_separator() {
                return None;
            }
            self.skip_spaces();
            match self.skip_break() {
                Some(character) => breaks.push(character),
                None => return Some(Between::Lines(folded(first, breaks))),
            }
        }
    }

    pub(super) fn scan_quoted(&mut self, quote: u8) -> Result<Scalar<'body>, DecodeError> {
        let is_double = quote == b'"';
        let mut chars = Chars::new(self.text);
        self.position += 1;
        loop {
            let start = self.position;
            let is_special =
                |byte| byte == quote || is_double && byte == b'\\' || byte == b' ' || byte == b'\t';
            while !self.is_break_or_end(0) && !self.byte(0).is_some_and(is_special) {
                self.position += 1;
            }
            chars.keep(start..self.position);
            match self.byte(0) {
                None => return Err(malformed("a quoted text without an end", self.position)),
                Some(b'\\') if is_double => self.scan_escape(&mut chars)?,
                Some(b'\'') if !is_double && self.byte(1) == Some(b'\'') => {
                    // One of the two is the text's.
                    chars.keep(self.position..self.position + 1);
                    self.position += 2;
                }
                Some(byte) if byte == quote => {
                    self.position += 1;
                    let style = if is_double { Style::DoubleQuoted } else { Style::SingleQuoted };
                    return Ok(chars.into_scalar(style));
                }
                Some(_) => {
                    let start = self.position;
                    self.skip_spaces_and_tabs();
                    let spaces = start..self.position;
                    match self.skip_break() {
                        Some(first) => {
                            let breaks = self.scan_quoted_breaks()?;
                            chars.owned().push_str(&folded(first, breaks));
                        }
                        None => chars.keep(spaces),
                    }
                }
            }
        }
    }

    /// The empty lines within a quoted text, of which one line break has been read.
    fn scan_quoted_breaks(&mut self) -> Result<String, DecodeError> {
        let mut breaks = String::new();
        loop {
            if self.is_any_separator() {
                return Err(malformed("a document ends within a quoted text", self.position));
            }
            self.skip_spaces_and_tabs();
            match self.skip_break() {
                Some(character) => breaks.push(character),
                None => return Ok(breaks),
            }
        }
    }

    fn scan_escape(&mut self, chars: &mut Chars<'body>) -> Result<(), DecodeError> {
        let start = self.position;
        let problem = || malformed("an unknown escape in a quoted text", start);
        self.position += 1;
        if self.skip_break().is_some() {
            let breaks = self.scan_quoted_breaks()?;
            chars.owned().push_str(&breaks);
            return Ok(());
        }
        let (digits, character) = match self.byte(0) {
            Some(b'0') => (0, '\0'),
            Some(b'a') => (0, '\x07'),
            Some(b'b') => (0, '\x08'),
            Some(b't' | b'\t') => (0, '\t'),
            Some(b'n') => (0, '\n'),
            Some(b'v') => (0, '\x0B'),
            Some(b'f') => (0, '\x0C'),
            Some(b'r') => (0, '\r'),
            Some(b'e') => (0, '\x1B'),
            Some(byte @ (b' ' | b'"' | b'\\' | b'/')) => (0, char::from(byte)),
            Some(b'N') => (0, '\u{85}'),
            Some(b'_') => (0, '\u{A0}'),
            Some(b'L') => (0, '\u{2028}'),
            Some(b'P') => (0, '\u{2029}'),
            Some(b'x') => (2, '\0'),
            Some(b'u') => (4, '\0'),
            Some(b'U') => (8, '\0'),
            _ => return Err(problem()),
        };
        self.position += 1;
        if digits == 0 {
            chars.owned().push(character);
            return Ok(());
        }
        let code = self
            .text
            .get(self.position..self.position + digits)
            .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
            .and_then(|digits| u32::from_str_radix(digits, 16).ok())
            .ok_or_else(problem)?;
        self.position += digits;
        match (char::from_u32(code), u16::try_from(code)) {
            (Some(character), _) => chars.owned().push(character),
            (None, Ok(surrogate)) => chars.push_surrogate(surrogate),
            _ => return Err(problem()),
        }
        Ok(())
    }

    pub(super) fn scan_block(&mut self, is_folded: bool) -> Result<Scalar<'body>, DecodeError> {
        let mut chars = Chars::new(self.text);
        self.position += 1;
        let (chomping, indentation) = self.scan_block_header()?;
        let least = self.margin.max(1);
        let (indent, mut breaks) = match indentation {
            Some(indentation) => {
                let indent = least + indentation - 1;
                (indent, self.scan_block_breaks(indent))
            }
            None => self.scan_first_block_breaks(least),
        };
        let mut last = None;
        while self.column() == indent && self.byte(0).is_some() {
            chars.owned().push_str(&breaks);
            let is_indented = matches!(self.byte(0), Some(b' ' | b'\t'));
            let start = self.position;
            self.skip_line();
            chars.keep(start..self.position);
            last = self.skip_break();
            breaks = self.scan_block_breaks(indent);
            if self.column() != indent || self.byte(0).is_none() {
                break;
            }
            let is_next_indented = matches!(self.byte(0), Some(b' ' | b'\t'));
            if is_folded && last == Some('\n') && !is_indented && !is_next_indented {
                if breaks.is_empty() {
                    chars.owned().push(' ');
                }
            } else {
                chars.owned().extend(last);
            }
        }
        if chomping != Some(Chomping::Strip) {
            chars.owned().extend(last);
        }
        if chomping == Some(Chomping::Keep) {
            chars.owned().push_str(&breaks);
        }
        Ok(chars.into_scalar(Style::Block))
    }

    /// The rest of the line in which a block scalar begins.
    fn scan_block_header(&mut self) -> Result<(Option<Chomping>, Option<usize>), DecodeError> {
        let (mut chomping, mut indentation) = (None, None);
        while let Some(byte) = self.byte(0) {
            match byte {
                b'+' if chomping.is_none() => chomping = Some(Chomping::Keep),
                b'-' if chomping.is_none() => chomping = Some(Chomping::Strip),
                b'1'..=b'9' if indentation.is_none() => {
                    indentation = Some(usize::from(byte - b'0'));
                }
                _ => break,
            }
            self.position += 1;
        }
        if !self.is_break_or_end(0) && self.byte(0) != Some(b' ') {
            return Err(malformed("a bad header of a block scalar", self.position));
        }
        self.skip_spaces();
        if self.byte(0) == Some(b'#') {
            self.skip_line();
        }
        if !self.is_break_or_end(0) {
            return Err(malformed("something follows the header of a block scalar", self.position));
        }
        self.skip_break();
        Ok((chomping, indentation))
    }

    /// The empty lines at the beginning of a block scalar, and its indentation, which is that of
    /// its first line.
    fn scan_first_block_breaks(&mut self, least: usize) -> (usize, String) {
        let mut breaks = String::new();
        let mut indent = least;
        loop {
            self.skip_spaces();
            indent = indent.max(self.column());
            match self.skip_break() {
                Some(character) => breaks.push(character),
                None => return (indent, breaks),
            }
        }
    }

    fn scan_block_breaks(&mut self, indent: usize) -> String {
        let mut breaks = String::new();
        loop {
            while self.column() < indent && self.byte(0) == Some(b' ') {
                self.position += 1;
            }
            match self.skip_break() {
                Some(character) => breaks.push(character),
                None => return breaks,
            }
        }
    }
}

/// What stands between two words of a plain scalar.
enum Between {
    Spaces(Range<usize>),
    /// Line breaks, folded.
    Lines(String),
}

/// What becomes of the line breaks behind the last line of a block scalar.
#[derive(PartialEq, Eq)]
enum Chomping {
    Strip,
    Keep,
}

/// What a line break and the empty lines behind it mean in a text that is folded.
fn folded(first: char, mut breaks: String) -> String {
    if first != '\n' {
        breaks.insert(0, first);
    } else if breaks.is_empty() {
        breaks.push(' ');
    }
    breaks
}

/// The characters of a scalar as they come: a part of the body as long as they stand there in one
/// piece.
struct Chars<'body> {
    body: &'body str,
    piece: Range<usize>,
    owned: Option<String>,
    surrogates: Vec<(usize, u16)>,
}

impl<'body> Chars<'body> {
    fn new(body: &'body str) -> Self {
        Self { body, piece: 0..0, owned: None, surrogates: Vec::new() }
    }

    /// Adds a part of the body.
    fn keep(&mut self, piece: Range<usize>) {
        if let Some(owned) = &mut self.owned {
            owned.push_str(&self.body[piece]);
        } else if self.piece.is_empty() {
            self.piece = piece;
        } else if self.piece.end == piece.start {
            self.piece.end = piece.end;
        } else {
            let body = self.body;
            self.owned().push_str(&body[piece]);
        }
    }

    /// The characters so far, to add some that do not stand there.
    fn owned(&mut self) -> &mut String {
        self.owned.get_or_insert_with(|| self.body[self.piece.clone()].to_owned())
    }

    fn push_surrogate(&mut self, surrogate: u16) {
        let position = self.owned().len();
        self.surrogates.push((position, surrogate));
        self.owned().push(char::REPLACEMENT_CHARACTER);
    }

    fn into_scalar(self, style: Style) -> Scalar<'body> {
        let text = match self.owned {
            Some(text) => Cow::Owned(text),
            None => Cow::Borrowed(&self.body[self.piece]),
        };
        Scalar { text, surrogates: self.surrogates, style }
    }
}
