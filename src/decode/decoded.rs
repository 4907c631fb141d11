//! What was read from a message.

use std::collections::BTreeMap;

use crate::row::Row;

/// The result of decoding one message.
#[derive(Debug, Default, PartialEq)]
pub struct Decoded {
    /// The rows that the message describes, in the order in which it lists them.
    pub rows: Vec<Row>,
    /// Why events were skipped because they are not such as Celery sends, and how many were skipped
    /// for each of these reasons.
    pub skipped: BTreeMap<&'static str, usize>,
}
