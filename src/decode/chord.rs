//! The messages about chords of the backend `celeriac://`, in the format that
//! `docs/message-format.md` describes. `python/celeriac/chords.py` writes them.

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::decode::DecodeError;
use crate::message::{Message, Value, capture};
use crate::row::chord::{Chord, ChordNews, MAX_MEMBERS};
use crate::row::state::State;

/// The content type of a message about a chord that begins.
pub(super) const CHORD: &str = "application/vnd.celeriac.chord+json";

/// The content type of a message about a member of chords.
pub(super) const MEMBER: &str = "application/vnd.celeriac.chord-member+json";

/// The only task that the daemon sends (`celery/app/builtins.py`, 5.7.0).
const UNLOCK: &str = "celery.chord_unlock";

/// The name of the task message that a worker sends to the daemon after [`UNLOCK`], because it is
/// linked to it.
const UNLOCKED: &str = "celeriac.chord_unlocked";

/// The most characters of an id.
const MAX_ID_CHARS: usize = 255;

#[derive(Deserialize)]
struct ChordBody {
    version: u32,
    group_id: String,
    unlock_id: String,
    members: Vec<String>,
    applied_at: DateTime<Utc>,
    #[serde(default)]
    expires_at: Option<DateTime<Utc>>,
    unlock: serde_json::Value,
}

#[derive(Deserialize)]
struct MemberBody {
    version: u32,
    task_id: String,
    #[serde(default)]
    added: Vec<String>,
    #[serde(default)]
    value: Option<(String, String, String, Option<String>)>,
}

/// Reads a message about a chord that begins.
pub(super) fn chord(body: &[u8], now: DateTime<Utc>) -> Result<ChordNews, DecodeError> {
    let body: ChordBody = read(body)?;
    check_version(body.version)?;
    if body.members.is_empty() || body.members.len() > MAX_MEMBERS {
        return Err(DecodeError::wrong_member("members", "empty or too many"));
    }
    for id in body.members.iter().chain([&body.group_id, &body.unlock_id]) {
        check_id(id)?;
    }
    let unlock = body.unlock.to_string();
    let message = capture::read(&unlock, now, 0)
        .map_err(|_| DecodeError::wrong_member("unlock", "not a message of a capture"))?;
    if text(&message, "task") != Some(UNLOCK) || text(&message, "id") != Some(&body.unlock_id) {
        return Err(DecodeError::wrong_member(
            "unlock",
            "not the message celery.chord_unlock with this unlock_id",
        ));
    }
    Ok(ChordNews::Applied(Chord {
        group_id: body.group_id,
        unlock_id: body.unlock_id,
        members: body.members,
        applied_at: body.applied_at,
        expires_at: body.expires_at,
        unlock,
    }))
}

/// Reads a message about a member of chords.
pub(super) fn member(body: &[u8]) -> Result<Vec<ChordNews>, DecodeError> {
    let body: MemberBody = read(body)?;
    check_version(body.version)?;
    check_id(&body.task_id)?;
    let mut news = Vec::from_iter(added(&body.task_id, body.added)?);
    if let Some(value) = body.value {
        if !State::from(value.0.as_str()).is_ready() {
            return Err(DecodeError::wrong_member("value", "of a state that is not final"));
        }
        let value = serde_json::to_string(&value).unwrap_or_default();
        news.push(ChordNews::Value { task_id: body.task_id, value });
    }
    Ok(news)
}

/// The tasks that a member has added, if there are any.
pub(super) fn added(task_id: &str, added: Vec<String>) -> Result<Option<ChordNews>, DecodeError> {
    if added.len() > MAX_MEMBERS {
        return Err(DecodeError::wrong_member("added", "too many"));
    }
    for id in &added {
        check_id(id)?;
    }
    let has_any = !added.is_empty();
    Ok(has_any.then(|| ChordNews::Added { task_id: task_id.to_owned(), added }))
}

/// What a task message tells that a worker sends after it has processed an unlock message. Only the
/// headers are read, because the body is in the serializer of the app. `None` for other messages.
pub(super) fn unlocked(message: &Message) -> Option<ChordNews> {
    if text(message, "task") != Some(UNLOCKED) {
        return None;
    }
    let (group_id, unlock_id) = text(message, "id")?.rsplit_once('/')?;
    Some(ChordNews::Unlocked { group_id: group_id.to_owned(), unlock_id: unlock_id.to_owned() })
}

fn text<'message>(message: &'message Message, header: &str) -> Option<&'message str> {
    match message.headers.get(header) {
        Some(Value::Text(text)) => Some(text),
        _ => None,
    }
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, DecodeError> {
    // The text of the error may quote a value, so it is not passed on.
    serde_json::from_slice(body).map_err(|_| {
        DecodeError::wrong_member("body", "not JSON, or a member is missing or of another type")
    })
}

fn check_version(version: u32) -> Result<(), DecodeError> {
    match version {
        1 => Ok(()),
        other => Err(DecodeError::UnsupportedVersion(other.to_string())),
    }
}

fn check_id(id: &str) -> Result<(), DecodeError> {
    let is_good = !id.is_empty() && id.chars().count() <= MAX_ID_CHARS && !id.contains('\0');
    is_good.then_some(()).ok_or_else(|| DecodeError::wrong_member("an id", "empty or too long"))
}
