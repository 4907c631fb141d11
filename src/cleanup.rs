//! Deletes expired rows: once for `celeriac cleanup`, and on a schedule for `celeriac run`.
//!
//! A cleanup has its own database connection and pauses after each batch, so a lane waits for one
//! batch at most. If a message is delivered again after its row was deleted, the row is created
//! again, and a later cleanup deletes it again.

use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Level;

use crate::config::{CleanupConfig, Config};
use crate::diagnosis::Causes;
use crate::retry::Backoff;
use crate::row::expiry::{Expiry, RuleSubject};
use crate::row::state::State;
use crate::store::{
    Action, Cleaner, CleanupStep, Database, Found, Job, MAX_HOLD, NextStep, StoreError,
};
use crate::telemetry::{CleanupMetrics, CleanupOutcome, Telemetry};

/// A fraction of the interval between two cleanups. The first cleanup begins within this fraction,
/// and later ones are early or late by up to this fraction, so that many daemons do not clean up at
/// the same moment.
const JITTER: f64 = 0.1;

/// How a cleanup ended, if it did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CleanupEnd {
    /// Every expired row was deleted.
    Done,
    /// The process was asked to stop.
    Stopped,
    /// Another process is already cleaning up.
    Elsewhere,
}

/// The job of a cleanup with these settings that begins now.
#[must_use]
pub fn job(settings: &CleanupConfig) -> Job {
    Job {
        expiry: settings.expiry.clone(),
        batch: settings.batch,
        dry_run: false,
        alone: false,
        now: Utc::now(),
    }
}

/// Runs a cleaner until it has finished or `shutdown` is cancelled. It stops only between two
/// batches.
///
/// # Errors
///
/// When an error cannot be fixed by retrying, when the database is not available at the beginning,
/// or when an outage lasts longer than [`MAX_HOLD`].
pub async fn run(
    cleaner: &mut Cleaner,
    pause: Duration,
    shutdown: &CancellationToken,
    on_step: &mut (dyn FnMut(&CleanupStep) + Send),
) -> Result<CleanupEnd, StoreError> {
    let mut backoff = Backoff::new();
    let mut has_begun = false;
    while !shutdown.is_cancelled() {
        let step = match cleaner.step().await {
            Ok(step) => step,
            Err(error) => {
                let can_retry = match error.class.action(0) {
                    Action::RetryAtOnce => true,
                    Action::RetryLater => has_begun,
                    Action::Refuse | Action::GiveUp => false,
                };
                if !can_retry || backoff.elapsed() > MAX_HOLD {
                    return Err(error);
                }
                if backoff
                    .wait(Level::WARN, "the cleanup failed and will be retried", &error, shutdown)
                    .await
                    .is_break()
                {
                    break;
                }
                continue;
            }
        };
        has_begun = true;
        backoff.end("the cleanup continues");
        backoff = Backoff::new();
        on_step(&step);
        match step.next {
            NextStep::Over => return Ok(CleanupEnd::Done),
            NextStep::Taken => return Ok(CleanupEnd::Elsewhere),
            NextStep::More if step.has_locked => tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = shutdown.cancelled() => {}
            },
            NextStep::More => {}
        }
    }
    Ok(CleanupEnd::Stopped)
}

/// The numbers of task rows and of group rows that were found.
#[must_use]
pub fn totals(found: &Found) -> (u64, u64) {
    let rows = |of_groups| {
        found.iter().filter(|(kind, _)| kind.is_group == of_groups).map(|(_, rows)| rows).sum()
    };
    (rows(false), rows(true))
}

/// Warns about states that Celery does not define, because they may be misspelled. They apply only
/// to tasks whose own code sets such a state.
pub fn warn_of_states(expiry: &Expiry) {
    for rule in expiry.rules() {
        if let RuleSubject::State(name) = &rule.subject
            && matches!(State::from(name.as_str()), State::Custom(_))
        {
            tracing::warn!(
                state = name,
                "result-expires-by-state names a state that is none of Celery's: it applies only \
                 to tasks that set it themselves"
            );
        }
    }
}

/// Cleans up at intervals until `shutdown` is cancelled. An error is logged and ends only the
/// current cleanup.
pub async fn watch(
    config: Arc<Config>,
    every: Duration,
    telemetry: Arc<Telemetry>,
    shutdown: CancellationToken,
) {
    let metrics = telemetry.cleanup();
    warn_of_states(&config.cleanup.expiry);
    let mut delay = every.mul_f64(JITTER * fastrand::f64());
    loop {
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = shutdown.cancelled() => return,
        }
        tokio::select! {
            () = clean_up(&config, &metrics, &shutdown) => {}
            // The database rolls back the transaction that is in progress.
            () = shutdown.cancelled() => return,
        }
        delay = every.mul_f64(1.0 + JITTER * (2.0 * fastrand::f64() - 1.0));
    }
}

/// Cleans up once.
async fn clean_up(config: &Config, metrics: &CleanupMetrics, shutdown: &CancellationToken) {
    let began_at = Instant::now();
    let database = match Database::new(config) {
        Ok(database) => database,
        Err(error) => {
            tracing::error!(error = %Causes(&error), "expired rows cannot be deleted");
            metrics.end(CleanupOutcome::Failed);
            return;
        }
    };
    let mut cleaner = database.cleaner(Job { alone: true, ..job(&config.cleanup) });
    let done = run_and_count(&mut cleaner, config.cleanup.pause, metrics, shutdown).await;
    let (tasks, groups) = totals(cleaner.found());
    let seconds = began_at.elapsed().as_secs_f32();
    match done {
        Ok(CleanupEnd::Done) => {
            tracing::info!(tasks, groups, seconds, "expired rows are deleted");
            metrics.end(CleanupOutcome::Done);
        }
        Ok(CleanupEnd::Elsewhere) => {
            tracing::info!("another daemon deletes expired rows");
            metrics.end(CleanupOutcome::Elsewhere);
        }
        Ok(CleanupEnd::Stopped) => {}
        Err(error) => {
            let error_text = Causes(&error).to_string();
            let problem = "expired rows are left for the next time";
            if error.class.log_level() == Level::ERROR {
                tracing::error!(error = error_text, tasks, groups, seconds, "{problem}");
            } else {
                tracing::warn!(error = error_text, tasks, groups, seconds, "{problem}");
            }
            metrics.end(CleanupOutcome::Failed);
        }
    }
    cleaner.close().await;
}

/// Runs a cleaner and counts the deleted rows after each batch.
async fn run_and_count(
    cleaner: &mut Cleaner,
    pause: Duration,
    metrics: &CleanupMetrics,
    shutdown: &CancellationToken,
) -> Result<CleanupEnd, StoreError> {
    let mut count = |step: &CleanupStep| {
        let (tasks, groups) = if step.of_groups { (0, step.deleted) } else { (step.deleted, 0) };
        metrics.delete(tasks, groups);
    };
    run(cleaner, pause, shutdown, &mut count).await
}
