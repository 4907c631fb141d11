//! Consumes a queue of RabbitMQ.
//!
//! lapin's connection recovery is not used. A session that fails is dropped, so that no
//! acknowledgement is sent on a newer channel.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use lapin::options::{BasicConsumeOptions, BasicQosOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Connection, Consumer, ExchangeKind};

use super::acknowledge::Acknowledger;
use super::careful::Careful;
use super::connection::{CONNECT_TIMEOUT, connect};
use super::error::Error;
use super::message::message_from;
use super::topology::{
    bind, declare, declare_dead_queue, events_arguments, results_arguments, short,
};
use super::unreadable;
use crate::broker::{self, Broker, BrokerError, BrokerErrorClass, Recovery};
use crate::config::{Config, Events};
use crate::message::Message;

/// How long the broker may take to close a connection.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// The queue for results or the queue for events, on RabbitMQ.
pub struct RabbitMq {
    config: Arc<Config>,
    is_events: bool,
    careful: Careful,
}

impl RabbitMq {
    /// The queue for results.
    #[must_use]
    pub fn results(config: Arc<Config>) -> Self {
        Self { config, is_events: false, careful: Careful::default() }
    }

    /// The queue for events. `config.events` must be set.
    #[must_use]
    pub fn events(config: Arc<Config>) -> Self {
        Self { config, is_events: true, careful: Careful::default() }
    }

    /// The settings for events, if this is the queue for events.
    fn event_settings(&self) -> Option<&Events> {
        self.config.events.as_ref().filter(|_| self.is_events)
    }

    fn queue(&self) -> &str {
        self.event_settings().map_or(&self.config.results_queue, |events| &events.queue)
    }

    /// Removes the event at the head of the queue if it cannot be read. A classic queue has no
    /// delivery limit that would remove it.
    async fn discard_event(&self) -> Recovery {
        match unreadable::discard_head(&self.config.brokers, self.queue()).await {
            Ok(true) => Recovery::ReopenWithoutEvent,
            Ok(false) => Recovery::Reopen,
            Err(error) => Recovery::Wait {
                problem: "an event with properties that cannot be read is still in its queue",
                error: error.into(),
            },
        }
    }
}

impl Broker for RabbitMq {
    type Session = RabbitMqSession;

    async fn open(&mut self) -> Result<RabbitMqSession, BrokerError> {
        let prefetch = self.careful.prefetch(self.config.prefetch);
        let mut session =
            RabbitMqSession::open(&self.config, self.event_settings(), prefetch).await?;
        session.max_age = self.careful.max_age();
        if session.max_age.is_none() {
            tracing::info!(queue = self.queue(), "consuming");
        }
        Ok(session)
    }

    async fn recover(&mut self, ended: Result<(), &BrokerError>) -> Recovery {
        match ended {
            Ok(()) => {
                self.careful.end();
                Recovery::Reopen
            }
            Err(error) if error.class == BrokerErrorClass::Unreadable => {
                let was_careful = self.careful.begin(error);
                if was_careful && self.is_events {
                    self.discard_event().await
                } else {
                    self.careful.next(error).await
                }
            }
            Err(error) => Recovery::Wait {
                problem: "the session with the broker has ended",
                error: error.clone(),
            },
        }
    }
}

/// One connection with one channel and one consumer.
pub struct RabbitMqSession {
    connection: Connection,
    consumer: Consumer,
    acknowledger: Acknowledger,
    max_age: Option<Duration>,
}

impl RabbitMqSession {
    /// Connects to the first broker that answers, declares the queues and begins to consume, with
    /// at most `prefetch` unacknowledged messages. Consumes the queue for events if `events` is
    /// given, and the queue for results otherwise.
    async fn open(config: &Config, events: Option<&Events>, prefetch: u16) -> Result<Self, Error> {
        let connection = connect(&config.brokers, "celeriac").await?;
        let queue = events.map_or(&config.results_queue, |events| &events.queue);
        let opened = async {
            declare_dead_queue(&connection, &config.dead_queue).await?;
            let arguments = match events {
                Some(events) => events_arguments(events),
                None => results_arguments(&config.dead_queue),
            };
            declare(&connection, queue, &arguments).await?;
            let (exchange, kind, routing_key) = match events {
                // As Celery declares it (`celery/events/event.py`, 5.7.0).
                Some(_) => (&config.event_exchange, ExchangeKind::Topic, "task.#"),
                None => (&config.exchange, ExchangeKind::Direct, queue.as_str()),
            };
            bind(&connection, exchange, kind, queue, routing_key).await?;
            consume(&connection, queue, prefetch).await
        };
        let (channel, consumer) =
            tokio::time::timeout(CONNECT_TIMEOUT, opened).await.map_err(|_| Error::silent())??;
        let acknowledger = Acknowledger::new(channel, consumer.tag(), queue, config);
        Ok(Self { connection, consumer, acknowledger, max_age: None })
    }
}

impl broker::Session for RabbitMqSession {
    type Acknowledger = Acknowledger;

    fn split(
        &mut self,
    ) -> (impl Stream<Item = Result<Message, BrokerError>> + Unpin + Send, &Acknowledger) {
        let messages = (&mut self.consumer)
            .map(|delivery| Ok(delivery.map(message_from).map_err(Error::Lost)?));
        (messages, &self.acknowledger)
    }

    fn max_age(&self) -> Option<Duration> {
        self.max_age
    }

    async fn close(self) {
        let closing = self.connection.close(200, ShortString::default());
        if !matches!(tokio::time::timeout(CLOSE_TIMEOUT, closing).await, Ok(Ok(()))) {
            tracing::debug!("the connection to the broker was not closed cleanly");
        }
    }
}

async fn consume(
    connection: &Connection,
    queue: &str,
    prefetch: u16,
) -> Result<(Channel, Consumer), Error> {
    let failed = |source| Error::Queue { queue: queue.to_owned(), source };
    let channel = connection.create_channel().await.map_err(failed)?;
    channel.basic_qos(prefetch, BasicQosOptions::default()).await.map_err(failed)?;
    let options = BasicConsumeOptions::default();
    let consumer = channel
        .basic_consume(short(queue), ShortString::default(), options, FieldTable::default())
        .await
        .map_err(failed)?;
    Ok((channel, consumer))
}
