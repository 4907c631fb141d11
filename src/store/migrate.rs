//! Creates the tables of django-celery-results and of Celeriac's own Django app if there are none,
//! and records Django's migrations for them.
//!
//! The statements are in `migrations/`, one folder for each app and one file for each database.
//! Existing tables are never changed. The tables are read under a lock, so that two processes can
//! run at once, and everything is done in one transaction if the database can roll back the creation
//! of a table. MySQL cannot: there the tables of an app get their names in one statement, and if
//! only the records are missing, the next run adds them.

use std::fmt::Write as _;

use chrono::Utc;
use sqlx::SqlStr;

use super::dialect::{Dialect, Purpose, Sql};
use super::session::Session;
use super::value::first_integer;
use super::{CHORD_MEMBERS, CHORDS, Column, ErrorClass, GROUPS, StoreError, TASKS};

/// The table in which Django records migrations.
const RECORDS: &str = "django_migrations";

/// The table in which django-celery-results counts the members of chords.
const COUNTERS: &str = "django_celery_results_chordcounter";

/// The length of ids if Django's settings do not set one (`TaskResult.task_id` in
/// `django_celery_results/models.py`, 2.6.0).
pub(super) const DEFAULT_LENGTH: u32 = 255;

/// Is replaced in a statement by the length of ids.
const LENGTH: &str = "{length}";

/// A Django app whose tables can be created here.
#[derive(Debug)]
pub struct App {
    /// Django's name for it.
    pub name: &'static str,
    /// The package that it is part of.
    pub package: &'static str,
    /// The version of the package whose tables are created, as a part of a sentence.
    pub newest: &'static str,
    /// All migrations of that version, in order.
    migrations: &'static [&'static str],
    /// The tables that they leave.
    tables: &'static [&'static str],
    /// The statements that create them.
    sql: fn(&Sql) -> &'static str,
    /// What to do if the migrations are recorded and the tables are not there; continues with a
    /// command.
    elsewhere: &'static str,
}

/// The app of django-celery-results.
const RESULTS_APP: App = App {
    name: "django_celery_results",
    package: "django-celery-results",
    newest: "django-celery-results 2.6",
    migrations: &[
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
    ],
    tables: &[TASKS, GROUPS, COUNTERS],
    sql: |sql| sql.results_tables,
    elsewhere: "If Django's router gives django_celery_results another database, name that one. \
                If the tables were dropped,",
};

/// Celeriac's own app, in `python/celeriac/`.
pub(super) const CHORDS_APP: App = App {
    name: "celeriac",
    package: "Celeriac",
    newest: "Celeriac",
    migrations: &["0001_initial"],
    tables: &[CHORDS, CHORD_MEMBERS],
    sql: |sql| sql.chord_tables,
    elsewhere: "If Django's router gives celeriac another database than django_celery_results, let \
                it give both the same one. Then, or if the tables were dropped,",
};

/// All apps, in the order in which their tables are created.
static APPS: [App; 2] = [RESULTS_APP, CHORDS_APP];

impl App {
    /// Django's command, for what is not done here.
    fn command(&self) -> String {
        format!("python manage.py migrate {}", self.name)
    }

    /// The names of the first and the last migration.
    pub(super) fn range(&self) -> String {
        match self.migrations {
            [first, .., last] => format!("{first} to {last}"),
            names => names.concat(),
        }
    }
}

/// The state of an app's tables in a database.
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
    /// The apps and names of the migrations that are recorded; `None` if there is no table of
    /// records.
    recorded: Option<Vec<(String, String)>>,
    /// The columns of the tables that exist.
    tables: Vec<(&'static str, Vec<Column>)>,
}

impl State {
    async fn read(dialect: &dyn Dialect, session: &mut dyn Session) -> Result<Self, StoreError> {
        const RECORDED: SqlStr =
            SqlStr::from_static("select app, name from django_migrations order by id");
        let explain =
            |error: sqlx::Error| explained(dialect, &error, "SELECT name FROM django_migrations");
        let mut state = Self::default();
        if !dialect.columns(session, RECORDS).await.map_err(explain)?.is_empty() {
            let records = session.fetch(RECORDED, Vec::new()).await.map_err(explain)?;
            let names = records.into_iter().filter_map(|mut r| Some((r.text()?, r.text()?)));
            state.recorded = Some(names.collect());
        }
        for name in APPS.iter().flat_map(|app| app.tables) {
            let columns = dialect.columns(session, name).await.map_err(explain)?;
            if !columns.is_empty() {
                state.tables.push((name, columns));
            }
        }
        Ok(state)
    }

    /// The standing of each app, or the reason why its tables cannot be used.
    fn standings(&self, sql: &Sql) -> Vec<(&'static App, Result<Standing, String>)> {
        APPS.iter().map(|app| (app, self.standing(app, (app.sql)(sql)))).collect()
    }

    /// Compares the tables of an app with those that `sql` creates.
    ///
    /// # Errors
    ///
    /// When the tables are older than those of `sql`, incomplete or different, or when the records
    /// do not match them. Says what was found and what to type.
    fn standing(&self, app: &App, sql: &str) -> Result<Standing, String> {
        let App { name, newest, elsewhere, .. } = app;
        let recorded = self.recorded.iter().flatten().filter(|(of, _)| of == name);
        let recorded: Vec<_> = recorded.map(|(_, name)| name.as_str()).collect();
        let missing = app.migrations.iter().filter(|name| !recorded.contains(name));
        let missing: Vec<_> = missing.collect();
        let later = recorded.iter().filter(|name| !app.migrations.contains(name));
        let later: Vec<_> = later.map(|name| (*name).to_owned()).collect();
        if self.tables.iter().all(|(table, _)| !app.tables.contains(table)) {
            return match recorded.last() {
                None => Ok(Standing::Empty),
                Some(last) => Err(format!(
                    "{RECORDS} records the migrations of {name} up to {last}, and none of the \
                     tables exists. {elsewhere} run `python manage.py migrate --fake {name} zero` \
                     and then `celeriac migrate` again"
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
        for (name, expected) in tables(app, sql) {
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
        match (found.as_slice(), recorded.as_slice()) {
            ([], []) => Ok(Standing::Unrecorded),
            ([], _) => Ok(Standing::Newest),
            _ if missing.is_empty() => Err(format!(
                "{RECORDS} records every migration of {name} and the tables do not fit ({}). \
                 Nothing was changed, and Django would change nothing either: mend the tables, or \
                 run `python manage.py migrate --fake {name} NAME` with the last migration that \
                 they have had, and then `{}`",
                found.join("; "),
                app.command()
            )),
            _ => Err(format!(
                "the tables are not those of {newest} ({}). Nothing was changed: run `{}`",
                found.join("; "),
                app.command()
            )),
        }
    }
}

/// How the tables of each app compare with the newest ones that are known, or the reason why they
/// cannot be used: they are older, incomplete or different.
///
/// # Errors
///
/// When the tables cannot be read.
pub(super) async fn standings(
    dialect: &dyn Dialect,
    session: &mut dyn Session,
) -> Result<Vec<(&'static App, Result<Standing, String>)>, StoreError> {
    Ok(State::read(dialect, session).await?.standings(dialect.sql()))
}

/// Creates and records what is missing, and returns how the tables of each app were before.
pub(super) async fn run(
    dialect: &dyn Dialect,
    length: u32,
) -> Result<Vec<(&'static App, Standing)>, StoreError> {
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
    let standings = accepted(state.standings(sql))?;
    for statement in to_run(dialect, &state, &standings, length) {
        execute(dialect, session, &statement).await?;
    }
    if let Some([_, commit]) = sql.migration {
        execute(dialect, session, commit).await?;
    }
    Ok(standings)
}

/// The SQL that [`run`] would run. Nothing is changed.
pub(super) async fn dry_run(dialect: &dyn Dialect, length: u32) -> Result<String, StoreError> {
    let state = match connect(dialect, Purpose::Inspect).await? {
        None => State::default(),
        Some(mut session) => State::read(dialect, &mut *session).await?,
    };
    let standings = accepted(state.standings(dialect.sql()))?;
    let statements = to_run(dialect, &state, &standings, length);
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

/// The standing of each app, if the tables of all of them can be used.
fn accepted(
    standings: Vec<(&'static App, Result<Standing, String>)>,
) -> Result<Vec<(&'static App, Standing)>, StoreError> {
    let accept = |(app, standing): (_, Result<_, String>)| match standing {
        Ok(standing) => Ok((app, standing)),
        Err(problem) => Err(StoreError::new(ErrorClass::Setup, problem)),
    };
    standings.into_iter().map(accept).collect()
}

/// The statements that create and record what is missing.
fn to_run(
    dialect: &dyn Dialect,
    state: &State,
    standings: &[(&App, Standing)],
    length: u32,
) -> Vec<String> {
    let mut run = Vec::new();
    // None of the values has a quotation mark in it.
    let now = dialect.written(Utc::now());
    for (app, standing) in standings {
        if !matches!(standing, Standing::Empty | Standing::Unrecorded) {
            continue;
        }
        if state.recorded.is_none() && run.is_empty() {
            run.push(dialect.sql().records_table.to_owned());
        }
        if *standing == Standing::Empty {
            let statements = statements((app.sql)(dialect.sql()));
            run.extend(statements.map(|text| text.replace(LENGTH, &length.to_string())));
        }
        let row = |name: &&str| format!("('{}', '{name}', '{now}')", app.name);
        let rows: Vec<_> = app.migrations.iter().map(row).collect();
        run.push(format!("INSERT INTO {RECORDS} (app, name, applied) VALUES {}", rows.join(", ")));
    }
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

/// The tables of an app that a file creates, with their columns. The length of a column is 0 if a
/// setting determines it.
fn tables(app: &App, sql: &str) -> Vec<(&'static str, Vec<Column>)> {
    const NUMBERED: [&str; 3] = ["AUTO_INCREMENT", "AUTOINCREMENT", "IDENTITY"];
    let column = |definition: &str| {
        let (name, kind) = definition.split_once(' ').unwrap_or_default();
        let chars = kind.strip_prefix("varchar(").and_then(|kind| kind.split_once(')'));
        Column {
            name: name.trim_matches(['"', '`']).to_owned(),
            // The value of the setting is not known here, and any length is accepted.
            max_chars: chars.map(|(chars, _)| chars.parse().unwrap_or(0)),
            is_required: kind.contains("NOT NULL")
                && NUMBERED.iter().all(|word| !kind.contains(word)),
            is_utf8mb3: false,
        }
    };
    let table = |statement: String| {
        let (head, definitions) = statement.strip_prefix("CREATE TABLE ")?.split_once(" (")?;
        let named = head.trim_matches(['"', '`']);
        let named = named.strip_suffix("_new").unwrap_or(named);
        let name = app.tables.iter().find(|name| **name == named)?;
        let definitions = definitions.strip_suffix(')')?;
        let columns = definitions.split(", CONSTRAINT ").next()?;
        Some((*name, columns.split(", ").map(column).collect()))
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

    const RESULTS: [&str; 3] = [
        include_str!("../../migrations/django_celery_results/postgres.sql"),
        include_str!("../../migrations/django_celery_results/mysql.sql"),
        include_str!("../../migrations/django_celery_results/sqlite.sql"),
    ];
    const CHORDS: [&str; 3] = [
        include_str!("../../migrations/celeriac/postgres.sql"),
        include_str!("../../migrations/celeriac/mysql.sql"),
        include_str!("../../migrations/celeriac/sqlite.sql"),
    ];

    fn records(app: &App, names: &[&str]) -> Vec<(String, String)> {
        names.iter().map(|name| (app.name.to_owned(), (*name).to_owned())).collect()
    }

    /// The newest tables of an app with so many migrations recorded.
    fn state(app: &App, sql: &str, recorded: usize) -> State {
        let recorded = records(app, &app.migrations[..recorded]);
        let mut tables = tables(app, sql);
        for column in tables.iter_mut().flat_map(|(_, columns)| columns) {
            column.max_chars = column.max_chars.map(|chars| if chars == 0 { 191 } else { chars });
        }
        State { recorded: Some(recorded), tables }
    }

    #[test]
    fn every_file_makes_the_same_columns() {
        for (app, files, counts) in [
            (&RESULTS_APP, RESULTS, [16 + 7 + 4, 6 + 5 + 3]),
            (&CHORDS_APP, CHORDS, [9 + 6, 6 + 4]),
        ] {
            let columns = |sql| {
                let mut tables = tables(app, sql);
                tables.sort_by_key(|(name, _)| *name);
                for (_, columns) in &mut tables {
                    columns.sort_by(|one, other| one.name.cmp(&other.name));
                }
                tables
            };
            let [postgres, mysql, sqlite] = files.map(columns);
            assert_eq!(postgres.len(), app.tables.len());
            assert_eq!(postgres, mysql);
            assert_eq!(postgres, sqlite);
            let all: Vec<_> = postgres.iter().flat_map(|(_, columns)| columns).collect();
            let required = all.iter().filter(|column| column.is_required).count();
            assert_eq!([all.len(), required], counts, "{}", app.name);
        }
    }

    #[test]
    fn the_newest_tables_are_recognised() {
        for (app, files) in [(&RESULTS_APP, RESULTS), (&CHORDS_APP, CHORDS)] {
            let all = app.migrations.len();
            for sql in files {
                assert_eq!(State::default().standing(app, sql), Ok(Standing::Empty));
                assert_eq!(state(app, sql, all).standing(app, sql), Ok(Standing::Newest));
                assert_eq!(state(app, sql, 0).standing(app, sql), Ok(Standing::Unrecorded));
                let unrecorded = State { recorded: None, ..state(app, sql, 0) };
                assert_eq!(unrecorded.standing(app, sql), Ok(Standing::Unrecorded));
                let mut later = state(app, sql, all);
                later.recorded.get_or_insert_default().extend(records(app, &["0099_later"]));
                later.tables[0].1.pop();
                let names = vec!["0099_later".to_owned()];
                assert_eq!(later.standing(app, sql), Ok(Standing::Later(names)));
            }
        }
    }

    #[test]
    fn an_app_is_judged_by_its_own_tables_and_records() {
        let [results, ..] = RESULTS;
        let [chords, ..] = CHORDS;
        let only_results = state(&RESULTS_APP, results, 14);
        assert_eq!(only_results.standing(&CHORDS_APP, chords), Ok(Standing::Empty));
        let only_chords = state(&CHORDS_APP, chords, 1);
        assert_eq!(only_chords.standing(&RESULTS_APP, results), Ok(Standing::Empty));
        let denied = State {
            recorded: Some(records(&CHORDS_APP, &["0001_initial"])),
            tables: only_results.tables,
        };
        let problem = denied.standing(&CHORDS_APP, chords).expect_err("the tables are missing");
        assert!(problem.contains("Django's router"), "{problem}");
        assert!(problem.contains("migrate --fake celeriac zero"), "{problem}");
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
        let [sql, ..] = RESULTS;
        for (change, words) in changes {
            let mut changed = state(&RESULTS_APP, sql, 14);
            change(&mut changed);
            let problem = changed.standing(&RESULTS_APP, sql).expect_err(words);
            assert!(problem.contains(words), "{problem}");
            assert!(problem.contains("python manage.py migrate"), "{problem}");
        }
    }
}
