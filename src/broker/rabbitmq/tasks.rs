//! Sends task messages to workers: the unlock messages of chords.

use std::sync::Arc;

use lapin::ExchangeKind;

use super::error::Error;
use super::publish::{Outgoing, Publisher};
use super::topology::{bind, exists};
use crate::broker::{BrokerError, SendTask, Sent};
use crate::config::Config;
use crate::message::Message;

/// A connection that sends task messages and nothing else.
pub struct RabbitMqTasks {
    config: Arc<Config>,
    publisher: Option<Publisher>,
}

impl RabbitMqTasks {
    /// Sends tasks to the broker of the results.
    #[must_use]
    pub fn new(config: Arc<Config>) -> Self {
        Self { config, publisher: None }
    }

    /// Takes the publisher, so that one that fails or is cancelled is not used again.
    fn take(&mut self) -> Result<Publisher, Error> {
        self.publisher.take().ok_or_else(Error::silent)
    }
}

impl SendTask for RabbitMqTasks {
    async fn connect(&mut self) -> Result<(), BrokerError> {
        self.publisher = None;
        let publisher = Publisher::open(&self.config.brokers, "celeriac chords").await?;
        self.publisher = Some(publisher);
        Ok(())
    }

    async fn accept_chords(&mut self) -> Result<bool, BrokerError> {
        let publisher = self.take()?;
        let config = &self.config;
        let (exchange, queue) = (&config.exchange, &config.results_queue);
        // Only the lanes declare it: RabbitMQ may not cancel a consumer whose queue is declared again
        // while it is being deleted.
        let exists = exists(publisher.connection(), queue).await?;
        if exists {
            let kind = ExchangeKind::Direct;
            bind(publisher.connection(), exchange, kind, queue, &chords_key(queue)).await?;
        }
        self.publisher = Some(publisher);
        Ok(exists)
    }

    async fn send(&mut self, message: &Message) -> Result<Sent, BrokerError> {
        let publisher = self.take()?;
        let outgoing = Outgoing {
            body: &message.body,
            properties: message.properties.clone(),
            headers: message.headers.clone(),
        };
        let (exchange, routing_key) = (&message.exchange, &message.routing_key);
        let sent = publisher.publish_one(exchange, routing_key, outgoing).await?;
        self.publisher = Some(publisher);
        Ok(sent)
    }
}

/// The routing key with which workers publish chords. Only a daemon with the tables of chords binds
/// its queue with it.
fn chords_key(queue: &str) -> String {
    format!("{queue}.chords")
}
