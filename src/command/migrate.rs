//! `celeriac migrate`: creates the tables of django-celery-results and those of Celeriac itself.

use std::io::Write;
use std::process::ExitCode;
use std::str::FromStr;

use anyhow::Context;
use celeriac::config::Config;
use celeriac::store::{Database, Standing, Store};

use super::print;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Prints the SQL that would be run, and changes nothing.
    #[arg(long)]
    dry_run: bool,

    /// The length of ids: Django's setting `DJANGO_CELERY_RESULTS_TASK_ID_MAX_LENGTH`.
    ///
    /// Default: 255, as in Django
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

/// Creates the tables, or prints the SQL in a dry run. A signal ends it at once: the database rolls
/// back what has begun, or the next `celeriac migrate` cleans it up.
#[tokio::main]
pub(crate) async fn run(arguments: &Arguments, config: &Config) -> anyhow::Result<ExitCode> {
    let database = Database::new(config).context("database")?;
    let length = arguments.task_id_length.and_then(|Length(length)| length);
    if arguments.dry_run {
        print(database.migration_sql(length).await?.as_bytes());
        return Ok(ExitCode::SUCCESS);
    }
    for (app, standing) in database.migrate(length).await? {
        let told = match standing {
            Standing::Empty => {
                format!("The tables of {} were made and their migrations recorded.", app.newest)
            }
            Standing::Unrecorded => format!(
                "The tables of {} were there, and their migrations were recorded.",
                app.newest
            ),
            Standing::Newest => {
                format!("The tables of {} are there already: nothing was changed.", app.newest)
            }
            Standing::Later(names) => {
                // Later versions may ask for what is not known here.
                database.store().prepare().await?;
                format!(
                    "The tables are of a later {} ({}): nothing was changed.",
                    app.package,
                    names.join(", ")
                )
            }
        };
        // Nobody has to be there to read it.
        let _ = writeln!(std::io::stdout(), "{told}");
    }
    Ok(ExitCode::SUCCESS)
}
