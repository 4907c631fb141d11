//! Decodes bodies that PyYAML wrote, and compares the columns with what PyYAML writes for each
//! value alone. `integration/captures/yaml_pairs.py` made the data.

use std::collections::BTreeMap;

use celeriac::decode::Decoder;
use celeriac::message::{DeliveryId, Message, Properties};
use celeriac::row::Row;
use chrono::DateTime;

#[test]
fn columns_are_spelled_as_pyyaml_spells_them() {
    let pairs: Vec<BTreeMap<String, Option<String>>> =
        serde_json::from_str(include_str!("data/yaml-pairs.json")).expect("the pairs are JSON");
    assert_eq!(pairs.len(), 250);
    for (pair, number) in pairs.iter().zip(0..) {
        let message = Message {
            properties: Properties {
                content_type: Some("application/x-yaml".to_owned()),
                content_encoding: Some("utf-8".to_owned()),
                ..Properties::default()
            },
            delivery_id: DeliveryId(number),
            ..Message::new(pair["body"].clone().expect("a text").into_bytes(), DateTime::UNIX_EPOCH)
        };
        let mut read = Decoder::default().result(&message).expect("every body is good");
        let Some(Row::Task(row)) = read.rows.pop() else { panic!("one task") };
        assert_eq!(row.outcome.result, pair["result"], "{number}");
        assert_eq!(row.outcome.meta, pair["meta"], "{number}");
        assert_eq!(row.description.task_args, pair["args"], "{number}");
        assert_eq!(row.description.task_kwargs, pair["kwargs"], "{number}");
    }
}
