//! Errors of the database, sorted by what they ask for.

use std::fmt;
use std::time::Duration;

use tracing::Level;

use super::TASKS;

/// What an error asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ErrorClass {
    /// The database cannot be reached or cannot write now: hold the rows and try again later.
    Outage,
    /// Another writer was in the way: try again at once.
    Conflict,
    /// One of the rows can never be stored: find it and store the others.
    Poison,
    /// The table or the rights are not there: stop, and say what to do.
    Setup,
}

/// What to do after an error of a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Try again without a wait.
    RetryAtOnce,
    /// Hold the rows, wait and try again, for at most [`MAX_HOLD`].
    RetryLater,
    /// Find the row that cannot be stored, and store the others.
    Refuse,
    /// Trying again does not help: somebody has to do something.
    GiveUp,
}

/// How long rows are held while the database cannot be written. RabbitMQ takes a channel for dead
/// that holds a message for 30 minutes, and counts each time that it delivers one again.
pub const MAX_HOLD: Duration = Duration::from_mins(10);

/// How often what met another writer is tried again at once.
const CONFLICT_RETRIES: usize = 5;

impl ErrorClass {
    /// What to do, after so many tries at once.
    #[must_use]
    pub fn action(self, retries: usize) -> Action {
        match self {
            Self::Poison => Action::Refuse,
            Self::Setup => Action::GiveUp,
            Self::Conflict if retries < CONFLICT_RETRIES => Action::RetryAtOnce,
            Self::Conflict | Self::Outage => Action::RetryLater,
        }
    }

    /// The level to log an error at: ERROR where somebody has to do something.
    #[must_use]
    pub fn log_level(self) -> Level {
        if self == Self::Setup { Level::ERROR } else { Level::WARN }
    }
}

/// Why rows could not be stored. Its text never holds a value of a row.
#[derive(Debug)]
pub struct StoreError {
    /// What to do about it.
    pub class: ErrorClass,
    /// What happened and, where somebody can mend it, how.
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

    /// The table is not there: whoever runs the Django project can make it.
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

    /// Sorts an error of sqlx. `classify` sorts what the database itself reported.
    pub(super) fn from_sqlx(error: &sqlx::Error, classify: Classify) -> Self {
        match error {
            sqlx::Error::Database(database) => {
                let class = classify(&**database);
                let code = database.code().unwrap_or_default();
                Self::new(class, format!("{} ({code})", redact(database.message(), class, &code)))
            }
            sqlx::Error::Configuration(source) => Self::new(ErrorClass::Setup, source.to_string()),
            // What sqlx itself refuses to send lies in the rows; all the rest is the connection.
            sqlx::Error::Encode(_) => Self::new(ErrorClass::Poison, error.to_string()),
            _ => Self::new(ErrorClass::Outage, error.to_string()),
        }
    }
}

/// What an error that the database reports asks for.
pub(super) type Classify = fn(&dyn sqlx::error::DatabaseError) -> ErrorClass;

/// Databases quote the value that they refuse, up to a whole row, and triggers say what they
/// like. So the whole text is kept only where it is about the set-up; else the words before the
/// first quotation mark or colon, and of a trigger (`P0001`, `45000`) nothing.
fn redact<'text>(message: &'text str, class: ErrorClass, code: &str) -> &'text str {
    match class {
        ErrorClass::Setup => message,
        _ if matches!(code, "P0001" | "45000" | "1811") => "refused by a trigger",
        _ => message.split(['"', '\'', ':']).next().unwrap_or_default().trim(),
    }
}
