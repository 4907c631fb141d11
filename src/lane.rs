//! A lane: the whole path once, with its own connection to the broker and to the database. Lanes
//! share nothing.

use std::convert::Infallible;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::config::{Config, Events};
use crate::decode::Kind;
use crate::pipeline::{self, End, Pace, Reading};
use crate::source::{Session, SourceError};
use crate::store::{Store, StoreError};
use crate::telemetry::{Causes, Lane, reason};
use crate::unreadable;

/// A session that lasted so long was a good one: the waits begin anew after it.
const GOOD_SESSION: Duration = Duration::from_secs(30);

/// How long messages are taken one by one after one came whose properties lapin cannot read. The
/// connection is lost with each delivery of such a message, and the broker counts the delivery of
/// every message that was on its way: so that only one is, and in the end that one goes to the
/// dead-letter queue by the limit on the results queue.
const CAREFUL_SESSION: Duration = Duration::from_secs(10);

/// After so many careful sessions the queue has no delivery limit, or another one than ours.
const MAX_CAREFUL_SESSIONS: u32 = 200;

/// The wait before a careful session.
const CAREFUL_DELAY: Duration = Duration::from_millis(20);

/// Runs one lane until `shutdown` is cancelled. It takes messages only while the database can be
/// written, and outlives the loss of either side.
///
/// It takes the events where they are given, else the results.
pub async fn run<S: Store>(
    config: &Config,
    events: Option<&Events>,
    mut store: S,
    telemetry: &Lane,
    shutdown: &CancellationToken,
) {
    let queue = events.map_or(&config.results_queue, |events| &events.queue);
    let pace = Pace { limits: config.limits, max_wait: config.max_wait };
    let mut backoff = Backoff::new();
    let mut is_careful = false;
    let mut careful_sessions = 0;
    loop {
        let prefetch = if is_careful { 1 } else { config.prefetch };
        let open = open(config, events, prefetch, &mut store, telemetry, &mut backoff, shutdown);
        let Some(mut session) = open.await else { return };
        let opened_at = Instant::now();
        telemetry.begin_session();
        backoff.end("both sides are there again");
        if !is_careful {
            tracing::info!(queue, "consuming");
        }
        let until = shutdown.child_token();
        let (messages, acknowledger) = session.split();
        let kind = if events.is_some() { Kind::Events } else { Kind::Results };
        let reading = Reading { decoder: &config.decoder, kind, lane: telemetry };
        let end = tokio::select! {
            end = pipeline::run(messages, reading, &mut store, acknowledger, pace, &until) => end,
            never = end_careful_session(is_careful, &until) => match never {},
        };
        telemetry.end_session(end_reason(&end));
        session.close().await;
        if opened_at.elapsed() > GOOD_SESSION {
            backoff = Backoff::new();
        }
        let goes_on = match end {
            // Nobody asked the messages to end.
            End::Stopped if !until.is_cancelled() => {
                let problem = "the session with the broker has ended";
                backoff.wait(problem, &SourceError::Cancelled, shutdown).await.is_continue()
            }
            End::Stopped => {
                is_careful = false;
                careful_sessions = 0;
                !shutdown.is_cancelled()
            }
            End::SourceLost(error) if error.is_unreadable() => {
                if !is_careful {
                    tracing::warn!(
                        error = %Causes(&error),
                        "a message has properties that cannot be read: messages are taken one by \
                         one until the broker gives it up"
                    );
                }
                let was_careful = std::mem::replace(&mut is_careful, true);
                careful_sessions += 1;
                if was_careful && events.is_some() {
                    discard_event(config, queue, telemetry, &mut backoff, shutdown).await
                } else if careful_sessions <= MAX_CAREFUL_SESSIONS {
                    tokio::time::sleep(CAREFUL_DELAY).await;
                    true
                } else {
                    let problem = "a message that cannot be read stays in the queue, which has no \
                                   delivery limit: take the message out, or let it expire; on a \
                                   quorum queue set the policy `delivery-limit` with a \
                                   dead-letter queue";
                    backoff.wait(problem, &error, shutdown).await.is_continue()
                }
            }
            End::SourceLost(error) => {
                let problem = "the session with the broker has ended";
                backoff.wait(problem, &error, shutdown).await.is_continue()
            }
            End::StoreUnfit(error, batch) => {
                let problem = "messages are left to the broker for now";
                telemetry.set_database(Err(reason(problem, &error)));
                backoff.wait(problem, &error, shutdown).await.is_continue()
                    && pipeline::wait_for_store(
                        &mut store,
                        &batch,
                        telemetry,
                        &mut backoff,
                        shutdown,
                    )
                    .await
            }
            End::DeadLettersUnfit(error) => {
                let problem = "messages are left to the broker for now";
                backoff.wait(problem, &error, shutdown).await.is_continue()
            }
        };
        if !goes_on {
            return;
        }
    }
}

/// Leaves out the event that stands at the head of its queue and cannot be read: a classic queue never
/// gives it up. Says whether to go on.
async fn discard_event(
    config: &Config,
    queue: &str,
    telemetry: &Lane,
    backoff: &mut Backoff,
    shutdown: &CancellationToken,
) -> bool {
    match unreadable::discard_head(&config.brokers, queue).await {
        Ok(true) => {
            telemetry.skip_event();
            tracing::warn!(queue, "an event with properties that cannot be read was left out");
            true
        }
        Ok(false) => true,
        Err(error) => {
            let problem = "an event with properties that cannot be read is still in its queue";
            backoff.wait(problem, &error, shutdown).await.is_continue()
        }
    }
}

/// Why the queue is not consumed after a session.
fn end_reason(end: &End) -> String {
    match end {
        End::Stopped => "the session has ended".to_owned(),
        End::SourceLost(error) => Causes(error).to_string(),
        End::StoreUnfit(..) => "left alone until the database takes writes".to_owned(),
        End::DeadLettersUnfit(error) => reason("dead letters cannot be written", error),
    }
}

/// Ends a careful session after a while by asking the pipeline to stop.
async fn end_careful_session(is_careful: bool, until: &CancellationToken) -> Infallible {
    if is_careful {
        tokio::time::sleep(CAREFUL_SESSION).await;
        until.cancel();
    }
    std::future::pending().await
}

/// Opens both sides, the database first: messages are taken only when they can be stored. `None`
/// when it is time to stop.
async fn open<S: Store>(
    config: &Config,
    events: Option<&Events>,
    prefetch: u16,
    store: &mut S,
    telemetry: &Lane,
    backoff: &mut Backoff,
    shutdown: &CancellationToken,
) -> Option<Session> {
    while !shutdown.is_cancelled() {
        telemetry.turn();
        let opened = async {
            store.prepare().await?;
            telemetry.set_database(Ok(()));
            Ok::<_, OpenError>(Session::open(config, events, prefetch).await?)
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
                backoff.wait(problem, &error, shutdown).await
            }
            Err(OpenError::Source(error)) => {
                let problem = "the broker is not ready";
                telemetry.end_session(reason(problem, &error));
                backoff.wait(problem, &error, shutdown).await
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
    Source(SourceError),
}

impl From<StoreError> for OpenError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<SourceError> for OpenError {
    fn from(error: SourceError) -> Self {
        Self::Source(error)
    }
}
