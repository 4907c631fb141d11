//! Acknowledges messages, and publishes those that cannot be stored as dead letters.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::Utc;
use lapin::Channel;
use lapin::options::{BasicAckOptions, BasicCancelOptions};
use lapin::types::ShortString;
use tokio::sync::Mutex;

use super::error::Error;
use super::publish::{Outgoing, Publisher};
use super::topology::declare_dead_queue;
use crate::broker::{Acknowledge, BrokerError};
use crate::config::{BrokerUrl, Config};
use crate::message::Message;
use crate::message::dead_letter::{self, Circumstances, Reason};

/// How long the broker may take to confirm that it has cancelled the consumer.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// [`Acknowledge`] for a session with RabbitMQ.
pub struct Acknowledger {
    channel: Channel,
    consumer_tag: ShortString,
    brokers: Vec<BrokerUrl>,
    dead_queue: String,
    /// The queue that the messages come from.
    queue: String,
    /// A separate connection, which is opened for the first dead letter. A broker that is short of
    /// memory or disk space stops reading from connections that publish, which would also block the
    /// acknowledgements.
    publisher: Mutex<Option<Publisher>>,
}

impl Acknowledger {
    pub(crate) fn new(
        channel: Channel,
        consumer_tag: ShortString,
        queue: &str,
        config: &Config,
    ) -> Self {
        Self {
            channel,
            consumer_tag,
            brokers: config.brokers.clone(),
            dead_queue: config.dead_queue.clone(),
            queue: queue.to_owned(),
            publisher: Mutex::new(None),
        }
    }

    async fn open_publisher(&self) -> Result<Publisher, Error> {
        let publisher = Publisher::open(&self.brokers, "celeriac dead letters").await?;
        declare_dead_queue(publisher.connection(), &self.dead_queue).await?;
        Ok(publisher)
    }
}

impl Acknowledge for Acknowledger {
    async fn acknowledge(&self, messages: &[Message]) -> Result<(), BrokerError> {
        let Some(last) = messages.last() else { return Ok(()) };
        // This also acknowledges everything delivered before, which are the other messages of the
        // batch.
        let options = BasicAckOptions { multiple: true };
        let acknowledged = self.channel.basic_ack(last.delivery_id.0, options).await;
        Ok(acknowledged.map_err(Error::Lost)?)
    }

    async fn dead_letter(&self, letters: &[(&Message, &Reason)]) -> Result<(), BrokerError> {
        let mut slot = self.publisher.lock().await;
        // Taken out of the slot, so that a publisher that fails or is cancelled is not used again.
        let publisher = match slot.take() {
            Some(publisher) => publisher,
            None => self.open_publisher().await?,
        };
        let mut by_reason = BTreeMap::<_, Vec<_>>::new();
        for (_, reason) in letters {
            by_reason.entry(reason.code).or_default().push(reason);
        }
        let time = Utc::now();
        let host = gethostname::gethostname();
        let host = host.to_string_lossy();
        let letters = letters.iter().map(|(message, reason)| {
            let death = Circumstances { reason, queue: &self.queue, host: &host, time };
            let (properties, headers) = dead_letter::to_dead_letter(message, &death);
            Outgoing { body: &message.body, properties, headers }
        });
        publisher.publish(&self.dead_queue, letters).await?;
        *slot = Some(publisher);
        for (reason, reasons) in by_reason {
            // Only the first error is logged.
            let (messages, error) = (reasons.len(), &reasons[0].error);
            tracing::warn!(
                messages,
                reason,
                error,
                "messages that cannot be stored are in the dead-letter queue"
            );
        }
        Ok(())
    }

    async fn stop(&self) -> bool {
        let options = BasicCancelOptions::default();
        let cancelling = self.channel.basic_cancel(self.consumer_tag.clone(), options);
        matches!(tokio::time::timeout(STOP_TIMEOUT, cancelling).await, Ok(Ok(())))
    }
}
