//! Everything that is done in the database: writing rows, creating the tables, and deleting expired
//! rows. The trait [`Store`] has one implementation for each database.

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

/// The table in which django-celery-results stores task results.
pub(crate) const TASKS: &str = "django_celery_results_taskresult";

/// The table in which django-celery-results stores saved groups.
pub(crate) const GROUPS: &str = "django_celery_results_groupresult";

/// A database to which rows are written, over a single connection.
///
/// When [`Store::store`] returns `Ok`, every row has been merged by the law in
/// [`crate::row::merge`] and committed. When it returns an error, some of the rows may be
/// committed; it is safe to write them again. After an error, the next call reconnects if
/// necessary.
pub trait Store: Send {
    /// Connects if there is no connection, and reads what the tables can store.
    ///
    /// # Errors
    ///
    /// [`ErrorClass::Setup`] if the task table is missing or cannot be written.
    fn prepare(&mut self) -> impl Future<Output = Result<&Catalog, StoreError>> + Send;

    /// Writes the rows and commits them. No two rows may have the same key.
    ///
    /// # Errors
    ///
    /// The class of the error says what to do with the rows.
    fn store(&mut self, rows: &[&Row]) -> impl Future<Output = Result<Written, StoreError>> + Send;

    /// Checks that the database answers, without running a statement. Connects if there is no
    /// connection, like [`Store::prepare`].
    ///
    /// # Errors
    ///
    /// When the database does not answer. The next call reconnects.
    fn check(&mut self) -> impl Future<Output = Result<(), StoreError>> + Send
    where
        Self: Sized,
    {
        async { self.prepare().await.map(drop) }
    }
}

/// The effect of a write on both tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// The effect on the task table.
    pub tasks: Effect,
    /// The effect on the group table.
    pub groups: Effect,
}

/// The effect of a write on one table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effect {
    /// The number of rows that were given.
    pub rows: u64,
    /// The number of statements that wrote them.
    pub statements: u64,
    /// The number of rows that changed nothing, because the table already contained the same
    /// outcome or one that wins over it. `None` if the database does not report it.
    pub stale: Option<u64>,
}

impl Effect {
    /// The effect of statements that have inserted or updated `changed` of the rows.
    fn of(rows: usize, statements: u64, changed: u64) -> Self {
        let rows = rows as u64;
        Self { rows, statements, stale: Some(rows.saturating_sub(changed)) }
    }
}
