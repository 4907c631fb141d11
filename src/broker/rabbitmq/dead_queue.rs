//! The dead-letter queue, looked at by a person: its letters, one after the other, and what is to
//! become of each.
//!
//! A letter that was looked at and not removed goes back into the queue when the connection ends,
//! however that happens, perhaps to another place. RabbitMQ counts each look as a delivery.

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

/// How many acknowledgements may be on their way. Where there are more than 32, the channel of a
/// quorum queue holds some back, and forgets them when it is closed (`rabbit_fifo_client`, 3.10).
const MAX_UNSETTLED: usize = 16;

/// A look at the dead-letter queue, over a connection of its own.
pub struct DeadQueue {
    connection: Connection,
    ending: Ending,
    channel: Channel,
    queue: ShortString,
    /// Letters that came while acknowledgements were waited for.
    ahead: VecDeque<Message>,
    /// How many letters were there at first and have not been looked at. Those that come later,
    /// the ones that were replayed in vain among them, are left alone.
    remaining: u32,
}

impl DeadQueue {
    /// Connects; nothing where there is no such queue.
    ///
    /// # Errors
    ///
    /// When the broker cannot be reached or does not let us use the queue.
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

    /// How many letters are still to be looked at.
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

    /// Removes letters that were looked at, by the ids of their deliveries, and waits until the
    /// queue has done so.
    ///
    /// # Errors
    ///
    /// When the connection is lost; the letters may be there or not.
    pub async fn remove(&mut self, letters: &[DeliveryId]) -> Result<(), BrokerError> {
        for few in letters.chunks(MAX_UNSETTLED) {
            for letter in few {
                let options = BasicAckOptions::default();
                self.channel.basic_ack(letter.0, options).await.map_err(lost)?;
            }
            // The queue takes one command after the other, so when it answers this one it has done
            // the others.
            let next = self.get().await?;
            self.ahead.extend(next);
        }
        Ok(())
    }

    /// Removes all letters that nobody is looking at. Gives their number.
    ///
    /// # Errors
    ///
    /// When the connection is lost.
    pub async fn purge(&self) -> Result<u32, BrokerError> {
        let options = QueuePurgeOptions::default();
        self.channel.queue_purge(self.queue.clone(), options).await.map_err(lost)
    }

    /// Ends the look. Every letter that was not removed is in the queue again.
    ///
    /// # Errors
    ///
    /// When the connection is lost.
    pub async fn close(self) -> Result<(), BrokerError> {
        self.channel.close(200, ShortString::default()).await.map_err(lost)?;
        self.connection.close(200, ShortString::default()).await.map_err(lost)
    }
}

/// Deletes the letters whose properties cannot be read, which stand in the way of those behind them.
/// Gives their number.
///
/// Those before the first of them are held by one connection, so that another finds it at the head of
/// the queue.
///
/// # Errors
///
/// When the broker cannot be reached or does not let us use the queue.
pub async fn purge_unreadable(config: &Config) -> Result<u32, BrokerError> {
    let mut purged = 0;
    loop {
        let Some(before) = readable_before_another(config).await? else { return Ok(purged) };
        let Some(mut holder) = DeadQueue::open(config).await? else { return Ok(purged) };
        for _ in 0..before {
            holder.next().await?;
        }
        purged += u32::from(unreadable::discard_head(&config.brokers, &config.dead_queue).await?);
        holder.close().await?;
    }
}

/// How many letters stand before the first one that cannot be read; nothing where all can be.
async fn readable_before_another(config: &Config) -> Result<Option<u32>, BrokerError> {
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

/// Sends letters back to the queues that they came from.
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

    /// Publishes letters of one queue and waits until the broker has confirmed each. A letter whose
    /// queue is not known is left out.
    ///
    /// # Errors
    ///
    /// When any of them may not be in its queue; all may then be published again.
    pub async fn publish(&self, queue: &str, letters: &[Message]) -> Result<(), BrokerError> {
        let restored = letters.iter().filter_map(|letter| {
            let (_, properties, headers) = dead_letter::restore(letter)?;
            Some(Outgoing { body: &letter.body, properties, headers })
        });
        Ok(self.publisher.publish(queue, restored).await?)
    }
}
