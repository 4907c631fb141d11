//! `celeriac migrate`: creates or updates the tables of django-celery-results.

use std::io::Write;
use std::process::ExitCode;
use std::str::FromStr;

use anyhow::Context;
use celeriac::config::Config;
use celeriac::store::{Database, Migrated, Store, Tables};

use super::print;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Prints the SQL that would be run, and changes nothing.
    #[arg(long)]
    dry_run: bool,

    /// The length of ids: Django's setting `DJANGO_CELERY_RESULTS_TASK_ID_MAX_LENGTH`.
    ///
    /// It applies to tables that are created; existing tables keep their length.
    ///
    /// Default: the length in the existing table of tasks, or 255 if there is none
    #[arg(long, value_name = "NUMBER", env = "CELERIAC_TASK_ID_LENGTH")]
    task_id_length: Option<Length>,
}

/// A length, or `None` for an empty text, which an environment variable may have.
#[derive(Clone, Copy)]
struct Length(Option<u32>);

impl FromStr for Length {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.trim().parse() {
            _ if text.is_empty() => Ok(Self(None)),
            Ok(length @ 1..=65_535) => Ok(Self(Some(length))),
            _ => Err("write a number from 1 to 65535"),
        }
    }
}

/// Migrates the tables, or prints the SQL in a dry run. A signal ends it at once: the database
/// rolls back the current step, or the next `celeriac migrate` completes it.
#[tokio::main]
pub(crate) async fn run(arguments: &Arguments, config: &Config) -> anyhow::Result<ExitCode> {
    let mut database = Database::new(config).context("database")?;
    let length = arguments.task_id_length.and_then(|Length(length)| length);
    if arguments.dry_run {
        let sql = database.migration_sql(length).await?;
        print(sql.as_bytes());
        return Ok(ExitCode::SUCCESS);
    }
    let mut is_done = true;
    let mut report = |name: &str, migrated| {
        is_done = false;
        let migrated = match migrated {
            Migrated::Applied => "OK",
            Migrated::Faked => "FAKED",
        };
        say(&format!("Applying django_celery_results.{name}... {migrated}"));
    };
    let tables = database.migrate(length, &mut report).await?;
    if is_done {
        say("No migrations to apply.");
    }
    if let Tables::Later(names) = tables {
        let names = names.join(", ");
        say(&format!("{names}: of a later django-celery-results, and left to Django."));
        // A later version may have tables that this version of Celeriac cannot write to.
        database.prepare().await?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints a line with Django's indentation. Ignores a closed standard output.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "  {line}");
}
