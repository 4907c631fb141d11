//! Writing rows to the database: one contract, one file per database. And making its tables, and
//! deleting what has expired.

mod catalog;
mod cleanup;
mod database;
mod error;
mod inspect;
mod migrate;
mod mysql;
mod postgres;
mod session;
mod sqlite;
mod upsert;

pub use self::catalog::{Catalog, Column};
pub use self::cleanup::{Cleaner, CleanupStep, ExpiredKind, Found, Job, NextStep};
pub use self::database::Database;
pub use self::error::{Action, ErrorClass, MAX_HOLD, StoreError};
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
/// given, merged by the law in [`crate::row::merge`]. When it returns an error, any of the rows may be
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
