//! Receives messages for `celeriac capture`: copies that do not affect other consumers, or the
//! messages of a queue themselves.

use std::pin::Pin;

use futures_util::{Stream, StreamExt};
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Connection, Consumer};
use tokio::sync::Mutex;

use super::connection::connect;
use super::error::{Error, lost};
use super::message::message_from;
use super::topology::{declare_passive, short};
use super::unreadable::Ending;
use crate::broker::BrokerError;
use crate::config::Config;
use crate::message::{DeliveryId, Message, Value};

/// RabbitMQ's exchange that receives copies of all messages of a virtual host while tracing is on
/// (`rabbitmqctl trace_on`, <https://www.rabbitmq.com/docs/firehose>).
const FIREHOSE: &str = "amq.rabbitmq.trace";

/// The prefetch limit, which bounds the memory if the disk is slow.
const PREFETCH: u16 = 100;

/// The most messages and bytes in the private queue. The oldest messages are dropped first, so that
/// a capture never fills the broker.
const MAX_WAITING: i64 = 100_000;
const MAX_WAITING_BYTES: i64 = 256 << 20;

/// The source of the messages of a capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Copies of the messages published to exchanges, each given with the routing key of the
    /// binding.
    Bindings(Vec<(String, String)>),
    /// The messages of a queue themselves. An acknowledged message is removed from the queue.
    Queue(String),
}

/// The binding for copies of the messages that the broker delivers from a queue.
#[must_use]
pub fn firehose(queue: &str) -> (String, String) {
    (FIREHOSE.to_owned(), format!("deliver.{queue}"))
}

/// A consumer with its own connection.
pub struct Tap {
    connection: Connection,
    ending: Mutex<Ending>,
    channel: Channel,
    consumer: Consumer,
    waiting: u32,
}

impl Tap {
    /// Connects and begins to consume.
    ///
    /// # Errors
    ///
    /// When the broker cannot be reached, or an exchange or the queue does not exist.
    pub async fn open(config: &Config, origin: &Origin) -> Result<Self, BrokerError> {
        let connection = connect(&config.brokers, "celeriac capture").await?;
        let ending = Mutex::new(Ending::of(&connection));
        let channel = connection.create_channel().await.map_err(Error::Lost)?;
        channel.basic_qos(PREFETCH, BasicQosOptions::default()).await.map_err(Error::Lost)?;
        let (queue, waiting) = match origin {
            Origin::Queue(queue) => {
                let declared = declare_passive(&channel, queue)
                    .await
                    .map_err(|source| Error::Queue { queue: queue.clone(), source })?;
                (short(queue), declared.message_count())
            }
            Origin::Bindings(bindings) => (private_queue(&channel, bindings).await?, 0),
        };
        let options = BasicConsumeOptions::default();
        let consumer = channel
            .basic_consume(queue.clone(), ShortString::default(), options, FieldTable::default())
            .await
            .map_err(|source| Error::Queue { queue: queue.as_str().to_owned(), source })?;
        Ok(Self { connection, ending, channel, consumer, waiting })
    }

    /// How many messages the queue had when it was opened.
    #[must_use]
    pub fn waiting(&self) -> u32 {
        self.waiting
    }

    /// The messages.
    pub fn messages(
        &mut self,
    ) -> Pin<Box<dyn Stream<Item = Result<Message, BrokerError>> + Send + '_>> {
        Box::pin((&mut self.consumer).map(|delivery| {
            let message = delivery.map(message_from).map_err(Error::Lost)?;
            Ok(if message.exchange == FIREHOSE { unwrap_firehose(message) } else { message })
        }))
    }

    /// Acknowledges this delivery and every one before it.
    ///
    /// # Errors
    ///
    /// When the connection is lost. The messages of a queue are then returned to it.
    pub async fn acknowledge(&self, last: DeliveryId) -> Result<(), BrokerError> {
        let options = BasicAckOptions { multiple: true };
        match self.channel.basic_ack(last.0, options).await {
            Ok(()) => Ok(()),
            // This error is only a consequence of whatever closed the connection, which is returned
            // instead.
            Err(error) => Err(self.ending.lock().await.reason_for(error).await.into()),
        }
    }

    /// Closes the connection. Messages that were not acknowledged return to their queue.
    ///
    /// # Errors
    ///
    /// When the broker may not have received the last acknowledgements.
    pub async fn close(self) -> Result<(), BrokerError> {
        self.channel.close(200, ShortString::default()).await.map_err(lost)?;
        self.connection.close(200, ShortString::default()).await.map_err(lost)
    }
}

/// Declares an exclusive queue with these bindings.
async fn private_queue(
    channel: &Channel,
    bindings: &[(String, String)],
) -> Result<ShortString, Error> {
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(MAX_WAITING));
    arguments.insert("x-max-length-bytes".into(), AMQPValue::LongLongInt(MAX_WAITING_BYTES));
    let options = QueueDeclareOptions {
        exclusive: true,
        auto_delete: true,
        ..QueueDeclareOptions::default()
    };
    let declared = channel
        .queue_declare(ShortString::default(), options, arguments)
        .await
        .map_err(Error::Lost)?;
    let queue = declared.name().clone();
    for (exchange, routing_key) in bindings {
        let options = QueueBindOptions::default();
        channel
            .queue_bind(
                queue.clone(),
                short(exchange),
                short(routing_key),
                options,
                FieldTable::default(),
            )
            .await
            .map_err(|source| Error::Exchange { exchange: exchange.clone(), source })?;
    }
    Ok(queue)
}

/// The original message of a copy from the firehose. Its exchange, routing key and properties are
/// in the headers of the copy.
fn unwrap_firehose(copy: Message) -> Message {
    let mut message = copy;
    let mut headers = std::mem::take(&mut message.headers);
    if let Some(Value::Text(exchange)) = headers.remove("exchange_name") {
        message.exchange = exchange;
    }
    if let Some(Value::List(keys)) = headers.remove("routing_keys")
        && let Some(Value::Text(key)) = keys.into_iter().next()
    {
        message.routing_key = key;
    }
    message.redelivered = matches!(headers.remove("redelivered"), Some(Value::Int(1)));
    let Some(Value::Table(mut properties)) = headers.remove("properties") else { return message };
    if let Some(Value::Table(own)) = properties.remove("headers") {
        message.headers = own;
    }
    let mut text = |name: &str| match properties.remove(name) {
        Some(Value::Text(text)) => Some(text),
        _ => None,
    };
    message.properties.content_type = text("content_type");
    message.properties.content_encoding = text("content_encoding");
    message.properties.correlation_id = text("correlation_id");
    message.properties.reply_to = text("reply_to");
    message.properties.expiration = text("expiration");
    message.properties.message_id = text("message_id");
    message.properties.kind = text("type");
    message.properties.user_id = text("user_id");
    message.properties.app_id = text("app_id");
    let mut number = |name: &str| match properties.remove(name) {
        Some(Value::Int(number)) => u64::try_from(number).ok(),
        Some(Value::Timestamp(seconds)) => Some(seconds),
        _ => None,
    };
    let mut small = |name: &str| number(name).and_then(|number| u8::try_from(number).ok());
    message.properties.delivery_mode = small("delivery_mode");
    message.properties.priority = small("priority");
    message.properties.timestamp = number("timestamp");
    message
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;
    use crate::message::{DeliveryId, Headers, Properties};

    #[test]
    fn a_copy_from_the_firehose_becomes_the_original_message() {
        let text = |text: &str| Value::Text(text.to_owned());
        let table = |members: Vec<(&str, Value)>| -> Headers {
            members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
        };
        let properties = table(vec![
            ("content_type", text("application/json")),
            ("delivery_mode", Value::Int(2)),
            ("correlation_id", text("t")),
            ("timestamp", Value::Timestamp(7)),
            ("headers", Value::Table(table(vec![("stamp", Value::Int(1))]))),
        ]);
        let headers = table(vec![
            ("exchange_name", text("celeryev")),
            ("routing_keys", Value::List(vec![text("task.multi"), text("copy")])),
            ("properties", Value::Table(properties)),
            ("node", text("rabbit@box")),
            ("redelivered", Value::Int(1)),
        ]);
        let message = unwrap_firehose(Message {
            body: b"[]".to_vec(),
            properties: Properties::default(),
            headers,
            exchange: FIREHOSE.to_owned(),
            routing_key: "deliver.celeriac.events".to_owned(),
            redelivered: false,
            delivery_id: DeliveryId::default(),
            received_at: DateTime::UNIX_EPOCH,
        });
        assert_eq!(
            (message.exchange.as_str(), message.routing_key.as_str()),
            ("celeryev", "task.multi")
        );
        assert_eq!(message.properties.content_type.as_deref(), Some("application/json"));
        assert_eq!(message.properties.delivery_mode, Some(2));
        assert_eq!(message.properties.timestamp, Some(7));
        assert_eq!(message.headers.keys().collect::<Vec<_>>(), ["stamp"]);
        assert!(message.redelivered);
    }
}
