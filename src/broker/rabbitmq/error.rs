//! The errors between this process and RabbitMQ, with lapin's types. Callers outside this module
//! get a [`BrokerError`].

use std::time::Duration;

use crate::broker::{BrokerError, BrokerErrorClass};
use crate::diagnosis::Causes;

/// What failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// No broker could be reached, no broker accepted the login, or a TLS file could not be read.
    #[error("cannot connect to {broker}: {problem}")]
    Connect {
        /// The last broker that was tried.
        broker: String,
        /// The error of the broker, the network or the system, and how to fix it.
        problem: String,
    },
    /// A broker did not answer in time.
    #[error(
        "{broker} does not answer: check the host and the port in the URL, the firewalls between \
         the machines, and the state of the broker"
    )]
    Silent {
        /// The broker.
        broker: String,
    },
    /// A queue could not be declared or consumed.
    #[error("cannot use the queue {queue}{}", permission_to_grant(source))]
    Queue {
        /// The queue's name.
        queue: String,
        /// The answer of the broker.
        #[source]
        source: lapin::Error,
    },
    /// The exchange could not be declared or bound to the queue.
    #[error("cannot use the exchange {exchange}{}", permission_to_grant(source))]
    Exchange {
        /// The exchange's name.
        exchange: String,
        /// The answer of the broker.
        #[source]
        source: lapin::Error,
    },
    /// The connection or the channel failed.
    #[error("the connection to the broker is lost")]
    Lost(#[source] lapin::Error),
    /// The broker cancelled the consumer, as it does when the queue is deleted.
    #[error("the broker cancelled the consumer")]
    Cancelled,
    /// The connection or the channel failed while publishing.
    #[error("cannot publish to the queue {queue}{}", permission_to_grant(source))]
    Publish {
        /// The queue.
        queue: String,
        /// The error of the broker or the network.
        #[source]
        source: lapin::Error,
    },
    /// The queue does not exist, or the broker refused the message.
    #[error("the broker did not take the message for the queue {queue}")]
    Refused {
        /// The queue.
        queue: String,
    },
    /// The broker did not confirm in time, for example because it is short of memory or disk space.
    #[error("the broker did not confirm within {} s", .0.as_secs())]
    Unconfirmed(Duration),
}

impl Error {
    /// The error of a broker that does not answer, when its name is not known.
    pub(super) fn silent() -> Self {
        Self::Silent { broker: "the broker".to_owned() }
    }

    /// Whether the connection failed because lapin cannot read a message: one with a short string
    /// that is not UTF-8, or with headers larger than a frame (501, `FRAME_ERROR`).
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

/// The error of a connection or a channel that failed.
pub(super) fn lost(error: lapin::Error) -> BrokerError {
    Error::Lost(error).into()
}

/// Which permission to grant when the broker refuses access, in parentheses.
pub(super) fn permission_to_grant(error: &lapin::Error) -> &'static str {
    if is_protocol_error(error, &[403]) {
        " (give the user the permissions that docs/security.md lists)"
    } else if is_protocol_error(error, &[404]) {
        " (create it, or give the user the permission to create it, as docs/security.md says)"
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
