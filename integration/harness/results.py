"""Result messages in the formats of `rpc://` in Celery 5.7 and of `celeriac://`."""

from __future__ import annotations

import json
import uuid
from typing import Any

from harness.broker import Message


def new_id() -> str:
    return str(uuid.uuid4())


def properties(task_id: str) -> dict[str, Any]:
    return {
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "correlation_id": task_id,
        "delivery_mode": 2,
        "priority": 0,
    }


def body(task_id: str, **fields: Any) -> dict[str, Any]:
    """The members in Celery's order; `fields` replaces or adds members."""
    return {
        "status": "SUCCESS",
        "result": 42,
        "traceback": None,
        "children": [],
        "date_done": "2026-03-04T05:06:07.891011+00:00",
        "name": "shop.zoo.echo",
        "args": [1, "two"],
        "kwargs": {"three": 3},
        "worker": "worker@test",
        "retries": 0,
        "queue": "celery",
        **fields,
        "task_id": task_id,
    }


#: The content types of the messages about chords (`docs/message-format.md`).
CHORD = "application/vnd.celeriac.chord+json"
CHORD_MEMBER = "application/vnd.celeriac.chord-member+json"


def result(task_id: str, **fields: Any) -> Message:
    return Message(json.dumps(body(task_id, **fields)).encode(), properties(task_id))


def raw(task_id: str, data: bytes, **changes: Any) -> Message:
    """A message with any body and the properties of a result, some of them replaced by `changes`.
    """
    return Message(data, properties(task_id) | changes)


def columns(task_id: str, /, **fields: Any) -> dict[str, Any]:
    """The body of a task's state; see `docs/message-format.md`."""
    return {
        "version": 1,
        "task_id": task_id,
        "status": "SUCCESS",
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "result": "42",
        "meta": '{"children": []}',
        "traceback": None,
        "task_name": "shop.zoo.echo",
        "task_args": "\"(1, 'two')\"",
        "task_kwargs": "\"{'three': 3}\"",
        "worker": "worker@test",
        "periodic_task_name": None,
        "date_done": "2026-03-04T05:06:07.891011+00:00",
        **fields,
    }


def group_columns(group_id: str, /, **fields: Any) -> dict[str, Any]:
    """The body of a saved group."""
    return {
        "version": 1,
        "group_id": group_id,
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "result": f'[["{group_id}", null], []]',
        "date_done": "2026-03-04T05:06:07.891011+00:00",
        **fields,
    }


def row(body: dict[str, Any]) -> Message:
    """A message of `celeriac://` with the columns of a task or a group."""
    kind, key = ("task", "task_id") if "task_id" in body else ("group", "group_id")
    content_type = f"application/vnd.celeriac.{kind}-result+json"
    correlation_id = str(body[key] or "none")
    changes = {"content_type": content_type, "correlation_id": correlation_id}
    return raw(correlation_id, json.dumps(body).encode(), **changes)
