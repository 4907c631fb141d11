//! What messages tell about chords. `docs/message-format.md` describes the messages.

use std::fmt;

use chrono::{DateTime, Utc};

/// The most members of a chord. The workers complete larger ones by Celery's own polling.
pub const MAX_MEMBERS: usize = 100_000;

/// What a message tells about a chord or about a member of chords.
#[derive(Clone, PartialEq, Eq)]
pub enum ChordNews {
    /// A chord begins.
    Applied(Chord),
    /// A member has added tasks to the chords that it belongs to.
    Added {
        /// The member.
        task_id: String,
        /// The ids of the tasks.
        added: Vec<String>,
    },
    /// A member has reached a final state, which is in its row.
    Ended {
        /// The member.
        task_id: String,
    },
    /// A member whose result is not stored has reached a final state.
    Value {
        /// The member.
        task_id: String,
        /// The result, as a JSON array of the state, the content type, the content encoding and the
        /// encoded result.
        value: String,
    },
    /// The unlock message has been processed: the body was sent, or has failed.
    Unlocked {
        /// The chord.
        group_id: String,
        /// Which application of the chord.
        unlock_id: String,
    },
}

/// A chord that begins.
#[derive(Clone, PartialEq, Eq)]
pub struct Chord {
    /// The id of the header's group, the key of the chord.
    pub group_id: String,
    /// The id of the unlock message. A chord that is applied again has another one.
    pub unlock_id: String,
    /// The ids of the tasks in the header, in their order.
    pub members: Vec<String>,
    /// When the chord was applied.
    pub applied_at: DateTime<Utc>,
    /// When the chord expires, if that is limited.
    pub expires_at: Option<DateTime<Utc>>,
    /// The message `celery.chord_unlock` that has to be sent when all members have ended, as a line
    /// of a capture.
    pub unlock: String,
}

/// Shows the ids but neither results nor the unlock message, which contains arguments.
impl fmt::Debug for ChordNews {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, id) = match self {
            Self::Applied(chord) => ("Applied", &chord.group_id),
            Self::Added { task_id, .. } => ("Added", task_id),
            Self::Ended { task_id } => ("Ended", task_id),
            Self::Value { task_id, .. } => ("Value", task_id),
            Self::Unlocked { group_id, .. } => ("Unlocked", group_id),
        };
        formatter.debug_tuple(kind).field(id).finish()
    }
}
