//! The tokens of a text in YAML 1.1, as PyYAML cuts them (`yaml/scanner.py`, 6.0.3).
//!
//! What PyYAML reads is read here, and in the same sense. It differs in three things: columns are
//! counted in bytes, which makes a difference only where nothing depends on it; a simple key may
//! be longer, because PyYAML writes longer ones than it reads; `%TAG` is refused.

mod scalar;

use std::collections::VecDeque;

pub(super) use self::scalar::{Scalar, Style};
use super::malformed;
use super::resolve::Tag;
use crate::decode::DecodeError;

/// The most bytes from the beginning of a simple key to its colon. PyYAML writes keys of up to 127
/// characters in one line, of which each may take ten bytes. Its own scanner stops at 1024.
const MAX_SIMPLE_KEY: usize = 2048;

/// What a text in YAML consists of.
#[derive(Debug)]
pub(super) enum Token<'body> {
    StreamEnd,
    Directive,
    DocumentStart,
    DocumentEnd,
    BlockSequenceStart,
    BlockMappingStart,
    BlockEnd,
    FlowSequenceStart,
    FlowMappingStart,
    FlowSequenceEnd,
    FlowMappingEnd,
    BlockEntry,
    FlowEntry,
    Key,
    Value,
    Alias(&'body str),
    Anchor(&'body str),
    /// A tag; none is `!`, which says nothing.
    Tag(Option<Tag>),
    Scalar(Scalar<'body>),
}

/// A token that waits for the parser.
struct Queued<'body> {
    token: Token<'body>,
    position: usize,
    /// Whether it has turned out to begin a simple key, and maybe a block mapping with it.
    begins: Begins,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Begins {
    Nothing,
    Key,
    MappingAndKey,
}

/// A place where a key without `?` may have begun. Only the colon behind it tells.
struct SimpleKey {
    flow_level: usize,
    /// The number of its first token, counted from the beginning of the text.
    token: usize,
    /// Whether nothing but a key may stand there.
    is_required: bool,
    position: usize,
    column: usize,
    line: usize,
}

/// Cuts a text into tokens.
pub(super) struct Scanner<'body> {
    text: &'body str,
    position: usize,
    line: usize,
    /// Where the line begins.
    line_start: usize,
    /// How many `[` and `{` are open.
    flow_level: usize,
    /// The least column of what belongs to the innermost block collection: one more than its own;
    /// 0 where none is open.
    margin: usize,
    outer_margins: Vec<usize>,
    /// Whether a simple key, or a block collection, may begin here.
    allows_key: bool,
    /// At most one for each level of flow collections, from the outermost to the innermost.
    simple_keys: VecDeque<SimpleKey>,
    queue: VecDeque<Queued<'body>>,
    /// How many tokens have left the queue.
    taken: usize,
    is_done: bool,
}

impl<'body> Scanner<'body> {
    pub(super) fn new(text: &'body str) -> Self {
        let position = if text.starts_with('\u{FEFF}') { '\u{FEFF}'.len_utf8() } else { 0 };
        Self {
            text,
            position,
            line: 0,
            line_start: position,
            flow_level: 0,
            margin: 0,
            outer_margins: Vec::new(),
            allows_key: true,
            simple_keys: VecDeque::new(),
            queue: VecDeque::new(),
            taken: 0,
            is_done: false,
        }
    }

    /// The next token, which stays where it is.
    pub(super) fn peek(&mut self) -> Result<&Token<'body>, DecodeError> {
        self.fill()?;
        Ok(match self.queue.front() {
            None => &Token::StreamEnd,
            Some(Queued { begins: Begins::MappingAndKey, .. }) => &Token::BlockMappingStart,
            Some(Queued { begins: Begins::Key, .. }) => &Token::Key,
            Some(Queued { token, .. }) => token,
        })
    }

    /// Takes the next token away.
    pub(super) fn take(&mut self) -> Result<Token<'body>, DecodeError> {
        self.fill()?;
        match self.queue.front_mut().map(|queued| &mut queued.begins) {
            Some(begins @ Begins::MappingAndKey) => {
                *begins = Begins::Key;
                return Ok(Token::BlockMappingStart);
            }
            Some(begins @ Begins::Key) => {
                *begins = Begins::Nothing;
                return Ok(Token::Key);
            }
            _ => {}
        }
        self.taken += 1;
        Ok(self.queue.pop_front().map_or(Token::StreamEnd, |queued| queued.token))
    }

    /// Where the next token begins.
    pub(super) fn position(&self) -> usize {
        self.queue.front().map_or(self.position, |queued| queued.position)
    }

    /// Scans until it is certain what the next token is.
    fn fill(&mut self) -> Result<(), DecodeError> {
        while !self.is_done {
            if !self.queue.is_empty() {
                self.drop_stale_keys()?;
                if self.simple_keys.front().is_none_or(|key| key.token != self.taken) {
                    break;
                }
            }
            self.fetch()?;
        }
        Ok(())
    }

    /// Scans one more token. Ends of block collections may come before it.
    fn fetch(&mut self) -> Result<(), DecodeError> {
        self.skip_to_token();
        self.drop_stale_keys()?;
        self.close_blocks(self.column() + 1);
        let Some(byte) = self.byte(0) else { return self.fetch_end() };
        let is_blank_next = self.is_blank_or_end(1);
        let in_flow = self.flow_level > 0;
        match byte {
            b'%' if self.column() == 0 => self.fetch_directive(),
            b'-' if self.is_separator("---") => self.fetch_separator(Token::DocumentStart),
            b'.' if self.is_separator("...") => self.fetch_separator(Token::DocumentEnd),
            b'[' => self.fetch_flow_start(Token::FlowSequenceStart),
            b'{' => self.fetch_flow_start(Token::FlowMappingStart),
            b']' => self.fetch_flow_end(Token::FlowSequenceEnd),
            b'}' => self.fetch_flow_end(Token::FlowMappingEnd),
            b',' => {
                self.allows_key = true;
                self.remove_key()?;
                self.push_indicator(Token::FlowEntry);
                Ok(())
            }
            b'-' if is_blank_next => {
                self.begin_block(Token::BlockSequenceStart)?;
                self.allows_key = true;
                self.remove_key()?;
                self.push_indicator(Token::BlockEntry);
                Ok(())
            }
            b'?' if in_flow || is_blank_next => {
                self.begin_block(Token::BlockMappingStart)?;
                self.allows_key = !in_flow;
                self.remove_key()?;
                self.push_indicator(Token::Key);
                Ok(())
            }
            b':' if in_flow || is_blank_next => self.fetch_value(),
            b'|' | b'>' if !in_flow => {
                self.allows_key = true;
                self.remove_key()?;
                let start = self.position;
                let scalar = self.scan_block(byte == b'>')?;
                self.push(Token::Scalar(scalar), start);
                Ok(())
            }
            _ => {
                self.save_key()?;
                self.allows_key = false;
                let start = self.position;
                let token = match byte {
                    b'*' => Token::Alias(self.scan_anchor()?),
                    b'&' => Token::Anchor(self.scan_anchor()?),
                    b'!' => Token::Tag(self.scan_tag()?),
                    b'\'' | b'"' => Token::Scalar(self.scan_quoted(byte)?),
                    _ if self.is_plain_start(byte) => Token::Scalar(self.scan_plain()),
                    _ => return Err(malformed("a character that begins nothing", start)),
                };
                self.push(token, start);
                Ok(())
            }
        }
    }

    // The text.

    fn byte(&self, ahead: usize) -> Option<u8> {
        self.text.as_bytes().get(self.position + ahead).copied()
    }

    fn column(&self) -> usize {
        self.position - self.line_start
    }

    /// How many bytes a line break takes that stands so many bytes ahead, and what it counts as;
    /// nothing where there is none.
    fn line_break(&self, ahead: usize) -> Option<(usize, char)> {
        match self.text.as_bytes().get(self.position + ahead..)? {
            // U+0085, U+2028 and U+2029 are breaks, too.
            [b'\r', b'\n', ..] | [0xC2, 0x85, ..] => Some((2, '\n')),
            [b'\r' | b'\n', ..] => Some((1, '\n')),
            [0xE2, 0x80, 0xA8, ..] => Some((3, '\u{2028}')),
            [0xE2, 0x80, 0xA9, ..] => Some((3, '\u{2029}')),
            _ => None,
        }
    }

    fn is_break_or_end(&self, ahead: usize) -> bool {
        self.byte(ahead).is_none() || self.line_break(ahead).is_some()
    }

    fn is_blank_or_end(&self, ahead: usize) -> bool {
        matches!(self.byte(ahead), None | Some(b' ' | b'\t')) || self.line_break(ahead).is_some()
    }

    /// Whether a line begins here with one of the two marks between documents.
    fn is_separator(&self, mark: &str) -> bool {
        self.column() == 0
            && self.text[self.position..].starts_with(mark)
            && self.is_blank_or_end(mark.len())
    }

    fn is_any_separator(&self) -> bool {
        self.is_separator("---") || self.is_separator("...")
    }

    fn skip_spaces(&mut self) {
        while self.byte(0) == Some(b' ') {
            self.position += 1;
        }
    }

    fn skip_spaces_and_tabs(&mut self) {
        while matches!(self.byte(0), Some(b' ' | b'\t')) {
            self.position += 1;
        }
    }

    fn skip_line(&mut self) {
        while !self.is_break_or_end(0) {
            self.position += 1;
        }
    }

    /// Goes past a line break, where there is one, and says what it counts as.
    fn skip_break(&mut self) -> Option<char> {
        let (length, character) = self.line_break(0)?;
        self.position += length;
        self.line += 1;
        self.line_start = self.position;
        Some(character)
    }

    /// Goes past spaces, comments and line breaks.
    fn skip_to_token(&mut self) {
        loop {
            self.skip_spaces();
            if self.byte(0) == Some(b'#') {
                self.skip_line();
            }
            if self.skip_break().is_none() {
                return;
            }
            if self.flow_level == 0 {
                self.allows_key = true;
            }
        }
    }

    // Simple keys.

    /// Forgets the keys that cannot be any, for their colon would be too far away or on another
    /// line.
    fn drop_stale_keys(&mut self) -> Result<(), DecodeError> {
        while let Some(key) = self.simple_keys.front()
            && (key.line != self.line || self.position - key.position > MAX_SIMPLE_KEY)
        {
            if key.is_required {
                return Err(malformed("a key without a colon", key.position));
            }
            self.simple_keys.pop_front();
        }
        Ok(())
    }

    /// Notes that a simple key may begin here.
    fn save_key(&mut self) -> Result<(), DecodeError> {
        if self.allows_key {
            self.remove_key()?;
            self.simple_keys.push_back(SimpleKey {
                flow_level: self.flow_level,
                token: self.taken + self.queue.len(),
                is_required: self.flow_level == 0 && self.margin == self.column() + 1,
                position: self.position,
                column: self.column(),
                line: self.line,
            });
        }
        Ok(())
    }

    /// The key that may have begun at this level, which is forgotten.
    fn take_key(&mut self) -> Option<SimpleKey> {
        self.simple_keys.pop_back_if(|key| key.flow_level == self.flow_level)
    }

    fn remove_key(&mut self) -> Result<(), DecodeError> {
        match self.take_key() {
            Some(key) if key.is_required => Err(malformed("a key without a colon", key.position)),
            _ => Ok(()),
        }
    }

    // Block collections.

    /// Opens a block collection at a column, unless it is open already.
    fn open_block(&mut self, column: usize) -> bool {
        if self.margin > column {
            return false;
        }
        self.outer_margins.push(self.margin);
        self.margin = column + 1;
        true
    }

    /// Ends the block collections that have a greater margin.
    fn close_blocks(&mut self, margin: usize) {
        if self.flow_level > 0 {
            return;
        }
        while self.margin > margin {
            self.margin = self.outer_margins.pop().unwrap_or_default();
            self.push(Token::BlockEnd, self.position);
        }
    }

    /// What an indicator of a block collection needs, where it is not within a flow collection.
    fn begin_block(&mut self, start: Token<'body>) -> Result<(), DecodeError> {
        if self.flow_level > 0 {
            return Ok(());
        }
        if !self.allows_key {
            return Err(malformed("an indicator where none may be", self.position));
        }
        if self.open_block(self.column()) {
            self.push(start, self.position);
        }
        Ok(())
    }

    // Tokens.

    fn push(&mut self, token: Token<'body>, position: usize) {
        self.queue.push_back(Queued { token, position, begins: Begins::Nothing });
    }

    /// Adds a token of one byte.
    fn push_indicator(&mut self, token: Token<'body>) {
        self.push(token, self.position);
        self.position += 1;
    }

    fn fetch_end(&mut self) -> Result<(), DecodeError> {
        // Flow collections that are still open are an error that the parser finds.
        self.close_blocks(0);
        self.remove_key()?;
        self.simple_keys.clear();
        self.push(Token::StreamEnd, self.position);
        self.is_done = true;
        Ok(())
    }

    fn fetch_directive(&mut self) -> Result<(), DecodeError> {
        self.close_blocks(0);
        self.remove_key()?;
        self.allows_key = false;
        let start = self.position;
        self.skip_line();
        let line = &self.text[start..self.position];
        let mut words = line.split(' ').filter(|word| !word.is_empty());
        match (words.next(), words.next()) {
            (Some("%TAG"), _) => return Err(malformed("a prefix for tags is declared", start)),
            (Some("%YAML"), version) if !version.is_some_and(|text| text.starts_with("1.")) => {
                return Err(malformed("a version of YAML other than 1", start));
            }
            _ => {}
        }
        self.push(Token::Directive, start);
        Ok(())
    }

    fn fetch_separator(&mut self, token: Token<'body>) -> Result<(), DecodeError> {
        self.close_blocks(0);
        self.remove_key()?;
        self.allows_key = false;
        self.push(token, self.position);
        self.position += 3;
        Ok(())
    }

    fn fetch_flow_start(&mut self, token: Token<'body>) -> Result<(), DecodeError> {
        self.save_key()?;
        self.flow_level += 1;
        self.allows_key = true;
        self.push_indicator(token);
        Ok(())
    }

    fn fetch_flow_end(&mut self, token: Token<'body>) -> Result<(), DecodeError> {
        self.remove_key()?;
        let problem = malformed("an end of what has not begun", self.position);
        self.flow_level = self.flow_level.checked_sub(1).ok_or(problem)?;
        self.allows_key = false;
        self.push_indicator(token);
        Ok(())
    }

    fn fetch_value(&mut self) -> Result<(), DecodeError> {
        if let Some(key) = self.take_key() {
            let begins_mapping = self.flow_level == 0 && self.open_block(key.column);
            if let Some(queued) = self.queue.get_mut(key.token - self.taken) {
                queued.begins = if begins_mapping { Begins::MappingAndKey } else { Begins::Key };
            }
            self.allows_key = false;
        } else {
            self.begin_block(Token::BlockMappingStart)?;
            self.allows_key = self.flow_level == 0;
        }
        self.push_indicator(Token::Value);
        Ok(())
    }

    fn scan_anchor(&mut self) -> Result<&'body str, DecodeError> {
        self.position += 1;
        let rest = &self.text[self.position..];
        let length = rest.bytes().take_while(|&byte| is_name(byte)).count();
        self.position += length;
        let is_ended = self.is_blank_or_end(0)
            || matches!(self.byte(0), Some(b'?' | b':' | b',' | b']' | b'}' | b'%' | b'@' | b'`'));
        if length == 0 || !is_ended {
            return Err(malformed("a bad name of an anchor", self.position));
        }
        Ok(&rest[..length])
    }

    fn scan_tag(&mut self) -> Result<Option<Tag>, DecodeError> {
        let start = self.position;
        self.position += 1;
        if self.is_blank_or_end(0) {
            return Ok(None);
        }
        let rest = &self.text[self.position..];
        let length = rest.bytes().take_while(|&byte| is_uri(byte)).count();
        let (uri, tag) = if let Some(verbatim) = rest.strip_prefix('<') {
            let uri = verbatim.split_once('>').map_or("", |(uri, _)| uri);
            (uri.len() + 2, Tag::of_uri(uri))
        } else {
            (length, rest[..length].strip_prefix('!').and_then(Tag::of_name))
        };
        let tag = tag.ok_or(malformed("a tag that safe_load does not know", start))?;
        self.position += uri;
        if self.is_break_or_end(0) || self.byte(0) == Some(b' ') {
            Ok(Some(tag))
        } else {
            Err(malformed("something follows a tag", self.position))
        }
    }
}

fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')
}

fn is_uri(byte: u8) -> bool {
    is_name(byte) || b";/?:@&=+$,.!~*'()[]%".contains(&byte)
}
