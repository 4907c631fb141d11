//! The SQL of a cleanup on MySQL and MariaDB.

use chrono::{DateTime, NaiveDateTime, Utc};
use sqlx::AssertSqlSafe;
use sqlx::mysql::MySqlConnection;

use crate::store::cleanup::{Candidate, CleanupDialect, Range, candidates};
use crate::store::mysql::MysqlDatabase;

impl CleanupDialect for MysqlDatabase {
    /// A text in a format that sorts in the order of time.
    type Time = String;

    /// READ COMMITTED, which Django sets too, has no gap locks, which would block inserts. The time
    /// limits for a statement and for an idle transaction exist only on MariaDB.
    const SESSION: &[&str] = &[
        "set session transaction isolation level read committed",
        "set innodb_lock_wait_timeout = 1, lock_wait_timeout = 1
            /*M!100300 , idle_transaction_timeout = 10, max_statement_time = 60 */",
    ];

    const COLUMNS: &str = "id as number, date_format(date_done, '%Y-%m-%d %H:%i:%s.%f') as done";

    const AFTER_TIME: &str = "?";
    const AFTER_ID: &str = "?";
    const BEFORE: &str = "?";

    const BEGIN: &str = "start transaction";

    const LOCKING: &str = "for update skip locked";

    const LOCKS_BY_KEY: bool = true;

    fn time(&self, time: DateTime<Utc>) -> String {
        self.naive(time)
    }

    fn beginning() -> String {
        "0001-01-01 00:00:00.000000".to_owned()
    }

    async fn now(connection: &mut MySqlConnection) -> Result<DateTime<Utc>, sqlx::Error> {
        let now: NaiveDateTime =
            sqlx::query_scalar("select utc_timestamp(6)").fetch_one(connection).await?;
        Ok(now.and_utc())
    }

    /// Named locks belong to the whole server, so the name contains a hash of the database's name.
    /// It may have at most 64 characters.
    async fn try_lock(connection: &mut MySqlConnection) -> Result<bool, sqlx::Error> {
        let got: Option<i64> = sqlx::query_scalar(
            "select cast(get_lock(concat('celeriac.cleanup.', md5(database())), 0) as signed)",
        )
        .fetch_one(connection)
        .await?;
        Ok(got == Some(1))
    }

    async fn read(
        connection: &mut MySqlConnection,
        query: String,
        range: Option<Range<'_, String>>,
    ) -> Result<Vec<Candidate<String>>, sqlx::Error> {
        // A statement without parameters contains literal ids and is never used again.
        let query = sqlx::query(AssertSqlSafe(query)).persistent(range.is_some());
        let query = match range {
            Some(Range { after: (time, id), before }) => {
                query.bind(time).bind(time).bind(id).bind(before)
            }
            None => query,
        };
        candidates(&query.fetch_all(connection).await?)
    }

    async fn count(
        connection: &mut MySqlConnection,
        query: String,
        range: Range<'_, String>,
    ) -> Result<i64, sqlx::Error> {
        let Range { after: (time, id), before } = range;
        let query = sqlx::query_scalar(AssertSqlSafe(query)).persistent(false);
        query.bind(time).bind(time).bind(id).bind(before).fetch_one(connection).await
    }
}
