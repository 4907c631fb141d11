//! Converts lapin's deliveries to [`Message`]s, and the properties and headers of messages to
//! lapin's types.

use chrono::{SubsecRound, Utc};
use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldArray, FieldTable, ShortString};

use crate::message::{DeliveryId, Headers, Message, Properties, Value};

/// How deep headers may be nested. Deeper values are replaced by a text.
const MAX_DEPTH: usize = 32;

pub(super) fn message_from(delivery: Delivery) -> Message {
    let Delivery { delivery_tag, exchange, routing_key, redelivered, properties, data, acker: _ } =
        delivery;
    let headers =
        properties.headers().as_ref().map(|table| headers_from(table, 0)).unwrap_or_default();
    Message {
        body: data,
        properties: properties_from(&properties),
        headers,
        exchange: exchange.into(),
        routing_key: routing_key.into(),
        redelivered,
        delivery_id: DeliveryId(delivery_tag),
        received_at: Utc::now().trunc_subsecs(6),
    }
}

fn properties_from(properties: &BasicProperties) -> Properties {
    let text = |text: &Option<ShortString>| text.as_ref().map(|text| text.as_str().to_owned());
    Properties {
        content_type: text(properties.content_type()),
        content_encoding: text(properties.content_encoding()),
        delivery_mode: *properties.delivery_mode(),
        priority: *properties.priority(),
        correlation_id: text(properties.correlation_id()),
        reply_to: text(properties.reply_to()),
        expiration: text(properties.expiration()),
        message_id: text(properties.message_id()),
        timestamp: *properties.timestamp(),
        kind: text(properties.kind()),
        user_id: text(properties.user_id()),
        app_id: text(properties.app_id()),
    }
}

fn headers_from(table: &FieldTable, depth: usize) -> Headers {
    table
        .inner()
        .iter()
        .map(|(name, value)| (name.as_str().to_owned(), value_from(value, depth)))
        .collect()
}

fn value_from(value: &AMQPValue, depth: usize) -> Value {
    match value {
        AMQPValue::FieldArray(_) | AMQPValue::FieldTable(_) if depth == MAX_DEPTH => {
            Value::Text("nested too deeply".to_owned())
        }
        AMQPValue::Boolean(value) => Value::Bool(*value),
        AMQPValue::ShortShortInt(value) => Value::Int((*value).into()),
        AMQPValue::ShortShortUInt(value) => Value::Int((*value).into()),
        AMQPValue::ShortInt(value) => Value::Int((*value).into()),
        AMQPValue::ShortUInt(value) => Value::Int((*value).into()),
        AMQPValue::LongInt(value) => Value::Int((*value).into()),
        AMQPValue::LongUInt(value) => Value::Int((*value).into()),
        AMQPValue::LongLongInt(value) => Value::Int(*value),
        AMQPValue::Float(value) => Value::Float((*value).into()),
        AMQPValue::Double(value) => Value::Float(*value),
        AMQPValue::DecimalValue(value) => {
            Value::Float(f64::from(value.value) / 10f64.powi(value.scale.into()))
        }
        AMQPValue::ShortString(text) => Value::Text(text.as_str().to_owned()),
        AMQPValue::LongString(text) => match std::str::from_utf8(text.as_bytes()) {
            Ok(text) => Value::Text(text.to_owned()),
            Err(_) => Value::Bytes(text.as_bytes().to_vec()),
        },
        AMQPValue::FieldArray(values) => Value::List(
            values.as_slice().iter().map(|value| value_from(value, depth + 1)).collect(),
        ),
        AMQPValue::Timestamp(seconds) => Value::Timestamp(*seconds),
        AMQPValue::FieldTable(table) => Value::Table(headers_from(table, depth + 1)),
        AMQPValue::ByteArray(bytes) => Value::Bytes(bytes.as_slice().to_vec()),
        AMQPValue::Void => Value::Void,
    }
}

/// Sets a property that is a short string.
type Setter = fn(BasicProperties, ShortString) -> BasicProperties;

pub(super) fn to_properties(properties: &Properties, headers: &Headers) -> BasicProperties {
    let Properties {
        content_type,
        content_encoding,
        delivery_mode,
        priority,
        correlation_id,
        reply_to,
        expiration,
        message_id,
        timestamp,
        kind,
        user_id,
        app_id,
    } = properties;
    let mut converted = BasicProperties::default().with_headers(to_table(headers));
    if let Some(delivery_mode) = delivery_mode {
        converted = converted.with_delivery_mode(*delivery_mode);
    }
    if let Some(priority) = priority {
        converted = converted.with_priority(*priority);
    }
    if let Some(timestamp) = timestamp {
        converted = converted.with_timestamp(*timestamp);
    }
    let texts: [(&Option<String>, Setter); 9] = [
        (content_type, BasicProperties::with_content_type),
        (content_encoding, BasicProperties::with_content_encoding),
        (correlation_id, BasicProperties::with_correlation_id),
        (reply_to, BasicProperties::with_reply_to),
        (expiration, BasicProperties::with_expiration),
        (message_id, BasicProperties::with_message_id),
        (kind, BasicProperties::with_type),
        (user_id, BasicProperties::with_user_id),
        (app_id, BasicProperties::with_app_id),
    ];
    for (text, with) in texts {
        if let Some(text) = text.as_deref().and_then(|text| ShortString::try_new(text).ok()) {
            converted = with(converted, text);
        }
    }
    converted
}

fn to_table(headers: &Headers) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in headers {
        if let Ok(name) = ShortString::try_new(name.as_str()) {
            table.insert(name, to_value(value));
        }
    }
    table
}

fn to_value(value: &Value) -> AMQPValue {
    match value {
        Value::Void => AMQPValue::Void,
        Value::Bool(value) => AMQPValue::Boolean(*value),
        Value::Int(value) => AMQPValue::LongLongInt(*value),
        Value::Float(value) => AMQPValue::Double(*value),
        Value::Text(text) => AMQPValue::LongString(text.as_str().into()),
        Value::Bytes(bytes) => AMQPValue::ByteArray(bytes.as_slice().into()),
        Value::Timestamp(seconds) => AMQPValue::Timestamp(*seconds),
        Value::List(values) => {
            let values: Vec<_> = values.iter().map(to_value).collect();
            AMQPValue::FieldArray(FieldArray::from(values))
        }
        Value::Table(headers) => AMQPValue::FieldTable(to_table(headers)),
    }
}
