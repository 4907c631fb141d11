//! What was read from a message.

use std::collections::BTreeMap;

use crate::row::Row;

/// What came of a message.
#[derive(Debug, Default, PartialEq)]
pub struct Decoded {
    /// The rows that it speaks of, in their order.
    pub rows: Vec<Row>,
    /// What was wrong with events that are not what Celery sends, and how many were left out for
    /// it.
    pub skipped: BTreeMap<&'static str, usize>,
}
