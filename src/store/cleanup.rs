//! Deletes expired rows in batches.
//!
//! Candidates are read page by page without a lock, in the order of `date_done`. Each page starts
//! where the previous one ended, so that no row is read twice, and neither are the dead rows that
//! PostgreSQL has not vacuumed yet. A batch of candidates is then locked by primary key, except for
//! rows that are locked by others, checked once more, and deleted. The cleanup therefore waits for
//! nobody, others wait no longer than one batch takes, and a row that has been updated in between
//! is kept. Which rows have expired is decided here for all databases, by [`Expiry`]; the file of
//! each database contains its SQL.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;

use chrono::{DateTime, Datelike, SubsecRound, TimeDelta, Utc};
use futures_util::future::BoxFuture;
use sqlx::{ColumnIndex, Connection, Decode, Row, Type};

use super::session::{GRANT, SqlDatabase, SqlStore, patiently};
use super::{ErrorClass, GROUPS, StoreError, TASKS};
use crate::row::expiry::Expiry;

/// The number of rows in a page.
const PAGE: usize = 5_000;

/// The maximum number of kinds of rows that are counted separately. Applications can create any
/// number of states.
const MAX_KINDS: usize = 1_000;

/// What to add to an error if the database reports a missing right.
const RIGHTS: &str = "this user needs the rights SELECT, UPDATE and DELETE on the table";

/// The settings of a cleanup.
#[derive(Clone, Debug)]
pub struct Job {
    /// Which rows expire, and when.
    pub expiry: Expiry,
    /// How many rows are deleted in one transaction, at least 1.
    pub batch: usize,
    /// Whether expired rows are only counted and not deleted.
    pub dry_run: bool,
    /// Whether to do nothing if another process is already cleaning up the same database. This has
    /// no effect on SQLite.
    pub alone: bool,
    /// The current time by this machine's clock. If the database's clock is behind it, that one is
    /// used.
    pub now: DateTime<Utc>,
}

/// What a step has done, and what to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CleanupStep {
    /// The number of rows that were read.
    pub read: u64,
    /// The number of rows that were deleted.
    pub deleted: u64,
    /// Whether they were rows of the group table, and not of the task table.
    pub of_groups: bool,
    /// Whether the step locked rows, so that a pause should follow.
    pub has_locked: bool,
    /// What to do next.
    pub next: NextStep,
}

/// What to do after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextStep {
    /// Take another step.
    More,
    /// The cleanup is complete.
    Over,
    /// Another process is already cleaning up.
    Taken,
}

/// A kind of expired rows, which are counted together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ExpiredKind {
    /// Whether they are groups.
    pub is_group: bool,
    /// The index of the rule by which they have expired.
    pub rule: usize,
    /// Their state. It is empty for groups, and for tasks beyond the maximum number of kinds.
    pub state: String,
}

/// How many rows of each kind have been deleted or, in a dry run, found.
pub type Found = BTreeMap<ExpiredKind, u64>;

/// Deletes expired rows step by step, over its own connection.
///
/// A step that fails or is cancelled has deleted either the whole batch or nothing. The next step
/// continues from there over a new connection.
pub trait Cleaner: Send {
    /// Reads or deletes a few rows.
    ///
    /// # Errors
    ///
    /// [`ErrorClass::Setup`] if the task table or a right is missing, or if other tables refer to
    /// the rows.
    fn step(&mut self) -> BoxFuture<'_, Result<CleanupStep, StoreError>>;

    /// An estimate of how many rows the remaining steps will read.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    fn count(&mut self) -> BoxFuture<'_, Result<u64, StoreError>>;

    /// The rows that have been deleted so far or, in a dry run, found.
    fn found(&self) -> &Found;

    /// Closes the connection.
    fn close(&mut self) -> BoxFuture<'_, ()>;
}

/// A row that may have expired.
pub(super) struct Candidate<T> {
    pub(super) id: i64,
    pub(super) date_done: T,
    pub(super) status: String,
    pub(super) task_name: Option<String>,
}

/// Converts the rows that a query for candidates has returned.
pub(super) fn candidates<R, T>(rows: &[R]) -> Result<Vec<Candidate<T>>, sqlx::Error>
where
    R: Row,
    for<'name> &'name str: ColumnIndex<R>,
    for<'row> i64: Decode<'row, R::Database> + Type<R::Database>,
    for<'row> T: Decode<'row, R::Database> + Type<R::Database>,
    for<'row> String: Decode<'row, R::Database> + Type<R::Database>,
    for<'row> Option<String>: Decode<'row, R::Database> + Type<R::Database>,
{
    let candidate = |row: &R| {
        Ok(Candidate {
            id: row.try_get("number")?,
            date_done: row.try_get("done")?,
            status: row.try_get("status")?,
            task_name: row.try_get("task_name")?,
        })
    };
    rows.iter().map(candidate).collect()
}

/// The rows after a given row and before a given time.
pub(super) struct Range<'cleaner, T> {
    pub(super) after: &'cleaner (T, i64),
    pub(super) before: &'cleaner T,
}

/// The parts of a cleanup that differ between databases.
pub(super) trait CleanupDialect: SqlDatabase {
    /// The type of the values of `date_done` in the column.
    type Time: Ord + Clone + Send + Sync;

    /// The statements that configure the session.
    const SESSION: &[&str];

    /// The columns `id` and `date_done`, converted for [`Candidate`] and named `number` and `done`.
    const COLUMNS: &str;

    /// The parameters of a range: the time and the id after which it begins, and the time before
    /// which it ends.
    const AFTER_TIME: &str;
    const AFTER_ID: &str;
    const BEFORE: &str;

    /// The statement that begins a transaction.
    const BEGIN: &str;

    /// The clause that locks the rows of a query and skips those that are already locked.
    const LOCKING: &str;

    /// Whether rows are locked through the index on their key, as writers lock them. MySQL locks
    /// the index entry before the row, so locking in a different order would lead to deadlocks.
    const LOCKS_BY_KEY: bool = false;

    /// A time in the form that the column contains.
    fn time(&self, time: DateTime<Utc>) -> Self::Time;

    /// A time before every time that Django writes.
    fn beginning() -> Self::Time;

    /// The current time by the database's clock.
    fn now(
        connection: &mut Self::Connection,
    ) -> impl Future<Output = Result<DateTime<Utc>, sqlx::Error>> + Send;

    /// Takes the lock for cleanups until the end of the session. Returns false if another process
    /// has it.
    fn try_lock(
        connection: &mut Self::Connection,
    ) -> impl Future<Output = Result<bool, sqlx::Error>> + Send;

    /// Reads candidates. The parameters of the range, if there is one, are bound to the query.
    fn read(
        connection: &mut Self::Connection,
        query: String,
        range: Option<Range<'_, Self::Time>>,
    ) -> impl Future<Output = Result<Vec<Candidate<Self::Time>>, sqlx::Error>> + Send;

    /// Counts rows. The parameters of the range are bound to the query.
    fn count(
        connection: &mut Self::Connection,
        query: String,
        range: Range<'_, Self::Time>,
    ) -> impl Future<Output = Result<i64, sqlx::Error>> + Send;
}

/// A [`Cleaner`] for one database.
struct SqlCleaner<D: CleanupDialect> {
    database: D,
    job: Job,
    connection: Option<D::Connection>,
    /// Set by the first session and not changed afterwards, so that the cleanup ends.
    cutoffs: Option<Cutoffs<D::Time>>,
    /// The tables that remain to be cleaned up.
    tables: VecDeque<ExpiredTable>,
    /// The last row that was read.
    after: (D::Time, i64),
    /// Whether all of the table has been read.
    is_read: bool,
    /// The ids of the rows that had expired when they were read.
    expired: Vec<i64>,
    found: Found,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ExpiredTable {
    Tasks,
    Groups,
}

impl ExpiredTable {
    fn name(self) -> &'static str {
        match self {
            Self::Tasks => TASKS,
            Self::Groups => GROUPS,
        }
    }

    /// The column that is the key of the rows.
    fn key(self) -> &'static str {
        match self {
            Self::Tasks => "task_id",
            Self::Groups => "group_id",
        }
    }

    /// The start of a query for candidates.
    fn select<D: CleanupDialect>(self) -> String {
        let described = match self {
            Self::Tasks => "status, task_name",
            Self::Groups => "'' as status, '' as task_name",
        };
        format!("select {}, {described} from {}", D::COLUMNS, self.name())
    }
}

/// The times before which rows have expired.
struct Cutoffs<T> {
    expiry: Expiry,
    /// For each rule, the time before which rows have expired by it.
    cutoffs: Vec<Option<T>>,
}

impl<T: Ord> Cutoffs<T> {
    /// The time before which rows of a table can have expired; `None` if no rows of the table
    /// expire.
    fn before(&self, table: ExpiredTable) -> Option<&T> {
        match table {
            ExpiredTable::Tasks => self.cutoffs.iter().flatten().max(),
            ExpiredTable::Groups => self.cutoffs.get(self.expiry.of_groups())?.as_ref(),
        }
    }

    /// The kind of a row; `None` if the row has not expired.
    fn expired(&self, table: ExpiredTable, row: &Candidate<T>) -> Option<ExpiredKind> {
        let (is_group, rule) = match table {
            ExpiredTable::Tasks => {
                (false, self.expiry.of_task(&row.status, row.task_name.as_deref()))
            }
            ExpiredTable::Groups => (true, self.expiry.of_groups()),
        };
        let cutoff = self.cutoffs.get(rule)?.as_ref()?;
        (row.date_done < *cutoff).then(|| ExpiredKind { is_group, rule, state: row.status.clone() })
    }
}

/// A cleaner that opens its own connection when it begins.
pub(super) fn cleaner<D: CleanupDialect + 'static>(
    store: SqlStore<D>,
    job: Job,
) -> Box<dyn Cleaner> {
    Box::new(SqlCleaner {
        database: store.into_database(),
        job,
        connection: None,
        cutoffs: None,
        tables: VecDeque::from([ExpiredTable::Tasks, ExpiredTable::Groups]),
        after: (D::beginning(), 0),
        is_read: false,
        expired: Vec::new(),
        found: Found::new(),
    })
}

impl<D: CleanupDialect> SqlCleaner<D> {
    /// Opens a connection. Returns false if another process is already cleaning up.
    async fn open(&mut self) -> Result<bool, StoreError> {
        let mut connection = patiently::<D, _>(self.database.connect()).await?;
        for statement in D::SESSION {
            patiently::<D, _>(D::execute(&mut connection, statement)).await?;
        }
        if self.job.alone && !patiently::<D, _>(D::try_lock(&mut connection)).await? {
            let _ = connection.close().await;
            return Ok(false);
        }
        if self.cutoffs.is_none() {
            for table in [TASKS, GROUPS] {
                let columns = self.database.columns(&mut connection, table);
                if patiently::<D, _>(columns).await?.is_empty() {
                    if table == TASKS {
                        return Err(StoreError::missing_table());
                    }
                    tracing::warn!(table, "the table does not exist and is skipped");
                    self.tables.retain(|table| *table == ExpiredTable::Tasks);
                }
            }
            let now = self.job.now.min(patiently::<D, _>(D::now(&mut connection)).await?);
            // Neither the databases nor Django can represent years before 1.
            let cutoff = |age| {
                let cutoff = now.checked_sub_signed(TimeDelta::from_std(age).ok()?)?;
                (cutoff.year() > 0).then_some(cutoff)
            };
            let rules = self.job.expiry.rules().iter();
            let cutoffs = rules.map(|rule| rule.age.and_then(cutoff));
            // The columns have a precision of at most microseconds.
            let times = cutoffs.map(|time| Some(self.database.time(time?.trunc_subsecs(6))));
            let cutoffs = times.collect();
            self.cutoffs = Some(Cutoffs { expiry: self.job.expiry.clone(), cutoffs });
        }
        self.connection = Some(connection);
        Ok(true)
    }

    fn add(&mut self, mut kind: ExpiredKind) {
        if self.found.len() >= MAX_KINDS && !self.found.contains_key(&kind) {
            kind.state.clear();
        }
        *self.found.entry(kind).or_default() += 1;
    }

    async fn take_step(&mut self) -> Result<CleanupStep, StoreError> {
        let mut step = CleanupStep {
            read: 0,
            deleted: 0,
            of_groups: self.tables.front() == Some(&ExpiredTable::Groups),
            has_locked: false,
            next: NextStep::More,
        };
        if self.connection.is_none() && !self.open().await? {
            return Ok(CleanupStep { next: NextStep::Taken, ..step });
        }
        let Some(&table) = self.tables.front() else {
            return Ok(CleanupStep { next: NextStep::Over, ..step });
        };
        // The connection is taken out of `self`. If the step is cancelled or fails, it is dropped,
        // and the database rolls back the transaction.
        let Some(mut connection) = self.connection.take() else { return Ok(step) };
        if !self.is_read && self.expired.len() < self.job.batch {
            step.read = self.read_page(&mut connection, table).await?;
        } else if !self.expired.is_empty() {
            step.deleted = self.delete_batch(&mut connection, table).await?;
            step.has_locked = true;
        }
        self.connection = Some(connection);
        if self.is_read && self.expired.is_empty() {
            self.tables.pop_front();
            self.after = (D::beginning(), 0);
            self.is_read = false;
        }
        if self.tables.is_empty() {
            step.next = NextStep::Over;
        }
        Ok(step)
    }

    async fn read_page(
        &mut self,
        connection: &mut D::Connection,
        table: ExpiredTable,
    ) -> Result<u64, StoreError> {
        let Some((cutoffs, before)) =
            self.cutoffs.as_ref().and_then(|cutoffs| Some((cutoffs, cutoffs.before(table)?)))
        else {
            self.is_read = true;
            return Ok(0);
        };
        let query = format!(
            "{} where {} order by date_done, id limit {PAGE}",
            table.select::<D>(),
            condition::<D>()
        );
        let range = Range { after: &self.after, before };
        let rows = patiently::<D, _>(D::read(connection, query, Some(range))).await;
        let rows = rows.map_err(explained)?;
        self.is_read = rows.len() < PAGE;
        let expired: Vec<_> =
            rows.iter().filter_map(|row| Some((row.id, cutoffs.expired(table, row)?))).collect();
        for (id, kind) in expired {
            if self.job.dry_run {
                self.add(kind);
            } else {
                self.expired.push(id);
            }
        }
        let read = rows.len() as u64;
        if let Some(last) = rows.into_iter().next_back() {
            self.after = (last.date_done, last.id);
        }
        Ok(read)
    }

    /// Locks a batch of the expired rows and deletes those that are still expired.
    async fn delete_batch(
        &mut self,
        connection: &mut D::Connection,
        table: ExpiredTable,
    ) -> Result<u64, StoreError> {
        let batch = self.job.batch.min(self.expired.len());
        let ids = self.expired[..batch].iter().copied();
        let mut condition = format!("id in ({})", join(ids));
        if D::LOCKS_BY_KEY {
            let (key, name) = (table.key(), table.name());
            let keys = format!("select {key} from {name} where {condition}");
            condition = format!("{key} in (select {key} from ({keys}) as batch)");
        }
        let query = format!("{} where {condition} {}", table.select::<D>(), D::LOCKING);
        let cutoffs = &self.cutoffs;
        let expired = |row: &Candidate<_>| {
            cutoffs.as_ref().and_then(|cutoffs| Some((row.id, cutoffs.expired(table, row)?)))
        };
        let work = async {
            D::execute(connection, D::BEGIN).await?;
            let rows = D::read(connection, query, None).await?;
            let expired: Vec<_> = rows.iter().filter_map(expired).collect();
            if !expired.is_empty() {
                let ids = join(expired.iter().map(|&(id, _)| id));
                let statement = format!("delete from {} where id in ({ids})", table.name());
                D::execute(connection, &statement).await?;
            }
            D::execute(connection, "commit").await?;
            Ok(expired)
        };
        let deleted = patiently::<D, _>(work).await.map_err(explained)?;
        self.expired.drain(..batch);
        let count = deleted.len() as u64;
        for (_, kind) in deleted {
            self.add(kind);
        }
        Ok(count)
    }

    async fn count_rows(&mut self) -> Result<u64, StoreError> {
        if self.connection.is_none() && !self.open().await? {
            return Ok(0);
        }
        let Some(mut connection) = self.connection.take() else { return Ok(0) };
        let mut count = 0;
        for &table in &self.tables {
            let Some(before) = self.cutoffs.as_ref().and_then(|cutoffs| cutoffs.before(table))
            else {
                continue;
            };
            let query = format!("select count(*) from {} where {}", table.name(), condition::<D>());
            let range = Range { after: &self.after, before };
            let rows = patiently::<D, _>(D::count(&mut connection, query, range)).await;
            count += rows.map_err(explained)?.unsigned_abs();
        }
        self.connection = Some(connection);
        Ok(count)
    }
}

impl<D: CleanupDialect> Cleaner for SqlCleaner<D> {
    fn step(&mut self) -> BoxFuture<'_, Result<CleanupStep, StoreError>> {
        Box::pin(self.take_step())
    }

    fn count(&mut self) -> BoxFuture<'_, Result<u64, StoreError>> {
        Box::pin(self.count_rows())
    }

    fn found(&self) -> &Found {
        &self.found
    }

    fn close(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            if let Some(connection) = self.connection.take() {
                let _ = patiently::<D, _>(connection.close()).await;
            }
        })
    }
}

/// The condition for the rows of a range. Its first part can use an index on `date_done` alone.
fn condition<D: CleanupDialect>() -> String {
    let (time, id, before) = (D::AFTER_TIME, D::AFTER_ID, D::BEFORE);
    format!("date_done >= {time} and (date_done > {time} or id > {id}) and date_done < {before}")
}

/// The numbers, separated by commas.
fn join(ids: impl Iterator<Item = i64>) -> String {
    let mut text = String::new();
    for id in ids {
        let comma = if text.is_empty() { "" } else { "," };
        let _ = write!(text, "{comma}{id}");
    }
    text
}

/// Adds to an error what the user can do about it. If rows cannot be deleted because rows of other
/// tables refer to them, this is a matter of the set-up and not of single rows.
fn explained(error: StoreError) -> StoreError {
    match error.class {
        ErrorClass::Poison => StoreError::new(
            ErrorClass::Setup,
            format!(
                "expired rows cannot be deleted, {}: where another table refers to them, let its \
                 foreign key say ON DELETE CASCADE or SET NULL, or leave them to Celery's \
                 celery.backend_cleanup",
                error.message
            ),
        ),
        ErrorClass::Setup if error.message.ends_with(GRANT) => {
            StoreError::new(ErrorClass::Setup, format!("{}; {}", error.message, RIGHTS))
        }
        _ => error,
    }
}
