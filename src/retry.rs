//! Retrying with exponential backoff. A series of failures is logged when it begins, each time that
//! the error changes, and when it is over.

use std::error::Error;
use std::ops::ControlFlow;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Level;

use crate::diagnosis::Causes;

/// The first delay, which doubles with each attempt. The actual wait is up to twice the delay:
/// random jitter keeps many daemons from retrying at the same moment.
const MIN_DELAY: Duration = Duration::from_millis(100);

/// The longest delay, without jitter.
const MAX_DELAY: Duration = Duration::from_secs(15);

/// The state of one operation that is retried until it succeeds.
#[derive(Debug)]
pub struct Backoff {
    delays: ExponentialBackoff,
    since: Option<Instant>,
    reported: String,
}

impl Backoff {
    /// A backoff before the first failure.
    pub fn new() -> Self {
        let delays = ExponentialBuilder::default()
            .with_min_delay(MIN_DELAY)
            .with_max_delay(MAX_DELAY)
            .with_jitter()
            .without_max_times()
            .build();
        Self { delays, since: None, reported: String::new() }
    }

    /// The time since the first failure, or zero if there was none.
    pub fn elapsed(&self) -> Duration {
        self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Logs an error and waits before the next attempt. The same error is logged at `level` (ERROR,
    /// WARN or DEBUG) only the first time, and at DEBUG after that.
    ///
    /// Returns `Break` if `shutdown` was already cancelled. A shutdown during the wait ends the
    /// wait early but still allows one more attempt.
    pub async fn wait(
        &mut self,
        level: Level,
        problem: &str,
        error: &(dyn Error + Send + Sync + 'static),
        shutdown: &CancellationToken,
    ) -> ControlFlow<()> {
        self.since.get_or_insert_with(Instant::now);
        let causes = Causes(error).to_string();
        if causes == self.reported || level == Level::DEBUG {
            tracing::debug!(error = causes, "{problem}");
        } else if level == Level::ERROR {
            tracing::error!(error = causes, "{problem}");
        } else {
            tracing::warn!(error = causes, "{problem}");
        }
        self.reported = causes;
        if shutdown.is_cancelled() {
            return ControlFlow::Break(());
        }
        let delay = self.delays.next().unwrap_or(MAX_DELAY);
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = shutdown.cancelled() => {}
        }
        ControlFlow::Continue(())
    }

    /// Logs that the operation works again, if it had failed before. The next failure continues
    /// with the current delay; to start again with the shortest one, create a new [`Backoff`].
    pub fn end(&mut self, message: &str) {
        if let Some(since) = self.since.take() {
            tracing::info!(seconds = since.elapsed().as_secs_f32(), "{message}");
            self.reported.clear();
        }
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new()
    }
}
