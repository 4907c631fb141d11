//! The merge law: how two rows with the same id become one. The result does not depend on the order
//! in which they arrive.
//!
//! It differs from django-celery-results, which overwrites every column with each write, so that
//! the last write wins. It also differs from Celery's view of events, which orders states by
//! `precedence()`, so that a RETRY can never follow a STARTED. The rules are:
//!
//! - The columns of the **outcome** are replaced together. The outcome with the greater key wins.
//!   The parts of the key are compared one after the other:
//!   1. The *tier*. A SUCCESS of a result message (4) is final. Every other state of a result
//!      message that has its own time, and every FAILURE and REVOKED, is in tier 3. Then come the
//!      final states of events (2), the other states of result messages that have only the time of
//!      their arrival (1), and the other states of events (0).
//!   2. The *rank* among events: SUCCESS before FAILURE before REVOKED, and PENDING last.
//!   3. The *time*. In tier 3, FAILURE and REVOKED count as [`Law::clock_tolerance`] later, so that
//!      workers whose clocks differ never leave a task in RETRY. A STARTED that is later than that
//!      is a new run of the task.
//!   4. At the same time, a final state, and then the greater content, so that there is always a
//!      winner.
//! - The columns of the **description** are replaced together, too. A description is complete if it
//!   has the task's arguments from a result message. The winner's description is used if it is
//!   complete, and otherwise the other one if that is complete. If neither is complete, the task is
//!   known only from events, which may differ: then the name and the arguments are those that
//!   compare as the greatest texts. The **worker** is that of the event which won, because several
//!   workers may have run the task. If both outcomes are final, it is the one that compares as the
//!   greater text; there is nearly always only one final event.
//! - **`date_created`** is the earliest one. **`date_started`** is the latest one; in a final state
//!   it is the latest one that is not later than `date_done`, and `date_done` itself, cut to
//!   milliseconds, if all of them are later. Messages of `celeriac://` with a final state contain
//!   the start of their attempt, so that no other one is needed.
//! - Of a saved **group**, the newest version wins with all its columns except `date_created`,
//!   which is the earliest one.
//!
//! Everything that the rules need is stored in the row, so that another daemon comes to the same
//! decision.

use std::cmp::Ordering;

use chrono::{DateTime, TimeDelta, Utc};

use crate::row::Row;
use crate::row::group_result::GroupResult;
use crate::row::state::State;
use crate::row::task_result::{
    Description, EVENT, Outcome, TOLD_BY_EVENTS, TaskResult, is_arrival, to_arrival,
};

/// The merge law with its setting, which must be the same in all daemons of a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Law {
    /// How much later FAILURE and REVOKED count than their times say.
    pub clock_tolerance: TimeDelta,
}

impl Default for Law {
    fn default() -> Self {
        Self { clock_tolerance: TimeDelta::seconds(2) }
    }
}

impl Row {
    /// Merges another version of the same row into this one. The order of the two does not matter.
    pub fn merge(&mut self, other: Self, law: Law) {
        match (self, other) {
            (Self::Task(result), Self::Task(other)) => result.merge(other, law),
            (Self::Group(result), Self::Group(other)) => result.merge(other),
            _ => debug_assert!(false, "only rows of one table merge"),
        }
    }
}

impl TaskResult {
    /// Merges another result of the same task into this one. The order of the two does not matter.
    pub fn merge(&mut self, mut other: Self, law: Law) {
        debug_assert_eq!(self.task_id, other.task_id, "only results of one task merge");
        let both_are_final = self.outcome.status.is_ready() && other.outcome.status.is_ready();
        if law.compare(&other, self) == Ordering::Greater {
            std::mem::swap(self, &mut other);
        }
        // This is the one whose outcome wins, now.
        self.date_started = date_started([self.date_started, other.date_started], &self.outcome);
        self.date_created = self.date_created.min(other.date_created);
        let description = std::mem::take(&mut self.description);
        self.description = description.merged(other.description, both_are_final);
    }
}

impl Law {
    /// Which of two results has the outcome that wins.
    fn compare(self, one: &TaskResult, other: &TaskResult) -> Ordering {
        let key = |result: &TaskResult| {
            let Outcome { status, date_done, .. } = &result.outcome;
            let tier = result.outcome.tier();
            let counts_later = tier == 3 && status.is_ready();
            let margin = if counts_later { self.clock_tolerance } else { TimeDelta::zero() };
            (tier, result.outcome.event_rank(), *date_done + margin, status.is_ready())
        };
        key(one)
            .cmp(&key(other))
            .then_with(|| one.outcome.content().cmp(&other.outcome.content()))
            .then_with(|| one.description.texts().cmp(&other.description.texts()))
            .then_with(|| one.description.retries.cmp(&other.description.retries))
    }
}

impl TaskResult {
    /// Moves a start after the end of the task to the end.
    pub(crate) fn limit_start(&mut self) {
        self.date_started = date_started([self.date_started, None], &self.outcome);
    }
}

/// The start of the attempt that led to an outcome.
fn date_started(starts: [Option<DateTime<Utc>>; 2], outcome: &Outcome) -> Option<DateTime<Utc>> {
    let [one, other] = starts;
    if !outcome.status.is_ready() {
        return one.max(other);
    }
    let starts = [one, other].into_iter().flatten();
    let in_time = starts.clone().filter(|start| *start <= outcome.date_done).max();
    in_time.or_else(|| starts.max().map(|_| to_arrival(outcome.date_done)))
}

impl GroupResult {
    /// Merges another version of the same group into this one. The order of the two does not
    /// matter.
    pub fn merge(&mut self, other: Self) {
        debug_assert_eq!(self.group_id, other.group_id, "only results of one group merge");
        let date_created = self.date_created.min(other.date_created);
        let order = other.date_done.cmp(&self.date_done);
        if order.then_with(|| other.content().cmp(&self.content())) == Ordering::Greater {
            *self = other;
        }
        self.date_created = date_created;
    }

    /// What decides between two versions that were saved in the same microsecond.
    fn content(&self) -> [&str; 3] {
        [self.result.as_deref().unwrap_or_default(), &self.content_type, &self.content_encoding]
    }
}

impl Outcome {
    /// How final the outcome is, and how much its source knows.
    fn tier(&self) -> u8 {
        match (self.is_event(), &self.status) {
            (true, status) => {
                if status.is_ready() {
                    2
                } else {
                    0
                }
            }
            (false, State::Success) => 4,
            (false, State::Failure | State::Revoked) => 3,
            (false, _) => {
                if is_arrival(self.date_done) {
                    1
                } else {
                    3
                }
            }
        }
    }

    /// What decides between events before their times.
    fn event_rank(&self) -> u8 {
        match (self.is_event(), &self.status) {
            (false, _) | (true, State::Pending) => 0,
            (true, status) => 1 + status.finality(),
        }
    }

    /// Whether the outcome is known only from an event.
    pub(super) fn is_event(&self) -> bool {
        self.content_type == EVENT
    }

    /// Everything but the time. Texts are compared as bytes, and NULL as the empty text.
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
        let (queue, retries) = (self.queue.max(other.queue), self.retries.max(other.retries));
        let unit = (self.task_args, self.task_kwargs, self.task_name);
        let (task_args, task_kwargs, task_name) =
            unit.max((other.task_args, other.task_kwargs, other.task_name));
        Self { task_name, task_args, task_kwargs, worker, periodic_task_name, queue, retries }
    }

    /// Its parts for comparison. NULL is compared as the empty text.
    fn texts(&self) -> [&str; 6] {
        [
            &self.task_name,
            &self.task_args,
            &self.task_kwargs,
            &self.worker,
            &self.periodic_task_name,
            &self.queue,
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
    use proptest::prelude::*;

    use super::*;

    /// Half a second after a whole one, and not in whole milliseconds.
    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::seconds(seconds) + TimeDelta::microseconds(500_001)
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
        }
    }

    /// A result of a stock worker up to Celery 5.6, which has no time of its own.
    fn arrival(status: &str, seconds: i64) -> TaskResult {
        let mut result = result(status, seconds);
        result.outcome.by_arrival = true;
        result.mark_times(at(seconds), Law::default().clock_tolerance);
        result
    }

    /// A result from an event.
    fn event(status: &str, seconds: i64, name: Option<&str>, worker: &str) -> TaskResult {
        let mut event = result(status, seconds);
        EVENT.clone_into(&mut event.outcome.content_type);
        event.description.task_name = name.map(str::to_owned);
        event.description.worker = Some(worker.to_owned());
        event
    }

    fn merged(results: &[TaskResult]) -> TaskResult {
        let mut results = results.iter().cloned();
        let mut merged = results.next().expect("at least one");
        results.for_each(|result| merged.merge(result, Law::default()));
        merged
    }

    /// Merges the results in both orders, and checks which one wins.
    fn check(winner: &TaskResult, other: &TaskResult) {
        for pair in [[winner, other], [other, winner]] {
            let merged = merged(&pair.map(Clone::clone));
            assert!(merged.outcome == winner.outcome, "{merged:?} instead of {winner:?}");
            assert_eq!(merged.date_created, winner.date_created.min(other.date_created));
        }
    }

    #[test]
    fn a_success_wins_whatever_the_time() {
        for other in ["STARTED", "FAILURE", "REVOKED", "PROGRESS"] {
            check(&result("SUCCESS", 1), &result(other, 9));
            check(&result("SUCCESS", 1), &arrival(other, 9));
            check(&arrival("SUCCESS", 1), &result(other, 9));
            check(&result("SUCCESS", 1), &event(other, 9, None, "w"));
        }
        check(&result("SUCCESS", 2), &result("SUCCESS", 1));
    }

    #[test]
    fn the_newer_of_other_states_wins() {
        check(&result("RETRY", 2), &result("STARTED", 1));
        check(&result("STARTED", 3), &result("RETRY", 2));
        check(&result("FAILURE", 2), &result("REVOKED", 1));
        check(&result("REVOKED", 2), &result("FAILURE", 1));
        check(&result("B", 1), &result("A", 1));
    }

    #[test]
    fn a_task_that_is_run_again_after_its_failure_is_started() {
        check(&result("STARTED", 4), &result("FAILURE", 1));
        check(&result("STARTED", 4), &arrival("FAILURE", 1));
        check(&result("FAILURE", 1), &arrival("STARTED", 9));
    }

    #[test]
    fn clocks_that_differ_leave_no_task_in_retry() {
        check(&result("FAILURE", 1), &result("RETRY", 2));
        check(&result("FAILURE", 1), &result("RETRY", 3));
        check(&result("RETRY", 4), &result("FAILURE", 1));
    }

    #[test]
    fn a_result_message_wins_over_events() {
        check(&result("STARTED", 1), &event("RETRY", 9, None, "w"));
        check(&result("STARTED", 1), &event("SUCCESS", 9, None, "w"));
        check(&arrival("STARTED", 1), &event("STARTED", 9, None, "w"));
        check(&event("SUCCESS", 1, None, "w"), &arrival("STARTED", 9));
        check(&result("FAILURE", 1), &event("SUCCESS", 9, None, "w"));
        check(&event("SUCCESS", 1, None, "w"), &event("FAILURE", 9, None, "w"));
        check(&event("RECEIVED", 1, None, "w"), &event("PENDING", 9, None, "w"));
    }

    #[test]
    fn a_time_in_the_future_is_that_of_the_arrival() {
        let tolerance = Law::default().clock_tolerance;
        let time = |status, ahead| {
            let mut result = result(status, 0);
            let received_at = at(0) - ahead;
            result.mark_times(received_at, tolerance);
            (result.outcome.by_arrival, result.outcome.date_done - received_at)
        };
        let nearly = TimeDelta::microseconds(500_001 - 500_000);
        assert_eq!(time("STARTED", tolerance), (false, tolerance));
        assert_eq!(time("STARTED", tolerance + nearly), (true, TimeDelta::zero()));
        assert_eq!(time("SUCCESS", TimeDelta::days(1)), (false, TimeDelta::days(1)));
        let (by_arrival, _) = time("FAILURE", TimeDelta::days(1) + nearly);
        assert!(by_arrival);
    }

    #[test]
    fn a_row_shows_whether_its_time_is_that_of_an_arrival() {
        let marked = |by_arrival, microseconds| {
            let mut result = result("STARTED", 0);
            let time = DateTime::UNIX_EPOCH + TimeDelta::microseconds(microseconds);
            (result.outcome.by_arrival, result.outcome.date_done) = (by_arrival, time);
            (result.date_started, result.date_created) = (Some(time), time);
            result.mark_times(time, TimeDelta::zero());
            let micros = |time: DateTime<Utc>| time.timestamp_micros();
            let started = result.date_started.map(micros);
            (micros(result.outcome.date_done), started, micros(result.date_created))
        };
        assert_eq!(marked(true, 1_999), (1_000, Some(1_000), 1_000));
        assert_eq!(marked(true, 1_000), (1_000, Some(1_000), 1_000));
        assert_eq!(marked(false, 1_000), (1_001, Some(1_000), 1_000));
        assert_eq!(marked(false, 1_999), (1_999, Some(1_999), 1_999));
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
        for results in permutations(&results) {
            assert_eq!(merged(&results).date_started, Some(at(3)));
        }
    }

    #[test]
    fn date_started_is_never_later_than_the_end() {
        // The second run begins after the first has succeeded, and its end is not known yet. A
        // message of celeriac:// with a final state contains the start as well.
        let mut success = result("SUCCESS", 2);
        success.date_started = Some(at(1));
        let again = [result("STARTED", 1), success, result("STARTED", 5)];
        for results in permutations(&again) {
            assert_eq!(merged(&results).date_started, Some(at(1)));
        }
        // The end, by the worker's clock, is earlier than the arrival of the start.
        let arrived = [arrival("STARTED", 5), result("SUCCESS", 2)];
        for results in permutations(&arrived) {
            assert_eq!(merged(&results).date_started, Some(to_arrival(at(2))));
        }
    }

    /// Results of one task with few different values, so that many keys have equal parts.
    fn any_result() -> impl Strategy<Value = TaskResult> {
        let status = prop::sample::select(vec![
            "SUCCESS", "FAILURE", "REVOKED", "STARTED", "RETRY", "PENDING", "PROGRESS",
        ]);
        let text = || prop::option::of(prop::sample::select(vec!["A", "b"]));
        (status, 0..6i64, 0..3usize, text(), text()).prop_map(
            |(status, seconds, source, text, worker)| {
                let mut result = match source {
                    0 => result(status, seconds),
                    1 => arrival(status, seconds),
                    _ => event(status, seconds, None, "w"),
                };
                result.outcome.result = text.map(str::to_owned);
                result.description.worker = worker.map(str::to_owned);
                result
            },
        )
    }

    proptest! {
        /// Every three results are in one order, whatever their sources.
        #[test]
        fn outcomes_are_in_one_order(results in prop::collection::vec(any_result(), 3)) {
            let law = Law::default();
            let beats = |one: usize, other: usize| {
                law.compare(&results[one], &results[other]) != Ordering::Less
            };
            for [a, b, c] in [[0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 2, 1], [2, 1, 0], [1, 0, 2]] {
                prop_assert!(beats(a, b) || beats(b, a));
                prop_assert!(!(beats(a, b) && beats(b, c)) || beats(a, c));
            }
            let outcome = |results: &[TaskResult]| {
                Outcome { by_arrival: false, ..merged(results).outcome }
            };
            for order in permutations(&results) {
                prop_assert!(outcome(&order) == outcome(&results));
            }
        }

        /// A row that was written and read again is merged in the same way.
        #[test]
        fn rows_that_are_read_merge_alike(results in prop::collection::vec(any_result(), 2..5)) {
            let mut read = results[0].clone();
            read.outcome.by_arrival = false;
            for result in &results[1..] {
                read.merge(result.clone(), Law::default());
                read.outcome.by_arrival = false;
            }
            let mut expected = merged(&results);
            expected.outcome.by_arrival = false;
            prop_assert!(read == expected);
        }

        /// A final row never began after it ended.
        #[test]
        fn final_rows_began_before_they_ended(results in prop::collection::vec(any_result(), 1..6)) {
            let merged = merged(&results);
            let is_late = merged.date_started > Some(merged.outcome.date_done);
            prop_assert!(!(merged.outcome.status.is_ready() && is_late));
        }
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
                row.merge(merged(&order[cut..]), Law::default());
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
            queue: Some("celery".to_owned()),
            retries: Some(1),
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
