//! Making the tables as Django's migrations make them, and recording that Django's way.
//!
//! The statements are in `migrations/` ([`migration`]). What tables look like after each of them is
//! worked out from the statements themselves ([`shape`]), so that a database is recognised by its
//! catalog, and what is left to do is planned before anything is done ([`plan`]). Each migration is
//! planned anew under a lock and done together with its record, so two processes may work at once,
//! and one that was killed leaves something that the next one recognises.

mod migration;
mod mysql;
mod plan;
mod postgres;
mod shape;
mod sqlite;

use std::fmt::Write as _;

use sqlx::error::DatabaseError;

use self::migration::Migrations;
use self::plan::{APP, Plan, State, Step, plan};
use self::shape::Effect;
use super::session::SqlDatabase;
use super::{ErrorClass, StoreError};

/// What is read besides the catalog, which everybody may read.
const READ: &str = "SELECT name FROM django_migrations";

/// How a migration came to be recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Migrated {
    /// It was run.
    Applied,
    /// The tables were as it leaves them, and only the record was missing.
    Faked,
}

/// What was found when all was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tables {
    /// The tables of the newest version that is known.
    Newest,
    /// These migrations are recorded too, which are of a later version.
    Later(Vec<String>),
}

/// What one database does in its own way.
pub(super) trait Migrate: SqlDatabase {
    /// Its migrations.
    const MIGRATIONS: Migrations;

    /// The statement that makes `django_migrations`, with the numbers that projects have which were
    /// begun with Django 3.2 or later.
    const MAKE_RECORDS: &str;

    /// What is set for the session, before anything else.
    const SESSION: &[&str];

    /// What is around a migration, where the database can undo one.
    const TRANSACTION: Option<Transaction>;

    /// Connects, and makes a database that is a file unless it is only to be looked at. Returns
    /// nothing where there is no such file.
    async fn open(&self, to_look: bool) -> Result<Option<Self::Connection>, sqlx::Error>;

    /// Waits until no other process migrates; until the end of the transaction, or of the session
    /// where there is none.
    async fn lock(connection: &mut Self::Connection) -> Result<(), sqlx::Error>;

    /// Reads what is there.
    async fn state(connection: &mut Self::Connection) -> Result<State, sqlx::Error>;

    /// This moment as Django writes it.
    fn now(&self) -> String;

    /// The right that a statement needs, where an error says that it is missing.
    fn missing_right(error: &dyn DatabaseError, statement: &str) -> Option<&'static str>;
}

/// The statements that begin and end a transaction.
pub(super) struct Transaction {
    begin: &'static str,
    commit: &'static str,
}

/// How far the tables have come.
pub(super) enum Standing {
    /// The tables of the newest version that is known.
    Newest,
    /// These migrations are recorded too, which are of a later version.
    Later(Vec<String>),
    /// These are to be applied.
    Pending(Vec<&'static str>),
    /// The tables are as these leave them, and only the record is missing; others may be to be
    /// applied.
    Unrecorded(Vec<&'static str>),
}

/// Looks how far the tables have come.
///
/// # Errors
///
/// Where that is not known, or the tables are not such as django-celery-results leaves behind.
pub(super) async fn standing<D: Migrate>(
    connection: &mut D::Connection,
) -> Result<Standing, StoreError> {
    let state = D::state(connection).await.map_err(|error| explained::<D>(&error, READ))?;
    let steps = match planned::<D>(&state, None)? {
        Plan::Later(names) => return Ok(Standing::Later(names)),
        Plan::Steps(steps) => steps,
    };
    let names = |is_done| {
        let steps = steps.iter().filter(move |step| step.is_done == is_done);
        steps.map(|step| step.name).collect::<Vec<_>>()
    };
    let (pending, unrecorded) = (names(false), names(true));
    Ok(match (unrecorded.is_empty(), pending.is_empty()) {
        (true, true) => Standing::Newest,
        (true, false) => Standing::Pending(pending),
        (false, _) => Standing::Unrecorded(unrecorded),
    })
}

/// Does what is to be done, and reports each migration.
pub(super) async fn run<D: Migrate>(
    database: &D,
    length: Option<u32>,
    report: &mut dyn FnMut(&str, Migrated),
) -> Result<Tables, StoreError> {
    let opened = database.open(false).await.map_err(|error| explained::<D>(&error, ""))?;
    let Some(mut connection) = opened else {
        return Err(StoreError::new(ErrorClass::Setup, "the database could not be made"));
    };
    for statement in D::SESSION {
        execute::<D>(&mut connection, statement).await?;
    }
    if D::TRANSACTION.is_none() {
        D::lock(&mut connection).await.map_err(|error| explained::<D>(&error, ""))?;
    }
    loop {
        if let Some(transaction) = D::TRANSACTION {
            execute::<D>(&mut connection, transaction.begin).await?;
            D::lock(&mut connection).await.map_err(|error| explained::<D>(&error, ""))?;
        }
        // Where this returns, the connection is closed and its transaction undone.
        let state =
            D::state(&mut connection).await.map_err(|error| explained::<D>(&error, READ))?;
        let steps = match planned::<D>(&state, length)? {
            Plan::Steps(steps) => steps,
            Plan::Later(names) => return Ok(Tables::Later(names)),
        };
        let Some(step) = steps.into_iter().next() else { return Ok(Tables::Newest) };
        let mut has_records = state.recorded.is_some();
        for statement in statements(database, &step, &mut has_records) {
            execute::<D>(&mut connection, &statement).await?;
        }
        if let Some(transaction) = D::TRANSACTION {
            execute::<D>(&mut connection, transaction.commit).await?;
        }
        report(step.name, if step.is_done { Migrated::Faked } else { Migrated::Applied });
    }
}

/// Writes down what would be done, as SQL, and does nothing.
pub(super) async fn dry_run<D: Migrate>(
    database: &D,
    length: Option<u32>,
) -> Result<String, StoreError> {
    let connection = database.open(true).await.map_err(|error| explained::<D>(&error, ""))?;
    let state = match connection {
        None => State::default(),
        Some(mut connection) => {
            D::state(&mut connection).await.map_err(|error| explained::<D>(&error, READ))?
        }
    };
    let steps = match planned::<D>(&state, length)? {
        Plan::Steps(steps) if !steps.is_empty() => steps,
        _ => return Ok("-- There is nothing to do.\n".to_owned()),
    };
    let mut sql = String::new();
    for statement in D::SESSION {
        let _ = writeln!(sql, "{statement};");
    }
    let mut has_records = state.recorded.is_some();
    for step in steps {
        let _ = writeln!(sql, "--\n-- {APP}.{}\n--", step.name);
        let transaction = D::TRANSACTION;
        let begin = transaction.as_ref().map(|transaction| transaction.begin.to_owned());
        let commit = transaction.as_ref().map(|transaction| transaction.commit.to_owned());
        let statements = statements(database, &step, &mut has_records);
        for statement in begin.into_iter().chain(statements).chain(commit) {
            let _ = writeln!(sql, "{statement};");
        }
    }
    Ok(sql)
}

fn planned<D: Migrate>(state: &State, length: Option<u32>) -> Result<Plan, StoreError> {
    plan(D::MIGRATIONS, state, D::TRANSACTION.is_some(), length)
        .map_err(|problem| StoreError::new(ErrorClass::Setup, problem))
}

/// The statements of a step, those that record it included.
fn statements<D: Migrate>(database: &D, step: &Step, has_records: &mut bool) -> Vec<String> {
    let mut statements = Vec::new();
    if !std::mem::replace(has_records, true) {
        statements.push(D::MAKE_RECORDS.to_owned());
    }
    statements.extend(step.statements.iter().cloned());
    // None of the values has a quotation mark in it.
    statements.push(format!(
        "INSERT INTO django_migrations (app, name, applied) VALUES ('{APP}', '{}', '{}')",
        step.name,
        database.now()
    ));
    statements
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

/// The right that PostgreSQL and MySQL need for a statement, each by its own name.
fn right_for(
    statement: &str,
    create: &'static str,
    alter: &'static str,
    index: &'static str,
) -> &'static str {
    match Effect::of(statement) {
        Effect::CreateTable(..) => create,
        Effect::CreateIndex(..) | Effect::DropIndex(_) => index,
        Effect::Rows if statement.starts_with("SELECT") => "the right SELECT on its table",
        Effect::Rows if statement.starts_with("INSERT") => "the right INSERT on its table",
        Effect::Rows if statement.starts_with("UPDATE") => "the right UPDATE on its table",
        _ => alter,
    }
}
