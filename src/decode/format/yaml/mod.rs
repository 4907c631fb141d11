//! The format of the content type `application/x-yaml`, which PyYAML's `safe_dump` writes
//! (`register_yaml` in `kombu/serialization.py`, 5.7.0).
//!
//! A value cannot be cut out of the body as text: it is indented there, and may refer to anchors
//! outside of it. So the body is parsed, and the columns are written anew. PyYAML's `safe_load` reads
//! them as the same values; the text is another one than `safe_dump` would write. No value is
//! converted: a number, a time or base64 stays the text that it is, and an alias stays an alias, so
//! that no value grows.

mod compat;
mod document;
mod emit;
mod resolve;

use std::borrow::Cow;

use self::compat::malformed;
use self::document::{Document, Id, Kind, Node};
use crate::decode::event::{Event, EventPolicy, python_json};
use crate::decode::limits::Context;
use crate::decode::result_meta::{ResultMeta, Text, WireValue};
use crate::decode::{DecodeError, Decoded};
use crate::row::task_result::TaskResult;

/// Reads the result in a body of the content type `application/x-yaml`.
pub(in crate::decode) fn decode(
    body: &[u8],
    context: Context<'_>,
) -> Result<TaskResult, DecodeError> {
    let text = compat::rewritten(text(body)?)?;
    let document = Document::read(&text, context.limits)?;
    let root = Yaml { document: &document, id: Document::ROOT };
    if root.node().kind != Kind::Mapping {
        return Err(malformed("expected a mapping", 0));
    }
    if root.members().any(|(key, _)| key.node().tag == "merge") {
        return Err(malformed("a merge key among the members of a result", 0));
    }
    ResultMeta::collect(root.named())?.into_result(context.message)
}

/// Reads the events in a body of the content type `application/x-yaml`: one, or a list.
pub(in crate::decode) fn decode_events(
    body: &[u8],
    policy: EventPolicy,
    context: Context<'_>,
) -> Result<Decoded, DecodeError> {
    let limits = context.limits;
    let text = compat::rewritten(text(body)?)?;
    let document = Document::read(&text, limits)?;
    let root = &document.nodes[Document::ROOT];
    let ids = match root.kind {
        Kind::Sequence => root.items.as_slice(),
        Kind::Mapping => &[Document::ROOT],
        Kind::Scalar => return Err(malformed("expected a mapping or a sequence", 0)),
    };
    if ids.len() > limits.events {
        return Err(DecodeError::TooManyEvents { limit: limits.events });
    }
    let mut events = Decoded::default();
    // Each event gets copies of the texts that its aliases refer to.
    let limit = limits.body_bytes.max(limits.decompressed_bytes);
    let mut bytes = 0_usize;
    for &id in ids {
        let event = Yaml { document: &document, id };
        bytes += event.members().map(|(_, value)| value.node().text.len()).sum::<usize>();
        if bytes > limit {
            return Err(DecodeError::ColumnsTooLarge { limit });
        }
        events.push(match event.node().kind {
            Kind::Mapping => Event::collect(event.named())?.into_result(policy),
            _ => Err("it is not a mapping"),
        });
    }
    Ok(events)
}

/// Decodes the text of a body, and refuses characters that YAML does not allow.
fn text(body: &[u8]) -> Result<&str, DecodeError> {
    let text = std::str::from_utf8(body)
        .map_err(|error| malformed("invalid UTF-8", error.valid_up_to()))?;
    match text.char_indices().find(|(_, character)| !is_printable(*character)) {
        Some((position, _)) => {
            Err(malformed("a control character or an unusual line break", position))
        }
        None => Ok(text),
    }
}

/// Whether PyYAML allows a character (`Reader.check_printable` in `yaml/reader.py`, 6.0.3), except
/// for U+0085, U+2028 and U+2029, which are line breaks in YAML 1.1 but not for the parser.
fn is_printable(character: char) -> bool {
    matches!(character, '\t' | '\n' | '\r' | ' '..='~' | '\u{A0}'..)
        && !matches!(character, '\u{2028}' | '\u{2029}' | '\u{FFFE}' | '\u{FFFF}')
}

/// A value in a document.
#[derive(Clone, Copy)]
struct Yaml<'doc> {
    document: &'doc Document<'doc>,
    id: Id,
}

impl<'doc> Yaml<'doc> {
    fn node(self) -> &'doc Node<'doc> {
        &self.document.nodes[self.id]
    }

    /// The node, if it has one of these tags.
    fn tagged(self, tags: &[&str]) -> Option<&'doc Node<'doc>> {
        Some(self.node()).filter(|node| tags.contains(&node.tag))
    }

    /// The pairs of a mapping; nothing for other values.
    fn members(self) -> impl Iterator<Item = (Self, Self)> {
        let node = self.node();
        let items = if node.kind == Kind::Mapping { node.items.as_slice() } else { &[] };
        items
            .chunks_exact(2)
            .map(move |pair| (Self { id: pair[0], ..self }, Self { id: pair[1], ..self }))
    }

    /// The pairs whose key is a text.
    fn named(self) -> impl Iterator<Item = Result<(Cow<'doc, str>, Self), DecodeError>> {
        self.members().filter_map(|(key, value)| {
            let text = key.text().filter(|text| !text.is_lossy)?;
            Some(Ok((text.text, value)))
        })
    }
}

impl<'doc> WireValue<'doc> for Yaml<'doc> {
    const CONTENT_TYPE: &'static str = "application/x-yaml";
    const CONTENT_ENCODING: &'static str = "utf-8";

    fn is_null(self) -> bool {
        self.node().tag == "null"
    }

    fn text(self) -> Option<Text<'doc>> {
        let node = self.tagged(&["str"])?;
        Some(Text { text: Cow::Borrowed(&node.text), is_lossy: !node.surrogates.is_empty() })
    }

    fn texts(self) -> Vec<Cow<'doc, str>> {
        if self.node().kind != Kind::Sequence {
            return Vec::new();
        }
        let items = self.node().items.iter().map(|&id| Self { id, ..self });
        items.filter_map(|item| Some(item.text()?.text)).collect()
    }

    fn number(self) -> Option<f64> {
        resolve::number(&self.tagged(&["int", "float"])?.text)
    }

    fn is_true(self) -> bool {
        self.tagged(&["bool"]).is_some_and(|node| resolve::truth(&node.text) == Some(true))
    }

    fn json(self) -> Option<String> {
        let inner = |piece: &str| {
            let json = python_json(piece);
            json[1..json.len() - 1].to_owned()
        };
        Some(format!("\"{}\"", self.tagged(&["str"])?.spelled(inner)))
    }

    fn column(self) -> String {
        emit::value(self.document, self.id)
    }

    fn null_column() -> String {
        "null".to_owned()
    }

    fn meta(children: Option<Self>) -> String {
        format!("{{children: {}}}", children.map_or("[]".to_owned(), Self::column))
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
        assert_eq!(outcome.result.as_deref(), Some(r#""caf\xE9 \ud800""#));
        assert_eq!(outcome.meta.as_deref(), Some("{children: []}"));
        assert_eq!(outcome.traceback.as_deref(), Some("Traceback\n  \"\u{FFFD}\""));
        assert_eq!(description.task_name.as_deref(), Some("shop.pay"));
        assert_eq!(description.worker.as_deref(), Some("w@h"));
        assert_eq!(description.task_args.as_deref(), Some("[2026-11-23, x]"));
        assert_eq!(description.task_kwargs.as_deref(), Some("{2026-11-23: 7}"));

        let error = decode("task_id: \"\\uD800\"\nstatus: SUCCESS\n").expect_err("no id");
        assert!(matches!(error, DecodeError::NotAResult(_)), "{error}");

        let TaskResult { outcome, .. } = decode("{task_id: t, status: RETRY}").expect("good");
        assert_eq!(outcome.result.as_deref(), Some("null"));
        assert_eq!(outcome.meta.as_deref(), Some("{children: []}"));
        assert_eq!(outcome.traceback, None);
    }

    #[test]
    fn columns_are_short_and_mean_the_same() {
        for (body, expected) in [
            // Scalars.
            ("", "null"),
            ("~", "null"),
            ("Off", "Off"),
            ("!!bool 'YES'", "YES"),
            ("!!int \"5\"", "5"),
            ("! 5", "5"),
            ("! '5'", "5"),
            ("! x", "x"),
            ("!!str 5", "\"5\""),
            ("!<tag:yaml.org,2002:str> 5", "\"5\""),
            ("!!binary |\n  YQ==\n", "!!binary \"YQ==\\n\""),
            ("!!float 1", "!!float \"1\""),
            ("2001-12-14 21:59:43.1 -5", "2001-12-14 21:59:43.1 -5"),
            ("\"plain\"", "plain"),
            ("'two words'", "two words"),
            ("'word '", "\"word \""),
            ("'yes'", "\"yes\""),
            ("'=='", "\"==\""),
            ("'it''s'", "\"it's\""),
            ("a\n  b\n\n  c # comment", "\"a b\\nc\""),
            ("é", "\"\\xE9\""),
            (
                "\"a\\\n  \\ b\\n\\x41\\u00e9\\u65E5\\U0001F600\\0\\\"\\/\\\\\"",
                "\"a b\\nA\\xE9\\u65E5\\U0001F600\\x00\\\"/\\\\\"",
            ),
            ("|\n  a\n   b\n\n  c\n\n", "\"a\\n b\\n\\nc\\n\""),
            ("|2+\n   a\n", "\" a\\n\\n\""),
            (">-\n  a\n  b\n\n  c\n   d\n  e", "\"a b\\nc\\n d\\ne\""),
            // Lone surrogates are there only as escapes between double quotes.
            ("\"\\uD83D\\udE00 \\\\uD800\"", "\"\\ud83d\\ude00 \\\\uD800\""),
            ("\\uD800", "\"\\\\uD800\""),
            ("'\\uD800'", "\"\\\\uD800\""),
            ("\"\\uD800\u{FFFFE}uD800\"", "\"\\ud800\\U000FFFFEuD800\""),
            ("\"\\U000ffffeuD800\\U000FFFFE\"", "\"\\U000FFFFEuD800\\U000FFFFE\""),
            ("'\\U000ffffeuD800\u{FFFFE}uD800'", "\"\\\\U000ffffeuD800\\U000FFFFEuD800\""),
            // Collections.
            ("[]", "[]"),
            ("{ }", "{}"),
            ("!!set {a, ? b}", "!!set {a: null, b: null}"),
            ("!!omap [a: 1]", "!!omap [{a: 1}]"),
            (
                "[a, {b: [c, 'd'], \"e\": , ? f}, g: h]",
                "[a, {b: [c, d], e: null, f: null}, {g: h}]",
            ),
            ("\n  ? - 1\n  : - 2", "{? [1]: [2]}"),
            ("\n- - 1\n  - - 2\n-\n- k:\n  - 3", "[[1, [2]], null, {k: [3]}]"),
            ("{<<: {a: 1}, =: 2, ~: , '<<': }", "{<<: {a: 1}, \"=\": 2, null: null, \"<<\": null}"),
            // Anchors.
            ("&x [*x]", "&1 [*1]"),
            ("[&b {}, &a [], *a, *b, *a]", "[&1 {}, &2 [], *2, *1, *2]"),
            ("[&a a]", "[a]"),
            ("[&a 2001-12-14, {*a: 1, b: '*a: 1'}]", "[&1 2001-12-14, {*1: 1, b: \"*a: 1\"}]"),
            ("\n  - &a 1\n  - *a:\n      *a : *a", "[&1 1, {*1: {*1: *1}}]"),
        ] {
            assert_eq!(column(body), expected, "{body}");
        }
        let (short, long) = ("k".repeat(200), "k".repeat(201));
        let expected = format!("{{{short}: 1, ? {long}: 2}}");
        assert_eq!(column(&expected), expected);
        // PyYAML writes this key, though it does not read it: it has more than 1,024 characters.
        let key = format!("\"{}\"", "\\U0001F600".repeat(110));
        assert_eq!(column(&format!("{{{key}: 1}}")), format!("{{? {key}: 1}}"));
        // What only a value outside of the column is repeated by needs no anchor in it.
        let TaskResult { outcome, .. } =
            decode("task_id: t\nstatus: s\nargs: &a [&b [], *b]\nresult: [*a, *b]").expect("good");
        assert_eq!(outcome.result.as_deref(), Some("[[&1 [], *1], *1]"));
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
        assert_eq!(column(&flow(10_000)), flow(10_000));
        assert_eq!(column(&block(10_000)), flow(10_000).replace("[]", "[1]"));
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

        let unclosed = "[".to_owned() + &"1, ".repeat(600_000);
        let error = decode(with_result(&unclosed.repeat(2))).expect_err("too many");
        assert_eq!(error, DecodeError::TooManyValues { limit: 1_000_000 });

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
    fn events_that_are_far_larger_than_the_body_are_refused() {
        let limits = WireLimits {
            body_bytes: 1 << 16,
            decompressed_bytes: 1 << 16,
            ..WireLimits::default()
        };
        let error = DecodeError::ColumnsTooLarge { limit: 1 << 16 };
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
