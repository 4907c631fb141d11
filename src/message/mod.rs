//! A message as plain data, independent of the broker. Dead letters and captures are messages too.

pub mod capture;
pub mod dead_letter;

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// The header with the broker's time, in milliseconds since the epoch.
pub const BROKER_TIME: &str = "timestamp_in_ms";

/// A message as the broker delivered it.
///
/// It keeps everything that a dead letter or a capture must preserve: the body's bytes, every
/// property and every header.
#[derive(Clone, PartialEq)]
pub struct Message {
    /// The body's bytes, exactly as published.
    pub body: Vec<u8>,
    /// The properties that the publisher set.
    pub properties: Properties,
    /// The application headers.
    pub headers: Headers,
    /// The exchange that the message was published to; empty for the default exchange.
    pub exchange: String,
    /// The routing key that the message was published with.
    pub routing_key: String,
    /// Whether the broker has delivered this message before.
    pub redelivered: bool,
    /// The broker's identifier of this delivery.
    pub delivery_id: DeliveryId,
    /// When this process took the message from the broker.
    pub received_at: DateTime<Utc>,
}

/// The broker's identifier of a delivery, used to acknowledge it. It is valid only in the session
/// that it came from. For RabbitMQ it is the delivery tag of a channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeliveryId(pub u64);

/// The application headers of a message, by name.
pub type Headers = BTreeMap<String, Value>;

/// The basic properties of AMQP 0-9-1, without the headers. In a capture file they have AMQP's
/// names, and those that are not set are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Properties {
    /// `application/json` and the like; kombu's serializer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// `utf-8`, `binary`; the charset of a text body.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_encoding: Option<String>,
    /// 1 for transient, 2 for persistent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delivery_mode: Option<u8>,
    /// 0 (lowest) to 9.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<u8>,
    /// For a result message, the id of the task that published it. This is not always the task that
    /// the result belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    /// The queue for replies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<String>,
    /// Time to live in milliseconds, as text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expiration: Option<String>,
    /// The publisher's id for the message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message_id: Option<String>,
    /// Seconds since the epoch, set by the publisher or the broker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<u64>,
    /// The publisher's name for the kind of message.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The publishing user, verified by the broker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_id: Option<String>,
    /// The publishing application.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app_id: Option<String>,
}

/// A header's value. Integers of every width are one variant, as are texts.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// No value.
    Void,
    /// A truth value.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A floating point number.
    Float(f64),
    /// A text.
    Text(String),
    /// Bytes, also those of a text that is not UTF-8.
    Bytes(Vec<u8>),
    /// Seconds since the epoch.
    Timestamp(u64),
    /// A list of values.
    List(Vec<Value>),
    /// A table of named values.
    Table(Headers),
}

impl Message {
    /// A message with only a body.
    #[must_use]
    pub fn new(body: Vec<u8>, received_at: DateTime<Utc>) -> Self {
        Self {
            body,
            properties: Properties::default(),
            headers: Headers::new(),
            exchange: String::new(),
            routing_key: String::new(),
            redelivered: false,
            delivery_id: DeliveryId::default(),
            received_at,
        }
    }

    /// The time that the broker, or the publisher, set in the message.
    ///
    /// RabbitMQ's timestamp interceptor (3.12 and later) and the plugin before it write
    /// milliseconds to the header `timestamp_in_ms` and whole seconds to the property.
    #[must_use]
    pub fn broker_time(&self) -> Option<DateTime<Utc>> {
        if let Some(Value::Int(milliseconds)) = self.headers.get(BROKER_TIME) {
            return DateTime::from_timestamp_millis(*milliseconds);
        }
        let seconds = i64::try_from(self.properties.timestamp?).ok()?;
        DateTime::from_timestamp(seconds, 0)
    }
}

/// Shows where the message came from and its size, never its content.
impl std::fmt::Debug for Message {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Message")
            .field("exchange", &self.exchange)
            .field("routing_key", &self.routing_key)
            .field("delivery_id", &self.delivery_id)
            .field("content_type", &self.properties.content_type)
            .field("body_bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}
