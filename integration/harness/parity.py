"""Two runs of the zoo under the same ids, and the rules by which their rows are compared."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import results
from harness.broker import DEAD, RESULTS, Broker
from harness.daemon import Daemon
from harness.database import Database
from harness.processes import Failure, Process
from harness.project import Project

#: A case's task ids, and the status that each row is to end with, as the zoo tells it.
Ends = dict[str, str | None]

FINAL = ("REVOKED", "FAILURE", "SUCCESS")

#: How long a run may take, and how long nothing may happen for it to be over.
RUN_SECONDS = 600
QUIET_SECONDS = 1.5
STUCK_SECONDS = 120


#: Of a worker: some of them sleep.
PROCESSES = 4


def is_settled(wanted: str | None, status: str | None) -> bool:
    """Whether a row has the status that `shop/zoo/cases.py` has words for."""
    if wanted in (None, "MAYBE"):
        return True
    if wanted == "SEEN":
        return status is not None
    if wanted == "ENDS":
        return status in FINAL
    return status == wanted


@dataclass
class Side:
    """A worker of one project, and the database where its rows come to be."""

    project: Project
    database: Database
    log: Path

    def play(self, run: str, *options: str) -> dict[str, Ends]:
        """Publishes the zoo, waits until its rows are there and at rest, and stops the worker."""
        worker = self.project.worker(
            self.log, "--queues", "celery,other", "--concurrency", str(PROCESSES)
        )
        try:
            worker.start()
            worker.wait_for("ready.")
            cases: dict[str, Ends] = json.loads(self.project.manage("zoo", run, *options))
            self._wait_for(worker, cases)
            worker.stop()
        finally:
            worker.kill()
        return cases

    def _wait_for(self, worker: Process, cases: Mapping[str, Ends]) -> None:
        seen: dict[str, str] = {}
        since = time.monotonic()

        def missing() -> list[str]:
            return [
                f"{case}: {task_id} is {seen.get(task_id)} instead of {wanted}"
                for case, ends in cases.items()
                for task_id, wanted in ends.items()
                if not is_settled(wanted, seen.get(task_id))
            ]

        def is_over() -> bool:
            nonlocal seen, since
            now = self.database.statuses()
            if now != seen:
                seen, since = now, time.monotonic()
            if time.monotonic() - since > STUCK_SECONDS:
                raise Failure("nothing has happened any more")
            return time.monotonic() - since > QUIET_SECONDS and not missing()

        try:
            worker.wait_while_alive(is_over, "end of the zoo", RUN_SECONDS)
        except Failure as failure:
            lacking = missing()
            failure.add_note(f"{len(lacking)} rows are missing or other:")
            failure.add_note("\n".join(lacking[:20]))
            raise


class Fan:
    """A broker whose results reach the daemons of several databases, and are kept to be read.

    Workers publish to an exchange, to which more queues than one can be bound.
    """

    TAP = "tap"

    def __init__(self, broker: Broker, databases: Mapping[str, Database], logs: Path) -> None:
        self.broker = broker
        self.databases = databases
        # The first has the queue that the workers know of.
        self.queues = {
            engine: f"{RESULTS}.{engine}" if number else RESULTS
            for number, engine in enumerate(databases)
        }
        self.daemons = {
            engine: Daemon(
                logs / f"{engine}.log",
                broker.url,
                database.url,
                "--results-queue",
                self.queues[engine],
                "--accept-content",
                "json,msgpack,yaml,pickle",
            )
            for engine, database in databases.items()
        }

    def start(self) -> None:
        for daemon in self.daemons.values():
            daemon.start_consuming()
        self.broker.declare(self.TAP, {})
        for queue in (*self.queues.values(), self.TAP):
            self.broker.bind(queue, "celeriac", RESULTS)

    def wait_until_stored(self) -> None:
        """Waits until everything published before now is stored, by one more that comes last."""
        last = results.new_id()
        for engine, queue in self.queues.items():
            self.broker.publish(results.result(last), queue=queue)
            stored = self.databases[engine]
            self.daemons[engine].wait_while_alive(
                lambda stored=stored: last in stored.statuses(), f"row of {last}", 30
            )
            stored.forget(last)

    def sent(self) -> dict[str, list[dict[str, Any]]]:
        """What the workers have published, by the id of the task or the group."""
        sent: dict[str, list[dict[str, Any]]] = {}
        for message in self.broker.take(self.TAP):
            body = json.loads(message.body)
            sent.setdefault(body.get("task_id") or body["group_id"], []).append(body)
        return sent

    def dead(self) -> list[tuple[object, bytes]]:
        """What could not be stored, with the reasons."""
        return [(message.headers, message.body[:500]) for message in self.broker.take(DEAD)]

    def kill(self) -> None:
        for daemon in self.daemons.values():
            daemon.kill()


@dataclass
class Parity:
    """What became of one run: the cases, the true tables, ours by engine, and the messages."""

    cases: dict[str, Ends]
    truth: dict[str, Any]
    ours: dict[str, dict[str, Any]]
    sent: dict[str, list[dict[str, Any]]]
    dead: list[tuple[object, bytes]]


def play(run: str, truth: Side, ours: Side, fan: Fan, *options: str) -> Parity:
    """Both sides at the same time, then all tables."""
    try:
        fan.start()
        with ThreadPoolExecutor() as both:
            cases, same_cases = both.map(lambda side: side.play(run, *options), (truth, ours))
        assert cases == same_cases
        fan.wait_until_stored()
        projects = {
            engine: Project(
                ours.project.python, database.url, fan.broker.url, ours.project.settings
            )
            for engine, database in fan.databases.items()
        }
        with ThreadPoolExecutor() as readers:
            true_tables, *our_tables = readers.map(
                Project.tables, (truth.project, *projects.values())
            )
        return Parity(
            cases, true_tables, dict(zip(projects, our_tables, strict=True)), fan.sent(), fan.dead()
        )
    except Failure as failure:
        if dead := fan.dead():
            failure.add_note(f"{len(dead)} dead letters: {dead[:3]}")
        for engine, daemon in fan.daemons.items():
            failure.add_note(f"the daemon of {engine} had to say:\n{daemon.last_words(5)}")
        raise
    finally:
        fan.kill()


# Rules ---------------------------------------------------------------------------------------

#: In what two runs of the same tasks differ, whoever stores them.
CHANGING = (
    # Processes, and the jobs of a pool
    (re.compile(r"(\bpid['\"]?: )\d+"), r"\1PID"),
    (re.compile(r"(Job: )\d+"), r"\1JOB"),
    # How deep a stack is that calls a task
    (re.compile(r"(\[Previous line repeated )\d+"), r"\1N"),
    # Objects by their address
    (re.compile(r"\b0x[0-9a-f]{6,}"), "ADDRESS"),
)

UUID = re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b")

#: One frame of a traceback, with the lines of code and of marks below it.
FRAME = re.compile(r'^(?P<indent> +)File "(?P<file>[^"]*)", line .*\n(?:(?P=indent) .*\n)*', re.M)

#: The frames of a result backend, between those of Celery that call it and those of the encoder.
BACKENDS = ("/django_celery_results/", "/celeriac/")


@dataclass
class Rules:
    """Compares texts of two runs; `named` are the ids that the zoo has chosen."""

    named: frozenset[str] = field(default_factory=frozenset)

    def normalised(self, text: str | None) -> str | None:
        if text is None:
            return None
        for pattern, replacement in CHANGING:
            text = pattern.sub(replacement, text)
        return UUID.sub(lambda found: found[0] if found[0] in self.named else "ID", text)

    def traceback(self, text: str | None) -> str | None:
        """Without the frames of whichever backend stored the result."""
        if text is None:
            return None

        def shown(frame: re.Match[str]) -> str:
            return "" if any(part in frame["file"] for part in BACKENDS) else frame[0]

        return self.normalised(FRAME.sub(shown, text))

    def same_column(self, column: str, true: Mapping[str, Any], ours: Mapping[str, Any]) -> bool:
        """To the letter, but for what changes between runs; base64 has that in its values."""
        left, right = true["row"][column], ours["row"][column]
        if left == right or self.normalised(left) == self.normalised(right):
            return True
        if true["row"]["content_encoding"] != "binary" or left is None or right is None:
            return False
        left, right = true["decoded"][column], ours["decoded"][column]
        return left != right and self.normalised(left) == self.normalised(right)
