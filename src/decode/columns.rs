//! The messages of the backend `celeriac://`: the columns of a row, already encoded.
//!
//! The format is described in `docs/message-format.md`. `python/celeriac/message.py` writes it and
//! this file reads it. The values of the columns are stored as they are; a pickle, a YAML text or a
//! signature is interpreted only by the program that reads the row.

use std::borrow::Cow;

use chrono::{DateTime, Utc};

use crate::decode::format::json;
use crate::decode::format::json_text::{self, Members};
use crate::decode::result_meta::{self, Text};
use crate::decode::{DecodeError, WireLimits, chord};
use crate::row::chord::ChordNews;
use crate::row::group_result::GroupResult;
use crate::row::state::State;
use crate::row::task_result::{Description, Outcome, TaskResult};

/// The content type of a message with the state of a task.
pub(super) const TASK: &str = "application/vnd.celeriac.task-result+json";

/// The content type of a message with a saved group.
pub(super) const GROUP: &str = "application/vnd.celeriac.group-result+json";

/// The version of the format that is read here.
const VERSION: &str = "1";

/// Reads a message with the state of a task.
pub(super) fn task(
    body: &[u8],
    limits: &WireLimits,
) -> Result<(TaskResult, Vec<ChordNews>), DecodeError> {
    const NAMES: [&str; 18] = [
        "task_id",
        "status",
        "content_type",
        "content_encoding",
        "result",
        "meta",
        "traceback",
        "task_name",
        "task_args",
        "task_kwargs",
        "worker",
        "periodic_task_name",
        "date_done",
        // Workers of Celeriac 0.1 do not send these.
        "date_started",
        "queue",
        "retries",
        // Members of chords send these.
        "is_chord_member",
        "added",
    ];
    let columns = Columns::read(body, NAMES, 13, limits)?;
    let status = State::from(&*columns.key("status")?);
    let date_done = columns.time("date_done")?;
    let date_started = match status {
        State::Started => Some(date_done),
        _ => columns.value("date_started").map(|_| columns.time("date_started")).transpose()?,
    };
    let task_id = columns.key("task_id")?.into_owned();
    let added = columns.value("added").map(|ids| json_text::strings(ids).map(Cow::into_owned));
    let added = chord::added(&task_id, added.into_iter().flatten().collect())?;
    let mut news = Vec::from_iter(added);
    if columns.value("is_chord_member") == Some("true") && status.is_ready() {
        news.push(ChordNews::Ended { task_id: task_id.clone() });
    }
    let result = TaskResult {
        task_id,
        date_created: date_started.map_or(date_done, |started| started.min(date_done)),
        date_started: date_started.filter(|started| *started <= date_done),
        outcome: Outcome {
            status,
            content_type: columns.text("content_type")?,
            content_encoding: columns.text("content_encoding")?,
            result: columns.text_or_null("result")?,
            traceback: columns.text_or_null("traceback")?,
            meta: columns.text_or_null("meta")?,
            date_done,
            by_arrival: false,
        },
        description: Description {
            task_name: columns.text_or_null("task_name")?,
            task_args: columns.text_or_null("task_args")?,
            task_kwargs: columns.text_or_null("task_kwargs")?,
            worker: columns.text_or_null("worker")?,
            periodic_task_name: columns.text_or_null("periodic_task_name")?,
            queue: columns.value("queue").and_then(|_| columns.text("queue").ok()),
            retries: columns.value("retries").and_then(|number| number.parse().ok()),
        },
    };
    Ok((result, news))
}

/// Reads a message with a saved group.
pub(super) fn group(body: &[u8], limits: &WireLimits) -> Result<GroupResult, DecodeError> {
    const NAMES: [&str; 5] =
        ["group_id", "content_type", "content_encoding", "result", "date_done"];
    let columns = Columns::read(body, NAMES, NAMES.len(), limits)?;
    let date_done = columns.time("date_done")?;
    Ok(GroupResult {
        group_id: columns.key("group_id")?.into_owned(),
        content_type: columns.text("content_type")?,
        content_encoding: columns.text("content_encoding")?,
        result: columns.text_or_null("result")?,
        date_created: date_done,
        date_done,
    })
}

/// The members that are named like columns, each with the JSON text of its value.
struct Columns<'body, const N: usize> {
    names: [&'static str; N],
    values: [Option<&'body str>; N],
}

impl<'body, const N: usize> Columns<'body, N> {
    /// Reads the named members, of which the first ones are required. Other members are ignored.
    fn read(
        body: &'body [u8],
        names: [&'static str; N],
        required: usize,
        limits: &WireLimits,
    ) -> Result<Self, DecodeError> {
        let mut version = None;
        let mut values = [None; N];
        for member in Members::of(json::text(body)?, limits.depth)? {
            let (name, value) = member?;
            if let Some(place) = names.iter().position(|&known| known == name) {
                values[place] = Some(value);
            } else if name == "version" {
                version = Some(value);
            }
        }
        // Another version may have other members, so the version is checked first.
        match version {
            Some(VERSION) => {}
            Some(other) if other.parse::<u32>().is_ok() => {
                return Err(DecodeError::UnsupportedVersion(other.to_owned()));
            }
            _ => return Err(DecodeError::wrong_member("version", "missing or not a number")),
        }
        match values[..required].iter().position(Option::is_none) {
            Some(place) => Err(DecodeError::wrong_member(names[place], "missing")),
            None => Ok(Self { names, values }),
        }
    }

    fn value(&self, name: &'static str) -> Option<&'body str> {
        let place = self.names.iter().position(|&known| known == name)?;
        self.values[place]
    }

    /// The value of a member that must be a string. Lone surrogates are replaced by U+FFFD.
    fn text(&self, name: &'static str) -> Result<String, DecodeError> {
        match self.value(name).and_then(json_text::string) {
            Some(Text { text, .. }) => Ok(text.into_owned()),
            None => Err(DecodeError::wrong_member(name, "not a text")),
        }
    }

    fn text_or_null(&self, name: &'static str) -> Result<Option<String>, DecodeError> {
        match self.value(name) {
            Some("null") => Ok(None),
            _ => match self.text(name) {
                Ok(text) => Ok(Some(text)),
                Err(_) => Err(DecodeError::wrong_member(name, "neither a text nor null")),
            },
        }
    }

    /// The value of a member that is an identifier: a string that is not empty and has no lone
    /// surrogates.
    fn key(&self, name: &'static str) -> Result<Cow<'body, str>, DecodeError> {
        match self.value(name).and_then(json_text::string) {
            Some(Text { is_lossy: true, .. }) => {
                Err(DecodeError::wrong_member(name, "a text with a lone surrogate"))
            }
            Some(Text { text, .. }) if !text.is_empty() => Ok(text),
            _ => Err(DecodeError::wrong_member(name, "empty or not a text")),
        }
    }

    /// The value of a member that must be a time with an offset from UTC.
    fn time(&self, name: &'static str) -> Result<DateTime<Utc>, DecodeError> {
        let text = self.text(name)?;
        let time = DateTime::parse_from_rfc3339(&text).map_err(|_| {
            DecodeError::wrong_member(name, "not a time in ISO 8601 with an offset from UTC")
        })?;
        Some(result_meta::to_microseconds(time.to_utc()))
            .filter(result_meta::is_storable)
            .ok_or_else(|| DecodeError::wrong_member(name, "before 1970 or after 9998"))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn task(body: impl AsRef<[u8]>) -> Result<TaskResult, DecodeError> {
        super::task(body.as_ref(), &WireLimits::default()).map(|(result, _)| result)
    }

    fn group(body: impl AsRef<[u8]>) -> Result<GroupResult, DecodeError> {
        super::group(body.as_ref(), &WireLimits::default())
    }

    const TASK_BODY: &str = r#"{"version": 1, "task_id": "t", "status": "STARTED",
        "content_type": "application/x-python-serialize", "content_encoding": "binary",
        "result": "gARLKi4=", "meta": "gAR9lC4=", "traceback": null,
        "task_name": "shop.pay", "task_args": "gASM", "task_kwargs": "", "worker": "w@h",
        "periodic_task_name": "nightly\n\"\u00e9", "date_done": "2026-11-23T07:51:16.000321+01:00"}"#;

    const GROUP_BODY: &str = r#"{"version": 1, "group_id": "g", "content_type": "application/json",
        "content_encoding": "utf-8", "result": "[[\"g\", null], []]",
        "date_done": "2026-11-23T06:51:16Z"}"#;

    #[test]
    fn the_columns_of_a_task_are_taken_as_they_are() {
        let result = task(TASK_BODY).expect("a good body");
        assert_eq!(result.task_id, "t");
        assert_eq!(result.outcome.status, State::Started);
        assert_eq!(result.outcome.content_type, "application/x-python-serialize");
        assert_eq!(result.outcome.content_encoding, "binary");
        assert_eq!(result.outcome.result.as_deref(), Some("gARLKi4="));
        assert_eq!(result.outcome.meta.as_deref(), Some("gAR9lC4="));
        assert_eq!(result.outcome.traceback, None);
        let description = &result.description;
        assert_eq!(description.task_name.as_deref(), Some("shop.pay"));
        assert_eq!(description.task_args.as_deref(), Some("gASM"));
        assert_eq!(description.task_kwargs.as_deref(), Some(""), "an empty text is not NULL");
        assert_eq!(description.worker.as_deref(), Some("w@h"));
        assert_eq!(description.periodic_task_name.as_deref(), Some("nightly\n\"é"));
        let time = result.outcome.date_done;
        assert_eq!(time.to_rfc3339(), "2026-11-23T06:51:16.000321+00:00");
        assert_eq!((result.date_created, result.date_started), (time, Some(time)));
        assert!(!result.outcome.by_arrival);
    }

    #[test]
    fn only_a_start_sets_date_started() {
        let body = TASK_BODY.replace("STARTED", "SUCCESS");
        assert_eq!(task(body).expect("a good body").date_started, None);
    }

    #[test]
    fn the_columns_of_a_group_are_taken_as_they_are() {
        let result = group(GROUP_BODY).expect("a good body");
        assert_eq!(result.group_id, "g");
        assert_eq!(result.content_type, "application/json");
        assert_eq!(result.content_encoding, "utf-8");
        assert_eq!(result.result.as_deref(), Some(r#"[["g", null], []]"#));
        assert_eq!(result.date_done.to_rfc3339(), "2026-11-23T06:51:16+00:00");
        assert_eq!(result.date_created, result.date_done);
    }

    /// The body with another value for the member, or without the member if there is no value.
    fn changed(body: &str, member: &str, value: Option<&str>) -> String {
        let mut members: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(body).expect("JSON");
        members.remove(member).expect("it is there");
        let mut text = serde_json::to_string(&members).expect("JSON");
        if let Some(value) = value {
            text.truncate(text.len() - 1);
            text = format!(r#"{text}, "{member}": {value}}}"#);
        }
        text
    }

    #[test]
    fn every_member_is_required_and_has_a_type() {
        let members = |body: &str| -> Vec<String> {
            let object: serde_json::Map<String, serde_json::Value> =
                serde_json::from_str(body).expect("JSON");
            object.keys().cloned().collect()
        };
        for member in members(TASK_BODY) {
            for value in [None, Some("true"), Some("1.5"), Some("[]"), Some(r#"{"a": "b"}"#)] {
                let error = task(changed(TASK_BODY, &member, value)).expect_err(&member);
                assert_eq!(error.code(), "not-a-result", "{member}: {value:?}");
                assert!(error.to_string().contains(&format!("`{member}`")), "{error}");
            }
        }
        for member in members(GROUP_BODY) {
            for value in [None, Some("7.5"), Some("[]")] {
                let error = group(changed(GROUP_BODY, &member, value)).expect_err(&member);
                assert_eq!(error.code(), "not-a-result", "{member}: {value:?}");
            }
        }
    }

    #[test]
    fn null_is_accepted_where_the_column_is_nullable() {
        let nullable = [
            "result",
            "meta",
            "traceback",
            "task_name",
            "task_args",
            "task_kwargs",
            "worker",
            "periodic_task_name",
        ];
        for member in nullable {
            assert!(task(changed(TASK_BODY, member, Some("null"))).is_ok(), "{member}");
        }
        for member in ["task_id", "status", "content_type", "content_encoding", "date_done"] {
            assert!(task(changed(TASK_BODY, member, Some("null"))).is_err(), "{member}");
        }
        for (member, value) in [("task_id", r#""""#), ("status", r#""\ud800""#)] {
            assert!(task(changed(TASK_BODY, member, Some(value))).is_err(), "{member}");
        }
        let lossy = task(changed(TASK_BODY, "traceback", Some(r#""a\ud800b""#)));
        assert_eq!(lossy.expect("read").outcome.traceback.as_deref(), Some("a\u{FFFD}b"));
    }

    #[test]
    fn an_unknown_version_has_an_error_of_its_own() {
        for version in ["2", "0", "4294967295"] {
            let error = task(changed(TASK_BODY, "version", Some(version))).expect_err(version);
            assert_eq!(error.code(), "unsupported-version");
        }
        for version in ["\"1\"", "-1", "1.0", "null", "99999999999"] {
            let error = task(changed(TASK_BODY, "version", Some(version))).expect_err(version);
            assert_eq!(error.code(), "not-a-result", "{version}");
        }
        let error = task(r#"{"version": 2}"#).expect_err("of another version");
        assert_eq!(error.code(), "unsupported-version", "whatever its other members are");
    }

    #[test]
    fn a_time_needs_an_offset_and_must_be_in_the_range_of_the_databases() {
        for time in ["", "yesterday", "2026-11-23T06:51:16", "2026-02-30T00:00:00Z", "1767225600"] {
            let value = format!("\"{time}\"");
            assert!(task(changed(TASK_BODY, "date_done", Some(&value))).is_err(), "{time}");
        }
        for time in ["1969-12-31T23:59:59Z", "9999-12-31T23:59:59-12:00"] {
            let value = format!("\"{time}\"");
            assert!(task(changed(TASK_BODY, "date_done", Some(&value))).is_err(), "{time}");
        }
    }

    #[test]
    fn members_that_are_not_columns_are_ignored() {
        let body = TASK_BODY.replacen('{', r#"{"queue": ["celery"], "retries": 3, "#, 1);
        assert_eq!(task(body).expect("a good body").task_id, "t");
    }

    #[test]
    fn a_body_cut_or_changed_anywhere_is_refused_or_read_and_never_panics() {
        for body in [TASK_BODY, GROUP_BODY] {
            for length in 0..body.len() {
                let cut = &body.as_bytes()[..length];
                assert!(task(cut).is_err() && group(cut).is_err(), "cut after {length} bytes");
            }
            for position in 0..body.len() {
                for byte in 0..=u8::MAX {
                    let mut changed = body.as_bytes().to_vec();
                    changed[position] = byte;
                    let _ = (task(&changed), group(&changed));
                }
            }
        }
    }

    #[test]
    fn the_examples_in_the_document_are_read() {
        let document = include_str!("../../docs/message-format.md");
        let examples: Vec<_> = document
            .split("```json\n")
            .skip(1)
            .map(|rest| rest.split("```").next().expect("it ends"))
            .collect();
        let [success, failure, saved, applied, member, _hint] = examples[..] else {
            panic!("{} examples", examples.len());
        };
        let result = task(success).expect("a task");
        assert_eq!(result.outcome.status, State::Success);
        assert_eq!(result.outcome.result.as_deref(), Some(r#"{"total": "9.99"}"#));
        assert_eq!(result.description.task_args.as_deref(), Some(r#""('leek',)""#));
        let result = task(failure).expect("a failure");
        assert_eq!(result.outcome.status, State::Failure);
        assert_eq!(result.outcome.date_done.to_rfc3339(), "2026-03-04T05:06:08.000002+00:00");
        assert_eq!(
            group(saved).expect("a group").date_done,
            task(success).expect("read").outcome.date_done
        );
        let news = chord::chord(applied.as_bytes(), Utc::now()).expect("a chord");
        assert!(matches!(news, ChordNews::Applied(chord) if chord.members.len() == 2));
        let news = chord::member(member.as_bytes()).expect("a member");
        assert!(matches!(&news[..], [ChordNews::Value { .. }]));
        // The tables in the document describe exactly the members of the examples.
        for (body, heading) in [(success, "### A state of a task"), (saved, "### A saved group")] {
            let table = document.split(heading).nth(1).expect("a heading");
            let table = table.split("```").next().expect("an example");
            let described: BTreeSet<_> = table
                .lines()
                .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
                .collect();
            let members: serde_json::Map<String, serde_json::Value> =
                serde_json::from_str(body).expect("JSON");
            assert_eq!(described, members.keys().map(String::as_str).collect());
        }
    }
}
