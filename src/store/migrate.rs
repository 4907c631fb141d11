//! Creates the tables of django-celery-results if there are none, and records Django's migrations
//! for them.
//!
//! The statements are in `migrations/`, one file for each database. Existing tables are never
//! changed. The tables are read under a lock, so that two processes can run at once, and everything
//! is done in one transaction if the database can roll back the creation of a table. MySQL cannot:
//! there the tables get their names in one statement, and if only the records are missing, the next
//! run adds them.

use std::fmt::Write as _;

use chrono::Utc;
use sqlx::SqlStr;

use super::dialect::{Dialect, Purpose};
use super::session::Session;
use super::value::first_integer;
use super::{Column, ErrorClass, GROUPS, StoreError, TASKS};

/// Django's name for the app whose tables these are.
pub(super) const APP: &str = "django_celery_results";

/// The table in which Django records migrations.
const RECORDS: &str = "django_migrations";

/// The table in which django-celery-results counts the members of chords.
const CHORDS: &str = "django_celery_results_chordcounter";

/// Django's command, for what is not done here.
const DJANGO: &str = "python manage.py migrate django_celery_results";

/// The length of ids if Django's settings do not set one (`TaskResult.task_id` in
/// `django_celery_results/models.py`, 2.6.0).
pub(super) const DEFAULT_LENGTH: u32 = 255;

/// Is replaced in a statement by the length of ids.
const LENGTH: &str = "{length}";

/// The migrations of django-celery-results 2.6.0.
const MIGRATIONS: [&str; 14] = [
    "0001_initial",
    "0002_add_task_name_args_kwargs",
    "0003_auto_20181106_1101",
    "0004_auto_20190516_0412",
    "0005_taskresult_worker",
    "0006_taskresult_date_created",
    "0007_remove_taskresult_hidden",
    "0008_chordcounter",
    "0009_groupresult",
    "0010_remove_duplicate_indices",
    "0011_taskresult_periodic_task_name",
    "0012_taskresult_date_started",
    "0013_taskresult_django_cele_periodi_1993cf_idx",
    "0014_alter_taskresult_status",
];

/// The state of the tables in a database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// There are no tables, and no migration is recorded.
    Empty,
    /// The tables are those of the newest known version, and no migration is recorded.
    Unrecorded,
    /// The tables are those of the newest known version, and its migrations are recorded.
    Newest,
    /// These migrations of a later version are recorded as well.
    Later(Vec<String>),
}

/// What was found in a database.
#[derive(Clone, Debug, Default)]
struct State {
    /// The migrations that are recorded; `None` if there is no table of records.
    recorded: Option<Vec<String>>,
    /// The columns of the tables that exist.
    tables: Vec<(&'static str, Vec<Column>)>,
}

impl State {
    async fn read(dialect: &dyn Dialect, session: &mut dyn Session) -> Result<Self, StoreError> {
        const RECORDED: SqlStr = SqlStr::from_static(
            "select name from django_migrations where app = 'django_celery_results' order by id",
        );
        let explain =
            |error: sqlx::Error| explained(dialect, &error, "SELECT name FROM django_migrations");
        let mut state = Self::default();
        if !dialect.columns(session, RECORDS).await.map_err(explain)?.is_empty() {
            let records = session.fetch(RECORDED, Vec::new()).await.map_err(explain)?;
            let names = records.into_iter().filter_map(|mut record| record.text());
            state.recorded = Some(names.collect());
        }
        for name in [TASKS, GROUPS, CHORDS] {
            let columns = dialect.columns(session, name).await.map_err(explain)?;
            if !columns.is_empty() {
                state.tables.push((name, columns));
            }
        }
        Ok(state)
    }

    /// Compares the tables with those that `sql` creates.
    ///
    /// # Errors
    ///
    /// When the tables are older than those of `sql`, incomplete or different, or when the records
    /// do not match them. Says what was found and what to type.
    fn standing(&self, sql: &str) -> Result<Standing, String> {
        let recorded = self.recorded.as_deref().unwrap_or_default();
        let is_recorded = |name: &&str| recorded.iter().any(|recorded| recorded == name);
        let missing: Vec<_> = MIGRATIONS.into_iter().filter(|name| !is_recorded(name)).collect();
        let later = recorded.iter().filter(|name| !MIGRATIONS.contains(&name.as_str()));
        let later: Vec<_> = later.cloned().collect();
        if self.tables.is_empty() {
            return match recorded.last() {
                None => Ok(Standing::Empty),
                Some(last) => Err(format!(
                    "{RECORDS} records the migrations of {APP} up to {last}, and none of the \
                     tables exists. If Django's router gives {APP} another database, name that \
                     one. If the tables were dropped, run `python manage.py migrate --fake {APP} \
                     zero` and then this command again"
                )),
            };
        }
        let mut found = match missing.as_slice() {
            [] if !later.is_empty() => return Ok(Standing::Later(later)),
            [first, ..] if !recorded.is_empty() => {
                vec![format!("{RECORDS} does not record {first}")]
            }
            _ => Vec::new(),
        };
        for (name, expected) in tables(sql) {
            match self.tables.iter().find(|(table, _)| *table == name) {
                None => found.push(format!("the table {name} is missing")),
                Some((_, columns)) => found.extend(
                    differences(&expected, columns)
                        .into_iter()
                        .map(|text| format!("{name}: {text}")),
                ),
            }
        }
        if let Some(more) = found.len().checked_sub(4).filter(|more| *more > 0) {
            found.truncate(4);
            found.push(format!("and {more} more"));
        }
        match (found.as_slice(), recorded) {
            ([], []) => Ok(Standing::Unrecorded),
            ([], _) => Ok(Standing::Newest),
            _ if missing.is_empty() => Err(format!(
                "{RECORDS} records every migration of {APP} and the tables do not fit ({}). \
                 Nothing was changed, and Django would change nothing either: mend the tables, or \
                 run `python manage.py migrate --fake {APP} NAME` with the last migration that \
                 they have had, and then `{DJANGO}`",
                found.join("; ")
            )),
            _ => Err(format!(
                "the tables are not those of django-celery-results 2.6 ({}). Nothing was changed: \
                 run `{DJANGO}`",
                found.join("; ")
            )),
        }
    }
}

/// How the tables compare with the newest ones that are known.
///
/// # Errors
///
/// When the tables cannot be read, or are older, incomplete or different.
pub(super) async fn standing(
    dialect: &dyn Dialect,
    session: &mut dyn Session,
) -> Result<Standing, StoreError> {
    State::read(dialect, session).await?.standing(dialect.sql().tables).map_err(refused)
}

/// Creates and records what is missing, and returns how the database was before.
pub(super) async fn run(dialect: &dyn Dialect, length: u32) -> Result<Standing, StoreError> {
    let sql = dialect.sql();
    let Some(mut session) = connect(dialect, Purpose::Migrate).await? else {
        return Err(StoreError::new(ErrorClass::Setup, "the database could not be created"));
    };
    let session = &mut *session;
    if let Some([begin, _]) = sql.migration {
        execute(dialect, session, begin).await?;
    }
    if let Some(lock) = sql.migration_lock {
        let locked = session.fetch(SqlStr::from_static(lock), Vec::new()).await;
        let locked = locked.map_err(|error| explained(dialect, &error, ""))?;
        if first_integer(locked) == Some(0) {
            let problem = "another process has been migrating for a minute: try again";
            return Err(StoreError::new(ErrorClass::Setup, problem));
        }
    }
    // If this returns, the connection is closed and its transaction is rolled back.
    let state = State::read(dialect, session).await?;
    let standing = state.standing(sql.tables).map_err(refused)?;
    for statement in to_run(dialect, &state, &standing, length) {
        execute(dialect, session, &statement).await?;
    }
    if let Some([_, commit]) = sql.migration {
        execute(dialect, session, commit).await?;
    }
    Ok(standing)
}

/// The SQL that [`run`] would run. Nothing is changed.
pub(super) async fn dry_run(dialect: &dyn Dialect, length: u32) -> Result<String, StoreError> {
    let state = match connect(dialect, Purpose::Inspect).await? {
        None => State::default(),
        Some(mut session) => State::read(dialect, &mut *session).await?,
    };
    let standing = state.standing(dialect.sql().tables).map_err(refused)?;
    let statements = to_run(dialect, &state, &standing, length);
    if statements.is_empty() {
        return Ok("-- There is nothing to do.\n".to_owned());
    }
    let [begin, commit] = dialect.sql().migration.map_or([None; 2], |words| words.map(Some));
    let mut sql = String::new();
    for statement in begin.into_iter().chain(statements.iter().map(String::as_str)).chain(commit) {
        let _ = writeln!(sql, "{statement};");
    }
    Ok(sql)
}

async fn connect(
    dialect: &dyn Dialect,
    purpose: Purpose,
) -> Result<Option<Box<dyn Session>>, StoreError> {
    dialect.connect(purpose).await.map_err(|error| explained(dialect, &error, ""))
}

/// The statements that create and record what is missing.
fn to_run(dialect: &dyn Dialect, state: &State, standing: &Standing, length: u32) -> Vec<String> {
    let mut run = Vec::new();
    if !matches!(standing, Standing::Empty | Standing::Unrecorded) {
        return run;
    }
    if state.recorded.is_none() {
        run.push(dialect.sql().records_table.to_owned());
    }
    if *standing == Standing::Empty {
        run.extend(
            statements(dialect.sql().tables).map(|text| text.replace(LENGTH, &length.to_string())),
        );
    }
    // None of the values has a quotation mark in it.
    let now = dialect.written(Utc::now());
    let rows = MIGRATIONS.map(|name| format!("('{APP}', '{name}', '{now}')"));
    run.push(format!("INSERT INTO {RECORDS} (app, name, applied) VALUES {}", rows.join(", ")));
    run
}

/// The statements of a file, each on one line as Django writes it, because SQLite keeps the text.
fn statements(sql: &str) -> impl Iterator<Item = String> {
    let lines = sql.lines().filter(|line| !line.starts_with("--"));
    let words: Vec<_> = lines.flat_map(str::split_whitespace).collect();
    let code = words.join(" ").replace("( ", "(").replace(" )", ")");
    let statements = code.split(';').map(|statement| statement.trim().to_owned());
    statements.filter(|statement| !statement.is_empty()).collect::<Vec<_>>().into_iter()
}

/// The tables that a file creates, with their columns. The length of a column is 0 if a setting
/// determines it.
fn tables(sql: &str) -> Vec<(&'static str, Vec<Column>)> {
    let column = |definition: &str| {
        let (name, kind) = definition.split_once(' ').unwrap_or_default();
        let chars = kind.strip_prefix("varchar(").and_then(|kind| kind.split_once(')'));
        Column {
            name: name.trim_matches(['"', '`']).to_owned(),
            // The value of the setting is not known here, and any length is accepted.
            max_chars: chars.map(|(chars, _)| chars.parse().unwrap_or(0)),
            is_required: kind.contains("NOT NULL") && !kind.contains("PRIMARY KEY"),
            is_utf8mb3: false,
        }
    };
    let table = |statement: String| {
        let (head, definitions) = statement.strip_prefix("CREATE TABLE ")?.split_once(" (")?;
        let name = [TASKS, GROUPS, CHORDS].into_iter().find(|name| head.contains(name))?;
        Some((name, definitions.strip_suffix(')')?.split(", ").map(column).collect()))
    };
    statements(sql).filter_map(table).collect()
}

/// How the columns of a table differ from the expected ones.
fn differences(expected: &[Column], actual: &[Column]) -> Vec<String> {
    let mut found = Vec::new();
    for Column { name, max_chars, is_required, .. } in expected {
        let Some(column) = actual.iter().find(|column| column.name == *name) else {
            found.push(format!("the column {name} is missing"));
            continue;
        };
        if column.is_required != *is_required {
            let word = if *is_required { "optional" } else { "required" };
            found.push(format!("the column {name} is {word}"));
        }
        match (column.max_chars, max_chars) {
            (None, _) | (_, Some(0)) => {}
            (Some(chars), expected) if Some(chars) == *expected => {}
            (Some(chars), _) => {
                found.push(format!("the column {name} takes {chars} characters"));
            }
        }
    }
    let unknown = actual.iter().filter(|column| expected.iter().all(|e| e.name != column.name));
    found.extend(unknown.map(|column| format!("the column {} is not known", column.name)));
    found
}

fn refused(problem: String) -> StoreError {
    StoreError::new(ErrorClass::Setup, problem)
}

async fn execute(
    dialect: &dyn Dialect,
    session: &mut dyn Session,
    statement: &str,
) -> Result<(), StoreError> {
    session.execute(statement).await.map_err(|error| explained(dialect, &error, statement))
}

/// An error with the statement that it is about, if there is one, and the right that is missing
/// for it.
fn explained(dialect: &dyn Dialect, error: &sqlx::Error, statement: &str) -> StoreError {
    let right = error.as_database_error().and_then(|error| dialect.missing_right(error, statement));
    let mut error = StoreError::from_sqlx(error, |error| dialect.classify(error));
    if let Some(right) = right {
        let _ = write!(error.message, "; this user needs {right}");
    }
    if !statement.is_empty() {
        let _ = write!(error.message, "; the statement was: {statement}");
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILES: [&str; 3] = [
        include_str!("../../migrations/postgres.sql"),
        include_str!("../../migrations/mysql.sql"),
        include_str!("../../migrations/sqlite.sql"),
    ];

    /// The newest tables with so many migrations recorded.
    fn state(sql: &str, recorded: usize) -> State {
        let recorded = MIGRATIONS[..recorded].iter().map(|name| (*name).to_owned()).collect();
        let mut tables = tables(sql);
        for column in tables.iter_mut().flat_map(|(_, columns)| columns) {
            column.max_chars = column.max_chars.map(|chars| if chars == 0 { 191 } else { chars });
        }
        State { recorded: Some(recorded), tables }
    }

    #[test]
    fn every_file_makes_the_same_columns() {
        let columns = |sql| {
            let mut tables = tables(sql);
            tables.sort_by_key(|(name, _)| *name);
            for (_, columns) in &mut tables {
                columns.sort_by(|one, other| one.name.cmp(&other.name));
            }
            tables
        };
        let [postgres, mysql, sqlite] = FILES.map(columns);
        assert_eq!(postgres.iter().map(|(_, columns)| columns.len()).sum::<usize>(), 16 + 7 + 4);
        assert_eq!(postgres, mysql);
        assert_eq!(postgres, sqlite);
        let required = postgres.iter().flat_map(|(_, columns)| columns);
        assert_eq!(required.filter(|column| column.is_required).count(), 6 + 5 + 3);
    }

    #[test]
    fn the_newest_tables_are_recognised() {
        for sql in FILES {
            assert_eq!(State::default().standing(sql), Ok(Standing::Empty));
            assert_eq!(state(sql, 14).standing(sql), Ok(Standing::Newest));
            assert_eq!(state(sql, 0).standing(sql), Ok(Standing::Unrecorded));
            let unrecorded = State { recorded: None, ..state(sql, 0) };
            assert_eq!(unrecorded.standing(sql), Ok(Standing::Unrecorded));
            let mut later = state(sql, 14);
            later.recorded.get_or_insert_default().push("0015_task_priority".to_owned());
            later.tables[0].1.pop();
            let names = vec!["0015_task_priority".to_owned()];
            assert_eq!(later.standing(sql), Ok(Standing::Later(names)));
        }
    }

    #[test]
    fn other_tables_are_refused_with_what_was_found() {
        type Change = fn(&mut State);
        let changes: [(Change, &str); 9] = [
            (|state| state.tables.clear(), "none of the tables exists"),
            (|state| drop(state.tables.pop()), "the table django_celery_results_groupresult is"),
            (|state| drop(state.tables[0].1.pop()), "the column date_started is missing"),
            (|state| state.tables[0].1[1].name.push('x'), "the column task_idx is not known"),
            (|state| state.tables[0].1[2].is_required = false, "the column status is optional"),
            (|state| state.tables[0].1[2].max_chars = Some(9), "the column status takes 9 char"),
            (|state| state.tables[0].1[5].max_chars = Some(9), "the column result takes 9 char"),
            (|state| drop(state.recorded.as_mut().map(Vec::pop)), "does not record 0014_alter_"),
            (|state| state.tables[0].1.clear(), "and 12 more"),
        ];
        let [sql, ..] = FILES;
        for (change, words) in changes {
            let mut changed = state(sql, 14);
            change(&mut changed);
            let problem = changed.standing(sql).expect_err(words);
            assert!(problem.contains(words), "{problem}");
            assert!(problem.contains("python manage.py migrate"), "{problem}");
        }
    }
}
