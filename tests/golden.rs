//! Decodes and merges messages that real Celery workers have published, and compares the rows with
//! those that django-celery-results wrote for the same tasks.

#![expect(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod pickle_value;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use celeriac::decode::{Accept, Certificate, DecodeError, Decoder, EventPolicy, Security};
use celeriac::message::DeliveryId;
use celeriac::message::capture;
use celeriac::message::{self, Message, Properties};
use celeriac::row::Row;
use celeriac::row::merge::Law;
use celeriac::row::task_result::TaskResult;
use chrono::{DateTime, TimeDelta};
use flate2::read::GzDecoder;
use pickle_value::Objects;
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
                delivery_id: DeliveryId(number),
                received_at: DateTime::UNIX_EPOCH
                    + TimeDelta::milliseconds(i64::try_from(number).expect("small")),
            }
        })
        .collect()
}

fn merge<'messages>(
    messages: impl IntoIterator<Item = &'messages Message>,
) -> BTreeMap<String, TaskResult> {
    merge_with(&with_arguments(), messages)
}

/// A decoder that stores the arguments in messages of `rpc://`.
fn with_arguments() -> Decoder {
    Decoder { rpc_arguments: true, ..Decoder::default() }
}

fn merge_with<'messages>(
    decoder: &Decoder,
    messages: impl IntoIterator<Item = &'messages Message>,
) -> BTreeMap<String, TaskResult> {
    let mut rows = BTreeMap::<String, TaskResult>::new();
    for message in messages {
        let mut read = decoder.result(message).expect("every message is good");
        let Some(Row::Task(result)) = read.rows.pop() else {
            panic!("a worker on `rpc://` speaks of tasks only");
        };
        match rows.get_mut(&result.task_id) {
            Some(row) => row.merge(result, Law::default()),
            None => {
                rows.insert(result.task_id.clone(), result);
            }
        }
    }
    rows
}

/// Compares the rows of a capture column by column. The rows come from another run of the same
/// tasks, so results that contain a process id, the request or the depth of the stack are not
/// compared. The others, `results` in number, must be equal.
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
        // `rpc://` messages do not contain `request.meta`.
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
        if is_extended && !column("traceback").is_some_and(differs_between_runs) {
            assert_eq!(column("traceback"), outcome.traceback.as_deref(), "{task_id}");
        }
    }
    assert_eq!(compared, results);

    check_order(&with_arguments(), &messages.iter().collect::<Vec<_>>(), &merged);
}

/// Checks that the messages give the same rows when they are shuffled and each is delivered twice.
fn check_order(decoder: &Decoder, messages: &[&Message], merged: &BTreeMap<String, TaskResult>) {
    for step in [11, 61, 191] {
        let shuffled = (0..messages.len() * 2).map(|place| messages[place * step % messages.len()]);
        let shuffled = merge_with(decoder, shuffled);
        assert_eq!(shuffled.len(), merged.len());
        for (task_id, row) in merged {
            assert!(shuffled[task_id].outcome == row.outcome, "{task_id} at step {step}");
            assert!(shuffled[task_id].description == row.description, "{task_id}");
            assert_eq!(shuffled[task_id].date_created, row.date_created, "{task_id}");
        }
    }
}

/// The text of a column, decoded from base64 if it is binary.
fn readable(column: Option<&str>, content_encoding: Option<&str>) -> String {
    let column = column.unwrap_or_default();
    match content_encoding {
        Some("binary") => {
            match STANDARD.decode(column) {
                Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
                // A traceback is text.
                Err(_) => column.to_owned(),
            }
        }
        _ => column.to_owned(),
    }
}

/// The frames of an encoder that failed are those of the backend that called it, and how deep a
/// recursion went depends on the frames below it.
fn differs_between_runs(traceback: &str) -> bool {
    traceback.contains("kombu/serialization.py") || traceback.contains("[Previous line repeated")
}

/// The messages and the rows of a capture in `data/golden`, which `integration/make_captures.py`
/// has made.
fn golden(name: &str) -> (Vec<Message>, BTreeMap<String, BTreeMap<String, Value>>) {
    let text = |kind: &str| {
        let path = format!("{}/tests/data/golden/{name}.{kind}.gz", env!("CARGO_MANIFEST_DIR"));
        let mut text = String::new();
        GzDecoder::new(File::open(path).expect(name)).read_to_string(&mut text).expect("UTF-8");
        text
    };
    let messages = text("messages.jsonl");
    let messages = messages.lines().zip(0..).map(|(line, number)| {
        let now = DateTime::UNIX_EPOCH
            + TimeDelta::milliseconds(i64::try_from(number).expect("small"))
            + TimeDelta::days(21_000);
        capture::read(line, now, number).expect("a line is a message")
    });
    let rows = if name.starts_with("celery-") { text("rows.json") } else { "{}".to_owned() };
    (messages.collect(), serde_json::from_str(&rows).expect("the rows are JSON"))
}

/// Reads every serializer, and trusts the signer of the captures.
fn decoder() -> Decoder {
    let certificate = include_bytes!("data/golden/worthless-test-certificate.pem");
    let mut security = Security::default();
    security.certificates.add(Certificate::from_pem(certificate).expect("a certificate"));
    let events = EventPolicy { pending: true, arguments: true, unfinished_only: false };
    let accept = Accept::parse("json,msgpack,yaml,pickle,auth").expect("known");
    Decoder { accept, security, events, rpc_arguments: true, ..Decoder::default() }
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

const PICKLE: &str = "application/x-python-serialize";

/// The value that the pickle in a column loads to, as text.
fn loaded(column: Option<&str>) -> Option<String> {
    let pickle = STANDARD.decode(column?).expect("base64");
    Some(Objects::load(&pickle).expect("a pickle").text())
}

/// Writes the value of a YAML column the way Celeriac does, so that it can be compared. With the
/// same captures, `integration/captures/yaml_pairs.py` checks against PyYAML that the value stays the same.
fn respelled(decoder: &Decoder, text: &str) -> String {
    let lines = text.strip_suffix("\n...\n").unwrap_or(text).lines();
    let lines = lines.fold(String::new(), |text, line| text + "  " + line + "\n");
    let message = Message {
        properties: Properties {
            content_type: Some("application/x-yaml".to_owned()),
            ..Properties::default()
        },
        ..Message::new(
            format!("task_id: t\nstatus: SUCCESS\nresult:\n{lines}").into_bytes(),
            DateTime::UNIX_EPOCH,
        )
    };
    let mut read = decoder.result(&message).expect("a column is YAML");
    let Some(Row::Task(row)) = read.rows.pop() else { panic!("a result is a row of a task") };
    row.outcome.result.expect("there always is one")
}

/// Compares the rows of a capture in `data/golden` column by column, as [`check`] does. `results`
/// is the number of results that must be equal, or have equal values if they are YAML or pickles, and
/// `events` the number of events that must be decoded.
fn check_golden(name: &str, results: usize, events: usize) {
    let (messages, expected) = golden(name);
    let decoder = decoder();
    let (of_events, of_results): (Vec<_>, Vec<_>) =
        messages.iter().partition(|message| message.exchange == "celeryev");
    let merged = merge_with(&decoder, of_results.iter().copied());
    let mut compared = 0;
    for (task_id, columns) in &expected {
        let column = |name: &str| columns[name].as_str();
        let Some(TaskResult { outcome, description, .. }) = merged.get(task_id) else { continue };
        assert_eq!(column("status"), Some(outcome.status.as_str()), "{task_id}");
        assert_eq!(column("content_type"), Some(outcome.content_type.as_str()), "{task_id}");
        assert_eq!(column("content_encoding"), Some(outcome.content_encoding.as_str()));
        if description.task_name.is_some() && column("task_name").is_some() {
            assert_eq!(column("task_name"), description.task_name.as_deref(), "{task_id}");
            assert_eq!(column("worker"), description.worker.as_deref(), "{task_id}");
        }
        // Without `result_extended` there is no traceback in the row, and `request.meta` is in no
        // `rpc://` message.
        let traceback = column("traceback").map(str::to_owned);
        let [result, meta] = ["result", "meta"].map(|name| match column("content_type") {
            Some("application/x-yaml") => column(name).map(|text| respelled(&decoder, text)),
            _ => column(name).map(str::to_owned),
        });
        let theirs = [result, meta, traceback.or_else(|| outcome.traceback.clone())];
        let ours = [outcome.result.clone(), outcome.meta.clone(), outcome.traceback.clone()];
        let is_equal = if outcome.content_type == PICKLE {
            let values = |[result, meta, traceback]: &[Option<String>; 3]| {
                [loaded(result.as_deref()), loaded(meta.as_deref()), traceback.clone()]
            };
            values(&theirs) == values(&ours)
        } else {
            theirs == ours
        };
        if is_equal {
            compared += 1;
            continue;
        }
        let differs_between_runs = theirs.iter().chain(&ours).any(|text| {
            let text = readable(text.as_deref(), column("content_encoding"));
            DIFFERS_BETWEEN_RUNS.iter().any(|mark| text.contains(mark))
        });
        assert!(
            differs_between_runs,
            "{name} {task_id} {:?}:\n{theirs:?}\n{ours:?}",
            columns["task_name"]
        );
    }
    assert_eq!(compared, results, "{name}");
    check_order(&decoder, &of_results, &merged);
    let read = of_events.iter().map(|message| {
        let read = decoder.events(message).expect("every message is good");
        assert!(read.skipped.is_empty(), "{name}: {:?}", read.skipped);
        read.rows.len()
    });
    assert_eq!(read.sum::<usize>(), events, "{name}");
}

/// Marks of results and tracebacks that differ between two runs or two backends: processes,
/// addresses, the request, the encoder that failed, and values that django-celery-results could not
/// store.
const DIFFERS_BETWEEN_RUNS: [&str; 8] = [
    "cannot contain NUL",
    "RPCBackend",
    "pid",
    "kombu/serialization.py",
    "surrogates not allowed",
    "[Previous line repeated",
    "reply_to",
    " at 0x",
];

#[test]
fn rows_of_every_version_and_serializer_are_those_of_django_celery_results() {
    for (name, results, events) in [
        ("celery-4.4.7-yaml", 36, 117),
        ("celery-4.4.7-json", 36, 158),
        ("celery-4.4.7-msgpack", 32, 117),
        ("celery-4.4.7-pickle", 37, 117),
        ("celery-5.2.7-yaml", 35, 115),
        ("celery-5.2.7-json", 36, 157),
        ("celery-5.2.7-msgpack", 31, 116),
        ("celery-5.2.7-pickle", 36, 116),
        ("celery-5.4.0-yaml", 35, 116),
        ("celery-5.4.0-json", 36, 157),
        ("celery-5.4.0-msgpack", 31, 116),
        ("celery-5.4.0-pickle", 36, 116),
        ("celery-5.6.3-yaml", 35, 115),
        ("celery-5.6.3-json", 36, 157),
        ("celery-5.6.3-msgpack", 31, 116),
        ("celery-5.6.3-pickle", 36, 116),
        ("celery-5.7.0-yaml", 144, 531),
        ("celery-5.7.0-json", 149, 717),
        ("celery-5.7.0-json-plain", 38, 159),
        ("celery-5.7.0-msgpack", 134, 530),
        ("celery-5.7.0-pickle", 167, 537),
        ("celery-5.7.0-pickle2", 167, 537),
        ("celery-5.7.0-pickle5", 167, 537),
    ] {
        check_golden(name, results, events);
    }
}

/// Signed events are verified and decoded. Signed results of `rpc://` are verified and then
/// refused, because their rows would have columns without signatures.
#[test]
fn signed_messages_of_every_version_are_verified() {
    for version in ["4.4.7", "5.2.7", "5.6.3", "5.7.0"] {
        let (messages, _) = golden(&format!("celery-{version}-auth"));
        let (mut refused, mut events) = (0, 0);
        for message in &messages {
            if message.exchange == "celeryev" {
                events += decoder().events(message).expect("it is verified").rows.len();
            } else {
                assert_eq!(decoder().result(message), Err(DecodeError::SignedAsAWhole));
                refused += 1;
            }
        }
        assert_eq!((refused, events), (23, 34), "{version}");
    }
}

/// A body that Python has pickled, and the columns of django-celery-results for its members.
#[derive(serde::Deserialize)]
struct Pickled {
    name: String,
    body: String,
    columns: BTreeMap<String, String>,
}

#[test]
fn pickled_members_load_to_their_values() {
    let packed = include_bytes!("data/pickle_bodies.json.xz");
    let mut json = String::new();
    liblzma::read::XzDecoder::new(&packed[..]).read_to_string(&mut json).expect("XZ");
    let cases: Vec<Pickled> = serde_json::from_str(&json).expect("JSON");
    assert!(cases.len() > 250, "{}", cases.len());
    for Pickled { name, body, columns } in cases {
        let body = STANDARD.decode(body).expect("base64");
        let length = body.len();
        let result = Objects::load(&body).expect("a pickle").member("result");
        let mut message = Message::new(body, DateTime::UNIX_EPOCH + TimeDelta::days(21_000));
        message.properties.content_type = Some(PICKLE.to_owned());
        message.properties.content_encoding = Some("binary".to_owned());
        let mut read = decoder().result(&message).expect(&name);
        let Some(Row::Task(row)) = read.rows.pop() else { panic!("a row of a task") };
        assert_eq!((row.task_id.as_str(), row.outcome.status.as_str()), ("t", "SUCCESS"));
        assert_eq!(row.outcome.content_type, PICKLE);
        assert_eq!(row.outcome.content_encoding, "binary");
        assert_eq!(row.outcome.date_done.to_rfc3339(), "2026-11-23T06:51:16.000321+00:00");
        assert_eq!(row.outcome.traceback, None);
        assert_eq!(row.description.task_name.as_deref(), Some("shop.pay"));
        assert_eq!(row.description.worker.as_deref(), Some("w@h"));
        let ours = [
            ("result", row.outcome.result),
            ("meta", row.outcome.meta),
            ("args", row.description.task_args),
            ("kwargs", row.description.task_kwargs),
        ];
        for (column, held) in ours {
            let held = held.expect("a column");
            let expected = loaded(Some(&columns[column]));
            assert_eq!(loaded(Some(&held)), expected, "{column} of {name}");
            assert!(column != "result" || expected == result, "the test reads {name} wrongly");
            let most = STANDARD.encode(vec![0; length + length / 4 + 64]).len();
            assert!(held.len() <= most, "{column} of {name} has {} bytes", held.len());
        }
    }
}

#[test]
fn bodies_that_kombu_has_compressed_are_decoded() {
    let (messages, _) = golden("kombu-compression");
    let decoder = decoder();
    let read = |message| decoder.result(message).expect("every message is good").rows;
    // The same three bodies: not compressed, and then by each of kombu's methods.
    let plain: Vec<_> = messages[..3].iter().map(read).collect();
    assert!(messages[..3].iter().all(|message| !message.headers.contains_key("compression")));
    let mut methods = BTreeSet::new();
    for (place, message) in messages.iter().enumerate().skip(3) {
        let Some(message::Value::Text(method)) = message.headers.get("compression") else {
            panic!("message {place} is not compressed");
        };
        methods.insert(method.as_str());
        let (Row::Task(row), Row::Task(same)) = (&read(message)[0], &plain[place % 3][0]) else {
            panic!("a worker on `rpc://` speaks of tasks only");
        };
        assert!(row.outcome.result == same.outcome.result && row.task_id == same.task_id);
    }
    assert_eq!(methods.len(), 5, "{methods:?}");
}
