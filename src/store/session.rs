//! One connection to a database, whatever the database is.

use async_trait::async_trait;
use sqlx::SqlStr;

use super::columns::Table;
use super::value::{Param, Record};
use crate::row::Row;

/// A connection to a database.
#[async_trait]
pub(super) trait Session: Send {
    /// Runs a statement that has no parameters and whose result is not needed.
    async fn execute(&mut self, sql: &str) -> Result<(), sqlx::Error>;

    /// Runs a statement and returns its rows. The connection keeps the prepared statement if it has
    /// parameters.
    async fn fetch(
        &mut self,
        sql: SqlStr,
        params: Vec<Param<'_>>,
    ) -> Result<Vec<Record>, sqlx::Error>;

    /// Inserts rows that are not in the table, and returns the keys of those that it inserted. Where
    /// the database does not allow several statements in one step, the caller's transaction is
    /// needed to make this atomic.
    async fn insert(&mut self, table: &Table, rows: &[&Row]) -> Result<Inserted, sqlx::Error>;

    /// Locks and reads the rows with these keys, in the order of the keys.
    async fn lock(&mut self, table: &Table, keys: &[&str]) -> Result<Vec<Stored>, sqlx::Error>;

    /// Overwrites rows that this transaction has locked.
    async fn update(&mut self, table: &Table, rows: &[&Stored]) -> Result<(), sqlx::Error>;

    /// The number of statements that [`Session::insert`], [`Session::lock`] and [`Session::update`]
    /// have sent since this was last asked.
    fn take_statements(&mut self) -> u64;

    /// Waits for the answer of the server to a message that is not a statement.
    async fn ping(&mut self) -> Result<(), sqlx::Error>;

    /// Closes the connection properly, so that the server does not log a lost one.
    async fn close(self: Box<Self>);
}

/// A row of a table with its primary key.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) id: i64,
    pub(super) row: Row,
}

impl Stored {
    /// Reads a row from a record with its primary key and its columns in the order of the table.
    pub(super) fn read(table: &Table, mut record: Record) -> Self {
        Self { id: record.integer().unwrap_or_default(), row: table.read(&mut record) }
    }

    /// The primary key and the columns in the order of the table.
    pub(super) fn values<'row>(&'row self, table: &Table) -> Vec<Param<'row>> {
        [vec![Param::Integer(Some(self.id))], table.values(&self.row)].concat()
    }
}

/// Which rows were inserted.
#[derive(Debug)]
pub(super) enum Inserted {
    All,
    Only(Vec<String>),
}
