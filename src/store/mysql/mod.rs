//! MySQL and MariaDB. The rows of a statement are lists of values.

mod error;
mod inspect;
mod session;
mod sql;

use std::str::FromStr;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use sqlx::error::DatabaseError;
use sqlx::mysql::{MySqlConnectOptions, MySqlDatabaseError, MySqlSslMode};
use sqlx::{ConnectOptions, Executor, SqlStr};

use self::session::MysqlSession;
use super::dialect::{self, Dialect, Place, Purpose, Sql};
use super::session::Session;
use super::value::Param;
use super::{Column, ErrorClass, StoreError};
use crate::config::DatabaseUrl;
use crate::diagnosis::finding::Finding;

/// A database on a server.
#[derive(Debug)]
pub(super) struct Mysql {
    options: MySqlConnectOptions,
    /// The same options without TLS, if a connection without TLS is tried first.
    plain: Option<MySqlConnectOptions>,
    time_zone: Tz,
    place: Place,
}

impl Mysql {
    /// `time_zone` is the one in which Django stores times: UTC with `USE_TZ`, and `TIME_ZONE`
    /// otherwise.
    ///
    /// # Errors
    ///
    /// When a parameter of the URL has an invalid value.
    pub(super) fn new(url: &DatabaseUrl, time_zone: Tz) -> Result<Self, StoreError> {
        let mut options = MySqlConnectOptions::from_str(url.expose())
            .map_err(|error| StoreError::from_sqlx(&error, error::classify))?
            .disable_statement_logging();
        if let Some(host) = url.ipv6_host() {
            options = options.host(host);
        }
        let plain = url.prefers_plain().then(|| options.clone().ssl_mode(MySqlSslMode::Disabled));
        Ok(Self { options, plain, time_zone, place: Place::new(url) })
    }
}

#[async_trait]
impl Dialect for Mysql {
    async fn connect(&self, _purpose: Purpose) -> Result<Option<Box<dyn Session>>, sqlx::Error> {
        let mut connection = dialect::connect(self.plain.as_ref(), &self.options).await?;
        // Without autocommit, messages would be acknowledged whose rows are never committed.
        // Without strict mode, a value that is too long is silently cut. Django sets both as well.
        // The time limit releases the locks of a client that no longer answers. It is longer than
        // the interval at which an idle lane uses its connection.
        let session = "set autocommit = 1, sql_mode = concat(@@sql_mode, ',STRICT_ALL_TABLES'), \
                       wait_timeout = 60";
        connection.execute(session).await?;
        Ok(Some(Box::new(MysqlSession::new(connection, self.time_zone))))
    }

    async fn columns(
        &self,
        session: &mut dyn Session,
        table: &str,
    ) -> Result<Vec<Column>, sqlx::Error> {
        const COLUMNS: SqlStr = SqlStr::from_static(
            "select convert(column_name using utf8mb4),
                case when data_type = 'varchar'
                    then cast(character_maximum_length as signed) end,
                cast(is_nullable = 'NO' and column_default is null
                    and extra not like '%auto_increment%' as signed),
                cast(character_set_name in ('utf8', 'utf8mb3') as signed)
            from information_schema.columns
            where table_schema = database() and table_name = ?
            order by ordinal_position",
        );
        let records = session.fetch(COLUMNS, vec![Param::Text(Some(table))]).await?;
        Ok(records.into_iter().map(Column::from_record).collect())
    }

    fn sql(&self) -> &'static Sql {
        &sql::SQL
    }

    fn zone(&self) -> Tz {
        self.time_zone
    }

    fn written(&self, time: DateTime<Utc>) -> String {
        time.with_timezone(&self.time_zone).format("%Y-%m-%d %H:%M:%S%.6f").to_string()
    }

    fn classify(&self, error: &dyn DatabaseError) -> ErrorClass {
        error::classify(error)
    }

    fn advice(&self, error: &dyn DatabaseError) -> Option<&'static str> {
        error::advice(error)
    }

    fn missing_right(&self, error: &dyn DatabaseError, statement: &str) -> Option<&'static str> {
        let number = error.try_downcast_ref::<MySqlDatabaseError>()?.number();
        matches!(number, 1044 | 1142 | 1227).then_some(match statement.split_once(' ') {
            Some(("SELECT", _)) => "the right SELECT on its table",
            Some(("INSERT", _)) => "the right INSERT on its table",
            _ => "the rights CREATE, DROP, ALTER, INDEX and INSERT on the database",
        })
    }

    async fn version(
        &self,
        session: &mut dyn Session,
    ) -> Result<(String, Option<String>), sqlx::Error> {
        inspect::version(session).await
    }

    async fn particulars(&self, session: &mut dyn Session) -> Result<Vec<Finding>, sqlx::Error> {
        inspect::particulars(session, self.time_zone).await
    }

    fn place(&self) -> &Place {
        &self.place
    }
}
