//! The SQL of SQLite.

use crate::store::dialect::Sql;

pub(super) const SQL: Sql = Sql {
    allows_nul: true,
    inserts_first: 0,
    begin: &["begin immediate"],
    now: None,
    numbers: None,
    can_undo: None,
    cleanup_session: &[],
    try_cleanup_lock: None,
    after_time: "?1",
    after_id: "?2",
    before: "?3",
    insert_new: ["insert or ignore into", ""],
    numbers_parameters: false,
    // There is only one writer at a time, so rows need not be locked.
    for_update: "",
    skip_locked: "",
    locks_by_key: false,
    results_tables: include_str!("../../../migrations/django_celery_results/sqlite.sql"),
    chord_tables: include_str!("../../../migrations/celeriac/sqlite.sql"),
    records_table: r#"CREATE TABLE "django_migrations" ("id" integer NOT NULL PRIMARY KEY AUTOINCREMENT, "app" varchar(255) NOT NULL, "name" varchar(255) NOT NULL, "applied" datetime NOT NULL)"#,
    migration: Some(["BEGIN IMMEDIATE", "COMMIT"]),
    // The transaction is the lock.
    migration_lock: None,
};
