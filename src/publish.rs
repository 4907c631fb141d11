//! Publishing with the broker's confirmation: dead letters, and what is brought back from them.

use std::time::Duration;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldArray, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Connection};

use crate::config::BrokerUrl;
use crate::message::{Headers, Properties, Value};
use crate::source::{self, SourceError, short};

/// How long the broker may take to confirm.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why messages are not known to be in the queue that they were published to.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// There is no connection for them.
    #[error(transparent)]
    Connect(#[from] SourceError),
    /// The broker broke off.
    #[error("cannot publish to the queue {queue}{}", source::fix(source))]
    Publish {
        /// The queue.
        queue: String,
        /// What the broker, or the network, said.
        #[source]
        source: lapin::Error,
    },
    /// The broker has no such queue, or refused the message.
    #[error("the broker did not take the message for the queue {queue}")]
    Refused {
        /// The queue.
        queue: String,
    },
    /// The broker did not confirm in time, as happens while it is out of memory or disk.
    #[error("the broker did not confirm within {} s", PATIENCE.as_secs())]
    Unconfirmed,
}

/// A connection and a channel with confirmations. It is not used again after an error.
pub(crate) struct Publisher {
    connection: Connection,
    channel: Channel,
}

/// A message to be published.
pub(crate) struct Outgoing<'message> {
    pub(crate) body: &'message [u8],
    pub(crate) properties: Properties,
    pub(crate) headers: Headers,
}

impl Publisher {
    /// Connects under a name that the broker's lists of connections show.
    pub(crate) async fn open(brokers: &[BrokerUrl], name: &str) -> Result<Self, SourceError> {
        let connection = source::connect(brokers, name).await?;
        let channel = connection.create_channel().await.map_err(SourceError::Lost)?;
        channel.confirm_select(ConfirmSelectOptions::default()).await.map_err(SourceError::Lost)?;
        Ok(Self { connection, channel })
    }

    /// The connection, for declarations.
    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Publishes messages to a queue and waits until the broker has confirmed each.
    ///
    /// # Errors
    ///
    /// When any of them may not be in the queue; all may then be published again.
    pub(crate) async fn publish<'message>(
        &self,
        queue: &str,
        messages: impl Iterator<Item = Outgoing<'message>>,
    ) -> Result<(), PublishError> {
        let publishing = self.publish_all(queue, messages);
        tokio::time::timeout(PATIENCE, publishing).await.map_err(|_| PublishError::Unconfirmed)?
    }

    async fn publish_all<'message>(
        &self,
        queue: &str,
        messages: impl Iterator<Item = Outgoing<'message>>,
    ) -> Result<(), PublishError> {
        let failed = |source| PublishError::Publish { queue: queue.to_owned(), source };
        let routing_key = short(queue);
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let mut confirmations = Vec::new();
        for Outgoing { body, properties, headers } in messages {
            let properties = properties_from(&properties, &headers);
            let published = self.channel.basic_publish(
                ShortString::default(),
                routing_key.clone(),
                options,
                body,
                properties,
            );
            confirmations.push(published.await.map_err(failed)?);
        }
        for confirmation in confirmations {
            match confirmation.await.map_err(failed)? {
                Confirmation::Ack(None) => {}
                _ => return Err(PublishError::Refused { queue: queue.to_owned() }),
            }
        }
        Ok(())
    }
}

/// Sets one of the properties that are short texts.
type Setter = fn(BasicProperties, ShortString) -> BasicProperties;

fn properties_from(properties: &Properties, headers: &Headers) -> BasicProperties {
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
    let mut made = BasicProperties::default().with_headers(table_from(headers));
    if let Some(delivery_mode) = delivery_mode {
        made = made.with_delivery_mode(*delivery_mode);
    }
    if let Some(priority) = priority {
        made = made.with_priority(*priority);
    }
    if let Some(timestamp) = timestamp {
        made = made.with_timestamp(*timestamp);
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
            made = with(made, text);
        }
    }
    made
}

fn table_from(headers: &Headers) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in headers {
        if let Ok(name) = ShortString::try_new(name.as_str()) {
            table.insert(name, value_from(value));
        }
    }
    table
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
