//! Celery's task states (`celery/states.py`, 5.7.0) and which of them are final.

use std::fmt;

/// The state of a task, in Celery's spelling. Applications may add states of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// The task is unknown, or it is waiting for a worker.
    Pending,
    /// A worker has taken the task from its queue.
    Received,
    /// A worker has begun to run the task.
    Started,
    /// The task failed and will run again.
    Retry,
    /// A worker refused the task.
    Rejected,
    /// The task asked for its outcome not to be stored.
    Ignored,
    /// The task was cancelled before or while it ran.
    Revoked,
    /// The task raised an exception.
    Failure,
    /// The task returned a value.
    Success,
    /// A state of the application, written by `Task.update_state`.
    Custom(Box<str>),
}

impl State {
    /// Celery's name of the state, which is also what the column `status` holds.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Pending => "PENDING",
            Self::Received => "RECEIVED",
            Self::Started => "STARTED",
            Self::Retry => "RETRY",
            Self::Rejected => "REJECTED",
            Self::Ignored => "IGNORED",
            Self::Revoked => "REVOKED",
            Self::Failure => "FAILURE",
            Self::Success => "SUCCESS",
            Self::Custom(name) => name,
        }
    }

    /// How final the state is: SUCCESS 3, FAILURE 2, REVOKED 1, every other state 0.
    ///
    /// The states above 0 are Celery's `READY_STATES`.
    #[must_use]
    pub fn finality(&self) -> u8 {
        match self {
            Self::Success => 3,
            Self::Failure => 2,
            Self::Revoked => 1,
            _ => 0,
        }
    }

    /// Whether the task will not change its state again (Celery's `READY_STATES`).
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.finality() > 0
    }
}

impl From<&str> for State {
    fn from(name: &str) -> Self {
        match name {
            "PENDING" => Self::Pending,
            "RECEIVED" => Self::Received,
            "STARTED" => Self::Started,
            "RETRY" => Self::Retry,
            "REJECTED" => Self::Rejected,
            "IGNORED" => Self::Ignored,
            "REVOKED" => Self::Revoked,
            "FAILURE" => Self::Failure,
            "SUCCESS" => Self::Success,
            custom => Self::Custom(custom.into()),
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parsed_and_written_back_unchanged() {
        for name in [
            "PENDING", "RECEIVED", "STARTED", "RETRY", "REJECTED", "IGNORED", "REVOKED", "FAILURE",
            "SUCCESS", "PROGRESS", "success",
        ] {
            assert_eq!(State::from(name).as_str(), name);
        }
    }

    #[test]
    fn only_celerys_ready_states_are_ready() {
        let ready = |name| State::from(name).is_ready();
        assert!(ready("SUCCESS") && ready("FAILURE") && ready("REVOKED"));
        assert!(!ready("RETRY") && !ready("REJECTED") && !ready("IGNORED") && !ready("PROGRESS"));
        assert!(!ready("success"), "states are case-sensitive");
    }
}
