//! What fails between this process and RabbitMQ, as lapin reports it. Callers outside this room get
//! a [`BrokerError`].

use std::time::Duration;

use crate::broker::{BrokerError, BrokerErrorClass};
use crate::diagnosis::Causes;

/// What failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// None of the brokers could be reached, or none let us in, or a file for TLS could not be read.
    #[error("cannot connect to {broker}: {problem}")]
    Connect {
        /// The last broker that was tried.
        broker: String,
        /// What the broker, the network or the system said, and how to mend it.
        problem: String,
    },
    /// A broker said nothing for too long.
    #[error(
        "{broker} does not answer: check the host and the port in the URL, the firewalls on the \
         way, and that the broker is well"
    )]
    Silent {
        /// The broker.
        broker: String,
    },
    /// A queue could not be declared or consumed.
    #[error("cannot use the queue {queue}{}", right_to_grant(source))]
    Queue {
        /// The queue's name.
        queue: String,
        /// What the broker said.
        #[source]
        source: lapin::Error,
    },
    /// The exchange could not be declared or bound to the queue.
    #[error("cannot use the exchange {exchange}{}", right_to_grant(source))]
    Exchange {
        /// The exchange's name.
        exchange: String,
        /// What the broker said.
        #[source]
        source: lapin::Error,
    },
    /// The connection or the channel failed.
    #[error("the connection to the broker is lost")]
    Lost(#[source] lapin::Error),
    /// The broker ended the consumer, as it does when the queue is deleted.
    #[error("the broker cancelled the consumer")]
    Cancelled,
    /// The connection or the channel failed while publishing.
    #[error("cannot publish to the queue {queue}{}", right_to_grant(source))]
    Publish {
        /// The queue.
        queue: String,
        /// What the broker or the network said.
        #[source]
        source: lapin::Error,
    },
    /// The broker has no such queue, or refused the message.
    #[error("the broker did not take the message for the queue {queue}")]
    Refused {
        /// The queue.
        queue: String,
    },
    /// The broker did not confirm in time, as happens while it is short of memory or disk.
    #[error("the broker did not confirm within {} s", .0.as_secs())]
    Unconfirmed(Duration),
}

impl Error {
    /// A broker that does not answer, where it is not known which one.
    pub(super) fn silent() -> Self {
        Self::Silent { broker: "the broker".to_owned() }
    }

    /// Whether a message has come that lapin cannot read: one whose short texts are not UTF-8, or
    /// whose headers are larger than a frame (501, `FRAME_ERROR`).
    pub(super) fn is_unreadable(&self) -> bool {
        match self {
            Self::Lost(error) => match error.kind() {
                lapin::ErrorKind::ParsingError(_) => true,
                lapin::ErrorKind::ProtocolError(error) => error.get_id() == 501,
                _ => false,
            },
            _ => false,
        }
    }
}

impl From<Error> for BrokerError {
    fn from(error: Error) -> Self {
        let class = match &error {
            Error::Refused { .. } => BrokerErrorClass::Refused,
            error if error.is_unreadable() => BrokerErrorClass::Unreadable,
            _ => BrokerErrorClass::Unavailable,
        };
        Self::new(class, Causes(&error).to_string())
    }
}

/// A connection or channel that failed.
pub(super) fn lost(error: lapin::Error) -> BrokerError {
    Error::Lost(error).into()
}

/// Which right to grant when the broker refuses a user, in brackets.
pub(super) fn right_to_grant(error: &lapin::Error) -> &'static str {
    if is_protocol_error(error, &[403]) {
        " (give the user the rights that docs/security.md lists)"
    } else if is_protocol_error(error, &[404]) {
        " (make it, or give the user the right to, as docs/security.md says)"
    } else {
        ""
    }
}

pub(super) fn is_protocol_error(error: &lapin::Error, codes: &[u16]) -> bool {
    match error.kind() {
        lapin::ErrorKind::ProtocolError(error) => codes.contains(&error.get_id()),
        _ => false,
    }
}
