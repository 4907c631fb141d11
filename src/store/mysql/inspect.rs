//! The inspection of MySQL and MariaDB.

use chrono_tz::Tz;
use sqlx::SqlStr;

use crate::diagnosis::finding::{Finding, Subject};
use crate::store::TASKS;
use crate::store::inspect::zone;
use crate::store::session::Session;
use crate::store::value::{Param, first_integer, first_text};

/// The first versions that support `skip locked`.
const OLDEST_MARIADB: (u32, u32, u32) = (10, 6, 0);
const OLDEST_MYSQL: (u32, u32, u32) = (8, 0, 4);

pub(super) async fn version(
    session: &mut dyn Session,
) -> Result<(String, Option<String>), sqlx::Error> {
    const VERSION: SqlStr = SqlStr::from_static("select convert(version() using utf8mb4)");
    let version = first_text(session.fetch(VERSION, Vec::new()).await?).unwrap_or_default();
    let is_mariadb = version.contains("MariaDB");
    let (product, oldest) =
        if is_mariadb { ("MariaDB", OLDEST_MARIADB) } else { ("MySQL", OLDEST_MYSQL) };
    let (major, minor, patch) = oldest;
    let lacks = (numbers(&version) < oldest).then(|| {
        format!("{product} {major}.{minor}.{patch} or later is needed: upgrade the server")
    });
    let version = version.split('-').next().unwrap_or_default();
    Ok((format!("{product} {version}"), lacks))
}

pub(super) async fn particulars(
    session: &mut dyn Session,
    time_zone: Tz,
) -> Result<Vec<Finding>, sqlx::Error> {
    const COLUMNS: SqlStr = SqlStr::from_static(
        "select convert(column_name using utf8mb4), convert(column_type using utf8mb4),
            convert(character_set_name using utf8mb4), convert(collation_name using utf8mb4)
        from information_schema.columns
        where table_schema = database() and table_name = ? and collation_name is not null",
    );
    const FLUSH: SqlStr =
        SqlStr::from_static("select cast(@@innodb_flush_log_at_trx_commit as signed)");
    const NEWEST: SqlStr =
        SqlStr::from_static("select max(date_done) from django_celery_results_taskresult");
    let mut findings = Vec::new();
    let mut narrow = Vec::new();
    for mut column in session.fetch(COLUMNS, vec![Param::Text(Some(TASKS))]).await? {
        let mut text = || column.text().unwrap_or_default();
        let (name, kind, charset, collation) = (text(), text(), text(), text());
        if name == "task_id" && collation.contains("_ci") {
            let text = format!(
                "the column task_id has the collation {collation}, which ignores case: ids that \
                 differ only in case share one row. Celery's own ids never do"
            );
            findings.push(Finding::warning(Subject::Database, text).fix(format!(
                "for ids of your own: `alter table {TASKS} modify task_id {kind} character set \
                 utf8mb4 collate utf8mb4_bin not null`"
            )));
        }
        if charset != "utf8mb4" {
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
    let flush = first_integer(session.fetch(FLUSH, Vec::new()).await?).unwrap_or(1);
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
    let newest = session.fetch(NEWEST, Vec::new()).await?.into_iter().next();
    findings.push(zone(newest.and_then(|mut record| record.time()), time_zone));
    Ok(findings)
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
