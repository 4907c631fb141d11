//! From a message to the rows that it speaks of: dispatch on the content type, as kombu does.
//!
//! Each wire format has a file of its own. Nothing here guesses a format from the bytes, and
//! nothing is executed: what is not accepted or too large is refused before it is read.

mod columns;
mod envelope;
mod event;
mod format;
mod result_meta;

use std::borrow::Cow;
use std::collections::BTreeMap;

pub use self::envelope::accept::Accept;
pub use self::envelope::auth::{Certificate, CertificateStore, Digest, Security, Signer};
use self::envelope::{accept, auth, compression};
pub use self::event::EventPolicy;
use self::format::{json, msgpack, pickle, yaml};
use crate::message::{Message, Value};
use crate::row::Row;

/// What came of a message.
#[derive(Debug, Default, PartialEq)]
pub struct Decoded {
    /// The rows that it speaks of, in their order.
    pub rows: Vec<Row>,
    /// What was wrong with events that are not what Celery sends, and how many were left out for
    /// it.
    pub skipped: BTreeMap<&'static str, usize>,
}

/// How much a message may ask of whoever reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WireLimits {
    /// The most bytes of a body as it comes.
    pub body_bytes: usize,
    /// The most bytes of a body that was compressed.
    pub decompressed_bytes: usize,
    /// How many times as large as its compressed form a body may be. One mebibyte is always
    /// allowed.
    pub compression_ratio: usize,
    /// How deep the value of a member may nest.
    pub depth: usize,
    /// The most events in one message. Celery's workers send lists of at most 24
    /// (`buffer_limit` in `celery/events/dispatcher.py`, 5.7.0).
    pub events: usize,
    /// How many values a text in YAML may have, each of its aliases counted as all that it stands
    /// for.
    pub expanded_values: usize,
}

impl Default for WireLimits {
    fn default() -> Self {
        Self {
            body_bytes: 64 << 20,
            decompressed_bytes: 64 << 20,
            compression_ratio: 200,
            depth: 10_000,
            events: 10_000,
            expanded_values: 1_000_000,
        }
    }
}

/// Reads messages: of which serializers, within which limits, and what of events.
#[derive(Clone, Debug, Default)]
pub struct Decoder {
    /// The serializers whose messages are read.
    pub accept: Accept,
    /// How much a message may ask for.
    pub limits: WireLimits,
    /// Whose signatures count, and who signs.
    pub security: Security,
    /// What of events is stored.
    pub events: EventPolicy,
}

/// What the messages of a source are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceKind<'config> {
    /// Messages of result backends.
    Results,
    /// Messages of event dispatchers.
    Events,
    /// Events where they were published to this exchange, else results.
    ByExchange(&'config str),
}

impl SourceKind<'_> {
    /// Whether a message of the source is one of an event dispatcher.
    #[must_use]
    pub fn is_events(self, message: &Message) -> bool {
        match self {
            Self::Results => false,
            Self::Events => true,
            Self::ByExchange(exchange) => message.exchange == exchange,
        }
    }
}

/// What a wire format needs besides the body.
#[derive(Clone, Copy)]
struct Context<'message> {
    /// Where the body came from, which says when.
    message: &'message Message,
    limits: &'message WireLimits,
}

/// A body that is neither compressed nor signed, with its labels.
struct Body<'message> {
    bytes: Cow<'message, [u8]>,
    content_type: &'message str,
    content_encoding: Cow<'message, str>,
    /// The form that it was signed in, where it was.
    signed: Option<auth::Form>,
}

impl Decoder {
    /// Reads a message of a source of this kind.
    ///
    /// # Errors
    ///
    /// When the message can never be read, with a reason that stays true however often it is tried.
    pub fn decode(&self, message: &Message, kind: SourceKind<'_>) -> Result<Decoded, DecodeError> {
        if kind.is_events(message) { self.events(message) } else { self.result(message) }
    }

    /// Reads the row in a message of a worker's result backend.
    ///
    /// # Errors
    ///
    /// As for [`Decoder::decode`].
    pub fn result(&self, message: &Message) -> Result<Decoded, DecodeError> {
        let body = self.open(message)?;
        let context = Context { message, limits: &self.limits };
        let mut row = match body.content_type {
            accept::JSON => Row::Task(json::decode(body.utf8()?, context)?),
            accept::MSGPACK => Row::Task(msgpack::decode(&body.bytes, context)?),
            accept::PICKLE => Row::Task(pickle::decode(&body.bytes, context)?),
            accept::YAML => Row::Task(yaml::decode(body.utf8()?, context)?),
            columns::TASK => {
                let result = columns::task(body.utf8()?, &self.limits)?;
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
        if let (Row::Task(result), Some(form)) = (&mut row, body.signed) {
            self.security.sign(result, form);
        }
        Ok(Decoded { rows: vec![row], ..Decoded::default() })
    }

    /// Reads the task events in a message of a worker's event dispatcher.
    ///
    /// # Errors
    ///
    /// As for [`Decoder::decode`]. An event that is not what Celery sends costs only itself.
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
        // kombu takes a message without labels as `application/data` in utf-8
        // (`kombu/serialization.py`, `loads`, 5.7.0).
        let content_type = message.properties.content_type.as_deref().unwrap_or(accept::AUTH);
        let content_encoding = message.properties.content_encoding.as_deref().unwrap_or("utf-8");
        if !matches!(content_type, columns::TASK | columns::GROUP) {
            self.accept.check(content_type)?;
        }
        if message.body.len() > self.limits.body_bytes {
            return Err(DecodeError::BodyTooLarge { limit: self.limits.body_bytes });
        }
        let mut bytes = Cow::Borrowed(message.body.as_slice());
        // Transports without binary bodies encode them first and say so
        // (`kombu/transport/virtual/base.py`, `Channel.encode_body`, 5.7.0); a bridge from one of
        // these keeps the word as a header.
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
                signed: Some(opened.form),
            });
        }
        let content_encoding = Cow::Borrowed(content_encoding);
        Ok(Body { bytes, content_type, content_encoding, signed: None })
    }
}

impl Body<'_> {
    /// The bytes of a body that is text in UTF-8, as JSON and YAML are whatever the label says of
    /// them in kombu.
    fn utf8(&self) -> Result<&[u8], DecodeError> {
        // `binary` and `ascii-8bit` say that the bytes are to be taken as they are
        // (`SKIP_DECODE` in `kombu/serialization.py`, 5.7.0).
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

/// The text of a header that says how the body was encoded; an empty one says nothing.
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

/// Why a message cannot be read.
///
/// The texts name fields and positions, never values: they end in logs and in headers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The serializer is one that Celeriac knows and that was not accepted.
    #[error(
        "the content type {0:?} is not accepted: if you trust everybody who can publish, name it in accept-content"
    )]
    NotAccepted(String),
    /// The serializer is not one that Celeriac reads.
    #[error(
        "the content type {0:?} is not supported: use json, msgpack, yaml, pickle or auth as serializer, or, with celeriac://, name it in accept-content"
    )]
    UnsupportedContentType(String),
    /// The charset is not one that Celeriac reads.
    #[error("the content encoding {0:?} is not supported: use utf-8")]
    UnsupportedContentEncoding(String),
    /// The body is compressed or encoded in a way that Celeriac does not know.
    #[error("the header `{header}` names {} that is not supported: use {}",
        .name.as_ref().map_or_else(|| "something".to_owned(), |name| format!("{name:?}")),
        if *.header == "body_encoding" { "base64" } else { "gzip, bzip2, lzma, zstd or brotli" })]
    UnsupportedCompression {
        /// The header that says so.
        header: &'static str,
        /// Its text, where it is one.
        name: Option<String>,
    },
    /// The body is larger than it may be.
    #[error("the body is larger than {limit} bytes: raise max-body-size to store it")]
    BodyTooLarge {
        /// The most bytes.
        limit: usize,
    },
    /// The body is larger than it may be when it is decompressed.
    #[error(
        "the decompressed body is larger than {limit} bytes: raise max-decompressed-size to store it"
    )]
    DecompressedTooLarge {
        /// The most bytes.
        limit: usize,
    },
    /// The body is suspiciously larger than its compressed form.
    #[error(
        "the decompressed body is more than {limit} times as large as the compressed one: raise max-compression-ratio to store it"
    )]
    TooCompressed {
        /// The largest ratio.
        limit: usize,
    },
    /// A value nests deeper than it may.
    #[error("a value nests deeper than {limit} levels: raise max-depth to store it")]
    TooDeep {
        /// The most levels.
        limit: usize,
    },
    /// The aliases of a text in YAML stand for more than they may.
    #[error(
        "the body comes to more than {limit} values when its aliases are replaced: raise max-expanded-values to store it"
    )]
    TooManyValues {
        /// The most values.
        limit: usize,
    },
    /// A text in YAML is small only because of its style or its aliases.
    #[error(
        "the columns of the body take more than {limit} bytes: raise max-decompressed-size to store it"
    )]
    ColumnsTooLarge {
        /// The most bytes.
        limit: usize,
    },
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
    /// The body is signed, or says nothing of its serializer, and there is nobody to trust.
    #[error(
        "the content type is that of signed messages, or there is none, and no certificates are configured: name those of the workers in security-cert-store"
    )]
    NoCertificates,
    /// The certificate of whoever has signed is not there.
    #[error("the body's signer has no certificate in security-cert-store: add it and start again")]
    UnknownSigner,
    /// The signature is not one of the body by the signer.
    #[error(
        "the signature is not one of the body by {0:?}: the body was changed, or security-digest is not that of the workers"
    )]
    WrongSignature(String),
    /// The certificate of whoever has signed has expired.
    #[error("the certificate {0:?} of the body's signer has expired: give the workers a new one")]
    ExpiredCertificate(String),
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
    #[error("the body is a list of more than {limit} events: raise max-events to store them")]
    TooManyEvents {
        /// The most events.
        limit: usize,
    },
    /// The body is well formed but is not a task's result.
    #[error("the body is not a task result: {0}")]
    NotAResult(&'static str),
}

impl DecodeError {
    /// The stable short code of the reason, for headers and metrics.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotAccepted(_) => "not-accepted",
            Self::UnsupportedContentType(_) => "unsupported-content-type",
            Self::UnsupportedContentEncoding(_) => "unsupported-content-encoding",
            Self::UnsupportedCompression { .. } => "unsupported-compression",
            Self::BodyTooLarge { .. }
            | Self::DecompressedTooLarge { .. }
            | Self::ColumnsTooLarge { .. } => "too-large",
            Self::TooCompressed { .. } => "too-compressed",
            Self::TooDeep { .. } => "too-deep",
            Self::TooManyValues { .. } => "too-many-values",
            Self::Malformed { .. } => "undecodable",
            Self::NoCertificates
            | Self::UnknownSigner
            | Self::WrongSignature(_)
            | Self::ExpiredCertificate(_) => "unverified",
            Self::TooManyEvents { .. } => "too-many-events",
            Self::UnsupportedVersion(_) => "unsupported-version",
            Self::WrongMember { .. } | Self::NotAResult(_) => "not-a-result",
        }
    }
}
