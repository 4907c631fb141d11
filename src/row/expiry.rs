//! How long rows are kept: Celery's `result_expires`, and other ages for some states and tasks.
//!
//! What is said of a task's name counts before what is said of its state, and that before what is
//! said of all rows. Among names, one that is written out counts before a pattern, and among
//! patterns the one with the most characters that are not wildcards.

use std::cmp::Reverse;
use std::fmt;
use std::time::Duration;

use glob::Pattern;

/// How long rows are kept after their `date_done`; nothing where they never expire.
pub type Age = Option<Duration>;

/// The rows that an age is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuleSubject {
    /// Those that nothing else is said of, and all groups.
    Others,
    /// Tasks in a state, by its name in Celery's spelling.
    State(String),
    /// Tasks whose names are as the pattern says.
    Task(Pattern),
}

impl fmt::Display for RuleSubject {
    /// As users write it, and nothing for the others.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Others => Ok(()),
            Self::State(name) => formatter.write_str(name),
            Self::Task(pattern) => formatter.write_str(pattern.as_str()),
        }
    }
}

/// An age, and the rows that it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The rows.
    pub subject: RuleSubject,
    /// How long they are kept.
    pub age: Age,
}

/// The ages of all rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expiry {
    /// In the order in which they count; the last one is for [`RuleSubject::Others`].
    rules: Vec<Rule>,
}

impl Expiry {
    /// The ages of tasks by their names, of tasks by their states, and of all else.
    #[must_use]
    pub fn new(mut tasks: Vec<(Pattern, Age)>, states: Vec<(String, Age)>, others: Age) -> Self {
        // Of two that are equally specific, the one that keeps rows longer.
        let order = |(pattern, age): &(Pattern, Age)| {
            let literal = pattern.as_str().chars().filter(|&c| !is_wildcard(c)).count();
            let is_pattern = pattern.as_str().contains(is_wildcard);
            (is_pattern, Reverse((literal, age.unwrap_or(Duration::MAX))))
        };
        tasks.sort_by_key(order);
        let tasks = tasks.into_iter().map(|(pattern, age)| (RuleSubject::Task(pattern), age));
        let states = states.into_iter().map(|(name, age)| (RuleSubject::State(name), age));
        let rules = tasks.chain(states).chain([(RuleSubject::Others, others)]);
        Self { rules: rules.map(|(subject, age)| Rule { subject, age }).collect() }
    }

    /// The rules, in the order in which they count.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The number of the rule for a task, whose name may not be known.
    #[must_use]
    pub fn of_task(&self, state: &str, name: Option<&str>) -> usize {
        let is_for = |rule: &Rule| match &rule.subject {
            RuleSubject::Task(pattern) => name.is_some_and(|name| pattern.matches(name)),
            RuleSubject::State(name) => name == state,
            RuleSubject::Others => true,
        };
        self.rules.iter().position(is_for).unwrap_or_else(|| self.of_groups())
    }

    /// The number of the rule for groups.
    #[must_use]
    pub fn of_groups(&self) -> usize {
        self.rules.len().saturating_sub(1)
    }

    /// Whether there is a row that ever expires.
    #[must_use]
    pub fn is_ever(&self) -> bool {
        self.rules.iter().any(|rule| rule.age.is_some())
    }
}

/// Whether a character in a pattern stands for others.
fn is_wildcard(c: char) -> bool {
    matches!(c, '*' | '?' | '[' | ']')
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_hours(24);

    fn pattern(text: &str) -> Pattern {
        Pattern::new(text).expect(text)
    }

    #[test]
    fn a_name_counts_before_a_pattern_and_that_before_a_state() {
        let expiry = Expiry::new(
            vec![
                (pattern("*"), Some(4 * DAY)),
                (pattern("shop.*"), Some(3 * DAY)),
                (pattern("shop.audit.*"), None),
                (pattern("shop.audit.ping"), Some(DAY)),
            ],
            vec![("FAILURE".to_owned(), Some(30 * DAY))],
            Some(2 * DAY),
        );
        let age = |state, name| expiry.rules()[expiry.of_task(state, name)].age;
        for (state, name, expected) in [
            ("SUCCESS", Some("shop.audit.ping"), Some(DAY)),
            ("FAILURE", Some("shop.audit.login"), None),
            ("FAILURE", Some("shop.pay"), Some(3 * DAY)),
            ("FAILURE", Some("Shop.pay"), Some(4 * DAY)),
            ("FAILURE", None, Some(30 * DAY)),
            ("failure", None, Some(2 * DAY)),
            ("SUCCESS", None, Some(2 * DAY)),
        ] {
            assert_eq!(age(state, name), expected, "{state} {name:?}");
        }
        assert_eq!(expiry.rules()[expiry.of_groups()].age, Some(2 * DAY));
    }

    #[test]
    fn of_two_patterns_alike_the_one_that_keeps_longer_counts() {
        for ages in [[Some(DAY), None], [None, Some(DAY)]] {
            let patterns = vec![(pattern("a*"), ages[0]), (pattern("*z"), ages[1])];
            let expiry = Expiry::new(patterns, Vec::new(), Some(DAY));
            assert_eq!(expiry.rules()[expiry.of_task("SUCCESS", Some("a.z"))].age, None);
        }
    }

    #[test]
    fn what_never_expires_is_told() {
        assert!(!Expiry::new(Vec::new(), Vec::new(), None).is_ever());
        assert!(Expiry::new(Vec::new(), vec![("SUCCESS".to_owned(), Some(DAY))], None).is_ever());
    }
}
