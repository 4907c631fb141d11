//! A connection to an SQLite file.

use async_trait::async_trait;
use chrono::{DateTime, NaiveDateTime, Timelike, Utc};
use chrono_tz::Tz;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{
    AssertSqlSafe, Column as _, Connection, Executor, Row as _, SqlStr, TypeInfo, ValueRef,
};

use crate::row::Row;
use crate::store::columns::Table;
use crate::store::session::{Inserted, Session, Stored};
use crate::store::value::{Param, Record, Value, in_zone};
use crate::store::values::{self, Operation, Statements, ValueSession, Words};

/// The conflict is one of `id` and of the key at the same time, so none is named.
const WORDS: Words =
    Words { on_conflict: "on conflict do update set", given: ["excluded.", ""], for_update: "" };

pub(super) struct SqliteSession {
    connection: SqliteConnection,
    time_zone: Tz,
    prepared: Statements,
    statements: u64,
}

impl SqliteSession {
    pub(super) fn new(connection: SqliteConnection, time_zone: Tz) -> Self {
        Self { connection, time_zone, prepared: Statements::default(), statements: 0 }
    }
}

#[async_trait]
impl Session for SqliteSession {
    async fn execute(&mut self, sql: &str) -> Result<(), sqlx::Error> {
        self.connection.execute(AssertSqlSafe(sql)).await.map(drop)
    }

    async fn fetch(
        &mut self,
        sql: SqlStr,
        params: Vec<Param<'_>>,
    ) -> Result<Vec<Record>, sqlx::Error> {
        let mut query = sqlx::query(sql).persistent(!params.is_empty());
        for param in params {
            query = match param {
                Param::Text(text) => query.bind(text),
                Param::Time(time) => query.bind(time.map(|time| written(time, self.time_zone))),
                Param::Integer(number) => query.bind(number),
                Param::Texts(_) | Param::Times(_) | Param::Integers(_) => {
                    return Err(sqlx::Error::Encode("SQLite takes no arrays".into()));
                }
            };
        }
        let rows = query.fetch_all(&mut self.connection).await?;
        rows.iter().map(|row| record(row, self.time_zone)).collect()
    }

    async fn insert(&mut self, table: &Table, rows: &[&Row]) -> Result<Inserted, sqlx::Error> {
        for part in values::parts(rows, |row| row.size_bytes()) {
            let sql = self.statement(Operation::Insert, table, part.len());
            let params = part.iter().flat_map(|row| table.values(row)).collect();
            self.fetch(sql, params).await?;
        }
        Ok(Inserted::All)
    }

    async fn lock(&mut self, table: &Table, keys: &[&str]) -> Result<Vec<Stored>, sqlx::Error> {
        values::lock_rows(self, table, keys).await
    }

    async fn update(&mut self, table: &Table, rows: &[&Stored]) -> Result<(), sqlx::Error> {
        values::update_rows(self, table, rows).await
    }

    fn take_statements(&mut self) -> u64 {
        std::mem::take(&mut self.statements)
    }

    async fn ping(&mut self) -> Result<(), sqlx::Error> {
        self.connection.ping().await
    }

    async fn close(self: Box<Self>) {
        let _ = self.connection.close().await;
    }
}

#[async_trait]
impl ValueSession for SqliteSession {
    fn statement(&mut self, operation: Operation, table: &Table, rows: usize) -> SqlStr {
        self.statements += 1;
        self.prepared.get(operation, table, rows, &WORDS, "")
    }

    /// SQLite itself refuses a value that is too large.
    async fn check_size(&mut self, _bytes: usize) -> Result<(), sqlx::Error> {
        Ok(())
    }
}

/// SQLite stores values of any type in any column, so the type is that of the value. A text in a
/// column that is declared as a time is a time.
fn record(row: &SqliteRow, time_zone: Tz) -> Result<Record, sqlx::Error> {
    let value = |(place, column): (usize, &sqlx::sqlite::SqliteColumn)| {
        let raw = row.try_get_raw(place)?;
        if raw.is_null() {
            return Ok(Value::Null);
        }
        if raw.type_info().name() == "INTEGER" {
            return row.try_get_unchecked(place).map(Value::Integer);
        }
        let text: String = row.try_get_unchecked(place)?;
        if column.type_info().name() != "DATETIME" {
            return Ok(Value::Text(text));
        }
        let time = NaiveDateTime::parse_from_str(&text, "%Y-%m-%d %H:%M:%S%.f");
        Ok(time.map_or(Value::Text(text), |time| Value::Time(in_zone(time, time_zone))))
    };
    let values = row.columns().iter().enumerate().map(value).collect::<Result<_, sqlx::Error>>()?;
    Ok(Record::new(values))
}

/// A time in the format in which Django writes it to SQLite: `str(datetime)`, which omits
/// microseconds if they are zero.
pub(super) fn written(time: DateTime<Utc>, time_zone: Tz) -> String {
    let time = time.with_timezone(&time_zone);
    let format = match time.nanosecond() / 1_000 {
        0 => "%Y-%m-%d %H:%M:%S",
        _ => "%Y-%m-%d %H:%M:%S%.6f",
    };
    time.format(format).to_string()
}
