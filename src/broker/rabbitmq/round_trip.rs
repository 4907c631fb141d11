//! A message through a private queue: published, confirmed and taken again, for `celeriac check`.

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

/// How long RabbitMQ may take for it.
const TIMEOUT: Duration = Duration::from_secs(30);

/// How long a message that was confirmed may take to be in its queue.
const PAUSE: Duration = Duration::from_millis(5);

/// Sends a message through a queue that exists for this connection alone. Gives what came back, and
/// how long it took from publishing it.
///
/// # Errors
///
/// What kept the message from going its way, and whether `celeriac run` minds.
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
    // A name like that of the results, for users whose rights go by names.
    let queue = format!("{}.check-{}", config.results_queue, std::process::id());
    let failed = |source| Error::Queue { queue: queue.clone(), source };
    let publisher = Publisher::open(std::slice::from_ref(broker), "celeriac check").await?;
    let channel = publisher.connection().create_channel().await.map_err(failed)?;
    let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
    let declared = channel
        .queue_declare(short(&queue), options, FieldTable::default())
        .await
        .map_err(failed)?;
    // The broker's own, where ours would be too long.
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

/// What keeps a message from going its way, and whether `celeriac run` minds.
fn failure(broker: &BrokerUrl, error: &Error) -> Finding {
    let BrokerUrl { user, vhost, .. } = broker;
    let text = Causes(error).to_string();
    match error {
        // Only this command makes such a queue.
        Error::Queue { queue, source } if is_protocol_error(source, &[403]) => {
            let text =
                format!("no message could be tried: this user may not make the queue {queue}");
            Finding::warning(Subject::Message, text).fix(format!(
                "nothing, or let the patterns of {user} in {vhost} for CONFIGURE, WRITE and READ \
                 match it (`rabbitmqctl set_permissions`)"
            ))
        }
        Error::Publish { source, .. } if is_protocol_error(source, &[403]) => {
            Finding::error(Subject::Message, format!("no dead letter could be written: {text}"))
                .fix(format!(
                    "let the pattern of {user} in {vhost} for WRITE match amq.default \
                     (`rabbitmqctl set_permissions`)"
                ))
        }
        _ => Finding::error(Subject::Message, text),
    }
}
