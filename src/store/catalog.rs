//! What the tables can store: their columns and the lengths of these, from the database's catalog.

use std::borrow::Cow;

use chrono::{DateTime, Utc};
use chrono_tz::Tz;

use super::value::{Record, in_zone};
use super::{ErrorClass, GROUPS, StoreError, TASKS};
use crate::row::Row;
use crate::row::group_result::GroupResult;
use crate::row::task_result::TaskResult;

/// The columns of every version of django-celery-results since 2.0.
const REQUIRED: [&str; 13] = [
    "task_id",
    "status",
    "content_type",
    "content_encoding",
    "result",
    "date_done",
    "traceback",
    "meta",
    "task_args",
    "task_kwargs",
    "task_name",
    "worker",
    "date_created",
];

/// The columns that were added later, in django-celery-results 2.3 and 2.6.
const OPTIONAL: [&str; 2] = ["periodic_task_name", "date_started"];

/// Columns that a future django-celery-results may have (its pull request 514).
const UPCOMING: [&str; 2] = ["queue", "retries"];

/// The columns of the group table in every version of django-celery-results since 2.0.
const GROUP_COLUMNS: [&str; 6] =
    ["group_id", "content_type", "content_encoding", "result", "date_created", "date_done"];

/// A column as the database's catalog describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// The maximum length in characters, if the database enforces one.
    pub max_chars: Option<usize>,
    /// Whether every insert must supply a value, because the column is NOT NULL and has no default.
    pub is_required: bool,
    /// Whether its character set is MySQL's utf8mb3, which has no characters above U+FFFF.
    pub is_utf8mb3: bool,
}

impl Column {
    /// Reads a column from a record with these members in this order.
    pub(super) fn from_record(mut record: Record) -> Self {
        Self {
            name: record.text().unwrap_or_default(),
            max_chars: record.integer().and_then(|chars| usize::try_from(chars).ok()),
            is_required: record.integer() == Some(1),
            is_utf8mb3: record.integer() == Some(1),
        }
    }
}

/// What the tables of a database can store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Catalog {
    missing: Vec<&'static str>,
    /// Those of [`UPCOMING`] that the task table has.
    upcoming: Vec<&'static str>,
    max_chars: MaxChars,
    /// Why the group table cannot be written; `None` if it can.
    groups_problem: Option<String>,
    /// Whether texts may contain U+0000, which PostgreSQL does not allow.
    allows_nul: bool,
    /// The columns of the task table with the character set utf8mb3.
    utf8mb3: Vec<String>,
    /// The time zone in which times are stored.
    zone: Tz,
}

/// The maximum lengths of the columns in characters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct MaxChars {
    task_id: Option<usize>,
    group_id: Option<usize>,
    status: Option<usize>,
    task_name: Option<usize>,
    worker: Option<usize>,
    periodic_task_name: Option<usize>,
    queue: Option<usize>,
}

/// The tables of the newest django-celery-results, without length limits.
impl Default for Catalog {
    fn default() -> Self {
        Self {
            missing: Vec::new(),
            upcoming: Vec::new(),
            max_chars: MaxChars::default(),
            groups_problem: None,
            allows_nul: true,
            utf8mb3: Vec::new(),
            zone: Tz::UTC,
        }
    }
}

impl Catalog {
    /// Checks the columns of the tables and stores their lengths.
    ///
    /// If only the group table cannot be written, tasks can still be stored.
    ///
    /// # Errors
    ///
    /// [`ErrorClass::Setup`] if there is no task table, if it lacks a column that every version of
    /// django-celery-results has, or if it has an unknown column that requires a value.
    pub(super) fn new(
        columns: &[Column],
        groups: &[Column],
        allows_nul: bool,
    ) -> Result<Self, StoreError> {
        if columns.is_empty() {
            return Err(StoreError::missing_table());
        }
        let find = |name| columns.iter().find(|column| column.name == name);
        if let Some(name) = REQUIRED.into_iter().find(|&name| find(name).is_none()) {
            return Err(StoreError::new(
                ErrorClass::Setup,
                format!(
                    "the table {TASKS} has no column {name}: install django-celery-results 2.0 \
                     or later and run `python manage.py migrate django_celery_results`"
                ),
            ));
        }
        let is_known = |name: &str| {
            name == "id" || [&REQUIRED[..], &OPTIONAL, &UPCOMING].concat().contains(&name)
        };
        if let Some(column) =
            columns.iter().find(|column| column.is_required && !is_known(&column.name))
        {
            return Err(StoreError::new(
                ErrorClass::Setup,
                format!(
                    "the column {} of the table {TASKS} must be filled, and this version of \
                     Celeriac does not know it: give it a default in the database",
                    column.name
                ),
            ));
        }
        let max_chars = |name| find(name).and_then(|column| column.max_chars);
        let group_id = groups.iter().find(|column| column.name == "group_id");
        Ok(Self {
            missing: OPTIONAL.into_iter().filter(|&name| find(name).is_none()).collect(),
            upcoming: UPCOMING.into_iter().filter(|&name| find(name).is_some()).collect(),
            max_chars: MaxChars {
                task_id: max_chars("task_id"),
                group_id: group_id.and_then(|column| column.max_chars),
                status: max_chars("status"),
                task_name: max_chars("task_name"),
                worker: max_chars("worker"),
                periodic_task_name: max_chars("periodic_task_name"),
                queue: max_chars("queue"),
            },
            groups_problem: groups_problem(groups),
            allows_nul,
            utf8mb3: columns
                .iter()
                .filter(|column| column.is_utf8mb3)
                .map(|column| column.name.clone())
                .collect(),
            zone: Tz::UTC,
        })
    }

    /// The same catalog for columns that store times in another time zone than UTC.
    pub(super) fn with_zone(self, zone: Tz) -> Self {
        Self { zone, ..self }
    }

    /// The columns of the newest django-celery-results that this table does not have.
    #[must_use]
    pub fn missing_columns(&self) -> &[&'static str] {
        &self.missing
    }

    /// The maximum length of a task's id in characters, if the database enforces one.
    pub(super) fn id_chars(&self) -> Option<usize> {
        self.max_chars.task_id
    }

    /// Why the group table cannot be written; `None` if it can.
    pub(super) fn groups_problem(&self) -> Option<&str> {
        self.groups_problem.as_deref()
    }

    /// Whether the table has a column that Celeriac writes.
    pub(super) fn has(&self, column: &str) -> bool {
        !self.missing.contains(&column)
            && (!UPCOMING.contains(&column) || self.upcoming.contains(&column))
    }

    /// Changes a row so that its table can store it.
    ///
    /// Names and states that are too long are cut to the length of the column, and U+0000 is
    /// replaced by U+FFFD if the database does not allow it. Returns whether anything was changed.
    /// A time in the hour that occurs twice when clocks are set back becomes the time as which the
    /// column is read, so that rows are compared alike before and after they are stored.
    ///
    /// # Errors
    ///
    /// When the table cannot store the id or a character of a text, or when the group table cannot
    /// be written.
    pub fn fit(&self, row: &mut Row) -> Result<bool, String> {
        match row {
            Row::Task(result) => self.fit_task(result),
            Row::Group(result) => self.fit_group(result),
        }
    }

    fn fit_group(&self, result: &mut GroupResult) -> Result<bool, String> {
        if let Some(problem) = &self.groups_problem {
            return Err(problem.clone());
        }
        self.check_key("group_id", &result.group_id, self.max_chars.group_id)?;
        for time in [&mut result.date_created, &mut result.date_done] {
            *time = self.as_read(*time);
        }
        let fitted = result.result.as_deref().and_then(|text| self.fitted(text, None));
        let changed = fitted.is_some();
        result.result = fitted.or(result.result.take());
        Ok(changed)
    }

    /// Refuses an id that the table cannot store. It is not cut, because the shorter id might be
    /// that of another row.
    fn check_key(&self, name: &str, id: &str, max_chars: Option<usize>) -> Result<(), String> {
        if let Some(max_chars) = max_chars
            && is_longer(id, max_chars)
        {
            let chars = id.chars().count();
            return Err(format!("`{name}` has {chars} characters, the column takes {max_chars}"));
        }
        if !self.allows_nul && id.contains('\0') {
            return Err(format!("`{name}` contains U+0000"));
        }
        Ok(())
    }

    fn fit_task(&self, result: &mut TaskResult) -> Result<bool, String> {
        self.check_key("task_id", &result.task_id, self.max_chars.task_id)?;
        if !self.has("date_started") {
            result.date_started = None;
        }
        for time in [&mut result.date_created, &mut result.outcome.date_done]
            .into_iter()
            .chain(&mut result.date_started)
        {
            *time = self.as_read(*time);
        }
        result.limit_start();
        let description = &mut result.description;
        if !self.has("periodic_task_name") {
            description.periodic_task_name = None;
        }
        if !self.has("queue") {
            description.queue = None;
        }
        if !self.has("retries") {
            description.retries = None;
        }
        let max = &self.max_chars;
        let (outcome, description) = (&mut result.outcome, &mut result.description);
        let status = self.fitted(outcome.status.as_str(), max.status);
        let mut changed = false;
        if let Some(status) = status {
            outcome.status = status.as_str().into();
            changed = true;
        }
        for (column, text, max_chars) in [
            ("result", &mut outcome.result, None),
            ("traceback", &mut outcome.traceback, None),
            ("meta", &mut outcome.meta, None),
            ("task_args", &mut description.task_args, None),
            ("task_kwargs", &mut description.task_kwargs, None),
            ("task_name", &mut description.task_name, max.task_name),
            ("worker", &mut description.worker, max.worker),
            ("periodic_task_name", &mut description.periodic_task_name, max.periodic_task_name),
            ("queue", &mut description.queue, max.queue),
        ] {
            self.check_characters(column, text.as_deref())?;
            let fitted = text.as_deref().and_then(|text| self.fitted(text, max_chars));
            if fitted.is_some() {
                *text = fitted;
                changed = true;
            }
        }
        Ok(changed)
    }

    /// Refuses characters that the column's character set does not have. The database would refuse
    /// the whole batch, and each attempt to store a part of it would use up numbers for `id`.
    fn check_characters(&self, column: &str, text: Option<&str>) -> Result<(), String> {
        let is_refused = self.utf8mb3.iter().any(|narrow| narrow == column)
            && text.is_some_and(|text| text.chars().any(|char| char > '\u{FFFF}'));
        if is_refused {
            return Err(format!(
                "`{column}` has a character, such as an emoji, that the character set utf8mb3 of \
                 the column does not have: run `alter table {TASKS} convert to character set \
                 utf8mb4`"
            ));
        }
        Ok(())
    }

    /// The time as which the column is read after this time was stored.
    fn as_read(&self, time: DateTime<Utc>) -> DateTime<Utc> {
        in_zone(time.with_timezone(&self.zone).naive_local(), self.zone)
    }

    /// The text in a form that can be stored; `None` if it can be stored unchanged.
    fn fitted(&self, text: &str, max_chars: Option<usize>) -> Option<String> {
        let mut fitted = Cow::Borrowed(text);
        if !self.allows_nul && text.contains('\0') {
            fitted = text.replace('\0', "\u{FFFD}").into();
        }
        if let Some(max_chars) = max_chars
            && is_longer(&fitted, max_chars)
        {
            fitted = fitted.chars().take(max_chars).collect::<String>().into();
        }
        match fitted {
            Cow::Borrowed(_) => None,
            Cow::Owned(fitted) => Some(fitted),
        }
    }
}

/// Why groups cannot be written to a table with these columns; `None` if they can.
fn groups_problem(columns: &[Column]) -> Option<String> {
    if columns.is_empty() {
        return Some(format!(
            "the table {GROUPS} does not exist: run `python manage.py migrate \
             django_celery_results`"
        ));
    }
    if let Some(missing) =
        GROUP_COLUMNS.iter().find(|&name| columns.iter().all(|column| column.name != *name))
    {
        return Some(format!("the table {GROUPS} has no column {missing}"));
    }
    let is_known = |name: &str| name == "id" || GROUP_COLUMNS.contains(&name);
    columns.iter().find(|column| column.is_required && !is_known(&column.name)).map(|column| {
        format!(
            "the column {} of the table {GROUPS} must be filled, and this version of Celeriac \
             does not know it: give it a default in the database",
            column.name
        )
    })
}

/// Whether a text has more than `max_chars` characters. For most texts the number of bytes decides.
fn is_longer(text: &str, max_chars: usize) -> bool {
    text.len() > max_chars && text.chars().count() > max_chars
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;
    use crate::row::state::State;
    use crate::row::task_result::{Description, Outcome};

    fn columns(names: &[&str], max_chars: Option<usize>) -> Vec<Column> {
        let column = |name: &&str| Column {
            name: (*name).to_owned(),
            max_chars,
            is_required: *name == "task_id",
            is_utf8mb3: false,
        };
        names.iter().map(column).collect()
    }

    fn result(task_id: &str, status: &str, worker: &str) -> TaskResult {
        TaskResult {
            task_id: task_id.to_owned(),
            outcome: Outcome {
                status: State::from(status),
                content_type: "application/json".to_owned(),
                content_encoding: "utf-8".to_owned(),
                result: Some("null".to_owned()),
                traceback: Some("a\0b".to_owned()),
                meta: None,
                date_done: DateTime::UNIX_EPOCH,
                by_arrival: false,
            },
            description: Description { worker: Some(worker.to_owned()), ..Description::default() },
            date_created: DateTime::UNIX_EPOCH,
            date_started: None,
        }
    }

    #[test]
    fn every_version_since_2_0_is_accepted() {
        let old = Catalog::new(&columns(&REQUIRED, None), &[], true).expect("2.0 has these");
        assert_eq!(old.missing_columns(), OPTIONAL);
        let all = [&REQUIRED[..], &OPTIONAL[..], &["id"]].concat();
        let new = Catalog::new(&columns(&all, None), &[], true).expect("2.6 has these");
        assert!(new.missing_columns().is_empty());
    }

    #[test]
    fn a_table_that_cannot_be_written_is_refused_with_the_fix() {
        let refusal = |columns: &[Column]| {
            let error = Catalog::new(columns, &[], true).expect_err("the table is not writable");
            assert_eq!(error.class, ErrorClass::Setup);
            error.message
        };
        assert!(refusal(&[]).contains("python manage.py migrate django_celery_results"));
        assert!(refusal(&columns(&REQUIRED[1..], None)).contains("no column task_id"));

        let mut foreign = columns(&REQUIRED, None);
        foreign.extend(columns(&["tenant"], None));
        foreign.last_mut().expect("just pushed").is_required = true;
        assert!(refusal(&foreign).contains("column tenant"));
        foreign.last_mut().expect("just pushed").is_required = false;
        assert!(Catalog::new(&foreign, &[], true).is_ok());
    }

    #[test]
    fn names_that_are_too_long_are_cut_by_characters() {
        let catalog =
            Catalog::new(&columns(&REQUIRED, Some(4)), &[], true).expect("the table is good");
        let mut fits = result("abcd", "éééé", "wörk");
        assert_eq!(catalog.fit_task(&mut fits), Ok(false));
        let mut long = result("abcd", "PROGRESS", "wörker");
        assert_eq!(catalog.fit_task(&mut long), Ok(true));
        assert_eq!(long.outcome.status.as_str(), "PROG");
        assert_eq!(long.description.worker.as_deref(), Some("wörk"));
        assert_eq!(long.outcome.content_type, "application/json", "not a name");

        let reason = catalog.fit_task(&mut result("abcde", "SUCCESS", "w")).expect_err("too long");
        assert_eq!(reason, "`task_id` has 5 characters, the column takes 4");
    }

    #[test]
    fn nul_is_replaced_if_the_database_does_not_allow_it() {
        let postgres =
            Catalog::new(&columns(&REQUIRED, None), &[], false).expect("the table is good");
        let mut nul = result("id", "SUCCESS", "w");
        assert_eq!(postgres.fit_task(&mut nul), Ok(true));
        assert_eq!(nul.outcome.traceback.as_deref(), Some("a\u{FFFD}b"));
        assert!(postgres.fit_task(&mut result("i\0d", "SUCCESS", "w")).is_err());

        let mut nul = result("i\0d", "SUCCESS", "w");
        assert_eq!(Catalog::default().fit_task(&mut nul), Ok(false));
        assert_eq!(nul.outcome.traceback.as_deref(), Some("a\0b"));
    }

    #[test]
    fn characters_that_utf8mb3_does_not_have_are_refused() {
        let mut columns = columns(&REQUIRED, None);
        for column in &mut columns {
            column.is_utf8mb3 = column.name == "traceback";
        }
        let catalog = Catalog::new(&columns, &[], true).expect("the table is good");
        let mut task = result("id", "SUCCESS", "\u{1F96C}");
        assert_eq!(catalog.fit_task(&mut task), Ok(false), "another column");
        task.outcome.traceback = Some("\u{FFFF}".to_owned());
        assert_eq!(catalog.fit_task(&mut task), Ok(false));
        task.outcome.traceback = Some("a \u{1F96C}".to_owned());
        let reason = catalog.fit_task(&mut task).expect_err("not in utf8mb3");
        assert!(reason.starts_with("`traceback` has") && reason.contains("utf8mb4"), "{reason}");
    }

    #[test]
    fn times_become_those_that_the_column_can_tell_apart() {
        let at = |text: &str| text.parse::<DateTime<Utc>>().expect("a time");
        let catalog =
            Catalog::new(&columns(&[&REQUIRED[..], &OPTIONAL[..]].concat(), None), &[], true)
                .expect("the table is good")
                .with_zone(Tz::Europe__Berlin);
        let mut task = result("id", "SUCCESS", "w");
        // Clocks are set back from 03:00 to 02:00 at 01:00 UTC.
        task.date_created = at("2026-10-24T22:59:58.5Z");
        task.date_started = Some(at("2026-10-25T00:59:59.25Z"));
        task.outcome.date_done = at("2026-10-25T01:00:01.125Z");
        assert_eq!(catalog.fit_task(&mut task), Ok(false));
        assert_eq!(task.date_created, at("2026-10-24T22:59:58.5Z"));
        assert_eq!(task.outcome.date_done, at("2026-10-25T00:00:01.125Z"));
        // A start must not be later than the end.
        assert_eq!(task.date_started, Some(at("2026-10-25T00:00:01.125Z")));
    }

    #[test]
    fn an_unwritable_group_table_affects_only_groups() {
        let group = || {
            Row::Group(GroupResult {
                group_id: "group".to_owned(),
                content_type: "application/json".to_owned(),
                content_encoding: "utf-8".to_owned(),
                result: Some("a\0b".to_owned()),
                date_created: DateTime::UNIX_EPOCH,
                date_done: DateTime::UNIX_EPOCH,
            })
        };
        let tasks = columns(&REQUIRED, None);
        let fit = |groups: &[Column], allows_nul| {
            let catalog = Catalog::new(&tasks, groups, allows_nul).expect("the tasks are good");
            let mut row = group();
            catalog.fit(&mut row).map(|_| row)
        };
        let error = |groups: &[Column]| fit(groups, true).expect_err("not writable");
        assert!(error(&[]).contains("manage.py migrate"));
        assert!(error(&columns(&GROUP_COLUMNS[1..], None)).contains("no column group_id"));
        assert!(error(&columns(&GROUP_COLUMNS, Some(4))).contains("`group_id` has 5 characters"));
        let good = columns(&GROUP_COLUMNS, Some(5));
        assert_eq!(fit(&good, true), Ok(group()));
        let Ok(Row::Group(fitted)) = fit(&good, false) else { panic!("it is a group") };
        assert_eq!(fitted.result.as_deref(), Some("a\u{FFFD}b"));
    }
}
