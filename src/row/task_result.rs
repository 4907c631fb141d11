//! One row of `django_celery_results_taskresult`, under Django's column names.

use std::fmt;

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};

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
    /// When the last attempt began. Whole milliseconds can mean that it is a time of arrival.
    pub date_started: Option<DateTime<Utc>>,
}

/// The difference between a time that a message contains and one of arrival: whole milliseconds
/// become the following microsecond.
const OWN_TIME: TimeDelta = TimeDelta::microseconds(1);

/// Whether a time is one of arrival, if it is that of a state that is not final.
pub(super) fn is_arrival(time: DateTime<Utc>) -> bool {
    time.timestamp_subsec_micros().is_multiple_of(1_000)
}

/// The `date_created` of a message that never contains the start of its attempt. If the start arrives
/// after a final state, the merge law moves it to the end in the precision of an arrival, and the
/// row must not have been created later.
pub(crate) fn created_without_start(status: &State, date_done: DateTime<Utc>) -> DateTime<Utc> {
    if status.is_ready() { to_arrival(date_done) } else { date_done }
}

/// A time in the form of one of arrival.
pub(super) fn to_arrival(time: DateTime<Utc>) -> DateTime<Utc> {
    time.trunc_subsecs(3)
}

impl TaskResult {
    /// Marks the times of a result message as those of its arrival, or as its own.
    ///
    /// A time that lies in the future is replaced by that of the arrival, because it would win over
    /// every later state: `tolerance` in the future, or a day if the state is final.
    pub fn mark_times(&mut self, received_at: DateTime<Utc>, tolerance: TimeDelta) {
        let is_final = self.outcome.status.is_ready();
        let ahead = if is_final { TimeDelta::days(1) } else { tolerance };
        if self.outcome.date_done > received_at + ahead {
            self.outcome.by_arrival = true;
            self.outcome.date_done = received_at;
            self.date_created = received_at;
            self.date_started = self.date_started.map(|_| received_at);
        }
        if is_final || self.outcome.is_event() {
            return;
        }
        let date_done = self.outcome.date_done;
        if self.outcome.by_arrival {
            self.outcome.date_done = to_arrival(date_done);
            self.date_started = self.date_started.map(to_arrival);
            self.date_created = self.date_created.min(self.outcome.date_done);
        } else if is_arrival(date_done) {
            self.outcome.date_done = date_done + OWN_TIME;
        }
    }

    /// Moves the time of an arrival after that of an earlier arrival in the same millisecond.
    pub fn follow(&mut self, earlier: &Self) {
        let (one, other) = (&earlier.outcome, &mut self.outcome);
        let are_arrivals =
            one.by_arrival && other.by_arrival && !other.status.is_ready() && !other.is_event();
        if are_arrivals && other.date_done <= one.date_done && other.status != one.status {
            other.date_done = to_arrival(one.date_done) + TimeDelta::milliseconds(1);
        }
    }
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
    /// The time at which the task reached the state, or the time at which the message was received
    /// if it did not contain one. In a state that is not final, the second is cut to whole
    /// milliseconds and the first never has whole milliseconds, so that a row shows which one it
    /// has. See [`TaskResult::mark_times`].
    pub date_done: DateTime<Utc>,
    /// Whether `date_done` is the time at which the message was received. A row that was read from a
    /// table does not have this flag.
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
    /// The routing key of the task's message. No released django-celery-results has this column and
    /// the next one; its pull request 514 adds them.
    pub queue: Option<String>,
    /// How often the task was retried before.
    pub retries: Option<i64>,
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
