//! The settings for expired rows: what expires, and how it is deleted.

use std::time::Duration;

use glob::Pattern;

use super::error::ConfigError;
use super::parse::whole;
use crate::row::expiry::{Age, Expiry};

/// How expired rows are deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CleanupConfig {
    /// How long rows are kept.
    pub expiry: Expiry,
    /// How many rows are deleted per batch, at least 1.
    pub batch: usize,
    /// The pause after each batch.
    pub pause: Duration,
    /// How often `celeriac run` deletes expired rows, if at all.
    pub every: Option<Duration>,
}

/// How long rows are kept by default, as in Celery.
const RESULT_EXPIRES: Duration = Duration::from_hours(24);

/// The longest pause, so that a cleanup ends in reasonable time.
const MAX_PAUSE: Duration = Duration::from_mins(1);

/// The allowed intervals between two cleanups of the schedule.
const EVERY: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_hours(24 * 40);

const BY_STATE: &str = "result-expires-by-state";
const BY_TASK: &str = "result-expires-by-task";

/// The settings as users write them.
#[derive(Default)]
pub(super) struct Texts<'text> {
    pub(super) result_expires: Option<&'text str>,
    pub(super) by_state: Option<&'text str>,
    pub(super) by_task: Option<&'text str>,
    pub(super) batch: Option<&'text str>,
    pub(super) pause: Option<&'text str>,
    pub(super) every: Option<&'text str>,
}

pub(super) fn check(texts: &Texts<'_>) -> Result<CleanupConfig, ConfigError> {
    let others = match texts.result_expires {
        None => Some(RESULT_EXPIRES),
        Some(text) => age("result-expires", text)?,
    };
    let mut states = Vec::new();
    for (name, age) in list(BY_STATE, texts.by_state, "FAILURE=30days")? {
        if states.iter().any(|(other, _)| *other == name) {
            return Err(duplicate(BY_STATE, name));
        }
        states.push((name.to_owned(), age));
    }
    let mut tasks: Vec<(Pattern, Age)> = Vec::new();
    for (name, age) in list(BY_TASK, texts.by_task, "shop.tasks.report=90days")? {
        let pattern = Pattern::new(name).map_err(|error| {
            let problem =
                format!("{name:?} is not a pattern, {}: write for example shop.*", error.msg);
            ConfigError::new(BY_TASK, problem)
        })?;
        if tasks.iter().any(|(other, _)| *other == pattern) {
            return Err(duplicate(BY_TASK, name));
        }
        tasks.push((pattern, age));
    }
    let expiry = Expiry::new(tasks, states, others);
    let every = every(texts.every)?;
    if every.is_some() && !expiry.is_ever() {
        return Err(ConfigError::new(
            "cleanup-every",
            "nothing ever expires: write an age in result-expires, or leave this out",
        ));
    }
    Ok(CleanupConfig {
        expiry,
        batch: usize::from(whole("cleanup-batch", texts.batch, 1..=u16::MAX)?.unwrap_or(1_000)),
        pause: pause(texts.pause)?,
        every,
    })
}

/// Parses a duration, or a number of seconds as in Celery. 0 and `never` mean that rows do not
/// expire.
fn age(setting: &str, text: &str) -> Result<Age, ConfigError> {
    let text = text.trim();
    let age = if text.eq_ignore_ascii_case("never") {
        Some(Duration::ZERO)
    } else if let Ok(seconds) = text.parse() {
        Duration::try_from_secs_f64(seconds).ok()
    } else {
        humantime::parse_duration(text).ok()
    };
    let age = age.ok_or_else(|| {
        let problem = format!(
            "{text:?} is not a duration: write for example 12h, 30days, a number of seconds, or \
             never"
        );
        ConfigError::new(setting, problem)
    })?;
    Ok((!age.is_zero()).then_some(age))
}

/// Parses names and ages: `NAME=AGE`, separated by commas.
fn list<'text>(
    setting: &str,
    text: Option<&'text str>,
    example: &str,
) -> Result<Vec<(&'text str, Age)>, ConfigError> {
    let parts = text.unwrap_or_default().split(',').map(str::trim).filter(|part| !part.is_empty());
    let read = |part: &'text str| match part.rsplit_once('=') {
        Some((name, text)) if !name.trim().is_empty() => Ok((name.trim(), age(setting, text)?)),
        _ => Err(ConfigError::new(
            setting,
            format!("{part:?} is not a name and an age: write for example {example}"),
        )),
    };
    parts.map(read).collect()
}

fn duplicate(setting: &str, name: &str) -> ConfigError {
    ConfigError::new(setting, format!("{name:?} is there twice: leave one out"))
}

fn pause(text: Option<&str>) -> Result<Duration, ConfigError> {
    let Some(text) = text else { return Ok(Duration::from_millis(100)) };
    match humantime::parse_duration(text.trim()) {
        Ok(pause) if pause <= MAX_PAUSE => Ok(pause),
        _ => Err(ConfigError::new(
            "cleanup-pause",
            format!("{text:?} is not a duration up to 60s: write for example 100ms, 1s or 0s"),
        )),
    }
}

fn every(text: Option<&str>) -> Result<Option<Duration>, ConfigError> {
    let Some(text) = text else { return Ok(None) };
    match humantime::parse_duration(text.trim()) {
        _ if text.trim().eq_ignore_ascii_case("never") => Ok(None),
        Ok(every) if EVERY.contains(&every) => Ok(Some(every)),
        _ => Err(ConfigError::new(
            "cleanup-every",
            format!(
                "{text:?} is not a duration from 1s to 40days: write for example 6h or 1day, or \
                 never"
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(texts: &Texts<'_>) -> String {
        check(texts).expect_err("it is wrong").to_string()
    }

    #[test]
    fn ages_are_durations_or_seconds() {
        let hour = Some(Duration::from_hours(1));
        for (text, expected) in [
            ("1h", hour),
            (" 3600 ", hour),
            ("3600.0", hour),
            ("60m", hour),
            ("0", None),
            ("0s", None),
            ("never", None),
            ("Never", None),
        ] {
            assert_eq!(age("x", text).expect(text), expected, "{text}");
        }
        for text in ["", "soon", "-1", "nan", "inf", "1e400", "None", "1 fortnight"] {
            assert!(age("x", text).is_err(), "{text:?} is no age");
        }
    }

    #[test]
    fn states_and_tasks_have_their_own_ages() {
        let cleanup = check(&Texts {
            by_state: Some("FAILURE=30days, STARTED=never,"),
            by_task: Some("shop.*=2h,shop.pay = 60"),
            ..Texts::default()
        });
        let expiry = cleanup.expect("good settings").expiry;
        let age = |state, name| expiry.rules()[expiry.of_task(state, name)].age;
        assert_eq!(age("SUCCESS", None), Some(RESULT_EXPIRES));
        assert_eq!(age("FAILURE", None), Some(Duration::from_hours(24 * 30)));
        assert_eq!(age("STARTED", None), None);
        assert_eq!(age("STARTED", Some("shop.pay")), Some(Duration::from_mins(1)));
        assert_eq!(age("STARTED", Some("shop.ship")), Some(Duration::from_hours(2)));
    }

    #[test]
    fn invalid_settings_are_refused_with_the_fix() {
        for (texts, expected) in [
            (
                Texts { result_expires: Some("soon"), ..Texts::default() },
                "result-expires: \"soon\" is not a duration: write for example 12h",
            ),
            (
                Texts { by_state: Some("FAILURE"), ..Texts::default() },
                "result-expires-by-state: \"FAILURE\" is not a name and an age: write for example \
                 FAILURE=30days",
            ),
            (
                Texts { by_state: Some("A=1h,A=2h"), ..Texts::default() },
                "result-expires-by-state: \"A\" is there twice",
            ),
            (
                Texts { by_task: Some("=1h"), ..Texts::default() },
                "result-expires-by-task: \"=1h\" is not a name and an age",
            ),
            (
                Texts { by_task: Some("a[=1h"), ..Texts::default() },
                "result-expires-by-task: \"a[\" is not a pattern",
            ),
            (
                Texts { by_task: Some("a=old"), ..Texts::default() },
                "result-expires-by-task: \"old\" is not a duration",
            ),
            (
                Texts { batch: Some("0"), ..Texts::default() },
                "cleanup-batch: \"0\" is out of range: write a number from 1 to 65535",
            ),
            (
                Texts { pause: Some("1h"), ..Texts::default() },
                "cleanup-pause: \"1h\" is not a duration up to 60s",
            ),
            (
                Texts { every: Some("daily"), ..Texts::default() },
                "cleanup-every: \"daily\" is not a duration from 1s to 40days",
            ),
            (
                Texts { every: Some("1day"), result_expires: Some("0"), ..Texts::default() },
                "cleanup-every: nothing ever expires: write an age in result-expires",
            ),
        ] {
            let error = error(&texts);
            assert!(error.starts_with(expected), "{error}");
        }
        let off = check(&Texts { every: Some("never"), ..Texts::default() });
        assert_eq!(off.expect("off is good").every, None);
    }
}
