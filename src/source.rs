//! The broker's side of a lane: connect, declare, consume. A lapin `Delivery` becomes a
//! [`Message`].
//!
//! A [`Session`] is one connection with one channel and one consumer. It is never repaired: when
//! anything of it fails it is dropped whole, with everything that it delivered and that was not
//! acknowledged, and a new one is opened. The broker then delivers those messages again. This is
//! why lapin's own recovery is not used, and why no acknowledgement can reach a newer channel.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use chrono::{SubsecRound, Utc};
use futures_util::{Stream, StreamExt};
use lapin::message::Delivery;
use lapin::options::{
    BasicConsumeOptions, BasicQosOptions, ExchangeDeclareOptions, QueueBindOptions,
    QueueDeclareOptions,
};
use lapin::tcp::{OwnedIdentity, OwnedTLSConfig};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties, Consumer, ExchangeKind, Queue,
};

use crate::ack::Acknowledger;
use crate::config::{BrokerUrl, Config, Events};
use crate::diagnosis::{self, Names};
use crate::message::{Headers, Message, Properties, Value};
use crate::telemetry::Causes;

/// How long connecting and each step after it may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// How long the broker may take to say goodbye.
const CLOSE_PATIENCE: Duration = Duration::from_secs(3);

/// The largest frame, in bytes: the broker's own default, because it passes on the headers of a
/// message in one frame, however large the publisher's frames were.
const FRAME_MAX: u32 = 128 * 1024;

/// How deep headers may nest before the rest of them is left out.
const MAX_DEPTH: usize = 32;

/// Why there is no session with the broker, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// None of the brokers could be reached, or none let us in, or a file for TLS could not be read.
    #[error("cannot connect to {broker}: {problem}")]
    Connect {
        /// The last broker that was tried.
        broker: String,
        /// What the broker, the network or the system said, and how to mend it.
        problem: String,
    },
    /// A broker said nothing for too long.
    #[error(
        "{broker} does not answer: check the host and the port in the URL, the firewalls on the \
         way, and that the broker is well"
    )]
    Silent {
        /// The broker.
        broker: String,
    },
    /// A queue could not be declared or consumed.
    #[error("cannot use the queue {queue}{}", fix(source))]
    Queue {
        /// The queue's name.
        queue: String,
        /// What the broker said.
        #[source]
        source: lapin::Error,
    },
    /// The exchange could not be declared or bound to the queue.
    #[error("cannot use the exchange {exchange}{}", fix(source))]
    Exchange {
        /// The exchange's name.
        exchange: String,
        /// What the broker said.
        #[source]
        source: lapin::Error,
    },
    /// The connection or the channel failed.
    #[error("the connection to the broker is lost")]
    Lost(#[source] lapin::Error),
    /// The broker ended the consumer, as it does when the queue is deleted.
    #[error("the broker cancelled the consumer")]
    Cancelled,
}

impl SourceError {
    /// Whether a message has come that lapin cannot read: one whose short texts are not UTF-8, or
    /// whose headers are larger than a frame (501, `FRAME_ERROR`).
    #[must_use]
    pub fn is_unreadable(&self) -> bool {
        match self {
            Self::Lost(error) => match error.kind() {
                lapin::ErrorKind::ParsingError(_) => true,
                lapin::ErrorKind::ProtocolError(error) => error.get_id() == 501,
                _ => false,
            },
            _ => false,
        }
    }
}

/// One connection that consumes the results queue.
pub struct Session {
    connection: Connection,
    consumer: Consumer,
    acknowledger: Acknowledger,
}

impl Session {
    /// Connects to the first broker that answers, declares the queues and consumes that of the
    /// events or else that of the results, with so many messages on their way at most.
    ///
    /// # Errors
    ///
    /// Says which step failed; it may succeed when tried again.
    pub async fn open(
        config: &Config,
        events: Option<&Events>,
        prefetch: u16,
    ) -> Result<Self, SourceError> {
        let connection = connect(&config.brokers, "celeriac").await?;
        let queue = events.map_or(&config.results_queue, |events| &events.queue);
        let opened = async {
            declare_dead_queue(&connection, &config.dead_queue).await?;
            let arguments = match events {
                Some(events) => events_arguments(events),
                None => results_arguments(&config.dead_queue),
            };
            declare(&connection, queue, &arguments).await?;
            match events {
                Some(_) => {
                    // As Celery declares it (`celery/events/event.py`, 5.7.0).
                    bind(&connection, &config.event_exchange, ExchangeKind::Topic, queue, "task.#")
                        .await?;
                }
                None => {
                    bind(&connection, &config.exchange, ExchangeKind::Direct, queue, queue).await?;
                }
            }
            consume(&connection, queue, prefetch).await
        };
        let (channel, consumer) = tokio::time::timeout(PATIENCE, opened)
            .await
            .map_err(|_| SourceError::Silent { broker: "the broker".to_owned() })??;
        let acknowledger = Acknowledger::new(channel, consumer.tag(), queue, config);
        Ok(Self { connection, consumer, acknowledger })
    }

    /// The messages, and what settles them. After the stream has given an error or has ended,
    /// nothing more comes and nothing can be acknowledged.
    pub fn split(
        &mut self,
    ) -> (impl Stream<Item = Result<Message, SourceError>> + Unpin + '_, &Acknowledger) {
        let messages = (&mut self.consumer)
            .map(|delivery| delivery.map(message_from).map_err(SourceError::Lost));
        (messages, &self.acknowledger)
    }

    /// Closes the connection. What was not acknowledged the broker delivers again.
    pub async fn close(self) {
        let closing = self.connection.close(200, ShortString::default());
        if !matches!(tokio::time::timeout(CLOSE_PATIENCE, closing).await, Ok(Ok(()))) {
            tracing::debug!("the connection to the broker was not closed in good order");
        }
    }
}

/// Connects to the first of the brokers that answers.
pub(crate) async fn connect(brokers: &[BrokerUrl], name: &str) -> Result<Connection, SourceError> {
    let mut failure = None;
    for broker in brokers {
        let tls = match tls_config(broker).await {
            Ok(tls) => tls,
            Err(error) => {
                failure = Some(error);
                continue;
            }
        };
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let runtime = lapin::runtime::default_runtime().map_err(SourceError::Lost)?;
        let connecting = Connection::connect_uri_with_config(uri(broker), properties, tls, runtime);
        match tokio::time::timeout(PATIENCE, connecting).await {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(error)) => {
                let problem = problem(broker, &error);
                failure = Some(SourceError::Connect { broker: broker.to_string(), problem });
            }
            Err(_) => failure = Some(SourceError::Silent { broker: broker.to_string() }),
        }
    }
    Err(failure.unwrap_or(SourceError::Cancelled))
}

/// What Celery's broker URLs call the files of TLS.
const TLS_NAMES: Names =
    Names { ca: "ssl_ca_certs", certificate: "ssl_certfile", key: "ssl_keyfile" };

/// Why there is no connection, and how to mend it.
fn problem(broker: &BrokerUrl, error: &lapin::Error) -> String {
    let words = Causes(error).to_string();
    let words = words.trim_start_matches("IO error: ");
    let advice = match error.kind() {
        // ACCESS_REFUSED
        lapin::ErrorKind::ProtocolError(error) if error.get_id() == 403 => {
            "check the user and the password in the broker URL; RabbitMQ lets `guest` in from its \
             own machine alone"
        }
        // NOT_ALLOWED: the virtual host does not exist, or is not for this user.
        lapin::ErrorKind::ProtocolError(error) if error.get_id() == 530 => {
            "correct the virtual host in the broker URL, or make it (`rabbitmqctl add_vhost`) and \
             give the user the rights that docs/security.md lists"
        }
        _ => return diagnosis::explain(&broker.tls, TLS_NAMES, words),
    };
    format!("{words}: {advice}")
}

/// How to mend what the broker refuses to a user, in brackets.
pub(crate) fn fix(error: &lapin::Error) -> &'static str {
    if is_protocol_error(error, &[403]) {
        " (give the user the rights that docs/security.md lists)"
    } else if is_protocol_error(error, &[404]) {
        " (make it, or give the user the right to, as docs/security.md says)"
    } else {
        ""
    }
}

fn uri(broker: &BrokerUrl) -> AMQPUri {
    AMQPUri {
        scheme: if broker.is_tls { AMQPScheme::AMQPS } else { AMQPScheme::AMQP },
        authority: AMQPAuthority {
            userinfo: AMQPUserInfo {
                username: broker.user.clone(),
                password: broker.password.clone(),
            },
            host: broker.host.clone(),
            port: broker.port,
        },
        vhost: broker.vhost.clone(),
        query: AMQPQueryString {
            heartbeat: Some(broker.heartbeat),
            frame_max: Some(FRAME_MAX),
            ..AMQPQueryString::default()
        },
    }
}

async fn tls_config(broker: &BrokerUrl) -> Result<OwnedTLSConfig, SourceError> {
    let read = async |name: &str, path: &std::path::Path| {
        tokio::fs::read(path).await.map_err(|error| SourceError::Connect {
            broker: broker.to_string(),
            problem: diagnosis::of_file(name, path, &diagnosis::cannot_be_read(&error)),
        })
    };
    let mut tls = OwnedTLSConfig::default();
    if let Some(path) = &broker.tls.ca {
        let content = read(TLS_NAMES.ca, path).await?;
        tls.cert_chain = Some(String::from_utf8_lossy(&content).into_owned());
    }
    if let (Some(certificate), Some(key)) = (&broker.tls.certificate, &broker.tls.key) {
        let pem = read(TLS_NAMES.certificate, certificate).await?;
        let key = read(TLS_NAMES.key, key).await?;
        tls.identity = Some(OwnedIdentity::PKCS8 { pem, key });
    }
    Ok(tls)
}

/// How often the broker delivers a message again before it moves it to the dead-letter queue.
/// Only a message that no client can read comes to this: a database's outage costs one delivery,
/// as does a restart. Quorum queues of RabbitMQ 4 have 20 by themselves, which a daemon that is
/// killed again and again could reach with good messages.
const DELIVERY_LIMIT: i32 = 100;

/// What the results queue is declared with. A message that the broker gives up goes to the
/// dead-letter queue, and stays where it is until it is safely there.
pub(crate) fn results_arguments(dead_queue: &str) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in [
        ("x-queue-type", "quorum"),
        ("x-dead-letter-exchange", ""),
        ("x-dead-letter-routing-key", dead_queue),
        ("x-dead-letter-strategy", "at-least-once"),
        ("x-overflow", "reject-publish"),
    ] {
        table.insert(name.into(), AMQPValue::LongString(value.into()));
    }
    table.insert("x-delivery-limit".into(), AMQPValue::LongInt(DELIVERY_LIMIT));
    table
}

/// What the queue of events is declared with: it must never fill the broker.
pub(crate) fn events_arguments(events: &Events) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in [("x-queue-type", "classic"), ("x-overflow", "drop-head")] {
        table.insert(name.into(), AMQPValue::LongString(value.into()));
    }
    let ttl_milliseconds = i64::try_from(events.ttl.as_millis()).unwrap_or(i64::MAX);
    table.insert("x-max-length".into(), AMQPValue::LongLongInt(events.max_length.into()));
    table.insert("x-message-ttl".into(), AMQPValue::LongLongInt(ttl_milliseconds));
    table
}

/// What the dead-letter queue is declared with.
pub(crate) fn dead_arguments() -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    // RabbitMQ 4 would delete a letter that was looked at 20 times, and has no word for "never"
    // that 3.10 knows as well.
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(i32::MAX));
    arguments
}

/// Makes the dead-letter queue where it is not there.
pub(crate) async fn declare_dead_queue(
    connection: &Connection,
    queue: &str,
) -> Result<(), SourceError> {
    declare(connection, queue, &dead_arguments()).await
}

/// Makes a durable queue, or takes it as it is where it exists with other properties.
async fn declare(
    connection: &Connection,
    queue: &str,
    arguments: &FieldTable,
) -> Result<(), SourceError> {
    let differences = declare_and_compare(connection, queue, arguments).await?;
    if !differences.is_empty() {
        let problem = "the queue exists with other arguments than Celeriac's and is used as it is";
        warn_once(queue, problem, &differences.join("; "));
    }
    Ok(())
}

/// Makes a durable queue, or says how the one that exists differs.
///
/// The broker names one difference at a time, so each is taken out of the question and asked
/// again, to tell all of them.
pub(crate) async fn declare_and_compare(
    connection: &Connection,
    queue: &str,
    arguments: &FieldTable,
) -> Result<Vec<String>, SourceError> {
    let failed = |source| SourceError::Queue { queue: queue.to_owned(), source };
    let mut differences = Vec::new();
    let mut arguments = arguments.inner().clone();
    loop {
        // A refusal closes the channel, so each question has one to itself.
        let channel = connection.create_channel().await.map_err(failed)?;
        let options = QueueDeclareOptions::durable();
        let Err(error) =
            channel.queue_declare(short(queue), options, arguments.clone().into()).await
        else {
            let _ = channel.close(200, ShortString::default()).await;
            break;
        };
        let Some(difference) = difference(&error) else { return Err(failed(error)) };
        let is_argument = arguments.remove(argument_name(&difference)).is_some();
        differences.extend(Some(difference).filter(|text| !text.is_empty()));
        if !is_argument {
            let channel = connection.create_channel().await.map_err(failed)?;
            look_at(&channel, queue).await.map_err(failed)?;
            let _ = channel.close(200, ShortString::default()).await;
            break;
        }
    }
    Ok(differences)
}

/// Makes the exchange that workers publish to, and binds it to the queue. What we may not do is
/// left to the workers, which make it as well.
async fn bind(
    connection: &Connection,
    exchange: &str,
    kind: ExchangeKind,
    queue: &str,
    routing_key: &str,
) -> Result<(), SourceError> {
    let failed = |source| SourceError::Exchange { exchange: exchange.to_owned(), source };
    let channel = connection.create_channel().await.map_err(failed)?;
    let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let declared = channel.exchange_declare(short(exchange), kind, options, FieldTable::default());
    let channel = match declared.await {
        Ok(()) => channel,
        Err(error) => {
            let difference = difference(&error).ok_or_else(|| failed(error))?;
            if !difference.is_empty() {
                let problem = "the exchange exists with other properties than Celeriac's and is used as it is";
                warn_once(exchange, problem, &difference);
            }
            // The refusal has closed the channel.
            connection.create_channel().await.map_err(failed)?
        }
    };
    let options = QueueBindOptions::default();
    let bound = channel.queue_bind(
        short(queue),
        short(exchange),
        short(routing_key),
        options,
        FieldTable::default(),
    );
    match bound.await {
        Ok(()) => {
            let _ = channel.close(200, ShortString::default()).await;
        }
        // The broker's 403 (no right to bind), 404 (no exchange, and no right to make it) and 406 (one
        // of a kind that wants another key, as `x-consistent-hash` wants a weight).
        Err(error) if is_protocol_error(&error, &[403, 404, 406]) => warn_once(
            exchange,
            "the exchange cannot be bound to the queue: what workers publish to it comes only where \
             somebody else has bound it",
            &Causes(&error).to_string(),
        ),
        Err(error) => return Err(failed(error)),
    }
    Ok(())
}

/// A name as AMQP has it. One that is too long, which no setting lets pass, becomes empty.
pub(crate) fn short(name: &str) -> ShortString {
    ShortString::try_new(name).unwrap_or_default()
}

/// Asks for a queue without making it: how many messages wait, and how many consumers there are.
pub(crate) async fn look_at(channel: &Channel, queue: &str) -> Result<Queue, lapin::Error> {
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(short(queue), options, FieldTable::default()).await
}

pub(crate) fn is_protocol_error(error: &lapin::Error, codes: &[u16]) -> bool {
    match error.kind() {
        lapin::ErrorKind::ProtocolError(error) => codes.contains(&error.get_id()),
        _ => false,
    }
}

/// Warns of something that is not as Celeriac would make it, once in the life of the process as
/// long as it stays the same.
fn warn_once(name: &str, problem: &str, differences: &str) {
    static WARNED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let mut warned = WARNED.lock().unwrap_or_else(PoisonError::into_inner);
    if warned.insert(format!("{name}: {differences}")) {
        tracing::warn!(name, differences, "{problem}");
    }
}

/// What the broker says where it refused a declaration because the queue is there and differs
/// (406, `PRECONDITION_FAILED`; the words are those of RabbitMQ 3.10), without what is always the
/// same. Nothing where we may not declare queues at all (403, `ACCESS_REFUSED`) and can only use
/// them.
pub(crate) fn difference(error: &lapin::Error) -> Option<String> {
    match error.kind() {
        lapin::ErrorKind::ProtocolError(error) if error.get_id() == 403 => Some(String::new()),
        lapin::ErrorKind::ProtocolError(error) if error.get_id() == 406 => {
            let message = error.get_message().as_str();
            Some(message.strip_prefix("PRECONDITION_FAILED - ").unwrap_or(message).to_owned())
        }
        _ => None,
    }
}

/// The name in the broker's `inequivalent arg 'x-queue-type' for queue …`.
fn argument_name(difference: &str) -> &str {
    difference.split('\'').nth(1).unwrap_or_default()
}

async fn consume(
    connection: &Connection,
    queue: &str,
    prefetch: u16,
) -> Result<(Channel, Consumer), SourceError> {
    let failed = |source| SourceError::Queue { queue: queue.to_owned(), source };
    let channel = connection.create_channel().await.map_err(failed)?;
    channel.basic_qos(prefetch, BasicQosOptions::default()).await.map_err(failed)?;
    let options = BasicConsumeOptions::default();
    let consumer = channel
        .basic_consume(short(queue), ShortString::default(), options, FieldTable::default())
        .await
        .map_err(failed)?;
    Ok((channel, consumer))
}

pub(crate) fn message_from(delivery: Delivery) -> Message {
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
        delivery_tag,
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
