//! How the daemon gets past a message whose properties cannot be read.
//!
//! Each delivery of such a message closes the connection, and the broker counts a delivery for
//! every message that was unacknowledged. So the daemon uses a prefetch limit of 1 for a while:
//! then only the deliveries of the unreadable message are counted, until the delivery limit of the
//! results queue moves it to the dead-letter queue.

use std::time::Duration;

use crate::broker::{BrokerError, Recovery};

/// How long a session with a prefetch limit of 1 lasts.
const SESSION_AGE: Duration = Duration::from_secs(10);

/// After more sessions than this, the queue has no delivery limit, or a larger one than Celeriac
/// declares.
const MAX_SESSIONS: u32 = 200;

/// The wait before such a session.
const DELAY: Duration = Duration::from_millis(20);

/// Whether messages are taken one by one, and how many sessions an unreadable message has ended.
#[derive(Debug, Default)]
pub(super) struct Careful {
    is_on: bool,
    sessions: u32,
}

impl Careful {
    /// The prefetch limit of the next session.
    pub(super) fn prefetch(&self, usual: u16) -> u16 {
        if self.is_on { 1 } else { usual }
    }

    /// How long the next session may last, if that is limited.
    pub(super) fn max_age(&self) -> Option<Duration> {
        self.is_on.then_some(SESSION_AGE)
    }

    /// Takes messages one by one from now on. Returns whether they already were.
    pub(super) fn begin(&mut self, error: &BrokerError) -> bool {
        if !self.is_on {
            tracing::warn!(
                %error,
                "a message has properties that cannot be read: messages are taken one by one until \
                 the broker removes it from the queue"
            );
        }
        self.sessions += 1;
        std::mem::replace(&mut self.is_on, true)
    }

    /// Takes messages as usual again.
    pub(super) fn end(&mut self) {
        *self = Self::default();
    }

    /// What to do after a session that an unreadable message has ended.
    pub(super) async fn next(&self, error: &BrokerError) -> Recovery {
        if self.sessions <= MAX_SESSIONS {
            tokio::time::sleep(DELAY).await;
            return Recovery::Reopen;
        }
        Recovery::Wait {
            problem: "a message that cannot be read stays in the queue, which has no delivery \
                      limit: take the message out, or let it expire; on a quorum queue set the \
                      policy `delivery-limit` with a dead-letter queue",
            error: error.clone(),
        }
    }
}
