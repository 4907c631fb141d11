//! Everything that is done in the database: writing rows, creating the tables, inspecting them and
//! deleting expired rows.
//!
//! What is done is written once, for all databases: in `write`, `migrate`, `inspect` and `cleanup`.
//! The folders `postgres`, `mysql` and `sqlite` contain the SQL of each database and the way it is
//! sent, behind two traits: `Dialect` for a database and `Session` for a connection to it.

mod catalog;
mod chords;
mod cleanup;
mod columns;
mod database;
mod dialect;
mod error;
mod inspect;
mod migrate;
mod mysql;
mod postgres;
mod session;
mod sqlite;
mod value;
mod values;
mod write;

use async_trait::async_trait;

pub use self::catalog::{Catalog, Column};
pub use self::chords::{ChordStore, OpenChord, Swept, Unlock};
pub use self::cleanup::{Cleaner, CleanupStep, ExpiredKind, Found, Job, NextStep};
pub use self::database::Database;
pub use self::error::{Action, ErrorClass, MAX_HOLD, StoreError};
pub use self::migrate::{App, Standing};
pub use self::write::SqlStore;
use crate::row::chord::ChordNews;
use crate::row::state::State;
use crate::row::{Key, Row};

/// The table in which django-celery-results stores task results.
pub(crate) const TASKS: &str = "django_celery_results_taskresult";

/// The table in which django-celery-results stores saved groups.
pub(crate) const GROUPS: &str = "django_celery_results_groupresult";

/// The table in which chords wait for their members (`Chord` in `python/celeriac/models.py`).
pub(crate) const CHORDS: &str = "celeriac_chord";

/// The table of the members of chords (`ChordMember` in `python/celeriac/models.py`).
pub(crate) const CHORD_MEMBERS: &str = "celeriac_chordmember";

/// A database to which rows are written, over a single connection.
///
/// When [`Store::store`] returns `Ok`, every row has been merged by the law in
/// [`crate::row::merge`] and committed. When it returns an error, some of the rows may be
/// committed; it is safe to write them again. After an error, the next call reconnects if
/// necessary.
#[async_trait]
pub trait Store: Send {
    /// Connects if there is no connection, and reads what the tables can store.
    ///
    /// # Errors
    ///
    /// [`ErrorClass::Setup`] if the task table is missing or cannot be written.
    async fn prepare(&mut self) -> Result<&Catalog, StoreError>;

    /// Writes the rows and commits them. No two rows may have the same key. Each row that was
    /// created or changed is added to `changes` when it has been committed, even if a later step
    /// fails.
    ///
    /// # Errors
    ///
    /// The class of the error says what to do with the rows.
    async fn store(
        &mut self,
        writes: &[Write<'_>],
        changes: &mut Vec<Change>,
    ) -> Result<Written, StoreError>;

    /// Records what messages tell about chords, after their rows are committed. Returns the ids of the
    /// chords that became complete: their unlock messages have to be sent now.
    ///
    /// # Errors
    ///
    /// The class of the error says what to do. It is safe to record the same again.
    async fn store_chords(&mut self, _news: &[&ChordNews]) -> Result<Vec<String>, StoreError> {
        Ok(Vec::new())
    }

    /// Checks that the database answers, without running a statement. Connects if there is no
    /// connection, like [`Store::prepare`].
    ///
    /// # Errors
    ///
    /// When the database does not answer. The next call reconnects.
    async fn check(&mut self) -> Result<(), StoreError> {
        self.prepare().await.map(drop)
    }
}

/// A row to write.
#[derive(Clone, Copy, Debug)]
pub struct Write<'row> {
    /// The row.
    pub row: &'row Row,
    /// Whether an earlier attempt may have committed the row without reporting it: its message was
    /// delivered before, or a write that had begun failed. The row is then reported as changed in
    /// any case.
    pub may_be_stored: bool,
}

/// A row that was created or changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The key of the row.
    pub key: Key,
    /// What was there before.
    pub before: Before,
    /// The state of the task now; `None` for a group.
    pub after: Option<State>,
}

/// What was in the table before a row was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Before {
    /// There was no row, so it was created.
    Absent,
    /// There was a row, with this state if it is that of a task.
    Present(Option<State>),
    /// An earlier attempt may have written the row already.
    Unknown,
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
    /// The number of statements that read or wrote them.
    pub statements: u64,
    /// The number of rows that changed nothing, because the table already contained the same
    /// outcome or one that wins over it.
    pub stale: u64,
}
