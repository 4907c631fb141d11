//! The statement that merges a batch into the table: the law of [`crate::merge`] in SQL.
//!
//! The law is written once; a database's file says how it spells the parts in [`Syntax`]. Two
//! results meet in the statement, `old` (the row) and `new` (the batch's), which are `self` and
//! `newer` in [`crate::merge`].

use super::{Catalog, TABLE};

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

/// The columns of the table that a statement writes, in the order in which it names them.
pub(super) fn columns(catalog: &Catalog) -> Vec<&'static str> {
    let times = ["date_started", "date_created"];
    let key = std::iter::once("task_id");
    key.chain(OUTCOME)
        .chain(DESCRIPTION)
        .chain(times)
        .filter(|column| catalog.has(column))
        .collect()
}

impl Syntax {
    /// `insert … on conflict`, from a common table expression `new` with every column.
    pub(super) fn insert_on_conflict(&self, catalog: &Catalog) -> String {
        let columns = columns(catalog).join(", ");
        let wins = self.wins(catalog);
        let assignments = self.assignments(catalog, &wins);
        let assignments: Vec<_> =
            assignments.iter().map(|(column, value)| format!("{column} = {value}")).collect();
        let assignments = assignments.join(",\n    ");
        let changes = self.changes(catalog, &wins);
        format!(
            "insert into {TABLE} as old ({columns})
select {columns} from new where true
on conflict (task_id) do update set
    {assignments}
where {changes}"
        )
    }

    /// Whether the new outcome takes the place of the old one.
    pub(super) fn wins(&self, catalog: &Catalog) -> String {
        let finality = |status: &str| {
            let status = (self.bytes)(status);
            format!(
                "case {status} when 'SUCCESS' then 3 when 'FAILURE' then 2 when 'REVOKED' then 1 \
                 else 0 end"
            )
        };
        let (new_finality, old_finality) =
            (finality(&(self.new)("status")), finality(&(self.old)("status")));
        let content: Vec<_> = OUTCOME.into_iter().filter(|&column| column != "date_done").collect();
        let same = content
            .iter()
            .map(|column| {
                format!("{} = {}", self.text(&(self.new)(column)), self.text(&(self.old)(column)))
            })
            .collect::<Vec<_>>()
            .join("\n            and ");
        let order = |side: fn(&str) -> String| {
            let texts = content.iter().copied().chain(described(catalog));
            let texts = texts.map(|column| self.text(&side(column)));
            std::iter::once(side("date_done")).chain(texts).collect::<Vec<_>>().join(", ")
        };
        let (new_order, old_order) = (order(self.new), order(self.old));
        let (new_done, old_done) = ((self.new)("date_done"), (self.old)("date_done"));
        let by_arrival = self.by_arrival;
        format!(
            "case
        when {new_finality} <> {old_finality}
            then {new_finality} > {old_finality}
        when {by_arrival} and {same}
            then {new_done} < {old_done}
        else ({new_order})
            > ({old_order})
    end"
        )
    }

    /// The assignments of an update, each a column and its value. `wins` is the spelling of
    /// whether the new outcome wins, for use in each.
    ///
    /// `date_started` stands last: it takes the merged `status` and `date_done` as arguments,
    /// because a database may have assigned them already.
    pub(super) fn assignments(&self, catalog: &Catalog, wins: &str) -> Vec<(&'static str, String)> {
        let (old, new) = (self.old, self.new);
        let pick = |new: &str, old: &str| format!("case when {wins} then {new} else {old} end");
        let mut assignments = Vec::new();
        for column in OUTCOME {
            assignments.push((column, pick(&new(column), &old(column))));
        }
        for column in described(catalog) {
            let (new, old) = (new(column), old(column));
            let value =
                pick(&format!("coalesce({new}, {old})"), &format!("coalesce({old}, {new})"));
            assignments.push((column, value));
        }
        let (new_created, old_created) = (new("date_created"), old("date_created"));
        assignments.push((
            "date_created",
            format!(
                "case when {new_created} < {old_created} then {new_created} else {old_created} end"
            ),
        ));
        if catalog.has("date_started") {
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
                "case when {status} in ('SUCCESS', 'FAILURE', 'REVOKED') and {started} > {done} \
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
    pub(super) fn changes(&self, catalog: &Catalog, wins: &str) -> String {
        let (old, new) = (self.old, self.new);
        let mut changes =
            vec![wins.to_owned(), format!("{} < {}", new("date_created"), old("date_created"))];
        changes
            .extend(described(catalog).map(|column| {
                format!("({} is null and {} is not null)", old(column), new(column))
            }));
        if catalog.has("date_started") {
            changes.push(format!(
                "{} is distinct from {}",
                old("date_started"),
                self.date_started(wins)
            ));
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
