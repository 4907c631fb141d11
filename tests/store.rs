//! One test suite for the three databases, which runs on real servers.
//!
//! `CELERIAC_TEST_POSTGRES` and `CELERIAC_TEST_MYSQL` are the URLs of the servers; `make test` sets
//! them. Each test creates its own database and drops it.

#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Poll;
use std::time::Duration;

use celeriac::config::{DatabaseKind, DatabaseUrl};
use celeriac::row::expiry::{Age, Expiry};
use celeriac::row::group_result::GroupResult;
use celeriac::row::merge::Law;
use celeriac::row::state::State;
use celeriac::row::task_result::{Description, EVENT, Outcome, TOLD_BY_EVENTS, TaskResult};
use celeriac::row::{Key, Row};
use celeriac::store::{
    Before, Catalog, Change, Cleaner, Database, ErrorClass, Job, NextStep, SqlStore, Store,
    StoreError, Write, Written,
};
use chrono::{DateTime, NaiveDateTime, TimeDelta, Utc};
use chrono_tz::Tz;
use futures_util::FutureExt;
use glob::Pattern;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use sqlx::mysql::MySqlConnection;
use sqlx::postgres::PgConnection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, Row as _};

/// A database of the test's own.
struct TestDatabase {
    kind: DatabaseKind,
    /// Where databases are made and dropped; for SQLite the folder of the file.
    server: String,
    name: String,
    connection: AnyConnection,
}

enum AnyConnection {
    Postgres(PgConnection),
    Mysql(MySqlConnection),
    Sqlite(SqliteConnection),
}

/// The store under test.
struct TestStore(SqlStore);

impl TestStore {
    async fn prepare(&mut self) -> Result<&Catalog, StoreError> {
        self.0.prepare().await
    }

    async fn store(&mut self, rows: &[Row]) -> Result<(Written, Vec<Change>), StoreError> {
        let mut changes = Vec::new();
        let writes: Vec<_> = rows.iter().map(|row| Write { row, may_be_stored: false }).collect();
        let written = self.0.store(&writes, &mut changes).await?;
        Ok((written, changes))
    }

    async fn store_tasks(&mut self, results: &[&TaskResult]) -> Result<Written, StoreError> {
        let rows: Vec<_> = results.iter().map(|&result| Row::Task(result.clone())).collect();
        self.store(&rows).await.map(|(written, _)| written)
    }

    async fn store_group(&mut self, result: &GroupResult) -> Result<Written, StoreError> {
        self.store(&[Row::Group(result.clone())]).await.map(|(written, _)| written)
    }
}

fn at_url(url: &str, time_zone: Tz) -> Database {
    Database::at(&DatabaseUrl::parse(url).expect("a URL"), time_zone).expect("good parameters")
}

fn server(variable: &str, default: &str) -> String {
    let url = std::env::var(variable).unwrap_or_else(|_| default.to_owned());
    // The database in the URL is not used; the tests create theirs on the same server.
    let (server, _) = url.rsplit_once('/').expect("a database URL has a path");
    server.to_owned()
}

impl TestDatabase {
    async fn create(kind: DatabaseKind, migration: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("celeriac_test_store_{}_{number}", std::process::id());
        let (server, connection) = match kind {
            DatabaseKind::Postgres => {
                let server =
                    server("CELERIAC_TEST_POSTGRES", "postgres://postgres@127.0.0.1:5432/postgres");
                let mut admin = PgConnection::connect(&format!("{server}/postgres"))
                    .await
                    .expect("PostgreSQL answers: run the tests with `make test`");
                admin.execute(AssertSqlSafe(format!("create database {name}"))).await.expect("may");
                let connection = PgConnection::connect(&format!("{server}/{name}")).await;
                (server, AnyConnection::Postgres(connection.expect("just created")))
            }
            DatabaseKind::Mysql => {
                let server = server("CELERIAC_TEST_MYSQL", "mysql://root@127.0.0.1:3306/mysql");
                let mut admin = MySqlConnection::connect(&format!("{server}/mysql"))
                    .await
                    .expect("MySQL or MariaDB answers: run the tests with `make test`");
                admin.execute(AssertSqlSafe(format!("create database {name}"))).await.expect("may");
                let connection = MySqlConnection::connect(&format!("{server}/{name}")).await;
                (server, AnyConnection::Mysql(connection.expect("just created")))
            }
            DatabaseKind::Sqlite => {
                let folder = std::env::temp_dir();
                let options = SqliteConnectOptions::new()
                    .filename(folder.join(&name))
                    .create_if_missing(true);
                let connection = options.connect().await.expect("the folder is writable");
                (folder.display().to_string(), AnyConnection::Sqlite(connection))
            }
        };
        let mut database = Self { kind, server, name, connection };
        database.execute(migration).await;
        database
    }

    /// Drops the database, even if there are connections to it.
    async fn drop(self) {
        let Self { server, name, .. } = self;
        match self.connection {
            AnyConnection::Postgres(connection) => {
                drop(connection);
                let admin = PgConnection::connect(&format!("{server}/postgres")).await;
                let statement = AssertSqlSafe(format!("drop database {name} with (force)"));
                admin.expect("PostgreSQL answers").execute(statement).await.expect("may drop it");
            }
            AnyConnection::Mysql(mut connection) => {
                let statement = AssertSqlSafe(format!("drop database {name}"));
                connection.execute(statement).await.expect("may drop it");
            }
            AnyConnection::Sqlite(connection) => {
                connection.close().await.expect("the file is there");
                for suffix in ["", "-wal", "-shm"] {
                    let _ = std::fs::remove_file(format!("{server}/{name}{suffix}"));
                }
            }
        }
    }

    /// A cleaner for a job, with its own connection.
    fn cleaner(&self, job: Job) -> Cleaner {
        self.in_zone(Tz::UTC).cleaner(job)
    }

    fn store(&self) -> TestStore {
        self.store_in(Tz::UTC)
    }

    fn store_in(&self, time_zone: Tz) -> TestStore {
        TestStore(self.in_zone(time_zone).store())
    }

    fn in_zone(&self, time_zone: Tz) -> Database {
        let url = match self.kind {
            DatabaseKind::Sqlite => format!("sqlite:///{}/{}", self.server, self.name),
            _ => format!("{}/{}", self.server, self.name),
        };
        at_url(&url, time_zone)
    }

    async fn execute(&mut self, statements: &str) {
        let statements = sqlx::raw_sql(AssertSqlSafe(statements.to_owned()));
        match &mut self.connection {
            AnyConnection::Postgres(connection) => {
                connection.execute(statements).await.expect("good SQL");
            }
            AnyConnection::Mysql(connection) => {
                connection.execute(statements).await.expect("good SQL");
            }
            AnyConnection::Sqlite(connection) => {
                connection.execute(statements).await.expect("good SQL");
            }
        }
    }

    /// Some columns of one row of a table: texts, and times in UTC.
    async fn fetch<const TEXTS: usize, const TIMES: usize>(
        &mut self,
        table: &str,
        (key, id): (&str, &str),
        texts: [&str; TEXTS],
        times: [&str; TIMES],
    ) -> Option<([Option<String>; TEXTS], [Option<DateTime<Utc>>; TIMES])> {
        let columns = [&texts[..], &times[..]].concat().join(", ");
        macro_rules! fetch {
            ($connection:expr, $placeholder:literal, $time:expr) => {{
                let statement =
                    format!("select {columns} from {table} where {key} = {}", $placeholder);
                let row = sqlx::query(AssertSqlSafe(statement))
                    .bind(id)
                    .fetch_optional($connection)
                    .await
                    .expect("good SQL")?;
                (
                    texts.map(|column| row.get(column)),
                    times.map(|column| row.get(column)).map($time),
                )
            }};
        }
        Some(match &mut self.connection {
            AnyConnection::Postgres(connection) => fetch!(connection, "$1", |time| time),
            AnyConnection::Mysql(connection) => {
                fetch!(connection, "?", |time: Option<NaiveDateTime>| time
                    .map(|time| time.and_utc()))
            }
            AnyConnection::Sqlite(connection) => {
                fetch!(connection, "?", |time: Option<String>| time.map(|text| {
                    NaiveDateTime::parse_from_str(&text, "%Y-%m-%d %H:%M:%S%.f")
                        .expect("as Django writes it")
                        .and_utc()
                }))
            }
        })
    }

    /// The row of a task. Whether a time is only that of an arrival is not stored in the table, so
    /// these flags are false.
    async fn row(&mut self, task_id: &str) -> Option<TaskResult> {
        let table = "django_celery_results_taskresult";
        let texts = [
            "status",
            "content_type",
            "content_encoding",
            "result",
            "traceback",
            "meta",
            "task_name",
            "task_args",
            "task_kwargs",
            "worker",
            "periodic_task_name",
        ];
        let times = ["date_done", "date_created", "date_started"];
        let (texts, times) = self.fetch(table, ("task_id", task_id), texts, times).await?;
        let [status, content_type, content_encoding, result, traceback, meta, description @ ..] =
            texts;
        let [task_name, task_args, task_kwargs, worker, periodic_task_name] = description;
        let [date_done, date_created, date_started] = times;
        Some(TaskResult {
            task_id: task_id.to_owned(),
            outcome: Outcome {
                status: State::from(&*status.expect("never NULL")),
                content_type: content_type.expect("never NULL"),
                content_encoding: content_encoding.expect("never NULL"),
                result,
                traceback,
                meta,
                date_done: date_done.expect("never NULL"),
                by_arrival: false,
            },
            description: Description {
                task_name,
                task_args,
                task_kwargs,
                worker,
                periodic_task_name,
                queue: None,
                retries: None,
            },
            date_created: date_created.expect("never NULL"),
            date_started,
        })
    }

    /// The primary key of the row of a task.
    async fn id(&mut self, task_id: &str) -> i64 {
        let statement = "select cast(id as char(20)) from django_celery_results_taskresult \
                         where task_id = ";
        let statement = AssertSqlSafe(format!("{statement}'{task_id}'"));
        let id: String = match &mut self.connection {
            AnyConnection::Postgres(connection) => {
                sqlx::query_scalar(statement).fetch_one(connection).await.expect("it is there")
            }
            AnyConnection::Mysql(connection) => {
                sqlx::query_scalar(statement).fetch_one(connection).await.expect("it is there")
            }
            AnyConnection::Sqlite(connection) => {
                sqlx::query_scalar(statement).fetch_one(connection).await.expect("it is there")
            }
        };
        id.trim().parse().expect("a number")
    }

    /// The row of a group.
    async fn group(&mut self, group_id: &str) -> Option<GroupResult> {
        let table = "django_celery_results_groupresult";
        let texts = ["content_type", "content_encoding", "result"];
        let times = ["date_created", "date_done"];
        let (texts, times) = self.fetch(table, ("group_id", group_id), texts, times).await?;
        let [content_type, content_encoding, result] = texts;
        let [date_created, date_done] = times;
        Some(GroupResult {
            group_id: group_id.to_owned(),
            content_type: content_type.expect("never NULL"),
            content_encoding: content_encoding.expect("never NULL"),
            result,
            date_created: date_created.expect("never NULL"),
            date_done: date_done.expect("never NULL"),
        })
    }
}

/// The expected row of a result, in which the flags for times of arrival are false.
fn as_row(result: &TaskResult) -> TaskResult {
    let outcome = Outcome { by_arrival: false, ..result.outcome.clone() };
    TaskResult { outcome, ..result.clone() }
}

fn assert_rows_equal(row: Option<&TaskResult>, expected: &TaskResult, history: &str) {
    let expected = as_row(expected);
    let row = row.expect("the row is there");
    let show = |result: &TaskResult| {
        let TaskResult { outcome, description, .. } = result;
        format!(
            "{} {:?} {:?} {:?} {} | {:?} {:?} {:?} {:?} {:?} | {} {:?}",
            outcome.status,
            outcome.result,
            outcome.traceback,
            outcome.meta,
            outcome.date_done,
            description.task_name,
            description.task_args,
            description.task_kwargs,
            description.worker,
            description.periodic_task_name,
            result.date_created,
            result.date_started,
        )
    };
    assert!(*row == expected, "\nrow  {}\nRust {}\n{history}", show(row), show(&expected));
}

fn at(microseconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_795_000_000, 0).expect("in range")
        + TimeDelta::microseconds(microseconds)
}

fn result(task_id: &str, status: &str, microseconds: i64) -> TaskResult {
    TaskResult {
        task_id: task_id.to_owned(),
        outcome: Outcome {
            status: State::from(status),
            content_type: "application/json".to_owned(),
            content_encoding: "utf-8".to_owned(),
            result: Some("1".to_owned()),
            traceback: None,
            meta: Some(r#"{"children": []}"#.to_owned()),
            date_done: at(microseconds),
            by_arrival: false,
        },
        description: Description::default(),
        date_created: at(microseconds),
        date_started: (status == "STARTED").then(|| at(microseconds)),
    }
}

async fn every_column_reads_back(database: &mut TestDatabase) {
    let mut store = database.store();
    let mut full = result("é😀", "SUCCESS", 123_456);
    full.outcome.result =
        Some(r#"{"nan": NaN, "s": "\ud800\u0000 é😀 \\ ' \" %s ? $1"}"#.to_owned());
    full.outcome.traceback = Some("line\n\ttab \\ ' \"".to_owned());
    full.description = Description {
        task_name: Some("shop.tasks.pay".to_owned()),
        task_args: Some(r#""('value',)""#.to_owned()),
        task_kwargs: Some("{}".to_owned()),
        worker: Some("celery@host".to_owned()),
        periodic_task_name: Some("nightly".to_owned()),
        ..Description::default()
    };
    full.date_created = at(-1);
    full.date_started = Some(at(0));
    let sparse = result("plain", "REVOKED", 0);
    store.store_tasks(&[&sparse, &full]).await.expect("stored");
    assert_rows_equal(database.row("é😀").await.as_ref(), &full, "full");
    assert_rows_equal(database.row("plain").await.as_ref(), &sparse, "sparse");
    assert!(database.row("absent").await.is_none());
}

async fn writing_again_changes_nothing(database: &mut TestDatabase) {
    let mut store = database.store();
    let (done, started) = (result("a", "SUCCESS", 5), result("b", "STARTED", 3));
    let rows = [&done, &started];
    let written = store.store_tasks(&rows).await.expect("stored");
    assert_eq!((written.tasks.rows, written.tasks.stale), (2, 0));
    let written = store.store_tasks(&rows).await.expect("stored");
    assert_eq!((written.tasks.rows, written.tasks.stale), (2, 2));
    assert_rows_equal(database.row("a").await.as_ref(), &done, "redelivered");
    assert_rows_equal(database.row("b").await.as_ref(), &started, "redelivered");
}

/// Any history leaves the same row as merging it in memory.
async fn rows_are_stored_as_they_merge(database: &mut TestDatabase) {
    let mut store = database.store();
    let mut runner = TestRunner::deterministic();
    for case in 0..150 {
        let history = proptest::collection::vec(any_result(), 1..7)
            .new_tree(&mut runner)
            .expect("the strategy has values")
            .current();
        let task_id = format!("case-{case}");
        let mut expected: Option<TaskResult> = None;
        let mut steps = Vec::new();
        for mut step in history {
            step.task_id.clone_from(&task_id);
            steps.push(format!("{} at {}", step.outcome.status, step.outcome.date_done));
            store.store_tasks(&[&step]).await.expect("stored");
            match &mut expected {
                Some(expected) => expected.merge(step, Law::default()),
                None => expected = Some(step),
            }
        }
        let row = database.row(&task_id).await;
        assert_rows_equal(row.as_ref(), &expected.expect("at least one step"), &steps.join("\n"));
    }
}

/// The same for groups: the row after each step is what merging gives.
async fn groups_are_stored_as_they_merge(database: &mut TestDatabase) {
    let mut store = database.store();
    let mut runner = TestRunner::deterministic();
    for case in 0..60 {
        let history = proptest::collection::vec(any_group(), 1..5)
            .new_tree(&mut runner)
            .expect("the strategy has values")
            .current();
        let group_id = format!("é😀 {case}");
        let mut expected: Option<GroupResult> = None;
        for mut step in history {
            step.group_id.clone_from(&group_id);
            store.store_group(&step).await.expect("stored");
            match &mut expected {
                Some(expected) => expected.merge(step),
                None => expected = Some(step),
            }
            assert!(database.group(&group_id).await == expected, "{group_id}");
        }
    }
    // Tasks and groups with one id are two rows.
    let task = result("both", "SUCCESS", 1);
    let mut group = any_group().new_tree(&mut runner).expect("a value").current();
    "both".clone_into(&mut group.group_id);
    let rows = [Row::Task(task.clone()), Row::Group(group.clone())];
    store.store(&rows).await.expect("stored");
    assert_rows_equal(database.row("both").await.as_ref(), &task, "a task beside a group");
    assert!(database.group("both").await == Some(group));
}

async fn changes_are_reported(database: &mut TestDatabase) {
    let mut store = database.store();
    let change = |id: &str, before, after| Change {
        key: Key::Task(id.to_owned()),
        before,
        after: Some(State::from(after)),
    };
    let rows = [Row::Task(result("a", "STARTED", 1)), Row::Task(result("b", "SUCCESS", 1))];
    let (_, changes) = store.store(&rows).await.expect("stored");
    let created = [change("a", Before::Absent, "STARTED"), change("b", Before::Absent, "SUCCESS")];
    assert_eq!(changes, created);

    let rows = [
        Row::Task(result("a", "SUCCESS", 2)),
        Row::Task(result("b", "FAILURE", 3)),
        Row::Task(result("c", "RETRY", 1)),
    ];
    let (written, mut changes) = store.store(&rows).await.expect("stored");
    changes.sort_by(|one, other| one.key.cmp(&other.key));
    let started = Before::Present(Some(State::Started));
    assert_eq!(changes, [change("a", started, "SUCCESS"), change("c", Before::Absent, "RETRY")]);
    assert_eq!((written.tasks.rows, written.tasks.stale), (3, 1));

    // What an earlier attempt has written is reported although it changes nothing now.
    let writes: Vec<_> = rows.iter().map(|row| Write { row, may_be_stored: true }).collect();
    let mut changes = Vec::new();
    store.0.store(&writes, &mut changes).await.expect("stored");
    let unknown = |id, after| change(id, Before::Unknown, after);
    assert_eq!(changes, [unknown("a", "SUCCESS"), unknown("b", "SUCCESS"), unknown("c", "RETRY")]);

    let group = any_group().new_tree(&mut TestRunner::deterministic()).expect("a value").current();
    let key = Key::Group(group.group_id.clone());
    let (_, changes) = store.store(&[Row::Group(group)]).await.expect("stored");
    assert_eq!(changes, [Change { key, before: Before::Absent, after: None }]);
}

/// Rows that were committed before an error are reported.
async fn changes_before_an_error_are_reported(database: &mut TestDatabase) {
    let mut store = database.store();
    let task = Row::Task(result("a", "SUCCESS", 1));
    store.prepare().await.expect("ready");
    database.execute("drop table django_celery_results_groupresult").await;
    let group = any_group().new_tree(&mut TestRunner::deterministic()).expect("a value").current();
    let rows = [task, Row::Group(group)];
    let writes: Vec<_> = rows.iter().map(|row| Write { row, may_be_stored: false }).collect();
    let mut changes = Vec::new();
    store.0.store(&writes, &mut changes).await.expect_err("no table");
    assert_eq!(changes.len(), 1);
    assert!(database.row("a").await.is_some());
}

/// Only new rows use up numbers of the primary key.
async fn only_new_rows_take_numbers(database: &mut TestDatabase) {
    let mut store = database.store();
    let rows = |ids: std::ops::Range<i32>, status, time| -> Vec<TaskResult> {
        ids.map(|id| result(&format!("{id:03}"), status, time)).collect()
    };
    for (time, status) in (1..).zip(["STARTED", "RETRY", "STARTED", "SUCCESS", "SUCCESS"]) {
        let rows = rows(0..100, status, time);
        store.store_tasks(&rows.iter().collect::<Vec<_>>()).await.expect("stored");
        let half = [&rows[..50], &[result(&format!("new {time}"), status, time)]].concat();
        store.store_tasks(&half.iter().collect::<Vec<_>>()).await.expect("stored");
    }
    store.store_tasks(&[&result("last", "SUCCESS", 1)]).await.expect("stored");
    assert_eq!(database.id("last").await, 100 + 5 + 1);
}

/// A row that another writer deletes while it is being merged is inserted again.
async fn a_row_that_is_deleted_meanwhile_is_inserted_again(database: &mut TestDatabase) {
    if database.kind == DatabaseKind::Sqlite {
        return; // There is only one writer at a time.
    }
    let mut store = database.store();
    store.store_tasks(&[&result("a", "STARTED", 1)]).await.expect("stored");
    database.execute("begin; delete from django_celery_results_taskresult").await;
    let done = result("a", "SUCCESS", 2);
    let results = [&done];
    let storing = store.store_tasks(&results);
    let deleting = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        database.execute("commit").await;
    };
    let (stored, ()) = tokio::join!(storing, deleting);
    stored.expect("stored");
    assert_rows_equal(database.row("a").await.as_ref(), &done, "");
}

/// At the end of the numbers no row is overwritten, and the error says what to do.
async fn the_end_of_the_numbers_is_named_with_the_fix(database: &mut TestDatabase) {
    let (last, statements) = match database.kind {
        DatabaseKind::Postgres => (
            i64::from(i32::MAX),
            vec![
                "alter table django_celery_results_taskresult alter id type integer; \
                 select setval(pg_get_serial_sequence('django_celery_results_taskresult', 'id'), \
                 2147483646)",
            ],
        ),
        DatabaseKind::Mysql => (
            i64::from(i32::MAX),
            vec![
                "alter table django_celery_results_taskresult modify id int auto_increment",
                "alter table django_celery_results_taskresult auto_increment = 2147483647",
            ],
        ),
        DatabaseKind::Sqlite => (
            i64::MAX,
            vec![
                "insert into sqlite_sequence (name, seq) values \
                 ('django_celery_results_taskresult', 9223372036854775806)",
            ],
        ),
    };
    for statement in statements {
        database.execute(statement).await;
    }
    let mut store = database.store();
    let first = result("first", "SUCCESS", 1);
    store.store_tasks(&[&first]).await.expect("one number is left");
    assert_eq!(database.id("first").await, last);
    for _ in 0..2 {
        let error = store.store_tasks(&[&result("second", "SUCCESS", 1)]).await;
        let error = error.expect_err("no number is left");
        assert!(matches!(error.class, ErrorClass::Setup | ErrorClass::Outage), "{error}");
        assert!(error.to_string().contains("`id`"), "{error}");
    }
    assert_rows_equal(database.row("first").await.as_ref(), &first, "");
    // Rows that are there need no number.
    let newer = result("first", "SUCCESS", 2);
    store.store_tasks(&[&newer]).await.expect("stored");
    assert_eq!(database.row("first").await.map(|row| row.outcome.date_done), Some(at(2)));
}

/// Random groups with few different values, so that they often have equal ones.
fn any_group() -> impl Strategy<Value = GroupResult> {
    let text = || prop::option::of(prop::sample::select(vec!["A", "a", "b", "é"]));
    (0..4i64, 0..4i64, text(), text()).prop_map(|(created, done, result, content_type)| {
        GroupResult {
            group_id: String::new(),
            content_type: content_type.unwrap_or_default().to_owned(),
            content_encoding: "utf-8".to_owned(),
            result: result.map(str::to_owned),
            date_created: at(created),
            date_done: at(done),
        }
    })
}

/// Tasks can be stored even if there is no group table.
async fn a_missing_group_table_affects_only_groups(database: &mut TestDatabase) {
    database.execute("drop table django_celery_results_groupresult").await;
    let mut store = database.store();
    let catalog = store.prepare().await.expect("tasks can be stored").clone();
    let group = any_group().new_tree(&mut TestRunner::deterministic()).expect("a value").current();
    let reason = catalog.fit(&mut Row::Group(group)).expect_err("no table");
    assert!(reason.contains("python manage.py migrate"), "{reason}");
    store.store_tasks(&[&result("a", "SUCCESS", 1)]).await.expect("stored");
}

/// A history of a task leads to the same row in any order, in any batches and with several writers.
async fn any_order_ends_in_the_same_row(database: &mut TestDatabase) {
    let mut stores = [database.store(), database.store()];
    let mut runner = TestRunner::deterministic();
    for case in 0..25 {
        let tree = (any_history(), any::<u64>()).new_tree(&mut runner).expect("a value");
        let (history, seed) = tree.current();
        let mut expected: Option<TaskResult> = None;
        for step in &history {
            match &mut expected {
                Some(expected) => expected.merge(step.clone(), Law::default()),
                None => expected = Some(step.clone()),
            }
        }
        let mut expected = expected.expect("at least one step");
        let mut chance = Chance(seed);
        for variant in 0..4 {
            let mut steps = history.clone();
            // Some messages are delivered twice.
            let repeated = history.iter().filter(|_| chance.below(3) == 0).cloned();
            steps.extend(repeated.collect::<Vec<_>>());
            chance.shuffle(&mut steps);
            let task_id = format!("case-{case}-{variant}");
            let mut shown = Vec::new();
            let mut rest = steps.as_mut_slice();
            while !rest.is_empty() {
                let (batch, tail) = rest.split_at_mut(1 + chance.below(rest.len()));
                rest = tail;
                for step in &mut *batch {
                    step.task_id.clone_from(&task_id);
                    shown.push(format!("{step:?} of {:?}", step.outcome.content_type));
                }
                let mut merged = batch[0].clone();
                batch[1..].iter().for_each(|step| merged.merge(step.clone(), Law::default()));
                shown.push("-".to_owned());
                stores[chance.below(2)].store_tasks(&[&merged]).await.expect("stored");
            }
            expected.task_id.clone_from(&task_id);
            let row = database.row(&task_id).await;
            assert_rows_equal(row.as_ref(), &expected, &shown.join("\n"));
        }
    }
}

/// A generator of random numbers (splitmix64), for choices that a strategy cannot make.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut number = self.0;
        number = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        number = (number ^ (number >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        usize::try_from((number ^ (number >> 31)) % limit as u64).expect("below a usize")
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for place in (1..items.len()).rev() {
            items.swap(place, self.below(place + 1));
        }
    }
}

/// A random history of one task, from messages that contain their times: attempts on several
/// workers whose clocks differ, with and without events, and with any message missing. If the
/// result messages describe the task, the last one of them is never missing; otherwise only events
/// describe it.
fn any_history() -> impl Strategy<Value = Vec<TaskResult>> {
    let attempts = prop::collection::vec((0..3usize, 0..4i64, 0..64u8), 1..4);
    let end = prop::sample::select(vec!["SUCCESS", "FAILURE", "REVOKED", "PROGRESS"]);
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    (attempts, end, flags).prop_map(|(attempts, end, (is_whole, has_end, has_arguments))| {
        let mut history = Vec::new();
        let mut time = 0;
        for (number, (worker, skew, kept)) in attempts.iter().enumerate() {
            let worker = ["w-b", "w-a", "w-c"][*worker];
            let name = ["pay", "Pay", "refund"][number];
            let is_last = number + 1 == attempts.len();
            let (state, kind) = if is_last { (end, end) } else { ("RETRY", "RETRY") };
            for (place, (status, is_event)) in [
                ("RECEIVED", true),
                ("STARTED", true),
                ("STARTED", false),
                (state, false),
                (kind, true),
            ]
            .into_iter()
            .enumerate()
            {
                time += 1;
                let is_needed = is_whole && is_last && place == 3;
                if (kept >> place) & 1 == 0 && !is_needed && !(has_end && is_last && place == 3) {
                    continue;
                }
                let mut step = result("", status, time + skew);
                step.description.worker = Some(worker.to_owned());
                if is_event {
                    EVENT.clone_into(&mut step.outcome.content_type);
                    step.outcome.meta = None;
                    step.description.task_name = (place == 0).then(|| name.to_owned());
                    if place == 0 && has_arguments {
                        step.description.task_args = Some(format!("\"({number},)\""));
                        step.description.task_kwargs = Some(format!("\"{}\"", 9 - number));
                        step.description.periodic_task_name = Some(TOLD_BY_EVENTS.to_owned());
                    }
                } else if is_whole {
                    step.description.task_name = Some(name.to_owned());
                    step.description.task_args = Some(format!("[{number}]"));
                    step.description.task_kwargs = (number == 1).then(|| "{}".to_owned());
                } else {
                    step.description = Description::default();
                }
                history.push(step);
            }
        }
        if history.is_empty() {
            history.push(result("", "SUCCESS", time));
        }
        history
    })
}

/// Random results with few different times and texts, so that they often have equal ones.
fn any_result() -> impl Strategy<Value = TaskResult> {
    let status = prop::sample::select(vec![
        "SUCCESS", "FAILURE", "REVOKED", "STARTED", "RETRY", "PROGRESS", "PENDING",
    ]);
    let any_text = || prop::option::of(prop::sample::select(vec!["", "A", "b"]));
    let text = || prop::option::of(prop::sample::select(vec!["A", "a", "b", "é"]));
    let periodic = prop::option::of(prop::sample::select(vec!["", "A", "b"]));
    let flags = (any::<bool>(), any::<bool>());
    (status, 0..4i64, any_text(), any_text(), text(), text(), (text(), periodic), flags).prop_map(
        |(status, time, text, traceback, name, worker, (args, periodic), flags)| {
            let (by_arrival, is_event) = flags;
            let mut result = result("", status, time);
            result.outcome.result = text.map(str::to_owned);
            result.outcome.traceback = traceback.map(str::to_owned);
            result.description.task_name = name.map(str::to_owned);
            result.description.task_args = args.map(str::to_owned);
            result.description.worker = worker.map(str::to_owned);
            result.description.periodic_task_name = periodic.map(str::to_owned);
            result.outcome.by_arrival = by_arrival;
            result.mark_times(at(time), TimeDelta::seconds(2));
            if is_event {
                EVENT.clone_into(&mut result.outcome.content_type);
            }
            result
        },
    )
}

async fn batches_of_any_size_are_stored(database: &mut TestDatabase) {
    let mut store = database.store();
    for size in [1, 2, 49, 50, 51, 1_000, 4_321] {
        let rows: Vec<_> =
            (0..size).map(|number| result(&format!("{size}-{number:05}"), "SUCCESS", 1)).collect();
        let rows: Vec<_> = rows.iter().collect();
        store.store_tasks(&rows).await.expect("stored");
        for row in [rows[0], rows[size / 2], rows[size - 1]] {
            assert_rows_equal(database.row(&row.task_id).await.as_ref(), row, "");
        }
    }
}

async fn a_large_result_is_stored(database: &mut TestDatabase) {
    let mut store = database.store();
    let mut large = result("large", "SUCCESS", 1);
    large.outcome.result = Some(format!("\"{}\"", "x\\n".repeat(1 << 20)));
    store.store_tasks(&[&large]).await.expect("stored");
    assert_rows_equal(database.row("large").await.as_ref(), &large, "");
}

async fn tables_of_older_versions_are_written(database: &mut TestDatabase) {
    for column in ["date_started", "periodic_task_name"] {
        // SQLite cannot drop a column that has an index.
        let drop_index = match (database.kind, column) {
            (DatabaseKind::Sqlite, "periodic_task_name") => {
                "drop index django_cele_periodi_1993cf_idx;"
            }
            _ => "",
        };
        database
            .execute(&format!(
                "{drop_index} alter table django_celery_results_taskresult drop column {column}"
            ))
            .await;
        let mut store = database.store();
        let mut started = result(column, "STARTED", 1);
        started.description.periodic_task_name = Some("nightly".to_owned());
        started.description.worker = Some("w".to_owned());
        started.description.task_args = Some("[]".to_owned());
        store.store_tasks(&[&started]).await.expect("stored");
        store.store_tasks(&[&result(column, "SUCCESS", 2)]).await.expect("stored");
        assert!(store.prepare().await.expect("ready").missing_columns().contains(&column));
    }
    database
        .execute("alter table django_celery_results_taskresult add date_started varchar(9)")
        .await;
    database
        .execute("alter table django_celery_results_taskresult add periodic_task_name varchar(9)")
        .await;
    let statement = match database.kind {
        DatabaseKind::Postgres => {
            "alter table django_celery_results_taskresult \
             alter date_started type timestamptz using null"
        }
        DatabaseKind::Mysql => {
            "alter table django_celery_results_taskresult modify date_started datetime(6)"
        }
        DatabaseKind::Sqlite => "select 1",
    };
    database.execute(statement).await;
    let row = database.row("periodic_task_name").await.expect("stored");
    assert_eq!(row.outcome.status, State::Success);
    assert_eq!(row.description.worker.as_deref(), Some("w"));
}

async fn a_missing_table_is_named_with_the_fix(database: &mut TestDatabase) {
    let mut store = database.store();
    store.prepare().await.expect("ready");
    database.execute("alter table django_celery_results_taskresult rename to hidden").await;
    let error = store.store_tasks(&[&result("a", "SUCCESS", 1)]).await.expect_err("no table");
    assert_eq!(error.class, ErrorClass::Setup, "{error}");
    let error = store.prepare().await.expect_err("no table");
    assert_eq!(error.class, ErrorClass::Setup, "{error}");
    assert!(error.to_string().contains("python manage.py migrate django_celery_results"));
    database.execute("alter table hidden rename to django_celery_results_taskresult").await;
    store.store_tasks(&[&result("a", "SUCCESS", 1)]).await.expect("there again");
}

async fn a_refused_row_is_poison_and_leaves_the_connection_usable(database: &mut TestDatabase) {
    let mut store = database.store();
    let mut bad = result("bad", "SUCCESS", 1);
    match database.kind {
        DatabaseKind::Sqlite => {
            database
                .execute(
                    "create trigger refuse before insert on django_celery_results_taskresult \
                     when new.task_id = 'bad' begin select raise(abort, 'secret'); end",
                )
                .await;
        }
        _ => bad.description.worker = Some("secret".repeat(50)),
    }
    let good = result("good", "SUCCESS", 1);
    let error = store.store_tasks(&[&bad, &good]).await.expect_err("refused");
    assert_eq!(error.class, ErrorClass::Poison, "{error}");
    if database.kind != DatabaseKind::Sqlite {
        assert!(!error.to_string().contains("secret"), "{error}");
    }
    store.store_tasks(&[&good]).await.expect("stored");
    assert!(database.row("good").await.is_some() && database.row("bad").await.is_none());
}

async fn writers_side_by_side_agree(database: &mut TestDatabase) {
    let ids: Vec<_> = (0..200).map(|number| format!("{number:03}")).collect();
    let write = async |mut store: TestStore, statuses: [&str; 3]| {
        for (status, time) in statuses.into_iter().zip(1..) {
            let rows: Vec<_> = ids.iter().map(|id| result(id, status, time)).collect();
            let rows: Vec<_> = rows.iter().collect();
            loop {
                match store.store_tasks(&rows).await {
                    Ok(_) => break,
                    Err(error) => assert_eq!(error.class, ErrorClass::Conflict, "{error}"),
                }
            }
        }
    };
    tokio::join!(
        write(database.store(), ["STARTED", "RETRY", "STARTED"]),
        write(database.store(), ["STARTED", "FAILURE", "SUCCESS"]),
        write(database.store(), ["SUCCESS", "STARTED", "PROGRESS"]),
    );
    for id in &ids {
        let row = database.row(id).await.expect("stored");
        assert_eq!((row.outcome.status, row.outcome.date_done), (State::Success, at(3)));
        assert_eq!(row.date_created, at(1));
    }
}

async fn naive_times_are_in_the_projects_zone(database: &mut TestDatabase) {
    let mut store = database.store_in(Tz::Europe__Paris);
    let done = result("a", "SUCCESS", 7);
    store.store_tasks(&[&done]).await.expect("stored");
    let row = database.row("a").await.expect("stored");
    let shift = match database.kind {
        DatabaseKind::Postgres => TimeDelta::zero(),
        _ => TimeDelta::hours(1),
    };
    assert_eq!(row.outcome.date_done, at(7) + shift);
}

async fn order_does_not_matter_in_the_hour_that_occurs_twice(database: &mut TestDatabase) {
    let mut store = database.store_in(Tz::Europe__Paris);
    let catalog = store.prepare().await.expect("ready").clone();
    // 02:50 before and 02:10 after the clocks were set back, and a state in between.
    let times = ["2026-10-25T00:50:00.5Z", "2026-10-25T00:55:00.5Z", "2026-10-25T01:10:00.5Z"];
    let states = |id: &str| {
        let state = |(status, time): (&str, &str)| {
            let mut state = result(id, status, 0);
            state.outcome.date_done = time.parse().expect("a time");
            state.date_created = state.outcome.date_done;
            let mut row = Row::Task(state);
            catalog.fit(&mut row).expect("it fits");
            row
        };
        ["STARTED", "RETRY", "PROGRESS"].into_iter().zip(times).map(state).collect::<Vec<_>>()
    };
    let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    let mut stored = Vec::new();
    for (number, order) in orders.into_iter().enumerate() {
        let id = format!("{number}");
        let states = states(&id);
        for place in order {
            store.store(&states[place..=place]).await.expect("stored");
        }
        let row = database.row(&id).await.expect("stored");
        stored.push((row.outcome.status, row.outcome.date_done, row.date_created));
    }
    stored.dedup();
    assert_eq!(stored.len(), 1, "{stored:?}");
}

// Cleaning up -----------------------------------------------------------------------------------

const DAY: Duration = Duration::from_hours(24);

/// A job at the time `at(0)` for rows that are older than a day.
fn job(expiry: Expiry) -> Job {
    Job { expiry, batch: 3, dry_run: false, alone: false, now: at(0) }
}

fn expiry(others: Age) -> Expiry {
    Expiry::new(Vec::new(), Vec::new(), others)
}

/// Runs a cleaner to its end. Returns the numbers of tasks and of groups that it has reported.
async fn finish(cleaner: &mut Cleaner) -> Result<(u64, u64), StoreError> {
    let mut deleted = (0, 0);
    loop {
        let step = cleaner.step().await?;
        if step.of_groups {
            deleted.1 += step.deleted;
        } else {
            deleted.0 += step.deleted;
        }
        if step.next == NextStep::Over {
            let found = cleaner.found();
            let told =
                |of| found.iter().filter(move |(kind, _)| kind.is_group == of).map(|(_, n)| n);
            let told = (told(false).sum::<u64>(), told(true).sum::<u64>());
            // The report also contains the rows of earlier steps, and those that were only counted.
            assert!(told.0 >= deleted.0 && told.1 >= deleted.1, "{told:?} {deleted:?}");
            return Ok(told);
        }
        assert_eq!(step.next, NextStep::More);
    }
}

/// A result that is one day and this many microseconds older than `at(0)`.
fn aged(task_id: &str, status: &str, microseconds: i64) -> TaskResult {
    result(task_id, status, -86_400_000_000 - microseconds)
}

fn group_aged(group_id: &str, microseconds: i64) -> GroupResult {
    GroupResult {
        group_id: group_id.to_owned(),
        content_type: "application/json".to_owned(),
        content_encoding: "utf-8".to_owned(),
        result: None,
        date_created: at(0),
        date_done: at(-86_400_000_000 - microseconds),
    }
}

async fn exactly_the_expired_rows_are_deleted(database: &mut TestDatabase) {
    let mut store = database.store();
    // In every state, with and without a name, around the limits of one and of three days.
    let tasks = vec![
        (Pattern::new("shop.audit.*").expect("a pattern"), None),
        (Pattern::new("shop.report").expect("a pattern"), Some(3 * DAY)),
    ];
    let states = vec![("FAILURE".to_owned(), Some(3 * DAY)), ("STARTED".to_owned(), None)];
    let expiry = Expiry::new(tasks, states, Some(DAY));
    let names =
        [None, Some("shop.pay"), Some("shop.report"), Some("shop.audit.x"), Some("SHOP.REPORT")];
    let mut expected = Vec::new();
    let mut ids = Vec::new();
    for status in ["SUCCESS", "FAILURE", "STARTED", "failure", "PROGRESS"] {
        for name in names {
            for days in [1, 3] {
                for microseconds in [-1, 0, 1] {
                    let id = format!("{}: {status} {name:?} {days} {microseconds}", ids.len());
                    let mut row = aged(&id, status, (days - 1) * 86_400_000_000 + microseconds);
                    row.description.task_name = name.map(str::to_owned);
                    store.store_tasks(&[&row]).await.expect("stored");
                    let kept_days = match (name, status) {
                        (Some("shop.audit.x"), _) => 99,
                        (Some("shop.report"), _) | (_, "FAILURE") => 3,
                        (_, "STARTED") => 99,
                        _ => 1,
                    };
                    if (days, microseconds) <= (kept_days, 0) {
                        expected.push(id.clone());
                    }
                    ids.push(id);
                }
            }
        }
    }
    for (id, microseconds) in [("older", 1), ("just", 0), ("newer", -1)] {
        store.store_group(&group_aged(id, microseconds)).await.expect("stored");
    }
    let deleted = (ids.len() - expected.len()) as u64;
    // A dry run deletes nothing.
    let mut counting = database.cleaner(Job { dry_run: true, ..job(expiry.clone()) });
    assert_eq!(finish(&mut counting).await.expect("counted"), (deleted, 1));
    assert!(database.row(&ids[0]).await.is_some() && database.group("older").await.is_some());

    let mut cleaner = database.cleaner(job(expiry.clone()));
    assert!(cleaner.count().await.expect("counted") >= deleted);
    assert_eq!(finish(&mut cleaner).await.expect("deleted"), (deleted, 1));
    let mut left = Vec::new();
    for id in &ids {
        if database.row(id).await.is_some() {
            left.push(id.clone());
        }
    }
    assert_eq!(left, expected);
    for (id, is_left) in [("older", false), ("just", true), ("newer", true)] {
        assert_eq!(database.group(id).await.is_some(), is_left, "{id}");
    }
    // Nothing is left to do.
    let again = finish(&mut database.cleaner(job(expiry))).await;
    assert_eq!(again.expect("nothing to do"), (0, 0));
}

async fn many_rows_with_one_time_are_read_page_by_page(database: &mut TestDatabase) {
    let mut store = database.store();
    let rows: Vec<_> = (0..5_200)
        .map(|number| {
            aged(&number.to_string(), if number % 2 == 0 { "SUCCESS" } else { "RETRY" }, 1)
        })
        .collect();
    for rows in rows.chunks(1_000) {
        store.store_tasks(&rows.iter().collect::<Vec<_>>()).await.expect("stored");
    }
    let states = vec![("RETRY".to_owned(), None)];
    let expiry = Expiry::new(Vec::new(), states, Some(DAY));
    let mut cleaner = database.cleaner(Job { batch: 2_500, ..job(expiry) });
    assert_eq!(cleaner.count().await.expect("counted"), 5_200);
    assert_eq!(finish(&mut cleaner).await.expect("deleted"), (2_600, 0));
    assert!(database.row("5198").await.is_none() && database.row("5199").await.is_some());
}

async fn rows_that_were_updated_meanwhile_are_kept(database: &mut TestDatabase) {
    let mut store = database.store();
    for id in ["a", "b", "c"] {
        store.store_tasks(&[&aged(id, "RETRY", 1)]).await.expect("stored");
    }
    let mut cleaner = database.cleaner(job(expiry(Some(DAY))));
    let step = cleaner.step().await.expect("read");
    assert_eq!((step.read, step.deleted), (3, 0));
    // Between reading and deleting, the task ends.
    store.store_tasks(&[&result("b", "SUCCESS", 0)]).await.expect("stored");
    assert_eq!(cleaner.step().await.expect("deleted").deleted, 2);
    assert_eq!(database.row("b").await.map(|row| row.outcome.status), Some(State::Success));
    assert!(database.row("a").await.is_none());
}

async fn locked_rows_are_skipped_without_waiting(database: &mut TestDatabase) {
    let mut store = database.store();
    for id in ["a", "b", "c"] {
        store.store_tasks(&[&aged(id, "SUCCESS", 1)]).await.expect("stored");
    }
    let expiry = expiry(Some(DAY));
    let is_sqlite = matches!(database.kind, DatabaseKind::Sqlite);
    if is_sqlite {
        // SQLite has a single lock, which others wait for; it must be free between two steps.
        let mut cleaner = database.cleaner(Job { batch: 1, ..job(expiry) });
        cleaner.step().await.expect("read");
        cleaner.step().await.expect("deleted");
        database.execute("pragma busy_timeout = 0; begin immediate; commit").await;
        assert_eq!(finish(&mut cleaner).await.expect("deleted"), (3, 0));
        return;
    }
    database
        .execute(
            "begin; select * from django_celery_results_taskresult where task_id = 'b' for update",
        )
        .await;
    let mut cleaner = database.cleaner(job(expiry.clone()));
    let done = tokio::time::timeout(Duration::from_millis(900), finish(&mut cleaner)).await;
    assert_eq!(done.expect("nobody is waited for").expect("deleted"), (2, 0));
    database.execute("commit").await;
    assert_eq!(finish(&mut database.cleaner(job(expiry))).await.expect("deleted"), (1, 0));
}

async fn one_process_cleans_up_at_a_time(database: &mut TestDatabase) {
    let alone = || Job { alone: true, ..job(expiry(Some(DAY))) };
    let mut store = database.store();
    store.store_tasks(&[&aged("a", "SUCCESS", 1)]).await.expect("stored");
    let (mut first, mut second) = (database.cleaner(alone()), database.cleaner(alone()));
    assert_eq!(first.step().await.expect("read").next, NextStep::More);
    let is_server = !matches!(database.kind, DatabaseKind::Sqlite);
    let expected = if is_server { NextStep::Taken } else { NextStep::More };
    assert_eq!(second.step().await.expect("read").next, expected);
    // A cleaner without `alone` does its work all the same.
    assert!(finish(&mut database.cleaner(job(expiry(Some(DAY))))).await.is_ok());
    first.close().await;
    assert_ne!(second.step().await.expect("read").next, NextStep::Taken);
}

async fn a_cleanup_that_is_interrupted_continues(database: &mut TestDatabase) {
    let mut store = database.store();
    let rows: Vec<_> = (0..60).map(|number| aged(&number.to_string(), "SUCCESS", 1)).collect();
    store.store_tasks(&rows.iter().collect::<Vec<_>>()).await.expect("stored");
    let mut cleaner = database.cleaner(job(expiry(Some(DAY))));
    let (mut broken, mut whole) = (0, 0);
    // All steps but every fifth are cancelled at some point: after they have waited so many times.
    for number in 0_usize.. {
        let mut waits_left = if number % 5 == 4 { usize::MAX } else { number % 40 };
        let mut step = std::pin::pin!(cleaner.step());
        let stepped = std::future::poll_fn(|context| match step.as_mut().poll(context) {
            Poll::Ready(step) => Poll::Ready(Some(step)),
            Poll::Pending if waits_left == 0 => Poll::Ready(None),
            Poll::Pending => {
                waits_left -= 1;
                Poll::Pending
            }
        });
        match stepped.await.transpose().expect("no error") {
            Some(step) if step.next == NextStep::Over => break,
            Some(_) => whole += 1,
            None => broken += 1,
        }
    }
    assert!(broken > 3 && whole > 3, "{broken} {whole}");
    assert!(database.row("0").await.is_none() && database.row("59").await.is_none());
}

async fn a_cleanup_keeps_to_the_projects_zone(database: &mut TestDatabase) {
    let zone = Tz::Europe__Paris;
    let mut store = database.store_in(zone);
    for (id, microseconds) in [("older", 1), ("just", 0)] {
        store.store_tasks(&[&aged(id, "SUCCESS", microseconds)]).await.expect("stored");
    }
    let mut cleaner = database.in_zone(zone).cleaner(job(expiry(Some(DAY))));
    assert_eq!(finish(&mut cleaner).await.expect("deleted"), (1, 0));
    assert!(database.row("just").await.is_some());
}

async fn a_cleanup_without_its_tables_says_so(database: &mut TestDatabase) {
    database.execute("drop table django_celery_results_groupresult").await;
    let mut store = database.store();
    store.store_tasks(&[&aged("a", "SUCCESS", 1)]).await.expect("stored");
    let done = finish(&mut database.cleaner(job(expiry(Some(DAY))))).await;
    assert_eq!(done.expect("the tasks are there"), (1, 0));
    database.execute("drop table django_celery_results_taskresult").await;
    let error = database.cleaner(job(expiry(Some(DAY)))).step().await.expect_err("no table");
    assert_eq!(error.class, ErrorClass::Setup);
    assert!(error.to_string().contains("manage.py migrate"), "{error}");
}

async fn rows_that_others_refer_to_are_named_with_the_fix(database: &mut TestDatabase) {
    let mut store = database.store();
    store.store_tasks(&[&aged("a", "SUCCESS", 1)]).await.expect("stored");
    database
        .execute(
            "create table note (task integer, \
             foreign key (task) references django_celery_results_taskresult (id))",
        )
        .await;
    database.execute("insert into note select id from django_celery_results_taskresult").await;
    let error = finish(&mut database.cleaner(job(expiry(Some(DAY))))).await.expect_err("refused");
    assert_eq!(error.class, ErrorClass::Setup, "{error}");
    assert!(error.to_string().contains("ON DELETE CASCADE"), "{error}");
    assert!(database.row("a").await.is_some());
}

/// Runs a test with its own database, and drops the database even if the test fails.
async fn with_database(
    kind: DatabaseKind,
    migration: &str,
    test: impl AsyncFnOnce(&mut TestDatabase),
) {
    let mut database = TestDatabase::create(kind, migration).await;
    let tested = AssertUnwindSafe(test(&mut database)).catch_unwind().await;
    database.drop().await;
    if let Err(panic) = tested {
        std::panic::resume_unwind(panic);
    }
}

macro_rules! suite {
    ($module:ident, $kind:expr, $migration:literal, [$($test:ident),* $(,)?]) => {
        mod $module {
            use super::*;
            $(
                #[tokio::test]
                async fn $test() {
                    with_database($kind, include_str!($migration), super::$test).await;
                }
            )*
        }
    };
    ([$($test:ident),* $(,)?]) => {
        suite!(postgres, DatabaseKind::Postgres, "data/tables/postgres.sql", [$($test),*]);
        suite!(mysql, DatabaseKind::Mysql, "data/tables/mysql.sql", [$($test),*]);
        suite!(sqlite, DatabaseKind::Sqlite, "data/tables/sqlite.sql", [$($test),*]);
    };
}

suite!([
    every_column_reads_back,
    writing_again_changes_nothing,
    rows_are_stored_as_they_merge,
    any_order_ends_in_the_same_row,
    changes_are_reported,
    changes_before_an_error_are_reported,
    only_new_rows_take_numbers,
    a_row_that_is_deleted_meanwhile_is_inserted_again,
    the_end_of_the_numbers_is_named_with_the_fix,
    groups_are_stored_as_they_merge,
    a_missing_group_table_affects_only_groups,
    batches_of_any_size_are_stored,
    a_large_result_is_stored,
    tables_of_older_versions_are_written,
    a_missing_table_is_named_with_the_fix,
    a_refused_row_is_poison_and_leaves_the_connection_usable,
    writers_side_by_side_agree,
    naive_times_are_in_the_projects_zone,
    order_does_not_matter_in_the_hour_that_occurs_twice,
    exactly_the_expired_rows_are_deleted,
    many_rows_with_one_time_are_read_page_by_page,
    rows_that_were_updated_meanwhile_are_kept,
    locked_rows_are_skipped_without_waiting,
    one_process_cleans_up_at_a_time,
    a_cleanup_that_is_interrupted_continues,
    a_cleanup_keeps_to_the_projects_zone,
    a_cleanup_without_its_tables_says_so,
    rows_that_others_refer_to_are_named_with_the_fix,
]);

#[tokio::test]
async fn mysql_tables_of_every_collation_are_written() {
    let migration = include_str!("data/tables/mysql.sql");
    with_database(DatabaseKind::Mysql, migration, async |database| {
        // The default character set of the database differs from that of the table.
        database
            .execute(&format!("alter database {} character set latin1", database.name.clone()))
            .await;
        for collation in ["utf8mb4_unicode_520_ci", "utf8mb4_bin", "utf8mb3_general_ci"] {
            let (charset, _) = collation.split_once('_').expect("a charset stands before it");
            database
                .execute(&format!(
                    "alter table django_celery_results_taskresult \
                     convert to character set {charset} collate {collation}"
                ))
                .await;
            let mut store = database.store();
            let mut expected = result(collation, "RETRY", 1);
            expected.description.worker = Some("wörker".to_owned());
            expected.outcome.traceback = Some("snow ☃".to_owned());
            expected.outcome.result = Some("a ".to_owned());
            store.store_tasks(&[&expected]).await.expect("stored");
            // Texts that are equal in some collations but greater when they are compared by bytes.
            for text in ["a  ", "á", "b"] {
                let mut newer = result(collation, "RETRY", 1);
                newer.outcome.result = Some(text.to_owned());
                newer.outcome.traceback = Some("snow ☃".to_owned());
                store.store_tasks(&[&newer]).await.expect("stored");
                expected.merge(newer, Law::default());
                let row = database.row(collation).await;
                assert_rows_equal(row.as_ref(), &expected, text);
            }
            // Whether a character can be stored is known before the row is sent.
            let catalog = store.prepare().await.expect("ready").clone();
            let mut emoji = result("emoji", "SUCCESS", 1);
            emoji.outcome.result = Some("\u{1F96C}".to_owned());
            let mut emoji = Row::Task(emoji);
            let is_storable = catalog.fit(&mut emoji).is_ok();
            assert_eq!(is_storable, charset == "utf8mb4");
            assert_eq!(store.store(&[emoji]).await.is_ok(), is_storable);
            database
                .execute("delete from django_celery_results_taskresult where task_id = 'emoji'")
                .await;
        }
    })
    .await;
}

/// Ids that the column's collation takes for the same share one row.
#[tokio::test]
async fn mysql_ids_that_differ_only_in_case_share_a_row() {
    let migration = include_str!("data/tables/mysql.sql");
    with_database(DatabaseKind::Mysql, migration, async |database| {
        database
            .execute(
                "alter table django_celery_results_taskresult \
                 convert to character set utf8mb4 collate utf8mb4_unicode_ci",
            )
            .await;
        let mut store = database.store();
        store.store_tasks(&[&result("a", "STARTED", 1)]).await.expect("stored");
        let (upper, other) = (result("A", "SUCCESS", 2), result("b", "SUCCESS", 2));
        store.store_tasks(&[&upper, &other]).await.expect("stored");
        let row = database.row("a").await.expect("stored");
        assert_eq!((row.outcome.status, row.outcome.date_done), (State::Success, at(2)));
        // Two new ones in one batch are refused together and stored one by one.
        let rows = ["C", "c", "d", "e", "f", "g", "h", "i"].map(|id| result(id, "STARTED", 1));
        let rows: Vec<_> = rows.iter().collect();
        let error = store.store_tasks(&rows).await.expect_err("one statement");
        assert_eq!(error.class, ErrorClass::Poison, "{error}");
        store.store_tasks(&rows[1..]).await.expect("stored");
        store.store_tasks(&[&result("C", "SUCCESS", 2)]).await.expect("stored");
        let row = database.row("c").await.expect("stored");
        assert_eq!(row.outcome.status, State::Success);
    })
    .await;
}

#[tokio::test]
async fn mysql_refuses_a_row_that_is_larger_than_a_packet() {
    let migration = include_str!("data/tables/mysql.sql");
    with_database(DatabaseKind::Mysql, migration, async |database| {
        let mut store = database.store();
        let mut large = result("large", "SUCCESS", 1);
        let AnyConnection::Mysql(connection) = &mut database.connection else { unreachable!() };
        let limit: u64 = sqlx::query_scalar("select cast(@@max_allowed_packet as unsigned)")
            .fetch_one(connection)
            .await
            .expect("good SQL");
        large.outcome.result = Some("x".repeat(usize::try_from(limit).expect("at most 1 GiB")));
        let error = store.store_tasks(&[&large]).await.expect_err("larger than any packet");
        assert_eq!(error.class, ErrorClass::Poison, "{error}");
        assert!(error.to_string().contains("max_allowed_packet"), "{error}");
        store.store_tasks(&[&result("small", "SUCCESS", 1)]).await.expect("stored");
        assert!(database.row("small").await.is_some());
    })
    .await;
}

#[tokio::test]
async fn a_server_that_is_not_there_is_an_outage() {
    for url in ["postgres://nobody@127.0.0.1:9/none", "mysql://nobody@127.0.0.1:9/none"] {
        let error = at_url(url, Tz::UTC).store().prepare().await.expect_err("nobody listens");
        assert_eq!(error.class, ErrorClass::Outage, "{error}");
    }
}

#[tokio::test]
async fn a_database_that_is_not_there_must_be_set_up() {
    let postgres = server("CELERIAC_TEST_POSTGRES", "postgres://postgres@127.0.0.1:5432/postgres");
    let mysql = server("CELERIAC_TEST_MYSQL", "mysql://root@127.0.0.1:3306/mysql");
    let file = format!("sqlite:///{}/celeriac_absent", std::env::temp_dir().display());
    for server in [postgres, mysql, file] {
        let url = format!("{server}/celeriac_absent");
        let error = at_url(&url, Tz::UTC).store().prepare().await.expect_err("absent");
        assert_eq!(error.class, ErrorClass::Setup, "{error}");
        if url.starts_with("sqlite") {
            assert!(error.to_string().contains("python manage.py migrate"), "{error}");
        }
    }
}
