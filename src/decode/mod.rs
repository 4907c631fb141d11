//! Decodes messages into rows. The content type selects the decoder, as in kombu.
//!
//! Each wire format has its own file. The format is never guessed from the bytes, and nothing in a
//! message is executed. A message that is too large or whose content type is not accepted is
//! refused before its body is read.

mod chord;
mod columns;
mod decoded;
mod envelope;
mod error;
mod event;
mod format;
mod limits;
mod result_meta;

use std::borrow::Cow;

pub use self::decoded::Decoded;
pub use self::envelope::accept::Accept;
pub use self::envelope::auth::{Certificate, CertificateStore, Digest, Security};
use self::envelope::{accept, compression};
pub use self::error::DecodeError;
pub use self::event::EventPolicy;
use self::format::{json, msgpack, pickle, yaml};
use self::limits::Context;
pub use self::limits::WireLimits;
use crate::message::{Message, Value};
use crate::row::Row;
use crate::row::merge::Law;
use crate::row::task_result::TaskResult;

/// Decodes messages, with the settings for it.
#[derive(Clone, Debug, Default)]
pub struct Decoder {
    /// The serializers whose messages are read.
    pub accept: Accept,
    /// Limits on the size and the structure of messages.
    pub limits: WireLimits,
    /// How signatures are verified.
    pub security: Security,
    /// Which parts of events are stored.
    pub events: EventPolicy,
    /// Whether the arguments in messages of `rpc://` are stored. They can contain secrets: Celery
    /// 5.7 sends the arguments themselves and not their `argsrepr` and `kwargsrepr`
    /// (`_get_result_meta` in `celery/backends/base.py`).
    pub rpc_arguments: bool,
    /// The law by which the rows will be merged.
    pub law: Law,
}

/// What kind of messages a source delivers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceKind<'config> {
    /// Messages of result backends.
    Results,
    /// Messages of event dispatchers.
    Events,
    /// Events if they were published to this exchange, and results otherwise.
    ByExchange(&'config str),
}

impl SourceKind<'_> {
    /// Whether a message from this source is from an event dispatcher.
    #[must_use]
    pub fn is_events(self, message: &Message) -> bool {
        match self {
            Self::Results => false,
            Self::Events => true,
            Self::ByExchange(exchange) => message.exchange == exchange,
        }
    }
}

/// A body after decompression and verification, with its content type and encoding.
struct Body<'message> {
    bytes: Cow<'message, [u8]>,
    content_type: &'message str,
    content_encoding: Cow<'message, str>,
    /// Whether it was signed.
    is_signed: bool,
}

impl Decoder {
    /// Decodes a message from a source of this kind.
    ///
    /// # Errors
    ///
    /// When the message can never be decoded; trying again gives the same error.
    pub fn decode(&self, message: &Message, kind: SourceKind<'_>) -> Result<Decoded, DecodeError> {
        let mut decoded =
            if kind.is_events(message) { self.events(message) } else { self.result(message) }?;
        for row in &mut decoded.rows {
            row.mark_times(message.received_at, self.law.clock_tolerance);
        }
        Ok(decoded)
    }

    /// Decodes a message of a worker's result backend.
    ///
    /// # Errors
    ///
    /// As for [`Decoder::decode`].
    pub fn result(&self, message: &Message) -> Result<Decoded, DecodeError> {
        if let Some(unlocked) = chord::unlocked(message) {
            return Ok(Decoded { chords: vec![unlocked], ..Decoded::default() });
        }
        let body = self.open(message)?;
        if body.is_signed {
            return Err(DecodeError::SignedAsAWhole);
        }
        let context = Context { message, limits: &self.limits };
        let mut chords = Vec::new();
        let row = match body.content_type {
            chord::CHORD => {
                let chords = vec![chord::chord(body.utf8()?, message.received_at)?];
                return Ok(Decoded { chords, ..Decoded::default() });
            }
            chord::MEMBER => {
                let chords = chord::member(body.utf8()?)?;
                return Ok(Decoded { chords, ..Decoded::default() });
            }
            accept::JSON => self.rpc(json::decode(body.utf8()?, context)?),
            accept::MSGPACK => self.rpc(msgpack::decode(&body.bytes, context)?),
            accept::PICKLE => self.rpc(pickle::decode(&body.bytes, context)?),
            accept::YAML => self.rpc(yaml::decode(body.utf8()?, context)?),
            columns::TASK => {
                let (result, news) = columns::task(body.utf8()?, &self.limits)?;
                chords = news;
                self.accept.check(&result.outcome.content_type)?;
                Row::Task(result)
            }
            columns::GROUP => {
                let result = columns::group(body.utf8()?, &self.limits)?;
                self.accept.check(&result.content_type)?;
                Row::Group(result)
            }
            other => return Err(DecodeError::UnsupportedContentType(other.to_owned())),
        };
        Ok(Decoded { rows: vec![row], chords, ..Decoded::default() })
    }

    /// The row of a message of `rpc://`.
    fn rpc(&self, mut result: TaskResult) -> Row {
        if !self.rpc_arguments {
            result.description.task_args = None;
            result.description.task_kwargs = None;
        }
        Row::Task(result)
    }

    /// Decodes the task events in a message of a worker's event dispatcher.
    ///
    /// # Errors
    ///
    /// As for [`Decoder::decode`]. An event that cannot come from Celery is skipped, and the others
    /// are decoded.
    pub fn events(&self, message: &Message) -> Result<Decoded, DecodeError> {
        let body = self.open(message)?;
        let context = Context { message, limits: &self.limits };
        match body.content_type {
            accept::JSON => json::decode_events(body.utf8()?, self.events, context),
            accept::MSGPACK => msgpack::decode_events(&body.bytes, self.events, context),
            accept::PICKLE => pickle::decode_events(&body.bytes, self.events, context),
            accept::YAML => yaml::decode_events(body.utf8()?, self.events, context),
            other => Err(DecodeError::UnsupportedContentType(other.to_owned())),
        }
    }

    /// The body as its serializer wrote it.
    fn open<'message>(&self, message: &'message Message) -> Result<Body<'message>, DecodeError> {
        // kombu treats a message without content type and encoding as `application/data` in UTF-8
        // (`kombu/serialization.py`, `loads`, 5.7.0).
        let content_type = message.properties.content_type.as_deref().unwrap_or(accept::AUTH);
        let content_encoding = message.properties.content_encoding.as_deref().unwrap_or("utf-8");
        if ![columns::TASK, columns::GROUP, chord::CHORD, chord::MEMBER].contains(&content_type) {
            self.accept.check(content_type)?;
        }
        if message.body.len() > self.limits.body_bytes {
            return Err(DecodeError::BodyTooLarge { limit: self.limits.body_bytes });
        }
        let mut bytes = Cow::Borrowed(message.body.as_slice());
        // Transports without binary bodies encode the body and name the encoding in a property
        // (`kombu/transport/virtual/base.py`, `Channel.encode_body`, 5.7.0). A bridge from such a
        // transport passes that property on as a header.
        if let Some(name) = label(message, "body_encoding")? {
            bytes = Cow::Owned(compression::decode_body(name, &bytes)?);
        }
        if let Some(name) = label(message, "compression")? {
            bytes = Cow::Owned(compression::decompress(name, &bytes, &self.limits)?);
        }
        if content_type == accept::AUTH {
            let opened = self.security.open(&bytes, message.received_at)?;
            return Ok(Body {
                bytes: Cow::Owned(opened.bytes),
                content_type: opened.content_type,
                content_encoding: Cow::Owned(opened.content_encoding),
                is_signed: true,
            });
        }
        let content_encoding = Cow::Borrowed(content_encoding);
        Ok(Body { bytes, content_type, content_encoding, is_signed: false })
    }
}

impl Body<'_> {
    /// The bytes of a body that must be UTF-8 text. JSON and YAML are UTF-8 even where kombu labels
    /// them as binary or ASCII.
    fn utf8(&self) -> Result<&[u8], DecodeError> {
        // `binary` and `ascii-8bit` mean that the bytes are not decoded (`SKIP_DECODE` in
        // `kombu/serialization.py`, 5.7.0).
        let is_utf8 = ["utf-8", "utf8", "us-ascii", "ascii", "binary", "ascii-8bit"]
            .iter()
            .any(|name| name.eq_ignore_ascii_case(&self.content_encoding.replace('_', "-")));
        if is_utf8 {
            Ok(&self.bytes)
        } else {
            Err(DecodeError::UnsupportedContentEncoding(accept::shown(&self.content_encoding)))
        }
    }
}

/// The value of a header that says how the body was encoded; `None` if it is absent or empty.
fn label<'message>(
    message: &'message Message,
    header: &'static str,
) -> Result<Option<&'message str>, DecodeError> {
    match message.headers.get(header) {
        None | Some(Value::Void) => Ok(None),
        Some(Value::Text(name)) => Ok(Some(name.as_str()).filter(|name| !name.is_empty())),
        Some(_) => Err(DecodeError::UnsupportedCompression { header, name: None }),
    }
}
