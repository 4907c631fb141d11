//! The metrics of one lane, and the health of its connections to the broker and the database.

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

/// A lane that has been in the same step for this long is stuck: every timeout for the broker or
/// the database is shorter.
pub const STUCK_AFTER: Duration = Duration::from_mins(15);

/// The metrics and the health of one lane. Lanes of the same queue share counters, and each lane
/// has its own gauges.
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

/// The metrics of one table.
#[derive(Debug)]
struct TableMetrics {
    labels: Labels,
    rows_stored: Counter,
    /// Has a sample only if the database reports the number.
    rows_stale: Family<Labels, Counter>,
    statements: Counter,
}

/// The health of a lane.
#[derive(Debug)]
struct LaneState {
    /// `Ok` if the queue is consumed, or the reason why it is not.
    broker: Result<(), String>,
    /// `Ok` if the database can be written to, as far as is known, or the reason why it cannot.
    database: Result<(), String>,
    /// When the lane's loop last made progress.
    progressed_at: Instant,
    /// The step that is in progress, and when it began.
    step: Option<(&'static str, Instant)>,
}

/// The contents of a batch, in numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchSize {
    /// Messages.
    pub(crate) messages: usize,
    /// Rows.
    pub(crate) rows: usize,
    /// Bytes, as the limits of a batch count them.
    pub(crate) size_bytes: usize,
    /// Events that were skipped.
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
                progressed_at: Instant::now(),
                step: None,
            }),
        }
    }

    /// Counts a received message.
    pub(crate) fn receive(&self, is_redelivered: bool) {
        self.messages_received.inc();
        self.messages_redelivered.inc_by(is_redelivered.into());
        self.messages_unacknowledged.inc();
    }

    /// Counts the rows decoded from a message, and how many of them were merged with others in the
    /// batch.
    pub(crate) fn read(&self, rows: usize, merged: usize) {
        self.rows_read.inc_by(rows as u64);
        self.rows_merged.inc_by(merged as u64);
    }

    /// Records a write to the database, successful or not.
    pub(crate) fn end_write<'row>(
        &self,
        rows: impl Iterator<Item = &'row Row>,
        written: &Result<Written, StoreError>,
        duration: Duration,
    ) {
        self.write_duration_seconds.observe(duration.as_secs_f64());
        match written {
            Ok(written) => {
                self.tasks.add(&written.tasks);
                self.groups.add(&written.groups);
                let now = Utc::now();
                for time in rows.filter_map(Row::own_time) {
                    // Clocks differ, so the time of a state may be in the future.
                    let lag = (now - time).to_std().unwrap_or_default();
                    self.lag_seconds.observe(lag.as_secs_f64());
                }
                self.set_database(Ok(()));
            }
            Err(error) => self.count_error(error.class),
        }
    }

    /// Counts an error of the database.
    pub(crate) fn count_error(&self, class: ErrorClass) {
        let labels = labels(&self.queue, "class", class_name(class));
        self.database_errors.get_or_create(&labels).inc();
    }

    /// Counts a dead letter by its reason.
    pub(crate) fn count_dead_letter(&self, reason: &'static str) {
        self.dead_letters.get_or_create(&labels(&self.queue, "reason", reason)).inc();
    }

    /// Counts a skipped event that could not be read as a message.
    pub(crate) fn skip_event(&self) {
        self.events_skipped.inc();
    }

    /// Records a batch that was stored and acknowledged.
    pub(crate) fn settle(&self, batch: BatchSize, duration: Duration) {
        self.messages_acknowledged.inc_by(batch.messages as u64);
        self.messages_unacknowledged.dec_by(i64::try_from(batch.messages).unwrap_or_default());
        self.events_skipped.inc_by(batch.skipped_events as u64);
        self.batch_rows.observe(float(batch.rows));
        self.batch_size_bytes.observe(float(batch.size_bytes));
        self.batch_duration_seconds.observe(duration.as_secs_f64());
    }

    /// Records that the lane has begun to consume its queue.
    pub(crate) fn begin_session(&self) {
        self.broker_sessions.inc();
        self.set_broker(Ok(()));
    }

    /// Records that the lane no longer consumes its queue, or could not begin to.
    pub(crate) fn end_session(&self, reason: String) {
        self.messages_unacknowledged.set(0);
        self.set_broker(Err(reason));
    }

    /// Sets the health of the connection to the broker.
    pub(crate) fn set_broker(&self, state: Result<(), String>) {
        self.broker_up.set(state.is_ok().into());
        self.state().broker = state;
    }

    /// Sets the health of the database. Returns whether it was healthy before.
    pub(crate) fn set_database(&self, state: Result<(), String>) -> bool {
        self.database_up.set(state.is_ok().into());
        std::mem::replace(&mut self.state().database, state).is_ok()
    }

    /// Records that the lane's loop makes progress.
    pub(crate) fn record_progress(&self) {
        self.state().progressed_at = Instant::now();
    }

    /// Begins a step that runs while the loop continues.
    pub(crate) fn begin(&self, step: &'static str) -> RunningStep<'_> {
        self.state().step = Some((step, Instant::now()));
        RunningStep(self)
    }

    pub(super) fn queue(&self) -> &str {
        &self.queue
    }

    pub(super) fn is_live(&self) -> bool {
        let state = self.state();
        let since =
            state.step.map_or(state.progressed_at, |(_, since)| since.min(state.progressed_at));
        since.elapsed() < STUCK_AFTER
    }

    pub(super) fn progress(&self) -> Value {
        let state = self.state();
        let step = state
            .step
            .map(|(name, since)| json!({ "name": name, "seconds": since.elapsed().as_secs() }));
        let seconds = state.progressed_at.elapsed().as_secs();
        json!({ "lane": self.name, "queue": self.queue, "turned_seconds_ago": seconds, "step": step })
    }

    pub(super) fn is_ready(&self) -> bool {
        let state = self.state();
        state.broker.is_ok() && state.database.is_ok()
    }

    /// Why the lane is not ready. The database comes first, because nothing is consumed without it.
    pub(super) fn problem(&self) -> Option<String> {
        let state = self.state();
        state.database.as_ref().err().or(state.broker.as_ref().err()).cloned()
    }

    pub(super) fn connections(&self) -> Value {
        let state = self.state();
        let connection = |state: &Result<(), String>| match state {
            Ok(()) => json!({ "up": true }),
            Err(reason) => json!({ "up": false, "reason": reason }),
        };
        json!({
            "lane": self.name,
            "queue": self.queue,
            "broker": connection(&state.broker),
            "database": connection(&state.database),
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
        self.rows_stale.get_or_create(&self.labels).inc_by(effect.stale);
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

/// Numbers that are too large for an exact float are rounded.
#[expect(clippy::cast_precision_loss, reason = "a histogram has coarser bounds")]
fn float(number: usize) -> f64 {
    number as f64
}
