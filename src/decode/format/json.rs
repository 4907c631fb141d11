//! The JSON body of Celery's `rpc://` results.
//!
//! The text of a member is exactly what `kombu.utils.json.dumps` returns for the member's value
//! alone. The values of the columns are therefore copied from the body and not serialized again.
//! This preserves what a strict JSON library would change or refuse: NaN and Infinity, integers of
//! any size, lone surrogates, and the spelling of floats.

use std::borrow::Cow;

use crate::decode::event::{Event, EventPolicy};
use crate::decode::format::json_text::{self, Elements, Members};
use crate::decode::limits::Context;
use crate::decode::result_meta::{ResultMeta, Text, WireValue};
use crate::decode::{DecodeError, Decoded, WireLimits};
use crate::row::task_result::TaskResult;

/// Reads the result in a body of the content type `application/json`.
pub(in crate::decode) fn decode(
    body: &[u8],
    context: Context<'_>,
) -> Result<TaskResult, DecodeError> {
    ResultMeta::collect(members(text(body)?, context.limits)?)?.into_result(context.message)
}

/// Reads the events in a body of the content type `application/json`: a single event, or a list.
pub(in crate::decode) fn decode_events(
    body: &[u8],
    policy: EventPolicy,
    context: Context<'_>,
) -> Result<Decoded, DecodeError> {
    let limits = context.limits;
    let body = text(body)?;
    let mut events = Decoded::default();
    let Some(elements) = Elements::of(body, limits.depth) else {
        events.push(Event::collect(members(body, limits)?)?.into_result(policy));
        return Ok(events);
    };
    for (number, element) in elements.enumerate() {
        let element = element?;
        if number == limits.events {
            return Err(DecodeError::TooManyEvents { limit: limits.events });
        }
        events.push(if element.starts_with('{') {
            Event::collect(members(element, limits)?)?.into_result(policy)
        } else {
            Err("it is not an object")
        });
    }
    Ok(events)
}

/// The members of the object in a text.
fn members<'body>(
    text: &'body str,
    limits: &WireLimits,
) -> Result<impl Iterator<Item = Result<(Cow<'body, str>, Json<'body>), DecodeError>>, DecodeError>
{
    Ok(Members::of(text, limits.depth)?.map(|member| member.map(|(key, text)| (key, Json(text)))))
}

/// The text of a JSON body.
pub(in crate::decode) fn text(body: &[u8]) -> Result<&str, DecodeError> {
    std::str::from_utf8(body).map_err(|error| DecodeError::Malformed {
        format: "JSON",
        problem: "invalid UTF-8",
        position: error.valid_up_to(),
    })
}

/// The JSON text of one value.
#[derive(Clone, Copy)]
struct Json<'body>(&'body str);

impl<'body> WireValue<'body> for Json<'body> {
    const CONTENT_TYPE: &'static str = "application/json";
    const CONTENT_ENCODING: &'static str = "utf-8";

    fn is_null(self) -> bool {
        self.0 == "null"
    }

    fn text(self) -> Option<Text<'body>> {
        json_text::string(self.0)
    }

    fn texts(self) -> Vec<Cow<'body, str>> {
        json_text::strings(self.0).collect()
    }

    fn number(self) -> Option<f64> {
        // The scanner has checked the value, so it is a number if it begins with a digit or a sign.
        self.0.parse().ok().filter(|_| self.0.starts_with(|c: char| c == '-' || c.is_ascii_digit()))
    }

    fn is_true(self) -> bool {
        self.0 == "true"
    }

    fn json(self) -> Option<String> {
        self.0.starts_with('"').then(|| self.0.to_owned())
    }

    fn column(self) -> String {
        self.0.to_owned()
    }

    fn null_column() -> String {
        "null".to_owned()
    }

    fn meta(children: Option<Self>) -> String {
        format!(r#"{{"children": {}}}"#, children.map_or("[]", |children| children.0))
    }
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, TimeDelta, Utc};

    use super::*;
    use crate::message::{self, Message};
    use crate::row::state::State;
    use crate::row::task_result::Description;

    fn message(body: &str) -> Message {
        Message::new(body.as_bytes().to_vec(), arrival())
    }

    fn arrival() -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::days(20_000)
    }

    fn decode(message: &Message) -> Result<TaskResult, DecodeError> {
        let limits = WireLimits::default();
        super::decode(&message.body, Context { message, limits: &limits })
    }

    fn read(body: &str) -> TaskResult {
        decode(&message(body)).expect(body)
    }

    /// A result with five members, as Celery up to 5.6 publishes it.
    fn five_members(result: &str) -> String {
        format!(
            r#"{{"task_id": "t", "status": "SUCCESS", "result": {result}, "traceback": null, "children": []}}"#
        )
    }

    #[test]
    fn five_members_make_a_row_without_a_description() {
        let result = read(&five_members("[1, 2]"));
        assert_eq!(result.task_id, "t");
        assert_eq!(result.outcome.status, State::Success);
        assert_eq!(result.outcome.content_type, "application/json");
        assert_eq!(result.outcome.content_encoding, "utf-8");
        assert_eq!(result.outcome.result.as_deref(), Some("[1, 2]"));
        assert_eq!(result.outcome.traceback, None);
        assert_eq!(result.outcome.meta.as_deref(), Some(r#"{"children": []}"#));
        assert_eq!((result.outcome.date_done, result.outcome.by_arrival), (arrival(), true));
        assert_eq!((result.date_created, result.date_started), (arrival(), None));
        assert!(result.description == Description::default());
    }

    #[test]
    fn celery_5_7_adds_the_time_and_the_description() {
        let result = read(
            r#"{"status": "FAILURE", "result": {"exc_type": "E", "exc_message": [], "exc_module": "m"},
            "traceback": "Traceback\n  \"x\"", "children": [[["c", null], null]],
            "date_done": "2026-11-23T07:51:16.000321+01:00", "group_id": "g", "parent_id": "p",
            "name": "shop.pay", "args": [1, NaN], "kwargs": {"a": "\ud800"}, "worker": "w@h",
            "retries": 0, "queue": "celery", "task_id": "t"}"#,
        );
        assert_eq!(result.outcome.date_done.to_rfc3339(), "2026-11-23T06:51:16.000321+00:00");
        assert!(!result.outcome.by_arrival);
        assert_eq!(result.outcome.traceback.as_deref(), Some("Traceback\n  \"x\""));
        assert_eq!(result.outcome.meta.as_deref(), Some(r#"{"children": [[["c", null], null]]}"#));
        assert_eq!(result.description.task_name.as_deref(), Some("shop.pay"));
        assert_eq!(result.description.task_args.as_deref(), Some("[1, NaN]"));
        assert_eq!(result.description.task_kwargs.as_deref(), Some(r#"{"a": "\ud800"}"#));
        assert_eq!(result.description.worker.as_deref(), Some("w@h"));
        assert_eq!(result.description.periodic_task_name, None);
    }

    #[test]
    fn the_result_is_copied_unchanged() {
        for value in [
            "null",
            "NaN",
            "-Infinity",
            "10000000000000000000000000000000000000000",
            "1e+300",
            "1E-07",
            "-0.0",
            r#""\ud83d""#,
            r#""\u0000 \" \\ \/""#,
            r#"{"__type__": "bytes", "__value__": "a"}"#,
            r#"{"1": 1, "1": 2}"#,
            "{\"a\" :\t[ 1 ,\n{} , [ ] ]  }",
            "\"é😀\"",
        ] {
            assert_eq!(read(&five_members(value)).outcome.result.as_deref(), Some(value));
        }
    }

    #[test]
    fn only_a_start_sets_date_started() {
        let result = read(r#"{"task_id": "t", "status": "STARTED", "result": {"pid": 1}}"#);
        assert_eq!(result.date_started, Some(arrival()));
        assert_eq!(read(r#"{"task_id": "t", "status": "PROGRESS"}"#).date_started, None);
    }

    #[test]
    fn absent_members_are_treated_like_null() {
        let result = read(r#"{"task_id": "t", "status": "RETRY"}"#);
        assert_eq!(result.outcome.result.as_deref(), Some("null"));
        assert_eq!(result.outcome.meta.as_deref(), Some(r#"{"children": []}"#));
        let result = read(r#"{"task_id": "t", "status": "REVOKED", "children": null}"#);
        assert_eq!(result.outcome.meta.as_deref(), Some(r#"{"children": null}"#));
    }

    #[test]
    fn the_last_of_two_members_with_one_name_is_used() {
        let body =
            r#"{"task_id": "a", "status": "STARTED", "task_id": "b", "st\u0061tus": "SUCCESS"}"#;
        let result = read(body);
        assert_eq!((result.task_id.as_str(), result.outcome.status), ("b", State::Success));
    }

    #[test]
    fn the_time_is_that_of_the_task_or_the_broker_or_the_arrival() {
        let mut message =
            message(r#"{"task_id": "t", "status": "SUCCESS", "date_done": "2026-11-23T06:51:16"}"#);
        message.headers.insert("timestamp_in_ms".to_owned(), message::Value::Int(1_500));
        message.properties.timestamp = Some(7);
        let date_done = |message: &Message| decode(message).expect("good").outcome.date_done;
        assert_eq!(date_done(&message).to_rfc3339(), "2026-11-23T06:51:16+00:00");

        message.body = br#"{"task_id": "t", "status": "SUCCESS", "date_done": "soon"}"#.to_vec();
        assert_eq!(date_done(&message).timestamp_millis(), 1_500);
        message.body =
            br#"{"task_id": "t", "status": "SUCCESS", "date_done": "2026-06-30T23:59:60.5Z"}"#
                .to_vec();
        assert_eq!(
            date_done(&message).to_rfc3339(),
            "2026-07-01T00:00:00.500+00:00",
            "leap second"
        );
        for absurd in ["0000-01-01T00:00:00", "9999-12-31T23:59:59-12:00", "1969-12-31T23:59:59"] {
            let body =
                format!(r#"{{"task_id": "t", "status": "SUCCESS", "date_done": "{absurd}"}}"#);
            message.body = body.into_bytes();
            assert_eq!(date_done(&message).timestamp_millis(), 1_500, "{absurd}");
        }
        message.headers.insert("timestamp_in_ms".to_owned(), message::Value::Int(i64::MAX));
        assert_eq!(date_done(&message), arrival());
        message.headers.clear();
        assert_eq!(date_done(&message).timestamp(), 7);
        message.properties.timestamp = None;
        assert_eq!(date_done(&message), arrival());
    }

    #[test]
    fn a_member_of_a_wrong_type_does_not_cost_the_result() {
        let result = read(
            r#"{"task_id": "t", "status": "SUCCESS", "result": 1, "traceback": ["x", 1],
            "date_done": 7, "name": 8, "worker": {}, "children": 9}"#,
        );
        assert_eq!(result.outcome.result.as_deref(), Some("1"));
        assert_eq!(result.outcome.traceback.as_deref(), Some(r#"["x", 1]"#));
        assert_eq!(result.outcome.date_done, arrival());
        assert_eq!(result.outcome.meta.as_deref(), Some(r#"{"children": 9}"#));
        assert!(result.description == Description::default());
    }

    #[test]
    fn a_lone_surrogate_in_a_traceback_is_replaced() {
        let body =
            r#"{"task_id": "t", "status": "S", "traceback": "a\ud800b\ud83d\ude00\ud83d\u0063"}"#;
        let result = read(body);
        assert_eq!(result.outcome.traceback.as_deref(), Some("a\u{FFFD}b😀\u{FFFD}c"));
    }

    #[test]
    fn a_stamp_is_not_mistaken_for_a_member() {
        let result = read(
            r#"{"task_id": "t", "status": "SUCCESS", "result": 1, "worker": ["stamp"], "name": "stamp",
            "args": [1], "stamped_headers": ["worker", "name"]}"#,
        );
        assert_eq!(result.description.task_name, None);
        assert_eq!(result.description.worker, None);
        assert_eq!(result.description.task_args.as_deref(), Some("[1]"));

        let body = r#"{"task_id": "t", "status": "x", "stamped_headers": ["customer", "status"]}"#;
        assert!(matches!(decode(&message(body)), Err(DecodeError::NotAResult(_))));
    }

    #[test]
    fn what_is_not_a_result_is_refused() {
        for body in [
            r#"{"status": "SUCCESS"}"#,
            r#"{"task_id": null, "status": "SUCCESS"}"#,
            r#"{"task_id": 7, "status": "SUCCESS"}"#,
            r#"{"task_id": "", "status": "SUCCESS"}"#,
            r#"{"task_id": "\ud800", "status": "SUCCESS"}"#,
            r#"{"task_id": "t"}"#,
            r#"{"task_id": "t", "status": null}"#,
            r#"{"task_id": "t", "status": ""}"#,
            "{}",
        ] {
            assert!(matches!(decode(&message(body)), Err(DecodeError::NotAResult(_))), "{body}");
        }
    }

    #[test]
    fn what_is_not_json_is_refused() {
        for body in [
            "",
            " ",
            "null",
            "[]",
            "\"x\"",
            "7",
            "{",
            "{]",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "{\"a\":1 \"b\":2}",
            "{\"a\":[1,]}",
            "{\"a\":[1 2]}",
            "{\"a\":{]}}",
            "{\"a\":tru}",
            "{\"a\":nan}",
            "{\"a\":01}",
            "{\"a\":1.}",
            "{\"a\":.5}",
            "{\"a\":1e}",
            "{\"a\":+1}",
            "{\"a\":-}",
            "{\"a\":-Inf}",
            "{\"a\":\"\\x\"}",
            "{\"a\":\"\\u12\"}",
            "{\"a\":\"\n\"}",
            "{\"a\":'b'}",
            "{a:1}",
            "{} {}",
            "{}x",
            "\u{FEFF}{}",
        ] {
            let error = decode(&message(body)).expect_err(body);
            assert!(matches!(error, DecodeError::Malformed { .. }), "{error}");
        }
        let mut invalid = message("{\"task_id\": \"");
        invalid.body.push(0xFF);
        let error = decode(&invalid).expect_err("not UTF-8");
        assert_eq!(error.to_string(), "the body is not JSON: invalid UTF-8 at byte 13");
    }

    #[test]
    fn a_body_cut_or_changed_anywhere_is_refused_or_read_and_never_panics() {
        let body = r#"{"task_id": "té", "status": "SUCCESS", "result": {"a": [1, "\ud83d\ude00\n"], "b": -1.5e+3}, "traceback": "x\"\\", "children": [], "date_done": "2026-11-23T06:51:16.000321+00:00", "stamped_headers": ["s", 1]}"#;
        let mut message = message(body);
        for length in 0..body.len() {
            message.body = body.as_bytes()[..length].to_vec();
            assert!(decode(&message).is_err(), "cut after {length} bytes");
        }
        for position in 0..body.len() {
            for byte in 0..=u8::MAX {
                message.body = body.as_bytes().to_vec();
                message.body[position] = byte;
                let _ = decode(&message);
            }
        }
    }

    #[test]
    fn deep_nesting_uses_no_stack() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let deep = nested(10_000);
        assert_eq!(read(&five_members(&deep)).outcome.result, Some(deep));
        for deeper in [nested(10_001), nested(1_000_000), r#"{"a":"#.repeat(1_000_000)] {
            let error = decode(&message(&five_members(&deeper))).expect_err("too deep");
            assert_eq!(error, DecodeError::TooDeep { limit: 10_000 });
        }
    }
}
