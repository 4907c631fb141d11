//! Compares the columns made from YAML bodies that PyYAML wrote with stored ones.
//! `integration/captures/yaml_pairs.py` checks with PyYAML that the stored ones have the right values.

#![expect(clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use celeriac::decode::Decoder;
use celeriac::message::{Message, Properties};
use celeriac::row::Row;
use chrono::DateTime;

/// A body and its columns, by their names.
type Pair = BTreeMap<String, Option<String>>;

/// Makes the columns of a body.
fn read(body: &str) -> Pair {
    let message = Message {
        properties: Properties {
            content_type: Some("application/x-yaml".to_owned()),
            content_encoding: Some("utf-8".to_owned()),
            ..Properties::default()
        },
        ..Message::new(body.as_bytes().to_vec(), DateTime::UNIX_EPOCH)
    };
    let decoder = Decoder { rpc_arguments: true, ..Decoder::default() };
    let columns = match decoder.result(&message).map(|mut read| read.rows.pop()) {
        Ok(Some(Row::Task(row))) => vec![
            ("result", row.outcome.result),
            ("meta", row.outcome.meta),
            ("args", row.description.task_args),
            ("kwargs", row.description.task_kwargs),
        ],
        Ok(_) => panic!("a result is one row of a task"),
        Err(error) => vec![("error", Some(error.to_string()))],
    };
    let body = ("body", Some(body.to_owned()));
    [body].into_iter().chain(columns).map(|(name, text)| (name.to_owned(), text)).collect()
}

#[test]
fn columns_are_those_that_pyyaml_has_checked() {
    let pairs: Vec<Pair> =
        serde_json::from_str(include_str!("data/yaml-pairs.json")).expect("the pairs are JSON");
    assert!(pairs.len() >= 250);
    for pair in pairs {
        assert_eq!(read(pair["body"].as_deref().expect("a text")), pair);
    }
}

/// Not a test. Writes the columns into the file, as described in `integration/captures/yaml_pairs.py`.
#[test]
#[ignore = "writes a file"]
fn columns_are_written() {
    let path = std::env::var("CELERIAC_YAML_PAIRS").expect("CELERIAC_YAML_PAIRS names a file");
    let pairs: Vec<Pair> =
        serde_json::from_str(&std::fs::read_to_string(&path).expect("it is there")).expect("JSON");
    // One pair a line.
    let lines = pairs.iter().map(|pair| {
        let pair = read(pair["body"].as_deref().expect("a text"));
        serde_json::to_string(&pair).expect("texts")
    });
    let text = format!("[\n{}\n]\n", lines.collect::<Vec<_>>().join(",\n"));
    std::fs::write(path, text).expect("it can be written");
}
