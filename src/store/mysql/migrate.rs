//! How MySQL and MariaDB make tables.

use chrono::Utc;
use sqlx::error::DatabaseError;
use sqlx::mysql::{MySqlConnection, MySqlDatabaseError};

use crate::store::migrate::{APP, Migrate};
use crate::store::mysql::MysqlDatabase;
use crate::store::session::SqlDatabase;

/// How long to wait for another process, which needs moments.
const LOCK_SECONDS: u32 = 60;

impl Migrate for MysqlDatabase {
    const SQL: &str = include_str!("../../../migrations/mysql.sql");

    const MAKE_RECORDS: &str = "CREATE TABLE `django_migrations` (`id` bigint AUTO_INCREMENT NOT NULL PRIMARY KEY, `app` varchar(255) NOT NULL, `name` varchar(255) NOT NULL, `applied` datetime(6) NOT NULL)";

    /// Every statement that changes a table commits.
    const TRANSACTION: Option<[&str; 2]> = None;

    async fn open(&self, _to_look: bool) -> Result<Option<MySqlConnection>, sqlx::Error> {
        self.connect().await.map(Some)
    }

    /// Locks are the server's, so the name has the database in it, and at most 64 characters.
    async fn lock(connection: &mut MySqlConnection) -> Result<(), sqlx::Error> {
        let got: Option<i64> = sqlx::query_scalar(
            "select cast(get_lock(concat('celeriac.', md5(database())), ?) as signed)",
        )
        .bind(LOCK_SECONDS)
        .fetch_one(connection)
        .await?;
        match got {
            Some(1) => Ok(()),
            _ => Err(sqlx::Error::Configuration(
                "another process has been migrating for a minute: try again".into(),
            )),
        }
    }

    async fn recorded(connection: &mut MySqlConnection) -> Result<Vec<String>, sqlx::Error> {
        sqlx::query_scalar("select name from django_migrations where app = ? order by id")
            .bind(APP)
            .fetch_all(connection)
            .await
    }

    fn now(&self) -> String {
        self.naive(Utc::now())
    }

    fn missing_right(error: &dyn DatabaseError, statement: &str) -> Option<&'static str> {
        let number = error.try_downcast_ref::<MySqlDatabaseError>()?.number();
        matches!(number, 1044 | 1142 | 1227).then_some(match statement.split_once(' ') {
            Some(("SELECT", _)) => "the right SELECT on its table",
            Some(("INSERT", _)) => "the right INSERT on its table",
            _ => "the rights CREATE, DROP, ALTER, INDEX and INSERT on the database",
        })
    }
}
