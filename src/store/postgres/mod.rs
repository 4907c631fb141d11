//! PostgreSQL. The rows of a statement are parameters that are arrays, one for each column.

mod inspect;
mod session;
mod sql;

use std::str::FromStr;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use sqlx::error::DatabaseError;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{AssertSqlSafe, ConnectOptions, Executor, SqlStr};

use self::session::PostgresSession;
use super::dialect::{
    self, BIGINT, Dialect, GRANT, MIGRATE, Place, Purpose, STATEMENT_TIMEOUT, Sql,
};
use super::session::Session;
use super::value::Param;
use super::{Column, ErrorClass, StoreError};
use crate::config::DatabaseUrl;
use crate::diagnosis::finding::Finding;

/// A database on a server.
#[derive(Debug)]
pub(super) struct Postgres {
    options: PgConnectOptions,
    /// The same options without TLS, if a connection without TLS is tried first.
    plain: Option<PgConnectOptions>,
    place: Place,
}

impl Postgres {
    /// # Errors
    ///
    /// When a parameter of the URL has an invalid value.
    pub(super) fn new(url: &DatabaseUrl) -> Result<Self, StoreError> {
        let mut options = PgConnectOptions::from_str(url.expose())
            .map_err(|error| StoreError::from_sqlx(&error, classify))?
            .application_name("celeriac")
            .disable_statement_logging();
        if let Some(host) = url.ipv6_host() {
            options = options.host(host);
        }
        let plain = url.prefers_plain().then(|| options.clone().ssl_mode(PgSslMode::Disable));
        Ok(Self { options, plain, place: Place::new(url) })
    }
}

#[async_trait]
impl Dialect for Postgres {
    async fn connect(&self, _purpose: Purpose) -> Result<Option<Box<dyn Session>>, sqlx::Error> {
        let mut connection = dialect::connect(self.plain.as_ref(), &self.options).await?;
        // Set by statements and not by start-up options, which PgBouncer refuses. The second limit
        // releases the locks of a client that no longer answers.
        let milliseconds = STATEMENT_TIMEOUT.as_millis();
        let limits = format!(
            "set statement_timeout = {milliseconds}; \
             set idle_in_transaction_session_timeout = '10s'"
        );
        connection.execute(AssertSqlSafe(limits)).await?;
        Ok(Some(Box::new(PostgresSession::new(connection))))
    }

    async fn columns(
        &self,
        session: &mut dyn Session,
        table: &str,
    ) -> Result<Vec<Column>, sqlx::Error> {
        const COLUMNS: SqlStr = SqlStr::from_static(
            "select attname::text as name,
                case when atttypid = 'varchar'::regtype and atttypmod > 4
                    then atttypmod - 4 end as max_chars,
                attnotnull and not atthasdef and attidentity = '' as is_required
            from pg_attribute
            where attrelid = to_regclass($1) and attnum > 0 and not attisdropped",
        );
        let records = session.fetch(COLUMNS, vec![Param::Text(Some(table))]).await?;
        Ok(records.into_iter().map(Column::from_record).collect())
    }

    fn sql(&self) -> &'static Sql {
        &sql::SQL
    }

    fn zone(&self) -> Tz {
        Tz::UTC
    }

    fn written(&self, time: DateTime<Utc>) -> String {
        time.format("%Y-%m-%d %H:%M:%S%.6f+00:00").to_string()
    }

    fn classify(&self, error: &dyn DatabaseError) -> ErrorClass {
        classify(error)
    }

    fn advice(&self, error: &dyn DatabaseError) -> Option<&'static str> {
        Some(match &*error.code().unwrap_or_default() {
            "28P01" => "check the user and the password in the database URL",
            "28000" => {
                "check the user in the database URL, and what the server's pg_hba.conf asks of it; \
                 a client's certificate goes into sslcert and sslkey"
            }
            "3D000" => "make it, or correct its name in the database URL",
            "42501" => GRANT,
            "42P01" | "42703" => MIGRATE,
            "2200H" | "22003" => BIGINT,
            "25006" => "write the URL of the primary server, or let the database be written",
            "53100" => "make room on the disk of the database",
            "53300" => "raise the server's max_connections, or lower --lanes",
            _ => return None,
        })
    }

    fn missing_right(&self, error: &dyn DatabaseError, statement: &str) -> Option<&'static str> {
        (error.code().as_deref() == Some("42501")).then_some(match statement.split_once(' ') {
            Some(("SELECT", _)) => "the right SELECT on its table",
            Some(("INSERT", _)) => "the right INSERT on its table",
            _ => "the right CREATE on the schema",
        })
    }

    async fn version(
        &self,
        session: &mut dyn Session,
    ) -> Result<(String, Option<String>), sqlx::Error> {
        inspect::version(session).await
    }

    async fn particulars(&self, session: &mut dyn Session) -> Result<Vec<Finding>, sqlx::Error> {
        inspect::particulars(session).await
    }

    fn place(&self) -> &Place {
        &self.place
    }
}

/// By SQLSTATE: <https://www.postgresql.org/docs/current/errcodes-appendix.html>.
fn classify(error: &dyn DatabaseError) -> ErrorClass {
    let code = error.code().unwrap_or_default();
    match (code.get(..2).unwrap_or_default(), &*code) {
        // serialization_failure, deadlock_detected, lock_not_available
        (_, "40001" | "40P01" | "55P03") => ErrorClass::Conflict,
        // A required column that was added after the catalog was read; a sequence that has reached
        // its end, or a number of a sequence that is too large for the column: no other number is
        // written.
        (_, "23502" | "2200H" | "22003") => ErrorClass::Setup,
        // A prepared statement of another session, as behind a pooler: a new connection may help.
        (_, "42P05") => ErrorClass::Outage,
        // Errors in the data, constraints, check options of views, program limits, and errors
        // raised by triggers.
        ("22" | "23" | "44" | "54" | "P0", _) => ErrorClass::Poison,
        // Passwords, databases, schemas, and missing or forbidden tables and columns.
        ("28" | "3D" | "3F" | "42", _) => ErrorClass::Setup,
        // Everything else is a problem of the server: connections, resources, shutdown, read-only
        // mode, time-outs. It may last long, but the rows are not at fault.
        _ => ErrorClass::Outage,
    }
}
