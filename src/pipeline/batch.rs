//! Messages gathered for one write: rows by their ids, and the messages that they came from.
//! No clock and no I/O.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use crate::message::Message;
use crate::message::dead_letter::Reason;
use crate::row::{Key, Row};

/// How much one batch may hold. It is full when a limit is reached, and holds at least one message
/// however large that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLimits {
    /// The most messages, and the most rows, in a batch.
    pub max_rows: usize,
    /// The most bytes in a batch: of each message its body or the rows in it, whichever are more.
    pub max_bytes: usize,
}

/// What is written, dead-lettered and acknowledged together.
///
/// Every message that was pushed is the source of rows, or refused, or says nothing.
#[derive(Debug, Default)]
pub struct Batch {
    messages: Vec<Message>,
    rows: BTreeMap<Key, Merged>,
    refused: Vec<Refused>,
    skipped: BTreeMap<&'static str, usize>,
    size_bytes: usize,
}

#[derive(Debug)]
struct Merged {
    row: Row,
    /// Places in `messages`.
    sources: Vec<usize>,
}

/// A message that cannot be stored, by its place in the batch, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    message: usize,
    /// Why, for people and programs.
    pub reason: Reason,
}

impl Batch {
    /// Adds a message and the rows that were read from it, each merged into the one with its id.
    pub fn push(&mut self, message: Message, read: Result<Vec<Row>, Reason>) {
        let place = self.messages.len();
        // A body that was compressed is smaller than what was read from it.
        let read_bytes = read.iter().flatten().map(Row::size_bytes).sum();
        self.size_bytes += message.body.len().max(read_bytes);
        self.messages.push(message);
        match read {
            Ok(rows) => {
                for row in rows {
                    self.merge(row, place);
                }
            }
            Err(reason) => self.refused.push(Refused { message: place, reason }),
        }
    }

    fn merge(&mut self, row: Row, place: usize) {
        match self.rows.entry(row.key()) {
            Entry::Vacant(entry) => {
                entry.insert(Merged { row, sources: vec![place] });
            }
            Entry::Occupied(mut entry) => {
                let merged = entry.get_mut();
                merged.row.merge(row);
                if merged.sources.last() != Some(&place) {
                    merged.sources.push(place);
                }
            }
        }
    }

    /// Counts events of a message that were left out for a problem.
    pub fn skip(&mut self, problem: &'static str, events: usize) {
        *self.skipped.entry(problem).or_default() += events;
    }

    /// What was wrong with events, and how many were left out for it.
    pub fn skipped(&self) -> impl Iterator<Item = (&'static str, usize)> {
        self.skipped.iter().map(|(&problem, &events)| (problem, events))
    }

    /// Whether nothing was pushed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Whether the batch should be written before more is pushed.
    #[must_use]
    pub fn is_full(&self, limits: BatchLimits) -> bool {
        self.messages.len().max(self.rows.len()) >= limits.max_rows
            || self.size_bytes >= limits.max_bytes
    }

    /// How many messages were pushed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// The bytes of all messages, as [`BatchLimits::max_bytes`] counts them.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.size_bytes
    }

    /// The rows in the order of their ids, so that concurrent writers lock in one order.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &Row> {
        self.rows.values().map(|merged| &merged.row)
    }

    /// The messages that a row was merged from, in the order of their arrival.
    pub fn sources<'batch>(
        &'batch self,
        key: &Key,
    ) -> impl Iterator<Item = (usize, &'batch Message)> + use<'batch> {
        let sources =
            self.rows.get(key).map(|merged| merged.sources.as_slice()).unwrap_or_default();
        sources.iter().map(|&place| (place, &self.messages[place]))
    }

    /// Marks the message at a place, as [`Batch::sources`] gives it, as one that cannot be stored.
    /// A message of several rows is refused once.
    pub fn refuse(&mut self, place: usize, reason: Reason) {
        if self.refused.iter().any(|refused| refused.message == place) {
            return;
        }
        self.refused.push(Refused { message: place, reason });
    }

    /// The messages that cannot be stored, each with its reason.
    pub fn refused(&self) -> impl ExactSizeIterator<Item = (&Message, &Reason)> {
        self.refused.iter().map(|refused| (&self.messages[refused.message], &refused.reason))
    }

    /// The messages that were pushed, in the order of their arrival.
    #[must_use]
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }
}
