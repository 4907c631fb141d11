//! How a pipeline ends.

use super::batch::Batch;
use crate::broker::BrokerError;
use crate::store::StoreError;

/// Why the loop ended. What it had not acknowledged is delivered again.
#[derive(Debug)]
pub enum End {
    /// The messages have ended, by themselves or because it was asked to stop, and everything that
    /// it had taken is settled or left to the broker.
    Stopped,
    /// The broker's side is gone.
    BrokerLost(BrokerError),
    /// The database cannot be written for longer than messages may be held. The batch is what it
    /// did not take; `settle::wait_for_store` tries with it until the database takes writes again.
    StoreUnavailable(StoreError, Batch),
    /// The dead-letter queue cannot be written for longer than messages may be held.
    DeadLettersFailed(BrokerError),
}
