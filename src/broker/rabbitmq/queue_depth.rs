//! Queries the lengths of the queues at intervals, over a separate connection, so that no lane
//! waits for it. The length is unknown while the broker does not answer.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use lapin::Connection;
use lapin::types::ShortString;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::connection::connect;
use super::error::{Error, is_protocol_error};
use super::topology::declare_passive;
use crate::config::{BrokerUrl, Config};
use crate::diagnosis::Causes;

/// How often the broker is queried.
const INTERVAL: Duration = Duration::from_secs(15);

/// When the broker is queried first, after the lanes have declared the queues.
const FIRST: Duration = Duration::from_secs(2);

/// How long the broker may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The numbers of messages and consumers of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Depth {
    /// Messages that are ready to be delivered.
    pub messages: u32,
    /// Consumers of the queue.
    pub consumers: u32,
}

/// Reports the depths of the queues for results, events and dead letters for as long as it is
/// polled. `report` gets the name of the queue, its role, and its depth if that is known.
pub async fn watch(
    config: Arc<Config>,
    report: impl Fn(&str, &str, Option<Depth>) + Send + Sync,
) -> Infallible {
    let mut queues =
        vec![(config.results_queue.as_str(), "results"), (config.dead_queue.as_str(), "dead")];
    queues.extend(config.events.as_ref().map(|events| (events.queue.as_str(), "events")));
    let mut connection = None;
    let mut ticks = interval_at(Instant::now() + FIRST, INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let asked = ask(&config.brokers, &mut connection, &queues, &report);
        let asked = tokio::time::timeout(ANSWER_TIMEOUT, asked)
            .await
            .unwrap_or_else(|_| Err(Error::silent()));
        if let Err(error) = asked {
            tracing::debug!(error = %Causes(&error), "the depths of the queues are not known");
            connection = None;
            for (queue, role) in &queues {
                report(queue, role, None);
            }
        }
    }
}

/// Queries every queue once. A queue that does not exist is reported without a depth.
async fn ask(
    brokers: &[BrokerUrl],
    connection: &mut Option<Connection>,
    queues: &[(&str, &str)],
    report: &(impl Fn(&str, &str, Option<Depth>) + Send + Sync),
) -> Result<(), Error> {
    let connection = match connection {
        Some(connection) => connection,
        None => connection.insert(connect(brokers, "celeriac queue depths").await?),
    };
    for &(queue, role) in queues {
        // A refusal closes the channel, so each query uses a new one.
        let channel = connection.create_channel().await.map_err(Error::Lost)?;
        match declare_passive(&channel, queue).await {
            Ok(declared) => {
                let (messages, consumers) = (declared.message_count(), declared.consumer_count());
                report(queue, role, Some(Depth { messages, consumers }));
                channel.close(200, ShortString::default()).await.map_err(Error::Lost)?;
            }
            Err(error) if is_protocol_error(&error, &[403, 404, 405]) => report(queue, role, None),
            Err(error) => return Err(Error::Lost(error)),
        }
    }
    Ok(())
}
