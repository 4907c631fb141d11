//! Whichever database the settings name.

use crate::config::{Config, DatabaseKind};
use crate::row::Row;
use crate::store::{Catalog, Mysql, Postgres, Sqlite, Store, StoreError, Written};

/// One of the databases.
pub enum Database {
    /// PostgreSQL.
    Postgres(Postgres),
    /// MySQL or MariaDB.
    Mysql(Mysql),
    /// SQLite.
    Sqlite(Sqlite),
}

impl Database {
    /// A store that has not connected yet.
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

// The boxes keep the future of a lane, which holds that of its store, small.
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
