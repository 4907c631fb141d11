//! The metrics of chords.

use chrono::TimeDelta;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

/// The metrics of the chords in the database.
#[derive(Clone, Debug, Default)]
pub struct ChordMetrics {
    open: Gauge,
    oldest_age_seconds: Gauge,
    unlocks: Counter,
    unlocks_again: Counter,
    expired: Counter,
}

impl ChordMetrics {
    /// Registers the metrics.
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "celeriac_chords_open",
            "Chords in the database whose bodies were not sent yet",
            metrics.open.clone(),
        );
        registry.register_with_unit(
            "celeriac_chords_oldest_age",
            "Time since the oldest of these chords was applied, 0 without any",
            Unit::Seconds,
            metrics.oldest_age_seconds.clone(),
        );
        registry.register(
            "celeriac_chord_unlocks",
            "Messages sent to workers because all members of a chord had ended",
            metrics.unlocks.clone(),
        );
        registry.register(
            "celeriac_chord_unlocks_repeated",
            "Those of them that were sent before, because no worker had reported their end",
            metrics.unlocks_again.clone(),
        );
        registry.register(
            "celeriac_chords_expired",
            "Chords that were deleted before their bodies were sent",
            metrics.expired.clone(),
        );
        metrics
    }

    /// Notes what a sweep has found.
    pub(crate) fn sweep(&self, open: u64, oldest_age: Option<TimeDelta>, expired: usize) {
        self.open.set(i64::try_from(open).unwrap_or(i64::MAX));
        let age = oldest_age.map_or(0, |age| age.num_seconds().max(0));
        self.oldest_age_seconds.set(age);
        self.expired.inc_by(expired as u64);
    }

    /// Counts a message that was sent.
    pub(crate) fn send(&self, is_again: bool) {
        self.unlocks.inc();
        if is_again {
            self.unlocks_again.inc();
        }
    }
}
