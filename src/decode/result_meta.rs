//! The members of Celery's `rpc://` results, whatever the serializer.
//!
//! Up to Celery 5.6 a body has five members: `task_id`, `status`, `result`, `traceback` and
//! `children`. Celery 5.7 adds `date_done`, `group_id`, `parent_id` and, with `result_extended`,
//! `name`, `args`, `kwargs`, `worker`, `retries`, `queue` and the stamps
//! (`celery/backends/rpc.py` and `Backend._get_result_meta` in `celery/backends/base.py`, 5.7.0).

use std::borrow::Cow;

use chrono::{DateTime, Datelike, NaiveDateTime, Utc};

use crate::decode::DecodeError;
use crate::message::Message;
use crate::row::state::State;
use crate::row::task_result::{Description, Outcome, TaskResult};

/// The value of a member, still in the form of its serializer.
pub(super) trait Value<'body>: Copy {
    /// The label of the serializer, for the column `content_type`.
    const CONTENT_TYPE: &'static str;
    /// The label of its bytes, for the column `content_encoding`.
    const CONTENT_ENCODING: &'static str;

    /// Whether the value is `None`.
    fn is_null(self) -> bool;

    /// The characters, where the value is a text.
    fn text(self) -> Option<Text<'body>>;

    /// The texts in a list; none where the value is something else.
    fn texts(self) -> Vec<Cow<'body, str>>;

    /// The number, where the value is one. Truth values are none.
    fn number(self) -> Option<f64>;

    /// Whether the value is the truth value of that name.
    fn is_true(self) -> bool;

    /// The JSON text of a text, as Python writes it; nothing where the value is something else.
    fn json(self) -> Option<String>;

    /// What a column holds for the value.
    fn column(self) -> String;

    /// What a column holds for `None`.
    fn null_column() -> String;

    /// What the column `meta` holds for the value of `children`, or for an empty list where there
    /// are none.
    fn meta(children: Option<Self>) -> String;
}

/// The characters of a text.
pub(super) struct Text<'body> {
    /// The characters, borrowed where the body holds them as they are.
    pub(super) text: Cow<'body, str>,
    /// Whether a lone surrogate, which no text in UTF-8 can hold, was replaced by U+FFFD.
    pub(super) is_lossy: bool,
}

/// The members of a body that make the row. `None` counts as absent where the column has a NULL
/// for it.
pub(super) struct ResultMeta<V> {
    task_id: Option<V>,
    status: Option<V>,
    result: Option<V>,
    traceback: Option<V>,
    children: Option<V>,
    date_done: Option<V>,
    name: Option<V>,
    args: Option<V>,
    kwargs: Option<V>,
    worker: Option<V>,
}

impl<'body, V: Value<'body>> ResultMeta<V> {
    /// Picks the members that make the row out of all of them.
    pub(super) fn collect<'key>(
        members: impl Iterator<Item = Result<(Cow<'key, str>, V), DecodeError>>,
    ) -> Result<Self, DecodeError> {
        let mut meta = Self {
            task_id: None,
            status: None,
            result: None,
            traceback: None,
            children: None,
            date_done: None,
            name: None,
            args: None,
            kwargs: None,
            worker: None,
        };
        let mut stamped_headers = None;
        for member in members {
            let (key, value) = member?;
            let not_null = Some(value).filter(|value| !value.is_null());
            // As in Python's readers, the last of several members with one name counts.
            match &*key {
                "task_id" => meta.task_id = Some(value),
                "status" => meta.status = Some(value),
                "result" => meta.result = Some(value),
                "children" => meta.children = Some(value),
                "traceback" => meta.traceback = not_null,
                "date_done" => meta.date_done = not_null,
                "name" => meta.name = not_null,
                "args" => meta.args = not_null,
                "kwargs" => meta.kwargs = not_null,
                "worker" => meta.worker = not_null,
                "stamped_headers" => stamped_headers = not_null,
                _ => {}
            }
        }
        if let Some(names) = stamped_headers {
            meta.drop_stamps(&names.texts())?;
        }
        Ok(meta)
    }

    /// Takes out what a stamp has overwritten: Celery 5.7 adds the stamps to the body under
    /// their own names, which may be those of the result's members.
    fn drop_stamps(&mut self, names: &[Cow<'body, str>]) -> Result<(), DecodeError> {
        for name in names {
            match &**name {
                "status" | "result" => {
                    return Err(DecodeError::NotAResult(
                        "a stamp named `status` or `result` has taken the place of the task's own",
                    ));
                }
                "traceback" => self.traceback = None,
                "children" => self.children = None,
                "date_done" => self.date_done = None,
                "name" => self.name = None,
                "args" => self.args = None,
                "kwargs" => self.kwargs = None,
                "worker" => self.worker = None,
                _ => {}
            }
        }
        Ok(())
    }

    /// Makes the row.
    pub(super) fn into_result(self, message: &Message) -> Result<TaskResult, DecodeError> {
        let task_id = key(self.task_id, "`task_id` is missing, empty or not a text")?;
        let status = key(self.status, "`status` is missing, empty or not a text")?;
        let status = State::from(&*status);

        let own_time = self
            .date_done
            .and_then(timestamp)
            .filter(is_storable)
            .or_else(|| message.broker_time().filter(is_storable));
        let date_done = to_microseconds(own_time.unwrap_or(message.received_at));
        Ok(TaskResult {
            task_id: task_id.into_owned(),
            date_created: date_done,
            date_started: (status == State::Started).then_some(date_done),
            started_by_arrival: true,
            outcome: Outcome {
                status,
                content_type: V::CONTENT_TYPE.to_owned(),
                content_encoding: V::CONTENT_ENCODING.to_owned(),
                result: Some(self.result.map_or_else(V::null_column, V::column)),
                traceback: self.traceback.and_then(traceback),
                meta: Some(V::meta(self.children)),
                date_done,
                by_arrival: own_time.is_none(),
            },
            description: Description {
                task_name: self.name.and_then(name),
                task_args: self.args.map(V::column),
                task_kwargs: self.kwargs.map(V::column),
                worker: self.worker.and_then(name),
                periodic_task_name: None,
            },
        })
    }
}

/// A text that must be there, without lone surrogates: it is an id or a state, where a
/// replacement would name something else.
fn key<'body, V: Value<'body>>(
    value: Option<V>,
    problem: &'static str,
) -> Result<Cow<'body, str>, DecodeError> {
    match value.and_then(V::text) {
        Some(Text { is_lossy: true, .. }) => {
            Err(DecodeError::NotAResult("`task_id` or `status` has a lone surrogate"))
        }
        Some(Text { text, .. }) if !text.is_empty() => Ok(text),
        _ => Err(DecodeError::NotAResult(problem)),
    }
}

/// A traceback is text. What is not is kept as a column holds it; a lone surrogate becomes U+FFFD.
fn traceback<'body, V: Value<'body>>(value: V) -> Option<String> {
    match value.text() {
        Some(Text { text, .. }) => Some(text.into_owned()).filter(|text| !text.is_empty()),
        None => Some(value.column()),
    }
}

/// A name that is not text says nothing.
fn name<'body, V: Value<'body>>(value: V) -> Option<String> {
    value.text().map(|text| text.text.into_owned()).filter(|text| !text.is_empty())
}

/// The time as every database holds it: without nanoseconds, and without a leap second, which
/// becomes the second after it.
pub(super) fn to_microseconds(time: DateTime<Utc>) -> DateTime<Utc> {
    DateTime::from_timestamp_micros(time.timestamp_micros()).unwrap_or(time)
}

/// Whether a time is one that every database and Python can hold, in every zone.
pub(super) fn is_storable(time: &DateTime<Utc>) -> bool {
    (1970..9999).contains(&time.year())
}

/// The time in Python's `datetime.isoformat()`. One without an offset is UTC.
fn timestamp<'body, V: Value<'body>>(value: V) -> Option<DateTime<Utc>> {
    let text = value.text()?.text;
    DateTime::parse_from_rfc3339(&text).map(|time| time.to_utc()).ok().or_else(|| {
        NaiveDateTime::parse_from_str(&text, "%Y-%m-%dT%H:%M:%S%.f").map(|time| time.and_utc()).ok()
    })
}
