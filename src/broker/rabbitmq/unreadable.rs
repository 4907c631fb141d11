//! Messages that lapin cannot read: those whose short texts are not UTF-8, or whose headers are larger
//! than a frame. The connection is lost with each delivery of one, so nobody can acknowledge it, and it
//! stands at the head of its queue for ever, unless the queue has a delivery limit.

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

/// What these connections are called.
const CONNECTION: &str = "celeriac unreadable messages";

/// How long the broker may take to give a message.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// How long after an error its reason may come.
const REASON_TIMEOUT: Duration = Duration::from_millis(500);

/// What ends a connection. lapin leaves a `basic.get` without an answer when the answer cannot be
/// read, and tells only here.
pub(super) struct Ending(Pin<Box<dyn Stream<Item = Event> + Send>>);

impl Ending {
    /// To be made before anything is asked of the connection.
    pub(super) fn of(connection: &Connection) -> Self {
        Self(Box::pin(connection.events_listener()))
    }

    /// Waits for an answer of the connection, or for its end.
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

    /// What ended the connection, where that shows at once, and else this error.
    pub(super) async fn reason_for(&mut self, error: lapin::Error) -> Error {
        let reason = tokio::time::timeout(REASON_TIMEOUT, self.wait()).await;
        reason.unwrap_or(Error::Lost(error))
    }

    async fn wait(&mut self) -> Error {
        while let Some(event) = self.0.next().await {
            // A soft error ends a channel, and is the answer to whoever asked on it.
            if let Event::Error(error) = event
                && !error.is_amqp_soft_error()
            {
                return Error::Lost(error);
            }
        }
        Error::Cancelled
    }
}

/// What stood at the head of a queue, and no longer does.
enum Head {
    Unreadable,
    Readable(Box<Message>),
    Nothing,
}

/// Takes the message at the head of a queue away if it cannot be read, for good. Says whether it was
/// so. One that can be read is put back at the queue's end.
///
/// # Errors
///
/// When the broker cannot be reached or does not let us, or a message that was taken may not have been
/// put back.
pub(super) async fn discard_head(brokers: &[BrokerUrl], queue: &str) -> Result<bool, Error> {
    // Before anything is taken that may have to be put back.
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
    // Acknowledged by being delivered: whoever cannot read it has no number to do so by.
    let options = BasicGetOptions { no_ack: true };
    let got = match ending.unless(channel.basic_get(short(queue), options)).await {
        Ok(got) => got.map_err(failed)?,
        Err(error) if error.is_unreadable() => return Ok(Head::Unreadable),
        Err(error) => return Err(error),
    };
    let _ = connection.close(200, ShortString::default()).await;
    Ok(got.map_or(Head::Nothing, |got| Head::Readable(Box::new(message_from(got.delivery)))))
}
