//! The inspection of SQLite.

use chrono_tz::Tz;
use sqlx::SqlStr;

use crate::diagnosis::finding::{Finding, Subject};
use crate::store::inspect::zone;
use crate::store::session::Session;
use crate::store::value::first_text;

pub(super) async fn version(
    session: &mut dyn Session,
) -> Result<(String, Option<String>), sqlx::Error> {
    const VERSION: SqlStr = SqlStr::from_static("select sqlite_version()");
    let version = first_text(session.fetch(VERSION, Vec::new()).await?).unwrap_or_default();
    Ok((format!("SQLite {version}"), None))
}

pub(super) async fn particulars(
    session: &mut dyn Session,
    time_zone: Tz,
) -> Result<Vec<Finding>, sqlx::Error> {
    const MODE: SqlStr = SqlStr::from_static("pragma journal_mode");
    const NEWEST: SqlStr = SqlStr::from_static(
        "select date_done from django_celery_results_taskresult order by date_done desc limit 1",
    );
    let mode = first_text(session.fetch(MODE, Vec::new()).await?).unwrap_or_default();
    let text = if mode == "wal" {
        "the file is in WAL mode".to_owned()
    } else {
        format!("the file is in {mode} mode, and `celeriac run` switches it to WAL mode")
    };
    let newest = session.fetch(NEWEST, Vec::new()).await?.into_iter().next();
    let newest = newest.and_then(|mut record| record.time());
    Ok(vec![Finding::ok(Subject::Database, text), zone(newest, time_zone)])
}
