//! `celeriac check`: tests whether `celeriac run` would work, and prints how to fix what is wrong.

use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::Context;
use celeriac::check;
use celeriac::config::Config;
use celeriac::diagnosis::finding::{Finding, Severity};
use celeriac::store::Database;

use super::exit::Exit;
use super::print_line;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Prints each finding as a JSON object on one line: `subject`, `level`, `text` and, if there
    /// is something to do, `fix`.
    #[arg(long)]
    json: bool,

    /// Exits with 1 for warnings too.
    #[arg(long)]
    strict: bool,
}

/// Runs all checks and prints each finding immediately. A signal ends it at once, because there is
/// nothing to undo.
#[tokio::main]
pub(crate) async fn run(arguments: &Arguments, config: &Config) -> anyhow::Result<ExitCode> {
    let database = Database::new(config).context("database")?;
    let (mut errors, mut warnings) = (0, 0);
    let mut failure = None;
    let mut report = |finding: Finding| {
        match finding.level {
            Severity::Ok => {}
            Severity::Warning => warnings += 1,
            Severity::Error => errors += 1,
        }
        if !arguments.json {
            print_line(&line(&finding));
            return;
        }
        match serde_json::to_string(&finding) {
            Ok(json) => print_line(&json),
            Err(error) => failure = Some(error),
        }
    };
    check::run(config, &database, &mut report).await;
    if let Some(error) = failure {
        return Err(error).context("a finding cannot be written as JSON");
    }
    if !arguments.json {
        print_line(&match (errors, warnings) {
            (0, 0) => "all is well".to_owned(),
            (0, _) => format!("`celeriac run` works; warnings: {warnings}"),
            _ => {
                format!("`celeriac run` does not work yet; errors: {errors}, warnings: {warnings}")
            }
        });
    }
    let is_good = errors == 0 && (warnings == 0 || !arguments.strict);
    Ok(if is_good { Exit::Done } else { Exit::Failed }.into())
}

/// A finding as text: its level, its subject, what was found and, on the next line, what to do.
fn line(finding: &Finding) -> String {
    let (level, subject) = (finding.level.as_str(), finding.subject.as_str());
    let mut line = format!("{level:<8} {subject:<9} {}", finding.text);
    if let Some(fix) = &finding.fix {
        let _ = write!(line, "\n{:18} → {fix}", "");
    }
    line
}
