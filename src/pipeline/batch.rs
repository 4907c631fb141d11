//! The messages of one write: their rows, merged by id, and the messages that each row came from.
//! This module does not read the clock and does no I/O.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use crate::message::Message;
use crate::message::dead_letter::Reason;
use crate::row::chord::ChordNews;
use crate::row::merge::Law;
use crate::row::{Key, Row};
use crate::store::Write;

/// The limits of a batch. A batch is full when one of them is reached. It can always hold one
/// message, however large.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLimits {
    /// The most messages, and the most rows, in a batch.
    pub max_rows: usize,
    /// The most bytes in a batch: of each message its body or the rows in it, whichever are more.
    pub max_bytes: usize,
}

/// What is written, dead-lettered and acknowledged together.
///
/// Each message has rows, is refused, or contains nothing to store.
#[derive(Debug, Default)]
pub struct Batch {
    messages: Vec<Message>,
    rows: BTreeMap<Key, Merged>,
    refused: Vec<Refused>,
    /// What messages tell about chords, with the index of the message.
    chords: Vec<(usize, ChordNews)>,
    skipped: BTreeMap<&'static str, usize>,
    size_bytes: usize,
    law: Law,
}

#[derive(Debug)]
struct Merged {
    row: Row,
    /// Indexes in `messages`.
    sources: Vec<usize>,
}

/// A message that cannot be stored, by its index in the batch, and the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    message: usize,
    /// The reason.
    pub reason: Reason,
}

impl Batch {
    /// An empty batch whose rows are merged by a law.
    #[must_use]
    pub fn new(law: Law) -> Self {
        Self { law, ..Self::default() }
    }

    /// Adds a message and the rows that were decoded from it. Each row is merged with the row of
    /// the same id.
    pub fn push(&mut self, message: Message, read: Result<Vec<Row>, Reason>) {
        let place = self.messages.len();
        // A compressed body is smaller than the rows in it.
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

    fn merge(&mut self, mut row: Row, place: usize) {
        match self.rows.entry(row.key()) {
            Entry::Vacant(entry) => {
                entry.insert(Merged { row, sources: vec![place] });
            }
            Entry::Occupied(mut entry) => {
                let merged = entry.get_mut();
                row.follow(&merged.row);
                merged.row.merge(row, self.law);
                if merged.sources.last() != Some(&place) {
                    merged.sources.push(place);
                }
            }
        }
    }

    /// Adds what the message that was pushed last tells about chords.
    pub fn tell(&mut self, news: Vec<ChordNews>) {
        if let Some(place) = self.messages.len().checked_sub(1) {
            self.chords.extend(news.into_iter().map(|news| (place, news)));
        }
    }

    /// Whether a message tells something about chords. A chord's body waits for the last member, so
    /// such a batch is written at once.
    #[must_use]
    pub fn has_chords(&self) -> bool {
        !self.chords.is_empty()
    }

    /// What the messages tell about chords, with the index of the message of each. Messages that
    /// cannot be stored tell nothing.
    #[must_use]
    pub fn chords(&self) -> Vec<(usize, &ChordNews)> {
        let is_refused = |place| self.refused.iter().any(|refused| refused.message == place);
        let told = self.chords.iter().filter(|(place, _)| !is_refused(*place));
        told.map(|(place, news)| (*place, news)).collect()
    }

    /// Counts events of a message that were skipped because of a problem.
    pub fn skip(&mut self, problem: &'static str, events: usize) {
        *self.skipped.entry(problem).or_default() += events;
    }

    /// The problems for which events were skipped, and how many events each.
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

    /// The rows to write, in the order of their ids, so that concurrent writers lock rows in the
    /// same order.
    pub fn writes(&self) -> impl ExactSizeIterator<Item = Write<'_>> {
        let was_delivered_before = |&place: &usize| self.messages[place].redelivered;
        self.rows.values().map(move |merged| Write {
            row: &merged.row,
            may_be_stored: merged.sources.iter().any(was_delivered_before),
        })
    }

    /// The rows in the order of their ids.
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

    /// Marks a message as one that cannot be stored, by its index from [`Batch::sources`]. A
    /// message with several rows is refused only once.
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
