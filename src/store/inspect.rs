//! Looking at a database for `celeriac check`: the server, the tables, their migrations, and a write
//! that is undone. Nothing is changed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::Connection;

use super::migrate::{self, Migrate, Standing};
use super::session::patiently;
use super::{Catalog, Column, ErrorClass, GROUPS, StoreError, TASKS};
use crate::diagnosis::finding::{Finding, Severity, Subject};
use crate::row::Row;
use crate::row::task_result::TaskResult;

/// How far clocks may be apart before somebody should know.
const CLOCK_TOLERANCE: TimeDelta = TimeDelta::seconds(1);

/// A row from further in the future than this was written in another time zone.
const ZONE_TOLERANCE: TimeDelta = TimeDelta::minutes(10);

/// What completes the tables.
const MIGRATE: &str = "`python manage.py migrate django_celery_results`";

/// What a database says of itself.
pub(super) struct Server {
    /// Its product and version.
    pub(super) name: String,
    /// What its version lacks.
    pub(super) lacks: Option<String>,
    /// Its clock, where it is not ours.
    pub(super) now: Option<DateTime<Utc>>,
}

/// What one database does in its own way.
pub(super) trait Inspect: Migrate {
    /// Asks the server who it is.
    async fn server(connection: &mut Self::Connection) -> Result<Server, sqlx::Error>;

    /// What is particular to the database, and to be known of its tables, which are there.
    async fn particulars(
        &self,
        connection: &mut Self::Connection,
    ) -> Result<Vec<Finding>, sqlx::Error>;

    /// Whether a write can be undone. Where it cannot, none is tried.
    async fn can_undo(connection: &mut Self::Connection) -> Result<bool, sqlx::Error>;

    /// Writes rows twice, as new ones and as ones that are there, deletes them where that is asked
    /// for, and undoes it.
    async fn rehearse(
        &self,
        connection: &mut Self::Connection,
        statement: &Arc<str>,
        rows: &[&TaskResult],
        delete: bool,
    ) -> Result<(), sqlx::Error>;
}

/// A connection that leaves a database as it is; one that writes would turn SQLite's to WAL mode.
async fn look<D: Inspect>(database: &D) -> Result<D::Connection, StoreError> {
    match patiently::<D, _>(database.open(true)).await? {
        Some(connection) => Ok(connection),
        // Says what is not there.
        None => patiently::<D, _>(database.connect()).await,
    }
}

/// Reports what there is to know. Says whether rows can be written as far as that shows.
pub(super) async fn inspect<D: Inspect>(database: &D, report: &mut dyn FnMut(Finding)) -> bool {
    match inspected(database, report).await {
        Ok(is_usable) => is_usable,
        Err(error) => {
            report(Finding::error(Subject::Database, error.message));
            false
        }
    }
}

async fn inspected<D: Inspect>(
    database: &D,
    report: &mut dyn FnMut(Finding),
) -> Result<bool, StoreError> {
    let began = Instant::now();
    let mut connection = look(database).await?;
    let milliseconds = began.elapsed().as_millis();
    let asked_at = Utc::now();
    let server = patiently::<D, _>(D::server(&mut connection)).await?;
    let answered_at = Utc::now();
    report(Finding::ok(
        Subject::Database,
        format!("{}, connected in {milliseconds} ms", server.name),
    ));
    if let Some(lacks) = server.lacks {
        report(Finding::error(Subject::Database, lacks));
        return Ok(false);
    }
    if let Some(now) = server.now {
        report(clocks(now, asked_at, answered_at));
    }
    let tasks = patiently::<D, _>(database.columns(&mut connection, TASKS)).await?;
    let groups = patiently::<D, _>(database.columns(&mut connection, GROUPS)).await?;
    let catalog = Catalog::new(&tasks, &groups, D::ALLOWS_NUL)?;
    report(table(&tasks, &catalog));
    if let Some(problem) = catalog.groups_problem() {
        report(
            Finding::warning(Subject::Database, format!("{problem}: groups become dead letters"))
                .fix(MIGRATE),
        );
    }
    report(standing(migrate::standing(database, &mut connection).await));
    for finding in patiently::<D, _>(database.particulars(&mut connection)).await? {
        report(finding);
    }
    Ok(true)
}

/// What the table of tasks is like.
fn table(columns: &[Column], catalog: &Catalog) -> Finding {
    let missing = catalog.missing_columns();
    if !missing.is_empty() {
        let text = format!(
            "the table {TASKS} lacks {}, which later versions of django-celery-results have and \
             which is then not stored",
            missing.join(" and ")
        );
        return Finding::warning(Subject::Database, text).fix(format!(
            "if your django-celery-results has it: {MIGRATE}, and start the daemon anew"
        ));
    }
    let length = columns.iter().find(|column| column.name == "task_id");
    let length = length.and_then(|column| column.max_chars);
    let length = length.map(|chars| format!("; ids take {chars} characters")).unwrap_or_default();
    Finding::ok(Subject::Database, format!("the table {TASKS} has every column{length}"))
}

/// How the server's clock stands to this machine's, by when it was asked and when it answered.
fn clocks(now: DateTime<Utc>, asked_at: DateTime<Utc>, answered_at: DateTime<Utc>) -> Finding {
    let (ahead, behind) = (now - answered_at, asked_at - now);
    let (difference, direction) =
        if ahead > behind { (ahead, "ahead of") } else { (behind, "behind") };
    if difference <= CLOCK_TOLERANCE {
        return Finding::ok(Subject::Database, "its clock agrees with this machine's");
    }
    let seconds = difference.as_seconds_f64();
    let text = format!(
        "its clock is {seconds:.1} s {direction} this machine's: where workers' clocks differ so \
         as well, the later of two states may not be taken for it"
    );
    Finding::warning(Subject::Database, text).fix("synchronise the clocks (NTP)")
}

fn standing(standing: Result<Standing, StoreError>) -> Finding {
    let app = "the migrations of django_celery_results";
    match standing {
        Ok(Standing::Newest) => Finding::ok(Subject::Database, format!("{app} are all applied")),
        Ok(Standing::Later(names)) => Finding::warning(
            Subject::Database,
            format!("{app} go further than this version of Celeriac knows: {}", names.join(", ")),
        )
        .fix("look whether there is a newer Celeriac"),
        Ok(Standing::Empty | Standing::Unrecorded) => {
            let text = "the tables are there, and django_migrations does not say so: it lacks \
                        0001_initial to 0014_alter_taskresult_status";
            Finding::warning(Subject::Database, text).fix("`celeriac migrate`, which records them")
        }
        Err(error) => Finding::warning(Subject::Database, format!("{app}: {}", error.message)),
    }
}

/// Writes rows and undoes it, and once more with deleting them where that is asked for.
pub(super) async fn rehearse<D: Inspect>(
    database: &D,
    rows: &[&Row],
    delete: bool,
    report: &mut dyn FnMut(Finding),
) {
    let written = rehearsed(database, rows, false).await;
    let is_good = matches!(written, Ok(Some(_)));
    report(match written {
        Ok(Some(duration)) => {
            let milliseconds = duration.as_millis();
            let text = format!(
                "its row was written to {TASKS}, changed and undone again in {milliseconds} ms"
            );
            Finding::ok(Subject::Message, text)
        }
        Ok(None) => {
            let text = format!("no row was tried: {TASKS} has an engine that cannot undo a write");
            Finding::warning(Subject::Message, text)
                .fix(format!("`alter table {TASKS} engine = InnoDB`"))
        }
        Err(error) => {
            let text = format!("its row cannot be written to {TASKS}: {}", error.message);
            let finding = Finding::error(Subject::Message, text);
            match error.class {
                ErrorClass::Conflict => finding.fix("try again: another writer was in the way"),
                _ => finding,
            }
        }
    });
    if delete && is_good {
        report(match rehearsed(database, rows, true).await {
            Ok(_) => {
                Finding::ok(Subject::Message, "its row could be deleted, as --cleanup-every asks")
            }
            Err(error) => {
                let text = format!("--cleanup-every cannot delete expired rows: {}", error.message);
                Finding::warning(Subject::Message, text)
            }
        });
    }
}

/// How long it took; nothing where a write could not be undone and so was not tried.
async fn rehearsed<D: Inspect>(
    database: &D,
    rows: &[&Row],
    delete: bool,
) -> Result<Option<Duration>, StoreError> {
    let mut connection = look(database).await?;
    if !patiently::<D, _>(D::can_undo(&mut connection)).await? {
        return Ok(None);
    }
    let tasks = patiently::<D, _>(database.columns(&mut connection, TASKS)).await?;
    let groups = patiently::<D, _>(database.columns(&mut connection, GROUPS)).await?;
    let catalog = Catalog::new(&tasks, &groups, D::ALLOWS_NUL)?;
    let tasks = rows.iter().filter_map(|row| match row {
        Row::Task(result) => Some(result),
        Row::Group(_) => None,
    });
    let tasks: Vec<_> = tasks.collect();
    let statement = database.tasks_statement(&catalog).into();
    let began = Instant::now();
    patiently::<D, _>(database.rehearse(&mut connection, &statement, &tasks, delete)).await?;
    let duration = began.elapsed();
    // In good order, so that the server's log has no connection that was lost.
    let _ = connection.close().await;
    Ok(Some(duration))
}

/// What is said of a newest row that lies in the future, where the columns have no zone.
pub(super) fn zone(newest: Option<DateTime<Utc>>, zone: chrono_tz::Tz) -> Finding {
    let ahead = newest.map_or(TimeDelta::zero(), |newest| newest - Utc::now());
    if ahead < ZONE_TOLERANCE {
        return Finding::ok(
            Subject::Database,
            format!("times have no zone there and are taken for {zone} (--time-zone)"),
        );
    }
    let text = format!(
        "the newest row is from {} minutes in the future, taken for {zone}: somebody writes in \
         another time zone",
        ahead.num_minutes()
    );
    Finding { level: Severity::Warning, ..Finding::ok(Subject::Database, text) }
        .fix("--time-zone: UTC where Django's USE_TZ is true, else its TIME_ZONE")
}

#[cfg(test)]
mod tests {
    use chrono_tz::Tz;

    use super::*;

    #[test]
    fn clocks_agree_where_the_answer_may_be_from_between() {
        let at = |milliseconds| DateTime::UNIX_EPOCH + TimeDelta::milliseconds(milliseconds);
        let level = |now, asked, answered| clocks(at(now), at(asked), at(answered)).level;
        assert_eq!(level(5_000, 0, 10_000), Severity::Ok, "a slow answer says nothing");
        assert_eq!(level(11_000, 0, 10_000), Severity::Ok);
        assert_eq!(level(11_001, 0, 10_000), Severity::Warning);
        assert_eq!(level(-1_001, 0, 10_000), Severity::Warning);
        assert!(clocks(at(3_500), at(0), at(1)).text.contains("3.5 s ahead of"));
        assert!(clocks(at(-3_500), at(0), at(1)).text.contains("3.5 s behind"));
    }

    #[test]
    fn a_newest_row_of_the_future_is_one_of_another_zone() {
        let level = |minutes| zone(Some(Utc::now() + TimeDelta::minutes(minutes)), Tz::UTC).level;
        assert_eq!(level(-600), Severity::Ok);
        assert_eq!(level(5), Severity::Ok, "clocks may differ");
        assert_eq!(level(60), Severity::Warning);
        assert_eq!(zone(None, Tz::UTC).level, Severity::Ok, "no rows");
    }
}
