//! One row of `django_celery_results_taskresult`, under Django's column names.

use std::fmt;

use chrono::{DateTime, Utc};

use crate::row::state::State;

/// The `content_type` of an outcome that is known only from an event. Its `result` is JSON that was
/// made from the `repr` of the real result.
pub const EVENT: &str = "application/vnd.celeriac.event+json";

/// The `periodic_task_name` of a description whose arguments are known only from events. It is
/// empty but not NULL, which tells the merge law that a result message may replace the description.
pub const TOLD_BY_EVENTS: &str = "";

/// What is known of one task: a row, or the part of it that one message contains.
///
/// The fields are the columns of django-celery-results' `TaskResult`
/// (`django_celery_results/models.py`, 2.6.0); `date_done` belongs to the outcome, as there. Texts
/// have the form that the columns contain, so `result`, `meta`, `task_args` and `task_kwargs` are
/// already encoded by the task's serializer. Times are in UTC, to the microsecond.
#[derive(Clone, PartialEq)]
pub struct TaskResult {
    /// The task's id, the key of the row.
    pub task_id: String,
    /// The outcome of the task. Its columns are replaced together.
    pub outcome: Outcome,
    /// The description of the task. What is known once is kept.
    pub description: Description,
    /// The time of the earliest message about the task.
    pub date_created: DateTime<Utc>,
    /// When the last attempt began.
    pub date_started: Option<DateTime<Utc>>,
    /// Whether `date_started` may be later than the real start, because the result backend's
    /// messages do not contain the time at which the task started (`rpc://`, every version).
    pub started_by_arrival: bool,
}

/// The state of a task and everything that belongs to that state.
#[derive(Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The state.
    pub status: State,
    /// The serializer of `result`, such as `application/json`.
    pub content_type: String,
    /// The charset of the serialized text, or `binary` if the columns contain base64.
    pub content_encoding: String,
    /// The return value, the exception or the state's metadata.
    pub result: Option<String>,
    /// The traceback of an exception, as text.
    pub traceback: Option<String>,
    /// The children of the task and `request.meta`.
    pub meta: Option<String>,
    /// The time at which the task reached the state.
    pub date_done: DateTime<Utc>,
    /// Whether `date_done` is only the time at which the message was received. If the same outcome
    /// arrives again, it is then a duplicate and not a newer outcome.
    pub by_arrival: bool,
}

/// What is known of a task besides its outcome.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Description {
    /// The task's registered name.
    pub task_name: Option<String>,
    /// The positional arguments.
    pub task_args: Option<String>,
    /// The keyword arguments.
    pub task_kwargs: Option<String>,
    /// The node name of the worker.
    pub worker: Option<String>,
    /// The name of the periodic task that sent this one.
    pub periodic_task_name: Option<String>,
}

/// Shows the id and the state but neither arguments nor results.
impl fmt::Debug for TaskResult {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("TaskResult")
            .field("task_id", &self.task_id)
            .field("status", &self.outcome.status.as_str())
            .field("date_done", &self.outcome.date_done)
            .finish_non_exhaustive()
    }
}
