//! Tests everything that `celeriac run` needs, without changing anything: the broker and its
//! queues, the database and its tables, the user's permissions, and the way of a message through a
//! private queue to a write that is rolled back.

use chrono::Utc;
use serde_json::json;
use tokio::net::TcpListener;

use crate::broker::rabbitmq;
use crate::config::{BrokerUrl, Config};
use crate::decode::Decoder;
use crate::diagnosis::finding::{Finding, Subject};
use crate::message::{Message, Properties};
use crate::store::Database;

/// Runs all checks in order and reports each finding.
pub async fn run(config: &Config, database: &Database, report: &mut dyn FnMut(Finding)) {
    settings(config, report).await;
    let broker = rabbitmq::check::check(config, report).await;
    let is_storable = database.inspect(report).await;
    round_trip(config, broker, database, is_storable, report).await;
}

/// Checks the settings that need neither the broker nor the database.
async fn settings(config: &Config, report: &mut dyn FnMut(Finding)) {
    for broker in config.brokers.iter().filter(|broker| !broker.ignored.is_empty()) {
        let parameters = broker.ignored.join(", ");
        let text = format!("the URL {broker} has parameters that Celeriac ignores: {parameters}");
        report(Finding::warning(Subject::Settings, text).fix("remove them"));
    }
    let Some(address) = config.listen else { return };
    report(match TcpListener::bind(address).await {
        Ok(_) => Finding::ok(Subject::Settings, format!("{address} is free to listen on")),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            let text = format!("{address} is in use, by a running daemon or by another program");
            Finding::warning(Subject::Settings, text)
                .fix(format!("`curl http://{address}/ready` shows whether a daemon answers there"))
        }
        Err(error) => {
            Finding::error(Subject::Settings, format!("cannot listen on {address}: {error}"))
                .fix("choose an address of this machine; only root can use a port below 1024")
        }
    });
}

/// Sends a message if the broker can be used, and writes its row if the table can be used, in a
/// transaction that is rolled back.
async fn round_trip(
    config: &Config,
    broker: Option<&BrokerUrl>,
    database: &Database,
    is_storable: bool,
    report: &mut dyn FnMut(Finding),
) {
    let mut message = message();
    if let Some(broker) = broker {
        match rabbitmq::round_trip::send(config, broker, &message).await {
            Ok((received, duration)) => {
                message = received;
                let milliseconds = duration.as_millis();
                let text = format!(
                    "a message went through a private queue of RabbitMQ in {milliseconds} ms"
                );
                report(Finding::ok(Subject::Message, text));
            }
            Err(finding) => report(finding),
        }
    }
    // With the default decoder, whatever `accept-content` says: this tests the connections, not the
    // serializers.
    let rows = match Decoder::default().result(&message) {
        Ok(decoded) => decoded.rows,
        Err(error) => {
            report(Finding::error(
                Subject::Message,
                format!("the message came back changed: {error}"),
            ));
            return;
        }
    };
    if is_storable {
        let rows: Vec<_> = rows.iter().collect();
        database.rehearse(&rows, config.cleanup.every.is_some(), report).await;
    }
}

/// A result as Celery's `rpc://` backend publishes it, for a task that does not exist.
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
