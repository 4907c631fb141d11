//! Telling systemd how the process is, by its `sd_notify` protocol: ready, stopping, alive, and a
//! line for `systemctl status`. Where no service manager asks (`NOTIFY_SOCKET`), nothing is told.

use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, interval_at};
use tokio_util::sync::CancellationToken;

use crate::telemetry::Telemetry;

/// How long a start waits for both sides of every lane. Then it is over all the same: an outage is
/// no failed start, and systemd would end a daemon that does no more than wait. Shorter than
/// systemd's own patience of 90 s.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// How often it is looked whether the start is over, and whether there is a new line to be shown.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long a line stands before another that only counts further takes its place.
const COUNT_EVERY: Duration = Duration::from_secs(10);

/// Tells the service manager for as long as it is polled.
pub async fn watch(telemetry: Arc<Telemetry>, shutdown: CancellationToken) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let started_at = Instant::now();
    let mut looks = interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut watchdog = sd_notify::watchdog_enabled().map(watchdog_ticks);
    let mut is_starting = true;
    let mut is_stopping = false;
    let mut shown = Shown::default();
    loop {
        tokio::select! {
            _ = looks.tick(), if !is_stopping => {
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
                tell(&state);
            }
            () = tick(watchdog.as_mut()) => {
                if telemetry.liveness().is_good {
                    tell(&[NotifyState::Watchdog]);
                }
            }
            () = shutdown.cancelled(), if !is_stopping => {
                is_stopping = true;
                let line = "stopping: settling what is held";
                tell(&[NotifyState::Stopping, NotifyState::Status(line)]);
            }
        }
    }
}

/// The line that was told last.
#[derive(Default)]
struct Shown {
    line: String,
    is_ready: bool,
    at: Option<Instant>,
}

impl Shown {
    /// Whether a line is to be told: at once when something has happened, and every now and then
    /// when there are only more rows.
    fn is_due(&mut self, line: &str, is_ready: bool) -> bool {
        let only_counts = self.is_ready && is_ready;
        let is_fresh = self.at.is_some_and(|at| at.elapsed() < COUNT_EVERY);
        if line == self.line || (only_counts && is_fresh) {
            return false;
        }
        *self = Self { line: line.to_owned(), is_ready, at: Some(Instant::now()) };
        true
    }
}

/// Twice in the time that systemd waits for a sign of life.
fn watchdog_ticks(patience: Duration) -> Interval {
    // An interval cannot be zero.
    let period = (patience / 2).max(Duration::from_millis(1));
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

fn tell(state: &[NotifyState<'_>]) {
    if state.is_empty() {
        return;
    }
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager cannot be told: check NOTIFY_SOCKET");
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_happens_is_told_at_once_and_counts_now_and_then() {
        let mut shown = Shown::default();
        assert!(shown.is_due("not connected yet", false));
        assert!(!shown.is_due("not connected yet", false), "the same");
        assert!(shown.is_due("refused", false));
        assert!(shown.is_due("0 rows", true));
        assert!(!shown.is_due("1 row", true), "only counts");
        advance(COUNT_EVERY).await;
        assert!(shown.is_due("2 rows", true));
        assert!(shown.is_due("gone", false));
    }

    #[tokio::test(start_paused = true)]
    async fn a_sign_of_life_comes_twice_in_the_time_that_is_waited() {
        let begun_at = Instant::now();
        let mut ticks = watchdog_ticks(Duration::from_mins(1));
        ticks.tick().await;
        ticks.tick().await;
        assert_eq!(begun_at.elapsed(), Duration::from_secs(30));
        watchdog_ticks(Duration::ZERO).tick().await;
    }
}
