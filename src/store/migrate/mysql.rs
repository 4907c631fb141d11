//! The catalog and the lock of MySQL and MariaDB.

use chrono::Utc;
use sqlx::Row;
use sqlx::error::DatabaseError;
use sqlx::mysql::{MySqlConnection, MySqlDatabaseError};

use super::migration::{self, Migrations};
use super::plan::{APP, State};
use super::shape::{Column, Filler, Shape, TABLES, Table};
use super::{Migrate, Transaction, right_for};
use crate::store::mysql::MysqlDatabase;
use crate::store::session::SqlDatabase;

/// How long another process may take: hours, for tables that are large.
const LOCK_SECONDS: u32 = 6 * 60 * 60;

impl Migrate for MysqlDatabase {
    const MIGRATIONS: Migrations = migration::MYSQL;

    const MAKE_RECORDS: &str = "CREATE TABLE `django_migrations` (`id` bigint AUTO_INCREMENT NOT NULL PRIMARY KEY, `app` varchar(255) NOT NULL, `name` varchar(255) NOT NULL, `applied` datetime(6) NOT NULL)";

    const SESSION: &[&str] = &[];

    /// Every statement that changes a table commits.
    const TRANSACTION: Option<Transaction> = None;

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
                "another process has been migrating for hours".into(),
            )),
        }
    }

    async fn state(connection: &mut MySqlConnection) -> Result<State, sqlx::Error> {
        let mut tables = Shape::default();
        for name in TABLES {
            // MariaDB has the text NULL for the default of a column that takes NULL.
            let columns = sqlx::query(
                "select convert(column_name using utf8mb4) as name,
                    convert(column_type using utf8mb4) as kind,
                    cast(is_nullable = 'YES' as signed) as is_nullable,
                    cast(coalesce(column_default, 'NULL') <> 'NULL' as signed) as has_default,
                    cast(extra like '%auto_increment%' as signed) as is_numbered
                from information_schema.columns
                where table_schema = database() and table_name = ?",
            )
            .bind(name)
            .fetch_all(&mut *connection)
            .await?;
            if columns.is_empty() {
                continue;
            }
            let mut table = Table::default();
            for row in columns {
                let is = |name| row.try_get::<i64, _>(name).map(|flag| flag == 1);
                let filler = match (is("is_numbered")?, is("has_default")?) {
                    (true, _) => Filler::Number,
                    (false, true) => Filler::Default,
                    (false, false) => Filler::Nothing,
                };
                let column = Column {
                    kind: djangos_kind(row.try_get("kind")?),
                    is_nullable: is("is_nullable")?,
                    filler,
                };
                table.columns.insert(row.try_get("name")?, column);
            }
            let parts = sqlx::query(
                "select convert(index_name using utf8mb4) as name,
                    cast(non_unique = 0 as signed) as is_unique,
                    convert(column_name using utf8mb4) as column_name
                from information_schema.statistics
                where table_schema = database() and table_name = ? and index_name <> 'PRIMARY'
                order by index_name, seq_in_index",
            )
            .bind(name)
            .fetch_all(&mut *connection)
            .await?;
            let mut indexes: Vec<(String, bool, Vec<String>)> = Vec::new();
            for row in parts {
                let name: String = row.try_get("name")?;
                let column = row.try_get::<Option<String>, _>("column_name")?.unwrap_or_default();
                if let Some((.., columns)) = indexes.last_mut().filter(|(last, ..)| *last == name) {
                    columns.push(column);
                } else {
                    let is_unique = row.try_get::<i64, _>("is_unique")? == 1;
                    indexes.push((name, is_unique, vec![column]));
                }
            }
            for (name, is_unique, columns) in indexes {
                table.insert_index(name, is_unique, columns);
            }
            tables.insert(name, table);
        }
        let has_records = "select count(*) from information_schema.tables
            where table_schema = database() and table_name = 'django_migrations'";
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
        Ok(State { recorded, tables, attached: Vec::new() })
    }

    fn now(&self) -> String {
        self.naive(Utc::now())
    }

    fn missing_right(error: &dyn DatabaseError, statement: &str) -> Option<&'static str> {
        let number = error.try_downcast_ref::<MySqlDatabaseError>()?.number();
        let (create, alter, index) = ("the right CREATE", "the right ALTER", "the right INDEX");
        matches!(number, 1044 | 1142 | 1227).then(|| right_for(statement, create, alter, index))
    }
}

/// A type as Django writes it. MariaDB, and MySQL up to 8.0.18, show the width of integers.
fn djangos_kind(kind: String) -> String {
    if kind == "tinyint(1)" {
        return "bool".to_owned();
    }
    match kind.strip_prefix("int") {
        Some(rest) => {
            let rest =
                rest.trim_start_matches(|c: char| c == '(' || c == ')' || c.is_ascii_digit());
            format!("integer{rest}")
        }
        None => kind,
    }
}
