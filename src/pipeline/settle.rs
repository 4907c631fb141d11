//! Stores a batch, dead-letters the messages that cannot be stored, and acknowledges all messages.
//! Decides how to react to each class of error.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Level;

use super::batch::Batch;
use super::end::End;
use super::intake::{self, Reading};
use crate::broker::{Acknowledge, BrokerError};
use crate::diagnosis::reason;
use crate::message::dead_letter::{Reason, UNSTORABLE};
use crate::retry::Backoff;
use crate::row::chord::ChordNews;
use crate::store::{
    Action, Catalog, Change, ErrorClass, MAX_HOLD, Store, StoreError, Write, Written,
};
use crate::telemetry::{BatchSize, Lane};

/// How long a write may take after the shutdown has begun.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Stores a batch, dead-letters the messages that cannot be stored, and acknowledges all messages.
/// Returns the store and the outcome.
pub(super) async fn settle<'store, A: Acknowledge>(
    store: &'store mut dyn Store,
    acknowledger: &A,
    mut batch: Batch,
    reading: Reading<'_>,
    catalog: &Catalog,
    shutdown: &CancellationToken,
) -> (&'store mut dyn Store, Result<(), End>) {
    let started_at = Instant::now();
    let mut changes = Vec::new();
    let stored = store_batch(store, &mut batch, reading, catalog, shutdown, &mut changes).await;
    reading.hints.add(&changes);
    if let Err(error) = stored {
        return (store, Err(End::StoreUnavailable(error, batch)));
    }
    match tell_chords(store, &mut batch, reading, shutdown).await {
        Ok(()) => {}
        Err(Untold::Store(error)) => return (store, Err(End::StoreUnavailable(error, batch))),
        Err(Untold::Broker(error)) => return (store, Err(End::DeadLettersFailed(error))),
    }
    if let Err(error) = dead_letter(acknowledger, &batch, reading.lane, shutdown).await {
        return (store, Err(End::DeadLettersFailed(error)));
    }
    {
        let _step = reading.lane.begin("acknowledge");
        if let Err(error) = acknowledger.acknowledge(batch.messages()).await {
            return (store, Err(End::BrokerLost(error)));
        }
    }
    let size = BatchSize {
        messages: batch.len(),
        rows: batch.rows().len(),
        size_bytes: batch.size_bytes(),
        skipped_events: batch.skipped().map(|(_, events)| events).sum(),
    };
    reading.lane.settle(size, started_at.elapsed());
    for (problem, events) in batch.skipped() {
        tracing::warn!(events, problem, "events that Celery does not send were left out");
    }
    tracing::debug!(
        messages = batch.len(),
        rows = batch.rows().len(),
        changed_rows = changes.len(),
        size_bytes = batch.size_bytes(),
        milliseconds = started_at.elapsed().as_millis(),
        "batch stored"
    );
    (store, Ok(()))
}

/// Retries a write with the rows of a batch until it succeeds. The messages of the batch are
/// already back in the queue. Returns false on shutdown.
///
/// Nothing is consumed before a write succeeds, because each delivery counts towards the delivery
/// limit of the queue: an outage costs one delivery, however long it lasts. Writing the rows twice
/// does no harm.
pub async fn wait_for_store(
    store: &mut dyn Store,
    batch: &Batch,
    lane: &Lane,
    backoff: &mut Backoff,
    shutdown: &CancellationToken,
) -> bool {
    // These changes are not reported now. The messages will be delivered again, marked as redelivered,
    // and their rows are then reported as changed.
    let writes: Vec<_> =
        batch.writes().map(|write| Write { may_be_stored: true, ..write }).collect();
    loop {
        lane.record_progress();
        let error = match write(store, &writes, lane, &mut Vec::new()).await {
            Err(error) if error.class != ErrorClass::Poison => error,
            _ => {
                lane.set_database(Ok(()));
                return true;
            }
        };
        let problem = "messages are left to the broker for now";
        lane.set_database(Err(reason(problem, &error)));
        if backoff.wait(error.class.log_level(), problem, &error, shutdown).await.is_break() {
            return false;
        }
    }
}

/// Writes rows once.
async fn write(
    store: &mut dyn Store,
    writes: &[Write<'_>],
    lane: &Lane,
    changes: &mut Vec<Change>,
) -> Result<Written, StoreError> {
    let _step = lane.begin("write");
    let started_at = Instant::now();
    let written = store.store(writes, changes).await;
    lane.end_write(writes.iter().map(|write| write.row), &written, started_at.elapsed());
    written
}

/// Stores every row of the batch that can be stored and marks the messages of the others.
///
/// If the database refuses a statement, its rows are split in halves until the refused row is
/// alone. That row may be merged from several messages of which only one is wrong, so the row of
/// each message is then written separately. Adds what has changed to `changes`.
async fn store_batch(
    store: &mut dyn Store,
    batch: &mut Batch,
    reading: Reading<'_>,
    catalog: &Catalog,
    shutdown: &CancellationToken,
    changes: &mut Vec<Change>,
) -> Result<(), StoreError> {
    let mut refused = Vec::new();
    {
        let writes: Vec<_> = batch.writes().collect();
        let mut parts = vec![writes.as_slice()];
        while let Some(part) = parts.pop() {
            match (store_part(store, part, reading.lane, shutdown, changes).await?, part) {
                (Stored::All, _) => {}
                (Stored::Refused(_), [write]) => {
                    let key = write.row.key();
                    for (place, message) in batch.sources(&key) {
                        let Ok(read) = intake::read(message, reading, catalog) else { continue };
                        for row in read.rows.iter().filter(|row| row.key() == key) {
                            let writes = [Write { row, ..*write }];
                            let stored =
                                store_part(store, &writes, reading.lane, shutdown, changes);
                            if let Stored::Refused(error) = stored.await? {
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
        batch.refuse(place, Reason { code: UNSTORABLE, error: error.message });
    }
    Ok(())
}

/// The outcome of writing some rows, if it is final.
enum Stored {
    All,
    /// One of the rows can never be stored.
    Refused(StoreError),
}

/// Writes rows until they are committed or refused, with retries that depend on the class of the
/// error.
async fn store_part(
    store: &mut dyn Store,
    writes: &[Write<'_>],
    lane: &Lane,
    shutdown: &CancellationToken,
    changes: &mut Vec<Change>,
) -> Result<Stored, StoreError> {
    if writes.is_empty() {
        return Ok(Stored::All);
    }
    let mut writes = writes.to_vec();
    let mut attempts = Attempts::new();
    loop {
        let written = tokio::select! {
            written = write(store, &writes, lane, changes) => written,
            error = shutdown_timeout(shutdown) => Err(error),
        };
        for write in &mut writes {
            write.may_be_stored = true;
        }
        if let Some(stored) = attempts.end(written.map(drop), lane, shutdown).await? {
            return Ok(stored);
        }
    }
}

/// The attempts of one write.
struct Attempts {
    at_once: usize,
    backoff: Backoff,
}

impl Attempts {
    fn new() -> Self {
        Self { at_once: 0, backoff: Backoff::new() }
    }

    /// Decides what follows an attempt, by the class of its error. Returns `None` if the write is to
    /// be tried again, now that it has waited.
    async fn end(
        &mut self,
        written: Result<(), StoreError>,
        lane: &Lane,
        shutdown: &CancellationToken,
    ) -> Result<Option<Stored>, StoreError> {
        let Err(error) = written else {
            self.backoff.end("the database takes writes again");
            return Ok(Some(Stored::All));
        };
        match error.class.action(self.at_once) {
            Action::Refuse => {
                lane.set_database(Ok(()));
                return Ok(Some(Stored::Refused(error)));
            }
            Action::GiveUp => return Err(error),
            Action::RetryAtOnce => self.at_once += 1,
            Action::RetryLater => {
                let problem = "the database cannot be written: its rows are held";
                lane.set_database(Err(reason(problem, &error)));
                let level = error.class.log_level();
                if self.backoff.wait(level, problem, &error, shutdown).await.is_break()
                    || self.backoff.elapsed() > MAX_HOLD
                {
                    return Err(error);
                }
            }
        }
        Ok(None)
    }
}

/// Waits until a write has taken too long after the shutdown, and returns the error for it.
async fn shutdown_timeout(shutdown: &CancellationToken) -> StoreError {
    shutdown.cancelled().await;
    tokio::time::sleep(STOP_TIMEOUT).await;
    no_answer(STOP_TIMEOUT)
}

pub(super) fn no_answer(timeout: Duration) -> StoreError {
    StoreError {
        class: ErrorClass::Outage,
        message: format!("the database did not answer within {} s", timeout.as_secs()),
    }
}

/// What was not available when the news about chords had to be recorded or sent.
enum Untold {
    Store(StoreError),
    Broker(BrokerError),
}

/// Records what the messages of the batch tell about chords, and has the complete ones unlocked.
///
/// Without the tables, the unlock messages of chords that begin are sent at once.
async fn tell_chords(
    store: &mut dyn Store,
    batch: &mut Batch,
    reading: Reading<'_>,
    shutdown: &CancellationToken,
) -> Result<(), Untold> {
    let told = batch.chords();
    if told.is_empty() {
        return Ok(());
    }
    if !reading.chords.is_recorded().await {
        for (_, news) in told {
            if let ChordNews::Applied(chord) = news {
                reading.chords.send(&chord.unlock).await.map_err(Untold::Broker)?;
            }
        }
        return Ok(());
    }
    let mut refused = Vec::new();
    let mut parts = vec![told.as_slice()];
    while let Some(part) = parts.pop() {
        let news: Vec<_> = part.iter().map(|&(_, news)| news).collect();
        let stored = store_chords(store, &news, reading, shutdown).await;
        match (stored.map_err(Untold::Store)?, part) {
            (Stored::All, _) => {}
            (Stored::Refused(error), [(place, _)]) => refused.push((*place, error)),
            (Stored::Refused(_), part) => {
                let (first, second) = part.split_at(part.len() / 2);
                parts.extend([second, first]);
            }
        }
    }
    for (place, error) in refused {
        batch.refuse(place, Reason { code: UNSTORABLE, error: error.message });
    }
    Ok(())
}

/// As [`store_part`], for what messages tell about chords.
async fn store_chords(
    store: &mut dyn Store,
    news: &[&ChordNews],
    reading: Reading<'_>,
    shutdown: &CancellationToken,
) -> Result<Stored, StoreError> {
    let mut attempts = Attempts::new();
    loop {
        let recording = async {
            let _step = reading.lane.begin("record chords");
            store.store_chords(news).await
        };
        let recorded = tokio::select! {
            recorded = recording => recorded,
            error = shutdown_timeout(shutdown) => Err(error),
        };
        let recorded = recorded.map(|complete| reading.chords.unlock(complete));
        if let Some(stored) = attempts.end(recorded, reading.lane, shutdown).await? {
            return Ok(stored);
        }
    }
}

/// Publishes the messages that cannot be stored to the dead-letter queue, with retries.
async fn dead_letter<A: Acknowledge>(
    acknowledger: &A,
    batch: &Batch,
    lane: &Lane,
    shutdown: &CancellationToken,
) -> Result<(), BrokerError> {
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
        if backoff.wait(Level::WARN, problem, &error, shutdown).await.is_break()
            || backoff.elapsed() > MAX_HOLD
        {
            return Err(error);
        }
    }
    lane.set_broker(Ok(()));
    for (_, reason) in letters {
        lane.count_dead_letter(reason.code);
    }
    Ok(())
}
