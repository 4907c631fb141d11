//! Tests of the pipeline with a channel of messages, a store in memory and paused time.

#![expect(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use celeriac::broker::{Acknowledge, BrokerError, BrokerErrorClass};
use celeriac::chords::Chords;
use celeriac::decode::{Decoder, SourceKind};
use celeriac::hints::Hints;
use celeriac::message::dead_letter::Reason;
use celeriac::message::{DeliveryId, Message, Properties};
use celeriac::pipeline::batch::{Batch, BatchLimits};
use celeriac::pipeline::{self, BatchPolicy, End, Reading};
use celeriac::retry::Backoff;
use celeriac::row::merge::Law;
use celeriac::row::task_result::TaskResult;
use celeriac::row::{Key, Row};
use celeriac::store::{Catalog, Change, ErrorClass, Store, StoreError, Write, Written};
use celeriac::telemetry::Telemetry;
use chrono::{DateTime, TimeDelta};
use futures_util::stream;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

/// What happened, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Event {
    /// A batch was committed: its rows as `id STATUS`.
    Stored(Vec<String>),
    /// A write failed.
    Failed(ErrorClass),
    /// Messages were confirmed in the dead-letter queue: their tags and reasons.
    Dead(Vec<(u64, &'static str)>),
    /// Every delivery up to this tag was acknowledged.
    Acknowledged(u64),
}

/// A store and a broker in memory that record what happens to them.
#[derive(Clone)]
struct World {
    events: Arc<Mutex<Vec<Event>>>,
    rows: Arc<Mutex<BTreeMap<Key, Row>>>,
    /// The errors with which the next writes fail.
    failures: Arc<Mutex<VecDeque<ErrorClass>>>,
    /// Rows whose result is this text are refused.
    poison: &'static str,
    /// A write takes one of these permits.
    writes: Arc<Semaphore>,
    /// How many of the next publications to the dead-letter queue fail.
    dead_failures: Arc<Mutex<u32>>,
    stopped: CancellationToken,
    catalog: Catalog,
}

impl World {
    fn new() -> Self {
        Self {
            events: Arc::default(),
            rows: Arc::default(),
            failures: Arc::default(),
            poison: r#""poison""#,
            writes: Arc::new(Semaphore::new(1_000)),
            dead_failures: Arc::default(),
            stopped: CancellationToken::new(),
            catalog: Catalog::default(),
        }
    }

    fn events(&self) -> Vec<Event> {
        self.events.lock().expect("not poisoned").clone()
    }

    fn note(&self, event: Event) {
        self.events.lock().expect("not poisoned").push(event);
    }

    fn fail(&self, classes: &[ErrorClass]) {
        self.failures.lock().expect("not poisoned").extend(classes);
    }

    fn statuses(&self) -> Vec<(String, String)> {
        let rows = self.rows.lock().expect("not poisoned");
        let results = rows.values().map(task);
        results.map(|result| (result.task_id.clone(), result.outcome.status.to_string())).collect()
    }
}

/// The row as that of a task; these tests use no groups.
fn task(row: &Row) -> &TaskResult {
    let Row::Task(result) = row else { panic!("a group") };
    result
}

fn error(class: ErrorClass) -> StoreError {
    StoreError { class, message: "as told".to_owned() }
}

#[async_trait]
impl Store for World {
    async fn prepare(&mut self) -> Result<&Catalog, StoreError> {
        Ok(&self.catalog)
    }

    async fn store(
        &mut self,
        writes: &[Write<'_>],
        _changes: &mut Vec<Change>,
    ) -> Result<Written, StoreError> {
        let rows: Vec<_> = writes.iter().map(|write| write.row).collect();
        self.writes.acquire().await.expect("open").forget();
        let failure = self.failures.lock().expect("not poisoned").pop_front();
        let is_poisoned =
            rows.iter().any(|row| task(row).outcome.result.as_deref() == Some(self.poison));
        if let Some(class) = failure.or(is_poisoned.then_some(ErrorClass::Poison)) {
            self.note(Event::Failed(class));
            return Err(error(class));
        }
        let mut table = self.rows.lock().expect("not poisoned");
        for row in &rows {
            match table.get_mut(&row.key()) {
                Some(old) => old.merge((*row).clone(), Law::default()),
                None => drop(table.insert(row.key(), (*row).clone())),
            }
        }
        drop(table);
        let rows = rows.iter().map(|row| task(row));
        let rows = rows.map(|result| format!("{} {}", result.task_id, result.outcome.status));
        self.note(Event::Stored(rows.collect()));
        Ok(Written::default())
    }
}

impl Acknowledge for World {
    async fn acknowledge(&self, messages: &[Message]) -> Result<(), BrokerError> {
        let last = messages.last().expect("a batch has messages");
        self.note(Event::Acknowledged(last.delivery_id.0));
        Ok(())
    }

    async fn dead_letter(&self, letters: &[(&Message, &Reason)]) -> Result<(), BrokerError> {
        let mut failures = self.dead_failures.lock().expect("not poisoned");
        if *failures > 0 {
            *failures -= 1;
            return Err(BrokerError::new(BrokerErrorClass::Unavailable, "as told"));
        }
        let letters = letters.iter().map(|(message, reason)| (message.delivery_id.0, reason.code));
        self.note(Event::Dead(letters.collect()));
        Ok(())
    }

    async fn stop(&self) -> bool {
        self.stopped.cancel();
        true
    }
}

fn body(id: &str, status: &str, result: &str) -> String {
    format!(
        r#"{{"task_id": "{id}", "status": "{status}", "result": {result}, "traceback": null, "children": []}}"#
    )
}

fn success(id: &str) -> String {
    body(id, "SUCCESS", "1")
}

fn message(delivery_tag: u64, body: &str) -> Message {
    let since = TimeDelta::microseconds(i64::try_from(delivery_tag).expect("small"));
    Message {
        properties: Properties {
            content_type: Some("application/json".to_owned()),
            content_encoding: Some("utf-8".to_owned()),
            ..Properties::default()
        },
        delivery_id: DeliveryId(delivery_tag),
        ..Message::new(body.as_bytes().to_vec(), DateTime::UNIX_EPOCH + since)
    }
}

/// A pipeline that runs beside the test.
struct Running {
    world: World,
    sender: mpsc::UnboundedSender<Result<Message, BrokerError>>,
    shutdown: CancellationToken,
    sent: u64,
    end: tokio::task::JoinHandle<End>,
}

impl Running {
    fn start(world: World, max_rows: usize, max_bytes: usize) -> Self {
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let shutdown = CancellationToken::new();
        let end = tokio::spawn({
            let (mut store, acknowledger) = (world.clone(), world.clone());
            let (shutdown, stopped) = (shutdown.clone(), world.stopped.clone());
            async move {
                // Like lapin's consumer, the stream still returns buffered messages after it was
                // stopped.
                let messages = stream::poll_fn(move |context| match receiver.poll_recv(context) {
                    std::task::Poll::Pending if stopped.is_cancelled() => {
                        std::task::Poll::Ready(None)
                    }
                    polled => polled,
                });
                let policy = BatchPolicy {
                    limits: BatchLimits { max_rows, max_bytes },
                    max_wait: Duration::from_millis(20),
                };
                let decoder = Decoder::default();
                let lane = Telemetry::new().lane("1", "results");
                let (kind, hints, chords) =
                    (SourceKind::Results, Hints::off(), Chords::without_sending(false));
                let reading = Reading {
                    decoder: &decoder,
                    kind,
                    lane: &lane,
                    hints: &hints,
                    chords: &chords,
                };
                pipeline::run(messages, reading, &mut store, &acknowledger, policy, &shutdown).await
            }
        });
        Self { world, sender, shutdown, sent: 0, end }
    }

    fn send(&mut self, body: &str) {
        self.sent += 1;
        self.sender.send(Ok(message(self.sent, body))).expect("the pipeline runs");
    }

    /// Runs all tasks until they can only wait for time to pass.
    async fn settle(&self) -> Vec<Event> {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        self.world.events()
    }

    async fn stop(self) -> (End, World) {
        self.shutdown.cancel();
        (self.end.await.expect("no panic"), self.world)
    }
}

fn stored(rows: &[&str]) -> Event {
    Event::Stored(rows.iter().map(|&row| row.to_owned()).collect())
}

#[tokio::test(start_paused = true)]
async fn an_idle_lane_writes_at_once() {
    let mut running = Running::start(World::new(), 100, 1 << 20);
    running.send(&success("a"));
    assert_eq!(running.settle().await, [stored(&["a SUCCESS"]), Event::Acknowledged(1)]);

    // After it has been idle for longer than `max_wait`, it writes at once again.
    tokio::time::sleep(Duration::from_millis(21)).await;
    running.send(&success("b"));
    assert_eq!(running.settle().await[2..], [stored(&["b SUCCESS"]), Event::Acknowledged(2)]);
}

#[tokio::test(start_paused = true)]
async fn a_busy_lane_collects_rows_for_max_wait() {
    let mut running = Running::start(World::new(), 100, 1 << 20);
    for number in 0..7 {
        running.send(&success(&format!("a{number}")));
    }
    running.settle().await;
    running.send(&success("c"));
    tokio::time::sleep(Duration::from_millis(19)).await;
    running.send(&success("b"));
    assert_eq!(running.settle().await.len(), 2, "neither is written yet");
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(
        running.settle().await[2..],
        [stored(&["b SUCCESS", "c SUCCESS"]), Event::Acknowledged(9)]
    );
    // Few messages have arrived since then, so the next batch does not wait.
    tokio::time::sleep(Duration::from_millis(5)).await;
    running.send(&success("d"));
    assert_eq!(running.settle().await[4..], [stored(&["d SUCCESS"]), Event::Acknowledged(10)]);
}

#[tokio::test(start_paused = true)]
async fn the_next_batch_fills_while_one_write_is_in_flight() {
    let world = World { writes: Arc::new(Semaphore::new(0)), ..World::new() };
    let mut running = Running::start(world, 2, 1 << 20);
    for id in ["a", "b", "c", "d", "e"] {
        running.send(&success(id));
    }
    assert_eq!(running.settle().await, [], "nothing is acknowledged before it is stored");
    running.world.writes.add_permits(1);
    assert_eq!(
        running.settle().await,
        [stored(&["a SUCCESS", "b SUCCESS"]), Event::Acknowledged(2)],
        "the second write waits for the first and takes no more than it may"
    );
    running.world.writes.add_permits(2);
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(
        running.settle().await[2..],
        [
            stored(&["c SUCCESS", "d SUCCESS"]),
            Event::Acknowledged(4),
            stored(&["e SUCCESS"]),
            Event::Acknowledged(5)
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_full_by_bytes_and_never_empty() {
    let world = World { writes: Arc::new(Semaphore::new(0)), ..World::new() };
    let mut running = Running::start(world, 100, success("a").len() * 2);
    for id in ["a", "b", "c", "d"] {
        running.send(&success(id));
    }
    running.send(&body("huge", "SUCCESS", &format!("\"{}\"", "x".repeat(10_000))));
    running.settle().await;
    running.world.writes.add_permits(10);
    tokio::time::sleep(Duration::from_millis(20)).await;
    let events = running.settle().await;
    let batches: Vec<_> = events.iter().filter(|event| matches!(event, Event::Stored(_))).collect();
    assert_eq!(
        batches,
        [
            &stored(&["a SUCCESS", "b SUCCESS"]),
            &stored(&["c SUCCESS", "d SUCCESS"]),
            &stored(&["huge SUCCESS"])
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn the_states_of_one_task_are_one_row() {
    let world = World { writes: Arc::new(Semaphore::new(0)), ..World::new() };
    let mut running = Running::start(world, 100, 1 << 20);
    for (id, status) in
        [("b", "STARTED"), ("a", "STARTED"), ("a", "SUCCESS"), ("b", "RETRY"), ("a", "STARTED")]
    {
        running.send(&body(id, status, "1"));
    }
    running.world.writes.add_permits(1);
    assert_eq!(running.settle().await, [stored(&["a SUCCESS", "b RETRY"]), Event::Acknowledged(5)]);
}

#[tokio::test(start_paused = true)]
async fn a_write_is_retried_during_an_outage() {
    let mut running = Running::start(World::new(), 100, 1 << 20);
    running.world.fail(&[ErrorClass::Outage; 3]);
    running.send(&success("a"));
    assert_eq!(running.settle().await, [Event::Failed(ErrorClass::Outage)]);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(
        running.settle().await[3..],
        [stored(&["a SUCCESS"]), Event::Acknowledged(1)],
        "after three failures"
    );
}

#[tokio::test(start_paused = true)]
async fn a_long_outage_returns_the_messages() {
    let mut running = Running::start(World::new(), 100, 1 << 20);
    running.world.fail(&[ErrorClass::Outage; 1_000]);
    running.send(&success("a"));
    let end = (&mut running.end).await.expect("no panic");
    assert!(matches!(end, End::StoreUnavailable(error, _) if error.class == ErrorClass::Outage));
    assert!(running.world.events().iter().all(|event| matches!(event, Event::Failed(_))));
}

#[tokio::test(start_paused = true)]
async fn returned_messages_tell_when_the_database_is_available_again() {
    let mut world = World::new();
    world.fail(&[ErrorClass::Setup, ErrorClass::Outage, ErrorClass::Setup]);
    let mut batch = Batch::default();
    let read = Decoder::default().result(&message(1, &success("a"))).expect("good");
    batch.push(message(1, &success("a")), Ok(read.rows));
    let (mut backoff, shutdown) = (Backoff::new(), CancellationToken::new());
    let lane = Telemetry::new().lane("1", "results");
    let mut store = world.clone();
    assert!(pipeline::wait_for_store(&mut store, &batch, &lane, &mut backoff, &shutdown).await);
    assert_eq!(world.events().last(), Some(&stored(&["a SUCCESS"])));

    world.fail(&[ErrorClass::Outage; 10]);
    shutdown.cancel();
    assert!(!pipeline::wait_for_store(&mut world, &batch, &lane, &mut backoff, &shutdown).await);
}

#[tokio::test(start_paused = true)]
async fn a_conflict_is_tried_again_at_once() {
    let mut running = Running::start(World::new(), 100, 1 << 20);
    running.world.fail(&[ErrorClass::Conflict; 5]);
    running.send(&success("a"));
    assert_eq!(running.settle().await[5..], [stored(&["a SUCCESS"]), Event::Acknowledged(1)]);
}

#[tokio::test(start_paused = true)]
async fn a_missing_table_returns_the_messages() {
    let mut running = Running::start(World::new(), 100, 1 << 20);
    running.world.fail(&[ErrorClass::Setup]);
    running.send(&success("a"));
    let end = (&mut running.end).await.expect("no panic");
    assert!(matches!(end, End::StoreUnavailable(error, _) if error.class == ErrorClass::Setup));
    assert_eq!(running.world.events(), [Event::Failed(ErrorClass::Setup)]);
}

#[tokio::test(start_paused = true)]
async fn one_unstorable_row_does_not_affect_the_others() {
    let world = World { writes: Arc::new(Semaphore::new(0)), ..World::new() };
    let mut running = Running::start(world, 100, 1 << 20);
    for id in ["a", "b", "c", "d", "e"] {
        let result = if id == "d" { r#""poison""# } else { "1" };
        running.send(&body(id, "SUCCESS", result));
    }
    running.settle().await;
    running.world.writes.add_permits(100);
    let events = running.settle().await;
    assert_eq!(events.last(), Some(&Event::Acknowledged(5)));
    assert_eq!(events[events.len() - 2], Event::Dead(vec![(4, "unstorable")]));
    let ids: Vec<_> = running.world.statuses().into_iter().map(|(id, _)| id).collect();
    assert_eq!(ids, ["a", "b", "c", "e"]);
}

#[tokio::test(start_paused = true)]
async fn only_the_unstorable_message_of_a_merged_row_is_dead_lettered() {
    let world = World { writes: Arc::new(Semaphore::new(0)), ..World::new() };
    let mut running = Running::start(world, 100, 1 << 20);
    running.send(&body("a", "STARTED", "1"));
    running.send(&body("a", "SUCCESS", r#""poison""#));
    running.send(&success("b"));
    running.settle().await;
    running.world.writes.add_permits(100);
    let events = running.settle().await;
    assert!(events.contains(&Event::Dead(vec![(2, "unstorable")])), "{events:?}");
    let expected = [("a", "STARTED"), ("b", "SUCCESS")];
    assert_eq!(running.world.statuses(), expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
}

#[tokio::test(start_paused = true)]
async fn undecodable_messages_are_dead_lettered_before_they_are_acknowledged() {
    let world = World { writes: Arc::new(Semaphore::new(0)), ..World::new() };
    *world.dead_failures.lock().expect("not poisoned") = 3;
    let mut running = Running::start(world, 100, 1 << 20);
    running.send(&success("a"));
    running.send("not JSON");
    running.send(r#"{"status": "SUCCESS"}"#);
    running.send(&success("b"));
    running.settle().await;
    running.world.writes.add_permits(1);
    let events = running.settle().await;
    assert_eq!(events, [stored(&["a SUCCESS", "b SUCCESS"])], "the broker has not confirmed");
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(
        running.settle().await[1..],
        [Event::Dead(vec![(2, "undecodable"), (3, "not-a-result")]), Event::Acknowledged(4)]
    );
}

#[tokio::test(start_paused = true)]
async fn a_lost_session_acknowledges_nothing_more() {
    let world = World { writes: Arc::new(Semaphore::new(0)), ..World::new() };
    let mut running = Running::start(world, 100, 1 << 20);
    running.send(&success("a"));
    running.settle().await;
    running
        .sender
        .send(Err(BrokerError::new(BrokerErrorClass::Unavailable, "lost")))
        .expect("the pipeline runs");
    running.settle().await;
    running.world.writes.add_permits(1);
    assert!(matches!((&mut running.end).await.expect("no panic"), End::BrokerLost(_)));
    assert!(!running.settle().await.iter().any(|event| matches!(event, Event::Acknowledged(_))));
}

#[tokio::test(start_paused = true)]
async fn messages_are_settled_when_the_stream_ends() {
    let mut running = Running::start(World::new(), 100, 1 << 20);
    running.send(&success("a"));
    let Running { end, sender, world, .. } = running;
    drop(sender);
    assert!(matches!(end.await.expect("no panic"), End::Stopped));
    assert_eq!(world.events(), [stored(&["a SUCCESS"]), Event::Acknowledged(1)]);
}

#[tokio::test(start_paused = true)]
async fn shutdown_stores_what_was_delivered() {
    let world = World { writes: Arc::new(Semaphore::new(0)), ..World::new() };
    let mut running = Running::start(world, 2, 1 << 20);
    for id in ["a", "b", "c", "d", "e"] {
        running.send(&success(id));
    }
    running.settle().await;
    running.world.writes.add_permits(100);
    let (end, world) = running.stop().await;
    assert!(matches!(end, End::Stopped));
    assert_eq!(world.events().last(), Some(&Event::Acknowledged(5)));
    assert_eq!(world.statuses().len(), 5);
}

#[tokio::test(start_paused = true)]
async fn shutdown_does_not_wait_for_a_database_that_is_down() {
    let mut running = Running::start(World::new(), 100, 1 << 20);
    running.world.fail(&[ErrorClass::Outage; 1_000]);
    running.send(&success("a"));
    running.settle().await;
    let begun = tokio::time::Instant::now();
    let (end, world) = running.stop().await;
    assert!(matches!(end, End::StoreUnavailable(..)), "{end:?}");
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert!(!world.events().iter().any(|event| matches!(event, Event::Acknowledged(_))));
}
