//! A connection to MySQL or MariaDB.

use std::collections::HashMap;

use async_trait::async_trait;
use chrono::NaiveDateTime;
use chrono_tz::Tz;
use sqlx::mysql::{MySqlArguments, MySqlConnection, MySqlDatabaseError, MySqlRow};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Column as _, Connection, Executor, MySql, Row as _, SqlStr, TypeInfo};

use super::error::{DUPLICATE, has_no_number};
use crate::row::Row;
use crate::store::columns::{self, Table};
use crate::store::session::{Inserted, Session, Stored};
use crate::store::value::{Param, Record, Value, first_integer, first_text, in_zone};
use crate::store::values::{self, MAX_BYTES, Operation, Statements, ValueSession, Words};

/// `values(…)` is the value that was given. MySQL 8 deprecates it in favour of an alias, which
/// MariaDB does not support.
const WORDS: Words = Words {
    on_conflict: "on duplicate key update",
    given: ["values(", ")"],
    for_update: "for update",
};

/// An upper limit for the size of everything in a packet except the row.
const PACKET_OVERHEAD: usize = 4_096;

pub(super) struct MysqlSession {
    connection: MySqlConnection,
    time_zone: Tz,
    prepared: Statements,
    /// For each table, the clause that names the unique index on the key. The optimizer would read
    /// a small table as a whole and wait for every lock on it.
    indexes: HashMap<&'static str, String>,
    statements: u64,
}

impl MysqlSession {
    pub(super) fn new(connection: MySqlConnection, time_zone: Tz) -> Self {
        let (prepared, indexes) = (Statements::default(), HashMap::new());
        Self { connection, time_zone, prepared, indexes, statements: 0 }
    }

    fn query<'row>(
        &self,
        sql: SqlStr,
        params: Vec<Param<'row>>,
    ) -> Result<Query<'row, MySql, MySqlArguments>, sqlx::Error> {
        let mut query = sqlx::query(sql).persistent(!params.is_empty());
        for param in params {
            query = match param {
                Param::Text(text) => query.bind(text),
                Param::Time(time) => {
                    query.bind(time.map(|time| time.with_timezone(&self.time_zone).naive_local()))
                }
                Param::Integer(number) => query.bind(number),
                Param::Texts(_) | Param::Times(_) | Param::Integers(_) => {
                    return Err(sqlx::Error::Encode("MySQL takes no arrays".into()));
                }
            };
        }
        Ok(query)
    }

    /// Inserts one row unless it is there, and returns whether it was inserted. An `insert … select`
    /// of several rows would reserve more numbers than it uses.
    async fn insert_one(&mut self, table: &Table, row: &Row) -> Result<bool, sqlx::Error> {
        let sql = self.statement(Operation::InsertIfAbsent, table, 1);
        let mut params = table.values(row);
        params.push(Param::Text(Some(columns::key(row))));
        let done = self.query(sql, params)?.execute(&mut self.connection).await?;
        Ok(done.rows_affected() == 1)
    }

    async fn find_index(&mut self, table: &Table) -> Result<(), sqlx::Error> {
        const INDEX: SqlStr = SqlStr::from_static(
            "select convert(min(index_name) using utf8mb4) from information_schema.statistics
            where table_schema = database() and table_name = ? and non_unique = 0
            group by index_name having count(*) = 1 and min(column_name) = ?",
        );
        if !self.indexes.contains_key(table.name) {
            let params = vec![Param::Text(Some(table.name)), Param::Text(Some(table.key()))];
            let name = first_text(self.fetch(INDEX, params).await?);
            let clause = name.map(|name| format!("force index (`{name}`)")).unwrap_or_default();
            self.indexes.insert(table.name, clause);
        }
        Ok(())
    }
}

#[async_trait]
impl Session for MysqlSession {
    async fn execute(&mut self, sql: &str) -> Result<(), sqlx::Error> {
        self.connection.execute(AssertSqlSafe(sql)).await.map(drop)
    }

    async fn fetch(
        &mut self,
        sql: SqlStr,
        params: Vec<Param<'_>>,
    ) -> Result<Vec<Record>, sqlx::Error> {
        let rows = self.query(sql, params)?.fetch_all(&mut self.connection).await?;
        rows.iter().map(|row| record(row, self.time_zone)).collect()
    }

    async fn insert(&mut self, table: &Table, rows: &[&Row]) -> Result<Inserted, sqlx::Error> {
        let mut inserted = Vec::new();
        let mut is_complete = true;
        for part in values::parts(rows, |row| row.size_bytes()) {
            self.check_size(part.iter().map(|row| row.size_bytes()).sum()).await?;
            let done = if let [row] = part {
                self.insert_one(table, row).await
            } else {
                let sql = self.statement(Operation::Insert, table, part.len());
                let params = part.iter().flat_map(|row| table.values(row)).collect();
                self.fetch(sql, params).await.map(|_| true)
            };
            match done {
                Ok(false) => is_complete = false,
                Ok(true) => inserted.extend(part.iter().map(|row| columns::key(row).to_owned())),
                // Another writer has inserted one of the rows. The statement has inserted none.
                Err(error) if is_duplicate(&error) => is_complete = false,
                Err(error) => return Err(error),
            }
        }
        Ok(if is_complete { Inserted::All } else { Inserted::Only(inserted) })
    }

    async fn lock(&mut self, table: &Table, keys: &[&str]) -> Result<Vec<Stored>, sqlx::Error> {
        self.find_index(table).await?;
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
impl ValueSession for MysqlSession {
    fn statement(&mut self, operation: Operation, table: &Table, rows: usize) -> SqlStr {
        self.statements += 1;
        let index = self.indexes.get(table.name).map(String::as_str).unwrap_or_default();
        self.prepared.get(operation, table, rows, &WORDS, index)
    }

    /// Refuses a row that is larger than a packet may be. The server would reset the connection,
    /// which looks like an outage, so the write would be repeated for ever.
    async fn check_size(&mut self, bytes: usize) -> Result<(), sqlx::Error> {
        const LIMIT: SqlStr = SqlStr::from_static("select cast(@@max_allowed_packet as signed)");
        if bytes < MAX_BYTES {
            return Ok(());
        }
        let limit = first_integer(self.fetch(LIMIT, Vec::new()).await?);
        let limit = usize::try_from(limit.unwrap_or_default()).unwrap_or_default();
        if bytes + PACKET_OVERHEAD > limit {
            let problem = format!(
                "the row takes {bytes} bytes and the server's max_allowed_packet is {limit}: raise \
                 it to store such results"
            );
            return Err(sqlx::Error::Encode(problem.into()));
        }
        Ok(())
    }
}

/// Whether a key is in the table already. A number of the primary key that is used up is no such
/// duplicate.
fn is_duplicate(error: &sqlx::Error) -> bool {
    let error = error.as_database_error().and_then(|error| error.try_downcast_ref());
    error.is_some_and(|error: &MySqlDatabaseError| {
        error.number() == DUPLICATE && !has_no_number(error)
    })
}

fn record(row: &MySqlRow, time_zone: Tz) -> Result<Record, sqlx::Error> {
    let value = |(place, column): (usize, &sqlx::mysql::MySqlColumn)| {
        let value = match column.type_info().name() {
            "DATETIME" | "TIMESTAMP" => row
                .try_get::<Option<NaiveDateTime>, _>(place)?
                .map(|time| Value::Time(in_zone(time, time_zone))),
            "BIGINT" | "INT" | "BOOLEAN" | "TINYINT" | "SMALLINT" | "MEDIUMINT" => {
                row.try_get::<Option<i64>, _>(place)?.map(Value::Integer)
            }
            _ => row.try_get_unchecked::<Option<String>, _>(place)?.map(Value::Text),
        };
        Ok(value.unwrap_or(Value::Null))
    };
    let values = row.columns().iter().enumerate().map(value).collect::<Result<_, sqlx::Error>>()?;
    Ok(Record::new(values))
}
