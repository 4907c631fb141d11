//! The certificates of Celery's `auth` serializer, read once, at the start.

use std::path::{Path, PathBuf};

use chrono::Utc;
use glob::MatchOptions;

use super::error::ConfigError;
use crate::decode::{Certificate, CertificateStore, Digest, Security};

/// As in Python's `glob`, a wildcard does not match `/` or a leading dot.
const PYTHON_GLOB: MatchOptions = MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    require_literal_leading_dot: true,
};

/// Reads the certificates and the digest that the settings name.
pub(super) fn read(
    cert_store: Option<&str>,
    digest: Option<&str>,
) -> Result<Security, ConfigError> {
    let certificates = cert_store.map_or_else(|| Ok(CertificateStore::default()), store)?;
    let digest = match digest {
        None => Digest::default(),
        Some(name) => Digest::parse(name.trim()).ok_or_else(|| {
            ConfigError::new(
                "security-digest",
                format!("{name:?} is not supported: write sha224, sha256, sha384 or sha512"),
            )
        })?,
    };
    Ok(Security { certificates, digest })
}

/// Reads the certificates that match a pattern, or all certificates in a folder, as Celery does
/// (`FSCertStore` in `celery/security/certificate.py`, 5.7.0). An expired certificate is an error,
/// and so are two with the same id.
fn store(pattern: &str) -> Result<CertificateStore, ConfigError> {
    const SETTING: &str = "security-cert-store";
    let all_in_folder = Path::new(pattern).join("*");
    let paths = if Path::new(pattern).is_dir() { all_in_folder.to_str() } else { Some(pattern) };
    let paths = paths.and_then(|pattern| glob::glob_with(pattern, PYTHON_GLOB).ok());
    let paths = paths.ok_or_else(|| {
        ConfigError::new(
            SETTING,
            format!("{pattern:?} is not a pattern: write for example /etc/ssl/celery/*.pem"),
        )
    })?;
    let mut store = CertificateStore::default();
    let mut is_empty = true;
    for path in paths {
        let path: PathBuf = path.map_err(|error| {
            of_file(SETTING, error.path(), &format!("cannot be read: {}", error.error()))
        })?;
        if !store.add(read_certificate(SETTING, &path)?) {
            let problem = "has a certificate that another file has too: remove one of them";
            return Err(of_file(SETTING, &path, problem));
        }
        is_empty = false;
    }
    if is_empty {
        return Err(ConfigError::new(
            SETTING,
            format!("there is no file {pattern:?}: name the workers' certificates"),
        ));
    }
    Ok(store)
}

fn read_certificate(setting: &str, path: &Path) -> Result<Certificate, ConfigError> {
    let certificate = Certificate::from_pem(&file(setting, path)?)
        .map_err(|problem| of_file(setting, path, problem))?;
    if certificate.has_expired(Utc::now()) {
        let problem = "has a certificate that has expired: put a new one in its place";
        return Err(of_file(setting, path, problem));
    }
    Ok(certificate)
}

fn file(setting: &str, path: &Path) -> Result<Vec<u8>, ConfigError> {
    std::fs::read(path).map_err(|error| of_file(setting, path, &format!("cannot be read: {error}")))
}

fn of_file(setting: &str, path: &Path, problem: &str) -> ConfigError {
    ConfigError::new(setting, format!("the file {} {problem}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The path of a file that `tests/data/auth/make_envelopes.py` created.
    fn test_file(name: &str) -> String {
        format!("{}/tests/data/auth/worthless-test-{name}.pem", env!("CARGO_MANIFEST_DIR"))
    }

    #[test]
    fn certificates_are_read_as_celery_names_them() {
        let security = read(Some(&test_file("w*-certificate")), Some(" SHA512"));
        let shown = format!("{:?}", security.expect("all are good"));
        let id = "Celeriac for tests only 1427247692705959881058285969449495136382746631";
        assert_eq!(
            shown,
            format!(
                "Security {{ certificates: CertificateStore({{{id:?}: Certificate({id:?})}}), \
                 digest: Sha512 }}"
            )
        );
    }

    #[test]
    fn a_folder_stands_for_all_files_in_it_that_are_not_hidden() {
        let folder = std::env::temp_dir().join(format!("celeriac-certs-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("writable");
        std::fs::copy(test_file("worker-certificate"), folder.join("worker.crt")).expect("copied");
        std::fs::write(folder.join(".hidden"), "nothing").expect("writable");
        let store = store(folder.to_str().expect("text"));
        std::fs::remove_dir_all(&folder).expect("just test_file");
        assert!(format!("{:?}", store.expect("one certificate")).contains("for tests only 14"));
    }

    #[test]
    fn errors_name_the_file_and_the_fix() {
        let store = |pattern: &str| {
            let pattern =
                if pattern.contains('/') { pattern.to_owned() } else { test_file(pattern) };
            read(Some(&pattern), None).expect_err("refused").to_string()
        };
        for (error, expected) in [
            (store("nobody"), "nobody.pem\": name the workers' certificates"),
            (store("/[a"), "is not a pattern: write for example /etc/ssl/celery/*.pem"),
            (store("worker-key"), "worker-key.pem is not a certificate: write it in PEM"),
            (store("ec-certificate"), "ec-certificate.pem has a certificate whose key is not RSA"),
            (store("expired-certificate"), "expired-certificate.pem has a certificate that has"),
            (store("[tw]*-certificate"), "worker-certificate.pem has a certificate that another"),
        ] {
            assert!(error.contains(expected), "{error}");
        }
        let digest = read(None, Some("md5")).expect_err("refused").to_string();
        assert!(digest.starts_with("security-digest: \"md5\" is not supported: write"), "{digest}");
    }
}
