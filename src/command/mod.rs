//! What each command does, and what they have in common: settings, signals and progress.

pub(crate) mod capture;
pub(crate) mod dead;
pub(crate) mod health;
pub(crate) mod migrate;
mod progress;
pub(crate) mod replay;
pub(crate) mod run;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::Context;
use celeriac::config::{Config, ConfigFile, Settings};
use celeriac::store::Database;
use celeriac::telemetry;
use clap::Arg;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The settings, and the file that they may stand in.
#[derive(clap::Args)]
pub(crate) struct SettingsArgs {
    #[command(flatten)]
    file: ConfigFile,
    #[command(flatten)]
    settings: Box<Settings>,
}

impl SettingsArgs {
    /// Checks all settings and starts logging.
    pub(crate) fn check(self) -> anyhow::Result<Config> {
        let from_file = self.file.config.as_deref().map(Settings::from_file).transpose()?;
        let shared = Settings::from_shared_environment(|name| {
            std::env::var(name).ok().filter(|value| !value.is_empty())
        });
        let settings = self.settings.or(from_file.unwrap_or_default()).or(shared);
        let config = settings.check()?;
        // Finds parameters of the database's URL that its driver refuses, before anything starts.
        Database::new(&config).map(drop).context("database")?;
        telemetry::init(config.log_format, &config.log_level)
            .with_context(|| format!("log-level: {:?} is not a filter", config.log_level))?;
        Ok(config)
    }

    /// Leaves out of a command's help the settings that do not concern it. They may be given all
    /// the same, because one file or environment has those of all commands.
    pub(crate) fn show_only(command: clap::Command, names: &[&str]) -> clap::Command {
        use clap::Args;
        let all = Self::augment_args(clap::Command::new(""));
        let is_setting =
            |arg: &Arg| all.get_arguments().any(|other| other.get_id() == arg.get_id());
        command.mut_args(|arg| {
            if !is_setting(&arg) {
                return arg;
            }
            let is_hidden = !names.contains(&arg.get_id().as_str());
            arg.hide(is_hidden).help_heading("Settings")
        })
    }
}

/// The first SIGTERM or SIGINT asks to stop, the second ends the process.
pub(crate) fn listen_for_signals(shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    tokio::spawn(async move {
        loop {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            if shutdown.is_cancelled() {
                tracing::warn!(
                    signal = name,
                    "ending at once: the broker delivers what is left again"
                );
                #[expect(clippy::exit, reason = "that is what a second signal asks for")]
                std::process::exit(128 + 15);
            }
            tracing::info!(signal = name, "stopping: settling what is held");
            shutdown.cancel();
        }
    });
    Ok(())
}

/// How a file of a capture is compressed, by the end of its name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    fn of(path: &Path) -> Self {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("gz") => Self::Gzip,
            Some("zst") => Self::Zstd,
            _ => Self::None,
        }
    }
}

/// Prints a line to standard output; what is wanted of the command, not what it tells of itself.
/// Where nobody reads any more, as `head` does not, the process ends.
fn print(line: &str) {
    if let Err(error) = writeln!(std::io::stdout(), "{line}") {
        let is_closed = error.kind() == std::io::ErrorKind::BrokenPipe;
        if !is_closed {
            tracing::error!(%error, "cannot write to standard output");
        }
        #[expect(clippy::exit, reason = "what was not printed is still where it was")]
        std::process::exit(i32::from(!is_closed));
    }
}

/// A text from the wire as it may be printed: without characters that move the cursor.
fn printable(text: &str) -> String {
    let moves =
        |c: char| c.is_control() || matches!(c, '\u{200E}'..='\u{202E}' | '\u{2060}'..='\u{206F}');
    text.chars().map(|c| if moves(c) { '\u{FFFD}' } else { c }).collect()
}

/// Makes a file that must not be there yet, for its owner alone: it will hold arguments and results.
fn create_private(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}
