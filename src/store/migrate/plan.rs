//! What is to be done, from what is recorded and what the tables look like.

use std::collections::BTreeSet;

use super::migration::{LENGTH, Migration, Migrations};
use super::shape::{Effect, Shape};
use crate::store::TASKS;

/// Django's name for the app whose tables these are.
pub(super) const APP: &str = "django_celery_results";

/// Django's command, for what is not done here.
const DJANGO: &str = "python manage.py migrate django_celery_results";

/// The length of ids where Django's settings do not name one.
const DEFAULT_LENGTH: u32 = 255;

/// A database as it is.
#[derive(Debug, Default)]
pub(in crate::store) struct State {
    /// The migrations of the app in `django_migrations`; nothing where there is no such table.
    pub(super) recorded: Option<BTreeSet<String>>,
    /// The tables of the app.
    pub(super) tables: Shape,
    /// What would go with a table that is made anew: its name, and the names of triggers and of
    /// indexes on it.
    pub(super) attached: Vec<(String, String)>,
}

/// One migration that is to be recorded.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// Its name.
    pub(super) name: &'static str,
    /// What is to be run before.
    pub(super) statements: Vec<String>,
    /// Whether the tables have been found as this migration leaves them.
    pub(super) is_done: bool,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// These migrations, of which there may be none.
    Steps(Vec<Step>),
    /// Nothing: all are recorded, and these as well, which are of a later django-celery-results.
    Later(Vec<String>),
}

/// A state that a database may be found in.
struct Position {
    /// The migrations that are done.
    done: usize,
    /// The statements of the next one that are done.
    statements: usize,
    tables: Shape,
}

/// Plans the way from a state to the newest.
///
/// `is_atomic` says whether a migration is done as a whole or not at all. `length` is that of ids;
/// without it tables that are made get that of the table of tasks.
///
/// # Errors
///
/// Where the state is not one that django-celery-results leaves behind: what differs, and what to
/// type.
pub(super) fn plan(
    migrations: Migrations,
    state: &State,
    is_atomic: bool,
    length: Option<u32>,
) -> Result<Plan, String> {
    let recorded = state.recorded.iter().flatten();
    let later: Vec<_> = recorded
        .filter(|name| migrations.iter().all(|migration| migration.name != **name))
        .cloned()
        .collect();
    let recorded = recorded_in_order(migrations, state)?;
    if !later.is_empty() {
        if recorded == migrations.len() {
            return Ok(Plan::Later(later));
        }
        return Err(format!(
            "django_migrations records {}, which this version of Celeriac does not know, and not \
             {}: type `{DJANGO}`",
            later.join(", "),
            migrations[recorded].name
        ));
    }
    let effects: Vec<Vec<_>> = migrations.iter().map(effects).collect();
    let known = effects.iter().flatten().filter_map(|(_, effect)| match effect {
        Effect::CreateIndex(name, ..) => Some(name.clone()),
        _ => None,
    });
    let known: BTreeSet<_> = known.collect();
    let positions = positions(&effects, is_atomic);
    let is_here =
        |position: &&Position| state.tables.differences(&position.tables, &known).is_empty();
    let here = positions.iter().filter(|position| position.done >= recorded).find(is_here);
    let Some(&Position { done, statements, .. }) = here else {
        let earlier = positions.iter().rev().filter(|position| position.statements == 0);
        let earlier = earlier.filter(|position| position.done < recorded).find(is_here);
        return Err(refusal(migrations, state, recorded, earlier, &positions, &known));
    };

    let length = length.or_else(|| state.tables.length(TASKS, "task_id")).unwrap_or(DEFAULT_LENGTH);
    let mut steps = Vec::new();
    let mut tables = state.tables.clone();
    for (number, migration) in migrations.iter().enumerate().skip(recorded) {
        let mut step =
            Step { name: migration.name, statements: Vec::new(), is_done: number < done };
        let first = if number == done { statements } else { 0 };
        for (statement, effect) in effects[number].iter().skip(first).filter(|_| !step.is_done) {
            match effect {
                // Only django-celery-results 2.1 made some of those that a later one drops.
                Effect::DropIndex(name) if tables.indexes().all(|index| index != name) => continue,
                Effect::DropTable(table) => check_attached(state, table, &known)?,
                _ => {}
            }
            tables.apply(effect);
            step.statements.push(statement.replace(LENGTH, &length.to_string()));
        }
        steps.push(step);
    }
    Ok(Plan::Steps(steps))
}

/// The statements of a migration and their effects.
fn effects(migration: &Migration) -> Vec<(String, Effect)> {
    let with_effect = |statement: String| {
        let effect = Effect::of(&statement);
        (statement, effect)
    };
    migration.statements().into_iter().map(with_effect).collect()
}

/// How many migrations are recorded, none left out.
fn recorded_in_order(migrations: Migrations, state: &State) -> Result<usize, String> {
    let is_recorded = |migration: &&Migration| {
        state.recorded.as_ref().is_some_and(|recorded| recorded.contains(migration.name))
    };
    let recorded = migrations.iter().take_while(is_recorded).count();
    match migrations.iter().skip(recorded).find(is_recorded) {
        None => Ok(recorded),
        Some(later) => Err(format!(
            "django_migrations records {} and not {}, which comes before: type `python manage.py \
             migrate --fake {APP} NAME` with the last one that the tables have had, or zero",
            later.name, migrations[recorded].name
        )),
    }
}

/// The states from an empty database to the newest. Where a migration is not atomic, those that an
/// interrupted one leaves behind are among them.
fn positions(effects: &[Vec<(String, Effect)>], is_atomic: bool) -> Vec<Position> {
    let mut tables = Shape::default();
    let mut positions = Vec::new();
    for (done, effects) in effects.iter().enumerate() {
        positions.push(Position { done, statements: 0, tables: tables.clone() });
        for (number, (_, effect)) in effects.iter().enumerate() {
            tables.apply(effect);
            if !is_atomic && number + 1 < effects.len() {
                positions.push(Position { done, statements: number + 1, tables: tables.clone() });
            }
        }
    }
    positions.push(Position { done: effects.len(), statements: 0, tables });
    positions
}

/// What to say of tables that are not as the recorded migrations leave them.
fn refusal(
    migrations: Migrations,
    state: &State,
    recorded: usize,
    earlier: Option<&Position>,
    positions: &[Position],
    known: &BTreeSet<String>,
) -> String {
    let name = |done: usize| done.checked_sub(1).map_or("zero", |last| migrations[last].name);
    if state.tables.is_empty() {
        return format!(
            "django_migrations records {}, and the tables do not exist. Where Django's router \
             gives {APP} another database, name that one. Where they were dropped, type `python \
             manage.py migrate --fake {APP} zero` and start again",
            name(recorded)
        );
    }
    if let Some(&Position { done, .. }) = earlier {
        return format!(
            "django_migrations records {}, and the tables are as {} leaves them: type `python \
             manage.py migrate --fake {APP} {}` and start again",
            name(recorded),
            name(done),
            name(done)
        );
    }
    let differences = |position: &Position| state.tables.differences(&position.tables, known);
    // What is recorded says which state was meant. Without a record it is the most similar.
    let meant = positions
        .iter()
        .rev()
        .filter(|position| position.statements == 0)
        .filter(|position| match recorded {
            0 => position.done > 0,
            recorded => position.done == recorded,
        })
        .min_by_key(|position| differences(position).len());
    let Some(meant) = meant else { return format!("the tables are not known: type `{DJANGO}`") };
    let mut told = differences(meant);
    if let Some(more) = told.len().checked_sub(4).filter(|more| *more > 0) {
        told.truncate(4);
        told.push(format!("and {more} more"));
    }
    format!(
        "the tables are not as {} leaves them ({}), and stay as they are: change that and start \
         again, or leave them to `{DJANGO}`",
        name(meant.done),
        told.join("; ")
    )
}

/// Refuses to make a table anew that somebody has attached something to.
fn check_attached(state: &State, table: &str, known: &BTreeSet<String>) -> Result<(), String> {
    let mut foreign = state.attached.iter().filter(|(on, _)| on == table);
    match foreign.find(|(_, name)| !known.contains(name)) {
        None => Ok(()),
        Some((_, name)) => Err(format!(
            "the table {table} has to be made anew, and {name} on it, which is not of {APP}, would \
             be lost: drop it, start again, and make it again"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::super::migration::{MYSQL, POSTGRES, SQLITE};
    use super::super::shape::Table;
    use super::*;
    use crate::store::GROUPS;

    const DATABASES: [(Migrations, bool); 3] = [(POSTGRES, true), (MYSQL, false), (SQLITE, true)];

    fn all_positions(migrations: Migrations, is_atomic: bool) -> Vec<Position> {
        let with_length = |(statement, _): (String, Effect)| {
            let effect = Effect::of(&statement.replace(LENGTH, "255"));
            (statement, effect)
        };
        let effects = migrations.iter().map(|m| effects(m).into_iter().map(with_length).collect());
        positions(&effects.collect::<Vec<_>>(), is_atomic)
    }

    /// The tables after so many migrations, of which so many are recorded.
    fn state(migrations: Migrations, done: usize, recorded: usize) -> State {
        let position = all_positions(migrations, true).remove(done);
        let recorded = migrations.iter().take(recorded).map(|m| m.name.to_owned()).collect();
        State { recorded: Some(recorded), tables: position.tables, attached: Vec::new() }
    }

    fn steps(migrations: Migrations, state: &State, is_atomic: bool) -> Vec<Step> {
        match plan(migrations, state, is_atomic, None) {
            Ok(Plan::Steps(steps)) => steps,
            other => panic!("{other:?}"),
        }
    }

    fn error(state: &State) -> String {
        plan(POSTGRES, state, true, None).expect_err("refused")
    }

    #[test]
    fn every_statement_is_understood() {
        for (migrations, _) in DATABASES {
            for (statement, effect) in migrations.iter().flat_map(effects) {
                let changes_rows =
                    ["INSERT INTO ", "UPDATE "].map(|verb| statement.starts_with(verb));
                assert_eq!(effect == Effect::Rows, changes_rows.contains(&true), "{statement}");
            }
        }
    }

    #[test]
    fn every_state_on_the_way_leads_to_the_newest() {
        for (migrations, is_atomic) in DATABASES {
            let newest = &all_positions(migrations, true)[migrations.len()].tables;
            for position in all_positions(migrations, is_atomic) {
                // A process that was killed may have recorded all but the last one.
                for recorded in [position.done, position.done.saturating_sub(1), 0] {
                    let mut state = state(migrations, 0, recorded);
                    state.tables = position.tables.clone();
                    let mut tables = position.tables.clone();
                    let steps = steps(migrations, &state, is_atomic);
                    for statement in steps.iter().flat_map(|step| &step.statements) {
                        let effect = Effect::of(statement);
                        let before = tables.clone();
                        tables.apply(&effect);
                        assert!(before != tables || effect == Effect::Rows, "{statement}");
                    }
                    let names: Vec<_> = steps.iter().map(|step| step.name).collect();
                    let missing: Vec<_> = migrations[recorded..].iter().map(|m| m.name).collect();
                    assert_eq!(names, missing);
                    let known = newest.indexes().map(str::to_owned).collect();
                    assert_eq!(tables.differences(newest, &known), [""; 0]);
                }
            }
        }
    }

    #[test]
    fn what_is_there_without_a_record_is_recorded() {
        let mut state = state(POSTGRES, 9, 0);
        state.recorded = None;
        let steps = steps(POSTGRES, &state, true);
        let (found, run) = steps.split_at(9);
        assert!(found.iter().all(|step| step.is_done && step.statements.is_empty()));
        assert!(run.iter().all(|step| !step.is_done));
        assert_eq!(steps.len(), POSTGRES.len());
    }

    #[test]
    fn indexes_of_2_1_are_dropped_where_they_are() {
        let duplicate = "django_cele_task_id_7f8fca_idx";
        let mut state = state(MYSQL, 9, 9);
        let drops = |state: &State| steps(MYSQL, state, false)[0].statements.clone();
        assert_eq!(drops(&state), [""; 0]);
        let on_id = Effect::CreateIndex(duplicate.into(), TASKS.into(), "task_id".into());
        state.tables.apply(&on_id);
        assert_eq!(drops(&state), [format!("DROP INDEX `{duplicate}` ON `{TASKS}`")]);
    }

    #[test]
    fn new_tables_have_the_length_of_the_old_ones() {
        let groups = |length, old: &str| {
            let mut state = state(POSTGRES, 8, 8);
            state.tables = Shape::default();
            for (statement, _) in POSTGRES[..8].iter().flat_map(effects) {
                state.tables.apply(&Effect::of(&statement.replace(LENGTH, old)));
            }
            let Ok(Plan::Steps(steps)) = plan(POSTGRES, &state, true, length) else { panic!() };
            steps[0].statements[0].clone()
        };
        assert!(groups(None, "191").contains(r#""group_id" varchar(191)"#));
        assert!(groups(None, "255").contains(r#""group_id" varchar(255)"#));
        assert!(groups(Some(64), "191").contains(r#""group_id" varchar(64)"#));
    }

    #[test]
    fn tables_that_are_not_known_are_refused_with_what_differs() {
        let mut state = state(POSTGRES, 14, 14);
        let add = Effect::of(&format!(r#"ALTER TABLE "{TASKS}" ADD COLUMN "tenant" text NULL"#));
        state.tables.apply(&add);
        assert!(error(&state).contains(&format!("{TASKS}: the column tenant is not known")));
        state.recorded = None;
        assert!(error(&state).contains("as 0014_alter_taskresult_status leaves them"));
        for (definition, problem) in [
            ("integer NOT NULL", "worker is integer and not varchar(100)"),
            ("varchar(100) NOT NULL", "worker does not take NULL"),
            ("varchar(100) DEFAULT '' NULL", "worker has a default"),
        ] {
            let mut state = self::state(POSTGRES, 14, 14);
            let statement = format!(r#"ALTER TABLE "{TASKS}" ADD COLUMN "worker" {definition}"#);
            state.tables.apply(&Effect::of(&statement));
            assert!(error(&state).contains(problem), "{}", error(&state));
        }
        let mut state = self::state(POSTGRES, 14, 14);
        state.tables.insert(GROUPS, Table::default());
        assert!(error(&state).contains("the column content_encoding is missing"));
        assert!(error(&state).contains("and 7 more"), "{}", error(&state));
        let mut state = self::state(POSTGRES, 14, 14);
        state.tables.apply(&Effect::DropIndex("django_cele_status_9b6201_idx".to_owned()));
        assert!(
            error(&state).contains("the index django_cele_status_9b6201_idx on status is missing")
        );
        let own = Effect::CreateIndex("mine".into(), TASKS.into(), "meta".into());
        let mut state = self::state(POSTGRES, 14, 14);
        state.tables.apply(&own);
        assert_eq!(steps(POSTGRES, &state, true), [], "an index of one's own is no matter");
    }

    #[test]
    fn records_that_do_not_fit_are_refused_with_what_to_type() {
        let fake = "python manage.py migrate --fake django_celery_results";
        assert!(error(&state(POSTGRES, 0, 14)).contains(&format!("{fake} zero")));
        assert!(error(&state(POSTGRES, 8, 14)).contains(&format!("{fake} 0008_chordcounter")));
        let mut gap = state(POSTGRES, 14, 14);
        gap.recorded.as_mut().expect("recorded").remove("0009_groupresult");
        assert!(error(&gap).contains("not 0009_groupresult"));

        let mut later = state(POSTGRES, 14, 14);
        let name = "0015_task_priority".to_owned();
        later.recorded.as_mut().expect("recorded").insert(name.clone());
        assert_eq!(plan(POSTGRES, &later, true, None), Ok(Plan::Later(vec![name.clone()])));
        later.recorded.as_mut().expect("recorded").remove("0014_alter_taskresult_status");
        assert!(error(&later).contains(&name));
    }

    #[test]
    fn what_would_be_lost_with_a_table_is_named() {
        let mut state = state(SQLITE, 8, 8);
        state.attached = [("mine", TASKS), ("other", "shop_order")]
            .map(|(name, table)| (table.to_owned(), name.to_owned()))
            .to_vec();
        let error = plan(SQLITE, &state, true, None).expect_err("refused");
        assert!(error.contains("mine on it"), "{error}");
        let mut newest = self::state(SQLITE, 9, 9);
        newest.attached = state.attached;
        assert!(plan(SQLITE, &newest, true, None).is_ok(), "no table is made anew");
    }
}
