//! The columns of the two tables, and which part of a row each of them contains.

use chrono::{DateTime, Utc};

use super::value::{Param, Record};
use super::{Catalog, GROUPS, TASKS};
use crate::row::Row;
use crate::row::group_result::GroupResult;
use crate::row::state::State;
use crate::row::task_result::{Description, Outcome, TaskResult};

/// The type of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Time,
    Integer,
}

/// How many of [`TASK_COLUMNS`] every table has.
const ALWAYS: usize = 13;

/// The columns of the task table in the order in which statements name them. Those after the first
/// [`ALWAYS`] may be missing, see [`Catalog::has`].
const TASK_COLUMNS: [(&str, Kind); 17] = [
    ("task_id", Kind::Text),
    ("status", Kind::Text),
    ("content_type", Kind::Text),
    ("content_encoding", Kind::Text),
    ("result", Kind::Text),
    ("traceback", Kind::Text),
    ("meta", Kind::Text),
    ("task_name", Kind::Text),
    ("task_args", Kind::Text),
    ("task_kwargs", Kind::Text),
    ("worker", Kind::Text),
    ("date_done", Kind::Time),
    ("date_created", Kind::Time),
    ("periodic_task_name", Kind::Text),
    ("date_started", Kind::Time),
    ("queue", Kind::Text),
    ("retries", Kind::Integer),
];

/// The columns of the group table.
const GROUP_COLUMNS: [(&str, Kind); 6] = [
    ("group_id", Kind::Text),
    ("content_type", Kind::Text),
    ("content_encoding", Kind::Text),
    ("result", Kind::Text),
    ("date_done", Kind::Time),
    ("date_created", Kind::Time),
];

/// A table and those of its columns that are written.
#[derive(Clone, Debug)]
pub(super) struct Table {
    pub(super) name: &'static str,
    /// The first one is the key of the rows.
    pub(super) columns: Vec<(&'static str, Kind)>,
}

impl Table {
    pub(super) fn tasks(catalog: &Catalog) -> Self {
        let columns = TASK_COLUMNS.into_iter().filter(|(name, _)| catalog.has(name));
        Self { name: TASKS, columns: columns.collect() }
    }

    pub(super) fn groups() -> Self {
        Self { name: GROUPS, columns: GROUP_COLUMNS.to_vec() }
    }

    /// The column that is the key of the rows.
    pub(super) fn key(&self) -> &'static str {
        self.columns[0].0
    }

    /// The names of the columns, separated by commas.
    pub(super) fn names(&self) -> String {
        self.columns.iter().map(|&(name, _)| name).collect::<Vec<_>>().join(", ")
    }

    /// The values that a row has in these columns.
    pub(super) fn values<'row>(&self, row: &'row Row) -> Vec<Param<'row>> {
        let value = |&(name, kind): &(&str, Kind)| match kind {
            Kind::Text => Param::Text(text(row, name)),
            Kind::Time => Param::Time(time(row, name)),
            Kind::Integer => Param::Integer(integer(row, name)),
        };
        self.columns.iter().map(value).collect()
    }

    /// Reads a row from a record with these columns in this order.
    pub(super) fn read(&self, record: &mut Record) -> Row {
        if self.name == GROUPS { Row::Group(group(record)) } else { Row::Task(self.task(record)) }
    }

    fn task(&self, record: &mut Record) -> TaskResult {
        let task_id = record.text().unwrap_or_default();
        let mut outcome = Outcome {
            status: State::from(&*record.text().unwrap_or_default()),
            content_type: record.text().unwrap_or_default(),
            content_encoding: record.text().unwrap_or_default(),
            result: record.text(),
            traceback: record.text(),
            meta: record.text(),
            date_done: DateTime::<Utc>::MIN_UTC,
            by_arrival: false,
        };
        let mut description = Description {
            task_name: record.text(),
            task_args: record.text(),
            task_kwargs: record.text(),
            worker: record.text(),
            ..Description::default()
        };
        // A time that is missing or cannot be read is replaced by any other.
        outcome.date_done = record.time().unwrap_or(DateTime::<Utc>::MIN_UTC);
        let date_created = record.time().unwrap_or(DateTime::<Utc>::MAX_UTC);
        let mut date_started = None;
        for (name, _) in &self.columns[ALWAYS..] {
            match *name {
                "periodic_task_name" => description.periodic_task_name = record.text(),
                "date_started" => date_started = record.time(),
                "queue" => description.queue = record.text(),
                _ => description.retries = record.integer(),
            }
        }
        TaskResult { task_id, outcome, description, date_created, date_started }
    }
}

fn group(record: &mut Record) -> GroupResult {
    GroupResult {
        group_id: record.text().unwrap_or_default(),
        content_type: record.text().unwrap_or_default(),
        content_encoding: record.text().unwrap_or_default(),
        result: record.text(),
        date_done: record.time().unwrap_or(DateTime::<Utc>::MIN_UTC),
        date_created: record.time().unwrap_or(DateTime::<Utc>::MAX_UTC),
    }
}

/// The key of a row without its table.
pub(super) fn key(row: &Row) -> &str {
    match row {
        Row::Task(result) => &result.task_id,
        Row::Group(result) => &result.group_id,
    }
}

/// The state of a task; `None` for a group.
pub(super) fn state(row: &Row) -> Option<State> {
    match row {
        Row::Task(result) => Some(result.outcome.status.clone()),
        Row::Group(_) => None,
    }
}

/// The text that a row has in a column.
pub(super) fn text<'row>(row: &'row Row, column: &str) -> Option<&'row str> {
    match row {
        Row::Task(TaskResult { task_id, outcome, description, .. }) => match column {
            "task_id" => Some(task_id),
            "status" => Some(outcome.status.as_str()),
            "content_type" => Some(&outcome.content_type),
            "content_encoding" => Some(&outcome.content_encoding),
            "result" => outcome.result.as_deref(),
            "traceback" => outcome.traceback.as_deref(),
            "meta" => outcome.meta.as_deref(),
            "task_name" => description.task_name.as_deref(),
            "task_args" => description.task_args.as_deref(),
            "task_kwargs" => description.task_kwargs.as_deref(),
            "worker" => description.worker.as_deref(),
            "periodic_task_name" => description.periodic_task_name.as_deref(),
            "queue" => description.queue.as_deref(),
            _ => None,
        },
        Row::Group(result) => match column {
            "group_id" => Some(&result.group_id),
            "content_type" => Some(&result.content_type),
            "content_encoding" => Some(&result.content_encoding),
            "result" => result.result.as_deref(),
            _ => None,
        },
    }
}

/// The number that a row has in a column.
pub(super) fn integer(row: &Row, column: &str) -> Option<i64> {
    match row {
        Row::Task(result) if column == "retries" => result.description.retries,
        _ => None,
    }
}

/// The time that a row has in a column.
pub(super) fn time(row: &Row, column: &str) -> Option<DateTime<Utc>> {
    match (row, column) {
        (Row::Task(result), "date_done") => Some(result.outcome.date_done),
        (Row::Task(result), "date_created") => Some(result.date_created),
        (Row::Task(result), "date_started") => result.date_started,
        (Row::Group(result), "date_done") => Some(result.date_done),
        (Row::Group(result), "date_created") => Some(result.date_created),
        _ => None,
    }
}
