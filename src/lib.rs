//! Celeriac consumes the results of Celery tasks from RabbitMQ and writes them to a Django
//! project's database, as the rows that django-celery-results would have written.
//!
//! The modules, in the order in which a message passes through them:
//!
//! - [`config`]: the settings, read and checked once at the start. No other module knows their
//!   names.
//! - [`broker`]: sessions with the broker: receiving messages, acknowledging them and publishing
//!   dead letters. The traits are independent of RabbitMQ, which `broker/rabbitmq/` implements.
//! - [`message`]: a message's body, properties and headers as plain data; dead letters and captures.
//! - [`decode`]: turns a message into rows. `envelope/` checks the content type, decompresses the
//!   body and verifies signatures; `format/` has a file or folder for each serializer.
//! - [`row`]: the rows, with Django's column names, and the rules for merging rows with the same
//!   id.
//! - [`pipeline`]: a lane with its loop and its batches, and what happens after each kind of error.
//! - [`store`]: writes rows to the tables, with one folder for each database. It also creates and
//!   inspects the tables and deletes expired rows.
//! - [`chords`]: sends the message that unlocks a chord when all its members have ended.
//! - [`hints`]: tells processes that wait for results which tasks have ended.
//! - [`retry`]: waits between attempts.
//! - [`diagnosis`]: error messages that say what is wrong and how to fix it.
//! - [`telemetry`]: logging, metrics and health, over HTTP and for systemd.
//! - [`check`]: tests everything that the daemon needs, without changing anything.
//! - [`cleanup`]: deletes expired rows, once or on a schedule.
//! - [`version`]: the version and the commit of the program.
//!
//! The command line is in `src/main.rs` and `src/command/`. It is part of the program, not of this
//! library.
//!
//! # Invariants
//!
//! - A message is acknowledged only after its row is committed, or after the broker has confirmed
//!   that it is in the dead-letter queue.
//! - The rows do not depend on the order of the messages, on duplicates, on how messages are
//!   batched or on the number of daemons. The rules are in [`row::merge`].
//! - Lanes share only the metrics, the hints and the orders for chords, and no state is kept from one session with the
//!   broker to the next.
//! - Only `broker/rabbitmq/` uses lapin and only `store/` uses sqlx. `row/` and `decode/` do not
//!   read the clock, do no I/O and write no log. `tests/import_rules.rs` checks this.
//! - Nothing received in a message is ever executed, and no argument, result or password is logged.

pub mod broker;
pub mod check;
pub mod chords;
pub mod cleanup;
pub mod config;
pub mod decode;
pub mod diagnosis;
pub mod hints;
pub mod message;
pub mod pipeline;
pub mod retry;
pub mod row;
pub mod store;
pub mod telemetry;
pub mod version;
