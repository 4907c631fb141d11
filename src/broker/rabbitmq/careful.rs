//! Getting past a message whose properties no client can read.
//!
//! The connection is lost with each delivery of such a message, and the broker counts the delivery
//! of every message that was on its way. So messages are taken one by one for a while: then only
//! that one is counted, and in the end the delivery limit of the results queue moves it to the
//! dead-letter queue.

use std::time::Duration;

use crate::broker::{BrokerError, Recovery};

/// How long a session that takes messages one by one lasts.
const SESSION_AGE: Duration = Duration::from_secs(10);

/// After so many of these sessions the queue has no delivery limit, or another one than ours.
const MAX_SESSIONS: u32 = 200;

/// The wait before such a session.
const DELAY: Duration = Duration::from_millis(20);

/// Whether messages are taken one by one, and for how many sessions they have been.
#[derive(Debug, Default)]
pub(super) struct Careful {
    is_on: bool,
    sessions: u32,
}

impl Careful {
    /// The most unacknowledged messages of the next session.
    pub(super) fn prefetch(&self, usual: u16) -> u16 {
        if self.is_on { 1 } else { usual }
    }

    /// How long the next session may last, where it is limited.
    pub(super) fn max_age(&self) -> Option<Duration> {
        self.is_on.then_some(SESSION_AGE)
    }

    /// Takes messages one by one from now on. Says whether they were before.
    pub(super) fn begin(&mut self, error: &BrokerError) -> bool {
        if !self.is_on {
            tracing::warn!(
                %error,
                "a message has properties that cannot be read: messages are taken one by one until \
                 the broker gives it up"
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
