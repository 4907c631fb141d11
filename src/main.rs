//! The command line: parses it, runs the command and sets the exit status.

mod command;

use std::os::unix::process::CommandExt;
use std::process::ExitCode;

use celeriac::diagnosis::Causes;
use celeriac::version::VERSION_AND_COMMIT;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::command::exit::{self, Exit};
use crate::command::{
    SettingsArgs, capture, check, chords, cleanup, completion, dead, health, man, migrate, replay,
    run, say,
};

/// Writes the results of Celery tasks to a Django project's database.
#[derive(Parser)]
#[command(name = "celeriac", version = VERSION_AND_COMMIT.as_str(), max_term_width = 100)]
#[command(after_help = exit::help())]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Consumes results from RabbitMQ and stores them until it is stopped.
    ///
    /// Celery workers send a message for each state of a task to the results queue, either with the
    /// result backend `celeriac://` or with `rpc://` and a `reply_to` that names the queue.
    /// Celeriac consumes that queue and writes to the table `django_celery_results_taskresult`,
    /// which must have been created by the Django project's migrations or by `celeriac migrate`. A
    /// message is acknowledged after its row is committed.
    ///
    /// Every setting can also be given as an environment variable (`CELERIAC_MAX_ROWS` for
    /// `--max-rows`) or in a TOML file (`max-rows`). The command line takes precedence over the
    /// environment, and the environment over the file.
    ///
    /// On SIGTERM, SIGINT or SIGHUP it stops consuming, stores and acknowledges the messages that
    /// it has received, and exits with 0. A second SIGTERM or SIGINT ends it at once; nothing is
    /// lost then either. It exits with 2 if a setting is wrong. Settings and files are read at the
    /// start, so a change needs a restart.
    Run {
        #[command(flatten)]
        settings: SettingsArgs,
    },

    /// Tests everything that `run` needs, and says what is wrong and how to fix it.
    ///
    /// It checks the broker, the queues and this user's permissions, and the database, the tables
    /// and their migrations. It also sends a message through a private queue and writes its row in
    /// a transaction that is rolled back. It creates and changes nothing and consumes no message,
    /// so it can be used while a daemon is running.
    ///
    /// It exits with 0 if `celeriac run` would work, with 1 if it would not, and with 2 if a
    /// setting is wrong.
    Check {
        #[command(flatten)]
        settings: SettingsArgs,
        #[command(flatten)]
        arguments: check::Arguments,
    },

    /// Creates the tables of django-celery-results and of Celeriac in a database that has none.
    ///
    /// Three tables are those of django-celery-results 2.6, and two are those of Celeriac's own
    /// Django app, in which chords wait for their members. Django's migrations are recorded in
    /// `django_migrations`, so that `manage.py migrate` finds nothing to do for them. Existing tables
    /// are never changed: if they are older, incomplete or different, the command says what it found
    /// and to run `python manage.py migrate`. If the tables of only one of the two are missing, it
    /// creates those.
    ///
    /// Content types and permissions are not created: the next `manage.py migrate` creates them.
    /// The command exits with 0 if the tables can be used, with 1 if they cannot, and with 2 if a
    /// setting is wrong.
    Migrate {
        #[command(flatten)]
        settings: SettingsArgs,
        #[command(flatten)]
        arguments: migrate::Arguments,
    },

    /// Deletes expired rows in small batches, as Celery's `celery.backend_cleanup` does.
    ///
    /// A row has expired when its `date_done` is older than --result-expires, or older than the age
    /// that is set for its state or its task's name. Celeriac and Django can write in the meantime:
    /// locks are held only while one batch is deleted, and rows that are locked by another
    /// transaction or were updated in the meantime are skipped. Several cleanups, and Celery's own,
    /// can run at the same time.
    ///
    /// SIGTERM and SIGINT end it with 0 after the current batch; the next cleanup deletes the rest.
    /// It exits with 1 if the database does not answer at the beginning, does not answer for 10
    /// minutes later on, or refuses a statement, and with 2 if a setting is wrong.
    Cleanup {
        #[command(flatten)]
        settings: SettingsArgs,
        #[command(flatten)]
        arguments: cleanup::Arguments,
    },

    /// Shows the chords that are open, and what they wait for.
    ///
    /// A chord is open until a worker has sent its body or has failed it. Rows of its members are not
    /// deleted by `celeriac cleanup`.
    Chords {
        #[command(flatten)]
        settings: SettingsArgs,
        #[command(subcommand)]
        action: chords::Action,
    },

    /// Shows, replays or deletes the messages that could not be stored.
    ///
    /// They are in the dead-letter queue, each with the reason in its headers. Listing and showing
    /// messages leaves them in the queue, but RabbitMQ counts it as a delivery.
    Dead {
        #[command(flatten)]
        settings: SettingsArgs,
        #[command(subcommand)]
        action: dead::Action,
    },

    /// Records messages in a file.
    ///
    /// By default it records copies of the results that workers with `celeriac://` publish from now
    /// on, and with `--events` also copies of the task events. The copies come from a private queue
    /// that is bound to the same exchange, so other consumers are not affected. Workers with
    /// `rpc://` publish directly to the results queue, where copies are available only from
    /// RabbitMQ's firehose (`--firehose`). `--drain` removes messages from a queue and records
    /// them.
    ///
    /// Each line of the file is a JSON object with the body, the properties and the headers of one
    /// message. The file contains arguments and results, so protect it as you protect the database.
    /// It is compressed if its name ends in `.gz` or `.zst`, and an existing file is never
    /// overwritten. `celeriac replay` stores the messages.
    Capture {
        #[command(flatten)]
        settings: SettingsArgs,
        #[command(flatten)]
        arguments: capture::Arguments,
    },

    /// Stores the messages that `celeriac capture` recorded.
    ///
    /// The messages are decoded, merged and stored as `celeriac run` does it. No broker is needed,
    /// and storing messages twice changes nothing. It exits with 1 if a message was refused.
    Replay {
        #[command(flatten)]
        settings: SettingsArgs,
        #[command(flatten)]
        arguments: replay::Arguments,
    },

    /// Asks a running daemon for its health, at its `--listen` address.
    ///
    /// It exits with 0 if every lane consumes its queue and can write to the database (with
    /// `--live`: if no lane is stuck), and otherwise prints the reason and exits with 1. It is
    /// meant for the health check of a container, a Kubernetes probe or a script. It uses the same
    /// settings as the daemon; if the daemon listens on all addresses (0.0.0.0), the loopback
    /// address is asked.
    Health {
        #[command(flatten)]
        settings: SettingsArgs,
        #[command(flatten)]
        arguments: health::Arguments,
    },

    /// Prints a completion script for a shell.
    ///
    /// For bash: `celeriac completion bash > /usr/share/bash-completion/completions/celeriac`. For
    /// zsh, save the script as `_celeriac` in a folder of `$fpath`; for fish, as
    /// `~/.config/fish/completions/celeriac.fish`.
    Completion(completion::Arguments),

    /// Prints the manual page, or writes the pages of all commands to a folder.
    ///
    /// `celeriac man | man -l -` shows the page of the program. With `--out` a page for each
    /// command is written: after `celeriac man --out /usr/local/share/man/man1`, `man celeriac-run`
    /// works.
    Man(man::Arguments),
}

/// The stack size of each thread, in bytes. Only the part that is used takes memory. lapin parses
/// nested headers recursively: a message with the deepest nesting that fits into a frame needs
/// about 30 MiB, and the default is 2 MiB.
const STACK_BYTES: &str = "67108864";

fn main() -> ExitCode {
    if std::env::var_os("RUST_MIN_STACK").is_none()
        && let Ok(program) = std::env::current_exe()
    {
        // The standard library reads the variable only once, so the process executes itself again
        // with it. If that fails, it continues with the default stack size.
        let mut restarted = std::process::Command::new(program);
        let _ =
            restarted.args(std::env::args_os().skip(1)).env("RUST_MIN_STACK", STACK_BYTES).exec();
    }
    // Parsed twice: first to find the settings file, then with its settings as defaults.
    let line = command_line();
    let matches = line.clone().get_matches();
    let line = match SettingsArgs::with_defaults(line, &matches) {
        Ok(line) => line,
        // Docker reserves 2 in health checks.
        Err(error) if matches.subcommand_name() == Some("health") => {
            return fail(&error, Exit::Failed);
        }
        Err(error) => return fail(&error, Exit::Usage),
    };
    let cli = Cli::from_arg_matches(&line.get_matches());
    let Cli { command } = cli.unwrap_or_else(|error| error.exit());
    let done = match command {
        Command::Run { settings } => settings.check().map(run::run),
        Command::Check { settings, arguments } => {
            settings.check().map(|config| check::run(&arguments, &config))
        }
        Command::Migrate { settings, arguments } => {
            settings.check().map(|config| migrate::run(&arguments, &config))
        }
        Command::Cleanup { settings, arguments } => {
            settings.check().map(|config| cleanup::run(&arguments, &config))
        }
        Command::Chords { settings, action } => {
            settings.check().map(|config| chords::run(&action, &config))
        }
        Command::Dead { settings, action } => {
            settings.check().map(|config| dead::run(action, &config))
        }
        Command::Capture { settings, arguments } => {
            settings.check().map(|config| capture::run(&arguments, &config))
        }
        Command::Replay { settings, arguments } => {
            settings.check().map(|config| replay::run(&arguments, &config))
        }
        // A wrong setting ends with 1 here: Docker reserves 2 in health checks.
        Command::Health { settings, arguments } => {
            Ok(settings.check().and_then(|config| health::run(&arguments, &config)))
        }
        Command::Completion(arguments) => Ok(Ok(completion::run(&arguments, &command_line()))),
        Command::Man(arguments) => Ok(man::run(&arguments, command_line())),
    };
    match done {
        Ok(Ok(status)) => status,
        Ok(Err(error)) => fail(&error, (&error).into()),
        Err(error) => fail(&error, Exit::Usage),
    }
}

/// The command line. The help of each command shows only the settings that the command uses.
fn command_line() -> clap::Command {
    const LOG: [&str; 3] = ["config", "log_format", "log_level"];
    let show = |names: &'static [&'static str]| {
        move |command| SettingsArgs::show_only(command, &[names, &LOG].concat())
    };
    Cli::command()
        .mut_subcommand(
            "check",
            show(&[
                "broker",
                "broker_file",
                "database",
                "database_file",
                "results_queue",
                "exchange",
                "dead_queue",
                "hints",
                "events",
                "events_queue",
                "event_exchange",
                "events_max_length",
                "events_ttl",
                "cleanup_every",
                "time_zone",
                "listen",
            ]),
        )
        .mut_subcommand("chords", show(&["database", "database_file", "time_zone"]))
        .mut_subcommand("migrate", show(&["database", "database_file", "time_zone"]))
        .mut_subcommand(
            "cleanup",
            show(&[
                "database",
                "database_file",
                "result_expires",
                "result_expires_by_state",
                "result_expires_by_task",
                "cleanup_batch",
                "cleanup_pause",
                "time_zone",
            ]),
        )
        .mut_subcommand("health", show(&["listen"]))
        .mut_subcommand("dead", show(&["broker", "broker_file", "dead_queue"]))
        .mut_subcommand("chords", |chords| chords.mut_args(|setting| setting.global(true)))
        .mut_subcommand("dead", |dead| dead.mut_args(|setting| setting.global(true)))
        .mut_subcommand(
            "capture",
            show(&[
                "broker",
                "broker_file",
                "results_queue",
                "exchange",
                "events",
                "event_exchange",
            ]),
        )
        .mut_subcommand(
            "replay",
            show(&[
                "database",
                "database_file",
                "event_exchange",
                "events_pending",
                "events_outcomes",
                "events_arguments",
                "rpc_arguments",
                "clock_tolerance",
                "accept_content",
                "max_body_size",
                "max_decompressed_size",
                "max_compression_ratio",
                "max_depth",
                "max_events",
                "max_expanded_values",
                "max_rows",
                "max_bytes",
                "time_zone",
            ]),
        )
}

fn fail(error: &anyhow::Error, exit: Exit) -> ExitCode {
    let error: &(dyn std::error::Error + Send + Sync) = error.as_ref();
    say(&format!("celeriac: {}", Causes(error)));
    exit.into()
}
