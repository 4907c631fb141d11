//! The exit codes, the same for every command.

use std::process::ExitCode;

/// How a command ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// All is done.
    Done = 0,
    /// Something failed, or was left undone; standard error says what.
    Failed = 1,
    /// The command line or a setting is wrong, and nothing was begun. clap ends with it as well.
    Usage = 2,
}

/// What is added to the number of the signal that ends a command at once, as shells do it.
pub(super) const SIGNAL: i32 = 128;

/// What the help and the manual pages say about the codes: the code, and when it is given.
pub(crate) const CODES: [(&str, &str); 4] = [
    ("0", "Done. `run` was asked to stop, and has settled what it held."),
    ("1", "Failed, or left something undone; the error says what."),
    ("2", "A setting or the command line is wrong; nothing was begun."),
    ("130, 143", "Ended at once by a second SIGINT or SIGTERM; nothing is lost."),
];

/// The codes as the end of the help.
pub(crate) fn help() -> String {
    let lines = CODES.map(|(code, meaning)| format!("  {code:<10}{meaning}"));
    format!("Exit status:\n{}", lines.join("\n"))
}

/// A command line that clap takes and that says too little or too much; its text names the fix.
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
