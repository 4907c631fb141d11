//! The name, unit and help text of each metric of the lanes, and the totals for the log.

use std::collections::BTreeMap;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry};

use crate::version::{COMMIT, VERSION};

/// The name of `celeriac_build_info` without its suffix.
const BUILD: &str = "celeriac_build";

// Counters, whose names get the suffix `_total`. The unit is the noun.
const MESSAGES_RECEIVED: &str = "celeriac_messages_received";
const MESSAGES_REDELIVERED: &str = "celeriac_messages_redelivered";
const MESSAGES_ACKNOWLEDGED: &str = "celeriac_messages_acknowledged";
const ROWS_READ: &str = "celeriac_rows_read";
const ROWS_MERGED: &str = "celeriac_rows_merged";
const ROWS_STORED: &str = "celeriac_rows_stored";
const ROWS_STALE: &str = "celeriac_rows_stale";
const EVENTS_SKIPPED: &str = "celeriac_events_skipped";
const DEAD_LETTERS: &str = "celeriac_dead_letters";
const DATABASE_STATEMENTS: &str = "celeriac_database_statements";
const DATABASE_ERRORS: &str = "celeriac_database_errors";
const BROKER_SESSIONS: &str = "celeriac_broker_sessions";

// Histograms.
const BATCH_ROWS: &str = "celeriac_batch_rows";
const BATCH_SIZE_BYTES: &str = "celeriac_batch_size_bytes";
const BATCH_DURATION_SECONDS: &str = "celeriac_batch_duration_seconds";
const WRITE_DURATION_SECONDS: &str = "celeriac_database_write_duration_seconds";
const LAG_SECONDS: &str = "celeriac_lag_seconds";

// Gauges.
const MESSAGES_UNACKNOWLEDGED: &str = "celeriac_messages_unacknowledged";
const BROKER_UP: &str = "celeriac_broker_up";
const DATABASE_UP: &str = "celeriac_database_up";
const QUEUE_MESSAGES: &str = "celeriac_queue_messages";
const QUEUE_CONSUMERS: &str = "celeriac_queue_consumers";

/// Names and values of labels. The values come from the settings and from this program, never from
/// a message.
pub(super) type Labels = Vec<(&'static str, String)>;

type Histograms = Family<Labels, Histogram, fn() -> Histogram>;

/// The metrics that have labels.
pub(super) struct Families {
    pub(super) messages_received: Family<Labels, Counter>,
    pub(super) messages_redelivered: Family<Labels, Counter>,
    pub(super) messages_acknowledged: Family<Labels, Counter>,
    pub(super) rows_read: Family<Labels, Counter>,
    pub(super) rows_merged: Family<Labels, Counter>,
    pub(super) rows_stored: Family<Labels, Counter>,
    pub(super) rows_stale: Family<Labels, Counter>,
    pub(super) events_skipped: Family<Labels, Counter>,
    pub(super) dead_letters: Family<Labels, Counter>,
    pub(super) database_statements: Family<Labels, Counter>,
    pub(super) database_errors: Family<Labels, Counter>,
    pub(super) broker_sessions: Family<Labels, Counter>,
    pub(super) batch_rows: Histograms,
    pub(super) batch_size_bytes: Histograms,
    pub(super) batch_duration_seconds: Histograms,
    pub(super) write_duration_seconds: Histograms,
    pub(super) lag_seconds: Histograms,
    pub(super) messages_unacknowledged: Family<Labels, Gauge>,
    pub(super) broker_up: Family<Labels, Gauge>,
    pub(super) database_up: Family<Labels, Gauge>,
    pub(super) queue_messages: Family<Labels, Gauge>,
    pub(super) queue_consumers: Family<Labels, Gauge>,
}

/// The totals of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Received messages, including those that were delivered again.
    pub messages: u64,
    /// Rows decoded from them.
    pub rows_read: u64,
    /// Rows that were written. The other rows were merged into these before.
    pub rows_written: u64,
    /// Dead letters, by the code of their reason.
    pub dead: BTreeMap<&'static str, u64>,
}

impl Families {
    /// Registers every metric.
    pub(super) fn register(registry: &mut Registry) -> Self {
        let version = Info::new(vec![("version", VERSION), ("commit", COMMIT.unwrap_or_default())]);
        registry.register(BUILD, "The version and the commit of the program", version);
        Self {
            messages_received: add(
                registry,
                MESSAGES_RECEIVED,
                "Messages taken from the queue, including redelivered ones",
            ),
            messages_redelivered: add(
                registry,
                MESSAGES_REDELIVERED,
                "Messages taken that had been delivered before, to this or another consumer",
            ),
            messages_acknowledged: add(
                registry,
                MESSAGES_ACKNOWLEDGED,
                "Messages acknowledged, after they were stored or became dead letters",
            ),
            rows_read: add(registry, ROWS_READ, "Rows decoded from messages"),
            rows_merged: add(
                registry,
                ROWS_MERGED,
                "Rows merged into another row of the same batch before the write",
            ),
            rows_stored: add(
                registry,
                ROWS_STORED,
                "Rows committed; a row that is written twice counts twice",
            ),
            rows_stale: add(
                registry,
                ROWS_STALE,
                "Rows committed that changed nothing; not known for MySQL and MariaDB",
            ),
            events_skipped: add(
                registry,
                EVENTS_SKIPPED,
                "Events skipped because they are not in Celery's format",
            ),
            dead_letters: add(
                registry,
                DEAD_LETTERS,
                "Messages moved to the dead-letter queue, by reason",
            ),
            database_statements: add(
                registry,
                DATABASE_STATEMENTS,
                "SQL statements that wrote rows, by table",
            ),
            database_errors: add(registry, DATABASE_ERRORS, "Database errors, by class"),
            broker_sessions: add(
                registry,
                BROKER_SESSIONS,
                "Times that a lane has started to consume",
            ),
            batch_rows: histogram(registry, BATCH_ROWS, "Rows in a batch", || {
                Histogram::new(exponential_buckets(1.0, 4.0, 9))
            }),
            batch_size_bytes: histogram(
                registry,
                BATCH_SIZE_BYTES,
                "Size of a batch: for each message the larger of its body and its rows",
                || Histogram::new(exponential_buckets(1024.0, 4.0, 9)),
            ),
            batch_duration_seconds: histogram(
                registry,
                BATCH_DURATION_SECONDS,
                "Time from when a batch is complete until it is acknowledged",
                || Histogram::new(SECONDS),
            ),
            write_duration_seconds: histogram(
                registry,
                WRITE_DURATION_SECONDS,
                "Duration of one write to the database, successful or not",
                || Histogram::new(SECONDS),
            ),
            lag_seconds: histogram(
                registry,
                LAG_SECONDS,
                "Time from a state to the commit of its row, if the message has the time of the state",
                || Histogram::new(SECONDS.into_iter().chain([900.0, 3_600.0, 21_600.0])),
            ),
            messages_unacknowledged: add(
                registry,
                MESSAGES_UNACKNOWLEDGED,
                "Messages that a lane has taken and not yet acknowledged",
            ),
            broker_up: add(registry, BROKER_UP, "1 while a lane consumes its queue, otherwise 0"),
            database_up: add(
                registry,
                DATABASE_UP,
                "1 while the database accepts the writes of a lane, otherwise 0",
            ),
            queue_messages: add(registry, QUEUE_MESSAGES, "Messages that are ready in the queue"),
            queue_consumers: add(registry, QUEUE_CONSUMERS, "Consumers of the queue"),
        }
    }
}

/// The bucket bounds of durations, from a statement for one row to the longest timeouts.
const SECONDS: [f64; 16] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
];

pub(super) fn add<M>(registry: &mut Registry, name: &str, help: &str) -> Family<Labels, M>
where
    M: Default,
    Family<Labels, M>: Metric,
{
    let family = Family::<Labels, M>::default();
    registry.register(name, help, family.clone());
    family
}

fn histogram(
    registry: &mut Registry,
    name: &str,
    help: &str,
    make: fn() -> Histogram,
) -> Histograms {
    let family = Histograms::new_with_constructor(make);
    registry.register(name, help, family.clone());
    family
}
