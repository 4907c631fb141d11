//! The only loop: a message comes, a batch is due, a write has finished, it is time to stop.
//!
//! One write is in flight at most, and the next batch fills meanwhile. When that is full too,
//! nothing more is taken from the broker, whose prefetch limit does the rest.

use std::time::Duration;

use futures_util::{FutureExt, Stream, StreamExt, future::Fuse};
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;

use crate::ack::Acknowledge;
use crate::backoff::Backoff;
use crate::batch::{Batch, Limits, Reason};
use crate::decode::{Decoded, Decoder, Kind};
use crate::message::Message;
use crate::publish::PublishError;
use crate::row::Row;
use crate::source::SourceError;
use crate::store::{Catalog, ErrorClass, Store, StoreError, Written};
use crate::telemetry::{Lane, reason};

/// How large batches may be and how long they may gather.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// What one batch may hold.
    pub limits: Limits,
    /// How long a batch may gather while writes follow each other.
    pub max_wait: Duration,
}

/// How the messages are read.
#[derive(Clone, Copy, Debug)]
pub struct Reading<'config> {
    /// What reads them.
    pub decoder: &'config Decoder,
    /// What they are.
    pub kind: Kind<'config>,
    /// What tells of them.
    pub lane: &'config Lane,
}

/// Why the loop ended. What it had not acknowledged is delivered again.
#[derive(Debug)]
pub enum End {
    /// The messages have ended, by themselves or because it was asked to stop, and everything that
    /// it had taken is settled or left to the broker.
    Stopped,
    /// The broker's side is gone.
    SourceLost(SourceError),
    /// The database cannot be written for longer than messages may be held. The batch is what it
    /// did not take; [`wait_for_store`] finds out with it when it takes writes again.
    StoreUnfit(StoreError, Batch),
    /// The dead-letter queue cannot be written for longer than messages may be held.
    DeadLettersUnfit(PublishError),
}

/// How long messages are held while the database cannot be written. RabbitMQ takes a channel for
/// dead that holds a message for 30 minutes, and counts each time that it delivers one again.
const MAX_HOLD: Duration = Duration::from_mins(10);

/// How long a write may take when it is time to stop.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// How often an idle lane asks the database for a sign of life.
const CHECK_EVERY: Duration = Duration::from_secs(15);

/// How long the database may take for that.
const CHECK_PATIENCE: Duration = Duration::from_secs(5);

/// How often a write that met another writer is tried again at once.
const CONFLICT_RETRIES: usize = 5;

/// Takes messages, merges them into batches, stores these and settles the messages, until the
/// messages end, the store is unfit for long, or `shutdown` is cancelled.
pub async fn run<S: Store, A: Acknowledge>(
    mut messages: impl Stream<Item = Result<Message, SourceError>> + Unpin,
    reading: Reading<'_>,
    store: &mut S,
    acknowledger: &A,
    pace: Pace,
    shutdown: &CancellationToken,
) -> End {
    let catalog = match store.prepare().await {
        Ok(catalog) => catalog.clone(),
        Err(error) => {
            reading.lane.count_error(error.class);
            return End::StoreUnfit(error, Batch::default());
        }
    };
    let mut batch = Batch::default();
    // When the batch's first message came, and when the last write ended.
    let mut begun_at = None;
    let mut written_at = None;
    let mut messages_ended = false;
    let mut is_stopping = false;
    // The store is here while no write is in flight.
    let mut idle = Some(store);
    let mut write = std::pin::pin!(Fuse::terminated());
    // The loop goes round at least so often, which shows that it can.
    let mut ticks = interval_at(Instant::now() + CHECK_EVERY, CHECK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);

    loop {
        reading.lane.turn();
        let due_at = due_at(begun_at, written_at, pace.max_wait);
        let is_due = batch.is_full(pace.limits)
            || messages_ended
            || due_at.is_some_and(|due_at| due_at <= Instant::now());
        if !batch.is_empty()
            && is_due
            && let Some(store) = idle.take()
        {
            begun_at = None;
            let batch = std::mem::take(&mut batch);
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
            message = messages.next(), if !messages_ended && !batch.is_full(pace.limits) => {
                // What has come already is taken before a write is considered.
                let mut next = Some(message);
                while let Some(message) = next {
                    match message {
                        Some(Ok(message)) => {
                            begun_at.get_or_insert_with(Instant::now);
                            take(&mut batch, message, reading, &catalog);
                        }
                        Some(Err(error)) => return End::SourceLost(error),
                        None => {
                            messages_ended = true;
                            break;
                        }
                    }
                    next = if batch.is_full(pace.limits) {
                        None
                    } else {
                        messages.next().now_or_never()
                    };
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
                    && written_at.is_none_or(|written_at| written_at.elapsed() >= CHECK_EVERY);
                if is_idle && let Some(store) = idle.as_deref_mut() {
                    check(store, reading.lane, shutdown).await;
                }
            }
        }
    }
}

/// When a batch should be written that began to fill at `begun_at`: at once where the lane was
/// idle then, else after `max_wait`.
fn due_at(
    begun_at: Option<Instant>,
    written_at: Option<Instant>,
    max_wait: Duration,
) -> Option<Instant> {
    let begun_at = begun_at?;
    match written_at {
        Some(written_at) if begun_at < written_at + max_wait => Some(begun_at + max_wait),
        _ => Some(begun_at),
    }
}

async fn sleep_until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

/// Asks the database for a sign of life, so that its loss is known before rows are to be written.
async fn check<S: Store>(store: &mut S, lane: &Lane, shutdown: &CancellationToken) {
    let checked = tokio::select! {
        checked = tokio::time::timeout(CHECK_PATIENCE, store.check()) => checked,
        () = shutdown.cancelled() => return,
    };
    let checked = checked.unwrap_or_else(|_| Err(silence(CHECK_PATIENCE)));
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

/// Adds a message to a batch with what it says.
fn take(batch: &mut Batch, message: Message, reading: Reading<'_>, catalog: &Catalog) {
    reading.lane.receive(message.redelivered);
    let mut read_rows = 0;
    let read = read(&message, reading, catalog).map(|read| {
        for (problem, events) in read.skipped {
            batch.skip(problem, events);
        }
        read_rows = read.rows.len();
        read.rows
    });
    let rows_before = batch.rows().len();
    batch.push(message, read);
    reading.lane.read(read_rows, rows_before + read_rows - batch.rows().len());
}

/// What a message says, in the form that the tables can hold. An event that they cannot hold is
/// left out, because others share its message.
fn read(message: &Message, reading: Reading<'_>, catalog: &Catalog) -> Result<Decoded, Reason> {
    let mut read = reading
        .decoder
        .decode(message, reading.kind)
        .map_err(|error| Reason { code: error.code(), error: error.to_string() })?;
    if !reading.kind.is_events(message) {
        for row in &mut read.rows {
            catalog.fit(row)?;
        }
        return Ok(read);
    }
    let count = read.rows.len();
    read.rows.retain_mut(|row| catalog.fit(row).is_ok());
    if read.rows.len() < count {
        let problem = "`uuid` is longer than the column takes, or has U+0000 in it";
        read.skipped.insert(problem, count - read.rows.len());
    }
    Ok(read)
}

/// Stores a batch, dead-letters what cannot be stored, and acknowledges all of it. Gives the
/// store back with what came of it.
async fn settle<'store, S: Store, A: Acknowledge>(
    store: &'store mut S,
    acknowledger: &A,
    mut batch: Batch,
    reading: Reading<'_>,
    catalog: &Catalog,
    shutdown: &CancellationToken,
) -> (&'store mut S, Result<(), End>) {
    let started_at = Instant::now();
    if let Err(error) = store_batch(store, &mut batch, reading, catalog, shutdown).await {
        return (store, Err(End::StoreUnfit(error, batch)));
    }
    if let Err(error) = dead_letter(acknowledger, &batch, reading.lane, shutdown).await {
        return (store, Err(End::DeadLettersUnfit(error)));
    }
    if let Some(last_delivery_tag) = batch.last_delivery_tag() {
        let _step = reading.lane.begin("acknowledge");
        if let Err(error) = acknowledger.acknowledge(last_delivery_tag).await {
            return (store, Err(End::SourceLost(error)));
        }
    }
    reading.lane.settle(&batch, started_at.elapsed());
    for (problem, events) in batch.skipped() {
        tracing::warn!(events, problem, "events that Celery does not send were left out");
    }
    tracing::debug!(
        messages = batch.len(),
        rows = batch.rows().len(),
        size_bytes = batch.size_bytes(),
        milliseconds = started_at.elapsed().as_millis(),
        "batch stored"
    );
    (store, Ok(()))
}

/// Tries to write the rows of a batch, whose messages the broker has again, until the database
/// takes writes. Whether it does, or it is time to stop.
///
/// Each delivery of a message counts towards the broker's limit, so nothing is consumed before
/// then: an outage costs one delivery however long it lasts. Writing the rows twice does no harm.
pub async fn wait_for_store<S: Store>(
    store: &mut S,
    batch: &Batch,
    lane: &Lane,
    backoff: &mut Backoff,
    shutdown: &CancellationToken,
) -> bool {
    let rows: Vec<_> = batch.rows().collect();
    loop {
        lane.turn();
        let error = match write(store, &rows, lane).await {
            Err(error) if error.class != ErrorClass::Poison => error,
            _ => {
                lane.set_database(Ok(()));
                return true;
            }
        };
        let problem = "messages are left to the broker for now";
        lane.set_database(Err(reason(problem, &error)));
        if backoff.wait(problem, &error, shutdown).await.is_break() {
            return false;
        }
    }
}

/// Writes rows once.
async fn write<S: Store>(store: &mut S, rows: &[&Row], lane: &Lane) -> Result<Written, StoreError> {
    let _step = lane.begin("write");
    let started_at = Instant::now();
    let written = store.store(rows).await;
    lane.end_write(rows, &written, started_at.elapsed());
    written
}

/// Stores every row of the batch that can be stored and marks the messages of the others.
///
/// A part that holds a row which the database refuses is halved until the row stands alone. Such
/// a row may have come from several messages, of which only one is to blame; so each is tried by
/// itself.
async fn store_batch<S: Store>(
    store: &mut S,
    batch: &mut Batch,
    reading: Reading<'_>,
    catalog: &Catalog,
    shutdown: &CancellationToken,
) -> Result<(), StoreError> {
    let mut refused = Vec::new();
    {
        let rows: Vec<&Row> = batch.rows().collect();
        let mut parts = vec![rows.as_slice()];
        while let Some(part) = parts.pop() {
            match (store_part(store, part, reading.lane, shutdown).await?, part) {
                (Stored::All, _) => {}
                (Stored::Refused(_), [row]) => {
                    let key = row.key();
                    for (place, message) in batch.sources(&key) {
                        let Ok(read) = read(message, reading, catalog) else { continue };
                        for row in read.rows.iter().filter(|row| row.key() == key) {
                            let stored = store_part(store, &[row], reading.lane, shutdown).await?;
                            if let Stored::Refused(error) = stored {
                                refused.push((place, error));
                            }
                        }
                    }
                }
                (Stored::Refused(_), part) => {
                    let (first, second) = part.split_at(part.len() / 2);
                    parts.extend([second, first]);
                }
            }
        }
    }
    for (place, error) in refused {
        batch.refuse(place, Reason { code: "unstorable", error: error.message });
    }
    Ok(())
}

/// What came of writing some rows, where anything final did.
enum Stored {
    All,
    /// One of the rows can never be stored.
    Refused(StoreError),
}

/// Writes rows until they are committed or refused: the policy for every class of error.
async fn store_part<S: Store>(
    store: &mut S,
    rows: &[&Row],
    lane: &Lane,
    shutdown: &CancellationToken,
) -> Result<Stored, StoreError> {
    if rows.is_empty() {
        return Ok(Stored::All);
    }
    let mut conflicts = 0;
    let mut backoff = Backoff::new();
    loop {
        let written = tokio::select! {
            written = write(store, rows, lane) => written,
            error = too_late(shutdown) => Err(error),
        };
        let Err(error) = written else {
            backoff.end("the database takes writes again");
            return Ok(Stored::All);
        };
        match error.class {
            ErrorClass::Poison => {
                lane.set_database(Ok(()));
                return Ok(Stored::Refused(error));
            }
            ErrorClass::Setup => return Err(error),
            ErrorClass::Conflict if conflicts < CONFLICT_RETRIES => conflicts += 1,
            ErrorClass::Conflict | ErrorClass::Outage => {
                let problem = "the database cannot be written: its rows are held";
                lane.set_database(Err(reason(problem, &error)));
                if backoff.wait(problem, &error, shutdown).await.is_break()
                    || backoff.elapsed() > MAX_HOLD
                {
                    return Err(error);
                }
            }
        }
    }
}

/// The error that a write ends with which is still under way so long after it was time to stop.
async fn too_late(shutdown: &CancellationToken) -> StoreError {
    shutdown.cancelled().await;
    tokio::time::sleep(STOP_PATIENCE).await;
    silence(STOP_PATIENCE)
}

fn silence(patience: Duration) -> StoreError {
    StoreError {
        class: ErrorClass::Outage,
        message: format!("the database did not answer within {} s", patience.as_secs()),
    }
}

/// Moves what cannot be stored to the dead-letter queue, however long the broker takes.
async fn dead_letter<A: Acknowledge>(
    acknowledger: &A,
    batch: &Batch,
    lane: &Lane,
    shutdown: &CancellationToken,
) -> Result<(), PublishError> {
    let letters: Vec<_> = batch.refused().collect();
    if letters.is_empty() {
        return Ok(());
    }
    let mut backoff = Backoff::new();
    loop {
        let step = lane.begin("write dead letters");
        let Err(error) = acknowledger.dead_letter(&letters).await else { break };
        drop(step);
        let problem = "the dead-letter queue cannot be written: its messages are held";
        lane.set_broker(Err(reason(problem, &error)));
        if backoff.wait(problem, &error, shutdown).await.is_break() || backoff.elapsed() > MAX_HOLD
        {
            return Err(error);
        }
    }
    lane.set_broker(Ok(()));
    for (_, reason) in letters {
        lane.bury(reason.code);
    }
    Ok(())
}
