//! Trying again: ever longer waits up to a limit, and two lines in the log, one when the trouble
//! begins and one when it is over.

use std::error::Error;
use std::ops::ControlFlow;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Level;

use crate::diagnosis::Causes;

/// The shortest wait. Each wait is up to twice as long as the one before, by chance less, so that
/// many daemons do not come back in step.
const MIN_DELAY: Duration = Duration::from_millis(100);

/// The longest wait.
const MAX_DELAY: Duration = Duration::from_secs(15);

/// A span of trouble with one thing that is tried again and again.
#[derive(Debug)]
pub struct Backoff {
    delays: ExponentialBackoff,
    since: Option<Instant>,
    reported: String,
}

impl Backoff {
    /// No trouble yet.
    pub fn new() -> Self {
        let delays = ExponentialBuilder::default()
            .with_min_delay(MIN_DELAY)
            .with_max_delay(MAX_DELAY)
            .with_jitter()
            .without_max_times()
            .build();
        Self { delays, since: None, reported: String::new() }
    }

    /// How long the trouble has lasted.
    pub fn elapsed(&self) -> Duration {
        self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Logs an error at a level, once as long as it stays the same, and waits before the next try.
    /// Breaks off where it is time to stop; a wait that this cuts short still allows one try.
    pub async fn wait(
        &mut self,
        level: Level,
        problem: &str,
        error: &(dyn Error + Send + Sync + 'static),
        shutdown: &CancellationToken,
    ) -> ControlFlow<()> {
        self.since.get_or_insert_with(Instant::now);
        let causes = Causes(error).to_string();
        if causes == self.reported {
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

    /// Reports that the trouble is over, where there was any. The waits go on from where they
    /// are if it comes back soon; who knows that it will not takes a new [`Backoff`].
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
