//! The format of capture files: each line is one message as a JSON object.
//!
//! ```json
//! {"exchange": "celeriac", "routing_key": "celeriac.results", "redelivered": false,
//!  "received_at": "2026-11-23T06:51:16.000321Z",
//!  "properties": {"content_type": "application/json", "delivery_mode": 2},
//!  "headers": {"stamp": 7}, "body_b64": "e30="}
//! ```
//!
//! Only `body_b64` is required, and unknown members are ignored. Properties have their AMQP names,
//! such as `type`. A header value without a JSON equivalent is an object with one member:
//! `{"$bytes": BASE64}`, `{"$timestamp": SECONDS}` or `{"$float": "NaN"}`. A table that looks like
//! one of these is written as `{"$table": TABLE}`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, SubsecRound, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use crate::message::{DeliveryId, Headers, Message, Properties, Value};

/// How deep headers may be nested. `serde_json` itself allows 128 levels.
const MAX_DEPTH: usize = 64;

/// Why a line is not a message. The text names members, never values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a message of a capture: {0}")]
pub struct CaptureError(String);

#[derive(Serialize, Deserialize)]
struct Line {
    #[serde(default)]
    exchange: String,
    #[serde(default)]
    routing_key: String,
    #[serde(default)]
    redelivered: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    received_at: Option<DateTime<Utc>>,
    #[serde(default)]
    properties: Properties,
    #[serde(default)]
    headers: Option<Map<String, Json>>,
    body_b64: String,
}

/// The line of a message, without a line feed.
#[must_use]
pub fn write(message: &Message) -> String {
    let line = Line {
        exchange: message.exchange.clone(),
        routing_key: message.routing_key.clone(),
        redelivered: message.redelivered,
        received_at: Some(message.received_at),
        properties: message.properties.clone(),
        headers: Some(headers_to_json(&message.headers)),
        body_b64: STANDARD.encode(&message.body),
    };
    // Texts, numbers and lists of them are always JSON.
    serde_json::to_string(&line).unwrap_or_default()
}

/// Parses a line. A message without `received_at` counts as received `now`.
///
/// # Errors
///
/// When the line is not JSON, or a member is missing or has the wrong type.
pub fn read(line: &str, now: DateTime<Utc>, number: u64) -> Result<Message, CaptureError> {
    let line: Line = serde_json::from_str(line).map_err(|error| {
        // The text of the error may quote a value, so it is not passed on.
        let problem = if error.is_data() {
            "a member is missing or of another type"
        } else {
            "it is not JSON"
        };
        CaptureError(format!("{problem}, at column {}", error.column()))
    })?;
    let body = STANDARD
        .decode(&line.body_b64)
        .map_err(|_| CaptureError("`body_b64` is not base64".to_owned()))?;
    Ok(Message {
        body,
        properties: line.properties,
        headers: headers_from_json(line.headers.unwrap_or_default(), 0)?,
        exchange: line.exchange,
        routing_key: line.routing_key,
        redelivered: line.redelivered,
        delivery_id: DeliveryId(number),
        received_at: line.received_at.unwrap_or(now).trunc_subsecs(6),
    })
}

fn headers_to_json(headers: &Headers) -> Map<String, Json> {
    headers.iter().map(|(name, value)| (name.clone(), to_json(value))).collect()
}

fn to_json(value: &Value) -> Json {
    let tagged = |tag: &str, value: Json| Json::Object(Map::from_iter([(tag.to_owned(), value)]));
    match value {
        Value::Void => Json::Null,
        Value::Bool(value) => Json::Bool(*value),
        Value::Int(value) => Json::from(*value),
        Value::Float(value) if value.is_finite() => Json::from(*value),
        Value::Float(value) => tagged("$float", Json::from(value.to_string())),
        Value::Text(text) => Json::from(text.as_str()),
        Value::Bytes(bytes) => tagged("$bytes", Json::from(STANDARD.encode(bytes))),
        Value::Timestamp(seconds) => tagged("$timestamp", Json::from(*seconds)),
        Value::List(values) => Json::Array(values.iter().map(to_json).collect()),
        Value::Table(headers) => {
            let table = Json::Object(headers_to_json(headers));
            if is_tagged(headers.keys()) { tagged("$table", table) } else { table }
        }
    }
}

fn headers_from_json(members: Map<String, Json>, depth: usize) -> Result<Headers, CaptureError> {
    if depth == MAX_DEPTH {
        return Err(CaptureError(format!("headers nest deeper than {MAX_DEPTH} levels")));
    }
    members.into_iter().map(|(name, value)| Ok((name, from_json(value, depth)?))).collect()
}

fn from_json(value: Json, depth: usize) -> Result<Value, CaptureError> {
    Ok(match value {
        Json::Null => Value::Void,
        Json::Bool(value) => Value::Bool(value),
        Json::Number(number) => match number.as_i64() {
            Some(number) => Value::Int(number),
            None => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::Text(text),
        Json::Array(_) if depth + 1 == MAX_DEPTH => {
            return Err(CaptureError(format!("headers nest deeper than {MAX_DEPTH} levels")));
        }
        Json::Array(values) => Value::List(
            values
                .into_iter()
                .map(|value| from_json(value, depth + 1))
                .collect::<Result<_, _>>()?,
        ),
        Json::Object(members) => match tagged(&members, depth)? {
            Some(value) => value,
            None => Value::Table(headers_from_json(members, depth + 1)?),
        },
    })
}

/// The names of the members that mark such objects.
const TAGS: [&str; 4] = ["$bytes", "$timestamp", "$float", "$table"];

/// Whether an object with these members represents another kind of value.
fn is_tagged<'name>(mut names: impl Iterator<Item = &'name String>) -> bool {
    names.next().is_some_and(|name| TAGS.contains(&name.as_str())) && names.next().is_none()
}

/// The value that an object with one of these members represents.
fn tagged(members: &Map<String, Json>, depth: usize) -> Result<Option<Value>, CaptureError> {
    let Some((name, value)) = members.iter().next().filter(|_| is_tagged(members.keys())) else {
        return Ok(None);
    };
    let read = match (name.as_str(), value) {
        ("$bytes", Json::String(text)) => STANDARD.decode(text).ok().map(Value::Bytes),
        ("$float", Json::String(text)) => text.parse().ok().map(Value::Float),
        ("$timestamp", _) => value.as_u64().map(Value::Timestamp),
        ("$table", Json::Object(table)) => {
            Some(Value::Table(headers_from_json(table.clone(), depth + 1)?))
        }
        _ => None,
    };
    read.map(Some).ok_or_else(|| CaptureError(format!("a header's `{name}` is not one")))
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    fn now() -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::microseconds(1_795_416_700_000_321)
    }

    #[test]
    fn a_message_comes_back_as_it_was() {
        let headers: Headers = [
            ("void".to_owned(), Value::Void),
            ("bool".to_owned(), Value::Bool(true)),
            ("int".to_owned(), Value::Int(i64::MIN)),
            ("float".to_owned(), Value::Float(-1.5)),
            ("infinite".to_owned(), Value::Float(f64::NEG_INFINITY)),
            ("text".to_owned(), Value::Text("é\n\"\0".to_owned())),
            ("bytes".to_owned(), Value::Bytes(vec![0xFF, 0])),
            ("time".to_owned(), Value::Timestamp(7)),
            ("list".to_owned(), Value::List(vec![Value::Int(1), Value::Void])),
            ("table".to_owned(), Value::Table([("a".to_owned(), Value::Int(2))].into())),
            ("odd".to_owned(), Value::Table([("$bytes".to_owned(), Value::Int(2))].into())),
            ("odder".to_owned(), Value::Table([("$table".to_owned(), Value::Void)].into())),
        ]
        .into();
        let text = |text: &str| Some(text.to_owned());
        let message = Message {
            body: (0..=u8::MAX).collect(),
            properties: Properties {
                content_type: text("application/json"),
                content_encoding: text("utf-8"),
                delivery_mode: Some(2),
                priority: Some(9),
                correlation_id: text("c"),
                reply_to: text("r"),
                expiration: text("60000"),
                message_id: text("m"),
                timestamp: Some(u64::MAX),
                kind: text("k"),
                user_id: text("u"),
                app_id: text("a"),
            },
            headers,
            exchange: "celeriac".to_owned(),
            routing_key: "celeriac.results".to_owned(),
            redelivered: true,
            delivery_id: DeliveryId(3),
            received_at: now(),
        };
        let line = write(&message);
        assert!(!line.contains('\n'));
        assert!(read(&line, DateTime::UNIX_EPOCH, 3).expect("just written") == message);
    }

    #[test]
    fn only_the_body_has_to_be_there() {
        let line =
            r#"{"seq": 1, "properties": {"cluster_id": ""}, "headers": null, "body_b64": ""}"#;
        let message = read(line, now(), 1).expect("enough");
        assert_eq!((message.body.len(), message.received_at), (0, now()));
        assert_eq!(message.properties, Properties::default());
    }

    #[test]
    fn what_is_not_a_message_is_refused_without_its_values() {
        let deep = format!(r#"{{"body_b64": "", "headers": {{"a": {}}}}}"#, "[".repeat(100_000));
        for line in [
            "",
            "null",
            "[]",
            "secret",
            r#"{"body_b64": "secret"#,
            r#"{"body_b64": "*secret*"}"#,
            r#"{"exchange": "secret"}"#,
            r#"{"exchange": {"secret": 1}, "body_b64": ""}"#,
            r#"{"properties": {"delivery_mode": "secret"}, "body_b64": ""}"#,
            r#"{"properties": {"delivery_mode": 256}, "body_b64": ""}"#,
            r#"{"received_at": "secret", "body_b64": ""}"#,
            r#"{"headers": {"a": {"$bytes": "*secret*"}}, "body_b64": ""}"#,
            r#"{"headers": {"a": {"$timestamp": -1}}, "body_b64": ""}"#,
            r#"{"headers": {"a": {"$table": "secret"}}, "body_b64": ""}"#,
            deep.as_str(),
        ] {
            let error = read(line, now(), 1).expect_err("not a message").to_string();
            assert!(!error.contains("secret"), "{error}");
        }
        let nested = "[".repeat(70) + &"]".repeat(70);
        let line = format!(r#"{{"body_b64": "", "headers": {{"a": {nested}}}}}"#);
        let error = read(&line, now(), 1).expect_err("too deep").to_string();
        assert!(error.contains("deeper than 64"), "{error}");
    }
}
