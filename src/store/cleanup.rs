//! Deleting expired rows, a few at a time.
//!
//! Candidates are read without a lock, in the order of `date_done` and from where the page before
//! ended, so that nothing is read twice, not even what PostgreSQL has not cleared away yet. A batch
//! of them is then locked by primary key, passing over those that somebody else has locked, looked
//! at once more, and deleted. So nobody is waited for, nobody waits for longer than a batch takes,
//! and a row that has become newer in between stays. What expires is decided here, for all
//! databases, by [`Expiry`]; a database's file says how it spells the parts.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;

use chrono::{DateTime, Datelike, SubsecRound, TimeDelta, Utc};
use futures_util::future::BoxFuture;
use sqlx::{ColumnIndex, Connection, Decode, Row, Type};

use super::session::{GRANT, SqlDatabase, SqlStore, patiently};
use super::{ErrorClass, GROUPS, StoreError, TASKS};
use crate::row::expiry::Expiry;

/// How many rows are read at a time.
const PAGE: usize = 5_000;

/// The most kinds of rows that are told apart. States are whatever applications make them.
const MAX_KINDS: usize = 1_000;

/// What a user needs, where the database says that a right is missing.
const RIGHTS: &str = "this user needs the rights SELECT, UPDATE and DELETE on the table";

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Job {
    /// What expires, and when.
    pub expiry: Expiry,
    /// How many rows are deleted together, at least 1.
    pub batch: usize,
    /// Whether rows are only counted.
    pub dry_run: bool,
    /// Whether it is left to another process that does it already, where the database is a server.
    pub alone: bool,
    /// This moment by this machine's clock. The database's counts where it is earlier.
    pub now: DateTime<Utc>,
}

/// What a step has done, and what comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CleanupStep {
    /// The rows that it has read.
    pub read: u64,
    /// The rows that it has deleted.
    pub deleted: u64,
    /// Whether they were groups, and not tasks.
    pub of_groups: bool,
    /// Whether it took locks, so that a pause should follow.
    pub has_locked: bool,
    /// What comes next.
    pub next: NextStep,
}

/// What comes after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextStep {
    /// There is more to do.
    More,
    /// All is done.
    Over,
    /// Another process does it already.
    Taken,
}

/// Rows that are alike.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ExpiredKind {
    /// Whether they are groups.
    pub is_group: bool,
    /// The number of the rule that they have expired by.
    pub rule: usize,
    /// Their state; empty for groups, and for tasks of more kinds than are told apart.
    pub state: String,
}

/// How many rows of each kind have been deleted, or only found.
pub type Found = BTreeMap<ExpiredKind, u64>;

/// Deletes expired rows over a connection of its own, step by step.
///
/// A step that fails or is cancelled has deleted a batch whole or not at all, and the next one goes
/// on there over a new connection.
pub trait Cleaner: Send {
    /// Reads or deletes a few rows.
    ///
    /// # Errors
    ///
    /// [`ErrorClass::Setup`] where the table of tasks or a right is missing, or other tables refer
    /// to the rows.
    fn step(&mut self) -> BoxFuture<'_, Result<CleanupStep, StoreError>>;

    /// How many rows the steps will read, as far as is known now.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    fn count(&mut self) -> BoxFuture<'_, Result<u64, StoreError>>;

    /// What has been deleted up to now, or found.
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

/// What a query for candidates has given.
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

/// The rows after one, up to a time.
pub(super) struct Range<'cleaner, T> {
    pub(super) after: &'cleaner (T, i64),
    pub(super) before: &'cleaner T,
}

/// What one database does in its own way.
pub(super) trait CleanupDialect: SqlDatabase {
    /// The values of `date_done` as they stand in the column.
    type Time: Ord + Clone + Send + Sync;

    /// What is set for the session.
    const SESSION: &[&str];

    /// The columns `id` and `date_done` as [`Candidate`] has them, named `number` and `done`.
    const COLUMNS: &str;

    /// The parameters of a range: the time and the id that it is after, and the time before which
    /// it ends.
    const AFTER_TIME: &str;
    const AFTER_ID: &str;
    const BEFORE: &str;

    /// What begins a transaction.
    const BEGIN: &str;

    /// What locks the rows that a query gives and passes over those that are locked.
    const LOCKING: &str;

    /// Whether rows are locked by the index on their key, as those who write them do. MySQL locks
    /// the index before the row, and in another order it would find deadlocks.
    const LOCKS_BY_KEY: bool = false;

    /// A time as it would stand in the column.
    fn time(&self, time: DateTime<Utc>) -> Self::Time;

    /// A time before all that Django writes.
    fn beginning() -> Self::Time;

    /// This moment by the database's clock.
    fn now(
        connection: &mut Self::Connection,
    ) -> impl Future<Output = Result<DateTime<Utc>, sqlx::Error>> + Send;

    /// Takes the lock of those who clean up, until the end of the session; false where another
    /// process has it.
    fn try_lock(
        connection: &mut Self::Connection,
    ) -> impl Future<Output = Result<bool, sqlx::Error>> + Send;

    /// Reads candidates, with the parameters of a range where there is one.
    fn read(
        connection: &mut Self::Connection,
        query: String,
        range: Option<Range<'_, Self::Time>>,
    ) -> impl Future<Output = Result<Vec<Candidate<Self::Time>>, sqlx::Error>> + Send;

    /// Counts rows, with the parameters of a range.
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
    /// Set by the first session, and the same from then on, so that the work has an end.
    cutoffs: Option<Cutoffs<D::Time>>,
    /// The tables that are left.
    tables: VecDeque<ExpiredTable>,
    /// The last row that was read.
    after: (D::Time, i64),
    /// Whether all of the table has been read.
    is_read: bool,
    /// The rows that have expired as far as is known.
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

    /// The column that tells rows apart.
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

/// What has expired.
struct Cutoffs<T> {
    expiry: Expiry,
    /// For each rule the time before which rows have expired by it.
    cutoffs: Vec<Option<T>>,
}

impl<T: Ord> Cutoffs<T> {
    /// The time before which any row of a table has expired, where any has.
    fn before(&self, table: ExpiredTable) -> Option<&T> {
        match table {
            ExpiredTable::Tasks => self.cutoffs.iter().flatten().max(),
            ExpiredTable::Groups => self.cutoffs.get(self.expiry.of_groups())?.as_ref(),
        }
    }

    /// The kind of a row that has expired.
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

/// A cleaner over a connection that the store does not have yet.
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
    /// Opens a connection. False where another process does the work.
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
                    tracing::warn!(table, "the table does not exist and is left out");
                    self.tables.retain(|table| *table == ExpiredTable::Tasks);
                }
            }
            let now = self.job.now.min(patiently::<D, _>(D::now(&mut connection)).await?);
            // Databases and Django know no year before the first.
            let cutoff = |age| {
                let cutoff = now.checked_sub_signed(TimeDelta::from_std(age).ok()?)?;
                (cutoff.year() > 0).then_some(cutoff)
            };
            let rules = self.job.expiry.rules().iter();
            let cutoffs = rules.map(|rule| rule.age.and_then(cutoff));
            // No column has more than microseconds.
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
        // Taken out, so that a step which is cancelled or fails takes its connection with it, and
        // the database undoes what it has begun.
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

    /// Locks a batch of what has expired and deletes what still has.
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

/// The rows of a range. The first part is what an index on `date_done` alone can look up.
fn condition<D: CleanupDialect>() -> String {
    let (time, id, before) = (D::AFTER_TIME, D::AFTER_ID, D::BEFORE);
    format!("date_done >= {time} and (date_done > {time} or id > {id}) and date_done < {before}")
}

/// Numbers with commas between them.
fn join(ids: impl Iterator<Item = i64>) -> String {
    let mut text = String::new();
    for id in ids {
        let comma = if text.is_empty() { "" } else { "," };
        let _ = write!(text, "{comma}{id}");
    }
    text
}

/// What to do about an error that somebody has to mend. None of the rows is at fault where they
/// cannot be deleted: others refer to them.
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
