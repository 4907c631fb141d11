//! Statements with a list of values for several rows, for databases that take no arrays.
//!
//! A statement is prepared for each number of rows, so there are statements for a few numbers only,
//! and a batch is written by several of them.

use std::collections::HashMap;

use async_trait::async_trait;
use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};

use super::columns::Table;
use super::session::{Session, Stored};
use super::value::Param;

/// The numbers of rows for which there are statements.
const SIZES: [usize; 4] = [512, 64, 8, 1];

/// The most bytes that several rows of one statement may have. No version of MySQL or MariaDB has
/// had a default of less than 1 MiB for `max_allowed_packet`.
pub(super) const MAX_BYTES: usize = 1_000_000;

/// A connection whose statements have lists of values.
#[async_trait]
pub(super) trait ValueSession: Session {
    /// The statement for this number of rows, which is then counted as sent.
    fn statement(&mut self, operation: Operation, table: &Table, rows: usize) -> SqlStr;

    /// Refuses rows that are too large for one statement.
    async fn check_size(&mut self, bytes: usize) -> Result<(), sqlx::Error>;
}

/// [`Session::lock`] with lists of values.
pub(super) async fn lock_rows(
    session: &mut impl ValueSession,
    table: &Table,
    keys: &[&str],
) -> Result<Vec<Stored>, sqlx::Error> {
    let mut stored = Vec::new();
    for keys in keys.chunks(SIZES[0]) {
        let keys = padded(keys);
        let sql = session.statement(Operation::Lock, table, keys.len());
        let params = keys.into_iter().map(|key| Param::Text(Some(key))).collect();
        let records = session.fetch(sql, params).await?;
        stored.extend(records.into_iter().map(|record| Stored::read(table, record)));
    }
    Ok(stored)
}

/// [`Session::update`] with lists of values.
pub(super) async fn update_rows(
    session: &mut impl ValueSession,
    table: &Table,
    rows: &[&Stored],
) -> Result<(), sqlx::Error> {
    for part in parts(rows, |stored| stored.row.size_bytes()) {
        session.check_size(part.iter().map(|stored| stored.row.size_bytes()).sum()).await?;
        let sql = session.statement(Operation::Update, table, part.len());
        let params = part.iter().flat_map(|stored| stored.values(table)).collect();
        session.fetch(sql, params).await?;
    }
    Ok(())
}

/// What a statement does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Operation {
    Insert,
    /// Inserts one row unless it is there. Its last parameter is the key once more.
    InsertIfAbsent,
    Lock,
    Update,
}

/// The words that differ between the databases.
#[derive(Debug)]
pub(super) struct Words {
    /// Follows the values of a row that exists, before the assignments.
    pub(super) on_conflict: &'static str,
    /// The value of a column that was given for a row, around the column's name.
    pub(super) given: [&'static str; 2],
    /// Locks the rows of a query.
    pub(super) for_update: &'static str,
}

/// The statements of a connection that have been needed so far.
#[derive(Debug, Default)]
pub(super) struct Statements {
    kept: HashMap<(Operation, &'static str, usize), SqlStr>,
}

impl Statements {
    /// The statement for this number of rows, one of [`SIZES`]. `index` names the index of a query.
    pub(super) fn get(
        &mut self,
        operation: Operation,
        table: &Table,
        rows: usize,
        words: &Words,
        index: &str,
    ) -> SqlStr {
        let make = || {
            let sql = match operation {
                Operation::Insert => insert(table, rows),
                Operation::InsertIfAbsent => insert_if_absent(table),
                Operation::Lock => lock(table, rows, words, index),
                Operation::Update => update(table, rows, words),
            };
            AssertSqlSafe(std::sync::Arc::<str>::from(sql)).into_sql_str()
        };
        self.kept.entry((operation, table.name, rows)).or_insert_with(make).clone()
    }
}

fn insert(table: &Table, rows: usize) -> String {
    let (name, names) = (table.name, table.names());
    let values = placeholders(table.columns.len(), rows);
    format!("insert into {name} ({names})\nvalues {values}")
}

fn insert_if_absent(table: &Table) -> String {
    let (name, names, key) = (table.name, table.names(), table.key());
    let values = vec!["?"; table.columns.len()].join(", ");
    format!(
        "insert into {name} ({names})\nselect {values} from dual\n\
         where not exists (select 1 from {name} where {key} = ?)"
    )
}

/// The rows that are updated exist and are locked, so this never inserts. Their ids are given, so no
/// number is taken for a new one.
fn update(table: &Table, rows: usize, words: &Words) -> String {
    let (name, names) = (table.name, table.names());
    let values = placeholders(table.columns.len() + 1, rows);
    let [before, after] = words.given;
    let assignments: Vec<_> = table.columns[1..]
        .iter()
        .map(|(column, _)| format!("{column} = {before}{column}{after}"))
        .collect();
    let (on_conflict, assignments) = (words.on_conflict, assignments.join(",\n    "));
    format!("insert into {name} (id, {names})\nvalues {values}\n{on_conflict}\n    {assignments}")
}

fn lock(table: &Table, rows: usize, words: &Words, index: &str) -> String {
    let (name, names, key) = (table.name, table.names(), table.key());
    let (keys, for_update) = (placeholders(rows, 1), words.for_update);
    format!(
        "select id, {names}\nfrom {name} {index}\nwhere {key} in {keys}\norder by {key} {for_update}"
    )
}

/// The placeholders for the values of rows.
fn placeholders(columns: usize, rows: usize) -> String {
    let row = format!("({})", vec!["?"; columns].join(", "));
    vec![row.as_str(); rows].join(", ")
}

/// Splits rows into parts for which there are statements.
pub(super) fn parts<T>(rows: &[T], bytes: impl Fn(&T) -> usize) -> Vec<&[T]> {
    let mut parts = Vec::new();
    let mut rest = rows;
    while !rest.is_empty() {
        let fits = |&size: &usize| {
            size == 1
                || (size <= rest.len()
                    && rest[..size].iter().map(&bytes).sum::<usize>() < MAX_BYTES)
        };
        let size = SIZES.into_iter().find(fits).unwrap_or(1);
        let (part, after) = rest.split_at(size);
        parts.push(part);
        rest = after;
    }
    parts
}

/// Repeats the last key until there is a statement for the number of keys.
pub(super) fn padded<'key>(keys: &[&'key str]) -> Vec<&'key str> {
    let mut keys = keys.to_vec();
    if let Some(&last) = keys.last()
        && let Some(size) = SIZES.into_iter().rev().find(|&size| size >= keys.len())
    {
        keys.resize(size, last);
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_split_into_parts_with_a_statement() {
        let sizes = |rows: usize, bytes: usize| -> Vec<usize> {
            let rows = vec![bytes; rows];
            parts(&rows, |&bytes| bytes).into_iter().map(<[usize]>::len).collect()
        };
        assert_eq!(sizes(1, 10), [1]);
        assert_eq!(sizes(74, 10), [64, 8, 1, 1]);
        assert_eq!(sizes(600, 10), [512, 64, 8, 8, 8]);
        assert_eq!(sizes(10, MAX_BYTES / 10), [8, 1, 1]);
        assert_eq!(sizes(2, 2 * MAX_BYTES), [1, 1], "a large row is sent alone");
        assert!(sizes(0, 10).is_empty());
    }

    #[test]
    fn keys_are_repeated_up_to_a_size() {
        assert_eq!(padded(&["a"]), ["a"]);
        assert_eq!(padded(&["a", "b"]), ["a", "b", "b", "b", "b", "b", "b", "b"]);
        assert_eq!(padded(&[]), [""; 0]);
    }
}
