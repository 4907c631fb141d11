//! A lane: one connection to the broker and one to the database, both reopened after errors. Lanes
//! share only the metrics and the hints.

use std::convert::Infallible;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Level;

use super::settle::wait_for_store;
use super::{BatchPolicy, End, Reading};
use crate::broker::{Broker, BrokerError, BrokerErrorClass, Recovery, Session};
use crate::diagnosis::reason;
use crate::retry::Backoff;
use crate::store::{Store, StoreError};
use crate::telemetry::Lane;

/// After a session that lasted longer than this, the waits between attempts start again with the
/// shortest one.
const STABLE_SESSION: Duration = Duration::from_secs(30);

/// Logged when the database or the dead-letter queue has not been writable for long.
const LEFT_TO_BROKER: &str = "messages are left to the broker for now";

/// Runs one lane until `shutdown` is cancelled. It consumes messages only while the database can be
/// written to, and reconnects after it has lost the broker or the database.
pub async fn run<B: Broker>(
    broker: &mut B,
    store: &mut dyn Store,
    reading: Reading<'_>,
    policy: BatchPolicy,
    shutdown: &CancellationToken,
) {
    let telemetry = reading.lane;
    let mut backoff = Backoff::new();
    while let Some(mut session) = open(broker, store, telemetry, &mut backoff, shutdown).await {
        let opened_at = Instant::now();
        telemetry.begin_session();
        backoff.end("the broker and the database are available again");
        // Cancelled on shutdown, or when the session has reached its maximum age.
        let until = shutdown.child_token();
        let max_age = session.max_age();
        let (messages, acknowledger) = session.split();
        let end = tokio::select! {
            end = super::run(messages, reading, store, acknowledger, policy, &until) => end,
            never = cancel_after(max_age, &until) => match never {},
        };
        telemetry.end_session(end_reason(&end));
        session.close().await;
        if opened_at.elapsed() > STABLE_SESSION {
            backoff = Backoff::new();
        }
        let continues = match end {
            End::Stopped if until.is_cancelled() => {
                if shutdown.is_cancelled() {
                    return;
                }
                recover(broker, Ok(()), telemetry, &mut backoff, shutdown).await
            }
            End::Stopped => {
                let error = BrokerError::new(
                    BrokerErrorClass::Unavailable,
                    "the broker cancelled the consumer",
                );
                recover(broker, Err(&error), telemetry, &mut backoff, shutdown).await
            }
            End::BrokerLost(error) => {
                recover(broker, Err(&error), telemetry, &mut backoff, shutdown).await
            }
            End::StoreUnavailable(error, batch) => {
                telemetry.set_database(Err(reason(LEFT_TO_BROKER, &error)));
                let level = error.class.log_level();
                backoff.wait(level, LEFT_TO_BROKER, &error, shutdown).await.is_continue()
                    && wait_for_store(store, &batch, telemetry, &mut backoff, shutdown).await
            }
            End::DeadLettersFailed(error) => {
                backoff.wait(Level::WARN, LEFT_TO_BROKER, &error, shutdown).await.is_continue()
            }
        };
        if !continues {
            return;
        }
    }
}

/// Does what [`Broker::recover`] decides after a session. Returns whether the lane continues.
async fn recover<B: Broker>(
    broker: &mut B,
    ended: Result<(), &BrokerError>,
    telemetry: &Lane,
    backoff: &mut Backoff,
    shutdown: &CancellationToken,
) -> bool {
    match broker.recover(ended).await {
        Recovery::Reopen => true,
        Recovery::ReopenWithoutEvent => {
            telemetry.skip_event();
            tracing::warn!("an event with properties that cannot be read was left out");
            true
        }
        Recovery::Wait { problem, error } => {
            backoff.wait(Level::WARN, problem, &error, shutdown).await.is_continue()
        }
    }
}

/// Why the queue is not consumed after a session, for the health report.
fn end_reason(end: &End) -> String {
    match end {
        End::Stopped => "the session has ended".to_owned(),
        End::BrokerLost(error) => error.to_string(),
        End::StoreUnavailable(..) => "not consumed until the database takes writes".to_owned(),
        End::DeadLettersFailed(error) => reason("dead letters cannot be written", error),
    }
}

/// Asks the pipeline to stop when the session reaches its maximum age, if it has one.
async fn cancel_after(max_age: Option<Duration>, until: &CancellationToken) -> Infallible {
    if let Some(max_age) = max_age {
        tokio::time::sleep(max_age).await;
        until.cancel();
    }
    std::future::pending().await
}

/// Connects to the database and then to the broker, so that messages are consumed only when they
/// can be stored. Returns `None` on shutdown.
async fn open<B: Broker>(
    broker: &mut B,
    store: &mut dyn Store,
    telemetry: &Lane,
    backoff: &mut Backoff,
    shutdown: &CancellationToken,
) -> Option<B::Session> {
    while !shutdown.is_cancelled() {
        telemetry.record_progress();
        let opened = async {
            store.prepare().await?;
            telemetry.set_database(Ok(()));
            Ok::<_, OpenError>(broker.open().await?)
        };
        let opened = tokio::select! {
            opened = opened => opened,
            () = shutdown.cancelled() => return None,
        };
        let waited = match opened {
            Ok(session) => return Some(session),
            Err(OpenError::Store(error)) => {
                let problem = "the database is not ready";
                telemetry.count_error(error.class);
                telemetry.set_database(Err(reason(problem, &error)));
                backoff.wait(error.class.log_level(), problem, &error, shutdown).await
            }
            Err(OpenError::Broker(error)) => {
                let problem = "the broker is not ready";
                telemetry.end_session(reason(problem, &error));
                backoff.wait(Level::WARN, problem, &error, shutdown).await
            }
        };
        if waited.is_break() {
            return None;
        }
    }
    None
}

enum OpenError {
    Store(StoreError),
    Broker(BrokerError),
}

impl From<StoreError> for OpenError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<BrokerError> for OpenError {
    fn from(error: BrokerError) -> Self {
        Self::Broker(error)
    }
}
