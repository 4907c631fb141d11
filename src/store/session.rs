//! The part of a store that the three databases share: one connection with its catalog and its
//! statements.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sqlx::error::DatabaseError;
use sqlx::{ConnectOptions, Connection};

use super::{Catalog, Column, Effect, ErrorClass, GROUPS, Store, StoreError, TASKS, Written};
use crate::config::{DatabaseKind, DatabaseUrl};
use crate::diagnosis::{self, Names, TlsFiles};
use crate::row::Row;
use crate::row::group_result::GroupResult;
use crate::row::task_result::TaskResult;

/// The time limit of the server for one statement, if the server can be given one.
pub(super) const STATEMENT_TIMEOUT: Duration = Duration::from_mins(1);

/// How long any step may take. This is longer than [`STATEMENT_TIMEOUT`], so that a server which is
/// alive cancels its statement first and does not continue to run it.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(75);

/// The parts of a store that differ between databases.
pub trait SqlDatabase: fmt::Debug + Send + Sync {
    /// A connection to it.
    type Connection: Connection + Send;

    /// Whether texts may contain U+0000.
    const ALLOWS_NUL: bool;

    /// Opens a connection.
    fn connect(&self) -> impl Future<Output = Result<Self::Connection, sqlx::Error>> + Send;

    /// Reads the columns of a table; none if the table does not exist.
    fn columns(
        &self,
        connection: &mut Self::Connection,
        table: &str,
    ) -> impl Future<Output = Result<Vec<Column>, sqlx::Error>> + Send;

    /// The statement that merges rows into the task table.
    fn tasks_statement(&self, catalog: &Catalog) -> String;

    /// The statement that merges rows into the group table.
    fn groups_statement(&self) -> String;

    /// Writes rows of tasks with the given statement and commits them.
    fn upsert_tasks(
        &self,
        connection: &mut Self::Connection,
        statement: &Arc<str>,
        rows: &[&TaskResult],
    ) -> impl Future<Output = Result<Effect, sqlx::Error>> + Send;

    /// Writes rows of groups with the given statement and commits them.
    fn upsert_groups(
        &self,
        connection: &mut Self::Connection,
        statement: &Arc<str>,
        rows: &[&GroupResult],
    ) -> impl Future<Output = Result<Effect, sqlx::Error>> + Send;

    /// Runs a statement without parameters.
    fn execute(
        connection: &mut Self::Connection,
        statement: &str,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// The class of an error that the database reports.
    fn classify(error: &dyn DatabaseError) -> ErrorClass;

    /// How the user can fix an error that the database reports, if the user can.
    fn advice(error: &dyn DatabaseError) -> Option<&'static str>;

    /// The address of the database, for error messages.
    fn place(&self) -> &Place;
}

/// The [`SqlDatabase::advice`] for a user who lacks rights.
pub(super) const GRANT: &str = "give the user the permissions that docs/security.md lists";

/// The advice if a table has changed since the connection was opened.
pub(super) const MIGRATE: &str = "run `python manage.py migrate django_celery_results`";

/// The address of a database, and the files that TLS uses.
#[derive(Debug)]
pub struct Place {
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
    fn explain(&self, error: &StoreError) -> StoreError {
        let message = error.message.trim_start_matches("error communicating with database: ");
        let message = diagnosis::explain(&self.files, self.names, message);
        StoreError::new(error.class, format!("cannot use {}: {message}", self.url))
    }
}

/// A [`Store`] with one connection, which is closed after an error that may have left it in an
/// unknown state.
#[derive(Debug)]
pub struct SqlStore<D: SqlDatabase> {
    database: D,
    session: Option<DatabaseSession<D::Connection>>,
}

struct DatabaseSession<C> {
    connection: C,
    catalog: Catalog,
    tasks_statement: Arc<str>,
    groups_statement: Arc<str>,
}

impl<C> fmt::Debug for DatabaseSession<C> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("DatabaseSession")
            .field("catalog", &self.catalog)
            .finish_non_exhaustive()
    }
}

impl<D: SqlDatabase> SqlStore<D> {
    pub(super) fn of(database: D) -> Self {
        Self { database, session: None }
    }

    /// The implementation for the database.
    pub(super) fn database(&self) -> &D {
        &self.database
    }

    /// The implementation for the database, without the connection.
    pub(super) fn into_database(self) -> D {
        self.database
    }

    async fn session(&mut self) -> Result<&mut DatabaseSession<D::Connection>, StoreError> {
        if self.session.is_none() {
            let connecting = patiently::<D, _>(self.database.connect());
            let mut connection =
                connecting.await.map_err(|error| self.database.place().explain(&error))?;
            let tasks = patiently::<D, _>(self.database.columns(&mut connection, TASKS)).await?;
            let groups = patiently::<D, _>(self.database.columns(&mut connection, GROUPS)).await?;
            let catalog = Catalog::new(&tasks, &groups, D::ALLOWS_NUL)?;
            self.session = Some(DatabaseSession {
                tasks_statement: self.database.tasks_statement(&catalog).into(),
                groups_statement: self.database.groups_statement().into(),
                connection,
                catalog,
            });
        }
        self.session
            .as_mut()
            .ok_or_else(|| StoreError::new(ErrorClass::Outage, "there is no connection"))
    }
}

impl<D: SqlDatabase> Store for SqlStore<D> {
    async fn prepare(&mut self) -> Result<&Catalog, StoreError> {
        Ok(&self.session().await?.catalog)
    }

    async fn store(&mut self, rows: &[&Row]) -> Result<Written, StoreError> {
        self.session().await?;
        // The session is taken out of `self`, so that its connection is dropped if the write is
        // cancelled or fails.
        let Some(mut session) = self.session.take() else { return Ok(Written::default()) };
        let written = write(&self.database, &mut session, rows).await;
        let is_usable = match &written {
            Ok(_) => true,
            Err(error) => matches!(error.class, ErrorClass::Conflict | ErrorClass::Poison),
        };
        if is_usable {
            self.session = Some(session);
        }
        written
    }

    async fn check(&mut self) -> Result<(), StoreError> {
        self.session().await?;
        let Some(mut session) = self.session.take() else { return Ok(()) };
        patiently::<D, _>(session.connection.ping()).await?;
        self.session = Some(session);
        Ok(())
    }
}

/// Writes the rows of each table with its statement.
async fn write<D: SqlDatabase>(
    database: &D,
    session: &mut DatabaseSession<D::Connection>,
    rows: &[&Row],
) -> Result<Written, StoreError> {
    let (mut tasks, mut groups) = (Vec::with_capacity(rows.len()), Vec::new());
    for row in rows {
        match row {
            Row::Task(result) => tasks.push(result),
            Row::Group(result) => groups.push(result),
        }
    }
    let connection = &mut session.connection;
    let mut done = Written::default();
    if !tasks.is_empty() {
        let written = database.upsert_tasks(connection, &session.tasks_statement, &tasks);
        done.tasks = patiently::<D, _>(written).await?;
    }
    if !groups.is_empty() {
        let written = database.upsert_groups(connection, &session.groups_statement, &groups);
        done.groups = patiently::<D, _>(written).await?;
    }
    Ok(done)
}

/// Waits for a step of the database, for at most [`ATTEMPT_TIMEOUT`].
pub(super) async fn patiently<D: SqlDatabase, T>(
    step: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, StoreError> {
    match tokio::time::timeout(ATTEMPT_TIMEOUT, step).await {
        Ok(done) => done.map_err(|error| {
            let mut told = StoreError::from_sqlx(&error, D::classify);
            if let Some(advice) = error.as_database_error().and_then(D::advice) {
                told.message = format!("{}: {advice}", told.message);
            }
            told
        }),
        Err(_) => Err(StoreError::new(
            ErrorClass::Outage,
            format!("the database did not answer within {} s", ATTEMPT_TIMEOUT.as_secs()),
        )),
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
