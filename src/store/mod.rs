//! Writing rows to the database: one contract, one file per database. And making its tables, and
//! deleting what has expired.

mod catalog;
mod cleanup;
mod database;
mod inspect;
mod migrate;
mod mysql;
mod postgres;
mod sql;
mod sqlite;
mod upsert;

use std::fmt;

pub use self::catalog::{Catalog, Column};
pub use self::cleanup::{Cleaner, Found, Job, Kind, Next, Step};
pub use self::database::Database;
pub use self::migrate::Standing;
pub use self::mysql::Mysql;
pub use self::postgres::Postgres;
pub use self::sqlite::Sqlite;
use crate::row::Row;

/// The table that django-celery-results keeps task results in.
pub(crate) const TASKS: &str = "django_celery_results_taskresult";

/// The table that django-celery-results keeps saved groups in.
pub(crate) const GROUPS: &str = "django_celery_results_groupresult";

/// A database that rows are written to, over one connection of its own.
///
/// When [`Store::store`] returns `Ok`, every row is committed and holds at least what was
/// given, merged by the law in [`crate::merge`]. When it returns an error, any of the rows may be
/// committed or not; writing them again is safe. After an error the next call connects anew where
/// that is needed.
pub trait Store: Send {
    /// Connects if there is no connection and reads what the tables can hold.
    ///
    /// # Errors
    ///
    /// [`ErrorClass::Setup`] where the table of tasks is missing or is not one that can be written.
    fn prepare(&mut self) -> impl Future<Output = Result<&Catalog, StoreError>> + Send;

    /// Commits the rows, of which no two have the same key: one statement a table.
    ///
    /// # Errors
    ///
    /// Says by its class what is to be done with the rows.
    fn store(&mut self, rows: &[&Row]) -> impl Future<Output = Result<Written, StoreError>> + Send;

    /// Asks the database for a sign of life, without a statement. Connects if there is no
    /// connection, as [`Store::prepare`] does.
    ///
    /// # Errors
    ///
    /// When it does not answer. The next call connects anew.
    fn check(&mut self) -> impl Future<Output = Result<(), StoreError>> + Send
    where
        Self: Sized,
    {
        async { self.prepare().await.map(drop) }
    }
}

/// What a write has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// To the table of tasks.
    pub tasks: Effect,
    /// To the table of groups.
    pub groups: Effect,
}

/// What a write has done to one table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effect {
    /// The rows that were given.
    pub rows: u64,
    /// The statements that they took.
    pub statements: u64,
    /// The rows that the table had already, as they are or with something better in them. Nothing
    /// where the database does not tell.
    pub stale: Option<u64>,
}

impl Effect {
    /// Statements, and the rows that they have inserted or changed.
    fn of(rows: usize, statements: u64, changed: u64) -> Self {
        let rows = rows as u64;
        Self { rows, statements, stale: Some(rows.saturating_sub(changed)) }
    }
}

/// What an error asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ErrorClass {
    /// The database cannot be reached or cannot write now: hold the rows and try again later.
    Outage,
    /// Another writer was in the way: try again at once.
    Conflict,
    /// One of the rows can never be stored: find it and store the others.
    Poison,
    /// The table or the rights are not there: stop, and say what to do.
    Setup,
}

/// Why rows could not be stored. Its text never holds a value of a row.
#[derive(Debug)]
pub struct StoreError {
    /// What to do about it.
    pub class: ErrorClass,
    /// What happened and, where somebody can mend it, how.
    pub message: String,
}

impl fmt::Display for StoreError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl std::error::Error for StoreError {}

impl StoreError {
    fn new(class: ErrorClass, message: impl Into<String>) -> Self {
        Self { class, message: message.into() }
    }

    /// The table is not there: whoever runs the Django project can make it.
    fn missing_table() -> Self {
        Self::new(
            ErrorClass::Setup,
            format!(
                "the table {TASKS} does not exist: add \"django_celery_results\" to \
                 INSTALLED_APPS and run `python manage.py migrate django_celery_results`, or run \
                 `celeriac migrate`"
            ),
        )
    }

    /// Sorts an error of sqlx. `classify` sorts what the database itself reported.
    fn from_sqlx(error: &sqlx::Error, classify: Classify) -> Self {
        match error {
            sqlx::Error::Database(database) => {
                let class = classify(&**database);
                let code = database.code().unwrap_or_default();
                Self::new(class, format!("{} ({code})", redact(database.message(), class, &code)))
            }
            sqlx::Error::Configuration(source) => Self::new(ErrorClass::Setup, source.to_string()),
            // What sqlx itself refuses to send lies in the rows; all the rest is the connection.
            sqlx::Error::Encode(_) => Self::new(ErrorClass::Poison, error.to_string()),
            _ => Self::new(ErrorClass::Outage, error.to_string()),
        }
    }
}

/// What an error that the database reports asks for.
type Classify = fn(&dyn sqlx::error::DatabaseError) -> ErrorClass;

/// Databases quote the value that they refuse, up to a whole row, and triggers say what they
/// like. So the whole text is kept only where it is about the set-up; else the words before the
/// first quotation mark or colon, and of a trigger (`P0001`, `45000`) nothing.
fn redact<'text>(message: &'text str, class: ErrorClass, code: &str) -> &'text str {
    match class {
        ErrorClass::Setup => message,
        _ if matches!(code, "P0001" | "45000" | "1811") => "refused by a trigger",
        _ => message.split(['"', '\'', ':']).next().unwrap_or_default().trim(),
    }
}
