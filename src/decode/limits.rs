//! How much a message may ask for.

use crate::message::Message;

/// How much a message may ask of whoever reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WireLimits {
    /// The most bytes of a body as it comes.
    pub body_bytes: usize,
    /// The most bytes of a body that was compressed.
    pub decompressed_bytes: usize,
    /// How many times as large as its compressed form a body may be. One mebibyte is always
    /// allowed.
    pub compression_ratio: usize,
    /// How deep the value of a member may nest.
    pub depth: usize,
    /// The most events in one message. Celery's workers send lists of at most 24
    /// (`buffer_limit` in `celery/events/dispatcher.py`, 5.7.0).
    pub events: usize,
    /// How many values a text in YAML may have, each of its aliases counted as all that it stands
    /// for.
    pub expanded_values: usize,
}

impl Default for WireLimits {
    fn default() -> Self {
        Self {
            body_bytes: 64 << 20,
            decompressed_bytes: 64 << 20,
            compression_ratio: 200,
            depth: 10_000,
            events: 10_000,
            expanded_values: 1_000_000,
        }
    }
}

/// What a wire format needs besides the body.
#[derive(Clone, Copy)]
pub(super) struct Context<'message> {
    /// Where the body came from, which says when.
    pub(super) message: &'message Message,
    pub(super) limits: &'message WireLimits,
}
