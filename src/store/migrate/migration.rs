//! The migrations of django-celery-results 2.6, statement by statement, as Django 5.2 runs them.
//!
//! The files are in `migrations/`, one for each of Django's under the same name. What Django makes
//! anew several times within one migration, as SQLite asks for, is made anew once. Django 3.2 to
//! 6.0 make the same, but for the numbers of `id` on PostgreSQL, which up to 4.0 are `serial`.

/// One migration.
pub(in crate::store) struct Migration {
    /// Its name, as `django_migrations` has it.
    pub(super) name: &'static str,
    sql: &'static str,
}

/// The migrations of one database, in order.
pub(in crate::store) type Migrations = &'static [Migration];

/// Stands in a statement for the length of ids, which is Django's setting
/// `DJANGO_CELERY_RESULTS_TASK_ID_MAX_LENGTH`.
pub(super) const LENGTH: &str = "{length}";

/// The files of one database.
macro_rules! files {
    ($database:literal, [$($name:literal),*]) => {
        &[$(Migration {
            name: $name,
            sql: include_str!(concat!("../../../migrations/", $database, "/", $name, ".sql")),
        }),*]
    };
}

/// The same names for every database.
macro_rules! migrations {
    ($names:tt) => {
        pub(super) const POSTGRES: Migrations = files!("postgres", $names);
        pub(super) const MYSQL: Migrations = files!("mysql", $names);
        pub(super) const SQLITE: Migrations = files!("sqlite", $names);
    };
}

migrations!([
    "0001_initial",
    "0002_add_task_name_args_kwargs",
    "0003_auto_20181106_1101",
    "0004_auto_20190516_0412",
    "0005_taskresult_worker",
    "0006_taskresult_date_created",
    "0007_remove_taskresult_hidden",
    "0008_chordcounter",
    "0009_groupresult",
    "0010_remove_duplicate_indices",
    "0011_taskresult_periodic_task_name",
    "0012_taskresult_date_started",
    "0013_taskresult_django_cele_periodi_1993cf_idx",
    "0014_alter_taskresult_status"
]);

impl Migration {
    /// Its statements, each in one line as Django writes it: SQLite keeps the text of `create table`.
    pub(super) fn statements(&self) -> Vec<String> {
        let lines = self.sql.lines().filter(|line| !line.starts_with("--"));
        let code: Vec<_> = lines.flat_map(str::split_whitespace).collect();
        let code = code.join(" ").replace("( ", "(").replace(" )", ")");
        let statements = code.split(';').map(str::trim).filter(|statement| !statement.is_empty());
        statements.map(str::to_owned).collect()
    }
}
