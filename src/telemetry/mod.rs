//! What a process tells of itself: its log, to standard error, as text or JSON, its metrics and its
//! health.
//!
//! WARN is for what heals or can be mended without loss, ERROR for what needs somebody. Batches
//! are logged at DEBUG, messages at TRACE, and no argument, result or password at any level.

mod cleanup;
mod lane;
mod metrics;
mod process;

use std::error::Error;
use std::fmt;
use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

pub use self::cleanup::{Cleanup, Outcome};
pub(crate) use self::lane::reason;
pub use self::lane::{Lane, STUCK_AFTER};
pub use self::metrics::{Counts, Health, REASONS, Telemetry};
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
    // Where nobody reads the log any more, its complaint about that would end the daemon.
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

/// An error followed by what caused it.
pub struct Causes<'error>(pub &'error (dyn Error + Send + Sync));

impl fmt::Display for Causes<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = self.0.to_string();
        formatter.write_str(&text)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            // Some libraries repeat the cause in their own text.
            let error_text = error.to_string();
            if !text.contains(&error_text) {
                write!(formatter, ": {error_text}")?;
            }
            text = error_text;
            cause = error.source();
        }
        Ok(())
    }
}
