//! Logging, metrics and health, and how they are published: standard error, HTTP and systemd.
//!
//! WARN is for problems that end by themselves or can be fixed without a loss, and ERROR for
//! problems that somebody must fix. Batches are logged at DEBUG and messages at TRACE. No argument,
//! result or password is logged at any level.

mod chords;
mod cleanup;
mod families;
mod hints;
pub mod http;
mod lane;
mod metrics;
mod process;
pub mod systemd;

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

pub use self::chords::ChordMetrics;
pub use self::cleanup::{CleanupMetrics, CleanupOutcome};
pub use self::families::Counts;
pub use self::hints::HintMetrics;
pub(crate) use self::lane::BatchSize;
pub use self::lane::{Lane, STUCK_AFTER};
pub use self::metrics::{Health, Telemetry};
use crate::config::LogFormat;

/// Starts logging for the whole process.
///
/// # Errors
///
/// When the filter cannot be read.
pub fn init(format: LogFormat, level: &str) -> Result<(), ParseError> {
    // lapin and sqlx report the errors that they also return, and those are logged where they
    // are handled.
    let filter = EnvFilter::try_new(format!("off,celeriac={level}"))
        .or_else(|_| EnvFilter::try_new(level))?;
    // If standard error is closed, reporting the failed write would panic and end the daemon.
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .log_internal_errors(false);
    match format {
        LogFormat::Json => subscriber.json().init(),
        LogFormat::Text => {
            subscriber.with_target(false).with_ansi(std::io::stderr().is_terminal()).init();
        }
    }
    Ok(())
}
