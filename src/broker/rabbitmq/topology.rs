//! The queues, exchanges and bindings that Celeriac declares. Those that exist with other
//! properties are used as they are.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Connection, ExchangeKind, Queue};

use super::error::{Error, is_protocol_error};
use crate::config::Events;
use crate::diagnosis::Causes;

/// How often the broker delivers a message again before it moves it to the dead-letter queue. Only
/// messages that cannot be read are meant to reach this limit: an outage of the database costs one
/// delivery, and so does a restart. The default of quorum queues in RabbitMQ 4 is 20, which valid
/// messages could reach if a daemon is killed repeatedly.
const DELIVERY_LIMIT: i32 = 100;

/// The arguments of the results queue. A message that reaches the delivery limit goes to the
/// dead-letter queue, and stays in the results queue until the dead-letter queue has confirmed it.
pub(super) fn results_arguments(dead_queue: &str) -> FieldTable {
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

/// The arguments of the queue for events. Its length and the age of its messages are limited, so
/// that it never fills the broker.
pub(super) fn events_arguments(events: &Events) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in [("x-queue-type", "classic"), ("x-overflow", "drop-head")] {
        table.insert(name.into(), AMQPValue::LongString(value.into()));
    }
    let ttl_milliseconds = i64::try_from(events.ttl.as_millis()).unwrap_or(i64::MAX);
    table.insert("x-max-length".into(), AMQPValue::LongLongInt(events.max_length.into()));
    table.insert("x-message-ttl".into(), AMQPValue::LongLongInt(ttl_milliseconds));
    table
}

/// The arguments of the dead-letter queue.
pub(super) fn dead_arguments() -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    // By default RabbitMQ 4 would delete a letter that was read 20 times, and it has no value for
    // "unlimited" that 3.10 accepts too.
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(i32::MAX));
    arguments
}

/// Declares the dead-letter queue.
pub(super) async fn declare_dead_queue(connection: &Connection, queue: &str) -> Result<(), Error> {
    declare(connection, queue, &dead_arguments()).await
}

/// Declares a durable queue. Logs a warning if it exists with other arguments.
pub(super) async fn declare(
    connection: &Connection,
    queue: &str,
    arguments: &FieldTable,
) -> Result<(), Error> {
    let differences = declare_and_compare(connection, queue, arguments).await?;
    if !differences.is_empty() {
        let problem = "the queue exists with other arguments than Celeriac's and is used as it is";
        warn_once(queue, problem, &differences.join("; "));
    }
    Ok(())
}

/// Declares a durable queue, and returns how an existing queue differs.
///
/// The broker names only one difference at a time. So this removes each argument that differs and
/// declares the queue again, until it knows all differences.
pub(super) async fn declare_and_compare(
    connection: &Connection,
    queue: &str,
    arguments: &FieldTable,
) -> Result<Vec<String>, Error> {
    let failed = |source| Error::Queue { queue: queue.to_owned(), source };
    let mut differences = Vec::new();
    let mut arguments = arguments.inner().clone();
    loop {
        // A refusal closes the channel, so each declaration uses a new one.
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
            declare_passive(&channel, queue).await.map_err(failed)?;
            let _ = channel.close(200, ShortString::default()).await;
            break;
        }
    }
    Ok(differences)
}

/// Declares the exchange that workers publish to, and binds it to the queue. If this user lacks the
/// permission, the workers do it, because they declare both too.
pub(super) async fn bind(
    connection: &Connection,
    exchange: &str,
    kind: ExchangeKind,
    queue: &str,
    routing_key: &str,
) -> Result<(), Error> {
    let failed = |source| Error::Exchange { exchange: exchange.to_owned(), source };
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
        // 403: no permission to bind. 404: the exchange does not exist and this user may not create
        // it. 406: the exchange is of a type that needs another routing key, such as the weight for
        // `x-consistent-hash`.
        Err(error) if is_protocol_error(&error, &[403, 404, 406]) => warn_once(
            exchange,
            "the exchange cannot be bound to the queue: what workers publish to it arrives only if \
             the binding already exists",
            &Causes(&error).to_string(),
        ),
        Err(error) => return Err(failed(error)),
    }
    Ok(())
}

/// A name as an AMQP short string. A name that is too long becomes empty, but the settings do not
/// accept such names.
pub(super) fn short(name: &str) -> ShortString {
    ShortString::try_new(name).unwrap_or_default()
}

/// Declares a queue passively: the answer has the numbers of its messages and consumers, and the
/// queue is not created.
pub(super) async fn declare_passive(channel: &Channel, queue: &str) -> Result<Queue, lapin::Error> {
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(short(queue), options, FieldTable::default()).await
}

/// Whether a queue exists.
pub(super) async fn exists(connection: &Connection, queue: &str) -> Result<bool, Error> {
    let channel = connection.create_channel().await.map_err(Error::Lost)?;
    match declare_passive(&channel, queue).await {
        Ok(_) => {
            let _ = channel.close(200, ShortString::default()).await;
            Ok(true)
        }
        Err(error) if is_protocol_error(&error, &[404]) => Ok(false),
        Err(source) => Err(Error::Queue { queue: queue.to_owned(), source }),
    }
}

/// Logs how a queue or an exchange differs from what Celeriac declares. Each difference is logged
/// only once per process.
fn warn_once(name: &str, problem: &str, differences: &str) {
    static WARNED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let mut warned = WARNED.lock().unwrap_or_else(PoisonError::into_inner);
    if warned.insert(format!("{name}: {differences}")) {
        tracing::warn!(name, differences, "{problem}");
    }
}

/// The broker's text if it refused a declaration because the queue exists and differs (406,
/// `PRECONDITION_FAILED`, as RabbitMQ 3.10 words it), without the constant prefix. An empty text if
/// this user may not declare queues and can only use them (403, `ACCESS_REFUSED`). `None` for any
/// other error.
pub(super) fn difference(error: &lapin::Error) -> Option<String> {
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
