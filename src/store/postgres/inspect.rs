//! The inspection of PostgreSQL.

use std::sync::Arc;

use sqlx::postgres::PgConnection;
use sqlx::{Connection, Row};

use crate::diagnosis::finding::{Finding, Subject};
use crate::row::task_result::TaskResult;
use crate::store::inspect::{Inspect, Server};
use crate::store::postgres::PostgresDatabase;
use crate::store::session::SqlDatabase;

/// The first version that supports `materialized`, in the format of `server_version_num`.
const OLDEST: i32 = 120_000;

impl Inspect for PostgresDatabase {
    async fn server(connection: &mut PgConnection) -> Result<Server, sqlx::Error> {
        let row = sqlx::query(
            "select current_setting('server_version') as version,
                current_setting('server_version_num')::int4 as number,
                clock_timestamp() as now",
        )
        .fetch_one(connection)
        .await?;
        let version: String = row.try_get("version")?;
        let version = version.split_whitespace().next().unwrap_or_default();
        let is_old = row.try_get::<i32, _>("number")? < OLDEST;
        Ok(Server {
            name: format!("PostgreSQL {version}"),
            lacks: is_old
                .then(|| "PostgreSQL 12 or later is needed: upgrade the server".to_owned()),
            now: Some(row.try_get("now")?),
        })
    }

    async fn particulars(
        &self,
        connection: &mut PgConnection,
    ) -> Result<Vec<Finding>, sqlx::Error> {
        let row = sqlx::query(
            "select current_setting('server_encoding') as encoding,
                current_setting('synchronous_commit') as commit,
                current_setting('fsync') as fsync,
                pg_is_in_recovery() as is_standby",
        )
        .fetch_one(connection)
        .await?;
        let mut findings = Vec::new();
        let encoding: String = row.try_get("encoding")?;
        if encoding != "UTF8" {
            let text = format!(
                "the database's encoding is {encoding}: results with other characters become dead \
                 letters"
            );
            findings.push(
                Finding::warning(Subject::Database, text)
                    .fix("restore a dump of it into a database with `encoding 'UTF8'`"),
            );
        }
        for setting in ["commit", "fsync"] {
            if row.try_get::<String, _>(setting)? == "off" {
                let name = if setting == "commit" { "synchronous_commit" } else { setting };
                let text = format!(
                    "{name} is off: if the server crashes, it can lose rows whose messages have been \
                     acknowledged"
                );
                findings.push(
                    Finding::warning(Subject::Database, text)
                        .fix(format!("set {name} to on, for this user or for the server")),
                );
            }
        }
        if row.try_get("is_standby")? {
            findings.push(
                Finding::error(Subject::Database, "the server is a standby and takes no writes")
                    .fix("--database: name the primary"),
            );
        }
        Ok(findings)
    }

    async fn can_undo(_connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
        Ok(true)
    }

    async fn rehearse(
        &self,
        connection: &mut PgConnection,
        statement: &Arc<str>,
        rows: &[&TaskResult],
        delete: bool,
    ) -> Result<(), sqlx::Error> {
        let mut transaction = connection.begin().await?;
        for _ in 0..2 {
            self.upsert_tasks(&mut transaction, statement, rows).await?;
        }
        for row in rows.iter().filter(|_| delete) {
            sqlx::query("delete from django_celery_results_taskresult where task_id = $1")
                .bind(row.task_id.as_str())
                .execute(&mut *transaction)
                .await?;
        }
        transaction.rollback().await
    }
}
