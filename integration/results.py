"""Result messages made by hand, as a Celery 5.7 worker publishes them."""

from __future__ import annotations

import json
import uuid
from typing import Any

from broker import Message


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
    """The members in Celery's order; `fields` change them or add to them."""
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


def result(task_id: str, **fields: Any) -> Message:
    return Message(json.dumps(body(task_id, **fields)).encode(), properties(task_id))


def raw(task_id: str, data: bytes, **changes: Any) -> Message:
    """Any bytes under the properties of an ordinary result, which `changes` may alter."""
    return Message(data, properties(task_id) | changes)
