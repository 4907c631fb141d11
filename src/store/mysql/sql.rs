//! The SQL of MySQL and MariaDB.

use crate::store::dialect::Sql;

pub(super) const SQL: Sql = Sql {
    allows_nul: true,
    inserts_first: 1,
    // READ COMMITTED has no gap locks, which would block the inserts of others.
    begin: &["set transaction isolation level read committed", "start transaction"],
    now: Some("select date_format(utc_timestamp(6), '%Y-%m-%dT%H:%i:%s.%fZ')"),
    numbers: Some(
        "select cast(greatest(
                (select coalesce(max(id), 0) from django_celery_results_taskresult),
                coalesce(auto_increment, 1) - 1
            ) as signed),
            cast(case column_type
                when 'int' then 2147483647
                when 'int(11)' then 2147483647
                when 'int unsigned' then 4294967295
                when 'int(10) unsigned' then 4294967295
                else 9223372036854775807
            end as signed)
        from information_schema.tables join information_schema.columns
            using (table_schema, table_name)
        where table_schema = database()
            and table_name = 'django_celery_results_taskresult' and column_name = 'id'",
    ),
    can_undo: Some(
        "select cast(transactions = 'YES' as signed)
        from information_schema.tables join information_schema.engines using (engine)
        where table_schema = database() and table_name = 'django_celery_results_taskresult'",
    ),
    // The time limits for a statement and for an idle transaction exist only on MariaDB.
    cleanup_session: &[
        "set session transaction isolation level read committed",
        "set innodb_lock_wait_timeout = 1, lock_wait_timeout = 1
            /*M!100300 , idle_transaction_timeout = 10, max_statement_time = 60 */",
    ],
    // Named locks belong to the whole server, so the name contains a hash of the database's name.
    // It may have at most 64 characters.
    try_cleanup_lock: Some(
        "select cast(coalesce(get_lock(
            concat('celeriac.cleanup.', left(sha2(database(), 256), 32)), 0), 0) as signed)",
    ),
    after_time: "?",
    after_id: "?",
    before: "?",
    insert_new: ["insert ignore into", ""],
    numbers_parameters: false,
    for_update: "for update",
    skip_locked: "for update skip locked",
    locks_by_key: true,
    results_tables: include_str!("../../../migrations/django_celery_results/mysql.sql"),
    chord_tables: include_str!("../../../migrations/celeriac/mysql.sql"),
    records_table: "CREATE TABLE `django_migrations` (`id` bigint AUTO_INCREMENT NOT NULL PRIMARY KEY, `app` varchar(255) NOT NULL, `name` varchar(255) NOT NULL, `applied` datetime(6) NOT NULL)",
    // Every statement that changes a table commits.
    migration: None,
    migration_lock: Some(
        "SELECT cast(coalesce(get_lock(
            concat('celeriac.', left(sha2(database(), 256), 32)), 60), 0) as signed)",
    ),
};
