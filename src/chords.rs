//! Chords: sends the unlock message of a chord when all its members have ended.
//!
//! A worker prepares the message, `celery.chord_unlock`, when it applies the chord. The worker that
//! receives it runs Celery's own code: it joins the results and sends the body. What is known of a
//! chord is in the database (`store/chords.rs`), so nothing is lost when the process ends: a sweep
//! finds what was left. `docs/message-format.md` describes the messages.

use std::collections::BTreeSet;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Level;

use crate::broker::{BrokerError, BrokerErrorClass, SendTask, Sent};
use crate::message::{Message, Value, capture};
use crate::retry::Backoff;
use crate::store::{ChordStore, StoreError, Unlock};
use crate::telemetry::ChordMetrics;

/// How often the tables are searched for what was left. If a sweep takes long, the next one waits
/// [`SWEEP_SHARE`] times as long.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);
const SWEEP_SHARE: u32 = 20;

/// The same while there is no queue for results, which a lane declares.
const QUEUE_INTERVAL: Duration = Duration::from_millis(500);

/// How often a database without the tables is looked at again.
const TABLES_INTERVAL: Duration = Duration::from_mins(1);

/// How long a lane waits for an unlock message that is sent without the tables.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);

/// The most chords that wait to be unlocked. A sweep finds those that do not fit.
const WAITING: usize = 1_000;

/// When an unlock message is sent again if no worker reports that it has processed it; doubled each
/// time, up to a day. It may only wait in a long queue, and is not lost unless the queue is.
const FIRST_AGAIN: TimeDelta = TimeDelta::minutes(10);
const LAST_AGAIN: TimeDelta = TimeDelta::days(1);

/// When a message that the broker has returned is sent again.
const RETURNED_AGAIN: TimeDelta = TimeDelta::seconds(30);

/// The most bytes of results in the headers of an unlock message. Together the headers have to fit
/// into a frame of 128 KiB.
const MAX_HEADER_BYTES: usize = 48 * 1_024;

/// The header of an unlock message with the results of the members, as JSON.
const RESULTS_HEADER: &str = "celeriac_results";

/// The headers of an unlock message with the id of the chord, and with the number of times that it
/// was sent before.
const CHORD_HEADER: &str = "celeriac_chord";
const UNLOCKS_HEADER: &str = "celeriac_unlocks";

/// The chords that lanes have found complete. It is shared by the lanes of a process.
#[derive(Debug)]
pub struct Chords {
    /// `None` if nothing is sent.
    orders: Option<mpsc::Sender<Order>>,
    /// Whether chords are recorded in the database; `None` until that is known.
    is_recorded: watch::Sender<Option<bool>>,
}

/// What a lane asks for.
#[derive(Debug)]
enum Order {
    /// Send the unlock message of a complete chord.
    Unlock(String),
    /// Send an unlock message that is not in the database, and report whether it was sent.
    Send(Box<Message>, oneshot::Sender<()>),
}

/// The orders that [`run`] carries out.
#[derive(Debug)]
pub struct Orders(mpsc::Receiver<Order>);

impl Chords {
    /// Chords whose messages [`run`] has to send.
    #[must_use]
    pub fn new() -> (Self, Orders) {
        let (sender, receiver) = mpsc::channel(WAITING);
        let chords = Self { orders: Some(sender), is_recorded: watch::Sender::new(None) };
        (chords, Orders(receiver))
    }

    /// Sends nothing. If chords are recorded, a daemon finds the complete ones in the database;
    /// otherwise what messages tell about chords is left out.
    #[must_use]
    pub fn without_sending(is_recorded: bool) -> Self {
        Self { orders: None, is_recorded: watch::Sender::new(Some(is_recorded)) }
    }

    /// Whether chords are recorded in the database. Waits until that is known.
    pub(crate) async fn is_recorded(&self) -> bool {
        let mut is_recorded = self.is_recorded.subscribe();
        // An error would mean that the sender was dropped, which `self` contains.
        matches!(is_recorded.wait_for(Option::is_some).await.as_deref(), Ok(Some(true)))
    }

    /// Asks for the unlock messages of complete chords, which are noted as being sent.
    pub(crate) fn unlock(&self, complete: Vec<String>) {
        let Some(orders) = &self.orders else { return };
        for group_id in complete {
            let _ = orders.try_send(Order::Unlock(group_id));
        }
    }

    /// Sends the unlock message of a chord that begins, because there are no tables. The worker
    /// that receives it polls.
    ///
    /// # Errors
    ///
    /// When the broker has not confirmed it in time.
    pub(crate) async fn send(&self, unlock: &str) -> Result<(), BrokerError> {
        let Some(orders) = &self.orders else { return Ok(()) };
        let Ok(message) = capture::read(unlock, Utc::now(), 0) else { return Ok(()) };
        let (sender, sent) = oneshot::channel();
        let order = Order::Send(Box::new(message), sender);
        let sending = async { orders.send(order).await.is_ok() && sent.await.is_ok() };
        if tokio::time::timeout(SEND_TIMEOUT, sending).await.unwrap_or(false) {
            return Ok(());
        }
        let message = "the unlock message of a chord could not be sent";
        Err(BrokerError::new(BrokerErrorClass::Unavailable, message))
    }
}

/// Sends unlock messages until `shutdown` is cancelled.
pub async fn run<B: SendTask>(
    chords: &Chords,
    orders: Orders,
    store: ChordStore,
    broker: B,
    metrics: &ChordMetrics,
    shutdown: &CancellationToken,
) {
    let mut keeper = Keeper {
        chords,
        store,
        broker,
        metrics,
        is_connected: false,
        waiting: BTreeSet::new(),
        sweep_at: Instant::now(),
        tables_at: Instant::now(),
    };
    let mut orders = orders.0;
    let mut backoff = Backoff::new();
    loop {
        let problem = match keeper.step(&mut orders, shutdown).await {
            Ok(true) => {
                backoff.end("chords are unlocked again");
                continue;
            }
            Ok(false) => return,
            Err(problem) => problem,
        };
        let what = "complete chords wait, and are unlocked later";
        // The lanes report that the database is not available.
        let level = if matches!(problem, Problem::Store(_)) { Level::DEBUG } else { Level::WARN };
        if backoff.wait(level, what, &problem, shutdown).await.is_break() {
            return;
        }
    }
}

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

struct Keeper<'process, B> {
    chords: &'process Chords,
    store: ChordStore,
    broker: B,
    metrics: &'process ChordMetrics,
    is_connected: bool,
    /// The chords to unlock.
    waiting: BTreeSet<String>,
    sweep_at: Instant,
    tables_at: Instant,
}

impl<B: SendTask> Keeper<'_, B> {
    /// Waits for something to do and does it. Returns false on shutdown.
    async fn step(
        &mut self,
        orders: &mut mpsc::Receiver<Order>,
        shutdown: &CancellationToken,
    ) -> Result<bool, Problem> {
        let has_tables = *self.chords.is_recorded.borrow() == Some(true);
        if !has_tables && self.tables_at <= Instant::now() {
            self.tables_at = Instant::now() + TABLES_INTERVAL;
            self.find_tables().await?;
            return Ok(true);
        }
        if has_tables && self.sweep_at <= Instant::now() {
            let began_at = Instant::now();
            let is_accepting = self.sweep().await?;
            let interval = if is_accepting { SWEEP_INTERVAL } else { QUEUE_INTERVAL };
            self.sweep_at = Instant::now() + interval.max(began_at.elapsed() * SWEEP_SHARE);
        }
        while let Some(group_id) = self.waiting.first().cloned() {
            self.unlock(&group_id).await?;
            self.waiting.remove(&group_id);
        }
        let next = if has_tables { self.sweep_at } else { self.tables_at };
        let order = tokio::select! {
            biased;
            order = orders.recv() => order,
            () = tokio::time::sleep_until(next) => return Ok(true),
            () = shutdown.cancelled() => return Ok(false),
        };
        match order {
            Some(Order::Unlock(group_id)) => drop(self.waiting.insert(group_id)),
            Some(Order::Send(message, sent)) => {
                self.connect().await?;
                if let Sent::Returned(reason) = self.send(&message).await? {
                    tracing::warn!(reason, "the unlock message of a chord was returned");
                } else {
                    let _ = sent.send(());
                }
            }
            None => return Ok(false),
        }
        Ok(true)
    }

    async fn find_tables(&mut self) -> Result<(), Problem> {
        if let Err(problem) = self.store.is_usable().await? {
            let was_known = self.chords.is_recorded.send_replace(Some(false)).is_some();
            if !was_known {
                tracing::warn!(
                    problem,
                    "the tables for chords cannot be used, so workers complete chords by polling: \
                     run `python manage.py migrate celeriac` or `celeriac migrate`, and give this \
                     user the rights that docs/security.md lists"
                );
            }
            return Ok(());
        }
        self.chords.is_recorded.send_replace(Some(true));
        Ok(())
    }

    /// Returns false if workers cannot publish chords yet, because there is no queue.
    async fn sweep(&mut self) -> Result<bool, Problem> {
        // Workers publish chords to this daemon as soon as the queue is bound. The binding is lost
        // if somebody deletes the queue.
        self.connect().await?;
        let accepted = self.broker.accept_chords().await;
        self.is_connected = accepted.is_ok();
        let is_accepting = accepted?;
        let swept = self.store.sweep().await?;
        for group_id in &swept.expired {
            tracing::warn!(chord = group_id, "a chord has expired before all its members ended");
        }
        let age = swept.oldest.map(|oldest| Utc::now() - oldest);
        self.metrics.sweep(swept.open, age, swept.expired.len());
        self.waiting.extend(swept.due);
        Ok(is_accepting)
    }

    /// Sends the unlock message of a chord, unless the chord has ended.
    async fn unlock(&mut self, group_id: &str) -> Result<(), Problem> {
        let Some(unlock) = self.store.unlock(group_id).await? else { return Ok(()) };
        let message = match prepared(&unlock) {
            Ok(message) => message,
            Err(error) => {
                let next = Utc::now() + LAST_AGAIN;
                self.store.note(group_id, Some(&error.to_string()), next).await?;
                return Ok(());
            }
        };
        self.connect().await?;
        match self.send(&message).await? {
            Sent::Confirmed => {
                self.metrics.send(unlock.unlocks > 0);
                self.store.note(group_id, None, again(unlock.unlocks)).await?;
            }
            Sent::Returned(reason) => {
                tracing::warn!(chord = group_id, reason, "the unlock message was returned");
                let next = Utc::now() + RETURNED_AGAIN;
                self.store.note(group_id, Some(&reason), next).await?;
            }
        }
        Ok(())
    }

    async fn connect(&mut self) -> Result<(), Problem> {
        if !self.is_connected {
            self.broker.connect().await?;
            self.is_connected = true;
        }
        Ok(())
    }

    async fn send(&mut self, message: &Message) -> Result<Sent, Problem> {
        let sent = self.broker.send(message).await;
        self.is_connected = sent.is_ok();
        Ok(sent?)
    }
}

/// When an unlock message is sent again that was sent `before` times before this time.
fn again(before: u32) -> DateTime<Utc> {
    let wait = FIRST_AGAIN * 2_i32.pow(before.min(10));
    Utc::now() + wait.min(LAST_AGAIN)
}

/// The message with what the worker has to know, and the results of the members if they are small.
fn prepared(unlock: &Unlock) -> Result<Message, capture::CaptureError> {
    let mut message = capture::read(&unlock.message, Utc::now(), 0)?;
    message.headers.insert(CHORD_HEADER.to_owned(), Value::Text(unlock.group_id.clone()));
    message.headers.insert(UNLOCKS_HEADER.to_owned(), Value::Int(unlock.unlocks.into()));
    if let Some(results) = &unlock.results {
        let results = json!(results).to_string();
        if results.len() <= MAX_HEADER_BYTES {
            message.headers.insert(RESULTS_HEADER.to_owned(), Value::Text(results));
        }
    }
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unlock(result: &str) -> Unlock {
        let message = json!({"headers": {"task": "celery.chord_unlock"}, "body_b64": "e30="});
        Unlock {
            group_id: "g".to_owned(),
            message: message.to_string(),
            unlocks: 0,
            results: Some(vec![json!(["t", "SUCCESS", "application/json", "utf-8", result])]),
        }
    }

    #[test]
    fn small_results_travel_with_the_message_and_large_ones_do_not() {
        let message = prepared(&unlock("42")).expect("a message");
        assert_eq!(message.headers[CHORD_HEADER], Value::Text("g".to_owned()));
        let results = r#"[["t","SUCCESS","application/json","utf-8","42"]]"#;
        assert_eq!(message.headers[RESULTS_HEADER], Value::Text(results.to_owned()));
        let message = prepared(&unlock(&"x".repeat(MAX_HEADER_BYTES))).expect("a message");
        assert!(!message.headers.contains_key(RESULTS_HEADER));
    }

    #[test]
    fn the_waits_grow_up_to_a_day() {
        let wait = |before| (again(before) - Utc::now()).num_minutes() + 1;
        assert_eq!([0, 1, 5, 30].map(wait), [10, 20, 320, 1_440]);
    }
}
