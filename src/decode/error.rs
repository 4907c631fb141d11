//! Why a message cannot be read.

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
    /// A result was signed as a whole. Projects whose results are signed accept only what is signed
    /// (`celery/app/base.py`, `setup_security`, 5.7.0), so the columns would have to be signed too.
    #[error(
        "the result is signed as a whole, and readers of signed results accept only columns that are signed: use the result backend celeriac:// in the workers, which signs each column"
    )]
    SignedAsAWhole,
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
            Self::NotAccepted(_) | Self::SignedAsAWhole => "not-accepted",
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
