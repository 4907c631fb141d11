//! Errors of the database, classified by what to do about them.

use std::fmt;
use std::time::Duration;

use sqlx::error::DatabaseError;
use tracing::Level;

use super::TASKS;

/// The class of an error, which determines what to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ErrorClass {
    /// The database cannot be reached or cannot write at present: keep the rows and try again
    /// later.
    Outage,
    /// The write conflicted with another writer: try again at once.
    Conflict,
    /// One of the rows can never be stored: find it, and store the others.
    Poison,
    /// A table or a right is missing: stop, and report what to do.
    Setup,
}

/// What to do after an error of a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Try again without waiting.
    RetryAtOnce,
    /// Keep the rows, wait and try again, for at most [`MAX_HOLD`].
    RetryLater,
    /// Find the row that cannot be stored, and store the others.
    Refuse,
    /// Stop trying: the error remains until somebody fixes the set-up.
    GiveUp,
}

/// How long rows are kept while the database cannot be written. By default, RabbitMQ closes a
/// channel that has not acknowledged a message for 30 minutes, and it counts each redelivery of a
/// message.
pub const MAX_HOLD: Duration = Duration::from_mins(10);

/// How often a write that conflicted with another writer is tried again at once.
const CONFLICT_RETRIES: usize = 5;

impl ErrorClass {
    /// What to do about an error of this class after `retries` immediate retries.
    #[must_use]
    pub fn action(self, retries: usize) -> Action {
        match self {
            Self::Poison => Action::Refuse,
            Self::Setup => Action::GiveUp,
            Self::Conflict if retries < CONFLICT_RETRIES => Action::RetryAtOnce,
            Self::Conflict | Self::Outage => Action::RetryLater,
        }
    }

    /// The level to log an error at: ERROR if somebody has to fix the set-up, and WARN otherwise.
    #[must_use]
    pub fn log_level(self) -> Level {
        if self == Self::Setup { Level::ERROR } else { Level::WARN }
    }
}

/// Why rows could not be stored. The text never contains a value of a row.
#[derive(Debug)]
pub struct StoreError {
    /// What to do about it.
    pub class: ErrorClass,
    /// What happened and, if the user can fix it, how.
    pub message: String,
}

impl fmt::Display for StoreError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl std::error::Error for StoreError {}

impl StoreError {
    pub(super) fn new(class: ErrorClass, message: impl Into<String>) -> Self {
        Self { class, message: message.into() }
    }

    /// The error for a missing task table, with the commands that create it.
    pub(super) fn missing_table() -> Self {
        Self::new(
            ErrorClass::Setup,
            format!(
                "the table {TASKS} does not exist: add \"django_celery_results\" to \
                 INSTALLED_APPS and run `python manage.py migrate django_celery_results`, or run \
                 `celeriac migrate`"
            ),
        )
    }

    /// Classifies an error of sqlx. `classify` classifies the errors that the database itself
    /// reports.
    pub(super) fn from_sqlx(
        error: &sqlx::Error,
        classify: impl Fn(&dyn DatabaseError) -> ErrorClass,
    ) -> Self {
        match error {
            sqlx::Error::Database(database) => {
                let class = classify(&**database);
                let code = database.code().unwrap_or_default();
                Self::new(class, format!("{} ({code})", redact(database.message(), class, &code)))
            }
            sqlx::Error::Configuration(source) => Self::new(ErrorClass::Setup, source.to_string()),
            // If sqlx cannot encode a value, a row is at fault; all other errors come from the
            // connection.
            sqlx::Error::Encode(_) => Self::new(ErrorClass::Poison, error.to_string()),
            _ => Self::new(ErrorClass::Outage, error.to_string()),
        }
    }
}

/// Removes values from an error message. Databases quote the value that they refuse, which can be a
/// whole row, and the messages of triggers can contain anything. The whole message is therefore
/// kept only if the error is about the set-up. Of other messages, the words before the first
/// quotation mark or colon are kept, and of those of triggers (`P0001`, `45000`) nothing.
fn redact<'text>(message: &'text str, class: ErrorClass, code: &str) -> &'text str {
    match class {
        ErrorClass::Setup => message,
        _ if matches!(code, "P0001" | "45000" | "1811") => "refused by a trigger",
        _ => message.split(['"', '\'', ':']).next().unwrap_or_default().trim(),
    }
}
