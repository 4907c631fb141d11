//! The statements that merge a batch into the tables: the law of [`crate::merge`] in SQL.
//!
//! The law is written once; a database's file says how it spells the parts in [`Syntax`]. Two
//! rows meet in a statement, `old` (the row) and `new` (the batch's), which are `self` and
//! `newer` in [`crate::merge`].

use super::{Catalog, GROUPS, TASKS};
use crate::task_result::EVENT;

/// How a database spells the parts of the statement.
pub(super) struct Syntax {
    /// A column of the row that is there already.
    pub(super) old: fn(&str) -> String,
    /// A column of the row that the batch has for it.
    pub(super) new: fn(&str) -> String,
    /// A text in a form that compares by its UTF-8 bytes.
    pub(super) bytes: fn(&str) -> String,
    /// Whether the new outcome's time is only its arrival.
    pub(super) by_arrival: &'static str,
    /// Whether the new start is known only by arrival.
    pub(super) started_by_arrival: &'static str,
}

/// The columns that move as one unit, `Outcome` in [`crate::task_result`].
const OUTCOME: [&str; 7] =
    ["status", "result", "traceback", "meta", "content_type", "content_encoding", "date_done"];

/// The columns that are each kept once known, `Description` in [`crate::task_result`].
const DESCRIPTION: [&str; 5] =
    ["task_name", "task_args", "task_kwargs", "worker", "periodic_task_name"];

/// Celery's `READY_STATES`.
const FINAL: &str = "('SUCCESS', 'FAILURE', 'REVOKED')";

/// The columns of a group that move as one unit.
const GROUP: [&str; 4] = ["result", "content_type", "content_encoding", "date_done"];

/// The table that a statement is for, and with it the part of the law.
#[derive(Clone, Copy)]
pub(super) enum Law<'catalog> {
    /// The table of tasks with the columns that it has.
    Tasks(&'catalog Catalog),
    /// The table of groups.
    Groups,
}

impl Law<'_> {
    /// The table's name.
    pub(super) fn table(self) -> &'static str {
        match self {
            Self::Tasks(_) => TASKS,
            Self::Groups => GROUPS,
        }
    }

    /// The column that tells rows apart.
    pub(super) fn key(self) -> &'static str {
        match self {
            Self::Tasks(_) => "task_id",
            Self::Groups => "group_id",
        }
    }

    /// The columns that a statement writes, in the order in which it names them.
    pub(super) fn columns(self) -> Vec<&'static str> {
        let mut columns = vec![self.key()];
        match self {
            Self::Tasks(catalog) => {
                let all = OUTCOME.into_iter().chain(DESCRIPTION).chain(["date_started"]);
                columns.extend(all.filter(|column| catalog.has(column)));
            }
            Self::Groups => columns.extend(GROUP),
        }
        columns.push("date_created");
        columns
    }
}

impl Syntax {
    /// `insert … on conflict`, from a common table expression `new` with every column.
    pub(super) fn insert_on_conflict(&self, law: Law<'_>) -> String {
        let (table, key, columns) = (law.table(), law.key(), law.columns().join(", "));
        let wins = self.wins(law);
        let assignments = self.assignments(law, &wins);
        let assignments: Vec<_> =
            assignments.iter().map(|(column, value)| format!("{column} = {value}")).collect();
        let assignments = assignments.join(",\n    ");
        let changes = self.changes(law, &wins);
        format!(
            "insert into {table} as old ({columns})
select {columns} from new where true
on conflict ({key}) do update set
    {assignments}
where {changes}"
        )
    }

    /// Whether the new outcome takes the place of the old one.
    pub(super) fn wins(&self, law: Law<'_>) -> String {
        match law {
            Law::Tasks(catalog) => self.task_wins(catalog),
            Law::Groups => {
                let content = ["result", "content_type", "content_encoding"];
                let (new, old) = (self.order(self.new, content), self.order(self.old, content));
                format!("({new}) > ({old})")
            }
        }
    }

    /// What decides among outcomes that are equally final: the time, then the texts.
    fn order(
        &self,
        side: fn(&str) -> String,
        texts: impl IntoIterator<Item = &'static str>,
    ) -> String {
        let texts = texts.into_iter().map(|column| self.text(&side(column)));
        std::iter::once(side("date_done")).chain(texts).collect::<Vec<_>>().join(", ")
    }

    fn task_wins(&self, catalog: &Catalog) -> String {
        let rank = |side: fn(&str) -> String| {
            let status = self.status(side);
            format!(
                "case when {status} in {FINAL} then 1 else 0 end,
            case when {kind} <> '{EVENT}' then 2 when {status} = 'PENDING' then 0 else 1 end,
            case {status} when 'SUCCESS' then 3 when 'FAILURE' then 2 when 'REVOKED' then 1 \
             else 0 end",
                kind = (self.bytes)(&side("content_type")),
            )
        };
        let (new_rank, old_rank) = (rank(self.new), rank(self.old));
        let content: Vec<_> = OUTCOME.into_iter().filter(|&column| column != "date_done").collect();
        let same = content
            .iter()
            .map(|column| {
                format!("{} = {}", self.text(&(self.new)(column)), self.text(&(self.old)(column)))
            })
            .collect::<Vec<_>>()
            .join("\n            and ");
        let texts = || content.iter().copied().chain(described(catalog));
        let (new_order, old_order) = (self.order(self.new, texts()), self.order(self.old, texts()));
        let (new_done, old_done) = ((self.new)("date_done"), (self.old)("date_done"));
        let by_arrival = self.by_arrival;
        format!(
            "case
        when ({new_rank}) <> ({old_rank})
            then ({new_rank}) > ({old_rank})
        when {by_arrival} and {same}
            then {new_done} < {old_done}
        else ({new_order})
            > ({old_order})
    end"
        )
    }

    /// A part of the merged description.
    fn described_part(&self, column: &str, wins: &str) -> String {
        let (new, old) = ((self.new)(column), (self.old)(column));
        let (new_is_whole, old_is_whole) =
            ((self.new)("task_args") + " is not null", (self.old)("task_args") + " is not null");
        let neither = match column {
            "task_args" => "null".to_owned(),
            "worker" => format!(
                "case when {} in {FINAL} and {} in {FINAL} then {} when {wins} then {new} \
                 else {old} end",
                self.status(self.new),
                self.status(self.old),
                self.greatest(column),
            ),
            _ => self.greatest(column),
        };
        format!(
            "case when {new_is_whole} and ({wins} or not {old_is_whole}) then coalesce({new}, {old})
        when {old_is_whole} then coalesce({old}, {new})
        else {neither} end"
        )
    }

    /// The greater of two texts, NULL being the least.
    fn greatest(&self, column: &str) -> String {
        let (new, old) = ((self.new)(column), (self.old)(column));
        format!(
            "case when {old} is null or {} > {} then {new} else {old} end",
            (self.bytes)(&new),
            (self.bytes)(&old),
        )
    }

    fn status(&self, side: fn(&str) -> String) -> String {
        (self.bytes)(&side("status"))
    }

    /// The assignments of an update, each a column and its value. `wins` is the spelling of
    /// whether the new outcome wins, for use in each.
    ///
    /// A database may see what it has assigned already. So `task_args`, by which a description is
    /// whole, stands last of the description, and that before the outcome; and `date_started`, last
    /// of all, is the same whether `status` and `date_done` are merged already or not.
    pub(super) fn assignments(&self, law: Law<'_>, wins: &str) -> Vec<(&'static str, String)> {
        let (old, new) = (self.old, self.new);
        let pick = |new: &str, old: &str| format!("case when {wins} then {new} else {old} end");
        let mut assignments = Vec::new();
        let unit: &[_] = match law {
            Law::Tasks(catalog) => {
                let parts = described(catalog).filter(|&column| column != "task_args");
                for column in parts.chain(["task_args"]) {
                    assignments.push((column, self.described_part(column, wins)));
                }
                &OUTCOME
            }
            Law::Groups => &GROUP,
        };
        for &column in unit {
            assignments.push((column, pick(&new(column), &old(column))));
        }
        let (new_created, old_created) = (new("date_created"), old("date_created"));
        assignments.push((
            "date_created",
            format!(
                "case when {new_created} < {old_created} then {new_created} else {old_created} end"
            ),
        ));
        if let Law::Tasks(catalog) = law
            && catalog.has("date_started")
        {
            assignments.push(("date_started", self.date_started(wins)));
        }
        assignments
    }

    fn date_started(&self, wins: &str) -> String {
        let (old, new) = ((self.old)("date_started"), (self.new)("date_started"));
        let latest = format!("case when {old} is null or {new} > {old} then {new} else {old} end");
        let bounded = |started: &str, status: String, done: String| {
            let status = (self.bytes)(&status);
            format!(
                "case when {status} in {FINAL} and {started} > {done} \
                 then {done} else {started} end"
            )
        };
        let new_bounded =
            bounded(&format!("({latest})"), (self.new)("status"), (self.new)("date_done"));
        let old_bounded = bounded(
            &format!("coalesce({old}, {new})"),
            (self.old)("status"),
            (self.old)("date_done"),
        );
        let started_by_arrival = self.started_by_arrival;
        format!(
            "case
        when not {started_by_arrival} then {latest}
        when {wins} then {new_bounded}
        else {old_bounded}
    end"
        )
    }

    /// Whether the update changes anything, so that a duplicate costs no write.
    fn changes(&self, law: Law<'_>, wins: &str) -> String {
        let (old, new) = (self.old, self.new);
        let mut changes =
            vec![wins.to_owned(), format!("{} < {}", new("date_created"), old("date_created"))];
        if let Law::Tasks(catalog) = law {
            changes.extend(described(catalog).map(|column| {
                let part = self.described_part(column, wins);
                format!("{} is distinct from {part}", old(column))
            }));
            if catalog.has("date_started") {
                changes.push(format!(
                    "{} is distinct from {}",
                    old("date_started"),
                    self.date_started(wins)
                ));
            }
        }
        changes.join("\n    or ")
    }

    /// A text for comparison: by bytes, and NULL as the empty text.
    fn text(&self, column: &str) -> String {
        (self.bytes)(&format!("coalesce({column}, '')"))
    }
}

fn described(catalog: &Catalog) -> impl Iterator<Item = &'static str> {
    DESCRIPTION.into_iter().filter(|column| catalog.has(column))
}
