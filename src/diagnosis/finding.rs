//! A finding of `celeriac check`: a line of text and, if something is wrong, how to fix it.

use serde::Serialize;

/// The severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Everything is in order.
    Ok,
    /// `celeriac run` works, but the user should know about this.
    Warning,
    /// `celeriac run` does not work.
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
    /// The settings themselves.
    Settings,
    /// RabbitMQ: connections, queues, exchanges and permissions.
    Broker,
    /// The database: the server, the tables and permissions.
    Database,
    /// The test message.
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

/// The result of one check. Its texts contain no password, argument or result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it is about.
    pub subject: Subject,
    /// The severity.
    pub level: Severity,
    /// What was found, and why it matters.
    pub text: String,
    /// What to do or type, if the text does not say it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

impl Finding {
    /// A finding that everything is in order.
    #[must_use]
    pub fn ok(subject: Subject, text: impl Into<String>) -> Self {
        Self { subject, level: Severity::Ok, text: text.into(), fix: None }
    }

    /// A finding that the user should know about.
    #[must_use]
    pub fn warning(subject: Subject, text: impl Into<String>) -> Self {
        Self { level: Severity::Warning, ..Self::ok(subject, text) }
    }

    /// A finding that something does not work.
    #[must_use]
    pub fn error(subject: Subject, text: impl Into<String>) -> Self {
        Self { level: Severity::Error, ..Self::ok(subject, text) }
    }

    /// Adds what to do or type.
    #[must_use]
    pub fn fix(self, fix: impl Into<String>) -> Self {
        Self { fix: Some(fix.into()), ..self }
    }
}
