//! The list of all settings, with their names on the command line and in the environment and their
//! help. A TOML file uses the names of the command line.

use std::path::PathBuf;

/// The settings as users write them. Each is optional.
#[derive(Clone, Default, clap::Args)]
pub struct Settings {
    /// The URL of RabbitMQ, in the form of Celery's `broker_url`.
    ///
    /// The scheme is `amqp://`, `pyamqp://` or `amqps://` (TLS). The virtual host follows the slash
    /// after the host (`//` is the default one). Several URLs separated by `;` are tried in order.
    /// Parameters are `heartbeat` (in seconds) and, for TLS, the files `ssl_ca_certs`,
    /// `ssl_certfile` and `ssl_keyfile`. If this is not set, `CELERY_BROKER_URL` is used.
    ///
    /// Default: `amqp://guest:guest@localhost:5672//`
    #[arg(long, value_name = "URL", env = "CELERIAC_BROKER", hide_env_values = true)]
    pub(super) broker: Option<String>,

    /// A file that contains the broker URL, such as a systemd credential or a Docker secret.
    ///
    /// It replaces `--broker` and is read at the start. White space around the URL is ignored.
    ///
    /// Default: none
    #[arg(long, value_name = "FILE", env = "CELERIAC_BROKER_FILE")]
    pub(super) broker_file: Option<String>,

    /// The URL of the Django project's database.
    ///
    /// Write `postgres://USER:PASSWORD@HOST:PORT/NAME`, `mysql://…` (for MariaDB too),
    /// `sqlite:///relative/path` or `sqlite:////absolute/path`. The TLS parameters are those of the
    /// database: `?sslmode=verify-full&sslrootcert=FILE` (PostgreSQL) or
    /// `?ssl-mode=VERIFY_IDENTITY&ssl-ca=FILE` (MySQL). If this is not set, `DATABASE_URL` is used.
    ///
    /// Default: `sqlite:///db.sqlite3`
    #[arg(long, value_name = "URL", env = "CELERIAC_DATABASE", hide_env_values = true)]
    pub(super) database: Option<String>,

    /// A file that contains the database URL, used instead of `--database`.
    ///
    /// Default: none
    #[arg(long, value_name = "FILE", env = "CELERIAC_DATABASE_FILE")]
    pub(super) database_file: Option<String>,

    /// The queue that workers send results to.
    ///
    /// Celeriac declares it as a durable quorum queue. An existing queue is used as it is.
    ///
    /// Default: celeriac.results
    #[arg(long, value_name = "NAME", env = "CELERIAC_RESULTS_QUEUE")]
    pub(super) results_queue: Option<String>,

    /// The exchange that workers with `result_backend = "celeriac://"` publish to.
    ///
    /// Celeriac declares it as a durable direct exchange and binds it to the results queue.
    ///
    /// Default: celeriac
    #[arg(long, value_name = "NAME", env = "CELERIAC_EXCHANGE")]
    pub(super) exchange: Option<String>,

    /// The queue for messages that cannot be stored.
    ///
    /// Celeriac declares it as a durable quorum queue. Each message has the reason in its headers.
    ///
    /// Default: celeriac.dead
    #[arg(long, value_name = "NAME", env = "CELERIAC_DEAD_QUEUE")]
    pub(super) dead_queue: Option<String>,

    /// Whether processes that wait for results are told when they are stored: true or false.
    ///
    /// After each commit, a message with the ids of the tasks that have ended is published to the
    /// topic exchange `celeriac.stored`. A process that waits for a result through `celeriac://`
    /// then reads it at once. Without these messages it asks the database again and again.
    ///
    /// Default: true
    #[arg(
        long,
        value_name = "BOOL",
        env = "CELERIAC_HINTS",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub(super) hints: Option<String>,

    /// Whether task events are stored too: true or false.
    ///
    /// With events, a task has a row as soon as a worker receives it, rows have the names of tasks,
    /// and tasks whose results are ignored or stored elsewhere have rows too. Workers must send
    /// events: `celery worker -E`.
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

    /// The queue for task events.
    ///
    /// Celeriac declares it as a durable classic queue with a limited length. An existing queue is
    /// used as it is.
    ///
    /// Default: celeriac.events
    #[arg(long, value_name = "NAME", env = "CELERIAC_EVENTS_QUEUE")]
    pub(super) events_queue: Option<String>,

    /// The exchange that workers send events to: Celery's `event_exchange`.
    ///
    /// Default: celeryev
    #[arg(long, value_name = "NAME", env = "CELERIAC_EVENT_EXCHANGE")]
    pub(super) event_exchange: Option<String>,

    /// The maximum length of the queue for events, 1 to 2147483647. The oldest messages are dropped
    /// first.
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

    /// Whether tasks that were sent but not yet received get a PENDING row: true or false.
    ///
    /// Clients must send this event: set Celery's `task_send_sent_event`.
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

    /// Whether events store the final state of a task: true or false.
    ///
    /// An event contains only the `repr` of the result. Until the result message arrives, an
    /// `AsyncResult` that reads the row through django-celery-results returns that `repr` as the
    /// result. Write false if the results of all tasks are stored and events are only needed for
    /// tasks that are still running.
    ///
    /// Default: true
    #[arg(long, value_name = "BOOL", env = "CELERIAC_EVENTS_OUTCOMES", require_equals = true)]
    pub(super) events_outcomes: Option<String>,

    /// Whether the task arguments in events are stored: true or false. They can contain secrets.
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

    /// Whether the task arguments in messages of the result backend rpc:// are stored: true or
    /// false. They can contain secrets.
    ///
    /// With `result_extended`, Celery sends the arguments themselves, also if the application hides
    /// them in `argsrepr` and `kwargsrepr`. The messages of celeriac:// contain only the latter, and
    /// their arguments are always stored.
    ///
    /// Default: false
    #[arg(
        long,
        value_name = "BOOL",
        env = "CELERIAC_RPC_ARGUMENTS",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub(super) rpc_arguments: Option<String>,

    /// How much the clocks of the workers may differ, such as 500ms or 2s.
    ///
    /// A FAILURE or REVOKED counts as this much later than its time says, so that a RETRY or STARTED
    /// of a worker whose clock is ahead does not replace it. A state that is not final and lies
    /// further in the future than this has the time of its arrival. All daemons of a database need
    /// the same value.
    ///
    /// Default: 2s
    #[arg(long, value_name = "DURATION", env = "CELERIAC_CLOCK_TOLERANCE")]
    pub(super) clock_tolerance: Option<String>,

    /// The serializers whose messages are stored, separated by commas: json, msgpack, yaml, pickle,
    /// auth, or content types. Celery's `accept_content`.
    ///
    /// Messages of other serializers become dead letters. Celeriac never executes a pickle, but
    /// Django does when it reads the row: accept pickle only if you trust everybody who can publish
    /// messages.
    ///
    /// Default: json,msgpack,yaml,auth
    #[arg(long, value_name = "LIST", env = "CELERIAC_ACCEPT_CONTENT")]
    pub(super) accept_content: Option<String>,

    /// The certificates of the trusted signers, as a pattern of files or a folder. Celery's
    /// `security_cert_store`.
    ///
    /// This is for messages of the serializer `auth`. Write for example `/etc/ssl/celery/*.pem`.
    /// The certificates are read at the start. If this is not set, signed messages become dead
    /// letters.
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
    /// This and the following limits keep a single message from using all memory. A message that
    /// exceeds a limit becomes a dead letter.
    ///
    /// Default: 64MiB
    #[arg(long, value_name = "SIZE", env = "CELERIAC_MAX_BODY_SIZE")]
    pub(super) max_body_size: Option<String>,

    /// The largest body after decompression, such as 512KiB or 64MiB.
    ///
    /// Default: 64MiB
    #[arg(long, value_name = "SIZE", env = "CELERIAC_MAX_DECOMPRESSED_SIZE")]
    pub(super) max_decompressed_size: Option<String>,

    /// How many times larger than its compressed form a body may be, 1 or more. A body of up to 1
    /// MiB is always allowed.
    ///
    /// Default: 200
    #[arg(long, value_name = "NUMBER", env = "CELERIAC_MAX_COMPRESSION_RATIO")]
    pub(super) max_compression_ratio: Option<String>,

    /// How deeply lists and maps may be nested, 1 or more.
    ///
    /// Default: 10000
    #[arg(long, value_name = "NUMBER", env = "CELERIAC_MAX_DEPTH")]
    pub(super) max_depth: Option<String>,

    /// The maximum number of events in one message, 1 or more.
    ///
    /// Default: 10000
    #[arg(long, value_name = "NUMBER", env = "CELERIAC_MAX_EVENTS")]
    pub(super) max_events: Option<String>,

    /// How many values a YAML document may contain, 1 or more. An alias counts as all the values
    /// that it refers to.
    ///
    /// Default: 1000000
    #[arg(long, value_name = "NUMBER", env = "CELERIAC_MAX_EXPANDED_VALUES")]
    pub(super) max_expanded_values: Option<String>,

    /// How many lanes work in parallel, 1 to 64.
    ///
    /// A lane has its own connection to the broker and its own connection to the database. SQLite
    /// allows only one writer, so it needs a single lane.
    ///
    /// Default: 1
    #[arg(long, value_name = "NUMBER", env = "CELERIAC_LANES")]
    pub(super) lanes: Option<String>,

    /// The maximum number of messages in one write, 1 to 65535.
    ///
    /// Default: 1000
    #[arg(long, value_name = "NUMBER", env = "CELERIAC_MAX_ROWS")]
    pub(super) max_rows: Option<String>,

    /// The maximum size of the messages in one write, such as 512KiB or 4MiB.
    ///
    /// A compressed body counts with its decompressed size. A single message may be larger; it ends
    /// the batch.
    ///
    /// Default: 4MiB
    #[arg(long, value_name = "SIZE", env = "CELERIAC_MAX_BYTES")]
    pub(super) max_bytes: Option<String>,

    /// How long a batch may collect messages under load, such as 20ms, 1s or 0s.
    ///
    /// Single messages are written at once. If at least 8 messages arrive within this time, a batch
    /// waits until it is full or its first message is this old. With 0s it never waits.
    ///
    /// Default: 20ms
    #[arg(long, value_name = "DURATION", env = "CELERIAC_MAX_WAIT")]
    pub(super) max_wait: Option<String>,

    /// The maximum number of unacknowledged messages of a lane, 1 to 65535.
    ///
    /// Together with the size of the messages this limits the memory of a lane: lower it if results
    /// are large.
    ///
    /// Default: twice max-rows
    #[arg(long, value_name = "NUMBER", env = "CELERIAC_PREFETCH")]
    pub(super) prefetch: Option<String>,

    /// The time zone of times in SQLite, MySQL and MariaDB, such as Europe/Paris.
    ///
    /// Write UTC if Django's `USE_TZ` is true, and the value of Django's `TIME_ZONE` if it is
    /// false. PostgreSQL does not need this.
    ///
    /// Default: UTC
    #[arg(long, value_name = "ZONE", env = "CELERIAC_TIME_ZONE")]
    pub(super) time_zone: Option<String>,

    /// How long rows are kept after their `date_done`, such as 12h or 30days. Celery's
    /// `result_expires`.
    ///
    /// A plain number is in seconds; 0 or never keeps rows for ever. `celeriac cleanup` deletes
    /// expired rows, and so does `celeriac run` with --cleanup-every. If this is not set,
    /// `CELERY_RESULT_EXPIRES` is used.
    ///
    /// Default: 1day
    #[arg(long, value_name = "DURATION", env = "CELERIAC_RESULT_EXPIRES")]
    pub(super) result_expires: Option<String>,

    /// Expiry times for tasks in some states, separated by commas: FAILURE=30days,STARTED=never.
    ///
    /// Default: none
    #[arg(long, value_name = "LIST", env = "CELERIAC_RESULT_EXPIRES_BY_STATE")]
    pub(super) result_expires_by_state: Option<String>,

    /// Expiry times for some tasks in any state, separated by commas:
    /// shop.tasks.report=90days,shop.audit.*=never.
    ///
    /// A name takes precedence over a pattern, a longer pattern over a shorter one, and both over
    /// the state.
    ///
    /// Default: none
    #[arg(long, value_name = "LIST", env = "CELERIAC_RESULT_EXPIRES_BY_TASK")]
    pub(super) result_expires_by_task: Option<String>,

    /// How many expired rows are deleted in one batch, 1 to 65535. The rows are locked meanwhile.
    ///
    /// Default: 1000
    #[arg(long, value_name = "NUMBER", env = "CELERIAC_CLEANUP_BATCH")]
    pub(super) cleanup_batch: Option<String>,

    /// The pause after each batch of expired rows, such as 100ms or 1s.
    ///
    /// Default: 100ms
    #[arg(long, value_name = "DURATION", env = "CELERIAC_CLEANUP_PAUSE")]
    pub(super) cleanup_pause: Option<String>,

    /// How often `celeriac run` deletes expired rows, such as 6h or 1day, or never.
    ///
    /// The first cleanup begins within a tenth of this time. If several daemons use the same
    /// database, only one of them cleans up at a time.
    ///
    /// Default: never
    #[arg(long, value_name = "DURATION", env = "CELERIAC_CLEANUP_EVERY")]
    pub(super) cleanup_every: Option<String>,

    /// The address and port at which metrics and health are served over HTTP: `/metrics`, `/live`
    /// and `/ready`.
    ///
    /// Write for example 127.0.0.1:9180, or 0.0.0.0:9180 to listen on all addresses. Everybody who
    /// can connect can read them. They contain the names of queues, but no data of tasks.
    ///
    /// Default: none
    #[arg(long, value_name = "ADDRESS", env = "CELERIAC_LISTEN")]
    pub(super) listen: Option<String>,

    /// The format of log lines, text or json. They go to standard error.
    ///
    /// Default: text
    #[arg(long, value_name = "FORMAT", env = "CELERIAC_LOG_FORMAT")]
    pub(super) log_format: Option<String>,

    /// The log level: error, warn, info, debug, trace, or a filter such as info,celeriac=debug.
    ///
    /// Batches are logged at debug, messages at trace.
    ///
    /// Default: info
    #[arg(long, value_name = "LEVEL", env = "CELERIAC_LOG_LEVEL")]
    pub(super) log_level: Option<String>,
}

/// The option that names the settings file.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ConfigFile {
    /// A TOML file with settings, which have the same names there: `max-rows = 500`.
    #[arg(long, value_name = "FILE", env = "CELERIAC_CONFIG")]
    pub config: Option<PathBuf>,
}
