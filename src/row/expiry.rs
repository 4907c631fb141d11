//! How long rows are kept: Celery's `result_expires`, and different ages for some states and tasks.
//!
//! A rule for a task's name takes precedence over a rule for its state, and that over the age for
//! all other rows. A full name takes precedence over a pattern, and of several patterns the one
//! with the most characters that are not wildcards is used.

use std::cmp::Reverse;
use std::fmt;
use std::time::Duration;

use glob::Pattern;

/// How long rows are kept after their `date_done`; `None` if they never expire.
pub type Age = Option<Duration>;

/// The rows that a rule applies to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuleSubject {
    /// All groups, and the tasks that no other rule applies to.
    Others,
    /// Tasks in a state, by Celery's name of the state.
    State(String),
    /// Tasks whose names match the pattern.
    Task(Pattern),
}

impl fmt::Display for RuleSubject {
    /// Writes the name or the pattern as users write it, and nothing for [`RuleSubject::Others`].
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Others => Ok(()),
            Self::State(name) => formatter.write_str(name),
            Self::Task(pattern) => formatter.write_str(pattern.as_str()),
        }
    }
}

/// An age, and the rows that it applies to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The rows.
    pub subject: RuleSubject,
    /// How long they are kept.
    pub age: Age,
}

/// The rules for all rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expiry {
    /// In the order of precedence; the last one is that for [`RuleSubject::Others`].
    rules: Vec<Rule>,
}

impl Expiry {
    /// Rules from the ages for tasks by name, for tasks by state, and for all other rows.
    #[must_use]
    pub fn new(mut tasks: Vec<(Pattern, Age)>, states: Vec<(String, Age)>, others: Age) -> Self {
        // Of two equally specific patterns, the one that keeps rows longer comes first.
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

    /// The rules, in the order of precedence.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The index of the rule for a task. The name may be unknown.
    #[must_use]
    pub fn of_task(&self, state: &str, name: Option<&str>) -> usize {
        let is_for = |rule: &Rule| match &rule.subject {
            RuleSubject::Task(pattern) => name.is_some_and(|name| pattern.matches(name)),
            RuleSubject::State(name) => name == state,
            RuleSubject::Others => true,
        };
        self.rules.iter().position(is_for).unwrap_or_else(|| self.of_groups())
    }

    /// The index of the rule for groups.
    #[must_use]
    pub fn of_groups(&self) -> usize {
        self.rules.len().saturating_sub(1)
    }

    /// Whether any rows expire at all.
    #[must_use]
    pub fn is_ever(&self) -> bool {
        self.rules.iter().any(|rule| rule.age.is_some())
    }
}

/// Whether a character is a wildcard in a pattern.
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
    fn names_take_precedence_over_patterns_and_these_over_states() {
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
    fn of_equally_specific_patterns_the_longer_age_is_used() {
        for ages in [[Some(DAY), None], [None, Some(DAY)]] {
            let patterns = vec![(pattern("a*"), ages[0]), (pattern("*z"), ages[1])];
            let expiry = Expiry::new(patterns, Vec::new(), Some(DAY));
            assert_eq!(expiry.rules()[expiry.of_task("SUCCESS", Some("a.z"))].age, None);
        }
    }

    #[test]
    fn is_ever_tells_whether_any_rows_expire() {
        assert!(!Expiry::new(Vec::new(), Vec::new(), None).is_ever());
        assert!(Expiry::new(Vec::new(), vec![("SUCCESS".to_owned(), Some(DAY))], None).is_ever());
    }
}
