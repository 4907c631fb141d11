//! Writing rows: inserts those that are new, and locks, reads, merges and updates those that are
//! not. So the law in [`crate::row::merge`] alone decides what is in the tables, and no row is
//! overwritten that has not been read.
//!
//! 1. Where the database can do so in one statement (PostgreSQL any number of rows, MySQL and
//!    MariaDB one), the rows that are not in the table are inserted first, without a transaction.
//!    Most rows of most batches are new.
//! 2. The others are written in a transaction: they are locked and read, in the order of their
//!    keys; those that merging changes are updated; those that are not there are inserted. A row
//!    that another writer deletes or inserts between the two steps is written in the next round.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use async_trait::async_trait;

use super::chords::Chords;
use super::columns::{self, Table};
use super::dialect::{self, Dialect, patiently};
use super::session::{Inserted, Session, Stored};
use super::{
    Before, Catalog, Change, Effect, ErrorClass, GROUPS, Store, StoreError, TASKS, Write, Written,
};
use crate::row::Row;
use crate::row::chord::ChordNews;
use crate::row::merge::Law;

/// How often rows are read again that other writers have inserted or deleted meanwhile.
const ROUNDS: usize = 5;

/// A [`Store`] with one connection, which is closed after an error that may have left it in an
/// unknown state.
#[derive(Debug)]
pub struct SqlStore {
    dialect: Arc<dyn Dialect>,
    law: Law,
    opened: Option<Opened>,
}

/// A connection and what is known of the tables.
struct Opened {
    session: Box<dyn Session>,
    catalog: Catalog,
    tasks: Table,
    groups: Table,
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Opened").field("catalog", &self.catalog).finish_non_exhaustive()
    }
}

impl SqlStore {
    pub(super) fn new(dialect: Arc<dyn Dialect>, law: Law) -> Self {
        Self { dialect, law, opened: None }
    }

    async fn open(&mut self) -> Result<&mut Opened, StoreError> {
        if self.opened.is_none() {
            let dialect = &*self.dialect;
            let mut session = dialect::open(dialect).await?;
            let catalog = catalog(dialect, &mut *session).await?;
            let (tasks, groups) = (Table::tasks(&catalog), Table::groups());
            self.opened = Some(Opened { session, catalog, tasks, groups });
        }
        self.opened
            .as_mut()
            .ok_or_else(|| StoreError::new(ErrorClass::Outage, "there is no connection"))
    }

    /// Keeps a connection after an error, if the transaction can be rolled back.
    async fn keep_after(&mut self, error: &StoreError, mut opened: Opened) {
        if matches!(error.class, ErrorClass::Conflict | ErrorClass::Poison)
            && patiently(&*self.dialect, opened.session.execute("rollback")).await.is_ok()
        {
            self.opened = Some(opened);
        }
    }
}

/// Reads what the tables can store.
pub(super) async fn catalog(
    dialect: &dyn Dialect,
    session: &mut dyn Session,
) -> Result<Catalog, StoreError> {
    let tasks = patiently(dialect, dialect.columns(session, TASKS)).await?;
    let groups = patiently(dialect, dialect.columns(session, GROUPS)).await?;
    Ok(Catalog::new(&tasks, &groups, dialect.sql().allows_nul)?.with_zone(dialect.zone()))
}

#[async_trait]
impl Store for SqlStore {
    async fn prepare(&mut self) -> Result<&Catalog, StoreError> {
        Ok(&self.open().await?.catalog)
    }

    async fn store(
        &mut self,
        writes: &[Write<'_>],
        changes: &mut Vec<Change>,
    ) -> Result<Written, StoreError> {
        self.open().await?;
        // The connection is taken out of `self`, so that it is dropped if the write is cancelled or
        // fails.
        let Some(mut opened) = self.opened.take() else { return Ok(Written::default()) };
        let (dialect, law) = (&*self.dialect, self.law);
        let (tasks, groups): (Vec<_>, Vec<_>) =
            writes.iter().partition(|write| matches!(write.row, Row::Task(_)));
        let mut written = Written::default();
        let mut error = None;
        for (table, writes, effect) in [
            (&opened.tasks, tasks, &mut written.tasks),
            (&opened.groups, groups, &mut written.groups),
        ] {
            if writes.is_empty() || error.is_some() {
                continue;
            }
            let changed_before = changes.len();
            let session = &mut *opened.session;
            let stored = Writing { dialect, session, table, law, changes }.run(&writes).await;
            error = stored.err();
            let changed = (changes.len() - changed_before) as u64;
            let rows = writes.len() as u64;
            let statements = opened.session.take_statements();
            *effect = Effect { rows, statements, stale: rows.saturating_sub(changed) };
        }
        let Some(error) = error else {
            self.opened = Some(opened);
            return Ok(written);
        };
        self.keep_after(&error, opened).await;
        Err(error)
    }

    async fn store_chords(&mut self, news: &[&ChordNews]) -> Result<Vec<String>, StoreError> {
        self.open().await?;
        let Some(mut opened) = self.opened.take() else { return Ok(Vec::new()) };
        let dialect = &*self.dialect;
        let recorded = Chords::new(dialect, &mut *opened.session).record(news).await;
        match &recorded {
            Ok(_) => self.opened = Some(opened),
            Err(error) => self.keep_after(error, opened).await,
        }
        recorded
    }

    async fn check(&mut self) -> Result<(), StoreError> {
        self.open().await?;
        let Some(mut opened) = self.opened.take() else { return Ok(()) };
        patiently(&*self.dialect, opened.session.ping()).await?;
        self.opened = Some(opened);
        Ok(())
    }
}

/// Writes rows in a transaction that has begun, for tests of the tables that are rolled back.
pub(super) async fn write_within(
    dialect: &dyn Dialect,
    session: &mut dyn Session,
    table: &Table,
    writes: &[&Write<'_>],
) -> Result<(), StoreError> {
    let mut changes = Vec::new();
    let law = Law::default();
    let mut writing = Writing { dialect, session, table, law, changes: &mut changes };
    writing.merge(&mut writes.to_vec()).await.map(drop)
}

/// A row of the table and what it becomes.
struct Merged<'found> {
    stored: &'found Stored,
    row: Row,
    /// Whether an earlier attempt may have written the row without reporting it.
    may_be_stored: bool,
}

impl<'found> Merged<'found> {
    fn new(stored: &'found Stored) -> Self {
        Self { stored, row: stored.row.clone(), may_be_stored: false }
    }

    fn add(&mut self, write: &Write<'_>, law: Law) {
        self.row.merge(write.row.clone().with_id(columns::key(&self.stored.row)), law);
        self.row.forget_arrival();
        self.may_be_stored |= write.may_be_stored;
    }

    /// What to report, if the row changes or may have been changed by an earlier attempt, and what
    /// to write, if the row changes.
    fn end(self) -> (Option<Change>, Option<Stored>) {
        let is_changed = self.row != self.stored.row;
        let before = if self.may_be_stored {
            Before::Unknown
        } else {
            Before::Present(columns::state(&self.stored.row))
        };
        let change = (is_changed || self.may_be_stored).then(|| Change {
            key: self.row.key(),
            before,
            after: columns::state(&self.row),
        });
        (change, is_changed.then_some(Stored { id: self.stored.id, row: self.row }))
    }
}

/// The writing of rows to one table.
struct Writing<'store> {
    dialect: &'store dyn Dialect,
    session: &'store mut dyn Session,
    table: &'store Table,
    law: Law,
    changes: &'store mut Vec<Change>,
}

impl Writing<'_> {
    async fn run(&mut self, writes: &[&Write<'_>]) -> Result<(), StoreError> {
        let mut writes = writes.to_vec();
        let sql = self.dialect.sql();
        if writes.len() <= sql.inserts_first {
            let created = self.insert(&mut writes).await?;
            self.changes.extend(created);
        }
        for _ in 0..ROUNDS {
            if writes.is_empty() {
                return Ok(());
            }
            dialect::begin(self.dialect, self.session).await?;
            let changes = self.merge(&mut writes).await?;
            patiently(self.dialect, self.session.execute("commit")).await?;
            self.changes.extend(changes);
        }
        // Two new ids that the collation of the column takes for the same cannot be inserted by one
        // statement. If they are refused, they are written separately.
        let class = if writes.len() > 1 { ErrorClass::Poison } else { ErrorClass::Conflict };
        let message = format!("rows of {} are inserted and deleted meanwhile", self.table.name);
        Err(StoreError::new(class, message))
    }

    /// Inserts the rows that are not in the table, removes them from `writes`, and returns them as
    /// changes.
    async fn insert(&mut self, writes: &mut Vec<&Write<'_>>) -> Result<Vec<Change>, StoreError> {
        let rows: Vec<_> = writes.iter().map(|write| write.row).collect();
        let inserting = self.session.insert(self.table, &rows);
        let inserted = match patiently(self.dialect, inserting).await? {
            Inserted::All => std::mem::take(writes),
            Inserted::Only(keys) => {
                let keys: HashSet<_> = keys.iter().map(String::as_str).collect();
                let is_inserted = |write: &&Write<'_>| keys.contains(columns::key(write.row));
                let inserted = writes.iter().copied().filter(is_inserted).collect();
                writes.retain(|write| !is_inserted(write));
                inserted
            }
        };
        let created = |write: &Write<'_>| Change {
            key: write.row.key(),
            before: Before::Absent,
            after: columns::state(write.row),
        };
        Ok(inserted.into_iter().map(created).collect())
    }

    /// Locks, reads, merges and writes rows, in a transaction that has begun. What remains in
    /// `writes` has to be tried again.
    async fn merge(&mut self, writes: &mut Vec<&Write<'_>>) -> Result<Vec<Change>, StoreError> {
        let mut changes = Vec::new();
        let found = self.lock(writes).await?;
        let mut updated = Vec::new();
        let mut absent = Vec::new();
        // Several keys can be those of one row, if the collation of the column takes them for the
        // same.
        let mut merged = BTreeMap::<_, Merged<'_>>::new();
        for write in std::mem::take(writes) {
            match found.get(columns::key(write.row)) {
                Some(stored) => {
                    let merging = || Merged::new(stored);
                    merged
                        .entry(columns::key(&stored.row))
                        .or_insert_with(merging)
                        .add(write, self.law);
                }
                None => absent.push(write),
            }
        }
        for merged in merged.into_values() {
            let (change, update) = merged.end();
            changes.extend(change);
            updated.extend(update);
        }
        if !absent.is_empty() {
            changes.extend(self.insert(&mut absent).await?);
        }
        if !updated.is_empty() {
            let updated: Vec<_> = updated.iter().collect();
            patiently(self.dialect, self.session.update(self.table, &updated)).await?;
        }
        *writes = absent;
        Ok(changes)
    }

    /// Locks and reads the rows that are in the table, by the keys of `writes`.
    async fn lock<'row>(
        &mut self,
        writes: &[&Write<'row>],
    ) -> Result<HashMap<&'row str, Stored>, StoreError> {
        let keys: Vec<&'row str> = writes.iter().map(|write| columns::key(write.row)).collect();
        let mut found = HashMap::with_capacity(keys.len());
        let mut others = false;
        let by_text: HashSet<_> = keys.iter().copied().collect();
        for stored in patiently(self.dialect, self.session.lock(self.table, &keys)).await? {
            match by_text.get(columns::key(&stored.row)) {
                Some(&key) => drop(found.insert(key, stored)),
                None => others = true,
            }
        }
        // A column whose collation ignores case finds rows by other spellings of their keys.
        if others {
            for key in keys {
                if found.contains_key(key) {
                    continue;
                }
                let locked = patiently(self.dialect, self.session.lock(self.table, &[key])).await?;
                if let Some(stored) = locked.into_iter().next() {
                    found.insert(key, stored);
                }
            }
        }
        Ok(found)
    }
}
