//! The inspection of PostgreSQL.

use sqlx::SqlStr;

use crate::diagnosis::finding::{Finding, Subject};
use crate::store::session::Session;
use crate::store::value::{first_integer, first_text};

/// The first version that is tested, in the format of `server_version_num`.
const OLDEST: i64 = 120_000;

pub(super) async fn version(
    session: &mut dyn Session,
) -> Result<(String, Option<String>), sqlx::Error> {
    const VERSION: SqlStr = SqlStr::from_static("select current_setting('server_version')");
    const NUMBER: SqlStr =
        SqlStr::from_static("select current_setting('server_version_num')::bigint");
    let version = first_text(session.fetch(VERSION, Vec::new()).await?).unwrap_or_default();
    let version = version.split_whitespace().next().unwrap_or_default();
    let number = first_integer(session.fetch(NUMBER, Vec::new()).await?).unwrap_or_default();
    let lacks = (number < OLDEST)
        .then(|| "PostgreSQL 12 or later is needed: upgrade the server".to_owned());
    Ok((format!("PostgreSQL {version}"), lacks))
}

pub(super) async fn particulars(session: &mut dyn Session) -> Result<Vec<Finding>, sqlx::Error> {
    const SETTINGS: SqlStr = SqlStr::from_static(
        "select current_setting('server_encoding'), current_setting('synchronous_commit'),
            current_setting('fsync'), pg_is_in_recovery()",
    );
    let mut findings = Vec::new();
    let Some(mut settings) = session.fetch(SETTINGS, Vec::new()).await?.into_iter().next() else {
        return Ok(findings);
    };
    let encoding = settings.text().unwrap_or_default();
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
    for name in ["synchronous_commit", "fsync"] {
        if settings.text().as_deref() == Some("off") {
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
    if settings.integer() == Some(1) {
        findings.push(
            Finding::error(Subject::Database, "the server is a standby and takes no writes")
                .fix("--database: name the primary"),
        );
    }
    Ok(findings)
}
