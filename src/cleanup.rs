//! Deleting expired rows: once, for `celeriac cleanup`, and now and then beside the lanes.
//!
//! A cleanup has a connection of its own, and after each batch a pause, so no lane ever waits for
//! more than a batch. What it deletes comes back only with a message: one that is delivered again
//! after its row was deleted makes the row anew, and a later cleanup deletes it again.

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
use crate::store::{Cleaner, CleanupStep, Database, ErrorClass, Found, Job, NextStep, StoreError};
use crate::telemetry::{CleanupMetrics, CleanupOutcome, Telemetry};

/// How long a cleanup that has begun tries again before it gives up.
const RETRY_LIMIT: Duration = Duration::from_mins(10);

/// The part of the time between two cleanups within which the first one begins, and by which the
/// others are early or late, so that many daemons do not come in step.
const JITTER: f64 = 0.1;

/// How a cleanup has ended where it has not failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CleanupEnd {
    /// All that had expired was deleted.
    Done,
    /// It was time to stop.
    Stopped,
    /// Another process does it already.
    Elsewhere,
}

/// What a cleanup with these settings is to do now.
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

/// Lets a cleaner work until all is done or it is time to stop, which it does between two batches.
///
/// # Errors
///
/// What cannot be mended by trying again; an outage where there is already one when it begins, or
/// where it lasts for 10 minutes.
pub async fn run(
    cleaner: &mut dyn Cleaner,
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
                let may_pass = match error.class {
                    ErrorClass::Conflict => true,
                    ErrorClass::Outage => has_begun,
                    ErrorClass::Poison | ErrorClass::Setup => false,
                };
                if !may_pass || backoff.elapsed() > RETRY_LIMIT {
                    return Err(error);
                }
                if backoff.wait(Level::WARN, "the cleanup waits", &error, shutdown).await.is_break()
                {
                    break;
                }
                continue;
            }
        };
        has_begun = true;
        backoff.end("the cleanup goes on");
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

/// How many rows of tasks and of groups were found.
#[must_use]
pub fn totals(found: &Found) -> (u64, u64) {
    let rows = |of_groups| {
        found.iter().filter(|(kind, _)| kind.is_group == of_groups).map(|(_, rows)| rows).sum()
    };
    (rows(false), rows(true))
}

/// Logs what may be a slip of the pen: states that Celery does not have, and which only count where
/// an application sets them.
pub fn warn_of_states(expiry: &Expiry) {
    for rule in expiry.rules() {
        if let RuleSubject::State(name) = &rule.subject
            && matches!(State::from(name.as_str()), State::Custom(_))
        {
            tracing::warn!(
                state = name,
                "result-expires-by-state names a state that is none of Celery's: it counts only \
                 for tasks that set it themselves"
            );
        }
    }
}

/// Cleans up again and again until `shutdown` is cancelled. Whatever goes wrong is logged and costs
/// only the one cleanup.
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
            // What it is at is undone by the database.
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
    let mut cleaner = database.into_cleaner(Job { alone: true, ..job(&config.cleanup) });
    let done = follow(&mut *cleaner, config.cleanup.pause, metrics, shutdown).await;
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
            if error.class == ErrorClass::Setup {
                tracing::error!(error = error_text, tasks, groups, seconds, "{problem}");
            } else {
                tracing::warn!(error = error_text, tasks, groups, seconds, "{problem}");
            }
            metrics.end(CleanupOutcome::Failed);
        }
    }
    cleaner.close().await;
}

/// Lets a cleaner work, and counts what it deletes when it has.
async fn follow(
    cleaner: &mut dyn Cleaner,
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
