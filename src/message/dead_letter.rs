//! Dead letters: messages with headers that say why, where and when they could not be stored, and
//! how they are restored for a replay.

use chrono::{DateTime, SecondsFormat, Utc};
use sha2::{Digest, Sha256};

use crate::message::{BROKER_TIME, Headers, Message, Properties, Value};

/// The prefix of Celeriac's own headers.
const PREFIX: &str = "x-celeriac-";

const REASON: &str = "x-celeriac-reason";
const ERROR: &str = "x-celeriac-error";
const QUEUE: &str = "x-celeriac-queue";
const EXCHANGE: &str = "x-celeriac-exchange";
const ROUTING_KEY: &str = "x-celeriac-routing-key";
const TIME: &str = "x-celeriac-time";
const HOST: &str = "x-celeriac-host";
const VERSION: &str = "x-celeriac-version";

/// The headers that RabbitMQ adds to a message that it delivers again or dead-letters.
const BROKERS_OWN: [&str; 5] = [
    "x-death",
    "x-first-death-exchange",
    "x-first-death-queue",
    "x-first-death-reason",
    "x-delivery-count",
];

/// Headers that make RabbitMQ send copies to the queues that they name (sender-selected
/// distribution).
const SENDS_COPIES: [&str; 2] = ["CC", "BCC"];

/// The most bytes of the original headers that a dead letter keeps. Together with Celeriac's
/// headers they must fit into one frame of 128 KiB.
const MAX_HEADERS_BYTES: usize = 96 * 1024;

/// The most bytes of an error's text in a header.
const MAX_ERROR_BYTES: usize = 1_024;

/// Why a message is a dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// A stable short code, one of [`REASON_CODES`].
    pub code: &'static str,
    /// What exactly was wrong, without any value from the message.
    pub error: String,
}

/// The code of a row that the database's tables cannot hold.
pub const UNSTORABLE: &str = "unstorable";

/// The codes of all reasons.
pub const REASON_CODES: [&str; 14] = [
    "not-a-result",
    "not-accepted",
    "too-compressed",
    "too-deep",
    "too-large",
    "too-many-events",
    "too-many-values",
    "undecodable",
    UNSTORABLE,
    "unsupported-compression",
    "unsupported-content-encoding",
    "unsupported-content-type",
    "unsupported-version",
    "unverified",
];

/// Why, where and when a message became a dead letter.
#[derive(Clone, Copy, Debug)]
pub struct Circumstances<'death> {
    /// Why.
    pub reason: &'death Reason,
    /// The queue that it came from.
    pub queue: &'death str,
    /// The name of this host.
    pub host: &'death str,
    /// When.
    pub time: DateTime<Utc>,
}

/// Gives a dead letter its original exchange and routing key, by which `celeriac replay`
/// distinguishes results from events. Any other message is returned unchanged.
#[must_use]
pub fn as_published(message: Message) -> Message {
    let letter = DeadLetter::of(&message);
    Message {
        exchange: letter.exchange.unwrap_or(message.exchange),
        routing_key: letter.routing_key.unwrap_or(message.routing_key),
        ..message
    }
}

/// The properties and headers of a message's dead letter: those of the message, but persistent and
/// without an expiration, and the headers that say why, where and when it became a dead letter.
#[must_use]
pub fn to_dead_letter(
    message: &Message,
    circumstances: &Circumstances<'_>,
) -> (Properties, Headers) {
    let is_too_large = size_bytes(&message.headers) > MAX_HEADERS_BYTES;
    let own = message.headers.iter().filter(|_| !is_too_large);
    let mut headers: Headers = own
        .map(|(name, value)| {
            let is_renamed = SENDS_COPIES.contains(&name.as_str());
            let name = if is_renamed { format!("{PREFIX}{name}") } else { name.clone() };
            (name, value.clone())
        })
        .collect();
    let error_end = circumstances.reason.error.floor_char_boundary(MAX_ERROR_BYTES);
    let time = circumstances.time.to_rfc3339_opts(SecondsFormat::Micros, true);
    let mut set = |name: &str, value: &str| {
        headers.insert(name.to_owned(), Value::Text(value.to_owned()));
    };
    set(REASON, circumstances.reason.code);
    set(ERROR, &circumstances.reason.error[..error_end]);
    set(QUEUE, circumstances.queue);
    set(EXCHANGE, &message.exchange);
    set(ROUTING_KEY, &message.routing_key);
    set(TIME, &time);
    set(HOST, circumstances.host);
    set(VERSION, env!("CARGO_PKG_VERSION"));
    if is_too_large {
        set("x-celeriac-headers", "the message's own headers were too large to be kept");
    }
    if let Some(expiration) = &message.properties.expiration {
        set("x-celeriac-expiration", expiration);
    }
    if let Some(user_id) = &message.properties.user_id {
        set("x-celeriac-user-id", user_id);
    }
    if let Some(mode) = message.properties.delivery_mode {
        headers.insert("x-celeriac-delivery-mode".to_owned(), Value::Int(mode.into()));
    }
    let properties = Properties {
        delivery_mode: Some(2),
        expiration: None,
        // The broker refuses messages with the name of another user.
        user_id: None,
        ..message.properties.clone()
    };
    (properties, headers)
}

/// An upper estimate of the bytes that headers take in a frame.
fn size_bytes(headers: &Headers) -> usize {
    fn value_bytes(value: &Value) -> usize {
        16 + match value {
            Value::Text(text) => text.len(),
            Value::Bytes(bytes) => bytes.len(),
            Value::List(values) => values.iter().map(value_bytes).sum(),
            Value::Table(headers) => size_bytes(headers),
            _ => 0,
        }
    }
    headers.iter().map(|(name, value)| name.len() + value_bytes(value)).sum()
}

/// Restores the original message of a dead letter, and the queue it came from. Returns `None` if
/// the letter does not name its queue.
///
/// The message stays persistent and without an expiration, so that it is not lost on the way, and
/// `CC` and `BCC` keep their prefix. If the message has no broker time, it gets the time when it
/// became a dead letter, which is closer to the original time than the time of the replay.
#[must_use]
pub fn restore(letter: &Message) -> Option<(String, Properties, Headers)> {
    let DeadLetter { queue: Some(queue), time, .. } = DeadLetter::of(letter) else { return None };
    let aside = SENDS_COPIES.map(|name| format!("{PREFIX}{name}"));
    let mut headers = letter.headers.clone();
    headers.retain(|name, _| {
        aside.contains(name) || !(name.starts_with(PREFIX) || BROKERS_OWN.contains(&name.as_str()))
    });
    if let (None, Some(time)) = (letter.broker_time(), time) {
        headers.insert(BROKER_TIME.to_owned(), Value::Int(time.timestamp_millis()));
    }
    let properties = Properties {
        delivery_mode: Some(2),
        expiration: None,
        user_id: None,
        ..letter.properties.clone()
    };
    Some((queue, properties, headers))
}

/// The information in a dead letter.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct DeadLetter {
    /// Computed from the content and the time, so that it does not change.
    pub id: String,
    /// The code of the reason. `delivery-limit` if the broker dead-lettered the message.
    pub reason: String,
    /// What exactly was wrong.
    pub error: Option<String>,
    /// When the message became a dead letter.
    pub time: Option<DateTime<Utc>>,
    /// The queue that the message came from.
    pub queue: Option<String>,
    /// The exchange that the message had been published to.
    pub exchange: Option<String>,
    /// The routing key that it had been published with.
    pub routing_key: Option<String>,
    /// The host on which the daemon ran.
    pub host: Option<String>,
    /// The version of the daemon.
    pub version: Option<String>,
    /// For a result, the id of the task that published it.
    pub correlation_id: Option<String>,
    /// The serializer.
    pub content_type: Option<String>,
    /// The bytes of the body.
    pub size_bytes: usize,
}

impl DeadLetter {
    /// Reads Celeriac's headers, or those of the broker if there are none.
    #[must_use]
    pub fn of(letter: &Message) -> Self {
        let text = |name: &str| match letter.headers.get(name) {
            Some(Value::Text(text)) => Some(text.clone()),
            _ => None,
        };
        let by_broker = broker_death(&letter.headers);
        let of_broker = |name: &str| match by_broker?.get(name)? {
            Value::Text(text) => Some(text.clone()),
            Value::List(values) => match values.first()? {
                Value::Text(text) => Some(text.clone()),
                _ => None,
            },
            _ => None,
        };
        let time = match text(TIME) {
            Some(text) => DateTime::parse_from_rfc3339(&text).ok().map(|time| time.to_utc()),
            None => match by_broker.and_then(|death| death.get("time")) {
                Some(Value::Timestamp(seconds)) => {
                    i64::try_from(*seconds).ok().and_then(|s| DateTime::from_timestamp(s, 0))
                }
                _ => None,
            },
        };
        let reason = text(REASON)
            .or_else(|| of_broker("reason").map(|reason| reason.replace('_', "-")))
            .unwrap_or_else(|| "unknown".to_owned());
        Self {
            id: id(letter, time),
            reason,
            error: text(ERROR),
            time,
            queue: text(QUEUE).or_else(|| of_broker("queue")),
            exchange: text(EXCHANGE).or_else(|| of_broker("exchange")),
            routing_key: text(ROUTING_KEY).or_else(|| of_broker("routing-keys")),
            host: text(HOST),
            version: text(VERSION),
            correlation_id: letter.properties.correlation_id.clone(),
            content_type: letter.properties.content_type.clone(),
            size_bytes: letter.body.len(),
        }
    }
}

/// The first entry of RabbitMQ's header `x-death`, which is the newest.
fn broker_death(headers: &Headers) -> Option<&Headers> {
    match headers.get("x-death")? {
        Value::List(deaths) => match deaths.first()? {
            Value::Table(death) => Some(death),
            _ => None,
        },
        _ => None,
    }
}

/// Ten hexadecimal digits.
fn id(letter: &Message, time: Option<DateTime<Utc>>) -> String {
    let time = time.map_or(0, |time| time.timestamp_micros());
    let digest = Sha256::new()
        .chain_update(time.to_be_bytes())
        .chain_update(letter.properties.correlation_id.as_deref().unwrap_or_default())
        .chain_update([0])
        .chain_update(&letter.body)
        .finalize();
    let number = digest.iter().take(5).fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    format!("{number:010x}")
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;
    use crate::message::DeliveryId;

    fn message() -> Message {
        let text = |text: &str| Value::Text(text.to_owned());
        Message {
            body: b"{}".to_vec(),
            properties: Properties {
                content_type: Some("application/json".to_owned()),
                delivery_mode: Some(1),
                correlation_id: Some("t".to_owned()),
                expiration: Some("1000".to_owned()),
                user_id: Some("shop".to_owned()),
                ..Properties::default()
            },
            headers: [("CC".to_owned(), text("other")), ("stamp".to_owned(), Value::Int(7))].into(),
            exchange: "celeriac".to_owned(),
            routing_key: "celeriac.results".to_owned(),
            redelivered: false,
            delivery_id: DeliveryId::default(),
            received_at: DateTime::UNIX_EPOCH,
        }
    }

    fn dead_letter_of(message: &Message) -> Message {
        let reason = Reason { code: "not-a-result", error: "é".repeat(1_000) };
        let time = DateTime::UNIX_EPOCH + TimeDelta::days(20_000);
        let death = Circumstances { reason: &reason, queue: "celeriac.results", host: "box", time };
        let (properties, headers) = to_dead_letter(message, &death);
        Message { properties, headers, ..message.clone() }
    }

    #[test]
    fn a_dead_letter_says_why_where_and_when() {
        let letter = dead_letter_of(&message());
        let said = DeadLetter::of(&letter);
        assert_eq!(said.reason, "not-a-result");
        assert_eq!(said.error, Some("é".repeat(512)), "cut where it is too long");
        assert_eq!(said.queue.as_deref(), Some("celeriac.results"));
        assert_eq!(said.exchange.as_deref(), Some("celeriac"));
        assert_eq!(said.routing_key.as_deref(), Some("celeriac.results"));
        assert_eq!(said.host.as_deref(), Some("box"));
        assert_eq!(said.version.as_deref(), Some(env!("CARGO_PKG_VERSION")));
        assert_eq!(said.time, Some(DateTime::UNIX_EPOCH + TimeDelta::days(20_000)));
        assert_eq!((said.correlation_id.as_deref(), said.size_bytes), (Some("t"), 2));
        assert_eq!(letter.properties.delivery_mode, Some(2), "it outlives a restart");
        assert_eq!(letter.properties.expiration, None, "it never expires");
        assert_eq!(letter.headers["x-celeriac-expiration"], Value::Text("1000".to_owned()));
        assert_eq!(letter.headers["x-celeriac-user-id"], Value::Text("shop".to_owned()));
        assert_eq!(letter.headers["x-celeriac-delivery-mode"], Value::Int(1));
        assert!(!letter.headers.contains_key("CC") && letter.headers.contains_key("stamp"));
    }

    #[test]
    fn headers_that_are_too_large_are_left_out() {
        let mut message = message();
        message.headers.insert("big".to_owned(), Value::Text("x".repeat(200_000)));
        let letter = dead_letter_of(&message);
        assert!(!letter.headers.contains_key("big") && !letter.headers.contains_key("stamp"));
        assert!(letter.headers.contains_key("x-celeriac-headers"));
        assert!(size_bytes(&letter.headers) < 8_192);
    }

    #[test]
    fn restore_returns_the_queue_and_removes_our_headers() {
        let letter = dead_letter_of(&message());
        let (queue, properties, headers) = restore(&letter).expect("it says where it came from");
        assert_eq!(queue, "celeriac.results");
        assert_eq!(properties.correlation_id.as_deref(), Some("t"));
        assert_eq!((properties.delivery_mode, properties.expiration), (Some(2), None));
        assert_eq!(
            headers.keys().collect::<Vec<_>>(),
            ["stamp", "timestamp_in_ms", "x-celeriac-CC"]
        );
        assert_eq!(headers["timestamp_in_ms"], Value::Int(20_000 * 86_400_000));
    }

    #[test]
    fn the_header_x_death_is_read_if_the_broker_dead_lettered_the_message() {
        let text = |text: &str| Value::Text(text.to_owned());
        let death: Headers = [
            ("queue".to_owned(), text("celeriac.results")),
            ("reason".to_owned(), text("delivery_limit")),
            ("exchange".to_owned(), text("")),
            ("routing-keys".to_owned(), Value::List(vec![text("celeriac.results")])),
            ("time".to_owned(), Value::Timestamp(1_800_000_000)),
        ]
        .into();
        let mut letter = message();
        letter.headers.insert("x-death".to_owned(), Value::List(vec![Value::Table(death)]));
        letter.headers.insert("x-delivery-count".to_owned(), Value::Int(100));
        let said = DeadLetter::of(&letter);
        assert_eq!((said.reason.as_str(), said.error), ("delivery-limit", None));
        assert_eq!(said.queue.as_deref(), Some("celeriac.results"));
        assert_eq!(said.routing_key.as_deref(), Some("celeriac.results"));
        assert_eq!(said.time.map(|time| time.timestamp()), Some(1_800_000_000));
        let (queue, _, headers) = restore(&letter).expect("it says where it came from");
        assert_eq!(queue, "celeriac.results");
        assert!(!headers.contains_key("x-death") && !headers.contains_key("x-delivery-count"));
    }

    #[test]
    fn a_message_without_such_headers_cannot_be_restored() {
        let letter = message();
        assert_eq!(DeadLetter::of(&letter).reason, "unknown");
        assert_eq!(restore(&letter), None);
    }

    #[test]
    fn the_id_depends_on_what_died_and_when() {
        let letter = dead_letter_of(&message());
        let id = |letter: &Message| DeadLetter::of(letter).id;
        assert_eq!((id(&letter).len(), id(&letter)), (10, id(&letter)));
        let other = Message { body: b"[]".to_vec(), ..letter.clone() };
        assert_ne!(id(&other), id(&letter));
        let mut later = letter.clone();
        later.headers.insert(TIME.to_owned(), Value::Text("2026-11-23T00:00:00Z".to_owned()));
        assert_ne!(id(&later), id(&letter));
    }
}
