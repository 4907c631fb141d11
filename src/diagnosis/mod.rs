//! Explains why a connection failed and how to fix it: from the TLS files, and from the error texts
//! of rustls and the operating system.
//!
//! TLS files are read for each connection, so that a renewed file is used without a restart. They
//! are examined only after a connection has failed, because some servers accept what is wrong with
//! them.

mod causes;
pub mod finding;

use std::path::{Path, PathBuf};

use chrono::Utc;
use x509_parser::pem::Pem;

pub use self::causes::{Causes, reason};

/// The files that TLS may need, in PEM format.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// The authorities that may have signed the server's certificate, besides the system's.
    pub ca: Option<PathBuf>,
    /// The client's certificate and what it was signed with.
    pub certificate: Option<PathBuf>,
    /// The client's private key.
    pub key: Option<PathBuf>,
}

/// The names of the files in a URL.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Names {
    pub(crate) ca: &'static str,
    pub(crate) certificate: &'static str,
    pub(crate) key: &'static str,
}

/// Explains an error and, if the files or the text of the error show it, how to fix it.
pub(crate) fn explain(files: &TlsFiles, names: Names, words: &str) -> String {
    if let Some(problem) = problem_of(files, names).or_else(|| tls_problem(names, words)) {
        return problem;
    }
    match network_advice(words) {
        Some(advice) => format!("{words}: {advice}"),
        None => words.to_owned(),
    }
}

fn network_advice(words: &str) -> Option<&'static str> {
    let has_any = |parts: &[&str]| parts.iter().any(|part| words.contains(part));
    if has_any(&["Connection refused"]) {
        Some("check the host and the port in the URL, and that the server runs there")
    } else if has_any(&["lookup address", "name resolution", "Name or service not known"]) {
        Some("check the host in the URL, and that this machine can look it up")
    } else if has_any(&["timed out", "did not answer", "unreachable", "No route to host"]) {
        Some("check the host and the port in the URL, and the firewalls on the way")
    } else if has_any(&["No such file or directory"]) {
        Some("check the path of the socket in the URL, and that the server runs")
    } else {
        None
    }
}

/// What is wrong with a file's content.
type Check = fn(&[u8]) -> Option<String>;

/// Describes the problem of the first file that cannot be used.
fn problem_of(files: &TlsFiles, names: Names) -> Option<String> {
    let checks: [(_, _, Check); 3] = [
        (&files.ca, names.ca, problem_of_authority),
        (&files.certificate, names.certificate, problem_of_certificate),
        (&files.key, names.key, problem_of_key),
    ];
    checks.into_iter().find_map(|(path, name, check)| {
        let path = path.as_deref()?;
        let problem = match std::fs::read(path) {
            Ok(content) => check(&content)?,
            Err(error) => cannot_be_read(&error),
        };
        Some(of_file(name, path, &problem))
    })
}

pub(crate) fn of_file(name: &str, path: &Path, problem: &str) -> String {
    format!("{name}: the file {} {problem}", path.display())
}

pub(crate) fn cannot_be_read(error: &std::io::Error) -> String {
    format!(
        "cannot be read ({error}): check the path, and that the user who runs Celeriac may read it"
    )
}

fn problem_of_authority(content: &[u8]) -> Option<String> {
    match expired_since(content) {
        Validity::None => Some(
            "has no certificate in it: write that of the server's authority into it, in PEM".into(),
        ),
        Validity::ExpiredSince(date) => Some(format!(
            "has an authority's certificate that has expired on {date}: put the new one in its place"
        )),
        Validity::Good => None,
    }
}

fn problem_of_certificate(content: &[u8]) -> Option<String> {
    match expired_since(content) {
        Validity::None => {
            Some("has no certificate in it: write the client's certificate into it, in PEM".into())
        }
        Validity::ExpiredSince(date) => Some(format!(
            "has a certificate that has expired on {date}: put a new one in its place"
        )),
        Validity::Good => None,
    }
}

fn problem_of_key(content: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(content);
    if text.contains("ENCRYPTED") {
        return Some(
            "is encrypted: write the key without a password, as `openssl pkey -in FILE -out NEW` \
             does, and let only Celeriac's user read it"
                .into(),
        );
    }
    let is_key = ["PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY"]
        .iter()
        .any(|label| text.contains(&format!("-----BEGIN {label}-----")));
    (!is_key).then(|| "has no private key in it: write the client's key into it, in PEM".to_owned())
}

enum Validity {
    None,
    Good,
    ExpiredSince(String),
}

/// Whether the file contains a certificate that has not expired.
fn expired_since(content: &[u8]) -> Validity {
    let now = Utc::now().timestamp();
    let mut validity = Validity::None;
    for pem in Pem::iter_from_buffer(content).flatten() {
        let Ok(certificate) = pem.parse_x509() else { continue };
        let end = certificate.validity().not_after;
        if end.timestamp() >= now {
            return Validity::Good;
        }
        let date = chrono::DateTime::from_timestamp(end.timestamp(), 0).unwrap_or_default();
        validity = Validity::ExpiredSince(date.format("%Y-%m-%d").to_string());
    }
    validity
}

/// Explains an error text of rustls 0.23.
fn tls_problem(names: Names, words: &str) -> Option<String> {
    let Names { ca, certificate, key } = names;
    // The texts leave out the time of verification, so that the same error always has the same
    // text.
    let has = |part| words.contains(part);
    let refused = |alert: &str| words.contains(&format!("received fatal alert: {alert}"));
    Some(if has("UnknownIssuer") {
        format!(
            "the server's certificate is signed by an authority that is not trusted here: name \
             the authority's certificate in {ca}"
        )
    } else if let Some((_, names)) = words.split_once("certificate not valid for name ") {
        format!(
            "the server's certificate is not for the host in the URL, {names}: write the name \
             that it is for, or give the server another certificate"
        )
    } else if has("invalid peer certificate: certificate expired") || has("certificate: Expired") {
        "the server's certificate has expired: renew it on the server".to_owned()
    } else if has("certificate not valid yet") || has("NotValidYet") {
        "the server's certificate is not valid yet: check the clocks of both machines".to_owned()
    } else if has("KeyMismatch") {
        format!("{key}: the key is not that of the certificate in {certificate}: name a pair")
    } else if refused("CertificateRequired") {
        format!("the server asks for a client's certificate: name it in {certificate} and {key}")
    } else if refused("CertificateExpired") {
        format!(
            "the server says that the client's certificate has expired: renew the one in \
             {certificate}"
        )
    } else if refused("UnknownCA") || refused("BadCertificate") || refused("CertificateUnknown") {
        format!(
            "the server does not trust the client's certificate: name one in {certificate} whose \
             authority the server knows"
        )
    } else if refused("HandshakeFailure") {
        format!(
            "the server refuses TLS as it is offered: it may ask for a client's certificate, \
             {certificate} and {key}, or for a version of TLS below 1.2"
        )
    } else if has("InvalidContentType") || has("corrupt message") {
        "the server does not speak TLS on this port: write the port where it does".to_owned()
    } else {
        return None;
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: Names = Names { ca: "the-ca", certificate: "the-cert", key: "the-key" };

    #[test]
    fn an_unusable_file_is_named_with_the_fix() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/auth/worthless-test-");
        let path = |name: &str| Some(format!("{folder}{name}.pem").into());
        let explain = |ca, certificate, key| {
            explain(&TlsFiles { ca, certificate, key }, NAMES, "something else")
        };
        let (certificate, key) = (path("worker-certificate"), path("worker-key"));
        let explained = explain(certificate.clone(), certificate.clone(), key.clone());
        assert_eq!(explained, "something else");
        for (files, expected) in [
            ((key.clone(), None, None), "has no certificate in it: write that of the server's"),
            ((None, key.clone(), key.clone()), "has no certificate in it: write the client's"),
            ((None, certificate.clone(), certificate.clone()), "has no private key in it: write"),
            ((None, path("expired-certificate"), key.clone()), "has a certificate that has exp"),
            ((None, certificate, path("nowhere")), "cannot be read (No such file or directory"),
        ] {
            let error = explain(files.0, files.1, files.2);
            assert!(error.contains(expected) && error.contains(": the file /"), "{error}");
        }
    }

    #[test]
    fn the_text_does_not_contain_the_time_of_verification() {
        let words = "invalid peer certificate: certificate expired: verification time 1 (UNIX)";
        let explained = tls_problem(NAMES, words).expect("it is known");
        assert!(!explained.contains("UNIX"), "{explained}");
    }
}
