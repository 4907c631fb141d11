//! What tables look like, by the database's catalog or by the statements that make them.

use std::collections::{BTreeMap, BTreeSet};

use super::migration::LENGTH;
use crate::store::{GROUPS, TASKS};

/// The table that django-celery-results counts the members of chords in.
const CHORDS: &str = "django_celery_results_chordcounter";

/// The tables of django-celery-results.
pub(super) const TABLES: [&str; 3] = [TASKS, GROUPS, CHORDS];

/// The words that end a column's type in its definition.
const AFTER_KIND: [&str; 8] =
    ["NULL", "NOT", "UNIQUE", "PRIMARY", "DEFAULT", "AUTO_INCREMENT", "GENERATED", "CHECK"];

/// Tables by their names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Shape(BTreeMap<String, Table>);

/// A table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Table {
    /// The columns by their names.
    pub(super) columns: BTreeMap<String, Column>,
    /// The columns that are unique, each for itself.
    pub(super) unique: BTreeSet<String>,
    /// The columns of the other indexes, by the indexes' names.
    pub(super) indexes: BTreeMap<String, Vec<String>>,
}

/// A column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Column {
    /// Its type as Django writes it, in lower case.
    pub(super) kind: String,
    /// Whether it takes NULL.
    pub(super) is_nullable: bool,
    /// What the database fills in.
    pub(super) filler: Filler,
}

/// What the database fills in where an insert does not name a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filler {
    /// Nothing.
    Nothing,
    /// Some default.
    Default,
    /// The next number, by whichever means the database has.
    Number,
}

/// What a statement does to the tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Makes a table.
    CreateTable(String, Table),
    /// Removes a table with its indexes.
    DropTable(String),
    /// Gives a table another name.
    RenameTable(String, String),
    /// Adds a column to a table.
    AddColumn(String, String, Column),
    /// Removes a column of a table, and the indexes on it.
    DropColumn(String, String),
    /// Removes the default of a column of a table.
    DropDefault(String, String),
    /// Makes an index of this name, on a table and its column.
    CreateIndex(String, String, String),
    /// Removes the index of this name.
    DropIndex(String),
    /// Changes rows and not their table.
    Rows,
}

impl Effect {
    /// Reads a statement of `migrations/`, which are all of these forms.
    pub(super) fn of(statement: &str) -> Self {
        let spaced = statement.replace('(', " ( ").replace(')', " ) ").replace(',', " , ");
        let words: Vec<_> = spaced.split_whitespace().collect();
        match words.as_slice() {
            ["CREATE", "TABLE", table, "(", columns @ .., ")"] => {
                Self::CreateTable(unquoted(table), Table::of(columns))
            }
            ["DROP", "TABLE", table] => Self::DropTable(unquoted(table)),
            ["ALTER", "TABLE", table, "RENAME", "TO", name] => {
                Self::RenameTable(unquoted(table), unquoted(name))
            }
            ["ALTER", "TABLE", table, "ADD", "COLUMN", name, column @ ..] => {
                Self::AddColumn(unquoted(table), unquoted(name), Column::of(column))
            }
            ["ALTER", "TABLE", table, "DROP", "COLUMN", column] => {
                Self::DropColumn(unquoted(table), unquoted(column))
            }
            ["ALTER", "TABLE", table, "ALTER", "COLUMN", column, "DROP", "DEFAULT"] => {
                Self::DropDefault(unquoted(table), unquoted(column))
            }
            ["CREATE", "INDEX", index, "ON", table, "(", column, .., ")"] => {
                Self::CreateIndex(unquoted(index), unquoted(table), unquoted(column))
            }
            ["DROP", "INDEX", index, ..] => Self::DropIndex(unquoted(index)),
            _ => Self::Rows,
        }
    }
}

fn unquoted(name: &str) -> String {
    name.trim_matches(['"', '`']).to_owned()
}

impl Table {
    /// Reads the definitions of columns, with commas between them.
    fn of(definitions: &[&str]) -> Self {
        let mut table = Self::default();
        // No definition has a comma inside.
        for definition in definitions.split(|&word| word == ",") {
            let [name, definition @ ..] = definition else { continue };
            let name = unquoted(name);
            if definition.contains(&"UNIQUE") {
                table.unique.insert(name.clone());
            }
            table.columns.insert(name, Column::of(definition));
        }
        table
    }
}

impl Column {
    /// Reads a definition, from the type on.
    fn of(definition: &[&str]) -> Self {
        let end = definition.iter().position(|word| AFTER_KIND.contains(word));
        let (kind, rest) = definition.split_at(end.unwrap_or(definition.len()));
        let kind = kind.join(" ").replace(" ( ", "(").replace(" )", ")");
        let has = |words: [&str; 2]| rest.windows(2).any(|pair| *pair == words);
        let is_numbered =
            |word: &&str| ["AUTO_INCREMENT", "AUTOINCREMENT", "GENERATED"].contains(word);
        Self {
            kind: kind.to_lowercase(),
            is_nullable: !has(["NOT", "NULL"]),
            filler: if rest.iter().any(is_numbered) {
                Filler::Number
            } else if rest.contains(&"DEFAULT") {
                Filler::Default
            } else {
                Filler::Nothing
            },
        }
    }

    /// Whether this one, of a catalog, is `expected`, of a statement. The length of ids is whatever
    /// Django's setting said when the table was made.
    fn problem(&self, expected: &Self) -> Option<String> {
        let is_kind = match expected.kind.split_once(LENGTH) {
            Some((before, after)) => self
                .kind
                .strip_prefix(before)
                .and_then(|rest| rest.strip_suffix(after))
                .is_some_and(|length| length.parse::<u32>().is_ok()),
            None => self.kind == expected.kind,
        };
        if !is_kind {
            let expected = expected.kind.replace(LENGTH, "255");
            return Some(format!("is {} and not {expected}", self.kind));
        }
        match (self.is_nullable, expected.is_nullable) {
            (true, false) => return Some("takes NULL".to_owned()),
            (false, true) => return Some("does not take NULL".to_owned()),
            _ => {}
        }
        let problem = match (self.filler, expected.filler) {
            (actual, expected) if actual == expected => return None,
            (_, Filler::Number) => "is not numbered by the database",
            (_, Filler::Default) => "has no default",
            (Filler::Number, _) => "is numbered by the database",
            (_, Filler::Nothing) => "has a default",
        };
        Some(problem.to_owned())
    }
}

impl Shape {
    /// Adds a table.
    pub(super) fn insert(&mut self, name: &str, table: Table) {
        self.0.insert(name.to_owned(), table);
    }

    /// Whether there is no table.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The names of all indexes.
    pub(super) fn indexes(&self) -> impl Iterator<Item = &str> {
        self.0.values().flat_map(|table| table.indexes.keys().map(String::as_str))
    }

    /// The length that the column of a table has in its type.
    pub(super) fn length(&self, table: &str, column: &str) -> Option<u32> {
        let kind = &self.0.get(table)?.columns.get(column)?.kind;
        kind.strip_prefix("varchar(")?.strip_suffix(')')?.parse().ok()
    }

    /// Does to it what a statement does.
    pub(super) fn apply(&mut self, effect: &Effect) {
        let tables = &mut self.0;
        match effect {
            Effect::CreateTable(name, table) => {
                tables.insert(name.clone(), table.clone());
            }
            Effect::DropTable(name) => {
                tables.remove(name);
            }
            Effect::RenameTable(name, new) => {
                if let Some(table) = tables.remove(name) {
                    tables.insert(new.clone(), table);
                }
            }
            Effect::AddColumn(table, name, column) => {
                if let Some(table) = tables.get_mut(table) {
                    table.columns.insert(name.clone(), column.clone());
                }
            }
            Effect::DropColumn(table, name) => {
                if let Some(table) = tables.get_mut(table) {
                    table.columns.remove(name);
                    table.indexes.retain(|_, columns| !columns.contains(name));
                }
            }
            Effect::DropDefault(table, name) => {
                if let Some(column) = tables.get_mut(table).and_then(|t| t.columns.get_mut(name)) {
                    column.filler = Filler::Nothing;
                }
            }
            Effect::CreateIndex(index, table, column) => {
                if let Some(table) = tables.get_mut(table) {
                    table.indexes.insert(index.clone(), vec![column.clone()]);
                }
            }
            Effect::DropIndex(index) => {
                for table in tables.values_mut() {
                    table.indexes.remove(index);
                }
            }
            Effect::Rows => {}
        }
    }

    /// What in this one, of a catalog, is not as `expected`, of statements. Of the indexes only
    /// those count whose names are `known`: others are somebody's own.
    pub(super) fn differences(&self, expected: &Self, known: &BTreeSet<String>) -> Vec<String> {
        let mut found = Vec::new();
        for name in TABLES {
            match (self.0.get(name), expected.0.get(name)) {
                (None, None) => {}
                (None, Some(_)) => found.push(format!("the table {name} is missing")),
                (Some(_), None) => found.push(format!("the table {name} is there")),
                (Some(actual), Some(expected)) => {
                    let problems = actual.differences(expected, known);
                    found.extend(problems.into_iter().map(|problem| format!("{name}: {problem}")));
                }
            }
        }
        found
    }
}

impl Table {
    /// Adds an index of a catalog that is not that of the primary key.
    pub(super) fn insert_index(&mut self, name: String, is_unique: bool, columns: Vec<String>) {
        match columns.as_slice() {
            [column] if is_unique => {
                self.unique.insert(column.clone());
            }
            _ => {
                self.indexes.insert(name, columns);
            }
        }
    }

    fn differences(&self, expected: &Self, known: &BTreeSet<String>) -> Vec<String> {
        let mut found = Vec::new();
        for (name, column) in &expected.columns {
            match self.columns.get(name).map(|actual| actual.problem(column)) {
                None => found.push(format!("the column {name} is missing")),
                Some(Some(problem)) => found.push(format!("the column {name} {problem}")),
                Some(None) => {}
            }
        }
        let unknown = self.columns.keys().filter(|name| !expected.columns.contains_key(*name));
        found.extend(unknown.map(|name| format!("the column {name} is not known")));
        let missing = expected.unique.difference(&self.unique);
        found.extend(missing.map(|name| format!("the column {name} is not unique")));
        let unknown = self.unique.difference(&expected.unique);
        found.extend(unknown.map(|name| format!("the column {name} is unique")));
        for (name, columns) in &expected.indexes {
            if self.indexes.get(name) != Some(columns) {
                found.push(format!("the index {name} on {} is missing", columns.join(", ")));
            }
        }
        let more = self.indexes.keys().filter(|name| known.contains(*name));
        let more = more.filter(|name| !expected.indexes.contains_key(*name));
        found.extend(more.map(|name| format!("the index {name} is there")));
        found
    }
}
