//! `celeriac run`: every lane until it is time to stop.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use celeriac::config::Config;
use celeriac::lane;
use celeriac::store::Database;
use celeriac::telemetry::{Counters, Counts};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::listen_for_signals;

/// Runs the daemon.
#[tokio::main]
pub(crate) async fn run(config: Config) -> anyhow::Result<ExitCode> {
    let config = Arc::new(config);
    let version = env!("CARGO_PKG_VERSION");
    tracing::info!(
        version,
        broker = ?config.brokers,
        database = %config.database,
        results_queue = config.results_queue,
        exchange = config.exchange,
        dead_queue = config.dead_queue,
        events = ?config.events,
        accept_content = ?config.decoder.accept,
        limits = ?config.decoder.limits,
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
    let counters = Arc::new(Counters::default());
    let shutdown = CancellationToken::new();
    listen_for_signals(shutdown.clone())?;
    run_lanes(&config, &counters, &shutdown).await?;
    let Counts { messages, rows_read, rows_written, dead } = counters.counts();
    tracing::info!(messages, rows_read, rows_written, ?dead, "stopped");
    Ok(ExitCode::SUCCESS)
}

/// Runs every lane, with a store of its own, until all have stopped.
async fn run_lanes(
    config: &Arc<Config>,
    counters: &Arc<Counters>,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let mut lanes = JoinSet::new();
    // Events have a lane of their own, so that no result ever stands behind them.
    let of_events = config.events.is_some().then_some(None);
    for number in (1..=config.lanes).map(Some).chain(of_events) {
        let store = Database::new(config).context("database")?;
        let (config, counters) = (Arc::clone(config), Arc::clone(counters));
        let shutdown = shutdown.clone();
        let lane = async move {
            let events = config.events.as_ref().filter(|_| number.is_none());
            lane::run(&config, events, store, &counters, &shutdown).await;
        };
        let span = number.map(|number| tracing::info_span!("lane", number));
        lanes.spawn(lane.instrument(span.unwrap_or_else(|| tracing::info_span!("events"))));
    }
    while let Some(ended) = lanes.join_next().await {
        ended.context("a lane has failed")?;
    }
    Ok(())
}
