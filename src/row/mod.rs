//! The rows of the tables that Celeriac writes, and the law by which rows with the same id are
//! merged.

pub mod chord;
pub mod expiry;
pub mod group_result;
pub mod merge;
pub mod state;
pub mod task_result;

use chrono::{DateTime, TimeDelta, Utc};

use crate::row::group_result::GroupResult;
use crate::row::task_result::TaskResult;

/// A row, or the part of it that one message contains.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "nearly every row is a task: a box costs more")]
pub enum Row {
    /// A row of `django_celery_results_taskresult`.
    Task(TaskResult),
    /// A row of `django_celery_results_groupresult`.
    Group(GroupResult),
}

/// The key of a row. Rows are sorted by it, tasks before groups.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// The `task_id` of a task.
    Task(String),
    /// The `group_id` of a group.
    Group(String),
}

impl Row {
    /// The key: the table and the id.
    #[must_use]
    pub fn key(&self) -> Key {
        match self {
            Self::Task(result) => Key::Task(result.task_id.clone()),
            Self::Group(result) => Key::Group(result.group_id.clone()),
        }
    }

    /// Marks the times of a row as those of its message or as those of the message's arrival; see
    /// [`TaskResult::mark_times`]. A group that was saved more than a day in the future has the
    /// time of the arrival.
    pub fn mark_times(&mut self, received_at: DateTime<Utc>, tolerance: TimeDelta) {
        match self {
            Self::Task(result) => result.mark_times(received_at, tolerance),
            Self::Group(result) if result.date_done > received_at + TimeDelta::days(1) => {
                result.date_done = received_at;
                result.date_created = received_at;
            }
            Self::Group(_) => {}
        }
    }

    /// Moves the time of an arrival after that of an earlier arrival in the same millisecond.
    pub fn follow(&mut self, earlier: &Self) {
        if let (Self::Task(result), Self::Task(earlier)) = (self, earlier) {
            result.follow(earlier);
        }
    }

    /// The same row with another spelling of its id.
    #[must_use]
    pub fn with_id(mut self, id: &str) -> Self {
        let own = match &mut self {
            Self::Task(result) => &mut result.task_id,
            Self::Group(result) => &mut result.group_id,
        };
        if own != id {
            id.clone_into(own);
        }
        self
    }

    /// Forgets what the columns of a table do not show: whether `date_done` is a time of arrival.
    pub fn forget_arrival(&mut self) {
        if let Self::Task(result) = self {
            result.outcome.by_arrival = false;
        }
    }

    /// The time at which the task reached its state or the group was saved; `None` if the message
    /// did not contain it.
    #[must_use]
    pub fn own_time(&self) -> Option<DateTime<Utc>> {
        match self {
            Self::Task(result) => (!result.outcome.by_arrival).then_some(result.outcome.date_done),
            Self::Group(result) => Some(result.date_done),
        }
    }

    /// The size in bytes of its texts.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        let size = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        match self {
            Self::Task(TaskResult { task_id, outcome, description, .. }) => {
                let columns = [
                    &outcome.result,
                    &outcome.traceback,
                    &outcome.meta,
                    &description.task_name,
                    &description.task_args,
                    &description.task_kwargs,
                ];
                task_id.len() + columns.into_iter().map(size).sum::<usize>()
            }
            Self::Group(result) => result.group_id.len() + size(&result.result),
        }
    }
}
