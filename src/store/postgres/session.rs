//! A connection to PostgreSQL.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{
    AssertSqlSafe, Column as _, Connection, Executor, Row as _, SqlSafeStr, SqlStr, TypeInfo,
};

use crate::row::Row;
use crate::store::columns::{self, Kind, Table};
use crate::store::session::{Inserted, Session, Stored};
use crate::store::value::{Param, Record, Value};

/// A connection, with the statements for each table.
pub(super) struct PostgresSession {
    connection: PgConnection,
    tables: HashMap<&'static str, Statements>,
    statements: u64,
}

struct Statements {
    insert: SqlStr,
    lock: SqlStr,
    update: SqlStr,
}

impl PostgresSession {
    pub(super) fn new(connection: PgConnection) -> Self {
        Self { connection, tables: HashMap::new(), statements: 0 }
    }

    fn statements(&mut self, table: &Table) -> &Statements {
        self.statements += 1;
        self.tables.entry(table.name).or_insert_with(|| Statements {
            insert: shared(insert(table)),
            lock: shared(lock(table)),
            update: shared(update(table)),
        })
    }
}

fn shared(sql: String) -> SqlStr {
    AssertSqlSafe(Arc::<str>::from(sql)).into_sql_str()
}

/// The rows of a table as arrays, from the parameter with the number `first` on.
fn arrays(table: &Table, first: usize) -> String {
    let array = |(place, &(_, kind)): (usize, &(&str, Kind))| {
        let kind = match kind {
            Kind::Text => "text",
            Kind::Time => "timestamptz",
            Kind::Integer => "bigint",
        };
        format!("${}::{kind}[]", first + place)
    };
    table.columns.iter().enumerate().map(array).collect::<Vec<_>>().join(", ")
}

fn insert(table: &Table) -> String {
    let (name, key, names, arrays) = (table.name, table.key(), table.names(), arrays(table, 1));
    format!(
        "insert into {name} ({names})
select {names}
from unnest({arrays}) as new ({names})
where not exists (select from {name} as old where old.{key} = new.{key})
on conflict ({key}) do nothing
returning {key}::text"
    )
}

fn lock(table: &Table) -> String {
    let (name, key) = (table.name, table.key());
    let column = |&(name, kind): &(&str, Kind)| match kind {
        Kind::Text => format!("{name}::text"),
        Kind::Time => name.to_owned(),
        Kind::Integer => format!("{name}::bigint"),
    };
    let columns = table.columns.iter().map(column).collect::<Vec<_>>().join(", ");
    format!(
        "select id::bigint, {columns}
from {name}
where {key} = any($1::text[])
order by {key}
for update"
    )
}

fn update(table: &Table) -> String {
    let (name, names, arrays) = (table.name, table.names(), arrays(table, 2));
    let assignments: Vec<_> =
        table.columns[1..].iter().map(|(column, _)| format!("{column} = new.{column}")).collect();
    let assignments = assignments.join(",\n    ");
    format!(
        "update {name} as old set
    {assignments}
from unnest($1::bigint[], {arrays}) as new (id, {names})
where old.id = new.id"
    )
}

/// The values of rows, one array for each column.
fn values<'row>(table: &Table, rows: &[&'row Row]) -> Vec<Param<'row>> {
    let values = |&(name, kind): &(&'static str, Kind)| match kind {
        Kind::Text => Param::Texts(rows.iter().map(|row| columns::text(row, name)).collect()),
        Kind::Time => Param::Times(rows.iter().map(|row| columns::time(row, name)).collect()),
        Kind::Integer => {
            Param::Integers(rows.iter().map(|row| columns::integer(row, name)).collect())
        }
    };
    table.columns.iter().map(values).collect()
}

#[async_trait]
impl Session for PostgresSession {
    async fn execute(&mut self, sql: &str) -> Result<(), sqlx::Error> {
        self.connection.execute(AssertSqlSafe(sql)).await.map(drop)
    }

    async fn fetch(
        &mut self,
        sql: SqlStr,
        params: Vec<Param<'_>>,
    ) -> Result<Vec<Record>, sqlx::Error> {
        let mut query = sqlx::query(sql).persistent(!params.is_empty());
        for param in params {
            query = match param {
                Param::Text(text) => query.bind(text),
                Param::Time(time) => query.bind(time),
                Param::Integer(number) => query.bind(number),
                Param::Texts(texts) => query.bind(texts),
                Param::Times(times) => query.bind(times),
                Param::Integers(numbers) => query.bind(numbers),
            };
        }
        query.fetch_all(&mut self.connection).await?.iter().map(record).collect()
    }

    async fn insert(&mut self, table: &Table, rows: &[&Row]) -> Result<Inserted, sqlx::Error> {
        let sql = self.statements(table).insert.clone();
        let inserted = self.fetch(sql, values(table, rows)).await?;
        if inserted.len() == rows.len() {
            return Ok(Inserted::All);
        }
        let keys = inserted.into_iter().filter_map(|mut record| record.text());
        Ok(Inserted::Only(keys.collect()))
    }

    async fn lock(&mut self, table: &Table, keys: &[&str]) -> Result<Vec<Stored>, sqlx::Error> {
        let sql = self.statements(table).lock.clone();
        let keys = Param::Texts(keys.iter().copied().map(Some).collect());
        let records = self.fetch(sql, vec![keys]).await?;
        Ok(records.into_iter().map(|record| Stored::read(table, record)).collect())
    }

    async fn update(&mut self, table: &Table, rows: &[&Stored]) -> Result<(), sqlx::Error> {
        let sql = self.statements(table).update.clone();
        let ids = Param::Integers(rows.iter().map(|stored| Some(stored.id)).collect());
        let rows: Vec<_> = rows.iter().map(|stored| &stored.row).collect();
        let params = [vec![ids], values(table, &rows)].concat();
        self.fetch(sql, params).await.map(drop)
    }

    fn take_statements(&mut self) -> u64 {
        std::mem::take(&mut self.statements)
    }

    async fn ping(&mut self) -> Result<(), sqlx::Error> {
        self.connection.ping().await
    }

    async fn close(self: Box<Self>) {
        let _ = self.connection.close().await;
    }
}

fn record(row: &PgRow) -> Result<Record, sqlx::Error> {
    let value = |(place, column): (usize, &sqlx::postgres::PgColumn)| {
        let value = match column.type_info().name() {
            "TIMESTAMPTZ" => row.try_get::<Option<DateTime<Utc>>, _>(place)?.map(Value::Time),
            "BOOL" => row.try_get::<Option<bool>, _>(place)?.map(|is| Value::Integer(is.into())),
            "INT4" => row.try_get::<Option<i32>, _>(place)?.map(|n| Value::Integer(n.into())),
            "INT8" => row.try_get::<Option<i64>, _>(place)?.map(Value::Integer),
            _ => row.try_get::<Option<String>, _>(place)?.map(Value::Text),
        };
        Ok(value.unwrap_or(Value::Null))
    };
    let values = row.columns().iter().enumerate().map(value).collect::<Result<_, sqlx::Error>>()?;
    Ok(Record::new(values))
}
