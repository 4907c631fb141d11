//! The initial inputs for fuzzing: the captures under `tests/data`, and some bodies that are
//! expensive to decode.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use celeriac::decode::Decoder;
use celeriac::message::capture;
use celeriac::message::{Message, Value};
use celeriac::row::Row;
use celeriac::row::task_result::TaskResult;
use chrono::DateTime;
use serde_json::json;

use crate::targets::SERIALIZERS;

/// The maximum size of a seed from a capture in bytes. Larger ones take much time and find little
/// more.
const MAX_BYTES: usize = 4_096;

/// The most seeds of one target.
const MAX_SEEDS: usize = 400;

/// The seeds of each target, by its name.
pub(crate) fn all() -> BTreeMap<&'static str, Vec<Vec<u8>>> {
    let mut seeds = BTreeMap::<_, Vec<Vec<u8>>>::new();
    let mut add = |target, bytes: Vec<u8>| seeds.entry(target).or_default().push(bytes);
    for line in captures(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")) {
        let message = capture::read(&line, DateTime::UNIX_EPOCH, 1).expect("a line of a capture");
        if let Some((target, bytes)) = of_message(&message) {
            add(target, bytes);
        }
        if let Some(bytes) = columns(&message) {
            add("task", bytes);
        }
        add("base64", message.body);
        add("capture", line.into_bytes());
    }
    let group = json!({
        "version": 1, "group_id": "g", "content_type": "application/json",
        "content_encoding": "utf-8", "result": "[[\"g\", null], []]",
        "date_done": "2026-11-23T06:51:16.000321Z",
    });
    add("group", group.to_string().into_bytes());
    for seeds in seeds.values_mut() {
        seeds.retain(|bytes| bytes.len() <= MAX_BYTES);
        seeds.sort_unstable();
        seeds.dedup();
        // Some of each capture.
        let step = seeds.len().div_ceil(MAX_SEEDS).max(1);
        *seeds = std::mem::take(seeds).into_iter().step_by(step).collect();
    }
    for (target, bytes) in demanding() {
        seeds.entry(target).or_default().push(bytes);
    }
    seeds
}

/// The lines of all captures in a folder and below it.
fn captures(folder: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    for entry in folder.read_dir().expect("the folder is there") {
        let path = entry.expect("the entry is there").path();
        let name = path.to_string_lossy();
        let mut text = String::new();
        if path.is_dir() {
            lines.extend(captures(&path));
            continue;
        } else if name.ends_with(".messages.jsonl.gz") {
            let file = std::fs::read(&path).expect("it can be read");
            flate2::read::GzDecoder::new(&*file).read_to_string(&mut text).expect("gzip of text");
        } else if name.ends_with(".messages.jsonl") {
            text = std::fs::read_to_string(&path).expect("it is text");
        }
        lines.extend(text.lines().map(str::to_owned));
    }
    lines
}

/// The target that a message is for, and its input.
fn of_message(message: &Message) -> Option<(&'static str, Vec<u8>)> {
    if let Some(Value::Text(method)) = message.headers.get("compression") {
        let target = match method.as_str() {
            "application/x-gzip" => "zlib",
            "application/x-bz2" => "bzip2",
            "application/x-lzma" => "xz",
            "application/zstd" => "zstd",
            "application/x-brotli" => "brotli",
            _ => return None,
        };
        return Some((target, message.body.clone()));
    }
    let content_type = message.properties.content_type.as_deref()?;
    if content_type == "application/data" {
        return Some(("signed", STANDARD.decode(&message.body).ok()?));
    }
    let place =
        SERIALIZERS.iter().position(|serializer| serializer.content_type == content_type)?;
    Some(if message.exchange == "celeryev" {
        ("events", [&[u8::try_from(place).ok()?], &*message.body].concat())
    } else {
        (SERIALIZERS[place].name, message.body.clone())
    })
}

/// The message that `celeriac://` would have sent in the place of one of `rpc://`.
fn columns(message: &Message) -> Option<Vec<u8>> {
    let Ok([Row::Task(row)]) = <[Row; 1]>::try_from(Decoder::default().result(message).ok()?.rows)
    else {
        return None;
    };
    let TaskResult { task_id, outcome, description, .. } = row;
    let body = json!({
        "version": 1,
        "task_id": task_id,
        "status": outcome.status.as_str(),
        "content_type": outcome.content_type,
        "content_encoding": outcome.content_encoding,
        "result": outcome.result,
        "meta": outcome.meta,
        "traceback": outcome.traceback,
        "task_name": description.task_name,
        "task_args": description.task_args,
        "task_kwargs": description.task_kwargs,
        "worker": description.worker,
        "periodic_task_name": description.periodic_task_name,
        "date_done": outcome.date_done,
    });
    Some(body.to_string().into_bytes())
}

/// Bodies that are deeply nested, repeat much, or announce very large values.
fn demanding() -> Vec<(&'static str, Vec<u8>)> {
    let json = |result: String| {
        format!(r#"{{"task_id": "t", "status": "SUCCESS", "result": {result}}}"#).into_bytes()
    };
    let msgpack =
        |result: &[u8]| [b"\x83\xA7task_id\xA1t\xA6status\xA7SUCCESS\xA6result", result].concat();
    let yaml =
        |result: String| format!("task_id: t\nstatus: SUCCESS\nresult: {result}\n").into_bytes();
    let aliases = (1..20).fold("\n- &a0 [x, x]\n".to_owned(), |text, number| {
        let before = number - 1;
        format!("{text}- &a{number} [*a{before}, *a{before}]\n")
    });
    let pickle = |result: &[u8], rest: &[u8]| {
        let head = b"\x80\x04}(\x8C\x07task_id\x8C\x01t\x8C\x06status\x8C\x07SUCCESS\x8C\x06result";
        [head, result, rest, b"u."].concat()
    };
    // Many events that share one long text.
    let long = "x".repeat(16_000);
    let shared_in_yaml = format!(
        "- {{type: task-succeeded, uuid: &id001 {long}, timestamp: 1795416700.5}}\n{}",
        "- {type: task-succeeded, uuid: *id001, timestamp: 1795416700.5}\n".repeat(300)
    );
    let shared_in_pickle = {
        let text = |text: &str| {
            let length = u32::try_from(text.len()).expect("short").to_le_bytes();
            [b"X", &length[..], text.as_bytes(), b"\x94"].concat()
        };
        let texts = ["type", "task-succeeded", "uuid", &long, "timestamp"].map(text).concat();
        let time = [b"G", &1_795_416_700.5_f64.to_be_bytes()[..]].concat();
        let first = [b"}(", &texts[..], &time, b"u"].concat();
        let other = [b"}(h\0h\x01h\x02h\x03h\x04", &time[..], b"u"].concat();
        [b"\x80\x04](", &first[..], &other.repeat(300), b"e."].concat()
    };
    let event = r#"{"type": "task-succeeded", "uuid": "t", "timestamp": 1795416700.5}"#;
    vec![
        ("json", json("[".repeat(10_000) + &"]".repeat(10_000))),
        ("json", json("[".repeat(100_000))),
        ("json", json(r#"{"a":"#.repeat(10_000))),
        ("json", json("9".repeat(100_000))),
        ("json", json(format!(r#""{}""#, r"\ud83d\ude00".repeat(10_000)))),
        ("msgpack", msgpack(&[vec![0x91; 10_000], vec![0xC0]].concat())),
        ("msgpack", msgpack(&vec![0x81; 100_000])),
        ("msgpack", msgpack(b"\xDF\xFF\xFF\xFF\xFF")),
        ("msgpack", msgpack(b"\xC6\xFF\xFF\xFF\xFF")),
        ("yaml", yaml("[".repeat(5_000) + &"]".repeat(5_000))),
        ("yaml", yaml("{a: ".repeat(1_000) + &"}".repeat(1_000))),
        ("yaml", yaml("- ".repeat(5_000))),
        ("yaml", yaml(aliases)),
        ("pickle", pickle(&b"]".repeat(9_000), &b"a".repeat(8_999))),
        ("pickle", pickle(&b"(".repeat(10_000), &b"t".repeat(10_000))),
        ("pickle", pickle(b"X\x01\0\0\0a\x94", &b"h\0\x86\x94".repeat(5_000))),
        ("pickle", pickle(b"\x8D\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x7F", b"")),
        ("pickle", pickle(b"r\xFF\xFF\xFF\xFF", b"N")),
        ("events", [b"\x02".to_vec(), shared_in_yaml.into_bytes()].concat()),
        ("events", [b"\x03".to_vec(), shared_in_pickle].concat()),
        ("events", format!("\0[{event}{}]", format!(", {event}").repeat(2_000)).into_bytes()),
        ("events", b"\x01\xDD\xFF\xFF\xFF\xFF".to_vec()),
    ]
}
