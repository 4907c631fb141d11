//! Hints: tells processes that wait for results which tasks have ended. `docs/message-format.md`
//! describes the messages.
//!
//! A hint is only a reason to read a row. It may be lost: it is published without confirmation,
//! over a connection of its own, after the row is committed. So it never delays or blocks an
//! acknowledgement.

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use tokio::sync::Notify;
use tokio::time::{Duration, Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::Level;

use crate::broker::{Announce, BrokerError, BrokerErrorClass};
use crate::retry::Backoff;
use crate::row::Key;
use crate::row::state::State;
use crate::store::Change;
use crate::telemetry::HintMetrics;

/// The most memory for tasks that wait to be announced, in bytes. Further hints are dropped.
const MAX_BYTES: usize = 1 << 20;

/// The number of tasks a second whose hints are published at once. If there are more, hints are
/// collected for [`GAP`], so that processes that wait for few results need not read thousands of
/// messages a second.
const AT_ONCE_PER_SECOND: f64 = 200.0;

/// The shortest time between two messages while more tasks end.
const GAP: Duration = Duration::from_millis(25);

/// How long the broker may take to accept a message.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(5);

/// The hints of a process that have not been published yet. They are shared by its lanes.
#[derive(Debug)]
pub struct Hints {
    /// `None` if no hints are published.
    metrics: Option<HintMetrics>,
    waiting: Mutex<Waiting>,
    changed: Notify,
}

/// The id of a task that has ended, and its state.
type Ended = (String, State);

#[derive(Debug, Default)]
struct Waiting {
    ended: Vec<Ended>,
    size_bytes: usize,
    is_closed: bool,
}

impl Hints {
    /// Hints that [`publish`] has to publish.
    #[must_use]
    pub fn new(metrics: HintMetrics) -> Self {
        Self { metrics: Some(metrics), ..Self::off() }
    }

    /// Drops all hints.
    #[must_use]
    pub fn off() -> Self {
        Self { metrics: None, waiting: Mutex::default(), changed: Notify::new() }
    }

    /// Adds the tasks that are in a final state after these changes.
    pub fn add(&self, changes: &[Change]) {
        let Some(metrics) = &self.metrics else { return };
        let mut waiting = self.waiting();
        for change in changes {
            let (Key::Task(id), Some(state)) = (&change.key, &change.after) else { continue };
            if !state.is_ready() {
                continue;
            }
            let size_bytes = size_of::<Ended>() + id.len();
            if waiting.size_bytes + size_bytes > MAX_BYTES {
                metrics.drop_hint();
                continue;
            }
            waiting.size_bytes += size_bytes;
            waiting.ended.push((id.clone(), state.clone()));
        }
        let has_hints = !waiting.ended.is_empty();
        drop(waiting);
        if has_hints {
            self.changed.notify_one();
        }
    }

    /// No more hints will be added: [`publish`] ends after it has published the last ones.
    pub fn close(&self) {
        self.waiting().is_closed = true;
        self.changed.notify_one();
    }

    /// Waits for hints and takes them, as the body of a message. Returns `None` after [`close`].
    ///
    /// [`close`]: Hints::close
    async fn next(&self, pace: &mut Pace) -> Option<Vec<u8>> {
        while self.waiting().ended.is_empty() {
            if self.waiting().is_closed {
                return None;
            }
            self.changed.notified().await;
        }
        pace.wait().await;
        let ended = {
            let mut waiting = self.waiting();
            waiting.size_bytes = 0;
            std::mem::take(&mut waiting.ended)
        };
        pace.count(ended.len());
        let ended = ended.iter().map(|(id, state)| (id.as_str(), state.as_str())).collect();
        serde_json::to_vec(&Body { version: 1, r#final: ended }).ok()
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The body of a message.
#[derive(Serialize)]
struct Body<'ended> {
    version: u8,
    r#final: Vec<(&'ended str, &'ended str)>,
}

/// Publishes the hints until they are closed. If the broker is not available or refuses them, this
/// is logged and tried again: nothing else depends on it. Returns at once if hints are off.
pub async fn publish<A: Announce>(hints: &Hints, broker: &mut A, shutdown: &CancellationToken) {
    let Some(metrics) = &hints.metrics else { return };
    let mut backoff = Backoff::new();
    let mut pace = Pace::new();
    // A message that could not be published.
    let mut unsent = None;
    loop {
        let error = match broker.connect().await {
            Ok(()) => {
                backoff.end("processes that wait for results are told again when they are stored");
                match publish_all(hints, metrics, broker, &mut pace, &mut unsent).await {
                    Ok(()) => return,
                    Err(error) => error,
                }
            }
            Err(error) => error,
        };
        let problem = "processes that wait for results are not told when they are stored, and poll";
        if backoff.wait(Level::WARN, problem, &error, shutdown).await.is_break() {
            return;
        }
    }
}

async fn publish_all<A: Announce>(
    hints: &Hints,
    metrics: &HintMetrics,
    broker: &mut A,
    pace: &mut Pace,
    unsent: &mut Option<Vec<u8>>,
) -> Result<(), BrokerError> {
    loop {
        if unsent.is_none() {
            *unsent = hints.next(pace).await;
        }
        let Some(body) = &*unsent else { return Ok(()) };
        timeout(PUBLISH_TIMEOUT, broker.announce(body)).await.unwrap_or_else(|_| {
            let message =
                "the broker does not take messages: it may be short of memory or disk space";
            Err(BrokerError::new(BrokerErrorClass::Unavailable, message))
        })?;
        *unsent = None;
        metrics.publish();
    }
}

/// Decides when the next message is published: at once, or [`GAP`] after the previous one if
/// many tasks end.
#[derive(Debug)]
struct Pace {
    /// How many tasks could still be announced at once after the last message. Negative after more
    /// of them.
    credit: f64,
    published_at: Instant,
}

impl Pace {
    fn new() -> Self {
        Self { credit: AT_ONCE_PER_SECOND, published_at: Instant::now() }
    }

    /// How many tasks may be announced at once now.
    fn credit(&self) -> f64 {
        self.credit + self.published_at.elapsed().as_secs_f64() * AT_ONCE_PER_SECOND
    }

    /// Waits until the next message may be published.
    async fn wait(&self) {
        if self.credit() < 1.0 {
            sleep(GAP.saturating_sub(self.published_at.elapsed())).await;
        }
    }

    /// Counts the tasks of a message that is published now.
    #[expect(clippy::cast_precision_loss, reason = "far fewer tasks than 2^52")]
    fn count(&mut self, tasks: usize) {
        let credit = self.credit().min(AT_ONCE_PER_SECOND) - tasks as f64;
        self.credit = credit.max(-AT_ONCE_PER_SECOND);
        self.published_at = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Before;
    use crate::telemetry::Telemetry;

    fn change(id: &str, after: Option<State>) -> Change {
        Change { key: Key::Task(id.to_owned()), before: Before::Absent, after }
    }

    /// Publishes everything that is waiting, and returns the number of messages and of tasks in
    /// them.
    async fn take(hints: &Hints, pace: &mut Pace) -> usize {
        let body = hints.next(pace).await.expect("hints");
        let body: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        body["final"].as_array().expect("a list").len()
    }

    #[tokio::test]
    async fn only_final_states_of_tasks_are_announced_in_the_documented_format() {
        let hints = Hints::new(Telemetry::new().hints());
        hints.add(&[
            change("0f2f7a9e-7a0c-4d0f-8c53-6b1b9b9c9a55", Some(State::Success)),
            change("running", Some(State::Started)),
            Change { key: Key::Group("group".to_owned()), ..change("", None) },
        ]);
        let body = hints.next(&mut Pace::new()).await.expect("a hint");
        let document = include_str!("../docs/message-format.md").split("## Hints").nth(1);
        let example = document.and_then(|text| text.split("```").nth(1)).expect("an example");
        let example: serde_json::Value =
            serde_json::from_str(example.trim_start_matches("json")).expect("JSON");
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&body).expect("JSON"), example);
        hints.close();
        assert_eq!(hints.next(&mut Pace::new()).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn single_tasks_are_announced_at_once_and_many_together() {
        let hints = Hints::new(Telemetry::new().hints());
        let mut pace = Pace::new();
        let began = Instant::now();
        for _ in 0..1000 {
            tokio::time::advance(Duration::from_millis(5)).await;
            hints.add(&[change("one", Some(State::Success))]);
            assert_eq!(take(&hints, &mut pace).await, 1);
        }
        assert_eq!(began.elapsed(), Duration::from_secs(5), "no hint has waited");
        let many: Vec<_> =
            (0..2000).map(|id| change(&id.to_string(), Some(State::Failure))).collect();
        hints.add(&many);
        assert_eq!(take(&hints, &mut pace).await, 2000);
        let began = Instant::now();
        hints.add(&many);
        assert_eq!(take(&hints, &mut pace).await, 2000);
        assert_eq!(began.elapsed(), GAP);
    }

    #[tokio::test]
    async fn hints_that_nobody_takes_are_bounded() {
        let telemetry = Telemetry::new();
        let hints = Hints::new(telemetry.hints());
        let ended = change(&"x".repeat(255), Some(State::Success));
        let count = MAX_BYTES / (255 + size_of::<Ended>());
        hints.add(&vec![ended; count + 3]);
        assert_eq!(take(&hints, &mut Pace::new()).await, count);
        let metrics = telemetry.exposition().expect("text");
        assert!(metrics.contains("celeriac_hints_dropped_total 3\n"), "{metrics}");
    }
}
