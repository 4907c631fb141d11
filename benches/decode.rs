//! Measures the decoding of messages: `make bench-decode`.
//!
//! The bodies are written as a worker writes them, and their result is a list of rows, as in a
//! report. The compressed and the signed bodies are captures. For comparison, two libraries parse
//! the same bodies into a tree of values, which is only the first step of decoding.

#![expect(clippy::expect_used, reason = "a benchmark fails by panicking")]

use std::fmt;
use std::io::Read;

use celeriac::decode::{
    Accept, Certificate, CertificateStore, Decoded, Decoder, EventPolicy, Security, SourceKind,
};
use celeriac::message::capture;
use celeriac::message::{Message, Properties, Value};
use chrono::DateTime;
use divan::Bencher;
use divan::counter::BytesCount;
use serde_json::json;

fn main() {
    divan::main();
}

/// A message, and what a line of the output calls it.
struct Case {
    name: String,
    message: Message,
}

impl fmt::Display for Case {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}, {} bytes", self.name, self.message.body.len())
    }
}

/// How bodies are written.
struct Serializer {
    name: &'static str,
    content_type: &'static str,
    content_encoding: &'static str,
    /// The body of a result with this many rows.
    result: fn(usize) -> Vec<u8>,
    /// The body of a list of this many events.
    events: fn(usize) -> Vec<u8>,
}

/// The serializers that are measured.
const SERIALIZERS: [Serializer; 4] = [
    JSON,
    MSGPACK,
    Serializer {
        name: "yaml",
        content_type: "application/x-yaml",
        content_encoding: "utf-8",
        result: yaml_result,
        events: yaml_events,
    },
    Serializer {
        name: "pickle",
        content_type: "application/x-python-serialize",
        content_encoding: "binary",
        result: pickle_result,
        events: pickle_events,
    },
];

const JSON: Serializer = Serializer {
    name: "json",
    content_type: "application/json",
    content_encoding: "utf-8",
    // Python has a space behind each comma and colon, of which no text here has one.
    result: |rows| json_text(&result(rows)),
    events: |count| json_text(&events(count)),
};

const MSGPACK: Serializer = Serializer {
    name: "msgpack",
    content_type: "application/x-msgpack",
    content_encoding: "binary",
    result: |rows| rmp_serde::to_vec(&result(rows)).expect("msgpack"),
    events: |count| rmp_serde::to_vec(&events(count)).expect("msgpack"),
};

/// Of about 100 bytes, a kibibyte, 64 and 1,024 of them in JSON.
const ROWS: [usize; 4] = [0, 16, 1_180, 18_500];

const TASK_ID: &str = "5a2b8f54-3c0f-4c53-9d0e-0f4f6d1f7c11";

fn result(rows: usize) -> serde_json::Value {
    let row =
        |id: usize| json!({"id": id, "name": format!("article {id}"), "net": 1.5, "sold": null});
    json!({
        "task_id": TASK_ID,
        "status": "SUCCESS",
        "result": (0..rows).map(row).collect::<Vec<_>>(),
        "traceback": null,
        "children": [],
    })
}

fn events(count: usize) -> serde_json::Value {
    let event = |clock: usize| {
        json!({
            "clock": clock,
            "hostname": "worker@shop",
            "pid": 4_711,
            "result": "None",
            "runtime": 0.012_345,
            "timestamp": 1_795_456_672.510_955,
            "type": "task-succeeded",
            "utcoffset": 0,
            "uuid": TASK_ID,
        })
    };
    (0..count).map(event).collect()
}

fn json_text(value: &serde_json::Value) -> Vec<u8> {
    value.to_string().replace(',', ", ").replace(':', ": ").into_bytes()
}

fn yaml_result(rows: usize) -> Vec<u8> {
    let row = |id| format!("- id: {id}\n  name: article {id}\n  net: 1.5\n  sold: null\n");
    let rows = match rows {
        0 => " []\n".to_owned(),
        _ => format!("\n{}", (0..rows).map(row).collect::<Vec<_>>().concat()),
    };
    let head = "children: []\nresult:";
    let tail = format!("status: SUCCESS\ntask_id: {TASK_ID}\ntraceback: null\n");
    [head, &rows, &tail].concat().into_bytes()
}

fn yaml_events(count: usize) -> Vec<u8> {
    let event = |clock| {
        format!(
            "- clock: {clock}\n  hostname: worker@shop\n  pid: 4711\n  result: None\n  \
             runtime: 0.012345\n  timestamp: 1795456672.510955\n  type: task-succeeded\n  \
             utcoffset: 0\n  uuid: {TASK_ID}\n"
        )
    };
    (0..count).map(event).collect::<Vec<_>>().concat().into_bytes()
}

/// The opcodes that push a text and put it into the memo.
fn pickled(text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len()).expect("short");
    [&[0x8C, length], text.as_bytes(), &[0x94]].concat()
}

/// The opcodes of a dict. The first dict contains the names; the others get them from the memo,
/// where the number beside a name is its index.
fn pickled_dict(number: usize, members: &[(&str, u8, Vec<u8>)]) -> Vec<u8> {
    let members = members.iter().flat_map(|(name, place, value)| {
        let name = if number == 0 { pickled(name) } else { vec![b'h', *place] };
        [name, value.clone()].concat()
    });
    [b"}\x94(".to_vec(), members.collect(), b"u".to_vec()].concat()
}

fn pickle_int(number: usize) -> Vec<u8> {
    [b"J", &i32::try_from(number).expect("small").to_le_bytes()[..]].concat()
}

fn pickle_float(number: f64) -> Vec<u8> {
    [b"G", &number.to_be_bytes()[..]].concat()
}

fn pickle_result(rows: usize) -> Vec<u8> {
    let row = |id: usize| {
        let members = [
            ("id", 8, pickle_int(id)),
            ("name", 9, pickled(&format!("article {id}"))),
            ("net", 11, pickle_float(1.5)),
            ("sold", 12, b"N".to_vec()),
        ];
        pickled_dict(id, &members)
    };
    let head = ["task_id", TASK_ID, "status", "SUCCESS", "result"].map(pickled).concat();
    let rows = (0..rows).map(row).collect::<Vec<_>>().concat();
    let rows = if rows.is_empty() { rows } else { [b"(", &*rows, b"e"].concat() };
    let tail = [&*pickled("traceback"), b"N", &*pickled("children"), b"]\x94u."].concat();
    [b"\x80\x04}\x94(", &*head, b"]\x94", &*rows, &*tail].concat()
}

fn pickle_events(count: usize) -> Vec<u8> {
    let event = |clock: usize| {
        let members = [
            ("clock", 2, pickle_int(clock)),
            ("hostname", 3, pickled("worker@shop")),
            ("pid", 5, pickle_int(4_711)),
            ("result", 6, pickled("None")),
            ("runtime", 8, pickle_float(0.012_345)),
            ("timestamp", 9, pickle_float(1_795_456_672.510_955)),
            ("type", 10, pickled("task-succeeded")),
            ("utcoffset", 12, pickle_int(0)),
            ("uuid", 13, pickled(TASK_ID)),
        ];
        pickled_dict(clock, &members)
    };
    let events = (0..count).map(event).collect::<Vec<_>>().concat();
    [b"\x80\x04]\x94(", &*events, b"e."].concat()
}

fn case(serializer: &Serializer, body: Vec<u8>) -> Case {
    let message = Message {
        properties: Properties {
            content_type: Some(serializer.content_type.to_owned()),
            content_encoding: Some(serializer.content_encoding.to_owned()),
            ..Properties::default()
        },
        ..Message::new(body, DateTime::from_timestamp(1_796_000_000, 0).expect("in range"))
    };
    Case { name: serializer.name.to_owned(), message }
}

fn results_of(serializers: &[Serializer]) -> Vec<Case> {
    let cases = serializers.iter().flat_map(|serializer| {
        ROWS.iter().map(move |&rows| case(serializer, (serializer.result)(rows)))
    });
    cases.collect()
}

fn lists_of_events() -> Vec<Case> {
    SERIALIZERS.iter().map(|serializer| case(serializer, (serializer.events)(24))).collect()
}

/// The messages of a capture, with some words of the labels as their names.
fn captured(capture: &str) -> Vec<Case> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/golden");
    let file = std::fs::read(format!("{folder}/{capture}.messages.jsonl.gz"));
    let mut lines = String::new();
    let mut file = flate2::read::GzDecoder::new(file.as_deref().expect("the capture is there"));
    file.read_to_string(&mut lines).expect("gzip");
    let case = |line| {
        let message = capture::read(line, DateTime::UNIX_EPOCH, 1).expect("a line of a capture");
        let serializer = message.properties.content_type.as_deref().expect("a label");
        let name = match message.headers.get("compression") {
            Some(Value::Text(method)) => format!("{serializer}, {method}"),
            _ => serializer.to_owned(),
        };
        Case { name: name.replace("application/", ""), message }
    };
    lines.lines().map(case).collect()
}

/// The smallest and the largest result that a worker has signed.
fn signed() -> Vec<Case> {
    let mut cases = captured("celery-5.7.0-auth");
    cases.retain(|case| case.message.exchange.is_empty());
    cases.sort_by_key(|case| case.message.body.len());
    cases.drain(1..cases.len() - 1);
    cases
}

/// A decoder that accepts every serializer and trusts the signer of the captures.
fn decoder() -> Decoder {
    let mut certificates = CertificateStore::default();
    certificates.add(certificate());
    Decoder {
        accept: Accept::parse("json,msgpack,yaml,pickle,auth").expect("known names"),
        security: Security { certificates, ..Security::default() },
        events: EventPolicy { pending: true, ..EventPolicy::default() },
        ..Decoder::default()
    }
}

fn certificate() -> Certificate {
    let text = include_bytes!("../tests/data/golden/worthless-test-certificate.pem");
    Certificate::from_pem(text).expect("a certificate")
}

fn decode(bencher: Bencher<'_, '_>, decoder: &Decoder, case: &Case, kind: SourceKind<'_>) {
    let message = &case.message;
    let decode = || -> Decoded { decoder.decode(message, kind).expect("a good message") };
    assert!(!decode().rows.is_empty(), "it says something");
    bencher.counter(BytesCount::new(message.body.len())).bench_local(decode);
}

#[divan::bench(args = results_of(&SERIALIZERS))]
fn a_result(bencher: Bencher<'_, '_>, case: &Case) {
    decode(bencher, &decoder(), case, SourceKind::Results);
}

#[divan::bench(args = results_of(&[JSON]))]
fn b_peer_serde_json(bencher: Bencher<'_, '_>, case: &Case) {
    let body = case.message.body.as_slice();
    let bencher = bencher.counter(BytesCount::new(body.len()));
    bencher.bench_local(|| serde_json::from_slice::<serde_json::Value>(body).expect("JSON"));
}

#[divan::bench(args = results_of(&[MSGPACK]))]
fn c_peer_rmp_serde(bencher: Bencher<'_, '_>, case: &Case) {
    let body = case.message.body.as_slice();
    let bencher = bencher.counter(BytesCount::new(body.len()));
    bencher.bench_local(|| rmp_serde::from_slice::<serde_json::Value>(body).expect("msgpack"));
}

#[divan::bench(args = lists_of_events())]
fn d_list_of_24_events(bencher: Bencher<'_, '_>, case: &Case) {
    decode(bencher, &decoder(), case, SourceKind::Events);
}

#[divan::bench(args = captured("kombu-compression"))]
fn e_compressed_result(bencher: Bencher<'_, '_>, case: &Case) {
    decode(bencher, &decoder(), case, SourceKind::Results);
}

#[divan::bench(args = signed())]
fn f_signed_result(bencher: Bencher<'_, '_>, case: &Case) {
    decode(bencher, &decoder(), case, SourceKind::Results);
}
