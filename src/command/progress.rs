//! How far a long command is: a bar on a terminal, a line now and then elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::say;

/// How often a line is written where there is no terminal.
const INTERVAL: Duration = Duration::from_secs(10);

/// Counts up to a total, if there is one, on standard error.
pub(super) struct Progress {
    bar: ProgressBar,
    what: &'static str,
    is_terminal: bool,
    told_at: Instant,
}

impl Progress {
    /// Of so many things, such as `letters`; 0 where nobody knows.
    pub(super) fn new(total: u64, what: &'static str) -> Self {
        Self::with(total, what, &format!("{{human_pos}} of {{human_len}} {what}"))
    }

    /// Of so many bytes of files.
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
        Self { bar, what, is_terminal, told_at: Instant::now() }
    }

    /// It has come so far.
    pub(super) fn set(&mut self, position: u64) {
        self.bar.set_position(position);
        if !self.is_terminal && self.told_at.elapsed() > INTERVAL {
            self.told_at = Instant::now();
            match self.bar.length() {
                Some(total) => self.say(&format!("{position} of {total} {}", self.what)),
                None => self.say(&format!("{position} {}", self.what)),
            }
        }
    }

    /// One more.
    pub(super) fn add_one(&mut self) {
        self.set(self.bar.position() + 1);
    }

    /// Writes a line that stays, above the bar.
    pub(super) fn say(&self, line: &str) {
        if self.is_terminal { self.bar.println(line) } else { say(line) }
    }

    /// Takes the bar away.
    pub(super) fn end(&self) {
        self.bar.finish_and_clear();
    }
}
