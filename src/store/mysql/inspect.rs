//! The inspection of MySQL and MariaDB.

use std::sync::Arc;

use chrono::{DateTime, NaiveDateTime, TimeZone, Utc};
use sqlx::mysql::MySqlConnection;
use sqlx::{Connection, Row};

use crate::diagnosis::finding::{Finding, Subject};
use crate::row::task_result::TaskResult;
use crate::store::TASKS;
use crate::store::inspect::{Inspect, Server, zone};
use crate::store::mysql::MysqlDatabase;
use crate::store::session::SqlDatabase;

/// The first versions that support `json_table`.
const OLDEST_MARIADB: (u32, u32, u32) = (10, 6, 0);
const OLDEST_MYSQL: (u32, u32, u32) = (8, 0, 4);

impl Inspect for MysqlDatabase {
    async fn server(connection: &mut MySqlConnection) -> Result<Server, sqlx::Error> {
        let row = sqlx::query("select version() as version, utc_timestamp(6) as now")
            .fetch_one(connection)
            .await?;
        let version: String = row.try_get("version")?;
        let now: NaiveDateTime = row.try_get("now")?;
        let is_mariadb = version.contains("MariaDB");
        let (product, oldest) =
            if is_mariadb { ("MariaDB", OLDEST_MARIADB) } else { ("MySQL", OLDEST_MYSQL) };
        let (major, minor, patch) = oldest;
        let is_old = numbers(&version) < oldest;
        Ok(Server {
            name: format!("{product} {}", version.split('-').next().unwrap_or_default()),
            lacks: is_old.then(|| {
                format!("{product} {major}.{minor}.{patch} or later is needed: upgrade the server")
            }),
            now: Some(now.and_utc()),
        })
    }

    async fn particulars(
        &self,
        connection: &mut MySqlConnection,
    ) -> Result<Vec<Finding>, sqlx::Error> {
        let mut findings = Vec::new();
        let columns = sqlx::query(
            "select convert(column_name using utf8mb4) as name,
                convert(column_type using utf8mb4) as kind,
                convert(character_set_name using utf8mb4) as charset,
                convert(collation_name using utf8mb4) as collation
            from information_schema.columns
            where table_schema = database() and table_name = ? and collation_name is not null",
        )
        .bind(TASKS)
        .fetch_all(&mut *connection)
        .await?;
        let mut narrow = Vec::new();
        for column in columns {
            let name: String = column.try_get("name")?;
            let collation: String = column.try_get("collation")?;
            if name == "task_id" && collation.contains("_ci") {
                let kind: String = column.try_get("kind")?;
                let text = format!(
                    "the column task_id has the collation {collation}, which ignores case: ids that \
                     differ only in case share one row. Celery's own ids never do"
                );
                findings.push(Finding::warning(Subject::Database, text).fix(format!(
                    "for ids of your own: `alter table {TASKS} modify task_id {kind} character set \
                     utf8mb4 collate utf8mb4_bin not null`"
                )));
            }
            if column.try_get::<String, _>("charset")? != "utf8mb4" {
                narrow.push(name);
            }
        }
        if !narrow.is_empty() {
            let text = format!(
                "the character set of {} is not utf8mb4: results with other characters, such as \
                 emoji, become dead letters",
                narrow.join(", ")
            );
            findings.push(
                Finding::warning(Subject::Database, text)
                    .fix(format!("`alter table {TASKS} convert to character set utf8mb4`")),
            );
        }
        let flush: i64 =
            sqlx::query_scalar("select cast(@@innodb_flush_log_at_trx_commit as signed)")
                .fetch_one(&mut *connection)
                .await?;
        if flush != 1 {
            let text = format!(
                "innodb_flush_log_at_trx_commit is {flush}: if the server crashes, it can lose rows \
                 whose messages have been acknowledged"
            );
            findings.push(
                Finding::warning(Subject::Database, text)
                    .fix("set innodb_flush_log_at_trx_commit to 1"),
            );
        }
        let newest: Option<NaiveDateTime> =
            sqlx::query_scalar("select max(date_done) from django_celery_results_taskresult")
                .fetch_one(&mut *connection)
                .await?;
        findings.push(zone(newest.and_then(|time| self.utc(time)), self.time_zone));
        Ok(findings)
    }

    async fn can_undo(connection: &mut MySqlConnection) -> Result<bool, sqlx::Error> {
        let transactions: Option<String> = sqlx::query_scalar(
            "select convert(transactions using utf8mb4)
            from information_schema.tables join information_schema.engines using (engine)
            where table_schema = database() and table_name = ?",
        )
        .bind(TASKS)
        .fetch_one(connection)
        .await?;
        Ok(transactions.as_deref() == Some("YES"))
    }

    async fn rehearse(
        &self,
        connection: &mut MySqlConnection,
        statement: &Arc<str>,
        rows: &[&TaskResult],
        delete: bool,
    ) -> Result<(), sqlx::Error> {
        let mut transaction = connection.begin().await?;
        for _ in 0..2 {
            self.upsert_tasks(&mut transaction, statement, rows).await?;
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

impl MysqlDatabase {
    /// Converts a time that Django has written. If it occurs twice because clocks were set back,
    /// the earlier one is used.
    fn utc(&self, time: NaiveDateTime) -> Option<DateTime<Utc>> {
        Some(self.time_zone.from_local_datetime(&time).earliest()?.to_utc())
    }
}

/// The three numbers at the beginning of a version.
fn numbers(version: &str) -> (u32, u32, u32) {
    let mut numbers = version.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().ok());
    let mut next = || numbers.next().flatten().unwrap_or_default();
    (next(), next(), next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        assert_eq!(numbers("10.11.19-MariaDB-deb12"), (10, 11, 19));
        assert_eq!(numbers("8.0.4-rc"), (8, 0, 4));
        assert!(numbers("10.11.2-MariaDB") > OLDEST_MARIADB);
        assert!(numbers("10.5.28-MariaDB") < OLDEST_MARIADB);
        assert!(numbers("5.7.44-log") < OLDEST_MYSQL);
        assert!(numbers("9.1") > OLDEST_MYSQL);
    }
}
