//! What it costs to decode a message: `make bench-decode`.
//!
//! The bodies are those of a worker with the serializers' defaults, whose result is a list of rows
//! as a report has them; the compressed ones were made by kombu. The peers only read the body into
//! a tree of values, as a daemon without formats of its own would do first.

#![expect(clippy::expect_used, reason = "a benchmark fails by panicking")]

use std::fmt;
use std::io::Read;

use celeriac::capture;
use celeriac::decode::{Accept, Decoded, Decoder, EventPolicy, Kind};
use celeriac::message::{Headers, Message, Properties, Value};
use chrono::DateTime;
use divan::Bencher;
use divan::counter::BytesCount;
use serde_json::json;

fn main() {
    divan::main();
}

/// A message, and how a line of the output calls it.
struct Case {
    name: String,
    message: Message,
}

impl fmt::Display for Case {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}, {} bytes", self.name, self.message.body.len())
    }
}

fn case(serializer: &Serializer, body: Vec<u8>) -> Case {
    let message = Message {
        body,
        properties: Properties {
            content_type: Some(serializer.content_type.to_owned()),
            content_encoding: Some(serializer.content_encoding.to_owned()),
            ..Properties::default()
        },
        headers: Headers::new(),
        exchange: String::new(),
        routing_key: "celeriac.results".to_owned(),
        redelivered: false,
        delivery_tag: 1,
        received_at: DateTime::from_timestamp(1_796_000_000, 0).expect("in range"),
    };
    Case { name: serializer.name.to_owned(), message }
}

fn decoder() -> Decoder {
    Decoder {
        accept: Accept::parse("json,msgpack,yaml,pickle,auth").expect("known names"),
        events: EventPolicy { pending: true, ..EventPolicy::default() },
        ..Decoder::default()
    }
}

struct Serializer {
    name: &'static str,
    content_type: &'static str,
    content_encoding: &'static str,
    dumps: fn(&serde_json::Value) -> Vec<u8>,
}

const JSON: Serializer = Serializer {
    name: "json",
    content_type: "application/json",
    content_encoding: "utf-8",
    dumps: |value| serde_json::to_vec(value).expect("JSON"),
};

const MSGPACK: Serializer = Serializer {
    name: "msgpack",
    content_type: "application/x-msgpack",
    content_encoding: "binary",
    dumps: |value| rmp_serde::to_vec(value).expect("msgpack"),
};

/// The serializers that are measured.
const SERIALIZERS: [Serializer; 2] = [JSON, MSGPACK];

/// Of about 100 bytes, a kibibyte, 64 and 1,024 of them, in JSON.
const ROWS: [usize; 4] = [0, 14, 1_050, 16_800];

/// A result whose value has so many rows.
fn result(rows: usize) -> serde_json::Value {
    let row = |number: usize| {
        json!({
            "id": number,
            "name": format!("article {number}, blue"),
            "net": 1.5,
            "sold": null,
        })
    };
    json!({
        "task_id": "5a2b8f54-3c0f-4c53-9d0e-0f4f6d1f7c11",
        "status": "SUCCESS",
        "result": (0..rows).map(row).collect::<Vec<_>>(),
        "traceback": null,
        "children": [],
    })
}

/// As many events as a worker sends in one message.
fn events() -> serde_json::Value {
    let event = |number: usize| {
        json!({
            "hostname": "worker@shop",
            "utcoffset": 0,
            "pid": 4_711,
            "clock": number,
            "uuid": format!("5a2b8f54-3c0f-4c53-9d0e-{number:012}"),
            "result": "{'article': 7, 'price': Decimal('9.99')}",
            "runtime": 0.012_345,
            "timestamp": 1_795_456_672.510_955,
            "type": "task-succeeded",
        })
    };
    (0..24).map(event).collect()
}

fn decode(bencher: Bencher<'_, '_>, message: &Message, kind: Kind<'_>) {
    let decoder = decoder();
    let decode = || -> Decoded { decoder.decode(message, kind).expect("a good message") };
    assert!(!decode().rows.is_empty());
    bencher.counter(BytesCount::new(message.body.len())).bench_local(decode);
}

fn results_of(serializers: &[Serializer]) -> Vec<Case> {
    let sizes = ROWS.map(result);
    let cases = serializers.iter().flat_map(|serializer| {
        sizes.iter().map(|value| case(serializer, (serializer.dumps)(value)))
    });
    cases.collect()
}

#[divan::bench(args = results_of(&SERIALIZERS))]
fn a_result(bencher: Bencher<'_, '_>, case: &Case) {
    decode(bencher, &case.message, Kind::Results);
}

#[divan::bench(args = results_of(&[JSON]))]
fn a_result_peer_serde_json(bencher: Bencher<'_, '_>, case: &Case) {
    let body = case.message.body.as_slice();
    let bencher = bencher.counter(BytesCount::new(body.len()));
    bencher.bench_local(|| serde_json::from_slice::<serde_json::Value>(body).expect("JSON"));
}

#[divan::bench(args = results_of(&[MSGPACK]))]
fn a_result_peer_rmp_serde(bencher: Bencher<'_, '_>, case: &Case) {
    let body = case.message.body.as_slice();
    let bencher = bencher.counter(BytesCount::new(body.len()));
    bencher.bench_local(|| rmp_serde::from_slice::<serde_json::Value>(body).expect("msgpack"));
}

fn lists_of_events() -> Vec<Case> {
    let value = events();
    SERIALIZERS.iter().map(|serializer| case(serializer, (serializer.dumps)(&value))).collect()
}

#[divan::bench(args = lists_of_events())]
fn b_24_events(bencher: Bencher<'_, '_>, case: &Case) {
    decode(bencher, &case.message, Kind::Events);
}

/// What kombu has compressed, and the same as it was.
fn compressed() -> Vec<Case> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/golden");
    let file = std::fs::read(format!("{folder}/kombu-compression.messages.jsonl.gz"));
    let file = file.expect("the capture is there");
    let mut lines = String::new();
    flate2::read::GzDecoder::new(&*file).read_to_string(&mut lines).expect("gzip");
    let case = |line| {
        let message = capture::read(line, DateTime::UNIX_EPOCH, 1).expect("a line of a capture");
        let serializer = message.properties.content_type.as_deref().expect("a label");
        let name = match message.headers.get("compression") {
            Some(Value::Text(method)) => format!("{serializer}, {method}"),
            _ => serializer.to_owned(),
        };
        Case { name, message }
    };
    lines.lines().map(case).collect()
}

#[divan::bench(args = compressed())]
fn c_compressed(bencher: Bencher<'_, '_>, case: &Case) {
    decode(bencher, &case.message, Kind::Results);
}
