//! The metrics of hints.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

/// The metrics of the hints of a process.
#[derive(Clone, Debug, Default)]
pub struct HintMetrics {
    published: Counter,
    dropped: Counter,
}

impl HintMetrics {
    /// Registers the metrics.
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "celeriac_hints_published",
            "Messages published for processes that wait for results",
            metrics.published.clone(),
        );
        registry.register(
            "celeriac_hints_dropped",
            "Tasks that ended without a hint, because the broker did not take earlier ones",
            metrics.dropped.clone(),
        );
        metrics
    }

    /// Counts a published message.
    pub(crate) fn publish(&self) {
        self.published.inc();
    }

    /// Counts a task that is not announced.
    pub(crate) fn drop_hint(&self) {
        self.dropped.inc();
    }
}
