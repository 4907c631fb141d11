//! The strings of pickle: UTF-8 that may contain lone surrogates (Python's `surrogatepass`), the
//! ASCII of protocol 0, and the byte strings of Python 2.

use std::borrow::Cow;

use crate::decode::format::pickle::opcode as op;
use crate::decode::format::pickle::opcode::Op;
use crate::decode::result_meta::Text;

/// The string that an opcode pushes, if it pushes one.
pub(super) fn of<'body>(op: &Op<'body>) -> Option<Text<'body>> {
    match op.code {
        op::BINUNICODE | op::SHORT_BINUNICODE | op::BINUNICODE8 => utf8(op.argument),
        op::UNICODE => escaped(op.argument),
        op::BINSTRING | op::SHORT_BINSTRING => ascii(op.argument),
        op::STRING => {
            let [quote @ (b'\'' | b'"'), text @ .., last] = op.argument else { return None };
            ascii(text).filter(|text| quote == last && !text.text.contains('\\'))
        }
        _ => None,
    }
}

/// Whether bytes are UTF-8 that may contain lone surrogates.
pub(super) fn is_utf8(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok() || utf8(bytes).is_some()
}

fn utf8(bytes: &[u8]) -> Option<Text<'_>> {
    let mut rest = bytes;
    let mut text = String::new();
    loop {
        match std::str::from_utf8(rest) {
            Ok(whole) if rest.len() == bytes.len() => {
                return Some(Text { text: Cow::Borrowed(whole), is_lossy: false });
            }
            Ok(last) => {
                text.push_str(last);
                return Some(Text { text: Cow::Owned(text), is_lossy: true });
            }
            Err(error) => {
                let (valid, after) = rest.split_at(error.valid_up_to());
                let [0xED, 0xA0..=0xBF, 0x80..=0xBF, after @ ..] = after else { return None };
                text.push_str(std::str::from_utf8(valid).ok()?);
                text.push(char::REPLACEMENT_CHARACTER);
                rest = after;
            }
        }
    }
}

fn ascii(bytes: &[u8]) -> Option<Text<'_>> {
    let text = std::str::from_utf8(bytes).ok().filter(|text| text.is_ascii())?;
    Some(Text { text: Cow::Borrowed(text), is_lossy: false })
}

/// Latin-1 with the escapes `\uXXXX` and `\UXXXXXXXX`. A backslash is itself escaped in this way
/// (`save_str` in `Lib/pickle.py`, Python 3.13).
fn escaped(bytes: &[u8]) -> Option<Text<'_>> {
    if !bytes.contains(&b'\\') && bytes.is_ascii() {
        return ascii(bytes);
    }
    let mut text = String::with_capacity(bytes.len());
    let mut is_lossy = false;
    let mut rest = bytes;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'\\' {
            text.push(char::from(byte));
            continue;
        }
        let digits = match rest.first()? {
            b'u' => 4,
            b'U' => 8,
            _ => return None,
        };
        let number = std::str::from_utf8(rest.get(1..=digits)?).ok()?;
        let number = u32::from_str_radix(number, 16).ok()?;
        is_lossy |= (0xD800..0xE000).contains(&number);
        text.push(char::from_u32(number).unwrap_or(char::REPLACEMENT_CHARACTER));
        rest = &rest[1 + digits..];
    }
    Some(Text { text: Cow::Owned(text), is_lossy })
}
