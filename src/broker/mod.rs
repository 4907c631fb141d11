//! The message broker: a contract that knows nothing of AMQP, and RabbitMQ behind it.
//!
//! A [`Session`] is one connection that delivers messages until it ends. It is never repaired: when
//! anything of it fails it is dropped whole, with everything that it delivered and that was not
//! acknowledged. The broker delivers those messages again to the next session.

mod error;
pub mod rabbitmq;

use std::time::Duration;

use futures_util::Stream;

pub use self::error::{BrokerError, BrokerErrorClass};
use crate::message::Message;
use crate::message::dead_letter::Reason;

/// A queue of a broker that a lane takes messages from.
pub trait Broker: Send {
    /// A connection that consumes the queue.
    type Session: Session;

    /// Connects, makes what is missing, and begins to consume.
    ///
    /// # Errors
    ///
    /// Says which step failed; it may succeed when tried again.
    fn open(&mut self) -> impl Future<Output = Result<Self::Session, BrokerError>> + Send;

    /// Decides what comes after a session that has ended with an error, or that was ended in good
    /// order.
    fn recover(&mut self, ended: Result<(), &BrokerError>)
    -> impl Future<Output = Recovery> + Send;
}

/// What to do after a session has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// Open a session at once.
    Reopen,
    /// Open a session at once. An event that no client can read was removed from its queue.
    ReopenWithoutEvent,
    /// Report an error and wait before opening a session.
    Wait {
        /// What is said of the error.
        problem: &'static str,
        /// The error.
        error: BrokerError,
    },
}

/// One connection that consumes a queue.
pub trait Session: Send {
    /// What settles the messages.
    type Acknowledger: Acknowledge;

    /// The messages, and what settles them. After the stream has given an error or has ended,
    /// nothing more comes and nothing can be acknowledged.
    fn split(
        &mut self,
    ) -> (impl Stream<Item = Result<Message, BrokerError>> + Unpin + Send, &Self::Acknowledger);

    /// How long the session is to last at most, where it is limited. It is then to be ended in good
    /// order.
    fn max_age(&self) -> Option<Duration>;

    /// Closes the connection. What was not acknowledged is delivered again.
    fn close(self) -> impl Future<Output = ()> + Send;
}

/// Settles the messages of one session.
///
/// A message may be acknowledged only after its row is committed or after [`dead_letter`] has
/// returned `Ok` for it. Both may be repeated; a message settled twice does no harm.
///
/// [`dead_letter`]: Acknowledge::dead_letter
pub trait Acknowledge: Sync {
    /// Acknowledges the messages of a batch: every message that the session has delivered since
    /// those that were acknowledged before, in the order of their delivery.
    ///
    /// # Errors
    ///
    /// When the session is lost. The broker then delivers the messages again.
    fn acknowledge(
        &self,
        messages: &[Message],
    ) -> impl Future<Output = Result<(), BrokerError>> + Send;

    /// Publishes messages to the dead-letter queue with their reasons, and waits until the broker
    /// has confirmed each.
    ///
    /// # Errors
    ///
    /// When any of them may not be in the queue; all may then be published again.
    fn dead_letter(
        &self,
        letters: &[(&Message, &Reason)],
    ) -> impl Future<Output = Result<(), BrokerError>> + Send;

    /// Asks the broker to deliver nothing more. The stream of messages then ends, unless this gives
    /// false because the broker does not answer.
    fn stop(&self) -> impl Future<Output = bool> + Send;
}
