//! The errors of a broker as the callers see them, without the types of the client library.

use std::fmt;

/// How to react to an error of the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BrokerErrorClass {
    /// The broker cannot be reached, does not answer or denies access: try again later.
    Unavailable,
    /// The broker refused a message that was published to it.
    Refused,
    /// The next message of the queue cannot be parsed by the client library. Each connection that
    /// it is delivered to fails.
    Unreadable,
}

/// An operation of the broker that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerError {
    /// How to react to it.
    pub class: BrokerErrorClass,
    /// What happened, with its causes and, if possible, how to fix it. It never contains a password
    /// or the content of a message.
    pub message: String,
}

impl BrokerError {
    /// Creates an error.
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
