//! Reads the dead-letter queue for `celeriac dead`: returns the letters one by one, and removes,
//! replays or purges them.
//!
//! A letter that was read but not removed returns to the queue when the connection ends, possibly
//! at another position. RabbitMQ counts each read as a delivery.

use std::collections::VecDeque;

use lapin::message::BasicGetMessage;
use lapin::options::{BasicAckOptions, BasicGetOptions, QueuePurgeOptions};
use lapin::types::ShortString;
use lapin::{Channel, Connection};

use super::connection::connect;
use super::error::{Error, is_protocol_error, lost};
use super::message::message_from;
use super::publish::{Outgoing, Publisher};
use super::topology::{declare_passive, short};
use super::unreadable::{self, Ending};
use crate::broker::{BrokerError, BrokerErrorClass};
use crate::config::Config;
use crate::message::{DeliveryId, Message, dead_letter};

/// How many acknowledgements are sent before the answer to the first. With more than 32, the
/// channel of a quorum queue delays some of them and loses these when it is closed
/// (`rabbit_fifo_client`, 3.10).
const MAX_UNSETTLED: usize = 16;

/// A reader of the dead-letter queue with its own connection.
pub struct DeadQueue {
    connection: Connection,
    ending: Ending,
    channel: Channel,
    queue: ShortString,
    /// Letters that were received while waiting for acknowledgements.
    ahead: VecDeque<Message>,
    /// How many of the letters that were in the queue at the beginning have not been read yet.
    /// Letters that arrive later are not read, such as replayed messages that became dead letters
    /// again.
    remaining: u32,
}

impl DeadQueue {
    /// Connects. Returns `None` if the queue does not exist.
    ///
    /// # Errors
    ///
    /// When the broker cannot be reached or denies access to the queue.
    pub async fn open(config: &Config) -> Result<Option<Self>, BrokerError> {
        let connection = connect(&config.brokers, "celeriac dead").await?;
        let failed = |source| Error::Queue { queue: config.dead_queue.clone(), source };
        let ending = Ending::of(&connection);
        let channel = connection.create_channel().await.map_err(failed)?;
        let queue = short(&config.dead_queue);
        match declare_passive(&channel, &config.dead_queue).await {
            Ok(declared) => {
                let remaining = declared.message_count();
                let ahead = VecDeque::new();
                Ok(Some(Self { connection, ending, channel, queue, ahead, remaining }))
            }
            Err(error) if is_protocol_error(&error, &[404]) => Ok(None),
            Err(error) => Err(failed(error).into()),
        }
    }

    /// How many letters have not been read yet.
    #[must_use]
    pub fn remaining(&self) -> u32 {
        self.remaining
    }

    /// The next letter.
    ///
    /// # Errors
    ///
    /// When the connection is lost, or the letter has properties that cannot be read.
    pub async fn next(&mut self) -> Result<Option<Message>, BrokerError> {
        if self.remaining == 0 {
            return Ok(None);
        }
        let next = match self.ahead.pop_front() {
            Some(letter) => Some(letter),
            None => self.get().await?,
        };
        self.remaining = if next.is_some() { self.remaining - 1 } else { 0 };
        Ok(next)
    }

    async fn get(&mut self) -> Result<Option<Message>, Error> {
        let options = BasicGetOptions::default();
        let getting = self.channel.basic_get(self.queue.clone(), options);
        let got = self.ending.unless(getting).await?.map_err(|error| {
            if is_protocol_error(&error, &[403]) {
                Error::Queue { queue: self.queue.to_string(), source: error }
            } else {
                Error::Lost(error)
            }
        })?;
        Ok(got.map(|BasicGetMessage { delivery, .. }| message_from(delivery)))
    }

    /// Removes letters that were read, by the ids of their deliveries, and waits until the queue
    /// has removed them.
    ///
    /// # Errors
    ///
    /// When the connection is lost. The letters may or may not have been removed.
    pub async fn remove(&mut self, letters: &[DeliveryId]) -> Result<(), BrokerError> {
        for few in letters.chunks(MAX_UNSETTLED) {
            for letter in few {
                let options = BasicAckOptions::default();
                self.channel.basic_ack(letter.0, options).await.map_err(lost)?;
            }
            // The queue processes commands in order, so its answer to this one shows that the
            // others are done.
            let next = self.get().await?;
            self.ahead.extend(next);
        }
        Ok(())
    }

    /// Removes all letters that are not being read by a consumer. Returns their number.
    ///
    /// # Errors
    ///
    /// When the connection is lost.
    pub async fn purge(&self) -> Result<u32, BrokerError> {
        let options = QueuePurgeOptions::default();
        self.channel.queue_purge(self.queue.clone(), options).await.map_err(lost)
    }

    /// Closes the connection. Every letter that was not removed returns to the queue.
    ///
    /// # Errors
    ///
    /// When the connection is lost.
    pub async fn close(self) -> Result<(), BrokerError> {
        self.channel.close(200, ShortString::default()).await.map_err(lost)?;
        self.connection.close(200, ShortString::default()).await.map_err(lost)
    }
}

/// Deletes the letters whose properties cannot be read, which block the letters behind them.
/// Returns their number.
///
/// One connection holds the readable letters before such a letter, so that another connection finds
/// the unreadable one at the head of the queue.
///
/// # Errors
///
/// When the broker cannot be reached or denies access to the queue.
pub async fn purge_unreadable(config: &Config) -> Result<u32, BrokerError> {
    let mut purged = 0;
    loop {
        let Some(before) = count_before_unreadable(config).await? else { return Ok(purged) };
        let Some(mut holder) = DeadQueue::open(config).await? else { return Ok(purged) };
        for _ in 0..before {
            holder.next().await?;
        }
        purged += u32::from(unreadable::discard_head(&config.brokers, &config.dead_queue).await?);
        holder.close().await?;
    }
}

/// How many letters are before the first one that cannot be read, or `None` if all can be read.
async fn count_before_unreadable(config: &Config) -> Result<Option<u32>, BrokerError> {
    let Some(mut queue) = DeadQueue::open(config).await? else { return Ok(None) };
    let mut readable = 0;
    loop {
        match queue.next().await {
            Ok(Some(_)) => readable += 1,
            Ok(None) => {
                queue.close().await?;
                return Ok(None);
            }
            Err(error) if error.class == BrokerErrorClass::Unreadable => return Ok(Some(readable)),
            Err(error) => return Err(error),
        }
    }
}

/// Publishes letters to the queues they came from.
pub struct Replayer {
    publisher: Publisher,
}

impl Replayer {
    /// Connects.
    ///
    /// # Errors
    ///
    /// When the broker cannot be reached.
    pub async fn open(config: &Config) -> Result<Self, BrokerError> {
        Ok(Self { publisher: Publisher::open(&config.brokers, "celeriac dead replay").await? })
    }

    /// Publishes letters of one queue and waits until the broker has confirmed all of them. A
    /// letter whose queue is not known is skipped.
    ///
    /// # Errors
    ///
    /// When some of them may not be in the queue. The caller may then publish all of them again.
    pub async fn publish(&self, queue: &str, letters: &[Message]) -> Result<(), BrokerError> {
        let restored = letters.iter().filter_map(|letter| {
            let (_, properties, headers) = dead_letter::restore(letter)?;
            Some(Outgoing { body: &letter.body, properties, headers })
        });
        Ok(self.publisher.publish(queue, restored).await?)
    }
}
