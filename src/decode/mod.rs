//! From a message to the row that it speaks of: dispatch on the content type, as kombu does.
//!
//! Each wire format has a file of its own. Nothing here guesses a format from the bytes.

mod columns;
mod event;
mod json;
mod json_text;
mod msgpack;
mod result_meta;

pub use self::event::{EventPolicy, Events};
use crate::message::{Message, Value};
use crate::row::Row;

/// Reads the row in a message of a worker's result backend.
///
/// # Errors
///
/// When the message can never be read, with a reason that stays true however often it is tried.
pub fn decode(message: &Message) -> Result<Row, DecodeError> {
    let (content_type, content_encoding) = labels(message)?;
    match content_type {
        "application/json" | columns::TASK | columns::GROUP if !is_utf8(content_encoding) => {
            Err(DecodeError::UnsupportedContentEncoding(content_encoding.to_owned()))
        }
        "application/json" => json::decode(message).map(Row::Task),
        "application/x-msgpack" => msgpack::decode(message).map(Row::Task),
        columns::TASK => columns::task(message).map(Row::Task),
        columns::GROUP => columns::group(message).map(Row::Group),
        _ => Err(DecodeError::UnsupportedContentType(content_type.to_owned())),
    }
}

/// Reads the task events in a message of a worker's event dispatcher.
///
/// # Errors
///
/// As for [`decode`]. An event that is not what Celery sends costs only itself.
pub fn decode_events(message: &Message, policy: EventPolicy) -> Result<Events, DecodeError> {
    let (content_type, content_encoding) = labels(message)?;
    match content_type {
        "application/json" if !is_utf8(content_encoding) => {
            Err(DecodeError::UnsupportedContentEncoding(content_encoding.to_owned()))
        }
        "application/json" => json::decode_events(message, policy),
        "application/x-msgpack" => msgpack::decode_events(message, policy),
        _ => Err(DecodeError::UnsupportedContentType(content_type.to_owned())),
    }
}

/// The serializer and the charset of a body that is not compressed.
fn labels(message: &Message) -> Result<(&str, &str), DecodeError> {
    match message.headers.get("compression") {
        None | Some(Value::Void) => {}
        Some(Value::Text(name)) if name.is_empty() => {}
        Some(_) => return Err(DecodeError::UnsupportedCompression),
    }
    // kombu takes the encoding in any case, and a message without labels as `application/data` in
    // utf-8 (`kombu/serialization.py`, `loads`, 5.7.0).
    let content_type = message.properties.content_type.as_deref().unwrap_or("application/data");
    let content_encoding = message.properties.content_encoding.as_deref().unwrap_or("utf-8");
    Ok((content_type, content_encoding))
}

/// Whether a label of kombu's means UTF-8 or a part of it. JSON itself says what `binary` is.
fn is_utf8(content_encoding: &str) -> bool {
    ["utf-8", "utf8", "us-ascii", "ascii", "binary"]
        .iter()
        .any(|name| name.eq_ignore_ascii_case(content_encoding))
}

/// Why a message cannot be read.
///
/// The texts name fields and positions, never values: they end in logs and in headers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The serializer is not one that Celeriac reads.
    #[error("the content type {0:?} is not supported: use json or msgpack as serializer")]
    UnsupportedContentType(String),
    /// The charset is not one that Celeriac reads.
    #[error("the content encoding {0:?} is not supported: use utf-8")]
    UnsupportedContentEncoding(String),
    /// The body is compressed.
    #[error("the body is compressed, which is not supported")]
    UnsupportedCompression,
    /// The body does not have the form that its content type promises.
    #[error("the body is not {format}: {problem} at byte {position}")]
    Malformed {
        /// The format that was promised.
        format: &'static str,
        /// What is wrong.
        problem: &'static str,
        /// Where in the body, counted from 0.
        position: usize,
    },
    /// The message is of a version of `celeriac://` that came later than this program.
    #[error("the version {0} of the message is not supported: upgrade Celeriac and replay it")]
    UnsupportedVersion(String),
    /// A column of a message of `celeriac://` is not what it has to be.
    #[error("the body is not a row: `{member}` is {problem}")]
    WrongMember {
        /// The name of the column.
        member: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A list of events is longer than any that Celery sends.
    #[error("the body is a list of more than {max} events", max = event::MAX_EVENTS)]
    TooManyEvents,
    /// The body is well formed but is not a task's result.
    #[error("the body is not a task result: {0}")]
    NotAResult(&'static str),
}

impl DecodeError {
    /// The stable short code of the reason, for headers and metrics.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::UnsupportedContentType(_) => "unsupported-content-type",
            Self::UnsupportedContentEncoding(_) => "unsupported-content-encoding",
            Self::UnsupportedCompression => "unsupported-compression",
            Self::Malformed { .. } => "undecodable",
            Self::TooManyEvents => "too-many-events",
            Self::UnsupportedVersion(_) => "unsupported-version",
            Self::WrongMember { .. } | Self::NotAResult(_) => "not-a-result",
        }
    }
}
