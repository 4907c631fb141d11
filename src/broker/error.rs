//! What a broker's failure means for those who use it, without the client library's types.

use std::fmt;

/// What a failure of the broker asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BrokerErrorClass {
    /// The broker cannot be reached, does not answer or does not let us: try again later.
    Unavailable,
    /// The broker refused a message that was published to it.
    Refused,
    /// The next message of the queue cannot be read by any client, and ends each connection that
    /// it is delivered to.
    Unreadable,
}

/// Why the broker did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerError {
    /// What to do about it.
    pub class: BrokerErrorClass,
    /// What happened, with its causes and, where somebody can mend it, how. It never holds a
    /// password or a message's content.
    pub message: String,
}

impl BrokerError {
    /// An error of a class.
    #[must_use]
    pub fn new(class: BrokerErrorClass, message: impl Into<String>) -> Self {
        Self { class, message: message.into() }
    }
}

impl fmt::Display for BrokerError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl std::error::Error for BrokerError {}
