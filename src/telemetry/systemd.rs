//! Notifies systemd about the state of the process with the `sd_notify` protocol: ready, stopping,
//! watchdog, and a line for `systemctl status`. Does nothing if `NOTIFY_SOCKET` is not set.

use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, interval_at};
use tokio_util::sync::CancellationToken;

use crate::telemetry::Telemetry;

/// How long the start waits for the broker and the database of every lane. After that the process
/// counts as started anyway, because an outage is not a failed start, and systemd would stop a
/// daemon that is still starting. It is shorter than systemd's default timeout of 90 s.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// How often to check whether the start is complete and whether the status line has changed.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);

/// How long a status line stays before it is replaced by one in which only the numbers differ.
const COUNT_INTERVAL: Duration = Duration::from_secs(10);

/// Notifies the service manager for as long as it is polled.
pub async fn watch(telemetry: Arc<Telemetry>, shutdown: CancellationToken) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let started_at = Instant::now();
    let mut status_ticks = interval(STATUS_INTERVAL);
    status_ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut watchdog = sd_notify::watchdog_enabled().map(watchdog_ticks);
    let mut is_starting = true;
    let mut is_stopping = false;
    let mut shown = StatusLine::default();
    loop {
        tokio::select! {
            _ = status_ticks.tick(), if !is_stopping => {
                let is_ready = telemetry.readiness().is_good;
                let mut state = Vec::new();
                if is_starting && (is_ready || started_at.elapsed() >= START_TIMEOUT) {
                    is_starting = false;
                    state.push(NotifyState::Ready);
                }
                let line = telemetry.summary();
                if shown.is_due(&line, is_ready) {
                    state.push(NotifyState::Status(&line));
                }
                notify(&state);
            }
            () = tick(watchdog.as_mut()) => {
                if telemetry.liveness().is_good {
                    notify(&[NotifyState::Watchdog]);
                }
            }
            () = shutdown.cancelled(), if !is_stopping => {
                is_stopping = true;
                let line = "stopping: storing the messages that were received";
                notify(&[NotifyState::Stopping, NotifyState::Status(line)]);
            }
        }
    }
}

/// The last status line that was sent.
#[derive(Default)]
struct StatusLine {
    line: String,
    is_ready: bool,
    at: Option<Instant>,
}

impl StatusLine {
    /// Whether to send a line: at once if the state has changed, and at intervals if only the
    /// numbers have changed.
    fn is_due(&mut self, line: &str, is_ready: bool) -> bool {
        let only_counts = self.is_ready && is_ready;
        let is_fresh = self.at.is_some_and(|at| at.elapsed() < COUNT_INTERVAL);
        if line == self.line || (only_counts && is_fresh) {
            return false;
        }
        *self = Self { line: line.to_owned(), is_ready, at: Some(Instant::now()) };
        true
    }
}

/// Ticks twice per watchdog timeout.
fn watchdog_ticks(timeout: Duration) -> Interval {
    // An interval cannot be zero.
    let period = (timeout / 2).max(Duration::from_millis(1));
    let mut ticks = interval_at(Instant::now(), period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

async fn tick(ticks: Option<&mut Interval>) {
    match ticks {
        Some(ticks) => drop(ticks.tick().await),
        None => std::future::pending().await,
    }
}

fn notify(state: &[NotifyState<'_>]) {
    if state.is_empty() {
        return;
    }
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "cannot notify the service manager: check NOTIFY_SOCKET");
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn changes_are_sent_at_once_and_numbers_at_intervals() {
        let mut shown = StatusLine::default();
        assert!(shown.is_due("not connected yet", false));
        assert!(!shown.is_due("not connected yet", false), "the same");
        assert!(shown.is_due("refused", false));
        assert!(shown.is_due("0 rows", true));
        assert!(!shown.is_due("1 row", true), "only counts");
        advance(COUNT_INTERVAL).await;
        assert!(shown.is_due("2 rows", true));
        assert!(shown.is_due("gone", false));
    }

    #[tokio::test(start_paused = true)]
    async fn the_watchdog_is_notified_twice_per_timeout() {
        let begun_at = Instant::now();
        let mut ticks = watchdog_ticks(Duration::from_mins(1));
        ticks.tick().await;
        ticks.tick().await;
        assert_eq!(begun_at.elapsed(), Duration::from_secs(30));
        watchdog_ticks(Duration::ZERO).tick().await;
    }
}
