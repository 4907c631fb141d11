//! The SQL of a cleanup on PostgreSQL.

use chrono::{DateTime, NaiveDate, NaiveTime, Utc};
use sqlx::AssertSqlSafe;
use sqlx::postgres::PgConnection;

use crate::store::cleanup::{Candidate, CleanupDialect, Range, candidates};
use crate::store::postgres::PostgresDatabase;

/// The number of the advisory lock: `celeriad` in ASCII, one more than that of `celeriac migrate`.
const LOCK: i64 = 0x6365_6c65_7269_6164;

impl CleanupDialect for PostgresDatabase {
    type Time = DateTime<Utc>;

    /// The last one releases the locks of a process that is stopped between two statements.
    const SESSION: &[&str] = &[
        "set session characteristics as transaction isolation level read committed",
        "set lock_timeout = '1s'",
        "set idle_in_transaction_session_timeout = '10s'",
    ];

    const COLUMNS: &str = "id::bigint as number, date_done as done";

    const AFTER_TIME: &str = "$1";
    const AFTER_ID: &str = "$2";
    const BEFORE: &str = "$3";

    const BEGIN: &str = "begin";

    const LOCKING: &str = "for update skip locked";

    fn time(&self, time: DateTime<Utc>) -> DateTime<Utc> {
        time
    }

    fn beginning() -> DateTime<Utc> {
        NaiveDate::from_ymd_opt(1, 1, 1)
            .unwrap_or(NaiveDate::MIN)
            .and_time(NaiveTime::MIN)
            .and_utc()
    }

    async fn now(connection: &mut PgConnection) -> Result<DateTime<Utc>, sqlx::Error> {
        sqlx::query_scalar("select clock_timestamp()").fetch_one(connection).await
    }

    async fn try_lock(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
        sqlx::query_scalar("select pg_try_advisory_lock($1)").bind(LOCK).fetch_one(connection).await
    }

    async fn read(
        connection: &mut PgConnection,
        query: String,
        range: Option<Range<'_, DateTime<Utc>>>,
    ) -> Result<Vec<Candidate<DateTime<Utc>>>, sqlx::Error> {
        // A statement without parameters contains literal ids and is never used again.
        let query = sqlx::query(AssertSqlSafe(query)).persistent(range.is_some());
        let query = match range {
            Some(Range { after: (time, id), before }) => query.bind(time).bind(id).bind(before),
            None => query,
        };
        candidates(&query.fetch_all(connection).await?)
    }

    async fn count(
        connection: &mut PgConnection,
        query: String,
        range: Range<'_, DateTime<Utc>>,
    ) -> Result<i64, sqlx::Error> {
        let Range { after: (time, id), before } = range;
        let query = sqlx::query_scalar(AssertSqlSafe(query)).persistent(false);
        query.bind(time).bind(id).bind(before).fetch_one(connection).await
    }
}
