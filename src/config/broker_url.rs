//! The broker URL, parsed as kombu parses it (`kombu/utils/url.py`, `url_to_parts`, 5.7.0).

use std::fmt;

use percent_encoding::percent_decode_str;
use url::Url;

use crate::diagnosis::TlsFiles;

/// The address of a broker and the login. Its `Debug` and `Display` never show the password.
#[derive(Clone, PartialEq, Eq)]
pub struct BrokerUrl {
    /// The host's name or address.
    pub host: String,
    /// The TCP port.
    pub port: u16,
    /// The user's name.
    pub user: String,
    /// The user's password.
    pub password: String,
    /// The virtual host.
    pub vhost: String,
    /// Whether the connection uses TLS.
    pub is_tls: bool,
    /// The files for TLS.
    pub tls: TlsFiles,
    /// The heartbeat interval in seconds; 0 leaves the choice to the broker.
    pub heartbeat: u16,
    /// The names of parameters that Celeriac ignores.
    pub ignored: Vec<String>,
}

/// The default heartbeat interval, in seconds. A broker that disappears without closing the
/// connection is noticed after twice this time.
const HEARTBEAT: u16 = 20;

impl BrokerUrl {
    /// Parses a list of URLs separated by `;`.
    ///
    /// # Errors
    ///
    /// Returns a text that says what is wrong and how to fix it, without repeating the URL.
    pub fn parse_list(urls: &str) -> Result<Vec<Self>, String> {
        let urls = urls.split(';').map(str::trim).filter(|url| !url.is_empty());
        let brokers = urls.map(Self::parse).collect::<Result<Vec<_>, _>>()?;
        if brokers.is_empty() {
            return Err("is empty: write for example amqp://user:password@host:5672//".to_owned());
        }
        Ok(brokers)
    }

    fn parse(text: &str) -> Result<Self, String> {
        const EXAMPLE: &str = "write for example amqp://user:password@host:5672/vhost";
        let (scheme, rest) =
            text.split_once("://").ok_or_else(|| format!("has no scheme: {EXAMPLE}"))?;
        let is_tls = match scheme {
            "amqp" | "pyamqp" | "librabbitmq" => false,
            "amqps" => true,
            _ => {
                return Err(format!(
                    "{scheme}:// is not RabbitMQ, which results are read from: {EXAMPLE}"
                ));
            }
        };
        let url = Url::parse(&format!("amqp://{rest}"))
            .map_err(|error| format!("is not a URL ({error}): {EXAMPLE}"))?;
        super::parse::check_login(&url)?;
        let decoded = |text: &str| {
            percent_decode_str(text)
                .decode_utf8()
                .map(std::borrow::Cow::into_owned)
                .map_err(|_| "has an escape that is not UTF-8: encode it with %XX".to_owned())
        };
        let or = |text: String, default: &str| {
            if text.is_empty() { default.to_owned() } else { text }
        };
        let path = url.path();
        let mut broker = Self {
            host: or(
                decoded(url.host_str().unwrap_or_default().trim_matches(['[', ']']))?,
                "localhost",
            ),
            port: url.port().unwrap_or(if is_tls { 5671 } else { 5672 }),
            user: or(decoded(url.username())?, "guest"),
            password: or(decoded(url.password().unwrap_or_default())?, "guest"),
            vhost: or(decoded(path.strip_prefix('/').unwrap_or(path))?, "/"),
            is_tls,
            tls: TlsFiles::default(),
            heartbeat: HEARTBEAT,
            ignored: Vec::new(),
        };
        if broker.vhost.len() > 255 {
            return Err("has a virtual host of more than 255 bytes: write its real name".to_owned());
        }
        if url.fragment().is_some() {
            return Err("has a `#`, after which everything would be cut off: write %23".to_owned());
        }
        for (name, value) in url.query_pairs() {
            match &*name {
                "heartbeat" => {
                    broker.heartbeat = value.parse().map_err(|_| {
                        "the heartbeat is not a number of seconds: write for example \
                         ?heartbeat=30"
                            .to_owned()
                    })?;
                }
                "ssl_ca_certs" | "cacertfile" => broker.tls.ca = Some(value.as_ref().into()),
                "ssl_certfile" | "certfile" => {
                    broker.tls.certificate = Some(value.as_ref().into());
                }
                "ssl_keyfile" | "keyfile" => broker.tls.key = Some(value.as_ref().into()),
                "ssl_cert_reqs" if !matches!(&*value, "required" | "CERT_REQUIRED") => {
                    return Err("the server's certificate is always checked: write \
                                ssl_cert_reqs=required and name its authority in ssl_ca_certs"
                        .to_owned());
                }
                "ssl_cert_reqs" => {}
                _ => broker.ignored.push(name.into_owned()),
            }
        }
        if broker.tls.certificate.is_some() != broker.tls.key.is_some() {
            return Err("a client's certificate needs its key, and a key its certificate: write \
                        both ssl_certfile and ssl_keyfile"
                .to_owned());
        }
        if !is_tls && broker.tls != TlsFiles::default() {
            return Err("has files for TLS but does not use it: write amqps://".to_owned());
        }
        Ok(broker)
    }
}

impl fmt::Display for BrokerUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_tls { "amqps" } else { "amqp" };
        let Self { user, host, port, vhost, .. } = self;
        write!(formatter, "{scheme}://{user}:***@{host}:{port}/{vhost}")
    }
}

impl fmt::Debug for BrokerUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(url: &str) -> (String, u16, String, String, String) {
        let broker = BrokerUrl::parse(url).expect("the URL is good");
        (broker.host, broker.port, broker.user, broker.password, broker.vhost)
    }

    fn owned(parts: (&str, u16, &str, &str, &str)) -> (String, u16, String, String, String) {
        (parts.0.into(), parts.1, parts.2.into(), parts.3.into(), parts.4.into())
    }

    #[test]
    fn urls_are_read_as_kombu_reads_them() {
        for (url, expected) in [
            ("amqp://", ("localhost", 5672, "guest", "guest", "/")),
            ("amqp://broker", ("broker", 5672, "guest", "guest", "/")),
            ("amqp://broker/", ("broker", 5672, "guest", "guest", "/")),
            ("amqp://broker//", ("broker", 5672, "guest", "guest", "/")),
            ("amqp://broker/%2F", ("broker", 5672, "guest", "guest", "/")),
            ("amqp://broker/%2f", ("broker", 5672, "guest", "guest", "/")),
            ("amqp://broker//team", ("broker", 5672, "guest", "guest", "/team")),
            ("pyamqp://u:p@broker:1/shop", ("broker", 1, "u", "p", "shop")),
            ("amqp://u%40x:p%2F%3a@broker/a%20b", ("broker", 5672, "u@x", "p/:", "a b")),
            ("amqps://broker", ("broker", 5671, "guest", "guest", "/")),
            ("amqp://[::1]:5673/x", ("::1", 5673, "guest", "guest", "x")),
        ] {
            assert_eq!(parts(url), owned(expected), "{url}");
        }
    }

    #[test]
    fn a_list_keeps_its_order() {
        let hosts: Vec<_> = BrokerUrl::parse_list("amqp://one;amqp://two ; amqp://three;")
            .expect("the URLs are good")
            .into_iter()
            .map(|broker| broker.host)
            .collect();
        assert_eq!(hosts, ["one", "two", "three"]);
    }

    #[test]
    fn known_parameters_are_used_and_others_are_listed() {
        let broker = BrokerUrl::parse("amqp://h/?heartbeat=7&login_method=PLAIN").expect("good");
        assert_eq!((broker.heartbeat, broker.ignored), (7, vec!["login_method".to_owned()]));
        let broker = BrokerUrl::parse("amqps://h/?ssl_ca_certs=/ca.pem").expect("good");
        assert_eq!(broker.tls.ca, Some("/ca.pem".into()));
    }

    #[test]
    fn errors_name_the_fix_and_not_the_password() {
        for (url, fix) in [
            ("", "write for example amqp://"),
            ("localhost:5672", "write for example amqp://"),
            ("redis://:secret@localhost/0", "redis:// is not RabbitMQ"),
            ("amqp://u:secret@h:port/", "write for example amqp://"),
            ("amqp://u:secret@h/?heartbeat=soon", "?heartbeat=30"),
            ("amqp://u:secret@h/team#1", "write %23"),
            ("amqp://u:1/secret@h/team", "`/`, `?` and `#` of a password as %2F, %3F and %23"),
            ("amqp://u:1?secret@h/team", "`/`, `?` and `#` of a password as %2F, %3F and %23"),
            ("amqps://u:secret@h/?ssl_cert_reqs=none", "ssl_cert_reqs=required"),
            ("amqps://u:secret@h/?ssl_certfile=a", "both ssl_certfile and ssl_keyfile"),
            ("amqp://u:secret@h/?ssl_ca_certs=a", "write amqps://"),
        ] {
            let error = BrokerUrl::parse_list(url).expect_err(url);
            assert!(error.contains(fix), "{url}: {error}");
            assert!(!error.contains("secret"), "{url}: {error}");
        }
    }

    #[test]
    fn display_and_debug_hide_the_password() {
        let broker = BrokerUrl::parse("amqp://u:secret@h/v").expect("the URL is good");
        assert_eq!(broker.to_string(), "amqp://u:***@h:5672/v");
        assert_eq!(format!("{broker:?}"), broker.to_string());
    }
}
