//! What a process tells of itself: its log, to standard error, as text or JSON, and its counters.
//!
//! WARN is for what heals or can be mended without loss, ERROR for what needs somebody. Batches
//! are logged at DEBUG, messages at TRACE, and no argument, result or password at any level.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

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
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Json => subscriber.json().init(),
        LogFormat::Text => {
            subscriber.with_target(false).with_ansi(std::io::stderr().is_terminal()).init();
        }
    }
    Ok(())
}

/// What a process has done so far. Lanes share it.
#[derive(Debug, Default)]
pub struct Counters {
    messages: AtomicU64,
    rows_read: AtomicU64,
    rows_written: AtomicU64,
    dead: Mutex<BTreeMap<&'static str, u64>>,
}

/// The [`Counters`] at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Messages that were taken, those that came again included.
    pub messages: u64,
    /// Rows that they spoke of.
    pub rows_read: u64,
    /// Rows that were written. The others were merged into these before.
    pub rows_written: u64,
    /// Dead letters, by the code of their reason.
    pub dead: BTreeMap<&'static str, u64>,
}

impl Counters {
    /// A message was taken.
    pub(crate) fn receive(&self) {
        self.messages.fetch_add(1, Ordering::Relaxed);
    }

    /// Rows were read from a message.
    pub(crate) fn read(&self, rows: usize) {
        self.rows_read.fetch_add(rows as u64, Ordering::Relaxed);
    }

    /// Rows were committed.
    pub(crate) fn write(&self, rows: usize) {
        self.rows_written.fetch_add(rows as u64, Ordering::Relaxed);
    }

    /// A message has become a dead letter for a reason.
    pub(crate) fn bury(&self, reason: &'static str) {
        let mut dead = self.dead.lock().unwrap_or_else(PoisonError::into_inner);
        *dead.entry(reason).or_default() += 1;
    }

    /// What was counted up to now.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            messages: self.messages.load(Ordering::Relaxed),
            rows_read: self.rows_read.load(Ordering::Relaxed),
            rows_written: self.rows_written.load(Ordering::Relaxed),
            dead: self.dead.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
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
