//! Opens and verifies messages that Celery's serializer `auth` has signed.
//!
//! A signed body is the base64 encoding of five parts, which are separated by the bytes 0 and 1:
//! the signer's id, the signature, the content type, the content encoding and the body that another
//! serializer wrote. Celery 5.5 and later encode the id and the signature in base64 once more;
//! earlier versions do not (`celery/security/serialization.py`, `_pack`, 4.4.7 to 5.7.0). The rules
//! are Celery's:
//!
//! - The signer's id consists of the attributes of the certificate's issuer and the serial number,
//!   separated by spaces (`Certificate.get_id`).
//! - The signature is RSA-PSS with the longest salt that the key allows.
//! - A signature of an expired certificate is refused (`Certificate.verify`, 5.7.0; older versions
//!   check the expiry only when they start). The start of the certificate's validity and its
//!   issuer's signature are not checked.
//! - Only the body is signed; its content type and content encoding are not. The content type is
//!   not compared with the list of accepted ones, because the signer is trusted (`loads(…,
//!   force=True)`). A body that does not match its content type is refused like any other.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, Utc};
use rsa::pkcs8::DecodePublicKey;
use rsa::traits::PublicKeyParts;
use rsa::{Pss, RsaPublicKey};
use sha2::digest::FixedOutputReset;
use sha2::{Sha224, Sha256, Sha384, Sha512};
use x509_parser::asn1_rs::{Any, Tag};
use x509_parser::num_bigint::BigInt;
use x509_parser::pem::Pem;

use super::accept;
use crate::decode::DecodeError;

/// The separator of the parts (`DEFAULT_SEPARATOR` in Celery).
const SEPARATOR: &[u8] = b"\x00\x01";

/// How signatures are verified: Celery's `security_…` settings.
#[derive(Clone, Debug, Default)]
pub struct Security {
    /// The certificates of the trusted signers: `security_cert_store`.
    pub certificates: CertificateStore,
    /// The hash function of the signatures: `security_digest`.
    pub digest: Digest,
}

/// A hash function, with the name that the Python package cryptography gives it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Digest {
    /// SHA-224.
    Sha224,
    /// SHA-256, Celery's default.
    #[default]
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

impl Digest {
    /// The hash function with this name. Case is ignored, as in Celery.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        match name.to_ascii_lowercase().as_str() {
            "sha224" => Some(Self::Sha224),
            "sha256" => Some(Self::Sha256),
            "sha384" => Some(Self::Sha384),
            "sha512" => Some(Self::Sha512),
            _ => None,
        }
    }

    fn verify(self, key: &RsaPublicKey, body: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::Sha224 => verify::<Sha224>(key, body, signature),
            Self::Sha256 => verify::<Sha256>(key, body, signature),
            Self::Sha384 => verify::<Sha384>(key, body, signature),
            Self::Sha512 => verify::<Sha512>(key, body, signature),
        }
    }
}

/// PSS with the longest salt that the key allows: `PSS.MAX_LENGTH` (`calculate_max_pss_salt_length`
/// in cryptography).
fn padding<D: sha2::Digest>(key: &impl PublicKeyParts) -> Option<Pss<D>> {
    let bits = usize::try_from(key.n().bits()).ok()?;
    let salt = (bits - 1).div_ceil(8).checked_sub(<D as sha2::Digest>::output_size() + 2)?;
    Some(Pss::new_with_salt(salt))
}

fn verify<D>(key: &RsaPublicKey, body: &[u8], signature: &[u8]) -> bool
where
    D: sha2::Digest + FixedOutputReset,
{
    padding::<D>(key)
        .is_some_and(|padding| key.verify(padding, &D::digest(body), signature).is_ok())
}

/// The certificates of the trusted signers, by their ids.
#[derive(Clone, Debug, Default)]
pub struct CertificateStore(BTreeMap<String, Certificate>);

impl CertificateStore {
    /// Adds a certificate and returns true. Returns false if there is already one with the same id,
    /// which Celery refuses, too.
    pub fn add(&mut self, certificate: Certificate) -> bool {
        let is_new = !self.0.contains_key(&certificate.id);
        if is_new {
            self.0.insert(certificate.id.clone(), certificate);
        }
        is_new
    }
}

/// The certificate of a trusted signer.
#[derive(Clone)]
pub struct Certificate {
    id: String,
    key: RsaPublicKey,
    not_after: DateTime<Utc>,
}

impl Certificate {
    /// Reads the first certificate in a PEM file.
    ///
    /// # Errors
    ///
    /// Returns what is wrong with it, as the predicate of a sentence whose subject is the file.
    pub fn from_pem(text: &[u8]) -> Result<Self, &'static str> {
        let block = Pem::iter_from_buffer(text)
            .flatten()
            .find(|block| ["CERTIFICATE", "X509 CERTIFICATE"].contains(&block.label.as_str()))
            .ok_or("is not a certificate: write it in PEM")?;
        let certificate = block.parse_x509().map_err(|_| "has a certificate that is damaged")?;
        let issuer = certificate
            .issuer()
            .iter_attributes()
            .map(|attribute| text_of(attribute.attr_value()))
            .collect::<Option<Vec<_>>>()
            .ok_or("has a certificate whose issuer has a name that is not text")?;
        let serial_number = BigInt::from_signed_bytes_be(certificate.raw_serial());
        let not_after = certificate.validity().not_after.timestamp();
        Ok(Self {
            id: format!("{} {serial_number}", issuer.join(" ")),
            key: RsaPublicKey::from_public_key_der(certificate.public_key().raw)
                .map_err(|_| "has a certificate whose key is not RSA with 1024 to 8192 bits")?,
            not_after: DateTime::from_timestamp(not_after, 0).unwrap_or(DateTime::<Utc>::MAX_UTC),
        })
    }

    /// Whether the certificate has expired at the given time.
    #[must_use]
    pub fn has_expired(&self, at: DateTime<Utc>) -> bool {
        at >= self.not_after
    }
}

/// Shows the id.
impl fmt::Debug for Certificate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Certificate").field(&self.id).finish()
    }
}

/// The text of an attribute of a name. All string types but two are decoded as UTF-8, as in
/// cryptography.
fn text_of(value: &Any<'_>) -> Option<String> {
    match value.tag() {
        Tag::BmpString => {
            let units = value.data.chunks(2).map(|unit| unit.try_into().map(u16::from_be_bytes));
            String::from_utf16(&units.collect::<Result<Vec<_>, _>>().ok()?).ok()
        }
        Tag::UniversalString => {
            let characters = value.data.chunks(4);
            let mut characters = characters.map(|character| character.try_into().ok());
            characters.try_fold(String::new(), |mut text, character| {
                text.push(char::from_u32(u32::from_be_bytes(character?))?);
                Some(text)
            })
        }
        Tag::BitString => None,
        _ => std::str::from_utf8(value.data).ok().map(str::to_owned),
    }
}

/// How the id and the signature are encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// Not at all, as in Celery up to 5.4.
    Plain,
    /// In base64, as in Celery 5.5 and later.
    Encoded,
}

/// The contents of a signed body.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::decode) struct Opened {
    /// The content type of the serializer that wrote the body.
    pub(in crate::decode) content_type: &'static str,
    /// The content encoding of the body.
    pub(in crate::decode) content_encoding: String,
    /// The body.
    pub(in crate::decode) bytes: Vec<u8>,
}

impl Security {
    /// Opens a signed body that was received at the given time, and verifies it.
    pub(in crate::decode) fn open(
        &self,
        body: &[u8],
        at: DateTime<Utc>,
    ) -> Result<Opened, DecodeError> {
        if self.certificates.0.is_empty() {
            return Err(DecodeError::NoCertificates);
        }
        let raw = STANDARD.decode(body).map_err(|error| {
            malformed(
                "invalid base64",
                match error {
                    base64::DecodeError::InvalidByte(position, _)
                    | base64::DecodeError::InvalidLastSymbol(position, _) => position,
                    _ => body.len(),
                },
            )
        })?;
        // The offset in the base64 text at which `rest` begins.
        let position = |rest: &[u8]| (raw.len() - rest.len()) / 3 * 4;
        let part = |rest| part(rest).ok_or_else(|| malformed("a part is missing", position(rest)));

        let (first, rest) = part(&raw)?;
        // An id that is not encoded contains a space, which is not valid base64.
        let (form, id) = match STANDARD.decode(first) {
            Ok(id) => (Form::Encoded, id),
            Err(_) => (Form::Plain, first.to_vec()),
        };
        let certificate = std::str::from_utf8(&id).ok().and_then(|id| self.certificates.0.get(id));
        let certificate = certificate.ok_or(DecodeError::UnknownSigner)?;
        let (signature, rest) = match form {
            Form::Encoded => {
                let (signature, left) = part(rest)?;
                let signature = STANDARD.decode(signature);
                (signature.map_err(|_| malformed("invalid signature", position(rest)))?, left)
            }
            Form::Plain => {
                // The signature may contain the bytes of the separator.
                let (signature, left) = rest
                    .split_at_checked(certificate.key.size())
                    .and_then(|(signature, left)| Some((signature, left.strip_prefix(SEPARATOR)?)))
                    .ok_or_else(|| malformed("invalid signature", position(rest)))?;
                (signature.to_vec(), left)
            }
        };
        let (content_type, after_type) = part(rest)?;
        let (content_encoding, bytes) = part(after_type)?;
        if certificate.has_expired(at) {
            return Err(DecodeError::ExpiredCertificate(certificate.id.clone()));
        }
        if !self.digest.verify(&certificate.key, bytes, &signature) {
            return Err(DecodeError::WrongSignature(certificate.id.clone()));
        }
        Ok(Opened {
            content_type: accept::serializer(content_type)
                .filter(|content_type| *content_type != accept::AUTH)
                .ok_or_else(|| {
                    malformed("unknown content type of the signed content", position(rest))
                })?,
            content_encoding: String::from_utf8(content_encoding.to_vec())
                .map_err(|_| malformed("invalid content encoding", position(after_type)))?,
            bytes: bytes.to_vec(),
        })
    }
}

/// The bytes before the next separator, and those after it.
fn part(rest: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = rest.windows(SEPARATOR.len()).position(|bytes| bytes == SEPARATOR)?;
    Some((&rest[..end], &rest[end + SEPARATOR.len()..]))
}

fn malformed(problem: &'static str, position: usize) -> DecodeError {
    DecodeError::Malformed { format: "a signed body", problem, position }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use serde_json::Value;

    use super::*;
    use crate::decode::Decoder;
    use crate::message::{Message, Properties};

    /// Signed bodies that `tests/data/auth/make_envelopes.py` has made with two versions of Celery.
    const PLAIN: &str = include_str!("../../../tests/data/auth/celery-5.4.0.json");
    const ENCODED: &str = include_str!("../../../tests/data/auth/celery-5.7.0.json");

    macro_rules! pem {
        ($name:literal) => {
            include_bytes!(concat!("../../../tests/data/auth/worthless-test-", $name, ".pem"))
        };
    }

    const WORKER: &[u8] = pem!("worker-certificate");
    const TWIN: &[u8] = pem!("twin-certificate");
    const EXPIRED: &[u8] = pem!("expired-certificate");
    const ODD: &[u8] = pem!("odd-certificate");

    fn made(version: &str, name: &str) -> String {
        let made: Value = serde_json::from_str(version).expect("JSON");
        made[name].as_str().expect(name).to_owned()
    }

    fn certificate(pem: &[u8]) -> Certificate {
        Certificate::from_pem(pem).expect("a certificate")
    }

    fn trusting(certificates: &[&[u8]]) -> Security {
        let mut security = Security::default();
        for pem in certificates {
            assert!(security.certificates.add(certificate(pem)));
        }
        security
    }

    fn now() -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::days(20_780)
    }

    fn open(security: &Security, envelope: &str) -> Result<Opened, DecodeError> {
        security.open(envelope.as_bytes(), now())
    }

    #[test]
    fn signed_bodies_of_celery_are_opened() {
        let security = trusting(&[WORKER, ODD]);
        for version in [PLAIN, ENCODED] {
            for name in ["json", "odd"] {
                let opened = open(&security, &made(version, name)).expect(name);
                assert_eq!(
                    (opened.content_type, &*opened.content_encoding),
                    (accept::JSON, "utf-8")
                );
                let body: Value = serde_json::from_slice(&opened.bytes).expect("JSON");
                assert_eq!(body["status"], "SUCCESS", "{name}");
            }
            let opened = open(&security, &made(version, "yaml")).expect("YAML");
            assert_eq!(opened.content_type, accept::YAML);
        }
        for (name, content_type) in [("msgpack", accept::MSGPACK), ("pickle", accept::PICKLE)] {
            let opened = open(&security, &made(ENCODED, name)).expect(name);
            assert_eq!((opened.content_type, &*opened.content_encoding), (content_type, "binary"));
        }
    }

    #[test]
    fn ids_are_those_of_celery() {
        let ids: Value = serde_json::from_str(ENCODED).expect("JSON");
        for (name, pem) in [("worker", WORKER), ("expired", EXPIRED), ("odd", ODD)] {
            assert_eq!(certificate(pem).id, ids["ids"][name].as_str().expect(name));
        }
    }

    #[test]
    fn a_signed_body_cut_or_changed_anywhere_is_refused_unless_only_a_label_is_changed() {
        let security = trusting(&[WORKER]);
        for version in [PLAIN, ENCODED] {
            let envelope = made(version, "json");
            let good = open(&security, &envelope).expect("good");
            let check = |envelope: &[u8]| {
                if let Ok(opened) = security.open(envelope, now()) {
                    assert_eq!(opened.bytes, good.bytes);
                    let labels = (opened.content_type, opened.content_encoding);
                    assert_ne!(labels, (good.content_type, good.content_encoding.clone()));
                }
            };
            let raw = STANDARD.decode(&envelope).expect("base64");
            for length in 0..envelope.len() {
                assert!(security.open(&envelope.as_bytes()[..length], now()).is_err(), "{length}");
            }
            for length in 0..raw.len() {
                let cut = STANDARD.encode(&raw[..length]);
                assert!(open(&security, &cut).is_err(), "{length}");
            }
            for position in 0..envelope.len() {
                let mut changed = envelope.clone().into_bytes();
                changed[position] ^= 1;
                check(&changed);
            }
            for position in 0..raw.len() {
                let mut changed = raw.clone();
                changed[position] ^= 1 << (position % 8);
                check(STANDARD.encode(&changed).as_bytes());
                changed.insert(position, 0);
                check(STANDARD.encode(&changed).as_bytes());
            }
        }
    }

    #[test]
    fn only_the_signers_own_key_verifies() {
        let worker = trusting(&[WORKER]);
        let id = certificate(WORKER).id;
        let wrong = DecodeError::WrongSignature(id.clone());
        for version in [PLAIN, ENCODED] {
            assert_eq!(open(&worker, &made(version, "twin")), Err(wrong.clone()));
            assert_eq!(open(&trusting(&[TWIN]), &made(version, "json")), Err(wrong.clone()));
            assert!(open(&trusting(&[TWIN]), &made(version, "twin")).is_ok());
            let unknown = open(&trusting(&[ODD]), &made(version, "json")).expect_err("unknown");
            assert_eq!((&unknown, unknown.code()), (&DecodeError::UnknownSigner, "unverified"));
            assert!(!unknown.to_string().contains("tests"), "{unknown}");
            assert_eq!(open(&worker, &made(version, "sha512")), Err(wrong.clone()));
            let strong = Security { digest: Digest::Sha512, ..worker.clone() };
            assert!(open(&strong, &made(version, "sha512")).is_ok());
        }
        assert_eq!(open(&Security::default(), "AAAA"), Err(DecodeError::NoCertificates));
        assert!(!worker.clone().certificates.add(certificate(TWIN)), "another with its id");
    }

    #[test]
    fn a_certificate_verifies_until_it_expires() {
        let security = trusting(&[WORKER]);
        let envelope = made(ENCODED, "json");
        let end = certificate(WORKER).not_after;
        assert!(security.open(envelope.as_bytes(), end - TimeDelta::microseconds(1)).is_ok());
        let error = security.open(envelope.as_bytes(), end).expect_err("expired");
        assert_eq!(error, DecodeError::ExpiredCertificate(certificate(WORKER).id));
        assert!(certificate(EXPIRED).has_expired(now()));
    }

    #[test]
    fn the_content_of_a_signed_body_must_be_of_another_known_serializer() {
        let security = trusting(&[WORKER]);
        let raw = STANDARD.decode(made(ENCODED, "json")).expect("base64");
        let raw = raw.iter().copied().map(char::from).collect::<String>();
        let other = raw.replace("application/json", "application/vnd.celeriac.task+json");
        assert_ne!(other, raw);
        for envelope in [made(ENCODED, "auth"), made(PLAIN, "auth"), STANDARD.encode(other)] {
            let error = open(&security, &envelope).expect_err("another");
            assert_eq!(error.code(), "undecodable");
            assert!(error.to_string().starts_with("the body is not a signed body: unknown"));
        }
    }

    #[test]
    fn a_result_that_is_signed_as_a_whole_is_verified_and_refused() {
        let result = |security: Security| {
            let decoder = Decoder { security, ..Decoder::default() };
            let properties = Properties {
                content_type: Some(accept::AUTH.to_owned()),
                content_encoding: Some("utf-8".to_owned()),
                ..Properties::default()
            };
            let body = made(ENCODED, "json").into_bytes();
            let message = Message { properties, ..Message::new(body, now()) };
            decoder.result(&message).expect_err("signed as a whole")
        };
        let error = result(trusting(&[WORKER]));
        assert_eq!((&error, error.code()), (&DecodeError::SignedAsAWhole, "not-accepted"));
        assert!(error.to_string().contains("celeriac://"), "{error}");
        assert_eq!(result(trusting(&[ODD])), DecodeError::UnknownSigner);
    }

    #[test]
    fn an_unusable_certificate_is_refused_with_a_reason() {
        let error = |pem: &[u8]| Certificate::from_pem(pem).expect_err("refused");
        assert!(error(pem!("ec-certificate")).contains("not RSA"));
        assert!(error(pem!("worker-key")).starts_with("is not a certificate"));
        assert!(error(&WORKER[..300]).starts_with("is not a certificate"));
        let damaged = String::from_utf8_lossy(WORKER).replacen("MII", "MIA", 1);
        assert!(error(damaged.as_bytes()).contains("damaged"));
    }
}
