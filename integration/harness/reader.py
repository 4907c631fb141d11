"""For the programs in `tests/backend/test_waiting.py`, which wait for results in a Django project.

It sets Django up, and does what the daemon does: it writes rows and publishes hints.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import amqp
import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
django.setup()

from celeriac import hints as module  # noqa: E402
from celeriac.hints import Hints  # noqa: E402
from django.db import connection, connections  # noqa: E402
from django_celery_results.models import TaskResult  # noqa: E402
from shop.celery import app  # noqa: E402

from harness.broker import HINTS, RESULTS, Broker  # noqa: E402
from harness.processes import wait_until  # noqa: E402

#: Where hints are published; the app's own URL may lead through a proxy or nowhere.
broker = Broker(os.environ.get("HINTS_URL") or os.environ["CELERY_BROKER_URL"])

#: The records that Celeriac has logged.
logged: list[logging.LogRecord] = []
handler = logging.Handler()
handler.emit = logged.append
handler.addFilter(lambda record: record.name.startswith("celeriac"))
logging.basicConfig(level=logging.INFO, handlers=[handler])


#: Declares the exchange for hints as the daemon does.
declare = broker.declare_hints


def store(task_id: str, result: Any = 42, status: str = "SUCCESS", **columns: Any) -> None:
    values = {
        "status": status,
        "result": json.dumps(result),
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "meta": '{"children": []}',
        **columns,
    }
    TaskResult.objects.update_or_create(task_id=task_id, defaults=values)


def fail(task_id: str) -> None:
    error = {"exc_type": "ValueError", "exc_message": ["no"], "exc_module": "builtins"}
    store(task_id, error, "FAILURE")


def publish(body: bytes) -> None:
    """Publishes a body as the daemon publishes hints."""
    message = amqp.Message(body, content_type="application/json")
    with broker.channel() as channel:
        channel.basic_publish(message, HINTS, f"{RESULTS}.final")


def hint(*task_ids: str) -> None:
    final = [[task_id, "SUCCESS"] for task_id in task_ids]
    publish(json.dumps({"version": 1, "final": final}).encode())


def finish(*task_ids: str) -> None:
    """What the daemon does for each batch."""
    for task_id in task_ids:
        store(task_id, task_id)
    hint(*task_ids)


def hub() -> Hints:
    return Hints.of(app, app.backend.options)


def is_listening() -> bool:
    return hub().is_listening


def waits() -> int:
    return len(hub()._waits)


def listen() -> None:
    """Waits in vain until the process receives hints."""
    while not is_listening():
        try:
            app.AsyncResult("nobody").get(timeout=0.3)
        except app.AsyncResult.TimeoutError:
            pass


def later(action: Callable[..., object], *arguments: Any, seconds: float = 0.2) -> threading.Thread:
    """Calls the action in another thread, some time after a wait has begun."""

    def do() -> None:
        wait_until(lambda: waits(), "a wait", 30, 0.01)
        time.sleep(seconds)
        action(*arguments)
        connections.close_all()

    thread = threading.Thread(target=do)
    thread.start()
    return thread


@contextmanager
def statements() -> Iterator[list[str]]:
    """The statements of this thread."""
    seen: list[str] = []

    def note(execute: Any, sql: str, *arguments: Any) -> Any:
        seen.append(sql)
        return execute(sql, *arguments)

    with connection.execute_wrapper(note):
        yield seen


class Clock:
    def __enter__(self) -> Clock:
        self.started = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.monotonic() - self.started


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


__all__ = [name for name in dir() if not name.startswith("_")]
