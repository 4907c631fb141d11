//! The metrics and the health of the whole process.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;
use serde_json::json;

use super::chords::ChordMetrics;
use super::cleanup::{self, CleanupMetrics};
use super::families::{Counts, Families};
use super::hints::HintMetrics;
use super::lane::Lane;
use super::process::Process;

/// The metrics of a process and the health of its lanes.
pub struct Telemetry {
    registry: Registry,
    families: Families,
    cleanup: cleanup::Families,
    hints: HintMetrics,
    chords: ChordMetrics,
    lanes: Mutex<Vec<Arc<Lane>>>,
}

/// An answer to a question about the health of the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Whether every lane is healthy.
    pub is_good: bool,
    /// A JSON object with the details.
    pub body: String,
}

impl Telemetry {
    /// Creates the metrics, without any lane.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let families = Families::register(&mut registry);
        let cleanup = cleanup::Families::register(&mut registry);
        let hints = HintMetrics::register(&mut registry);
        let chords = ChordMetrics::register(&mut registry);
        registry.register_collector(Box::new(Process::new()));
        Self { registry, families, cleanup, hints, chords, lanes: Mutex::default() }
    }

    /// Adds a lane with its name and the queue that it consumes.
    pub fn lane(&self, name: &str, queue: &str) -> Arc<Lane> {
        let lane = Arc::new(Lane::new(name, queue, &self.families));
        self.lanes().push(Arc::clone(&lane));
        lane
    }

    /// The metrics of scheduled cleanups.
    pub fn cleanup(&self) -> CleanupMetrics {
        CleanupMetrics::new(&self.cleanup)
    }

    /// The metrics of chords.
    pub fn chords(&self) -> ChordMetrics {
        self.chords.clone()
    }

    /// The metrics of hints.
    pub fn hints(&self) -> HintMetrics {
        self.hints.clone()
    }

    /// Sets the numbers of ready messages and of consumers of a queue, or removes them if they are
    /// not known. The role says what the queue is for.
    pub fn set_depth(&self, queue: &str, role: &str, depth: Option<(u32, u32)>) {
        let labels = vec![("queue", queue.to_owned()), ("role", role.to_owned())];
        let families = &self.families;
        if let Some((messages, consumers)) = depth {
            families.queue_messages.get_or_create(&labels).set(messages.into());
            families.queue_consumers.get_or_create(&labels).set(consumers.into());
        } else {
            families.queue_messages.remove(&labels);
            families.queue_consumers.remove(&labels);
        }
    }

    /// Every metric, in the text format of `OpenMetrics` 1.0.
    ///
    /// # Errors
    ///
    /// When a metric cannot be written as text.
    pub fn exposition(&self) -> Result<String, fmt::Error> {
        let mut exposition = String::new();
        text::encode(&mut exposition, &self.registry)?;
        Ok(exposition)
    }

    /// Whether every lane makes progress. A lane that does not has been in the same step for longer
    /// than every timeout of the broker and the database, so that only a restart can help. An
    /// unavailable broker or database does not make a lane stuck.
    #[must_use]
    pub fn liveness(&self) -> Health {
        self.health("live", |lane| (lane.is_live(), lane.progress()))
    }

    /// Whether every lane consumes its queue and can write to the database, as far as is known.
    #[must_use]
    pub fn readiness(&self) -> Health {
        self.health("ready", |lane| (lane.is_ready(), lane.connections()))
    }

    /// One line for `systemctl status`: what the process does, or why it cannot.
    #[must_use]
    pub fn summary(&self) -> String {
        let lanes = self.lanes();
        if let Some((lane, reason)) = lanes.iter().find_map(|lane| Some((lane, lane.problem()?))) {
            return format!("{} is not consumed: {reason}", lane.queue())
                .replace(['\n', '\r'], " ");
        }
        let queues: BTreeSet<_> = lanes.iter().map(|lane| lane.queue().to_owned()).collect();
        let queues = queues.into_iter().collect::<Vec<_>>().join(", ");
        drop(lanes);
        let counts = self.counts();
        let dead = match counts.dead.values().sum() {
            0_u64 => String::new(),
            1 => ", 1 dead letter".to_owned(),
            letters => format!(", {letters} dead letters"),
        };
        format!("consuming {queues}, {} rows stored{dead}", counts.rows_written)
    }

    fn health(&self, question: &str, ask: impl Fn(&Lane) -> (bool, serde_json::Value)) -> Health {
        let lanes = self.lanes();
        let (are_good, reports): (Vec<_>, Vec<_>) = lanes.iter().map(|lane| ask(lane)).unzip();
        let is_good = !lanes.is_empty() && are_good.into_iter().all(|is_good| is_good);
        let body = json!({ question: is_good, "lanes": reports });
        Health { is_good, body: format!("{body}\n") }
    }

    /// The totals so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        // Lanes of the same queue share counters.
        let by_queue: BTreeMap<_, _> =
            self.lanes().iter().map(|lane| (lane.queue().to_owned(), Arc::clone(lane))).collect();
        let mut counts = Counts::default();
        for lane in by_queue.values() {
            lane.add_to(&mut counts);
        }
        counts
    }

    fn lanes(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Lane>>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Telemetry {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;
    use std::time::Duration;

    use tokio::time::advance;

    use super::*;
    use crate::message::dead_letter::REASON_CODES;
    use crate::store::{Effect, Written};
    use crate::telemetry::{CleanupOutcome, STUCK_AFTER};

    const METRICS: &str = include_str!("../../docs/metrics.md");
    const DEAD_LETTERS: &str = include_str!("../../docs/dead-letters.md");

    /// Metrics in which each one has a sample.
    fn busy() -> Telemetry {
        let telemetry = Telemetry::new();
        let lane = telemetry.lane("1", "results");
        let tasks = Effect { rows: 1, statements: 1, stale: 1 };
        let written = Ok(Written { tasks, ..Written::default() });
        lane.end_write(std::iter::empty(), &written, Duration::ZERO);
        telemetry.set_depth("results", "results", Some((1, 1)));
        telemetry.cleanup().end(CleanupOutcome::Done);
        telemetry
    }

    /// The names of all metrics, and of all their samples.
    fn names(telemetry: &Telemetry) -> (BTreeSet<String>, BTreeSet<String>) {
        let exposition = telemetry.exposition().expect("text");
        let (mut metrics, mut samples) = (BTreeSet::new(), BTreeSet::new());
        for line in exposition.lines() {
            if let Some(described) = line.strip_prefix("# TYPE ") {
                let (name, kind) = described.split_once(' ').expect("name and type");
                let suffix = match kind {
                    "counter" => "_total",
                    "info" => "_info",
                    _ => "",
                };
                metrics.insert(format!("{name}{suffix}"));
            } else if !line.starts_with('#') {
                samples.insert(line.split(['{', ' ']).next().expect("a name").to_owned());
            }
        }
        (metrics, samples)
    }

    /// The words of a text that are names of metrics.
    fn named(text: &str) -> BTreeSet<String> {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let is_metric = |word: &&str| word.starts_with("celeriac_") || word.starts_with("process_");
        words.filter(is_metric).map(str::to_owned).collect()
    }

    #[test]
    fn the_dashboard_and_the_alerts_name_only_existing_metrics() {
        let (metrics, samples) = names(&busy());
        for file in ["grafana-dashboard.json", "alerts.yml"] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("monitoring").join(file);
            let named = named(&std::fs::read_to_string(path).expect("the file is there"));
            assert!(named.len() > 5, "{file} names metrics");
            let unknown: Vec<_> = named.difference(&samples).collect();
            assert!(unknown.is_empty(), "{file} names {unknown:?}");
        }
        let documented = named(METRICS);
        let undocumented: Vec<_> = metrics.difference(&documented).collect();
        assert!(undocumented.is_empty(), "docs/metrics.md does not have {undocumented:?}");
        let unknown: Vec<_> = documented.difference(&metrics).collect();
        assert!(unknown.is_empty(), "docs/metrics.md has {unknown:?}");
    }

    #[test]
    fn every_reason_has_a_counter_from_the_start() {
        let table = DEAD_LETTERS.split("| reason | what it means |").nth(1).expect("the table");
        let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
        let reasons = rows.flat_map(|row| {
            let cell = row.split('|').nth(1).expect("the first column");
            cell.split('`').skip(1).step_by(2)
        });
        // RabbitMQ dead-letters these messages itself, so they are not counted.
        let documented: BTreeSet<_> =
            reasons.filter(|&reason| reason != "delivery-limit").collect();
        assert_eq!(documented, BTreeSet::from(REASON_CODES));
        let source = include_str!("../decode/error.rs");
        let codes = source.split("pub fn code(").nth(1).expect("the function");
        let codes = codes.split("\n    }").next().expect("its end");
        for code in codes.split('"').skip(1).step_by(2) {
            assert!(REASON_CODES.contains(&code), "{code} is not counted from 0 on");
        }
    }

    #[test]
    fn lanes_of_one_queue_share_counters() {
        let telemetry = Telemetry::new();
        let lanes = [("1", "results"), ("2", "results"), ("events", "events")];
        for (name, queue) in lanes {
            let lane = telemetry.lane(name, queue);
            lane.receive(false);
            lane.count_dead_letter("undecodable");
        }
        let counts = telemetry.counts();
        assert_eq!((counts.messages, counts.dead), (3, BTreeMap::from([("undecodable", 3)])));
    }

    #[tokio::test(start_paused = true)]
    async fn a_lane_is_live_until_one_step_takes_too_long() {
        let telemetry = Telemetry::new();
        let (lane, other) = (telemetry.lane("1", "results"), telemetry.lane("2", "results"));
        advance(STUCK_AFTER / 2).await;
        lane.record_progress();
        let step = lane.begin("write");
        advance(STUCK_AFTER / 2).await;
        assert!(!telemetry.liveness().is_good, "the other lane's loop stands still");
        other.record_progress();
        assert!(telemetry.liveness().is_good);
        advance(STUCK_AFTER / 2).await;
        lane.record_progress();
        other.record_progress();
        let health = telemetry.liveness();
        assert!(!health.is_good && health.body.contains(r#""name":"write""#), "{}", health.body);
        drop(step);
        assert!(telemetry.liveness().is_good);
    }

    #[test]
    fn a_process_is_ready_when_every_lane_has_both_connections() {
        let telemetry = Telemetry::new();
        assert!(!telemetry.readiness().is_good, "there are no lanes yet");
        let lanes = [telemetry.lane("1", "results"), telemetry.lane("2", "results")];
        for lane in &lanes {
            lane.set_database(Ok(()));
            assert!(!telemetry.readiness().is_good);
            lane.begin_session();
        }
        assert!(telemetry.readiness().is_good);
        assert_eq!(telemetry.summary(), "consuming results, 0 rows stored");
        lanes[0].count_dead_letter("undecodable");
        assert_eq!(telemetry.summary(), "consuming results, 0 rows stored, 1 dead letter");
        lanes[0].end_session("it went\naway".to_owned());
        assert_eq!(telemetry.summary(), "results is not consumed: it went away");
        lanes[0].end_session("it went away".to_owned());
        let health = telemetry.readiness();
        assert!(!health.is_good && health.body.contains("it went away"), "{}", health.body);
    }
}
