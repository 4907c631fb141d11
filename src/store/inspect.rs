//! Inspects a database for `celeriac check`: the server, the tables, their migrations, and a test
//! write that is rolled back. Nothing is changed.

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

/// The difference between two clocks from which on it is reported.
const CLOCK_TOLERANCE: TimeDelta = TimeDelta::seconds(1);

/// A row whose time is further in the future than this was written in another time zone.
const ZONE_TOLERANCE: TimeDelta = TimeDelta::minutes(10);

/// The command that completes the tables.
const MIGRATE: &str = "`python manage.py migrate django_celery_results`";

/// What a database server reports about itself.
pub(super) struct Server {
    /// Its product and version.
    pub(super) name: String,
    /// Why its version is too old, if it is.
    pub(super) lacks: Option<String>,
    /// The time by its clock, if it has a clock of its own.
    pub(super) now: Option<DateTime<Utc>>,
}

/// The parts of an inspection that differ between databases.
pub(super) trait Inspect: Migrate {
    /// Asks the server for its product, version and time.
    async fn server(connection: &mut Self::Connection) -> Result<Server, sqlx::Error>;

    /// Findings that are specific to the database. The tables exist when this is called.
    async fn particulars(
        &self,
        connection: &mut Self::Connection,
    ) -> Result<Vec<Finding>, sqlx::Error>;

    /// Whether a write can be rolled back. If it cannot, no write is tried.
    async fn can_undo(connection: &mut Self::Connection) -> Result<bool, sqlx::Error>;

    /// Writes rows twice, so that they are first inserted and then updated, deletes them if
    /// `delete` is set, and rolls everything back.
    async fn rehearse(
        &self,
        connection: &mut Self::Connection,
        statement: &Arc<str>,
        rows: &[&TaskResult],
        delete: bool,
    ) -> Result<(), sqlx::Error>;
}

/// Opens a connection that does not change the database. An ordinary connection would switch an
/// SQLite file to WAL mode.
async fn look<D: Inspect>(database: &D) -> Result<D::Connection, StoreError> {
    match patiently::<D, _>(database.open(true)).await? {
        Some(connection) => Ok(connection),
        // Fails with an error that says what does not exist.
        None => patiently::<D, _>(database.connect()).await,
    }
}

/// Reports on the database. Returns whether rows can be written, as far as this can be told without
/// writing.
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

/// The finding about the columns of the task table.
fn table(columns: &[Column], catalog: &Catalog) -> Finding {
    let missing = catalog.missing_columns();
    if !missing.is_empty() {
        let text = format!(
            "the table {TASKS} lacks {}, which later versions of django-celery-results have: these \
             values are not stored",
            missing.join(" and ")
        );
        return Finding::warning(Subject::Database, text).fix(format!(
            "if your django-celery-results has it: {MIGRATE}, then restart the daemon"
        ));
    }
    let length = columns.iter().find(|column| column.name == "task_id");
    let length = length.and_then(|column| column.max_chars);
    let length = length.map(|chars| format!("; ids take {chars} characters")).unwrap_or_default();
    Finding::ok(Subject::Database, format!("the table {TASKS} has every column{length}"))
}

/// Compares the server's clock with this machine's, which is read before the question and after the
/// answer.
fn clocks(now: DateTime<Utc>, asked_at: DateTime<Utc>, answered_at: DateTime<Utc>) -> Finding {
    let (ahead, behind) = (now - answered_at, asked_at - now);
    let (difference, direction) =
        if ahead > behind { (ahead, "ahead of") } else { (behind, "behind") };
    if difference <= CLOCK_TOLERANCE {
        return Finding::ok(Subject::Database, "its clock agrees with this machine's");
    }
    let seconds = difference.as_seconds_f64();
    let text = format!(
        "its clock is {seconds:.1} s {direction} this machine's: if the clocks of \
         workers differ as much, an older state of a task can replace a newer one"
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
            let text = "the tables exist, but django_migrations does not say so: it lacks \
                        0001_initial to 0014_alter_taskresult_status";
            Finding::warning(Subject::Database, text).fix("`celeriac migrate`, which records them")
        }
        Err(error) => Finding::warning(Subject::Database, format!("{app}: {}", error.message)),
    }
}

/// Writes rows and rolls this back. If `delete` is set, does the same once more and also deletes
/// them.
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
            let text =
                format!("no row was written: the engine of {TASKS} cannot roll back a write");
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

/// Returns how long it took; `None` if no write was tried because it could not be rolled back.
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
    // Closed properly, so that the server does not log a lost connection.
    let _ = connection.close().await;
    Ok(Some(duration))
}

/// The finding about the time zone, for databases whose columns do not store one. `newest` is the
/// time of the newest row.
pub(super) fn zone(newest: Option<DateTime<Utc>>, zone: chrono_tz::Tz) -> Finding {
    let ahead = newest.map_or(TimeDelta::zero(), |newest| newest - Utc::now());
    if ahead < ZONE_TOLERANCE {
        return Finding::ok(
            Subject::Database,
            format!("its times are stored without a zone and are read as {zone} (--time-zone)"),
        );
    }
    let text = format!(
        "the time of the newest row is {} minutes in the future if it is read as {zone}: another \
         program writes in another time zone",
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
    fn clocks_agree_within_the_time_of_the_answer() {
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
    fn a_newest_row_in_the_future_is_from_another_time_zone() {
        let level = |minutes| zone(Some(Utc::now() + TimeDelta::minutes(minutes)), Tz::UTC).level;
        assert_eq!(level(-600), Severity::Ok);
        assert_eq!(level(5), Severity::Ok, "clocks may differ");
        assert_eq!(level(60), Severity::Warning);
        assert_eq!(zone(None, Tz::UTC).level, Severity::Ok, "no rows");
    }
}
