"""The messages that `docs/message-format.md` describes."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import Any

import amqp
from kombu.utils.encoding import bytes_to_str

TASK_RESULT = "application/vnd.celeriac.task-result+json"
GROUP_RESULT = "application/vnd.celeriac.group-result+json"
CHORD = "application/vnd.celeriac.chord+json"
CHORD_MEMBER = "application/vnd.celeriac.chord-member+json"
VERSION = 1

#: The columns of a task's state in the order of `docs/message-format.md`, without `task_id` and
#: `date_done`.
TASK_COLUMNS = (
    "status",
    "content_type",
    "content_encoding",
    "result",
    "meta",
    "traceback",
    "task_name",
    "task_args",
    "task_kwargs",
    "worker",
    "periodic_task_name",
)


def now() -> str:
    """The current time in the format of the messages: in UTC, with microseconds."""
    return datetime.now(timezone.utc).isoformat(timespec="microseconds")


def text(value: Any) -> str | None:
    """Converts a value as Django's CharField and TextField do (`to_python`, Django 5.2).

    Bytes, which a serializer may return, are decoded: Django would store their Python repr.
    """
    if value is None or isinstance(value, str):
        return value
    return bytes_to_str(value) if isinstance(value, bytes) else str(value)


def task_result(
    task_id: Any,
    date_done: str,
    columns: dict[str, Any],
    *,
    date_started: str | None = None,
    queue: Any = None,
    retries: int | None = None,
    is_chord_member: bool | None = None,
    added: list[str] | None = None,
) -> amqp.Message:
    """One state of a task; `columns` has a value for each of `TASK_COLUMNS`.

    Some versions of Celery store the failure of a chord body that has no id (5.4). The table
    requires an id, so this raises an error where django-celery-results would raise its own.
    """
    if task_id is None or columns["status"] is None:
        raise ValueError("a result without a task id or a status cannot be stored")
    body: dict[str, Any] = {"version": VERSION, "task_id": text(task_id)}
    for name in TASK_COLUMNS:
        body[name] = text(columns[name])
    body["date_done"] = date_done
    optional = {
        "date_started": date_started,
        "queue": text(queue),
        "retries": retries,
        "is_chord_member": is_chord_member,
        "added": added,
    }
    body.update((name, value) for name, value in optional.items() if value is not None)
    return _message(TASK_RESULT, body["task_id"], body)


def group_result(
    group_id: Any, date_done: str, content_type: str, content_encoding: str, result: Any
) -> amqp.Message:
    """A saved group."""
    body = {
        "version": VERSION,
        "group_id": text(group_id),
        "content_type": content_type,
        "content_encoding": content_encoding,
        "result": text(result),
        "date_done": date_done,
    }
    return _message(GROUP_RESULT, body["group_id"], body)


def chord(
    group_id: str,
    unlock_id: str,
    members: list[str],
    expires_seconds: float | None,
    unlock: dict[str, Any],
) -> amqp.Message | None:
    """A chord that begins. `unlock` is the message for the task `celery.chord_unlock`; None if its
    headers cannot be written as JSON."""
    applied_at = datetime.now(timezone.utc)
    body = {
        "version": VERSION,
        "group_id": group_id,
        "unlock_id": unlock_id,
        "members": members,
        "applied_at": applied_at.isoformat(timespec="microseconds"),
        "unlock": unlock,
    }
    if expires_seconds is not None:
        expires_at = applied_at + timedelta(seconds=expires_seconds)
        body["expires_at"] = expires_at.isoformat(timespec="microseconds")
    try:
        return _message(CHORD, group_id, body)
    except (TypeError, ValueError):
        return None


def chord_member(
    task_id: Any,
    *,
    added: list[str] | None = None,
    value: tuple[str, str, str, Any] | None = None,
) -> amqp.Message:
    """A member of chords that has added tasks, or whose result is not stored. `value` is its state,
    content type, content encoding and encoded result."""
    body: dict[str, Any] = {"version": VERSION, "task_id": text(task_id)}
    if added:
        body["added"] = added
    if value:
        body["value"] = [*value[:3], text(value[3])]
    return _message(CHORD_MEMBER, body["task_id"], body)


def _message(content_type: str, correlation_id: str | None, body: dict[str, Any]) -> amqp.Message:
    # AMQP allows at most 255 bytes here. The daemon reads the id from the body.
    shown = (correlation_id or "").encode(errors="replace")[:255].decode(errors="ignore")
    # JSON in ASCII can also encode a lone surrogate in a traceback.
    return amqp.Message(
        json.dumps(body).encode("ascii"),
        content_type=content_type,
        content_encoding="utf-8",
        delivery_mode=2,
        correlation_id=shown,
    )
