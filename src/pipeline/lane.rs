//! A lane: one connection to the broker and one to the database, opened, watched and opened again.
//! Lanes share nothing.

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

/// A session that lasted so long was a good one: the waits begin anew after it.
const GOOD_SESSION: Duration = Duration::from_secs(30);

/// What is said while the database or the dead-letter queue cannot be written for long.
const LEFT_TO_BROKER: &str = "messages are left to the broker for now";

/// Runs one lane until `shutdown` is cancelled. It takes messages only while the database can be
/// written, and outlives the loss of either side.
pub async fn run<B: Broker, S: Store>(
    broker: &mut B,
    store: &mut S,
    reading: Reading<'_>,
    policy: BatchPolicy,
    shutdown: &CancellationToken,
) {
    let telemetry = reading.lane;
    let mut backoff = Backoff::new();
    while let Some(mut session) = open(broker, store, telemetry, &mut backoff, shutdown).await {
        let opened_at = Instant::now();
        telemetry.begin_session();
        backoff.end("both sides are there again");
        // Cancelled when it is time to stop, or when the session has lasted as long as it may.
        let until = shutdown.child_token();
        let max_age = session.max_age();
        let (messages, acknowledger) = session.split();
        let end = tokio::select! {
            end = super::run(messages, reading, store, acknowledger, policy, &until) => end,
            never = cancel_after(max_age, &until) => match never {},
        };
        telemetry.end_session(end_reason(&end));
        session.close().await;
        if opened_at.elapsed() > GOOD_SESSION {
            backoff = Backoff::new();
        }
        let goes_on = match end {
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
        if !goes_on {
            return;
        }
    }
}

/// Does what the broker asks for after a session. Says whether to go on.
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

/// Why the queue is not consumed after a session.
fn end_reason(end: &End) -> String {
    match end {
        End::Stopped => "the session has ended".to_owned(),
        End::BrokerLost(error) => error.to_string(),
        End::StoreUnavailable(..) => "not consumed until the database takes writes".to_owned(),
        End::DeadLettersFailed(error) => reason("dead letters cannot be written", error),
    }
}

/// Asks the pipeline to stop after a while, where the session's age is limited.
async fn cancel_after(max_age: Option<Duration>, until: &CancellationToken) -> Infallible {
    if let Some(max_age) = max_age {
        tokio::time::sleep(max_age).await;
        until.cancel();
    }
    std::future::pending().await
}

/// Opens both sides, the database first: messages are taken only when they can be stored. `None`
/// when it is time to stop.
async fn open<B: Broker, S: Store>(
    broker: &mut B,
    store: &mut S,
    telemetry: &Lane,
    backoff: &mut Backoff,
    shutdown: &CancellationToken,
) -> Option<B::Session> {
    while !shutdown.is_cancelled() {
        telemetry.turn();
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
