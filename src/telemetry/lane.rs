//! What one lane tells of itself: what it has done, and how its two sides are.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::Utc;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::families::{Counts, Families, Labels};
use crate::message::dead_letter::REASON_CODES;
use crate::row::Row;
use crate::store::{Effect, ErrorClass, GROUPS, StoreError, TASKS, Written};

/// A lane that has been in one step for so long is stuck: each wait for a broker or a database ends
/// sooner.
pub const STUCK_AFTER: Duration = Duration::from_mins(15);

/// The metrics and the health of one lane. Lanes of one queue count together, and each has gauges
/// of its own.
#[derive(Debug)]
pub struct Lane {
    name: String,
    queue: String,
    messages_received: Counter,
    messages_redelivered: Counter,
    messages_acknowledged: Counter,
    rows_read: Counter,
    rows_merged: Counter,
    events_skipped: Counter,
    broker_sessions: Counter,
    tasks: TableMetrics,
    groups: TableMetrics,
    dead_letters: Family<Labels, Counter>,
    database_errors: Family<Labels, Counter>,
    batch_rows: Histogram,
    batch_size_bytes: Histogram,
    batch_duration_seconds: Histogram,
    write_duration_seconds: Histogram,
    lag_seconds: Histogram,
    messages_unacknowledged: Gauge,
    broker_up: Gauge,
    database_up: Gauge,
    state: Mutex<LaneState>,
}

/// What is counted of one table.
#[derive(Debug)]
struct TableMetrics {
    labels: Labels,
    rows_stored: Counter,
    /// Has a sample only where the database tells how many there were.
    rows_stale: Family<Labels, Counter>,
    statements: Counter,
}

/// How a lane is.
#[derive(Debug)]
struct LaneState {
    /// Why the queue is not consumed, or that it is.
    broker: Result<(), String>,
    /// Why the database cannot be written, or that it can as far as is known.
    database: Result<(), String>,
    /// When the lane's loop last went round.
    turned_at: Instant,
    /// What is under way beside the loop, and since when.
    step: Option<(&'static str, Instant)>,
}

/// What a batch held.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchSize {
    /// Messages.
    pub(crate) messages: usize,
    /// Rows.
    pub(crate) rows: usize,
    /// Bytes, as the limits of a batch count them.
    pub(crate) size_bytes: usize,
    /// Events that were left out.
    pub(crate) skipped_events: usize,
}

/// A step that ends when this is dropped.
pub(crate) struct RunningStep<'lane>(&'lane Lane);

impl Drop for RunningStep<'_> {
    fn drop(&mut self) {
        self.0.state().step = None;
    }
}

impl Lane {
    pub(super) fn new(name: &str, queue: &str, families: &Families) -> Self {
        let of_queue = vec![("queue", queue.to_owned())];
        let of_lane = vec![("lane", name.to_owned()), ("queue", queue.to_owned())];
        for reason in REASON_CODES {
            drop(families.dead_letters.get_or_create(&labels(queue, "reason", reason)));
        }
        for class in CLASSES {
            let labels = labels(queue, "class", class_name(class));
            drop(families.database_errors.get_or_create(&labels));
        }
        Self {
            name: name.to_owned(),
            queue: queue.to_owned(),
            messages_received: families.messages_received.get_or_create_owned(&of_queue),
            messages_redelivered: families.messages_redelivered.get_or_create_owned(&of_queue),
            messages_acknowledged: families.messages_acknowledged.get_or_create_owned(&of_queue),
            rows_read: families.rows_read.get_or_create_owned(&of_queue),
            rows_merged: families.rows_merged.get_or_create_owned(&of_queue),
            events_skipped: families.events_skipped.get_or_create_owned(&of_queue),
            broker_sessions: families.broker_sessions.get_or_create_owned(&of_queue),
            tasks: TableMetrics::new(queue, TASKS, families),
            groups: TableMetrics::new(queue, GROUPS, families),
            dead_letters: families.dead_letters.clone(),
            database_errors: families.database_errors.clone(),
            batch_rows: families.batch_rows.get_or_create_owned(&of_queue),
            batch_size_bytes: families.batch_size_bytes.get_or_create_owned(&of_queue),
            batch_duration_seconds: families.batch_duration_seconds.get_or_create_owned(&of_queue),
            write_duration_seconds: families.write_duration_seconds.get_or_create_owned(&of_queue),
            lag_seconds: families.lag_seconds.get_or_create_owned(&of_queue),
            messages_unacknowledged: families.messages_unacknowledged.get_or_create_owned(&of_lane),
            broker_up: families.broker_up.get_or_create_owned(&of_lane),
            database_up: families.database_up.get_or_create_owned(&of_lane),
            state: Mutex::new(LaneState {
                broker: Err("not connected yet".to_owned()),
                database: Err("not connected yet".to_owned()),
                turned_at: Instant::now(),
                step: None,
            }),
        }
    }

    /// A message was taken.
    pub(crate) fn receive(&self, is_redelivered: bool) {
        self.messages_received.inc();
        self.messages_redelivered.inc_by(is_redelivered.into());
        self.messages_unacknowledged.inc();
    }

    /// Rows were read from a message, of which some have joined others in the batch.
    pub(crate) fn read(&self, rows: usize, merged: usize) {
        self.rows_read.inc_by(rows as u64);
        self.rows_merged.inc_by(merged as u64);
    }

    /// A write to the database has come to an end, whichever.
    pub(crate) fn end_write(
        &self,
        rows: &[&Row],
        written: &Result<Written, StoreError>,
        duration: Duration,
    ) {
        self.write_duration_seconds.observe(duration.as_secs_f64());
        match written {
            Ok(written) => {
                self.tasks.add(&written.tasks);
                self.groups.add(&written.groups);
                let now = Utc::now();
                for time in rows.iter().filter_map(|row| row.own_time()) {
                    // Clocks differ, so a state may lie in the future.
                    let lag = (now - time).to_std().unwrap_or_default();
                    self.lag_seconds.observe(lag.as_secs_f64());
                }
                self.set_database(Ok(()));
            }
            Err(error) => self.count_error(error.class),
        }
    }

    /// An error of the database was met.
    pub(crate) fn count_error(&self, class: ErrorClass) {
        let labels = labels(&self.queue, "class", class_name(class));
        self.database_errors.get_or_create(&labels).inc();
    }

    /// Messages have become dead letters for a reason.
    pub(crate) fn count_dead_letter(&self, reason: &'static str) {
        self.dead_letters.get_or_create(&labels(&self.queue, "reason", reason)).inc();
    }

    /// An event was left out that never became a message.
    pub(crate) fn skip_event(&self) {
        self.events_skipped.inc();
    }

    /// A batch was stored and acknowledged.
    pub(crate) fn settle(&self, batch: BatchSize, duration: Duration) {
        self.messages_acknowledged.inc_by(batch.messages as u64);
        self.messages_unacknowledged.dec_by(i64::try_from(batch.messages).unwrap_or_default());
        self.events_skipped.inc_by(batch.skipped_events as u64);
        self.batch_rows.observe(float(batch.rows));
        self.batch_size_bytes.observe(float(batch.size_bytes));
        self.batch_duration_seconds.observe(duration.as_secs_f64());
    }

    /// The lane has begun to consume its queue.
    pub(crate) fn begin_session(&self) {
        self.broker_sessions.inc();
        self.set_broker(Ok(()));
    }

    /// The lane consumes no longer, or could not begin to.
    pub(crate) fn end_session(&self, reason: String) {
        self.messages_unacknowledged.set(0);
        self.set_broker(Err(reason));
    }

    /// The broker does not do what it is asked beside the messages, or does it again.
    pub(crate) fn set_broker(&self, state: Result<(), String>) {
        self.broker_up.set(state.is_ok().into());
        self.state().broker = state;
    }

    /// The database takes writes, or does not. Says whether it did before.
    pub(crate) fn set_database(&self, state: Result<(), String>) -> bool {
        self.database_up.set(state.is_ok().into());
        std::mem::replace(&mut self.state().database, state).is_ok()
    }

    /// The lane's loop goes round.
    pub(crate) fn turn(&self) {
        self.state().turned_at = Instant::now();
    }

    /// Something begins that the loop does not wait for.
    pub(crate) fn begin(&self, step: &'static str) -> RunningStep<'_> {
        self.state().step = Some((step, Instant::now()));
        RunningStep(self)
    }

    pub(super) fn queue(&self) -> &str {
        &self.queue
    }

    pub(super) fn is_live(&self) -> bool {
        let state = self.state();
        let since = state.step.map_or(state.turned_at, |(_, since)| since.min(state.turned_at));
        since.elapsed() < STUCK_AFTER
    }

    pub(super) fn progress(&self) -> Value {
        let state = self.state();
        let step = state
            .step
            .map(|(name, since)| json!({ "name": name, "seconds": since.elapsed().as_secs() }));
        let seconds = state.turned_at.elapsed().as_secs();
        json!({ "lane": self.name, "queue": self.queue, "turned_seconds_ago": seconds, "step": step })
    }

    pub(super) fn is_ready(&self) -> bool {
        let state = self.state();
        state.broker.is_ok() && state.database.is_ok()
    }

    /// Why it is not ready. Without the database nothing is consumed, so that comes first.
    pub(super) fn trouble(&self) -> Option<String> {
        let state = self.state();
        state.database.as_ref().err().or(state.broker.as_ref().err()).cloned()
    }

    pub(super) fn sides(&self) -> Value {
        let state = self.state();
        let side = |state: &Result<(), String>| match state {
            Ok(()) => json!({ "up": true }),
            Err(reason) => json!({ "up": false, "reason": reason }),
        };
        json!({
            "lane": self.name,
            "queue": self.queue,
            "broker": side(&state.broker),
            "database": side(&state.database),
        })
    }

    pub(super) fn add_to(&self, counts: &mut Counts) {
        counts.messages += self.messages_received.get();
        counts.rows_read += self.rows_read.get();
        counts.rows_written += self.tasks.rows_stored.get() + self.groups.rows_stored.get();
        for reason in REASON_CODES {
            let labels = labels(&self.queue, "reason", reason);
            let dead = self.dead_letters.get_or_create(&labels).get();
            if dead > 0 {
                *counts.dead.entry(reason).or_default() += dead;
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, LaneState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TableMetrics {
    fn new(queue: &str, table: &str, families: &Families) -> Self {
        let labels = labels(queue, "table", table);
        Self {
            rows_stored: families.rows_stored.get_or_create_owned(&labels),
            rows_stale: families.rows_stale.clone(),
            statements: families.database_statements.get_or_create_owned(&labels),
            labels,
        }
    }

    fn add(&self, effect: &Effect) {
        self.rows_stored.inc_by(effect.rows);
        self.statements.inc_by(effect.statements);
        if let Some(stale) = effect.stale {
            self.rows_stale.get_or_create(&self.labels).inc_by(stale);
        }
    }
}

fn labels(queue: &str, name: &'static str, value: &str) -> Labels {
    vec![("queue", queue.to_owned()), (name, value.to_owned())]
}

const CLASSES: [ErrorClass; 4] =
    [ErrorClass::Outage, ErrorClass::Conflict, ErrorClass::Poison, ErrorClass::Setup];

fn class_name(class: ErrorClass) -> &'static str {
    match class {
        ErrorClass::Outage => "outage",
        ErrorClass::Conflict => "conflict",
        ErrorClass::Poison => "poison",
        ErrorClass::Setup => "setup",
    }
}

/// What is too large for a float to the last digit is near enough.
#[expect(clippy::cast_precision_loss, reason = "a histogram has coarser bounds")]
fn float(number: usize) -> f64 {
    number as f64
}
