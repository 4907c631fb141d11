//! SQLite's catalog and lock.

use std::time::Duration;

use chrono::Utc;
use sqlx::error::DatabaseError;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Row};

use super::migration::{self, Migrations};
use super::plan::{APP, State};
use super::shape::{Column, Filler, Shape, TABLES, Table};
use super::{Migrate, Transaction};
use crate::store::sqlite::SqliteDatabase;

/// How long others may write. Daemons do so in moments.
const PATIENCE: Duration = Duration::from_mins(1);

impl Migrate for SqliteDatabase {
    const MIGRATIONS: Migrations = migration::SQLITE;

    const MAKE_RECORDS: &str = r#"CREATE TABLE "django_migrations" ("id" integer NOT NULL PRIMARY KEY AUTOINCREMENT, "app" varchar(255) NOT NULL, "name" varchar(255) NOT NULL, "applied" datetime NOT NULL)"#;

    /// Tables are made anew under other names, and what refers to them is to stay: foreign keys of
    /// the project's own tables, and views. Django sets both as well.
    const SESSION: &[&str] = &["PRAGMA foreign_keys = OFF", "PRAGMA legacy_alter_table = ON"];

    const TRANSACTION: Option<Transaction> =
        Some(Transaction { begin: "BEGIN IMMEDIATE", commit: "COMMIT" });

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

    async fn state(connection: &mut SqliteConnection) -> Result<State, sqlx::Error> {
        let mut tables = Shape::default();
        let mut attached = Vec::new();
        for name in TABLES {
            let columns = sqlx::query(
                r#"select name, lower(type) as kind, "notnull" = 0 as is_nullable,
                    dflt_value is not null as has_default,
                    pk = 1 and lower(type) = 'integer' as is_numbered
                from pragma_table_info(?)"#,
            )
            .bind(name)
            .fetch_all(&mut *connection)
            .await?;
            if columns.is_empty() {
                continue;
            }
            let mut table = Table::default();
            for row in columns {
                let filler = match (row.try_get("is_numbered")?, row.try_get("has_default")?) {
                    (true, _) => Filler::Number,
                    (false, true) => Filler::Default,
                    (false, false) => Filler::Nothing,
                };
                let column = Column {
                    kind: row.try_get("kind")?,
                    is_nullable: row.try_get("is_nullable")?,
                    filler,
                };
                table.columns.insert(row.try_get("name")?, column);
            }
            let indexes = sqlx::query(
                r#"select name, "unique" and not partial as is_unique
                from pragma_index_list(?) where origin <> 'pk'"#,
            )
            .bind(name)
            .fetch_all(&mut *connection)
            .await?;
            for row in indexes {
                let index: String = row.try_get("name")?;
                let columns: Vec<Option<String>> =
                    sqlx::query_scalar("select name from pragma_index_info(?) order by seqno")
                        .bind(&index)
                        .fetch_all(&mut *connection)
                        .await?;
                let columns = columns.into_iter().map(Option::unwrap_or_default).collect();
                table.insert_index(index, row.try_get("is_unique")?, columns);
            }
            let more: Vec<String> = sqlx::query_scalar(
                "select name from sqlite_master
                where tbl_name = ? and type in ('index', 'trigger') and sql is not null",
            )
            .bind(name)
            .fetch_all(&mut *connection)
            .await?;
            attached.extend(more.into_iter().map(|more| (name.to_owned(), more)));
            tables.insert(name, table);
        }
        let has_records = "select count(*) from sqlite_master
            where type = 'table' and name = 'django_migrations'";
        let recorded =
            if sqlx::query_scalar::<_, i64>(has_records).fetch_one(&mut *connection).await? > 0 {
                let names: Vec<String> =
                    sqlx::query_scalar("select name from django_migrations where app = ?")
                        .bind(APP)
                        .fetch_all(&mut *connection)
                        .await?;
                Some(names.into_iter().collect())
            } else {
                None
            };
        Ok(State { recorded, tables, attached })
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
