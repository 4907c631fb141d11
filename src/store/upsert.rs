//! The statements that merge a batch into the tables. They express the merge law of
//! [`crate::row::merge`] in SQL.
//!
//! The law is written once for all databases; what differs between their dialects is in [`Syntax`].
//! In a statement, `old` is the row in the table and `new` the row of the batch; they correspond to
//! `self` and `newer` in [`crate::row::merge`].

use super::{Catalog, GROUPS, TASKS};
use crate::row::task_result::EVENT;

/// The parts of a statement that differ between databases.
pub(super) struct Syntax {
    /// A column of the existing row.
    pub(super) old: fn(&str) -> String,
    /// A column of the row of the batch.
    pub(super) new: fn(&str) -> String,
    /// A text in a form that is compared by its UTF-8 bytes.
    pub(super) bytes: fn(&str) -> String,
    /// Whether the time of the new outcome is only the time of its arrival.
    pub(super) by_arrival: &'static str,
    /// Whether the time of the new start is only the time of its arrival.
    pub(super) started_by_arrival: &'static str,
}

/// The columns of `Outcome` in [`crate::row::task_result`], which are replaced together.
const OUTCOME: [&str; 7] =
    ["status", "result", "traceback", "meta", "content_type", "content_encoding", "date_done"];

/// The columns of `Description` in [`crate::row::task_result`].
const DESCRIPTION: [&str; 5] =
    ["task_name", "task_args", "task_kwargs", "worker", "periodic_task_name"];

/// The columns of a description that are replaced together if they are known only from events.
const UNIT: [&str; 3] = ["task_args", "task_kwargs", "task_name"];

/// Celery's `READY_STATES`.
const FINAL: &str = "('SUCCESS', 'FAILURE', 'REVOKED')";

/// The columns of a group that are replaced together.
const GROUP: [&str; 4] = ["result", "content_type", "content_encoding", "date_done"];

/// The table that a statement writes, which determines the part of the law that applies.
#[derive(Clone, Copy)]
pub(super) enum Law<'catalog> {
    /// The task table, with its catalog.
    Tasks(&'catalog Catalog),
    /// The group table.
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

    /// The column that is the key of the rows.
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
        let choice = self.choice(law, &wins);
        let assignments = self.assignments(law, &wins, &choice);
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

    /// The condition that the new outcome replaces the old one.
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

    /// What decides between outcomes of equal rank: the time, then the texts.
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

    /// Which description is used: 3 for the new one and 2 for the old one. If neither is complete:
    /// 1 for the new name and arguments, and 0 for the old ones.
    pub(super) fn choice(&self, law: Law<'_>, wins: &str) -> String {
        let Law::Tasks(catalog) = law else { return "0".to_owned() };
        let is_complete = |side: fn(&str) -> String| {
            let marked = if catalog.has("periodic_task_name") {
                format!(" and coalesce({}, '-') <> ''", side("periodic_task_name"))
            } else {
                String::new()
            };
            format!("({} is not null{marked})", side("task_args"))
        };
        let unit =
            |side: fn(&str) -> String| UNIT.map(|column| self.text(&side(column))).join(", ");
        let (new_is_complete, old_is_complete) = (is_complete(self.new), is_complete(self.old));
        let (new_unit, old_unit) = (unit(self.new), unit(self.old));
        format!(
            "case when {new_is_complete} and ({wins} or not {old_is_complete}) then 3
        when {old_is_complete} then 2
        when ({new_unit}) > ({old_unit}) then 1 else 0 end"
        )
    }

    /// A column of the merged description.
    fn described_part(&self, column: &str, wins: &str, choice: &str) -> String {
        let (new, old) = ((self.new)(column), (self.old)(column));
        let neither = match column {
            "worker" => format!(
                "when {} in {FINAL} and {} in {FINAL} then {} when {wins} then {new} else {old}",
                self.status(self.new),
                self.status(self.old),
                self.greatest(column),
            ),
            "periodic_task_name" => format!("else {}", self.greatest(column)),
            _ => format!("when {choice} = 1 then {new} else {old}"),
        };
        format!("case when {choice} = 3 then {new} when {choice} = 2 then {old} {neither} end")
    }

    /// The greater of two texts. NULL is less than every text.
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

    /// The assignments of an update, each a column and its value. `wins` and `choice` are
    /// expressions with the values of [`Self::wins`] and [`Self::choice`].
    ///
    /// On MySQL an assignment sees the values that earlier ones have assigned. The description,
    /// which depends on the old state, is therefore assigned before the outcome. `date_started`,
    /// which is assigned last, has the same value whether or not `status` and `date_done` are
    /// already merged.
    pub(super) fn assignments(
        &self,
        law: Law<'_>,
        wins: &str,
        choice: &str,
    ) -> Vec<(&'static str, String)> {
        let (old, new) = (self.old, self.new);
        let pick = |new: &str, old: &str| format!("case when {wins} then {new} else {old} end");
        let mut assignments = Vec::new();
        let unit: &[_] = match law {
            Law::Tasks(catalog) => {
                for column in described(catalog) {
                    assignments.push((column, self.described_part(column, wins, choice)));
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

    /// The condition that the update changes anything. Because of it, duplicates are not written.
    fn changes(&self, law: Law<'_>, wins: &str) -> String {
        let (old, new) = (self.old, self.new);
        let mut changes =
            vec![wins.to_owned(), format!("{} < {}", new("date_created"), old("date_created"))];
        if let Law::Tasks(catalog) = law {
            // The other conditions matter only if the new outcome does not win, which makes them
            // shorter.
            let wins = "false";
            let choice = self.choice(law, wins);
            changes.extend(described(catalog).map(|column| {
                let part = self.described_part(column, wins, &choice);
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

    /// A text for comparison by bytes, with NULL as the empty text.
    fn text(&self, column: &str) -> String {
        (self.bytes)(&format!("coalesce({column}, '')"))
    }
}

fn described(catalog: &Catalog) -> impl Iterator<Item = &'static str> {
    DESCRIPTION.into_iter().filter(|column| catalog.has(column))
}
