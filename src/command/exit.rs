//! The exit codes, which are the same for every command.

use std::process::ExitCode;

/// How a command ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Everything was done.
    Done = 0,
    /// Something failed or was not done; standard error says what.
    Failed = 1,
    /// The command line or a setting is wrong, and nothing was done. clap uses this code too.
    Usage = 2,
}

/// Added to the number of the signal that ended a command at once, as shells do.
pub(super) const SIGNAL: i32 = 128;

/// Each code and its meaning, for the help and the manual pages.
pub(crate) const CODES: [(&str, &str); 4] = [
    ("0", "Everything was done. A stopped `run` has stored what it received."),
    ("1", "Something failed or was not done; the error says what."),
    ("2", "A setting or the command line is wrong; nothing was done."),
    ("130, 143", "Ended at once by a second SIGINT or SIGTERM; nothing is lost."),
];

/// The list of codes at the end of the help.
pub(crate) fn help() -> String {
    let lines = CODES.map(|(code, meaning)| format!("  {code:<10}{meaning}"));
    format!("Exit status:\n{}", lines.join("\n"))
}

/// An error in the command line that clap does not find, such as a missing or contradictory option.
/// Its text says how to fix it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct UsageError(pub(crate) String);

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl From<&anyhow::Error> for Exit {
    fn from(error: &anyhow::Error) -> Self {
        if error.is::<UsageError>() { Self::Usage } else { Self::Failed }
    }
}
