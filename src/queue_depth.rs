//! How full the queues are, as the broker tells it: asked now and then over a connection of its
//! own, which no lane waits for. Where the broker does not answer, there is no sample.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use lapin::Connection;
use lapin::types::ShortString;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use crate::config::{BrokerUrl, Config};
use crate::source::{self, SourceError};
use crate::telemetry::{Causes, Telemetry};

/// How often the broker is asked.
const EVERY: Duration = Duration::from_secs(15);

/// When it is asked first: the lanes declare the queues before.
const FIRST: Duration = Duration::from_secs(2);

/// How long it may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Keeps the depths of the queues of results, events and dead letters, for as long as it is polled.
pub async fn watch(config: Arc<Config>, telemetry: Arc<Telemetry>) -> Infallible {
    let mut queues =
        vec![(config.results_queue.as_str(), "results"), (config.dead_queue.as_str(), "dead")];
    queues.extend(config.events.as_ref().map(|events| (events.queue.as_str(), "events")));
    let mut connection = None;
    let mut ticks = interval_at(Instant::now() + FIRST, EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let asked = ask(&config.brokers, &mut connection, &queues, &telemetry);
        let silent = || SourceError::Silent { broker: "the broker".to_owned() };
        let asked = tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| Err(silent()));
        if let Err(error) = asked {
            tracing::debug!(error = %Causes(&error), "the depths of the queues are not known");
            connection = None;
            for (queue, role) in &queues {
                telemetry.set_depth(queue, role, None);
            }
        }
    }
}

/// Asks for every queue once. What is not there has no depth.
async fn ask(
    brokers: &[BrokerUrl],
    connection: &mut Option<Connection>,
    queues: &[(&str, &str)],
    telemetry: &Telemetry,
) -> Result<(), SourceError> {
    let connection = match connection {
        Some(connection) => connection,
        None => connection.insert(source::connect(brokers, "celeriac queue depths").await?),
    };
    for &(queue, role) in queues {
        // A refusal closes the channel, so each question has one to itself.
        let channel = connection.create_channel().await.map_err(SourceError::Lost)?;
        match source::look_at(&channel, queue).await {
            Ok(declared) => {
                let depth = (declared.message_count(), declared.consumer_count());
                telemetry.set_depth(queue, role, Some(depth));
                channel.close(200, ShortString::default()).await.map_err(SourceError::Lost)?;
            }
            Err(error) if source::is_protocol_error(&error, &[403, 404, 405]) => {
                telemetry.set_depth(queue, role, None);
            }
            Err(error) => return Err(SourceError::Lost(error)),
        }
    }
    Ok(())
}
