//! The statements that merge a batch into the tables: the law of [`crate::row::merge`] in SQL.
//!
//! The law is written once; a database's file says how it spells the parts in [`Syntax`]. Two
//! rows meet in a statement, `old` (the row) and `new` (the batch's), which are `self` and
//! `newer` in [`crate::row::merge`].

use super::{Catalog, GROUPS, TASKS};
use crate::row::task_result::EVENT;

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

/// The columns that move as one unit, `Outcome` in [`crate::row::task_result`].
const OUTCOME: [&str; 7] =
    ["status", "result", "traceback", "meta", "content_type", "content_encoding", "date_done"];

/// The columns that are each kept once known, `Description` in [`crate::row::task_result`].
const DESCRIPTION: [&str; 5] =
    ["task_name", "task_args", "task_kwargs", "worker", "periodic_task_name"];

/// The parts of a description that move as one unit where only events tell them.
const UNIT: [&str; 3] = ["task_args", "task_kwargs", "task_name"];

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

    /// Whose description it is: 3 the new one, 2 the old one; and where neither is whole, 1 where
    /// the name and the arguments are the new ones, 0 where they are the old ones.
    pub(super) fn choice(&self, law: Law<'_>, wins: &str) -> String {
        let Law::Tasks(catalog) = law else { return "0".to_owned() };
        let is_whole = |side: fn(&str) -> String| {
            let marked = if catalog.has("periodic_task_name") {
                format!(" and coalesce({}, '-') <> ''", side("periodic_task_name"))
            } else {
                String::new()
            };
            format!("({} is not null{marked})", side("task_args"))
        };
        let unit =
            |side: fn(&str) -> String| UNIT.map(|column| self.text(&side(column))).join(", ");
        let (new_is_whole, old_is_whole) = (is_whole(self.new), is_whole(self.old));
        let (new_unit, old_unit) = (unit(self.new), unit(self.old));
        format!(
            "case when {new_is_whole} and ({wins} or not {old_is_whole}) then 3
        when {old_is_whole} then 2
        when ({new_unit}) > ({old_unit}) then 1 else 0 end"
        )
    }

    /// A part of the merged description.
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

    /// The assignments of an update, each a column and its value. `wins` and `choice` are the
    /// spelling of what [`Self::wins`] and [`Self::choice`] give, for use in each.
    ///
    /// A database may see what it has assigned already. So the description, which asks for the old
    /// states, stands before the outcome; and `date_started`, last of all, is the same whether
    /// `status` and `date_done` are merged already or not.
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

    /// Whether the update changes anything, so that a duplicate costs no write.
    fn changes(&self, law: Law<'_>, wins: &str) -> String {
        let (old, new) = (self.old, self.new);
        let mut changes =
            vec![wins.to_owned(), format!("{} < {}", new("date_created"), old("date_created"))];
        if let Law::Tasks(catalog) = law {
            // The rest counts only where the new outcome does not win, which makes it shorter.
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

    /// A text for comparison: by bytes, and NULL as the empty text.
    fn text(&self, column: &str) -> String {
        (self.bytes)(&format!("coalesce({column}, '')"))
    }
}

fn described(catalog: &Catalog) -> impl Iterator<Item = &'static str> {
    DESCRIPTION.into_iter().filter(|column| catalog.has(column))
}
