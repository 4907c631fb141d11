//! The SQL of a cleanup on SQLite. There is only one writer at a time, so rows need not be locked.

use chrono::{DateTime, Utc};
use sqlx::AssertSqlSafe;
use sqlx::sqlite::SqliteConnection;

use crate::store::cleanup::{Candidate, CleanupDialect, Range, candidates};
use crate::store::sqlite::SqliteDatabase;

impl CleanupDialect for SqliteDatabase {
    /// The text in the column, which Django compares as text, too.
    type Time = String;

    const SESSION: &[&str] = &[];

    const COLUMNS: &str = "id as number, cast(date_done as text) as done";

    const AFTER_TIME: &str = "?1";
    const AFTER_ID: &str = "?2";
    const BEFORE: &str = "?3";

    const BEGIN: &str = "begin immediate";

    const LOCKING: &str = "";

    fn time(&self, time: DateTime<Utc>) -> String {
        self.naive(time)
    }

    fn beginning() -> String {
        String::new()
    }

    /// The time by this machine's clock, because SQLite has no other.
    async fn now(_connection: &mut SqliteConnection) -> Result<DateTime<Utc>, sqlx::Error> {
        Ok(Utc::now())
    }

    async fn try_lock(_connection: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
        Ok(true)
    }

    async fn read(
        connection: &mut SqliteConnection,
        query: String,
        range: Option<Range<'_, String>>,
    ) -> Result<Vec<Candidate<String>>, sqlx::Error> {
        // A statement without parameters contains literal ids and is never used again.
        let query = sqlx::query(AssertSqlSafe(query)).persistent(range.is_some());
        let query = match range {
            Some(Range { after: (time, id), before }) => query.bind(time).bind(id).bind(before),
            None => query,
        };
        candidates(&query.fetch_all(connection).await?)
    }

    async fn count(
        connection: &mut SqliteConnection,
        query: String,
        range: Range<'_, String>,
    ) -> Result<i64, sqlx::Error> {
        let Range { after: (time, id), before } = range;
        let query = sqlx::query_scalar(AssertSqlSafe(query)).persistent(false);
        query.bind(time).bind(id).bind(before).fetch_one(connection).await
    }
}
