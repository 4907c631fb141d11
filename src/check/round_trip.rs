//! A message the whole way: published, confirmed, consumed, decoded, and its row written to the table
//! in a transaction that is undone.

use std::time::{Duration, Instant};

use chrono::Utc;
use lapin::options::{BasicGetOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use serde_json::json;

use crate::config::{BrokerUrl, Config};
use crate::decode::Decoder;
use crate::finding::{Finding, Subject};
use crate::message::{Headers, Message, Properties};
use crate::publish::{Outgoing, PublishError, Publisher};
use crate::source::{self, SourceError, short};
use crate::store::Database;
use crate::telemetry::Causes;

/// How long RabbitMQ may take for it.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a message that was confirmed may take to be in its queue.
const PAUSE: Duration = Duration::from_millis(5);

/// Sends a message, if there is a broker, and writes its row, if there is a table for it.
pub(super) async fn check(
    config: &Config,
    broker: Option<&BrokerUrl>,
    database: &Database,
    is_storable: bool,
    report: &mut dyn FnMut(Finding),
) {
    let mut message = message();
    if let Some(broker) = broker {
        match tokio::time::timeout(PATIENCE, send(config, broker, &message)).await {
            Ok(Ok((received, duration))) => {
                message = received;
                let milliseconds = duration.as_millis();
                let text = format!(
                    "a message went through a private queue of RabbitMQ in {milliseconds} ms"
                );
                report(Finding::ok(Subject::Message, text));
            }
            Ok(Err(error)) => report(failure(broker, &error)),
            Err(_) => {
                let text =
                    format!("RabbitMQ did not pass a message on in {} s", PATIENCE.as_secs());
                report(Finding::error(Subject::Message, text).fix(
                    "`rabbitmq-diagnostics check_local_alarms` says whether it is short of memory \
                     or disk",
                ));
            }
        }
    }
    // Whatever the settings accept: it is the way that is tried, and not the serializer.
    let rows = match Decoder::default().result(&message) {
        Ok(decoded) => decoded.rows,
        Err(error) => {
            report(Finding::error(Subject::Message, format!("it came back changed: {error}")));
            return;
        }
    };
    if is_storable {
        let rows: Vec<_> = rows.iter().collect();
        database.rehearse(&rows, config.cleanup.every.is_some(), report).await;
    }
}

/// Sends a message through a queue that is there for this connection alone. Says what came back, and
/// how long it took from publishing it.
async fn send(
    config: &Config,
    broker: &BrokerUrl,
    message: &Message,
) -> Result<(Message, Duration), PublishError> {
    // A name like that of the results, for users whose rights go by names.
    let queue = format!("{}.check-{}", config.results_queue, std::process::id());
    let failed = |source| SourceError::Queue { queue: queue.clone(), source };
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
            return Ok((source::message_from(got.delivery), began.elapsed()));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// What keeps a message from going its way, and whether `celeriac run` minds.
fn failure(broker: &BrokerUrl, error: &PublishError) -> Finding {
    let BrokerUrl { user, vhost, .. } = broker;
    let text = Causes(error).to_string();
    match error {
        // Only this command makes such a queue.
        PublishError::Connect(SourceError::Queue { queue, source })
            if source::is_protocol_error(source, &[403]) =>
        {
            let text =
                format!("no message could be tried: this user may not make the queue {queue}");
            Finding::warning(Subject::Message, text).fix(format!(
                "nothing, or let the patterns of {user} in {vhost} for CONFIGURE, WRITE and READ \
                 match it (`rabbitmqctl set_permissions`)"
            ))
        }
        PublishError::Publish { source, .. } if source::is_protocol_error(source, &[403]) => {
            Finding::error(Subject::Message, format!("no dead letter could be written: {text}"))
                .fix(format!(
                    "let the pattern of {user} in {vhost} for WRITE match amq.default \
                     (`rabbitmqctl set_permissions`)"
                ))
        }
        _ => Finding::error(Subject::Message, text),
    }
}

/// A result of Celery's `rpc://` backend, of a task that nobody has sent.
fn message() -> Message {
    let now = Utc::now();
    let task_id = format!("celeriac-check-{}-{}", std::process::id(), now.timestamp_micros());
    let body = json!({
        "task_id": task_id,
        "status": "SUCCESS",
        "result": null,
        "traceback": null,
        "children": [],
        "date_done": now.to_rfc3339(),
    });
    let properties = Properties {
        content_type: Some("application/json".to_owned()),
        content_encoding: Some("utf-8".to_owned()),
        correlation_id: Some(task_id),
        ..Properties::default()
    };
    Message { properties, ..Message::new(body.to_string().into_bytes(), now) }
}
