//! How SQLite makes tables.

use std::time::Duration;

use chrono::Utc;
use sqlx::ConnectOptions;
use sqlx::error::DatabaseError;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};

use crate::store::migrate::{APP, Migrate};
use crate::store::sqlite::SqliteDatabase;

/// How long others may write. Daemons do so in moments.
const PATIENCE: Duration = Duration::from_mins(1);

impl Migrate for SqliteDatabase {
    const SQL: &str = include_str!("../../../migrations/sqlite.sql");

    const MAKE_RECORDS: &str = r#"CREATE TABLE "django_migrations" ("id" integer NOT NULL PRIMARY KEY AUTOINCREMENT, "app" varchar(255) NOT NULL, "name" varchar(255) NOT NULL, "applied" datetime NOT NULL)"#;

    const TRANSACTION: Option<[&str; 2]> = Some(["BEGIN IMMEDIATE", "COMMIT"]);

    async fn open(&self, to_look: bool) -> Result<Option<SqliteConnection>, sqlx::Error> {
        let path = self.options.get_filename();
        if to_look && !path.exists() {
            return Ok(None);
        }
        SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(!to_look)
            .busy_timeout(PATIENCE)
            .disable_statement_logging()
            .connect()
            .await
            .map(Some)
            .map_err(|error| {
                let problem = format!(
                    "cannot open {} ({error}): its folder has to be there, and this user has to be \
                     allowed to write there",
                    path.display()
                );
                sqlx::Error::Configuration(problem.into())
            })
    }

    /// The transaction is the lock.
    async fn lock(_connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        Ok(())
    }

    async fn recorded(connection: &mut SqliteConnection) -> Result<Vec<String>, sqlx::Error> {
        sqlx::query_scalar("select name from django_migrations where app = ? order by id")
            .bind(APP)
            .fetch_all(connection)
            .await
    }

    fn now(&self) -> String {
        self.naive(Utc::now())
    }

    /// A file or its folder that may not be written.
    fn missing_right(error: &dyn DatabaseError, _statement: &str) -> Option<&'static str> {
        let code: u32 = error.code().unwrap_or_default().parse().unwrap_or_default();
        (code & 0xFF == 8).then_some("to be allowed to write the file and its folder")
    }
}
