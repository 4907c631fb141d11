"""Task events in the format of Celery 5.7's event dispatcher."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Iterable
from typing import Any

from harness import results
from harness.broker import EVENTS, RESULTS, Message
from harness.pipeline import STANDARD_SECONDS, Pipeline

#: The default time of the events: 2024-06-10T06:15:50.273175+00:00.
TIMESTAMP = 1718000150.273175


def time(timestamp: float) -> datetime.datetime:
    """A timestamp as a naive time in UTC, in the form of `stream.utc`."""
    # Halves are common in floats of this size, and are rounded up.
    since = datetime.timedelta(microseconds=math.floor(timestamp * 1e6 + 0.5))
    return datetime.datetime(1970, 1, 1) + since


def event(kind: str, task_id: object, **fields: Any) -> dict[str, Any]:
    """One event. `fields` replaces or adds members; the value `...` removes one."""
    members = {
        "hostname": "worker@test",
        "utcoffset": 0.0,
        "pid": 7,
        "clock": 3,
        "uuid": task_id,
        "timestamp": TIMESTAMP,
        "type": kind,
        **fields,
    }
    return {name: value for name, value in members.items() if value is not ...}


def sent(task_id: str, **fields: Any) -> dict[str, Any]:
    """The event `task-sent` of a client."""
    members = {
        "type": "task-sent",
        "queue": "celery",
        "exchange": "",
        "routing_key": "celery",
        "hostname": "gen7@client",
    }
    return received(task_id, **members | fields)


def received(task_id: str, **fields: Any) -> dict[str, Any]:
    """The event `task-received` of a worker."""
    members = {
        "name": "shop.zoo.echo",
        "args": "(1, 'two')",
        "kwargs": "{'three': 3}",
        "root_id": task_id,
        "parent_id": None,
        "retries": 0,
        "eta": None,
        "expires": None,
    }
    return event("task-received", task_id, **members | fields)


def raw(data: bytes, **changes: Any) -> Message:
    """A message with any body and the properties of an event, some of them replaced by `changes`.
    """
    properties = {
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "delivery_mode": 1,
        "priority": 0,
    }
    return Message(data, properties | changes, {"hostname": "worker@test"})


def message(event: object) -> Message:
    """A message with one event, or with a list of events as a worker sends it."""
    return raw(json.dumps(event).encode())


def wait_until_handled(
    pipeline: Pipeline,
    timeout_seconds: float = STANDARD_SECONDS,
    *,
    results_queue: str = RESULTS,
    events_queue: str | None = EVENTS,
) -> None:
    """Waits until all results and events published so far are handled, and deletes its own rows."""
    result_id, event_id = results.new_id(), results.new_id()
    wanted = {result_id: "SUCCESS"}
    pipeline.broker.publish(results.result(result_id), queue=results_queue)
    if events_queue:
        wanted[event_id] = "RECEIVED"
        pipeline.broker.publish(message(received(event_id)), queue=events_queue)
    pipeline.wait_for_rows(wanted, timeout_seconds)
    for task_id in wanted:
        pipeline.database.forget(task_id)


def split(events: Iterable[Any], size: int) -> list[list[Any]]:
    """Splits events into lists of at most this size."""
    rest = list(events)
    return [rest[start : start + size] for start in range(0, len(rest), size)]
