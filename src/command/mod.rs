//! The commands, and what they have in common: settings, signals and output.

pub(crate) mod capture;
pub(crate) mod check;
pub(crate) mod chords;
pub(crate) mod cleanup;
pub(crate) mod completion;
pub(crate) mod dead;
pub(crate) mod exit;
pub(crate) mod health;
pub(crate) mod man;
pub(crate) mod migrate;
mod progress;
#[cfg(test)]
mod reference;
pub(crate) mod replay;
pub(crate) mod run;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use celeriac::config::{Config, ConfigFile, FileSettings, LayeredSettings, with_defaults};
use celeriac::store::Database;
use celeriac::telemetry;
use clap::{Arg, ArgMatches};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The settings, and the option that names the settings file.
#[derive(clap::Args)]
pub(crate) struct SettingsArgs {
    #[command(flatten)]
    file: ConfigFile,
    #[command(flatten)]
    settings: LayeredSettings,
}

impl SettingsArgs {
    /// Checks all settings and starts logging.
    pub(crate) fn check(self) -> anyhow::Result<Config> {
        let config = self.settings.into_settings().check()?;
        // Finds parameters of the database URL that its driver refuses, before anything starts.
        Database::new(&config).map(drop).context("database")?;
        telemetry::init(config.log_format, &config.log_level).with_context(|| {
            format!(
                "log-level: {:?} is not a filter: write error, warn, info, debug or trace",
                config.log_level
            )
        })?;
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        Ok(config)
    }

    /// Makes the settings of the file that the command line or the environment names the defaults
    /// of every command.
    pub(crate) fn with_defaults(
        command: clap::Command,
        matches: &ArgMatches,
    ) -> anyhow::Result<clap::Command> {
        let mut deepest = matches;
        while let Some((_, below)) = deepest.subcommand() {
            deepest = below;
        }
        let path = deepest.try_get_one::<PathBuf>("config").ok().flatten();
        let file = path.map(|path| FileSettings::read(path)).transpose()?.unwrap_or_default();
        let variable = |name: &str| std::env::var(name).ok();
        Ok(command.mut_subcommands(|command| with_defaults(command, &file, variable)))
    }

    /// Hides the settings that a command does not use from its help. They are still accepted,
    /// because one file or environment holds the settings of all commands.
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

/// The first SIGTERM, SIGINT or SIGHUP cancels `shutdown`; a second SIGTERM or SIGINT ends the
/// process at once.
///
/// A second SIGHUP has no effect, because closing a terminal may send it twice. If SIGHUP was
/// ignored when the process started, as under `nohup`, it stays ignored.
pub(crate) fn listen_for_signals(shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let mut hang_up = if is_hang_up_ignored() {
        None
    } else {
        Some(signal(SignalKind::hangup()).context("cannot listen for SIGHUP")?)
    };
    tokio::spawn(async move {
        loop {
            let (name, kind) = tokio::select! {
                _ = terminate.recv() => ("SIGTERM", SignalKind::terminate()),
                _ = interrupt.recv() => ("SIGINT", SignalKind::interrupt()),
                () = hung_up(hang_up.as_mut()) => ("SIGHUP", SignalKind::hangup()),
            };
            if shutdown.is_cancelled() && name == "SIGHUP" {
                continue;
            }
            if shutdown.is_cancelled() {
                tracing::warn!(
                    signal = name,
                    "ending at once: the broker delivers the unacknowledged messages again"
                );
                #[expect(clippy::exit, reason = "that is what a second signal asks for")]
                std::process::exit(exit::SIGNAL + kind.as_raw_value());
            }
            shutdown.cancel();
            tracing::info!(signal = name, "stopping: storing the messages that were received");
        }
    });
    Ok(())
}

async fn hung_up(signal: Option<&mut Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

/// Whether SIGHUP was ignored when the process started. False if the system does not say.
fn is_hang_up_ignored() -> bool {
    const SIGHUP: u64 = 1;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    // The lowest bit is that of signal 1.
    ignored.is_some_and(|mask| mask & SIGHUP != 0)
}

/// How a capture file is compressed, by the extension of its name.
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

/// Prints a line to standard output. This is for the output of a command; messages about its
/// progress go through [`say`].
fn print_line(line: &str) {
    print(format!("{line}\n").as_bytes());
}

/// Prints bytes to standard output. Ends the process if standard output was closed, as `head` does.
fn print(bytes: &[u8]) {
    let mut output = std::io::stdout();
    if let Err(error) = output.write_all(bytes).and_then(|()| output.flush()) {
        let is_closed = error.kind() == std::io::ErrorKind::BrokenPipe;
        if !is_closed {
            say(&format!("celeriac: cannot write to standard output: {error}"));
        }
        let exit = if is_closed { exit::Exit::Done } else { exit::Exit::Failed };
        #[expect(clippy::exit, reason = "without output the command has nothing left to do")]
        std::process::exit(i32::from(exit as u8));
    }
}

/// Prints a line to standard error. Ignores a closed standard error, where `eprintln` would panic.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// A text from a message or the network, without characters that move the cursor.
fn printable(text: &str) -> String {
    let moves =
        |c: char| c.is_control() || matches!(c, '\u{200E}'..='\u{202E}' | '\u{2060}'..='\u{206F}');
    text.chars().map(|c| if moves(c) { '\u{FFFD}' } else { c }).collect()
}

/// Creates a file that only its owner can read, because it will hold arguments and results. Fails
/// if the file exists.
fn create_private(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}
