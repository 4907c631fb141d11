//! Connecting to RabbitMQ, with or without TLS.

use std::path::Path;
use std::time::Duration;

use lapin::tcp::{OwnedIdentity, OwnedTLSConfig};
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use lapin::{Connection, ConnectionProperties};

use super::error::Error;
use crate::config::BrokerUrl;
use crate::diagnosis::{self, Causes, Names};

/// How long connecting may take.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// The largest frame, in bytes. This is the broker's default: the broker sends the headers of a
/// message in one frame, so a smaller limit would refuse headers that a publisher may send.
const FRAME_MAX: u32 = 128 * 1024;

/// Connects to the first of the brokers that answers.
pub(super) async fn connect(brokers: &[BrokerUrl], name: &str) -> Result<Connection, Error> {
    let mut failure = None;
    for broker in brokers {
        let tls = match tls_config(broker).await {
            Ok(tls) => tls,
            Err(error) => {
                failure = Some(error);
                continue;
            }
        };
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let runtime = lapin::runtime::default_runtime().map_err(Error::Lost)?;
        let connecting = Connection::connect_uri_with_config(uri(broker), properties, tls, runtime);
        match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(error)) => {
                let problem = problem(broker, &error);
                failure = Some(Error::Connect { broker: broker.to_string(), problem });
            }
            Err(_) => failure = Some(Error::Silent { broker: broker.to_string() }),
        }
    }
    Err(failure.unwrap_or(Error::Cancelled))
}

/// The names of the TLS files in Celery's broker URLs.
const TLS_NAMES: Names =
    Names { ca: "ssl_ca_certs", certificate: "ssl_certfile", key: "ssl_keyfile" };

/// Why the connection failed, and how to fix it.
fn problem(broker: &BrokerUrl, error: &lapin::Error) -> String {
    let words = Causes(error).to_string();
    let words = words.trim_start_matches("IO error: ");
    let advice = match error.kind() {
        // ACCESS_REFUSED
        lapin::ErrorKind::ProtocolError(error) if error.get_id() == 403 => {
            "check the user and the password in the broker URL; RabbitMQ accepts `guest` only from \
             its own machine"
        }
        // NOT_ALLOWED: the virtual host does not exist, or this user may not use it.
        lapin::ErrorKind::ProtocolError(error) if error.get_id() == 530 => {
            "correct the virtual host in the broker URL, or create it (`rabbitmqctl add_vhost`) \
             and give the user the permissions that docs/security.md lists"
        }
        _ => return diagnosis::explain(&broker.tls, TLS_NAMES, words),
    };
    format!("{words}: {advice}")
}

fn uri(broker: &BrokerUrl) -> AMQPUri {
    AMQPUri {
        scheme: if broker.is_tls { AMQPScheme::AMQPS } else { AMQPScheme::AMQP },
        authority: AMQPAuthority {
            userinfo: AMQPUserInfo {
                username: broker.user.clone(),
                password: broker.password.clone(),
            },
            host: broker.host.clone(),
            port: broker.port,
        },
        vhost: broker.vhost.clone(),
        query: AMQPQueryString {
            heartbeat: Some(broker.heartbeat),
            frame_max: Some(FRAME_MAX),
            ..AMQPQueryString::default()
        },
    }
}

async fn tls_config(broker: &BrokerUrl) -> Result<OwnedTLSConfig, Error> {
    let read = async |name: &str, path: &Path| {
        tokio::fs::read(path).await.map_err(|error| Error::Connect {
            broker: broker.to_string(),
            problem: diagnosis::of_file(name, path, &diagnosis::cannot_be_read(&error)),
        })
    };
    let mut tls = OwnedTLSConfig::default();
    if let Some(path) = &broker.tls.ca {
        let content = read(TLS_NAMES.ca, path).await?;
        tls.cert_chain = Some(String::from_utf8_lossy(&content).into_owned());
    }
    if let (Some(certificate), Some(key)) = (&broker.tls.certificate, &broker.tls.key) {
        let pem = read(TLS_NAMES.certificate, certificate).await?;
        let key = read(TLS_NAMES.key, key).await?;
        tls.identity = Some(OwnedIdentity::PKCS8 { pem, key });
    }
    Ok(tls)
}
