//! How a pipeline ends.

use super::batch::Batch;
use crate::broker::BrokerError;
use crate::store::StoreError;

/// Why the loop ended. The broker delivers unacknowledged messages again.
#[derive(Debug)]
pub enum End {
    /// The stream of messages ended, by itself or because the loop was asked to stop. Every
    /// received message was acknowledged, or the broker delivers it again.
    Stopped,
    /// The connection to the broker was lost.
    BrokerLost(BrokerError),
    /// The database could not be written to for longer than messages may be held.
    /// `settle::wait_for_store` retries with this batch, which was not written, until a write
    /// succeeds.
    StoreUnavailable(StoreError, Batch),
    /// Dead letters could not be published for longer than messages may be held.
    DeadLettersFailed(BrokerError),
}
