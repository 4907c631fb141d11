//! Settings: what users write, and the types that it becomes, which cannot be wrong.
//!
//! A setting has one name: `--max-rows` on the command line, `CELERIAC_MAX_ROWS` in the
//! environment, `max-rows` in the TOML file. The command line wins over the environment, and that
//! over the file. `CELERY_BROKER_URL`, `DATABASE_URL` and `CELERY_RESULT_EXPIRES` come after the
//! file: they are there for others as well.

mod broker_url;
mod cleanup;
mod database_url;
mod secret;
mod security;

use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use chrono_tz::Tz;
use serde::{Deserialize, Deserializer};

pub use self::broker_url::BrokerUrl;
pub use self::cleanup::Cleanup;
pub use self::database_url::{DatabaseKind, DatabaseUrl};
use self::secret::Secret;
pub use self::secret::SettingsByLayer;
use crate::decode::{Accept, Decoder, EventPolicy, WireLimits};
use crate::diagnosis::cannot_be_read;

/// The settings of `celeriac run` as users write them, each optional.
#[derive(Clone, Default, clap::Args, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Settings {
    /// RabbitMQ, as Celery's broker URL.
    ///
    /// `amqp://`, `pyamqp://` or `amqps://` (TLS), a virtual host after the slash (`//` is the
    /// default one), several URLs with `;` between them for failover, `?heartbeat=SECONDS`. TLS
    /// files go into `ssl_ca_certs`, `ssl_certfile` and `ssl_keyfile`. Without this setting
    /// `CELERY_BROKER_URL` counts.
    ///
    /// Default: `amqp://guest:guest@localhost:5672//`
    #[arg(long, value_name = "URL", env = "CELERIAC_BROKER", hide_env_values = true)]
    broker: Option<String>,

    /// A file that holds the broker's URL instead, such as a systemd credential or a Docker secret.
    ///
    /// Its last line ends may be there or not. Read at the start.
    ///
    /// Default: none
    #[arg(long, value_name = "FILE", env = "CELERIAC_BROKER_FILE")]
    broker_file: Option<String>,

    /// The Django project's database, as a URL.
    ///
    /// `postgres://USER:PASSWORD@HOST:PORT/NAME`, `mysql://…` (MariaDB too),
    /// `sqlite:///relative/path` or `sqlite:////absolute/path`. TLS as the database names it:
    /// `?sslmode=verify-full&sslrootcert=FILE` (PostgreSQL), `?ssl-mode=VERIFY_IDENTITY&ssl-ca=FILE`
    /// (MySQL). Without this setting `DATABASE_URL` counts.
    ///
    /// Default: `sqlite:///db.sqlite3`
    #[arg(long, value_name = "URL", env = "CELERIAC_DATABASE", hide_env_values = true)]
    database: Option<String>,

    /// A file that holds the database's URL instead, as `--broker-file` does the broker's.
    ///
    /// Default: none
    #[arg(long, value_name = "FILE", env = "CELERIAC_DATABASE_FILE")]
    database_file: Option<String>,

    /// The queue that workers send results to.
    ///
    /// Declared durable and quorum; a queue that is there already is used as it is.
    ///
    /// Default: celeriac.results
    #[arg(long, value_name = "NAME", env = "CELERIAC_RESULTS_QUEUE")]
    results_queue: Option<String>,

    /// The exchange that workers with `result_backend = "celeriac://"` publish to.
    ///
    /// Declared durable and direct, and bound to the results queue.
    ///
    /// Default: celeriac
    #[arg(long, value_name = "NAME", env = "CELERIAC_EXCHANGE")]
    exchange: Option<String>,

    /// The queue for messages that cannot be stored.
    ///
    /// Declared durable and quorum. Each message has the reason in its headers.
    ///
    /// Default: celeriac.dead
    #[arg(long, value_name = "NAME", env = "CELERIAC_DEAD_QUEUE")]
    dead_queue: Option<String>,

    /// Whether task events are stored as well: true or false.
    ///
    /// Gives rows as soon as tasks are received and started, names of tasks, and rows of tasks
    /// whose results go elsewhere or nowhere. Workers have to send events: `celery worker -E`.
    ///
    /// Default: false
    #[arg(
        long,
        value_name = "BOOL",
        env = "CELERIAC_EVENTS",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    #[serde(deserialize_with = "text")]
    events: Option<String>,

    /// The queue that events gather in.
    ///
    /// Declared durable, classic and bounded; a queue that is there already is used as it is.
    ///
    /// Default: celeriac.events
    #[arg(long, value_name = "NAME", env = "CELERIAC_EVENTS_QUEUE")]
    events_queue: Option<String>,

    /// The exchange that workers send events to: Celery's `event_exchange`.
    ///
    /// Default: celeryev
    #[arg(long, value_name = "NAME", env = "CELERIAC_EVENT_EXCHANGE")]
    event_exchange: Option<String>,

    /// The most messages in the queue of events, 1 to 2147483647. The oldest give way.
    ///
    /// A worker puts up to 24 events into one message.
    ///
    /// Default: 100000
    #[arg(long, value_name = "NUMBER", env = "CELERIAC_EVENTS_MAX_LENGTH")]
    #[serde(deserialize_with = "text")]
    events_max_length: Option<String>,

    /// How long events wait in their queue before they are dropped, such as 10m or 1day.
    ///
    /// Default: 1h
    #[arg(long, value_name = "DURATION", env = "CELERIAC_EVENTS_TTL")]
    events_ttl: Option<String>,

    /// Whether tasks that were sent and not yet received get a row, PENDING: true or false.
    ///
    /// Clients have to send that event: Celery's `task_send_sent_event`.
    ///
    /// Default: false
    #[arg(
        long,
        value_name = "BOOL",
        env = "CELERIAC_EVENTS_PENDING",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    #[serde(deserialize_with = "text")]
    events_pending: Option<String>,

    /// Whether an event may end a task: true or false.
    ///
    /// A row that says SUCCESS before the result message has come has Celery's `repr` of the
    /// result, and Django's `AsyncResult` takes that for the result. Write false where results of
    /// all tasks are stored, and only tasks at work are of interest.
    ///
    /// Default: true
    #[arg(long, value_name = "BOOL", env = "CELERIAC_EVENTS_OUTCOMES", require_equals = true)]
    #[serde(deserialize_with = "text")]
    events_outcomes: Option<String>,

    /// Whether the arguments in events are stored: true or false. They can be secrets.
    ///
    /// Default: false
    #[arg(
        long,
        value_name = "BOOL",
        env = "CELERIAC_EVENTS_ARGUMENTS",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    #[serde(deserialize_with = "text")]
    events_arguments: Option<String>,

    /// The serializers whose messages are stored, with commas between them: json, msgpack, yaml,
    /// pickle, auth, or content types. Celery's `accept_content`.
    ///
    /// Others become dead letters. Nothing is executed here, but Django executes what is in a
    /// pickle when it reads the row: accept it only if you trust everybody who can publish.
    ///
    /// Default: json,msgpack,yaml,auth
    #[arg(long, value_name = "LIST", env = "CELERIAC_ACCEPT_CONTENT")]
    accept_content: Option<String>,

    /// The certificates of those whose signatures count, as a pattern of files or a folder.
    /// Celery's `security_cert_store`.
    ///
    /// For messages of the serializer `auth`, such as `/etc/ssl/celery/*.pem`. They are read at the
    /// start. Without this setting signed messages become dead letters.
    ///
    /// Default: none
    #[arg(long, value_name = "PATTERN", env = "CELERIAC_SECURITY_CERT_STORE")]
    security_cert_store: Option<String>,

    /// The hash function of signatures: sha224, sha256, sha384 or sha512. Celery's
    /// `security_digest`.
    ///
    /// Default: sha256
    #[arg(long, value_name = "NAME", env = "CELERIAC_SECURITY_DIGEST")]
    security_digest: Option<String>,

    /// The private key that columns of signed results are signed with. Celery's `security_key`.
    ///
    /// Readers with the result serializer `auth` need it. Without it the columns are stored in the
    /// form that was signed, such as JSON. The key is RSA in PEM and has no password.
    ///
    /// Default: none
    #[arg(long, value_name = "FILE", env = "CELERIAC_SECURITY_KEY")]
    security_key: Option<String>,

    /// The certificate of that key, which readers have in their store. Celery's
    /// `security_certificate`.
    ///
    /// Default: none
    #[arg(long, value_name = "FILE", env = "CELERIAC_SECURITY_CERTIFICATE")]
    security_certificate: Option<String>,

    /// The largest body of a message that is stored, such as 512KiB or 64MiB.
    ///
    /// This and the limits that follow keep a message from taking all memory. One that passes a
    /// limit becomes a dead letter.
    ///
    /// Default: 64MiB
    #[arg(long, value_name = "SIZE", env = "CELERIAC_MAX_BODY_SIZE")]
    #[serde(deserialize_with = "text")]
    max_body_size: Option<String>,

    /// The largest body after decompression, such as 512KiB or 64MiB.
    ///
    /// Default: 64MiB
    #[arg(long, value_name = "SIZE", env = "CELERIAC_MAX_DECOMPRESSED_SIZE")]
    #[serde(deserialize_with = "text")]
    max_decompressed_size: Option<String>,

    /// How many times as large as its compressed form a body may be, from 1 on. 1 MiB is always
    /// allowed.
    ///
    /// Default: 200
    #[arg(long, value_name = "NUMBER", env = "CELERIAC_MAX_COMPRESSION_RATIO")]
    #[serde(deserialize_with = "text")]
    max_compression_ratio: Option<String>,

    /// How deep lists and maps may nest, from 1 on.
    ///
    /// Default: 10000
    #[arg(long, value_name = "NUMBER", env = "CELERIAC_MAX_DEPTH")]
    #[serde(deserialize_with = "text")]
    max_depth: Option<String>,

    /// The most events in one message, from 1 on.
    ///
    /// Default: 10000
    #[arg(long, value_name = "NUMBER", env = "CELERIAC_MAX_EVENTS")]
    #[serde(deserialize_with = "text")]
    max_events: Option<String>,

    /// How many values a text in YAML may have, from 1 on, each of its aliases counted as all that
    /// it stands for.
    ///
    /// Default: 1000000
    #[arg(long, value_name = "NUMBER", env = "CELERIAC_MAX_EXPANDED_VALUES")]
    #[serde(deserialize_with = "text")]
    max_expanded_values: Option<String>,

    /// How many lanes work side by side, 1 to 64.
    ///
    /// A lane has its own connection to the broker and to the database. SQLite has one writer and
    /// so takes one lane.
    ///
    /// Default: 1
    #[arg(long, value_name = "NUMBER", env = "CELERIAC_LANES")]
    #[serde(deserialize_with = "text")]
    lanes: Option<String>,

    /// The most messages that one write takes in, 1 to 65535.
    ///
    /// Default: 1000
    #[arg(long, value_name = "NUMBER", env = "CELERIAC_MAX_ROWS")]
    #[serde(deserialize_with = "text")]
    max_rows: Option<String>,

    /// The most bytes of messages that one write takes in, such as 512KiB or 4MiB.
    ///
    /// What is compressed counts as what it is when it is not. A single message may be larger and
    /// ends the batch.
    ///
    /// Default: 4MiB
    #[arg(long, value_name = "SIZE", env = "CELERIAC_MAX_BYTES")]
    #[serde(deserialize_with = "text")]
    max_bytes: Option<String>,

    /// How long rows may gather under load, such as 20ms, 1s or 0s.
    ///
    /// A message that comes to an idle lane is written at once. While writes follow each other, a
    /// batch waits until it is full or its first message is this old. 0s never waits.
    ///
    /// Default: 20ms
    #[arg(long, value_name = "DURATION", env = "CELERIAC_MAX_WAIT")]
    max_wait: Option<String>,

    /// The most messages that a lane holds without having acknowledged them, 1 to 65535.
    ///
    /// With their sizes this bounds the memory of a lane: lower it where results are large.
    ///
    /// Default: twice max-rows
    #[arg(long, value_name = "NUMBER", env = "CELERIAC_PREFETCH")]
    #[serde(deserialize_with = "text")]
    prefetch: Option<String>,

    /// The zone of times in SQLite, MySQL and MariaDB, such as Europe/Paris.
    ///
    /// UTC where Django's `USE_TZ` is true; where it is false, Django's `TIME_ZONE`. PostgreSQL
    /// keeps the zone itself.
    ///
    /// Default: UTC
    #[arg(long, value_name = "ZONE", env = "CELERIAC_TIME_ZONE")]
    time_zone: Option<String>,

    /// How long rows are kept after their `date_done`, such as 12h or 30days. Celery's
    /// `result_expires`.
    ///
    /// A number is one of seconds, and 0 or never keeps them for ever. `celeriac cleanup` deletes
    /// what has expired, and `celeriac run` with --cleanup-every. Without this setting
    /// `CELERY_RESULT_EXPIRES` counts.
    ///
    /// Default: 1day
    #[arg(long, value_name = "DURATION", env = "CELERIAC_RESULT_EXPIRES")]
    #[serde(deserialize_with = "text")]
    result_expires: Option<String>,

    /// Other ages for tasks in some states, with commas between them: FAILURE=30days,STARTED=never.
    ///
    /// Default: none
    #[arg(long, value_name = "LIST", env = "CELERIAC_RESULT_EXPIRES_BY_STATE")]
    result_expires_by_state: Option<String>,

    /// Other ages for some tasks, whatever their state, with commas between them:
    /// shop.tasks.report=90days,shop.audit.*=never.
    ///
    /// A name counts before a pattern, a longer pattern before a shorter one, and each of them
    /// before the state.
    ///
    /// Default: none
    #[arg(long, value_name = "LIST", env = "CELERIAC_RESULT_EXPIRES_BY_TASK")]
    result_expires_by_task: Option<String>,

    /// How many expired rows are deleted together, 1 to 65535. Their locks are held for so long.
    ///
    /// Default: 1000
    #[arg(long, value_name = "NUMBER", env = "CELERIAC_CLEANUP_BATCH")]
    #[serde(deserialize_with = "text")]
    cleanup_batch: Option<String>,

    /// The pause after each batch of expired rows, which leaves the database to others.
    ///
    /// Default: 100ms
    #[arg(long, value_name = "DURATION", env = "CELERIAC_CLEANUP_PAUSE")]
    cleanup_pause: Option<String>,

    /// How often `celeriac run` deletes expired rows, such as 6h or 1day, or never.
    ///
    /// The first time is within a tenth of that. Of several daemons on one database, one does it at
    /// a time.
    ///
    /// Default: never
    #[arg(long, value_name = "DURATION", env = "CELERIAC_CLEANUP_EVERY")]
    cleanup_every: Option<String>,

    /// Where metrics and health are told over HTTP, as an address and a port: `/metrics`, `/live`
    /// and `/ready`.
    ///
    /// Whoever can connect can read them; they hold names of queues and no data. Such as
    /// 127.0.0.1:9180, or 0.0.0.0:9180 for all of the network.
    ///
    /// Default: none
    #[arg(long, value_name = "ADDRESS", env = "CELERIAC_LISTEN")]
    listen: Option<String>,

    /// How log lines look: text or json. They go to standard error.
    ///
    /// Default: text
    #[arg(long, value_name = "FORMAT", env = "CELERIAC_LOG_FORMAT")]
    log_format: Option<String>,

    /// What is logged: error, warn, info, debug, trace, or a filter such as info,celeriac=debug.
    ///
    /// Batches are logged at debug, messages at trace.
    ///
    /// Default: info
    #[arg(long, value_name = "LEVEL", env = "CELERIAC_LOG_LEVEL")]
    log_level: Option<String>,
}

/// Everything `celeriac run` needs to know, checked.
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
    /// The exchange that workers send events to.
    pub event_exchange: String,
    /// Where task events come from, where they are wanted.
    pub events: Option<Events>,
    /// How many lanes there are for results, at least 1. Events have one of their own.
    pub lanes: usize,
    /// What one batch may hold.
    pub max_rows: usize,
    /// The most bytes in a batch.
    pub max_bytes: usize,
    /// How messages are read.
    pub decoder: Decoder,
    /// How long a batch may gather under load.
    pub max_wait: Duration,
    /// The most unacknowledged messages of a lane, at least 1.
    pub prefetch: u16,
    /// The zone of times in columns without one.
    pub time_zone: Tz,
    /// What expires, and how it is deleted.
    pub cleanup: Cleanup,
    /// Where metrics and health are told, if anywhere.
    pub listen: Option<SocketAddr>,
    /// How log lines look.
    pub log_format: LogFormat,
    /// What is logged.
    pub log_level: String,
    /// What is not as it should be and does no harm to the results.
    pub warnings: Vec<String>,
}

/// Where task events come from, and what of them is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Events {
    /// The queue that is consumed.
    pub queue: String,
    /// The most messages in the queue, at least 1.
    pub max_length: u32,
    /// How long a message waits in the queue at most.
    pub ttl: Duration,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// A setting that cannot be, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{setting}: {problem}")]
pub struct ConfigError {
    setting: String,
    problem: String,
}

impl ConfigError {
    fn new(setting: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { setting: setting.into(), problem: problem.into() }
    }
}

impl Settings {
    /// Reads the settings in a TOML file.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, is not TOML, or has a setting that does not exist.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let setting = || format!("the file {}", path.display());
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigError::new(setting(), cannot_be_read(&error)))?;
        // The error's own display quotes the line, which may hold a password.
        toml::from_str(&text).map_err(|error| {
            let line = error.span().map_or(0, |span| text[..span.start].lines().count().max(1));
            ConfigError::new(setting(), format!("line {line}: {}", error.message()))
        })
    }

    /// These settings, and where one is not given that of `other`. An empty text gives nothing,
    /// as in an environment whose variables are always there. A URL and the file that it may stand
    /// in are one setting: whichever is given wins over both of `other`.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        let or = |one: Option<String>, other| given(one).or(other);
        let or_both = |one: [Option<String>; 2], other| match one.map(given) {
            [None, None] => other,
            one => one,
        };
        let [broker, broker_file] =
            or_both([self.broker, self.broker_file], [other.broker, other.broker_file]);
        let [database, database_file] =
            or_both([self.database, self.database_file], [other.database, other.database_file]);
        Self {
            broker,
            broker_file,
            database,
            database_file,
            results_queue: or(self.results_queue, other.results_queue),
            exchange: or(self.exchange, other.exchange),
            dead_queue: or(self.dead_queue, other.dead_queue),
            events: or(self.events, other.events),
            events_queue: or(self.events_queue, other.events_queue),
            event_exchange: or(self.event_exchange, other.event_exchange),
            events_max_length: or(self.events_max_length, other.events_max_length),
            events_ttl: or(self.events_ttl, other.events_ttl),
            events_pending: or(self.events_pending, other.events_pending),
            events_outcomes: or(self.events_outcomes, other.events_outcomes),
            events_arguments: or(self.events_arguments, other.events_arguments),
            accept_content: or(self.accept_content, other.accept_content),
            security_cert_store: or(self.security_cert_store, other.security_cert_store),
            security_digest: or(self.security_digest, other.security_digest),
            security_key: or(self.security_key, other.security_key),
            security_certificate: or(self.security_certificate, other.security_certificate),
            max_body_size: or(self.max_body_size, other.max_body_size),
            max_decompressed_size: or(self.max_decompressed_size, other.max_decompressed_size),
            max_compression_ratio: or(self.max_compression_ratio, other.max_compression_ratio),
            max_depth: or(self.max_depth, other.max_depth),
            max_events: or(self.max_events, other.max_events),
            max_expanded_values: or(self.max_expanded_values, other.max_expanded_values),
            lanes: or(self.lanes, other.lanes),
            max_rows: or(self.max_rows, other.max_rows),
            max_bytes: or(self.max_bytes, other.max_bytes),
            max_wait: or(self.max_wait, other.max_wait),
            prefetch: or(self.prefetch, other.prefetch),
            time_zone: or(self.time_zone, other.time_zone),
            result_expires: or(self.result_expires, other.result_expires),
            result_expires_by_state: or(
                self.result_expires_by_state,
                other.result_expires_by_state,
            ),
            result_expires_by_task: or(self.result_expires_by_task, other.result_expires_by_task),
            cleanup_batch: or(self.cleanup_batch, other.cleanup_batch),
            cleanup_pause: or(self.cleanup_pause, other.cleanup_pause),
            cleanup_every: or(self.cleanup_every, other.cleanup_every),
            listen: or(self.listen, other.listen),
            log_format: or(self.log_format, other.log_format),
            log_level: or(self.log_level, other.log_level),
        }
    }

    /// The settings that the environment has under other programs' names.
    #[must_use]
    pub fn from_shared_environment(variable: impl Fn(&str) -> Option<String>) -> Self {
        Self {
            broker: variable("CELERY_BROKER_URL"),
            database: variable("DATABASE_URL"),
            result_expires: variable("CELERY_RESULT_EXPIRES"),
            ..Self::default()
        }
    }

    /// Checks every setting, fills in the defaults, and reads the certificates and the key.
    ///
    /// # Errors
    ///
    /// Names the first setting that cannot be, and what to write instead.
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

        let limits = self.wire_limits()?;
        let results_queue = name("results-queue", self.results_queue, "celeriac.results")?;
        let exchange = name("exchange", self.exchange, "celeriac")?;
        let dead_queue = name("dead-queue", self.dead_queue, "celeriac.dead")?;
        if results_queue == dead_queue {
            return Err(ConfigError::new(
                "dead-queue",
                "is the same as results-queue, so dead letters would come back for ever: write \
                 another name",
            ));
        }
        let event_exchange = name("event-exchange", self.event_exchange, "celeryev")?;
        let events = Events {
            queue: name("events-queue", self.events_queue, "celeriac.events")?,
            max_length: whole(
                "events-max-length",
                self.events_max_length.as_deref(),
                1..=i32::MAX.unsigned_abs(),
            )?
            .unwrap_or(100_000),
            ttl: events_ttl(self.events_ttl.as_deref())?,
        };
        if events.queue == results_queue || events.queue == dead_queue {
            return Err(ConfigError::new(
                "events-queue",
                "is the queue of results or of dead letters: write another name",
            ));
        }
        let decoder = Decoder {
            accept: accept_content(self.accept_content.as_deref())?,
            limits,
            security: security::read(
                self.security_cert_store.as_deref(),
                self.security_digest.as_deref(),
                self.security_key.as_deref(),
                self.security_certificate.as_deref(),
            )?,
            events: EventPolicy {
                pending: flag("events-pending", self.events_pending.as_deref(), false)?,
                arguments: flag("events-arguments", self.events_arguments.as_deref(), false)?,
                unfinished_only: !flag("events-outcomes", self.events_outcomes.as_deref(), true)?,
            },
        };
        let has_events = flag("events", self.events.as_deref(), false)?;
        Ok(Config {
            brokers,
            database,
            results_queue,
            exchange,
            dead_queue,
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
}

impl Settings {
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

fn accept_content(text: Option<&str>) -> Result<Accept, ConfigError> {
    let Some(text) = text else { return Ok(Accept::default()) };
    match Accept::parse(text) {
        Ok(accept) if !accept.is_empty() => Ok(accept),
        _ => Err(ConfigError::new(
            "accept-content",
            format!(
                "{text:?} is not a list of serializers: write some of json, msgpack, yaml, pickle \
                 and auth, or content types, with commas between them"
            ),
        )),
    }
}

/// Refuses a URL whose password has `/`, `?` or `#` in it as they are: what stands behind them would
/// be shown as the name of a virtual host, a database or a parameter.
fn check_login(url: &url::Url) -> Result<(), String> {
    let behind = [Some(url.path()), url.query(), url.fragment()];
    if url.username().is_empty() && behind.into_iter().flatten().any(|part| part.contains('@')) {
        return Err("has an `@` after its host: write `/`, `?` and `#` of a password as %2F, %3F \
                    and %23, and an `@` that belongs there as %40"
            .to_owned());
    }
    Ok(())
}

/// A whole number in a range.
fn whole<N: FromStr + PartialOrd + Display>(
    setting: &str,
    text: Option<&str>,
    range: RangeInclusive<N>,
) -> Result<Option<N>, ConfigError> {
    let Some(text) = text else { return Ok(None) };
    match text.trim().parse() {
        Ok(number) if range.contains(&number) => Ok(Some(number)),
        _ => Err(ConfigError::new(
            setting,
            format!(
                "{text:?} is out of range: write a number from {} to {}",
                range.start(),
                range.end()
            ),
        )),
    }
}

fn flag(setting: &str, text: Option<&str>, default: bool) -> Result<bool, ConfigError> {
    match text.map(|text| text.trim().to_ascii_lowercase()).as_deref() {
        None => Ok(default),
        Some("false" | "no" | "off" | "0") => Ok(false),
        Some("true" | "yes" | "on" | "1") => Ok(true),
        Some(other) => Err(ConfigError::new(
            setting,
            format!("{other:?} is neither true nor false: write one of them"),
        )),
    }
}

/// RabbitMQ takes milliseconds in 32 bits.
fn events_ttl(text: Option<&str>) -> Result<Duration, ConfigError> {
    let Some(text) = text else { return Ok(Duration::from_hours(1)) };
    match humantime::parse_duration(text.trim()) {
        Ok(ttl) if (Duration::from_secs(1)..=Duration::from_hours(24 * 40)).contains(&ttl) => {
            Ok(ttl)
        }
        _ => Err(ConfigError::new(
            "events-ttl",
            format!("{text:?} is not a duration from 1s to 40days: write for example 10m or 1day"),
        )),
    }
}

fn size(setting: &str, text: Option<&str>, default: usize) -> Result<usize, ConfigError> {
    let Some(text) = text else { return Ok(default) };
    let bytes = text.trim().parse::<bytesize::ByteSize>().ok();
    match bytes.and_then(|size| usize::try_from(size.as_u64()).ok()) {
        Some(bytes) if bytes > 0 => Ok(bytes),
        _ => Err(ConfigError::new(
            setting,
            format!("{text:?} is not a size: write a number of bytes above 0, 512KiB or 4MiB"),
        )),
    }
}

fn duration(setting: &str, text: Option<&str>, default: Duration) -> Result<Duration, ConfigError> {
    let Some(text) = text else { return Ok(default) };
    match humantime::parse_duration(text.trim()) {
        Ok(duration) if duration <= Duration::from_mins(1) => Ok(duration),
        _ => Err(ConfigError::new(
            setting,
            format!("{text:?} is not a duration up to 60s: write for example 20ms, 1s or 0s"),
        )),
    }
}

fn time_zone(text: Option<&str>) -> Result<Tz, ConfigError> {
    let text = text.unwrap_or("UTC");
    text.trim().parse().map_err(|_| {
        ConfigError::new(
            "time-zone",
            format!("{text:?} is not a time zone: write Django's TIME_ZONE, such as Europe/Paris"),
        )
    })
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

fn listen(text: Option<&str>) -> Result<Option<SocketAddr>, ConfigError> {
    let Some(text) = text else { return Ok(None) };
    let address = text.trim().parse().map_err(|_| {
        ConfigError::new(
            "listen",
            format!("{text:?} is not an address and a port: write for example 127.0.0.1:9180"),
        )
    })?;
    Ok(Some(address))
}

/// RabbitMQ takes names of up to 255 bytes, and keeps those that begin with `amq.` for itself.
fn name(setting: &str, name: Option<String>, default: &str) -> Result<String, ConfigError> {
    let name = name.unwrap_or_else(|| default.to_owned());
    let problem = match name.len() {
        0 => "is empty",
        256.. => "is longer than 255 bytes",
        _ if name.starts_with("amq.") => "begins with `amq.`, which RabbitMQ keeps for itself",
        _ => return Ok(name),
    };
    Err(ConfigError::new(setting, format!("the name {problem}: write for example {default}")))
}

/// Takes a number or a truth value in the file as well as a text, so that each may be written
/// there.
fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a text, a whole number, true or false")]
    enum TextOrNumber {
        Number(i64),
        Flag(bool),
        Text(String),
    }
    Ok(Some(match TextOrNumber::deserialize(deserializer)? {
        TextOrNumber::Number(number) => number.to_string(),
        TextOrNumber::Flag(flag) => flag.to_string(),
        TextOrNumber::Text(text) => text,
    }))
}

/// The path of the settings file, where one is given.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ConfigFile {
    /// A TOML file with settings, under the same names: `max-rows = 500`.
    #[arg(long, value_name = "FILE", env = "CELERIAC_CONFIG")]
    pub config: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(toml: &str) -> Settings {
        toml::from_str(toml).expect(toml)
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
    fn the_help_names_the_defaults() {
        use clap::Args;
        let command = Settings::augment_args(clap::Command::new("celeriac"));
        let default = |name: &str| {
            let argument = command.get_arguments().find(|argument| argument.get_id() == name);
            let help = argument.and_then(|argument| argument.get_long_help()).expect(name);
            let help = help.to_string();
            help.rsplit("Default: ").next().expect(name).trim_matches('`').to_owned()
        };
        let named = Settings {
            broker: Some(default("broker")),
            broker_file: None,
            database: Some(default("database")),
            database_file: None,
            results_queue: Some(default("results_queue")),
            exchange: Some(default("exchange")),
            dead_queue: Some(default("dead_queue")),
            events: Some(default("events")),
            events_queue: Some(default("events_queue")),
            event_exchange: Some(default("event_exchange")),
            events_max_length: Some(default("events_max_length")),
            events_ttl: Some(default("events_ttl")),
            events_pending: Some(default("events_pending")),
            events_outcomes: Some(default("events_outcomes")),
            events_arguments: Some(default("events_arguments")),
            accept_content: Some(default("accept_content")),
            security_cert_store: None,
            security_digest: Some(default("security_digest")),
            security_key: None,
            security_certificate: None,
            max_body_size: Some(default("max_body_size")),
            max_decompressed_size: Some(default("max_decompressed_size")),
            max_compression_ratio: Some(default("max_compression_ratio")),
            max_depth: Some(default("max_depth")),
            max_events: Some(default("max_events")),
            max_expanded_values: Some(default("max_expanded_values")),
            lanes: Some(default("lanes")),
            max_rows: Some(default("max_rows")),
            max_bytes: Some(default("max_bytes")),
            max_wait: Some(default("max_wait")),
            prefetch: None,
            time_zone: Some(default("time_zone")),
            result_expires: Some(default("result_expires")),
            result_expires_by_state: None,
            result_expires_by_task: None,
            cleanup_batch: Some(default("cleanup_batch")),
            cleanup_pause: Some(default("cleanup_pause")),
            cleanup_every: Some(default("cleanup_every")),
            listen: None,
            log_format: Some(default("log_format")),
            log_level: Some(default("log_level")),
        };
        let named = format!("{:?}", named.check().expect("the named defaults are good"));
        let real = format!("{:?}", Settings::default().check().expect("the defaults are good"));
        assert_eq!(named, real);
    }

    #[test]
    fn a_layer_wins_over_the_next_unless_it_is_empty() {
        let flags = settings("lanes = 2\nresults-queue = ''\ndatabase = 'mysql://h/n'");
        let file = settings("lanes = '3'\nresults-queue = 'r'\nmax-rows = 7");
        let shared = Settings::from_shared_environment(|name| match name {
            "CELERY_BROKER_URL" => Some("amqp://shared//".to_owned()),
            "DATABASE_URL" => Some("postgres://shared/n".to_owned()),
            "CELERY_RESULT_EXPIRES" => Some("0".to_owned()),
            _ => None,
        });
        let expires = |settings: Settings| {
            let expiry = settings.check().expect("all are good").cleanup.expiry;
            expiry.rules()[expiry.of_groups()].age
        };
        assert_eq!(expires(shared.clone()), None);
        assert_eq!(expires(Settings::default()), Some(Duration::from_hours(24)));
        let written = settings("result-expires = 60").or(shared.clone());
        assert_eq!(expires(written), Some(Duration::from_mins(1)));
        let config = flags.or(file).or(shared).check().expect("all are good");
        assert_eq!((config.lanes, config.results_queue.as_str()), (2, "r"));
        assert_eq!((config.max_rows, config.prefetch), (7, 14));
        assert_eq!(config.brokers[0].host, "shared");
        assert_eq!(config.database.to_string(), "mysql://h/n");
    }

    #[test]
    fn events_are_stored_where_they_are_wanted() {
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
    fn what_cannot_be_is_refused_with_the_fix() {
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

    #[test]
    fn an_error_in_the_file_names_the_line_and_not_its_content() {
        let path = std::env::temp_dir().join(format!("celeriac-{}.toml", std::process::id()));
        let error = |toml: &str| {
            std::fs::write(&path, toml).expect("the folder is writable");
            let error = Settings::from_file(&path).err().expect(toml).to_string();
            std::fs::remove_file(&path).expect("just written");
            error
        };
        let message = error("lanes = 1\nbroker = 'amqp://u:secret@h' x\n");
        assert!(message.contains("line 2") && !message.contains("secret"), "{message}");
        let message = error("lane = 1\n");
        assert!(
            message.contains("line 1") && message.contains("unknown field `lane`"),
            "{message}"
        );
        let message = Settings::from_file(&path).err().expect("no file").to_string();
        assert!(message.contains("cannot be read"), "{message}");
    }
}
