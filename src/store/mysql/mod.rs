//! MySQL and MariaDB. The rows of a table are written by one `insert … on duplicate key update`,
//! whose only parameter is a JSON text with all rows.

mod cleanup;
mod inspect;
mod migrate;

use std::str::FromStr;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use serde::Serialize;
use sqlx::error::DatabaseError;
use sqlx::mysql::{MySqlConnectOptions, MySqlConnection, MySqlDatabaseError, MySqlSslMode};
use sqlx::{AssertSqlSafe, ConnectOptions, Executor, Row};

use crate::config::DatabaseUrl;
use crate::row::group_result::GroupResult;
use crate::row::task_result::TaskResult;
use crate::store::session::{self, GRANT, MIGRATE, Place, SqlDatabase, SqlStore};
use crate::store::upsert::{Law, Syntax};
use crate::store::{Catalog, Column, Effect, ErrorClass, StoreError};

/// A [`super::Store`] on MySQL or MariaDB.
pub type Mysql = SqlStore<MysqlDatabase>;

/// The implementation for MySQL and MariaDB.
#[derive(Debug)]
pub struct MysqlDatabase {
    options: MySqlConnectOptions,
    /// The same options without TLS, if a connection without TLS is tried first.
    plain: Option<MySqlConnectOptions>,
    pub(super) time_zone: Tz,
    place: Place,
}

impl Mysql {
    /// Makes a store that connects to the database when it is first used. `time_zone` is the one in
    /// which Django stores times: UTC with `USE_TZ`, and `TIME_ZONE` otherwise.
    ///
    /// # Errors
    ///
    /// When a parameter of the URL has an invalid value.
    pub fn new(url: &DatabaseUrl, time_zone: Tz) -> Result<Self, StoreError> {
        let mut options = MySqlConnectOptions::from_str(url.expose())
            .map_err(|error| StoreError::from_sqlx(&error, MysqlDatabase::classify))?
            .disable_statement_logging();
        if let Some(host) = url.ipv6_host() {
            options = options.host(host);
        }
        let plain = url.prefers_plain().then(|| options.clone().ssl_mode(MySqlSslMode::Disabled));
        Ok(Self::of(MysqlDatabase { options, plain, time_zone, place: Place::new(url) }))
    }
}

/// `values(…)` is the value after its conversion to the column's type, so that texts with different
/// collations are never compared. MySQL 8 deprecates it in favour of an alias, which MariaDB does
/// not support.
const SYNTAX: Syntax = Syntax {
    old: |column| column.to_owned(),
    new: |column| format!("values({column})"),
    bytes: |text| format!("cast({text} as binary)"),
    by_arrival: "new_by_arrival",
    started_by_arrival: "new_started_by_arrival",
};

/// MySQL executes assignments from left to right, and later assignments see the new values of
/// earlier ones. The first assignment therefore stores in this variable whether the new outcome
/// wins.
const WINS: &str = "@celeriac_wins";

/// And in this variable, which description is used.
const CHOICE: &str = "@celeriac_choice";

/// Up to this size the server's `max_allowed_packet` need not be checked: no version has had a
/// default of less than 1 MiB.
const SMALLEST_PACKET: usize = 1_000_000;

/// An upper limit for the size of everything in a packet except the rows.
const PACKET_OVERHEAD: usize = 4_096;

/// A task as the statement's `json_table` reads it.
#[derive(Serialize)]
struct JsonTask<'row> {
    task_id: &'row str,
    status: &'row str,
    content_type: &'row str,
    content_encoding: &'row str,
    result: Option<&'row str>,
    traceback: Option<&'row str>,
    meta: Option<&'row str>,
    task_name: Option<&'row str>,
    task_args: Option<&'row str>,
    task_kwargs: Option<&'row str>,
    worker: Option<&'row str>,
    periodic_task_name: Option<&'row str>,
    date_done: String,
    date_created: String,
    date_started: Option<String>,
    by_arrival: u8,
    started_by_arrival: u8,
}

/// A group as the statement's `json_table` reads it.
#[derive(Serialize)]
struct JsonGroup<'row> {
    group_id: &'row str,
    content_type: &'row str,
    content_encoding: &'row str,
    result: Option<&'row str>,
    date_done: String,
    date_created: String,
}

impl SqlDatabase for MysqlDatabase {
    type Connection = MySqlConnection;

    const ALLOWS_NUL: bool = true;

    async fn connect(&self) -> Result<MySqlConnection, sqlx::Error> {
        let mut connection = session::connect(self.plain.as_ref(), &self.options).await?;
        // Without autocommit, messages would be acknowledged whose rows are never committed.
        // Without strict mode, a value that is too long is silently cut. Django sets both as well.
        let session = "set autocommit = 1, sql_mode = concat(@@sql_mode, ',STRICT_ALL_TABLES')";
        connection.execute(session).await?;
        Ok(connection)
    }

    async fn columns(
        &self,
        connection: &mut MySqlConnection,
        table: &str,
    ) -> Result<Vec<Column>, sqlx::Error> {
        let rows = sqlx::query(
            "select convert(column_name using utf8mb4) as name,
                case when data_type = 'varchar'
                    then cast(character_maximum_length as signed) end as max_chars,
                cast(is_nullable = 'NO' and column_default is null
                    and extra not like '%auto_increment%' as signed) as is_required
            from information_schema.columns
            where table_schema = database() and table_name = ?",
        )
        .bind(table)
        .fetch_all(connection)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(Column {
                    name: row.try_get("name")?,
                    max_chars: row
                        .try_get::<Option<i64>, _>("max_chars")?
                        .and_then(|chars| usize::try_from(chars).ok()),
                    is_required: row.try_get::<i64, _>("is_required")? == 1,
                })
            })
            .collect()
    }

    fn tasks_statement(&self, catalog: &Catalog) -> String {
        statement(Law::Tasks(catalog))
    }

    fn groups_statement(&self) -> String {
        statement(Law::Groups)
    }

    async fn upsert_tasks(
        &self,
        connection: &mut MySqlConnection,
        statement: &Arc<str>,
        rows: &[&TaskResult],
    ) -> Result<Effect, sqlx::Error> {
        let rows: Vec<_> = rows
            .iter()
            .map(|row| JsonTask {
                task_id: &row.task_id,
                status: row.outcome.status.as_str(),
                content_type: &row.outcome.content_type,
                content_encoding: &row.outcome.content_encoding,
                result: row.outcome.result.as_deref(),
                traceback: row.outcome.traceback.as_deref(),
                meta: row.outcome.meta.as_deref(),
                task_name: row.description.task_name.as_deref(),
                task_args: row.description.task_args.as_deref(),
                task_kwargs: row.description.task_kwargs.as_deref(),
                worker: row.description.worker.as_deref(),
                periodic_task_name: row.description.periodic_task_name.as_deref(),
                date_done: self.naive(row.outcome.date_done),
                date_created: self.naive(row.date_created),
                date_started: row.date_started.map(|time| self.naive(time)),
                by_arrival: row.outcome.by_arrival.into(),
                started_by_arrival: row.started_by_arrival.into(),
            })
            .collect();
        execute(connection, statement, &rows).await
    }

    async fn upsert_groups(
        &self,
        connection: &mut MySqlConnection,
        statement: &Arc<str>,
        rows: &[&GroupResult],
    ) -> Result<Effect, sqlx::Error> {
        let rows: Vec<_> = rows
            .iter()
            .map(|row| JsonGroup {
                group_id: &row.group_id,
                content_type: &row.content_type,
                content_encoding: &row.content_encoding,
                result: row.result.as_deref(),
                date_done: self.naive(row.date_done),
                date_created: self.naive(row.date_created),
            })
            .collect();
        execute(connection, statement, &rows).await
    }

    async fn execute(connection: &mut MySqlConnection, statement: &str) -> Result<(), sqlx::Error> {
        connection.execute(AssertSqlSafe(statement.to_owned())).await.map(drop)
    }

    /// By number: <https://dev.mysql.com/doc/mysql-errors/8.4/en/server-error-reference.html>,
    /// <https://mariadb.com/kb/en/mariadb-error-codes/>.
    fn classify(error: &dyn DatabaseError) -> ErrorClass {
        let number =
            error.try_downcast_ref::<MySqlDatabaseError>().map_or(0, MySqlDatabaseError::number);
        match number {
            // A lock was not granted in time; a deadlock; a row changed since it was read.
            1205 | 1213 | 1020 => ErrorClass::Conflict,
            // Errors in the data: duplicates, invalid values, values that are too long or out of
            // range, invalid texts or times, constraints, errors raised by triggers, and packets
            // that are too large.
            1062
            | 1153
            | 1264
            | 1265
            | 1292
            | 1300
            | 1366
            | 1406
            | 1411
            | 1451
            | 1452
            | 1525
            | 1644
            | 3140..=3158
            | 3819
            | 3854
            | 4025
            | 4037..=4042 => ErrorClass::Poison,
            // Passwords, databases, missing or forbidden tables and columns, a required column that
            // was added after the catalog was read, and a server that does not support
            // `json_table`.
            1044 | 1045 | 1048 | 1049 | 1054 | 1064 | 1142 | 1143 | 1146 | 1227 | 1364 | 1698 => {
                ErrorClass::Setup
            }
            // Everything else is a problem of the server: connections, resources, shutdown,
            // read-only mode, time-outs. It may last long, but the rows are not at fault.
            _ => ErrorClass::Outage,
        }
    }

    fn advice(error: &dyn DatabaseError) -> Option<&'static str> {
        Some(match error.try_downcast_ref::<MySqlDatabaseError>()?.number() {
            1045 | 1698 => {
                "check the user and the password in the database URL, and the client's certificate \
                 in ssl-cert and ssl-key where the account asks for one"
            }
            1044 | 1142 | 1143 | 1227 => GRANT,
            1049 => "make it, or correct its name in the database URL",
            1054 | 1146 => MIGRATE,
            1290 | 1792 | 1836 => {
                "write the URL of the primary server, or let the database be written"
            }
            1021 | 1114 => "make room on the disk of the database",
            1040 | 1203 => "raise the server's max_connections, or lower --lanes",
            _ => return None,
        })
    }

    fn place(&self) -> &Place {
        &self.place
    }
}

impl MysqlDatabase {
    /// A time in the format in which Django writes it to MySQL.
    pub(super) fn naive(&self, time: DateTime<Utc>) -> String {
        time.with_timezone(&self.time_zone).format("%Y-%m-%d %H:%M:%S%.6f").to_string()
    }
}

/// The statement for a table. Its only parameter is the rows as a JSON text.
fn statement(law: Law<'_>) -> String {
    let (table, columns) = (law.table(), law.columns());
    // The key is assigned to itself, which changes nothing. This sets the variables for the other
    // assignments.
    let (key, wins, choice) = (law.key(), SYNTAX.wins(law), SYNTAX.choice(law, WINS));
    let first = format!(
        "{key} = case when ({WINS} := {wins}) + ({CHOICE} := {choice}) >= 0 then {key} else {key} end"
    );
    let assignments = SYNTAX.assignments(law, WINS, CHOICE);
    let assignments = assignments.iter().map(|(column, value)| format!("{column} = {value}"));
    let assignments: Vec<_> = std::iter::once(first).chain(assignments).collect();
    let assignments = assignments.join(",\n    ");
    let values: Vec<_> = columns.iter().map(|column| format!("new_{column}")).collect();
    let marks: &[_] = match law {
        Law::Tasks(_) => &["by_arrival", "started_by_arrival"],
        Law::Groups => &[],
    };
    let typed = columns.iter().map(|&column| match column {
        "date_done" | "date_created" | "date_started" => (column, "datetime(6)", " error on error"),
        _ => (column, "longtext character set utf8mb4", ""),
    });
    let typed = typed.chain(marks.iter().map(|&mark| (mark, "int", "")));
    let json_columns: Vec<_> = typed
        .map(|(name, kind, more)| format!("new_{name} {kind} path '$.{name}'{more}"))
        .collect();
    let (columns, values) = (columns.join(", "), values.join(", "));
    let json_columns = json_columns.join(",\n    ");
    format!(
        "insert into {table} ({columns})
select {values}
from json_table(?, '$[*]' columns (
    {json_columns}
)) as new
on duplicate key update
    {assignments}"
    )
}

/// Sends the rows with their statement.
async fn execute(
    connection: &mut MySqlConnection,
    statement: &Arc<str>,
    rows: &[impl Serialize],
) -> Result<Effect, sqlx::Error> {
    let count = rows.len() as u64;
    let rows = serde_json::to_string(rows).map_err(|error| sqlx::Error::Encode(error.into()))?;
    if rows.len() > SMALLEST_PACKET {
        // If a packet is too large, the server resets the connection. That looks like an outage, so
        // the write would be repeated for ever.
        let limit: u64 = sqlx::query_scalar("select cast(@@max_allowed_packet as unsigned)")
            .fetch_one(&mut *connection)
            .await?;
        if (rows.len() + PACKET_OVERHEAD) as u64 > limit {
            let problem = format!(
                "the row takes {} bytes and the server's max_allowed_packet is {limit}: raise \
                 it to store such results",
                rows.len()
            );
            return Err(sqlx::Error::Encode(problem.into()));
        }
    }
    sqlx::query(AssertSqlSafe(Arc::clone(statement))).bind(rows).execute(connection).await?;
    // The server counts 1 for a row that was inserted and also 1 for a row that was not changed.
    Ok(Effect { rows: count, statements: 1, stale: None })
}
