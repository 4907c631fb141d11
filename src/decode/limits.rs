//! Limits on the size and the structure of messages.

use crate::message::Message;

/// Limits on the size and the structure of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WireLimits {
    /// The maximum size of a body as it is received, in bytes.
    pub body_bytes: usize,
    /// The maximum size of a decompressed body, in bytes.
    pub decompressed_bytes: usize,
    /// How many times as large as the compressed body the decompressed body may be. One mebibyte is
    /// always allowed.
    pub compression_ratio: usize,
    /// How deeply the value of a member may be nested.
    pub depth: usize,
    /// The maximum number of events in one message. Celery's workers send lists of at most 24
    /// (`buffer_limit` in `celery/events/dispatcher.py`, 5.7.0).
    pub events: usize,
    /// The maximum number of values in a YAML body when its aliases are expanded.
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

/// What the decoder of a wire format needs besides the body.
#[derive(Clone, Copy)]
pub(super) struct Context<'message> {
    /// The message that the body belongs to, for its time.
    pub(super) message: &'message Message,
    pub(super) limits: &'message WireLimits,
}
