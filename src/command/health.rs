//! `celeriac health`: asks the daemon at `--listen` for its health.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use celeriac::config::Config;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use super::{print_line, printable};

/// The largest answer that is read, in bytes. The answer for 64 lanes with long reasons is smaller.
const MAX_ANSWER: usize = 1 << 20;

/// How many characters are shown of an answer without a reason.
const MAX_SHOWN: usize = 1000;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Asks whether the daemon is live (/live) instead of whether it is ready (/ready).
    #[arg(long)]
    live: bool,

    /// How long to wait for the answer, such as 500ms or 5s.
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "5s",
        value_parser = humantime::parse_duration
    )]
    timeout: Duration,
}

/// Asks the daemon, and fails if it is not ready or not live.
#[tokio::main(flavor = "current_thread")]
pub(crate) async fn run(arguments: &Arguments, config: &Config) -> anyhow::Result<ExitCode> {
    let Some(listen) = config.listen else {
        bail!(
            "listen: is not set, so the address of the daemon is not known: set --listen or \
             CELERIAC_LISTEN to the daemon's value, such as 127.0.0.1:9180"
        );
    };
    ensure!(
        listen.port() != 0,
        "listen: port 0 stands for any free port: give the port from the daemon's log line `listening`"
    );
    let word = if arguments.live { "live" } else { "ready" };
    let asked = tokio::time::timeout(arguments.timeout, ask(listen, word)).await;
    let (status, body) = asked.with_context(|| {
        let timeout = humantime::format_duration(arguments.timeout);
        format!("no answer from {listen} within {timeout}")
    })??;
    let answer = serde_json::from_slice::<Value>(&body).unwrap_or_default();
    match (status, answer[word].as_bool()) {
        (StatusCode::OK, Some(true)) => {
            print_line(word);
            Ok(ExitCode::SUCCESS)
        }
        (StatusCode::SERVICE_UNAVAILABLE, Some(false)) => {
            bail!("not {word}: {}", reason(&answer))
        }
        _ => bail!(
            "{listen} is not a daemon's: its /{word} answers {status}; give the --listen of the daemon"
        ),
    }
}

/// Requests `/{word}` and returns the status and the body.
async fn ask(listen: SocketAddr, word: &str) -> anyhow::Result<(StatusCode, Bytes)> {
    let stream = TcpStream::connect(&*addresses_to_try(listen)).await.with_context(|| {
        format!("nobody listens at {listen}: is the daemon running, and with this --listen?")
    })?;
    let broken = || format!("{listen} does not answer as the daemon does");
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.with_context(broken)?;
    // Errors of the connection also appear in the response.
    tokio::spawn(connection);
    let request = Request::get(format!("/{word}"))
        .header(HOST, listen.to_string())
        .body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await.with_context(broken)?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!(error)).with_context(broken)?;
    Ok((status, body.to_bytes()))
}

/// The addresses at which to reach a daemon with this `--listen`, in the order in which to try
/// them. A daemon that listens on all addresses is reached at the loopback address. `[::]` includes
/// IPv4, which is tried too because IPv6 may be disabled.
fn addresses_to_try(listen: SocketAddr) -> Vec<SocketAddr> {
    let hosts = match listen.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => vec![Ipv4Addr::LOCALHOST.into()],
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => {
            vec![Ipv6Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()]
        }
        _ => return vec![listen],
    };
    hosts.into_iter().map(|host| SocketAddr::new(host, listen.port())).collect()
}

/// Why the daemon is not ready or not live: the reasons of each lane's broker and database, or the
/// answer itself if it contains none.
fn reason(answer: &Value) -> String {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let mut reasons: Vec<_> = text(&answer["reason"]).into_iter().collect();
    for lane in answer["lanes"].as_array().into_iter().flatten() {
        let name = text(&lane["lane"]).unwrap_or_default();
        for part in ["broker", "database"] {
            if let Some(reason) = text(&lane[part]["reason"]) {
                reasons.push(format!("lane {name}, {part}: {reason}"));
            }
        }
    }
    if reasons.is_empty() {
        reasons.push(answer.to_string().chars().take(MAX_SHOWN).collect());
    }
    // Text from the network must not contain characters that move the cursor.
    printable(&reasons.join("; "))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_daemon_on_all_addresses_is_reached_at_the_loopback_address() {
        let addresses = |listen: &str| {
            let addresses = addresses_to_try(listen.parse().expect(listen));
            addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(addresses("0.0.0.0:9180"), "127.0.0.1:9180");
        assert_eq!(addresses("[::]:9180"), "[::1]:9180 127.0.0.1:9180");
        assert_eq!(addresses("192.0.2.1:80"), "192.0.2.1:80");
        assert_eq!(addresses("[2001:db8::1]:80"), "[2001:db8::1]:80");
    }

    #[test]
    fn the_reason_names_the_lane_and_the_connection() {
        let down = |reason: &str| json!({ "up": false, "reason": reason });
        let up = || json!({ "up": true });
        let lane = |name, broker, database| -> Value {
            json!({ "lane": name, "broker": broker, "database": database })
        };
        let answer = json!({ "ready": false, "lanes": [
            lane("1", up(), down("is\u{1b}[2J full")),
            lane("2", up(), up()),
            lane("events", down("gone"), up()),
        ] });
        let expected = "lane 1, database: is\u{FFFD}[2J full; lane events, broker: gone";
        assert_eq!(reason(&answer), expected);
        assert_eq!(reason(&json!({ "ready": false, "reason": "stopping" })), "stopping");
        let answer = json!({ "live": false, "lanes": ["x".repeat(5000)] });
        let shown = reason(&answer);
        assert!(shown.starts_with(r#"{"lanes":["xx"#) && shown.len() == MAX_SHOWN, "{shown}");
    }
}
