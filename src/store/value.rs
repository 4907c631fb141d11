//! The values that are sent to a database and returned by it.

use chrono::{DateTime, NaiveDateTime, TimeZone, Utc};
use chrono_tz::Tz;

/// A parameter of a statement.
#[derive(Clone, Debug)]
pub(super) enum Param<'row> {
    Text(Option<&'row str>),
    Time(Option<DateTime<Utc>>),
    Integer(Option<i64>),
    /// The values of one column of many rows. Only PostgreSQL takes lists.
    Texts(Vec<Option<&'row str>>),
    Times(Vec<Option<DateTime<Utc>>>),
    Integers(Vec<Option<i64>>),
}

/// A value that a query returned.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Null,
    Text(String),
    Integer(i64),
    Time(DateTime<Utc>),
}

/// A row that a query returned.
#[derive(Debug)]
pub(super) struct Record(std::vec::IntoIter<Value>);

impl Record {
    pub(super) fn new(values: Vec<Value>) -> Self {
        Self(values.into_iter())
    }

    /// Takes the next value, which must be a text; `None` if it is NULL.
    pub(super) fn text(&mut self) -> Option<String> {
        match self.0.next()? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Takes the next value, which must be a number or a truth value; `None` if it is NULL.
    pub(super) fn integer(&mut self) -> Option<i64> {
        match self.0.next()? {
            Value::Integer(number) => Some(number),
            _ => None,
        }
    }

    /// Takes the next value, which must be a time; `None` if it is NULL or cannot be read.
    pub(super) fn time(&mut self) -> Option<DateTime<Utc>> {
        match self.0.next()? {
            Value::Time(time) => Some(time),
            _ => None,
        }
    }
}

/// The first value of the first row, as a text.
pub(super) fn first_text(records: Vec<Record>) -> Option<String> {
    records.into_iter().next()?.text()
}

/// The first value of the first row, as a number.
pub(super) fn first_integer(records: Vec<Record>) -> Option<i64> {
    records.into_iter().next()?.integer()
}

/// The time of a column that stores no time zone. If it occurs twice because clocks were set back,
/// the earlier one is meant; if it does not occur because they were set forward, it is read as UTC.
pub(super) fn in_zone(time: NaiveDateTime, zone: Tz) -> DateTime<Utc> {
    zone.from_local_datetime(&time).earliest().map_or(time.and_utc(), |time| time.to_utc())
}
