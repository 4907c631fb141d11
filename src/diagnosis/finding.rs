//! What a check has found: one line, and what to type where something is to be mended.

use serde::Serialize;

/// How good a thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// `celeriac run` works with it, and somebody should know.
    Warning,
    /// `celeriac run` does not work with it.
    Error,
}

impl Severity {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// What a finding is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Subject {
    /// What the settings say, for themselves.
    Settings,
    /// RabbitMQ: connections, queues, exchanges and rights.
    Broker,
    /// The database: its server, its tables and rights.
    Database,
    /// A message that went the whole way.
    Message,
}

impl Subject {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Settings => "settings",
            Self::Broker => "broker",
            Self::Database => "database",
            Self::Message => "message",
        }
    }
}

/// One thing that was looked at. Its texts hold no password, argument or result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it is about.
    pub subject: Subject,
    /// How good it is.
    pub level: Severity,
    /// What was found, and why it matters.
    pub text: String,
    /// What to do or to type, where the text does not say so itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

impl Finding {
    /// Something that is as it should be.
    #[must_use]
    pub fn ok(subject: Subject, text: impl Into<String>) -> Self {
        Self { subject, level: Severity::Ok, text: text.into(), fix: None }
    }

    /// Something that somebody should know.
    #[must_use]
    pub fn warning(subject: Subject, text: impl Into<String>) -> Self {
        Self { level: Severity::Warning, ..Self::ok(subject, text) }
    }

    /// Something that does not work.
    #[must_use]
    pub fn error(subject: Subject, text: impl Into<String>) -> Self {
        Self { level: Severity::Error, ..Self::ok(subject, text) }
    }

    /// With what to do or to type.
    #[must_use]
    pub fn fix(self, fix: impl Into<String>) -> Self {
        Self { fix: Some(fix.into()), ..self }
    }
}
