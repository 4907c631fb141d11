//! The merge law: how two rows with the same id become one. The result does not depend on the order
//! in which they arrive.
//!
//! It differs from django-celery-results, which overwrites every column with each write, so that
//! the last write wins. It also differs from Celery's view of events, which orders states by
//! `precedence()`, so that a RETRY can never follow a STARTED. The rules are:
//!
//! - The columns of the **outcome** are replaced together. Of two outcomes, the first of these
//!   rules that tells them apart decides which one wins:
//!   1. a final outcome (SUCCESS, FAILURE, REVOKED) wins over one that is not final;
//!   2. a result message wins over an event, and any other event wins over one with the state
//!      PENDING;
//!   3. SUCCESS wins over FAILURE, and FAILURE over REVOKED, as in Celery's key-value backends;
//!   4. the newer one wins; but if the later outcome is the same and its time is only the time of
//!      its arrival, it is a duplicate, and the earlier time is kept;
//!   5. at the same microsecond the one with the greater content wins, so that there is always a
//!      winner.
//! - The columns of the **description** are replaced together, too. A description is complete if it
//!   has the task's arguments from a result message. The winner's description is used if it is
//!   complete, and otherwise the other one if that is complete. If neither is complete, the task is
//!   known only from events, which may differ: then the name and the arguments are those that
//!   compare as the greatest texts. The **worker** is that of the event which won, because several
//!   workers may have run the task. If both outcomes are final, it is the one that compares as the
//!   greater text; there is nearly always only one final event.
//! - **`date_created`** is the earliest one. **`date_started`** is the latest one. If it is only
//!   the time of a message's arrival, an outcome that does not win does not change it, and it is
//!   never later than the time of a final outcome.
//! - Of a saved **group**, the newest version wins with all its columns except `date_created`,
//!   which is the earliest one.
//!
//! Everything that the rules need is stored in the row, so that another daemon comes to the same
//! decision. The same rules are written in SQL in `store/upsert.rs`, where the row in the table is
//! `self` and that of the batch is `newer`.

use std::cmp::Ordering;

use crate::row::Row;
use crate::row::group_result::GroupResult;
use crate::row::state::State;
use crate::row::task_result::{Description, EVENT, Outcome, TOLD_BY_EVENTS, TaskResult};

impl Row {
    /// Merges another version of the same row into this one; see [`TaskResult::merge`] and
    /// [`GroupResult::merge`].
    pub fn merge(&mut self, newer: Self) {
        match (self, newer) {
            (Self::Task(result), Self::Task(newer)) => result.merge(newer),
            (Self::Group(result), Self::Group(newer)) => result.merge(newer),
            _ => debug_assert!(false, "only rows of one table merge"),
        }
    }
}

impl GroupResult {
    /// Merges another version of the same group into this one. The order of the two does not
    /// matter.
    pub fn merge(&mut self, newer: Self) {
        debug_assert_eq!(self.group_id, newer.group_id, "only results of one group merge");
        let date_created = self.date_created.min(newer.date_created);
        let order = newer.date_done.cmp(&self.date_done);
        if order.then_with(|| newer.content().cmp(&self.content())) == Ordering::Greater {
            *self = newer;
        }
        self.date_created = date_created;
    }

    /// What decides between two versions that were saved in the same microsecond.
    fn content(&self) -> [&str; 3] {
        [self.result.as_deref().unwrap_or_default(), &self.content_type, &self.content_encoding]
    }
}

impl TaskResult {
    /// Merges another result of the same task into this one.
    ///
    /// `newer` is the one that arrived later. The order of arrival matters only for results that
    /// have no time of their own.
    pub fn merge(&mut self, newer: Self) {
        debug_assert_eq!(self.task_id, newer.task_id, "only results of one task merge");
        let newer_wins = newer.beats(self);
        let both_are_final = self.outcome.status.is_ready() && newer.outcome.status.is_ready();
        let older = std::mem::take(&mut self.description);
        self.description = if newer_wins {
            self.outcome = newer.outcome;
            newer.description.merged(older, both_are_final)
        } else {
            older.merged(newer.description, both_are_final)
        };
        self.date_created = self.date_created.min(newer.date_created);
        self.date_started = if newer.started_by_arrival {
            let started = if newer_wins {
                self.date_started.max(newer.date_started)
            } else {
                self.date_started.or(newer.date_started)
            };
            let is_ready = self.outcome.status.is_ready();
            started.map(|time| if is_ready { time.min(self.outcome.date_done) } else { time })
        } else {
            self.date_started.max(newer.date_started)
        };
        self.started_by_arrival |= newer.started_by_arrival;
    }

    /// Whether this result's outcome replaces that of `older`.
    fn beats(&self, older: &Self) -> bool {
        if self.outcome.rank() != older.outcome.rank() {
            return self.outcome.rank() > older.outcome.rank();
        }
        if self.outcome.by_arrival && self.outcome.content() == older.outcome.content() {
            return self.outcome.date_done < older.outcome.date_done;
        }
        let order = self.outcome.date_done.cmp(&older.outcome.date_done);
        let order = order.then_with(|| self.outcome.content().cmp(&older.outcome.content()));
        order.then_with(|| self.description.texts().cmp(&older.description.texts()))
            == Ordering::Greater
    }
}

impl Outcome {
    /// What decides before the time: whether the state is final, how much the source of the outcome
    /// knows, and the rank of the final state.
    fn rank(&self) -> (bool, u8, u8) {
        let knowledge = match (self.is_event(), &self.status) {
            (true, State::Pending) => 0,
            (true, _) => 1,
            (false, _) => 2,
        };
        (self.status.is_ready(), knowledge, self.status.finality())
    }

    /// Whether the outcome is known only from an event.
    fn is_event(&self) -> bool {
        self.content_type == EVENT
    }

    /// Everything but the time. Two outcomes are the same if these are equal. Texts are compared as
    /// bytes and NULL as the empty text, here as in SQL.
    fn content(&self) -> [&str; 6] {
        [
            self.status.as_str(),
            self.result.as_deref().unwrap_or_default(),
            self.traceback.as_deref().unwrap_or_default(),
            self.meta.as_deref().unwrap_or_default(),
            &self.content_type,
            &self.content_encoding,
        ]
    }
}

impl Description {
    /// Merges another description of the task into that of the winning outcome.
    fn merged(self, other: Self, both_are_final: bool) -> Self {
        if self.is_complete() {
            return self;
        }
        if other.is_complete() {
            return other;
        }
        let worker = if both_are_final { self.worker.max(other.worker) } else { self.worker };
        let periodic_task_name = self.periodic_task_name.max(other.periodic_task_name);
        let unit = (self.task_args, self.task_kwargs, self.task_name);
        let (task_args, task_kwargs, task_name) =
            unit.max((other.task_args, other.task_kwargs, other.task_name));
        Self { task_name, task_args, task_kwargs, worker, periodic_task_name }
    }

    /// Its parts for comparison. NULL is compared as the empty text, here as in SQL.
    fn texts(&self) -> [&str; 5] {
        [
            &self.task_name,
            &self.task_args,
            &self.task_kwargs,
            &self.worker,
            &self.periodic_task_name,
        ]
        .map(|part| part.as_deref().unwrap_or_default())
    }

    /// Whether it has the task's arguments from a result message, and not only from events.
    fn is_complete(&self) -> bool {
        self.task_args.is_some() && self.periodic_task_name.as_deref() != Some(TOLD_BY_EVENTS)
    }
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, TimeDelta, Utc};

    use super::*;
    use crate::row::state::State;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::seconds(seconds)
    }

    /// A result that has its own time.
    fn result(status: &str, seconds: i64) -> TaskResult {
        TaskResult {
            task_id: "t".to_owned(),
            outcome: Outcome {
                status: State::from(status),
                content_type: "application/json".to_owned(),
                content_encoding: "utf-8".to_owned(),
                result: None,
                traceback: None,
                meta: None,
                date_done: at(seconds),
                by_arrival: false,
            },
            description: Description::default(),
            date_created: at(seconds),
            date_started: (status == "STARTED").then(|| at(seconds)),
            started_by_arrival: false,
        }
    }

    /// A result of a stock worker up to Celery 5.6, which has no time of its own.
    fn arrival(status: &str, seconds: i64) -> TaskResult {
        let mut result = result(status, seconds);
        result.outcome.by_arrival = true;
        result.started_by_arrival = true;
        result
    }

    fn merged(results: &[TaskResult]) -> TaskResult {
        let mut results = results.iter().cloned();
        let mut merged = results.next().expect("at least one");
        results.for_each(|result| merged.merge(result));
        merged
    }

    /// Merges the results in both orders, and checks the state and its time after each.
    fn check(one: &TaskResult, other: &TaskResult, status: &str, seconds: i64) {
        for pair in [[one, other], [other, one]] {
            let merged = merged(&pair.map(Clone::clone));
            assert_eq!(merged.outcome.status.as_str(), status);
            assert_eq!(merged.outcome.date_done, at(seconds));
            assert_eq!(merged.date_created, one.date_created.min(other.date_created));
        }
    }

    #[test]
    fn the_more_final_outcome_wins_whatever_the_time() {
        check(&result("SUCCESS", 1), &result("STARTED", 9), "SUCCESS", 1);
        check(&result("SUCCESS", 1), &result("FAILURE", 9), "SUCCESS", 1);
        check(&result("FAILURE", 1), &result("REVOKED", 9), "FAILURE", 1);
        check(&result("REVOKED", 1), &result("PROGRESS", 9), "REVOKED", 1);
    }

    #[test]
    fn of_equal_rank_the_newer_outcome_wins() {
        check(&result("STARTED", 1), &result("RETRY", 2), "RETRY", 2);
        check(&result("STARTED", 3), &result("RETRY", 2), "STARTED", 3);
        check(&result("SUCCESS", 1), &result("SUCCESS", 2), "SUCCESS", 2);
        check(&result("A", 1), &result("B", 1), "B", 1);
    }

    #[test]
    fn an_outcome_that_arrives_again_changes_nothing() {
        check(&arrival("SUCCESS", 1), &arrival("SUCCESS", 9), "SUCCESS", 1);
        check(&arrival("STARTED", 1), &arrival("STARTED", 9), "STARTED", 1);
        check(&arrival("STARTED", 1), &arrival("RETRY", 9), "RETRY", 9);
    }

    #[test]
    fn the_columns_of_an_outcome_are_replaced_together() {
        let mut failure = result("FAILURE", 1);
        failure.outcome.traceback = Some("Traceback".to_owned());
        let merged = merged(&[failure, result("SUCCESS", 2)]);
        assert_eq!(merged.outcome.traceback, None);
    }

    #[test]
    fn the_description_is_the_winners_unless_it_is_empty() {
        let described = |mut result: TaskResult, worker: &str| {
            result.description.worker = Some(worker.to_owned());
            result.description.task_args = Some("[]".to_owned());
            result
        };
        let worker = |results: &[TaskResult]| merged(results).description.worker;
        let first = described(result("STARTED", 1), "one");
        let last = described(result("SUCCESS", 2), "two");
        let bare = result("SUCCESS", 3);
        assert_eq!(worker(&[first.clone(), last.clone()]).as_deref(), Some("two"));
        assert_eq!(worker(&[last.clone(), first.clone()]).as_deref(), Some("two"));
        assert_eq!(worker(&[bare.clone(), first.clone()]).as_deref(), Some("one"));
        assert_eq!(worker(&[first, bare]).as_deref(), Some("one"));
    }

    #[test]
    fn date_started_is_that_of_the_last_attempt() {
        let history = [result("STARTED", 1), result("RETRY", 2), result("STARTED", 3)];
        let mut results = history.to_vec();
        results.push(result("SUCCESS", 4));
        for _ in 0..results.len() {
            results.rotate_left(1);
            assert_eq!(merged(&results).date_started, Some(at(3)));
        }
    }

    #[test]
    fn the_arrival_of_a_start_is_never_later_than_the_end() {
        // The time of the end, by the worker's clock, is earlier than the arrival of the start.
        let mut success = result("SUCCESS", 2);
        success.started_by_arrival = true;
        assert_eq!(merged(&[arrival("STARTED", 5), success.clone()]).date_started, Some(at(2)));
        assert_eq!(merged(&[success, arrival("STARTED", 5)]).date_started, Some(at(2)));

        let history = [arrival("STARTED", 1), arrival("SUCCESS", 4), arrival("STARTED", 6)];
        assert_eq!(merged(&history).date_started, Some(at(1)), "the same start, delivered again");
        let history = [arrival("STARTED", 1), arrival("RETRY", 2), arrival("STARTED", 3)];
        assert_eq!(merged(&history).date_started, Some(at(3)), "another attempt");
    }

    /// A result from an event.
    fn event(status: &str, seconds: i64, name: Option<&str>, worker: &str) -> TaskResult {
        let mut event = result(status, seconds);
        EVENT.clone_into(&mut event.outcome.content_type);
        event.description.task_name = name.map(str::to_owned);
        event.description.worker = Some(worker.to_owned());
        event
    }

    #[test]
    fn a_result_message_wins_over_events_that_are_equally_final() {
        check(&result("STARTED", 1), &event("RETRY", 9, None, "w"), "STARTED", 1);
        check(&result("FAILURE", 1), &event("SUCCESS", 9, None, "w"), "FAILURE", 1);
        check(&result("STARTED", 9), &event("SUCCESS", 1, None, "w"), "SUCCESS", 1);
        check(&event("SUCCESS", 1, None, "w"), &event("FAILURE", 9, None, "w"), "SUCCESS", 1);
        check(&event("PENDING", 9, None, "w"), &event("RECEIVED", 1, None, "w"), "RECEIVED", 1);
    }

    fn permutations(results: &[TaskResult]) -> Vec<Vec<TaskResult>> {
        if results.is_empty() {
            return vec![Vec::new()];
        }
        let first_and_rest = (0..results.len()).flat_map(|place| {
            let mut rest = results.to_vec();
            let first = rest.remove(place);
            permutations(&rest)
                .into_iter()
                .map(move |rest| [std::slice::from_ref(&first), &rest[..]].concat())
        });
        first_and_rest.collect()
    }

    /// Merges the results in every order and with every division into two batches.
    fn check_orders(results: &[TaskResult], expected: &Description) {
        for order in permutations(results) {
            for cut in 1..order.len() {
                let mut row = merged(&order[..cut]);
                row.merge(merged(&order[cut..]));
                let shown: Vec<_> =
                    order.iter().map(|result| result.outcome.status.as_str()).collect();
                assert!(row.description == *expected, "{shown:?} cut at {cut}");
            }
        }
    }

    #[test]
    fn events_supply_the_name_if_the_results_do_not() {
        let expected = Description {
            task_name: Some("pay".to_owned()),
            worker: Some("two".to_owned()),
            ..Description::default()
        };
        let mut history = vec![
            event("RECEIVED", 1, Some("pay"), "one"),
            event("STARTED", 2, None, "one"),
            event("RETRY", 3, None, "one"),
            event("STARTED", 5, None, "two"),
            event("SUCCESS", 6, None, "two"),
        ];
        check_orders(&history, &expected);
        history[1] = arrival("SUCCESS", 7);
        check_orders(&history, &expected);
    }

    #[test]
    fn events_do_not_change_a_complete_description() {
        let mut success = result("SUCCESS", 6);
        success.description = Description {
            task_name: Some("pay".to_owned()),
            task_args: Some("[]".to_owned()),
            task_kwargs: Some("{}".to_owned()),
            worker: Some("two".to_owned()),
            periodic_task_name: Some("nightly".to_owned()),
        };
        let expected = success.description.clone();
        let history = [
            event("RECEIVED", 1, Some("shadow"), "one"),
            event("STARTED", 5, Some("z"), "z"),
            event("FAILURE", 7, None, "z"),
            success,
        ];
        check_orders(&history, &expected);
    }
}
