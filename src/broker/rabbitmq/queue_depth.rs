//! How full the queues are, as the broker tells it: asked now and then over a connection of its
//! own, which no lane waits for. Where the broker does not answer, the depth is not known.

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

/// How often the broker is asked.
const INTERVAL: Duration = Duration::from_secs(15);

/// When it is asked first: the lanes declare the queues before.
const FIRST: Duration = Duration::from_secs(2);

/// How long it may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// What a queue holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Depth {
    /// Messages that are ready to be delivered.
    pub messages: u32,
    /// Consumers of the queue.
    pub consumers: u32,
}

/// Reports the depths of the queues of results, events and dead letters, for as long as it is
/// polled: the queue's name, its role, and its depth where that is known.
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

/// Asks for every queue once. A queue that does not exist has no depth.
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
        // A refusal closes the channel, so each question has one to itself.
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
