//! What was read from a message.

use std::collections::BTreeMap;

use crate::row::Row;
use crate::row::chord::ChordNews;

/// The result of decoding one message.
#[derive(Debug, Default, PartialEq)]
pub struct Decoded {
    /// The rows that the message describes, in the order in which it lists them.
    pub rows: Vec<Row>,
    /// What the message tells about chords, in the order in which it has to be stored.
    pub chords: Vec<ChordNews>,
    /// Why events were skipped because they are not such as Celery sends, and how many were skipped
    /// for each of these reasons.
    pub skipped: BTreeMap<&'static str, usize>,
}
