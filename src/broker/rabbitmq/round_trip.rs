//! Publishes a message to a private queue and gets it back, for `celeriac check`.

use std::time::{Duration, Instant};

use lapin::options::{BasicGetOptions, QueueDeclareOptions};
use lapin::types::FieldTable;

use super::error::{Error, is_protocol_error};
use super::message::message_from;
use super::publish::{Outgoing, Publisher};
use super::topology::short;
use crate::config::{BrokerUrl, Config};
use crate::diagnosis::Causes;
use crate::diagnosis::finding::{Finding, Subject};
use crate::message::{Headers, Message};

/// How long the round trip may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The wait before the queue is asked again for a confirmed message that is not there yet.
const PAUSE: Duration = Duration::from_millis(5);

/// Sends a message through an exclusive queue. Returns the received message and the time since it
/// was published.
///
/// # Errors
///
/// Says what failed. It is a warning if `celeriac run` does not need it.
pub async fn send(
    config: &Config,
    broker: &BrokerUrl,
    message: &Message,
) -> Result<(Message, Duration), Finding> {
    match tokio::time::timeout(TIMEOUT, send_and_get(config, broker, message)).await {
        Ok(Ok(received)) => Ok(received),
        Ok(Err(error)) => Err(failure(broker, &error)),
        Err(_) => {
            let text = format!("RabbitMQ did not pass a message on in {} s", TIMEOUT.as_secs());
            Err(Finding::error(Subject::Message, text).fix(
                "`rabbitmq-diagnostics check_local_alarms` says whether it is short of memory or \
                 disk",
            ))
        }
    }
}

async fn send_and_get(
    config: &Config,
    broker: &BrokerUrl,
    message: &Message,
) -> Result<(Message, Duration), Error> {
    // The name begins with that of the results queue, because the user's permissions may depend on
    // names.
    let queue = format!("{}.check-{}", config.results_queue, std::process::id());
    let failed = |source| Error::Queue { queue: queue.clone(), source };
    let publisher = Publisher::open(std::slice::from_ref(broker), "celeriac check").await?;
    let channel = publisher.connection().create_channel().await.map_err(failed)?;
    let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
    let declared = channel
        .queue_declare(short(&queue), options, FieldTable::default())
        .await
        .map_err(failed)?;
    // The broker chooses a name if this one is too long.
    let name = declared.name().clone();
    let began = Instant::now();
    let outgoing = Outgoing {
        body: &message.body,
        properties: message.properties.clone(),
        headers: Headers::new(),
    };
    publisher.publish(name.as_str(), std::iter::once(outgoing)).await?;
    loop {
        let options = BasicGetOptions { no_ack: true };
        if let Some(got) = channel.basic_get(name.clone(), options).await.map_err(failed)? {
            return Ok((message_from(got.delivery), began.elapsed()));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The finding for an error of the round trip.
fn failure(broker: &BrokerUrl, error: &Error) -> Finding {
    let BrokerUrl { user, vhost, .. } = broker;
    let text = Causes(error).to_string();
    match error {
        // Only `celeriac check` declares such a queue.
        Error::Queue { queue, source } if is_protocol_error(source, &[403]) => {
            let text =
                format!("no message could be tried: this user may not declare the queue {queue}");
            Finding::warning(Subject::Message, text).fix(format!(
                "`celeriac run` does not need it; to test it, let the CONFIGURE, WRITE and READ \
                 patterns of {user} in {vhost} match it (`rabbitmqctl set_permissions`)"
            ))
        }
        Error::Publish { source, .. } if is_protocol_error(source, &[403]) => {
            Finding::error(Subject::Message, format!("no dead letter could be written: {text}"))
                .fix(format!(
                    "let the WRITE pattern of {user} in {vhost} match amq.default \
                     (`rabbitmqctl set_permissions`)"
                ))
        }
        _ => Finding::error(Subject::Message, text),
    }
}
