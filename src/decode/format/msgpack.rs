//! The msgpack body of Celery's `rpc://` results.
//!
//! The bytes of a member are what `msgpack.packb` returns for the member's value alone, so the
//! columns contain these bytes in base64, as django-celery-results stores all binary content
//! (`DatabaseBackend.encode_content` in `django_celery_results/backends/database.py`, 2.6.0).

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::decode::event::{Event, EventPolicy, python_json};
use crate::decode::limits::Context;
use crate::decode::result_meta::{ResultMeta, Text, WireValue};
use crate::decode::{DecodeError, Decoded};
use crate::row::task_result::TaskResult;

/// Reads the result in a body of the content type `application/x-msgpack`.
pub(in crate::decode) fn decode(
    body: &[u8],
    context: Context<'_>,
) -> Result<TaskResult, DecodeError> {
    let members = Members::of(body, context.limits.depth)?;
    ResultMeta::collect(members)?.into_result(context.message)
}

/// Reads the events in a body of the content type `application/x-msgpack`: a single event, or a
/// list.
pub(in crate::decode) fn decode_events(
    body: &[u8],
    policy: EventPolicy,
    context: Context<'_>,
) -> Result<Decoded, DecodeError> {
    let limits = context.limits;
    let mut events = Decoded::default();
    let (count, mut position) = match *body {
        [header @ 0x90..=0x9F, ..] => (u32::from(header & 0x0F), 1),
        [0xDC, a, b, ..] => (u32::from(u16::from_be_bytes([a, b])), 3),
        [0xDD, a, b, c, d, ..] => (u32::from_be_bytes([a, b, c, d]), 5),
        _ => {
            let event = Event::collect(Members::of(body, limits.depth)?)?;
            events.push(event.into_result(policy));
            return Ok(events);
        }
    };
    if count as usize > limits.events {
        return Err(DecodeError::TooManyEvents { limit: limits.events });
    }
    for _ in 0..count {
        let value = first_value(body, position, limits.depth)?;
        position += value.0.len();
        events.push(match Members::of(value.0, limits.depth) {
            Ok(members) => Event::collect(members)?.into_result(policy),
            Err(_) => Err("it is not a map"),
        });
    }
    if position < body.len() {
        return Err(malformed("something follows the array", position));
    }
    Ok(events)
}

/// The value at a position of the body, which may be nested at most `max_depth` levels deep.
fn first_value(body: &[u8], position: usize, max_depth: usize) -> Result<Packed<'_>, DecodeError> {
    let bytes = &body[position..];
    match value_length(bytes, max_depth) {
        Ok(length) if length <= bytes.len() => Ok(Packed(&bytes[..length])),
        Err(Unread::TooDeep) => Err(DecodeError::TooDeep { limit: max_depth }),
        _ => Err(malformed(
            "a value is cut off, has an unknown type or is text that is not UTF-8",
            position,
        )),
    }
}

/// `None` in msgpack.
const NIL: [u8; 1] = [0xC0];

/// An empty list in msgpack.
const EMPTY_ARRAY: [u8; 1] = [0x90];

/// The bytes of one value.
#[derive(Clone, Copy)]
struct Packed<'body>(&'body [u8]);

impl<'body> WireValue<'body> for Packed<'body> {
    const CONTENT_TYPE: &'static str = "application/x-msgpack";
    const CONTENT_ENCODING: &'static str = "binary";

    fn is_null(self) -> bool {
        self.0 == NIL
    }

    fn text(self) -> Option<Text<'body>> {
        let text = rmp_serde::from_slice::<&str>(self.0).ok()?;
        Some(Text { text: Cow::Borrowed(text), is_lossy: false })
    }

    fn texts(self) -> Vec<Cow<'body, str>> {
        let texts = rmp_serde::from_slice::<Vec<&str>>(self.0).unwrap_or_default();
        texts.into_iter().map(Cow::Borrowed).collect()
    }

    fn number(self) -> Option<f64> {
        // `rmp_serde` converts an integer if a float is requested.
        rmp_serde::from_slice(self.0).ok()
    }

    fn is_true(self) -> bool {
        self.0 == [0xC3]
    }

    fn json(self) -> Option<String> {
        self.text().map(|text| python_json(&text.text))
    }

    fn column(self) -> String {
        STANDARD.encode(self.0)
    }

    fn null_column() -> String {
        STANDARD.encode(NIL)
    }

    fn meta(children: Option<Self>) -> String {
        // A map with one member, whose name is a string of eight bytes.
        let children = children.map_or(&EMPTY_ARRAY[..], |children| children.0);
        STANDARD.encode([b"\x81\xa8children", children].concat())
    }
}

/// An iterator over the members of the map in a body, each with the bytes of its value. Callers
/// must stop at the first error.
struct Members<'body> {
    body: &'body [u8],
    position: usize,
    max_depth: usize,
    /// How many members are still to come.
    remaining: u64,
}

impl<'body> Members<'body> {
    /// Starts at the map in `body`. The body must contain nothing else, and the map's values may be
    /// nested at most `max_depth` levels deep.
    fn of(body: &'body [u8], max_depth: usize) -> Result<Self, DecodeError> {
        let (remaining, position) = match *body {
            [header @ 0x80..=0x8F, ..] => (u64::from(header & 0x0F), 1),
            [0xDE, a, b, ..] => (u64::from(u16::from_be_bytes([a, b])), 3),
            [0xDF, a, b, c, d, ..] => (u64::from(u32::from_be_bytes([a, b, c, d])), 5),
            _ => return Err(malformed("expected a map", 0)),
        };
        Ok(Self { body, position, max_depth, remaining })
    }

    fn advance(&mut self) -> Result<Option<(Cow<'body, str>, Packed<'body>)>, DecodeError> {
        if self.remaining == 0 {
            return if self.position == self.body.len() {
                Ok(None)
            } else {
                Err(malformed("something follows the map", self.position))
            };
        }
        self.remaining -= 1;
        let start = self.position;
        let key = self.value()?.text().ok_or(malformed("a member's name is not a text", start))?;
        Ok(Some((key.text, self.value()?)))
    }

    fn value(&mut self) -> Result<Packed<'body>, DecodeError> {
        let value = first_value(self.body, self.position, self.max_depth)?;
        self.position += value.0.len();
        Ok(value)
    }
}

impl<'body> Iterator for Members<'body> {
    type Item = Result<(Cow<'body, str>, Packed<'body>), DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.advance().transpose()
    }
}

fn malformed(problem: &'static str, position: usize) -> DecodeError {
    DecodeError::Malformed { format: "msgpack", problem, position }
}

/// Why the length of a value could not be determined.
enum Unread {
    /// The bytes end too early, or a marker is undefined.
    Malformed,
    /// The value is nested deeper than the limit.
    TooDeep,
}

/// The length in bytes of the value at the beginning of `bytes`, according to the table of markers
/// in <https://github.com/msgpack/msgpack/blob/master/spec.md>. It may be greater than the length
/// of `bytes`.
fn value_length(bytes: &[u8], max_depth: usize) -> Result<usize, Unread> {
    let mut position = 0_usize;
    // How many values are still to come in each array and map that is open.
    let mut open = Vec::new();
    loop {
        let marker = *bytes.get(position).ok_or(Unread::Malformed)?;
        position += 1;
        // The number of `width` bytes that follows the marker.
        let number = |width: usize| {
            let digits = bytes.get(position..position + width).ok_or(Unread::Malformed)?;
            Ok(digits.iter().fold(0_u64, |number, &digit| number << 8 | u64::from(digit)))
        };
        let low = |mask: u8| u64::from(marker & mask);
        // The number of bytes after the marker, and the number of values after these bytes.
        let (bytes_after, values_after) = match marker {
            0x00..=0x7F | 0xE0..=0xFF | 0xC0 | 0xC2 | 0xC3 => (0, 0),
            0x80..=0x8F => (0, 2 * low(0x0F)),
            0x90..=0x9F => (0, low(0x0F)),
            0xA0..=0xBF => (low(0x1F), 0),
            0xC1 => return Err(Unread::Malformed),
            0xC4 | 0xD9 => (1 + number(1)?, 0),
            0xC5 | 0xDA => (2 + number(2)?, 0),
            0xC6 | 0xDB => (4 + number(4)?, 0),
            0xC7 => (2 + number(1)?, 0),
            0xC8 => (3 + number(2)?, 0),
            0xC9 => (5 + number(4)?, 0),
            0xCC | 0xD0 => (1, 0),
            0xCD | 0xD1 => (2, 0),
            0xCA | 0xCE | 0xD2 => (4, 0),
            0xCB | 0xCF | 0xD3 => (8, 0),
            0xD4..=0xD8 => (1 + (1 << (marker - 0xD4)), 0),
            0xDC => (2, number(2)?),
            0xDD => (4, number(4)?),
            0xDE => (2, 2 * number(2)?),
            0xDF => (4, 2 * number(4)?),
        };
        let length_width = match marker {
            0xA0..=0xBF => Some(0),
            0xD9 => Some(1),
            0xDA => Some(2),
            0xDB => Some(4),
            _ => None,
        };
        let begin = position;
        position = usize::try_from(bytes_after)
            .ok()
            .and_then(|bytes| position.checked_add(bytes))
            .ok_or(Unread::Malformed)?;
        // kombu decodes strings strictly (`raw=False`), and so does every reader of the column.
        if let Some(width) = length_width {
            let text = bytes.get(begin + width..position).ok_or(Unread::Malformed)?;
            std::str::from_utf8(text).map_err(|_| Unread::Malformed)?;
        }
        if values_after > 0 {
            if open.len() == max_depth {
                return Err(Unread::TooDeep);
            }
            open.push(values_after);
            continue;
        }
        // A value has ended here, and with it every array and map whose last value it is.
        loop {
            match open.last_mut() {
                None => return Ok(position),
                Some(1) => {
                    open.pop();
                }
                Some(values) => {
                    *values -= 1;
                    break;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;
    use crate::decode::WireLimits;
    use crate::message::Message;

    fn message(body: Vec<u8>) -> Message {
        Message::new(body, DateTime::UNIX_EPOCH)
    }

    fn decode(message: &Message) -> Result<TaskResult, DecodeError> {
        let limits = WireLimits::default();
        super::decode(&message.body, Context { message, limits: &limits })
    }

    /// `{"task_id": "t", "status": "SUCCESS", "result": …, "traceback": None, "children": []}`
    fn five_members(result: &[u8]) -> Vec<u8> {
        let head = b"\x85\xa7task_id\xa1t\xa6status\xa7SUCCESS\xa6result";
        [&head[..], result, b"\xa9traceback\xc0\xa8children\x90"].concat()
    }

    #[test]
    fn columns_contain_the_bytes_of_the_members() {
        for (result, column) in [
            (&b"\xc0"[..], "wA=="),
            (b"\x2a", "Kg=="),
            (b"\xa5hello", "pWhlbGxv"),
            (b"\xc4\x02\xff\x00", "xAL/AA=="),
            (b"\x81\x01\x92\xc2\xcb\x3f\xf0\x00\x00\x00\x00\x00\x00", "gQGSwss/8AAAAAAAAA=="),
        ] {
            let read = decode(&message(five_members(result))).expect("good");
            assert_eq!(read.task_id, "t");
            assert_eq!(read.outcome.content_type, "application/x-msgpack");
            assert_eq!(read.outcome.content_encoding, "binary");
            assert_eq!(read.outcome.result.as_deref(), Some(column));
            assert_eq!(read.outcome.meta.as_deref(), Some("gahjaGlsZHJlbpA="));
            assert_eq!(read.outcome.traceback, None);
        }
    }

    #[test]
    fn a_text_that_is_not_utf_8_is_refused_as_by_kombu() {
        for text in [
            &b"\xa2\xff\xfe"[..],
            b"\xd9\x01\xff",
            b"\xda\x00\x01\xff",
            b"\xdb\x00\x00\x00\x01\xff",
            b"\x92\x01\xa1\xff",
            b"\x81\xa1\xff\x01",
        ] {
            let refused = decode(&message(five_members(text)));
            assert!(matches!(refused, Err(DecodeError::Malformed { .. })), "{text:?}");
        }
        for text in [&b"\xa2\xc3\xa9"[..], b"\xd9\x02\xc3\xa9", b"\xc4\x01\xff"] {
            assert!(decode(&message(five_members(text))).is_ok(), "{text:?}");
        }
    }

    #[test]
    fn a_body_cut_or_changed_anywhere_is_refused_or_read_and_never_panics() {
        let body = five_members(b"\x82\xa1a\x93\x01\x02\xd4\x05\x06\xa1b\xdd\x00\x00\x00\x01\xc3");
        assert!(decode(&message(body.clone())).is_ok());
        for length in 0..body.len() {
            assert!(decode(&message(body[..length].to_vec())).is_err(), "cut after {length} bytes");
        }
        for position in 0..body.len() {
            for byte in 0..=u8::MAX {
                let mut changed = body.clone();
                changed[position] = byte;
                let _ = decode(&message(changed));
            }
        }
    }

    #[test]
    fn anything_but_the_map_of_a_result_is_refused() {
        for body in [
            &b""[..],
            b"\xc0",
            b"\x90",
            b"\x80",
            b"\x81\x01\x02",
            b"\xdf\xff\xff\xff\xff",
            b"\x81\xa7task_id\x01",
            b"\x80\x80",
        ] {
            assert!(decode(&message(body.to_vec())).is_err(), "{body:?}");
        }
    }

    #[test]
    fn deep_nesting_uses_no_stack() {
        let nested = |depth: usize| [vec![0x91; depth], vec![0xC0]].concat();
        assert!(decode(&message(five_members(&nested(10_000)))).is_ok());
        for deeper in [nested(10_001), nested(1_000_000), vec![0x81; 1_000_000]] {
            let error = decode(&message(five_members(&deeper))).expect_err("too deep");
            assert_eq!(error, DecodeError::TooDeep { limit: 10_000 });
        }
    }

    #[test]
    fn the_length_of_every_type_of_value_is_known() {
        let long = |head: &[u8], length: usize| [head, &vec![0; length]].concat();
        for value in [
            long(b"\xc4\x03", 3),
            long(b"\xc5\x01\x00", 256),
            long(b"\xc6\x00\x01\x00\x00", 65_536),
            long(b"\xc7\x03\x05", 3),
            long(b"\xc8\x01\x00\x05", 256),
            long(b"\xc9\x00\x00\x00\x02\x05", 2),
            long(b"\xca", 4),
            long(b"\xcb", 8),
            long(b"\xcc", 1),
            long(b"\xcd", 2),
            long(b"\xce", 4),
            long(b"\xcf", 8),
            long(b"\xd0", 1),
            long(b"\xd1", 2),
            long(b"\xd2", 4),
            long(b"\xd3", 8),
            long(b"\xd4\x05", 1),
            long(b"\xd5\x05", 2),
            long(b"\xd6\x05", 4),
            long(b"\xd7\x05", 8),
            long(b"\xd8\x05", 16),
            long(b"\xd9\x02", 2),
            long(b"\xda\x00\x02", 2),
            long(b"\xdb\x00\x00\x00\x02", 2),
            long(b"\xdc\x00\x02", 2),
            long(b"\xdd\x00\x00\x00\x02", 2),
            long(b"\xde\x00\x01", 2),
            long(b"\xdf\x00\x00\x00\x01", 2),
            long(b"\x82\x01\xa1x\x02\x92\xc2", 1),
        ] {
            let mut followed = value.clone();
            followed.push(0xC1);
            assert_eq!(value_length(&followed, 2).ok(), Some(value.len()), "{:x?}", &value[..2]);
        }
        assert_eq!(value_length(b"\xc1", 2).ok(), None);
    }
}
