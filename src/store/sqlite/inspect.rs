//! The inspection of SQLite.

use std::sync::Arc;

use chrono::{DateTime, NaiveDateTime, TimeZone, Utc};
use sqlx::Connection;
use sqlx::sqlite::SqliteConnection;

use crate::diagnosis::finding::{Finding, Subject};
use crate::row::task_result::TaskResult;
use crate::store::inspect::{Inspect, Server, zone};
use crate::store::sqlite::SqliteDatabase;

impl Inspect for SqliteDatabase {
    async fn server(connection: &mut SqliteConnection) -> Result<Server, sqlx::Error> {
        let version: String =
            sqlx::query_scalar("select sqlite_version()").fetch_one(connection).await?;
        Ok(Server { name: format!("SQLite {version}"), lacks: None, now: None })
    }

    async fn particulars(
        &self,
        connection: &mut SqliteConnection,
    ) -> Result<Vec<Finding>, sqlx::Error> {
        let mode: String =
            sqlx::query_scalar("pragma journal_mode").fetch_one(&mut *connection).await?;
        let text = if mode == "wal" {
            "the file is in WAL mode".to_owned()
        } else {
            format!("the file is in {mode} mode, and `celeriac run` switches it to WAL mode")
        };
        let newest: Option<String> = sqlx::query_scalar(
            "select cast(max(date_done) as text) from django_celery_results_taskresult",
        )
        .fetch_one(&mut *connection)
        .await?;
        let newest = newest.and_then(|time| self.utc(&time));
        Ok(vec![Finding::ok(Subject::Database, text), zone(newest, self.time_zone)])
    }

    async fn can_undo(_connection: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
        Ok(true)
    }

    async fn rehearse(
        &self,
        connection: &mut SqliteConnection,
        statement: &Arc<str>,
        rows: &[&TaskResult],
        delete: bool,
    ) -> Result<(), sqlx::Error> {
        let mut transaction = connection.begin_with("begin immediate").await?;
        for _ in 0..2 {
            self.upsert_tasks_within(&mut transaction, statement, rows).await?;
        }
        for row in rows.iter().filter(|_| delete) {
            sqlx::query("delete from django_celery_results_taskresult where task_id = ?")
                .bind(row.task_id.as_str())
                .execute(&mut *transaction)
                .await?;
        }
        transaction.rollback().await
    }
}

impl SqliteDatabase {
    /// Converts a time that Django has written. If it occurs twice because clocks were set back,
    /// the earlier one is used.
    fn utc(&self, time: &str) -> Option<DateTime<Utc>> {
        let time = NaiveDateTime::parse_from_str(time, "%Y-%m-%d %H:%M:%S%.f").ok()?;
        Some(self.time_zone.from_local_datetime(&time).earliest()?.to_utc())
    }
}
