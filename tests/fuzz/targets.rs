//! The fuzz targets, and the properties that must hold for any bytes. Both `tests/fuzz/main.rs` and
//! `fuzz/` (for cargo-fuzz) run them.
//!
//! - Nothing panics, and decoding a message again gives the same result or error.
//! - The size of the rows is bounded by that of the body, and the size of an error message by a
//!   constant.
//! - A row that is merged with itself does not change.
//! - A column contains one complete value: in a new body it is decoded to the same column.
//! - JSON and msgpack results are in the body byte for byte. A pickle loads to the value that it
//!   has in the body.

#[path = "../pickle_value/mod.rs"]
mod pickle_value;

use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use celeriac::decode::{
    Accept, Certificate, CertificateStore, DecodeError, Decoded, Decoder, Digest, EventPolicy,
    Security, SourceKind, WireLimits,
};
use celeriac::message::capture;
use celeriac::message::dead_letter::Reason;
use celeriac::message::dead_letter::{self, Circumstances};
use celeriac::message::{Message, Properties, Value};
use celeriac::row::Row;
use celeriac::row::merge::Law;
use chrono::{DateTime, Utc};
use pickle_value::Objects;

/// Decodes some bytes, and panics if a property does not hold.
type Check = fn(&[u8]);

/// What is fuzzed, by its name.
pub(crate) const TARGETS: &[(&str, Check)] = &[
    ("json", |bytes| result(&SERIALIZERS[0], bytes)),
    ("msgpack", |bytes| result(&SERIALIZERS[1], bytes)),
    ("yaml", |bytes| result(&SERIALIZERS[2], bytes)),
    ("pickle", |bytes| result(&SERIALIZERS[3], bytes)),
    ("events", events),
    ("task", |bytes| columns(TASK, bytes)),
    ("group", |bytes| columns(GROUP, bytes)),
    ("zlib", |bytes| compressed("application/x-gzip", bytes)),
    ("bzip2", |bytes| compressed("application/x-bz2", bytes)),
    ("xz", |bytes| compressed("application/x-lzma", bytes)),
    ("zstd", |bytes| compressed("application/zstd", bytes)),
    ("brotli", |bytes| compressed("application/x-brotli", bytes)),
    ("base64", encoded),
    ("signed", signed),
    ("capture", captured),
];

/// Runs the target of that name.
pub(crate) fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|(target, _)| *target == name);
    let (_, check) = target.unwrap_or_else(|| panic!("there is no target {name:?}"));
    check(bytes);
}

/// The content type of a state of a task.
pub(crate) const TASK: &str = "application/vnd.celeriac.task-result+json";

/// The content type of a saved group.
pub(crate) const GROUP: &str = "application/vnd.celeriac.group-result+json";

/// A serializer of results and events.
pub(crate) struct Serializer {
    pub(crate) name: &'static str,
    pub(crate) content_type: &'static str,
    content_encoding: &'static str,
    /// The maximum size of the columns of a result, as a function of the size of its body, in
    /// bytes.
    most: fn(usize) -> usize,
    /// A body whose result is the content of a column.
    body_of: fn(&str) -> Option<Vec<u8>>,
}

/// All of them. The first byte of the input of the target `events` is a place in this list.
pub(crate) const SERIALIZERS: &[Serializer] = &[
    Serializer {
        name: "json",
        content_type: "application/json",
        content_encoding: "utf-8",
        most: |body| body,
        body_of: |column| {
            let head = r#"{"task_id": "t", "status": "SUCCESS", "result": "#;
            Some([head, column, "}"].concat().into())
        },
    },
    Serializer {
        name: "msgpack",
        content_type: "application/x-msgpack",
        content_encoding: "binary",
        most: |body| 2 * body,
        body_of: |column| {
            let head = b"\x83\xA7task_id\xA1t\xA6status\xA7SUCCESS\xA6result";
            Some([&head[..], &STANDARD.decode(column).ok()?].concat())
        },
    },
    Serializer {
        name: "yaml",
        content_type: "application/x-yaml",
        content_encoding: "utf-8",
        // An empty item becomes `null`, and four columns can contain the same value.
        most: |_| ROOM,
        body_of: |column| Some(format!("task_id: t\nstatus: SUCCESS\nresult: {column}\n").into()),
    },
    Serializer {
        name: "pickle",
        content_type: "application/x-python-serialize",
        content_encoding: "binary",
        // Each of four columns can be all of the body, in base64, and some more.
        most: |body| 8 * (body + 1_024),
        body_of: |column| {
            let pickle = STANDARD.decode(column).ok()?;
            let (protocol, content) = pickle.split_at(if pickle[0] == 0x80 { 2 } else { 0 });
            let head = b"}(\x8C\x07task_id\x8C\x01t\x8C\x06status\x8C\x07SUCCESS\x8C\x06result";
            let content = content.strip_suffix(b".")?;
            Some([protocol, head, content, b"u."].concat())
        },
    },
];

/// The maximum size of a decompressed body and of the columns of a YAML body, in bytes.
const ROOM: usize = 4 << 20;

/// How many bytes of columns one byte of an event can become: a character in the `repr` of an
/// exception becomes an escape and is also in the traceback.
const GROWTH_OF_EVENTS: usize = 8;

/// The most bytes of a row that do not come from its body.
const ROW_BYTES: usize = 1_024;

/// The most bytes of an error's text.
const ERROR_BYTES: usize = 2_048;

/// Accepts every serializer, and has limits that the checks of sizes are based on.
static DECODER: LazyLock<Decoder> = LazyLock::new(|| Decoder {
    security: security().expect("good files"),
    accept: Accept::parse("json,msgpack,yaml,pickle,auth").expect("known names"),
    limits: WireLimits { body_bytes: ROOM, decompressed_bytes: ROOM, ..WireLimits::default() },
    events: EventPolicy { pending: true, arguments: true, unfinished_only: false },
    rpc_arguments: true,
    law: Law::default(),
});

/// Trusts the worker of the captures.
fn security() -> Result<Security, &'static str> {
    let certificate = include_bytes!("../data/golden/worthless-test-certificate.pem");
    let certificate = Certificate::from_pem(certificate)?;
    let mut certificates = CertificateStore::default();
    certificates.add(certificate);
    Ok(Security { certificates, digest: Digest::default() })
}

/// A time after that of every capture.
fn now() -> DateTime<Utc> {
    DateTime::from_timestamp(1_796_000_000, 0).expect("in range")
}

/// The message of a result or an event.
fn message(content_type: &str, content_encoding: &str, body: &[u8]) -> Message {
    Message {
        properties: Properties {
            content_type: Some(content_type.to_owned()),
            content_encoding: Some(content_encoding.to_owned()),
            ..Properties::default()
        },
        ..Message::new(body.to_vec(), now())
    }
}

/// Decodes a message twice, and checks the properties that hold for every message. The texts of its
/// rows may have `text_bytes` bytes in total, and [`ROW_BYTES`] more for each row.
fn decode(
    message: &Message,
    kind: SourceKind<'_>,
    text_bytes: usize,
) -> Result<Decoded, DecodeError> {
    let decoded = DECODER.decode(message, kind);
    assert!(decoded == DECODER.decode(message, kind), "read once more, it is another");
    match &decoded {
        Ok(Decoded { rows, .. }) => {
            let most = text_bytes + ROW_BYTES * rows.len();
            let size = rows.iter().map(size_bytes).sum::<usize>();
            assert!(size <= most, "texts of {size} bytes, and {most} are the most");
            for row in rows {
                let mut merged = row.clone();
                merged.merge(row.clone(), Law::default());
                assert!(merged == *row, "merged with itself, it is another");
            }
        }
        Err(error) => {
            let size = error.to_string().len();
            assert!(size <= ERROR_BYTES, "the error {} has {size} bytes", error.code());
        }
    }
    decoded
}

/// The bytes of all texts of a row.
fn size_bytes(row: &Row) -> usize {
    row.size_bytes()
        + match row {
            Row::Task(result) => {
                let names = [&result.description.worker, &result.description.periodic_task_name];
                result.outcome.status.as_str().len()
                    + result.outcome.content_type.len()
                    + result.outcome.content_encoding.len()
                    + names.into_iter().flatten().map(String::len).sum::<usize>()
            }
            Row::Group(result) => result.content_type.len() + result.content_encoding.len(),
        }
}

fn result(serializer: &Serializer, body: &[u8]) {
    let of = |body: &[u8]| message(serializer.content_type, serializer.content_encoding, body);
    let decoded = decode(&of(body), SourceKind::Results, (serializer.most)(body.len()));
    let Ok(Decoded { rows, .. }) = decoded else { return };
    let [Row::Task(row)] = rows.as_slice() else { panic!("a result is one row of a task") };

    let column = row.outcome.result.as_deref().expect("a result has one, if only that of None");
    let value = match serializer.name {
        "json" => Some(column.as_bytes().to_vec()),
        "msgpack" => Some(STANDARD.decode(column).expect("base64")),
        _ => None,
    };
    if serializer.name == "pickle" {
        let member = Objects::load(body).expect("a pickle").member("result");
        let is_same = member.is_none_or(|member| loaded(column) == member);
        assert!(is_same, "a column loads to another value");
    }
    let is_none = ["null", "wA=="].contains(&column);
    if let Some(value) = value.filter(|_| !is_none) {
        assert!(body.windows(value.len()).any(|bytes| bytes == value), "it is not in the body");
    }

    let columns = [
        &row.outcome.result,
        &row.outcome.meta,
        &row.description.task_args,
        &row.description.task_kwargs,
    ];
    for column in columns.into_iter().flatten() {
        let body = (serializer.body_of)(column).expect("a column is what its label says");
        match DECODER.result(&of(&body)).map(|decoded| decoded.rows) {
            Ok(rows) => {
                let [Row::Task(row)] = rows.as_slice() else { panic!("one row of a task") };
                let again = row.outcome.result.as_ref();
                // The opcodes of objects that are built and popped may differ.
                let is_same = again.is_some_and(|again| match serializer.name {
                    "pickle" => loaded(again) == loaded(column),
                    _ => again == column,
                });
                assert!(is_same, "a column is read as another");
            }
            Err(error) => panic!("a column is not read again: {error}"),
        }
    }
}

/// What the pickle in a column loads to.
fn loaded(column: &str) -> String {
    let pickle = STANDARD.decode(column).expect("base64");
    Objects::load(&pickle).expect("a pickle").text()
}

fn events(bytes: &[u8]) {
    let Some((&place, body)) = bytes.split_first() else { return };
    let serializer = &SERIALIZERS[usize::from(place) % SERIALIZERS.len()];
    let message = message(serializer.content_type, serializer.content_encoding, body);
    let most = (serializer.most)(body.len()).max(GROWTH_OF_EVENTS * body.len());
    let _ = decode(&message, SourceKind::Events, most);
}

fn columns(content_type: &str, body: &[u8]) {
    let _ = decode(&message(content_type, "utf-8", body), SourceKind::Results, body.len());
}

/// A body of JSON that was compressed by this method.
fn compressed(method: &str, body: &[u8]) {
    let mut message = message("application/json", "utf-8", body);
    message.headers.insert("compression".to_owned(), Value::Text(method.to_owned()));
    let most = (body.len() * DECODER.limits.compression_ratio).max(1 << 20);
    let _ = decode(&message, SourceKind::Results, most);
}

/// Decodes the bytes as a plain body, as base64, and after encoding them in base64.
fn encoded(bytes: &[u8]) {
    let mut message = message("application/json", "utf-8", bytes);
    let plain = decode(&message, SourceKind::Results, bytes.len());
    message.headers.insert("body_encoding".to_owned(), Value::Text("base64".to_owned()));
    let _ = decode(&message, SourceKind::Results, bytes.len());
    message.body = STANDARD.encode(bytes).into();
    assert!(decode(&message, SourceKind::Results, bytes.len()) == plain, "base64 changes a body");
}

/// The parts of a signed body, of which only the last is protected by the signature, and the same
/// bytes as the text that they become.
fn signed(bytes: &[u8]) {
    for body in [STANDARD.encode(bytes).as_bytes(), bytes] {
        let message = message("application/data", "utf-8", body);
        for kind in [SourceKind::Results, SourceKind::Events] {
            let _ = decode(&message, kind, 2 * ROOM);
        }
    }
}

/// A line of a capture. Written and read again, or made a dead letter and restored, it is the same
/// message. It is also decoded with any properties.
fn captured(line: &[u8]) {
    let Ok(line) = std::str::from_utf8(line) else { return };
    let message = match capture::read(line, now(), 1) {
        Ok(message) => message,
        Err(error) => return assert!(error.to_string().len() <= ERROR_BYTES),
    };
    let written = capture::write(&message);
    assert!(!written.contains('\n'), "a line has one line");
    let again = capture::read(&written, now(), 1).expect("just written");
    // Written, because a float that is NaN is not equal to itself.
    assert!(capture::write(&again) == written, "a message is captured as another");

    for kind in [SourceKind::Results, SourceKind::Events] {
        let _ = decode(&message, kind, ROOM * GROWTH_OF_EVENTS);
    }

    let reason = Reason { code: "undecodable", error: line.to_owned() };
    let death =
        Circumstances { reason: &reason, queue: "celeriac.results", host: "host", time: now() };
    let (properties, headers) = dead_letter::to_dead_letter(&message, &death);
    let letter = Message { properties, headers, ..message.clone() };
    let (queue, _, headers) = dead_letter::restore(&letter).expect("it says which queue");
    assert_eq!(queue, "celeriac.results");
    let stays = |name: &str| {
        !name.starts_with("x-") && !["CC", "BCC"].contains(&name) && line.len() < 64 * 1024
    };
    for name in message.headers.keys().filter(|name| stays(name)) {
        assert!(headers.contains_key(name), "a header is lost");
    }
}
