//! Checks the settings that users wrote, and turns them into values or into an error that says how
//! to fix the setting.

use std::net::SocketAddr;
use std::time::Duration;

use chrono::TimeDelta;
use chrono_tz::Tz;

use super::broker_url::BrokerUrl;
use super::cleanup::{self, CleanupConfig};
use super::database_url::{DatabaseKind, DatabaseUrl};
use super::error::ConfigError;
use super::parse::{
    accept_content, duration, events_ttl, flag, listen, name, size, time_zone, whole,
};
use super::secret::Secret;
use super::security;
use super::settings::Settings;
use crate::decode::{Decoder, EventPolicy, WireLimits};
use crate::row::merge::Law;

/// The checked settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// The brokers, tried in order.
    pub brokers: Vec<BrokerUrl>,
    /// The database.
    pub database: DatabaseUrl,
    /// The queue that is consumed.
    pub results_queue: String,
    /// The exchange that is bound to that queue.
    pub exchange: String,
    /// The queue that dead letters go to.
    pub dead_queue: String,
    /// Whether processes that wait for results are told when they are stored.
    pub hints: bool,
    /// The exchange that workers send events to.
    pub event_exchange: String,
    /// The queue for task events, if events are stored.
    pub events: Option<Events>,
    /// The number of lanes for results, at least 1. Events have a separate lane.
    pub lanes: usize,
    /// The most messages, and the most rows, in a batch.
    pub max_rows: usize,
    /// The most bytes in a batch.
    pub max_bytes: usize,
    /// How messages are decoded.
    pub decoder: Decoder,
    /// How long a batch may collect messages under load.
    pub max_wait: Duration,
    /// The most unacknowledged messages per lane, at least 1.
    pub prefetch: u16,
    /// The time zone of columns that store times without one.
    pub time_zone: Tz,
    /// What expires, and how it is deleted.
    pub cleanup: CleanupConfig,
    /// The address at which metrics and health are served, if any.
    pub listen: Option<SocketAddr>,
    /// The format of log lines.
    pub log_format: LogFormat,
    /// The filter for log lines.
    pub log_level: String,
    /// Warnings about the settings, to be logged at the start.
    pub warnings: Vec<String>,
}

/// The queue that task events are consumed from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Events {
    /// The queue that is consumed.
    pub queue: String,
    /// The most messages in the queue, at least 1.
    pub max_length: u32,
    /// How long a message may wait in the queue before the broker drops it.
    pub ttl: Duration,
}

/// The format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text for people.
    Text,
    /// One JSON object per line.
    Json,
}

impl Settings {
    /// Checks every setting, fills in the defaults and reads the certificates.
    ///
    /// # Errors
    ///
    /// Names the first setting that is wrong and says how to fix it.
    pub fn check(mut self) -> Result<Config, ConfigError> {
        let mut warnings = Vec::new();
        let (text, file) = (self.broker.take(), self.broker_file.take());
        let broker = Secret { setting: "broker", text, file };
        let brokers = broker.read(
            "amqp://guest:guest@localhost:5672//",
            BrokerUrl::parse_list,
            &mut warnings,
        )?;
        let (text, file) = (self.database.take(), self.database_file.take());
        let database = Secret { setting: "database", text, file };
        let database = database.read("sqlite:///db.sqlite3", DatabaseUrl::parse, &mut warnings)?;

        let lanes = whole("lanes", self.lanes.as_deref(), 1..=64_u16)?.unwrap_or(1);
        if lanes > 1 && database.kind() == DatabaseKind::Sqlite {
            return Err(ConfigError::new(
                "lanes",
                "SQLite has one writer: write 1, or use PostgreSQL, MySQL or MariaDB",
            ));
        }
        let max_rows = whole("max-rows", self.max_rows.as_deref(), 1..=u16::MAX)?.unwrap_or(1_000);
        let prefetch = whole("prefetch", self.prefetch.as_deref(), 1..=u16::MAX)?;
        let prefetch = prefetch.unwrap_or_else(|| max_rows.saturating_mul(2));

        let results_queue = name("results-queue", self.results_queue.take(), "celeriac.results")?;
        let exchange = name("exchange", self.exchange.take(), "celeriac")?;
        let dead_queue = name("dead-queue", self.dead_queue.take(), "celeriac.dead")?;
        if results_queue == dead_queue {
            return Err(ConfigError::new(
                "dead-queue",
                "is the same as results-queue, so dead letters would come back for ever: write \
                 another name",
            ));
        }
        let event_exchange = name("event-exchange", self.event_exchange.take(), "celeryev")?;
        let decoder = self.decoder()?;
        let has_events = flag("events", self.events.as_deref(), false)?;
        let events = self.events_queue()?;
        if events.queue == results_queue || events.queue == dead_queue {
            return Err(ConfigError::new(
                "events-queue",
                "is the queue of results or of dead letters: write another name",
            ));
        }
        Ok(Config {
            brokers,
            database,
            results_queue,
            exchange,
            dead_queue,
            hints: flag("hints", self.hints.as_deref(), true)?,
            event_exchange,
            events: has_events.then_some(events),
            lanes: usize::from(lanes),
            max_rows: usize::from(max_rows),
            max_bytes: size("max-bytes", self.max_bytes.as_deref(), 4 << 20)?,
            decoder,
            max_wait: duration("max-wait", self.max_wait.as_deref(), Duration::from_millis(20))?,
            prefetch,
            time_zone: time_zone(self.time_zone.as_deref())?,
            cleanup: cleanup::check(&cleanup::Texts {
                result_expires: self.result_expires.as_deref(),
                by_state: self.result_expires_by_state.as_deref(),
                by_task: self.result_expires_by_task.as_deref(),
                batch: self.cleanup_batch.as_deref(),
                pause: self.cleanup_pause.as_deref(),
                every: self.cleanup_every.as_deref(),
            })?,
            listen: listen(self.listen.as_deref())?,
            log_format: log_format(self.log_format.as_deref())?,
            log_level: self.log_level.unwrap_or_else(|| "info".to_owned()),
            warnings,
        })
    }

    fn events_queue(&mut self) -> Result<Events, ConfigError> {
        let length = self.events_max_length.as_deref();
        let max_length = whole("events-max-length", length, 1..=i32::MAX.unsigned_abs())?;
        Ok(Events {
            queue: name("events-queue", self.events_queue.take(), "celeriac.events")?,
            max_length: max_length.unwrap_or(100_000),
            ttl: events_ttl(self.events_ttl.as_deref())?,
        })
    }

    fn decoder(&self) -> Result<Decoder, ConfigError> {
        let tolerance = self.clock_tolerance.as_deref();
        let tolerance = duration("clock-tolerance", tolerance, Duration::from_secs(2))?;
        let clock_tolerance = TimeDelta::from_std(tolerance).unwrap_or(TimeDelta::zero());
        Ok(Decoder {
            accept: accept_content(self.accept_content.as_deref())?,
            limits: self.wire_limits()?,
            security: security::read(
                self.security_cert_store.as_deref(),
                self.security_digest.as_deref(),
            )?,
            events: EventPolicy {
                pending: flag("events-pending", self.events_pending.as_deref(), false)?,
                arguments: flag("events-arguments", self.events_arguments.as_deref(), false)?,
                unfinished_only: !flag("events-outcomes", self.events_outcomes.as_deref(), true)?,
            },
            rpc_arguments: flag("rpc-arguments", self.rpc_arguments.as_deref(), false)?,
            law: Law { clock_tolerance },
        })
    }

    fn wire_limits(&self) -> Result<WireLimits, ConfigError> {
        let default = WireLimits::default();
        let number = |setting, text: &Option<String>, default| {
            Ok(whole(setting, text.as_deref(), 1..=1_000_000_000)?.unwrap_or(default))
        };
        Ok(WireLimits {
            body_bytes: size("max-body-size", self.max_body_size.as_deref(), default.body_bytes)?,
            decompressed_bytes: size(
                "max-decompressed-size",
                self.max_decompressed_size.as_deref(),
                default.decompressed_bytes,
            )?,
            compression_ratio: number(
                "max-compression-ratio",
                &self.max_compression_ratio,
                default.compression_ratio,
            )?,
            depth: number("max-depth", &self.max_depth, default.depth)?,
            events: number("max-events", &self.max_events, default.events)?,
            expanded_values: number(
                "max-expanded-values",
                &self.max_expanded_values,
                default.expanded_values,
            )?,
        })
    }
}

fn log_format(text: Option<&str>) -> Result<LogFormat, ConfigError> {
    match text {
        None | Some("text") => Ok(LogFormat::Text),
        Some("json") => Ok(LogFormat::Json),
        Some(other) => Err(ConfigError::new(
            "log-format",
            format!("{other:?} is not a format: write text or json"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::layers::settings_of;

    fn settings(toml: &str) -> Settings {
        settings_of(toml, |_| None)
    }

    fn error(toml: &str) -> String {
        settings(toml).check().expect_err(toml).to_string()
    }

    #[test]
    fn the_defaults_are_celerys_and_djangos() {
        let config = Settings::default().check().expect("the defaults are good");
        assert_eq!(config.brokers[0].to_string(), "amqp://guest:***@localhost:5672//");
        assert_eq!(config.brokers[0].password, "guest");
        assert_eq!(config.database.to_string(), "sqlite:///db.sqlite3");
        assert_eq!(config.results_queue, "celeriac.results");
        assert_eq!(config.exchange, "celeriac");
        assert_eq!(config.dead_queue, "celeriac.dead");
        assert_eq!((config.max_rows, config.max_bytes), (1_000, 4 << 20));
        assert_eq!(config.max_wait, Duration::from_millis(20));
        assert_eq!((config.lanes, config.prefetch), (1, 2_000));
        assert_eq!(config.time_zone, Tz::UTC);
        assert_eq!((config.log_format, config.log_level.as_str()), (LogFormat::Text, "info"));
    }

    #[test]
    fn events_are_stored_only_if_they_are_turned_on() {
        let events = |toml: &str| settings(toml).check().expect(toml).events;
        assert_eq!(events("events-arguments = true"), None);
        let wanted = events("events = true\nevents-ttl = '10m'\nevents-max-length = 7");
        let wanted = wanted.expect("they are wanted");
        assert_eq!(wanted.queue, "celeriac.events");
        assert_eq!((wanted.max_length, wanted.ttl), (7, Duration::from_mins(10)));
        let policy = |toml: &str| settings(toml).check().expect(toml).decoder.events;
        assert_eq!(policy(""), EventPolicy::default());
        let policy = policy(
            "events = 'on'\nevents-pending = 'yes'\nevents-arguments = 1\nevents-outcomes = false",
        );
        assert!(policy.pending && policy.arguments && policy.unfinished_only);
    }

    #[test]
    fn invalid_settings_are_refused_with_the_fix() {
        for (toml, expected) in [
            ("lanes = 0", "lanes: \"0\" is out of range: write a number from 1 to 64"),
            ("lanes = 'two'", "lanes: \"two\" is out of range: write a number from 1 to 64"),
            ("lanes = 2", "lanes: SQLite has one writer: write 1, or use PostgreSQL"),
            ("max-rows = 0", "max-rows: \"0\" is out of range: write a number from 1 to 65535"),
            ("max-bytes = 0", "max-bytes: \"0\" is not a size: write a number of bytes above 0"),
            ("max-bytes = 'big'", "max-bytes: \"big\" is not a size"),
            ("max-wait = 'soon'", "max-wait: \"soon\" is not a duration up to 60s"),
            ("max-wait = '1h'", "max-wait: \"1h\" is not a duration up to 60s"),
            ("prefetch = 0", "prefetch: \"0\" is out of range"),
            ("prefetch = 70000", "prefetch: \"70000\" is out of range"),
            ("results-queue = 'celeriac.dead'", "dead-queue: is the same as results-queue"),
            ("exchange = 'amq.direct'", "exchange: the name begins with `amq.`"),
            ("results-queue = 'amq.x'", "results-queue: the name begins with `amq.`"),
            ("events = 'maybe'", "events: \"maybe\" is neither true nor false"),
            ("events-max-length = 0", "events-max-length: \"0\" is out of range: write a number"),
            ("events-ttl = '0s'", "events-ttl: \"0s\" is not a duration from 1s to 40days"),
            ("events-queue = 'celeriac.dead'", "events-queue: is the queue of results or of dead"),
            ("accept-content = 'jason'", "accept-content: \"jason\" is not a list of serializers"),
            ("accept-content = ', '", "accept-content: \", \" is not a list of serializers"),
            ("max-body-size = 0", "max-body-size: \"0\" is not a size"),
            (
                "max-depth = 0",
                "max-depth: \"0\" is out of range: write a number from 1 to 1000000000",
            ),
            ("time-zone = 'Mars'", "time-zone: \"Mars\" is not a time zone"),
            (
                "listen = 'localhost'",
                "listen: \"localhost\" is not an address and a port: write for",
            ),
            ("log-format = 'xml'", "log-format: \"xml\" is not a format: write text or json"),
            ("broker = 'redis://:secret@h'", "broker: redis:// is not RabbitMQ"),
            ("database = 'oracle://u:secret@h/n'", "database: oracle:// is not a database"),
        ] {
            let error = error(toml);
            assert!(error.starts_with(expected), "{toml}: {error}");
            assert!(!error.contains("secret"), "{toml}: {error}");
        }
        let name = "x".repeat(256);
        assert!(error(&format!("dead-queue = '{name}'")).contains("longer than 255 bytes"));
    }
}
