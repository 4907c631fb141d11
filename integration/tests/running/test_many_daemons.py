"""Several daemons and lanes on one queue, killed again and again, store the rows of a single
daemon.

A worker under load publishes results and events to exchanges. For each database there are queues
that two daemons share, which are killed repeatedly, and queues of one daemon that is never killed.
All messages contain their times, so every column of every row must be the same.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness import events
from harness.broker import DEAD, EVENT_EXCHANGE, EVENTS, EXCHANGE, QUEUES, RESULTS, Broker
from harness.daemon import Daemon
from harness.database import ENGINES, Database, Databases
from harness.pipeline import Pipeline
from harness.processes import wait_until
from harness.project import Project
from harness.services import RabbitMQ
from harness.stream import utc

TASKS = 800
FINAL = {"SUCCESS", "FAILURE"}

#: Batches so small that the messages of a task are spread over all lanes.
OPTIONS = ("--events", "--events-pending", "--events-arguments", "--max-rows", "10")


@dataclass
class Side:
    """The daemons of one database, with their own queues."""

    name: str
    broker: Broker
    database: Database
    daemons: list[Daemon]

    @property
    def queues(self) -> tuple[str, str]:
        return f"{RESULTS}.{self.name}", f"{EVENTS}.{self.name}"

    def prepare(self) -> None:
        for queue, kind, exchange, key in zip(
            self.queues, (RESULTS, EVENTS), (EXCHANGE, EVENT_EXCHANGE), (RESULTS, "task.#")
        ):
            self.broker.declare(queue, QUEUES[kind])
            self.broker.bind(queue, exchange, key)

    def is_drained(self) -> bool:
        return all(self.broker.depth(queue) == 0 for queue in self.queues)

    def finish(self) -> None:
        """Stops the daemons; messages that they have not stored would be back in the queue."""
        wait_until(self.is_drained, f"empty queues of {self.name}", 60)
        for daemon in self.daemons:
            assert daemon.stop() == 0, daemon.last_words()
        assert self.is_drained()

    def rows(self) -> dict[str, dict[str, Any]]:
        rows = self.database.rows()
        for row in rows.values():
            for name in ("date_created", "date_started", "date_done"):
                row[name] = row[name] and utc(row[name])
        return rows


@pytest.mark.full
def test_killed_daemons_write_the_rows_of_one(
    python: dict[str, Path],
    rabbitmq: RabbitMQ,
    databases: Databases,
    make_daemon: Callable[..., Daemon],
    logs: Path,
) -> None:
    broker = Broker(rabbitmq.create())

    def side(name: str, engine: str, daemons: int, lanes: int) -> Side:
        made = Side(name, broker, databases.migrated(engine), [])
        results_queue, events_queue = made.queues
        queues = ("--results-queue", results_queue, "--events-queue", events_queue)
        for _ in range(daemons):
            options = (*OPTIONS, *queues, "--lanes", str(lanes), "--prefetch", "40")
            made.daemons.append(make_daemon(broker.url, made.database.url, *options))
        return made

    # GIVEN for each database two daemons, with four lanes where possible, and one more daemon
    calm = side("calm", "postgresql", 1, 1)
    disturbed = [side(engine, engine, 2, 1 if engine == "sqlite" else 4) for engine in ENGINES]
    settings = {"RESULT_BACKEND": "celeriac://", "TASK_SEND_SENT_EVENT": "on"}
    project = Project(python["celery-5.7"], calm.database.url, broker.url, settings)
    with broker.channel() as channel:
        channel.exchange_declare(EXCHANGE, "direct", durable=True, auto_delete=False)
        channel.exchange_declare(EVENT_EXCHANGE, "topic", durable=True, auto_delete=False)
    for one in (calm, *disturbed):
        one.prepare()
        for daemon in one.daemons:
            daemon.start()
    calm.daemons[0].wait_for_consuming(2)
    chance = random.Random(7)
    with ExitStack() as stack, ThreadPoolExecutor(1) as publisher:
        # GIVEN a worker that sends events and stores STARTED
        options = ("-E", "--concurrency", "3", "--loglevel", "ERROR")
        worker = project.worker(logs / "load.log", *options)
        stack.callback(worker.kill)
        worker.start()
        published = publisher.submit(project.manage, "load", str(TASKS))

        def is_over() -> bool:
            if not published.done():
                return False
            statuses = calm.database.statuses()
            return all(statuses.get(task_id) in FINAL for task_id in json.loads(published.result()))

        # WHEN daemons are killed at random while it is working
        kills = 0

        def kill_one() -> bool:
            nonlocal kills
            if over := is_over():
                return over
            daemon = chance.choice(chance.choice(disturbed).daemons)
            daemon.kill()
            daemon.start()
            kills += 1
            return False

        worker.wait_while_alive(lambda: calm.database.count() > 50, "first rows", 60)
        wait_until(kill_one, "all tasks to end", 300, 0.4)
        worker.stop()
    assert kills >= 5
    events.wait_until_handled(
        Pipeline(broker, calm.database, calm.daemons[0]),
        results_queue=calm.queues[0],
        events_queue=calm.queues[1],
    )
    for one in disturbed:
        one.finish()
    # THEN every row is the same in every column
    wanted = calm.rows()
    assert len(wanted) == TASKS
    for one in disturbed:
        rows = one.rows()
        assert rows.keys() == wanted.keys(), one.name
        different = {
            task_id: {
                name: (value, rows[task_id][name])
                for name, value in row.items()
                if value != rows[task_id][name]
            }
            for task_id, row in wanted.items()
            if row != rows[task_id]
        }
        assert not different, f"{one.name}: {len(different)} differ: {list(different.items())[:5]}"
    assert broker.depth(DEAD) == 0
