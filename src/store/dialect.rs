//! What differs between the databases: how to connect, their errors, and their SQL for everything
//! but writing rows.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use sqlx::ConnectOptions;
use sqlx::error::DatabaseError;

use super::session::Session;
use super::{Column, ErrorClass, StoreError};
use crate::config::{DatabaseKind, DatabaseUrl};
use crate::diagnosis::finding::Finding;
use crate::diagnosis::{self, Names, TlsFiles};

/// The time limit of the server for one statement, if the server can be given one.
pub(super) const STATEMENT_TIMEOUT: Duration = Duration::from_mins(1);

/// The [`Dialect::advice`] for a user who lacks rights.
pub(super) const GRANT: &str = "give the user the permissions that docs/security.md lists";

/// The advice if a table has changed since the connection was opened.
pub(super) const MIGRATE: &str = "run `python manage.py migrate django_celery_results`";

/// The advice if no number is left for the next row.
pub(super) const BIGINT: &str = "the numbers of the column `id` are used up: make the column a bigint, as docs/operating.md \
     shows";

/// How long any step may take. This is longer than the servers' own limits for a statement, so that
/// a server which is alive cancels its statement first and does not continue to run it.
const STEP_TIMEOUT: Duration = Duration::from_secs(75);

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Writing rows and deleting them.
    Write,
    /// Reading, without changing the database in any way.
    Inspect,
    /// Making the tables and, if the database is a file, the file.
    Migrate,
}

/// One kind of database, with the address of one.
#[async_trait]
pub(super) trait Dialect: fmt::Debug + Send + Sync {
    /// Opens a connection; `None` if the database is a file that does not exist and is only to be
    /// inspected.
    async fn connect(&self, purpose: Purpose) -> Result<Option<Box<dyn Session>>, sqlx::Error>;

    /// Reads the columns of a table; none if the table does not exist.
    async fn columns(
        &self,
        session: &mut dyn Session,
        table: &str,
    ) -> Result<Vec<Column>, sqlx::Error>;

    /// The SQL that all databases have in common but spell differently.
    fn sql(&self) -> &'static Sql;

    /// The time zone in which the columns store times: UTC unless they store times without a zone
    /// and Django's `USE_TZ` is off.
    fn zone(&self) -> Tz;

    /// This time as Django writes it to the database.
    fn written(&self, time: DateTime<Utc>) -> String;

    /// The class of an error that the database reports.
    fn classify(&self, error: &dyn DatabaseError) -> ErrorClass;

    /// How the user can fix an error that the database reports, if the user can.
    fn advice(&self, error: &dyn DatabaseError) -> Option<&'static str>;

    /// The right that a statement of [`super::migrate`] needs, if the error says that it is missing.
    fn missing_right(&self, error: &dyn DatabaseError, statement: &str) -> Option<&'static str>;

    /// The product and version of the server, and why the version is too old, if it is.
    async fn version(
        &self,
        session: &mut dyn Session,
    ) -> Result<(String, Option<String>), sqlx::Error>;

    /// Findings that are specific to the database. The tables exist when this is called.
    async fn particulars(&self, session: &mut dyn Session) -> Result<Vec<Finding>, sqlx::Error>;

    /// The address of the database, for error messages.
    fn place(&self) -> &Place;
}

/// Statements and parts of statements.
#[derive(Debug)]
pub(super) struct Sql {
    /// Whether texts may contain U+0000.
    pub(super) allows_nul: bool,

    /// Batches of up to this size are inserted before anything is locked, without a transaction.
    pub(super) inserts_first: usize,

    /// The statements that begin a transaction that locks rows.
    pub(super) begin: &'static [&'static str],

    /// The query for the time by the server's clock, as a text in ISO 8601; `None` if the database
    /// has no clock of its own.
    pub(super) now: Option<&'static str>,

    /// The query for the last number that the primary key of the task table has used, and for the
    /// greatest one; `None` if there are always enough.
    pub(super) numbers: Option<&'static str>,

    /// The query that says whether a write to the task table can be rolled back; `None` if it
    /// always can.
    pub(super) can_undo: Option<&'static str>,

    /// The statements that configure the session of a cleanup.
    pub(super) cleanup_session: &'static [&'static str],

    /// The query that takes the lock for cleanups until the end of the session, and returns 0 if
    /// another process has it.
    pub(super) try_cleanup_lock: Option<&'static str>,

    /// The parameters of a range of rows: the time and the id after which it begins, and the time
    /// before which it ends. If they have no numbers, the time is sent twice.
    pub(super) after_time: &'static str,
    pub(super) after_id: &'static str,
    pub(super) before: &'static str,

    /// The words before and after an insert that leaves out the rows that are there already.
    pub(super) insert_new: [&'static str; 2],

    /// Whether parameters are written with their numbers, as `$1`.
    pub(super) numbers_parameters: bool,

    /// The clause that locks the rows of a query.
    pub(super) for_update: &'static str,

    /// The clause that locks the rows of a query and skips those that are already locked.
    pub(super) skip_locked: &'static str,

    /// Whether rows are locked through the index on their key, as writers lock them. MySQL locks
    /// the index entry before the row, so locking in a different order would lead to deadlocks.
    pub(super) locks_by_key: bool,

    /// The statements that create the tables of django-celery-results.
    pub(super) results_tables: &'static str,

    /// The statements that create the tables of Celeriac's own Django app.
    pub(super) chord_tables: &'static str,

    /// The statement that creates `django_migrations` as Django 3.2 and later create it.
    pub(super) records_table: &'static str,

    /// What begins and ends the transaction of a migration, if tables can be created in one.
    pub(super) migration: Option<[&'static str; 2]>,

    /// The query that waits until no other process migrates, and returns 0 if it has waited too
    /// long. The lock lasts until the end of the transaction, or of the session if there is none.
    pub(super) migration_lock: Option<&'static str>,
}

/// The address of a database, and the files that TLS uses.
#[derive(Debug)]
pub(super) struct Place {
    url: String,
    files: TlsFiles,
    names: Names,
}

impl Place {
    pub(super) fn new(url: &DatabaseUrl) -> Self {
        let names = match url.kind() {
            DatabaseKind::Mysql => Names { ca: "ssl-ca", certificate: "ssl-cert", key: "ssl-key" },
            _ => Names { ca: "sslrootcert", certificate: "sslcert", key: "sslkey" },
        };
        Self { url: url.to_string(), files: url.tls_files(), names }
    }

    pub(super) fn of_file(path: &Path) -> Self {
        let names = Names { ca: "", certificate: "", key: "" };
        let url = format!("sqlite:///{}", path.display());
        Self { url, files: TlsFiles::default(), names }
    }

    /// Adds to an error the address of the database and an explanation.
    pub(super) fn explain(&self, error: &StoreError) -> StoreError {
        let message = error.message.trim_start_matches("error communicating with database: ");
        let message = diagnosis::explain(&self.files, self.names, message);
        StoreError::new(error.class, format!("cannot use {}: {message}", self.url))
    }
}

/// Connects with `plain`, without TLS, if it is given and the server allows it, and with `options`
/// otherwise.
pub(super) async fn connect<O: ConnectOptions>(
    plain: Option<&O>,
    options: &O,
) -> Result<O::Connection, sqlx::Error>
where
    O::Connection: Sized,
{
    if let Some(plain) = plain
        && let Ok(connection) = plain.connect().await
    {
        return Ok(connection);
    }
    options.connect().await
}

/// Opens a connection that writes rows.
pub(super) async fn open(dialect: &dyn Dialect) -> Result<Box<dyn Session>, StoreError> {
    let connected = patiently(dialect, dialect.connect(Purpose::Write)).await;
    connected
        .map_err(|error| dialect.place().explain(&error))?
        .ok_or_else(|| StoreError::new(ErrorClass::Outage, "there is no connection"))
}

/// Begins a transaction that locks rows.
pub(super) async fn begin(
    dialect: &dyn Dialect,
    session: &mut dyn Session,
) -> Result<(), StoreError> {
    for statement in dialect.sql().begin {
        patiently(dialect, session.execute(statement)).await?;
    }
    Ok(())
}

/// Waits for a step of the database, for at most [`STEP_TIMEOUT`].
pub(super) async fn patiently<T>(
    dialect: &dyn Dialect,
    step: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, StoreError> {
    match tokio::time::timeout(STEP_TIMEOUT, step).await {
        Ok(done) => done.map_err(|error| explained(dialect, &error)),
        Err(_) => Err(StoreError::new(
            ErrorClass::Outage,
            format!("the database did not answer within {} s", STEP_TIMEOUT.as_secs()),
        )),
    }
}

/// An error of the database with its class and, if the user can fix it, with the advice.
pub(super) fn explained(dialect: &dyn Dialect, error: &sqlx::Error) -> StoreError {
    let mut explained = StoreError::from_sqlx(error, |error| dialect.classify(error));
    if let Some(advice) = error.as_database_error().and_then(|error| dialect.advice(error)) {
        explained.message = format!("{}: {advice}", explained.message);
    }
    explained
}
