//! The command line: which command, its settings, and the exit status.

mod command;

use std::os::unix::process::CommandExt;
use std::process::ExitCode;

use celeriac::diagnosis::Causes;
use celeriac::version::VERSION_AND_COMMIT;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::command::exit::{self, Exit};
use crate::command::{
    SettingsArgs, capture, check, cleanup, completion, dead, health, man, migrate, replay, run, say,
};

/// Puts the results of Celery tasks into a Django project's database.
#[derive(Parser)]
#[command(name = "celeriac", version = VERSION_AND_COMMIT.as_str(), max_term_width = 100)]
#[command(after_help = exit::help())]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Takes results from RabbitMQ and stores them until it is told to stop.
    ///
    /// Celery workers send a message for each state of a task to the results queue, with the result
    /// backend `celeriac://` or with `rpc://` and a `reply_to` that names the queue. Celeriac
    /// consumes that queue and writes the table `django_celery_results_taskresult`, which the Django
    /// project's own migrations or `celeriac migrate` have made. A message is acknowledged when its row is committed.
    ///
    /// Every setting may also stand in the environment, as `CELERIAC_MAX_ROWS` for `--max-rows`, or
    /// in a TOML file, as `max-rows`. The command line wins over the environment, and that over the
    /// file.
    ///
    /// SIGTERM, SIGINT and SIGHUP end it: it stops consuming, stores and acknowledges what it holds
    /// and exits with 0. A second signal ends it at once; nothing is lost then either. It exits with
    /// 2 when a setting is wrong. Settings and files are read at the start, so a restart reloads
    /// them.
    Run {
        #[command(flatten)]
        settings: SettingsArgs,
    },

    /// Tries everything that `run` needs, and says what is missing and what to type.
    ///
    /// Looks at the broker, the queues and this user's rights; at the database, the tables and their
    /// migrations; and sends a message through a private queue to a write that is undone. Nothing is
    /// made or changed, and no message is taken, so a daemon that runs is not disturbed.
    ///
    /// It exits with 0 when `celeriac run` would work, with 1 when it would not, and with 2 when a
    /// setting is wrong.
    Check {
        #[command(flatten)]
        settings: SettingsArgs,
        #[command(flatten)]
        arguments: check::Arguments,
    },

    /// Makes the tables of django-celery-results in a database that has none.
    ///
    /// The three tables come out as the last migration of django-celery-results 2.6 leaves them, and
    /// Django's migrations are recorded in `django_migrations`, so that `manage.py migrate` finds
    /// nothing to do for them. Tables that are there are never changed: where they are older,
    /// incomplete or different it says what it found, and to run `python manage.py migrate`.
    ///
    /// Content types and permissions are not made: the next `manage.py migrate` makes them. It exits
    /// with 0 when the tables are good, with 1 when they are not, and with 2 when a setting is
    /// wrong.
    Migrate {
        #[command(flatten)]
        settings: SettingsArgs,
        #[command(flatten)]
        arguments: migrate::Arguments,
    },

    /// Deletes expired rows, as Celery's `celery.backend_cleanup` does, a few at a time.
    ///
    /// A row has expired when its `date_done` is longer ago than --result-expires, or than what is
    /// said of its state or its task's name. Celeriac and Django go on writing meanwhile: a batch
    /// holds its locks only while it is deleted, rows that somebody else has locked are left for
    /// the next time, and so is what has become newer. Several at once, and Celery's own cleanup,
    /// do not disturb each other.
    ///
    /// SIGTERM and SIGINT end it after the batch that it is at, with 0; the next one goes on with
    /// what is left. It exits with 1 when the database does not answer when it begins, or not for
    /// 10 minutes afterwards, or refuses, and with 2 when a setting is wrong.
    Cleanup {
        #[command(flatten)]
        settings: SettingsArgs,
        #[command(flatten)]
        arguments: cleanup::Arguments,
    },

    /// Shows, replays or deletes the messages that could not be stored.
    ///
    /// They are in the dead-letter queue, each with the reason in its headers. Looking at them
    /// leaves them where they are; RabbitMQ counts it as a delivery.
    Dead {
        #[command(flatten)]
        settings: SettingsArgs,
        #[command(subcommand)]
        action: dead::Action,
    },

    /// Records messages in a file.
    ///
    /// By default it records copies of what workers with `celeriac://` publish from now on, and
    /// with `--events` of the task events: a private queue is bound beside the others, and nobody
    /// is disturbed. Workers with `rpc://` publish straight to the results queue, where only
    /// RabbitMQ's firehose gives copies (`--firehose`). `--drain` takes messages out of their queue.
    ///
    /// The file has one JSON object a line, with the body, the properties and the headers of a
    /// message. It holds arguments and results: keep it as you keep the database. It is compressed
    /// where its name ends in `.gz` or `.zst`, and never overwritten. `celeriac replay` stores it.
    Capture {
        #[command(flatten)]
        settings: SettingsArgs,
        #[command(flatten)]
        arguments: capture::Arguments,
    },

    /// Stores the messages that `celeriac capture` has recorded.
    ///
    /// They are decoded, merged and stored as by `celeriac run`; no broker is needed, and storing
    /// them twice changes nothing. It exits with 1 when a message was refused.
    Replay {
        #[command(flatten)]
        settings: SettingsArgs,
        #[command(flatten)]
        arguments: replay::Arguments,
    },

    /// Asks a daemon that runs how it is, at its `--listen` address.
    ///
    /// It exits with 0 when every lane consumes its queue and has a database that takes writes (or,
    /// with `--live`, when none is stuck), and else with 1 and the reason. That is what the health
    /// check of a container, a probe of Kubernetes or a script asks. It takes the same settings as
    /// the daemon; where that listens on every address, as 0.0.0.0, the loopback is asked.
    Health {
        #[command(flatten)]
        settings: SettingsArgs,
        #[command(flatten)]
        arguments: health::Arguments,
    },

    /// Prints what a shell needs to complete the command line.
    ///
    /// Bash: `celeriac completion bash > /usr/share/bash-completion/completions/celeriac`; zsh: as
    /// `_celeriac` into a folder of `$fpath`; fish: as `celeriac.fish` into
    /// `~/.config/fish/completions`.
    Completion(completion::Arguments),

    /// Prints the manual page, or makes those of all commands.
    ///
    /// `celeriac man | man -l -` shows the page of the program. With `--out` there is one for each
    /// command: `celeriac man --out /usr/local/share/man/man1`, and then `man celeriac-run`.
    Man(man::Arguments),
}

/// The stack of each thread, in bytes; it is taken from memory only as far as it is used. lapin
/// reads nested headers by recursion, and a message with the most that fit into a frame needs some
/// 30 MiB, where the default is 2.
const STACK_BYTES: &str = "67108864";

fn main() -> ExitCode {
    if std::env::var_os("RUST_MIN_STACK").is_none()
        && let Ok(program) = std::env::current_exe()
    {
        // The standard library reads the variable once, so the process begins anew with it. Where
        // that fails it goes on without.
        let mut again = std::process::Command::new(program);
        let _ = again.args(std::env::args_os().skip(1)).env("RUST_MIN_STACK", STACK_BYTES).exec();
    }
    let matches = command_line().get_matches();
    let command_line_with_file = match SettingsArgs::with_defaults(command_line(), &matches) {
        Ok(command_line) => command_line,
        Err(error) => return fail(&error, Exit::Usage),
    };
    let cli = Cli::from_arg_matches(&command_line_with_file.get_matches());
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
        Command::Dead { settings, action } => {
            settings.check().map(|config| dead::run(action, &config))
        }
        Command::Capture { settings, arguments } => {
            settings.check().map(|config| capture::run(&arguments, &config))
        }
        Command::Replay { settings, arguments } => {
            settings.check().map(|config| replay::run(&arguments, &config))
        }
        // Docker keeps 2 for itself.
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

/// The command line, in which each command's help shows the settings that concern it.
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
