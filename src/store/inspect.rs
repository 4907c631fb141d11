//! Inspects a database for `celeriac check`: the server, the tables, their migrations, and a test
//! write that is rolled back. Nothing is changed.

use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::SqlStr;

use super::columns::{self, Table};
use super::dialect::{self, Dialect, Purpose, patiently};
use super::migrate::{self, App, CHORDS_APP, Standing};
use super::session::Session;
use super::value::{Record, first_integer, first_text};
use super::{CHORD_MEMBERS, CHORDS, Catalog, ErrorClass, StoreError, TASKS, Write, write};
use crate::diagnosis::finding::{Finding, Severity, Subject};
use crate::row::Row;
use crate::row::state::State;

/// The difference between two clocks from which on it is reported.
const CLOCK_TOLERANCE: TimeDelta = TimeDelta::seconds(1);

/// A row whose time is further in the future than this was written in another time zone.
const ZONE_TOLERANCE: TimeDelta = TimeDelta::minutes(10);

/// The percentage of the numbers of the primary key from which on it is reported.
const MOST_NUMBERS: i128 = 80;

/// The command that completes the tables.
const MIGRATE: &str = "`python manage.py migrate django_celery_results`";

/// What happens while the tables for chords cannot be used.
const POLLED: &str = "chords are completed by Celery's own polling";

/// Opens a connection that does not change the database. An ordinary connection would switch an
/// SQLite file to WAL mode.
async fn connect(dialect: &dyn Dialect) -> Result<Box<dyn Session>, StoreError> {
    for purpose in [Purpose::Inspect, Purpose::Write] {
        // The second one fails with an error that says what does not exist.
        if let Some(session) = patiently(dialect, dialect.connect(purpose)).await? {
            return Ok(session);
        }
    }
    Err(StoreError::new(ErrorClass::Outage, "there is no connection"))
}

/// Reports on the database. Returns whether rows can be written, as far as this can be told without
/// writing.
pub(super) async fn inspect(dialect: &dyn Dialect, report: &mut dyn FnMut(Finding)) -> bool {
    match inspected(dialect, report).await {
        Ok(is_usable) => is_usable,
        Err(error) => {
            report(Finding::error(Subject::Database, error.message));
            false
        }
    }
}

async fn inspected(
    dialect: &dyn Dialect,
    report: &mut dyn FnMut(Finding),
) -> Result<bool, StoreError> {
    let began = Instant::now();
    let mut session = connect(dialect).await?;
    let session = &mut *session;
    let milliseconds = began.elapsed().as_millis();
    let (name, lacks) = patiently(dialect, dialect.version(session)).await?;
    report(Finding::ok(Subject::Database, format!("{name}, connected in {milliseconds} ms")));
    if let Some(lacks) = lacks {
        report(Finding::error(Subject::Database, lacks));
        return Ok(false);
    }
    let asked_at = Utc::now();
    if let Some(now) = now(dialect, session).await? {
        report(clocks(now, asked_at, Utc::now()));
    }
    let catalog = write::catalog(dialect, session).await?;
    report(table(&catalog));
    if let Some(problem) = catalog.groups_problem() {
        report(
            Finding::warning(Subject::Database, format!("{problem}: groups become dead letters"))
                .fix(MIGRATE),
        );
    }
    match migrate::standings(dialect, session).await {
        Ok(standings) => {
            standings.into_iter().map(|(app, found)| standing(app, found)).for_each(&mut *report);
        }
        Err(error) => {
            let text = format!("the recorded migrations cannot be read: {}", error.message);
            report(Finding::warning(Subject::Database, text));
        }
    }
    if let Some(sql) = dialect.sql().numbers {
        // A user who lacks the right to read the table is told so when its row is written.
        let numbers = session.fetch(SqlStr::from_static(sql), Vec::new());
        let numbers = patiently(dialect, numbers).await.unwrap_or_default();
        numbers.into_iter().filter_map(numbers_left).for_each(&mut *report);
    }
    for finding in patiently(dialect, dialect.particulars(session)).await? {
        report(finding);
    }
    Ok(true)
}

/// The finding about the numbers of the primary key, if few are left. The record has the last one
/// that was used and the greatest one.
fn numbers_left(mut record: Record) -> Option<Finding> {
    let (used, greatest) = (record.integer()?, record.integer()?);
    let percent = i128::from(used) * 100 / i128::from(greatest.max(1));
    let text = format!(
        "{percent} % of the numbers of the column id are used: {used} of {greatest}. No row can be \
         added when they are used up"
    );
    (percent >= MOST_NUMBERS)
        .then(|| Finding::warning(Subject::Database, text).fix("make the column a bigint"))
}

/// The time by the server's clock, if it has one.
pub(super) async fn now(
    dialect: &dyn Dialect,
    session: &mut dyn Session,
) -> Result<Option<DateTime<Utc>>, StoreError> {
    let Some(sql) = dialect.sql().now else { return Ok(None) };
    let now = session.fetch(SqlStr::from_static(sql), Vec::new());
    let now = first_text(patiently(dialect, now).await?);
    let now = now.and_then(|text| DateTime::parse_from_rfc3339(&text).ok());
    Ok(now.map(|time| time.to_utc()))
}

/// The finding about the columns of the task table.
fn table(catalog: &Catalog) -> Finding {
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
    let length = catalog.id_chars();
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

/// The finding about the tables of an app.
fn standing(app: &App, standing: Result<Standing, String>) -> Finding {
    let of = format!("the migrations of {}", app.name);
    let is_chords = app.name == CHORDS_APP.name;
    match standing {
        Ok(Standing::Newest) => Finding::ok(Subject::Database, format!("{of} are all applied")),
        Ok(Standing::Later(names)) => Finding::warning(
            Subject::Database,
            format!("{of} go further than this version of Celeriac knows: {}", names.join(", ")),
        )
        .fix("look whether there is a newer Celeriac"),
        Ok(Standing::Empty) if is_chords => {
            let text = format!(
                "the tables {CHORDS} and {CHORD_MEMBERS} are missing, or this user has no right to \
                 them: {POLLED}"
            );
            Finding::warning(Subject::Database, text).fix(
                "`python manage.py migrate celeriac` or `celeriac migrate`; if Django's router gives \
                 celeriac another database than django_celery_results, let it give both the same \
                 one",
            )
        }
        Ok(Standing::Empty | Standing::Unrecorded) => {
            let text = format!(
                "the tables of {} exist, but django_migrations does not say so: it lacks {}",
                app.name,
                app.range()
            );
            Finding::warning(Subject::Database, text).fix("`celeriac migrate`, which records them")
        }
        Err(problem) if is_chords => {
            Finding::warning(Subject::Database, format!("{POLLED} because of {of}: {problem}"))
        }
        Err(problem) => Finding::warning(Subject::Database, format!("{of}: {problem}")),
    }
}

/// Writes rows and rolls this back. If `delete` is set, does the same once more and also deletes
/// them.
pub(super) async fn rehearse(
    dialect: &dyn Dialect,
    rows: &[&Row],
    delete: bool,
    report: &mut dyn FnMut(Finding),
) {
    let written = rehearsed(dialect, rows, false).await;
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
        report(match rehearsed(dialect, rows, true).await {
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

/// Writes rows twice, so that they are first inserted and then updated, and rolls everything back.
/// Returns how long it took; `None` if no write was tried because it could not be rolled back.
async fn rehearsed(
    dialect: &dyn Dialect,
    rows: &[&Row],
    delete: bool,
) -> Result<Option<Duration>, StoreError> {
    let mut session = connect(dialect).await?;
    if let Some(sql) = dialect.sql().can_undo {
        let can_undo = session.fetch(SqlStr::from_static(sql), Vec::new());
        if first_integer(patiently(dialect, can_undo).await?) != Some(1) {
            return Ok(None);
        }
    }
    let catalog = write::catalog(dialect, &mut *session).await?;
    let table = Table::tasks(&catalog);
    let began = Instant::now();
    dialect::begin(dialect, &mut *session).await?;
    for state in [State::Started, State::Success] {
        let rows: Vec<_> = rows.iter().map(|row| in_state(row, &state)).collect();
        let writes: Vec<_> = rows.iter().map(|row| Write { row, may_be_stored: false }).collect();
        let writes: Vec<_> = writes.iter().collect();
        write::write_within(dialect, &mut *session, &table, &writes).await?;
    }
    if delete {
        // The ids are made by `celeriac check` and contain no quotation marks.
        let ids: Vec<_> = rows.iter().map(|row| format!("'{}'", columns::key(row))).collect();
        let statement = format!("delete from {TASKS} where task_id in ({})", ids.join(", "));
        patiently(dialect, session.execute(&statement)).await?;
    }
    patiently(dialect, session.execute("rollback")).await?;
    let duration = began.elapsed();
    session.close().await;
    Ok(Some(duration))
}

/// The row of a task in another state.
fn in_state(row: &Row, state: &State) -> Row {
    let mut row = row.clone();
    if let Row::Task(result) = &mut row {
        result.outcome.status = state.clone();
    }
    row
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
    use crate::store::value::Value;

    #[test]
    fn few_numbers_are_reported() {
        let text = |used, greatest| {
            let values = vec![Value::Integer(used), Value::Integer(greatest)];
            numbers_left(Record::new(values)).map(|finding| finding.text)
        };
        assert_eq!(text(79, 100), None);
        assert!(text(80, 100).is_some_and(|text| text.contains("80 % of the numbers")));
        assert_eq!(text(i64::from(i32::MAX), i64::MAX), None, "a bigint");
        assert!(text(i64::MAX, i64::MAX).is_some());
    }

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
