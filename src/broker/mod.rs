//! The message broker: traits that are independent of AMQP, and their implementation for RabbitMQ.
//!
//! A [`Session`] is one connection that delivers messages until it ends. It is never repaired:
//! after any error the whole session is dropped, together with the messages that were not
//! acknowledged. The broker delivers these messages again to the next session.

mod error;
pub mod rabbitmq;

use std::time::Duration;

use futures_util::Stream;

pub use self::error::{BrokerError, BrokerErrorClass};
use crate::message::Message;
use crate::message::dead_letter::Reason;

/// A queue of a broker that a lane consumes.
pub trait Broker: Send {
    /// A connection that consumes the queue.
    type Session: Session;

    /// Connects, declares the queues and exchanges, and begins to consume.
    ///
    /// # Errors
    ///
    /// Names the step that failed. It may succeed on a later attempt.
    fn open(&mut self) -> impl Future<Output = Result<Self::Session, BrokerError>> + Send;

    /// Decides what to do after a session has ended with an error, or was closed normally.
    fn recover(&mut self, ended: Result<(), &BrokerError>)
    -> impl Future<Output = Recovery> + Send;
}

/// What to do after a session has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// Open a session at once.
    Reopen,
    /// Open a session at once. An event that cannot be read was removed from its queue.
    ReopenWithoutEvent,
    /// Report an error and wait before opening a session.
    Wait {
        /// The text that is logged with the error.
        problem: &'static str,
        /// The error.
        error: BrokerError,
    },
}

/// One connection that consumes a queue.
pub trait Session: Send {
    /// The type that acknowledges and dead-letters the messages.
    type Acknowledger: Acknowledge;

    /// The stream of messages, and what acknowledges and dead-letters them. After the stream has
    /// returned an error or has ended, no more messages come and none can be acknowledged.
    fn split(
        &mut self,
    ) -> (impl Stream<Item = Result<Message, BrokerError>> + Unpin + Send, &Self::Acknowledger);

    /// How long the session may last, if that is limited. The caller then closes it.
    fn max_age(&self) -> Option<Duration>;

    /// Closes the connection. The broker delivers unacknowledged messages again.
    fn close(self) -> impl Future<Output = ()> + Send;
}

/// Publishes hints for processes that wait for results.
pub trait Announce: Send {
    /// Connects, after the start and after an error.
    ///
    /// # Errors
    ///
    /// When no broker answers, or when this user may not publish hints.
    fn connect(&mut self) -> impl Future<Output = Result<(), BrokerError>> + Send;

    /// Publishes the body of a hint without waiting for a confirmation. Nothing happens if nobody
    /// waits.
    ///
    /// # Errors
    ///
    /// When the connection cannot be used any more.
    fn announce(&mut self, body: &[u8]) -> impl Future<Output = Result<(), BrokerError>> + Send;
}

/// Sends task messages to workers.
pub trait SendTask: Send {
    /// Connects, after the start and after an error.
    ///
    /// # Errors
    ///
    /// When no broker answers.
    fn connect(&mut self) -> impl Future<Output = Result<(), BrokerError>> + Send;

    /// Lets workers publish chords to the results queue. They find out that they can. Returns false
    /// if there is no such queue yet.
    ///
    /// # Errors
    ///
    /// When the connection cannot be used any more.
    fn accept_chords(&mut self) -> impl Future<Output = Result<bool, BrokerError>> + Send;

    /// Publishes a message to its exchange and waits until the broker has confirmed or returned it.
    ///
    /// # Errors
    ///
    /// When the broker has not confirmed it. It may have been published.
    fn send(&mut self, message: &Message)
    -> impl Future<Output = Result<Sent, BrokerError>> + Send;
}

/// What the broker did with a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sent {
    /// The message is in its queues.
    Confirmed,
    /// No queue takes the message; the text says which exchange and routing key it has.
    Returned(String),
}

/// Acknowledges and dead-letters the messages of one session.
///
/// A message may be acknowledged only after its row is committed or after [`dead_letter`] has
/// returned `Ok` for it. Storing or dead-lettering a message twice does no harm.
///
/// [`dead_letter`]: Acknowledge::dead_letter
pub trait Acknowledge: Sync {
    /// Acknowledges the messages of a batch. These must be all messages that the session has
    /// delivered since the previous acknowledgement, in the order of their delivery.
    ///
    /// # Errors
    ///
    /// When the connection is lost. The broker then delivers the messages again.
    fn acknowledge(
        &self,
        messages: &[Message],
    ) -> impl Future<Output = Result<(), BrokerError>> + Send;

    /// Publishes messages to the dead-letter queue with their reasons, and waits until the broker
    /// has confirmed all of them.
    ///
    /// # Errors
    ///
    /// When some of them may not be in the queue. The caller may then publish all of them again.
    fn dead_letter(
        &self,
        letters: &[(&Message, &Reason)],
    ) -> impl Future<Output = Result<(), BrokerError>> + Send;

    /// Asks the broker to stop delivering messages. Returns true if the broker confirms this; the
    /// stream of messages then ends.
    fn stop(&self) -> impl Future<Output = bool> + Send;
}
