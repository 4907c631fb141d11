//! SQLite. Rows are written by `insert … on conflict`, whose parameters are the values of all rows.

mod cleanup;
mod inspect;
mod migrate;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Timelike, Utc};
use chrono_tz::Tz;
use sqlx::error::DatabaseError;
use sqlx::query::Query;
use sqlx::sqlite::{
    SqliteArguments, SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous,
};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, Row};

use crate::row::group_result::GroupResult;
use crate::row::task_result::TaskResult;
use crate::store::session::{Place, SqlDatabase, SqlStore};
use crate::store::upsert::{Law, Syntax};
use crate::store::{Catalog, Column, Effect, ErrorClass};

/// A [`super::Store`] on SQLite.
pub type Sqlite = SqlStore<SqliteDatabase>;

/// The implementation for SQLite.
#[derive(Debug)]
pub struct SqliteDatabase {
    pub(super) options: SqliteConnectOptions,
    pub(super) time_zone: Tz,
    place: Place,
}

/// The placeholders for a task, in the order of the columns of `new` in the statement.
const TASK_VALUES: &str = "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";

/// The placeholders for a group, in the order of the columns of `new` in the statement.
const GROUP_VALUES: &str = "(?, ?, ?, ?, ?, ?)";

/// How many rows one statement writes. SQLite would compile a separate statement for every number
/// of rows, so larger batches are written by several statements of this size in one transaction.
const CHUNK: usize = 50;

/// Is replaced in a statement by the placeholders for all rows.
const ROWS: &str = "{rows}";

impl Sqlite {
    /// Makes a store that opens the file when it is first used. `time_zone` is the one in which
    /// Django stores times: UTC with `USE_TZ`, and `TIME_ZONE` otherwise.
    #[must_use]
    pub fn new(path: &Path, time_zone: Tz) -> Self {
        // In WAL mode, readers and the writer do not wait for each other. Messages are acknowledged
        // after the commit, so every commit must survive a power cut and is synced.
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(false)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(5))
            .statement_cache_capacity(2)
            .disable_statement_logging();
        Self::of(SqliteDatabase { options, time_zone, place: Place::of_file(path) })
    }
}

/// The update can use columns of `new` only as `excluded`, which has just the columns of the table.
/// The others are read from `new` with subqueries.
const SYNTAX: Syntax = Syntax {
    old: |column| format!("old.{column}"),
    new: |column| format!("excluded.{column}"),
    bytes: |text| text.to_owned(),
    by_arrival: "excluded.task_id in (select task_id from new where by_arrival)",
    started_by_arrival: "excluded.task_id in (select task_id from new where started_by_arrival)",
};

impl SqlDatabase for SqliteDatabase {
    type Connection = SqliteConnection;

    const ALLOWS_NUL: bool = true;

    async fn connect(&self) -> Result<SqliteConnection, sqlx::Error> {
        let path = self.options.get_filename();
        if !path.exists() {
            let problem = format!(
                "there is no file {}: check the path, or make the database with \
                 `python manage.py migrate django_celery_results` or `celeriac migrate`",
                path.display()
            );
            return Err(sqlx::Error::Configuration(problem.into()));
        }
        SqliteConnection::connect_with(&self.options).await
    }

    /// SQLite does not enforce the lengths of columns, so none is given.
    async fn columns(
        &self,
        connection: &mut SqliteConnection,
        table: &str,
    ) -> Result<Vec<Column>, sqlx::Error> {
        let rows = sqlx::query(
            r#"select name, "notnull" = 1 and dflt_value is null and pk = 0 as is_required
            from pragma_table_info(?)"#,
        )
        .bind(table)
        .fetch_all(connection)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(Column {
                    name: row.try_get("name")?,
                    max_chars: None,
                    is_required: row.try_get("is_required")?,
                })
            })
            .collect()
    }

    fn tasks_statement(&self, catalog: &Catalog) -> String {
        let insert = SYNTAX.insert_on_conflict(Law::Tasks(catalog));
        format!(
            "with new (
    task_id, status, content_type, content_encoding, result, traceback, meta,
    task_name, task_args, task_kwargs, worker, periodic_task_name, date_done,
    date_created, date_started, by_arrival, started_by_arrival
) as (
    values {ROWS}
)
{insert}"
        )
    }

    fn groups_statement(&self) -> String {
        let insert = SYNTAX.insert_on_conflict(Law::Groups);
        format!(
            "with new (
    group_id, content_type, content_encoding, result, date_done, date_created
) as (
    values {ROWS}
)
{insert}"
        )
    }

    async fn upsert_tasks(
        &self,
        connection: &mut SqliteConnection,
        statement: &Arc<str>,
        rows: &[&TaskResult],
    ) -> Result<Effect, sqlx::Error> {
        let mut transaction = connection.begin_with("begin immediate").await?;
        let written = self.upsert_tasks_within(&mut transaction, statement, rows).await?;
        transaction.commit().await?;
        Ok(written)
    }

    async fn upsert_groups(
        &self,
        connection: &mut SqliteConnection,
        statement: &Arc<str>,
        rows: &[&GroupResult],
    ) -> Result<Effect, sqlx::Error> {
        let mut transaction = connection.begin_with("begin immediate").await?;
        let (mut statements, mut changed) = (0, 0);
        for rows in rows.chunks(CHUNK) {
            let mut query = query(statement, GROUP_VALUES, rows.len());
            for row in rows {
                query = query
                    .bind(row.group_id.as_str())
                    .bind(row.content_type.as_str())
                    .bind(row.content_encoding.as_str())
                    .bind(row.result.as_deref())
                    .bind(self.naive(row.date_done))
                    .bind(self.naive(row.date_created));
            }
            changed += query.execute(&mut *transaction).await?.rows_affected();
            statements += 1;
        }
        transaction.commit().await?;
        Ok(Effect::of(rows.len(), statements, changed))
    }

    async fn execute(
        connection: &mut SqliteConnection,
        statement: &str,
    ) -> Result<(), sqlx::Error> {
        connection.execute(AssertSqlSafe(statement.to_owned())).await.map(drop)
    }

    /// By primary result code: <https://www.sqlite.org/rescode.html>.
    fn classify(error: &dyn DatabaseError) -> ErrorClass {
        let code: u32 = error.code().and_then(|code| code.parse().ok()).unwrap_or_default();
        match code & 0xFF {
            // A required column that was added after the catalog was read.
            _ if code == 1299 => ErrorClass::Setup,
            // BUSY, LOCKED
            5 | 6 => ErrorClass::Conflict,
            // TOOBIG, CONSTRAINT, MISMATCH
            18..=20 => ErrorClass::Poison,
            // ERROR (no such table or column), PERM, READONLY, CORRUPT, CANTOPEN, AUTH, NOTADB
            1 | 3 | 8 | 11 | 14 | 23 | 26 => ErrorClass::Setup,
            // IOERR, FULL, NOMEM and the rest
            _ => ErrorClass::Outage,
        }
    }

    fn advice(error: &dyn DatabaseError) -> Option<&'static str> {
        let code: u32 = error.code().and_then(|code| code.parse().ok()).unwrap_or_default();
        Some(match code & 0xFF {
            3 | 8 | 14 | 23 => {
                "give the user who runs Celeriac write access to the file and to its folder, where \
                 SQLite creates more files"
            }
            10 | 13 => "make room on its disk, and check the disk for errors",
            11 => "the file is damaged: put a backup in its place",
            26 => "write the path of Django's database into the database URL",
            _ => return None,
        })
    }

    fn place(&self) -> &Place {
        &self.place
    }
}

/// The statement for this number of rows. Only the statement for [`CHUNK`] rows is kept in the
/// cache.
fn query<'rows>(
    statement: &str,
    values: &str,
    rows: usize,
) -> Query<'rows, sqlx::Sqlite, SqliteArguments> {
    let statement = statement.replacen(ROWS, &vec![values; rows].join(", "), 1);
    sqlx::query(AssertSqlSafe(statement)).persistent(rows == CHUNK)
}

impl SqliteDatabase {
    /// Writes rows of tasks within a transaction that has already begun.
    pub(super) async fn upsert_tasks_within(
        &self,
        connection: &mut SqliteConnection,
        statement: &str,
        rows: &[&TaskResult],
    ) -> Result<Effect, sqlx::Error> {
        let (mut statements, mut changed) = (0, 0);
        for rows in rows.chunks(CHUNK) {
            let mut query = query(statement, TASK_VALUES, rows.len());
            for row in rows {
                query = query
                    .bind(row.task_id.as_str())
                    .bind(row.outcome.status.as_str())
                    .bind(row.outcome.content_type.as_str())
                    .bind(row.outcome.content_encoding.as_str())
                    .bind(row.outcome.result.as_deref())
                    .bind(row.outcome.traceback.as_deref())
                    .bind(row.outcome.meta.as_deref())
                    .bind(row.description.task_name.as_deref())
                    .bind(row.description.task_args.as_deref())
                    .bind(row.description.task_kwargs.as_deref())
                    .bind(row.description.worker.as_deref())
                    .bind(row.description.periodic_task_name.as_deref())
                    .bind(self.naive(row.outcome.date_done))
                    .bind(self.naive(row.date_created))
                    .bind(row.date_started.map(|time| self.naive(time)))
                    .bind(row.outcome.by_arrival)
                    .bind(row.started_by_arrival);
            }
            changed += query.execute(&mut *connection).await?.rows_affected();
            statements += 1;
        }
        Ok(Effect::of(rows.len(), statements, changed))
    }

    /// A time in the format in which Django writes it to SQLite: `str(datetime)`, which omits
    /// microseconds if they are zero.
    pub(super) fn naive(&self, time: DateTime<Utc>) -> String {
        let time = time.with_timezone(&self.time_zone);
        let format = match time.nanosecond() / 1_000 {
            0 => "%Y-%m-%d %H:%M:%S",
            _ => "%Y-%m-%d %H:%M:%S%.6f",
        };
        time.format(format).to_string()
    }
}
