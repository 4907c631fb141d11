//! Celeriac takes the results of Celery tasks from RabbitMQ and puts them into a Django project's
//! database, as the rows that django-celery-results would have written.
//!
//! The modules stand here in the order in which a message meets them:
//!
//! - [`config`]: settings, read once and checked; the only place that knows their names.
//! - [`broker`]: sessions with the broker, which deliver messages, acknowledge them and take dead
//!   letters. RabbitMQ is behind the contract, in `broker/rabbitmq/`.
//! - [`message`]: a message's body, properties and headers as plain data; dead letters and captures.
//! - [`decode`]: a message becomes rows: `envelope/` checks and opens it, `format/` has a file or
//!   folder for each serializer.
//! - [`row`]: the rows, under Django's column names, and the law by which rows with one id merge.
//! - [`pipeline`]: a lane with its loop and its batches, and the policy for every error.
//! - [`store`]: rows into the tables, one folder for each database; also the tables' creation, their
//!   inspection and the deletion of rows.
//! - [`retry`]: waiting between tries.
//! - [`diagnosis`]: what is wrong and how to mend it, as text for people.
//! - [`telemetry`]: logging, metrics and health, over HTTP and for systemd.
//! - [`check`]: tries everything that the daemon needs without changing anything.
//! - [`cleanup`]: deletes expired rows, once or by a schedule.
//! - [`version`]: which program this is.
//!
//! The command line is in `src/main.rs` and `src/command/`, and belongs to the program alone.
//!
//! # What always holds
//!
//! - A message is acknowledged only after its row is committed, or after the broker has confirmed
//!   it in the dead-letter queue.
//! - Rows come out the same whatever the order, the batches, the duplicates and the number of
//!   daemons: the law is in [`row::merge`], and once more, in SQL, in `store/upsert.rs`.
//! - Lanes share nothing, and nothing is kept between two sessions with the broker.
//! - lapin is named only in `broker/rabbitmq/`, sqlx only in `store/`; `row/` and `decode/` have no
//!   clock, no I/O and no log. `tests/import_rules.rs` checks these walls.
//! - No byte from the wire is executed, and no argument, result or password is logged.

pub mod broker;
pub mod check;
pub mod cleanup;
pub mod config;
pub mod decode;
pub mod diagnosis;
pub mod message;
pub mod pipeline;
pub mod retry;
pub mod row;
pub mod store;
pub mod telemetry;
pub mod version;
