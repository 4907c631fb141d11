//! Deletes expired rows in batches.
//!
//! Candidates are read page by page without a lock, in the order of `date_done`. Each page starts
//! where the previous one ended, so that no row is read twice, and neither are the dead rows that
//! PostgreSQL has not vacuumed yet. A batch of candidates is then locked by primary key, except for
//! rows that are locked by others, checked once more, and deleted. The cleanup therefore waits for
//! nobody, others wait no longer than one batch takes, and a row that has been updated in between
//! is kept. Which rows have expired is decided here, by [`Expiry`].

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::sync::Arc;

use chrono::{DateTime, Datelike, NaiveDate, NaiveTime, SubsecRound, TimeDelta, Utc};
use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};

use super::dialect::{self, Dialect, GRANT, Purpose, Sql, patiently};
use super::session::Session;
use super::value::{Param, Record, first_integer};
use super::{ErrorClass, GROUPS, StoreError, TASKS, inspect};
use crate::row::expiry::Expiry;

/// The number of rows in a page.
const PAGE: usize = 5_000;

/// The maximum number of kinds of rows that are counted separately. Applications can create any
/// number of states.
const MAX_KINDS: usize = 1_000;

/// What to add to an error if the database reports a missing right.
const RIGHTS: &str = "this user needs the rights SELECT, UPDATE and DELETE on the table";

/// The condition for rows of tasks that no open chord waits for. The members of a chord that has
/// ended are deleted.
const UNLESS_AWAITED: &str = " and not exists (select 1 from celeriac_chordmember
    where celeriac_chordmember.task_id = django_celery_results_taskresult.task_id)";

/// Fails if there is no table for members of chords, or if this user may not read it.
const CHORDS: SqlStr = SqlStr::from_static("select 1 from celeriac_chordmember where 1 = 0");

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

/// A row that may have expired.
struct Candidate {
    id: i64,
    date_done: Option<DateTime<Utc>>,
    status: String,
    task_name: Option<String>,
}

/// Deletes expired rows step by step, over its own connection.
///
/// A step that fails or is cancelled has deleted either the whole batch or nothing. The next step
/// continues from there over a new connection.
pub struct Cleaner {
    dialect: Arc<dyn Dialect>,
    job: Job,
    session: Option<Box<dyn Session>>,
    /// Set by the first session and not changed afterwards, so that the cleanup ends.
    cutoffs: Option<Cutoffs>,
    /// Whether there are chords, whose members are left. Set with the cutoffs.
    has_chords: bool,
    /// The tables that remain to be cleaned up.
    tables: VecDeque<ExpiredTable>,
    /// The `date_done` and the id of the last row that was read.
    after: (DateTime<Utc>, i64),
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
    fn select(self) -> String {
        let described = match self {
            Self::Tasks => "status, task_name",
            Self::Groups => "'' as status, '' as task_name",
        };
        format!("select id, date_done, {described} from {}", self.name())
    }
}

/// The times before which rows have expired.
struct Cutoffs {
    expiry: Expiry,
    /// For each rule, the time before which rows have expired by it.
    cutoffs: Vec<Option<DateTime<Utc>>>,
}

impl Cutoffs {
    /// The time before which rows of a table can have expired; `None` if no rows of the table
    /// expire.
    fn before(&self, table: ExpiredTable) -> Option<DateTime<Utc>> {
        match table {
            ExpiredTable::Tasks => self.cutoffs.iter().flatten().max().copied(),
            ExpiredTable::Groups => *self.cutoffs.get(self.expiry.of_groups())?,
        }
    }

    /// The kind of a row; `None` if the row has not expired.
    fn expired(&self, table: ExpiredTable, row: &Candidate) -> Option<ExpiredKind> {
        let (is_group, rule) = match table {
            ExpiredTable::Tasks => {
                (false, self.expiry.of_task(&row.status, row.task_name.as_deref()))
            }
            ExpiredTable::Groups => (true, self.expiry.of_groups()),
        };
        let cutoff = (*self.cutoffs.get(rule)?)?;
        (row.date_done? < cutoff).then(|| ExpiredKind { is_group, rule, state: row.status.clone() })
    }
}

impl Cleaner {
    /// A cleaner that connects when it begins.
    pub(super) fn new(dialect: Arc<dyn Dialect>, job: Job) -> Self {
        Self {
            dialect,
            job,
            session: None,
            cutoffs: None,
            has_chords: false,
            tables: VecDeque::from([ExpiredTable::Tasks, ExpiredTable::Groups]),
            after: (beginning(), 0),
            is_read: false,
            expired: Vec::new(),
            found: Found::new(),
        }
    }

    /// Opens a connection. Returns false if another process is already cleaning up.
    async fn open(&mut self) -> Result<bool, StoreError> {
        let dialect = &*self.dialect;
        let connected = patiently(dialect, dialect.connect(Purpose::Write)).await?;
        let Some(mut session) = connected else { return Err(StoreError::missing_table()) };
        for statement in dialect.sql().cleanup_session {
            patiently(dialect, session.execute(statement)).await?;
        }
        if self.job.alone
            && let Some(lock) = dialect.sql().try_cleanup_lock
        {
            let locked = session.fetch(SqlStr::from_static(lock), Vec::new());
            if first_integer(patiently(dialect, locked).await?) == Some(0) {
                session.close().await;
                return Ok(false);
            }
        }
        if self.cutoffs.is_none() {
            for table in [TASKS, GROUPS] {
                let columns = dialect.columns(&mut *session, table);
                if patiently(dialect, columns).await?.is_empty() {
                    if table == TASKS {
                        return Err(StoreError::missing_table());
                    }
                    tracing::warn!(table, "the table does not exist and is skipped");
                    self.tables.retain(|table| *table == ExpiredTable::Tasks);
                }
            }
            self.has_chords = session.fetch(CHORDS, Vec::new()).await.is_ok();
            let now = inspect::now(dialect, &mut *session).await?;
            let now = now.map_or(self.job.now, |now| now.min(self.job.now));
            // Neither the databases nor Django can represent years before 1. The columns have a
            // precision of at most microseconds.
            let cutoff = |age| {
                let cutoff = now.checked_sub_signed(TimeDelta::from_std(age).ok()?)?;
                (cutoff.year() > 0).then(|| cutoff.trunc_subsecs(6))
            };
            let rules = self.job.expiry.rules().iter();
            let cutoffs = rules.map(|rule| rule.age.and_then(cutoff)).collect();
            self.cutoffs = Some(Cutoffs { expiry: self.job.expiry.clone(), cutoffs });
        }
        self.session = Some(session);
        Ok(true)
    }

    fn add(&mut self, mut kind: ExpiredKind) {
        if self.found.len() >= MAX_KINDS && !self.found.contains_key(&kind) {
            kind.state.clear();
        }
        *self.found.entry(kind).or_default() += 1;
    }

    /// Reads or deletes a few rows.
    ///
    /// # Errors
    ///
    /// [`ErrorClass::Setup`] if the task table or a right is missing, or if other tables refer to
    /// the rows.
    pub async fn step(&mut self) -> Result<CleanupStep, StoreError> {
        let mut step = CleanupStep {
            read: 0,
            deleted: 0,
            of_groups: self.tables.front() == Some(&ExpiredTable::Groups),
            has_locked: false,
            next: NextStep::More,
        };
        if self.session.is_none() && !self.open().await? {
            return Ok(CleanupStep { next: NextStep::Taken, ..step });
        }
        let Some(&table) = self.tables.front() else {
            return Ok(CleanupStep { next: NextStep::Over, ..step });
        };
        // The connection is taken out of `self`. If the step is cancelled or fails, it is dropped,
        // and the database rolls back the transaction.
        let Some(mut session) = self.session.take() else { return Ok(step) };
        if !self.is_read && self.expired.len() < self.job.batch {
            step.read = self.read_page(&mut *session, table).await?;
        } else if !self.expired.is_empty() {
            step.deleted = self.delete_batch(&mut *session, table).await?;
            step.has_locked = true;
        }
        self.session = Some(session);
        if self.is_read && self.expired.is_empty() {
            self.tables.pop_front();
            self.after = (beginning(), 0);
            self.is_read = false;
        }
        if self.tables.is_empty() {
            step.next = NextStep::Over;
        }
        Ok(step)
    }

    async fn read_page(
        &mut self,
        session: &mut dyn Session,
        table: ExpiredTable,
    ) -> Result<u64, StoreError> {
        let before = self.cutoffs.as_ref().and_then(|cutoffs| cutoffs.before(table));
        let Some(before) = before else {
            self.is_read = true;
            return Ok(0);
        };
        let dialect = Arc::clone(&self.dialect);
        let select = table.select();
        let condition = format!("{}{}", self.condition(), self.unless_awaited(table));
        let query = format!("{select} where {condition} order by date_done, id limit {PAGE}");
        let rows = candidates(&*dialect, session, query, self.range(before)).await?;
        self.is_read = rows.len() < PAGE;
        for row in &rows {
            let Some(kind) = self.expired(table, row) else { continue };
            if self.job.dry_run {
                self.add(kind);
            } else {
                self.expired.push(row.id);
            }
        }
        match rows.iter().rev().find_map(|row| Some((row.date_done?, row.id))) {
            Some(last) => self.after = last,
            // Times that cannot be read never expire, and they come last.
            None => self.is_read = true,
        }
        Ok(rows.len() as u64)
    }

    /// Locks a batch of the expired rows and deletes those that are still expired.
    async fn delete_batch(
        &mut self,
        session: &mut dyn Session,
        table: ExpiredTable,
    ) -> Result<u64, StoreError> {
        let dialect = Arc::clone(&self.dialect);
        let (dialect, sql) = (&*dialect, dialect.sql());
        let batch = self.job.batch.min(self.expired.len());
        let ids = self.expired[..batch].iter().copied();
        let mut condition = format!("id in ({})", join(ids));
        if sql.locks_by_key {
            let (key, name) = (table.key(), table.name());
            let keys = format!("select {key} from {name} where {condition}");
            condition = format!("{key} in (select {key} from ({keys}) as batch)");
        }
        condition.push_str(self.unless_awaited(table));
        dialect::begin(dialect, session).await?;
        let query = format!("{} where {condition} {}", table.select(), sql.skip_locked);
        let rows = candidates(dialect, session, query, Vec::new()).await?;
        let expired = rows.iter().filter_map(|row| Some((row.id, self.expired(table, row)?)));
        let expired: Vec<_> = expired.collect();
        if !expired.is_empty() {
            let ids = join(expired.iter().map(|&(id, _)| id));
            let statement = format!("delete from {} where id in ({ids})", table.name());
            patiently(dialect, session.execute(&statement)).await.map_err(explained)?;
        }
        patiently(dialect, session.execute("commit")).await.map_err(explained)?;
        self.expired.drain(..batch);
        let count = expired.len() as u64;
        for (_, kind) in expired {
            self.add(kind);
        }
        Ok(count)
    }

    /// An estimate of how many rows the remaining steps will read.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn count(&mut self) -> Result<u64, StoreError> {
        if self.session.is_none() && !self.open().await? {
            return Ok(0);
        }
        let Some(mut session) = self.session.take() else { return Ok(0) };
        let mut count = 0;
        for &table in &self.tables {
            let before = self.cutoffs.as_ref().and_then(|cutoffs| cutoffs.before(table));
            let Some(before) = before else { continue };
            let condition = self.condition();
            let query = format!("select count(*) from {} where {condition}", table.name());
            let query = AssertSqlSafe(query).into_sql_str();
            let rows = session.fetch(query, self.range(before));
            let rows = patiently(&*self.dialect, rows).await.map_err(explained)?;
            count += first_integer(rows).unwrap_or_default().unsigned_abs();
        }
        self.session = Some(session);
        Ok(count)
    }

    /// The rows that have been deleted so far or, in a dry run, found.
    #[must_use]
    pub fn found(&self) -> &Found {
        &self.found
    }

    /// Closes the connection.
    pub async fn close(&mut self) {
        if let Some(session) = self.session.take() {
            session.close().await;
        }
    }

    /// The kind of a row; `None` if the row has not expired.
    fn expired(&self, table: ExpiredTable, row: &Candidate) -> Option<ExpiredKind> {
        self.cutoffs.as_ref()?.expired(table, row)
    }

    /// The condition that leaves out the rows of members of open chords, whose bodies need them.
    fn unless_awaited(&self, table: ExpiredTable) -> &'static str {
        if table == ExpiredTable::Tasks && self.has_chords { UNLESS_AWAITED } else { "" }
    }

    /// The condition for the rows of a range. Its first part can use an index on `date_done` alone.
    fn condition(&self) -> String {
        let Sql { after_time: time, after_id: id, before, .. } = self.dialect.sql();
        format!(
            "date_done >= {time} and (date_done > {time} or id > {id}) and date_done < {before}"
        )
    }

    /// The parameters of a range: the rows after the last one that was read and before a time.
    fn range(&self, before: DateTime<Utc>) -> Vec<Param<'static>> {
        let (time, id) = self.after;
        let mut params = vec![Param::Time(Some(time)), Param::Integer(Some(id))];
        if self.dialect.sql().after_time == "?" {
            params.insert(0, Param::Time(Some(time)));
        }
        params.push(Param::Time(Some(before)));
        params
    }
}

/// Runs a query for candidates.
async fn candidates(
    dialect: &dyn Dialect,
    session: &mut dyn Session,
    query: String,
    params: Vec<Param<'static>>,
) -> Result<Vec<Candidate>, StoreError> {
    let query = AssertSqlSafe(query).into_sql_str();
    let records = patiently(dialect, session.fetch(query, params)).await;
    let candidate = |mut record: Record| Candidate {
        id: record.integer().unwrap_or_default(),
        date_done: record.time(),
        status: record.text().unwrap_or_default(),
        task_name: record.text(),
    };
    Ok(records.map_err(explained)?.into_iter().map(candidate).collect())
}

/// A time before every time that Django writes, also in any time zone.
fn beginning() -> DateTime<Utc> {
    NaiveDate::from_ymd_opt(1, 1, 2).unwrap_or(NaiveDate::MIN).and_time(NaiveTime::MIN).and_utc()
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
