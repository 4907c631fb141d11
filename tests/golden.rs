//! Messages that real Celery workers published, read and merged, against the rows that
//! django-celery-results wrote for the same tasks.

#![expect(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use celeriac::decode::Decoder;
use celeriac::message::{Message, Properties};
use celeriac::row::Row;
use celeriac::task_result::TaskResult;
use chrono::{DateTime, TimeDelta};
use serde_json::Value;

/// The messages of a capture, in the order in which they were published.
fn messages(capture: &str) -> Vec<Message> {
    capture
        .lines()
        .zip(0..)
        .map(|(line, number)| {
            let line: Value = serde_json::from_str(line).expect("a line is JSON");
            let property = |name: &str| line["properties"][name].as_str().map(str::to_owned);
            Message {
                body: STANDARD.decode(line["body_b64"].as_str().expect("text")).expect("base64"),
                properties: Properties {
                    content_type: property("content_type"),
                    content_encoding: property("content_encoding"),
                    ..Properties::default()
                },
                headers: [].into(),
                exchange: String::new(),
                routing_key: "zoo.results".to_owned(),
                redelivered: false,
                delivery_tag: number,
                received_at: DateTime::UNIX_EPOCH
                    + TimeDelta::milliseconds(i64::try_from(number).expect("small")),
            }
        })
        .collect()
}

fn merge<'messages>(
    messages: impl IntoIterator<Item = &'messages Message>,
) -> BTreeMap<String, TaskResult> {
    let decoder = Decoder::default();
    let mut rows = BTreeMap::<String, TaskResult>::new();
    for message in messages {
        let mut read = decoder.result(message).expect("every message is good");
        let Some(Row::Task(result)) = read.rows.pop() else {
            panic!("a worker on `rpc://` speaks of tasks only");
        };
        match rows.get_mut(&result.task_id) {
            Some(row) => row.merge(result),
            None => {
                rows.insert(result.task_id.clone(), result);
            }
        }
    }
    rows
}

/// Compares the rows of a capture column by column. The rows are of another run of the same tasks:
/// what holds a process id, the request itself or the depth of the stack is not compared, and the
/// rest of the `results` has to be equal to the letter.
fn check(capture: &str, rows: &str, is_extended: bool, results: usize) {
    let expected: BTreeMap<String, BTreeMap<String, Value>> =
        serde_json::from_str(rows).expect("the rows are JSON");
    let messages = messages(capture);
    let merged = merge(&messages);
    let mut compared = 0;
    for (task_id, columns) in &expected {
        let column = |name: &str| columns[name].as_str();
        // Celery 5.7 publishes nothing over `rpc://` where the arguments cannot be encoded.
        let Some(TaskResult { outcome, .. }) = merged.get(task_id) else { continue };
        let result = readable(column("result"), column("content_encoding"));
        if column("status") != Some(outcome.status.as_str()) {
            // A worker on `rpc://` publishes nothing more when a task rejects itself
            // (`celery/worker/request.py`, 5.7.0).
            assert!(result.contains("Reject"), "{task_id}");
            continue;
        }
        assert_eq!(column("content_type"), Some(outcome.content_type.as_str()), "{task_id}");
        assert_eq!(column("content_encoding"), Some(outcome.content_encoding.as_str()));
        // `request.meta` is in no `rpc://` message.
        let meta = readable(column("meta"), column("content_encoding"));
        if meta.starts_with(r#"{"children": "#) || meta.starts_with("\u{FFFD}\u{FFFD}children") {
            assert_eq!(column("meta"), outcome.meta.as_deref(), "{task_id}");
        }
        let differs = ["pid", "reply_to", "Job: ", "surrogates not allowed"]
            .iter()
            .any(|mark| result.contains(mark));
        if differs {
            continue;
        }
        assert_eq!(column("result"), outcome.result.as_deref(), "{task_id}");
        compared += 1;
        if is_extended && !column("traceback").is_some_and(is_of_the_run) {
            assert_eq!(column("traceback"), outcome.traceback.as_deref(), "{task_id}");
        }
    }
    assert_eq!(compared, results);

    // Shuffled and doubled, the outcomes are the same.
    for step in [11, 61, 191] {
        let shuffled =
            (0..messages.len() * 2).map(|place| &messages[place * step % messages.len()]);
        let shuffled = merge(shuffled);
        assert_eq!(shuffled.len(), merged.len());
        for (task_id, row) in &merged {
            assert!(shuffled[task_id].outcome == row.outcome, "{task_id} at step {step}");
            assert!(shuffled[task_id].description == row.description, "{task_id}");
            assert_eq!(shuffled[task_id].date_created, row.date_created, "{task_id}");
        }
    }
}

/// A column's text with the words that can be read in it.
fn readable(column: Option<&str>, content_encoding: Option<&str>) -> String {
    let column = column.unwrap_or_default();
    match content_encoding {
        Some("binary") => {
            String::from_utf8_lossy(&STANDARD.decode(column).expect("base64")).into_owned()
        }
        _ => column.to_owned(),
    }
}

/// The frames of an encoder that failed are those of the backend that called it, and how deep a
/// recursion went depends on the frames below it.
fn is_of_the_run(traceback: &str) -> bool {
    traceback.contains("kombu/serialization.py") || traceback.contains("[Previous line repeated")
}

#[test]
fn celery_5_6_rows_are_those_of_django_celery_results() {
    let capture = include_str!("data/celery-5.6.3-json.messages.jsonl");
    check(capture, include_str!("data/celery-5.6.3-json.rows.json"), true, 192);
}

#[test]
fn celery_5_7_rows_are_those_of_django_celery_results() {
    let capture = include_str!("data/celery-5.7.0-json.messages.jsonl");
    check(capture, include_str!("data/celery-5.7.0-json.rows.json"), false, 195);
}

#[test]
fn msgpack_rows_are_those_of_django_celery_results() {
    let capture = include_str!("data/celery-5.7.0-msgpack.messages.jsonl");
    check(capture, include_str!("data/celery-5.7.0-msgpack.rows.json"), true, 105);
}
