//! The reasons why a message cannot be decoded.

/// Why a message cannot be decoded.
///
/// The messages name fields and positions but never values, because they are written to logs and
/// headers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Celeriac can read the serializer, but `accept-content` does not name it.
    #[error(
        "the content type {0:?} is not accepted: if you trust everybody who can publish, name it in accept-content"
    )]
    NotAccepted(String),
    /// The whole result is signed. Projects that sign results accept only signed data
    /// (`celery/app/base.py`, `setup_security`, 5.7.0), so the columns would have to be signed too.
    #[error(
        "the result is signed as a whole, and readers of signed results accept only columns that are signed: use the result backend celeriac:// in the workers, which signs each column"
    )]
    SignedAsAWhole,
    /// Celeriac cannot read the serializer.
    #[error(
        "the content type {0:?} is not supported: use json, msgpack, yaml, pickle or auth as serializer, or, with celeriac://, name it in accept-content"
    )]
    UnsupportedContentType(String),
    /// Celeriac cannot read the charset.
    #[error("the content encoding {0:?} is not supported: use utf-8")]
    UnsupportedContentEncoding(String),
    /// Celeriac does not know the compression or the encoding of the body.
    #[error("the header `{header}` names {} that is not supported: use {}",
        .name.as_ref().map_or_else(|| "something".to_owned(), |name| format!("{name:?}")),
        if *.header == "body_encoding" { "base64" } else { "gzip, bzip2, lzma, zstd or brotli" })]
    UnsupportedCompression {
        /// The header that names it.
        header: &'static str,
        /// The value of the header, if it is text.
        name: Option<String>,
    },
    /// The body is larger than the limit.
    #[error("the body is larger than {limit} bytes: raise max-body-size to store it")]
    BodyTooLarge {
        /// The most bytes.
        limit: usize,
    },
    /// The decompressed body is larger than the limit.
    #[error(
        "the decompressed body is larger than {limit} bytes: raise max-decompressed-size to store it"
    )]
    DecompressedTooLarge {
        /// The most bytes.
        limit: usize,
    },
    /// The decompressed body is so much larger than the compressed one that it may be a
    /// decompression bomb.
    #[error(
        "the decompressed body is more than {limit} times as large as the compressed one: raise max-compression-ratio to store it"
    )]
    TooCompressed {
        /// The largest ratio.
        limit: usize,
    },
    /// A value is nested deeper than the limit.
    #[error("a value nests deeper than {limit} levels: raise max-depth to store it")]
    TooDeep {
        /// The most levels.
        limit: usize,
    },
    /// A YAML body has too many values when its aliases are expanded.
    #[error(
        "the body has more than {limit} values when its aliases are expanded: raise max-expanded-values to store it"
    )]
    TooManyValues {
        /// The most values.
        limit: usize,
    },
    /// The columns of a YAML body are too large, although the body itself is not, because of its
    /// style or its aliases.
    #[error(
        "the columns of the body take more than {limit} bytes: raise max-decompressed-size to store it"
    )]
    ColumnsTooLarge {
        /// The most bytes.
        limit: usize,
    },
    /// The body is not in the format that its content type names.
    #[error("the body is not {format}: {problem} at byte {position}")]
    Malformed {
        /// The format that the content type names.
        format: &'static str,
        /// What is wrong.
        problem: &'static str,
        /// The offset in the body, in bytes from 0.
        position: usize,
    },
    /// The body is signed or has no content type, and there are no certificates to verify it with.
    #[error(
        "the message is signed or has no content type, and no certificates are configured: name those of the workers in security-cert-store"
    )]
    NoCertificates,
    /// The signer's certificate is not in the certificate store.
    #[error("the body's signer has no certificate in security-cert-store: add it and start again")]
    UnknownSigner,
    /// The signature does not match the body and the signer's certificate.
    #[error(
        "the signature by {0:?} does not match the body: the body was changed, or security-digest differs from that of the workers"
    )]
    WrongSignature(String),
    /// The signer's certificate has expired.
    #[error("the certificate {0:?} of the body's signer has expired: give the workers a new one")]
    ExpiredCertificate(String),
    /// The message is from a version of `celeriac://` that is newer than this program.
    #[error("the version {0} of the message is not supported: upgrade Celeriac and replay it")]
    UnsupportedVersion(String),
    /// A column of a message of `celeriac://` is missing or has the wrong type.
    #[error("the body is not a row: `{member}` is {problem}")]
    WrongMember {
        /// The name of the column.
        member: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A list of events is longer than the limit.
    #[error("the body is a list of more than {limit} events: raise max-events to store them")]
    TooManyEvents {
        /// The most events.
        limit: usize,
    },
    /// The body is well formed, but it is not the result of a task.
    #[error("the body is not a task result: {0}")]
    NotAResult(&'static str),
}

impl DecodeError {
    pub(super) fn wrong_member(member: &'static str, problem: &'static str) -> Self {
        Self::WrongMember { member, problem }
    }

    /// The short code of the reason for headers and metrics. It does not change between versions.
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
