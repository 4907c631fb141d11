//! Serves metrics and health over HTTP: `/metrics`, `/live` and `/ready`.
//!
//! Each connection serves one small request within a time limit. The number of connections is
//! limited: a new connection closes the oldest one, so that a client that keeps connections open
//! does not block other clients.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::telemetry::{Health, Telemetry};

/// The most connections at a time.
const MAX_CONNECTIONS: usize = 32;

/// How long a connection may last.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);

/// The largest request head, in bytes, and the most headers in it.
const MAX_HEAD: usize = 16 * 1024;
const MAX_HEADERS: usize = 64;

/// The wait after a connection could not be accepted, for example because too many files are open.
const PAUSE: Duration = Duration::from_millis(100);

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// An address that is listened on.
pub struct Listener {
    socket: TcpListener,
}

/// The address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen on {address}: choose another address or port, or stop the program that uses it"
)]
pub struct BindError {
    address: SocketAddr,
    #[source]
    source: io::Error,
}

impl Listener {
    /// Binds the address.
    ///
    /// # Errors
    ///
    /// When the address is in use or is not an address of this machine.
    pub async fn bind(address: SocketAddr) -> Result<Self, BindError> {
        let failed = |source| BindError { address, source };
        let socket = TcpListener::bind(address).await.map_err(failed)?;
        let address = socket.local_addr().map_err(failed)?;
        tracing::info!(%address, "listening");
        Ok(Self { socket })
    }

    /// Answers requests for as long as it is polled. After `shutdown` is cancelled, it answers that
    /// the process is not ready.
    pub async fn serve(self, telemetry: Arc<Telemetry>, shutdown: CancellationToken) {
        let mut connections = VecDeque::new();
        loop {
            let Ok((stream, _)) = self.socket.accept().await else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            connections.retain(|connection: &tokio::task::AbortHandle| !connection.is_finished());
            if connections.len() == MAX_CONNECTIONS
                && let Some(oldest) = connections.pop_front()
            {
                oldest.abort();
            }
            let connection = serve_connection(stream, Arc::clone(&telemetry), shutdown.clone());
            connections.push_back(tokio::spawn(connection).abort_handle());
        }
    }
}

/// Serves one request.
async fn serve_connection(
    stream: TcpStream,
    telemetry: Arc<Telemetry>,
    shutdown: CancellationToken,
) {
    let service = service_fn(|request: Request<Incoming>| {
        let response = answer(request.method(), request.uri().path(), &telemetry, &shutdown);
        async { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        .timer(TokioTimer::new())
        .header_read_timeout(CONNECTION_TIMEOUT / 2)
        .serve_connection(TokioIo::new(stream), service);
    // Errors concern only the client.
    let _ = tokio::time::timeout(CONNECTION_TIMEOUT, connection).await;
}

fn answer(
    method: &Method,
    path: &str,
    telemetry: &Telemetry,
    shutdown: &CancellationToken,
) -> Response<Full<Bytes>> {
    let (status, content_type, body) = match path {
        "/metrics" | "/live" | "/ready" if method != Method::GET && method != Method::HEAD => {
            (StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET and HEAD are answered\n".to_owned())
        }
        "/metrics" => telemetry.exposition().map_or_else(
            |_| {
                let problem = "the metrics cannot be written as text\n".to_owned();
                (StatusCode::INTERNAL_SERVER_ERROR, TEXT, problem)
            },
            |exposition| (StatusCode::OK, OPEN_METRICS, exposition),
        ),
        "/live" => health_answer(telemetry.liveness()),
        "/ready" if shutdown.is_cancelled() => {
            let body = "{\"ready\":false,\"reason\":\"stopping\"}\n".to_owned();
            (StatusCode::SERVICE_UNAVAILABLE, JSON, body)
        }
        "/ready" => health_answer(telemetry.readiness()),
        _ => (StatusCode::NOT_FOUND, TEXT, "there are /metrics, /live and /ready\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(content_type));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
    }
    response
}

fn health_answer(health: Health) -> (StatusCode, &'static str, String) {
    let status = if health.is_good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, JSON, health.body)
}
