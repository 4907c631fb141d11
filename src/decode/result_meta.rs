//! The members of Celery's `rpc://` results, independent of the serializer.
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
use crate::row::task_result::{Description, Outcome, TaskResult, created_without_start};

/// The value of a member, still in its serialized form.
pub(super) trait WireValue<'body>: Copy {
    /// The content type of the serializer, for the column `content_type`.
    const CONTENT_TYPE: &'static str;
    /// The content encoding of the serializer, for the column `content_encoding`.
    const CONTENT_ENCODING: &'static str;

    /// Whether the value is `None`.
    fn is_null(self) -> bool;

    /// The characters, if the value is a string.
    fn text(self) -> Option<Text<'body>>;

    /// The strings in a list; none if the value is not a list.
    fn texts(self) -> Vec<Cow<'body, str>>;

    /// The number, if the value is one. Booleans are not numbers.
    fn number(self) -> Option<f64>;

    /// Whether the value is `True`.
    fn is_true(self) -> bool;

    /// The JSON text of a string, as Python writes it; `None` if the value is not a string.
    fn json(self) -> Option<String>;

    /// The content of a column for the value.
    fn column(self) -> String;

    /// The content of a column for `None`.
    fn null_column() -> String;

    /// The content of the column `meta` for the value of `children`; if there is none, for an empty
    /// list.
    fn meta(children: Option<Self>) -> String;
}

/// The characters of a string.
pub(super) struct Text<'body> {
    /// The characters, borrowed if the body contains them without escapes.
    pub(super) text: Cow<'body, str>,
    /// Whether a lone surrogate, which UTF-8 cannot represent, was replaced by U+FFFD.
    pub(super) is_lossy: bool,
}

/// The members of a body that the row is made from. A member with the value `None` is treated as
/// absent if its column is then NULL.
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

impl<'body, V: WireValue<'body>> ResultMeta<V> {
    /// Collects the members that the row is made from.
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
            // If several members have the same name, the last one is used, as in Python.
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

    /// Removes the members that stamps have overwritten. Celery 5.7 adds the stamps to the body
    /// under their own names, which may be the names of other members.
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
            date_created: created_without_start(&status, date_done),
            date_started: (status == State::Started).then_some(date_done),
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
                ..Description::default()
            },
        })
    }
}

/// The text of a required member. Lone surrogates are refused and not replaced, because an id or a
/// state with a replaced character would be a different one.
fn key<'body, V: WireValue<'body>>(
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

/// The traceback as text, with lone surrogates replaced by U+FFFD. A value that is not a string is
/// stored in its serialized form.
fn traceback<'body, V: WireValue<'body>>(value: V) -> Option<String> {
    match value.text() {
        Some(Text { text, .. }) => Some(text.into_owned()).filter(|text| !text.is_empty()),
        None => Some(value.column()),
    }
}

/// A name; `None` if the value is empty or not a string.
fn name<'body, V: WireValue<'body>>(value: V) -> Option<String> {
    value.text().map(|text| text.text.into_owned()).filter(|text| !text.is_empty())
}

/// The time in the precision that every database can store: microseconds, and without leap seconds,
/// which become the following second.
pub(super) fn to_microseconds(time: DateTime<Utc>) -> DateTime<Utc> {
    DateTime::from_timestamp_micros(time.timestamp_micros()).unwrap_or(time)
}

/// Whether every database and Python can represent the time in every time zone.
pub(super) fn is_storable(time: &DateTime<Utc>) -> bool {
    (1970..9999).contains(&time.year())
}

/// The time in a string in the format of Python's `datetime.isoformat()`. A time without an offset
/// is in UTC.
fn timestamp<'body, V: WireValue<'body>>(value: V) -> Option<DateTime<Utc>> {
    let text = value.text()?.text;
    DateTime::parse_from_rfc3339(&text).map(|time| time.to_utc()).ok().or_else(|| {
        NaiveDateTime::parse_from_str(&text, "%Y-%m-%dT%H:%M:%S%.f").map(|time| time.and_utc()).ok()
    })
}
