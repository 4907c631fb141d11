//! `celeriac cleanup`: deletes expired rows.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use celeriac::cleanup::{self, CleanupEnd};
use celeriac::config::Config;
use celeriac::row::expiry::{Age, Expiry, RuleSubject};
use celeriac::store::{Cleaner, CleanupStep, Database, Found, Job, StoreError};
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::progress::Progress;
use super::{listen_for_signals, print_line, printable};

/// The time limit for counting the rows in advance, for the progress bar. If counting takes longer,
/// the progress has no total; nothing else changes.
const COUNT_TIMEOUT: Duration = Duration::from_secs(15);

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Counts the rows that would be deleted, and changes nothing.
    #[arg(long)]
    dry_run: bool,

    /// Prints one JSON object.
    #[arg(long)]
    json: bool,
}

/// Deletes or counts expired rows, and prints how many there were.
#[tokio::main]
pub(crate) async fn run(arguments: &Arguments, config: &Config) -> anyhow::Result<ExitCode> {
    let expiry = &config.cleanup.expiry;
    let began_at = Instant::now();
    cleanup::warn_of_states(expiry);
    let shutdown = CancellationToken::new();
    listen_for_signals(shutdown.clone())?;
    let job = Job { dry_run: arguments.dry_run, ..cleanup::job(&config.cleanup) };
    let mut cleaner = Database::new(config).context("database")?.cleaner(job);
    let total = count(&mut cleaner, &shutdown).await?;
    let mut progress = Progress::new(total, "rows");
    let mut read = 0;
    let mut on_step = |step: &CleanupStep| {
        read += step.read;
        progress.set(read);
    };
    let ended = cleanup::run(&mut cleaner, config.cleanup.pause, &shutdown, &mut on_step).await;
    progress.end();
    let report = Report {
        expiry,
        found: cleaner.found(),
        dry_run: arguments.dry_run,
        is_complete: matches!(ended, Ok(CleanupEnd::Done)),
        seconds: began_at.elapsed().as_secs_f64(),
    };
    // Reported after an error too, because deleted rows stay deleted.
    if arguments.json {
        print_line(&report.json());
    } else if ended.is_ok() || !report.found.is_empty() {
        report.print();
    }
    cleaner.close().await;
    ended?;
    Ok(ExitCode::SUCCESS)
}

/// How many rows will be examined; 0 if counting takes too long.
async fn count(cleaner: &mut Cleaner, shutdown: &CancellationToken) -> Result<u64, StoreError> {
    tokio::select! {
        count = cleaner.count() => count,
        () = tokio::time::sleep(COUNT_TIMEOUT) => Ok(0),
        () = shutdown.cancelled() => Ok(0),
    }
}

/// The rows that were deleted, or counted in a dry run.
struct Report<'run> {
    expiry: &'run Expiry,
    found: &'run Found,
    dry_run: bool,
    is_complete: bool,
    seconds: f64,
}

impl Report<'_> {
    fn print(&self) {
        if !self.expiry.is_ever() {
            print_line("nothing ever expires: result-expires is 0 or never");
            return;
        }
        if !self.found.is_empty() {
            print_line("      ROWS  TABLE   STATE     EXPIRES AFTER  BY");
        }
        for (kind, rows) in self.found {
            let table = if kind.is_group { "groups" } else { "tasks" };
            let (age, by) = self.rule(kind.rule);
            let (state, age) = (printable(&kind.state), age_text(age));
            print_line(format!("{rows:>10}  {table:<6}  {state:<8}  {age:<13}  {by}").trim_end());
        }
        let (tasks, groups) = cleanup::totals(self.found);
        let numbers = format!("{tasks} rows of tasks and {groups} of groups");
        print_line(&match (self.dry_run, self.is_complete) {
            (true, true) => format!("{numbers} would be deleted; nothing was changed"),
            (true, false) => format!("{numbers} would be deleted; the count is not complete"),
            (false, true) => format!("{numbers} were deleted"),
            (false, false) => format!("{numbers} were deleted; the rest is left"),
        });
    }

    fn json(&self) -> String {
        let (tasks, groups) = cleanup::totals(self.found);
        let kinds = self.found.iter().map(|(kind, rows)| {
            let (age, by) = self.rule(kind.rule);
            json!({
                "table": if kind.is_group { "groups" } else { "tasks" },
                "state": (!kind.is_group).then_some(&kind.state),
                "expires_seconds": age.map(|age| age.as_secs_f64()),
                "by": by,
                "rows": rows,
            })
        });
        json!({
            "dry_run": self.dry_run,
            "complete": self.is_complete,
            "seconds": self.seconds,
            "tasks": tasks,
            "groups": groups,
            "rows": kinds.collect::<Vec<_>>(),
        })
        .to_string()
    }

    /// The age of a rule, and the setting that it comes from.
    fn rule(&self, number: usize) -> (Age, String) {
        let Some(rule) = self.expiry.rules().get(number) else { return (None, String::new()) };
        let by = match &rule.subject {
            RuleSubject::Others => "result-expires".to_owned(),
            RuleSubject::State(name) => format!("result-expires-by-state {name}"),
            RuleSubject::Task(pattern) => format!("result-expires-by-task {pattern}"),
        };
        (rule.age, by)
    }
}

fn age_text(age: Age) -> String {
    age.map_or_else(|| "never".to_owned(), |age| humantime::format_duration(age).to_string())
}
