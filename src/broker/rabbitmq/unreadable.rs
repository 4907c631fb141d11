//! Messages that lapin cannot read: those with a short string that is not UTF-8, or with headers
//! larger than a frame. Each delivery of such a message closes the connection, so it cannot be
//! acknowledged. It stays at the head of its queue for ever, unless the queue has a delivery limit.

use std::pin::Pin;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use lapin::options::BasicGetOptions;
use lapin::types::ShortString;
use lapin::{Connection, Event};

use super::connection::connect;
use super::error::Error;
use super::message::message_from;
use super::publish::{Outgoing, Publisher};
use super::topology::short;
use crate::config::BrokerUrl;
use crate::message::Message;

/// The name of these connections.
const CONNECTION: &str = "celeriac unreadable messages";

/// How long the broker may take to return a message.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// How long to wait for the reason after an error.
const REASON_TIMEOUT: Duration = Duration::from_millis(500);

/// The reason why a connection ends. If lapin cannot read the answer to a `basic.get`, it never
/// completes the call and reports the error only through this event stream.
pub(super) struct Ending(Pin<Box<dyn Stream<Item = Event> + Send>>);

impl Ending {
    /// Must be created before the first request on the connection.
    pub(super) fn of(connection: &Connection) -> Self {
        Self(Box::pin(connection.events_listener()))
    }

    /// Waits for an answer, or for the end of the connection.
    ///
    /// # Errors
    ///
    /// When the connection ends first, or the broker does not answer in time.
    pub(super) async fn unless<T>(
        &mut self,
        answer: impl Future<Output = Result<T, lapin::Error>>,
    ) -> Result<Result<T, lapin::Error>, Error> {
        tokio::select! {
            error = self.wait() => Err(error),
            answer = answer => Ok(answer),
            () = tokio::time::sleep(ANSWER_TIMEOUT) => {
                Err(Error::silent())
            }
        }
    }

    /// The reason why the connection ended, if it is known soon, or otherwise the given error.
    pub(super) async fn reason_for(&mut self, error: lapin::Error) -> Error {
        let reason = tokio::time::timeout(REASON_TIMEOUT, self.wait()).await;
        reason.unwrap_or(Error::Lost(error))
    }

    async fn wait(&mut self) -> Error {
        while let Some(event) = self.0.next().await {
            // A soft error closes only a channel, and is returned to the caller that used the
            // channel.
            if let Event::Error(error) = event
                && !error.is_amqp_soft_error()
            {
                return Error::Lost(error);
            }
        }
        Error::Cancelled
    }
}

/// The message that was removed from the head of a queue.
enum Head {
    Unreadable,
    Readable(Box<Message>),
    Nothing,
}

/// Deletes the message at the head of a queue if it cannot be read, and returns whether it did. A
/// message that can be read is published to the end of the queue again.
///
/// # Errors
///
/// When the broker cannot be reached or denies access, or when a message that was taken may not
/// have been published again.
pub(super) async fn discard_head(brokers: &[BrokerUrl], queue: &str) -> Result<bool, Error> {
    // Opened before a message is taken, which may have to be published again.
    let publisher = Publisher::open(brokers, CONNECTION).await?;
    match take(brokers, queue).await? {
        Head::Unreadable => Ok(true),
        Head::Nothing => Ok(false),
        Head::Readable(message) => {
            let Message { body, properties, headers, .. } = *message;
            let outgoing = Outgoing { body: &body, properties, headers };
            publisher.publish(queue, std::iter::once(outgoing)).await?;
            Ok(false)
        }
    }
}

async fn take(brokers: &[BrokerUrl], queue: &str) -> Result<Head, Error> {
    let connection = connect(brokers, CONNECTION).await?;
    let mut ending = Ending::of(&connection);
    let failed = |source| Error::Queue { queue: queue.to_owned(), source };
    let channel = connection.create_channel().await.map_err(failed)?;
    // With `no_ack` the broker acknowledges the message itself: a message that cannot be read has
    // no delivery tag to acknowledge it by.
    let options = BasicGetOptions { no_ack: true };
    let got = match ending.unless(channel.basic_get(short(queue), options)).await {
        Ok(got) => got.map_err(failed)?,
        Err(error) if error.is_unreadable() => return Ok(Head::Unreadable),
        Err(error) => return Err(error),
    };
    let _ = connection.close(200, ShortString::default()).await;
    Ok(got.map_or(Head::Nothing, |got| Head::Readable(Box::new(message_from(got.delivery)))))
}
