//! The main loop of a lane. It handles arriving messages, batches that are due, finished writes and
//! the shutdown.
//!
//! At most one write is in progress, and the next batch fills in the meantime. When that batch is
//! full too, no more messages are taken from the stream, and the broker stops delivering at the
//! prefetch limit.

pub mod batch;
mod end;
mod intake;
pub mod lane;
mod settle;

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::{FutureExt, Stream, StreamExt, future::Fuse};
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;

use self::batch::{Batch, BatchLimits};
pub use self::end::End;
pub use self::intake::Reading;
use self::intake::take;
pub use self::settle::wait_for_store;
use self::settle::{no_answer, settle};
use crate::broker::{Acknowledge, BrokerError};
use crate::config::Config;
use crate::diagnosis::reason;
use crate::message::Message;
use crate::store::Store;
use crate::telemetry::Lane;

/// How large batches may be and how long they may collect messages.
#[derive(Clone, Copy, Debug)]
pub struct BatchPolicy {
    /// The limits of a batch.
    pub limits: BatchLimits,
    /// How long a batch may collect messages while many arrive.
    pub max_wait: Duration,
}

impl BatchPolicy {
    /// The policy of the settings.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        let limits = BatchLimits { max_rows: config.max_rows, max_bytes: config.max_bytes };
        Self { limits, max_wait: config.max_wait }
    }
}

/// A batch waits for more messages only if this many have arrived within `max_wait`. So single
/// results are written at once, and few large batches are written under load. Messages about chords
/// never wait and do not count.
const BUSY_MESSAGES: usize = 8;

/// How often an idle lane checks that the database answers.
const CHECK_INTERVAL: Duration = Duration::from_secs(15);

/// How long the database may take to answer this check.
const CHECK_TIMEOUT: Duration = Duration::from_secs(5);

/// Merges messages into batches, stores the batches, and acknowledges or dead-letters the messages.
/// It ends when the stream ends, when the database has not been writable for too long, or when
/// `shutdown` is cancelled.
pub async fn run<A: Acknowledge>(
    mut messages: impl Stream<Item = Result<Message, BrokerError>> + Unpin,
    reading: Reading<'_>,
    store: &mut dyn Store,
    acknowledger: &A,
    policy: BatchPolicy,
    shutdown: &CancellationToken,
) -> End {
    let catalog = match store.prepare().await {
        Ok(catalog) => catalog.clone(),
        Err(error) => {
            reading.lane.count_error(error.class);
            return End::StoreUnavailable(error, Batch::default());
        }
    };
    let mut batch = Batch::new(reading.decoder.law);
    // When the first message of the batch arrived, and when the last write began and ended.
    let mut begun_at = None;
    let mut write_began_at = Instant::now();
    let mut written_at: Option<Instant> = None;
    // When the last messages arrived, at most `BUSY_MESSAGES` of them.
    let mut arrivals = VecDeque::with_capacity(BUSY_MESSAGES);
    let mut messages_ended = false;
    let mut is_stopping = false;
    // The store, while no write is in progress.
    let mut idle = Some(store);
    let mut write = std::pin::pin!(Fuse::terminated());
    // The loop runs at least this often, so that the health report can tell a stuck lane from an
    // idle one.
    let mut ticks = interval_at(Instant::now() + CHECK_INTERVAL, CHECK_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);

    loop {
        reading.lane.record_progress();
        let busy_since = arrivals.front().filter(|_| arrivals.len() == BUSY_MESSAGES);
        let due_at = if batch.has_chords() {
            // After a write the lane rests for as long as the write took.
            written_at.map(|at| at + at.duration_since(write_began_at)).or(begun_at)
        } else {
            due_at(begun_at, busy_since.copied(), written_at, policy.max_wait)
        };
        let is_due = batch.is_full(policy.limits)
            || messages_ended
            || due_at.is_some_and(|due_at| due_at <= Instant::now());
        if !batch.is_empty()
            && is_due
            && let Some(store) = idle.take()
        {
            begun_at = None;
            write_began_at = Instant::now();
            let batch = std::mem::replace(&mut batch, Batch::new(reading.decoder.law));
            let settling = settle(store, acknowledger, batch, reading, &catalog, shutdown);
            write.set(settling.fuse());
        }
        if messages_ended && batch.is_empty() && idle.is_some() {
            return End::Stopped;
        }
        tokio::select! {
            biased;
            (store, settled) = &mut write => {
                if let Err(end) = settled {
                    return end;
                }
                idle = Some(store);
                written_at = Some(Instant::now());
            }
            message = messages.next(), if !messages_ended && !batch.is_full(policy.limits) => {
                let now = Instant::now();
                begun_at.get_or_insert(now);
                let mut next = Some(message);
                // Messages that have already arrived are taken before a write begins.
                while let Some(message) = next {
                    match message {
                        Some(Ok(message)) => {
                            if take(&mut batch, message, reading, &catalog) {
                                if arrivals.len() == BUSY_MESSAGES {
                                    arrivals.pop_front();
                                }
                                arrivals.push_back(now);
                            }
                        }
                        Some(Err(error)) => return End::BrokerLost(error),
                        None => {
                            messages_ended = true;
                            break;
                        }
                    }
                    let has_room = !batch.is_full(policy.limits);
                    next = has_room.then(|| messages.next().now_or_never()).flatten();
                }
            }
            () = sleep_until(due_at), if idle.is_some() && !batch.is_empty() => {}
            () = shutdown.cancelled(), if !is_stopping => {
                is_stopping = true;
                messages_ended = !acknowledger.stop().await;
            }
            _ = ticks.tick() => {
                let is_idle = batch.is_empty()
                    && !is_stopping
                    && written_at.is_none_or(|written_at| written_at.elapsed() >= CHECK_INTERVAL);
                if is_idle && let Some(store) = idle.as_deref_mut() {
                    check(store, reading.lane, shutdown).await;
                }
            }
        }
    }
}

/// When to write a batch whose first message arrived at `begun_at`: after `max_wait` if the lane
/// was busy then, and otherwise at once. It was busy if a write had ended and [`BUSY_MESSAGES`] had
/// arrived within `max_wait` before.
fn due_at(
    begun_at: Option<Instant>,
    busy_since: Option<Instant>,
    written_at: Option<Instant>,
    max_wait: Duration,
) -> Option<Instant> {
    let begun_at = begun_at?;
    let is_recent = |time: Option<Instant>| time.is_some_and(|time| begun_at < time + max_wait);
    let is_busy = is_recent(busy_since) && is_recent(written_at);
    Some(if is_busy { begun_at + max_wait } else { begun_at })
}

async fn sleep_until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

/// Checks that the database answers, so that an outage is noticed before there are rows to write.
async fn check(store: &mut dyn Store, lane: &Lane, shutdown: &CancellationToken) {
    let checked = tokio::select! {
        checked = tokio::time::timeout(CHECK_TIMEOUT, store.check()) => checked,
        () = shutdown.cancelled() => return,
    };
    let checked = checked.unwrap_or_else(|_| Err(no_answer(CHECK_TIMEOUT)));
    let problem = "the database does not answer";
    match checked {
        Ok(()) if lane.set_database(Ok(())) => {}
        Ok(()) => tracing::info!("the database answers again"),
        Err(error) => {
            lane.count_error(error.class);
            if lane.set_database(Err(reason(problem, &error))) {
                tracing::warn!(%error, "{problem}");
            }
        }
    }
}
