//! SQLite. The rows of a statement are lists of values.

mod inspect;
mod session;
mod sql;

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use sqlx::error::DatabaseError;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, SqlStr};

use self::session::{SqliteSession, written};
use super::dialect::{Dialect, Place, Purpose, Sql};
use super::session::Session;
use super::value::Param;
use super::{Column, ErrorClass};
use crate::diagnosis::finding::Finding;

/// How long a migration waits for other writers, which need moments.
const MIGRATION_WAIT: Duration = Duration::from_mins(1);

/// A database in a file.
#[derive(Debug)]
pub(super) struct Sqlite {
    /// The options for writing rows.
    options: SqliteConnectOptions,
    time_zone: Tz,
    place: Place,
}

impl Sqlite {
    /// `time_zone` is the one in which Django stores times: UTC with `USE_TZ`, and `TIME_ZONE`
    /// otherwise.
    pub(super) fn new(path: &Path, time_zone: Tz) -> Self {
        // In WAL mode, readers and the writer do not wait for each other. Messages are acknowledged
        // after the commit, so every commit must survive a power cut and is synced. The cache, here
        // of 32 MiB, saves most reads of the indexes of a large table.
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(false)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .pragma("cache_size", "-32768")
            .busy_timeout(Duration::from_secs(5))
            .disable_statement_logging();
        Self { options, time_zone, place: Place::of_file(path) }
    }

    /// Opens the file to write rows.
    async fn open(&self) -> Result<sqlx::SqliteConnection, sqlx::Error> {
        let path = self.options.get_filename();
        if !path.exists() {
            let problem = format!(
                "there is no file {}: check the path, or make the database with \
                 `python manage.py migrate django_celery_results` or `celeriac migrate`",
                path.display()
            );
            return Err(sqlx::Error::Configuration(problem.into()));
        }
        self.options.connect().await
    }

    /// Opens the file without changing its journal mode.
    async fn open_as_it_is(&self, create: bool) -> Result<sqlx::SqliteConnection, sqlx::Error> {
        let path = self.options.get_filename();
        SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(create)
            .busy_timeout(MIGRATION_WAIT)
            .disable_statement_logging()
            .connect()
            .await
            .map_err(|error| {
                let problem = format!(
                    "cannot open {} ({error}): its folder has to be there, and this user has to be \
                     allowed to write there",
                    path.display()
                );
                sqlx::Error::Configuration(problem.into())
            })
    }
}

#[async_trait]
impl Dialect for Sqlite {
    async fn connect(&self, purpose: Purpose) -> Result<Option<Box<dyn Session>>, sqlx::Error> {
        let connection = match purpose {
            Purpose::Write => self.open().await?,
            Purpose::Inspect if !self.options.get_filename().exists() => return Ok(None),
            Purpose::Inspect => self.open_as_it_is(false).await?,
            Purpose::Migrate => self.open_as_it_is(true).await?,
        };
        Ok(Some(Box::new(SqliteSession::new(connection, self.time_zone))))
    }

    /// SQLite does not enforce the lengths of columns, so none is given. It numbers the rows of a
    /// table whose primary key is an integer.
    async fn columns(
        &self,
        session: &mut dyn Session,
        table: &str,
    ) -> Result<Vec<Column>, sqlx::Error> {
        const COLUMNS: SqlStr = SqlStr::from_static(
            r#"select name, null, "notnull" = 1 and dflt_value is null
                and not (pk > 0 and lower(type) = 'integer')
            from pragma_table_info(?)"#,
        );
        let records = session.fetch(COLUMNS, vec![Param::Text(Some(table))]).await?;
        Ok(records.into_iter().map(Column::from_record).collect())
    }

    fn sql(&self) -> &'static Sql {
        &sql::SQL
    }

    fn zone(&self) -> Tz {
        self.time_zone
    }

    fn written(&self, time: DateTime<Utc>) -> String {
        written(time, self.time_zone)
    }

    /// By primary result code: <https://www.sqlite.org/rescode.html>.
    fn classify(&self, error: &dyn DatabaseError) -> ErrorClass {
        let code: u32 = error.code().and_then(|code| code.parse().ok()).unwrap_or_default();
        match code & 0xFF {
            // A required column that was added after the catalog was read.
            _ if code == 1299 => ErrorClass::Setup,
            // BUSY, LOCKED
            5 | 6 => ErrorClass::Conflict,
            // TOOBIG, CONSTRAINT, MISMATCH
            18..=20 => ErrorClass::Poison,
            // ERROR (no such table or column), PERM, READONLY, CORRUPT, CANTOPEN, AUTH, NOTADB
            1 | 3 | 8 | 11 | 14 | 23 | 26 => ErrorClass::Setup,
            // IOERR, FULL, NOMEM and the rest
            _ => ErrorClass::Outage,
        }
    }

    fn advice(&self, error: &dyn DatabaseError) -> Option<&'static str> {
        let code: u32 = error.code().and_then(|code| code.parse().ok()).unwrap_or_default();
        Some(match code & 0xFF {
            3 | 8 | 14 | 23 => {
                "give the user who runs Celeriac write access to the file and to its folder, where \
                 SQLite creates more files"
            }
            10 => "make room on its disk, and check the disk for errors",
            13 => {
                "make room on its disk; if there is room, the numbers of the column `id` are used \
                 up, as docs/operating.md explains"
            }
            11 => "the file is damaged: put a backup in its place",
            26 => "write the path of Django's database into the database URL",
            _ => return None,
        })
    }

    /// A file or its folder that may not be written.
    fn missing_right(&self, error: &dyn DatabaseError, _statement: &str) -> Option<&'static str> {
        let code: u32 = error.code().unwrap_or_default().parse().unwrap_or_default();
        (code & 0xFF == 8).then_some("to be allowed to write the file and its folder")
    }

    async fn version(
        &self,
        session: &mut dyn Session,
    ) -> Result<(String, Option<String>), sqlx::Error> {
        inspect::version(session).await
    }

    async fn particulars(&self, session: &mut dyn Session) -> Result<Vec<Finding>, sqlx::Error> {
        inspect::particulars(session, self.time_zone).await
    }

    fn place(&self) -> &Place {
        &self.place
    }
}
