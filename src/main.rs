//! The command line: settings, logging, lanes, signals and the exit status.

use std::os::unix::process::CommandExt;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use celeriac::config::{Config, ConfigFile, DatabaseKind, Settings};
use celeriac::store::{Mysql, Postgres, Sqlite, Store, StoreError};
use celeriac::{lane, telemetry};
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

/// Puts the results of Celery tasks into a Django project's database.
#[derive(Parser)]
#[command(name = "celeriac", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Takes results from RabbitMQ and stores them until it is told to stop.
    ///
    /// Celery workers with the result backend `rpc://` send a message for each state of a task to
    /// the queue that the task's `reply_to` names. Celeriac consumes that queue and writes the
    /// table `django_celery_results_taskresult`, which the Django project's own migrations have
    /// made. A message is acknowledged when its row is committed.
    ///
    /// Every setting may also stand in the environment, as `CELERIAC_MAX_ROWS` for `--max-rows`, or
    /// in a TOML file, as `max-rows`. The command line wins over the environment, and that over the
    /// file.
    ///
    /// SIGTERM and SIGINT end it: it stops consuming, stores and acknowledges what it holds and
    /// exits with 0. A second signal ends it at once; nothing is lost then either. It exits with
    /// 2 when a setting is wrong.
    Run {
        #[command(flatten)]
        file: ConfigFile,
        #[command(flatten)]
        settings: Box<Settings>,
    },
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
    let Cli { command: Command::Run { file, settings } } = Cli::parse();
    let config = match configure(&file, *settings) {
        Ok(config) => config,
        Err(error) => return fail(&error, 2),
    };
    match serve(&Arc::new(config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, 1),
    }
}

#[expect(clippy::print_stderr, reason = "there may be no log yet")]
fn fail(error: &anyhow::Error, status: u8) -> ExitCode {
    eprintln!("celeriac: {error:#}");
    ExitCode::from(status)
}

fn configure(file: &ConfigFile, settings: Settings) -> anyhow::Result<Config> {
    let from_file = file.config.as_deref().map(Settings::from_file).transpose()?;
    let shared = Settings::from_shared_environment(|name| {
        std::env::var(name).ok().filter(|value| !value.is_empty())
    });
    let settings = settings.or(from_file.unwrap_or_default()).or(shared);
    let config = settings.check()?;
    check_database(&config).context("database")?;
    telemetry::init(config.log_format, &config.log_level)
        .with_context(|| format!("log-level: {:?} is not a filter", config.log_level))?;
    Ok(config)
}

/// Finds parameters of the database's URL that its driver refuses, before anything is started.
fn check_database(config: &Config) -> Result<(), StoreError> {
    match config.database.kind() {
        DatabaseKind::Postgres => Postgres::new(&config.database).map(drop),
        DatabaseKind::Mysql => Mysql::new(&config.database, config.time_zone).map(drop),
        DatabaseKind::Sqlite => Ok(()),
    }
}

#[tokio::main]
async fn serve(config: &Arc<Config>) -> anyhow::Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    tracing::info!(
        version,
        broker = ?config.brokers,
        database = %config.database,
        results_queue = config.results_queue,
        exchange = config.exchange,
        dead_queue = config.dead_queue,
        events = ?config.events,
        lanes = config.lanes,
        max_rows = config.limits.max_rows,
        max_bytes = config.limits.max_bytes,
        max_wait = ?config.max_wait,
        prefetch = config.prefetch,
        time_zone = %config.time_zone,
        "starting"
    );
    for broker in config.brokers.iter().filter(|broker| !broker.ignored.is_empty()) {
        let parameters = broker.ignored.join(", ");
        tracing::warn!(%broker, parameters, "parameters of the broker URL mean nothing here");
    }
    let shutdown = CancellationToken::new();
    listen_for_signals(shutdown.clone())?;
    match config.database.kind() {
        DatabaseKind::Postgres => {
            run_lanes(config, &shutdown, || Postgres::new(&config.database)).await?;
        }
        DatabaseKind::Mysql => {
            run_lanes(config, &shutdown, || Mysql::new(&config.database, config.time_zone)).await?;
        }
        DatabaseKind::Sqlite => {
            run_lanes(config, &shutdown, || {
                Ok(Sqlite::new(config.database.path(), config.time_zone))
            })
            .await?;
        }
    }
    tracing::info!("stopped");
    Ok(())
}

/// Runs every lane, with a store of its own, until all have stopped.
async fn run_lanes<S: Store + 'static>(
    config: &Arc<Config>,
    shutdown: &CancellationToken,
    store: impl Fn() -> Result<S, StoreError>,
) -> anyhow::Result<()> {
    let mut lanes = JoinSet::new();
    for number in 1..=config.lanes {
        let store = store().context("database")?;
        let (config, shutdown) = (Arc::clone(config), shutdown.clone());
        let lane = async move { lane::run(&config, None, store, &shutdown).await };
        lanes.spawn(lane.instrument(tracing::info_span!("lane", number)));
    }
    if config.events.is_some() {
        // A lane of their own, so that no result ever stands behind events.
        let store = store().context("database")?;
        let (config, shutdown) = (Arc::clone(config), shutdown.clone());
        let lane = async move {
            lane::run(&config, config.events.as_ref(), store, &shutdown).await;
        };
        lanes.spawn(lane.instrument(tracing::info_span!("events")));
    }
    while let Some(ended) = lanes.join_next().await {
        ended.context("a lane has failed")?;
    }
    Ok(())
}

/// The first SIGTERM or SIGINT asks the lanes to stop, the second ends the process.
fn listen_for_signals(shutdown: CancellationToken) -> anyhow::Result<()> {
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
            tracing::info!(signal = name, "stopping: storing what is held");
            shutdown.cancel();
        }
    });
    Ok(())
}
