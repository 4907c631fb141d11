//! Settling messages: acknowledgements, and dead letters for what cannot be stored.

use std::time::Duration;

use chrono::{SecondsFormat, Utc};
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicPublishOptions, ConfirmSelectOptions,
};
use lapin::types::{AMQPValue, FieldArray, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Connection};
use tokio::sync::Mutex;

use crate::batch::Reason;
use crate::config::{BrokerUrl, Config};
use crate::message::{Headers, Message, Properties, Value};
use crate::source::{self, SourceError};

/// Settles the messages of one session with the broker.
///
/// A message may be acknowledged only after its row is committed or after [`dead_letter`] has
/// returned `Ok` for it. Both may be repeated; a message settled twice does no harm.
///
/// [`dead_letter`]: Acknowledge::dead_letter
pub trait Acknowledge: Sync {
    /// Acknowledges the delivery with this tag and every one before it.
    ///
    /// # Errors
    ///
    /// When the session is lost. The broker then delivers the messages again.
    fn acknowledge(
        &self,
        last_delivery_tag: u64,
    ) -> impl Future<Output = Result<(), SourceError>> + Send;

    /// Publishes messages to the dead-letter queue with their reasons, and waits until the broker
    /// has confirmed each.
    ///
    /// # Errors
    ///
    /// When any of them may not be in the queue; all may then be published again.
    fn dead_letter(
        &self,
        letters: &[(&Message, &Reason)],
    ) -> impl Future<Output = Result<(), DeadLetterError>> + Send;

    /// Asks the broker to deliver nothing more. The stream of messages then ends, unless this gives
    /// false because the broker does not answer.
    fn stop(&self) -> impl Future<Output = bool> + Send;
}

/// Why dead letters are not known to be in their queue.
#[derive(Debug, thiserror::Error)]
pub enum DeadLetterError {
    /// There is no connection for them.
    #[error(transparent)]
    Connect(#[from] SourceError),
    /// The broker broke off.
    #[error("cannot publish to the dead-letter queue")]
    Publish(#[source] lapin::Error),
    /// The broker has no such queue any more, or refused the message.
    #[error("the broker did not take the message for the queue {queue}")]
    Refused {
        /// The dead-letter queue.
        queue: String,
    },
    /// The broker did not confirm in time, as happens while it is out of memory or disk.
    #[error("the broker did not confirm within {} s", PATIENCE.as_secs())]
    Unconfirmed,
}

/// How long the broker may take to confirm.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long the broker may take to stop delivering.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// The most bytes of a message's own headers that a dead letter takes along. With ours they have
/// to fit into one frame of 128 KiB.
const MAX_HEADERS_BYTES: usize = 96 * 1024;

/// The most bytes of an error's text in a header.
const MAX_ERROR_BYTES: usize = 1_024;

/// lapin's side of [`Acknowledge`].
pub struct Acknowledger {
    channel: Channel,
    consumer_tag: ShortString,
    brokers: Vec<BrokerUrl>,
    dead_queue: String,
    /// The queue that the messages come from.
    queue: String,
    /// A connection of its own, opened for the first dead letter: a broker that is short of
    /// memory or disk stops reading from connections that publish, and acknowledgements would
    /// stand behind the letter.
    publisher: Mutex<Option<Publisher>>,
}

struct Publisher {
    /// Held so that it stays open.
    _connection: Connection,
    channel: Channel,
}

impl Acknowledger {
    pub(crate) fn new(
        channel: Channel,
        consumer_tag: ShortString,
        queue: &str,
        config: &Config,
    ) -> Self {
        Self {
            channel,
            consumer_tag,
            brokers: config.brokers.clone(),
            dead_queue: config.dead_queue.clone(),
            queue: queue.to_owned(),
            publisher: Mutex::new(None),
        }
    }

    async fn open_publisher(&self) -> Result<Publisher, DeadLetterError> {
        let connection = source::connect(&self.brokers, "celeriac dead letters").await?;
        source::declare_dead_queue(&connection, &self.dead_queue).await?;
        let channel = connection.create_channel().await.map_err(DeadLetterError::Publish)?;
        channel
            .confirm_select(ConfirmSelectOptions::default())
            .await
            .map_err(DeadLetterError::Publish)?;
        Ok(Publisher { _connection: connection, channel })
    }

    async fn publish_all(
        &self,
        channel: &Channel,
        letters: &[(&Message, &Reason)],
    ) -> Result<(), DeadLetterError> {
        let queue = ShortString::try_new(self.dead_queue.as_str()).unwrap_or_default();
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let mut confirmations = Vec::with_capacity(letters.len());
        for (message, reason) in letters {
            let properties = dead_properties(message, reason, &self.queue);
            let published = channel.basic_publish(
                ShortString::default(),
                queue.clone(),
                options,
                &message.body,
                properties,
            );
            confirmations.push(published.await.map_err(DeadLetterError::Publish)?);
        }
        for confirmation in confirmations {
            match confirmation.await.map_err(DeadLetterError::Publish)? {
                Confirmation::Ack(None) => {}
                _ => return Err(DeadLetterError::Refused { queue: self.dead_queue.clone() }),
            }
        }
        Ok(())
    }
}

impl Acknowledge for Acknowledger {
    async fn acknowledge(&self, last_delivery_tag: u64) -> Result<(), SourceError> {
        let options = BasicAckOptions { multiple: true };
        self.channel.basic_ack(last_delivery_tag, options).await.map_err(SourceError::Lost)
    }

    async fn dead_letter(&self, letters: &[(&Message, &Reason)]) -> Result<(), DeadLetterError> {
        let mut slot = self.publisher.lock().await;
        // Taken out, so that a publisher which fails or is left half-way is not used again.
        let publisher = match slot.take() {
            Some(publisher) => publisher,
            None => self.open_publisher().await?,
        };
        let publishing = self.publish_all(&publisher.channel, letters);
        tokio::time::timeout(PATIENCE, publishing)
            .await
            .map_err(|_| DeadLetterError::Unconfirmed)??;
        *slot = Some(publisher);
        Ok(())
    }

    async fn stop(&self) -> bool {
        let options = BasicCancelOptions::default();
        let cancelling = self.channel.basic_cancel(self.consumer_tag.clone(), options);
        matches!(tokio::time::timeout(STOP_PATIENCE, cancelling).await, Ok(Ok(())))
    }
}

/// Sets one of the properties that are short texts.
type Setter = fn(BasicProperties, ShortString) -> BasicProperties;

/// The properties of a dead letter: the message's own, made persistent and without an expiry,
/// and headers that say why, from where, when and by whom.
fn dead_properties(message: &Message, reason: &Reason, from_queue: &str) -> BasicProperties {
    let Properties {
        content_type,
        content_encoding,
        delivery_mode: _,
        priority,
        correlation_id,
        reply_to,
        expiration,
        message_id,
        timestamp,
        kind,
        user_id: _,
        app_id,
    } = &message.properties;
    let is_too_large = size_bytes(&message.headers) > MAX_HEADERS_BYTES;
    let mut headers = FieldTable::default();
    for (name, value) in message.headers.iter().filter(|_| !is_too_large) {
        match name.as_str() {
            // RabbitMQ would send copies of the dead letter to the queues that these two name.
            "CC" | "BCC" => insert(&mut headers, &format!("x-celeriac-{name}"), value),
            name => insert(&mut headers, name, value),
        }
    }
    let mut set = |name: &str, value: &str| {
        headers.insert(name.into(), AMQPValue::LongString(value.into()));
    };
    set("x-celeriac-reason", reason.code);
    let error_end = reason.error.floor_char_boundary(MAX_ERROR_BYTES);
    set("x-celeriac-error", &reason.error[..error_end]);
    if is_too_large {
        set("x-celeriac-headers", "the message's own headers were too large to be kept");
    }
    set("x-celeriac-queue", from_queue);
    set("x-celeriac-exchange", &message.exchange);
    set("x-celeriac-routing-key", &message.routing_key);
    set("x-celeriac-time", &Utc::now().to_rfc3339_opts(SecondsFormat::Micros, true));
    set("x-celeriac-version", env!("CARGO_PKG_VERSION"));
    if let Some(expiration) = expiration {
        set("x-celeriac-expiration", expiration);
    }
    if let Some(user_id) = &message.properties.user_id {
        set("x-celeriac-user-id", user_id);
    }

    let mut properties = BasicProperties::default().with_delivery_mode(2).with_headers(headers);
    if let Some(priority) = priority {
        properties = properties.with_priority(*priority);
    }
    if let Some(timestamp) = timestamp {
        properties = properties.with_timestamp(*timestamp);
    }
    let texts: [(&Option<String>, Setter); 7] = [
        (content_type, BasicProperties::with_content_type),
        (content_encoding, BasicProperties::with_content_encoding),
        (correlation_id, BasicProperties::with_correlation_id),
        (reply_to, BasicProperties::with_reply_to),
        (message_id, BasicProperties::with_message_id),
        (kind, BasicProperties::with_type),
        (app_id, BasicProperties::with_app_id),
    ];
    for (text, with) in texts {
        if let Some(text) = text.as_deref().and_then(|text| ShortString::try_new(text).ok()) {
            properties = with(properties, text);
        }
    }
    properties
}

fn table_from(headers: &Headers) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in headers {
        insert(&mut table, name, value);
    }
    table
}

fn insert(table: &mut FieldTable, name: &str, value: &Value) {
    if let Ok(name) = ShortString::try_new(name) {
        table.insert(name, value_from(value));
    }
}

/// The bytes that headers take on the wire, a little more rather than less.
fn size_bytes(headers: &Headers) -> usize {
    fn value_bytes(value: &Value) -> usize {
        16 + match value {
            Value::Text(text) => text.len(),
            Value::Bytes(bytes) => bytes.len(),
            Value::List(values) => values.iter().map(value_bytes).sum(),
            Value::Table(headers) => size_bytes(headers),
            _ => 0,
        }
    }
    headers.iter().map(|(name, value)| name.len() + value_bytes(value)).sum()
}

fn value_from(value: &Value) -> AMQPValue {
    match value {
        Value::Void => AMQPValue::Void,
        Value::Bool(value) => AMQPValue::Boolean(*value),
        Value::Int(value) => AMQPValue::LongLongInt(*value),
        Value::Float(value) => AMQPValue::Double(*value),
        Value::Text(text) => AMQPValue::LongString(text.as_str().into()),
        Value::Bytes(bytes) => AMQPValue::ByteArray(bytes.as_slice().into()),
        Value::Timestamp(seconds) => AMQPValue::Timestamp(*seconds),
        Value::List(values) => {
            let values: Vec<_> = values.iter().map(value_from).collect();
            AMQPValue::FieldArray(FieldArray::from(values))
        }
        Value::Table(headers) => AMQPValue::FieldTable(table_from(headers)),
    }
}
