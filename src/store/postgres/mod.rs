//! PostgreSQL. The rows of a table are written by one `insert … on conflict`, whose parameters are
//! arrays, one for each column.

mod cleanup;
mod inspect;
mod migrate;

use std::str::FromStr;
use std::sync::Arc;

use sqlx::error::DatabaseError;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use sqlx::{AssertSqlSafe, ConnectOptions, Executor, Row};

use crate::config::DatabaseUrl;
use crate::row::group_result::GroupResult;
use crate::row::task_result::TaskResult;
use crate::store::session::{
    self, GRANT, MIGRATE, Place, STATEMENT_TIMEOUT, SqlDatabase, SqlStore,
};
use crate::store::upsert::{Law, Syntax};
use crate::store::{Catalog, Column, Effect, ErrorClass, StoreError};

/// A [`super::Store`] on PostgreSQL.
pub type Postgres = SqlStore<PostgresDatabase>;

/// The implementation for PostgreSQL.
#[derive(Debug)]
pub struct PostgresDatabase {
    options: PgConnectOptions,
    /// The same options without TLS, if a connection without TLS is tried first.
    plain: Option<PgConnectOptions>,
    place: Place,
}

impl Postgres {
    /// Makes a store that connects to the database when it is first used.
    ///
    /// # Errors
    ///
    /// When a parameter of the URL has an invalid value.
    pub fn new(url: &DatabaseUrl) -> Result<Self, StoreError> {
        let mut options = PgConnectOptions::from_str(url.expose())
            .map_err(|error| StoreError::from_sqlx(&error, PostgresDatabase::classify))?
            .application_name("celeriac")
            .disable_statement_logging();
        if let Some(host) = url.ipv6_host() {
            options = options.host(host);
        }
        let plain = url.prefers_plain().then(|| options.clone().ssl_mode(PgSslMode::Disable));
        Ok(Self::of(PostgresDatabase { options, plain, place: Place::new(url) }))
    }
}

/// The update can use columns of `new` only as `excluded`, which has just the columns of the table.
/// The others are read from `new` with subqueries.
const SYNTAX: Syntax = Syntax {
    old: |column| format!("old.{column}"),
    new: |column| format!("excluded.{column}"),
    bytes: |text| format!(r#"{text} collate "C""#),
    by_arrival: "excluded.task_id in (select task_id from new where by_arrival)",
    started_by_arrival: "excluded.task_id in (select task_id from new where started_by_arrival)",
};

/// The array of the values of one column of the rows.
macro_rules! column {
    ($rows:ident, $row:ident => $value:expr) => {
        $rows.iter().map(|$row| $value).collect::<Vec<_>>()
    };
}

impl SqlDatabase for PostgresDatabase {
    type Connection = PgConnection;

    const ALLOWS_NUL: bool = false;

    async fn connect(&self) -> Result<PgConnection, sqlx::Error> {
        let mut connection = session::connect(self.plain.as_ref(), &self.options).await?;
        // Set by a statement and not by a start-up option, which PgBouncer refuses.
        let milliseconds = STATEMENT_TIMEOUT.as_millis();
        let statement = format!("set statement_timeout = {milliseconds}");
        connection.execute(AssertSqlSafe(statement)).await?;
        Ok(connection)
    }

    async fn columns(
        &self,
        connection: &mut PgConnection,
        table: &str,
    ) -> Result<Vec<Column>, sqlx::Error> {
        let rows = sqlx::query(
            "select attname::text as name,
                case when atttypid = 'varchar'::regtype and atttypmod > 4
                    then atttypmod - 4 end as max_chars,
                attnotnull and not atthasdef and attidentity = '' as is_required
            from pg_attribute
            where attrelid = to_regclass($1) and attnum > 0 and not attisdropped",
        )
        .bind(table)
        .fetch_all(connection)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(Column {
                    name: row.try_get("name")?,
                    max_chars: row
                        .try_get::<Option<i32>, _>("max_chars")?
                        .and_then(|chars| usize::try_from(chars).ok()),
                    is_required: row.try_get("is_required")?,
                })
            })
            .collect()
    }

    fn tasks_statement(&self, catalog: &Catalog) -> String {
        let insert = SYNTAX.insert_on_conflict(Law::Tasks(catalog));
        format!(
            "with new as materialized (
    select * from unnest(
        $1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[],
        $8::text[], $9::text[], $10::text[], $11::text[], $12::text[], $13::timestamptz[],
        $14::timestamptz[], $15::timestamptz[], $16::bool[], $17::bool[]
    ) as new (
        task_id, status, content_type, content_encoding, result, traceback, meta,
        task_name, task_args, task_kwargs, worker, periodic_task_name, date_done,
        date_created, date_started, by_arrival, started_by_arrival
    )
)
{insert}"
        )
    }

    fn groups_statement(&self) -> String {
        let insert = SYNTAX.insert_on_conflict(Law::Groups);
        format!(
            "with new as materialized (
    select * from unnest(
        $1::text[], $2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::timestamptz[]
    ) as new (group_id, content_type, content_encoding, result, date_done, date_created)
)
{insert}"
        )
    }

    async fn upsert_tasks(
        &self,
        connection: &mut PgConnection,
        statement: &Arc<str>,
        rows: &[&TaskResult],
    ) -> Result<Effect, sqlx::Error> {
        let done = sqlx::query(AssertSqlSafe(Arc::clone(statement)))
            .bind(column!(rows, row => row.task_id.as_str()))
            .bind(column!(rows, row => row.outcome.status.as_str()))
            .bind(column!(rows, row => row.outcome.content_type.as_str()))
            .bind(column!(rows, row => row.outcome.content_encoding.as_str()))
            .bind(column!(rows, row => row.outcome.result.as_deref()))
            .bind(column!(rows, row => row.outcome.traceback.as_deref()))
            .bind(column!(rows, row => row.outcome.meta.as_deref()))
            .bind(column!(rows, row => row.description.task_name.as_deref()))
            .bind(column!(rows, row => row.description.task_args.as_deref()))
            .bind(column!(rows, row => row.description.task_kwargs.as_deref()))
            .bind(column!(rows, row => row.description.worker.as_deref()))
            .bind(column!(rows, row => row.description.periodic_task_name.as_deref()))
            .bind(column!(rows, row => row.outcome.date_done))
            .bind(column!(rows, row => row.date_created))
            .bind(column!(rows, row => row.date_started))
            .bind(column!(rows, row => row.outcome.by_arrival))
            .bind(column!(rows, row => row.started_by_arrival))
            .execute(connection)
            .await?;
        Ok(Effect::of(rows.len(), 1, done.rows_affected()))
    }

    async fn upsert_groups(
        &self,
        connection: &mut PgConnection,
        statement: &Arc<str>,
        rows: &[&GroupResult],
    ) -> Result<Effect, sqlx::Error> {
        let done = sqlx::query(AssertSqlSafe(Arc::clone(statement)))
            .bind(column!(rows, row => row.group_id.as_str()))
            .bind(column!(rows, row => row.content_type.as_str()))
            .bind(column!(rows, row => row.content_encoding.as_str()))
            .bind(column!(rows, row => row.result.as_deref()))
            .bind(column!(rows, row => row.date_done))
            .bind(column!(rows, row => row.date_created))
            .execute(connection)
            .await?;
        Ok(Effect::of(rows.len(), 1, done.rows_affected()))
    }

    async fn execute(connection: &mut PgConnection, statement: &str) -> Result<(), sqlx::Error> {
        connection.execute(AssertSqlSafe(statement.to_owned())).await.map(drop)
    }

    /// By SQLSTATE: <https://www.postgresql.org/docs/current/errcodes-appendix.html>.
    fn classify(error: &dyn DatabaseError) -> ErrorClass {
        let code = error.code().unwrap_or_default();
        match (code.get(..2).unwrap_or_default(), &*code) {
            // serialization_failure, deadlock_detected, lock_not_available
            (_, "40001" | "40P01" | "55P03") => ErrorClass::Conflict,
            // A required column that was added after the catalog was read; a sequence that has
            // reached its end.
            (_, "23502" | "2200H") => ErrorClass::Setup,
            // A prepared statement of another session, as behind a pooler: a new connection may
            // help.
            (_, "42P05") => ErrorClass::Outage,
            // Errors in the data, constraints, check options of views, program limits, and errors
            // raised by triggers.
            ("22" | "23" | "44" | "54" | "P0", _) => ErrorClass::Poison,
            // Passwords, databases, schemas, and missing or forbidden tables and columns.
            ("28" | "3D" | "3F" | "42", _) => ErrorClass::Setup,
            // Everything else is a problem of the server: connections, resources, shutdown,
            // read-only mode, time-outs. It may last long, but the rows are not at fault.
            _ => ErrorClass::Outage,
        }
    }

    fn advice(error: &dyn DatabaseError) -> Option<&'static str> {
        Some(match &*error.code().unwrap_or_default() {
            "28P01" => "check the user and the password in the database URL",
            "28000" => {
                "check the user in the database URL, and what the server's pg_hba.conf asks of it; \
                 a client's certificate goes into sslcert and sslkey"
            }
            "3D000" => "make it, or correct its name in the database URL",
            "42501" => GRANT,
            "42P01" | "42703" => MIGRATE,
            "25006" => "write the URL of the primary server, or let the database be written",
            "53100" => "make room on the disk of the database",
            "53300" => "raise the server's max_connections, or lower --lanes",
            _ => return None,
        })
    }

    fn place(&self) -> &Place {
        &self.place
    }
}
