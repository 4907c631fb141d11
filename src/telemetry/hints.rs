//! The metrics of hints.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::families::{Labels, add};

const PUBLISHED: &str = "celeriac_hints_published";
const DROPPED: &str = "celeriac_hints_dropped";

/// The metrics of the hints of a process. They have no samples if it publishes none.
#[derive(Debug)]
pub struct HintMetrics {
    published: Counter,
    dropped: Counter,
}

/// The metric families of hints.
pub(super) struct Families {
    published: Family<Labels, Counter>,
    dropped: Family<Labels, Counter>,
}

impl Families {
    /// Registers the metrics.
    pub(super) fn register(registry: &mut Registry) -> Self {
        let published = "Messages published for processes that wait for results";
        let dropped =
            "Tasks that ended without such a message, because too many hints were waiting";
        Self {
            published: add(registry, PUBLISHED, published),
            dropped: add(registry, DROPPED, dropped),
        }
    }
}

impl HintMetrics {
    pub(super) fn new(families: &Families) -> Self {
        Self {
            published: families.published.get_or_create_owned(&Labels::new()),
            dropped: families.dropped.get_or_create_owned(&Labels::new()),
        }
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
