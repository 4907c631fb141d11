//! Celery's task events, independent of the serializer.
//!
//! A message holds one event, or a list of them under the routing key `task.multi`. Each is a map
//! with `type`, `timestamp`, `hostname` and, for tasks, `uuid`; the other members depend on the
//! type (`celery/events/event.py`, `celery/worker/request.py`, 4.4 to 5.7.0). `timestamp` is the
//! number of seconds since the epoch in UTC; `utcoffset` is only the time zone of the worker.
//!
//! An event says less about an outcome than a result message does: it has only the `repr` of the
//! result, which is cut short, or of the exception. Rows from events therefore have [`EVENT`] as
//! their `content_type`, and the merge law lets every result message replace them.

use std::borrow::Cow;
use std::fmt::Write;

use chrono::{DateTime, Utc};

use crate::decode::result_meta::{Text, WireValue, is_storable, to_microseconds};
use crate::decode::{DecodeError, Decoded};
use crate::row::Row;
use crate::row::state::State;
use crate::row::task_result::{
    Description, EVENT, Outcome, TOLD_BY_EVENTS, TaskResult, created_without_start,
};

/// 2009-04-01 in seconds since the epoch: a date before the first release of Celery.
const CELERY_BEGAN: i64 = 1_238_544_000;

/// Which parts of events are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventPolicy {
    /// Whether a task that was sent and not received yet gets a row in the state PENDING.
    pub pending: bool,
    /// Whether arguments are stored. They can contain secrets.
    pub arguments: bool,
    /// Whether events with a final state are ignored, because result messages report these states.
    pub unfinished_only: bool,
}

impl Decoded {
    /// Adds the row that one event describes, if it describes one, or counts why the event was
    /// skipped.
    pub(super) fn push(&mut self, event: Result<Option<TaskResult>, &'static str>) {
        match event {
            Ok(Some(result)) => self.rows.push(Row::Task(result)),
            Ok(None) => {}
            Err(problem) => *self.skipped.entry(problem).or_default() += 1,
        }
    }
}

/// The members of one event that are used.
pub(super) struct Event<V> {
    kind: Option<V>,
    uuid: Option<V>,
    timestamp: Option<V>,
    hostname: Option<V>,
    name: Option<V>,
    args: Option<V>,
    kwargs: Option<V>,
    result: Option<V>,
    exception: Option<V>,
    traceback: Option<V>,
    terminated: Option<V>,
    expired: Option<V>,
}

impl<'body, V: WireValue<'body>> Event<V> {
    /// Collects the members that are used.
    pub(super) fn collect<'key>(
        members: impl Iterator<Item = Result<(Cow<'key, str>, V), DecodeError>>,
    ) -> Result<Self, DecodeError> {
        let mut event = Self {
            kind: None,
            uuid: None,
            timestamp: None,
            hostname: None,
            name: None,
            args: None,
            kwargs: None,
            result: None,
            exception: None,
            traceback: None,
            terminated: None,
            expired: None,
        };
        for member in members {
            let (key, value) = member?;
            let member = match &*key {
                "type" => &mut event.kind,
                "uuid" => &mut event.uuid,
                "timestamp" => &mut event.timestamp,
                "hostname" => &mut event.hostname,
                "name" => &mut event.name,
                "args" => &mut event.args,
                "kwargs" => &mut event.kwargs,
                "result" => &mut event.result,
                "exception" => &mut event.exception,
                "traceback" => &mut event.traceback,
                "terminated" => &mut event.terminated,
                "expired" => &mut event.expired,
                _ => continue,
            };
            *member = Some(value);
        }
        Ok(event)
    }

    /// The row that the event describes; `None` if it is not about a task or is not to be stored.
    ///
    /// # Errors
    ///
    /// Returns what is wrong with an event that cannot come from Celery.
    pub(super) fn into_result(
        self,
        policy: EventPolicy,
    ) -> Result<Option<TaskResult>, &'static str> {
        let kind = key(self.kind).ok_or("`type` is missing or not a text")?;
        let Some(kind) = kind.strip_prefix("task-") else { return Ok(None) };
        if kind == "sent" && !policy.pending {
            return Ok(None);
        }
        let task_id = match (self.uuid, key(self.uuid)) {
            (_, Some(task_id)) => task_id.into_owned(),
            // An application may send events of its own that are not about a task.
            (None, None) if state(kind).is_none() => return Ok(None),
            _ => return Err("`uuid` is missing, empty or not a text"),
        };
        let time = self
            .timestamp
            .and_then(V::number)
            .and_then(time)
            .ok_or("`timestamp` is missing or cannot be the time of an event")?;
        let status = state(kind).unwrap_or_else(|| State::from(&*kind.to_uppercase()));

        if policy.unfinished_only && status.is_ready() {
            return Ok(None);
        }
        let (result, traceback) = self.result_and_traceback(&status);
        // Only these two events contain the name of the task; in an application's own event `name`
        // may be anything.
        let names_the_task = matches!(kind, "sent" | "received");
        let arguments = |value: Option<V>| {
            value.filter(|_| names_the_task && policy.arguments).and_then(V::json)
        };
        let task_args = arguments(self.args);
        Ok(Some(TaskResult {
            task_id,
            description: Description {
                periodic_task_name: task_args.as_ref().map(|_| TOLD_BY_EVENTS.to_owned()),
                task_name: text(self.name.filter(|_| names_the_task)),
                task_args,
                task_kwargs: arguments(self.kwargs),
                // The `hostname` of `task-sent` is that of the client.
                worker: text(self.hostname.filter(|_| kind != "sent")),
                ..Description::default()
            },
            date_created: created_without_start(&status, time),
            date_started: (status == State::Started).then_some(time),
            outcome: Outcome {
                status,
                content_type: EVENT.to_owned(),
                content_encoding: "utf-8".to_owned(),
                result,
                traceback,
                meta: None,
                date_done: time,
                by_arrival: false,
            },
        }))
    }

    /// The columns `result` and `traceback` of an event that reports this state.
    fn result_and_traceback(&self, status: &State) -> (Option<String>, Option<String>) {
        match status {
            State::Success => {
                (Some(self.result.and_then(V::json).unwrap_or_else(|| "null".to_owned())), None)
            }
            State::Failure | State::Retry => {
                let traceback = text(self.traceback);
                let exception = text(self.exception).filter(|repr| repr != "None");
                let result = match exception {
                    None if *status == State::Retry => None,
                    repr => Some(exception_json(&repr.unwrap_or_default(), traceback.as_deref())),
                };
                (result, traceback)
            }
            State::Revoked => (Some(self.revocation()), None),
            _ => (None, None),
        }
    }

    /// The result of a revoked task (`celery/worker/request.py`, 5.7.0).
    fn revocation(&self) -> String {
        let is_true = |value: Option<V>| value.is_some_and(V::is_true);
        let message = match () {
            () if is_true(self.expired) => "expired",
            () if is_true(self.terminated) => "terminated",
            () => "revoked",
        };
        format!(
            r#"{{"exc_type": "TaskRevokedError", "exc_message": ["{message}"], "exc_module": "celery.exceptions"}}"#
        )
    }
}

/// The state for the part of an event's type after `task-` (`TASK_EVENT_TO_STATE` in
/// `celery/events/state.py`, 5.7.0). A worker that cancels a task returns it to the queue and marks
/// it for a retry (`Request.cancel` in `celery/worker/request.py`). Returns `None` for an
/// application's own event, whose type is then the name of the state.
fn state(kind: &str) -> Option<State> {
    Some(match kind {
        "sent" => State::Pending,
        "received" => State::Received,
        "started" => State::Started,
        "succeeded" => State::Success,
        "failed" => State::Failure,
        "retried" | "cancelled" => State::Retry,
        "rejected" => State::Rejected,
        "revoked" => State::Revoked,
        _ => return None,
    })
}

/// The text of a member, if it is not empty.
fn text<'body, V: WireValue<'body>>(value: Option<V>) -> Option<String> {
    let text = value.and_then(V::text)?.text.into_owned();
    Some(text).filter(|text| !text.is_empty())
}

/// The text of an identifier: not empty, and without lone surrogates.
fn key<'body, V: WireValue<'body>>(value: Option<V>) -> Option<Cow<'body, str>> {
    match value?.text()? {
        Text { is_lossy: true, .. } => None,
        Text { text, .. } => Some(text).filter(|text| !text.is_empty()),
    }
}

/// The time that is this many seconds after the epoch, or `None` if no event can have that time.
/// Merging keeps the earliest and the latest times, so a single impossible one would stay in the
/// row for ever.
#[expect(clippy::cast_possible_truncation, reason = "it is in range when it is compared")]
fn time(seconds: f64) -> Option<DateTime<Utc>> {
    let time = DateTime::from_timestamp_micros((seconds * 1e6).round() as i64)?;
    let is_possible = time.timestamp() >= CELERY_BEGAN && is_storable(&time);
    is_possible.then(|| to_microseconds(time))
}

/// An exception in the JSON form in which Celery stores it (`prepare_exception` in
/// `celery/backends/base.py`, 5.7.0), made from its `repr`. The module is unknown, and the
/// arguments become a single string, as they are written in the `repr`.
fn exception_json(repr: &str, traceback: Option<&str>) -> String {
    let (kind, message) = match repr {
        // The `repr` that billiard 4 gives to every exception that the worker's main process has
        // caught.
        "ExceptionWithTraceback()" => traceback
            .and_then(|text| text.trim_end().lines().next_back())
            .and_then(|line| line.split_once(": "))
            .map_or(("Exception", ""), |(path, message)| {
                (path.rsplit('.').next().unwrap_or(path), message)
            }),
        _ => repr
            .strip_suffix(')')
            .and_then(|repr| repr.split_once('('))
            .filter(|(kind, _)| is_identifier(kind))
            .unwrap_or(("Exception", repr)),
    };
    let kind = if is_identifier(kind) { kind } else { "Exception" };
    let message = if message.is_empty() { String::new() } else { python_json(message) };
    format!(
        r#"{{"exc_type": {}, "exc_message": [{message}], "exc_module": null}}"#,
        python_json(kind)
    )
}

fn is_identifier(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || c == '_')
}

/// A string as Python's `json.dumps` writes it, in ASCII.
pub(super) fn python_json(text: &str) -> String {
    let mut json = String::with_capacity(text.len() + 2);
    json.push('"');
    for character in text.chars() {
        match character {
            '"' => json.push_str("\\\""),
            '\\' => json.push_str("\\\\"),
            '\n' => json.push_str("\\n"),
            '\r' => json.push_str("\\r"),
            '\t' => json.push_str("\\t"),
            '\u{8}' => json.push_str("\\b"),
            '\u{c}' => json.push_str("\\f"),
            ' '..='~' => json.push(character),
            _ => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    let _ = write!(json, "\\u{unit:04x}");
                }
            }
        }
    }
    json.push('"');
    json
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::Decoder;
    use crate::message::Message;
    use crate::message::Properties;

    /// The default limit.
    const MAX_EVENTS: usize = 10_000;

    const NOW: i64 = 1_795_416_700;

    fn message(body: impl Into<Vec<u8>>, content_type: &str) -> Message {
        Message {
            body: body.into(),
            properties: Properties {
                content_type: Some(content_type.to_owned()),
                ..Properties::default()
            },
            headers: [].into(),
            exchange: "celeryev".to_owned(),
            routing_key: "task.multi".to_owned(),
            redelivered: false,
            delivery_id: crate::message::DeliveryId::default(),
            received_at: DateTime::from_timestamp(NOW, 0).expect("in range"),
        }
    }

    const EVERYTHING: EventPolicy =
        EventPolicy { pending: true, arguments: true, unfinished_only: false };

    fn decode_events(message: &Message, policy: EventPolicy) -> Result<Decoded, DecodeError> {
        Decoder { events: policy, ..Decoder::default() }.events(message)
    }

    fn events(body: &str, policy: EventPolicy) -> Decoded {
        decode_events(&message(body, "application/json"), policy).expect(body)
    }

    /// The task of a single event, which gets the given members besides the common ones.
    fn task(members: &str) -> TaskResult {
        let body = format!(
            r#"{{"hostname": "w@h", "utcoffset": -1, "pid": 7, "clock": 3, "uuid": "t",
            "timestamp": 1795416669.2731755, {members}}}"#
        );
        let mut events = events(&body, EVERYTHING);
        assert_eq!((events.rows.len(), events.skipped.len()), (1, 0), "{members}");
        let Some(Row::Task(result)) = events.rows.pop() else { panic!("a task") };
        result
    }

    #[test]
    fn every_event_type_has_a_state() {
        for (kind, status) in [
            ("sent", "PENDING"),
            ("received", "RECEIVED"),
            ("started", "STARTED"),
            ("succeeded", "SUCCESS"),
            ("failed", "FAILURE"),
            ("retried", "RETRY"),
            ("cancelled", "RETRY"),
            ("rejected", "REJECTED"),
            ("revoked", "REVOKED"),
            ("progress", "PROGRESS"),
        ] {
            let result = task(&format!(r#""type": "task-{kind}""#));
            assert_eq!(result.outcome.status.as_str(), status);
            assert_eq!(result.outcome.content_type, EVENT);
            assert_eq!(result.outcome.date_done.to_rfc3339(), "2026-11-23T06:51:09.273176+00:00");
            let is_final = result.outcome.status.is_ready();
            let created = if is_final { "09.273+00:00" } else { "09.273176+00:00" };
            assert!(result.date_created.to_rfc3339().ends_with(created), "{kind}");
            assert_eq!(result.date_started.is_some(), kind == "started");
            assert!(!result.outcome.by_arrival);
            let worker = (kind != "sent").then_some("w@h");
            assert_eq!(result.description.worker.as_deref(), worker);
        }
    }

    #[test]
    fn only_sent_and_received_contain_the_name_and_the_arguments() {
        let members = r#""name": "shop.pay", "args": "('caf\u00e9',)", "kwargs": "{}""#;
        let result = task(&format!(r#""type": "task-received", {members}"#));
        assert_eq!(result.description.task_name.as_deref(), Some("shop.pay"));
        assert_eq!(result.description.task_args.as_deref(), Some(r#""('caf\u00e9',)""#));
        assert_eq!(result.description.task_kwargs.as_deref(), Some(r#""{}""#));

        let result = task(&format!(r#""type": "task-progress", {members}"#));
        assert_eq!(result.description.task_name, None, "an application's own members");

        let body =
            format!(r#"{{"type": "task-received", "uuid": "t", "timestamp": {NOW}, {members}}}"#);
        let Some(Row::Task(result)) = events(&body, EventPolicy::default()).rows.pop() else {
            panic!("a task")
        };
        assert_eq!(result.description.task_name.as_deref(), Some("shop.pay"));
        assert_eq!(result.description.task_args, None, "stored only on request");
        assert_eq!(result.outcome.result, None);
    }

    #[test]
    fn events_that_are_not_wanted_or_not_about_tasks_give_no_rows() {
        for body in [
            r#"{"type": "task-sent", "uuid": "t", "timestamp": 1795416669}"#,
            r#"{"type": "worker-heartbeat", "timestamp": 1795416669}"#,
            r#"{"type": "order-placed", "uuid": "t", "timestamp": 1795416669}"#,
            r#"{"type": "task-statistics", "timestamp": 1795416669}"#,
            "[]",
        ] {
            assert_eq!(events(body, EventPolicy::default()), Decoded::default(), "{body}");
        }
    }

    #[test]
    fn final_events_are_ignored_if_the_policy_says_so() {
        let policy = EventPolicy { unfinished_only: true, ..EventPolicy::default() };
        for (kind, rows) in [("started", 1), ("retried", 1), ("succeeded", 0), ("failed", 0)] {
            let body = format!(r#"{{"type": "task-{kind}", "uuid": "t", "timestamp": {NOW}}}"#);
            assert_eq!(events(&body, policy).rows.len(), rows, "{kind}");
        }
    }

    #[test]
    fn outcomes_have_the_form_that_celery_can_load() {
        let result = |members: &str| task(members).outcome.result;
        assert_eq!(
            result(r#""type": "task-succeeded", "result": "{'a': 'caf\u00e9'}", "runtime": 0.1"#),
            Some(r#""{'a': 'caf\u00e9'}""#.to_owned())
        );
        assert_eq!(
            result(r#""type": "task-revoked", "terminated": true, "signum": 15, "expired": false"#),
            Some(
                r#"{"exc_type": "TaskRevokedError", "exc_message": ["terminated"], "exc_module": "celery.exceptions"}"#
                    .to_owned()
            )
        );
        let failed = task(
            r#""type": "task-failed", "exception": "ValueError('bad', 7)", "traceback": "Trace""#,
        );
        assert_eq!(failed.outcome.traceback.as_deref(), Some("Trace"));
        assert_eq!(
            failed.outcome.result.as_deref(),
            Some(r#"{"exc_type": "ValueError", "exc_message": ["'bad', 7"], "exc_module": null}"#)
        );
        assert_eq!(result(r#""type": "task-retried", "exception": "None""#), None);
    }

    #[test]
    fn an_exception_is_read_from_its_repr_or_from_the_traceback() {
        for (repr, traceback, expected) in [
            ("ValueError()", None, r#""ValueError", "exc_message": []"#),
            ("Odd <repr>", None, r#""Exception", "exc_message": ["Odd <repr>"]"#),
            ("x.y(1)", None, r#""Exception", "exc_message": ["x.y(1)"]"#),
            (
                "ExceptionWithTraceback()",
                Some("Traceback:\n  line\nbilliard.exceptions.TimeLimitExceeded: (1,)\n"),
                r#""TimeLimitExceeded", "exc_message": ["(1,)"]"#,
            ),
            ("ExceptionWithTraceback()", None, r#""Exception", "exc_message": []"#),
            (
                "Err('é\n\u{1F96C}\u{7F}')",
                None,
                r#""Err", "exc_message": ["'\u00e9\n\ud83e\udd6c\u007f'"]"#,
            ),
        ] {
            let json = exception_json(repr, traceback);
            assert_eq!(json, format!(r#"{{"exc_type": {expected}, "exc_module": null}}"#));
        }
    }

    #[test]
    fn a_bad_event_does_not_affect_the_others() {
        let good = r#"{"type": "task-started", "uuid": "good", "timestamp": 1795416669}"#;
        for bad in [
            "7",
            "null",
            "[]",
            "{}",
            r#"{"type": 7}"#,
            r#"{"type": "task-started", "timestamp": 1795416669}"#,
            r#"{"type": "task-started", "uuid": "", "timestamp": 1795416669}"#,
            r#"{"type": "task-started", "uuid": ["t"], "timestamp": 1795416669}"#,
            r#"{"type": "task-started", "uuid": "t\ud800", "timestamp": 1795416669}"#,
            r#"{"type": "task-started", "uuid": "t"}"#,
            r#"{"type": "task-started", "uuid": "t", "timestamp": "now"}"#,
            r#"{"type": "task-started", "uuid": "t", "timestamp": true}"#,
            r#"{"type": "task-started", "uuid": "t", "timestamp": NaN}"#,
            r#"{"type": "task-started", "uuid": "t", "timestamp": -Infinity}"#,
            r#"{"type": "task-started", "uuid": "t", "timestamp": 1e300}"#,
            r#"{"type": "task-started", "uuid": "t", "timestamp": 5}"#,
            r#"{"type": "task-started", "uuid": "t", "timestamp": 300000000000}"#,
        ] {
            let events = events(&format!("[{good}, {bad}, {good}]"), EVERYTHING);
            assert_eq!(events.rows.len(), 2, "{bad}");
            assert_eq!(events.skipped.into_values().collect::<Vec<_>>(), [1], "{bad}");
        }
        let odd = task(
            r#""type": "task-succeeded", "result": [[[]]], "hostname": 7, "name": {}, "args": 1"#,
        );
        assert_eq!(odd.outcome.result.as_deref(), Some("null"));
        assert!(odd.description == Description::default());
    }

    #[test]
    fn a_body_that_is_cut_or_too_long_is_refused() {
        let one = r#"{"type": "task-started", "uuid": "t", "timestamp": 1795416669}"#;
        let list = format!("[{one}, {one}]");
        for length in 0..list.len() {
            let cut = message(&list[..length], "application/json");
            assert!(decode_events(&cut, EVERYTHING).is_err(), "cut after {length} bytes");
        }
        for position in 0..list.len() {
            for byte in 0..=u8::MAX {
                let mut changed = message(list.as_str(), "application/json");
                changed.body[position] = byte;
                let _ = decode_events(&changed, EVERYTHING);
            }
        }
        let many = |count: usize| {
            let body = format!("[{}]", vec![one; count].join(","));
            decode_events(&message(body, "application/json"), EVERYTHING)
        };
        assert_eq!(many(MAX_EVENTS).expect("as many as may be").rows.len(), MAX_EVENTS);
        assert_eq!(many(MAX_EVENTS + 1), Err(DecodeError::TooManyEvents { limit: MAX_EVENTS }));
    }

    #[test]
    fn events_in_msgpack_give_the_same_rows_as_in_json() {
        let json = r#"[{"type": "task-received", "uuid": "t", "timestamp": 1795416669.5,
            "hostname": "w", "name": "pay", "args": "('é',)", "kwargs": "{}"}, 7,
            {"type": "task-succeeded", "uuid": "t", "timestamp": 1795416670, "result": "1"}]"#;
        let value: serde_json::Value = serde_json::from_str(json).expect("JSON");
        let packed = rmp_serde::to_vec_named(&value).expect("msgpack");
        let from_json = events(&json.replace('é', "\\u00e9"), EVERYTHING);
        let content_type = "application/x-msgpack";
        let from_msgpack = decode_events(&message(packed.clone(), content_type), EVERYTHING);
        let from_msgpack = from_msgpack.expect("good");
        assert_eq!(from_msgpack.rows, from_json.rows);
        assert_eq!(from_msgpack.skipped.into_values().collect::<Vec<_>>(), [1]);
        for length in 0..packed.len() {
            let cut = message(&packed[..length], content_type);
            assert!(decode_events(&cut, EVERYTHING).is_err(), "cut after {length} bytes");
        }
        for position in 0..packed.len() {
            for byte in 0..=u8::MAX {
                let mut changed = packed.clone();
                changed[position] = byte;
                let _ = decode_events(&message(changed, content_type), EVERYTHING);
            }
        }
        // The header of a list with more than four thousand million elements.
        let bomb = message([0xDD, 0xFF, 0xFF, 0xFF, 0xFF], content_type);
        assert_eq!(
            decode_events(&bomb, EVERYTHING),
            Err(DecodeError::TooManyEvents { limit: MAX_EVENTS })
        );
    }
}
