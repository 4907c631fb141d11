//! Decodes messages and adds them to a batch.

use super::batch::Batch;
use crate::chords::Chords;
use crate::decode::{Decoded, Decoder, SourceKind};
use crate::hints::Hints;
use crate::message::Message;
use crate::message::dead_letter::{Reason, UNSTORABLE};
use crate::store::Catalog;
use crate::telemetry::Lane;

/// How the messages are read, and who learns what became of them.
#[derive(Clone, Copy, Debug)]
pub struct Reading<'config> {
    /// The decoder.
    pub decoder: &'config Decoder,
    /// The kind of messages: results or events.
    pub kind: SourceKind<'config>,
    /// The metrics and the health of the lane.
    pub lane: &'config Lane,
    /// Which tasks have ended, for the processes that wait for them.
    pub hints: &'config Hints,
    /// What sends the unlock messages of chords.
    pub chords: &'config Chords,
}

/// Decodes a message and adds it to a batch. Returns false if the message tells about chords, and
/// its batch is therefore written at once.
pub(super) fn take(
    batch: &mut Batch,
    message: Message,
    reading: Reading<'_>,
    catalog: &Catalog,
) -> bool {
    reading.lane.receive(message.redelivered);
    let (mut read_rows, mut chords) = (0, Vec::new());
    let read = read(&message, reading, catalog).map(|read| {
        for (problem, events) in read.skipped {
            batch.skip(problem, events);
        }
        read_rows = read.rows.len();
        chords = read.chords;
        read.rows
    });
    let rows_before = batch.rows().len();
    batch.push(message, read);
    let may_wait = chords.is_empty();
    batch.tell(chords);
    reading.lane.read(read_rows, rows_before + read_rows - batch.rows().len());
    may_wait
}

/// Decodes a message and fits its rows to the columns of the tables. An event that does not fit is
/// skipped, because other events share its message.
pub(super) fn read(
    message: &Message,
    reading: Reading<'_>,
    catalog: &Catalog,
) -> Result<Decoded, Reason> {
    let mut read = reading
        .decoder
        .decode(message, reading.kind)
        .map_err(|error| Reason { code: error.code(), error: error.to_string() })?;
    if !reading.kind.is_events(message) {
        for row in &mut read.rows {
            catalog.fit(row).map_err(|error| Reason { code: UNSTORABLE, error })?;
        }
        return Ok(read);
    }
    let count = read.rows.len();
    read.rows.retain_mut(|row| catalog.fit(row).is_ok());
    if read.rows.len() < count {
        let problem = "the table cannot store a text of it, such as a `uuid` that is too long";
        read.skipped.insert(problem, count - read.rows.len());
    }
    Ok(read)
}
