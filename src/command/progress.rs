//! Progress of a long command: a bar on a terminal, otherwise a line at intervals.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::say;

/// How often a line is written if standard error is not a terminal.
const INTERVAL: Duration = Duration::from_secs(10);

/// Shows on standard error how much of a total is done, if there is a total.
pub(super) struct Progress {
    bar: ProgressBar,
    what: &'static str,
    is_terminal: bool,
    reported_at: Instant,
}

impl Progress {
    /// The progress of a number of things, such as `rows`; a total of 0 means that it is not known.
    pub(super) fn new(total: u64, what: &'static str) -> Self {
        Self::with(total, what, &format!("{{human_pos}} of {{human_len}} {what}"))
    }

    /// The progress of reading files with this many bytes in total.
    pub(super) fn of_bytes(total: u64) -> Self {
        Self::with(total, "bytes", "{bytes} of {total_bytes} read")
    }

    fn with(total: u64, what: &'static str, numbers: &str) -> Self {
        let template = if total > 0 {
            format!("{{wide_bar}} {numbers}, {{msg}} {{eta}} left")
        } else {
            format!("{{spinner}} {{human_pos}} {what} {{msg}} {{elapsed}}")
        };
        let style = ProgressStyle::with_template(&template);
        let bar = if total > 0 { ProgressBar::new(total) } else { ProgressBar::no_length() };
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        let is_terminal = std::io::stderr().is_terminal();
        Self { bar, what, is_terminal, reported_at: Instant::now() }
    }

    /// Sets the current position.
    pub(super) fn set(&mut self, position: u64) {
        self.bar.set_position(position);
        if !self.is_terminal && self.reported_at.elapsed() > INTERVAL {
            self.reported_at = Instant::now();
            match self.bar.length() {
                Some(total) => self.say(&format!("{position} of {total} {}", self.what)),
                None => self.say(&format!("{position} {}", self.what)),
            }
        }
    }

    /// Adds 1 to the position.
    pub(super) fn add_one(&mut self) {
        self.set(self.bar.position() + 1);
    }

    /// Prints a line above the bar.
    pub(super) fn say(&self, line: &str) {
        if self.is_terminal { self.bar.println(line) } else { say(line) }
    }

    /// Removes the bar.
    pub(super) fn end(&self) {
        self.bar.finish_and_clear();
    }
}
