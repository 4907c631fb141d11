//! The queues, exchanges and bindings that Celeriac declares, and how it takes those that exist with
//! other properties.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Connection, ExchangeKind, Queue};

use super::error::{Error, is_protocol_error};
use crate::config::Events;
use crate::diagnosis::Causes;

/// How often the broker delivers a message again before it moves it to the dead-letter queue.
/// Only a message that no client can read comes to this: a database's outage costs one delivery,
/// as does a restart. Quorum queues of RabbitMQ 4 have 20 by themselves, which a daemon that is
/// killed again and again could reach with good messages.
const DELIVERY_LIMIT: i32 = 100;

/// What the results queue is declared with. A message that the broker gives up goes to the
/// dead-letter queue, and stays where it is until it is safely there.
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

/// What the queue of events is declared with: it must never fill the broker.
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

/// What the dead-letter queue is declared with.
pub(super) fn dead_arguments() -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    // RabbitMQ 4 would delete a letter that was looked at 20 times, and has no word for "never"
    // that 3.10 knows as well.
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(i32::MAX));
    arguments
}

/// Makes the dead-letter queue where it is not there.
pub(super) async fn declare_dead_queue(connection: &Connection, queue: &str) -> Result<(), Error> {
    declare(connection, queue, &dead_arguments()).await
}

/// Makes a durable queue, or takes it as it is where it exists with other properties.
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

/// Makes a durable queue, or says how the one that exists differs.
///
/// The broker names one difference at a time, so each is taken out of the question and asked
/// again, to tell all of them.
pub(super) async fn declare_and_compare(
    connection: &Connection,
    queue: &str,
    arguments: &FieldTable,
) -> Result<Vec<String>, Error> {
    let failed = |source| Error::Queue { queue: queue.to_owned(), source };
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
            declare_passive(&channel, queue).await.map_err(failed)?;
            let _ = channel.close(200, ShortString::default()).await;
            break;
        }
    }
    Ok(differences)
}

/// Makes the exchange that workers publish to, and binds it to the queue. What we may not do is
/// left to the workers, which make it as well.
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
pub(super) fn short(name: &str) -> ShortString {
    ShortString::try_new(name).unwrap_or_default()
}

/// Asks for a queue without making it: how many messages wait, and how many consumers there are.
pub(super) async fn declare_passive(channel: &Channel, queue: &str) -> Result<Queue, lapin::Error> {
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(short(queue), options, FieldTable::default()).await
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
