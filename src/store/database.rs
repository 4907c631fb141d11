//! The store for the database that the settings name.

use crate::config::{Config, DatabaseKind};
use crate::diagnosis::finding::Finding;
use crate::row::Row;
use crate::store::{
    Catalog, Cleaner, Job, Mysql, Postgres, Sqlite, Standing, Store, StoreError, Written, cleanup,
    inspect, migrate,
};

/// A store for any of the supported databases.
pub enum Database {
    /// PostgreSQL.
    Postgres(Postgres),
    /// MySQL or MariaDB.
    Mysql(Mysql),
    /// SQLite.
    Sqlite(Sqlite),
}

impl Database {
    /// Makes a store that is not connected yet.
    ///
    /// # Errors
    ///
    /// When the URL has parameters that the database's driver refuses.
    pub fn new(config: &Config) -> Result<Self, StoreError> {
        Ok(match config.database.kind() {
            DatabaseKind::Postgres => Self::Postgres(Postgres::new(&config.database)?),
            DatabaseKind::Mysql => Self::Mysql(Mysql::new(&config.database, config.time_zone)?),
            DatabaseKind::Sqlite => {
                Self::Sqlite(Sqlite::new(config.database.path(), config.time_zone))
            }
        })
    }
}

impl Database {
    /// Creates the tables of django-celery-results if there are none, and records Django's migrations
    /// for them. `length` is the length of the ids; the default is that of Django. Returns the state
    /// of the database before.
    ///
    /// # Errors
    ///
    /// When there are tables that are older, incomplete or different, which are not changed then, or
    /// when the database refuses a statement.
    pub async fn migrate(&self, length: Option<u32>) -> Result<Standing, StoreError> {
        let length = length.unwrap_or(migrate::DEFAULT_LENGTH);
        match self {
            Self::Postgres(store) => migrate::run(store.database(), length).await,
            Self::Mysql(store) => migrate::run(store.database(), length).await,
            Self::Sqlite(store) => migrate::run(store.database(), length).await,
        }
    }

    /// A cleaner that deletes expired rows. It opens its own connection when it begins.
    #[must_use]
    pub fn into_cleaner(self, job: Job) -> Box<dyn Cleaner> {
        match self {
            Self::Postgres(store) => cleanup::cleaner(store, job),
            Self::Mysql(store) => cleanup::cleaner(store, job),
            Self::Sqlite(store) => cleanup::cleaner(store, job),
        }
    }

    /// The SQL that [`Database::migrate`] would run now.
    ///
    /// # Errors
    ///
    /// When [`Database::migrate`] would refuse, or when the database cannot be read.
    pub async fn migration_sql(&self, length: Option<u32>) -> Result<String, StoreError> {
        let length = length.unwrap_or(migrate::DEFAULT_LENGTH);
        match self {
            Self::Postgres(store) => migrate::dry_run(store.database(), length).await,
            Self::Mysql(store) => migrate::dry_run(store.database(), length).await,
            Self::Sqlite(store) => migrate::dry_run(store.database(), length).await,
        }
    }
}

impl Database {
    /// Reports on the server, the tables and their migrations, without changing anything. Returns
    /// whether rows can be written, as far as this can be told without writing.
    pub async fn inspect(&self, report: &mut dyn FnMut(Finding)) -> bool {
        match self {
            Self::Postgres(store) => inspect::inspect(store.database(), report).await,
            Self::Mysql(store) => inspect::inspect(store.database(), report).await,
            Self::Sqlite(store) => inspect::inspect(store.database(), report).await,
        }
    }

    /// Writes rows in a transaction that is rolled back and reports the result. If `delete` is set,
    /// does the same once more and also deletes the rows.
    pub async fn rehearse(&self, rows: &[&Row], delete: bool, report: &mut dyn FnMut(Finding)) {
        match self {
            Self::Postgres(store) => {
                inspect::rehearse(store.database(), rows, delete, report).await;
            }
            Self::Mysql(store) => inspect::rehearse(store.database(), rows, delete, report).await,
            Self::Sqlite(store) => inspect::rehearse(store.database(), rows, delete, report).await,
        }
    }
}

// The futures are boxed to keep the future of a lane small, which contains them.
impl Store for Database {
    async fn prepare(&mut self) -> Result<&Catalog, StoreError> {
        match self {
            Self::Postgres(store) => Box::pin(store.prepare()).await,
            Self::Mysql(store) => Box::pin(store.prepare()).await,
            Self::Sqlite(store) => Box::pin(store.prepare()).await,
        }
    }

    async fn store(&mut self, rows: &[&Row]) -> Result<Written, StoreError> {
        match self {
            Self::Postgres(store) => Box::pin(store.store(rows)).await,
            Self::Mysql(store) => Box::pin(store.store(rows)).await,
            Self::Sqlite(store) => Box::pin(store.store(rows)).await,
        }
    }

    async fn check(&mut self) -> Result<(), StoreError> {
        match self {
            Self::Postgres(store) => Box::pin(store.check()).await,
            Self::Mysql(store) => Box::pin(store.check()).await,
            Self::Sqlite(store) => Box::pin(store.check()).await,
        }
    }
}
