//! Celeriac takes the results of Celery tasks from RabbitMQ and puts them into a Django project's
//! database, as the rows that django-celery-results would have written.
//!
//! A message walks one way: source → decode → merge → batch → store → ack. The modules stand here
//! in the order in which it meets them:
//!
//! - [`config`]: settings become types that cannot be wrong; the only place that knows their names.
//! - [`lane`]: one connection to each side, opened, watched and opened again; runs the pipeline.
//! - [`pipeline`]: the only loop, and the policy for every class of error.
//! - [`source`]: a session with the broker; what lapin delivers becomes a [`message`]. `diagnosis.rs`
//!   says how to mend what keeps it, or the database, from being reached.
//! - [`message`]: body, properties and headers as plain data.
//! - [`decode`]: content type → [`row`]s; one file per wire format, of results and of events.
//! - [`state`]: Celery's states.
//! - [`task_result`], [`group_result`]: a row of each table, under Django's column names.
//! - [`row`]: one of them.
//! - [`merge`]: two rows with one id → one.
//! - [`batch`]: rows by their ids, and the messages that they came from.
//! - [`store`]: rows into the tables; the error classes; one file per database. `store/migrate/`
//!   makes the tables, with the statements in `migrations/`, and `store/cleanup/` deletes rows.
//! - [`ack`]: acknowledgements and dead letters; [`dead_letter`] is what these say, [`publish`]
//!   how they get into their queue.
//! - [`backoff`]: waiting between tries.
//! - [`capture`]: messages in a file, for `celeriac capture` and `celeriac replay`; [`tap`] is where
//!   they come from.
//! - [`dead_queue`]: the dead-letter queue as `celeriac dead` looks at it.
//! - `unreadable`: messages that lapin cannot read, and how to get past them.
//! - [`check`]: trying both sides without changing anything; each [`finding`] is told as it is made.
//! - [`cleanup`]: deleting expired rows, once or by a schedule; [`expiry`] is how long rows are kept.
//! - [`telemetry`]: how it logs, what it counts, and how its lanes are.
//! - [`service`]: telling that to systemd.
//! - [`listener`]: telling that over HTTP; [`queue_depth`] asks the broker how full the queues are.
//! - [`version`]: which program this is.
//!
//! # What always holds
//!
//! - A message is acknowledged only after its row is committed, or after the broker has confirmed
//!   it in the dead-letter queue.
//! - Rows come out the same whatever the order, the batches, the duplicates and the number of
//!   daemons: the law is in [`merge`], and once more, in SQL, in `store/upsert.rs`.
//! - Lanes share nothing, and nothing is kept between two sessions with the broker.
//! - lapin is named only in `source.rs`, `publish.rs`, `ack.rs`, `dead_queue.rs`,
//!   `queue_depth.rs`, `tap.rs`, `unreadable.rs` and under `check/`, sqlx only under `store/`; [`decode`], [`state`],
//!   [`task_result`], [`group_result`], [`row`], [`merge`], [`batch`] and [`expiry`] have no clock,
//!   no I/O and no log.
//! - No byte from the wire is executed, and no argument, result or password is logged.

pub mod ack;
pub mod backoff;
pub mod batch;
pub mod capture;
pub mod check;
pub mod cleanup;
pub mod config;
pub mod dead_letter;
pub mod dead_queue;
pub mod decode;
mod diagnosis;
pub mod expiry;
pub mod finding;
pub mod group_result;
pub mod lane;
pub mod listener;
pub mod merge;
pub mod message;
pub mod pipeline;
pub mod publish;
pub mod queue_depth;
pub mod row;
pub mod service;
pub mod source;
pub mod state;
pub mod store;
pub mod tap;
pub mod task_result;
pub mod telemetry;
mod unreadable;
pub mod version;
