//! The pickle body of Celery's `rpc://` results. It is walked and never executed.
//!
//! The columns hold what `pickle.dumps` would have written for a member's value alone, in base64,
//! as django-celery-results does with everything binary (`DatabaseBackend.encode_content` in
//! `django_celery_results/backends/database.py`, 2.6.0).
//!
//! As in Python, what follows the opcode STOP is not read.

mod opcode;
mod program;
mod text;
mod walk;
mod write;

use std::borrow::Cow;
use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use self::opcode::Op;
use self::program::{Kind, Pair, Program, Span, malformed, offset};
use crate::decode::accept::PICKLE;
use crate::decode::event::{Event, EventPolicy, python_json};
use crate::decode::result_meta::{ResultMeta, Text, Value};
use crate::decode::{Context, DecodeError, Decoded};
use crate::task_result::TaskResult;

/// How much more than the body the values of events may come to, when what they share counts as
/// often as it is shared.
const MAX_SHARED_EXCESS: usize = 1 << 20;

/// Reads the result in a body of the content type `application/x-python-serialize`.
pub(super) fn decode(body: &[u8], context: Context<'_>) -> Result<TaskResult, DecodeError> {
    let program = walk::read(body, context.limits.depth, 1)?;
    if program.root != Kind::Dict {
        return Err(malformed("expected a dict", 0));
    }
    ResultMeta::collect(members(&program, 0))?.into_result(context.message)
}

/// Reads the events in a body of the content type `application/x-python-serialize`: one, or a
/// list.
pub(super) fn decode_events(
    body: &[u8],
    policy: EventPolicy,
    context: Context<'_>,
) -> Result<Decoded, DecodeError> {
    let Context { message, limits } = context;
    let program = walk::read(body, limits.depth, 2)?;
    // Celery's events share short texts only, as the name of the host.
    if program.shared_bytes() > body.len() + MAX_SHARED_EXCESS {
        return Err(malformed("the events share too much", 0));
    }
    let mut events = Decoded::default();
    match program.root {
        Kind::Dict => {
            events.push(Event::collect(members(&program, 0))?.into_result(message, policy));
        }
        Kind::List if program.elements.len() > limits.events => {
            return Err(DecodeError::TooManyEvents { limit: limits.events });
        }
        Kind::List => {
            for &(span, kind) in &program.elements {
                events.push(if kind == Kind::Dict {
                    Event::collect(members(&program, span.start))?.into_result(message, policy)
                } else {
                    Err("it is not a dict")
                });
            }
        }
        _ => return Err(malformed("expected a dict or a list", 0)),
    }
    Ok(events)
}

/// The members of the dict whose bytes begin there, but for those whose names are no texts or, in
/// the memo, longer than any of ours.
fn members<'program, 'body>(
    program: &'program Program<'body>,
    dict: u32,
) -> impl Iterator<Item = Result<(Cow<'body, str>, Pickled<'program, 'body>), DecodeError>> {
    program.pairs(dict).iter().filter_map(|pair| {
        let key = text::of(&program.short_atom(pair.key)?)?.text;
        Some(Ok((key, Pickled { program, pair })))
    })
}

/// `pickle.dumps(None, 4)`: the protocol is kombu's default (`kombu/serialization.py`, 5.7.0).
const NONE: &[u8] = b"\x80\x04N.";

/// `pickle.dumps({"children": []}, 4)`
const NO_CHILDREN: &[u8] = b"\x80\x04\x95\x11\0\0\0\0\0\0\0}\x94\x8c\x08children\x94]\x94s.";

/// The value of a member.
#[derive(Clone, Copy)]
struct Pickled<'program, 'body> {
    program: &'program Program<'body>,
    pair: &'program Pair,
}

impl<'body> Pickled<'_, 'body> {
    /// The opcode that pushes the value, where it is only one.
    fn atom(self) -> Option<Op<'body>> {
        self.program.atom(self.pair.value)
    }
}

impl<'body> Value<'body> for Pickled<'_, 'body> {
    const CONTENT_TYPE: &'static str = PICKLE;
    const CONTENT_ENCODING: &'static str = "binary";

    fn is_null(self) -> bool {
        // No pickler puts it into the memo.
        self.program.only(self.pair.value).is_some_and(|op| op.code == opcode::NONE)
    }

    fn text(self) -> Option<Text<'body>> {
        text::of(&self.atom()?)
    }

    fn texts(self) -> Vec<Cow<'body, str>> {
        let Self { program, pair: &Pair { value, .. } } = self;
        let container = program.made_elsewhere(value).unwrap_or(value);
        let texts = program.ops(container).filter_map(|op| {
            let span = Span { start: offset(op.start), end: offset(op.end) };
            Some(text::of(&program.short_atom(span)?)?.text)
        });
        // Each once, however often it is got from the memo.
        texts.collect::<BTreeSet<_>>().into_iter().collect()
    }

    fn number(self) -> Option<f64> {
        number(&self.atom()?)
    }

    fn is_true(self) -> bool {
        self.atom().is_some_and(|op| match op.code {
            opcode::INT => op.argument == b"01",
            code => code == opcode::NEWTRUE,
        })
    }

    fn json(self) -> Option<String> {
        self.text().map(|text| python_json(&text.text))
    }

    fn column(self) -> String {
        STANDARD.encode(write::value(self.program, self.pair))
    }

    fn null_column() -> String {
        STANDARD.encode(NONE)
    }

    fn meta(children: Option<Self>) -> String {
        children.map_or_else(
            || STANDARD.encode(NO_CHILDREN),
            |children| STANDARD.encode(write::dict(children.program, children.pair)),
        )
    }
}

/// The number that an opcode pushes, where it pushes one.
#[expect(clippy::cast_precision_loss, reason = "it is the time of an event")]
fn number(op: &Op<'_>) -> Option<f64> {
    let bytes = op.argument;
    let line = || std::str::from_utf8(bytes).ok();
    match op.code {
        opcode::BINFLOAT => Some(f64::from_be_bytes(bytes.try_into().ok()?)),
        opcode::BININT1 | opcode::BININT2 => Some(opcode::little_endian(bytes) as f64),
        opcode::BININT => Some(f64::from(i32::from_le_bytes(bytes.try_into().ok()?))),
        // In as few bytes as it needs, and the highest bit is the sign.
        opcode::LONG1 | opcode::LONG4 if bytes.len() <= 8 => {
            let unused = 64 - 8 * u32::try_from(bytes.len()).ok()?;
            let shifted = opcode::little_endian(bytes).checked_shl(unused).unwrap_or(0);
            Some((shifted.cast_signed() >> unused.min(63)) as f64)
        }
        opcode::INT if bytes == b"00" || bytes == b"01" => None,
        opcode::INT | opcode::FLOAT => line()?.parse().ok(),
        opcode::LONG => line()?.trim_end_matches('L').parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read;
    use std::time::{Duration, Instant};

    use chrono::DateTime;
    use serde::Deserialize;

    use super::*;
    use crate::decode::WireLimits;
    use crate::message::{Message, Properties};
    use crate::row::Row;

    fn message(body: impl Into<Vec<u8>>) -> Message {
        Message {
            body: body.into(),
            properties: Properties::default(),
            headers: [].into(),
            exchange: String::new(),
            routing_key: String::new(),
            redelivered: false,
            delivery_tag: 1,
            received_at: DateTime::from_timestamp(1_795_416_700, 0).expect("in range"),
        }
    }

    fn decode(body: impl Into<Vec<u8>>) -> Result<TaskResult, DecodeError> {
        let limits = WireLimits::default();
        let message = message(body);
        super::decode(&message.body, Context { message: &message, limits: &limits })
    }

    fn decode_events(body: impl Into<Vec<u8>>) -> Result<Decoded, DecodeError> {
        let limits = WireLimits::default();
        let message = message(body);
        let policy = EventPolicy { pending: true, arguments: true, unfinished_only: false };
        super::decode_events(&message.body, policy, Context { message: &message, limits: &limits })
    }

    /// Opcodes one after the other.
    fn body(parts: &[&[u8]]) -> Vec<u8> {
        parts.concat()
    }

    /// `{"task_id": "t", "status": "SUCCESS", …}`, without a memo.
    fn result(members: &[&[u8]]) -> Vec<u8> {
        let head = b"\x80\x04}(\x8c\x07task_id\x8c\x01t\x8c\x06status\x8c\x07SUCCESS";
        body(&[head, &members.concat(), b"u."])
    }

    /// What the column `result` holds for the opcodes of a value.
    fn column_of(value: &[u8]) -> Vec<u8> {
        let row = decode(result(&[b"\x8c\x06result", value])).expect("good");
        bytes(row.outcome.result.as_deref())
    }

    fn bytes(column: Option<&str>) -> Vec<u8> {
        STANDARD.decode(column.expect("a column")).expect("base64")
    }

    /// A body that Python has written, and the columns for its members.
    #[derive(Deserialize)]
    struct Case {
        name: String,
        body: String,
        columns: BTreeMap<String, Option<String>>,
    }

    fn cases() -> Vec<Case> {
        let packed = include_bytes!("../../../tests/data/pickle_bodies.json.xz");
        let mut json = String::new();
        liblzma::read::XzDecoder::new(&packed[..]).read_to_string(&mut json).expect("XZ");
        serde_json::from_str(&json).expect("JSON")
    }

    #[test]
    fn columns_hold_what_python_would_pickle() {
        let mut whole = 0;
        for Case { name, body, columns } in cases() {
            let row = decode(bytes(Some(&body))).expect(&name);
            assert_eq!((row.task_id.as_str(), row.outcome.status.as_str()), ("t", "SUCCESS"));
            assert_eq!(row.outcome.content_type, "application/x-python-serialize");
            assert_eq!(row.outcome.content_encoding, "binary");
            assert_eq!(row.outcome.date_done.to_rfc3339(), "2026-11-23T06:51:16.000321+00:00");
            assert_eq!(row.outcome.traceback, None);
            assert_eq!(row.description.task_name.as_deref(), Some("shop.pay"));
            assert_eq!(row.description.worker.as_deref(), Some("w@h"));
            for (column, expected) in columns {
                let held = match &*column {
                    "result" => &row.outcome.result,
                    "meta" => &row.outcome.meta,
                    "args" => &row.description.task_args,
                    _ => &row.description.task_kwargs,
                };
                if expected.is_some() {
                    assert!(*held == expected, "{column} of {name}");
                    continue;
                }
                let held = bytes(held.as_deref());
                let text = String::from_utf8_lossy(&held);
                assert!(text.contains("coperator\ngetitem\n("), "{column} of {name}");
                whole += 1;
            }
        }
        assert_eq!(whole, 12, "two for each protocol");
    }
}
