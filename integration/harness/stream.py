"""A stream of results that is published while faults occur, and the outcome that it must have."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import random
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import amqp

from harness import results
from harness.broker import DEAD, RESULTS, Broker, Message, connect, open_channel
from harness.database import TABLE, Database
from harness.pipeline import Pipeline
from harness.processes import wait_until

#: The `date_done` of the first task; each later one is a second later.
FIRST = datetime.datetime(2026, 3, 4, 5, 6, 7, 1)

#: How many tasks run at the same time.
CHUNK = 20


@dataclass(frozen=True)
class Outcome:
    status: str
    result: str
    traceback: str | None
    date_done: datetime.datetime


class Stream:
    """Publishes several messages per task from a thread, confirmed, as fast as the broker allows.

    A stream with a number of tasks ends by itself; one without ends with the `with` block, so that
    everything in the block happens under load. Messages of neighbouring tasks are shuffled, so a
    task's STARTED can come after its final state, and some messages come twice. Messages that the
    broker does not confirm are published again. The same seed gives the same stream.
    """

    def __init__(
        self, broker: Broker, tasks: int | None = None, *, bad_every: int = 0, seed: int = 1
    ) -> None:
        self._broker = broker
        self._tasks = tasks
        self._bad_every = bad_every
        self._random = random.Random(seed)
        self._left = threading.Event()
        self._failed = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._error: BaseException | None = None
        self._connection: amqp.Connection | None = None
        self._channel: amqp.Channel | None = None
        self.published = 0
        #: The rows that must be stored in the end.
        self.outcomes: dict[str, Outcome] = {}
        #: The correlation ids of messages that must become dead letters.
        self.bad: set[str] = set()

    @property
    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def __enter__(self) -> Stream:
        if not self._broker.exists(RESULTS):
            self._broker.declare(RESULTS)
        self._thread.start()
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        self._left.set()
        if error_type is not None:
            self._failed.set()
        self._thread.join()
        if self._error and error_type is None:
            raise self._error

    def wait(self) -> None:
        """Waits until all tasks are published."""
        wait_until(lambda: self.is_over, "the stream to end", 120)

    def publish(self) -> Stream:
        """Publishes the whole stream."""
        with self:
            self.wait()
        return self

    def check(self, pipeline: Pipeline, timeout_seconds: float = 60) -> None:
        """Checks all rows and dead letters, and that the queue is empty."""
        wanted = {task_id: outcome.status for task_id, outcome in self.outcomes.items()}
        pipeline.wait_for_rows(wanted, timeout_seconds)
        wait_until(lambda: pipeline.broker.depth(RESULTS) == 0, "the queue to be empty", 30)
        exit_code = pipeline.daemon.stop()
        assert exit_code == 0, f"the daemon ended with {exit_code}"
        # Messages that the daemon has not acknowledged would be back in the queue now.
        assert pipeline.broker.depth(RESULTS) == 0
        rows = outcomes(pipeline.database)
        different = {
            task_id: (outcome, rows.get(task_id))
            for task_id, outcome in self.outcomes.items()
            if rows.get(task_id) != outcome
        }
        assert not different, f"{len(different)} differ: {list(different.items())[:3]}"
        assert set(rows) == set(self.outcomes)
        dead = pipeline.broker.take(DEAD)
        assert {letter.properties.get("correlation_id") for letter in dead} == self.bad

    def _task(self, number: int) -> list[Message]:
        task_id = str(uuid.UUID(int=self._random.getrandbits(128), version=4))
        if self._bad_every and number % self._bad_every == 0:
            self.bad.add(task_id)
            return [results.raw(task_id, b'{"task_id": "' + task_id.encode())]
        done = FIRST + datetime.timedelta(
            seconds=number, microseconds=self._random.randrange(10**6)
        )
        common = {"args": [number], "date_done": f"{done.isoformat(timespec='microseconds')}+00:00"}
        unfinished = common | {"date_done": None}
        messages = [
            results.result(task_id, status="STARTED", result={"pid": number}, **unfinished),
            results.result(task_id, status="RETRY", traceback="Retry", result=None, **unfinished),
        ]
        if self._random.random() < 0.2:
            failure = {"exc_type": "ValueError", "exc_message": [number], "exc_module": "builtins"}
            end = {"status": "FAILURE", "result": failure, "traceback": f"Traceback {number}"}
        else:
            value = {"number": number, "text": "x" * self._random.randrange(500)}
            end = {"status": "SUCCESS", "result": value, "traceback": None}
        self.outcomes[task_id] = Outcome(
            end["status"], json.dumps(end["result"]), end["traceback"], done
        )
        final = results.result(task_id, **common, **end)
        messages = self._random.sample(messages, self._random.choice((0, 1, 1, 2)))
        return [*messages, final, *([final] if self._random.random() < 0.1 else [])]

    def _chunks(self) -> Iterator[list[Message]]:
        """The messages of a few tasks at a time, shuffled."""
        for first in itertools.count(0, CHUNK):
            numbers = range(first, min(first + CHUNK, self._tasks or first + CHUNK))
            if not numbers or (self._tasks is None and self._left.is_set()):
                return
            messages = [message for number in numbers for message in self._task(number)]
            self._random.shuffle(messages)
            yield messages

    def _run(self) -> None:
        try:
            for chunk in self._chunks():
                self._publish(chunk)
        except BaseException as error:  # raised again in `__exit__`
            self._error = error
        finally:
            self._disconnect()

    def _publish(self, messages: list[Message]) -> None:
        """Publishes messages, and connects again if the broker has closed the connection."""
        for message in messages:
            while not self._failed.is_set():
                try:
                    self._channel_or_connect().basic_publish(message.to_amqp(), routing_key=RESULTS)
                except (OSError, amqp.AMQPError):
                    self._disconnect()
                    time.sleep(0.1)
                else:
                    self.published += 1
                    break

    def _channel_or_connect(self) -> amqp.Channel:
        if self._connection is None:
            self._connection = connect(self._broker.url)
            self._channel = open_channel(self._connection)
        return self._channel

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(OSError, amqp.AMQPError):
                connection.close()


def outcomes(database: Database) -> dict[str, Outcome]:
    """All rows, with naive times in UTC."""
    rows = database.query(f"select task_id, status, result, traceback, date_done from {TABLE}")
    return {task_id: Outcome(*values, utc(date_done)) for task_id, *values, date_done in rows}


def utc(value: Any) -> datetime.datetime:
    if isinstance(value, str):
        value = datetime.datetime.fromisoformat(value)
    return value.astimezone(datetime.timezone.utc).replace(tzinfo=None) if value.tzinfo else value
