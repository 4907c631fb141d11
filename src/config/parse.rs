//! Parses the texts of settings.

use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use chrono_tz::Tz;

use super::error::ConfigError;
use crate::decode::Accept;

pub(super) fn accept_content(text: Option<&str>) -> Result<Accept, ConfigError> {
    let Some(text) = text else { return Ok(Accept::default()) };
    match Accept::parse(text) {
        Ok(accept) if !accept.is_empty() => Ok(accept),
        _ => Err(ConfigError::new(
            "accept-content",
            format!(
                "{text:?} is not a list of serializers: write some of json, msgpack, yaml, pickle \
                 and auth, or content types, with commas between them"
            ),
        )),
    }
}

/// Refuses a URL whose password contains an unencoded `/`, `?` or `#`. The rest of the password
/// would be taken for the name of a virtual host, a database or a parameter, and would be shown.
pub(super) fn check_login(url: &url::Url) -> Result<(), String> {
    let behind = [Some(url.path()), url.query(), url.fragment()];
    if url.username().is_empty() && behind.into_iter().flatten().any(|part| part.contains('@')) {
        return Err("has an `@` after its host: write `/`, `?` and `#` of a password as %2F, %3F \
                    and %23, and an `@` that belongs there as %40"
            .to_owned());
    }
    Ok(())
}

/// Parses a whole number in a range.
pub(super) fn whole<N: FromStr + PartialOrd + Display>(
    setting: &str,
    text: Option<&str>,
    range: RangeInclusive<N>,
) -> Result<Option<N>, ConfigError> {
    let Some(text) = text else { return Ok(None) };
    match text.trim().parse() {
        Ok(number) if range.contains(&number) => Ok(Some(number)),
        _ => Err(ConfigError::new(
            setting,
            format!(
                "{text:?} is out of range: write a number from {} to {}",
                range.start(),
                range.end()
            ),
        )),
    }
}

pub(super) fn flag(setting: &str, text: Option<&str>, default: bool) -> Result<bool, ConfigError> {
    match text.map(|text| text.trim().to_ascii_lowercase()).as_deref() {
        None => Ok(default),
        Some("false" | "no" | "off" | "0") => Ok(false),
        Some("true" | "yes" | "on" | "1") => Ok(true),
        Some(other) => Err(ConfigError::new(
            setting,
            format!("{other:?} is neither true nor false: write one of them"),
        )),
    }
}

/// RabbitMQ accepts milliseconds as a 32-bit number.
pub(super) fn events_ttl(text: Option<&str>) -> Result<Duration, ConfigError> {
    let Some(text) = text else { return Ok(Duration::from_hours(1)) };
    match humantime::parse_duration(text.trim()) {
        Ok(ttl) if (Duration::from_secs(1)..=Duration::from_hours(24 * 40)).contains(&ttl) => {
            Ok(ttl)
        }
        _ => Err(ConfigError::new(
            "events-ttl",
            format!("{text:?} is not a duration from 1s to 40days: write for example 10m or 1day"),
        )),
    }
}

pub(super) fn size(
    setting: &str,
    text: Option<&str>,
    default: usize,
) -> Result<usize, ConfigError> {
    let Some(text) = text else { return Ok(default) };
    let bytes = text.trim().parse::<bytesize::ByteSize>().ok();
    match bytes.and_then(|size| usize::try_from(size.as_u64()).ok()) {
        Some(bytes) if bytes > 0 => Ok(bytes),
        _ => Err(ConfigError::new(
            setting,
            format!("{text:?} is not a size: write a number of bytes above 0, 512KiB or 4MiB"),
        )),
    }
}

pub(super) fn duration(
    setting: &str,
    text: Option<&str>,
    default: Duration,
) -> Result<Duration, ConfigError> {
    let Some(text) = text else { return Ok(default) };
    match humantime::parse_duration(text.trim()) {
        Ok(duration) if duration <= Duration::from_mins(1) => Ok(duration),
        _ => Err(ConfigError::new(
            setting,
            format!("{text:?} is not a duration up to 60s: write for example 20ms, 1s or 0s"),
        )),
    }
}

pub(super) fn time_zone(text: Option<&str>) -> Result<Tz, ConfigError> {
    let text = text.unwrap_or("UTC");
    text.trim().parse().map_err(|_| {
        ConfigError::new(
            "time-zone",
            format!("{text:?} is not a time zone: write Django's TIME_ZONE, such as Europe/Paris"),
        )
    })
}

pub(super) fn listen(text: Option<&str>) -> Result<Option<SocketAddr>, ConfigError> {
    let Some(text) = text else { return Ok(None) };
    let address = text.trim().parse().map_err(|_| {
        ConfigError::new(
            "listen",
            format!("{text:?} is not an address and a port: write for example 127.0.0.1:9180"),
        )
    })?;
    Ok(Some(address))
}

/// RabbitMQ accepts names of up to 255 bytes, and reserves those that begin with `amq.`.
pub(super) fn name(
    setting: &str,
    name: Option<String>,
    default: &str,
) -> Result<String, ConfigError> {
    let name = name.unwrap_or_else(|| default.to_owned());
    let problem = match name.len() {
        0 => "is empty",
        256.. => "is longer than 255 bytes",
        _ if name.starts_with("amq.") => "begins with `amq.`, which RabbitMQ reserves",
        _ => return Ok(name),
    };
    Err(ConfigError::new(setting, format!("the name {problem}: write for example {default}")))
}
