//! The one list of settings: their names on the command line and in the environment, and their help.
//! A TOML file has them under the same names.

use std::path::PathBuf;

/// The settings of `celeriac run` as users write them, each optional.
#[derive(Clone, Default, clap::Args)]
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
    pub(super) broker: Option<String>,

    /// A file that holds the broker's URL instead, such as a systemd credential or a Docker secret.
    ///
    /// Its last line ends may be there or not. Read at the start.
    ///
    /// Default: none
    #[arg(long, value_name = "FILE", env = "CELERIAC_BROKER_FILE")]
    pub(super) broker_file: Option<String>,

    /// The Django project's database, as a URL.
    ///
    /// `postgres://USER:PASSWORD@HOST:PORT/NAME`, `mysql://…` (MariaDB too),
    /// `sqlite:///relative/path` or `sqlite:////absolute/path`. TLS as the database names it:
    /// `?sslmode=verify-full&sslrootcert=FILE` (PostgreSQL), `?ssl-mode=VERIFY_IDENTITY&ssl-ca=FILE`
    /// (MySQL). Without this setting `DATABASE_URL` counts.
    ///
    /// Default: `sqlite:///db.sqlite3`
    #[arg(long, value_name = "URL", env = "CELERIAC_DATABASE", hide_env_values = true)]
    pub(super) database: Option<String>,

    /// A file that holds the database's URL instead, as `--broker-file` does the broker's.
    ///
    /// Default: none
    #[arg(long, value_name = "FILE", env = "CELERIAC_DATABASE_FILE")]
    pub(super) database_file: Option<String>,

    /// The queue that workers send results to.
    ///
    /// Declared durable and quorum; a queue that is there already is used as it is.
    ///
    /// Default: celeriac.results
    #[arg(long, value_name = "NAME", env = "CELERIAC_RESULTS_QUEUE")]
    pub(super) results_queue: Option<String>,

    /// The exchange that workers with `result_backend = "celeriac://"` publish to.
    ///
    /// Declared durable and direct, and bound to the results queue.
    ///
    /// Default: celeriac
    #[arg(long, value_name = "NAME", env = "CELERIAC_EXCHANGE")]
    pub(super) exchange: Option<String>,

    /// The queue for messages that cannot be stored.
    ///
    /// Declared durable and quorum. Each message has the reason in its headers.
    ///
    /// Default: celeriac.dead
    #[arg(long, value_name = "NAME", env = "CELERIAC_DEAD_QUEUE")]
    pub(super) dead_queue: Option<String>,

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
    pub(super) events: Option<String>,

    /// The queue that events gather in.
    ///
    /// Declared durable, classic and bounded; a queue that is there already is used as it is.
    ///
    /// Default: celeriac.events
    #[arg(long, value_name = "NAME", env = "CELERIAC_EVENTS_QUEUE")]
    pub(super) events_queue: Option<String>,

    /// The exchange that workers send events to: Celery's `event_exchange`.
    ///
    /// Default: celeryev
    #[arg(long, value_name = "NAME", env = "CELERIAC_EVENT_EXCHANGE")]
    pub(super) event_exchange: Option<String>,

    /// The most messages in the queue of events, 1 to 2147483647. The oldest give way.
    ///
    /// A worker puts up to 24 events into one message.
    ///
    /// Default: 100000
    #[arg(long, value_name = "NUMBER", env = "CELERIAC_EVENTS_MAX_LENGTH")]
    pub(super) events_max_length: Option<String>,

    /// How long events wait in their queue before they are dropped, such as 10m or 1day.
    ///
    /// Default: 1h
    #[arg(long, value_name = "DURATION", env = "CELERIAC_EVENTS_TTL")]
    pub(super) events_ttl: Option<String>,

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
    pub(super) events_pending: Option<String>,

    /// Whether an event may end a task: true or false.
    ///
    /// A row that says SUCCESS before the result message has come has Celery's `repr` of the
    /// result, and Django's `AsyncResult` takes that for the result. Write false where results of
    /// all tasks are stored, and only tasks at work are of interest.
    ///
    /// Default: true
    #[arg(long, value_name = "BOOL", env = "CELERIAC_EVENTS_OUTCOMES", require_equals = true)]
    pub(super) events_outcomes: Option<String>,

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
    pub(super) events_arguments: Option<String>,

    /// The serializers whose messages are stored, with commas between them: json, msgpack, yaml,
    /// pickle, auth, or content types. Celery's `accept_content`.
    ///
    /// Others become dead letters. Nothing is executed here, but Django executes what is in a
    /// pickle when it reads the row: accept it only if you trust everybody who can publish.
    ///
    /// Default: json,msgpack,yaml,auth
    #[arg(long, value_name = "LIST", env = "CELERIAC_ACCEPT_CONTENT")]
    pub(super) accept_content: Option<String>,

    /// The certificates of those whose signatures count, as a pattern of files or a folder.
    /// Celery's `security_cert_store`.
    ///
    /// For messages of the serializer `auth`, such as `/etc/ssl/celery/*.pem`. They are read at the
    /// start. Without this setting signed messages become dead letters.
    ///
    /// Default: none
    #[arg(long, value_name = "PATTERN", env = "CELERIAC_SECURITY_CERT_STORE")]
    pub(super) security_cert_store: Option<String>,

    /// The hash function of signatures: sha224, sha256, sha384 or sha512. Celery's
    /// `security_digest`.
    ///
    /// Default: sha256
    #[arg(long, value_name = "NAME", env = "CELERIAC_SECURITY_DIGEST")]
    pub(super) security_digest: Option<String>,

    /// The largest body of a message that is stored, such as 512KiB or 64MiB.
    ///
    /// This and the limits that follow keep a message from taking all memory. One that passes a
    /// limit becomes a dead letter.
    ///
    /// Default: 64MiB
    #[arg(long, value_name = "SIZE", env = "CELERIAC_MAX_BODY_SIZE")]
    pub(super) max_body_size: Option<String>,

    /// The largest body after decompression, such as 512KiB or 64MiB.
    ///
    /// Default: 64MiB
    #[arg(long, value_name = "SIZE", env = "CELERIAC_MAX_DECOMPRESSED_SIZE")]
    pub(super) max_decompressed_size: Option<String>,

    /// How many times as large as its compressed form a body may be, from 1 on. 1 MiB is always
    /// allowed.
    ///
    /// Default: 200
    #[arg(long, value_name = "NUMBER", env = "CELERIAC_MAX_COMPRESSION_RATIO")]
    pub(super) max_compression_ratio: Option<String>,

    /// How deep lists and maps may nest, from 1 on.
    ///
    /// Default: 10000
    #[arg(long, value_name = "NUMBER", env = "CELERIAC_MAX_DEPTH")]
    pub(super) max_depth: Option<String>,

    /// The most events in one message, from 1 on.
    ///
    /// Default: 10000
    #[arg(long, value_name = "NUMBER", env = "CELERIAC_MAX_EVENTS")]
    pub(super) max_events: Option<String>,

    /// How many values a text in YAML may have, from 1 on, each of its aliases counted as all that
    /// it stands for.
    ///
    /// Default: 1000000
    #[arg(long, value_name = "NUMBER", env = "CELERIAC_MAX_EXPANDED_VALUES")]
    pub(super) max_expanded_values: Option<String>,

    /// How many lanes work side by side, 1 to 64.
    ///
    /// A lane has its own connection to the broker and to the database. SQLite has one writer and
    /// so takes one lane.
    ///
    /// Default: 1
    #[arg(long, value_name = "NUMBER", env = "CELERIAC_LANES")]
    pub(super) lanes: Option<String>,

    /// The most messages that one write takes in, 1 to 65535.
    ///
    /// Default: 1000
    #[arg(long, value_name = "NUMBER", env = "CELERIAC_MAX_ROWS")]
    pub(super) max_rows: Option<String>,

    /// The most bytes of messages that one write takes in, such as 512KiB or 4MiB.
    ///
    /// What is compressed counts as what it is when it is not. A single message may be larger and
    /// ends the batch.
    ///
    /// Default: 4MiB
    #[arg(long, value_name = "SIZE", env = "CELERIAC_MAX_BYTES")]
    pub(super) max_bytes: Option<String>,

    /// How long rows may gather under load, such as 20ms, 1s or 0s.
    ///
    /// A message that comes to an idle lane is written at once. While writes follow each other, a
    /// batch waits until it is full or its first message is this old. 0s never waits.
    ///
    /// Default: 20ms
    #[arg(long, value_name = "DURATION", env = "CELERIAC_MAX_WAIT")]
    pub(super) max_wait: Option<String>,

    /// The most messages that a lane holds without having acknowledged them, 1 to 65535.
    ///
    /// With their sizes this bounds the memory of a lane: lower it where results are large.
    ///
    /// Default: twice max-rows
    #[arg(long, value_name = "NUMBER", env = "CELERIAC_PREFETCH")]
    pub(super) prefetch: Option<String>,

    /// The zone of times in SQLite, MySQL and MariaDB, such as Europe/Paris.
    ///
    /// UTC where Django's `USE_TZ` is true; where it is false, Django's `TIME_ZONE`. PostgreSQL
    /// keeps the zone itself.
    ///
    /// Default: UTC
    #[arg(long, value_name = "ZONE", env = "CELERIAC_TIME_ZONE")]
    pub(super) time_zone: Option<String>,

    /// How long rows are kept after their `date_done`, such as 12h or 30days. Celery's
    /// `result_expires`.
    ///
    /// A number is one of seconds, and 0 or never keeps them for ever. `celeriac cleanup` deletes
    /// what has expired, and `celeriac run` with --cleanup-every. Without this setting
    /// `CELERY_RESULT_EXPIRES` counts.
    ///
    /// Default: 1day
    #[arg(long, value_name = "DURATION", env = "CELERIAC_RESULT_EXPIRES")]
    pub(super) result_expires: Option<String>,

    /// Other ages for tasks in some states, with commas between them: FAILURE=30days,STARTED=never.
    ///
    /// Default: none
    #[arg(long, value_name = "LIST", env = "CELERIAC_RESULT_EXPIRES_BY_STATE")]
    pub(super) result_expires_by_state: Option<String>,

    /// Other ages for some tasks, whatever their state, with commas between them:
    /// shop.tasks.report=90days,shop.audit.*=never.
    ///
    /// A name counts before a pattern, a longer pattern before a shorter one, and each of them
    /// before the state.
    ///
    /// Default: none
    #[arg(long, value_name = "LIST", env = "CELERIAC_RESULT_EXPIRES_BY_TASK")]
    pub(super) result_expires_by_task: Option<String>,

    /// How many expired rows are deleted together, 1 to 65535. Their locks are held for so long.
    ///
    /// Default: 1000
    #[arg(long, value_name = "NUMBER", env = "CELERIAC_CLEANUP_BATCH")]
    pub(super) cleanup_batch: Option<String>,

    /// The pause after each batch of expired rows, which leaves the database to others.
    ///
    /// Default: 100ms
    #[arg(long, value_name = "DURATION", env = "CELERIAC_CLEANUP_PAUSE")]
    pub(super) cleanup_pause: Option<String>,

    /// How often `celeriac run` deletes expired rows, such as 6h or 1day, or never.
    ///
    /// The first time is within a tenth of that. Of several daemons on one database, one does it at
    /// a time.
    ///
    /// Default: never
    #[arg(long, value_name = "DURATION", env = "CELERIAC_CLEANUP_EVERY")]
    pub(super) cleanup_every: Option<String>,

    /// Where metrics and health are told over HTTP, as an address and a port: `/metrics`, `/live`
    /// and `/ready`.
    ///
    /// Whoever can connect can read them; they hold names of queues and no data. Such as
    /// 127.0.0.1:9180, or 0.0.0.0:9180 for all of the network.
    ///
    /// Default: none
    #[arg(long, value_name = "ADDRESS", env = "CELERIAC_LISTEN")]
    pub(super) listen: Option<String>,

    /// How log lines look: text or json. They go to standard error.
    ///
    /// Default: text
    #[arg(long, value_name = "FORMAT", env = "CELERIAC_LOG_FORMAT")]
    pub(super) log_format: Option<String>,

    /// What is logged: error, warn, info, debug, trace, or a filter such as info,celeriac=debug.
    ///
    /// Batches are logged at debug, messages at trace.
    ///
    /// Default: info
    #[arg(long, value_name = "LEVEL", env = "CELERIAC_LOG_LEVEL")]
    pub(super) log_level: Option<String>,
}

/// The path of the settings file, where one is given.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ConfigFile {
    /// A TOML file with settings, under the same names: `max-rows = 500`.
    #[arg(long, value_name = "FILE", env = "CELERIAC_CONFIG")]
    pub config: Option<PathBuf>,
}
