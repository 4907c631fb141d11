//! The pickle body of Celery's `rpc://` results. Its opcodes are read but never executed.
//!
//! A column contains a pickle of the value of a member, in base64, as django-celery-results stores
//! all binary content (`DatabaseBackend.encode_content` in
//! `django_celery_results/backends/database.py`, 2.6.0). The pickle consists of the opcodes that
//! the body has for the member. It loads to the same value as the output of `pickle.dumps`, but its
//! bytes may differ.
//!
//! As in Python, bytes after the opcode STOP are ignored.

mod column;
mod opcode;
mod text;
mod walk;

use std::borrow::Cow;
use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use self::opcode::{Kind, Op};
use self::walk::{Pair, Program, malformed};
use crate::decode::envelope::accept::PICKLE;
use crate::decode::event::{Event, EventPolicy, python_json};
use crate::decode::limits::Context;
use crate::decode::result_meta::{ResultMeta, Text, WireValue};
use crate::decode::{DecodeError, Decoded};
use crate::row::task_result::TaskResult;

/// How many bytes more than the body the values of events may have in total, if a value that
/// several events share is counted once for each of them.
const MAX_SHARED_EXCESS: usize = 1 << 20;

/// Reads the result in a body of the content type `application/x-python-serialize`.
pub(in crate::decode) fn decode(
    body: &[u8],
    context: Context<'_>,
) -> Result<TaskResult, DecodeError> {
    let program = Program::read(body, context.limits.depth, 1)?;
    let (dict, Kind::Dict) = program.root else {
        return Err(malformed("expected a dict", 0));
    };
    ResultMeta::collect(members(&program, dict))?.into_result(context.message)
}

/// Reads the events in a body of the content type `application/x-python-serialize`: a single event,
/// or a list.
pub(in crate::decode) fn decode_events(
    body: &[u8],
    policy: EventPolicy,
    context: Context<'_>,
) -> Result<Decoded, DecodeError> {
    let limits = context.limits;
    let program = Program::read(body, limits.depth, 2)?;
    // Celery's events share only short strings, such as the host name.
    if program.shared_bytes() > body.len() + MAX_SHARED_EXCESS {
        return Err(malformed("the events share too much", 0));
    }
    let mut events = Decoded::default();
    match program.root {
        (dict, Kind::Dict) => {
            events.push(Event::collect(members(&program, dict))?.into_result(policy));
        }
        (_, Kind::List) if program.elements.len() > limits.events => {
            return Err(DecodeError::TooManyEvents { limit: limits.events });
        }
        (_, Kind::List) => {
            for &(dict, kind) in &program.elements {
                events.push(if kind == Kind::Dict {
                    Event::collect(members(&program, dict))?.into_result(policy)
                } else {
                    Err("it is not a dict")
                });
            }
        }
        _ => return Err(malformed("expected a dict or a list", 0)),
    }
    Ok(events)
}

/// The members of the dict whose bytes begin at the offset `dict`, except those whose names are not
/// strings.
fn members<'program, 'body>(
    program: &'program Program<'body>,
    dict: u32,
) -> impl Iterator<Item = Result<(Cow<'body, str>, Pickled<'program, 'body>), DecodeError>> {
    program.pairs(dict).iter().filter_map(|pair| {
        let key = text::of(&program.op(pair.key)?)?.text;
        Some(Ok((key, Pickled { program, pair })))
    })
}

/// `None` in protocol 4, the default of kombu (`kombu/serialization.py`, 5.7.0).
const NONE: &[u8] = b"\x80\x04N.";

/// `{"children": []}` in protocol 4.
const NO_CHILDREN: &[u8] = b"\x80\x04}\x8c\x08children]s.";

/// The opcodes before and after the value of `children` that make a dict of it.
const CHILDREN: [&[u8]; 2] = [b"}X\x08\0\0\0children", b"s"];

/// The value of a member.
#[derive(Clone, Copy)]
struct Pickled<'program, 'body> {
    program: &'program Program<'body>,
    pair: &'program Pair,
}

impl<'body> Pickled<'_, 'body> {
    /// The opcode that pushes the value, if the value is a scalar.
    fn scalar(self) -> Option<Op<'body>> {
        self.program.op(self.pair.made.start).filter(|_| self.pair.kind == Kind::Scalar)
    }

    fn pickle(self, around: [&[u8]; 2]) -> String {
        STANDARD.encode(column::pickle(self.program, self.pair, around))
    }
}

impl<'body> WireValue<'body> for Pickled<'_, 'body> {
    const CONTENT_TYPE: &'static str = PICKLE;
    const CONTENT_ENCODING: &'static str = "binary";

    fn is_null(self) -> bool {
        self.scalar().is_some_and(|op| op.code == opcode::NONE)
    }

    fn text(self) -> Option<Text<'body>> {
        text::of(&self.scalar()?)
    }

    fn texts(self) -> Vec<Cow<'body, str>> {
        let Self { program, pair } = self;
        let ops = program.ops(pair.made).filter_map(|op| program.short_scalar(op));
        let texts = ops.filter_map(|op| Some(text::of(&op)?.text));
        // Each text is returned once, however often the list gets it from the memo.
        texts.collect::<BTreeSet<_>>().into_iter().collect()
    }

    fn number(self) -> Option<f64> {
        number(&self.scalar()?)
    }

    fn is_true(self) -> bool {
        self.scalar().is_some_and(|op| match op.code {
            opcode::INT => op.argument == b"01",
            code => code == opcode::NEWTRUE,
        })
    }

    fn json(self) -> Option<String> {
        self.text().map(|text| python_json(&text.text))
    }

    fn column(self) -> String {
        self.pickle([b"", b""])
    }

    fn null_column() -> String {
        STANDARD.encode(NONE)
    }

    fn meta(children: Option<Self>) -> String {
        children.map_or_else(|| STANDARD.encode(NO_CHILDREN), |children| children.pickle(CHILDREN))
    }
}

/// The number that an opcode pushes, if it can be the time of an event in seconds.
#[expect(clippy::cast_precision_loss, reason = "it is the time of an event")]
fn number(op: &Op<'_>) -> Option<f64> {
    let bytes = op.argument;
    match op.code {
        opcode::BINFLOAT => Some(f64::from_be_bytes(bytes.try_into().ok()?)),
        opcode::BININT1 | opcode::BININT2 => Some(opcode::little_endian(bytes) as f64),
        opcode::BININT => Some(f64::from(i32::from_le_bytes(bytes.try_into().ok()?))),
        // These are False and True in protocol 0.
        opcode::INT if bytes == b"00" || bytes == b"01" => None,
        opcode::INT | opcode::LONG | opcode::FLOAT => {
            std::str::from_utf8(bytes).ok()?.trim_end_matches('L').parse().ok()
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;
    use crate::decode::WireLimits;
    use crate::message::Message;

    fn message(body: impl Into<Vec<u8>>) -> Message {
        Message::new(body.into(), DateTime::from_timestamp(1_795_416_700, 0).expect("in range"))
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

    /// A pickle of `{"task_id": "t", "status": "SUCCESS", …}` that does not use the memo.
    fn with(members: &[u8]) -> Vec<u8> {
        let head = b"\x80\x04}(\x8c\x07task_id\x8c\x01t\x8c\x06status\x8c\x07SUCCESS";
        [head, members, b"u."].concat()
    }

    /// The same, with a value for `result`.
    fn with_result(value: &[u8]) -> Vec<u8> {
        with(&[b"\x8c\x06result", value].concat())
    }

    /// The pickle in the column `result` for a body.
    fn result(body: &[u8]) -> Vec<u8> {
        bytes(decode(body).expect("good").outcome.result.as_deref())
    }

    fn bytes(column: Option<&str>) -> Vec<u8> {
        STANDARD.decode(column.expect("a column")).expect("base64")
    }

    fn problem(body: &[u8]) -> (&'static str, usize) {
        match decode(body) {
            Err(DecodeError::Malformed { format: "pickle", problem, position }) => {
                (problem, position)
            }
            other => panic!("{other:?} of {body:x?}"),
        }
    }

    #[test]
    fn pickles_of_python_2_are_read() {
        // `{"task_id": "t", "status": u"SUCCESS", "result": {"a": [1, 2L, u"\xe9\u20ac"]},
        // "children": []}` as written by cPickle, which numbers the memo from 1.
        let text = decode(
            b"(dp1\nS'status'\np2\nVSUCCESS\np3\nsS'result'\np4\n(dp5\nS'a'\n(lp6\nI1\naL2L\naV\xe9\\u20ac\np7\nassS'task_id'\np8\nS't'\nsS'children'\np9\n(lp10\ns."
                .as_slice(),
        )
        .expect("protocol 0");
        assert_eq!(text.task_id, "t");
        assert_eq!(
            bytes(text.outcome.result.as_deref()),
            b"(dS'a'\n(lI1\naL2L\naV\xe9\\u20ac\nas."
        );
        assert_eq!(bytes(text.outcome.meta.as_deref()), b"}X\x08\0\0\0children(ls.");

        let binary = decode(
            b"\x80\x02}q\x01(U\x06statusq\x02X\x07\x00\x00\x00SUCCESSq\x03U\x06resultq\x04}q\x05U\x01a]q\x06(K\x01\x8a\x01\x02X\x05\x00\x00\x00\xc3\xa9\xe2\x82\xacq\x07esU\x07task_idq\x08U\x01tU\x08childrenq\t]u."
                .as_slice(),
        )
        .expect("protocol 2");
        assert_eq!(binary.outcome.status.as_str(), "SUCCESS");
        assert_eq!(
            bytes(binary.outcome.result.as_deref()),
            b"\x80\x02}U\x01a](K\x01\x8a\x01\x02X\x05\x00\x00\x00\xc3\xa9\xe2\x82\xaces."
        );
        assert_eq!(bytes(binary.outcome.meta.as_deref()), b"\x80\x02}X\x08\0\0\0children]s.");
    }

    #[test]
    fn texts_of_every_form_are_read() {
        for (opcode, task_id) in [
            (&b"\x8c\x03\xc3\xa9x"[..], "éx"),
            (b"X\x01\0\0\0a", "a"),
            (b"\x8d\x01\0\0\0\0\0\0\0a", "a"),
            (b"U\x01a", "a"),
            (b"T\x01\0\0\0a", "a"),
            (b"S'a'\n", "a"),
            (b"S\"it's\"\n", "it's"),
            (b"V\xe9\\u20ac\\U0001f96c\\u005c\n", "é€🥬\\"),
        ] {
            let body = [b"}(\x8c\x06status\x8c\x01S\x8c\x07task_id", opcode, b"u."].concat();
            assert_eq!(decode(body).expect("good").task_id, task_id);
        }
        for opcode in [
            &b"\x8c\x04a\xed\xa0\x80"[..],
            b"V\\ud800\n",
            b"U\x01\xff",
            b"S'\\x61'\n",
            b"S'a\n",
            b"S'\n",
            b"V\\x61\n",
            b"V\\u6\n",
            b"C\x01a",
            b"K\x01",
            b"\x8c\x00",
            b"]",
            b"\x8c\x01a\x8c\x01b\x86",
        ] {
            let body = [b"}(\x8c\x06status\x8c\x01S\x8c\x07task_id", opcode, b"u."].concat();
            let error = decode(body).expect_err("no id");
            assert_eq!(error.code(), "not-a-result", "{opcode:x?}");
        }
        let traceback = decode(with(b"\x8c\x09traceback\x8c\x05a\xed\xa0\xbdb")).expect("good");
        assert_eq!(traceback.outcome.traceback.as_deref(), Some("a\u{FFFD}b"));
    }

    #[test]
    fn numbers_of_every_form_are_read() {
        for (opcode, seconds) in [
            (&b"GA\xda\xc0\xf8\x97`\0\0"[..], Some(1_795_416_669.5)),
            (b"J^\xe2\x03k", Some(1_795_416_670.0)),
            (b"J\xff\xff\xff\xff", Some(-1.0)),
            (b"K\xff", Some(255.0)),
            (b"M\xff\xff", Some(65_535.0)),
            (b"\x8a\x01\xff", None),
            (b"I7\n", Some(7.0)),
            (b"L7L\n", Some(7.0)),
            (b"F1.5\n", Some(1.5)),
            (b"I01\n", None),
            (b"\x88", None),
            (b"\x8c\x017", None),
        ] {
            let op = Op::read(opcode, 0).expect("an opcode");
            assert_eq!(number(&op), seconds, "{opcode:x?}");
        }
    }

    #[test]
    fn absent_members_are_treated_like_none() {
        let row = decode(with(b"")).expect("good");
        assert_eq!(row.outcome.result.as_deref(), Some("gAROLg=="));
        assert_eq!(row.outcome.meta.as_deref(), Some("gAR9jAhjaGlsZHJlbl1zLg=="));
        let row = decode(with(b"\x8c\x04argsN\x8c\x06resultN")).expect("good");
        assert_eq!(row.description.task_args, None);
        assert_eq!(row.outcome.result.as_deref(), Some("gAROLg=="));
    }

    #[test]
    fn members_that_a_stamp_has_overwritten_are_ignored() {
        let members = b"\x8c\x04argsK\x01\x8c\x06kwargsK\x02\x8c\x08childrenK\x03";
        // The names are in a list or in a set, and one of them comes from the memo.
        for names in [&b"](h\0\x8c\x08childrene"[..], b"\x8f(\x8c\x08childrenh\0\x90"] {
            let stamps = [members, &b"\x8c\x0fstamped_headers"[..], names].concat();
            let body = [b"\x80\x02}(\x8c\x01xX\x04\0\0\0argsq\0", &with(&stamps)[4..]].concat();
            let row = decode(body).expect("good");
            assert_eq!(row.description.task_args, None);
            assert_eq!(bytes(row.description.task_kwargs.as_deref()), b"\x80\x02K\x02.");
            assert_eq!(row.outcome.meta, Some(Pickled::meta(None)));
        }
    }

    #[test]
    fn an_object_that_is_changed_from_elsewhere_is_taken_out_of_the_whole_body() {
        // The member `x` appends another element to the list in `result`.
        let members = b"\x8c\x06result]\x94K\x01a\x8c\x01xh\0K\x02a";
        let body = with(members);
        let whole = &body[2..body.len() - 1];
        let expected = [b"\x80\x04coperator\ngetitem\n(", whole, b"\x8c\x06resulttR."].concat();
        assert_eq!(result(&body), expected);
    }

    #[test]
    fn shared_objects_are_built_once() {
        // `x` puts a list into the memo, and another list that contains the first one twice.
        let shared = b"\x8c\x01x(]\x94K\x01a]\x94(h\0h\0et";
        for (value, expected) in [
            (&b"h\x01"[..], &b"]\x94K\x01a0]\x94(h\0h\0e0h\x01"[..]),
            (b"h\0", b"]\x94K\x01a0h\0"),
            (b"h\0h\x01\x86", b"]\x94K\x01a0]\x94(h\0h\0e0h\0h\x01\x86"),
            (b"K\x07", b"K\x07"),
        ] {
            let body = with(&[shared, &b"\x8c\x06result"[..], value].concat());
            assert_eq!(result(&body), [b"\x80\x04", expected, b"."].concat(), "{value:x?}");
        }
    }

    #[test]
    fn bytes_after_stop_are_ignored_as_in_python() {
        let mut body = with_result(b"K\x01");
        body.extend_from_slice(b"\xff\xff");
        assert_eq!(result(&body), b"\x80\x04K\x01.");
    }

    #[test]
    fn unknown_members_and_names_that_are_not_strings_are_ignored() {
        let row = decode(with(b"K\x01K\x02)N\x8c\x06resultK\x03\x8c\x01x}")).expect("good");
        assert_eq!(bytes(row.outcome.result.as_deref()), b"\x80\x04K\x03.");
        let twice = decode(with(b"\x8c\x06status\x8c\x05RETRY")).expect("good");
        assert_eq!(twice.outcome.status.as_str(), "RETRY", "the last one counts");
    }

    #[test]
    fn errors_name_the_position_of_the_opcode() {
        for (body, expected) in [
            (&b""[..], ("it is cut off", 0)),
            (b"\x80\x04", ("it is cut off", 2)),
            (b"\x80\x06N.", ("an unknown protocol", 0)),
            (b"\x80\x04\xff.", ("an unknown opcode", 2)),
            (b"\x80\x04\x95\x03\0\0\0\0\0\0\0N.", ("a frame is cut off", 2)),
            (b"\x95\xff\xff\xff\xff\xff\xff\xff\xffN.", ("a frame is cut off", 0)),
            (b".", ("there is too little on the stack", 0)),
            (b"NN.", ("something is left on the stack", 2)),
            (b"}(K\x01u.", ("a key has no value", 4)),
            (b"(Nd.", ("a key has no value", 2)),
            (b"Nt.", ("there is no mark", 1)),
            (b"(a.", ("there is too little on the stack", 1)),
            (b"](Na(e.", ("there is too little on the stack", 3)),
            (b"(Ne.", ("there is too little on the stack", 2)),
            (b"N(R.", ("there is too little on the stack", 2)),
            (b"(\x94.", ("there is too little on the stack", 1)),
            (b"h\0.", ("it is not in the memo", 0)),
            (b"N\x94h\x01.", ("it is not in the memo", 2)),
            (b"gx\n.", ("it is not in the memo", 0)),
            (b"N\x94q\0.", ("the memo is out of order", 2)),
            (b"Nq\x01\x94.", ("the memo is out of order", 3)),
            (b"Nq\0q\x02.", ("the memo is out of order", 3)),
            (b"\x8c\x01\xff.", ("invalid UTF-8 in a text", 0)),
            (b"X\xff\xff\xff\xffa.", ("it is cut off", 0)),
            (b"\x8e\xff\xff\xff\xff\xff\xff\xff\xffa.", ("it is cut off", 0)),
            (b"cos\nsystem.", ("it is cut off", 0)),
            (b"P1\n.", ("a persistent id", 0)),
            (b"NQ.", ("a persistent id", 1)),
            (b"\x97.", ("a buffer outside of the body", 0)),
            (b"N\x98.", ("a buffer outside of the body", 1)),
            (b"N2.", ("an opcode that no pickler writes", 1)),
            (b"N.", ("expected a dict", 0)),
            (b"].", ("expected a dict", 0)),
            (b"ccollections\nOrderedDict\n)R.", ("expected a dict", 0)),
        ] {
            assert_eq!(problem(body), expected, "{body:x?}");
        }
    }

    /// A body with many different opcodes.
    const VARIED: &[u8] = b"\x80\x04\x95\x7e\0\0\0\0\0\0\0}\x94(\x8c\x07task_id\x94U\x01t\x8c\x06status\
        X\x01\0\0\0S\x94\x8c\x06result\x94(cm\nC\n\x94)\x81\x94}\x94h\x03Nsb]\x94h\x07\x85\x940h\x08\
        \x8a\x01\xff\x8f\x94(K\x01\x90(K\x02\x91\x86G\0\0\0\0\0\0\0\0I01\nt\x94\x8c\x04argsh\x0a\
        \x8c\x08children](h\x04h\x05e\x8c\x01xNu.";

    /// `[{"type": "task-received", "uuid": "00000000", "timestamp": 1795416669.5, "hostname": "w@h",
    /// "name": "pay", "args": "('é',)", "kwargs": "{}"}, 7, {"type": "task-succeeded", "uuid": …,
    /// "timestamp": 1795416670, "hostname": …, "result": "1"}]`
    const EVENTS: &[u8] = b"\x80\x04\x95\xb9\0\0\0\0\0\0\0]\x94(}\x94(\x8c\x04type\x94\
        \x8c\rtask-received\x94\x8c\x04uuid\x94\x8c\x0800000000\x94\x8c\ttimestamp\x94\
        GA\xda\xc0\xf8\x97`\0\0\x8c\x08hostname\x94\x8c\x03w@h\x94\x8c\x04name\x94\x8c\x03pay\x94\
        \x8c\x04args\x94\x8c\x07('\xc3\xa9',)\x94\x8c\x06kwargs\x94\x8c\x02{}\x94uK\x07}\x94(h\x02\
        \x8c\x0etask-succeeded\x94h\x04h\x05h\x06J^\xe2\x03kh\x07h\x08\x8c\x06result\x94\
        \x8c\x011\x94ue.";

    #[test]
    fn a_body_cut_or_changed_anywhere_is_refused_or_read_and_never_panics() {
        for (body, is_list) in [(VARIED, false), (EVENTS, true)] {
            let read = |body: Vec<u8>| {
                if is_list { decode_events(body).map(drop) } else { decode(body).map(drop) }
            };
            assert_eq!(read(body.to_vec()), Ok(()));
            for length in 0..body.len() {
                assert!(read(body[..length].to_vec()).is_err(), "cut after {length} bytes");
            }
            for position in 0..body.len() {
                for byte in 0..=u8::MAX {
                    let mut changed = body.to_vec();
                    changed[position] = byte;
                    let _ = read(changed);
                }
            }
        }
    }

    #[test]
    fn events_in_pickle_give_the_same_rows_as_in_json() {
        let json = r#"[{"type": "task-received", "uuid": "00000000", "timestamp": 1795416669.5,
            "hostname": "w@h", "name": "pay", "args": "('\u00e9',)", "kwargs": "{}"}, 7,
            {"type": "task-succeeded", "uuid": "00000000", "timestamp": 1795416670,
            "hostname": "w@h", "result": "1"}]"#;
        let limits = WireLimits::default();
        let message = message(json);
        let policy = EventPolicy { pending: true, arguments: true, unfinished_only: false };
        let context = Context { message: &message, limits: &limits };
        let expected = crate::decode::format::json::decode_events(&message.body, policy, context);
        let events = decode_events(EVENTS).expect("good");
        assert_eq!(events.rows, expected.expect("good").rows);
        assert_eq!(events.skipped, [("it is not a dict", 1)].into());

        let one = b"}(\x8c\x04type\x8c\x0ctask-started\x8c\x04uuid\x8c\x01t\x8c\ttimestampGA\xda\xc0\xf8\x97`\0\0u";
        assert_eq!(decode_events([one, &b"."[..]].concat()).expect("one").rows.len(), 1);
        // Appended one by one, in a list made from the items above a mark, and in a tuple.
        let appended = [b"]", &one[..], b"a", one, b"a."].concat();
        assert_eq!(decode_events(appended).expect("two").rows.len(), 2);
        let listed = [b"(", &one[..], one, b"l."].concat();
        assert_eq!(decode_events(listed).expect("two").rows.len(), 2);
        let within = [b"](", &one[..], b"\x85", one, b"e."].concat();
        let within = decode_events(within).expect("one");
        assert_eq!((within.rows.len(), within.skipped.into_values().sum::<usize>()), (1, 1));
        let tuple = decode_events([&one[..], b"\x85."].concat()).expect_err("a tuple");
        assert_eq!(tuple.code(), "undecodable");
    }

    #[test]
    fn a_list_of_too_many_events_is_refused() {
        let many = |count: usize| decode_events([b"](", &vec![b'}'; count][..], b"e."].concat());
        assert_eq!(
            many(10_000).expect("as many as may be").skipped.into_values().sum::<usize>(),
            10_000
        );
        assert_eq!(many(10_001), Err(DecodeError::TooManyEvents { limit: 10_000 }));
    }

    #[test]
    fn deep_nesting_uses_no_stack() {
        let nested = |depth: usize| [vec![b']'; depth], vec![b'a'; depth - 1]].concat();
        let tuples = |depth: usize| [&b")"[..], &vec![0x85; depth - 1]].concat();
        // Each list contains the previous one, which it gets from the memo.
        let linked = |depth: usize| {
            let mut opcodes = b"]r\0\0\0\0".to_vec();
            for number in 1..u32::try_from(depth).expect("small") {
                opcodes.extend(b"0]r");
                opcodes.extend(number.to_le_bytes());
                opcodes.push(b'j');
                opcodes.extend((number - 1).to_le_bytes());
                opcodes.push(b'a');
            }
            opcodes
        };
        for deep in [nested(10_000), tuples(10_000), linked(10_000)] {
            assert!(decode(with_result(&deep)).is_ok());
        }
        for deeper in [nested(10_001), tuples(10_001), linked(10_001), nested(1_000_000)] {
            let error = decode(with_result(&deeper)).expect_err("too deep");
            assert_eq!(error, DecodeError::TooDeep { limit: 10_000 });
        }
        assert!(decode(with_result(&vec![b'('; 100_000])).is_err(), "marks that are never closed");
    }

    /// Bodies that would take hours or exhaust the memory if every reference to the memo were
    /// followed.
    #[test]
    fn bombs_need_no_more_memory_than_their_bytes() {
        const MANY: usize = 9_000;
        let long = [&b"X\0\0\x10\0"[..], &vec![b'a'; 1 << 20], b"\x94"].concat();
        // Each list contains the previous one twice.
        let doubled = (1..250_u8).fold(b"]\x94".to_vec(), |opcodes, number| {
            [opcodes, vec![b'0', b']', 0x94, b'(', b'h', number - 1, b'h', number - 1, b'e']]
                .concat()
        });
        // The lists are in another member, so the pickle of the result has to copy all of them.
        let fetched = [b"\x8c\x01x", &doubled[..], b"\x8c\x06resulth\xf9"].concat();
        for body in [with_result(&doubled), with(&fetched)] {
            assert!(result(&body).len() <= body.len() + 1024);
        }
        // Many tuples, each of which contains the previous one.
        let tuples = [b")", &b"\x85\x94".repeat(MANY)[..]].concat();
        let mut gets = b"\x8c\x01x".to_vec();
        gets.extend(&tuples);
        gets.extend(b"\x8c\x06result](");
        for number in 0..u32::try_from(MANY).expect("small") {
            gets.push(b'j');
            gets.extend(number.to_le_bytes());
        }
        gets.push(b'e');
        let body = with(&gets);
        assert!(result(&body).len() <= body.len() + 1024);
        // A long string as the name of many members, as the value of many members, and as the name
        // of many stamps.
        for (before, repeated, after) in [
            (&b""[..], &b"h\0h\0"[..], &b""[..]),
            (b"", b"\x8c\x01xh\0", b""),
            (b"\x8c\x0fstamped_headers](", b"h\0", b"e"),
        ] {
            let repeated = repeated.repeat(MANY);
            let members = [b"\x8c\x01x", &long[..], before, &repeated, after].concat();
            assert_eq!(decode(with(&members)).expect("good").task_id, "t");
        }
        let event = b"}(\x8c\x04type\x8c\x0btask-failed\x8c\x09tracebackh\0u";
        let events = [b"](", &long[..], &event.repeat(MANY), b"e."].concat();
        let error = decode_events(events).expect_err("too much");
        assert_eq!(error, malformed("the events share too much", 0));
    }

    proptest::proptest! {
        /// Random opcodes with a valid memo. Most of these bodies are refused; the columns of the
        /// others must be readable themselves.
        #[test]
        fn any_opcodes_are_read_or_refused(picked in proptest::collection::vec(0_usize..20, 0..60)) {
            const OPCODES: [&[u8]; 20] = [
                b"]", b"}", b")", b"(", b"N", b"\x94", b"\x94", b"h\0", b"h\x01", b"h\x02", b"0", b"1",
                b"a", b"e", b"\x85", b"\x86", b"t", b"s", b"R", b"b",
            ];
            let value = picked.iter().flat_map(|&index| OPCODES[index]).copied().collect::<Vec<_>>();
            for members in [
                [b"\x8c\x06result", &value[..]].concat(),
                [b"\x8c\x01x", &value[..], b"\x8c\x06resulth\x01"].concat(),
            ] {
                if let Ok(row) = decode(with(&members)) {
                    let column = bytes(row.outcome.result.as_deref());
                    let column = column.strip_suffix(b".").expect("an end");
                    let value = column.strip_prefix(b"\x80\x04").expect("a protocol");
                    proptest::prop_assert!(decode(with_result(value)).is_ok(), "{value:x?}");
                }
            }
        }
    }
}
