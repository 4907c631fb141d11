//! The metrics of scheduled cleanups.

use std::sync::atomic::AtomicU64;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::families::{Labels, add};
use crate::store::{GROUPS, TASKS};

const ROWS: &str = "celeriac_cleanup_rows";
const RUNS: &str = "celeriac_cleanup_runs";
const LAST_SUCCESS: &str = "celeriac_cleanup_last_success_timestamp_seconds";

/// The metric families of cleanups.
pub(super) struct Families {
    rows: Family<Labels, Counter>,
    runs: Family<Labels, Counter>,
    last_success: Family<Labels, Gauge<f64, AtomicU64>>,
}

impl Families {
    /// Registers the metrics.
    pub(super) fn register(registry: &mut Registry) -> Self {
        let runs = "Runs of the cleanup, by outcome";
        let last_success = "Time of the last successful cleanup, in seconds since 1970";
        Self {
            rows: add(registry, ROWS, "Expired rows deleted, by table"),
            runs: add(registry, RUNS, runs),
            last_success: add(registry, LAST_SUCCESS, last_success),
        }
    }
}

/// The outcome of a cleanup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CleanupOutcome {
    /// Every expired row was deleted.
    Done,
    /// The cleanup failed; the log says why.
    Failed,
    /// Another daemon was already cleaning up.
    Elsewhere,
}

/// The metrics of the cleanups of a process.
#[derive(Debug)]
pub struct CleanupMetrics {
    tasks: Counter,
    groups: Counter,
    runs: Family<Labels, Counter>,
    /// Has no sample before the first success.
    last_success: Family<Labels, Gauge<f64, AtomicU64>>,
}

impl CleanupMetrics {
    pub(super) fn new(families: &Families) -> Self {
        let rows =
            |table: &str| families.rows.get_or_create_owned(&vec![("table", table.to_owned())]);
        let (tasks, groups) = (rows(TASKS), rows(GROUPS));
        for outcome in [CleanupOutcome::Done, CleanupOutcome::Failed, CleanupOutcome::Elsewhere] {
            drop(families.runs.get_or_create(&labels(outcome)));
        }
        let last_success = families.last_success.clone();
        Self { tasks, groups, runs: families.runs.clone(), last_success }
    }

    /// Counts rows deleted from the table of tasks and from the table of groups.
    pub(crate) fn delete(&self, tasks: u64, groups: u64) {
        self.tasks.inc_by(tasks);
        self.groups.inc_by(groups);
    }

    /// Counts a finished cleanup.
    pub(crate) fn end(&self, outcome: CleanupOutcome) {
        self.runs.get_or_create(&labels(outcome)).inc();
        if outcome == CleanupOutcome::Done {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            self.last_success.get_or_create(&Labels::new()).set(now.as_secs_f64());
        }
    }
}

fn labels(outcome: CleanupOutcome) -> Labels {
    let outcome = match outcome {
        CleanupOutcome::Done => "done",
        CleanupOutcome::Failed => "failed",
        CleanupOutcome::Elsewhere => "elsewhere",
    };
    vec![("outcome", outcome.to_owned())]
}
