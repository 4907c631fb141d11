//! `celeriac run`: runs every lane until the process is asked to stop.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use celeriac::broker::rabbitmq::{RabbitMq, RabbitMqHints, RabbitMqTasks, queue_depth};
use celeriac::chords::{self, Chords, Orders};
use celeriac::cleanup;
use celeriac::config::Config;
use celeriac::decode::SourceKind;
use celeriac::hints::{self, Hints};
use celeriac::pipeline::{BatchPolicy, Reading, lane};
use celeriac::store::Database;
use celeriac::telemetry::http::Listener;
use celeriac::telemetry::systemd;
use celeriac::telemetry::{ChordMetrics, Counts, Telemetry};
use celeriac::version::{COMMIT, VERSION};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::listen_for_signals;

/// How long the last hints and unlock messages may take when the daemon stops.
const LAST_MESSAGES_TIMEOUT: Duration = Duration::from_secs(1);

/// Runs the daemon.
#[tokio::main]
pub(crate) async fn run(config: Config) -> anyhow::Result<ExitCode> {
    let config = Arc::new(config);
    tracing::info!(
        version = VERSION,
        commit = COMMIT.unwrap_or_default(),
        broker = ?config.brokers,
        database = %config.database,
        results_queue = config.results_queue,
        exchange = config.exchange,
        dead_queue = config.dead_queue,
        events = ?config.events,
        accept_content = ?config.decoder.accept,
        limits = ?config.decoder.limits,
        lanes = config.lanes,
        max_rows = config.max_rows,
        max_bytes = config.max_bytes,
        max_wait = ?config.max_wait,
        prefetch = config.prefetch,
        time_zone = %config.time_zone,
        cleanup_every = ?config.cleanup.every,
        listen = ?config.listen,
        "starting"
    );
    for broker in config.brokers.iter().filter(|broker| !broker.ignored.is_empty()) {
        let parameters = broker.ignored.join(", ");
        tracing::warn!(%broker, parameters, "parameters of the broker URL are ignored");
    }
    let telemetry = Arc::new(Telemetry::new());
    let shutdown = CancellationToken::new();
    // Before anything is consumed, so that a port that is in use ends the process at once.
    let listener = match config.listen {
        Some(address) => Some(Listener::bind(address).await.context("listen")?),
        None => None,
    };
    listen_for_signals(shutdown.clone())?;
    let hints = Arc::new(if config.hints { Hints::new(telemetry.hints()) } else { Hints::off() });
    let publishing =
        tokio::spawn(publish_hints(Arc::clone(&config), Arc::clone(&hints), shutdown.clone()));
    let (chords, orders) = Chords::new();
    let chords = Arc::new(chords);
    // Lanes that stop may still complete chords.
    let lanes_stopped = CancellationToken::new();
    let unlocking = tokio::spawn(unlock_chords(
        Arc::clone(&config),
        Arc::clone(&chords),
        orders,
        telemetry.chords(),
        lanes_stopped.clone(),
    ));
    let lanes = run_lanes(&config, &telemetry, &hints, &chords, &shutdown)?;
    // These tasks run until the process ends, so that health and metrics are available while the
    // lanes stop.
    tokio::spawn(systemd::watch(Arc::clone(&telemetry), shutdown.clone()));
    if let Some(listener) = listener {
        tokio::spawn(listener.serve(Arc::clone(&telemetry), shutdown.clone()));
        let telemetry = Arc::clone(&telemetry);
        tokio::spawn(queue_depth::watch(Arc::clone(&config), move |queue, role, depth| {
            telemetry.set_depth(queue, role, depth.map(|depth| (depth.messages, depth.consumers)));
        }));
    }
    if let Some(every) = config.cleanup.every {
        let (config, telemetry) = (Arc::clone(&config), Arc::clone(&telemetry));
        tokio::spawn(cleanup::watch(config, every, telemetry, shutdown.clone()));
    }
    wait_for(lanes).await?;
    hints.close();
    lanes_stopped.cancel();
    let last = async { tokio::join!(publishing, unlocking) };
    let _ = tokio::time::timeout(LAST_MESSAGES_TIMEOUT, last).await;
    let Counts { messages, rows_read, rows_written, dead } = telemetry.counts();
    tracing::info!(messages, rows_read, rows_written, ?dead, "stopped");
    Ok(ExitCode::SUCCESS)
}

async fn unlock_chords(
    config: Arc<Config>,
    chords: Arc<Chords>,
    orders: Orders,
    metrics: ChordMetrics,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let store = Database::new(&config).context("database")?.chords();
    let broker = RabbitMqTasks::new(config);
    chords::run(&chords, orders, store, broker, &metrics, &shutdown).await;
    Ok(())
}

async fn publish_hints(config: Arc<Config>, hints: Arc<Hints>, shutdown: CancellationToken) {
    hints::publish(&hints, &mut RabbitMqHints::new(config), &shutdown).await;
}

/// Starts every lane, each with its own store.
fn run_lanes(
    config: &Arc<Config>,
    telemetry: &Telemetry,
    hints: &Arc<Hints>,
    chords: &Arc<Chords>,
    shutdown: &CancellationToken,
) -> anyhow::Result<JoinSet<()>> {
    let mut lanes = JoinSet::new();
    // Events have a separate lane, so that results never wait behind them.
    let of_events = config.events.is_some().then_some(None);
    for number in (1..=config.lanes).map(Some).chain(of_events) {
        let mut store = Database::new(config).context("database")?.store();
        let (mut broker, kind, queue) = match (number, &config.events) {
            (None, Some(events)) => {
                (RabbitMq::events(Arc::clone(config)), SourceKind::Events, &events.queue)
            }
            _ => {
                (RabbitMq::results(Arc::clone(config)), SourceKind::Results, &config.results_queue)
            }
        };
        let name = number.map_or_else(|| "events".to_owned(), |number| number.to_string());
        let telemetry = telemetry.lane(&name, queue);
        let (config, shutdown) = (Arc::clone(config), shutdown.clone());
        let (hints, chords) = (Arc::clone(hints), Arc::clone(chords));
        let lane = async move {
            let reading = Reading {
                decoder: &config.decoder,
                kind,
                lane: &telemetry,
                hints: &hints,
                chords: &chords,
            };
            let policy = BatchPolicy::of(&config);
            lane::run(&mut broker, &mut store, reading, policy, &shutdown).await;
        };
        let span = number.map(|number| tracing::info_span!("lane", number));
        lanes.spawn(lane.instrument(span.unwrap_or_else(|| tracing::info_span!("events"))));
    }
    Ok(lanes)
}

/// Waits until every lane has stopped.
async fn wait_for(mut lanes: JoinSet<()>) -> anyhow::Result<()> {
    while let Some(ended) = lanes.join_next().await {
        ended.context("a lane has failed")?;
    }
    Ok(())
}
