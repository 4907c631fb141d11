//! The database that the settings name.

use std::sync::Arc;

use super::chords::ChordStore;
use super::cleanup::Cleaner;
use super::dialect::Dialect;
use super::mysql::Mysql;
use super::postgres::Postgres;
use super::sqlite::Sqlite;
use super::write::SqlStore;
use super::{App, Job, Standing, StoreError, inspect, migrate};
use crate::config::{Config, DatabaseKind, DatabaseUrl};
use crate::diagnosis::finding::Finding;
use crate::row::Row;
use crate::row::merge::Law;

/// A database. Each operation opens its own connection.
#[derive(Clone, Debug)]
pub struct Database {
    dialect: Arc<dyn Dialect>,
    law: Law,
}

impl Database {
    /// The database of the settings. Nothing is connected yet.
    ///
    /// # Errors
    ///
    /// When the URL has parameters that the database's driver refuses.
    pub fn new(config: &Config) -> Result<Self, StoreError> {
        let database = Self::at(&config.database, config.time_zone)?;
        Ok(Self { law: config.decoder.law, ..database })
    }

    /// The database at a URL. `time_zone` is the one in which Django stores times in a database
    /// whose columns have none: UTC with `USE_TZ`, and `TIME_ZONE` otherwise.
    ///
    /// # Errors
    ///
    /// When the URL has parameters that the database's driver refuses.
    pub fn at(url: &DatabaseUrl, time_zone: chrono_tz::Tz) -> Result<Self, StoreError> {
        let dialect: Arc<dyn Dialect> = match url.kind() {
            DatabaseKind::Postgres => Arc::new(Postgres::new(url)?),
            DatabaseKind::Mysql => Arc::new(Mysql::new(url, time_zone)?),
            DatabaseKind::Sqlite => Arc::new(Sqlite::new(url.path(), time_zone)),
        };
        Ok(Self { dialect, law: Law::default() })
    }

    /// A store that connects when it is first used.
    #[must_use]
    pub fn store(&self) -> SqlStore {
        SqlStore::new(Arc::clone(&self.dialect), self.law)
    }

    /// The tables of chords. Connects when it is first used.
    #[must_use]
    pub fn chords(&self) -> ChordStore {
        ChordStore::new(Arc::clone(&self.dialect))
    }

    /// A cleaner that deletes expired rows and connects when it begins.
    #[must_use]
    pub fn cleaner(&self, job: Job) -> Cleaner {
        Cleaner::new(Arc::clone(&self.dialect), job)
    }

    /// Creates the tables of django-celery-results and those of Celeriac's own Django app if there
    /// are none, and records Django's migrations for them. `length` is the length of the ids of
    /// results; the default is that of Django. Returns the state of each app's tables before.
    ///
    /// # Errors
    ///
    /// When there are tables that are older, incomplete or different, or when the database refuses a
    /// statement. Nothing is changed if there are such tables.
    pub async fn migrate(
        &self,
        length: Option<u32>,
    ) -> Result<Vec<(&'static App, Standing)>, StoreError> {
        migrate::run(&*self.dialect, length.unwrap_or(migrate::DEFAULT_LENGTH)).await
    }

    /// The SQL that [`Database::migrate`] would run now.
    ///
    /// # Errors
    ///
    /// When [`Database::migrate`] would refuse, or when the database cannot be read.
    pub async fn migration_sql(&self, length: Option<u32>) -> Result<String, StoreError> {
        migrate::dry_run(&*self.dialect, length.unwrap_or(migrate::DEFAULT_LENGTH)).await
    }

    /// Reports on the server, the tables and their migrations, without changing anything. Returns
    /// whether rows can be written, as far as this can be told without writing.
    pub async fn inspect(&self, report: &mut dyn FnMut(Finding)) -> bool {
        inspect::inspect(&*self.dialect, report).await
    }

    /// Writes rows in a transaction that is rolled back and reports the result. If `delete` is set,
    /// does the same once more and also deletes the rows.
    pub async fn rehearse(&self, rows: &[&Row], delete: bool, report: &mut dyn FnMut(Finding)) {
        inspect::rehearse(&*self.dialect, rows, delete, report).await;
    }
}
