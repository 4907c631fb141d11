//! The YAML body of Celery's `rpc://` results, which PyYAML's `safe_dump` wrote (`register_yaml` in
//! `kombu/serialization.py`, 5.7.0).
//!
//! A value stands in the body with another indentation, folded at other places and with other
//! anchors than in a document of its own. So the body is read, and what the columns hold is written
//! anew, as `safe_dump` would have written the value alone. Nothing is constructed: a number, a
//! time or base64 stays the text that it is. An alias stays an alias, so that a value is never
//! larger than the body makes it.
//!
//! No parser that is to be had as a library reads all that PyYAML writes: those of YAML 1.2 take
//! the colon behind an alias for a part of its name, and none has room for a lone surrogate.

mod document;
mod emit;
mod parse;
mod resolve;
mod scan;

use std::borrow::Cow;

use self::document::{Content, Document, Id, Node};
use self::resolve::Tag;
use self::scan::Scalar;
use crate::decode::event::{Event, EventPolicy, python_json};
use crate::decode::limits::Context;
use crate::decode::result_meta::{ResultMeta, Text, Value};
use crate::decode::{DecodeError, Decoded};
use crate::row::task_result::TaskResult;

/// Reads the result in a body of the content type `application/x-yaml`.
pub(in crate::decode) fn decode(
    body: &[u8],
    context: Context<'_>,
) -> Result<TaskResult, DecodeError> {
    let Context { message, limits } = context;
    let document = Document::read(text(body)?, limits)?;
    let root = Yaml { document: &document, id: Document::ROOT };
    let members = root.members().ok_or(malformed("expected a mapping", 0))?;
    if members.clone().any(|(key, _)| key.node().tag == Tag::Merge) {
        return Err(malformed("a merge among the members of a result", 0));
    }
    let result = ResultMeta::collect(named(members))?.into_result(message)?;
    document.check_room(limits)?;
    Ok(result)
}

/// Reads the events in a body of the content type `application/x-yaml`: one, or a list.
pub(in crate::decode) fn decode_events(
    body: &[u8],
    policy: EventPolicy,
    context: Context<'_>,
) -> Result<Decoded, DecodeError> {
    let Context { message, limits } = context;
    let document = Document::read(text(body)?, limits)?;
    let root = Yaml { document: &document, id: Document::ROOT };
    let mut events = Decoded::default();
    let ids = match &root.node().content {
        Content::Sequence(ids) => ids.as_slice(),
        Content::Mapping(_) => &[Document::ROOT],
        Content::Scalar(_) => return Err(malformed("expected a mapping or a sequence", 0)),
    };
    if ids.len() > limits.events {
        return Err(DecodeError::TooManyEvents { limit: limits.events });
    }
    for &id in ids {
        events.push(match (Yaml { document: &document, id }).members() {
            Some(members) => Event::collect(named(members))?.into_result(message, policy),
            None => Err("it is not a mapping"),
        });
    }
    document.check_room(limits)?;
    Ok(events)
}

/// The text of a body that is YAML.
fn text(body: &[u8]) -> Result<&str, DecodeError> {
    let text = std::str::from_utf8(body)
        .map_err(|error| malformed("invalid UTF-8", error.valid_up_to()))?;
    match text.char_indices().find(|(_, character)| !is_printable(*character)) {
        Some((position, _)) => Err(malformed("a control character", position)),
        None => Ok(text),
    }
}

/// Whether a character may stand in a text in YAML (`Reader.check_printable` in `yaml/reader.py`,
/// 6.0.3).
fn is_printable(character: char) -> bool {
    matches!(character, '\t' | '\n' | '\r' | ' '..='~' | '\u{85}' | '\u{A0}'..)
        && !matches!(character, '\u{FFFE}' | '\u{FFFF}')
}

fn malformed(problem: &'static str, position: usize) -> DecodeError {
    DecodeError::Malformed { format: "YAML", problem, position }
}

/// A value in a document.
#[derive(Clone, Copy)]
struct Yaml<'doc> {
    document: &'doc Document<'doc>,
    id: Id,
}

impl<'doc> Yaml<'doc> {
    fn node(self) -> &'doc Node<'doc> {
        self.document.node(self.id)
    }

    fn scalar(self) -> Option<(Tag, &'doc Scalar<'doc>)> {
        let Node { tag, content, .. } = self.node();
        match content {
            Content::Scalar(scalar) => Some((*tag, scalar)),
            _ => None,
        }
    }

    /// The scalar, where the value is a text that there is room to copy.
    fn string(self) -> Option<&'doc Scalar<'doc>> {
        let (_, scalar) = self.scalar().filter(|(tag, _)| *tag == Tag::Str)?;
        self.document.take_room(scalar.text.len())?;
        Some(scalar)
    }

    /// The pairs of a mapping.
    fn members(self) -> Option<impl Iterator<Item = (Self, Self)> + Clone> {
        let Node { tag: Tag::Map, content: Content::Mapping(pairs), .. } = self.node() else {
            return None;
        };
        let document = self.document;
        Some(
            pairs.iter().map(move |&(key, value)| {
                (Self { document, id: key }, Self { document, id: value })
            }),
        )
    }
}

/// The members whose name is a text.
fn named<'doc>(
    members: impl Iterator<Item = (Yaml<'doc>, Yaml<'doc>)>,
) -> impl Iterator<Item = Result<(Cow<'doc, str>, Yaml<'doc>), DecodeError>> {
    members.filter_map(|(key, value)| match key.scalar()? {
        (Tag::Str, scalar) if scalar.surrogates.is_empty() => {
            Some(Ok((Cow::Borrowed(&*scalar.text), value)))
        }
        _ => None,
    })
}

impl<'doc> Value<'doc> for Yaml<'doc> {
    const CONTENT_TYPE: &'static str = "application/x-yaml";
    const CONTENT_ENCODING: &'static str = "utf-8";

    fn is_null(self) -> bool {
        self.node().tag == Tag::Null
    }

    fn text(self) -> Option<Text<'doc>> {
        let scalar = self.string()?;
        let is_lossy = !scalar.surrogates.is_empty();
        Some(Text { text: Cow::Borrowed(&scalar.text), is_lossy })
    }

    fn texts(self) -> Vec<Cow<'doc, str>> {
        let Content::Sequence(items) = &self.node().content else { return Vec::new() };
        let items = items.iter().map(|&id| Self { id, ..self });
        items.filter_map(|item| Some(item.text()?.text)).collect()
    }

    fn number(self) -> Option<f64> {
        let (_, scalar) = self.scalar().filter(|(tag, _)| matches!(tag, Tag::Int | Tag::Float))?;
        resolve::number(&scalar.text)
    }

    fn is_true(self) -> bool {
        let Some((Tag::Bool, scalar)) = self.scalar() else { return false };
        resolve::truth(&scalar.text) == Some(true)
    }

    fn json(self) -> Option<String> {
        let scalar = self.string()?;
        let mut json = String::from("\"");
        let mut start = 0;
        let end = (scalar.text.len(), None);
        let surrogates = scalar.surrogates.iter().map(|&(position, code)| (position, Some(code)));
        for (position, surrogate) in surrogates.chain([end]) {
            let piece = python_json(&scalar.text[start..position]);
            json.push_str(&piece[1..piece.len() - 1]);
            json.extend(surrogate.map(|code| format!("\\u{code:04x}")));
            start = position + char::REPLACEMENT_CHARACTER.len_utf8();
        }
        json.push('"');
        Some(json)
    }

    fn column(self) -> String {
        emit::value(self.document, self.id)
    }

    fn null_column() -> String {
        "null\n...\n".to_owned()
    }

    fn meta(children: Option<Self>) -> String {
        match children {
            Some(children) => emit::member(children.document, "children", children.id),
            None => "children: []\n".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use chrono::DateTime;

    use super::*;
    use crate::decode::WireLimits;
    use crate::message::Message;

    fn message(body: impl Into<Vec<u8>>) -> Message {
        Message::new(body.into(), DateTime::from_timestamp(1_795_416_700, 0).expect("in range"))
    }

    fn decode(body: impl Into<Vec<u8>>) -> Result<TaskResult, DecodeError> {
        decode_within(body, &WireLimits::default())
    }

    fn decode_within(
        body: impl Into<Vec<u8>>,
        limits: &WireLimits,
    ) -> Result<TaskResult, DecodeError> {
        let message = message(body);
        super::decode(&message.body, Context { message: &message, limits })
    }

    fn decode_events(body: &str) -> Result<Decoded, DecodeError> {
        let message = message(body);
        let limits = WireLimits::default();
        let policy = EventPolicy { pending: true, arguments: true, unfinished_only: false };
        super::decode_events(&message.body, policy, Context { message: &message, limits: &limits })
    }

    /// A body whose member `result` is this text.
    fn with_result(result: &str) -> String {
        format!("task_id: t\nstatus: SUCCESS\nresult: {result}\nchildren: []\n")
    }

    /// What the column `result` holds for a text in the body.
    fn column(result: &str) -> String {
        let body = with_result(result);
        decode(body.as_str()).expect(&body).outcome.result.expect("there always is one")
    }

    /// What PyYAML 6.0.3 writes for a whole result.
    const BODY: &str = r#"args:
- &id001 2026-11-23
- x
children: []
date_done: '2026-11-23T06:51:16.000321+01:00'
kwargs:
  *id001: 7
name: shop.pay
result: "caf\xE9 \uD800"
stamped_headers: null
status: FAILURE
task_id: 0053484c-5f5c-585b-87fd-38fb4a294f11
traceback: "Traceback\n  \"\uD800\""
worker: w@h
"#;

    #[test]
    fn members_make_the_row() {
        let TaskResult { task_id, outcome, description, .. } = decode(BODY).expect("good");
        assert_eq!(task_id, "0053484c-5f5c-585b-87fd-38fb4a294f11");
        assert_eq!(outcome.status.as_str(), "FAILURE");
        assert_eq!(outcome.content_type, "application/x-yaml");
        assert_eq!(outcome.content_encoding, "utf-8");
        assert_eq!(outcome.date_done.to_rfc3339(), "2026-11-23T05:51:16.000321+00:00");
        assert_eq!(outcome.result.as_deref(), Some("\"caf\\xE9 \\uD800\"\n"));
        assert_eq!(outcome.meta.as_deref(), Some("children: []\n"));
        assert_eq!(outcome.traceback.as_deref(), Some("Traceback\n  \"\u{FFFD}\""));
        assert_eq!(description.task_name.as_deref(), Some("shop.pay"));
        assert_eq!(description.worker.as_deref(), Some("w@h"));
        assert_eq!(description.task_args.as_deref(), Some("- 2026-11-23\n- x\n"));
        assert_eq!(description.task_kwargs.as_deref(), Some("2026-11-23: 7\n"));

        let error = decode("task_id: \"\\uD800\"\nstatus: SUCCESS\n").expect_err("no id");
        assert!(matches!(error, DecodeError::NotAResult(_)), "{error}");

        let TaskResult { outcome, .. } = decode("{task_id: t, status: RETRY}").expect("good");
        assert_eq!(outcome.result.as_deref(), Some("null\n...\n"));
        assert_eq!(outcome.meta.as_deref(), Some("children: []\n"));
        assert_eq!(outcome.traceback, None);
    }

    #[test]
    fn what_pyyaml_would_not_have_written_is_written_as_it_would() {
        for (body, expected) in [
            // Scalars.
            ("", "null\n...\n"),
            ("~", "null\n...\n"),
            ("Off", "false\n...\n"),
            ("!!bool 'YES'", "true\n...\n"),
            ("!!int \"5\"", "5\n...\n"),
            ("! 5", "5\n...\n"),
            ("!!str 5", "'5'\n"),
            ("!<tag:yaml.org,2002:str> 5", "'5'\n"),
            ("! x", "x\n...\n"),
            ("! |\n  5", "!!int '5\n\n  '\n"),
            ("!!binary YQ==", "!!binary |-\n  YQ==\n"),
            ("!!float 1", "!!float '1'\n"),
            ("\"plain\"", "plain\n...\n"),
            ("'it''s'", "'it''s'\n"),
            ("\"it's\"", "it's\n...\n"),
            ("a\n  b\n\n  c # comment", "'a b\n\n  c'\n"),
            ("é", "\"\\xE9\"\n"),
            ("'a\n\n  b  \n  c'", "'a\n\n  b c'\n"),
            (
                "\"a\\\n  \\ b\\n\\x41\\u00e9\\U0001F600\\\"\\/\"",
                "\"a b\\nA\\xE9\\U0001F600\\\"/\"\n",
            ),
            ("|\n  a\n   b\n\n  c\n\n", "\"a\\n b\\n\\nc\\n\"\n"),
            ("|2+\n   a\n\n", "' a\n\n\n\n  '\n"),
            (">-\n  a\n  b\n\n  c\n   d\n  e", "\"a b\\nc\\n d\\ne\"\n"),
            // Collections.
            ("[]", "[]\n"),
            ("{ }", "{}\n"),
            ("!!set {a, ? b}", "!!set\na: null\nb: null\n"),
            (
                "[a, {b: [c, 'd'], \"e\": , ? f}, g: h]",
                "- a\n- b:\n  - c\n  - 'd'\n  e: null\n  f: null\n- g: h\n",
            ),
            ("\n  ? - 1\n  : - 2", "? - 1\n: - 2\n"),
            ("\n- - 1\n  - - 2\n-\n- k:\n  - 3", "- - 1\n  - - 2\n- null\n- k:\n  - 3\n"),
            ("{<<: {a: 1}, =: 2, ~: }", "<<:\n  a: 1\n'=': 2\nnull: null\n"),
            // Anchors.
            ("&x [*x]", "&id001\n- *id001\n"),
            (
                "[&b {}, &a [], *a, *b, *a]",
                "- &id002 {}\n- &id001 []\n- *id001\n- *id002\n- *id001\n",
            ),
            ("[&a a]", "- a\n"),
        ] {
            assert_eq!(column(body), expected, "{body}");
        }
    }

    #[test]
    fn a_line_is_broken_behind_80_columns() {
        let words = "word ".repeat(20);
        let words = words.trim_end();
        let folded = format!("{0} word\n  {1}", ["word"; 16].join(" "), ["word"; 3].join(" "));
        assert_eq!(column(words), format!("{folded}\n...\n"));
        assert_eq!(column(&format!("'{words}:'")), format!("'{folded}:'\n"));
        let escapes = "\\xE9".repeat(30);
        let expected = format!("\"{}\\\n  {}\"\n", "\\xE9".repeat(21), "\\xE9".repeat(9));
        assert_eq!(column(&format!("\"{escapes}\"")), expected);
        // A key of 123 characters is no simple key.
        let (short, long) = ("k".repeat(122), "k".repeat(123));
        assert_eq!(
            column(&format!("{{{short}: 1, {long}: 2}}")),
            format!("{short}: 1\n? {long}\n: 2\n")
        );
    }

    #[test]
    fn plain_scalars_are_what_they_are_in_yaml_1_1() {
        let all = |tag: Tag, texts: &[&str]| {
            for text in texts {
                assert_eq!(Tag::of_plain(text), tag, "{text}");
            }
        };
        all(Tag::Null, &["", "~", "null", "Null", "NULL"]);
        all(Tag::Bool, &["yes", "No", "TRUE", "false", "On", "OFF"]);
        all(Tag::Int, &["0", "-7", "+1_000", "0b1_0", "017", "0_7", "0xaF", "1:30", "190:20:30"]);
        all(
            Tag::Float,
            &["1.", "-1.5", "1_0.5e+3", ".5", "1:30.5", "-.inf", "+.INF", ".NaN", "1.0e+22"],
        );
        all(Tag::Timestamp, &["2001-12-14", "2001-1-1 1:00:00", "2001-12-14t21:59:43.10-05:00"]);
        all(Tag::Timestamp, &["2001-12-14 21:59:43.1 Z", "2001-12-14  21:59:43 +5"]);
        all(Tag::Str, &["nULL", "y", "n", "tRue", "08", "0b2", "0x", "1:60", "1:", "_1", "-", "+"]);
        all(Tag::Str, &[".", "-.nan", "1e5", "1.0e5", "-.5e", "._5", "2001-1-1"]);
        all(Tag::Str, &["2001-12-14 21:59", "2001-12-14 21:59:43 +5:0", "2001-12-14T", "=="]);
    }

    #[test]
    fn events_are_read_with_their_numbers() {
        for (timestamp, seconds) in [
            ("1795416669.25", 1_795_416_669),
            ("1_795_416_669", 1_795_416_669),
            ("0x6B03E0DD", 0x6B03_E0DD),
            ("0b1101011000000111110000011011101", 0x6B03_E0DD),
            ("015300760335", 0o15_300_760_335),
            ("+29923611:9", 1_795_416_669),
            ("29923611:9.5", 1_795_416_669),
        ] {
            let body = format!("type: task-started\nuuid: t\ntimestamp: {timestamp}\n");
            let events = decode_events(&body).expect(&body);
            let Some(crate::row::Row::Task(row)) = events.rows.first() else { panic!("{body}") };
            assert_eq!(row.outcome.date_done.timestamp(), seconds, "{body}");
        }
        let list = concat!(
            "- &a {type: task-received, uuid: t, timestamp: 1795416669, args: \"('\\xE9\\uD800',)\"}\n",
            "- {type: task-revoked, uuid: t, timestamp: 1795416669, expired: true}\n",
            "- {type: task-started, uuid: t, timestamp: .nan}\n",
            "- 7\n- *a\n",
        );
        let events = decode_events(list).expect("good");
        assert_eq!(events.skipped.values().sum::<usize>(), 2);
        let [crate::row::Row::Task(received), crate::row::Row::Task(revoked), again] =
            &*events.rows
        else {
            panic!("three tasks")
        };
        assert_eq!(*again, events.rows[0]);
        assert_eq!(received.description.task_args.as_deref(), Some(r#""('\u00e9\ud800',)""#));
        let result = revoked.outcome.result.as_deref();
        assert!(result.is_some_and(|result| result.contains("expired")), "{result:?}");
    }

    #[test]
    fn what_safe_load_does_not_read_is_refused() {
        for body in [
            "",
            "7",
            "- task_id: t\n",
            "--- {task_id: t, status: s}\n--- {}\n",
            "task_id: t\nstatus: s\n...\nx\n",
            "%YAML 2.0\n---\ntask_id: t\nstatus: s\n",
            "%TAG !e! x\n---\ntask_id: t\nstatus: s\n",
            "\u{7F}: 1\n",
            "<<: {task_id: t, status: s}\n",
        ] {
            let error = decode(body).expect_err(body);
            assert!(matches!(error, DecodeError::Malformed { .. }), "{body}: {error}");
        }
        for result in [
            "!!python/object/apply:os.system [x]",
            "!<tag:yaml.org,2002:python/tuple> []",
            "!local x",
            "!e!x y",
            "!!map []",
            "!!str []",
            "!!seq x",
            "!!bool x",
            "=",
            "<<",
            "*a",
            "[&a x, &a y]",
            "[",
            "[}",
            "{a b: c, d e",
            "[a]]",
            "a: b",
            "'a",
            "'a\n---\nb'",
            "\"\\y\"",
            "\"\\u12x4\"",
            "\"\\U00110000\"",
            "@a",
            "\ta",
            "|x\n  a",
            "& a",
            "&a!",
            "\n  a: 1\n b: 2",
            "\n- a\n b: 2",
            "\n  a\n  b: c",
        ] {
            let error = decode(with_result(result)).expect_err(result);
            assert!(matches!(error, DecodeError::Malformed { .. }), "{result}: {error}");
        }
        let error = decode(b"task_id: \xFF".to_vec()).expect_err("not UTF-8");
        assert_eq!(error.to_string(), "the body is not YAML: invalid UTF-8 at byte 9");
    }

    #[test]
    fn a_body_cut_or_changed_anywhere_is_refused_or_read_and_never_panics() {
        let body = concat!(
            "kwargs:\n  &id001 2026-11-23: !!set\n    ? - x\n    : null\nresult: \"caf\\xE9 \\uD800\\\n",
            "  \\ x\"\nstatus: a\ntask_id: t\nx: !!binary |\n  YQ==\ny: [&a 'it''s', {*a : b, ? c}]\n",
            "z: >-\n  a\n\n  b # é\n",
        );
        assert!(decode(body).is_ok());
        for length in 0..body.len() {
            let _ = decode(&body.as_bytes()[..length]);
        }
        for position in 0..body.len() {
            for byte in b"\0\t\n\r !\"#%&'*,-:<=>?@[\\]`{|}~a0\x7F\x85\xC2\xE2" {
                let mut changed = body.as_bytes().to_vec();
                changed[position] = *byte;
                let _ = decode(changed);
            }
        }
    }

    #[test]
    fn deep_nesting_costs_no_stack() {
        let flow = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let block = |depth: usize| format!("\n{}1", "- ".repeat(depth));
        assert_eq!(column(&flow(10_000)), format!("{}[]\n", "- ".repeat(9_999)));
        assert_eq!(column(&block(10_000)), format!("{}1\n", "- ".repeat(10_000)));
        for deeper in [
            flow(10_001),
            block(10_001),
            flow(100_000),
            "{".repeat(100_000),
            "{a: ".repeat(100_000),
            format!("\n{}", "? ".repeat(100_000)),
        ] {
            let error = decode(with_result(&deeper)).expect_err("too deep");
            assert_eq!(error, DecodeError::TooDeep { limit: 10_000 });
        }
    }

    #[test]
    fn aliases_that_stand_for_too_much_are_refused() {
        let laughs = (1..200).fold("\n- &a0 [x, x, x, x]".to_owned(), |laughs, level| {
            let alias = format!("*a{}", level - 1);
            format!("{laughs}\n- &a{level} [{alias}, {alias}, {alias}, {alias}]")
        });
        let error = decode(with_result(&laughs)).expect_err("too many");
        assert_eq!(error, DecodeError::TooManyValues { limit: 1_000_000 });
        assert_eq!(error.code(), "too-many-values");

        let limits = WireLimits { expanded_values: 14, ..WireLimits::default() };
        // The members are eight values, the mapping that they are in is one.
        for (result, is_good) in [
            ("[1, 2, 3, 4]", true),
            ("[1, 2, 3, 4, 5]", true),
            ("[1, 2, 3, 4, 5, 6]", false),
            ("[&a [1], *a]", true),
            ("[&a [1, 2], *a]", false),
            ("&a [*a, *a, *a, *a, *a]", true),
        ] {
            let read = decode_within(with_result(result), &limits);
            assert_eq!(read.is_ok(), is_good, "{result}");
        }
    }

    #[test]
    fn columns_that_are_far_larger_than_the_body_are_refused() {
        let limits = WireLimits {
            body_bytes: 1 << 16,
            decompressed_bytes: 1 << 16,
            ..WireLimits::default()
        };
        let error = DecodeError::ColumnsTooLarge { limit: 1 << 16 };
        let deep = |value: &str| format!("{}{value}{}", "[a, ".repeat(500), "]".repeat(500));
        let bodies = [deep("x"), deep(&format!("[{}]", "1, ".repeat(1_000)))];
        for body in bodies {
            assert_eq!(decode_within(with_result(&body), &limits), Err(error.clone()));
        }
        let name = "x".repeat(10_000);
        let events = format!(
            "- {{name: &a {name}}}\n{}",
            "- {type: task-received, uuid: t, timestamp: 1795416669, name: *a}\n".repeat(100)
        );
        let message = message(events);
        let context = Context { message: &message, limits: &limits };
        let read = super::decode_events(&message.body, EventPolicy::default(), context);
        assert_eq!(read, Err(error));
    }

    #[test]
    fn no_text_takes_much_longer_than_its_length_allows() {
        let many = 50_000;
        for result in [
            format!("{}{}", "[".repeat(2_000), "a,\n".repeat(many)),
            format!("[{}", "a, ".repeat(many)),
            format!("{{{}", "? a : ".repeat(many)),
            format!("\n{}", "? a\n".repeat(many)),
            "a\n ".repeat(many),
            format!("\"{}\"", "\\uD800\n".repeat(many)),
            format!("|\n{}", "  a\n\n".repeat(many)),
            format!("\n- &a []\n{}", "- *a\n".repeat(many)),
        ] {
            let start = Instant::now();
            let _ = decode(with_result(&result));
            // It takes a tenth of a second; what is quadratic takes minutes.
            assert!(start.elapsed() < Duration::from_secs(10), "{}", &result[..20]);
        }
    }
}
