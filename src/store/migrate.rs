//! Making the tables of django-celery-results where there are none, and recording Django's
//! migrations for them.
//!
//! The statements are in `migrations/`, one file for each database. Tables that are there are never
//! changed. What is there is looked at under a lock, so that two processes may run at once, and all
//! is done in one transaction where the database can undo the making of a table. MySQL cannot: the
//! tables then get their names all at once, and where only the record is missing it is made up for.

use std::fmt::Write as _;

use sqlx::error::DatabaseError;

use super::session::SqlDatabase;
use super::{Column, ErrorClass, GROUPS, StoreError, TASKS};

/// Django's name for the app whose tables these are.
pub(super) const APP: &str = "django_celery_results";

/// The table in which Django records migrations.
const RECORDS: &str = "django_migrations";

/// The table in which django-celery-results counts the members of chords.
const CHORDS: &str = "django_celery_results_chordcounter";

/// Django's command, for what is not done here.
const DJANGO: &str = "python manage.py migrate django_celery_results";

/// The length of ids where Django's settings do not name one (`TaskResult.task_id` in
/// `django_celery_results/models.py`, 2.6.0).
pub(super) const DEFAULT_LENGTH: u32 = 255;

/// Stands in a statement for the length of ids.
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

/// How a database stands, or stood before it was migrated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// There are no tables, and nothing is recorded of them.
    Empty,
    /// The tables are those of the newest version that is known, and no migration is recorded.
    Unrecorded,
    /// The tables of the newest version that is known are there and recorded.
    Newest,
    /// These migrations are recorded as well, which are of a later version.
    Later(Vec<String>),
}

/// What one database does in its own way.
pub(super) trait Migrate: SqlDatabase {
    /// The statements that make the tables.
    const SQL: &str;

    /// The statement that makes `django_migrations` as Django 3.2 and later make it.
    const MAKE_RECORDS: &str;

    /// What begins and ends the transaction around everything, where the database can undo the
    /// making of a table.
    const TRANSACTION: Option<[&str; 2]>;

    /// Connects, and makes a database that is a file unless it is only to be looked at. Returns
    /// nothing where there is no such file.
    async fn open(&self, to_look: bool) -> Result<Option<Self::Connection>, sqlx::Error>;

    /// Waits until no other process migrates; until the end of the transaction, or of the session
    /// where there is none.
    async fn lock(connection: &mut Self::Connection) -> Result<(), sqlx::Error>;

    /// The migrations of the app in `django_migrations`, which is there.
    async fn recorded(connection: &mut Self::Connection) -> Result<Vec<String>, sqlx::Error>;

    /// This moment as Django writes it.
    fn now(&self) -> String;

    /// The right that a statement needs, where an error says that it is missing.
    fn missing_right(error: &dyn DatabaseError, statement: &str) -> Option<&'static str>;
}

/// What is there.
#[derive(Clone, Debug, Default)]
struct State {
    /// The migrations that are recorded; nothing where there is no table of records.
    recorded: Option<Vec<String>>,
    /// The columns of the tables that are there.
    tables: Vec<(&'static str, Vec<Column>)>,
}

impl State {
    async fn read<D: Migrate>(
        database: &D,
        connection: &mut D::Connection,
    ) -> Result<Self, StoreError> {
        let explain =
            |error: sqlx::Error| explained::<D>(&error, "SELECT name FROM django_migrations");
        let mut state = Self::default();
        if !database.columns(connection, RECORDS).await.map_err(explain)?.is_empty() {
            state.recorded = Some(D::recorded(connection).await.map_err(explain)?);
        }
        for name in [TASKS, GROUPS, CHORDS] {
            let columns = database.columns(connection, name).await.map_err(explain)?;
            if !columns.is_empty() {
                state.tables.push((name, columns));
            }
        }
        Ok(state)
    }

    /// How the database stands with these tables, which `sql` makes.
    ///
    /// # Errors
    ///
    /// Where the tables are older than those of `sql`, are not all there, or differ; or the records
    /// do not fit them. Says what was found and what to type.
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

/// How far the tables have come.
///
/// # Errors
///
/// Where that cannot be read, or the tables are older, incomplete or different.
pub(super) async fn standing<D: Migrate>(
    database: &D,
    connection: &mut D::Connection,
) -> Result<Standing, StoreError> {
    State::read(database, connection).await?.standing(D::SQL).map_err(refused)
}

/// Makes and records what is missing, and returns how the database stood before.
pub(super) async fn run<D: Migrate>(database: &D, length: u32) -> Result<Standing, StoreError> {
    let opened = database.open(false).await.map_err(|error| explained::<D>(&error, ""))?;
    let Some(mut connection) = opened else {
        return Err(StoreError::new(ErrorClass::Setup, "the database could not be made"));
    };
    if let Some([begin, _]) = D::TRANSACTION {
        execute::<D>(&mut connection, begin).await?;
    }
    D::lock(&mut connection).await.map_err(|error| explained::<D>(&error, ""))?;
    // Where this returns, the connection is closed and its transaction undone.
    let state = State::read(database, &mut connection).await?;
    let standing = state.standing(D::SQL).map_err(refused)?;
    for statement in to_run(database, &state, &standing, length) {
        execute::<D>(&mut connection, &statement).await?;
    }
    if let Some([_, commit]) = D::TRANSACTION {
        execute::<D>(&mut connection, commit).await?;
    }
    Ok(standing)
}

/// Writes down what [`run`] would do, as SQL, and does nothing.
pub(super) async fn dry_run<D: Migrate>(database: &D, length: u32) -> Result<String, StoreError> {
    let connection = database.open(true).await.map_err(|error| explained::<D>(&error, ""))?;
    let state = match connection {
        None => State::default(),
        Some(mut connection) => State::read(database, &mut connection).await?,
    };
    let standing = state.standing(D::SQL).map_err(refused)?;
    let statements = to_run(database, &state, &standing, length);
    if statements.is_empty() {
        return Ok("-- There is nothing to do.\n".to_owned());
    }
    let [begin, commit] = D::TRANSACTION.map_or([None; 2], |words| words.map(Some));
    let mut sql = String::new();
    for statement in begin.into_iter().chain(statements.iter().map(String::as_str)).chain(commit) {
        let _ = writeln!(sql, "{statement};");
    }
    Ok(sql)
}

/// The statements that make and record what is missing.
fn to_run<D: Migrate>(
    database: &D,
    state: &State,
    standing: &Standing,
    length: u32,
) -> Vec<String> {
    let mut run = Vec::new();
    if !matches!(standing, Standing::Empty | Standing::Unrecorded) {
        return run;
    }
    if state.recorded.is_none() {
        run.push(D::MAKE_RECORDS.to_owned());
    }
    if *standing == Standing::Empty {
        run.extend(statements(D::SQL).map(|text| text.replace(LENGTH, &length.to_string())));
    }
    // None of the values has a quotation mark in it.
    let now = database.now();
    let rows = MIGRATIONS.map(|name| format!("('{APP}', '{name}', '{now}')"));
    run.push(format!("INSERT INTO {RECORDS} (app, name, applied) VALUES {}", rows.join(", ")));
    run
}

/// The statements of a file, each in one line as Django writes it: SQLite keeps the text.
fn statements(sql: &str) -> impl Iterator<Item = String> {
    let lines = sql.lines().filter(|line| !line.starts_with("--"));
    let words: Vec<_> = lines.flat_map(str::split_whitespace).collect();
    let code = words.join(" ").replace("( ", "(").replace(" )", ")");
    let statements = code.split(';').map(|statement| statement.trim().to_owned());
    statements.filter(|statement| !statement.is_empty()).collect::<Vec<_>>().into_iter()
}

/// The tables that a file makes, with their columns. Those whose length a setting says have none.
fn tables(sql: &str) -> Vec<(&'static str, Vec<Column>)> {
    let column = |definition: &str| {
        let (name, kind) = definition.split_once(' ').unwrap_or_default();
        let chars = kind.strip_prefix("varchar(").and_then(|kind| kind.split_once(')'));
        Column {
            name: name.trim_matches(['"', '`']).to_owned(),
            // The setting's value is not known here, and any length is good.
            max_chars: chars.map(|(chars, _)| chars.parse().unwrap_or(0)),
            is_required: kind.contains("NOT NULL") && !kind.contains("PRIMARY KEY"),
        }
    };
    let table = |statement: String| {
        let (head, definitions) = statement.strip_prefix("CREATE TABLE ")?.split_once(" (")?;
        let name = [TASKS, GROUPS, CHORDS].into_iter().find(|name| head.contains(name))?;
        Some((name, definitions.strip_suffix(')')?.split(", ").map(column).collect()))
    };
    statements(sql).filter_map(table).collect()
}

/// What of the columns of a table is not as expected.
fn differences(expected: &[Column], actual: &[Column]) -> Vec<String> {
    let mut found = Vec::new();
    for Column { name, max_chars, is_required } in expected {
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

async fn execute<D: Migrate>(
    connection: &mut D::Connection,
    statement: &str,
) -> Result<(), StoreError> {
    D::execute(connection, statement).await.map_err(|error| explained::<D>(&error, statement))
}

/// An error with the statement that it is about, where there is one, and the right that is missing
/// for it.
fn explained<D: Migrate>(error: &sqlx::Error, statement: &str) -> StoreError {
    let right = error.as_database_error().and_then(|error| D::missing_right(error, statement));
    let mut error = StoreError::from_sqlx(error, D::classify);
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
    use crate::store::mysql::MysqlDatabase;
    use crate::store::postgres::PostgresDatabase;
    use crate::store::sqlite::SqliteDatabase;

    const FILES: [&str; 3] = [PostgresDatabase::SQL, MysqlDatabase::SQL, SqliteDatabase::SQL];

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
        let sql = PostgresDatabase::SQL;
        for (change, words) in changes {
            let mut changed = state(sql, 14);
            change(&mut changed);
            let problem = changed.standing(sql).expect_err(words);
            assert!(problem.contains(words), "{problem}");
            assert!(problem.contains("python manage.py migrate"), "{problem}");
        }
    }
}
