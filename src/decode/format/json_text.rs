//! A scanner for JSON as Python's `json` module writes it.
//!
//! It checks values against the grammar and returns them as slices of the text. The grammar is that
//! of RFC 8259 with Python's additions: `NaN`, `Infinity`, `-Infinity` and escapes of lone
//! surrogates. `serde_json`, including its `RawValue`, and other libraries refuse these.

use std::borrow::Cow;

use crate::decode::DecodeError;
use crate::decode::result_meta::Text;

/// An iterator over the members of the object in a text: each name, and the text of the value.
/// Callers must stop at the first error.
pub(in crate::decode) struct Members<'text> {
    scanner: Scanner<'text>,
    is_first: bool,
}

impl<'text> Members<'text> {
    /// Starts at the object in `text`. The text must contain nothing else, and the object's values
    /// may be nested at most `max_depth` levels deep.
    pub(in crate::decode) fn of(text: &'text str, max_depth: usize) -> Result<Self, DecodeError> {
        let mut scanner = Scanner { text, position: 0, max_depth, closers: Vec::new() };
        scanner.skip_whitespace();
        match scanner.peek() {
            Some(b'{') => scanner.position += 1,
            Some(_) => return Err(scanner.malformed("expected an object")),
            None => return Err(scanner.malformed("the text ends")),
        }
        Ok(Self { scanner, is_first: true })
    }

    fn advance(&mut self) -> Result<Option<(Cow<'text, str>, &'text str)>, DecodeError> {
        if !self.scanner.has_next(b'}', &mut self.is_first)? {
            return Ok(None);
        }
        let key = self.scanner.key()?;
        self.scanner.skip_whitespace();
        let value = self.scanner.value()?;
        Ok(Some((key, value)))
    }
}

impl<'text> Iterator for Members<'text> {
    type Item = Result<(Cow<'text, str>, &'text str), DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.advance().transpose()
    }
}

/// An iterator over the texts of the elements of the array in a text. Callers must stop at the
/// first error.
pub(in crate::decode) struct Elements<'text> {
    scanner: Scanner<'text>,
    is_first: bool,
    is_over: bool,
}

impl<'text> Elements<'text> {
    /// Starts at the array in `text`. The text must contain nothing else, and the elements may be
    /// nested at most `max_depth` levels deep. Returns `None` if the text does not begin with an
    /// array.
    pub(in crate::decode) fn of(text: &'text str, max_depth: usize) -> Option<Self> {
        let mut scanner = Scanner { text, position: 0, max_depth, closers: Vec::new() };
        scanner.skip_whitespace();
        (scanner.peek() == Some(b'[')).then(|| {
            scanner.position += 1;
            Self { scanner, is_first: true, is_over: false }
        })
    }

    fn advance(&mut self) -> Result<Option<&'text str>, DecodeError> {
        if !self.scanner.has_next(b']', &mut self.is_first)? {
            return Ok(None);
        }
        self.scanner.value().map(Some)
    }
}

impl<'text> Iterator for Elements<'text> {
    type Item = Result<&'text str, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let element = self.advance().transpose();
        self.is_over = !matches!(element, Some(Ok(_)));
        element
    }
}

/// The characters of a JSON string that the scanner has checked; `None` for any other value.
pub(in crate::decode) fn string(value: &str) -> Option<Text<'_>> {
    let inner = value.strip_prefix('"')?.strip_suffix('"')?;
    if !inner.contains('\\') {
        return Some(Text { text: Cow::Borrowed(inner), is_lossy: false });
    }
    let mut decoded = String::with_capacity(inner.len());
    let mut is_lossy = false;
    let mut rest = inner;
    while let Some(backslash) = rest.find('\\') {
        decoded.push_str(&rest[..backslash]);
        let escape = rest.as_bytes()[backslash + 1];
        rest = &rest[backslash + 2..];
        decoded.push(match escape {
            b'n' => '\n',
            b't' => '\t',
            b'r' => '\r',
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'u' => {
                let unit = hex4(&mut rest);
                let character = match unit {
                    0xD800..0xDC00 => low_surrogate(&mut rest)
                        .and_then(|low| char::from_u32(0x10000 + ((unit - 0xD800) << 10) + low)),
                    _ => char::from_u32(unit),
                };
                is_lossy |= character.is_none();
                character.unwrap_or(char::REPLACEMENT_CHARACTER)
            }
            other => char::from(other),
        });
    }
    decoded.push_str(rest);
    Some(Text { text: Cow::Owned(decoded), is_lossy })
}

/// The strings among the elements of an array that the scanner has checked; none if the value is
/// not an array.
pub(in crate::decode) fn strings(value: &str) -> impl Iterator<Item = Cow<'_, str>> {
    let elements = Elements::of(value, usize::MAX).into_iter().flatten();
    elements.filter_map(|element| Some(string(element.ok()?)?.text))
}

/// Removes four hexadecimal digits, which the scanner has checked, from the front and returns their
/// value.
fn hex4(rest: &mut &str) -> u32 {
    let (digits, tail) = rest.split_at(4);
    *rest = tail;
    u32::from_str_radix(digits, 16).unwrap_or_default()
}

/// If `rest` begins with the escape of a low surrogate, removes it and returns its low ten bits.
fn low_surrogate(rest: &mut &str) -> Option<u32> {
    let mut tail = rest.strip_prefix("\\u")?;
    let unit = hex4(&mut tail);
    let low = (0xDC00..0xE000).contains(&unit).then(|| unit - 0xDC00)?;
    *rest = tail;
    Some(low)
}

struct Scanner<'text> {
    text: &'text str,
    position: usize,
    /// How many brackets may be open inside the current value.
    max_depth: usize,
    /// The brackets that are open inside the current value, as the bytes that close them.
    closers: Vec<u8>,
}

impl<'text> Scanner<'text> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.position).copied()
    }

    fn malformed(&self, problem: &'static str) -> DecodeError {
        DecodeError::Malformed { format: "JSON", problem, position: self.position }
    }

    fn skip_whitespace(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.position += 1;
        }
    }

    /// Skips to the next element of the outermost object or array and returns true. At the end,
    /// skips `closer`, checks that nothing follows, and returns false.
    fn has_next(&mut self, closer: u8, is_first: &mut bool) -> Result<bool, DecodeError> {
        let [too_much, expected] = match closer {
            b'}' => ["something follows the object", "expected `,` or `}`"],
            _ => ["something follows the array", "expected `,` or `]`"],
        };
        self.skip_whitespace();
        match self.peek() {
            Some(byte) if byte == closer => {
                self.position += 1;
                self.skip_whitespace();
                return match self.peek() {
                    None => Ok(false),
                    Some(_) => Err(self.malformed(too_much)),
                };
            }
            Some(b',') if !*is_first => {
                self.position += 1;
                self.skip_whitespace();
            }
            Some(_) if *is_first => {}
            Some(_) => return Err(self.malformed(expected)),
            None => return Err(self.malformed("the text ends")),
        }
        *is_first = false;
        Ok(true)
    }

    /// Reads a member's name and the colon after it.
    fn key(&mut self) -> Result<Cow<'text, str>, DecodeError> {
        let start = self.position;
        if self.peek() != Some(b'"') {
            return Err(self.malformed("expected a member's name"));
        }
        self.skip_string()?;
        let key = string(&self.text[start..self.position]).map(|decoded| decoded.text);
        self.skip_whitespace();
        if self.peek() != Some(b':') {
            return Err(self.malformed("expected `:`"));
        }
        self.position += 1;
        Ok(key.unwrap_or_default())
    }

    /// Reads one value of any type and returns its text. Each level of nesting takes one byte of
    /// the heap and no stack.
    fn value(&mut self) -> Result<&'text str, DecodeError> {
        let start = self.position;
        self.closers.clear();
        loop {
            // A value begins here.
            match self.peek() {
                Some(open @ (b'{' | b'[')) => {
                    if self.closers.len() == self.max_depth {
                        return Err(DecodeError::TooDeep { limit: self.max_depth });
                    }
                    // In ASCII, the code of each closing bracket is that of the opening one plus 2.
                    self.closers.push(open + 2);
                    self.position += 1;
                    self.skip_whitespace();
                    if self.peek() != self.closers.last().copied() {
                        self.key_in_object()?;
                        continue;
                    }
                }
                Some(b'"') => self.skip_string()?,
                Some(b'-' | b'0'..=b'9') => self.skip_number()?,
                Some(_) => self.skip_literal()?,
                None => return Err(self.malformed("the text ends")),
            }
            // A value has ended here, or the bracket around it closes.
            loop {
                let Some(&closer) = self.closers.last() else {
                    return Ok(&self.text[start..self.position]);
                };
                self.skip_whitespace();
                match self.peek() {
                    Some(b',') => {
                        self.position += 1;
                        self.skip_whitespace();
                        self.key_in_object()?;
                        break;
                    }
                    Some(byte) if byte == closer => {
                        self.position += 1;
                        self.closers.pop();
                    }
                    Some(_) => return Err(self.malformed("expected `,` or a closing bracket")),
                    None => return Err(self.malformed("the text ends")),
                }
            }
        }
    }

    /// Skips the name before a value if the innermost open bracket is that of an object.
    fn key_in_object(&mut self) -> Result<(), DecodeError> {
        if self.closers.last() == Some(&b'}') {
            self.key()?;
            self.skip_whitespace();
        }
        Ok(())
    }

    fn skip_string(&mut self) -> Result<(), DecodeError> {
        self.position += 1;
        let bytes = self.text.as_bytes();
        loop {
            match bytes.get(self.position) {
                Some(b'"') => {
                    self.position += 1;
                    return Ok(());
                }
                Some(b'\\') => match bytes.get(self.position + 1) {
                    Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {
                        self.position += 2;
                    }
                    Some(b'u') => {
                        let digits = bytes.get(self.position + 2..self.position + 6);
                        if !digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)) {
                            return Err(self.malformed("expected four hexadecimal digits"));
                        }
                        self.position += 6;
                    }
                    _ => return Err(self.malformed("no such escape")),
                },
                Some(..0x20) => return Err(self.malformed("a control character in a string")),
                Some(_) => self.position += 1,
                None => return Err(self.malformed("the text ends in a string")),
            }
        }
    }

    fn skip_number(&mut self) -> Result<(), DecodeError> {
        if self.peek() == Some(b'-') {
            self.position += 1;
            if self.peek() == Some(b'I') {
                return self.skip_word("Infinity");
            }
        }
        match self.peek() {
            Some(b'0') => self.position += 1,
            _ => self.skip_digits()?,
        }
        if self.peek() == Some(b'.') {
            self.position += 1;
            self.skip_digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.position += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.position += 1;
            }
            self.skip_digits()?;
        }
        Ok(())
    }

    fn skip_digits(&mut self) -> Result<(), DecodeError> {
        let start = self.position;
        while let Some(b'0'..=b'9') = self.peek() {
            self.position += 1;
        }
        if self.position == start { Err(self.malformed("expected a digit")) } else { Ok(()) }
    }

    fn skip_literal(&mut self) -> Result<(), DecodeError> {
        match self.peek() {
            Some(b't') => self.skip_word("true"),
            Some(b'f') => self.skip_word("false"),
            Some(b'n') => self.skip_word("null"),
            Some(b'N') => self.skip_word("NaN"),
            Some(b'I') => self.skip_word("Infinity"),
            _ => Err(self.malformed("expected a value")),
        }
    }

    fn skip_word(&mut self, word: &str) -> Result<(), DecodeError> {
        if !self.text[self.position..].starts_with(word) {
            return Err(self.malformed("expected a value"));
        }
        self.position += word.len();
        Ok(())
    }
}
